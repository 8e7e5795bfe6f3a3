//! What this generation waits for: answers of clients' objects, states, data, and commits of its changes.

use std::cell::Cell;
use std::rc::Rc;

use tokio::sync::{Notify, oneshot};

use super::{Core, Encoded, Reply};
use crate::abi::frame::ToHost;
use crate::fault::{Fault, Result};

/// How many states were given to the host to commit, and how many of these commits are known to have ended.
#[derive(Default)]
pub(super) struct Commits {
    pub(super) given: Cell<u64>,
    /// The host was asked to report when this many have ended.
    asked: Cell<u64>,
    done: Cell<u64>,
    /// How often a commit has failed.
    failed: Cell<u64>,
    told: Notify,
}

impl Core {
    /// Registers a waiter. Returns its number and the answer. `called` is the client's object that is called, or 0.
    fn wait(self: &Rc<Self>, called: u64) -> (u64, impl Future<Output = Result<Reply>> + use<>) {
        let (done, answer) = oneshot::channel();
        let number = self.number();
        self.waiting.borrow_mut().insert(number, done);
        let waiting = WaiterGuard { core: Rc::clone(self), number, called };
        (number, async move {
            let answer = answer.await;
            drop(waiting);
            answer.unwrap_or_else(|_| Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the service is ending")))
        })
    }

    /// A question to the host: its number, and the answer.
    pub(crate) fn ask(self: &Rc<Self>) -> (u64, impl Future<Output = Result<Reply>> + use<>) {
        self.wait(0)
    }

    /// Whether all that was saved so far is known to be committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.commits.done.get() >= self.commits.given.get()
    }

    /// Waits until all that was saved so far is committed.
    ///
    /// # Errors
    /// If a change could not be committed: it is undone.
    pub(crate) async fn committed(self: &Rc<Self>) -> Result<()> {
        let (given, failed) = (self.commits.given.get(), self.commits.failed.get());
        while self.commits.done.get() < given {
            if self.commits.asked.get() < given {
                self.commits.asked.set(given);
                let (request, answer) = self.wait(0);
                self.push(&ToHost::Sync { request });
                let core = Rc::downgrade(self);
                tokio::task::spawn_local(async move {
                    let answer = answer.await;
                    let Some(core) = core.upgrade() else { return };
                    core.commits.failed.set(core.commits.failed.get() + u64::from(answer.is_err()));
                    core.commits.done.set(core.commits.done.get().max(given));
                    core.commits.told.notify_waiters();
                });
            }
            self.commits.told.notified().await;
        }
        if self.commits.failed.get() == failed {
            return Ok(());
        }
        Err(Fault::new("RuntimeError", "a change could not be saved and was undone"))
    }

    /// Calls a client's object, which came by an attachment. `arguments` are a tuple and a dictionary, one behind the
    /// other; the dictionary begins at `keywords`.
    pub(crate) fn call(
        self: &Rc<Self>,
        (handle, attachment): (u64, u64),
        method: &str,
        arguments: &Encoded,
        keywords: usize,
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (call, answer) = self.wait(handle);
        self.push_call(call, (handle, attachment), method, arguments, keywords);
        answer
    }

    /// Like [`Core::call`], but the answer goes to `call`; 0 if none is wanted.
    pub(crate) fn push_call(
        &self,
        call: u64,
        (handle, attachment): (u64, u64),
        method: &str,
        arguments: &Encoded,
        keywords: usize,
    ) {
        let (objects, answer) = (arguments.objects.as_slice(), call != 0);
        let (arguments, keywords) = arguments.bytes.split_at(keywords.min(arguments.bytes.len()));
        self.push(&ToHost::Call { call, handle, answer, method, arguments, keywords, attachment, objects });
    }

    /// Requests a perspective's saved state and its version.
    pub(crate) fn load(
        self: &Rc<Self>,
        perspective: &str,
    ) -> impl Future<Output = Result<(Option<Vec<u8>>, u64)>> + use<> {
        let (request, answer) = self.wait(0);
        self.push(&ToHost::Load { request, perspective });
        async move {
            let reply = answer.await?;
            Ok((reply.some.then_some(reply.bytes), reply.version))
        }
    }

    /// Requests some of the service's data.
    pub(crate) fn data(
        self: &Rc<Self>,
        from: &[u8],
        to: Option<&[u8]>,
        limit: u64,
        reverse: bool,
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (request, answer) = self.wait(0);
        self.push(&ToHost::Data { request, from, to, limit, reverse });
        answer
    }

    /// Writes some of the service's data.
    pub(crate) fn write_data(
        self: &Rc<Self>,
        base: u64,
        entries: &[u8],
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (request, answer) = self.wait(0);
        let refused = if self.retired.get() {
            Some(Fault::reloaded())
        } else if self.starting.get() {
            let message = "data cannot be changed before the service serves: change it in a task (Context::spawn)";
            Some(Fault::new("RuntimeError", message))
        } else {
            self.push(&ToHost::Write { request, base, entries });
            None
        };
        async move {
            match refused {
                Some(fault) => Err(fault),
                None => answer.await,
            }
        }
    }

    /// An answer has arrived.
    pub(crate) fn answered(&self, number: u64, answer: Result<Reply>) {
        let waiting = self.waiting.borrow_mut().remove(&number);
        if let Some(waiting) = waiting {
            // The caller may have given up.
            let _ = waiting.send(answer);
        }
    }
}

/// Removes the waiter if the caller gives up.
struct WaiterGuard {
    core: Rc<Core>,
    number: u64,
    /// The client's object that was called; 0 if none was.
    called: u64,
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        let waited = self.core.waiting.borrow_mut().remove(&self.number);
        if waited.is_some() && self.called != 0 {
            self.core.push(&ToHost::Forget { call: self.number, handle: self.called });
        }
    }
}
