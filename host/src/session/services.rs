//! The way to services and back: calls, answers, attachments. What becomes of references in them is `references`'.

use std::sync::Arc;

use jelly::{Defect, RefKind};
use pb::{Call, Failure, Jelly, Output, Target};
use plugin_api::abi::frame::{ToHost, ToLibrary};

use super::connection::End;
use super::desk::{Asked, Attached, Era, InFlight, Object, Parked, State};
use super::references::{give_back, reference, translate_out};
use crate::cred::Key;
use crate::cred::login::Proven;
use crate::multiservice::Known;
use crate::multiservice::slot::Slot;

type Out = Output<Object>;

/// Frames for one service, gathered while one read is served.
pub(super) struct Batch {
    slot: Arc<Slot>,
    /// The generation that asked for it; 0: whichever serves.
    generation: u32,
    frames: Vec<u8>,
    /// What changes in who is attached.
    changes: Vec<Known>,
    calls: u64,
}

/// An object that a client gave to be called back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mind {
    pub(super) luid: u64,
    /// It was sent to an avatar, which keeps it for all that attach by it: it is not given back with one of them.
    pub(super) lent: bool,
}

pub(super) fn defective(defect: &Defect) -> Failure {
    let class = match defect {
        Defect::TooDeep(_) => "RecursionError",
        Defect::Unhashable => "TypeError",
        _ => "twisted.spread.jelly.InsecureJelly",
    };
    Failure::new(class, defect.to_string())
}

