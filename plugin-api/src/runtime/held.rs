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

/// A task that holds the objects in its call's arguments that nobody has a reference to, and those of answers that it receives,
/// until it ends.
pub(crate) fn holding<F: Future>(arguments: Vec<Remote>, task: F) -> impl Future<Output = F::Output> {
    let first: VecDeque<Remote> = unreferenced(arguments, None).take(MOST).collect();
    HELD.scope(RefCell::new(first), task)
}

/// The received objects without any other reference: only an untyped value may contain them. An object that was called counts even
/// if its caller still holds it.
fn unreferenced(received: Vec<Remote>, called: Option<&Remote>) -> impl Iterator<Item = Remote> {
    let called = called.map(Remote::handle);
    let mut here: HashMap<u64, usize> = called.map(|called| (called, 1)).into_iter().collect();
    received.iter().for_each(|remote| *here.entry(remote.handle()).or_default() += 1);
    let is_free = move |remote: &Remote| here.get(&remote.handle()) == Some(&remote.references());
    // First all are looked at: each counts while it is here. Whoever has called an object may give it up before its answer.
    let free: Vec<bool> = received.iter().map(|remote| Some(remote.handle()) == called || is_free(remote)).collect();
    received.into_iter().zip(free).filter_map(|(remote, free)| free.then_some(remote))
}

/// Holds the objects that came with an answer of `called`, now that it was read. Outside of a task, they are given back.
pub(crate) fn hold(received: Vec<Remote>, called: &Remote) {
    let kept = unreferenced(received, Some(called));
    let excess = HELD.try_with(|held| {
        let mut held = held.borrow_mut();
        held.extend(kept);
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
