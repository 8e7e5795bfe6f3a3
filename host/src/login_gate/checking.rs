//! Logins that are being checked at the moment, and logins that wait for one of them to end. An owner whose windows all log in at once is
//! not somebody who guesses.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cred::throttle::{Counter, Digest, Held};

/// The most logins that wait for the same counter: as many as one source may have checked at once.
const WAITING: u32 = 20;

/// See the file's page.
#[derive(Debug, Default)]
pub(super) struct Checking(Mutex<HashMap<Held, Place>>);

#[derive(Debug, Default)]
struct Place {
    checking: u32,
    waiting: u32,
    /// Wakes one of those that wait.
    ended: Arc<Notify>,
}

impl Checking {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many of a counter's, and of a source's, are being checked.
    pub(super) fn of(&self, counter: Counter, source: Digest) -> [u32; 2] {
        let places = self.0.lock();
        let checking = |held| places.get(&held).map_or(0, |place: &Place| place.checking);
        [checking(Held::ByName(counter)), checking(Held::BySource(source))]
    }

    /// One more, until it is dropped.
    pub(super) fn begins(self: &Arc<Self>, counter: Counter, source: Digest) -> Begun {
        let of = [Held::ByName(counter), Held::BySource(source)];
        let mut places = self.0.lock();
        for held in of {
            places.entry(held).or_default().checking += 1;
        }
        Begun { all: Arc::clone(self), of }
    }

    /// One more login waits, until this is dropped; `None`: [`WAITING`] others do.
    pub(super) fn waits(self: &Arc<Self>, held: Held) -> Option<Waits> {
        let mut places = self.0.lock();
        let place = places.entry(held).or_default();
        if place.waiting >= WAITING {
            return None;
        }
        place.waiting += 1;
        Some(Waits { ended: Arc::clone(&place.ended), all: Arc::clone(self), held })
    }

    fn leaves(&self, held: Held, leave: impl FnOnce(&mut Place)) {
        let mut places = self.0.lock();
        if let Some(place) = places.get_mut(&held) {
            leave(place);
            place.ended.notify_one();
            if place.checking == 0 && place.waiting == 0 {
                places.remove(&held);
            }
        }
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
        for held in self.of {
            self.all.leaves(held, |place| place.checking -= 1);
        }
    }
}

/// A login that waits. When it goes on or gives up, the next one looks whether it may go on.
#[derive(Debug)]
pub(super) struct Waits {
    /// Says that it may have its turn.
    pub(super) ended: Arc<Notify>,
    all: Arc<Checking>,
    pub(super) held: Held,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.all.leaves(self.held, |place| place.waiting -= 1);
    }
}
