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
//! Calls by one connection are sent in the order in which they are made; one that wants no answer ([`Remote::notify`]) may overtake
//! calls that wait for room. An object of one's own that holds its own [`Client`], or a [`Remote`] of it, keeps the connection open.
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
mod connection;
mod driver;
mod endpoint;
mod error;
mod flow;
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

pub use jelly::Value;

pub use self::cacheable::Cacheable;
pub use self::connection::Client;
pub use self::endpoint::Endpoint;
pub use self::error::Error;
pub use self::followed::{Follow, Followed};
pub use self::link::Local;
pub use self::login::{Credential, Sign};
pub use self::objects::{Referenceable, Reply};
pub use self::options::Options;
pub use self::paging::{Pages, page};
pub use self::received::{Answer, Call, Remote};
pub use self::session::{Backoff, Perspective, Session, SessionBuilder, Status, Watch};
