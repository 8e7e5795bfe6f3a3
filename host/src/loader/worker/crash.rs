//! Where a worker crashed: the signal's handler reports it to the host, as the last action of the process.
//!
//! The handler runs on a stack of its own, so that it can also report a stack overflow. It walks the stack with the unwinder
//! that panics use, writes the addresses to the socket, and lets the signal end the process. It takes no lock and allocates no
//! memory.

use std::ffi::{c_int, c_void};
use std::ops::Range;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

use super::wire::{HEADER, Header, Kind};

/// The most addresses that are reported.
const MOST: usize = 32;
/// The size of the handler's stack, in bytes: unwinding takes a few KiB.
const STACK: usize = 256 << 10;

static SOCKET: AtomicI32 = AtomicI32::new(-1);
static START: AtomicUsize = AtomicUsize::new(0);
static END: AtomicUsize = AtomicUsize::new(0);
/// A message to the host is in progress, from any thread.
pub(super) static SENDING: AtomicBool = AtomicBool::new(false);
static CRASHING: AtomicBool = AtomicBool::new(false);

const SIGNALS: [c_int; 6] = [libc::SIGSEGV, libc::SIGBUS, libc::SIGILL, libc::SIGFPE, libc::SIGABRT, libc::SIGTRAP];

/// Installs the handler for this process. `code` is where the library is mapped.
pub(super) fn watch(socket: &OwnedFd, code: Option<Range<usize>>) {
    let Some(code) = code else { return };
    SOCKET.store(socket.as_raw_fd(), Ordering::Relaxed);
    START.store(code.start, Ordering::Relaxed);
    END.store(code.end, Ordering::Relaxed);
    // Once per process, for its lifetime.
    let stack: &'static mut [u8] = Box::leak(vec![0; STACK].into());
    let alternative = libc::stack_t { ss_sp: stack.as_mut_ptr().cast::<c_void>(), ss_flags: 0, ss_size: STACK };
    // SAFETY: the stack is memory of its own, and stays; nothing else of this thread's uses it.
    unsafe { libc::sigaltstack(&raw const alternative, std::ptr::null_mut()) };
    for signal in SIGNALS {
        // SAFETY: all-zero is a valid `sigaction`: no flags, an empty mask.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = handle as *const () as usize;
        action.sa_flags = libc::SA_ONSTACK | libc::SA_RESETHAND;
        // SAFETY: the handler is a function of the kind that is asked for without SA_SIGINFO, and does only what a handler may: see
        // there. What it was before ends the process, too.
        unsafe { libc::sigaction(signal, &raw const action, std::ptr::null_mut()) };
    }
}

/// What the walk up the stack has found.
struct Found {
    at: [u64; MOST],
    count: usize,
}

extern "C" fn handle(signal: c_int) {
    if !CRASHING.swap(true, Ordering::SeqCst) && !SENDING.load(Ordering::SeqCst) {
        let mut found = Found { at: [0; MOST], count: 0 };
        // SAFETY: the callback is of the kind that is asked for, and is given what it expects. Walking takes the locks of no
        // allocator; if the stack is so damaged that walking crashes, the signal's old action, which was put back before this
        // handler was called, ends the process.
        unsafe { _Unwind_Backtrace(step, (&raw mut found).cast::<c_void>()) };
        let mut message = [0; HEADER + MOST * 8];
        let length = found.count * 8;
        let header = Header { length: length as u32, kind: Kind::Crash, large: false, descriptors: 0 };
        message[..HEADER].copy_from_slice(&header.bytes());
        for (place, at) in message[HEADER..].chunks_exact_mut(8).zip(found.at) {
            place.copy_from_slice(&at.to_le_bytes());
        }
        let socket = SOCKET.load(Ordering::Relaxed);
        // SAFETY: it writes bytes of this stack; it may be called by a handler (signal-safety(7)). No message of
        // another thread's is under way, as was just seen; one that begins now waits for its turn in the kernel.
        unsafe { libc::write(socket, message.as_ptr().cast::<c_void>(), HEADER + length) };
    }
    // By now the action is the default: it ends the process as soon as this handler has returned.
    // SAFETY: both may be called by a handler.
    unsafe {
        libc::signal(signal, libc::SIG_DFL);
        libc::raise(signal);
    }
}

extern "C" fn step(context: *mut c_void, found: *mut c_void) -> c_int {
    // SAFETY: the context is what the walk has handed over, for this call.
    let address = unsafe { _Unwind_GetIP(context) };
    // SAFETY: it is what `handle` has handed to the walk, which has it alone until the walk has returned.
    let found = unsafe { &mut *found.cast::<Found>() };
    let (start, end) = (START.load(Ordering::Relaxed), END.load(Ordering::Relaxed));
    if (start..end).contains(&address)
        && let Some(place) = found.at.get_mut(found.count)
    {
        *place = (address - start) as u64;
        found.count += 1;
    }
    0
}

// The unwinder that panics use: every Rust program has it.
unsafe extern "C" {
    fn _Unwind_Backtrace(step: extern "C" fn(*mut c_void, *mut c_void) -> c_int, found: *mut c_void) -> c_int;
    fn _Unwind_GetIP(context: *mut c_void) -> usize;
}
