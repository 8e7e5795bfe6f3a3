use std::sync::atomic::{AtomicBool, AtomicUsize};

use plugin_api::prelude::*;

use super::*;
use crate::memory::{AccountKey, Budget, Meter};
use crate::store::MemoryStore;

/// `hold` occupies the service's thread until the test sets this.
static MAY: AtomicBool = AtomicBool::new(false);
static HELD: AtomicUsize = AtomicUsize::new(0);
static MARKED: AtomicUsize = AtomicUsize::new(0);

#[derive(Default)]
struct Busy;

#[service("busy", save = "never")]
impl Service for Busy {
    type Perspective = Caller;
}

#[derive(Default)]
struct Caller;

#[perspective]
impl Caller {
    /// Keeps the service's thread.
    fn hold(&self) {
        HELD.fetch_add(1, Ordering::SeqCst);
        while !MAY.load(Ordering::SeqCst) {
            std::thread::yield_now();
        }
    }

    /// Counts.
    fn mark(&self) {
        MARKED.fetch_add(1, Ordering::SeqCst);
    }
}

fn call(no: u64, method: &str) -> Vec<u8> {
    let (arguments, keywords) = (jelly::Value::tuple([]).encode(), jelly::Value::dictionary([]).encode());
    let (mut frame, arguments, keywords, attachment) = (Vec::new(), &arguments[..], &keywords[..], 1 << 32 | 1);
    ToLibrary::Call {
        call: 1 << 32 | no,
        attachment,
        object: 0,
        answer: false,
        method,
        arguments,
        keywords,
        handles: &[],
    }
    .write(&mut frame);
    frame
}

/// A client whose calls have not begun leaves at each of the moments of a stop. The calls were made before, so they begin.
#[tokio::test]
async fn calls_of_a_client_that_leaves_during_a_stop_still_begin() {
    for moment in ["before the stop", "the service serves no more", "it is told so"] {
        let slot = Slot::linked::<Busy>(&HostContext::new(Arc::new(MemoryStore::new()))).await.unwrap();
        slot.start().await.unwrap();
        MAY.store(false, Ordering::SeqCst);
        HELD.store(0, Ordering::SeqCst);
        MARKED.store(0, Ordering::SeqCst);
        let lane = Lane::unbounded(1);
        let (attachment, mut frame) = (1 << 32 | 1, Vec::new());
        let (perspective, identity, peer) = ("alice", "alice", "a test");
        ToLibrary::Attach { attachment, perspective, identity, mind: 0, peer, again: false, value: &[], handles: &[] }
            .write(&mut frame);
        let mut known = vec![AttachmentChange::Attached(attachment, frame.clone())];
        slot.submit(&lane, &frame, &mut known).unwrap();
        slot.submit(&lane, &call(2, "hold"), &mut Vec::new()).unwrap();
        let begins = async {
            while HELD.load(Ordering::SeqCst) == 0 {
                tokio::task::yield_now().await;
            }
        };
        tokio::time::timeout(STOP, begins).await.expect("the service comes to its first call");
        (0..50).for_each(|no| slot.submit(&lane, &call(3 + no, "mark"), &mut Vec::new()).unwrap());
        let leaves = || {
            let mut detach = Vec::new();
            ToLibrary::Detach { attachment }.write(&mut detach);
            slot.submit_anyway(&lane, &detach, &mut vec![AttachmentChange::Ended(attachment)]);
        };
        if moment == "before the stop" {
            leaves();
        }
        let instance = slot.current.take().unwrap();
        if moment == "the service serves no more" {
            leaves();
        }
        instance.generation.send_last(&ToLibrary::Stop {});
        if moment == "it is told so" {
            leaves();
        }
        MAY.store(true, Ordering::SeqCst);
        assert!(instance.stopped(STOP).await, "{moment}");
        assert_eq!(MARKED.load(Ordering::SeqCst), 50, "{moment}");
    }
}

/// While a service is frozen, each owner has its own share of the queue, as in the gate: an owner that sends much does not keep
/// others out, and the queued frames are counted for the owner that sent them.
#[tokio::test]
async fn frames_queued_during_a_reload_are_bounded_per_owner() {
    let slot = Slot::linked::<Busy>(&HostContext::new(Arc::new(MemoryStore::new()))).await.unwrap();
    slot.start().await.unwrap();
    let budget = Budget::new(usize::MAX);
    let lane = |connection, name: &str| {
        let account = budget.account(AccountKey::Identity(name.to_owned()));
        Lane { connection, meter: Arc::new(Meter::new(account, usize::MAX)) }
    };
    let (alice, also_alice, bob) = (lane(1, "alice"), lane(2, "alice"), lane(3, "bob"));
    // A frame of a kind that a library ignores.
    let mut frame = vec![200; 1 << 20];
    frame[..4].copy_from_slice(&((1 << 20) - 4_u32).to_le_bytes());
    let submit = |lane| slot.submit(lane, &frame, &mut Vec::new());
    slot.current.freeze(|_| {});
    let all: Vec<_> = (0..80).map(|turn| submit([&alice, &also_alice][turn % 2])).collect();
    assert!(all[..64].iter().all(Result::is_ok) && all[64..].iter().all(Result::is_err), "a quarter is hers");
    assert!(all[64].as_ref().unwrap_err().to_string().contains("does not keep up"), "{:?}", all[64]);
    assert!(submit(&bob).is_ok(), "he does not notice");
    assert_eq!(budget.used(), 65 << 20, "what waits is kept for them");
    slot.current.thaw(|serving, _, waited| {
        waited.iter().for_each(|(waits, frames)| serving.generation.push_anyway(waits.lane(), frames));
    });
    let taken = async {
        while budget.used() > 0 {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(STOP, taken).await.expect("it is served, and not kept any more");
    assert!(submit(&alice).is_ok());
    slot.stop().await;
    // A frame that is never served is not counted for ever.
    let slot = Slot::linked::<Busy>(&HostContext::new(Arc::new(MemoryStore::new()))).await.unwrap();
    slot.start().await.unwrap();
    slot.current.freeze(|_| {});
    slot.submit(&bob, &frame, &mut Vec::new()).unwrap();
    slot.stop().await;
    assert_eq!(budget.used(), 0);
}
