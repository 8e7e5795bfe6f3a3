//! The state and decisions of one connection. No IO, no clock, no randomness: bytes, answers and the time come in;
//! bytes, frames for services and demands go out. Nothing waits.
//!
//! The session passes each event to one owner and applies the result. The owners do not know each other:
//! | owner | owns |
//! |---|---|
//! | `login` | challengers, avatars, questions that wait for an answer, refusals that wait for their time |
//! | `attachments` | who is attached where, by which key and credential, and the phase of each attachment |
//! | `calls` | calls under way, parked calls, services' own calls |
//! | `references` | objects that the client gave and objects that it received, each with its provenance |
//! | `outbox` | frames for each service |
//! | `values` | the scanners that services' values go through |
//!
//! `from_client` and `from_services` pass each message to an owner; `lifetimes` begins and ends logins and attachments.
//! There is one teardown: `Owners::end`, by scope.

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

/// The reason why a connection must end.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// Bytes that are not Banana, not a message, or over a limit.
    #[error(transparent)]
    Peer(#[from] PeerFault),
}

/// What a session asks its connection to do.
#[derive(Debug)]
pub(crate) enum Demand {
    /// Answer this question, through [`Session::found`].
    Ask(QuestionNo, Question),
    /// Write a line to the trail.
    Note(Refused),
}

/// What a session is created with.
pub(crate) struct SessionContext {
    /// The connection's number, in the upper half of all numbers that services see.
    pub(crate) number: u32,
    /// The services.
    pub(crate) backends: Arc<dyn Backends>,
    /// The entry in the list of sessions, which the operator sees once somebody has logged in.
    pub(crate) entry: Arc<SessionEntry>,
    /// Counts the memory that the host keeps for the connection.
    pub(crate) meter: Arc<Meter>,
    /// The rules of its listener: the access that it gives without keys.
    pub(crate) rules: Arc<CurrentRules>,
}

/// One connection: see the module's page.
pub(crate) struct Session {
    input: Input,
    owners: Owners,
    /// Acknowledgements that wait for the end of this connection.
    cuts: Vec<Acknowledgement>,
}

/// A copy of a service's cached object that the client has released. The client still knows it until the service has
/// processed the release.
struct Leaving {
    object: Object,
    luid: u64,
    by: Provenance,
    /// The host's own call of the service, behind the notification: when it ends, the service has processed the
    /// notification. `None`: the call has not begun.
    until: Option<CallNo>,
}

/// The largest number of attachments of a connection without a login.
const ANONYMOUS: usize = 16;

/// A notification for a service about an object of the client's. It follows the calls that the client made before, some
/// of which may wait.
enum Late {
    /// The client returned `count` references to a service's object.
    Dropped { slot: SlotNo, object: u64, count: u64 },
    /// The client released a perspective.
    LetGo(AttachmentNo),
    /// The client released its copy of an object. It knows the copy by this number until the service has processed
    /// this.
    Uncached { attachment: AttachmentNo, object: u64, luid: u64 },
}

/// Everything but the input, so that an event can borrow the input while it is served.
struct Owners {
    output: Output<Object>,
    login: Login,
    attachments: Attachments,
    calls: Calls,
    references: References,
    outbox: Outbox,
    values: Values,
    /// Copies that the client has released, and whose services have not processed that yet.
    leaving: Vec<Leaving>,
    /// Notifications that follow calls which still wait.
    late: VecDeque<(u64, Late)>,
    /// Attachments by names that everybody can call, as far as this client has called them.
    named: BTreeMap<String, AttachmentNo>,
    context: SessionContext,
    limits: Arc<Limits>,
    /// The limits are those of a client that has logged in. Never reset.
    raised: bool,
    /// Somebody has logged in, and the host has not ended that login since.
    logged_in: bool,
    demands: Vec<Demand>,
}

