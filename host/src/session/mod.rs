//! What one connection knows and decides. No IO, no clock, no randomness: bytes, answers and the time come in, bytes,
//! frames for services and demands go out, and nothing ever waits.
//!
//! The session hands each event to one owner, and applies what that answers. The owners do not know each other:
//!
//! | owner | owns |
//! |---|---|
//! | `login` | challengers, avatars, questions that wait for an answer, refusals that wait for their time |
//! | `attachments` | who is attached where, by which key and credential, and how far that has come |
//! | `calls` | calls under way, those that wait for room, services' own calls |
//! | `references` | what the client gave and what it was given, each with the attachments that it came by |
//! | `outbox` | frames for each service |
//! | `values` | the scanners that services' values go through |
//!
//! `from_client` and `from_services` hand what each says to an owner; `lifetimes` is what begins and ends. There is one
//! teardown: `Owners::end`, by scope.

mod attachments;
mod calls;
mod from_client;
mod from_services;
mod lifetimes;
mod limits;
pub(crate) mod login;
mod mind;
mod numbers;
mod offers;
mod outbox;
mod references;
mod values;

#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::time::Instant;

use pb::{Event, Failure, Input, Output, PeerFault, Role};
use plugin_api::abi::frame::ToHost;

use self::attachments::{Attachments, Scope};
use self::calls::Calls;
pub use self::limits::{Limits, PeerLimits};
use self::login::{Found, Login, Now, Policy, Question, QuestionNo, Refused};
use self::numbers::{AttachmentNo, CallNo, Object, Provenance};
use self::outbox::Outbox;
use self::references::References;
use self::values::Values;
use crate::cred::CurrentRules;
use crate::memory::{Held, Meter};
use crate::multiservice::{Backends, Lane, SlotNo};
use crate::sessions::{Acknowledgement, Notice, SessionEntry};

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// Bytes that are no Banana, no message, or over a limit.
    #[error(transparent)]
    Peer(#[from] PeerFault),
}

/// What a session wants done outside.
#[derive(Debug)]
pub(crate) enum Demand {
    /// An answer, by [`Session::found`].
    Ask(QuestionNo, Question),
    /// A line in the trail.
    Note(Refused),
}

/// Who is connected, and to what.
pub(crate) struct SessionContext {
    /// The connection's number, in the upper half of all numbers that services see.
    pub(crate) number: u32,
    /// The services.
    pub(crate) backends: Arc<dyn Backends>,
    /// Where the operator sees it, once somebody has logged in.
    pub(crate) entry: Arc<SessionEntry>,
    /// What is kept for it.
    pub(crate) meter: Arc<Meter>,
    /// What its listener gives beside keys.
    pub(crate) rules: Arc<CurrentRules>,
}

/// One connection: see the module's page.
pub(crate) struct Session {
    input: Input,
    owners: Owners,
    /// Who waits for the end of this connection.
    cuts: Vec<Acknowledgement>,
}

/// A copy of a service's cached object that the client has let go of. Until the service has said its last word to it, the
/// client still knows it.
struct Leaving {
    object: Object,
    luid: u64,
    by: Provenance,
    /// The host's own call of the service, behind the news: when it has ended, the service has heard. `None`: it has not
    /// begun.
    until: Option<CallNo>,
}

/// The largest number of attachments of a connection without a login.
const ANONYMOUS: usize = 16;

/// What a service hears of what the client holds: behind the calls that the client made before, some of which may wait.
enum Late {
    /// The client gave back `count` references to a service's object.
    Dropped { slot: SlotNo, object: u64, count: u64 },
    /// A perspective was let go of.
    LetGo(AttachmentNo),
    /// The client knows its copy of an object by this number until the service has heard that it has let go of it.
    Uncached { attachment: AttachmentNo, object: u64, luid: u64 },
}

/// All but what comes in, so that an event can be looked at while it is served.
struct Owners {
    output: Output<Object>,
    login: Login,
    attachments: Attachments,
    calls: Calls,
    references: References,
    outbox: Outbox,
    values: Values,
    /// Copies that the client has let go of, and their services have not heard of it yet.
    leaving: Vec<Leaving>,
    /// What services are to hear behind calls that wait.
    late: VecDeque<(u64, Late)>,
    /// What everybody can call by name, as far as this client has called it.
    named: BTreeMap<String, AttachmentNo>,
    context: SessionContext,
    limits: Arc<Limits>,
    /// Somebody has logged in: limits are those of peers that have.
    raised: bool,
    /// Somebody has logged in, and was not sent away since.
    logged_in: bool,
    demands: Vec<Demand>,
}

