//! The effect on other clients of a client that floods, and of a crowd that guesses passwords.
//!
//! `cargo bench -p credhost --bench hostile` runs both. `-- fairness` or `-- flood` runs one, and `-- fairness Echo` one kind
//! of call. `CREDHOST_SECONDS=10` shortens the flood, which lasts a minute by default.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use pb::client::{Client, Remote};
use system_tests::build;
use system_tests::host::{TestHome, TestHost, put};
use system_tests::wire::call;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};

/// How long each figure of the first part is measured.
const SPAN: Duration = Duration::from_secs(4);
/// The number of the crowd's sources, and the attempts per second of all of them together.
const SOURCES: usize = 1000;
const TRIES: usize = 10_000;

fn main() {
    // `cargo test --benches` runs this too, but there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let mut filters = std::env::args().skip(1).filter(|argument| !argument.starts_with('-'));
    let (filter, kind) = (filters.next().unwrap_or_default(), filters.next().unwrap_or_default());
    // This process also holds a thousand connections.
    let limit = rustix::process::getrlimit(rustix::process::Resource::Nofile);
    let raised = rustix::process::Rlimit { current: limit.maximum, ..limit };
    rustix::process::setrlimit(rustix::process::Resource::Nofile, raised).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    if "fairness".contains(&filter) {
        runtime.block_on(fairness(&kind));
    }
    if "flood".contains(&filter) {
        runtime.block_on(flood());
    }
}

fn host() -> TestHost {
    let home = TestHome::new();
    home.make();
    for name in ["alice", "bob", "carol"] {
        home.identity(name, &format!("{name}-pw"), &["my service", "todo"]);
    }
    for (package, file) in [("my-service", "my_service.so"), ("todo", "todo.so")] {
        put(&build::release(package), &home.plugins().join(file));
    }
    home.start_with(&[], &[("CREDHOST_LOG", "info")])
}

async fn login(host: &TestHost, name: &str, target: &str) -> Remote {
    let stream = TcpStream::connect(host.address()).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let client = Client::new(stream).await.unwrap();
    client.login(&format!("{name}/{target}"), &format!("{name}-pw"), None).await.unwrap()
}

/// Sorted times.
struct Times(Vec<Duration>);

impl Times {
    fn at(&self, part: f64) -> Duration {
        self.0.get((self.0.len() as f64 * part) as usize).copied().unwrap_or_default()
    }

    fn us(&self, part: f64) -> f64 {
        self.at(part).as_secs_f64() * 1e6
    }
}

/// Small calls, one after the other.
async fn small_calls(who: &Remote, span: Duration) -> Times {
    let (mut times, until) = (Vec::new(), Instant::now() + span);
    while Instant::now() < until {
        let start = Instant::now();
        who.call("add", &(2, 3)).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Times(times)
}

/// Floods from its own runtime on its own thread. It shares nothing but the machine with what is measured.
fn flooding(
    address: SocketAddr,
    target: &'static str,
    kind: Kind,
    stop: &Arc<AtomicBool>,
) -> std::thread::JoinHandle<u64> {
    let stop = Arc::clone(stop);
    std::thread::spawn(move || {
        // In reality the flood comes from another machine. Here it gets only the processor time that others leave; otherwise
        // all would wait for a processor.
        rustix::process::nice(19).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let stream = TcpStream::connect(address).await.unwrap();
            let client = Client::new(stream).await.unwrap();
            let bob = client.login(&format!("bob/{target}"), "bob-pw", None).await.unwrap();
            let done = Arc::new(AtomicU64::new(0));
            let tasks = tokio::task::LocalSet::new();
            let all: Vec<_> = (0..kind.at_once())
                .map(|_| {
                    let (bob, stop, done) = (bob.clone(), Arc::clone(&stop), Arc::clone(&done));
                    tasks.spawn_local(async move {
                        while !stop.load(Ordering::Relaxed) {
                            kind.call(&bob).await;
                            done.fetch_add(1, Ordering::Relaxed);
                        }
                    })
                })
                .collect();
            tasks.run_until(async { futures_all(all).await }).await;
            done.load(Ordering::Relaxed)
        })
    })
}

