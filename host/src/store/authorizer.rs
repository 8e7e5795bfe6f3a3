//! An authorizer that reads identities from a store.

use std::sync::Arc;

use super::audit::Event;
use super::{Store, StoreError, Write, ask};
use crate::cred::{Answer, Authorizer, AuthorizerError, Identity, LoginChange, LoginChanged, TokenDigest};

/// The identities of a store. None is cached in memory, so a million of them take no more than a hundred.
#[derive(Clone)]
pub struct StoreAuthorizer(Arc<dyn Store>);

impl StoreAuthorizer {
    /// Uses the identities of this store.
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

    fn remember<'a>(&'a self, name: &'a str, change: &'a LoginChange, now: u64) -> Answer<'a, Option<LoginChanged>> {
        Box::pin(async move {
            loop {
                let Some(kept) = ask(|done| self.0.identity(name, done)).await? else { return Ok(None) };
                let mut identity = Identity::clone(&kept.identity);
                let Some(changed) = identity.change_login(change, now) else { return Ok(None) };
                let mut writes = vec![Write::Identity { identity: Arc::new(identity), base: kept.version }];
                writes.extend(events(name, change, &changed).into_iter().map(Write::Audit));
                match ask(|done| self.0.commit(writes, done)).await {
                    // The identity was changed meanwhile, so it is tried again.
                    Err(StoreError::Conflict(_)) => {}
                    other => return Ok(other.map(|()| Some(changed))?),
                }
            }
        })
    }
}

/// The lines for the trail. The use of a remembered login has none, since its login has one.
fn events(name: &str, change: &LoginChange, changed: &LoginChanged) -> Vec<Event> {
    let event = |what, number| Event::new(what).with("identity", name).with("login", number);
    let own = match change {
        LoginChange::Begins { login, label } => {
            let remembered = event("login.remembered", changed.number);
            Some(remembered.with("label", label.as_str()).with("until", login.until))
        }
        LoginChange::Used { .. } => None,
        LoginChange::Ends { why, .. } => Some(event("login.forgotten", changed.number).with("why", *why)),
    };
    let made_room =
        changed.made_room.iter().map(move |number| event("login.forgotten", *number).with("why", "made room"));
    made_room.chain(own).collect()
}
