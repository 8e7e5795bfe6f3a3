//! One generation of a service: its thread, its way out, and what it says while it starts and stops.

use std::sync::Arc;
use std::time::Duration;

use plugin_api::abi::frame::ToLibrary;
use plugin_api::manifest::Manifest;
use tokio::sync::{Mutex as Turn, mpsc};

use super::ended::Ended;
use super::line::{Line, Stage};
use super::slot::{NotServing, Surroundings};
use crate::cred::{Name, NameOf};
use crate::loader::generation::{Generation, Source};
use crate::loader::unload::Account;

/// How long it may take to stop.
pub(super) const STOP: Duration = Duration::from_secs(10);

/// A generation that can be told what to do, one thing at a time.
pub(super) struct Live {
    /// The first of a slot is 1.
    pub(super) number: u32,
    pub(super) name: Name,
    pub(super) manifest: Arc<Manifest>,
    pub(super) generation: Arc<Generation>,
    pub(super) line: Arc<Line>,
    config: Vec<u8>,
    quota: usize,
    patience: Duration,
    ended: Arc<Ended>,
    stages: Turn<mpsc::UnboundedReceiver<Stage>>,
}

impl std::fmt::Debug for Live {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Live({} {})", self.name, self.number)
    }
}

impl Live {
    /// Loads a generation, as far as to know what it is. `config` answers with the section of this name, in Jelly.
    pub(super) async fn load(
        source: Source,
        line: Arc<Line>,
        mut stages: mpsc::UnboundedReceiver<Stage>,
        surroundings: &Surroundings,
        config: impl FnOnce(&str) -> Result<Vec<u8>, String>,
    ) -> Result<Arc<Self>, NotServing> {
        surroundings.ended.room().map_err(NotServing)?;
        let generation = Generation::start(source, Arc::clone(&line) as Arc<_>)
            .map_err(|error| NotServing(format!("the machine has no thread or descriptor for it: {error}")))?;
        let generation = Arc::new(generation);
        let _ = line.generation.set(Arc::downgrade(&generation));
        let said = match stage(&mut stages, surroundings.patience, "say what it is").await {
            Ok(Stage::Manifest(manifest)) => Ok(manifest),
            Ok(other) => Err(unexpected(&other)),
            Err(why) => Err(why),
        };
        let read = said.and_then(|manifest| {
            let manifest = jelly::from_slice::<Manifest>(&manifest)
                .map_err(|error| format!("its manifest cannot be read: {error}"))?;
            let name = Name::new(NameOf::Service, &manifest.service).map_err(|error| error.to_string())?;
            let config = config(name.as_str())?;
            Ok((manifest, name, config))
        });
        match read {
            Ok((manifest, name, config)) => {
                let _ = line.name.set(name.to_string());
                let (number, manifest, quota) = (line.number, Arc::new(manifest), surroundings.quota);
                let (stages, ended) = (Turn::new(stages), Arc::clone(&surroundings.ended));
                let patience = surroundings.patience;
                Ok(Arc::new(Self { number, name, manifest, generation, line, config, quota, patience, ended, stages }))
            }
            Err(why) => {
                let account = end(&line, &generation, &mut stages).await;
                surroundings.ended.count(line.name(), line.number, &account);
                Err(NotServing(why))
            }
        }
    }

    /// Makes the service.
    pub(super) async fn init(&self) -> Result<(), String> {
        let empty = [1, 0x80, 5, 0x87];
        let config = if self.config.is_empty() { &empty } else { self.config.as_slice() };
        self.line.forget_panic();
        self.generation.tell(&ToLibrary::Init { config, vetting: false, quota: self.quota as u64 });
        self.expect(self.patience, "be made", &Stage::Initialised).await
    }

    /// Hands it the service's state, and starts it.
    pub(super) async fn start(&self, patience: Option<Duration>) -> Result<(), String> {
        let saved = if self.manifest.shared { self.line.saved().await? } else { None };
        let version = saved.as_ref().map_or(0, |saved| saved.version);
        let saved = saved.as_ref().map(|saved| saved.state.as_slice());
        self.line.forget_panic();
        self.generation.tell(&ToLibrary::Start { saved, version });
        self.expect(patience.unwrap_or(self.patience), "start", &Stage::Started).await
    }

    /// Asks whether it is well.
    pub(super) async fn health(&self, patience: Option<Duration>) -> Result<(), String> {
        self.line.forget_panic();
        self.generation.tell(&ToLibrary::Health { request: 1 });
        self.expect(patience.unwrap_or(self.patience), "say that it is well", &Stage::Healthy(1)).await
    }

    /// Waits for what it says next.
    pub(super) async fn stage(&self, patience: Duration, what: &str) -> Result<Stage, String> {
        stage(&mut *self.stages.lock().await, patience, what).await
    }

    async fn expect(&self, patience: Duration, what: &str, wanted: &Stage) -> Result<(), String> {
        let found = self.stage(patience, what).await?;
        if found == *wanted { Ok(()) } else { Err(unexpected(&found)) }
    }

    /// Waits until it has stopped by itself; false: it has not.
    pub(super) async fn stopped(&self, patience: Duration) -> bool {
        let mut stages = self.stages.lock().await;
        tokio::time::timeout(patience, until_stopped(&self.line, &mut stages)).await.is_ok()
    }

    /// Ends it, and lets go of its library.
    pub(super) async fn end(&self) -> Account {
        let mut stages = self.stages.lock().await;
        self.line.abandon();
        let account = end(&self.line, &self.generation, &mut stages).await;
        self.ended.count(self.name.as_str(), self.number, &account);
        account
    }

    /// Forgets what it has said that nobody waited for.
    pub(super) async fn forget_stages(&self) {
        let mut stages = self.stages.lock().await;
        while stages.try_recv().is_ok() {}
    }
}

pub(super) fn unexpected(found: &Stage) -> String {
    match found {
        Stage::Refused(why) => why.clone(),
        Stage::Stopped => "it ended by itself".to_owned(),
        other => format!("it answered out of turn ({other:?})"),
    }
}

async fn stage(stages: &mut mpsc::UnboundedReceiver<Stage>, patience: Duration, what: &str) -> Result<Stage, String> {
    match tokio::time::timeout(patience, stages.recv()).await {
        Ok(Some(stage)) => Ok(stage),
        Ok(None) => Err("its thread has ended".to_owned()),
        Err(_) => Err(format!("it takes longer than {} seconds to {what}", patience.as_secs())),
    }
}

async fn until_stopped(line: &Line, stages: &mut mpsc::UnboundedReceiver<Stage>) {
    // It may have ended by itself, and have said so before.
    if line.is_over() {
        return;
    }
    while let Some(stage) = stages.recv().await {
        if stage == Stage::Stopped {
            return;
        }
    }
}

async fn end(line: &Line, generation: &Arc<Generation>, stages: &mut mpsc::UnboundedReceiver<Stage>) -> Account {
    generation.tell(&ToLibrary::Stop {});
    if tokio::time::timeout(STOP, until_stopped(line, stages)).await.is_ok() {
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
        tracing::error!(
            service = line.name(),
            "it did not stop within {} seconds; its thread is given up",
            STOP.as_secs()
        );
        generation.condemn()
    }
}
