//! Storage of identities.

use std::pin::Pin;
use std::sync::Arc;

use super::error::AuthorizerError;
use super::identity::Identity;
use super::login_change::{LoginChange, LoginChanged};
use super::password::Password;
use super::token::TokenDigest;

/// An authorizer's answer, as a future.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AuthorizerError>> + Send + 'a>>;

/// Stores identities. [`DefaultAuthorizer`](super::DefaultAuthorizer) is the simplest implementation. A program that
/// embeds the library may bring its own (`examples/htpasswd.rs` implements one over an Apache htpasswd file).
///
/// In Twisted: `twisted.cred.authorizer.Authorizer`. This trait corresponds to its `getIdentityRequest`.
pub trait Authorizer: Send + Sync + 'static {
    /// Returns the identity of this name, or `None` if there is none. Takes the same time either way, as far as
    /// possible.
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>>;

    /// Returns the identity that has a token, or a remembered login, of this digest. By default: `None`.
    fn bearer<'a>(&'a self, token: &'a TokenDigest) -> Answer<'a, Option<Arc<Identity>>> {
        let _ = token;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Changes a remembered login of an identity at this time (in seconds since 1970). Returns `None` if there is
    /// nothing to change. By default: `None`.
    fn remember<'a>(&'a self, name: &'a str, change: &'a LoginChange, now: u64) -> Answer<'a, Option<LoginChanged>> {
        let _ = (name, change, now);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Finds the hash of this password among these hashes, and returns the number of its credential. Called on a thread
    /// that may block. By default: argon2id.
    fn matches(&self, password: &Password, hashes: &[(u64, String)]) -> Option<u64> {
        password.matches_any(hashes)
    }
}
