//! Asks the host, which keeps the identities, who is at the other end of a stream.

use std::os::fd::OwnedFd;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use tokio::sync::{Notify, oneshot};
use zeroize::Zeroizing;

use super::remembered::Unclaimed;
use super::stream::{StreamCell, sealed};
use super::table::Posts;
use crate::abi::frame::ToHost;
use crate::runtime::core::{Core, Reply};

/// Has the host check who a client is. It treats these logins as every login, whatever door it comes by: with the same throttle,
/// the same time for a refusal, and a line in the audit trail. From [`Context::authorizer`](crate::Context::authorizer).
///
/// In Twisted: `twisted.cred.authorizer`, "the authorizer for some number of non-PB services".
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
/// use plugin_api::{Door, Input, Transport};
///
/// #[derive(Default)]
/// struct Vault;
///
/// #[service("vault", save = "never")]
/// impl Service for Vault {
///     type Perspective = Nobody;
///
///     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
///         context.serve::<Knock>("knock")
///     }
/// }
///
/// /// `name password`, once.
/// struct Knock;
///
/// impl Door for Knock {
///     type Service = Vault;
///
///     fn opened(_: &Context<Vault>, _: &Transport) -> Result<Self> {
///         Ok(Self)
///     }
///
///     async fn received(&mut self, context: &Context<Vault>, transport: &Transport, input: &mut Input) -> Result<()> {
///         while let Some(line) = input.line() {
///             let (name, password) = line.split_once(' ').unwrap_or_default();
///             match context.authorizer().password(transport, name, password).await {
///                 Ok(login) => transport.write(format!("good day {}\n", login.identity()).as_bytes()),
///                 Err(refused) => transport.write(format!("{refused}\n").as_bytes()),
///             }
///         }
///         Ok(())
///     }
/// }
///
/// # #[derive(Default)]
/// # struct Nobody;
/// # #[perspective]
/// # impl Nobody {}
/// let host = TestHost::<Vault>::start()?;
/// host.identity("alice", "correct horse", &["alice"]);
/// let mut client = host.connect("knock")?;
/// client.send("alice wrong\n")?;
/// assert_eq!(client.line()?, "wrong name or password");
/// client.send("alice correct horse\n")?;
/// assert_eq!(client.line()?, "good day alice");
/// // When a login is revoked, its connection ends at once.
/// host.revoke("alice");
/// assert!(client.line().is_err());
/// # Ok::<(), Fault>(())
/// ```
#[derive(Debug, Clone)]
pub struct Authorizer {
    posts: Option<Posts>,
}

/// Why a login is refused. It says no more than the client may know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    message: String,
    wait: u64,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Refused {}

impl Refused {
    pub(crate) fn new(message: impl Into<String>, wait: u64) -> Self {
        Self { message: message.into(), wait }
    }

    /// What the client may be told.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// After how many seconds the host looks at the next attempt. 0: at once.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::Stream;
    /// # async fn log_in<S: Service>(context: &Context<S>, stream: &Stream) -> Option<String> {
    /// let authorizer = context.authorizer();
    /// match authorizer.password(stream, "alice", "correct horse").await {
    ///     Ok(login) => Some(format!("{} has {}", login.identity(), login.perspectives().join(", "))),
    ///     Err(refused) if refused.wait() > 0 => Some(format!("try again in {} seconds", refused.wait())),
    ///     Err(refused) => Some(refused.message().to_owned()),
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn wait(&self) -> u64 {
        self.wait
    }
}

/// The part of the host's answer that can go to other threads.
pub(super) struct Answered {
    pub(super) login: Option<Login>,
    pub(super) descriptor: Option<OwnedFd>,
    /// A name, a token, or what is to be signed.
    pub(super) bytes: Vec<u8>,
    /// The login again, if a token came with it.
    pub(super) unclaimed: Option<Unclaimed>,
}

/// The outcome of a request to the host.
type Asked = Result<Answered, Refused>;

pub(super) fn ended() -> Refused {
    Refused::new("the service is ending", 0)
}

