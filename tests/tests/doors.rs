//! Services' own doors: one account for everything. The chat, over IRC and over Perspective Broker.

use std::io::Read;
use std::net::SocketAddr;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use pb::client::{Call, Client, Remote};
use system_tests::build;
use system_tests::host::{TestHome, TestHost, put};
use system_tests::lines::Lines;
use system_tests::tls;
use tokio::net::TcpStream;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// A home whose chat has a door with these settings.
fn home(listen: &str) -> TestHome {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.chat.listen]\n{listen}\n"));
    for name in ["alice", "bob"] {
        home.identity(name, PASSWORD, &["chat", "todo"]);
    }
    home
}

/// A host whose chat has a door on a port of its own.
fn host() -> (TestHost, SocketAddr) {
    let home = home("irc = \"127.0.0.1:0\"");
    home.install("chat");
    open(home)
}

fn open(home: TestHome) -> (TestHost, SocketAddr) {
    let mut host = home.start();
    let address = door(&mut host, "irc on ");
    (host, address)
}

/// The address of a listener.
fn door(host: &mut TestHost, name: &str) -> SocketAddr {
    let line = host.wait_for(&format!("serving {name}"));
    let address = line.split_whitespace().find_map(|word| word.parse().ok());
    address.unwrap_or_else(|| panic!("there is an address in {line}"))
}

/// A Perspective Broker client in the chat, with an object that receives what is said.
async fn guest(host: &TestHost, name: &str) -> (Client, Remote, Receiver<String>) {
    let client = Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await.expect("PB");
    let (said, heard) = channel();
    let ear = client.register(move |call: Call| {
        // The receiver may be gone.
        let _ = call.values().map(|(arguments, _)| said.send(format!("{}{arguments}", call.method())));
        async { Ok(()) }
    });
    let avatar = client.login_password(name, PASSWORD, Some(ear)).await.expect("the password is right");
    let guest = avatar.call("attach", &("chat",)).await.expect("there is a key").remote().expect("a reference");
    (client, guest, heard)
}

fn replace(host: &TestHost) {
    let library = build::library("chat");
    let (next, to) = (host.home.plugins().join(".next"), host.home.plugins().join("libchat.so"));
    put(&library, &next);
    // The same code in a different file.
    let mut bytes = std::fs::read(&next).expect("it is there");
    bytes.extend_from_slice(&Instant::now().elapsed().as_nanos().to_le_bytes());
    std::fs::write(&next, bytes).expect("it can be written");
    std::fs::rename(next, to).expect("it can be put in place");
    host.home.run(&["service", "reload", "chat"], "");
}

#[tokio::test]
async fn one_room_by_irc_and_by_perspective_broker() {
    let (host, irc) = host();
    let (_client, bob, heard) = guest(&host, "bob").await;
    let mut alice = Lines::irc(irc, "alice", PASSWORD);
    alice.send("PRIVMSG #chat :hello");
    alice.send("PING x");
    alice.until("PONG");
    assert!(bob.call("say", &("good day",)).await.is_ok());
    assert_eq!(alice.line(), ":bob!bob@credhost PRIVMSG #chat :good day");
    let heard: Vec<String> =
        (0..2).map(|_| heard.recv_timeout(Duration::from_secs(30)).expect("it is heard")).collect();
    assert_eq!(heard, ["came(\"alice\",)", "heard(\"alice\", \"hello\")"]);
    let listed = host.home.run(&["session", "list"], "");
    assert!(listed.contains("chat:irc") && listed.contains("alice"), "{listed}");
}

#[test]
fn door_connections_stay_open_while_the_code_is_replaced() {
    let (host, irc) = host();
    let (mut alice, mut bob) = (Lines::irc(irc, "alice", PASSWORD), Lines::irc(irc, "bob", PASSWORD));
    alice.until("bob@credhost JOIN");
    for turn in 0..5 {
        replace(&host);
        bob.send(&format!("PRIVMSG #chat :{turn}"));
        assert_eq!(alice.line(), format!(":bob!bob@credhost PRIVMSG #chat :{turn}"));
    }
    let shown = host.home.run(&["service", "show", "chat"], "");
    assert!(shown.contains("generation") && !shown.contains("LOST"), "{shown}");
    assert!(shown.contains(&format!("irc on {irc}, 2 connections")), "{shown}");
    assert!(shown.contains("2 connections of its own doors too"), "{shown}");
}

