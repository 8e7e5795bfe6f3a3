//! A call makes few allocations, and their number does not grow; a connection that waits keeps little memory.

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use credhost::session::Limits;
use system_tests::embedded::{Embedded, RawClient};

struct Counting;

static ALLOCATIONS: AtomicU64 = AtomicU64::new(0);
/// Bytes that are allocated now.
static LIVE: AtomicI64 = AtomicI64::new(0);

fn size(layout: Layout) -> i64 {
    i64::try_from(layout.size()).unwrap_or(i64::MAX)
}

// A test's allocation counter: one of the exceptions that `structure.rs` lists.
#[allow(unsafe_code)]
// SAFETY: every call is handed on to the system's allocator as it came; counting touches nothing else.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.fetch_add(1, Ordering::Relaxed);
        LIVE.fetch_add(size(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, pointer: *mut u8, layout: Layout) {
        LIVE.fetch_sub(size(layout), Ordering::Relaxed);
        // SAFETY: as the caller promises: the pointer came from `alloc` above, that is, from the system's.
        unsafe { System.dealloc(pointer, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

/// Sends the calls, then reads all their answers; returns the allocations for each call, including those of this test's own
/// client.
fn allocations_per_call(client: &mut RawClient, calls: u64) -> f64 {
    let mut bytes = Vec::new();
    for request in 0..calls {
        let arguments = [2, 0x80, 11, 0x87, 5, 0x81];
        bytes.extend(system_tests::wire::call(1000 + request % 100, Ok(client.perspective), "echo_int", &arguments));
    }
    // (answer 1000.. 5): nine bytes each.
    let wanted = usize::try_from(calls).expect("few") * 9;
    client.wire.received = Vec::with_capacity(wanted + (64 << 10));
    let before = ALLOCATIONS.load(Ordering::Relaxed);
    for piece in bytes.chunks(4000) {
        client.wire.send(piece);
    }
    while client.wire.received.len() < wanted {
        assert!(client.wire.read(), "it closed");
    }
    (ALLOCATIONS.load(Ordering::Relaxed) - before) as f64 / calls as f64
}

#[test]
fn a_small_call_allocates_next_to_nothing() {
    let _alone = ALONE.lock().expect("no test has panicked");
    let host = Embedded::start(Limits::default());
    let mut client = RawClient::login(host.address(), "alice");
    // Let the buffers grow to their final size first.
    allocations_per_call(&mut client, 2000);
    client = RawClient::login(host.address(), "alice");
    allocations_per_call(&mut client, 2000);
    client.wire.received.clear();
    let each = allocations_per_call(&mut client, 5000);
    println!("{each:.2} allocations a call");
    assert!(each < 3.0, "{each} allocations a call");
}

/// The tests in this file count allocations of the whole process, so they run one at a time.
static ALONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

/// The bytes that are allocated once connections release no more. A busy connection keeps buffers ready and releases them after
/// some quiet milliseconds; this returns once nothing has been released for a second.
fn at_rest() -> i64 {
    let mut least = LIVE.load(Ordering::Relaxed);
    let mut since = std::time::Instant::now();
    while since.elapsed() < std::time::Duration::from_secs(1) {
        std::thread::sleep(std::time::Duration::from_millis(10));
        let now = LIVE.load(Ordering::Relaxed);
        if now < least {
            (least, since) = (now, std::time::Instant::now());
        }
    }
    least
}

#[test]
fn an_idle_logged_in_connection_keeps_little_memory() {
    const CONNECTIONS: usize = 400;
    let _alone = ALONE.lock().expect("no test has panicked");
    let host = Embedded::start(Limits { per_source: 10_000, ..Limits::default() });
    let login = || {
        let mut client = RawClient::login(host.address(), "alice");
        client.wire.received = Vec::new();
        client
    };
    let first: Vec<RawClient> = (0..50).map(|_| login()).collect();
    let before = at_rest();
    let more: Vec<RawClient> = (0..CONNECTIONS).map(|_| login()).collect();
    // The memory of the host's connections, of this test's connections, and of the tables that hold them.
    let each = (at_rest() - before) / CONNECTIONS as i64;
    println!("{each} bytes for each connection");
    assert!(each < 6 << 10, "{each} bytes for each connection");
    drop((first, more));
}
