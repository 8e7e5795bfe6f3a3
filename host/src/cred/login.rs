//! From a name to an identity, and from an identity to a key: the state machines of both eras.
//!
//! The eras differ in names and in the form of a refusal (see `session`), but not in the proof: a client receives a
//! challenge for any name, and answers md5(md5(password) + challenge). Other proofs are a password in the clear (over
//! TLS, or on one machine), an SSH key and a token.

use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use super::authorizer::Authorizer;
use super::cost::HashCost;
use super::error::{AuthorizerError, KeyNotFound, Refusal};
use super::identity::{Credential, Identity, ProofBy};
use super::keyring::Key;
use super::login_change::{LoginChange, LoginChanged};
use super::name::NameError;
use super::password::Password;
use super::public_key::{PublicKey, to_be_signed};
use super::sealed::{MasterKey, Sealed};
use super::token::Token;

/// The parts that every login needs: the authorizer, and the key under which verifiers are sealed.
#[derive(Clone)]
pub struct Login {
    authorizer: Arc<dyn Authorizer>,
    key: MasterKey,
    /// The proof for an unknown name is checked against this, so that it costs the same. The result is ignored.
    decoy: Sealed,
    /// A key of the decoy's own, which is never replaced.
    decoy_key: MasterKey,
    /// The password for an unknown name is checked against this.
    decoy_hash: String,
    cost: HashCost,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

/// A challenge given for a name. It may be answered more than once.
#[derive(Debug, Clone)]
pub struct Challenge {
    name: String,
    bytes: [u8; 16],
}

impl Challenge {
    /// Creates a challenge of these random bytes. Twisted's challenge is an md5 of random letters; only its length is
    /// visible.
    #[must_use]
    pub fn new(name: &str, bytes: [u8; 16]) -> Self {
        // Names are stored in NFC; a client may have composed it differently.
        Self { name: name.nfc().collect(), bytes }
    }

    /// The bytes that the client must answer.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// The name that it was given for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// The result of checking a login.
pub type Proof = Result<Proven, Refusal>;

/// An identity whose login was accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Proven {
    /// The identity.
    pub identity: Arc<Identity>,
    /// The number of the credential that proved it.
    pub credential: u64,
}

/// A pending password check. It takes tens of milliseconds, so it must run on a thread that may block.
pub struct PasswordCheck {
    authorizer: Arc<dyn Authorizer>,
    password: Password,
    hashes: Vec<(u64, String)>,
    found: Result<Arc<Identity>, Refusal>,
}

impl PasswordCheck {
    /// The memory that it takes while it runs, in KiB.
    #[must_use]
    pub fn memory(&self) -> u32 {
        Password::memory_of(&self.hashes)
    }

    /// Runs the check. The work is the same for every name.
    pub fn run(self) -> Proof {
        // An empty password costs the same work, but never matches, even if another program made a hash of it.
        let matched = self.authorizer.matches(&self.password, &self.hashes).filter(|_| self.password.bytes() > 0);
        let identity = self.found?;
        let credential = matched.ok_or(Refusal::WrongPassword)?;
        Ok(Proven { identity, credential })
    }
}

impl std::fmt::Debug for PasswordCheck {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("PasswordCheck")
    }
}

/// A challenge to be signed by a client that claims to have a key of this name.
#[derive(Debug, Clone)]
pub struct KeyChallenge {
    name: String,
    key: PublicKey,
    bytes: Vec<u8>,
}

impl KeyChallenge {
    /// Creates a challenge for a login as `name` by this key, from 32 random bytes.
    #[must_use]
    pub fn new(name: &str, key: PublicKey, random: &[u8; 32]) -> Self {
        let name: String = name.nfc().collect();
        let bytes = to_be_signed(&name, &key, random);
        Self { name, key, bytes }
    }

    /// The bytes to sign.
    #[must_use]
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// The name that it was given for.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

impl Login {
    /// Checks logins against this authorizer. `decoy` is 24 random bytes.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>, key: MasterKey, decoy: &[u8; 24]) -> Self {
        Self::with_cost(authorizer, key, decoy, HashCost::default())
    }

