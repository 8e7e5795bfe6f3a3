//! A client that reads nothing costs the host hardly any memory. This test has a process of its own, because it
//! measures the memory of the process.

use std::io::Write;
use std::time::Duration;

use credhost::session::Limits;
use system_tests::embedded::{Embedded, RawClient};
use system_tests::wire::call;

const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];

#[test]
fn a_client_that_reads_nothing_is_dropped_within_bounds() {
    let mut limits = Limits { stalled: Duration::from_millis(300), ..Limits::default() };
    limits.after.unread = 100_000;
    let host = Embedded::start(limits);
    let mut client = RawClient::login(host.address(), "alice");
    let before = memory("VmRSS:");
    // More than the system's own buffers hold.
    for _ in 0..400 {
        client.begin("blob", &(600_000,));
    }
    let mut seen = 0;
    // The client reads nothing until the host has given up. It notices the end by writing.
    while client.wire.stream.write_all(&call(1, Ok(1), "x", &EMPTY)).is_ok() && seen < 2000 {
        std::thread::sleep(Duration::from_millis(5));
        seen += 1;
    }
    assert!(seen < 2000, "it was not let go");
    let most = memory("VmHWM:").saturating_sub(before);
    println!("400 answers of 600 kB took {} MB at most", most >> 20);
    assert!(most < 60 << 20, "400 answers of 600 kB were not all kept: {most} bytes");
}

/// Returns the system's figure for this process's memory, in bytes.
fn memory(which: &str) -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with(which)).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) * 1024
}
