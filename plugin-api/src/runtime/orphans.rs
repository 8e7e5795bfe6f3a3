//! Calls whose clients have gone: they go on for a while, and not for ever, nor without number.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Runtime;
use crate::service::Service;

/// So many go on for one identity, however many connections it has had; beyond, the oldest end.
const MOST: usize = 1024;
/// How often it is looked for those whose time is over.
const SWEEP: Duration = Duration::from_secs(1);

/// Calls that nobody waits for any more, the oldest first, by the identity that made them.
#[derive(Default)]
pub(super) struct Orphans {
    by_identity: HashMap<Arc<str>, VecDeque<(Instant, u64)>>,
    is_swept: bool,
}

impl Orphans {
    /// One more, which ends at `until`; the one that has to make room for it.
    fn add(&mut self, identity: &Arc<str>, call: u64, until: Instant) -> Option<u64> {
        let calls = self.by_identity.entry(Arc::clone(identity)).or_default();
        calls.push_back((until, call));
        if calls.len() > MOST { calls.pop_front().map(|(_, call)| call) } else { None }
    }

    /// Those whose time is over.
    fn over(&mut self, now: Instant) -> Vec<u64> {
        let mut over = Vec::new();
        self.by_identity.retain(|_, calls| {
            while let Some((until, call)) = calls.front()
                && *until <= now
            {
                over.push(*call);
                calls.pop_front();
            }
            !calls.is_empty()
        });
        over
    }
}

impl<S: Service> Runtime<S> {
    /// The client that made this call has gone. A call that waits goes on, until its time is over.
    pub(super) fn client_has_gone(&self, call: u64) {
        if let Some(about) = self.calls.borrow().get(&call) {
            about.set_gone();
        }
        let Some(identity) = self.suspended.borrow().get(&call).map(|waiting| Arc::clone(&waiting.identity)) else {
            return;
        };
        let until = Instant::now() + self.orphans_live.get();
        let (oldest, sweeps) = {
            let mut orphans = self.orphans.borrow_mut();
            (orphans.add(&identity, call, until), !std::mem::replace(&mut orphans.is_swept, true))
        };
        oldest.into_iter().for_each(|call| self.end_call(call));
        if sweeps {
            let me = self.me();
            tokio::task::spawn_local(async move { me.sweep_orphans().await });
        }
    }

    async fn sweep_orphans(self: Rc<Self>) {
        loop {
            tokio::time::sleep(SWEEP).await;
            let over = self.orphans.borrow_mut().over(Instant::now());
            over.into_iter().for_each(|call| self.end_call(call));
            let mut orphans = self.orphans.borrow_mut();
            if orphans.by_identity.is_empty() {
                orphans.is_swept = false;
                return;
            }
        }
    }

    /// Ends a call that waits, and that nobody waits for.
    fn end_call(&self, call: u64) {
        let waiting = self.suspended.borrow_mut().remove(&call);
        let about = self.calls.borrow_mut().remove(&call);
        // What it held is dropped with its task, in that task's next turn; the main loop may wait for the last.
        if let Some(waiting) = waiting {
            waiting.task.abort();
            self.core.written.notify_one();
        }
        drop(about);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_identity_has_so_many_and_each_call_so_long() {
        let mut orphans = Orphans::default();
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        let now = Instant::now();
        let at = |call: u64| now + Duration::from_millis(call);
        let ended: Vec<u64> = (0..2000).filter_map(|call| orphans.add(&alice, call, at(call))).collect();
        assert_eq!(ended, (0..2000 - MOST as u64).collect::<Vec<_>>(), "the oldest make room");
        assert_eq!(orphans.add(&bob, 5000, at(5000)), None, "whoever else has none of it");
        assert_eq!(orphans.over(at(1500)).last(), Some(&1500));
        assert_eq!(orphans.over(at(10_000)).len(), 500);
        assert!(orphans.by_identity.is_empty());
    }
}
