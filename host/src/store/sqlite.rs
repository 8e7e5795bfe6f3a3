//! The store on disk: SQLite, in one file.
//!
//! One thread writes. What waits while it commits is committed together, next (group commit): each asks for its own
//! writes, which are done whole or not at all, and all are told when the disk has them (WAL, `synchronous = FULL`).
//! Whoever reads does so at once, on its own thread, from the last commit; nobody waits for the writer.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use rusqlite::{Connection, OpenFlags, OptionalExtension, Transaction, TransactionBehavior, params};

use super::{Change, Done, ENTRIES_BYTES, Entries, Kept, Range, Record, Saved, Store, StoreError, Write, audit};
use crate::cred::throttle::Counter;
use crate::cred::{CredentialError, MasterKey, ProofBy, Sealed, StoreSecret, TokenDigest};

/// Steps from an empty file to today's, in order. Only ever appended to.
const MIGRATIONS: [&str; 1] = ["
    CREATE TABLE meta (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID;
    CREATE TABLE identity (
        name TEXT PRIMARY KEY,
        version INTEGER NOT NULL,
        record TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE token (digest BLOB PRIMARY KEY, name TEXT NOT NULL) WITHOUT ROWID;
    CREATE INDEX token_name ON token (name);
    CREATE TABLE source (
        name TEXT NOT NULL,
        source BLOB NOT NULL,
        at INTEGER NOT NULL,
        PRIMARY KEY (name, source)
    ) WITHOUT ROWID;
    CREATE TABLE failure (name BLOB NOT NULL, source BLOB NOT NULL, count INTEGER NOT NULL, PRIMARY KEY (name, source))
        WITHOUT ROWID;
    CREATE TABLE state (
        service TEXT NOT NULL,
        perspective TEXT NOT NULL,
        version INTEGER NOT NULL,
        state BLOB NOT NULL,
        PRIMARY KEY (service, perspective)
    );
    CREATE TABLE data_version (service TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE data (service TEXT NOT NULL, key BLOB NOT NULL, value BLOB NOT NULL, PRIMARY KEY (service, key))
        WITHOUT ROWID;
    CREATE TABLE audit (number INTEGER PRIMARY KEY, text TEXT NOT NULL, digest TEXT NOT NULL);
"];
/// "cred", so that `file store.db` and this program know whose it is.
const APPLICATION: i32 = 0x6372_6564;
/// So many bytes of writes are committed together, at most.
const GROUP_BYTES: usize = 16 << 20;
/// What nobody waits for is written so long after it came at most, together with what has come since.
const LINGER: Duration = Duration::from_millis(20);
/// So many sources are kept of an identity's: the latest.
const SOURCES: u32 = 16;
/// What the store's secret is sealed for.
const SECRET: &str = "store secret";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// SQLite says so.
    #[error("{path}: {error}")]
    Sqlite {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: rusqlite::Error,
    },
    /// A file beside it cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// Which file.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
    /// It is some other program's.
    #[error("{0} is no store of credhost's")]
    Foreign(PathBuf),
    /// It was written by a newer credhost.
    #[error("{path} was written by a newer credhost (its format is {found}, this one knows {known}); use that one")]
    Newer {
        /// Which file.
        path: PathBuf,
        /// Its format.
        found: usize,
        /// The newest that is known here.
        known: usize,
    },
    /// The master key is another.
    #[error("{0} was made with another master.key: {1}")]
    Key(PathBuf, CredentialError),
    /// It is not sound.
    #[error("{path} is damaged: {what}; `credhost restore FILE` goes back to a backup")]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// What SQLite found.
        what: String,
    },
}

/// A store in a file.
pub struct SqliteStore {
    path: PathBuf,
    jobs: Option<Sender<Job>>,
    writer: Option<JoinHandle<()>>,
    /// Connections that nobody reads with just now.
    readers: Mutex<Vec<Connection>>,
    secret: StoreSecret,
}

struct Job {
    writes: Vec<Write>,
    done: Done<()>,
}

impl std::fmt::Debug for SqliteStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SqliteStore").field("path", &self.path).finish_non_exhaustive()
    }
}

impl From<rusqlite::Error> for StoreError {
    fn from(error: rusqlite::Error) -> Self {
        Self::Failed(match error.sqlite_error_code() {
            Some(rusqlite::ErrorCode::DiskFull) => "the disk is full".to_owned(),
            Some(rusqlite::ErrorCode::SystemIoFailure) => format!("the disk cannot be read or written ({error})"),
            Some(rusqlite::ErrorCode::DatabaseCorrupt) => format!("the file is damaged ({error})"),
            _ => error.to_string(),
        })
    }
}

