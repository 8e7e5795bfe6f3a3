//! A trial: some identities are served by another version of a service, and everybody else by the one in the folder.
//!
//! The other version has a slot of its own, which only those identities find. It saves the perspectives that they attach to. It
//! does not save other perspectives, nor the state and data of the whole service: it reads them as they were last saved, and
//! its changes of them end with the trial, unnoticed by others. It has no listeners of its own. A perspective that clients
//! attached to in it is its own until the trial is over: the serving version yields it, so that no client can attach to it
//! there, and changes of it are refused (`elsewhere`).

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use plugin_api::abi::frame::ToLibrary;
use serde::{Deserialize, Serialize};

use super::context::HostContext;
use super::current::AttachmentChange;
use super::doorkeeper::NoDoors;
use super::elsewhere::Visited;
use super::slot::{ServiceState, Slot, Trial};
use crate::cred::MasterKey;
use crate::cred::throttle::Counter;
use crate::cred::{StoreSecret, TokenDigest};
use crate::loader::fault::LibraryFault;
use crate::loader::generation::Source;
use crate::store::audit::{Head, Line};
use crate::store::{Change, Done, Entries, Kept, Range, Saved, Store, StoreError, Write};

/// How long the serving version may take to yield a perspective, and after a trial to read again what was changed.
const REGAIN: Duration = Duration::from_secs(5);

/// The status of a trial, for the operator.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TrialStatus {
    /// The identities that try it.
    pub identities: Vec<String>,
    /// The library.
    pub file: String,
    /// "serving", or what is wrong.
    pub state: String,
    /// How many calls it received.
    pub calls: u64,
    /// How many of its calls panicked.
    pub faults: u64,
    /// How many clients are attached.
    pub attached: usize,
    /// How its process last died, if it did.
    pub crashed: Option<String>,
}

impl Trial {
    /// Its status, for the operator.
    #[must_use]
    pub fn status(&self) -> TrialStatus {
        let (slot, crashes) = (&self.slot, self.slot.crashes());
        TrialStatus {
            identities: self.identities.iter().cloned().collect(),
            file: self.file.clone(),
            state: match (slot.state(), crashes.waits, slot.late()) {
                (ServiceState::Serving, Some(waits), _) => format!("waits: {waits}"),
                (ServiceState::Serving, None, Some(late)) => format!("serving, but {late}"),
                (ServiceState::Serving, None, None) => "serving".to_owned(),
                (ServiceState::Loaded, ..) => "starting".to_owned(),
                (ServiceState::Failed(why), ..) => format!("failed: {why}"),
                (ServiceState::Stopped, ..) => "stopped".to_owned(),
            },
            calls: slot.calls(),
            faults: slot.faults(),
            attached: slot.attached(),
            crashed: crashes.last,
        }
    }

    /// The slot that its identities find.
    #[must_use]
    pub fn slot(&self) -> &Arc<Slot> {
        &self.slot
    }
}

impl Slot {
    /// Loads another version of this service for these identities. From now on they attach to it; attaching fails until
    /// [`Slot::start_trial`] is done.
    ///
    /// # Errors
    /// If it cannot be loaded, this one does not serve, or one is being tried already.
    pub async fn load_trial(
        self: &Arc<Self>,
        (source, file): (Source, String),
        identities: BTreeSet<String>,
        config: impl FnOnce(&str) -> Vec<u8>,
    ) -> Result<Arc<Trial>, LibraryFault> {
        let visited = Arc::<Visited>::default();
        let serves = Arc::downgrade(self);
        visited.asks(move |perspective| {
            if let Some(serving) = serves.upgrade().and_then(|slot| slot.current.get()) {
                serving.yields(perspective);
            }
        });
        let waited = Arc::downgrade(&visited);
        tokio::spawn(async move {
            loop {
                tokio::time::sleep(REGAIN / 5).await;
                let Some(visited) = waited.upgrade() else { return };
                visited.give_up(Instant::now(), REGAIN);
            }
        });
        let context = HostContext {
            store: Arc::new(OwnStates { store: Arc::clone(&self.context.store), visited: Arc::clone(&visited) }),
            doors: Arc::new(NoDoors),
            // It has nothing to roll back to: if it crashes too often, it stops.
            quarantine: None,
            ..self.context.clone()
        };
        let mut slot = Self::loaded(source, &context, config).await?;
        slot.visited = Some(visited);
        let slot = Arc::new(slot);
        let trial = Arc::new(Trial { identities, file, slot });
        let added = self.add_trial(&trial).await;
        if added.is_err() {
            trial.slot.stop().await;
        }
        added.map(|()| trial)
    }

