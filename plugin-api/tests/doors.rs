//! The effects of a door's clients on the door, and on each other.
#![allow(missing_docs)]

use std::time::Duration;

use plugin_api::prelude::*;
use plugin_api::testing::{TestHost, TestStream};
use plugin_api::{Door, Input, Transport};

#[derive(Default)]
struct Workshop {
    done: u32,
    /// How many large answers were asked for.
    asked: usize,
}

#[service("workshop", save = "never")]
impl Service for Workshop {
    type Perspective = Worker;

    async fn start(_: Handle<Self>, context: Context<Self>) -> Result<()> {
        context.serve::<Lines>("lines")
    }
}

#[derive(Default)]
struct Worker;

#[perspective]
impl Worker {}

/// Answers lines: `login NAME`; `asked -`, with the number of `much` and `part` so far; `work MILLISECONDS`, with the number of pieces of work that were done; `rest SECONDS`, then
/// sleeps;
/// `much BYTES`, with that many bytes, then waits for room; `part BYTES`, the same without waiting.
struct Lines;

impl Door for Lines {
    type Service = Workshop;

    fn opened(_: &Context<Workshop>, _: &Transport) -> Result<Self> {
        Ok(Self)
    }

    async fn received(&mut self, context: &Context<Workshop>, transport: &Transport, input: &mut Input) -> Result<()> {
        while let Some(line) = input.line() {
            match line.split_once(' ') {
                Some(("login", name)) => {
                    let authorizer = context.authorizer();
                    authorizer.password(transport, name, "secret").await.map_err(|_| Fault::value("refused"))?;
                    transport.write(b"hello\n");
                }
                Some(("work", millis)) => {
                    let time = millis.parse().map_err(|_| Fault::value("a number"))?;
                    std::thread::sleep(Duration::from_millis(time));
                    let done = context.service()?.write(|workshop| {
                        workshop.done += 1;
                        workshop.done
                    })?;
                    transport.write(format!("{done}\n").as_bytes());
                }
                Some(("rest", seconds)) => {
                    transport.write(b"resting\n");
                    let seconds = seconds.parse().map_err(|_| Fault::value("a number"))?;
                    tokio::time::sleep(Duration::from_secs(seconds)).await;
                }
                Some(("much", bytes)) => {
                    let bytes = bytes.parse().map_err(|_| Fault::value("a number"))?;
                    context.service()?.write(|workshop| workshop.asked += 1)?;
                    transport.write(format!("{}\n", "x".repeat(bytes)).as_bytes());
                    transport.room().await;
                }
                Some(("part", bytes)) => {
                    let bytes = bytes.trim_end().parse().map_err(|_| Fault::value("a number"))?;
                    context.service()?.write(|workshop| workshop.asked += 1)?;
                    transport.write(format!("{}\n", "x".repeat(bytes)).as_bytes());
                }
                Some(("asked", _)) => {
                    let asked = context.service()?.read(|workshop| workshop.asked)?;
                    transport.write(format!("{asked}\n").as_bytes());
                }
                _ => return Err(Fault::value("no such word")),
            }
        }
        Ok(())
    }
}

fn host(paused: bool) -> TestHost<Workshop> {
    let host =
        if paused { TestHost::start_paused().expect("it goes on") } else { TestHost::start().expect("it goes on") };
    for name in ["flood", "bob", "alice"] {
        host.identity(name, "secret", &[]);
    }
    host
}

fn logged_in<'h>(host: &'h TestHost<Workshop>, name: &str) -> TestStream<'h, Workshop> {
    let mut client = host.connect("lines").expect("it goes on");
    client.send(format!("login {name}\n")).expect("it goes on");
    assert_eq!(client.line().expect("it goes on"), "hello");
    client
}

/// The number of questions that have begun when nothing more begins, because their client reads nothing.
fn begun(host: &TestHost<Workshop>) -> usize {
    let mut other = logged_in(host, "flood");
    let (mut before, mut now) = (1, 0);
    while now != before || now == 0 {
        host.settle().expect("it goes on");
        other.send("asked -\n").expect("it goes on");
        (before, now) = (now, other.line().expect("it goes on").parse().expect("a number"));
    }
    now
}

