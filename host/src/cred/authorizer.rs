//! Who keeps the identities.

use std::pin::Pin;
use std::sync::Arc;

use super::error::AuthorizerError;
use super::identity::Identity;

/// An authorizer's answer, which may take its time.
pub type Answer<'a, T> = Pin<Box<dyn Future<Output = Result<T, AuthorizerError>> + Send + 'a>>;

/// Stores identities. [`DefaultAuthorizer`](super::DefaultAuthorizer) is the simplest; a program that embeds the
/// library may bring its own.
///
/// In the original: `twisted.cred.authorizer.Authorizer`, whose `getIdentityRequest` this is.
pub trait Authorizer: Send + Sync + 'static {
    /// The identity of this name; `None` if there is none. Takes the same time either way, as far as it can.
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>>;
}
