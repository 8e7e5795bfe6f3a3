//! Faults in the host itself since its start. They are counted where they happen, and reported by `credhost doctor`.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::show::many;

/// Log lines that were lost because the log was not read, or could not be written.
pub static LOG_LINES_LOST: AtomicU64 = AtomicU64::new(0);
/// Connections that ended because of a fault in the host.
pub static CONNECTIONS_PANICKED: AtomicU64 = AtomicU64::new(0);
/// Other faults in the host, which ended nothing.
pub static FAULTS: AtomicU64 = AtomicU64::new(0);
/// Threads that ended because of a fault in the host, and were replaced.
pub static WORKERS_REPLACED: AtomicU64 = AtomicU64::new(0);

/// Increments a counter.
pub fn count(what: &AtomicU64) {
    what.fetch_add(1, Ordering::Relaxed);
}

/// Runs `run`, and contains a panic in it: the panic is counted and logged, and the caller continues.
pub fn contained(what: &str, run: impl FnOnce()) {
    if std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).is_err() {
        count(&FAULTS);
        tracing::error!("a fault in the host {what}; please report it");
    }
}

/// The counters that are not zero, each as a sentence.
#[must_use]
pub fn report() -> Vec<String> {
    let told = |what: &AtomicU64, one: &str, more: &str, then: &str| match what.load(Ordering::Relaxed) {
        0 => None,
        count => Some(format!("{} {then}", many(usize::try_from(count).unwrap_or(usize::MAX), one, more))),
    };
    let unread = "lost: standard error was not read, or could not be written";
    let lost = told(&LOG_LINES_LOST, "line of the log was", "lines of the log were", unread);
    let by = "ended because of a fault in the host; please report it";
    let panicked = told(&CONNECTIONS_PANICKED, "connection", "connections", by);
    let by = "replaced after a fault in the host; please report it";
    let replaced = told(&WORKERS_REPLACED, "thread was", "threads were", by);
    let faults = told(&FAULTS, "fault in the host was", "faults in the host were", "contained; please report it");
    [lost, panicked, replaced, faults].into_iter().flatten().collect()
}
