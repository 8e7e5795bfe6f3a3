//! The host's end of a worker: it sends what waits in the gate when the worker asks for it, and receives what the worker says.
//! When the worker has died, the link says in its place what it owes.
//!
//! If the worker waits, whoever pushes into the gate writes to the socket itself, so that no other thread must be woken for it.
//! What the socket does not take at once is written by the link's own thread, which also reads. That thread never waits for the
//! worker.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use parking_lot::Mutex;
use plugin_api::abi::frame::{ToHost, ToLibrary};
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};

use super::channel::{Come, Inbound, Outbound};
use super::owed::{Owed, Told, fail};
use super::pid::Process;
use super::wire::{self, Kind, Malformed};
use crate::loader::gate::{Elsewhere, Gate, Lane, Outlet, descriptor_of};

impl Elsewhere for Link {
    fn more(&self, gate: &Gate) {
        let mut state = self.state.lock();
        match state.life {
            Life::Alive if state.asks => self.give(&mut state, gate),
            Life::Alive => {}
            Life::Dead(_) | Life::Over => self.wake(),
        }
    }

    fn left_bytes(&self) -> usize {
        self.left.load(Ordering::Relaxed)
    }

    fn overrun(&self) {
        self.process.kill("asked for more answers than it read, and was killed");
    }
}

impl Drop for Link {
    fn drop(&mut self) {
        // Closing what a worker may have put into the socket may take arbitrarily long: nothing waits for that.
        if let Some(socket) = self.socket.take() {
            let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(socket));
        }
    }
}

/// The most memory files that may arrive ahead of their messages.
const FILES: usize = 4;
/// The lane of streams that a worker had not taken when it died. No connection has this number.
const UNTAKEN: u32 = u32::MAX;
/// How long the link pauses before it checks again whether the store has written enough.
const UNWRITTEN_PAUSE: std::time::Duration = std::time::Duration::from_millis(1);

/// The host's end of a worker: see the module's page.
#[derive(Debug)]
pub(crate) struct Link {
    /// Present until it is dropped.
    socket: Option<OwnedFd>,
    process: Arc<Process>,
    /// Wakes the link's thread.
    wake: OwnedFd,
    state: Mutex<State>,
    /// How many bytes of calls are left for the successor.
    left: AtomicUsize,
}

#[derive(Debug, Default)]
struct State {
    out: Outbound,
    owed: Owed,
    /// The worker is idle, and receives at once what arrives.
    asks: bool,
    life: Life,
    /// Calls that the worker was not given before it died: for its successor.
    left: Vec<(Lane, Vec<u8>)>,
}

/// Empties the list of calls that are left; returns them.
fn emptied(state: &mut State, bytes: &AtomicUsize) -> Vec<(Lane, Vec<u8>)> {
    let left = std::mem::take(&mut state.left);
    for (lane, calls) in &left {
        lane.left_gate(calls.len());
        bytes.fetch_sub(calls.len(), Ordering::Relaxed);
    }
    left
}

#[derive(Debug, Default)]
enum Life {
    #[default]
    Alive,
    /// It has died; the reason.
    Dead(String),
    /// It has ended; or it has died, and was retired or stopped.
    Over,
}

/// How the end of a worker's socket came about.
#[derive(Debug)]
pub(super) enum Ending {
    /// The worker has closed it.
    Closed,
    /// The worker has sent something that it must not.
    Malformed(Malformed),
}

impl Link {
    /// The host's end of this socket.
    ///
    /// # Errors
    /// If the machine has no descriptor left.
    pub(crate) fn new(socket: OwnedFd, process: Arc<Process>) -> io::Result<Arc<Self>> {
        let wake = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        let socket = Some(socket);
        Ok(Arc::new(Self { socket, process, wake, state: Mutex::default(), left: AtomicUsize::new(0) }))
    }

