//! Every answered change is stored exactly once, whatever happens to the host: a kill -9 during changes, a full disk, a disk that
//! does not sync.

use std::collections::HashSet;
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use pb::client::{Client, Error, Remote};
use serde::Deserialize;
use system_tests::host::{TestHome, TestHost};
use tokio::net::TcpStream;

#[derive(Deserialize)]
struct Task {
    text: String,
}

#[derive(Deserialize)]
struct Letter {
    subject: String,
}

async fn login(host: &TestHost, name: &str) -> Remote {
    let stream = TcpStream::connect(host.address()).await.expect("the door is open");
    let client = Client::new(stream).await.expect("it speaks PB");
    let user = name.split('/').next().unwrap_or(name);
    client.login_password(name, &format!("{user}-pw"), None).await.expect("the password is right")
}

async fn texts(todo: &Remote) -> Vec<String> {
    let list: Vec<Task> = todo.call("list", &()).await.expect("it is answered").read().expect("tasks");
    list.into_iter().map(|task| task.text).collect()
}

async fn subjects(mail: &Remote) -> Vec<String> {
    let inbox: Vec<Letter> = mail.call("inbox", &(10_000,)).await.expect("it is answered").read().expect("letters");
    inbox.into_iter().map(|letter| letter.subject).collect()
}

/// Adds items one by one until the host is gone; returns the items that were answered.
async fn add(
    remote: Remote,
    method: &'static str,
    with: Option<&'static str>,
    label: String,
    count: Arc<AtomicU32>,
) -> Vec<String> {
    let mut answered = Vec::new();
    for number in 0.. {
        let text = format!("{label}-{number}");
        let done = match with {
            Some(to) => remote.call(method, &(to, &text)).await,
            None => remote.call(method, &(&text,)).await,
        };
        if done.is_err() {
            break;
        }
        answered.push(text);
        count.fetch_add(1, Ordering::Relaxed);
    }
    answered
}

fn check(what: &str, answered: &[String], there: &[String]) {
    let once: HashSet<&String> = there.iter().collect();
    assert_eq!(once.len(), there.len(), "{what}: something is there twice");
    for text in answered {
        assert!(once.contains(text), "{what}: {text} was answered, and is lost");
    }
}

/// `CREDHOST_KILLS=5000` for more kills.
#[test]
fn a_kill_during_changes_loses_no_answered_change() {
    let rounds: u32 = std::env::var("CREDHOST_KILLS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(80);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let mut home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo", "mail"]);
    home.identity("bob", "bob-pw", &["mail"]);
    home.install("todo");
    home.install("mail");
    let (mut letters, mut all) = (Vec::new(), 0);
    let mut dice = 2005u32;
    for round in 0..rounds {
        home.run(&["key", "add", "alice", "todo", &format!("r{round}")], "");
        let mut host = home.start();
        dice = dice.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let enough = dice >> 26;
        let (answered, sent) = runtime.block_on(async {
            let count = Arc::new(AtomicU32::new(0));
            let mut adding = Vec::new();
            for client in 0..3 {
                let todo = login(&host, &format!("alice/todo/r{round}")).await;
                let label = format!("{round}-{client}");
                adding.push(tokio::spawn(add(todo, "add", None, label, Arc::clone(&count))));
            }
            let mail = login(&host, "alice/mail").await;
            let sending = tokio::spawn(add(mail, "send", Some("bob"), format!("{round}"), Arc::clone(&count)));
            while count.load(Ordering::Relaxed) < enough {
                tokio::task::yield_now().await;
            }
            host.kill();
            let mut answered = Vec::new();
            for adding in adding {
                answered.extend(adding.await.expect("it ends"));
            }
            (answered, sending.await.expect("it ends"))
        });
        all += answered.len() + sent.len();
        letters.extend(sent);
        let host = host.into_home().start();
        runtime.block_on(async {
            check("tasks", &answered, &texts(&login(&host, &format!("alice/todo/r{round}")).await).await);
            if round % 20 == 19 || round + 1 == rounds {
                check("letters", &letters, &subjects(&login(&host, "bob/mail").await).await);
            }
        });
        home = host.into_home();
    }
    println!("{rounds} kills, {all} changes answered, none lost, none twice");
    let examined = home.run(&["doctor"], "");
    assert!(examined.contains("the store is sound"), "{examined}");
    home.run(&["audit", "verify"], "");
}

