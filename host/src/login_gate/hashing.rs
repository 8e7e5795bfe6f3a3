//! Password checks run here, and never on threads that serve: on a few threads with a low priority, as many at once as
//! the memory budget allows, fair between sources, and with a limit on the queue. Sources of earlier logins have a
//! queue and threads of their own (or every second turn, if the memory suffices for only one check), and a quarter of
//! the queue is reserved for them, so that strangers cannot keep them out. Strangers' threads have the lowest priority,
//! and pause after each check for as long as it took.
//!
//! These threads only compute. Another thread, of normal priority, does what follows from a check: it takes locks that
//! threads which serve take, too, and they would wait while the system lets a thread of low priority wait.

use std::collections::{HashMap, VecDeque};
use std::net::IpAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::time::Instant;

use parking_lot::{Condvar, Mutex};

/// The default limit of waiting checks. At most three quarters of them may be of sources that nobody has logged in from.
const WAITING: usize = 256;
/// The default limit for one source.
const PER_SOURCE: usize = 8;
/// The minimum for a source of earlier logins: as many as the throttle lets one source check at once.
const PER_KNOWN_SOURCE: usize = 20;

/// What follows from a check.
type Outcome = Box<dyn FnOnce() + Send>;

/// A job, and the memory that it takes, in KiB.
struct Work {
    memory: u32,
    run: Box<dyn FnOnce() -> Outcome + Send>,
}

/// The threads that check passwords. When this is dropped, they end, and waiting jobs are discarded.
pub(super) struct Hashing {
    shared: Arc<Pool>,
}

struct Pool {
    queue: Mutex<Queue>,
    come: Condvar,
    /// The memory budget, in KiB.
    budget: u32,
    /// The memory that each thread keeps for its next check, in KiB.
    kept: u32,
    /// The limits of waiting jobs, in all and of one source.
    most: AtomicUsize,
    most_of_source: AtomicUsize,
}

/// The sources whose passwords a thread checks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Serves {
    /// Sources of earlier logins.
    Known,
    /// All other sources.
    Strangers,
    /// Both, in turns, if the memory suffices for only one check.
    All,
}

impl Serves {
    /// The niceness of its thread. While other programs keep every processor busy, 10 gets a tenth of one, and 19 a
    /// hundredth. A check then takes a second, which is acceptable for strangers.
    fn niceness(self) -> i32 {
        match self {
            Self::Known | Self::All => 10,
            Self::Strangers => 19,
        }
    }
}

/// A queue, fair between sources.
#[derive(Default)]
struct Line {
    /// Waiting jobs, by source.
    waiting: HashMap<IpAddr, VecDeque<Work>>,
    /// Sources with waiting jobs, in the order of their turns.
    turns: VecDeque<IpAddr>,
    count: usize,
}

#[derive(Default)]
struct Queue {
    /// Sources of earlier logins.
    known: Line,
    strangers: Line,
    /// Which queue is next, if both have jobs.
    known_next: bool,
    /// The memory of running jobs, in KiB.
    taken: u32,
    /// The part of that for strangers, on threads of their own.
    taken_by_strangers: u32,
    /// So much of the budget strangers leave to known sources, in KiB.
    reserved: u32,
    ended: bool,
}

/// The queue is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Busy;

impl std::fmt::Debug for Hashing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Hashing").field("waiting", &self.shared.queue.lock().count()).finish()
    }
}

