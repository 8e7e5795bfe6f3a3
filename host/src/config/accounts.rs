//! Identities in `credhost.toml`, and the same in memory for those who log in.

use std::sync::Arc;

use parking_lot::Mutex;

use super::file::{ConfigError, ConfigFile, Settings};
use super::home::{Home, HomeError};
use super::key::{entropy, master_key};
use crate::cred::{
    CredentialError, DefaultAuthorizer, DuplicateIdentity, Identity, Key, MasterKey, NameError, NoSuchIdentity,
    Password, PasswordRules,
};

/// The identities of a home.
#[derive(Debug)]
pub struct Accounts {
    home: Home,
    key: MasterKey,
    rules: PasswordRules,
    authorizer: Arc<DefaultAuthorizer>,
    /// One change at a time.
    turn: Mutex<()>,
}

/// Why identities cannot be read or changed.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is what the error in it says")]
pub enum AccountError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Duplicate(#[from] DuplicateIdentity),
    #[error(transparent)]
    Missing(#[from] NoSuchIdentity),
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("{0} has no key for service {1}, perspective {2}")]
    NoKey(String, String, String),
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Accounts {
    /// Reads the identities of a home; makes its files where they are missing.
    ///
    /// # Errors
    /// When its files cannot be read, or others can read them.
    pub fn open(home: &Home) -> Result<(Self, Settings), AccountError> {
        let key = master_key(home)?;
        let file = ConfigFile::open(&home.config())?;
        let settings = file.settings()?;
        let authorizer = Arc::new(DefaultAuthorizer::new());
        authorizer.replace(file.identities()?);
        let rules = PasswordRules { shortest: settings.password.shortest };
        Ok((Self { home: home.clone(), key, rules, authorizer, turn: Mutex::new(()) }, settings))
    }

    /// Who keeps them in memory.
    #[must_use]
    pub fn authorizer(&self) -> &Arc<DefaultAuthorizer> {
        &self.authorizer
    }

    /// The key that verifiers are sealed under.
    #[must_use]
    pub fn key(&self) -> &MasterKey {
        &self.key
    }

    /// Adds an identity; without a password, nobody can log in as it yet.
    ///
    /// # Errors
    /// When its name is taken or none, or the password is not good enough.
    pub fn add(&self, name: &str, password: Option<&Password>) -> Result<(), AccountError> {
        let mut identity = Identity::new(name)?;
        self.set_password(&mut identity, password)?;
        self.edit(|file, identities| {
            if identities.iter().any(|other| other.name == identity.name) {
                return Err(DuplicateIdentity(identity.name.to_string()).into());
            }
            file.put(&identity);
            Ok(())
        })
    }

    /// Sets an identity's password, or takes it away.
    ///
    /// # Errors
    /// When there is no such identity, or the password is not good enough.
    pub fn password(&self, name: &str, password: Option<&Password>) -> Result<(), AccountError> {
        // Hashed outside of the turn: it takes a while.
        let mut with = Identity::new(name)?;
        self.set_password(&mut with, password)?;
        self.change(name, |identity| {
            identity.password = with.password;
            identity.verifier = with.verifier;
            Ok(())
        })
    }

    /// Removes an identity with its keys.
    ///
    /// # Errors
    /// When there is none of this name.
    pub fn remove(&self, name: &str) -> Result<(), AccountError> {
        self.edit(|file, identities| {
            let found = identities.iter().find(|identity| identity.name.as_str() == name);
            let name = found.ok_or_else(|| NoSuchIdentity(name.to_owned()))?.name.clone();
            file.take(name.as_str());
            Ok(())
        })
    }

    /// Adds a key; false if it was there.
    ///
    /// # Errors
    /// When there is no such identity, or a name is none.
    pub fn key_add(&self, name: &str, key: Key) -> Result<bool, AccountError> {
        let mut added = false;
        self.change(name, |identity| {
            added = identity.keyring.add(key);
            Ok(())
        })?;
        Ok(added)
    }

    /// Removes a key.
    ///
    /// # Errors
    /// When there is no such identity, or it has no such key.
    pub fn key_remove(&self, name: &str, key: &Key) -> Result<(), AccountError> {
        self.change(name, |identity| {
            if identity.keyring.remove(key) {
                return Ok(());
            }
            Err(AccountError::NoKey(name.to_owned(), key.service.to_string(), key.perspective.to_string()))
        })
    }

    fn set_password(&self, identity: &mut Identity, password: Option<&Password>) -> Result<(), AccountError> {
        match password {
            Some(password) => {
                self.rules.check(password)?;
                identity.set_password(password, &self.key, &entropy()?)?;
            }
            None => identity.clear_password(),
        }
        Ok(())
    }

    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&mut Identity) -> Result<(), AccountError>,
    ) -> Result<(), AccountError> {
        self.edit(|file, mut identities| {
            let found = identities.iter_mut().find(|identity| identity.name.as_str() == name);
            let identity = found.ok_or_else(|| NoSuchIdentity(name.to_owned()))?;
            change(identity)?;
            file.put(identity);
            Ok(())
        })
    }

    /// Changes the file as it is now, then the memory: what a person has edited meanwhile is kept.
    fn edit(
        &self,
        edit: impl FnOnce(&mut ConfigFile, Vec<Identity>) -> Result<(), AccountError>,
    ) -> Result<(), AccountError> {
        let _turn = self.turn.lock();
        let mut file = ConfigFile::open(&self.home.config())?;
        let identities = file.identities()?;
        edit(&mut file, identities)?;
        let identities = file.identities()?;
        file.save()?;
        self.authorizer.replace(identities);
        Ok(())
    }
}
