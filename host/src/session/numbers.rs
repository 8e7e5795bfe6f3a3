//! The numbers of a connection's calls, attachments and handles, and the objects that a client can hold.
//!
//! A number has 32 bits: two for its kind, thirty that count up. Services see it with the connection's number above it,
//! so that an answer can be routed by its number alone. A number is reused only after 2^30 others.

use std::marker::PhantomData;

use crate::multiservice::SlotNo;

/// The number of bits that count.
const SERIAL: u32 = 30;
const MASK: u32 = (1 << SERIAL) - 1;
/// The least capacity of a table that is not empty.
const LEAST: usize = 2;
/// A table that has grown larger than this shrinks to it when it becomes empty.
const KEPT: usize = 128;

/// A kind of number, expressed by both the type and the two upper bits.
pub(crate) trait Kind {
    /// The upper bits: 0 to 3.
    const BITS: u32;
}

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident $number:ident $bits:literal;)*) => {$(
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub(crate) enum $kind {}
        impl Kind for $kind {
            const BITS: u32 = $bits;
        }
        $(#[$doc])*
        pub(crate) type $number = No<$kind>;
    )*};
}
kinds! {
    /// A call under way in a service.
    CallKind CallNo 0;
    /// A client at a perspective.
    AttachmentKind AttachmentNo 1;
    /// A service's number for an object of the client's.
    HandleKind HandleNo 2;
    /// An object of login.
    LoginKind LoginNo 3;
}

/// A number of one kind.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct No<K>(u32, PhantomData<K>);

impl<K> Clone for No<K> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<K> Copy for No<K> {}

impl<K: Kind> No<K> {
    fn new(serial: u32) -> Self {
        Self(K::BITS << SERIAL | serial & MASK, PhantomData)
    }

    fn serial(self) -> u32 {
        self.0 & MASK
    }

    /// The number as services see it, on this connection.
    #[must_use]
    pub(crate) fn on(self, connection: u32) -> u64 {
        u64::from(connection) << 32 | u64::from(self.0)
    }

    /// Reads a number from a service. `None` if it belongs to another connection, or is of another kind.
    #[must_use]
    pub(crate) fn of(number: u64, connection: u32) -> Option<Self> {
        let low = number as u32;
        (number >> 32 == u64::from(connection) && low >> SERIAL == K::BITS).then_some(Self(low, PhantomData))
    }
}

/// A table by number, without hashing: the place of a value is given by the lower bits of its number.
///
/// Numbers count up and skip those whose place is taken, so a freed number is not reused soon.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    /// The number of places is a power of two, or zero. Each place holds the number's serial and the value.
    places: Vec<Option<(u32, V)>>,
    next: u32,
    len: usize,
    kind: PhantomData<K>,
}

impl<K, V> Default for Table<K, V> {
    fn default() -> Self {
        Self { places: Vec::new(), next: 0, len: 0, kind: PhantomData }
    }
}

impl<K: Kind, V> Table<K, V> {
    /// Inserts a value. Returns its number.
    pub(crate) fn insert(&mut self, value: V) -> No<K> {
        if self.len * 2 >= self.places.len() {
            self.grow();
        }
        let mask = self.places.len() - 1;
        loop {
            self.next = self.next.wrapping_add(1) & MASK;
            let place = &mut self.places[self.next as usize & mask];
            if place.is_none() {
                *place = Some((self.next, value));
                self.len += 1;
                return No::new(self.next);
            }
        }
    }

    /// Numbers with different places in the smaller table have different places in one of twice the size.
    fn grow(&mut self) {
        let room = (self.places.len() * 2).max(LEAST);
        // Exactly this capacity: a vector that grows by itself has room for at least four.
        let before = std::mem::replace(&mut self.places, Vec::with_capacity(room));
        self.places.resize_with(room, || None);
        for (serial, value) in before.into_iter().flatten() {
            self.places[serial as usize & (room - 1)] = Some((serial, value));
        }
    }

    fn place(&self, no: No<K>) -> usize {
        no.serial() as usize & self.places.len().wrapping_sub(1)
    }

    /// The value of this number.
    #[must_use]
    pub(crate) fn get(&self, no: No<K>) -> Option<&V> {
        match self.places.get(self.place(no)) {
            Some(Some((serial, value))) if *serial == no.serial() => Some(value),
            _ => None,
        }
    }

    /// As [`Table::get`], mutably.
    pub(crate) fn get_mut(&mut self, no: No<K>) -> Option<&mut V> {
        let place = self.place(no);
        match self.places.get_mut(place) {
            Some(Some((serial, value))) if *serial == no.serial() => Some(value),
            _ => None,
        }
    }

    /// Removes a value.
    pub(crate) fn remove(&mut self, no: No<K>) -> Option<V> {
        self.get(no)?;
        let place = self.place(no);
        let (_, value) = self.places.get_mut(place)?.take()?;
        self.len -= 1;
        if self.len == 0 && self.places.len() > KEPT {
            // Memory that a burst needed must not be kept forever.
            self.places.truncate(KEPT);
            self.places.shrink_to_fit();
        }
        Some(value)
    }

