//! Limits how many lines of one kind the log has. Clients cause many of them (a refused login, a connection that ended), and a
//! crowd must not fill the disk.
//!
//! The kind is the place in the source that writes the line, and the service that it is about: no client can choose either. Lines at
//! `debug` and `trace` are not limited, nor those that a library writes: a service has a limit of its own.

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
/// With this many kinds, lines of further services are of one kind.
const KINDS: usize = 10_000;

/// Lines of one kind that were left out since the last report.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LeftOut {
    /// Their level.
    pub(super) level: Level,
    /// The service that they are about, if they are about one.
    pub(super) service: Option<Box<str>>,
    /// What the first of them says.
    pub(super) example: String,
    /// How many.
    pub(super) count: u64,
}

/// Decides whether a line is written, by the number of lines of its kind so far.
#[derive(Debug)]
pub(super) struct Limiter<K> {
    kinds: HashMap<(K, Option<Box<str>>), Kind>,
}

impl<K> Default for Limiter<K> {
    fn default() -> Self {
        Self { kinds: HashMap::new() }
    }
}

#[derive(Debug)]
struct Kind {
    level: Level,
    /// How many lines may still be written: each takes `REFILL / BURST` of this.
    left: Duration,
    at: Instant,
    /// How many were left out since the last report, and what the first of them says.
    count: u64,
    example: String,
}

/// What becomes of a line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Written,
    LeftOut,
    /// The first since the last report: what it says is wanted.
    FirstLeftOut,
}

impl<K: std::hash::Hash + Eq> Limiter<K> {
    /// A service that comes when there are many kinds already has none of its own.
    fn key(&self, of: K, service: Option<&str>) -> (K, Option<Box<str>>) {
        let key = (of, service.map(Box::from));
        if self.kinds.len() < KINDS || self.kinds.contains_key(&key) { key } else { (key.0, None) }
    }

    /// Decides about one more line of this kind.
    fn decide(&mut self, (of, service): (K, Option<&str>), level: Level, now: Instant) -> Verdict {
        let key = self.key(of, service);
        let kind = self.kinds.entry(key).or_insert_with(|| Kind {
            level,
            left: REFILL,
            at: now,
            count: 0,
            example: String::new(),
        });
        kind.left = (kind.left + now.saturating_duration_since(kind.at)).min(REFILL);
        kind.at = now;
        if let Some(left) = kind.left.checked_sub(REFILL / BURST) {
            kind.left = left;
            return Verdict::Written;
        }
        kind.count += 1;
        if kind.count == 1 { Verdict::FirstLeftOut } else { Verdict::LeftOut }
    }

    /// What the first line of this kind says that was left out.
    fn says(&mut self, (of, service): (K, Option<&str>), example: String) {
        let key = self.key(of, service);
        if let Some(kind) = self.kinds.get_mut(&key) {
            kind.example = example;
        }
    }

    /// What was left out since the last report, the most frequent first.
    fn report(&mut self) -> Vec<LeftOut> {
        let left_out = |((_, service), kind): (&(K, Option<Box<str>>), &mut Kind)| {
            let (count, example) = (std::mem::take(&mut kind.count), std::mem::take(&mut kind.example));
            (count > 0).then(|| LeftOut { level: kind.level, service: service.clone(), example, count })
        };
        let mut all: Vec<LeftOut> = self.kinds.iter_mut().filter_map(left_out).collect();
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
        if !is_limited(metadata) {
            return true;
        }
        let mut service = Text { field: "service", text: None };
        if metadata.fields().field("service").is_some() {
            event.record(&mut service);
        }
        let kind = || (metadata.callsite(), service.text.as_deref());
        let verdict = self.0.0.lock().decide(kind(), *metadata.level(), Instant::now());
        if verdict == Verdict::FirstLeftOut {
            // Formatted while nobody waits for the lock.
            let mut message = Text { field: "message", text: None };
            event.record(&mut message);
            let example = message.text.unwrap_or_default().chars().take(EXAMPLE).collect();
            self.0.0.lock().says(kind(), example);
        }
        verdict == Verdict::Written
    }
}

