//! A generation's frames, on their way out: changes are committed before anything that follows them is told.
//!
//! [`Outgoing`] routes frames; `commits` decides what waits for what; `keeping` performs that, and talks to the store; `replay`
//! tracks attachments that were handed over; `report` is what the operator reads.

mod commits;
mod keeping;
mod replay;
mod report;

use std::sync::atomic::{AtomicU8, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use plugin_api::abi::frame::{self, ToHost, ToLibrary};
use tokio::sync::mpsc;

use self::commits::{CommitQueue, Phase};
use self::replay::Replay;
use self::report::Report;
use super::context::{HostContext, SlotNo};
use super::doorkeeper::{Doorkeeper, Speaker};
use super::elsewhere::Elsewhere;
use super::in_force::LimitsInForce;
use super::router::{Delivered, Delivery, Router, Weight};
use crate::loader::gate::{GateLimits, Lane, Outlet, WorkerLimits};
use crate::loader::generation::Generation;
use crate::store::{Range, Saved, Store, StoreError, ask};

/// The steps that the slot waits for while its generation starts or stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Lifecycle {
    Manifest(Vec<u8>),
    Initialised,
    Started,
    Healthy(u64),
    Refused(String),
    Frozen { request: u64, calls: Vec<u8>, objects: Vec<u8>, numbers: u64, states: u64, copies: Vec<u8> },
    Adopted(u64),
    Stopped,
}

/// The end of a generation's process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Crash {
    /// How it ended, as the rest of a sentence.
    pub(super) how: String,
    /// Where it crashed, as offsets in its library.
    pub(super) at: Vec<u64>,
}

/// The handler of a crash.
type SeesTo = Box<dyn Fn(Crash) + Send + Sync>;

/// A crash until it is handled, and its handler.
#[derive(Default)]
struct Crashing {
    crash: Option<Crash>,
    sees_to: Option<SeesTo>,
}

/// The delay before the store is asked again after a failed read.
const STORE_RETRY: std::time::Duration = std::time::Duration::from_secs(1);

/// A generation's way out: see the module's page.
pub(super) struct Outgoing {
    slot: SlotNo,
    /// The generation's number.
    pub(super) number: u32,
    pub(super) name: OnceLock<String>,
    pub(super) generation: OnceLock<Weak<Generation>>,
    /// A [`Phase`]. Changes with the queue locked, except when the generation ends.
    phase: AtomicU8,
    queue: Mutex<CommitQueue>,
    writing: Mutex<Writing>,
    replay: Replay,
    report: Report,
    crashing: Mutex<Crashing>,
    /// How many bytes wait in the queue for the next commit.
    unwritten: AtomicUsize,
    lifecycle: mpsc::UnboundedSender<Lifecycle>,
    router: Arc<Router>,
    store: Arc<dyn Store>,
    doors: Arc<dyn Doorkeeper>,
    /// What a tried version has, and this one must not touch.
    elsewhere: Arc<Elsewhere>,
    /// Why the last commit failed, for error messages.
    failed: Mutex<String>,
    /// The operator's limits.
    limits: Arc<LimitsInForce>,
    me: Weak<Self>,
}

/// Data of the service that is being written, and the freeze that waits for it.
#[derive(Default)]
struct Writing {
    pending: usize,
    frozen: Option<Lifecycle>,
}

impl Outgoing {
    /// The way out of this generation of this slot. If the generation does not serve yet, everything that changes anything is
    /// held back until [`Outgoing::serve`].
    pub(super) fn new(
        (slot, number): (SlotNo, u32),
        serving: bool,
        (context, elsewhere): (&HostContext, &Arc<Elsewhere>),
        faults: &Arc<AtomicU64>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Lifecycle>) {
        let (lifecycle, receiver) = mpsc::unbounded_channel();
        let phase = if serving { Phase::Serving } else { Phase::Embargoed };
        let outgoing = Arc::new_cyclic(|me| Self {
            slot,
            number,
            name: OnceLock::new(),
            generation: OnceLock::new(),
            phase: AtomicU8::new(phase as u8),
            queue: Mutex::default(),
            writing: Mutex::default(),
            replay: Replay::default(),
            report: Report::new(number, faults),
            crashing: Mutex::default(),
            unwritten: AtomicUsize::new(0),
            lifecycle,
            router: Arc::clone(&context.router),
            store: Arc::clone(&context.store),
            doors: Arc::clone(&context.doors),
            elsewhere: Arc::clone(elsewhere),
            failed: Mutex::default(),
            limits: Arc::clone(&context.limits),
            me: Weak::clone(me),
        });
        (outgoing, receiver)
    }

