//! A host inside another program, with linked services, the program's own identities, and a door.
//!
//! ```
//! use credhost::embed::{Builder, Password};
//! use plugin_api::prelude::*;
//!
//! #[derive(Default)]
//! struct Greeters;
//!
//! /// Greets everyone who has the key.
//! #[service("greeter", save = "never")]
//! impl Service for Greeters {
//!     type Perspective = Greeter;
//! }
//!
//! #[derive(Default)]
//! struct Greeter;
//!
//! #[perspective]
//! impl Greeter {
//!     fn greet(&self, call: &Call) -> String {
//!         format!("Hello, {}", call.attachment().identity())
//!     }
//! }
//!
//! # #[tokio::main(flavor = "current_thread")]
//! # async fn main() -> Result<(), Box<dyn std::error::Error>> {
//! let host = Builder::new()
//!     .service::<Greeters>()
//!     .identity("alice", &Password::new("alice-pw"), &["greeter"])
//!     .serve("127.0.0.1:0")
//!     .await?;
//!
//! let stream = tokio::net::TcpStream::connect(host.address()).await?;
//! let client = pb::client::Client::new(stream).await?;
//! let greeter = client.login("alice/greeter", "alice-pw", None).await?;
//! assert_eq!(greeter.call("greet", &()).await?.read::<String>()?, "Hello, alice");
//! host.close().await;
//! # Ok(()) }
//! ```
//!
//! The rest of this crate is the program `credhost`. It may change at any time.

use std::io;
use std::net::{SocketAddr, ToSocketAddrs};
use std::pin::Pin;
use std::sync::{Arc, Weak};

use plugin_api::Service;

use crate::config::ListenerSettings;
use crate::cred::login::Login;
use crate::doors::{Doors, Surroundings};
use crate::listener::{Endpoint, Listener};
use crate::loader::fault::LibraryFault;
use crate::multiservice::context::HostContext;
use crate::multiservice::slot::Slot;
use crate::multiservice::{MultiService, NotAdded};
use crate::sessions::Sessions;
use crate::successor::Inherited;

pub use crate::cred::{
    Answer, Authorizer, AuthorizerError, Credential, CredentialError, DefaultAuthorizer, DuplicateIdentity, Identity,
    Key, Keyring, Name, NameError, Password, ProofBy, PublicKey,
};
pub use crate::session::Limits;
pub use crate::store::{MemoryStore, Store};

type Loading = Pin<Box<dyn Future<Output = Result<Arc<Slot>, LibraryFault>>>>;
type Load = Box<dyn FnOnce(HostContext) -> Loading>;

/// The configuration of a host before it serves.
#[derive(Default)]
pub struct Builder {
    services: Vec<Load>,
    people: Vec<(String, Password, Vec<String>)>,
    authorizer: Option<Arc<dyn Authorizer>>,
    store: Option<Arc<dyn Store>>,
    limits: Limits,
    listeners: Vec<(String, String, String)>,
}

impl std::fmt::Debug for Builder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Builder").field("services", &self.services.len()).finish_non_exhaustive()
    }
}

