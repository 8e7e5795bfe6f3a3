//! Files that only their owner may read.

use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::{fs, io};

/// Why a home folder cannot be used.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HomeError {
    /// It does not exist.
    #[error("there is no home folder {0}; `credhost run` or `credhost demo` creates it")]
    Missing(PathBuf),
    /// It cannot be created or read.
    #[error("the home folder {path} cannot be used: {error}")]
    Io {
        /// The path.
        path: PathBuf,
        /// The error.
        error: io::Error,
    },
    /// Others could read or change it.
    #[error("other users can access {path} (mode {mode:o}); it holds secrets: run `chmod {wanted:o} {path}`")]
    Open {
        /// The path.
        path: PathBuf,
        /// Its mode.
        mode: u32,
        /// The required mode.
        wanted: u32,
    },
    /// It belongs to another user.
    #[error("{0} belongs to another user; run credhost as that user")]
    Owner(PathBuf),
    /// The key of its store is missing.
    #[error("{0} is missing: only this key decrypts the secrets in the store; restore it from its backup")]
    NoKey(PathBuf),
    /// Another process uses it.
    #[error("another credhost uses {0}; stop it first")]
    Locked(PathBuf),
}

/// Checks that a file or folder belongs to this user, and that nobody else can use it.
///
/// # Errors
/// If it does not, or others can.
pub fn private(path: &Path, wanted: u32) -> Result<(), HomeError> {
    let about = fs::metadata(path).map_err(|error| HomeError::Io { path: path.to_owned(), error })?;
    if about.uid() != rustix::process::geteuid().as_raw() {
        return Err(HomeError::Owner(path.to_owned()));
    }
    let mode = about.mode() & 0o777;
    if mode & 0o077 != 0 {
        return Err(HomeError::Open { path: path.to_owned(), mode, wanted });
    }
    Ok(())
}
