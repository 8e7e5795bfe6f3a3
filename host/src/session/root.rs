//! The objects of log-in: the root, challengers, the wrapper of an identity, an avatar. Both eras on one root.
//!
//! | era | root | then | then |
//! |---|---|---|---|
//! | old | `username(name)` | `respond(proof)`: a wrapper, or None | `attach(service, perspective, mind)` |
//! | new | `login(name)` | `respond(proof, mind)`: the perspective that the name asks for, or an avatar | `attach(service, perspective=None, mind=None)`, `keys()` |
//! | ours | `loginPassword(name, password, mind=None)`, over TLS or on one machine | | as new |
//! | ours | `loginKey(name, key, mind=None)`: something to sign, and a challenger | `respond(signature)` | as new |
//! | ours | `loginToken(token, mind=None)`: an avatar | | as new |
//!
//! Source: `twisted.spread.pb` (`AuthServ`, `AuthChallenger`, `IdentityWrapper`; `_PortalRoot`,
//! `_PortalAuthChallenger`).

use std::sync::Arc;

use jelly::{Node, RefKind, Value, ValueRef};
use pb::{Call, Failure, Output};
use tokio::time::Instant;
use unicode_normalization::UnicodeNormalization;
use zeroize::Zeroizing;

use super::desk::{Delayed, Era, Object, State};
use super::guard::{Trying, network};
use super::references::{insecure, reference};
use super::services::{Mind, defective};
use super::sessions::Session;
use crate::cred::login::{Challenge, KeyChallenge, NoKey, Proof, Proven, Wanted, key};
use crate::cred::{AuthorizerError, Password, PublicKey, Refusal, Token};
use crate::store::now;

type Out = Output<Object>;

/// An object of log-in that the client holds.
pub(super) enum LoginObject {
    /// Waits for a proof. It may be answered more than once.
    Challenger { challenge: Challenge, era: Era, wanted: Wanted },
    /// Waits for a signature. It may be answered more than once.
    Signer { challenge: KeyChallenge, wanted: Wanted, mind: Option<u64> },
    /// An identity that has logged in, by name: its keys are looked at anew for each attach.
    Identity { name: String, era: Era, mind: Option<u64>, credential: u64 },
}

/// Jelly's None.
pub(super) const NONE: &[u8] = &[1, 0x80, 1, 0x87];
/// So many passwords of one connection are checked at once.
const CHECKS: usize = 4;
/// So many refusals of one connection wait for their time.
const REFUSALS: usize = 64;

/// What a login asked for: how it goes on once it is proven.
pub(super) struct Asked {
    request: u64,
    answer: bool,
    era: Era,
    wanted: Wanted,
    mind: Option<u64>,
    /// When it came.
    came: Instant,
}

/// A password that was checked.
pub(super) struct Checked {
    proof: Proof,
    asked: Asked,
    password: Option<Password>,
}

/// The arguments of a call, as log-in needs them: small, and few.
struct Arguments {
    positional: Value,
    keywords: Value,
}

impl Arguments {
    fn read(call: &Call<'_>) -> Result<Self, Failure> {
        if let Some(defect) = call.defect {
            return Err(defective(defect));
        }
        let read = |bytes| Value::decode(bytes).map_err(|error| Failure::new("TypeError", error.to_string()));
        Ok(Self { positional: read(call.arguments.bytes())?, keywords: read(call.keywords.bytes())? })
    }

    fn at(&self, index: usize, name: &str) -> Option<ValueRef<'_>> {
        self.positional.root().items().nth(index).or_else(|| self.keywords.root().get(name))
    }

    fn text(&self, index: usize, name: &str) -> Result<String, Failure> {
        self.at(index, name)
            .and_then(|value| value.as_text().map(str::to_owned))
            .ok_or_else(|| Failure::new("TypeError", format!("argument {name}: expected a text")))
    }

    fn optional_text(&self, index: usize, name: &str) -> Result<Option<String>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            None | Some(Node::None) => Ok(None),
            Some(_) => self.text(index, name).map(Some),
        }
    }

    fn bytes(&self, index: usize, name: &str) -> Result<Vec<u8>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            Some(Node::Bytes(bytes)) => Ok(bytes.to_vec()),
            _ => Err(Failure::new("TypeError", format!("argument {name}: expected bytes"))),
        }
    }

    /// A client's own object, or nothing.
    fn mind(&self, index: usize, name: &str) -> Result<Option<u64>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            None | Some(Node::None) => Ok(None),
            Some(Node::Reference(RefKind::Remote, Some(luid))) => Ok(Some(luid)),
            Some(_) => Err(Failure::new("TypeError", format!("argument {name}: expected a reference or None"))),
        }
    }
}

