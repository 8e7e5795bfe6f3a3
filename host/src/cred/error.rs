//! Refusals, each for who is to hear of it.

use super::keyring::Key;

/// Why somebody is not let in. What the client hears is the same for all of them; the operator's log has the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no identity of this name.
    #[error("unknown name")]
    UnknownName,
    /// The identity is disabled.
    #[error("the identity is disabled")]
    Disabled,
    /// The identity has no password that PB's login can be checked with.
    #[error("the identity has no password for this login")]
    NoPassword,
    /// The proof is wrong.
    #[error("wrong password")]
    WrongPassword,
}

/// The keyring lacks a key. The client hears this: it is about itself.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("No key for service \"'{}'\", perspective \"'{}'\".", .0.service, .0.perspective)]
pub struct KeyNotFound(pub Key);

/// There is an identity of this name already.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("There is already an identity named {0}.")]
pub struct DuplicateIdentity(pub String);

/// There is no identity of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no identity named {0}")]
pub struct NoSuchIdentity(pub String);

/// An authorizer could not do its work: its store is gone, say. Never: "no such identity".
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct AuthorizerError(pub String);

/// A password or key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CredentialError {
    /// Shorter than the rules allow.
    #[error("the password has {0} characters; it needs {1}")]
    TooShort(usize, usize),
    /// Longer than can be hashed at a known cost.
    #[error("the password has more than {0} bytes")]
    TooLong(usize),
    /// It could not be hashed.
    #[error("the password could not be hashed: {0}")]
    Hash(String),
    /// What was sealed does not open: another master key, or changed bytes.
    #[error("the verifier does not open: was master.key replaced?")]
    Sealed,
}
