//! The folder of services: which file serves under which name.
//!
//! A new file is copied, vetted, and only then loaded. A service stops when its file has been gone for two seconds. The
//! library that served last is kept beside the home's other files: if a file is found bad at the host's start, that
//! copy serves instead, and an operator can go back to it.

mod commands;
mod confined;
mod places;
mod serve;
mod status;
mod trial;
mod vetting;

pub use vetting::sections;

use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::{Confinements, Home};
use crate::fingerprint::Fingerprint;
use crate::loader::fault::LibraryFault;
use crate::loader::private::{PrivateCopy, PrivateFolder};
use crate::loader::vet::{Sections, Vet, Vetted};
use crate::loader::watch::Change;
use crate::multiservice::MultiService;
use crate::multiservice::context::HostContext;
use crate::multiservice::reload::Reloaded;
use crate::multiservice::slot::Slot;
use crate::store::audit::Event;
use crate::store::{StoreError, Write};

/// How long a file must be gone before its service stops, since builds remove and recreate files.
const GONE: Duration = Duration::from_secs(2);

/// The delay before a file that was refused for a temporary reason is tried again. It doubles each time, up to
/// [`RETRY_MOST`].
const RETRY: Duration = Duration::from_secs(2);
const RETRY_MOST: Duration = Duration::from_secs(600);

/// The operator's message about a file that is not serving.
const ROLLED_BACK: &str = "rolled back: the file in the folder is not serving";

/// The extension of copies that are not yet known to be good.
const KEPT: &str = "new";

/// The number of libraries that are vetted at once: one that hangs must not delay all others, and a hundred must not
/// overload the machine.
const AT_ONCE: usize = 4;

/// A collection of services, with the names of its services.
#[derive(Debug)]
pub struct Group {
    /// The collection.
    pub services: Arc<MultiService>,
    /// The names.
    pub names: Vec<String>,
}

/// The state of a file.
#[derive(Debug)]
enum Library {
    /// It is being vetted.
    Vetting,
    Loaded {
        slot: Arc<Slot>,
        hash: [u8; 32],
        notes: Vec<String>,
        /// How it replaced what served before, if it did.
        reloaded: Option<Reloaded>,
    },
    /// A service that it needs does not serve.
    Waiting {
        service: String,
        needs: Vec<String>,
    },
    /// Another file serves under its name.
    Taken {
        service: String,
        why: String,
    },
    /// Stopped by an operator.
    Stopped {
        service: String,
    },
    Refused(LibraryFault),
}

#[derive(Debug)]
struct Entry {
    library: Library,
    /// Counts events of the file. Work that began before the last event is outdated.
    turn: u64,
    /// Whether work for the file is in progress, so that it is not started twice.
    underway: bool,
    /// A problem of the current file, while its service continues.
    trouble: Option<String>,
    /// For a temporary refusal: the number of attempts, and the time of the next one.
    passing: Option<(u32, Instant)>,
    /// The last reason for a refusal, so that it is logged only once.
    refused: Option<LibraryFault>,
    /// The file's fingerprint when a command asked for it to be served. The watcher's event for this version is
    /// ignored.
    asked: Option<Fingerprint>,
    /// Serializes the work for a file.
    one: Arc<tokio::sync::Mutex<()>>,
}

/// A file that is serving.
#[derive(Debug, Clone)]
pub struct Placed {
    /// Its service.
    pub service: String,
    /// How it replaced what served before, if it did.
    pub reloaded: Option<Reloaded>,
}

/// The folder of services: see the module's page.
#[derive(Debug)]
pub struct Folder {
    private: Arc<PrivateFolder>,
    good: PathBuf,
    services: Arc<MultiService>,
    /// Collections within it, and the services that belong to them.
    groups: Vec<Group>,
    context: HostContext,
    /// The configuration file. It is read again for each library, so that a reload applies changes.
    config: PathBuf,
    /// Its content when it was last readable.
    sections: Mutex<Arc<Sections>>,
    confinements: Mutex<Confinements>,
    /// The hashes of code that crashed too often.
    quarantined: Mutex<HashSet<[u8; 32]>>,
    /// The program in which isolated services run.
    program: PathBuf,
    vet: Arc<Vet>,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
    /// Limits the number of libraries that are vetted at once.
    turns: Arc<Semaphore>,
    /// Held for writing while a service comes or goes, for reading while one is replaced by a new generation.
    exchange: tokio::sync::RwLock<()>,
    /// Serializes the commands about one file, since each would make the other outdated.
    commands: Mutex<BTreeMap<PathBuf, Arc<tokio::sync::Mutex<()>>>>,
}

