//! The client's errors.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use crate::Failure;

/// An error of a connection or a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side answered with an error.
    #[error("{0}")]
    Failure(Failure),
    /// The connection was lost. It is not known whether the call was carried out.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The connection was lost before the call was sent. The call can be repeated.
    #[error("not sent: the connection is lost: {0}")]
    NotSent(String),
    /// The timeout expired. The library no longer waits for the answer.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// A value could not be written or read.
    #[error(transparent)]
    Jelly(#[from] jelly::Error),
    /// The other side answered with something unexpected.
    #[error("unexpected answer from the host: {0}")]
    Unexpected(String),
    /// The arguments of a call cannot be sent. Nothing was sent.
    #[error("not sent: {0}")]
    Argument(&'static str),
    /// The host could not be reached.
    #[error("cannot reach {to}: {why}")]
    Connect {
        /// The host's address.
        to: String,
        /// The cause.
        #[source]
        why: io::Error,
    },
    /// The host refuses the login of a [`Session`](super::Session), which does not try again.
    #[error("the host refused the login: {0}")]
    Refused(Arc<Error>),
    /// The other side already holds as many local objects as it may ([`Options::references`](super::Options)).
    #[error("the other side holds the maximum number of our objects")]
    TooManyReferences,
    /// A host requested a signature on something that is not a login under this name. It was not signed.
    #[error("the host requested a signature on something other than a login of {0}; it was not signed")]
    NotSigned(String),
    /// The token was not sent, because it would go over the network unencrypted.
    #[error("the token was not sent: it would go over the network in the clear")]
    InTheClear,
    /// The data to be sent in pages could not be read.
    #[error("the data to send cannot be read: {0}")]
    Reading(#[source] io::Error),
}