#[test]
fn a_revoked_door_login_ends_at_once_and_is_in_the_trail() {
    let take: [(&str, &[&str], &str); 4] = [
        ("disabled", &["identity", "disable", "alice"], ""),
        ("key", &["key", "remove", "alice", "chat"], ""),
        ("password", &["identity", "password", "alice", "--password-stdin"], "another-quirk-velvet-93-lamp"),
        ("cut", &["session", "cut", "alice"], ""),
    ];
    for (what, command, input) in take {
        let (host, irc) = host();
        let (mut alice, mut bob) = (Lines::irc(irc, "alice", PASSWORD), Lines::irc(irc, "bob", PASSWORD));
        host.home.run(command, input);
        // The client has been notified by now: nothing but the end follows.
        assert!(alice.rest().iter().all(|line| line.contains("bob")), "{what}");
        bob.until("alice@credhost QUIT");
        bob.send("PING still here");
        bob.until("PONG");
        let trail = host.home.run(&["audit", "show"], "");
        assert!(trail.contains("login identity=alice") && trail.contains("door=chat:irc"), "{what}: {trail}");
    }
}

#[test]
fn door_connections_wait_until_the_service_serves() {
    let home = home("irc = \"127.0.0.1:0\"");
    // Build it first: that takes longer than the host holds a connection.
    let _ = build::library("chat");
    let (host, irc) = open(home);
    let mut alice = Lines::connect(irc);
    alice.send(&format!("PASS :{PASSWORD}\r\nNICK alice\r\nUSER a 0 * :a"));
    host.home.install("chat");
    alice.until(" 001 alice ");
    host.home.run(&["service", "stop", "chat"], "");
    // A service that stops disconnects its clients.
    alice.rest();
    let mut bob = Lines::connect(irc);
    bob.send(&format!("PASS :{PASSWORD}\r\nNICK bob\r\nUSER a 0 * :a"));
    host.home.run(&["service", "start", "chat"], "");
    bob.until(" 001 bob ");
}

#[test]
fn wrong_passwords_of_all_doors_count_together() {
    let (host, irc) = host();
    let wrong = || {
        let mut client = Lines::connect(irc);
        client.send("PASS :wrong\r\nNICK alice\r\nUSER a 0 * :a");
        client.until("ERROR")
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let by_pb = || {
        runtime.block_on(async {
            let socket = TcpStream::connect(host.address()).await.expect("the door is open");
            let client = Client::new(socket).await.expect("it speaks PB");
            format!("{:?}", client.login_password("alice", "wrong", None).await.expect_err("it is wrong"))
        })
    };
    let mut said = Vec::new();
    for turn in 0..12 {
        said.push(if turn % 2 == 0 { wrong() } else { by_pb() });
        if said.iter().any(|line| line.contains("too many failed logins")) {
            break;
        }
    }
    assert!(said.iter().any(|line| line.contains("too many failed logins")), "{said:#?}");
    let trail = host.home.run(&["audit", "show"], "");
    let refused = |line: &&str| line.contains("login.refused") && line.contains("alice");
    let all: Vec<&str> = trail.lines().filter(refused).collect();
    assert!(all.iter().any(|line| line.contains("door=chat:irc") && line.contains("wrong password")), "{trail}");
    assert!(all.iter().any(|line| !line.contains("door=")), "{trail}");
}

#[test]
fn a_door_refuses_an_identity_without_a_key_and_says_why() {
    let (host, irc) = host();
    host.home.identity("carol", PASSWORD, &["todo"]);
    for (name, password, why) in [
        ("carol", PASSWORD, "no key for this service"),
        ("carol", "wrong", "wrong name or password"),
        ("nobody-at-all", PASSWORD, "wrong name or password"),
    ] {
        let mut client = Lines::connect(irc);
        client.send(&format!("PASS :{name}:{password}\r\nNICK x\r\nUSER {name} 0 * :a"));
        assert_eq!(client.until("ERROR"), format!("ERROR :{why}"));
        assert_eq!(client.next_line(), None);
    }
    assert!(host.home.run(&["session", "list"], "").contains("nobody"), "nobody is logged in");
    let trail = host.home.run(&["audit", "show"], "");
    assert!(
        trail.lines().any(|line| line.contains("refused identity=carol") && line.contains("door=chat:irc")),
        "{trail}"
    );
    assert!(!trail.contains("nobody-at-all"), "{trail}");
}

#[test]
fn a_door_has_its_own_limits() {
    let home = home("irc = { address = \"127.0.0.1:0\", per_source = 3, login = \"1 s\" }");
    home.install("chat");
    let (_host, irc) = open(home);
    let alice = Lines::irc(irc, "alice", PASSWORD);
    let (mut silent, mut other) = (Lines::connect(irc), Lines::connect(irc));
    // It is accepted and served.
    other.send("PING x");
    other.until("PONG");
    assert_eq!(Lines::connect(irc).next_line(), None, "three of one source");
    assert_eq!((silent.next_line(), other.next_line()), (None, None), "nobody has logged in by them");
    let mut alice = alice;
    alice.send("PING x");
    alice.until("PONG");
}

#[test]
fn idle_closes_silent_door_connections() {
    let home = home(
        "irc = [{ address = \"127.0.0.1:0\", idle = \"1 s\" }, { address = \"127.0.0.1:0\", tls = true, idle = \"1 s\" }]",
    );
    home.install("chat");
    home.run(&["tls", "init"], "");
    let authority = std::fs::read(home.path().join("tls/ca.pem")).expect("it was made");
    let mut host = home.start();
    let [clear, ircs] = ["irc on ", "irc over TLS on "].map(|name| door(&mut host, name));
    let mut silent =
        [Lines::connect(clear), Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(ircs)))];
    silent.iter_mut().for_each(|client| client.join("alice", PASSWORD));
    let mut talks = Lines::irc(clear, "bob", PASSWORD);
    let (over, ends) = channel();
    let waiting = std::thread::spawn(move || {
        silent.iter_mut().for_each(|client| drop(client.rest()));
        over.send(())
    });
    // This client keeps talking, so its own idle time does not end its connection.
    while ends.try_recv().is_err() {
        talks.send("PING x");
        talks.until("PONG");
        std::thread::sleep(Duration::from_millis(100));
    }
    waiting.join().expect("it ends").expect("somebody waits");
    // The reload leaves connections inside the host's relay, which watches their idle time.
    replace(&host);
    talks.send("PING x");
    talks.until("PONG");
}