/// A library that makes the disk fail on request, and the file by which a test requests it.
fn faults(home: &TestHome) -> (String, std::path::PathBuf) {
    let library = home.path().join("faults.so");
    let source = system_tests::workspace().join("tests/fixtures/faults.c");
    let built =
        Command::new("gcc").args(["-shared", "-fPIC", "-O1", "-o"]).arg(&library).arg(source).arg("-ldl").output();
    let built = built.expect("gcc runs");
    assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    (library.display().to_string(), home.path().join("fault"))
}

#[tokio::test]
async fn a_disk_that_fails_is_a_clear_error_and_reads_go_on() {
    for kind in ["full", "fsync"] {
        let home = TestHome::new();
        home.make();
        home.identity("alice", "alice-pw", &["todo", "mail"]);
        home.install("todo");
        home.install("mail");
        let (library, fault) = faults(&home);
        let environment = [("LD_PRELOAD", library.as_str()), ("CREDHOST_FAULT", fault.to_str().expect("a path"))];
        let mut host = home.start_with(&[], &environment);
        let todo = login(&host, "alice/todo").await;
        let mail = login(&host, "alice/mail").await;
        todo.call("add", &("before",)).await.expect("the disk is well");

        std::fs::write(&fault, kind).expect("it can be written");
        // Many at once: changes that build on a failed change fail, too.
        let adding: Vec<_> = (0..20)
            .map(|number| {
                let todo = todo.clone();
                tokio::spawn(async move { todo.call("add", &(format!("during {number}"),)).await })
            })
            .collect();
        for adding in adding {
            match adding.await.expect("it ends") {
                Err(Error::Failure(failure)) => {
                    assert!(failure.value.contains("could not be saved and was undone"), "{failure}");
                }
                other => panic!("{kind}: answered with {other:?}"),
            }
        }
        match mail.call("send", &("alice", "hello")).await {
            Err(Error::Failure(failure)) => assert!(failure.value.contains("the disk"), "{failure}"),
            other => panic!("{kind}: answered with {other:?}"),
        }
        assert_eq!(texts(&todo).await, ["before"], "{kind}: what was undone is not told");
        assert!(subjects(&mail).await.is_empty());
        let refused = host.home.refused(&["identity", "add", "carol", "--no-password"], "");
        assert!(refused.contains("the store: the disk"), "{kind}: {refused}");
        assert_eq!(texts(&login(&host, "alice/todo").await).await, ["before"], "{kind}: who comes now gets in");

        std::fs::remove_file(&fault).expect("it is there");
        todo.call("add", &("after",)).await.expect("the disk is well again");
        mail.call("send", &("alice", "hello")).await.expect("for all");
        assert_eq!(texts(&todo).await, ["before", "after"]);
        host.kill();
        let host = host.into_home().start();
        assert_eq!(texts(&login(&host, "alice/todo").await).await, ["before", "after"]);
        assert_eq!(subjects(&login(&host, "alice/mail").await).await, ["hello"]);
    }
}

