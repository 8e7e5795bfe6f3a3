//! Whose states are with a version that is tried: what serves everybody else keeps its hands off them.
//!
//! When somebody comes to a perspective in the tried version, the one that serves is asked to yield it. It saves what has changed in
//! it, and says so; only then is its state read for the tried version. At the end of the trial it is given back the same way.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use tokio::sync::Notify;

/// Whoever waits until the version that serves has yielded a perspective.
type Waiting = Box<dyn FnOnce() + Send>;

/// Who asks the version that serves to yield a perspective.
type Ask = Box<dyn Fn(&str) + Send + Sync>;

/// The perspectives that somebody has come to in a version that is tried.
#[derive(Default)]
pub(super) struct Visited {
    all: Mutex<BTreeMap<String, Visit>>,
    ask: OnceLock<Ask>,
}

/// How far a perspective has come.
enum Visit {
    /// What serves was asked to yield it.
    Asked(Vec<Waiting>),
    /// It has.
    Yielded,
}

impl Visited {
    /// This asks what serves to yield a perspective.
    pub(super) fn asks(&self, ask: impl Fn(&str) + Send + Sync + 'static) {
        // Said once, when the trial is made.
        let _ = self.ask.set(Box::new(ask));
    }

    /// Somebody comes to this perspective; true: nobody had before.
    pub(super) fn visit(&self, perspective: &str) -> bool {
        {
            let mut all = self.all.lock();
            if all.contains_key(perspective) {
                return false;
            }
            all.insert(perspective.to_owned(), Visit::Asked(Vec::new()));
        }
        if let Some(ask) = self.ask.get() {
            ask(perspective);
        }
        true
    }

    /// What serves has yielded it.
    fn yielded(&self, perspective: &str) {
        let visit = {
            let mut all = self.all.lock();
            // It yields what it was asked for, and nothing else.
            let Some(visit) = all.get_mut(perspective) else { return };
            std::mem::replace(visit, Visit::Yielded)
        };
        if let Visit::Asked(waiting) = visit {
            waiting.into_iter().for_each(|go_on| go_on());
        }
    }

    /// Goes on when what serves has yielded the perspective: at once, if it has, or if nobody has come to it.
    pub(super) fn once_yielded(&self, perspective: &str, go_on: Waiting) {
        match self.all.lock().get_mut(perspective) {
            Some(Visit::Asked(waiting)) => return waiting.push(go_on),
            Some(Visit::Yielded) | None => {}
        }
        go_on();
    }

    /// Whether it is the tried version's to change.
    pub(super) fn has(&self, perspective: &str) -> bool {
        matches!(self.all.lock().get(perspective), Some(Visit::Yielded))
    }

    fn is_visited(&self, perspective: &str) -> bool {
        self.all.lock().contains_key(perspective)
    }

    fn names(&self) -> Vec<String> {
        self.all.lock().keys().cloned().collect()
    }
}

/// Which perspectives of a slot's are with a version that is tried.
#[derive(Default)]
pub(super) struct Elsewhere {
    now: Mutex<Now>,
    /// Told when the version that serves has all of them again.
    regained: Notify,
}

#[derive(Default)]
struct Now {
    /// With a version that is being tried.
    with: Option<Arc<Visited>>,
    /// It has saved its last: these are being given back.
    regaining: Option<BTreeSet<String>>,
}

impl Elsewhere {
    /// Whatever that version is attached to from now on is its own.
    pub(super) fn begins(&self, visited: &Arc<Visited>) {
        *self.now.lock() = Now { with: Some(Arc::clone(visited)), regaining: None };
    }

    /// That version has saved its last. Answers with what the one that serves regains: until [`Elsewhere::ends`], nobody comes to it.
    pub(super) fn ending(&self) -> Vec<String> {
        let mut now = self.now.lock();
        let names = now.with.as_ref().map(|visited| visited.names()).unwrap_or_default();
        now.regaining = Some(names.iter().cloned().collect());
        names
    }

    /// Waits until the version that serves has all of them again.
    pub(super) async fn all_regained(&self) {
        loop {
            let regained = self.regained.notified();
            if self.regains().is_empty() {
                return;
            }
            regained.await;
        }
    }

    /// What the version that serves has yet to regain.
    pub(super) fn regains(&self) -> Vec<String> {
        self.now.lock().regaining.iter().flatten().cloned().collect()
    }

