//! The operator's limits for services and their generations, as they are in force now.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};

use parking_lot::Mutex;
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
#[derive(Debug)]
pub struct LimitsInForce {
    // Read for each call, so without a lock.
    gate: AtomicUsize,
    gate_each: AtomicUsize,
    uncommitted: AtomicUsize,
    all: Mutex<All>,
}

#[derive(Debug, Default)]
struct All {
    limits: SlotLimits,
    generations: Vec<Weak<Generation>>,
}

impl Default for LimitsInForce {
    fn default() -> Self {
        let SlotLimits { gate, uncommitted, .. } = SlotLimits::default();
        let [gate, gate_each, uncommitted] = [gate.all, gate.each, uncommitted].map(AtomicUsize::new);
        Self { gate, gate_each, uncommitted, all: Mutex::default() }
    }
}

impl LimitsInForce {
    /// Sets new limits. Running generations are notified.
    pub fn set(&self, limits: SlotLimits) {
        self.gate.store(limits.gate.all, Ordering::Relaxed);
        self.gate_each.store(limits.gate.each, Ordering::Relaxed);
        self.uncommitted.store(limits.uncommitted, Ordering::Relaxed);
        let mut all = self.all.lock();
        let changed = all.limits.services != limits.services;
        all.limits = limits;
        if changed {
            // With the lock held: a generation that enrols meanwhile learns these limits, and not the earlier ones.
            all.generations.retain(|generation| {
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
        self.all.lock().limits
    }

    /// Sends a generation its limits, now and whenever they change.
    pub(super) fn enrol(&self, generation: &Arc<Generation>) -> ServiceLimits {
        let mut all = self.all.lock();
        all.generations.retain(|other| other.strong_count() > 0);
        all.generations.push(Arc::downgrade(generation));
        tell(generation, &all.limits.services);
        all.limits.services
    }

    /// How many bytes may wait for one service.
    pub(super) fn gate(&self) -> GateLimits {
        GateLimits { all: self.gate.load(Ordering::Relaxed), each: self.gate_each.load(Ordering::Relaxed) }
    }

    /// What workers may send and ask: a state, or a change of the service's data, is one message.
    pub(super) fn worker(&self) -> WorkerLimits {
        let SlotLimits { worker, services, .. } = self.now();
        let message = worker.message.saturating_add(services.state.max(services.change));
        WorkerLimits { message, ..worker }
    }

    /// See [`SlotLimits::uncommitted`].
    pub(super) fn uncommitted(&self) -> usize {
        self.uncommitted.load(Ordering::Relaxed)
    }
}

fn tell(generation: &Generation, limits: &ServiceLimits) {
    generation.send(&ToLibrary::Limits { limits: &limits.to_bytes() });
}
