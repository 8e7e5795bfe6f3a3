//! Persistent data: identities, the states of perspectives and services, services' own data, the audit trail.
//!
//! One trait, [`Store`]. Each write names the version that it was made from, so that a second writer is detected and
//! never overwritten. So a store that several hosts share can implement it, too. No client learns of a change before
//! its commit: see `multiservice::outgoing`.

pub mod audit;
mod authorizer;
mod memory;
mod record;
mod sqlite;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use authorizer::StoreAuthorizer;
pub use memory::MemoryStore;
pub use record::{CredentialRecord, LATEST, Record, RecordError};
pub use sqlite::reserve::path as reserve;
pub use sqlite::{OpenError, SqliteStore};

use crate::cred::throttle::Counter;
use crate::cred::{Identity, MasterKey, StoreSecret, TokenDigest};

/// A saved state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Saved {
    /// The state, in Jelly.
    pub state: Vec<u8>,
    /// The number of times that it was saved. A state that was never saved has version 0.
    pub version: u64,
}

/// A state to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The service's name.
    pub service: String,
    /// The perspective's name; empty for the service itself.
    pub perspective: String,
    /// The state, in Jelly.
    pub state: Vec<u8>,
    /// The version that it was made from.
    pub base: u64,
    /// Its new version.
    pub version: u64,
}

/// A stored identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The identity.
    pub identity: Arc<Identity>,
    /// The number of times that it was written.
    pub version: u64,
}

/// A change to commit.
#[derive(Debug, Clone)]
pub enum Write {
    /// A state.
    State(Change),
    /// Some of a service's data: keys with their new values, or with nothing to remove them.
    Data {
        /// The service's name.
        service: String,
        /// The version of the service's data that it was made from.
        base: u64,
        /// Keys and values.
        entries: Vec<(Vec<u8>, Option<Vec<u8>>)>,
    },
    /// An identity, new or changed.
    Identity {
        /// The new content.
        identity: Arc<Identity>,
        /// The version that it was made from. 0: no identity of this name may exist.
        base: u64,
    },
    /// Removes an identity.
    Remove {
        /// Its name.
        name: String,
        /// The version to be removed.
        base: u64,
    },
    /// A source that an identity has logged in from.
    Source {
        /// The identity's name.
        name: String,
        /// A digest of the source.
        source: [u8; 16],
        /// The time of the login, in seconds since 1970.
        at: u64,
    },
    /// The state of a counter of failed logins; 0 removes it.
    Failures(Counter, u32),
    /// A line of the audit trail.
    Audit(audit::Event),
    /// Drops this line of the audit trail, and all lines before it. The trail then begins after it.
    Prune {
        /// The line's number.
        through: u64,
        /// Its digest, as it was verified. A line with another digest is not dropped.
        digest: String,
    },
}

/// Some of a service's data.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Entries {
    /// Keys and values, in order.
    pub entries: Vec<(Vec<u8>, Vec<u8>)>,
    /// Whether there are more in the range.
    pub more: bool,
    /// The version of the service's data.
    pub version: u64,
}

/// A range of a service's data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Range {
    /// The first key.
    pub from: Vec<u8>,
    /// The first key after the range; `None` for no upper bound.
    pub to: Option<Vec<u8>>,
    /// The most entries to return.
    pub limit: usize,
    /// Whether the order is reversed.
    pub reverse: bool,
    /// The most bytes to return, keys and values together. One entry is returned in any case, if there is one.
    pub bytes: usize,
}

/// Why a store failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Someone else has changed it meanwhile. Nothing was overwritten.
    #[error("{0} has changed meanwhile; nothing was overwritten")]
    Conflict(String),
    /// It cannot be written or read, for example because the disk is full.
    #[error("the store: {0}")]
    Failed(String),
    /// Another version of the service holds this state at the moment. The text says which, in a sentence.
    #[error("{0}")]
    Elsewhere(String),
    /// A backup cannot be made.
    #[error("the backup failed: {what}")]
    Backup {
        /// The cause, in a sentence.
        what: String,
        /// Its kind.
        fault: BackupFault,
    },
}

/// Why a backup cannot be made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BackupFault {
    /// Its file exists already, or cannot be created.
    File,
    /// The disk is full, or fails.
    Disk,
    /// The store or the copy of it is damaged.
    Damage,
}

/// The callback for a store's answer. It may be called on any thread, before the store's method returns or later.
pub type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Stores data. Commits of one caller happen in the order of the calls.
pub trait Store: Send + Sync + 'static {
    /// Commits all of these, or none.
    fn commit(&self, writes: Vec<Write>, done: Done<()>);

    /// Answers when every earlier commit is done or has failed, including commits that nobody waits for, which are
    /// delayed a little.
    fn settle(&self, done: Done<()>) {
        done(Ok(()));
    }

    /// Reserves disk space from now on, so that revocations (an identity is changed or removed) can be committed even
    /// when everything else fails because the disk is full. A store without such a reserve does nothing.
    fn keep_room(&self, _bytes: u64) {}

    /// Returns the last committed state, if there is one.
    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>);

    /// Returns some of a service's data.
    fn data(&self, service: &str, range: &Range, done: Done<Entries>);

    /// Returns the identity of this name.
    fn identity(&self, name: &str, done: Done<Option<Kept>>);

    /// Returns saved states of a service, sorted by the perspectives' names (the service's own state has an empty
    /// name): at most `limit` of those after this name.
    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>);

    /// Returns the identity that has this token.
    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>);

    /// Returns identities, sorted by name: at most `limit` of those after this name.
    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>);

    /// Whether an identity has logged in from this source.
    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>);

    /// Returns digests of sources of earlier logins, the latest first, at most `limit`.
    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>);

    /// Returns the stored counters of failed logins.
    fn failures(&self, done: Done<Vec<(Counter, u32)>>);

    /// Returns lines of the audit trail: at most `limit` of those after this number, and fewer if they are long.
    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>);

    /// Returns the head before the first line of the audit trail: the last dropped line, or nothing.
    fn anchor(&self, done: Done<audit::Head>);

    /// The secret from which the store's own keys are derived: for the trail, and for hidden names.
    fn secret(&self) -> &StoreSecret;

    /// Seals that secret under the newest part of the master key, so that the older parts can be discarded.
    ///
    /// # Errors
    /// If it cannot be written. The old part then still opens it.
    fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError>;

    /// Checks everything for damage. This may take long.
    ///
    /// # Errors
    /// If something is damaged.
    fn check(&self) -> Result<(), StoreError>;

    /// Copies everything, as of one moment, into a new file, and verifies the copy. This may take long. `progress` is
    /// called with the remaining and the total amount.
    ///
    /// # Errors
    /// If the file exists already or cannot be written, or if the store does not support backups.
    fn backup(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError>;

    /// The file outside of the store in which the head of the trail is recorded, if there is one.
    fn head(&self) -> Option<PathBuf>;
}

/// Waits for a store's answer.
///
/// # Errors
/// As the store.
pub async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StoreError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // The caller may have ended.
    question(Box::new(move |result| drop(answer.send(result))));
    answered.await.unwrap_or_else(|_| Err(StoreError::Failed("it has ended".to_owned())))
}

/// Waits for a store's answer on a thread that may block.
///
/// # Errors
/// As the store.
pub fn wait<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StoreError> {
    let (answer, answered) = std::sync::mpsc::sync_channel(1);
    question(Box::new(move |result| drop(answer.send(result))));
    answered.recv().unwrap_or_else(|_| Err(StoreError::Failed("it has ended".to_owned())))
}

/// The current time, in seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
