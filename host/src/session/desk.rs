//! What one connection knows and decides. No IO: bytes come into its broker and go out of it.

use std::collections::{HashMap, HashSet, VecDeque};
use std::net::SocketAddr;
use std::sync::Arc;

use jelly::{Scanner, Shape};
use pb::{Broker, Event, Failure, Role};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::connection::End;
use super::door::Shared;
use super::limits::PeerLimits;
use super::root::{Checked, LoginObject, NONE};
use super::services::Batch;
use super::sessions::{Heard, Notice, Session};
use crate::cred::Key;
use crate::multiservice::slot::Slot;
use crate::multiservice::switchboard::Mailbox;

/// What the first answers are taken to be like, in bytes.
const FIRST_ANSWER: usize = 64 << 10;
/// How much may be on its way to a client in calls that have not ended, as far as their answers can be foretold.
const WINDOW: usize = 4 << 20;
/// An answer is never foretold to be smaller than this.
const SMALL_ANSWER: usize = 4 << 10;
/// A client always has some calls on their way, however large their answers.
const FEW_CALLS: usize = 4;

/// An object that the client can hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Object {
    /// One of log-in's: a challenger, an identity's wrapper, an avatar.
    Login(u32),
    /// The perspective of an attachment.
    Perspective(u64),
    /// An object of a service's own, which came by this attachment.
    Service { attachment: u64, object: u64 },
    /// A cached object of a service's own, whose state the client has.
    Cached { slot: u64, object: u64 },
}

/// Which words a client used to log in: they differ in how long an attachment lasts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Era {
    /// Until the connection ends.
    Old,
    /// Until the client drops its last reference, or the connection ends.
    New,
}

/// A client at a perspective.
pub(super) struct Attached {
    pub(super) slot: Arc<Slot>,
    pub(super) era: Era,
    /// The call to be answered, while the service has not answered.
    pub(super) request: Option<u64>,
    /// Who has attached.
    pub(super) identity: Arc<str>,
    /// What they have logged in with.
    pub(super) credential: u64,
    /// The key that it came by.
    pub(super) key: Key,
}

/// A call on its way through a service.
pub(super) struct InFlight {
    pub(super) slot: u64,
    pub(super) attachment: u64,
    pub(super) request: u64,
    pub(super) answer: bool,
}

/// A service's reference to an object of the client's.
pub(super) struct Held {
    pub(super) slot: Arc<Slot>,
    pub(super) luid: u64,
    /// By which it came first.
    pub(super) attachment: u64,
    /// How often it was sent: each is given back.
    pub(super) count: u64,
    /// How often an avatar has lent it: these are not.
    pub(super) lent: u64,
}

/// A service's call of an object of the client's.
pub(super) struct Asked {
    pub(super) slot: Arc<Slot>,
    /// Which of the slot's generations: no other is to have the answer.
    pub(super) generation: u32,
    pub(super) call: u64,
}

/// A call that waits until others have ended.
pub(super) struct Parked {
    pub(super) call: InFlight,
    pub(super) object: u64,
    pub(super) method: String,
    pub(super) arguments: Vec<u8>,
    pub(super) keywords: Vec<u8>,
    pub(super) handles: Vec<u8>,
}

impl Parked {
    pub(super) fn size(&self) -> usize {
        size_of::<Self>() + self.method.len() + self.arguments.len() + self.keywords.len() + self.handles.len()
    }
}

/// The desk: see the module's page.
pub(super) struct Desk {
    pub(super) broker: Broker<Object>,
    pub(super) state: State,
    /// Logins whose passwords were checked.
    checked: mpsc::UnboundedReceiver<Box<Checked>>,
    /// Who waits for the end of this connection.
    cut: Vec<Heard>,
}

/// Where a connection comes from.
#[derive(Debug, Clone)]
pub(super) struct Peer {
    pub(super) address: SocketAddr,
    /// Whether nobody can listen on the way: TLS, or one machine.
    pub(super) private: bool,
    pub(super) tls: bool,
}