impl Hashing {
    /// Starts half as many threads as there are processors (the rest serve) for sources of earlier logins, and the same
    /// number for strangers. Together there are no more threads than checks that fit into the budget, but at least one.
    /// Both arguments are in KiB. A check that takes more than `each` waits until there is room for it, or no other
    /// check is running.
    #[must_use]
    pub(super) fn new(budget: u32, each: u32) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, usize::from);
        let room = usize::try_from(budget / each.max(1)).unwrap_or(1);
        let threads = match (processors / 2).max(1).min(room / 2) {
            0 => vec![Serves::All],
            of_each => [Serves::Known, Serves::Strangers].repeat(of_each),
        };
        Self::with_threads(&threads, budget, each)
    }

    fn with_threads(threads: &[Serves], budget: u32, kept: u32) -> Self {
        let (outcomes, come) = channel::<Outcome>();
        // It ends with the last thread that checks.
        let started = std::thread::Builder::new().name("outcomes".to_owned()).spawn(move || {
            for outcome in come {
                contained(outcome);
            }
        });
        if let Err(error) = started {
            // Then who checks does that, too.
            tracing::error!(%error, "a thread for the outcomes of password checks cannot start");
        }
        let shared = Arc::new(Pool {
            queue: Mutex::default(),
            come: Condvar::new(),
            budget,
            kept,
            most: AtomicUsize::new(WAITING),
            most_of_source: AtomicUsize::new(PER_SOURCE),
        });
        let mut all = false;
        for (index, of) in threads.iter().copied().enumerate() {
            // Without a thread for known sources, the others serve them, too.
            let of = if all { Serves::All } else { of };
            let (pool, outcomes) = (Arc::clone(&shared), outcomes.clone());
            let started =
                std::thread::Builder::new().name(format!("hashing-{index}")).spawn(move || work(&pool, of, &outcomes));
            match started {
                Ok(_) if of == Serves::Known => shared.queue.lock().reserved += kept,
                Ok(_) => {}
                Err(error) => {
                    all |= of == Serves::Known;
                    tracing::error!(%error, "a thread that checks passwords cannot start");
                }
            }
        }
        Self { shared }
    }

    /// Sets the limits of waiting jobs, in all and of one source.
    pub(super) fn set_limits(&self, waiting: usize, of_source: usize) {
        self.shared.most.store(waiting, Ordering::Relaxed);
        self.shared.most_of_source.store(of_source, Ordering::Relaxed);
    }

    /// Queues a job for a source: `check` on a thread for that, then `follow` with its result on another one. It takes
    /// this much memory, in KiB. `known`: somebody has logged in from this source before.
    ///
    /// # Errors
    /// If the queue is full.
    pub(super) fn submit<R: Send + 'static>(
        &self,
        (source, known): (IpAddr, bool),
        memory: u32,
        check: impl FnOnce() -> R + Send + 'static,
        follow: impl FnOnce(R) + Send + 'static,
    ) -> Result<(), Busy> {
        let run = Box::new(move || {
            let result = check();
            Box::new(move || follow(result)) as Outcome
        });
        let mut queue = self.shared.queue.lock();
        let waiting = self.shared.most.load(Ordering::Relaxed);
        let of_source = self.shared.most_of_source.load(Ordering::Relaxed);
        if queue.count() >= waiting || !known && queue.strangers.count >= waiting / 4 * 3 {
            return Err(Busy);
        }
        let (line, most) = match known {
            true => (&mut queue.known, of_source.max(PER_KNOWN_SOURCE)),
            false => (&mut queue.strangers, of_source),
        };
        line.push(source, most, Work { memory, run })?;
        drop(queue);
        // All are woken, since a single one may serve the other queue.
        self.shared.come.notify_all();
        Ok(())
    }
}

impl Drop for Hashing {
    fn drop(&mut self) {
        let mut queue = self.shared.queue.lock();
        queue.ended = true;
        (queue.known, queue.strangers) = Default::default();
        drop(queue);
        self.shared.come.notify_all();
    }
}

impl Line {
    fn push(&mut self, source: IpAddr, most: usize, work: Work) -> Result<(), Busy> {
        let own = self.waiting.entry(source).or_default();
        if own.len() >= most {
            return Err(Busy);
        }
        own.push_back(work);
        if own.len() == 1 {
            self.turns.push_back(source);
        }
        self.count += 1;
        Ok(())
    }

    /// Takes the next job, if it takes no more memory than this, in KiB. No other job overtakes it.
    fn next(&mut self, room: u32) -> Option<Work> {
        if self.waiting.get(self.turns.front()?)?.front()?.memory > room {
            return None;
        }
        let source = self.turns.pop_front()?;
        let own = self.waiting.get_mut(&source)?;
        let work = own.pop_front();
        if own.is_empty() {
            self.waiting.remove(&source);
        } else {
            self.turns.push_back(source);
        }
        self.count -= 1;
        work
    }
}

impl Queue {
    fn count(&self) -> usize {
        self.known.count + self.strangers.count
    }

    /// Takes the next job for a thread of this kind, if there is room for it now.
    fn next(&mut self, budget: u32, of: Serves) -> Option<Work> {
        let mut room = budget.saturating_sub(self.taken);
        if of == Serves::Strangers {
            room = room.min(budget.saturating_sub(self.reserved).saturating_sub(self.taken_by_strangers));
        }
        if self.taken == 0 {
            room = u32::MAX;
        }
        let known = match of {
            Serves::Known => true,
            Serves::Strangers => false,
            Serves::All => self.strangers.count == 0 || self.known_next && self.known.count > 0,
        };
        let line = if known { &mut self.known } else { &mut self.strangers };
        let work = line.next(room)?;
        self.known_next = !known;
        self.taken = self.taken.saturating_add(work.memory);
        if of == Serves::Strangers {
            self.taken_by_strangers = self.taken_by_strangers.saturating_add(work.memory);
        }
        Some(work)
    }
}

