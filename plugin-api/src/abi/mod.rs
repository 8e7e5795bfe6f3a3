//! The wall between host and library.
//!
//! Across it go plain numbers and borrowed bytes, copied on arrival: [`frame`]s in a queue of the host's memory, popped
//! by the library's own thread in batches, and frames back. Neither side holds anything of the other's but the two
//! function tables in [`types`]. `abi_stable` checks those tables when a library is opened; nothing outside this folder
//! names it.
//!
//! The api's `unsafe` lives here: [`export`] is the library's side, `import` (feature `host`) the host's.

pub mod arena;
pub(crate) mod descriptor;
pub mod export;
pub mod frame;
#[cfg(feature = "host")]
pub mod import;
pub mod limits;
pub mod types;

pub use crate::fault::Detail;
