//! Reserved disk space for revocations: an identity is disabled, or a key or credential removed, even though the disk
//! is full.
//!
//! A file of this size is kept beside the store. When the disk is full, it is emptied, and until it can be filled again
//! only revocations are committed: services, logins and their lines in the trail would fill the space immediately.

use std::fs;
use std::io::{Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::fs::{FallocateFlags, fallocate, statvfs};
use rustix::io::Errno;

/// How much is reserved, in bytes, if nothing else is known, or if there is no room for more.
const SMALL: u64 = 16 << 20;
/// The interval between two checks for free space.
const AGAIN: Duration = Duration::from_secs(1);

/// The state of the reserve.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// The space is reserved.
    Held,
    /// The space was given up, is in use, or could not be reserved. It is reserved again as soon as there is room. The
    /// file exists and is empty, so that the next host process knows.
    Spent,
    /// No reserve was requested.
    None,
}

/// Reserved disk space.
#[derive(Debug)]
pub(super) struct Reserve {
    path: PathBuf,
    /// How many bytes are to be reserved, and how many are.
    wanted: u64,
    held: u64,
    state: State,
    looked: Option<Instant>,
    /// Returns the free space beside a file, in bytes.
    room: fn(&Path) -> u64,
}

impl Reserve {
    /// Reads the state of the reserve beside this store, and creates none.
    pub(super) fn beside(store: &Path) -> Self {
        let path = path(store);
        let (held, state) = match fs::metadata(&path) {
            Ok(file) if file.len() > 0 => (file.len(), State::Held),
            Ok(_) => (0, State::Spent),
            Err(_) => (0, State::None),
        };
        // A command does not know what the host reserves.
        Self { path, wanted: held.max(SMALL), held, state, looked: None, room }
    }

    /// Sets the reserved size, in bytes. If there is no room for a larger reserve, the old one stays.
    pub(super) fn set_size(&mut self, size: u64) {
        self.wanted = size;
        if self.state != State::Held {
            return self.make();
        }
        if self.held != size {
            match resize(&self.path, self.held, size) {
                Ok(()) => self.held = size,
                Err(error) => {
                    let held = self.held;
                    tracing::warn!(%error, "cannot reserve {size} bytes of disk space: {held} stay reserved");
                }
            }
        }
    }

    /// Reserves what is wanted. If that leaves next to no room, a little is reserved.
    fn make(&mut self) {
        let little = self.wanted.min(SMALL);
        let whole = (self.room)(&self.path) >= self.wanted.saturating_add(little);
        let size = if whole { self.wanted } else { little };
        match allocate(&self.path, size) {
            Ok(()) => {
                (self.state, self.held) = (State::Held, size);
                if size < self.wanted {
                    let wanted = self.wanted;
                    tracing::warn!("cannot reserve {wanted} bytes of disk space: {size} are reserved");
                }
            }
            Err(error) => {
                self.empty();
                if self.state == State::None {
                    tracing::warn!(%error, "cannot reserve disk space: only revocations are committed");
                }
                self.state = State::Spent;
            }
        }
    }

    /// Gives up the reserve when the disk is full. Returns true if this freed space.
    pub(super) fn spend(&mut self) -> bool {
        if self.state != State::Held {
            return false;
        }
        self.state = State::Spent;
        tracing::error!("the disk is full: only revocations are committed until there is room");
        self.empty()
    }

    /// The empty file stays, to show that there was a reserve.
    fn empty(&self) -> bool {
        fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&self.path).is_ok()
    }

    /// Whether the reserve is in use. It is restored when there is twice as much free space; if not, `make_room` is
    /// called first.
    pub(super) fn is_spent(&mut self, make_room: impl FnOnce()) -> bool {
        if self.state == State::Spent && self.looked.is_none_or(|at| at.elapsed() >= AGAIN) {
            self.looked = Some(Instant::now());
            let enough = 2 * self.wanted.min(SMALL);
            if (self.room)(&self.path) < enough {
                make_room();
            }
            if (self.room)(&self.path) >= enough {
                self.make();
            }
            if self.state == State::Held {
                self.looked = None;
                tracing::info!("the disk has room again");
            }
        }
        self.state == State::Spent
    }
}

/// The path of the reserve beside a store.
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

/// Makes the file longer or shorter. If this fails, the file is unchanged.
fn resize(path: &Path, before: u64, size: u64) -> std::io::Result<()> {
    let file = fs::OpenOptions::new().write(true).open(path)?;
    if size < before {
        return file.set_len(size);
    }
    fill(&file, before, size).inspect_err(|_| {
        // Truncation should always work. If it fails, more is reserved than requested.
        let _ = file.set_len(before);
    })
}

/// Allocates blocks for this range.
fn fill(mut file: &fs::File, from: u64, to: u64) -> std::io::Result<()> {
    match fallocate(file, FallocateFlags::empty(), from, to - from) {
        // A file system without support for this: zeros are written instead.
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
    /// A reserve that is in use, on a disk without free space.
    pub(super) fn spent(store: &Path) -> Self {
        Self { path: path(store), wanted: SMALL, held: 0, state: State::Spent, looked: None, room: |_| 0 }
    }

    /// Simulates free space.
    pub(super) fn has_room(&mut self) {
        self.room = |_| u64::MAX;
        self.looked = None;
    }
}
