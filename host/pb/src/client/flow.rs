//! How much may be under way on a connection.

use std::sync::atomic::AtomicUsize;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::error::Error;

/// How much may be under way.
#[derive(Debug)]
pub(super) struct Flow {
    /// Calls that wait for an answer.
    calls: Arc<Semaphore>,
    /// Bytes of arguments: of calls that wait for an answer, and of what has yet to be written.
    bytes: Arc<Semaphore>,
    pub(super) most: usize,
    /// Bytes of changes that wait until their copies are read.
    pub(super) unread_changes: AtomicUsize,
    /// Why the connection has ended.
    ended: OnceLock<String>,
}

/// The bytes that something takes: until it was written, and was answered or is not waited for.
pub(super) type Bytes = Arc<OwnedSemaphorePermit>;

/// The room that one call takes: until it is answered, or is not waited for any more.
#[derive(Debug, Clone)]
pub(super) struct Room(Arc<Mutex<Option<(OwnedSemaphorePermit, Bytes)>>>);

impl Room {
    /// Others can have it.
    pub(super) fn give_back(&self) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
    }

    /// The bytes of it, which what has yet to be written takes as well.
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

    /// Waits until there is room for something of this size. What is large counts for a quarter of all there may be: others pass
    /// by it while it waits for its answer.
    pub(super) async fn bytes(&self, size: usize) -> Result<Bytes, Error> {
        let size = u32::try_from(size.clamp(1, (self.most / 4).max(1))).unwrap_or(u32::MAX);
        let permit = Arc::clone(&self.bytes).acquire_many_owned(size).await.map_err(|_| self.not_sent())?;
        Ok(Arc::new(permit))
    }

    /// The connection has ended: nobody waits for room any more.
    pub(super) fn end(&self, why: &str) {
        // Whoever says it first is right.
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
