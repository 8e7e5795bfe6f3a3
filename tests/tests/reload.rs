//! A replaced library serves at once, and nobody but its author notices.
//!
//! `CREDHOST_RELOADS=200 CREDHOST_CALLS=1000000 cargo test -p system-tests --test reload -- --nocapture` runs longer,
//! and prints figures.

use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use credhost::control::{ControlFailure, LibraryStatus, Request, send};
use credhost::multiservice::reload::Reloaded;
use jelly::Value;
use pb::client::{Answer, Call, Client, Error, Local, Remote};
use serde::de::DeserializeOwned;
use system_tests::build::{library, mode};
use system_tests::host::{TestHome, TestHost};
use system_tests::python::twisted;
use tokio::net::TcpStream;
use tokio::sync::Notify;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);
const DEAD: &str = "twisted.spread.pb.DeadReferenceError";

/// Starts a host that serves the ledger to alice and bob. Calls in replaced code may wait for three seconds.
fn serving() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| text.replace("grace = 10", "grace = 3").replace("patience = 10", "patience = 2"));
    home.identity("alice", "alice-pw", &["ledger"]);
    home.identity("bob", "bob-pw", &["ledger"]);
    home.install("ledger");
    home.start()
}

fn file(host: &TestHost) -> PathBuf {
    host.home.plugins().join("libledger.so")
}

/// Replaces the library that serves, as a build does: whole, by a rename.
fn place(host: &TestHost, bytes: &[u8]) {
    let new = host.home.path().join("new.so");
    std::fs::write(&new, bytes).expect("it can be written");
    std::fs::rename(new, file(host)).expect("it can be moved");
}

async fn ask(host: &TestHost, request: Request) -> Result<serde_json::Value, ControlFailure> {
    let socket = host.home.path().join("control.sock");
    let asked = tokio::task::spawn_blocking(move || send(&socket, &request, &mut |_, _| {}));
    asked.await.expect("it runs").expect("the host answers")
}

async fn reload(host: &TestHost) -> Result<Reloaded, String> {
    let answer =
        ask(host, Request::ServiceReload { name: "ledger".to_owned() }).await.map_err(|failed| failed.error)?;
    Ok(serde_json::from_value(answer["reloaded"].clone()).expect("it says how it went"))
}

/// Replaces the ledger by a build that behaves like this.
async fn replace(host: &TestHost, package: &str, how: &str) -> Result<Reloaded, String> {
    place(host, &mode(package, how));
    reload(host).await
}

/// Replaces it in the same way without a command: the host notices the file.
async fn seen(host: &TestHost, package: &str, how: &str) -> Reloaded {
    let before = shown(host).await.generation;
    place(host, &mode(package, how));
    within(async {
        loop {
            let status = shown(host).await;
            match status.reloaded {
                Some(reloaded) if reloaded.generation > before => return reloaded,
                _ => tokio::time::sleep(Duration::from_millis(5)).await,
            }
        }
    })
    .await
}

async fn shown(host: &TestHost) -> LibraryStatus {
    let answer = ask(host, Request::ServiceShow { name: "ledger".to_owned() }).await.expect("it is there");
    serde_json::from_value(answer["library"].clone()).expect("a status")
}

async fn connect(host: &TestHost) -> Client {
    Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await.expect("it speaks PB")
}

async fn login(client: &Client, name: &str, mind: Option<Local>) -> Remote {
    let account = client.login_password(&format!("{name}/ledger"), &format!("{name}-pw"), mind).await;
    account.expect("there is a key")
}

fn read<T: DeserializeOwned>(answer: Result<Answer, Error>) -> T {
    answer.expect("it is answered").read().expect("of this type")
}

async fn call<T: DeserializeOwned>(remote: &Remote, method: &str) -> T {
    read(within(remote.call(method, &())).await)
}

async fn within<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future).await.expect("it does not hang")
}

/// Returns the class and the text of an error.
async fn fails(remote: &Remote, method: &str) -> (String, String) {
    match within(remote.call(method, &())).await {
        Err(Error::Failure(failure)) => (failure.class, failure.value),
        other => panic!("{method} is answered with {other:?}"),
    }
}

/// A mind that counts how often it is asked to wait, and answers once it may.
#[derive(Default)]
struct Patient {
    asked: AtomicU64,
    come: Notify,
    may: Notify,
}

impl Patient {
    fn mind(self: &Arc<Self>, client: &Client) -> Local {
        let me = Arc::clone(self);
        client.register(move |call: Call| {
            let (me, waits) = (Arc::clone(&me), call.method() == "wait");
            async move {
                if waits {
                    let may = me.may.notified();
                    tokio::pin!(may);
                    may.as_mut().enable();
                    me.asked.fetch_add(1, Ordering::SeqCst);
                    me.come.notify_one();
                    may.await;
                }
                Ok(())
            }
        })
    }

