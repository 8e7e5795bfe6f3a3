//! Lines in the trail about logins. Those that can be had by the thousand are summed up.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cred::StoreSecret;
use crate::cred::throttle::Digest;
use crate::store::audit::Event;
use crate::store::{Store, StoreError, Write};

/// How often a line that is summed up is written, in milliseconds.
const INTERVAL: u64 = 60_000;
/// How many kinds of such lines are known at once. Beyond, all are forgotten, and written again.
const KINDS: usize = 10_000;

/// The way to the trail.
pub(super) struct Trail {
    store: Arc<dyn Store>,
    secret: StoreSecret,
    /// When a line of each kind was written last, in milliseconds, and how many have come since.
    summed: Mutex<HashMap<Digest, (u64, u64)>>,
}

impl Trail {
    pub(super) fn new(store: Arc<dyn Store>, secret: StoreSecret) -> Self {
        Self { store, secret, summed: Mutex::default() }
    }

    /// Writes a line, unless one of its kind (`of`) was written within the last minute: then it counts for the next. `now` is
    /// in milliseconds.
    pub(super) fn note_summed(&self, of: &[&str], event: Event, now: u64) {
        let parts: Vec<&[u8]> = of.iter().map(|part| part.as_bytes()).collect();
        let mut kind = Digest::default();
        kind.copy_from_slice(&self.secret.digest("seldom", &parts)[..16]);
        let times = {
            let mut summed = self.summed.lock();
            if summed.len() >= KINDS {
                summed.clear();
            }
            match summed.get_mut(&kind) {
                Some((last, more)) if now.saturating_sub(*last) < INTERVAL => {
                    *more += 1;
                    return;
                }
                Some((last, more)) => {
                    *last = now;
                    std::mem::take(more) + 1
                }
                None => {
                    summed.insert(kind, (now, 0));
                    1
                }
            }
        };
        self.write(vec![Write::Audit(if times > 1 { event.with("times", times) } else { event })]);
    }

    /// Writes lines, and what belongs to them; nobody waits for it.
    pub(super) fn write(&self, writes: Vec<Write>) {
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.store.commit(writes, Box::new(done));
    }
}
