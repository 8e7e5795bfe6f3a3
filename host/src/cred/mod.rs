//! The model: identities, and the perspectives that they may use.
//!
//! An [`Identity`] has credentials and a [`Keyring`]. An [`Authorizer`] stores identities. [`login`] leads from a name
//! to an identity, for both eras of Twisted, and by password, key or token. [`throttle`] limits the attempts. Nothing
//! here does IO, reads a clock or draws randomness, and nothing knows of PB, storage or services: a key is two names.
//!
//! Source: `twisted.cred` of Twisted 2.1.0.

mod authorizer;
mod certificate;
mod cost;
mod default_authorizer;
mod error;
mod identity;
mod kept_hash;
mod keyring;
mod listener_rules;
pub mod login;
mod login_change;
mod name;
mod password;
mod public_key;
mod remembered;
mod rules;
mod sealed;
pub mod throttle;
mod token;

pub use authorizer::{Answer, Authorizer};
pub use certificate::ClientCertificate;
pub use cost::HashCost;
pub use default_authorizer::DefaultAuthorizer;
pub use error::{AuthorizerError, CredentialError, DuplicateIdentity, KeyNotFound, NoSuchIdentity, Refusal};
pub use identity::{Credential, Identity, LabelError, ProofBy, check_label};
pub use kept_hash::{check_hash, check_hashes};
pub use keyring::{Key, Keyring};
pub(crate) use listener_rules::CurrentRules;
pub use listener_rules::{ListenerRules, RuleError};
pub use login_change::{LoginChange, LoginChanged, MOST_LOGINS};
pub use name::{Name, NameError, NameOf};
pub use password::{Entropy, Password, challenge_response, keep_memory};
pub use public_key::{PublicKey, to_be_signed};
pub use remembered::Remembered;
pub use rules::{PasswordRules, STANDARD_SHORTEST};
pub use sealed::{MasterKey, Sealed, StoreSecret, Verifier};
pub use token::{Token, TokenDigest};
