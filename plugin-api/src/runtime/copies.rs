//! Copies of clients' objects: those in use here, and those that nobody has asked for yet since they came in a mind or from the
//! previous generation.
//!
//! A copy is kept until the client has ended its object: until then, the client may send the object again without its state. A
//! copy that nobody has asked for yet is kept in Jelly, with the changes since, until somebody asks for it by its type. A copy
//! that cannot be kept is [lost](Kept::Lost): its object is given back, and comes with its state when the client sends it again.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use jelly::{Limits, RefKind, Scanner, Shape, Value};
use serde::de::{SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer};

use super::core::{Core, connection};
use crate::abi::frame;
use crate::fault::{Fault, Result};
use crate::followed::AnyFollowed;
use crate::remote::Remote;

/// All copies, by the handles of the clients' objects.
#[derive(Default)]
pub(crate) struct Copies {
    all: RefCell<BTreeMap<u64, Copy>>,
    /// The bytes of changes kept for each connection.
    changes: RefCell<HashMap<u32, usize>>,
    /// Whether states are being written for the next generation, and not for clients.
    carrying: Cell<bool>,
    /// Whether what is being read came to an earlier generation: then the states in it are outdated.
    again: Cell<bool>,
}

struct Copy {
    /// The attachments by which it came and that still exist.
    by: BTreeSet<u64>,
    /// The object, once for each occurrence in the mind of one of these attachments.
    minds: Vec<(u64, Remote)>,
    /// The object, and the attachments that may ask for it because they could in the previous generation.
    carried: Option<(Remote, BTreeSet<u64>)>,
    kept: Kept,
}

enum Kept {
    Here(Rc<dyn AnyFollowed>),
    Waits(Waiting),
    /// It had more changes than could be kept, or could not be read. Nothing of it is held.
    Lost,
}

/// A copy that nobody has asked for yet.
#[derive(Default)]
pub(crate) struct Waiting {
    /// The client's name for its type.
    class: String,
    /// In Jelly. `None`: it can be read only within the mind that it came in.
    pub(crate) state: Option<Vec<u8>>,
    /// The changes since: see [`frame::entries`].
    pub(crate) changes: Vec<u8>,
    /// The client's objects in its state.
    references: Vec<Remote>,
}

/// What there is for a handle.
pub(crate) enum Found {
    /// A copy that is, or was, in use.
    Here(Rc<dyn AnyFollowed>),
    /// A copy that nobody has asked for yet. It is lost unless the caller [follows](Copies::follow) it.
    Waits(Waiting),
    /// The same, but its state can be read only within the mind.
    InMind,
    /// A copy of another type, which is given here.
    Other(String),
    Lost,
    Nothing,
}

impl Copies {
    /// Registers a copy of a client's object, which came by this attachment.
    pub(crate) fn follow(&self, handle: u64, by: u64, copy: Rc<dyn AnyFollowed>) {
        let mut all = self.all.borrow_mut();
        let entry = all.entry(handle).or_insert_with(Copy::lost);
        entry.by.insert(by);
        let before = std::mem::replace(&mut entry.kept, Kept::Here(copy));
        drop(all);
        // Dropping it may run the author's code, which may call into this again.
        self.forget(handle, before);
    }

    /// Records that it has come by this attachment, too.
    pub(crate) fn came(&self, handle: u64, by: u64) {
        if let Some(copy) = self.all.borrow_mut().get_mut(&handle) {
            copy.by.insert(by);
        }
    }

    /// The client has ended one of its objects.
    pub(crate) fn unfollow(&self, handle: u64) {
        let gone = self.all.borrow_mut().remove(&handle);
        self.drop_all([(handle, gone)]);
    }

    /// A connection has gone; `least` and `most` are the first and the last of its numbers.
    pub(crate) fn disconnected(&self, least: u64, most: u64) {
        let mut all = self.all.borrow_mut();
        let gone: Vec<u64> = all.range(least..=most).map(|(handle, _)| *handle).collect();
        let gone: Vec<_> = gone.into_iter().map(|handle| (handle, all.remove(&handle))).collect();
        drop(all);
        self.drop_all(gone);
    }

    /// Drops all copies.
    pub(crate) fn clear(&self) {
        let gone = self.all.take();
        self.changes.take();
        drop(gone);
    }

