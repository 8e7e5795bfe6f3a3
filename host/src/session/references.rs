//! References, between a client's numbers and a service's: what may go through, what each becomes, and how often it was
//! sent, so that each is given back.

use std::collections::HashMap;
use std::sync::Arc;

use jelly::{RefKind, Reference};
use pb::{Failure, Jelly, Output, Tables, Translated};
use plugin_api::abi::frame::ToLibrary;

use super::desk::{Era, Held, Object, State};
use crate::multiservice::slot::Slot;

type Out = Output<Object>;

/// A value that names what is not its sender's to name.
const FOREIGN: &str = "a reference to something that is not this service's";

pub(super) fn insecure(what: &str) -> Failure {
    Failure::new("twisted.spread.jelly.InsecureJelly", what)
}

impl State {
    /// Counts what was sent by an attachment, or takes back what was not.
    pub(super) fn settle(&mut self, output: &mut Out, attachment: u64, exported: Vec<Object>, written: bool) {
        for object in exported {
            match (object, written) {
                (Object::Cached { .. }, true) => drop(self.cached_by.entry(object).or_default().insert(attachment)),
                (Object::Cached { .. }, false) => output.tables.uncache(&object),
                (_, true) => *self.sent.entry(object).or_insert(0) += 1,
                (_, false) => output.tables.unexport(&object),
            }
        }
    }

    /// Whether a cached object that the client has is still its to have: all that it came by may have been taken away.
    pub(super) fn has_cached(&self, object: &Object) -> bool {
        self.cached_by.get(object).is_some_and(|by| !by.is_empty())
    }

    /// A value of a service's that goes to nobody: the objects in it were counted as handed out.
    pub(super) fn unsent(&mut self, slot: u64, value: &[u8]) {
        let objects: Vec<u64> = match self.scanner.scan(value) {
            Ok(Some(scanned)) => handed_out(scanned.references).collect(),
            _ => {
                self.scanner = jelly::Scanner::new(jelly::Shape::Value, self.shared.limits.after.jelly);
                return;
            }
        };
        if let (false, Some(slot)) = (objects.is_empty(), self.slot(slot)) {
            for object in objects {
                self.say(&slot, &ToLibrary::Dropped { object, count: 1 });
            }
        }
    }

    pub(super) fn release(&mut self, output: &mut Out, slot: u64, handle: u64, count: u64) {
        let Some(index) = self.narrow(handle) else { return };
        let Some(held) = self.held.get_mut(&index).filter(|held| held.slot.number() == slot) else {
            return;
        };
        // What an avatar has lent is not given back to the client with it.
        let lent = count.min(held.lent);
        held.lent -= lent;
        let count = (count - lent).min(held.count);
        held.count -= count;
        let (luid, left) = (held.luid, held.count + held.lent);
        if left == 0 {
            self.held.remove(&index);
            self.held_by.remove(&(slot, luid));
        }
        output.release(luid, count);
    }

    /// The next generation of a service has a hold on an object of the client's, too, which the client was not asked for.
    pub(super) fn lend(&mut self, slot: u64, handle: u64) {
        let Some(index) = self.narrow(handle) else { return };
        if let Some(held) = self.held.get_mut(&index).filter(|held| held.slot.number() == slot) {
            held.lent += 1;
        }
    }

    /// What keeps a reference of the client's from going to this service.
    pub(super) fn acceptable(&self, output: &Out, slot: u64, reference: &Reference) -> Option<Failure> {
        match reference.kind {
            RefKind::Remote => reference.luid.is_none().then(|| insecure("a reference whose number is too large")),
            RefKind::Local => {
                // Twisted makes None of one that it does not know.
                let object = output.tables.exported(reference.luid?)?;
                let mine = match object {
                    Object::Service { attachment, .. } => {
                        self.attachments.get(attachment).is_some_and(|attached| attached.slot.number() == slot)
                    }
                    Object::Login(_) | Object::Perspective(_) | Object::Cached { .. } => false,
                };
                (!mine).then(|| insecure(FOREIGN))
            }
            RefKind::Lcache => {
                let object = reference.luid.and_then(|luid| output.tables.cached(luid));
                let mine = object.is_some_and(|object| {
                    matches!(object, Object::Cached { slot: of, .. } if *of == slot) && self.has_cached(object)
                });
                (!mine).then(|| insecure(FOREIGN))
            }
            RefKind::Cached | RefKind::Cache => Some(insecure("a cached object of the client's: services take none")),
        }
    }

    /// Writes a client's value as a service sees it. Its references were found acceptable.
    pub(super) fn translate_in(
        &mut self,
        output: &Out,
        slot: &Arc<Slot>,
        attachment: u64,
        value: &Jelly<'_>,
        into: &mut Vec<u8>,
        handles: &mut Vec<u8>,
    ) {
        let translated = value.translate(into, |reference| {
            Ok::<_, std::convert::Infallible>(match (reference.kind, reference.luid) {
                (RefKind::Remote, Some(luid)) => {
                    let handle = self.hold(slot, luid, attachment, false);
                    handles.extend_from_slice(&handle.to_le_bytes());
                    Translated::Number(handle)
                }
                (RefKind::Local, Some(luid)) => match output.tables.exported(luid) {
                    Some(Object::Service { object, .. }) => Translated::Number(*object),
                    _ => Translated::None,
                },
                (RefKind::Lcache, Some(luid)) => match output.tables.cached(luid) {
                    Some(Object::Cached { object, .. }) => Translated::As(RefKind::Local, *object),
                    _ => Translated::None,
                },
                _ => Translated::None,
            })
        });
        match translated {
            Ok(()) => {}
            Err(never) => match never {},
        }
    }

