//! Services by name.
//!
//! A [`MultiService`] owns its services and other collections. Names are looked up in order, its own services first,
//! then those of the collections in it. It starts its services in order and stops them in reverse.
//!
//! In Twisted: `twisted.internet.app.MultiService`. Unlike there, children do not know their parent, and a name that is taken
//! is an error.

mod backend;
pub mod context;
mod current;
mod doorkeeper;
mod elsewhere;
pub mod ended;
pub mod in_force;
mod instance;

mod outgoing;
mod recovery;
pub mod reload;
mod restart;
pub mod router;
pub mod slot;
mod slot_no;
mod sync;
pub mod trial;

pub use backend::{Backend, Backends};
pub use context::SlotNo;
pub use current::AttachmentChange;
pub use doorkeeper::{Doorkeeper, NoDoors, Speaker};
pub use in_force::{LimitsInForce, SlotLimits};
pub use recovery::{Crashes, Quarantined};

use std::sync::Arc;

use parking_lot::RwLock;

use self::slot::Slot;
pub use crate::loader::fault::LibraryFault;
pub use crate::loader::gate::Lane;
use crate::loader::unload::UnloadOutcome;

/// A collection of services.
#[derive(Debug)]
pub struct MultiService {
    name: String,
    children: RwLock<Vec<Child>>,
    running: RwLock<bool>,
}

#[derive(Debug, Clone)]
enum Child {
    Service(Arc<Slot>),
    Collection(Arc<MultiService>),
}

/// The name is taken, here or in a nested collection.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is already a service named {0}")]
pub struct NameTaken(pub String);

