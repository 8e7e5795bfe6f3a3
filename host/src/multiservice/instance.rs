//! One generation of a service: its thread, its way out, and its steps while it starts and stops.

use std::sync::Arc;
use std::time::Duration;

use plugin_api::abi::frame::ToLibrary;
use plugin_api::manifest::Manifest;
use tokio::sync::{Mutex as AsyncMutex, mpsc};

use super::context::HostContext;
use super::elsewhere;
use super::ended::Ended;
use super::in_force::LimitsInForce;
use super::outgoing::{Lifecycle, Outgoing};
use crate::cred::{Name, NameOf};
use crate::loader::fault::LibraryFault;
use crate::loader::generation::{Generation, Source};
use crate::loader::unload::UnloadOutcome;
use crate::store::Saved;

/// How long it may take to stop.
pub(super) const STOP: Duration = Duration::from_secs(10);

/// A generation that performs one step of its life at a time.
pub(super) struct Instance {
    /// The first of a slot is 1.
    pub(super) number: u32,
    pub(super) name: Name,
    pub(super) manifest: Arc<Manifest>,
    pub(super) generation: Arc<Generation>,
    pub(super) outgoing: Arc<Outgoing>,
    pub(super) config: Vec<u8>,
    limits: Arc<LimitsInForce>,
    patience: Duration,
    ended: Arc<Ended>,
    steps: AsyncMutex<mpsc::UnboundedReceiver<Lifecycle>>,
}

impl std::fmt::Debug for Instance {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Instance({} {})", self.name, self.number)
    }
}

impl Instance {
    /// Calls by these attachments that wait must not begin: see
    /// [`Generation::revoke`](crate::loader::generation::Generation::revoke).
    pub(super) fn revoke(&self, attachments: &[u64], barred: bool) {
        if !self.outgoing.is_over() {
            self.generation.revoke(attachments, barred);
        }
    }

    /// From now on a tried version has this perspective.
    pub(super) fn yields(&self, perspective: &str) {
        self.generation.send(&ToLibrary::Yield { perspective, why: &elsewhere::why(perspective) });
    }

    /// Another version has changed the saved state of this perspective, and no longer has it.
    pub(super) fn regains(&self, perspective: &str) {
        self.generation.send(&ToLibrary::Regain { perspective });
    }

    /// Loads a generation as far as its manifest. `config` returns the configuration section of this name, in Jelly.
    pub(super) async fn load(
        source: Source,
        outgoing: Arc<Outgoing>,
        mut steps: mpsc::UnboundedReceiver<Lifecycle>,
        context: &HostContext,
        config: impl FnOnce(&str) -> Vec<u8>,
    ) -> Result<Arc<Self>, LibraryFault> {
        context.ended.may_load()?;
        let generation = Generation::start(source, Arc::clone(&outgoing) as Arc<_>)
            .map_err(|error| LibraryFault::machine("the system has no thread or descriptor left for it", error))?;
        let generation = Arc::new(generation);
        let _ = outgoing.generation.set(Arc::downgrade(&generation));
        let said = match step(&mut steps, context.patience, "report its manifest").await {
            Ok(Lifecycle::Manifest(manifest)) => Ok(manifest),
            Ok(other) => Err(unexpected(&other)),
            Err(why) => Err(why),
        };
        let read = said.and_then(|manifest| {
            let manifest = jelly::from_slice::<Manifest>(&manifest)
                .map_err(|error| LibraryFault::Library(format!("its manifest cannot be read: {error}")))?;
            let name = Name::new(NameOf::Service, &manifest.service);
            let name = name.map_err(|error| LibraryFault::Library(error.to_string()))?;
            let config = config(name.as_str());
            Ok((manifest, name, config))
        });
        match read {
            Ok((manifest, name, config)) => {
                let _ = outgoing.name.set(name.to_string());
                let (number, manifest) = (outgoing.number, Arc::new(manifest));
                let (steps, ended) = (AsyncMutex::new(steps), Arc::clone(&context.ended));
                let (patience, limits) = (context.patience, Arc::clone(&context.limits));
                Ok(Arc::new(Self {
                    number,
                    name,
                    manifest,
                    generation,
                    outgoing,
                    config,
                    limits,
                    patience,
                    ended,
                    steps,
                }))
            }
            Err(why) => {
                let account = end(&outgoing, &generation, &mut steps).await;
                context.ended.count(outgoing.name(), outgoing.number, &account);
                Err(why)
            }
        }
    }

    /// Initialises the service.
    pub(super) async fn init(&self) -> Result<(), LibraryFault> {
        let empty = [1, 0x80, 5, 0x87];
        let config = if self.config.is_empty() { &empty } else { self.config.as_slice() };
        self.outgoing.forget_panic();
        let limits = self.limits.enrol(&self.generation);
        let orphans = u64::try_from(limits.orphans.as_millis()).unwrap_or(u64::MAX);
        self.generation.send(&ToLibrary::Init { config, vetting: false, quota: limits.state as u64, orphans });
        self.expect(self.patience, "be made", &Lifecycle::Initialised).await
    }