    /// As [`Login::new`], with this cost for hashing passwords.
    #[must_use]
    pub fn with_cost(authorizer: Arc<dyn Authorizer>, key: MasterKey, decoy: &[u8; 24], cost: HashCost) -> Self {
        let decoy_key = MasterKey::new([0x5a; 32]);
        let sealed = Password::new("").verifier().seal(&decoy_key, "", decoy);
        Self { authorizer, key, decoy: sealed, decoy_key, decoy_hash: cost.decoy(decoy), cost }
    }

    /// The current identity of this name, if it is enabled: it may have been disabled since it logged in.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn identity(&self, name: &str) -> Result<Option<Arc<Identity>>, AuthorizerError> {
        Ok(self.authorizer.identity(name).await?.filter(|identity| identity.enabled))
    }

    /// Whether this password must be hashed again, since the cost was raised.
    #[must_use]
    pub fn is_cheap(&self, proven: &Proven) -> bool {
        let hashes = proven.identity.hashes(0);
        hashes.iter().any(|(id, hash)| *id == proven.credential && Password::is_cheaper(hash, self.cost))
    }

    /// The cost of hashing a password.
    #[must_use]
    pub fn cost(&self) -> HashCost {
        self.cost
    }

    async fn find(&self, name: &str) -> Result<Result<Arc<Identity>, Refusal>, AuthorizerError> {
        Ok(match self.authorizer.identity(name).await? {
            None => Err(Refusal::UnknownName),
            Some(identity) if !identity.enabled => Err(Refusal::Disabled),
            Some(identity) => Ok(identity),
        })
    }

    /// Checks the answer to a challenge. The work is the same for every name. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn respond(&self, challenge: &Challenge, response: &[u8], now: u64) -> Result<Proof, AuthorizerError> {
        let found = self.find(challenge.name()).await?;
        let verifiers: Vec<(u64, &Sealed)> = match &found {
            Ok(identity) => identity.verifiers(now).collect(),
            Err(_) => Vec::new(),
        };
        let mut proven = None;
        for (id, sealed) in &verifiers {
            match sealed.open(&self.key, challenge.name()) {
                Ok(verifier) if verifier.proves(challenge.bytes(), response) => proven = Some(*id),
                Ok(_) => {}
                Err(error) => return Err(AuthorizerError(format!("{}: {error}", challenge.name()))),
            }
        }
        let none = verifiers.is_empty();
        if none && let Ok(verifier) = self.decoy.open(&self.decoy_key, "") {
            // The result is ignored.
            let _ = std::hint::black_box(verifier.proves(challenge.bytes(), response));
        }
        Ok(match found {
            Err(refusal) => Err(refusal),
            Ok(_) if none => Err(Refusal::NoPassword),
            Ok(identity) => proven.map(|credential| Proven { identity, credential }).ok_or(Refusal::WrongPassword),
        })
    }

    /// Prepares a password check for a name. The work is the same for every name. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn password(&self, name: &str, password: Password, now: u64) -> Result<PasswordCheck, AuthorizerError> {
        let name: String = name.nfc().collect();
        let found = self.find(&name).await?;
        let mut hashes = found.as_ref().map(|identity| identity.hashes(now)).unwrap_or_default();
        let found = if hashes.is_empty() {
            hashes.push((0, self.decoy_hash.clone()));
            found.and(Err(Refusal::NoPassword))
        } else {
            found
        };
        Ok(PasswordCheck { authorizer: Arc::clone(&self.authorizer), password, hashes, found })
    }

    /// Checks a signature. The work is the same for every name and key. `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn sign(&self, challenge: &KeyChallenge, signature: &[u8], now: u64) -> Result<Proof, AuthorizerError> {
        let found = self.find(challenge.name()).await?;
        let verified = challenge.key.verifies(challenge.bytes(), signature);
        let identity = match found {
            Ok(identity) => identity,
            Err(refusal) => return Ok(Err(refusal)),
        };
        Ok(match by_key(&identity, &challenge.key, now) {
            None => Err(Refusal::UnknownKey),
            Some(_) if !verified => Err(Refusal::WrongSignature),
            Some(credential) => Ok(Proven { identity, credential }),
        })
    }

    /// Whether this key belongs to this name. The caller has already verified that the client has the key. `now` is in
    /// seconds since 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn vouched(&self, name: &str, key: &PublicKey, now: u64) -> Result<Proof, AuthorizerError> {
        let name: String = name.nfc().collect();
        Ok(self.find(&name).await?.and_then(|identity| {
            let credential = by_key(&identity, key, now).ok_or(Refusal::UnknownKey)?;
            Ok(Proven { identity, credential })
        }))
    }

    /// Returns the identity whose remembered login has this token, at a door of this service; `None` if there is none.
    /// `now` is in seconds since 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn resume(&self, token: &Token, service: &str, now: u64) -> Result<Option<Proven>, AuthorizerError> {
        let digest = token.digest();
        let found = self.authorizer.bearer(&digest).await?.filter(|identity| identity.enabled);
        Ok(found.and_then(|identity| {
            let is = |credential: &&Credential| match &credential.proof {
                ProofBy::Login(login) => login.token == digest && login.service == service,
                _ => false,
            };
            let credential = identity.credentials.iter().find(is)?.id;
            identity.takes(credential, now).then_some(Proven { identity, credential })
        }))
    }

    /// Changes a remembered login: see [`Authorizer::remember`].
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn remember(
        &self,
        name: &str,
        change: &LoginChange,
        now: u64,
    ) -> Result<Option<LoginChanged>, AuthorizerError> {
        self.authorizer.remember(name, change, now).await
    }

    /// Checks a token. Also returns the name of its owner, even if the token is not accepted. `now` is in seconds since
    /// 1970.
    ///
    /// # Errors
    /// If the authorizer fails.
    pub async fn token(&self, token: &Token, now: u64) -> Result<(Proof, Option<String>), AuthorizerError> {
        let digest = token.digest();
        let Some(identity) = self.authorizer.bearer(&digest).await? else {
            return Ok((Err(Refusal::UnknownToken), None));
        };
        let owner = Some(identity.name.to_string());
        let found = identity.credentials.iter().find(|credential| credential.proof == ProofBy::Token(digest));
        let proof = match found {
            None => Err(Refusal::UnknownToken),
            Some(credential) if !credential.valid(now) => Err(Refusal::ExpiredToken),
            Some(_) if !identity.enabled => Err(Refusal::Disabled),
            Some(credential) => {
                let credential = credential.id;
                Ok(Proven { identity, credential })
            }
        };
        Ok((proof, owner))
    }
}

