//! Opening a store: its owner, its format, and its secret.

use std::path::{Path, PathBuf};
use std::time::Duration;

use rusqlite::{Connection, OptionalExtension, TransactionBehavior, params};
use rustix::fs::statvfs;

use crate::cred::{CredentialError, MasterKey, Sealed, StoreSecret};

/// "cred", by which `file store.db` and this program recognize a store.
pub(super) const APPLICATION: i32 = 0x6372_6564;
/// The number of failure counters that are kept from one start to the next.
pub(super) const FAILURES: u32 = 100_000;
/// The purpose that the store's secret is sealed for.
pub(super) const SECRET: &str = "store secret";

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum OpenError {
    /// SQLite reported an error.
    #[error("{path}: {error}{}", if error.sqlite_error_code() == Some(rusqlite::ErrorCode::DatabaseCorrupt) { "; `credhost restore FILE` goes back to a backup" } else { "" })]
    Sqlite {
        /// The file.
        path: PathBuf,
        /// The error.
        error: rusqlite::Error,
    },
    /// A file beside it cannot be read or written.
    #[error("{path}: {error}")]
    Io {
        /// The file.
        path: PathBuf,
        /// The error.
        error: std::io::Error,
    },
    /// It belongs to another program.
    #[error("{0} is not a store of credhost")]
    Foreign(PathBuf),
    /// It was written by a newer credhost.
    #[error("{path} was written by a newer credhost (its format is {found}, this one knows {known}); use that one")]
    Newer {
        /// The file.
        path: PathBuf,
        /// Its format.
        found: usize,
        /// The newest format that this program knows.
        known: usize,
    },
    /// The master key is a different one.
    #[error("{0} was made with another master.key: {1}")]
    Key(PathBuf, CredentialError),
    /// It is damaged.
    #[error("{path} is damaged: {what}; `credhost restore FILE` goes back to a backup")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// The damage.
        what: String,
    },
}

/// Migrations from an empty file to the current format, in order. Only append to them.
pub(super) const MIGRATIONS: [&str; 1] = ["
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

/// The largest store, in bytes, that is rewritten once so that its file can shrink.
const ANEW: i64 = 64 << 20;

/// Enables the file to shrink after deletions: see [`give_back`]. A new file can do so from the beginning.
pub(super) fn make_shrinkable(connection: &Connection, path: &Path) -> rusqlite::Result<()> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i64>(0));
    if number("auto_vacuum")? == INCREMENTAL {
        return Ok(());
    }
    let bytes = number("page_count")?.saturating_mul(number("page_size")?);
    // VACUUM writes into a temporary file and into the log.
    let room = statvfs(path).map_or(0, |disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    if bytes <= ANEW && room / 4 >= bytes.cast_unsigned() {
        connection.execute_batch("PRAGMA auto_vacuum = INCREMENTAL; VACUUM;")?;
        connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
    }
    Ok(())
}

/// SQLite's number for this mode.
const INCREMENTAL: i64 = 2;
/// The number of free pages that are kept for later writes.
const SPARE: i64 = 1024;
/// The most pages that are given back at once.
const AT_ONCE: i64 = 4096;

/// Gives free pages back to the file system. Each call gives back at most [`AT_ONCE`]: more than a page of the trail's
/// lines occupies, but few enough that others do not wait long.
pub(super) fn give_back(connection: &Connection) -> rusqlite::Result<()> {
    let free: i64 = connection.pragma_query_value(None, "freelist_count", |row| row.get(0))?;
    let most = (free - SPARE).min(AT_ONCE);
    if most > 0 {
        // It returns a row for each page, and continues as the rows are read.
        let mut statement = connection.prepare(&format!("PRAGMA incremental_vacuum({most})"))?;
        let mut pages = statement.query([])?;
        while pages.next()?.is_some() {}
    }
    Ok(())
}

pub(super) fn prepare(connection: &Connection) -> rusqlite::Result<()> {
    connection.busy_timeout(Duration::from_secs(5))?;
    connection.pragma_update(None, "journal_mode", "WAL")?;
    connection.pragma_update(None, "synchronous", "FULL")?;
    // Deleted content, such as a sealed verifier, is overwritten.
    connection.pragma_update(None, "secure_delete", true)?;
    // The log shrinks again after a large commit.
    connection.pragma_update(None, "journal_size_limit", 8 << 20)?;
    connection.set_prepared_statement_cache_capacity(64);
    Ok(())
}

