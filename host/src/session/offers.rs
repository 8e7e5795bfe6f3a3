//! Cached objects of the client's in minds: until an attachment is given the mind, nobody follows them.
//!
//! A mind's state of such an object goes to one service, the first that is given the mind: what the client tells of until
//! then waits here.

use std::collections::BTreeMap;

use pb::Call;

/// A change that the client has told of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Change {
    pub(crate) method: String,
    pub(crate) arguments: Vec<u8>,
    pub(crate) keywords: Vec<u8>,
}

impl Change {
    fn size(&self) -> usize {
        size_of::<Self>() + self.method.len() + self.arguments.len() + self.keywords.len()
    }
}

/// An object in minds.
#[derive(Debug, Default)]
struct Offer {
    /// How many minds have it: those that avatars keep, and those that wait to be given to an attachment. More often in one
    /// counts as more.
    minds: usize,
    /// How often the client sent it for them.
    count: u64,
    /// What it has been told of since, if nobody has its state yet and that is all that it has been told of.
    changes: Option<Vec<Change>>,
    /// Whether a service has received a change.
    told: bool,
}

/// All of them, by the client's numbers.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    all: BTreeMap<u64, Offer>,
    /// What the changes take, in bytes.
    bytes: usize,
}

impl Offers {
    /// It has come with a mind; `state`: with its state, which nobody has.
    pub(crate) fn came(&mut self, luid: u64, state: bool) {
        let offer = self.all.entry(luid).or_default();
        if state && offer.count == 0 {
            offer.changes = Some(Vec::new());
        }
        offer.minds += 1;
        offer.count += 1;
    }

    /// One more needs the mind that it is in.
    pub(crate) fn borrowed(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid) {
            offer.minds += 1;
        }
    }

    /// A mind that it was in is over; what is left is to be [settled](Self::settle).
    pub(crate) fn over(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid) {
            offer.minds = offer.minds.saturating_sub(1);
        }
    }

    /// What the client sent for a mind is another's to give back.
    pub(crate) fn taken(&mut self, luid: u64) {
        let Some(offer) = self.all.get_mut(&luid) else { return };
        offer.minds = offer.minds.saturating_sub(1);
        offer.count = offer.count.saturating_sub(1);
        if offer.count == 0 {
            self.ended(luid);
        }
    }

    /// A service has its state from now on; what that has not been told of. `None`: its state is not here.
    pub(crate) fn given(&mut self, luid: u64) -> Option<Vec<Change>> {
        let changes = self.all.get_mut(&luid).and_then(|offer| offer.changes.take())?;
        self.bytes -= changes.iter().map(Change::size).sum::<usize>();
        Some(changes)
    }

    /// A service receives a change.
    pub(crate) fn told(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid) {
            offer.told = true;
        }
    }

    /// The service that was given its state has taken nothing. If it was to be told of no change, its state is here again.
    pub(crate) fn not_given(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid).filter(|offer| !offer.told && offer.changes.is_none()) {
            offer.changes = Some(Vec::new());
        }
    }

    /// Whether its state is here as it is now.
    pub(crate) fn has_state(&self, luid: u64) -> bool {
        self.all.get(&luid).is_some_and(|offer| offer.changes.is_some())
    }

    /// The client tells of a change that nobody follows: it waits. If it cannot, the state that came is the old one, and worth
    /// nothing. `most`: how many bytes of changes may wait.
    pub(crate) fn changed(&mut self, luid: u64, call: &Call<'_>, most: usize) {
        let Some(changes) = self.all.get_mut(&luid).and_then(|offer| offer.changes.as_mut()) else { return };
        let change = Change {
            method: call.method.to_owned(),
            arguments: call.arguments.bytes().to_vec(),
            keywords: call.keywords.bytes().to_vec(),
        };
        let refers = call.arguments.references().iter().chain(call.keywords.references()).next().is_some();
        if refers || call.defect.is_some() || self.bytes + change.size() > most {
            self.given(luid);
            return;
        }
        self.bytes += change.size();
        changes.push(change);
    }

    /// How often it is to be given back to the client, if nobody has it any more. `held`: a service has it.
    pub(crate) fn settle(&mut self, luid: u64, held: bool) -> Option<u64> {
        let count = self.all.get(&luid).filter(|offer| offer.minds == 0 && !held)?.count;
        self.ended(luid);
        Some(count)
    }

    /// The client has ended it.
    pub(crate) fn ended(&mut self, luid: u64) {
        self.given(luid);
        self.all.remove(&luid);
    }

    /// What is kept here, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.all.len() * size_of::<Offer>()
    }

    /// How many objects there are in minds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}
