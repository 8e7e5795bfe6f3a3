//! What is revoked is gone at once: every reference that it gave, in every service.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use credhost::control::{Request, send};
use credhost::multiservice::slot::ServiceState;
use credhost::session::Limits;
use pb::client::{Client, Error, Remote};
use serde_json::Value;
use system_tests::embedded::{Embedded, HOLD, MARKED, RawClient};
use system_tests::host::{TestHome, TestHost};
use tokio::net::TcpStream;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

async fn connect(host: &TestHost) -> Client {
    Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await.expect("it speaks PB")
}

async fn login(client: &Client, name: &str, password: &str) -> Remote {
    client.login_password(name, password, None).await.expect("the password is right")
}

fn ask(host: &TestHost, request: &Request) -> Value {
    let answer = send(&host.home.path().join("control.sock"), request, &mut |_, _| {});
    answer.expect("the host answers").expect("it is done")
}

fn name(name: &str) -> String {
    name.to_owned()
}

/// Returns the class of the error that a call ends with.
async fn dead(remote: &Remote, method: &str) -> String {
    match tokio::time::timeout(PATIENCE, remote.call(method, &())).await.expect("it is answered") {
        Err(Error::Failure(failure)) => failure.class,
        Err(Error::Lost(_) | Error::NotSent(_)) => name("lost"),
        other => panic!("{method} is answered with {other:?}"),
    }
}

const DEAD: &str = "twisted.spread.pb.DeadReferenceError";

#[tokio::test]
async fn disabling_an_identity_ends_its_references_everywhere() {
    let host = TestHost::with(&["my-service", "todo"]);
    let client = connect(&host).await;
    let avatar = login(&client, "alice", "alice-pw").await;
    let attach = async |avatar: &Remote, service: &str| {
        avatar.call("attach", &(service,)).await.expect("there is a key").remote().expect("a reference")
    };
    let (mine, todo) = (attach(&avatar, "my service").await, attach(&avatar, "todo").await);
    let thing = mine.call("thing", &()).await.expect("it is answered").remote().expect("a reference");
    // Two people share one connection.
    let bob = attach(&login(&client, "bob", "bob-pw").await, "todo").await;
    // A call in progress ends with the revocation, and one that is made right afterwards finds nothing.
    let under_way = {
        let mine = mine.clone();
        tokio::spawn(async move { dead(&mine, "never").await })
    };
    mine.call("none", &()).await.expect("it serves");
    ask(&host, &Request::IdentityDisable { name: name("alice") });
    assert_eq!(dead(&mine, "none").await, DEAD);
    assert_eq!(dead(&todo, "list").await, DEAD);
    assert_eq!(dead(&thing, "touch").await, DEAD);
    assert_eq!(dead(&avatar, "keys").await, DEAD);
    assert_eq!(under_way.await.expect("it ends"), DEAD);
    bob.call("list", &()).await.expect("bob is bob");
    let again = client.login_password("alice/todo", "alice-pw", None).await;
    assert!(matches!(again, Err(Error::Failure(failure)) if failure.class == "twisted.cred.error.UnauthorizedLogin"));
    ask(&host, &Request::IdentityEnable { name: name("alice") });
    login(&client, "alice/todo", "alice-pw").await.call("list", &()).await.expect("she is back");
    assert_eq!(dead(&todo, "list").await, DEAD, "what was dead stays dead");
}

#[test]
fn a_cached_copy_gets_no_updates_once_its_key_is_gone() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["my service", "my service/other"]);
    home.identity("bob", "bob-pw", &["my service/alice"]);
    home.install("my-service");
    let host = home.start();
    let (credhost, folder) = (system_tests::build::credhost(), host.home.path());
    let (credhost, folder) = (credhost.to_str().expect("a plain path"), folder.to_str().expect("a plain path"));
    system_tests::python::twisted("revoked_copy.py", &[&host.port(), credhost, folder]);
}

