//! A version of a service that some identities try, in any pair of isolations. It serves them, and everybody else is
//! served as before. What belongs to them is saved, and what belongs to all is unchanged.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use pb::client::{Client, Error, Remote};
use system_tests::build::{library, mode, mode_of};
use system_tests::host::{TestHome, TestHost};
use tokio::net::TcpStream;

async fn login(host: &TestHost, name: &str, service: &str) -> Result<Remote, Error> {
    let stream = TcpStream::connect(host.address()).await.expect("the door is open");
    let client = Client::new(stream).await?;
    client.login_password(&format!("{name}/{service}"), &format!("{name}-pw"), None).await
}

async fn account(host: &TestHost, name: &str) -> Remote {
    login(host, name, "ledger").await.expect("there is a key")
}

async fn number(remote: &Remote, method: &str, number: u64) -> u64 {
    remote.call(method, &(number,)).await.expect("it is answered").read().expect("a number")
}

async fn keep(remote: &Remote, key: &str) -> u64 {
    remote.call("keep", &(key,)).await.expect("it is answered").read().expect("a number")
}

async fn pair(remote: &Remote, method: &str) -> (u64, u64) {
    remote.call(method, &()).await.expect("it is answered").read().expect("two numbers")
}

async fn which(remote: &Remote) -> String {
    remote.call("mode", &()).await.expect("it is answered").read().expect("a text")
}

/// A guard against hanging, for loops that wait.
struct Guard(Instant);

impl Guard {
    fn new() -> Self {
        Self(Instant::now() + Duration::from_secs(60))
    }

    async fn again(&self) {
        assert!(Instant::now() < self.0, "it does not come to that");
        tokio::task::yield_now().await;
    }
}

async fn is_over(remote: &Remote) -> bool {
    remote.call("mode", &()).await.is_err()
}

/// Starts a host with a ledger in this isolation. Alice and bob have accounts there.
fn host(isolation: &str) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.isolate(isolation);
    home.identity("alice", "alice-pw", &["ledger", "todo"]);
    home.identity("bob", "bob-pw", &["ledger"]);
    std::fs::write(home.plugins().join("libledger.so"), mode("ledger", "v=old")).expect("it can be written");
    home.install("todo");
    home.start()
}

/// Writes another build, beside the folder.
fn next(host: &TestHost, bytes: &[u8]) -> String {
    let file: PathBuf = host.home.path().join("next.so");
    std::fs::write(&file, bytes).expect("it can be written");
    file.display().to_string()
}

#[tokio::test]
async fn a_tried_version_serves_only_those_who_try_it() {
    for (serves, tries) in [
        ("none", "none"),
        ("none", "process"),
        ("none", "sandbox"),
        ("process", "none"),
        ("sandbox", "process"),
        ("process", "sandbox"),
    ] {
        let host = host(serves);
        let (alice, bob) = (account(&host, "alice").await, account(&host, "bob").await);
        for one in 1..=3 {
            assert_eq!(number(&alice, "next", one).await, one);
        }
        assert_eq!(number(&bob, "add", 5).await, 5);
        assert_eq!(keep(&bob, "one").await, 1);

        let file = next(&host, &mode("ledger", "v=new"));
        let said = host.home.run(&["service", "try", "ledger", &file, "--identity", "alice", "--isolation", tries], "");
        assert!(said.contains("alice can connect to it now; 1 connection of theirs ended"), "{said}");
        assert!(is_over(&alice).await, "{serves}, {tries}: her connection has ended");
        let alice = account(&host, "alice").await;
        assert_eq!((which(&alice).await, which(&bob).await), ("v=new".to_owned(), "v=old".to_owned()));
        assert_eq!(pair(&alice, "total").await, (3, 0), "{serves}, {tries}: what she had is there");
        assert_eq!(number(&alice, "next", 4).await, 4);
        // The shared state: from now on, hers is a copy, and bob's is the one that counts.
        assert_eq!(number(&alice, "add", 100).await, 105);
        assert_eq!(number(&bob, "add", 1).await, 6, "{serves}, {tries}: he does not notice");
        let refused = alice.call("keep", &("hers",)).await.expect_err("it is refused").to_string();
        assert!(refused.contains("only being tried"), "{refused}");
        assert_eq!(keep(&bob, "two").await, 2);
        // What she changes in his account is not saved either.
        let his: Remote = alice.call("account", &("bob",)).await.expect("it is answered").remote().expect("an object");
        assert_eq!(number(&his, "next", 1).await, 1);
        assert_eq!(pair(&bob, "total").await, (0, 0));
        let shown = host.home.run(&["service", "show", "ledger"], "");
        assert!(shown.contains("by alice: serving, 1 attached, ") && shown.contains(" calls, 0 panics"), "{shown}");
        assert!(host.home.run(&["service", "list"], "").contains("next.so tried by alice"));

        let said = host.home.run(&["service", "try", "ledger", "--end"], "");
        assert!(said.contains("the same ledger serves everybody again"), "{said}");
        assert!(is_over(&alice).await && !is_over(&bob).await);
        let alice = account(&host, "alice").await;
        assert_eq!((which(&alice).await, pair(&alice, "total").await), ("v=old".to_owned(), (4, 0)));
        assert_eq!(pair(&alice, "together").await.0, 6, "{serves}, {tries}");
        assert_eq!(pair(&bob, "total").await, (0, 0));
        let trail = host.home.run(&["audit", "show"], "");
        assert!(trail.contains("service.tried") && trail.contains("service.trial-ended"), "{trail}");
    }
}

