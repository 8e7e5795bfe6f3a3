//! Decides what is committed before it is told, and what waits for that. No IO: actions are returned as [`Effect`]s.
//!
//! One commit is in progress at a time; what arrives meanwhile is the next one. If a commit fails, nothing that follows it
//! counts until the service has reverted to the last commit.
//!
//! An answer waits for all changes before it, unless the library says which states it tells of ([`ToHost::Looked`]). Then it
//! waits only for the changes of these, so that readers do not wait for writers. Frames to one connection keep their order.

use std::collections::{HashMap, HashSet};

use plugin_api::abi::frame::{ToHost, next_to_host};

use crate::store::Change;

/// The phase of a generation's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// It serves nobody yet. What it wants to save, or to tell clients, waits until it does.
    Embargoed,
    /// It never will. What it wants to save or tell is refused.
    Abandoned,
    /// Clients' calls go to it.
    Serving,
    /// Its successor serves. It answers calls that wait, and saves nothing.
    Retired,
    /// It has ended without having served, or after its successor did.
    Over,
    /// It has ended while it served.
    OverServing,
}

impl Phase {
    /// The phase with this number.
    pub(super) fn of(number: u8) -> Self {
        const ALL: [Phase; 6] =
            [Phase::Embargoed, Phase::Abandoned, Phase::Serving, Phase::Retired, Phase::Over, Phase::OverServing];
        ALL.into_iter().find(|phase| *phase as u8 == number).unwrap_or(Self::Over)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Over | Self::OverServing)
    }

    /// The phase after its end.
    pub(super) fn ended(self) -> Self {
        match self {
            Self::Serving | Self::OverServing => Self::OverServing,
            Self::Embargoed | Self::Abandoned | Self::Retired | Self::Over => Self::Over,
        }
    }
}

/// An action for the caller.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// Deliver these frames.
    Release(Vec<u8>),
    /// These frames belong to changes that were not committed: their answers become errors.
    Undo(Vec<u8>),
    /// Refuse these requests of a generation that never serves.
    Refuse(Vec<u8>),
    /// Commit these changes; [`CommitQueue::committed`] takes the result.
    Commit(Vec<Change>),
    /// Send the service a perspective's committed state again.
    Revert(String),
    /// Answer a request for a state that only the queue has: the request's number, the state that waits to be committed, its
    /// version.
    Loaded(u64, Vec<u8>, u64),
}

/// Frames, and the changes that they wait for.
#[derive(Debug, Default)]
struct Pending {
    frames: Vec<u8>,
    /// The connections that the frames go to.
    to: HashSet<u32>,
    changes: Vec<Change>,
    /// The perspectives of the changes, and where in `changes` each is. They stay after the changes are handed to the store.
    changed: HashMap<String, usize>,
    /// The size of all of it.
    bytes: usize,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.changes.is_empty()
    }

    /// Adds a change. Of several changes of one perspective, the last counts.
    fn change(&mut self, service: &str, perspective: &str, state: &[u8], base: u64, version: u64) {
        if let Some(earlier) = self.changed.get(perspective).and_then(|at| self.changes.get_mut(*at)) {
            self.bytes = self.bytes + state.len() - earlier.state.len();
            earlier.state.clear();
            earlier.state.extend_from_slice(state);
            earlier.version = version;
            return;
        }
        self.bytes += perspective.len() + state.len();
        self.changed.insert(perspective.to_owned(), self.changes.len());
        self.changes.push(Change {
            service: service.to_owned(),
            perspective: perspective.to_owned(),
            state: state.to_vec(),
            base,
            version,
        });
    }

    fn frame(&mut self, frame: &ToHost<'_>, raw: &[u8]) {
        self.to.extend(connection(frame));
        self.bytes += raw.len();
        self.frames.extend_from_slice(raw);
    }
}

