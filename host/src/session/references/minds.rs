//! The client's objects in minds: kept until the mind is given to an attachment, or is discarded.

use jelly::{RefKind, Reference};
use pb::{Failure, Output};

use super::super::mind::{GivenMind, Sent};
use super::super::numbers::Object;
use super::super::offers::Change;
use super::{ELSEWHERE, References, insecure};
use crate::multiservice::SlotNo;

impl References {
    /// An object has arrived in a mind. It is kept until the mind is given to an attachment, or is discarded.
    pub(crate) fn offer(&mut self, output: &mut Output<Object>, reference: &Reference) {
        if let Some(Sent::Copy(luid)) = Sent::of(reference) {
            output.tables.keep(luid);
            self.offers.came(luid, reference.kind == RefKind::Cache && self.copy(luid).is_none());
        }
    }

    /// Checks whether a mind with this reference may go to a service. It may not if the state in the mind may be
    /// outdated.
    pub(crate) fn check_offer(&self, reference: &Reference) -> Result<(), Failure> {
        match (reference.kind, reference.luid) {
            (RefKind::Cache, Some(luid)) if self.copy(luid).is_none() && !self.offers.has_state(luid) => {
                Err(insecure(ELSEWHERE))
            }
            _ => Ok(()),
        }
    }

    /// A mind goes to a service, after the checks. Returns the changes of its objects (by the client's numbers) that
    /// the service does not know, and the objects whose first state the service receives with the mind, without any
    /// change.
    pub(crate) fn take_mind(&mut self, mind: &GivenMind) -> (Vec<(u64, Change)>, Box<[u64]>) {
        let copies = mind.mind.objects().filter_map(|sent| match sent {
            Sent::Copy(luid) => Some(luid),
            Sent::Object(_) => None,
        });
        let (mut changes, mut states) = (Vec::new(), Vec::new());
        for luid in copies {
            match self.offers.given(luid) {
                Some(told) if told.is_empty() => states.push(luid),
                Some(told) => changes.extend(told.into_iter().map(|change| (luid, change))),
                None => {}
            }
            if !mind.kept {
                self.offers.taken(luid);
            }
        }
        (changes, states.into())
    }

    /// A service did not accept a mind that it was given.
    pub(crate) fn not_given(&mut self, luid: u64) {
        if self.copy(luid).is_none() {
            self.offers.not_given(luid);
        }
    }

    /// An object that the client sent once is in a mind that is not accepted.
    pub(crate) fn return_mind(&mut self, output: &mut Output<Object>, sent: Sent) {
        match sent {
            Sent::Object(luid) => output.release(luid, 1),
            Sent::Copy(luid) => {
                self.offers.taken(luid);
                output.give_back(luid);
                self.settle_sent(output, sent);
            }
        }
    }

    /// An avatar keeps an object that the client sent once.
    pub(crate) fn keep_mind(&mut self, sent: Sent) {
        if let Sent::Object(luid) = sent {
            let kept = self.minds.entry(luid).or_default();
            kept.avatars += 1;
            kept.count += 1;
        }
    }

    /// A call needs an object that an avatar keeps, until [`References::forget_mind`].
    pub(crate) fn borrow_mind(&mut self, sent: Sent) {
        match sent {
            Sent::Copy(luid) => self.offers.borrowed(luid),
            Sent::Object(luid) => {
                if let Some(kept) = self.minds.get_mut(&luid) {
                    kept.avatars += 1;
                }
            }
        }
    }

    /// The avatar, or the call that needed the object, has ended.
    pub(crate) fn forget_mind(&mut self, output: &mut Output<Object>, sent: Sent) {
        match sent {
            Sent::Copy(luid) => self.offers.over(luid),
            Sent::Object(luid) => {
                if let Some(kept) = self.minds.get_mut(&luid) {
                    kept.avatars = kept.avatars.saturating_sub(1);
                }
            }
        }
        self.settle_sent(output, sent);
    }

    /// Returns a kept object to the client, if nobody has it any more.
    pub(super) fn settle_sent(&mut self, output: &mut Output<Object>, sent: Sent) {
        let luid = match sent {
            Sent::Object(luid) => luid,
            Sent::Copy(luid) => {
                let held = self.copy(luid).is_some_and(|held| held.count + held.retained > 0);
                let count = self.offers.settle(luid, held).unwrap_or_default();
                return (0..count).for_each(|_| output.give_back(luid));
            }
        };
        let Some(kept) = self.minds.get(&luid).filter(|kept| kept.avatars == 0) else { return };
        let count = kept.count;
        if self.held_by.range((luid, SlotNo(0))..=(luid, SlotNo(u32::MAX))).next().is_none() {
            self.minds.remove(&luid);
            output.release(luid, count);
        }
    }
}