/// Sends a request to the host, from any thread, and waits for the answer.
pub(super) async fn asked(posts: &Posts, ask: impl FnOnce(&Core, u64) + Send + 'static) -> Asked {
    let (done, answer) = oneshot::channel();
    let posted = posts.send(Box::new(move |core: &Rc<Core>| {
        let (request, answer) = core.ask();
        ask(core, request);
        tokio::task::spawn_local(async move {
            let answer = answer.await;
            let answered = |Reply { login, descriptor, bytes, .. }: Reply| {
                let unclaimed = login.clone().filter(|_| !bytes.is_empty()).map(Unclaimed::new);
                Answered { login, descriptor, bytes, unclaimed }
            };
            // The caller may have given up.
            let _ =
                done.send(answer.map(answered).map_err(|fault| {
                    Refused::new(fault.message(), fault.fields::<Wait>().map_or(0, |wait| wait.wait))
                }));
        });
    }));
    if posted.is_err() {
        return Err(ended());
    }
    answer.await.unwrap_or_else(|_| Err(ended()))
}

/// Carries the waiting time of a refusal to the caller.
#[derive(serde::Serialize, serde::Deserialize)]
pub(crate) struct Wait {
    pub(crate) wait: u64,
}

impl Authorizer {
    pub(crate) fn new(core: Option<&Core>) -> Self {
        Self { posts: core.map(|core| core.doors.posts()) }
    }

    /// Logs a client in with a password, or with a token in its place. From then on the stream belongs to the login: when the
    /// login is revoked, the host closes the stream.
    ///
    /// # Errors
    /// If the password is wrong, or if the host does not check it: it came in the clear where others can listen, or too many
    /// attempts have failed.
    pub async fn password(
        &self,
        from: &impl super::Caller,
        name: impl Into<String>,
        password: impl Into<String>,
    ) -> Result<Login, Refused> {
        self.prove(from, 1, name.into(), Zeroizing::new(password.into())).await
    }

    /// Logs a client in with a token. The token says whose it is.
    ///
    /// # Errors
    /// As [`Authorizer::password`].
    pub async fn token(&self, from: &impl super::Caller, token: impl Into<String>) -> Result<Login, Refused> {
        self.prove(from, 2, String::new(), Zeroizing::new(token.into())).await
    }

    /// Logs a client in with the certificate that it has shown in TLS ([`Peer::certificate`](crate::Peer::certificate)). The
    /// certificate's key must be one of the identity's public keys; it does not matter who has signed the certificate. If `name`
    /// is empty, the identity is the one that the certificate names (the subject's common name).
    ///
    /// In IRC and mail: SASL's `EXTERNAL` (RFC 4422, appendix A).
    ///
    /// # Errors
    /// As [`Authorizer::password`]; or if the client has shown no certificate.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    /// use plugin_api::{Door, Input, Transport};
    ///
    /// # #[derive(Default)]
    /// # struct Vault;
    /// # #[service("vault", save = "never")]
    /// # impl Service for Vault {
    /// #     type Perspective = Nobody;
    /// #     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
    /// #         context.serve::<Knock>("knock")
    /// #     }
    /// # }
    /// # #[derive(Default)]
    /// # struct Nobody;
    /// # #[perspective]
    /// # impl Nobody {}
    /// /// A name, and nothing else.
    /// struct Knock;
    ///
    /// impl Door for Knock {
    ///     type Service = Vault;
    ///
    ///     fn opened(_: &Context<Vault>, _: &Transport) -> Result<Self> {
    ///         Ok(Self)
    ///     }
    ///
    ///     async fn received(&mut self, context: &Context<Vault>, transport: &Transport, input: &mut Input) -> Result<()> {
    ///         while let Some(name) = input.line() {
    ///             match context.authorizer().certificate(transport, &*name).await {
    ///                 Ok(login) => transport.write(format!("good day {}\n", login.identity()).as_bytes()),
    ///                 Err(refused) => transport.write(format!("{refused}\n").as_bytes()),
    ///             }
    ///         }
    ///         Ok(())
    ///     }
    /// }
    ///
    /// let host = TestHost::<Vault>::start()?;
    /// host.identity("alice", "correct horse", &["alice"]);
    /// host.has_key("alice", "ssh-ed25519 AAAA");
    /// let mut alice = host.connect_with_certificate("knock", "ssh-ed25519 AAAA")?;
    /// alice.send("alice\n")?;
    /// assert_eq!(alice.line()?, "good day alice");
    /// let mut other = host.connect_with_certificate("knock", "ssh-ed25519 BBBB")?;
    /// other.send("alice\n")?;
    /// assert_eq!(other.line()?, "wrong name or password");
    /// # Ok::<(), Fault>(())
    /// ```
    pub async fn certificate(&self, from: &impl super::Caller, name: impl Into<String>) -> Result<Login, Refused> {
        self.prove(from, 7, name.into(), Zeroizing::default()).await
    }

