//! A folder for what a service's process writes. It is removed whatever is in it.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use rustix::fs::{AtFlags, CWD, Dir, FileType, Mode, OFlags, chmodat, fchmod, openat, renameat, statat, unlinkat};
use rustix::io::Errno;

/// A folder that nobody else uses. It is removed when dropped.
#[derive(Debug)]
pub(crate) struct OwnFolder(PathBuf);

impl OwnFolder {
    /// A folder beside the copy of a library.
    ///
    /// # Errors
    /// If it cannot be made.
    pub(crate) fn beside(copy: &Path) -> io::Result<Self> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = copy.with_extension(format!("{number}.tmp"));
        std::fs::DirBuilder::new().mode(0o700).create(&path)?;
        Ok(Self(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.0) {
            tracing::warn!(%error, "a service's files cannot be removed: {}", self.0.display());
        }
    }
}

/// The most entries of a folder that are read at once: it may have millions.
const PORTION: usize = 4_096;

/// Removes a folder with everything in it, however deep. It does not descend: folders in a folder are moved up beside that,
/// until it is empty.
///
/// # Errors
/// If it is not there, or the system does not remove something in it.
pub(crate) fn remove(folder: &Path) -> io::Result<()> {
    let (top, mut next) = (open(CWD, folder)?, 0);
    loop {
        let names = names(&top)?;
        if names.is_empty() {
            break;
        }
        for (name, is_folder) in names {
            match is_folder {
                true => remove_folder(&top, &name, &mut next)?,
                false => unlinkat(&top, &name, AtFlags::empty())?,
            }
        }
    }
    drop(top);
    std::fs::remove_dir(folder)
}

/// Removes a folder in the top one. Folders in it are moved up beside it, under the next free names.
fn remove_folder(top: &OwnedFd, name: &CString, next: &mut u64) -> io::Result<()> {
    match unlinkat(top, name, AtFlags::REMOVEDIR) {
        Err(Errno::NOTEMPTY | Errno::EXIST) => {}
        done => return Ok(done?),
    }
    let inner = open(top, name)?;
    loop {
        let names = names(&inner)?;
        if names.is_empty() {
            break;
        }
        for (name, is_folder) in names {
            if !is_folder {
                unlinkat(&inner, &name, AtFlags::empty())?;
                continue;
            }
            // A folder must be writable to be moved, because its place is recorded in it.
            drop(open(&inner, &name)?);
            let free = loop {
                let free = format!("up-{next}");
                *next += 1;
                if statat(top, &free, AtFlags::SYMLINK_NOFOLLOW).is_err_and(|error| error == Errno::NOENT) {
                    break free;
                }
            };
            renameat(&inner, &name, top, &free)?;
        }
    }
    Ok(unlinkat(top, name, AtFlags::REMOVEDIR)?)
}

/// Opens a folder, whatever its mode is, and changes the mode so that it can be emptied.
fn open<P: rustix::path::Arg + Copy>(at: impl AsFd, path: P) -> Result<OwnedFd, Errno> {
    let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::RDONLY | OFlags::CLOEXEC;
    let opened = match openat(&at, path, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            // Whatever could put a link in its place has ended.
            chmodat(&at, path, Mode::RWXU, AtFlags::empty())?;
            openat(&at, path, flags, Mode::empty())?
        }
        opened => opened?,
    };
    fchmod(&opened, Mode::RWXU)?;
    Ok(opened)
}

/// Some entries of a folder, and whether each is a folder. Empty if the folder is.
fn names(folder: &OwnedFd) -> io::Result<Vec<(CString, bool)>> {
    let mut found = Vec::new();
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_owned();
        if name.as_bytes() != b"." && name.as_bytes() != b".." {
            let is_folder = match entry.file_type() {
                FileType::Unknown => {
                    let stat = statat(folder, &name, AtFlags::SYMLINK_NOFOLLOW)?;
                    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
                }
                known => known == FileType::Directory,
            };
            found.push((name, is_folder));
        }
        if found.len() >= PORTION {
            break;
        }
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_removed_however_deep_and_whatever_it_contains() {
        let home = tempfile::tempdir().expect("a folder");
        let folder = OwnFolder::beside(&home.path().join("lib.so")).expect("it is made");
        let path = folder.path().to_owned();
        // Deeper than any path can be long: each level is put around the one before.
        std::fs::create_dir(path.join("d")).expect("it is made");
        for _ in 0..5_000 {
            std::fs::create_dir(path.join("n")).expect("it is made");
            std::fs::rename(path.join("d"), path.join("n/d")).expect("it is moved");
            std::fs::rename(path.join("n"), path.join("d")).expect("it is moved");
        }
        std::fs::create_dir_all(path.join("a/b/c")).expect("they are made");
        for file in ["a/file", "a/b/file", "a/b/c/up-0", "up-0", "up-1"] {
            std::fs::write(path.join(file), b"x").expect("it is written");
        }
        std::os::unix::fs::symlink("/", path.join("a/root")).expect("a link");
        for (folder, mode) in [("a/b/c", 0o555), ("a/b", 0o0), ("a", 0o500)] {
            let closed = std::os::unix::fs::PermissionsExt::from_mode(mode);
            std::fs::set_permissions(path.join(folder), closed).expect("it is closed");
        }
        drop(folder);
        assert!(!path.exists());
        assert_eq!(std::fs::read_dir(home.path()).expect("it is there").count(), 0);
    }
}
