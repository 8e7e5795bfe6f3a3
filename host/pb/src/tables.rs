//! Who holds what: the references of one connection, and their counts.

use std::collections::HashMap;
use std::hash::Hash;

/// The peer holds as many of our objects as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Maximum PB reference count exceeded.")]
pub struct TooManyReferences;

/// How often a peer may run into the limit before the connection closes (Twisted's own number).
pub(crate) const VIOLATIONS: u32 = 4;

#[derive(Debug)]
struct Export<O> {
    object: O,
    count: u64,
}

/// The tables of one connection. `O` names an object of ours; equal names are one object.
#[derive(Debug)]
pub struct Tables<O> {
    exports: HashMap<u64, Export<O>>,
    luids: HashMap<O, u64>,
    next: u64,
    limit: usize,
    pub(crate) violations: u32,
}

impl<O: Clone + Eq + Hash> Tables<O> {
    pub(crate) fn new(limit: usize) -> Self {
        Self { exports: HashMap::new(), luids: HashMap::new(), next: 1, limit, violations: 0 }
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    /// The luid under which `object` goes out once more: counts one reference of the peer's.
    ///
    /// # Errors
    /// When the peer holds too many objects already.
    pub fn export(&mut self, object: &O) -> Result<u64, TooManyReferences> {
        if let Some(luid) = self.luids.get(object)
            && let Some(export) = self.exports.get_mut(luid)
        {
            export.count += 1;
            return Ok(*luid);
        }
        if self.exports.len() >= self.limit {
            self.violations += 1;
            return Err(TooManyReferences);
        }
        let luid = self.next;
        self.next += 1;
        self.exports.insert(luid, Export { object: object.clone(), count: 1 });
        self.luids.insert(object.clone(), luid);
        Ok(luid)
    }

    /// The object that the peer calls by this luid.
    #[must_use]
    pub fn exported(&self, luid: u64) -> Option<&O> {
        self.exports.get(&luid).map(|export| &export.object)
    }

    /// All objects that the peer holds.
    pub fn all_exported(&self) -> impl Iterator<Item = &O> {
        self.exports.values().map(|export| &export.object)
    }

    /// Takes an object back, whatever the count: it is revoked.
    pub fn revoke(&mut self, object: &O) {
        if let Some(luid) = self.luids.remove(object) {
            self.exports.remove(&luid);
        }
    }

    /// Takes back one count of `object`: what it was exported for was not sent after all.
    pub fn unexport(&mut self, object: &O) {
        if let Some(luid) = self.luids.get(object).copied() {
            self.decref(luid);
        }
    }

    /// The peer has let go of one reference. `None`: there is no such luid. `Some(Some(object))`: it was the last.
    pub(crate) fn decref(&mut self, luid: u64) -> Option<Option<O>> {
        let export = self.exports.get_mut(&luid)?;
        export.count -= 1;
        if export.count > 0 {
            return Some(None);
        }
        let export = self.exports.remove(&luid)?;
        self.luids.remove(&export.object);
        Some(Some(export.object))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_object_has_one_luid_for_as_long_as_it_is_held_and_never_the_same_again() {
        let mut tables = Tables::new(1024);
        assert_eq!(tables.export(&'a'), Ok(1));
        assert_eq!(tables.export(&'a'), Ok(1));
        assert_eq!(tables.export(&'b'), Ok(2));
        assert_eq!(tables.decref(1), Some(None));
        assert_eq!(tables.decref(1), Some(Some('a')));
        assert_eq!(tables.decref(1), None);
        assert_eq!(tables.export(&'a'), Ok(3));
    }

    #[test]
    fn the_limit_holds_at_its_edge() {
        let mut tables = Tables::new(2);
        assert!(tables.export(&1).is_ok());
        assert!(tables.export(&2).is_ok());
        assert_eq!(tables.export(&3), Err(TooManyReferences));
        assert!(tables.export(&2).is_ok(), "one that is held already goes on counting");
        assert_eq!(tables.violations, 1);
    }
}
