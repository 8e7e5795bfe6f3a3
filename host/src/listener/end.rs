//! How a connection ends.

use std::io;

use crate::session::Violation;

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client has closed the connection")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("the host has no randomness: {0}")]
    NoRandomness(getrandom::Error),
    #[error("login timed out")]
    NoLogin,
    #[error("the client reads nothing")]
    Stalled,
    #[error("a message was not complete in time")]
    Unfinished,
    #[error("output buffer limit exceeded: the client does not read its answers")]
    Backlog,
    #[error("the operator has closed the connection")]
    Cut,
    #[error("too many connections from one address")]
    TooMany,
    #[error("the host is ending")]
    Closing,
    /// Not an end: the connection continues on another thread.
    #[error("somebody has logged in")]
    Inside,
}
