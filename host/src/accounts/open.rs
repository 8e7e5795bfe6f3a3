//! Opens the identities of a home folder.

use std::collections::HashSet;
use std::fs;
use std::sync::Arc;

use super::import::MOST_MEMORY;
use super::{AccountError, Accounts};
use crate::config::{ConfigError, ConfigFile, Home, Settings, master_key, random};
use crate::cred::{HashCost, MasterKey, PasswordRules, check_hash};
use crate::store::audit::Event;
use crate::store::{MemoryStore, SqliteStore, Store, StoreError, Write, wait};

/// The most memory that hashing one password may take, in KiB.
const DEAREST: u32 = 1 << 20;

impl Accounts {
    /// Opens the identities of a home, in the store on its disk. Creates missing files, and moves identities that an
    /// earlier version kept in `credhost.toml` into the store. `by` is the actor, for the audit trail.
    ///
    /// # Errors
    /// If its files cannot be read, or others can read them.
    pub fn open(home: &Home, by: &str) -> Result<(Self, Settings), AccountError> {
        let key = master_key(home)?;
        if home.store().exists() {
            crate::config::private(&home.store(), 0o600)?;
        }
        let store = SqliteStore::open(&home.store(), &key, &random()?)?;
        Self::over(Arc::new(store), key, home, by)
    }

    /// Creates accounts without identities, in memory, as in a home where nothing was ever stored. They serve to
    /// simulate an operation.
    #[must_use]
    pub fn empty(home: &Home) -> Self {
        Self {
            store: Arc::new(MemoryStore::new()),
            key: MasterKey::new([0; 32]),
            rules: PasswordRules::default(),
            cost: HashCost::default(),
            stock: true,
            changed: Arc::default(),
            sealing: Arc::default(),
            rotating: Arc::default(),
            by: String::new(),
            home: home.clone(),
        }
    }

    /// Opens identities in any store. `key` is the key that seals the store's secret and its verifiers.
    ///
    /// # Errors
    /// If the home's configuration cannot be read.
    pub fn over(
        store: Arc<dyn Store>,
        key: MasterKey,
        home: &Home,
        by: &str,
    ) -> Result<(Self, Settings), AccountError> {
        let mut file = ConfigFile::open(&home.config())?;
        let settings = file.settings()?;
        let (rules, cost) = passwords(home, &file, &settings)?;
        let accounts = Self {
            store,
            key,
            rules,
            cost,
            stock: settings.pb.stock_login,
            changed: Arc::default(),
            sealing: Arc::default(),
            rotating: Arc::default(),
            by: by.to_owned(),
            home: home.clone(),
        };
        accounts.migrate(&mut file)?;
        Ok((accounts, settings))
    }

    /// Checks whether a host could start in this home. It only reads.
    ///
    /// # Errors
    /// If a part of it cannot be read, or was written by a later version.
    pub fn examine(home: &Home) -> Result<Settings, AccountError> {
        let file = ConfigFile::open(&home.config())?;
        let settings = file.settings()?;
        passwords(home, &file, &settings)?;
        if home.store().exists() {
            SqliteStore::check(&home.store())?;
        }
        Ok(settings)
    }

    /// Moves identities from `credhost.toml` into the store, and then removes them from the file. In this order, none
    /// is lost.
    fn migrate(&self, file: &mut ConfigFile) -> Result<(), AccountError> {
        let identities = file.identities()?;
        if identities.is_empty() {
            return Ok(());
        }
        let mut moved = 0;
        for identity in identities {
            let name = identity.name.to_string();
            for (_, hash) in identity.hashes(0) {
                check_hash(&hash, MOST_MEMORY, self.cost)
                    .map_err(|error| file.wrong(format!("[identity.{name}]: {error}")))?;
            }
            let event = self.event("identity.added", &name).with("from", "credhost.toml");
            let write = Write::Identity { identity: Arc::new(identity), base: 0 };
            match wait(|done| self.store.commit(vec![write, Write::Audit(event)], done)) {
                // It was moved before, but the file could not be written; or the store has another one. The store's
                // identity is kept.
                Err(StoreError::Conflict(_)) => {
                    tracing::warn!(name, "the store already has this identity; credhost.toml's is ignored")
                }
                other => {
                    other?;
                    moved += 1;
                }
            }
            file.take(&name);
        }
        file.save()?;
        tracing::info!(
            "moved from credhost.toml into the store: {}",
            crate::show::many(moved, "identity", "identities")
        );
        Ok(())
    }

    /// Records the start or end of a host.
    pub fn note_host(&self, what: &'static str) {
        self.note(Event::new(what).with("by", self.by.clone()));
    }
}

/// The password settings of the configuration.
fn passwords(home: &Home, file: &ConfigFile, settings: &Settings) -> Result<(PasswordRules, HashCost), AccountError> {
    let section = &settings.password;
    let cost = HashCost { memory: section.memory, passes: section.passes };
    if cost.memory < HashCost::LEAST.memory || cost.passes < HashCost::LEAST.passes {
        return Err(AccountError::from(file.wrong(format!(
            "[password] memory and passes are below OWASP's minimum for argon2id ({} KiB, {} passes)",
            HashCost::LEAST.memory,
            HashCost::LEAST.passes
        ))));
    }
    if cost.memory > DEAREST {
        return Err(AccountError::from(file.wrong(format!(
            "[password] memory = {} is in KiB: {} GiB for each password check; the maximum is {DEAREST} (1 GiB)",
            cost.memory,
            cost.memory >> 20
        ))));
    }
    let mut blocked = HashSet::new();
    if let Some(list) = &section.blocked {
        let path = home.path().join(list);
        let text = fs::read_to_string(&path).map_err(|error| ConfigError::Io { path, error })?;
        blocked.extend(text.lines().map(|line| line.trim().to_lowercase()));
    }
    Ok((PasswordRules { shortest: section.shortest, guesses: section.guesses, blocked }, cost))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::control::{Request, perform};
    use crate::cred::Password;
    use crate::store::MemoryStore;

    #[test]
    fn identities_live_in_any_store() {
        let folder = tempfile::tempdir().unwrap();
        let home = Home::new(folder.path().join("home"));
        home.make().unwrap();
        let key = master_key(&home).unwrap();
        let (accounts, _) = Accounts::over(Arc::new(MemoryStore::new()), key, &home, "a test").unwrap();
        accounts.add("alice", Some(&Password::new("a staple of quite another horse"))).unwrap();
        assert_eq!(accounts.rotate_key(|_| {}).unwrap(), 1);
        assert_eq!(accounts.page(None, 10).unwrap().len(), 1);
        let ask = |request| perform(&request, &accounts, None, &mut |_, _| {});
        assert!(ask(Request::AuditVerify { head: None, files: Vec::new() }).unwrap()["lines"].as_u64().unwrap() >= 2);
        let failed = ask(Request::Backup { file: home.path().join("backup") }).unwrap_err();
        assert!(failed.error.contains("in memory"), "{}", failed.error);
        assert!(!home.store().exists(), "nothing is on the disk");
    }
}
