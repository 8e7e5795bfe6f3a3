//! Credentials, and logging in.

use std::sync::Arc;

use jelly::{Bytes, Node};
use md5::{Digest, Md5};
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::connection::Client;
use super::error::Error;
use super::link::Local;
use super::received::{Answer, Remote};

/// What a client logs in with. It can be used several times, for example after the connection was lost.
#[derive(Clone)]
#[non_exhaustive]
pub enum Credential {
    /// A name and a password: [`Credential::password`].
    Password {
        /// `alice`, or `alice/todo` to get a perspective at once.
        name: String,
        /// The password.
        password: Zeroizing<String>,
    },
    /// An access token, which identifies its owner: [`Credential::token`].
    Token(Zeroizing<String>),
    /// A name and an SSH key: [`Credential::key`].
    Key {
        /// As in [`Credential::Password`].
        name: String,
        /// The public key: a line as in `id_ed25519.pub`.
        public_key: String,
        /// Signs its argument. Returns the signature in SSH's wire format.
        sign: Sign,
    },
    /// No identity, on hosts that allow it.
    Anonymous,
}

/// Signs with a private key. The key can stay elsewhere, for example in an agent.
pub type Sign = Arc<dyn Fn(&[u8]) -> Vec<u8> + Send + Sync>;

impl std::fmt::Debug for Credential {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Password { name, .. } => write!(f, "Password({name:?})"),
            Self::Token(_) => f.write_str("Token"),
            Self::Key { name, .. } => write!(f, "Key({name:?})"),
            Self::Anonymous => f.write_str("Anonymous"),
        }
    }
}

impl Credential {
    /// A name and a password.
    #[must_use]
    pub fn password(name: &str, password: &str) -> Self {
        Self::Password { name: name.to_owned(), password: Zeroizing::new(password.to_owned()) }
    }

    /// An access token from `credhost token new`.
    #[must_use]
    pub fn token(token: &str) -> Self {
        Self::Token(Zeroizing::new(token.to_owned()))
    }

    /// A name and an SSH key.
    pub fn key(name: &str, public_key: &str, sign: impl Fn(&[u8]) -> Vec<u8> + Send + Sync + 'static) -> Self {
        Self::Key { name: name.to_owned(), public_key: public_key.to_owned(), sign: Arc::new(sign) }
    }
}

impl Client {
    /// Logs in with any kind of credential. A password is sent as it is if nobody else can read the connection (see
    /// [`Options::private`](super::Options)) and the host supports that. Otherwise it is proved by Twisted's challenge, as in
    /// [`Client::login`].
    ///
    /// # Errors
    /// As [`Client::login`]. Returns [`Error::InTheClear`] for a token that others could read. The token is not sent then.
    ///
    /// ```no_run
    /// # async fn run(client: pb::client::Client, sign: fn(&[u8]) -> Vec<u8>) -> Result<(), pb::client::Error> {
    /// use pb::client::Credential;
    ///
    /// let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJMA1kZbEDgk6lZyhOgH0PQRRH3RNYlE2PpmFEUcrSjM";
    /// for credential in [Credential::token("its token"), Credential::key("alice", key, sign), Credential::Anonymous] {
    ///     let avatar = client.login_with(&credential, None).await?;
    ///     println!("{:?}", avatar.call("keys", &()).await?.read::<Vec<(String, String)>>()?);
    /// }
    /// // The same with a method for each kind.
    /// client.login_password("alice", "her password", None).await?;
    /// client.login_token("its token", None).await?;
    /// client.login_key("alice", key, sign, None).await?;
    /// client.login_anonymous(None).await?;
    /// # Ok(()) }
    /// ```
    pub async fn login_with(&self, credential: &Credential, mind: Option<Local>) -> Result<Remote, Error> {
        match credential {
            Credential::Password { name, password } if self.private => {
                match self.login_password(name, password, mind.clone()).await {
                    // The host is not credhost, and has only Twisted's own methods.
                    Err(Error::Failure(failure)) if failure.is("twisted.spread.flavors.NoSuchMethod") => {
                        self.login(name, password, mind).await
                    }
                    other => other,
                }
            }
            Credential::Password { name, password } => self.login(name, password, mind).await,
            Credential::Token(_) if !self.private => Err(Error::InTheClear),
            Credential::Token(token) => self.login_token(token, mind).await,
            Credential::Key { name, public_key, sign } => {
                self.login_key(name, public_key, |bytes| sign(bytes), mind).await
            }
            Credential::Anonymous => self.login_anonymous(mind).await,
        }
    }

