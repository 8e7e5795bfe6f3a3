//! A service's faults are contained: whatever its code does, its caller gets an error, and the host and the other services are
//! not affected. SECURITY.md names the faults that only a process of its own contains (a segmentation fault, an abort).

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use pb::client::{Call, Client, Error, Remote};
use system_tests::host::{TestHome, TestHost};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

const PATIENCE: Duration = Duration::from_secs(60);

const PERSPECTIVES: [&str; 5] = ["alice", "make", "attach", "detach", "other"];

fn serving() -> TestHost {
    let home = TestHome::new();
    home.make();
    serve(home)
}

fn serve(home: TestHome) -> TestHost {
    let hostile = PERSPECTIVES.map(|name| format!("hostile/{name}"));
    let keys: Vec<&str> = hostile.iter().map(String::as_str).chain(["todo"]).collect();
    home.identity("alice", "alice-pw", &keys);
    home.install("todo");
    home.install("hostile");
    home.start()
}

fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(async { tokio::time::timeout(PATIENCE, test).await.expect("nothing hangs") });
}

async fn connect(address: SocketAddr) -> Client {
    let stream = tokio::net::TcpStream::connect(address).await.expect("the door is open");
    Client::new(stream).await.expect("it speaks PB")
}

async fn login(address: SocketAddr, name: &str) -> Result<Remote, Error> {
    connect(address).await.login(name, "alice-pw", None).await
}

async fn answers<T: serde::de::DeserializeOwned>(remote: &Remote, method: &str) -> T {
    remote.call(method, &()).await.expect("it answers").read().expect("of that type")
}

async fn fails(remote: &Remote, method: &str) -> String {
    remote.call(method, &()).await.expect_err("it has a fault").to_string()
}

#[test]
fn a_panic_is_its_callers_error_wherever_it_happens() {
    let host = serving();
    let address = host.address();
    run(async {
        let todo = login(address, "alice/todo").await.expect("alice may");
        let alice = login(address, "alice/hostile").await.expect("alice may");
        assert_eq!(answers::<u64>(&alice, "change").await, 1);
        for method in ["panic", "panic_later", "panic_in_save"] {
            let fault = fails(&alice, method).await;
            assert!(fault.contains("RuntimeError") && fault.contains("failed inside the service"), "{method}: {fault}");
            assert!(!fault.contains("on purpose"), "what panicked is for the log, not for clients: {fault}");
        }
        assert_eq!(answers::<u64>(&alice, "change").await, 2, "what panicked, or could not be saved, is undone");
        for method in ["panic_in_task", "panic_in_thread"] {
            alice.call(method, &()).await.expect("the call itself is well");
        }
        for perspective in ["make", "attach"] {
            let refused = login(address, &format!("alice/hostile/{perspective}")).await.expect_err("it panics");
            assert!(refused.to_string().contains("failed inside the service"), "{perspective}: {refused}");
        }
        drop(login(address, "alice/hostile/detach").await.expect("it attaches"));
        let other = login(address, "alice/hostile/other").await.expect("it attaches");
        other.call("panic_in_drop", &()).await.expect("not yet");
        drop(other);
        assert_eq!(answers::<u64>(&alice, "change").await, 3, "it serves on after all of that");
        assert_eq!(answers::<Vec<jelly::Value>>(&todo, "list").await.len(), 0);
    });
    let list = host.home.run(&["service", "list", "--json"], "");
    let list: serde_json::Value = serde_json::from_str(&list).expect("it is JSON");
    let hostile = list.as_array().and_then(|list| list.iter().find(|library| library["service"] == "hostile"));
    let hostile = hostile.expect("it is listed");
    assert_eq!(hostile["state"], "serving");
    assert!(hostile["faults"].as_u64() >= Some(3), "the operator sees them: {hostile}");
    assert!(host.log().contains("in a method, on purpose"), "and where: {}", host.log());
    assert!(host.log().contains("hostile/src/lib.rs"), "with file and line");
}