#[tokio::test]
async fn an_import_that_replaces_an_identity_ends_its_sessions() {
    let host = TestHost::with(&["todo"]);
    let client = connect(&host).await;
    let todo = login(&client, "alice/todo", "alice-pw").await;
    let bob = login(&client, "bob/todo", "bob-pw").await;
    let export = host.home.run(&["identity", "export"], "");
    let record = |of: &str| export.lines().find(|line| line.contains(of)).expect("it is exported").to_owned();
    let import = |lines: &str| host.home.run(&["identity", "import", "-", "--replace"], lines);
    // The record is unchanged: nobody notices.
    import(&record("\"alice\""));
    todo.call("list", &()).await.expect("it is the same");
    // A record that somebody else has made, with another password and without numbers.
    let mut other: Value = serde_json::from_str(&record("\"bob\"")).expect("JSON");
    other["name"] = "alice".into();
    other["keys"] = serde_json::json!(["todo/alice"]);
    for credential in other["credentials"].as_array_mut().expect("some") {
        credential.as_object_mut().expect("an object").remove("id");
        credential.as_object_mut().expect("an object").remove("verifier");
    }
    import(&other.to_string());
    assert_eq!(dead(&todo, "list").await, DEAD, "what she came by is not there any more");
    bob.call("list", &()).await.expect("bob is bob");
    login(&client, "alice/todo", "bob-pw").await.call("list", &()).await.expect("the new one is right");
}

#[tokio::test]
async fn removing_a_key_ends_only_the_references_it_gave() {
    let host = TestHost::with(&["my-service", "todo"]);
    let client = connect(&host).await;
    let mine = login(&client, "alice/my service", "alice-pw").await;
    let thing = mine.call("thing", &()).await.expect("it is answered").remote().expect("a reference");
    let todo = login(&client, "alice/todo", "alice-pw").await;
    ask(&host, &Request::KeyRemove { name: name("alice"), service: name("my service"), perspective: None });
    assert_eq!(dead(&mine, "none").await, DEAD);
    assert_eq!(dead(&thing, "touch").await, DEAD);
    todo.call("list", &()).await.expect("its key is there");
}

#[tokio::test]
async fn the_mind_of_a_removed_identity_is_not_called() {
    let host = TestHost::with(&["my-service"]);
    let client = connect(&host).await;
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let mind = client.register(move |call: pb::client::Call| {
        // The test may have ended.
        let _ = told.send(call.method().to_owned());
        async { Ok(()) }
    });
    let mine = client.login_password("alice/my service", "alice-pw", Some(mind)).await.expect("she is let in");
    mine.call("callmind", &(1,)).await.expect("it is called back");
    assert!(heard.recv().await.is_some());
    ask(&host, &Request::IdentityRemove { name: name("alice") });
    let refused = mine.call("callmind", &(1,)).await;
    assert!(matches!(refused, Err(Error::Failure(failure)) if failure.class == DEAD));
    assert!(heard.try_recv().is_err());
}

#[tokio::test]
async fn revoking_a_credential_ends_its_logins() {
    let host = TestHost::with(&["todo"]);
    let token = ask(&host, &Request::TokenNew { name: name("alice"), label: name("ci"), expires: None });
    let (client, other) = (connect(&host).await, connect(&host).await);
    let avatar = client.login_token(token["token"].as_str().expect("a token"), None).await.expect("it is taken");
    let by_token = avatar.call("attach", &("todo",)).await.expect("a key").remote().expect("a reference");
    let by_password = login(&other, "alice/todo", "alice-pw").await;
    ask(&host, &Request::TokenRemove { name: name("alice"), label: name("ci") });
    assert_eq!(dead(&by_token, "list").await, DEAD);
    by_password.call("list", &()).await.expect("the password is still hers");
    host.home.run(&["identity", "password", "alice", "--password-stdin"], "other-pw");
    assert_eq!(dead(&by_password, "list").await, DEAD);
}

#[tokio::test]
async fn the_operator_can_list_and_cut_sessions() {
    let host = TestHost::with(&["todo"]);
    let (client, other) = (connect(&host).await, connect(&host).await);
    let alice = login(&client, "alice/todo", "alice-pw").await;
    let bob = login(&other, "bob/todo", "bob-pw").await;
    let listed = host.home.run(&["session", "list"], "");
    assert!(listed.contains("alice") && listed.contains("todo/alice") && listed.contains("clear"), "{listed}");
    assert!(host.home.refused(&["session", "cut", "carol"], "").contains("there is no session of carol"));
    assert_eq!(host.home.run(&["session", "cut", "alice"], ""), "1 cut");
    assert_eq!(dead(&alice, "list").await, "lost");
    let sessions: Value =
        serde_json::from_str(&host.home.run(&["session", "list", "--json"], "")).expect("JSON is JSON");
    assert_eq!(sessions[0]["identities"], serde_json::json!(["bob"]));
    let number = sessions[0]["session"].to_string();
    host.home.run(&["session", "cut", &number], "");
    assert_eq!(dead(&bob, "list").await, "lost");
    assert_eq!(host.home.run(&["session", "list"], ""), "nobody is logged in");
}