impl State {
    /// The client calls a perspective (object 0) or an object of a service's.
    pub(super) fn call_service(
        &mut self,
        output: &mut Out,
        attachment: u64,
        object: u64,
        call: &Call<'_>,
    ) -> Result<(), End> {
        let refuse = |output: &mut Out, failure: &Failure| {
            if call.answer {
                output.fail(call.request, failure);
            }
        };
        if let Some(defect) = call.defect {
            refuse(output, &defective(defect));
            return Ok(());
        }
        let Some(attached) = self.attachments.get(&attachment) else {
            give_back(output, call.arguments.references().iter().chain(call.keywords.references()));
            refuse(output, &Failure::new("twisted.spread.pb.DeadReferenceError", "the perspective was detached"));
            return Ok(());
        };
        let slot = Arc::clone(&attached.slot);
        let references = || call.arguments.references().iter().chain(call.keywords.references());
        if let Some(failure) = references().find_map(|reference| self.acceptable(output, slot.number(), reference)) {
            give_back(output, references());
            refuse(output, &failure);
            return Ok(());
        }
        let in_flight = InFlight { slot: slot.number(), attachment, request: call.request, answer: call.answer };
        let must_park = self.calls.len() >= self.room(output) || !self.parked.is_empty();
        if !must_park && references().next().is_none() {
            // The way of nearly all calls: from the connection's buffer to the gate's, once.
            let (arguments, keywords) = (call.arguments.bytes(), call.keywords.bytes());
            self.begin(&slot, in_flight, object, call.method, arguments, keywords, &[]);
            return Ok(());
        }
        let (mut arguments, mut keywords, mut handles) = (Vec::new(), Vec::new(), Vec::new());
        self.translate_in(output, &slot, attachment, &call.arguments, &mut arguments, &mut handles);
        self.translate_in(output, &slot, attachment, &call.keywords, &mut keywords, &mut handles);
        if !must_park {
            self.begin(&slot, in_flight, object, call.method, &arguments, &keywords, &handles);
            return Ok(());
        }
        let parked = Parked { call: in_flight, object, method: call.method.to_owned(), arguments, keywords, handles };
        self.parked_bytes += parked.size();
        self.parked.push_back(parked);
        if self.parked_bytes > self.limits().parked { Err(End::TooManyCalls) } else { Ok(()) }
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    fn begin(
        &mut self,
        slot: &Arc<Slot>,
        call: InFlight,
        object: u64,
        method: &str,
        arguments: &[u8],
        keywords: &[u8],
        handles: &[u8],
    ) {
        let index = self.fresh();
        let number = self.wide(index);
        // The service answers every call, so that what is in flight is known; who wants no answer gets none.
        let frame = ToLibrary::Call {
            call: number,
            attachment: call.attachment,
            object,
            answer: true,
            method,
            arguments,
            keywords,
            handles,
        };
        self.calls.insert(index, call);
        let batch = self.batch(slot);
        frame.write(&mut batch.frames);
        batch.calls += 1;
    }

    /// Calls that waited, as far as others have ended.
    pub(super) fn unpark(&mut self, output: &mut Out) {
        while self.calls.len() < self.room(output)
            && let Some(parked) = self.parked.pop_front()
        {
            self.parked_bytes -= parked.size();
            match self.attachments.get(&parked.call.attachment).map(|attached| Arc::clone(&attached.slot)) {
                Some(slot) => {
                    let Parked { call, object, method, arguments, keywords, handles } = parked;
                    self.begin(&slot, call, object, &method, &arguments, &keywords, &handles);
                }
                None => {
                    // The service will not give back what it was never given.
                    for handle in plugin_api::abi::frame::handles(&parked.handles) {
                        self.release(output, parked.call.slot, handle, 1);
                    }
                    if !parked.call.answer {
                        continue;
                    }
                    let gone = Failure::new("twisted.spread.pb.DeadReferenceError", "the perspective was detached");
                    output.fail(parked.call.request, &gone);
                }
            }
        }
    }

    fn batch(&mut self, slot: &Arc<Slot>) -> &mut Batch {
        self.batch_of(slot, 0)
    }

    fn batch_of(&mut self, slot: &Arc<Slot>, generation: u32) -> &mut Batch {
        let mut batches = self.batches.iter();
        let at = match batches.position(|batch| Arc::ptr_eq(&batch.slot, slot) && batch.generation == generation) {
            Some(at) => at,
            None => {
                let (slot, frames, changes) = (Arc::clone(slot), Vec::new(), Vec::new());
                self.batches.push(Batch { slot, generation, frames, changes, calls: 0 });
                self.batches.len() - 1
            }
        };
        &mut self.batches[at]
    }

    pub(super) fn say(&mut self, slot: &Arc<Slot>, frame: &ToLibrary<'_>) {
        frame.write(&mut self.batch(slot).frames);
    }

    /// Says how a call of a generation's has ended.
    fn reply(&mut self, asked: &Asked, frame: &ToLibrary<'_>) {
        frame.write(&mut self.batch_of(&asked.slot, asked.generation).frames);
    }

    pub(super) fn slot(&self, number: u64) -> Option<Arc<Slot>> {
        self.attachments
            .values()
            .map(|attached| &attached.slot)
            .find(|slot| slot.number() == number)
            .or_else(|| self.batches.iter().map(|batch| &batch.slot).find(|slot| slot.number() == number))
            .cloned()
    }

    /// Hands over what was gathered. What cannot be handed over is an error to its callers.
    pub(super) fn submit(&mut self, output: &mut Out) {
        for at in 0..self.batches.len() {
            let batch = &mut self.batches[at];
            if batch.frames.is_empty() && batch.changes.is_empty() {
                continue;
            }
            if batch.generation != 0 {
                batch.slot.answer(batch.generation, &batch.frames);
                batch.frames.clear();
                continue;
            }
            batch.slot.count_calls(std::mem::take(&mut batch.calls));
            let slot = batch.slot.number();
            let submitted = batch.slot.submit(&batch.frames, &mut batch.changes);
            if let Err(error) = submitted {
                let frames = std::mem::take(&mut batch.frames);
                let mut changes = std::mem::take(&mut batch.changes);
                // Those that could not attach are refused, each, below.
                changes.retain(|change| matches!(change, Known::Detached(_)));
                let failure = Failure::new("twisted.spread.pb.DeadReferenceError", error.to_string());
                let mut rest = frames.as_slice();
                let mut ends = Vec::new();
                let to = Arc::clone(&batch.slot);
                while let Some(frame) = ToLibrary::read(&mut rest) {
                    let request = match frame {
                        ToLibrary::Call { call, handles, .. } => {
                            // The service will not give back what it was never given.
                            for handle in plugin_api::abi::frame::handles(handles) {
                                self.release(output, slot, handle, 1);
                            }
                            self.ended(slot, call).filter(|call| call.answer).map(|call| call.request)
                        }
                        ToLibrary::Attach { attachment, mind, .. } => {
                            self.release(output, slot, mind, 1);
                            self.refused(slot, attachment)
                        }
                        other => {
                            other.write(&mut ends);
                            None
                        }
                    };
                    if let Some(request) = request {
                        output.fail(request, &failure);
                    }
                }
                to.submit_anyway(&ends, &mut changes);
            } else {
                batch.frames.clear();
                batch.frames.shrink_to(1 << 16);
            }
        }
        // Slots that were used long ago must not be held for ever.
        if self.batches.len() > 16 {
            self.batches.clear();
        }
    }

    /// A service's frame.
    pub(super) fn mail(&mut self, output: &mut Out, slot: u64, generation: u32, frame: ToHost<'_>) {
        match frame {
            ToHost::Answer { call, value } => {
                let Some(call) = self.ended(slot, call) else { return self.unsent(slot, value) };
                self.foretell(value.len());
                if !call.answer {
                    return self.unsent(slot, value);
                }
                if let Err(failure) = self.answer(output, &call, value) {
                    self.unsent(slot, value);
                    output.fail(call.request, &failure);
                }
            }
            ToHost::Failed { call, class, message, .. } => {
                let failure = || Failure::new(class, message);
                if self.is_attached(call, slot) && self.attachments.get(&call).is_some_and(|it| it.request.is_none()) {
                    // The code that replaced what it was attached to does not take it.
                    self.end_attachment(output, call, &failure());
                } else if let Some(call) = self.ended(slot, call) {
                    if call.answer {
                        output.fail(call.request, &failure());
                    }
                } else if let Some(request) = self.refused(slot, call) {
                    output.fail(request, &failure());
                }
            }
            ToHost::Attached { attachment } => self.attached(output, slot, attachment),
            ToHost::Call { call, handle, answer, method, arguments, keywords } => {
                let sent = self.call_client(output, slot, handle, answer, method, arguments, keywords);
                if sent.is_err() {
                    self.unsent(slot, arguments);
                    self.unsent(slot, keywords);
                }
                match sent {
                    Ok((request, slot)) => {
                        if answer {
                            self.outgoing.insert(request, Asked { slot, generation, call });
                        }
                    }
                    Err(failure) if answer => {
                        if let Some(slot) = self.slot(slot) {
                            let (class, message) = (failure.class.as_str(), failure.value.as_str());
                            let asked = Asked { slot, generation, call };
                            self.reply(&asked, &ToLibrary::Failed { call, class, message });
                        }
                    }
                    Err(_) => {}
                }
            }
            ToHost::Release { handle, count } => self.release(output, slot, handle, count),
            ToHost::Lent { handle } => self.lend(slot, handle),
            ToHost::Stopped {} => self.stopped(output, slot),
            ToHost::End { attachment } if self.is_attached(attachment, slot) => self.revoke(output, attachment),
            ToHost::Update { object, method, arguments, keywords, .. } => {
                self.update(output, slot, object, method, arguments, keywords);
            }
            _ => {}
        }
    }

    /// A service has ended: all that it owes is answered, and all that it held is given back.
    fn stopped(&mut self, output: &mut Out, slot: u64) {
        let gone = Failure::new("twisted.spread.pb.DeadReferenceError", "the service has stopped");
        let mut owed: Vec<u64> = self
            .calls
            .extract_if(|_, call| call.slot == slot)
            .filter(|(_, call)| call.answer)
            .map(|(_, call)| call.request)
            .collect();
        let ended: Vec<Attached> = self
            .attachments
            .extract_if(|_, attached| attached.slot.number() == slot)
            .map(|(_, attached)| attached)
            .collect();
        ended.iter().for_each(|attached| self.unlist(attached));
        owed.extend(ended.iter().filter_map(|attached| attached.request));
        owed.sort_unstable();
        for request in owed {
            output.fail(request, &gone);
        }
        let held: Vec<(u32, u64, u64)> = self
            .held
            .extract_if(|_, held| held.slot.number() == slot)
            .map(|(index, held)| (index, held.luid, held.count))
            .collect();
        for (_, luid, count) in held {
            self.held_by.remove(&(slot, luid));
            output.release(luid, count);
        }
        self.outgoing.retain(|_, asked| asked.slot.number() != slot);
        self.batches.retain(|batch| batch.slot.number() != slot);
    }

    /// A call that a service has ended: only its own.
    fn ended(&mut self, slot: u64, number: u64) -> Option<InFlight> {
        let index = self.narrow(number)?;
        if self.calls.get(&index)?.slot != slot {
            return None;
        }
        self.calls.remove(&index)
    }

    fn refused(&mut self, slot: u64, attachment: u64) -> Option<u64> {
        let attached = self.attachments.get_mut(&attachment)?;
        if attached.slot.number() != slot {
            return None;
        }
        let request = attached.request.take()?;
        if let Some(attached) = self.attachments.remove(&attachment) {
            self.unlist(&attached);
            // Code that takes over just now may be told of this attachment before it is known here that it was refused.
            self.say(&attached.slot, &ToLibrary::Detach { attachment });
            self.batch(&attached.slot).changes.push(Known::Detached(attachment));
        }
        Some(request)
    }

    fn attached(&mut self, output: &mut Out, slot: u64, attachment: u64) {
        let Some(attached) = self.attachments.get_mut(&attachment) else {
            return;
        };
        if attached.slot.number() != slot {
            return;
        }
        let Some(request) = attached.request.take() else { return };
        match output.tables.export(&Object::Perspective(attachment)) {
            Ok(luid) => {
                let mut value = Vec::new();
                reference(&mut value, luid);
                output.answer(request, &value);
            }
            Err(error) => {
                self.detach(attachment);
                output.fail(request, &Failure::new("twisted.spread.pb.Error", error.to_string()));
            }
        }
    }

    /// Writes a service's answer, after the same pass that a client's bytes go through.
    fn answer(&mut self, output: &mut Out, call: &InFlight, value: &[u8]) -> Result<(), Failure> {
        let unsendable = |why: &dyn std::fmt::Display| {
            Failure::new("twisted.spread.pb.Error", format!("the service's answer cannot be sent: {why}"))
        };
        let scanned = match self.scanner.scan(value) {
            Ok(Some(scanned)) if scanned.end == value.len() => scanned,
            Ok(_) => return Err(self.afresh(unsendable(&"it is not one whole value"))),
            Err(error) => return Err(self.afresh(unsendable(&error))),
        };
        if let Some(defect) = scanned.defect {
            return Err(unsendable(defect));
        }
        if !self.attachments.contains_key(&call.attachment) {
            // What would be handed out by an attachment that has ended could never be given back.
            if scanned.references.iter().any(|found| found.kind == RefKind::Remote) {
                return Err(Failure::new("twisted.spread.pb.DeadReferenceError", "the perspective was detached"));
            }
        }
        let jelly = Jelly::new(value, scanned.references, 0, value.len());
        let (held, slot, attachment) = (&self.held, call.slot, call.attachment);
        let connection = self.number;
        let mut exported = Vec::new();
        let written = output.answer_translated(call.request, &jelly, |tables, reference| {
            let translated = translate_out(tables, held, connection, slot, attachment, reference)?;
            if let Some(object) = translated.1 {
                exported.push(object);
            }
            Ok::<_, Failure>(translated.0)
        });
        self.settle(output, attachment, exported, written.is_ok());
        written
    }

    /// A scanner that met an error may stand anywhere: a new one.
    fn afresh(&mut self, failure: Failure) -> Failure {
        self.scanner = jelly::Scanner::new(jelly::Shape::Value, self.shared.limits.after.jelly);
        self.keyword_scanner = jelly::Scanner::new(jelly::Shape::Value, self.shared.limits.after.jelly);
        failure
    }

    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    fn call_client(
        &mut self,
        output: &mut Out,
        slot: u64,
        handle: u64,
        answer: bool,
        method: &str,
        arguments: &[u8],
        keywords: &[u8],
    ) -> Result<(u64, Arc<Slot>), Failure> {
        let held =
            self.narrow(handle).and_then(|index| self.held.get(&index)).filter(|held| held.slot.number() == slot);
        let Some((luid, owner, by)) = held.map(|held| (held.luid, Arc::clone(&held.slot), held.attachment)) else {
            return Err(Failure::new(
                "twisted.spread.pb.DeadReferenceError",
                "the client's object is not there any more",
            ));
        };
        // What is handed out with it belongs to the attachment by which the client's object came.
        let attachment = if self.attachments.contains_key(&by) { by } else { self.attachment_to(slot) };
        self.scan_both(arguments, keywords)?;
        let arguments = Jelly::new(arguments, self.scanner.last().references, 0, arguments.len());
        let keywords = Jelly::new(keywords, self.keyword_scanner.last().references, 0, keywords.len());
        let (held, connection) = (&self.held, self.number);
        let mut exported = Vec::new();
        let target = Target::Luid(luid);
        let written = output.call_translated(target, method, answer, &arguments, &keywords, |tables, reference| {
            let translated = translate_out(tables, held, connection, slot, attachment, reference)?;
            if let Some(object) = translated.1 {
                exported.push(object);
            }
            Ok::<_, Failure>(translated.0)
        });
        self.settle(output, attachment, exported, written.is_ok());
        Ok((written?, owner))
    }

    /// Scans the arguments of a service's call; what was found is what the two scanners found last.
    fn scan_both(&mut self, arguments: &[u8], keywords: &[u8]) -> Result<(), Failure> {
        let unsendable =
            |why: &dyn std::fmt::Display| Failure::new("TypeError", format!("the arguments cannot be sent: {why}"));
        let whole =
            |scanned: Result<Option<jelly::Scanned<'_>>, jelly::token::BananaError>, length: usize| match scanned {
                Ok(Some(scanned)) if scanned.end == length => match scanned.defect {
                    Some(defect) => Err(unsendable(defect)),
                    None => Ok(()),
                },
                Ok(_) => Err(unsendable(&"they are not one whole value")),
                Err(error) => Err(unsendable(&error)),
            };
        let checked = whole(self.scanner.scan(arguments), arguments.len())
            .and_then(|()| whole(self.keyword_scanner.scan(keywords), keywords.len()));
        checked.map_err(|failure| self.afresh(failure))
    }

