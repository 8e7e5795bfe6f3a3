//! From a file in a folder to a generation that serves.
//!
//! `fault` says why one does not serve. `watch` sees files come; `elf` finds what cannot be a library before it is opened; `private` makes the copy that is
//! opened; `vet` tries it in a process of its own; `library` opens it; `generation` is the thread that a library runs on, behind a `gate`, a queue in the
//! host's memory; `unload` lets go of a library, by what `ledger` knows of the threads and keys it has left. The host's
//! `unsafe` lives here: `gate` (the host's function table, called by the library), `library` (dlopen), `unload` (its
//! memory) and `ledger` (four of the system's functions).

pub mod allocator;
pub mod elf;
pub(crate) mod exit;
mod fair;
pub mod fault;
pub mod gate;
pub mod generation;
pub mod ledger;
pub mod library;
pub mod mapping;
pub(crate) mod own_folder;
pub mod private;
mod queue;
pub mod relocations;
pub mod unload;
pub mod vet;
pub mod watch;
pub mod worker;

/// The locks of `queue`; its model has others.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};

    pub(super) use parking_lot::Mutex;
}
