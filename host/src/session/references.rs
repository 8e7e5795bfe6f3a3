//! References, between a client's numbers and a service's: what may go through, what each becomes, and how often it was
//! sent, so that each is given back.
//!
//! Each reference knows all attachments by which it came. It dies when the last of them is taken away, and not before: a
//! client that gives a perspective back keeps what it got by it (Twisted's rule), and what came by two keys survives the
//! loss of one. A reference that is dead gives back what it counted for, on both sides.

mod minds;
mod through;

use std::collections::{BTreeMap, BTreeSet};

use jelly::{RefKind, Reference};
use pb::{Failure, Output, Tables};

use super::mind::Sent;
use super::numbers::{AttachmentNo, HandleKind, HandleNo, Object, Provenance, Table, Uses};
use super::offers::Offers;
use crate::multiservice::SlotNo;

/// A value that names what is not its sender's to name.
const FOREIGN: &str = "a reference to something that is not this service's";

/// A cached object that came without its state.
const ELSEWHERE: &str = "a cached object of the client's whose state another service has, or nobody";

pub(super) fn insecure(what: &str) -> Failure {
    Failure::new("twisted.spread.jelly.InsecureJelly", what)
}

pub(super) fn dead(what: &str) -> Failure {
    Failure::new("twisted.spread.pb.DeadReferenceError", what)
}

pub(super) fn revoked() -> Failure {
    dead("the access that this came by was revoked")
}

/// A service's way to an object of the client's.
#[derive(Debug)]
struct Held {
    slot: SlotNo,
    luid: u64,
    /// Whether it is a cached object, whose state the service has.
    cached: bool,
    /// How many bytes that state had when it came.
    state: usize,
    /// How often the client sent it: each is given back.
    count: u64,
    /// How often the service was given it without the client having sent it once more: by an avatar that keeps its mind,
    /// or as the next generation.
    retained: u64,
    by: Provenance,
}

/// A service's own object that the client has.
#[derive(Debug, Default)]
struct Given {
    /// How often it was sent: the service counts as often.
    count: u64,
    by: Provenance,
}

/// A client's object that avatars keep, to give it to whatever is attached by them.
#[derive(Debug, Default)]
struct KeptMind {
    avatars: usize,
    /// How often the client sent it: given back when nobody has it any more.
    count: u64,
}

/// Between whom a value goes.
#[derive(Debug)]
pub(crate) struct Route<'r> {
    /// The connection's number.
    pub(crate) connection: u32,
    /// The service.
    pub(crate) slot: SlotNo,
    /// By which attachments.
    pub(crate) by: &'r Provenance,
}

/// What has ended on both sides.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Released {
    /// Services' own objects that the client has no more: each with how often it was sent.
    pub(crate) objects: Vec<(SlotNo, u64, u64)>,
    /// Copies of the client's objects that services have for nothing: the client will end these objects, or has.
    pub(crate) copies: Vec<(SlotNo, HandleNo)>,
    /// Attachments that something came by which has ended: they may be over now.
    pub(crate) attachments: Vec<AttachmentNo>,
}

/// All references of a connection.
#[derive(Debug, Default)]
pub(crate) struct References {
    held: Table<HandleKind, Held>,
    /// By the client's number and the service that has it.
    held_by: BTreeMap<(u64, SlotNo), HandleNo>,
    /// Cached objects of the client's, by its numbers. One service has each: its state is sent once.
    copies: BTreeMap<u64, HandleNo>,
    /// What the states of all of them had, in bytes.
    copied: usize,
    given: BTreeMap<Object, Given>,
    minds: BTreeMap<u64, KeptMind>,
    /// Cached objects of the client's in minds.
    pub(crate) offers: Offers,
    /// Of which things of the client's each attachment is a provenance, and of which of services'.
    held_uses: Uses,
    given_uses: Uses,
    /// The same of cached objects of the client's: changes of them come by these attachments.
    copied_uses: Uses,
}

impl References {
    /// The number by which a service knows an object of the client's, which was sent once more; or, `retained`, which it is
    /// given without that.
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

    /// These objects of the client's were sent for an avatar, which keeps them, and not for the service that has them, too.
    pub(crate) fn retain_instead(&mut self, connection: u32, handles: &[u64]) {
        for no in handles.iter().filter_map(|handle| HandleNo::of(*handle, connection)) {
            if let Some(held) = self.held.get_mut(no) {
                held.count -= 1;
                held.retained += 1;
            }
        }
    }

