//! The queue between the host and one generation, in the host's memory.
//!
//! The host pushes frames; the generation's main thread pops them in short batches, in the order that `fair` determines, and
//! sleeps on an eventfd when there are none. A busy generation is not woken: it looks again before it sleeps. If a client does
//! not read its answers, its calls wait here, and those of others continue.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use parking_lot::Mutex;
use plugin_api::abi::frame::{self, ToHost, ToLibrary};
use plugin_api::abi::import;
use plugin_api::abi::types::{Host, HostRef, Span};
use rustix::event::{EventfdFlags, eventfd};

use super::fair;
pub use super::fair::GateLimits;
use super::queue::{Over, Queue};
use crate::memory::{Kept, Meter, Resume};

/// The cost of a byte that a service answers with, or saves, in nanoseconds of its thread.
const ANSWER_COST: u64 = 1;
const SAVE_COST: u64 = 10;

/// Up to this many bytes, a frame costs less than counting it would.
const LARGE: usize = 16 << 10;

/// A connection's place in gates.
#[derive(Debug, Clone)]
pub struct Lane {
    /// The connection's number; 0 belongs to no client.
    pub connection: u32,
    /// Counts what is kept for it.
    pub meter: Arc<Meter>,
}

impl Lane {
    /// A lane without limits, for something other than a client's connection. All its frames use this lane or a clone, so that
    /// what is kept is counted once.
    #[must_use]
    pub fn unbounded(connection: u32) -> Self {
        Self { connection, meter: Arc::default() }
    }

    /// Counts bytes of this lane that wait in a gate from now on.
    pub(super) fn enters_gate(&self, bytes: usize) {
        self.meter.add(Kept::Gate, bytes);
    }

    /// Counts bytes of this lane that wait no longer.
    pub(super) fn left_gate(&self, bytes: usize) {
        self.meter.sub(Kept::Gate, bytes);
    }
}

/// Frames of a lane that wait until they can be handed to a gate. They are counted until this is dropped.
#[derive(Debug)]
pub struct WaitingLane {
    lane: Lane,
    bytes: usize,
}

impl WaitingLane {
    /// Counts this many bytes of a lane as waiting, if the limits allow it: `own` bytes of its owner and `all` bytes in total
    /// wait already.
    #[must_use]
    pub fn of(lane: &Lane, bytes: usize, (own, all): (usize, usize), limits: GateLimits) -> Option<Self> {
        if !limits.admit(own, all, bytes) {
            return None;
        }
        lane.enters_gate(bytes);
        Some(Self { lane: lane.clone(), bytes })
    }

    /// The lane of the frames.
    #[must_use]
    pub fn lane(&self) -> &Lane {
        &self.lane
    }
}

impl Drop for WaitingLane {
    fn drop(&mut self) {
        self.lane.left_gate(self.bytes);
    }
}

/// Where a generation's frames go.
pub trait Outlet: Send + Sync + 'static {
    /// Whole frames, in order.
    fn frames(&self, frames: &[u8]);
    /// A line for the log. It may come from any thread of the library.
    fn log(&self, level: u8, target: &str, text: &str);
    /// The generation's process has died without being told to end: how, as the rest of a sentence; and where, in its library.
    /// What it owed has been answered.
    fn crashed(&self, _how: &str, _at: &[u64]) {}
    /// How many bytes may wait in the gate. Connections limit what each of them has in flight; this limits all together.
    fn most_waiting(&self) -> GateLimits {
        GateLimits::default()
    }
    /// What a worker may send and ask.
    fn worker_limits(&self) -> WorkerLimits {
        WorkerLimits::default()
    }
    /// Whether so much waits to be written that the generation should not say more for now.
    fn is_full(&self) -> bool {
        false
    }
}

/// What a service's own process may send and ask.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct WorkerLimits {
    /// The most bytes of a message.
    pub message: usize,
    /// The most open questions. What a worker asks for is kept until it has taken the answer.
    pub questions: usize,
    /// The most bytes of the host's own frames that may wait in a worker's gate: answers to what it asked for.
    pub answers: usize,
}

