//! Sessions of the client for Rust. Their host is stopped, killed and reloaded while they run.

use std::io::{BufRead, BufReader, Write};
use std::process::Stdio;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use pb::client::{Backoff, Call, Client, Credential, Endpoint, Error, Options, Session, Status, tls::Trust};
use system_tests::build;
use system_tests::host::{TestHome, TestHost};

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

async fn within<T>(what: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, what).await.expect("it does not hang")
}

fn home(services: &[&str]) -> TestHome {
    let home = TestHome::new();
    home.make();
    services.iter().for_each(|service| home.install(service));
    home.identity("alice", "alice-pw", services);
    home
}

/// A session that retries quickly.
fn session(endpoint: Endpoint, name: &str) -> Session {
    let backoff = Backoff { first: Duration::from_millis(10), most: Duration::from_millis(200), ..Backoff::default() };
    Session::builder(endpoint, Credential::password(name, "alice-pw")).backoff(backoff).start()
}

/// An address that no other test uses: a host that is restarted listens where it did before.
fn own_address() -> String {
    static NEXT: AtomicUsize = AtomicUsize::new(1);
    format!("127.77.{}.{}:8787", std::process::id() % 250, NEXT.fetch_add(1, Ordering::Relaxed))
}

fn start(home: TestHome, address: &str) -> TestHost {
    home.start_with(&["--listen", address], &[])
}

#[tokio::test]
async fn a_session_outlives_the_host_and_nothing_is_called_twice() {
    let address = own_address();
    let home = home(&["todo"]);
    // The session starts before the host.
    let session = session(Endpoint::tcp(&address), "alice");
    let todo = session.perspective("todo", None);
    let acknowledged = Arc::new(std::sync::Mutex::new(Vec::new()));
    let (stop, adding) = (Arc::new(AtomicUsize::new(0)), Arc::clone(&acknowledged));
    let (stopped, adds) = (Arc::clone(&stop), todo.clone());
    let added = tokio::spawn(async move {
        let (mut lost, mut number) = (0, 0);
        while stopped.load(Ordering::SeqCst) == 0 {
            number += 1;
            match adds.call("add", &(format!("task {number}"),)).await {
                Ok(_) => adding.lock().expect("nothing panics").push(format!("task {number}")),
                // The task may have been added or not: nobody knows.
                Err(Error::Lost(_)) => lost += 1,
                Err(error) => panic!("{error:?}"),
            }
        }
        (lost, number)
    });
    let mut host = start(home, &address);
    let count = || acknowledged.lock().expect("nothing panics").len();
    for _ in 0..5 {
        let before = count();
        within(async {
            while count() < before + 20 {
                tokio::task::yield_now().await
            }
        })
        .await;
        // The host is killed with SIGKILL.
        host = start(host.into_home(), &address);
    }
    let before = count();
    within(async {
        while count() < before + 20 {
            tokio::task::yield_now().await
        }
    })
    .await;
    stop.store(1, Ordering::SeqCst);
    let (lost, number) = within(added).await.expect("it ends");
    assert!(lost <= 5, "at most one was under way at each kill: {lost}");
    let list: Vec<serde_json::Value> = serde_json::from_str(
        &host.home.run(&["call", &format!("alice@{address}/todo"), "list", "--password-stdin", "--json"], "alice-pw"),
    )
    .expect("it is JSON");
    let texts: Vec<&str> = list.iter().map(|task| task["text"].as_str().expect("a text")).collect();
    for text in &*acknowledged.lock().expect("nothing panics") {
        assert_eq!(texts.iter().filter(|task| *task == text).count(), 1, "{text}");
    }
    assert!(texts.len() <= number, "{} of {number}", texts.len());
}

#[tokio::test]
async fn a_reconnected_session_gives_its_mind_without_a_call() {
    let address = own_address();
    let home = home(&["chat"]);
    home.identity("bob", "alice-pw", &["chat"]);
    let host = start(home, &address);
    let (told, mut heard) = tokio::sync::mpsc::unbounded_channel();
    let listens = session(Endpoint::tcp(&address), "alice");
    let _ear = listens.perspective_with("chat", None, move |call: Call| {
        // The test may have ended.
        let _ = told.send(call.method().to_owned());
        async { Ok(()) }
    });
    let says = session(Endpoint::tcp(&address), "bob");
    let mouth = says.perspective("chat", None);
    // Nobody hears it until alice is there.
    let mut hears = async || {
        within(async {
            loop {
                match mouth.call("say", &("hello",)).await {
                    Ok(_) | Err(Error::Lost(_)) => {}
                    Err(error) => panic!("{error:?}"),
                }
                while let Ok(method) = heard.try_recv() {
                    if method == "heard" {
                        return;
                    }
                }
            }
        })
        .await;
        while heard.try_recv().is_ok() {}
    };
    hears().await;
    let host = start(host.into_home(), &address);
    hears().await;
    host.home.run(&["service", "reload", "chat"], "");
    hears().await;
}

