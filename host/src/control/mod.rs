//! The admin interface: one JSON object per line, on a Unix socket that only the host's user can open.
//!
//! A client sends a [`Request`] and receives a [`Response`], any number of times: see PROTOCOL.md. Commands that change
//! identities also work without a running host: the command then takes the home's lock, and makes the change itself.

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
