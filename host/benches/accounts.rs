//! The cost of trustworthy identities: password checks while other clients call, a million identities, and durable changes.
//! Each is compared with a control in the same run.
//!
//! ```text
//! cargo bench -p credhost --bench accounts [hashing] [million] [durable]
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use credhost::accounts::{Accounts, Import};
use credhost::config::Home;
use credhost::control::{Request, perform};
use credhost::cred::login::Login;
use credhost::cred::{Key, Password};
use credhost::listener::Endpoint;
use credhost::multiservice::MultiService;
use credhost::multiservice::context::HostContext;
use credhost::multiservice::slot::Slot;
use credhost::session::Limits;
use credhost::store::{Change, Record, SqliteStore, Store, Write, wait};
use pb::client::Client;
use plugin_api::prelude::*;

/// Counts, and is saved after each count.
#[derive(Default)]
struct Counters;

/// Counters.
#[service("counter")]
impl Service for Counters {
    type Perspective = Counter;
}

#[derive(Default, Serialize, Deserialize)]
struct Counter {
    count: u64,
}

/// A counter.
#[perspective]
impl Counter {
    /// Counts.
    fn count(&mut self) -> u64 {
        self.count += 1;
        self.count
    }

    /// Looks.
    fn look(&self) -> u64 {
        self.count
    }
}

fn main() {
    let wanted: Vec<String> = std::env::args().skip(1).filter(|word| !word.starts_with('-')).collect();
    let all: [(&str, fn()); 3] = [("hashing", hashing), ("million", million), ("durable", durable)];
    for (name, bench) in all {
        if wanted.is_empty() || wanted.iter().any(|word| word == name) {
            println!("\n{name}");
            bench();
        }
    }
}

/// A home with alice, who has the keys to many counters.
fn accounts(folder: &tempfile::TempDir, counters: usize) -> Arc<Accounts> {
    let home = Home::new(folder.path().join("home"));
    home.make().expect("a home");
    let (accounts, _) = Accounts::open(&home, "a bench").expect("it opens");
    accounts.add("alice", Some(&Password::new("wooden giraffe sings at noon"))).expect("a name");
    for counter in 0..counters {
        accounts.key_add("alice", &Key::new("counter", &format!("c{counter}")).expect("a key")).expect("it is added");
    }
    Arc::new(accounts)
}

/// A door to counters.
async fn serve(accounts: &Accounts) -> (credhost::listener::Listener, Arc<MultiService>) {
    let context = HostContext::new(Arc::clone(accounts.store()) as Arc<dyn Store>);
    let services = MultiService::new("pb");
    services.add(Slot::linked::<Counters>(&context).await.expect("it loads")).await.expect("its name is free");
    services.start().await;
    let login = Login::new(Arc::new(accounts.authorizer()), accounts.key().clone(), &[4; 24]);
    let limits = Limits { connections: 4096, per_source: 4096, refusal: Duration::ZERO, ..Limits::default() };
    let root = Endpoint::new(login, Arc::clone(&services), context, limits);
    (root.listen("127.0.0.1:0").expect("a port"), services)
}

async fn connect(address: std::net::SocketAddr) -> Client {
    Client::new(tokio::net::TcpStream::connect(address).await.expect("it listens")).await.expect("it speaks PB")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime")
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times.get((times.len() * percent).div_ceil(100).saturating_sub(1)).copied().unwrap_or_default()
}

