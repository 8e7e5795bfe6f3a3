//! Calls that wait for the answer to a question, and how each continues.

use std::time::Instant;

use pb::Call;

use super::super::attachments::Era;
use super::super::mind::{GivenMind, Mind};
use super::words::Now;
use crate::cred::login::Wanted;

/// What a login asked for. It continues with this once the proof is accepted.
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
    /// How many identities had been removed when the proof was submitted.
    pub(super) removals: u64,
    pub(super) then: Then,
}

/// Changes of an identity while a question about it is unanswered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changed {
    No,
    /// The answer may be outdated: the question is asked again.
    Stale,
    /// The credential that the call came by is gone. One that has its number now is a different credential.
    Revoked,
}

/// How a call continues when its question is answered.
pub(super) enum Then {
    Prove(Asked),
    LogIn { asked: Asked, name: String, credential: u64 },
    Attach { name: String, credential: u64, era: Era, service: String, perspective: Option<String>, mind: GivenMind },
    Keys { name: String, credential: u64 },
    Describe { name: String, credential: u64, service: String },
}

impl Then {
    /// The identity that it is about, once that is known.
    pub(super) fn identity(&self) -> &str {
        match self {
            Self::Prove(_) => "",
            Self::LogIn { name, .. }
            | Self::Attach { name, .. }
            | Self::Keys { name, .. }
            | Self::Describe { name, .. } => name,
        }
    }

    /// The credential that it came by, once that is known.
    pub(super) fn credential(&self) -> Option<u64> {
        match self {
            Self::Prove(_) => None,
            Self::LogIn { credential, .. }
            | Self::Attach { credential, .. }
            | Self::Keys { credential, .. }
            | Self::Describe { credential, .. } => Some(*credential),
        }
    }

    /// The mind that an avatar keeps and this call needs.
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