/// A version that fails affects only those who try it.
#[tokio::test]
async fn a_failing_version_affects_only_those_who_try_it() {
    let host = host("process");
    let bob = account(&host, "bob").await;
    let panics = mode("ledger", "v=new");
    for (what, bytes, wanted) in [
        ("no library", b"not at all".to_vec(), "it is not a library"),
        ("another service", std::fs::read(library("todo")).expect("it is built"), "it is the service todo, not ledger"),
        ("refused when vetted", mode("ledger", "vet-error"), "vet says no"),
        ("does not start", mode("ledger", "start-error"), "start says no"),
        ("is not well", mode("ledger", "health-error"), "health says no"),
    ] {
        let alice = account(&host, "alice").await;
        let file = next(&host, &bytes);
        let refused = host.home.refused(&["service", "try", "ledger", &file, "--identity", "alice"], "");
        assert!(refused.contains(wanted), "{what}: {refused}");
        drop(alice);
        assert_eq!(which(&account(&host, "alice").await).await, "v=old", "{what}: she is served as before");
        assert!(host.home.refused(&["service", "try", "ledger", "--end"], "").contains("no other version"), "{what}");
    }
    let file = next(&host, &panics);
    let tried = |more: &[&str]| {
        let words: Vec<&str> = ["service", "try", "ledger", file.as_str()].iter().chain(more).copied().collect();
        host.home.run_with(&words, "")
    };
    for (words, wanted) in [
        (&["--identity", "alise"][..], "did you mean \"alice\""),
        (&[][..], "--identity"),
        (&["--identity", "alice", "--isolation", "jail"], "process"),
    ] {
        let said = tried(words);
        let said = String::from_utf8_lossy(&said.stderr).into_owned();
        assert!(said.contains(wanted), "{said}");
    }
    assert!(tried(&["--identity", "alice"]).status.success());
    let again = String::from_utf8_lossy(&tried(&["--identity", "bob"]).stderr).into_owned();
    assert!(again.contains("is being tried already"), "{again}");
    // It crashes until the host gives it up. Bob is served all the while.
    let alice = account(&host, "alice").await;
    assert_eq!(number(&alice, "next", 1).await, 1);
    for crash in 1..=3 {
        rustix::process::kill_process(worker(&host), rustix::process::Signal::KILL).expect("it runs");
        if crash < 3 {
            // It answers again by itself, from what was saved.
            let guard = Guard::new();
            while is_over(&alice).await {
                guard.again().await;
            }
        }
    }
    let guard = Guard::new();
    while !host.home.run(&["service", "show", "ledger"], "").contains("by alice: failed") {
        guard.again().await;
    }
    assert_eq!(which(&bob).await, "v=old");
    host.home.run(&["service", "try", "ledger", "--end"], "");
    let alice = account(&host, "alice").await;
    assert_eq!((which(&alice).await, pair(&alice, "total").await), ("v=old".to_owned(), (1, 0)));
}

