//! Messages from the client: calls of perspectives, objects and login, answers to services' calls, returned references.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jelly::{Defect, exceptions};
use pb::{Call, Exported, Failure, Jelly, Target};
use plugin_api::abi::Detail;
use plugin_api::abi::frame::ToLibrary;

use super::calls::{InFlight, Outgoing, Parked, Words};
use super::lifetimes::named_on;
use super::login::{self, Now};
use super::mind::{GivenMind, Sent};
use super::numbers::{AttachmentNo, CallNo, LoginNo, Object, Provenance};
use super::references::{Route, coming, give_back, revoked};
use super::values::defective;
use super::{Late, Leaving, Owners, PeerLimits};
use crate::multiservice::{Backend, SlotNo};

/// Jelly's empty tuple.
const NO_ARGUMENTS: &[u8] = &[1, 0x80, 11, 0x87];
/// Jelly's empty dictionary.
const NO_KEYWORDS: &[u8] = &[1, 0x80, 5, 0x87];

/// The target of a call.
enum Callee {
    Login(Option<LoginNo>),
    Service(AttachmentNo, u64),
    Nobody(Failure),
}

impl Owners {
    pub(super) fn limits(&self) -> &PeerLimits {
        if self.raised { &self.limits.after } else { &self.limits.before }
    }

