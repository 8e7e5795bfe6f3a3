//! The log cannot be written: its reader is gone, or does not read, or the disk is full, or there never was a standard error. The
//! host serves as before.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::process::{Child, ChildStderr, Stdio};
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost};

/// A running host, killed when it is dropped.
struct Running {
    child: Child,
    address: SocketAddr,
    /// The open end of its log, which nobody reads.
    _unread: Option<ChildStderr>,
}

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// An address that nobody listens on now: there is no readable log that could name one.
fn free() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").and_then(|listener| listener.local_addr()).expect("there is a port")
}

fn start(home: &TestHome, error: Stdio, address: SocketAddr) -> Child {
    let mut command = home.command();
    command.args(["run", "--listen", &address.to_string()]).env("CREDHOST_LOG", "trace");
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(error).spawn().expect("credhost runs")
}

/// Starts a host and reads its log until it serves.
fn read_until_it_serves(home: &TestHome) -> (Running, BufReader<ChildStderr>) {
    let child = start(home, Stdio::piped(), ([127, 0, 0, 1], 0).into());
    let mut running = Running { child, address: ([127, 0, 0, 1], 0).into(), _unread: None };
    let mut lines = BufReader::new(running.child.stderr.take().expect("it has one"));
    loop {
        let mut line = String::new();
        assert!(lines.read_line(&mut line).expect("it can be read") > 0, "it has ended");
        if let Some((_, address)) = line.trim().split_once("serving Perspective Broker on ") {
            running.address = address.parse().expect("the line ends with the address");
            return (running, lines);
        }
    }
}

fn whose_reader_goes(home: &TestHome) -> Running {
    read_until_it_serves(home).0
}

fn whose_reader_stops(home: &TestHome) -> Running {
    let (mut running, lines) = read_until_it_serves(home);
    running._unread = Some(lines.into_inner());
    running
}

fn without_room(home: &TestHome) -> Running {
    let full = OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let address = free();
    Running { child: start(home, full.into(), address), address, _unread: None }
}

fn without_standard_error(home: &TestHome) -> Running {
    let address = free();
    let own = home.command();
    let mut command = std::process::Command::new("sh");
    // The shell closes it.
    command.args(["-c", "exec \"$0\" \"$@\" 2>&-"]).arg(own.get_program()).args(own.get_args());
    command.args(["run", "--listen", &address.to_string()]).env("CREDHOST_LOG", "trace");
    command.envs(own.get_envs().filter_map(|(name, value)| Some((name, value?))));
    let child = command.stdin(Stdio::null()).stdout(Stdio::null()).spawn().expect("a shell runs");
    Running { child, address, _unread: None }
}

/// Connects, reads the offered dialects, sends nonsense, and is disconnected: each causes a line in the log.
fn nonsense(address: SocketAddr) {
    let deadline = Instant::now() + Duration::from_secs(60);
    let mut stream = loop {
        match TcpStream::connect(address) {
            Ok(stream) => break stream,
            Err(error) => assert!(Instant::now() < deadline, "it does not serve: {error}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    };
    stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a limit");
    let mut offer = [0; 8];
    stream.read_exact(&mut offer).expect("it offers its dialects, whatever became of its log");
    stream.write_all(&[0xff; 100]).expect("it takes them");
    // The host closes or resets the connection: it does not read all of that.
    let _ = stream.read_to_end(&mut Vec::new());
}

#[test]
fn a_log_that_cannot_be_written_stops_nobody() {
    type Start = fn(&TestHome) -> Running;
    let rows: [(&str, Start, bool); 4] = [
        ("its reader has gone", whose_reader_goes, true),
        ("its reader reads no more", whose_reader_stops, false),
        ("there is no room", without_room, true),
        ("there was no standard error", without_standard_error, false),
    ];
    for (what, start, lost) in rows {
        let home = TestHome::new();
        home.make();
        home.identity("alice", "correct horse battery", &[]);
        let mut running = start(&home);
        // More lines than a pipe buffers, on every thread.
        for _ in 0..600 {
            nonsense(running.address);
        }
        let found = home.run(&["doctor"], "");
        let told = found.contains("lines of the log were lost") || found.contains("line of the log was lost");
        assert_eq!(told, lost, "{what}: {found}");
        assert!(home.run(&["identity", "list"], "").contains("alice"), "{what}");
        assert_eq!(running.child.try_wait().expect("it can be asked"), None, "{what}");
        let process = rustix::process::Pid::from_raw(running.child.id().cast_signed()).expect("it has a number");
        rustix::process::kill_process(process, rustix::process::Signal::TERM).expect("it can be told");
        let deadline = Instant::now() + Duration::from_secs(30);
        while running.child.try_wait().expect("it can be asked").is_none() {
            assert!(Instant::now() < deadline, "{what}: it does not end");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Clients cause log lines: each kind has a limit, and the host counts the rest.
#[test]
fn a_crowd_cannot_fill_the_log() {
    let mut host = TestHost::with(&[]);
    for _ in 0..1000 {
        nonsense(host.address());
    }
    host.wait_for("more lines like this left out: connection closed: ");
    let log = host.log();
    let count = |text: &str| log.lines().filter(|line| line.contains(text) && !line.contains("like this")).count();
    assert!((300..600).contains(&count("INFO connection closed: ")), "{} lines", count("INFO connection closed: "));
    assert!(host.home.run(&["identity", "list"], "").contains("alice"));
}
