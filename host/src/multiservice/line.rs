//! What a generation says, on its way out: changes are committed before anything that follows them is told.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::Mutex;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use tokio::sync::mpsc;

use super::switchboard::{Delivery, Switchboard};
use crate::loader::gate::Outlet;
use crate::loader::generation::Generation;
use crate::store::{Change, Store, StoreError};

/// What the slot waits for while its generation starts or stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Manifest(Vec<u8>),
    Initialised,
    Started,
    Healthy(u64),
    Refused(String),
    Stopped,
}

/// Lines that a service may have in the log, per second; more are counted only.
const LOG_LIMIT: u64 = 200;

/// One generation's way out.
pub(super) struct Line {
    pub(super) slot: u64,
    pub(super) name: OnceLock<String>,
    pub(super) generation: OnceLock<Weak<Generation>>,
    pub(super) faults: AtomicU64,
    stages: mpsc::UnboundedSender<Stage>,
    switchboard: Arc<Switchboard>,
    store: Arc<dyn Store>,
    held: Mutex<VecDeque<Batch>>,
    me: Weak<Line>,
    logged: Mutex<(u64, u64)>,
    over: AtomicBool,
    started: std::time::Instant,
}

/// Frames that wait for a commit.
struct Batch {
    number: u64,
    frames: Vec<u8>,
    changed: Vec<String>,
    done: Option<Result<(), StoreError>>,
}

impl Line {
    pub(super) fn new(
        slot: u64,
        switchboard: Arc<Switchboard>,
        store: Arc<dyn Store>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Stage>) {
        let (stages, receiver) = mpsc::unbounded_channel();
        let line = Arc::new_cyclic(|me| Self {
            slot,
            name: OnceLock::new(),
            generation: OnceLock::new(),
            faults: AtomicU64::new(0),
            stages,
            switchboard,
            store,
            held: Mutex::default(),
            me: Weak::clone(me),
            logged: Mutex::new((0, 0)),
            over: AtomicBool::new(false),
            started: std::time::Instant::now(),
        });
        (line, receiver)
    }

    /// Hands over what the generation waits for while it ends.
    pub(super) fn hand_over(&self, frames: &[u8]) {
        if let Some(generation) = self.generation.get().and_then(Weak::upgrade) {
            generation.push_anyway(frames);
        }
    }