/// The number of the identity's valid credential with this key, if there is one.
fn by_key(identity: &Identity, key: &PublicKey, now: u64) -> Option<u64> {
    let has = |credential: &&Credential| credential.valid(now) && credential.proof == ProofBy::PublicKey(key.clone());
    identity.credentials.iter().find(has).map(|credential| credential.id)
}

/// A parsed new-era name: `alice`, `alice/todo` or `alice/todo/work`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The identity's name.
    pub identity: String,
    /// The service, and the perspective if the name contains one.
    pub perspective: Option<(String, Option<String>)>,
}

impl Wanted {
    /// Splits a name, and normalizes the identity's part to NFC. Never fails: an invalid name belongs to no identity.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        let mut parts = name.splitn(3, '/');
        // One spelling of each name, however the client composed it: attempts are counted, and identities looked up, by
        // this spelling.
        let identity = parts.next().unwrap_or_default().nfc().collect();
        let perspective = parts.next().map(|service| (service.to_owned(), parts.next().map(str::to_owned)));
        Self { identity, perspective }
    }
}

/// Why no key was found.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoKey {
    /// The keyring lacks this key.
    #[error(transparent)]
    NotFound(#[from] KeyNotFound),
    /// The keyring has no key for this service, and no perspective was named.
    #[error("No such perspective.")]
    NoneFor,
    /// One of the names is invalid.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// Finds the key to this perspective on the identity's keyring. Without a perspective's name, it is the first key to
/// the service.
///
/// In Twisted: `requestPerspectiveForKey` and `requestPerspectiveForService`.
///
/// # Errors
/// If the key is not there, or a name is invalid.
pub fn key(identity: &Identity, service: &str, perspective: Option<&str>) -> Result<Key, NoKey> {
    match perspective {
        Some(perspective) => {
            let key = Key::new(service, perspective)?;
            if identity.keyring.has(&key) { Ok(key) } else { Err(KeyNotFound(key).into()) }
        }
        None => identity.keyring.first_for(service).cloned().ok_or(NoKey::NoneFor),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cred::{DefaultAuthorizer, Entropy, challenge_response};

    fn block_on<F: Future>(future: F) -> F::Output {
        // The default authorizer never waits.
        match std::pin::pin!(future).poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
            std::task::Poll::Ready(output) => output,
            std::task::Poll::Pending => panic!("it waits"),
        }
    }

    fn login() -> (Arc<DefaultAuthorizer>, Login) {
        let key = MasterKey::new([1; 32]);
        let authorizer = Arc::new(DefaultAuthorizer::new());
        let mut alice = Identity::new("alice").unwrap();
        alice.set_password(&Password::new("alice-pw"), &key, &Entropy { salt: [2; 16], nonce: [3; 24] }).unwrap();
        alice.keyring.add(Key::new("todo", "alice").unwrap());
        alice.keyring.add(Key::new("todo", "work").unwrap());
        authorizer.add(alice).unwrap();
        authorizer.add(Identity::new("nopass").unwrap()).unwrap();
        let login = Login::new(authorizer.clone(), key, &[4; 24]);
        (authorizer, login)
    }

    fn answer(login: &Login, name: &str, password: &str) -> Proof {
        let challenge = Challenge::new(name, [5; 16]);
        block_on(login.respond(&challenge, &challenge_response(&[5; 16], &Password::new(password)), 0)).unwrap()
    }

    #[test]
    fn the_right_password_lets_in_and_every_refusal_has_its_reason() {
        let (authorizer, login) = login();
        assert_eq!(answer(&login, "alice", "alice-pw").unwrap().identity.name.as_str(), "alice");
        assert_eq!(answer(&login, "alice", "wrong"), Err(Refusal::WrongPassword));
        assert_eq!(answer(&login, "mallory", "x"), Err(Refusal::UnknownName));
        assert_eq!(answer(&login, "nopass", "x"), Err(Refusal::NoPassword));
        assert_eq!(answer(&login, "mallory", ""), Err(Refusal::UnknownName), "the decoy lets nobody in");
        assert_eq!(answer(&login, "nopass", ""), Err(Refusal::NoPassword));
        authorizer.update("alice", |alice| alice.enabled = false).unwrap();
        assert_eq!(answer(&login, "alice", "alice-pw"), Err(Refusal::Disabled));
    }

    #[test]
    fn an_empty_password_lets_nobody_in() {
        let (authorizer, login) = login();
        for hash in [Password::new("").hash(HashCost::LEAST, &[1; 16]).unwrap(), bcrypt::hash("", 4).unwrap()] {
            authorizer
                .update("alice", |alice| {
                    alice.clear_passwords();
                    alice.add(ProofBy::Password { hash: hash.clone(), verifier: None }, "password", 0, None);
                })
                .unwrap();
            let check = block_on(login.password("alice", Password::new(""), 0)).unwrap();
            assert_eq!(check.run(), Err(Refusal::WrongPassword), "{hash}");
        }
    }

    #[test]
    fn a_login_name_can_request_a_perspective() {
        let wanted = |name| Wanted::parse(name).perspective;
        assert_eq!(wanted("alice"), None);
        assert_eq!(wanted("alice/todo"), Some(("todo".to_owned(), None)));
        assert_eq!(wanted("alice/todo/work"), Some(("todo".to_owned(), Some("work".to_owned()))));
    }

    #[test]
    fn only_a_key_leads_to_a_perspective() {
        let (authorizer, _) = login();
        let alice = authorizer.get("alice").unwrap();
        assert_eq!(key(&alice, "todo", None), Key::new("todo", "alice").map_err(Into::into));
        assert!(key(&alice, "todo", Some("work")).is_ok());
        let refused = key(&alice, "time", Some("bob")).unwrap_err();
        assert_eq!(refused.to_string(), "No key for service \"'time'\", perspective \"'bob'\".");
        assert_eq!(key(&alice, "time", None), Err(NoKey::NoneFor));
    }
}
