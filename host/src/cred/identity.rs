//! Identities and their credentials.

use super::cost::HashCost;
use super::error::CredentialError;
use super::keyring::Keyring;
use super::name::{Name, NameError, NameOf};
use super::password::{Entropy, Password};
use super::public_key::PublicKey;
use super::remembered::Remembered;
use super::sealed::{MasterKey, Sealed};
use super::token::TokenDigest;

/// A person or program that can log in, and everything about it that belongs to no particular service.
///
/// In Twisted: `twisted.cred.identity.Identity`. Here it is plain data: an [`Authorizer`](super::Authorizer)
/// stores it, and it has no reference to the authorizer.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct Identity {
    /// Its name.
    pub name: Name,
    /// Whether it may log in.
    pub enabled: bool,
    /// The credentials by which it can log in.
    pub credentials: Vec<Credential>,
    /// The number of its next credential. Numbers are never reused.
    pub next: u64,
    /// The perspectives that it may use.
    pub keyring: Keyring,
}

/// Something by which an identity can prove who it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Credential {
    /// Its number, unique within the identity.
    pub id: u64,
    /// The label by which people recognize it.
    pub label: String,
    /// When it was added, in seconds since 1970.
    pub created: u64,
    /// When it expires, in seconds since 1970.
    pub expires: Option<u64>,
    /// Its kind and data.
    pub proof: ProofBy,
}

/// The kind and data of a credential.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ProofBy {
    /// A password.
    Password {
        /// Its hash: an argon2id PHC string, or the bcrypt hash of an import, which the next login replaces.
        hash: String,
        /// Its md5, sealed, for the stock PB login.
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
    /// Whether both are the same credential. Sealed data is ignored, since it differs each time.
    #[must_use]
    pub fn is_same(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Password { hash, .. }, Self::Password { hash: other, .. }) => hash == other,
            _ => self == other,
        }
    }

    /// Its kind, as one word.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Password { .. } => "password",
            Self::PublicKey(_) => "pubkey",
            Self::Token(_) => "token",
            Self::Login(_) => "login",
        }
    }

    /// The digest of the token by which it is presented, if it has one.
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
    /// Whether it is still valid at this time, in seconds since 1970.
    #[must_use]
    pub fn valid(&self, now: u64) -> bool {
        self.expires.is_none_or(|expires| now < expires)
    }
}

/// Why a text cannot be a credential's label.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{label:?} cannot be a label: {why}")]
pub struct LabelError {
    label: String,
    why: &'static str,
}

/// Checks a credential's label: up to 255 bytes, no control characters.
///
/// # Errors
/// If the text cannot be a label.
pub fn check_label(label: &str) -> Result<(), LabelError> {
    let refuse = |why| Err(LabelError { label: label.chars().take(40).collect(), why });
    match label {
        _ if label.len() > 255 => refuse("it has more than 255 bytes"),
        _ if label.chars().any(char::is_control) => refuse("it has a control character"),
        _ => Ok(()),
    }
}

impl Identity {
    /// Creates an identity without credentials and keys. Nobody can log in as it.
    ///
    /// # Errors
    /// If the name is invalid.
    pub fn new(name: &str) -> Result<Self, NameError> {
        Ok(Self {
            name: Name::new(NameOf::Identity, name)?,
            enabled: true,
            credentials: Vec::new(),
            next: 1,
            keyring: Keyring::default(),
        })
    }

    /// Adds a credential, and returns its number.
    pub fn add(&mut self, proof: ProofBy, label: impl Into<String>, created: u64, expires: Option<u64>) -> u64 {
        let id = self.next;
        self.next += 1;
        self.credentials.push(Credential { id, label: label.into(), created, expires, proof });
        id
    }

    /// Sets the only password and removes all others. Stores its hash at the lowest cost, and its sealed verifier for
    /// the stock PB login. Takes tens of milliseconds.
    ///
    /// # Errors
    /// If the password cannot be hashed. The old ones then remain.
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

    /// Removes all passwords, so that nobody can log in with one.
    pub fn clear_passwords(&mut self) {
        self.credentials.retain(|credential| !matches!(credential.proof, ProofBy::Password { .. }));
    }

    /// The hashes of its passwords that are valid at this time, with their credentials' numbers.
    #[must_use]
    pub fn hashes(&self, now: u64) -> Vec<(u64, String)> {
        let valid = self.credentials.iter().filter(|credential| credential.valid(now));
        let hash = |credential: &Credential| match &credential.proof {
            ProofBy::Password { hash, .. } => Some((credential.id, hash.clone())),
            _ => None,
        };
        valid.filter_map(hash).collect()
    }

    /// Its sealed verifiers that are valid at this time, with their credentials' numbers.
    pub fn verifiers(&self, now: u64) -> impl Iterator<Item = (u64, &Sealed)> {
        self.credentials.iter().filter(move |credential| credential.valid(now)).filter_map(|credential| {
            match &credential.proof {
                ProofBy::Password { verifier: Some(verifier), .. } => Some((credential.id, verifier)),
                _ => None,
            }
        })
    }

    /// Finds the credential of this number, and the one that it depends on. These differ only for a remembered login.
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

    /// Whether it has a credential of this number. For a remembered login, it must also have the credential that the
    /// login began with.
    #[must_use]
    pub fn has(&self, credential: u64) -> bool {
        self.find(credential).is_some()
    }

    /// Whether it has a credential of this number that is valid at this time, in seconds since 1970.
    #[must_use]
    pub fn takes(&self, credential: u64, now: u64) -> bool {
        self.find(credential).is_some_and(|(found, began)| found.valid(now) && began.valid(now))
    }

    /// The salt of its password hashes. All of them share one, so that checking all costs as much as checking one.
    #[must_use]
    pub fn salt(&self) -> Option<Vec<u8>> {
        self.credentials.iter().find_map(|credential| match &credential.proof {
            ProofBy::Password { hash, .. } => Password::salt_of(hash),
            _ => None,
        })
    }
}