    fn socket(&self) -> io::Result<&OwnedFd> {
        self.socket.as_ref().ok_or_else(|| io::ErrorKind::NotConnected.into())
    }

    fn wake(&self) {
        // It can fail only when its count is at its limit; then the thread is awake.
        let _ = rustix::io::write(&self.wake, &1_u64.to_ne_bytes());
    }

    /// Sends the worker its first message.
    pub(super) fn set_up(&self, setup: &[u8]) -> io::Result<()> {
        self.state.lock().out.send(self.socket()?, Kind::Setup, setup, Vec::new())
    }

    /// Gives the worker what waits in the gate, or notes that the worker waits.
    fn give(&self, state: &mut State, gate: &Gate) {
        state.asks = true;
        let State { owed, out, .. } = &mut *state;
        let mut sent = Ok(());
        while !gate.take(|batch| {
            let descriptors = descriptors(owed, batch);
            sent = self.socket().and_then(|socket| out.send(socket, Kind::Batch, batch, descriptors));
        }) {
            if gate.arm() {
                return;
            }
        }
        state.asks = false;
        if let Err(error) = &sent {
            // It will not ask again. If it is already gone, the reader will notice.
            tracing::debug!(%error, "sending to a worker failed");
        }
        if let Some(error) = sent.as_ref().err().filter(|error| error.kind() != io::ErrorKind::BrokenPipe) {
            self.process.kill(&format!("could not receive the answers that it asked for ({error}), and was killed"));
        }
        if sent.is_err() || state.out.is_waiting() {
            self.wake();
        }
    }

    /// Moves everything until the worker's end of the socket is closed. `crash` receives the worker's report of a crash.
    pub(super) fn serve(&self, gate: &Gate, outlet: &dyn Outlet, crash: &mut Vec<u8>) -> Ending {
        let mut gone = false;
        let mut limits = outlet.worker_limits();
        let mut inbound = Inbound::new(limits.message as u64, FILES).memory_alone();
        let Ok(socket) = self.socket() else { return Ending::Closed };
        loop {
            // A limit that is lower now is for workers that start from now on: this one may be over it already.
            limits = limits.or_higher(outlet.worker_limits());
            inbound.set_limit(limits.message as u64);
            match inbound.read(socket) {
                Err(malformed) => return Ending::Malformed(malformed),
                Ok(Come::End) => return Ending::Closed,
                // What it said before its end has arrived by now.
                Ok(Come::Nothing) if gone => return Ending::Closed,
                Ok(Come::Nothing) => gone = !self.wait(socket),
                Ok(Come::Some) => loop {
                    match inbound.message() {
                        Ok(None) => break,
                        Err(malformed) => return Ending::Malformed(malformed),
                        Ok(Some(message)) => {
                            if let Err(malformed) =
                                self.said(gate, outlet, (message.kind, &message.body), limits.questions, crash)
                            {
                                return Ending::Malformed(malformed);
                            }
                            if message.kind == Kind::Frames && self.has_stopped() {
                                // That was its last frame, whatever it does.
                                return Ending::Closed;
                            }
                        }
                    }
                },
            }
        }
    }

    fn said(
        &self,
        gate: &Gate,
        outlet: &dyn Outlet,
        (kind, body): (Kind, &[u8]),
        questions: usize,
        crash: &mut Vec<u8>,
    ) -> Result<(), Malformed> {
        match kind {
            Kind::Frames => {
                let unnamed = self.state.lock().owed.said(body, questions)?;
                if unnamed.is_empty() {
                    gate.said(body);
                } else {
                    // It had no descriptor left for these: they get the host's own numbers.
                    let named = |stream, descriptor| unnamed.get(&stream).copied().filter(|_| descriptor == u64::MAX);
                    gate.said(&renamed_taken(body, |stream, descriptor| {
                        named(stream, descriptor).unwrap_or(descriptor)
                    }));
                }
                while outlet.is_full() && !self.process.has_ended() {
                    std::thread::sleep(UNWRITTEN_PAUSE);
                }
            }
            Kind::Log => {
                let (level, target, text) = wire::line(body).ok_or(Malformed::Frames)?;
                outlet.log(level, &String::from_utf8_lossy(target), &String::from_utf8_lossy(text));
            }
            Kind::Ask => {
                let mut state = self.state.lock();
                if state.asks {
                    return Err(Malformed::Unasked);
                }
                self.give(&mut state, gate);
            }
            Kind::Crash => *crash = body.to_vec(),
            Kind::Setup | Kind::Batch => return Err(Malformed::Kind(kind as u8)),
        }
        Ok(())
    }

