//! Copies of clients' objects: those that somebody has here, and those that the generation before this one had.
//!
//! A copy is kept until the client has ended its object: until then the client may send it once more without its state. One
//! that the generation before had, or that came in a mind, is kept in Jelly, with the changes since, until somebody asks for it by
//! its type.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use jelly::{Limits, RefKind, Scanner, Shape, Value};
use serde::de::{SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer};

use super::core::Core;
use crate::abi::frame;
use crate::fault::{Fault, Result};
use crate::followed::AnyFollowed;
use crate::remote::Remote;

/// The most bytes of changes that are kept of a copy that nobody has asked for yet.
const MOST_CHANGES: usize = 16 << 10;
/// The most bytes of copies that are handed over.
const MOST_CARRIED: usize = 16 << 20;

/// All copies, by the service's numbers of the clients' objects.
#[derive(Default)]
pub(crate) struct Copies {
    all: RefCell<BTreeMap<u64, Copy>>,
    /// Whether states are being written for the next generation, and not for clients.
    carrying: Cell<bool>,
    /// Whether what is being read came to code before this: states in it are old.
    again: Cell<bool>,
}

struct Copy {
    /// By which attachment it came.
    by: u64,
    kept: Kept,
}

enum Kept {
    Here(Rc<dyn AnyFollowed>),
    Carried(Carried),
}

/// A copy that nobody has asked for yet.
#[derive(Default)]
pub(crate) struct Carried {
    /// The client's name for its type.
    class: String,
    /// In Jelly, as the author's `Serialize` wrote it.
    pub(crate) state: Vec<u8>,
    /// What it has been told of since: see [`frame::entries`].
    pub(crate) changes: Vec<u8>,
    /// The client's objects in both.
    references: Vec<Remote>,
    /// The object itself, until everybody is attached to this generation who was to the one before.
    hold: Option<Remote>,
}

/// What is here by a number.
pub(crate) enum Found {
    /// A copy that somebody has, or had.
    Here(Rc<dyn AnyFollowed>),
    /// One of the generation before; it is not here any more.
    Carried {
        by: u64,
        carried: Carried,
    },
    /// One of the generation before, of another type: of this.
    Other(String),
    Nothing,
}

impl Copies {
    /// A copy of a client's object is here from now on, which came by this attachment.
    pub(crate) fn follow(&self, handle: u64, by: u64, copy: Rc<dyn AnyFollowed>) {
        let before = self.all.borrow_mut().insert(handle, Copy { by, kept: Kept::Here(copy) });
        // Dropping it may run code of the author's, which may come back here.
        drop(before);
    }

    /// The client has ended an object of its own.
    pub(crate) fn unfollow(&self, handle: u64) {
        let gone = self.all.borrow_mut().remove(&handle);
        drop(gone);
    }

    /// A connection has gone; `least` and `most` are the first and the last of its numbers.
    pub(crate) fn disconnected(&self, least: u64, most: u64) {
        let mut all = self.all.borrow_mut();
        let gone: Vec<u64> = all.range(least..=most).map(|(handle, _)| *handle).collect();
        let gone: Vec<_> = gone.into_iter().filter_map(|handle| all.remove(&handle)).collect();
        drop(all);
        drop(gone);
    }

    /// All are let go of.
    pub(crate) fn clear(&self) {
        let gone = self.all.take();
        drop(gone);
    }

    /// The copy of this number, as one of `class`. What is carried is the caller's from now on.
    pub(crate) fn find(&self, handle: u64, class: &str) -> Found {
        let mut all = self.all.borrow_mut();
        match all.get(&handle).map(|copy| &copy.kept) {
            None => Found::Nothing,
            Some(Kept::Here(copy)) => Found::Here(Rc::clone(copy)),
            Some(Kept::Carried(carried)) if carried.class != class => Found::Other(carried.class.clone()),
            Some(Kept::Carried(_)) => match all.remove(&handle) {
                Some(Copy { by, kept: Kept::Carried(carried) }) => Found::Carried { by, carried },
                _ => Found::Nothing,
            },
        }
    }