    async fn asked(&self, times: u64) {
        within(async {
            while self.asked.load(Ordering::SeqCst) < times {
                self.come.notified().await;
            }
        })
        .await;
    }
}

#[tokio::test]
async fn a_reload_keeps_states_minds_and_connections() {
    let host = serving();
    let (alice, bob) = (connect(&host).await, connect(&host).await);
    let patient = Arc::new(Patient::default());
    let mind = patient.mind(&alice);
    let (mine, his) = (login(&alice, "alice", Some(mind)).await, login(&bob, "bob", None).await);
    for number in 1..=5u64 {
        assert_eq!(read::<u64>(mine.call("next", &(number,)).await), number);
    }
    assert_eq!(read::<u64>(his.call("add", &(7,)).await), 7);
    for generation in 2..=4u32 {
        let how = format!("v={generation}");
        let reloaded = seen(&host, "ledger", &how).await;
        assert_eq!((reloaded.generation, reloaded.attached, reloaded.states), (generation, 2, 2), "{reloaded:?}");
        assert_eq!(call::<String>(&mine, "mode").await, how, "the new code answers");
        assert_eq!(call::<(u64, u64)>(&mine, "total").await, (5, 0), "from the old code's state");
        let carried = u64::from(generation) - 1;
        assert_eq!(call::<(u64, u64, u64)>(&his, "story").await, (1, 0, carried), "who stays does not come and go");
        assert_eq!(call::<(u64, u64)>(&his, "together").await, (7, u64::from(generation)));
        within(mine.call("ask", &())).await.expect("the mind is known to the new code");
    }
    drop(mine);
    // The client's last reference detaches it from the code that serves now, and from no other.
    let again = login(&connect(&host).await, "alice", None).await;
    within(async { while call::<(u64, u64, u64)>(&again, "story").await != (2, 1, 3) {} }).await;
    let log = host.log();
    assert!(!log.contains("outlived") && !log.contains("detached from code"), "{log}");
    let status = shown(&host).await;
    assert_eq!((status.generation, status.attached, status.retiring), (4, 2, 0));
}

#[tokio::test]
async fn a_reload_rebuilds_named_objects_and_ends_others() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let reference = async |method: &str, arguments: &[&str]| {
        let answer = match arguments {
            [one] => mine.call(method, &(one,)).await,
            _ => mine.call(method, &()).await,
        };
        answer.expect("it is answered").remote().expect("a reference")
    };
    let (thing, named) = (reference("thing", &[]).await, reference("named", &["lamp"]).await);
    let bob = reference("account", &["bob"]).await;
    assert!(call::<bool>(&thing, "touch").await);
    assert_eq!(call::<String>(&named, "who").await, "lamp of plain");
    let reloaded = replace(&host, "ledger", "v=2").await.expect("it is replaced");
    assert_eq!(reloaded.objects, 2, "{reloaded:?}");
    assert_eq!(fails(&thing, "touch").await.0, DEAD);
    assert_eq!(call::<String>(&named, "who").await, "lamp of v=2");
    assert_eq!(call::<(u64, u64)>(&bob, "total").await, (0, 0), "another's perspective is one that has a name");
    assert_eq!(call::<String>(&bob, "mode").await, "v=2");
    // New objects get new numbers, and the dead one stays dead.
    let other = reference("thing", &[]).await;
    assert!(call::<bool>(&other, "touch").await);
    assert_eq!(fails(&thing, "touch").await.0, DEAD);
    // The references survive code that cannot rebuild the objects: they have not ended.
    replace(&host, "ledger", "rebuild-error").await.expect("it is replaced");
    assert_eq!(fails(&named, "who").await.0, DEAD);
    assert_eq!(call::<String>(&bob, "mode").await, "rebuild-error");
}