    /// Begins a login with a public key in OpenSSH's format (`ssh-ed25519 AAAA…`). Returns what the client must sign, whether any
    /// identity has this key or not. The challenge is valid until the next one for the same stream.
    ///
    /// # Errors
    /// If `public_key` is not a public key.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Login, Refused, Stream};
    /// # async fn ask(stream: &mut Stream, bytes: &[u8]) -> Vec<u8> { Vec::new() }
    /// # async fn log_in<S: Service>(context: Context<S>, mut stream: Stream) -> Result<Login, Refused> {
    /// let challenge = context.authorizer().challenge(&stream, "alice", "ssh-ed25519 AAAA…").await?;
    /// let signature = ask(&mut stream, challenge.bytes()).await;
    /// challenge.respond(signature).await
    /// # }
    /// ```
    pub async fn challenge(
        &self,
        from: &impl super::Caller,
        name: impl Into<String>,
        public_key: impl Into<String>,
    ) -> Result<Challenge, Refused> {
        let name = name.into();
        let key = Zeroizing::new(public_key.into().into_bytes());
        let bytes = self.ask(from, 4, name.clone(), key).await?.bytes;
        let caller = Asking { cell: cell(from)?, source: sealed::Caller::source(from).to_owned() };
        Ok(Challenge { authorizer: self.clone(), caller, name, bytes })
    }

    /// Logs a client in with a public key, in OpenSSH's format, that the service vouches for: the client has proven to the
    /// service that it has the private key. For protocols with a challenge of their own, such as SSH. The host takes the
    /// service's word only if the operator allows that (`[service.NAME] may = ["vouch"]`). The host itself checks that the key is
    /// one of the identity's.
    ///
    /// # Errors
    /// As [`Authorizer::password`]; or if the operator does not allow it.
    ///
    /// ```no_run
    /// # use plugin_api::{Authorizer, Refused, Stream};
    /// # async fn log_in(authorizer: &Authorizer, stream: &Stream, token: Option<String>) -> Result<String, Refused> {
    /// let login = match token {
    ///     Some(token) => authorizer.token(stream, token).await?,
    ///     // The protocol has verified that the client has the private key.
    ///     None => {
    ///         let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJMA1kZbEDgk6lZyhOgH0PQRRH3RNYlE2PpmFEUcrSjM";
    ///         authorizer.key(stream, "alice", key).await?
    ///     }
    /// };
    /// # Ok(login.identity().to_owned()) }
    /// ```
    pub async fn key(
        &self,
        from: &impl super::Caller,
        name: impl Into<String>,
        public_key: impl Into<String>,
    ) -> Result<Login, Refused> {
        self.prove(from, 3, name.into(), Zeroizing::new(public_key.into())).await
    }

    async fn prove(
        &self,
        from: &impl super::Caller,
        kind: u64,
        name: String,
        mut secret: Zeroizing<String>,
    ) -> Result<Login, Refused> {
        let secret = Zeroizing::new(std::mem::take(&mut *secret).into_bytes());
        self.log_in(from, kind, name, secret).await
    }

    async fn log_in(
        &self,
        from: &impl super::Caller,
        kind: u64,
        name: String,
        secret: Zeroizing<Vec<u8>>,
    ) -> Result<Login, Refused> {
        let login = self.ask(from, kind, name, secret).await?.login.ok_or_else(ended)?;
        cell(from)?.set_login(Arc::clone(&login.0));
        Ok(login)
    }

    pub(super) async fn ask(
        &self,
        from: &impl super::Caller,
        kind: u64,
        name: String,
        secret: Zeroizing<Vec<u8>>,
    ) -> Asked {
        let posts = self.posts.as_ref().ok_or_else(ended)?;
        let (stream, source) = (cell(from)?.number, sealed::Caller::source(from).to_owned());
        asked(posts, move |core, request| {
            let (name, secret, source) = (name.as_str(), secret.as_slice(), source.as_str());
            let size = name.len() + secret.len() + source.len() + 64;
            core.push_secret(&ToHost::Authenticate { request, stream, kind, name, secret, source }, size);
        })
        .await
    }
}

/// The caller that asked for a challenge, kept for its response.
#[derive(Debug)]
struct Asking {
    cell: Arc<StreamCell>,
    source: String,
}

impl super::Caller for Asking {}

impl sealed::Caller for Asking {
    fn cell(&self) -> Option<Arc<StreamCell>> {
        Some(Arc::clone(&self.cell))
    }

