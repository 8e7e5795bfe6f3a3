//! What is kept: identities, the states of perspectives and services, services' own data, the audit trail.
//!
//! One trait, [`Store`]. What is written carries the version that it was made from, so that a second writer is found out
//! and never overwritten: a store shared by several hosts can be one, too. What is committed is told to nobody before
//! the commit is done: see `multiservice::line`.

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
    /// In Jelly.
    pub state: Vec<u8>,
    /// How often it has been saved. A state that never was has version 0.
    pub version: u64,
}

/// A state to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The service's name.
    pub service: String,
    /// The perspective's name; empty for the service itself.
    pub perspective: String,
    /// In Jelly.
    pub state: Vec<u8>,
    /// The version that it was made from.
    pub base: u64,
    /// Its version from now on.
    pub version: u64,
}

/// An identity as it is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The identity.
    pub identity: Arc<Identity>,
    /// How often it has been written.
    pub version: u64,
}

/// Something to write.
#[derive(Debug, Clone)]
pub enum Write {
    /// A state.
    State(Change),
    /// Some of a service's data: keys with what they shall have, or nothing to remove them.
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
        /// As it shall be.
        identity: Arc<Identity>,
        /// The version that it was made from; 0: there shall be none of its name.
        base: u64,
    },
    /// No identity of this name any more.
    Remove {
        /// Its name.
        name: String,
        /// The version that is removed.
        base: u64,
    },
    /// A source that an identity has logged in from.
    Source {
        /// The identity's name.
        name: String,
        /// A digest of the source.
        source: [u8; 16],
        /// When, in seconds since 1970.
        at: u64,
    },
    /// What a counter of failed logins says; 0 to forget it.
    Failures(Counter, u32),
    /// A line of the audit trail.
    Audit(audit::Event),
    /// The audit trail begins behind this line from now on: it and those before it are dropped.
    Prune {
        /// The line's number.
        through: u64,
        /// Its digest, as it was verified. One that has another is not dropped.
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
    /// The first key that is not in it any more; `None`: to the end.
    pub to: Option<Vec<u8>>,
    /// How many entries at most.
    pub limit: usize,
    /// Whether the last come first.
    pub reverse: bool,
    /// How many bytes at most, keys and values together; but one entry, if there is one.
    pub bytes: usize,
}

/// Why a store could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum StoreError {
    /// Somebody else has written it meanwhile; nothing was overwritten.
    #[error("{0} was changed by another meanwhile; nothing was overwritten")]
    Conflict(String),
    /// It cannot be written or read: the disk is full, say.
    #[error("the store: {0}")]
    Failed(String),
    /// Another version of a service has this state just now: who, in a sentence.
    #[error("{0}")]
    Elsewhere(String),
    /// A copy of it cannot be made, or is not sound.
    #[error("no backup is made: {0}")]
    Backup(String),
}

/// What to do with what a store answers; may be called on any thread, before the store's method returns or later.
pub type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Keeps things. Commits of one caller happen in the order they were asked for.
pub trait Store: Send + Sync + 'static {
    /// Commits all of these, or none.
    fn commit(&self, writes: Vec<Write>, done: Done<()>);

    /// Answers when all that was to be committed before this is, or has failed: also what nobody waits for, which lingers a while.
    fn settle(&self, done: Done<()>) {
        done(Ok(()));
    }

    /// Keeps room back from now on, so that what takes away (an identity is changed or removed) can be committed though all
    /// else fails for want of it. A store that has no such room does nothing.
    fn keep_room(&self, _bytes: u64) {}

    /// The last committed state, if there is one.
    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>);

    /// Some of a service's data.
    fn data(&self, service: &str, range: &Range, done: Done<Entries>);

    /// The identity of this name.
    fn identity(&self, name: &str, done: Done<Option<Kept>>);

    /// Saved states of a service, in the order of the perspectives' names (the service's own has an empty one): those
    /// after this name, so many at most.
    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>);

    /// The identity that has this token.
    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>);

    /// Identities in the order of names: those after this name, so many at most.
    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>);

    /// Whether an identity has logged in from this source.
    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>);

    /// Digests of the sources that anybody has logged in from, the latest first, so many at most.
    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>);

    /// The counters of failed logins that were kept.
    fn failures(&self, done: Done<Vec<(Counter, u32)>>);

    /// Lines of the audit trail: those after this number, so many at most, and fewer when they are long.
    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>);

    /// What stands before the first line of the audit trail that is kept: the last that was dropped, or nothing.
    fn anchor(&self, done: Done<audit::Head>);

    /// What keys of the store's own are made of: the trail's, those that names are hidden under.
    fn secret(&self) -> &StoreSecret;

    /// Seals that secret under the newest part of the master key, so that the parts before it can be forgotten.
    ///
    /// # Errors
    /// When it cannot be written. The old part still opens it then.
    fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError>;

    /// Looks for damage in everything. May take its time.
    ///
    /// # Errors
    /// What is damaged.
    fn check(&self) -> Result<(), StoreError>;

    /// Copies everything, as it is at one moment, into a new file, and looks whether the copy is sound. May take its time;
    /// `progress` hears how much is left, and of how much.
    ///
    /// # Errors
    /// When the file is there already, or cannot be written, or the store leaves backups to others.
    fn backup(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError>;

    /// The file in which the head of the trail is noted down, outside of the store, if there is one.
    fn head(&self) -> Option<PathBuf>;
}

/// Waits for a store's answer.
///
/// # Errors
/// As the store.
pub async fn ask<T: Send + 'static>(question: impl FnOnce(Done<T>)) -> Result<T, StoreError> {
    let (answer, answered) = tokio::sync::oneshot::channel();
    // Who asked may have gone.
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

/// Seconds since 1970.
#[must_use]
pub fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(0, |since| since.as_secs())
}