#[tokio::test]
async fn waiting_calls_end_in_the_old_code_without_changes() {
    let host = serving();
    let client = connect(&host).await;
    let patient = Arc::new(Patient::default());
    let mind = patient.mind(&client);
    let mine = login(&client, "alice", Some(mind)).await;
    let begin = |method: &'static str| {
        let mine = mine.clone();
        tokio::spawn(async move { mine.call(method, &()).await })
    };
    let (sees, changes, never) = (begin("see_later"), begin("change_later"), begin("never"));
    patient.asked(2).await;
    mine.call("mode", &()).await.expect("what was begun before has begun");
    // A reload does not wait for calls that wait.
    let reloaded = seen(&host, "ledger", "v=2").await;
    assert_eq!(reloaded.waiting, 3, "{reloaded:?}");
    assert_eq!(read::<u64>(mine.call("next", &(1,)).await), 1, "and the new code serves meanwhile");
    patient.may.notify_waiters();
    let seen: (u64, String) = read(within(sees).await.expect("it ends"));
    assert_eq!(seen, (0, "plain".to_owned()), "it is the old code that goes on, with what it knew");
    let Err(Error::Failure(refused)) = within(changes).await.expect("it ends") else { panic!("the old code changed") };
    assert_eq!(refused.class, "credhost.Reloaded");
    // The host ends a call that does not end by itself, once its time is up.
    let Err(Error::Failure(ended)) = within(never).await.expect("it ends") else { panic!("it was answered") };
    assert_eq!(ended.class, "credhost.Reloaded");
    assert_eq!(call::<(u64, u64)>(&mine, "total").await, (1, 0));
    within(async { while shown(&host).await.retiring != 0 {} }).await;
    let why = ask(&host, Request::ServiceWhy { name: "ledger".to_owned() }).await.expect("it says");
    assert_eq!((why["held"].as_array().map(Vec::len), why["retired"].as_u64()), (Some(0), Some(1)), "{why}");
}

#[tokio::test]
async fn a_client_that_does_not_answer_delays_no_reload() {
    let host = serving();
    let client = connect(&host).await;
    let patient = Arc::new(Patient::default());
    let mind = patient.mind(&client);
    let mine = login(&client, "alice", Some(mind)).await;
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let mine = mine.clone();
            tokio::spawn(async move { mine.call("see_later", &()).await })
        })
        .collect();
    patient.asked(20).await;
    for generation in 2..=6u32 {
        let reloaded = seen(&host, "ledger", &format!("v={generation}")).await;
        assert_eq!(reloaded.generation, generation);
    }
    // Their time in the old code is up, and they got an error.
    for call in waiting {
        let Err(Error::Failure(failure)) = within(call).await.expect("it ends") else { panic!("nobody has answered") };
        assert_eq!(failure.class, "credhost.Reloaded");
    }
    assert_eq!(call::<String>(&mine, "mode").await, "v=6");
}

/// Calls `next` without end, some calls at a time, and checks that each counts once and in its turn.
struct Caller {
    stop: Arc<AtomicBool>,
    done: tokio::task::JoinHandle<(u64, Vec<(Instant, Instant)>)>,
}

impl Caller {
    fn begin(account: Remote, from: u64, pause: Option<Duration>) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let done = tokio::spawn(async move {
            let (mut number, mut took) = (from, Vec::new());
            while !stopping.load(Ordering::Relaxed) {
                let began = Instant::now();
                let calls: Vec<_> = (0..8)
                    .map(|_| {
                        number += 1;
                        let (account, number) = (account.clone(), number);
                        (number, async move { account.call("next", &(number,)).await })
                    })
                    .collect();
                // All are in progress at once, and in this order.
                for (number, answer) in futures_in_order(calls).await {
                    assert_eq!(read::<u64>(answer), number);
                }
                took.push((began, Instant::now()));
                if let Some(pause) = pause {
                    tokio::time::sleep(pause).await;
                }
            }
            (number, took)
        });
        Self { stop, done }
    }

    /// Returns the last number, and the beginning and the end of each round of calls.
    async fn end(self) -> (u64, Vec<(Instant, Instant)>) {
        self.stop.store(true, Ordering::Relaxed);
        within(self.done).await.expect("each call counted once, and in its turn")
    }
}

/// A running future, and its output once it has finished.
type Running<F> = (u64, std::pin::Pin<Box<F>>, Option<<F as Future>::Output>);

/// Polls all futures, so that they begin in order, and returns their outputs.
async fn futures_in_order<F: Future>(futures: Vec<(u64, F)>) -> Vec<(u64, F::Output)> {
    let mut running: Vec<Running<F>> =
        futures.into_iter().map(|(number, future)| (number, Box::pin(future), None)).collect();
    std::future::poll_fn(|poll| {
        let mut waiting = false;
        for (_, future, output) in &mut running {
            if output.is_none() {
                match future.as_mut().poll(poll) {
                    std::task::Poll::Ready(done) => *output = Some(done),
                    std::task::Poll::Pending => waiting = true,
                }
            }
        }
        if waiting { std::task::Poll::Pending } else { std::task::Poll::Ready(()) }
    })
    .await;
    running.into_iter().filter_map(|(number, _, output)| Some((number, output?))).collect()
}

