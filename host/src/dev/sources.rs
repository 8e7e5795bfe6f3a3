//! Detects that somebody has saved a source.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use notify::event::{AccessKind, AccessMode};
use notify::{EventKind, RecommendedWatcher, RecursiveMode, Watcher};
use tokio::sync::mpsc;

use crate::fingerprint::Fingerprint;

/// How long to wait after the last event: an editor writes more than one file.
const REST: Duration = Duration::from_millis(30);
/// How often to look at the sources even without an event.
const LOOK: Duration = Duration::from_secs(2);
/// The same if there are no events at all.
const POLL: Duration = Duration::from_millis(250);

/// The sources of a crate and of the crates that it is built with: manifests, build scripts, and what is in `src` and beside it,
/// without the build output.
pub struct Sources {
    /// The crate's own first.
    folders: Vec<PathBuf>,
    seen: BTreeMap<PathBuf, Fingerprint>,
    events: mpsc::Receiver<()>,
    watcher: Option<RecommendedWatcher>,
}

impl std::fmt::Debug for Sources {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Sources").field("folders", &self.folders).finish_non_exhaustive()
    }
}

impl Sources {
    /// Watches the crate in this folder. `poll`: looks at intervals, for file systems without events.
    #[must_use]
    pub fn new(folder: &Path, poll: bool) -> Self {
        let (told, events) = mpsc::channel(1);
        let watcher = || {
            let mut watcher = notify::recommended_watcher(move |event: notify::Result<notify::Event>| {
                // Reading the sources is an event, too, and must not lead to another look.
                let read = |event: &notify::Event| match event.kind {
                    EventKind::Access(access) => access != AccessKind::Close(AccessMode::Write),
                    _ => false,
                };
                if event.as_ref().is_ok_and(read) {
                    return;
                }
                // One pending event is enough: the look finds all changes.
                let _ = told.try_send(());
            })?;
            watch(&mut watcher, folder)?;
            Ok::<_, notify::Error>(watcher)
        };
        let watcher = if poll { None } else { watcher().ok() };
        let mut sources = Self { folders: vec![folder.to_owned()], seen: BTreeMap::new(), events, watcher };
        sources.look();
        sources
    }

    /// Also watches these folders, of crates that this one is built with. The build began at `since`: files that were saved later
    /// count as changed.
    pub fn also(&mut self, folders: &[PathBuf], since: SystemTime) {
        for folder in folders {
            if self.folders.contains(folder) {
                continue;
            }
            if let Some(watcher) = &mut self.watcher
                && watch(watcher, folder).is_err()
            {
                // They are still looked at, every two seconds.
                tracing::warn!(folder = %folder.display(), "the system does not report changes here");
            }
            let mut found = BTreeMap::new();
            find(folder, &mut found, 16);
            found.retain(|_, print| print.modified() < since);
            self.seen.append(&mut found);
            self.folders.push(folder.clone());
        }
    }

    /// Waits until something was saved. Returns the changed paths within the crate.
    pub async fn changed(&mut self) -> Vec<PathBuf> {
        loop {
            match &self.watcher {
                Some(_) => {
                    let _ = tokio::time::timeout(LOOK, self.events.recv()).await;
                    let by = Instant::now() + LOOK;
                    // Something may be written all the time; that must not prevent a build.
                    while Instant::now() < by
                        && let Ok(Some(())) = tokio::time::timeout(REST, self.events.recv()).await
                    {}
                }
                None => tokio::time::sleep(POLL).await,
            }
            let changed = self.look();
            if !changed.is_empty() {
                return changed;
            }
        }
    }

    /// What has changed since the last look.
    pub fn look(&mut self) -> Vec<PathBuf> {
        let mut found = BTreeMap::new();
        for folder in &self.folders {
            find(folder, &mut found, 16);
        }
        let changed = found.iter().filter(|(path, print)| self.seen.get(*path) != Some(print)).map(|(path, _)| path);
        let gone = self.seen.keys().filter(|path| !found.contains_key(*path));
        let within = |path: &PathBuf| match path.strip_prefix(&self.folders[0]) {
            Ok(within) => within.to_owned(),
            // Prefixed by the other crate's name.
            Err(_) => {
                let of = self.folders.iter().filter_map(|folder| path.strip_prefix(folder.parent()?).ok());
                of.min_by_key(|path| path.components().count()).unwrap_or(path).to_owned()
            }
        };
        let all: Vec<PathBuf> = changed.chain(gone).map(within).collect();
        self.seen = found;
        all
    }
}

