//! A host for services that people log in to.
//!
//! The host owns an [`Authorizer`](embed::Authorizer), which stores [`Identities`](embed::Identity), and a
//! `MultiService`. Services are libraries in a folder, or linked into a program that embeds the host: see [`embed`].
//! Everything else belongs to the program `credhost`, and is hidden here.
//!
//! After the login, the host asks a service for a *perspective*: one identity's view onto it, whose methods the client
//! calls. The network protocol is Twisted's Perspective Broker.
//!
//! This is Twisted.Cred as it was in 2005, in Rust. ARCHITECTURE.md describes the modules and their invariants.

#[doc(hidden)]
pub mod accounts;
mod asked_name;
#[doc(hidden)]
pub mod config;
#[doc(hidden)]
pub mod control;
#[doc(hidden)]
pub mod cred;
#[doc(hidden)]
pub mod dev;
#[doc(hidden)]
pub mod doctor;
#[doc(hidden)]
pub mod doors;
pub mod embed;
mod fingerprint;
#[doc(hidden)]
pub mod folder;
#[doc(hidden)]
pub mod health;
#[doc(hidden)]
pub mod limits;
#[doc(hidden)]
pub mod listener;
// The only module of the host with `unsafe` code: the host's side of the wall, and dlopen.
#[doc(hidden)]
#[allow(unsafe_code)]
pub mod loader;
#[doc(hidden)]
pub mod login_gate;
#[doc(hidden)]
pub mod memory;
#[doc(hidden)]
pub mod multiservice;
#[doc(hidden)]
pub mod nearest;
#[doc(hidden)]
pub mod plain;
#[doc(hidden)]
pub mod segments;
#[doc(hidden)]
pub mod server;
#[doc(hidden)]
pub mod session;
#[doc(hidden)]
pub mod sessions;
#[doc(hidden)]
pub mod show;
#[doc(hidden)]
pub mod store;
#[doc(hidden)]
pub mod successor;