impl WorkerLimits {
    /// The higher ones of both.
    pub(super) fn or_higher(self, other: Self) -> Self {
        Self {
            message: self.message.max(other.message),
            questions: self.questions.max(other.questions),
            answers: self.answers.max(other.answers),
        }
    }
}

impl Default for WorkerLimits {
    fn default() -> Self {
        Self { message: 64 << 20, questions: 1 << 18, answers: 256 << 20 }
    }
}

/// The gate is full: its service does not keep up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the service does not keep up")]
pub struct Full;

/// One generation's gate.
pub struct Gate {
    queue: Queue<Arc<Meter>>,
    /// The last batch: the library reads it until it pops again.
    popped: Mutex<Vec<u8>>,
    /// Since when the generation has been busy with it.
    busy: Mutex<Option<Instant>>,
    reader: Reader,
    outlet: Arc<dyn Outlet>,
    began: Instant,
    me: Weak<Self>,
}

/// The reader of a gate.
enum Reader {
    /// A library's thread in this process. It sleeps on this descriptor.
    Thread(OwnedFd),
    /// A worker.
    Worker(Arc<dyn Elsewhere>),
}

/// Gives a worker what waits in its gate.
pub trait Elsewhere: Send + Sync {
    /// The gate may have frames.
    fn more(&self, gate: &Gate);
    /// How many bytes were taken out of the gate and still wait.
    fn left_bytes(&self) -> usize;
    /// The worker does not take what it asks for, and so much waits that it must not continue.
    fn overrun(&self);
}

impl Drop for Gate {
    fn drop(&mut self) {
        // What nobody has read is no longer counted.
        self.give_up();
    }
}

impl Resume for Gate {
    fn resume(&self, connection: u32) {
        if self.queue.resume(connection) {
            self.ring();
        }
    }
}

impl std::fmt::Debug for Gate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Gate")
    }
}

impl Gate {
    /// A gate whose generation's frames go to `outlet`.
    ///
    /// # Errors
    /// If the machine has no descriptor left.
    pub fn new(outlet: Arc<dyn Outlet>) -> std::io::Result<Arc<Self>> {
        let eventfd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        Ok(Self::read_by(Reader::Thread(eventfd), outlet))
    }

    /// A gate whose generation is at the other end of this link.
    pub(super) fn of_worker(link: Arc<dyn Elsewhere>, outlet: Arc<dyn Outlet>) -> Arc<Self> {
        Self::read_by(Reader::Worker(link), outlet)
    }

    fn read_by(reader: Reader, outlet: Arc<dyn Outlet>) -> Arc<Self> {
        let (queue, popped, busy, began) = (Queue::default(), Mutex::default(), Mutex::default(), Instant::now());
        Arc::new_cyclic(|me: &Weak<Self>| Self { queue, popped, busy, reader, outlet, began, me: Weak::clone(me) })
    }

    /// Hands whole frames of a connection to the generation.
    ///
    /// # Errors
    /// If too much waits already; then nothing is handed over.
    pub fn push(&self, lane: &Lane, frames: &[u8]) -> Result<(), Full> {
        self.push_within(lane, frames, self.outlet.most_waiting())
    }

    /// Hands over frames that must not be lost, however much waits.
    pub fn push_anyway(&self, lane: &Lane, frames: &[u8]) {
        // Nothing exceeds this limit.
        let _ = self.push_within(lane, frames, GateLimits::NONE);
    }

    fn push_within(&self, lane: &Lane, frames: &[u8], limits: GateLimits) -> Result<(), Full> {
        if let Reader::Worker(link) = &self.reader
            && link.left_bytes().saturating_add(frames.len()) > limits.all
        {
            return Err(Full);
        }
        // Counted before it can be popped.
        lane.meter.add(Kept::Gate, frames.len());
        let (connection, owner, meter) = (lane.connection, lane.meter.owner(), Arc::clone(&lane.meter));
        match self.queue.push(&fair::Lane { connection, owner, meter }, frames, frame::is_call, limits) {
            Ok(wakes) if wakes => self.ring(),
            Ok(_) => {}
            Err(Over) => {
                lane.meter.sub(Kept::Gate, frames.len());
                return Err(Full);
            }
        }
        Ok(())
    }

