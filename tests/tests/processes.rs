//! Services in processes of their own. Whatever happens to one of them, the host continues, clients stay connected, and
//! each acknowledged change is there once.
//!
//! `CREDHOST_KILLS=1000 cargo test -p system-tests --test processes kills -- --nocapture` kills more often, and prints
//! figures.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use credhost::control::{LibraryStatus, Request, send};
use pb::client::{Answer, Call, Client, Error, Local, Remote};
use serde::de::DeserializeOwned;
use system_tests::build::mode;
use system_tests::host::{TestHome, TestHost};
use tokio::net::TcpStream;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
const CRASHED: &str = "credhost.Crashed";

fn home(isolation: &str, services: &[&str]) -> TestHome {
    let home = TestHome::new();
    home.make();
    home.configure(|text| text.replace("patience = 10", "patience = 5"));
    home.isolate(isolation);
    home.identity("alice", "alice-pw", services);
    home.identity("bob", "bob-pw", services);
    services.iter().for_each(|service| home.install(service));
    home
}

/// Starts a host with these services in this isolation.
fn serving(isolation: &str, services: &[&str]) -> TestHost {
    home(isolation, services).start()
}

fn ask(host: &TestHost, request: Request) -> serde_json::Value {
    asked(&host.home.path(), request)
}

fn asked(home: &Path, request: Request) -> serde_json::Value {
    let answer = send(&home.join("control.sock"), &request, &mut |_, _| {}).expect("the host answers");
    answer.unwrap_or_else(|failed| panic!("{request:?}: {}", failed.error))
}

fn shown(host: &TestHost, service: &str) -> LibraryStatus {
    let answer = ask(host, Request::ServiceShow { name: service.to_owned() });
    serde_json::from_value(answer["library"].clone()).expect("a status")
}

/// Waits until the service's status is as `wanted`.
fn until(host: &TestHost, service: &str, wanted: impl Fn(&LibraryStatus) -> bool) -> LibraryStatus {
    let began = Instant::now();
    loop {
        let status = shown(host, service);
        if wanted(&status) {
            return status;
        }
        assert!(began.elapsed() < PATIENCE, "{status:?}\n{}", host.log());
        std::thread::sleep(Duration::from_millis(2));
    }
}

fn pid(host: &TestHost, service: &str) -> u32 {
    until(host, service, |status| status.process.is_some()).process.expect("it has one").pid
}

fn kill(pid: u32) {
    let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
    // The process may be gone already.
    let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
}

async fn connect(host: &TestHost) -> Client {
    Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await.expect("it speaks PB")
}

async fn login(client: &Client, name: &str, service: &str, mind: Option<Local>) -> Remote {
    let found = client.login_password(&format!("{name}/{service}"), &format!("{name}-pw"), mind).await;
    found.expect("there is a key")
}

fn read<T: DeserializeOwned>(answer: Result<Answer, Error>) -> T {
    answer.expect("it is answered").read().expect("of this type")
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not hang")
}

/// Returns the class and the text of an error.
fn failure(answer: Result<Answer, Error>) -> (String, String) {
    match answer {
        Err(Error::Failure(failure)) => (failure.class, failure.value),
        other => panic!("it is answered with {other:?}"),
    }
}

