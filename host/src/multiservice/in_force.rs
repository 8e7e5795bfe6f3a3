//! The operator's limits for services and their generations, as they are in force now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::{Mutex, RwLock};
use plugin_api::abi::frame::ToLibrary;
use plugin_api::abi::limits::ServiceLimits;

use crate::loader::gate::{GateLimits, WorkerLimits};
use crate::loader::generation::Generation;

/// The values of [`LimitsInForce`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SlotLimits {
    /// How many bytes may wait for one service: in its gate, and as many again during a replacement.
    pub gate: GateLimits,
    /// How many bytes of uncommitted changes may wait, before the host stops reading from a service in a process of its own.
    pub uncommitted: usize,
    /// The most bytes of a service's data in one answer, beyond its first entry.
    pub data_answer: usize,
    /// What workers may send and ask. A message may be longer by the largest state, or change of data.
    pub worker: WorkerLimits,
    /// What libraries enforce themselves.
    pub services: ServiceLimits,
}

impl SlotLimits {
    /// What may have yet to be written. A service saves some states in its start, which are written when it serves.
    fn most_uncommitted(&self) -> usize {
        self.uncommitted.max(self.services.state.saturating_mul(4))
    }
}

impl Default for SlotLimits {
    fn default() -> Self {
        Self {
            gate: GateLimits::default(),
            uncommitted: 256 << 20,
            data_answer: 4 << 20,
            worker: WorkerLimits::default(),
            services: ServiceLimits::default(),
        }
    }
}

/// The limits, and the generations that are notified of changes.
///
/// Whoever reads them may hold other locks, so none is taken while the limits themselves are locked. Generations are notified with
/// their list locked, and nobody who reads takes that.
#[derive(Debug)]
pub struct LimitsInForce {
    // Read for each call, so without a lock.
    gate: AtomicUsize,
    gate_each: AtomicUsize,
    uncommitted: AtomicUsize,
    all: RwLock<SlotLimits>,
    generations: Mutex<Vec<Weak<Generation>>>,
}

impl Default for LimitsInForce {
    fn default() -> Self {
        let limits = SlotLimits::default();
        let [gate, gate_each, uncommitted] =
            [limits.gate.all, limits.gate.each, limits.most_uncommitted()].map(AtomicUsize::new);
        Self { gate, gate_each, uncommitted, all: RwLock::new(limits), generations: Mutex::default() }
    }
}

impl LimitsInForce {
    /// Sets new limits. Running generations are notified.
    pub fn set(&self, limits: SlotLimits) {
        self.gate.store(limits.gate.all, Ordering::Relaxed);
        self.gate_each.store(limits.gate.each, Ordering::Relaxed);
        self.uncommitted.store(limits.most_uncommitted(), Ordering::Relaxed);
        // With the list locked: a generation that enrols meanwhile learns these limits, and not the earlier ones.
        let mut generations = self.generations.lock();
        let before = std::mem::replace(&mut *self.all.write(), limits);
        if before.services != limits.services {
            generations.retain(|generation| {
                let generation = generation.upgrade();
                generation.is_some_and(|generation| {
                    tell(&generation, &limits.services);
                    true
                })
            });
        }
    }

    /// All of them.
    #[must_use]
    pub fn now(&self) -> SlotLimits {
        *self.all.read()
    }

    /// Sends a generation its limits, now and whenever they change.
    pub(super) fn enrol(&self, generation: &Arc<Generation>) -> ServiceLimits {
        let mut generations = self.generations.lock();
        let limits = self.now().services;
        generations.retain(|other| other.strong_count() > 0);
        generations.push(Arc::downgrade(generation));
        tell(generation, &limits);
        limits
    }

    /// How many bytes may wait for one service.
    pub(super) fn gate(&self) -> GateLimits {
        GateLimits { all: self.gate.load(Ordering::Relaxed), each: self.gate_each.load(Ordering::Relaxed) }
    }

    /// What workers may send, ask and leave waiting. A state, a change of the service's data, and the copies that a reload hands over
    /// are one message each.
    pub(super) fn worker(&self) -> WorkerLimits {
        let SlotLimits { worker, services, data_answer, .. } = self.now();
        let message = worker.message.saturating_add(services.state.max(services.change).max(services.copies));
        let answers = worker.answers.max(services.state.max(data_answer).saturating_mul(8));
        WorkerLimits { message, answers, ..worker }
    }

    /// See [`SlotLimits::most_uncommitted`].
    pub(super) fn uncommitted(&self) -> usize {
        self.uncommitted.load(Ordering::Relaxed)
    }
}

fn tell(generation: &Generation, limits: &ServiceLimits) {
    generation.send(&ToLibrary::Limits { limits: &limits.to_bytes() });
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A thread that holds its own lock may read the limits while another thread notifies generations, which take that lock.
    #[test]
    fn limits_are_read_while_generations_are_notified() {
        let limits = LimitsInForce::default();
        let notifies = limits.generations.lock();
        assert_eq!(limits.now(), SlotLimits::default());
        assert_eq!(limits.worker().message, 128 << 20);
        drop(notifies);
    }

    #[test]
    fn a_worker_may_send_what_it_may_save_and_hand_over() {
        let limits = LimitsInForce::default();
        let set = |state: usize, change: usize, copies: usize, data_answer: usize| {
            let services = ServiceLimits { state, change, copies, ..ServiceLimits::default() };
            limits.set(SlotLimits { services, data_answer, ..SlotLimits::default() });
            let WorkerLimits { message, answers, .. } = limits.worker();
            (message >> 20, answers >> 20, limits.uncommitted() >> 20)
        };
        assert_eq!(set(1 << 20, 1 << 20, 1 << 20, 1 << 20), (65, 256, 256));
        assert_eq!(set(512 << 20, 1 << 20, 1 << 20, 1 << 20), (576, 4096, 2048));
        assert_eq!(set(1 << 20, 200 << 20, 1 << 20, 1 << 20), (264, 256, 256));
        assert_eq!(set(1 << 20, 1 << 20, 300 << 20, 64 << 20), (364, 512, 256));
    }
}
