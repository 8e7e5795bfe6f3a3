//! A service's own pages: HTTP on one of its listeners, and logins with a browser. With the feature `web`.
//!
//! The pages are axum's ([`axum::Router`]). This module adds what a service with pages needs besides: [`serve`] serves them on
//! the host's streams, so that no connection is lost when the code is replaced; [`Visitor`] says who is asking; [`SignIns`] keeps
//! visitors signed in with a cookie; and [`guard`] keeps other sites from acting in their name.
//!
//! ```
//! use plugin_api::prelude::*;
//! use plugin_api::testing::TestHost;
//! use plugin_api::web::{self, Here, axum};
//! use axum::extract::State;
//! use axum::routing::get;
//!
//! #[derive(Default)]
//! struct Counter {
//!     visits: u64,
//! }
//!
//! #[service("counter", save = "never")]
//! impl Service for Counter {
//!     type Perspective = Nobody;
//!
//!     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
//!         let pages = axum::Router::new().route("/", get(visits)).with_state(Here::new(&context));
//!         let streams = context.listen_public("http")?;
//!         context.spawn(web::serve(context.clone(), streams, web::guard(pages)));
//!         Ok(())
//!     }
//! }
//!
//! async fn visits(State(here): State<Here<Counter>>) -> Result<String, web::Failed> {
//!     let visits = here.write(|counter| {
//!         counter.visits += 1;
//!         counter.visits
//!     })?;
//!     Ok(format!("visitor {visits}"))
//! }
//!
//! # #[derive(Default)]
//! # struct Nobody;
//! # #[perspective]
//! # impl Nobody {}
//! let host = TestHost::<Counter>::start()?;
//! let mut client = host.connect("http")?;
//! client.send("GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")?;
//! assert_eq!(client.line()?, "HTTP/1.1 200 OK");
//! while !client.line()?.is_empty() {}
//! client.finish()?;
//! assert_eq!(client.rest()?, "visitor 1");
//! # Ok::<(), Fault>(())
//! ```

mod connection;
mod guard;
mod here;
mod shown;
mod sign_ins;
mod visitor;

pub use axum;

pub use self::connection::serve;
pub use self::guard::guard;
pub use self::here::{Failed, Here};
pub use self::sign_ins::{Cookie, SignIns};
pub use self::visitor::Visitor;