#[test]
fn a_door_speaks_tls_from_the_beginning_or_later() {
    let home = home(
        "irc = [\"127.0.0.1:0\", { address = \"127.0.0.1:0\", tls = true }, { address = \"127.0.0.1:0\", starttls = true }]",
    );
    home.install("chat");
    home.run(&["tls", "init"], "");
    let authority = std::fs::read(home.path().join("tls/ca.pem")).expect("it was made");
    let mut host = home.start();
    let [clear, ircs, later] =
        ["irc on ", "irc over TLS on ", "irc with STARTTLS on "].map(|name| door(&mut host, name));
    let mut alice = Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(ircs)));
    alice.join("alice", PASSWORD);
    let mut socket = Lines::socket(later);
    std::io::Write::write_all(&mut socket, b"STARTTLS\r\n").expect("it is sent");
    let mut answer = [0; 64];
    let count = socket.read(&mut answer).expect("it is answered");
    assert!(answer[..count].starts_with(b":credhost 670 "), "{}", String::from_utf8_lossy(&answer));
    let mut bob = Lines::over(tls::client(&authority, "localhost", &[], socket));
    bob.join("bob", PASSWORD);
    alice.until("bob@credhost JOIN");
    let mut refused = Lines::connect(clear);
    refused.send("STARTTLS");
    refused.until(" 691 ");
    assert!(host.home.run(&["session", "list"], "").lines().filter(|line| line.contains("chat:irc")).count() >= 1);
    // They are carried over inside TLS.
    replace(&host);
    bob.send("PRIVMSG #chat :still here");
    alice.until("PRIVMSG #chat :still here");
    host.home.run(&["identity", "disable", "bob"], "");
    assert!(bob.rest().len() < 3);
    alice.until("bob@credhost QUIT");
}

#[test]
fn plaintext_behind_starttls_ends_the_connection() {
    let home = home("irc = { address = \"127.0.0.1:0\", starttls = true }");
    home.install("chat");
    home.run(&["tls", "init"], "");
    let mut host = home.start();
    let later = door(&mut host, "irc with STARTTLS on ");
    let mut client = Lines::connect(later);
    client.send("STARTTLS\r\nPASS :x");
    assert_eq!(client.next_line(), None);
}

/// A client that asks for TLS and then sends nothing is disconnected when its time is over, and leaves nothing in the service.
#[test]
fn a_greeting_that_never_comes_leaves_nothing_behind() {
    for (login, limits) in [("2 s", ""), ("1 h", "[limits]\ngreeting = \"1 s\"\n")] {
        silent_greetings(login, limits);
    }
}

