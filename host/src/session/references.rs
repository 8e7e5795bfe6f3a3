//! References between a client and a service: which may pass, their numbers on either side, and how often each was
//! sent, so that each can be returned.
//!
//! Each reference knows all attachments by which it came. It dies when the last of them is revoked, and not before: a
//! client that releases a perspective keeps what it got by it (Twisted's rule), and what came by two keys survives the
//! loss of one. When a reference dies, its counts are returned on both sides.

mod minds;
mod through;

use std::collections::{BTreeMap, BTreeSet};

use jelly::{RefKind, Reference};
use pb::{Failure, Output, Tables};

use super::mind::Sent;
use super::numbers::{AttachmentNo, HandleKind, HandleNo, Object, Provenance, Table, Uses};
use super::offers::Offers;
use crate::multiservice::SlotNo;

/// The value names an object that its sender may not name.
const FOREIGN: &str = "a reference to an object that does not belong to this service";

/// A cached object that came without its state.
const ELSEWHERE: &str = "a cached object of the client whose state this service has not received";

pub(super) fn insecure(what: &str) -> Failure {
    Failure::new("twisted.spread.jelly.InsecureJelly", what)
}

pub(super) fn dead(what: &str) -> Failure {
    Failure::new("twisted.spread.pb.DeadReferenceError", what)
}

pub(super) fn revoked() -> Failure {
    dead("the access by which this object came was revoked")
}

/// A service's handle of an object of the client's.
#[derive(Debug)]
struct Held {
    slot: SlotNo,
    luid: u64,
    /// Whether it is a cached object whose state the service has.
    cached: bool,
    /// The size of that state when it came, in bytes.
    state: usize,
    /// How often the client sent it. Each time must be returned.
    count: u64,
    /// How often the service received it although the client did not send it again: from an avatar that keeps its mind,
    /// or as the next generation.
    retained: u64,
    by: Provenance,
}

/// A service's own object that the client holds.
#[derive(Debug, Default)]
struct Given {
    /// How often it was sent. The service keeps the same count.
    count: u64,
    by: Provenance,
}

/// A client's object that avatars keep, to give it to everything attached by them.
#[derive(Debug, Default)]
struct KeptMind {
    avatars: usize,
    /// How often the client sent it. Returned when nobody has it any more.
    count: u64,
}

/// The two ends of a value's way.
#[derive(Debug)]
pub(crate) struct Route<'r> {
    /// The connection's number.
    pub(crate) connection: u32,
    /// The service.
    pub(crate) slot: SlotNo,
    /// The attachments that it goes by.
    pub(crate) by: &'r Provenance,
}

/// References that have ended on both sides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Services' own objects that the client no longer holds, each with how often it was sent.
    pub(crate) objects: Vec<(SlotNo, u64, u64)>,
    /// Copies of the client's objects that services no longer need: the client will end these objects, or has ended
    /// them.
    pub(crate) copies: Vec<(SlotNo, HandleNo)>,
    /// Attachments that something which has ended came by: they may be over now.
    pub(crate) attachments: Vec<AttachmentNo>,
}

/// All references of a connection.
#[derive(Debug, Default)]
pub(crate) struct References {
    held: Table<HandleKind, Held>,
    /// By the client's number and the service's slot.
    held_by: BTreeMap<(u64, SlotNo), HandleNo>,
    /// The client's cached objects, by its numbers. Only one service has each, because its state is sent once.
    copies: BTreeMap<u64, HandleNo>,
    /// The size of all their states, in bytes.
    copied: usize,
    given: BTreeMap<Object, Given>,
    minds: BTreeMap<u64, KeptMind>,
    /// Cached objects of the client's in minds.
    pub(crate) offers: Offers,
    /// How many of the client's objects came by each attachment, and how many of services' objects.
    held_uses: Uses,
    given_uses: Uses,
    /// The same for the client's cached objects: their changes come by these attachments.
    copied_uses: Uses,
}

