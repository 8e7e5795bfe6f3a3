//! What became of the libraries of ended generations, however these ended.

use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::Mutex;

use crate::loader::fault::LibraryFault;
use crate::loader::unload::UnloadOutcome;

/// How many libraries may stay in memory before no more are loaded. Each keeps some of the 1,024 keys for thread-local values
/// of the process; code that needs one when none is left ends the process.
pub const MOST_HELD: usize = 200;

/// A library that could not be unloaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unreleased {
    /// Its service.
    pub service: String,
    /// Which generation of it: the first is 1.
    pub generation: u32,
    /// Why it stays in memory.
    pub account: UnloadOutcome,
}

/// The outcomes for all ended generations.
#[derive(Debug, Default)]
pub struct Ended {
    held: Mutex<Vec<Unreleased>>,
    retired: AtomicU64,
}

impl Ended {
    /// Records the end of a generation.
    pub(super) fn count(&self, service: &str, generation: u32, account: &UnloadOutcome) {
        match account {
            UnloadOutcome::Pinned(_) | UnloadOutcome::Condemned => {
                tracing::warn!(service, generation, "its library stays in memory: {account}");
                let (service, account) = (service.to_owned(), account.clone());
                self.held.lock().push(Unreleased { service, generation, account });
            }
            UnloadOutcome::Nothing | UnloadOutcome::Retired { .. } => {
                self.retired.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// The libraries of this service that stay in memory, in the order in which they ended.
    #[must_use]
    pub fn held(&self, service: &str) -> Vec<Unreleased> {
        self.held.lock().iter().filter(|held| held.service == service).cloned().collect()
    }

    /// All libraries that stay in memory.
    #[must_use]
    pub fn all_held(&self) -> Vec<Unreleased> {
        self.held.lock().clone()
    }

    /// How many generations have ended and left no library in memory.
    #[must_use]
    pub fn retired(&self) -> u64 {
        self.retired.load(Ordering::Relaxed)
    }

    /// Whether one more may be loaded.
    ///
    /// # Errors
    /// If too many stay in memory; the error is one sentence for the operator.
    pub(super) fn may_load(&self) -> Result<(), LibraryFault> {
        let held = self.held.lock().len();
        if held < MOST_HELD {
            return Ok(());
        }
        Err(LibraryFault::Machine(format!(
            "{held} libraries that were replaced or stopped stay in memory; another one could end the whole process; \
             `credhost service why NAME` shows what holds them; restart the host"
        )))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_more_is_loaded_when_too_many_generations_stay() {
        let ended = Ended::default();
        for number in 1..MOST_HELD as u32 {
            ended.count("todo", number, &UnloadOutcome::Condemned);
        }
        ended.count("todo", 1, &UnloadOutcome::Retired { left: 0 });
        assert!(ended.may_load().is_ok());
        ended.count("chat", 1, &UnloadOutcome::Pinned(vec!["its thread".to_owned()]));
        assert!(ended.may_load().is_err_and(|why| why.to_string().contains("service why")));
        assert_eq!((ended.held("chat").len(), ended.held("todo").len(), ended.retired()), (1, MOST_HELD - 1, 1));
    }
}
