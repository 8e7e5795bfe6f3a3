//! Services in processes of their own: those that crash too often, and those whose isolation has changed.

use std::rc::Rc;
use std::sync::Arc;

use super::{Folder, Library, shown};
use crate::loader::fault::LibraryFault;
use crate::loader::private;
use crate::multiservice::Quarantined;
use crate::multiservice::slot::{ServiceState, Slot};

impl Folder {
    /// Handles a service whose code has crashed too often: the previous version serves again, unless it has crashed too often,
    /// too.
    pub async fn quarantine(self: &Rc<Self>, quarantined: Quarantined) {
        let Quarantined { service, generation, why } = quarantined;
        let Some(path) = self.path_of(&service) else { return };
        let Some((slot, hash)) = self.loaded_at(&path) else { return };
        if slot.generation() != generation {
            // Other code has replaced it meanwhile.
            return;
        }
        self.quarantined.lock().insert(hash);
        let file = shown(&path);
        let known = private::hash(&self.previous_copy(&path)).ok();
        let is_other = known.is_some_and(|known| !self.quarantined.lock().contains(&known));
        let mut lacks = "there is no previous version".to_owned();
        if is_other {
            match self.rollback(&service).await {
                Ok(_) => {
                    tracing::error!(service, "{file} crashed too often; the previous version is serving");
                    let trouble =
                        format!("quarantined: the file crashed too often (it {why}); the previous version is serving");
                    return self.trouble(&path, trouble);
                }
                Err(error) => lacks = format!("the previous version cannot serve: {error}"),
            }
        } else if known.is_some() {
            lacks = "the previous version had crashed too often, too".to_owned();
        }
        slot.fail(&format!("it crashed too often (the last time it {why}), and {lacks}")).await;
    }

    fn loaded_at(&self, path: &std::path::Path) -> Option<(Arc<Slot>, [u8; 32])> {
        match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, hash, .. }) => Some((Arc::clone(slot), *hash)),
            _ => None,
        }
    }

    /// Applies the settings for where and how services run: each service that they affect is replaced by its own code, under
    /// the new settings. Returns one line for each.
    ///
    /// # Errors
    /// If the settings cannot be read.
    pub async fn move_services(self: &Rc<Self>) -> Result<Vec<String>, LibraryFault> {
        self.take_up_sections()?;
        let slots: Vec<Arc<Slot>> = {
            let entries = self.entries.lock();
            let loaded = entries.values().filter_map(|entry| match &entry.library {
                Library::Loaded { slot, .. } => Some(Arc::clone(slot)),
                _ => None,
            });
            loaded.filter(|slot| slot.state() == ServiceState::Serving).collect()
        };
        let mut done = Vec::new();
        for slot in slots {
            let service = slot.name().as_str();
            let (is, wanted) = (slot.confinement(), self.confinements.lock().of(service));
            if is == wanted || is.isolation == wanted.isolation && !is_of_its_own(&wanted) {
                continue;
            }
            let Some(path) = self.path_of(service) else { continue };
            let turn = self.turn(&path);
            // The copy that serves, which may differ from the file.
            let copy = self.vet(self.good_copy(&path)).await;
            let copy = copy.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
            let trouble = self.entries.lock().get(&path).and_then(|entry| entry.trouble.clone());
            let (from, to) = (is.isolation, wanted.isolation);
            match self.serve_even(&path, turn, copy, true).await {
                Ok(true) if from == to => done.push(format!("{service}: permissions and limits in its {to}")),
                Ok(true) => done.push(format!("{service}: isolation {from} → {to}")),
                Ok(false) => {}
                Err(why) => done.push(format!("{service} keeps its isolation ({from}): {why}")),
            }
            if let Some(trouble) = trouble {
                self.trouble(&path, trouble);
            }
        }
        Ok(done)
    }

    /// The services whose own section has changed since they were made, as warnings.
    pub fn made_of_other_sections(&self) -> Vec<String> {
        let sections = Arc::clone(&self.sections.lock());
        let slots: Vec<Arc<Slot>> = {
            let entries = self.entries.lock();
            let loaded = entries.values().filter_map(|entry| match &entry.library {
                Library::Loaded { slot, .. } => Some(Arc::clone(slot)),
                _ => None,
            });
            loaded.collect()
        };
        let differs = |slot: &Arc<Slot>| {
            let section = sections.get(slot.name().as_str()).map(|section| section.0.as_slice()).unwrap_or_default();
            slot.config().is_some_and(|config| config != section)
        };
        let warning = |slot: &Arc<Slot>| {
            let name = slot.name();
            format!("[service.{name}] has changed: `credhost service reload {name}` applies it")
        };
        slots.iter().filter(|slot| differs(slot)).map(warning).collect()
    }
}

/// Whether it runs in a process of its own.
fn is_of_its_own(confinement: &crate::loader::worker::confinement::Confinement) -> bool {
    confinement.isolation != crate::loader::worker::confinement::Isolation::None
}