    /// A service tells of a change to a cached object of its own: the client hears of it if it has the object.
    fn update(&mut self, output: &mut Out, slot: u64, object: u64, method: &str, arguments: &[u8], keywords: &[u8]) {
        let cached = Object::Cached { slot, object };
        let Some(luid) = output.tables.cached_as(&cached).filter(|_| self.has_cached(&cached)) else {
            return;
        };
        let attachment = self.attachment_to(slot);
        let told = self.scan_both(arguments, keywords).and_then(|()| {
            let arguments = Jelly::new(arguments, self.scanner.last().references, 0, arguments.len());
            let keywords = Jelly::new(keywords, self.keyword_scanner.last().references, 0, keywords.len());
            let (held, connection) = (&self.held, self.number);
            let mut exported = Vec::new();
            let written = output.update_translated(luid, method, &arguments, &keywords, |tables, reference| {
                let translated = translate_out(tables, held, connection, slot, attachment, reference)?;
                exported.extend(translated.1);
                Ok::<_, Failure>(translated.0)
            });
            self.settle(output, attachment, exported, written.is_ok());
            written
        });
        if let Err(failure) = told {
            tracing::warn!(peer = self.peer, "a client was not told of a change: {}", failure.value);
        }
    }

    /// Some attachment of this client's to a service; 0 if there is none.
    fn attachment_to(&self, slot: u64) -> u64 {
        self.attachments
            .iter()
            .find(|(_, attached)| attached.slot.number() == slot)
            .map_or(0, |(attachment, _)| *attachment)
    }

