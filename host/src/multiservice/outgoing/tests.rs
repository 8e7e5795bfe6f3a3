use std::path::{Path, PathBuf};

use plugin_api::abi::limits::ServiceLimits;

use super::*;
use crate::cred::throttle::Counter;
use crate::cred::{MasterKey, StoreSecret, TokenDigest};
use crate::multiservice::SlotLimits;
use crate::multiservice::context::HostContext;
use crate::store::{Change, Done, Entries, Kept, MemoryStore, Write, audit};

/// A store that commits when the test says so.
#[derive(Default)]
struct Slow {
    memory: MemoryStore,
    waiting: Mutex<Vec<(Vec<Write>, Done<()>)>>,
}

impl Slow {
    /// Finishes the oldest commit with this result.
    fn finish(&self, result: Result<(), StoreError>) {
        let (writes, done) = self.waiting.lock().remove(0);
        match result {
            Ok(()) => self.memory.commit(writes, done),
            Err(error) => done(Err(error)),
        }
    }
}

impl Store for Slow {
    fn commit(&self, writes: Vec<Write>, done: Done<()>) {
        self.waiting.lock().push((writes, done));
    }
    fn state(&self, service: &str, perspective: &str, done: Done<Option<Saved>>) {
        self.memory.state(service, perspective, done);
    }
    fn data(&self, service: &str, range: &Range, done: Done<Entries>) {
        self.memory.data(service, range, done);
    }
    fn identity(&self, name: &str, done: Done<Option<Kept>>) {
        self.memory.identity(name, done);
    }
    fn bearer(&self, token: &TokenDigest, done: Done<Option<Kept>>) {
        self.memory.bearer(token, done);
    }
    fn states(&self, service: &str, after: Option<&str>, limit: usize, done: Done<Vec<(String, Saved)>>) {
        self.memory.states(service, after, limit, done);
    }
    fn identities(&self, after: Option<&str>, limit: usize, done: Done<Vec<Kept>>) {
        self.memory.identities(after, limit, done);
    }
    fn is_known_source(&self, name: &str, source: &[u8; 16], done: Done<bool>) {
        self.memory.is_known_source(name, source, done);
    }
    fn failures(&self, done: Done<Vec<(Counter, u32)>>) {
        self.memory.failures(done);
    }
    fn audit(&self, after: u64, limit: usize, done: Done<Vec<audit::Line>>) {
        self.memory.audit(after, limit, done);
    }
    fn sources(&self, limit: usize, done: Done<Vec<[u8; 16]>>) {
        self.memory.sources(limit, done);
    }
    fn anchor(&self, done: Done<audit::Head>) {
        self.memory.anchor(done);
    }
    fn secret(&self) -> &StoreSecret {
        self.memory.secret()
    }
    fn reseal(&self, key: &MasterKey, nonce: &[u8; 24]) -> Result<(), StoreError> {
        self.memory.reseal(key, nonce)
    }
    fn check(&self) -> Result<(), StoreError> {
        self.memory.check()
    }
    fn backup(&self, to: &Path, progress: &mut dyn FnMut(u32, u32)) -> Result<(), StoreError> {
        self.memory.backup(to, progress)
    }
    fn head(&self) -> Option<PathBuf> {
        self.memory.head()
    }
}

fn heard(mailbox: &crate::multiservice::router::Mailbox) -> Vec<String> {
    let mut bytes = Vec::new();
    mailbox.take(&mut bytes);
    let mut rest = bytes.as_slice();
    let mut heard = Vec::new();
    while let Some((_, frame)) = rest.split_first_chunk::<8>() {
        rest = frame;
        heard.push(match ToHost::read(&mut rest) {
            Some(ToHost::Answer { call, .. }) => format!("answer {}", call as u32),
            Some(ToHost::Failed { call, message, .. }) => format!("failed {}: {message}", call as u32),
            other => format!("{other:?}"),
        });
    }
    heard
}

fn say(outgoing: &Outgoing, frames: &[ToHost<'_>]) {
    let mut bytes = Vec::new();
    frames.iter().for_each(|frame| frame.write(&mut bytes));
    outgoing.frames(&bytes);
}

fn outgoing() -> (Arc<Outgoing>, Arc<Slow>, Arc<crate::multiservice::router::Mailbox>, impl Fn(u64) -> u64) {
    let store = Arc::new(Slow::default());
    let context = HostContext::new(Arc::clone(&store) as Arc<dyn Store>);
    let (number, mailbox) = context.router.connect(Arc::default(), 64 << 20);
    let (outgoing, _stages) = Outgoing::new((SlotNo(1), 1), true, (&context, &Arc::default()), &Arc::default());
    (outgoing, store, mailbox, move |n: u64| u64::from(number) << 32 | n)
}

fn save(perspective: &str, version: u64) -> ToHost<'_> {
    ToHost::Save { perspective, state: &[1], base: version - 1, version }
}

