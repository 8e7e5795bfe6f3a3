//! Log-in as a state machine: the root, challengers, an identity's wrapper, an avatar. Both eras on one root.
//!
//! | era | root | then | then |
//! |---|---|---|---|
//! | old | `username(name)` | `respond(proof)`: a wrapper, or None | `attach(service, perspective, mind)` |
//! | new | `login(name)` | `respond(proof, mind)`: the perspective that the name asks for, or an avatar | `attach(service, perspective=None, mind=None)`, `keys()`, `identity()` |
//! | ours | `loginPassword(name, password, mind=None)`, over TLS or on one machine | | as new |
//! | ours | `loginKey(name, key, mind=None)`: something to sign, and a challenger | `respond(signature)` | as new |
//! | ours | `loginToken(token, mind=None)`: an avatar | | as new |
//!
//! It never waits. What it has to know (is a proof right, what is an identity now) it asks as a [`Question`]; the answer
//! comes later, as mail, and goes on in [`Login::resume`]. An identity that changed between question and answer is asked
//! for once more, so that nobody gets what was taken away meanwhile.
//!
//! Source: `twisted.spread.pb` (`AuthServ`, `AuthChallenger`, `IdentityWrapper`; `_PortalRoot`,
//! `_PortalAuthChallenger`).

mod arguments;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

use blake2::{Blake2s256, Digest};
use pb::{Call, Failure, Tables};
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use self::arguments::Arguments;
use super::attachments::{Era, Scope};
use super::numbers::{LoginKind, LoginNo, Object, Table};
use super::references::{insecure, reference, revoked};
use crate::cred::login::{Challenge, KeyChallenge, NoKey, Wanted, key};
use crate::cred::{Identity, Key, Password, PublicKey, Refusal, Token};

/// How many passwords of one connection are checked at once.
const CHECKS: usize = 4;
/// How many refusals of one connection wait for their time.
const REFUSALS: usize = 64;
/// How many questions of one connection wait for an answer before no more of its messages are read. Password checks, which
/// have a limit of their own, do not count.
const QUESTIONS: usize = 4;

/// The time, twice: to measure by, and in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// To measure by.
    pub(crate) instant: Instant,
    /// In seconds since 1970, to compare with dates of expiry.
    pub(crate) unix: u64,
}

/// How a listener takes logins.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Policy {
    /// Whether Twisted's own login is offered.
    pub(crate) stock: bool,
    /// Whether nobody can listen on the way, so that passwords and tokens are taken: TLS, or one machine.
    pub(crate) private: bool,
    /// How long after it came a refusal leaves, whatever its reason.
    pub(crate) refusal: Duration,
}

/// What log-in has to know from outside.
#[derive(Debug)]
pub(crate) enum Question {
    /// Is this proof right? The throttle is charged first.
    Prove(Proof),
    /// What is the identity of this name now?
    Identity(String),
}

/// What somebody proves themselves with.
pub(crate) enum Proof {
    /// The answer to Twisted's challenge.
    Stock(Challenge, Vec<u8>),
    /// A signature.
    Key(KeyChallenge, Vec<u8>),
    /// A name and a password, in the clear.
    Password(String, Password),
    /// A token.
    Token(Token),
}

impl std::fmt::Debug for Proof {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::Stock(..) => "Stock",
            Self::Key(..) => "Key",
            Self::Password(..) => "Password",
            Self::Token(_) => "Token",
        })
    }
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub(crate) enum Found {
    /// The proof was right: whose it is, and the number of the credential.
    Proven(String, u64),
    /// It was wrong.
    Wrong,
    /// It was not looked at.
    NotChecked(Refusal),
    /// The identity, if there is one that is enabled.
    Identity(Option<Arc<Identity>>),
    /// It cannot be found out just now.
    Broken,
}

/// A question's number, among its connection's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QuestionNo(u64);

/// A client's object that it gave to be called back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mind {
    /// It was sent with this login or attachment.
    Sent(u64),
    /// An avatar keeps it for whatever is attached by it.
    Kept(u64),
}

/// What a client is to be attached to.
#[derive(Debug)]
pub(crate) struct Attach {
    /// Who.
    pub(crate) identity: Arc<str>,
    /// The number of the credential they logged in with.
    pub(crate) credential: u64,
    /// Where.
    pub(crate) key: Key,
    /// How long it lasts.
    pub(crate) era: Era,
    /// The object to call back.
    pub(crate) mind: Option<Mind>,
}

