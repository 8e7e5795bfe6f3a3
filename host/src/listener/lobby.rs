//! The threads that serve connections until somebody has logged in by them. They have a lower priority.
//!
//! However many strangers guess passwords, calls of clients that have logged in go first: the system prefers their
//! threads.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::UnboundedSender;

/// The nice value of a lobby's threads. They get a quarter of the processor time of the other threads if both could use
/// all of it: a login must complete in time.
const NICE: i32 = 6;

thread_local! {
    /// Whether this thread belongs to a lobby.
    static LOBBY: Cell<bool> = const { Cell::new(false) };
}

/// The queues of the threads for clients that have logged in, used in turn.
pub(super) struct Insiders<C>(Arc<(Vec<UnboundedSender<C>>, AtomicUsize)>);

impl<C> Clone for Insiders<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Insiders<C> {
    pub(super) fn new(threads: Vec<UnboundedSender<C>>) -> Self {
        Self(Arc::new((threads, AtomicUsize::new(0))))
    }

    /// Sends a connection to one of them. `Some`: they no longer serve.
    pub(super) fn send(&self, coming: C) -> Option<C> {
        let (threads, next) = &*self.0;
        match threads.get(next.fetch_add(1, Ordering::Relaxed) % threads.len().max(1)) {
            Some(thread) => thread.send(coming).err().map(|refused| refused.0),
            None => Some(coming),
        }
    }
}

/// Makes this a lobby's thread. If the system does not allow a lower priority, all threads share.
pub(super) fn yields_to_those_inside() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    LOBBY.set(true);
}

/// A stranger has been served. In a lobby, the other threads that wait for this processor go first: some systems let a
/// thread continue for milliseconds, whatever its nice value.
pub(super) fn served_a_stranger() {
    if LOBBY.get() {
        std::thread::yield_now();
    }
}
