//! The wall between a test's host and a generation: two queues of frames, and a clock that the test may move.

use std::pin::Pin;
use std::sync::mpsc::Sender;
use std::sync::{Arc, Condvar, Mutex};
#[cfg(feature = "testing")]
use std::time::Duration;

use tokio::sync::Notify;

use super::PATIENCE;
use crate::abi::frame::ToHost;
use crate::runtime::{Sleep, Wall};

#[derive(Default)]
pub(super) struct Gate {
    pub(super) queue: Mutex<Vec<u8>>,
    pub(super) come: Notify,
    pub(super) come_at_all: Condvar,
    #[cfg(feature = "testing")]
    pub(super) advanced: Mutex<Duration>,
}

pub(super) struct TestWall {
    pub(super) number: usize,
    pub(super) gate: Arc<Gate>,
    pub(super) frames: Sender<(usize, Vec<u8>)>,
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "the clock is the machine's"))]
    pub(super) clock_stands: bool,
}

impl Drop for TestWall {
    fn drop(&mut self) {
        // Also sent if the main loop has panicked. The test may have ended.
        let mut stopped = Vec::new();
        ToHost::Stopped {}.write(&mut stopped);
        let _ = self.frames.send((self.number, stopped));
    }
}

impl Wall for TestWall {
    fn pop(&self, into: &mut Vec<u8>) {
        into.append(&mut lock(&self.gate.queue));
    }

    fn arm(&self) -> bool {
        lock(&self.gate.queue).is_empty()
    }

    fn push(&self, frames: &[u8]) {
        // The test may have ended.
        let _ = self.frames.send((self.number, frames.to_vec()));
    }

    fn wait(&self) {
        let queue = lock(&self.gate.queue);
        if queue.is_empty() {
            drop(self.gate.come_at_all.wait_timeout(queue, PATIENCE));
        }
    }

    #[cfg(feature = "testing")]
    fn advanced(&self) -> Option<Duration> {
        let mut advanced = self.gate.advanced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let by = std::mem::take(&mut *advanced);
        (!by.is_zero()).then_some(by)
    }

    #[cfg(feature = "testing")]
    fn clock_stands(&self) -> bool {
        self.clock_stands
    }

    fn sleep(&self) -> Box<dyn Sleep> {
        Box::new(Asleep(Arc::clone(&self.gate)))
    }
}

struct Asleep(Arc<Gate>);

impl Sleep for Asleep {
    fn sleep(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.0.come.notified())
    }
}

pub(super) fn lock(queue: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
