//! How a call of login continues when its question is answered.

use std::sync::Arc;

use pb::{Failure, Tables};

use super::super::attachments::Era;
use super::super::mind::{GivenMind, Mind};
use super::super::numbers::Object;
use super::super::references::{insecure, reference};
use super::pending::{Asked, Changed, Pending, Then};
use super::words::{Attach, Found, Now, Outcome, Question, QuestionNo, Refused, Step};
use super::{Delayed, Login, LoginObject, broken, not_checked, unauthorized};
use crate::cred::login::{NoKey, key};
use crate::cred::{Identity, Key};

impl Login {
    /// A question was answered: its call continues. `None`: the call no longer waits.
    pub(crate) fn resume(
        &mut self,
        tables: &mut Tables<Object>,
        no: QuestionNo,
        found: Found,
        now: Now,
    ) -> Option<Outcome> {
        let Pending { request, answer, changed, removals, then, .. } = self.take_pending(no)?;
        let mut outcome = Outcome::of(request, answer, Step::Wait);
        outcome.returns = then.borrowed();
        let takes = |identity: &Identity, by| changed != Changed::Revoked && identity.takes(by, now.unix);
        outcome.step = match (then, found) {
            (Then::Prove(asked), Found::Proven(name, credential)) => {
                self.ask_once_proven(asked, (name, credential), removals)
            }
            (Then::Prove(asked), Found::Wrong) => {
                outcome.given_back = asked.mind.clone();
                // In the old era, None is the refusal.
                self.delay(&asked, (asked.era == Era::New).then(unauthorized))
            }
            (Then::Prove(asked), Found::NotChecked(refusal)) => {
                outcome.given_back = asked.mind.clone();
                self.delay(&asked, Some(not_checked(refusal)))
            }
            // The credential is gone. An identity that has the name now is not used.
            (Then::LogIn { asked, name, credential }, Found::Identity(_)) if changed == Changed::Revoked => {
                self.log_in(tables, None, asked, (name, credential), &mut outcome)
            }
            (then @ Then::Attach { .. }, Found::Identity(_)) if changed == Changed::Revoked => {
                attach(then, None, now, &mut outcome)
            }
            // The identity has changed meanwhile: the answer may be outdated.
            (then, Found::Identity(_)) if changed == Changed::Stale => {
                outcome.returns = Mind::Nothing;
                let question = Question::Identity(then.identity().to_owned());
                self.ask(request, answer, then, question)
            }
            (Then::LogIn { asked, name, credential }, Found::Identity(identity)) => {
                self.log_in(tables, identity, asked, (name, credential), &mut outcome)
            }
            (then @ Then::Attach { .. }, Found::Identity(identity)) => attach(then, identity, now, &mut outcome),
            (Then::Keys { credential, .. }, Found::Identity(identity)) => {
                keys(identity.filter(|identity| takes(identity, credential)))
            }
            (Then::Describe { credential, service, .. }, Found::Identity(identity)) => {
                describe(identity.filter(|identity| takes(identity, credential)), service)
            }
            (then, _) => {
                outcome.given_back = then.mind();
                outcome.left = Some(then.identity().to_owned());
                self.cannot_tell(then)
            }
        };
        Some(outcome)
    }

    /// The proof is right: looks up the identity. `removals`: how many identities had been removed when the proof was
    /// submitted.
    pub(super) fn ask_once_proven(&mut self, asked: Asked, (name, credential): (String, u64), removals: u64) -> Step {
        let (request, answer, question) = (asked.request, asked.answer, Question::Identity(name.clone()));
        match self.ask(request, answer, Then::LogIn { asked, name: name.clone(), credential }, question) {
            Step::Ask(no, question) => {
                self.asked_after(no, removals);
                Step::Proven(name, no, question)
            }
            step => step,
        }
    }

    /// The proof was wrong, or was not checked. All refusals take the same time, whatever their reason.
    pub(super) fn delay(&mut self, asked: &Asked, failure: Option<Failure>) -> Step {
        if asked.answer {
            self.delayed.push(Delayed { at: asked.came + self.policy.limits.refusal, request: asked.request, failure });
        }
        Step::Wait
    }

    /// The lookup failed. A login is refused at the same time as every other.
    fn cannot_tell(&mut self, then: Then) -> Step {
        match then {
            Then::Prove(asked) | Then::LogIn { asked, .. } => self.delay(&asked, Some(broken())),
            Then::Attach { .. } | Then::Keys { .. } | Then::Describe { .. } => Step::Fail(broken()),
        }
    }

