//! A client for Rust programs on tokio: the crate's feature `client`.
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
//! A [`Session`] connects, logs in and attaches, and repeats this after the connection is lost. A [`Client`] is one connection,
//! and leaves that to the program:
//!
//! ```no_run
//! # async fn run() -> Result<(), Box<dyn std::error::Error>> {
//! let client = pb::client::Endpoint::tcp("127.0.0.1:8787").connect().await?;
//! let todo = client.login("alice/todo", "her password", None).await?;
//! # Ok(()) }
//! ```
//!
//! `credhost describe --rust todo` generates a client with a typed method for each method of the service.
//!
//! | for | use |
//! |---|---|
//! | answers as Rust types, with objects in them | [`Answer::read`] |
//! | local objects that services call: minds | [`Client::register`], [`Session::perspective_with`] |
//! | local copies of a service's objects, which follow their changes | [`Followed`] |
//! | local objects of which a service has such copies | [`Client::cacheable`] |
//! | large data, in pages | [`Client::pages`], [`page`] |
//! | TLS (the crate's feature `tls`) | [`Endpoint::tls`](Endpoint) |
//! | passwords, tokens, SSH keys | [`Credential`] |
//! | limits on calls in flight, timeouts | [`Options`], [`Remote::with_timeout`] |
//!
//! Calls on one connection are sent in the order in which they are made. A call without an answer ([`Remote::notify`]) may
//! overtake calls that wait for room. A local object that holds its own [`Client`], or a [`Remote`] of it, keeps the connection
//! open.
//!
//! # Local objects
//!
//! A service calls its clients back through the object that they pass when they log in: the mind.
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
//! # Handling errors
//!
//! ```no_run
//! # async fn run(todo: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
//! use pb::client::Error;
//!
//! match todo.call("done", &(7,)).await {
//!     Ok(_) => {}
//!     Err(Error::Failure(failure)) if failure.is("todo.NoSuchTask") => println!("{}", failure.value),
//!     // The connection was lost before the call was sent. The call can be repeated.
//!     Err(Error::NotSent(_)) => {}
//!     // The connection was lost later. The task may be done or not.
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
