//! The library that services of credhost are written against.
//!
//! A *service* is a shared library that the host finds in its folder. After login the host asks it for a
//! *perspective*: one identity's view onto the service, whose methods the client calls. An author writes two types,
//! the service and its perspective, and two attributes:
//!
//! ```
//! use plugin_api::prelude::*;
//!
//! plugin_api::export!(Guestbook);
//!
//! /// A book for guests to sign.
//! #[derive(Default)]
//! struct Guestbook;
//!
//! #[service("guestbook")]
//! impl Service for Guestbook {
//!     type Perspective = Page;
//! }
//!
//! /// One identity's page.
//! #[derive(Default, Serialize, Deserialize)]
//! struct Page {
//!     entries: Vec<String>,
//! }
//!
//! #[perspective]
//! impl Page {
//!     /// Signs the page; returns the number of entries.
//!     fn sign(&mut self, text: String) -> usize {
//!         self.entries.push(text);
//!         self.entries.len()
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! * [`Service`] has the methods that an author can override: creating, starting, stopping, attaching.
//! * [`Handle`] gives access to one of the service's own objects: `read` and `write` it, or send it to a client.
//! * [`Call`] is the call being served: the caller, and the client's own object ([`Call::mind`]).
//! * [`Cached`] is an object of which clients receive a copy and all changes.
//! * [`Remote`] is an object of the client. [`Context`] is what the service knows of its surroundings.
//! * [`Data`] is the service's storage beside the states: an ordered space of keys, with transactions.
//! * [`Door`] is a protocol of the service's own. A [`Listener`] provides streams, an [`Authorizer`] determines who
//!   is at the other end.
//! * [`Fault`](struct@Fault) is an error with the class name by which clients trap it.
//! * [`testing`] runs a service in a unit test, without a host.
//!
//! The guide, from an empty folder to a served service, is `GUIDE.md` beside this crate.
//!
//! This crate is not the host. A service opens no sockets, and keeps neither identities nor files.

// The code that the macros generate uses this name for the crate, also within it.
extern crate self as plugin_api;

// The only module of this crate with `unsafe` code: the wall.
#[allow(unsafe_code)]
#[doc(hidden)]
pub mod abi;
mod cached;
mod call;
mod context;
mod data;
mod described;
mod doors;
mod fault;
mod followed;
mod handle;
mod logging;
pub mod manifest;
mod paging;
/// How fast a client must be, for both sides of the wall.
#[doc(hidden)]
pub mod pace {
    pub use crate::doors::{Pace, Rates};
}
mod published;
mod remote;
mod runtime;
mod service;
pub mod testing;
#[cfg(feature = "web")]
pub mod web;

pub use cached::{Cacheable, Cached, Observer};
pub use call::{Attachment, Call, Reason};
pub use context::{Config, Context, blocking};
pub use data::{Data, Entry, Select, Selected, Transaction};
pub use described::Described;
pub use doors::{
    Account, Authorizer, Caller, Challenge, Client, CredentialShown, Door, Input, Lasts, Listener, Login, Peer,
    Refused, RememberedShown, SessionShown, Stream, Transport,
};
pub use fault::{Fault, Result};
pub use followed::{Follow, Followed};
pub use handle::{AnyHandle, Handle, View};
pub use jelly::types;
pub use jelly::{BigInt, Bytes, Date, DateTime, Decimal, FrozenSet, Set, Time, TimeDelta, Value};
pub use jelly::{Node, RefKind, ValueRef};
pub use paging::{PageCollector, Pages, page};
/// A client of Perspective Broker. [`Login::attach`] returns one of its references.
#[cfg(feature = "attach")]
pub use pb::client;
/// Values as people type and read them.
#[cfg(feature = "shell")]
pub use pb::shell;
pub use plugin_api_macros::{Described, Fault, mind, perspective, service};
pub use published::{Publish, Published};
pub use remote::Remote;
pub use service::{Callable, Save, Served, Service};
pub use zeroize::Zeroizing;

/// Everything that a service usually needs.
pub mod prelude {
    pub use crate::{
        AnyHandle, Attachment, Cacheable, Cached, Call, Config, Context, Fault, Handle, Observer, Reason, Remote,
        Result, Save, Select, Service, Value, View,
    };
    pub use crate::{mind, perspective, service};
    pub use serde::{Deserialize, Serialize};
}

/// Turns the crate into a library that the host can load. Exports the library's one symbol, and installs an allocator
/// whose memory the host can free when it closes the library.
///
/// The argument is the type of the service. A crate without `export!` can still be linked into a program of its own.
/// An author who has a global allocator of their own writes `export!(Todo, own_allocator)`. Whatever the statics of
/// such a library own then stays in the host's memory for good, each time the library is replaced.
#[macro_export]
macro_rules! export {
    ($service:ty) => {
        const _: () = {
            #[global_allocator]
            static ARENA: $crate::__private::Arena = $crate::__private::Arena::new();

            struct Memory;

            impl $crate::__private::Memory for Memory {
                fn arena() -> ::core::option::Option<&'static $crate::__private::Arena> {
                    ::core::option::Option::Some(&ARENA)
                }
            }

    $crate::export!(@ $service, Memory);
        };
    };
    ($service:ty, own_allocator) => {
        const _: () = {
    $crate::export!(@ $service, $crate::__private::Foreigners);
        };
    };
    (@ $service:ty, $memory:ty) => {
        extern "C" fn constructor() -> $crate::__private::ModuleResult {
            // Evaluated here, in the author's crate, because its `panic` setting may apply to that crate alone.
            $crate::__private::module::<$service, $memory, { ::core::cfg!(panic = "unwind") }>()
        }

        #[unsafe(no_mangle)]
        #[allow(non_upper_case_globals)]
        static credhost_service: $crate::__private::Header = $crate::__private::header(constructor);
    };
}

/// For the macros; not for authors.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi::arena::Arena;
    pub use crate::abi::export::{Foreigners, Header, Memory, ModuleResult, header, module};
    pub use crate::described::{Descriptions, Far, MindType, Near, NearObject, Probe, Raises};
    pub use crate::manifest::{Method, Parameter};
    pub use crate::runtime::arguments::Arguments;
    pub use crate::runtime::incoming::{Incoming, Invoked, Sink, encode};
    pub use crate::service::{load, load_migrated, save};
    pub use serde;
}

/// Compiles the programs in the guide.
#[cfg(doctest)]
#[doc = include_str!("../GUIDE.md")]
pub struct Guide;