    /// The client has answered a service's call.
    pub(super) fn answered(&mut self, output: &mut Out, request: u64, value: Jelly<'_>, defect: Option<&Defect>) {
        let Some(asked) = self.outgoing.remove(&request) else {
            return give_back(output, value.references().iter());
        };
        let (slot, call) = (Arc::clone(&asked.slot), asked.call);
        let wrong = defect.map(defective).or_else(|| {
            value.references().iter().find_map(|reference| self.acceptable(output, slot.number(), reference))
        });
        if let Some(failure) = wrong {
            give_back(output, value.references().iter());
            let message = format!("the client's answer: {}", failure.value);
            self.reply(&asked, &ToLibrary::Failed { call, class: &failure.class, message: &message });
            return;
        }
        if value.references().is_empty() {
            self.reply(&asked, &ToLibrary::Answer { call, value: value.bytes(), handles: &[] });
            return;
        }
        let (mut translated, mut handles) = (Vec::new(), Vec::new());
        let attachment = self.attachment_to(slot.number());
        self.translate_in(output, &slot, attachment, &value, &mut translated, &mut handles);
        self.reply(&asked, &ToLibrary::Answer { call, value: &translated, handles: &handles });
    }

    /// The client's object has raised an error.
    pub(super) fn failed(&mut self, _: &mut Out, request: u64, failure: Jelly<'_>, defect: Option<&Defect>) {
        let Some(asked) = self.outgoing.remove(&request) else { return };
        let failure = match defect {
            Some(defect) => defective(defect),
            None => Failure::read(failure.bytes())
                .unwrap_or_else(|error| Failure::new("twisted.spread.pb.Error", error.to_string())),
        };
        let (class, message) = (failure.class.as_str(), failure.value.as_str());
        self.reply(&asked, &ToLibrary::Failed { call: asked.call, class, message });
    }

