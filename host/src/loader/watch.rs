//! Watches for files that come into the folder.
//!
//! Events only say where to look; what counts is what is there. A file is accepted when its fingerprint has been stable for a
//! moment, because copies are written bit by bit. If a file system sends no events, the folder is polled.

use std::collections::{BTreeMap, HashSet};
use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use notify::event::{AccessKind, AccessMode, ModifyKind};
use notify::{Event, EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use parking_lot::Mutex;
use tokio::sync::mpsc;

use crate::fingerprint::Fingerprint;

/// How long a file must be stable.
const REST: Duration = Duration::from_millis(60);
/// The same for a file that was moved into place whole, or that its writer has closed.
const CLOSED: Duration = Duration::from_millis(8);
/// How often the folder is looked at without an event.
const LOOK: Duration = Duration::from_secs(2);
/// The same if there are no events at all.
const POLL: Duration = Duration::from_millis(250);

/// What has happened in the folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// A file has come or has been replaced, and is stable.
    Came(PathBuf),
    /// A file has gone.
    Gone(PathBuf),
}

struct Seen {
    print: Fingerprint,
    since: Instant,
    told: bool,
}

/// The libraries that were moved into place or closed by their writers, and not written since. By name, because events may have
/// the folder's path in another form than it was given.
type Whole = Arc<Mutex<HashSet<OsString>>>;

/// Watches a folder for libraries: files whose names end in `.so`.
pub struct Watch {
    folder: PathBuf,
    seen: BTreeMap<PathBuf, Seen>,
    told: mpsc::Sender<()>,
    events: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
    whole: Whole,
    /// The device and inode of the folder at the path.
    inode: Option<(u64, u64)>,
    poll: bool,
    /// What failed at the last look. It is reported once, and tried again at each look.
    failing: Failing,
}

/// What fails at the moment.
#[derive(Default)]
struct Failing {
    watched: bool,
    read: bool,
}

impl Failing {
    /// Whether this failure is new.
    fn begins(failing: &mut bool) -> bool {
        !std::mem::replace(failing, true)
    }
}

impl std::fmt::Debug for Watch {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Watch").field("folder", &self.folder).finish_non_exhaustive()
    }
}

impl Watch {
    /// Watches this folder, which may disappear and come back. `poll`: looks at intervals instead of waiting for events of the
    /// file system.
    #[must_use]
    pub fn new(folder: &Path, poll: bool) -> Self {
        let (told, events) = mpsc::channel(1);
        let (folder, seen) = (folder.to_owned(), BTreeMap::new());
        let (watcher, whole, inode) = (None, Whole::default(), None);
        let failing = Failing::default();
        let mut watch = Self { folder, seen, told, events, watcher, whole, inode, poll, failing };
        watch.arm();
        watch
    }

    /// Watches the folder that has the path now, if that has changed.
    fn arm(&mut self) {
        let inode = fs::metadata(&self.folder).ok().map(|about| (about.dev(), about.ino()));
        if self.poll || inode == self.inode {
            return;
        }
        let (told, whole) = (self.told.clone(), Arc::clone(&self.whole));
        let watcher = notify::recommended_watcher(move |event: notify::Result<Event>| {
            // Looking at the folder is an event, too, and must not cause another look.
            let read =
                |kind| matches!(kind, EventKind::Access(access) if access != AccessKind::Close(AccessMode::Write));
            if let Ok(event) = &event {
                let mut whole = whole.lock();
                for path in event.paths.iter().filter(|path| is_library(path)) {
                    let Some(name) = path.file_name() else { continue };
                    match event.kind {
                        EventKind::Access(AccessKind::Close(AccessMode::Write))
                        | EventKind::Modify(ModifyKind::Name(_)) => {
                            whole.insert(name.to_owned());
                        }
                        EventKind::Modify(_) | EventKind::Create(_) | EventKind::Remove(_) => {
                            whole.remove(name);
                        }
                        _ => {}
                    }
                }
            }
            if !event.is_ok_and(|event| read(event.kind)) {
                // One queued event is as good as many. A report of lost events counts as one, too.
                let _ = told.try_send(());
            }
        })
        .and_then(|mut watcher| watcher.watch(&self.folder, RecursiveMode::NonRecursive).map(|()| watcher));
        match watcher {
            Ok(watcher) => {
                (self.watcher, self.inode) = (Some(watcher), inode);
                self.failing.watched = false;
            }
            Err(error) => {
                // The cause may be temporary: the next look tries again.
                (self.watcher, self.inode) = (None, None);
                if Failing::begins(&mut self.failing.watched) {
                    tracing::warn!(
                        %error,
                        "the folder of services cannot be watched; it is polled four times a second"
                    );
                }
            }
        }
    }