fn silent_greetings(login: &str, limits: &str) {
    let listener = format!("irc = {{ address = \"127.0.0.1:0\", starttls = true, login = \"{login}\" }}");
    let home = home(&format!("{listener}\n{limits}"));
    home.install("chat");
    home.run(&["tls", "init"], "");
    let mut host = home.start();
    let later = door(&mut host, "irc with STARTTLS on ");
    let open = |host: &TestHost| std::fs::read_dir(format!("/proc/{}/fd", host.id())).expect("it runs").count();
    let before = open(&host);
    let mut silent: Vec<Lines> = (0..20)
        .map(|_| {
            let mut client = Lines::connect(later);
            client.send("STARTTLS");
            client.until("670");
            client
        })
        .collect();
    assert!(open(&host) >= before + 20);
    silent.iter_mut().for_each(|client| drop(client.rest()));
    let deadline = Instant::now() + Duration::from_secs(60);
    while open(&host) > before + 2 {
        assert!(Instant::now() < deadline, "{} descriptors, {before} before", open(&host));
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn clients_can_log_in_at_a_door_again_after_a_kill() {
    let (mut host, irc) = host();
    let mut alice = Lines::irc(irc, "alice", PASSWORD);
    host.kill();
    assert_eq!(alice.rest().len(), 0);
    let home = host.into_home();
    home.configure(|text| text.replace("\"127.0.0.1:0\"", &format!("\"{irc}\"")));
    let (_host, again) = open(home);
    assert_eq!(again, irc);
    let mut alice = Lines::irc(again, "alice", PASSWORD);
    alice.send("PING x");
    alice.until("PONG");
}

#[test]
fn a_door_on_a_unix_socket_replaces_a_stale_one() {
    let home = home("irc = \"127.0.0.1:0\"");
    let path = home.path().join("chat.sock");
    home.configure(|text| text.replace("\"127.0.0.1:0\"", &format!("\"unix:{}\"", path.display())));
    home.install("chat");
    let mut host = home.start();
    for _ in 0..2 {
        host.wait_for("serving irc on ");
        let mut alice = Lines::over(std::os::unix::net::UnixStream::connect(&path).expect("somebody listens"));
        alice.join("alice", PASSWORD);
        host.kill();
        host = host.into_home().start();
    }
}

/// A host with the service that takes commands, and the addresses of its listeners `lines` and `raw`.
fn told() -> (TestHost, SocketAddr, SocketAddr) {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.lines.listen]\nlines = \"127.0.0.1:0\"\nraw = \"127.0.0.1:0\"\n"));
    home.configure(|text| text.replace("grace = 10", "grace = 2"));
    home.identity("alice", PASSWORD, &["lines/one", "lines/two"]);
    home.install("lines");
    let mut host = home.start();
    let (lines, raw) = (door(&mut host, "lines on "), door(&mut host, "raw on "));
    (host, lines, raw)
}

#[test]
fn changes_that_a_door_has_answered_survive_a_kill() {
    for turn in 0..3 {
        let (mut host, lines, _) = told();
        let told = std::sync::Arc::new(std::sync::atomic::AtomicU64::new(0));
        let clients: Vec<_> = (0..4)
            .map(|_| {
                let told = std::sync::Arc::clone(&told);
                std::thread::spawn(move || {
                    let mut client = Lines::connect(lines);
                    let mut sent = 0_u64;
                    while client.try_send("add") {
                        let Some(line) = client.next_line() else { break };
                        let sum = line.rsplit(' ').next().and_then(|sum| sum.parse().ok()).expect("a sum");
                        told.fetch_max(sum, std::sync::atomic::Ordering::Relaxed);
                        sent += 1;
                    }
                    sent
                })
            })
            .collect();
        while told.load(std::sync::atomic::Ordering::Relaxed) < 20 + turn * 7 {
            std::thread::yield_now();
        }
        host.kill();
        let sent: u64 = clients.into_iter().map(|client| client.join().expect("it ends")).sum();
        let told = told.load(std::sync::atomic::Ordering::Relaxed);
        let mut host = host.into_home().start();
        let mut client = Lines::connect(door(&mut host, "lines on "));
        client.send("add");
        let sum: u64 = client.line().rsplit(' ').next().and_then(|sum| sum.parse().ok()).expect("a sum");
        // Four calls were under way.
        assert!(sum > told && sum <= sent + 5, "{told} were told of, {sent} were answered, and {sum} are there");
    }
}

