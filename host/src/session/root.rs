//! The objects of log-in: the root, challengers, the wrapper of an identity, an avatar. Both eras on one root.
//!
//! | era | root | then | then |
//! |---|---|---|---|
//! | old | `username(name)` | `respond(proof)`: a wrapper, or None | `attach(service, perspective, mind)` |
//! | new | `login(name)` | `respond(proof, mind)`: the perspective that the name asks for, or an avatar | `attach(service, perspective=None, mind=None)`, `keys()` |
//!
//! Source: `twisted.spread.pb` (`AuthServ`, `AuthChallenger`, `IdentityWrapper`; `_PortalRoot`,
//! `_PortalAuthChallenger`).

use std::sync::Arc;

use jelly::{Node, RefKind, Value, ValueRef};
use pb::{Call, Failure, Output};

use super::desk::{Era, Object, State};
use super::references::{insecure, reference};
use super::services::{Mind, defective};
use crate::cred::login::{Challenge, NoKey, Wanted, key};
use crate::cred::{AuthorizerError, Identity};

type Out = Output<Object>;

/// An object of log-in that the client holds.
pub(super) enum LoginObject {
    /// Waits for a proof. It may be answered more than once.
    Challenger { challenge: Challenge, era: Era, wanted: Wanted },
    /// An identity that has logged in, by name: its keys are looked at anew for each attach.
    Identity { name: String, era: Era, mind: Option<u64> },
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
            let kept = self.keep.take();
            let sent = arguments.references().iter().chain(keywords.references());
            for luid in sent.filter(|sent| sent.kind == RefKind::Remote).filter_map(|sent| sent.luid) {
                if kept != Some(luid) {
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
        if !call.answer && matches!(call.method, "attach" | "respond") {
            // Nobody would get the reference that it is about.
            return Err(Failure::new("ValueError", "an answer to this must be wanted"));
        }
        let Some(index) = object else {
            return match call.method {
                "username" => self.challenge(output, &arguments.text(0, "username")?, Era::Old),
                "login" => self.challenge(output, &arguments.text(0, "username")?, Era::New),
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
                self.respond(output, &challenge, era, &wanted, call.request, arguments).await
            }
            (Some(LoginObject::Identity { name, era, mind }), "attach") => {
                let (name, era, default_mind) = (name.clone(), *era, *mind);
                let service = arguments.text(0, "service")?;
                let perspective = match era {
                    Era::Old => Some(arguments.text(1, "perspective")?),
                    Era::New => arguments.optional_text(1, "perspective")?,
                };
                let mind = arguments.mind(2, "mind")?;
                let identity = self.shared.login.identity(&name).await.map_err(|error| broken(&error))?;
                let identity = identity.ok_or_else(unauthorized)?;
                let mind = match mind {
                    Some(luid) => Some(Mind { luid, lent: false }),
                    None => default_mind.map(|luid| Mind { luid, lent: true }),
                };
                self.attach_to(&identity, &service, perspective.as_deref(), mind, call.request, era)
            }
            (Some(LoginObject::Identity { name, era: Era::New, .. }), "keys") => {
                let name = name.clone();
                let identity = self.shared.login.identity(&name).await.map_err(|error| broken(&error))?;
                let identity = identity.ok_or_else(unauthorized)?;
                let keys: Vec<(&str, &str)> =
                    identity.keyring.keys().map(|key| (key.service.as_str(), key.perspective.as_str())).collect();
                Ok(Reply::Value(jelly::to_vec(&keys).map_err(|error| insecure(&error.to_string()))?))
            }
            (_, method) => Err(no_such_method(method)),
        }
    }

    /// A challenge for any name at all.
    fn challenge(&mut self, output: &mut Out, name: &str, era: Era) -> Result<Reply, Failure> {
        let mut random = [0; 16];
        getrandom::fill(&mut random)
            .map_err(|error| Failure::new("RuntimeError", format!("the host has no randomness: {error}")))?;
        let wanted = match era {
            Era::Old => Wanted { identity: name.to_owned(), perspective: None },
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

    async fn respond(
        &mut self,
        output: &mut Out,
        challenge: &Challenge,
        era: Era,
        wanted: &Wanted,
        request: u64,
        arguments: &Arguments,
    ) -> Result<Reply, Failure> {
        let response = arguments.bytes(0, "response")?;
        let mind = if era == Era::New { arguments.mind(1, "mind")? } else { None };
        let proof = self.shared.login.respond(challenge, &response).await.map_err(|error| broken(&error))?;
        let identity = match proof {
            Ok(identity) => identity,
            Err(refusal) => {
                tracing::info!(peer = self.peer, name = challenge.name(), "login refused: {refusal}");
                return match era {
                    Era::Old => Ok(Reply::Value(vec![1, 0x80, 1, 0x87])),
                    Era::New => Err(unauthorized()),
                };
            }
        };
        tracing::debug!(peer = self.peer, name = challenge.name(), "logged in");
        self.identity = Some(Arc::clone(&identity));
        self.raise = true;
        if let Some((service, perspective)) = &wanted.perspective {
            let mind = mind.map(|luid| Mind { luid, lent: false });
            return self.attach_to(&identity, service, perspective.as_deref(), mind, request, era);
        }
        let index = self.fresh();
        let luid = export(output, index)?;
        self.login.insert(index, LoginObject::Identity { name: identity.name.to_string(), era, mind });
        self.keep = mind;
        let mut value = Vec::new();
        reference(&mut value, luid);
        Ok(Reply::Value(value))
    }

    fn attach_to(
        &mut self,
        identity: &Identity,
        service: &str,
        perspective: Option<&str>,
        mind: Option<Mind>,
        request: u64,
        era: Era,
    ) -> Result<Reply, Failure> {
        let key = key(identity, service, perspective).map_err(|error| match error {
            NoKey::NotFound(_) => Failure::new("twisted.cred.error.KeyNotFound", error.to_string()),
            NoKey::NoneFor => Failure::new("twisted.python.failure.DefaultException", error.to_string()),
            NoKey::Name(_) => Failure::new("ValueError", error.to_string()),
        })?;
        let slot = self
            .shared
            .services
            .service(key.service.as_str())
            .ok_or_else(|| Failure::new("KeyError", format!("'{}'", key.service)))?;
        self.attach(slot, key.perspective.as_str(), identity.name.as_str(), mind, request, era);
        Ok(Reply::Later)
    }
}

fn export(output: &mut Out, index: u32) -> Result<u64, Failure> {
    output
        .tables
        .export(&Object::Login(index))
        .map_err(|error| Failure::new("twisted.spread.pb.Error", error.to_string()))
}
