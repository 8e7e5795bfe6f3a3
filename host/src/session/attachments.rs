//! Who is attached where, by which key and credential, and how far each attachment has come.

use std::sync::Arc;

use super::mind::KnownMind;
use super::numbers::{AttachmentKind, AttachmentNo, Table};
use crate::cred::Key;
use crate::multiservice::{Backend, SlotNo};

/// Which words a client used to log in: they differ in how long an attachment lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Era {
    /// Until the connection ends.
    Old,
    /// Until the client gives its last reference back, or the connection ends.
    New,
}

/// How far an attachment has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Phase {
    /// The service was asked; its answer is the answer to this call of the client's.
    Asked {
        /// The client's number for it; `None`: nobody waits for it alone.
        request: Option<u64>,
    },
    /// The client has the perspective.
    Attached,
    /// The client has given it back. Calls and objects that came by it live on.
    LetGo,
    /// As `LetGo`; only objects of the client's are left that came by it, and the service knows it no more.
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
    /// How far it has come.
    pub(crate) phase: Phase,
    /// Who has attached.
    pub(crate) identity: Arc<str>,
    /// The number of the credential that they logged in with, among the identity's.
    pub(crate) credential: u64,
    /// The key that leads here.
    pub(crate) key: Key,
    /// What came with it, as the service knows it.
    pub(crate) mind: KnownMind,
    /// Calls by it: under way, parked, and the service's own of what came by it.
    calls: usize,
}

/// What is to end.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Scope<'a> {
    /// One attachment.
    Attachment(AttachmentNo),
    /// One that was taken away.
    Taken(AttachmentNo),
    /// Everything at a service.
    Slot(SlotNo),
    /// What an identity has by a key.
    Key(&'a str, &'a Key),
    /// What an identity has by a credential.
    Credential(&'a str, u64),
    /// Everything of an identity's.
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

    /// Whether a login of this identity by this credential ends with it.
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

/// There are as many as a client may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("this connection has {0} attachments, which is the limit")]
pub(crate) struct TooMany(pub usize);

/// All attachments of a connection.
#[derive(Default)]
pub(crate) struct Attachments {
    /// Boxed: most connections have one.
    all: Table<AttachmentKind, Box<Attached>>,
    /// How many bytes minds have that are not one object.
    minds: usize,
    /// How many are of clients that have not logged in.
    anonymous: usize,
}

impl Attachments {
    /// The client's numbers for attachments that no service has answered yet.
    pub(crate) fn waiting(&self) -> impl Iterator<Item = u64> {
        self.all.iter().filter_map(|(_, attached)| match attached.phase {
            Phase::Asked { request } => request,
            _ => None,
        })
    }

    /// Whether one more may begin, among at most `limit`; those let go of count while something that came by them lives.
    ///
    /// # Errors
    /// When there are too many.
    pub(crate) fn check_limit(&self, limit: usize) -> Result<(), TooMany> {
        if self.all.len() < limit { Ok(()) } else { Err(TooMany(limit)) }
    }

    /// How many bytes minds have that are not one object: each is kept here, for a replacement of the service, and in it.
    pub(crate) fn mind_bytes(&self) -> usize {
        3 * self.minds
    }

    /// How many there are of clients that have not logged in.
    pub(crate) fn anonymous(&self) -> usize {
        self.anonymous
    }

    /// How many there are.
    pub(crate) fn len(&self) -> usize {
        self.all.len()
    }

    /// One more, which the service is asked for.
    pub(crate) fn begin(&mut self, attached: Attached) -> AttachmentNo {
        self.anonymous += usize::from(attached.identity.is_empty());
        self.all.insert(Box::new(attached))
    }

    /// An attachment.
    #[must_use]
    pub(crate) fn get(&self, no: AttachmentNo) -> Option<&Attached> {
        self.all.get(no).map(|attached| &**attached)
    }

    /// What came with it, as the service knows it.
    pub(crate) fn set_mind(&mut self, no: AttachmentNo, mind: KnownMind) {
        if let Some(attached) = self.all.get_mut(no) {
            self.minds += mind.len();
            attached.mind = mind;
        }
    }

    /// An attachment at this slot.
    #[must_use]
    pub(crate) fn at(&self, no: AttachmentNo, slot: SlotNo) -> Option<&Attached> {
        self.get(no).filter(|attached| attached.slot == slot)
    }

    /// Says where an attachment is whose perspective the client has.
    pub(crate) fn places(&self) -> impl Fn(AttachmentNo) -> Option<SlotNo> {
        |no| self.get(no).filter(|attached| attached.phase == Phase::Attached).map(|attached| attached.slot)
    }

    /// The service has answered, if it was still asked: the client's call that waits for it, if one does.
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

    /// The client gives the perspective back. `None`: that ends nothing.
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

    /// A call by it has ended. True: it may be over now.
    pub(crate) fn call_ended(&mut self, no: AttachmentNo) -> bool {
        self.all.get_mut(no).is_some_and(|attached| {
            attached.calls = attached.calls.saturating_sub(1);
            attached.calls == 0 && attached.is_let_go()
        })
    }

    /// Whether it was let go of, and no call comes by it.
    #[must_use]
    pub(crate) fn is_idle(&self, no: AttachmentNo) -> bool {
        self.all.get(no).is_some_and(|attached| attached.is_let_go() && attached.calls == 0)
    }

    /// The service knows an attachment no more that was let go of, or (`false`) knows it again. `None`: that changes nothing.
    pub(crate) fn forget(&mut self, no: AttachmentNo, forget: bool) -> Option<&Attached> {
        let (from, to) = if forget { (Phase::LetGo, Phase::Forgotten) } else { (Phase::Forgotten, Phase::LetGo) };
        let attached = self.all.get_mut(no).filter(|attached| attached.phase == from)?;
        attached.phase = to;
        Some(attached)
    }

    /// Takes out what is to end, the oldest first.
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

    /// The keys and credentials that an identity is attached by: what is to be looked at when it changes.
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

    /// Those of clients that have not logged in, and the keys that lead to them.
    pub(crate) fn nameless(&self) -> Vec<(AttachmentNo, Key)> {
        let nameless = self.all.iter().filter(|(_, attached)| attached.identity.is_empty());
        nameless.map(|(no, attached)| (no, attached.key.clone())).collect()
    }

    /// Whether anybody is attached, or this identity, if one is named.
    #[must_use]
    pub(crate) fn any(&self, identity: Option<&str>) -> bool {
        self.all.iter().any(|(_, attached)| identity.is_none_or(|name| *attached.identity == *name))
    }

    /// Whether there are none, those included that were let go of.
    #[cfg(test)]
    pub(crate) fn is_empty(&self) -> bool {
        self.all.is_empty()
    }
}

impl Attached {
    /// How the operator sees it.
    pub(crate) fn listed(&self) -> String {
        format!("{}/{}", self.key.service, self.key.perspective)
    }

    /// Whether the client has given the perspective back.
    pub(crate) fn is_let_go(&self) -> bool {
        matches!(self.phase, Phase::LetGo | Phase::Forgotten)
    }

    /// One that the service is asked for, as the answer to a call of the client's.
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