#[test]
fn a_busy_connection_moves_to_new_code_when_done() {
    let (host, lines, raw) = told();
    let mut busy: Vec<Lines> = (0..3).map(|_| Lines::connect(lines)).collect();
    let mut stays = Lines::connect(lines);
    stays.send("stay");
    assert_eq!(stays.line(), "1: it stays");
    for client in &mut busy {
        client.write("hello\nslow 500\nadd\nhalf");
        assert_eq!(client.line(), "1: hello");
    }
    let mut waits = Lines::connect(raw);
    waits.write("wait\nhello\n");
    host.home.run(&["service", "reload", "lines"], "");
    for client in &mut busy {
        client.send(" a line");
        assert!(client.line().starts_with("2: slow "), "nothing is lost");
        assert!(client.line().starts_with("3: "));
        assert_eq!(client.line(), "4: half a line");
    }
    let mut last = Lines::connect(lines);
    last.send("add");
    assert_eq!(last.line(), "1: 7", "nothing is done twice");
    assert_eq!((waits.line(), waits.line()), ("replaced: wait".to_owned(), "hello".to_owned()));
    // It stays with the old code until the grace period is over.
    stays.send("still here");
    assert_eq!(stays.line(), "2: still here");
    assert_eq!(stays.next_line(), None);
}

#[test]
fn a_fault_in_a_door_ends_only_that_connection() {
    let (mut host, lines, _) = told();
    let mut other = Lines::connect(lines);
    for (told, answered) in [
        ("panic\n", None),
        ("fail\n", None),
        ("close\nadd\n", Some("bye")),
        (&*"x".repeat(2000), None),
        ("flood 100000\n", None),
    ] {
        let mut client = Lines::connect(lines);
        client.write(told);
        assert_eq!(client.rest(), answered.into_iter().collect::<Vec<_>>(), "{}", &told[..told.len().min(20)]);
    }
    other.send("add");
    assert_eq!(other.line(), "1: 1");
    host.wait_for("a connection ended because of a fault in the service");
    // A client that reads gets everything, however much it is in total.
    for turn in 2..30 {
        other.send("flood 50000");
        assert_eq!(other.line().len(), format!("{turn}: ").len() + 50_000);
    }
}

#[test]
fn a_client_that_never_reads_is_dropped_and_delays_nobody() {
    let (host, lines, _) = told();
    let mut deaf = Lines::socket(lines);
    deaf.set_write_timeout(Some(Duration::from_secs(60))).expect("it has a timeout");
    let began = Instant::now();
    while std::io::Write::write_all(&mut deaf, &b"flood 60000\n".repeat(100)).is_ok() {
        assert!(began.elapsed() < Duration::from_secs(60), "it is let go");
    }
    let mut other = Lines::connect(lines);
    other.send("add");
    assert_eq!(other.line(), "1: 1");
    assert!(host.peak_memory() < 512 << 20);
}

#[test]
fn a_login_goes_with_its_connection_and_tells_its_keys() {
    let (host, lines, _) = told();
    let mut alice = Lines::connect(lines);
    alice.send(&format!("who\r\nlogin alice wrong\r\nlogin alice {PASSWORD}\r\nwho"));
    assert_eq!(alice.line(), "1: nobody");
    assert_eq!(alice.line(), "2: wrong name or password");
    assert_eq!(alice.line(), "3: alice has one two");
    assert_eq!(alice.line(), "4: alice");
    host.home.run(&["service", "reload", "lines"], "");
    alice.send("who");
    assert_eq!(alice.line(), "5: alice");
    let token = host.home.run(&["token", "new", "alice"], "");
    let token = token.split_whitespace().find(|word| word.starts_with("credhost_")).expect("a token");
    let mut other = Lines::connect(lines);
    other.send(&format!("login bob {token}\r\nlogin alice {token}"));
    assert_eq!(other.line(), "1: wrong name or password", "the token is somebody else's");
    assert_eq!(other.line(), "2: alice has one two");
    // One of two keys is removed: the list of keys that the login reported no longer holds.
    host.home.run(&["key", "remove", "alice", "lines", "two"], "");
    assert_eq!((alice.next_line(), other.next_line()), (None, None));
}

/// The number of descriptors that a host has open.
fn descriptors(host: &TestHost) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", host.id())).expect("it runs").count()
}