    fn phase(&self) -> Phase {
        Phase::of(self.phase.load(Ordering::SeqCst))
    }

    /// Changes the phase by this rule. Returns the earlier phase.
    fn advance(&self, rule: impl Fn(Phase) -> Phase) -> Phase {
        let next = |phase| Some(rule(Phase::of(phase)) as u8);
        // The rule always returns a phase.
        Phase::of(self.phase.fetch_update(Ordering::SeqCst, Ordering::SeqCst, next).unwrap_or_else(|phase| phase))
    }

    /// Hands over what the generation waits for while it ends, or what ends something: behind the lane's calls, which may not
    /// have begun.
    pub(super) fn hand_over(&self, lane: &Lane, frames: &[u8]) {
        if let Some(generation) = self.generation.get().and_then(Weak::upgrade) {
            generation.push_anyway(lane, frames);
        }
    }

    /// Calls by these attachments that wait must not begin, although the generation is ending.
    pub(super) fn revoke(&self, attachments: &[u64]) {
        if let Some(generation) = self.generation.get().and_then(Weak::upgrade) {
            generation.revoke(attachments, false);
        }
    }

    /// The generation has ended or is given up. Its clients are notified, once.
    pub(super) fn over(&self) {
        self.ended(false);
    }

    /// As [`Outgoing::over`]. `stopped`: the generation reported its end itself.
    fn ended(&self, stopped: bool) {
        let before = self.advance(Phase::ended);
        if before == Phase::Serving {
            self.broadcast_end();
        }
        if !before.is_over() {
            self.doors.ended(self.slot, self.name(), self.number, (before == Phase::Serving, stopped));
        }
    }

    fn broadcast_end(&self) {
        let mut frame = Vec::new();
        ToHost::Stopped {}.write(&mut frame);
        self.router.broadcast(self.tag(), &frame);
    }

    /// The sender of what is delivered: the slot, and above it the generation.
    pub(super) fn tag(&self) -> u64 {
        u64::from(self.slot.0) | u64::from(self.number) << 32
    }

    /// It serves from now on: what was held back is committed and told.
    pub(super) fn serve(&self) {
        let mut queue = self.queue.lock();
        let before = self.advance(|phase| match phase {
            Phase::Embargoed => Phase::Serving,
            Phase::Over => Phase::OverServing,
            phase => phase,
        });
        if before == Phase::Over {
            // It has just ended by itself, and nobody was notified yet.
            self.broadcast_end();
        }
        let effects = queue.next_commit(Phase::Serving);
        let commit = self.perform(effects);
        self.unwritten.store(queue.unwritten(), Ordering::Relaxed);
        drop(queue);
        self.commit(commit);
    }

    /// The generation ends. If it never served, what it wants to save or tell is refused, so that code of it that waits for
    /// this can end.
    pub(super) fn abandon(&self) {
        let mut queue = self.queue.lock();
        if self.advance(|phase| if phase == Phase::Embargoed { Phase::Abandoned } else { phase }) == Phase::Embargoed {
            // What is refused commits nothing.
            self.perform(queue.abandon());
            self.unwritten.store(0, Ordering::Relaxed);
        }
    }

    /// Refuses a request of a generation that never served.
    fn refuse(&self, frame: &ToHost<'_>) {
        let message = "this code never served";
        match *frame {
            ToHost::Write { request, .. } => self.send(&ToLibrary::NotLoaded { request, message }),
            ToHost::Call { call, handle, answer, objects, .. } => {
                self.give_back(handle, objects);
                if answer {
                    self.send(&ToLibrary::Failed { call, class: "credhost.Reloaded", message, detail: &[] });
                }
            }
            ToHost::Update { attachment, objects, .. } => self.give_back(attachment, objects),
            _ => {}
        }
    }

    /// Its successor serves: its answers to calls that wait are still sent, and nothing of it is saved any more.
    pub(super) fn retire(&self) {
        let _queue = self.queue.lock();
        self.advance(|phase| match phase {
            Phase::Serving => Phase::Retired,
            Phase::OverServing => Phase::Over,
            phase => phase,
        });
    }

    /// Forgets an earlier panic: it has nothing to do with what is asked next.
    pub(super) fn forget_panic(&self) {
        self.report.forget_panic();
    }

