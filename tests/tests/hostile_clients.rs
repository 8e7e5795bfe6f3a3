//! What one ordinary account, or a stranger, can do to a host and to its other clients. Each row is an attack; the table shows
//! its cost, and the worst delay that another client saw meanwhile. The process is limited to 512 MiB, clients included.
//!
//! `cargo test -p system-tests --test hostile_clients -- --nocapture` prints the table. "Before" is the cost of the same attack
//! before the limits existed, where it was measured.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use credhost::session::Limits;
use jelly::token;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::time::{ClockId, clock_gettime};
use system_tests::embedded::{Embedded, RawClient, WAITING};
use system_tests::jelly_bytes::{int, list, text};
use system_tests::wire::{Wire, call};

/// The process's memory limit.
const MEMORY: u64 = 512 << 20;

/// Keeps a client from waiting for a host that does not read.
fn hurried(wire: &Wire) {
    wire.stream.set_write_timeout(Some(Duration::from_millis(100))).expect("a timeout can be set");
}

fn client(host: &Embedded) -> RawClient {
    let client = RawClient::login(host.address(), "alice");
    hurried(&client.wire);
    client
}

fn stranger(host: &Embedded) -> Wire {
    let wire = Wire::connect(host.address());
    hurried(&wire);
    wire
}

fn string(length: usize) -> Vec<u8> {
    let mut out = Vec::new();
    token::bytes(&mut out, &vec![b'x'; length]);
    out
}

fn dereferences(count: u64, before: bool, size: u64) -> Vec<u8> {
    let definition = list("reference", [int(1), list("list", (0..size).map(int))]);
    let uses = (0..count).map(|_| list("dereference", [int(1)]));
    let all: Vec<Vec<u8>> =
        if before { uses.chain([definition]).collect() } else { [definition].into_iter().chain(uses).collect() };
    list("list", all)
}

fn tuple(value: Vec<u8>) -> Vec<u8> {
    list("tuple", [value])
}

/// This many calls in one buffer.
fn calls(count: u64, target: Result<u64, &str>, method: &str, arguments: &[u8]) -> Vec<u8> {
    (0..count).flat_map(|request| call(request + 1000, target, method, arguments)).collect()
}

/// The connections that are held while another client is measured.
type Held = Vec<Box<dyn std::any::Any>>;
type Attack = fn(&Embedded) -> Held;

fn held<T: 'static>(items: impl IntoIterator<Item = T>) -> Held {
    items.into_iter().map(|item| Box::new(item) as Box<dyn std::any::Any>).collect()
}

/// Each client sends this many calls to its perspective's method, and reads nothing.
fn sends(host: &Embedded, clients: usize, count: u64, method: &str, arguments: &[u8]) -> Held {
    held((0..clients).map(|_| {
        let mut client = client(host);
        let bytes = calls(count, Ok(client.perspective), method, arguments);
        client.wire.send(&bytes);
        client
    }))
}

/// Each logged-in client sends these bytes.
fn raw(host: &Embedded, clients: usize, bytes: &[u8]) -> Held {
    held((0..clients).map(|_| {
        let mut client = client(host);
        client.wire.send(bytes);
        client
    }))
}

/// Each stranger sends these bytes.
fn strange(host: &Embedded, clients: usize, bytes: &[u8]) -> Held {
    held((0..clients).map(|_| {
        let mut wire = stranger(host);
        wire.send(bytes);
        wire
    }))
}

fn message(command: &str, numbers: &[u64]) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, numbers.len() + 1);
    token::bytes(&mut out, command.as_bytes());
    numbers.iter().for_each(|number| token::uint(&mut out, *number));
    out
}

/// The first bytes, this many, of an unfinished message.
fn half(size: usize) -> Vec<u8> {
    let whole = call(1, Ok(1), "echo", &tuple(list("list", (0..size / 500_000 + 1).map(|_| string(500_000)))));
    whole[..size.min(whole.len() - 1)].to_vec()
}

struct Row {
    name: &'static str,
    attack: Attack,
    before: &'static str,
}

const fn row(name: &'static str, before: &'static str, attack: Attack) -> Row {
    Row { name, attack, before }
}

