//! Where a host is, and how it is reached.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};

use super::connection::Client;
use super::error::Error;
use super::options::Options;

/// How long it may take until a host has said that it speaks PB.
const WITHIN: Duration = Duration::from_secs(10);

/// Where a host is, and how it is reached.
///
/// ```no_run
/// # async fn run() -> Result<(), Box<dyn std::error::Error>> {
/// use pb::client::Endpoint;
///
/// let client = Endpoint::tcp("127.0.0.1:8787").connect().await?;
/// # Ok(()) }
/// ```
///
/// In Twisted: `twisted.internet.endpoints`.
#[derive(Debug, Clone)]
pub struct Endpoint {
    to: To,
    options: Options,
    within: Duration,
}

#[derive(Debug, Clone)]
enum To {
    Tcp(String),
    Unix(PathBuf),
    #[cfg(feature = "tls")]
    Tls(String, super::tls::Trust),
}

impl Endpoint {
    fn to(to: To) -> Self {
        Self { to, options: Options::default(), within: WITHIN }
    }

    /// `host:port`, in the clear.
    #[must_use]
    pub fn tcp(address: &str) -> Self {
        Self::to(To::Tcp(address.to_owned()))
    }

    /// A Unix socket.
    #[must_use]
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::to(To::Unix(path.as_ref().to_owned()))
    }

    /// `host:port`, over TLS, with a certificate for that name from whoever is trusted.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(address: &str, trust: super::tls::Trust) -> Self {
        Self::to(To::Tls(address.to_owned(), trust))
    }

    /// The same; nobody but the host can read what is sent, nor take its place, though it is no TLS: a port of this machine's,
    /// where nobody else is. Passwords and tokens go as they are.
    #[must_use]
    pub fn private(self) -> Self {
        Self { options: Options { private: true, ..self.options }, ..self }
    }

    /// The same, with other options than the default ones.
    #[must_use]
    pub fn options(self, options: Options) -> Self {
        Self { options, ..self }
    }

    /// The same, that may take so long until the host has said that it speaks PB (10 s).
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), pb::client::Error> {
    /// use std::time::Duration;
    /// use pb::client::{Endpoint, Options};
    ///
    /// let near = Endpoint::unix("/run/credhost.sock").connect().await?;
    /// // By a tunnel, where nobody else can listen: passwords may be sent.
    /// let far = Endpoint::tcp("127.0.0.1:9000").private().options(Options::default()).within(Duration::from_secs(3));
    /// let far = far.connect().await?;
    /// # let _ = (near, far);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// How long a call may take.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.options.timeout
    }

    /// How long it may take to connect, and to log in.
    pub(super) fn patience(&self) -> Duration {
        self.within
    }

    /// Connects.
    ///
    /// # Errors
    /// [`Error::Connect`], when nobody is there, or somebody who cannot be trusted; [`Error::Lost`], when they speak no PB.
    pub async fn connect(&self) -> Result<Client, Error> {
        let late = || Err(self.failed(io::Error::from(io::ErrorKind::TimedOut)));
        tokio::time::timeout(self.within, self.reach()).await.unwrap_or_else(|_| late())
    }

    async fn reach(&self) -> Result<Client, Error> {
        let options = |private: bool| Options { private: self.options.private || private, ..self.options };
        match &self.to {
            To::Tcp(address) => {
                let stream = self.dial(address).await?;
                Client::with(stream, options(false)).await
            }
            To::Unix(path) => {
                let stream = UnixStream::connect(path).await.map_err(|error| self.failed(error))?;
                Client::with(stream, options(true)).await
            }
            #[cfg(feature = "tls")]
            To::Tls(address, trust) => {
                let stream = self.dial(address).await?;
                let stream = trust.connect(address, stream).await.map_err(|error| self.failed(error))?;
                Client::with(stream, options(true)).await
            }
        }
    }

    async fn dial(&self, address: &str) -> Result<TcpStream, Error> {
        let stream = TcpStream::connect(address).await.map_err(|error| self.failed(error))?;
        let set = stream.set_nodelay(true).and_then(|()| watch(&stream));
        set.map_err(|error| self.failed(error))?;
        Ok(stream)
    }

    fn failed(&self, why: io::Error) -> Error {
        Error::Connect { to: self.to_string(), why }
    }
}

/// A host that is gone without a word is noticed after two minutes, whether something was sent meanwhile or not.
fn watch(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, Duration::from_secs(60))?;
    sockopt::set_tcp_keepintvl(socket, Duration::from_secs(15))?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    sockopt::set_tcp_user_timeout(socket, 120_000)?;
    Ok(())
}

impl std::fmt::Display for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.to {
            To::Tcp(address) => f.write_str(address),
            To::Unix(path) => write!(f, "{}", path.display()),
            #[cfg(feature = "tls")]
            To::Tls(address, _) => write!(f, "{address} over TLS"),
        }
    }
}
