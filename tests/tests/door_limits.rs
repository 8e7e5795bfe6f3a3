//! How much clients of services' own doors can make the host keep, and how slow they may be.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use system_tests::host::{TestHome, TestHost};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// A host with the service that takes commands, on a Unix socket, because its buffers are small. `limits` goes into `[limits]`,
/// `listener` into the listener.
fn told(limits: &str, listener: &str) -> (TestHost, std::path::PathBuf) {
    let home = TestHome::new();
    home.make();
    let socket = home.path().join("lines.sock");
    let listen = format!("lines = {{ address = \"unix:{}\"{listener} }}", socket.display());
    home.configure(|text| format!("{text}\n[limits]\n{limits}\n[service.lines.listen]\n{listen}\n"));
    home.identity("bob", PASSWORD, &["lines/one"]);
    home.install("lines");
    let mut host = home.start();
    host.wait_for("serving lines on ");
    (host, socket)
}

fn connect(socket: &Path) -> UnixStream {
    let client = UnixStream::connect(socket).expect("the door is open");
    client.set_read_timeout(Some(Duration::from_secs(60))).expect("it has a timeout");
    client
}

/// Reads a line, without its end.
fn line(client: &mut UnixStream) -> String {
    let mut line = Vec::new();
    let mut one = [0];
    while client.read(&mut one).expect("it answers") > 0 && one != *b"\n" {
        line.extend(one);
    }
    String::from_utf8(line).expect("it is text")
}

/// Makes a client ask for more than its socket holds; it reads none of it. False: the write failed.
fn asks_and_reads_nothing(client: &mut UnixStream) -> bool {
    client.write_all(&b"much 25000\n".repeat(12)).is_ok()
}

fn is_let_go(client: &UnixStream) -> bool {
    let mut polled = [PollFd::new(client, PollFlags::empty())];
    let now = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut polled, Some(&now)).expect("it can be looked at") > 0 && polled[0].revents().contains(PollFlags::HUP)
}

/// The host's used memory budget, in bytes.
fn used(host: &TestHost) -> f64 {
    let shown: serde_json::Value = serde_json::from_str(&host.home.run(&["limits", "--json"], "")).expect("it is JSON");
    let of_memory = |limit: &&serde_json::Value| limit["name"] == "memory";
    let limits = shown.as_array().or_else(|| shown["limits"].as_array()).expect("a list");
    let used = limits.iter().find(of_memory).and_then(|limit| limit["used"].as_str()).expect("it is there");
    used.trim_end_matches(" MiB").parse::<f64>().expect("a size") * f64::from(1 << 20)
}

#[test]
fn unread_door_output_counts_in_the_hosts_memory_budget() {
    let (host, socket) = told("memory = \"16 MiB\"\nstalled = \"1 h\"", ", connections = 500, per_source = 400");
    let mut bob = connect(&socket);
    writeln!(bob, "login bob {PASSWORD}").expect("it is taken");
    assert_eq!(line(&mut bob), "1: bob has one two".trim_end_matches(" two"));
    // Nobody has logged in on these connections, so they share their source's quota, a quarter of 16 MiB. At least 25 KiB wait
    // for each, and the stream itself counts for 8.
    let mut deaf: Vec<UnixStream> = (0..200).map(|_| connect(&socket)).collect();
    let asked = deaf.iter_mut().filter_map(|client| asks_and_reads_nothing(client).then_some(())).count();
    assert_eq!(asked, 200, "they were taken");
    let (began, mut alive) = (Instant::now(), 200);
    while alive == 200 || used(&host) < f64::from(2 << 20) {
        alive = deaf.iter().filter(|client| !is_let_go(client)).count();
        assert!(began.elapsed() < Duration::from_secs(60), "{alive} wait for bytes, {} are counted", used(&host));
    }
    assert!(alive > 50 && used(&host) < f64::from(6 << 20), "{alive} wait for bytes, {} are counted", used(&host));
    // Bob has a quota of his own.
    writeln!(bob, "much 25000").expect("it is taken");
    assert_eq!(line(&mut bob).len(), "2: ".len() + 25_000);
    // A disconnected client no longer counts; a client that reads after all gets everything.
    drop(deaf.split_off(1));
    let first = &mut deaf[0];
    if !is_let_go(first) {
        (1..=12)
            .for_each(|answer| assert_eq!(line(first).len(), format!("{answer}: ").len() + 25_000, "answer {answer}"));
    }
    let began = Instant::now();
    while used(&host) > f64::from(1 << 20) {
        assert!(began.elapsed() < Duration::from_secs(60), "{} bytes are still counted", used(&host));
    }
}

