//! A worker from inside: the wall to its library. The other side of the wall is the host, at the end of a socket.
//!
//! The library's own thread is the worker's first and, except for those that the library starts, its only one.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};

use parking_lot::Mutex;
use plugin_api::abi::import;
use plugin_api::abi::types::{Host, HostRef, Span};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::Setup;
use super::channel::{Come, Inbound, Outbound};
use super::confinement::Isolation;
use super::link::{renamed, renamed_taken};
use super::owed::refused;
use super::wire::{self, Kind};
use super::{crash, sandbox};
use crate::loader::gate::{Outlet, contained};
use crate::loader::library;

/// The longest message from the host, in bytes: the host is trusted.
const LIMIT: u64 = u32::MAX as u64;
/// The most descriptors that may arrive ahead of their message.
const DESCRIPTORS: usize = 1 << 20;

/// The worker's end of the socket.
struct Inside {
    socket: OwnedFd,
    incoming: Mutex<Incoming>,
    out: Mutex<Outbound>,
    /// Descriptors that frames have named: by their number in this process, with the host's number.
    lent: Mutex<HashMap<u64, (OwnedFd, u64)>>,
}

struct Incoming {
    inbound: Inbound,
    /// The last batch: the library reads it until it pops again.
    popped: Vec<u8>,
    /// The next batch, if it has already arrived.
    next: Vec<u8>,
    /// The host knows that the worker wants more.
    asked: bool,
}

impl Inside {
    fn new(socket: OwnedFd) -> Self {
        let inbound = Inbound::new(LIMIT, DESCRIPTORS);
        let incoming = Incoming { inbound, popped: Vec::new(), next: Vec::new(), asked: false };
        Self { socket, incoming: Mutex::new(incoming), out: Mutex::default(), lent: Mutex::default() }
    }

