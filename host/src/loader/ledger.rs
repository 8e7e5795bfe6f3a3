//! What libraries leave in the process: threads, keys of thread-local storage, destructors of thread-locals.
//!
//! Interposes four functions of the system: the program exports them (`build.rs`), so a library that is opened finds these
//! first. Each forwards the call, and records it by the address of the code that it was given, which shows whose it is. Without
//! them, every copy of Rust's standard library leaks a key, and the 1,023rd library ends the process.
//!
//! A fuzz target is the only program that leaves them to the system: the address sanitizer defines its own.
//!
//! Nothing here may use a thread-local with a destructor, or a lock that does: it would re-enter this module.

use std::ffi::{c_char, c_int, c_void};
use std::ops::Range;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// A library's thread.
#[derive(Debug, Clone)]
struct Thread {
    number: u64,
    start: usize,
    /// The thread that created it. The new thread may run another library's code, on behalf of this one.
    maker: i32,
    /// The system's id for it; 0 until it runs.
    tid: i32,
    /// Its function has returned; destructors may still run.
    ending: bool,
}

#[derive(Debug)]
struct Ledger {
    next: u64,
    threads: Vec<Thread>,
    /// Keys, each with the address of its destructor.
    keys: Vec<(libc::pthread_key_t, usize)>,
    /// Destructors of thread-locals, each with the thread that it will run on.
    pins: Vec<(usize, i32)>,
}

static LEDGER: Mutex<Ledger> = Mutex::new(Ledger { next: 0, threads: Vec::new(), keys: Vec::new(), pins: Vec::new() });

/// With more entries than this, those of ended threads are removed.
const MANY: usize = 64;

fn ledger() -> MutexGuard<'static, Ledger> {
    LEDGER.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What still holds a library.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Holder {
    /// A thread that the library started, by its name.
    Thread(String),
    /// A thread-local of the library on a thread that still lives.
    ThreadLocal(String),
    /// A signal that the library handles, by its number.
    Signal(i32),
}

impl std::fmt::Display for Holder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Thread(name) => write!(f, "its thread {name}, which it started, still runs"),
            Self::ThreadLocal(name) => write!(f, "the thread {name} holds a thread-local of it"),
            Self::Signal(number) => write!(f, "it handles signal {number}, which may arrive at any time"),
        }
    }
}

/// Whether libraries of this process find these functions. If not, no library may ever be closed.
#[must_use]
pub fn works() -> bool {
    // SAFETY: the name is a C string; the answer is only compared.
    let found = unsafe { libc::dlsym(libc::RTLD_DEFAULT, c"pthread_key_create".as_ptr()) };
    std::ptr::eq(found, pthread_key_create as *const c_void)
}

/// What holds code in this range of addresses. `main` is the library's own thread. Threads count that run this code, or that it
/// or they have created.
#[must_use]
pub fn holders(code: &Range<usize>, main: i32) -> Vec<Holder> {
    let mut ledger = ledger();
    ledger.forget_ended();
    let mut holders: Vec<Holder> = Vec::new();
    let mut makers = vec![main];
    let mut left: Vec<&Thread> = ledger.threads.iter().collect();
    // A thread that was created later may have created another that is listed before it.
    while let Some(at) = left.iter().position(|thread| code.contains(&thread.start) || makers.contains(&thread.maker)) {
        let thread = left.swap_remove(at);
        makers.push(thread.tid);
        holders.push(Holder::Thread(name(thread.tid)));
    }
    for (_, tid) in ledger.pins.iter().filter(|(destructor, _)| code.contains(destructor)) {
        let holder = Holder::ThreadLocal(name(*tid));
        let own = ledger.threads.iter().any(|thread| thread.tid == *tid && code.contains(&thread.start));
        if !own && !holders.contains(&holder) {
            holders.push(holder);
        }
    }
    holders.extend(signals(code).into_iter().map(Holder::Signal));
    holders
}

/// The signals whose handler is in this range of addresses. If one arrives after the code is gone, the process ends.
fn signals(code: &Range<usize>) -> Vec<i32> {
    let handles = |signal: &i32| {
        let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
        // SAFETY: no new action is given, so nothing changes; the present one is written to where there is room for it. Where
        // the call fails (the C library keeps some signals to itself) it is what it was: zeroed, which is a valid value.
        let action = unsafe {
            libc::sigaction(*signal, std::ptr::null(), action.as_mut_ptr());
            action.assume_init()
        };
        code.contains(&action.sa_sigaction)
    };
    (1..=libc::SIGRTMAX()).filter(handles).collect()
}

