//! A service's name, and the generation that serves under it.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use plugin_api::abi::frame::ToLibrary;
use plugin_api::manifest::Manifest;
use tokio::sync::{Mutex as AsyncMutex, Notify};

use super::backend::Backend;
use super::context::{HostContext, SlotNo};
use super::current::{AttachmentChange, Current, NotHanded};
use super::elsewhere::{Elsewhere, Visited};
use super::instance::{Instance, STOP};
use super::outgoing::Outgoing;
use super::recovery::{Crashes, Recovery};
use crate::cred::Name;
use crate::loader::fault::LibraryFault;
use crate::loader::gate::{Full, GateLimits, Lane, WaitingLane};
use crate::loader::generation::{Linked, Source};
use crate::loader::unload::UnloadOutcome;
use crate::loader::worker::Facts;
use crate::loader::worker::confinement::{Confinement, Isolation};

/// Whether a service serves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum ServiceState {
    /// It is loaded but not started yet.
    Loaded,
    /// It serves.
    Serving,
    /// It refused to start, or failed later; the reason.
    Failed(String),
    /// It was stopped.
    Stopped,
}

/// Another version of a service, which some identities try: see `trial.rs`.
#[derive(Debug)]
pub struct Trial {
    pub(super) identities: BTreeSet<String>,
    pub(super) file: String,
    /// A slot of its own, which only these identities find.
    pub(super) slot: Arc<Slot>,
}

/// A service under its name.
pub struct Slot {
    pub(super) number: SlotNo,
    pub(super) name: Name,
    pub(super) context: HostContext,
    manifest: RwLock<Arc<Manifest>>,
    pub(super) current: Current<Instance, WaitingLane>,
    /// The way out of the current generation.
    outgoing: RwLock<Arc<Outgoing>>,
    /// Replaced generations in which calls still wait.
    pub(super) retiring: Mutex<Vec<Arc<Instance>>>,
    pub(super) retired: Notify,
    generations: AtomicU32,
    state: Mutex<ServiceState>,
    /// Serializes starts, replacements and stops.
    pub(super) turn: AsyncMutex<()>,
    calls: AtomicU64,
    faults: Arc<AtomicU64>,
    /// Decides when a process that has died is restarted.
    pub(super) recovery: Mutex<Recovery>,
    pub(super) crashes: Mutex<Crashes>,
    /// How long the running code has not returned, and from which methods, if it is late.
    pub(super) late: Mutex<Option<String>>,
    /// Another version, which some identities try.
    pub(super) trial: RwLock<Option<Arc<Trial>>>,
    /// If this is such a version: the perspectives that clients have come to.
    pub(super) visited: Option<Arc<Visited>>,
    /// Serializes the ends of trials.
    pub(super) ending: AsyncMutex<()>,
    /// Which of this slot's perspectives such a version has.
    pub(super) elsewhere: Arc<Elsewhere>,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name.as_str()).finish_non_exhaustive()
    }
}

impl Slot {
    /// A service that is linked into this program, with an empty configuration.
    ///
    /// # Errors
    /// If it cannot be loaded.
    pub async fn linked<S: plugin_api::Service>(context: &HostContext) -> Result<Arc<Self>, LibraryFault> {
        Self::load(Source::Linked(Linked::new::<S>()), context, |_| Vec::new()).await
    }

    /// Loads a service. `config` returns the configuration section of this name, in Jelly.
    ///
    /// # Errors
    /// If it cannot be loaded; the error is one sentence.
    pub async fn load(
        source: Source,
        context: &HostContext,
        config: impl FnOnce(&str) -> Vec<u8>,
    ) -> Result<Arc<Self>, LibraryFault> {
        Ok(Arc::new(Self::loaded(source, context, config).await?))
    }

