//! Lines about logins in the trail. Lines that clients can cause by the thousand are summarized, by properties that the
//! client does not choose: the event, the reason and the source. The first ones of each kind are written immediately.
//! After that, one line a minute says how many more there were, with an estimate of the number of names.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cred::StoreSecret;
use crate::cred::throttle::Digest;
use crate::store::audit::Event;
use crate::store::{Store, StoreError, Write};

/// How long lines of one kind are summarized before the summary is written, in milliseconds.
const INTERVAL: u64 = 60_000;
/// The number of lines of each kind that are written immediately in that time.
const BURST: u64 = 5;
/// The same for all kinds of one event together.
const LINES: u64 = 300;
/// The number of kinds that are distinguished. All others count as one kind.
const KINDS: usize = 1000;
/// The same for logins, each of which needs a proof.
const LOGINS: usize = 20_000;
/// Of the attempts that are only counted, every 64th is noted in full. The summary shows the last of those.
const SHOWN: u64 = 64;

/// Writes to the trail.
pub(super) struct Trail {
    store: Arc<dyn Store>,
    secret: StoreSecret,
    sums: Mutex<Sums>,
}

impl Trail {
    pub(super) fn new(store: Arc<dyn Store>, secret: StoreSecret) -> Self {
        Self { store, secret, sums: Mutex::default() }
    }

    /// Notes a line of a kind (`of`) that a client can cause as often as it wants, with the text that the client chose
    /// (`chosen`). Returns the line to be written now, or `None` if it was counted for its kind's summary. `now` is in
    /// milliseconds.
    pub(super) fn note(&self, of: &[&str], chosen: &str, event: Event, now: u64) -> Option<Event> {
        let (kind, chosen) = self.digests(of, chosen);
        let mut sums = self.sums.lock();
        let due = sums.due(now);
        let event = sums.note(kind, &chosen, event, now);
        drop(sums);
        self.write(due.into_iter().map(Write::Audit).collect());
        event
    }

    fn digests(&self, of: &[&str], chosen: &str) -> (Digest, [u8; 32]) {
        let parts: Vec<&[u8]> = of.iter().map(|part| part.as_bytes()).collect();
        let mut kind = Digest::default();
        kind.copy_from_slice(&self.secret.digest("seldom", &parts)[..16]);
        (kind, self.secret.digest("chosen", &[chosen.as_bytes()]))
    }

    /// Counts a line without its text, and returns true, if its kind has already used up its lines in this interval. If
    /// it returns false, the caller must call `note_summed` with the text.
    pub(super) fn counts(&self, what: &'static str, of: &[&str], chosen: &str, now: u64) -> bool {
        let (kind, chosen) = self.digests(of, chosen);
        self.sums.lock().counts(what, kind, &chosen, now)
    }

    /// Writes such a line, or counts it.
    pub(super) fn note_summed(&self, of: &[&str], chosen: &str, event: Event, now: u64) {
        self.write(self.note(of, chosen, event, now).into_iter().map(Write::Audit).collect());
    }

    /// Writes the summaries that are due, or all of them if `now` is `None`.
    pub(super) fn flush(&self, now: Option<u64>) {
        let due = self.sums.lock().due(now.unwrap_or(u64::MAX));
        self.write(due.into_iter().map(Write::Audit).collect());
    }

    /// Writes lines together with other changes, without waiting for the commit.
    pub(super) fn write(&self, writes: Vec<Write>) {
        if writes.is_empty() {
            return;
        }
        let done = |done: Result<(), StoreError>| {
            if let Err(error) = done {
                tracing::error!(%error, "the audit trail cannot be written");
            }
        };
        self.store.commit(writes, Box::new(done));
    }
}

/// The summaries. Reads no clock: times are in milliseconds since any fixed point.
#[derive(Default)]
struct Sums {
    kinds: HashMap<Digest, Sum>,
    /// The number of lines of each event that were written immediately, since `since`.
    written: HashMap<&'static str, u64>,
    since: u64,
    /// No summary is due before this time. 0 if unknown.
    due_at: u64,
}

