//! Limits for calls and bytes in flight on a connection.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;

/// Limits for calls and bytes in flight.
#[derive(Debug)]
pub(super) struct Flow {
    /// Calls that wait for an answer.
    calls: Arc<Semaphore>,
    /// Bytes of arguments: of calls that wait for an answer, and of messages that are not written yet.
    bytes: Arc<Semaphore>,
    pub(super) most: usize,
    /// Bytes of queued changes of copies that were not read yet.
    pub(super) unread_changes: AtomicUsize,
    /// Why the connection has ended.
    ended: OnceLock<String>,
}

/// A share of the byte limit. It is held until the message is written, and its call is answered or given up.
pub(super) type Bytes = Arc<OwnedSemaphorePermit>;

/// The room that a call occupies until it is answered or given up.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Mutex<Option<(OwnedSemaphorePermit, Bytes)>>>);

impl Room {
    /// Frees the room for others.
    pub(super) fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// Its share of the byte limit, which the unwritten message holds as well.
    pub(super) fn bytes(&self) -> Option<Bytes> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).as_ref().map(|(_, bytes)| Arc::clone(bytes))
    }
}

impl Flow {
    pub(super) fn new(calls: usize, bytes: usize) -> Self {
        let most = bytes.clamp(1, u32::MAX as usize >> 1);
        let permits = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        let (calls, bytes) = (permits(calls), permits(most));
        Self { calls, bytes, most, unread_changes: AtomicUsize::new(0), ended: OnceLock::new() }
    }

    /// Waits until there is room for a call of this size.
    pub(super) async fn room(&self, size: usize) -> Result<Room, Error> {
        let call = Arc::clone(&self.calls).acquire_owned().await.map_err(|_| self.not_sent())?;
        let bytes = self.bytes(size).await?;
        Ok(Room(Arc::new(Mutex::new(Some((call, bytes))))))
    }

    /// Waits until there is room for something of this size. A large size counts as a quarter of the limit, so that others can
    /// pass while it waits for its answer.
    pub(super) async fn bytes(&self, size: usize) -> Result<Bytes, Error> {
        let size = u32::try_from(size.clamp(1, (self.most / 4).max(1))).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(size).await.map_err(|_| self.not_sent())?;
        Ok(Arc::new(permit))
    }

    /// Marks the connection as ended. Everyone who waits for room gets an error.
    pub(super) fn end(&self, why: &str) {
        // The first reason is kept.
        let _ = self.ended.set(why.to_owned());
        self.calls.close();
        self.bytes.close();
    }

    /// Why the connection has ended, if it has.
    pub(super) fn why(&self) -> Option<String> {
        self.ended.get().cloned()
    }

    pub(super) fn lost(&self) -> Error {
        Error::Lost(self.why().unwrap_or_else(|| "it closed".to_owned()))
    }

    pub(super) fn not_sent(&self) -> Error {
        Error::NotSent(self.why().unwrap_or_else(|| "it closed".to_owned()))
    }
}