    /// As [`Slot::load`], for a slot that is changed before others have it.
    pub(super) async fn loaded(
        source: Source,
        context: &HostContext,
        config: impl FnOnce(&str) -> Vec<u8>,
    ) -> Result<Self, LibraryFault> {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let number = SlotNo(NEXT.fetch_add(1, Ordering::Relaxed));
        let (faults, elsewhere) = (Arc::default(), Arc::default());
        let (outgoing, steps) = Outgoing::new((number, 1), true, (context, &elsewhere), &faults);
        let instance = Instance::load(source, outgoing, steps, context, config).await?;
        Ok(Self {
            number,
            name: instance.name.clone(),
            context: context.clone(),
            manifest: RwLock::new(Arc::clone(&instance.manifest)),
            outgoing: RwLock::new(Arc::clone(&instance.outgoing)),
            current: Current::new(instance),
            retiring: Mutex::default(),
            retired: Notify::new(),
            generations: AtomicU32::new(1),
            state: Mutex::new(ServiceState::Loaded),
            turn: AsyncMutex::default(),
            calls: AtomicU64::new(0),
            faults,
            recovery: Mutex::default(),
            crashes: Mutex::default(),
            late: Mutex::default(),
            trial: RwLock::default(),
            visited: None,
            ending: AsyncMutex::default(),
            elsewhere,
        })
    }

    /// Loads another generation for this slot. It does not serve yet.
    pub(super) async fn load_next(
        &self,
        source: Source,
        config: impl FnOnce(&str) -> Vec<u8>,
    ) -> Result<Arc<Instance>, LibraryFault> {
        let number = self.generations.fetch_add(1, Ordering::Relaxed) + 1;
        let (outgoing, steps) =
            Outgoing::new((self.number, number), false, (&self.context, &self.elsewhere), &self.faults);
        // It has this name even if it never reports its own.
        let _ = outgoing.name.set(self.name.to_string());
        let instance = Instance::load(source, outgoing, steps, &self.context, config).await?;
        if instance.name.as_str() == self.name.as_str() {
            return Ok(instance);
        }
        let why = format!("it is the service {}, not {}", instance.name, self.name);
        instance.end().await;
        Err(LibraryFault::State(why))
    }

    /// This generation serves from now on.
    pub(super) fn serves(&self, instance: &Instance) {
        *self.manifest.write() = Arc::clone(&instance.manifest);
        *self.outgoing.write() = Arc::clone(&instance.outgoing);
    }

    /// Initialises the service, hands it its state, starts it, and checks its health.
    ///
    /// # Errors
    /// If it does not serve; it has then been ended.
    pub async fn start(self: &Arc<Self>) -> Result<(), LibraryFault> {
        let _turn = self.turn.lock().await;
        if *self.state.lock() != ServiceState::Loaded {
            return Err(LibraryFault::State(format!("{} was started already", self.name)));
        }
        let Some(instance) = self.current.get() else {
            return Err(LibraryFault::State(format!("{} has ended", self.name)));
        };
        let started = async {
            instance.init().await?;
            instance.start(None).await?;
            instance.health(None).await
        };
        match started.await {
            Ok(()) => {
                *self.state.lock() = ServiceState::Serving;
                self.watch(&instance);
                self.context.doors.serves(self.number, self.name.as_str(), instance.number);
                Ok(())
            }
            Err(why) => {
                *self.state.lock() = ServiceState::Failed(why.to_string());
                self.current.take();
                instance.end().await;
                instance.outgoing.over();
                Err(why)
            }
        }
    }

    /// Stops the service: it saves its state, its clients are notified, and its library is unloaded.
    pub async fn stop(&self) -> UnloadOutcome {
        let _turn = self.turn.lock().await;
        // It ends, so it need not read again what the trial has changed.
        self.trial_ends(Duration::ZERO).await;
        let Some(instance) = self.current.take() else {
            return UnloadOutcome::Nothing;
        };
        *self.state.lock() = ServiceState::Stopped;
        let account = instance.end().await;
        // If it ended in order, it has already said so itself, behind its last frames.
        instance.outgoing.over();
        drop(instance);
        // Generations that it has replaced end with it.
        self.hasten();
        let gone = async {
            loop {
                let retired = self.retired.notified();
                if self.retiring.lock().is_empty() {
                    return;
                }
                retired.await;
            }
        };
        // Each has its own end, and its own account.
        let _ = tokio::time::timeout(2 * STOP, gone).await;
        account
    }

