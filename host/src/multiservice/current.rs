//! Which generation serves: handed to by many, taken away by one. A test walks all interleavings
//! (`tests/tests/gate_model.rs`), which is why its locks come from `super::sync`.

use super::sync::{Arc, RwLock};

/// The generation of a slot that serves now, if one does.
#[derive(Debug)]
pub(super) struct Current<G>(RwLock<Option<Arc<G>>>);

impl<G> Current<G> {
    pub(super) fn new(generation: Arc<G>) -> Self {
        Self(RwLock::new(Some(generation)))
    }

    /// Does something with it. The lock is held meanwhile: nothing is handed to a generation that was taken away.
    pub(super) fn with<R>(&self, hand_over: impl FnOnce(&G) -> R) -> Option<R> {
        self.0.read().as_ref().map(|generation| hand_over(generation))
    }

    /// The generation itself.
    pub(super) fn get(&self) -> Option<Arc<G>> {
        self.0.read().clone()
    }

    /// Takes it away: whoever was handing something to it has done so by now, and nobody else will.
    pub(super) fn take(&self) -> Option<Arc<G>> {
        self.0.write().take()
    }
}