/// Covers every step and every kind of failure, under live calls: the old code serves, with its state unchanged.
#[tokio::test]
async fn after_any_failed_reload_the_old_code_serves_unchanged() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let named = mine.call("named", &("lamp",)).await.expect("it is answered").remote().expect("a reference");
    let caller = Caller::begin(mine.clone(), 0, Some(Duration::from_millis(1)));
    let steps = [
        ("vet-error", "vet says no"),
        // The author receives the place of the panic.
        ("vet-panic", "init failed inside the service (panicked at"),
        ("vet-hang", "its init does not return within 2 seconds"),
        ("init-hang", "longer than 6 seconds to be made"),
        ("start-hang", "longer than 5 seconds to start"),
        ("init-error", "init says no"),
        ("init-panic", "init failed inside the service (panicked at"),
        ("start-error", "start says no"),
        ("start-panic", "start failed inside the service (panicked at"),
        ("start-waits", "longer than 5 seconds to start"),
        ("health-error", "health says no"),
        ("health-panic", "health"),
        ("health-hang", "longer than 5 seconds to answer its health check"),
        ("rebuild-hang", "longer than 5 seconds to rebuild objects"),
    ];
    for (how, says) in steps {
        let refused = within(replace(&host, "ledger", how)).await.expect_err(how);
        assert!(refused.contains(says), "{how}: {refused}");
        assert_eq!(call::<String>(&mine, "mode").await, "plain", "{how}");
        assert_eq!(call::<(u64, u64)>(&mine, "together").await, (0, 1), "{how}: what start saved is not kept");
        assert_eq!(call::<(u64, u64, u64)>(&mine, "story").await, (1, 0, 0), "{how}");
        assert_eq!(call::<String>(&named, "who").await, "lamp of plain", "{how}");
        assert!(shown(&host).await.note.is_some_and(|note| note.contains(says)), "{how}: the operator is told");
    }
    // These files are refused before they are loaded.
    let whole = std::fs::read(library("ledger")).expect("it is built");
    for (bytes, says) in [(&whole[..whole.len() / 2], "only part of a library"), (b"no library".as_slice(), "ELF")] {
        place(&host, bytes);
        let refused = reload(&host).await.expect_err("it is refused");
        assert!(refused.contains(says), "{refused}");
    }
    let (last, _) = caller.end().await;
    assert_eq!(call::<(u64, u64)>(&mine, "total").await, (last, 0));
    // State that the old code cannot save stays in it, and keeps the old code.
    for (how, says) in [(1u8, "it cannot be written down"), (2, "saving it failed inside the service")] {
        mine.call("spoil", &(how,)).await.expect("it is done");
        let replaced = within(replace(&host, "ledger", &format!("v=spoiled-{how}"))).await;
        let refused = replaced.expect_err("what cannot be saved is not given up");
        assert!(refused.contains("cannot save its state") && refused.contains(says), "{refused}");
        mine.call("spoil", &(0u8,)).await.expect("it is done");
        assert_eq!(call::<String>(&mine, "mode").await, "plain");
        assert_eq!(call::<(u64, u64, u64)>(&mine, "story").await, (1, 0, 0));
    }
    place(&host, &mode("ledger", "v=2"));
    reload(&host).await.expect("and then it is replaced");
    assert_eq!(call::<String>(&mine, "mode").await, "v=2");
    assert_eq!(call::<(u64, u64)>(&mine, "total").await, (last, 0));
    assert_eq!(call::<String>(&named, "who").await, "lamp of v=2");
}

/// What new code changes before it serves is held back until it serves. The new code itself sees it.
#[tokio::test]
async fn each_change_that_a_start_makes_in_an_account_counts() {
    let host = serving();
    let client = connect(&host).await;
    let his = login(&client, "bob", None).await;
    assert_eq!(read::<u64>(his.call("next", &(1u64,)).await), 1);
    let hers = login(&client, "alice", None).await;
    let shared = hers.call("account", &("bob",)).await.expect("it is answered").remote().expect("a reference");
    replace(&host, "ledger", "start-writes").await.expect("it is replaced");
    assert_eq!(call::<(u64, u64)>(&his, "total").await, (3, 0));
    assert_eq!(read::<u64>(his.call("next", &(4u64,)).await), 4);
    assert_eq!(call::<(u64, u64)>(&shared, "total").await, (4, 0), "the object that was made anew is the same");
    replace(&host, "ledger", "v=2").await.expect("it is replaced");
    assert_eq!(call::<(u64, u64)>(&his, "total").await, (4, 0), "and all of it was saved");
}

