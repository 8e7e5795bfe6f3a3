//! What ends while its client stays: attachments, logins, and every reference that came by them.

use std::sync::Arc;

use pb::{Failure, Output};

use super::desk::{Object, State};
use super::root::LoginObject;
use crate::cred::Identity;

type Out = Output<Object>;

pub(super) fn revoked() -> Failure {
    Failure::new("twisted.spread.pb.DeadReferenceError", "what this came by was taken away")
}

impl State {
    /// An identity is this now, or is no more: what it may not have any longer ends.
    pub(super) fn changed(&mut self, output: &mut Out, name: &str, identity: Option<&Identity>) {
        let identity = identity.filter(|identity| identity.enabled);
        self.login.retain(|_, object| match object {
            LoginObject::Identity { name: of, credential, .. } if of == name => {
                identity.is_some_and(|identity| identity.has(*credential))
            }
            _ => true,
        });
        let ending: Vec<u64> = self
            .attachments
            .iter()
            .filter(|(_, attached)| {
                let may =
                    |identity: &Identity| identity.has(attached.credential) && identity.keyring.has(&attached.key);
                *attached.identity == *name && !identity.is_some_and(may)
            })
            .map(|(attachment, _)| *attachment)
            .collect();
        for attachment in ending {
            self.revoke(output, attachment);
        }
        let has_login = |object: &LoginObject| matches!(object, LoginObject::Identity { name: of, .. } if of == name);
        let stays = self.login.values().any(has_login) || self.attachments.values().any(|has| *has.identity == *name);
        if let (false, Some(session)) = (stays, &self.session) {
            session.left(name);
        }
        let is_login = |object: &LoginObject| matches!(object, LoginObject::Identity { .. });
        self.logged_in = !self.attachments.is_empty() || self.login.values().any(is_login);
    }

    /// Ends an attachment at once: calls by it are errors, those under way and those to come; objects that it handed
    /// out are dead, and so are the client's objects that came by it.
    pub(super) fn revoke(&mut self, output: &mut Out, attachment: u64) {
        self.end_attachment(output, attachment, &revoked());
    }

    /// As [`State::revoke`], for a reason that clients are told.
    pub(super) fn end_attachment(&mut self, output: &mut Out, attachment: u64, why: &Failure) {
        let Some(attached) = self.attachments.get_mut(&attachment) else { return };
        let (slot, request) = (Arc::clone(&attached.slot), attached.request.take());
        let mut owed: Vec<u64> = self
            .calls
            .extract_if(|_, call| call.attachment == attachment)
            .filter(|(_, call)| call.answer)
            .map(|(_, call)| call.request)
            .collect();
        owed.extend(request);
        owed.sort_unstable();
        for request in owed {
            output.fail(request, why);
        }
        let held: Vec<(u64, u64)> = self
            .held
            .extract_if(|_, held| held.attachment == attachment && held.slot.number() == slot.number())
            .map(|(_, held)| (held.luid, held.count))
            .collect();
        for (luid, count) in held {
            self.held_by.remove(&(slot.number(), luid));
            output.release(luid, count);
        }
        // Copies of cached objects that came by it, and by nothing else, are told of no more changes.
        for by in self.cached_by.values_mut() {
            by.remove(&attachment);
        }
        self.detach(attachment);
    }
}
