//! What the client says: calls of perspectives, objects and log-in, answers to services' calls, references given back.

use std::sync::Arc;

use jelly::Defect;
use pb::{Call, Exported, Failure, Jelly, Target};
use plugin_api::abi::frame::ToLibrary;

use super::calls::{InFlight, Outgoing, Parked, Words};
use super::login::{self, Mind, Now};
use super::numbers::{AttachmentNo, LoginNo, Object, Provenance};
use super::references::{Route, give_back, revoked};
use super::values::defective;
use super::{Owners, PeerLimits};
use crate::multiservice::{Backend, SlotNo};

/// Whom a call is for.
enum Callee {
    Login(Option<LoginNo>),
    Service(AttachmentNo, u64),
    Nobody(Failure),
}

impl Owners {
    pub(super) fn limits(&self) -> &PeerLimits {
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

    /// No cached object of a client's is observed; one that was given back may not know it yet.
    pub(super) fn cache_called(&mut self, call: &Call<'_>) {
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

    fn call_login(&mut self, object: Option<LoginNo>, call: &Call<'_>, now: Now) {
        let outcome = self.login.call(&mut self.output.tables, object, call, now);
        // The client counts each reference as sent; log-in keeps one at most.
        let mut kept = outcome.kept;
        let all = call.arguments.references().iter().chain(call.keywords.references());
        let others = all.filter(|sent| kept.is_none() || sent.luid != kept || kept.take().is_none());
        give_back(&mut self.output, others);
        self.apply(outcome);
    }

    /// The client calls a perspective (object 0) or an object of a service's.
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
        let in_flight = InFlight { slot, attachment, request: call.request, answer: call.answer };
        let begins = self.calls.admits(self.output.bytes.len(), self.limits());
        self.attachments.call_began(attachment);
        if begins && references().next().is_none() {
            // The way of nearly all calls: from the connection's buffer to the gate's, once.
            let (arguments, keywords) = (call.arguments.bytes(), call.keywords.bytes());
            self.begin_call(&backend, in_flight, object, (call.method, arguments, keywords), &[]);
            return;
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

    /// More waits for this client already than may.
    fn refuse_call(&mut self, refused: Parked) {
        let Parked { call, handles, .. } = refused;
        handles.iter().for_each(|handle| self.release(call.slot, *handle, 1));
        if call.answer {
            let message = "too many calls wait already: wait for answers, and ask again";
            self.output.fail(call.request, &Failure::new("MemoryError", message));
        }
        self.call_ended(call.attachment);
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
        self.references.check_inbound(&self.output.tables, slot, reference, self.attachments.places())
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
    pub(super) fn unpark(&mut self) {
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
    pub(super) fn client_answered(&mut self, request: u64, value: Jelly<'_>, defect: Option<&Defect>) {
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
        self.fail_outgoing(&outgoing, &failure.class, &failure.value);
        self.call_ended(outgoing.attachment);
    }

    pub(super) fn fail_outgoing(&mut self, outgoing: &Outgoing, class: &str, message: &str) {
        let frame = ToLibrary::Failed { call: outgoing.call, class, message };
        self.outbox.answer(&outgoing.backend, outgoing.generation, &[], &frame);
    }

    /// The client has given its last reference to something of ours back.
    pub(super) fn dropped(&mut self, object: Object) {
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
}
