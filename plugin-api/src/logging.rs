//! Forwards the library's `tracing` events and its panics to the host's log.

use std::cell::Cell;
use std::fmt::Write;
use std::sync::OnceLock;

use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

type Log = Box<dyn Fn(u8, &str, &str) + Send + Sync>;

static LOG: OnceLock<Log> = OnceLock::new();

/// Sends this library's events and panics to the host. Each library has its own copy of `tracing` and of the panic
/// hook, so this affects no other library. A second generation of the same library has its own copy, too.
pub(crate) fn install(log: Log) {
    if LOG.set(log).is_err() {
        return;
    }
    // If the author has already set a subscriber, that one stays.
    let _ = tracing::subscriber::set_global_default(Forward);
    // Does not symbolize, because a backtrace costs 35 MB and a quarter of a second, and pins the library.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map_or_else(String::new, |at| format!(" at {}:{}", at.file(), at.line()));
        let last = panic.location().map(|at| (at.file().to_owned(), at.line(), payload(panic.payload()).to_owned()));
        LAST_PANIC.with(|kept| kept.replace(last));
        say(1, "panic", &format!("panicked{place}: {}", payload(panic.payload())));
    }));
}

thread_local! {
    /// Where this thread last panicked, and the message.
    static LAST_PANIC: Cell<Option<(String, u32, String)>> = const { Cell::new(None) };
}

/// Returns where this thread last panicked, and the message; then clears both.
pub(crate) fn last_panic() -> Option<(String, u32, String)> {
    LAST_PANIC.with(Cell::take)
}

pub(crate) fn payload(payload: &(dyn std::any::Any + Send)) -> &str {
    payload
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| payload.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("(no message)")
}

fn say(level: u8, target: &str, text: &str) {
    if let Some(log) = LOG.get() {
        log(level, target, text);
    }
}

struct Forward;

impl Subscriber for Forward {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        *metadata.level() <= Level::DEBUG
    }

    fn new_span(&self, _span: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }

    fn record(&self, _span: &Id, _values: &Record<'_>) {}

    fn record_follows_from(&self, _span: &Id, _follows: &Id) {}

    fn event(&self, event: &Event<'_>) {
        let mut line = Line(String::new());
        event.record(&mut line);
        let level = match *event.metadata().level() {
            Level::ERROR => 1,
            Level::WARN => 2,
            Level::INFO => 3,
            Level::DEBUG => 4,
            Level::TRACE => 5,
        };
        say(level, event.metadata().target(), line.0.trim_start());
    }

    fn enter(&self, _span: &Id) {}

    fn exit(&self, _span: &Id) {}
}

struct Line(String);

impl Visit for Line {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        // Writing to a String cannot fail.
        let _ = if field.name() == "message" {
            write!(self.0, " {value:?}")
        } else {
            write!(self.0, " {}={value:?}", field.name())
        };
    }
}