    /// It has regained this one.
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

    /// What the version that serves has to yield.
    pub(super) fn yields(&self) -> Vec<String> {
        let now = self.now.lock();
        now.with.as_ref().filter(|_| now.regaining.is_none()).map(|visited| visited.names()).unwrap_or_default()
    }

    /// The version that serves has yielded this perspective.
    pub(super) fn yielded(&self, perspective: &str) {
        // What has waited for it goes on, which asks the store.
        let visited = self.now.lock().with.clone();
        if let Some(visited) = visited {
            visited.yielded(perspective);
        }
    }

    /// Why nobody comes to this perspective here; `None`: they may.
    pub(super) fn why(&self, perspective: &str) -> Option<String> {
        let now = self.now.lock();
        now.with.as_ref().filter(|visited| visited.is_visited(perspective)).map(|_| why(perspective))
    }

    /// Why a change of it is not saved; `None`: it is. A library is refused this which changes what it has yielded.
    pub(super) fn why_not_saved(&self, perspective: &str) -> Option<String> {
        let now = self.now.lock();
        now.with.as_ref().filter(|visited| visited.has(perspective)).map(|_| why(perspective))
    }
}

/// What whoever wants a perspective is told that another version has. Clients get this text, so it does not name the identities that
/// try the version.
pub(super) fn why(perspective: &str) -> String {
    format!("{perspective} is in use by another version of the service, which is being tried")
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    #[test]
    fn what_somebody_has_come_to_is_elsewhere_until_the_trial_is_over() {
        let (elsewhere, visited) = (Elsewhere::default(), Arc::<Visited>::default());
        assert_eq!(elsewhere.why("alice"), None);
        elsewhere.begins(&visited);
        assert_eq!(elsewhere.why("alice"), None, "she has not come yet");
        assert!(visited.visit("alice") && !visited.visit("alice"));
        let why = elsewhere.why("alice").unwrap();
        assert_eq!(why, "alice is in use by another version of the service, which is being tried");
        assert_eq!((elsewhere.why_not_saved("alice"), elsewhere.why("bob")), (None, None), "it has yet to yield it");
        elsewhere.yielded("alice");
        elsewhere.yielded("bob");
        assert_eq!((elsewhere.why_not_saved("alice"), elsewhere.why_not_saved("bob")), (Some(why.clone()), None));
        assert_eq!(
            (elsewhere.yields(), elsewhere.ending(), elsewhere.yields()),
            (vec!["alice".to_owned()], vec!["alice".to_owned()], vec![])
        );
        assert_eq!(elsewhere.why("alice"), Some(why), "it is still being given back");
        elsewhere.regained("bob");
        assert_eq!(elsewhere.regains(), ["alice"]);
        elsewhere.regained("alice");
        assert!(elsewhere.regains().is_empty());
        elsewhere.ends();
        assert_eq!(elsewhere.why("alice"), None);
    }

    #[test]
    fn a_state_is_read_for_the_tried_version_when_the_other_has_yielded_it() {
        let (asked, read) = (Arc::new(AtomicUsize::new(0)), Arc::new(AtomicUsize::new(0)));
        let reads = |visited: &Visited, perspective| {
            let read = Arc::clone(&read);
            visited.once_yielded(
                perspective,
                Box::new(move || {
                    read.fetch_add(1, Ordering::Relaxed);
                }),
            );
        };
        let (elsewhere, visited) = (Elsewhere::default(), Arc::<Visited>::default());
        let asks = Arc::clone(&asked);
        visited.asks(move |_| {
            asks.fetch_add(1, Ordering::Relaxed);
        });
        elsewhere.begins(&visited);
        reads(&visited, "bob");
        assert_eq!(read.load(Ordering::Relaxed), 1, "nobody has come to his: it is read as it is");
        visited.visit("alice");
        visited.visit("alice");
        reads(&visited, "alice");
        reads(&visited, "alice");
        assert_eq!((asked.load(Ordering::Relaxed), read.load(Ordering::Relaxed)), (1, 1));
        elsewhere.yielded("alice");
        elsewhere.yielded("alice");
        reads(&visited, "alice");
        assert_eq!(read.load(Ordering::Relaxed), 4, "each once");
    }
}
