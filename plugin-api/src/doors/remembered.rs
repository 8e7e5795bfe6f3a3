//! Logins that outlive their streams, and the account of whoever has logged in.

use std::time::Duration;

use serde::Deserialize;
use zeroize::Zeroizing;

use super::Caller;
use super::authorizer::{Answered, Authorizer, Login, Refused, asked, cell, ended};
use super::stream::sealed;
use crate::abi::frame::ToHost;
use crate::runtime::core::Core;

/// How long a remembered login lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lasts {
    /// How long it may go unused.
    pub idle: Duration,
    /// How long it lasts at most.
    pub longest: Duration,
}

impl Authorizer {
    /// Has the host remember a login, so that it outlives the stream that it came by. For protocols whose clients open one stream
    /// after another and show a token each time, as browsers do with cookies. Returns a login that belongs to no stream, and a
    /// token for the client alone. [`Authorizer::resume`] takes the token, also after the code was replaced and after the host
    /// has restarted. The remembered login ends when what it began with is taken away: the identity, the credential, or the keys
    /// for this service.
    ///
    /// If this future is dropped before it returns, the host forgets the login again. If the token is then lost on its way to the
    /// client, the login stays until it expires; its identity can end it before ([`Login::end_remembered`]).
    ///
    /// # Errors
    /// If the login has ended, or the host cannot record it.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Lasts, Login, Refused, Stream};
    /// # use std::time::Duration;
    /// # async fn sign_in<S: Service>(context: Context<S>, stream: Stream) -> Result<(), Refused> {
    /// let authorizer = context.authorizer();
    /// let login = authorizer.password(&stream, "alice", "correct horse").await?;
    /// let hour = Duration::from_secs(3600);
    /// let (login, token) = authorizer.remember(&stream, login, Lasts { idle: hour, longest: 12 * hour }).await?;
    /// // On the next stream of the same client.
    /// let again: Login = authorizer.resume(&stream, token.as_str()).await?;
    /// again.forget().await?;
    /// # Ok(()) }
    /// ```
    pub async fn remember(
        &self,
        from: &impl Caller,
        login: Login,
        lasts: Lasts,
    ) -> Result<(Login, Zeroizing<String>), Refused> {
        let (number, idle, longest) = (login.number(), lasts.idle.as_secs(), lasts.longest.as_secs());
        let source = sealed::Caller::source(from).to_owned();
        let remember = move |core: &Core, request| {
            let (source, claims) = (source.as_bytes(), &[1][..]);
            core.push(&ToHost::Remember { request, login: number, idle, longest, source, claims });
        };
        // From now on the stream belongs to no login, whatever comes of this: others may use it next.
        cell(from)?.forget_login();
        let Answered { login: remembered, bytes, unclaimed, .. } = asked(login.posts(), remember).await?;
        let told = Zeroizing::new(bytes);
        let token = Zeroizing::new(String::from_utf8_lossy(&told).into_owned());
        let Some(remembered) = remembered else {
            // An older host has only the token.
            return Ok((self.resume(from, token.as_str()).await?, token));
        };
        unclaimed.into_iter().for_each(Unclaimed::claim);
        Ok((remembered, token))
    }

    /// Returns a remembered login by its token: the same login for as long as somebody holds it. Call this again from time to
    /// time, at least once in a tenth of [`Lasts::idle`]: by this the host knows that the login is in use.
    ///
    /// # Errors
    /// If the token belongs to nobody, or the login is over.
    pub async fn resume(&self, from: &impl Caller, token: impl Into<String>) -> Result<Login, Refused> {
        let secret = Zeroizing::new(token.into().into_bytes());
        self.ask(from, 6, String::new(), secret).await?.login.ok_or_else(ended)
    }
}

/// A remembered login whose token nobody has yet. When this is dropped, the host forgets the login.
pub(super) struct Unclaimed(Option<Login>);

impl Unclaimed {
    pub(super) fn new(login: Login) -> Self {
        Self(Some(login))
    }

