//! Lines in the trail about logins. Those that can be had by the thousand are summed up, by what the client does not choose:
//! what happened, why, and where from. The first of each are written as they come; then, once a minute, how many more there
//! were, and of how many names, as an estimate.

use std::collections::HashMap;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::cred::StoreSecret;
use crate::cred::throttle::Digest;
use crate::store::audit::Event;
use crate::store::{Store, StoreError, Write};

/// How long lines of one kind are summed up before that is written, in milliseconds.
const INTERVAL: u64 = 60_000;
/// This many of each kind are written as they come, within that time.
const BURST: u64 = 5;
/// This many of all kinds of one event are.
const LINES: u64 = 300;
/// So many kinds are told apart; the rest is one.
const KINDS: usize = 1000;
/// The same of logins: each needs a proof.
const LOGINS: usize = 20_000;
/// Of the tries that are only counted, every 64th is noted in full: the sum shows the last of those.
const SHOWN: u64 = 64;

/// The way to the trail.
pub(super) struct Trail {
    store: Arc<dyn Store>,
    secret: StoreSecret,
    sums: Mutex<Sums>,
}

impl Trail {
    pub(super) fn new(store: Arc<dyn Store>, secret: StoreSecret) -> Self {
        Self { store, secret, sums: Mutex::default() }
    }

    /// A line of a kind (`of`) that a client may cause as often as it likes, with what it chose itself (`chosen`). Written
    /// now, or counted for the line that sums its kind up. `now` is in milliseconds.
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

    /// Counts a line without its text, and returns true, if its kind has already used up its lines in this interval. False: the
    /// caller has to call `note_summed` with the text.
    pub(super) fn counts(&self, what: &'static str, of: &[&str], chosen: &str, now: u64) -> bool {
        let (kind, chosen) = self.digests(of, chosen);
        self.sums.lock().counts(what, kind, &chosen, now)
    }

    /// Writes a line of such a kind, or counts it.
    pub(super) fn note_summed(&self, of: &[&str], chosen: &str, event: Event, now: u64) {
        self.write(self.note(of, chosen, event, now).into_iter().map(Write::Audit).collect());
    }

    /// Writes what was summed up until now, if its time has come; all of it, if `now` is none.
    pub(super) fn flush(&self, now: Option<u64>) {
        let due = self.sums.lock().due(now.unwrap_or(u64::MAX));
        self.write(due.into_iter().map(Write::Audit).collect());
    }

    /// Writes lines, and what belongs to them; nobody waits for it.
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

/// What is summed up. Reads no clock: times are in milliseconds from any beginning.
#[derive(Default)]
struct Sums {
    kinds: HashMap<Digest, Sum>,
    /// How many lines of each event were written as they came, since when.
    written: HashMap<&'static str, u64>,
    since: u64,
    /// Before this, none has been summed up for long enough; 0: nobody knows.
    due_at: u64,
}

/// Lines of one kind.
struct Sum {
    since: u64,
    /// How many were written as they came.
    written: u64,
    /// How many were not.
    more: u64,
    chosen: Estimate,
    /// The last of them.
    last: Event,
}

impl Sums {
    /// One more of this kind: itself, if it is to be written as it is.
    fn note(&mut self, kind: Digest, chosen: &[u8; 32], event: Event, now: u64) -> Option<Event> {
        if now.saturating_sub(self.since) >= INTERVAL {
            self.written.clear();
            self.since = now;
        }
        let written = self.written.entry(event.what).or_default();
        let known = self.kinds.contains_key(&kind);
        // Who has proven who they are is not hidden by those who have not.
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

    /// The same, without the line: true if it is counted.
    fn counts(&mut self, what: &'static str, kind: Digest, chosen: &[u8; 32], now: u64) -> bool {
        let full = self.written.get(what).is_some_and(|written| *written >= LINES);
        if now >= self.due_at || now.saturating_sub(self.since) >= INTERVAL {
            return false;
        }
        // As in `note`: a new kind gets a sum of its own while there is room.
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

    /// The lines that sum up what has been long enough.
    fn due(&mut self, now: u64) -> Vec<Event> {
        if now < self.due_at {
            return Vec::new();
        }
        let over = self.kinds.extract_if(|_, sum| now.saturating_sub(sum.since) >= INTERVAL);
        // Looked through once in an interval, not at each line.
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

/// The kind of all that are too many to be told apart.
fn rest(what: &str) -> Digest {
    let mut kind = Digest::default();
    kind.iter_mut().zip(what.bytes()).for_each(|(to, from)| *to = from);
    kind
}

/// How many different ones there were, within a tenth or so: HyperLogLog, with 256 registers.
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

    /// About how many, of so many at most.
    fn about(&self, most: u64) -> u64 {
        const REGISTERS: f64 = 256.0;
        let sum: f64 = self.0.iter().map(|rank| 0.5_f64.powi(i32::from(*rank))).sum();
        let raw = 0.7183 * REGISTERS * REGISTERS / sum;
        let empty = self.0.iter().filter(|rank| **rank == 0).count();
        // Of few, those are counted that have a register of their own.
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
    fn what_a_client_chooses_makes_no_lines() {
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
                // As whoever notes one does.
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
        // The next minute has lines of its own.
        assert!(sums.note(kind(1), &digest(1), event(), 1001 + INTERVAL).is_some());
    }

    #[test]
    fn few_names_are_counted_well() {
        for names in [1, 10, 100, 1000, 10_000] {
            let mut estimate = Estimate::default();
            (0..3 * names).for_each(|index| estimate.add(&digest(index % names)));
            let (about, names) = (estimate.about(u64::MAX) as f64, names as f64);
            assert!((about / names - 1.0).abs() < 0.2, "{about} of {names}");
        }
    }
}
