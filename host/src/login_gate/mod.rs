//! The stage before every login: the throttle, the threads that check passwords, and the trail. All listeners of a host
//! share one gate. It answers the questions of their sessions.
//!
//! One file, although it is long: every outcome of a login must count for the throttle, the trail and the known sources.

mod checking;
mod hashing;
mod trail;

use std::collections::{HashSet, VecDeque};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use unicode_normalization::UnicodeNormalization;

use self::checking::{Begun, Checking};
use self::hashing::Hashing;
use self::trail::Trail;
use crate::cred::login::{self, Login, Proven};
use crate::cred::throttle::{Counter, Denied, Digest, LOCKED, Throttle, Try};
use crate::cred::{AuthorizerError, HashCost, Password, ProofBy, Refusal, StoreSecret};
use crate::session::Limits;
use crate::session::login::{Found, Proof, Question, Refused};
use crate::sessions::SessionStatus;
use crate::store::audit::Event;
use crate::store::{Kept, Store, StoreError, Write, ask, now};

/// Lower counters are not stored: a restart of the host forgets a few failures.
const WORTH_KEEPING: u32 = 3;

/// How long an attempt waits for others that are being checked.
const TURN: Duration = Duration::from_secs(10);

/// See the module's page.
pub struct LoginGate {
    store: Arc<dyn Store>,
    secret: StoreSecret,
    throttle: Mutex<Throttle>,
    checking: Arc<Checking>,
    hashing: Hashing,
    trail: Trail,
    rules: LoginRules,
    /// Sources of earlier logins.
    known: Mutex<Known>,
    began: Instant,
}

/// Digests of sources, the latest last.
struct Known {
    /// The most sources that are remembered. Beyond that, the oldest is forgotten.
    most: usize,
    all: HashSet<Digest>,
    order: VecDeque<Digest>,
    /// Whether all sources in the store are here.
    complete: bool,
}

impl Default for Known {
    fn default() -> Self {
        Self { most: Limits::default().known_sources, all: HashSet::new(), order: VecDeque::new(), complete: false }
    }
}

impl Known {
    fn insert(&mut self, source: Digest) {
        if self.all.insert(source) {
            self.order.push_back(source);
            self.forget();
        }
    }

    fn forget(&mut self) {
        while self.order.len() > self.most
            && let Some(oldest) = self.order.pop_front()
        {
            self.all.remove(&oldest);
            self.complete = false;
        }
    }

    /// Whether it is certain that nobody has ever logged in from this source.
    fn is_nobodys(&self, source: &Digest) -> bool {
        self.complete && !self.all.contains(source)
    }
}

impl std::fmt::Debug for LoginGate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LoginGate")
    }
}

/// The accepted kinds of login.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct LoginRules {
    /// Twisted's own login, by md5(password).
    pub stock: bool,
    /// Whether clients on this machine may send passwords and tokens in the clear.
    pub loopback_is_private: bool,
}

impl Default for LoginRules {
    fn default() -> Self {
        Self { stock: true, loopback_is_private: true }
    }
}

/// The origin of a login.
#[derive(Debug, Clone)]
pub(crate) struct Source {
    /// The client's address.
    pub(crate) address: SocketAddr,
    /// The client's address, formatted for people.
    pub(crate) peer: String,
    /// The service's own door that it came by, if any, such as "chat:irc".
    pub(crate) door: Option<Arc<str>>,
}

impl Source {
    /// Creates an event about an identity of this name, from this source.
    fn event(&self, what: &'static str, identity: &str) -> Event {
        let event = Event::new(what).with("identity", identity).with("peer", self.peer.as_str());
        door(event, self.door.as_deref())
    }
}

fn door(event: Event, door: Option<&str>) -> Event {
    match door {
        Some(door) => event.with("door", door),
        None => event,
    }
}

/// An attempt that is being checked.
#[derive(Debug, Clone)]
struct Trying {
    attempt: Try,
    /// Attempts that this one blocks wait for it to be dropped.
    _begun: Arc<Begun>,
    name: String,
    source: IpAddr,
    peer: String,
    door: Option<Arc<str>>,
    how: &'static str,
    /// Whether guessing is impossible: a key that has already signed either belongs to an identity, or does not.
    certain: bool,
}

impl Trying {
    /// Replaces the name, if one is given.
    fn of(self, name: Option<String>) -> Self {
        match name {
            Some(name) => Self { name, ..self },
            None => self,
        }
    }
}

