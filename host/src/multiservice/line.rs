//! What a generation says, on its way out: changes are committed before anything that follows them is told.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use parking_lot::{Mutex, MutexGuard};
use plugin_api::abi::frame::{self, ToHost, ToLibrary};
use tokio::sync::{Notify, mpsc};

use super::backend::SlotNo;
use super::slot::Surroundings;
use super::switchboard::{Delivery, Switchboard};
use crate::loader::gate::Outlet;
use crate::loader::generation::Generation;
use crate::store::{Change, Entries, Range, Saved, Store, StoreError, Write, ask};

/// What the slot waits for while its generation starts or stops.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Stage {
    Manifest(Vec<u8>),
    Initialised,
    Started,
    Healthy(u64),
    Refused(String),
    Frozen { request: u64, calls: Vec<u8>, objects: Vec<u8>, numbers: u64, states: u64 },
    Adopted(u64),
    Stopped,
}

/// How many perspectives with unreadable states are remembered.
const UNREADABLE: usize = 100;

/// How long clients that are handed over are waited for, before it is said how that went.
const REPLAY: std::time::Duration = std::time::Duration::from_secs(2);

/// When a store that could not be read is asked again.
const AGAIN: std::time::Duration = std::time::Duration::from_secs(1);
/// Lines that a service may have in the log, per second; more are counted only.
const LOG_LIMIT: u64 = 200;

/// One generation's way out.
pub(super) struct Line {
    slot: SlotNo,
    /// The generation's.
    pub(super) number: u32,
    pub(super) name: OnceLock<String>,
    pub(super) generation: OnceLock<Weak<Generation>>,
    faults: Arc<AtomicU64>,
    /// Whether this generation is the one that serves: its end is its clients' end.
    serving: AtomicBool,
    /// Its successor serves.
    retired: AtomicBool,
    unreadable: Mutex<BTreeMap<String, String>>,
    writing: Mutex<Writing>,
    replay: Mutex<Replay>,
    /// The last of those was attached, or refused.
    replayed: Notify,
    /// Where it panicked last, if it has said so: told with what it refuses.
    panicked: Mutex<Option<String>>,
    stages: mpsc::UnboundedSender<Stage>,
    switchboard: Arc<Switchboard>,
    store: Arc<dyn Store>,
    quota: usize,
    way: Mutex<Way>,
    me: Weak<Line>,
    logged: Mutex<(u64, u64)>,
    over: AtomicBool,
    started: std::time::Instant,
}

/// Data of the service's that is being written, and who waits for that.
#[derive(Default)]
struct Writing {
    pending: usize,
    frozen: Option<Stage>,
}

/// Attachments that were there before this generation, and how it took them.
#[derive(Default)]
struct Replay {
    waiting: HashSet<u64>,
    refused: usize,
}

/// What is on its way.
#[derive(Default)]
struct Way {
    /// It serves nobody yet: what it wants to be kept or told waits until it does.
    embargo: bool,
    /// It never will: what it wants to be kept or told is refused.
    abandoned: bool,
    /// What is being committed.
    committing: Option<Batch>,
    /// What has come meanwhile: committed next, together.
    waiting: Batch,
    /// How many perspectives have not gone back yet to what was committed last.
    reverting: usize,
}

/// Frames, and the changes that they wait for.
#[derive(Default)]
struct Batch {
    frames: Vec<u8>,
    changes: Vec<Change>,
    /// The perspectives of the changes, once these are handed to the store.
    changed: Vec<String>,
}

impl Batch {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.changes.is_empty()
    }

    fn changed(&self, perspective: &str) -> Option<&Change> {
        self.changes.iter().find(|change| change.perspective == perspective)
    }

    /// One more change; of several of one perspective, the last counts.
    fn change(&mut self, service: &str, perspective: &str, state: &[u8], base: u64, version: u64) {
        if let Some(earlier) = self.changes.iter_mut().find(|change| change.perspective == perspective) {
            earlier.state.clear();
            earlier.state.extend_from_slice(state);
            earlier.version = version;
            return;
        }
        self.changes.push(Change {
            service: service.to_owned(),
            perspective: perspective.to_owned(),
            state: state.to_vec(),
            base,
            version,
        });
    }
}