/// What a call of log-in's comes to at once.
enum Reply {
    Value(Vec<u8>),
    /// The service will answer.
    Later,
    /// It is answered when a password was checked, or when its time has come.
    Waiting,
}

fn unauthorized() -> Failure {
    Failure::new("twisted.cred.error.UnauthorizedLogin", "")
}

fn no_such_method(method: &str) -> Failure {
    Failure::new("twisted.spread.flavors.NoSuchMethod", format!("No such method: remote_{method}"))
}

fn broken(error: &AuthorizerError) -> Failure {
    tracing::error!(%error, "identities cannot be looked up");
    Failure::new("twisted.cred.error.LoginFailed", "the host cannot check logins just now")
}

impl State {
    /// Calls the root (`None`) or an object of log-in.
    pub(super) async fn call_login(&mut self, output: &mut Out, object: Option<u32>, call: &Call<'_>) {
        let (arguments, keywords) = (call.arguments, call.keywords);
        let reply = match Arguments::read(call) {
            Ok(read) => self.login_method(output, object, call, &read).await,
            Err(failure) => Err(failure),
        };
        if !matches!(reply, Ok(Reply::Later)) {
            // What was not handed on to a service is not kept; the client counts each reference as sent. A mind that
            // an avatar keeps for later stays for as long as the connection does.
            let (kept, pending) = (self.keep.take(), self.pending.take());
            let sent = arguments.references().iter().chain(keywords.references());
            for luid in sent.filter(|sent| sent.kind == RefKind::Remote).filter_map(|sent| sent.luid) {
                if kept != Some(luid) && pending != Some(luid) {
                    output.release(luid, 1);
                }
            }
        }
        match reply {
            Ok(Reply::Value(value)) if call.answer => output.answer(call.request, &value),
            Err(failure) if call.answer => output.fail(call.request, &failure),
            _ => {}
        }
    }

    async fn login_method(
        &mut self,
        output: &mut Out,
        object: Option<u32>,
        call: &Call<'_>,
        arguments: &Arguments,
    ) -> Result<Reply, Failure> {
        let named = matches!(call.method, "attach" | "respond" | "loginPassword" | "loginKey" | "loginToken");
        if !call.answer && named {
            // Nobody would get the reference that it is about.
            return Err(Failure::new("ValueError", "an answer to this must be wanted"));
        }
        let Some(index) = object else {
            return match call.method {
                "username" => self.challenge(output, &arguments.text(0, "username")?, Era::Old),
                "login" => self.challenge(output, &arguments.text(0, "username")?, Era::New),
                "loginPassword" => self.login_password(arguments, call).await,
                "loginKey" => self.login_key(output, arguments),
                "loginToken" => self.login_token(output, arguments, call).await,
                "loginAnonymous" => Err(Failure::new(
                    "twisted.cred.error.UnhandledCredentials",
                    "nobody may log in here without a name",
                )),
                other => Err(no_such_method(other)),
            };
        };
        match (self.login.get(&index), call.method) {
            (Some(LoginObject::Challenger { challenge, era, wanted }), "respond") => {
                let (challenge, era, wanted) = (challenge.clone(), *era, wanted.clone());
                let mind = if era == Era::New { arguments.mind(1, "mind")? } else { None };
                let response = arguments.bytes(0, "response")?;
                let asked = Asked::new(call, era, wanted, mind);
                let trying = match self.try_to(challenge.name(), "stock").await? {
                    Ok(trying) => trying,
                    Err(refusal) => return Err(too_many(refusal)),
                };
                let proof = self.shared.login.respond(&challenge, &response, now()).await;
                self.proven(output, trying, proof, asked).await
            }
            (Some(LoginObject::Signer { challenge, wanted, mind }), "respond") => {
                let (challenge, wanted, mind) = (challenge.clone(), wanted.clone(), *mind);
                let signature = arguments.bytes(0, "signature")?;
                let asked = Asked::new(call, Era::New, wanted, mind);
                let trying = match self.try_to(challenge.name(), "key").await? {
                    Ok(trying) => trying,
                    Err(refusal) => return Err(too_many(refusal)),
                };
                let proof = self.shared.login.sign(&challenge, &signature, now()).await;
                if let (Ok(Ok(_)), Some(LoginObject::Signer { mind, .. })) = (&proof, self.login.get_mut(&index)) {
                    // It was sent once, and is the first login's.
                    *mind = None;
                }
                self.proven(output, trying, proof, asked).await
            }
            (Some(LoginObject::Identity { name, era, mind, credential }), "attach") => {
                let (name, era, default_mind, credential) = (name.clone(), *era, *mind, *credential);
                let service = arguments.text(0, "service")?;
                let perspective = match era {
                    Era::Old => Some(arguments.text(1, "perspective")?),
                    Era::New => arguments.optional_text(1, "perspective")?,
                };
                let mind = arguments.mind(2, "mind")?;
                let identity = self.shared.login.identity(&name).await.map_err(|error| broken(&error))?;
                // What came by a credential lasts as long as that does.
                let identity =
                    identity.filter(|identity| identity.takes(credential, now())).ok_or_else(unauthorized)?;
                let mind = match mind {
                    Some(luid) => Some(Mind { luid, lent: false }),
                    None => default_mind.map(|luid| Mind { luid, lent: true }),
                };
                let by = Proven { identity, credential };
                self.attach_to(&by, &service, perspective.as_deref(), mind, call.request, era)
            }
            (Some(LoginObject::Identity { name, era: Era::New, .. }), "keys") => {
                let name = name.clone();
                let identity = self.shared.login.identity(&name).await.map_err(|error| broken(&error))?;
                let identity = identity.ok_or_else(unauthorized)?;
                let keys: Vec<(&str, &str)> =
                    identity.keyring.keys().map(|key| (key.service.as_str(), key.perspective.as_str())).collect();
                Ok(Reply::Value(jelly::to_vec(&keys).map_err(|error| insecure(&error.to_string()))?))
            }
            // It was one of somebody who is not logged in any more.
            (None, _) => Err(super::revocation::revoked()),
            (_, method) => Err(no_such_method(method)),
        }
    }

