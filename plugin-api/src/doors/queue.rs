//! Gives connections their turns to be served by doors, one at a time. [`Turns`] says who is next.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::sync::{Notify, oneshot};

use super::turns::Turns;

/// How long turns follow each other before the service's other tasks run, and sockets are polled again.
const SLICE: Duration = Duration::from_micros(200);
/// The cost of a written byte when the length of a turn is estimated, in nanoseconds: a turn should not write more than a quarter
/// of what may wait for a client.
const WRITTEN_COST: u64 = 8;
/// The least cost of a turn, in nanoseconds.
const LEAST_COST: u64 = 1000;

/// The connections that wait to be served.
#[derive(Default)]
pub(super) struct Queue {
    turns: RefCell<Turns<Waiting>>,
    /// Notified when the next turn is to be given.
    wanted: Notify,
    /// Whether a connection has a turn, or is about to get one.
    busy: Cell<bool>,
    /// When sockets were polled last.
    looked: Cell<Option<Instant>>,
}

struct Waiting {
    owner: Rc<str>,
    given: oneshot::Sender<Turn>,
}

/// A connection's turn. It ends when this is dropped.
pub(super) struct Turn {
    queue: Rc<Queue>,
    owner: Rc<str>,
}

impl Queue {
    /// Gives turns for as long as it is polled.
    pub(super) async fn run(self: &Rc<Self>) {
        loop {
            self.wanted.notified().await;
            // The runtime polls all sockets before it resumes here, so every connection with something to serve is waiting by
            // then.
            tokio::task::yield_now().await;
            self.looked.set(Some(Instant::now()));
            self.give();
        }
    }

    /// Waits for one of this owner's turns. `None`: nobody gives turns any more.
    pub(super) async fn turn(&self, owner: &Rc<str>) -> Option<Turn> {
        let (given, turn) = oneshot::channel();
        self.turns.borrow_mut().wait(owner, Waiting { owner: Rc::clone(owner), given });
        if !self.busy.replace(true) {
            self.wanted.notify_one();
        }
        turn.await.ok()
    }

    fn give(self: &Rc<Self>) {
        let next = || self.turns.borrow_mut().next();
        while let Some(Waiting { owner, given }) = next() {
            // One that has gone is skipped; one that goes later drops its turn.
            if !given.is_closed() {
                let _ = given.send(Turn { queue: Rc::clone(self), owner });
                return;
            }
        }
        self.busy.set(false);
    }
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Turn {
    /// How much to read in this turn, in bytes.
    pub(super) fn room(&self) -> usize {
        self.queue.turns.borrow().room(&self.owner)
    }

    /// Charges the owner for this time, and for this many written bytes.
    pub(super) fn charge(&self, time: Duration, bytes: u64) {
        self.queue.turns.borrow_mut().charge(&self.owner, nanos(time).saturating_add(bytes).max(LEAST_COST));
    }

    /// Learns that this many bytes of the owner's input have cost so much time, and that this many bytes were written. The
    /// owner's next turn reads less, or more, accordingly.
    pub(super) fn learn(&self, bytes: usize, time: Duration, written: u64) {
        let cost = nanos(time).saturating_add(written.saturating_mul(WRITTEN_COST));
        self.queue.turns.borrow_mut().learn(&self.owner, bytes, cost);
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        match self.queue.looked.get() {
            Some(looked) if looked.elapsed() < SLICE => self.queue.give(),
            _ => self.queue.wanted.notify_one(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::future::poll_fn;
    use std::task::Poll;

    use tokio::task::LocalSet;

    use super::*;

    /// Runs clients of `(owner, turns, cost)`. Each turn is charged its cost, in milliseconds. Returns who was served.
    async fn served(clients: &[(&str, usize, u64)]) -> Vec<String> {
        let (queue, said) = (Rc::new(Queue::default()), Rc::new(RefCell::new(Vec::new())));
        let all = LocalSet::new();
        let giving = Rc::clone(&queue);
        all.spawn_local(async move { giving.run().await });
        all.run_until(async {
            let mut tasks = Vec::new();
            for (owner, count, cost) in clients {
                let (queue, said, owner) = (Rc::clone(&queue), Rc::clone(&said), Rc::<str>::from(*owner));
                let (count, cost) = (*count, Duration::from_millis(*cost));
                tasks.push(tokio::task::spawn_local(async move {
                    for _ in 0..count {
                        let turn = queue.turn(&owner).await.unwrap();
                        said.borrow_mut().push(owner.to_string());
                        turn.charge(cost, 0);
                    }
                }));
            }
            for task in tasks {
                task.await.unwrap();
            }
        })
        .await;
        said.take()
    }

    #[tokio::test]
    async fn many_costly_connections_wait_for_a_cheap_one() {
        let mut clients = vec![("flood", 20, 10); 50];
        clients.push(("bob", 20, 1));
        let served = served(&clients).await;
        let (bob, last) = (|one: &String| one == "bob", served.iter().rposition(|one| one == "bob").unwrap());
        assert_eq!((served.len(), served.iter().filter(|one| bob(one)).count()), (1020, 20));
        // Each of bob's turns begins after his previous one, with one of the others' in between.
        assert!(last < 45, "bob's last turn was number {last}");
    }

    #[tokio::test]
    async fn a_waiter_that_leaves_holds_up_nobody() {
        let queue = Rc::new(Queue::default());
        let all = LocalSet::new();
        let giving = Rc::clone(&queue);
        all.spawn_local(async move { giving.run().await });
        all.run_until(async {
            let owner = Rc::<str>::from("alice");
            let held = queue.turn(&owner).await.unwrap();
            let mut waiting = Vec::new();
            for _ in 0..10_000 {
                let (queue, owner) = (Rc::clone(&queue), Rc::clone(&owner));
                waiting.push(tokio::task::spawn_local(async move { drop(queue.turn(&owner).await) }));
            }
            tokio::task::yield_now().await;
            waiting.iter().for_each(tokio::task::JoinHandle::abort);
            for one in waiting {
                let _ = one.await;
            }
            // A future that gets a turn and is never polled again.
            let mut unpolled = Box::pin(queue.turn(&owner));
            let polled = poll_fn(|poll| Poll::Ready(unpolled.as_mut().poll(poll).is_pending())).await;
            assert!(polled);
            drop(held);
            tokio::task::yield_now().await;
            tokio::task::yield_now().await;
            drop(unpolled);
            assert!(queue.turn(&owner).await.is_some());
        })
        .await;
    }
}
