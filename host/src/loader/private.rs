//! The host's own copy of a library: nobody can change it under the host's feet, and its name is new each time, for
//! the dynamic linker answers with the old library to a path that it knows.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use blake2::{Blake2s256, Digest};

use super::elf;
use super::fault::LibraryFault;

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

impl PrivateFolder {
    /// Makes the folder, or empties it of what a killed process has left.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn new(folder: PathBuf) -> io::Result<Self> {
        match fs::remove_dir_all(&folder) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&folder)?,
        }
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
        let mut file = File::open(source).map_err(unreadable)?;
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
        let mut copy = PrivateCopy { path, hash: [0; 32], borrowed: false, whole: self.whole };
        copy.fill(&head, &mut file, length).map_err(|error| match error.kind() {
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
    fn fill(&mut self, head: &[u8], rest: &mut File, length: u64) -> io::Result<()> {
        let out = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&self.path)?;
        let mut hasher = Blake2s256::new();
        let mut out = Hashing(&mut hasher, out);
        let from_head = head.len().min(usize::try_from(length).unwrap_or(usize::MAX));
        let mut start = head[..from_head].to_vec();
        if !self.whole {
            // What was cut off must not be looked for: where the section table is, how many sections there are.
            start[40..48].fill(0);
            start[60..62].fill(0);
            start[62..64].fill(0);
        }
        out.write_all(&start)?;
        let wanted = length - from_head as u64;
        let copied = io::copy(&mut rest.take(wanted), &mut out)?;
        self.hash = hasher.finalize().into();
        if copied == wanted { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
    }

    /// One that was made by another process, which also removes it.
    #[must_use]
    pub fn borrowed(path: &Path) -> Self {
        Self { path: path.to_owned(), hash: [0; 32], borrowed: true, whole: false }
    }

    /// It is opened, and mapped: its name is not needed any more, but by a debugger. Answers with whether whoever closes
    /// it is to remove the file.
    #[must_use]
    pub fn opened(mut self) -> bool {
        let stays = self.whole && !self.borrowed;
        self.borrowed |= stays;
        stays
    }

    /// What tells it from others.
    #[must_use]
    pub fn hash(&self) -> &[u8; 32] {
        &self.hash
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
