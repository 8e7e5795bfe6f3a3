//! What outlives a perspective's last client: saved states.
//!
//! A state belongs to a service and a perspective; the service's own has an empty name in the perspective's place.
//! What is committed is told to nobody before the commit is done: see `multiservice::slot`.

mod memory;

pub use memory::MemoryStore;

/// A state to commit.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// The service's name.
    pub service: String,
    /// The perspective's name; empty for the service itself.
    pub perspective: String,
    /// In Jelly.
    pub state: Vec<u8>,
}

/// Why a store could not do its work.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the store: {0}")]
pub struct StoreError(pub String);

/// What to do with what a store answers; may be called on any thread, before the store's method returns or later.
pub type Done<T> = Box<dyn FnOnce(Result<T, StoreError>) + Send>;

/// Keeps states. Commits of one caller happen in the order they were asked for.
pub trait Store: Send + Sync + 'static {
    /// The last committed state, if there is one.
    fn load(&self, service: &str, perspective: &str, done: Done<Option<Vec<u8>>>);

    /// Commits all of these, or none.
    fn commit(&self, changes: Vec<Change>, done: Done<()>);
}
