//! Calls whose clients have gone: they continue for a limited time, and in limited number.

use std::collections::{HashMap, VecDeque};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::Runtime;
use crate::service::Service;

/// How often to check for calls whose time is over.
const SWEEP: Duration = Duration::from_secs(1);

/// Calls that nobody waits for any more, by the identity that made them, the oldest first.
#[derive(Default)]
pub(super) struct Orphans {
    by_identity: HashMap<Arc<str>, VecDeque<(Instant, u64)>>,
    is_swept: bool,
}

impl Orphans {
    /// Adds a call, which ends at `until`. An identity has at most `most` calls, regardless of how many connections it has had.
    /// Beyond that, the oldest are removed and returned.
    fn add(&mut self, identity: &Arc<str>, call: u64, until: Instant, most: usize) -> Vec<u64> {
        let calls = self.by_identity.entry(Arc::clone(identity)).or_default();
        calls.push_back((until, call));
        // More than one, if the operator has lowered the limit.
        let over = calls.len().saturating_sub(most);
        calls.drain(..over).map(|(_, call)| call).collect()
    }

    /// Removes and returns the calls whose time is over.
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
    /// The client that made this call has gone. A suspended call continues until its time is over.
    pub(super) fn client_has_gone(&self, call: u64) {
        if let Some(about) = self.calls.borrow().get(&call) {
            about.set_gone();
        }
        let Some(identity) = self.suspended.borrow().get(&call).map(|waiting| Arc::clone(&waiting.identity)) else {
            return;
        };
        let limits = self.core.limits.get();
        let now = Instant::now();
        // If the clock cannot represent the deadline: a year from now, which is as good as never.
        let until = now.checked_add(limits.orphans).unwrap_or(now + Duration::from_secs(365 * 86_400));
        let (oldest, sweeps) = {
            let mut orphans = self.orphans.borrow_mut();
            let oldest = orphans.add(&identity, call, until, limits.orphan_calls);
            (oldest, !std::mem::replace(&mut orphans.is_swept, true))
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

    /// Ends a suspended call whose client has gone.
    fn end_call(&self, call: u64) {
        let waiting = self.suspended.borrow_mut().remove(&call);
        let about = self.calls.borrow_mut().remove(&call);
        // What the call held is dropped with its task, in the task's next turn. The main loop may be waiting for the last call to
        // end.
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
    fn orphans_are_limited_in_number_and_each_in_time() {
        let mut orphans = Orphans::default();
        let (alice, bob): (Arc<str>, Arc<str>) = ("alice".into(), "bob".into());
        let now = Instant::now();
        let at = |call: u64| now + Duration::from_millis(call);
        let ended: Vec<u64> = (0..2000).flat_map(|call| orphans.add(&alice, call, at(call), 1024)).collect();
        assert_eq!(ended, (0..2000 - 1024).collect::<Vec<_>>(), "the oldest make room");
        assert_eq!(orphans.add(&alice, 2000, at(2000), 1000), (976..1001).collect::<Vec<_>>(), "the limit is lower");
        assert_eq!(orphans.add(&bob, 5000, at(5000), 1000), [0_u64; 0], "another identity has its own");
        assert_eq!(orphans.over(at(1500)).last(), Some(&1500));
        assert_eq!(orphans.over(at(10_000)).len(), 501);
        assert!(orphans.by_identity.is_empty());
    }
}
