//! The options for starting a host, and the errors.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::accounts::AccountError;
use crate::config::HomeError;
use crate::listener::tls::TlsError;
use crate::store::StoreError;
use crate::successor::Inherited;

/// This program, even if its file was replaced since it was started.
pub(super) const SELF: &str = "/proc/self/exe";

/// The options for starting a host.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// The address of Perspective Broker, instead of the configured one.
    pub listen: Option<String>,
    /// Its address over TLS, instead of the configured one.
    pub listen_tls: Option<String>,
    /// Serves in the clear where others can listen, whatever the configuration says.
    pub plaintext: bool,
    /// Polls for changed libraries (for file systems without inotify).
    pub poll: bool,
    /// Keeps complete copies of libraries while they are loaded, so that debuggers find their symbols and lines.
    pub debuggable: bool,
    /// The program that vets libraries by calling [`crate::loader::vet::child`]. By default, this one.
    pub vetter: Option<PathBuf>,
    /// Sockets that a previous host has opened in this process.
    pub inherited: Inherited,
    /// The arguments that start a host like this one. Another program can take over with them.
    pub words: Option<Vec<OsString>>,
}

/// Why a host does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is what the error in it says")]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Accounts(#[from] AccountError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    #[error(
        "others can reach {0} and could read the traffic of PB in the clear; serve there with --listen-tls (`credhost tls init` makes certificates), or insist with --plaintext"
    )]
    Plaintext(SocketAddr),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("TLS: {0}; `credhost tls init` makes certificates")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Section(String),
}