/// The reason why a host does not serve.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum EmbedError {
    /// A service cannot be created, or does not start.
    #[error("the service {0} does not serve: {1}")]
    Service(String, String),
    /// Two services have the same name.
    #[error(transparent)]
    Taken(#[from] NotAdded),
    /// The name of an identity, or of one of its keys, is not valid.
    #[error(transparent)]
    Name(#[from] NameError),
    /// Two identities have the same name.
    #[error(transparent)]
    Duplicate(#[from] DuplicateIdentity),
    /// A password cannot be used.
    #[error(transparent)]
    Password(#[from] CredentialError),
    /// [`Builder::identity`] and [`Builder::authorizer`] were both called. An authorizer has its own identities.
    #[error("identities and an authorizer are both set; an authorizer has its own identities: set only one of them")]
    Both,
    /// A service's own door cannot be opened.
    #[error("{0}")]
    Listener(String),
    /// Listening on the address failed, or the system provides no randomness.
    #[error(transparent)]
    Io(#[from] io::Error),
}

impl Builder {
    /// A host without services and without identities.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Adds a service that is linked into this program.
    #[must_use]
    pub fn service<S: Service>(mut self) -> Self {
        self.services.push(Box::new(|context| Box::pin(async move { Slot::linked::<S>(&context).await })));
        self
    }

    /// Adds an identity, with the key to its own perspective of each of these services.
    #[must_use]
    pub fn identity(mut self, name: &str, password: &Password, services: &[&str]) -> Self {
        let services = services.iter().map(|service| (*service).to_owned()).collect();
        self.people.push((name.to_owned(), password.clone(), services));
        self
    }

    /// Sets the authorizer, which provides the identities instead of [`Builder::identity`], for example from a file, a database
    /// or a directory.
    #[must_use]
    pub fn authorizer(mut self, authorizer: impl Authorizer + 'static) -> Self {
        self.authorizer = Some(Arc::new(authorizer));
        self
    }

    /// Sets the store for the states of perspectives. The default is memory.
    #[must_use]
    pub fn store(mut self, store: Arc<dyn Store>) -> Self {
        self.store = Some(store);
        self
    }

    /// Sets the limits for clients.
    #[must_use]
    pub fn limits(mut self, limits: Limits) -> Self {
        self.limits = limits;
        self
    }

    /// Sets the address of a service's own door: `127.0.0.1:6667` or `unix:/run/chat.sock`. `listener` is the service's name for
    /// the door.
    #[must_use]
    pub fn listen(mut self, service: &str, listener: &str, address: &str) -> Self {
        self.listeners.push((service.to_owned(), listener.to_owned(), address.to_owned()));
        self
    }

    /// Starts the services, and serves Perspective Broker on this address, on threads of its own. Call it on a tokio runtime,
    /// which the services need not share.
    ///
    /// # Errors
    /// Returns an error if a service does not start, an identity is not valid, or the address cannot be listened on. Nothing
    /// serves then.
    pub async fn serve(self, address: impl ToSocketAddrs) -> Result<Host, EmbedError> {
        let (key, decoy) = (crate::cred::MasterKey::new(random()?), random()?);
        let authorizer = match self.authorizer {
            Some(_) if !self.people.is_empty() => return Err(EmbedError::Both),
            Some(authorizer) => authorizer,
            None => Arc::new(authorizer(self.people, &key)?),
        };
        let mut context = HostContext::new(self.store.unwrap_or_else(|| Arc::new(MemoryStore::new())));
        let services = MultiService::new("pb");
        let login = Login::new(authorizer, key, &decoy);
        let (gate, sessions) = (Endpoint::gate_before(&login, &context), Sessions::new());
        let read = |(service, name, address): &(String, String, String)| {
            ListenerSettings::at(service, name, address).map_err(EmbedError::Listener)
        };
        let listeners = self.listeners.iter().map(read).collect::<Result<Vec<_>, _>>()?;
        let around = Surroundings {
            services: Arc::downgrade(&services) as Weak<_>,
            login: login.clone(),
            accounts: None,
            gate: Arc::clone(&gate),
            sessions: Arc::clone(&sessions),
            router: Arc::clone(&context.router),
            memory: Arc::clone(&context.memory),
            certificates: None,
            limits: self.limits,
        };
        let doors = Doors::new(around, listeners, &Inherited::from_environment()).map_err(EmbedError::Listener)?;
        context.doors = Arc::clone(&doors) as Arc<_>;
        for load in self.services {
            let loaded = load(context.clone()).await;
            let slot = loaded.map_err(|why| EmbedError::Service("that is linked in".to_owned(), why.to_string()))?;
            services.add(slot).await?;
        }
        if let Some((name, why)) = services.start().await.into_iter().next() {
            services.stop().await;
            return Err(EmbedError::Service(name, why.to_string()));
        }
        let before = (gate, sessions);
        let root = Endpoint::with_gate(login, Arc::clone(&services), context, self.limits, before);
        let listening = root.listen(address).and_then(|listener| {
            doors.open((&root, &listener))?;
            Ok(listener)
        });
        match listening {
            Ok(listener) => Ok(Host { services, listener, doors }),
            Err(error) => {
                services.stop().await;
                Err(error.into())
            }
        }
    }
}

fn random<const N: usize>() -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(bytes)
}

fn authorizer(
    people: Vec<(String, Password, Vec<String>)>,
    key: &crate::cred::MasterKey,
) -> Result<DefaultAuthorizer, EmbedError> {
    let authorizer = DefaultAuthorizer::new();
    for (name, password, services) in people {
        let mut identity = Identity::new(&name)?;
        identity.set_password(&password, key, &crate::cred::Entropy { salt: random()?, nonce: random()? })?;
        for service in services {
            identity.keyring.add(Key::new(&service, &name)?);
        }
        authorizer.add(identity)?;
    }
    Ok(authorizer)
}

/// A running host.
pub struct Host {
    services: Arc<MultiService>,
    listener: Listener,
    doors: Arc<Doors>,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("address", &self.address()).finish_non_exhaustive()
    }
}

impl Host {
    /// The address on which it serves. If port 0 was given, this has the port that the system has chosen.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.listener.address()
    }

    /// The address of one of a service's own doors, if that is a TCP address.
    #[must_use]
    pub fn door(&self, service: &str, listener: &str) -> Option<SocketAddr> {
        let all = self.doors.status();
        let own = all.into_iter().filter(|one| one.service == service && one.name == listener);
        own.filter_map(|one| one.address?.parse().ok()).next()
    }

    /// Closes the door, waits for the calls in flight to end, and stops the services. States that need saving are saved.
    pub async fn close(self) {
        self.listener.close();
        self.services.stop().await;
        self.doors.close();
    }
}

#[cfg(test)]
mod tests {
    use plugin_api::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Room;

    #[service("room", save = "never")]
    impl Service for Room {
        type Perspective = Guest;
    }

    #[derive(Default)]
    struct Guest;

    #[perspective]
    impl Guest {}

    #[tokio::test]
    async fn an_invalid_builder_returns_an_error_and_does_not_serve() {
        let password = Password::new("x");
        let said = async |builder: Builder| builder.serve("127.0.0.1:0").await.unwrap_err().to_string();
        assert!(said(Builder::new().service::<Room>().service::<Room>()).await.contains("room"));
        assert!(said(Builder::new().identity("a/b", &password, &[])).await.contains("it has a `/`"));
        let twice = Builder::new().identity("a", &password, &[]).identity("a", &password, &[]);
        assert!(said(twice).await.contains("already an identity named a"));
        let both = Builder::new().identity("a", &password, &[]).authorizer(DefaultAuthorizer::new());
        assert!(said(both).await.contains("only one of them"));
        assert!(said(Builder::new().listen("room", "irc", "6667")).await.contains("is not an address"));
        assert!(Builder::new().serve("no.such.host.invalid:1").await.is_err());
    }
}
