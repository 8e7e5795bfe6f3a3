//! What is committed before it is told, and what waits for that. No IO: what is to be done comes back as [`Effect`]s.
//!
//! One commit is under way at a time; what comes meanwhile is the next. When one fails, nothing that follows it counts until
//! the service has gone back to what was committed last.

use plugin_api::abi::frame::{ToHost, next_to_host};

use crate::store::Change;

/// How far a generation has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Phase {
    /// It serves nobody yet: what it wants to be kept, or told to clients, waits until it does.
    Embargoed,
    /// It never will: what it wants to be kept or told is refused.
    Abandoned,
    /// Clients' calls go to it.
    Serving,
    /// Its successor serves: it answers calls that wait, and saves nothing.
    Retired,
    /// It has ended without having served, or after its successor did.
    Over,
    /// It has ended while it served.
    OverServing,
}

impl Phase {
    /// Of its number.
    pub(super) fn of(number: u8) -> Self {
        const ALL: [Phase; 6] =
            [Phase::Embargoed, Phase::Abandoned, Phase::Serving, Phase::Retired, Phase::Over, Phase::OverServing];
        ALL.into_iter().find(|phase| *phase as u8 == number).unwrap_or(Self::Over)
    }

    pub(super) fn is_over(self) -> bool {
        matches!(self, Self::Over | Self::OverServing)
    }

    /// What it is once it has ended.
    pub(super) fn ended(self) -> Self {
        match self {
            Self::Serving | Self::OverServing => Self::OverServing,
            Self::Embargoed | Self::Abandoned | Self::Retired | Self::Over => Self::Over,
        }
    }
}

/// What is to be done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Effect {
    /// These frames go where they are for.
    Release(Vec<u8>),
    /// These frames are of changes that were not committed: their answers become errors.
    Undo(Vec<u8>),
    /// These are asked for by a generation that never comes to serve.
    Refuse(Vec<u8>),
    /// This is to be committed; [`CommitQueue::committed`] says how that went.
    Commit(Vec<Change>),
    /// The service is to be told what a perspective's state is again.
    Revert(String),
    /// A state that is asked for, and that only the queue has: the request's number, and what is waiting to be committed.
    Loaded(u64, Vec<u8>, u64),
}

/// Frames, and the changes that they wait for.
#[derive(Debug, Default)]
struct Pending {
    frames: Vec<u8>,
    changes: Vec<Change>,
    /// The perspectives of the changes, once these are handed to the store.
    changed: Vec<String>,
}