#[tokio::test]
async fn new_code_that_refuses_a_client_ends_only_its_attachment() {
    let host = serving();
    let (alice, bob) = (connect(&host).await, connect(&host).await);
    let (mine, his) = (login(&alice, "alice", None).await, login(&bob, "bob", None).await);
    mine.call("next", &(1u64,)).await.expect("it counts");
    let mut mine = mine;
    for (how, class) in [("attached-error", "builtins.ValueError"), ("attached-panic", "builtins.RuntimeError")] {
        let waits = {
            let mine = mine.clone();
            tokio::spawn(async move { fails(&mine, "never").await })
        };
        mine.call("mode", &()).await.expect("what was begun before has begun");
        replace(&host, "ledger", how).await.expect("it is replaced");
        assert_eq!(within(waits).await.expect("it ends").0, class, "who waits is told why");
        assert_eq!(fails(&mine, "total").await.0, DEAD);
        assert_eq!(call::<String>(&his, "mode").await, how);
        assert_eq!(shown(&host).await.attached, 1);
        // The next code accepts her again when she logs in again.
        replace(&host, "ledger", "v=2").await.expect("it is replaced");
        mine = login(&alice, "alice", None).await;
        assert_eq!(call::<(u64, u64)>(&mine, "total").await, (1, 0));
    }
}

#[tokio::test]
async fn busy_code_is_replaced_when_free_and_loses_nothing() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let free = host.home.path().join("free");
    let blocked = {
        let mine = mine.clone();
        let until = free.to_str().expect("a plain path").to_owned();
        tokio::spawn(async move { mine.call("block_until", &(until,)).await })
    };
    // The blocking call began first: calls of one connection start in their order.
    let next = {
        let mine = mine.clone();
        tokio::spawn(async move { mine.call("next", &(1u64,)).await })
    };
    let refused = loop {
        match replace(&host, "ledger", "v=2").await {
            Err(refused) => break refused,
            // The call had not begun yet.
            Ok(_) => assert!(!blocked.is_finished(), "it blocks until it is told"),
        }
    };
    std::fs::write(&free, "").expect("it can be written");
    assert!(
        refused.contains("busy for longer than 5 seconds") && refused.contains("stop and start the service"),
        "{refused}"
    );
    within(blocked).await.expect("it ends").expect("it is answered");
    assert_eq!(read::<u64>(within(next).await.expect("it ends")), 1);
    replace(&host, "ledger", "v=3").await.expect("and now it is free");
    assert_eq!(call::<String>(&mine, "mode").await, "v=3");
    assert_eq!(call::<(u64, u64)>(&mine, "total").await, (1, 0));
}

#[tokio::test]
async fn states_of_another_shape_are_read_or_refused_by_name() {
    let host = serving();
    let client = connect(&host).await;
    let (alice, bob) = (login(&client, "alice", None).await, login(&client, "bob", None).await);
    for number in 1..=3u64 {
        alice.call("next", &(number,)).await.expect("it counts");
    }
    alice.call("add", &(5u64,)).await.expect("it adds");
    // The service's own state has lost fields and gained one with a default, which does no harm.
    let reloaded = seen(&host, "ledger-next", "plain").await;
    assert_eq!((reloaded.attached, reloaded.lost), (0, 2), "who is lost is not carried over: {reloaded:?}");
    // The accounts' `balance` is new and has no default: this code cannot read them.
    assert_eq!(fails(&alice, "balance").await.0, DEAD);
    let refused = client.login_password("alice/ledger", "alice-pw", None).await;
    let Err(Error::Failure(failure)) = refused else { panic!("it was read: {refused:?}") };
    assert!(failure.value.contains("the saved state does not fit this version") && failure.value.contains("balance"));
    let status = shown(&host).await;
    let names: Vec<&str> = status.unreadable.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["alice", "bob"], "both were attached, and so had states: {status:?}");
    let text = host.home.run(&["service", "show", "ledger"], "");
    assert!(text.contains("unreadable states") && text.contains("alice: ") && text.contains("balance"), "{text}");
    // After a rollback to the older code, everything is there.
    let back = host.home.run(&["service", "rollback", "ledger"], "");
    assert!(back.contains("serves its previous library") && back.contains("generation 3"), "{back}");
    let alice = login(&client, "alice", None).await;
    assert_eq!(call::<(u64, u64)>(&alice, "total").await, (3, 0));
    assert_eq!(call::<(u64, u64)>(&alice, "together").await.0, 5);
    // This code converts the old form of the state to its own.
    seen(&host, "ledger-next", "migrates").await;
    assert_eq!(call::<String>(&alice, "mode").await, "migrates");
    assert_eq!(call::<(u64, String)>(&alice, "balance").await, (3, "migrated".to_owned()));
    assert_eq!(call::<u64>(&alice, "next").await, 4);
    assert!(shown(&host).await.unreadable.is_empty());
    // Going back works the same way: now the old code cannot read the state, and names the field.
    seen(&host, "ledger", "v=2").await;
    assert_eq!(fails(&alice, "total").await.0, DEAD);
    assert!(shown(&host).await.unreadable.iter().any(|(name, why)| name == "alice" && why.contains("last")));
    seen(&host, "ledger-next", "plain").await;
    let alice = login(&client, "alice", None).await;
    assert_eq!(call::<(u64, String)>(&alice, "balance").await, (4, "migrated".to_owned()));
    drop(bob);
}

