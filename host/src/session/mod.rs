//! One client's connection: socket ↔ broker ↔ services.
//!
//! [`AuthRoot`] is the root of the object hierarchy that clients see, as `twisted.spread.pb.AuthRoot` was: through it
//! they log in, in either era's words, and attach to perspectives. `connection` moves bytes, `desk` is what a
//! connection knows and decides (no IO), `root` the objects of log-in, `services` the way to services and back.

mod connection;
mod desk;
mod door;
mod limits;
mod references;
mod root;
mod services;

pub use door::{AuthRoot, Door};
pub use limits::{Limits, PeerLimits};
