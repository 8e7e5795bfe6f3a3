//! What a client gives when it logs in or attaches: its mind.

use std::sync::Arc;

use jelly::{RefKind, Reference};

/// An object of the client's in a mind, by the client's number. The client counts it as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sent {
    /// An object that services call.
    Object(u64),
    /// An object that services have a copy of.
    Copy(u64),
}

impl Sent {
    /// The object that the client counts as sent for a reference.
    pub(crate) fn of(reference: &Reference) -> Option<Self> {
        match reference.kind {
            RefKind::Remote => reference.luid.map(Self::Object),
            RefKind::Cache | RefKind::Cached => reference.luid.map(Self::Copy),
            RefKind::Local | RefKind::Lcache => None,
        }
    }
}

/// A mind. Login keeps it until there is an attachment to give it to; an avatar keeps it as long as the avatar lives.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mind {
    /// No mind.
    #[default]
    Nothing,
    /// One object of the client's, by its number.
    Object(u64),
    /// Any other value. Shared by the avatar and each `attach` call that waits.
    Value(Arc<MindValue>),
}

/// A mind that is not one object.
#[derive(Debug)]
pub(crate) struct MindValue {
    /// In Jelly, as the client wrote it.
    pub(crate) jelly: Box<[u8]>,
    /// The client's objects in it, one entry per occurrence.
    pub(crate) objects: Box<[Sent]>,
}

impl Mind {
    /// The client's objects in it, one entry per occurrence.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Sent> {
        let (one, several): (_, &[Sent]) = match self {
            Self::Nothing => (None, &[]),
            Self::Object(luid) => (Some(Sent::Object(*luid)), &[]),
            Self::Value(value) => (None, &value.objects),
        };
        one.into_iter().chain(several.iter().copied())
    }
}

/// A mind, and whether it was sent for an avatar or for one attachment.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenMind {
    /// The mind.
    pub(crate) mind: Mind,
    /// Whether an avatar keeps it for everything attached by it. If not, it was sent for this attachment alone.
    pub(crate) kept: bool,
}

impl GivenMind {
    /// A mind that was sent for this attachment alone.
    pub(crate) fn sent(mind: Mind) -> Self {
        Self { mind, kept: false }
    }

    /// The client's objects that were sent for this attachment alone. If the attachment fails, they are returned.
    pub(crate) fn sent_objects(&self) -> Mind {
        if self.kept { Mind::Nothing } else { self.mind.clone() }
    }

    /// The objects that an avatar keeps and this attachment needs.
    pub(crate) fn kept_objects(&self) -> Mind {
        if self.kept { self.mind.clone() } else { Mind::Nothing }
    }
}

/// A mind as a service knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownMind {
    /// The service's handle of the client's object, if the mind is one object. Otherwise 0.
    pub(crate) object: u64,
    /// Any other value.
    pub(crate) value: Option<Box<KnownValue>>,
}

/// A mind that is not one object, as a service knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownValue {
    /// In Jelly, with the service's handles.
    pub(crate) jelly: Vec<u8>,
    /// The handles of the client's objects in it, encoded as in a frame.
    pub(crate) handles: Vec<u8>,
    /// Cached objects, by the client's numbers, whose first state the service received with the mind, without any
    /// change.
    pub(crate) states: Box<[u64]>,
}

impl KnownMind {
    /// The value in Jelly, and the handles of the client's objects in it, encoded as in frames.
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        self.value.as_deref().map_or((&[], &[]), |value| (&value.jelly, &value.handles))
    }

    /// The size of the value and its handles, in bytes.
    pub(crate) fn len(&self) -> usize {
        let (value, handles) = self.parts();
        value.len() + handles.len()
    }
}
