//! The references of one connection, and their counts.

use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;

/// The peer already holds as many objects of this side as it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("Maximum PB reference count exceeded.")]
pub struct TooManyReferences;

/// How often a peer may exceed the limit before the connection closes (Twisted's own number).
pub(crate) const VIOLATIONS: u32 = 4;

#[derive(Debug)]
struct Export<O> {
    /// `None`: it was revoked. The luid stays reserved until the peer gives it back, but names nothing.
    object: Option<O>,
    count: u64,
}

/// The meaning of a luid of this side.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exported<'t, O> {
    /// Nothing: it was never sent to the peer, or the peer has given it back.
    Unknown,
    /// An object that was revoked. The peer still holds the luid.
    Revoked,
    /// This object.
    Live(&'t O),
}

/// The result of giving back a reference.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum GivenBack<O> {
    /// The luid does not exist.
    Unknown,
    /// The peer holds more references to the object.
    More,
    /// It was the last reference, to this object; `None` if that was revoked before.
    Last(Option<O>),
}

/// Objects of one kind that the peer holds.
#[derive(Debug)]
struct Exports<O> {
    exports: HashMap<u64, Export<O>>,
    luids: HashMap<O, u64>,
}

impl<O: Clone + Eq + Hash> Exports<O> {
    fn new() -> Self {
        Self { exports: HashMap::new(), luids: HashMap::new() }
    }

    /// Counts one more reference to an object that the peer already holds.
    fn again(&mut self, object: &O) -> Option<u64> {
        let luid = *self.luids.get(object)?;
        self.exports.get_mut(&luid)?.count += 1;
        Some(luid)
    }

    fn insert(&mut self, luid: u64, object: &O) {
        self.exports.insert(luid, Export { object: Some(object.clone()), count: 1 });
        self.luids.insert(object.clone(), luid);
    }

    fn less(&mut self, luid: u64) -> GivenBack<O> {
        let Some(export) = self.exports.get_mut(&luid) else { return GivenBack::Unknown };
        export.count -= 1;
        if export.count > 0 {
            return GivenBack::More;
        }
        let object = self.exports.remove(&luid).and_then(|export| export.object);
        if let Some(object) = &object {
            self.luids.remove(object);
        }
        GivenBack::Last(object)
    }

    fn find(&self, luid: u64) -> Exported<'_, O> {
        match self.exports.get(&luid) {
            None => Exported::Unknown,
            Some(Export { object: None, .. }) => Exported::Revoked,
            Some(Export { object: Some(object), .. }) => Exported::Live(object),
        }
    }

    /// Revokes an object. Its luid names nothing any more, and stays reserved until the peer has given it back.
    fn revoke(&mut self, object: &O) {
        if let Some(luid) = self.luids.remove(object)
            && let Some(export) = self.exports.get_mut(&luid)
        {
            export.object = None;
        }
    }
}

/// The tables of one connection. `O` identifies an object of this side; equal values are the same object.
#[derive(Debug)]
pub struct Tables<O> {
    references: Exports<O>,
    /// Objects whose state the peer has. It receives their changes.
    caches: Exports<O>,
    /// Cached objects of the peer that it has not ended yet.
    kept: BTreeSet<u64>,
    next: u64,
    limit: usize,
    pub(crate) violations: u32,
    /// The peer does not choose what is exported. Exceeding the limit is then this side's own fault, not a violation.
    own: bool,
}

impl<O: Clone + Eq + Hash> Tables<O> {
    pub(crate) fn new(limit: usize) -> Self {
        Self {
            references: Exports::new(),
            caches: Exports::new(),
            kept: BTreeSet::new(),
            next: 1,
            limit,
            violations: 0,
            own: false,
        }
    }

    pub(crate) fn set_own(&mut self) {
        self.own = true;
    }

    pub(crate) fn set_limit(&mut self, limit: usize) {
        self.limit = limit;
    }

    fn fresh(&mut self, held: usize) -> Result<u64, TooManyReferences> {
        if held >= self.limit {
            self.violations += u32::from(!self.own);
            return Err(TooManyReferences);
        }
        let luid = self.next;
        self.next += 1;
        Ok(luid)
    }

    /// Exports `object` once more, and returns its luid. This counts one reference of the peer.
    ///
    /// # Errors
    /// Returns an error if the peer already holds too many objects.
    pub fn export(&mut self, object: &O) -> Result<u64, TooManyReferences> {
        if let Some(luid) = self.references.again(object) {
            return Ok(luid);
        }
        let luid = self.fresh(self.references.exports.len())?;
        self.references.insert(luid, object);
        Ok(luid)
    }

    /// Exports a cached object once more. Returns its luid, and whether its state must be sent with it because the peer does not
    /// have it.
    ///
    /// # Errors
    /// Returns an error if the peer already has too many.
    pub fn cache(&mut self, object: &O) -> Result<(u64, bool), TooManyReferences> {
        if let Some(luid) = self.caches.again(object) {
            return Ok((luid, false));
        }
        let luid = self.fresh(self.caches.exports.len())?;
        self.caches.insert(luid, object);
        Ok((luid, true))
    }

