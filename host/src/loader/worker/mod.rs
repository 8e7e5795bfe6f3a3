//! A generation in a process of its own.
//!
//! The worker is this very program, restarted: it opens the library and has the wall to it, on the other side of a socket
//! (`wire`: messages; `channel`: its ends). `link` is the host's end, `inside` the worker's. `owed` tracks what a worker was
//! given and has not answered, so that its death is only an error to those who wait. `confinement` is the operator's settings,
//! and `sandbox` applies them.

pub(crate) mod channel;
pub mod confinement;
mod crash;
mod inside;
pub(crate) mod link;
pub mod owed;
mod pid;
pub mod places;
mod process;
mod sandbox;
mod syscalls;
pub mod wire;

pub use self::inside::child;
pub use self::pid::Facts;
pub(crate) use self::pid::Process;
pub use self::process::Worker;
pub(crate) use self::process::{ARENAS, may_be_known, sockets};
pub use self::sandbox::confine;

use serde::{Deserialize, Serialize};

use self::confinement::Confinement;

/// The first argument of a program that runs as a worker.
pub const WORD: &str = "serve-in-child";

/// The first message to a worker.
#[derive(Debug, Serialize, Deserialize)]
struct Setup {
    /// The private copy of its library.
    copy: std::path::PathBuf,
    /// The host's process id.
    host: u32,
    /// A folder of its own.
    folder: std::path::PathBuf,
    confinement: Confinement,
}
