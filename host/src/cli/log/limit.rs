//! Limits how many lines of one kind the log has. Clients cause many of them (a refused login, a connection that ended), and a
//! crowd must not fill the disk.
//!
//! The kind is the place in the source that writes the line, which no client can choose. Lines at `debug` and `trace` are not
//! limited, nor those that a library writes: a service has a limit of its own.

use std::collections::HashMap;
use std::fmt::{self, Write as _};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tracing::callsite::Identifier;
use tracing::field::{Field, Visit};
use tracing::{Event, Level, Metadata, Subscriber};
use tracing_subscriber::layer::{Context, Layer};

/// How many lines of a kind may be written at once, and again after [`REFILL`] without any.
const BURST: u32 = 300;
/// The time in which [`BURST`] more lines may be written.
const REFILL: Duration = Duration::from_secs(60);
/// How much of the first line left out is reported with their number, in characters.
const EXAMPLE: usize = 100;

/// Lines of one kind that were left out since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// The first of them.
    pub(super) example: String,
    /// How many.
    pub(super) count: u64,
}

/// Decides whether a line is written, by the number of lines of its kind so far.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    kinds: HashMap<K, Kind>,
}

impl<K> Default for Limiter<K> {
    fn default() -> Self {
        Self { kinds: HashMap::new() }
    }
}

#[derive(Debug)]
struct Kind {
    /// How many lines may still be written: each takes `REFILL / BURST` of this.
    left: Duration,
    at: Instant,
    left_out: Option<LeftOut>,
}

impl<K: std::hash::Hash + Eq> Limiter<K> {
    /// Whether one more line of this kind is written. `example`: its text, in case it is left out.
    fn admits(&mut self, kind: K, now: Instant, example: impl FnOnce() -> String) -> bool {
        let kind = self.kinds.entry(kind).or_insert(Kind { left: REFILL, at: now, left_out: None });
        kind.left = (kind.left + now.saturating_duration_since(kind.at)).min(REFILL);
        kind.at = now;
        match kind.left.checked_sub(REFILL / BURST) {
            Some(left) => {
                kind.left = left;
                true
            }
            None => {
                kind.left_out.get_or_insert_with(|| LeftOut { example: example(), count: 0 }).count += 1;
                false
            }
        }
    }

    /// What was left out since the last report.
    fn report(&mut self) -> Vec<LeftOut> {
        let mut all: Vec<LeftOut> = self.kinds.values_mut().filter_map(|kind| kind.left_out.take()).collect();
        all.sort_by(|one, other| other.count.cmp(&one.count).then_with(|| one.example.cmp(&other.example)));
        all
    }
}

/// The limiter of the process's log.
#[derive(Debug, Default)]
pub(super) struct Limit(Mutex<Limiter<Identifier>>);

impl Limit {
    /// What was left out since the last report, the most frequent first.
    pub(super) fn report(&self) -> Vec<LeftOut> {
        self.0.lock().report()
    }
}

/// Whether lines of this kind are limited.
fn is_limited(metadata: &Metadata<'_>) -> bool {
    *metadata.level() <= Level::INFO && metadata.fields().field("module").is_none()
}

/// The layer in front of the writer.
#[derive(Debug)]
pub(super) struct Limited(pub(super) &'static Limit);

impl<S: Subscriber> Layer<S> for Limited {
    fn event_enabled(&self, event: &Event<'_>, _context: Context<'_, S>) -> bool {
        let metadata = event.metadata();
        !is_limited(metadata)
            || self.0.0.lock().admits(metadata.callsite(), Instant::now(), || {
                let mut message = Message::default();
                event.record(&mut message);
                message.0
            })
    }
}

/// An event's message, truncated.
#[derive(Default)]
struct Message(String);

impl Visit for Message {
    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == "message" {
            let mut whole = String::new();
            // Writing to a `String` cannot fail.
            let _ = write!(whole, "{value:?}");
            self.0 = whole.chars().take(EXAMPLE).collect();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_kind_has_so_many_lines_a_minute_and_the_rest_is_counted() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let admitted = |limiter: &mut Limiter<&str>, kind: &'static str, second: u64, lines: u32| {
            let now = start + Duration::from_secs(second);
            (0..lines).filter(|line| limiter.admits(kind, now, || format!("{kind} {line}"))).count()
        };
        assert_eq!(admitted(&mut limiter, "refused", 0, 10_000), 300);
        assert_eq!(admitted(&mut limiter, "started", 0, 5), 5, "another kind has its own");
        let left_out = |example: &str, count| LeftOut { example: example.to_owned(), count };
        assert_eq!(limiter.report(), [left_out("refused 300", 9_700)]);
        assert_eq!(limiter.report(), [], "each is told once");
        // Ten seconds are a sixth of a minute.
        assert_eq!(admitted(&mut limiter, "refused", 10, 10_000), 50);
        assert_eq!(admitted(&mut limiter, "refused", 3_610, 10_000), 300, "an hour does not save up more");
        assert_eq!(admitted(&mut limiter, "started", 3_610, 301), 300);
        assert_eq!(limiter.report(), [left_out("refused 50", 9_950 + 9_700), left_out("started 300", 1)]);
    }

    #[test]
    fn debug_lines_and_those_of_libraries_are_not_limited() {
        use tracing_subscriber::layer::SubscriberExt;

        static LIMIT: std::sync::LazyLock<Limit> = std::sync::LazyLock::new(Limit::default);
        #[derive(Default, Clone)]
        struct Count(std::sync::Arc<Mutex<HashMap<String, usize>>>);
        impl<S: Subscriber> Layer<S> for Count {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let mut message = Message::default();
                event.record(&mut message);
                *self.0.lock().entry(message.0).or_default() += 1;
            }
        }
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(count.clone()).with(Limited(&LIMIT));
        tracing::subscriber::with_default(subscriber, || {
            for _ in 0..1000 {
                tracing::info!("info");
                tracing::error!(name = "x", "error");
                tracing::debug!("debug");
                tracing::warn!(module = "target", "a library's");
            }
        });
        let counted = |message: &str| count.0.lock()[message];
        assert_eq!(["info", "error", "debug", "a library's"].map(counted), [300, 300, 1000, 1000]);
        assert_eq!(LIMIT.report().iter().map(|kind| kind.count).collect::<Vec<_>>(), [700, 700]);
    }
}