/// Waits until a host has at most this many descriptors.
fn settles(host: &TestHost, most: usize, what: &str) {
    let began = Instant::now();
    while descriptors(host) > most {
        if began.elapsed() > Duration::from_secs(60) {
            let all = std::fs::read_dir(format!("/proc/{}/fd", host.id())).expect("it runs").flatten();
            let all: Vec<_> = all.filter_map(|one| std::fs::read_link(one.path()).ok()).collect();
            panic!("{what}: {} descriptors stay, of {most}: {all:?}", all.len());
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Makes a socket close with a reset, which the other end sees as an error.
fn reset(socket: &std::net::TcpStream) {
    rustix::net::sockopt::set_socket_linger(socket, Some(Duration::ZERO)).expect("it lingers not");
}

#[test]
fn a_client_that_vanishes_at_any_step_leaves_nothing_behind() {
    let home = home(
        "irc = [{ address = \"127.0.0.1:0\", per_source = 1000 }, \
         { address = \"127.0.0.1:0\", tls = true, per_source = 1000 }, \
         { address = \"127.0.0.1:0\", starttls = true, per_source = 1000 }]",
    );
    home.install("chat");
    home.run(&["tls", "init"], "");
    let authority = std::fs::read(home.path().join("tls/ca.pem")).expect("it was made");
    let mut host = home.start();
    let [clear, ircs, later] =
        ["irc on ", "irc over TLS on ", "irc with STARTTLS on "].map(|name| door(&mut host, name));
    let before = {
        // Threads and files that exist only after the first login.
        let mut alice = Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(ircs)));
        alice.join("alice", PASSWORD);
        drop(alice);
        host.home.run(&["service", "reload", "chat"], "");
        std::thread::sleep(Duration::from_millis(500));
        descriptors(&host)
    };
    let vanish = |step: usize, served: bool| {
        let plain = Lines::socket([clear, ircs, later][step % 3]);
        reset(&plain);
        match step % 6 {
            0 => Lines::over(plain).write("PASS :x\r\nNI"),
            // In the middle of the TLS handshake.
            1 => Lines::over(plain).write("\u{16}\u{3}\u{1}\u{2}"),
            2 => Lines::over(plain).write("STARTTLS\r\n"),
            3 => Lines::over(plain).write(&format!("PASS :{PASSWORD}\r\nNICK alice\r\nUSER a 0 * :a\r\n")),
            4 => drop(Lines::over(tls::client(&authority, "localhost", &[], plain)).try_send("CAP LS")),
            _ => {
                let mut client = Lines::connect(later);
                client.send("STARTTLS");
                if served {
                    client.until(" 670 ");
                }
            }
        }
    };
    for round in 0..4 {
        let visitors: Vec<_> = (0..4).collect();
        std::thread::scope(|scope| {
            for visitor in visitors {
                scope.spawn(move || (0..60).for_each(|step| vanish(step + visitor, round < 2)));
            }
            match round {
                0 => {}
                1 => (0..5).for_each(|_| drop(host.home.run(&["service", "reload", "chat"], ""))),
                // Nothing serves for a while.
                2 => drop(host.home.run(&["service", "stop", "chat"], "")),
                _ => drop(host.home.run(&["service", "start", "chat"], "")),
            }
        });
    }
    // A few are allowed for the store's readers, which it opens when it first reads.
    settles(&host, before + 4, "after they have gone");
    let mut alice = Lines::irc(clear, "alice", PASSWORD);
    alice.send("PING x");
    alice.until("PONG");
    assert!(!host.log().contains("cannot be accepted"), "each descriptor was its own");
    assert!(!host.log().contains("a panic"));
}

#[test]
fn a_connection_during_a_stop_is_served_once() {
    let (host, irc) = host();
    let before = descriptors(&host);
    for _ in 0..3 {
        let mut waiting: Vec<Lines> = std::thread::scope(|scope| {
            let coming = scope.spawn(|| {
                (0..40)
                    .map(|_| {
                        std::thread::sleep(Duration::from_millis(5));
                        Lines::connect(irc)
                    })
                    .collect()
            });
            host.home.run(&["service", "stop", "chat"], "");
            coming.join().expect("they come")
        });
        host.home.run(&["service", "start", "chat"], "");
        let mut served = 0;
        for client in &mut waiting {
            // Clients that connected before it had stopped are disconnected.
            if client.try_send("PING x") && client.next_line().is_some() {
                served += 1;
            }
        }
        // One descriptor of the host and one of the service each.
        settles(&host, before + 2 * served + 2, "while they are served");
    }
}

#[test]
fn nothing_of_a_disabled_identity_arrives_after_the_command() {
    let (host, irc) = host();
    let mut bob = Lines::irc(irc, "bob", PASSWORD);
    let talking: Vec<_> = (0..5)
        .map(|_| {
            let mut alice = Lines::irc(irc, "alice", PASSWORD);
            std::thread::spawn(move || {
                while alice.try_send(&"PRIVMSG #chat :on and on\r\n".repeat(20)) {
                    std::thread::sleep(Duration::from_millis(10));
                }
            })
        })
        .collect();
    for _ in 0..200 {
        bob.until("on and on");
    }
    host.home.run(&["identity", "disable", "alice"], "");
    bob.send("PING over");
    bob.until("PONG");
    bob.send("PING again");
    let mut after = Vec::new();
    while let Some(line) = bob.next_line().filter(|line| !line.contains("again")) {
        after.push(line);
    }
    assert!(after.iter().all(|line| !line.contains("on and on")), "{} lines, as {:?}", after.len(), after.first());
    talking.into_iter().for_each(|alice| alice.join().expect("it ends"));
}

#[test]
fn logins_at_a_door_succeed_while_the_code_is_replaced() {
    let (host, irc) = host();
    for _ in 0..4 {
        let mut coming: Vec<Lines> = (0..3).map(|_| Lines::connect(irc)).collect();
        let who = [("nobody", "wrong"), ("alice", PASSWORD), ("bob", PASSWORD)];
        for ((name, password), client) in who.into_iter().zip(&mut coming) {
            client.send(&format!("PASS :{password}\r\nNICK {name}\r\nUSER {name} 0 * :a\r\nJOIN #chat\r\nPING in"));
        }
        host.home.run(&["service", "reload", "chat"], "");
        let refused = coming[0].rest();
        assert_eq!(refused.iter().filter(|line| line.contains(" 904 ")).count(), 1, "told once: {refused:?}");
        for client in &mut coming[1..] {
            client.until(" 001 ");
            client.until(" 366 ");
            client.until("PONG credhost :in");
        }
    }
}

/// Clients configured with a server password send it with PASS, and use SASL as well.
#[test]
fn a_sasl_login_with_a_server_password_survives_reloads() {
    let (host, irc) = host();
    let mut bob = Lines::irc(irc, "bob", PASSWORD);
    let mut alice = Lines::connect(irc);
    let said = data_encoding::BASE64.encode(format!("\0alice\0{PASSWORD}").as_bytes());
    alice.send(
        "PASS :of a server\r\nCAP LS 302\r\nNICK alice\r\nUSER alice 0 * :a\r\nCAP REQ :sasl\r\nAUTHENTICATE PLAIN",
    );
    alice.until("AUTHENTICATE +");
    alice.send(&format!("AUTHENTICATE {said}\r\nCAP END\r\nJOIN #chat"));
    alice.until(" 366 ");
    for turn in 0..2 {
        host.home.run(&["service", "reload", "chat"], "");
        alice.send(&format!("PRIVMSG #chat :{turn}"));
        assert_eq!(bob.until("PRIVMSG"), format!(":alice!alice@credhost PRIVMSG #chat :{turn}"));
    }
}

#[test]
fn the_last_words_of_a_client_that_only_hangs_up_are_heard() {
    let home = home("irc = [\"127.0.0.1:0\", { address = \"127.0.0.1:0\", tls = true }]");
    home.install("chat");
    home.run(&["tls", "init"], "");
    let authority = std::fs::read(home.path().join("tls/ca.pem")).expect("it was made");
    let mut host = home.start();
    let [clear, ircs] = ["irc on ", "irc over TLS on "].map(|name| door(&mut host, name));
    let mut bob = Lines::irc(clear, "bob", PASSWORD);
    for count in [1, 20, 300] {
        let mut alice = Lines::over(tls::client(&authority, "localhost", &[], Lines::socket(ircs)));
        alice.join("alice", PASSWORD);
        let all: String = (0..count).map(|turn| format!("PRIVMSG #chat :{count}.{turn}\r\n")).collect();
        alice.write(&all);
        // Without TLS's close notification.
        drop(alice);
        for turn in 0..count {
            assert!(bob.until("PRIVMSG").ends_with(&format!(":{count}.{turn}")));
        }
    }
}

/// Two concurrent reloads: a client that logs in between two reloads is served by one generation, once.
#[test]
fn fast_reloads_serve_no_connection_twice() {
    let (host, irc) = host();
    let mut bob = Lines::irc(irc, "bob", PASSWORD);
    let token = host.home.run(&["token", "new", "alice"], "");
    let token = token.split_whitespace().find(|word| word.starts_with("credhost_")).expect("a token");
    let over = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..2 {
            scope.spawn(|| {
                while !over.load(std::sync::atomic::Ordering::Relaxed) {
                    host.home.run(&["service", "reload", "chat"], "");
                }
            });
        }
        for turn in 0..60 {
            let mut alice = Lines::connect(irc);
            alice.send(&format!(
                "PASS :{token}\r\nNICK alice\r\nUSER alice 0 * :a\r\nJOIN #chat\r\nPRIVMSG #chat :{turn}"
            ));
            assert!(bob.until("PRIVMSG").ends_with(&format!(":{turn}")), "once each, in order");
            alice.send("QUIT :bye");
            alice.until("ERROR :bye");
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    });
}

