//! The writer thread. Jobs that wait while it commits are committed together, next.

use std::fs;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OptionalExtension, TransactionBehavior};

use super::open::give_back;
use super::reserve::Reserve;
use super::{ANCHOR, FULL, Job, anchor};
use crate::cred::StoreSecret;
use crate::cred::throttle::Counter;
use crate::health;
use crate::store::audit::Edge;
use crate::store::{Change, Record, StoreError, Write, audit};

/// The most bytes of writes in one commit.
const GROUP_BYTES: usize = 16 << 20;
/// The longest delay of writes that nobody waits for. They are committed together with those that arrive in that time.
const LINGER: Duration = Duration::from_millis(20);
/// The event of a password that was hashed again.
const REHASHED: &str = "identity.rehashed";
/// The number of sources that are stored for each identity: the latest ones.
const SOURCES: u32 = 16;
/// The state of the writer thread.
pub(super) struct Writer {
    pub(super) connection: Connection,
    pub(super) secret: StoreSecret,
    /// The file for the trail's head.
    pub(super) head: PathBuf,
    /// The last line that is known to be written. It cannot be removed unnoticed.
    pub(super) noted: Option<audit::Head>,
    /// Known lines are missing. The recorded head is then kept, so that `audit verify` reports it.
    pub(super) cut_off: bool,
    pub(super) reserve: Reserve,
}

/// The main loop of the writer thread.
pub(super) fn write(mut writer: Writer, jobs: &Receiver<Job>) {
    while let Ok(first) = jobs.recv() {
        let mut size = first.size();
        let mut urgent = first.is_urgent();
        let mut group = vec![first];
        let by = Instant::now() + LINGER;
        while size < GROUP_BYTES {
            let next = match urgent {
                true => jobs.try_recv().ok(),
                // Nobody waits for the jobs so far, so more may be collected.
                false => jobs.recv_timeout(by.saturating_duration_since(Instant::now())).ok(),
            };
            let Some(job) = next else { break };
            size += job.size();
            urgent |= job.is_urgent();
            group.push(job);
        }
        // If a job is dropped, its waiting caller notices.
        health::contained("in the store", || writer.commit(group));
    }
}

impl Job {
    /// Whether somebody waits for it. Nobody waits for lines of the trail and the other writes after a login.
    fn is_urgent(&self) -> bool {
        // An empty job waits for those before it.
        self.writes.is_empty()
            || !self
                .writes
                .iter()
                .all(|write| matches!(write, Write::Audit(_) | Write::Source { .. } | Write::Failures(..)))
    }

    /// Whether it may revoke something, or frees space. Such jobs are committed even if the disk is full.
    fn takes_away(&self) -> bool {
        let takes = |write: &Write| match write {
            Write::Remove { .. } | Write::Prune { .. } => true,
            Write::Identity { base, .. } => *base > 0,
            _ => false,
        };
        // A rehash after a login can wait.
        let rehash = |write: &Write| matches!(write, Write::Audit(event) if event.what == REHASHED);
        self.writes.iter().any(takes) && !self.writes.iter().any(rehash)
    }

    /// Whether it drops lines of the trail.
    fn prunes(&self) -> bool {
        self.writes.iter().any(|write| matches!(write, Write::Prune { .. }))
    }

    fn size(&self) -> usize {
        let size = |write: &Write| match write {
            Write::State(change) => change.state.len(),
            Write::Data { entries, .. } => {
                entries.iter().map(|(key, value)| key.len() + value.as_ref().map_or(0, Vec::len)).sum()
            }
            Write::Audit(event) => event.size(),
            _ => 1024,
        };
        self.writes.iter().map(size).sum()
    }
}

/// The result of each job in a group, and the trail's last line if lines were added.
type Committed = (Vec<Result<(), StoreError>>, Option<audit::Head>);