/// A mind that answers each call with a number.
fn mind(client: &Client) -> Local {
    client.register(|_: Call| async { Ok(7) })
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_worker_costs_its_callers_only_an_error() {
    let host = serving("process", &["ledger", "todo"]);
    let (client, other) = (connect(&host).await, connect(&host).await);
    let account = login(&client, "alice", "ledger", Some(mind(&client))).await;
    let todo = login(&other, "bob", "todo", None).await;
    assert_eq!(read::<u64>(within(account.call("next", &(1,))).await), 1);
    assert_eq!(read::<u64>(within(account.call("add", &(5,))).await), 5);
    let thing: Remote =
        within(account.call("named", &("x",))).await.expect("it is answered").remote().expect("a reference");
    let before = pid(&host, "ledger");
    let waiting = {
        let account = account.clone();
        tokio::spawn(async move { account.call("never", &()).await })
    };
    // The call has reached the service once a later call is answered.
    assert_eq!(read::<(u64, u64)>(within(account.call("total", &())).await), (1, 0));
    kill(before);
    let (class, said) = failure(within(waiting).await.expect("it runs"));
    assert_eq!(class, CRASHED);
    assert_eq!(said, "the service crashed (SIGKILL); it is not known whether the call was carried out");

    // The connection, the perspective and the mind are the same, and what was committed is there.
    assert_eq!(read::<u64>(within(account.call("next", &(2,))).await), 2);
    assert_eq!(read::<u64>(within(account.call("add", &(1,))).await), 6);
    assert_eq!(read::<(u64, u64, u64)>(within(account.call("story", &())).await), (1, 0, 1));
    assert_eq!(read::<i64>(within(account.call("ask", &())).await), 7);
    // Objects that only the dead code had are gone, and calls to them say so.
    let (class, _) = failure(within(thing.call("who", &())).await);
    assert_eq!(class, "twisted.spread.pb.DeadReferenceError");
    // Nobody else noticed.
    assert_eq!(read::<u64>(within(todo.call("add", &("milk",))).await), 0);
    let status = shown(&host, "ledger");
    assert_eq!((status.crashes, status.restarts, status.attached), (1, 1, 1));
    assert_eq!(status.crashed.as_deref(), Some("crashed (SIGKILL)"));
    assert_ne!(status.process.expect("it has one").pid, before);
    assert_eq!(shown(&host, "todo").crashes, 0);
}

/// The answers and errors that the clients received: see [`client_of_the_dead`].
#[derive(Default)]
struct Tally {
    answered: AtomicU64,
    failed: AtomicU64,
    /// From a crash to the next successful answer of a client that it affected, in microseconds.
    recovered: std::sync::Mutex<Vec<u64>>,
    /// From the kill to the error, in microseconds.
    told: std::sync::Mutex<Vec<u64>>,
    /// When the worker was last killed, in microseconds since `began`.
    killed: AtomicU64,
    began: std::sync::OnceLock<Instant>,
}

impl Tally {
    /// Microseconds since it began.
    fn now(&self) -> u64 {
        u64::try_from(self.began.get_or_init(Instant::now).elapsed().as_micros()).expect("not for ever")
    }
}

/// Counts up until `done` is set. Each answered call was carried out once; a call that failed may have been carried out
/// or not.
async fn client_of_the_dead(account: Remote, tally: Arc<Tally>, done: Arc<AtomicBool>) {
    let (mut last, mut broken) = (0_u64, None::<Instant>);
    while !done.load(Ordering::Relaxed) {
        match within(account.call("next", &(last + 1,))).await {
            Ok(answer) => {
                last += 1;
                assert_eq!(answer.read::<u64>().expect("a number"), last);
                tally.answered.fetch_add(1, Ordering::Relaxed);
                if let Some(since) = broken.take() {
                    let took = u64::try_from(since.elapsed().as_micros()).expect("not for ever");
                    tally.recovered.lock().expect("nothing panics").push(took);
                }
            }
            Err(Error::Failure(failure)) => {
                assert_eq!(failure.class, CRASHED, "{}", failure.value);
                tally.failed.fetch_add(1, Ordering::Relaxed);
                if broken.is_none() {
                    broken = Some(Instant::now());
                    let took = tally.now().saturating_sub(tally.killed.load(Ordering::SeqCst));
                    tally.told.lock().expect("nothing panics").push(took);
                }
                let (there, wrong) = total(&account).await;
                assert!(there == last || there == last + 1, "{last} were answered, and {there} are there");
                assert_eq!(wrong, 0, "nothing was done twice");
                last = there;
            }
            Err(other) => panic!("a connection was lost: {other:?}"),
        }
    }
    // The last kill may not have been noticed when the service was last looked at.
    assert_eq!(total(&account).await, (last, 0));
}

/// What the account counts, and how often it was called with a wrong number. Asks again while the service has crashed.
async fn total(account: &Remote) -> (u64, u64) {
    loop {
        match within(account.call("total", &())).await {
            Ok(answer) => return answer.read().expect("two numbers"),
            Err(Error::Failure(failure)) if failure.class == CRASHED => {}
            Err(other) => panic!("{other:?}"),
        }
    }
}

fn part(sorted: &[u64], percent: usize) -> u64 {
    sorted.get((sorted.len() * percent / 100).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// Kills at random moments: under load, during a reload, while the worker is restarted.
#[tokio::test(flavor = "multi_thread")]
async fn many_kills_lose_and_double_no_acknowledged_change() {
    let kills: u64 = std::env::var("CREDHOST_KILLS").ok().map_or(40, |kills| kills.parse().expect("a number"));
    let home = home("process", &["ledger"]);
    let names: Vec<String> = (0..8).map(|number| format!("client-{number}")).collect();
    names.iter().for_each(|name| home.identity(name, &format!("{name}-pw"), &["ledger"]));
    let host = home.start();
    let (tally, done) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let mut clients = Vec::new();
    for name in &names {
        let client = connect(&host).await;
        let account = login(&client, name, "ledger", Some(mind(&client))).await;
        clients.push((tokio::spawn(client_of_the_dead(account, Arc::clone(&tally), Arc::clone(&done))), client));
    }
    let path = host.home.path();
    let of_kills = Arc::clone(&tally);
    let killing = tokio::task::spawn_blocking(move || {
        let kill = |pid| {
            of_kills.killed.store(of_kills.now(), Ordering::SeqCst);
            kill(pid);
        };
        let mut random = 1_u64;
        for number in 0..kills {
            random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
            std::thread::sleep(Duration::from_micros(random >> 48));
            let status = asked(&path, Request::ServiceShow { name: "ledger".to_owned() });
            let pid = status["library"]["process"]["pid"].as_u64();
            // Every other kill falls into a reload. The crashes of new code are counted from zero, so that this can
            // continue.
            let reloading = std::thread::spawn({
                let path = path.clone();
                move || {
                    // The reload may fail, because the code may have died in the middle of it.
                    let reload = Request::ServiceReload { name: "ledger".to_owned() };
                    let _ = send(&path.join("control.sock"), &reload, &mut |_, _| {});
                }
            });
            if number % 2 == 0 {
                std::thread::sleep(Duration::from_micros((random >> 20) % 30_000));
            } else {
                reloading.join().expect("it ends");
                kill_shown(&path, &kill);
                continue;
            }
            if let Some(pid) = pid {
                kill(u32::try_from(pid).expect("a process"));
            }
            reloading.join().expect("it ends");
        }
    });
    killing.await.expect("it runs");
    // Whatever state the kills left the service in.
    until(&host, "ledger", |status| status.state == "serving" && status.process.is_some());
    // The clients leave as soon as they may, so this is read before.
    let status = shown(&host, "ledger");
    assert_eq!(status.attached, names.len(), "{status:?}\n{}", host.log());
    done.store(true, Ordering::Relaxed);
    for (client, _) in clients {
        client.await.expect("nothing was lost or doubled");
    }
    let mut recovered = tally.recovered.lock().expect("nothing panics").clone();
    recovered.sort_unstable();
    let mut told = tally.told.lock().expect("nothing panics").clone();
    told.sort_unstable();
    println!(
        "{kills} kills, {} crashes, {} calls answered, {} failed; from the kill to the error: p50 {} us, p99 {} us; from the error to \
         the next good answer: p50 {} us, p99 {} us",
        status.crashes,
        tally.answered.load(Ordering::Relaxed),
        tally.failed.load(Ordering::Relaxed),
        part(&told, 50),
        part(&told, 99),
        part(&recovered, 50),
        part(&recovered, 99),
    );
    assert!(status.crashes > 0 && tally.failed.load(Ordering::Relaxed) > 0, "something was killed");
}

fn kill_shown(path: &Path, kill: &impl Fn(u32)) {
    let status = asked(path, Request::ServiceShow { name: "ledger".to_owned() });
    if let Some(pid) = status["library"]["process"]["pid"].as_u64() {
        kill(u32::try_from(pid).expect("a process"));
    }
}

/// Waits until this event is in the trail.
fn in_trail(host: &TestHost, event: &str) {
    let began = Instant::now();
    while !host.home.run(&["audit", "show"], "").contains(event) {
        assert!(began.elapsed() < PATIENCE, "{event} is not in the trail");
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// Puts a library in place, and waits until it serves.
fn place(host: &TestHost, bytes: &[u8]) {
    let before = shown(host, "ledger").generation;
    let new = host.home.path().join("new.so");
    std::fs::write(&new, bytes).expect("it can be written");
    std::fs::rename(new, host.home.plugins().join("libledger.so")).expect("it can be moved");
    until(host, "ledger", |status| status.generation > before && status.state == "serving");
}

/// Kills the worker until the host no longer starts this version.
fn wear_out(host: &TestHost) {
    for _ in 0..3 {
        let pid = pid(host, "ledger");
        kill(pid);
        until(host, "ledger", |status| {
            status.process.is_none_or(|process| process.pid != pid) && !status.state.starts_with("waits")
        });
        if shown(host, "ledger").state.starts_with("failed") {
            return;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn code_that_crashes_three_times_is_rolled_back() {
    let host = serving("process", &["ledger"]);
    let client = connect(&host).await;
    let account = login(&client, "alice", "ledger", None).await;
    place(&host, &mode("ledger", "v=bad"));
    assert_eq!(read::<String>(within(account.call("mode", &())).await), "v=bad");
    wear_out(&host);
    // The same client is served, by the previous code.
    let status = until(&host, "ledger", |status| status.note.is_some());
    assert_eq!(read::<String>(within(account.call("mode", &())).await), "plain");
    let note = status.note.expect("it says so");
    assert!(note.contains("quarantined: the file crashed too often (it crashed (SIGKILL)"), "{note}");
    for event in ["service.crashed", "service.quarantined", "service.reloaded"] {
        in_trail(&host, event);
    }
    assert!(host.log().contains("this version is no longer started"), "{}", host.log());

    // If the previous code crashes as well, the service stops and reports it, and a client gets an error.
    wear_out(&host);
    let status = until(&host, "ledger", |status| status.state.starts_with("failed"));
    assert!(status.state.contains("the previous version had crashed too often, too"), "{}", status.state);
    let (_, said) = failure(within(account.call("mode", &())).await);
    assert!(!said.is_empty());
    // An operator can start the service again.
    host.home.run(&["service", "start", "ledger"], "");
    let again = login(&connect(&host).await, "bob", "ledger", None).await;
    assert_eq!(read::<u64>(within(again.call("next", &(1,))).await), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn isolation_can_change_while_clients_stay_attached() {
    let host = serving("none", &["ledger"]);
    let client = connect(&host).await;
    let account = login(&client, "alice", "ledger", Some(mind(&client))).await;
    let named: Remote = within(account.call("named", &("x",))).await.expect("answered").remote().expect("a reference");
    let mut counted = 0;
    for isolation in ["process", "sandbox", "process", "none", "sandbox", "none"] {
        host.home.isolate(isolation);
        let said = host.home.run(&["reload"], "");
        assert!(said.contains(&format!("→ {isolation}")), "{said}");
        let status = shown(&host, "ledger");
        assert_eq!(status.isolation.to_string(), isolation);
        assert_eq!(status.process.is_some(), isolation != "none");
        counted += 1;
        assert_eq!(read::<u64>(within(account.call("next", &(counted,))).await), counted);
        assert_eq!(read::<i64>(within(account.call("ask", &())).await), 7);
        assert_eq!(read::<String>(within(named.call("who", &())).await), "x of plain");
    }
    assert_eq!(read::<(u64, u64)>(within(account.call("total", &())).await), (counted, 0));
    // Nothing is left to be done.
    assert!(!host.home.run(&["reload"], "").contains("isolation"));
}

#[tokio::test(flavor = "multi_thread")]
async fn hanging_code_is_reported_and_restarted_in_a_process() {
    for isolation in ["none", "process"] {
        let home = home(isolation, &["ledger"]);
        home.configure(|text| text.replace("# watchdog = 30", "watchdog = 1"));
        let host = home.start();
        let account = login(&connect(&host).await, "alice", "ledger", None).await;
        let until_there = host.home.path().join("there");
        let waiting = {
            let (account, file) = (account.clone(), until_there.display().to_string());
            tokio::spawn(async move { account.call("block_until", &(file,)).await })
        };
        if isolation == "none" {
            let status = until(&host, "ledger", |status| status.state != "serving");
            assert!(status.state.contains("has not returned for 1 s, in block_until"), "{}", status.state);
            std::fs::write(&until_there, "").expect("it can be written");
            assert!(within(waiting).await.expect("it runs").is_ok());
            until(&host, "ledger", |status| status.state == "serving");
        } else {
            let (class, said) = failure(within(waiting).await.expect("it runs"));
            assert_eq!(class, CRASHED);
            assert!(said.contains("has not returned for") && said.contains("in block_until, and was killed"), "{said}");
            assert_eq!(read::<u64>(within(account.call("next", &(1,))).await), 1);
        }
        in_trail(&host, "service.late");
    }
}

/// A killed host leaves no processes behind: its workers end with it, and the next host continues from what was
/// committed.
#[tokio::test(flavor = "multi_thread")]
async fn workers_end_when_the_host_is_killed() {
    let mut host = serving("process", &["ledger", "todo"]);
    let account = login(&connect(&host).await, "alice", "ledger", None).await;
    assert_eq!(read::<u64>(within(account.call("next", &(1,))).await), 1);
    let workers = [pid(&host, "ledger"), pid(&host, "todo")];
    host.kill();
    let began = Instant::now();
    while workers.iter().any(|pid| is_alive(*pid)) {
        assert!(began.elapsed() < PATIENCE, "they end with it");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    let host = host.into_home().start();
    let account = login(&connect(&host).await, "alice", "ledger", None).await;
    assert_eq!(read::<(u64, u64)>(within(account.call("total", &())).await), (1, 0));
}

fn is_alive(pid: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // A process that has ended stays a zombie until its parent waits for it.
    !status.is_empty() && !status.contains(") Z ")
}

/// However a worker ends, by its own fault or by what it sends to the host, the host and everybody else continue.
#[tokio::test(flavor = "multi_thread")]
async fn the_host_and_other_services_survive_any_worker_failure() {
    let home = home("process", &["confined", "todo"]);
    home.configure(|text| {
        text.replace("# watchdog = 30", "watchdog = 1")
            + "\n[service.confined]\nmost = { memory = \"256 MiB\", files = 128 }\n"
    });
    let host = home.start();
    let todo = login(&connect(&host).await, "bob", "todo", None).await;
    let client = connect(&host).await;
    let prisoner = login(&client, "alice", "confined", None).await;
    let (mut counted, before) = (0_u64, host.id());
    for (how, said) in [
        ("segv", "crashed (SIGSEGV)"),
        ("abort", "crashed (SIGABRT)"),
        ("exit", "ended its process (exit code 3)"),
        ("overflow", "crashed (SIGSEGV)"),
        ("eat", "crashed (SIGABRT)"),
        ("kill", "crashed (SIGKILL)"),
        ("loop", "has not returned for"),
        ("signals", "has not returned for"),
        ("garbage", "sent a message of"),
        ("unknown", "sent a message of unknown kind 77, and was killed"),
        ("long", "sent a message of 4294967295 bytes"),
        ("no-frames", "sent malformed frames"),
        ("asks", "sent an answer or a request out of turn"),
        ("hosts-word", "sent malformed frames"),
        ("half", "ended its process (exit code 9)"),
        ("close", "ended its process (exit code 0)"),
        ("bomb", "crashed (SIGABRT)"),
        ("descriptors", "crashed (SIGABRT)"),
    ] {
        let (class, text) = failure(within(prisoner.call("die", &(how,))).await);
        assert_eq!(class, CRASHED, "{how}: {text}");
        assert!(text.contains(said), "{how}: {text}");
        // It serves again, from its last commit. It is new code in each round, whose crashes are counted from zero.
        counted += 1;
        assert_eq!(read::<u64>(within(prisoner.call("count", &())).await), counted, "{how}");
        assert_eq!(read::<u64>(within(todo.call("add", &("milk",))).await), counted - 1, "{how}");
        if matches!(how, "segv" | "abort" | "overflow") {
            // The status shows the place of the crash to the author. A client does not receive it.
            let at = if how == "overflow" { "confined::deeper" } else { "Prisoner::die" };
            let status =
                until(&host, "confined", |status| status.crashed.as_ref().is_some_and(|how| how.contains(", in ")));
            let crashed = status.crashed.expect("it has");
            assert!(crashed.contains(at) && !text.contains(at), "{crashed}");
        }
        ask(&host, Request::ServiceReload { name: "confined".to_owned() });
    }
    assert_eq!(host.id(), before);
    assert_eq!(shown(&host, "todo").crashes, 0);
}