    async fn try_to(&self, name: &str, how: &'static str) -> Result<Result<Trying, Refusal>, Failure> {
        let source = self.from.address.ip();
        self.shared.guard.begin(name, source, &self.peer, how).await.map_err(|error| broken(&error))
    }

    /// A password in the clear: where nobody can listen.
    async fn login_password(&mut self, arguments: &Arguments, call: &Call<'_>) -> Result<Reply, Failure> {
        if !self.from.private {
            return Err(Failure::new(
                "twisted.cred.error.UnhandledCredentials",
                "a password is taken over TLS only: connect to the host's TLS port, or log in by key",
            ));
        }
        let wanted = Wanted::parse(&arguments.text(0, "username")?);
        let password = Zeroizing::new(arguments.text(1, "password")?);
        let mind = arguments.mind(2, "mind")?;
        if self.checking >= CHECKS {
            return Err(too_many(Refusal::Busy));
        }
        let asked = Asked::new(call, Era::New, wanted, mind);
        let name = asked.wanted.identity.clone();
        let trying = match self.try_to(&name, "password").await? {
            Ok(trying) => trying,
            Err(refusal) => return Err(too_many(refusal)),
        };
        let password = Password::new(&password);
        let check = match self.shared.login.password(&name, password.clone(), now()).await {
            Ok(check) => check,
            Err(error) => {
                self.shared.guard.withdrawn(&trying);
                return Err(broken(&error));
            }
        };
        let (done, mailbox, kept) = (self.checks.clone(), Arc::clone(&self.mailbox), trying.clone());
        let guard = Arc::clone(&self.shared.guard);
        let judge = Arc::clone(&guard);
        let memory = check.memory();
        let submitted = guard.hashing.submit(network(self.from.address.ip()), memory, move || {
            let proof = check.run();
            let password = proof.is_ok().then_some(password);
            // Here, and not where it is told: the client may have gone, and its try counts all the same.
            judge.judge(trying, &proof);
            let _ = done.send(Box::new(Checked { proof, asked, password }));
            mailbox.wake();
        });
        if submitted.is_err() {
            self.shared.guard.failed(kept, Refusal::Busy);
            return Err(too_many(Refusal::Busy));
        }
        self.checking += 1;
        self.pending = mind;
        Ok(Reply::Waiting)
    }

