//! Whoever has logged in by a service's own door, attached to perspectives of other services.

use pb::client::{Client, Error, Referenceable, Remote};

use super::authorizer::{Login, Refused, asked};
use super::stream::{Committed, Socket};
use crate::abi::frame::ToHost;
use crate::manifest::Manifest;
use std::sync::Arc;

/// A connection to the host, and who has logged in by it.
#[derive(Debug)]
pub(super) struct Avatar {
    client: Client,
    remote: Remote,
}

fn lost(refused: &Refused) -> Error {
    Error::Lost(refused.message().to_owned())
}

impl Login {
    /// Attaches whoever has logged in to a perspective of a service's, as a client of Perspective Broker's own would be: with this
    /// identity's keys and no others, and its mind, which the service calls. Without a perspective's name, to the first that
    /// there is a key for. It is over when the reference is dropped, when the login ends, or when what it came by is taken away.
    ///
    /// For services that the operator lets (`[service.NAME] may = ["attach"]`). What a call brings about elsewhere leaves when
    /// every change of this service's own states before it is committed.
    ///
    /// In the original: `IdentityWrapper.attach`.
    ///
    /// # Errors
    /// When the operator does not let it, or the login has ended ([`Error::Lost`]); when there is no key, or no such service
    /// ([`Error::Failure`], as Perspective Broker has it); what the service refuses with.
    ///
    /// ```no_run
    /// # async fn run(login: plugin_api::Login) -> Result<(), plugin_api::client::Error> {
    /// use std::sync::Arc;
    /// use plugin_api::client::Call;
    ///
    /// let todo = login.attach("todo", None, None).await?;
    /// let number: usize = todo.call("add", &("milk",)).await?.read()?;
    ///
    /// let mind = |call: Call| async move {
    ///     println!("chat: {}{}", call.method(), call.values()?.0);
    ///     Ok(())
    /// };
    /// let chat = login.attach("chat", Some("alice"), Some(Arc::new(mind))).await?;
    /// # Ok(()) }
    /// ```
    pub async fn attach(
        &self,
        service: &str,
        perspective: Option<&str>,
        mind: Option<Arc<dyn Referenceable>>,
    ) -> Result<Remote, Error> {
        let avatar = self.avatar().await?;
        let mind = mind.map(|mind| avatar.client.register_shared(mind));
        avatar.remote.call("attach", &(service, perspective, mind)).await?.remote()
    }

    /// The identity's keyring: for each key a service's name, and a perspective's.
    ///
    /// # Errors
    /// As [`Login::attach`].
    pub async fn keys(&self) -> Result<Vec<(String, String)>, Error> {
        Ok(self.avatar().await?.remote.call("keys", &()).await?.read()?)
    }

    /// What a service that the identity has a key for says of itself: its methods, their parameters and what they are for.
    ///
    /// # Errors
    /// As [`Login::attach`].
    ///
    /// ```no_run
    /// # async fn run(login: plugin_api::Login) -> Result<(), plugin_api::client::Error> {
    /// for (service, perspective) in login.keys().await? {
    ///     let manifest = login.describe(&service).await?;
    ///     println!("{service}/{perspective}: {} methods", manifest.methods.len());
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn describe(&self, service: &str) -> Result<Manifest, Error> {
        Ok(self.avatar().await?.remote.call("describe", &(service,)).await?.read()?)
    }

    /// The way there: one connection to the host for all that is attached by this login. One that is lost is made again.
    async fn avatar(&self) -> Result<Arc<Avatar>, Error> {
        let mut kept = self.0.avatar.lock().await;
        if let Some(avatar) = kept.as_ref().filter(|avatar| !avatar.client.is_closed()) {
            return Ok(Arc::clone(avatar));
        }
        let avatar = Arc::new(self.connect().await?);
        *kept = Some(Arc::clone(&avatar));
        Ok(avatar)
    }

    async fn connect(&self) -> Result<Avatar, Error> {
        let login = self.number();
        let lent = asked(self.posts(), move |core, request| core.push(&ToHost::Attach { request, login })).await;
        let own = lent.map_err(|refused| lost(&refused))?.descriptor;
        let own = own.ok_or_else(|| Error::Lost("there is no descriptor left".to_owned()))?;
        let socket = Socket::new(own, false).map_err(|error| Error::Lost(error.to_string()))?;
        let client = Client::new(Committed::new(socket)).await?;
        let remote = client.root().call("loginWithin", &()).await?.remote()?;
        Ok(Avatar { client, remote })
    }
}
