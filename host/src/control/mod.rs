//! The admin interface: one JSON object a line, on a Unix socket that only the host's user can open.
//!
//! A client sends a [`Request`] and gets a [`Response`], as often as it likes: PROTOCOL.md. Commands that change identities work
//! without a running host, too: then the command takes the home's lock and does it itself.

mod audit;
mod client;
mod failure;
pub mod known;
mod perform;
mod place;
mod protocol;
mod server;

pub use client::{ControlError, is_served, send};
pub use failure::ControlFailure;
pub use perform::{Running, perform};
pub use protocol::{LibraryStatus, Request, Response, Secret, VERSION};
pub use server::{Progress, UnderWay, listen, serve};