    /// Waits until the worker has said something, or has room for what waits to be written; writes that. Returns false if the
    /// worker has ended or no longer reads.
    fn wait(&self, socket: &OwnedFd) -> bool {
        let writes = {
            let mut state = self.state.lock();
            if state.out.is_waiting() && state.out.go_on(socket).is_err() {
                return false;
            }
            state.out.is_waiting()
        };
        let wanted = if writes { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let mut ready = vec![PollFd::new(socket, wanted), PollFd::new(&self.wake, PollFlags::IN)];
        // Processes that it has started may hold its end of the socket, too.
        ready.extend(self.process.handle().map(|handle| PollFd::new(handle, PollFlags::IN)));
        // An interruption is a reason to look again, too.
        let _ = poll(&mut ready, None);
        let ended = ready.get(2).is_some_and(|handle| handle.revents().contains(PollFlags::IN));
        let _ = rustix::io::read(&self.wake, &mut [0; 8]);
        !ended
    }

    /// Whether the worker was told to retire, or to stop.
    pub(super) fn told(&self) -> Told {
        self.state.lock().owed.told()
    }

    /// Whether the worker has sent its last frame.
    pub(super) fn has_stopped(&self) -> bool {
        self.state.lock().owed.has_stopped()
    }

    /// The worker has ended in order.
    pub(super) fn over(&self, gate: &Gate) {
        self.state.lock().life = Life::Over;
        gate.give_up();
    }

    /// The worker has died: everybody who waits for its answers gets this error.
    pub(super) fn died(&self, gate: &Gate, outlet: &dyn Outlet, why: &str) {
        gate.rests();
        let failed = {
            let mut state = self.state.lock();
            state.life = Life::Dead(why.to_owned());
            state.asks = false;
            state.out = Outbound::default();
            let untaken = state.owed.untaken();
            if !untaken.is_empty() {
                self.keep(&mut state.left, &Lane::unbounded(UNTAKEN), untaken);
            }
            state.owed.failed(why)
        };
        if !failed.is_empty() {
            outlet.frames(&failed);
        }
    }

    /// Says what the dead worker would say, until it is retired or stopped.
    pub(super) fn stand_in(&self, gate: &Gate, outlet: &dyn Outlet) {
        loop {
            let said = {
                let mut state = self.state.lock();
                self.drain(&mut state, gate);
                let reverted = state.owed.reverted();
                match state.owed.told() {
                    _ if !reverted.is_empty() => Some(reverted),
                    Told::Nothing => state.owed.frozen(),
                    Told::Retire | Told::Stop => {
                        let mut frames = Vec::new();
                        let why = if let Life::Dead(why) = &state.life { why.clone() } else { String::new() };
                        for (_, calls) in emptied(&mut state, &self.left) {
                            let mut rest = calls.as_slice();
                            while let Some(frame) = ToLibrary::read(&mut rest) {
                                if let ToLibrary::Call { call, .. } = frame {
                                    fail(&mut frames, call, &why);
                                }
                            }
                        }
                        frames.extend(state.owed.ended());
                        state.life = Life::Over;
                        Some(frames)
                    }
                }
            };
            if let Some(frames) = said {
                outlet.frames(&frames);
                if self.has_stopped() {
                    return gate.give_up();
                }
                continue;
            }
            if gate.arm() {
                let mut ready = [PollFd::new(&self.wake, PollFlags::IN)];
                let _ = poll(&mut ready, None);
                let _ = rustix::io::read(&self.wake, &mut [0; 8]);
            }
        }
    }

    /// The calls that a dead worker was not given, with their lanes. They now belong to its successor.
    pub(crate) fn left(&self, gate: &Gate) -> Vec<(Lane, Vec<u8>)> {
        let mut state = self.state.lock();
        if !matches!(state.life, Life::Dead(_)) {
            return Vec::new();
        }
        self.drain(&mut state, gate);
        emptied(&mut state, &self.left)
    }

    /// Takes everything out of the gate of a dead worker: calls are kept, and everything else is noted.
    fn drain(&self, state: &mut State, gate: &Gate) {
        let State { owed, left, .. } = state;
        gate.drain(|lane, mut frames| {
            let mut calls = Vec::new();
            while let Some(frame) = ToLibrary::read(&mut frames) {
                match (frame, lane) {
                    (frame @ (ToLibrary::Call { .. } | ToLibrary::Gone { .. } | ToLibrary::Stream { .. }), Some(_)) => {
                        frame.write(&mut calls)
                    }
                    (frame, _) => {
                        // The descriptor that it names stays the host's.
                        let _ = owed.given(&frame);
                    }
                }
            }
            if let (Some(lane), false) = (lane, calls.is_empty()) {
                self.keep(left, lane, calls);
            }
        });
    }

    fn keep(&self, left: &mut Vec<(Lane, Vec<u8>)>, lane: &Lane, frames: Vec<u8>) {
        lane.enters_gate(frames.len());
        self.left.fetch_add(frames.len(), Ordering::Relaxed);
        left.push((lane.clone(), frames));
    }
}

/// Notes a batch as given, and duplicates the descriptors that it names. If one cannot be duplicated, the frame names none.
fn descriptors(owed: &mut Owed, batch: &mut Vec<u8>) -> Vec<OwnedFd> {
    let (mut named, mut rest) = (Vec::new(), batch.as_slice());
    while let Some(frame) = ToLibrary::read(&mut rest) {
        named.extend(owed.given(&frame));
    }
    if named.is_empty() {
        return Vec::new();
    }
    let mut own = Vec::new();
    *batch = renamed(batch, |number| match descriptor_of(number) {
        Ok(descriptor) => {
            own.push(descriptor);
            number
        }
        Err(error) => {
            tracing::warn!(%error, "a stream cannot be passed to its service");
            u64::MAX
        }
    });
    own
}

/// Returns the same frames with other numbers for the descriptors in them.
pub(super) fn renamed(frames: &[u8], mut name: impl FnMut(u64) -> u64) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(frames.len()), frames);
    loop {
        let before = rest;
        let Some(mut frame) = ToLibrary::read(&mut rest) else { return out };
        match &mut frame {
            ToLibrary::Stream { descriptor, .. } | ToLibrary::Lent { descriptor, .. } => {
                *descriptor = name(*descriptor);
                frame.write(&mut out);
            }
            _ => out.extend_from_slice(&before[..before.len() - rest.len()]),
        }
    }
}

/// The same for frames that a worker sends.
pub(super) fn renamed_taken(frames: &[u8], mut name: impl FnMut(u64, u64) -> u64) -> Vec<u8> {
    let (mut out, mut rest) = (Vec::with_capacity(frames.len()), frames);
    loop {
        let before = rest;
        let Some(mut frame) = ToHost::read(&mut rest) else { return out };
        match &mut frame {
            ToHost::Taken { stream, descriptor } => {
                *descriptor = name(*stream, *descriptor);
                frame.write(&mut out);
            }
            _ => out.extend_from_slice(&before[..before.len() - rest.len()]),
        }
    }
}
