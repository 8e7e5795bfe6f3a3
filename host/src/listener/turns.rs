//! Clients that have logged in go first: in each pass of a thread over its sockets, one stranger from a known source
//! and one from elsewhere are served.
//!
//! However many strangers guess passwords, a call of a client that has logged in waits for at most two of them.

use std::rc::Rc;

use tokio::sync::Semaphore;

use super::lobby::served_a_stranger;

thread_local! {
    /// Held by the stranger who is next: one for sources that somebody has logged in from before, one for all others.
    /// Per thread: nobody waits for another thread.
    static NEXT: [Rc<Semaphore>; 2] = [Rc::new(Semaphore::new(1)), Rc::new(Semaphore::new(1))];
}

/// Waits for this stranger's turn. Strangers are served in the order in which they asked. Those from a known source
/// have a queue of their own, so that an owner does not wait for a crowd.
pub(super) async fn stranger(known: bool) {
    let next = NEXT.with(|[of_known, of_others]| Rc::clone(if known { of_known } else { of_others }));
    // The semaphore is never closed.
    let _held = next.acquire().await;
    // The runtime polls all sockets before it continues here: clients that have logged in go first.
    tokio::task::yield_now().await;
    served_a_stranger();
}

#[cfg(test)]
mod tests {
    use std::cell::RefCell;
    use std::rc::Rc;

    use tokio::task::{LocalSet, spawn_local, yield_now};

    use super::stranger;

    /// The order in which clients are served: nine strangers, and one client that has logged in and has something in each pass.
    async fn served(turns: bool) -> String {
        let said = Rc::new(RefCell::new(String::new()));
        let all = LocalSet::new();
        all.run_until(async {
            let mut tasks = Vec::new();
            for _ in 0..9 {
                let said = Rc::clone(&said);
                tasks.push(spawn_local(async move {
                    if turns {
                        stranger(false).await;
                    }
                    said.borrow_mut().push('s');
                }));
            }
            let inside = Rc::clone(&said);
            tasks.push(spawn_local(async move {
                for _ in 0..9 {
                    inside.borrow_mut().push('i');
                    yield_now().await;
                }
            }));
            for task in tasks {
                task.await.unwrap();
            }
        })
        .await;
        said.take()
    }

    #[tokio::test]
    async fn each_pass_serves_a_logged_in_client_and_one_stranger() {
        assert_eq!(served(false).await, "sssssssssiiiiiiiii", "as they come");
        let served = served(true).await;
        // One pass may end with a stranger, and the next may begin with one.
        assert!(served.matches('s').count() == 9 && !served.contains("sss"), "{served}");
    }
}
