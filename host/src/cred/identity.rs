//! Who somebody is.

use super::cost::HashCost;
use super::error::CredentialError;
use super::keyring::Keyring;
use super::name::{Name, NameError, NameOf};
use super::password::{Entropy, Password};
use super::public_key::PublicKey;
use super::remembered::Remembered;
use super::sealed::{MasterKey, Sealed};
use super::token::TokenDigest;

/// A person, or a program, that can log in: what is known of it that belongs to no service.
///
/// In the original: `twisted.cred.identity.Identity`. Plain data here: it is kept by an
/// [`Authorizer`](super::Authorizer), which it does not know.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Its name.
    pub name: Name,
    /// Whether it may log in at all.
    pub enabled: bool,
    /// What it can prove itself with.
    pub credentials: Vec<Credential>,
    /// The number of its next credential: none is ever used twice.
    pub next: u64,
    /// What it may get.
    pub keyring: Keyring,
}

/// Something that an identity can prove itself with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its number, among its identity's.
    pub id: u64,
    /// For a person to know it by.
    pub label: String,
    /// When it was added, in seconds since 1970.
    pub created: u64,
    /// From when on it is not taken any more, in seconds since 1970.
    pub expires: Option<u64>,
    /// What it is.
    pub proof: ProofBy,
}

/// What a credential is.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProofBy {
    /// A password.
    Password {
        /// Its argon2id hash, a PHC string.
        hash: String,
        /// md5 of it, sealed: for the stock PB login.
        verifier: Option<Sealed>,
    },
    /// An SSH key.
    PublicKey(PublicKey),
    /// An access token.
    Token(TokenDigest),
    /// A login that outlives its connection.
    Login(Remembered),
}

impl ProofBy {
    /// Whether both prove the same: what is sealed differs each time.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Password { hash, .. }, Self::Password { hash: other, .. }) => hash == other,
            _ => self == other,
        }
    }

    /// Its kind, in a word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Password { .. } => "password",
            Self::PublicKey(_) => "pubkey",
            Self::Token(_) => "token",
            Self::Login(_) => "login",
        }
    }

    /// The digest of the token that it is shown by, if it is.
    #[must_use]
    pub fn digest(&self) -> Option<&TokenDigest> {
        match self {
            Self::Token(digest) => Some(digest),
            Self::Login(login) => Some(&login.token),
            Self::Password { .. } | Self::PublicKey(_) => None,
        }
    }
}

impl Credential {
    /// Whether it is taken at this time, in seconds since 1970.
    #[must_use]
    pub fn valid(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// Why a credential cannot have this label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{label:?} cannot be a label: {why}")]
pub struct LabelError {
    label: String,
    why: &'static str,
}

/// Whether a credential may have this label: up to 255 bytes, no control characters.
///
/// # Errors
/// Why not.
pub fn check_label(label: &str) -> Result<(), LabelError> {
    let refuse = |why| Err(LabelError { label: label.chars().take(40).collect(), why });
    match label {
        _ if label.len() > 255 => refuse("it has more than 255 bytes"),
        _ if label.chars().any(char::is_control) => refuse("it has a control character"),
        _ => Ok(()),
    }
}

impl Identity {
    /// An identity without credentials and keys: nobody can log in as it.
    ///
    /// # Errors
    /// When the name is none.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Ok(Self {
            name: Name::new(NameOf::Identity, name)?,
            enabled: true,
            credentials: Vec::new(),
            next: 1,
            keyring: Keyring::default(),
        })
    }

    /// Adds a credential; answers with its number.
    pub fn add(&mut self, proof: ProofBy, label: impl Into<String>, created: u64, expires: Option<u64>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.credentials.push(Credential { id, label: label.into(), created, expires, proof });
        id
    }

    /// Sets the one password, in the place of all it has: its hash at the least cost, and its sealed verifier for the
    /// stock PB login. Takes tens of milliseconds.
    ///
    /// # Errors
    /// When it cannot be hashed; the old ones then stay.
    pub fn set_password(
        &mut self,
        password: &Password,
        key: &MasterKey,
        entropy: &Entropy,
    ) -> Result<(), CredentialError> {
        let hash = password.hash(HashCost::default(), &entropy.salt)?;
        let verifier = Some(password.verifier().seal(key, self.name.as_str(), &entropy.nonce));
        self.clear_passwords();
        self.add(ProofBy::Password { hash, verifier }, "password", 0, None);
        Ok(())
    }

    /// Takes all passwords away: nobody can log in with one.
    pub fn clear_passwords(&mut self) {
        self.credentials.retain(|credential| !matches!(credential.proof, ProofBy::Password { .. }));
    }

    /// The hashes of its passwords that are taken at this time, with their credentials' numbers.
    #[must_use]
    pub fn hashes(&self, now: u64) -> Vec<(u64, String)> {
        let valid = self.credentials.iter().filter(|credential| credential.valid(now));
        let hash = |credential: &Credential| match &credential.proof {
            ProofBy::Password { hash, .. } => Some((credential.id, hash.clone())),
            _ => None,
        };
        valid.filter_map(hash).collect()
    }

    /// Its sealed verifiers that are taken at this time, with their credentials' numbers.
    pub fn verifiers(&self, now: u64) -> impl Iterator<Item = (u64, &Sealed)> {
        self.credentials.iter().filter(move |credential| credential.valid(now)).filter_map(|credential| {
            match &credential.proof {
                ProofBy::Password { verifier: Some(verifier), .. } => Some((credential.id, verifier)),
                _ => None,
            }
        })
    }

    /// The credential of this number, and the one that it stands on: another, if it is a remembered login.
    fn find(&self, credential: u64) -> Option<(&Credential, &Credential)> {
        let of = |id: u64| self.credentials.iter().find(|has| has.id == id);
        let found = of(credential)?;
        match &found.proof {
            ProofBy::Login(login) => {
                let began = of(login.by).filter(|began| !matches!(began.proof, ProofBy::Login(_)))?;
                Some((found, began))
            }
            _ => Some((found, found)),
        }
    }

    /// Whether it has a credential of this number; a remembered login, whether it has what that began with, too.
    #[must_use]
    pub fn has(&self, credential: u64) -> bool {
        self.find(credential).is_some()
    }

    /// Whether it has a credential of this number that is taken at this time, in seconds since 1970.
    #[must_use]
    pub fn takes(&self, credential: u64, now: u64) -> bool {
        self.find(credential).is_some_and(|(found, began)| found.valid(now) && began.valid(now))
    }

    /// The salt that its passwords are hashed with: one for all, so that all are checked at the cost of one.
    #[must_use]
    pub fn salt(&self) -> Option<Vec<u8>> {
        self.credentials.iter().find_map(|credential| match &credential.proof {
            ProofBy::Password { hash, .. } => Password::salt_of(hash),
            _ => None,
        })
    }
}
