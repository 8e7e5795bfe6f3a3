//! From a file in a folder to a generation that serves.
//!
//! `fault` says why a library does not serve. `watch` sees new files; `elf` refuses what cannot be a library before it is
//! opened; `private` makes the copy that is opened; `vet` tries it in a process of its own; `library` opens it; `generation` is
//! the thread that a library runs on, behind a `gate`, a queue in the host's memory; `unload` closes a library, if `ledger`
//! knows of no threads or thread-locals that still need it. The host's `unsafe` lives here: among others in `gate` (the host's
//! function table, called by the library), `library` (dlopen), `unload` (its memory) and `ledger` (four of the system's
//! functions).

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

/// The locks of `queue`; its model uses others.
mod sync {
    pub(super) use std::sync::atomic::{AtomicBool, Ordering};

    pub(super) use parking_lot::Mutex;
}