    fn drop_all(&self, gone: impl IntoIterator<Item = (u64, Option<Copy>)>) {
        for (handle, copy) in gone {
            if let Some(copy) = copy {
                self.forget(handle, copy.kept);
            }
        }
    }

    /// Drops what was kept, and no longer counts its changes.
    fn forget(&self, handle: u64, kept: Kept) {
        if let Kept::Waits(waiting) = &kept {
            self.count(handle, waiting.changes.len(), 0);
        }
        drop(kept);
    }

    /// Updates the count of a copy's changes, from `before` to `now` bytes.
    fn count(&self, handle: u64, before: usize, now: usize) {
        let mut all = self.changes.borrow_mut();
        let of = all.entry(connection(handle)).or_default();
        *of = (*of + now).saturating_sub(before);
        if *of == 0 {
            all.remove(&connection(handle));
        }
    }

    /// Finds the copy of this handle as one of `class`. `state`: whether the caller has its first state.
    pub(crate) fn find(&self, handle: u64, class: &str, state: bool) -> Found {
        let mut all = self.all.borrow_mut();
        let Some(copy) = all.get_mut(&handle) else { return Found::Nothing };
        match &mut copy.kept {
            Kept::Here(copy) => Found::Here(Rc::clone(copy)),
            Kept::Lost => Found::Lost,
            Kept::Waits(waiting) if waiting.class != class => Found::Other(waiting.class.clone()),
            Kept::Waits(Waiting { state: None, .. }) if !state => Found::InMind,
            Kept::Waits(waiting) => {
                let waiting = std::mem::take(waiting);
                copy.kept = Kept::Lost;
                self.count(handle, waiting.changes.len(), 0);
                Found::Waits(waiting)
            }
        }
    }

    /// The copy could not be read, or its changes could not be kept: its object is given back.
    pub(crate) fn lose(&self, handle: u64) {
        let mut all = self.all.borrow_mut();
        let lost = all.get_mut(&handle).map(Copy::lose);
        drop(all);
        if let Some((kept, held)) = lost {
            self.forget(handle, kept);
            drop(held);
        }
    }

    /// The copies of this type that came by an attachment.
    pub(crate) fn of(&self, by: u64, class: &str) -> Vec<u64> {
        let is = |copy: &Copy| {
            copy.by.contains(&by)
                && match &copy.kept {
                    Kept::Here(copy) => copy.class() == class,
                    Kept::Waits(waiting) => waiting.class == class,
                    Kept::Lost => false,
                }
        };
        self.all.borrow().range(of_connection(by)).filter(|(_, copy)| is(copy)).map(|(handle, _)| *handle).collect()
    }

    /// The client reports a change: to the copy, if it is in use here; otherwise the change is kept until somebody asks for the
    /// copy.
    pub(crate) fn observed(&self, handle: u64, method: &str, arguments: &[u8], most: usize) -> Result<Told> {
        let mut all = self.all.borrow_mut();
        let waiting = match all.get_mut(&handle).map(|copy| &mut copy.kept) {
            None | Some(Kept::Lost) => return Err(super::dead()),
            Some(Kept::Here(copy)) => return Ok(Told::Tell(Rc::clone(copy))),
            Some(Kept::Waits(waiting)) => waiting,
        };
        let before = waiting.changes.len();
        let kept = self.changes.borrow().get(&connection(handle)).copied().unwrap_or_default();
        if kept + method.len() + arguments.len() <= most && numbers(arguments, |_| true).next().is_none() {
            frame::put_entry(&mut waiting.changes, method.as_bytes(), Some(arguments));
            self.count(handle, before, waiting.changes.len());
            return Ok(Told::Kept);
        }
        drop(all);
        self.lose(handle);
        Err(Fault::new(
            "MemoryError",
            "the service has not read this object yet, and no more of its changes can be stored",
        ))
    }

    /// Reads what a client gave; `again`: to an earlier generation.
    pub(crate) fn reading<R>(&self, again: bool, read: impl FnOnce() -> R) -> R {
        let _until = Until::set(&self.again, again);
        read()
    }

    /// Whether the states in what is being read are outdated: then a copy that is not known here no longer exists.
    pub(crate) fn reads_again(&self) -> bool {
        self.again.get()
    }

