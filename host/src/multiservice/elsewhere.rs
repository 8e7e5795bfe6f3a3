//! Whose states are with a version that is tried: what serves everybody else keeps its hands off them.

use std::collections::BTreeSet;
use std::sync::Arc;

use parking_lot::Mutex;

/// The perspectives that a version which is tried was attached to. That version has it, and what serves beside it.
pub(super) type Visited = Arc<Mutex<BTreeSet<String>>>;

/// Which perspectives of a slot's are with a version that is tried.
#[derive(Debug, Default)]
pub(super) struct Elsewhere(Mutex<Option<Visited>>);

impl Elsewhere {
    /// Whatever that version is attached to from now on is its own.
    pub(super) fn begins(&self, visited: &Visited) {
        *self.0.lock() = Some(Arc::clone(visited));
    }

    /// The trial is over.
    pub(super) fn ends(&self) {
        *self.0.lock() = None;
    }

    /// Why this slot may not change a perspective, or attach anybody to it; `None`: it may.
    pub(super) fn why(&self, perspective: &str) -> Option<String> {
        let now = self.0.lock();
        let with = now.as_ref()?.lock().contains(perspective);
        // Clients get this text, so it does not name the identities that try the version.
        with.then(|| format!("{perspective} is in use by another version of the service, which is being tried"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_somebody_has_come_to_is_elsewhere_until_the_trial_is_over() {
        let (elsewhere, visited) = (Elsewhere::default(), Visited::default());
        assert_eq!(elsewhere.why("alice"), None);
        elsewhere.begins(&visited);
        assert_eq!(elsewhere.why("alice"), None, "she has not come yet");
        visited.lock().insert("alice".to_owned());
        let why = elsewhere.why("alice").unwrap();
        assert_eq!(why, "alice is in use by another version of the service, which is being tried");
        assert_eq!(elsewhere.why("bob"), None);
        elsewhere.ends();
        assert_eq!(elsewhere.why("alice"), None);
    }
}
