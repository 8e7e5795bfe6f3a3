//! The numbers by which a connection's calls, attachments and handles are known, and what a client can hold.
//!
//! A number has 32 bits: two for its kind, thirty that count up. Services see it with the connection's number above it,
//! so that an answer finds its way by its number alone. A number that was given up comes back after 2^30 others.

use std::marker::PhantomData;

use crate::multiservice::SlotNo;

/// How many bits of a number count.
const SERIAL: u32 = 30;
const MASK: u32 = (1 << SERIAL) - 1;
/// The least room of a table that is not empty.
const LEAST: usize = 2;
/// A table that had to grow larger gives the rest of its room back when it is empty.
const KEPT: usize = 128;

/// A kind of number: the type and the two upper bits say the same.
pub(crate) trait Kind {
    /// 0 to 3.
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
    /// A service's way to an object of the client's.
    HandleKind HandleNo 2;
    /// An object of log-in.
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

    /// As services see it, of this connection.
    #[must_use]
    pub(crate) fn on(self, connection: u32) -> u64 {
        u64::from(connection) << 32 | u64::from(self.0)
    }

    /// Of a number that a service gave back; `None` if it is another connection's, or of another kind.
    #[must_use]
    pub(crate) fn of(number: u64, connection: u32) -> Option<Self> {
        let low = number as u32;
        (number >> 32 == u64::from(connection) && low >> SERIAL == K::BITS).then_some(Self(low, PhantomData))
    }
}

/// Things by number, found without hashing: a number's place is its lower bits.
///
/// Numbers count up, over those whose place is taken, so one that was given up does not come back soon.
#[derive(Debug)]
pub(crate) struct Table<K, V> {
    /// As many as a power of two, or none. Each is the number's serial and the thing.
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
    /// Puts a thing in; its number from now on.
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

    /// Numbers that were apart in the smaller table are apart in one of twice the size.
    fn grow(&mut self) {
        let room = (self.places.len() * 2).max(LEAST);
        // No more than that: a vector that grows has room for four at least.
        let before = std::mem::replace(&mut self.places, Vec::with_capacity(room));
        self.places.resize_with(room, || None);
        for (serial, value) in before.into_iter().flatten() {
            self.places[serial as usize & (room - 1)] = Some((serial, value));
        }
    }

    fn place(&self, no: No<K>) -> usize {
        no.serial() as usize & self.places.len().wrapping_sub(1)
    }

    /// The thing of this number.
    #[must_use]
    pub(crate) fn get(&self, no: No<K>) -> Option<&V> {
        match self.places.get(self.place(no)) {
            Some(Some((serial, value))) if *serial == no.serial() => Some(value),
            _ => None,
        }
    }

    /// As [`Table::get`], to change it.
    pub(crate) fn get_mut(&mut self, no: No<K>) -> Option<&mut V> {
        let place = self.place(no);
        match self.places.get_mut(place) {
            Some(Some((serial, value))) if *serial == no.serial() => Some(value),
            _ => None,
        }
    }

    /// Takes a thing out.
    pub(crate) fn remove(&mut self, no: No<K>) -> Option<V> {
        self.get(no)?;
        let place = self.place(no);
        let (_, value) = self.places.get_mut(place)?.take()?;
        self.len -= 1;
        if self.len == 0 && self.places.len() > KEPT {
            // A burst must not be kept for ever.
            self.places.truncate(KEPT);
            self.places.shrink_to_fit();
        }
        Some(value)
    }