    /// A password was checked: the login goes on.
    pub(super) async fn finish(&mut self, output: &mut Out, checked: Checked) {
        self.checking -= 1;
        let Checked { proof, asked, password } = checked;
        let (request, answer, mind) = (asked.request, asked.answer, asked.mind);
        if let (Ok(proven), Some(password)) = (&proof, password)
            && self.shared.login.is_cheap(proven)
        {
            let source = self.from.address.ip();
            self.shared.guard.rehash(source, proven, password, self.shared.login.cost());
        }
        let refused = proof.is_err();
        let reply = self.go_on(output, proof, asked).await;
        if let Some(luid) = mind
            && !matches!(reply, Ok(Reply::Later))
            && (refused || self.keep.take() != Some(luid))
        {
            output.release(luid, 1);
        }
        match reply {
            Ok(Reply::Value(value)) if answer => output.answer(request, &value),
            Err(failure) if answer => output.fail(request, &failure),
            _ => {}
        }
    }

    /// Something to sign, for any name and key at all.
    fn login_key(&mut self, output: &mut Out, arguments: &Arguments) -> Result<Reply, Failure> {
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
        let challenge = KeyChallenge::new(&wanted.identity, key, &random()?);
        let index = self.fresh();
        let luid = export(output, index)?;
        self.keep = mind;
        let mut value = Vec::with_capacity(200);
        jelly::token::list(&mut value, 3);
        jelly::token::bytes(&mut value, b"tuple");
        jelly::token::bytes(&mut value, challenge.bytes());
        reference(&mut value, luid);
        self.login.insert(index, LoginObject::Signer { challenge, wanted, mind });
        Ok(Reply::Value(value))
    }

    async fn login_token(
        &mut self,
        output: &mut Out,
        arguments: &Arguments,
        call: &Call<'_>,
    ) -> Result<Reply, Failure> {
        if !self.from.private {
            return Err(Failure::new(
                "twisted.cred.error.UnhandledCredentials",
                "a token is taken over TLS only: connect to the host's TLS port, or log in by key",
            ));
        }
        let token = Token::received(&Zeroizing::new(arguments.text(0, "token")?));
        let wanted = Wanted { identity: String::new(), perspective: None };
        let asked = Asked::new(call, Era::New, wanted, arguments.mind(1, "mind")?);
        // Guesses at tokens are counted by their source: there is no name.
        let name = data_encoding::HEXLOWER.encode(&token.digest());
        let trying = match self.try_to(&name, "token").await? {
            Ok(trying) => trying,
            Err(refusal) => return Err(too_many(refusal)),
        };
        let (proof, owner) = match self.shared.login.token(&token, now()).await {
            Ok((proof, owner)) => (Ok(proof), owner),
            Err(error) => (Err(error), None),
        };
        // Whose it is, or was, is for the trail alone.
        let trying = trying.of(owner);
        self.proven(output, trying, proof, asked).await
    }

    /// The proof was checked: whoever has proven it goes on, whoever has not is told when all are.
    async fn proven(
        &mut self,
        output: &mut Out,
        trying: Trying,
        proof: Result<Proof, AuthorizerError>,
        asked: Asked,
    ) -> Result<Reply, Failure> {
        match proof {
            Err(error) => {
                self.shared.guard.withdrawn(&trying);
                Err(broken(&error))
            }
            Ok(proof) => {
                self.shared.guard.judge(trying, &proof);
                self.go_on(output, proof, asked).await
            }
        }
    }

    /// It is known, and counted, whether the proof was right.
    async fn go_on(&mut self, output: &mut Out, proof: Proof, asked: Asked) -> Result<Reply, Failure> {
        match proof {
            Ok(proven) => self.enter(output, proven, asked).await,
            Err(_) => {
                let failure = match asked.era {
                    Era::Old => None,
                    Era::New => Some(unauthorized()),
                };
                if self.delayed.len() >= REFUSALS {
                    return Err(too_many(Refusal::Busy));
                }
                if asked.answer {
                    let at = asked.came + self.shared.limits.refusal;
                    self.delayed.push(Delayed { at, request: asked.request, failure });
                }
                Ok(Reply::Waiting)
            }
        }
    }

