//! Calls that wait for the answer to a question, and how each goes on.

use std::time::Instant;

use pb::Call;

use super::super::attachments::Era;
use super::super::mind::{GivenMind, Mind};
use super::words::Now;
use crate::cred::login::Wanted;

/// What a login asked for: how it goes on once it is proven.
pub(super) struct Asked {
    pub(super) request: u64,
    pub(super) answer: bool,
    pub(super) era: Era,
    pub(super) wanted: Wanted,
    pub(super) mind: Mind,
    pub(super) came: Instant,
}

/// A call that waits for the answer to a question.
pub(super) struct Pending {
    pub(super) request: u64,
    pub(super) answer: bool,
    /// A password is being checked.
    pub(super) checks: bool,
    /// What has changed about the identity since the question was asked.
    pub(super) changed: Changed,
    /// How many identities had been removed when the proof was asked about.
    pub(super) removals: u64,
    pub(super) then: Then,
}

/// What has become of an identity while a question about it waits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    No,
    /// The answer may not hold any more: it is asked for once more.
    Stale,
    /// The credential that it came by is gone: whatever has its number now is another.
    Revoked,
}

/// How a call goes on when its question is answered.
pub(super) enum Then {
    Prove(Asked),
    LogIn { asked: Asked, name: String, credential: u64 },
    Attach { name: String, credential: u64, era: Era, service: String, perspective: Option<String>, mind: GivenMind },
    Keys { name: String, credential: u64 },
    Describe { name: String, credential: u64, service: String },
}

impl Then {
    /// Whom it is about, once that is known.
    pub(super) fn identity(&self) -> &str {
        match self {
            Self::Prove(_) => "",
            Self::LogIn { name, .. }
            | Self::Attach { name, .. }
            | Self::Keys { name, .. }
            | Self::Describe { name, .. } => name,
        }
    }

    /// By which credential it came, once that is known.
    pub(super) fn credential(&self) -> Option<u64> {
        match self {
            Self::Prove(_) => None,
            Self::LogIn { credential, .. }
            | Self::Attach { credential, .. }
            | Self::Keys { credential, .. }
            | Self::Describe { credential, .. } => Some(*credential),
        }
    }

    /// The mind that an avatar keeps, and it needs.
    pub(super) fn borrowed(&self) -> Mind {
        match self {
            Self::Attach { mind, .. } => mind.kept_objects(),
            _ => Mind::Nothing,
        }
    }

    /// The mind that was sent with it.
    pub(super) fn mind(&self) -> Mind {
        match self {
            Self::Prove(asked) | Self::LogIn { asked, .. } => asked.mind.clone(),
            Self::Attach { mind, .. } => mind.sent_objects(),
            Self::Keys { .. } | Self::Describe { .. } => Mind::Nothing,
        }
    }
}

impl Asked {
    pub(super) fn new(call: &Call<'_>, era: Era, wanted: Wanted, mind: Mind, now: Now) -> Self {
        Self { request: call.request, answer: call.answer, era, wanted, mind, came: now.instant }
    }
}