fn rows() -> Vec<Row> {
    vec![
        // Memory.
        row("12 clients ask 64 times for 6 MB and read nothing", "4.8 GB", |host| {
            sends(host, 12, 64, "blobs", &tuple(int(10)))
        }),
        row("one asks 1,000 times for 600 kB and reads nothing", "64 MB, and cut", |host| {
            sends(host, 1, 1000, "blob", &tuple(int(600_000)))
        }),
        row("100 clients send half a message of 8 MB", "800 MB for ever", |host| raw(host, 100, &half(8 << 20))),
        row("40 clients send a hundred echoes of 100 kB and read nothing", "", |host| {
            sends(host, 40, 100, "echo", &tuple(string(100_000)))
        }),
        row("20 clients park 8 MB of calls behind one that never ends", "", |host| {
            sends(host, 20, 2000, "never", &tuple(string(1)))
                .into_iter()
                .chain(sends(host, 20, 1200, "never", &list("tuple", [])))
                .collect()
        }),
        row("30 clients hold a thousand objects each", "", |host| sends(host, 30, 1, "pebbles", &tuple(int(1000)))),
        row("one asks for more objects than it may have, 100 times", "", |host| {
            sends(host, 1, 100, "pebbles", &tuple(int(1024)))
        }),
        row("40 hold half a message, and others do not read all they asked for", "", |host| {
            let mut all = raw(host, 40, &half(8 << 20));
            for count in 3..12 {
                let mut client = client(host);
                client.wire.send(&calls(count, Ok(client.perspective), "blobs", &tuple(int(1))));
                // The start of one more message: there is something to read, though the host no longer reads from this client.
                client.wire.send(&[7]);
                all.push(Box::new(client));
            }
            all
        }),
        // Work.
        row("32,000 early dereferences to a method that is not there", "1.1 s each", |host| {
            sends(host, 2, 4, "nonsense", &tuple(dereferences(32_000, true, 1)))
        }),
        row("32,000 early dereferences to the root", "1.1 s each", |host| {
            let bytes = calls(4, Err("root"), "nonsense", &tuple(dereferences(32_000, true, 1)));
            raw(host, 2, &bytes)
        }),
        row("Vec<Value> of 16,000 that are all one", "11 s", |host| {
            sends(host, 2, 4, "count", &tuple(dereferences(16_000, false, 1)))
        }),
        row("Vec<Value> of 16,000 that are all defined last", "11 s", |host| {
            sends(host, 2, 4, "count", &tuple(dereferences(16_000, true, 1)))
        }),
        row("Vec<Value> of 2,000 large ones that are all one", "", |host| {
            sends(host, 2, 4, "count", &tuple(dereferences(2000, false, 2000)))
        }),
        row("a bomb of references", "", |host| {
            let bomb = (2..42).fold(list("reference", [int(1), list("list", [int(0), int(0)])]), |inner, level| {
                list("reference", [int(level), list("list", [inner, list("dereference", [int(level - 1)])])])
            });
            sends(host, 2, 50, "echo", &tuple(bomb))
        }),
        row("half a million integers", "", |host| {
            let integers = list("list", (0..500_000).map(|_| int(1)));
            sends(host, 2, 2, "echo", &tuple(integers))
        }),
        row("nested as deep as may be, 1,000 times", "", |host| {
            let deep = (0..120).fold(int(1), |inner, _| list("list", [inner]));
            sends(host, 2, 1000, "echo", &tuple(deep))
        }),
        row("nested deeper than may be, 100 times", "", |host| {
            let deep = (0..1000).fold(int(1), |inner, _| list("list", [inner]));
            sends(host, 2, 100, "echo", &tuple(deep))
        }),
        row("10,000 calls of methods that are not there", "", |host| {
            sends(host, 2, 10_000, "nonsense", &list("tuple", []))
        }),
        row("10,000 calls of objects that are not there", "", |host| {
            raw(host, 2, &calls(10_000, Ok(999_999), "x", &list("tuple", [])))
        }),
        row("10,000 words that are no commands", "", |host| {
            raw(host, 2, &(0..10_000).flat_map(|_| message("nonsense", &[])).collect::<Vec<u8>>())
        }),
        row("100,000 keywords", "", |host| {
            held((0..2).map(|_| {
                let mut client = client(host);
                let mut bytes = Vec::new();
                token::list(&mut bytes, 7);
                token::bytes(&mut bytes, b"message");
                token::uint(&mut bytes, 7);
                token::uint(&mut bytes, client.perspective);
                token::bytes(&mut bytes, b"echo");
                token::uint(&mut bytes, 1);
                bytes.extend(list("tuple", []));
                bytes.extend(list(
                    "dictionary",
                    (0..100_000).map(|index| {
                        let mut pair = Vec::new();
                        token::list(&mut pair, 2);
                        pair.extend(text(&format!("k{index}")));
                        pair.extend(int(1));
                        pair
                    }),
                ));
                client.wire.send(&bytes);
                client
            }))
        }),
        row("20 clients are called back 5,000 times each, read, and never answer", "", |host| {
            held((0..20).map(|_| {
                let mut client = client(host);
                let asked = client.begin("nag", &(5000,));
                // Of the service's calls, those over the limit fail in the service; the client reads the others.
                while client.message().is_some_and(|message| message.command != "answer" || message.number != asked) {}
                client
            }))
        }),
        // State that outlives its owner.
        row("20 times 1,000 calls that never end, then gone", "200,000 wait", |host| {
            for _ in 0..20 {
                drop(sends(host, 1, 1000, "never", &list("tuple", [])));
            }
            Held::new()
        }),
        row("200 times attached and gone", "", |host| {
            for _ in 0..200 {
                drop(client(host));
            }
            Held::new()
        }),
        row("1,000 calls, and gone before the answers", "", |host| {
            for _ in 0..20 {
                drop(sends(host, 1, 1000, "echo", &tuple(int(5))));
            }
            Held::new()
        }),
        // Rules broken.
        row("a reference given back that nobody has", "", |host| raw(host, 20, &message("decref", &[4711]))),
        row("a copy given back that nobody has", "", |host| raw(host, 20, &message("decache", &[4711]))),
        row("an answer to no call", "", |host| {
            let mut bytes = Vec::new();
            token::list(&mut bytes, 3);
            token::bytes(&mut bytes, b"answer");
            token::uint(&mut bytes, 4711);
            token::uint(&mut bytes, 5);
            raw(host, 20, &bytes)
        }),
        row("a perspective given back 100 times", "", |host| {
            held((0..20).map(|_| {
                let mut client = client(host);
                let bytes: Vec<u8> = (0..100).flat_map(|_| message("decref", &[client.perspective])).collect();
                client.wire.send(&bytes);
                client
            }))
        }),
        row("updates of a copy that nobody has", "", |host| {
            let mut bytes = Vec::new();
            token::list(&mut bytes, 7);
            token::bytes(&mut bytes, b"cachemessage");
            [int(7), int(5), string(3), int(1), tuple(int(1)), list("dictionary", [])]
                .iter()
                .for_each(|part| bytes.extend(part));
            raw(host, 20, &bytes.repeat(100))
        }),
        row("the same object sent 1,000 times", "", |host| {
            let remotes = list("list", (0..1000).map(|_| list("remote", [int(1)])));
            sends(host, 5, 20, "echo", &tuple(remotes))
        }),
        row("1,000 objects of its own, 100 times", "", |host| {
            let remotes = list("list", (0..1000).map(|luid| list("remote", [int(luid + 10)])));
            sends(host, 5, 20, "echo", &tuple(remotes))
        }),
        row("objects of others", "", |host| {
            let locals = list("list", (0..1000).map(|luid| list("local", [int(luid)])));
            sends(host, 5, 20, "echo", &tuple(locals))
        }),
        row("no Banana", "", |host| raw(host, 50, &[0xff; 4096])),
        row("a string longer than may be", "", |host| raw(host, 50, &[0x7f, 0x7f, 0x7f, 0x7f, 0x82])),
        row("a list longer than may be", "", |host| raw(host, 50, &[0x7f, 0x7f, 0x7f, 0x7f, 0x80])),
        row("a number of 64 digits, for ever", "", |host| raw(host, 50, &[0x7f; 1 << 16])),
        // Strangers.
        row("200 strangers who say nothing", "", |host| strange(host, 200, &[])),
        row("200 strangers with half a message", "", |host| strange(host, 200, &half(4000)[..900])),
        row("500 strangers who come and go", "", |host| {
            for _ in 0..500 {
                drop(std::net::TcpStream::connect(host.address()));
            }
            Held::new()
        }),
        row("50 strangers guess 60 times at once", "", |host| {
            strange(host, 50, &calls(60, Err("root"), "loginPassword", &list("tuple", [text("alice-not"), text("x")])))
        }),
        row("50 strangers guess at tokens", "", |host| {
            strange(host, 50, &calls(60, Err("root"), "loginToken", &tuple(text("credhost_nonsense"))))
        }),
        row("50 strangers ask for a thousand challenges", "", |host| {
            strange(host, 50, &calls(1000, Err("root"), "login", &tuple(text("alice"))))
        }),
        row("names as long as may be", "", |host| {
            strange(host, 50, &calls(10, Err("root"), "login", &tuple(text(&"x".repeat(1000)))))
        }),
        row("8 MB of arguments to the root", "", |host| {
            let bytes = calls(2, Err("root"), "nonsense", &tuple(list("list", (0..14).map(|_| string(500_000)))));
            raw(host, 5, &bytes)
        }),
        row("a byte at a time", "", |host| {
            held((0..20).map(|_| {
                let mut client = client(host);
                let bytes = call(5, Ok(client.perspective), "echo", &tuple(int(7)));
                bytes.iter().for_each(|byte| client.wire.send(&[*byte]));
                client
            }))
        }),
        row("goodbye by half", "", |host| {
            held((0..50).map(|_| {
                let client = client(host);
                let _ = client.wire.stream.shutdown(std::net::Shutdown::Write);
                client
            }))
        }),
    ]
}

