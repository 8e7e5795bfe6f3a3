//! The store on disk: SQLite, in one file.
//!
//! One thread writes. Jobs that wait while it commits are committed together, next (group commit). Each job's writes
//! are applied completely or not at all, and all jobs are notified when the data is on disk (WAL,
//! `synchronous = FULL`). Reads happen immediately, on the reader's own thread, from the last commit, and never wait
//! for the writer.

mod backup;
mod open;
pub(super) mod reserve;
mod write;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

pub use self::open::OpenError;
use self::open::{FAILURES, SECRET, belongs, check, make_shrinkable, migrate, prepare, secret};
use self::reserve::Reserve;
use super::{BackupFault, Done, Entries, Kept, Range, Record, Saved, Store, StoreError, Write, audit};
use crate::cred::throttle::Counter;
use crate::cred::{MasterKey, StoreSecret, TokenDigest};
use crate::store::audit::Edge;

/// The key under which the audit trail's anchor is stored.
const ANCHOR: &str = "audit anchor";

/// The size of a page of the trail, in bytes. Its last line may exceed it.
const PAGE_BYTES: usize = 1 << 20;

/// A store in a file.
pub struct SqliteStore {
    path: PathBuf,
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Idle read connections.
    readers: Mutex<Vec<Connection>>,
    secret: StoreSecret,
}

struct Job {
    writes: Vec<Write>,
    done: Done<()>,
    /// The disk space to reserve from now on.
    reserves: Option<u64>,
}

/// The error text for a full disk.
const FULL: &str = "the disk is full";

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => FULL.to_owned(),
            Some(rusqlite::ErrorCode::SystemIoFailure) => format!("the disk cannot be read or written ({error})"),
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => format!("the file is damaged ({error})"),
            _ => error.to_string(),
        })
    }
}

/// For a store that was already open.
impl From<OpenError> for StoreError {
    fn from(error: OpenError) -> Self {
        Self::Failed(error.to_string())
    }
}

impl SqliteStore {
    /// Opens the store in this file, or creates it. `random` provides the bytes of a new store's secret and of the
    /// nonce that seals it.
    ///
    /// # Errors
    /// If it cannot be read or written, belongs to another program, was written by a newer version, or has another key.
    pub fn open(path: &Path, key: &MasterKey, random: &[u8; 56]) -> Result<Self, OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        if !path.exists() {
            use std::os::unix::fs::OpenOptionsExt;
            // Created here, so that it is never readable for others. SQLite gives its other files the same mode.
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        }
        let mut connection = Connection::open(path).map_err(sqlite)?;
        // This must precede any change to the file.
        belongs(&connection, path)?;
        prepare(&connection).map_err(sqlite)?;
        migrate(&mut connection, path)?;
        if let Err(error) = make_shrinkable(&connection, path) {
            // The store works, but its file does not shrink.
            tracing::warn!(%error, "cannot vacuum the store: its file will not shrink");
        }
        let secret = secret(&connection, path, key, random)?;
        let head = path.with_file_name("audit.head");
        let (jobs, receiver) = channel();
        let writer = write::Writer::new(connection, secret.clone(), head, Reserve::beside(path));
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write::write(writer, &receiver))
            .map_err(io)?;
        Ok(Self { path: path.to_owned(), jobs: Some(jobs), writer: Some(writer), readers: Mutex::default(), secret })
    }

    /// Checks whether this program can open the store in this file. It only reads, and another program may have the
    /// store open.
    ///
    /// # Errors
    /// If it cannot be read, belongs to another program, or was written by a newer version.
    pub fn check(path: &Path) -> Result<(), OpenError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags);
        let connection = connection.map_err(|error| OpenError::Sqlite { path: path.to_owned(), error })?;
        belongs(&connection, path).map(|_| ())
    }

    fn reader(&self) -> rusqlite::Result<Connection> {
        if let Some(connection) = self.readers.lock().pop() {
            return Ok(connection);
        }
        let connection = Connection::open_with_flags(
            &self.path,
            OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX,
        )?;
        connection.busy_timeout(Duration::from_secs(5))?;
        // The cache holds the upper pages of a large store (size in KiB). The file is not mapped into memory, since a
        // failing disk would then crash the host.
        connection.pragma_update(None, "cache_size", -16_384)?;
        Ok(connection)
    }

    /// Reads on this thread, from the last commit.
    fn read<T>(&self, done: Done<T>, read: impl FnOnce(&Connection) -> rusqlite::Result<T>) {
        let result = self.reader().and_then(|connection| {
            let result = read(&connection);
            if result.is_ok() {
                self.readers.lock().push(connection);
            }
            result
        });
        done(result.map_err(Into::into));
    }
}

impl Drop for SqliteStore {
    fn drop(&mut self) {
        self.jobs = None;
        // The writer's connection must be the last one to close: it leaves a single file behind, which a read-only
        // connection cannot do.
        self.readers.lock().clear();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("a fault in the host's store; please report it");
        }
    }
}