    /// Those of this type that came by an attachment.
    pub(crate) fn of(&self, by: u64, class: &str) -> Vec<u64> {
        let is = |copy: &Copy| {
            copy.by == by
                && match &copy.kept {
                    Kept::Here(copy) => copy.class() == class,
                    Kept::Carried(carried) => carried.class == class,
                }
        };
        self.all.borrow().iter().filter(|(_, copy)| is(copy)).map(|(handle, _)| *handle).collect()
    }

    /// The client tells of a change: to the copy, if somebody has it here; otherwise it is kept until somebody does.
    pub(crate) fn observed(&self, core: &Rc<Core>, handle: u64, method: &str, arguments: &[u8]) -> Result<Told> {
        let mut all = self.all.borrow_mut();
        let carried = match all.get_mut(&handle).map(|copy| &mut copy.kept) {
            None => return Err(super::dead()),
            Some(Kept::Here(copy)) => return Ok(Told::Tell(Rc::clone(copy))),
            Some(Kept::Carried(carried)) => carried,
        };
        if carried.changes.len() + method.len() + arguments.len() <= MOST_CHANGES {
            frame::put_entry(&mut carried.changes, method.as_bytes(), Some(arguments));
            carried.references.extend(references(arguments).filter_map(|handle| core.arriving(handle)));
            return Ok(Told::Kept);
        }
        let gone = all.remove(&handle);
        drop(all);
        drop(gone);
        Err(Fault::new(
            "MemoryError",
            "the service has not asked for this object yet, and keeps no more of its changes",
        ))
    }

