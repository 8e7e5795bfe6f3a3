//! What can go wrong.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::Failure;

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side answered with an error.
    #[error("{0}")]
    Failure(Failure),
    /// The connection was lost, and whether the call was carried out is not known.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The connection was lost before the call was sent: it can be made again.
    #[error("the connection is lost: {0}")]
    NotSent(String),
    /// It has taken longer than it may, and is not waited for any more.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// A value could not be written or read.
    #[error(transparent)]
    Jelly(#[from] jelly::Error),
    /// The other side answered with something else than was to be expected.
    #[error("the host answered with something unexpected: {0}")]
    Unexpected(String),
    /// Nobody was reached.
    #[error("cannot reach {to}: {why}")]
    Connect {
        /// Who was to be reached.
        to: String,
        /// Why they were not.
        #[source]
        why: io::Error,
    },
    /// A [`Session`](super::Session) is not let in, and does not try again.
    #[error("the host does not let in whoever this is: {0}")]
    Refused(Arc<Error>),
    /// The other side holds as many of our objects as it may ([`Options::references`](super::Options)).
    #[error("the other side holds as many of our objects as it may")]
    TooManyReferences,
    /// A host wanted something signed that is no login of this name's: it was not signed.
    #[error("the host wants something signed that is no login of {0}'s; it was not signed")]
    NotSigned(String),
    /// A token would go over the network in the clear, and was not sent.
    #[error("the token would go over the network in the clear, and was not sent")]
    InTheClear,
    /// What was to be sent in pages could not be read.
    #[error("what is to be sent cannot be read: {0}")]
    Reading(#[source] io::Error),
}
