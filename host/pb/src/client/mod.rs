//! A client for Rust programs, on tokio: the crate's feature `client`.
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! use pb::client::{Credential, Endpoint, Session};
//!
//! let session = Session::builder(Endpoint::tcp("127.0.0.1:8787"), Credential::password("alice", "her password")).start();
//! let todo = session.perspective("todo", None);
//! let number: usize = todo.call("add", &("milk",)).await?.read()?;
//! # Ok(()) }
//! ```
//!
//! A [`Session`] connects, logs in and attaches, and does so again when the connection is lost. A [`Client`] is one connection, and
//! leaves that to its user:
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = pb::client::Endpoint::tcp("127.0.0.1:8787").connect().await?;
//! let todo = client.login("alice/todo", "her password", None).await?;
//! # Ok(()) }
//! ```
//!
//! `credhost describe --rust todo` writes a client with a typed method for each of the service's.
//!
//! | for | there is |
//! |---|---|
//! | answers as types of one's own, with objects in them | [`Answer::read`] |
//! | objects of one's own that services call: minds | [`Client::register`], [`Session::perspective_with`] |
//! | copies of a service's objects, which follow its changes | [`Followed`] |
//! | objects of one's own that a service has such copies of | [`Client::cacheable`] |
//! | much data, in pages | [`Client::pages`], [`page`] |
//! | TLS (the crate's feature `tls`) | [`Endpoint::tls`](Endpoint) |
//! | passwords, tokens, SSH keys | [`Credential`] |
//! | how many calls are under way, and for how long | [`Options`], [`Remote::with_timeout`] |
//!
//! # An object of one's own
//!
//! A service calls its clients back by the object that they give when they log in: the mind.
//!
//! ```no_run
//! # async fn run(client: pb::client::Client) -> Result<(), Box<dyn std::error::Error>> {
//! use pb::client::Call;
//!
//! let mind = client.register(|call: Call| async move {
//!     let (who, what) = call.read::<(String, String)>()?;
//!     println!("{who}: {what}");
//!     Ok("thank you")
//! });
//! let chat = client.login("alice/chat", "her password", Some(mind)).await?;
//! # Ok(()) }
//! ```
//!
//! # What goes wrong
//!
//! ```no_run
//! # async fn run(todo: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
//! use pb::client::Error;
//!
//! match todo.call("done", &(7,)).await {
//!     Ok(_) => {}
//!     Err(Error::Failure(failure)) if failure.is("todo.NoSuchTask") => println!("{}", failure.value),
//!     // The connection was lost before it was sent: it can be made again.
//!     Err(Error::NotSent(_)) => {}
//!     // It was lost later: the task may be done or not.
//!     Err(error @ Error::Lost(_)) => return Err(error.into()),
//!     Err(error) => return Err(error.into()),
//! }
//! # Ok(()) }
//! ```

mod cacheable;
mod calling;
mod driver;
mod endpoint;
mod followed;
mod link;
mod login;
mod objects;
mod options;
mod paging;
mod received;
mod session;
mod tables;
#[cfg(feature = "tls")]
pub mod tls;

use std::io;
use std::sync::Arc;
use std::time::Duration;

pub use jelly::Value;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::{mpsc, oneshot};

pub use self::cacheable::Cacheable;
pub use self::endpoint::Endpoint;
pub use self::followed::{Follow, Followed};
pub use self::link::Local;
use self::link::{Flow, Held, Link, WeakLink};
pub use self::login::{Credential, Sign};
pub use self::objects::{Referenceable, Reply};
pub use self::options::Options;
pub use self::paging::{Pages, page};
pub use self::received::{Answer, Call, Remote};
pub use self::session::{Backoff, Perspective, Session, SessionBuilder, Status, Watch};
use crate::Failure;

/// What can go wrong with a call.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The other side answered with an error.
    #[error("{0}")]
    Failure(Failure),
    /// The connection was lost, and whether the call was carried out is not known.
    #[error("the connection is lost: {0}")]
    Lost(String),
    /// The connection was lost before the call was sent: it can be made again.
    #[error("the connection is lost: {0}")]
    NotSent(String),
    /// It has taken longer than it may, and is not waited for any more.
    #[error("no answer within {} s", .0.as_secs_f64())]
    TimedOut(Duration),
    /// A value could not be written or read.
    #[error(transparent)]
    Jelly(#[from] jelly::Error),
    /// The other side answered with something else than was to be expected.
    #[error("the host answered with something unexpected: {0}")]
    Unexpected(String),
    /// Nobody was reached.
    #[error("cannot reach {to}: {why}")]
    Connect {
        /// Who was to be reached.
        to: String,
        /// Why they were not.
        #[source]
        why: io::Error,
    },
    /// A [`Session`] is not let in, and does not try again.
    #[error("the host does not let in whoever this is: {0}")]
    Refused(Arc<Error>),
    /// What was to be sent in pages could not be read.
    #[error("what is to be sent cannot be read: {0}")]
    Reading(#[source] io::Error),
}

/// A connection, and the way to its root object. Clones are the same connection; it closes when the last clone and the
/// last [`Remote`] are gone.
#[derive(Debug, Clone)]
pub struct Client {
    link: Link,
    timeout: Option<Duration>,
    /// Nobody but the host can read what is sent.
    private: bool,
}

impl Client {
    /// A client on a connection that is open: any stream that tokio reads and writes. The connection is served by a task of
    /// its own.
    ///
    /// # Errors
    /// When the other side is no PB server, or goes before it has said so.
    pub async fn new<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S) -> Result<Self, Error> {
        Self::with(stream, Options::default()).await
    }

    /// The same, with other options than the default ones.
    ///
    /// # Errors
    /// As [`Client::new`].
    pub async fn with<S: AsyncRead + AsyncWrite + Send + 'static>(stream: S, options: Options) -> Result<Self, Error> {
        let (commands, receiver) = mpsc::unbounded_channel();
        let flow = Arc::new(Flow::new(options.calls, options.bytes));
        let weak = WeakLink { commands: commands.downgrade(), flow: Arc::clone(&flow) };
        let (ready, done) = oneshot::channel();
        tokio::spawn(driver::drive(stream, receiver, weak, options, ready));
        match done.await {
            Ok(Ok(())) => {
                Ok(Self { link: Link { commands, flow }, timeout: options.timeout, private: options.private })
            }
            Ok(Err(error)) => Err(error),
            Err(_) => Err(Error::Lost("it closed before it said anything".to_owned())),
        }
    }

    /// Whether the connection is lost: nothing more can be called.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.link.commands.is_closed()
    }

    /// Waits until the connection is lost.
    pub async fn closed(&self) {
        self.link.commands.closed().await;
    }

    /// Why it is lost, if it is.
    #[must_use]
    pub fn why(&self) -> String {
        self.link.flow.why()
    }

    /// The root object.
    #[must_use]
    pub fn root(&self) -> Remote {
        let held = Held { link: self.link.clone(), luid: None, count: 0 };
        Remote { held: Arc::new(held), timeout: self.timeout }
    }

    /// Makes an object of ours known, so that it can be sent.
    pub fn register(&self, object: impl Referenceable) -> Local {
        self.register_shared(Arc::new(object))
    }

    /// The same, of an object that others have, too.
    pub fn register_shared(&self, object: Arc<dyn Referenceable>) -> Local {
        objects::register(&self.link, self.timeout, object)
    }
}
