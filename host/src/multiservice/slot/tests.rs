use std::sync::atomic::{AtomicBool, AtomicUsize};

use plugin_api::prelude::*;

use super::*;
use crate::store::MemoryStore;

/// `hold` keeps the service's thread until the test says so.
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

/// At each of the moments of a stop, a client leaves whose calls have not begun: they were made before, and begin.
#[tokio::test]
async fn calls_of_who_leaves_while_the_service_stops_begin_first() {
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