    /// Asks a service to attach this client. Its answer becomes the answer to `request`.
    pub(super) fn attach(
        &mut self,
        slot: Arc<Slot>,
        key: Key,
        by: &Proven,
        mind: Option<Mind>,
        request: u64,
        era: Era,
    ) {
        let (perspective, identity) = (key.perspective.as_str(), by.identity.name.as_str());
        let index = self.fresh();
        let attachment = self.wide(index);
        let mind = mind.map_or(0, |mind| self.hold(&slot, mind.luid, attachment, mind.lent));
        let peer = std::mem::take(&mut self.peer);
        let attach = |again: bool| {
            let mut frame = Vec::new();
            ToLibrary::Attach { attachment, perspective, identity, mind, peer: &peer, again }.write(&mut frame);
            frame
        };
        let (now, again) = (attach(false), attach(true));
        let batch = self.batch(&slot);
        batch.frames.extend_from_slice(&now);
        batch.changes.push(Known::Attached(attachment, again));
        self.peer = peer;
        if let Some(session) = &self.session {
            session.attached(format!("{}/{perspective}", key.service));
        }
        let (identity, credential) = (identity.into(), by.credential);
        self.attachments.insert(attachment, Attached { slot, era, request: Some(request), identity, credential, key });
    }

    fn is_attached(&self, attachment: u64, slot: u64) -> bool {
        self.attachments.get(&attachment).is_some_and(|attached| attached.slot.number() == slot)
    }