impl LoginGate {
    /// Creates a gate that writes into this store. `secret` is the key for the digests of names and sources. `budget`
    /// is the memory for password checks, in KiB.
    #[must_use]
    pub fn new(
        store: Arc<dyn Store>,
        secret: StoreSecret,
        cost: HashCost,
        budget: u32,
        rules: LoginRules,
    ) -> Arc<Self> {
        Arc::new(Self {
            trail: Trail::new(Arc::clone(&store), secret.clone()),
            store,
            secret,
            throttle: Mutex::new(Throttle::new()),
            checking: Checking::new(),
            hashing: Hashing::new(budget, cost.memory),
            rules,
            known: Mutex::default(),
            began: Instant::now(),
        })
    }

    /// Sets how many password checks may wait, in all and of one source.
    pub fn set_checks(&self, waiting: usize, of_source: usize) {
        self.hashing.set_limits(waiting, of_source);
    }

    /// Sets how many sources of earlier logins are remembered.
    pub fn set_known_sources(&self, most: usize) {
        let mut known = self.known.lock();
        known.most = most;
        known.forget();
    }

    /// Restores the counters and sources that the store has from before the host was restarted.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn restore(&self) -> Result<(), StoreError> {
        let failures = ask(|done| self.store.failures(done)).await?;
        {
            let mut throttle = self.throttle.lock();
            for (counter, count) in failures {
                throttle.restore(counter, count, self.now());
            }
        }
        let most = self.known.lock().most;
        let sources = ask(|done| self.store.sources(most, done)).await?;
        let mut known = self.known.lock();
        known.complete = sources.len() < most;
        sources.into_iter().rev().for_each(|source| known.insert(source));
        Ok(())
    }

    /// Reads forgotten sources again, if more may be remembered now.
    ///
    /// # Errors
    /// If the store cannot be read.
    pub async fn remember_more(&self) -> Result<(), StoreError> {
        let most = {
            let known = self.known.lock();
            if known.complete || known.order.len() >= known.most {
                return Ok(());
            }
            known.most
        };
        let sources = ask(|done| self.store.sources(most, done)).await?;
        let mut known = self.known.lock();
        // Those of this host's life are the latest.
        let since: Vec<Digest> = known.order.drain(..).collect();
        known.all.clear();
        known.complete = sources.len() < most;
        sources.into_iter().rev().chain(since).for_each(|source| known.insert(source));
        Ok(())
    }

    /// Whether anybody has logged in from this source before.
    #[must_use]
    pub fn is_known(&self, source: IpAddr) -> bool {
        self.known.lock().all.contains(&self.source_digest(source))
    }

    /// The accepted kinds of login.
    #[must_use]
    pub fn rules(&self) -> LoginRules {
        self.rules
    }

    /// Answers a session's question. The outcome of a check counts even if nobody waits for it any more.
    pub(crate) async fn answer(self: &Arc<Self>, login: &Login, from: &Source, question: Question) -> Found {
        match question {
            Question::Identity(name) => {
                login.identity(&name).await.map_or_else(|error| broken(&error), Found::Identity)
            }
            Question::Prove(proof) => self.prove(login, from, proof).await.unwrap_or_else(|error| broken(&error)),
        }
    }

    async fn prove(self: &Arc<Self>, login: &Login, from: &Source, proof: Proof) -> Result<Found, AuthorizerError> {
        let (name, how) = match &proof {
            Proof::Stock(challenge, _) => (challenge.name().to_owned(), "stock"),
            Proof::Key(challenge, _) => (challenge.name().to_owned(), "key"),
            Proof::Vouched(name, _) => (name.clone(), "key"),
            Proof::Certificate(name, _) => (name.clone(), "certificate"),
            Proof::Password(name, _) => (name.clone(), "password"),
            // Guesses at tokens are counted by their source, since there is no name.
            Proof::Token(token) => (data_encoding::HEXLOWER.encode(&token.digest()), "token"),
        };
        let certain = matches!(proof, Proof::Vouched(..) | Proof::Certificate(..));
        let trying = match self.begin(&name, from, how).await? {
            Ok(trying) => Trying { certain, ..trying },
            Err(refusal) => return Ok(Found::NotChecked(refusal)),
        };
        let (proof, trying) = match proof {
            Proof::Password(name, password) => return self.check_password(login, &name, password, trying).await,
            Proof::Stock(challenge, response) => (login.respond(&challenge, &response, now()).await, trying),
            Proof::Key(challenge, signature) => (login.sign(&challenge, &signature, now()).await, trying),
            Proof::Vouched(name, key) | Proof::Certificate(name, key) => {
                (login.vouched(&name, &key, now()).await, trying)
            }
            Proof::Token(token) => match login.token(&token, now()).await {
                // The owner's name is only for the trail.
                Ok((proof, owner)) => (Ok(proof), trying.of(owner)),
                Err(error) => (Err(error), trying),
            },
        };
        let proof = proof.inspect_err(|_| self.withdrawn(&trying))?;
        self.record_outcome(trying, &proof);
        Ok(found(&proof))
    }

    /// Checks a password on a thread that may block.
    async fn check_password(
        self: &Arc<Self>,
        login: &Login,
        name: &str,
        password: Password,
        trying: Trying,
    ) -> Result<Found, AuthorizerError> {
        let check = login.password(name, password.clone(), now()).await.inspect_err(|_| self.withdrawn(&trying))?;
        let (done, checked) = tokio::sync::oneshot::channel();
        let (me, kept, source) = (Arc::clone(self), trying.clone(), trying.source);
        // Recorded there, not by the waiting task: the attempt counts even if the client has disconnected.
        let record = move |proof: login::Proof| {
            me.record_outcome(trying, &proof);
            // The waiting task may have ended.
            let _ = done.send(proof);
        };
        let from = (network(source), self.is_known(source));
        let submitted = self.hashing.submit(from, check.memory(), move || check.run(), record);
        if submitted.is_err() {
            self.failed(kept, Refusal::Busy);
            return Ok(Found::NotChecked(Refusal::Busy));
        }
        // The job has its own copy.
        drop(kept);
        let Ok(proof) = checked.await else {
            return Err(AuthorizerError("a password check was not completed".to_owned()));
        };
        if let Ok(proven) = &proof
            && login.is_cheap(proven)
        {
            self.rehash(source, proven, password, login.cost());
        }
        Ok(found(&proof))
    }

    /// Notes in the trail that a client was refused after a successful login.
    pub(crate) fn note_refused(&self, from: &Source, refused: &Refused) {
        let Refused { identity, asked, why } = refused;
        let event = from.event("refused", identity);
        let of = ["refused", identity, &network(from.address.ip()).to_string(), why];
        self.trail.note_summed(&of, asked, event.with("asked", asked.as_str()).with("why", *why), self.now());
    }

    /// Notes in the trail that an identity has ended one of its own sessions.
    pub(crate) fn note_ended(&self, session: &SessionStatus) {
        let event = Event::new("session.cut").with("session", session.session).with("peer", &*session.peer);
        let event = event.with("by", "its own identity").with("identities", session.identities.clone());
        self.trail.write(vec![Write::Audit(event)]);
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

    /// The digest under which a name's counters are stored. All spellings of a name give the same digest.
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

    /// Begins a login attempt. It is charged immediately, whether the name exists or not.
    async fn begin(
        &self,
        name: &str,
        from: &Source,
        how: &'static str,
    ) -> Result<Result<Trying, Refusal>, AuthorizerError> {
        let (source, peer) = (from.address.ip(), from.peer.as_str());
        let (of_name, of_source) = (self.name_digest(name), self.source_digest(source));
        // For a source that nobody has logged in from, the store need not be asked, whatever the name. Guesses by a
        // crowd come from many such sources.
        let nobodys = self.known.lock().is_nobodys(&of_source);
        let known = !nobodys && ask(|done| self.store.is_known_source(name, &of_source, done)).await?;
        Ok(match self.turn(of_name, of_source, known).await {
            Ok((attempt, begun)) => {
                let _begun = Arc::new(begun);
                let (name, peer, door) = (name.to_owned(), peer.to_owned(), from.door.clone());
                Ok(Trying { attempt, _begun, name, source, peer, door, how, certain: false })
            }
            Err(denied) => {
                let refusal = match denied {
                    Denied::Wait(wait) => Refusal::Wait(wait.div_ceil(1000)),
                    Denied::Locked => Refusal::Locked,
                    Denied::Busy(_) => Refusal::Busy,
                };
                tracing::debug!(peer, how, "login not checked: {refusal}");
                self.note_throttled(name, from, how, refusal).await?;
                Err(refusal)
            }
        })
    }

    /// Notes in the trail that an attempt was not checked.
    async fn note_throttled(
        &self,
        name: &str,
        from: &Source,
        how: &'static str,
        refusal: Refusal,
    ) -> Result<(), AuthorizerError> {
        let why = match refusal {
            Refusal::Locked => "locked: too many failed logins; `credhost identity unlock`",
            Refusal::Busy => "others of this name or source were being checked: not checked",
            _ => "too many failed logins: not checked",
        };
        let of = ["throttle", &network(from.address.ip()).to_string(), why];
        if self.trail.counts("login.refused", &of, name, self.now()) {
            return Ok(());
        }
        // Every name is looked up alike, but only names that exist are written in the clear.
        let there = ask(|done| self.store.identity(name, done)).await?.is_some();
        let shown = if there { name.to_owned() } else { self.unknown(name) };
        let event = from.event("login.refused", &shown).with("how", how).with("why", why);
        self.trail.note_summed(&of, name, event, self.now());
        Ok(())
    }

    /// Charges an attempt as soon as no attempt that is being checked blocks it.
    async fn turn(&self, name: Digest, source: Digest, known: bool) -> Result<(Try, Begun), Denied> {
        let counter = Counter::of(name, source, known);
        let begin = || {
            // The lock is held until the attempt is counted, so that the second of two concurrent attempts sees the
            // first.
            let mut throttle = self.throttle.lock();
            let attempt = throttle.begin(name, source, known, self.checking.of(counter, source), self.now())?;
            Ok((attempt, self.checking.begins(counter, source)))
        };
        let deadline = tokio::time::Instant::now() + TURN;
        let mut begun = begin();
        while let Err(Denied::Busy(held)) = begun {
            let Some(waits) = self.checking.waits(held) else { break };
            // It may have ended just before this login began to wait.
            begun = begin();
            while let Err(Denied::Busy(now)) = begun
                && now == held
            {
                if tokio::time::timeout_at(deadline, waits.ended.notified()).await.is_err() {
                    return begun;
                }
                begun = begin();
            }
        }
        begun
    }

    /// Counts the outcome of a check, and writes it into the trail.
    fn record_outcome(&self, trying: Trying, proof: &login::Proof) {
        match proof {
            Ok(proven) => self.succeeded(trying, proven),
            Err(refusal) => self.failed(trying, *refusal),
        }
    }

    /// Counts a successful login.
    fn succeeded(&self, trying: Trying, proven: &Proven) {
        let counter = self.counter(&trying);
        // This attempt is itself still counted as being checked.
        let [checking, _] = self.checking.of(counter, self.source_digest(trying.source));
        let pardoned = self.throttle.lock().succeeded(trying.attempt, checking.saturating_sub(1));
        let name = proven.identity.name.as_str();
        let label = proven.identity.credentials.iter().find(|credential| credential.id == proven.credential);
        let event =
            Event::new("login").with("identity", name).with("peer", trying.peer.as_str()).with("how", trying.how);
        let event = door(event, trying.door.as_deref())
            .with("credential", label.map_or("?", |credential| credential.label.as_str()));
        let at = now();
        // Known sources are stored again, too, since those that are not used for long are removed first.
        let digest = self.source_digest(trying.source);
        self.known.lock().insert(digest);
        let source = Write::Source { name: name.to_owned(), source: digest, at };
        let of = ["login", name, &proven.credential.to_string(), &network(trying.source).to_string()];
        let mut writes = vec![source];
        writes.extend(self.trail.note(&of, name, event, self.now()).map(Write::Audit));
        if pardoned {
            writes.push(Write::Failures(counter, 0));
        }
        self.trail.write(writes);
    }

    fn counter(&self, trying: &Trying) -> Counter {
        self.throttle.lock().counter(trying.attempt)
    }

    /// Counts a failed login, or one that had nothing to prove.
    fn failed(&self, trying: Trying, refusal: Refusal) {
        let mut writes = Vec::new();
        // SSH clients try one key after another. This is not guessing, whether the name exists or not.
        if refusal == Refusal::Busy || trying.certain {
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
        // People sometimes type their password in place of their name, so unknown names are not written in the clear.
        let name = match refusal {
            // If it was not checked, it is not known whether the name exists.
            Refusal::UnknownName | Refusal::UnknownToken | Refusal::Busy => self.unknown(&trying.name),
            _ => trying.name.clone(),
        };
        tracing::info!(peer = trying.peer, name, how = trying.how, "login refused: {refusal}");
        let event = Event::new("login.refused")
            .with("identity", name)
            .with("peer", trying.peer.as_str())
            .with("how", trying.how);
        let event = door(event, trying.door.as_deref()).with("why", refusal.to_string());
        let of = ["failed", &network(trying.source).to_string(), &refusal.to_string()];
        writes.extend(self.trail.note(&of, &trying.name, event, self.now()).map(Write::Audit));
        self.trail.write(writes);
    }

    /// Writes the summaries that are due, or all of them.
    pub fn flush(&self, all: bool) {
        self.trail.flush((!all).then(|| self.now()));
    }

    /// The form of an unknown name in the trail.
    fn unknown(&self, name: &str) -> String {
        format!("(unknown {})", data_encoding::HEXLOWER.encode(&self.name_digest(name)[..4]))
    }

    /// Ends an attempt that could not be checked. It does not count.
    fn withdrawn(&self, trying: &Trying) {
        self.throttle.lock().withdrawn(trying.attempt);
    }

    /// Resets all counters of this name, on the operator's request. Returns their number.
    pub fn unlock(&self, name: &str) -> usize {
        let counters = self.throttle.lock().unlock(self.name_digest(name));
        let count = counters.len();
        self.trail.write(counters.into_iter().map(|counter| Write::Failures(counter, 0)).collect());
        count
    }

    /// The number of failures in a row for a name: the highest of its counters.
    #[must_use]
    pub fn failures(&self, name: &str) -> u32 {
        let of = self.throttle.lock().of(self.name_digest(name));
        of.iter().map(|(_, failures)| failures.count).max().unwrap_or(0)
    }

    /// Hashes a password again that was just verified, since the cost was raised after it was set.
    fn rehash(self: &Arc<Self>, source: IpAddr, proven: &Proven, password: Password, cost: HashCost) {
        let (me, id) = (Arc::clone(self), proven.credential);
        let name = proven.identity.name.to_string();
        let Some((_, proved)) = proven.identity.hashes(0).into_iter().find(|(of, _)| *of == id) else { return };
        // bcrypt uses only the first 72 bytes, so the rest of the typed text may be wrong.
        if proved.starts_with("$2") && password.bytes() > 72 {
            return;
        }
        let salt = proven.identity.salt();
        // Reuses the identity's salt. Its other passwords have the same salt, so that checking all costs as much as checking
        // one. Another program's hash may have none that is usable: then the salt is unique, and cannot be guessed.
        let own = || me.secret.digest("salt of a hash", &[name.as_bytes(), proved.as_bytes()])[..16].to_vec();
        let salt = salt.unwrap_or_else(own);
        let (done, hashed) = tokio::sync::oneshot::channel();
        // Read and written by a task: nobody waits for it, and the outcomes of other checks must not.
        let replace = async move {
            let Ok(Ok(hash)) = hashed.await else { return };
            let Ok(Some(kept)) = ask(|done| me.store.identity(&name, done)).await else { return };
            replace_hash(&*me.store, kept, &name, (id, &proved), hash);
        };
        // Without a runtime, which an embedding program may not have, the hash stays.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        runtime.spawn(replace);
        let send = move |hash| {
            // The task may have ended with its runtime.
            let _ = done.send(hash);
        };
        // If the queue is full, the next login will do it.
        let _ = self.hashing.submit((network(source), true), cost.memory, move || password.hash(cost, &salt), send);
    }
}

/// Replaces the hash of one of an identity's passwords, if it is still the one that was proved.
fn replace_hash(store: &dyn Store, kept: Kept, name: &str, (id, proved): (u64, &str), hash: String) {
    let mut identity = crate::cred::Identity::clone(&kept.identity);
    let credential = identity.credentials.iter_mut().find(|credential| credential.id == id);
    // Another password may have been set meanwhile, with the same number if the identity was imported again.
    if let Some(ProofBy::Password { hash: old, .. }) = credential.map(|credential| &mut credential.proof)
        && *old == proved
    {
        *old = hash;
        let event = Event::new("identity.rehashed").with("identity", name);
        // If it was changed meanwhile, the next login will do it.
        let write = Write::Identity { identity: Arc::new(identity), base: kept.version };
        store.commit(vec![write, Write::Audit(event)], Box::new(|_| {}));
    }
}

fn broken(error: &AuthorizerError) -> Found {
    tracing::error!(%error, "identities cannot be looked up");
    Found::Broken
}

fn found(proof: &login::Proof) -> Found {
    match proof {
        Ok(proven) => Found::Proven(proven.identity.name.to_string(), proven.credential),
        Err(_) => Found::Wrong,
    }
}

/// The network that counts as one source. For IPv6 it is a /64: a client with one address has all 2^64 of them.
pub(crate) fn network(source: IpAddr) -> IpAddr {
    match source.to_canonical() {
        IpAddr::V6(address) => {
            let bits = u128::from(address) >> 64 << 64;
            IpAddr::V6(bits.into())
        }
        other => other,
    }
}