    /// Completes a login with the identity as it is now.
    fn log_in(
        &mut self,
        tables: &mut Tables<Object>,
        identity: Option<Arc<Identity>>,
        asked: Asked,
        (name, credential): (String, u64),
        outcome: &mut Outcome,
    ) -> Step {
        outcome.given_back = asked.mind.clone();
        let Some(identity) = identity.filter(|identity| identity.has(credential)) else {
            let why = "it was just disabled, or its credential removed";
            outcome.left = Some(name.clone());
            outcome.refused = Some(Refused { identity: name, asked: "login".to_owned(), why });
            return self.delay(&asked, Some(unauthorized()));
        };
        let Asked { era, wanted, mind, .. } = asked;
        if let Some((service, perspective)) = &wanted.perspective {
            return match find_key(&identity, service, perspective.as_deref(), &mut outcome.refused) {
                Err(failure) => {
                    outcome.left = Some(name);
                    Step::Fail(failure)
                }
                Ok(key) => {
                    outcome.logged_in = true;
                    outcome.given_back = Mind::Nothing;
                    let mind = GivenMind::sent(mind);
                    Step::Attach(Attach { identity: name.into(), credential, key, era, mind })
                }
            };
        }
        match self.export(tables, LoginObject::Avatar { name, era, mind: mind.clone(), credential }) {
            Err(failure) => Step::Fail(failure),
            Ok(luid) => {
                outcome.logged_in = true;
                outcome.given_back = Mind::Nothing;
                outcome.avatar_keeps = mind;
                let mut value = Vec::new();
                reference(&mut value, luid);
                Step::Answer(value)
            }
        }
    }
}

/// Continues an avatar's call of `attach`.
fn attach(then: Then, identity: Option<Arc<Identity>>, now: Now, outcome: &mut Outcome) -> Step {
    let sent = then.mind();
    let Then::Attach { name, credential, era, service, perspective, mind } = then else { return Step::Wait };
    // Access by a credential lasts as long as the credential.
    let identity = identity.filter(|identity| identity.takes(credential, now.unix)).ok_or_else(unauthorized);
    let key = identity.and_then(|identity| find_key(&identity, &service, perspective.as_deref(), &mut outcome.refused));
    match key {
        Ok(key) => Step::Attach(Attach { identity: name.into(), credential, key, era, mind }),
        Err(failure) => {
            outcome.given_back = sent;
            Step::Fail(failure)
        }
    }
}

/// The key that leads to a perspective. If there is none, `refused` is set for the trail.
fn find_key(
    identity: &Identity,
    service: &str,
    perspective: Option<&str>,
    refused: &mut Option<Refused>,
) -> Result<Key, Failure> {
    key(identity, service, perspective).map_err(|error| {
        let asked = format!("{service}/{}", perspective.unwrap_or_default());
        *refused = Some(Refused { identity: identity.name.to_string(), asked, why: "no such key" });
        no_key_failure(&error)
    })
}

fn no_key_failure(error: &NoKey) -> Failure {
    match error {
        NoKey::NotFound(_) => Failure::new("twisted.cred.error.KeyNotFound", error.to_string()),
        NoKey::NoneFor => Failure::new("twisted.python.failure.DefaultException", error.to_string()),
        NoKey::Name(_) => Failure::new("ValueError", error.to_string()),
    }
}

/// An avatar asks for a service's description of itself. Without a key for a service, nobody learns that it exists.
fn describe(identity: Option<Arc<Identity>>, service: String) -> Step {
    match identity.map(|identity| key(&identity, &service, None)) {
        Some(Ok(_)) => Step::Describe(service),
        Some(Err(no_key)) => Step::Fail(no_key_failure(&no_key)),
        None => Step::Fail(unauthorized()),
    }
}

fn keys(identity: Option<Arc<Identity>>) -> Step {
    let Some(identity) = identity else { return Step::Fail(unauthorized()) };
    let keys: Vec<(&str, &str)> =
        identity.keyring.keys().map(|key| (key.service.as_str(), key.perspective.as_str())).collect();
    jelly::to_vec(&keys).map_or_else(|error| Step::Fail(insecure(&error.to_string())), Step::Answer)
}
