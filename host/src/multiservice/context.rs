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

/// What services share: where states are kept, and where connections are.
#[derive(Clone)]
pub struct HostContext {
    /// Where states are kept.
    pub store: Arc<dyn Store>,
    /// Where connections are.
    pub router: Arc<Router>,
    /// What the operator has set for services.
    pub limits: Arc<LimitsInForce>,
    /// How long calls that wait may go on in code that was replaced.
    pub grace: Duration,
    /// How long a service may take to be made, to start, or to say that it is well, where no client waits for it.
    pub patience: Duration,
    /// What became of the libraries that have served.
    pub ended: Arc<Ended>,
    /// What clients may make the host keep.
    pub memory: Arc<Budget>,
    /// Who keeps services' own doors.
    pub doors: Arc<dyn Doorkeeper>,
    /// Who hears of services whose code has crashed too often; without anybody, they stop.
    pub quarantine: Option<mpsc::UnboundedSender<Quarantined>>,
}

/// How long a service may take for a step of its start, if nothing else is said.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How long calls that wait may go on in code that was replaced, if nothing else is said.
pub const GRACE: Duration = Duration::from_secs(10);

impl HostContext {
    /// This store, no connections yet, and half of the memory that there is.
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

    /// Writes of a service into the audit trail, and does not wait for it.
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
