//! The perspectives that are in memory: each is the one of its name, for as long as anybody has it.

use std::collections::HashMap;

use crate::handle::{Handle, WeakHandle};

/// A perspective: kept while clients are attached, or somebody holds its handle.
struct Cached<P> {
    weak: WeakHandle<P>,
    address: usize,
    attached: usize,
    keep: Option<Handle<P>>,
}

/// By name, and found by the object, too: what an attach or a detach costs does not depend on how many there are.
pub(super) struct PerspectiveCache<P> {
    by_name: HashMap<String, Cached<P>>,
    /// The address of an object that somebody still counts is no other's.
    names: HashMap<usize, String>,
    /// When there are more, those that nobody has any more are looked for.
    sweep_at: usize,
}

/// This many may be in memory before it is looked for those that nobody has.
const FIRST_SWEEP: usize = 64;

impl<P> Default for PerspectiveCache<P> {
    fn default() -> Self {
        Self { by_name: HashMap::new(), names: HashMap::new(), sweep_at: FIRST_SWEEP }
    }
}

impl<P> PerspectiveCache<P> {
    /// A perspective was loaded: it is the one of its name from now on.
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

    /// A client is attached to it, and keeps it; its name, if it is the one of a name.
    pub(super) fn attach(&mut self, perspective: &Handle<P>) -> Option<String> {
        let name = self.names.get(&perspective.address())?;
        let cached = self.by_name.get_mut(name)?;
        cached.attached += 1;
        cached.keep = Some(perspective.clone());
        Some(name.clone())
    }

    /// A client has gone; true: it was the last.
    pub(super) fn detach(&mut self, name: &str) -> bool {
        self.by_name.get_mut(name).is_some_and(|cached| {
            cached.attached = cached.attached.saturating_sub(1);
            cached.attached == 0
        })
    }

    /// The last client has gone: what kept it is the caller's to drop, which may run code of the author's.
    pub(super) fn release(&mut self, name: &str) -> Option<Handle<P>> {
        self.by_name.get_mut(name)?.keep.take()
    }

    /// Forgets the one of this name if nobody has it.
    pub(super) fn sweep(&mut self, name: &str) {
        if self.by_name.get(name).is_some_and(|cached| cached.weak.upgrade().is_none()) {
            self.forget(name);
        }
    }

    /// What nobody has any more is looked for when there are twice as many as were left the last time: once for each that
    /// came since, all in all.
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

    /// All that are in memory.
    pub(super) fn live(&self) -> Vec<Handle<P>> {
        self.by_name.values().filter_map(|cached| cached.weak.upgrade()).collect()
    }

    /// Those that clients are attached to, by name.
    pub(super) fn attached(&self) -> Vec<(String, Handle<P>)> {
        let attached = self.by_name.iter().filter(|(_, cached)| cached.attached > 0);
        attached.filter_map(|(name, cached)| Some((name.clone(), cached.weak.upgrade()?))).collect()
    }

    /// Keeps none of them any more: theirs who have a handle.
    pub(super) fn release_all(&mut self) -> Vec<Handle<P>> {
        self.by_name.values_mut().filter_map(|cached| cached.keep.take()).collect()
    }
}
