//! What waits in a gate, and whether its reader sleeps: the part of it that two threads meet in. A test walks all of
//! their interleavings (`tests/tests/gate_model.rs`), which is why its locks come from `super::sync`.

use super::sync::{AtomicBool, Mutex, Ordering};

/// Bytes between one reader and any number of writers.
#[derive(Debug, Default)]
pub(super) struct Queue {
    bytes: Mutex<Vec<u8>>,
    asleep: AtomicBool,
}

/// More than the limit would wait.
#[derive(Debug)]
pub(super) struct Over;

impl Queue {
    /// Appends bytes; true if the reader sleeps, and who writes is to wake it.
    pub(super) fn push(&self, bytes: &[u8], limit: usize) -> Result<bool, Over> {
        let mut queue = self.bytes.lock();
        if queue.len() + bytes.len() > limit {
            return Err(Over);
        }
        queue.extend_from_slice(bytes);
        drop(queue);
        Ok(self.asleep.swap(false, Ordering::SeqCst))
    }

    /// Swaps what waits for an empty buffer.
    pub(super) fn take(&self, empty: &mut Vec<u8>) {
        std::mem::swap(&mut *self.bytes.lock(), empty);
    }

    /// The reader will sleep; false: something has come, and it must not.
    pub(super) fn arm(&self) -> bool {
        self.asleep.swap(true, Ordering::SeqCst);
        // A push that came before the swap saw no sleeper: look once more, now that the next one will see it.
        let empty = self.bytes.lock().is_empty();
        if !empty {
            self.asleep.swap(false, Ordering::SeqCst);
        }
        empty
    }
}