impl Writer {
    pub(super) fn new(connection: Connection, secret: StoreSecret, head: PathBuf, reserve: Reserve) -> Self {
        let noted = fs::read_to_string(&head).ok();
        let noted = noted.and_then(|text| audit::Head::unsealed(&text, Edge::Head, &secret));
        // The host may have ended between a commit and the recording of the head. So the trail can be ahead of the
        // recorded head, but never behind it.
        let at = noted.as_ref().map(|noted| line(&connection, noted.number));
        let last = last_line(&connection, &secret).ok();
        let gone = |noted: &audit::Head| {
            let pruned = anchor(&connection, &secret).is_ok_and(|anchor| anchor.number >= noted.number);
            !pruned && !matches!(&at, Some(Ok(Some(digest))) if *digest == noted.digest)
        };
        let cut_off = noted.as_ref().is_some_and(gone);
        if cut_off {
            tracing::error!("lines of the audit trail are missing; see `credhost audit verify`");
        }
        Self { connection, secret, head, noted: last, cut_off, reserve }
    }

    /// Commits a group. Each job is applied completely or not at all, independent of the others, unless the disk
    /// refuses all.
    pub(super) fn commit(&mut self, group: Vec<Job>) {
        if let Some(bytes) = group.iter().rev().find_map(|job| job.reserves) {
            self.reserve.set_size(bytes);
        }
        // Frees the space that a failed commit left in the log.
        let connection = &self.connection;
        let make_room = || {
            if let Err(error) = connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())) {
                tracing::debug!(%error, "the store's log cannot be shortened just now");
            }
        };
        if self.reserve.is_spent(make_room) {
            return self.commit_what_takes_away(group, &StoreError::Failed("the disk is full".to_owned()));
        }
        match self.try_commit(&group) {
            Ok(committed) => {
                let pruned =
                    group.iter().any(|job| job.writes.iter().any(|write| matches!(write, Write::Prune { .. })));
                self.tell(group, committed);
                if pruned && let Err(error) = give_back(&self.connection) {
                    tracing::debug!(%error, "the store's file cannot be made shorter just now");
                }
            }
            Err((error, true)) if self.reserve.spend() => self.commit_what_takes_away(group, &error),
            Err((error, _)) => refuse(group, &error),
        }
    }

    fn commit_what_takes_away(&mut self, group: Vec<Job>, error: &StoreError) {
        let (takes_away, others): (Vec<Job>, Vec<Job>) = group.into_iter().partition(Job::takes_away);
        if !others.is_empty() {
            refuse(others, error);
        }
        if takes_away.is_empty() {
            return;
        }
        let pruned = takes_away.iter().any(Job::prunes);
        match self.try_commit(&takes_away) {
            Ok(committed) => self.tell(takes_away, committed),
            Err((error, _)) => refuse(takes_away, &error),
        }
        // The space is needed now, and the file shrinks only when the log is written back.
        let shorter = || -> rusqlite::Result<()> {
            give_back(&self.connection)?;
            self.connection.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))
        };
        if pruned && let Err(error) = shorter() {
            tracing::debug!(%error, "the store's file cannot be made shorter just now");
        }
    }

    /// Commits a group. If nothing was committed, returns the error, and whether the disk is full.
    fn try_commit(&mut self, group: &[Job]) -> Result<Committed, (StoreError, bool)> {
        let (secret, connection) = (&self.secret, &mut self.connection);
        let (mut last, mut before, mut found) = (None, None, None);
        let results = (|| -> rusqlite::Result<Vec<Result<(), StoreError>>> {
            let mut transaction = connection.transaction_with_behavior(TransactionBehavior::Immediate)?;
            if group.iter().any(|job| job.writes.iter().any(|write| matches!(write, Write::Audit(_)))) {
                found = last_line(&transaction, secret).ok();
                (last, before) = (found.clone(), found.clone());
            }
            let mut results = Vec::with_capacity(group.len());
            for job in group {
                let savepoint = transaction.savepoint()?;
                let mut written = Ok(());
                for write in &job.writes {
                    written = apply(&savepoint, write, secret, &mut last);
                    if written.is_err() {
                        break;
                    }
                }
                match &written {
                    Ok(()) => {
                        savepoint.commit()?;
                        before.clone_from(&last);
                    }
                    Err(_) => {
                        last.clone_from(&before);
                        // Dropping it rolls back. If the whole transaction is gone, nothing of the group was committed.
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
        if let (Some(noted), Some(found)) = (&self.noted, &found)
            && noted != found
            && !std::mem::replace(&mut self.cut_off, true)
        {
            tracing::error!(written = noted.number, found = found.number, "lines of the audit trail are missing");
        }
        match results {
            Ok(results) => Ok((results, last.filter(|last| found.as_ref() != Some(last)))),
            Err(rusqlite::Error::ToSqlConversionFailure(said)) => {
                let said = said.to_string();
                let full = said.contains(FULL);
                Err((StoreError::Failed(said), full))
            }
            Err(error) => {
                let full = is_full(&error);
                Err((error.into(), full))
            }
        }
    }

    fn tell(&mut self, group: Vec<Job>, (results, last): Committed) {
        if let Some(last) = last {
            if !self.cut_off {
                note_head(&self.head, &last.sealed(Edge::Head, &self.secret));
            }
            self.noted = Some(last);
        }
        for (job, result) in group.into_iter().zip(results) {
            health::contained("behind a commit", || (job.done)(result));
        }
    }
}

/// Whether the disk is full. Some failures for lack of space have other codes: an exceeded quota, and the file beside
/// the log.
fn is_full(error: &rusqlite::Error) -> bool {
    use rusqlite::ffi;
    let other = [ffi::SQLITE_IOERR_WRITE, ffi::SQLITE_IOERR_SHMSIZE, ffi::SQLITE_IOERR_TRUNCATE];
    match error {
        rusqlite::Error::SqliteFailure(failure, _) => {
            failure.code == rusqlite::ErrorCode::DiskFull || other.contains(&failure.extended_code)
        }
        _ => false,
    }
}

fn refuse(group: Vec<Job>, error: &StoreError) {
    tracing::error!(%error, "nothing could be committed");
    for job in group {
        health::contained("behind a commit", || (job.done)(Err(error.clone())));
    }
}

/// Records the trail's head. After a power cut the file may have an older head, but never a newer one.
fn note_head(path: &Path, head: &str) {
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
        tracing::warn!(%error, "the head of the audit trail cannot be written to {}", path.display());
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
                if let Some(digest) = credential.proof.digest() {
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
            // An update once a day is enough to know which sources are in use.
            let changed = run(
                "INSERT INTO source VALUES (?1, ?2, ?3) ON CONFLICT DO UPDATE SET at = ?3 WHERE at < ?3 - 86400",
                &[name, &source.as_slice(), &at.cast_signed()],
            )?;
            if changed == 0 {
                return Ok(());
            }
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
                None => last_line(connection, secret)?,
            };
            let (number, text) = (before.number + 1, event.text());
            let digest = audit::digest(secret, &before.digest, number, &text);
            run("INSERT INTO audit VALUES (?1, ?2, ?3)", &[&number.cast_signed(), &text, &digest])?;
            *last = Some(audit::Head { number, digest });
            Ok(())
        }
        Write::Prune { through, digest } => {
            let there = connection
                .prepare_cached("SELECT 1 FROM audit WHERE number = ?1 AND digest = ?2")?
                .exists(rusqlite::params![through.cast_signed(), digest])?;
            if !there {
                return Err(StoreError::Conflict(format!("line {through} of the audit trail")));
            }
            let digest = digest.clone();
            let anchor = audit::Head { number: *through, digest }.sealed(Edge::Anchor, secret);
            run("DELETE FROM audit WHERE number <= ?1", &[&through.cast_signed()])?;
            run("INSERT INTO meta VALUES (?1, ?2) ON CONFLICT DO UPDATE SET value = ?2", &[&ANCHOR, &anchor])?;
            Ok(())
        }
    }
}

/// The last line of the trail, or the last dropped line if there is none.
fn last_line(connection: &Connection, secret: &StoreSecret) -> Result<audit::Head, StoreError> {
    let last = connection
        .prepare_cached("SELECT number, digest FROM audit ORDER BY number DESC LIMIT 1")?
        .query_row([], |row| Ok(audit::Head { number: row.get::<_, i64>(0)?.cast_unsigned(), digest: row.get(1)? }))
        .optional()?;
    last.map_or_else(|| anchor(connection, secret), Ok)
}

/// Returns the digest of a line.
fn line(connection: &Connection, number: u64) -> rusqlite::Result<Option<String>> {
    connection
        .prepare_cached("SELECT digest FROM audit WHERE number = ?1")?
        .query_row([number.cast_signed()], |row| row.get(0))
        .optional()
}
