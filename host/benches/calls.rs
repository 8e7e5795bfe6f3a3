//! Calls per second of the server's processor time, beside Twisted 26.10's and a server that only answers canned bytes.
//!
//! `cargo bench -p credhost` runs all three in turn on the same bytes, in one run, and prints ratios. Clients are raw sockets
//! that send a prepared request and count the bytes of the answer, so that their cost is the same for each server.
//! `CREDHOST_BEFORE=PROGRAM:LIBRARY` adds another credhost, with its own build of the fixture `my-service`, for comparison in
//! the same run.

use std::collections::{HashMap, VecDeque};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pb::{Broker, Event, Role, Target};
use system_tests::host::TestHome;
use system_tests::{build, python, workspace};

/// How long each measurement lasts.
const SPAN: Duration = Duration::from_secs(2);
/// The request number of every call, so that all answers have the same length.
const REQUEST: u64 = 200;

struct Server {
    name: &'static str,
    process: Child,
    address: SocketAddr,
    login: &'static str,
    /// Kept for as long as its host runs.
    _home: Option<TestHome>,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The request that a client repeats.
struct Load {
    name: &'static str,
    method: &'static str,
    arguments: Vec<u8>,
    connections: usize,
    in_flight: usize,
    /// Both ends run on one processor. Across processors, the bench would measure the machine's wake-ups.
    pinned: bool,
}

#[derive(Default)]
struct Figures {
    calls: u64,
    cpu: f64,
    latencies: Vec<Duration>,
}

fn main() {
    if let Some(lengths) = std::env::args().skip_while(|argument| argument != "--canned").nth(1) {
        return canned(&lengths);
    }
    // `cargo test --benches` runs this too, but there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let rows: Vec<HashMap<&str, serde_json::Value>> = (0..1000)
        .map(|id| HashMap::from([("id", id.into()), ("name", format!("name {id}").into()), ("score", 0.5.into())]))
        .collect();
    let load = |name, method, arguments, connections, in_flight, pinned| Load {
        name,
        method,
        arguments,
        connections,
        in_flight,
        pinned,
    };
    let bytes = jelly::Bytes(vec![b'x'; 64 << 10]);
    let of = |value: Result<Vec<u8>, jelly::Error>| value.expect("arguments can be written");
    let loads = [
        load("one at a time, one core", "add", of(jelly::to_vec(&(2, 3))), 1, 1, true),
        load("100 in flight", "add", of(jelly::to_vec(&(2, 3))), 1, 100, false),
        load("16 connections x 32", "add", of(jelly::to_vec(&(2, 3))), 16, 32, false),
        load("64 KiB echo", "blob", of(jelly::to_vec(&(bytes,))), 1, 4, false),
        load("1000 dicts of 3 keys", "rows", of(jelly::to_vec(&(rows,))), 1, 4, false),
    ];
    let ours = credhost("credhost", env!("CARGO_BIN_EXE_credhost").as_ref(), &build::release("my-service"));
    let before = std::env::var("CREDHOST_BEFORE").ok().map(|before| {
        let (program, library) = before.split_once(':').expect("CREDHOST_BEFORE=PROGRAM:LIBRARY");
        credhost("before", program.as_ref(), library.as_ref())
    });
    let twisted = twisted();
    println!(
        "{:24} {:>10} {:>13} {:>9} {:>9} {:>11} {:>10} {:>10}",
        "", "server", "calls/cpu-s", "p50 us", "p99 us", "to Twisted", "to canned", "to before"
    );
    // `cargo bench -p credhost -- dicts` runs the benches with this word in their name.
    let filter = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).unwrap_or_default();
    for load in loads.iter().filter(|load| load.name.contains(&filter)) {
        let answer = probe(&ours, load);
        let canned = canned_server(load, &answer);
        let servers = [Some(&ours), before.as_ref(), Some(&twisted), Some(&canned)];
        let figures: Vec<_> =
            servers.into_iter().flatten().map(|server| (server.name, measure(server, load))).collect();
        print(load.name, &figures);
    }
    if "connect + login".contains(&filter) {
        let servers = [Some(&ours), before.as_ref(), Some(&twisted)];
        let figures: Vec<_> = servers.into_iter().flatten().map(|server| (server.name, logins(server))).collect();
        print("connect + login", &figures);
    }
    if "idle".contains(&filter) {
        println!("\nresident memory per connection that is logged in and idle, in bytes");
        let all = [Some(&ours), before.as_ref(), Some(&twisted)].into_iter().flatten();
        let figures: Vec<(&str, u64)> = all.map(|server| (server.name, idle(server))).collect();
        let own = figures[0].1;
        for (name, bytes) in &figures {
            println!("{name:24} {bytes:>10} {:>13.2}x", own as f64 / (*bytes).max(1) as f64);
        }
    }
}

