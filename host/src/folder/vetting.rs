//! From a file to a vetted copy, and to the source that its service starts from, with the present settings.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Folder;
use crate::config::{self, ConfigFile, Confinements, Settings};
use crate::loader::fault::LibraryFault;
use crate::loader::generation::Source;
use crate::loader::private::PrivateCopy;
use crate::loader::vet::{Sections, Vetted};
use crate::loader::worker::Worker;
use crate::loader::worker::confinement::{Confinement, Isolation};

/// The configuration's sections, as the host hands them to services.
///
/// # Errors
/// If a section cannot be handed to its service; the error names it.
pub fn sections(settings: &Settings) -> Result<Sections, LibraryFault> {
    let section = |(name, table): (&String, &serde_json::Map<_, _>)| match jelly::to_vec(&config::own(table)) {
        Ok(bytes) => Ok((name.clone(), jelly::Bytes(bytes))),
        Err(error) => {
            let why = format!("[service.{name}] in credhost.toml cannot be passed to it: {error}");
            Err(LibraryFault::Operator(why))
        }
    };
    settings.service.iter().map(section).collect()
}

/// The settings, as they stand in the file now.
fn settings_now(config: &Path) -> Result<(Sections, Confinements), LibraryFault> {
    if !config.exists() {
        return Err(LibraryFault::Operator(format!("{} is gone", config.display())));
    }
    let settings = ConfigFile::open(config).and_then(|file| file.settings());
    let settings = settings.map_err(|error| LibraryFault::Operator(error.to_string()))?;
    Ok((sections(&settings)?, config::confinements(&settings).map_err(LibraryFault::Operator)?))
}

impl Folder {
    /// Reads the sections of the configuration again.
    pub(super) fn take_up_sections(&self) -> Result<(), LibraryFault> {
        let (sections, confinements) = settings_now(&self.config)?;
        *self.sections.lock() = Arc::new(sections);
        *self.confinements.lock() = confinements;
        Ok(())
    }

    /// The source that a service starts from, with the isolation that the operator has set.
    pub(super) fn source(&self, service: &str, file: &Path, copy: PrivateCopy) -> Source {
        self.source_in(service, file, copy, None)
    }

    /// As [`Folder::source`]. `isolation`, if given, replaces the operator's.
    pub(super) fn source_in(
        &self,
        service: &str,
        file: &Path,
        copy: PrivateCopy,
        isolation: Option<Isolation>,
    ) -> Source {
        let confinement = self.confinements.lock().of(service);
        let confinement = Confinement { isolation: isolation.unwrap_or(confinement.isolation), ..confinement };
        if confinement.isolation == Isolation::None {
            return Source::Copy(copy);
        }
        let program = self.program.clone();
        Source::Worker(Worker { program, copy: Arc::new(copy), file: file.to_owned(), confinement })
    }

    pub(super) fn vet(&self, path: PathBuf) -> tokio::task::JoinHandle<Result<(PrivateCopy, Vetted), LibraryFault>> {
        if let Err(error) = self.take_up_sections() {
            // Only a warning: a service must not be missing because somebody is writing to the configuration.
            tracing::warn!("services keep their previous settings from credhost.toml: {error}");
        }
        let (sections, allowed) = (Arc::clone(&self.sections.lock()), self.confinements.lock().allowed());
        let (private, vet) = (Arc::clone(&self.private), Arc::clone(&self.vet));
        let turns = Arc::clone(&self.turns);
        tokio::task::spawn_local(async move {
            let _turn = turns.acquire_owned().await;
            let vetted = tokio::task::spawn_blocking(move || {
                let copy = private.copy(&path)?;
                let vetted = vet.vet(&copy, &sections, &allowed)?;
                Ok((copy, vetted))
            });
            vetted.await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())))
        })
    }
}