/// The connection that a frame goes to, if it goes to one.
fn connection(frame: &ToHost<'_>) -> Option<u32> {
    let number = match *frame {
        ToHost::Answer { call, .. } | ToHost::Failed { call, .. } => call,
        ToHost::Call { handle, .. } | ToHost::Release { handle, .. } | ToHost::Forget { handle, .. } => handle,
        ToHost::Attached { attachment } | ToHost::Update { attachment, .. } | ToHost::End { attachment } => attachment,
        _ => return None,
    };
    Some((number >> 32) as u32)
}

/// The queue: see the module's page.
#[derive(Debug, Default)]
pub(super) struct CommitQueue {
    /// The commit in progress.
    committing: Option<Pending>,
    /// What has arrived meanwhile: the next commit.
    waiting: Pending,
    /// How many perspectives have not yet reverted to the last commit.
    reverting: usize,
}

impl CommitQueue {
    /// Whether nothing in the queue delays these frames: they change nothing, and no commit is in progress. Nearly all answers
    /// go this way.
    pub(super) fn passes(&self, phase: Phase, frames: &[u8]) -> bool {
        matches!(phase, Phase::Serving | Phase::Retired)
            && self.reverting == 0
            && self.committing.is_none()
            && !has_changes(frames)
    }

    /// Takes frames that the generation has sent; `service` is its name.
    pub(super) fn said(&mut self, phase: Phase, service: &str, mut frames: &[u8]) -> Vec<Effect> {
        match phase {
            Phase::Over | Phase::OverServing => Vec::new(),
            Phase::Embargoed | Phase::Abandoned => self.hold_back(phase, service, frames),
            Phase::Serving | Phase::Retired => {
                let mut effects = self.while_reverting(&mut frames);
                if self.reverting > 0 {
                    return effects;
                }
                // A change and what is told of it come in one batch, in any order: so the whole batch waits for its changes.
                if phase == Phase::Serving {
                    self.changes(service, frames);
                }
                let settled = self.settled(frames);
                if !settled.is_empty() {
                    effects.push(Effect::Release(settled));
                }
                effects.extend(self.next_commit(phase));
                effects
            }
        }
    }

    /// Queues the changes in a batch.
    fn changes(&mut self, service: &str, mut frames: &[u8]) {
        while let Some(frame) = ToHost::read(&mut frames) {
            if let ToHost::Save { perspective, state, base, version } = frame {
                self.waiting.change(service, perspective, state, base, version);
            }
        }
    }

    /// Returns the frames of a batch that wait for nothing: answers that tell only of committed states. The rest is queued.
    fn settled(&mut self, mut frames: &[u8]) -> Vec<u8> {
        let (mut settled, mut of) = (Vec::new(), None);
        while let Some((frame, raw)) = next_to_host(&mut frames) {
            let told_of = of.take();
            match frame {
                ToHost::Save { .. } => {}
                ToHost::Looked { call, perspective, service } => {
                    let service = service.then_some("");
                    of = Some((call, perspective.map(std::str::from_utf8).transpose(), service));
                }
                ToHost::Answer { call, .. } | ToHost::Failed { call, .. } => match told_of {
                    Some((number, Ok(perspective), service))
                        if number == call
                            && !perspective.into_iter().chain(service).any(|name| self.is_uncommitted(name))
                            && !self.is_owed((call >> 32) as u32) =>
                    {
                        settled.extend_from_slice(raw);
                    }
                    _ => self.waiting.frame(&frame, raw),
                },
                _ => self.waiting.frame(&frame, raw),
            }
        }
        settled
    }

    /// How many bytes of changes, and of frames that wait for them, the store has yet to write: those of the commit under way and
    /// of the next one.
    pub(super) fn unwritten(&self) -> usize {
        self.pending().map(|pending| pending.bytes).sum()
    }

    fn pending(&self) -> impl Iterator<Item = &Pending> {
        self.committing.iter().chain([&self.waiting])
    }

    fn is_uncommitted(&self, perspective: &str) -> bool {
        self.pending().any(|pending| pending.changed.contains_key(perspective))
    }

    /// Whether any frame to this connection waits.
    fn is_owed(&self, connection: u32) -> bool {
        self.pending().any(|pending| pending.to.contains(&connection))
    }

