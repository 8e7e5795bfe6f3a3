//! Calls: started in the order of their arrival, answered once.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;

use super::core::{Core, Encoded};
use super::incoming::{Incoming, Invoked};
use super::{Attaching, Runtime, Suspended, dead, held, settle};
use crate::abi::frame::ToHost;
use crate::call::Call;
use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::remote::Remote;
use crate::service::{Callable, Service};

impl<S: Service> Runtime<S> {
    #[expect(clippy::too_many_arguments, reason = "the fields of one frame")]
    pub(super) fn call(
        &self,
        context: &Context<S>,
        call: u64,
        attachment: u64,
        object: u64,
        answer: bool,
        method: &str,
        arguments: &[u8],
        keywords: &[u8],
        received: Vec<Remote>,
    ) {
        let core = &self.core;
        let target = {
            let attachments = self.attachments.borrow();
            match attachments.get(&attachment) {
                Some(Attaching::Attached { perspective, attachment, .. }) => {
                    Some((Some(perspective.clone()), attachment.clone()))
                }
                Some(Attaching::LetGo(attachment)) => Some((None, attachment.clone())),
                _ => None,
            }
        };
        let mut objects = Vec::new();
        core.looks_anew();
        core.with_scratch(|buffer| {
            let invoked = match &target {
                None => Invoked::Done(Err(dead())),
                Some((perspective, attachment)) => {
                    let (answer, objects) = (&mut *buffer, &mut objects);
                    // What anonymous clients call counts as an object, too: nobody has logged in to it.
                    let object_called = object != 0 || attachment.is_anonymous();
                    let incoming = Incoming {
                        method,
                        arguments,
                        keywords,
                        attachment,
                        avatar: None,
                        object: object_called,
                        context,
                        core,
                        answer,
                        objects,
                    };
                    core.reading(attachment.id(), || match (object, perspective) {
                        (0, Some(perspective)) => S::Perspective::invoke(perspective, incoming),
                        (0, None) => Invoked::Done(Err(dead())),
                        // A client reports a change of one of its own objects.
                        (object, _) if object >> 32 != 0 => incoming.observe(object),
                        _ => core
                            .object(object)
                            .map_or_else(|| Invoked::Done(Err(dead())), |object| object.invoke(incoming)),
                    })
                }
            };
            match invoked {
                Invoked::Done(Ok(())) if answer => {
                    core.tells_of(call);
                    core.push(&ToHost::Answer { call, value: buffer, objects: &objects });
                }
                Invoked::Later(future, about) => {
                    // Anonymous clients share no identity: each connection counts as its own.
                    let identity = target.as_ref().map_or_else(
                        || "".into(),
                        |(_, by)| match by.is_anonymous() {
                            true => format!("/{}", by.id() >> 32).into(),
                            false => by.identity().into(),
                        },
                    );
                    self.later((call, answer), future, about, identity, received);
                }
                Invoked::Done(done) => {
                    // The method may have written its answer and failed afterwards, for example because the state could not be
                    // saved.
                    core.take_back(&objects);
                    match done {
                        Err(fault) if answer => {
                            core.tells_of(call);
                            core.fail(call, &fault);
                        }
                        Err(fault) => tracing::debug!(method, %fault, "a one-way call failed"),
                        Ok(()) => {}
                    }
                }
            }
        });
    }

    fn later(
        &self,
        (call, answer): (u64, bool),
        future: Pin<Box<dyn Future<Output = Result<Encoded>>>>,
        about: Option<Call>,
        identity: Arc<str>,
        received: Vec<Remote>,
    ) {
        if let Some(about) = about {
            self.calls.borrow_mut().insert(call, about);
        }
        let me = self.me();
        let owed = PendingAnswer { core: Rc::clone(&self.core), call, answer };
        let mut task: Pin<Box<dyn Future<Output = ()>>> = Box::pin(async move {
            // Capture the whole guard, not only the field that is used below.
            let mut owed = owed;
            // The objects in the answer are the host's before those in the arguments are given back.
            let result = held::holding(received, async {
                let result = settle("the method", future).await;
                (result, held::all())
            });
            let (result, _held) = result.await;
            me.suspended.borrow_mut().remove(&call);
            let answer = std::mem::take(&mut owed.answer);
            me.calls.borrow_mut().remove(&call);
            match result {
                Ok(Encoded { bytes: value, objects }) if answer => {
                    me.core.push(&ToHost::Answer { call, value: &value, objects: &objects });
                }
                Ok(encoded) => me.core.take_back(&encoded.objects),
                Err(fault) if answer => me.core.fail(call, &fault),
                Err(_) => {}
            }
        });
        if poll_once(&mut task).is_pending() {
            let task = tokio::task::spawn_local(task).abort_handle();
            self.suspended.borrow_mut().insert(call, Suspended { task, identity });
        }
    }
}

/// A call that must be answered, also if it is aborted because another generation serves. (When the service ends for good, the
/// host answers all calls.)
struct PendingAnswer {
    core: Rc<Core>,
    call: u64,
    answer: bool,
}

impl Drop for PendingAnswer {
    fn drop(&mut self) {
        if !self.core.retired.get() {
            return;
        }
        if self.answer {
            self.core.fail(self.call, &Fault::reloaded());
        }
        // The main loop may be waiting for the last call.
        self.core.written.notify_one();
    }
}

/// Polls a future once, immediately. If it is pending, it is polled again as a task, with a real waker.
pub(super) fn poll_once(future: &mut Pin<Box<dyn Future<Output = ()>>>) -> Poll<()> {
    future.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop()))
}