    /// Hands over the host's own frames: ahead of all calls that wait.
    pub fn push_host(&self, frames: &[u8]) {
        if self.queue.host(frames) {
            self.ring();
        }
        if let Reader::Worker(worker) = &self.reader
            && frames.len() > LARGE
            && self.queue.of_host() > self.outlet.worker_limits().answers
        {
            worker.overrun();
        }
    }

    /// Hands over the host's own frames: ahead of everything that waits, including a freeze or a stop. `barred`: only if one of
    /// these waits.
    pub fn push_ahead(&self, frames: &[u8], barred: bool) {
        if self.queue.ahead(frames, barred) {
            self.ring();
        }
    }

    /// Hands over a frame behind everything that waits.
    pub fn push_last(&self, frame: &[u8]) {
        if self.queue.barrier(frame) {
            self.ring();
        }
    }

    /// Nobody reads the gate any more, but it stays: the frames that wait in it are discarded.
    pub(super) fn give_up(&self) {
        self.queue.drain(|lane, bytes| lane.meter.sub(Kept::Gate, bytes));
    }

    fn ring(&self) {
        match &self.reader {
            Reader::Thread(eventfd) => {
                // It can fail only when its count is at its limit; then the generation is awake.
                let _ = rustix::io::write(eventfd, &1u64.to_ne_bytes());
            }
            Reader::Worker(link) => link.more(self),
        }
    }

    fn pop(&self) -> Span {
        let mut popped = self.popped.lock();
        self.pop_into(&mut popped);
        Span::new(&popped)
    }

    /// Pops the next batch and passes it to `send`, which may change it. Returns whether there was one.
    pub(super) fn take(&self, send: impl FnOnce(&mut Vec<u8>)) -> bool {
        let mut popped = self.popped.lock();
        self.pop_into(&mut popped);
        if popped.is_empty() {
            return false;
        }
        send(&mut popped);
        true
    }

    fn pop_into(&self, popped: &mut Vec<u8>) {
        popped.clear();
        // The memory of a burst must not be kept for ever.
        if popped.capacity() > 1 << 20 {
            *popped = Vec::new();
        }
        let now = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let me: Weak<dyn Resume> = Weak::<Self>::clone(&self.me);
        self.queue.take(
            popped,
            now,
            |lane| !lane.meter.pause(&me, lane.connection),
            |lane, bytes| lane.meter.sub(Kept::Gate, bytes),
        );
        *self.busy.lock() = if popped.is_empty() { None } else { Some(Instant::now()) };
    }

    /// Takes everything out, for a reader that has died. `each` is given the host's frames, and each lane's frames with the
    /// lane.
    pub(super) fn drain(&self, mut each: impl FnMut(Option<&Lane>, &[u8])) {
        self.queue.take_all(|lane, frames| {
            let lane = lane.map(|lane| Lane { connection: lane.connection, meter: Arc::clone(&lane.meter) });
            if let Some(lane) = &lane {
                lane.left_gate(frames.len());
            }
            each(lane.as_ref(), frames);
        });
    }

    /// The reader is no longer busy with the last batch.
    pub(super) fn rests(&self) {
        *self.busy.lock() = None;
    }

    /// For how long the generation has been busy with its last batch, and with which methods that may be. `None` if for less
    /// than `long`.
    pub(super) fn busy_for(&self, long: Duration) -> Option<(Duration, Vec<String>)> {
        let since = (*self.busy.lock())?.elapsed();
        if since < long {
            return None;
        }
        let popped = self.popped.lock();
        let (mut methods, mut rest): (Vec<String>, _) = (Vec::new(), popped.as_slice());
        while let Some(frame) = ToLibrary::read(&mut rest) {
            if let ToLibrary::Call { method, .. } = frame
                && !methods.iter().any(|known| known == method)
            {
                methods.push(method.to_owned());
            }
        }
        Some((since, methods))
    }

    pub(super) fn arm(&self) -> bool {
        self.queue.arm()
    }