fn print(name: &str, figures: &[(&str, Figures)]) {
    let rate = |figures: &Figures| figures.calls as f64 / figures.cpu;
    let of = |server: &str| figures.iter().find(|(name, _)| *name == server).map(|(_, figures)| rate(figures));
    for (index, (server, measured)) in figures.iter().enumerate() {
        let mut sorted = measured.latencies.clone();
        sorted.sort_unstable();
        let at =
            |part: f64| sorted.get((sorted.len() as f64 * part) as usize).map_or(0.0, |time| time.as_secs_f64() * 1e6);
        let ratio = |other: Option<f64>| {
            other.map_or_else(|| "-".to_owned(), |other| format!("{:.2}x", rate(measured) / other))
        };
        println!(
            "{:24} {:>10} {:>13.0} {:>9.0} {:>9.0} {:>11} {:>10} {:>10}",
            if index == 0 { name } else { "" },
            server,
            rate(measured),
            at(0.5),
            at(0.99),
            ratio(of("twisted")),
            ratio(of("canned")),
            ratio(of("before")),
        );
    }
}

fn credhost(name: &'static str, program: &Path, library: &Path) -> Server {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["my service"]);
    home.configure(|config| format!("{config}\n[limits]\nper_source = 10000\n"));
    system_tests::host::put(library, &home.plugins().join("my_service.so"));
    let mut command = Command::new(program);
    command.arg("--home").arg(home.path()).args(["run", "--listen", "127.0.0.1:0"]);
    let mut process = command.stderr(Stdio::piped()).spawn().expect("the host runs");
    let mut lines = BufReader::new(process.stderr.take().expect("it has an output")).lines();
    let line = lines.by_ref().map_while(Result::ok).find(|line| line.contains("serving Perspective Broker on"));
    let address = line.and_then(|line| line.rsplit(' ').next()?.parse().ok()).expect("it says where it serves");
    std::thread::spawn(move || lines.count());
    Server { name, process, address, login: "alice/my service", _home: Some(home) }
}

fn twisted() -> Server {
    let mut command = Command::new(python::python());
    command.arg(workspace().join("tests/twisted/bench_server.py")).stdout(Stdio::piped());
    started("twisted", command, "alice")
}

fn canned_server(load: &Load, answer: &[u8]) -> Server {
    let request = request(load, 1).len();
    let mut command = Command::new(std::env::current_exe().expect("a bench knows its own path"));
    let hex = data_encoding::HEXLOWER.encode(answer);
    // A long answer does not fit into an argument, so only its length is passed.
    let answer = if answer.len() < 1000 { hex } else { format!("len{}", answer.len()) };
    command.args(["--canned", &format!("{request}:{answer}")]).stdout(Stdio::piped());
    started("canned", command, "")
}

fn started(name: &'static str, mut command: Command, login: &'static str) -> Server {
    let mut process = command.spawn().expect("the server runs");
    let mut line = String::new();
    BufReader::new(process.stdout.take().expect("it has an output")).read_line(&mut line).expect("it prints its port");
    let port: u16 = line.trim().parse().expect("it prints its port");
    Server { name, process, address: ([127, 0, 0, 1], port).into(), login, _home: None }
}

/// Answers every request, which has a fixed length, with the same bytes.
fn canned(lengths: &str) {
    let (request, answer) = lengths.split_once(':').expect("a length, and an answer");
    let request: usize = request.parse().expect("a length");
    let answer = match answer.strip_prefix("len") {
        Some(length) => vec![0; length.parse().expect("a length")],
        None => data_encoding::HEXLOWER.decode(answer.as_bytes()).expect("an answer"),
    };
    let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
    println!("{}", listener.local_addr().expect("an address").port());
    for stream in listener.incoming().flatten() {
        let answer = answer.clone();
        std::thread::spawn(move || {
            let mut stream = stream;
            let _ = stream.set_nodelay(true);
            let mut buffer = vec![0; 256 << 10];
            let (mut have, mut out) = (0, Vec::new());
            while let Ok(count @ 1..) = stream.read(&mut buffer) {
                have += count;
                out.clear();
                while have >= request {
                    have -= request;
                    out.extend_from_slice(&answer);
                }
                if stream.write_all(&out).is_err() {
                    return;
                }
            }
        });
    }
}

