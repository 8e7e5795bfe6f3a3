//! From a verdict to a running service: it starts, replaces its predecessor, or is refused.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use super::{Folder, KEPT, Library, RETRY, RETRY_MOST, shown};
use crate::loader::fault::LibraryFault;
use crate::loader::private::PrivateCopy;
use crate::loader::vet::Vetted;
use crate::multiservice::NotAdded;
use crate::multiservice::reload::Prepared;
use crate::multiservice::slot::{ServiceState, Slot};
use crate::store::audit::Event;

/// The next step for a vetted library.
enum Next {
    /// It already serves.
    Same(Library),
    /// It replaces a running version of the same service; its generation is already prepared.
    Prepared { slot: Arc<Slot>, prepared: Prepared, kept: (Kept, [u8; 32]) },
    /// This file does not serve this name now: its service starts.
    Anew(PrivateCopy),
}

/// A second link to a copy that may become the last good one. If it does not, the link is removed.
struct Kept {
    path: PathBuf,
    linked: std::io::Result<()>,
}

impl Kept {
    fn new(good: &Path, copy: &PrivateCopy) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = good.with_extension(format!("so.{number}.{KEPT}"));
        let _ = std::fs::remove_file(&path);
        let linked = std::fs::hard_link(copy.path(), &path);
        Self { path, linked }
    }
}

