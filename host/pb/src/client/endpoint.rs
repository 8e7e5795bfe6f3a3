//! The address of a host, and how to connect to it.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::{TcpStream, UnixStream};

use super::connection::Client;
use super::error::Error;
use super::options::Options;

/// The default of [`Endpoint::within`].
const WITHIN: Duration = Duration::from_secs(10);

/// The address of a host, and how to connect to it.
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

    /// `host:port`, without encryption.
    #[must_use]
    pub fn tcp(address: &str) -> Self {
        Self::to(To::Tcp(address.to_owned()))
    }

    /// The path of a Unix socket.
    #[must_use]
    pub fn unix(path: impl AsRef<Path>) -> Self {
        Self::to(To::Unix(path.as_ref().to_owned()))
    }

    /// `host:port` over TLS. The host's certificate must be for that name, and trusted by `trust`.
    #[cfg(feature = "tls")]
    #[must_use]
    pub fn tls(address: &str, trust: super::tls::Trust) -> Self {
        Self::to(To::Tls(address.to_owned(), trust))
    }

    /// Declares that nobody but the host can read what is sent or take the host's place, although this is not TLS: for example,
    /// on a port of a machine without other users. Passwords and tokens are then sent as they are.
    #[must_use]
    pub fn private(self) -> Self {
        Self { options: Options { private: true, ..self.options }, ..self }
    }

    /// Sets the options. They replace all earlier ones, but [`Endpoint::private`] stays.
    #[must_use]
    pub fn options(self, options: Options) -> Self {
        let private = self.options.private || options.private;
        Self { options: Options { private, ..options }, ..self }
    }

    /// Sets the time limit for connecting, until the host has said that it speaks PB (10 s). In a [`Session`](super::Session),
    /// logging in and each attachment have the same limit.
    ///
    /// ```no_run
    /// # async fn run() -> Result<(), pb::client::Error> {
    /// use std::time::Duration;
    /// use pb::client::{Endpoint, Options};
    ///
    /// let near = Endpoint::unix("/run/credhost.sock").connect().await?;
    /// // Through a tunnel where nobody else can listen. Passwords may be sent.
    /// let far = Endpoint::tcp("127.0.0.1:9000").private().options(Options::default()).within(Duration::from_secs(3));
    /// let far = far.connect().await?;
    /// # let _ = (near, far);
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn within(self, within: Duration) -> Self {
        Self { within, ..self }
    }

    /// The timeout of calls.
    pub(super) fn timeout(&self) -> Option<Duration> {
        self.options.timeout
    }

    /// The time limit for connecting, for logging in, and for attaching.
    pub(super) fn patience(&self) -> Duration {
        self.within
    }

    /// Connects to the host.
    ///
    /// # Errors
    /// Returns [`Error::Connect`] if the host cannot be reached or is not trusted, and [`Error::Lost`] if it does not speak PB.
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

/// Detects after two minutes that a host has vanished, whether data was sent meanwhile or not.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn setting_options_keeps_a_private_connection_private() {
        let private = |endpoint: Endpoint| endpoint.options.private;
        let of = || Endpoint::tcp("localhost:8787");
        assert!(!private(of().options(Options::default())));
        assert!(private(of().private().options(Options::default())));
        assert!(private(of().options(Options::default()).private()));
    }
}
