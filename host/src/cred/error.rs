//! Refusals, each for who is to hear of it.

use super::keyring::Key;
use crate::show::many;

/// Why somebody is not let in. What the client hears is the same for all but the last three; the operator's log and the
/// audit trail have the reason.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Refusal {
    /// There is no identity of this name.
    #[error("unknown name")]
    UnknownName,
    /// The identity is disabled.
    #[error("the identity is disabled")]
    Disabled,
    /// The identity has no password that this login can be checked with.
    #[error("the identity has no password for this login")]
    NoPassword,
    /// The proof is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// The signature is not by this key.
    #[error("wrong signature")]
    WrongSignature,
    /// The key is not the identity's, or not any more.
    #[error("not a key of the identity's")]
    UnknownKey,
    /// Nobody has this token.
    #[error("unknown token")]
    UnknownToken,
    /// The token has expired.
    #[error("expired token")]
    ExpiredToken,
    /// Too many tries have failed; the next is looked at in this many seconds.
    #[error("too many failed logins; try again in {0} s")]
    Wait(u64),
    /// This many tries have failed that a person must act first.
    #[error("too many failed logins; the operator can unlock it")]
    Locked,
    /// There is no room for one more password to be checked.
    #[error("the host is busy checking passwords; try again in a moment")]
    Busy,
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
    #[error("the password has {}; it needs {}", many(*.0, "character", "characters"), .1)]
    TooShort(usize, usize),
    /// Longer than can be hashed at a known cost.
    #[error("the password has more than {0} bytes")]
    TooLong(usize),
    /// It is on the list of passwords that are refused.
    #[error("the password is on the list of passwords that are known to be tried first")]
    Blocked,
    /// It would be guessed too soon.
    #[error("the password would be guessed in about 10^{guesses} tries, and is to stand 10^{needed}. {why}")]
    Weak {
        /// How many tries, as a power of ten.
        guesses: u32,
        /// How many it is to stand, as a power of ten.
        needed: u32,
        /// Why.
        why: String,
    },
    /// It could not be hashed, or is no hash.
    #[error("the hash of the password cannot be used: {0}")]
    Hash(String),
    /// It is no public key that is taken.
    #[error("not a public key that can be used: {0}")]
    Key(String),
    /// What was sealed does not open: another master key, or changed bytes.
    #[error("cannot decrypt a secret: was master.key replaced?")]
    Sealed,
}
