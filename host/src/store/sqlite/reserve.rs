//! Room on the disk for what takes away: somebody is disabled, a key is taken, a credential removed, though the disk is full.
//!
//! A file of this size is kept beside the store. When the disk is full, it is removed, and until it can be made again
//! only what takes away is committed: services, logins and the trail of others would fill the room in no time.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

/// How often it is looked whether there is room again.
const AGAIN: Duration = Duration::from_secs(1);

/// Whether there is room that is kept back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// It is there.
    Held,
    /// It is given up, or in use, or could not be made: it is made again as soon as there is room. The file is there, and
    /// empty, so that also the next host knows.
    Spent,
    /// Nobody has asked for it.
    None,
}

/// Room that is kept back on the disk.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// How much is kept back, in bytes.
    size: u64,
    state: State,
    looked: Option<Instant>,
    /// How much room there is beside a file, in bytes.
    room: fn(&Path) -> u64,
}

impl Reserve {
    /// What there is beside this store; none is made.
    pub(super) fn beside(store: &Path) -> Self {
        let path = path(store);
        let (size, state) = match fs::metadata(&path) {
            Ok(file) if file.len() > 0 => (file.len(), State::Held),
            Ok(_) => (0, State::Spent),
            Err(_) => (0, State::None),
        };
        Self { path, size, state, looked: None, room }
    }

    /// Keeps back this much from now on, in bytes. If there is no room for more, what is kept back stays.
    pub(super) fn set_size(&mut self, size: u64) {
        let before = std::mem::replace(&mut self.size, size);
        if self.state != State::Held {
            return self.make();
        }
        if before != size
            && let Err(error) = resize(&self.path, before, size)
        {
            self.size = before;
            tracing::warn!(%error, "cannot reserve {size} bytes of disk space: {before} stay reserved");
        }
    }

    fn make(&mut self) {
        match allocate(&self.path, self.size) {
            Ok(()) => self.state = State::Held,
            Err(error) => {
                self.empty();
                if self.state == State::None {
                    tracing::warn!(%error, "cannot reserve disk space: only revocations are committed");
                }
                self.state = State::Spent;
            }
        }
    }

    /// The disk is full. True: there is room now that there was not.
    pub(super) fn spend(&mut self) -> bool {
        if self.state != State::Held {
            return false;
        }
        self.state = State::Spent;
        tracing::error!("the disk is full: only revocations are committed until there is room");
        self.empty()
    }

    /// An empty file stays: it says that there was something.
    fn empty(&self) -> bool {
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path).is_ok()
    }

    /// Whether the room that was kept back is in use. It is made again if there is twice as much; `make_room` is asked for
    /// some first.
    pub(super) fn is_spent(&mut self, make_room: impl FnOnce()) -> bool {
        if self.state == State::Spent && self.looked.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.looked = Some(Instant::now());
            if (self.room)(&self.path) < 2 * self.size {
                make_room();
            }
            if (self.room)(&self.path) >= 2 * self.size {
                self.make();
            }
            if self.state == State::Held {
                self.looked = None;
                tracing::info!("there is room on the disk again");
            }
        }
        self.state == State::Spent
    }
}

/// Where it is, beside a store.
#[must_use]
pub fn path(store: &Path) -> PathBuf {
    store.with_extension("reserve")
}

fn room(path: &Path) -> u64 {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    statvfs(folder).map_or(0, |about| about.f_bavail.saturating_mul(about.f_frsize))
}

fn allocate(path: &Path, size: u64) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)?;
    fill(&file, 0, size)
}

/// Makes the file longer or shorter. If it cannot, the file stays as it is.
fn resize(path: &Path, before: u64, size: u64) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    if size < before {
        return file.set_len(size);
    }
    fill(&file, before, size).inspect_err(|_| {
        // Shorter is always possible; if not, more is reserved than was asked for.
        let _ = file.set_len(before);
    })
}

/// Has blocks from here to there.
fn fill(mut file: &fs::File, from: u64, to: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), from, to - from) {
        // A file system that cannot: written instead.
        Err(Errno::OPNOTSUPP) => {
            file.seek(SeekFrom::Start(from))?;
            std::io::copy(&mut std::io::repeat(0).take(to - from), &mut file)?;
            file.sync_all()
        }
        done => Ok(done?),
    }
}

#[cfg(test)]
impl Reserve {
    /// One that is in use, on a disk without room.
    pub(super) fn spent(store: &Path) -> Self {
        Self { path: path(store), size: 16 << 20, state: State::Spent, looked: None, room: |_| 0 }
    }

    /// There is room again.
    pub(super) fn has_room(&mut self) {
        self.room = |_| u64::MAX;
        self.looked = None;
    }
}
