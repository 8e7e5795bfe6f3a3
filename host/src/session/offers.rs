//! The client's cached objects in minds. Until an attachment is given the mind, no service follows them.
//!
//! The state in a mind goes to one service: the first that is given the mind. Changes by the client until then wait
//! here.

use std::collections::BTreeMap;

use pb::Call;

/// A change that the client has reported.
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
    /// The number of minds with it: those that avatars keep, and those that wait to be given to an attachment. Each
    /// occurrence in a mind counts.
    minds: usize,
    /// How often the client sent it for these minds.
    count: u64,
    /// The changes since its state arrived, as long as no service has the state and no change is missing.
    changes: Option<Vec<Change>>,
    /// Whether a service has received a change.
    told: bool,
}

/// All of them, by the client's numbers.
#[derive(Debug, Default)]
pub(crate) struct Offers {
    all: BTreeMap<u64, Offer>,
    /// The size of the changes, in bytes.
    bytes: usize,
}

impl Offers {
    /// It has arrived in a mind. `state`: with its state, which no service has.
    pub(crate) fn came(&mut self, luid: u64, state: bool) {
        let offer = self.all.entry(luid).or_default();
        if state && offer.count == 0 {
            offer.changes = Some(Vec::new());
        }
        offer.minds += 1;
        offer.count += 1;
    }

    /// One more call needs the mind that it is in.
    pub(crate) fn borrowed(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid) {
            offer.minds += 1;
        }
    }

    /// A mind that it was in is over. The rest must be [settled](Self::settle).
    pub(crate) fn over(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid) {
            offer.minds = offer.minds.saturating_sub(1);
        }
    }

    /// What the client sent for a mind now belongs to another owner, which returns it.
    pub(crate) fn taken(&mut self, luid: u64) {
        let Some(offer) = self.all.get_mut(&luid) else { return };
        offer.minds = offer.minds.saturating_sub(1);
        offer.count = offer.count.saturating_sub(1);
        if offer.count == 0 {
            self.ended(luid);
        }
    }

    /// A service receives its state from now on. Returns the changes that are not in that state. `None`: its state is
    /// not here.
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

    /// The service that was given its state has not accepted it. If no change was sent to that service, the state is
    /// available again.
    pub(crate) fn not_given(&mut self, luid: u64) {
        if let Some(offer) = self.all.get_mut(&luid).filter(|offer| !offer.told && offer.changes.is_none()) {
            offer.changes = Some(Vec::new());
        }
    }

    /// Whether its current state is available here.
    pub(crate) fn has_state(&self, luid: u64) -> bool {
        self.all.get(&luid).is_some_and(|offer| offer.changes.is_some())
    }

    /// The client reports a change while no service follows the object: the change waits. If it cannot be kept, the
    /// state that arrived is outdated and useless. `most`: the limit of waiting changes, in bytes.
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

    /// How often it must be returned to the client, if nobody has it any more. `held`: whether a service has it.
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

    /// The memory used here, in bytes.
    pub(crate) fn bytes(&self) -> usize {
        self.bytes + self.all.len() * size_of::<Offer>()
    }

    /// The number of objects in minds.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }
}