    /// Stops replaced code: its calls have waited long enough.
    pub(super) fn hasten(&self) {
        for old in &*self.retiring.lock() {
            old.generation.send_last(&ToLibrary::Stop {});
        }
    }

    /// Hands frames to the service in order, with the changes of attachments that they cause. During a replacement they wait.
    ///
    /// # Errors
    /// If it does not serve or does not keep up; then nothing was handed over.
    pub fn submit(&self, lane: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>) -> Result<(), LibraryFault> {
        if *self.state.lock() == ServiceState::Loaded {
            return Err(LibraryFault::State(format!("{} is starting", self.name)));
        }
        if let Some(waits) = &self.crashes.lock().waits {
            return Err(LibraryFault::State(waits.clone()));
        }
        let visits = self.note_visits(changes);
        if let Some(why) = self.is_elsewhere(changes) {
            return Err(LibraryFault::State(why));
        }
        let waits = |own, all| WaitingLane::of(lane, frames.len(), (own, all), self.context.limits.gate());
        let handed = self.current.hand_over((lane.meter.owner(), frames), changes, waits, |instance| {
            if instance.outgoing.is_over() { Err(None) } else { instance.generation.push(lane, frames).map_err(Some) }
        });
        if handed.is_err() {
            self.undo_visits(&visits);
        }
        handed.map_err(|why| match why {
            NotHanded::Ended | NotHanded::Refused(None) => LibraryFault::State(format!("{} has stopped", self.name)),
            NotHanded::Refused(Some(full)) => LibraryFault::State(format!("{}: {full}", self.name)),
            NotHanded::Full => LibraryFault::State(format!("{}: {Full}", self.name)),
        })
    }

    /// Hands over frames that end something. They are accepted regardless of limits.
    pub(crate) fn submit_anyway(&self, lane: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>) {
        let waits = |_, _| WaitingLane::of(lane, frames.len(), (0, 0), GateLimits::NONE);
        let handed = self.current.hand_over((lane.meter.owner(), frames), changes, waits, |instance| {
            // A generation that has ended by itself reads no more: frames to it would only pile up.
            if !instance.outgoing.is_over() {
                instance.generation.push_anyway(lane, frames);
            }
            Ok::<(), ()>(())
        });
        if handed.is_err() {
            // Also to one that is ending: it may wait for exactly this. No client is attached to it any more.
            changes.clear();
            self.outgoing.read().hand_over(lane, frames);
        }
    }

    /// Hands an answer to the generation that asked. Returns false if that is gone.
    pub(crate) fn answer(&self, lane: &Lane, generation: u32, frames: &[u8]) -> bool {
        let asked = |instance: &Arc<Instance>| instance.number == generation;
        let old = || self.retiring.lock().iter().find(|instance| asked(instance)).cloned();
        match self.current.get().filter(asked).or_else(old) {
            Some(instance) if instance.outgoing.is_over() => false,
            Some(instance) => {
                instance.generation.push_anyway(lane, frames);
                true
            }
            None => {
                let outgoing = Arc::clone(&self.outgoing.read());
                let asked = outgoing.number == generation && !outgoing.is_over();
                if asked {
                    outgoing.hand_over(lane, frames);
                }
                asked
            }
        }
    }

    /// Sends a frame to replaced generations that still run.
    pub(crate) fn notify_retired(&self, frame: &ToLibrary<'_>) {
        for old in &*self.retiring.lock() {
            old.generation.send(frame);
        }
    }

    pub(super) fn set_state(&self, state: ServiceState) {
        *self.state.lock() = state;
    }