/// A refusal that leaves when its time has come.
pub(super) struct Delayed {
    pub(super) at: Instant,
    pub(super) request: u64,
    /// What is answered; `None`: the original's None, which is an answer.
    pub(super) failure: Option<Failure>,
}

/// All but the broker, so that an event can be looked at while it is served.
pub(super) struct State {
    pub(super) shared: Arc<Shared>,
    /// This connection's number, in the upper half of all numbers that services see.
    pub(super) number: u32,
    pub(super) peer: String,
    pub(super) from: Peer,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) next: u32,
    /// Once somebody has logged in.
    pub(super) session: Option<Arc<Session>>,
    /// Somebody has logged in, and was not sent away since.
    pub(super) logged_in: bool,
    /// How many passwords are being checked.
    pub(super) checking: usize,
    pub(super) checks: mpsc::UnboundedSender<Box<Checked>>,
    pub(super) delayed: Vec<Delayed>,
    /// A mind that the call being served left with a password's check.
    pub(super) pending: Option<u64>,
    /// A mind that the call being served left with an avatar.
    pub(super) keep: Option<u64>,
    /// Limits to be raised, once the event that led to it is served.
    pub(super) raise: bool,
    pub(super) login: HashMap<u32, LoginObject>,
    pub(super) attachments: HashMap<u64, Attached>,
    pub(super) calls: HashMap<u32, InFlight>,
    pub(super) parked: VecDeque<Parked>,
    pub(super) parked_bytes: usize,
    /// How large an answer is likely to be, in bytes: quick to rise, slow to fall.
    pub(super) answer_size: usize,
    /// Our calls of the client's objects: whose they are.
    pub(super) outgoing: HashMap<u64, Asked>,
    pub(super) held: HashMap<u32, Held>,
    pub(super) held_by: HashMap<(u64, u64), u32>,
    /// How often each object of a service's was sent.
    pub(super) sent: HashMap<Object, u64>,
    /// By which attachments each cached object was sent, without those that were taken away since.
    pub(super) cached_by: HashMap<Object, HashSet<u64>>,
    /// Frames for services, to be handed over together.
    pub(super) batches: Vec<Batch>,
    pub(super) scanner: Scanner,
    pub(super) keyword_scanner: Scanner,
}

impl Desk {
    pub(super) fn new(shared: Arc<Shared>, number: u32, from: Peer, mailbox: Arc<Mailbox>) -> Self {
        let (checks, checked) = mpsc::unbounded_channel();
        let before = shared.limits.before;
        let jelly = shared.limits.after.jelly;
        Self {
            broker: Broker::new(Role::Server, before.jelly, before.references),
            state: State {
                shared,
                number,
                peer: from.address.to_string(),
                from,
                mailbox,
                next: 0,
                session: None,
                logged_in: false,
                checking: 0,
                checks,
                delayed: Vec::new(),
                pending: None,
                keep: None,
                raise: false,
                login: HashMap::new(),
                attachments: HashMap::new(),
                calls: HashMap::new(),
                parked: VecDeque::new(),
                parked_bytes: 0,
                answer_size: FIRST_ANSWER,
                outgoing: HashMap::new(),
                held: HashMap::new(),
                held_by: HashMap::new(),
                sent: HashMap::new(),
                cached_by: HashMap::new(),
                batches: Vec::new(),
                scanner: Scanner::new(Shape::Value, jelly),
                keyword_scanner: Scanner::new(Shape::Value, jelly),
            },
            checked,
            cut: Vec::new(),
        }
    }

    /// Waits until a password was checked; for ever, if none is being.
    pub(super) async fn checked(&mut self) -> Box<Checked> {
        match self.checked.recv().await {
            Some(checked) => checked,
            // The desk itself has an end of it.
            None => std::future::pending().await,
        }
    }

