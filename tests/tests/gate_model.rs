//! All interleavings of the threads that hand frames to a generation, the generation's own thread, and the thread that takes the
//! generation away. The code is the host's own, with loom's locks in place of the host's.

#![allow(dead_code, reason = "what the model does not use of it")]

#[path = "../../host/src/multiservice/current.rs"]
mod current;
#[path = "../../host/src/loader/fair.rs"]
mod fair;
#[path = "../../host/src/loader/queue.rs"]
mod queue;

/// Locks that loom tracks, with the interfaces of those that the host uses.
mod sync {
    pub(crate) use loom::sync::Arc;
    pub(crate) use loom::sync::atomic::{AtomicBool, Ordering};

    #[derive(Debug)]
    pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

    impl<T: Default> Default for Mutex<T> {
        fn default() -> Self {
            Self(loom::sync::Mutex::new(T::default()))
        }
    }

    impl<T> Mutex<T> {
        pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
            self.0.lock().expect("nothing panics with it")
        }
    }

    #[derive(Debug)]
    pub(crate) struct RwLock<T>(loom::sync::RwLock<T>);

    impl<T> RwLock<T> {
        pub(crate) fn new(value: T) -> Self {
            Self(loom::sync::RwLock::new(value))
        }
        pub(crate) fn read(&self) -> loom::sync::RwLockReadGuard<'_, T> {
            self.0.read().expect("nothing panics with it")
        }
        pub(crate) fn write(&self) -> loom::sync::RwLockWriteGuard<'_, T> {
            self.0.write().expect("nothing panics with it")
        }
    }
}

use current::Current;
use loom::sync::{Arc, Condvar, Mutex};
use loom::thread;
use queue::Queue;

/// The last frame that a generation receives.
const STOP: u8 = 255;

/// A queue, with a bell in place of the descriptor that its reader sleeps on.
#[derive(Default)]
struct Gate {
    queue: Queue<()>,
    rung: Bell,
}

struct Bell {
    count: Mutex<u64>,
    rings: Condvar,
}

impl Default for Bell {
    fn default() -> Self {
        Self { count: Mutex::new(0), rings: Condvar::new() }
    }
}

impl Gate {
    fn push(&self, frame: u8) {
        // Appended behind everything that waits: the host's other frames go ahead of it.
        if self.queue.barrier(&[frame]) {
            *self.rung.count.lock().expect("nothing panics") += 1;
            self.rung.rings.notify_one();
        }
    }

    /// Works like a generation's main loop: pops until it reads the stop frame, and sleeps only when it may.
    fn run(&self) -> Vec<u8> {
        let (mut seen, mut batch) = (Vec::new(), Vec::new());
        loop {
            batch.clear();
            self.queue.take(&mut batch, 0, |_| true, |_, _| {});
            seen.extend_from_slice(&batch);
            if seen.last() == Some(&STOP) {
                return seen;
            }
            if batch.is_empty() && self.queue.arm() {
                let mut count = self.rung.count.lock().expect("nothing panics");
                while *count == 0 {
                    count = self.rung.rings.wait(count).expect("nothing panics");
                }
                *count = 0;
            }
        }
    }
}

#[test]
fn no_frame_is_lost_and_no_sleeper_is_forgotten() {
    loom::model(|| {
        let gate = Arc::new(Gate::default());
        let writer = Arc::clone(&gate);
        let other = thread::spawn(move || {
            writer.push(1);
            writer.push(STOP);
        });
        // A reader that missed its wake-up would be a deadlock, which loom detects.
        assert_eq!(gate.run(), [1, STOP]);
        other.join().expect("it ends");
    });
}

/// Hands a frame to the current generation; false: nothing serves.
fn hand(current: &Current<Arc<Gate>, ()>, frame: u8) -> bool {
    let push = |gate: &Arc<Gate>| {
        gate.push(frame);
        Ok::<(), ()>(())
    };
    current.hand_over((0, &[frame]), &mut Vec::new(), |_, all| (all < 100).then_some(()), push).is_ok()
}

/// The last frame that a generation receives before it freezes.
const FREEZE: u8 = 254;

fn replaced(takes_over: bool) {
    loom::model(move || {
        let (old, new) = (Arc::new(Gate::default()), Arc::new(Gate::default()));
        let current = Arc::new(Current::new(Arc::new(Arc::clone(&old))));
        let callers: Vec<_> = [1, 2]
            .into_iter()
            .map(|frame| {
                let current = Arc::clone(&current);
                thread::spawn(move || assert!(hand(&current, frame), "nobody is refused while a service is replaced"))
            })
            .collect();
        current.freeze(|gate| gate.push(FREEZE));
        let all = |gate: &Gate, waited: &[((), Vec<u8>)]| {
            waited.iter().flat_map(|(_, frames)| frames).for_each(|frame| gate.push(*frame));
        };
        if takes_over {
            current.switch(Arc::new(Arc::clone(&new)), |gate, _, _, waited| all(gate, waited));
        } else {
            current.thaw(|gate, _, waited| all(gate, waited));
        }
        callers.into_iter().for_each(|caller| caller.join().expect("it ends"));
        old.push(STOP);
        new.push(STOP);
        let (seen, after) = (old.run(), new.run());
        let at = seen.iter().position(|frame| *frame == FREEZE).expect("it was told");
        if takes_over {
            assert_eq!(seen[at..], [FREEZE, STOP], "the old is handed nothing behind the word to stand still");
        }
        let mut calls: Vec<u8> = seen.iter().chain(&after).copied().filter(|frame| *frame < FREEZE).collect();
        calls.sort_unstable();
        assert_eq!(calls, [1, 2], "each call is served once");
    });
}

#[test]
fn no_call_is_lost_or_served_twice_while_a_service_is_replaced() {
    replaced(true);
}

#[test]
fn an_abandoned_replacement_loses_and_repeats_no_call() {
    replaced(false);
}

#[test]
fn accepted_frames_precede_the_stop_and_none_follow() {
    loom::model(|| {
        let gate = Arc::new(Gate::default());
        let current = Arc::new(Current::new(Arc::new(Arc::clone(&gate))));
        let callers: Vec<_> = [1, 2]
            .into_iter()
            .map(|frame| {
                let current = Arc::clone(&current);
                thread::spawn(move || hand(&current, frame).then_some(frame))
            })
            .collect();
        let taken = current.take().expect("nobody else takes it");
        taken.push(STOP);
        let accepted: Vec<u8> = callers.into_iter().filter_map(|caller| caller.join().expect("it ends")).collect();
        assert!(!hand(&current, 9));
        let mut seen = gate.run();
        assert_eq!(seen.pop(), Some(STOP), "it is the last");
        seen.sort_unstable();
        assert_eq!(seen, accepted, "who was not refused is served");
    });
}
