//! A service's name, and the generation that serves under it.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use plugin_api::abi::frame::ToLibrary;
use plugin_api::manifest::Manifest;
use tokio::sync::{Mutex as Turn, mpsc};

use super::current::Current;
use super::line::{Line, Stage};
use super::switchboard::Switchboard;
use crate::cred::{Name, NameOf};
use crate::loader::generation::{Generation, Linked, Source};
use crate::loader::unload::Account;
use crate::store::{Saved, Store, ask};

/// How long a service may take to be made, to start, or to say that it is well.
const START: Duration = Duration::from_secs(30);
/// How long it may take to stop.
const STOP: Duration = Duration::from_secs(10);

/// What services share: where states are kept, and where connections are.
#[derive(Clone)]
pub struct Surroundings {
    /// Where states are kept.
    pub store: Arc<dyn Store>,
    /// Where connections are.
    pub switchboard: Arc<Switchboard>,
    /// How many bytes a saved state may have.
    pub quota: usize,
}

/// How many bytes a saved state may have, if nothing else is said.
pub const QUOTA: usize = 64 << 20;

impl Surroundings {
    /// This store, and no connections yet.
    #[must_use]
    pub fn new(store: Arc<dyn Store>) -> Self {
        Self { store, switchboard: Switchboard::new(), quota: QUOTA }
    }
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Surroundings")
    }
}

/// Whether a service serves.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// It is loaded, and was not started yet.
    Loaded,
    /// It serves.
    Serving,
    /// It refused to start; why.
    Failed(String),
    /// It was stopped.
    Stopped,
}

/// Why a service is not there.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NotServing(pub String);

/// A service under its name.
pub struct Slot {
    number: u64,
    name: Name,
    manifest: Manifest,
    config: Vec<u8>,
    surroundings: Surroundings,
    line: Arc<Line>,
    generation: Current<Generation>,
    state: Mutex<State>,
    /// Starting and stopping is one thing at a time.
    stages: Turn<mpsc::UnboundedReceiver<Stage>>,
    calls: AtomicU64,
}

impl std::fmt::Debug for Slot {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Slot").field("name", &self.name.as_str()).finish_non_exhaustive()
    }
}

impl Slot {
    /// A service that is linked into this program, with its configuration (a dictionary in Jelly, or nothing).
    ///
    /// # Errors
    /// When it cannot be run.
    pub async fn linked<S: plugin_api::Service>(surroundings: &Surroundings) -> Result<Arc<Self>, NotServing> {
        Self::load(Source::Linked(Linked::new::<S>()), surroundings, |_| Ok(Vec::new())).await
    }

