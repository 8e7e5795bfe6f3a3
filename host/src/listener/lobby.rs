//! Where connections are until somebody has logged in by them: threads of their own, which have less of the processors.
//!
//! However many strangers guess passwords, the calls of those who are inside go past them: the system lets their threads run first.

use std::sync::Arc;

use tokio::sync::mpsc::UnboundedSender;

/// How nice a lobby's threads are. A quarter of those inside, where both want all there is: a login has a time to come to its end.
const NICE: i32 = 6;

/// The threads for those who are inside, by what is sent there.
pub(super) struct Insiders<C>(Arc<[UnboundedSender<C>]>);

impl<C> Clone for Insiders<C> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<C> Insiders<C> {
    pub(super) fn new(threads: Vec<UnboundedSender<C>>) -> Self {
        Self(threads.into())
    }

    /// Hands a connection of this number to one of them. `Some`: they serve nobody any more.
    pub(super) fn send(&self, number: u32, coming: C) -> Option<C> {
        let at = usize::try_from(number).unwrap_or(0) % self.0.len().max(1);
        match self.0.get(at) {
            Some(thread) => thread.send(coming).err().map(|refused| refused.0),
            None => Some(coming),
        }
    }
}

/// This thread is a lobby's. A system that does not allow it has them share.
pub(super) fn yields_to_those_inside() {
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), NICE);
}
