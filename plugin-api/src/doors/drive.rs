//! Connections that a [`Door`] drives: bytes in, in order; bytes out, as they go; and what becomes of them when the code is
//! replaced.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use bytes::BytesMut;
use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::Door;
use super::table::{Carried, Taken};
use super::transport::{Ending, Transport};
use crate::abi::frame::ToHost;
use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// How long a client may read nothing while something waits for it.
pub(super) const STALLED: Duration = Duration::from_secs(30);
/// How much is read at once.
const READ: usize = 16 << 10;

/// A connection at rest, for the code that comes next.
#[derive(Serialize, Deserialize)]
struct Resting {
    /// What the door has made of it.
    door: jelly::Bytes,
    /// What has come, and is not whole.
    input: jelly::Bytes,
    /// What was written, and has not left.
    output: jelly::Bytes,
}

/// A connection that is served.
struct Line<D: Door> {
    /// Not there while it is being called.
    door: RefCell<Option<D>>,
    input: RefCell<BytesMut>,
    transport: Transport,
    context: Context<D::Service>,
    core: std::rc::Weak<Core>,
    tasks: RefCell<Vec<AbortHandle>>,
    /// It was handed on.
    carried: Cell<bool>,
}

/// Serves the streams of a listener.
pub(crate) fn serve<D: Door>(core: &Rc<Core>, context: Context<D::Service>, listener: &str) {
    let of = Rc::downgrade(core);
    let taker = move |taken: Taken| {
        if let Some(core) = of.upgrade() {
            begin::<D>(&core, &context, taken);
        }
    };
    core.doors.listen(core, listener, D::PUBLIC, Rc::new(taker));
}

fn begin<D: Door>(core: &Rc<Core>, context: &Context<D::Service>, taken: Taken) {
    let Taken { socket, cell, state } = taken;
    let number = cell.number;
    let transport = Transport::new(core, socket, cell, D::UNREAD);
    let mut input = BytesMut::new();
    let made = contained(|| match state {
        None => D::opened(context, &transport),
        Some(state) => {
            let Resting { door, input: unread, output } = jelly::from_scanned(&state)?;
            input.extend_from_slice(&unread);
            transport.write(&output);
            D::thaw(context, &transport, &door)
        }
    });
    let door = match made {
        Ok(door) => Some(door),
        Err(fault) => {
            report(&transport, &fault);
            transport.close();
            None
        }
    };
    let line = Rc::new(Line {
        door: RefCell::new(door),
        input: RefCell::new(input),
        transport,
        context: context.clone(),
        core: Rc::downgrade(core),
        tasks: RefCell::default(),
        carried: Cell::new(false),
    });
    core.doors.drives(number, Rc::clone(&line) as Rc<dyn Carried>);
    let (writes, reads) = (Rc::clone(&line), Rc::clone(&line));
    let writing = tokio::task::spawn_local(async move { writes.transport.pump().await });
    let reading = tokio::task::spawn_local(async move { reads.run(number).await });
    *line.tasks.borrow_mut() = vec![writing.abort_handle(), reading.abort_handle()];
}

/// A panic of the author's is an error, and ends there.
fn contained<R>(run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Fault::panicked("a door")))
}

fn report(transport: &Transport, fault: &Fault) {
    let peer = transport.peer();
    if fault.internal {
        tracing::error!(listener = peer.listener(), "a connection has ended by a fault of the service's: {fault}");
    } else {
        tracing::debug!(listener = peer.listener(), peer = peer.address(), "a connection has ended: {fault}");
    }
}

/// What a connection waits for.
enum Came {
    Bytes,
    Nothing,
    End,
}

impl<D: Door> Line<D> {
    /// Serves it to its end.
    async fn run(self: Rc<Self>, number: u64) {
        // What came with it.
        let mut served = self.serve().await;
        while served.is_ok() && self.transport.ending() == Ending::No && !self.is_handed_on(number) {
            served = match self.come().await {
                Came::Bytes => self.serve().await,
                Came::Nothing => self.with_door(|door, line| door.idle(&line.context, &line.transport)),
                Came::End => break,
            };
        }
        if self.carried.get() {
            return;
        }
        if let Err(fault) = served {
            report(&self.transport, &fault);
        }
        let door = self.door.borrow_mut().take();
        if let Some(door) = door {
            let _ = contained(|| {
                door.closed(&self.context, &self.transport);
                Ok(())
            });
        }
        // What was written leaves, if the client reads it.
        self.transport.close();
        self.drain().await;
        if let Some(core) = self.core.upgrade() {
            core.doors.leave(number);
        }
    }