#[tokio::test]
async fn an_unreadable_shared_state_keeps_the_old_code() {
    let host = serving();
    let client = connect(&host).await;
    let alice = login(&client, "alice", None).await;
    alice.call("add", &(5u64,)).await.expect("it adds");
    let refused = replace(&host, "ledger-next", "shared-strange").await.expect_err("it is refused");
    assert!(refused.contains("the field `sum` is of another currency"), "{refused}");
    assert_eq!(call::<(u64, u64)>(&alice, "together").await, (5, 1), "the old code serves, and has it");
    replace(&host, "ledger-next", "shared-migrates").await.expect("it is replaced");
    // Her account has the old form, which this code does not read. Bob's is new.
    let bob = login(&client, "bob", None).await;
    assert_eq!(call::<(u64, String)>(&bob, "together").await, (500, "cent".to_owned()));
}

/// Services reach each other through a client: one calls it, and it calls the other. Both are replaced meanwhile.
#[tokio::test]
async fn calls_between_services_and_reloads_do_not_block_each_other() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["ledger", "todo"]);
    home.install("ledger");
    home.install("todo");
    let host = home.start();
    let client = connect(&host).await;
    let todo = client.login_password("alice/todo", "alice-pw", None).await.expect("there is a key");
    let asked = Arc::new(AtomicU64::new(0));
    let (other, count) = (todo.clone(), Arc::clone(&asked));
    let mind = client.register(move |_: Call| {
        let (other, count) = (other.clone(), Arc::clone(&count));
        async move {
            count.fetch_add(1, Ordering::SeqCst);
            let answered = other.call("add", &("asked",)).await;
            Ok(i64::from(answered.is_ok()))
        }
    });
    let ledger = login(&client, "alice", Some(mind)).await;
    for round in 0..5 {
        let calls: Vec<_> = (0..20)
            .map(|_| {
                let ledger = ledger.clone();
                tokio::spawn(async move { ledger.call("ask", &()).await })
            })
            .collect();
        let names = ["ledger", "todo"].map(|name| Request::ServiceReload { name: name.to_owned() });
        let [first, second] = names.map(|request| ask(&host, request));
        let (first, second) = within(async { tokio::join!(first, second) }).await;
        for replaced in [first, second] {
            assert_eq!(replaced.expect("it is replaced")["reloaded"]["generation"], round + 2);
        }
        for call in calls {
            assert_eq!(read::<u64>(within(call).await.expect("it ends")), 1, "and the other has answered");
        }
    }
    assert_eq!(asked.load(Ordering::SeqCst), 100);
    assert_eq!(read::<Vec<Value>>(todo.call("list", &()).await).len(), 100, "each of them once");
}

#[tokio::test]
async fn the_host_sees_every_way_of_replacing_a_library() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let until = async |how: &str| {
        within(async {
            while call::<String>(&mine, "mode").await != how {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        })
        .await;
    };
    let aside = |how: &str| {
        let path = host.home.path().join(format!("{how}.so"));
        std::fs::write(&path, mode("ledger", how)).expect("it can be written");
        path
    };
    std::fs::rename(aside("renamed"), file(&host)).expect("it can be moved");
    until("renamed").await;
    std::fs::write(file(&host), mode("ledger", "written")).expect("it can be written in its place");
    until("written").await;
    std::fs::remove_file(file(&host)).expect("it can be removed");
    std::fs::hard_link(aside("linked"), file(&host)).expect("it can be linked");
    until("linked").await;
    let swap = host.home.path().join("swap");
    symlink(aside("symlinked"), &swap).expect("it can be linked");
    std::fs::rename(&swap, file(&host)).expect("it can be moved");
    until("symlinked").await;
    symlink(aside("swapped"), &swap).expect("it can be linked");
    std::fs::rename(&swap, file(&host)).expect("it can be moved");
    until("swapped").await;
    assert_eq!(call::<(u64, u64, u64)>(&mine, "story").await.0, 1, "she was there all the time");
}