impl References {
    /// Returns the service's handle of an object that the client sent once more; or, with `retained`, that the service
    /// receives without the client sending it again.
    pub(crate) fn hold(&mut self, route: &Route<'_>, luid: u64, retained: bool) -> HandleNo {
        let (slot, by) = (route.slot, Provenance::default());
        let no = match self.held_by.get(&(luid, slot)) {
            Some(no) => *no,
            None => {
                let no = self.held.insert(Held { slot, luid, cached: false, state: 0, count: 0, retained: 0, by });
                self.held_by.insert((luid, slot), no);
                no
            }
        };
        if let Some(held) = self.held.get_mut(no) {
            held.count += u64::from(!retained);
            held.retained += u64::from(retained);
            self.held_uses.begin(held.by.join(route.by));
        }
        no
    }

    /// The client sent these objects for an avatar, which keeps them, and not also for the service that has them.
    pub(crate) fn retain_instead(&mut self, connection: u32, handles: &[u64]) {
        for no in handles.iter().filter_map(|handle| HandleNo::of(*handle, connection)) {
            if let Some(held) = self.held.get_mut(no) {
                held.count -= 1;
                held.retained += 1;
            }
        }
    }

    /// Returns the service's handle of a cached object that the client sent once more.
    fn hold_copy(&mut self, route: &Route<'_>, luid: u64, state: usize) -> HandleNo {
        let slot = route.slot;
        let no = match self.copies.get(&luid) {
            Some(no) => *no,
            None => {
                let by = Provenance::default();
                let no = self.held.insert(Held { slot, luid, cached: true, state, count: 0, retained: 0, by });
                self.copies.insert(luid, no);
                self.copied += state;
                no
            }
        };
        if let Some(held) = self.held.get_mut(no) {
            // The state may follow an earlier mention of the object.
            let more = state.saturating_sub(held.state);
            held.state += more;
            self.copied += more;
            held.count += 1;
            self.copied_uses.begin(held.by.join(route.by));
        }
        no
    }

    /// The client has ended a cached object of its own. Returns the service that had it, that service's handle, and the
    /// attachments that it came by.
    pub(crate) fn ended(&mut self, luid: u64) -> Option<(SlotNo, HandleNo, Vec<AttachmentNo>)> {
        self.offers.ended(luid);
        let no = self.copies.remove(&luid)?;
        let held = self.held.remove(no)?;
        self.copied -= held.state;
        self.copied_uses.end(held.by.iter());
        Some((held.slot, no, held.by.iter().collect()))
    }

