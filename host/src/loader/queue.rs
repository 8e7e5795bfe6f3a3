//! What waits in a gate, and whether its reader sleeps: the part that two threads share. A test walks all of their
//! interleavings (`tests/tests/gate_model.rs`); that is why its locks come from `super::sync`.

use super::fair::{FairQueue, GateLimits, Lane};
use super::sync::{AtomicBool, Mutex, Ordering};

/// Frames between one reader and any number of writers.
#[derive(Debug)]
pub(super) struct Queue<M> {
    frames: Mutex<FairQueue<M>>,
    asleep: AtomicBool,
}

impl<M: Clone> Default for Queue<M> {
    fn default() -> Self {
        Self { frames: Mutex::default(), asleep: AtomicBool::new(false) }
    }
}

/// More would wait than is allowed.
#[derive(Debug)]
pub(super) struct Over;

impl<M: Clone> Queue<M> {
    fn change<R>(&self, change: impl FnOnce(&mut FairQueue<M>) -> R) -> (R, bool) {
        let mut frames = self.frames.lock();
        let result = change(&mut frames);
        let wakes = !frames.is_idle();
        drop(frames);
        (result, wakes && self.asleep.swap(false, Ordering::SeqCst))
    }

    /// Appends a connection's frames. Returns true if the reader sleeps and the caller must wake it.
    pub(super) fn push(
        &self,
        lane: &Lane<M>,
        frames: &[u8],
        is_call: impl Fn(u8) -> bool,
        limits: GateLimits,
    ) -> Result<bool, Over> {
        let (pushed, wakes) = self.change(|queue| {
            if !queue.admits(lane.owner, frames.len(), limits) {
                return Err(Over);
            }
            queue.push(lane, frames, is_call);
            Ok(())
        });
        pushed.map(|()| wakes)
    }

    /// Appends the host's own frames, ahead of calls. Returns true as [`Queue::push`] does.
    pub(super) fn host(&self, frames: &[u8]) -> bool {
        self.change(|queue| queue.host(frames)).1
    }

    /// Appends the host's own frames, ahead of everything. Returns true as [`Queue::push`] does. `barred`: only if there is a
    /// barrier.
    pub(super) fn ahead(&self, frames: &[u8], barred: bool) -> bool {
        self.change(|queue| queue.ahead(frames, barred)).1
    }

    /// Appends a frame of the host behind everything that waits. Returns true as [`Queue::push`] does.
    pub(super) fn barrier(&self, frame: &[u8]) -> bool {
        self.change(|queue| queue.barrier(frame)).1
    }

    /// A connection's calls may begin again. Returns true as [`Queue::push`] does.
    pub(super) fn resume(&self, connection: u32) -> bool {
        self.change(|queue| queue.resume(connection)).1
    }

    /// Charges a connection a cost that has become known; without a connection, those whose calls are running.
    pub(super) fn charge(&self, connection: Option<u32>, cost: u64) {
        let mut frames = self.frames.lock();
        match connection {
            Some(connection) => frames.charge(connection, cost),
            None => frames.charge_batch(cost),
        }
    }

    /// Appends the next batch to `into`, at the time `now` in nanoseconds. `may` says whether a lane's calls may begin;
    /// `popped` is told how many bytes have left a lane.
    pub(super) fn take(
        &self,
        into: &mut Vec<u8>,
        now: u64,
        may: impl FnMut(&Lane<M>) -> bool,
        popped: impl FnMut(&Lane<M>, usize),
    ) {
        self.frames.lock().pop(into, now, may, popped);
    }

    /// Empties all lanes. `each` is told how many bytes each one had.
    pub(super) fn drain(&self, each: impl FnMut(&Lane<M>, usize)) {
        self.frames.lock().drain(each);
    }

    /// How many bytes of the host's own frames wait.
    pub(super) fn of_host(&self) -> usize {
        self.frames.lock().of_host()
    }

    /// Takes everything out, for a reader that has died: see [`FairQueue::take_all`].
    pub(super) fn take_all(&self, each: impl FnMut(Option<&Lane<M>>, &[u8])) {
        self.frames.lock().take_all(each);
    }

    /// The reader is about to sleep. Returns false if something has arrived, and it must not.
    pub(super) fn arm(&self) -> bool {
        self.asleep.swap(true, Ordering::SeqCst);
        // A push that came before the swap saw no sleeper: look once more, now that the next one will see it.
        let idle = self.frames.lock().is_idle();
        if !idle {
            self.asleep.swap(false, Ordering::SeqCst);
        }
        idle
    }
}
