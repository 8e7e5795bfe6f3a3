//! Messages from services: answers, attachments, calls of the client's objects, updates of cached ones. Also frames
//! that services did not accept.

use jelly::exceptions;
use pb::{Failure, Jelly, Target};
use plugin_api::abi::Detail;
use plugin_api::abi::frame::{self, ToHost, ToLibrary};

use super::attachments::Scope;
use super::calls::{InFlight, Outgoing};
use super::numbers::{AttachmentNo, CallNo, HandleNo, Object, Provenance};
use super::outbox::Bounced;
use super::references::{Released, Route, dead, reference, revoked};
use super::{Late, Owners};
use crate::memory::Held;
use crate::multiservice::SlotNo;

/// The failure that a client receives for a service's error.
fn failed(class: &str, message: &str, detail: &[u8]) -> Failure {
    let mut failure = Failure::new(class, message);
    if !detail.is_empty()
        && let Ok(Detail { parents, fields, whole, traceback }) = jelly::from_slice::<Detail>(detail)
    {
        if !parents.is_empty() {
            failure = failure.under(parents.iter().map(String::as_str));
        }
        (failure.fields, failure.whole) = (fields.0.into(), whole);
        failure.traceback = (!traceback.is_empty()).then(|| traceback.into());
    }
    failure
}

/// The client's object that a service calls.
struct CalledObject {
    slot: SlotNo,
    generation: u32,
    handle: u64,
    /// The attachment by which the service has it. 0: it does not know.
    attachment: u64,
}