#[tokio::test]
async fn a_refused_login_is_not_retried() {
    let host = start(home(&["todo"]), &own_address());
    let endpoint = Endpoint::tcp(&host.address().to_string());
    let wrong = Session::builder(endpoint.clone(), Credential::password("alice", "guessed")).start();
    let refused = within(wrong.connected()).await.expect_err("it is the wrong password");
    assert!(matches!(&refused, Error::Refused(why) if why.to_string().contains("UnauthorizedLogin")), "{refused:?}");
    assert!(matches!(wrong.status(), Status::Refused(_)));
    let called = within(wrong.perspective("todo", None).call("list", &())).await;
    assert!(matches!(called, Err(Error::Refused(_))));
    within(async {
        // The entry is written to the trail a moment later.
        while !host.home.run(&["audit", "show"], "").contains("login.refused") {
            tokio::task::yield_now().await;
        }
    })
    .await;
    assert_eq!(host.home.run(&["audit", "show"], "").matches("login.refused").count(), 1, "it has tried once");
}

#[tokio::test]
async fn a_refusal_reaches_the_caller_and_recovery_is_noticed() {
    let host = start(home(&["todo"]), &own_address());
    let session = session(Endpoint::tcp(&host.address().to_string()), "alice");
    let (todo, chat) = (session.perspective("todo", None), session.perspective("chat", None));
    todo.call("add", &("milk",)).await.expect("it is added");
    let refused = chat.call("say", &("hello",)).await.expect_err("there is no such service").to_string();
    assert!(refused.contains("No such perspective."), "{refused}");
    host.home.run(&["service", "stop", "todo"], "");
    assert!(matches!(todo.call("list", &()).await, Err(Error::Failure(_))));
    host.home.run(&["service", "start", "todo"], "");
    let listed = within(async {
        loop {
            if let Ok(answer) = todo.call("list", &()).await {
                return answer.read::<Vec<jelly::Value>>().expect("a list").len();
            }
        }
    })
    .await;
    assert_eq!(listed, 1);
    assert_eq!(session.status(), Status::Connected, "its connection has lasted");
}

#[tokio::test]
async fn a_call_to_an_absent_host_times_out() {
    let options = Options { timeout: Some(Duration::from_millis(50)), ..Options::default() };
    let session = session(Endpoint::tcp(&own_address()).options(options), "alice");
    let late = within(session.perspective("todo", None).call("list", &())).await;
    assert!(matches!(late, Err(Error::TimedOut(_))), "{late:?}");
    let Status::Connecting { why, .. } = session.status() else { panic!("{:?}", session.status()) };
    assert!(why.is_empty() || why.contains("cannot reach 127.77."), "{why}");
}

#[tokio::test]
async fn a_dropped_session_logs_out() {
    let host = start(home(&["todo"]), &own_address());
    let sessions = || host.home.run(&["session", "list", "--json"], "");
    let session = session(Endpoint::tcp(&host.address().to_string()), "alice");
    session.perspective("todo", None).call("list", &()).await.expect("it answers");
    assert!(sessions().contains("alice"), "{}", sessions());
    drop(session);
    within(async {
        while sessions().contains("alice") {
            tokio::task::yield_now().await
        }
    })
    .await;
}

#[tokio::test]
async fn over_tls_the_plain_password_goes_only_to_trusted_hosts() {
    let home = home(&["todo"]);
    home.run(&["tls", "init", "--name", "localhost"], "");
    // The stock login stores something weaker. Without it, a password over TLS is the only way.
    home.configure(|text| text.replace("stock_login = true", "stock_login = false"));
    let mut host = home.start_with(&["--listen-tls", "127.0.0.1:0"], &[]);
    let trust = Trust::in_file(host.home.path().join("tls/ca.pem")).expect("it was made");
    let (port, plain) = (host.tls_port(), host.address().to_string());
    let session = session(Endpoint::tls(&format!("localhost:{port}"), trust.clone()), "alice");
    session.perspective("todo", None).call("add", &("milk",)).await.expect("it is added");
    let other_name = Endpoint::tls(&format!("127.0.0.1:{port}"), trust.clone()).connect().await.expect_err("its name");
    assert!(other_name.to_string().contains("127.0.0.1"), "{other_name}");
    let stranger = TestHome::new();
    stranger.run(&["tls", "init"], "");
    let stranger = Trust::in_file(stranger.path().join("tls/ca.pem")).expect("it was made");
    let refused = Endpoint::tls(&format!("localhost:{port}"), stranger).connect().await.expect_err("another authority");
    assert!(matches!(refused, Error::Connect { .. }), "{refused:?}");
    let no_tls = Endpoint::tls(&plain.replace("127.0.0.1", "localhost"), trust).connect().await;
    assert!(matches!(no_tls, Err(Error::Connect { .. })), "{no_tls:?}");
    let missing = Trust::in_file("/nowhere/ca.pem").expect_err("there is none");
    assert!(!missing.to_string().is_empty());
}

