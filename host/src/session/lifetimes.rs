//! The beginning and end of logins, attachments, and everything that came by them.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use pb::{Failure, Jelly};
use plugin_api::abi::frame::{self, ToLibrary};

use super::attachments::{Attached, Attachments, Era, Phase, Scope};
use super::calls::{Ended, InFlight};
use super::login::{Attach, Outcome, Step};
use super::mind::{GivenMind, KnownMind, KnownValue, Mind};
use super::numbers::{AttachmentNo, HandleNo, Object, Provenance};
use super::offers::Change;
use super::references::{Route, coming, revoked};
use super::{ANONYMOUS, Demand, Late, Owners, SessionContext};
use crate::cred::Identity;
use crate::memory::Held;
use crate::multiservice::{AttachmentChange, Backend, SlotNo};

/// Finds attachments to a service by the names that everybody can call.
pub(super) fn named_on<'a>(
    named: &'a BTreeMap<String, AttachmentNo>,
    attachments: &'a Attachments,
    slot: SlotNo,
) -> impl Fn(&[u8]) -> Option<AttachmentNo> + use<'a> {
    move |name| {
        let no = *named.get(std::str::from_utf8(name).ok()?)?;
        attachments.get(no).filter(|attached| attached.slot == slot).map(|_| no)
    }
}

impl Owners {
    /// Applies the outcome of a login call.
    pub(super) fn apply(&mut self, outcome: Outcome) {
        let Outcome {
            request, answer, step, logged_in, given_back, avatar_keeps, borrows, returns, refused, left, ..
        } = outcome;
        self.logged_in |= logged_in;
        self.demands.extend(refused.map(Demand::Note));
        given_back.objects().for_each(|sent| self.references.return_mind(&mut self.output, sent));
        avatar_keeps.objects().for_each(|sent| self.references.keep_mind(sent));
        borrows.objects().for_each(|sent| self.references.borrow_mind(sent));
        if let Some(name) = left {
            self.unlist_if_left(&name);
        }
        self.step(request, answer, step);
        returns.objects().for_each(|sent| self.references.forget_mind(&mut self.output, sent));
    }

    fn step(&mut self, request: u64, answer: bool, step: Step) {
        match step {
            Step::Answer(value) if answer => self.output.answer(request, &value),
            Step::Fail(failure) if answer => self.output.fail(request, &failure),
            Step::Answer(_) | Step::Fail(_) | Step::Wait => {}
            Step::Ask(no, question) => {
                self.login.asked_after(no, self.context.entry.removals());
                self.demands.push(Demand::Ask(no, question));
            }
            Step::Proven(name, no, question) => {
                // In this order: a removal is either seen here, or the connection is notified of it.
                self.context.entry.enter(&name);
                if self.context.entry.removed_since(self.login.removals(no), &name) {
                    self.login.revoke(no);
                }
                self.demands.push(Demand::Ask(no, question));
            }
            Step::Describe(service) => {
                let found = self.context.backends.backend(&service).map(|backend| backend.described());
                match found {
                    Some(described) if answer => self.output.answer(request, &described),
                    None if answer => self.output.fail(request, &Failure::new("KeyError", format!("'{service}'"))),
                    _ => {}
                }
            }
            Step::Attach(attach) => {
                let sent = attach.mind.sent_objects();
                if let Err(failure) = self.attach(attach, Some(request), None) {
                    sent.objects().for_each(|sent| self.references.return_mind(&mut self.output, sent));
                    self.output.fail(request, &failure);
                }
            }
        }
    }

