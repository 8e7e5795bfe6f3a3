//! Whose turn it is, of all who wait to be served by a service's doors: whoever has cost least. Reads no clock.
//!
//! Each owner (an identity, or the address of clients that have not logged in) has a clock, which runs on by what it costs; the one
//! that is furthest behind is next, and who comes anew starts with those that are there (start-time fair queueing, as the host has
//! it for calls). Connections of one owner wait in one line.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// So many owners of whom nobody waits are remembered before they are looked through.
const IDLE: usize = 256;

/// An owner's line.
#[derive(Debug)]
struct Line<T> {
    waiting: VecDeque<T>,
    /// What it has cost, in nanoseconds, as it were.
    clock: u64,
    /// How much of its clients' is read in one turn, in bytes.
    room: usize,
}

/// How much is read in one turn, in bytes: at first, at least, and at most.
const FIRST: usize = 256;
const LEAST: usize = 64;
const MOST: usize = 16 << 10;
/// What a turn is to cost, in nanoseconds: so much is read as costs that, as far as can be told from what has come before.
const TURN_COST: u64 = 500_000;

/// How much to read in the next turn, after so many bytes have cost so many nanoseconds in one with so much room.
fn next_room(room: usize, bytes: usize, cost: u64) -> usize {
    if bytes == 0 {
        return room;
    }
    let fits = u128::from(TURN_COST) * bytes as u128 / u128::from(cost.max(1));
    usize::try_from(fits).unwrap_or(MOST).min(2 * room).clamp(LEAST, MOST)
}

/// Who waits for a turn; `T` is what one is told by.
#[derive(Debug)]
pub(super) struct Turns<T> {
    lines: HashMap<String, Line<T>>,
    /// Those in which somebody waits, by their clocks.
    ready: BTreeSet<(u64, String)>,
    /// The clock of the owner who was served last; and of the one who is furthest ahead.
    clock: u64,
    furthest: u64,
    /// With so many lines, those that need not be remembered are looked for.
    sweep_at: usize,
}

impl<T> Default for Turns<T> {
    fn default() -> Self {
        let (lines, ready) = (HashMap::new(), BTreeSet::new());
        Self { lines, ready, clock: 0, furthest: 0, sweep_at: IDLE }
    }
}

impl<T> Turns<T> {
    /// One of this owner's waits.
    pub(super) fn wait(&mut self, owner: &str, one: T) {
        if self.ready.is_empty() {
            // Nobody waits: nobody is owed anything.
            self.clock = self.furthest;
        }
        self.sweep();
        let clock = self.clock;
        let line = match self.lines.get_mut(owner) {
            Some(line) => line,
            None => self.lines.entry(owner.to_owned()).or_insert(Line { waiting: VecDeque::new(), clock, room: FIRST }),
        };
        if line.waiting.is_empty() {
            // Who was away does not come back with what it has saved up.
            line.clock = line.clock.max(clock);
            self.ready.insert((line.clock, owner.to_owned()));
        }
        line.waiting.push_back(one);
    }

    /// Whose turn it is.
    pub(super) fn next(&mut self) -> Option<T> {
        let (clock, owner) = self.ready.pop_first()?;
        self.clock = clock;
        self.furthest = self.furthest.max(clock);
        let line = self.lines.get_mut(&owner)?;
        let one = line.waiting.pop_front();
        if !line.waiting.is_empty() {
            self.ready.insert((clock, owner));
        }
        one
    }

    /// An owner has cost so much, in nanoseconds.
    pub(super) fn charge(&mut self, owner: &str, cost: u64) {
        let Some(line) = self.lines.get_mut(owner) else { return };
        let before = line.clock;
        line.clock = before.saturating_add(cost);
        self.furthest = self.furthest.max(line.clock);
        if !line.waiting.is_empty() {
            let mut place = (before, owner.to_owned());
            self.ready.remove(&place);
            place.0 = line.clock;
            self.ready.insert(place);
        }
    }

    /// How much of an owner's is read in its next turn, in bytes.
    pub(super) fn room(&self, owner: &str) -> usize {
        self.lines.get(owner).map_or(FIRST, |line| line.room)
    }

    /// So many bytes of an owner's have cost so many nanoseconds.
    pub(super) fn learn(&mut self, owner: &str, bytes: usize, cost: u64) {
        if let Some(line) = self.lines.get_mut(owner) {
            line.room = next_room(line.room, bytes, cost);
        }
    }

    /// Forgets those whose clocks say nothing any more: who comes anew has as much.
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

    /// Serves whoever is next so often, each at this cost: who was served. Each of them waits again at once.
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
    fn each_owner_has_as_much_however_many_connections_it_has() {
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
    fn who_comes_now_and_then_is_next_and_has_saved_nothing_up() {
        let mut turns = Turns::default();
        turns.wait("alice", "alice");
        let _ = served(&mut turns, 1000, |_| 1000);
        turns.wait("bob", "bob");
        let both = served(&mut turns, 10, |_| 1000);
        assert!(both[..2].contains(&"bob"), "{both:?}");
        assert_eq!(share(&both, "bob"), 5, "{both:?}");
    }

    #[test]
    fn so_much_is_read_as_costs_a_turn() {
        let mut turns = Turns::default();
        turns.wait("alice", ());
        let mut after = |cost_of_byte: u64| {
            for _ in 0..20 {
                let bytes = turns.room("alice");
                turns.learn("alice", bytes, bytes as u64 * cost_of_byte);
            }
            turns.room("alice")
        };
        assert_eq!(after(1), MOST);
        assert_eq!(after(1000), 500);
        assert_eq!(after(50_000), LEAST, "a millisecond for each line of twenty bytes");
        assert_eq!(after(10), MOST);
        assert_eq!(turns.room("bob"), FIRST);
        assert_eq!(next_room(FIRST, 0, 1_000_000), FIRST, "nothing has come");
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
