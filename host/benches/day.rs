//! A day in ten minutes. People add things, guessers guess passwords, an operator gives commands, and libraries are replaced.
//! The disk fills up, fails or stalls; descriptors and connections run out; nobody reads the log; in the first half the host is
//! killed. At the end every acknowledged change is present exactly once, no refused change is present, and memory is flat.
//!
//! `CREDHOST_SECONDS=60 CREDHOST_SEED=7 cargo bench -p credhost --bench day`. Fails if anything is lost.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashSet};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::Command;
use std::rc::Rc;
use std::time::{Duration, Instant};

use pb::client::{Client, Error, Remote};
use rustix::process::{Resource, Rlimit, getrlimit, prlimit};
use serde::Deserialize;
use system_tests::build;
use system_tests::host::{TestHome, TestHost, put};
use tokio::net::{TcpSocket, TcpStream};
use tokio::task::spawn_local;

/// How many people add things.
const PEOPLE: u64 = 8;
/// How many things a list has, and how many lists each has.
const A_LIST: u64 = 300;
const LISTS: u64 = 40;
/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    // `cargo test --benches` runs this too, but there is nothing to test.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let number = |name: &str, else_: u64| std::env::var(name).ok().and_then(|text| text.parse().ok()).unwrap_or(else_);
    let (seconds, seed) = (number("CREDHOST_SECONDS", 600), number("CREDHOST_SEED", 2005));
    println!("a day in {seconds} s; CREDHOST_SEED={seed}");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let tasks = tokio::task::LocalSet::new();
    runtime.block_on(tasks.run_until(day(Duration::from_secs(seconds), seed)));
}

/// Pseudo-random numbers: the same seed gives the same numbers.
struct Dice(Cell<u64>);

impl Dice {
    fn roll(&self, sides: u64) -> u64 {
        self.0.set(self.0.get().wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407));
        (self.0.get() >> 33) % sides
    }
}

/// The state that all tasks share.
struct World {
    host: RefCell<Option<TestHost>>,
    address: Cell<SocketAddr>,
    home: PathBuf,
    fault: PathBuf,
    library: PathBuf,
    /// Two builds of one service.
    builds: [Vec<u8>; 2],
    /// Until then, the host is also killed.
    noon: Instant,
    until: Instant,
    counts: RefCell<BTreeMap<&'static str, u64>>,
}

impl World {
    fn goes_on(&self) -> bool {
        Instant::now() < self.until
    }

    fn count(&self, what: &'static str) {
        *self.counts.borrow_mut().entry(what).or_default() += 1;
    }

    /// Runs a command as an operator would. Returns whether it succeeded.
    async fn command(&self, arguments: &[String], input: &'static str) -> bool {
        let (home, arguments) = (self.home.clone(), arguments.to_vec());
        let done = tokio::task::spawn_blocking(move || {
            let mut command = Command::new(env!("CARGO_BIN_EXE_credhost"));
            command.arg("--home").arg(home).args(arguments).stdin(std::process::Stdio::piped());
            command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::null());
            let mut child = command.spawn().unwrap();
            std::io::Write::write_all(&mut child.stdin.take().unwrap(), input.as_bytes()).unwrap();
            child.wait().unwrap().success()
        });
        done.await.unwrap()
    }
}

fn faults(home: &TestHome) -> (PathBuf, PathBuf) {
    let library = home.path().join("faults.so");
    let source = system_tests::workspace().join("tests/fixtures/faults.c");
    let built =
        Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").status();
    assert!(built.unwrap().success());
    (library, home.path().join("fault"))
}

fn start(home: TestHome, library: &std::path::Path, fault: &std::path::Path) -> TestHost {
    let (library, fault) = (library.to_str().unwrap(), fault.to_str().unwrap());
    home.start_with(&[], &[("LD_PRELOAD", library), ("CREDHOST_FAULT", fault), ("CREDHOST_LOG", "info")])
}

/// The list that a person adds to. After `A_LIST` things the person starts a new one, so that no list grows without end.
fn list_of(who: u64, number: u64) -> String {
    format!("list{who}-{}", (number / A_LIST).min(LISTS - 1))
}

async fn login(address: SocketAddr, who: u64, list: &str) -> Result<Remote, Error> {
    let connecting = async {
        let stream = TcpStream::connect(address).await.map_err(|_| Error::Lost("nobody listens".into()))?;
        let client = Client::new(stream).await?;
        client.login_password(&format!("person{who}/todo/{list}"), &format!("person{who}-pw"), None).await
    };
    tokio::time::timeout(PATIENCE, connecting).await.expect("a login is answered")
}