fn request(load: &Load, luid: u64) -> Vec<u8> {
    let mut broker: Broker<u64> = Broker::new(Role::Client, jelly::Limits::default(), 16);
    for _ in 1..REQUEST {
        broker.output.call(Target::Luid(luid), "", false, &[], &[]);
    }
    broker.output.bytes.clear();
    broker.output.call(Target::Luid(luid), load.method, true, &load.arguments, &[1, 0x80, 5, 0x87]);
    broker.output.bytes.clone()
}

/// Logs in. Returns the connection and the perspective's luid. The canned server needs no login.
fn login(server: &Server) -> (TcpStream, u64) {
    let mut stream = TcpStream::connect(server.address).expect("the server listens");
    stream.set_nodelay(true).expect("it is a TCP socket");
    if server.login.is_empty() {
        return (stream, 1);
    }
    let mut broker: Broker<u64> = Broker::new(Role::Client, jelly::Limits::default(), 16);
    let mut buffer = [0; 4096];
    let mut luid = None;
    let mut asked = false;
    loop {
        loop {
            let output = &mut broker.output;
            let Some(event) = broker.input.event(output).expect("it speaks PB") else {
                break;
            };
            match event {
                Event::Ready if !asked => {
                    asked = true;
                    let name = jelly::to_vec(&(jelly::Bytes::from(server.login),)).expect("a name");
                    output.call(Target::Name("root"), "login", true, &name, &[1, 0x80, 5, 0x87]);
                }
                Event::Answer { request: 1, value, .. } => {
                    let answer = jelly::Value::decode(value.bytes()).expect("a challenge");
                    let Some(jelly::Node::Bytes(challenge)) = answer.root().items().next().map(|item| item.node())
                    else {
                        panic!("no challenge: {answer}");
                    };
                    let password = credhost::cred::Password::new("alice-pw");
                    let proof = jelly::Bytes(credhost::cred::challenge_response(challenge, &password).to_vec());
                    let arguments = jelly::to_vec(&(proof, None::<()>)).expect("a proof");
                    let challenger = value.references()[0].luid.expect("a challenger");
                    output.call(Target::Luid(challenger), "respond", true, &arguments, &[1, 0x80, 5, 0x87]);
                    // As Twisted's own client does when it no longer needs the challenger.
                    output.release(challenger, 1);
                }
                Event::Answer { value, .. } => luid = value.references()[0].luid,
                Event::Error { failure, .. } => panic!("refused: {:?}", pb::Failure::read(failure.bytes())),
                _ => {}
            }
        }
        stream.write_all(&broker.output.bytes).expect("it reads");
        broker.output.bytes.clear();
        if let Some(luid) = luid {
            return (stream, luid);
        }
        let count = stream.read(&mut buffer).expect("it answers");
        assert!(count > 0, "it closed during login");
        broker.receive(&buffer[..count]);
    }
}

/// One call's answer.
fn probe(server: &Server, load: &Load) -> Vec<u8> {
    let (mut stream, luid) = login(server);
    stream.write_all(&request(load, luid)).expect("it reads");
    // Whatever was still on its way from the login has come before the answer; a second answer tells its length.
    let mut scanner = jelly::Scanner::new(jelly::Shape::Message, jelly::Limits::default());
    let mut bytes = Vec::new();
    let mut buffer = vec![0; 64 << 10];
    loop {
        let count = stream.read(&mut buffer).expect("it answers");
        assert!(count > 0, "it closed");
        bytes.extend_from_slice(&buffer[..count]);
        if let Some(scanned) = scanner.scan(&bytes).expect("it speaks PB") {
            let end = scanned.end;
            assert_eq!(bytes[2..4], [27, 0x87], "an answer, no error: {:?}", String::from_utf8_lossy(&bytes));
            return bytes[..end].to_vec();
        }
    }
}

