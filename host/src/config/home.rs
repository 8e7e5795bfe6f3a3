//! The home folder: one host's, and nobody else's to read.

use std::fs::{DirBuilder, File, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::{FlockOperation, flock};

use super::file::TlsSection;
use super::private::{HomeError, private};

/// A home folder.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Home {
    path: PathBuf,
}

/// Held by the one process that uses a home folder.
#[derive(Debug)]
pub struct Lock {
    _file: File,
}

impl Home {
    /// The home folder at this path.
    #[must_use]
    pub fn new(path: impl Into<PathBuf>) -> Self {
        Self { path: path.into() }
    }

    /// Makes the folder and its folder for services, if they are not there; checks that nobody else can read them.
    ///
    /// # Errors
    /// When it cannot be made, or others can read it.
    pub fn make(&self) -> Result<(), HomeError> {
        for folder in [self.path.clone(), self.plugins()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|error| HomeError::Io { path: folder, error })?;
        }
        self.check()
    }

    /// Checks that the folder is there, and that nobody else can read it.
    ///
    /// # Errors
    /// When it is not, or they can.
    pub fn check(&self) -> Result<(), HomeError> {
        if !self.path.is_dir() {
            return Err(HomeError::Missing(self.path.clone()));
        }
        private(&self.path, 0o700)
    }

    /// Takes the folder for this process.
    ///
    /// # Errors
    /// When another has it.
    pub fn lock(&self) -> Result<Lock, HomeError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| HomeError::Io { path, error })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(_) => Err(HomeError::Locked(self.path.clone())),
        }
    }

    /// Whether a host or a command holds the lock. Whoever only looks leaves nothing behind.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let file = OpenOptions::new().write(true).open(self.path.join("lock"));
        file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// Like [`Home::lock`], but tries again while another process holds the lock: a command that ends soon, or a host that
    /// stops. `again` waits a moment and says whether to try again.
    ///
    /// # Errors
    /// When another process still holds it.
    pub fn lock_patiently(&self, mut again: impl FnMut() -> bool) -> Result<Lock, HomeError> {
        loop {
            match self.lock() {
                Err(HomeError::Locked(_)) if again() => {}
                locked => return locked,
            }
        }
    }

    /// The folder itself.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The folder that libraries are dropped into.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.path.join("plugins")
    }

    /// Identities, states, the audit trail.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join("store.db")
    }

    /// Settings.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("credhost.toml")
    }

    /// The key that verifiers are sealed under.
    #[must_use]
    pub fn master_key(&self) -> PathBuf {
        self.path.join("master.key")
    }

    /// Certificates that `credhost tls init` has made.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// The files of the certificate and its key.
    #[must_use]
    pub fn certificates(&self, section: &TlsSection) -> Vec<(PathBuf, PathBuf)> {
        let file = |named: &Option<String>, made: &str| match named {
            Some(named) => self.path.join(named),
            None => self.tls().join(made),
        };
        let others = section.others.iter().map(|one| (self.path.join(&one.certificate), self.path.join(&one.key)));
        let first = (file(&section.certificate, "cert.pem"), file(&section.key, "key.pem"));
        std::iter::once(first).chain(others).collect()
    }

    /// Where a running host is spoken to.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// Copies of the libraries that served last, and of those before them.
    #[must_use]
    pub fn good(&self) -> PathBuf {
        self.path.join("good")
    }

    /// Where libraries are opened from.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.path.join("generations")
    }
}
