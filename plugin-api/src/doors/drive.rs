//! Drives the connections of a [`Door`]: passes on their input in order, sends their output, and hands them on when the code is
//! replaced.

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::net::{IpAddr, SocketAddr};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::Poll;
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};
use tokio::task::AbortHandle;

use super::Door;
use super::input::Input;
use super::pace::Pace;
use super::queue::Turn;
use super::stream::Socket;
use super::table::{Carried, Taken};
use super::transport::{Ending, Transport};
use crate::abi::frame::ToHost;
use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// The most bytes read at once from a client that has not logged in.
const READ_BEFORE: usize = 2 << 10;
/// While more output than this waits for all clients of a service's doors, a connection that was served pauses before it is read
/// again.
const PRESSURE: usize = 256 << 10;
/// How long that pause is.
const BY_AND_BY: Duration = Duration::from_millis(20);

/// The state of a connection at rest, for the next generation.
#[derive(Serialize, Deserialize)]
pub(super) struct Resting {
    /// The door's own state.
    door: jelly::Bytes,
    /// Input that is not a complete message yet.
    input: jelly::Bytes,
    /// Output that has not left yet.
    output: jelly::Bytes,
}

impl Resting {
    /// The state of a stream without a door: its input.
    pub(super) fn stream(input: Vec<u8>) -> Vec<u8> {
        let resting =
            Self { door: jelly::Bytes(Vec::new()), input: jelly::Bytes(input), output: jelly::Bytes(Vec::new()) };
        jelly::to_vec(&resting).unwrap_or_default()
    }

    /// The input in the state of a stream without a door.
    pub(super) fn of_stream(state: &[u8]) -> Option<Vec<u8>> {
        let resting: Self = jelly::from_scanned(state).ok()?;
        (resting.door.is_empty() && resting.output.is_empty()).then(|| resting.input.to_vec())
    }
}

/// A connection that is served.
struct Line<D: Door> {
    /// Absent while it is being called.
    door: RefCell<Option<D>>,
    input: RefCell<Input>,
    transport: Transport,
    context: Context<D::Service>,
    core: std::rc::Weak<Core>,
    tasks: RefCell<Vec<AbortHandle>>,
    /// The pace of a message that is not complete yet.
    coming: RefCell<Pace>,
    /// The owner whose turns it takes, and whether that is an identity.
    owner: RefCell<(Rc<str>, bool)>,
    /// Whether it was handed on.
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
    let (number, carried, coming) = (cell.number, state.is_some(), cell.rates.coming());
    let transport = Transport::new(core, socket, cell, D::UNREAD.min(core.limits.get().output));
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
    transport.set_input(input.len());
    let line = Rc::new(Line {
        door: RefCell::new(door),
        input: RefCell::new(input.ends_with(transport.is_cut())),
        transport,
        context: context.clone(),
        core: Rc::downgrade(core),
        tasks: RefCell::default(),
        coming: RefCell::new(coming),
        owner: RefCell::new((Rc::from(""), false)),
        carried: Cell::new(false),
    });
    core.doors.drives(number, Rc::clone(&line) as Rc<dyn Carried>);
    let (writes, reads) = (Rc::clone(&line), Rc::clone(&line));
    let writing = tokio::task::spawn_local(async move { writes.transport.pump().await });
    let reading = tokio::task::spawn_local(async move { reads.run(number, carried).await });
    *line.tasks.borrow_mut() = vec![writing.abort_handle(), reading.abort_handle()];
}

/// Runs the author's code. A panic becomes an error.
fn contained<R>(run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Fault::panicked("a door")))
}

fn report(transport: &Transport, fault: &Fault) {
    let peer = transport.peer();
    if fault.internal {
        tracing::error!(listener = peer.listener(), "a connection ended because of a fault in the service: {fault}");
    } else {
        tracing::debug!(listener = peer.listener(), peer = peer.address(), "a connection has ended: {fault}");
    }
}

/// The source of a client. All clients of one source are one owner: those of one address or, for IPv6, of one network of 64 bits.
fn source(address: &str) -> String {
    match address.parse::<SocketAddr>().map(|found| found.ip().to_canonical()) {
        Ok(IpAddr::V6(address)) => format!("{:x}", u128::from(address) >> 64),
        Ok(address) => address.to_string(),
        Err(_) => address.to_owned(),
    }
}

/// What has ended a connection's wait.
enum Came {
    /// Bytes, with the turn to serve them in.
    Bytes(Turn),
    /// No bytes so far, and no deadline has passed.
    Nothing,
    /// Nothing for [`Door::IDLE`].
    Idle,
    /// Too little of a message that has begun.
    Late,
    End,
}