async fn futures_all(all: Vec<tokio::task::JoinHandle<()>>) {
    for one in all {
        one.await.unwrap();
    }
}

#[derive(Debug, Clone, Copy)]
enum Kind {
    Small,
    Echo,
    Rows,
    Save,
}

impl Kind {
    async fn call(self, bob: &Remote) {
        let done = match self {
            Self::Small => bob.call("add", &(2, 3)).await,
            Self::Echo => bob.call("blob", &(jelly::Bytes(vec![b'x'; 600_000]),)).await,
            Self::Rows => {
                let rows: Vec<_> =
                    (0..1000).map(|id| serde_json::json!({"id": id, "name": "n", "score": 0.5})).collect();
                bob.call("rows", &(rows,)).await
            }
            Self::Save => bob.call("add", &("something to do, of some length, so that the state grows",)).await,
        };
        // The host may refuse one of a flood; the next call follows either way.
        drop(done);
    }

    /// How many calls are under way at once. This client reads only after it has written: with more of the large calls, both
    /// sides would wait for each other.
    fn at_once(self) -> usize {
        match self {
            Self::Small | Self::Save => 256,
            Self::Echo | Self::Rows => 4,
        }
    }

    fn target(self) -> &'static str {
        if matches!(self, Self::Save) { "todo" } else { "my service" }
    }
}

/// One client floods a service with calls of one kind; another makes small calls to the same service.
async fn fairness(filter: &str) {
    println!(
        "\nsmall calls of one client, while another floods the same service; as a control, while it floods another host's"
    );
    println!(
        "{:6} {:>9} {:>9} {:>9} {:>9} {:>9} {:>9} {:>12} {:>14}",
        "calls",
        "quiet p50",
        "quiet p99",
        "one call",
        "control",
        "flood p50",
        "flood p99",
        "less one",
        "of the control"
    );
    for kind in [Kind::Small, Kind::Echo, Kind::Rows, Kind::Save] {
        if !format!("{kind:?}").contains(filter) {
            continue;
        }
        let (host, other) = (host(), host());
        let alice = login(&host, "alice", kind.target()).await;
        let carol = login(&host, "carol", kind.target()).await;
        let quiet = looks(kind, &alice).await;
        let before = one_by_one(kind, &carol).await;
        // The flood's cost to the machine, whichever host it targets.
        let (control, _) = flooded(kind, other.address(), &alice).await;
        let (flooded, calls) = flooded(kind, host.address(), &alice).await;
        // The time of one of the flood's calls, now that they have made the state grow.
        let bob = login(&host, "bob", kind.target()).await;
        let after = one_by_one(kind, &bob).await;
        let one = if after.at(0.5) > before.at(0.5) { after } else { before };
        let less_one = (flooded.us(0.99) - one.us(0.5)).max(0.0);
        println!(
            "{:6} {:>6.0} us {:>6.0} us {:>6.0} us {:>6.0} us {:>6.0} us {:>6.0} us {:>11.2}x {:>13.2}x   ({calls} calls of the flood)",
            format!("{kind:?}"),
            quiet.us(0.5),
            quiet.us(0.99),
            one.us(0.5),
            control.us(0.99),
            flooded.us(0.5),
            flooded.us(0.99),
            less_one / quiet.us(0.99),
            less_one / control.us(0.99),
        );
    }
}

/// The times of one client's calls while another floods this address, and the number of calls in the flood.
async fn flooded(kind: Kind, address: SocketAddr, alice: &Remote) -> (Times, u64) {
    let stop = Arc::new(AtomicBool::new(false));
    let flood = flooding(address, kind.target(), kind, &stop);
    tokio::time::sleep(Duration::from_millis(500)).await;
    let times = looks(kind, alice).await;
    stop.store(true, Ordering::Relaxed);
    (times, flood.join().unwrap())
}

