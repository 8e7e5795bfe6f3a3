//! The perspectives in memory. Each stays the only one of its name for as long as anybody holds it.

use std::collections::HashMap;

use crate::handle::{Handle, WeakHandle};

/// A perspective: cached while clients are attached, or somebody holds its handle.
struct Cached<P> {
    weak: WeakHandle<P>,
    address: usize,
    attached: usize,
    keep: Option<Handle<P>>,
}

/// Perspectives by name, and names by object: the cost of an attach or a detach does not depend on their number.
pub(super) struct PerspectiveCache<P> {
    by_name: HashMap<String, Cached<P>>,
    /// By address, which is unique: as long as a weak handle exists, no other object gets the address.
    names: HashMap<usize, String>,
    /// At this size, an insert first removes the perspectives that nobody holds.
    sweep_at: usize,
}

/// The size before the first sweep, and the least size before any other.
const FIRST_SWEEP: usize = 64;

impl<P> Default for PerspectiveCache<P> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), names: HashMap::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<P> PerspectiveCache<P> {
    /// Registers a loaded perspective under its name.
    pub(super) fn insert(&mut self, name: &str, perspective: &Handle<P>) {
        self.forget(name);
        if self.by_name.len() >= self.sweep_at {
            self.sweep_all();
        }
        let address = perspective.address();
        let cached = Cached { weak: perspective.downgrade(), address, attached: 0, keep: None };
        self.by_name.insert(name.to_owned(), cached);
        self.names.insert(address, name.to_owned());
    }

    /// The perspective of this name, if it is in memory.
    pub(super) fn get(&self, name: &str) -> Option<Handle<P>> {
        self.by_name.get(name)?.weak.upgrade()
    }

    /// Counts an attached client, which keeps the perspective. Returns its name, if it is the perspective of a name.
    pub(super) fn attach(&mut self, perspective: &Handle<P>) -> Option<String> {
        let name = self.names.get(&perspective.address())?;
        let cached = self.by_name.get_mut(name)?;
        cached.attached += 1;
        cached.keep = Some(perspective.clone());
        Some(name.clone())
    }

    /// Counts a client that has gone. Returns true if it was the last.
    pub(super) fn detach(&mut self, name: &str) -> bool {
        self.by_name.get_mut(name).is_some_and(|cached| {
            cached.attached = cached.attached.saturating_sub(1);
            cached.attached == 0
        })
    }

    /// The last client has gone. Returns the handle that kept the perspective: dropping it may run the author's code.
    pub(super) fn release(&mut self, name: &str) -> Option<Handle<P>> {
        self.by_name.get_mut(name)?.keep.take()
    }

    /// Forgets the perspective of this name if nobody holds it.
    pub(super) fn sweep(&mut self, name: &str) {
        if self.by_name.get(name).is_some_and(|cached| cached.weak.upgrade().is_none()) {
            self.forget(name);
        }
    }

    /// Removes the perspectives that nobody holds. The next sweep comes at twice the remaining size, so that sweeps cost a
    /// constant time per insert on average.
    fn sweep_all(&mut self) {
        let gone: Vec<String> = self
            .by_name
            .iter()
            .filter(|(_, cached)| cached.weak.upgrade().is_none())
            .map(|(name, _)| name.clone())
            .collect();
        gone.iter().for_each(|name| self.forget(name));
        self.sweep_at = FIRST_SWEEP.max(self.by_name.len() * 2);
    }

    fn forget(&mut self, name: &str) {
        if let Some(gone) = self.by_name.remove(name)
            && self.names.get(&gone.address).is_some_and(|of| of == name)
        {
            self.names.remove(&gone.address);
        }
    }

    /// All perspectives in memory.
    pub(super) fn live(&self) -> Vec<Handle<P>> {
        self.by_name.values().filter_map(|cached| cached.weak.upgrade()).collect()
    }

    /// The perspectives that clients are attached to, by name.
    pub(super) fn attached(&self) -> Vec<(String, Handle<P>)> {
        let attached = self.by_name.iter().filter(|(_, cached)| cached.attached > 0);
        attached.filter_map(|(name, cached)| Some((name.clone(), cached.weak.upgrade()?))).collect()
    }

    /// Keeps no perspective any more: only those live on that somebody has a handle of. Returns the handles that kept them.
    pub(super) fn release_all(&mut self) -> Vec<Handle<P>> {
        self.by_name.values_mut().filter_map(|cached| cached.keep.take()).collect()
    }
}