impl Pending {
    fn is_empty(&self) -> bool {
        self.frames.is_empty() && self.changes.is_empty()
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

/// See the file's page.
#[derive(Debug, Default)]
pub(super) struct CommitQueue {
    /// What is being committed.
    committing: Option<Pending>,
    /// What has come meanwhile: committed next, together.
    waiting: Pending,
    /// How many perspectives have not gone back yet to what was committed last.
    reverting: usize,
}

impl CommitQueue {
    /// Whether nothing of the queue's keeps these frames from going out as they are: they change nothing, and nothing is
    /// under way. The way of nearly all answers.
    pub(super) fn passes(&self, phase: Phase, frames: &[u8]) -> bool {
        matches!(phase, Phase::Serving | Phase::Retired)
            && self.reverting == 0
            && self.committing.is_none()
            && !has_changes(frames)
    }

    /// The generation has said this; `service` is its name.
    pub(super) fn said(&mut self, phase: Phase, service: &str, mut frames: &[u8]) -> Vec<Effect> {
        match phase {
            Phase::Over | Phase::OverServing => Vec::new(),
            Phase::Embargoed | Phase::Abandoned => self.hold_back(phase, service, frames),
            Phase::Serving | Phase::Retired => {
                let mut effects = self.while_reverting(&mut frames);
                if self.reverting > 0 {
                    return effects;
                }
                // A change and what is told of it come in one batch, in whatever order: all of a batch waits for its changes.
                while let Some((frame, raw)) = next_to_host(&mut frames) {
                    match frame {
                        ToHost::Save { .. } if phase == Phase::Retired => {}
                        ToHost::Save { perspective, state, base, version } => {
                            self.waiting.change(service, perspective, state, base, version);
                        }
                        _ => self.waiting.frames.extend_from_slice(raw),
                    }
                }
                effects.extend(self.next_commit(phase));
                effects
            }
        }
    }

    /// Nothing that follows a failed commit counts until the service has gone back.
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

    /// A generation that does not serve yet: what it says of its start, and what it reads, goes on; the rest waits.
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
                    self.waiting.frames.extend_from_slice(raw);
                }
                // What it has changed itself is not in the store yet.
                ToHost::Load { request, perspective } => {
                    match self.waiting.changes.iter().find(|change| change.perspective == perspective) {
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

    /// Commits what waits, if nothing is being committed.
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
        next.changed = changes.iter().map(|change| change.perspective.clone()).collect();
        self.committing = Some(next);
        vec![Effect::Commit(changes)]
    }

    /// The commit that was under way is done: what waited for it leaves, and what has come meanwhile is next. If it failed,
    /// all of it is undone.
    pub(super) fn committed(&mut self, phase: Phase, well: bool) -> Vec<Effect> {
        let Some(done) = self.committing.take() else { return Vec::new() };
        if well {
            let mut effects = vec![Effect::Release(done.frames)];
            effects.extend(self.next_commit(phase));
            return effects;
        }
        let mut effects = Vec::new();
        // What has come since was made from what is undone now, or tells of it.
        for undone in [done, std::mem::take(&mut self.waiting)] {
            if !undone.frames.is_empty() {
                effects.push(Effect::Undo(undone.frames));
            }
            let later = undone.changes.into_iter().map(|change| change.perspective);
            for perspective in undone.changed.into_iter().chain(later) {
                self.reverting += 1;
                effects.push(Effect::Revert(perspective));
            }
        }
        effects
    }

    /// It will not come to serve: what it wanted is refused.
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
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[derive(Debug, Clone)]
    enum Act {
        /// One batch: changes of perspectives, and answers.
        Say(Vec<(bool, u8)>),
        /// The commit under way comes to this.
        Commit(bool),
        /// The service has gone back to what was committed last, as often as it was told to.
        Reverted,
    }

    fn act() -> impl Strategy<Value = Act> {
        prop_oneof![
            4 => prop::collection::vec((any::<bool>(), 0..4u8), 1..6).prop_map(Act::Say),
            3 => prop::bool::weighted(0.7).prop_map(Act::Commit),
            2 => Just(Act::Reverted),
        ]
    }

    /// What a queue has let out.
    #[derive(Default)]
    struct Seen {
        queue: CommitQueue,
        /// Answers, in order: how many changes had been said before and with each, and whether they were all committed.
        said: Vec<u64>,
        released: Vec<u64>,
        undone: Vec<u64>,
        committing: bool,
        reverts: usize,
    }

    impl Seen {
        fn take(&mut self, effects: Vec<Effect>) {
            for effect in effects {
                match effect {
                    Effect::Release(frames) => self.released.extend(answers(&frames)),
                    Effect::Undo(frames) => self.undone.extend(answers(&frames)),
                    Effect::Commit(changes) => {
                        assert!(!self.committing && !changes.is_empty(), "one commit at a time");
                        self.committing = true;
                    }
                    Effect::Revert(_) => self.reverts += 1,
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn answers(mut frames: &[u8]) -> Vec<u64> {
        let mut calls = Vec::new();
        while let Some(frame) = ToHost::read(&mut frames) {
            if let ToHost::Answer { call, .. } = frame {
                calls.push(call);
            }
        }
        calls
    }

    proptest! {
        /// Every answer leaves once: as it is, when all changes before it are committed; as an error, when one was not.
        #[test]
        fn nothing_is_told_before_it_is_committed(acts in prop::collection::vec(act(), 1..60)) {
            let mut seen = Seen::default();
            let (mut next, mut version) = (0u64, 0u64);
            // The answers that wait for the commit under way, and for the one after it.
            for act in acts {
                match act {
                    Act::Say(batch) => {
                        let mut frames = Vec::new();
                        let changes = batch.iter().any(|(change, _)| *change);
                        let first = next;
                        for (change, perspective) in batch {
                            if change {
                                version += 1;
                                let name = perspective.to_string();
                                ToHost::Save { perspective: &name, state: &[1], base: version - 1, version }.write(&mut frames);
                            } else {
                                seen.said.push(next);
                                ToHost::Answer { call: next, value: &[], objects: &[] }.write(&mut frames);
                                next += 1;
                            }
                        }
                        let idle = !seen.committing && seen.queue.reverting == 0;
                        if seen.queue.passes(Phase::Serving, &frames) {
                            prop_assert!(idle && !changes);
                            seen.released.extend(answers(&frames));
                        } else {
                            let effects = seen.queue.said(Phase::Serving, "s", &frames);
                            let leaves = effects.iter().any(|effect| matches!(effect, Effect::Release(_)));
                            prop_assert!(!leaves || idle && !changes, "answers from {first} on wait for what is not committed");
                            seen.take(effects);
                        }
                    }
                    Act::Commit(well) => {
                        if std::mem::take(&mut seen.committing) {
                            let effects = seen.queue.committed(Phase::Serving, well);
                            seen.take(effects);
                        }
                    }
                    Act::Reverted => {
                        let mut frames = Vec::new();
                        (0..std::mem::take(&mut seen.reverts)).for_each(|_| ToHost::Reverted {}.write(&mut frames));
                        let effects = seen.queue.said(Phase::Serving, "s", &frames);
                        seen.take(effects);
                    }
                }
            }
            while std::mem::take(&mut seen.committing) {
                let effects = seen.queue.committed(Phase::Serving, true);
                seen.take(effects);
            }
            let mut all = [seen.released.clone(), seen.undone].concat();
            all.sort_unstable();
            prop_assert_eq!(all, seen.said, "each once");
            prop_assert!(seen.released.is_sorted(), "in order");
        }
    }

    #[test]
    fn a_generation_that_does_not_serve_yet_tells_nothing_and_may_never() {
        let mut queue = CommitQueue::default();
        let mut frames = Vec::new();
        ToHost::Save { perspective: "a", state: &[7], base: 0, version: 1 }.write(&mut frames);
        ToHost::Load { request: 1, perspective: "a" }.write(&mut frames);
        ToHost::Write { request: 2, base: 0, entries: &[] }.write(&mut frames);
        ToHost::Started {}.write(&mut frames);
        let effects = queue.said(Phase::Embargoed, "s", &frames);
        let mut started = Vec::new();
        ToHost::Started {}.write(&mut started);
        assert_eq!(effects, [Effect::Loaded(1, vec![7], 1), Effect::Release(started)]);
        assert_eq!(queue.next_commit(Phase::Embargoed), []);
        let mut write = Vec::new();
        ToHost::Write { request: 2, base: 0, entries: &[] }.write(&mut write);
        assert_eq!(queue.abandon(), [Effect::Refuse(write.clone())]);
        assert_eq!(queue.said(Phase::Abandoned, "s", &write), [Effect::Refuse(write)]);
    }

    #[test]
    fn what_a_retired_generation_saves_is_not_saved_and_one_that_is_over_says_nothing() {
        let mut frames = Vec::new();
        ToHost::Save { perspective: "a", state: &[7], base: 0, version: 1 }.write(&mut frames);
        ToHost::Answer { call: 1, value: &[], objects: &[] }.write(&mut frames);
        let mut queue = CommitQueue::default();
        let effects = queue.said(Phase::Retired, "s", &frames);
        assert!(matches!(&effects[..], [Effect::Release(frames)] if answers(frames) == [1]), "{effects:?}");
        assert_eq!(queue.said(Phase::Over, "s", &frames), []);
        for phase in
            [Phase::Embargoed, Phase::Abandoned, Phase::Serving, Phase::Retired, Phase::Over, Phase::OverServing]
        {
            assert_eq!(Phase::of(phase as u8), phase);
            assert!(phase.ended().is_over());
        }
    }
}