/// Calls that change nothing, one after the other.
async fn looks(kind: Kind, who: &Remote) -> Times {
    match kind {
        Kind::Save => list_calls(who, SPAN).await,
        _ => small_calls(who, SPAN).await,
    }
}

/// Calls of a kind, one after the other.
async fn one_by_one(kind: Kind, who: &Remote) -> Times {
    let mut times = Vec::new();
    for _ in 0..50 {
        let start = Instant::now();
        kind.call(who).await;
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Times(times)
}

async fn list_calls(who: &Remote, span: Duration) -> Times {
    let (mut times, until) = (Vec::new(), Instant::now() + span);
    while Instant::now() < until {
        let start = Instant::now();
        who.call("list", &()).await.unwrap();
        times.push(start.elapsed());
    }
    times.sort_unstable();
    Times(times)
}

/// One of the crowd: it sends wrong passwords for existing and unknown names, from its own address.
async fn guess(to: SocketAddr, number: usize, every: Duration, stop: Arc<AtomicBool>, tries: Arc<AtomicU64>) {
    let number_bytes = u16::try_from(number).unwrap().to_be_bytes();
    let from = Ipv4Addr::new(127, 1, number_bytes[0], number_bytes[1]);
    let mut request = 0u64;
    while !stop.load(Ordering::Relaxed) {
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(SocketAddr::from((from, 0))).unwrap();
        let Ok(stream) = socket.connect(to).await else {
            tokio::time::sleep(every).await;
            continue;
        };
        let (mut read, mut write) = stream.into_split();
        let reading = tokio::task::spawn_local(async move {
            let mut buffer = vec![0; 4096];
            while let Ok(1..) = read.read(&mut buffer).await {}
        });
        let mut bytes = vec![2, 0x82, b'p', b'b', 2, 0x80, 19, 0x87, 6, 0x81];
        while !stop.load(Ordering::Relaxed) && !reading.is_finished() {
            request += 1;
            let name = match request % 3 {
                0 => "alice".to_owned(),
                1 => "bob".to_owned(),
                _ => format!("nobody{number}-{request}"),
            };
            let arguments = jelly::to_vec(&(jelly::Bytes(name.into_bytes()), "a wrong password")).unwrap();
            bytes.extend(call(request, Err("root"), "loginPassword", &arguments));
            if write.write_all(&bytes).await.is_err() {
                break;
            }
            bytes.clear();
            tries.fetch_add(1, Ordering::Relaxed);
            tokio::time::sleep(every).await;
        }
        reading.abort();
        bytes.clear();
    }
}

/// An owner logs in by password repeatedly, from a known address.
async fn owner(address: SocketAddr, name: &str, span: Duration) -> (Times, usize) {
    let (mut times, mut failed, until) = (Vec::new(), 0, Instant::now() + span);
    while Instant::now() < until {
        let start = Instant::now();
        let client = Client::new(TcpStream::connect(address).await.unwrap()).await;
        let done = match client {
            Ok(client) => client.login_password(name, &format!("{name}-pw"), None).await.map(drop),
            Err(error) => Err(error),
        };
        match done {
            Ok(()) => times.push(start.elapsed()),
            Err(_) => failed += 1,
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    times.sort_unstable();
    (Times(times), failed)
}

fn resident(host: &TestHost) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.id())).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}

/// A thousand guessing clients, on two threads.
struct Crowd {
    stop: Arc<AtomicBool>,
    tries: Arc<AtomicU64>,
    halves: Vec<std::thread::JoinHandle<()>>,
}

impl Crowd {
    fn at(to: SocketAddr) -> Self {
        let (stop, tries) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let every = Duration::from_secs_f64(SOURCES as f64 / TRIES as f64);
        let half = |half: usize| {
            let (stop, tries) = (Arc::clone(&stop), Arc::clone(&tries));
            std::thread::spawn(move || {
                // In reality the crowd comes from other machines. Here it gets only the processor time that others leave.
                rustix::process::nice(19).unwrap();
                let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
                let tasks = tokio::task::LocalSet::new();
                let all: Vec<_> = (half * SOURCES / 2..(half + 1) * SOURCES / 2)
                    .map(|number| tasks.spawn_local(guess(to, number, every, Arc::clone(&stop), Arc::clone(&tries))))
                    .collect();
                runtime.block_on(tasks.run_until(futures_all(all)));
            })
        };
        let halves = vec![half(0), half(1)];
        Self { stop, tries, halves }
    }

