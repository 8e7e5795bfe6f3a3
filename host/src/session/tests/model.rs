//! Random sequences of actions on a connection, against a model of access: a set of attachments for each object, and nothing
//! else.

use std::collections::{BTreeMap, BTreeSet};

use plugin_api::abi::frame::ToHost;
use proptest::prelude::*;

use super::pair::{DEAD, Pair, cache};
use crate::cred::Key;

#[derive(Debug, Clone)]
enum Act {
    /// One of two people attaches to one of two perspectives.
    Attach(usize, usize),
    /// A perspective hands an object out.
    HandOut(usize, u64),
    /// An object that the client has hands another out.
    HandOn(usize, u64),
    /// A perspective hands a cached object out.
    Publish(usize, u64),
    LetGo(usize),
    DropObject(usize),
    /// A person loses a key, and gets it back.
    Revoke(usize, usize),
    /// A person is disabled, and enabled again.
    Disable(usize),
    /// The service is replaced: what is attached stays.
    Compare,
    /// The service ends one attachment.
    Kick(usize),
}

const PEOPLE: [&str; 2] = ["alice", "bob"];

fn perspective(person: usize, which: usize) -> &'static str {
    if which == 0 { PEOPLE[person] } else { "shared" }
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        4 => (0..2usize, 0..2usize).prop_map(|(who, which)| Act::Attach(who, which)),
        6 => (any::<usize>(), 40..45u64).prop_map(|(by, object)| Act::HandOut(by, object)),
        4 => (any::<usize>(), 40..45u64).prop_map(|(by, object)| Act::HandOn(by, object)),
        2 => (any::<usize>(), 60..62u64).prop_map(|(by, object)| Act::Publish(by, object)),
        3 => any::<usize>().prop_map(Act::LetGo),
        3 => any::<usize>().prop_map(Act::DropObject),
        2 => (0..2usize, 0..2usize).prop_map(|(who, which)| Act::Revoke(who, which)),
        1 => (0..2usize).prop_map(Act::Disable),
        1 => Just(Act::Compare),
        1 => any::<usize>().prop_map(Act::Kick),
    ]
}

/// An attachment, as the model has it.
#[derive(Debug, Clone)]
struct Attachment {
    number: u64,
    person: usize,
    which: usize,
    /// The perspective's luid, until the client has released it.
    luid: Option<u64>,
}

/// An object that the client has: the attachments by which it came, and how often it was sent.
#[derive(Debug, Clone, Default)]
struct Held {
    object: u64,
    by: BTreeSet<u64>,
    count: u64,
    /// It was taken away.
    dead: bool,
}

struct Life {
    pair: Pair,
    attachments: Vec<Attachment>,
    /// By luid.
    held: BTreeMap<u64, Held>,
    cached: BTreeMap<u64, Held>,
}

impl Life {
    fn new() -> Self {
        Self { pair: Pair::new(), attachments: Vec::new(), held: BTreeMap::new(), cached: BTreeMap::new() }
    }

    /// One of the attachments whose perspective the client has.
    fn attached(&self, at: usize) -> Option<Attachment> {
        let all: Vec<&Attachment> = self.attachments.iter().filter(|of| of.luid.is_some()).collect();
        (!all.is_empty()).then(|| all[at % all.len()].clone())
    }

    fn alive(&self, at: usize) -> Option<u64> {
        let all: Vec<u64> = self.held.iter().filter(|(_, held)| !held.dead).map(|(luid, _)| *luid).collect();
        (!all.is_empty()).then(|| all[at % all.len()])
    }

    fn given(&mut self, target: u64, object: u64, by: u64) {
        let luid = self.pair.hand_out("board", target, object);
        let held = self.held.entry(luid).or_default();
        assert!(!held.dead, "a luid that was taken away names nothing again");
        held.object = object;
        held.by.insert(by);
        held.count += 1;
    }

    /// Takes these attachments away.
    fn gone(&mut self, gone: impl Fn(&Attachment) -> bool) {
        let numbers: BTreeSet<u64> = self.attachments.iter().filter(|of| gone(of)).map(|of| of.number).collect();
        self.attachments.retain(|of| !numbers.contains(&of.number));
        for held in self.held.values_mut().chain(self.cached.values_mut()) {
            held.by.retain(|by| !numbers.contains(by));
            held.dead |= held.by.is_empty();
        }
    }

