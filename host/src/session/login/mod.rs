//! Login as a state machine: the root, challengers, an identity's wrapper, an avatar. One root serves both eras.
//!
//! | era | root | then | then |
//! |---|---|---|---|
//! | old | `username(name)` | `respond(proof)`: a wrapper, or None | `attach(service, perspective, mind)` |
//! | new | `login(name)` | `respond(proof, mind)`: the perspective that the name asks for, or an avatar | `attach(service, perspective=None, mind=None)`, `keys()`, `identity()` |
//! | new | `loginAnonymous(mind)`, where the listener's [`ListenerRules`](crate::cred::ListenerRules) have it: a perspective | | |
//! | ours | `loginPassword(name, password, mind=None)`, over TLS or on one machine | | as new |
//! | ours | `loginKey(name, key, mind=None)`: something to sign, and a challenger | `respond(signature)` | as new |
//! | ours | `loginToken(token, mind=None)`: an avatar | | as new |
//! | ours | `loginWithin(mind=None)`: the avatar of the identity that has logged in by a service's own door and owns this connection | | as new |
//!
//! In addition to `attach`, `keys` and `identity`, an avatar of the new era has `describe(service)`: a service's
//! description of itself, if the identity has a key for the service.
//!
//! Login never waits. It asks outside as a [`Question`] (is this proof right? what is this identity now?); the answer
//! comes later, as mail, and continues in [`Login::resume`]. If the identity has changed between question and answer,
//! login asks again, so that nobody receives what was revoked meanwhile.
//!
//! Source: `twisted.spread.pb` (`AuthServ`, `AuthChallenger`, `IdentityWrapper`; `_PortalRoot`,
//! `_PortalAuthChallenger`).

mod arguments;
mod pending;
mod resume;
mod words;

use std::sync::Arc;
use std::time::Instant;

use blake2::{Blake2s256, Digest};
use pb::{Call, Failure, Tables};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use self::arguments::Arguments;
use self::pending::{Asked, Changed, Pending, Then};
pub(crate) use self::words::{
    Attach, Found, Now, Outcome, Policy, Proof, ProvenBefore, Question, QuestionNo, Refused, Step,
};
use super::attachments::{Era, Scope};
use super::mind::{GivenMind, Mind};
use super::numbers::{LoginKind, LoginNo, Object, Table};
use super::references::{insecure, reference, revoked};
use crate::cred::CurrentRules;
use crate::cred::login::{Challenge, KeyChallenge, Wanted};
use crate::cred::{Identity, Password, PublicKey, Refusal, Token};

/// An object of login that the client holds.
enum LoginObject {
    /// Waits for a proof. The client may answer more than once.
    Challenger(Box<Challenger>),
    /// Waits for a signature. The client may answer more than once.
    Signer(Box<Signer>),
    /// An identity that has logged in, by name. Its keys are looked up again for each attach.
    Avatar { name: String, era: Era, mind: Mind, credential: u64 },
}

/// Boxed, because the avatar is what stays, and it is smaller.
struct Challenger {
    challenge: Challenge,
    era: Era,
    wanted: Wanted,
}

struct Signer {
    challenge: KeyChallenge,
    wanted: Wanted,
    mind: Mind,
}

/// A refusal that is sent at its time.
struct Delayed {
    at: Instant,
    request: u64,
    /// The error. `None`: the answer is Jelly's None, as in the original.
    failure: Option<Failure>,
}

/// Jelly's None.
const NONE: &[u8] = &[1, 0x80, 1, 0x87];

/// See the module's page.
pub(crate) struct Login {
    policy: Policy,
    rules: Arc<CurrentRules>,
    randomness: Randomness,
    /// Boxed: most connections have one or two.
    objects: Table<LoginKind, Box<LoginObject>>,
    /// In the order in which they were asked. Few: see [`Login::is_full`].
    pending: Vec<(QuestionNo, Pending)>,
    questions: u64,
    delayed: Vec<Delayed>,
}

/// Random bytes of one connection, derived from a seed.
struct Randomness {
    seed: Zeroizing<[u8; 32]>,
    drawn: u64,
}

impl Randomness {
    fn draw(&mut self) -> [u8; 32] {
        self.drawn += 1;
        // A keyed hash of a counter: without the seed, it cannot be distinguished from random bytes.
        Blake2s256::new().chain_update(*self.seed).chain_update(self.drawn.to_le_bytes()).finalize().into()
    }
}

fn unauthorized() -> Failure {
    Failure::new("twisted.cred.error.UnauthorizedLogin", "")
}