/// Deletes the keys whose destructors are in this range, because nobody else will. Returns their number.
pub fn delete_keys(code: &Range<usize>) -> usize {
    let keys: Vec<libc::pthread_key_t> = {
        let mut ledger = ledger();
        let (of, others) = ledger.keys.iter().copied().partition(|(_, destructor)| code.contains(destructor));
        ledger.keys = others;
        let of: Vec<_> = of;
        of.into_iter().map(|(key, _)| key).collect()
    };
    for key in &keys {
        // SAFETY: the key was made by a library that is about to be closed, whose threads have ended: nobody uses it.
        unsafe { libc::pthread_key_delete(*key) };
    }
    keys.len()
}

/// The number of entries of all kinds. It must not grow without bound.
#[must_use]
pub fn entries() -> usize {
    let mut ledger = ledger();
    ledger.forget_ended();
    ledger.threads.len() + ledger.keys.len() + ledger.pins.len()
}

/// How many of the system's 1,024 keys for thread-local storage are in use in this process, whoever created them.
#[must_use]
pub fn keys_in_use() -> usize {
    const ALL: usize = 1024;
    let mut free: Vec<libc::pthread_key_t> = Vec::new();
    for _ in 0..ALL {
        let mut key = 0;
        // SAFETY: the key is written by the call, and has no destructor.
        if unsafe { pthread_key_create(&raw mut key, None) } != 0 {
            break;
        }
        free.push(key);
    }
    for key in &free {
        // SAFETY: it was made above, and nobody else knows it.
        unsafe { pthread_key_delete(*key) };
    }
    ALL - free.len()
}

impl Ledger {
    fn forget_ended(&mut self) {
        self.threads.retain(|thread| !thread.ending || alive(thread.tid));
        self.pins.retain(|(_, tid)| alive(*tid));
    }
}

fn alive(tid: i32) -> bool {
    std::path::Path::new("/proc/self/task").join(tid.to_string()).exists()
}

fn name(tid: i32) -> String {
    let name = std::fs::read_to_string(format!("/proc/self/task/{tid}/comm"));
    name.map_or_else(|_| tid.to_string(), |name| format!("{} ({tid})", name.trim()))
}

/// Whether an address is in this program itself, which is never closed.
fn own(address: usize) -> bool {
    unsafe extern "C" {
        // Where the linker puts the program.
        static __executable_start: c_char;
        static _end: c_char;
    }
    // This takes only their addresses, which every program has.
    let range = (&raw const __executable_start) as usize..(&raw const _end) as usize;
    range.contains(&address)
}

/// The system's function of this name, behind this module's.
fn system(known: &AtomicUsize, name: &std::ffi::CStr) -> usize {
    let address = known.load(Ordering::Relaxed);
    if address != 0 {
        return address;
    }
    // SAFETY: the name is a C string, and this is called from the program, after which the system's libraries come.
    let found = unsafe { libc::dlsym(libc::RTLD_NEXT, name.as_ptr()) } as usize;
    if found == 0 {
        // Every process has these four functions. Without them, nothing can continue.
        std::process::abort();
    }
    known.store(found, Ordering::Relaxed);
    found
}

type Start = extern "C-unwind" fn(*mut c_void) -> *mut c_void;
type Destructor = unsafe extern "C" fn(*mut c_void);

struct Begin {
    start: Start,
    argument: *mut c_void,
    number: u64,
}

/// Records that a thread is ending, however that comes about.
struct End(u64);

impl Drop for End {
    fn drop(&mut self) {
        let mut ledger = ledger();
        let number = self.0;
        if let Some(thread) = ledger.threads.iter_mut().find(|thread| thread.number == number) {
            thread.ending = true;
        }
    }
}

extern "C-unwind" fn trampoline(argument: *mut c_void) -> *mut c_void {
    // SAFETY: `pthread_create` below made it from a box, for this call alone.
    let begin = unsafe { Box::from_raw(argument.cast::<Begin>()) };
    let Begin { start, argument, number } = *begin;
    // SAFETY: it takes nothing and cannot fail.
    let tid = unsafe { libc::gettid() };
    if let Some(thread) = ledger().threads.iter_mut().find(|thread| thread.number == number) {
        thread.tid = tid;
    }
    let _end = End(number);
    start(argument)
}