    /// The number by which a service knows an object of the client's, which was sent once more.
    pub(super) fn hold(&mut self, slot: &Arc<Slot>, luid: u64, attachment: u64, lent: bool) -> u64 {
        let index = match self.held_by.get(&(slot.number(), luid)) {
            Some(index) => *index,
            None => {
                let index = self.fresh();
                self.held.insert(index, Held { slot: Arc::clone(slot), luid, attachment, count: 0, lent: 0 });
                self.held_by.insert((slot.number(), luid), index);
                index
            }
        };
        if let Some(held) = self.held.get_mut(&index) {
            if lent {
                held.lent += 1;
            } else {
                held.count += 1;
            }
        }
        self.wide(index)
    }

    /// The client has let go of its last reference to an object.
    pub(super) fn dropped(&mut self, object: Object) {
        match object {
            Object::Login(index) => {
                self.login.remove(&index);
            }
            // Its state is let go of by `decache` alone.
            Object::Cached { .. } => {}
            Object::Perspective(attachment) => {
                if self.attachments.get(&attachment).is_some_and(|attached| attached.era == Era::New) {
                    self.detach(attachment);
                }
            }
            Object::Service { attachment, object: number } => {
                let count = self.sent.remove(&object).unwrap_or(0);
                if let Some(slot) = self.attachments.get(&attachment).map(|attached| Arc::clone(&attached.slot)) {
                    self.say(&slot, &ToLibrary::Dropped { object: number, count });
                }
            }
        }
    }
}

/// What a reference in a service's value becomes for the client, and the object that went out for it.
pub(super) fn translate_out(
    tables: &mut Tables<Object>,
    held: &HashMap<u32, Held>,
    connection: u32,
    slot: u64,
    attachment: u64,
    reference: &Reference,
) -> Result<(Translated, Option<Object>), Failure> {
    let number = reference.luid.ok_or_else(|| insecure(FOREIGN))?;
    match reference.kind {
        // An untyped value that came from the client has it as it came: the client's own object, on its way home.
        RefKind::Remote if number >> 32 != 0 => {
            let mine = (number >> 32 == u64::from(connection)).then_some(number as u32);
            let held = mine.and_then(|index| held.get(&index)).filter(|held| held.slot.number() == slot);
            let luid = held.ok_or_else(|| insecure(FOREIGN))?.luid;
            Ok((Translated::As(RefKind::Local, luid), None))
        }
        RefKind::Remote => {
            let object = Object::Service { attachment, object: number };
            let luid =
                tables.export(&object).map_err(|error| Failure::new("twisted.spread.pb.Error", error.to_string()))?;
            Ok((Translated::Number(luid), Some(object)))
        }
        RefKind::Local => {
            let mine = (number >> 32 == u64::from(connection)).then_some(number as u32);
            let held = mine.and_then(|index| held.get(&index)).filter(|held| held.slot.number() == slot);
            let luid = held.ok_or_else(|| insecure(FOREIGN))?.luid;
            Ok((Translated::Number(luid), None))
        }
        RefKind::Cache => {
            let object = Object::Cached { slot, object: number };
            let (luid, first) =
                tables.cache(&object).map_err(|error| Failure::new("twisted.spread.pb.Error", error.to_string()))?;
            let translated = if first { Translated::Number(luid) } else { Translated::As(RefKind::Cached, luid) };
            Ok((translated, Some(object)))
        }
        RefKind::Cached | RefKind::Lcache => Err(insecure(FOREIGN)),
    }
}

/// The service's own objects among the references in a value of its.
pub(super) fn handed_out(references: &[Reference]) -> impl Iterator<Item = u64> {
    let remotes = references.iter().filter(|reference| reference.kind == RefKind::Remote);
    // Those with a connection's number are the client's, on their way home.
    remotes.filter_map(|reference| reference.luid).filter(|luid| luid >> 32 == 0)
}

/// What has come with a value that nobody takes: the client counts each of them as sent.
pub(super) fn give_back<'r>(output: &mut Out, references: impl Iterator<Item = &'r Reference>) {
    for reference in references {
        match (reference.kind, reference.luid) {
            (RefKind::Remote, Some(luid)) => output.release(luid, 1),
            (RefKind::Cache | RefKind::Cached, Some(luid)) => output.decache(luid),
            _ => {}
        }
    }
}

/// A reference to an object of ours.
pub(super) fn reference(out: &mut Vec<u8>, luid: u64) {
    jelly::token::list(out, 2);
    jelly::token::bytes(out, b"remote");
    jelly::token::uint(out, luid);
}