    /// Waits for the host's first message.
    fn setup(&self) -> io::Result<Setup> {
        let mut incoming = self.incoming.lock();
        loop {
            let found = incoming.inbound.message().map_err(|wrong| io::Error::other(wrong.to_string()))?;
            if let Some(message) = found {
                return serde_json::from_slice(&message.body).map_err(io::Error::other);
            }
            self.sleep(None);
            if self.read(&mut incoming) == Come::End {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
    }

    fn read(&self, incoming: &mut Incoming) -> Come {
        match incoming.inbound.read(&self.socket) {
            Ok(come) => come,
            // The host is trusted: what cannot be read counts as its end.
            Err(_) => Come::End,
        }
    }

    fn sleep(&self, patience: Option<Timespec>) {
        let mut ready = [PollFd::new(&self.socket, PollFlags::IN)];
        // An interruption is a reason to look again, too.
        let _ = poll(&mut ready, patience.as_ref());
    }

    fn send(&self, kind: Kind, body: &[u8]) {
        let mut out = self.out.lock();
        // A crash meanwhile reports nothing: it would be taken for a part of this message.
        crash::SENDING.store(true, Ordering::SeqCst);
        let mut sent = out.send(&self.socket, kind, body, Vec::new());
        while sent.is_ok() && out.is_waiting() {
            let mut ready = [PollFd::new(&self.socket, PollFlags::OUT)];
            let _ = poll(&mut ready, None);
            sent = out.go_on(&self.socket);
        }
        crash::SENDING.store(false, Ordering::SeqCst);
        if sent.is_err() {
            // Without a host there is nobody to serve.
            gone();
        }
    }

    /// Looks for the next batch without waiting. Asks for one, if the host does not know that it is wanted.
    fn look(&self, incoming: &mut Incoming) {
        if !incoming.next.is_empty() {
            return;
        }
        if !incoming.asked {
            incoming.asked = true;
            self.send(Kind::Ask, &[]);
        }
        loop {
            match incoming.inbound.message() {
                Ok(Some(message)) => {
                    let (lends, batch, descriptors) = (message.lends, message.body.into_owned(), message.descriptors);
                    incoming.asked = false;
                    incoming.next = if lends { self.lend(&batch, descriptors) } else { batch };
                    return;
                }
                Ok(None) => {}
                Err(_) => gone(),
            }
            match self.read(incoming) {
                Come::Some => {}
                Come::Nothing => return,
                Come::End => gone(),
            }
        }
    }

    /// Returns a batch with the numbers that its descriptors have in this process.
    fn lend(&self, batch: &[u8], descriptors: Vec<OwnedFd>) -> Vec<u8> {
        let (mut lent, mut descriptors) = (self.lent.lock(), descriptors.into_iter());
        renamed(batch, |hosts| {
            // The host had no descriptor left for it.
            let Some(own) = (hosts != u64::MAX).then(|| descriptors.next()).flatten() else { return u64::MAX };
            let number = u64::try_from(own.as_raw_fd()).unwrap_or(u64::MAX);
            lent.insert(number, (own, hosts));
            number
        })
    }

    fn pop(&self) -> Span {
        let mut incoming = self.incoming.lock();
        self.look(&mut incoming);
        incoming.popped = std::mem::take(&mut incoming.next);
        Span::new(&incoming.popped)
    }

    fn arm(&self) -> bool {
        let mut incoming = self.incoming.lock();
        self.look(&mut incoming);
        incoming.next.is_empty()
    }

    fn push(&self, frames: &[u8]) {
        let mut lent = self.lent.lock();
        if lent.is_empty() {
            drop(lent);
            return self.send(Kind::Frames, frames);
        }
        // Descriptors that the library has duplicated are no longer lent.
        let frames = renamed_taken(frames, |_, number| lent.remove(&number).map_or(number, |(_, hosts)| hosts));
        drop(lent);
        self.send(Kind::Frames, &frames);
    }

    fn wait(&self) {
        {
            let mut incoming = self.incoming.lock();
            self.look(&mut incoming);
            if !incoming.next.is_empty() {
                return;
            }
        }
        // The timeout is harmless: the caller looks again anyway.
        self.sleep(Some(Timespec { tv_sec: 1, tv_nsec: 0 }));
    }
}

impl Outlet for Inside {
    fn frames(&self, frames: &[u8]) {
        self.send(Kind::Frames, frames);
    }

    fn log(&self, level: u8, target: &str, text: &str) {
        let mut body = Vec::new();
        wire::put_line(&mut body, level, target.as_bytes(), text.as_bytes());
        self.send(Kind::Log, &body);
    }
}

/// The host has ended, or is about to: the worker ends at once. No more code of the library runs.
fn gone() -> ! {
    // SAFETY: it ends the process, and does nothing else.
    unsafe { libc::_exit(0) }
}

/// The wall's function table. A worker has one wall, whatever number it is called by.
fn host() -> HostRef {
    import::host(Host { descriptor, pop, arm, push, log, wait })
}

static INSIDE: OnceLock<Arc<Inside>> = OnceLock::new();

/// Runs with the wall, which exists before any library is opened.
fn with<R>(otherwise: R, run: impl FnOnce(&Inside) -> R) -> R {
    match INSIDE.get() {
        Some(inside) => contained(otherwise, || run(inside)),
        None => otherwise,
    }
}

extern "C" fn descriptor(_: usize) -> i32 {
    with(-1, |inside| inside.socket.as_raw_fd())
}

extern "C" fn pop(_: usize) -> Span {
    with(Span::new(&[]), Inside::pop)
}

extern "C" fn arm(_: usize) -> bool {
    with(true, Inside::arm)
}

extern "C" fn wait(_: usize) {
    with((), Inside::wait);
}

extern "C" fn push(_: usize, frames: Span) {
    with((), |inside| {
        // SAFETY: the library lends the bytes for the length of this call.
        inside.push(unsafe { frames.bytes() });
    });
}

extern "C" fn log(_: usize, level: u8, target: Span, text: Span) {
    with((), |inside| {
        // SAFETY: the library lends the bytes for the length of this call.
        let (target, text) = unsafe { (target.bytes(), text.bytes()) };
        inside.log(level, &String::from_utf8_lossy(target), &String::from_utf8_lossy(text));
    });
}

/// The worker's side: serves the library that the host names, over the socket that is its standard input. A program must call
/// it before anything else, while it has no other thread. It does not return.
pub fn child() -> ! {
    // The worker must not outlive the host.
    let _ = rustix::process::set_parent_process_death_signal(Some(rustix::process::Signal::KILL));
    match serve() {
        Ok(()) => std::process::exit(0),
        Err(error) => {
            eprintln!("credhost: a worker cannot start: {error}");
            std::process::exit(1)
        }
    }
}

fn serve() -> io::Result<()> {
    let socket = rustix::io::fcntl_dupfd_cloexec(io::stdin(), 3)?;
    let null = std::fs::File::options().read(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    drop(null);
    rustix::io::ioctl_fionbio(&socket, true)?;
    let inside = Arc::new(Inside::new(socket));
    let setup = inside.setup()?;
    let parent = rustix::process::getppid().map(|pid| pid.as_raw_nonzero().get().cast_unsigned());
    if parent != Some(setup.host) {
        // The host ended before the worker asked to be killed at its end.
        gone();
    }
    let _ = INSIDE.set(Arc::clone(&inside));
    if setup.confinement.isolation == Isolation::Sandbox {
        // In a sandbox it could keep as much as it liked in memory files.
        inside.out.lock().be_plain();
    }
    if let Err(why) = sandbox::confine(&setup.confinement, &setup.copy, &setup.folder) {
        inside.frames(&refused(&why));
        return Ok(());
    }
    match library::open(&setup.copy) {
        Ok(open) => {
            crash::watch(&inside.socket, open.code.clone());
            open.library.run(host(), 0);
            // It is not closed: its threads may run until the process ends.
            std::mem::forget(open);
        }
        Err(fault) => inside.frames(&refused(&fault.to_string())),
    }
    Ok(())
}