    async fn add_trial(&self, trial: &Arc<Trial>) -> Result<(), LibraryFault> {
        let name = self.name();
        if trial.slot.name().as_str() != name.as_str() {
            return Err(LibraryFault::Operator(format!("it is the service {}, not {name}", trial.slot.name())));
        }
        // A slot that is about to stop has already ended its trial, or ends this one.
        let _turn = self.turn.lock().await;
        if self.state() != ServiceState::Serving {
            return Err(LibraryFault::State(format!("{name} does not serve: there is nothing to try it beside")));
        }
        let mut now = self.trial.write();
        if now.is_some() {
            return Err(LibraryFault::State(format!("another version of {name} is being tried already")));
        }
        if let Some(visited) = &trial.slot.visited {
            self.elsewhere.begins(visited);
        }
        *now = Some(Arc::clone(trial));
        Ok(())
    }

    /// Starts a version that was loaded. Call this after the connections of its identities have ended: first, this slot saves
    /// what it changed for them.
    ///
    /// # Errors
    /// If it does not serve. Nobody tries it then.
    pub async fn start_trial(&self, trial: &Arc<Trial>) -> Result<(), LibraryFault> {
        let started = match self.settle().await {
            Ok(()) => trial.slot.start().await,
            Err(why) => Err(why),
        };
        if started.is_err() {
            self.end_trial().await;
        }
        started
    }

    /// Ends the trial: the other version saves and stops, then its identities attach to this one again. Returns `None` if there
    /// is no trial, or another caller ends it.
    pub async fn end_trial(&self) -> Option<Arc<Trial>> {
        self.trial_ends(REGAIN).await
    }

    /// As [`Slot::end_trial`]. `patience` is how long the serving version may take to read what was changed.
    pub(super) async fn trial_ends(&self, patience: Duration) -> Option<Arc<Trial>> {
        let trial = self.trial()?;
        if trial.slot.state() == ServiceState::Loaded
            && let Some(starting) = trial.slot.current.get()
        {
            // If it has a process of its own, there is no need to wait for it.
            starting.generation.kill("was ended while it started");
        }
        // While it ends, no client can attach in the serving version to what it has yet to save. Its slot has no trial of its
        // own.
        Box::pin(trial.slot.stop()).await;
        let _ending = self.ending.lock().await;
        if !self.trial().is_some_and(|now| Arc::ptr_eq(&now, &trial)) {
            return None;
        }
        // In this order: a generation that comes to serve meanwhile is told by its replacement, or here.
        let regains = self.elsewhere.ending();
        if let Some(serving) = self.current.get().filter(|_| self.state() == ServiceState::Serving) {
            regains.iter().for_each(|perspective| serving.regains(perspective));
            // If it is late, it continues with what it had, until it gets to it.
            let _ = tokio::time::timeout(patience, self.elsewhere.all_regained()).await;
        }
        self.elsewhere.ends();
        self.trial.write().take_if(|now| Arc::ptr_eq(now, &trial))
    }

    /// If this is a tried version, notes which perspectives clients come to. What it has read of them is read again: it was a
    /// copy, whose changes are not saved. Returns those that no client had come to before.
    pub(super) fn note_visits(&self, changes: &[AttachmentChange]) -> Vec<String> {
        // No client comes to a version that has ended.
        let (Some(visited), Some(_)) = (&self.visited, self.current.get()) else { return Vec::new() };
        let tell = |perspective: &str| {
            if let Some(tried) = self.current.get() {
                tried.regains(perspective);
            }
        };
        let all = changes.iter().filter_map(perspective);
        all.filter(|perspective| visited.visit(perspective, || tell(perspective))).collect()
    }