impl Folder {
    /// Creates a folder from which nothing is loaded yet. `debuggable`: see [`PrivateFolder::whole`].
    ///
    /// # Errors
    /// If the folders for copies cannot be created.
    pub fn new(
        home: &Home,
        services: Arc<MultiService>,
        groups: Vec<Group>,
        context: HostContext,
        (sections, confinements): (Sections, Confinements),
        vet: Vet,
        debuggable: bool,
    ) -> std::io::Result<Rc<Self>> {
        let private = PrivateFolder::new(home.private())?;
        let private = if debuggable { private.whole() } else { private };
        let good = home.good();
        std::fs::create_dir_all(&good)?;
        // Left by a host that did not end properly.
        for left in std::fs::read_dir(&good)?.flatten() {
            if left.path().extension().is_some_and(|extension| extension == KEPT) {
                let _ = std::fs::remove_file(left.path());
            }
        }
        Ok(Rc::new(Self {
            private: Arc::new(private),
            good,
            services,
            groups,
            context,
            config: home.config(),
            sections: Mutex::new(Arc::new(sections)),
            confinements: Mutex::new(confinements),
            quarantined: Mutex::default(),
            program: vet.program().to_owned(),
            vet: Arc::new(vet),
            entries: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            exchange: tokio::sync::RwLock::default(),
            commands: Mutex::default(),
        }))
    }

    /// Loads the files that are present when the host starts. All are vetted concurrently, and started in the order of
    /// their names.
    pub async fn load_all(self: &Rc<Self>, mut paths: Vec<PathBuf>) {
        // Files that served before come first, so that a copy left beside one of them does not take its name.
        paths.sort_by_key(|path| !self.good_copy(path).exists());
        let mut vetted = Vec::new();
        for path in paths {
            let turn = self.turn(&path);
            vetted.push((self.vet(path.clone()), path, turn));
        }
        for (vetted, path, turn) in vetted {
            self.load_first(vetted, path, turn).await;
        }
        self.start_waiting();
    }

    /// Loads a file that was present when the host started, or else its last good copy.
    async fn load_first(
        &self,
        vetted: tokio::task::JoinHandle<Result<(PrivateCopy, Vetted), LibraryFault>>,
        path: PathBuf,
        turn: u64,
    ) {
        let vetted = vetted.await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
        if vetted.as_ref().is_ok_and(|(copy, _)| self.is_rolled_back(&path, copy.hash())) {
            let good = self
                .vet(self.good_copy(&path))
                .await
                .unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
            if self.serve(&path, turn, good).await == Ok(true) && self.loaded(&path) {
                tracing::warn!("{}: {ROLLED_BACK}", shown(&path));
                return self.trouble(&path, ROLLED_BACK.to_owned());
            }
        }
        let why = match self.serve(&path, turn, vetted).await {
            Ok(_) => return,
            Err(why) => why,
        };
        if !self.good_copy(&path).exists() {
            return;
        }
        let file = shown(&path);
        let copy =
            self.vet(self.good_copy(&path)).await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
        if self.serve(&path, turn, copy).await == Ok(true) && self.loaded(&path) {
            tracing::error!("{file} was rejected ({why}); its last good copy is serving");
            self.trouble(&path, format!("the last good copy serves; the file was rejected: {why}"));
        }
    }

    fn loaded(&self, path: &Path) -> bool {
        matches!(self.entries.lock().get(path).map(|entry| &entry.library), Some(Library::Loaded { .. }))
    }

    /// Tries again the files whose required services are serving now, or whose names are free now. If the last good
    /// copy was serving in place of the file, that copy serves again.
    fn start_waiting(self: &Rc<Self>) {
        let ready: Vec<(PathBuf, Option<String>)> = {
            let entries = self.entries.lock();
            let free = |library: &Library| match library {
                Library::Waiting { needs, .. } => self.services.lacks(needs).is_empty(),
                Library::Taken { service, .. } => self.services.service(service).is_none(),
                _ => false,
            };
            let ready = entries.iter().filter(|(_, entry)| !entry.underway && free(&entry.library));
            ready.map(|(path, entry)| (path.clone(), entry.trouble.clone())).collect()
        };
        for (path, trouble) in ready {
            let (me, turn) = (Rc::clone(self), self.turn(&path));
            let file = if trouble.is_some() { self.good_copy(&path) } else { path.clone() };
            tokio::task::spawn_local(async move {
                me.load_first(me.vet(file), path.clone(), turn).await;
                if let (Some(trouble), true) = (trouble, me.loaded(&path)) {
                    me.trouble(&path, trouble);
                }
                me.start_waiting();
            });
        }
    }