    /// A password was checked: goes on with the login.
    pub(super) async fn finish(&mut self, checked: Box<Checked>) {
        self.state.finish(&mut self.broker.output, *checked).await;
        self.raise();
    }

    /// Answers refusals whose time has come; says when the next one's is.
    pub(super) fn refuse_due(&mut self) -> Option<Instant> {
        if self.state.delayed.is_empty() {
            return None;
        }
        let now = Instant::now();
        let output = &mut self.broker.output;
        for due in self.state.delayed.extract_if(.., |delayed| delayed.at <= now) {
            match due.failure {
                Some(failure) => output.fail(due.request, &failure),
                None => output.answer(due.request, NONE),
            }
        }
        self.state.delayed.iter().map(|delayed| delayed.at).min()
    }

    /// What the host has told this connection; true: it is to close.
    pub(super) fn notices(&mut self) -> bool {
        let Some(session) = &self.state.session else { return false };
        let mut close = false;
        for (notice, heard) in session.notices() {
            match notice {
                Notice::Changed(name, identity) => {
                    self.state.changed(&mut self.broker.output, &name, identity.as_deref());
                    // Services are told before it counts as heard.
                    self.state.submit(&mut self.broker.output);
                }
                Notice::Cut => {
                    close = true;
                    // It counts as heard when the connection has ended.
                    self.cut.push(heard);
                    continue;
                }
            }
            drop(heard);
        }
        close
    }

    fn raise(&mut self) {
        if std::mem::take(&mut self.state.raise) {
            let after = self.state.shared.limits.after;
            self.broker.input.set_limits(after.jelly);
            self.broker.output.set_limit(after.references);
        }
    }

    /// Serves everything that has come whole.
    pub(super) async fn serve(&mut self) -> Result<(), End> {
        let Self { broker, state, .. } = self;
        loop {
            let output = &mut broker.output;
            let Some(event) = broker.input.event(output)? else {
                return Ok(());
            };
            match event {
                Event::Call(call) => match state.target(output, &call) {
                    Some(Object::Perspective(attachment)) => state.call_service(output, attachment, 0, &call)?,
                    Some(Object::Service { attachment, object }) => {
                        state.call_service(output, attachment, object, &call)?;
                    }
                    Some(Object::Login(index)) => state.call_login(output, Some(index), &call).await,
                    None if matches!(call.target, pb::Target::Name("root")) => {
                        state.call_login(output, None, &call).await;
                    }
                    Some(Object::Cached { .. }) | None if call.answer => {
                        output.fail(call.request, &Failure::new("twisted.spread.pb.Error", "Invalid Object ID"));
                    }
                    Some(Object::Cached { .. }) | None => {}
                },
                // No cached object of a client's is observed; one that was given back may not know it yet.
                Event::CacheCall(call) if call.answer => match call.target {
                    pb::Target::Luid(luid) if output.tables.keeps(luid) => {
                        output.answer(call.request, &[1, 0x80, 1, 0x87]);
                    }
                    pb::Target::Luid(luid) => {
                        output.fail(call.request, &Failure::new("KeyError", luid.to_string()));
                    }
                    pb::Target::Name(name) => {
                        output.fail(call.request, &Failure::new("KeyError", name));
                    }
                },
                Event::Answer { request, value, defect } => state.answered(output, request, value, defect),
                Event::Error { request, failure, defect } => state.failed(output, request, failure, defect),
                Event::Dropped(object) => state.dropped(object),
                Event::Uncached(object) => drop(state.cached_by.remove(&object)),
                Event::DidNotUnderstand => tracing::debug!(peer = state.peer, "the client did not understand"),
                _ => {}
            }
            if std::mem::take(&mut state.raise) {
                let after = state.shared.limits.after;
                broker.input.set_limits(after.jelly);
                broker.output.set_limit(after.references);
            }
        }
    }

