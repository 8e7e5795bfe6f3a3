//! The log: lines on standard error, written by a thread of its own. Nothing waits for it, wherever it goes: if its reader has
//! gone or no longer reads, or the disk is full, lines are lost and counted.

mod limit;

use std::io::{self, IsTerminal, Write};
use std::sync::LazyLock;
use std::sync::atomic::Ordering;
use std::time::Duration;

use credhost::{health, nearest, show};
use tracing::Level;
use tracing_appender::non_blocking::{ErrorCounter, NonBlockingBuilder, WorkerGuard};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::field::MakeExt;
use tracing_subscriber::fmt::format;
use tracing_subscriber::layer::SubscriberExt;
use tracing_subscriber::util::SubscriberInitExt;

use self::limit::{LeftOut, Limit, Limited};

/// How many lines may wait to be written; beyond that, lines are lost.
const LINES: usize = 4096;
/// The longest value in a line, in characters.
const LONGEST: usize = 4_000;
/// How often to report how many lines were lost.
const TELL: Duration = Duration::from_secs(10);

/// What limits the lines of this process's log.
static LIMIT: LazyLock<Limit> = LazyLock::new(Limit::default);

/// Standard error as a writer that never fails: failed writes are counted.
struct Lossy(io::Stderr);

impl Write for Lossy {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.0.write_all(bytes).is_err() {
            health::count(&health::LOG_LINES_LOST);
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        // As above.
        let _ = self.0.flush();
        Ok(())
    }
}

/// The log, until it is dropped: then the waiting lines are written, if that is possible within a second.
pub(super) struct Log {
    _guard: WorkerGuard,
    dropped: ErrorCounter,
}

impl Log {
    /// Reports how many lines were left out or lost, whenever some were.
    pub(super) async fn watch(&self) {
        let (mut dropped, mut told) = (0, 0);
        loop {
            tokio::time::sleep(TELL).await;
            let now = self.dropped.dropped_lines() as u64;
            health::LOG_LINES_LOST.fetch_add(now - dropped, Ordering::Relaxed);
            dropped = now;
            let lost = health::LOG_LINES_LOST.load(Ordering::Relaxed);
            report_left_out();
            if lost > told {
                let lines = usize::try_from(lost - told).unwrap_or(usize::MAX);
                let lines = show::many(lines, "line of the log was", "lines of the log were");
                tracing::warn!("{lines} lost: standard error was not read, or could not be written");
                told = lost;
            }
        }
    }
}

/// Says how many lines of each kind were left out, at their own level.
fn report_left_out() {
    for LeftOut { level, service, example, count } in LIMIT.report() {
        let lines = show::many(usize::try_from(count).unwrap_or(usize::MAX), "more line", "more lines");
        let of = service.map(|service| format!(" of {service}")).unwrap_or_default();
        match level {
            Level::ERROR => tracing::error!("{lines} like this left out{of}: {example}"),
            Level::WARN => tracing::warn!("{lines} like this left out{of}: {example}"),
            _ => tracing::info!("{lines} like this left out{of}: {example}"),
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        // What waits is written after this.
        report_left_out();
    }
}

/// Whether to use colours on standard error.
fn colours() -> bool {
    let set = |name| std::env::var_os(name).filter(|value| !value.is_empty());
    io::stderr().is_terminal() && set("NO_COLOR").is_none() && set("TERM").is_none_or(|term| term != "dumb")
}

/// The levels that a line can have.
const LEVELS: [&str; 6] = ["off", "error", "warn", "info", "debug", "trace"];
/// The host's own crates, whose lines can be selected.
const OURS: [&str; 4] = ["credhost", "pb", "jelly", "plugin_api"];

/// Parses which lines the log has. A word that is not a level would be taken for a module that does not exist, and no line would
/// be written.
fn filter(text: &str) -> Result<EnvFilter, String> {
    let words: Vec<&str> = text.split(',').map(str::trim).filter(|word| !word.is_empty()).collect();
    let is_level = |word: &str| LEVELS.iter().any(|level| word.eq_ignore_ascii_case(level));
    for word in &words {
        let of = word.split(['=', '[']).next().unwrap_or_default().trim();
        let crate_of = of.split("::").next().unwrap_or_default();
        let level = word.rsplit_once('=').map(|(_, level)| level.trim());
        let wrong = match level {
            // A field's value may be anything.
            Some(_) if word.contains('[') => None,
            Some(level) if !is_level(level) => Some((level, LEVELS.as_slice())),
            _ if OURS.contains(&crate_of) || word.starts_with('[') => None,
            Some(_) => Some((crate_of, OURS.as_slice())),
            None if is_level(word) => None,
            None => Some((*word, LEVELS.as_slice())),
        };
        if let Some((word, known)) = wrong {
            return Err(format!("{word:?} is not one of {}{}", known.join(", "), nearest::meant(word, known)));
        }
    }
    // A directive for some lines must not silence the others.
    let all =
        if words.iter().any(|word| is_level(word)) { words.join(",") } else { format!("info,{}", words.join(",")) };
    all.parse().map_err(|error: tracing_subscriber::filter::ParseError| error.to_string())
}

/// Starts the log. `CREDHOST_LOG` determines which lines it has.
pub(super) fn start() -> Log {
    let asked = std::env::var("CREDHOST_LOG").ok().filter(|filter| !filter.is_empty());
    let (filter, wrong) = match asked.as_deref().map(filter) {
        Some(Ok(filter)) => (filter, None),
        Some(Err(error)) => (EnvFilter::new("info"), Some(error)),
        None => (EnvFilter::new("info"), None),
    };
    let (writer, guard) =
        NonBlockingBuilder::default().lossy(true).buffered_lines_limit(LINES).finish(Lossy(io::stderr()));
    let log = Log { _guard: guard, dropped: writer.error_counter() };
    let fields = format::debug_fn(|writer, field, value| {
        let value: String = format!("{value:?}").chars().take(LONGEST).collect();
        let value = show::line(&value);
        if field.name() == "message" { write!(writer, "{value}") } else { write!(writer, "{field}={value}") }
    });
    let lines = tracing_subscriber::fmt::layer()
        .with_writer(writer)
        .with_ansi(colours())
        .with_target(false)
        .fmt_fields(fields.delimited(" "));
    // A second call in one process finds it already set.
    let _ = tracing_subscriber::registry().with(lines).with(Limited(&LIMIT)).with(filter).try_init();
    // A panic's own line must not block either.
    std::panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(ToString::to_string).unwrap_or_default();
        let said = panic.payload();
        let said = said.downcast_ref::<&str>().copied().or_else(|| said.downcast_ref::<String>().map(String::as_str));
        tracing::error!(place, "a panic: {}", said.unwrap_or("of another kind"));
    }));
    if let Some(error) = wrong {
        tracing::warn!("CREDHOST_LOG is invalid ({error}); using \"info\"");
    }
    log
}