/// Processor time of a process in seconds, over all its threads, including those that have ended. The kernel counts in
/// hundredths.
fn cpu(process: &Child) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.id())).unwrap_or_default();
    // The second field is a name in parentheses, which may hold anything.
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
    let ticks = |index: usize| fields.get(index).and_then(|field| field.parse::<f64>().ok()).unwrap_or(0.0);
    (ticks(11) + ticks(12)) / 100.0
}

fn pin(process: u32, processors: &str) {
    let pinned =
        Command::new("taskset").args(["-acp", processors, &process.to_string()]).stdout(Stdio::null()).status();
    assert!(pinned.is_ok_and(|status| status.success()), "taskset (util-linux) is needed to pin processes");
}

fn measure(server: &Server, load: &Load) -> Figures {
    // A canned server answers whatever it is asked: its answers are as long as ours.
    let length = if server.login.is_empty() { None } else { Some(probe(server, load).len()) };
    let connections: Vec<_> = (0..load.connections).map(|_| login(server)).collect();
    if load.pinned {
        pin(server.process.id(), "0");
        pin(std::process::id(), "0");
    }
    let length = length.unwrap_or_else(|| {
        let (mut stream, luid) = login(server);
        stream.write_all(&request(load, luid)).expect("it reads");
        stream.set_read_timeout(Some(Duration::from_millis(300))).expect("it is a socket");
        let mut bytes = Vec::new();
        let _ = stream.read_to_end(&mut bytes);
        bytes.len()
    });
    let before = cpu(&server.process);
    let until = Instant::now() + SPAN;
    let clients: Vec<_> = connections
        .into_iter()
        .map(|(stream, luid)| {
            let (request, in_flight) = (request(load, luid), load.in_flight);
            std::thread::spawn(move || drive(stream, &request, length, in_flight, until))
        })
        .collect();
    let mut figures = Figures::default();
    for client in clients {
        let (calls, latencies) = client.join().expect("no client fails");
        figures.calls += calls;
        figures.latencies.extend(latencies);
    }
    figures.cpu = cpu(&server.process) - before;
    if load.pinned {
        pin(server.process.id(), "0-1");
        pin(std::process::id(), "0-1");
    }
    figures
}

/// Keeps this many calls in flight; answers come in the order of the calls.
fn drive(
    mut stream: TcpStream,
    request: &[u8],
    length: usize,
    in_flight: usize,
    until: Instant,
) -> (u64, Vec<Duration>) {
    let mut buffer = vec![0; 256 << 10];
    let mut out = Vec::new();
    let mut sent = VecDeque::new();
    let (mut have, mut calls, mut latencies) = (0, 0, Vec::new());
    let mut room = in_flight;
    loop {
        let now = Instant::now();
        if now >= until && sent.is_empty() {
            return (calls, latencies);
        }
        if now < until && room > 0 {
            out.clear();
            for _ in 0..std::mem::take(&mut room) {
                out.extend_from_slice(request);
                sent.push_back(now);
            }
            stream.write_all(&out).expect("the server reads");
        }
        let count = stream.read(&mut buffer).expect("the server answers");
        assert!(count > 0, "the server closed");
        have += count;
        let now = Instant::now();
        while have >= length {
            have -= length;
            calls += 1;
            room += 1;
            latencies.extend(sent.pop_front().map(|sent| now - sent));
        }
    }
}

fn logins(server: &Server) -> Figures {
    let mut figures = Figures::default();
    let before = cpu(&server.process);
    let until = Instant::now() + SPAN;
    while Instant::now() < until {
        let start = Instant::now();
        drop(login(server));
        figures.latencies.push(start.elapsed());
        figures.calls += 1;
    }
    figures.cpu = cpu(&server.process) - before;
    figures
}

/// Resident memory of an idle, logged-in connection, in bytes.
fn idle(server: &Server) -> u64 {
    let memory = || {
        let status = std::fs::read_to_string(format!("/proc/{}/status", server.process.id())).unwrap_or_default();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default().to_owned();
        line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) * 1024
    };
    // These first logins make the allocator's one-time allocations.
    let first: Vec<_> = (0..100).map(|_| login(server)).collect();
    let before = memory();
    let more: Vec<_> = (0..800).map(|_| login(server)).collect();
    std::thread::sleep(Duration::from_secs(2));
    let after = memory();
    drop((first, more));
    after.saturating_sub(before) / 800
}