/// What a call of log-in's comes to.
#[derive(Debug)]
pub(crate) enum Step {
    /// This, in Jelly.
    Answer(Vec<u8>),
    /// This error.
    Fail(Failure),
    /// A service is asked; its answer is the answer.
    Attach(Attach),
    /// Something has to be known first.
    Ask(QuestionNo, Question),
    /// This name has proven itself. From now on the connection hears of changes to it; then this is to be asked.
    Proven(String, QuestionNo, Question),
    /// It is answered when its time has come.
    Wait,
}

/// A step, and what goes with it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The client's call that it is about.
    pub(crate) request: u64,
    /// Whether the client wants an answer.
    pub(crate) answer: bool,
    /// What it comes to.
    pub(crate) step: Step,
    /// Somebody has logged in.
    pub(crate) logged_in: bool,
    /// A mind that log-in keeps now; others that came with the call are given back.
    pub(crate) kept: Option<u64>,
    /// A mind that nobody has any more.
    pub(crate) given_back: Option<u64>,
    /// A mind that an avatar keeps from now on.
    pub(crate) avatar_keeps: Option<u64>,
    /// For the trail.
    pub(crate) refused: Option<Refused>,
    /// Who had proven themselves, and is not let in after all.
    pub(crate) left: Option<String>,
}

/// Somebody who has proven who they are is refused all the same.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// Who.
    pub(crate) identity: String,
    /// What they asked for.
    pub(crate) asked: String,
    /// Why they do not get it.
    pub(crate) why: &'static str,
}

/// An object of log-in that the client holds.
enum LoginObject {
    /// Waits for a proof. It may be answered more than once.
    Challenger { challenge: Challenge, era: Era, wanted: Wanted },
    /// Waits for a signature. It may be answered more than once.
    Signer { challenge: KeyChallenge, wanted: Wanted, mind: Option<u64> },
    /// An identity that has logged in, by name: its keys are looked at anew for each attach.
    Avatar { name: String, era: Era, mind: Option<u64>, credential: u64 },
}

/// What a login asked for: how it goes on once it is proven.
struct Asked {
    request: u64,
    answer: bool,
    era: Era,
    wanted: Wanted,
    mind: Option<u64>,
    came: Instant,
}

/// A call that waits for the answer to a question.
struct Pending {
    request: u64,
    answer: bool,
    /// A password is being checked.
    checks: bool,
    /// The identity changed since the question was asked.
    stale: bool,
    then: Then,
}

/// How a call goes on when its question is answered.
enum Then {
    Prove(Asked),
    LogIn { asked: Asked, name: String, credential: u64 },
    Attach { name: String, credential: u64, era: Era, service: String, perspective: Option<String>, mind: Option<Mind> },
    Keys { name: String },
}

/// A refusal that leaves when its time has come.
struct Delayed {
    at: Instant,
    request: u64,
    /// What is answered; `None`: the original's None, which is an answer.
    failure: Option<Failure>,
}

/// Jelly's None.
const NONE: &[u8] = &[1, 0x80, 1, 0x87];

/// See the module's page.
pub(crate) struct Login {
    policy: Policy,
    randomness: Randomness,
    objects: Table<LoginKind, LoginObject>,
    pending: BTreeMap<QuestionNo, Pending>,
    questions: u64,
    delayed: Vec<Delayed>,
}

/// Random bytes of one connection, made from a seed that was drawn outside.
struct Randomness {
    seed: Zeroizing<[u8; 32]>,
    drawn: u64,
}