    /// Asks a service to attach this client. The service's answer becomes the answer to `request`. `name`: the name by
    /// which everybody can call the perspective.
    fn attach(&mut self, attach: Attach, request: Option<u64>, name: Option<&str>) -> Result<AttachmentNo, Failure> {
        let Attach { identity, credential, key, era, mind } = attach;
        let service = key.service.as_str();
        let backend = self.context.backends.backend_for(service, &identity);
        let backend = backend.ok_or_else(|| Failure::new("KeyError", format!("'{service}'")))?;
        // Everybody who is attached has logged in.
        let of_identity = self.context.meter.may_hold(Held::Attachments, self.limits.identity_attachments);
        let checked = self.attachments.check_limit(self.limits.after.attachments).map_err(|error| error.to_string());
        let checked = checked.and_then(|()| match identity.is_empty() && self.attachments.anonymous() >= ANONYMOUS {
            false => Ok(()),
            true => Err(format!("a connection without a login has {ANONYMOUS} attachments at most")),
        });
        let checked = checked.and_then(|()| match self.attachments.len() < of_identity {
            true => Ok(()),
            false => Err(format!(
                "all connections of {identity} together have {} attachments, which is the limit",
                self.limits.identity_attachments
            )),
        });
        checked.map_err(|error| Failure::new("twisted.spread.pb.Error", error))?;
        let (slot, connection) = (backend.number(), self.context.number);
        self.check_mind(slot, &mind.mind)?;
        let attached = Attached::asked(Arc::clone(&backend), era, request, (identity, credential), key);
        if attached.identity.is_empty() {
            // An identity is listed when it logs in, but an anonymous client is not. In this order: a change of the
            // rules is either seen here, or the connection is notified of it.
            self.context.entry.enter("");
            if !self.context.rules.get().gives(name, &attached.key) {
                self.unlist_if_left("");
                return Err(Failure::new(
                    "twisted.cred.error.UnhandledCredentials",
                    "access without a login was withdrawn",
                ));
            }
        }
        self.context.entry.attached(&attached.listed());
        let (perspective, identity) = (attached.key.perspective.to_string(), Arc::clone(&attached.identity));
        let no = self.attachments.begin(attached);
        let (changes, states) = self.references.take_mind(&mind);
        let (mind, given) = self.give_mind(slot, no, &mind, states);
        let (attachment, peer) = (no.on(connection), self.context.entry.peer());
        let (perspective, identity) = (perspective.as_str(), &*identity);
        let ((value, handles), mind) = (mind.parts(), mind.object);
        let frame = |again| ToLibrary::Attach { attachment, perspective, identity, mind, peer, again, value, handles };
        let mut again = Vec::new();
        frame(true).write(&mut again);
        self.outbox.attach(&backend, (no, attachment), given, &frame(false), again);
        self.tell_changes(&backend, no, changes);
        Ok(no)
    }

    /// Checks whether everything in a mind may go to this service.
    fn check_mind(&mut self, slot: SlotNo, mind: &Mind) -> Result<(), Failure> {
        let Mind::Value(value) = mind else { return Ok(()) };
        let (tables, places) = (&self.output.tables, self.attachments.places());
        let found = self.values.mind(&value.jelly)?;
        self.references.check_copies(found.iter(), self.limits.copied)?;
        let states = coming(found.iter());
        found.iter().try_for_each(|reference| {
            self.references.check_offer(reference)?;
            self.references.check_inbound(tables, slot, reference, &places, &states)
        })
    }

    /// Translates a mind, which was checked before, for a service. Also returns the client's objects in it, one entry
    /// per occurrence.
    fn give_mind(
        &mut self,
        slot: SlotNo,
        no: AttachmentNo,
        given: &GivenMind,
        states: Box<[u64]>,
    ) -> (KnownMind, Box<[u64]>) {
        let connection = self.context.number;
        let by = Provenance::by(no);
        let route = Route { connection, slot, by: &by };
        let (mut known, mut handles) = (KnownMind::default(), Vec::new());
        match &given.mind {
            Mind::Nothing => {}
            Mind::Object(luid) => {
                known.object = self.references.hold(&route, *luid, given.kept).on(connection);
                handles.push(known.object);
            }
            Mind::Value(value) => {
                let found = self.values.mind(&value.jelly).unwrap_or_default();
                let jelly = Jelly::new(&value.jelly, found, 0, value.jelly.len());
                let mut translated = Vec::new();
                let named = named_on(&self.named, &self.attachments, slot);
                self.references.inbound(&self.output.tables, &route, &jelly, named, &mut translated, &mut handles);
                if given.kept {
                    self.references.retain_instead(connection, &handles);
                }
                let list = handles.iter().flat_map(|handle| handle.to_le_bytes()).collect();
                known.value = Some(Box::new(KnownValue { jelly: translated, handles: list, states }));
            }
        }
        self.attachments.set_mind(no, known.clone());
        (known, handles.into())
    }

    /// Sends the changes that the client reported before its objects came by an attachment. The client has had its
    /// answers.
    fn tell_changes(&mut self, backend: &Arc<dyn Backend>, no: AttachmentNo, changes: Vec<(u64, Change)>) {
        for (luid, Change { method, arguments, keywords }) in changes {
            let Some((handle, _)) = self.references.follower(luid) else { continue };
            let size = arguments.len() + keywords.len();
            let call = InFlight { slot: backend.number(), attachment: no, request: luid, answer: false, size };
            self.attachments.call_began(no);
            let words = (method.as_str(), arguments.as_slice(), keywords.as_slice());
            self.begin_call(backend, call, handle.on(self.context.number), words, &[]);
        }
    }