    /// The generation has sent frames. Connections for which it sent much are served later.
    pub(super) fn said(&self, frames: &[u8]) {
        if frames.len() <= LARGE {
            return self.outlet.frames(frames);
        }
        let (mut rest, mut saved) = (frames, 0);
        while let Some(said) = ToHost::read(&mut rest) {
            match said {
                ToHost::Answer { call, value, .. } if value.len() > LARGE => {
                    self.queue.charge(Some((call >> 32) as u32), value.len() as u64 * ANSWER_COST);
                }
                ToHost::Save { state, .. } => saved += state.len() as u64,
                _ => {}
            }
        }
        if saved > LARGE as u64 {
            // Charged to the connections whose calls are running.
            self.queue.charge(None, saved * SAVE_COST);
        }
        self.outlet.frames(frames);
    }

    fn wait(&self) {
        let Reader::Thread(eventfd) = &self.reader else { return };
        // The count is of earlier rings; a push from here on rings again.
        let _ = rustix::io::read(eventfd, &mut [0; 8]);
        if self.queue.arm() {
            let mut ready = [rustix::event::PollFd::new(eventfd, rustix::event::PollFlags::IN)];
            // The timeout is harmless: the caller looks again anyway.
            let _ = rustix::event::poll(&mut ready, Some(&rustix::event::Timespec { tv_sec: 1, tv_nsec: 0 }));
        }
    }

    /// The number by which a library's calls reach this gate. It is valid while the `Arc` is held.
    pub(super) fn number(self: &Arc<Self>) -> usize {
        Arc::as_ptr(self) as usize
    }
}

/// The host's function table.
pub(super) fn host() -> HostRef {
    static TABLE: OnceLock<HostRef> = OnceLock::new();
    *TABLE.get_or_init(|| import::host(Host { descriptor, pop, arm, push, log, wait }))
}

/// The gate with this number.
fn gate<'a>(number: usize) -> &'a Gate {
    // SAFETY: the number was made by `Gate::number` and given to one library, which hands it back as it came. That
    // library's thread holds the `Arc` until `run` has returned, and a library lives no longer in a way that could
    // call: its threads are joined before, or it is never unmapped and then the `Arc` is never dropped either
    // (`generation`). A library that makes up a number breaks its contract; it runs with the host's rights anyway.
    unsafe { &*(number as *const Gate) }
}

/// A panic must not cross the wall into the library.
pub(super) fn contained<R>(otherwise: R, run: impl FnOnce() -> R) -> R {
    std::panic::catch_unwind(std::panic::AssertUnwindSafe(run)).unwrap_or_else(|_| {
        tracing::error!("a fault in the host at the wall; please report it");
        otherwise
    })
}

extern "C" fn descriptor(number: usize) -> i32 {
    match &gate(number).reader {
        Reader::Thread(eventfd) => eventfd.as_raw_fd(),
        Reader::Worker(_) => -1,
    }
}

extern "C" fn pop(number: usize) -> Span {
    contained(Span::new(&[]), || gate(number).pop())
}

extern "C" fn arm(number: usize) -> bool {
    contained(true, || gate(number).arm())
}

extern "C" fn wait(number: usize) {
    contained((), || gate(number).wait());
}

extern "C" fn push(number: usize, frames: Span) {
    contained((), || {
        // SAFETY: the library lends the bytes for the length of this call.
        gate(number).said(unsafe { frames.bytes() });
    });
}

extern "C" fn log(number: usize, level: u8, target: Span, text: Span) {
    contained((), || {
        // SAFETY: the library lends the bytes for the length of this call.
        let (target, text) = unsafe { (target.bytes(), text.bytes()) };
        gate(number).outlet.log(level, &String::from_utf8_lossy(target), &String::from_utf8_lossy(text));
    });
}

/// Duplicates a descriptor that a frame names.
pub(super) fn descriptor_of(number: u64) -> io::Result<OwnedFd> {
    let raw = RawFd::try_from(number).ok().filter(|raw| *raw >= 0);
    let raw = raw.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
    // SAFETY: the number stands in a frame `Stream` or `Lent` of this host's own that was just popped. Whoever wrote it (`doors`)
    // keeps the descriptor open until the generation that it is for has said `Taken` of it or `Closed` of its stream, or has ended.
    // That has not happened: the generation is given the frame after this, and what it says of descriptors and streams that it was
    // not given is refused before the host hears it (`worker::owed`). It is borrowed for this one call, which only duplicates it.
    let borrowed = unsafe { BorrowedFd::borrow_raw(raw) };
    borrowed.try_clone_to_owned()
}
