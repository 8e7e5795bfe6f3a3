//! What a connection may cost.

use std::time::Duration;

use crate::multiservice::SlotLimits;

/// What a peer may send, hold and have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// What one expression may cost.
    pub jelly: jelly::Limits,
    /// Calls in flight to services.
    pub calls: usize,
    /// Calls beyond that wait here, in bytes.
    pub parked: usize,
    /// Attachments it may have, those included that it let go of while something that came by them lives.
    pub attachments: usize,
    /// Objects of ours that it may hold.
    pub references: usize,
    /// Calls by services of its objects that it has not answered.
    pub unanswered: usize,
    /// Answers that it has not read, in bytes, before its calls are no longer read.
    pub unread: usize,
}

/// All limits of a door, each with the default of ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Before log-in.
    pub before: PeerLimits,
    /// After.
    pub after: PeerLimits,
    /// How long a log-in may take.
    pub login: Duration,
    /// How long after it came a refusal leaves, whatever its reason: longer than finding it out takes.
    pub refusal: Duration,
    /// How long a peer with unread answers may read nothing.
    pub stalled: Duration,
    /// After how long a silence a peer that does not answer is taken to be gone.
    pub silence: Duration,
    /// A message that has begun comes at this rate, in bytes a second, within each such time; or it is whole by then.
    pub message: (Duration, usize),
    /// How long calls in flight may take to end when the door closes.
    pub grace: Duration,
    /// What clients may make the host keep, in bytes.
    pub memory: usize,
    /// What services and their generations are held to.
    pub slots: SlotLimits,
    /// Password checks that wait, in all.
    pub checks: usize,
    /// Password checks that wait, of one source.
    pub checks_per_source: usize,
    /// Password checks that wait, of one connection.
    pub checks_per_connection: usize,
    /// Questions of a connection's logins that wait for their answer, beyond which it is not read.
    pub questions: usize,
    /// Refusals of a connection that wait for their time, beyond which it is not read.
    pub refusals: usize,
    /// Sources of earlier logins that are remembered.
    pub known_sources: usize,
    /// Answers that a client has not read, in bytes, before it is disconnected.
    pub backlog: usize,
    /// The states of a client's cached objects that services may keep, in bytes.
    pub copied: usize,
    /// Connections of a service's listener that wait for the service, and how long each may.
    pub arriving: (usize, Duration),
    /// Connections to other services that a login of a service's door may have.
    pub elsewhere: usize,
    /// Disk space that is reserved for revocations, in bytes.
    pub reserve: u64,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub per_source: usize,
    /// Attachments of all connections of one identity.
    pub identity_attachments: usize,
    /// Objects of services' that all clients of one identity hold.
    pub identity_objects: usize,
    /// Calls by services of objects of one identity's clients that none of them has answered.
    pub identity_unanswered: usize,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            before: PeerLimits {
                jelly: jelly::Limits::BEFORE_LOGIN,
                calls: 4,
                parked: 16 << 10,
                attachments: 4,
                references: 16,
                unanswered: 4,
                unread: 16 << 10,
            },
            after: PeerLimits {
                jelly: jelly::Limits::default(),
                calls: 1024,
                parked: 8 << 20,
                attachments: 1024,
                references: 1024,
                unanswered: 1024,
                unread: 1 << 20,
            },
            login: Duration::from_secs(30),
            refusal: Duration::from_millis(400),
            stalled: Duration::from_secs(30),
            silence: Duration::from_secs(120),
            message: (Duration::from_secs(20), 500),
            grace: Duration::from_secs(5),
            memory: 1 << 30,
            slots: SlotLimits::default(),
            checks: 256,
            checks_per_source: 8,
            checks_per_connection: 4,
            questions: 4,
            refusals: 64,
            known_sources: 100_000,
            backlog: 64 << 20,
            copied: 16 << 20,
            arriving: (256, Duration::from_secs(15)),
            elsewhere: 8,
            reserve: 16 << 20,
            connections: 10_000,
            per_source: 256,
            identity_attachments: 16_384,
            identity_objects: 65_536,
            identity_unanswered: 16_384,
        }
    }
}
