//! Backups of a store: made while it is in use, verified, and restored.

use std::fs;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OpenFlags};

use super::open::{OpenError, belongs, check, secret_of};
use super::{SqliteStore, anchor, kept};
use crate::cred::MasterKey;
use crate::store::audit::{Line, Verifier};

/// The number of pages that are copied between two calls of `progress`.
const PAGES: i32 = 1024;

impl SqliteStore {
    /// Copies the store into another file while it is in use, and verifies the copy. `progress` is called with the
    /// number of remaining pages and the total.
    pub(super) fn copy_to(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: to.to_owned(), error };
        let io = |error| OpenError::Io { path: to.to_owned(), error };
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
        let copied = (|| {
            let from = self.reader().map_err(sqlite)?;
            let mut copy = Connection::open(to).map_err(sqlite)?;
            // All pages are from one commit. Without a lasting transaction, each commit of the writer would restart the
            // copy.
            from.execute_batch("BEGIN; SELECT count(*) FROM meta").map_err(sqlite)?;
            {
                let backup = rusqlite::backup::Backup::new(&from, &mut copy).map_err(sqlite)?;
                loop {
                    let more = backup.step(PAGES).map_err(sqlite)?;
                    let at = backup.progress();
                    progress(at.remaining.unsigned_abs(), at.pagecount.unsigned_abs());
                    match more {
                        rusqlite::backup::StepResult::Done => break,
                        rusqlite::backup::StepResult::More => {}
                        // The writer is committing.
                        _ => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            }
            from.execute_batch("COMMIT").map_err(sqlite)?;
            self.readers.lock().push(from);
            // A single file, without a log beside it.
            copy.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite)?;
            check(&copy, to)
        })();
        if copied.is_err() {
            // Half a backup could be mistaken for a complete one.
            let _ = fs::remove_file(to);
            return copied;
        }
        fs::File::open(to).and_then(|file| file.sync_all()).map_err(|error| {
            let _ = fs::remove_file(to);
            io(error)
        })
    }

    /// Verifies that a file is an intact store that this key opens and this program knows, without changing it: its
    /// pages, each identity, and the audit trail.
    ///
    /// # Errors
    /// If it is not.
    pub fn verify(path: &Path, key: &MasterKey) -> Result<(), OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
        let damaged = |what: String| OpenError::Damaged { path: path.to_owned(), what };
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
        if belongs(&connection, path)? == 0 {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        check(&connection, path)?;
        let secret = secret_of(&connection, path, key)?.ok_or_else(|| damaged("its secret is missing".to_owned()))?;
        let mut identities =
            connection.prepare("SELECT version, record, name FROM identity ORDER BY name").map_err(sqlite)?;
        let mut rows = identities.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            if let Err(error) = kept(row) {
                let name: String = row.get(2).map_err(sqlite)?;
                return Err(damaged(format!("the identity {name} cannot be read: {error}")));
            }
        }
        let after = anchor(&connection, &secret).map_err(|error| damaged(error.to_string()))?;
        let mut trail = Verifier::new(&secret, after, None);
        let mut lines = connection.prepare("SELECT number, text, digest FROM audit ORDER BY number").map_err(sqlite)?;
        let mut rows = lines.query([]).map_err(sqlite)?;
        while let Some(row) = rows.next().map_err(sqlite)? {
            let line = (|| {
                let number = row.get::<_, i64>(0)?.cast_unsigned();
                Ok(Line { number, text: row.get(1)?, digest: row.get(2)? })
            })();
            trail.line(&line.map_err(sqlite)?).map_err(|broken| damaged(format!("its audit trail: {broken}")))?;
        }
        Ok(())
    }

    /// Replaces the store at `store` by a backup, completely or not at all. Nobody may be using the store. `at`, in
    /// seconds since 1970, distinguishes the old store's file from earlier ones. Returns this file, if there was a
    /// store.
    ///
    /// # Errors
    /// If the backup is damaged, or cannot be installed. The store is then unchanged.
    pub fn restore(backup: &Path, store: &Path, key: &MasterKey, at: u64) -> Result<Option<PathBuf>, OpenError> {
        let io = |path: &Path| {
            let path = path.to_owned();
            move |error| OpenError::Io { path, error }
        };
        let beside = |of: &Path, ending: &str| PathBuf::from(format!("{}{ending}", of.display()));
        let new = beside(store, ".new");
        let _ = fs::remove_file(&new);
        let copied = fs::copy(backup, &new)
            .and_then(|_| fs::set_permissions(&new, fs::Permissions::from_mode(0o600)))
            .and_then(|()| fs::File::open(&new)?.sync_all());
        // The copy is verified, so the installed file is the verified one.
        let verified = copied.map_err(io(&new)).and_then(|()| Self::verify(&new, key));
        if let Err(error) = verified {
            let _ = fs::remove_file(&new);
            return Err(match error {
                OpenError::Foreign(_) => OpenError::Foreign(backup.to_owned()),
                error => error,
            });
        }
        let before = store.exists().then(|| {
            let names = std::iter::once(0).chain(1..).map(|count| match count {
                0 => beside(store, &format!(".before-{at}")),
                count => beside(store, &format!(".before-{at}-{count}")),
            });
            names.into_iter().find(|name| !name.exists()).unwrap_or_else(|| beside(store, ".before"))
        });
        if let Some(before) = &before {
            // The log beside the old store is merged into it. If the store is damaged, its log stays beside it.
            let one_file = Connection::open(store).and_then(|old| old.pragma_update(None, "journal_mode", "DELETE"));
            if let Err(error) = one_file {
                tracing::warn!(%error, "the previous store is kept unchanged, with its log");
            }
            fs::hard_link(store, before).map_err(io(before))?;
            for ending in ["-wal", "-shm"] {
                let log = beside(store, ending);
                if log.exists() {
                    fs::rename(&log, beside(before, ending)).map_err(io(&log))?;
                }
            }
        }
        fs::rename(&new, store).map_err(io(store))?;
        let folder = store.parent().unwrap_or(Path::new("."));
        fs::File::open(folder).and_then(|folder| folder.sync_all()).map_err(io(folder))?;
        Ok(before)
    }
}