impl Session {
    /// A connection that has just begun: its first bytes are in [`Session::output`]. `seed` is random.
    #[must_use]
    pub(crate) fn new(context: SessionContext, limits: Arc<Limits>, policy: Policy, seed: [u8; 32]) -> Self {
        let broker = pb::Broker::new(Role::Server, limits.before.jelly, limits.before.references);
        let owners = Owners {
            output: broker.output,
            login: Login::new(policy, Arc::clone(&context.rules), seed),
            attachments: Attachments::default(),
            calls: Calls::default(),
            references: References::default(),
            outbox: Outbox::new(Lane { connection: context.number, meter: Arc::clone(&context.meter) }),
            values: Values::new(limits.after.jelly),
            leaving: Vec::new(),
            late: VecDeque::new(),
            named: BTreeMap::new(),
            context,
            limits,
            raised: false,
            logged_in: false,
            demands: Vec::new(),
        };
        Self { input: broker.input, owners, cuts: Vec::new() }
    }

    /// Where to append bytes that come.
    pub(crate) fn input(&mut self) -> &mut Vec<u8> {
        self.input.buffer()
    }

    /// How many messages have come whole, and how many bytes of the next are there.
    pub(crate) fn received(&self) -> (u64, usize) {
        (self.input.messages(), self.input.unserved())
    }

    /// What is kept of what the client has sent, in bytes.
    pub(crate) fn kept(&mut self) -> usize {
        self.input.buffer().capacity()
            + self.owners.calls.parked_bytes()
            + self.owners.attachments.mind_bytes()
            + self.owners.references.copied_bytes()
    }

    /// Gives back room that nothing is in: nothing has come or gone for a while.
    pub(crate) fn rest(&mut self) {
        let Owners { login, outbox, values, demands, output, .. } = &mut self.owners;
        login.rest();
        outbox.rest();
        values.rest();
        *demands = Vec::new();
        if output.bytes.is_empty() {
            output.bytes = Vec::new();
        }
        self.input.rest();
        self.cuts.shrink_to_fit();
    }

    /// Everybody who waits for an answer gets this error: the connection is about to end.
    pub(crate) fn tell_why(&mut self, why: &Failure) {
        let Owners { calls, attachments, output, .. } = &mut self.owners;
        calls.owed().chain(attachments.waiting()).for_each(|request| output.fail(request, why));
    }