impl Drop for Kept {
    fn drop(&mut self) {
        // By now the copy has another name, or this one is useless.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Folder {
    /// Makes a vetted library serve, or wait for its needs. Returns false if the file has changed meanwhile and this is out of
    /// date.
    pub(super) async fn serve(
        &self,
        path: &Path,
        turn: u64,
        vetted: Result<(PrivateCopy, Vetted), LibraryFault>,
    ) -> Result<bool, LibraryFault> {
        self.serve_even(path, turn, vetted, false).await
    }

    /// As [`Folder::serve`]. `even`: also if the library already serves.
    pub(super) async fn serve_even(
        &self,
        path: &Path,
        turn: u64,
        vetted: Result<(PrivateCopy, Vetted), LibraryFault>,
        even: bool,
    ) -> Result<bool, LibraryFault> {
        let file = shown(path);
        let one = self.entries.lock().get(path).map(|entry| Arc::clone(&entry.one));
        let Some(one) = one else { return Ok(false) };
        let claimed = vetted.as_ref().ok().map(|(_, vetted)| vetted.manifest.service.clone());
        // The slow part comes first, before other files have to wait.
        let mut own = Some(one.lock().await);
        let served = match vetted {
            Err(why) => Err(why),
            Ok((copy, vetted)) => match self.next(path, turn, copy, &vetted, even).await {
                Err(why) => Err(why),
                Ok(next) => Ok((next, vetted)),
            },
        };
        if !self.is_current(path, turn) {
            return Ok(false);
        }
        let (mut shared, mut all) = (None, None);
        match &served {
            Ok((Next::Anew(_), _)) => {
                drop(own.take());
                all = Some(self.exchange.write().await);
            }
            Err(_) | Ok(_) => shared = Some(self.exchange.read().await),
        }
        if !self.is_current(path, turn) {
            return Ok(false);
        }
        let served = match served {
            Err(why) => Err(why),
            Ok((Next::Same(library), _)) => Ok(library),
            Ok((Next::Prepared { slot, prepared, kept }, vetted)) => {
                self.replace(path, slot, prepared, kept, vetted).await
            }
            Ok((Next::Anew(copy), vetted)) => self.exchange(path, copy, vetted).await,
        };
        // If another file has the name now, it may be free later.
        let taken = claimed.filter(|name| served.is_err() && self.services.service(name).is_some());
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(path) else { return Ok(false) };
        entry.underway = entry.turn != turn;
        drop((own, shared, all));
        entry.passing = served.as_ref().err().filter(|why| why.may_pass()).map(|_| {
            let times = entry.passing.map_or(0, |(times, _)| times);
            (times + 1, Instant::now() + (RETRY * (1 << times.min(9))).min(RETRY_MOST))
        });
        // Repeated refusals for the same reason are reported once.
        let refused = entry.refused.take();
        entry.refused = served.as_ref().err().cloned();
        match served {
            Ok(library) => {
                if let (Library::Loaded { slot, notes, hash, reloaded }, true) =
                    (&library, library.differs(&entry.library))
                {
                    let service = slot.name().as_str();
                    let hash = data_encoding::HEXLOWER.encode(hash);
                    let event = match reloaded {
                        Some(reloaded) => {
                            tracing::info!(service, "{file} serves the new code: {reloaded}");
                            Event::new("service.reloaded").with("generation", u64::from(reloaded.generation))
                        }
                        None => {
                            tracing::info!(service, "{file} serves");
                            Event::new("service.started")
                        }
                    };
                    self.note(event.with("service", service).with("file", file.clone()).with("blake2s", hash));
                    notes.iter().for_each(|note| tracing::warn!(service, "{file}: {note}"));
                }
                entry.library = library;
                if matches!(entry.library, Library::Loaded { .. }) {
                    entry.trouble = None;
                }
                Ok(true)
            }
            Err(why) if refused.as_ref() == Some(&why) => Err(why),
            Err(why) => {
                self.note(Event::new("library.refused").with("file", file.clone()).with("why", why.to_string()));
                if let Library::Loaded { slot, .. } = &entry.library {
                    tracing::error!(service = slot.name().as_str(), "{file} is not loaded, the old code serves: {why}");
                    entry.trouble = Some(format!("the file is not serving: {why}"));
                } else {
                    tracing::error!("{file} is not loaded: {why}");
                    entry.library = match taken {
                        Some(service) => Library::Taken { service, why: why.to_string() },
                        None => Library::Refused(why.clone()),
                    };
                }
                Err(why)
            }
        }
    }

    /// The service of this name, if this file serves it now.
    fn serving(&self, path: &Path, name: &str) -> Option<Arc<Slot>> {
        match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, .. })
                if slot.name().as_str() == name && slot.state() == ServiceState::Serving =>
            {
                Some(Arc::clone(slot))
            }
            _ => None,
        }
    }

    pub(super) fn is_current(&self, path: &Path, turn: u64) -> bool {
        self.entries.lock().get(path).is_some_and(|entry| entry.turn == turn)
    }

    /// Decides the next step for a vetted library. If it replaces a running one, the next generation is prepared beside that.
    /// `even`: also if the library already serves.
    async fn next(
        &self,
        path: &Path,
        turn: u64,
        copy: PrivateCopy,
        vetted: &Vetted,
        even: bool,
    ) -> Result<Next, LibraryFault> {
        let hash = *copy.hash();
        let Some(slot) = self.serving(path, &vetted.manifest.service) else { return Ok(Next::Anew(copy)) };
        if let (false, Some(Library::Loaded { hash: of, notes, reloaded, .. })) =
            (even, self.entries.lock().get(path).map(|entry| &entry.library))
            && *of == hash
        {
            let (notes, reloaded) = (notes.clone(), reloaded.clone());
            return Ok(Next::Same(Library::Loaded { slot, hash, notes, reloaded }));
        }
        if !self.is_current(path, turn) {
            // Out of date: the caller goes no further.
            return Ok(Next::Anew(copy));
        }
        let kept = Kept::new(&self.good_copy(path), &copy);
        let section = vetted.section.clone();
        let source = self.source(slot.name().as_str(), path, copy);
        let prepared = slot.prepare(source, |_| section).await?;
        Ok(Next::Prepared { slot, prepared, kept: (kept, hash) })
    }

    /// Replaces the code of a running service. Its clients stay.
    async fn replace(
        &self,
        path: &Path,
        slot: Arc<Slot>,
        prepared: Prepared,
        (kept, hash): (Kept, [u8; 32]),
        vetted: Vetted,
    ) -> Result<Library, LibraryFault> {
        let lacks = self.services.lacks(&vetted.manifest.needs);
        if !lacks.is_empty() {
            let why = format!("it needs {}, which does not serve", lacks.join(", "));
            return Err(LibraryFault::Operator(why));
        }
        let (reloaded, _) = slot.replace(prepared).await?;
        self.keep(path, kept, &hash);
        Ok(Library::Loaded { slot, hash, notes: vetted.notes, reloaded: Some(reloaded) })
    }

    /// Starts a vetted library in place of what the file was before.
    async fn exchange(&self, path: &Path, copy: PrivateCopy, vetted: Vetted) -> Result<Library, LibraryFault> {
        let hash = *copy.hash();
        let name = vetted.manifest.service;
        let before = match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, .. }) => Some(Arc::clone(slot)),
            _ => None,
        };
        let taken = self.services.service(&name);
        if let Some(taken) = taken.filter(|taken| before.as_ref().is_none_or(|before| !Arc::ptr_eq(taken, before))) {
            let other = self.file_of(&taken).map_or_else(|| "another".to_owned(), |file| format!("the file {file}"));
            let why = format!("its service {name} is served by {other} already; remove one of the two");
            return Err(LibraryFault::Operator(why));
        }
        let lacks = self.services.lacks(&vetted.manifest.needs);
        if !lacks.is_empty() {
            if let Some(before) = before {
                self.end(&before).await;
            }
            tracing::warn!(
                service = name,
                "{} waits: it needs {}, which does not serve",
                shown(path),
                lacks.join(", ")
            );
            return Ok(Library::Waiting { service: name, needs: vetted.manifest.needs });
        }
        let kept = Kept::new(&self.good_copy(path), &copy);
        if let Some(before) = before {
            self.end(&before).await;
        }
        let slot = match self.start(&name, path, copy, vetted.section).await {
            Ok(slot) => slot,
            Err(why) => return self.back(path, why).await,
        };
        self.keep(path, kept, &hash);
        Ok(Library::Loaded { slot, hash, notes: vetted.notes, reloaded: None })
    }

    /// The vetted library did not start. The last good copy serves again, if it can.
    async fn back(&self, path: &Path, why: LibraryFault) -> Result<Library, LibraryFault> {
        let was_loaded =
            matches!(self.entries.lock().get(path).map(|entry| &entry.library), Some(Library::Loaded { .. }));
        if was_loaded && let Ok(Ok((copy, vetted))) = self.vet(self.good_copy(path)).await {
            let hash = *copy.hash();
            if let Ok(slot) = self.start(&vetted.manifest.service, path, copy, vetted.section).await {
                if let Some(entry) = self.entries.lock().get_mut(path) {
                    entry.library = Library::Loaded { slot, hash, notes: vetted.notes, reloaded: None };
                }
                return Err(why);
            }
        }
        if let Some(entry) = self.entries.lock().get_mut(path) {
            entry.library = Library::Vetting;
        }
        Err(why)
    }

    /// Loads a library with its section of the configuration.
    async fn start(
        &self,
        service: &str,
        path: &Path,
        copy: PrivateCopy,
        section: Vec<u8>,
    ) -> Result<Arc<Slot>, LibraryFault> {
        let slot = Slot::load(self.source(service, path, copy), &self.context, |_| section).await?;
        match self.collection(slot.name().as_str()).add(Arc::clone(&slot)).await {
            Ok(()) => Ok(slot),
            Err(NotAdded::Fault(fault)) => Err(fault),
            Err(error) => {
                self.end(&slot).await;
                Err(LibraryFault::Operator(error.to_string()))
            }
        }
    }

    /// Stops a service, after the services that need it. Those then wait for it.
    pub(super) async fn end(&self, slot: &Arc<Slot>) {
        for dependant in self.services.dependants(slot.name().as_str()) {
            if let Some(entry) =
                self.entries.lock().values_mut().find(
                    |entry| matches!(&entry.library, Library::Loaded { slot, .. } if Arc::ptr_eq(slot, &dependant)),
                )
            {
                let (service, needs) = (dependant.name().to_string(), dependant.manifest().needs.clone());
                tracing::warn!(service, "it stops because {} stops, which it needs", slot.name());
                entry.library = Library::Waiting { service, needs };
            }
            self.end_one(&dependant).await;
        }
        self.end_one(slot).await;
    }

    async fn end_one(&self, slot: &Arc<Slot>) {
        let account = self.collection(slot.name().as_str()).remove(slot).await;
        let service = slot.name().to_string();
        let event = Event::new("service.stopped").with("service", service.as_str());
        self.note(event.with("library", account.to_string()));
    }

    /// Makes the copy that now serves the good copy. The good copy before it, if it differs, is kept for a rollback.
    fn keep(&self, path: &Path, new: Kept, hash: &[u8; 32]) {
        let good = self.good_copy(path);
        let same = crate::loader::private::hash(&good).is_ok_and(|known| known == *hash);
        let kept = new.linked.as_ref().map_err(|error| std::io::Error::from(error.kind())).and_then(|()| {
            if same {
                return Ok(());
            }
            match std::fs::rename(&good, self.previous_copy(path)) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
                _ => std::fs::rename(&new.path, &good),
            }
        });
        if let Err(error) = kept {
            tracing::warn!(%error, "the last good copy of {} cannot be saved", shown(path));
        }
    }
}