    /// The generation has ended: who waits for it is told, once.
    pub(super) fn over(&self) {
        if !self.over.swap(true, Ordering::SeqCst) {
            let mut frame = Vec::new();
            ToHost::Stopped {}.write(&mut frame);
            self.switchboard.broadcast(self.slot, &frame);
        }
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    fn name(&self) -> &str {
        self.name.get().map_or("?", String::as_str)
    }

    fn tell(&self, frame: &ToLibrary<'_>) {
        if let Some(generation) = self.generation.get().and_then(Weak::upgrade) {
            generation.tell(frame);
        }
    }

    fn stage(&self, stage: Stage) {
        // Nobody waits once the slot has gone.
        let _ = self.stages.send(stage);
    }

    /// One frame that waits for nothing any more.
    fn out(&self, frame: &ToHost<'_>, raw: &[u8], delivery: &mut Delivery<'_>) {
        match frame {
            ToHost::Answer { call, value } => {
                let delivered = delivery.deliver(*call, self.slot, raw);
                if !delivered {
                    self.unsent(value);
                }
            }
            ToHost::Attached { attachment: number } | ToHost::Update { attachment: number, .. } => {
                delivery.deliver(*number, self.slot, raw);
            }
            ToHost::Failed { call, fault, message, .. } => {
                if *fault {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(service = self.name(), "a call panicked: {message}");
                }
                delivery.deliver(*call, self.slot, raw);
            }
            ToHost::Call { call, handle, answer, .. } => {
                let delivered = delivery.deliver(*handle, self.slot, raw);
                if *answer && !delivered {
                    let (class, message) = ("twisted.spread.pb.PBConnectionLost", "the client has gone");
                    self.tell(&ToLibrary::Failed { call: *call, class, message });
                }
            }
            ToHost::Release { handle, .. } => {
                delivery.deliver(*handle, self.slot, raw);
            }
            ToHost::Load { request, perspective } => self.load(*request, perspective),
            ToHost::Manifest { manifest } => self.stage(Stage::Manifest(manifest.to_vec())),
            ToHost::Initialised {} => self.stage(Stage::Initialised),
            ToHost::Started {} => self.stage(Stage::Started),
            ToHost::Healthy { request } => self.stage(Stage::Healthy(*request)),
            ToHost::Refused { message } => self.stage(Stage::Refused((*message).to_owned())),
            ToHost::Stopped {} => {
                self.over();
                self.stage(Stage::Stopped);
            }
            // Saves are taken out before. A call that was given up is not called back: its answer finds nobody.
            // A newer library may say more.
            _ => {}
        }
    }

    /// A value that goes to nobody: the objects in it were counted as handed out.
    fn unsent(&self, value: &[u8]) {
        let mut scanner = jelly::Scanner::new(jelly::Shape::Value, jelly::Limits::default());
        let Ok(Some(scanned)) = scanner.scan(value) else { return };
        for reference in scanned.references.iter().filter(|reference| reference.kind == jelly::RefKind::Remote) {
            if let Some(object) = reference.luid.filter(|luid| luid >> 32 == 0) {
                self.tell(&ToLibrary::Dropped { object, count: 1 });
            }
        }
    }

    fn load(&self, request: u64, perspective: &str) {
        let me = Weak::clone(&self.me);
        let done = Box::new(move |state: Result<Option<Vec<u8>>, StoreError>| {
            let Some(me) = me.upgrade() else { return };
            match state {
                Ok(state) => me.tell(&ToLibrary::Loaded { request, state: state.as_deref() }),
                Err(error) => me.tell(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.store.load(self.name(), perspective, done);
    }

    /// A commit is done: what waited for it and for all before it leaves.
    fn committed(&self, number: u64, result: Result<(), StoreError>) {
        let mut held = self.held.lock();
        if let Some(batch) = held.iter_mut().find(|batch| batch.number == number) {
            batch.done = Some(result);
        }
        let mut delivery = Delivery::new(&self.switchboard);
        while held.front().is_some_and(|batch| batch.done.is_some()) {
            let Some(batch) = held.pop_front() else { break };
            match &batch.done {
                Some(Err(error)) => self.undo(&batch, error, &mut delivery),
                _ => self.release(&batch.frames, &mut delivery),
            }
        }
    }

    fn release(&self, mut frames: &[u8], delivery: &mut Delivery<'_>) {
        while let Some((frame, raw)) = next(&mut frames) {
            self.out(&frame, raw, delivery);
        }
    }

    /// Nothing of a batch that was not committed is told: its answers become errors, and the service goes back.
    fn undo(&self, batch: &Batch, error: &StoreError, delivery: &mut Delivery<'_>) {
        tracing::error!(service = self.name(), %error, "changes could not be saved; they are undone");
        let mut frames = batch.frames.as_slice();
        while let Some((frame, raw)) = next(&mut frames) {
            match frame {
                ToHost::Answer { call, value } => {
                    self.unsent(value);
                    let mut failed = Vec::new();
                    let (class, message) = ("RuntimeError", "the change could not be saved, and is undone");
                    ToHost::Failed { call, class, message, fault: false }.write(&mut failed);
                    delivery.deliver(call, self.slot, &failed);
                }
                ToHost::Call { call, answer, .. } => {
                    if answer {
                        let (class, message) = ("RuntimeError", "a change before it could not be saved");
                        self.tell(&ToLibrary::Failed { call, class, message });
                    }
                }
                // What was to be told of has not come to pass.
                ToHost::Update { .. } => {}
                other => self.out(&other, raw, delivery),
            }
        }
        for perspective in &batch.changed {
            let me = Weak::clone(&self.me);
            let of = perspective.clone();
            let done = Box::new(move |state: Result<Option<Vec<u8>>, StoreError>| {
                if let (Some(me), Ok(state)) = (me.upgrade(), state) {
                    me.tell(&ToLibrary::Revert { perspective: &of, state: state.as_deref() });
                }
            });
            self.store.load(self.name(), perspective, done);
        }
    }
}

fn has_changes(mut frames: &[u8]) -> bool {
    while let Some(frame) = ToHost::read(&mut frames) {
        if matches!(frame, ToHost::Save { .. }) {
            return true;
        }
    }
    false
}

fn next<'a>(frames: &mut &'a [u8]) -> Option<(ToHost<'a>, &'a [u8])> {
    let before = *frames;
    let frame = ToHost::read(frames)?;
    Some((frame, &before[..before.len() - frames.len()]))
}

impl Outlet for Line {
    fn frames(&self, mut frames: &[u8]) {
        if self.is_over() {
            // One that was given up and came back after all: another may serve by now, with newer states.
            return;
        }
        let mut changes = Vec::new();
        let mut waiting = Vec::new();
        // A change and what is told of it come in one batch, in whatever order: all of a batch waits for its changes.
        let mut must_wait = !self.held.lock().is_empty() || has_changes(frames);
        let mut delivery = Delivery::new(&self.switchboard);
        while let Some((frame, raw)) = next(&mut frames) {
            if let ToHost::Save { perspective, state } = frame {
                must_wait = true;
                changes.retain(|change: &Change| change.perspective != perspective);
                changes.push(Change {
                    service: self.name().to_owned(),
                    perspective: perspective.to_owned(),
                    state: state.to_vec(),
                });
            } else if must_wait {
                waiting.extend_from_slice(raw);
            } else {
                self.out(&frame, raw, &mut delivery);
            }
        }
        drop(delivery);
        if !must_wait {
            return;
        }
        let number = {
            let mut held = self.held.lock();
            let number = held.back().map_or(0, |batch| batch.number + 1);
            let changed = changes.iter().map(|change| change.perspective.clone()).collect();
            held.push_back(Batch { number, frames: waiting, changed, done: None });
            number
        };
        let me = Weak::clone(&self.me);
        self.store.commit(
            changes,
            Box::new(move |result| {
                if let Some(me) = me.upgrade() {
                    me.committed(number, result);
                }
            }),
        );
    }

    fn log(&self, level: u8, target: &str, text: &str) {
        let now = self.started.elapsed().as_secs();
        {
            let mut logged = self.logged.lock();
            if logged.0 != now {
                let dropped = logged.1.saturating_sub(LOG_LIMIT);
                if dropped > 0 {
                    tracing::warn!(service = self.name(), "{dropped} lines of the log were dropped within a second");
                }
                *logged = (now, 0);
            }
            logged.1 += 1;
            if logged.1 > LOG_LIMIT {
                return;
            }
        }
        let service = self.name();
        // What a library says must not break the terminal or fake a line of ours.
        let text: String = text.chars().take(2_000).map(|c| if c.is_control() { ' ' } else { c }).collect();
        match level {
            1 => tracing::error!(service, module = target, "{text}"),
            2 => tracing::warn!(service, module = target, "{text}"),
            3 => tracing::info!(service, module = target, "{text}"),
            4 => tracing::debug!(service, module = target, "{text}"),
            _ => tracing::trace!(service, module = target, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Done, MemoryStore};

    /// Commits when it is told to.
    #[derive(Default)]
    struct Slow {
        memory: MemoryStore,
        waiting: Mutex<Vec<Done<()>>>,
    }

    impl Store for Slow {
        fn load(&self, service: &str, perspective: &str, done: Done<Option<Vec<u8>>>) {
            self.memory.load(service, perspective, done);
        }
        fn commit(&self, _changes: Vec<Change>, done: Done<()>) {
            self.waiting.lock().push(done);
        }
    }

    fn heard(mailbox: &super::super::switchboard::Mailbox) -> Vec<String> {
        let mut bytes = Vec::new();
        mailbox.take(&mut bytes);
        let mut rest = bytes.as_slice();
        let mut heard = Vec::new();
        while let Some((_, frame)) = rest.split_first_chunk::<8>() {
            rest = frame;
            heard.push(match ToHost::read(&mut rest) {
                Some(ToHost::Answer { call, .. }) => format!("answer {}", call as u32),
                Some(ToHost::Failed { call, message, .. }) => format!("failed {}: {message}", call as u32),
                other => format!("{other:?}"),
            });
        }
        heard
    }

    fn say(line: &Line, frames: &[ToHost<'_>]) {
        let mut bytes = Vec::new();
        frames.iter().for_each(|frame| frame.write(&mut bytes));
        line.frames(&bytes);
    }

    #[test]
    fn nothing_that_follows_a_change_is_told_before_it_is_committed() {
        let (switchboard, store) = (Switchboard::new(), Arc::new(Slow::default()));
        let (number, mailbox) = switchboard.connect();
        let call = |n: u64| u64::from(number) << 32 | n;
        let (line, _stages) = Line::new(1, switchboard, Arc::clone(&store) as Arc<dyn Store>);
        let answer = |n| ToHost::Answer { call: call(n), value: &[] };
        say(&line, &[answer(1), ToHost::Save { perspective: "a", state: &[1] }, answer(2)]);
        say(&line, &[answer(3)]);
        say(&line, &[ToHost::Save { perspective: "b", state: &[1] }, answer(4)]);
        assert!(heard(&mailbox).is_empty(), "what is told of a change may stand before it");
        let mut commits = std::mem::take(&mut *store.waiting.lock());
        let first = commits.remove(0);
        // A later commit alone frees nothing: order is kept.
        commits.drain(..).for_each(|done| done(Ok(())));
        assert!(heard(&mailbox).is_empty());
        first(Ok(()));
        assert_eq!(heard(&mailbox), ["answer 1", "answer 2", "answer 3", "answer 4"]);
    }

    #[test]
    fn what_cannot_be_committed_is_an_error_to_its_caller_and_to_nobody_else() {
        let (switchboard, store) = (Switchboard::new(), Arc::new(Slow::default()));
        let (number, mailbox) = switchboard.connect();
        let call = |n: u64| u64::from(number) << 32 | n;
        let (line, _stages) = Line::new(1, switchboard, Arc::clone(&store) as Arc<dyn Store>);
        say(&line, &[ToHost::Save { perspective: "a", state: &[1] }, ToHost::Answer { call: call(1), value: &[] }]);
        let done = store.waiting.lock().remove(0);
        done(Err(StoreError("the disk is full".to_owned())));
        assert_eq!(heard(&mailbox), ["failed 1: the change could not be saved, and is undone"]);
        say(&line, &[ToHost::Answer { call: call(2), value: &[] }]);
        assert_eq!(heard(&mailbox), ["answer 2"]);
    }
}
