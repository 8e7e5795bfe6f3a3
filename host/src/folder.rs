//! The folder of services: which file serves under which name.
//!
//! A file that has come is copied, vetted, and only then loaded; a file that has gone for two seconds takes its service
//! away. What served last is kept beside the home's other files: a file that is found bad at the host's start does not
//! take its service away, and an operator can go back.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Semaphore;

use crate::config::{Home, Settings};
use crate::control::LibraryStatus;
use crate::loader::generation::Source;
use crate::loader::private::{PrivateCopy, PrivateFolder};
use crate::loader::vet::{Sections, Vet, Vetted};
use crate::loader::watch::Change;
use crate::multiservice::ended::Held;
use crate::multiservice::reload::{Prepared, Reloaded};
use crate::multiservice::slot::{Slot, State, Surroundings};
use crate::multiservice::{MultiService, NotAdded};
use crate::store::audit::Event;
use crate::store::{StoreError, Write};

/// How long a file must be gone: builds remove and make anew.
const GONE: Duration = Duration::from_secs(2);

/// What the names of copies end with that are not known to be good yet.
const KEPT: &str = "new";

/// Vetted at once: one that hangs must not hold up all others, and a hundred must not hold up the machine.
const AT_ONCE: usize = 4;

/// A collection of services, by the names that belong into it.
#[derive(Debug)]
pub struct Group {
    /// The collection.
    pub services: Arc<MultiService>,
    /// The names.
    pub names: Vec<String>,
}

/// What became of a file.
#[derive(Debug)]
enum Library {
    /// It is being looked at.
    Vetting,
    Loaded {
        slot: Arc<Slot>,
        hash: [u8; 32],
        notes: Vec<String>,
        /// How it came to replace what was before it, if it did.
        reloaded: Option<Reloaded>,
    },
    /// Something that it needs does not serve.
    Waiting {
        service: String,
        needs: Vec<String>,
    },
    /// Another file serves under its name.
    Taken {
        service: String,
        why: String,
    },
    /// By an operator.
    Stopped {
        service: String,
    },
    Refused(String),
}

#[derive(Debug)]
struct Entry {
    library: Library,
    /// Counts what has happened to the file: what began before the last is out of date.
    turn: u64,
    /// Whether something is under way for the file: it is not begun twice.
    underway: bool,
    /// What is wrong with the file now, though its service goes on.
    trouble: Option<String>,
    /// One thing at a time is done for a file.
    one: Arc<tokio::sync::Mutex<()>>,
}

/// What is to be done with a vetted library.
enum Next {
    /// It is what serves.
    Same(Library),
    /// It is to replace its like, and is made already.
    Prepared { slot: Arc<Slot>, prepared: Prepared, kept: (Kept, [u8; 32]) },
    /// It comes anew, or under another name than before.
    Anew(PrivateCopy),
}

/// Another name for a copy that may come to be the last good one. Without being that, it goes.
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
        // It has another name by now, or is of no use.
        let _ = std::fs::remove_file(&self.path);
    }
}

/// A file that serves.
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
    /// Collections inside of it, and the services that belong there.
    groups: Vec<Group>,
    surroundings: Surroundings,
    sections: Arc<Sections>,
    vet: Arc<Vet>,
    entries: Mutex<BTreeMap<PathBuf, Entry>>,
    /// So many libraries are vetted at once.
    turns: Arc<Semaphore>,
    /// One service comes or goes at a time; any number are replaced meanwhile, each by its like.
    exchange: tokio::sync::RwLock<()>,
}

/// The sections of a configuration, as services are handed them.
///
/// # Errors
/// Which cannot be.
pub fn sections(settings: &Settings) -> Result<Sections, String> {
    let section = |(name, table): (&String, &serde_json::Map<_, _>)| match jelly::to_vec(table) {
        Ok(bytes) => Ok((name.clone(), jelly::Bytes(bytes))),
        Err(error) => Err(format!("[service.{name}] in credhost.toml cannot be handed to it: {error}")),
    };
    settings.service.iter().map(section).collect()
}

