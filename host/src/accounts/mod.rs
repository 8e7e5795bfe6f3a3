//! Operations on identities: they apply the rules for passwords, change the store, write into the audit trail, and
//! notify the sessions that are logged in.
//!
//! All of them may block, since they wait for the disk and hash passwords. Do not call them on a thread that serves.

pub mod foreign;
mod import;
mod open;

use std::sync::{Arc, OnceLock};

pub use import::{Import, Imported};
use parking_lot::{Mutex, RwLock};
use unicode_normalization::UnicodeNormalization;

use crate::config::{ConfigError, HomeError, entropy, random};
use crate::cred::{
    Credential, CredentialError, DuplicateIdentity, HashCost, Identity, Key, LabelError, MasterKey, Name, NameError,
    NameOf, NoSuchIdentity, Password, PasswordRules, ProofBy, PublicKey, Sealed, StoreSecret, Token, check_label,
};
use crate::store::audit::Event;
use crate::store::{Kept, OpenError, RecordError, Store, StoreAuthorizer, StoreError, Write, now, wait};
use zeroize::Zeroizing;

/// The number of identities that are searched for the nearest name. A million would take seconds.
const LOOKED_AT: usize = 20_000;

/// The callback for changes to an identity. It receives the name, and the identity if it still exists.
pub type OnChange = Box<dyn Fn(&str, Option<&Arc<Identity>>) -> bool + Send + Sync>;

/// The identities of a home. Clones share them.
#[derive(Clone)]
pub struct Accounts {
    store: Arc<dyn Store>,
    key: MasterKey,
    rules: PasswordRules,
    cost: HashCost,
    /// Whether the stock PB login is enabled, and its verifiers are stored.
    stock: bool,
    changed: Arc<OnceLock<OnChange>>,
    /// Held for reading while something is sealed and committed. Once it is held for writing, everything sealed before
    /// is committed.
    sealing: Arc<RwLock<()>>,
    /// Held while the master key is replaced.
    rotating: Arc<Mutex<()>>,
    /// The actor, for the audit trail.
    by: String,
    home: crate::config::Home,
}

