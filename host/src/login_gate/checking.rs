//! Logins that are being checked, and logins that wait for one of them to end. An owner whose programs all log in at
//! once is not guessing.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::cred::throttle::{Counter, Digest, Held};

/// The most logins that wait for the same counter: as many as may be checked at once for one source.
const WAITING: u32 = 20;

/// See the module's page.
#[derive(Debug, Default)]
pub(super) struct Checking(Mutex<HashMap<Held, Place>>);

#[derive(Debug, Default)]
struct Place {
    checking: u32,
    waiting: u32,
    /// Wakes one of the waiting logins.
    ended: Arc<Notify>,
}

impl Checking {
    pub(super) fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The number of attempts that are being checked, on a counter and from a source.
    pub(super) fn of(&self, counter: Counter, source: Digest) -> [u32; 2] {
        let places = self.0.lock();
        let checking = |held| places.get(&held).map_or(0, |place: &Place| place.checking);
        [checking(Held::ByName(counter)), checking(Held::BySource(source))]
    }

    /// Counts one more attempt, until the result is dropped.
    pub(super) fn begins(self: &Arc<Self>, counter: Counter, source: Digest) -> Begun {
        let of = [Held::ByName(counter), Held::BySource(source)];
        let mut places = self.0.lock();
        for held in of {
            places.entry(held).or_default().checking += 1;
        }
        Begun { all: Arc::clone(self), of }
    }

    /// Counts one more waiting login, until the result is dropped. `None` if [`WAITING`] others wait already.
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

/// An attempt that is being checked.
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

/// A waiting login. When it continues or gives up, the next one checks whether it may continue.
#[derive(Debug)]
pub(super) struct Waits {
    /// Notified when it may be its turn.
    pub(super) ended: Arc<Notify>,
    all: Arc<Checking>,
    pub(super) held: Held,
}

impl Drop for Waits {
    fn drop(&mut self) {
        self.all.leaves(self.held, |place| place.waiting -= 1);
    }
}