#[tokio::test]
async fn tokens_and_keys_are_credentials_too() {
    let home = home(&["todo"]);
    let key = ssh_key::PrivateKey::from(ssh_key::private::Ed25519Keypair::from_seed(&[7; 32]));
    let line = key.public_key().to_openssh().expect("it can be written");
    let host = start(home, &own_address());
    host.home.run(&["pubkey", "add", "alice", "-"], &line);
    let token: serde_json::Value =
        serde_json::from_str(&host.home.run(&["token", "new", "alice", "--label", "ci", "--json"], "")).expect("JSON");
    let sign = move |bytes: &[u8]| {
        let signature: ssh_key::Signature = signature::Signer::try_sign(&key, bytes).expect("it signs");
        Vec::try_from(signature).expect("it can be written")
    };
    for credential in
        [Credential::token(token["token"].as_str().expect("a token")), Credential::key("alice", &line, sign)]
    {
        let endpoint = Endpoint::tcp(&host.address().to_string());
        let session = Session::builder(endpoint.clone().private(), credential.clone()).start();
        within(session.perspective("todo", None).call("list", &())).await.expect("it answers");
        // A token is not sent where others could listen. A key reveals nothing.
        let session = Session::builder(endpoint, credential.clone()).start();
        let connected = within(session.connected()).await;
        match credential {
            Credential::Token(_) => assert!(connected.is_err_and(|error| error.to_string().contains("in the clear"))),
            _ => connected.expect("she is let in"),
        }
    }
    let client: Client = Endpoint::tcp(&host.address().to_string()).connect().await.expect("it serves");
    let nobody = client.login_with(&Credential::Anonymous, None).await.expect_err("nobody is let in without a name");
    assert!(matches!(&nobody, Error::Failure(failure) if failure.is("twisted.cred.error.UnhandledCredentials")));
}

/// The example program, as a user sees it.
struct Window {
    process: std::process::Child,
    lines: std::sync::mpsc::Receiver<String>,
}

impl Window {
    fn open(arguments: &[&str]) -> Self {
        let mut command = std::process::Command::new(build::example("chat_client"));
        command.args(arguments).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().expect("the example runs");
        let (come, lines) = std::sync::mpsc::channel();
        let output = BufReader::new(process.stdout.take().expect("it has an output"));
        // The test may have ended.
        std::thread::spawn(move || output.lines().map_while(Result::ok).all(|line| come.send(line).is_ok()));
        let mut window = Self { process, lines };
        window.say("alice-pw");
        window
    }

    fn say(&mut self, line: &str) {
        let input = self.process.stdin.as_mut().expect("it has an input");
        writeln!(input, "{line}").expect("it reads");
    }

    fn shows(&self, text: &str) {
        loop {
            let line = self.lines.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{text:?} is not shown"));
            if line.contains(text) {
                return;
            }
        }
    }
}

impl Drop for Window {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn the_chat_example_works_over_tls_and_survives_a_restart() {
    let (address, tls) = (own_address(), own_address());
    let home = home(&["chat"]);
    home.identity("bob", "alice-pw", &["chat"]);
    home.run(&["tls", "init", "--name", "localhost", "--name", tls.trim_end_matches(":8787")], "");
    let ca = home.path().join("tls/ca.pem").display().to_string();
    let run = |home: TestHome| home.start_with(&["--listen", &address, "--listen-tls", &tls], &[]);
    let host = run(home);
    let mut alice = Window::open(&[&format!("alice@{address}")]);
    alice.say("is there anybody?");
    alice.shows("alice: is there anybody?");
    let mut bob = Window::open(&["--ca", &ca, &format!("bob@{tls}")]);
    alice.shows("bob came");
    bob.say("me");
    alice.shows("bob: me");
    let _host = run(host.into_home());
    alice.shows("(here again)");
    bob.shows("(here again)");
    // A client that is logged in again is not in the room yet, and does not hear what is said before it is.
    let heard = (0..600).any(|_| {
        alice.say("and now?");
        bob.lines.recv_timeout(Duration::from_millis(100)).is_ok_and(|line| line.contains("alice: and now?"))
    });
    assert!(heard, "they are both there again");
}