#[test]
fn a_spinning_call_stalls_only_its_service_and_is_abandoned() {
    // A service in its own process would be killed: `processes` tests that.
    let home = TestHome::new();
    home.make();
    home.in_the_hosts_process();
    let mut host = serve(home);
    let address = host.address();
    run(async {
        let todo = login(address, "alice/todo").await.expect("alice may");
        let alice = login(address, "alice/hostile").await.expect("alice may");
        alice.notify("spin", &()).await.expect("it is sent");
        let hello = alice.call("hello", &());
        let mut hello = std::pin::pin!(hello);
        let first = tokio::time::timeout(Duration::from_millis(50), hello.as_mut()).await;
        assert!(first.is_err(), "its own service is stalled");
        for _ in 0..100 {
            assert_eq!(answers::<Vec<jelly::Value>>(&todo, "list").await.len(), 0, "no other is");
        }
        std::fs::remove_file(host.home.plugins().join("libhostile.so")).expect("it is there");
        let told = hello.await.expect_err("its service is given up").to_string();
        assert!(told.contains("DeadReferenceError"), "{told}");
        assert_eq!(answers::<Vec<jelly::Value>>(&todo, "list").await.len(), 0);
    });
    host.wait_for("its library stays in memory: condemned");
    let why = host.home.run(&["service", "why", "hostile"], "");
    assert!(why.contains("its thread does not return"), "{why}");
    // The name is free: the same library serves again beside the lost thread.
    host.home.install("hostile");
    run(async {
        let deadline = Instant::now() + PATIENCE;
        let alice = loop {
            match login(address, "alice/hostile").await {
                Ok(alice) => break alice,
                Err(error) => assert!(Instant::now() < deadline, "{error}"),
            }
        };
        assert_eq!(answers::<String>(&alice, "hello").await, "hello");
    });
}

#[test]
fn a_service_that_logs_too_much_is_cut_short_and_delays_nobody() {
    let host = serving();
    let address = host.address();
    run(async {
        let todo = login(address, "alice/todo").await.expect("alice may");
        let alice = login(address, "alice/hostile").await.expect("alice may");
        let chatter = alice.call("chatter", &(20_000,));
        let list = todo.call("list", &());
        let (chatter, list) = tokio::join!(chatter, list);
        chatter.expect("it ends");
        list.expect("it answers");
        assert_eq!(answers::<String>(&alice, "hello").await, "hello");
    });
    let lines = host.log().matches("so it goes").count();
    assert!(lines < 2_000, "{lines} of 20,000 lines are in the log");
}

/// A connection whose client stops reading on request.
async fn mutable(address: SocketAddr) -> (Client, tokio::sync::watch::Sender<bool>) {
    let (ours, theirs) = tokio::io::duplex(1 << 16);
    let socket = tokio::net::TcpStream::connect(address).await.expect("the door is open");
    let (mut from_host, mut to_host) = socket.into_split();
    let (mut from_client, mut to_client) = tokio::io::split(theirs);
    let (mute, muted) = tokio::sync::watch::channel(false);
    tokio::spawn(async move { tokio::io::copy(&mut from_client, &mut to_host).await });
    tokio::spawn(async move {
        let mut buffer = vec![0; 1 << 14];
        while !*muted.borrow() {
            let Ok(count) = from_host.read(&mut buffer).await else { return };
            if count == 0 || to_client.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
        // From here on it neither reads nor closes.
        std::future::pending::<()>().await;
    });
    (Client::new(ours).await.expect("it speaks PB"), mute)
}

#[test]
fn a_flooded_mind_that_does_not_read_affects_only_its_client() {
    let mut host = serving();
    let address = host.address();
    run(async {
        let todo = login(address, "alice/todo").await.expect("alice may");
        let (client, mute) = mutable(address).await;
        let mind = client.register(|_: Call| async { Ok(()) });
        let alice = client.login("alice/hostile", "alice-pw", Some(mind)).await.expect("alice may");
        mute.send(true).expect("it is read");
        // A hundred megabytes: more than the host buffers for any client.
        alice.notify("pester", &(100_000,)).await.expect("it is sent");
        let other = login(address, "alice/hostile/other").await.expect("the service goes on");
        assert_eq!(answers::<String>(&other, "hello").await, "hello");
        assert_eq!(answers::<Vec<jelly::Value>>(&todo, "list").await.len(), 0, "no other notices");
        tokio::task::spawn_blocking(move || host.wait_for("output buffer limit exceeded")).await.expect("it is let go");
    });
}