impl SqliteStore {
    /// Opens the store in this file, and makes it if there is none. `random` gives the bytes of a new store's secret
    /// and of the nonce that it is sealed with.
    ///
    /// # Errors
    /// When it cannot be read or written, is not this program's, is newer than it, or the key is another.
    pub fn open(path: &Path, key: &MasterKey, random: &[u8; 56]) -> Result<Self, OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
        let io = |error| OpenError::Io { path: path.to_owned(), error };
        if !path.exists() {
            use std::os::unix::fs::OpenOptionsExt;
            // Made by us, so that it is nobody else's to read from the beginning. SQLite gives its other files the same
            // mode.
            fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(io)?;
        }
        let mut connection = Connection::open(path).map_err(sqlite)?;
        prepare(&connection).map_err(sqlite)?;
        migrate(&mut connection, path)?;
        let secret = secret(&connection, path, key, random)?;
        let head = path.with_file_name("audit.head");
        let (jobs, receiver) = channel();
        let of_writer = secret.clone();
        let writer = std::thread::Builder::new()
            .name("store".to_owned())
            .spawn(move || write(connection, &receiver, &of_writer, &head))
            .map_err(io)?;
        Ok(Self { path: path.to_owned(), jobs: Some(jobs), writer: Some(writer), readers: Mutex::default(), secret })
    }

    /// What the store's other keys are made of.
    #[must_use]
    pub fn secret(&self) -> &StoreSecret {
        &self.secret
    }

    /// The file of the trail's head, beside the store.
    #[must_use]
    pub fn head(&self) -> PathBuf {
        self.path.with_file_name("audit.head")
    }

    /// Looks for damage, all through the file.
    ///
    /// # Errors
    /// What is damaged.
    pub fn check(&self) -> Result<(), OpenError> {
        let connection = self.reader().map_err(|error| OpenError::Sqlite { path: self.path.clone(), error })?;
        let result = check(&connection, &self.path);
        self.readers.lock().push(connection);
        result
    }

    /// Seals the store's secret under the newest part of the key.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError> {
        let plain = self.secret.reveal();
        let sealed = key.seal(&plain, SECRET.as_bytes(), nonce);
        let connection = Connection::open(&self.path)?;
        prepare(&connection)?;
        connection.execute("UPDATE meta SET value = ?1 WHERE key = ?2", params![sealed.0, SECRET])?;
        Ok(())
    }

    /// Copies the store into another file while it is used, and looks whether the copy is sound. `progress` hears how
    /// many pages there are still to copy, and of how many.
    ///
    /// # Errors
    /// When the file is there already, cannot be written, or is not sound.
    pub fn backup(&self, to: &Path, mut progress: impl FnMut(i32, i32)) -> Result<(), OpenError> {
        use std::os::unix::fs::OpenOptionsExt;
        let sqlite = |error| OpenError::Sqlite { path: to.to_owned(), error };
        let io = |error| OpenError::Io { path: to.to_owned(), error };
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(to).map_err(io)?;
        let copied = (|| {
            let from = self.reader().map_err(sqlite)?;
            let mut copy = Connection::open(to).map_err(sqlite)?;
            {
                let backup = rusqlite::backup::Backup::new(&from, &mut copy).map_err(sqlite)?;
                let told: &mut dyn FnMut(i32, i32) = &mut progress;
                loop {
                    let more = backup.step(1024).map_err(sqlite)?;
                    let at = backup.progress();
                    told(at.remaining, at.pagecount);
                    match more {
                        rusqlite::backup::StepResult::Done => break,
                        rusqlite::backup::StepResult::More => {}
                        // The writer is at it.
                        _ => std::thread::sleep(Duration::from_millis(10)),
                    }
                }
            }
            self.readers.lock().push(from);
            // One file, which needs nothing beside it.
            copy.pragma_update(None, "journal_mode", "DELETE").map_err(sqlite)?;
            check(&copy, to)
        })();
        if copied.is_err() {
            // Half a backup would be taken for one.
            let _ = fs::remove_file(to);
            return copied;
        }
        fs::File::open(to).and_then(|file| file.sync_all()).map_err(io)
    }

    /// Looks whether a file is a sound store that this key opens, without changing it.
    ///
    /// # Errors
    /// What it is not.
    pub fn verify(path: &Path, key: &MasterKey) -> Result<(), OpenError> {
        let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
        let connection = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).map_err(sqlite)?;
        let found: i32 = connection
            .pragma_query_value(None, "application_id", |row| row.get(0))
            .map_err(|_| OpenError::Foreign(path.to_owned()))?;
        if found != APPLICATION {
            return Err(OpenError::Foreign(path.to_owned()));
        }
        check(&connection, path)?;
        let sealed: Vec<u8> = connection
            .query_row("SELECT value FROM meta WHERE key = ?1", [SECRET], |row| row.get(0))
            .map_err(sqlite)?;
        key.unseal(&Sealed(sealed), SECRET.as_bytes()).map_err(|error| OpenError::Key(path.to_owned(), error))?;
        Ok(())
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
        connection.pragma_update(None, "mmap_size", 256 << 20)?;
        Ok(connection)
    }

    /// Reads, on this thread, from the last commit.
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
        // The writer's connection is the last: whoever closes last leaves one file behind, and one that only reads cannot.
        self.readers.lock().clear();
        if let Some(writer) = self.writer.take()
            && writer.join().is_err()
        {
            tracing::error!("a fault of the host's own in the store; please report it");
        }
    }
}

fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // What is deleted, a sealed verifier say, is overwritten.
    connection.pragma_update(None, "secure_delete", true)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let number = |pragma: &str| transaction.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    let (application, format) = (number("application_id").map_err(sqlite)?, number("user_version").map_err(sqlite)?);
    let format = usize::try_from(format).unwrap_or(usize::MAX);
    let tables: u32 =
        transaction.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(sqlite)?;
    if application != APPLICATION && (application != 0 || tables > 0) {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    if format > MIGRATIONS.len() {
        return Err(OpenError::Newer { path: path.to_owned(), found: format, known: MIGRATIONS.len() });
    }
    if format < MIGRATIONS.len() {
        for step in &MIGRATIONS[format..] {
            transaction.execute_batch(step).map_err(sqlite)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(sqlite)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32).map_err(sqlite)?;
    }
    transaction.commit().map_err(sqlite)
}

fn secret(connection: &Connection, path: &Path, key: &MasterKey, random: &[u8; 56]) -> Result<StoreSecret, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
    let sealed: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [SECRET], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    if let Some(sealed) = sealed {
        let wrong = |error| OpenError::Key(path.to_owned(), error);
        let plain = key.unseal(&Sealed(sealed), SECRET.as_bytes()).map_err(wrong)?;
        let bytes = plain.as_slice().try_into().map_err(|_| wrong(CredentialError::Sealed))?;
        return Ok(StoreSecret::new(bytes));
    }
    let (mut new, mut nonce) = ([0; 32], [0; 24]);
    new.copy_from_slice(&random[..32]);
    nonce.copy_from_slice(&random[32..]);
    let sealed = key.seal(&new, SECRET.as_bytes(), &nonce);
    connection.execute("INSERT INTO meta VALUES (?1, ?2)", params![SECRET, sealed.0]).map_err(sqlite)?;
    Ok(StoreSecret::new(new))
}

fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let said: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| OpenError::Sqlite { path: path.to_owned(), error })?;
    if said == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: path.to_owned(), what: said }) }
}

/// The thread that writes.
fn write(mut connection: Connection, jobs: &Receiver<Job>, secret: &StoreSecret, head: &Path) {
    while let Ok(first) = jobs.recv() {
        let mut size = first.size();
        let mut urgent = first.is_urgent();
        let mut group = vec![first];
        let by = Instant::now() + LINGER;
        while size < GROUP_BYTES {
            let next = match urgent {
                true => jobs.try_recv().ok(),
                // Nobody waits for what there is: some more may come.
                false => jobs.recv_timeout(by.saturating_duration_since(Instant::now())).ok(),
            };
            let Some(job) = next else { break };
            size += job.size();
            urgent |= job.is_urgent();
            group.push(job);
        }
        commit(&mut connection, group, secret, head);
    }
}

impl Job {
    /// Whether somebody waits for it: not for lines of the trail, and what else follows a login.
    fn is_urgent(&self) -> bool {
        !self.writes.iter().all(|write| matches!(write, Write::Audit(_) | Write::Source { .. } | Write::Failures(..)))
    }

    fn size(&self) -> usize {
        let size = |write: &Write| match write {
            Write::State(change) => change.state.len(),
            Write::Data { entries, .. } => {
                entries.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
            }
            _ => 1024,
        };
        self.writes.iter().map(size).sum()
    }
}

