//! Perspective Broker: Twisted's protocol for calling methods of objects over a connection, unchanged since 2002.
//!
//! [`Broker`] is one end of a connection without the transport: bytes go in, [`Event`]s come out, and output collects in a
//! buffer. It does no IO, reads no clock and draws no randomness, so a test can connect two of them directly. It keeps the tables
//! of references and their counts. Its user decides what an object *is* (`O` in `Broker<O>`), and handles logins and timeouts.
//!
//! The feature `client` is a client for Rust programs on tokio. The feature `shell` converts values as people type and read them.
//!
//! Sources: `twisted.spread.pb`, `twisted.spread.flavors`.
#![forbid(unsafe_code)]

/// The encoding of values, so that a client needs no dependency of its own for its types and for [`jelly::Value`].
pub use jelly;

mod broker;
#[cfg(feature = "client")]
pub mod client;
mod failure;
#[cfg(feature = "shell")]
pub mod shell;
mod tables;
mod translate;

pub use broker::{Broker, Call, Event, Input, Output, PeerFault, Role, Target};
pub use failure::Failure;
pub use tables::{Exported, Tables, TooManyReferences};
pub use translate::{Jelly, Translated};