/// The head before the first line of the audit trail.
fn anchor(connection: &Connection, secret: &StoreSecret) -> Result<audit::Head, StoreError> {
    let sealed: Option<String> = connection
        .prepare_cached("SELECT value FROM meta WHERE key = ?1")?
        .query_row([ANCHOR], |row| row.get(0))
        .optional()?;
    let Some(sealed) = sealed else { return Ok(audit::Head::beginning()) };
    let wrong = "the record of where the audit trail begins was not written by this host: it was changed";
    audit::Head::unsealed(&sealed, Edge::Anchor, secret).ok_or_else(|| StoreError::Failed(wrong.to_owned()))
}

fn kept(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kept> {
    let wrong = |why: String| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, why.into());
    let text = row.get_ref(1)?.as_str()?;
    let record: Record = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let identity = record.identity().map_err(|error| wrong(error.to_string()))?;
    Ok(Kept { identity: Arc::new(identity), version: row.get::<_, i64>(0)?.cast_unsigned() })
}

impl Store for SqliteStore {
    fn keep_room(&self, bytes: u64) {
        if let Some(jobs) = &self.jobs {
            // A writer that has ended reserves nothing.
            let _ = jobs.send(Job { writes: Vec::new(), done: Box::new(drop), reserves: Some(bytes) });
        }
    }

    fn settle(&self, done: Done<()>) {
        let Some(jobs) = &self.jobs else { return };
        if let Err(unsent) = jobs.send(Job { writes: Vec::new(), done, reserves: None }) {
            (unsent.0.done)(Err(StoreError::Failed("it has ended".to_owned())));
        }
    }