/// Commits a group: each job whole or not at all, whatever becomes of the others, unless the disk refuses all.
fn commit(connection: &mut Connection, group: Vec<Job>, secret: &StoreSecret, head: &Path) {
    let (done, jobs): (Vec<Done<()>>, Vec<Vec<Write>>) = group.into_iter().map(|job| (job.done, job.writes)).unzip();
    let mut last = None;
    let results = (|| -> rusqlite::Result<Vec<Result<(), StoreError>>> {
        let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
        let mut results = Vec::with_capacity(jobs.len());
        for writes in &jobs {
            let savepoint = transaction.savepoint()?;
            let mut written = Ok(());
            for write in writes {
                written = apply(&savepoint, write, secret, &mut last);
                if written.is_err() {
                    break;
                }
            }
            match &written {
                Ok(()) => savepoint.commit()?,
                Err(_) => {
                    last = None;
                    // Rolled back by its drop; if the whole transaction is gone, nothing of the group was done.
                    drop(savepoint);
                    if transaction.is_autocommit() {
                        return Err(rusqlite::Error::ToSqlConversionFailure(
                            written.err().map_or_else(String::new, |error| error.to_string()).into(),
                        ));
                    }
                }
            }
            results.push(written);
        }
        transaction.commit()?;
        Ok(results)
    })();
    match results {
        Ok(results) => {
            if let Some(head_line) = last {
                note_head(head, &head_line);
            }
            for (done, result) in done.into_iter().zip(results) {
                done(result);
            }
        }
        Err(error) => {
            let error = match error {
                rusqlite::Error::ToSqlConversionFailure(said) => StoreError::Failed(said.to_string()),
                error => error.into(),
            };
            tracing::error!(%error, "nothing could be committed");
            for done in done {
                done(Err(error.clone()));
            }
        }
    }
}

/// Notes the trail's head down. It may be an older one after a power cut, never a newer one.
fn note_head(path: &Path, head: &audit::Head) {
    use std::os::unix::fs::OpenOptionsExt;
    let half = path.with_extension("head.new");
    let noted = fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(&half)
        .and_then(|mut file| writeln!(file, "{head}"))
        .and_then(|()| fs::rename(&half, path));
    if let Err(error) = noted {
        tracing::warn!(%error, "the head of the audit trail cannot be noted down in {}", path.display());
    }
}

fn apply(
    connection: &Connection,
    write: &Write,
    secret: &StoreSecret,
    last: &mut Option<audit::Head>,
) -> Result<(), StoreError> {
    let run = |sql: &str, values: &[&dyn rusqlite::ToSql]| connection.prepare_cached(sql)?.execute(values);
    let must = |changed: usize, what: String| if changed == 1 { Ok(()) } else { Err(StoreError::Conflict(what)) };
    match write {
        Write::State(Change { service, perspective, state, base, version }) => {
            let changed = if *base == 0 {
                run(
                    "INSERT INTO state (service, perspective, version, state) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT DO NOTHING",
                    &[service, perspective, &version.cast_signed(), state],
                )?
            } else {
                run(
                    "UPDATE state SET version = ?3, state = ?4
                     WHERE service = ?1 AND perspective = ?2 AND version = ?5",
                    &[service, perspective, &version.cast_signed(), state, &base.cast_signed()],
                )?
            };
            must(changed, format!("the state of {service}/{perspective}"))
        }
        Write::Data { service, base, entries } => {
            let changed = run(
                "INSERT INTO data_version (service, version) VALUES (?1, ?2 + 1)
                 ON CONFLICT DO UPDATE SET version = ?2 + 1 WHERE version = ?2",
                &[service, &base.cast_signed()],
            )?;
            must(changed, format!("the data of {service}"))?;
            for (key, value) in entries {
                match value {
                    Some(value) => run(
                        "INSERT INTO data (service, key, value) VALUES (?1, ?2, ?3)
                         ON CONFLICT DO UPDATE SET value = ?3",
                        &[service, key, value],
                    )?,
                    None => run("DELETE FROM data WHERE service = ?1 AND key = ?2", &[service, key])?,
                };
            }
            Ok(())
        }
        Write::Identity { identity, base } => {
            let name = identity.name.as_str();
            let record = serde_json::to_string(&Record::from(&**identity))
                .map_err(|error| StoreError::Failed(error.to_string()))?;
            let changed = if *base == 0 {
                run("INSERT INTO identity VALUES (?1, 1, ?2) ON CONFLICT DO NOTHING", &[&name, &record])?
            } else {
                run("DELETE FROM token WHERE name = ?1", &[&name])?;
                run(
                    "UPDATE identity SET version = ?2 + 1, record = ?3 WHERE name = ?1 AND version = ?2",
                    &[&name, &base.cast_signed(), &record],
                )?
            };
            must(changed, format!("the identity {name}"))?;
            for credential in &identity.credentials {
                if let ProofBy::Token(digest) = &credential.proof {
                    run("INSERT INTO token VALUES (?1, ?2)", &[&digest.as_slice(), &name])?;
                }
            }
            Ok(())
        }
        Write::Remove { name, base } => {
            let changed = run("DELETE FROM identity WHERE name = ?1 AND version = ?2", &[name, &base.cast_signed()])?;
            must(changed, format!("the identity {name}"))?;
            run("DELETE FROM token WHERE name = ?1", &[name])?;
            run("DELETE FROM source WHERE name = ?1", &[name])?;
            Ok(())
        }
        Write::Source { name, source, at } => {
            run(
                "INSERT INTO source VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET at = ?3",
                &[name, &source.as_slice(), &at.cast_signed()],
            )?;
            run(
                "DELETE FROM source WHERE name = ?1 AND source NOT IN
                     (SELECT source FROM source WHERE name = ?1 ORDER BY at DESC LIMIT ?2)",
                &[name, &SOURCES],
            )?;
            Ok(())
        }
        Write::Failures(Counter { name, source }, count) => {
            let source = source.as_ref().map_or(&[][..], |source| source.as_slice());
            if *count == 0 {
                run("DELETE FROM failure WHERE name = ?1 AND source = ?2", &[&name.as_slice(), &source])?;
            } else {
                run(
                    "INSERT INTO failure VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET count = ?3",
                    &[&name.as_slice(), &source, count],
                )?;
            }
            Ok(())
        }
        Write::Audit(event) => {
            let before = match last.take() {
                Some(before) => before,
                None => connection
                    .prepare_cached("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1")?
                    .query_row([], |row| {
                        Ok(audit::Head { number: row.get::<_, i64>(0)?.cast_unsigned(), digest: row.get(1)? })
                    })
                    .optional()?
                    .unwrap_or(audit::Head { number: 0, digest: audit::BEGINNING.to_owned() }),
            };
            let (number, text) = (before.number + 1, event.text());
            let digest = audit::digest(secret, &before.digest, number, &text);
            run("INSERT INTO audit VALUES (?1, ?2, ?3)", &[&number.cast_signed(), &text, &digest])?;
            *last = Some(audit::Head { number, digest });
            Ok(())
        }
    }
}

