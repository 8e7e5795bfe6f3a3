//! Attachments that were there before a generation, and how it took them.

use std::collections::HashSet;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;

/// How long clients that are handed over are waited for, before it is said how that went.
const TIMEOUT: Duration = Duration::from_secs(2);

#[derive(Default)]
pub(super) struct Replay {
    state: Mutex<ReplayState>,
    /// The last of those was attached, or refused.
    done: Notify,
}

#[derive(Default)]
struct ReplayState {
    waiting: HashSet<u64>,
    refused: usize,
}

impl Replay {
    /// These attachments are sent to it again.
    pub(super) fn expect(&self, attachments: impl Iterator<Item = u64>) {
        self.state.lock().waiting.extend(attachments);
    }

    /// It has taken an attachment, or refused it.
    pub(super) fn took(&self, attachment: u64, refused: bool) {
        let mut state = self.state.lock();
        if state.waiting.remove(&attachment) {
            state.refused += usize::from(refused);
            if state.waiting.is_empty() {
                self.done.notify_one();
            }
        }
    }

    /// It takes none any more.
    pub(super) fn give_up(&self) {
        self.state.lock().waiting.clear();
        self.done.notify_one();
    }

    /// Waits until it has taken all of them, or refused them; not for long. Answers with how many it has refused.
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
        // One that waits for something is attached later, or is not.
        let _ = tokio::time::timeout(TIMEOUT, all).await;
        self.state.lock().refused
    }
}