    /// Registers the cached objects of a mind that came by this attachment, with these objects of the client's. Returns the
    /// objects that the mind itself holds. The client reports changes of the cached objects from now on, though the service may
    /// read them later. `again`: the previous generation had the mind, too.
    pub(crate) fn mind(&self, by: u64, mind: &[u8], objects: Vec<Remote>, again: bool) -> Vec<Remote> {
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        let Ok(Some(scanned)) = scanner.scan(mind) else { return objects };
        let is_copied = |kind| matches!(kind, RefKind::Cache | RefKind::Cached);
        let copied = scanned.references.iter().filter(|of| is_copied(of.kind)).filter_map(|of| of.luid);
        let copied: BTreeSet<u64> = copied.collect();
        if copied.is_empty() {
            return objects;
        }
        let mut all = self.all.borrow_mut();
        for reference in scanned.references.iter().filter(|of| of.kind == RefKind::Cache && !again) {
            let Some(handle) = reference.luid else { continue };
            let whole = mind.get(reference.open..reference.close).unwrap_or_default();
            let waits = || {
                let (class, state) = match jelly::from_slice(whole) {
                    Ok(Whole { class, state }) => (class, Some(state.encode())),
                    // Its state shares values with other parts of the mind.
                    Err(_) => (class_of(whole), None),
                };
                Copy { kept: Kept::Waits(Waiting { class, state, ..Waiting::default() }), ..Copy::lost() }
            };
            all.entry(handle).or_insert_with(waits);
        }
        let mut of_mind = Vec::new();
        let mut lost = Vec::new();
        for remote in objects {
            match all.get_mut(&remote.handle()).filter(|_| copied.contains(&remote.handle())) {
                Some(copy) if !matches!(copy.kept, Kept::Lost) => {
                    copy.by.insert(by);
                    copy.minds.push((by, remote));
                }
                // Lost with the previous generation: the client sends the object again with its state, once it has it back.
                _ if copied.contains(&remote.handle()) => lost.push(remote),
                _ => of_mind.push(remote),
            }
        }
        drop(all);
        drop(lost);
        of_mind
    }

    /// The client has released the perspective of this attachment: its mind holds no copies any more. Otherwise a copy that only
    /// the mind holds would keep the attachment, by which the copy's changes come, and the attachment would keep the mind.
    pub(crate) fn let_go(&self, by: u64) {
        self.without(by, |copy| drop_minds(copy, by));
    }

    /// The service was notified of this attachment: copies that the previous generation had by it, and that the service has not
    /// asked for, are given back, unless another attachment may ask for them. The client will end them, unless it sends them
    /// again.
    pub(crate) fn asked(&self, by: u64) {
        self.without(by, |copy| copy.asked(|may| *may == by).into_iter().collect());
    }

    /// An attachment has ended.
    pub(crate) fn left(&self, by: u64) {
        self.without(by, |copy| {
            copy.by.remove(&by);
            let mut gone = drop_minds(copy, by);
            gone.extend(copy.asked(|may| *may == by));
            gone
        });
    }

    /// All attachments of the previous generation are known here, or have ended.
    pub(crate) fn resume(&self, core: &Core) {
        let mut all = self.all.borrow_mut();
        let gone: Vec<u64> = all.keys().filter(|handle| !core.is_attached(**handle)).copied().collect();
        let gone: Vec<_> = gone.into_iter().map(|handle| (handle, all.remove(&handle))).collect();
        let let_go: Vec<Remote> = all.values_mut().filter_map(|copy| copy.asked(|may| !core.has(*may))).collect();
        drop(all);
        self.drop_all(gone);
        drop(let_go);
    }

    /// Takes something from the copies of an attachment's connection, and drops it.
    fn without(&self, by: u64, take: impl FnMut(&mut Copy) -> Vec<Remote>) {
        let mut all = self.all.borrow_mut();
        let taken: Vec<Remote> = all.range_mut(of_connection(by)).map(|(_, copy)| copy).flat_map(take).collect();
        drop(all);
        drop(taken);
    }

    /// Whether states are being written for the next generation: references in them stay what they are here.
    pub(crate) fn is_carrying(&self) -> bool {
        self.carrying.get()
    }

