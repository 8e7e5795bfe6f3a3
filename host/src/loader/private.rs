//! The host's own copy of a library. Nobody can change it while the host uses it, and its name is new each time: for a path
//! that it knows, the dynamic linker returns the old library.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blake2::{Blake2s256, Digest};

use super::elf;
use super::fault::LibraryFault;
use super::own_folder;

/// How much of a library is read for its headers, which are at its start.
const HEAD: u64 = 64 << 10;

/// A folder of private copies, which belongs to this process. It is emptied when created.
#[derive(Debug)]
pub struct PrivateFolder {
    folder: PathBuf,
    whole: bool,
}

/// A private copy. Its file is removed when it is opened or dropped, except as described at [`PrivateFolder::whole`].
#[derive(Debug)]
pub struct PrivateCopy {
    path: PathBuf,
    hash: [u8; 32],
    /// The hash of the loaded part of the file that it was copied from.
    original: [u8; 32],
    /// The file is marked as never to be unloaded; the copy is not.
    was_nodelete: bool,
    /// Somebody else removes its file.
    borrowed: bool,
    /// It has everything that a debugger looks for.
    whole: bool,
}

/// The hash of a copy. It tells one library from another, by their loaded parts.
///
/// # Errors
/// If it cannot be read.
pub fn hash(copy: &Path) -> io::Result<[u8; 32]> {
    let mut hasher = Blake2s256::new();
    io::copy(&mut File::open(copy)?, &mut Hashing(&mut hasher, io::sink()))?;
    Ok(hasher.finalize().into())
}

/// The hash of the loaded part of a library's file: see [`PrivateCopy::original`].
///
/// # Errors
/// If it cannot be read or is no library; the error is one sentence.
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

/// Passes bytes on and hashes them.
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

/// Passes bytes on, and replaces some of them.
struct Patching<W> {
    out: W,
    /// How many bytes have been passed on.
    at: u64,
    /// The replacements, each with its place.
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
    /// Creates the folder, or empties it of what a killed process has left.
    ///
    /// # Errors
    /// If it cannot be created or emptied.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        match own_folder::remove(&folder) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => {
                // What a service has left there must not keep the host from starting.
                let aside = folder.with_extension(format!("left-{}", std::process::id()));
                tracing::warn!(%error, "leftover files in {} are moved aside: {}", folder.display(), aside.display());
                fs::rename(&folder, aside)?;
            }
            Ok(()) => {}
        }
        fs::create_dir_all(&folder)?;
        // In the form in which the list of mappings has it.
        Ok(Self { folder: folder.canonicalize()?, whole: false })
    }

    /// Makes copies whole, with symbols and lines. They stay while they are loaded, because debuggers look for them there.
    #[must_use]
    pub fn whole(self) -> Self {
        Self { whole: true, ..self }
    }

    /// Checks a library and copies its loaded part.
    ///
    /// # Errors
    /// If it is no library for this host, or cannot be copied; the error is one sentence.
    pub fn copy(&self, source: &Path) -> Result<PrivateCopy, LibraryFault> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        // What is no file may have nobody at its other end: opening it must not block.
        let mut open = fs::OpenOptions::new();
        let mut file = open.read(true).custom_flags(libc::O_NONBLOCK).open(source).map_err(unreadable)?;
        let about = file.metadata().map_err(unreadable)?;
        if !about.is_file() {
            return Err(LibraryFault::File("it is not a file".to_owned()));
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
            // What is cut off must not be looked for: clears the place of the section table and the number of sections.
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

    /// A copy that another process has made, and removes.
    #[must_use]
    pub fn borrowed(path: &Path) -> Self {
        let hash = [0; 32];
        Self { path: path.to_owned(), hash, original: hash, was_nodelete: false, borrowed: true, whole: false }
    }

    /// The copy is opened and mapped: only a debugger still needs its name. Returns whether its file must be removed when the
    /// library is closed.
    #[must_use]
    pub fn opened(mut self) -> bool {
        let stays = self.whole && !self.borrowed;
        self.borrowed |= stays;
        stays
    }

    /// Its identity: the hash of its own bytes.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
    }

    /// The hash of the loaded part of the file that it was copied from, as it stands there.
    #[must_use]
    pub fn original(&self) -> &[u8; 32] {
        &self.original
    }

    /// Whether the file is marked as never to be unloaded. The copy is not.
    #[must_use]
    pub fn was_nodelete(&self) -> bool {
        self.was_nodelete
    }

    /// Its path.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

impl Drop for PrivateCopy {
    fn drop(&mut self) {
        if !self.borrowed {
            // Once it is mapped, its name is not needed. The next start removes leftovers.
            let _ = fs::remove_file(&self.path);
        }
    }
}