#[tokio::test]
async fn a_service_can_let_in_one_client_at_a_time_or_the_latest() {
    for (policy, kicks) in [("refuse", false), ("kick", true)] {
        let home = TestHome::new();
        home.make();
        home.identity("alice", "alice-pw", &["seat"]);
        home.install("seat");
        home.configure(|text| format!("{text}\n[service.seat]\npolicy = \"{policy}\"\n"));
        let host = home.start();
        let (client, other) = (connect(&host).await, connect(&host).await);
        let first = login(&client, "alice/seat", "alice-pw").await;
        let second = other.login_password("alice/seat", "alice-pw", None).await;
        if kicks {
            second.expect("the latest sits").call("whence", &()).await.expect("and is served");
            assert_eq!(dead(&first, "whence").await, DEAD);
        } else {
            assert!(
                matches!(second, Err(Error::Failure(failure)) if failure.class == "twisted.cred.error.LoginDenied")
            );
            first.call("whence", &()).await.expect("the first sits");
        }
        // Her connection is still open, and a client that was kicked may come back.
        drop(first);
        login(&client, "alice/seat", "alice-pw").await;
    }
}

/// `CREDHOST_ROUNDS=50 cargo test --release -p system-tests --test revocation thousand -- --nocapture` prints figures.
#[tokio::test]
async fn a_thousand_references_are_dead_when_the_command_returns() {
    const CONNECTIONS: usize = 20;
    const EACH: usize = 50;
    let rounds: usize = std::env::var("CREDHOST_ROUNDS").ok().and_then(|rounds| rounds.parse().ok()).unwrap_or(3);
    let host = TestHost::with(&["todo"]);
    let mut times = Vec::new();
    for _ in 0..rounds {
        let mut references = Vec::new();
        let mut clients = Vec::new();
        for _ in 0..CONNECTIONS {
            let client = connect(&host).await;
            let avatar = login(&client, "alice", "alice-pw").await;
            for _ in 0..EACH {
                let todo = avatar.call("attach", &("todo",)).await.expect("a key").remote().expect("a reference");
                references.push(todo);
            }
            clients.push(client);
        }
        let began = Instant::now();
        ask(&host, &Request::IdentityDisable { name: name("alice") });
        times.push(began.elapsed());
        for reference in &references {
            assert_eq!(dead(reference, "list").await, DEAD);
        }
        ask(&host, &Request::IdentityEnable { name: name("alice") });
    }
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[(times.len() * 99).div_ceil(100) - 1]);
    println!("{} references dead, {rounds} rounds: p50 {p50:.1?}, p99 {p99:.1?}", CONNECTIONS * EACH);
}

/// Queues calls of alice behind a call that occupies the service's thread, runs `meanwhile`, and returns how many of
/// the queued calls have begun in the end.
fn begun_after(meanwhile: impl FnOnce(&Embedded, RawClient)) -> usize {
    let host = Embedded::start(Limits::default());
    let held = HOLD.lock().expect("no test has panicked");
    MARKED.store(0, Ordering::SeqCst);
    let mut alice = RawClient::login(host.address(), "alice");
    alice.begin("hold", &());
    while MARKED.load(Ordering::SeqCst) == 0 {
        std::thread::yield_now();
    }
    (0..50).for_each(|_| {
        alice.begin("mark", &());
    });
    // The root's answer comes after everything that was read before it.
    let request = alice.send(Err("root"), "nosuch", &[1, 0x80, 11, 0x87]);
    alice.error(request);
    meanwhile(&host, alice);
    drop(held);
    // The stop comes after everything that is queued.
    host.stop_service();
    MARKED.load(Ordering::SeqCst) - 1
}

#[test]
fn queued_calls_do_not_begin_after_a_revocation() {
    let revoked = begun_after(|host, alice| {
        assert!(host.sessions().changed("alice", None), "all have heard of it");
        drop(alice);
    });
    assert_eq!(revoked, 0);
    // The same while the service is about to stop, after everything that is queued.
    let stopping = begun_after(|host, alice| {
        let services = std::sync::Arc::clone(&host.services);
        std::thread::spawn(move || {
            let trial = services.service("trial").expect("the service");
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(trial.stop());
        });
        while host.services.service("trial").is_some_and(|trial| trial.state() != ServiceState::Stopped) {
            std::thread::yield_now();
        }
        // The host sends `Stop` in the same turn in which it sets the state.
        host.sessions().changed("alice", None);
        drop(alice);
    });
    assert_eq!(stopping, 0);
    // The control, which is intended: the queued calls of a client that has disconnected still run.
    assert_eq!(begun_after(|_, alice| drop(alice)), 50);
}