/// Runs this. A password check supplied by an embedding program may panic, and its thread serves everybody.
fn contained<R>(run: impl FnOnce() -> R) -> Option<R> {
    let run = std::panic::catch_unwind(std::panic::AssertUnwindSafe(run));
    run.inspect_err(|_| tracing::error!("a fault in the host during a password check; please report it")).ok()
}

fn work(shared: &Pool, of: Serves, outcomes: &Sender<Outcome>) {
    // Logged-in clients have priority. If the system does not allow a lower priority, all share the processors.
    // SCHED_IDLE is not used: the system considers a processor with only such work as idle, and on a kernel without
    // early preemption a thread placed there waits for its next tick.
    let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), of.niceness());
    crate::cred::keep_memory(shared.kept);
    loop {
        let work = {
            let mut queue = shared.queue.lock();
            loop {
                if queue.ended {
                    return;
                }
                match queue.next(shared.budget, of) {
                    Some(work) => break work,
                    None => shared.come.wait(&mut queue),
                }
            }
        };
        let began = Instant::now();
        if let Some(outcome) = contained(work.run)
            && let Err(unsent) = outcomes.send(outcome)
        {
            contained(unsent.0);
        }
        {
            let mut queue = shared.queue.lock();
            queue.taken -= work.memory;
            if of == Serves::Strangers {
                queue.taken_by_strangers -= work.memory;
            }
        }
        // Another job may be waiting for this memory.
        shared.come.notify_all();
        if of == Serves::Strangers {
            // Pauses as long as the check took, so that many guesses leave half of a processor, and of its caches, to
            // logged-in clients.
            std::thread::sleep(began.elapsed());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    impl Hashing {
        /// A check that nothing follows from.
        fn only(&self, from: (IpAddr, bool), memory: u32, check: impl FnOnce() + Send + 'static) -> Result<(), Busy> {
            self.submit(from, memory, check, |()| ())
        }
    }

    #[test]
    fn what_follows_from_a_check_is_done_on_a_thread_of_its_own() {
        let hashing = Hashing::with_threads(&[Serves::Known, Serves::Strangers], 2, 1);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (told, heard) = channel();
        let name = || std::thread::current().name().unwrap_or_default().to_owned();
        for known in [false, true] {
            let told = told.clone();
            let follow = move |checked| told.send((checked, name())).unwrap();
            hashing.submit((here, known), 1, name, follow).unwrap();
            let (checked, followed) = heard.recv().unwrap();
            assert!(checked.starts_with("hashing-") && followed == "outcomes", "{checked} {followed}");
        }
        // One that panics ends neither thread.
        hashing.submit((here, false), 1, || (), |()| panic!("of the test's own")).unwrap();
        hashing.submit((here, false), 1, name, move |checked| told.send((checked, name())).unwrap()).unwrap();
        assert_eq!(heard.recv().unwrap().1, "outcomes");
    }

    #[test]
    fn sources_take_turns_and_excess_checks_are_refused() {
        let hashing = Hashing::with_threads(&[Serves::All], 1, 1);
        let (one, other) = (IpAddr::from([127, 0, 0, 1]), IpAddr::from([127, 0, 0, 2]));
        let (go, wait) = channel::<()>();
        let (told, heard) = channel();
        // Occupies the only thread until all checks are submitted.
        hashing
            .only((one, false), 1, move || {
                // The test gives the signal by dropping the other end.
                let _ = wait.recv();
            })
            .unwrap();
        while hashing.shared.queue.lock().count() > 0 {
            std::thread::yield_now();
        }
        let say = |source, what: &'static str| {
            let told = told.clone();
            hashing.only((source, false), 1, move || told.send(what).unwrap())
        };
        for _ in 0..PER_SOURCE {
            say(one, "one").unwrap();
        }
        assert_eq!(say(one, "one"), Err(Busy));
        say(other, "other").unwrap();
        drop(go);
        let order: Vec<&str> = heard.iter().take(PER_SOURCE + 1).collect();
        assert_eq!(order[..3], ["one", "other", "one"]);
    }

    #[test]
    fn known_sources_have_reserved_room_and_every_second_turn() {
        let hashing = Hashing::with_threads(&[Serves::All], 1, 1);
        let source = |number: usize| IpAddr::from(u32::try_from(number).unwrap().to_be_bytes());
        let (go, wait) = channel::<()>();
        let (told, heard) = channel();
        hashing
            .only((source(0), false), 1, move || {
                let _ = wait.recv();
            })
            .unwrap();
        while hashing.shared.queue.lock().count() > 0 {
            std::thread::yield_now();
        }
        let say = |from: usize, known: bool| {
            let told = told.clone();
            hashing.only((source(from), known), 1, move || told.send(known).unwrap())
        };
        let strangers = (1..10_000).take_while(|from| say(*from, false).is_ok()).count();
        assert_eq!(strangers, WAITING / 4 * 3);
        for owner in 0..3 {
            say(20_000 + owner, true).unwrap();
        }
        drop(go);
        let order: Vec<bool> = heard.iter().take(8).collect();
        assert_eq!(order.iter().take(7).filter(|known| **known).count(), 3, "{order:?}");
        // And known sources do not keep strangers out.
        assert!(order.iter().filter(|known| !**known).count() >= 3, "{order:?}");
    }

    #[test]
    fn strangers_leave_memory_to_known_sources() {
        let hashing = Hashing::with_threads(&[Serves::Known, Serves::Strangers].repeat(2), 100, 10);
        let (go, wait) = channel::<()>();
        let (wait, here) = (Arc::new(Mutex::new(wait)), IpAddr::from([127, 0, 0, 1]));
        let (told, heard) = channel();
        // Two at once would take all the memory; 20 are reserved for the two threads of known sources.
        for _ in 0..2 {
            let (wait, told) = (Arc::clone(&wait), told.clone());
            let work = move || {
                told.send("stranger").unwrap();
                let _ = wait.lock().recv();
            };
            hashing.only((here, false), 50, work).unwrap();
        }
        assert_eq!(heard.recv(), Ok("stranger"));
        for _ in 0..5 {
            let told = told.clone();
            hashing.only((here, true), 50, move || told.send("known").unwrap()).unwrap();
        }
        assert_eq!(heard.iter().take(5).collect::<Vec<_>>(), ["known"; 5]);
        drop(go);
        assert_eq!(heard.recv(), Ok("stranger"));
    }

    #[test]
    fn a_strangers_check_never_keeps_a_known_source_waiting() {
        let hashing = Hashing::with_threads(&[Serves::Known, Serves::Strangers], 2, 1);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (go, wait) = channel::<()>();
        let (told, heard) = channel();
        hashing
            .only((here, false), 1, move || {
                let _ = wait.recv();
            })
            .unwrap();
        // More strangers wait than there are threads for them.
        for _ in 0..3 {
            let told = told.clone();
            hashing.only((here, false), 1, move || told.send("stranger").unwrap()).unwrap();
        }
        for _ in 0..5 {
            let told = told.clone();
            hashing.only((here, true), 1, move || told.send("known").unwrap()).unwrap();
        }
        assert_eq!(heard.iter().take(5).collect::<Vec<_>>(), ["known"; 5]);
        drop(go);
        assert_eq!(heard.iter().take(3).collect::<Vec<_>>(), ["stranger"; 3]);
    }

    #[test]
    fn concurrent_checks_stay_within_the_memory_budget() {
        let hashing = Hashing::with_threads(&[Serves::Known, Serves::Strangers].repeat(2), 100, 10);
        let now = Arc::new(Mutex::new((0, 0)));
        let (told, heard) = channel();
        for (source, memory) in (0..40u8).zip([30, 60, 90, 300].into_iter().cycle()) {
            let (now, told) = (Arc::clone(&now), told.clone());
            let work = move || {
                {
                    let mut now = now.lock();
                    now.0 += memory;
                    // A check that is larger than the budget runs alone.
                    now.1 = now.1.max(if now.0 == memory { memory.min(100) } else { now.0 });
                }
                std::thread::yield_now();
                now.lock().0 -= memory;
                told.send(()).unwrap();
            };
            hashing.only((IpAddr::from([127, 0, 0, source]), source % 2 == 0), memory, work).unwrap();
        }
        assert_eq!(heard.iter().take(40).count(), 40);
        assert!(now.lock().1 <= 100, "{}", now.lock().1);
    }

    #[test]
    fn a_check_that_panics_does_not_affect_the_next() {
        let hashing = Hashing::with_threads(&[Serves::All], 1, 1);
        let here = IpAddr::from([127, 0, 0, 1]);
        let (told, heard) = channel();
        hashing.only((here, false), 1, || panic!("of the test's own")).unwrap();
        hashing.only((here, false), 1, move || told.send(()).unwrap()).unwrap();
        heard.recv().unwrap();
    }
}