    /// Somebody has proven who they are.
    async fn enter(&mut self, output: &mut Out, proven: Proven, asked: Asked) -> Result<Reply, Failure> {
        let Asked { request, era, wanted, mind, .. } = asked;
        let session = self.session.get_or_insert_with(|| {
            let (number, from) = (self.number, &self.from);
            let session = Session::new(number, &self.peer, from.tls, now(), Arc::clone(&self.mailbox));
            self.shared.guard.sessions().open(&session);
            session
        });
        session.entered(proven.identity.name.as_str());
        // From here on this connection is told of changes; one that came between the proof and this is seen now.
        let identity =
            self.shared.login.identity(proven.identity.name.as_str()).await.map_err(|error| broken(&error))?;
        let identity = identity.filter(|identity| identity.has(proven.credential)).ok_or_else(|| {
            let why = "it was disabled, or its credential taken away, at this moment";
            self.shared.guard.refused(proven.identity.name.as_str(), &self.peer, "login", why);
            unauthorized()
        })?;
        self.logged_in = true;
        self.raise = true;
        let proven = Proven { identity, credential: proven.credential };
        tracing::debug!(peer = self.peer, name = proven.identity.name.as_str(), "logged in");
        if let Some((service, perspective)) = &wanted.perspective {
            let mind = mind.map(|luid| Mind { luid, lent: false });
            return self.attach_to(&proven, service, perspective.as_deref(), mind, request, era);
        }
        let index = self.fresh();
        let luid = export(output, index)?;
        let (name, credential) = (proven.identity.name.to_string(), proven.credential);
        self.login.insert(index, LoginObject::Identity { name, era, mind, credential });
        self.keep = mind;
        let mut value = Vec::new();
        reference(&mut value, luid);
        Ok(Reply::Value(value))
    }

    /// A challenge for any name at all.
    fn challenge(&mut self, output: &mut Out, name: &str, era: Era) -> Result<Reply, Failure> {
        if !self.shared.guard.stock {
            return Err(Failure::new(
                "twisted.cred.error.UnhandledCredentials",
                "this host does not offer Twisted's own login; use loginPassword (over TLS), loginKey or loginToken",
            ));
        }
        let random: [u8; 16] = random()?;
        let wanted = match era {
            Era::Old => Wanted { identity: name.nfc().collect(), perspective: None },
            Era::New => Wanted::parse(name),
        };
        let challenge = Challenge::new(&wanted.identity, random);
        let index = self.fresh();
        let luid = export(output, index)?;
        self.login.insert(index, LoginObject::Challenger { challenge, era, wanted });
        let mut value = Vec::with_capacity(40);
        jelly::token::list(&mut value, 3);
        jelly::token::bytes(&mut value, b"tuple");
        jelly::token::bytes(&mut value, &random);
        reference(&mut value, luid);
        Ok(Reply::Value(value))
    }

    fn attach_to(
        &mut self,
        by: &Proven,
        service: &str,
        perspective: Option<&str>,
        mind: Option<Mind>,
        request: u64,
        era: Era,
    ) -> Result<Reply, Failure> {
        let key = key(&by.identity, service, perspective).inspect_err(|_| {
            let what = format!("{service}/{}", perspective.unwrap_or_default());
            self.shared.guard.refused(by.identity.name.as_str(), &self.peer, &what, "no such key");
        });
        let key = key.map_err(|error| match error {
            NoKey::NotFound(_) => Failure::new("twisted.cred.error.KeyNotFound", error.to_string()),
            NoKey::NoneFor => Failure::new("twisted.python.failure.DefaultException", error.to_string()),
            NoKey::Name(_) => Failure::new("ValueError", error.to_string()),
        })?;
        let slot = self
            .shared
            .services
            .service(key.service.as_str())
            .ok_or_else(|| Failure::new("KeyError", format!("'{}'", key.service)))?;
        self.attach(slot, key, by, mind, request, era);
        Ok(Reply::Later)
    }
}

impl Asked {
    fn new(call: &Call<'_>, era: Era, wanted: Wanted, mind: Option<u64>) -> Self {
        Self { request: call.request, answer: call.answer, era, wanted, mind, came: Instant::now() }
    }
}

fn random<const N: usize>() -> Result<[u8; N], Failure> {
    let mut random = [0; N];
    getrandom::fill(&mut random)
        .map_err(|error| Failure::new("RuntimeError", format!("the host has no randomness: {error}")))?;
    Ok(random)
}

/// A try that was not looked at: the same words for every name.
fn too_many(refusal: Refusal) -> Failure {
    Failure::new("twisted.cred.error.LoginFailed", refusal.to_string())
}

fn export(output: &mut Out, index: u32) -> Result<u64, Failure> {
    output
        .tables
        .export(&Object::Login(index))
        .map_err(|error| Failure::new("twisted.spread.pb.Error", error.to_string()))
}
