//! Perspective Broker: Twisted's protocol for calling methods of objects over a connection, unchanged since 2002.
//!
//! [`Broker`] is one end of a connection, without the connection: bytes go in, [`Event`]s come out, and what is to be
//! sent collects in a buffer. It does no IO, reads no clock and draws no randomness, so two of them back to back in one
//! test are a whole network. It keeps the tables of references and their counts; what an object *is*, is its user's
//! affair (`O` in `Broker<O>`), and so are log-in and time-outs.
//!
//! `client` (a feature) is a client for Rust programs on tokio; `shell` (another) is values as people type and read them.
//!
//! Sources: `twisted.spread.pb`, `twisted.spread.flavors`.
#![forbid(unsafe_code)]

/// What values are written in: for a client's own types and [`jelly::Value`], without a dependency of its own.
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