impl std::fmt::Debug for Accounts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Accounts").field("home", &self.home).finish_non_exhaustive()
    }
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
    Open(#[from] OpenError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Name(#[from] NameError),
    #[error(transparent)]
    Duplicate(#[from] DuplicateIdentity),
    #[error("{missing}")]
    Missing {
        missing: NoSuchIdentity,
        /// A similar existing name.
        nearest: Option<String>,
    },
    #[error(transparent)]
    Credential(#[from] CredentialError),
    #[error("{0} was changed, but a connection still has access that it should have lost; see `credhost session list`")]
    StillConnected(String),
    #[error("{0} has no key for service {1}, perspective {2}")]
    NoKey(String, String, String),
    #[error("{0} has no {1} {2:?}")]
    NoCredential(String, &'static str, String),
    #[error("{0} has a {1} {2:?} already")]
    LabelTaken(String, &'static str, String),
    #[error("{0} has this key already, as {1:?}")]
    SameKey(String, String),
    #[error("{0}")]
    Record(#[from] RecordError),
    #[error(transparent)]
    Label(#[from] LabelError),
    #[error("master.key is being replaced already")]
    Rotating,
    #[error(transparent)]
    Io(#[from] std::io::Error),
}

impl Accounts {
    /// The home that they belong to.
    #[must_use]
    pub fn home(&self) -> &crate::config::Home {
        &self.home
    }

    /// The store that has them.
    #[must_use]
    pub fn store(&self) -> &Arc<dyn Store> {
        &self.store
    }

    /// The authorizer that looks them up for logins.
    #[must_use]
    pub fn authorizer(&self) -> StoreAuthorizer {
        StoreAuthorizer::new(Arc::clone(&self.store))
    }

    /// The key that verifiers are sealed under.
    #[must_use]
    pub fn key(&self) -> &MasterKey {
        &self.key
    }

    /// The actor of these operations, for the audit trail.
    #[must_use]
    pub fn by(&self) -> &str {
        &self.by
    }

    /// The same accounts, for operations by another actor.
    #[must_use]
    pub fn on_behalf(&self, by: &str) -> Self {
        Self { by: by.to_owned(), ..self.clone() }
    }

    /// The cost of hashing a password.
    #[must_use]
    pub fn cost(&self) -> HashCost {
        self.cost
    }

    /// The rules for new passwords.
    #[must_use]
    pub fn rules(&self) -> &PasswordRules {
        &self.rules
    }

    /// The secret from which the store's other keys are derived.
    #[must_use]
    pub fn secret(&self) -> &StoreSecret {
        self.store.secret()
    }

    /// Sets the callback for changes.
    pub fn on_change(&self, changed: OnChange) {
        // Only the first one is kept.
        let _ = self.changed.set(changed);
    }

    /// Returns the identity of this name.
    ///
    /// # Errors
    /// If there is none, or the store cannot be read.
    pub fn get(&self, name: &str) -> Result<Arc<Identity>, AccountError> {
        Ok(self.kept(name)?.identity)
    }

    fn kept(&self, name: &str) -> Result<Kept, AccountError> {
        // All spellings of a name are the same, as for logins.
        let normal: String = name.nfc().collect();
        let found = wait(|done| self.store.identity(&normal, done))?;
        found.ok_or_else(|| AccountError::Missing {
            missing: NoSuchIdentity(name.to_owned()),
            nearest: self.nearest(&normal).unwrap_or_default(),
        })
    }

    /// Returns the existing name that is most similar to an unknown one, among the first 20,000.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn nearest(&self, name: &str) -> Result<Option<String>, AccountError> {
        const PAGE: usize = 1000;
        let (mut nearest, mut after) = (None::<String>, None::<String>);
        for _ in 0..LOOKED_AT / PAGE {
            let page = self.page(after.as_deref(), PAGE)?;
            let names = page.iter().map(|identity| identity.name.as_str()).chain(nearest.as_deref());
            nearest = crate::nearest::nearest(name, names);
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.name.to_string()),
                _ => break,
            }
        }
        Ok(nearest)
    }

    /// Returns identities, sorted by name: at most `limit` of those after this name.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub fn page(&self, after: Option<&str>, limit: usize) -> Result<Vec<Arc<Identity>>, AccountError> {
        let page = wait(|done| self.store.identities(after, limit, done))?;
        Ok(page.into_iter().map(|kept| kept.identity).collect())
    }

    /// Adds an identity. Without a password, it cannot log in with one yet.
    ///
    /// # Errors
    /// If its name is taken or invalid, or the password fails the rules.
    pub fn add(&self, name: &str, password: Option<&Password>) -> Result<(), AccountError> {
        Name::chosen(NameOf::Identity, name)?;
        let mut identity = Identity::new(name)?;
        let _sealing = self.sealing.read();
        if let Some(password) = password {
            self.put_password(&mut identity, password, "password")?;
        }
        let event = self.event("identity.added", identity.name.as_str());
        self.insert(identity, event)
    }

    /// Adds an identity without checking it.
    ///
    /// # Errors
    /// If its name is taken.
    pub fn insert(&self, identity: Identity, event: Event) -> Result<(), AccountError> {
        let identity = Arc::new(identity);
        let write = Write::Identity { identity: Arc::clone(&identity), base: 0 };
        match wait(|done| self.store.commit(vec![write, Write::Audit(event)], done)) {
            Err(StoreError::Conflict(_)) => Err(DuplicateIdentity(identity.name.to_string()).into()),
            other => Ok(other?),
        }
    }

    /// Sets a password: it replaces those with this label, or, without a label, all passwords.
    ///
    /// # Errors
    /// If there is no such identity, or the password fails the rules.
    pub fn password(&self, name: &str, password: &Password, label: Option<&str>) -> Result<(), AccountError> {
        self.rules.check(name, password)?;
        label.map_or(Ok(()), check_label)?;
        // Hashed beforehand, since it takes time. The salt is that of the identity's other passwords.
        let salt = self.get(name)?.salt();
        let hash = self.hash(password, salt)?;
        let event = self.event("identity.password", name).with("label", label.unwrap_or("password"));
        let _sealing = self.sealing.read();
        self.change(name, event, |identity| {
            match label {
                None => identity.clear_passwords(),
                Some(label) => identity
                    .credentials
                    .retain(|has| has.label != label || !matches!(has.proof, ProofBy::Password { .. })),
            }
            let proof = self.password_proof(identity.name.as_str(), password, hash.clone())?;
            identity.add(proof, label.unwrap_or("password"), now(), None);
            Ok(())
        })
    }

    /// Removes passwords: the one with this label, or all.
    ///
    /// # Errors
    /// If there is no such identity, or it has no password with this label.
    pub fn clear_password(&self, name: &str, label: Option<&str>) -> Result<(), AccountError> {
        if let Some(label) = label {
            return self.credential_remove(name, "password", label);
        }
        self.change(name, self.event("identity.password", name).with("cleared", true), |identity| {
            identity.clear_passwords();
            Ok(())
        })
    }

    /// Enables or disables an identity. A disabled identity is logged out everywhere immediately.
    ///
    /// # Errors
    /// If there is no identity of this name.
    pub fn enable(&self, name: &str, enabled: bool) -> Result<(), AccountError> {
        let what = if enabled { "identity.enabled" } else { "identity.disabled" };
        self.change(name, self.event(what, name), |identity| {
            if enabled && !identity.enabled {
                // Old remembered logins are not revived.
                identity.drop_logins(now());
            }
            identity.enabled = enabled;
            Ok(())
        })
    }

    /// Removes an identity with its keys, and logs it out everywhere immediately. States stay.
    ///
    /// # Errors
    /// If there is no identity of this name.
    pub fn remove(&self, name: &str) -> Result<(), AccountError> {
        loop {
            let kept = self.kept(name)?;
            let writes = vec![
                Write::Remove { name: kept.identity.name.to_string(), base: kept.version },
                Write::Audit(self.event("identity.removed", name)),
            ];
            match wait(|done| self.store.commit(writes, done)) {
                Err(StoreError::Conflict(_)) => {}
                other => {
                    other?;
                    self.notify(kept.identity.name.as_str(), None)?;
                    return Ok(());
                }
            }
        }
    }

    /// Adds a key. Returns false if it was there already.
    ///
    /// # Errors
    /// If there is no such identity, or a name is invalid.
    pub fn key_add(&self, name: &str, key: &Key) -> Result<bool, AccountError> {
        Name::chosen(NameOf::Service, key.service.as_str())?;
        if key.perspective.as_str() != name {
            Name::chosen(NameOf::Perspective, key.perspective.as_str())?;
        }
        let mut added = false;
        self.change(name, key_event(self.event("key.added", name), key), |identity| {
            added = identity.keyring.add(key.clone());
            Ok(())
        })?;
        Ok(added)
    }

    /// Removes a key. References that came by it die immediately.
    ///
    /// # Errors
    /// If there is no such identity, or it has no such key.
    pub fn key_remove(&self, name: &str, key: &Key) -> Result<(), AccountError> {
        self.change(name, key_event(self.event("key.removed", name), key), |identity| {
            if identity.keyring.remove(key) {
                return Ok(());
            }
            Err(AccountError::NoKey(name.to_owned(), key.service.to_string(), key.perspective.to_string()))
        })
    }

    /// Adds an SSH public key, given as a line as in `id_ed25519.pub`. Returns its label, which is the line's comment
    /// by default.
    ///
    /// # Errors
    /// If there is no such identity, the line is not a key, or the label is taken.
    pub fn pubkey_add(
        &self,
        name: &str,
        line: &str,
        label: Option<&str>,
        expires: Option<u64>,
    ) -> Result<String, AccountError> {
        let (key, comment) = PublicKey::parse(line)?;
        let fingerprint = key.fingerprint();
        let label = label.map_or(if comment.is_empty() { fingerprint.clone() } else { comment }, str::to_owned);
        let event = self.event("pubkey.added", name).with("label", label.clone()).with("fingerprint", fingerprint);
        self.credential_add(name, ProofBy::PublicKey(key), &label, expires, event)?;
        Ok(label)
    }

    /// Creates an access token. Its text is returned only here: the store has only a digest.
    ///
    /// # Errors
    /// If there is no such identity, or the label is taken.
    pub fn token_new(&self, name: &str, label: &str, expires: Option<u64>) -> Result<Token, AccountError> {
        let token = Token::new(&random()?);
        let event = self.event("token.added", name).with("label", label).with("expires", expires);
        self.credential_add(name, ProofBy::Token(token.digest()), label, expires, event)?;
        Ok(token)
    }

    fn credential_add(
        &self,
        name: &str,
        proof: ProofBy,
        label: &str,
        expires: Option<u64>,
        event: Event,
    ) -> Result<(), AccountError> {
        let kind = proof.kind();
        check_label(label)?;
        let added = self.change(name, event, |identity| {
            if let Some(same) = identity.credentials.iter().find(|credential| credential.proof.is_same(&proof)) {
                return Err(AccountError::SameKey(name.to_owned(), same.label.clone()));
            }
            if find(identity, kind, label).is_some() {
                return Err(AccountError::LabelTaken(name.to_owned(), kind, label.to_owned()));
            }
            identity.add(proof.clone(), label, now(), expires);
            Ok(())
        });
        match added {
            // It is added, and nothing was taken away that a connection could still have.
            Err(AccountError::StillConnected(_)) => Ok(()),
            added => added,
        }
    }

    /// Removes a credential, by its kind ("password", "pubkey", "token") and its label or number. Sessions that logged
    /// in with it are logged out immediately.
    ///
    /// # Errors
    /// If there is no such identity, or it has no such credential.
    pub fn credential_remove(&self, name: &str, kind: &'static str, label: &str) -> Result<(), AccountError> {
        let event = self.event("credential.removed", name).with("kind", kind).with("label", label);
        self.change(name, event, |identity| {
            let id = find(identity, kind, label).map(|credential| credential.id);
            let id = id.ok_or_else(|| AccountError::NoCredential(name.to_owned(), kind, label.to_owned()))?;
            identity.credentials.retain(|credential| credential.id != id);
            Ok(())
        })
    }

    /// Removes all remembered logins of an identity, and logs out their sessions immediately. Returns their labels.
    ///
    /// # Errors
    /// If there is no such identity.
    pub fn forget_logins(&self, name: &str) -> Result<Vec<String>, AccountError> {
        let mut forgotten = Vec::new();
        self.change(name, self.event("login.forgotten", name).with("why", "all were ended"), |identity| {
            let is = |credential: &mut Credential| matches!(credential.proof, ProofBy::Login(_));
            forgotten = identity.credentials.extract_if(.., is).map(|credential| credential.label).collect();
            Ok(())
        })?;
        Ok(forgotten)
    }

    /// Writes a line into the audit trail, without waiting for it.
    pub fn note(&self, event: Event) {
        self.store.commit(
            vec![Write::Audit(event)],
            Box::new(|done| {
                if let Err(error) = done {
                    tracing::error!(%error, "the audit trail cannot be written");
                }
            }),
        );
    }

    /// Creates an event about an identity, by the current actor.
    #[must_use]
    pub fn event(&self, what: &'static str, name: &str) -> Event {
        Event::new(what).with("identity", name).with("by", self.by.clone())
    }

    fn hash(&self, password: &Password, salt: Option<Vec<u8>>) -> Result<String, AccountError> {
        let salt = match salt {
            Some(salt) => salt,
            None => random::<16>()?.to_vec(),
        };
        Ok(password.hash(self.cost, &salt)?)
    }

    fn password_proof(&self, name: &str, password: &Password, hash: String) -> Result<ProofBy, AccountError> {
        let verifier = match self.stock {
            true => Some(password.verifier().seal(&self.key, name, &entropy()?.nonce)),
            false => None,
        };
        Ok(ProofBy::Password { hash, verifier })
    }

    fn put_password(&self, identity: &mut Identity, password: &Password, label: &str) -> Result<(), AccountError> {
        let name = identity.name.to_string();
        self.rules.check(&name, password)?;
        let hash = self.hash(password, identity.salt())?;
        let proof = self.password_proof(&name, password, hash)?;
        identity.add(proof, label, now(), None);
        Ok(())
    }

    /// Changes an identity, and tries again if another caller has changed it meanwhile.
    fn change(
        &self,
        name: &str,
        event: Event,
        mut change: impl FnMut(&mut Identity) -> Result<(), AccountError>,
    ) -> Result<(), AccountError> {
        loop {
            let kept = self.kept(name)?;
            let mut identity = Identity::clone(&kept.identity);
            change(&mut identity)?;
            if identity == *kept.identity {
                return Ok(());
            }
            identity.drop_logins(now());
            let identity = Arc::new(identity);
            let write = Write::Identity { identity: Arc::clone(&identity), base: kept.version };
            match wait(|done| self.store.commit(vec![write, Write::Audit(event.clone())], done)) {
                Err(StoreError::Conflict(_)) => {}
                other => {
                    other?;
                    return self.notify(identity.name.as_str(), Some(&identity));
                }
            }
        }
    }

    /// Waits until all sessions of this identity have lost the access that was revoked.
    fn notify(&self, name: &str, identity: Option<&Arc<Identity>>) -> Result<(), AccountError> {
        match self.changed.get() {
            Some(changed) if !changed(name, identity) => Err(AccountError::StillConnected(name.to_owned())),
            _ => Ok(()),
        }
    }

    /// Replaces `master.key` by a new key, and seals everything again under it. The old key then opens nothing. An
    /// interrupted replacement can be continued. `progress` is called with the number of identities that are done.
    ///
    /// # Errors
    /// If it is being replaced already, or the key's file or the store cannot be written. Both keys are then kept.
    pub fn rotate_key(&self, mut progress: impl FnMut(u64)) -> Result<u64, AccountError> {
        let _rotating = self.rotating.try_lock().ok_or(AccountError::Rotating)?;
        // An interrupted replacement has already added a new part.
        if self.key.parts() == 1 {
            let new = Zeroizing::new(random()?);
            // It must be on disk first: nothing may be sealed under a key that only this process knows.
            crate::config::write_key(&self.home, &self.key.bytes_with(&new))?;
            self.key.replace_by(*new);
        }
        // Everything sealed under the old part is now committed, and found below.
        drop(self.sealing.write());
        self.store.reseal(&self.key, &random()?)?;
        let resealed = self.walk(&mut progress, |identity| {
            let name = identity.name.to_string();
            for credential in &mut identity.credentials {
                if let ProofBy::Password { verifier: Some(verifier), .. } = &mut credential.proof {
                    match verifier.reseal(&self.key, &name, &entropy()?.nonce) {
                        Ok(resealed) => *verifier = resealed,
                        // It cannot be opened now, so nothing is lost.
                        Err(error) => {
                            tracing::warn!(name, %error, "the secret for Twisted's own login cannot be re-encrypted")
                        }
                    }
                }
            }
            Ok(())
        })?;
        let event = Event::new("master-key.replaced").with("by", self.by.clone()).with("identities", resealed);
        wait(|done| self.store.commit(vec![Write::Audit(event)], done))?;
        crate::config::write_key(&self.home, &self.key.newest())?;
        self.key.forget_old();
        Ok(resealed)
    }

    /// Erases the verifiers for the stock PB login, if that login is disabled. Returns the number of identities that
    /// had one.
    ///
    /// # Errors
    /// If the store cannot be written.
    pub fn erase_verifiers(&self) -> Result<u64, AccountError> {
        if self.stock {
            return Ok(0);
        }
        let erased = self.walk(&mut |_| {}, |identity| {
            for credential in &mut identity.credentials {
                if let ProofBy::Password { verifier, .. } = &mut credential.proof {
                    *verifier = None::<Sealed>;
                }
            }
            Ok(())
        })?;
        if erased > 0 {
            let event = Event::new("verifiers.erased").with("by", self.by.clone()).with("identities", erased);
            wait(|done| self.store.commit(vec![Write::Audit(event)], done))?;
        }
        Ok(erased)
    }

    /// Changes all identities, in batches. Returns the number of those that changed.
    fn walk(
        &self,
        progress: &mut dyn FnMut(u64),
        change: impl Fn(&mut Identity) -> Result<(), AccountError>,
    ) -> Result<u64, AccountError> {
        const PAGE: usize = 1000;
        let (mut after, mut seen, mut changed) = (None::<String>, 0u64, 0u64);
        loop {
            let page = wait(|done| self.store.identities(after.as_deref(), PAGE, done))?;
            let mut writes = Vec::new();
            for kept in &page {
                let mut identity = Identity::clone(&kept.identity);
                change(&mut identity)?;
                if identity != *kept.identity {
                    writes.push(Write::Identity { identity: Arc::new(identity), base: kept.version });
                }
            }
            let count = writes.len() as u64;
            match wait(|done| self.store.commit(writes, done)) {
                // One of them was changed meanwhile, so the same page is tried again.
                Err(StoreError::Conflict(_)) => continue,
                other => other?,
            }
            changed += count;
            seen += page.len() as u64;
            progress(seen);
            match page.last() {
                Some(last) if page.len() == PAGE => after = Some(last.identity.name.to_string()),
                _ => return Ok(changed),
            }
        }
    }
}

fn find<'a>(identity: &'a Identity, kind: &str, label: &str) -> Option<&'a Credential> {
    let mut of_kind = identity.credentials.iter().filter(|credential| credential.proof.kind() == kind);
    let number = label.strip_prefix('#').and_then(|number| number.parse().ok());
    of_kind.find(|credential| credential.label == label || Some(credential.id) == number)
}

fn key_event(event: Event, key: &Key) -> Event {
    event.with("service", key.service.as_str()).with("perspective", key.perspective.as_str())
}
