//! States in memory: they outlive the last detach, not the process.

use std::collections::HashMap;

use parking_lot::Mutex;

use super::{Change, Done, Store};

/// A store in memory.
#[derive(Debug, Default)]
pub struct MemoryStore {
    states: Mutex<HashMap<(String, String), Vec<u8>>>,
}

impl MemoryStore {
    /// A store that has nothing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }
}

impl Store for MemoryStore {
    fn load(&self, service: &str, perspective: &str, done: Done<Option<Vec<u8>>>) {
        let state = self.states.lock().get(&(service.to_owned(), perspective.to_owned())).cloned();
        done(Ok(state));
    }

    fn commit(&self, changes: Vec<Change>, done: Done<()>) {
        let mut states = self.states.lock();
        for Change { service, perspective, state } in changes {
            states.insert((service, perspective), state);
        }
        drop(states);
        done(Ok(()));
    }
}
