//! The wall between host and library.
//!
//! Only plain numbers and borrowed bytes cross it, and they are copied on arrival: [`frame`]s in a queue in the host's memory,
//! which the library's own thread pops in batches, and frames back. Neither side holds anything of the other's except the two
//! function tables in [`types`]. `abi_stable` checks those tables when a library is opened; nothing outside this folder uses it.
//!
//! The crate's `unsafe` code is here: [`export`] is the library's side, `import` (feature `host`) the host's.

pub mod arena;
pub(crate) mod descriptor;
pub mod export;
pub mod frame;
#[cfg(feature = "host")]
pub mod import;
pub mod limits;
pub mod types;

pub use crate::fault::Detail;
