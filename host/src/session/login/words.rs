//! What log-in asks, is answered, and answers with.

use std::sync::Arc;
use std::time::Instant;

use pb::Failure;

use super::super::attachments::Era;
use super::super::mind::{GivenMind, Mind};
use crate::cred::login::{Challenge, KeyChallenge};
use crate::cred::{Identity, Key, Password, PublicKey, Refusal, Token};
use crate::session::Limits;

/// The time, twice: to measure by, and in seconds since 1970.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Now {
    /// To measure by.
    pub(crate) instant: Instant,
    /// In seconds since 1970, to compare with dates of expiry.
    pub(crate) unix: u64,
}

/// How a listener takes logins.
#[derive(Debug, Clone)]
pub(crate) struct Policy {
    /// Whether Twisted's own login is offered.
    pub(crate) stock: bool,
    /// Whether nobody can listen on the way, so that passwords and tokens are taken: TLS, or one machine.
    pub(crate) private: bool,
    /// How long after it came a refusal leaves, whatever its reason; and how much may wait.
    pub(crate) limits: Arc<Limits>,
    /// Who has logged in by a service's own door, and is the only one that can be logged in here.
    /// Boxed: few have it.
    pub(crate) within: Option<Box<ProvenBefore>>,
}

/// Somebody who has proven who they are already.
#[derive(Debug, Clone)]
pub(crate) struct ProvenBefore {
    /// The name.
    pub(crate) identity: Arc<str>,
    /// The number of the credential.
    pub(crate) credential: u64,
    /// How many identities had been removed when the proof was asked about.
    pub(crate) removals: u64,
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
    /// A name and a key, of which a service that may say so says that the client has proven to have it.
    Vouched(String, PublicKey),
    /// A name, and the key of the certificate that the client has shown by TLS.
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
pub(crate) struct QuestionNo(pub(super) u64);

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
    /// What it gave.
    pub(crate) mind: GivenMind,
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
    /// What this service says of itself.
    Describe(String),
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
    pub(crate) kept: Mind,
    /// A mind that nobody has any more.
    pub(crate) given_back: Mind,
    /// A mind that an avatar keeps from now on.
    pub(crate) avatar_keeps: Mind,
    /// A kept mind that this call needs until its question is answered, whatever becomes of the avatar meanwhile.
    pub(crate) borrows: Mind,
    /// One that it needed, and needs no more.
    pub(crate) returns: Mind,
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

impl Outcome {
    pub(super) fn of(request: u64, answer: bool, step: Step) -> Self {
        let nothing = || Mind::Nothing;
        let (kept, given_back, avatar_keeps, borrows, returns) =
            (nothing(), nothing(), nothing(), nothing(), nothing());
        let (logged_in, refused, left) = (false, None, None);
        Self { request, answer, step, logged_in, kept, given_back, avatar_keeps, borrows, returns, refused, left }
    }
}
