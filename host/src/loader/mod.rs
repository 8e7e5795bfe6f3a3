//! From a file in a folder to a generation that serves.
//!
//! `watch` sees files come; `elf` finds what cannot be a library before it is opened; `private` makes the copy that is
//! opened; `library` opens it; `generation` is the thread that a library runs on, behind a `gate`, a queue in the
//! host's memory. The host's `unsafe` lives here: `gate` (the host's function table, called by the library) and
//! `library` (dlopen).

pub mod elf;
pub mod gate;
pub mod generation;
pub mod library;
pub mod private;
pub mod watch;
