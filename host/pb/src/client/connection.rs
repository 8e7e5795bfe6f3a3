//! One connection.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

use super::driver::drive;
use super::error::Error;
use super::flow::Flow;
use super::link::{Held, Link, Local, WeakLink};
use super::objects::{Referenceable, register};
use super::options::Options;
use super::received::Remote;

/// A connection, with access to its root object. Clones share the connection. It closes when the last clone is gone, and the last
/// handle to one of its objects ([`Remote`], [`Local`] …).
#[derive(Debug, Clone)]
pub struct Client {
    pub(super) link: Link,
    timeout: Option<Duration>,
    /// Nobody but the host can read what is sent.
    pub(super) private: bool,
}

impl Client {
    /// Creates a client on an open connection: any stream that tokio reads and writes. A task of its own serves the connection.
    ///
    /// # Errors
    /// Returns an error if the other side is not a PB server, or closes the connection before it has said so.
    pub async fn new<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Result<Self, Error> {
        Self::with(stream, Options::default()).await
    }

    /// Like [`Client::new`], with these options.
    ///
    /// # Errors
    /// As [`Client::new`].
    ///
    /// ```no_run
    /// # async fn run(stream: tokio::net::TcpStream) -> Result<(), pb::client::Error> {
    /// use pb::client::{Client, Options};
    ///
    /// // `Client::new(stream)` does the same with the default options.
    /// let client = Client::with(stream, Options { calls: 16, ..Options::default() }).await?;
    /// // Anybody may call the root without a login, if the operator has configured one.
    /// let root = client.root();
    /// println!("{}", root.call("motd", &()).await?.read::<String>()?);
    /// client.closed().await;
    /// assert!(client.is_closed());
    /// println!("{}", client.why().unwrap_or_default());
    /// # Ok(()) }
    /// ```
    pub async fn with<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, options: Options) -> Result<Self, Error> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let flow = Arc::new(Flow::new(options.calls, options.bytes));
        let weak = WeakLink { commands: commands.downgrade(), flow: Arc::clone(&flow) };
        let (ready, done) = oneshot::channel();
        tokio::spawn(drive(stream, receiver, weak, options, ready));
        match done.await {
            Ok(Ok(())) => {
                Ok(Self { link: Link { commands, flow }, timeout: options.timeout, private: options.private })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Lost("it closed before it was ready".to_owned())),
        }
    }

    /// Whether the connection is lost. No further calls are possible then.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        // The reason is there a moment before.
        self.link.flow.why().is_some() || self.link.commands.is_closed()
    }

    /// Waits until the connection is lost.
    pub async fn closed(&self) {
        self.link.commands.closed().await;
    }

    /// Why the connection is lost, if it is.
    #[must_use]
    pub fn why(&self) -> Option<String> {
        self.link.flow.why()
    }

    /// The root object.
    #[must_use]
    pub fn root(&self) -> Remote {
        let held = Held { link: self.link.clone(), luid: None, count: 0 };
        Remote { held: Arc::new(held), timeout: self.timeout }
    }

    /// Registers a local object with this connection, so that it can be sent.
    pub fn register(&self, object: impl Referenceable) -> Local {
        self.register_shared(Arc::new(object))
    }

    /// Like [`Client::register`], for an object that has other owners as well.
    ///
    /// ```no_run
    /// # fn run(client: &pb::client::Client, other: &pb::client::Client) {
    /// use std::sync::Arc;
    /// use pb::client::{Call, Referenceable};
    ///
    /// // One object for the services of two hosts.
    /// let ear: Arc<dyn Referenceable> = Arc::new(|call: Call| async move {
    ///     println!("{}", call.method());
    ///     Ok(())
    /// });
    /// let (here, there) = (client.register_shared(Arc::clone(&ear)), other.register_shared(ear));
    /// # let _ = (here, there);
    /// # }
    /// ```
    pub fn register_shared(&self, object: Arc<dyn Referenceable>) -> Local {
        register(&self.link, self.timeout, object)
    }
}