    /// These attachments are sent to the generation again.
    pub(super) fn expect(&self, attachments: impl Iterator<Item = u64>) {
        self.replay.expect(attachments);
    }

    /// Waits until the generation has taken or refused all of them, but not for long. Returns how many it has refused.
    pub(super) async fn replayed(&self) -> usize {
        self.replay.done().await
    }

    /// From now on `sees_to` handles the end of the generation's process, also one that has already happened.
    pub(super) fn watch_crashes(&self, sees_to: SeesTo) {
        let mut crashing = self.crashing.lock();
        match crashing.crash.take() {
            Some(crash) => {
                drop(crashing);
                sees_to(crash);
            }
            None => crashing.sees_to = Some(sees_to),
        }
    }

    /// The perspectives whose states it could not read, and why.
    pub(super) fn unreadable(&self) -> Vec<(String, String)> {
        self.report.unreadable()
    }

    /// The service's own saved state.
    pub(super) async fn saved(&self) -> Result<Option<Saved>, StoreError> {
        ask(|done| self.store.state(self.name(), "", done)).await
    }

    pub(super) fn is_over(&self) -> bool {
        self.phase().is_over()
    }

    pub(super) fn name(&self) -> &str {
        self.name.get().map_or("?", String::as_str)
    }

    fn speaker(&self) -> Speaker<'_> {
        let (embargoed, retired) = (self.phase() == Phase::Embargoed, self.phase() == Phase::Retired);
        Speaker { slot: self.slot, generation: self.number, service: self.name(), embargoed, retired }
    }

    fn send(&self, frame: &ToLibrary<'_>) {
        if let Some(generation) = self.generation.get().and_then(Weak::upgrade) {
            generation.send(frame);
        }
    }

    fn reached(&self, step: Lifecycle) {
        // Nothing waits once the slot is gone.
        let _ = self.lifecycle.send(step);
    }

    /// Handles one frame that waits for nothing any more.
    fn out(&self, frame: &ToHost<'_>, raw: &[u8], delivery: &mut Delivery<'_>) {
        match frame {
            ToHost::Answer { call, objects, value } => {
                let delivered = self.deliver(delivery, *call, raw, objects, Weight::Answer);
                self.answered(delivery, delivered, *call, value.len());
            }
            ToHost::Attached { attachment } => {
                self.replay.took(*attachment, false);
                delivery.deliver(*attachment, self.tag(), raw, Weight::Must);
            }
            ToHost::Update { attachment: number, objects, .. } => {
                self.deliver(delivery, *number, raw, objects, Weight::Change);
            }
            ToHost::Failed { call, fault, message, .. } => {
                if *fault {
                    self.report.call_panicked(self.name(), message);
                }
                self.replay.took(*call, true);
                delivery.deliver(*call, self.tag(), raw, Weight::Must);
            }
            ToHost::Call { call, handle, answer, objects, .. } => {
                let weight = if *answer { Weight::Call } else { Weight::Change };
                let delivered = self.deliver(delivery, *handle, raw, objects, weight);
                if *answer && delivered != Delivered::Yes {
                    let (class, message) = match delivered {
                        Delivered::Over => ("MemoryError", "output buffer limit exceeded: the client does not read"),
                        _ => ("twisted.spread.pb.PBConnectionLost", "the client has gone"),
                    };
                    self.send(&ToLibrary::Failed { call: *call, class, message, detail: &[] });
                }
            }
            ToHost::Release { handle, .. } | ToHost::Forget { handle, .. } => {
                delivery.deliver(*handle, self.tag(), raw, Weight::Must);
            }
            ToHost::Load { request, perspective } => self.load(*request, perspective),
            ToHost::Data { request, from, to, limit, reverse } => {
                let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
                let (from, to) = (from.to_vec(), to.map(<[u8]>::to_vec));
                self.data(
                    *request,
                    &Range { from, to, limit, reverse: *reverse, bytes: self.limits.now().data_answer },
                );
            }
            ToHost::Write { request, base, entries } => self.write(*request, *base, entries),
            ToHost::End { attachment } => {
                delivery.deliver(*attachment, self.tag(), raw, Weight::Must);
            }
            ToHost::Manifest { manifest } => self.reached(Lifecycle::Manifest(manifest.to_vec())),
            ToHost::Initialised {} => self.reached(Lifecycle::Initialised),
            ToHost::Started {} => self.reached(Lifecycle::Started),
            ToHost::Healthy { request } => self.reached(Lifecycle::Healthy(*request)),
            ToHost::Refused { message } => self.reached(Lifecycle::Refused(self.report.refusal(message))),
            ToHost::Frozen { request, calls, objects, numbers, states, copies } => self.frozen(Lifecycle::Frozen {
                request: *request,
                calls: calls.to_vec(),
                objects: objects.to_vec(),
                numbers: *numbers,
                states: *states,
                copies: copies.to_vec(),
            }),
            ToHost::Adopted { objects } => self.reached(Lifecycle::Adopted(*objects)),
            // From a generation that does not serve, this does not count: it must say it again when it serves.
            ToHost::Yielded { perspective } if self.phase() == Phase::Serving => self.elsewhere.yielded(perspective),
            ToHost::Regained { perspective } if self.phase() == Phase::Serving => self.elsewhere.regained(perspective),
            ToHost::Unreadable { perspective, message } => {
                self.report.cannot_read(self.name(), perspective, message);
            }
            ToHost::Stopped {} => {
                self.ended(true);
                self.reached(Lifecycle::Stopped);
            }
            ToHost::Sync { request } => self.send(&ToLibrary::Committed { request: *request }),
            // Saves were taken out before. The rest concerns doors; a newer library may say more.
            _ => self.doors.said(self.speaker(), frame),
        }
    }

    /// Hands a frame to the connection whose number is in `number`. If it does not arrive, the library gets the objects in the
    /// frame back.
    fn deliver(
        &self,
        delivery: &mut Delivery<'_>,
        number: u64,
        raw: &[u8],
        objects: &[u8],
        weight: Weight,
    ) -> Delivered {
        let delivered = delivery.deliver(number, self.tag(), raw, weight);
        if delivered != Delivered::Yes {
            self.give_back(number, objects);
        }
        delivered
    }

    /// If an answer exceeds what may be kept for its client, an error is sent in its place.
    fn answered(&self, delivery: &mut Delivery<'_>, delivered: Delivered, call: u64, size: usize) {
        if delivered != Delivered::Over {
            return;
        }
        let message = format!(
            "the answer has {size} bytes, and too much output for this client waits already: read answers, then call again"
        );
        let mut failed = Vec::new();
        ToHost::Failed { call, class: "MemoryError", message: &message, fault: false, detail: &[] }.write(&mut failed);
        delivery.deliver(call, self.tag(), &failed, Weight::Must);
    }

    /// Returns the objects of a value that reaches nobody: they were counted as handed out to the connection of this number.
    fn give_back(&self, had: u64, objects: &[u8]) {
        for object in frame::numbers(objects) {
            self.send(&ToLibrary::Dropped { object, count: 1, had });
        }
    }
}