    fn act(&mut self, act: &Act) {
        match *act {
            Act::Attach(person, which) => {
                if self.attachments.len() < 6 {
                    let avatar = self.pair.login(PEOPLE[person], None);
                    let (number, luid) = self.pair.attach(avatar, "board", perspective(person, which), None);
                    self.attachments.push(Attachment { number, person, which, luid: Some(luid) });
                }
            }
            Act::HandOut(by, object) => {
                if let Some(by) = self.attached(by) {
                    self.given(by.luid.unwrap(), object, by.number);
                }
            }
            Act::HandOn(through, object) => {
                if let Some(luid) = self.alive(through) {
                    // The call comes by one of the attachments that the object came by.
                    let by = self.pair.reaches("board", luid).expect("it lives");
                    assert!(self.held[&luid].by.contains(&by));
                    self.given(luid, object, by);
                }
            }
            Act::Publish(by, object) => {
                if let Some(by) = self.attached(by) {
                    let (_, luids) = self.pair.get("board", by.luid.unwrap(), &cache(object, &[]), &[object]);
                    let held = self.cached.entry(luids[0]).or_default();
                    assert!(!held.dead, "a copy that was taken away is sent anew");
                    held.object = object;
                    held.by.insert(by.number);
                    held.count += 1;
                }
            }
            Act::LetGo(at) => {
                if let Some(of) = self.attached(at) {
                    self.pair.client.output.release(of.luid.unwrap(), 1);
                    self.pair.turn();
                    let entry = self.attachments.iter_mut().find(|other| other.number == of.number).unwrap();
                    entry.luid = None;
                }
            }
            Act::DropObject(at) => {
                let all: Vec<u64> = self.held.keys().copied().collect();
                if !all.is_empty() {
                    let luid = all[at % all.len()];
                    let held = self.held.remove(&luid).unwrap();
                    self.pair.client.output.release(luid, held.count);
                    self.pair.turn();
                }
            }
            Act::Revoke(person, which) => {
                let key = Key::new("board", perspective(person, which)).unwrap();
                let identity = self.pair.identities.get_mut(PEOPLE[person]).unwrap();
                identity.keyring.remove(&key);
                self.pair.tell_of(PEOPLE[person]);
                self.pair.identities.get_mut(PEOPLE[person]).unwrap().keyring.add(key);
                self.pair.tell_of(PEOPLE[person]);
                self.gone(|of| of.person == person && of.which == which);
            }
            Act::Disable(person) => {
                for enabled in [false, true] {
                    self.pair.identities.get_mut(PEOPLE[person]).unwrap().enabled = enabled;
                    self.pair.tell_of(PEOPLE[person]);
                }
                self.gone(|of| of.person == person);
            }
            Act::Compare => {
                // The attachments that a next generation would be told of.
                let known = self.pair.service("board").known();
                let lives = |of: &&Attachment| of.luid.is_some() || self.is_used(of.number);
                assert_eq!(known, self.attachments.iter().filter(lives).count());
            }
            Act::Kick(at) => {
                if let Some(of) = self.attached(at) {
                    self.pair.says("board", &ToHost::End { attachment: of.number });
                    self.gone(|other| other.number == of.number);
                }
            }
        }
    }

    fn is_used(&self, number: u64) -> bool {
        self.held.values().chain(self.cached.values()).any(|held| held.by.contains(&number))
    }

    /// The session lets through exactly what the model says.
    fn compare(&mut self) {
        for (luid, held) in self.held.clone() {
            match self.pair.reaches("board", luid) {
                Ok(by) => assert!(held.by.contains(&by), "{held:?} is called by {by}"),
                Err(class) => assert!(held.dead && class == DEAD, "{held:?} fails with {class}"),
            }
        }
        for of in self.attachments.clone() {
            if let Some(luid) = of.luid {
                assert_eq!(self.pair.reaches("board", luid), Ok(of.number));
            }
        }
        // The service is owed each object as often as the client has it.
        let mut owed: BTreeMap<u64, u64> = BTreeMap::new();
        for held in self.held.values().chain(self.cached.values()).filter(|held| !held.dead) {
            *owed.entry(held.object).or_default() += held.count;
        }
        assert_eq!(*self.pair.service("board").out.lock(), owed);
    }

    /// The client gives everything back: nothing is left anywhere.
    fn end(mut self) {
        let output = &mut self.pair.client.output;
        self.held.iter().for_each(|(luid, held)| output.release(*luid, held.count));
        self.cached.iter().for_each(|(luid, held)| (0..held.count).for_each(|_| output.decache(*luid)));
        self.attachments.iter().filter_map(|of| of.luid).for_each(|luid| output.release(luid, 1));
        self.pair.turn();
        let owners = &self.pair.session().owners;
        assert_eq!((owners.references.counts(), owners.calls.counts()), ((0, 0, 0), (0, 0, 0)));
        assert!(owners.attachments.is_empty());
        let service = self.pair.service("board");
        assert!(service.out.lock().is_empty());
        assert_eq!(service.known(), 0);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, ..ProptestConfig::default() })]

    #[test]
    fn an_object_works_exactly_while_an_attachment_it_came_by_lasts(acts in prop::collection::vec(act(), 1..40)) {
        let mut life = Life::new();
        for act in &acts {
            life.act(act);
            life.compare();
        }
        life.end();
    }
}