fn no_such_method(method: &str) -> Failure {
    Failure::new("twisted.spread.flavors.NoSuchMethod", format!("No such method: remote_{method}"))
}

fn broken() -> Failure {
    Failure::new("twisted.cred.error.LoginFailed", "the host cannot check logins just now")
}

/// An attempt that was not checked: the same text for every name.
fn not_checked(refusal: Refusal) -> Failure {
    Failure::new("twisted.cred.error.LoginFailed", refusal.to_string())
}

fn unhandled(what: &str) -> Failure {
    Failure::new("twisted.cred.error.UnhandledCredentials", what)
}

/// Whether the root has a method of this name. It takes precedence over a listener's names.
#[must_use]
pub(crate) fn is_word(method: &str) -> bool {
    matches!(
        method,
        "username" | "login" | "loginPassword" | "loginKey" | "loginToken" | "loginAnonymous" | "loginWithin"
    )
}

impl Login {
    /// The logins of one connection. `seed` is random; challenges are derived from it.
    #[must_use]
    pub(crate) fn new(policy: Policy, rules: Arc<CurrentRules>, seed: [u8; 32]) -> Self {
        Self {
            policy,
            rules,
            randomness: Randomness { seed: Zeroizing::new(seed), drawn: 0 },
            objects: Table::default(),
            pending: Vec::new(),
            questions: 0,
            delayed: Vec::new(),
        }
    }

    /// The client calls the root (`None`) or an object of login.
    pub(crate) fn call(
        &mut self,
        tables: &mut Tables<Object>,
        object: Option<LoginNo>,
        call: &Call<'_>,
        now: Now,
    ) -> Outcome {
        let mut outcome = Outcome::of(call.request, call.answer, Step::Wait);
        let read = Arguments::read(call, self.policy.limits.mind);
        let step = read.and_then(|arguments| self.method(tables, object, call, &arguments, now, &mut outcome));
        outcome.step = step.unwrap_or_else(Step::Fail);
        if matches!(outcome.step, Step::Fail(_)) {
            outcome.kept = Mind::Nothing;
        }
        outcome
    }

    fn method(
        &mut self,
        tables: &mut Tables<Object>,
        object: Option<LoginNo>,
        call: &Call<'_>,
        arguments: &Arguments,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        let needs_answer = matches!(
            call.method,
            "attach" | "respond" | "loginPassword" | "loginKey" | "loginToken" | "loginAnonymous" | "loginWithin"
        );
        if !call.answer && needs_answer {
            // Nobody would receive the reference in the answer.
            return Err(Failure::new("ValueError", "this call must request an answer"));
        }
        match object {
            None => self.root_method(tables, call, arguments, now, outcome),
            Some(no) => self.object_method(no, call, arguments, now, outcome),
        }
    }

    fn root_method(
        &mut self,
        tables: &mut Tables<Object>,
        call: &Call<'_>,
        arguments: &Arguments,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        if let Some(proven) = self.policy.within.clone() {
            return match call.method {
                "loginWithin" => self.within(arguments, call, &proven, now, outcome),
                other => Err(no_such_method(other)),
            };
        }
        match call.method {
            "username" => self.challenge(tables, &arguments.text(0, "username")?, Era::Old),
            "login" => self.challenge(tables, &arguments.text(0, "username")?, Era::New),
            "loginPassword" => self.password(arguments, call, now, outcome),
            "loginKey" => self.key(tables, arguments, outcome),
            "loginToken" => self.token(arguments, call, now, outcome),
            "loginAnonymous" => self.anonymous(arguments, outcome),
            other => Err(no_such_method(other)),
        }
    }