    fn commit(&self, writes: Vec<Write>, done: Done<()>) {
        if writes.is_empty() {
            return done(Ok(()));
        }
        let Some(jobs) = &self.jobs else { return };
        if let Err(unsent) = jobs.send(Job { writes, done, reserves: None }) {
            (unsent.0.done)(Err(StoreError::Failed("it has ended".to_owned())));
        }
    }

    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>) {
        self.read(done, |connection| {
            connection
                .prepare_cached("SELECT version, state FROM state WHERE service = ?1 AND perspective = ?2")?
                .query_row([service, perspective], |row| {
                    Ok(Saved { version: row.get::<_, i64>(0)?.cast_unsigned(), state: row.get(1)? })
                })
                .optional()
        });
    }

    fn data(&self, service: &str, range: &Range, done: Done<Entries>) {
        self.read(done, |connection| {
            // Both queries must see the same commit.
            let transaction = Transaction::new_unchecked(connection, TransactionBehavior::Deferred)?;
            let version: Option<i64> = transaction
                .prepare_cached("SELECT version FROM data_version WHERE service = ?1")?
                .query_row([service], |row| row.get(0))
                .optional()?;
            let sql = match (range.to.is_some(), range.reverse) {
                (true, false) => {
                    "SELECT key, value FROM data WHERE service = ?1 AND key >= ?2 AND key < ?3 ORDER BY key"
                }
                (true, true) => {
                    "SELECT key, value FROM data WHERE service = ?1 AND key >= ?2 AND key < ?3 ORDER BY key DESC"
                }
                (false, false) => {
                    "SELECT key, value FROM data WHERE service = ?1 AND key >= ?2 AND ?3 IS NULL ORDER BY key"
                }
                (false, true) => {
                    "SELECT key, value FROM data WHERE service = ?1 AND key >= ?2 AND ?3 IS NULL ORDER BY key DESC"
                }
            };
            let mut statement = transaction.prepare_cached(sql)?;
            let mut rows = statement.query(params![service, range.from, range.to])?;
            let mut entries = Entries { version: version.unwrap_or(0).cast_unsigned(), ..Entries::default() };
            let mut bytes = 0;
            while let Some(row) = rows.next()? {
                let (key, value): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                bytes += key.len() + value.len();
                if entries.entries.len() == range.limit || (bytes > range.bytes && !entries.entries.is_empty()) {
                    entries.more = true;
                    break;
                }
                entries.entries.push((key, value));
            }
            Ok(entries)
        });
    }

    fn identity(&self, name: &str, done: Done<Option<Kept>>) {
        self.read(done, |connection| {
            connection
                .prepare_cached("SELECT version, record FROM identity WHERE name = ?1")?
                .query_row([name], kept)
                .optional()
        });
    }

    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>) {
        self.read(done, |connection| {
            connection
                .prepare_cached("SELECT version, record FROM identity JOIN token USING (name) WHERE digest = ?1")?
                .query_row([token.as_slice()], kept)
                .optional()
        });
    }

    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>) {
        self.read(done, |connection| {
            let mut statement = connection.prepare_cached(
                "SELECT perspective, version, state FROM state
                 WHERE service = ?1 AND (perspective > ?2 OR ?2 IS NULL) ORDER BY perspective LIMIT ?3",
            )?;
            let states = statement.query_map(params![service, after, limit.cast_signed()], |row| {
                let version: i64 = row.get(1)?;
                Ok((row.get(0)?, Saved { version: version.cast_unsigned(), state: row.get(2)? }))
            })?;
            states.collect()
        });
    }

    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>) {
        self.read(done, |connection| {
            let mut statement = connection
                .prepare_cached("SELECT version, record FROM identity WHERE name > ?1 ORDER BY name LIMIT ?2")?;
            // No name is empty, so all come after the empty one.
            statement.query_map(params![after.unwrap_or(""), limit.cast_signed()], kept)?.collect()
        });
    }

    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>) {
        self.read(done, |connection| {
            connection
                .prepare_cached("SELECT 1 FROM source WHERE name = ?1 AND source = ?2")?
                .exists(params![name, source.as_slice()])
        });
    }

    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>) {
        self.read(done, |connection| {
            let mut statement =
                connection.prepare("SELECT source FROM source GROUP BY source ORDER BY max(at) DESC LIMIT ?1")?;
            let sources = statement.query_map([limit.cast_signed()], |row| row.get::<_, Vec<u8>>(0))?;
            // Skips invalid digests.
            sources.filter_map(|source| source.map(|source| source.try_into().ok()).transpose()).collect()
        });
    }

    fn failures(&self, done: Done<Vec<(Counter, u32)>>) {
        self.read(done, |connection| {
            // The highest counters come first.
            let mut statement =
                connection.prepare("SELECT name, source, count FROM failure ORDER BY count DESC LIMIT ?1")?;
            let counters = statement.query_map([FAILURES], |row| {
                let (name, source): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let counter = name.try_into().ok().map(|name| Counter { name, source: source.try_into().ok() });
                Ok(counter.zip(Some(row.get(2)?)))
            })?;
            // Skips invalid digests.
            counters.filter_map(Result::transpose).collect()
        });
    }

    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>) {
        self.read(done, |connection| {
            let mut statement = connection
                .prepare_cached("SELECT number, text, digest FROM audit WHERE number > ?1 ORDER BY number LIMIT ?2")?;
            let lines = statement.query_map(params![after.cast_signed(), limit.cast_signed()], |row| {
                Ok(audit::Line {
                    number: row.get::<_, i64>(0)?.cast_unsigned(),
                    text: row.get(1)?,
                    digest: row.get(2)?,
                })
            })?;
            let (mut page, mut bytes) = (Vec::new(), 0);
            for line in lines {
                let line = line?;
                bytes += line.text.len() + line.digest.len();
                page.push(line);
                if bytes >= PAGE_BYTES {
                    break;
                }
            }
            Ok(page)
        });
    }

    fn anchor(&self, done: Done<audit::Head>) {
        let result = self.reader().map_err(StoreError::from).and_then(|connection| {
            let anchor = anchor(&connection, &self.secret);
            self.readers.lock().push(connection);
            anchor
        });
        done(result);
    }

    fn secret(&self) -> &StoreSecret {
        &self.secret
    }

    fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError> {
        let plain = self.secret.reveal();
        let sealed = key.seal(&plain, SECRET.as_bytes(), nonce);
        let connection = Connection::open(&self.path)?;
        prepare(&connection)?;
        connection.execute("UPDATE meta SET value = ?1 WHERE key = ?2", params![sealed.0, SECRET])?;
        Ok(())
    }

    fn check(&self) -> Result<(), StoreError> {
        let connection = self.reader()?;
        let result = check(&connection, &self.path);
        self.readers.lock().push(connection);
        result.map_err(Into::into)
    }

    fn backup(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError> {
        self.copy_to(to, progress).map_err(|error| {
            use std::io::ErrorKind;
            let damaged = [rusqlite::ErrorCode::DatabaseCorrupt, rusqlite::ErrorCode::NotADatabase];
            let fault = match &error {
                OpenError::Io { error, .. } => match error.kind() {
                    ErrorKind::AlreadyExists
                    | ErrorKind::NotFound
                    | ErrorKind::PermissionDenied
                    | ErrorKind::NotADirectory
                    | ErrorKind::IsADirectory => BackupFault::File,
                    _ => BackupFault::Disk,
                },
                OpenError::Sqlite { error, .. }
                    if !error.sqlite_error_code().is_some_and(|code| damaged.contains(&code)) =>
                {
                    BackupFault::Disk
                }
                _ => BackupFault::Damage,
            };
            StoreError::Backup { what: error.to_string(), fault }
        })
    }

    fn head(&self) -> Option<PathBuf> {
        Some(self.path.with_file_name("audit.head"))
    }
}

#[cfg(test)]
mod tests;
