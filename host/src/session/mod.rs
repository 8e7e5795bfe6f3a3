//! What one connection knows and decides. No IO, no clock, no randomness: bytes, answers and the time come in, bytes,
//! frames for services and [`Demand`]s go out, and nothing ever waits.
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
//! There is one teardown: `Owners::end`, by [`Scope`].

mod attachments;
mod calls;
mod limits;
pub(crate) mod login;
mod numbers;
mod outbox;
mod references;
mod values;

#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::Instant;

use jelly::Defect;
use pb::{Call, Event, Exported, Failure, Input, Jelly, Output, PeerFault, Role, Target};
use plugin_api::abi::frame::{self, ToHost, ToLibrary};

use self::attachments::{Attached, Attachments, Phase, Scope};
use self::calls::{Calls, InFlight, Outgoing, Parked, TooManyCalls, Words};
pub use self::limits::{Limits, PeerLimits};
use self::login::{Attach, Found, Login, Mind, Now, Outcome, Policy, Question, QuestionNo, Refused, Step};
use self::numbers::{AttachmentNo, CallNo, HandleNo, Object, Provenance};
use self::outbox::{Bounced, Outbox};
use self::references::{References, Released, Route, dead, give_back, reference, revoked};
use self::values::{Values, defective};
use crate::cred::Identity;
use crate::multiservice::{AttachmentChange, Backend, Backends, SlotNo};
use crate::sessions::{Acknowledgement, Notice, SessionEntry};