    /// Hands it the service's state and starts it.
    pub(super) async fn start(&self, patience: Option<Duration>) -> Result<(), LibraryFault> {
        let saved = if self.manifest.shared { self.saved().await? } else { None };
        let version = saved.as_ref().map_or(0, |saved| saved.version);
        let saved = saved.as_ref().map(|saved| saved.state.as_slice());
        self.outgoing.forget_panic();
        self.generation.send(&ToLibrary::Start { saved, version });
        self.expect(patience.unwrap_or(self.patience), "start", &Lifecycle::Started).await
    }

    /// The service's own saved state.
    async fn saved(&self) -> Result<Option<Saved>, LibraryFault> {
        self.outgoing.saved().await.map_err(|error| LibraryFault::Machine(error.to_string()))
    }

    /// Checks its health.
    pub(super) async fn health(&self, patience: Option<Duration>) -> Result<(), LibraryFault> {
        self.outgoing.forget_panic();
        self.generation.send(&ToLibrary::Health { request: 1 });
        self.expect(patience.unwrap_or(self.patience), "answer its health check", &Lifecycle::Healthy(1)).await
    }

    /// Waits for its next step.
    pub(super) async fn step(&self, patience: Duration, what: &str) -> Result<Lifecycle, LibraryFault> {
        step(&mut *self.steps.lock().await, patience, what).await
    }

    async fn expect(&self, patience: Duration, what: &str, wanted: &Lifecycle) -> Result<(), LibraryFault> {
        let found = self.step(patience, what).await?;
        if found == *wanted { Ok(()) } else { Err(unexpected(&found)) }
    }

    /// Waits until it has stopped by itself. Returns false on a timeout.
    pub(super) async fn stopped(&self, patience: Duration) -> bool {
        let mut steps = self.steps.lock().await;
        tokio::time::timeout(patience, until_stopped(&self.outgoing, &mut steps)).await.is_ok()
    }

    /// Ends it and unloads its library.
    pub(super) async fn end(&self) -> UnloadOutcome {
        let mut steps = self.steps.lock().await;
        self.outgoing.abandon();
        let account = end(&self.outgoing, &self.generation, &mut steps).await;
        self.ended.count(self.name.as_str(), self.number, &account);
        account
    }

    /// Discards steps that nobody waited for.
    pub(super) async fn forget_steps(&self) {
        let mut steps = self.steps.lock().await;
        while steps.try_recv().is_ok() {}
    }
}

pub(super) fn unexpected(found: &Lifecycle) -> LibraryFault {
    LibraryFault::Library(match found {
        Lifecycle::Refused(why) => why.clone(),
        Lifecycle::Stopped => "it ended unexpectedly".to_owned(),
        other => format!("it sent an unexpected answer ({other:?})"),
    })
}

async fn step(
    steps: &mut mpsc::UnboundedReceiver<Lifecycle>,
    patience: Duration,
    what: &str,
) -> Result<Lifecycle, LibraryFault> {
    match tokio::time::timeout(patience, steps.recv()).await {
        Ok(Some(step)) => Ok(step),
        Ok(None) => Err(LibraryFault::Library("its thread has ended".to_owned())),
        Err(_) => {
            let why = format!("it takes longer than {} seconds to {what}", patience.as_secs());
            Err(LibraryFault::Library(why))
        }
    }
}

async fn until_stopped(outgoing: &Outgoing, steps: &mut mpsc::UnboundedReceiver<Lifecycle>) {
    // It may have ended by itself, and have reported that before.
    if outgoing.is_over() {
        return;
    }
    while let Some(step) = steps.recv().await {
        if step == Lifecycle::Stopped {
            return;
        }
    }
}

async fn end(
    outgoing: &Outgoing,
    generation: &Arc<Generation>,
    steps: &mut mpsc::UnboundedReceiver<Lifecycle>,
) -> UnloadOutcome {
    generation.send_last(&ToLibrary::Stop {});
    let mut stopped = tokio::time::timeout(STOP, until_stopped(outgoing, steps)).await.is_ok();
    if !stopped && generation.kill("did not stop in time, and was killed") {
        // Its link sends the last frame in its place.
        stopped = tokio::time::timeout(STOP, until_stopped(outgoing, steps)).await.is_ok();
    }
    if stopped {
        // It has sent its last frame: its thread is about to end.
        let generation = Arc::clone(generation);
        let generation_is_worker = generation.worker().is_some();
        let (done, joined) = tokio::sync::oneshot::channel();
        // On a thread of its own, which nothing has to wait for: code of the library runs when its thread ends and when it is
        // closed.
        let joining = std::thread::Builder::new().name("unload".to_owned()).spawn(move || {
            let account = generation.join();
            drop(generation);
            // The receiver may have given up.
            let _ = done.send(account);
        });
        match (joining, tokio::time::timeout(STOP, joined).await) {
            (Ok(_), Ok(Ok(account))) => account,
            // Nothing of a worker is in this process.
            _ if generation_is_worker => UnloadOutcome::Retired { left: 0 },
            _ => UnloadOutcome::Condemned,
        }
    } else {
        tracing::error!(
            service = outgoing.name(),
            "it did not stop within {} seconds; its thread is abandoned",
            STOP.as_secs()
        );
        generation.condemn()
    }
}
