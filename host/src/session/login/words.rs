//! The questions, answers and outcomes of login.

use std::sync::Arc;
use std::time::Instant;

use pb::Failure;

use super::super::attachments::Era;
use super::super::mind::{GivenMind, Mind};
use crate::cred::login::{Challenge, KeyChallenge};
use crate::cred::{Identity, Key, Password, PublicKey, Refusal, Token};
use crate::session::Limits;

/// The time, in two forms: to measure by, and in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// To measure by.
    pub(crate) instant: Instant,
    /// In seconds since 1970, to compare with expiry dates.
    pub(crate) unix: u64,
}

/// How a listener accepts logins.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Whether Twisted's own login is offered.
    pub(crate) stock: bool,
    /// Whether nobody can eavesdrop (TLS, or one machine), so that passwords and tokens are accepted.
    pub(crate) private: bool,
    /// The time that refusals take, and how much may wait.
    pub(crate) limits: Arc<Limits>,
    /// The identity that has logged in by a service's own door. No other can log in here. Boxed, because few
    /// connections have it.
    pub(crate) within: Option<Box<ProvenBefore>>,
}

/// An identity that has proven itself already.
#[derive(Debug, Clone)]
pub(crate) struct ProvenBefore {
    /// The name.
    pub(crate) identity: Arc<str>,
    /// The number of the credential.
    pub(crate) credential: u64,
    /// How many identities had been removed when the proof was submitted.
    pub(crate) removals: u64,
}

/// A question that login asks outside.
#[derive(Debug)]
pub(crate) enum Question {
    /// Is this proof right? The throttle is charged first.
    Prove(Proof),
    /// What is the identity of this name now?
    Identity(String),
}

/// The proof of a login.
pub(crate) enum Proof {
    /// The answer to Twisted's challenge.
    Stock(Challenge, Vec<u8>),
    /// A signature.
    Key(KeyChallenge, Vec<u8>),
    /// A name and a key. A service that may vouch says that the client has proven to hold the key.
    Vouched(String, PublicKey),
    /// A name, and the key of the certificate that the client has presented in TLS.
    Certificate(String, PublicKey),
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
            Self::Vouched(..) => "Vouched",
            Self::Certificate(..) => "Certificate",
            Self::Password(..) => "Password",
            Self::Token(_) => "Token",
        })
    }
}

/// The answer to a [`Question`].
#[derive(Debug)]
pub(crate) enum Found {
    /// The proof was right: the identity's name, and the number of the credential.
    Proven(String, u64),
    /// The proof was wrong.
    Wrong,
    /// The proof was not checked.
    NotChecked(Refusal),
    /// The identity, if it exists and is enabled.
    Identity(Option<Arc<Identity>>),
    /// It cannot be looked up at present.
    Broken,
}

/// A question's number, among its connection's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct QuestionNo(pub(super) u64);

/// The target of an attach.
#[derive(Debug)]
pub(crate) struct Attach {
    /// The identity.
    pub(crate) identity: Arc<str>,
    /// The number of the credential they logged in with.
    pub(crate) credential: u64,
    /// The key of the perspective.
    pub(crate) key: Key,
    /// How long it lasts.
    pub(crate) era: Era,
    /// The mind.
    pub(crate) mind: GivenMind,
}

/// The result of a call of login.
#[derive(Debug)]
pub(crate) enum Step {
    /// The call is answered with this, in Jelly.
    Answer(Vec<u8>),
    /// The call fails with this error.
    Fail(Failure),
    /// A service is asked. Its answer becomes the answer.
    Attach(Attach),
    /// The call is answered with this service's description of itself.
    Describe(String),
    /// A question must be answered first.
    Ask(QuestionNo, Question),
    /// This name has proven itself. From now on the connection is notified of changes to it; only then is the question
    /// asked.
    Proven(String, QuestionNo, Question),
    /// The call is answered at its time.
    Wait,
}

/// A step, and what goes with it.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// The client's call that it is about.
    pub(crate) request: u64,
    /// Whether the client wants an answer.
    pub(crate) answer: bool,
    /// The result.
    pub(crate) step: Step,
    /// Somebody has logged in.
    pub(crate) logged_in: bool,
    /// A mind that login keeps now. Other minds in the call are returned.
    pub(crate) kept: Mind,
    /// A mind that nobody has any more. Its objects are returned to the client.
    pub(crate) given_back: Mind,
    /// A mind that an avatar keeps from now on.
    pub(crate) avatar_keeps: Mind,
    /// A kept mind that this call needs until its question is answered, even if the avatar ends meanwhile.
    pub(crate) borrows: Mind,
    /// A kept mind that the call no longer needs.
    pub(crate) returns: Mind,
    /// For the trail.
    pub(crate) refused: Option<Refused>,
    /// An identity that had proven itself, and is refused after all.
    pub(crate) left: Option<String>,
}

/// A refusal of an identity that has proven itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refused {
    /// The identity.
    pub(crate) identity: String,
    /// What they asked for.
    pub(crate) asked: String,
    /// The reason.
    pub(crate) why: &'static str,
}

impl Outcome {
    pub(super) fn of(request: u64, answer: bool, step: Step) -> Self {
        let nothing = || Mind::Nothing;
        let (kept, given_back, avatar_keeps, borrows, returns) =
            (nothing(), nothing(), nothing(), nothing(), nothing());
        let (logged_in, refused, left) = (false, None, None);
        Self { request, answer, step, logged_in, kept, given_back, avatar_keeps, borrows, returns, refused, left }
    }
}