    /// The libraries that are present now, by name. They are not reported again until they change.
    pub fn present(&mut self) -> Vec<PathBuf> {
        self.look(Instant::now());
        for seen in self.seen.values_mut() {
            seen.told = true;
        }
        self.seen.keys().cloned().collect()
    }

    /// Waits for the next changes.
    pub async fn next(&mut self) -> Vec<Change> {
        loop {
            let look = if self.watcher.is_some() { LOOK } else { POLL };
            let unrest = self.seen.iter().filter(|(_, seen)| !seen.told);
            let wait = unrest.map(|(path, seen)| self.rest(path).saturating_sub(seen.since.elapsed())).min();
            tokio::select! {
                _ = self.events.recv() => {}
                () = tokio::time::sleep(wait.unwrap_or(look)) => {}
            }
            let now = Instant::now();
            let mut changes = self.look(now);
            let unrest = self.seen.iter().filter(|(_, seen)| !seen.told);
            let rested = unrest.filter(|(path, seen)| now.duration_since(seen.since) >= self.rest(path));
            let rested: Vec<PathBuf> = rested.map(|(path, _)| path.clone()).collect();
            for path in rested {
                if let Some(seen) = self.seen.get_mut(&path) {
                    seen.told = true;
                    if let Some(name) = path.file_name() {
                        self.whole.lock().remove(name);
                    }
                    changes.push(Change::Came(path));
                }
            }
            if !changes.is_empty() {
                return changes;
            }
        }
    }

    fn rest(&self, path: &Path) -> Duration {
        let is_whole = path.file_name().is_some_and(|name| self.whole.lock().contains(name));
        if is_whole { CLOSED } else { REST }
    }

    /// Compares the folder with what was seen of it; returns what has gone.
    fn look(&mut self, now: Instant) -> Vec<Change> {
        self.arm();
        let there = match libraries(&self.folder, &self.seen) {
            Ok(there) => {
                self.failing.read = false;
                there
            }
            Err(error) => {
                // It is unknown what is there: nothing counts as changed.
                if Failing::begins(&mut self.failing.read) {
                    tracing::warn!(
                        %error,
                        "the folder of services cannot be read: running services continue, new files wait"
                    );
                }
                return Vec::new();
            }
        };
        let gone: Vec<PathBuf> = self.seen.keys().filter(|path| !there.contains_key(*path)).cloned().collect();
        for path in &gone {
            self.seen.remove(path);
            if let Some(name) = path.file_name() {
                self.whole.lock().remove(name);
            }
        }
        for (path, print) in there {
            match self.seen.get_mut(&path) {
                Some(seen) if seen.print == print => {}
                _ => {
                    self.seen.insert(path, Seen { print, since: now, told: false });
                }
            }
        }
        gone.into_iter().map(Change::Gone).collect()
    }
}

/// The libraries in a folder; none if there is no such folder. Returns an error if the listing fails: half of a listing would
/// end the services of the other half. A file that cannot be examined counts as it was last `seen`.
fn libraries(folder: &Path, seen: &BTreeMap<PathBuf, Seen>) -> std::io::Result<BTreeMap<PathBuf, Fingerprint>> {
    let none = |error: &std::io::Error| error.kind() == std::io::ErrorKind::NotFound;
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if none(&error) => return Ok(BTreeMap::new()),
        Err(error) => return Err(error),
    };
    let mut there = BTreeMap::new();
    for entry in entries {
        let path = entry?.path();
        if !is_library(&path) {
            continue;
        }
        match fs::metadata(&path) {
            Ok(about) if about.is_file() => {
                there.insert(path, Fingerprint::from(&about));
            }
            Ok(_) => {}
            // It has gone meanwhile, or is a dangling link.
            Err(error) if none(&error) => {}
            Err(_) => {
                if let Some(before) = seen.get(&path) {
                    there.insert(path, before.print);
                }
            }
        }
    }
    Ok(there)
}

/// Whether a file of this name may be a library.
fn is_library(path: &Path) -> bool {
    let hidden = path.file_name().is_none_or(|name| name.to_string_lossy().starts_with('.'));
    !hidden && path.extension().is_some_and(|extension| extension == "so")
}