    /// Loads a service. `config` answers with the section of this name, in Jelly.
    ///
    /// # Errors
    /// One sentence that says why it cannot be loaded.
    pub async fn load(
        source: Source,
        surroundings: &Surroundings,
        config: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Arc<Self>, NotServing> {
        static NEXT: AtomicU64 = AtomicU64::new(1);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let (line, mut stages) = Line::new(number, surroundings);
        let generation = Generation::start(source, Arc::clone(&line) as Arc<_>)
            .map_err(|error| NotServing(format!("the machine has no thread or descriptor for it: {error}")))?;
        let generation = Arc::new(generation);
        let _ = line.generation.set(Arc::downgrade(&generation));
        let manifest = match stage(&mut stages, START, "say what it is").await {
            Ok(Stage::Manifest(manifest)) => manifest,
            Ok(other) => return Err(give_up(&line, &generation, &mut stages, &unexpected(&other)).await),
            Err(why) => return Err(give_up(&line, &generation, &mut stages, &why).await),
        };
        let read = jelly::from_slice::<Manifest>(&manifest)
            .map_err(|error| format!("its manifest cannot be read: {error}"))
            .and_then(|manifest| {
                let name = Name::new(NameOf::Service, &manifest.service).map_err(|error| error.to_string())?;
                let config = config(name.as_str())?;
                Ok((manifest, name, config))
            });
        let (manifest, name, config) = match read {
            Ok(read) => read,
            Err(why) => return Err(give_up(&line, &generation, &mut stages, &why).await),
        };
        let _ = line.name.set(name.to_string());
        Ok(Arc::new(Self {
            number,
            name,
            manifest,
            config,
            surroundings: surroundings.clone(),
            line,
            generation: Current::new(generation),
            state: Mutex::new(State::Loaded),
            stages: Turn::new(stages),
            calls: AtomicU64::new(0),
        }))
    }

    /// Makes the service, hands it its state, starts it, and asks whether it is well.
    ///
    /// # Errors
    /// Why it does not serve. It is then ended.
    pub async fn start(&self) -> Result<(), NotServing> {
        let mut stages = self.stages.lock().await;
        if *self.state.lock() != State::Loaded {
            return Err(NotServing(format!("{} was started already", self.name)));
        }
        let Some(generation) = self.generation.get() else {
            return Err(NotServing(format!("{} has ended", self.name)));
        };
        let started = self.start_now(&generation, &mut stages).await;
        match started {
            Ok(()) => {
                *self.state.lock() = State::Serving;
                Ok(())
            }
            Err(why) => {
                *self.state.lock() = State::Failed(why.clone());
                self.generation.take();
                let refused = give_up(&self.line, &generation, &mut stages, &why).await;
                self.line.over();
                Err(refused)
            }
        }
    }

    async fn start_now(
        &self,
        generation: &Generation,
        stages: &mut mpsc::UnboundedReceiver<Stage>,
    ) -> Result<(), String> {
        let empty = [1, 0x80, 5, 0x87];
        let config = if self.config.is_empty() { &empty } else { self.config.as_slice() };
        let quota = self.surroundings.quota as u64;
        generation.tell(&ToLibrary::Init { config, vetting: false, quota });
        expect(stage(stages, START, "be made").await?, &Stage::Initialised)?;
        let saved = if self.manifest.shared { self.saved().await? } else { None };
        let version = saved.as_ref().map_or(0, |saved| saved.version);
        let saved = saved.as_ref().map(|saved| saved.state.as_slice());
        generation.tell(&ToLibrary::Start { saved, version });
        expect(stage(stages, START, "start").await?, &Stage::Started)?;
        generation.tell(&ToLibrary::Health { request: 1 });
        expect(stage(stages, START, "say that it is well").await?, &Stage::Healthy(1))
    }

    async fn saved(&self) -> Result<Option<Saved>, String> {
        let store = &self.surroundings.store;
        ask(|done| store.state(self.name.as_str(), "", done)).await.map_err(|error| error.to_string())
    }

    /// Stops the service: what it has to save is saved, its clients are told, its library is let go of.
    pub async fn stop(&self) -> Account {
        let mut stages = self.stages.lock().await;
        let Some(generation) = self.generation.take() else {
            return Account::Nothing;
        };
        *self.state.lock() = State::Stopped;
        let account = end(&self.line, &generation, &mut stages, self.name.as_str()).await;
        // Where it has ended in order it has said so itself, behind its last words.
        self.line.over();
        account
    }

    /// Hands frames to the service, in order.
    ///
    /// # Errors
    /// When it does not serve, or does not keep up; nothing was handed over then.
    pub fn submit(&self, frames: &[u8]) -> Result<(), NotServing> {
        let stopped = || NotServing(format!("{} has stopped", self.name));
        if self.line.is_over() {
            return Err(stopped());
        }
        if *self.state.lock() == State::Loaded {
            return Err(NotServing(format!("{} is starting", self.name)));
        }
        let pushed = self.generation.with(|generation| generation.push(frames)).ok_or_else(stopped)?;
        pushed.map_err(|full| NotServing(format!("{}: {full}", self.name)))
    }

    /// Hands over what ends something: it is never too much.
    pub fn submit_anyway(&self, frames: &[u8]) {
        // Also to one that is ending: it may wait for just this.
        self.line.hand_over(frames);
    }

    /// Counts calls, for the operator.
    pub fn count_calls(&self, calls: u64) {
        self.calls.fetch_add(calls, Ordering::Relaxed);
    }

    /// How many calls it was given.
    #[must_use]
    pub fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    /// How many calls panicked.
    #[must_use]
    pub fn faults(&self) -> u64 {
        self.line.faults.load(Ordering::Relaxed)
    }

    /// A number that no other slot of this process has had.
    #[must_use]
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Its name.
    #[must_use]
    pub fn name(&self) -> &Name {
        &self.name
    }

    /// What it says of itself.
    #[must_use]
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Whether it serves.
    #[must_use]
    pub fn state(&self) -> State {
        match &*self.state.lock() {
            State::Serving if self.line.is_over() => {
                State::Failed("it ended by itself; `service start` starts it anew".to_owned())
            }
            state => state.clone(),
        }
    }
}

async fn stage(stages: &mut mpsc::UnboundedReceiver<Stage>, patience: Duration, what: &str) -> Result<Stage, String> {
    match tokio::time::timeout(patience, stages.recv()).await {
        Ok(Some(stage)) => Ok(stage),
        Ok(None) => Err("its thread has ended".to_owned()),
        Err(_) => Err(format!("it takes longer than {} seconds to {what}", patience.as_secs())),
    }
}

fn expect(found: Stage, wanted: &Stage) -> Result<(), String> {
    if found == *wanted { Ok(()) } else { Err(unexpected(&found)) }
}

fn unexpected(found: &Stage) -> String {
    match found {
        Stage::Refused(why) => why.clone(),
        Stage::Stopped => "it ended by itself".to_owned(),
        other => format!("it answered out of turn ({other:?})"),
    }
}

/// Ends a generation that will not serve.
async fn give_up(
    line: &Line,
    generation: &Arc<Generation>,
    stages: &mut mpsc::UnboundedReceiver<Stage>,
    why: &str,
) -> NotServing {
    end(line, generation, stages, "?").await;
    NotServing(why.to_owned())
}

async fn end(
    line: &Line,
    generation: &Arc<Generation>,
    stages: &mut mpsc::UnboundedReceiver<Stage>,
    name: &str,
) -> Account {
    generation.tell(&ToLibrary::Stop {});
    let stopped = async {
        // It may have ended by itself, and have said so before.
        if line.is_over() {
            return;
        }
        while let Some(stage) = stages.recv().await {
            if stage == Stage::Stopped {
                return;
            }
        }
    };
    if tokio::time::timeout(STOP, stopped).await.is_ok() {
        // It has said its last: its thread is about to end.
        let generation = Arc::clone(generation);
        let (done, joined) = tokio::sync::oneshot::channel();
        // A thread of its own, which nobody has to wait for: code of the library's runs when its thread ends, and when it
        // is closed.
        let joining = std::thread::Builder::new().name("unload".to_owned()).spawn(move || {
            let account = generation.join();
            drop(generation);
            // Who waits may have given up.
            let _ = done.send(account);
        });
        match (joining, tokio::time::timeout(STOP, joined).await) {
            (Ok(_), Ok(Ok(account))) => account,
            _ => Account::Condemned,
        }
    } else {
        tracing::error!(service = name, "it did not stop within {} seconds; its thread is given up", STOP.as_secs());
        generation.condemn()
    }
}
