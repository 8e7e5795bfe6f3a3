//! Faults in the host itself since its start. They are counted where they happen, and reported by `credhost doctor`.

use std::sync::atomic::{AtomicU64, Ordering};

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
        tracing::error!("a fault of the host's own {what}; please report it");
    }
}

/// The counters that are not zero, each as a sentence.
#[must_use]
pub fn report() -> Vec<String> {
    let told = |what: &AtomicU64, sentence: &str| match what.load(Ordering::Relaxed) {
        0 => None,
        count => Some(format!("{count} {sentence}")),
    };
    let lost = told(&LOG_LINES_LOST, "lines of the log were lost: it was not read, or could not be written");
    let panicked = told(&CONNECTIONS_PANICKED, "connections ended by a fault of the host's own; please report it");
    let replaced =
        told(&WORKERS_REPLACED, "threads ended by a fault of the host's own, and were replaced; please report it");
    let faults = told(&FAULTS, "faults of the host's own were contained; please report it");
    [lost, panicked, replaced, faults].into_iter().flatten().collect()
}
