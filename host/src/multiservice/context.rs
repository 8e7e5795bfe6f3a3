//! What all services of a host share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::doorkeeper::{Doorkeeper, NoDoors};
use super::ended::Ended;
use super::in_force::LimitsInForce;
use super::recovery::Quarantined;
use super::router::Router;
pub use super::slot_no::SlotNo;
use crate::memory::{self, Budget};
use crate::store::audit::Event;
use crate::store::{Store, StoreError, Write};

/// What services share: the store of states, the connections, the limits.
#[derive(Clone)]
pub struct HostContext {
    /// The store of states.
    pub store: Arc<dyn Store>,
    /// The connections.
    pub router: Arc<Router>,
    /// The operator's limits for services.
    pub limits: Arc<LimitsInForce>,
    /// How long calls that wait may continue in replaced code.
    pub grace: Duration,
    /// The timeout for each step of a service's start (creation, start, health check), if no client waits for it.
    pub patience: Duration,
    /// What became of the libraries of ended generations.
    pub ended: Arc<Ended>,
    /// The budget for what clients may make the host keep.
    pub memory: Arc<Budget>,
    /// Keeps services' own doors.
    pub doors: Arc<dyn Doorkeeper>,
    /// Receives services whose code has crashed too often. Without it, they stop.
    pub quarantine: Option<mpsc::UnboundedSender<Quarantined>>,
}

/// The default timeout for a step of a service's start.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The default of how long calls that wait may continue in replaced code.
pub const GRACE: Duration = Duration::from_secs(10);

impl HostContext {
    /// A context with this store, no connections, and half of the available memory.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        let (router, memory) = (Router::new(), Budget::new(memory::available() / 2));
        let (ended, doors) = (Arc::default(), Arc::new(NoDoors));
        Self {
            store,
            router,
            limits: Arc::default(),
            grace: GRACE,
            patience: PATIENCE,
            ended,
            memory,
            doors,
            quarantine: None,
        }
    }

    /// Writes an event of a service to the audit trail without waiting for the commit.
    pub(super) fn note(&self, what: &'static str, service: &str, more: &[(&'static str, &str)]) {
        let event =
            more.iter().fold(Event::new(what).with("service", service), |event, (key, value)| event.with(key, *value));
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.store.commit(vec![Write::Audit(event)], Box::new(done));
    }
}

impl std::fmt::Debug for HostContext {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HostContext")
    }
}
