//! Imports many identities at once, with their password hashes.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::{AccountError, Accounts};
use crate::cred::{Credential, CredentialError, Identity, Name, NameOf, Password, ProofBy, TokenDigest, check_hashes};
use crate::store::audit::Event;
use crate::store::{Record, StoreError, Write, now, wait};

/// The most memory that checking an imported hash may take, in KiB, since each login attempt takes it.
pub(super) const MOST_MEMORY: u32 = 64 << 10;
/// The most refusals that are reported individually.
const TOLD: usize = 1000;

/// The result of an import.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imported {
    /// The number of added identities.
    pub added: u64,
    /// The number of replaced identities.
    pub replaced: u64,
    /// The number of identities whose verifier for the stock PB login cannot be opened here. They were added without
    /// it.
    pub unsealed: u64,
    /// The number of identities with a password that the rules would not allow a person to choose.
    #[serde(default)]
    pub weak: u64,
    /// The number of identities with a bcrypt hash. An argon2id hash replaces it at the next login with a password.
    #[serde(default)]
    pub bcrypt: u64,
    /// The number of refused identities.
    pub refused: u64,
    /// The first refusals: the identity and the reason.
    pub why: Vec<String>,
}

impl Imported {
    /// Adds the numbers of another result.
    pub fn add(&mut self, other: Self) {
        self.added += other.added;
        self.replaced += other.replaced;
        self.unsealed += other.unsealed;
        self.weak += other.weak;
        self.bcrypt += other.bcrypt;
        self.refused += other.refused;
        let room = TOLD.saturating_sub(self.why.len());
        self.why.extend(other.why.into_iter().take(room));
    }

    /// Counts one more refusal.
    pub fn refuse(&mut self, which: &str, why: &str) {
        self.refused += 1;
        if self.why.len() < TOLD {
            self.why.push(format!("{which}: {why}"));
        }
    }
}

/// An import and its options.
#[derive(Clone, Copy)]
pub struct Import<'a> {
    /// The identities.
    pub records: &'a [Record],
    /// Passwords in the clear of some identities, by name.
    pub passwords: &'a dyn Fn(&str) -> Option<Password>,
    /// Whether existing identities of the same names are replaced.
    pub replace: bool,
    /// Whether the records say nothing about an identity except its password and whether it is disabled. Everything
    /// else about an existing identity then stays, and a disabled identity is not enabled.
    pub only_passwords: bool,
    /// Whether the import is only simulated.
    pub dry_run: bool,
}

impl std::fmt::Debug for Import<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Import").field("records", &self.records.len()).finish_non_exhaustive()
    }
}

impl<'a> Import<'a> {
    /// Adds these records, as they were exported.
    #[must_use]
    pub fn of(records: &'a [Record]) -> Self {
        Self { records, passwords: &|_| None, replace: false, only_passwords: false, dry_run: false }
    }
}

impl Accounts {
    /// Adds identities that were exported, or created elsewhere. All that are valid are committed together.
    ///
    /// # Errors
    /// If the store cannot be written. None of them is then added.
    pub fn import(&self, import: &Import<'_>) -> Result<Imported, AccountError> {
        loop {
            // Another caller may have added one of them meanwhile, so it is tried again.
            match self.try_import(import) {
                Err(AccountError::Store(StoreError::Conflict(_))) => {}
                done => return done,
            }
        }
    }

