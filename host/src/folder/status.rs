//! What an operator can read about the folder.

use std::path::Path;

use super::{Entry, Folder, Library, shown};
use crate::control::LibraryStatus;
use crate::limits::Unit;
use crate::loader::worker::confinement::Confinement;
use crate::multiservice::ended::Unreleased;
use crate::multiservice::slot::ServiceState;

impl Folder {
    /// The libraries of this service that could not be unloaded, and what holds them.
    #[must_use]
    pub fn why(&self, service: &str) -> Vec<Unreleased> {
        self.context.ended.held(service)
    }

    /// The libraries of all services that could not be unloaded, and what holds them.
    #[must_use]
    pub fn held(&self) -> Vec<Unreleased> {
        self.context.ended.all_held()
    }

    /// How many generations have ended and left no library in memory.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.context.ended.retired()
    }

    /// The state of each file.
    #[must_use]
    pub fn libraries(&self) -> Vec<LibraryStatus> {
        self.entries.lock().iter().map(|(path, entry)| status(path, entry)).collect()
    }
}

/// A service's limits, in words.
fn most(confinement: &Confinement) -> Vec<String> {
    let memory = confinement.memory.map(|memory| format!("{} of memory", Unit::Bytes.shown(memory)));
    let files = confinement.files.map(|files| format!("{files} descriptors"));
    let file = confinement.file.map(|file| format!("{} a file", Unit::Bytes.shown(file)));
    memory.into_iter().chain(files).chain(file).collect()
}

fn status(path: &Path, entry: &Entry) -> LibraryStatus {
    let file = shown(path);
    let plain = |service, state| LibraryStatus { file: shown(path), service, state, ..LibraryStatus::default() };
    match &entry.library {
        Library::Vetting => plain(None, "being vetted".to_owned()),
        Library::Refused(why) => plain(None, format!("refused: {why}")),
        Library::Taken { why, .. } => plain(None, format!("refused: {why}")),
        Library::Stopped { service } => plain(Some(service.clone()), "stopped".to_owned()),
        Library::Waiting { service, needs } => {
            plain(Some(service.clone()), format!("waits: it needs {}", needs.join(", ")))
        }
        Library::Loaded { slot, notes, reloaded, .. } => {
            let notes: Vec<String> = entry.trouble.iter().chain(notes).cloned().collect();
            let ((isolation, facts), crashes) = (slot.runs_in(), slot.crashes());
            LibraryStatus {
                file,
                service: Some(slot.name().to_string()),
                state: match slot.state() {
                    ServiceState::Serving => match (&crashes.waits, slot.late()) {
                        (Some(waits), _) => format!("waits: {waits}"),
                        (None, Some(late)) => format!("serving, but {late}"),
                        (None, None) => "serving".to_owned(),
                    },
                    ServiceState::Loaded => "starting".to_owned(),
                    ServiceState::Failed(why) => format!("failed: {why}"),
                    ServiceState::Stopped => "stopped".to_owned(),
                },
                note: (!notes.is_empty()).then(|| notes.join("; ")),
                instead: entry.trouble.is_some(),
                calls: slot.calls(),
                faults: slot.faults(),
                generation: slot.generation(),
                attached: slot.attached(),
                retiring: slot.retiring(),
                unreadable: slot.unreadable(),
                reloaded: reloaded.clone(),
                listeners: Vec::new(),
                isolation,
                process: facts,
                allow: slot.confinement().allow.iter().map(ToString::to_string).collect(),
                most: most(&slot.confinement()),
                crashes: crashes.count,
                restarts: crashes.restarts,
                crashed: crashes.last,
                tried: slot.trial().map(|trial| trial.status()),
            }
        }
    }
}