impl Owners {
    pub(super) fn service_said(&mut self, slot: SlotNo, generation: u32, frame: ToHost<'_>) {
        let connection = self.context.number;
        match frame {
            ToHost::Answer { call, value, objects } => self.service_answered(slot, call, value, objects),
            ToHost::Failed { call: number, class, message, detail, .. } => {
                let mut failure = failed(class, message, detail);
                if !self.context.rules.get().tracebacks {
                    failure.traceback = None;
                }
                self.check_fields(&mut failure);
                if let Some(no) = AttachmentNo::of(number, connection) {
                    // The service refuses the attachment, or the generation that took over does not accept it.
                    if self.attachments.at(no, slot).is_some() {
                        self.end(&Scope::Attachment(no), &failure);
                    }
                } else if let Some(no) = CallNo::of(number, connection)
                    && let Some(call) = self.calls.ended(no, slot)
                {
                    match call.answer {
                        true => self.output.fail(call.request, &failure),
                        false => self.heard(no),
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
            ToHost::Forget { call, .. } => {
                if let Some(outgoing) = self.calls.forget(slot, generation, call) {
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

    /// The fields of a service's error are checked as any value for a client. They are left out if the client could not
    /// read them, or if they contain references, which are not counted here. Only an error whose class is in a module
    /// can be sent as an instance.
    fn check_fields(&mut self, failure: &mut Failure) {
        const MOST: usize = 64 << 10;
        const LONGEST_CLASS: usize = 512;
        let own = exceptions::bases(&failure.class).is_none()
            && failure.class.contains('.')
            && failure.class.len() <= LONGEST_CLASS;
        failure.whole &= own;
        if failure.fields.is_empty() {
            return;
        }
        let good = failure.fields.len() <= MOST && matches!(self.values.answer(&failure.fields), Ok([]));
        if !good {
            (failure.fields, failure.whole) = (Box::default(), false);
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

    /// Writes a service's answer, after the same scan as a client's bytes. If it cannot be written, the service gets
    /// its objects back.
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
            let (translated, object) = known.outbound(tables, &route, reference, attachments.places())?;
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
        let called = self.references.called(target.slot, no, by);
        let called = called.and_then(|called| if answer { self.may_ask().map(|()| called) } else { Ok(called) });
        let sent = called.and_then(|(luid, by)| {
            let request = self.send_call(target.slot, Target::Luid(luid), (method, answer), values, &by)?;
            Ok((request, by))
        });
        match sent {
            Ok((request, by)) => {
                if let (true, Some(attachment)) = (answer, by.first()) {
                    let outgoing = Outgoing { backend, generation: target.generation, call, attachment };
                    self.attachments.call_began(attachment);
                    self.calls.call_out(request, outgoing);
                }
            }
            Err(failure) => {
                self.give_back_objects(target.slot, frame::numbers(values.2));
                if answer {
                    let (class, message) = (failure.class.as_str(), failure.value.as_str());
                    let frame = ToLibrary::Failed { call, class, message, detail: &[] };
                    self.outbox.answer(&backend, target.generation, &[], &frame);
                }
            }
        }
    }

    /// Whether a service may make one more call that the client has to answer.
    fn may_ask(&self) -> Result<(), Failure> {
        // Calls that the service has given up count, too: the client still has them and may answer.
        let unanswered = self.output.unanswered();
        let (own, together) = (self.limits().unanswered, self.limits.identity_unanswered);
        let why = if unanswered >= own {
            format!("the client has {unanswered} unanswered calls, which is the limit")
        } else if unanswered >= self.context.meter.may_hold(Held::Unanswered, together) {
            format!("all clients of this identity together have {together} unanswered calls, which is the limit")
        } else {
            return Ok(());
        };
        Err(Failure::new("MemoryError", why))
    }

    /// Writes a call of an object of the client's. After an error, nothing was written, and no objects were returned.
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
                let (translated, object) = known.outbound(tables, &route, reference, attachments.places())?;
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

    /// A service reports a change of a cached object of its own. The client receives it if it has the object.
    fn update(
        &mut self,
        slot: SlotNo,
        object: u64,
        method: &str,
        (arguments, keywords, objects): (&[u8], &[u8], &[u8]),
    ) {
        let cached = Object::Cached { slot, object };
        let by = self.references.given(&cached).cloned();
        let left = || self.leaving.iter().find(|of| of.object == cached).map(|of| (of.luid, of.by.clone()));
        let known = self.output.tables.cached_as(&cached).zip(by).or_else(left);
        let Some((luid, by)) = known else {
            return self.give_back_objects(slot, frame::numbers(objects));
        };
        let route = Route { connection: self.context.number, slot, by: &by };
        let (known, attachments, mut sent) = (&self.references, &self.attachments, Vec::new());
        let written = self.values.call(arguments, keywords).and_then(|(arguments, keywords)| {
            self.output.update_translated(luid, method, &arguments, &keywords, |tables, reference| {
                let (translated, object) = known.outbound(tables, &route, reference, attachments.places())?;
                sent.extend(object);
                Ok::<_, Failure>(translated)
            })
        });
        let left = self.references.settle(&mut self.output.tables, &route, (sent, written.is_ok()), objects);
        self.give_back_objects(slot, left.into_iter());
        if let Err(failure) = written {
            tracing::warn!(peer = self.context.entry.peer(), "a client did not receive an update: {}", failure.value);
        }
    }

    /// A service has attached the client.
    fn attached(&mut self, slot: SlotNo, no: AttachmentNo) {
        let Some(request) = self.attachments.answered(no, slot) else { return };
        // Anonymous clients count as logged in once a service has accepted them.
        self.logged_in = true;
        let Some(request) = request else { return };
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

    /// A service returns an object of the client's.
    pub(super) fn release(&mut self, slot: SlotNo, handle: u64, count: u64) {
        if let Some(no) = HandleNo::of(handle, self.context.number) {
            let released = self.references.release(&mut self.output, slot, no, count);
            self.released(released);
        }
    }

    /// Returns objects that did not reach the client to their service.
    pub(super) fn give_back_objects(&mut self, slot: SlotNo, objects: impl Iterator<Item = u64>) {
        let Some(backend) = self.outbox.backend(slot) else { return };
        let had = u64::from(self.context.number) << 32;
        for object in objects {
            self.outbox.notify(&backend, &ToLibrary::Dropped { object, count: 1, had }, None);
        }
    }

    pub(super) fn released(&mut self, released: Released) {
        for (slot, object, count) in released.objects {
            self.say_late(Late::Dropped { slot, object, count });
        }
        for (slot, no) in released.copies {
            if let Some(backend) = self.outbox.backend(slot) {
                let handle = no.on(self.context.number);
                self.outbox.notify(&backend, &ToLibrary::Uncached { handle }, None);
            }
        }
        for no in released.attachments {
            self.end_if_over(no);
        }
    }

    /// Submits the gathered frames. What a service does not accept fails with an error for its caller.
    pub(super) fn submit(&mut self) {
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
                // The service will not return what it never received.
                handles.iter().for_each(|handle| self.release(slot, *handle, 1));
                if let Some(call) = self.calls.ended(no, slot) {
                    match call.answer {
                        true => self.output.fail(call.request, failure),
                        false => self.heard(no),
                    }
                    self.call_ended(call.attachment);
                }
            }
            Bounced::Handles(handles) => handles.iter().for_each(|handle| self.release(slot, *handle, 1)),
            Bounced::Attach(no, handles) => {
                let mind = self.attachments.get(no).and_then(|attached| attached.mind.value.as_deref());
                let states = mind.map(|mind| mind.states.clone()).unwrap_or_default();
                handles.iter().for_each(|handle| self.release(slot, *handle, 1));
                self.end(&Scope::Attachment(no), failure);
                // An avatar that keeps the mind may give it to another attachment.
                states.iter().for_each(|luid| self.references.not_given(*luid));
            }
        }
    }
}