    /// All copies, for the next generation: see [`frame::put_copy`].
    pub(crate) fn frozen(&self, core: &Core) -> Vec<u8> {
        // An author's `Serialize` may call into this again.
        let here = |(handle, copy): (&u64, &Copy)| match &copy.kept {
            Kept::Here(here) => Some((*handle, Rc::clone(here))),
            _ => None,
        };
        let here: Vec<_> = self.all.borrow().iter().filter_map(here).collect();
        let mut written: BTreeMap<u64, (Vec<u8>, Vec<u8>)> = BTreeMap::new();
        for (handle, copy) in here {
            match self.written(core, &*copy) {
                Ok(state) => drop(written.insert(handle, state)),
                Err(error) => {
                    tracing::warn!(class = copy.class(), %error, "a copy of a client's object is not handed over to the new code");
                }
            }
        }
        let mut of_connections: BTreeMap<u32, Vec<Vec<u8>>> = BTreeMap::new();
        for (&handle, copy) in self.all.borrow().iter() {
            let references: Vec<u8>;
            let (class, state, changes) = match &copy.kept {
                Kept::Here(here) => {
                    let Some((state, found)) = written.get(&handle) else { continue };
                    references = found.clone();
                    (here.class(), Some(state.as_slice()), [].as_slice())
                }
                Kept::Waits(waiting) => {
                    references = waiting.references.iter().flat_map(|remote| remote.handle().to_le_bytes()).collect();
                    (waiting.class.as_str(), waiting.state.as_deref(), waiting.changes.as_slice())
                }
                Kept::Lost => continue,
            };
            // An object that nobody holds is on its way back to the client, which may have sent it again by then.
            let held = core.known_remote(handle).is_some();
            let by: Vec<u8> = copy.by.iter().flat_map(|by| by.to_le_bytes()).collect();
            let mut bytes = Vec::new();
            let copy = frame::Copy { handle, held, by: &by, class, state, changes, references: &references };
            frame::put_copy(&mut bytes, &copy);
            of_connections.entry(connection(handle)).or_default().push(bytes);
        }
        shared_out(of_connections, core.limits.get().copies)
    }

    /// A copy's state, and the client's objects in it.
    fn written(&self, core: &Core, copy: &dyn AnyFollowed) -> jelly::Result<(Vec<u8>, Vec<u8>)> {
        let (mut state, mut found) = (Vec::new(), Vec::new());
        let until = Until::set(&self.carrying, true);
        let written = catch_unwind(AssertUnwindSafe(|| copy.write(&mut state, core.classes.get(), &mut found)));
        drop(until);
        written.unwrap_or_else(|_| Err(jelly::Error::custom("its Serialize panicked")))?;
        let of_clients = found.iter().filter(|(_, number)| number >> 32 != 0);
        Ok((state, of_clients.flat_map(|(_, number)| number.to_le_bytes()).collect()))
    }

    /// Takes over the copies of the previous generation.
    pub(crate) fn adopt(&self, core: &Rc<Core>, copies: &[u8]) {
        for frame::Copy { handle, held, by, class, state, changes, references } in frame::copies(copies) {
            let by: BTreeSet<u64> = frame::numbers(by).collect();
            let first = by.first().copied().unwrap_or_default();
            let waiting = Waiting {
                class: class.to_owned(),
                state: state.map(<[u8]>::to_vec),
                changes: changes.to_vec(),
                references: core.received(references, first),
            };
            // An object that no attachment may ask for is given back at once.
            let carried = held.then(|| (Remote::received(core, handle, first), by.clone()));
            let carried = carried.filter(|(_, may)| !may.is_empty());
            self.count(handle, 0, waiting.changes.len());
            let kept = Kept::Waits(waiting);
            self.all.borrow_mut().insert(handle, Copy { by, minds: Vec::new(), carried, kept });
        }
    }
}

impl Copy {
    fn lost() -> Self {
        Self { by: BTreeSet::new(), minds: Vec::new(), carried: None, kept: Kept::Lost }
    }

    /// Keeps nothing of the copy. Returns what was kept, and the objects to give back.
    fn lose(&mut self) -> (Kept, Vec<Remote>) {
        let mut held: Vec<Remote> = std::mem::take(&mut self.minds).into_iter().map(|(_, remote)| remote).collect();
        held.extend(self.carried.take().map(|(remote, _)| remote));
        (std::mem::replace(&mut self.kept, Kept::Lost), held)
    }

