//! Reasons for a refusal, each for its audience.

use super::keyring::Key;
use crate::show::many;

/// Why a login is refused. The client receives the same error for all but the last three; the operator's log and the
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
    /// The identity has no password that works with this kind of login.
    #[error("the identity has no password for this login")]
    NoPassword,
    /// The proof is wrong.
    #[error("wrong password")]
    WrongPassword,
    /// The signature is not by this key.
    #[error("wrong signature")]
    WrongSignature,
    /// The key does not belong to the identity, or no longer does.
    #[error("not a key of the identity")]
    UnknownKey,
    /// Nobody has this token.
    #[error("unknown token")]
    UnknownToken,
    /// The token has expired.
    #[error("expired token")]
    ExpiredToken,
    /// Too many attempts have failed; the next one is checked only after this many seconds.
    #[error("too many failed logins; try again in {0} s")]
    Wait(u64),
    /// So many attempts have failed that the operator must unlock it.
    #[error("too many failed logins; the operator can unlock it")]
    Locked,
    /// There is no room for another pending check.
    #[error("the host is busy checking passwords; try again in a moment")]
    Busy,
}

/// The keyring lacks a key. The client receives this error, since it is about the client's own keyring.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("No key for service \"'{}'\", perspective \"'{}'\".", .0.service, .0.perspective)]
pub struct KeyNotFound(pub Key);

/// There is already an identity of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("There is already an identity named {0}.")]
pub struct DuplicateIdentity(pub String);

/// There is no identity of this name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("there is no identity named {0}")]
pub struct NoSuchIdentity(pub String);

/// An authorizer has failed, for example because its store is gone. Never used for "no such identity".
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
    /// It is on the list of refused passwords.
    #[error("the password is on a list of common passwords, which are tried first")]
    Blocked,
    /// It would be guessed too soon.
    #[error("the password is too easy to guess: about 10^{guesses} attempts; 10^{needed} are required. {why}")]
    Weak {
        /// The estimated number of attempts, as a power of ten.
        guesses: u32,
        /// The required number of attempts, as a power of ten.
        needed: u32,
        /// Why it is easy to guess.
        why: String,
    },
    /// It could not be hashed, or the hash is invalid.
    #[error("the hash of the password cannot be used: {0}")]
    Hash(String),
    /// It is not a supported public key.
    #[error("not a usable public key: {0}")]
    Key(String),
    /// A sealed secret cannot be opened: the master key differs, or the bytes were changed.
    #[error("cannot decrypt a secret: was master.key replaced?")]
    Sealed,
}