/// The system's `pthread_create`, with an entry for a library's thread.
///
/// # Safety
/// As the system's.
#[cfg_attr(not(fuzzing), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_create(
    thread: *mut libc::pthread_t,
    attributes: *const libc::pthread_attr_t,
    start: Start,
    argument: *mut c_void,
) -> c_int {
    type Create = unsafe extern "C" fn(*mut libc::pthread_t, *const libc::pthread_attr_t, Start, *mut c_void) -> c_int;
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    let address = system(&KNOWN, c"pthread_create");
    // SAFETY: the system's function of that name has this type (`start`'s may unwind, as a cancelled thread's does).
    let create = unsafe { std::mem::transmute::<usize, Create>(address) };
    if own(start as usize) {
        // SAFETY: the caller's promises are handed on.
        return unsafe { create(thread, attributes, start, argument) };
    }
    let number = {
        let mut ledger = ledger();
        if ledger.threads.len() > MANY {
            ledger.forget_ended();
        }
        ledger.next += 1;
        let number = ledger.next;
        // SAFETY: it takes nothing and cannot fail.
        let maker = unsafe { libc::gettid() };
        ledger.threads.push(Thread { number, start: start as usize, maker, tid: 0, ending: false });
        number
    };
    let begin = Box::into_raw(Box::new(Begin { start, argument, number }));
    // SAFETY: the caller's promises are handed on; the trampoline takes the box it is given, once.
    let result = unsafe { create(thread, attributes, trampoline, begin.cast()) };
    if result != 0 {
        ledger().threads.retain(|thread| thread.number != number);
        // SAFETY: no thread was made that could have taken it.
        drop(unsafe { Box::from_raw(begin) });
    }
    result
}

/// The system's `pthread_key_create`, with an entry for a library's key.
///
/// # Safety
/// As the system's.
#[cfg_attr(not(fuzzing), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_key_create(key: *mut libc::pthread_key_t, destructor: Option<Destructor>) -> c_int {
    type Create = unsafe extern "C" fn(*mut libc::pthread_key_t, Option<Destructor>) -> c_int;
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    let address = system(&KNOWN, c"pthread_key_create");
    // SAFETY: the system's function of that name has this type.
    let create = unsafe { std::mem::transmute::<usize, Create>(address) };
    // SAFETY: the caller's promises are handed on.
    let result = unsafe { create(key, destructor) };
    if let (0, Some(destructor)) = (result, destructor)
        && !own(destructor as usize)
    {
        // SAFETY: the function has succeeded, and has written the key.
        let key = unsafe { *key };
        ledger().keys.push((key, destructor as usize));
    }
    result
}

/// The system's `pthread_key_delete`; it also removes the entry.
///
/// # Safety
/// As the system's.
#[cfg_attr(not(fuzzing), unsafe(no_mangle))]
pub unsafe extern "C" fn pthread_key_delete(key: libc::pthread_key_t) -> c_int {
    type Delete = unsafe extern "C" fn(libc::pthread_key_t) -> c_int;
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    let address = system(&KNOWN, c"pthread_key_delete");
    // SAFETY: the system's function of that name has this type.
    let delete = unsafe { std::mem::transmute::<usize, Delete>(address) };
    // First: once the key is deleted, another thread may get the same one.
    ledger().keys.retain(|(known, _)| *known != key);
    // SAFETY: the caller's promises are handed on.
    unsafe { delete(key) }
}

/// The C library's `__cxa_thread_atexit_impl`, with an entry for a library's thread-local.
///
/// # Safety
/// As the C library's.
#[cfg_attr(not(fuzzing), unsafe(no_mangle))]
pub unsafe extern "C" fn __cxa_thread_atexit_impl(
    destructor: Destructor,
    object: *mut c_void,
    library: *mut c_void,
) -> c_int {
    type AtExit = unsafe extern "C" fn(Destructor, *mut c_void, *mut c_void) -> c_int;
    static KNOWN: AtomicUsize = AtomicUsize::new(0);
    let address = system(&KNOWN, c"__cxa_thread_atexit_impl");
    // SAFETY: the C library's function of that name has this type.
    let at_exit = unsafe { std::mem::transmute::<usize, AtExit>(address) };
    if !own(destructor as usize) {
        // SAFETY: it takes nothing and cannot fail.
        let tid = unsafe { libc::gettid() };
        let mut ledger = ledger();
        if ledger.pins.len() > MANY && ledger.pins.len().is_power_of_two() {
            ledger.forget_ended();
        }
        let entry = (destructor as usize, tid);
        if !ledger.pins.contains(&entry) {
            ledger.pins.push(entry);
        }
    }
    // SAFETY: the caller's promises are handed on.
    unsafe { at_exit(destructor, object, library) }
}