    fn try_import(&self, import: &Import<'_>) -> Result<Imported, AccountError> {
        let Import { records, passwords, replace, only_passwords, dry_run } = *import;
        let _sealing = self.sealing.read();
        let mut tokens = std::collections::HashSet::new();
        let mut done = Imported::default();
        let mut writes = Vec::with_capacity(records.len() + 1);
        let mut names = std::collections::HashSet::new();
        let mut told = Vec::new();
        for record in records {
            let mut identity = match record.identity() {
                Ok(identity) => identity,
                Err(why) => {
                    done.refuse(&record.name, &why.to_string());
                    continue;
                }
            };
            let name = identity.name.to_string();
            let mut checked = Imported::default();
            if let Err(why) = self.check(&mut identity, &mut checked) {
                done.refuse(&name, &why);
                continue;
            }
            let kept = wait(|answer| self.store.identity(&name, answer))?;
            if !names.insert(name.clone()) {
                done.refuse(&name, "it is there twice");
                continue;
            }
            if let Some(why) = self.taken_token(&identity, &mut tokens)? {
                done.refuse(&name, &why);
                continue;
            }
            if kept.is_none()
                && let Err(why) = Name::chosen(NameOf::Identity, &name)
            {
                done.refuse(&name, &why.to_string());
                continue;
            }
            match &kept {
                Some(_) if !replace => {
                    done.refuse(&name, "the name is taken; --replace overwrites the existing identity");
                    continue;
                }
                Some(kept) if only_passwords => identity = with_passwords_of(&kept.identity, identity),
                Some(kept) => renumber(&mut identity, &kept.identity),
                None => {}
            }
            if let Some(password) = passwords(&name) {
                checked.weak += u64::from(self.rules.check(&name, &password).is_err());
                match self.imported_password(&name, &password, identity.salt(), dry_run) {
                    Ok(Some(proof)) => {
                        identity.add(proof, "password", now(), None);
                    }
                    Ok(None) => {}
                    Err(AccountError::Credential(why)) => {
                        done.refuse(&name, &why.to_string());
                        continue;
                    }
                    Err(error) => return Err(error),
                }
            }
            identity.drop_logins(now());
            match kept {
                Some(_) => done.replaced += 1,
                None => done.added += 1,
            }
            done.add(checked);
            let identity = Arc::new(identity);
            if kept.is_some() {
                told.push(Arc::clone(&identity));
                writes.push(Write::Audit(self.event("identity.replaced", &name)));
            }
            writes.push(Write::Identity { identity, base: kept.map_or(0, |kept| kept.version) });
        }
        if writes.is_empty() || dry_run {
            return Ok(done);
        }
        let imported: Vec<&Arc<Identity>> = writes
            .iter()
            .filter_map(|write| match write {
                Write::Identity { identity, .. } => Some(identity),
                _ => None,
            })
            .collect();
        let name = |identity: Option<&&Arc<Identity>>| identity.map_or_else(String::new, |of| of.name.to_string());
        let event = Event::new("identity.imported")
            .with("by", self.by.clone())
            .with("count", imported.len())
            .with("first", name(imported.first()))
            .with("last", name(imported.last()));
        writes.push(Write::Audit(event));
        wait(|answer| self.store.commit(writes, answer))?;
        // All identities are replaced by now, so each one is notified, even if notifying another one fails.
        let mut failed = None;
        for identity in told {
            if let Err(why) = self.notify(identity.name.as_str(), Some(&identity)) {
                failed.get_or_insert(why);
            }
        }
        failed.map_or(Ok(done), Err)
    }

    /// Returns an error text if one of the identity's tokens belongs to another identity.
    fn taken_token(
        &self,
        identity: &Identity,
        tokens: &mut std::collections::HashSet<TokenDigest>,
    ) -> Result<Option<String>, AccountError> {
        for credential in &identity.credentials {
            let Some(&digest) = credential.proof.digest() else { continue };
            let owner = wait(|answer| self.store.bearer(&digest, answer))?;
            let other = owner.is_some_and(|owner| owner.identity.name != identity.name);
            if other || !tokens.insert(digest) {
                return Ok(Some(format!("its token {:?} also belongs to another identity", credential.label)));
            }
        }
        Ok(None)
    }

    /// Hashes a password that is given in the clear. Returns `None` in a dry run.
    fn imported_password(
        &self,
        name: &str,
        password: &Password,
        salt: Option<Vec<u8>>,
        dry_run: bool,
    ) -> Result<Option<ProofBy>, AccountError> {
        if password.bytes() > Password::LONGEST {
            return Err(CredentialError::TooLong(Password::LONGEST).into());
        }
        if dry_run {
            return Ok(None);
        }
        let hash = self.hash(password, salt)?;
        self.password_proof(name, password, hash).map(Some)
    }

    fn check(&self, identity: &mut Identity, done: &mut Imported) -> Result<(), String> {
        let name = identity.name.to_string();
        let mut unsealed = false;
        let hashes: Vec<String> = identity.hashes(0).into_iter().map(|(_, hash)| hash).collect();
        check_hashes(&hashes, MOST_MEMORY, self.cost).map_err(|error| error.to_string())?;
        for credential in &mut identity.credentials {
            if let ProofBy::Password { hash, verifier } = &mut credential.proof {
                done.bcrypt += u64::from(hash.starts_with("$2"));
                if let Some(sealed) = verifier {
                    // Sealed again, since the part of the key that it was sealed under may be about to be discarded.
                    let nonce = crate::config::random().map_err(|error| error.to_string())?;
                    *verifier = sealed.reseal(&self.key, &name, &nonce).ok();
                    unsealed |= verifier.is_none();
                }
                if !self.stock {
                    *verifier = None;
                }
            }
        }
        done.unsealed += u64::from(unsealed);
        Ok(())
    }
}

/// An identity with the passwords of another record, and with its keys as well.
fn with_passwords_of(kept: &Identity, record: Identity) -> Identity {
    let mut identity = kept.clone();
    identity.enabled &= record.enabled;
    identity.clear_passwords();
    for credential in record.credentials {
        identity.add(credential.proof, &credential.label, credential.created, credential.expires);
    }
    for key in record.keyring.keys() {
        identity.keyring.add(key.clone());
    }
    identity
}

/// Numbers of credentials are never reused: a session that logged in with a removed credential is identified by its
/// number.
fn renumber(identity: &mut Identity, kept: &Identity) {
    let same = |credential: &Credential| {
        kept.credentials.iter().any(|old| old.id == credential.id && old.proof.is_same(&credential.proof))
    };
    let mut next = kept.next.max(identity.next);
    for credential in &mut identity.credentials {
        if !same(credential) {
            credential.id = next;
            next += 1;
        }
    }
    identity.next = next;
}
