use proptest::prelude::*;

use super::*;

#[derive(Debug, Clone)]
enum Said {
    /// A change of a perspective.
    Change(u8),
    /// An answer to a connection, and the perspective whose state it shows, if that is known.
    Answer(u32, Option<u8>),
}

#[derive(Debug, Clone)]
enum Act {
    /// One batch.
    Say(Vec<Said>),
    /// The commit under way succeeds or fails.
    Commit(bool),
    /// The service reports this many reverts, at most as many as the host requested.
    Reverted(usize),
}

fn act() -> impl Strategy<Value = Act> {
    let said = prop_oneof![
        1 => (0..4u8).prop_map(Said::Change),
        2 => (0..4u32, prop::option::of(0..4u8)).prop_map(|(to, of)| Said::Answer(to, of)),
    ];
    prop_oneof![
        4 => prop::collection::vec(said, 1..6).prop_map(Act::Say),
        3 => prop::bool::weighted(0.7).prop_map(Act::Commit),
        2 => (1..6_usize).prop_map(Act::Reverted),
    ]
}

/// A queue, what it has released, and what it may release.
#[derive(Default)]
struct Seen {
    queue: CommitQueue,
    /// Answers in order: the connection, and the perspective whose state the answer shows. An answer's index is its number.
    said: Vec<(u32, Option<u8>)>,
    /// Answers that have left, in order, and whether they were unchanged.
    left: Vec<(u64, bool)>,
    /// The perspectives whose changes are being committed, and those whose changes are next.
    committing: HashSet<u8>,
    waiting: HashSet<u8>,
    reverts: usize,
    version: u64,
}

impl Seen {
    fn take(&mut self, effects: Vec<Effect>) {
        for effect in effects {
            match effect {
                Effect::Release(frames) => {
                    for call in answers(&frames) {
                        assert!(self.may_leave(call), "{call} tells of what is not committed");
                        self.left.push((call, true));
                    }
                }
                Effect::Undo(frames) => self.left.extend(answers(&frames).map(|call| (call, false))),
                Effect::Commit(changes) => {
                    assert!(self.committing.is_empty() && !changes.is_empty(), "one commit at a time");
                    self.committing = std::mem::take(&mut self.waiting);
                }
                Effect::Revert(_) => self.reverts += 1,
                other => panic!("{other:?}"),
            }
        }
    }

    /// `self.committing` is what was not committed when the answer was sent. It is emptied before a commit's own answers are
    /// released.
    fn may_leave(&self, call: u64) -> bool {
        let uncommitted: HashSet<u8> = self.committing.union(&self.waiting).copied().collect();
        let (_, of) = self.said[usize::try_from(call).unwrap()];
        uncommitted.is_empty() || of.is_some_and(|of| !uncommitted.contains(&of))
    }

    fn say(&mut self, batch: Vec<Said>) {
        let mut frames = Vec::new();
        let reverting = self.queue.reverting > 0;
        for said in batch {
            match said {
                Said::Change(perspective) => {
                    self.version += 1;
                    let (name, version) = (perspective.to_string(), self.version);
                    let state = &[1];
                    ToHost::Save { perspective: &name, state, base: version - 1, version }.write(&mut frames);
                    if !reverting {
                        self.waiting.insert(perspective);
                    }
                }
                Said::Answer(to, of) => {
                    let call = u64::from(to) << 32 | self.said.len() as u64;
                    self.said.push((to, of));
                    if let Some(of) = of {
                        let name = of.to_string();
                        let perspective = Some(name.as_bytes());
                        ToHost::Looked { call, perspective, service: false }.write(&mut frames);
                    }
                    ToHost::Answer { call, value: &[], objects: &[] }.write(&mut frames);
                }
            }
        }
        if self.queue.passes(Phase::Serving, &frames) {
            assert!(self.committing.is_empty() && self.waiting.is_empty() && !reverting);
            self.left.extend(answers(&frames).map(|call| (call, true)));
        } else {
            let effects = self.queue.said(Phase::Serving, "s", &frames);
            self.take(effects);
        }
    }

    fn committed(&mut self, well: bool) {
        if self.committing.is_empty() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.committing.clear();
        let effects = self.queue.committed(Phase::Serving, well);
        if let Some(Effect::Commit(_)) = effects.last() {
            let (next, released) = {
                let mut effects = effects;
                (effects.pop(), effects)
            };
            self.take(released);
            self.waiting = waiting;
            self.take(next.into_iter().collect());
        } else {
            self.take(effects);
        }
    }

    fn reverted(&mut self, most: usize) {
        let mut frames = Vec::new();
        let done = self.reverts.min(most);
        self.reverts -= done;
        (0..done).for_each(|_| ToHost::Reverted {}.write(&mut frames));
        let effects = self.queue.said(Phase::Serving, "s", &frames);
        self.take(effects);
    }
}

