//! Connections that a [`Door`] drives: bytes in, in order; bytes out, as they go; and what becomes of them when the code is
//! replaced.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::Door;
use super::input::Input;
use super::table::{Carried, Taken};
use super::transport::{Ending, Transport};
use crate::abi::frame::ToHost;
use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// How long a client may read nothing while something waits for it.
pub(super) const STALLED: Duration = Duration::from_secs(30);
/// How much is read at once: less from who has not logged in.
const READ: usize = 16 << 10;
const READ_BEFORE: usize = 2 << 10;
/// While more than this waits for all clients of a service's doors, who makes more of it is read by and by.
const PRESSURE: usize = 256 << 10;
/// How long one is not read then, at most.
const BY_AND_BY: Duration = Duration::from_millis(20);

/// A connection at rest, for the code that comes next.
#[derive(Serialize, Deserialize)]
pub(super) struct Resting {
    /// What the door has made of it.
    door: jelly::Bytes,
    /// What has come, and is not whole.
    input: jelly::Bytes,
    /// What was written, and has not left.
    output: jelly::Bytes,
}

impl Resting {
    /// One that no door has: with what has come.
    pub(super) fn stream(input: Vec<u8>) -> Vec<u8> {
        let resting =
            Self { door: jelly::Bytes(Vec::new()), input: jelly::Bytes(input), output: jelly::Bytes(Vec::new()) };
        jelly::to_vec(&resting).unwrap_or_default()
    }

    /// What has come to one that no door has.
    pub(super) fn of_stream(state: &[u8]) -> Option<Vec<u8>> {
        let resting: Self = jelly::from_scanned(state).ok()?;
        (resting.door.is_empty() && resting.output.is_empty()).then(|| resting.input.to_vec())
    }
}

/// A connection that is served.
struct Line<D: Door> {
    /// Not there while it is being called.
    door: RefCell<Option<D>>,
    input: RefCell<Input>,
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
    let (number, carried) = (cell.number, state.is_some());
    let transport = Transport::new(core, socket, cell, D::UNREAD);
    let mut input = Input::default();
    let made = contained(|| match state {
        None => D::opened(context, &transport),
        Some(state) => {
            let Resting { door, input: unread, output } = jelly::from_scanned(&state)?;
            input = Input::from(&*unread);
            transport.restore(&output);
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
    let reading = tokio::task::spawn_local(async move { reads.run(number, carried).await });
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
    /// Serves it to its end; `carried`: it has come from the code before this.
    async fn run(self: Rc<Self>, number: u64, carried: bool) {
        if carried {
            // Whoever is to hear of what it says is here by then.
            let Some(core) = self.core.upgrade() else { return };
            core.doors.resumed().await;
        }
        // What came with it.
        let mut served = self.serve().await;
        while served.is_ok() && self.transport.ending() == Ending::No && !self.is_handed_on(number) {
            served = match self.come().await {
                Came::Bytes => {
                    let served = self.serve().await;
                    self.give_way().await;
                    served
                }
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
        self.transport.release();
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
        let Some(socket) = self.transport.socket() else { return Came::End };
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
        let stranger = !D::PUBLIC && self.transport.login().is_none();
        let room = if stranger { READ_BEFORE } else { READ };
        match self.input.borrow_mut().fill(room, |room| socket.try_read(room)) {
            Ok(0) => Came::End,
            Ok(_) => Came::Bytes,
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Came::Bytes,
            Err(_) => Came::End,
        }
    }

    /// Others have their turn, what they are sent leaves; and who makes much for others is not read for a while.
    async fn give_way(&self) {
        tokio::task::yield_now().await;
        let pressed = || self.core.upgrade().is_some_and(|core| core.doors.unread() > PRESSURE);
        if pressed() {
            tokio::time::sleep(BY_AND_BY).await;
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
        input.rest();
        *self.input.borrow_mut() = input;
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
        let Some(state) = self.bytes() else { return false };
        core.push(&ToHost::Carry { stream: number, replacement: 0, state: &state });
        core.doors.leave(number);
        self.let_go();
        true
    }

    /// What the next code is to go on with.
    fn bytes(&self) -> Option<Vec<u8>> {
        if self.transport.ending() != Ending::No {
            return None;
        }
        let door = self.door.borrow();
        let frozen = contained(|| door.as_ref().map_or_else(|| Err(Fault::value("it is busy")), Door::freeze)).ok()?;
        let (input, output) = (self.input.borrow().to_vec(), self.transport.unsent());
        let resting = Resting { door: jelly::Bytes(frozen), input: jelly::Bytes(input), output: jelly::Bytes(output) };
        jelly::to_vec(&resting).ok()
    }

    /// Whatever of it is left here is nobody's any more.
    fn let_go(&self) {
        self.carried.set(true);
        if let Some(stream) = self.transport.stream() {
            stream.carry();
        }
        // What was written is with what was carried: it must not leave from here, too.
        self.transport.release();
        let door = self.door.borrow_mut().take();
        drop(door);
    }
}

impl<D: Door> Carried for Line<D> {
    fn freeze(&self) -> Option<Vec<u8>> {
        // What may be half a password waits until it is whole: this code, or the next, is told of it then.
        let half = !D::PUBLIC && self.transport.login().is_none() && !self.input.borrow().is_empty();
        if half { None } else { self.bytes() }
    }

    fn forget(&self) {
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
        self.let_go();
    }

    fn end(&self) {
        self.transport.end();
    }
}
