//! What a user who has logged in by a door may see of their own identity, and end.

use std::sync::Arc;

use serde::Serialize;

use super::Doors;
use super::words::{Asker, LoggedIn};
use crate::cred::{Identity, ProofBy};
use crate::multiservice::Speaker;
use crate::sessions::{SessionStatus, Sessions};
use crate::store;

/// The encoding that `plugin_api::Account` reads.
#[derive(Serialize)]
struct Account {
    credentials: Vec<Credential>,
    sessions: Vec<Session>,
    remembered: Vec<Remembered>,
    keys: Vec<(String, String)>,
    changes: bool,
}

#[derive(Serialize)]
struct Credential {
    kind: &'static str,
    label: String,
    created: u64,
    expires: Option<u64>,
    fingerprint: Option<String>,
}

#[derive(Serialize)]
struct Session {
    number: u32,
    peer: String,
    since: u64,
    perspectives: Vec<String>,
    own: bool,
}

#[derive(Serialize)]
struct Remembered {
    number: u64,
    label: String,
    since: u64,
    expires: u64,
    own: bool,
}

/// The account of an identity, for a user with this login on this session. `changes`: whether they may change their
/// credentials there.
fn account(
    identity: &Identity,
    sessions: Vec<SessionStatus>,
    login: &LoggedIn,
    (session, changes): (u32, bool),
) -> Account {
    let mut account =
        Account { credentials: Vec::new(), sessions: Vec::new(), remembered: Vec::new(), keys: Vec::new(), changes };
    for credential in &identity.credentials {
        let (label, created, expires) = (credential.label.clone(), credential.created, credential.expires);
        if let ProofBy::Login(_) = credential.proof {
            if identity.takes(credential.id, store::now()) {
                let (number, own) = (credential.id, credential.id == login.credential);
                let (since, expires) = (created, expires.unwrap_or_default());
                account.remembered.push(Remembered { number, label, since, expires, own });
            }
            continue;
        }
        let fingerprint = match &credential.proof {
            ProofBy::PublicKey(key) => Some(key.fingerprint()),
            _ => None,
        };
        account.credentials.push(Credential { kind: credential.proof.kind(), label, created, expires, fingerprint });
    }
    let of = |session: &SessionStatus| session.identities.contains(&login.identity);
    account.sessions = sessions
        .into_iter()
        .filter(of)
        .map(|SessionStatus { session: number, peer, since, perspectives, .. }| Session {
            number,
            peer,
            since,
            perspectives,
            own: number == session,
        })
        .collect();
    let keys = identity.keyring.keys().map(|key| (key.service.to_string(), key.perspective.to_string()));
    account.keys = keys.collect();
    account
}

impl Doors {
    /// A service asks for the account of an identity.
    pub(super) fn account(&self, from: Speaker<'_>, asker: Asker, login: u64) {
        let (owner, has) = match self.owner_for(from, login, "look at") {
            Ok(found) => found,
            Err(why) => return self.refuse(asker, why),
        };
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            let found = me.around.login.identity(&has.identity).await;
            let still = |identity: &&Arc<Identity>| identity.takes(has.credential, store::now());
            match found.as_ref().map(|identity| identity.as_ref().filter(still)) {
                Ok(Some(identity)) => {
                    // Sessions of remembered logins are listed as remembered logins.
                    let mut sessions = me.around.sessions.list();
                    sessions.retain(|session| !me.is_lasting(session.session));
                    let here = (owner.entry().number(), owner.grants().credentials);
                    let account = account(identity, sessions, &has, here);
                    let bytes = jelly::to_vec(&account).unwrap_or_default();
                    me.tell(&asker, &bytes);
                }
                Ok(None) => me.not_logged_in(&asker, "the login has ended", 0),
                Err(_) => me.not_logged_in(&asker, super::remembering::BROKEN, 0),
            }
        });
    }

    /// A service ends a session or a remembered login of the same identity.
    pub(super) fn end_own(&self, from: Speaker<'_>, asker: Asker, login: u64, (remembered, number): (bool, u64)) {
        let (_, has) = match self.owner_for(from, login, "end sessions of") {
            Ok(found) => found,
            Err(why) => return self.refuse(asker, why),
        };
        let Some(me) = self.me.upgrade() else { return };
        self.spawn(async move {
            if remembered {
                return me.end_remembered(&asker, (has.identity, number), "ended by its identity").await;
            }
            let sessions = Arc::clone(&me.around.sessions);
            // Blocks until the connection has ended.
            let cut = tokio::task::spawn_blocking(move || cut(&sessions, number, &has.identity)).await;
            match cut {
                Ok(Some(cut)) => {
                    me.around.gate.note_ended(&cut);
                    me.tell(&asker, &[]);
                }
                _ => me.not_logged_in(&asker, "there is no such session", 0),
            }
        });
    }
}

fn cut(sessions: &Sessions, number: u64, identity: &str) -> Option<SessionStatus> {
    sessions.cut(Some(u32::try_from(number).ok()?), Some(identity)).into_iter().next()
}