    /// Removes these attachments from those that may ask for the copy. If none is left, returns the object to give back.
    fn asked(&mut self, these: impl Fn(&u64) -> bool) -> Option<Remote> {
        let (_, may) = self.carried.as_mut()?;
        may.retain(|may| !these(may));
        self.carried.take_if(|(_, may)| may.is_empty()).map(|(remote, _)| remote)
    }
}

fn drop_minds(copy: &mut Copy, by: u64) -> Vec<Remote> {
    copy.minds.extract_if(.., |(of, _)| *of == by).map(|(_, remote)| remote).collect()
}

/// All numbers of the same connection.
fn of_connection(number: u64) -> std::ops::RangeInclusive<u64> {
    let least = u64::from(connection(number)) << 32;
    least..=least | u64::from(u32::MAX)
}

/// The copies that may be handed over. If they are too large together, each connection gets an equal share.
fn shared_out(of_connections: BTreeMap<u32, Vec<Vec<u8>>>, most: usize) -> Vec<u8> {
    let size = |copies: &Vec<Vec<u8>>| copies.iter().map(Vec::len).sum::<usize>();
    let mut share = most;
    if of_connections.values().map(size).sum::<usize>() > most {
        share = most / of_connections.len().max(1);
        tracing::warn!(
            "some copies of clients' objects are not handed over to the new code: they have too many bytes in all"
        );
    }
    let mut list = Vec::new();
    for copies in of_connections.into_values() {
        let start = list.len();
        for copy in copies {
            if list.len() - start + copy.len() <= share {
                list.extend_from_slice(&copy);
            }
        }
    }
    list
}

/// Sets a flag until the guard is dropped, also by a panic.
struct Until<'a>(&'a Cell<bool>, bool);

impl<'a> Until<'a> {
    fn set(cell: &'a Cell<bool>, to: bool) -> Self {
        Self(cell, cell.replace(to))
    }
}

impl Drop for Until<'_> {
    fn drop(&mut self) {
        self.0.set(self.1);
    }
}

/// A client's cached object with its state.
struct Whole {
    class: String,
    state: Value,
}

impl<'de> Deserialize<'de> for Whole {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Whole;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a cached object with its state")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Whole, A::Error> {
                match (seq.next_element()?, seq.next_element::<u64>()?, seq.next_element()?) {
                    (Some(class), Some(_), Some(state)) => Ok(Whole { class, state }),
                    _ => Err(serde::de::Error::invalid_length(0, &self)),
                }
            }
        }
        deserializer.deserialize_newtype_struct(jelly::types::reference::CACHE, Of)
    }
}

/// The type of a cached object, whatever its state is.
fn class_of(whole: &[u8]) -> String {
    struct Class(String);
    impl<'de> Deserialize<'de> for Class {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
            struct Of;
            impl<'de> Visitor<'de> for Of {
                type Value = Class;

                fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                    f.write_str("a cached object")
                }

                fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Class, A::Error> {
                    let class = seq.next_element()?.unwrap_or_default();
                    // The rest need not make sense on its own.
                    Ok(Class(class))
                }
            }
            deserializer.deserialize_newtype_struct(jelly::types::reference::CACHE, Of)
        }
    }
    let read: jelly::Result<Class> = Class::deserialize(&mut jelly::Deserializer::new(whole));
    read.map(|Class(class)| class).unwrap_or_default()
}

/// What to do about a change.
pub(crate) enum Told {
    /// This copy must be notified.
    Tell(Rc<dyn AnyFollowed>),
    /// Nobody has asked for the copy yet: the change is kept for it.
    Kept,
}

/// The numbers of references in a value.
fn numbers(value: &[u8], of: fn(RefKind) -> bool) -> impl Iterator<Item = u64> {
    let mut scanner = Scanner::new(Shape::Value, Limits::default());
    let found = match scanner.scan(value) {
        Ok(Some(scanned)) => scanned.references.to_vec(),
        _ => Vec::new(),
    };
    found.into_iter().filter(move |reference| of(reference.kind)).filter_map(|reference| reference.luid)
}

#[cfg(test)]
mod tests;
