//! `credhost backup`, `credhost restore`

use std::path::PathBuf;

use clap::Args;
use credhost::accounts::Accounts;
use credhost::config::{Home, existing_key};
use credhost::control::Request;
use credhost::store::audit::Event;
use credhost::store::{OpenError, SqliteStore};
use serde_json::Value;

use super::home::{Patience, ask, by};
use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// The new file. It is checked after writing. It does not contain master.key: keep a copy of that elsewhere.
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// A file written by `credhost backup`.
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let file = std::path::absolute(&self.file)?;
        ask(home, &Request::Backup { file: file.clone() })?;
        output.show(&Value::Null, || format!("{} is a sound copy; keep master.key apart from it", file.display()));
        Ok(())
    }
}

impl Restore {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        if !self.file.is_file() {
            return Err(CliError::new(format!("{} is not a file", self.file.display()))
                .hint("name a file written by `credhost backup`; nothing was changed"));
        }
        home.make()?;
        let mut patience = Patience::new();
        let _lock = home.lock_patiently(|| !credhost::control::is_served(&home.control()) && patience.again())?;
        let key = existing_key(home)?;
        let store = home.store();
        let before = SqliteStore::restore(&self.file, &store, &key, credhost::store::now()).map_err(|error| {
            let hint = match &error {
                OpenError::Key(..) => "; the backup needs the master.key that was in use when it was made",
                OpenError::Foreign(_) => "; name a file written by `credhost backup`",
                OpenError::Damaged { .. } | OpenError::Sqlite { .. } => "; use another backup",
                _ => "",
            };
            CliError::new(error.to_string()).hint(format!("nothing was changed{hint}"))
        })?;
        let head = store.with_file_name("audit.head");
        let head_before = std::fs::read_to_string(&head).unwrap_or_default();
        if head.exists() {
            std::fs::remove_file(&head)?;
        }
        // The backup's trail continues from here, and records where the replaced one ended.
        let (accounts, _) = Accounts::open(home, &by())?;
        accounts.note(Event::new("store.restored").with("by", by()).with("head_before", head_before.trim()));
        drop(accounts);
        output.show(&serde_json::json!({ "before": before }), || {
            let before = before
                .as_ref()
                .map_or_else(String::new, |before| format!("; the previous store is now {}", before.display()));
            format!("the store was restored from {}{before}", self.file.display())
        });
        Ok(())
    }
}
