//! Attachments that are older than a generation, and whether it took them.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long to wait for attachments that are handed over, before the result is reported.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Replay {
    state: Mutex<ReplayState>,
    /// The last of them was attached or refused.
    done: Notify,
}

#[derive(Default)]
struct ReplayState {
    waiting: HashSet<u64>,
    refused: usize,
}

impl Replay {
    /// These attachments are sent to the generation again.
    pub(super) fn expect(&self, attachments: impl Iterator<Item = u64>) {
        self.state.lock().waiting.extend(attachments);
    }

    /// The generation has taken or refused an attachment.
    pub(super) fn took(&self, attachment: u64, refused: bool) {
        let mut state = self.state.lock();
        if state.waiting.remove(&attachment) {
            state.refused += usize::from(refused);
            if state.waiting.is_empty() {
                self.done.notify_one();
            }
        }
    }

    /// The generation takes no more.
    pub(super) fn give_up(&self) {
        self.state.lock().waiting.clear();
        self.done.notify_one();
    }

    /// Waits until the generation has taken or refused all of them, but not for long. Returns how many it has refused.
    pub(super) async fn done(&self) -> usize {
        let all = async {
            loop {
                let done = self.done.notified();
                if self.state.lock().waiting.is_empty() {
                    return;
                }
                done.await;
            }
        };
        // An attachment that waits for something is completed later, or never.
        let _ = tokio::time::timeout(TIMEOUT, all).await;
        self.state.lock().refused
    }
}