#[tokio::test]
async fn rapid_replacements_end_with_the_last_library() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let caller = Caller::begin(mine.clone(), 0, None);
    // Ten times a second, like a person who saves without thinking.
    for version in 0..40 {
        place(&host, &mode("ledger", &format!("v={version}")));
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    within(async {
        while call::<String>(&mine, "mode").await != "v=39" {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    // By command and by file event at once.
    for version in 40..50 {
        place(&host, &mode("ledger", &format!("v={version}")));
        let (one, other) = tokio::join!(reload(&host), reload(&host));
        assert!(one.is_ok() || other.is_ok(), "{one:?} {other:?}");
    }
    let (last, _) = caller.end().await;
    assert_eq!(call::<String>(&mine, "mode").await, "v=49");
    assert_eq!(call::<(u64, u64)>(&mine, "total").await, (last, 0));
    assert_eq!(call::<(u64, u64, u64)>(&mine, "story").await.0, 1);
}

#[tokio::test]
async fn reloads_neither_lose_nor_double_changes_of_data() {
    let host = serving();
    let client = connect(&host).await;
    let mine = login(&client, "alice", None).await;
    let stop = Arc::new(AtomicBool::new(false));
    let kept = Arc::new(Mutex::new(Vec::new()));
    let writer = {
        let (mine, stop, kept) = (mine.clone(), Arc::clone(&stop), Arc::clone(&kept));
        tokio::spawn(async move {
            for key in 0.. {
                if stop.load(Ordering::Relaxed) {
                    return key;
                }
                match mine.call("keep", &(format!("{key}"),)).await {
                    Ok(answer) => kept.lock().expect("nothing panics").push(answer.read::<u64>().expect("a count")),
                    // The call was in progress, and got an error that says that it changed nothing.
                    Err(Error::Failure(failure)) => assert_eq!(failure.class, "credhost.Reloaded", "{failure}"),
                    Err(other) => panic!("{other}"),
                }
            }
            0
        })
    };
    for generation in 0..20 {
        replace(&host, "ledger", &format!("v={generation}")).await.expect("it is replaced");
    }
    stop.store(true, Ordering::Relaxed);
    within(writer).await.expect("it ends");
    let counts = kept.lock().expect("nothing panics").clone();
    assert!(counts.len() > 20, "{}", counts.len());
    assert_eq!(counts, (1..=counts.len() as u64).collect::<Vec<_>>(), "none is lost, none is there twice");
}

/// Many clients call without a pause while the service is replaced again and again. No call is lost, counted twice or
/// out of turn, and every client is still on its first connection.
#[tokio::test]
async fn reloads_under_load_lose_double_and_reorder_no_call() {
    const CLIENTS: u64 = 50;
    let set =
        |name: &str, otherwise: u64| std::env::var(name).ok().and_then(|set| set.parse().ok()).unwrap_or(otherwise);
    let (reloads, calls) = (set("CREDHOST_RELOADS", 20), set("CREDHOST_CALLS", 20_000));
    let home = TestHome::new();
    home.make();
    for client in 0..CLIENTS {
        home.identity(&format!("client{client}"), "client-pw", &["ledger"]);
    }
    home.install("ledger");
    let host = home.start();
    let mut callers = Vec::new();
    for client in 0..CLIENTS {
        let connection = connect(&host).await;
        let account = connection.login_password(&format!("client{client}/ledger"), "client-pw", None).await;
        let account = account.expect("there is a key");
        callers.push((connection, account.clone(), Caller::begin(account, 0, None)));
    }
    let began = Instant::now();
    let (mut frozen, mut windows, mut held, mut done) = (Vec::new(), Vec::new(), 0, 0);
    let mut so_far = 0;
    while done < reloads || so_far < calls {
        let reloaded = replace(&host, "ledger", &format!("v={done}")).await.expect("it is replaced");
        assert_eq!(reloaded.attached, 50);
        // The freeze has ended by now, and did not begin much earlier than its own length before.
        let over = Instant::now();
        windows.push((over - Duration::from_secs_f64(reloaded.freeze_ms / 1e3) - Duration::from_millis(5), over));
        frozen.push(reloaded.freeze_ms);
        held += reloaded.held;
        done += 1;
        so_far = shown(&host).await.calls;
    }
    let took = began.elapsed();
    // The host has also noticed some of the files by itself.
    let carried = u64::from(shown(&host).await.generation) - 1;
    let (mut total, mut rounds) = (0, Vec::new());
    for (_connection, account, caller) in callers {
        let (last, took) = caller.end().await;
        assert_eq!(call::<(u64, u64)>(&account, "total").await, (last, 0));
        assert_eq!(call::<(u64, u64, u64)>(&account, "story").await, (1, 0, carried));
        total += last;
        rounds.extend(took);
    }
    let (mut waited, mut quiet): (Vec<f64>, Vec<f64>) = (Vec::new(), Vec::new());
    for (began, ended) in rounds {
        let meets = windows.iter().any(|(from, to)| began < *to && ended > *from);
        let of = if meets { &mut waited } else { &mut quiet };
        of.push((ended - began).as_secs_f64() * 1e3);
    }
    let percentile = |values: &mut Vec<f64>, of: f64| {
        values.sort_by(f64::total_cmp);
        values.get(((values.len().max(1) - 1) as f64 * of) as usize).copied().unwrap_or(0.0)
    };
    println!(
        "{done} reloads under {CLIENTS} clients, {total} calls in {:.1} s: none lost, doubled or out of order; every client \
         is on its first connection; {held} calls held",
        took.as_secs_f64()
    );
    let usual = percentile(&mut quiet, 0.5);
    for (what, values) in [
        ("a freeze", &mut frozen),
        ("8 calls at once, with no freeze", &mut quiet),
        ("8 calls at once, that meet a freeze", &mut waited),
    ] {
        let (middle, most) = (percentile(values, 0.5), percentile(values, 0.99));
        println!("{what:40} p50 {middle:7.2} ms   p99 {most:7.2} ms");
    }
    println!("added for calls that meet one, p99: {:.2} ms", percentile(&mut waited, 0.99) - usual);
}

#[tokio::test]
async fn concurrent_reloads_do_not_wait_for_one_that_hangs() {
    let home = TestHome::new();
    home.make();
    let all = ["ledger", "todo", "scores", "chat"];
    home.identity("alice", "alice-pw", &all);
    all.iter().for_each(|service| home.install(service));
    let host = home.start();
    let client = connect(&host).await;
    let mut perspectives = Vec::new();
    for service in all {
        let answer = client.login_password(&format!("alice/{service}"), "alice-pw", None).await;
        perspectives.push(answer.expect("there is a key"));
    }
    // The first hangs in its start. The others are replaced meanwhile.
    place(&host, &mode("ledger", "start-waits"));
    let hangs = tokio::spawn({
        let socket = host.home.path().join("control.sock");
        async move {
            let request = Request::ServiceReload { name: "ledger".to_owned() };
            tokio::task::spawn_blocking(move || send(&socket, &request, &mut |_, _| {})).await
        }
    });
    let others: Vec<_> =
        all[1..].iter().map(|name| ask(&host, Request::ServiceReload { name: (*name).to_owned() })).collect();
    for answer in futures_in_order(others.into_iter().enumerate().map(|(at, asked)| (at as u64, asked)).collect()).await
    {
        let answer = answer.1.expect("it is replaced");
        assert_eq!(answer["reloaded"]["attached"], 1, "{answer}");
    }
    assert!(!hangs.is_finished(), "the one that hangs has not come to an end yet");
    assert_eq!(read::<Vec<Value>>(perspectives[1].call("list", &()).await).len(), 0);
    let refused = within(hangs).await.expect("it runs").expect("it runs").expect("the host answers");
    assert!(refused.expect_err("it does not start").error.contains("longer than 5 seconds to start"));
    assert_eq!(call::<String>(&perspectives[0], "mode").await, "plain");
}

#[test]
fn a_twisted_client_does_not_notice_reloads() {
    let host = serving();
    let versions: Vec<String> = (1..=5)
        .map(|version| {
            let path = host.home.path().join(format!("v={version}"));
            std::fs::write(&path, mode("ledger", &format!("v={version}"))).expect("it can be written");
            path.to_str().expect("a plain path").to_owned()
        })
        .collect();
    let (port, library) = (host.port(), file(&host));
    let mut arguments = vec![port.as_str(), library.to_str().expect("a plain path")];
    arguments.extend(versions.iter().map(String::as_str));
    twisted("reload.py", &arguments);
}

#[tokio::test]
async fn a_reload_applies_the_services_current_section() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["seat"]);
    home.install("seat");
    let mut host = home.start();
    let policy = |host: &TestHost, policy: &str| {
        host.home.configure(|text| {
            let before = text.split("\n[service.seat]").next().unwrap_or_default();
            format!("{before}\n[service.seat]\npolicy = {policy}\n")
        });
        host.home.run_with(&["service", "reload", "seat"], "")
    };
    let (one, other) = (connect(&host).await, connect(&host).await);
    let first = one.login_password("alice/seat", "alice-pw", None).await.expect("alice may");
    assert!(other.login_password("alice/seat", "alice-pw", None).await.is_err(), "the seat is taken");

    for (wrong, says) in [("\"throw\"", "throw"), ("\"kick", "credhost.toml")] {
        let refused = policy(&host, wrong);
        let error = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(!refused.status.success() && error.contains(says), "{error}");
        first.call("whence", &()).await.expect("the old code serves, with what it was told");
    }

    // Nobody reloaded the others by name. For them, the host uses the last valid settings.
    host.home.install("todo");
    host.wait_for("services keep their previous settings from credhost.toml");
    host.wait_for("libtodo.so serves");

    assert!(policy(&host, "\"kick\"").status.success());
    first.call("whence", &()).await.expect("it is attached to the new code");
    let second = other.login_password("alice/seat", "alice-pw", None).await.expect("the latest sits");
    second.call("whence", &()).await.expect("and is served");
    assert!(first.call("whence", &()).await.is_err(), "whoever was there is not");
}