    /// Somebody has the token: the login stays.
    fn claim(mut self) {
        let Some(login) = self.0.take() else { return };
        let posts = login.posts().clone();
        // If the service has ended, the host forgets the login.
        let _ = posts.send(Box::new(move |core| core.push(&ToHost::Claimed { login: login.number() })));
    }
}

impl Drop for Unclaimed {
    fn drop(&mut self) {
        let Some(login) = self.0.take() else { return };
        let posts = login.posts().clone();
        // If the service has ended, the host forgets the login: nobody has claimed it.
        let _ = posts.send(Box::new(move |core| {
            let (request, _) = core.ask();
            core.push(&ToHost::SignOut { request, login: login.number() });
        }));
    }
}

/// An identity's own account: from [`Login::account`]. Times are seconds since 1970.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct Account {
    /// The credentials of the identity.
    pub credentials: Vec<CredentialShown>,
    /// The connections on which it is logged in now, by all doors.
    pub sessions: Vec<SessionShown>,
    /// Its logins that outlive their streams.
    pub remembered: Vec<RememberedShown>,
    /// Its keyring: for each key, the name of a service and the name of a perspective.
    pub keys: Vec<(String, String)>,
    /// Whether the operator lets people change their credentials here (`may = ["credentials"]`).
    pub changes: bool,
}

/// A credential, without its secret.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct CredentialShown {
    /// "password", "pubkey" or "token".
    pub kind: String,
    /// The label by which people recognize it.
    pub label: String,
    /// When it was added. 0: unknown.
    pub created: u64,
    /// From when on it is no longer accepted.
    pub expires: Option<u64>,
    /// The fingerprint of a public key, in OpenSSH's format.
    pub fingerprint: Option<String>,
}

/// A connection on which the identity has logged in.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct SessionShown {
    /// Its number: for [`Login::end_session`].
    pub number: u64,
    /// The client's address.
    pub peer: String,
    /// When it began.
    pub since: u64,
    /// What it is attached to: a perspective ("todo/alice") or a door ("chat:irc").
    pub perspectives: Vec<String>,
    /// Whether it is this login's own session.
    pub own: bool,
}

/// A remembered login.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
#[non_exhaustive]
pub struct RememberedShown {
    /// Its number: for [`Login::end_remembered`].
    pub number: u64,
    /// The door that it came by, and the address that it came from.
    pub label: String,
    /// When it began.
    pub since: u64,
    /// When it expires, if it is not used again.
    pub expires: u64,
    /// Whether it is this login.
    pub own: bool,
}

impl Login {
    /// Ends this remembered login at once; its token becomes invalid. In a browser: signing out.
    ///
    /// # Errors
    /// If this login is not a remembered one, or the host cannot record its end.
    pub async fn forget(&self) -> Result<(), Refused> {
        let login = self.number();
        asked(self.posts(), move |core, request| core.push(&ToHost::SignOut { request, login })).await.map(drop)
    }

    /// Returns the identity's own account: its credentials, its sessions, its keys. Only for services that the operator allows to
    /// ask (`[service.NAME] may = ["attach"]`).
    ///
    /// # Errors
    /// If the operator does not allow it, or the login has ended.
    ///
    /// ```no_run
    /// # use plugin_api::{Login, Refused, Stream};
    /// # async fn own_page(login: Login, stream: &Stream) -> Result<(), Refused> {
    /// let account = login.account().await?;
    /// for session in account.sessions.iter().filter(|session| !session.own) {
    ///     login.end_session(session.number).await?;
    /// }
    /// for remembered in account.remembered.iter().filter(|remembered| !remembered.own) {
    ///     login.end_remembered(remembered.number).await?;
    /// }
    /// if account.changes {
    ///     let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJMA1kZbEDgk6lZyhOgH0PQRRH3RNYlE2PpmFEUcrSjM";
    ///     let label = login.add_key(stream, "correct horse", "laptop", key).await?;
    ///     login.remove_credential(stream, "correct horse", "pubkey", &label).await?;
    ///     login.change_password(stream, "correct horse", "battery staple").await?;
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn account(&self) -> Result<Account, Refused> {
        let login = self.number();
        let told = asked(self.posts(), move |core, request| core.push(&ToHost::Account { request, login })).await?;
        jelly::from_slice(&told.bytes).map_err(|error| Refused::new(format!("an account cannot be read: {error}"), 0))
    }