#[test]
fn old_code_is_released_while_door_connections_stay() {
    let home = home("irc = \"127.0.0.1:0\"");
    home.configure(|text| text.replace("grace = 10", "grace = 3600"));
    home.install("chat");
    let (host, irc) = open(home);
    let mut alice = Lines::irc(irc, "alice", PASSWORD);
    for _ in 0..3 {
        host.home.run(&["service", "reload", "chat"], "");
    }
    let began = Instant::now();
    while host.home.run(&["service", "show", "chat"], "").contains("old code") {
        assert!(began.elapsed() < Duration::from_secs(60), "it stays");
    }
    alice.send("QUIT :bye");
    assert_eq!(alice.rest(), ["ERROR :bye"]);
}

#[test]
fn a_client_that_reads_is_not_dropped_when_another_talks_much() {
    let (_host, irc) = host();
    let mut bob = Lines::irc(irc, "bob", PASSWORD);
    let mut alice = Lines::irc(irc, "alice", PASSWORD);
    let talking = std::thread::spawn(move || {
        for turn in 0..100 {
            let text: String =
                (0..100).map(|line| format!("PRIVMSG #chat :{turn}.{line} {}\r\n", "x".repeat(300))).collect();
            alice.write(&text);
        }
        alice
    });
    for turn in 0..100 {
        for line in 0..100 {
            assert!(bob.until("PRIVMSG").contains(&format!(":{turn}.{line} ")), "each, in order");
        }
    }
    let mut alice = talking.join().expect("it ends");
    alice.send(&format!("PRIVMSG {} :x", ["bob"; 5].join(",")));
    alice.until(" 407 ");
}

