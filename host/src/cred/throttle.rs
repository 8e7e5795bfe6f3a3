//! Limits the rate of password guesses.
//!
//! Failed attempts are counted by name and by source. A name has one counter for each source from which its owner has
//! logged in, and one for all other sources. So guesses from elsewhere do not lock the owner out. An attempt is charged
//! before it is checked, and refunded when it succeeds. So concurrent guesses count like consecutive ones.
//!
//! | failures in a row | wait before the next attempt, by name | by source, over all names |
//! |---|---|---|
//! | up to 2 | none | none |
//! | 3, 4, 5 … | 1 s, 2 s, 4 s …, at most 15 min | none |
//! | 20, 21, 22 … | (15 min) | 1 s, 2 s, 4 s …, at most 60 s |
//! | 100 | until the operator acts | (60 s) |
//!
//! If only attempts that are still being checked stand in the way, the next one is not refused: it waits until one of
//! them has ended.
//!
//! Unknown names are counted like any other, and names are stored here only as digests. This module reads no clock: the
//! time is an argument, in milliseconds since any fixed point.

use std::collections::{HashMap, HashSet};

/// Failures by name that cause no wait yet.
const FREE: u32 = 2;
/// Failures by source that cause no wait yet.
const SOURCE_FREE: u32 = 19;
/// The longest wait by name, in milliseconds.
const LONGEST: u64 = 15 * 60 * 1000;
/// The longest wait by source, in milliseconds.
const SOURCE_LONGEST: u64 = 60 * 1000;
/// After this many failures in a row by name, the operator must act.
pub const LOCKED: u32 = 100;
/// A source is forgotten after this time without a failure.
const SOURCE_MEMORY: u64 = 15 * 60 * 1000;
/// The most counters that are kept. Beyond that, the lowest ones are removed first.
const KEPT: usize = 200_000;

/// A digest of a name, or of a source.
pub type Digest = [u8; 16];

/// A counter of a name: for one source that its owner uses, or for all other sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Counter {
    /// The name.
    pub name: Digest,
    /// The source, if the owner has logged in from it.
    pub source: Option<Digest>,
}

impl Counter {
    /// The counter for an attempt at this name. `known`: the name's owner has logged in from this source.
    #[must_use]
    pub fn of(name: Digest, source: Digest, known: bool) -> Self {
        Self { name, source: known.then_some(source) }
    }
}

/// The state of a counter.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Failures {
    /// The number of failures in a row, including attempts that are still being checked.
    pub count: u32,
    /// When the last one began.
    pub last: u64,
}

/// Why an attempt is not checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Denied {
    /// The next one will be checked after this many milliseconds.
    Wait(u64),
    /// The operator must act.
    Locked,
    /// It can be checked when one of the attempts that are being checked has ended, if that one was right.
    Busy(Held),
}

/// A counter that an attempt is charged to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Held {
    /// A counter of its name.
    ByName(Counter),
    /// Its source.
    BySource(Digest),
}

/// An attempt that is being checked. End it with `succeeded` or `failed`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a try that is not ended counts as failed"]
pub struct Try {
    counter: Counter,
    source: Digest,
    /// The count of the name's counter before this attempt.
    before: u32,
    last: u64,
    /// The same for its source.
    source_before: u32,
    source_last: u64,
}

/// The counters of names and sources.
#[derive(Debug, Default)]
pub struct Throttle {
    names: HashMap<Counter, Failures>,
    sources: HashMap<Digest, Failures>,
    kept: usize,
}

fn wait(failures: Failures, free: u32, longest: u64, now: u64) -> u64 {
    if failures.count <= free {
        return 0;
    }
    let steps = (failures.count - free - 1).min(20);
    let wait = (1000u64 << steps).min(longest);
    (failures.last + wait).saturating_sub(now)
}

impl Throttle {
    /// Creates a throttle without failures.
    #[must_use]
    pub fn new() -> Self {
        Self { kept: KEPT, ..Self::default() }
    }

    /// Restores a counter from before the host was restarted.
    pub fn restore(&mut self, counter: Counter, count: u32, now: u64) {
        self.names.insert(counter, Failures { count, last: now });
    }