    /// Ends one of the identity's sessions, by its number.
    ///
    /// # Errors
    /// As [`Login::account`]; or if the identity has no such session.
    pub async fn end_session(&self, session: u64) -> Result<(), Refused> {
        self.end_own(false, session).await
    }

    /// Ends one of the identity's remembered logins, by its number.
    ///
    /// # Errors
    /// As [`Login::account`]; or if the identity has no such login.
    pub async fn end_remembered(&self, number: u64) -> Result<(), Refused> {
        self.end_own(true, number).await
    }

    /// Changes the identity's password. `current` is the present password, which the host checks as in every login. Everything
    /// that began with the old password ends, including this login if it did. Only for services that the operator allows to
    /// change credentials (`[service.NAME] may = ["credentials"]`).
    ///
    /// # Errors
    /// If `current` is wrong, or the host does not check it; if the new password is not good enough (the message says why); or if
    /// the operator does not allow it.
    pub async fn change_password(
        &self,
        from: &impl Caller,
        current: impl Into<String>,
        new: impl Into<String>,
    ) -> Result<(), Refused> {
        self.change_own(from, current.into(), 1, "", new.into()).await.map(drop)
    }

    /// Adds a public key to the identity: in OpenSSH's format, or as a certificate or a key in PEM. Returns the key's label.
    ///
    /// # Errors
    /// As [`Login::change_password`]; or if `key` is not a key.
    pub async fn add_key(
        &self,
        from: &impl Caller,
        current: impl Into<String>,
        label: &str,
        key: impl Into<String>,
    ) -> Result<String, Refused> {
        let told = self.change_own(from, current.into(), 2, label, key.into()).await?;
        Ok(String::from_utf8_lossy(&told).into_owned())
    }

    /// Removes a credential of the identity, by its label. `kind` is "pubkey" or "token". All logins with it end.
    ///
    /// # Errors
    /// As [`Login::change_password`]; or if the identity has no such credential.
    pub async fn remove_credential(
        &self,
        from: &impl Caller,
        current: impl Into<String>,
        kind: &str,
        label: &str,
    ) -> Result<(), Refused> {
        let what = match kind {
            "pubkey" => 3,
            "token" => 4,
            other => return Err(Refused::new(format!("{other} cannot be removed here"), 0)),
        };
        self.change_own(from, current.into(), what, label, String::new()).await.map(drop)
    }

    async fn change_own(
        &self,
        from: &impl Caller,
        current: String,
        what: u64,
        label: &str,
        value: String,
    ) -> Result<Vec<u8>, Refused> {
        let (stream, source) = (cell(from)?.number, sealed::Caller::source(from).to_owned());
        let (login, label) = (self.number(), label.to_owned());
        let (proof, value) = (Zeroizing::new(current.into_bytes()), Zeroizing::new(value.into_bytes()));
        let change = move |core: &Core, request| {
            let (source, proof, label, value) = (&*source, &**proof, &*label, &**value);
            let size = source.len() + proof.len() + label.len() + value.len() + 64;
            let frame = ToHost::ChangeOwn { request, login, stream, source, proof, what, label, value };
            core.push_secret(&frame, size);
        };
        Ok(asked(self.posts(), change).await?.bytes)
    }

    async fn end_own(&self, remembered: bool, number: u64) -> Result<(), Refused> {
        let login = self.number();
        let end = move |core: &Core, request| core.push(&ToHost::EndOwn { request, login, remembered, number });
        asked(self.posts(), end).await.map(drop)
    }
}
