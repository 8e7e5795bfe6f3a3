//! Who keeps the identities.

use std::pin::Pin;
use std::sync::Arc;

use super::error::AuthorizerError;
use super::identity::Identity;
use super::login_change::{LoginChange, LoginChanged};
use super::password::Password;
use super::token::TokenDigest;

/// An authorizer's answer, which may take its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AuthorizerError>> + Send + 'a>>;

/// Stores identities. [`DefaultAuthorizer`](super::DefaultAuthorizer) is the simplest; a program that embeds the
/// library may bring its own (`examples/htpasswd.rs` is one over a file of Apache's).
///
/// In the original: `twisted.cred.authorizer.Authorizer`, whose `getIdentityRequest` this is.
pub trait Authorizer: Send + Sync + 'static {
    /// The identity of this name; `None` if there is none. Takes the same time either way, as far as it can.
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>>;

    /// The identity that has a token, or a remembered login, of this digest. Filled in: none has.
    fn bearer<'a>(&'a self, token: &'a TokenDigest) -> Answer<'a, Option<Arc<Identity>>> {
        let _ = token;
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Changes a remembered login of an identity's, at this time (in seconds since 1970). `None`: there is
    /// nothing to change. Filled in: none is remembered.
    fn remember<'a>(&'a self, name: &'a str, change: &'a LoginChange, now: u64) -> Answer<'a, Option<LoginChanged>> {
        let _ = (name, change, now);
        Box::pin(std::future::ready(Ok(None)))
    }

    /// Which of these hashes, each with its credential's number, is this password's. Called on a thread that may take
    /// its time. Filled in: argon2id.
    fn matches(&self, password: &Password, hashes: &[(u64, String)]) -> Option<u64> {
        password.matches_any(hashes)
    }
}
