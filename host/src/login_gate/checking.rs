//! Tries that are being checked at the moment. Whoever may only be looked at when one of them has ended waits for that: an owner
//! whose windows all log in at once is not somebody who guesses.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cred::throttle::{Counter, Digest, Held};

/// Who waits is woken with those whose counter falls into the same part.
const PARTS: usize = 256;

/// How many tries are being checked, by what they are charged to.
#[derive(Debug)]
pub(super) struct Checking {
    counts: Mutex<HashMap<Held, u32>>,
    ended: Vec<Notify>,
}

impl Checking {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self { counts: Mutex::default(), ended: (0..PARTS).map(|_| Notify::new()).collect() })
    }

    /// How many of a counter's, and of a source's.
    pub(super) fn of(&self, counter: Counter, source: Digest) -> [u32; 2] {
        let counts = self.counts.lock();
        [Held::ByName(counter), Held::BySource(source)].map(|held| counts.get(&held).copied().unwrap_or_default())
    }

    /// One more, until it is dropped.
    pub(super) fn begins(self: &Arc<Self>, counter: Counter, source: Digest) -> Begun {
        let of = [Held::ByName(counter), Held::BySource(source)];
        let mut counts = self.counts.lock();
        for held in of {
            *counts.entry(held).or_default() += 1;
        }
        Begun { all: Arc::clone(self), of }
    }

    /// Is told when one of these ends. Ask before it is looked once more whether it has.
    pub(super) fn ended(&self, held: Held) -> &Notify {
        let (Held::ByName(Counter { name: digest, .. }) | Held::BySource(digest)) = held;
        &self.ended[usize::from(digest[0]) % PARTS]
    }
}

/// A try that is being checked.
#[derive(Debug)]
pub(super) struct Begun {
    all: Arc<Checking>,
    of: [Held; 2],
}

impl Drop for Begun {
    fn drop(&mut self) {
        let mut counts = self.all.counts.lock();
        for held in self.of {
            if let Some(count) = counts.get_mut(&held) {
                *count -= 1;
                if *count == 0 {
                    counts.remove(&held);
                }
            }
        }
        drop(counts);
        self.of.iter().for_each(|held| self.all.ended(*held).notify_waiters());
    }
}