impl Randomness {
    fn draw(&mut self) -> [u8; 32] {
        self.drawn += 1;
        // A keyed hash of a counter: who does not know the seed cannot tell it from random.
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

/// A try that was not looked at: the same words for every name.
fn not_checked(refusal: Refusal) -> Failure {
    Failure::new("twisted.cred.error.LoginFailed", refusal.to_string())
}

fn unhandled(what: &str) -> Failure {
    Failure::new("twisted.cred.error.UnhandledCredentials", what)
}

impl Login {
    /// Logins of one connection. `seed` is random: challenges are made of it.
    #[must_use]
    pub(crate) fn new(policy: Policy, seed: [u8; 32]) -> Self {
        Self {
            policy,
            randomness: Randomness { seed: Zeroizing::new(seed), drawn: 0 },
            objects: Table::default(),
            pending: BTreeMap::new(),
            questions: 0,
            delayed: Vec::new(),
        }
    }

    /// The client calls the root (`None`) or an object of log-in's.
    pub(crate) fn call(
        &mut self,
        tables: &mut Tables<Object>,
        object: Option<LoginNo>,
        call: &Call<'_>,
        now: Now,
    ) -> Outcome {
        let mut outcome = Outcome::of(call.request, call.answer, Step::Wait);
        let read = Arguments::read(call);
        let step = read.and_then(|arguments| self.method(tables, object, call, &arguments, now, &mut outcome));
        outcome.step = step.unwrap_or_else(Step::Fail);
        if matches!(outcome.step, Step::Fail(_)) {
            outcome.kept = None;
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
        let needs_answer = matches!(call.method, "attach" | "respond" | "loginPassword" | "loginKey" | "loginToken");
        if !call.answer && needs_answer {
            // Nobody would get the reference that it is about.
            return Err(Failure::new("ValueError", "an answer to this must be wanted"));
        }
        let Some(no) = object else {
            return match call.method {
                "username" => self.challenge(tables, &arguments.text(0, "username")?, Era::Old),
                "login" => self.challenge(tables, &arguments.text(0, "username")?, Era::New),
                "loginPassword" => self.password(arguments, call, now, outcome),
                "loginKey" => self.key(tables, arguments, outcome),
                "loginToken" => self.token(arguments, call, now, outcome),
                "loginAnonymous" => Err(unhandled("nobody may log in here without a name")),
                other => Err(no_such_method(other)),
            };
        };
        match (self.objects.get_mut(no), call.method) {
            (Some(LoginObject::Challenger { challenge, era, wanted }), "respond") => {
                let (challenge, era, wanted) = (challenge.clone(), *era, wanted.clone());
                let mind = if era == Era::New { arguments.mind(1, "mind")? } else { None };
                let proof = Proof::Stock(challenge, arguments.bytes(0, "response")?);
                outcome.kept = mind;
                Ok(self.prove(Asked::new(call, era, wanted, mind, now), proof))
            }
            (Some(LoginObject::Signer { challenge, wanted, mind }), "respond") => {
                let (challenge, wanted) = (challenge.clone(), wanted.clone());
                let proof = Proof::Key(challenge, arguments.bytes(0, "signature")?);
                // It was sent once, and is the first login's that tries.
                let mind = mind.take();
                Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), proof))
            }
            (Some(LoginObject::Avatar { name, era, mind, credential }), "attach") => {
                let (name, era, kept, credential) = (name.clone(), *era, *mind, *credential);
                let service = arguments.text(0, "service")?;
                let perspective = match era {
                    Era::Old => Some(arguments.text(1, "perspective")?),
                    Era::New => arguments.optional_text(1, "perspective")?,
                };
                let sent = arguments.mind(2, "mind")?;
                outcome.kept = sent;
                let mind = sent.map(Mind::Sent).or(kept.map(Mind::Kept));
                let question = Question::Identity(name.clone());
                let then = Then::Attach { name, credential, era, service, perspective, mind };
                Ok(self.ask(call.request, call.answer, then, question))
            }
            (Some(LoginObject::Avatar { name, era: Era::New, .. }), "identity") => {
                jelly::to_vec(name.as_str()).map(Step::Answer).map_err(|error| insecure(&error.to_string()))
            }
            (Some(LoginObject::Avatar { name, era: Era::New, .. }), "keys") => {
                let name = name.clone();
                let question = Question::Identity(name.clone());
                Ok(self.ask(call.request, call.answer, Then::Keys { name }, question))
            }
            // It was one of somebody who is not logged in any more.
            (None, _) => Err(revoked()),
            (_, method) => Err(no_such_method(method)),
        }
    }

    fn ask(&mut self, request: u64, answer: bool, then: Then, question: Question) -> Step {
        self.questions += 1;
        let no = QuestionNo(self.questions);
        let checks = matches!(question, Question::Prove(Proof::Password(..)));
        self.pending.insert(no, Pending { request, answer, checks, stale: false, then });
        Step::Ask(no, question)
    }

    fn prove(&mut self, asked: Asked, proof: Proof) -> Step {
        self.ask(asked.request, asked.answer, Then::Prove(asked), Question::Prove(proof))
    }