impl<D: Door> Line<D> {
    /// Serves the connection to its end. `carried`: it comes from the previous generation.
    async fn run(self: Rc<Self>, number: u64, carried: bool) {
        if carried {
            // By then, those that are to receive what it says are here.
            let Some(core) = self.core.upgrade() else { return };
            core.doors.resumed().await;
        }
        // The input that came with it is served in a turn of its own.
        let nothing = self.input.borrow().is_empty();
        let turn = if nothing { None } else { self.turn().await };
        let mut served = self.serve(turn, 0).await;
        while served.is_ok() && self.transport.ending() == Ending::No && !self.is_handed_on(number) {
            served = match self.come().await {
                (Came::Bytes(turn), count) => {
                    let served = self.serve(Some(turn), count).await;
                    self.give_way().await;
                    served
                }
                (Came::Nothing, _) => Ok(()),
                (Came::Idle, _) => self.with_door(|door, line| door.idle(&line.context, &line.transport)),
                (Came::Late, _) => Err(Fault::new("TimeoutError", "a message arrives too slowly")),
                (Came::End, _) => break,
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
        // The output still leaves, if the client reads it.
        self.transport.close();
        self.drain().await;
        self.transport.release();
        if let Some(core) = self.core.upgrade() {
            core.doors.leave(number);
        }
    }

    /// Waits until the output has left, or the client does not read it. Otherwise the client would miss the end of the output.
    async fn drain(&self) {
        self.transport.until_over().await;
    }

    /// Waits for bytes, and reads them. Returns what came, and the number of bytes.
    async fn come(&self) -> (Came, usize) {
        let Some(socket) = self.transport.socket() else { return (Came::End, 0) };
        let held_back = tokio::time::Instant::now();
        if self.transport.is_full() {
            self.unless_ended(self.transport.room()).await;
        }
        let due = {
            let mut coming = self.coming.borrow_mut();
            coming.pause(held_back.elapsed());
            coming.due()
        };
        let mut readable = pin!(socket.readable());
        let mut ended = pin!(self.transport.until_ended());
        let mut idle = pin!(tokio::time::sleep(D::IDLE));
        let mut late = pin!(due.map(tokio::time::sleep_until));
        let came = poll_fn(|poll| {
            if ended.as_mut().poll(poll).is_ready() {
                return Poll::Ready(Came::End);
            }
            if let Poll::Ready(readable) = readable.as_mut().poll(poll) {
                return Poll::Ready(if readable.is_ok() { Came::Nothing } else { Came::End });
            }
            if late.as_mut().as_pin_mut().is_some_and(|late| late.poll(poll).is_ready()) {
                return Poll::Ready(Came::Late);
            }
            idle.as_mut().poll(poll).map(|()| Came::Idle)
        })
        .await;
        match came {
            Came::Nothing => self.take_in(&socket).await,
            other => (other, 0),
        }
    }

    /// Reads the bytes that may be there, when it is this connection's turn.
    async fn take_in(&self, socket: &Socket) -> (Came, usize) {
        let (_, stranger) = self.owner();
        let waits = tokio::time::Instant::now();
        let Some(Some(turn)) = self.unless_ended(self.turn()).await else { return (Came::End, 0) };
        self.coming.borrow_mut().pause(waits.elapsed());
        let room = if stranger { turn.room().min(READ_BEFORE) } else { turn.room() };
        match self.input.borrow_mut().fill(room, |room| socket.try_read(room)) {
            Ok(0) => (Came::End, 0),
            Ok(count) => (Came::Bytes(turn), count),
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => (Came::Nothing, 0),
            Err(_) => (Came::End, 0),
        }
    }

    /// Waits for one of its owner's turns. `None`: the service has ended.
    async fn turn(&self) -> Option<Turn> {
        let queue = self.core.upgrade().map(|core| Rc::clone(&core.doors.queue))?;
        queue.turn(&self.owner().0).await
    }

    /// Waits for something. `None`: the connection has ended, or is about to.
    async fn unless_ended<R>(&self, done: impl Future<Output = R>) -> Option<R> {
        let (mut done, mut ended) = (pin!(done), pin!(self.transport.until_ended()));
        poll_fn(|poll| match ended.as_mut().poll(poll) {
            Poll::Ready(()) => Poll::Ready(None),
            Poll::Pending => done.as_mut().poll(poll).map(Some),
        })
        .await
    }

    /// The owner whose turns it takes: the identity, or the source. Also whether the client still has to log in.
    fn owner(&self) -> (Rc<str>, bool) {
        let mut owner = self.owner.borrow_mut();
        let login = self.transport.login();
        let stranger = !D::PUBLIC && login.is_none();
        match login {
            Some(login) if !owner.1 || owner.0.strip_prefix('!') != Some(login.identity()) => {
                *owner = (format!("!{}", login.identity()).into(), true);
            }
            None if owner.1 || owner.0.is_empty() => *owner = (source(self.transport.peer().address()).into(), false),
            _ => {}
        }
        (Rc::clone(&owner.0), stranger)
    }

    /// Lets other tasks run, so that output leaves. If more than [`PRESSURE`] waits, this connection is not read for
    /// [`BY_AND_BY`].
    async fn give_way(&self) {
        tokio::task::yield_now().await;
        let pressed = || self.core.upgrade().is_some_and(|core| core.doors.unread() > PRESSURE);
        if pressed() {
            tokio::time::sleep(BY_AND_BY).await;
        }
    }

    /// Passes the input to the door, in this turn. `count` bytes of it are new.
    async fn serve(&self, turn: Option<Turn>, count: usize) -> Result<()> {
        if self.input.borrow().is_empty() {
            return Ok(());
        }
        // At rest from its end on.
        let Some(mut door) = self.door.borrow_mut().take() else { return Ok(()) };
        let mut input = std::mem::take(&mut *self.input.borrow_mut());
        let (before, began) = (input.len(), tokio::time::Instant::now());
        let served = {
            let received = pin!(door.received(&self.context, &self.transport, &mut input));
            self.charged(turn, count, received).await
        };
        *self.door.borrow_mut() = Some(door);
        let left = input.len();
        input.rest();
        *self.input.borrow_mut() = input;
        self.transport.set_input(left);
        served?;
        let longest = self.core.upgrade().map_or(D::LONGEST, |core| D::LONGEST.min(core.limits.get().input));
        if left >= longest {
            return Err(Fault::value(format!("a message of more than {longest} bytes")));
        }
        let (mut coming, now) = (self.coming.borrow_mut(), tokio::time::Instant::now());
        if left < before || left == 0 {
            // What is left, if anything, is another message.
            coming.rest();
        } else {
            coming.pause(now - began);
            coming.moved(count, now);
        }
        if left > 0 {
            coming.begin(now);
        }
        Ok(())
    }

    /// Polls what a door does with its input, each time in one of its owner's turns, for which the owner is charged. Between the
    /// polls it waits for something.
    async fn charged(
        &self,
        turn: Option<Turn>,
        count: usize,
        mut received: Pin<&mut impl Future<Output = Result<()>>>,
    ) -> Result<()> {
        let (mut turn, mut wanted) = (turn, None);
        let (mut cost, mut all) = (Duration::ZERO, 0);
        poll_fn(|poll| {
            if turn.is_none() {
                // What it has waited for may be there.
                let wanted = wanted.get_or_insert_with(|| Box::pin(self.turn()));
                let Poll::Ready(given) = wanted.as_mut().poll(poll) else { return Poll::Pending };
                turn = given;
            }
            wanted = None;
            let (began, written) = (Instant::now(), self.written());
            let polled = catch_unwind(AssertUnwindSafe(|| received.as_mut().poll(poll)));
            let (time, bytes) = (began.elapsed(), self.written().wrapping_sub(written));
            (cost, all) = (cost + time, all + bytes);
            if let Some(turn) = turn.take() {
                turn.charge(time, bytes);
                turn.learn(count, cost, all);
            }
            polled.unwrap_or_else(|_| Poll::Ready(Err(Fault::panicked("a door"))))
        })
        .await
    }

    fn written(&self) -> u64 {
        self.core.upgrade().map_or(0, |core| core.doors.written())
    }

    fn with_door(&self, call: impl FnOnce(&mut D, &Self) -> Result<()>) -> Result<()> {
        let Some(mut door) = self.door.borrow_mut().take() else { return Ok(()) };
        let called = contained(|| call(&mut door, self));
        *self.door.borrow_mut() = Some(door);
        called
    }

    /// If other code serves, hands this connection on to it, unless it cannot be saved as bytes.
    fn is_handed_on(&self, number: u64) -> bool {
        let Some(core) = self.core.upgrade().filter(|core| core.retired.get()) else { return false };
        let Some(state) = self.bytes() else { return false };
        core.push(&ToHost::Carry { stream: number, replacement: 0, state: &state });
        core.doors.leave(number);
        self.let_go();
        true
    }

    /// The state from which the next generation continues.
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

    /// Releases what is left of the connection here.
    fn let_go(&self) {
        self.carried.set(true);
        if let Some(stream) = self.transport.stream() {
            stream.carry();
        }
        // The output was handed on with the connection. It must not leave from here, too.
        self.transport.release();
        let door = self.door.borrow_mut().take();
        drop(door);
    }
}

impl<D: Door> Carried for Line<D> {
    fn freeze(&self) -> Option<Vec<u8>> {
        // Input that may be half a password waits until it is complete. This code, or the next, receives it then.
        let half = !D::PUBLIC && self.transport.login().is_none() && !self.input.borrow().is_empty();
        if half { None } else { self.bytes() }
    }

    fn forget(&self) {
        self.tasks.borrow().iter().for_each(AbortHandle::abort);
        self.let_go();
    }

    fn cut(&self) {
        self.transport.cut();
    }
}
