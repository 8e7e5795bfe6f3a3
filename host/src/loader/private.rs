//! The host's own copy of a library: nobody can change it under the host's feet, and its name is new each time, for
//! the dynamic linker answers with the old library to a path that it knows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blake2::{Blake2s256, Digest};

use super::elf;
use super::fault::LibraryFault;
use super::own_folder;

/// What is read of a library to see its headers; they stand at its start.
const HEAD: u64 = 64 << 10;

/// A folder of private copies, which belongs to this process; emptied when it is made.
#[derive(Debug)]
pub struct PrivateFolder {
    folder: PathBuf,
    whole: bool,
}

/// A private copy. Its file is removed at once when it is opened or dropped.
#[derive(Debug)]
pub struct PrivateCopy {
    path: PathBuf,
    hash: [u8; 32],
    /// The same of the file that it was copied from, as far as that is loaded.
    original: [u8; 32],
    /// The file says that it is never to be unloaded; the copy does not.
    was_nodelete: bool,
    /// Its file is somebody else's to remove.
    borrowed: bool,
    /// With all that a debugger looks for.
    whole: bool,
}

/// What tells one library from another: of what is loaded of it.
///
/// # Errors
/// When it cannot be read.
pub fn hash(copy: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = Blake2s256::new();
    io::copy(&mut File::open(copy)?, &mut Hashing(&mut hasher, io::sink()))?;
    Ok(hasher.finalize().into())
}

/// The hash of what is loaded of a library's file: see [`PrivateCopy::original`].
///
/// # Errors
/// One sentence that says what is wrong with it.
pub fn original(file: &Path) -> Result<[u8; 32], LibraryFault> {
    let mut file = File::open(file).map_err(unreadable)?;
    let mut head = Vec::new();
    (&mut file).take(HEAD).read_to_end(&mut head).map_err(unreadable)?;
    let extent = elf::check(&head, file.metadata().map_err(unreadable)?.len())?;
    let mut hasher = Blake2s256::new();
    let from_head = head.len().min(usize::try_from(extent.loaded).unwrap_or(usize::MAX));
    hasher.update(&head[..from_head]);
    io::copy(&mut file.take(extent.loaded - from_head as u64), &mut Hashing(&mut hasher, io::sink()))
        .map_err(unreadable)?;
    Ok(hasher.finalize().into())
}

/// Passes bytes on, and takes note of them.
struct Hashing<'h, W>(&'h mut Blake2s256, W);

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.1.write(bytes)?;
        self.0.update(&bytes[..written]);
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.1.flush()
    }
}

/// Passes bytes on, others in the place of some.
struct Patching<W> {
    out: W,
    /// How many have been passed on.
    at: u64,
    /// From which place on what is to stand.
    patches: Vec<(u64, Vec<u8>)>,
}

impl<W: Write> Write for Patching<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut patched = None;
        for (place, patch) in &self.patches {
            for (at, byte) in (*place..).zip(patch) {
                if let Some(at) = at.checked_sub(self.at).filter(|at| *at < bytes.len() as u64) {
                    let patched = patched.get_or_insert_with(|| bytes.to_vec());
                    if let Some(place) = usize::try_from(at).ok().and_then(|at| patched.get_mut(at)) {
                        *place = *byte;
                    }
                }
            }
        }
        let written = self.out.write(patched.as_deref().unwrap_or(bytes))?;
        self.at += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

