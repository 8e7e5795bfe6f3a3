//! `credhost backup`, `credhost restore`

use std::path::PathBuf;

use clap::Args;
use credhost::accounts::Accounts;
use credhost::config::{Home, master_key};
use credhost::control::Request;
use credhost::store::SqliteStore;
use credhost::store::audit::Event;
use serde_json::Value;

use super::home::{ask, by};
use super::{Output, Trouble};

#[derive(Debug, Args)]
pub(super) struct Backup {
    /// A new file. It is looked through once it is written; master.key is not in it: keep a copy of that elsewhere.
    file: PathBuf,
}

#[derive(Debug, Args)]
pub(super) struct Restore {
    /// A file that `credhost backup` has made.
    file: PathBuf,
}

impl Backup {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        let file = std::path::absolute(&self.file)?;
        ask(home, &Request::Backup { file: file.clone() })?;
        output.show(&Value::Null, || format!("{} is a sound copy; keep master.key apart from it", file.display()));
        Ok(())
    }
}

impl Restore {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        home.make()?;
        let _lock = home.lock()?;
        SqliteStore::verify(&self.file, &master_key(home)?).map_err(|error| {
            Trouble::new(error.to_string()).hint("nothing was changed; the backup needs the master.key of its time")
        })?;
        let store = home.store();
        let beside = |ending: &str| PathBuf::from(format!("{}{ending}", store.display()));
        // Whole, or not at all: the copy is made beside the store, then takes its place.
        let new = beside(".new");
        std::fs::copy(&self.file, &new)?;
        {
            use std::os::unix::fs::PermissionsExt;
            std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600))?;
        }
        std::fs::File::open(&new)?.sync_all()?;
        if store.exists() {
            std::fs::rename(&store, beside(".before"))?;
        }
        // What belongs to the store there was must not be taken for the new one's.
        for ending in ["-wal", "-shm"] {
            if beside(ending).exists() {
                std::fs::rename(beside(ending), beside(&format!(".before{ending}")))?;
            }
        }
        std::fs::rename(&new, &store)?;
        let head = store.with_file_name("audit.head");
        let before = std::fs::read_to_string(&head).unwrap_or_default();
        if head.exists() {
            std::fs::rename(&head, store.with_file_name("audit.head.before"))?;
        }
        std::fs::File::open(home.path())?.sync_all()?;
        // The trail of the backup goes on from here, and says where the other one had ended.
        let (accounts, _) = Accounts::open(home, &by())?;
        accounts.note(Event::new("store.restored").with("by", by()).with("head_before", before.trim()));
        drop(accounts);
        output.show(&Value::Null, || {
            format!(
                "the store is that of {} again; the one there was is {}",
                self.file.display(),
                beside(".before").display()
            )
        });
        Ok(())
    }
}
