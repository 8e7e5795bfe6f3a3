//! A library that some identities try before it is placed in the folder.

use std::collections::BTreeSet;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::{Folder, Library};
use crate::loader::fault::LibraryFault;
use crate::loader::worker::confinement::Isolation;
use crate::multiservice::slot::{ServiceState, Slot, Trial};

impl Folder {
    /// Vets a library and loads it beside the running service, for these identities to try. It runs where the service runs, or
    /// in `isolation`. From now on these identities attach to it; attaching fails until [`Slot::start_trial`] is done.
    ///
    /// # Errors
    /// If there is no such service, or the library is refused.
    pub async fn load_trial(
        self: &Rc<Self>,
        service: &str,
        file: &Path,
        identities: BTreeSet<String>,
        isolation: Option<Isolation>,
    ) -> Result<(Arc<Slot>, Arc<Trial>), LibraryFault> {
        let slot = self.tried(service)?;
        let vetted = self.vet(file.to_owned()).await;
        let (copy, vetted) = vetted.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())))?;
        let lacks = self.services.lacks(&vetted.manifest.needs);
        if !lacks.is_empty() {
            return Err(LibraryFault::Operator(format!("it needs {}, which does not serve", lacks.join(", "))));
        }
        let source = self.source_in(service, file, copy, isolation);
        let section = vetted.section;
        let trial = slot.load_trial((source, file.display().to_string()), identities, |_| section).await?;
        Ok((slot, trial))
    }

    /// Ends a trial and returns it.
    ///
    /// # Errors
    /// If there is none.
    pub async fn end_trial(&self, service: &str) -> Result<Arc<Trial>, LibraryFault> {
        let none = || LibraryFault::State(format!("no other version of {service} is being tried"));
        self.tried(service)?.end_trial().await.ok_or_else(none)
    }

    /// The slot that serves under this name.
    fn tried(&self, service: &str) -> Result<Arc<Slot>, LibraryFault> {
        let serves = |library: &Library| match library {
            Library::Loaded { slot, .. } if slot.name().as_str() == service => Some(Arc::clone(slot)),
            _ => None,
        };
        let slot = self.entries.lock().values().find_map(|entry| serves(&entry.library));
        slot.filter(|slot| slot.state() == ServiceState::Serving)
            .ok_or_else(|| LibraryFault::State(format!("{service} does not serve: there is nothing to try it beside")))
    }
}
