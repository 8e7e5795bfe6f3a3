//! The home folder of one host. Only its owner can read it.

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

/// Held by the only process that uses a home folder.
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

    /// Creates the folder and its folder for services, if they are missing. Checks that nobody else can read them.
    ///
    /// # Errors
    /// If it cannot be created, or others can read it.
    pub fn make(&self) -> Result<(), HomeError> {
        for folder in [self.path.clone(), self.plugins()] {
            let made = DirBuilder::new().recursive(true).mode(0o700).create(&folder);
            made.map_err(|error| HomeError::Io { path: folder, error })?;
        }
        self.check()
    }

    /// Checks that the folder exists, and that nobody else can read it.
    ///
    /// # Errors
    /// If it does not exist, or others can read it.
    pub fn check(&self) -> Result<(), HomeError> {
        if !self.path.is_dir() {
            return Err(HomeError::Missing(self.path.clone()));
        }
        private(&self.path, 0o700)
    }

    /// Locks the folder for this process.
    ///
    /// # Errors
    /// If another process holds the lock.
    pub fn lock(&self) -> Result<Lock, HomeError> {
        let path = self.path.join("lock");
        let file = OpenOptions::new().create(true).truncate(false).write(true).mode(0o600).open(&path);
        let file = file.map_err(|error| HomeError::Io { path, error })?;
        match flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => Ok(Lock { _file: file }),
            Err(_) => Err(HomeError::Locked(self.path.clone())),
        }
    }

    /// Whether a host or a command holds the lock. This creates no files.
    #[must_use]
    pub fn is_locked(&self) -> bool {
        let file = OpenOptions::new().write(true).open(self.path.join("lock"));
        file.is_ok_and(|file| flock(&file, FlockOperation::NonBlockingLockExclusive).is_err())
    }

    /// As [`Home::lock`], but tries again while another process holds the lock: a command that ends soon, or a host
    /// that stops. `again` waits a moment and returns whether to try again.
    ///
    /// # Errors
    /// If another process still holds it.
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

    /// The file with identities, states and the audit trail.
    #[must_use]
    pub fn store(&self) -> PathBuf {
        self.path.join("store.db")
    }

    /// The file with the settings.
    #[must_use]
    pub fn config(&self) -> PathBuf {
        self.path.join("credhost.toml")
    }

    /// The key that verifiers are sealed under.
    #[must_use]
    pub fn master_key(&self) -> PathBuf {
        self.path.join("master.key")
    }

    /// The folder for certificates that `credhost tls init` creates.
    #[must_use]
    pub fn tls(&self) -> PathBuf {
        self.path.join("tls")
    }

    /// The files of the certificates and their keys.
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

    /// The control socket of a running host.
    #[must_use]
    pub fn control(&self) -> PathBuf {
        self.path.join("control.sock")
    }

    /// The folder for copies of the libraries that served last, and of those before them.
    #[must_use]
    pub fn good(&self) -> PathBuf {
        self.path.join("good")
    }

    /// The folder that libraries are opened from.
    #[must_use]
    pub fn private(&self) -> PathBuf {
        self.path.join("generations")
    }
}
