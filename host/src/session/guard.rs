//! What stands before every login: the throttle, the threads that check passwords, the audit trail, and who is logged in.
//! One for all doors of a host.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::Instant;

use parking_lot::Mutex;
use unicode_normalization::UnicodeNormalization;

use super::hashing::Hashing;
use super::sessions::Sessions;
use crate::cred::login::{Proof, Proven};
use crate::cred::throttle::{Counter, Denied, Digest, LOCKED, Throttle, Try};
use crate::cred::{AuthorizerError, HashCost, Password, ProofBy, Refusal, StoreSecret};
use crate::store::audit::Event;
use crate::store::{Kept, Store, StoreError, Write, ask, now};

/// Counters below this are not written down: a host that was restarted forgets a few failures.
const WORTH_KEEPING: u32 = 3;

/// See the module's page.
pub struct Guard {
    store: Arc<dyn Store>,
    secret: StoreSecret,
    throttle: Mutex<Throttle>,
    pub(super) hashing: Hashing,
    sessions: Arc<Sessions>,
    /// Whether Twisted's own login is offered.
    pub(super) stock: bool,
    seldom: Mutex<Seldom>,
    began: Instant,
}

/// What could be written into the trail over and over again by who is refused over and over again: one line a minute for
/// each, which says how often. When the last was written, in milliseconds, and how many have come since.
type Seldom = HashMap<Digest, (u64, u64)>;

/// How often a line of those is written, in milliseconds.
const SELDOM: u64 = 60_000;
/// So many of them are known at once. Beyond, all are forgotten, and written again.
const SELDOM_KEPT: usize = 10_000;

impl std::fmt::Debug for Guard {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Guard")
    }
}

/// A try that is being checked.
#[derive(Debug, Clone)]
pub(super) struct Trying {
    attempt: Try,
    name: String,
    source: IpAddr,
    peer: String,
    how: &'static str,
}

impl Trying {
    /// The same, of this name, if it is known.
    pub(super) fn of(self, name: Option<String>) -> Self {
        match name {
            Some(name) => Self { name, ..self },
            None => self,
        }
    }
}

impl Guard {
    /// A guard that writes into this store. `secret` is what names and sources are digested with; `budget` is the memory
    /// that checking passwords may take, in KiB.
    #[must_use]
    pub fn new(store: Arc<dyn Store>, secret: StoreSecret, cost: HashCost, budget: u32, stock: bool) -> Arc<Self> {
        Arc::new(Self {
            store,
            secret,
            throttle: Mutex::new(Throttle::new()),
            hashing: Hashing::new(budget, cost.memory),
            sessions: Sessions::new(),
            stock,
            seldom: Mutex::default(),
            began: Instant::now(),
        })
    }

    /// Takes up what was counted in an earlier life of the host.
    ///
    /// # Errors
    /// When the store cannot be read.
    pub async fn restore(&self) -> Result<(), StoreError> {
        let failures = ask(|done| self.store.failures(done)).await?;
        let mut throttle = self.throttle.lock();
        for (counter, count) in failures {
            throttle.restore(counter, count, self.now());
        }
        Ok(())
    }