    /// The clients that came to these did not get there.
    pub(super) fn undo_visits(&self, new: &[String]) {
        if let Some(visited) = &self.visited {
            new.iter().for_each(|perspective| visited.leave(perspective));
        }
    }

    /// Why a client cannot attach here, if a tried version has one of these perspectives.
    pub(super) fn is_elsewhere(&self, changes: &[AttachmentChange]) -> Option<String> {
        changes.iter().filter_map(perspective).find_map(|perspective| self.elsewhere.why(&perspective))
    }

    /// The version that is being tried.
    #[must_use]
    pub fn trial(&self) -> Option<Arc<Trial>> {
        self.trial.read().clone()
    }

    /// The slot that serves this identity.
    pub(super) fn for_identity(self: &Arc<Self>, identity: &str) -> Arc<Self> {
        let trial = self.trial.read();
        let tries = trial.as_ref().filter(|trial| !identity.is_empty() && trial.identities.contains(identity));
        tries.map_or_else(|| Arc::clone(self), |trial| Arc::clone(&trial.slot))
    }
}

/// The perspective that a client attaches to.
fn perspective(change: &AttachmentChange) -> Option<String> {
    let AttachmentChange::Attached(_, frame) = change else { return None };
    match ToLibrary::read(&mut frame.as_slice()) {
        Some(ToLibrary::Attach { perspective, .. }) => Some(perspective.to_owned()),
        _ => None,
    }
}

/// A store that changes nothing of a service but the states of some perspectives.
struct OwnStates {
    store: Arc<dyn Store>,
    /// Those that clients have come to.
    visited: Arc<Visited>,
}

/// Whether it is saved. An error: the library is told that it is not.
fn is_kept(write: &Write, visited: &Visited) -> Result<bool, StoreError> {
    match write {
        // Of others, the service continues as if they were saved. Its own state has an empty name.
        Write::State(Change { perspective, .. }) => Ok(visited.has(perspective)),
        Write::Data { .. } => Err(StoreError::Failed(
            "this version is only being tried: it cannot change the data of the whole service".to_owned(),
        )),
        _ => Ok(true),
    }
}

impl Store for OwnStates {
    fn commit(&self, writes: Vec<Write>, done: Done<()>) {
        let mut kept = Vec::new();
        for write in writes {
            match is_kept(&write, &self.visited) {
                Ok(true) => kept.push(write),
                Ok(false) => {}
                Err(error) => return done(Err(error)),
            }
        }
        if kept.is_empty() { done(Ok(())) } else { self.store.commit(kept, done) }
    }

    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>) {
        let (store, service, of) = (Arc::clone(&self.store), service.to_owned(), perspective.to_owned());
        let read = move |yielded: Result<(), StoreError>| match yielded {
            Ok(()) => store.state(&service, &of, done),
            Err(why) => done(Err(why)),
        };
        self.visited.once_yielded(perspective, Instant::now(), Box::new(read));
    }

    fn data(&self, service: &str, range: &Range, done: Done<Entries>) {
        self.store.data(service, range, done);
    }

    fn identity(&self, name: &str, done: Done<Option<Kept>>) {
        self.store.identity(name, done);
    }

    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>) {
        self.store.states(service, after, limit, done);
    }

    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>) {
        self.store.bearer(token, done);
    }

    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>) {
        self.store.identities(after, limit, done);
    }

    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>) {
        self.store.is_known_source(name, source, done);
    }

    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>) {
        self.store.sources(limit, done);
    }

    fn failures(&self, done: Done<Vec<(Counter, u32)>>) {
        self.store.failures(done);
    }

    fn audit(&self, after: u64, limit: usize, done: Done<Vec<Line>>) {
        self.store.audit(after, limit, done);
    }

    fn anchor(&self, done: Done<Head>) {
        self.store.anchor(done);
    }

    fn secret(&self) -> &StoreSecret {
        self.store.secret()
    }

    fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError> {
        self.store.reseal(key, nonce)
    }

    fn check(&self) -> Result<(), StoreError> {
        self.store.check()
    }

    fn backup(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError> {
        self.store.backup(to, progress)
    }

    fn head(&self) -> Option<PathBuf> {
        self.store.head()
    }
}
