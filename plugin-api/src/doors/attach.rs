//! Attaches whoever has logged in by a service's own door to perspectives of other services.

use pb::client::{Client, Error, Referenceable, Remote};

use super::authorizer::{Login, Refused, asked};
use super::stream::{Committed, Socket};
use crate::abi::frame::ToHost;
use crate::manifest::Manifest;
use std::sync::Arc;

/// A connection to the host, and the identity that has logged in on it.
#[derive(Debug)]
pub(super) struct Avatar {
    client: Client,
    remote: Remote,
}

fn lost(refused: &Refused) -> Error {
    Error::Lost(refused.message().to_owned())
}

impl Login {
    /// Attaches whoever has logged in to a perspective of a service, as a Perspective Broker client would be attached: with this
    /// identity's keys and no others, and with its mind, which the service calls. Without the name of a perspective, the first
    /// one that there is a key for is chosen. The attachment ends when the reference is dropped, when the login ends, or when the
    /// login is revoked.
    ///
    /// Only for services that the operator allows to attach (`[service.NAME] may = ["attach"]`). A call leaves once every earlier
    /// change of this service's own states is committed.
    ///
    /// In Twisted: `IdentityWrapper.attach`.
    ///
    /// # Errors
    /// [`Error::Lost`] if the operator does not allow it, or if the login has ended. [`Error::Failure`], as in Perspective
    /// Broker, if there is no key or no such service. The error of the service, if it refuses.
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

    /// The identity's keyring: for each key, the name of a service and the name of a perspective.
    ///
    /// # Errors
    /// As [`Login::attach`].
    pub async fn keys(&self) -> Result<Vec<(String, String)>, Error> {
        Ok(self.avatar().await?.remote.call("keys", &()).await?.read()?)
    }

    /// The description of a service that the identity has a key for: its methods, their parameters and what they are for.
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

    /// The connection to the host that all attachments of this login share. A lost connection is replaced.
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