/// A client that only receives what others send is counted as well, and still is after the code is replaced.
#[test]
fn unread_output_of_a_silent_client_counts_after_a_reload_too() {
    let (host, socket) = told("stalled = \"1 h\"", "");
    let (mut deaf, mut talks) = (connect(&socket), connect(&socket));
    deaf.write_all(b"hear\n").expect("it is taken");
    assert_eq!(line(&mut deaf), "1: heard");
    let quiet = used(&host);
    // More than a socket holds, in short messages.
    let word = format!("tell {}\n", "x".repeat(500));
    for turn in 1..=560 {
        talks.write_all(word.as_bytes()).expect("it is taken");
        assert_eq!(line(&mut talks), format!("{turn}: 1"));
    }
    let counts = |what: &str| {
        let began = Instant::now();
        while used(&host) < quiet + 16_000.0 {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: {} are counted, {quiet} before", used(&host));
        }
    };
    counts("what waits for it");
    host.home.run(&["service", "reload", "lines"], "");
    counts("what the next code has of it");
}

/// When all that may wait for a service's clients is used, each of them still has some, as much as the operator says.
#[test]
fn each_client_has_its_part_when_the_service_has_used_all() {
    for (each, ended) in [("16 MiB", 0), ("256", 1)] {
        let limits = format!("stalled = \"1 h\"\ndoors.unread = 65536\ndoors.each = \"{each}\"");
        let (_host, socket) = told(&limits, "");
        let mut deaf: Vec<UnixStream> = (0..10).map(|_| connect(&socket)).collect();
        let taken = deaf.iter_mut().filter_map(|client| asks_and_reads_nothing(client).then_some(())).count();
        assert!(taken > 0);
        // What came before this was served before this is answered.
        let mut other = connect(&socket);
        for turn in 1..=20 {
            writeln!(other, "add").expect("it is taken");
            assert_eq!(line(&mut other).split(':').next(), Some(turn.to_string().as_str()));
        }
        let gone = || deaf.iter().filter(|client| is_let_go(client)).count();
        let began = Instant::now();
        while gone() < ended {
            assert!(began.elapsed() < Duration::from_secs(60), "{each}: none is gone");
        }
        assert_eq!(gone() > 0, ended > 0, "{each}");
    }
}

#[test]
fn a_listeners_time_limits_override_the_hosts() {
    let (_host, socket) =
        told("message = \"1 h\"\nstalled = \"1 h\"", ", message = \"1 s\", stalled = \"1 s\", rate = 100");
    let (mut slow, mut deaf, mut other) = (connect(&socket), connect(&socket), connect(&socket));
    slow.write_all(b"ad").expect("it is taken");
    asks_and_reads_nothing(&mut deaf);
    // Both are disconnected by the listener's own settings, not by `[limits]`; the other client is served meanwhile.
    let began = Instant::now();
    for turn in 1.. {
        other.write_all(b"add\n").expect("it is taken");
        assert_eq!(line(&mut other), format!("{turn}: {turn}"));
        if is_let_go(&slow) && is_let_go(&deaf) {
            break;
        }
        assert!(
            began.elapsed() < Duration::from_secs(60),
            "one is still there: {} {}",
            is_let_go(&slow),
            is_let_go(&deaf)
        );
        std::thread::sleep(Duration::from_millis(50));
    }
}
