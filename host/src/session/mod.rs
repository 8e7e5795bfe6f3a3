//! One client's connection: socket ↔ broker ↔ services.
//!
//! [`AuthRoot`] is the root of the object hierarchy that clients see, as `twisted.spread.pb.AuthRoot` was: through it
//! they log in, in either era's words, and attach to perspectives. `connection` moves bytes, `desk` is what a
//! connection knows and decides (no IO), `root` the objects of log-in, `services` the way to services and back,
//! `revocation` what ends. What all connections share: the `guard` (throttle, audit, `hashing` of passwords) and the
//! `sessions`. A `stream` is a socket, with or without `tls`.

mod connection;
mod desk;
mod door;
mod guard;
mod hashing;
mod limits;
mod references;
mod revocation;
mod root;
mod services;
mod sessions;
mod stream;
pub mod tls;

pub use door::{AuthRoot, Door};
pub use guard::Guard;
pub use limits::{Limits, PeerLimits};
pub use sessions::{SessionStatus, Sessions};
