//! The simplest authorizer: identities in memory.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::RwLock;

use super::authorizer::{Answer, Authorizer};
use super::error::{DuplicateIdentity, NoSuchIdentity};
use super::identity::Identity;
use super::login_change::{LoginChange, LoginChanged};
use super::name::Name;
use super::token::TokenDigest;

/// Identities in memory, by name.
///
/// In Twisted: `twisted.cred.authorizer.DefaultAuthorizer`.
#[derive(Debug, Default)]
pub struct DefaultAuthorizer {
    identities: RwLock<BTreeMap<Name, Arc<Identity>>>,
}

impl DefaultAuthorizer {
    /// Creates an authorizer without identities.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds an identity.
    ///
    /// # Errors
    /// If there is an identity of this name already.
    pub fn add(&self, identity: Identity) -> Result<(), DuplicateIdentity> {
        let mut identities = self.identities.write();
        if identities.contains_key(&identity.name) {
            return Err(DuplicateIdentity(identity.name.to_string()));
        }
        identities.insert(identity.name.clone(), Arc::new(identity));
        Ok(())
    }

    /// Changes an identity. Sessions that are logged in see the change at their next attach.
    ///
    /// # Errors
    /// If there is no identity of this name.
    pub fn update<R>(&self, name: &str, change: impl FnOnce(&mut Identity) -> R) -> Result<R, NoSuchIdentity> {
        let mut identities = self.identities.write();
        let identity = identities.get_mut(name).ok_or_else(|| NoSuchIdentity(name.to_owned()))?;
        Ok(change(Arc::make_mut(identity)))
    }

    /// Removes an identity. Sessions that are logged in continue, but cannot attach to anything more.
    ///
    /// # Errors
    /// If there is no identity of this name.
    pub fn remove(&self, name: &str) -> Result<(), NoSuchIdentity> {
        self.identities.write().remove(name).map(drop).ok_or_else(|| NoSuchIdentity(name.to_owned()))
    }

    /// Returns the identity of this name.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<Arc<Identity>> {
        self.identities.read().get(name).cloned()
    }

    /// Returns all identities, sorted by name.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<Identity>> {
        self.identities.read().values().cloned().collect()
    }

    /// Replaces all identities by these.
    pub fn replace(&self, identities: impl IntoIterator<Item = Identity>) {
        *self.identities.write() =
            identities.into_iter().map(|identity| (identity.name.clone(), Arc::new(identity))).collect();
    }
}

impl Authorizer for DefaultAuthorizer {
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>> {
        Box::pin(std::future::ready(Ok(self.get(name))))
    }

    fn bearer<'a>(&'a self, token: &'a TokenDigest) -> Answer<'a, Option<Arc<Identity>>> {
        let has = |identity: &&Arc<Identity>| {
            identity.credentials.iter().any(|credential| credential.proof.digest() == Some(token))
        };
        Box::pin(std::future::ready(Ok(self.identities.read().values().find(has).cloned())))
    }

    fn remember<'a>(&'a self, name: &'a str, change: &'a LoginChange, now: u64) -> Answer<'a, Option<LoginChanged>> {
        let changed = self.update(name, |identity| identity.change_login(change, now));
        Box::pin(std::future::ready(Ok(changed.ok().flatten())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_can_be_added_only_once() {
        let authorizer = DefaultAuthorizer::new();
        authorizer.add(Identity::new("joe").unwrap()).unwrap();
        let again = authorizer.add(Identity::new("joe").unwrap()).unwrap_err();
        assert_eq!(again.to_string(), "There is already an identity named joe.");
        authorizer.remove("joe").unwrap();
        assert_eq!(authorizer.remove("joe"), Err(NoSuchIdentity("joe".to_owned())));
    }
}
