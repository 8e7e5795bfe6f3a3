//! The limits of a connection.

use std::time::Duration;

use crate::multiservice::SlotLimits;

/// What a peer may send, hold and have in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PeerLimits {
    /// Limits of one expression.
    pub jelly: jelly::Limits,
    /// Calls in flight to services.
    pub calls: usize,
    /// Further calls that may wait here, in bytes.
    pub parked: usize,
    /// Attachments, including released ones while something that came by them lives.
    pub attachments: usize,
    /// The host's objects that the peer may hold.
    pub references: usize,
    /// Unanswered calls by services of the peer's objects.
    pub unanswered: usize,
    /// Unread answers, in bytes, beyond which the peer's calls are no longer read.
    pub unread: usize,
}

/// All limits, for each listener and for the whole host. The defaults are those in ARCHITECTURE.md.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Before login.
    pub before: PeerLimits,
    /// After login.
    pub after: PeerLimits,
    /// Time to log in.
    pub login: Duration,
    /// Time for a PROXY header, for the first bytes that select one of several listeners, and for TLS at a service's
    /// listener.
    pub greeting: Duration,
    /// Every refusal is sent this long after its request, whatever the reason. Longer than any check takes.
    pub refusal: Duration,
    /// How long a peer with unread answers may read nothing.
    pub stalled: Duration,
    /// The silence after which a peer that does not answer is considered gone.
    pub silence: Duration,
    /// A period, and a rate in bytes a second. A message that has begun must keep the rate in each such period, or be
    /// complete by its end.
    pub message: (Duration, usize),
    /// How long calls in flight may continue when the listener closes.
    pub grace: Duration,
    /// The memory that the host may keep for clients, in bytes.
    pub memory: usize,
    /// The limits of services and their generations.
    pub slots: SlotLimits,
    /// Password checks that may wait, in all.
    pub checks: usize,
    /// Password checks that may wait, per source.
    pub checks_per_source: usize,
    /// Password checks that may wait, per connection.
    pub checks_per_connection: usize,
    /// Unanswered questions of a connection's logins, beyond which the connection is not read.
    pub questions: usize,
    /// Delayed refusals of a connection, beyond which the connection is not read.
    pub refusals: usize,
    /// Sources of earlier logins that the host remembers.
    pub known_sources: usize,
    /// Unread answers, in bytes, beyond which the client is disconnected.
    pub backlog: usize,
    /// The largest mind that is not one object, in bytes.
    pub mind: usize,
    /// The states of a client's cached objects that services may keep, in bytes.
    pub copied: usize,
    /// Connections of a service's listener that may wait for the service, and how long each may wait.
    pub arriving: (usize, Duration),
    /// Connections to other services that a login by a service's door may have.
    pub elsewhere: usize,
    /// Disk space reserved for revocations, in bytes.
    pub reserve: u64,
    /// Connections in all.
    pub connections: usize,
    /// Connections from one address.
    pub per_source: usize,
    /// Attachments of all connections of one identity.
    pub identity_attachments: usize,
    /// Services' objects that all clients of one identity may hold.
    pub identity_objects: usize,
    /// Unanswered calls by services of objects of one identity's clients.
    pub identity_unanswered: usize,
}

impl Limits {
    /// What may wait for a client, in bytes, before it is disconnected: what may be unread while its calls wait, at least.
    #[must_use]
    pub fn most_unread(&self) -> usize {
        self.backlog.max(self.after.unread.saturating_mul(2))
    }
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
            greeting: Duration::from_secs(10),
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
            mind: 16 << 10,
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