    /// The operator sees it no longer.
    fn unlist(&self, attached: &Attached) {
        if let Some(session) = &self.session {
            session.detached(&format!("{}/{}", attached.key.service, attached.key.perspective));
        }
    }

    pub(super) fn detach(&mut self, attachment: u64) {
        let Some(attached) = self.attachments.remove(&attachment) else {
            return;
        };
        self.unlist(&attached);
        // What the service handed out by this attachment goes with it.
        let handed: Vec<(Object, u64)> = self
            .sent
            .extract_if(|object, _| matches!(object, Object::Service { attachment: by, .. } if *by == attachment))
            .collect();
        for (object, count) in handed {
            if let Object::Service { object, .. } = object {
                self.say(&attached.slot, &ToLibrary::Dropped { object, count });
            }
        }
        self.say(&attached.slot, &ToLibrary::Detach { attachment });
        self.batch(&attached.slot).changes.push(Known::Detached(attachment));
    }

    /// The connection has ended.
    pub(super) fn end(&mut self) {
        for (index, call) in std::mem::take(&mut self.calls) {
            let number = self.wide(index);
            if let Some(slot) = self.slot(call.slot) {
                self.say(&slot, &ToLibrary::Gone { call: number });
                // The call may wait in code that was replaced.
                slot.tell_old(&ToLibrary::Gone { call: number });
            }
        }
        for (_, asked) in std::mem::take(&mut self.outgoing) {
            let (class, message) = ("twisted.spread.pb.PBConnectionLost", "the client has gone");
            self.reply(&asked, &ToLibrary::Failed { call: asked.call, class, message });
        }
        let attachments: Vec<u64> = self.attachments.keys().copied().collect();
        for attachment in attachments {
            self.detach(attachment);
        }
        for batch in &mut self.batches {
            if batch.generation != 0 {
                batch.slot.answer(batch.generation, &batch.frames);
            } else if !batch.frames.is_empty() || !batch.changes.is_empty() {
                batch.slot.submit_anyway(&batch.frames, &mut batch.changes);
            }
        }
    }
}
