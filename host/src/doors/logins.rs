//! Logins by a stream: the same gate as for PB, the same time for a refusal, the same line in the trail.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Instant;

use plugin_api::abi::frame::ToLibrary;
use unicode_normalization::UnicodeNormalization;

use super::Doors;
use super::held::Held;
use super::words::{Asker, LoggedIn, Via};
use crate::cred::login::KeyChallenge;
use crate::cred::{Identity, Password, PublicKey, Refusal, Token};
use crate::login_gate::Source;
use crate::multiservice::Speaker;
use crate::session::login::{Found, Proof, Question, Refused};
use crate::store;

/// The message of a refused login: the same whether the name exists or not.
const WRONG: &str = "wrong name or password";

/// Whether the access that a login came by still exists.
pub(super) fn still(identity: &Identity, login: &LoggedIn, service: &str) -> bool {
    let has = perspectives(identity, service);
    identity.enabled
        && identity.takes(login.credential, store::now())
        && login.perspectives.iter().all(|perspective| has.contains(perspective))
}

/// The names of an identity's perspectives on a service.
pub(super) fn perspectives(identity: &Identity, service: &str) -> Vec<String> {
    let own = identity.keyring.keys().filter(|key| key.service.as_str() == service);
    own.map(|key| key.perspective.to_string()).collect()
}

/// A refused login: the message for the client, and the seconds until the next attempt is checked.
pub(super) struct Denied {
    pub(super) message: String,
    pub(super) wait: u64,
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

impl Held {
    /// The source of a request on this stream. `source` is the address that a proxy names; it counts if the operator
    /// trusts the proxy.
    pub(super) fn whose(&self, source: &str) -> Source {
        let said = Some(source).filter(|_| self.is_proxy()).and_then(|source| source.parse::<IpAddr>().ok());
        let (address, peer) = match said {
            Some(said) => (SocketAddr::new(said, 0), said.to_canonical().to_string()),
            None => (self.source, self.peer.clone()),
        };
        Source { address, peer, door: Some(self.door().into()) }
    }

    /// What a remembered login is bound to if its token is shown here.
    pub(super) fn via(&self) -> Via {
        let settings = &self.listening.settings;
        Via { service: settings.service.clone(), grants: settings.grants, encrypted: self.is_tls() }
    }
}

fn public_key(line: &[u8]) -> Result<PublicKey, String> {
    let line = std::str::from_utf8(line).map_err(|_| "a public key must be text".to_owned())?;
    PublicKey::parse(line).map(|(key, _)| key).map_err(|error| error.to_string())
}

/// A key that the service says the client has proven to hold. Accepted if the operator lets the service vouch.
fn vouched(held: &Held, name: &str, key: &[u8]) -> Result<Proof, String> {
    let settings = &held.listening.settings;
    if !settings.grants.vouch {
        let service = &settings.service;
        tracing::warn!(
            service,
            "the service tried to vouch for a key, without permission: [service.{service}] may = [\"vouch\"]"
        );
        return Err(format!(
            "the operator does not let the service vouch for keys: [service.{service}] may = [\"vouch\"] in credhost.toml"
        ));
    }
    Ok(Proof::Vouched(name.to_owned(), public_key(key)?))
}

/// The certificate that the client has presented in TLS. Without a `name`, the certificate names the identity.
fn certified(held: &Held, name: &str) -> Result<Proof, String> {
    let certificate = held.certificate().ok_or_else(|| match held.listening.settings.certificates {
        true => "the client has presented no usable certificate".to_owned(),
        false => "the operator has not set certificates = true for this listener".to_owned(),
    })?;
    let name = match name {
        "" => certificate.name.clone().ok_or("the certificate has no name: give one")?,
        name => name.to_owned(),
    };
    Ok(Proof::Certificate(name, certificate.key.clone()))
}

impl Doors {
    /// A service submits a proof, or asks for a challenge to sign.
    pub(super) fn authenticate(
        &self,
        asker: Asker,
        held: Option<Arc<Held>>,
        (kind, name, secret): (u64, &str, &[u8]),
        source: &str,
    ) {
        let Some(held) = held else { return self.refuse(asker, "the client has gone") };
        let from = held.whose(source);
        // Without a name, the token determines the identity.
        let named = Some(name.nfc().collect::<String>()).filter(|name| !name.is_empty());
        let proof = match kind {
            1 | 2 => self.secret(&held, kind, name, secret),
            3 => vouched(&held, name, secret),
            7 => certified(&held, name),
            4 => return self.challenge(asker, &held, name, secret),
            6 => {
                let token = Token::received(std::str::from_utf8(secret).unwrap_or_default());
                return self.resume(asker, held.via(), from, token);
            }
            _ => match held.challenged() {
                Some(challenge) if challenge.name() == named.as_deref().unwrap_or_default() => {
                    Ok(Proof::Key(challenge, secret.to_vec()))
                }
                _ => Err("there is no challenge to sign: request one first".to_owned()),
            },
        };
        let proof = match proof {
            Ok(proof) => proof,
            Err(why) => return self.refuse(asker, why),
        };
        if !held.begins_asking() {
            return self.refuse(asker, "another login is in progress: one at a time");
        }
        self.prove(asker, held, from, proof, named);
    }