    fn target(&mut self, call: &Call<'_>) -> Callee {
        let invalid = || Callee::Nobody(Failure::new("twisted.spread.pb.Error", "Invalid Object ID"));
        match call.target {
            Target::Name("root") if login::is_word(call.method) => Callee::Login(None),
            Target::Name(name) => match self.named(name) {
                Some(Ok(no)) => Callee::Service(no, 0),
                Some(Err(failure)) => Callee::Nobody(failure),
                None if name == "root" => Callee::Login(None),
                None => invalid(),
            },
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

    pub(super) fn called(&mut self, call: &Call<'_>, now: Now) {
        match self.target(call) {
            Callee::Service(attachment, object) => self.call_service(attachment, object, call),
            Callee::Login(object) => self.call_login(object, call, now),
            Callee::Nobody(failure) => {
                self.give_back_all(call);
                if call.answer {
                    self.output.fail(call.request, &failure);
                }
            }
        }
    }

    /// The client reports a change of a cached object of its own: the service that follows it is called. The client may
    /// not know yet that the object was returned.
    pub(super) fn cache_called(&mut self, call: &Call<'_>) {
        if let Target::Luid(luid) = call.target
            && let Some((no, attachment)) = self.references.follower(luid)
        {
            self.references.offers.told(luid);
            return self.call_service(attachment, no.on(self.context.number), call);
        }
        if let Target::Luid(luid) = call.target {
            let most = self.limits.slots.services.changes;
            self.references.offers.changed(luid, call, most);
        }
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

    /// The client has ended a cached object of its own.
    pub(super) fn client_ended(&mut self, luid: u64) {
        let Some((slot, no, attachments)) = self.references.ended(luid) else { return };
        if let Some(backend) = self.outbox.backend(slot) {
            let handle = no.on(self.context.number);
            self.outbox.notify(&backend, &ToLibrary::Uncached { handle }, None);
        }
        attachments.into_iter().for_each(|no| self.end_if_over(no));
    }

    /// Returns the objects in a call that is not accepted.
    fn give_back_all(&mut self, call: &Call<'_>) {
        give_back(&mut self.output, call.arguments.references().iter().chain(call.keywords.references()));
    }

    fn call_login(&mut self, object: Option<LoginNo>, call: &Call<'_>, now: Now) {
        if object.is_none() && call.method == "username" {
            self.values.set_old();
        }
        let outcome = self.login.call(&mut self.output.tables, object, call, now);
        // The client counts each reference as sent; login keeps those of a mind.
        let mut kept = BTreeMap::<Sent, usize>::new();
        outcome.kept.objects().for_each(|sent| *kept.entry(sent).or_default() += 1);
        let all = call.arguments.references().iter().chain(call.keywords.references());
        let (ours, others): (Vec<_>, Vec<_>) = all.partition(|reference| {
            let left = Sent::of(reference).and_then(|sent| kept.get_mut(&sent));
            left.filter(|left| **left > 0).map(|left| *left -= 1).is_some()
        });
        ours.into_iter().for_each(|reference| self.references.offer(&mut self.output, reference));
        give_back(&mut self.output, others.into_iter());
        self.apply(outcome);
    }

    /// The client calls a perspective (object 0) or an object of a service.
    fn call_service(&mut self, attachment: AttachmentNo, object: u64, call: &Call<'_>) {
        let references = || call.arguments.references().iter().chain(call.keywords.references());
        let checked = self.check_call(attachment, call);
        let backend = match checked {
            Ok(backend) => backend,
            Err(failure) => {
                give_back(&mut self.output, references());
                if call.answer {
                    self.output.fail(call.request, &failure);
                }
                return;
            }
        };
        let slot = backend.number();
        let size = call.arguments.bytes().len() + call.keywords.bytes().len();
        let in_flight = InFlight { slot, attachment, request: call.request, answer: call.answer, size };
        let begins = self.calls.admits(self.output.bytes.len(), self.limits());
        self.attachments.call_began(attachment);
        if begins && references().next().is_none() {
            // The path of nearly all calls: one copy, from the connection's buffer to the gate's.
            let (arguments, keywords) = (call.arguments.bytes(), call.keywords.bytes());
            self.begin_call(&backend, in_flight, object, (call.method, arguments, keywords), &[]);
            return;
        }
        let (by, mut handles) = (Provenance::by(attachment), Vec::new());
        let route = Route { connection: self.context.number, slot, by: &by };
        let words = Words::new(call.method, |out| {
            let tables = &self.output.tables;
            let named = named_on(&self.named, &self.attachments, slot);
            self.references.inbound(tables, &route, &call.arguments, &named, out, &mut handles);
            let middle = out.len();
            self.references.inbound(tables, &route, &call.keywords, &named, out, &mut handles);
            middle
        });
        coming(references()).into_iter().for_each(|luid| self.output.tables.keep(luid));
        if begins {
            self.begin_call(&backend, in_flight, object, words.parts(), &handles);
            return;
        }
        let (limits, parked) = (*self.limits(), Parked { call: in_flight, object, words, handles });
        let size = parked.size();
        let refused = match self.context.meter.admits(size) {
            true => self.calls.park(parked, &limits).err(),
            false => Some(Box::new(parked)),
        };
        if let Some(refused) = refused {
            self.refuse_call(*refused);
        }
    }

    /// Refuses a call that exceeds what may wait for this client.
    fn refuse_call(&mut self, refused: Parked) {
        let Parked { call, handles, .. } = refused;
        handles.iter().for_each(|handle| self.release(call.slot, *handle, 1));
        if call.answer {
            let message = "too many calls wait already: wait for answers, then call again";
            self.output.fail(call.request, &Failure::new("MemoryError", message));
        }
        self.call_ended(call.attachment);
    }

    /// Checks a call. Returns the service that it goes to.
    fn check_call(&self, attachment: AttachmentNo, call: &Call<'_>) -> Result<Arc<dyn Backend>, Failure> {
        if let Some(defect) = call.defect {
            return Err(defective(defect));
        }
        let attached = self.attachments.get(attachment).ok_or_else(revoked)?;
        let all = || call.arguments.references().iter().chain(call.keywords.references());
        self.references.check_copies(all(), self.limits.copied)?;
        let states = coming(all());
        for reference in all() {
            self.check_inbound(attached.slot, reference, &states)?;
        }
        Ok(Arc::clone(&attached.backend))
    }

    fn check_inbound(&self, slot: SlotNo, reference: &jelly::Reference, coming: &BTreeSet<u64>) -> Result<(), Failure> {
        self.references.check_inbound(&self.output.tables, slot, reference, self.attachments.places(), coming)
    }

    pub(super) fn begin_call(
        &mut self,
        backend: &Arc<dyn Backend>,
        call: InFlight,
        object: u64,
        (method, arguments, keywords): (&str, &[u8], &[u8]),
        handles: &[u64],
    ) -> CallNo {
        let connection = self.context.number;
        let attachment = call.attachment.on(connection);
        let no = self.calls.begin(call);
        let list: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
        // The service answers every call, so that the host knows which are under way. A client that wants no answer
        // gets none.
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
        no
    }

    /// Begins parked calls, as far as there is room.
    pub(super) fn unpark(&mut self) {
        let limits = *self.limits();
        while let Some(parked) = self.calls.unpark(self.output.bytes.len(), &limits) {
            let Parked { call, object, words, handles } = parked;
            // A parked call ends with its attachment.
            let Some(attached) = self.attachments.get(call.attachment) else { continue };
            let backend = Arc::clone(&attached.backend);
            self.begin_call(&backend, call, object, words.parts(), &handles);
            self.deliver_late();
        }
        // Parked calls of ended attachments were removed.
        self.deliver_late();
    }

    /// The client has answered a service's call.
    pub(super) fn client_answered(&mut self, request: u64, value: Jelly<'_>, defect: Option<&Defect>) {
        let Some(outgoing) = self.calls.answered(request) else {
            return give_back(&mut self.output, value.references().iter());
        };
        let slot = outgoing.backend.number();
        let checked = defect.map_or(Ok(()), |defect| Err(defective(defect)));
        let all = value.references();
        let states = coming(all.iter());
        let checked = checked.and_then(|()| self.references.check_copies(all.iter(), self.limits.copied));
        let checked = checked.and_then(|()| all.iter().try_for_each(|of| self.check_inbound(slot, of, &states)));
        match checked {
            Err(failure) => {
                give_back(&mut self.output, value.references().iter());
                let message = format!("the client's answer: {}", failure.value);
                self.fail_outgoing(&outgoing, &failure.class, &message, &[]);
            }
            Ok(()) => {
                let (mut translated, mut handles) = (Vec::new(), Vec::new());
                let by = Provenance::by(outgoing.attachment);
                let route = Route { connection: self.context.number, slot, by: &by };
                let named = named_on(&self.named, &self.attachments, slot);
                self.references.inbound(&self.output.tables, &route, &value, named, &mut translated, &mut handles);
                states.into_iter().for_each(|luid| self.output.tables.keep(luid));
                let list: Vec<u8> = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
                let frame = ToLibrary::Answer { call: outgoing.call, value: &translated, handles: &list };
                self.outbox.answer(&outgoing.backend, outgoing.generation, &handles, &frame);
            }
        }
        self.call_ended(outgoing.attachment);
    }

    /// The client's object has raised an error.
    pub(super) fn client_failed(&mut self, request: u64, failure: Jelly<'_>, defect: Option<&Defect>) {
        give_back(&mut self.output, failure.references().iter());
        let Some(outgoing) = self.calls.answered(request) else { return };
        let failure = match defect {
            Some(defect) => defective(defect),
            None => Failure::read(failure.bytes())
                .unwrap_or_else(|error| Failure::new("twisted.spread.pb.Error", error.to_string())),
        };
        let Failure { class, value, parents, fields, .. } = failure;
        // Python's own exceptions are known by their bare names.
        let own = exceptions::bare(&class) != class;
        let parents = if own { Vec::new() } else { parents.into_iter().filter(|parent| *parent != class).collect() };
        let detail = Detail { parents, fields: jelly::Bytes(fields.into()), ..Detail::default() };
        let detail = if detail == Detail::default() { Vec::new() } else { jelly::to_vec(&detail).unwrap_or_default() };
        self.fail_outgoing(&outgoing, &class, &value, &detail);
        self.call_ended(outgoing.attachment);
    }

    pub(super) fn fail_outgoing(&mut self, outgoing: &Outgoing, class: &str, message: &str, detail: &[u8]) {
        let frame = ToLibrary::Failed { call: outgoing.call, class, message, detail };
        self.outbox.answer(&outgoing.backend, outgoing.generation, &[], &frame);
    }

    /// The client has released its copy of a service's object. The service is notified, and may send a last update to
    /// the copy. The answer to a call of an object that does not exist shows that it has processed the notification.
    pub(super) fn uncached(&mut self, object: Object, luid: u64) {
        let by = self.references.given(&object).cloned();
        let released = self.references.dropped(&object);
        let attachment = by.as_ref().and_then(Provenance::first);
        let attachment = attachment.filter(|no| self.attachments.get(*no).is_some());
        let (Some(by), Some(attachment), Object::Cached { object: number, .. }) = (by, attachment, &object) else {
            self.output.uncache(luid);
            return self.released(released);
        };
        self.attachments.call_began(attachment);
        let number = *number;
        self.leaving.push(Leaving { object, luid, by, until: None });
        self.released(released);
        self.say_late(Late::Uncached { attachment, object: number, luid });
    }

    /// Calls an object that the service no longer has, behind the notification: the answer shows that the service has
    /// processed it.
    pub(super) fn ask_if_heard(&mut self, attachment: AttachmentNo, object: u64, luid: u64) {
        let Some(at) = self.leaving.iter().position(|leaving| leaving.luid == luid) else { return };
        let Some(attached) = self.attachments.get(attachment) else {
            // The attachment has ended, and so have all updates by it.
            self.leaving.swap_remove(at);
            return self.output.uncache(luid);
        };
        let (slot, backend) = (attached.slot, Arc::clone(&attached.backend));
        let call = InFlight { slot, attachment, request: luid, answer: false, size: 0 };
        let until = self.begin_call(&backend, call, object, ("", NO_ARGUMENTS, NO_KEYWORDS), &[]);
        if let Some(leaving) = self.leaving.get_mut(at) {
            leaving.until = Some(until);
        }
    }

    /// A call that wants no answer has ended. It may be the host's own.
    pub(super) fn heard(&mut self, no: CallNo) {
        if let Some(at) = self.leaving.iter().position(|leaving| leaving.until == Some(no)) {
            let Leaving { luid, .. } = self.leaving.swap_remove(at);
            self.output.uncache(luid);
        }
    }

    /// The client has returned its last reference to an object of the host or a service.
    pub(super) fn dropped(&mut self, object: Object) {
        match object {
            Object::Login(no) => {
                let GivenMind { mind, kept } = self.login.dropped(no);
                for sent in mind.objects() {
                    match kept {
                        true => self.references.forget_mind(&mut self.output, sent),
                        false => self.references.return_mind(&mut self.output, sent),
                    }
                }
            }
            Object::Perspective(no) => self.let_go(no),
            Object::Service { .. } | Object::Cached { .. } => {
                let released = self.references.dropped(&object);
                self.released(released);
            }
        }
    }
}
