//! What an untyped value refers to, held for the task that has read it.
//!
//! A [`Value`](crate::Value) has numbers of clients' objects, not the objects. While the task works that has received it, as
//! the arguments of its call or as an answer, the objects stay: the value can be sent on, and so returned.

use std::cell::RefCell;
use std::collections::{HashMap, VecDeque};
use std::future::Future;

use crate::remote::Remote;

/// The most objects that are held for one task. Beyond it, the oldest are given back.
const MOST: usize = 4096;

tokio::task_local! {
    static HELD: RefCell<VecDeque<Remote>>;
}

/// A task that holds these objects, and those of answers that it receives, until it ends.
pub(crate) fn holding<F: Future>(first: Vec<Remote>, task: F) -> impl Future<Output = F::Output> {
    HELD.scope(RefCell::new(first.into()), task)
}

/// Holds the objects that came with an answer of `called` and that nobody has a reference to, now that it was read: an untyped
/// value may contain them. Outside of a task, they are given back.
pub(crate) fn hold(received: Vec<Remote>, called: &Remote) {
    let mut here = HashMap::from([(called.handle(), 1)]);
    received.iter().for_each(|remote| *here.entry(remote.handle()).or_default() += 1);
    let is_free = |remote: &Remote| here.get(&remote.handle()) == Some(&remote.references());
    // Whoever has called the object may give it up before its answer.
    let unreferenced = received.into_iter().filter(|remote| remote.handle() == called.handle() || is_free(remote));
    let excess = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        held.extend(unreferenced);
        let excess = held.len().saturating_sub(MOST);
        held.drain(..excess).collect::<Vec<_>>()
    });
    // Not while it is borrowed: what is given back may be anybody's.
    drop(excess);
}

/// Takes what the current task holds.
pub(crate) fn all() -> Vec<Remote> {
    HELD.try_with(|held| held.take().into()).unwrap_or_default()
}