/// The text of one field.
struct Text {
    field: &'static str,
    text: Option<String>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == self.field {
            self.text = Some(value.to_owned());
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        if field.name() == self.field {
            let mut whole = String::new();
            // Writing to a `String` cannot fail.
            let _ = write!(whole, "{value:?}");
            self.text = Some(whole);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_of_line_is_rate_limited_and_the_rest_is_counted() {
        let (mut limiter, start) = (Limiter::default(), Instant::now());
        let written = |limiter: &mut Limiter<&str>, of: &'static str, service, second: u64, lines: u32| {
            let now = start + Duration::from_secs(second);
            let one = |line: u32| {
                let verdict = limiter.decide((of, service), Level::WARN, now);
                if verdict == Verdict::FirstLeftOut {
                    limiter.says((of, service), format!("{of} {line}"));
                }
                verdict == Verdict::Written
            };
            (0..lines).map(one).filter(|written| *written).count()
        };
        assert_eq!(written(&mut limiter, "refused", None, 0, 10_000), 300);
        assert_eq!(written(&mut limiter, "started", None, 0, 5), 5, "another kind has its own");
        assert_eq!(written(&mut limiter, "failed", Some("chat"), 0, 301), 300);
        assert_eq!(written(&mut limiter, "failed", Some("mail"), 0, 1), 1, "so has another service");
        let left_out = |example: &str, service: Option<&str>, count| LeftOut {
            level: Level::WARN,
            service: service.map(Box::from),
            example: example.to_owned(),
            count,
        };
        assert_eq!(limiter.report(), [left_out("refused 300", None, 9_700), left_out("failed 300", Some("chat"), 1)]);
        assert_eq!(limiter.report(), [], "each is told once");
        // Ten seconds are a sixth of a minute.
        assert_eq!(written(&mut limiter, "refused", None, 10, 10_000), 50);
        assert_eq!(written(&mut limiter, "refused", None, 3_610, 10_000), 300, "an hour does not save up more");
        assert_eq!(limiter.report(), [left_out("refused 50", None, 9_950 + 9_700)]);
    }

    #[test]
    fn debug_lines_and_those_of_libraries_are_not_limited() {
        use tracing_subscriber::layer::SubscriberExt;

        static LIMIT: std::sync::LazyLock<Limit> = std::sync::LazyLock::new(Limit::default);
        #[derive(Default, Clone)]
        struct Count(std::sync::Arc<Mutex<HashMap<String, usize>>>);
        impl<S: Subscriber> Layer<S> for Count {
            fn on_event(&self, event: &Event<'_>, _context: Context<'_, S>) {
                let mut message = Text { field: "message", text: None };
                event.record(&mut message);
                *self.0.lock().entry(message.text.unwrap_or_default()).or_default() += 1;
            }
        }
        let count = Count::default();
        let subscriber = tracing_subscriber::registry().with(count.clone()).with(Limited(&LIMIT));
        tracing::subscriber::with_default(subscriber, || {
            for turn in 0..1000 {
                tracing::info!("info");
                tracing::error!(service = if turn % 2 == 0 { "chat" } else { "mail" }, "error");
                tracing::debug!("debug");
                tracing::warn!(module = "target", "a library's");
            }
        });
        let counted = |message: &str| count.0.lock()[message];
        assert_eq!(["info", "error", "debug", "a library's"].map(counted), [300, 600, 1000, 1000]);
        let report = LIMIT.report();
        assert_eq!(report.iter().map(|kind| kind.count).collect::<Vec<_>>(), [700, 200, 200]);
        assert_eq!((report[0].level, &*report[0].example, report[0].service.as_deref()), (Level::INFO, "info", None));
        assert_eq!((report[1].level, &*report[1].example), (Level::ERROR, "error"));
    }
}