    /// Handles a change in the folder. Returns immediately; the work runs in its own task.
    pub fn changed(self: &Rc<Self>, change: Change) {
        match change {
            // The command that asked for it handles it.
            Change::Came(path) if self.is_asked_for(&path) => {}
            Change::Came(path) => self.came(path),
            Change::Gone(path) => {
                let me = Rc::clone(self);
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(GONE).await;
                    me.gone(&path).await;
                    me.start_waiting();
                });
            }
        }
    }

    /// Begins new work for this file. Earlier work becomes outdated.
    fn turn(&self, path: &Path) -> u64 {
        let mut entries = self.entries.lock();
        let entry = entries.entry(path.to_owned()).or_insert(Entry {
            library: Library::Vetting,
            turn: 0,
            underway: false,
            trouble: None,
            passing: None,
            refused: None,
            asked: None,
            one: Arc::default(),
        });
        entry.turn += 1;
        entry.underway = true;
        entry.turn
    }

    /// Serves a file in its current version.
    fn came(self: &Rc<Self>, path: PathBuf) {
        let (me, turn) = (Rc::clone(self), self.turn(&path));
        tokio::task::spawn_local(async move {
            let vetted = me.vet(path.clone()).await.unwrap_or_else(|error| Err(LibraryFault::State(error.to_string())));
            if !me.is_current(&path, turn) {
                return;
            }
            if let Ok((copy, _)) = &vetted {
                if me.is_rolled_back(&path, copy.hash()) {
                    // The content is what the operator rolled back from; only its time or its owner has changed.
                    tracing::warn!("{}: {ROLLED_BACK}", shown(&path));
                    return me.leave(&path, turn);
                }
                me.forget_rollback(&path);
            }
            if !matches!(me.serve(&path, turn, vetted).await, Ok(false)) {
                me.start_waiting();
            }
        });
    }

    /// Retries files that were refused for a temporary reason, for as long as it is polled.
    pub async fn retry_refused(self: &Rc<Self>) {
        loop {
            tokio::time::sleep(RETRY).await;
            let now = Instant::now();
            let due: Vec<PathBuf> = {
                let entries = self.entries.lock();
                let due = |entry: &Entry| {
                    let stopped = matches!(entry.library, Library::Stopped { .. });
                    !stopped && !entry.underway && entry.passing.is_some_and(|(_, at)| now >= at)
                };
                entries.iter().filter(|(_, entry)| due(entry)).map(|(path, _)| path.clone()).collect()
            };
            due.into_iter().for_each(|path| self.came(path));
        }
    }

    /// Ends the work for this file without a change. What serves continues.
    fn leave(&self, path: &Path, turn: u64) {
        if let Some(entry) = self.entries.lock().get_mut(path) {
            entry.underway = entry.turn != turn;
            entry.passing = None;
        }
    }

    fn is_asked_for(&self, path: &Path) -> bool {
        let asked = self.entries.lock().get(path).and_then(|entry| entry.asked);
        asked.is_some() && asked == Fingerprint::of(path)
    }

    fn trouble(&self, path: &Path, what: String) {
        if let Some(entry) = self.entries.lock().get_mut(path) {
            entry.trouble = Some(what);
        }
    }

    /// The collection that a service of this name belongs to.
    fn collection(&self, name: &str) -> &Arc<MultiService> {
        let group = self.groups.iter().find(|group| group.names.iter().any(|known| known == name));
        group.map_or(&self.services, |group| &group.services)
    }

    /// Writes into the audit trail, without waiting for it.
    fn note(&self, event: Event) {
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.context.store.commit(vec![Write::Audit(event)], Box::new(done));
    }

    async fn gone(&self, path: &Path) {
        let _all = self.exchange.write().await;
        // If this cannot be determined, the file counts as present.
        if !matches!(path.try_exists(), Ok(false)) {
            return;
        }
        let entry = self.entries.lock().remove(path);
        if let Some(Entry { library: Library::Loaded { slot, .. }, .. }) = entry {
            tracing::info!(
                service = slot.name().as_str(),
                "{} was removed: its service stops, its state is kept",
                shown(path)
            );
            self.end(&slot).await;
        }
        let _ = std::fs::remove_file(self.good_copy(path));
        let _ = std::fs::remove_file(self.previous_copy(path));
        self.forget_rollback(path);
    }

    fn file_of(&self, slot: &Arc<Slot>) -> Option<String> {
        self.entries.lock().iter().find_map(|(path, entry)| match &entry.library {
            Library::Loaded { slot: other, .. } if Arc::ptr_eq(other, slot) => Some(shown(path)),
            _ => None,
        })
    }

    /// The file that serves or served under this name, or that has this file name.
    fn path_of(&self, service: &str) -> Option<PathBuf> {
        let entries = self.entries.lock();
        let loaded = entries.iter().find(
            |(_, entry)| matches!(&entry.library, Library::Loaded { slot, .. } if slot.name().as_str() == service),
        );
        let stopped = || {
            entries
                .iter()
                .find(|(_, entry)| matches!(&entry.library, Library::Stopped { service: name } | Library::Waiting { service: name, .. } if name == service))
        };
        // For a refused file, the service's name is unknown.
        let named = || entries.iter().find(|(path, _)| shown(path) == service);
        loaded.or_else(stopped).or_else(named).map(|(path, _)| path.clone())
    }
}

impl Library {
    fn differs(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Loaded { slot, reloaded, .. }, Self::Loaded { slot: other, reloaded: before, .. }) => {
                let number = |reloaded: &Option<Reloaded>| reloaded.as_ref().map(|reloaded| reloaded.generation);
                !Arc::ptr_eq(slot, other) || number(reloaded) != number(before)
            }
            _ => true,
        }
    }
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}