    /// Who is logged in.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.sessions
    }

    fn now(&self) -> u64 {
        u64::try_from(self.began.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn digest(&self, purpose: &str, bytes: &[u8]) -> Digest {
        let mut digest = Digest::default();
        digest.copy_from_slice(&self.secret.digest(purpose, &[bytes])[..16]);
        digest
    }

    fn name_digest(&self, name: &str) -> Digest {
        Self::digest_of(&self.secret, name)
    }

    /// What a name's counters are kept under, however it is spelled.
    #[must_use]
    pub fn digest_of(secret: &StoreSecret, name: &str) -> Digest {
        let name: String = name.nfc().collect();
        let mut digest = Digest::default();
        digest.copy_from_slice(&secret.digest("name", &[name.as_bytes()])[..16]);
        digest
    }

    fn source_digest(&self, source: IpAddr) -> Digest {
        match network(source) {
            IpAddr::V4(address) => self.digest("source", &address.octets()),
            IpAddr::V6(address) => self.digest("source", &address.octets()[..8]),
        }
    }

    /// A try to log in: charged at once, whether the name is anybody's or not.
    pub(super) async fn begin(
        &self,
        name: &str,
        source: IpAddr,
        peer: &str,
        how: &'static str,
    ) -> Result<Result<Trying, Refusal>, AuthorizerError> {
        let (of_name, of_source) = (self.name_digest(name), self.source_digest(source));
        let known = ask(|done| self.store.is_known_source(name, &of_source, done)).await?;
        let begun = self.throttle.lock().begin(of_name, of_source, known, self.now());
        Ok(match begun {
            Ok(attempt) => Ok(Trying { attempt, name: name.to_owned(), source, peer: peer.to_owned(), how }),
            Err(denied) => {
                let refusal = match denied {
                    Denied::Wait(wait) => Refusal::Wait(wait.div_ceil(1000)),
                    Denied::Locked => Refusal::Locked,
                };
                tracing::debug!(peer, how, "login not looked at: {refusal}");
                // Looked up for every name alike, though it is written down of those alone that there are.
                let there = ask(|done| self.store.identity(name, done)).await?.is_some();
                let shown = if there { name.to_owned() } else { self.unknown(name) };
                let why = match refusal {
                    Refusal::Locked => "locked: too many failed logins; `credhost identity unlock`",
                    _ => "too many failed logins: not looked at",
                };
                let event = Event::new("login.refused").with("identity", shown).with("peer", peer);
                self.note_seldom(&["throttle", name, peer_address(peer), why], event.with("how", how).with("why", why));
                Err(refusal)
            }
        })
    }

    /// The proof was checked: counts, and writes it down.
    pub(super) fn judge(&self, trying: Trying, proof: &Proof) {
        match proof {
            Ok(proven) => self.succeeded(trying, proven),
            Err(refusal) => self.failed(trying, *refusal),
        }
    }

    /// The proof was right.
    fn succeeded(&self, trying: Trying, proven: &Proven) {
        let counter = self.counter(&trying);
        let pardoned = self.throttle.lock().succeeded(trying.attempt);
        let name = proven.identity.name.as_str();
        let label = proven.identity.credentials.iter().find(|credential| credential.id == proven.credential);
        let event = Event::new("login")
            .with("identity", name)
            .with("peer", trying.peer)
            .with("how", trying.how)
            .with("credential", label.map_or("?", |credential| credential.label.as_str()));
        let at = now();
        // Also of one that is known: those that are not used for long make room.
        let source = Write::Source { name: name.to_owned(), source: self.source_digest(trying.source), at };
        let mut writes = vec![Write::Audit(event), source];
        if pardoned {
            writes.push(Write::Failures(counter, 0));
        }
        self.write(writes);
    }

    fn counter(&self, trying: &Trying) -> Counter {
        self.throttle.lock().counter(trying.attempt)
    }

    /// The proof was wrong, or there was nothing to prove.
    pub(super) fn failed(&self, trying: Trying, refusal: Refusal) {
        let mut writes = Vec::new();
        if refusal == Refusal::Busy {
            self.throttle.lock().withdrawn(trying.attempt);
        } else {
            let (counter, failures) = self.throttle.lock().failed(trying.attempt);
            if failures.count >= WORTH_KEEPING {
                writes.push(Write::Failures(counter, failures.count));
            }
            if failures.count == LOCKED && !matches!(refusal, Refusal::UnknownName | Refusal::UnknownToken) {
                tracing::warn!(name = trying.name, "locked: {LOCKED} logins in a row have failed");
                let event = Event::new("identity.locked").with("identity", trying.name.clone());
                writes.push(Write::Audit(event.with("failures", LOCKED)));
            }
        }
        // People type their password where their name should be: a name that is nobody's is not written down.
        let name = match refusal {
            Refusal::UnknownName | Refusal::UnknownToken => self.unknown(&trying.name),
            _ => trying.name.clone(),
        };
        tracing::info!(peer = trying.peer, name, how = trying.how, "login refused: {refusal}");
        let event = Event::new("login.refused")
            .with("identity", name)
            .with("peer", trying.peer)
            .with("how", trying.how)
            .with("why", refusal.to_string());
        writes.push(Write::Audit(event));
        self.write(writes);
    }

    /// How a name that is nobody's is written down.
    fn unknown(&self, name: &str) -> String {
        format!("(unknown {})", data_encoding::HEXLOWER.encode(&self.name_digest(name)[..4]))
    }

    /// Somebody who has proven who they are is refused all the same.
    pub(super) fn refused(&self, name: &str, peer: &str, what: &str, why: &str) {
        let event =
            Event::new("refused").with("identity", name).with("peer", peer).with("asked", what).with("why", why);
        self.note_seldom(&["refused", name, peer_address(peer), what], event);
    }

    /// Writes a line into the trail, unless one like it was written a moment ago: then it counts for the next.
    fn note_seldom(&self, of: &[&str], event: Event) {
        let parts: Vec<&[u8]> = of.iter().map(|part| part.as_bytes()).collect();
        let mut key = Digest::default();
        key.copy_from_slice(&self.secret.digest("seldom", &parts)[..16]);
        let now = self.now();
        let times = {
            let mut seldom = self.seldom.lock();
            if seldom.len() >= SELDOM_KEPT {
                seldom.clear();
            }
            match seldom.get_mut(&key) {
                Some((last, more)) if now.saturating_sub(*last) < SELDOM => {
                    *more += 1;
                    return;
                }
                Some((last, more)) => {
                    *last = now;
                    std::mem::take(more) + 1
                }
                None => {
                    seldom.insert(key, (now, 0));
                    1
                }
            }
        };
        self.write(vec![Write::Audit(if times > 1 { event.with("times", times) } else { event })]);
    }

    /// It could not be checked: it does not count.
    pub(super) fn withdrawn(&self, trying: &Trying) {
        self.throttle.lock().withdrawn(trying.attempt);
    }

    /// A person acts: all counters of this name begin anew. Answers with how many there were.
    pub fn unlock(&self, name: &str) -> usize {
        let counters = self.throttle.lock().unlock(self.name_digest(name));
        let count = counters.len();
        self.write(counters.into_iter().map(|counter| Write::Failures(counter, 0)).collect());
        count
    }

    /// How many tries in a row have failed for a name: the most that one of its counters says.
    #[must_use]
    pub fn failures(&self, name: &str) -> u32 {
        let of = self.throttle.lock().of(self.name_digest(name));
        of.iter().map(|(_, failures)| failures.count).max().unwrap_or(0)
    }

    /// Hashes a password anew, which was right just now: the cost has risen since it was set.
    pub(super) fn rehash(self: &Arc<Self>, source: IpAddr, proven: &Proven, password: Password, cost: HashCost) {
        let (me, id) = (Arc::clone(self), proven.credential);
        let name = proven.identity.name.to_string();
        let Some((_, proved)) = proven.identity.hashes(0).into_iter().find(|(of, _)| *of == id) else { return };
        // If there is no room now, the next login will do.
        let _ = self.hashing.submit(network(source), cost.memory, move || {
            let (store, name) = (Arc::clone(&me.store), name.as_str());
            // With the salt that it has: its other passwords have the same, and all are checked at the cost of one.
            let Some(salt) = Password::salt_of(&proved) else { return };
            let Ok(hash) = password.hash(cost, &salt) else { return };
            let Ok(Some(Kept { identity, version })) = crate::store::wait(|done| store.identity(name, done)) else {
                return;
            };
            let mut identity = crate::cred::Identity::clone(&identity);
            let credential = identity.credentials.iter_mut().find(|credential| credential.id == id);
            // Another may have been set meanwhile, under the same number if the identity was imported anew.
            if let Some(ProofBy::Password { hash: old, .. }) = credential.map(|credential| &mut credential.proof)
                && *old == proved
            {
                *old = hash;
                let event = Event::new("identity.rehashed").with("identity", name);
                // Changed by another meanwhile: the next login will do.
                let write = Write::Identity { identity: Arc::new(identity), base: version };
                me.store.commit(vec![write, Write::Audit(event)], Box::new(|_| {}));
            }
        });
    }

    fn write(&self, writes: Vec<Write>) {
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.store.commit(writes, Box::new(done));
    }
}

/// An address without its port: who connects anew is the same.
fn peer_address(peer: &str) -> &str {
    peer.rsplit_once(':').map_or(peer, |(address, _)| address)
}

/// What a source is: who has one address of IPv6 has 2^64 of them.
pub(super) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let bits = u128::from(address) >> 64 << 64;
            IpAddr::V6(bits.into())
        }
        other => other,
    }
}