/// What ends a connection.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Violation {
    /// Bytes that are no Banana, no message, or over a limit.
    #[error(transparent)]
    Peer(#[from] PeerFault),
    /// Too much waits for room.
    #[error(transparent)]
    TooManyCalls(#[from] TooManyCalls),
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
    /// Where the client is, for a person to read.
    pub(crate) peer: String,
    /// The services.
    pub(crate) backends: Arc<dyn Backends>,
    /// Where the operator sees it, once somebody has logged in.
    pub(crate) entry: Arc<SessionEntry>,
}

/// One connection: see the module's page.
pub(crate) struct Session {
    input: Input,
    owners: Owners,
    /// Who waits for the end of this connection.
    cuts: Vec<Acknowledgement>,
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
    context: SessionContext,
    limits: Limits,
    /// Somebody has logged in: limits are those of peers that have.
    raised: bool,
    /// Somebody has logged in, and was not sent away since.
    logged_in: bool,
    demands: Vec<Demand>,
}

/// Whom a call is for.
enum Callee {
    Login(Option<numbers::LoginNo>),
    Service(AttachmentNo, u64),
    Nobody(Failure),
}

impl Session {
    /// A connection that has just begun: its first bytes are in [`Session::output`]. `seed` is random.
    #[must_use]
    pub(crate) fn new(context: SessionContext, limits: Limits, policy: Policy, seed: [u8; 32]) -> Self {
        let broker = pb::Broker::new(Role::Server, limits.before.jelly, limits.before.references);
        let owners = Owners {
            output: broker.output,
            login: Login::new(policy, seed),
            attachments: Attachments::default(),
            calls: Calls::default(),
            references: References::default(),
            outbox: Outbox::default(),
            values: Values::new(limits.after.jelly),
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
            if self.owners.login.is_full() {
                return Ok(());
            }
            let Self { input, owners, .. } = self;
            match input.event(&mut owners.output)? {
                None => return Ok(()),
                Some(Event::Call(call)) => owners.called(&call, now)?,
                Some(Event::CacheCall(call)) => owners.cache_called(&call),
                Some(Event::Answer { request, value, defect }) => owners.client_answered(request, value, defect),
                Some(Event::Error { request, failure, defect }) => owners.client_failed(request, failure, defect),
                Some(Event::Dropped(object) | Event::Uncached(object)) => owners.dropped(object),
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
        }
        self.owners.unpark();
    }

    /// A question of this session's was answered.
    pub(crate) fn found(&mut self, no: QuestionNo, found: Found, now: Now) {
        let Owners { login, output, .. } = &mut self.owners;
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
                Notice::Cut => {
                    close = true;
                    // It is acknowledged when the connection has ended.
                    self.cuts.push(acknowledgement);
                }
            }
        }
        close
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

    /// Whether log-in is to be answered before more is read.
    #[must_use]
    pub(crate) fn is_waiting(&self) -> bool {
        self.owners.login.is_full()
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

/// The client's side.
impl Owners {
    fn limits(&self) -> &PeerLimits {
        if self.raised { &self.limits.after } else { &self.limits.before }
    }

    fn target(&self, call: &Call<'_>) -> Callee {
        let invalid = || Callee::Nobody(Failure::new("twisted.spread.pb.Error", "Invalid Object ID"));
        match call.target {
            Target::Name("root") => Callee::Login(None),
            Target::Name(_) => invalid(),
            Target::Luid(luid) => match self.output.tables.exported(luid) {
                Exported::Unknown | Exported::Live(Object::Cached { .. }) => invalid(),
                Exported::Revoked => Callee::Nobody(revoked()),
                Exported::Live(Object::Login(no)) => Callee::Login(Some(*no)),
                Exported::Live(Object::Perspective(no)) => Callee::Service(*no, 0),
                Exported::Live(object @ Object::Service { object: number, .. }) => {
                    match self.references.given(object).and_then(Provenance::first) {
                        Some(no) => Callee::Service(no, *number),
                        None => Callee::Nobody(revoked()),
                    }
                }
            },
        }
    }

    fn called(&mut self, call: &Call<'_>, now: Now) -> Result<(), Violation> {
        match self.target(call) {
            Callee::Service(attachment, object) => self.call_service(attachment, object, call)?,
            Callee::Login(object) => self.call_login(object, call, now),
            Callee::Nobody(failure) => {
                self.give_back_all(call);
                if call.answer {
                    self.output.fail(call.request, &failure);
                }
            }
        }
        Ok(())
    }

    /// No cached object of a client's is observed; one that was given back may not know it yet.
    fn cache_called(&mut self, call: &Call<'_>) {
        self.give_back_all(call);
        if !call.answer {
            return;
        }
        match call.target {
            Target::Luid(luid) if self.output.tables.keeps(luid) => self.output.answer(call.request, login::none()),
            Target::Luid(luid) => self.output.fail(call.request, &Failure::new("KeyError", luid.to_string())),
            Target::Name(name) => self.output.fail(call.request, &Failure::new("KeyError", name)),
        }
    }

    /// Nobody takes what has come with a call.
    fn give_back_all(&mut self, call: &Call<'_>) {
        give_back(&mut self.output, call.arguments.references().iter().chain(call.keywords.references()));
    }

    fn call_login(&mut self, object: Option<numbers::LoginNo>, call: &Call<'_>, now: Now) {
        let outcome = self.login.call(&mut self.output.tables, object, call, now);
        // The client counts each reference as sent; log-in keeps one at most.
        let mut kept = outcome.kept;
        let all = call.arguments.references().iter().chain(call.keywords.references());
        let others = all.filter(|sent| kept.is_none() || sent.luid != kept || kept.take().is_none());
        give_back(&mut self.output, others);
        self.apply(outcome);
    }

    /// The client calls a perspective (object 0) or an object of a service's.
    fn call_service(&mut self, attachment: AttachmentNo, object: u64, call: &Call<'_>) -> Result<(), Violation> {
        let references = || call.arguments.references().iter().chain(call.keywords.references());
        let checked = self.check_call(attachment, call);
        let backend = match checked {
            Ok(backend) => backend,
            Err(failure) => {
                give_back(&mut self.output, references());
                if call.answer {
                    self.output.fail(call.request, &failure);
                }
                return Ok(());
            }
        };
        let slot = backend.number();
        let in_flight = InFlight { slot, attachment, request: call.request, answer: call.answer };
        let begins = self.calls.admits(self.output.bytes.len(), self.limits());
        self.attachments.call_began(attachment);
        if begins && references().next().is_none() {
            // The way of nearly all calls: from the connection's buffer to the gate's, once.
            let (arguments, keywords) = (call.arguments.bytes(), call.keywords.bytes());
            self.begin_call(&backend, in_flight, object, (call.method, arguments, keywords), &[]);
            return Ok(());
        }
        let (by, mut handles) = (Provenance::by(attachment), Vec::new());
        let route = Route { connection: self.context.number, slot, by: &by };
        let words = Words::new(call.method, |out| {
            let tables = &self.output.tables;
            self.references.inbound(tables, &route, &call.arguments, out, &mut handles);
            let middle = out.len();
            self.references.inbound(tables, &route, &call.keywords, out, &mut handles);
            middle
        });
        if begins {
            self.begin_call(&backend, in_flight, object, words.parts(), &handles);
            return Ok(());
        }
        let limits = *self.limits();
        Ok(self.calls.park(Parked { call: in_flight, object, words, handles }, &limits)?)
    }

    /// Where a call goes, if it can be made.
    fn check_call(&self, attachment: AttachmentNo, call: &Call<'_>) -> Result<Arc<dyn Backend>, Failure> {
        if let Some(defect) = call.defect {
            return Err(defective(defect));
        }
        let attached = self.attachments.get(attachment).ok_or_else(revoked)?;
        for reference in call.arguments.references().iter().chain(call.keywords.references()) {
            self.check_inbound(attached.slot, reference)?;
        }
        Ok(Arc::clone(&attached.backend))
    }

    fn check_inbound(&self, slot: SlotNo, reference: &jelly::Reference) -> Result<(), Failure> {
        self.references.check_inbound(&self.output.tables, slot, reference, at(&self.attachments))
    }

    fn begin_call(
        &mut self,
        backend: &Arc<dyn Backend>,
        call: InFlight,
        object: u64,
        (method, arguments, keywords): (&str, &[u8], &[u8]),
        handles: &[u64],
    ) {
        let connection = self.context.number;
        let attachment = call.attachment.on(connection);
        let no = self.calls.begin(call);
        let list: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
        // The service answers every call, so that what is under way is known; who wants no answer gets none.
        let call = no.on(connection);
        let handles_of = list.as_slice();
        let frame = ToLibrary::Call {
            call,
            attachment,
            object,
            answer: true,
            method,
            arguments,
            keywords,
            handles: handles_of,
        };
        self.outbox.call(backend, no, handles, &frame);
    }

    /// Calls that waited, as far as others have ended.
    fn unpark(&mut self) {
        let limits = *self.limits();
        while let Some(parked) = self.calls.unpark(self.output.bytes.len(), &limits) {
            let Parked { call, object, words, handles } = parked;
            // A call that waits ends with its attachment.
            let Some(attached) = self.attachments.get(call.attachment) else { continue };
            let backend = Arc::clone(&attached.backend);
            self.begin_call(&backend, call, object, words.parts(), &handles);
        }
    }

    /// The client has answered a service's call.
    fn client_answered(&mut self, request: u64, value: Jelly<'_>, defect: Option<&Defect>) {
        let Some(outgoing) = self.calls.answered(request) else {
            return give_back(&mut self.output, value.references().iter());
        };
        let slot = outgoing.backend.number();
        let checked = defect.map_or(Ok(()), |defect| Err(defective(defect)));
        let checked = checked.and_then(|()| value.references().iter().try_for_each(|of| self.check_inbound(slot, of)));
        match checked {
            Err(failure) => {
                give_back(&mut self.output, value.references().iter());
                let message = format!("the client's answer: {}", failure.value);
                self.fail_outgoing(&outgoing, &failure.class, &message);
            }
            Ok(()) => {
                let (mut translated, mut handles) = (Vec::new(), Vec::new());
                let by = Provenance::by(outgoing.attachment);
                let route = Route { connection: self.context.number, slot, by: &by };
                self.references.inbound(&self.output.tables, &route, &value, &mut translated, &mut handles);
                let handles: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
                let frame = ToLibrary::Answer { call: outgoing.call, value: &translated, handles: &handles };
                self.outbox.answer(&outgoing.backend, outgoing.generation, &frame);
            }
        }
        self.call_ended(outgoing.attachment);
    }

    /// The client's object has raised an error.
    fn client_failed(&mut self, request: u64, failure: Jelly<'_>, defect: Option<&Defect>) {
        give_back(&mut self.output, failure.references().iter());
        let Some(outgoing) = self.calls.answered(request) else { return };
        let failure = match defect {
            Some(defect) => defective(defect),
            None => Failure::read(failure.bytes())
                .unwrap_or_else(|error| Failure::new("twisted.spread.pb.Error", error.to_string())),
        };
        self.fail_outgoing(&outgoing, &failure.class, &failure.value);
        self.call_ended(outgoing.attachment);
    }

    fn fail_outgoing(&mut self, outgoing: &Outgoing, class: &str, message: &str) {
        let frame = ToLibrary::Failed { call: outgoing.call, class, message };
        self.outbox.answer(&outgoing.backend, outgoing.generation, &frame);
    }

    /// The client has given its last reference to something of ours back.
    fn dropped(&mut self, object: Object) {
        match object {
            Object::Login(no) => match self.login.dropped(no) {
                Some(Mind::Sent(luid)) => self.output.release(luid, 1),
                Some(Mind::Kept(luid)) => self.references.forget_mind(&mut self.output, luid),
                None => {}
            },
            Object::Perspective(no) => self.let_go(no),
            Object::Service { .. } | Object::Cached { .. } => {
                let released = self.references.dropped(&object);
                self.released(released);
            }
        }
    }

    /// The client gives a perspective back: what came by it lives on.
    fn let_go(&mut self, no: AttachmentNo) {
        let Some(attached) = self.attachments.let_go(no) else { return };
        let number = no.on(self.context.number);
        let change = AttachmentChange::LetGo(number, linger(&self.context, number, attached, attached.mind));
        self.outbox.notify(&attached.backend, &ToLibrary::LetGo { attachment: number }, Some(change));
        self.context.entry.detached(&listed(attached));
        self.end_if_over(no);
    }
}

/// Services' side.
impl Owners {
    fn service_said(&mut self, slot: SlotNo, generation: u32, frame: ToHost<'_>) {
        let connection = self.context.number;
        match frame {
            ToHost::Answer { call, value, objects } => self.service_answered(slot, call, value, objects),
            ToHost::Failed { call: number, class, message, .. } => {
                let failure = Failure::new(class, message);
                if let Some(no) = AttachmentNo::of(number, connection) {
                    // It is refused, or the code that replaced what it was attached to does not take it.
                    if self.attachments.at(no, slot).is_some() {
                        self.end(&Scope::Attachment(no), &failure);
                    }
                } else if let Some(call) = CallNo::of(number, connection).and_then(|no| self.calls.ended(no, slot)) {
                    if call.answer {
                        self.output.fail(call.request, &failure);
                    }
                    self.call_ended(call.attachment);
                }
            }
            ToHost::Attached { attachment } => {
                if let Some(no) = AttachmentNo::of(attachment, connection) {
                    self.attached(slot, no);
                }
            }
            ToHost::Call { call, handle, answer, method, arguments, keywords, attachment, objects } => {
                let target = CalledObject { slot, generation, handle, attachment };
                self.call_client(&target, (call, answer), method, (arguments, keywords, objects));
            }
            ToHost::Forget { call, handle } => {
                let no = HandleNo::of(handle, connection);
                if let Some(outgoing) = no.and_then(|no| self.calls.forget(slot, generation, call, no)) {
                    self.call_ended(outgoing.attachment);
                }
            }
            ToHost::Release { handle, count } => self.release(slot, handle, count),
            ToHost::Retained { handle } => {
                if let Some(no) = HandleNo::of(handle, connection) {
                    self.references.retain(slot, no);
                }
            }
            ToHost::Stopped {} => self.end(&Scope::Slot(slot), &dead("the service has stopped")),
            ToHost::End { attachment } => {
                if let Some(no) = AttachmentNo::of(attachment, connection)
                    && self.attachments.at(no, slot).is_some()
                {
                    self.end(&Scope::Attachment(no), &revoked());
                }
            }
            ToHost::Update { object, method, arguments, keywords, objects, .. } => {
                self.update(slot, object, method, (arguments, keywords, objects));
            }
            _ => {}
        }
    }

    fn service_answered(&mut self, slot: SlotNo, call: u64, value: &[u8], objects: &[u8]) {
        let ended = CallNo::of(call, self.context.number).and_then(|no| self.calls.ended(no, slot));
        let Some(call) = ended else { return self.give_back_objects(slot, frame::numbers(objects)) };
        self.calls.record_answer_size(value.len());
        if call.answer {
            if let Err(failure) = self.answer(&call, value, objects) {
                self.output.fail(call.request, &failure);
            }
        } else {
            self.give_back_objects(slot, frame::numbers(objects));
        }
        self.call_ended(call.attachment);
    }

    /// Writes a service's answer, after the same pass that a client's bytes go through. If it cannot be, the service gets its
    /// objects back.
    fn answer(&mut self, call: &InFlight, value: &[u8], objects: &[u8]) -> Result<(), Failure> {
        let references = match self.values.answer(value) {
            Ok([]) if objects.is_empty() => {
                self.output.answer(call.request, value);
                return Ok(());
            }
            Ok(references) => references,
            Err(failure) => {
                self.give_back_objects(call.slot, frame::numbers(objects));
                return Err(failure);
            }
        };
        let jelly = Jelly::new(value, references, 0, value.len());
        let by = Provenance::by(call.attachment);
        let route = Route { connection: self.context.number, slot: call.slot, by: &by };
        let (known, attachments, mut sent) = (&self.references, &self.attachments, Vec::new());
        let written = self.output.answer_translated(call.request, &jelly, |tables, reference| {
            let (translated, object) = known.outbound(tables, &route, reference, at(attachments))?;
            sent.extend(object);
            Ok::<_, Failure>(translated)
        });
        let left = self.references.settle(&mut self.output.tables, &route, (sent, written.is_ok()), objects);
        self.give_back_objects(call.slot, left.into_iter());
        written
    }

    /// A service calls an object of the client's.
    fn call_client(
        &mut self,
        target: &CalledObject,
        (call, answer): (u64, bool),
        method: &str,
        values: (&[u8], &[u8], &[u8]),
    ) {
        let Some(backend) = self.outbox.backend(target.slot) else { return };
        let connection = self.context.number;
        let no = HandleNo::of(target.handle, connection);
        let by = AttachmentNo::of(target.attachment, connection);
        let sent = self.references.called(target.slot, no, by).and_then(|(luid, by)| {
            let request = self.send_call(target.slot, Target::Luid(luid), (method, answer), values, &by)?;
            Ok((request, by))
        });
        match sent {
            Ok((request, by)) => {
                if let (true, Some(handle), Some(attachment)) = (answer, no, by.first()) {
                    let outgoing = Outgoing { backend, generation: target.generation, call, handle, attachment };
                    self.attachments.call_began(attachment);
                    self.calls.call_out(request, outgoing);
                }
            }
            Err(failure) => {
                self.give_back_objects(target.slot, frame::numbers(values.2));
                if answer {
                    let frame = ToLibrary::Failed { call, class: &failure.class, message: &failure.value };
                    self.outbox.answer(&backend, target.generation, &frame);
                }
            }
        }
    }

    /// Writes a call of an object of the client's; after an error nothing was written, and nothing was given back.
    fn send_call(
        &mut self,
        slot: SlotNo,
        target: Target<'_>,
        (method, answer): (&str, bool),
        (arguments, keywords, objects): (&[u8], &[u8], &[u8]),
        by: &Provenance,
    ) -> Result<u64, Failure> {
        let (arguments, keywords) = self.values.call(arguments, keywords)?;
        let route = Route { connection: self.context.number, slot, by };
        let (known, attachments, mut sent) = (&self.references, &self.attachments, Vec::new());
        let written =
            self.output.call_translated(target, method, answer, &arguments, &keywords, |tables, reference| {
                let (translated, object) = known.outbound(tables, &route, reference, at(attachments))?;
                sent.extend(object);
                Ok::<_, Failure>(translated)
            });
        let left = self.references.settle(&mut self.output.tables, &route, (sent, written.is_ok()), objects);
        if written.is_ok() {
            self.give_back_objects(slot, left.into_iter());
            self.remember(by);
        }
        written
    }

    /// A service tells of a change to a cached object of its own: the client hears of it if it has the object.
    fn update(
        &mut self,
        slot: SlotNo,
        object: u64,
        method: &str,
        (arguments, keywords, objects): (&[u8], &[u8], &[u8]),
    ) {
        let cached = Object::Cached { slot, object };
        let by = self.references.given(&cached).cloned();
        let (Some(luid), Some(by)) = (self.output.tables.cached_as(&cached), by) else {
            return self.give_back_objects(slot, frame::numbers(objects));
        };
        let route = Route { connection: self.context.number, slot, by: &by };
        let (known, attachments, mut sent) = (&self.references, &self.attachments, Vec::new());
        let written = self.values.call(arguments, keywords).and_then(|(arguments, keywords)| {
            self.output.update_translated(luid, method, &arguments, &keywords, |tables, reference| {
                let (translated, object) = known.outbound(tables, &route, reference, at(attachments))?;
                sent.extend(object);
                Ok::<_, Failure>(translated)
            })
        });
        let left = self.references.settle(&mut self.output.tables, &route, (sent, written.is_ok()), objects);
        self.give_back_objects(slot, left.into_iter());
        if let Err(failure) = written {
            tracing::warn!(peer = self.context.peer, "a client was not told of a change: {}", failure.value);
        }
    }

    /// A service has attached the client.
    fn attached(&mut self, slot: SlotNo, no: AttachmentNo) {
        let Some(request) = self.attachments.answered(no, slot) else { return };
        match self.output.tables.export(&Object::Perspective(no)) {
            Ok(luid) => {
                let mut value = Vec::new();
                reference(&mut value, luid);
                self.output.answer(request, &value);
            }
            Err(error) => {
                let failure = Failure::new("twisted.spread.pb.Error", error.to_string());
                self.output.fail(request, &failure);
                self.end(&Scope::Attachment(no), &failure);
            }
        }
    }

    /// A service gives an object of the client's back.
    fn release(&mut self, slot: SlotNo, handle: u64, count: u64) {
        if let Some(no) = HandleNo::of(handle, self.context.number) {
            let released = self.references.release(&mut self.output, slot, no, count);
            self.released(released);
        }
    }

    /// Gives objects back to a service that did not reach the client.
    fn give_back_objects(&mut self, slot: SlotNo, objects: impl Iterator<Item = u64>) {
        let Some(backend) = self.outbox.backend(slot) else { return };
        for object in objects {
            self.outbox.notify(&backend, &ToLibrary::Dropped { object, count: 1 }, None);
        }
    }

    fn released(&mut self, released: Released) {
        for (slot, object, count) in released.objects {
            if let Some(backend) = self.outbox.backend(slot) {
                self.outbox.notify(&backend, &ToLibrary::Dropped { object, count }, None);
            }
        }
        for no in released.attachments {
            self.end_if_over(no);
        }
    }

    /// Hands over what was gathered. What cannot be handed over is an error to its callers.
    fn submit(&mut self) {
        loop {
            let refusals = self.outbox.submit();
            if refusals.iter().all(|refusal| refusal.bounced.is_empty()) {
                return;
            }
            for refusal in refusals {
                let failure = dead(&refusal.why);
                for bounced in refusal.bounced {
                    self.bounced(refusal.slot, bounced, &failure);
                }
            }
        }
    }

    fn bounced(&mut self, slot: SlotNo, bounced: Bounced, failure: &Failure) {
        match bounced {
            Bounced::Call(no, handles) => {
                // The service will not give back what it was never given.
                handles.iter().for_each(|handle| self.release(slot, *handle, 1));
                if let Some(call) = self.calls.ended(no, slot) {
                    if call.answer {
                        self.output.fail(call.request, failure);
                    }
                    self.call_ended(call.attachment);
                }
            }
            Bounced::Attach(no, mind) => {
                self.release(slot, mind, 1);
                self.end(&Scope::Attachment(no), failure);
            }
        }
    }
}

/// Log-in, and what ends.
impl Owners {
    /// Does what log-in says.
    fn apply(&mut self, outcome: Outcome) {
        let Outcome { request, answer, step, logged_in, given_back, avatar_keeps, refused, left, .. } = outcome;
        self.logged_in |= logged_in;
        self.demands.extend(refused.map(Demand::Note));
        if let Some(luid) = given_back {
            self.output.release(luid, 1);
        }
        if let Some(luid) = avatar_keeps {
            self.references.keep_mind(luid);
        }
        if let Some(name) = left {
            self.unlist_if_left(&name);
        }
        match step {
            Step::Answer(value) if answer => self.output.answer(request, &value),
            Step::Fail(failure) if answer => self.output.fail(request, &failure),
            Step::Answer(_) | Step::Fail(_) | Step::Wait => {}
            Step::Ask(no, question) => self.demands.push(Demand::Ask(no, question)),
            Step::Proven(name, no, question) => {
                self.context.entry.enter(&name);
                self.demands.push(Demand::Ask(no, question));
            }
            Step::Attach(attach) => {
                let sent = match attach.mind {
                    Some(Mind::Sent(luid)) => Some(luid),
                    _ => None,
                };
                if let Err(failure) = self.attach(attach, request) {
                    if let Some(luid) = sent {
                        self.output.release(luid, 1);
                    }
                    self.output.fail(request, &failure);
                }
            }
        }
    }

    /// Asks a service to attach this client. Its answer becomes the answer to `request`.
    fn attach(&mut self, attach: Attach, request: u64) -> Result<(), Failure> {
        let Attach { identity, credential, key, era, mind } = attach;
        let service = key.service.as_str();
        let backend = self.context.backends.backend(service);
        let backend = backend.ok_or_else(|| Failure::new("KeyError", format!("'{service}'")))?;
        // Whoever is attached has logged in.
        let checked = self.attachments.check_limit(self.limits.after.attachments);
        checked.map_err(|error| Failure::new("twisted.spread.pb.Error", error.to_string()))?;
        let (slot, connection) = (backend.number(), self.context.number);
        let attached = Attached::asked(Arc::clone(&backend), era, request, (identity, credential), key);
        self.context.entry.attached(listed(&attached));
        let (perspective, identity) = (attached.key.perspective.to_string(), Arc::clone(&attached.identity));
        let no = self.attachments.begin(attached);
        let by = Provenance::by(no);
        let route = Route { connection, slot, by: &by };
        let mind = match mind {
            None => 0,
            Some(Mind::Sent(luid)) => self.references.hold(&route, luid, false).on(connection),
            Some(Mind::Kept(luid)) => self.references.hold(&route, luid, true).on(connection),
        };
        self.attachments.set_mind(no, mind);
        let (attachment, peer) = (no.on(connection), self.context.peer.as_str());
        let (perspective, identity) = (perspective.as_str(), &*identity);
        let frame = |again| ToLibrary::Attach { attachment, perspective, identity, mind, peer, again };
        let mut again = Vec::new();
        frame(true).write(&mut again);
        self.outbox.attach(&backend, (no, attachment), mind, &frame(false), again);
        Ok(())
    }

    /// An identity is this now, or is no more: what it may not have any longer ends.
    fn changed(&mut self, name: &str, identity: Option<&Identity>) {
        self.login.changed(name);
        match identity.filter(|identity| identity.enabled) {
            None => self.end(&Scope::Identity(name), &revoked()),
            Some(identity) => {
                for credential in self.login.credentials(name) {
                    if !identity.has(credential) {
                        self.end(&Scope::Credential(name, credential), &revoked());
                    }
                }
                for (credential, key) in self.attachments.of(name) {
                    if !identity.has(credential) {
                        self.end(&Scope::Credential(name, credential), &revoked());
                    } else if !identity.keyring.has(&key) {
                        self.end(&Scope::Key(name, &key), &revoked());
                    }
                }
            }
        }
        self.unlist_if_left(name);
        self.logged_in = self.login.any(None) || self.attachments.any(None);
    }

    /// The operator sees an identity no longer that has nothing here.
    fn unlist_if_left(&self, name: &str) {
        if !self.login.any(Some(name)) && !self.attachments.any(Some(name)) {
            self.context.entry.left(name);
        }
    }

    /// A call by an attachment has ended.
    fn call_ended(&mut self, no: AttachmentNo) {
        if self.attachments.call_ended(no) {
            self.end_if_over(no);
        }
    }

    /// An attachment that was let go of is over when no call and no reference is left that came by it. When only objects of
    /// the client's are left, nothing can come by it any more, and the service need not know it: it may hold its mind.
    fn end_if_over(&mut self, no: AttachmentNo) {
        if !self.attachments.is_idle(no) || self.references.gives(no) {
            return;
        }
        if !self.references.uses(no) {
            return self.end(&Scope::Attachment(no), &revoked());
        }
        if let Some(attached) = self.attachments.forget(no, true) {
            let attachment = no.on(self.context.number);
            let change = AttachmentChange::Ended(attachment);
            self.outbox.notify(&attached.backend, &ToLibrary::Detach { attachment }, Some(change));
        }
    }

    /// Something of a service's has gone out by these attachments: calls of it will come by them.
    fn remember(&mut self, by: &Provenance) {
        for no in by.iter() {
            let Some(attached) = self.attachments.forget(no, false) else { continue };
            let number = no.on(self.context.number);
            // The service has its mind once more, if that is there at all.
            let mind = HandleNo::of(attached.mind, self.context.number);
            let mind = mind.filter(|mind| self.references.called(attached.slot, Some(*mind), Some(no)).is_ok());
            if let Some(mind) = mind {
                self.references.retain(attached.slot, mind);
            }
            let frame = linger(&self.context, number, attached, mind.map_or(0, |_| attached.mind));
            if let Some(known) = ToLibrary::read(&mut frame.as_slice()) {
                let change = AttachmentChange::LetGo(number, frame.clone());
                self.outbox.notify(&attached.backend, &known, Some(change));
            }
        }
    }

    /// The one teardown. Ends everything in this scope, at once: calls under way and those that wait are errors (`why`),
    /// references that came by nothing else are dead, and services are told.
    fn end(&mut self, scope: &Scope<'_>, why: &Failure) {
        for luid in self.login.end(scope) {
            self.references.forget_mind(&mut self.output, luid);
        }
        let gone = self.attachments.take(scope);
        let mut numbers: Vec<AttachmentNo> = gone.iter().map(|(no, _)| *no).collect();
        numbers.sort_unstable();
        let mut ended = self.calls.end(&numbers);
        let asked = gone.iter().filter_map(|(_, attached)| match attached.phase {
            Phase::Asked { request } => Some(request),
            _ => None,
        });
        ended.owed.extend(asked);
        ended.owed.sort_unstable();
        // Nobody reads what is written to a connection that has ended.
        if !matches!(scope, Scope::Connection) {
            ended.owed.iter().for_each(|request| self.output.fail(*request, why));
        }
        if let Scope::Slot(slot) = scope {
            self.references.forget_slot(&mut self.output, *slot);
        } else {
            self.tell_services(&ended, &numbers, why);
        }
        for (no, attached) in gone {
            self.output.tables.revoke(&Object::Perspective(no));
            if !attached.is_let_go() {
                self.context.entry.detached(&listed(&attached));
            }
            if !matches!(scope, Scope::Slot(_)) && attached.phase != Phase::Forgotten {
                let attachment = no.on(self.context.number);
                let change = AttachmentChange::Ended(attachment);
                self.outbox.notify(&attached.backend, &ToLibrary::Detach { attachment }, Some(change));
            }
        }
        if let Scope::Slot(slot) = scope {
            self.outbox.forget(*slot);
        }
    }

    /// What services hear of attachments that end, but for their end itself.
    fn tell_services(&mut self, ended: &calls::Ended, gone: &[AttachmentNo], why: &Failure) {
        for (slot, no) in &ended.begun {
            if let Some(backend) = self.outbox.backend(*slot) {
                let frame = ToLibrary::Gone { call: no.on(self.context.number) };
                self.outbox.notify(&backend, &frame, None);
                // The call may wait in code that was replaced.
                backend.notify_retired(&frame);
            }
        }
        for (slot, handle) in &ended.handles {
            // The service will not give back what it was never given.
            self.release(*slot, *handle, 1);
        }
        for outgoing in &ended.outgoing {
            self.fail_outgoing(outgoing, &why.class, &why.value);
        }
        let released = self.references.forget(&mut self.output, gone);
        self.released(released);
    }
}

/// What a service calls of the client's.
struct CalledObject {
    slot: SlotNo,
    generation: u32,
    handle: u64,
    /// By which attachment the service has it; 0: it does not know.
    attachment: u64,
}

/// Where an attachment is whose perspective the client has.
fn at(attachments: &Attachments) -> impl Fn(AttachmentNo) -> Option<SlotNo> {
    |no| attachments.get(no).filter(|attached| attached.phase == Phase::Attached).map(|attached| attached.slot)
}

/// What tells a service of an attachment whose perspective was let go of before.
fn linger(context: &SessionContext, attachment: u64, attached: &Attached, mind: u64) -> Vec<u8> {
    let (perspective, identity) = (attached.key.perspective.as_str(), &*attached.identity);
    let mut frame = Vec::new();
    ToLibrary::Linger { attachment, perspective, identity, mind, peer: &context.peer }.write(&mut frame);
    frame
}

/// How the operator sees an attachment.
fn listed(attached: &Attached) -> String {
    format!("{}/{}", attached.key.service, attached.key.perspective)
}