    /// Waits until what was written has left: without that a client would miss the last words.
    async fn drain(&self) {
        let ended = self.transport.until_over();
        let _ = tokio::time::timeout(2 * STALLED, ended).await;
        self.transport.end();
    }

    /// Waits for bytes, and takes them in.
    async fn come(&self) -> Came {
        let socket = self.transport.socket();
        let mut readable = pin!(socket.readable());
        let mut ended = pin!(self.transport.until_ended());
        let mut idle = pin!(tokio::time::sleep(D::IDLE));
        let came = poll_fn(|poll| {
            if ended.as_mut().poll(poll).is_ready() {
                return Poll::Ready(Came::End);
            }
            if let Poll::Ready(readable) = readable.as_mut().poll(poll) {
                return Poll::Ready(if readable.is_ok() { Came::Bytes } else { Came::End });
            }
            idle.as_mut().poll(poll).map(|()| Came::Nothing)
        })
        .await;
        if !matches!(came, Came::Bytes) {
            return came;
        }
        let mut input = self.input.borrow_mut();
        input.reserve(READ);
        match socket.try_read_buf(&mut input) {
            Ok(0) => Came::End,
            Ok(_) => Came::Bytes,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Came::Bytes,
            Err(_) => Came::End,
        }
    }

    /// Hands what has come to the door.
    async fn serve(&self) -> Result<()> {
        if self.input.borrow().is_empty() {
            return Ok(());
        }
        // At rest from its end on.
        let Some(mut door) = self.door.borrow_mut().take() else { return Ok(()) };
        let mut input = std::mem::take(&mut *self.input.borrow_mut());
        let served = {
            let mut received = pin!(door.received(&self.context, &self.transport, &mut input));
            poll_fn(|poll| match catch_unwind(AssertUnwindSafe(|| received.as_mut().poll(poll))) {
                Ok(polled) => polled,
                Err(_) => Poll::Ready(Err(Fault::panicked("a door"))),
            })
            .await
        };
        *self.door.borrow_mut() = Some(door);
        let left = input.len();
        // A connection at rest keeps no more than it needs.
        *self.input.borrow_mut() = if left == 0 { BytesMut::new() } else { input };
        served?;
        if left >= D::LONGEST {
            return Err(Fault::value(format!("a message of more than {} bytes", D::LONGEST)));
        }
        Ok(())
    }

    fn with_door(&self, call: impl FnOnce(&mut D, &Self) -> Result<()>) -> Result<()> {
        let Some(mut door) = self.door.borrow_mut().take() else { return Ok(()) };
        let called = contained(|| call(&mut door, self));
        *self.door.borrow_mut() = Some(door);
        called
    }

    /// Other code serves: it goes on with this connection, if it can be made bytes of.
    fn is_handed_on(&self, number: u64) -> bool {
        let Some(core) = self.core.upgrade().filter(|core| core.retired.get()) else { return false };
        if let Some(state) = self.freeze() {
            core.push(&ToHost::Carry { stream: number, state: &state });
            self.carried.set(true);
            self.transport.stream().carry();
            self.door.borrow_mut().take();
            core.doors.leave(number);
            return true;
        }
        false
    }
}

impl<D: Door> Carried for Line<D> {
    fn freeze(&self) -> Option<Vec<u8>> {
        if self.transport.ending() != Ending::No {
            return None;
        }
        let door = self.door.borrow();
        let frozen = contained(|| door.as_ref().map_or_else(|| Err(Fault::value("it is busy")), Door::freeze)).ok()?;
        let (input, output) = (self.input.borrow().to_vec(), self.transport.unsent());
        let resting = Resting { door: jelly::Bytes(frozen), input: jelly::Bytes(input), output: jelly::Bytes(output) };
        jelly::to_vec(&resting).ok()
    }

    fn forget(&self) {
        self.carried.set(true);
        self.transport.stream().carry();
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
        let door = self.door.borrow_mut().take();
        drop(door);
    }
}