/// Returns the process of the version that is tried: the host's only worker that belongs to no service.
fn worker(host: &TestHost) -> rustix::process::Pid {
    let of = |service: &str| {
        let shown = host.home.run(&["--json", "service", "show", service], "");
        let shown: serde_json::Value = serde_json::from_str(&shown).expect("JSON");
        shown["library"]["process"]["pid"].as_i64().expect("a process")
    };
    let known = [of("ledger"), of("todo")];
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.id())).expect("it runs").flatten();
        let children = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        let all: Vec<String> = children.collect();
        let mut all = all.iter().flat_map(|all| all.split_whitespace()).filter_map(|pid| pid.parse::<i64>().ok());
        if let Some(pid) = all.find(|pid| !known.contains(pid)) {
            return rustix::process::Pid::from_raw(i32::try_from(pid).expect("a number")).expect("a process");
        }
        assert!(Instant::now() < deadline, "it is started again");
        std::thread::yield_now();
    }
}

/// Versions with another form of state, and what else ends a trial besides its command.
#[tokio::test]
async fn a_trial_ends_with_its_service_and_outlives_a_reload_of_it() {
    let mut host = host("none");
    let alice = account(&host, "alice").await;
    assert_eq!(number(&alice, "next", 1).await, 1);
    let migrates = mode_of(&library("ledger-next"), "migrates");
    let file = next(&host, &migrates);
    host.home.run(&["service", "try", "ledger", &file, "--identity", "alice"], "");
    // The version for everybody else is replaced. She still tries the other one.
    std::fs::write(host.home.plugins().join("libledger.so"), mode("ledger", "v=later")).expect("it can be written");
    host.wait_for("libledger.so serves the new code");
    let (alice, bob) = (account(&host, "alice").await, account(&host, "bob").await);
    assert_eq!((which(&alice).await, which(&bob).await), ("migrates".to_owned(), "v=later".to_owned()));
    // A disabled identity is disconnected from the tried version, too.
    host.home.run(&["identity", "disable", "alice"], "");
    assert!(is_over(&alice).await && !is_over(&bob).await);
    host.home.run(&["service", "stop", "ledger"], "");
    host.home.run(&["service", "start", "ledger"], "");
    assert!(host.home.refused(&["service", "try", "ledger", "--end"], "").contains("no other version"));
    host.home.run(&["service", "try", "ledger", &file, "--identity", "bob"], "");
    assert_eq!(host.terminate(), Some(0));
}

/// Whoever has a key for a perspective that somebody tries has to try it, too. Keys that are added later count. Objects
/// that were kept from the other version end.
#[tokio::test]
async fn a_tried_perspective_has_one_version_at_a_time() {
    let host = host("process");
    let file = next(&host, &mode("ledger", "v=new"));
    host.home.run(&["key", "add", "bob", "ledger", "alice"], "");
    let words = ["service", "try", "ledger", file.as_str(), "--identity", "alice"];
    let refused = host.home.refused(&words, "");
    assert!(refused.contains("bob has a key for ledger/alice, too") && refused.contains("--identity bob"), "{refused}");
    let guard = Guard::new();
    while !host.home.run(&["audit", "show"], "").contains("service.tried") {
        guard.again().await;
    }
    host.home.run(&["key", "remove", "bob", "ledger", "alice"], "");

    // She drops her perspective, and keeps an object.
    let alice = account(&host, "alice").await;
    let kept: Remote = alice.call("account", &("alice",)).await.expect("it is answered").remote().expect("an object");
    drop(alice);
    host.home.run(&words, "");
    assert!(is_over(&kept).await, "it was of the other version");

    host.home.run(&["key", "add", "alice", "ledger", "work"], "");
    let work = login(&host, "alice", "ledger/work").await.expect("there is a key");
    assert_eq!((which(&work).await, number(&work, "next", 1).await), ("v=new".to_owned(), 1));
    host.home.run(&["service", "try", "ledger", "--end"], "");
    let work = login(&host, "alice", "ledger/work").await.expect("there is a key");
    assert_eq!((which(&work).await, pair(&work, "total").await), ("v=old".to_owned(), (1, 0)), "it was saved");
}