    /// Begins an attempt at a name, from a source. `known`: the name's owner has logged in from this source.
    /// `checking`: how many attempts are still being checked, of those on the name's counter and of those from the
    /// source.
    ///
    /// # Errors
    /// If it must not be checked yet.
    pub fn begin(
        &mut self,
        name: Digest,
        source: Digest,
        known: bool,
        checking: [u32; 2],
        now: u64,
    ) -> Result<Try, Denied> {
        let counter = Counter::of(name, source, known);
        let by_name = self.names.get(&counter).copied().unwrap_or_default();
        if by_name.count >= LOCKED {
            return Err(Denied::Locked);
        }
        let mut by_source = self.sources.get(&source).copied().unwrap_or_default();
        if now.saturating_sub(by_source.last) > SOURCE_MEMORY {
            by_source.count = 0;
        }
        // The first wait does not include attempts that are being checked.
        let waits = |said: Failures, checking, free, longest| {
            let settled = Failures { count: said.count.saturating_sub(checking), ..said };
            (wait(settled, free, longest, now), wait(said, free, longest, now))
        };
        let of_name = waits(by_name, checking[0], FREE, LONGEST);
        let of_source = waits(by_source, checking[1], SOURCE_FREE, SOURCE_LONGEST);
        match (of_name, of_source) {
            ((_, 0), (_, 0)) => {}
            ((0, one), (0, _)) if one > 0 => return Err(Denied::Busy(Held::ByName(counter))),
            ((0, _), (0, _)) => return Err(Denied::Busy(Held::BySource(source))),
            ((_, one), (_, other)) => return Err(Denied::Wait(one.max(other))),
        }
        self.make_room();
        self.names.insert(counter, Failures { count: by_name.count + 1, last: now });
        self.sources.insert(source, Failures { count: by_source.count + 1, last: now });
        let (source_before, source_last) = (by_source.count, by_source.last);
        Ok(Try { counter, source, before: by_name.count, last: by_name.last, source_before, source_last })
    }

    /// The counter that an attempt was charged to.
    #[must_use]
    pub fn counter(&self, of: Try) -> Counter {
        of.counter
    }

    /// Ends an attempt whose proof was right: its name's counter is reset to the attempts that are still being checked.
    /// Returns true if there were failures before it.
    pub fn succeeded(&mut self, ended: Try, checking: u32) -> bool {
        match self.names.get_mut(&ended.counter) {
            Some(by_name) if checking > 0 => by_name.count = by_name.count.min(checking),
            _ => drop(self.names.remove(&ended.counter)),
        }
        if let Some(by_source) = self.sources.get_mut(&ended.source) {
            by_source.count = by_source.count.saturating_sub(1);
        }
        ended.before > 0
    }

    /// Ends an attempt whose proof was wrong. It was counted when it began. Returns the state of its counter.
    pub fn failed(&mut self, ended: Try) -> (Counter, Failures) {
        (ended.counter, self.names.get(&ended.counter).copied().unwrap_or_default())
    }

    /// Ends an attempt that was not checked. It does not count.
    pub fn withdrawn(&mut self, ended: Try) {
        if let Some(by_name) = self.names.get_mut(&ended.counter) {
            by_name.count = by_name.count.saturating_sub(1);
            if by_name.count == ended.before {
                // Restored, so that the next attempt does not wait because of this one.
                by_name.last = ended.last;
            }
        }
        if let Some(by_source) = self.sources.get_mut(&ended.source) {
            by_source.count = by_source.count.saturating_sub(1);
            if by_source.count == ended.source_before {
                by_source.last = ended.source_last;
            }
        }
    }

    /// Resets all counters of this name, on the operator's request. Returns those that existed.
    pub fn unlock(&mut self, name: Digest) -> Vec<Counter> {
        self.names.extract_if(|counter, _| counter.name == name).map(|(counter, _)| counter).collect()
    }

    /// The counters of a name.
    #[must_use]
    pub fn of(&self, name: Digest) -> Vec<(Counter, Failures)> {
        self.names.iter().filter(|(counter, _)| counter.name == name).map(|(counter, said)| (*counter, *said)).collect()
    }

