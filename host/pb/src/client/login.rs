//! How somebody proves who they are.

use std::sync::Arc;

use jelly::{Bytes, Node};
use md5::{Digest, Md5};
use serde::de::IgnoredAny;
use zeroize::Zeroizing;

use super::connection::Client;
use super::error::Error;
use super::link::Local;
use super::received::{Answer, Remote};

/// What somebody logs in with. It can be used again: when the connection was lost, say.
#[derive(Clone)]
#[non_exhaustive]
pub enum Credential {
    /// A name and a password: [`Credential::password`].
    Password {
        /// `alice`, or `alice/todo` for a perspective at once.
        name: String,
        /// The password.
        password: Zeroizing<String>,
    },
    /// An access token, which says whose it is: [`Credential::token`].
    Token(Zeroizing<String>),
    /// A name and an SSH key: [`Credential::key`].
    Key {
        /// As in [`Credential::Password`].
        name: String,
        /// Its public half: a line as in `id_ed25519.pub`.
        public_key: String,
        /// Signs what it is given; answers with the signature as SSH's wire has it.
        sign: Sign,
    },
    /// Nobody in particular, where the host lets them in.
    Anonymous,
}

/// Signs with a key, which stays where it is: in an agent, say.
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

    /// An access token of `credhost token new`.
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
    /// Logs in with whatever it is: a password as it is where nobody else can read it (see
    /// [`Options::private`](super::Options)) and the host knows the words, else by Twisted's own challenge.
    ///
    /// # Errors
    /// As [`Client::login`]; [`Error::InTheClear`], of a token that others could read: it is not sent.
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
    /// // The same, by their names.
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
                    // Another's host, that knows Twisted's own words alone.
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

    /// Logs in with a password, in the words of today's Twisted: `alice/todo` for a perspective at once, `alice` for an
    /// avatar whose `attach(service, perspective, mind)` gives perspectives. The password itself is not sent.
    ///
    /// # Errors
    /// `twisted.cred.error.UnauthorizedLogin`; `twisted.cred.error.KeyNotFound`; what the service refuses with.
    pub async fn login(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        // Twisted's checkers know names as bytes.
        let answer = self.root().call("login", &(Bytes::from(name),)).await?;
        let (challenge, challenger) = challenge(&answer)?;
        let digest: Zeroizing<[u8; 16]> = Zeroizing::new(Md5::digest(password.as_bytes()).into());
        let mut proof = Md5::new();
        proof.update(digest.as_slice());
        proof.update(&challenge);
        let proof = Bytes(proof.finalize().to_vec());
        challenger.call("respond", &(proof, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with a password, which is sent as it is: over TLS, or on one machine. The host
    /// checks it against an argon2id hash, and need keep nothing weaker. Names are as for [`Client::login`].
    ///
    /// # Errors
    /// As [`Client::login`]; `twisted.cred.error.UnhandledCredentials`, where others could listen.
    pub async fn login_password(&self, name: &str, password: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call_secretly("loginPassword", &(name, password, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with an access token. Answers with an avatar, whose
    /// `attach(service, perspective, mind)` gives perspectives.
    ///
    /// # Errors
    /// As [`Client::login_password`].
    pub async fn login_token(&self, token: &str, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call_secretly("loginToken", &(token, mind)).await?.remote()
    }

    /// Logs in to a host of credhost's with an SSH key. `public_key` is its line, as in `id_ed25519.pub`; `sign` signs what
    /// it is given, and answers with the signature as SSH's wire has it. Names are as for [`Client::login`]. What does not begin
    /// as such a login does is not signed: a key may be good for other hosts, too.
    ///
    /// # Errors
    /// As [`Client::login`]; [`Error::NotSigned`].
    pub async fn login_key(
        &self,
        name: &str,
        public_key: &str,
        sign: impl FnOnce(&[u8]) -> Vec<u8>,
        mind: Option<Local>,
    ) -> Result<Remote, Error> {
        let answer = self.root().call("loginKey", &(name, public_key, mind)).await?;
        let (bytes, challenger) = challenge(&answer)?;
        // A key is good for more than this: what is signed must be good for nothing else.
        let identity = name.split_once('/').map_or(name, |(identity, _)| identity);
        let ends = [name, identity].iter().any(|name| bytes.ends_with(format!("\0{name}").as_bytes()));
        if !bytes.starts_with(LOGIN_BY_KEY) || !ends {
            return Err(Error::NotSigned(name.to_owned()));
        }
        challenger.call("respond", &(Bytes(sign(&bytes)),)).await?.remote()
    }

    /// Logs in as nobody in particular, where the host lets them in.
    ///
    /// # Errors
    /// `twisted.cred.error.UnhandledCredentials`, where it does not.
    pub async fn login_anonymous(&self, mind: Option<Local>) -> Result<Remote, Error> {
        self.root().call("loginAnonymous", &(mind,)).await?.remote()
    }
}

/// How all begins that is signed to log in by key.
const LOGIN_BY_KEY: &[u8] = b"credhost login by key, version 1\0";

/// What is to be answered, and whom.
fn challenge(answer: &Answer) -> Result<(Vec<u8>, Remote), Error> {
    let value = answer.value()?;
    let unexpected = || Error::Unexpected("it is no challenge".to_owned());
    let bytes = match value.root().items().next().map(|item| item.node()) {
        Some(Node::Bytes(bytes)) => bytes.to_vec(),
        _ => return Err(unexpected()),
    };
    let (_, challenger): (IgnoredAny, Remote) = answer.read().map_err(|_| unexpected())?;
    Ok((bytes, challenger))
}
