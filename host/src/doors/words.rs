//! Types for logins.

use crate::config::Grants;
use crate::multiservice::{SlotNo, Speaker};

/// A login by a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoggedIn {
    pub(super) number: u64,
    pub(super) identity: String,
    pub(super) credential: u64,
    pub(super) perspectives: Vec<String>,
    /// How many identities had been removed when the proof was submitted.
    pub(super) removals: u64,
    /// The source, for a person to read.
    pub(super) from: String,
}

/// The service and the settings of the door at which a token is shown.
#[derive(Debug, Clone)]
pub(super) struct Via {
    pub(super) service: String,
    pub(super) grants: Grants,
    /// Whether nobody can eavesdrop.
    pub(super) encrypted: bool,
}

/// What a service wants of a remembered login.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// How long it may be unused, in seconds.
    pub(super) idle: u64,
    /// How long it lasts at most, in seconds.
    pub(super) longest: u64,
    /// Whether the service says when its client has the token.
    pub(super) claims: bool,
}

/// The generation that asks, to be answered later.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) slot: SlotNo,
    pub(super) generation: u32,
    pub(super) service: String,
    pub(super) request: u64,
}

impl Asker {
    pub(super) fn new(from: Speaker<'_>, request: u64) -> Self {
        Self { slot: from.slot, generation: from.generation, service: from.service.to_owned(), request }
    }
}