    /// A password or a token. Accepted only where nobody can eavesdrop.
    fn secret(&self, held: &Held, kind: u64, name: &str, secret: &[u8]) -> Result<Proof, String> {
        let rules = self.around.gate.rules();
        let near = held.source.ip().to_canonical().is_loopback() && rules.loopback_is_private;
        if !(held.is_tls() || near || held.listening.settings.encrypted) {
            return Err("passwords and tokens need TLS here".to_owned());
        }
        Ok(match (kind, std::str::from_utf8(secret)) {
            // Programs that know only passwords send a token as the password.
            (1, Ok(token)) if Token::looks_like(token) => Proof::Token(Token::received(token)),
            (1, Ok(password)) => Proof::Password(name.to_owned(), Password::new(password)),
            (2, Ok(token)) => Proof::Token(Token::received(token)),
            // A password must be text.
            _ => Proof::Password(name.to_owned(), Password::new("")),
        })
    }

    /// A challenge to sign, for any name and key.
    fn challenge(&self, asker: Asker, held: &Held, name: &str, key: &[u8]) {
        let mut random = [0; 32];
        if getrandom::fill(&mut random).is_err() {
            return self.refuse(asker, "the system has no randomness");
        }
        let key = match public_key(key) {
            Ok(key) => key,
            Err(why) => return self.refuse(asker, why),
        };
        let challenge = KeyChallenge::new(name, key, &random);
        let bytes = challenge.bytes().to_vec();
        held.challenges(challenge);
        self.later(move |me| me.tell(&asker, &bytes));
    }

    /// Has a proof checked, and answers.
    fn prove(&self, asker: Asker, held: Arc<Held>, from: Source, proof: Proof, named: Option<String>) {
        let (Some(me), request) = (self.me.upgrade(), asker.request) else { return };
        self.spawn(async move {
            let came = Instant::now();
            let answered = me.log_in(&held, &from, proof, named).await;
            if answered.is_err() {
                // Every refusal is sent after the same time, which is longer than the slowest check takes.
                let leaves = came + me.limits.read().refusal;
                tokio::time::sleep_until(leaves.into()).await;
            }
            held.ends_asking();
            match answered {
                Ok(login) => {
                    let (identity, login) = (login.identity.as_str(), &login);
                    let perspectives = &*jelly::to_vec(&login.perspectives).unwrap_or_default();
                    let (login, token) = (login.number, &[][..]);
                    me.answer(&asker, &ToLibrary::LoggedIn { request, login, identity, perspectives, token });
                }
                Err(Denied { message, wait }) => me.not_logged_in(&asker, &message, wait),
            }
        });
    }

    async fn log_in(
        &self,
        held: &Arc<Held>,
        from: &Source,
        proof: Proof,
        named: Option<String>,
    ) -> Result<LoggedIn, Denied> {
        let around = &self.around;
        let removals = held.entry.removals();
        let (name, credential) = match around.gate.answer(&around.login, from, Question::Prove(proof)).await {
            Found::Proven(name, credential) => (name, credential),
            Found::NotChecked(refusal) => return Err(refusal.into()),
            Found::Broken => return Err("logins cannot be looked at just now; try again".into()),
            Found::Wrong | Found::Identity(_) => return Err(WRONG.into()),
        };
        if let Some(asked) = named.filter(|named| *named != name) {
            let why = "a token of another identity";
            around.gate.note_refused(from, &Refused { identity: name, asked, why });
            return Err(WRONG.into());
        }
        let before = held.login().map(|login| login.identity);
        // From now on the stream is notified of changes. An earlier change shows in the next lookup of the identity.
        held.entry.enter(&name);
        let admitted = self.admit(held, from, (&name, credential), removals).await;
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
        // The stream may have ended meanwhile. Then this login must be forgotten here.
        if held.has_ended() {
            if let Ok(login) = &admitted {
                self.over(login.number);
            }
            held.entry.close();
        }
        admitted
    }

    /// The proof was right. Checks that the identity still has the access that it needs.
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
            let (number, identity) = (self.next_login(), name.to_owned());
            let login = LoggedIn { number, identity, credential, perspectives, removals, from: from.peer.clone() };
            if let Ok(before) = held.log_in(login.clone(), changes) {
                if let Some(before) = before {
                    self.over(before.number);
                }
                return Ok(login);
            }
        }
    }

    /// The service has released a login, or has processed its end.
    pub(super) fn log_out(&self, from: Speaker<'_>, login: u64, answers: u64) {
        if let Some(lasting) = self.lasting_of(from, login) {
            return lasting.let_go_by(from.generation, answers);
        }
        let of = self.logins.lock().get(&login).copied();
        let held = of.and_then(|number| self.stream_of(from, u64::from(number)));
        if let Some(held) = held.as_ref().filter(|held| held.is_closing() || held.is_cut()) {
            // Output may still be on its way to the client: the login is kept until the stream has ended.
            return if held.is_heard_by(from.generation) {
                held.heard()
            };
        }
        self.over(login);
        if let Some((held, left)) = held.and_then(|held| held.log_out(login).map(|left| (held, left))) {
            held.entry.detached(&held.door());
            held.entry.left(&left.identity);
            held.told.notify_one();
        }
    }
}