    /// The attachment by which this client calls a name that everybody can call. Attaches first, if necessary. `None`:
    /// there is no such name.
    pub(super) fn named(&mut self, name: &str) -> Option<Result<AttachmentNo, Failure>> {
        let key = self.context.rules.get().names.get(name)?.clone();
        if let Some(no) = self.named.get(name).filter(|no| self.attachments.get(**no).is_some()) {
            return Some(Ok(*no));
        }
        // It lasts as long as the connection: nobody holds a reference to release.
        let (identity, era) = ("".into(), Era::Old);
        let attach = Attach { identity, credential: 0, key, era, mind: GivenMind::default() };
        let attached = self.attach(attach, None, Some(name));
        if let Ok(no) = &attached {
            self.named.insert(name.to_owned(), *no);
        }
        Some(attached)
    }

    /// The listener's rules have changed: ends what they no longer allow.
    pub(super) fn rules_changed(&mut self) {
        let rules = self.context.rules.get();
        let named: BTreeMap<AttachmentNo, &str> = self.named.iter().map(|(name, no)| (*no, name.as_str())).collect();
        let nameless = self.attachments.nameless();
        let gone: Vec<AttachmentNo> = nameless
            .into_iter()
            .filter(|(no, key)| !rules.gives(named.get(no).copied(), key))
            .map(|(no, _)| no)
            .collect();
        self.named.retain(|_, no| !gone.contains(no));
        for no in gone {
            self.end(&Scope::Taken(no), &revoked());
        }
    }

    /// The client releases a perspective. What came by it lives on.
    pub(super) fn let_go(&mut self, no: AttachmentNo) {
        let Some(attached) = self.attachments.let_go(no) else { return };
        self.context.entry.detached(&attached.listed());
        self.say_late(Late::LetGo(no));
        self.end_if_over(no);
    }

    /// Notifies a service behind all calls that the client has made so far: at once, unless some of them wait.
    pub(super) fn say_late(&mut self, late: Late) {
        self.late.push_back((self.calls.waited(), late));
        self.deliver_late();
    }

    /// Sends the notifications that no parked call precedes any more.
    pub(super) fn deliver_late(&mut self) {
        while let Some((_, late)) = self.late.pop_front_if(|(waited, _)| self.calls.has_begun(*waited)) {
            match late {
                Late::Dropped { slot, object, count } => {
                    let had = u64::from(self.context.number) << 32;
                    if let Some(backend) = self.outbox.backend(slot) {
                        self.outbox.notify(&backend, &ToLibrary::Dropped { object, count, had }, None);
                    }
                }
                Late::LetGo(no) => {
                    // It may have ended meanwhile, or the service was already told that nothing of it is left.
                    let Some(attached) = self.attachments.get(no).filter(|of| of.phase == Phase::LetGo) else {
                        continue;
                    };
                    let number = no.on(self.context.number);
                    let change =
                        AttachmentChange::LetGo(number, linger(&self.context, number, attached, &attached.mind));
                    self.outbox.notify(&attached.backend, &ToLibrary::LetGo { attachment: number }, Some(change));
                }
                Late::Uncached { attachment, object, luid } => self.ask_if_heard(attachment, object, luid),
            }
        }
    }

    /// An identity has changed, or was removed or disabled (`None`): ends what it may no longer have.
    pub(super) fn changed(&mut self, name: &str, identity: Option<&Identity>) {
        self.login.changed(name, identity.filter(|identity| identity.enabled));
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
        self.logged_in = self.login.any() || self.attachments.any(None);
    }

    /// Removes an identity that has nothing left here from the operator's list.
    fn unlist_if_left(&self, name: &str) {
        if !self.login.has(name) && !self.attachments.any(Some(name)) {
            self.context.entry.left(name);
        }
    }

    /// A call by an attachment has ended.
    pub(super) fn call_ended(&mut self, no: AttachmentNo) {
        if self.attachments.call_ended(no) {
            self.end_if_over(no);
        }
    }