#[derive(Default)]
struct Added {
    answered: Vec<String>,
    undone: Vec<String>,
}

/// A person adds things, disconnects now and then, and reconnects.
async fn person(world: Rc<World>, who: u64, dice: Dice) -> Added {
    let (mut added, mut number) = (Added::default(), 0);
    while world.goes_on() {
        let list = list_of(who, number + 1);
        let Ok(todo) = login(world.address.get(), who, &list).await else {
            world.count("logins that failed");
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        world.count("logins");
        for _ in 0..=dice.roll(40) {
            if list_of(who, number + 1) != list {
                break;
            }
            number += 1;
            let text = format!("{who}-{number}");
            let done = tokio::time::timeout(PATIENCE, todo.call("add", &(&text,))).await.expect("a call is answered");
            match done {
                Ok(_) => {
                    world.count("changes that were answered");
                    added.answered.push(text);
                }
                Err(Error::Failure(_)) => {
                    world.count("changes that were refused");
                    added.undone.push(text);
                }
                // The outcome is unknown.
                Err(_) => break,
            }
            if !world.goes_on() {
                break;
            }
            tokio::time::sleep(Duration::from_millis(dice.roll(60))).await;
        }
    }
    added
}

async fn guesser(world: Rc<World>, dice: Dice) {
    while world.goes_on() {
        // From a different network than the people.
        let socket = TcpSocket::new_v4().unwrap();
        socket.bind(([127, 9, 0, 1], 0).into()).unwrap();
        if let Ok(stream) = socket.connect(world.address.get()).await
            && let Ok(client) = Client::new(stream).await
        {
            for _ in 0..20 {
                let name = format!("person{}", dice.roll(PEOPLE * 2));
                // Refused, or the host has gone.
                let _ = tokio::time::timeout(PATIENCE, client.login_password(&name, "guess", None)).await;
                world.count("guesses");
            }
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

async fn operator(world: Rc<World>, dice: Dice) {
    let words = |text: &str| text.split(' ').map(str::to_owned).collect::<Vec<String>>();
    let mut number = 0;
    while world.goes_on() {
        number += 1;
        let (arguments, input) = match dice.roll(6) {
            0 => (words(&format!("identity add temporary{number} --password-stdin")), "a long enough password"),
            1 => (words(&format!("identity remove temporary{}", dice.roll(number + 1))), ""),
            2 => (words("limits"), ""),
            3 => (words("doctor"), ""),
            4 => (words("audit prune --keep 1MiB --discard"), ""),
            _ => (words("session list"), ""),
        };
        let done = world.command(&arguments, input).await;
        world.count(if done { "commands" } else { "commands that were refused" });
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Injects faults.
async fn trouble(world: Rc<World>, dice: Dice) {
    while world.goes_on() {
        tokio::time::sleep(Duration::from_millis(2000 + dice.roll(4000))).await;
        match dice.roll(8) {
            kind @ (0..=2) => {
                const KINDS: [(&str, &str); 3] = [
                    ("times the disk was full", "brim"),
                    ("times the disk failed", "fsync"),
                    ("times the disk took its time", "stall"),
                ];
                let (what, fault) = KINDS[usize::try_from(kind).unwrap()];
                world.count(what);
                std::fs::write(&world.fault, fault).unwrap();
                tokio::time::sleep(Duration::from_millis(500 + dice.roll(1500))).await;
                std::fs::remove_file(&world.fault).unwrap();
            }
            3 => {
                world.count("libraries replaced");
                // Another build, because an unchanged library is not replaced.
                let builds = &world.builds;
                let next = world.counts.borrow()["libraries replaced"] as usize % builds.len();
                std::fs::write(world.home.join("plugins/todo.so"), &builds[next]).unwrap();
            }
            4 => {
                world.count("times connections ran out");
                let mut all = Vec::new();
                for _ in 0..400 {
                    all.extend(TcpStream::connect(world.address.get()).await);
                }
                tokio::time::sleep(Duration::from_millis(500)).await;
            }
            5 => {
                world.count("times descriptors ran out");
                let id = world.host.borrow().as_ref().unwrap().id();
                let process = rustix::process::Pid::from_raw(id.cast_signed());
                // The host inherited its maximum from this process.
                let none = Rlimit { current: Some(24), ..getrlimit(Resource::Nofile) };
                let before = prlimit(process, Resource::Nofile, none).unwrap();
                tokio::time::sleep(Duration::from_millis(1000)).await;
                prlimit(process, Resource::Nofile, before).unwrap();
            }
            6 => {
                world.count("times the log was closed");
                world.host.borrow().as_ref().unwrap().close_log();
            }
            _ if Instant::now() < world.noon => {
                world.count("kills");
                let mut host = world.host.borrow_mut().take().unwrap();
                host.kill();
                let host = start(host.into_home(), &world.library, &world.fault);
                world.address.set(host.address());
                *world.host.borrow_mut() = Some(host);
            }
            _ => {}
        }
    }
    let _ = std::fs::remove_file(&world.fault);
}

/// The same library with another word in its documentation.
fn another(library: &std::path::Path) -> Vec<u8> {
    let (mut bytes, word) = (std::fs::read(library).unwrap(), b"Adds a task");
    let places: Vec<usize> = (0..bytes.len() - word.len()).filter(|at| bytes[*at..].starts_with(word)).collect();
    assert!(!places.is_empty());
    places.into_iter().for_each(|at| bytes[at..at + 4].copy_from_slice(b"Puts"));
    bytes
}

fn resident(host: &TestHost) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{}/status", host.id())).unwrap_or_default();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap_or_default();
    line.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or(0) >> 10
}

#[derive(Deserialize)]
struct Task {
    text: String,
}

async fn day(span: Duration, seed: u64) {
    let home = TestHome::new();
    home.make();
    for who in 0..PEOPLE {
        let keys: Vec<String> = (0..LISTS).map(|list| format!("todo/{}", list_of(who, list * A_LIST))).collect();
        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
        home.identity(&format!("person{who}"), &format!("person{who}-pw"), &keys);
    }
    let todo = build::release("todo");
    put(&todo, &home.plugins().join("todo.so"));
    let (library, fault) = faults(&home);
    let path = home.path();
    let host = start(home, &library, &fault);
    let builds = [std::fs::read(&todo).unwrap(), another(&todo)];
    let (address, host) = (Cell::new(host.address()), RefCell::new(Some(host)));
    let (noon, until, counts) = (Instant::now() + span / 2, Instant::now() + span, RefCell::default());
    let world = Rc::new(World { host, address, home: path, fault, library, builds, noon, until, counts });
    let dice = |number: u64| Dice(Cell::new(seed.wrapping_mul(1000) + number));
    let people: Vec<_> = (0..PEOPLE).map(|who| spawn_local(person(Rc::clone(&world), who, dice(who)))).collect();
    let others = [
        spawn_local(guesser(Rc::clone(&world), dice(100))),
        spawn_local(operator(Rc::clone(&world), dice(101))),
        spawn_local(trouble(Rc::clone(&world), dice(102))),
    ];
    let mut memory = Vec::new();
    while world.goes_on() {
        tokio::time::sleep(span / 20).await;
        if let Some(host) = &*world.host.borrow() {
            memory.push(resident(host));
        }
    }
    let mut added = Vec::new();
    for person in people {
        added.push(person.await.unwrap());
    }
    for other in others {
        other.await.unwrap();
    }
    for (what, count) in &*world.counts.borrow() {
        println!("{count:>8} {what}");
    }
    println!("resident memory, in MiB, each twentieth of the day: {memory:?}");
    let mut lost = 0;
    for (who, added) in added.into_iter().enumerate() {
        let mut there: Vec<Task> = Vec::new();
        for list in 0..LISTS {
            let list = list_of(who as u64, list * A_LIST);
            let todo = login(world.address.get(), who as u64, &list).await.expect("all is well again");
            there.extend(todo.call("list", &()).await.expect("it is answered").read::<Vec<Task>>().expect("tasks"));
        }
        let once: HashSet<&str> = there.iter().map(|task| task.text.as_str()).collect();
        assert_eq!(once.len(), there.len(), "something is there twice");
        lost += added.answered.iter().filter(|text| !once.contains(text.as_str())).count();
        let undone = added.undone.iter().filter(|text| once.contains(text.as_str())).count();
        assert_eq!(undone, 0, "what was refused is not there");
    }
    assert!(world.command(&["audit".to_owned(), "verify".to_owned()], "").await, "the trail fits");
    println!("{lost} changes that were answered are lost; the trail fits");
    assert_eq!(lost, 0);
    // In MiB, of the host that has run since noon.
    let (third, last) = (&memory[memory.len() / 2..memory.len() * 3 / 4], &memory[memory.len() * 3 / 4..]);
    let most = |part: &[u64]| part.iter().copied().max().unwrap_or(0);
    println!("the third quarter has {} MiB at most, the last {} MiB", most(third), most(last));
    assert!(most(last) <= most(third) * 5 / 4 + 16, "memory is flat at the end");
}