/// The summary of lines of one kind.
struct Sum {
    since: u64,
    /// The number of lines that were written immediately.
    written: u64,
    /// The number of other lines.
    more: u64,
    chosen: Estimate,
    /// The last line.
    last: Event,
}

impl Sums {
    /// Adds one line of this kind. Returns it if it must be written immediately.
    fn note(&mut self, kind: Digest, chosen: &[u8; 32], event: Event, now: u64) -> Option<Event> {
        if now.saturating_sub(self.since) >= INTERVAL {
            self.written.clear();
            self.since = now;
        }
        let written = self.written.entry(event.what).or_default();
        let known = self.kinds.contains_key(&kind);
        // Summaries of failed logins do not take the room of successful ones.
        let most = if event.what == "login" { LOGINS } else { KINDS };
        let kind = if known || self.kinds.len() < most { kind } else { rest(event.what) };
        let sum = self.kinds.entry(kind).or_insert_with(|| Sum {
            since: now,
            written: 0,
            more: 0,
            chosen: Estimate::default(),
            last: event.clone(),
        });
        if sum.written < BURST && *written < LINES {
            sum.written += 1;
            *written += 1;
            return Some(event);
        }
        sum.more += 1;
        sum.chosen.add(chosen);
        sum.last = event;
        None
    }

    /// As `note`, without the line. Returns true if it was counted.
    fn counts(&mut self, what: &'static str, kind: Digest, chosen: &[u8; 32], now: u64) -> bool {
        let full = self.written.get(what).is_some_and(|written| *written >= LINES);
        if now >= self.due_at || now.saturating_sub(self.since) >= INTERVAL {
            return false;
        }
        // As in `note`, a new kind gets its own summary while there is room.
        let kind = match self.kinds.contains_key(&kind) {
            true => kind,
            false if self.kinds.len() >= KINDS => rest(what),
            false => return false,
        };
        match self.kinds.get_mut(&kind).filter(|sum| full || sum.written >= BURST) {
            Some(sum) if !(sum.more + 1).is_multiple_of(SHOWN) => {
                sum.more += 1;
                sum.chosen.add(chosen);
                true
            }
            _ => false,
        }
    }

    /// Takes the summaries that are due.
    fn due(&mut self, now: u64) -> Vec<Event> {
        if now < self.due_at {
            return Vec::new();
        }
        let over = self.kinds.extract_if(|_, sum| now.saturating_sub(sum.since) >= INTERVAL);
        // All kinds are searched once in an interval, not for each line.
        let mut due: Vec<(u64, Event)> = over
            .filter(|(_, sum)| sum.more > 0)
            .map(|(kind, sum)| {
                let (times, about) = (sum.more, sum.chosen.about(sum.more));
                let last = if kind == rest(sum.last.what) { sum.last.with("peer", "many") } else { sum.last };
                (sum.since, last.now().with("times", times).with("names_about", about))
            })
            .collect();
        due.sort_by_key(|(since, _)| *since);
        let oldest = self.kinds.values().map(|sum| sum.since).min();
        self.due_at = oldest.map_or(0, |since| since.saturating_add(INTERVAL));
        due.into_iter().map(|(_, event)| event).collect()
    }
}

/// The kind for everything beyond the limit of kinds.
fn rest(what: &str) -> Digest {
    let mut kind = Digest::default();
    kind.iter_mut().zip(what.bytes()).for_each(|(to, from)| *to = from);
    kind
}

/// Estimates the number of distinct items, with an error of about a tenth: HyperLogLog with 256 registers.
struct Estimate(Box<[u8; 256]>);

impl Default for Estimate {
    fn default() -> Self {
        Self(Box::new([0; 256]))
    }
}

impl Estimate {
    fn add(&mut self, digest: &[u8; 32]) {
        let [register, rest @ ..] = digest;
        let rank = rest.first_chunk::<8>().map_or(0, |bits| u64::from_be_bytes(*bits).leading_zeros() + 1);
        let known = &mut self.0[usize::from(*register)];
        *known = (*known).max(u8::try_from(rank).unwrap_or(u8::MAX));
    }