impl PrivateFolder {
    /// Makes the folder, or empties it of what a killed process has left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        match own_folder::remove(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // Whatever a service has left there keeps nobody from starting.
                let aside = folder.with_extension(format!("left-{}", std::process::id()));
                tracing::warn!(%error, "what was left in {} is put aside: {}", folder.display(), aside.display());
                fs::rename(&folder, aside)?;
            }
            Ok(()) => {}
        }
        fs::create_dir_all(&folder)?;
        // As the list of mappings names it.
        Ok(Self { folder: folder.canonicalize()?, whole: false })
    }

    /// Copies are whole, with symbols and lines, and stay for as long as they are loaded: a debugger looks for them there.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Checks a library and copies what is loaded of it.
    ///
    /// # Errors
    /// One sentence that says what is wrong with it.
    pub fn copy(&self, source: &Path) -> Result<PrivateCopy, LibraryFault> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // What is no file may have nobody at its other end: it is not waited for.
        let mut open = fs::OpenOptions::new();
        let mut file = open.read(true).custom_flags(libc::O_NONBLOCK).open(source).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(LibraryFault::File("it is no file".to_owned()));
        }
        let mut head = Vec::new();
        (&mut file).take(HEAD).read_to_end(&mut head).map_err(unreadable)?;
        let extent = elf::check(&head, about.len())?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = self.folder.join(format!("{}-{number}.so", std::process::id()));
        let length = if self.whole { about.len() } else { extent.loaded };
        let nodelete = elf::without_nodelete(&head, |at, into| file.read_exact_at(into, at)).map_err(|error| {
            match error.kind() {
                io::ErrorKind::UnexpectedEof => LibraryFault::File("its dynamic section is damaged".to_owned()),
                _ => unreadable(error),
            }
        })?;
        let (hash, was_nodelete) = ([0; 32], nodelete.is_some());
        let mut copy = PrivateCopy { path, hash, original: hash, was_nodelete, borrowed: false, whole: self.whole };
        let mut patches: Vec<(u64, Vec<u8>)> = nodelete.map(|(at, flags)| (at, flags.to_vec())).into_iter().collect();
        if !self.whole {
            // What is cut off must not be looked for: where the section table is, how many sections there are.
            patches.extend([(40, vec![0; 8]), (60, vec![0; 4])]);
        }
        copy.fill(&head, &mut file, length, patches).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => LibraryFault::File("it became shorter while it was copied".to_owned()),
            _ => LibraryFault::machine("it cannot be copied into the host's home", error),
        })?;
        Ok(copy)
    }
}

fn unreadable(error: io::Error) -> LibraryFault {
    LibraryFault::machine("it cannot be read", error)
}

impl PrivateCopy {
    fn fill(&mut self, head: &[u8], rest: &mut File, length: u64, patches: Vec<(u64, Vec<u8>)>) -> io::Result<()> {
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        let (mut of_file, mut of_copy) = (Blake2s256::new(), Blake2s256::new());
        let patching = Patching { out: Hashing(&mut of_copy, file), at: 0, patches };
        let mut out = Hashing(&mut of_file, patching);
        let from_head = head.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        out.write_all(&head[..from_head])?;
        let wanted = length - from_head as u64;
        let copied = io::copy(&mut rest.take(wanted), &mut out)?;
        (self.original, self.hash) = (of_file.finalize().into(), of_copy.finalize().into());
        if copied == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// One that was made by another process, which also removes it.
    #[must_use]
    pub fn borrowed(path: &Path) -> Self {
        let hash = [0; 32];
        Self { path: path.to_owned(), hash, original: hash, was_nodelete: false, borrowed: true, whole: false }
    }

    /// It is opened, and mapped: its name is not needed any more, but by a debugger. Answers with whether whoever closes
    /// it is to remove the file.
    #[must_use]
    pub fn opened(mut self) -> bool {
        let stays = self.whole && !self.borrowed;
        self.borrowed |= stays;
        stays
    }

    /// What tells it from others: of its own bytes.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The hash of what is loaded of the file that it was copied from, as it stands there.
    #[must_use]
    pub fn original(&self) -> &[u8; 32] {
        &self.original
    }

    /// Whether the file says that it is never to be unloaded, which the copy does not.
    #[must_use]
    pub fn was_nodelete(&self) -> bool {
        self.was_nodelete
    }

    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        if !self.borrowed {
            // Once it is mapped its name is not needed; a leftover is removed at the next start.
            let _ = fs::remove_file(&self.path);
        }
    }
}
