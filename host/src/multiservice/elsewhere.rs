//! Which perspectives a tried version has: the version that serves everybody else must not touch them.
//!
//! When a client attaches to a perspective in the tried version, that version loads the state again. Its request follows
//! everything that it said of a copy; only then does the host ask the serving version to yield the perspective. The serving
//! version saves its changes and confirms; only then is the state read for the tried version. At the end of the trial the
//! serving version gets it back.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::store::StoreError;

/// Called when the serving version has yielded a perspective; with an error if it does not.
type Waiting = Box<dyn FnOnce(Result<(), StoreError>) + Send>;

/// Asks the serving version to yield a perspective.
type Ask = Box<dyn Fn(&str) + Send + Sync>;

/// How many requests may wait for one perspective. A library has one request for each at a time.
const MOST_WAITING: usize = 16;

/// The perspectives that clients have come to in a tried version.
#[derive(Default)]
pub(super) struct Visited {
    /// Serializes visits and requests. True: the trial is over, and there are no more of them. Locked before all other locks.
    closed: Mutex<bool>,
    all: Mutex<BTreeMap<String, Visit>>,
    /// Those that the serving version was ever asked to yield.
    asked: Mutex<BTreeSet<String>>,
    ask: OnceLock<Ask>,
}

/// How far a perspective has moved.
enum Visit {
    /// The tried version has not asked for its state yet.
    Coming,
    /// The serving version was asked to yield it: since when, and who waits for that.
    Asked(Instant, Vec<Waiting>),
    /// The serving version has yielded it.
    Yielded,
}

impl Visited {
    /// Sets the function that asks the serving version to yield a perspective.
    pub(super) fn asks(&self, ask: impl Fn(&str) + Send + Sync + 'static) {
        // Set once, when the trial is created.
        let _ = self.ask.set(Box::new(ask));
    }

    /// A client comes to this perspective. If it is the first, `tell` notifies the tried version before any other client comes:
    /// what that version has of it is a copy, and must be loaded again. Returns true for the first.
    pub(super) fn visit(&self, perspective: &str, tell: impl FnOnce()) -> bool {
        let closed = self.closed.lock();
        let is_known = self.is_visited(perspective);
        if *closed || is_known {
            return false;
        }
        self.all.lock().insert(perspective.to_owned(), Visit::Coming);
        tell();
        true
    }

    /// The client did not get there after all.
    pub(super) fn leave(&self, perspective: &str) {
        let _turn = self.closed.lock();
        let mut all = self.all.lock();
        if matches!(all.get(perspective), Some(Visit::Coming)) && !self.asked.lock().contains(perspective) {
            all.remove(perspective);
        }
    }

    /// The serving version has yielded it.
    fn yielded(&self, perspective: &str) {
        let waiting = match self.all.lock().get_mut(perspective) {
            Some(visit @ Visit::Asked(..)) => match std::mem::replace(visit, Visit::Yielded) {
                Visit::Asked(_, waiting) => waiting,
                Visit::Coming | Visit::Yielded => return,
            },
            // It yields only what it was asked for.
            Some(Visit::Coming | Visit::Yielded) | None => return,
        };
        // Reading takes time, and this is the way out of the serving version.
        let (hand, handed) = std::sync::mpsc::channel::<Vec<Waiting>>();
        let read = move || handed.into_iter().flatten().for_each(|go_on| go_on(Ok(())));
        match std::thread::Builder::new().name("yielded".to_owned()).spawn(read) {
            // The thread has the other end, and takes one message.
            Ok(_) => drop(hand.send(waiting)),
            Err(error) => {
                let why = StoreError::Failed(format!("no thread can be started to read it: {error}"));
                waiting.into_iter().for_each(|told| told(Err(why.clone())));
            }
        }
    }

    /// The tried version requests this perspective's state, after everything that it had to say of a copy. `go_on` reads the
    /// state when the serving version has yielded it; at once, if it already has, or if no client has come to it.
    pub(super) fn once_yielded(&self, perspective: &str, now: Instant, go_on: Waiting) {
        let closed = self.closed.lock();
        let mut all = self.all.lock();
        let refused = match all.get_mut(perspective) {
            Some(Visit::Coming | Visit::Asked(..)) if *closed => Some("the trial is over"),
            Some(Visit::Asked(_, waiting)) if waiting.len() >= MOST_WAITING => Some("too many clients wait for it"),
            Some(Visit::Asked(_, waiting)) => return waiting.push(go_on),
            Some(visit @ Visit::Coming) => {
                *visit = Visit::Asked(now, vec![go_on]);
                self.asked.lock().insert(perspective.to_owned());
                // Making another generation serve looks at all of them, and `ask` waits for that.
                drop(all);
                if let Some(ask) = self.ask.get() {
                    ask(perspective);
                }
                return;
            }
            Some(Visit::Yielded) | None => None,
        };
        drop((all, closed));
        go_on(refused.map_or(Ok(()), |why| Err(StoreError::Elsewhere(why.to_owned()))));
    }

