//! Who logs in by a stream: the same gate as for PB, the same time for a refusal, the same line in the trail.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use plugin_api::abi::frame::ToLibrary;
use unicode_normalization::UnicodeNormalization;

use super::Doors;
use super::held::{Asker, Held, LoggedIn};
use crate::cred::{Identity, Password, Refusal, Token};
use crate::login_gate::Source;
use crate::multiservice::Speaker;
use crate::session::login::{Found, Proof, Question, Refused};
use crate::store;

/// The message of a refused login: the same whether the name exists or not.
const WRONG: &str = "wrong name or password";

/// Whether what a login came by is still there.
pub(super) fn still(identity: &Identity, login: &LoggedIn, service: &str) -> bool {
    let has = perspectives(identity, service);
    identity.enabled
        && identity.takes(login.credential, store::now())
        && login.perspectives.iter().all(|perspective| has.contains(perspective))
}

/// The names of an identity's perspectives on a service.
fn perspectives(identity: &Identity, service: &str) -> Vec<String> {
    let own = identity.keyring.keys().filter(|key| key.service.as_str() == service);
    own.map(|key| key.perspective.to_string()).collect()
}

/// A refused login: the message for the client, and in how many seconds the next try is looked at.
struct Denied {
    message: String,
    wait: u64,
}

impl From<&str> for Denied {
    fn from(message: &str) -> Self {
        Self { message: message.to_owned(), wait: 0 }
    }
}

impl From<Refusal> for Denied {
    fn from(refusal: Refusal) -> Self {
        let wait = if let Refusal::Wait(seconds) = refusal { seconds } else { 0 };
        Self { message: refusal.to_string(), wait }
    }
}

impl Doors {
    /// A service asks whether a proof is right.
    pub(super) fn authenticate(&self, asker: Asker, held: Option<Arc<Held>>, kind: u64, name: &str, secret: &[u8]) {
        let request = asker.request;
        let Some(held) = held else { return self.refuse(asker, "the client has gone") };
        let rules = self.around.gate.rules();
        let near = held.source.ip().to_canonical().is_loopback() && rules.loopback_is_private;
        if !(held.is_tls() || near) {
            return self.refuse(asker, "passwords and tokens are not taken in the clear: use TLS");
        }
        let proof = match (kind, std::str::from_utf8(secret)) {
            // Programs that know of passwords alone give a token in its place.
            (1, Ok(token)) if Token::looks_like(token) => Proof::Token(Token::received(token)),
            (1, Ok(password)) => Proof::Password(name.to_owned(), Password::new(password)),
            (2, Ok(token)) => Proof::Token(Token::received(token)),
            // A password is a text.
            _ => Proof::Password(name.to_owned(), Password::new("")),
        };
        if !held.begins_asking() {
            return self.refuse(asker, "one login at a time");
        }
        let Some(me) = self.me.upgrade() else { return };
        // Where no name is given the token says whose it is.
        let named = Some(name.nfc().collect::<String>()).filter(|name| !name.is_empty());
        self.spawn(async move {
            let came = Instant::now();
            let answered = me.log_in(&held, proof, named).await;
            if answered.is_err() {
                // Every refusal leaves when the most expensive to find out has been found out for long.
                let leaves = came + me.limits.read().refusal;
                tokio::time::sleep_until(leaves.into()).await;
            }
            held.ends_asking();
            match answered {
                Ok(login) => {
                    let (identity, login) = (login.identity.as_str(), &login);
                    let perspectives = &*jelly::to_vec(&login.perspectives).unwrap_or_default();
                    me.answer(&asker, &ToLibrary::LoggedIn { request, login: login.number, identity, perspectives });
                }
                Err(Denied { message, wait }) => {
                    me.answer(&asker, &ToLibrary::NotLoggedIn { request, message: &message, wait });
                }
            }
        });
    }

