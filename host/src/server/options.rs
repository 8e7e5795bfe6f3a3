//! How a host is started, and why it is not.

use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;

use crate::accounts::AccountError;
use crate::config::HomeError;
use crate::listener::tls::TlsError;
use crate::store::StoreError;
use crate::successor::Inherited;

/// This very program, also when its file has been replaced since it was started.
pub(super) const SELF: &str = "/proc/self/exe";

/// How a host is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to serve PB, instead of what the home's configuration says.
    pub listen: Option<String>,
    /// Where to serve it over TLS, instead of what the configuration says.
    pub listen_tls: Option<String>,
    /// Serve in the clear where others can listen, whatever the configuration says.
    pub plaintext: bool,
    /// Poll for changed libraries (file systems without inotify).
    pub poll: bool,
    /// Keep whole copies of libraries for as long as they are loaded, so that debuggers find their symbols and lines.
    pub debuggable: bool,
    /// The program that vets libraries, which calls [`crate::loader::vet::child`]; this one, if none is given.
    pub vetter: Option<PathBuf>,
    /// Sockets that a host before this one has opened, in this process.
    pub inherited: Inherited,
    /// The words that start a host like this one: another program can take over by them.
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
        "{0} can be reached by others, and PB in the clear lets them listen; serve there with --listen-tls (`credhost tls init` makes certificates), or insist with --plaintext"
    )]
    Plaintext(SocketAddr),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("TLS: {0}; `credhost tls init` makes certificates of one's own")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Section(String),
}