fn kept(row: &rusqlite::Row<'_>) -> rusqlite::Result<Kept> {
    let wrong = |why: String| rusqlite::Error::FromSqlConversionFailure(1, rusqlite::types::Type::Text, why.into());
    let text = row.get_ref(1)?.as_str()?;
    let record: Record = serde_json::from_str(text).map_err(|error| wrong(error.to_string()))?;
    let identity = record.identity().map_err(|error| wrong(error.to_string()))?;
    Ok(Kept { identity: Arc::new(identity), version: row.get::<_, i64>(0)?.cast_unsigned() })
}

impl Store for SqliteStore {
    fn commit(&self, writes: Vec<Write>, done: Done<()>) {
        if writes.is_empty() {
            return done(Ok(()));
        }
        let Some(jobs) = &self.jobs else { return };
        if let Err(unsent) = jobs.send(Job { writes, done }) {
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
            // Both from one commit.
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
                if entries.entries.len() == range.limit || (bytes > ENTRIES_BYTES && !entries.entries.is_empty()) {
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
            // No name is empty: all come after it.
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

    fn failures(&self, done: Done<Vec<(Counter, u32)>>) {
        self.read(done, |connection| {
            let mut statement = connection.prepare("SELECT name, source, count FROM failure")?;
            let counters = statement.query_map([], |row| {
                let (name, source): (Vec<u8>, Vec<u8>) = (row.get(0)?, row.get(1)?);
                let counter = name.try_into().ok().map(|name| Counter { name, source: source.try_into().ok() });
                Ok(counter.zip(Some(row.get(2)?)))
            })?;
            // What is none cannot be anybody's.
            counters.filter_map(Result::transpose).collect()
        });
    }

    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>) {
        self.read(done, |connection| {
            let mut statement = connection
                .prepare_cached("SELECT number, text, digest FROM audit WHERE number > ?1 ORDER BY number LIMIT ?2")?;
            statement
                .query_map(params![after.cast_signed(), limit.cast_signed()], |row| {
                    Ok(audit::Line {
                        number: row.get::<_, i64>(0)?.cast_unsigned(),
                        text: row.get(1)?,
                        digest: row.get(2)?,
                    })
                })?
                .collect()
        });
    }
}

#[cfg(test)]
mod tests;