/// Whatever the file is, and whenever the service stops, nothing is left of a trial, and nobody is locked out.
#[tokio::test]
async fn nothing_is_left_of_a_failed_trial() {
    let mut host = host("process");
    let pipe = host.home.path().join("pipe.so");
    assert!(std::process::Command::new("mkfifo").arg(&pipe).status().expect("it runs").success());
    for _ in 0..6 {
        let words = ["service", "try", "ledger", &pipe.display().to_string(), "--identity", "alice"];
        assert!(host.home.refused(&words, "").contains("it is not a file"));
    }
    let file = next(&host, &mode("ledger", "v=new"));
    let children = |host: &TestHost| {
        let tasks = std::fs::read_dir(format!("/proc/{}/task", host.id())).expect("it runs").flatten();
        let of = tasks.map(|task| std::fs::read_to_string(task.path().join("children")).unwrap_or_default());
        of.map(|all| all.split_whitespace().count()).sum::<usize>()
    };
    let before = children(&host);
    for _ in 0..4 {
        let mut trying = host.home.command();
        trying.args(["service", "try", "ledger", &file, "--identity", "alice"]).stderr(std::process::Stdio::null());
        let mut trying = trying.stdout(std::process::Stdio::null()).spawn().expect("it runs");
        host.home.run(&["service", "stop", "ledger"], "");
        let _ = trying.wait();
        host.home.run(&["service", "start", "ledger"], "");
        let _ = host.home.run_with(&["service", "try", "ledger", "--end"], "");
    }
    let deadline = Instant::now() + Duration::from_secs(60);
    while children(&host) != before {
        assert!(Instant::now() < deadline, "{} processes, and {before} before", children(&host));
        tokio::task::yield_now().await;
    }
    // A version that hangs in its start is ended, even though the command that asked for it is gone. Nobody has to wait
    // for its process.
    let hangs = next(&host, &mode("ledger", "start-hang"));
    let mut trying = host.home.command();
    trying.args(["service", "try", "ledger", &hangs, "--identity", "alice"]).stderr(std::process::Stdio::null());
    let mut trying = trying.spawn().expect("it runs");
    let guard = Guard::new();
    while !host.home.run(&["service", "show", "ledger"], "").contains("by alice: starting") {
        guard.again().await;
    }
    trying.kill().and_then(|()| trying.wait()).expect("it runs");
    host.home.run(&["service", "try", "ledger", "--end"], "");
    assert_eq!(which(&account(&host, "alice").await).await, "v=old");
    assert_eq!(host.terminate(), Some(0));
}

/// A state has one owner. The version that serves cannot change what the tried version has: it gets an error with the
/// name, whichever of them had it first. Nothing of the state is lost, and everything else continues.
#[tokio::test]
async fn a_tried_perspective_cannot_be_changed_by_the_other_version() {
    for (serves, held_before) in [("none", true), ("none", false), ("process", true), ("process", false)] {
        let mut host = host(serves);
        let bob = account(&host, "bob").await;
        let hers = async || bob.call("account", &("alice",)).await.and_then(|answer| answer.remote());
        // Alice has never logged in yet.
        let before = if held_before { Some(hers().await.expect("an object")) } else { None };
        if let Some(hers) = &before {
            assert_eq!(number(hers, "next", 1).await, 1);
        }
        let one = u64::from(held_before);
        let file = next(&host, &mode("ledger", "v=new"));
        host.home.run(&["service", "try", "ledger", &file, "--identity", "alice"], "");
        let alice = account(&host, "alice").await;
        assert_eq!(pair(&alice, "total").await, (one, 0), "what he has written is there");
        for turn in 1..=3 {
            let why = "alice is in use by another version of the service, which is being tried";
            // Looking at it is allowed.
            let reached = match &before {
                Some(hers) => hers.clone(),
                None => hers().await.expect("an object"),
            };
            let refused = reached.call("next", &(one + turn,)).await.expect_err("it is refused");
            let Error::Failure(failure) = &refused else { panic!("{refused}") };
            assert_eq!(
                (failure.class.as_str(), failure.value.as_str()),
                ("credhost.Elsewhere", why),
                "{serves}, {held_before}"
            );
            assert_eq!(number(&alice, "next", one + turn).await, one + turn, "{serves}, {held_before}: hers is saved");
            assert_eq!(number(&bob, "add", 1).await, turn, "{serves}, {held_before}: his own goes on");
        }
        // A change that comes together with a refused one, and is saved with it, succeeds as well.
        let reached = hers().await.expect("an object");
        for turn in 1..=50 {
            let (call, other) = ((turn,), (1,));
            let (his, refused, once_more) =
                tokio::join!(bob.call("next", &call), reached.call("next", &call), bob.call("add", &other));
            assert!(
                his.is_ok() && refused.is_err() && once_more.is_ok(),
                "{serves}, {held_before}: {his:?} {once_more:?}"
            );
        }
        assert_eq!(pair(&bob, "total").await, (50, 0));
        // The code that serves may have been replaced by then: it also knows.
        std::fs::write(host.home.plugins().join("libledger.so"), mode("ledger", "v=later")).expect("it can be written");
        host.wait_for("libledger.so serves the new code");
        let reached = hers().await.expect("an object");
        let refused = reached.call("next", &(1,)).await.expect_err("it is refused").to_string();
        assert!(refused.contains("is in use by another version"), "{refused}");
        // A key that is added meanwhile does not give the state two owners either.
        host.home.run(&["key", "add", "bob", "ledger", "alice"], "");
        let refused = login(&host, "bob", "ledger/alice").await.expect_err("it is refused").to_string();
        assert!(refused.contains("is in use by another version"), "{refused}");

        host.home.run(&["service", "try", "ledger", "--end"], "");
        let hers = hers().await.expect("an object");
        assert_eq!((pair(&hers, "total").await, number(&hers, "next", one + 4).await), ((one + 3, 0), one + 4));
        let alice = account(&host, "alice").await;
        assert_eq!((which(&alice).await, pair(&alice, "total").await), ("v=later".to_owned(), (one + 4, 0)));
    }
}

