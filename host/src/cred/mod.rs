//! The model: who somebody is, and what they may get.
//!
//! An [`Identity`] has credentials and a [`Keyring`]; an [`Authorizer`] keeps identities; [`login`] is the way from a
//! name to an identity, for both eras of Twisted. Nothing here does IO, reads a clock or draws randomness, and nothing
//! knows of PB, storage or services: a key is two names.
//!
//! Source: `twisted.cred` of Twisted 2.1.0.

mod authorizer;
mod credential;
mod default_authorizer;
mod error;
mod identity;
mod keyring;
pub mod login;
mod name;

pub use authorizer::{Answer, Authorizer};
pub use credential::{Entropy, MasterKey, Password, PasswordRules, Sealed, Verifier, challenge_response};
pub use default_authorizer::DefaultAuthorizer;
pub use error::{AuthorizerError, CredentialError, DuplicateIdentity, KeyNotFound, NoSuchIdentity, Refusal};
pub use identity::Identity;
pub use keyring::{Key, Keyring};
pub use name::{Name, NameError, NameOf};