fn cpu() -> Duration {
    let now = clock_gettime(ClockId::ProcessCPUTime);
    Duration::new(now.tv_sec.try_into().unwrap_or(0), now.tv_nsec.try_into().unwrap_or(0))
}

fn resident() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<usize>().ok()).unwrap_or(0) * 1024
}

/// Another identity's client that keeps calling: returns the number of answers, the time of the slowest, and the most memory in
/// use meanwhile.
fn bystander(host: &Embedded, until: &AtomicBool) -> (u64, Duration, usize) {
    let mut other = RawClient::login_as(host.address(), "bob", "other");
    let (mut answers, mut worst, mut most) = (0, Duration::ZERO, 0);
    while !until.load(Ordering::Relaxed) || answers == 0 {
        let began = Instant::now();
        let request = other.begin("echo_int", &(7,));
        assert_eq!(other.answer(request).root().as_int(), Some(7));
        worst = worst.max(began.elapsed());
        answers += 1;
        most = most.max(resident());
    }
    (answers, worst, most)
}

#[test]
fn nobody_can_hurt_anybody() {
    let hard = getrlimit(Resource::Data).maximum;
    setrlimit(Resource::Data, Rlimit { current: Some(MEMORY), maximum: hard }).expect("it can be lowered");
    let limits = Limits { per_source: 5000, refusal: Duration::from_millis(20), ..Limits::default() };
    let mut limits = limits;
    limits.slots.services.orphans = Duration::from_millis(500);
    let host = Arc::new(Embedded::start(limits));
    let rows = rows();
    assert!(rows.len() >= 40, "{}", rows.len());
    println!("{:>9} {:>9} {:>9} {:>8}  {:62} before", "CPU", "memory", "worst", "asked", "attack");
    for Row { name, attack, before } in rows {
        let done = Arc::new(AtomicBool::new(false));
        let (seen, until) = (Arc::clone(&host), Arc::clone(&done));
        let other = std::thread::spawn(move || bystander(&seen, &until));
        let (began, resident_before) = (cpu(), resident());
        let held = attack(&host);
        // Wait until the host has processed the attack: another client's call is behind it.
        let mut after = RawClient::login_as(host.address(), "bob", "other");
        let request = after.begin("echo_int", &(1,));
        after.answer(request);
        done.store(true, Ordering::Relaxed);
        let (answers, worst, most) = other.join().expect("it is answered, whatever others do");
        let kept = host.memory().used();
        assert!(kept <= host.memory().limit(), "{name}: {kept} bytes are kept");
        println!(
            "{:7.0}ms {:7.1}MB {:7.1}ms {answers:8}  {name:62} {before}",
            (cpu() - began).as_secs_f64() * 1e3,
            most.saturating_sub(resident_before) as f64 / 1e6,
            worst.as_secs_f64() * 1e3,
        );
        drop(held);
        drop(after);
        let deadline = Instant::now() + Duration::from_secs(30);
        while host.memory().used() > 64 << 10 || WAITING.load(Ordering::SeqCst) > 0 {
            let waiting = WAITING.load(Ordering::SeqCst);
            assert!(Instant::now() < deadline || waiting == 0, "{name}: {waiting} calls go on for nobody");
            assert!(
                Instant::now() < deadline,
                "{name}: {} bytes stay: {:?}",
                host.memory().used(),
                host.memory().largest()
            );
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}
