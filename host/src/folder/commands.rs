//! Commands of an operator, or of a build, that take effect at once.

use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;

use super::{Fingerprint, Folder, Library, Placed, ROLLED_BACK, shown};
use crate::loader::fault::LibraryFault;
use crate::multiservice::reload::Reloaded;
use crate::multiservice::slot::ServiceState;

impl Folder {
    /// Stops a service. Its clients are notified, and its state is kept.
    ///
    /// # Errors
    /// If there is no such service in the folder, or it has already stopped.
    pub async fn stop(&self, service: &str) -> Result<(), LibraryFault> {
        let path = self.path_of(service).ok_or_else(|| unknown(service))?;
        let _all = self.exchange.write().await;
        let slot = match self.entries.lock().get_mut(&path) {
            Some(entry) if matches!(entry.library, Library::Loaded { .. }) => {
                // Work in progress for the file is out of date.
                entry.turn += 1;
                entry.underway = false;
                entry.passing = None;
                match std::mem::replace(&mut entry.library, Library::Vetting) {
                    Library::Loaded { slot, .. } => {
                        entry.library = Library::Stopped { service: slot.name().to_string() };
                        slot
                    }
                    _ => return Ok(()),
                }
            }
            _ => return Err(LibraryFault::State(format!("{service} does not serve"))),
        };
        tracing::info!(service, "stopped by command");
        self.end(&slot).await;
        Ok(())
    }

    /// Starts a service that was stopped or has ended, from the file's present content.
    ///
    /// # Errors
    /// If there is no such service, it already runs, or its file is refused.
    pub async fn start_again(self: &Rc<Self>, service: &str) -> Result<(), LibraryFault> {
        let path = self.path_of(service).ok_or_else(|| unknown(service))?;
        if let Some(Library::Loaded { slot, .. }) = self.entries.lock().get(&path).map(|entry| &entry.library)
            && slot.state() == ServiceState::Serving
        {
            return Err(LibraryFault::State(format!("{service} serves already")));
        }
        let turn = self.turn(&path);
        let vetted = self.vet(path.clone()).await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
        let served = self.serve(&path, turn, vetted).await;
        self.start_waiting();
        current(served)
    }

    /// Vets and serves a complete file at once, without waiting for the watcher.
    ///
    /// # Errors
    /// If the file is refused. The version before it continues to serve.
    pub async fn place(self: &Rc<Self>, path: &Path) -> Result<Placed, LibraryFault> {
        let before = self.generation(path);
        self.serve_now(path, false).await?;
        match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, reloaded, .. }) => Ok(Placed {
                service: slot.name().to_string(),
                reloaded: reloaded.clone().filter(|reloaded| Some(reloaded.generation) != before),
            }),
            Some(Library::Waiting { needs, .. }) => Err(LibraryFault::State(format!("it needs {}", needs.join(", ")))),
            Some(Library::Refused(why)) => Err(why.clone()),
            Some(Library::Taken { why, .. }) => Err(LibraryFault::Operator(why.clone())),
            _ => Err(LibraryFault::State(
                "the file was changed or removed, or its service stopped, meanwhile".to_owned(),
            )),
        }
    }

    /// Vets a file and makes it serve at once. The watcher may see the same change and handle it: the file's content at the end
    /// is what counts.
    async fn serve_now(self: &Rc<Self>, path: &Path, even: bool) -> Result<(), LibraryFault> {
        let commands = Arc::clone(self.commands.lock().entry(path.to_owned()).or_default());
        let _command = commands.lock().await;
        let mut tries = 0;
        loop {
            let turn = self.turn(path);
            self.forget_rollback(path);
            if let Some(entry) = self.entries.lock().get_mut(path) {
                entry.asked = Fingerprint::of(path);
            }
            let vetted =
                self.vet(path.to_owned()).await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
            let served = self.serve_even(path, turn, vetted, even).await;
            self.start_waiting();
            tries += 1;
            match served? {
                true => return Ok(()),
                // An operator stopped it meanwhile.
                false if self.is_stopped(path) => {
                    return Err(LibraryFault::State("it was stopped meanwhile".to_owned()));
                }
                false if tries < 10 => {}
                false => return current(Ok(false)),
            }
        }
    }

    fn is_stopped(&self, path: &Path) -> bool {
        matches!(self.entries.lock().get(path).map(|entry| &entry.library), Some(Library::Stopped { .. }) | None)
    }

    fn generation(&self, path: &Path) -> Option<u32> {
        match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, .. }) => Some(slot.generation()),
            _ => None,
        }
    }

    /// Replaces a service by its file's present content, even if the file has not changed.
    ///
    /// # Errors
    /// If there is no such service, or the file is refused. What served before continues.
    pub async fn reload(self: &Rc<Self>, service: &str) -> Result<Option<Reloaded>, LibraryFault> {
        let path = self.path_of(service).ok_or_else(|| unknown(service))?;
        if self.is_stopped(&path) {
            return Err(LibraryFault::State(format!(
                "{service} was stopped; `credhost service start {service}` starts it"
            )));
        }
        self.take_up_sections()?;
        self.serve_now(&path, true).await?;
        match self.entries.lock().get(&path).map(|entry| &entry.library) {
            Some(Library::Loaded { reloaded, .. }) => Ok(reloaded.clone()),
            _ => Ok(None),
        }
    }

    /// Goes back to the library that served before the present one. This also holds after a restart of the host, until the file
    /// changes.
    ///
    /// # Errors
    /// If there is no such service, no earlier library, or the earlier library is refused.
    pub async fn rollback(self: &Rc<Self>, service: &str) -> Result<Option<Reloaded>, LibraryFault> {
        let path = self.path_of(service).ok_or_else(|| unknown(service))?;
        let previous = self.previous_copy(&path);
        if !previous.exists() {
            return Err(LibraryFault::State(format!(
                "no other library has served as {service}: there is nothing to go back to"
            )));
        }
        let turn = self.turn(&path);
        let vetted = self.vet(previous).await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
        let served = self.serve(&path, turn, vetted).await;
        if served == Ok(true) {
            self.note_rollback(&path).await;
        }
        self.start_waiting();
        current(served)?;
        Ok(match self.entries.lock().get(&path).map(|entry| &entry.library) {
            Some(Library::Loaded { reloaded, .. }) => reloaded.clone(),
            _ => None,
        })
    }

    /// Records that what serves differs from the file; or, after two rollbacks, that it is the same again.
    async fn note_rollback(&self, path: &Path) {
        let (private, file) = (Arc::clone(&self.private), path.to_owned());
        let copied = tokio::task::spawn_blocking(move || private.copy(&file).map(|copy| *copy.hash()));
        let in_folder = copied.await.ok().and_then(Result::ok);
        let serves = match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { hash, .. }) => Some(*hash),
            _ => None,
        };
        if in_folder == serves {
            return self.forget_rollback(path);
        }
        if let Some(hash) = in_folder
            && let Err(error) = std::fs::write(self.rolled_back(path), data_encoding::HEXLOWER.encode(&hash))
        {
            tracing::warn!(%error, "the rollback of {} cannot be saved: it ends at the host's next start", shown(path));
        }
        self.trouble(path, ROLLED_BACK.to_owned());
    }
}

fn unknown(service: &str) -> LibraryFault {
    LibraryFault::State(format!("there is no service named {service} in the folder, and no such file"))
}

/// The operator's error for a command that a later change has overtaken.
fn current(served: Result<bool, LibraryFault>) -> Result<(), LibraryFault> {
    match served? {
        true => Ok(()),
        false => Err(LibraryFault::State("the file has changed meanwhile; its new content decides".to_owned())),
    }
}