    /// Checks that the states in a value may be kept in addition to those that are kept already.
    ///
    /// # Errors
    /// Returns an error if they have too many bytes. A service keeps each until the client has ended it.
    pub(crate) fn check_copies<'r>(
        &self,
        coming: impl Iterator<Item = &'r Reference>,
        most: usize,
    ) -> Result<(), Failure> {
        let states = coming.filter(|of| of.kind == RefKind::Cache).map(|of| of.close - of.open);
        match self.copied.saturating_add(states.sum()) <= most {
            true => Ok(()),
            false => {
                let message = format!("the cached objects of this connection have more than {most} bytes of state");
                Err(Failure::new("MemoryError", message))
            }
        }
    }

    /// The size of the states of the client's cached objects, in bytes.
    pub(crate) fn copied_bytes(&self) -> usize {
        self.copied + self.offers.bytes()
    }

    fn copy(&self, luid: u64) -> Option<&Held> {
        self.copies.get(&luid).and_then(|no| self.held.get(*no))
    }

    /// Whether a service has this object of the client's by this attachment.
    pub(crate) fn has(&self, slot: SlotNo, no: HandleNo, by: AttachmentNo) -> bool {
        self.held.get(no).is_some_and(|held| held.slot == slot && held.by.has(by))
    }

    /// The follower of a client's cached object: its service's handle, and an attachment by which the service has it.
    pub(crate) fn follower(&self, luid: u64) -> Option<(HandleNo, AttachmentNo)> {
        let no = *self.copies.get(&luid)?;
        Some((no, self.held.get(no)?.by.first()?))
    }

    /// Looks up the target of a service's call: the client's luid, and the attachments that the call goes by. `by` is
    /// the attachment by which the service says it has the object (`None`: it does not know). The service may be wrong.
    ///
    /// # Errors
    /// Returns an error if the object, or what it came by, was revoked.
    pub(crate) fn called(
        &self,
        slot: SlotNo,
        no: Option<HandleNo>,
        by: Option<AttachmentNo>,
    ) -> Result<(u64, Provenance), Failure> {
        let gone = || dead("the client's object no longer exists");
        let held =
            no.and_then(|no| self.held.get(no)).filter(|held| held.slot == slot && !held.cached).ok_or_else(gone)?;
        match by {
            None => Ok((held.luid, held.by.clone())),
            Some(by) if held.by.has(by) => Ok((held.luid, Provenance::by(by))),
            Some(_) => Err(revoked()),
        }
    }

    /// The attachments by which the client holds a service's object. `None`: it no longer holds it.
    #[must_use]
    pub(crate) fn given(&self, object: &Object) -> Option<&Provenance> {
        self.given.get(object).map(|given| &given.by)
    }

    /// The client has returned its last reference to an object, or its copy of a cached one.
    pub(crate) fn dropped(&mut self, object: &Object) -> Released {
        let Some(given) = self.given.remove(object) else { return Released::default() };
        self.given_uses.end(given.by.iter());
        let (Object::Service { slot, object } | Object::Cached { slot, object }) = *object else {
            return Released::default();
        };
        Released {
            objects: vec![(slot, object, given.count)],
            attachments: given.by.iter().collect(),
            ..Released::default()
        }
    }

    /// A service returns `count` references to an object of the client's.
    pub(crate) fn release(&mut self, output: &mut Output<Object>, slot: SlotNo, no: HandleNo, count: u64) -> Released {
        let Some(held) = self.held.get_mut(no).filter(|held| held.slot == slot) else { return Released::default() };
        // References that the client did not send again are not returned to it.
        let retained = count.min(held.retained);
        held.retained -= retained;
        let count = (count - retained).min(held.count);
        held.count -= count;
        let (luid, cached, left) = (held.luid, held.cached, held.count + held.retained);
        give_back_one(output, luid, cached, count);
        let mut released = Released::default();
        // Until the client has ended a cached object, it may send it again without its state.
        if left == 0
            && !cached
            && let Some(held) = self.held.remove(no)
        {
            self.unname(&held);
            self.held_uses.end(held.by.iter());
            released.attachments.extend(held.by.iter());
        }
        self.settle_sent(output, if cached { Sent::Copy(luid) } else { Sent::Object(luid) });
        released
    }

    /// The next generation of a service has this object of the client's, too, although the client has not sent it
    /// again.
    pub(crate) fn retain(&mut self, slot: SlotNo, no: HandleNo) {
        if let Some(held) = self.held.get_mut(no).filter(|held| held.slot == slot) {
            held.retained += 1;
        }
    }

    /// These attachments (sorted) were revoked: references that came only by them die. The client's objects are
    /// returned to it, and its luids of services' objects no longer name anything.
    pub(crate) fn forget(&mut self, output: &mut Output<Object>, gone: &[AttachmentNo]) -> Released {
        if !gone.iter().any(|no| self.uses(*no)) {
            return Released::default();
        }
        let mut objects = Vec::new();
        self.given.retain(|object, given| {
            if given.by.leave(gone) == 0 || !given.by.is_empty() {
                return true;
            }
            objects.extend(revoke(&mut output.tables, object).map(|(slot, object)| (slot, object, given.count)));
            false
        });
        let mut orphans = Vec::new();
        for no in self.held.iter().map(|(no, _)| no).collect::<Vec<_>>() {
            if let Some(held) = self.held.get_mut(no)
                && held.by.leave(gone) > 0
                && held.by.is_empty()
            {
                orphans.push(no);
            }
        }
        self.held_uses.forget(gone);
        self.given_uses.forget(gone);
        self.copied_uses.forget(gone);
        let copies = |no: &HandleNo| self.held.get(*no).filter(|held| held.cached).map(|held| (held.slot, *no));
        let copies = orphans.iter().filter_map(copies).collect();
        self.let_go_of(output, orphans);
        Released { objects, copies, attachments: Vec::new() }
    }

    /// A service has ended: the client's references to its objects are revoked, and the client's objects are returned.
    pub(crate) fn forget_slot(&mut self, output: &mut Output<Object>, slot: SlotNo) {
        let uses = &mut self.given_uses;
        self.given.retain(|object, given| {
            let (Object::Service { slot: of, .. } | Object::Cached { slot: of, .. }) = object else { return true };
            if *of != slot {
                return true;
            }
            uses.end(given.by.iter());
            revoke(&mut output.tables, object);
            false
        });
        let held: Vec<HandleNo> = self.held.iter().filter(|(_, held)| held.slot == slot).map(|(no, _)| no).collect();
        self.let_go_of(output, held);
    }

    /// Returns objects of the client's to it.
    fn let_go_of(&mut self, output: &mut Output<Object>, handles: Vec<HandleNo>) {
        for no in handles {
            let Some(held) = self.held.remove(no) else { continue };
            self.unname(&held);
            match held.cached {
                true => self.copied_uses.end(held.by.iter()),
                false => self.held_uses.end(held.by.iter()),
            }
            give_back_one(output, held.luid, held.cached, held.count);
            self.settle_sent(output, if held.cached { Sent::Copy(held.luid) } else { Sent::Object(held.luid) });
        }
    }

    /// Removes it from the tables of numbers.
    fn unname(&mut self, held: &Held) {
        match held.cached {
            true => {
                self.copies.remove(&held.luid);
                self.copied -= held.state;
            }
            false => drop(self.held_by.remove(&(held.luid, held.slot))),
        }
    }

    /// Whether something that came by this attachment still lives.
    #[must_use]
    pub(crate) fn uses(&self, no: AttachmentNo) -> bool {
        self.held_uses.has(no) || self.given_uses.has(no) || self.copied_uses.has(no)
    }

    /// Whether calls may still come by this attachment: of a service's object that the client holds, or of a copy that
    /// the service has.
    #[must_use]
    pub(crate) fn gives(&self, no: AttachmentNo) -> bool {
        self.given_uses.has(no) || self.copied_uses.has(no)
    }

    /// The numbers of the client's objects that services hold, of services' objects that the client holds, and of
    /// objects in minds that avatars keep.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.held.len(), self.given.len(), self.minds.len() + self.offers.len())
    }
}