/// Watches a crate without its build output, which is beside the sources and changes all the time.
fn watch(watcher: &mut RecommendedWatcher, folder: &Path) -> notify::Result<()> {
    watcher.watch(folder, RecursiveMode::NonRecursive)?;
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() && !is_left_out(&entry.path()) {
            watcher.watch(&entry.path(), RecursiveMode::Recursive)?;
        }
    }
    Ok(())
}

fn is_left_out(path: &Path) -> bool {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    // Cargo marks its target folder, whatever its name.
    name == "target"
        || name.starts_with('.')
        || path.join("CACHEDIR.TAG").exists()
        || path.join("plugins").is_dir() && path.join("credhost.toml").exists()
}

fn find(folder: &Path, found: &mut BTreeMap<PathBuf, Fingerprint>, depth: u32) {
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        let path = entry.path();
        // An editor's own files beside the sources are hidden, or have these endings.
        let aside = path.extension().is_some_and(|end| end == "swp" || end == "tmp") || path.ends_with("Cargo.lock");
        if aside || is_left_out(&path) || path.to_string_lossy().ends_with('~') {
            continue;
        }
        match entry.metadata() {
            Ok(about) if about.is_dir() && depth > 0 => find(&path, found, depth - 1),
            Ok(about) if about.is_file() => {
                found.insert(path, Fingerprint::from(&about));
            }
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A guard against hanging, not a measure.
    const PATIENCE: Duration = Duration::from_secs(30);

    async fn is_seen(poll: bool) {
        let folder = tempfile::tempdir().expect("a folder");
        std::fs::create_dir_all(folder.path().join("src/deep")).expect("a folder");
        std::fs::create_dir_all(folder.path().join("target/debug")).expect("a folder");
        std::fs::write(folder.path().join("src/lib.rs"), "1").expect("it can be written");
        let mut sources = Sources::new(folder.path(), poll);
        assert_eq!(sources.watcher.is_none(), poll);
        std::fs::write(folder.path().join("target/debug/built"), "2").expect("it can be written");
        std::fs::write(folder.path().join("src/deep/other.rs"), "22").expect("it can be written");
        let changed = tokio::time::timeout(PATIENCE, sources.changed()).await.expect("it is seen");
        assert_eq!(changed, [Path::new("src/deep/other.rs")]);
        // Editors save this way: a new file replaces the old one.
        std::fs::write(folder.path().join("new"), "333").expect("it can be written");
        std::fs::rename(folder.path().join("new"), folder.path().join("src/lib.rs")).expect("it can be moved");
        let mut seen = Vec::new();
        while !seen.contains(&PathBuf::from("src/lib.rs")) {
            seen.extend(tokio::time::timeout(PATIENCE, sources.changed()).await.expect("it is seen"));
        }
    }

    #[tokio::test]
    async fn saved_files_are_noticed_by_file_system_events() {
        is_seen(false).await;
    }

    #[tokio::test]
    async fn saved_files_are_noticed_by_polling() {
        is_seen(true).await;
    }

    #[tokio::test]
    async fn dependencies_are_watched_once_they_are_known() {
        let folder = tempfile::tempdir().expect("a folder");
        let (own, other) = (folder.path().join("own"), folder.path().join("other"));
        for folder in [&own, &other] {
            std::fs::create_dir_all(folder.join("src")).expect("a folder");
            std::fs::write(folder.join("src/lib.rs"), "1").expect("it can be written");
        }
        for poll in [false, true] {
            let mut sources = Sources::new(&own, poll);
            sources.also(std::slice::from_ref(&other), SystemTime::now() + Duration::from_secs(1));
            assert!(sources.look().is_empty(), "it was built with what is there");
            std::fs::write(other.join("src/lib.rs"), format!("a change: {poll}")).expect("it can be written");
            let changed = tokio::time::timeout(PATIENCE, sources.changed()).await.expect("it is seen");
            assert_eq!(changed, [Path::new("other/src/lib.rs")]);
            // A file that was saved during the build.
            let mut sources = Sources::new(&own, poll);
            sources.also(std::slice::from_ref(&other), SystemTime::UNIX_EPOCH);
            assert_eq!(sources.look(), [Path::new("other/src/lib.rs")]);
        }
    }
}
