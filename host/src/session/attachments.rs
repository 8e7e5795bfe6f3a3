//! Who is attached where, by which key and credential, and the phase of each attachment.

use std::sync::Arc;

use super::mind::KnownMind;
use super::numbers::{AttachmentKind, AttachmentNo, Table};
use crate::cred::Key;
use crate::multiservice::{Backend, SlotNo};

/// The words that a client logged in with. They decide how long an attachment lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// Until the connection ends.
    Old,
    /// Until the client releases its last reference, or the connection ends.
    New,
}

/// The phase of an attachment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The service was asked. Its answer becomes the answer to this call of the client.
    Asked {
        /// The client's number for the call. `None`: no call waits for this answer alone.
        request: Option<u64>,
    },
    /// The client has the perspective.
    Attached,
    /// The client has released the perspective. Calls and objects that came by it live on.
    LetGo,
    /// As `LetGo`, but only the client's objects that came by it are left, and the service no longer knows the
    /// attachment.
    Forgotten,
}

/// A client at a perspective.
pub(crate) struct Attached {
    /// The service.
    pub(crate) backend: Arc<dyn Backend>,
    /// Its slot.
    pub(crate) slot: SlotNo,
    /// How long it lasts.
    pub(crate) era: Era,
    /// The phase.
    pub(crate) phase: Phase,
    /// The identity that is attached.
    pub(crate) identity: Arc<str>,
    /// The number of the credential that it logged in with, among the identity's.
    pub(crate) credential: u64,
    /// The key that leads to the perspective.
    pub(crate) key: Key,
    /// The mind, as the service knows it.
    pub(crate) mind: KnownMind,
    /// The number of calls by it: under way, parked, and services' own calls of what came by it.
    calls: usize,
}

/// The scope of a teardown.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// One attachment.
    Attachment(AttachmentNo),
    /// One attachment that was revoked.
    Taken(AttachmentNo),
    /// Everything at a service.
    Slot(SlotNo),
    /// An identity's attachments by a key.
    Key(&'a str, &'a Key),
    /// An identity's attachments by a credential.
    Credential(&'a str, u64),
    /// Everything of an identity.
    Identity(&'a str),
    /// Everything.
    Connection,
}

impl Scope<'_> {
    fn covers(&self, no: AttachmentNo, attached: &Attached) -> bool {
        let is = |name: &str| *attached.identity == *name;
        match self {
            Self::Attachment(wanted) | Self::Taken(wanted) => *wanted == no,
            Self::Slot(slot) => attached.slot == *slot,
            Self::Key(name, key) => is(name) && attached.key == **key,
            Self::Credential(name, credential) => is(name) && attached.credential == *credential,
            Self::Identity(name) => is(name),
            Self::Connection => true,
        }
    }

    /// Whether this ends a login of this identity by this credential.
    #[must_use]
    pub(crate) fn covers_login(&self, identity: &str, by: u64) -> bool {
        match self {
            Self::Attachment(_) | Self::Taken(_) | Self::Slot(_) | Self::Key(..) => false,
            Self::Credential(name, credential) => *name == identity && *credential == by,
            Self::Identity(name) => *name == identity,
            Self::Connection => true,
        }
    }
}

/// The connection has reached its limit of attachments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this connection has {0} attachments, which is the limit")]
pub(crate) struct TooMany(pub usize);

/// All attachments of a connection.
#[derive(Default)]
pub(crate) struct Attachments {
    /// Boxed: most connections have one.
    all: Table<AttachmentKind, Box<Attached>>,
    /// The size of minds that are not one object, in bytes.
    minds: usize,
    /// The number of attachments without an identity.
    anonymous: usize,
}