    /// A challenge for any name at all.
    fn challenge(&mut self, tables: &mut Tables<Object>, name: &str, era: Era) -> Result<Step, Failure> {
        if !self.policy.stock {
            return Err(unhandled(
                "this host does not offer Twisted's own login; use loginPassword (over TLS), loginKey or loginToken",
            ));
        }
        let wanted = match era {
            Era::Old => Wanted { identity: name.nfc().collect(), perspective: None },
            Era::New => Wanted::parse(name),
        };
        let mut random = [0; 16];
        random.copy_from_slice(&self.randomness.draw()[..16]);
        let challenge = Challenge::new(&wanted.identity, random);
        let luid = self.export(tables, LoginObject::Challenger { challenge, era, wanted })?;
        Ok(Step::Answer(with_reference(&random, luid)))
    }

    /// A password in the clear: where nobody can listen.
    fn password(
        &mut self,
        arguments: &Arguments,
        call: &Call<'_>,
        now: Now,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        if !self.policy.private {
            return Err(unhandled(
                "a password is taken over TLS only: connect to the host's TLS port, or log in by key",
            ));
        }
        let wanted = Wanted::parse(&arguments.text(0, "username")?);
        let password = Zeroizing::new(arguments.text(1, "password")?);
        let mind = arguments.mind(2, "mind")?;
        if self.pending.values().filter(|pending| pending.checks).count() >= CHECKS {
            return Err(not_checked(Refusal::Busy));
        }
        outcome.kept = mind;
        let proof = Proof::Password(wanted.identity.clone(), Password::new(&password));
        Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), proof))
    }

    /// Something to sign, for any name and key at all.
    fn key(
        &mut self,
        tables: &mut Tables<Object>,
        arguments: &Arguments,
        outcome: &mut Outcome,
    ) -> Result<Step, Failure> {
        let wanted = Wanted::parse(&arguments.text(0, "username")?);
        let wrong = |error: crate::cred::CredentialError| Failure::new("ValueError", error.to_string());
        // A line as OpenSSH writes it, or the bytes in it.
        let key = match arguments.text(1, "key") {
            Ok(line) if line.starts_with("ssh-") || line.starts_with("ecdsa-") => {
                PublicKey::parse(&line).map(|(key, _)| key).map_err(wrong)?
            }
            _ => PublicKey::from_bytes(&arguments.bytes(1, "key")?).map_err(wrong)?,
        };
        let mind = arguments.mind(2, "mind")?;
        let challenge = KeyChallenge::new(&wanted.identity, key, &self.randomness.draw());
        let bytes = challenge.bytes().to_vec();
        let luid = self.export(tables, LoginObject::Signer { challenge, wanted, mind })?;
        outcome.kept = mind;
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
            return Err(unhandled("a token is taken over TLS only: connect to the host's TLS port, or log in by key"));
        }
        let token = Token::received(&Zeroizing::new(arguments.text(0, "token")?));
        let wanted = Wanted { identity: String::new(), perspective: None };
        let mind = arguments.mind(1, "mind")?;
        outcome.kept = mind;
        Ok(self.prove(Asked::new(call, Era::New, wanted, mind, now), Proof::Token(token)))
    }

    /// A question was answered: its call goes on. `None`: it waits no more.
    pub(crate) fn resume(
        &mut self,
        tables: &mut Tables<Object>,
        no: QuestionNo,
        found: Found,
        now: Now,
    ) -> Option<Outcome> {
        let Pending { request, answer, stale, then, .. } = self.pending.remove(&no)?;
        let mut outcome = Outcome::of(request, answer, Step::Wait);
        outcome.step = match (then, found) {
            (Then::Prove(asked), Found::Proven(name, credential)) => {
                let question = Question::Identity(name.clone());
                let then = Then::LogIn { asked, name: name.clone(), credential };
                match self.ask(request, answer, then, question) {
                    Step::Ask(no, question) => Step::Proven(name, no, question),
                    step => step,
                }
            }
            (Then::Prove(asked), Found::Wrong) => {
                outcome.given_back = asked.mind;
                self.delay(&asked)
            }
            (Then::Prove(asked), Found::NotChecked(refusal)) => {
                outcome.given_back = asked.mind;
                Step::Fail(not_checked(refusal))
            }
            // It changed meanwhile: what was found may not hold any more.
            (then, Found::Identity(_)) if stale => {
                let question = Question::Identity(then.identity().to_owned());
                self.ask(request, answer, then, question)
            }
            (Then::LogIn { asked, name, credential }, Found::Identity(identity)) => {
                self.log_in(tables, identity, asked, (name, credential), &mut outcome)
            }
            (Then::Attach { name, credential, era, service, perspective, mind }, Found::Identity(identity)) => {
                // What came by a credential lasts as long as that does.
                let identity = identity.filter(|identity| identity.takes(credential, now.unix));
                let sent = match mind {
                    Some(Mind::Sent(luid)) => Some(luid),
                    _ => None,
                };
                let attach = identity
                    .ok_or_else(unauthorized)
                    .and_then(|identity| find_key(&identity, &service, perspective.as_deref(), &mut outcome.refused));
                match attach {
                    Ok(key) => Step::Attach(Attach { identity: name.into(), credential, key, era, mind }),
                    Err(failure) => {
                        outcome.given_back = sent;
                        Step::Fail(failure)
                    }
                }
            }
            (Then::Keys { .. }, Found::Identity(identity)) => keys(identity),
            (then, _) => {
                outcome.given_back = then.mind();
                outcome.left = Some(then.identity().to_owned());
                Step::Fail(broken())
            }
        };
        Some(outcome)
    }

    /// The proof was wrong: whoever it was is told when all are.
    fn delay(&mut self, asked: &Asked) -> Step {
        let failure = match asked.era {
            Era::Old => None,
            Era::New => Some(unauthorized()),
        };
        if self.delayed.len() >= REFUSALS {
            return Step::Fail(not_checked(Refusal::Busy));
        }
        if asked.answer {
            self.delayed.push(Delayed { at: asked.came + self.policy.refusal, request: asked.request, failure });
        }
        Step::Wait
    }

    /// Somebody has proven who they are, and this is what they are now.
    fn log_in(
        &mut self,
        tables: &mut Tables<Object>,
        identity: Option<Arc<Identity>>,
        asked: Asked,
        (name, credential): (String, u64),
        outcome: &mut Outcome,
    ) -> Step {
        let Asked { era, wanted, mind, .. } = asked;
        outcome.given_back = mind;
        let Some(identity) = identity.filter(|identity| identity.has(credential)) else {
            let why = "it was disabled, or its credential taken away, at this moment";
            outcome.left = Some(name.clone());
            outcome.refused = Some(Refused { identity: name, asked: "login".to_owned(), why });
            return Step::Fail(unauthorized());
        };
        outcome.logged_in = true;
        if let Some((service, perspective)) = &wanted.perspective {
            return match find_key(&identity, service, perspective.as_deref(), &mut outcome.refused) {
                Err(failure) => {
                    outcome.left = Some(name);
                    Step::Fail(failure)
                }
                Ok(key) => {
                    outcome.given_back = None;
                    let mind = mind.map(Mind::Sent);
                    Step::Attach(Attach { identity: name.into(), credential, key, era, mind })
                }
            };
        }
        match self.export(tables, LoginObject::Avatar { name, era, mind, credential }) {
            Err(failure) => Step::Fail(failure),
            Ok(luid) => {
                outcome.given_back = None;
                outcome.avatar_keeps = mind;
                let mut value = Vec::new();
                reference(&mut value, luid);
                Step::Answer(value)
            }
        }
    }

    fn export(&mut self, tables: &mut Tables<Object>, object: LoginObject) -> Result<u64, Failure> {
        let no = self.objects.insert(object);
        tables.export(&Object::Login(no)).map_err(|error| {
            self.objects.remove(no);
            Failure::new("twisted.spread.pb.Error", error.to_string())
        })
    }

    /// The client has given an object of log-in's back; the mind that nobody has then.
    pub(crate) fn dropped(&mut self, no: LoginNo) -> Option<Mind> {
        match self.objects.remove(no)? {
            LoginObject::Challenger { .. } => None,
            LoginObject::Signer { mind, .. } => mind.map(Mind::Sent),
            LoginObject::Avatar { mind, .. } => mind.map(Mind::Kept),
        }
    }

    /// Logins end; the minds that their avatars kept.
    pub(crate) fn end(&mut self, scope: &Scope<'_>) -> Vec<u64> {
        let ends = |object: &LoginObject| match object {
            LoginObject::Avatar { name, credential, .. } => scope.covers_login(name, *credential),
            LoginObject::Challenger { .. } | LoginObject::Signer { .. } => matches!(scope, Scope::Connection),
        };
        let ended = self.objects.take(|_, object| ends(object));
        ended.into_iter().filter_map(|(_, object)| object.kept_mind()).collect()
    }

    /// An identity has changed: what was found out about it before does not count.
    pub(crate) fn changed(&mut self, name: &str) {
        self.pending.values_mut().filter(|pending| pending.then.identity() == name).for_each(|of| of.stale = true);
    }

    /// The credentials that an identity is logged in by.
    pub(crate) fn credentials(&self, identity: &str) -> Vec<u64> {
        let of = |object: &LoginObject| match object {
            LoginObject::Avatar { name, credential, .. } if name == identity => Some(*credential),
            _ => None,
        };
        self.objects.iter().filter_map(|(_, object)| of(object)).collect()
    }

    /// Whether anybody is logged in, or about to be; or this identity, if one is named.
    #[must_use]
    pub(crate) fn any(&self, identity: Option<&str>) -> bool {
        let wanted = |name: &str| identity.is_none_or(|wanted| wanted == name);
        let avatar = |object: &LoginObject| matches!(object, LoginObject::Avatar { name, .. } if wanted(name));
        let enters = |pending: &Pending| match &pending.then {
            Then::LogIn { name, .. } | Then::Attach { name, .. } => wanted(name),
            Then::Prove(_) | Then::Keys { .. } => false,
        };
        self.objects.iter().any(|(_, object)| avatar(object)) || self.pending.values().any(enters)
    }

    /// Refusals whose time has come: the client's calls, each with its error or, in the old era, None.
    pub(crate) fn due(&mut self, now: Now) -> Vec<(u64, Option<Failure>)> {
        let due = self.delayed.extract_if(.., |delayed| delayed.at <= now.instant);
        due.map(|delayed| (delayed.request, delayed.failure)).collect()
    }

    /// When the next refusal leaves.
    #[must_use]
    pub(crate) fn next_due(&self) -> Option<Instant> {
        self.delayed.iter().map(|delayed| delayed.at).min()
    }

    /// Whether so many questions wait that no more messages are to be read.
    #[must_use]
    pub(crate) fn is_full(&self) -> bool {
        self.pending.len() >= QUESTIONS && self.pending.values().filter(|of| !of.checks).count() >= QUESTIONS
    }

    /// Whether no question waits for an answer.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.pending.is_empty()
    }
}

