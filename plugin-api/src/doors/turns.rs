//! Decides whose turn it is, of all who wait to be served by a service's doors: the owner that has cost least is next. Reads no
//! clock.
//!
//! Each owner (an identity, or the address of clients that have not logged in) has a virtual clock, which advances by what it
//! costs. The owner whose clock is furthest behind is next (fair queueing, as the host does for calls). An owner that comes again
//! starts where all would be if they had shared the work so far. So owners that come one after the other do not keep those
//! waiting that are here. The connections of one owner wait in one line.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// How many lines there may be before those of owners of whom nobody waits are removed.
const IDLE: usize = 256;

/// An owner's line.
#[derive(Debug)]
struct Line<T> {
    waiting: VecDeque<T>,
    /// Its virtual clock: what it has cost, in nanoseconds.
    clock: u64,
    /// What one of its bytes costs, in nanoseconds.
    byte_cost: u64,
}

/// The least and the most that is read in one turn, in bytes. A turn runs to its end whatever it costs, so what somebody can make
/// expensive without a warning must be little.
const LEAST: usize = 64;
const MOST: usize = 2 << 10;
/// The intended cost of a turn, in nanoseconds. How much is read in it follows from what bytes have cost before.
const TURN_COST: u64 = 500_000;
/// How far an owner that costs little is ahead of the others at most, in nanoseconds.
const CREDIT: u64 = 20_000_000;
/// The assumed cost of a byte of which nothing is known, in nanoseconds.
const FIRST_COST: u64 = 2000;

/// Those who wait for a turn. `T` is how one of them is notified.
#[derive(Debug)]
pub(super) struct Turns<T> {
    lines: HashMap<String, Line<T>>,
    /// The owners of whom somebody waits, by their clocks.
    ready: BTreeSet<(u64, String)>,
    /// Where newcomers start. It advances by the cost of the work, shared by all who wait. `furthest` is the clock that is
    /// furthest ahead.
    clock: u64,
    furthest: u64,
    /// The number of lines at which those that need not be remembered are removed.
    sweep_at: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        let (lines, ready) = (HashMap::new(), BTreeSet::new());
        Self { lines, ready, clock: 0, furthest: 0, sweep_at: IDLE }
    }
}

impl<T> Turns<T> {
    /// Adds one to this owner's line.
    pub(super) fn wait(&mut self, owner: &str, one: T) {
        if self.ready.is_empty() {
            // Nobody waits: nobody is owed anything.
            self.clock = self.furthest;
        }
        self.sweep();
        let clock = self.clock;
        let line = self.line(owner);
        let joins = line.waiting.is_empty().then(|| {
            // An owner that was away does not come back with all the credit that it has saved up.
            line.clock = line.clock.max(clock.saturating_sub(CREDIT));
            line.clock
        });
        line.waiting.push_back(one);
        if let Some(clock) = joins {
            self.ready.insert((clock, owner.to_owned()));
        }
    }