impl Outlet for Outgoing {
    fn frames(&self, frames: &[u8]) {
        // A secret comes alone, waits for nothing, and is stored nowhere.
        if let Some(secret @ ToHost::Authenticate { .. }) = ToHost::read(&mut &*frames) {
            return self.doors.said(self.speaker(), &secret);
        }
        let mut queue = self.queue.lock();
        let phase = self.phase();
        if phase.is_over() {
            // A generation that was given up and came back after all. Another may already serve, with newer states.
            return;
        }
        if queue.passes(phase, frames) {
            return self.release(frames, &mut Delivery::new(&self.router));
        }
        let effects = queue.said(phase, self.name(), frames);
        let commit = self.perform(effects);
        self.unwritten.store(queue.unwritten(), Ordering::Relaxed);
        drop(queue);
        self.commit(commit);
    }

    fn most_waiting(&self) -> GateLimits {
        self.limits.gate()
    }

    fn worker_limits(&self) -> WorkerLimits {
        self.limits.worker()
    }

    fn is_full(&self) -> bool {
        self.unwritten.load(Ordering::Relaxed) > self.limits.uncommitted() && !self.is_over()
    }

    fn crashed(&self, how: &str, at: &[u64]) {
        let crash = Crash { how: how.to_owned(), at: at.to_vec() };
        self.replay.give_up();
        let mut crashing = self.crashing.lock();
        if let (Some(sees_to), Phase::Serving) = (&crashing.sees_to, self.phase()) {
            return sees_to(crash);
        }
        // It does not serve yet: whoever waits for its start is told; and its slot, if it comes to serve all the same.
        crashing.crash = Some(crash);
        self.reached(Lifecycle::Refused(format!("its process {how}")));
    }

    fn log(&self, level: u8, target: &str, text: &str) {
        self.report.log(self.name(), level, target, text);
    }
}

#[cfg(test)]
mod tests;