#[tokio::test]
async fn reads_of_unchanged_state_do_not_wait_for_a_stalled_disk() {
    let home = TestHome::new();
    home.make();
    for name in ["alice", "bob"] {
        home.identity(name, &format!("{name}-pw"), &["todo"]);
    }
    home.install("todo");
    let (library, fault) = faults(&home);
    let environment = [("LD_PRELOAD", library.as_str()), ("CREDHOST_FAULT", fault.to_str().expect("a path"))];
    let host = home.start_with(&[], &environment);
    let (alice, bob, beside) =
        (login(&host, "alice/todo").await, login(&host, "bob/todo").await, login(&host, "bob/todo").await);
    alice.call("add", &("hers",)).await.expect("the disk is well");

    std::fs::write(&fault, "stall").expect("it can be written");
    let reads = async |times: usize| {
        // A guard against hanging, not a measure.
        let patience = std::time::Duration::from_secs(30);
        for _ in 0..times {
            let read = tokio::time::timeout(patience, texts(&alice)).await;
            assert_eq!(read.expect("she waits for nobody"), ["hers"]);
        }
    };
    let add = tokio::spawn(async move { bob.call("add", &("his",)).await });
    reads(1000).await;
    // His change was made long ago; a read of it from another connection waits with him.
    let list = tokio::spawn(async move { texts(&beside).await });
    reads(1000).await;
    assert!(!add.is_finished() && !list.is_finished(), "what is not committed is not told");
    std::fs::remove_file(&fault).expect("it is there");
    add.await.expect("it ends").expect("the disk is well");
    assert_eq!(list.await.expect("it ends"), ["his"]);
}

#[tokio::test]
async fn on_a_full_disk_only_revocations_succeed() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.identity("bob", "bob-pw", &["todo"]);
    home.install("todo");
    let (library, fault) = faults(&home);
    let environment = [("LD_PRELOAD", library.as_str()), ("CREDHOST_FAULT", fault.to_str().expect("a path"))];
    let host = home.start_with(&[], &environment);
    let (alice, bob) = (login(&host, "alice/todo").await, login(&host, "bob/todo").await);
    bob.call("add", &("before",)).await.expect("the disk is well");
    std::fs::write(&fault, "brim").expect("it can be written");
    for round in 0..3 {
        // The first writer has used up no room but its own.
        match bob.call("add", &(format!("during {round}"),)).await {
            Err(Error::Failure(failure)) => assert!(failure.value.contains("could not be saved"), "{failure}"),
            other => panic!("answered with {other:?}"),
        }
        let refused = host.home.refused(&["identity", "add", &format!("carol{round}"), "--no-password"], "");
        assert!(refused.contains("the disk is full"), "{refused}");
    }
    host.home.run(&["key", "remove", "bob", "todo"], "");
    host.home.run(&["identity", "disable", "alice"], "");
    for gone in [&alice, &bob] {
        match gone.call("list", &()).await {
            Err(Error::Failure(failure)) => assert!(failure.class.ends_with("DeadReferenceError"), "{failure}"),
            Err(Error::Lost(_) | Error::NotSent(_)) => {}
            other => panic!("answered with {other:?}"),
        }
    }
    let shown = host.home.run(&["audit", "show", "--with", "identity.disabled"], "");
    assert!(shown.contains("identity=alice"), "{shown}");
    std::fs::remove_file(&fault).expect("it is there");
    host.home.run(&["identity", "add", "carol", "--no-password"], "");
    host.home.run(&["audit", "verify"], "");
}

#[tokio::test]
async fn a_backup_of_a_running_host_is_restored_whole() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let mut host = home.start();
    let todo = login(&host, "alice/todo").await;
    todo.call("add", &("in the backup",)).await.expect("it is saved");
    let file = host.home.path().join("../backup.db").display().to_string();
    host.home.run(&["backup", &file], "");
    assert!(host.home.refused(&["backup", &file], "").contains("File exists"), "no backup is overwritten");
    todo.call("add", &("after the backup",)).await.expect("it is saved");
    assert!(host.home.refused(&["restore", &file], "").contains("another credhost uses"));
    host.terminate();
    let home = host.into_home();
    std::fs::write(home.path().join("nonsense.db"), "nonsense").expect("it can be written");
    let nonsense = home.path().join("nonsense.db").display().to_string();
    assert!(home.refused(&["restore", &nonsense], "").contains("nothing was changed"));
    home.run(&["restore", &file], "");
    home.run(&["audit", "verify"], "");
    let host = home.start();
    assert_eq!(texts(&login(&host, "alice/todo").await).await, ["in the backup"]);
}
