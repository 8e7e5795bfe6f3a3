//! Who somebody is.

use super::credential::{Entropy, MasterKey, Password, Sealed};
use super::error::CredentialError;
use super::keyring::Keyring;
use super::name::{Name, NameError, NameOf};

/// A person, or a program, that can log in: what is known of it that belongs to no service.
///
/// In the original: `twisted.cred.identity.Identity`. Plain data here: it is kept by an
/// [`Authorizer`](super::Authorizer), which it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Its name.
    pub name: Name,
    /// Whether it may log in at all.
    pub enabled: bool,
    /// The argon2id hash of its password, a PHC string; `None`: it has no password.
    pub password: Option<String>,
    /// md5 of its password, sealed: for the stock PB login.
    pub verifier: Option<Sealed>,
    /// What it may get.
    pub keyring: Keyring,
}

impl Identity {
    /// An identity without password and keys: nobody can log in as it.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Ok(Self {
            name: Name::new(NameOf::Identity, name)?,
            enabled: true,
            password: None,
            verifier: None,
            keyring: Keyring::default(),
        })
    }

    /// Sets the password: its hash, and its sealed verifier for the stock PB login. Takes tens of milliseconds.
    ///
    /// # Errors
    /// When it cannot be hashed; the old password then stays.
    pub fn set_password(
        &mut self,
        password: &Password,
        key: &MasterKey,
        entropy: &Entropy,
    ) -> Result<(), CredentialError> {
        self.password = Some(password.hash(&entropy.salt)?);
        self.verifier = Some(password.verifier().seal(key, self.name.as_str(), &entropy.nonce));
        Ok(())
    }

    /// Takes the password away: nobody can log in with one.
    pub fn clear_password(&mut self) {
        self.password = None;
        self.verifier = None;
    }
}