impl Session {
    /// A new connection. Its first bytes are in [`Session::output`]. `seed` is random.
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
        let mut session = Self { input: broker.input, owners, cuts: Vec::new() };
        session.raise_limits();
        session
    }

    /// The buffer to append received bytes to.
    pub(crate) fn input(&mut self) -> &mut Vec<u8> {
        self.input.buffer()
    }

    /// The number of complete messages, and the number of bytes that have arrived and are not yet served.
    pub(crate) fn received(&self) -> (u64, usize) {
        (self.input.messages(), self.input.unserved())
    }

    /// The memory that the host keeps for what the client has sent, in bytes.
    pub(crate) fn kept(&mut self) -> usize {
        self.input.buffer().capacity()
            + self.owners.calls.parked_bytes()
            + self.owners.attachments.mind_bytes()
            + self.owners.references.copied_bytes()
    }

    /// Shrinks buffers. Called after a while without traffic.
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

    /// Sends this error to every call that still waits for an answer. The connection is about to end.
    pub(crate) fn tell_why(&mut self, why: &Failure) {
        let Owners { calls, attachments, output, .. } = &mut self.owners;
        calls.owed().chain(attachments.waiting()).for_each(|request| output.fail(request, why));
    }

    /// The bytes to send. The caller removes from the front what it has sent.
    pub(crate) fn output(&mut self) -> &mut Vec<u8> {
        &mut self.owners.output.bytes
    }

    /// Serves all complete messages, unless a login question or parked calls must be dealt with first (see
    /// [`is_waiting`](Self::is_waiting)).
    ///
    /// # Errors
    /// Returns an error if the connection must end.
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

    /// Serves frames from services. Each frame follows the numbers of its slot and generation.
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

    /// Scans the value in the first frame of mail up to byte `upto`, so that a large value is scanned in parts before
    /// the mail is served. `false`: [`mail`](Self::mail) scans the rest.
    pub(crate) fn look_ahead(&mut self, mail: &[u8], upto: usize) -> bool {
        let mut frames = mail.get(8..).unwrap_or_default();
        let value = match ToHost::read(&mut frames) {
            Some(ToHost::Answer { value, .. }) => value,
            Some(ToHost::Call { arguments, .. } | ToHost::Update { arguments, .. }) => arguments,
            _ => return false,
        };
        value.get(..upto).is_some_and(|beginning| upto < value.len() && self.owners.values.look_ahead(beginning))
    }

    /// A question of this session was answered.
    pub(crate) fn found(&mut self, no: QuestionNo, found: Found, now: Now) {
        let Owners { login, output, values, .. } = &mut self.owners;
        // A mind in the outcome may be scanned before the answer that was partly scanned ahead: forget that scan.
        values.forget_ahead();
        if let Some(outcome) = login.resume(&mut output.tables, no, found, now) {
            self.owners.apply(outcome);
        }
        self.raise_limits();
    }

    /// Applies notices from the host. `true`: the connection is to close.
    pub(crate) fn notices(&mut self) -> bool {
        let mut close = false;
        for (notice, acknowledgement) in self.owners.context.entry.notices() {
            match notice {
                Notice::Changed(name, identity) => {
                    self.owners.changed(&name, identity.as_deref());
                    // Services are notified before the notice is acknowledged.
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
                    // The notice is acknowledged when the connection has ended.
                    self.cuts.push(acknowledgement);
                }
            }
        }
        close
    }

    /// Counts what this connection holds towards its identity's limits, and limits it to what these have left.
    pub(crate) fn count_held(&mut self) {
        let Owners { attachments, output, context, limits, raised, .. } = &mut self.owners;
        let (references, caches) = output.tables.held();
        context.meter.hold(Held::Attachments, attachments.len());
        context.meter.hold(Held::Objects, references + caches);
        context.meter.hold(Held::Unanswered, output.unanswered());
        if *raised {
            // A few are always allowed: an identity that is at its limit elsewhere can still log in and release
            // something.
            let of_identity = context.meter.may_hold(Held::Objects, limits.identity_objects);
            let of_either = of_identity.saturating_sub(references.min(caches)).max(limits.before.references);
            output.set_limit(limits.after.references.min(of_either));
        }
    }

    /// Sends refusals that are due. Returns the time of the next one.
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

    /// Takes the demands.
    pub(crate) fn demands(&mut self) -> Vec<Demand> {
        std::mem::take(&mut self.owners.demands)
    }

    /// Begins parked calls, as far as there is room for their answers.
    pub(crate) fn unpark(&mut self) {
        self.owners.unpark();
    }

    /// Begins parked calls, although earlier calls have not ended.
    pub(crate) fn reset_window(&mut self) {
        self.owners.calls.reset_window();
        self.owners.unpark();
    }

    /// Submits the gathered frames to the services.
    pub(crate) fn submit(&mut self) {
        self.owners.submit();
    }

    /// The connection has ended: notifies services, and everybody who waits for the end.
    pub(crate) fn close(mut self) {
        self.owners.end(&Scope::Connection, &Failure::new("twisted.spread.pb.PBConnectionLost", "the client has gone"));
        self.owners.outbox.submit_all();
        // Others hold the meter for longer.
        self.owners.context.meter.hold_nothing();
        self.owners.context.entry.close();
    }

    /// Whether somebody has logged in, and the host has not ended that login since.
    #[must_use]
    pub(crate) fn logged_in(&self) -> bool {
        self.owners.logged_in
    }

    /// The limits that apply now.
    #[must_use]
    pub(crate) fn limits(&self) -> &PeerLimits {
        self.owners.limits()
    }

    /// Whether a login question must be answered, or parked calls must begin, before more is read.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.owners.login.is_full() || self.owners.calls.is_crowded(self.owners.limits())
    }

    /// Whether calls are parked, until others have ended or the client has read answers.
    #[must_use]
    pub(crate) fn any_parked(&self) -> bool {
        self.owners.calls.any_parked()
    }

    /// Whether no call and no login question of the client is under way.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.owners.calls.is_idle() && self.owners.login.is_idle()
    }

    fn raise_limits(&mut self) {
        let Owners { raised, logged_in, limits, output, context, .. } = &mut self.owners;
        // Where names can be called without a login, a client has what it may have by its first call: that call, too, may be
        // of any size.
        if !*raised && (*logged_in || !context.rules.get().names.is_empty()) {
            *raised = true;
            self.input.set_limits(limits.after.jelly);
            output.set_limit(limits.after.references);
        }
    }
}
