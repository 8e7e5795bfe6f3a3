//! What a service of credhost is written against.
//!
//! A *service* is a shared library that the host finds in its folder. After log-in the host asks it for a
//! *perspective*: one identity's view onto the service, whose methods the client calls. An author writes two types, the
//! service and its perspective, and two attributes:
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
//!     /// Signs the page; answers with the number of entries.
//!     fn sign(&mut self, text: String) -> usize {
//!         self.entries.push(text);
//!         self.entries.len()
//!     }
//! }
//! # fn main() {}
//! ```
//!
//! * [`Service`] says what can be overridden: making, starting, stopping, attaching.
//! * [`Handle`] is a way to an object of the service's own: `read` and `write` it, send it to a client.
//! * [`Call`] is the call being served: who makes it, and the client's own object ([`Call::mind`]).
//! * [`Cached`] is an object that clients get a copy of, and are told the changes of.
//! * [`Remote`] is an object of the client's; [`Context`] is what the service knows of its surroundings.
//! * [`Fault`] is an error with the class name that clients trap it by.
//! * [`testing`] runs a service in a unit test, without a host.
//!
//! The guide, from an empty folder to a served service, is `GUIDE.md` beside this crate.
//!
//! What it is not: the host. A service knows nothing of sockets, log-in or storage.

// The one room of this crate with `unsafe`: the wall.
#[allow(unsafe_code)]
pub mod abi;
mod cached;
mod call;
mod context;
mod fault;
mod handle;
mod logging;
pub mod manifest;
mod remote;
mod runtime;
mod service;
pub mod testing;

pub use cached::{Cacheable, Cached};
pub use call::{Attachment, Call};
pub use context::{Config, Context, blocking};
pub use fault::{Fault, Result};
pub use handle::Handle;
pub use jelly::types;
pub use jelly::{BigInt, Bytes, Date, DateTime, Decimal, FrozenSet, Set, Time, TimeDelta, Value};
pub use plugin_api_macros::{perspective, service};
pub use remote::Remote;
pub use service::{Callable, Save, Served, Service};

/// All that a service usually needs.
pub mod prelude {
    pub use crate::{
        Attachment, Cacheable, Cached, Call, Config, Context, Fault, Handle, Remote, Result, Save, Service, Value,
    };
    pub use crate::{perspective, service};
    pub use serde::{Deserialize, Serialize};
}

/// Makes the crate a library that the host can load: exports its one symbol.
///
/// Takes the type of the service. Without it, the crate can still be linked into a program of its own.
#[macro_export]
macro_rules! export {
    ($service:ty) => {
        const _: () = {
            extern "C" fn constructor() -> $crate::__private::ModuleResult {
                $crate::__private::module::<$service>()
            }

            #[unsafe(no_mangle)]
            #[allow(non_upper_case_globals)]
            static credhost_service: $crate::__private::Header = $crate::__private::header(constructor);
        };
    };
}

/// For the macros; not for authors.
#[doc(hidden)]
pub mod __private {
    pub use crate::abi::export::{Header, ModuleResult, header, module};
    pub use crate::manifest::{Method, Parameter};
    pub use crate::runtime::arguments::Arguments;
    pub use crate::runtime::incoming::{Incoming, Invoked, Sink, encode};
    pub use crate::service::{load, save};
    pub use serde;
}