impl LoginObject {
    fn kept_mind(&self) -> Option<u64> {
        match self {
            Self::Avatar { mind, .. } => *mind,
            Self::Challenger { .. } | Self::Signer { .. } => None,
        }
    }
}

impl Then {
    /// Whom it is about, once that is known.
    fn identity(&self) -> &str {
        match self {
            Self::Prove(_) => "",
            Self::LogIn { name, .. } | Self::Attach { name, .. } | Self::Keys { name } => name,
        }
    }

    /// The mind that was sent with it.
    fn mind(&self) -> Option<u64> {
        match self {
            Self::Prove(asked) | Self::LogIn { asked, .. } => asked.mind,
            Self::Attach { mind: Some(Mind::Sent(luid)), .. } => Some(*luid),
            Self::Attach { .. } | Self::Keys { .. } => None,
        }
    }
}

impl Asked {
    fn new(call: &Call<'_>, era: Era, wanted: Wanted, mind: Option<u64>, now: Now) -> Self {
        Self { request: call.request, answer: call.answer, era, wanted, mind, came: now.instant }
    }
}

impl Outcome {
    fn of(request: u64, answer: bool, step: Step) -> Self {
        let (kept, given_back, avatar_keeps) = (None, None, None);
        Self { request, answer, step, logged_in: false, kept, given_back, avatar_keeps, refused: None, left: None }
    }
}