impl Attachments {
    /// The client's calls that wait for a service's answer to an attach.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.all.iter().filter_map(|(_, attached)| match attached.phase {
            Phase::Asked { request } => request,
            _ => None,
        })
    }

    /// Checks that one more attachment may begin under `limit`. Released attachments count while something that came by
    /// them lives.
    ///
    /// # Errors
    /// Returns an error if the limit is reached.
    pub(crate) fn check_limit(&self, limit: usize) -> Result<(), TooMany> {
        if self.all.len() < limit { Ok(()) } else { Err(TooMany(limit)) }
    }

    /// The memory for minds that are not one object, in bytes: each is kept here, for a replacement of the service, and
    /// in the service.
    pub(crate) fn mind_bytes(&self) -> usize {
        3 * self.minds
    }

    /// The number of attachments without an identity.
    pub(crate) fn anonymous(&self) -> usize {
        self.anonymous
    }

    /// The number of attachments.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// Adds an attachment that the service is asked for.
    pub(crate) fn begin(&mut self, attached: Attached) -> AttachmentNo {
        self.anonymous += usize::from(attached.identity.is_empty());
        self.all.insert(Box::new(attached))
    }

    /// An attachment.
    #[must_use]
    pub(crate) fn get(&self, no: AttachmentNo) -> Option<&Attached> {
        self.all.get(no).map(|attached| &**attached)
    }

    /// Stores the mind, as the service knows it.
    pub(crate) fn set_mind(&mut self, no: AttachmentNo, mind: KnownMind) {
        if let Some(attached) = self.all.get_mut(no) {
            self.minds += mind.len();
            attached.mind = mind;
        }
    }

    /// The attachment, if it is at this slot.
    #[must_use]
    pub(crate) fn at(&self, no: AttachmentNo, slot: SlotNo) -> Option<&Attached> {
        self.get(no).filter(|attached| attached.slot == slot)
    }

    /// Returns a lookup of the slot of an attachment whose perspective the client has.
    pub(crate) fn places(&self) -> impl Fn(AttachmentNo) -> Option<SlotNo> {
        |no| self.get(no).filter(|attached| attached.phase == Phase::Attached).map(|attached| attached.slot)
    }

    /// The service has accepted the attach. Returns the client's call that waits for it, if one does. `None`: nothing
    /// was asked.
    pub(crate) fn answered(&mut self, no: AttachmentNo, slot: SlotNo) -> Option<Option<u64>> {
        let attached = self.all.get_mut(no).filter(|attached| attached.slot == slot)?;
        match attached.phase {
            Phase::Asked { request } => {
                attached.phase = Phase::Attached;
                Some(request)
            }
            Phase::Attached | Phase::LetGo | Phase::Forgotten => None,
        }
    }

    /// The client releases the perspective. `None`: that ends nothing.
    pub(crate) fn let_go(&mut self, no: AttachmentNo) -> Option<&Attached> {
        let attached = self.all.get_mut(no)?;
        if attached.era == Era::Old || attached.phase != Phase::Attached {
            return None;
        }
        attached.phase = Phase::LetGo;
        Some(attached)
    }

    /// A call by it has begun.
    pub(crate) fn call_began(&mut self, no: AttachmentNo) {
        if let Some(attached) = self.all.get_mut(no) {
            attached.calls += 1;
        }
    }

    /// A call by it has ended. `true`: the attachment may be over now.
    pub(crate) fn call_ended(&mut self, no: AttachmentNo) -> bool {
        self.all.get_mut(no).is_some_and(|attached| {
            attached.calls = attached.calls.saturating_sub(1);
            attached.calls == 0 && attached.is_let_go()
        })
    }

    /// Whether it was released, and no call by it is left.
    #[must_use]
    pub(crate) fn is_idle(&self, no: AttachmentNo) -> bool {
        self.all.get(no).is_some_and(|attached| attached.is_let_go() && attached.calls == 0)
    }

    /// The service no longer knows a released attachment, or (`false`) knows it again. `None`: that changes nothing.
    pub(crate) fn forget(&mut self, no: AttachmentNo, forget: bool) -> Option<&Attached> {
        let (from, to) = if forget { (Phase::LetGo, Phase::Forgotten) } else { (Phase::Forgotten, Phase::LetGo) };
        let attached = self.all.get_mut(no).filter(|attached| attached.phase == from)?;
        attached.phase = to;
        Some(attached)
    }

    /// Removes what the scope covers, the oldest first.
    pub(crate) fn take(&mut self, scope: &Scope<'_>) -> Vec<(AttachmentNo, Attached)> {
        let gone: Vec<(AttachmentNo, Attached)> = match scope {
            Scope::Attachment(no) | Scope::Taken(no) => {
                self.all.remove(*no).map(|attached| (*no, *attached)).into_iter().collect()
            }
            scope => {
                let all = self.all.take(|no, attached| scope.covers(no, attached));
                all.into_iter().map(|(no, attached)| (no, *attached)).collect()
            }
        };
        for (_, attached) in &gone {
            self.minds -= attached.mind.len();
            self.anonymous -= usize::from(attached.identity.is_empty());
        }
        gone
    }

    /// The credentials and keys that an identity is attached by. They are checked when the identity changes.
    #[must_use]
    pub(crate) fn of(&self, identity: &str) -> Vec<(u64, Key)> {
        let mut found: Vec<(u64, Key)> = Vec::new();
        for (_, attached) in self.all.iter().filter(|(_, attached)| *attached.identity == *identity) {
            let by = (attached.credential, attached.key.clone());
            if !found.contains(&by) {
                found.push(by);
            }
        }
        found
    }

    /// Attachments without an identity, with the keys that lead to their perspectives.
    pub(crate) fn nameless(&self) -> Vec<(AttachmentNo, Key)> {
        let nameless = self.all.iter().filter(|(_, attached)| attached.identity.is_empty());
        nameless.map(|(no, attached)| (no, attached.key.clone())).collect()
    }

    /// Whether anybody is attached; with a name, whether this identity is.
    #[must_use]
    pub(crate) fn any(&self, identity: Option<&str>) -> bool {
        self.all.iter().any(|(_, attached)| identity.is_none_or(|name| *attached.identity == *name))
    }

    /// Whether there are none, not even released ones.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Attached {
    /// The text that the operator sees.
    pub(crate) fn listed(&self) -> String {
        format!("{}/{}", self.key.service, self.key.perspective)
    }

    /// Whether the client has released the perspective.
    pub(crate) fn is_let_go(&self) -> bool {
        matches!(self.phase, Phase::LetGo | Phase::Forgotten)
    }

    /// A new attachment that the service is asked for. The answer goes to a call of the client.
    #[must_use]
    pub(crate) fn asked(
        backend: Arc<dyn Backend>,
        era: Era,
        request: Option<u64>,
        (identity, credential): (Arc<str>, u64),
        key: Key,
    ) -> Self {
        let (slot, phase) = (backend.number(), Phase::Asked { request });
        Self { backend, slot, era, phase, identity, credential, key, mind: KnownMind::default(), calls: 0 }
    }
}