impl Line {
    /// The way out of this generation of this slot. One that does not serve yet keeps back what changes anything, until
    /// [`Line::serve`].
    pub(super) fn new(
        slot: SlotNo,
        number: u32,
        serving: bool,
        surroundings: &Surroundings,
        faults: &Arc<AtomicU64>,
    ) -> (Arc<Self>, mpsc::UnboundedReceiver<Stage>) {
        let (stages, receiver) = mpsc::unbounded_channel();
        let line = Arc::new_cyclic(|me| Self {
            slot,
            number,
            name: OnceLock::new(),
            generation: OnceLock::new(),
            faults: Arc::clone(faults),
            serving: AtomicBool::new(serving),
            retired: AtomicBool::new(false),
            unreadable: Mutex::default(),
            writing: Mutex::default(),
            replay: Mutex::default(),
            replayed: Notify::new(),
            panicked: Mutex::default(),
            stages,
            switchboard: Arc::clone(&surroundings.switchboard),
            store: Arc::clone(&surroundings.store),
            quota: surroundings.quota,
            way: Mutex::new(Way { embargo: !serving, ..Way::default() }),
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
        if !self.over.swap(true, Ordering::SeqCst) && self.serving.load(Ordering::SeqCst) {
            self.tell_end();
        }
    }

    fn tell_end(&self) {
        let mut frame = Vec::new();
        ToHost::Stopped {}.write(&mut frame);
        self.switchboard.broadcast(self.tag(), &frame);
    }

    /// From whom what is delivered comes: the slot, and above it the generation.
    pub(super) fn tag(&self) -> u64 {
        u64::from(self.slot.0) | u64::from(self.number) << 32
    }

    /// It serves from now on: what was kept back is committed, and told.
    pub(super) fn serve(&self) {
        self.serving.store(true, Ordering::SeqCst);
        if self.is_over() {
            // It has ended by itself just before: nobody was told yet.
            self.tell_end();
        }
        let mut way = self.way.lock();
        way.embargo = false;
        self.go_on(way);
    }

    /// It ends. If it has not come to serve, what it wanted to be kept or told never will be: who waits for that inside
    /// goes on to its end.
    pub(super) fn abandon(&self) {
        let mut way = self.way.lock();
        if !way.embargo {
            return;
        }
        way.abandoned = true;
        let kept = std::mem::take(&mut way.waiting);
        let mut frames = kept.frames.as_slice();
        while let Some((frame, _)) = next(&mut frames) {
            self.refuse(&frame);
        }
    }

    /// What a generation that never came to serve asks for.
    fn refuse(&self, frame: &ToHost<'_>) {
        let message = "this code did not come to serve";
        match *frame {
            ToHost::Write { request, .. } => self.tell(&ToLibrary::NotLoaded { request, message }),
            ToHost::Call { call, answer: true, .. } => {
                self.tell(&ToLibrary::Failed { call, class: "credhost.Reloaded", message });
            }
            _ => {}
        }
    }

    /// Its successor serves: what it says of calls that wait is told, and nothing of it is saved any more.
    pub(super) fn retire(&self) {
        self.retired.store(true, Ordering::SeqCst);
        self.serving.store(false, Ordering::SeqCst);
    }

    /// What comes now is of what it is asked now: an earlier panic has nothing to do with it.
    pub(super) fn forget_panic(&self) {
        *self.panicked.lock() = None;
    }

    /// These attachments are told to it anew.
    pub(super) fn expect(&self, attachments: impl Iterator<Item = u64>) {
        self.replay.lock().waiting.extend(attachments);
    }

    /// Waits until it has taken all of them, or refused them; not for long. Answers with how many it has refused.
    pub(super) async fn replayed(&self) -> usize {
        let all = async {
            loop {
                let replayed = self.replayed.notified();
                if self.replay.lock().waiting.is_empty() {
                    return;
                }
                replayed.await;
            }
        };
        // One that waits for something is attached later, or is not.
        let _ = tokio::time::timeout(REPLAY, all).await;
        self.replay.lock().refused
    }

    /// It has taken an attachment, or refused it.
    fn took(&self, attachment: u64, refused: bool) {
        let mut replay = self.replay.lock();
        if replay.waiting.remove(&attachment) {
            replay.refused += usize::from(refused);
            if replay.waiting.is_empty() {
                self.replayed.notify_one();
            }
        }
    }

    /// The perspectives whose states it could not read, and why.
    pub(super) fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.lock().iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// The service's own saved state.
    pub(super) async fn saved(&self) -> Result<Option<Saved>, String> {
        ask(|done| self.store.state(self.name(), "", done)).await.map_err(|error| error.to_string())
    }

    pub(super) fn is_over(&self) -> bool {
        self.over.load(Ordering::SeqCst)
    }

    pub(super) fn name(&self) -> &str {
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
            ToHost::Answer { call, objects, .. } => {
                if !delivery.deliver(*call, self.tag(), raw) {
                    self.give_back(objects);
                }
            }
            ToHost::Attached { attachment } => {
                self.took(*attachment, false);
                delivery.deliver(*attachment, self.tag(), raw);
            }
            ToHost::Update { attachment: number, objects, .. } => {
                if !delivery.deliver(*number, self.tag(), raw) {
                    self.give_back(objects);
                }
            }
            ToHost::Failed { call, fault, message, .. } => {
                if *fault {
                    self.faults.fetch_add(1, Ordering::Relaxed);
                    tracing::error!(service = self.name(), "a call panicked: {message}");
                }
                self.took(*call, true);
                delivery.deliver(*call, self.tag(), raw);
            }
            ToHost::Call { call, handle, answer, objects, .. } => {
                if !delivery.deliver(*handle, self.tag(), raw) {
                    self.give_back(objects);
                    if *answer {
                        let (class, message) = ("twisted.spread.pb.PBConnectionLost", "the client has gone");
                        self.tell(&ToLibrary::Failed { call: *call, class, message });
                    }
                }
            }
            ToHost::Release { handle, .. } | ToHost::Forget { handle, .. } => {
                delivery.deliver(*handle, self.tag(), raw);
            }
            ToHost::Load { request, perspective } => self.load(*request, perspective),
            ToHost::Data { request, from, to, limit, reverse } => {
                let limit = usize::try_from(*limit).unwrap_or(usize::MAX);
                let (from, to) = (from.to_vec(), to.map(<[u8]>::to_vec));
                self.data(*request, &Range { from, to, limit, reverse: *reverse });
            }
            ToHost::Write { request, base, entries } => self.write(*request, *base, entries),
            ToHost::End { attachment } => {
                delivery.deliver(*attachment, self.tag(), raw);
            }
            ToHost::Manifest { manifest } => self.stage(Stage::Manifest(manifest.to_vec())),
            ToHost::Initialised {} => self.stage(Stage::Initialised),
            ToHost::Started {} => self.stage(Stage::Started),
            ToHost::Healthy { request } => self.stage(Stage::Healthy(*request)),
            ToHost::Refused { message } => self.stage(Stage::Refused(match self.panicked.lock().take() {
                Some(panicked) => format!("{message} ({panicked})"),
                None => (*message).to_owned(),
            })),
            ToHost::Frozen { request, calls, objects, numbers, states } => self.frozen(Stage::Frozen {
                request: *request,
                calls: calls.to_vec(),
                objects: objects.to_vec(),
                numbers: *numbers,
                states: *states,
            }),
            ToHost::Adopted { objects } => self.stage(Stage::Adopted(*objects)),
            ToHost::Unreadable { perspective, message } => {
                tracing::error!(
                    service = self.name(),
                    perspective,
                    "its saved state cannot be read, and stays as it is: {message}"
                );
                let mut unreadable = self.unreadable.lock();
                if unreadable.len() < UNREADABLE || unreadable.contains_key(*perspective) {
                    unreadable.insert((*perspective).to_owned(), (*message).to_owned());
                }
            }
            ToHost::Stopped {} => {
                self.over();
                self.stage(Stage::Stopped);
            }
            // Saves are taken out before.
            // A newer library may say more.
            _ => {}
        }
    }

    /// The objects of a value that goes to nobody: they were counted as handed out.
    fn give_back(&self, objects: &[u8]) {
        for object in frame::numbers(objects) {
            self.tell(&ToLibrary::Dropped { object, count: 1 });
        }
    }

    fn load(&self, request: u64, perspective: &str) {
        let me = Weak::clone(&self.me);
        let done = Box::new(move |saved: Result<Option<Saved>, StoreError>| {
            let Some(me) = me.upgrade() else { return };
            match saved {
                Ok(saved) => {
                    let version = saved.as_ref().map_or(0, |saved| saved.version);
                    let state = saved.as_ref().map(|saved| saved.state.as_slice());
                    me.tell(&ToLibrary::Loaded { request, state, version });
                }
                Err(error) => me.tell(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.store.state(self.name(), perspective, done);
    }

    fn data(&self, request: u64, range: &Range) {
        let me = Weak::clone(&self.me);
        let done = Box::new(move |found: Result<Entries, StoreError>| {
            let Some(me) = me.upgrade() else { return };
            match found {
                Ok(Entries { entries: found, more, version }) => {
                    let mut entries = Vec::new();
                    for (key, value) in &found {
                        frame::put_entry(&mut entries, key, Some(value));
                    }
                    me.tell(&ToLibrary::Entries { request, entries: &entries, more, version });
                }
                Err(error) => me.tell(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.store.data(self.name(), range, done);
    }

    /// It stands still. What it has given to the store to write is to be there first.
    fn frozen(&self, stage: Stage) {
        let mut writing = self.writing.lock();
        if writing.pending == 0 {
            drop(writing);
            self.stage(stage);
        } else {
            writing.frozen = Some(stage);
        }
    }

    fn written(&self) {
        let mut writing = self.writing.lock();
        writing.pending -= 1;
        if writing.pending == 0
            && let Some(stage) = writing.frozen.take()
        {
            drop(writing);
            self.stage(stage);
        }
    }

    fn write(&self, request: u64, base: u64, entries: &[u8]) {
        let entries = frame::entries(entries).map(|(key, value)| (key.to_vec(), value.map(<[u8]>::to_vec))).collect();
        let me = Weak::clone(&self.me);
        let done = Box::new(move |written: Result<(), StoreError>| {
            let Some(me) = me.upgrade() else { return };
            me.written();
            match written {
                Ok(()) => me.tell(&ToLibrary::Committed { request }),
                Err(error) => me.tell(&ToLibrary::NotLoaded { request, message: &error.to_string() }),
            }
        });
        self.writing.lock().pending += 1;
        self.store.commit(vec![Write::Data { service: self.name().to_owned(), base, entries }], done);
    }

    /// A commit is done: what waited for it leaves, and what has come meanwhile is committed next.
    fn committed(&self, result: Result<(), StoreError>) {
        let mut way = self.way.lock();
        let Some(batch) = way.committing.take() else { return };
        let mut delivery = Delivery::new(&self.switchboard);
        match result {
            Ok(()) => self.release(&batch.frames, &mut delivery),
            Err(error) => {
                // What has come since was made from what is undone now, or tells of it.
                let later = std::mem::take(&mut way.waiting);
                tracing::error!(service = self.name(), %error, "changes could not be saved; they are undone");
                self.undo(&mut way, batch, &mut delivery);
                self.undo(&mut way, later, &mut delivery);
            }
        }
        drop(delivery);
        self.go_on(way);
    }

    /// Commits what waits, if nothing is being committed.
    fn go_on(&self, mut way: MutexGuard<'_, Way>) {
        if way.embargo || way.committing.is_some() || way.waiting.is_empty() {
            return;
        }
        let mut batch = std::mem::take(&mut way.waiting);
        if batch.changes.is_empty() {
            self.release(&batch.frames, &mut Delivery::new(&self.switchboard));
            return;
        }
        let changes = std::mem::take(&mut batch.changes);
        batch.changed = changes.iter().map(|change| change.perspective.clone()).collect();
        way.committing = Some(batch);
        drop(way);
        let me = Weak::clone(&self.me);
        let done = move |result| {
            if let Some(me) = me.upgrade() {
                me.committed(result);
            }
        };
        if let Some(large) = changes.iter().find(|change| change.state.len() > self.quota) {
            let why = format!("the state of {} has {} bytes", large.perspective, large.state.len());
            return done(Err(StoreError::Failed(why)));
        }
        self.store.commit(changes.into_iter().map(Write::State).collect(), Box::new(done));
    }

    fn release(&self, mut frames: &[u8], delivery: &mut Delivery<'_>) {
        while let Some((frame, raw)) = next(&mut frames) {
            self.out(&frame, raw, delivery);
        }
    }

    /// Nothing of a batch that was not committed is told: its answers become errors, and the service goes back.
    fn undo(&self, way: &mut Way, batch: Batch, delivery: &mut Delivery<'_>) {
        let mut frames = batch.frames.as_slice();
        while let Some((frame, raw)) = next(&mut frames) {
            self.undo_one(&frame, raw, delivery);
        }
        let later = batch.changes.into_iter().map(|change| change.perspective);
        for perspective in batch.changed.into_iter().chain(later) {
            way.reverting += 1;
            self.revert(perspective, 0);
        }
    }

    fn undo_one(&self, frame: &ToHost<'_>, raw: &[u8], delivery: &mut Delivery<'_>) {
        match *frame {
            ToHost::Answer { call, objects, .. } => {
                self.give_back(objects);
                let mut failed = Vec::new();
                let (class, message) = ("RuntimeError", "the change could not be saved, and is undone");
                ToHost::Failed { call, class, message, fault: false }.write(&mut failed);
                delivery.deliver(call, self.tag(), &failed);
            }
            ToHost::Call { call, answer, objects, .. } => {
                self.give_back(objects);
                if answer {
                    let (class, message) = ("RuntimeError", "a change before it could not be saved");
                    self.tell(&ToLibrary::Failed { call, class, message });
                }
            }
            // What was to be told of has not come to pass.
            ToHost::Update { objects, .. } => self.give_back(objects),
            ToHost::Frozen { .. } => {
                let why = "the code that serves could not save its changes; it goes back to what is saved";
                self.stage(Stage::Refused(why.to_owned()));
            }
            _ => self.out(frame, raw, delivery),
        }
    }

    /// Tells the service what a perspective's state is again; later, if the store cannot say just now.
    fn revert(&self, perspective: String, tries: u32) {
        let me = Weak::clone(&self.me);
        let of = perspective.clone();
        let done = Box::new(move |state: Result<Option<Saved>, StoreError>| {
            let Some(me) = me.upgrade().filter(|me| !me.is_over()) else { return };
            match state {
                Ok(saved) => {
                    let version = saved.as_ref().map_or(0, |saved| saved.version);
                    let state = saved.as_ref().map(|saved| saved.state.as_slice());
                    me.tell(&ToLibrary::Revert { perspective: &of, state, version });
                }
                Err(error) => {
                    if tries == 0 {
                        tracing::error!(service = me.name(), %error, "the service waits for the store");
                    }
                    // The service tells nobody anything until then: it cannot know what it should be.
                    let waiting = std::thread::Builder::new().name("store-again".to_owned()).spawn(move || {
                        std::thread::sleep(AGAIN);
                        me.revert(of, tries + 1);
                    });
                    if let Err(error) = waiting {
                        tracing::error!(%error, "a service cannot go back to its last commit; restart the host");
                    }
                }
            }
        });
        self.store.state(self.name(), &perspective, done);
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
        let mut way = self.way.lock();
        let mut delivery = Delivery::new(&self.switchboard);
        if way.embargo {
            while let Some((frame, raw)) = next(&mut frames) {
                match frame {
                    ToHost::Save { perspective, state, base, version } => {
                        way.waiting.change(self.name(), perspective, state, base, version);
                    }
                    ToHost::Write { .. } | ToHost::Call { .. } if way.abandoned => self.refuse(&frame),
                    // What it has changed itself is not in the store yet.
                    ToHost::Load { request, perspective } => match way.waiting.changed(perspective) {
                        Some(change) => {
                            let (state, version) = (Some(change.state.as_slice()), change.version);
                            self.tell(&ToLibrary::Loaded { request, state, version });
                        }
                        None => self.load(request, perspective),
                    },
                    ToHost::Write { .. } | ToHost::Call { .. } => way.waiting.frames.extend_from_slice(raw),
                    // What it says of its start, and what it reads.
                    frame => self.out(&frame, raw, &mut delivery),
                }
            }
            return;
        }
        // Nothing that follows a failed commit counts until the service has gone back.
        while way.reverting > 0 {
            let Some((frame, raw)) = next(&mut frames) else { return };
            match frame {
                ToHost::Reverted {} => way.reverting -= 1,
                ToHost::Save { perspective, .. } => {
                    way.reverting += 1;
                    self.revert(perspective.to_owned(), 0);
                }
                frame => self.undo_one(&frame, raw, &mut delivery),
            }
        }
        // A change and what is told of it come in one batch, in whatever order: all of a batch waits for its changes.
        if way.committing.is_none() && !has_changes(frames) {
            return self.release(frames, &mut delivery);
        }
        drop(delivery);
        while let Some((frame, raw)) = next(&mut frames) {
            match frame {
                ToHost::Save { .. } if self.retired.load(Ordering::SeqCst) => {}
                ToHost::Save { perspective, state, base, version } => {
                    way.waiting.change(self.name(), perspective, state, base, version);
                }
                _ => way.waiting.frames.extend_from_slice(raw),
            }
        }
        self.go_on(way);
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
        let (service, generation) = (self.name(), self.number);
        // What a library says must not break the terminal or fake a line of ours.
        let text: String = text.chars().take(2_000).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if target == "panic" {
            *self.panicked.lock() = Some(text.chars().take(500).collect());
        }
        match level {
            1 => tracing::error!(service, generation, module = target, "{text}"),
            2 => tracing::warn!(service, generation, module = target, "{text}"),
            3 => tracing::info!(service, generation, module = target, "{text}"),
            4 => tracing::debug!(service, generation, module = target, "{text}"),
            _ => tracing::trace!(service, generation, module = target, "{text}"),
        }
    }
}

#[cfg(test)]
mod tests;