/// Checks that the file is this program's or empty, and that its format is known. Returns the format.
pub(super) fn belongs(connection: &Connection, path: &Path) -> Result<usize, OpenError> {
    let number = |pragma: &str| connection.pragma_query_value(None, pragma, |row| row.get::<_, i32>(0));
    // A file that is not a database belongs to another program.
    let foreign = |_| OpenError::Foreign(path.to_owned());
    let (application, format) = (number("application_id").map_err(foreign)?, number("user_version").map_err(foreign)?);
    let format = usize::try_from(format).unwrap_or(usize::MAX);
    let tables: u32 =
        connection.query_row("SELECT count(*) FROM sqlite_schema", [], |row| row.get(0)).map_err(foreign)?;
    if application != APPLICATION && (application != 0 || tables > 0) {
        return Err(OpenError::Foreign(path.to_owned()));
    }
    if format > MIGRATIONS.len() {
        return Err(OpenError::Newer { path: path.to_owned(), found: format, known: MIGRATIONS.len() });
    }
    Ok(format)
}

/// Migrates the format to the current one.
pub(super) fn migrate(connection: &mut Connection, path: &Path) -> Result<(), OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
    let transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate).map_err(sqlite)?;
    let format = belongs(&transaction, path)?;
    if format < MIGRATIONS.len() {
        for step in &MIGRATIONS[format..] {
            transaction.execute_batch(step).map_err(sqlite)?;
        }
        transaction.pragma_update(None, "application_id", APPLICATION).map_err(sqlite)?;
        transaction.pragma_update(None, "user_version", MIGRATIONS.len() as u32).map_err(sqlite)?;
    }
    let trimmed = "DELETE FROM failure WHERE (SELECT count(*) FROM failure) > ?1 AND (name, source) NOT IN
                       (SELECT name, source FROM failure ORDER BY count DESC LIMIT ?1)";
    transaction.execute(trimmed, [FAILURES]).map_err(sqlite)?;
    transaction.commit().map_err(sqlite)
}

/// Returns the store's secret, if it has one.
pub(super) fn secret_of(
    connection: &Connection,
    path: &Path,
    key: &MasterKey,
) -> Result<Option<StoreSecret>, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
    let sealed: Option<Vec<u8>> = connection
        .query_row("SELECT value FROM meta WHERE key = ?1", [SECRET], |row| row.get(0))
        .optional()
        .map_err(sqlite)?;
    let Some(sealed) = sealed else { return Ok(None) };
    let wrong = |error| OpenError::Key(path.to_owned(), error);
    let plain = key.unseal(&Sealed(sealed), SECRET.as_bytes()).map_err(wrong)?;
    let bytes = plain.as_slice().try_into().map_err(|_| wrong(CredentialError::Sealed))?;
    Ok(Some(StoreSecret::new(bytes)))
}

/// Returns the store's secret. If it has none yet, creates it from these random bytes.
pub(super) fn secret(
    connection: &Connection,
    path: &Path,
    key: &MasterKey,
    random: &[u8; 56],
) -> Result<StoreSecret, OpenError> {
    let sqlite = |error| OpenError::Sqlite { path: path.to_owned(), error };
    if let Some(secret) = secret_of(connection, path, key)? {
        return Ok(secret);
    }
    let (mut new, mut nonce) = ([0; 32], [0; 24]);
    new.copy_from_slice(&random[..32]);
    nonce.copy_from_slice(&random[32..]);
    let sealed = key.seal(&new, SECRET.as_bytes(), &nonce);
    connection.execute("INSERT INTO meta VALUES (?1, ?2)", params![SECRET, sealed.0]).map_err(sqlite)?;
    Ok(StoreSecret::new(new))
}

pub(super) fn check(connection: &Connection, path: &Path) -> Result<(), OpenError> {
    let said: String = connection
        .query_row("PRAGMA integrity_check(1)", [], |row| row.get(0))
        .map_err(|error| OpenError::Sqlite { path: path.to_owned(), error })?;
    if said == "ok" { Ok(()) } else { Err(OpenError::Damaged { path: path.to_owned(), what: said }) }
}