    /// Stops waiting for what the serving version has not yielded within `patience`. A later request asks again.
    pub(super) fn give_up(&self, now: Instant, patience: Duration) {
        let mut late = Vec::new();
        for (perspective, visit) in &mut *self.all.lock() {
            if matches!(visit, Visit::Asked(since, _) if now.saturating_duration_since(*since) >= patience)
                && let Visit::Asked(_, waiting) = std::mem::replace(visit, Visit::Coming)
            {
                late.push((perspective.clone(), waiting));
            }
        }
        for (perspective, waiting) in late {
            let why = || format!("the serving version has not released {perspective} yet; try again");
            waiting.into_iter().for_each(|told| told(Err(StoreError::Elsewhere(why()))));
        }
    }

    /// Whether the tried version may change it.
    pub(super) fn has(&self, perspective: &str) -> bool {
        matches!(self.all.lock().get(perspective), Some(Visit::Yielded))
    }

    fn is_visited(&self, perspective: &str) -> bool {
        self.all.lock().contains_key(perspective)
    }

    /// All perspectives that clients have come to.
    pub(super) fn names(&self) -> Vec<String> {
        self.all.lock().keys().cloned().collect()
    }

    /// All that the serving version was asked to yield.
    fn asked(&self) -> Vec<String> {
        self.asked.lock().iter().cloned().collect()
    }
}

/// Which of a slot's perspectives a tried version has.
#[derive(Default)]
pub(super) struct Elsewhere {
    now: Mutex<Now>,
    /// Notified when the serving version has all of them again.
    regained: Notify,
}

#[derive(Default)]
struct Now {
    /// The visits of the version that is being tried, if there is one.
    with: Option<Arc<Visited>>,
    /// The tried version has saved its last changes: these are being given back.
    regaining: Option<BTreeSet<String>>,
}

impl Elsewhere {
    /// From now on, perspectives that clients attach to in that version are its own.
    pub(super) fn begins(&self, visited: &Arc<Visited>) {
        *self.now.lock() = Now { with: Some(Arc::clone(visited)), regaining: None };
    }

    /// That version has saved its last changes. Returns what the serving version regains. Until [`Elsewhere::ends`], no client
    /// can attach to these.
    pub(super) fn ending(&self) -> Vec<String> {
        let Some(visited) = self.now.lock().with.clone() else { return Vec::new() };
        *visited.closed.lock() = true;
        let names = visited.asked();
        let mut now = self.now.lock();
        now.regaining = Some(names.iter().cloned().collect());
        names
    }

    /// Waits until the serving version has all of them again.
    pub(super) async fn all_regained(&self) {
        loop {
            let regained = self.regained.notified();
            if self.regains().is_empty() {
                return;
            }
            regained.await;
        }
    }

    /// What the serving version has yet to regain.
    pub(super) fn regains(&self) -> Vec<String> {
        self.now.lock().regaining.iter().flatten().cloned().collect()
    }

    /// The serving version has regained this one.
    pub(super) fn regained(&self, perspective: &str) {
        let mut now = self.now.lock();
        if now.regaining.as_mut().is_some_and(|left| left.remove(perspective) && left.is_empty()) {
            self.regained.notify_waiters();
        }
    }

    /// The trial is over.
    pub(super) fn ends(&self) {
        *self.now.lock() = Now::default();
    }

    /// What the serving version must yield.
    pub(super) fn yields(&self) -> Vec<String> {
        let now = self.now.lock();
        now.with.as_ref().filter(|_| now.regaining.is_none()).map(|visited| visited.asked()).unwrap_or_default()
    }

    /// The serving version has yielded this perspective.
    pub(super) fn yielded(&self, perspective: &str) {
        // Without the lock: requests that have waited continue, and ask the store.
        let visited = self.now.lock().with.clone();
        if let Some(visited) = visited {
            visited.yielded(perspective);
        }
    }

    /// Why no client can attach to this perspective here. `None`: they can.
    pub(super) fn why(&self, perspective: &str) -> Option<String> {
        let now = self.now.lock();
        now.with.as_ref().filter(|visited| visited.is_visited(perspective)).map(|_| why(perspective))
    }

    /// Why a change of it is not saved. `None`: it is saved. This refuses the changes of a library to a perspective that it has
    /// yielded and not been given back.
    pub(super) fn why_not_saved(&self, perspective: &str) -> Option<String> {
        let now = self.now.lock();
        let with = now.with.as_ref().filter(|_| now.regaining.is_none());
        with.filter(|visited| visited.has(perspective)).map(|_| why(perspective))
    }
}