    /// The number by which a service knows a cached object of the client's, which was sent once more.
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
            // Its state may come behind a mention of it.
            let more = state.saturating_sub(held.state);
            held.state += more;
            self.copied += more;
            held.count += 1;
            self.copied_uses.begin(held.by.join(route.by));
        }
        no
    }

    /// The client has ended a cached object of its own; whose it was, and by what number that service knew it.
    pub(crate) fn ended(&mut self, luid: u64) -> Option<(SlotNo, HandleNo, Vec<AttachmentNo>)> {
        self.offers.ended(luid);
        let no = self.copies.remove(&luid)?;
        let held = self.held.remove(no)?;
        self.copied -= held.state;
        self.copied_uses.end(held.by.iter());
        Some((held.slot, no, held.by.iter().collect()))
    }

    /// Whether the states that come with a value may be kept, beside those that are.
    ///
    /// # Errors
    /// When they are too many bytes: a service keeps each until the client has ended it.
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

    /// What the states of the client's cached objects take, in bytes.
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

    /// Who follows a cached object of the client's: its service's number for it, and by which attachment that has it.
    pub(crate) fn follower(&self, luid: u64) -> Option<(HandleNo, AttachmentNo)> {
        let no = *self.copies.get(&luid)?;
        Some((no, self.held.get(no)?.by.first()?))
    }

    /// What a service calls, when it calls this handle: the client's luid, and by which attachments the call goes. It says
    /// by which attachment it has the object (`None`: it does not know), and may be wrong.
    ///
    /// # Errors
    /// When the object, or what it came by, was taken away.
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

    /// By which attachments the client has an object of a service's; `None`: it has it no more.
    #[must_use]
    pub(crate) fn given(&self, object: &Object) -> Option<&Provenance> {
        self.given.get(object).map(|given| &given.by)
    }

    /// The client has given its last reference to an object back, or its copy of a cached one.
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

    /// A service gives an object of the client's back, so many times.
    pub(crate) fn release(&mut self, output: &mut Output<Object>, slot: SlotNo, no: HandleNo, count: u64) -> Released {
        let Some(held) = self.held.get_mut(no).filter(|held| held.slot == slot) else { return Released::default() };
        // What was not sent for it is not given back for it.
        let retained = count.min(held.retained);
        held.retained -= retained;
        let count = (count - retained).min(held.count);
        held.count -= count;
        let (luid, cached, left) = (held.luid, held.cached, held.count + held.retained);
        give_back_one(output, luid, cached, count);
        let mut released = Released::default();
        // The client may send a cached one once more without its state, until it has ended it.
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

    /// The next generation of a service has an object of the client's, too, which the client has not sent once more.
    pub(crate) fn retain(&mut self, slot: SlotNo, no: HandleNo) {
        if let Some(held) = self.held.get_mut(no).filter(|held| held.slot == slot) {
            held.retained += 1;
        }
    }

    /// These attachments were taken away (they are sorted): what came by nothing else is dead. The client's objects are
    /// given back to it, and its luids of services' objects name nothing any more.
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

    /// A service has ended: nothing of it is there any more, and it has nothing any more.
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

    /// Gives objects of the client's back to it.
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

    /// Its numbers lead nowhere from now on.
    fn unname(&mut self, held: &Held) {
        match held.cached {
            true => {
                self.copies.remove(&held.luid);
                self.copied -= held.state;
            }
            false => drop(self.held_by.remove(&(held.luid, held.slot))),
        }
    }

    /// Whether something came by this attachment that still lives.
    #[must_use]
    pub(crate) fn uses(&self, no: AttachmentNo) -> bool {
        self.held_uses.has(no) || self.given_uses.has(no) || self.copied_uses.has(no)
    }

    /// Whether calls may still come by this attachment: of something of the service's that the client has, or of a copy that the
    /// service has.
    #[must_use]
    pub(crate) fn gives(&self, no: AttachmentNo) -> bool {
        self.given_uses.has(no) || self.copied_uses.has(no)
    }

    /// How many of the client's objects services have, how many of theirs the client has, and how many minds avatars keep.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.held.len(), self.given.len(), self.minds.len() + self.offers.len())
    }
}

/// Takes an object away from the client; answers with its slot and number.
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

/// The cached objects of the client's whose states come with a value.
pub(crate) fn coming<'r>(references: impl Iterator<Item = &'r Reference>) -> BTreeSet<u64> {
    references.filter(|of| of.kind == RefKind::Cache).filter_map(|of| of.luid).collect()
}

/// Gives back what has come with a value that nobody takes: the client counts each of them as sent.
pub(crate) fn give_back<'r>(output: &mut Output<Object>, references: impl Iterator<Item = &'r Reference>) {
    for reference in references {
        match (reference.kind, reference.luid) {
            (RefKind::Remote, Some(luid)) => output.release(luid, 1),
            (RefKind::Cache, Some(luid)) => output.decache(luid),
            // One that we never had costs nothing.
            (RefKind::Cached, Some(luid)) if output.tables.keeps(luid) => output.decache(luid),
            _ => {}
        }
    }
}

/// A reference to an object of ours, in Jelly.
pub(super) fn reference(out: &mut Vec<u8>, luid: u64) {
    jelly::token::list(out, 2);
    jelly::token::bytes(out, b"remote");
    jelly::token::uint(out, luid);
}