/// The key that leads to a perspective; what goes into the trail, if there is none.
fn find_key(
    identity: &Identity,
    service: &str,
    perspective: Option<&str>,
    refused: &mut Option<Refused>,
) -> Result<Key, Failure> {
    key(identity, service, perspective).map_err(|error| {
        let asked = format!("{service}/{}", perspective.unwrap_or_default());
        *refused = Some(Refused { identity: identity.name.to_string(), asked, why: "no such key" });
        match error {
            NoKey::NotFound(_) => Failure::new("twisted.cred.error.KeyNotFound", error.to_string()),
            NoKey::NoneFor => Failure::new("twisted.python.failure.DefaultException", error.to_string()),
            NoKey::Name(_) => Failure::new("ValueError", error.to_string()),
        }
    })
}

fn keys(identity: Option<Arc<Identity>>) -> Step {
    let Some(identity) = identity else { return Step::Fail(unauthorized()) };
    let keys: Vec<(&str, &str)> =
        identity.keyring.keys().map(|key| (key.service.as_str(), key.perspective.as_str())).collect();
    jelly::to_vec(&keys).map_or_else(|error| Step::Fail(insecure(&error.to_string())), Step::Answer)
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

/// What a refusal of the old era is answered with.
pub(super) fn none() -> &'static [u8] {
    NONE
}
