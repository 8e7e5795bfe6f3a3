//! What a client gives when it logs in or attaches: its mind.

use std::sync::Arc;

use jelly::{RefKind, Reference};

/// An object of the client's in a mind, by the client's number: the client counts it as sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Sent {
    /// One that services call.
    Object(u64),
    /// One that services have a copy of.
    Copy(u64),
}

impl Sent {
    /// What the client counts as sent for a reference.
    pub(crate) fn of(reference: &Reference) -> Option<Self> {
        match reference.kind {
            RefKind::Remote => reference.luid.map(Self::Object),
            RefKind::Cache | RefKind::Cached => reference.luid.map(Self::Copy),
            RefKind::Local | RefKind::Lcache => None,
        }
    }
}

/// A mind: kept by log-in until there is an attachment to give it to, and by an avatar for as long as that lives.
#[derive(Debug, Clone, Default)]
pub(crate) enum Mind {
    /// None.
    #[default]
    Nothing,
    /// One object of the client's, by its number.
    Object(u64),
    /// Any other value. Shared: an avatar has it, and each call of `attach` that waits.
    Value(Arc<MindValue>),
}

/// A mind that is not one object.
#[derive(Debug)]
pub(crate) struct MindValue {
    /// In Jelly, as the client wrote it.
    pub(crate) jelly: Box<[u8]>,
    /// The client's objects in it, once for each time.
    pub(crate) objects: Box<[Sent]>,
}

impl Mind {
    /// The client's objects in it, once for each time.
    pub(crate) fn objects(&self) -> impl Iterator<Item = Sent> {
        let (one, several): (_, &[Sent]) = match self {
            Self::Nothing => (None, &[]),
            Self::Object(luid) => (Some(Sent::Object(*luid)), &[]),
            Self::Value(value) => (None, &value.objects),
        };
        one.into_iter().chain(several.iter().copied())
    }
}

/// A mind, and what it was sent for: an avatar, or one attachment.
#[derive(Debug, Clone, Default)]
pub(crate) struct GivenMind {
    /// The mind.
    pub(crate) mind: Mind,
    /// Whether an avatar keeps it, for whatever is attached by it; if not, it was sent for this attachment alone.
    pub(crate) kept: bool,
}

impl GivenMind {
    /// What was sent for this alone.
    pub(crate) fn sent(mind: Mind) -> Self {
        Self { mind, kept: false }
    }

    /// The client's objects that were sent for this alone: whoever does not take them gives them back.
    pub(crate) fn sent_objects(&self) -> Mind {
        if self.kept { Mind::Nothing } else { self.mind.clone() }
    }

    /// What an avatar keeps, and this needs.
    pub(crate) fn kept_objects(&self) -> Mind {
        if self.kept { self.mind.clone() } else { Mind::Nothing }
    }
}

/// A mind as a service knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownMind {
    /// The service's number for the client's object, if the mind is one object. Otherwise 0.
    pub(crate) object: u64,
    /// Any other value.
    pub(crate) value: Option<Box<KnownValue>>,
}

/// A mind that is not one object, as a service knows it.
#[derive(Debug, Clone, Default)]
pub(crate) struct KnownValue {
    /// In Jelly, with the service's numbers.
    pub(crate) jelly: Vec<u8>,
    /// The client's objects in it, as a frame has them.
    pub(crate) handles: Vec<u8>,
    /// Cached objects, by the client's numbers, whose first states the service was given with it, and no change of them.
    pub(crate) states: Box<[u64]>,
}

impl KnownMind {
    /// The value in Jelly, and the client's objects in it, as frames have them.
    pub(crate) fn parts(&self) -> (&[u8], &[u8]) {
        self.value.as_deref().map_or((&[], &[]), |value| (&value.jelly, &value.handles))
    }

    /// How many bytes a value has, and its objects.
    pub(crate) fn len(&self) -> usize {
        let (value, handles) = self.parts();
        value.len() + handles.len()
    }
}
