//! The client's objects in minds: kept until the mind is given to an attachment, or is over.

use jelly::{RefKind, Reference};
use pb::{Failure, Output};

use super::super::mind::{GivenMind, Sent};
use super::super::numbers::Object;
use super::super::offers::Change;
use super::{ELSEWHERE, References, insecure};
use crate::multiservice::SlotNo;

impl References {
    /// An object has come with a mind, which is kept until it is given to an attachment, or is over.
    pub(crate) fn offer(&mut self, output: &mut Output<Object>, reference: &Reference) {
        if let Some(Sent::Copy(luid)) = Sent::of(reference) {
            output.tables.keep(luid);
            self.offers.came(luid, reference.kind == RefKind::Cache && self.copy(luid).is_none());
        }
    }

    /// What keeps a mind that has this in it from going to a service: its state may be an old one.
    pub(crate) fn check_offer(&self, reference: &Reference) -> Result<(), Failure> {
        match (reference.kind, reference.luid) {
            (RefKind::Cache, Some(luid)) if self.copy(luid).is_none() && !self.offers.has_state(luid) => {
                Err(insecure(ELSEWHERE))
            }
            _ => Ok(()),
        }
    }

    /// A mind goes to a service that has checked it. Answers with what the client has told of the objects in it, by its numbers, that the
    /// service does not know; and of which others the service has the first state by that.
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

    /// A service that was given a mind has taken nothing.
    pub(crate) fn not_given(&mut self, luid: u64) {
        if self.copy(luid).is_none() {
            self.offers.not_given(luid);
        }
    }

    /// An object that the client sent once is in a mind that nobody takes.
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

    /// A call needs what an avatar keeps, until [`References::forget_mind`].
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

    /// The avatar is gone, or the call that needed it.
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

    /// Gives a kept object back to the client, if nobody has it any more.
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