    /// The bytes to send. Take from its front what has been sent.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.owners.output.bytes
    }

    /// Serves everything that has come whole, unless log-in is to be answered first.
    ///
    /// # Errors
    /// What ends the connection.
    pub(crate) fn serve(&mut self, now: Now) -> Result<(), Violation> {
        loop {
            self.raise_limits();
            if self.is_waiting() {
                return Ok(());
            }
            let Self { input, owners, .. } = self;
            match input.event(&mut owners.output)? {
                None => return Ok(()),
                Some(Event::Call(call)) => owners.called(&call, now),
                Some(Event::CacheCall(call)) => owners.cache_called(&call),
                Some(Event::Answer { request, value, defect }) => owners.client_answered(request, value, defect),
                Some(Event::Error { request, failure, defect }) => owners.client_failed(request, failure, defect),
                Some(Event::Dropped(object)) => owners.dropped(object),
                Some(Event::Uncached { object, luid }) => owners.uncached(object, luid),
                Some(Event::Ended(luid)) => owners.client_ended(luid),
                Some(_) => {}
            }
        }
    }

    /// Serves what services have said: the numbers of slots and generations, each with its frame.
    pub(crate) fn mail(&mut self, mut mail: &[u8]) {
        while let Some((from, rest)) = mail.split_first_chunk::<8>() {
            mail = rest;
            let Some(frame) = ToHost::read(&mut mail) else { return };
            let from = u64::from_le_bytes(*from);
            self.owners.service_said(SlotNo(from as u32), (from >> 32) as u32, frame);
            self.owners.values.forget_ahead();
        }
        self.owners.unpark();
    }

    /// Looks at the value in the first frame of mail, as far as `upto` bytes of it: a large one is looked at in parts, before the mail
    /// is served. False: the rest is for whoever serves it.
    pub(crate) fn look_ahead(&mut self, mail: &[u8], upto: usize) -> bool {
        let mut frames = mail.get(8..).unwrap_or_default();
        let value = match ToHost::read(&mut frames) {
            Some(ToHost::Answer { value, .. }) => value,
            Some(ToHost::Call { arguments, .. } | ToHost::Update { arguments, .. }) => arguments,
            _ => return false,
        };
        value.get(..upto).is_some_and(|beginning| upto < value.len() && self.owners.values.look_ahead(beginning))
    }

    /// A question of this session's was answered.
    pub(crate) fn found(&mut self, no: QuestionNo, found: Found, now: Now) {
        let Owners { login, output, values, .. } = &mut self.owners;
        // A mind that comes with it may be looked at before the answer that was looked at ahead is served.
        values.forget_ahead();
        if let Some(outcome) = login.resume(&mut output.tables, no, found, now) {
            self.owners.apply(outcome);
        }
        self.raise_limits();
    }

    /// What the host tells this connection; true: it is to close.
    pub(crate) fn notices(&mut self) -> bool {
        let mut close = false;
        for (notice, acknowledgement) in self.owners.context.entry.notices() {
            match notice {
                Notice::Changed(name, identity) => {
                    self.owners.changed(&name, identity.as_deref());
                    // Services are told before it is acknowledged.
                    self.owners.submit();
                    drop(acknowledgement);
                }
                Notice::Rules => {
                    self.owners.rules_changed();
                    self.owners.submit();
                    drop(acknowledgement);
                }
                Notice::Cut => {
                    close = true;
                    // It is acknowledged when the connection has ended.
                    self.cuts.push(acknowledgement);
                }
            }
        }
        close
    }

    /// Counts what this connection holds among all of its identity's, and takes up what is left of that.
    pub(crate) fn count_held(&mut self) {
        let Owners { attachments, output, context, limits, raised, .. } = &mut self.owners;
        let (references, caches) = output.tables.held();
        context.meter.hold(Held::Attachments, attachments.len());
        context.meter.hold(Held::Objects, references + caches);
        context.meter.hold(Held::Unanswered, output.unanswered());
        if *raised {
            // A few always: an identity that is at its limit elsewhere can still log in, and let go of something.
            let of_identity = context.meter.may_hold(Held::Objects, limits.identity_objects);
            let of_either = of_identity.saturating_sub(references.min(caches)).max(limits.before.references);
            output.set_limit(limits.after.references.min(of_either));
        }
    }

    /// Sends refusals whose time has come; says when the next one's is.
    pub(crate) fn refuse_due(&mut self, now: Now) -> Option<Instant> {
        let Owners { login, output, .. } = &mut self.owners;
        login.next_due()?;
        for (request, failure) in login.due(now) {
            match failure {
                Some(failure) => output.fail(request, &failure),
                None => output.answer(request, login::none()),
            }
        }
        login.next_due()
    }

    /// What is wanted done outside.
    pub(crate) fn demands(&mut self) -> Vec<Demand> {
        std::mem::take(&mut self.owners.demands)
    }

    /// Calls that wait begin, as far as there is room for their answers.
    pub(crate) fn unpark(&mut self) {
        self.owners.unpark();
    }

    /// Calls that wait begin, though those before them have not ended.
    pub(crate) fn reset_window(&mut self) {
        self.owners.calls.reset_window();
        self.owners.unpark();
    }

    /// Hands over what was gathered for services.
    pub(crate) fn submit(&mut self) {
        self.owners.submit();
    }

    /// The connection has ended: everybody who should know is told.
    pub(crate) fn close(mut self) {
        self.owners.end(&Scope::Connection, &Failure::new("twisted.spread.pb.PBConnectionLost", "the client has gone"));
        self.owners.outbox.submit_all();
        // Others hold the meter for longer.
        self.owners.context.meter.hold_nothing();
        self.owners.context.entry.close();
    }

    /// Whether somebody has logged in, and was not sent away since.
    #[must_use]
    pub(crate) fn logged_in(&self) -> bool {
        self.owners.logged_in
    }

    /// What the client may cost now.
    #[must_use]
    pub(crate) fn limits(&self) -> &PeerLimits {
        self.owners.limits()
    }

    /// Whether log-in is to be answered, or calls that wait are to begin, before more is read.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.owners.login.is_full() || self.owners.calls.is_crowded(self.owners.limits())
    }

    /// Whether calls wait for others to end, or for answers to be read.
    #[must_use]
    pub(crate) fn any_parked(&self) -> bool {
        self.owners.calls.any_parked()
    }

    /// Whether nothing is under way for the client.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.owners.calls.is_idle() && self.owners.login.is_idle()
    }

    fn raise_limits(&mut self) {
        let Owners { raised, logged_in, limits, output, .. } = &mut self.owners;
        if *logged_in && !*raised {
            *raised = true;
            self.input.set_limits(limits.after.jelly);
            output.set_limit(limits.after.references);
        }
    }
}