    /// Reads what a client gave; `again`: to code before this.
    pub(crate) fn reading<R>(&self, again: bool, read: impl FnOnce() -> R) -> R {
        /// Also when what is read panics.
        struct Until<'a>(&'a Cell<bool>, bool);
        impl Drop for Until<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _until = Until(&self.again, self.again.replace(again));
        read()
    }

    /// Whether the states in what is being read are old: what is not known here is not there any more.
    pub(crate) fn reads_again(&self) -> bool {
        self.again.get()
    }

    /// A mind has come by this attachment: the client tells of changes of the cached objects in it from now on, though the service
    /// may read it later.
    pub(crate) fn offered(&self, by: u64, mind: &[u8]) {
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        let Ok(Some(scanned)) = scanner.scan(mind) else { return };
        for reference in scanned.references.iter().filter(|of| of.kind == RefKind::Cache) {
            let whole = mind.get(reference.open..reference.close).unwrap_or_default();
            // One that shares values with others in the mind is there once the mind has been read.
            let Ok(Whole { class, handle, state }) = jelly::from_slice(whole) else { continue };
            let carried = Carried { class, state: state.encode(), ..Carried::default() };
            self.all.borrow_mut().entry(handle).or_insert(Copy { by, kept: Kept::Carried(carried) });
        }
    }

    /// Whether states are being written for the next generation: references in them stay what they are here.
    pub(crate) fn is_carrying(&self) -> bool {
        self.carrying.get()
    }

    /// All of them, for the next generation: see [`frame::put_copy`].
    pub(crate) fn frozen(&self, core: &Core) -> Vec<u8> {
        let mut list = Vec::new();
        for (&handle, Copy { by, kept }) in self.all.borrow().iter() {
            let (state, references);
            let copy = match kept {
                Kept::Here(copy) => {
                    (state, references) = match self.written(core, &**copy) {
                        Ok(written) => written,
                        Err(error) => {
                            tracing::warn!(class = copy.class(), %error, "a copy of a client's object is not handed over");
                            continue;
                        }
                    };
                    frame::Copy {
                        handle,
                        by: *by,
                        class: copy.class(),
                        state: &state,
                        changes: &[],
                        references: &references,
                    }
                }
                Kept::Carried(carried) => {
                    references = carried.references.iter().flat_map(|remote| remote.handle().to_le_bytes()).collect();
                    let Carried { class, state, changes, .. } = carried;
                    frame::Copy { handle, by: *by, class, state, changes, references: &references }
                }
            };
            let before = list.len();
            frame::put_copy(&mut list, &copy);
            if list.len() > MOST_CARRIED {
                list.truncate(before);
                tracing::warn!("copies of clients' objects are not handed over: there are too many bytes of them");
                break;
            }
        }
        list
    }

    /// A copy's state, and the client's objects in it.
    fn written(&self, core: &Core, copy: &dyn AnyFollowed) -> jelly::Result<(Vec<u8>, Vec<u8>)> {
        let (mut state, mut found) = (Vec::new(), Vec::new());
        self.carrying.set(true);
        let written = catch_unwind(AssertUnwindSafe(|| copy.write(&mut state, core.classes.get(), &mut found)));
        self.carrying.set(false);
        written.unwrap_or_else(|_| Err(jelly::Error::custom("its Serialize panicked")))?;
        let of_clients = found.iter().filter(|(_, number)| number >> 32 != 0);
        Ok((state, of_clients.flat_map(|(_, number)| number.to_le_bytes()).collect()))
    }

    /// Takes over what the generation before this one had.
    pub(crate) fn adopt(&self, core: &Rc<Core>, copies: &[u8]) {
        for frame::Copy { handle, by, class, state, changes, references } in frame::copies(copies) {
            let carried = Carried {
                class: class.to_owned(),
                state: state.to_vec(),
                changes: changes.to_vec(),
                references: core.received(references, by),
                hold: Some(Remote::received(core, handle, by)),
            };
            self.all.borrow_mut().insert(handle, Copy { by, kept: Kept::Carried(carried) });
        }
    }

    /// All who were attached to the generation before are attached to this one, or have gone: what they did not ask for is let
    /// go of. The client will end it, unless it sends it once more.
    pub(crate) fn resume(&self, core: &Core) {
        let mut let_go = Vec::new();
        let mut all = self.all.borrow_mut();
        let gone: Vec<u64> = all.keys().filter(|handle| !core.is_attached(**handle)).copied().collect();
        let gone: Vec<_> = gone.into_iter().filter_map(|handle| all.remove(&handle)).collect();
        for copy in all.values_mut() {
            if let Kept::Carried(carried) = &mut copy.kept {
                let_go.extend(carried.hold.take());
            }
        }
        drop(all);
        drop((gone, let_go));
    }
}

/// A cached object of a client's with its state.
struct Whole {
    class: String,
    handle: u64,
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
                match (seq.next_element()?, seq.next_element()?, seq.next_element()?) {
                    (Some(class), Some(handle), Some(state)) => Ok(Whole { class, handle, state }),
                    _ => Err(serde::de::Error::invalid_length(0, &self)),
                }
            }
        }
        deserializer.deserialize_newtype_struct(jelly::types::reference::CACHE, Of)
    }
}

/// What became of a change.
pub(crate) enum Told {
    /// This copy is to be told.
    Tell(Rc<dyn AnyFollowed>),
    /// Nobody has asked for the copy yet: it will be told.
    Kept,
}

/// The client's objects in a value.
fn references(value: &[u8]) -> impl Iterator<Item = u64> {
    numbers(value, |kind| matches!(kind, RefKind::Remote | RefKind::Cache | RefKind::Cached))
}

/// Those of them that are copied.
pub(crate) fn copied(value: &[u8]) -> impl Iterator<Item = u64> {
    numbers(value, |kind| matches!(kind, RefKind::Cache | RefKind::Cached))
}

fn numbers(value: &[u8], of: fn(RefKind) -> bool) -> impl Iterator<Item = u64> {
    let mut scanner = Scanner::new(Shape::Value, Limits::default());
    let found = match scanner.scan(value) {
        Ok(Some(scanned)) => scanned.references.to_vec(),
        _ => Vec::new(),
    };
    found.into_iter().filter(move |reference| of(reference.kind)).filter_map(|reference| reference.luid)
}