    /// Serves what services have said: the numbers of slots and generations, each with its frame.
    pub(super) fn mail(&mut self, mut mail: &[u8]) {
        while let Some((from, rest)) = mail.split_first_chunk::<8>() {
            mail = rest;
            let Some(frame) = plugin_api::abi::frame::ToHost::read(&mut mail) else {
                return;
            };
            let from = u64::from_le_bytes(*from);
            self.state.mail(&mut self.broker.output, from & u64::from(u32::MAX), (from >> 32) as u32, frame);
        }
        self.unpark();
    }

    /// Calls that waited, as far as there is room for their answers.
    pub(super) fn unpark(&mut self) {
        self.state.unpark(&mut self.broker.output);
    }

    /// Calls that wait begin, though those before them have not ended.
    pub(super) fn lift(&mut self) {
        self.state.lift();
        self.unpark();
    }

    /// Hands over what was gathered for services.
    pub(super) fn submit(&mut self) {
        self.state.submit(&mut self.broker.output);
    }

    /// Whether somebody has logged in, and was not sent away since.
    pub(super) fn logged_in(&self) -> bool {
        self.state.logged_in
    }

    pub(super) fn limits(&self) -> &PeerLimits {
        self.state.limits()
    }

    /// Whether calls wait for others to end, or for answers to be read.
    pub(super) fn parked(&self) -> bool {
        !self.state.parked.is_empty()
    }

    /// Whether nothing is under way for the client.
    pub(super) fn idle(&self) -> bool {
        self.state.calls.is_empty() && self.state.parked.is_empty() && self.state.checking == 0
    }

    /// The connection has ended: everybody who should know is told.
    pub(super) fn end(mut self) {
        if self.state.session.is_some() {
            self.state.shared.guard.sessions().close(self.state.number);
        }
        self.state.end();
    }
}

impl State {
    /// How many calls may be on their way. As many as its limit allows, if answers are small; fewer, if they are
    /// large, or if those there are have not been read.
    pub(super) fn room(&self, output: &pb::Output<Object>) -> usize {
        if output.bytes.len() > self.limits().unread {
            return 0;
        }
        (WINDOW / self.answer_size.max(SMALL_ANSWER)).max(FEW_CALLS).min(self.limits().calls)
    }

    /// Nothing has been answered for a while: how large answers were tells nothing of those to come.
    pub(super) fn lift(&mut self) {
        self.answer_size = SMALL_ANSWER;
    }

    /// An answer was as large as this.
    pub(super) fn foretell(&mut self, size: usize) {
        self.answer_size = size.max(self.answer_size - self.answer_size / 8);
    }

    pub(super) fn limits(&self) -> &PeerLimits {
        if self.session.is_some() { &self.shared.limits.after } else { &self.shared.limits.before }
    }

    /// A number that nothing of this connection has just now.
    pub(super) fn fresh(&mut self) -> u32 {
        loop {
            self.next = self.next.wrapping_add(1);
            let taken = self.calls.contains_key(&self.next)
                || self.held.contains_key(&self.next)
                || self.login.contains_key(&self.next)
                || self.attachments.contains_key(&self.wide(self.next));
            if self.next != 0 && !taken {
                return self.next;
            }
        }
    }

    /// A number of this connection's, as services see it.
    pub(super) fn wide(&self, number: u32) -> u64 {
        u64::from(self.number) << 32 | u64::from(number)
    }

    /// A number that a service gave back; `None` if it is not of this connection.
    pub(super) fn narrow(&self, number: u64) -> Option<u32> {
        (number >> 32 == u64::from(self.number)).then_some(number as u32)
    }

    fn target(&self, output: &pb::Output<Object>, call: &pb::Call<'_>) -> Option<Object> {
        match call.target {
            pb::Target::Luid(luid) => output.tables.exported(luid).copied(),
            pb::Target::Name(_) => None,
        }
    }
}