    async fn log_in(&self, held: &Arc<Held>, proof: Proof, named: Option<String>) -> Result<LoggedIn, Denied> {
        let around = &self.around;
        let (address, peer, door) = (held.source, held.peer.clone(), Some(held.door().into()));
        let from = Source { address, peer, door };
        let removals = held.entry.removals();
        let (name, credential) = match around.gate.answer(&around.login, &from, Question::Prove(proof)).await {
            Found::Proven(name, credential) => (name, credential),
            Found::NotChecked(refusal) => return Err(refusal.into()),
            Found::Broken => return Err("logins cannot be looked at just now; try again".into()),
            Found::Wrong | Found::Identity(_) => return Err(WRONG.into()),
        };
        if let Some(asked) = named.filter(|named| *named != name) {
            let why = "a token that is somebody else's";
            around.gate.note_refused(&from, &Refused { identity: name, asked, why });
            return Err(WRONG.into());
        }
        let before = held.login().map(|login| login.identity);
        // From now on it hears of what changes; what has changed before shows when the identity is looked up once more.
        held.entry.enter(&name);
        let admitted = self.admit(held, &from, (&name, credential), removals).await;
        match &admitted {
            Ok(login) => {
                held.told.notify_one();
                let number = login.number;
                self.logins.lock().insert(number, held.number);
                held.entry.attached(&held.door());
                if let Some(before) = before.filter(|before| *before != name) {
                    held.entry.left(&before);
                }
            }
            Err(_) if before.as_ref() != Some(&name) => held.entry.left(&name),
            Err(_) => {}
        }
        // It may have ended meanwhile: then nobody else forgets this one.
        if held.has_ended() {
            if let Ok(login) = &admitted {
                self.logins.lock().remove(&login.number);
            }
            held.entry.close();
        }
        admitted
    }

    /// Somebody has proven who they are: do they still have what they need?
    async fn admit(
        &self,
        held: &Arc<Held>,
        from: &Source,
        (name, credential): (&str, u64),
        removals: u64,
    ) -> Result<LoggedIn, Denied> {
        let around = &self.around;
        loop {
            let changes = held.changes();
            let found = around.gate.answer(&around.login, from, Question::Identity(name.to_owned())).await;
            let identity = match found {
                Found::Identity(Some(identity)) if !held.entry.removed_since(removals, name) => identity,
                Found::Broken => return Err("logins cannot be looked at just now; try again".into()),
                _ => return Err(WRONG.into()),
            };
            if !identity.takes(credential, store::now()) {
                return Err(WRONG.into());
            }
            let service = &held.listening.settings.service;
            let perspectives = perspectives(&identity, service);
            if perspectives.is_empty() {
                let asked = format!("{service}/");
                around.gate.note_refused(from, &Refused { identity: name.to_owned(), asked, why: "no such key" });
                return Err("no key for this service".into());
            }
            let (number, identity) = (self.next_login.fetch_add(1, Ordering::Relaxed), name.to_owned());
            let login = LoggedIn { number, identity, credential, perspectives };
            if let Ok(before) = held.log_in(login.clone(), changes) {
                if let Some(before) = before {
                    self.logins.lock().remove(&before.number);
                }
                return Ok(login);
            }
        }
    }

    /// Nobody in the service has a login any more, or it has heard that it has ended.
    pub(super) fn log_out(&self, from: Speaker<'_>, login: u64) {
        let of = self.logins.lock().get(&login).copied();
        let held = of.and_then(|number| self.stream_of(from, u64::from(number)));
        if let Some(held) = held.as_ref().filter(|held| held.is_closing() || held.is_cut()) {
            // What is left of it is still on its way to the client: who was logged in stays known to its end.
            return if held.is_heard_by(from.generation) {
                held.heard()
            };
        }
        self.logins.lock().remove(&login);
        if let Some((held, left)) = held.and_then(|held| held.log_out(login).map(|left| (held, left))) {
            held.entry.detached(&held.door());
            held.entry.left(&left.identity);
            held.told.notify_one();
        }
    }
}