    fn ends(self) {
        self.stop.store(true, Ordering::Relaxed);
        self.halves.into_iter().for_each(|half| half.join().unwrap());
    }
}

/// A door that reads everything and answers nothing.
fn sink() -> SocketAddr {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    listener.set_nonblocking(true).unwrap();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async move {
            let listener = tokio::net::TcpListener::from_std(listener).unwrap();
            while let Ok((mut stream, _)) = listener.accept().await {
                tokio::spawn(async move {
                    let mut buffer = vec![0; 4096];
                    while let Ok(1..) = stream.read(&mut buffer).await {}
                });
            }
        });
    });
    address
}

async fn flood() {
    let seconds: u64 = std::env::var("CREDHOST_SECONDS").ok().and_then(|text| text.parse().ok()).unwrap_or(60);
    let span = Duration::from_secs(seconds);
    let host = host();
    let inside = login(&host, "bob", "my service").await;
    let alone = small_calls(&inside, SPAN).await;
    // The same work as in the flood, without the flood.
    let (quiet, (logins_before, _)) = tokio::join!(small_calls(&inside, SPAN), owner(host.address(), "carol", SPAN));
    let (trail_before, before) = (trail(&host), resident(&host));
    // The control: the same crowd, at another door on this machine.
    let elsewhere = Crowd::at(sink());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let (beside, _) = tokio::join!(small_calls(&inside, SPAN), owner(host.address(), "carol", SPAN));
    elsewhere.ends();
    let crowd = Crowd::at(host.address());
    tokio::time::sleep(Duration::from_secs(1)).await;
    let began = (Instant::now(), crowd.tries.load(Ordering::Relaxed));
    let (calls, (logins, failed)) = tokio::join!(small_calls(&inside, span), owner(host.address(), "carol", span));
    let rate = (crowd.tries.load(Ordering::Relaxed) - began.1) as f64 / began.0.elapsed().as_secs_f64();
    let after = resident(&host);
    crowd.ends();
    let ms = |times: &Times, part| times.us(part) / 1e3;
    if rate < 0.9 * TRIES as f64 {
        println!("\nThe crowd did not come to {TRIES} tries a second: the machine has no more to give.");
    }
    println!("\n{rate:.0} wrong logins a second from {SOURCES} sources, for {seconds} s");
    println!(
        "logins of an owner from a known source: quiet p50 {:.0} ms, p99 {:.0} ms; in the flood p50 {:.0} ms, p99 {:.0} ms ({} logins, {failed} failed)",
        ms(&logins_before, 0.5),
        ms(&logins_before, 0.99),
        ms(&logins, 0.5),
        ms(&logins, 0.99),
        logins.0.len()
    );
    println!(
        "calls of who is inside, while the owner logs in: quiet p99 {:.0} us, in the flood {:.0} us: {:.2}x; while the crowd is elsewhere {:.0} us: {:.2}x of that",
        quiet.us(0.99),
        calls.us(0.99),
        calls.us(0.99) / quiet.us(0.99),
        beside.us(0.99),
        calls.us(0.99) / beside.us(0.99)
    );
    println!(
        "the same calls, quiet and without any login: p99 {:.0} us; in the flood {:.2}x of that",
        alone.us(0.99),
        calls.us(0.99) / alone.us(0.99)
    );
    println!("resident memory: {before} MiB before, {after} MiB in the flood");
    println!("the trail has grown by {} kB", (trail(&host) - trail_before) / 1000);
}

/// The size of the audit trail as `audit show` prints it.
fn trail(host: &TestHost) -> usize {
    host.home.run(&["audit", "show"], "").len()
}