    /// All, the oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (No<K>, &V)> {
        let mut all: Vec<(No<K>, &V)> =
            self.places.iter().flatten().map(|(serial, value)| (No::new(*serial), value)).collect();
        // How long ago each was given: numbers wrap around.
        all.sort_by_key(|(no, _)| std::cmp::Reverse(self.next.wrapping_sub(no.serial()) & MASK));
        all.into_iter()
    }

    /// Takes out those that `wanted` picks, the oldest first.
    pub(crate) fn take(&mut self, mut wanted: impl FnMut(No<K>, &V) -> bool) -> Vec<(No<K>, V)> {
        let found: Vec<No<K>> = self.iter().filter(|(no, value)| wanted(*no, value)).map(|(no, _)| no).collect();
        found.into_iter().filter_map(|no| Some((no, self.remove(no)?))).collect()
    }

    /// How many there are.
    #[must_use]
    pub(crate) fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }
}

/// Something of ours that the client can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Object {
    /// One of log-in's: a challenger, an avatar.
    Login(LoginNo),
    /// The perspective of an attachment.
    Perspective(AttachmentNo),
    /// An object of a service's own.
    Service { slot: SlotNo, object: u64 },
    /// A cached object of a service's own, whose state the client has.
    Cached { slot: SlotNo, object: u64 },
}

/// The attachments by which something came: it lives for as long as one of them does.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Provenance(Vec<AttachmentNo>);

impl Provenance {
    /// By one attachment.
    #[must_use]
    pub(crate) fn by(attachment: AttachmentNo) -> Self {
        Self(vec![attachment])
    }

    /// Adds those of `other`; answers with those that are new.
    pub(crate) fn join(&mut self, other: &Self) -> Vec<AttachmentNo> {
        let new: Vec<AttachmentNo> = other.0.iter().filter(|no| !self.0.contains(no)).copied().collect();
        self.0.extend_from_slice(&new);
        new
    }

    /// Takes out those that are gone; answers with how many were.
    pub(crate) fn leave(&mut self, gone: &[AttachmentNo]) -> usize {
        let before = self.0.len();
        // `gone` is sorted.
        self.0.retain(|no| gone.binary_search(no).is_err());
        before - self.0.len()
    }

    /// The one by which it came first, of those that are left.
    #[must_use]
    pub(crate) fn first(&self) -> Option<AttachmentNo> {
        self.0.first().copied()
    }

    /// Whether it came by this one.
    #[must_use]
    pub(crate) fn has(&self, no: AttachmentNo) -> bool {
        self.0.contains(&no)
    }

    /// All of them, in the order in which it came.
    pub(crate) fn iter(&self) -> impl Iterator<Item = AttachmentNo> {
        self.0.iter().copied()
    }

    /// Whether all are gone.
    #[must_use]
    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// How many things each attachment is a provenance of. In the order of their numbers: most connections have one.
#[derive(Debug, Default)]
pub(crate) struct Uses(Vec<(AttachmentNo, usize)>);

impl Uses {
    /// One more, of each of these.
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

    /// One less, of each of these.
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

    /// Whether this attachment is one's.
    #[must_use]
    pub(crate) fn has(&self, no: AttachmentNo) -> bool {
        self.place(no).is_ok()
    }

    /// These are gone.
    pub(crate) fn forget(&mut self, gone: &[AttachmentNo]) {
        for no in gone {
            if let Ok(at) = self.place(*no) {
                self.0.remove(at);
            }
        }
    }

    /// Where an attachment is, or else would be.
    fn place(&self, no: AttachmentNo) -> Result<usize, usize> {
        self.0.binary_search_by_key(&no, |(no, _)| *no)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_number_is_of_one_connection_and_one_kind() {
        let no = Table::<HandleKind, ()>::default().insert(());
        assert_eq!(HandleNo::of(no.on(7), 7), Some(no));
        assert_eq!(HandleNo::of(no.on(7), 8), None);
        assert_eq!(CallNo::of(no.on(7), 7), None);
        assert_eq!(AttachmentNo::of(no.on(7), 7), None);
    }

    #[test]
    fn a_number_given_up_does_not_come_back_soon() {
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
        fn a_table_is_a_map_whose_keys_it_makes(steps in prop::collection::vec((any::<bool>(), any::<usize>()), 0..400)) {
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