    /// After a failed commit, nothing counts until the service has reverted.
    fn while_reverting(&mut self, frames: &mut &[u8]) -> Vec<Effect> {
        let (mut effects, mut undone) = (Vec::new(), Vec::new());
        while self.reverting > 0 {
            let Some((frame, raw)) = next_to_host(frames) else { break };
            match frame {
                ToHost::Reverted {} => self.reverting -= 1,
                ToHost::Save { perspective, .. } => {
                    self.reverting += 1;
                    effects.push(Effect::Revert(perspective.to_owned()));
                }
                _ => undone.extend_from_slice(raw),
            }
        }
        if !undone.is_empty() {
            effects.insert(0, Effect::Undo(undone));
        }
        effects
    }

    /// For a generation that does not serve yet: what it says of its start, and its reads, pass; the rest waits.
    fn hold_back(&mut self, phase: Phase, service: &str, mut frames: &[u8]) -> Vec<Effect> {
        let (mut effects, mut released, mut refused) = (Vec::new(), Vec::new(), Vec::new());
        while let Some((frame, raw)) = next_to_host(&mut frames) {
            match frame {
                ToHost::Save { perspective, state, base, version } => {
                    self.waiting.change(service, perspective, state, base, version);
                }
                ToHost::Write { .. } | ToHost::Call { .. } | ToHost::Update { .. } if phase == Phase::Abandoned => {
                    refused.extend_from_slice(raw);
                }
                ToHost::Write { .. } | ToHost::Call { .. } | ToHost::Update { .. } => {
                    self.waiting.frame(&frame, raw);
                }
                // Its own change is not in the store yet.
                ToHost::Load { request, perspective } => {
                    let at = self.waiting.changed.get(perspective);
                    match at.and_then(|at| self.waiting.changes.get(*at)) {
                        Some(change) => effects.push(Effect::Loaded(request, change.state.clone(), change.version)),
                        None => released.extend_from_slice(raw),
                    }
                }
                _ => released.extend_from_slice(raw),
            }
        }
        for (frames, effect) in [(released, Effect::Release as fn(_) -> _), (refused, Effect::Refuse)] {
            if !frames.is_empty() {
                effects.push(effect(frames));
            }
        }
        effects
    }

    /// Commits what waits, if no commit is in progress.
    pub(super) fn next_commit(&mut self, phase: Phase) -> Vec<Effect> {
        let held_back = matches!(phase, Phase::Embargoed | Phase::Abandoned);
        if held_back || self.committing.is_some() || self.waiting.is_empty() {
            return Vec::new();
        }
        let mut next = std::mem::take(&mut self.waiting);
        if next.changes.is_empty() {
            return vec![Effect::Release(next.frames)];
        }
        let changes = std::mem::take(&mut next.changes);
        self.committing = Some(next);
        vec![Effect::Commit(changes)]
    }

    /// The commit in progress is done: what waited for it is released, and the next commit begins. If it failed, everything is
    /// undone.
    pub(super) fn committed(&mut self, phase: Phase, well: bool) -> Vec<Effect> {
        let Some(done) = self.committing.take() else { return Vec::new() };
        if well {
            let mut effects = vec![Effect::Release(done.frames)];
            effects.extend(self.next_commit(phase));
            return effects;
        }
        let mut effects = Vec::new();
        // What has arrived since was made from what is now undone, or tells of it.
        for undone in [done, std::mem::take(&mut self.waiting)] {
            if !undone.frames.is_empty() {
                effects.push(Effect::Undo(undone.frames));
            }
            for perspective in undone.changed.into_keys() {
                self.reverting += 1;
                effects.push(Effect::Revert(perspective));
            }
        }
        effects
    }

    /// It will never serve: its requests are refused.
    pub(super) fn abandon(&mut self) -> Vec<Effect> {
        let kept = std::mem::take(&mut self.waiting);
        if kept.frames.is_empty() { Vec::new() } else { vec![Effect::Refuse(kept.frames)] }
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

#[cfg(test)]
mod tests;