    fn object_method(
        &mut self,
        no: LoginNo,
        call: &Call<'_>,
        arguments: &Arguments,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        match (self.objects.get_mut(no).map(|object| &mut **object), call.method) {
            (Some(LoginObject::Challenger(challenger)), "respond") => {
                let Challenger { challenge, era, wanted } = &**challenger;
                let (challenge, era, wanted) = (challenge.clone(), *era, wanted.clone());
                let mind = if era == Era::New { arguments.mind(1, "mind")? } else { Mind::Nothing };
                let proof = Proof::Stock(challenge, arguments.bytes(0, "response")?);
                outcome.kept = mind.clone();
                Ok(self.prove(Asked::new(call, era, wanted, mind, now), proof))
            }
            (Some(LoginObject::Signer(signer)), "respond") => {
                let Signer { challenge, wanted, mind } = &mut **signer;
                let (challenge, wanted) = (challenge.clone(), wanted.clone());
                let proof = Proof::Key(challenge, arguments.bytes(0, "signature")?);
                // The mind was sent once, and goes to the first login attempt.
                let mind = std::mem::take(mind);
                Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), proof))
            }
            (Some(LoginObject::Avatar { name, era, mind, credential }), "attach") => {
                let (name, era, kept, credential) = (name.clone(), *era, mind.clone(), *credential);
                let service = arguments.text(0, "service")?;
                let perspective = match era {
                    Era::Old => Some(arguments.text(1, "perspective")?),
                    Era::New => arguments.optional_text(1, "perspective")?,
                };
                let sent = arguments.mind(2, "mind")?;
                outcome.kept = sent.clone();
                // The mind of this call, or else the one that came with the login.
                let mind = match sent {
                    Mind::Nothing => GivenMind { mind: kept, kept: true },
                    sent => GivenMind::sent(sent),
                };
                outcome.borrows = mind.kept_objects();
                let question = Question::Identity(name.clone());
                let then = Then::Attach { name, credential, era, service, perspective, mind };
                Ok(self.ask(call.request, call.answer, then, question))
            }
            (Some(LoginObject::Avatar { name, era: Era::New, .. }), "identity") => {
                jelly::to_vec(name.as_str()).map(Step::Answer).map_err(|error| insecure(&error.to_string()))
            }
            (Some(LoginObject::Avatar { name, era: Era::New, credential, .. }), "keys" | "describe") => {
                let (name, credential) = (name.clone(), *credential);
                self.look_up(call, arguments, name, credential)
            }
            // The object belonged to a login that has ended.
            (None, _) => Err(revoked()),
            (_, method) => Err(no_such_method(method)),
        }
    }

    /// An avatar asks what it can reach.
    fn look_up(
        &mut self,
        call: &Call<'_>,
        arguments: &Arguments,
        name: String,
        credential: u64,
    ) -> Result<Step, Failure> {
        let question = Question::Identity(name.clone());
        let then = match call.method {
            "keys" => Then::Keys { name, credential },
            _ => Then::Describe { name, credential, service: arguments.text(0, "service")? },
        };
        Ok(self.ask(call.request, call.answer, then, question))
    }

    fn ask(&mut self, request: u64, answer: bool, then: Then, question: Question) -> Step {
        self.questions += 1;
        let no = QuestionNo(self.questions);
        let checks = matches!(question, Question::Prove(Proof::Password(..)));
        self.pending.reserve_exact(1);
        self.pending.push((no, Pending { request, answer, checks, changed: Changed::No, removals: 0, then }));
        Step::Ask(no, question)
    }

    /// Shrinks empty buffers.
    pub(crate) fn rest(&mut self) {
        self.pending.shrink_to_fit();
        self.delayed.shrink_to_fit();
    }

    fn waiting(&mut self, no: QuestionNo) -> Option<&mut Pending> {
        self.pending.iter_mut().find(|(of, _)| *of == no).map(|(_, pending)| pending)
    }

    fn take_pending(&mut self, no: QuestionNo) -> Option<Pending> {
        let at = self.pending.iter().position(|(of, _)| *of == no)?;
        Some(self.pending.remove(at).1)
    }

    /// Records how many identities had been removed when this was asked.
    pub(crate) fn asked_after(&mut self, no: QuestionNo, removals: u64) {
        if let Some(pending) = self.waiting(no) {
            pending.removals = removals;
        }
    }

    /// How many identities had been removed when the proof that led to this question was submitted.
    pub(crate) fn removals(&self, no: QuestionNo) -> u64 {
        self.pending.iter().find(|(of, _)| *of == no).map_or(0, |(_, pending)| pending.removals)
    }

    /// The identity that this asks about was removed after the proof was submitted. One that has the name now is a
    /// different identity.
    pub(crate) fn revoke(&mut self, no: QuestionNo) {
        if let Some(pending) = self.waiting(no) {
            pending.changed = Changed::Revoked;
        }
    }

    fn prove(&mut self, asked: Asked, proof: Proof) -> Step {
        self.ask(asked.request, asked.answer, Then::Prove(asked), Question::Prove(proof))
    }

    /// A challenge, for any name.
    fn challenge(&mut self, tables: &mut Tables<Object>, name: &str, era: Era) -> Result<Step, Failure> {
        if !self.policy.stock {
            return Err(unhandled(
                "this host does not offer Twisted's own login; use loginPassword (over TLS), loginKey or loginToken",
            ));
        }
        let wanted = match era {
            Era::Old => Wanted { identity: name.nfc().collect(), perspective: None },
            Era::New => {
                let wanted = Wanted::parse(name);
                let rules = self.rules.get();
                let of_default = || rules.default_service.as_ref().map(|service| (service.to_string(), None));
                Wanted { perspective: wanted.perspective.or_else(of_default), identity: wanted.identity }
            }
        };
        let mut random = [0; 16];
        random.copy_from_slice(&self.randomness.draw()[..16]);
        let challenge = Challenge::new(&wanted.identity, random);
        let luid = self.export(tables, LoginObject::Challenger(Box::new(Challenger { challenge, era, wanted })))?;
        Ok(Step::Answer(with_reference(&random, luid)))
    }

    /// A password in the clear, only where nobody can eavesdrop.
    fn password(
        &mut self,
        arguments: &Arguments,
        call: &Call<'_>,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        if !self.policy.private {
            return Err(unhandled(
                "the host accepts passwords only over TLS: connect to its TLS port, or log in by key",
            ));
        }
        let wanted = Wanted::parse(&arguments.text(0, "username")?);
        let password = Zeroizing::new(arguments.text(1, "password")?);
        let mind = arguments.mind(2, "mind")?;
        if self.pending.iter().filter(|(_, pending)| pending.checks).count() >= self.policy.limits.checks_per_connection
        {
            let asked = Asked::new(call, Era::New, wanted, Mind::Nothing, now);
            return Ok(self.delay(&asked, Some(not_checked(Refusal::Busy))));
        }
        outcome.kept = mind.clone();
        let proof = Proof::Password(wanted.identity.clone(), Password::new(&password));
        Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), proof))
    }

    /// A challenge to sign, for any name and key.
    fn key(
        &mut self,
        tables: &mut Tables<Object>,
        arguments: &Arguments,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        let wanted = Wanted::parse(&arguments.text(0, "username")?);
        let wrong = |error: crate::cred::CredentialError| Failure::new("ValueError", error.to_string());
        // A line in OpenSSH's format, or the bytes in it.
        let key = match arguments.text(1, "key") {
            Ok(line) if line.starts_with("ssh-") || line.starts_with("ecdsa-") => {
                PublicKey::parse(&line).map(|(key, _)| key).map_err(wrong)?
            }
            _ => PublicKey::from_bytes(&arguments.bytes(1, "key")?).map_err(wrong)?,
        };
        let mind = arguments.mind(2, "mind")?;
        let challenge = KeyChallenge::new(&wanted.identity, key, &self.randomness.draw());
        let bytes = challenge.bytes().to_vec();
        outcome.kept = mind.clone();
        let luid = self.export(tables, LoginObject::Signer(Box::new(Signer { challenge, wanted, mind })))?;
        Ok(Step::Answer(with_reference(&bytes, luid)))
    }

    fn token(
        &mut self,
        arguments: &Arguments,
        call: &Call<'_>,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        if !self.policy.private {
            return Err(unhandled("the host accepts tokens only over TLS: connect to its TLS port, or log in by key"));
        }
        let token = Token::received(&Zeroizing::new(arguments.text(0, "token")?));
        let wanted = Wanted { identity: String::new(), perspective: None };
        let mind = arguments.mind(1, "mind")?;
        outcome.kept = mind.clone();
        Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), Proof::Token(token)))
    }

    /// A client that has already logged in by a service's own door.
    fn within(
        &mut self,
        arguments: &Arguments,
        call: &Call<'_>,
        proven: &ProvenBefore,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        let mind = arguments.mind(0, "mind")?;
        outcome.kept = mind.clone();
        let name = proven.identity.to_string();
        let wanted = Wanted { identity: name.clone(), perspective: None };
        let asked = Asked::new(call, Era::New, wanted, mind, now);
        Ok(self.ask_once_proven(asked, (name, proven.credential), proven.removals))
    }

    /// Any client, where the operator allows anonymous logins.
    fn anonymous(&mut self, arguments: &Arguments, outcome: &mut Outcome) -> Result<Step, Failure> {
        let Some(key) = self.rules.get().anonymous.clone() else {
            return Err(unhandled("anonymous logins are not allowed here"));
        };
        let mind = arguments.mind(0, "mind")?;
        outcome.kept = mind.clone();
        let (mind, identity) = (GivenMind::sent(mind), "".into());
        Ok(Step::Attach(Attach { identity, credential: 0, key, era: Era::New, mind }))
    }

    fn export(&mut self, tables: &mut Tables<Object>, object: LoginObject) -> Result<u64, Failure> {
        let no = self.objects.insert(Box::new(object));
        tables.export(&Object::Login(no)).map_err(|error| {
            self.objects.remove(no);
            Failure::new("twisted.spread.pb.Error", error.to_string())
        })
    }

    /// The client has released an object of login. Returns the mind that it held.
    pub(crate) fn dropped(&mut self, no: LoginNo) -> GivenMind {
        match self.objects.remove(no).map(|object| *object) {
            Some(LoginObject::Signer(signer)) => GivenMind::sent(signer.mind),
            Some(LoginObject::Avatar { mind, .. }) => GivenMind { mind, kept: true },
            Some(LoginObject::Challenger(_)) | None => GivenMind::default(),
        }
    }

    /// Ends logins. Returns the minds that their avatars kept.
    pub(crate) fn end(&mut self, scope: &Scope<'_>) -> Vec<Mind> {
        let ends = |object: &LoginObject| match object {
            LoginObject::Avatar { name, credential, .. } => scope.covers_login(name, *credential),
            LoginObject::Challenger(_) | LoginObject::Signer(_) => matches!(scope, Scope::Connection),
        };
        let ended = self.objects.take(|_, object| ends(object));
        ended.into_iter().filter_map(|(_, object)| object.kept_mind()).collect()
    }

    /// An identity has changed, or was removed or disabled (`None`): earlier answers about it do not count, and calls
    /// by a credential that is gone are revoked.
    pub(crate) fn changed(&mut self, name: &str, identity: Option<&Identity>) {
        for (_, pending) in self.pending.iter_mut().filter(|(_, pending)| pending.then.identity() == name) {
            let has = pending.then.credential().is_some_and(|by| identity.is_some_and(|identity| identity.has(by)));
            if !has {
                pending.changed = Changed::Revoked;
            } else if pending.changed == Changed::No {
                pending.changed = Changed::Stale;
            }
        }
    }

    /// The credentials by which an identity is logged in.
    pub(crate) fn credentials(&self, identity: &str) -> Vec<u64> {
        let of = |object: &LoginObject| match object {
            LoginObject::Avatar { name, credential, .. } if name == identity => Some(*credential),
            _ => None,
        };
        self.objects.iter().filter_map(|(_, object)| of(object)).collect()
    }

    /// Whether this identity is logged in, or about to be.
    #[must_use]
    pub(crate) fn has(&self, name: &str) -> bool {
        let avatar = |object: &LoginObject| matches!(object, LoginObject::Avatar { name: of, .. } if of == name);
        let enters = |pending: &Pending| match &pending.then {
            Then::LogIn { name: of, .. } | Then::Attach { name: of, .. } => of == name,
            Then::Prove(_) | Then::Keys { .. } | Then::Describe { .. } => false,
        };
        self.objects.iter().any(|(_, object)| avatar(object)) || self.pending.iter().any(|(_, pending)| enters(pending))
    }

    /// Whether anybody has an avatar.
    #[must_use]
    pub(crate) fn any(&self) -> bool {
        self.objects.iter().any(|(_, object)| matches!(**object, LoginObject::Avatar { .. }))
    }

    /// Takes the refusals that are due: the client's calls, each with its error or, in the old era, None.
    pub(crate) fn due(&mut self, now: Now) -> Vec<(u64, Option<Failure>)> {
        let due = self.delayed.extract_if(.., |delayed| delayed.at <= now.instant);
        due.map(|delayed| (delayed.request, delayed.failure)).collect()
    }

    /// When the next refusal is due.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.iter().map(|delayed| delayed.at).min()
    }

    /// Whether no more messages are to be read, because too many questions or refusals wait.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        // Password checks have their own limit.
        let questions = self.pending.iter().filter(|(_, of)| !of.checks).count();
        questions >= self.policy.limits.questions || self.delayed.len() >= self.policy.limits.refusals
    }

    /// Whether no question waits for an answer.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

impl LoginObject {
    fn kept_mind(self) -> Option<Mind> {
        match self {
            Self::Avatar { mind, .. } => Some(mind),
            Self::Challenger(_) | Self::Signer(_) => None,
        }
    }
}

/// A tuple of bytes and a reference.
fn with_reference(bytes: &[u8], luid: u64) -> Vec<u8> {
    let mut value = Vec::with_capacity(bytes.len() + 32);
    jelly::token::list(&mut value, 3);
    jelly::token::bytes(&mut value, b"tuple");
    jelly::token::bytes(&mut value, bytes);
    reference(&mut value, luid);
    value
}

/// The answer that refuses a login in the old era.
pub(super) fn none() -> &'static [u8] {
    NONE
}