    /// Takes out the one whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        let (clock, owner) = self.ready.pop_first()?;
        self.clock = self.clock.max(clock);
        self.furthest = self.furthest.max(clock);
        let line = self.lines.get_mut(&owner)?;
        let one = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.ready.insert((clock, owner));
        }
        one
    }

    /// Charges an owner this cost, in nanoseconds.
    pub(super) fn charge(&mut self, owner: &str, cost: u64) {
        let line = self.line(owner);
        let before = line.clock;
        line.clock = before.saturating_add(cost);
        let (clock, waits) = (line.clock, !line.waiting.is_empty());
        self.furthest = self.furthest.max(clock);
        if waits {
            let mut place = (before, owner.to_owned());
            self.ready.remove(&place);
            place.0 = clock;
            self.ready.insert(place);
        }
        // Newcomers in a row do not keep those waiting that are here.
        self.clock = self.clock.saturating_add(cost / (self.ready.len() as u64 + 1));
    }

    /// How much of an owner's input is read in its next turn, in bytes.
    pub(super) fn room(&self, owner: &str) -> usize {
        let byte_cost = self.lines.get(owner).map_or(FIRST_COST, |line| line.byte_cost);
        usize::try_from(TURN_COST / byte_cost.max(1)).unwrap_or(MOST).clamp(LEAST, MOST)
    }

    /// Learns that this many bytes of an owner's input have cost so many nanoseconds.
    pub(super) fn learn(&mut self, owner: &str, bytes: usize, cost: u64) {
        if bytes == 0 {
            return;
        }
        let (each, line) = (cost / bytes as u64, self.line(owner));
        // Quick to rise, slow to fall.
        line.byte_cost = if each > line.byte_cost { each } else { line.byte_cost - (line.byte_cost - each) / 8 };
    }

    /// An owner's line. One that was forgotten meanwhile is made again, so that what is done for the owner still counts.
    fn line(&mut self, owner: &str) -> &mut Line<T> {
        let clock = self.clock;
        self.lines.entry(owner.to_owned()).or_insert_with(|| Line {
            waiting: VecDeque::new(),
            clock,
            byte_cost: FIRST_COST,
        })
    }

    /// Forgets the owners whose clocks have no more meaning: if they come again, they start with as much.
    fn sweep(&mut self) {
        if self.lines.len() >= self.sweep_at {
            let clock = self.clock;
            self.lines.retain(|_, line| !line.waiting.is_empty() || line.clock > clock);
            self.sweep_at = IDLE.max(2 * self.lines.len());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Serves `count` turns, each at its cost; whoever is served waits again at once. Returns who was served.
    fn served(turns: &mut Turns<&'static str>, count: usize, cost: impl Fn(&str) -> u64) -> Vec<&'static str> {
        let next = || {
            let one = turns.next()?;
            let owner = one.trim_end_matches(char::is_numeric);
            turns.charge(owner, cost(one));
            turns.wait(owner, one);
            Some(one)
        };
        std::iter::repeat_with(next).map_while(|one| one).take(count).collect()
    }

    fn share(served: &[&str], owner: &str) -> usize {
        served.iter().filter(|one| one.starts_with(owner)).count()
    }

    #[test]
    fn owners_get_equal_shares_however_many_connections_they_have() {
        let mut turns = Turns::default();
        for one in ["alice1", "alice2", "alice3", "alice4", "bob"] {
            turns.wait(one.trim_end_matches(char::is_numeric), one);
        }
        let served = served(&mut turns, 100, |_| 1000);
        assert_eq!((share(&served, "alice"), share(&served, "bob")), (50, 50));
        assert_eq!(share(&served, "alice1"), 13, "and its connections take turns");
    }

    #[test]
    fn turns_are_by_cost() {
        let mut turns = Turns::default();
        for one in ["alice", "bob"] {
            turns.wait(one, one);
        }
        let served = served(&mut turns, 110, |one| if one == "alice" { 10_000 } else { 1000 });
        assert!((9..=11).contains(&share(&served, "alice")), "{}", share(&served, "alice"));
    }

    #[test]
    fn an_occasional_owner_is_next_but_has_saved_nothing_up() {
        let mut turns = Turns::default();
        turns.wait("alice", "alice");
        let _ = served(&mut turns, 1000, |_| 1000);
        turns.wait("bob", "bob");
        let both = served(&mut turns, 10, |_| 1000);
        assert!(both[..2].contains(&"bob"), "{both:?}");
        assert_eq!(share(&both, "bob"), 5, "{both:?}");
    }

    #[test]
    fn the_amount_read_is_what_one_turn_costs() {
        let mut turns = Turns::<()>::default();
        assert_eq!(turns.room("alice"), 250);
        let mut after = |cost_of_byte: u64, count: usize| {
            for _ in 0..count {
                let bytes = turns.room("alice");
                turns.learn("alice", bytes, bytes as u64 * cost_of_byte);
            }
            turns.room("alice")
        };
        assert_eq!(after(1, 100), MOST);
        assert_eq!(after(1000, 1), 500);
        assert_eq!(after(50_000, 1), LEAST, "a millisecond for each line of twenty bytes");
        assert!(after(1, 10) < 64 * 3, "who was dear is not soon forgotten to have been");
        assert_eq!(after(1, 100), MOST);
        turns.learn("alice", 0, 1_000_000);
        assert_eq!(turns.room("alice"), MOST, "nothing has come");
    }

    #[test]
    fn newcomers_in_a_row_do_not_starve_those_present() {
        let mut turns = Turns::default();
        turns.wait("alice", "alice".to_owned());
        turns.wait("new-0", "new-0".to_owned());
        let mut alice = 0;
        for number in 1..=1000 {
            let one = turns.next().unwrap();
            turns.charge(&one, 1000);
            if one == "alice" {
                alice += 1;
                turns.wait("alice", one);
            } else {
                turns.wait(&format!("new-{number}"), format!("new-{number}"));
            }
        }
        assert!((400..=600).contains(&alice), "alice was served {alice} times of 1000");
    }

    #[test]
    fn work_for_a_forgotten_owner_is_counted() {
        let mut turns = Turns::default();
        turns.wait("carol", "carol");
        turns.charge("alice", 1_000_000);
        turns.wait("bob", "bob");
        turns.wait("alice", "alice");
        assert_eq!([turns.next(), turns.next(), turns.next()], [Some("carol"), Some("bob"), Some("alice")]);
    }

    #[test]
    fn owners_who_are_gone_are_forgotten() {
        let mut turns = Turns::default();
        for number in 0..100_000 {
            let owner = format!("10.0.{}.{}", number / 256, number % 256);
            turns.wait(&owner, ());
            assert!(turns.next().is_some() && turns.next().is_none());
            turns.charge(&owner, 1000);
        }
        assert!(turns.lines.len() <= 2 * IDLE, "{}", turns.lines.len());
    }
}