    /// The isolation of the running code, and what the system reports of its process, if it has one of its own.
    #[must_use]
    pub fn runs_in(&self) -> (Isolation, Option<Facts>) {
        let generation = self.current.get().map(|instance| Arc::clone(&instance.generation));
        let isolation =
            generation.as_ref().and_then(|generation| generation.worker()).map(|worker| worker.confinement.isolation);
        (isolation.unwrap_or_default(), generation.and_then(|generation| generation.facts()))
    }

    /// How the running code is confined, if it has a process of its own; otherwise the default.
    #[must_use]
    pub fn confinement(&self) -> Confinement {
        let generation = self.current.get().map(|instance| Arc::clone(&instance.generation));
        generation
            .and_then(|generation| generation.worker().map(|worker| worker.confinement.clone()))
            .unwrap_or_default()
    }

    /// The section of the configuration that the serving code was made with, in Jelly. `None`: nothing serves.
    #[must_use]
    pub fn config(&self) -> Option<Vec<u8>> {
        self.current.get().map(|instance| instance.config.clone())
    }

    /// Counts calls, for the operator.
    pub fn count_calls(&self, calls: u64) {
        self.calls.fetch_add(calls, Ordering::Relaxed);
    }

    /// How many calls it received.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls panicked.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.faults.load(Ordering::Relaxed)
    }

    /// The number of the generation that serves: the first is 1.
    #[must_use]
    pub fn generation(&self) -> u32 {
        self.outgoing.read().number
    }

    /// How many replaced generations still have calls that wait.
    #[must_use]
    pub fn retiring(&self) -> usize {
        self.retiring.lock().len()
    }

    /// The perspectives whose saved states the running code could not read, and why; at most a hundred.
    #[must_use]
    pub fn unreadable(&self) -> Vec<(String, String)> {
        self.outgoing.read().unreadable()
    }

    /// How many clients are attached.
    #[must_use]
    pub fn attached(&self) -> usize {
        self.current.attached()
    }

    /// A number that no other slot of this process has had.
    #[must_use]
    pub fn number(&self) -> SlotNo {
        self.number
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// Its manifest.
    #[must_use]
    pub fn manifest(&self) -> Arc<Manifest> {
        Arc::clone(&self.manifest.read())
    }

    /// Whether it serves.
    #[must_use]
    pub fn state(&self) -> ServiceState {
        match &*self.state.lock() {
            ServiceState::Serving if self.outgoing.read().is_over() => {
                ServiceState::Failed("it exited unexpectedly; `service start` restarts it".to_owned())
            }
            state => state.clone(),
        }
    }
}

impl Backend for Slot {
    fn number(&self) -> SlotNo {
        self.number
    }

    fn described(&self) -> Vec<u8> {
        // A manifest has only texts and flags: encoding it cannot fail.
        jelly::to_vec(&*self.manifest()).unwrap_or_default()
    }

    fn submit(
        &self,
        lane: &Lane,
        frames: &[u8],
        changes: &mut Vec<AttachmentChange>,
        calls: u64,
    ) -> Result<(), LibraryFault> {
        self.count_calls(calls);
        Self::submit(self, lane, frames, changes)
    }

    fn submit_anyway(&self, lane: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>) {
        Self::submit_anyway(self, lane, frames, changes);
    }

    fn answer(&self, lane: &Lane, generation: u32, frames: &[u8]) -> bool {
        Self::answer(self, lane, generation, frames)
    }

    fn revoke(&self, attachments: &[u64]) {
        let told = self.current.revoke(attachments, |instance, barred| instance.revoke(attachments, barred));
        if !told {
            // It is ending: calls that wait until then do not begin either.
            self.outgoing.read().revoke(attachments);
        }
    }

    fn urge(&self, frame: &ToLibrary<'_>) {
        if let Some(instance) = self.current.get().filter(|instance| !instance.outgoing.is_over()) {
            instance.generation.send(frame);
        }
        Self::notify_retired(self, frame);
    }

    fn notify_retired(&self, frame: &ToLibrary<'_>) {
        Self::notify_retired(self, frame);
    }
}

#[cfg(test)]
mod tests;