/// Revokes an object that the client holds. Returns its slot and number.
fn revoke(tables: &mut Tables<Object>, object: &Object) -> Option<(SlotNo, u64)> {
    match object {
        Object::Service { slot, object: number } => {
            tables.revoke(object);
            Some((*slot, *number))
        }
        Object::Cached { slot, object: number } => {
            tables.revoke_cached(object);
            Some((*slot, *number))
        }
        Object::Login(_) | Object::Perspective(_) => None,
    }
}

/// Returns `count` references to a client's object.
fn give_back_one(output: &mut Output<Object>, luid: u64, cached: bool, count: u64) {
    match cached {
        true => (0..count).for_each(|_| output.decache(luid)),
        false => output.release(luid, count),
    }
}

/// The client's cached objects whose states are in a value.
pub(crate) fn coming<'r>(references: impl Iterator<Item = &'r Reference>) -> BTreeSet<u64> {
    references.filter(|of| of.kind == RefKind::Cache).filter_map(|of| of.luid).collect()
}

/// Returns the objects in a value that is not accepted: the client counts each of them as sent.
pub(crate) fn give_back<'r>(output: &mut Output<Object>, references: impl Iterator<Item = &'r Reference>) {
    for reference in references {
        match (reference.kind, reference.luid) {
            (RefKind::Remote, Some(luid)) => output.release(luid, 1),
            (RefKind::Cache, Some(luid)) => output.decache(luid),
            // One that the host never had is not counted.
            (RefKind::Cached, Some(luid)) if output.tables.keeps(luid) => output.decache(luid),
            _ => {}
        }
    }
}

/// A reference to an object of the host or a service, in Jelly.
pub(super) fn reference(out: &mut Vec<u8>, luid: u64) {
    jelly::token::list(out, 2);
    jelly::token::bytes(out, b"remote");
    jelly::token::uint(out, luid);
}