/// Started as systemd does: with sockets that it has opened, by name.
#[test]
fn sockets_that_systemd_has_opened_are_doors() {
    let socket = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let irc = socket.local_addr().expect("it has one");
    let home = home("irc = \"systemd:chat\"");
    home.install("chat");
    let run =
        "exec 3<&0; LISTEN_PID=$$ LISTEN_FDS=1 LISTEN_FDNAMES=chat exec \"$0\" --home \"$1\" run --listen 127.0.0.1:0";
    let mut command = std::process::Command::new("sh");
    command.args(["-c", run]).arg(build::credhost()).arg(home.path());
    let mut host = command.stdin(std::os::fd::OwnedFd::from(socket)).spawn().expect("it runs");
    let mut alice = Lines::irc(irc, "alice", PASSWORD);
    alice.send("PING x");
    alice.until("PONG");
    host.kill().and_then(|()| host.wait()).expect("it ends");
}

#[test]
fn an_unusable_listener_is_refused_with_the_reason() {
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let address = taken.local_addr().expect("it has one");
    let taken = format!("irc = \"{address}\"");
    for (listen, wanted) in [
        ("irc = 6667", "[service.chat.listen] irc: expected an address"),
        ("irc = \"0.0.0.0:0\"", "others can reach"),
        ("irc = \"systemd:chat\"", "systemd has passed no sockets"),
        ("irc = { address = \"127.0.0.1:0\", tls = true }", "credhost tls init"),
        (taken.as_str(), "[service.chat.listen] irc: cannot listen on"),
    ] {
        let home = home(listen);
        let said = home.refused(&["run", "--listen", "127.0.0.1:0"], "");
        assert!(said.contains(wanted), "{listen}: {said}");
    }
}
