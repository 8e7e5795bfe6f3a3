//! Where connections are until somebody has logged in by them: threads of their own, which have less of the processors.
//!
//! However many strangers guess passwords, the calls of those who are inside go past them: the system lets their threads run first.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::mpsc::UnboundedSender;

/// How nice a lobby's threads are. A quarter of those inside, where both want all there is: a login has a time to come to its end.
const NICE: i32 = 6;

thread_local! {
    /// Whether this thread is a lobby's.
    static LOBBY: Cell<bool> = const { Cell::new(false) };
}

/// The threads for those who are inside, by what is sent there: to each in turn.
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

    /// Hands a connection to one of them. `Some`: they serve nobody any more.
    pub(super) fn send(&self, coming: C) -> Option<C> {
        let (threads, next) = &*self.0;
        match threads.get(next.fetch_add(1, Ordering::Relaxed) % threads.len().max(1)) {
            Some(thread) => thread.send(coming).err().map(|refused| refused.0),
            None => Some(coming),
        }
    }
}

/// This thread is a lobby's. A system that does not allow it has them share.
pub(super) fn yields_to_those_inside() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
    LOBBY.set(true);
}

/// A stranger has been served. In a lobby, threads of those inside that wait for this processor go first: some systems let a
/// thread go on for milliseconds, however nice it is.
pub(super) fn served_a_stranger() {
    if LOBBY.get() {
        std::thread::yield_now();
    }
}