    /// Logs in with a password, by the challenge and response of current Twisted. The name `alice/todo` returns a perspective.
    /// The name `alice` returns an avatar, whose `attach(service, perspective, mind)` returns perspectives. The password itself
    /// is not sent.
    ///
    /// # Errors
    /// Returns `twisted.cred.error.UnauthorizedLogin`, `twisted.cred.error.KeyNotFound`, or the error of a service that refuses.
    pub async fn login(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        // Twisted's checkers expect names as bytes.
        let answer = self.root().call("login", &(Bytes::from(name),)).await?;
        let (challenge, challenger) = challenge(&answer)?;
        let digest: Zeroizing<[u8; 16]> = Zeroizing::new(Md5::digest(password.as_bytes()).into());
        let mut proof = Md5::new();
        proof.update(digest.as_slice());
        proof.update(&challenge);
        let proof = Bytes(proof.finalize().to_vec());
        challenger.call("respond", &(proof, mind)).await?.remote()
    }

    /// Logs in to a credhost host with a password, which is sent as it is: for TLS, or for a connection within one machine. The
    /// host checks it against an argon2id hash, and needs to store nothing weaker. Names are as for [`Client::login`]. Unlike
    /// [`Client::login_with`], this does not check [`Options::private`](super::Options).
    ///
    /// # Errors
    /// As [`Client::login`]. Returns `twisted.cred.error.UnhandledCredentials` if others could listen.
    pub async fn login_password(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call_secretly("loginPassword", &(name, password, mind)).await?.remote()
    }

    /// Logs in to a credhost host with an access token. Returns an avatar, whose `attach(service, perspective, mind)` returns
    /// perspectives. Unlike [`Client::login_with`], this does not check [`Options::private`](super::Options).
    ///
    /// # Errors
    /// As [`Client::login_password`].
    pub async fn login_token(&self, token: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call_secretly("loginToken", &(token, mind)).await?.remote()
    }

    /// Logs in to a credhost host with an SSH key. `public_key` is its line, as in `id_ed25519.pub`. `sign` signs its argument,
    /// and returns the signature in SSH's wire format. Names are as for [`Client::login`]. Data that is not a credhost login
    /// under this name is not signed, because the key may be valid on other hosts, too.
    ///
    /// # Errors
    /// As [`Client::login`]. Returns [`Error::NotSigned`] if the host requests a signature on anything else.
    pub async fn login_key(
        &self,
        name: &str,
        public_key: &str,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
        mind: Option<Local>,
    ) -> Result<Remote, Error> {
        let answer = self.root().call("loginKey", &(name, public_key, mind)).await?;
        let (bytes, challenger) = challenge(&answer)?;
        // The key is valid for other purposes, too. The signature must be valid for this login only.
        let identity = name.split_once('/').map_or(name, |(identity, _)| identity);
        let ends = [name, identity].iter().any(|name| bytes.ends_with(format!("\0{name}").as_bytes()));
        if !bytes.starts_with(LOGIN_BY_KEY) || !ends {
            return Err(Error::NotSigned(name.to_owned()));
        }
        challenger.call("respond", &(Bytes(sign(&bytes)),)).await?.remote()
    }

    /// Logs in without an identity, on hosts that allow it.
    ///
    /// # Errors
    /// Returns `twisted.cred.error.UnhandledCredentials` if the host does not allow it.
    pub async fn login_anonymous(&self, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call("loginAnonymous", &(mind,)).await?.remote()
    }
}

/// The prefix of all data that is signed to log in with a key.
const LOGIN_BY_KEY: &[u8] = b"credhost login by key, version 1\0";

/// Reads a challenge: its bytes, and the object that takes the response.
fn challenge(answer: &Answer) -> Result<(Vec<u8>, Remote), Error> {
    let value = answer.value()?;
    let unexpected = || Error::Unexpected("it is not a challenge".to_owned());
    let bytes = match value.root().items().next().map(|item| item.node()) {
        Some(Node::Bytes(bytes)) => bytes.to_vec(),
        _ => return Err(unexpected()),
    };
    let (_, challenger): (IgnoredAny, Remote) = answer.read().map_err(|_| unexpected())?;
    Ok((bytes, challenger))
}