#[test]
fn many_connections_with_costly_lines_delay_nobody_for_long() {
    let host = host(false);
    let mut floods: Vec<_> = (0..20).map(|_| logged_in(&host, "flood")).collect();
    let mut bob = logged_in(&host, "bob");
    for flood in &mut floods {
        flood.send("work 1\n".repeat(200)).expect("it goes on");
    }
    let number = |bob: &mut TestStream<'_, Workshop>| {
        bob.send("work 0\n").expect("it goes on");
        bob.line().expect("it goes on").parse::<u32>().expect("it goes on")
    };
    let mut before = number(&mut bob);
    let mut between: Vec<u32> = (0..31)
        .map(|_| {
            let now = number(&mut bob);
            now - std::mem::replace(&mut before, now)
        })
        .collect();
    // In order of arrival, there would be twenty clients' lines between two of bob's. The median counts, because a test's
    // thread may have to wait for its machine.
    between.sort_unstable();
    assert!(between[15] <= 60, "lines of others between two of bob's: {between:?}");
    assert!(between.iter().sum::<u32>() > 31, "there was a flood: {between:?}");
}

#[test]
fn a_client_that_reads_late_is_not_read_but_loses_nothing() {
    let host = host(false);
    let mut client = logged_in(&host, "bob");
    // 3.2 MB of answers to short questions, where 256 KiB may wait.
    for _ in 0..100 {
        client.send("much 32000\n").expect("it goes on");
    }
    // 256 KiB, and what the socket keeps.
    let begun = begun(&host);
    assert!(begun < 50, "{begun} of 100 were read");
    for answer in 0..100 {
        assert_eq!(client.line().expect("it goes on").len(), 32_000, "answer {answer}");
    }
}

#[test]
fn a_client_that_does_not_read_is_not_read_by_any_door() {
    let host = host(false);
    let mut client = logged_in(&host, "bob");
    // 4 MB of answers, where 256 KiB may wait. Each question is as long as one read.
    for _ in 0..40 {
        client.send(format!("{:2000}\n", "part 100000")).expect("it goes on");
    }
    let begun = begun(&host);
    assert!(begun < 20, "{begun} of 40 were read");
    for answer in 0..40 {
        assert_eq!(client.line().expect("it goes on").len(), 100_000, "answer {answer}");
    }
}

#[test]
fn a_client_whose_message_stalls_is_disconnected() {
    let host = host(true);
    let (mut slow, mut silent) = (logged_in(&host, "bob"), logged_in(&host, "bob"));
    let mut steady = logged_in(&host, "bob");
    slow.send("work").expect("it goes on");
    for second in 0..30 {
        steady.send("0".repeat(if second == 0 { 0 } else { 600 })).expect("it goes on");
        if second == 0 {
            steady.send("work 0").expect("it goes on");
        }
        host.advance(Duration::from_secs(1)).expect("it goes on");
        // Once this is answered, the input has been seen.
        silent.send("much 1\n").expect("it goes on");
        assert_eq!(silent.line().expect("it goes on"), "x");
    }
    assert_eq!(slow.rest().expect("it goes on"), "", "it was let go");
    steady.send("\n").expect("it goes on");
    assert_eq!(steady.line().expect("it goes on"), "1", "17 kB, at 600 bytes a second");
    host.advance(Duration::from_secs(25)).expect("it goes on");
    for client in [&mut steady, &mut silent] {
        client.send("much 2\n").expect("it goes on");
        assert_eq!(client.line().expect("it goes on"), "xx", "who says nothing is not late");
    }
}

#[test]
fn a_client_that_reads_too_little_is_disconnected() {
    let host = host(true);
    let mut client = logged_in(&host, "bob");
    // More than a socket buffers.
    client.send("much 200000\n".repeat(100)).expect("it goes on");
    let mut other = logged_in(&host, "flood");
    for _ in 0..4 {
        host.advance(Duration::from_secs(10)).expect("it goes on");
        other.send("much 1\n").expect("it goes on");
        assert_eq!(other.line().expect("it goes on"), "x");
    }
    // The connection may be reset, because the client has asked for more.
    match client.rest() {
        Ok(text) => assert!(text.len() < 20_000_000, "it was let go"),
        Err(fault) => assert_ne!(fault.class(), "TimeoutError", "it was let go"),
    }
}

/// Work that has begun continues to its end. Input that had arrived but not begun is discarded.
#[test]
fn input_not_yet_processed_is_dropped_when_the_login_ends() {
    for revoked in [true, false] {
        let host = host(true);
        let mut alice = logged_in(&host, "alice");
        alice.send("rest 5\nwork 0\nwork 0\nrest 5\nwork 0\n").unwrap();
        assert_eq!(alice.line().unwrap(), "resting");
        if revoked {
            host.revoke("alice");
            // The next client is served after the revocation.
            drop(logged_in(&host, "flood"));
        }
        host.advance(Duration::from_secs(6)).unwrap();
        host.advance(Duration::from_secs(6)).unwrap();
        let mut bob = logged_in(&host, "bob");
        bob.send("work 0\n").unwrap();
        assert_eq!(bob.line().unwrap(), if revoked { "1" } else { "4" });
    }
}