    fn source(&self) -> &str {
        &self.source
    }
}

pub(super) fn cell(from: &impl super::Caller) -> Result<Arc<StreamCell>, Refused> {
    sealed::Caller::cell(from).ok_or_else(|| Refused::new("the client has gone", 0))
}

/// The bytes that a client must sign to prove that it has a key: from [`Authorizer::challenge`].
#[derive(Debug)]
pub struct Challenge {
    authorizer: Authorizer,
    caller: Asking,
    name: String,
    bytes: Vec<u8>,
}

impl Challenge {
    /// The bytes to sign.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// Logs the client in with its signature, in the format of SSH's wire protocol: the name of the algorithm and the signature's
    /// bytes, each preceded by its length (RFC 4253, 6.6).
    ///
    /// # Errors
    /// As [`Authorizer::password`].
    pub async fn respond(self, signature: impl Into<Vec<u8>>) -> Result<Login, Refused> {
        let signature = Zeroizing::new(signature.into());
        self.authorizer.log_in(&self.caller, 5, self.name, signature).await
    }
}

/// A client's login. Clones are the same login. It ends when the last clone is dropped and its streams are closed.
#[derive(Debug, Clone)]
pub struct Login(pub(super) Arc<LoginCell>);

#[derive(Debug)]
pub(super) struct LoginCell {
    number: u64,
    identity: String,
    perspectives: Vec<String>,
    ended: AtomicBool,
    told: Notify,
    posts: Posts,
    carried: AtomicBool,
    /// The stream that belongs to it; 0: none does yet.
    stream: AtomicU64,
    /// The connection by which it attaches to other services.
    #[cfg(feature = "attach")]
    pub(super) avatar: tokio::sync::Mutex<Option<Arc<super::attach::Avatar>>>,
}

impl LoginCell {
    pub(super) fn new(number: u64, identity: &str, perspectives: Vec<String>, posts: Posts) -> Arc<Self> {
        let (ended, carried, stream) = (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
        Arc::new(Self {
            number,
            identity: identity.to_owned(),
            perspectives,
            ended,
            told: Notify::new(),
            posts,
            carried,
            stream,
            #[cfg(feature = "attach")]
            avatar: tokio::sync::Mutex::default(),
        })
    }

    /// Notes the stream that belongs to the login.
    pub(super) fn has(&self, stream: u64) {
        self.stream.store(stream, Ordering::Relaxed);
    }

    /// The stream that belongs to it.
    pub(super) fn stream(&self) -> u64 {
        self.stream.load(Ordering::Relaxed)
    }

    /// Marks the login as revoked, and wakes those that wait for that.
    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Relaxed);
        self.told.notify_waiters();
    }

    /// Marks the login as handed on to other code.
    pub(super) fn carry(&self) {
        self.carried.store(true, Ordering::Relaxed);
    }
}

impl Drop for LoginCell {
    fn drop(&mut self) {
        let (number, carried) = (self.number, *self.carried.get_mut());
        // If the service has ended, the host knows already.
        let _ = self.posts.send(Box::new(move |core| core.doors.logged_out(core, number, !carried)));
    }
}

impl Login {
    pub(super) fn number(&self) -> u64 {
        self.0.number
    }

    pub(super) fn posts(&self) -> &Posts {
        &self.0.posts
    }

    /// The identity's name.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.0.identity
    }

    /// The names of its perspectives on this service: those that it has keys for. There is at least one.
    #[must_use]
    pub fn perspectives(&self) -> &[String] {
        &self.0.perspectives
    }

    /// Whether this is the same login.
    #[cfg(feature = "web")]
    pub(crate) fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Whether the login was revoked: its identity, its credential, or its keys for this service were taken away.
    #[must_use]
    pub fn is_ended(&self) -> bool {
        self.0.ended.load(Ordering::Relaxed)
    }

    /// Waits until the login is revoked.
    ///
    /// ```no_run
    /// # use plugin_api::{Login, Stream};
    /// # use tokio::io::AsyncWriteExt;
    /// # async fn watch(login: Login, mut stream: Stream) {
    /// // Until the operator revokes the login. The stream is closed then, too.
    /// login.ended().await;
    /// assert!(login.is_ended());
    /// assert!(stream.write_all(b"good bye").await.is_err());
    /// # }
    /// ```
    pub async fn ended(&self) {
        let told = self.0.told.notified();
        if !self.is_ended() {
            told.await;
        }
    }
}
