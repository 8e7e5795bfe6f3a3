//! An authorizer whose identities are in a store.

use std::sync::Arc;

use super::{Store, StoreError, ask};
use crate::cred::{Answer, Authorizer, AuthorizerError, Identity, TokenDigest};

/// The identities of a store. It keeps none in memory: a million cost no more than a hundred.
#[derive(Clone)]
pub struct StoreAuthorizer(Arc<dyn Store>);

impl StoreAuthorizer {
    /// The identities of this store.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self(store)
    }
}

impl std::fmt::Debug for StoreAuthorizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("StoreAuthorizer")
    }
}

impl From<StoreError> for AuthorizerError {
    fn from(error: StoreError) -> Self {
        Self(error.to_string())
    }
}

impl Authorizer for StoreAuthorizer {
    fn identity<'a>(&'a self, name: &'a str) -> Answer<'a, Option<Arc<Identity>>> {
        Box::pin(async move { Ok(ask(|done| self.0.identity(name, done)).await?.map(|kept| kept.identity)) })
    }

    fn bearer<'a>(&'a self, token: &'a TokenDigest) -> Answer<'a, Option<Arc<Identity>>> {
        Box::pin(async move { Ok(ask(|done| self.0.bearer(token, done)).await?.map(|kept| kept.identity)) })
    }
}
