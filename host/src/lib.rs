//! A host for services that people log in to.
//!
//! The host owns an [`Authorizer`](cred::Authorizer), which stores [`Identities`](cred::Identity), and a
//! [`MultiService`](multiservice::MultiService). Services are libraries in a folder, or linked into a program that
//! embeds this one (`examples/embed.rs`). After log-in the host asks a service for a *perspective*: one identity's view
//! onto it, whose methods the client calls. The network side is Twisted's Perspective Broker.
//!
//! It is Twisted.Cred as it was in 2005, in Rust. ARCHITECTURE.md has the rooms and what must always be true.

pub mod accounts;
pub mod config;
pub mod control;
pub mod cred;
pub mod dev;
pub mod doctor;
mod fingerprint;
pub mod folder;
pub mod health;
pub mod limits;
pub mod listener;
// The host's one room with `unsafe`: the other side of the wall, and dlopen.
#[allow(unsafe_code)]
pub mod loader;
pub mod login_gate;
pub mod memory;
pub mod multiservice;
pub mod nearest;
pub mod plain;
pub mod segments;
pub mod server;
pub mod session;
pub mod sessions;
pub mod show;
pub mod store;
