//! From a name to an identity, and from an identity to a key: the state machines of both eras.
//!
//! The eras differ in names and in what a refusal looks like (`session` knows), not in what is proven: a client is
//! given a challenge for any name at all, and answers md5(md5(password) + challenge).

use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use super::authorizer::Authorizer;
use super::credential::{MasterKey, Password, Sealed};
use super::error::{AuthorizerError, KeyNotFound, Refusal};
use super::identity::Identity;
use super::keyring::Key;
use super::name::NameError;

/// What every login needs: who keeps the identities, and the key that their verifiers are sealed under.
#[derive(Clone)]
pub struct Login {
    authorizer: Arc<dyn Authorizer>,
    key: MasterKey,
    /// What an unknown name's proof is checked against, so that it costs the same. It opens, and no proof fits it.
    decoy: Sealed,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Login")
    }
}

/// A challenge that was given for a name. It may be answered more than once.
#[derive(Debug, Clone)]
pub struct Challenge {
    name: String,
    bytes: [u8; 16],
}

impl Challenge {
    /// A challenge of these random bytes. Twisted's is an md5 of random letters; only its length is seen.
    #[must_use]
    pub fn new(name: &str, bytes: [u8; 16]) -> Self {
        // As names are kept: a client may have composed it otherwise.
        Self { name: name.nfc().collect(), bytes }
    }

    /// What the client is to prove its password with.
    #[must_use]
    pub fn bytes(&self) -> &[u8; 16] {
        &self.bytes
    }

    /// For whom.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }
}

/// Somebody who has been asked for, and was let in or was not.
pub type Proof = Result<Arc<Identity>, Refusal>;

impl Login {
    /// Logins by what this authorizer keeps. `decoy` is 24 random bytes.
    #[must_use]
    pub fn new(authorizer: Arc<dyn Authorizer>, key: MasterKey, decoy: &[u8; 24]) -> Self {
        let decoy = Password::new("").verifier().seal(&key, "", decoy);
        Self { authorizer, key, decoy }
    }

    /// The identity of this name as it is now; who has logged in may have been disabled since.
    ///
    /// # Errors
    /// When the authorizer cannot say.
    pub async fn identity(&self, name: &str) -> Result<Option<Arc<Identity>>, AuthorizerError> {
        Ok(self.authorizer.identity(name).await?.filter(|identity| identity.enabled))
    }

    /// Checks the answer to a challenge. The same work is done for every name.
    ///
    /// # Errors
    /// When the authorizer cannot say.
    pub async fn respond(&self, challenge: &Challenge, response: &[u8]) -> Result<Proof, AuthorizerError> {
        let found = self.authorizer.identity(challenge.name()).await?;
        let refusal = match &found {
            None => Some(Refusal::UnknownName),
            Some(identity) if !identity.enabled => Some(Refusal::Disabled),
            Some(identity) if identity.verifier.is_none() => Some(Refusal::NoPassword),
            Some(_) => None,
        };
        let (sealed, name) = match &found {
            Some(identity) if refusal.is_none() => {
                (identity.verifier.as_ref().unwrap_or(&self.decoy), identity.name.as_str())
            }
            _ => (&self.decoy, ""),
        };
        let proven = match sealed.open(&self.key, name) {
            Ok(verifier) => verifier.proves(challenge.bytes(), response),
            Err(error) => return Err(AuthorizerError(format!("{}: {error}", challenge.name()))),
        };
        Ok(match (refusal, found) {
            (None, Some(identity)) if proven => Ok(identity),
            (refusal, _) => Err(refusal.unwrap_or(Refusal::WrongPassword)),
        })
    }
}

/// What a new-era name asks for: `alice`, `alice/todo` or `alice/todo/work`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Wanted {
    /// The identity's name.
    pub identity: String,
    /// The service, and the perspective if one is named.
    pub perspective: Option<(String, Option<String>)>,
}

impl Wanted {
    /// Takes a name apart. Never fails: what is no name is nobody's.
    #[must_use]
    pub fn parse(name: &str) -> Self {
        let mut parts = name.splitn(3, '/');
        let identity = parts.next().unwrap_or_default().to_owned();
        let perspective = parts.next().map(|service| (service.to_owned(), parts.next().map(str::to_owned)));
        Self { identity, perspective }
    }
}

/// Why there is no key.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NoKey {
    /// The keyring does not have it.
    #[error(transparent)]
    NotFound(#[from] KeyNotFound),
    /// It has none for this service at all, and no perspective was named.
    #[error("No such perspective.")]
    NoneFor,
    /// One of the names is none.
    #[error(transparent)]
    Name(#[from] NameError),
}

/// The key on this identity's keyring to this perspective; without a perspective's name, the first of the service.
///
/// In the original: `requestPerspectiveForKey` and `requestPerspectiveForService`.
///
/// # Errors
/// When it is not there.
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
        block_on(login.respond(&challenge, &challenge_response(&[5; 16], &Password::new(password)))).unwrap()
    }

    #[test]
    fn the_right_password_lets_in_and_every_refusal_has_its_reason() {
        let (authorizer, login) = login();
        assert_eq!(answer(&login, "alice", "alice-pw").unwrap().name.as_str(), "alice");
        assert_eq!(answer(&login, "alice", "wrong"), Err(Refusal::WrongPassword));
        assert_eq!(answer(&login, "mallory", "x"), Err(Refusal::UnknownName));
        assert_eq!(answer(&login, "nopass", "x"), Err(Refusal::NoPassword));
        assert_eq!(answer(&login, "mallory", ""), Err(Refusal::UnknownName), "the decoy lets nobody in");
        assert_eq!(answer(&login, "nopass", ""), Err(Refusal::NoPassword));
        authorizer.update("alice", |alice| alice.enabled = false).unwrap();
        assert_eq!(answer(&login, "alice", "alice-pw"), Err(Refusal::Disabled));
    }

    #[test]
    fn names_ask_for_perspectives() {
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