impl Folder {
    /// A folder that nothing was loaded from yet. `debuggable`: see [`PrivateFolder::whole`].
    ///
    /// # Errors
    /// When the folders for copies cannot be made.
    pub fn new(
        home: &Home,
        services: Arc<MultiService>,
        groups: Vec<Group>,
        surroundings: Surroundings,
        sections: Sections,
        vet: Vet,
        debuggable: bool,
    ) -> std::io::Result<Rc<Self>> {
        let private = PrivateFolder::new(home.private())?;
        let private = if debuggable { private.whole() } else { private };
        let good = home.good();
        std::fs::create_dir_all(&good)?;
        // Of a host that did not come to its end.
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
            surroundings,
            sections: Arc::new(sections),
            vet: Arc::new(vet),
            entries: Mutex::default(),
            turns: Arc::new(Semaphore::new(AT_ONCE)),
            exchange: tokio::sync::RwLock::default(),
        }))
    }

    /// Loads what is there when the host starts: all are vetted at once, and started in the order of their names.
    pub async fn load_all(self: &Rc<Self>, paths: Vec<PathBuf>) {
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

    /// Loads a file that was there when the host started, or else what was good of it.
    async fn load_first(
        &self,
        vetted: tokio::task::JoinHandle<Result<(PrivateCopy, Vetted), String>>,
        path: PathBuf,
        turn: u64,
    ) {
        let vetted = vetted.await.unwrap_or_else(|error| Err(error.to_string()));
        let why = match self.serve(&path, turn, vetted).await {
            Ok(_) => return,
            Err(why) => why,
        };
        if !self.good_copy(&path).exists() {
            return;
        }
        let file = shown(&path);
        let copy = self.vet(self.good_copy(&path)).await.unwrap_or_else(|error| Err(error.to_string()));
        if self.serve(&path, turn, copy).await == Ok(true) && self.loaded(&path) {
            tracing::error!("{file} is not what serves: the last good copy of it does, for {why}");
            self.trouble(&path, format!("the last good copy serves; the file itself: {why}"));
        }
    }

    fn loaded(&self, path: &Path) -> bool {
        matches!(self.entries.lock().get(path).map(|entry| &entry.library), Some(Library::Loaded { .. }))
    }

    /// Services whose needs serve by now, or whose names are free by now, are looked at again. What served before,
    /// though the file is another, serves again.
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

    /// Something has happened in the folder. Comes back at once; what is to be done is done by a task of its own.
    pub fn changed(self: &Rc<Self>, change: Change) {
        let me = Rc::clone(self);
        match change {
            Change::Came(path) => {
                let turn = self.turn(&path);
                tokio::task::spawn_local(async move {
                    let vetted = me.vet(path.clone()).await.unwrap_or_else(|error| Err(error.to_string()));
                    if !matches!(me.serve(&path, turn, vetted).await, Ok(false)) {
                        me.start_waiting();
                    }
                });
            }
            Change::Gone(path) => {
                tokio::task::spawn_local(async move {
                    tokio::time::sleep(GONE).await;
                    me.gone(&path).await;
                    me.start_waiting();
                });
            }
        }
    }

    /// Something begins for this file: what was under way is out of date.
    fn turn(&self, path: &Path) -> u64 {
        let mut entries = self.entries.lock();
        let entry = entries.entry(path.to_owned()).or_insert(Entry {
            library: Library::Vetting,
            turn: 0,
            underway: false,
            trouble: None,
            one: Arc::default(),
        });
        entry.turn += 1;
        entry.underway = true;
        entry.turn
    }

    fn trouble(&self, path: &Path, what: String) {
        if let Some(entry) = self.entries.lock().get_mut(path) {
            entry.trouble = Some(what);
        }
    }

    fn vet(&self, path: PathBuf) -> tokio::task::JoinHandle<Result<(PrivateCopy, Vetted), String>> {
        let (private, vet, sections) = (Arc::clone(&self.private), Arc::clone(&self.vet), Arc::clone(&self.sections));
        let turns = Arc::clone(&self.turns);
        tokio::task::spawn_local(async move {
            let _turn = turns.acquire_owned().await;
            let vetted = tokio::task::spawn_blocking(move || {
                let copy = private.copy(&path)?;
                let vetted = vet.vet(&copy, &sections)?;
                Ok((copy, vetted))
            });
            vetted.await.unwrap_or_else(|error| Err(error.to_string()))
        })
    }

    /// Makes a vetted library serve, or wait. False: the file has changed meanwhile, and this is out of date.
    async fn serve(
        &self,
        path: &Path,
        turn: u64,
        vetted: Result<(PrivateCopy, Vetted), String>,
    ) -> Result<bool, String> {
        self.serve_even(path, turn, vetted, false).await
    }

    /// As [`Folder::serve`]. `even`: also if it is what serves.
    async fn serve_even(
        &self,
        path: &Path,
        turn: u64,
        vetted: Result<(PrivateCopy, Vetted), String>,
        even: bool,
    ) -> Result<bool, String> {
        let file = shown(path);
        let one = self.entries.lock().get(path).map(|entry| Arc::clone(&entry.one));
        let Some(one) = one else { return Ok(false) };
        let claimed = vetted.as_ref().ok().map(|(_, vetted)| vetted.manifest.service.clone());
        // What takes time is done before anybody else has to wait for it.
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
        // A name that is another file's just now may be free later.
        let taken = claimed.filter(|name| served.is_err() && self.services.service(name).is_some());
        let mut entries = self.entries.lock();
        let Some(entry) = entries.get_mut(path) else { return Ok(false) };
        entry.underway = entry.turn != turn;
        drop((own, shared, all));
        match served {
            Ok(library) => {
                if let (Library::Loaded { slot, notes, hash, reloaded }, true) =
                    (&library, library.differs(&entry.library))
                {
                    let service = slot.name().as_str();
                    let hash = data_encoding::HEXLOWER.encode(hash);
                    let event = match reloaded {
                        Some(reloaded) => {
                            tracing::info!(service, "{file} serves, in place of what did: {reloaded}");
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
            Err(why) => {
                self.note(Event::new("library.refused").with("file", file.clone()).with("why", why.clone()));
                if let Library::Loaded { slot, .. } = &entry.library {
                    tracing::error!(service = slot.name().as_str(), "{file} is not loaded, the old code serves: {why}");
                    entry.trouble = Some(format!("the file is not what serves: {why}"));
                } else {
                    tracing::error!("{file} is not loaded: {why}");
                    entry.library = match taken {
                        Some(service) => Library::Taken { service, why: why.clone() },
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
            Some(Library::Loaded { slot, .. }) if slot.name().as_str() == name && slot.state() == State::Serving => {
                Some(Arc::clone(slot))
            }
            _ => None,
        }
    }

    fn is_current(&self, path: &Path, turn: u64) -> bool {
        self.entries.lock().get(path).is_some_and(|entry| entry.turn == turn)
    }

    /// What is to be done with a vetted library. If it is to replace one that serves, the next generation is made, beside
    /// it. `even`: also if it is what serves.
    async fn next(
        &self,
        path: &Path,
        turn: u64,
        copy: PrivateCopy,
        vetted: &Vetted,
        even: bool,
    ) -> Result<Next, String> {
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
            // Not worth the while; it goes no further.
            return Ok(Next::Anew(copy));
        }
        let kept = Kept::new(&self.good_copy(path), &copy);
        let prepared = slot.prepare(Source::Copy(copy), self.section()).await.map_err(|error| error.to_string())?;
        Ok(Next::Prepared { slot, prepared, kept: (kept, hash) })
    }

    /// Replaces a service that serves by the same of other code; its clients stay.
    async fn replace(
        &self,
        path: &Path,
        slot: Arc<Slot>,
        prepared: Prepared,
        (kept, hash): (Kept, [u8; 32]),
        vetted: Vetted,
    ) -> Result<Library, String> {
        let lacks = self.services.lacks(&vetted.manifest.needs);
        if !lacks.is_empty() {
            return Err(format!("it needs {}, which does not serve", lacks.join(", ")));
        }
        let (reloaded, _) = slot.replace(prepared).await.map_err(|error| error.to_string())?;
        self.keep(path, kept, &hash);
        Ok(Library::Loaded { slot, hash, notes: vetted.notes, reloaded: Some(reloaded) })
    }

    /// Puts a vetted library in place of what the file was before.
    async fn exchange(&self, path: &Path, copy: PrivateCopy, vetted: Vetted) -> Result<Library, String> {
        let hash = *copy.hash();
        let name = vetted.manifest.service;
        let before = match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, .. }) => Some(Arc::clone(slot)),
            _ => None,
        };
        let taken = self.services.service(&name);
        if let Some(taken) = taken.filter(|taken| before.as_ref().is_none_or(|before| !Arc::ptr_eq(taken, before))) {
            let other = self.file_of(&taken).map_or_else(|| "another".to_owned(), |file| format!("the file {file}"));
            return Err(format!("its service {name} is served by {other} already; remove one of the two"));
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
        let slot = match self.start(copy).await {
            Ok(slot) => slot,
            Err(why) => return self.back(path, &why).await,
        };
        self.keep(path, kept, &hash);
        Ok(Library::Loaded { slot, hash, notes: vetted.notes, reloaded: None })
    }

    /// What was vetted did not start: what served last does again, if it can.
    async fn back(&self, path: &Path, why: &str) -> Result<Library, String> {
        let was_loaded =
            matches!(self.entries.lock().get(path).map(|entry| &entry.library), Some(Library::Loaded { .. }));
        if was_loaded && let Ok(Ok((copy, vetted))) = self.vet(self.good_copy(path)).await {
            let hash = *copy.hash();
            if let Ok(slot) = self.start(copy).await {
                if let Some(entry) = self.entries.lock().get_mut(path) {
                    entry.library = Library::Loaded { slot, hash, notes: vetted.notes, reloaded: None };
                }
                return Err(why.to_owned());
            }
        }
        if let Some(entry) = self.entries.lock().get_mut(path) {
            entry.library = Library::Vetting;
        }
        Err(why.to_owned())
    }

    async fn start(&self, copy: PrivateCopy) -> Result<Arc<Slot>, String> {
        let loaded = Slot::load(Source::Copy(copy), &self.surroundings, self.section()).await;
        let slot = loaded.map_err(|error| error.to_string())?;
        match self.collection(slot.name().as_str()).add(Arc::clone(&slot)).await {
            Ok(()) => Ok(slot),
            Err(error) => {
                if let NotAdded::NameTaken(_) = error {
                    self.end(&slot).await;
                }
                Err(error.to_string())
            }
        }
    }

    /// What answers with the section of the configuration that is for a service.
    fn section(&self) -> impl FnOnce(&str) -> Result<Vec<u8>, String> + use<> {
        let sections = Arc::clone(&self.sections);
        move |name| Ok(sections.get(name).map(|section| section.0.clone()).unwrap_or_default())
    }

    /// Where a service of this name belongs.
    fn collection(&self, name: &str) -> &Arc<MultiService> {
        let group = self.groups.iter().find(|group| group.names.iter().any(|known| known == name));
        group.map_or(&self.services, |group| &group.services)
    }

    /// Stops a service, and before it those that need it: they wait for it then.
    async fn end(&self, slot: &Arc<Slot>) {
        for dependant in self.services.dependants(slot.name().as_str()) {
            if let Some(entry) =
                self.entries.lock().values_mut().find(
                    |entry| matches!(&entry.library, Library::Loaded { slot, .. } if Arc::ptr_eq(slot, &dependant)),
                )
            {
                let (service, needs) = (dependant.name().to_string(), dependant.manifest().needs.clone());
                tracing::warn!(service, "it stops, for {} does, which it needs", slot.name());
                entry.library = Library::Waiting { service, needs };
            }
            self.end_one(&dependant).await;
        }
        self.end_one(slot).await;
    }

    /// Writes into the audit trail, and does not wait for it.
    fn note(&self, event: Event) {
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.surroundings.store.commit(vec![Write::Audit(event)], Box::new(done));
    }

    async fn end_one(&self, slot: &Arc<Slot>) {
        let account = self.collection(slot.name().as_str()).remove(slot).await;
        let service = slot.name().to_string();
        let event = Event::new("service.stopped").with("service", service.as_str());
        self.note(event.with("library", account.to_string()));
    }

    async fn gone(&self, path: &Path) {
        let _all = self.exchange.write().await;
        // Where that cannot be told, it is not gone.
        if !matches!(path.try_exists(), Ok(false)) {
            return;
        }
        let entry = self.entries.lock().remove(path);
        if let Some(Entry { library: Library::Loaded { slot, .. }, .. }) = entry {
            tracing::info!(
                service = slot.name().as_str(),
                "{} is gone: its service stops, its state stays",
                shown(path)
            );
            self.end(&slot).await;
        }
        let _ = std::fs::remove_file(self.good_copy(path));
        let _ = std::fs::remove_file(self.previous_copy(path));
    }

    fn good_copy(&self, path: &Path) -> PathBuf {
        self.good.join(shown(path))
    }

    fn previous_copy(&self, path: &Path) -> PathBuf {
        self.good.join(shown(path)).with_extension("so.previous")
    }

    /// What serves now is the good copy; what was before it, if it differs, is what one can go back to.
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
            tracing::warn!(%error, "the last good copy of {} cannot be kept", shown(path));
        }
    }

    fn file_of(&self, slot: &Arc<Slot>) -> Option<String> {
        self.entries.lock().iter().find_map(|(path, entry)| match &entry.library {
            Library::Loaded { slot: other, .. } if Arc::ptr_eq(other, slot) => Some(shown(path)),
            _ => None,
        })
    }

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
        loaded.or_else(stopped).map(|(path, _)| path.clone())
    }

    /// An operator stops a service: its clients are told, its state stays.
    ///
    /// # Errors
    /// When there is no such service in the folder, or it has stopped already.
    pub async fn stop(&self, service: &str) -> Result<(), String> {
        let path = self.path_of(service).ok_or_else(|| format!("there is no service named {service} in the folder"))?;
        let _all = self.exchange.write().await;
        let slot = match self.entries.lock().get_mut(&path) {
            Some(entry) if matches!(entry.library, Library::Loaded { .. }) => {
                // What was under way for the file is out of date.
                entry.turn += 1;
                entry.underway = false;
                match std::mem::replace(&mut entry.library, Library::Stopped { service: service.to_owned() }) {
                    Library::Loaded { slot, .. } => slot,
                    _ => return Ok(()),
                }
            }
            _ => return Err(format!("{service} does not serve")),
        };
        tracing::info!(service, "stopped by command");
        self.end(&slot).await;
        Ok(())
    }

    /// An operator starts a service that was stopped, or has ended: from its file, as it is now.
    ///
    /// # Errors
    /// When there is none, it runs, or its file is refused.
    pub async fn start_again(self: &Rc<Self>, service: &str) -> Result<(), String> {
        let path = self.path_of(service).ok_or_else(|| format!("there is no service named {service} in the folder"))?;
        if let Some(Library::Loaded { slot, .. }) = self.entries.lock().get(&path).map(|entry| &entry.library)
            && slot.state() == State::Serving
        {
            return Err(format!("{service} serves already"));
        }
        let turn = self.turn(&path);
        let vetted = self.vet(path.clone()).await.unwrap_or_else(|error| Err(error.to_string()));
        let served = self.serve(&path, turn, vetted).await;
        self.start_waiting();
        current(served)
    }

    /// A file is in place, and whole: it is vetted and served at once, as it would be a moment later by itself.
    ///
    /// # Errors
    /// Why it is refused. What served before serves on.
    pub async fn place(self: &Rc<Self>, path: &Path) -> Result<Placed, String> {
        let before = self.generation(path);
        self.serve_now(path, false).await?;
        match self.entries.lock().get(path).map(|entry| &entry.library) {
            Some(Library::Loaded { slot, reloaded, .. }) => Ok(Placed {
                service: slot.name().to_string(),
                reloaded: reloaded.clone().filter(|reloaded| Some(reloaded.generation) != before),
            }),
            Some(Library::Waiting { needs, .. }) => Err(format!("it needs {}", needs.join(", "))),
            Some(Library::Refused(why) | Library::Taken { why, .. }) => Err(why.clone()),
            _ => Err("something else has happened to the file meanwhile".to_owned()),
        }
    }

    /// Vets a file and makes it serve, now. The host may see at the same time that the file has changed, and see to it by
    /// itself: what is there then is what counts.
    async fn serve_now(self: &Rc<Self>, path: &Path, even: bool) -> Result<(), String> {
        let mut tries = 0;
        loop {
            let turn = self.turn(path);
            let vetted = self.vet(path.to_owned()).await.unwrap_or_else(|error| Err(error.to_string()));
            let served = self.serve_even(path, turn, vetted, even).await;
            self.start_waiting();
            tries += 1;
            match served? {
                true => return Ok(()),
                // An operator has stopped it meanwhile.
                false if self.is_stopped(path) => return Err("it was stopped meanwhile".to_owned()),
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

    /// An operator has a service replaced by its file, as it is now, though the file has not changed.
    ///
    /// # Errors
    /// When there is no such service, or the file is refused: what served goes on.
    pub async fn reload(self: &Rc<Self>, service: &str) -> Result<Option<Reloaded>, String> {
        let path = self.path_of(service).ok_or_else(|| format!("there is no service named {service} in the folder"))?;
        if self.is_stopped(&path) {
            return Err(format!("{service} was stopped; `credhost service start {service}` starts it"));
        }
        self.serve_now(&path, true).await?;
        match self.entries.lock().get(&path).map(|entry| &entry.library) {
            Some(Library::Loaded { reloaded, .. }) => Ok(reloaded.clone()),
            _ => Ok(None),
        }
    }

    /// An operator goes back to the library that served before the present one. The file in the folder stays as it is,
    /// and counts again when it is changed.
    ///
    /// # Errors
    /// When there is no such service, nothing to go back to, or that is refused.
    pub async fn rollback(self: &Rc<Self>, service: &str) -> Result<(), String> {
        let path = self.path_of(service).ok_or_else(|| format!("there is no service named {service} in the folder"))?;
        let previous = self.previous_copy(&path);
        if !previous.exists() {
            return Err(format!("no other library has served as {service}: there is nothing to go back to"));
        }
        let turn = self.turn(&path);
        let vetted = self.vet(previous).await.unwrap_or_else(|error| Err(error.to_string()));
        let served = self.serve(&path, turn, vetted).await;
        if served == Ok(true) {
            self.trouble(&path, "rolled back: the file in the folder is not what serves".to_owned());
        }
        self.start_waiting();
        current(served)
    }

    /// What holds the libraries of this service that could not be let go of.
    #[must_use]
    pub fn why(&self, service: &str) -> Vec<Held> {
        self.surroundings.ended.held(service)
    }

    /// How many generations have ended and were let go of.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.surroundings.ended.retired()
    }

    /// What became of each file.
    #[must_use]
    pub fn libraries(&self) -> Vec<LibraryStatus> {
        self.entries.lock().iter().map(|(path, entry)| status(path, entry)).collect()
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

/// What an operator is told of a command that was overtaken.
fn current(served: Result<bool, String>) -> Result<(), String> {
    match served? {
        true => Ok(()),
        false => Err("the file has changed meanwhile, and counts instead".to_owned()),
    }
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn status(path: &Path, entry: &Entry) -> LibraryStatus {
    let file = shown(path);
    let plain = |service, state| LibraryStatus { file: shown(path), service, state, ..LibraryStatus::default() };
    match &entry.library {
        Library::Vetting => plain(None, "being vetted".to_owned()),
        Library::Refused(why) | Library::Taken { why, .. } => plain(None, format!("refused: {why}")),
        Library::Stopped { service } => plain(Some(service.clone()), "stopped".to_owned()),
        Library::Waiting { service, needs } => {
            plain(Some(service.clone()), format!("waits: it needs {}", needs.join(", ")))
        }
        Library::Loaded { slot, notes, reloaded, .. } => {
            let notes: Vec<String> = entry.trouble.iter().chain(notes).cloned().collect();
            LibraryStatus {
                file,
                service: Some(slot.name().to_string()),
                state: match slot.state() {
                    State::Serving => "serving".to_owned(),
                    State::Loaded => "starting".to_owned(),
                    State::Failed(why) => format!("failed: {why}"),
                    State::Stopped => "stopped".to_owned(),
                },
                note: (!notes.is_empty()).then(|| notes.join("; ")),
                calls: slot.calls(),
                faults: slot.faults(),
                generation: slot.generation(),
                attached: slot.attached(),
                retiring: slot.retiring(),
                unreadable: slot.unreadable(),
                reloaded: reloaded.clone(),
            }
        }
    }
}