/// Why a service could not be added.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotAdded {
    /// Its name is taken.
    #[error(transparent)]
    NameTaken(#[from] NameTaken),
    /// The collection runs, and the service does not start.
    #[error(transparent)]
    Fault(#[from] LibraryFault),
}

impl MultiService {
    /// An empty collection.
    #[must_use]
    pub fn new(name: impl Into<String>) -> Arc<Self> {
        Arc::new(Self { name: name.into(), children: RwLock::default(), running: RwLock::new(false) })
    }

    /// The collection's own name, for a person to read.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Adds a service; if the collection runs, starts it.
    ///
    /// # Errors
    /// If its name is taken, or it does not start. It is then not in the collection.
    pub async fn add(&self, service: Arc<Slot>) -> Result<(), NotAdded> {
        let name = service.name().as_str().to_owned();
        {
            let mut children = self.children.write();
            if find(&children, &name).is_some() {
                return Err(NameTaken(name).into());
            }
            children.push(Child::Service(Arc::clone(&service)));
        }
        if *self.running.read()
            && let Err(error) = service.start().await
        {
            self.take(&service);
            return Err(error.into());
        }
        Ok(())
    }

    /// Adds another collection. Lookups reach its services after this one's own.
    ///
    /// # Errors
    /// If one of its names is taken here.
    pub fn add_collection(&self, collection: Arc<Self>) -> Result<(), NameTaken> {
        let mut children = self.children.write();
        if let Some(taken) =
            collection.services().iter().find(|service| find(&children, service.name().as_str()).is_some())
        {
            return Err(NameTaken(taken.name().to_string()));
        }
        children.push(Child::Collection(collection));
        Ok(())
    }

    /// The service of this name.
    #[must_use]
    pub fn service(&self, name: &str) -> Option<Arc<Slot>> {
        find(&self.children.read(), name)
    }

    /// Removes one of this collection's own services and stops it, after the services that need it.
    pub async fn remove(&self, service: &Arc<Slot>) -> UnloadOutcome {
        self.take(service);
        for dependant in self.dependants(service.name().as_str()) {
            dependant.stop().await;
        }
        service.stop().await
    }

    /// The services that need this one, directly or through others, in the order in which to stop them: each before those that
    /// it needs.
    #[must_use]
    pub fn dependants(&self, name: &str) -> Vec<Arc<Slot>> {
        fn before(name: &str, all: &mut Vec<Arc<Slot>>, found: &mut Vec<Arc<Slot>>) {
            let needs = |service: &Arc<Slot>| service.manifest().needs.iter().any(|needed| needed == name);
            while let Some(at) = all.iter().position(needs) {
                let service = all.remove(at);
                before(service.name().as_str(), all, found);
                found.push(service);
            }
        }
        let mut all = self.services();
        all.retain(|service| service.state() == slot::ServiceState::Serving);
        let mut found = Vec::new();
        before(name, &mut all, &mut found);
        found
    }

    /// Which of these services are missing or do not serve.
    #[must_use]
    pub fn lacks(&self, needs: &[String]) -> Vec<String> {
        let serves =
            |name: &str| self.service(name).is_some_and(|service| service.state() == slot::ServiceState::Serving);
        needs.iter().filter(|name| !serves(name)).cloned().collect()
    }

    fn take(&self, service: &Arc<Slot>) {
        self.children.write().retain(|child| !matches!(child, Child::Service(other) if Arc::ptr_eq(other, service)));
    }

    /// All services, in the order in which they start.
    #[must_use]
    pub fn services(&self) -> Vec<Arc<Slot>> {
        let children = self.children.read().clone();
        children
            .into_iter()
            .flat_map(|child| match child {
                Child::Service(service) => vec![service],
                Child::Collection(collection) => collection.services(),
            })
            .collect()
    }

    /// Starts all services in order, each after those that it needs. If one refuses, only those that need it do not start.
    /// Returns the refusals.
    pub async fn start(&self) -> Vec<(String, LibraryFault)> {
        self.set_running(true);
        let mut refused = Vec::new();
        let mut waiting: Vec<Arc<Slot>> =
            self.services().into_iter().filter(|service| service.state() == slot::ServiceState::Loaded).collect();
        while let Some(next) = waiting.iter().position(|service| self.lacks(&service.manifest().needs).is_empty()) {
            let service = waiting.remove(next);
            if let Err(error) = service.start().await {
                refused.push((service.name().to_string(), error));
            }
        }
        for service in waiting {
            let lacks = self.lacks(&service.manifest().needs).join(", ");
            refused.push((
                service.name().to_string(),
                LibraryFault::Operator(format!("it needs {lacks}, which does not serve")),
            ));
        }
        refused
    }

    /// Stops all services, in reverse order, each before those that it needs.
    pub async fn stop(&self) {
        self.set_running(false);
        let mut left: Vec<Arc<Slot>> = self.services();
        while !left.is_empty() {
            let needed = |service: &Arc<Slot>| {
                left.iter().any(|other| other.manifest().needs.iter().any(|name| name == service.name().as_str()))
            };
            // In a cycle of needs nothing was started: any order will do.
            let last = left.iter().rposition(|service| !needed(service)).unwrap_or(left.len() - 1);
            left.remove(last).stop().await;
        }
    }

    fn set_running(&self, running: bool) {
        *self.running.write() = running;
        for child in self.children.read().iter() {
            if let Child::Collection(collection) = child {
                collection.set_running(running);
            }
        }
    }
}

fn find(children: &[Child], name: &str) -> Option<Arc<Slot>> {
    let own = children.iter().find_map(|child| match child {
        Child::Service(service) if service.name().as_str() == name => Some(Arc::clone(service)),
        _ => None,
    });
    own.or_else(|| {
        children.iter().find_map(|child| match child {
            Child::Collection(collection) => collection.service(name),
            Child::Service(_) => None,
        })
    })
}

impl Backends for MultiService {
    fn backend(&self, name: &str) -> Option<Arc<dyn Backend>> {
        self.service(name).map(|slot| slot as Arc<dyn Backend>)
    }

    fn backend_for(&self, name: &str, identity: &str) -> Option<Arc<dyn Backend>> {
        self.service(name).map(|slot| slot.for_identity(identity) as Arc<dyn Backend>)
    }
}