/// A hundred clients call, each pausing ten milliseconds between calls, with and without passwords being checked as fast as
/// possible.
fn hashing() {
    const CLIENTS: usize = 100;
    let folder = tempfile::tempdir().expect("a folder");
    let accounts = accounts(&folder, CLIENTS);
    let runtime = runtime();
    let (door, _services) = runtime.block_on(serve(&accounts));
    let address = door.address();
    let mut clients = Vec::new();
    runtime.block_on(async {
        for counter in 0..CLIENTS {
            let client = connect(address).await;
            let name = format!("alice/counter/c{counter}");
            clients.push(client.login(&name, "wooden giraffe sings at noon", None).await.expect("she is let in"));
        }
    });
    let measure = |what: &str| {
        let flood = what == "flood";
        let stop = Arc::new(AtomicBool::new(false));
        // The control: a thread that only occupies a processor, at the priority of password checks.
        let spinning = (what == "spin").then(|| {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let _ = rustix::process::setpriority_process(Some(rustix::thread::gettid()), 10);
                while !stop.load(Ordering::Relaxed) {
                    std::hint::spin_loop();
                }
            })
        });
        let checked = Arc::new(AtomicU64::new(0));
        let flooding = flood.then(|| {
            let (stop, checked) = (Arc::clone(&stop), Arc::clone(&checked));
            std::thread::spawn(move || {
                self::runtime().block_on(async {
                    let mut floods = Vec::new();
                    for _ in 0..8 {
                        let (stop, checked) = (Arc::clone(&stop), Arc::clone(&checked));
                        floods.push(async move {
                            let client = connect(address).await;
                            while !stop.load(Ordering::Relaxed) {
                                // The right password, so the throttle does not refuse it.
                                let login = client.login_password("alice", "wooden giraffe sings at noon", None).await;
                                checked.fetch_add(u64::from(login.is_ok()), Ordering::Relaxed);
                            }
                        });
                    }
                    let mut floods: tokio::task::JoinSet<()> = floods.into_iter().collect();
                    while floods.join_next().await.is_some() {}
                });
            })
        });
        let began = Instant::now();
        let mut times: Vec<Duration> = runtime.block_on(async {
            let mut calling = tokio::task::JoinSet::new();
            for (index, client) in clients.iter().cloned().enumerate() {
                calling.spawn(async move {
                    tokio::time::sleep(Duration::from_micros(100 * index as u64)).await;
                    let mut times = Vec::new();
                    for _ in 0..300 {
                        let began = Instant::now();
                        client.call("look", &()).await.expect("it is answered");
                        times.push(began.elapsed());
                        tokio::time::sleep(Duration::from_millis(10)).await;
                    }
                    times
                });
            }
            let mut all = Vec::new();
            while let Some(times) = calling.join_next().await {
                all.extend(times.expect("it ends"));
            }
            all
        });
        let seconds = began.elapsed().as_secs_f64();
        stop.store(true, Ordering::Relaxed);
        if let Some(spinning) = spinning {
            spinning.join().expect("it ends");
        }
        if let Some(flooding) = flooding {
            flooding.join().expect("it ends");
        }
        let (p50, p99) = (percentile(&mut times, 50), percentile(&mut times, 99));
        let checked = checked.load(Ordering::Relaxed) as f64 / seconds;
        println!("  {:6} p50 {p50:>9.1?}  p99 {p99:>9.1?}  {checked:5.1} passwords/s", what);
        p99
    };
    measure("quiet");
    let [quiet, flood, spin] = ["quiet", "flood", "spin"].map(|what| measure(what).as_secs_f64());
    println!(
        "  p99 in the flood is {:.2}x the quiet one; beside a thread that only spins, {:.2}x",
        flood / quiet,
        spin / quiet
    );
}

fn resident() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    // All of it counts: no part of the store is memory-mapped.
    let line = status.lines().find(|line| line.starts_with("VmRSS")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|size| size.parse().ok()).unwrap_or(0)
}

/// Looks up the identity of this name.
type Look<'a> = &'a dyn Fn(&str);

