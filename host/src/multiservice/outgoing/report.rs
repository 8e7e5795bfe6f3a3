//! What the operator reads of a generation: its log lines, its panics, the states that it could not read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use parking_lot::Mutex;

/// The most log lines of a service per second. Further lines are only counted.
const LOG_LIMIT: u64 = 200;
/// How many perspectives with unreadable states are remembered.
const UNREADABLE: usize = 100;
/// The longest line, and how much of a panic is shown with a refusal, in characters.
const LINE: usize = 2_000;
const PANIC: usize = 500;

pub(super) struct Report {
    /// The generation's number.
    generation: u32,
    /// How many calls of the slot panicked.
    faults: Arc<AtomicU64>,
    unreadable: Mutex<BTreeMap<String, String>>,
    /// Where it last panicked, if it said so. This is shown with its next refusal.
    panicked: Mutex<Option<String>>,
    /// The current second, and how many lines it has had.
    lines: Mutex<(u64, u64)>,
    started: Instant,
}

impl Report {
    pub(super) fn new(generation: u32, faults: &Arc<AtomicU64>) -> Self {
        Self {
            generation,
            faults: Arc::clone(faults),
            unreadable: Mutex::default(),
            panicked: Mutex::default(),
            lines: Mutex::new((0, 0)),
            started: Instant::now(),
        }
    }

    /// Forgets an earlier panic: it has nothing to do with what is asked next.
    pub(super) fn forget_panic(&self) {
        *self.panicked.lock() = None;
    }

    /// The message of a refusal, with the place of a panic, if there was one.
    pub(super) fn refusal(&self, message: &str) -> String {
        match self.panicked.lock().take() {
            Some(panicked) => format!("{message} ({panicked})"),
            None => message.to_owned(),
        }
    }

    /// A call panicked.
    pub(super) fn call_panicked(&self, service: &str, message: &str) {
        self.faults.fetch_add(1, Ordering::Relaxed);
        if self.may_log(service) {
            tracing::error!(service, "a call panicked: {message}");
        }
    }

    /// A perspective's saved state cannot be read.
    pub(super) fn cannot_read(&self, service: &str, perspective: &str, message: &str) {
        if self.may_log(service) {
            tracing::error!(service, perspective, "its saved state cannot be read and stays unchanged: {message}");
        }
        let mut unreadable = self.unreadable.lock();
        if unreadable.len() < UNREADABLE || unreadable.contains_key(perspective) {
            unreadable.insert(perspective.to_owned(), message.to_owned());
        }
    }

    /// The perspectives whose states the generation could not read, and why.
    pub(super) fn unreadable(&self) -> Vec<(String, String)> {
        self.unreadable.lock().iter().map(|(name, why)| (name.clone(), why.clone())).collect()
    }

    /// Whether another line may be written in this second.
    fn may_log(&self, service: &str) -> bool {
        let now = self.started.elapsed().as_secs();
        let mut lines = self.lines.lock();
        if lines.0 != now {
            let dropped = lines.1.saturating_sub(LOG_LIMIT);
            if dropped > 0 {
                tracing::warn!(service, "log lines dropped within one second: {dropped}");
            }
            *lines = (now, 0);
        }
        lines.1 += 1;
        lines.1 <= LOG_LIMIT
    }

    /// Logs a line of the library's.
    pub(super) fn log(&self, service: &str, level: u8, target: &str, text: &str) {
        // What a library says must not break the terminal or imitate a line of the host's.
        let text: String = text.chars().take(LINE).map(|c| if c.is_control() { ' ' } else { c }).collect();
        if target == "panic" {
            *self.panicked.lock() = Some(text.chars().take(PANIC).collect());
        }
        if !self.may_log(service) {
            return;
        }
        let generation = self.generation;
        match level {
            1 => tracing::error!(service, generation, module = target, "{text}"),
            2 => tracing::warn!(service, generation, module = target, "{text}"),
            3 => tracing::info!(service, generation, module = target, "{text}"),
            4 => tracing::debug!(service, generation, module = target, "{text}"),
            _ => tracing::trace!(service, generation, module = target, "{text}"),
        }
    }
}