/// The error for those who want a perspective that another version has. Clients see it, so it does not name the identities that
/// try the version.
pub(super) fn why(perspective: &str) -> String {
    format!("{perspective} is in use by another version of the service, which is being tried")
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc::{Receiver, channel};

    use super::*;

    /// Asks for a perspective's state. Returns the channel of the result.
    fn wants(visited: &Visited, perspective: &str, now: Instant) -> Receiver<Result<(), StoreError>> {
        let (done, came) = channel();
        visited.once_yielded(perspective, now, Box::new(move |how| drop(done.send(how))));
        came
    }

    fn asked(visited: &Visited) -> Receiver<String> {
        let (tell, asked) = channel();
        visited.asks(move |perspective| drop(tell.send(perspective.to_owned())));
        asked
    }

    #[test]
    fn a_visited_perspective_is_elsewhere_until_the_trial_ends() {
        let (elsewhere, visited, now) = (Elsewhere::default(), Arc::<Visited>::default(), Instant::now());
        assert_eq!(elsewhere.why("alice"), None);
        elsewhere.begins(&visited);
        assert_eq!(elsewhere.why("alice"), None, "she has not come yet");
        let mut told = 0;
        visited.visit("alice", || told += 1);
        visited.visit("alice", || told += 1);
        assert_eq!(told, 1, "it loads her state again, once");
        let why = elsewhere.why("alice").unwrap();
        assert_eq!(why, "alice is in use by another version of the service, which is being tried");
        assert_eq!((elsewhere.why_not_saved("alice"), elsewhere.why("bob")), (None, None), "it has yet to yield it");
        let came = wants(&visited, "alice", now);
        elsewhere.yielded("alice");
        elsewhere.yielded("bob");
        assert_eq!(came.recv(), Ok(Ok(())));
        assert_eq!((elsewhere.why_not_saved("alice"), elsewhere.why_not_saved("bob")), (Some(why.clone()), None));
        assert_eq!((elsewhere.yields(), elsewhere.ending()), (vec!["alice".to_owned()], vec!["alice".to_owned()]));
        assert!(elsewhere.yields().is_empty(), "who serves next has nothing to yield");
        assert_eq!(elsewhere.why("alice"), Some(why), "it is still being given back");
        assert_eq!(elsewhere.why_not_saved("alice"), None, "and may be changed as soon as it was");
        elsewhere.regained("bob");
        assert_eq!(elsewhere.regains(), ["alice"]);
        elsewhere.regained("alice");
        assert!(elsewhere.regains().is_empty());
        elsewhere.ends();
        assert_eq!(elsewhere.why("alice"), None);
    }

    #[test]
    fn the_tried_version_reads_a_state_after_it_was_yielded() {
        let (elsewhere, visited, now) = (Elsewhere::default(), Arc::<Visited>::default(), Instant::now());
        let asked = asked(&visited);
        elsewhere.begins(&visited);
        assert_eq!(wants(&visited, "bob", now).try_recv(), Ok(Ok(())), "nobody has come to his: it is read as it is");
        visited.visit("alice", || ());
        elsewhere.yielded("alice");
        assert!(!visited.has("alice") && asked.try_recv().is_err(), "nobody has asked for that yet");
        let (one, two) = (wants(&visited, "alice", now), wants(&visited, "alice", now));
        assert_eq!(asked.try_iter().collect::<Vec<_>>(), ["alice"], "it is asked once");
        assert!(one.try_recv().is_err() && !visited.has("alice"));
        elsewhere.yielded("alice");
        elsewhere.yielded("alice");
        assert_eq!((one.recv(), two.recv()), (Ok(Ok(())), Ok(Ok(()))));
        assert_eq!(wants(&visited, "alice", now).try_recv(), Ok(Ok(())));
        assert!(asked.try_recv().is_err());
    }

    #[test]
    fn waiting_for_a_state_is_limited_in_time_and_number() {
        let (elsewhere, visited, now) = (Elsewhere::default(), Arc::<Visited>::default(), Instant::now());
        let (asked, second) = (asked(&visited), Duration::from_secs(1));
        elsewhere.begins(&visited);
        visited.visit("alice", || ());
        let waiting: Vec<_> = (0..=MOST_WAITING).map(|_| wants(&visited, "alice", now)).collect();
        assert!(matches!(waiting[MOST_WAITING].try_recv(), Ok(Err(StoreError::Elsewhere(_)))), "one too many");
        visited.give_up(now + second, 2 * second);
        assert!(waiting[0].try_recv().is_err(), "it is not late yet");
        visited.give_up(now + 2 * second, 2 * second);
        let late = waiting[0].try_recv().unwrap().unwrap_err().to_string();
        assert_eq!(late, "the serving version has not released alice yet; try again");
        let again = wants(&visited, "alice", now + 2 * second);
        assert_eq!(asked.try_iter().count(), 2, "it is asked again");
        elsewhere.yielded("alice");
        assert_eq!(again.recv(), Ok(Ok(())));
        // When the trial is over, nothing more is taken from the serving version.
        visited.visit("bob", || ());
        visited.visit("dave", || ());
        visited.leave("dave");
        visited.leave("alice");
        assert!(
            elsewhere.why("dave").is_none() && elsewhere.why("alice").is_some(),
            "only who did not get there leaves"
        );
        assert_eq!(elsewhere.ending(), ["alice"], "what it was never asked for it has");
        visited.visit("carol", || panic!("nobody comes any more"));
        assert!(matches!(wants(&visited, "bob", now).try_recv(), Ok(Err(StoreError::Elsewhere(_)))));
        assert!(asked.try_recv().is_err() && elsewhere.why("carol").is_none());
    }
}