    /// The object that the peer calls by this luid.
    #[must_use]
    pub fn exported(&self, luid: u64) -> Exported<'_, O> {
        self.references.find(luid)
    }

    /// The object whose state the peer has under this luid.
    #[must_use]
    pub fn cached(&self, luid: u64) -> Exported<'_, O> {
        self.caches.find(luid)
    }

    /// The luid under which the peer holds this object, if it does.
    #[must_use]
    pub fn exported_as(&self, object: &O) -> Option<u64> {
        self.references.luids.get(object).copied()
    }

    /// The luid under which the peer has this object's state, if it has.
    #[must_use]
    pub fn cached_as(&self, object: &O) -> Option<u64> {
        self.caches.luids.get(object).copied()
    }

    /// The number of luids that the peer holds: of references, and of cached objects. Revoked ones are included.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.references.exports.len(), self.caches.exports.len())
    }

    /// Takes an object away from the peer, whatever its count. Its luid names nothing any more. If the object is exported again,
    /// it gets another luid.
    pub fn revoke(&mut self, object: &O) {
        self.references.revoke(object);
    }

    /// [`Tables::revoke`] for a cached object. The object's next luid carries its state again.
    pub fn revoke_cached(&mut self, object: &O) {
        self.caches.revoke(object);
    }

    /// Takes back one count of `object`, because the message that it was exported for was not sent.
    pub fn unexport(&mut self, object: &O) {
        if let Some(luid) = self.references.luids.get(object).copied() {
            self.references.less(luid);
        }
    }

    /// [`Tables::unexport`] for a cached object.
    pub fn uncache(&mut self, object: &O) {
        if let Some(luid) = self.caches.luids.get(object).copied() {
            self.caches.less(luid);
        }
    }

    /// The peer has given back one reference.
    pub(crate) fn decref(&mut self, luid: u64) -> GivenBack<O> {
        self.references.less(luid)
    }

    /// [`Tables::decref`] for a cached object.
    pub(crate) fn decache(&mut self, luid: u64) -> GivenBack<O> {
        self.caches.less(luid)
    }

    /// Records a cached object of the peer that has come in. Beyond the limit, each is a violation, as for references.
    pub fn keep(&mut self, luid: u64) {
        // The peer may exceed the limit until it ends objects, but the limit on violations bounds how far.
        if self.kept.insert(luid) && self.kept.len() > self.limit {
            self.violations += 1;
        }
    }

    /// Whether a cached object of the peer is kept here.
    #[must_use]
    pub fn keeps(&self, luid: u64) -> bool {
        self.kept.contains(&luid)
    }

    /// The peer has ended a cached object of its own. Returns false if it is not kept here.
    pub(crate) fn forget(&mut self, luid: u64) -> bool {
        self.kept.remove(&luid)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_keeps_its_luid_while_held_and_luids_are_not_reused() {
        let mut tables = Tables::new(1024);
        assert_eq!(tables.export(&'a'), Ok(1));
        assert_eq!(tables.export(&'a'), Ok(1));
        assert_eq!(tables.export(&'b'), Ok(2));
        assert_eq!(tables.decref(1), GivenBack::More);
        assert_eq!(tables.decref(1), GivenBack::Last(Some('a')));
        assert_eq!(tables.decref(1), GivenBack::Unknown);
        assert_eq!(tables.export(&'a'), Ok(3));
    }

    #[test]
    fn a_cached_objects_state_is_sent_once_under_its_own_luid() {
        let mut tables = Tables::new(1024);
        assert_eq!(tables.export(&'a'), Ok(1));
        assert_eq!(tables.cache(&'a'), Ok((2, true)));
        assert_eq!(tables.cache(&'a'), Ok((2, false)));
        assert_eq!((tables.cached(2), tables.cached(1)), (Exported::Live(&'a'), Exported::Unknown));
        assert_eq!(tables.exported(2), Exported::Unknown);
        assert_eq!(tables.decache(2), GivenBack::More);
        assert_eq!(tables.decache(2), GivenBack::Last(Some('a')));
        assert_eq!(tables.decache(2), GivenBack::Unknown);
        assert_eq!(tables.cache(&'a'), Ok((3, true)));
    }

    #[test]
    fn a_revoked_luid_stays_reserved_until_the_peer_releases_it() {
        let mut tables = Tables::new(1024);
        assert_eq!((tables.export(&'a'), tables.export(&'a')), (Ok(1), Ok(1)));
        assert_eq!(tables.cache(&'b'), Ok((2, true)));
        tables.revoke(&'a');
        tables.revoke_cached(&'b');
        assert_eq!((tables.exported(1), tables.cached(2)), (Exported::Revoked, Exported::Revoked));
        assert_eq!(tables.export(&'a'), Ok(3));
        assert_eq!(tables.cache(&'b'), Ok((4, true)), "its state is sent again: it missed updates");
        assert_eq!((tables.decref(1), tables.decref(1)), (GivenBack::More, GivenBack::Last(None)));
        assert_eq!((tables.decache(2), tables.decache(2)), (GivenBack::Last(None), GivenBack::Unknown));
        assert_eq!((tables.exported(3), tables.cached(4)), (Exported::Live(&'a'), Exported::Live(&'b')));
        assert_eq!(tables.held(), (1, 1));
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