    /// A released attachment is over when no call and no reference that came by it is left. When only objects of the
    /// client's are left, nothing more can come by it, and the service, which may hold its mind, need not know it.
    pub(super) fn end_if_over(&mut self, no: AttachmentNo) {
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

    /// Objects of services have been sent by these attachments, so calls may come by them. Tells the services about
    /// those that they no longer know.
    pub(super) fn remember(&mut self, by: &Provenance) {
        for no in by.iter() {
            if !self.references.gives(no) {
                continue;
            }
            let Some(attached) = self.attachments.forget(no, false) else { continue };
            let number = no.on(self.context.number);
            // The service receives the mind again, without the objects that are gone.
            let slot = attached.slot;
            let mut there = |handle: u64| {
                let handle = HandleNo::of(handle, self.context.number)?;
                self.references.has(slot, handle, no).then(|| self.references.retain(slot, handle))
            };
            let mut mind = attached.mind.clone();
            mind.object = there(mind.object).map_or(0, |()| mind.object);
            if let Some(value) = &mut mind.value {
                let left = frame::numbers(&value.handles).filter(|handle| there(*handle).is_some());
                value.handles = left.flat_map(u64::to_le_bytes).collect();
            }
            let frame = linger(&self.context, number, attached, &mind);
            if let Some(known) = ToLibrary::read(&mut frame.as_slice()) {
                let change = AttachmentChange::LetGo(number, frame.clone());
                self.outbox.notify(&attached.backend, &known, Some(change));
            }
        }
    }

    /// The only teardown. Ends everything in this scope at once: calls under way and parked calls fail with `why`,
    /// references that came by nothing else die, and services are notified.
    pub(super) fn end(&mut self, scope: &Scope<'_>, why: &Failure) {
        for mind in self.login.end(scope) {
            mind.objects().for_each(|sent| self.references.forget_mind(&mut self.output, sent));
        }
        let gone = self.attachments.take(scope);
        let mut numbers: Vec<AttachmentNo> = gone.iter().map(|(no, _)| *no).collect();
        numbers.sort_unstable();
        let nameless = gone.iter().any(|(_, attached)| attached.identity.is_empty());
        for leaving in &mut self.leaving {
            leaving.by.leave(&numbers);
        }
        if matches!(scope, Scope::Taken(_) | Scope::Key(..) | Scope::Credential(..) | Scope::Identity(_)) {
            self.revoke(&gone);
        }
        let mut ended = self.calls.end(&numbers);
        // These notifications precede the end of what they are about.
        self.deliver_late();
        let asked = gone.iter().filter_map(|(_, attached)| match attached.phase {
            Phase::Asked { request } => request,
            _ => None,
        });
        ended.owed.extend(asked);
        ended.owed.sort_unstable();
        // Nobody reads what is written to a connection that has ended.
        if !matches!(scope, Scope::Connection) {
            ended.owed.iter().for_each(|request| self.output.fail(*request, why));
        }
        ended.begun.iter().for_each(|(_, no)| self.heard(*no));
        if let Scope::Slot(slot) = scope {
            self.references.forget_slot(&mut self.output, *slot);
        } else {
            self.tell_services(&ended, &numbers, why);
        }
        for (no, attached) in gone {
            self.output.tables.revoke(&Object::Perspective(no));
            if !attached.is_let_go() {
                self.context.entry.detached(&attached.listed());
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
        if nameless {
            self.unlist_if_left("");
            self.logged_in = self.login.any() || self.attachments.any(None);
        }
    }

    /// Calls by these attachments that wait in services' gates no longer begin.
    fn revoke(&self, gone: &[(AttachmentNo, Attached)]) {
        let known = || gone.iter().filter(|(_, attached)| attached.phase != Phase::Forgotten);
        let slots: BTreeSet<SlotNo> = known().map(|(_, attached)| attached.slot).collect();
        for slot in slots {
            let here = || known().filter(|(_, attached)| attached.slot == slot);
            let numbers: Vec<u64> = here().map(|(no, _)| no.on(self.context.number)).collect();
            if let Some((_, attached)) = here().next() {
                attached.backend.revoke(&numbers);
            }
        }
    }

    /// Notifies services of what ends with attachments, except the end of the attachments themselves.
    fn tell_services(&mut self, ended: &Ended, gone: &[AttachmentNo], why: &Failure) {
        for (slot, no) in &ended.begun {
            if let Some(backend) = self.outbox.backend(*slot) {
                let frame = ToLibrary::Gone { call: no.on(self.context.number) };
                self.outbox.notify(&backend, &frame, None);
                // The call may wait in code that was replaced.
                backend.notify_retired(&frame);
            }
        }
        for (slot, handle) in &ended.handles {
            // The service will not return what it never received.
            self.release(*slot, *handle, 1);
        }
        for outgoing in &ended.outgoing {
            self.fail_outgoing(outgoing, &why.class, &why.value, &[]);
        }
        let released = self.references.forget(&mut self.output, gone);
        self.released(released);
    }
}

/// The frame that tells a service about an attachment whose perspective was released before.
fn linger(context: &SessionContext, attachment: u64, attached: &Attached, mind: &KnownMind) -> Vec<u8> {
    let (perspective, identity) = (attached.key.perspective.as_str(), &*attached.identity);
    let mut frame = Vec::new();
    let (peer, (value, handles), mind) = (context.entry.peer(), mind.parts(), mind.object);
    ToLibrary::Linger { attachment, perspective, identity, mind, peer, value, handles }.write(&mut frame);
    frame
}