/// Changes that are not saved at once are not lost. The serving version saves them before the other version reads them,
/// and is refused from then on. What the other version read before somebody attached to it there was a copy, and is
/// read again.
#[tokio::test]
async fn unsaved_changes_move_with_their_perspective() {
    async fn put(drawer: &Remote, thing: &str) -> bool {
        drawer.call("put", &(thing,)).await.expect("it is answered").read().expect("whether it was put there")
    }
    async fn things(drawer: &Remote) -> Vec<String> {
        drawer.call("things", &()).await.expect("it is answered").read().expect("texts")
    }
    async fn drawer(of: &Remote, name: &str) -> Remote {
        of.call("drawer", &(name,)).await.expect("it is answered").remote().expect("an object")
    }
    for (serves, tries) in [("none", "none"), ("process", "none"), ("none", "process")] {
        let home = TestHome::new();
        home.make();
        home.isolate(serves);
        home.identity("alice", "alice-pw", &["drawers"]);
        home.identity("bob", "bob-pw", &["drawers"]);
        home.install("drawers");
        let host = home.start();
        let bob = login(&host, "bob", "drawers").await.expect("there is a key");
        let shared = drawer(&bob, "shared").await;
        assert!(put(&shared, "from before").await);
        let file = library("drawers").display().to_string();
        host.home.run(&["service", "try", "drawers", &file, "--identity", "alice", "--isolation", tries], "");
        let alice = login(&host, "alice", "drawers").await.expect("there is a key");
        // Nobody has attached to it in the tried version, which therefore has a copy.
        let copy = drawer(&alice, "shared").await;
        assert_eq!(things(&copy).await, ["from before"]);
        assert!(put(&copy, "nobody sees this").await && put(&shared, "not saved yet").await);

        host.home.run(&["key", "add", "alice", "drawers", "shared"], "");
        let hers = login(&host, "alice", "drawers/shared").await.expect("there is a key");
        assert_eq!(things(&hers).await, ["from before", "not saved yet"], "{serves}, {tries}");
        assert!(!put(&shared, "too late").await && put(&hers, "hers").await && put(&bob, "his own").await);
        let refused = shared.call("throw", &("too late",)).await.expect_err("it is refused").to_string();
        assert!(refused.contains("is in use by another version"), "{refused}");
        assert_eq!(things(&copy).await, things(&hers).await, "both are one object now");
        drop((hers, copy));
        host.home.run(&["service", "try", "drawers", "--end"], "");
        assert_eq!(things(&shared).await, ["from before", "not saved yet", "hers"], "{serves}, {tries}");
        assert!(put(&shared, "from after").await);
        drop((shared, bob));
        host.home.run(&["service", "stop", "drawers"], "");
        host.home.run(&["service", "start", "drawers"], "");
        let bob = login(&host, "bob", "drawers").await.expect("there is a key");
        assert_eq!(things(&bob).await, ["his own"]);
        let all = ["from before", "not saved yet", "hers", "from after"];
        assert_eq!(things(&drawer(&bob, "shared").await).await, all, "{serves}, {tries}");
    }
}

