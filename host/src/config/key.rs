//! Randomness, and the file `master.key`.

use std::fs::{self, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;

use zeroize::Zeroizing;

use super::home::Home;
use super::private::{HomeError, private};
use crate::cred::{Entropy, MasterKey};

/// Returns random bytes from the system.
///
/// # Errors
/// If the system provides none.
pub fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(|error| io::Error::other(format!("no randomness: {error}")))?;
    Ok(bytes)
}

/// Returns random bytes for one password.
///
/// # Errors
/// If the system provides none.
pub fn entropy() -> io::Result<Entropy> {
    Ok(Entropy { salt: random()?, nonce: random()? })
}

/// Returns the home's master key. Creates it if neither the key nor a store exists.
///
/// # Errors
/// If it cannot be read or created, others can read it, or it is not a key.
pub fn master_key(home: &Home) -> Result<MasterKey, HomeError> {
    let path = home.master_key();
    let failed = |error| HomeError::Io { path: path.clone(), error };
    if !path.exists() && !home.store().exists() {
        let bytes = Zeroizing::new(random::<32>().map_err(failed)?);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path).map_err(failed)?;
        file.write_all(bytes.as_slice()).and_then(|()| file.sync_all()).map_err(failed)?;
    }
    existing_key(home)
}

/// Returns the home's master key.
///
/// # Errors
/// If there is none, it cannot be read, others can read it, or it is not a key.
pub fn existing_key(home: &Home) -> Result<MasterKey, HomeError> {
    let path = home.master_key();
    let failed = |error| HomeError::Io { path: path.clone(), error };
    if !path.exists() {
        return Err(HomeError::NoKey(path));
    }
    private(&path, 0o600)?;
    let bytes = Zeroizing::new(fs::read(&path).map_err(failed)?);
    let parts: Vec<Zeroizing<[u8; 32]>> = bytes.as_chunks::<32>().0.iter().map(|part| Zeroizing::new(*part)).collect();
    if parts.is_empty() || bytes.len() % 32 != 0 {
        return Err(failed(io::Error::other("it is not 32 bytes long; restore it from a backup")));
    }
    Ok(MasterKey::of_parts(parts))
}

/// Replaces the bytes of the key file, completely or not at all.
///
/// # Errors
/// If it cannot be written. It is then unchanged.
pub fn write_key(home: &Home, bytes: &[u8]) -> Result<(), HomeError> {
    let path = home.master_key();
    let failed = |error| HomeError::Io { path: path.clone(), error };
    let new = path.with_extension("key.new");
    let mut file = OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(&new).map_err(failed)?;
    file.write_all(bytes).and_then(|()| file.sync_all()).map_err(failed)?;
    fs::rename(&new, &path).map_err(failed)?;
    fs::File::open(home.path()).and_then(|folder| folder.sync_all()).map_err(failed)
}