fn answers(mut frames: &[u8]) -> impl Iterator<Item = u64> {
    std::iter::from_fn(move || {
        loop {
            if let ToHost::Answer { call, .. } = ToHost::read(&mut frames)? {
                return Some(u64::from(call as u32));
            }
        }
    })
}

proptest! {
    /// Every answer leaves once: unchanged when all changes that it may show are committed, or as an error when one failed.
    /// Answers to one connection keep their order.
    #[test]
    fn no_answer_leaves_before_its_changes_are_committed(acts in prop::collection::vec(act(), 1..60)) {
        let mut seen = Seen::default();
        for act in acts {
            match act {
                Act::Say(batch) => seen.say(batch),
                Act::Commit(well) => seen.committed(well),
                Act::Reverted(most) => seen.reverted(most),
            }
            prop_assert_eq!(seen.queue.reverting, seen.reverts, "it waits for what was undone, and for nothing else");
        }
        while !seen.committing.is_empty() {
            seen.committed(true);
        }
        for connection in 0..4 {
            let to_it = |call: &u64| seen.said[usize::try_from(*call).unwrap()].0 == connection;
            let left: Vec<u64> = seen.left.iter().map(|(call, _)| *call).filter(to_it).collect();
            let said: Vec<u64> = (0..seen.said.len() as u64).filter(to_it).collect();
            prop_assert_eq!(left, said, "each once, in order");
        }
    }
}

#[test]
fn a_reader_does_not_wait_for_writers_of_other_states() {
    let (mut queue, mut frames) = (CommitQueue::default(), Vec::new());
    let answer = |connection: u64, looked: Option<&str>, service| {
        let (call, mut frames) = (connection << 32 | 1, Vec::new());
        if let Some(looked) = looked {
            ToHost::Looked { call, perspective: Some(looked.as_bytes()), service }.write(&mut frames);
        }
        ToHost::Answer { call, value: &[], objects: &[] }.write(&mut frames);
        frames
    };
    ToHost::Save { perspective: "bob", state: &[1], base: 0, version: 1 }.write(&mut frames);
    assert!(matches!(&queue.said(Phase::Serving, "s", &frames)[..], [Effect::Commit(_)]));
    let left = |effects: &[Effect]| matches!(effects, [Effect::Release(_)]);
    assert!(left(&queue.said(Phase::Serving, "s", &answer(1, Some("alice"), false))), "she looked at her own");
    assert!(left(&queue.said(Phase::Serving, "s", &answer(1, Some("alice"), true))), "and at the service's");
    assert!(!left(&queue.said(Phase::Serving, "s", &answer(2, Some("bob"), false))), "that is not committed");
    assert!(!left(&queue.said(Phase::Serving, "s", &answer(2, Some("alice"), false))), "one before it waits");
    assert!(!left(&queue.said(Phase::Serving, "s", &answer(3, None, false))), "who knows what that has seen");
    let mut service = Vec::new();
    ToHost::Save { perspective: "", state: &[1], base: 0, version: 1 }.write(&mut service);
    queue.said(Phase::Serving, "s", &service);
    assert!(!left(&queue.said(Phase::Serving, "s", &answer(4, Some("alice"), true))), "the service's own is not");
    assert!(left(&queue.said(Phase::Serving, "s", &answer(5, Some("alice"), false))));
    // A `Looked` for another call says nothing about this one.
    let mut mixed = Vec::new();
    ToHost::Looked { call: 9, perspective: Some(b"alice"), service: false }.write(&mut mixed);
    mixed.extend(answer(6, None, false));
    assert!(!left(&queue.said(Phase::Serving, "s", &mixed)));
}

#[test]
fn a_generation_that_does_not_serve_yet_sends_nothing() {
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
fn retired_generations_save_nothing_and_ended_ones_are_ignored() {
    let mut frames = Vec::new();
    ToHost::Save { perspective: "a", state: &[7], base: 0, version: 1 }.write(&mut frames);
    ToHost::Answer { call: 1, value: &[], objects: &[] }.write(&mut frames);
    let mut queue = CommitQueue::default();
    let effects = queue.said(Phase::Retired, "s", &frames);
    assert!(matches!(&effects[..], [Effect::Release(frames)] if answers(frames).eq([1])), "{effects:?}");
    assert_eq!(queue.said(Phase::Over, "s", &frames), []);
    for phase in [Phase::Embargoed, Phase::Abandoned, Phase::Serving, Phase::Retired, Phase::Over, Phase::OverServing] {
        assert_eq!(Phase::of(phase as u8), phase);
        assert!(phase.ended().is_over());
    }
}