/// A million identities: the time to import them and to look one up, and the memory they take.
fn million() {
    const COUNT: usize = 1_000_000;
    let folder = tempfile::tempdir().expect("a folder");
    let accounts = accounts(&folder, 1);
    let hash = Password::new("wooden giraffe sings at noon")
        .hash(credhost::cred::HashCost::default(), &[1; 16])
        .expect("a hash");
    let records = |from: usize, to: usize| -> Vec<Record> {
        let record = |number: usize| {
            let json = format!(
                r#"{{"name": "user{number:07}", "keys": ["todo/user{number:07}"], "credentials": [{{"label": "password", "password": "{hash}"}}]}}"#
            );
            serde_json::from_str(&json).expect("a record")
        };
        (from..to).map(record).collect()
    };
    let authorizer = accounts.authorizer();
    let runtime = runtime();
    let login = |name: &str| {
        let found = runtime.block_on(credhost::cred::Authorizer::identity(&authorizer, name));
        assert!(found.expect("the store is well").is_some());
    };
    // The request of `credhost identity show`.
    let show = |name: &str| {
        let request = Request::IdentityShow { name: name.to_owned() };
        assert!(perform(&request, &accounts, None, &mut |_, _| {}).is_ok());
    };
    let find = |count: usize, look: Look<'_>| {
        let mut dice = 2005usize;
        let mut times: Vec<Duration> = (0..20_000)
            .map(|_| {
                dice = dice.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                let name = format!("user{:07}", (dice >> 33) % count);
                let began = Instant::now();
                look(&name);
                began.elapsed()
            })
            .collect();
        (percentile(&mut times, 50), percentile(&mut times, 99))
    };
    accounts.import(&Import::of(&records(0, 100))).expect("they are imported");
    let looks: [(&str, Look<'_>); 2] = [("a login's lookup", &login), ("identity show", &show)];
    let few = looks.map(|(_, look)| {
        find(100, look);
        find(100, look)
    });
    let before = resident();
    let began = Instant::now();
    for from in (100..COUNT).step_by(2000) {
        let done = accounts.import(&Import::of(&records(from, (from + 2000).min(COUNT)))).expect("they are imported");
        assert_eq!(done.refused, 0);
    }
    let took = began.elapsed().as_secs_f64();
    println!("  imported {COUNT} in {took:.1} s: {:.0}/s", COUNT as f64 / took);
    for ((what, look), few) in looks.into_iter().zip(few) {
        find(COUNT, look);
        let many = find(COUNT, look);
        let ratio = many.0.as_secs_f64() / few.0.as_secs_f64();
        println!(
            "  {what}: among 100: p50 {:.1?}, p99 {:.1?}; among {COUNT}: p50 {:.1?}, p99 {:.1?}: {ratio:.2}x",
            few.0, few.1, many.0, many.1
        );
    }
    println!("  memory of its own: {before} kB before, {} kB after", resident());
}

/// Changes that are acknowledged once the disk has them: through the door, and by the store alone with groups of the same size.
fn durable() {
    const SECONDS: u64 = 4;
    let folder = tempfile::tempdir().expect("a folder");
    let runtime = runtime();
    for clients in [1usize, 16, 64] {
        let of_door = tempfile::tempdir_in(&folder).expect("a folder");
        let accounts = accounts(&of_door, clients);
        let (door, _services) = runtime.block_on(serve(&accounts));
        let address = door.address();
        let counted = runtime.block_on(async {
            let mut counting = tokio::task::JoinSet::new();
            for counter in 0..clients {
                let client = connect(address).await;
                let name = format!("alice/counter/c{counter}");
                let counter = client.login(&name, "wooden giraffe sings at noon", None).await.expect("she is let in");
                counting.spawn(async move {
                    let (began, mut count) = (Instant::now(), 0u64);
                    while began.elapsed() < Duration::from_secs(SECONDS) {
                        counter.call("count", &()).await.expect("it is saved");
                        count += 1;
                    }
                    count
                });
            }
            let mut all = 0;
            while let Some(count) = counting.join_next().await {
                all += count.expect("it ends");
            }
            all
        });
        let through = counted as f64 / SECONDS as f64;
        let alone = alone(&of_door.path().join("alone.db"), clients, Duration::from_secs(SECONDS));
        println!(
            "  {clients:2} at once: {through:7.0}/s through the door, {alone:7.0}/s by the store alone in groups of {clients}: {:.2}x",
            through / alone
        );
    }
}

/// Commits groups of this many states, one group after the other. Returns states per second.
fn alone(path: &std::path::Path, group: usize, time: Duration) -> f64 {
    let store = SqliteStore::open(path, &credhost::cred::MasterKey::new([1; 32]), &[7; 56]).expect("a store");
    let (began, mut version) = (Instant::now(), 0u64);
    while began.elapsed() < time {
        let change = |counter: usize| {
            Write::State(Change {
                service: "counter".to_owned(),
                perspective: format!("c{counter}"),
                state: vec![0; 24],
                base: version,
                version: version + 1,
            })
        };
        let writes = (0..group).map(change).collect();
        wait(|done| store.commit(writes, done)).expect("it commits");
        version += 1;
    }
    (version * group as u64) as f64 / began.elapsed().as_secs_f64()
}