/// The tried version may save a state that the serving version cannot read. The serving version then does not save what
/// it has in memory: acknowledged changes are not overwritten.
#[tokio::test]
async fn an_unreadable_state_is_not_overwritten_after_a_trial() {
    async fn one_more(account: &Remote) -> u64 {
        account.call("next", &()).await.expect("it is answered").read().expect("a number")
    }
    for serves in ["none", "process"] {
        let mut host = host(serves);
        let bob = account(&host, "bob").await;
        let hers: Remote = bob.call("account", &("alice",)).await.expect("it is answered").remote().expect("an object");
        assert_eq!(number(&hers, "next", 1).await, 1);
        let migrates = mode_of(&library("ledger-next"), "migrates");
        let file = next(&host, &migrates);
        host.home.run(&["service", "try", "ledger", &file, "--identity", "alice"], "");
        let alice = account(&host, "alice").await;
        assert_eq!(one_more(&alice).await, 2);
        host.home.run(&["service", "try", "ledger", "--end"], "");
        let refused = hers.call("next", &(2,)).await.expect_err("it is refused").to_string();
        assert!(refused.contains("the saved state of alice cannot be read by this version"), "{refused}");
        let shown = host.home.run(&["service", "show", "ledger"], "");
        assert!(shown.contains("alice"), "the operator is told which: {shown}");
        // Everything that it has in memory is saved now, and the new version takes over.
        std::fs::write(host.home.plugins().join("libledger.so"), &migrates).expect("it can be written");
        host.wait_for("libledger.so serves the new code");
        assert_eq!(one_more(&account(&host, "alice").await).await, 3, "{serves}: what she saved is there");
    }
}

/// The serving version may be busy when somebody logs in to the other one. The login fails with an error, and can be
/// retried.
#[tokio::test]
async fn a_login_is_refused_while_the_serving_version_is_busy() {
    let host = host("none");
    let file = next(&host, &mode("ledger", "v=new"));
    host.home.run(&["service", "try", "ledger", &file, "--identity", "alice"], "");
    let go_on = host.home.path().join("go-on");
    let bob = account(&host, "bob").await;
    let until = go_on.display().to_string();
    let blocked = tokio::spawn(async move { bob.call("block_until", &(until,)).await.map(drop) });
    let guard = Guard::new();
    // It may not have begun his call when she first logs in.
    let (mut refused, mut at) = (None, 0);
    while refused.is_none() {
        at += 1;
        host.home.run(&["key", "add", "alice", "ledger", &format!("w{at}")], "");
        refused = login(&host, "alice", &format!("ledger/w{at}")).await.err();
        guard.again().await;
    }
    let refused = refused.map_or_else(String::new, |refused| refused.to_string());
    assert!(refused.contains("has not released") && refused.contains("try again"), "{refused}");
    std::fs::write(go_on, "").expect("it can be written");
    blocked.await.expect("no panic").expect("it is answered");
    assert_eq!(which(&account(&host, "alice").await).await, "v=new");
}

/// A copy that the tried version has changed may have the same number of changes as the saved state. It is a copy
/// nevertheless.
#[tokio::test]
async fn a_trials_copy_is_not_saved_when_it_becomes_attached() {
    for tries in ["none", "process"] {
        let host = host("none");
        let bob = account(&host, "bob").await;
        let file = next(&host, &mode("ledger", "v=new"));
        let words = ["service", "try", "ledger", &file, "--identity", "alice", "--isolation", tries];
        host.home.run(&words, "");
        let alice = account(&host, "alice").await;
        host.home.run(&["key", "add", "alice", "ledger", "work"], "");
        let of = async |one: &Remote| -> Remote {
            one.call("account", &("work",)).await.expect("it is answered").remote().expect("an object")
        };
        let (copy, real) = (of(&alice).await, of(&bob).await);
        for one in 1..=20 {
            let (of_copy, of_real) = ((100 + one,), (one,));
            let (copied, called) = tokio::join!(copy.call("next", &of_copy), real.call("next", &of_real));
            assert!(copied.is_ok() && called.is_ok(), "{tries}: {copied:?}, {called:?}");
        }
        // The copy is being changed while she logs in.
        let change = async |copy: Remote, one: u64| copy.call("next", &(200 + one,)).await.map(drop);
        let changes: Vec<_> = (1..=20).map(|one| tokio::spawn(change(copy.clone(), one))).collect();
        let work = login(&host, "alice", "ledger/work").await.expect("there is a key");
        for change in changes {
            // Each change is answered, or fails with an error.
            let _ = change.await;
        }
        assert_eq!(pair(&work, "total").await, (20, 0), "{tries}: as it is saved");
        assert_eq!(number(&work, "next", 21).await, 21);
        host.home.run(&["service", "try", "ledger", "--end"], "");
        assert_eq!(pair(&real, "total").await, (21, 0), "{tries}");
    }
}