    /// The estimate, limited to `most`.
    fn about(&self, most: u64) -> u64 {
        const REGISTERS: f64 = 256.0;
        let sum: f64 = self.0.iter().map(|rank| 0.5_f64.powi(i32::from(*rank))).sum();
        let raw = 0.7183 * REGISTERS * REGISTERS / sum;
        let empty = self.0.iter().filter(|rank| **rank == 0).count();
        // For small numbers, linear counting: the used registers are counted.
        let about = if raw < 2.5 * REGISTERS && empty > 0 { REGISTERS * (REGISTERS / empty as f64).ln() } else { raw };
        (about.round() as u64).clamp(1, most.max(1))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn digest(index: u64) -> [u8; 32] {
        StoreSecret::new([1; 32]).digest("test", &[&index.to_le_bytes()])
    }

    fn kind(index: u64) -> Digest {
        *digest(index).first_chunk().unwrap()
    }

    fn event() -> Event {
        Event::new("login.refused").with("identity", "alice").with("peer", "10.0.0.1")
    }

    #[test]
    fn values_that_a_client_chooses_make_no_extra_lines() {
        let mut sums = Sums::default();
        let written = (0..100_000).filter(|index| sums.note(kind(1), &digest(*index), event(), 1000).is_some()).count();
        assert_eq!(written as u64, BURST);
        assert!(sums.due(1000 + INTERVAL - 1).is_empty());
        let [line] = &sums.due(1000 + INTERVAL)[..] else { panic!("one line for all of them") };
        assert_eq!(line.about["times"], 100_000 - BURST);
        let about = line.about["names_about"].as_u64().unwrap();
        assert!((85_000..115_000).contains(&about), "{about}");
        assert!(sums.kinds.is_empty());
    }

    #[test]
    fn counted_logins_match_the_trail_and_some_are_sampled() {
        let (mut sums, mut noted, mut written) = (Sums::default(), 0, 0);
        for index in 0..10_000 {
            // Two kinds, which alternate.
            let of = kind(index % 2);
            if !sums.counts("login.refused", of, &digest(index), 1000 + index) {
                noted += 1;
                // As every caller of `note` does.
                assert!(sums.due(1000 + index).is_empty());
                let event = event().with("identity", index);
                written += u64::from(sums.note(of, &digest(index), event, 1000 + index).is_some());
            }
        }
        assert_eq!(written, 2 * BURST);
        assert!((10_000 / SHOWN..10_000 / SHOWN + 20).contains(&noted), "{noted}");
        let due = sums.due(1000 + 10_000 + INTERVAL);
        let times: u64 = due.iter().map(|line| line.about["times"].as_u64().unwrap()).sum();
        assert_eq!((due.len(), times + written), (2, 10_000), "each is counted");
        for line in due {
            let last = line.about["identity"].as_u64().unwrap();
            assert!(last > 10_000 - 2 * SHOWN - 2, "{last}: one of the last");
            let about = line.about["names_about"].as_u64().unwrap();
            assert!((4_000..6_000).contains(&about), "{about}");
        }
    }

    #[test]
    fn sources_without_number_make_a_bounded_number_of_lines() {
        let mut sums = Sums::default();
        let mut lines = 0;
        for index in 0..200_000 {
            lines += u64::from(sums.note(kind(index), &digest(index), event(), 1000).is_some());
        }
        assert_eq!(lines, LINES);
        let due = sums.due(1000 + INTERVAL);
        assert!(due.len() <= KINDS + 1);
        let times: u64 = due.iter().map(|line| line.about["times"].as_u64().unwrap()).sum();
        assert_eq!(times + lines, 200_000, "each is counted");
        assert!(due.iter().any(|line| line.about["peer"] == "many"));
        // The next minute has its own lines.
        assert!(sums.note(kind(1), &digest(1), event(), 1001 + INTERVAL).is_some());
    }

    #[test]
    fn names_are_counted_within_a_fifth() {
        for names in [1, 10, 100, 1000, 10_000] {
            let mut estimate = Estimate::default();
            (0..3 * names).for_each(|index| estimate.add(&digest(index % names)));
            let (about, names) = (estimate.about(u64::MAX) as f64, names as f64);
            assert!((about / names - 1.0).abs() < 0.2, "{about} of {names}");
        }
    }
}