    /// Removes the lowest counters when there are too many, so that those of names under attack remain.
    fn make_room(&mut self) {
        if self.names.len() >= self.kept {
            // Names break ties, so that one half is removed, and never all counters with the same count.
            let rank = |counter: &Counter, said: &Failures| (said.count, said.last, *counter);
            let mut ranks: Vec<_> = self.names.iter().map(|(counter, said)| rank(counter, said)).collect();
            let (_, &mut middle, _) = ranks.select_nth_unstable(self.kept / 2);
            self.names.retain(|counter, said| rank(counter, said) >= middle);
        }
        if self.sources.len() >= self.kept {
            let keep: HashSet<Digest> =
                self.sources.iter().filter(|(_, said)| said.count > SOURCE_FREE).map(|(source, _)| *source).collect();
            self.sources.retain(|source, _| keep.contains(source));
            if self.sources.len() >= self.kept {
                self.sources.clear();
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: Digest = [1; 16];
    const HERE: Digest = [10; 16];
    const THERE: Digest = [11; 16];

    fn fail(throttle: &mut Throttle, source: Digest, known: bool, now: u64) -> Result<u32, Denied> {
        let one = throttle.begin(ALICE, source, known, [0; 2], now)?;
        Ok(throttle.failed(one).1.count)
    }

    #[test]
    fn the_waits_follow_the_ladder() {
        let mut throttle = Throttle::new();
        let mut waits = Vec::new();
        let mut now = 0;
        for _ in 0..16 {
            // A new source each time, so that only the ladder by name applies.
            let source = Digest::from(u128::from(now + 1).to_le_bytes());
            match fail(&mut throttle, source, false, now) {
                Ok(_) => waits.push(0),
                Err(Denied::Wait(wait)) => {
                    waits.push(wait / 1000);
                    now += wait;
                    fail(&mut throttle, source, false, now).unwrap();
                }
                Err(other) => panic!("not yet: {other:?}"),
            }
        }
        assert_eq!(waits, [0, 0, 0, 1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 900, 900, 900]);
    }

    #[test]
    fn after_a_hundred_failures_a_person_must_act() {
        let mut throttle = Throttle::new();
        let mut now = 0;
        let mut looked_at = 0;
        loop {
            now += LONGEST;
            match fail(&mut throttle, HERE, false, now) {
                Ok(_) => looked_at += 1,
                Err(Denied::Locked) => break,
                Err(Denied::Wait(_) | Denied::Busy(_)) => {}
            }
        }
        assert_eq!(looked_at, 100);
        assert_eq!(throttle.unlock(ALICE).len(), 1);
        assert!(fail(&mut throttle, HERE, false, now + LONGEST).is_ok());
    }

    #[test]
    fn guesses_at_once_count_as_guesses_in_a_row() {
        let mut throttle = Throttle::new();
        let begun = (0..50).filter(|_| throttle.begin(ALICE, HERE, false, [0; 2], 5).is_ok()).count();
        assert_eq!(begun, 3);
    }

    #[test]
    fn an_attempt_beyond_those_being_checked_waits_for_them() {
        let mut throttle = Throttle::new();
        let tries: Vec<Try> = (0..3).map(|_| throttle.begin(ALICE, HERE, true, [0; 2], 5).unwrap()).collect();
        let counter = Counter::of(ALICE, HERE, true);
        let next = |throttle: &mut Throttle, checking, now| throttle.begin(ALICE, HERE, true, [checking; 2], now);
        assert_eq!(next(&mut throttle, 3, 5), Err(Denied::Busy(Held::ByName(counter))));
        // All three were wrong: the wait is the same as after three in a row.
        for one in tries {
            let _ = throttle.failed(one);
        }
        assert_eq!(next(&mut throttle, 0, 5), Err(Denied::Wait(1000)));
        // The next attempt is being checked: two at once are checked no sooner than one after the other.
        let right = next(&mut throttle, 0, 1005).unwrap();
        assert_eq!(next(&mut throttle, 1, 1005), Err(Denied::Wait(2000)));
        assert!(throttle.succeeded(right, 0));
        assert!(next(&mut throttle, 0, 1005).is_ok());
    }

    #[test]
    fn successes_do_not_raise_the_number_of_concurrent_checks() {
        let mut throttle = Throttle::new();
        let begin = |throttle: &mut Throttle, checking| throttle.begin(ALICE, HERE, true, [checking; 2], 5);
        let tries: Vec<Try> = (0..3).map(|checking| begin(&mut throttle, checking).unwrap()).collect();
        for right in tries {
            throttle.succeeded(right, 2);
            let next = begin(&mut throttle, 2).unwrap();
            assert!(matches!(begin(&mut throttle, 3), Err(Denied::Busy(_))));
            throttle.withdrawn(next);
        }
    }

    #[test]
    fn a_shared_source_also_waits_for_attempts_being_checked() {
        let mut throttle = Throttle::new();
        for name in 0..20u8 {
            let _ = throttle.begin([name; 16], HERE, true, [0, u32::from(name)], 5).unwrap();
        }
        assert_eq!(throttle.begin(ALICE, HERE, true, [0, 20], 5), Err(Denied::Busy(Held::BySource(HERE))));
        assert_eq!(throttle.begin(ALICE, HERE, true, [0, 0], 5), Err(Denied::Wait(1000)));
    }

    #[test]
    fn guesses_from_elsewhere_do_not_lock_the_owner_out() {
        let mut throttle = Throttle::new();
        for _ in 0..300 {
            let _ = fail(&mut throttle, THERE, false, 5);
        }
        assert!(fail(&mut throttle, THERE, false, 6).is_err());
        let owner = throttle.begin(ALICE, HERE, true, [0; 2], 6).unwrap();
        assert!(!throttle.succeeded(owner, 0));
        assert!(fail(&mut throttle, THERE, false, 7).is_err(), "the owner's login is no pardon for the rest");
    }

    #[test]
    fn a_success_ends_a_row_of_failures() {
        let mut throttle = Throttle::new();
        fail(&mut throttle, HERE, false, 1).unwrap();
        fail(&mut throttle, HERE, false, 1).unwrap();
        let right = throttle.begin(ALICE, HERE, false, [0; 2], 2).unwrap();
        assert!(throttle.succeeded(right, 0));
        assert_eq!(fail(&mut throttle, HERE, false, 2), Ok(1));
    }

    #[test]
    fn counters_with_equal_counts_are_not_all_evicted_at_once() {
        let mut throttle = Throttle { kept: 100, ..Throttle::default() };
        for name in 0..100u8 {
            throttle.restore(Counter { name: [name; 16], source: None }, 3, 0);
        }
        let _ = throttle.begin([200; 16], HERE, false, [0; 2], 1);
        assert!((50..=52).contains(&throttle.names.len()), "{}", throttle.names.len());
    }

    #[test]
    fn an_unchecked_attempt_makes_nobody_wait() {
        let mut throttle = Throttle::new();
        for _ in 0..3 {
            let _ = fail(&mut throttle, HERE, false, 0);
        }
        let busy = throttle.begin(ALICE, HERE, false, [0; 2], 1000).unwrap();
        throttle.withdrawn(busy);
        assert!(throttle.begin(ALICE, HERE, false, [0; 2], 1001).is_ok());
    }

    #[test]
    fn one_source_may_not_try_all_names() {
        let mut throttle = Throttle::new();
        let tried = (0..200u8).filter(|name| throttle.begin([*name; 16], HERE, false, [0; 2], 5).is_ok()).count();
        assert_eq!(tried, 20);
        assert!(throttle.begin(ALICE, THERE, false, [0; 2], 5).is_ok());
        assert!(throttle.begin([250; 16], HERE, false, [0; 2], 5 + SOURCE_MEMORY + 1).is_ok(), "it is forgotten");
    }

    #[test]
    fn a_flood_of_names_does_not_evict_the_guessed_one() {
        let mut throttle = Throttle { kept: 1000, ..Throttle::default() };
        for now in 0..10u64 {
            let _ = fail(&mut throttle, THERE, false, now * LONGEST);
        }
        for name in 0..5000u128 {
            let source = Digest::from((name + 1).to_le_bytes());
            let _ = throttle.begin(Digest::from((name + 1000).to_le_bytes()), source, false, [0; 2], 10 * LONGEST);
        }
        assert!(throttle.names.len() <= 1000);
        assert_eq!(throttle.of(ALICE).len(), 1);
    }
}