    /// All entries, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (No<K>, &V)> {
        let mut all: Vec<(No<K>, &V)> =
            self.places.iter().flatten().map(|(serial, value)| (No::new(*serial), value)).collect();
        // Sorted by age, because numbers wrap around.
        all.sort_by_key(|(no, _)| std::cmp::Reverse(self.next.wrapping_sub(no.serial()) & MASK));
        all.into_iter()
    }

    /// Removes the entries that `wanted` picks, the oldest first.
    pub(crate) fn take(&mut self, mut wanted: impl FnMut(No<K>, &V) -> bool) -> Vec<(No<K>, V)> {
        let found: Vec<No<K>> = self.iter().filter(|(no, value)| wanted(*no, value)).map(|(no, _)| no).collect();
        found.into_iter().filter_map(|no| Some((no, self.remove(no)?))).collect()
    }

    /// The number of entries.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether the table is empty.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// An object of the host or of a service that the client can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Object {
    /// An object of login: a challenger, an avatar.
    Login(LoginNo),
    /// The perspective of an attachment.
    Perspective(AttachmentNo),
    /// A service's own object.
    Service { slot: SlotNo, object: u64 },
    /// A service's own cached object, whose state the client has.
    Cached { slot: SlotNo, object: u64 },
}

/// The attachments by which something came. It lives as long as one of them does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Provenance(Vec<AttachmentNo>);

impl Provenance {
    /// The provenance with one attachment.
    #[must_use]
    pub(crate) fn by(attachment: AttachmentNo) -> Self {
        Self(vec![attachment])
    }

    /// Adds those of `other`. Returns the ones that are new.
    pub(crate) fn join(&mut self, other: &Self) -> Vec<AttachmentNo> {
        let new: Vec<AttachmentNo> = other.0.iter().filter(|no| !self.0.contains(no)).copied().collect();
        self.0.extend_from_slice(&new);
        new
    }

    /// Removes those in `gone`. Returns how many were removed.
    pub(crate) fn leave(&mut self, gone: &[AttachmentNo]) -> usize {
        let before = self.0.len();
        // `gone` is sorted.
        self.0.retain(|no| gone.binary_search(no).is_err());
        before - self.0.len()
    }

    /// The earliest of the attachments that are left.
    #[must_use]
    pub(crate) fn first(&self) -> Option<AttachmentNo> {
        self.0.first().copied()
    }

    /// Whether it came by this attachment.
    #[must_use]
    pub(crate) fn has(&self, no: AttachmentNo) -> bool {
        self.0.contains(&no)
    }

    /// All of them, in the order in which they were added.
    pub(crate) fn iter(&self) -> impl Iterator<Item = AttachmentNo> {
        self.0.iter().copied()
    }

    /// Whether none is left.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// For each attachment, the number of things with it in their provenance. Sorted by attachment number; most connections
/// have one attachment.
#[derive(Debug, Default)]
pub(crate) struct Uses(Vec<(AttachmentNo, usize)>);

impl Uses {
    /// Adds one use of each of these.
    pub(crate) fn begin(&mut self, attachments: impl IntoIterator<Item = AttachmentNo>) {
        for no in attachments {
            match self.place(no) {
                Ok(at) => self.0[at].1 += 1,
                Err(at) => {
                    if self.0.is_empty() {
                        self.0.reserve_exact(1);
                    }
                    self.0.insert(at, (no, 1));
                }
            }
        }
    }

    /// Removes one use of each of these.
    pub(crate) fn end(&mut self, attachments: impl IntoIterator<Item = AttachmentNo>) {
        for no in attachments {
            if let Ok(at) = self.place(no) {
                self.0[at].1 -= 1;
                if self.0[at].1 == 0 {
                    self.0.remove(at);
                }
            }
        }
    }

    /// Whether this attachment has a use.
    #[must_use]
    pub(crate) fn has(&self, no: AttachmentNo) -> bool {
        self.place(no).is_ok()
    }

    /// Removes all uses of these.
    pub(crate) fn forget(&mut self, gone: &[AttachmentNo]) {
        for no in gone {
            if let Ok(at) = self.place(*no) {
                self.0.remove(at);
            }
        }
    }

    /// The index of an attachment, or the index to insert it at.
    fn place(&self, no: AttachmentNo) -> Result<usize, usize> {
        self.0.binary_search_by_key(&no, |(no, _)| *no)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_valid_for_one_connection_and_one_kind() {
        let no = Table::<HandleKind, ()>::default().insert(());
        assert_eq!(HandleNo::of(no.on(7), 7), Some(no));
        assert_eq!(HandleNo::of(no.on(7), 8), None);
        assert_eq!(CallNo::of(no.on(7), 7), None);
        assert_eq!(AttachmentNo::of(no.on(7), 7), None);
    }

    #[test]
    fn a_removed_number_is_not_reused_soon() {
        let mut table = Table::<CallKind, u8>::default();
        let first = table.insert(1);
        assert_eq!(table.remove(first), Some(1));
        for _ in 0..100_000 {
            let no = table.insert(2);
            assert_ne!(no, first);
            table.remove(no);
        }
        assert_eq!(table.remove(first), None);
        assert!(table.get(first).is_none() && table.is_empty());
    }

    proptest! {
        #[test]
        fn a_table_is_a_map_that_makes_its_own_keys(steps in prop::collection::vec((any::<bool>(), any::<usize>()), 0..400)) {
            let mut table = Table::<CallKind, usize> { next: MASK - 20, ..Table::default() };
            let mut model: Vec<(CallNo, usize)> = Vec::new();
            for (put, value) in steps {
                if put || model.is_empty() {
                    let no = table.insert(value);
                    prop_assert!(model.iter().all(|(known, _)| *known != no));
                    model.push((no, value));
                } else {
                    let (no, value) = model.remove(value % model.len());
                    prop_assert_eq!(table.remove(no), Some(value));
                    prop_assert_eq!(table.get(no), None);
                }
                prop_assert_eq!(table.len(), model.len());
                prop_assert!(model.iter().all(|(no, value)| table.get(*no) == Some(value)));
                prop_assert!(table.iter().map(|(no, value)| (no, *value)).eq(model.iter().copied()));
            }
        }
    }
}