#[test]
fn frames_with_or_after_a_change_wait_for_its_commit() {
    let (outgoing, store, mailbox, call) = outgoing();
    let answer = |n| ToHost::Answer { call: call(n), value: &[], objects: &[] };
    say(&outgoing, &[answer(1), save("a", 1), answer(2)]);
    say(&outgoing, &[answer(3)]);
    say(&outgoing, &[save("b", 1), answer(4)]);
    say(&outgoing, &[save("b", 2), save("a", 2), answer(5)]);
    assert!(heard(&mailbox).is_empty(), "what is told of a change may stand before it");
    store.finish(Ok(()));
    assert_eq!(heard(&mailbox), ["answer 1", "answer 2"]);
    // Everything that has come meanwhile is one commit.
    store.finish(Ok(()));
    assert_eq!(heard(&mailbox), ["answer 3", "answer 4", "answer 5"]);
    assert!(store.waiting.lock().is_empty());
    say(&outgoing, &[answer(6)]);
    assert_eq!(heard(&mailbox), ["answer 6"], "who saves nothing waits for nothing");
}

#[test]
fn a_failed_commit_fails_its_answers_and_all_that_follow() {
    let (outgoing, store, mailbox, call) = outgoing();
    let answer = |n| ToHost::Answer { call: call(n), value: &[], objects: &[] };
    say(&outgoing, &[save("a", 1), answer(1)]);
    say(&outgoing, &[save("b", 1), answer(2)]);
    store.finish(Err(StoreError::Failed("the disk is full".to_owned())));
    let undone = |n: u32| format!("failed {n}: the change could not be saved and was undone");
    assert_eq!(heard(&mailbox), [undone(1), undone(2)]);
    assert!(store.waiting.lock().is_empty(), "what was made from it is not committed");
    // Frames that the service sends before it has reverted are based on undone changes, too.
    say(&outgoing, &[answer(3), save("c", 1)]);
    assert_eq!(heard(&mailbox), [undone(3)]);
    say(&outgoing, &[ToHost::Reverted {}, ToHost::Reverted {}, answer(4), ToHost::Reverted {}, answer(5)]);
    assert_eq!(heard(&mailbox), [undone(4), "answer 5".to_owned()]);
    say(&outgoing, &[save("a", 1), answer(6)]);
    store.finish(Ok(()));
    assert_eq!(heard(&mailbox), ["answer 6"]);
}

#[test]
fn a_second_writer_is_detected_and_not_overwritten() {
    let (outgoing, store, mailbox, call) = outgoing();
    let other = Change { service: "?".to_owned(), perspective: "a".to_owned(), state: vec![9], base: 0, version: 1 };
    store.memory.commit(vec![Write::State(other)], Box::new(|done| done.unwrap()));
    say(&outgoing, &[save("a", 1), ToHost::Answer { call: call(1), value: &[], objects: &[] }]);
    store.finish(Ok(()));
    assert_eq!(heard(&mailbox), ["failed 1: the change could not be saved and was undone"]);
    let (sender, receiver) = std::sync::mpsc::channel();
    store.memory.state("?", "a", Box::new(move |saved| sender.send(saved).unwrap()));
    assert_eq!(receiver.recv().unwrap().unwrap().unwrap().state, [9]);
}

#[test]
fn a_state_over_the_quota_is_not_saved() {
    let store = Arc::new(MemoryStore::new());
    let context = HostContext::new(store);
    let services = ServiceLimits { state: 4, ..ServiceLimits::default() };
    context.limits.set(SlotLimits { services, ..SlotLimits::default() });
    let (number, mailbox) = context.router.connect(Arc::default(), 64 << 20);
    let (outgoing, _stages) = Outgoing::new((SlotNo(1), 1), true, (&context, &Arc::default()), &Arc::default());
    let call = u64::from(number) << 32 | 1;
    let large = ToHost::Save { perspective: "a", state: &[0; 5], base: 0, version: 1 };
    say(&outgoing, &[large, ToHost::Answer { call, value: &[], objects: &[] }]);
    assert_eq!(heard(&mailbox), ["failed 1: the change could not be saved and was undone"]);
}
