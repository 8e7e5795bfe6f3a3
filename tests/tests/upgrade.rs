//! Another version of the program takes over from a running host. No connection is refused, acknowledged changes are
//! there, and a program that cannot take over changes nothing.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use pb::client::{Client, Error, Remote};
use serde::Deserialize;
use system_tests::build::credhost;
use system_tests::host::{TestHome, TestHost};
use system_tests::lines::Lines;

#[derive(Deserialize)]
struct Task {
    text: String,
}

/// Starts a host with a to-do list and a door for lines, over TCP and over a Unix socket.
fn host() -> (TestHost, SocketAddr, PathBuf) {
    let home = TestHome::new();
    home.make();
    let file = home.path().join("lines.sock");
    let listen = format!("lines = [\"127.0.0.1:0\", \"unix:{}\"]", file.display());
    home.configure(|text| format!("{text}\n[service.lines.listen]\n{listen}\n"));
    home.identity("alice", "alice-pw", &["todo", "lines"]);
    ["todo", "lines"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let address = door(&mut host);
    (host, address, file)
}

fn door(host: &mut TestHost) -> SocketAddr {
    let line = host.wait_for("serving lines on 127");
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
}

/// Writes a program into the home's folder: this shell script.
fn script(home: &TestHome, name: &str, text: &str) -> PathBuf {
    let file = home.path().join(name);
    std::fs::write(&file, format!("#!/bin/sh\n{text}\n")).expect("it can be written");
    std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).expect("it can be marked");
    file
}

fn upgrade(host: &TestHost, program: &Path) -> String {
    host.home.run(&["upgrade", &program.display().to_string()], "")
}

/// Waits until the trail has exactly this number of these events.
fn in_trail(host: &TestHost, what: &str, times: usize) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let trail = host.home.run(&["audit", "show", "--with", what], "");
        if trail.lines().filter(|line| !line.is_empty()).count() == times {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{trail}");
    }
}

async fn todo(address: SocketAddr) -> Result<Remote, Error> {
    let stream = tokio::net::TcpStream::connect(address).await.expect("nobody is refused");
    Client::new(stream).await?.login_password("alice/todo", "alice-pw", None).await
}

/// Adds tasks until it is stopped, over one connection after the other. Returns the acknowledged ones.
async fn adds(address: SocketAddr, label: usize, stop: Arc<AtomicBool>) -> Vec<String> {
    let (mut answered, mut number) = (Vec::new(), 0);
    while !stop.load(Ordering::Relaxed) {
        let Ok(list) = todo(address).await else { continue };
        loop {
            number += 1;
            let text = format!("{label}-{number}");
            if stop.load(Ordering::Relaxed) || list.call("add", &(&text,)).await.is_err() {
                break;
            }
            answered.push(text);
        }
    }
    answered
}

/// Sends a line, and waits for the first byte of the answer, or the end.
fn word(mut client: impl Read + Write) {
    let _ = client.write_all(b"who\n").and_then(|()| client.read(&mut [0; 1]));
}

/// Connects to each door again and again. Returns the number of connections.
fn connects(doors: &(SocketAddr, SocketAddr, PathBuf), stop: &AtomicBool) -> usize {
    let mut count = 0;
    while !stop.load(Ordering::Relaxed) {
        let (pb, lines, file) = doors;
        // Each waits for a word, and therefore for its turn: the host speaks first in PB, and answers each line. A host
        // that makes way disconnects the clients that it has accepted, which is no refusal.
        let _ = TcpStream::connect(pb).expect("nobody is refused").read(&mut [0; 1]);
        word(TcpStream::connect(lines).expect("nobody is refused"));
        word(UnixStream::connect(file).expect("nobody is refused"));
        count += 3;
    }
    count
}

/// Logs in at the service's own door. A host that is busy with others' passwords says so, and asks to try again.
fn log_in(lines: SocketAddr) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    loop {
        let mut client = Lines::connect(lines);
        client.send("login alice alice-pw");
        let said = client.line();
        if !said.contains("the host is busy checking passwords; try again in a moment") {
            return assert_eq!(said, "1: alice has alice");
        }
        assert!(std::time::Instant::now() < deadline, "{said}");
    }
}

#[test]
fn another_program_takes_over_and_nobody_is_refused() {
    let (mut host, lines, file) = host();
    let (pb, process) = (host.address(), host.id());
    let other = host.home.path().join("credhost-new");
    std::fs::copy(credhost(), &other).expect("it can be copied");
    let stop = Arc::new(AtomicBool::new(false));
    let connecting: Vec<_> = (0..2)
        .map(|_| {
            let (doors, stop) = ((pb, lines, file.clone()), Arc::clone(&stop));
            std::thread::spawn(move || connects(&doors, &stop))
        })
        .collect();
    let adding = std::thread::spawn({
        let stop = Arc::clone(&stop);
        move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let each: Vec<_> = (0..3).map(|label| tokio::spawn(adds(pb, label, Arc::clone(&stop)))).collect();
                let mut all = Vec::new();
                for one in each {
                    all.extend(one.await.expect("nobody is refused"));
                }
                all
            })
        }
    });
    for _ in 0..3 {
        let said = upgrade(&host, &other);
        assert!(said.contains("serves, in place of credhost ") && said.contains(&process.to_string()), "{said}");
        log_in(lines);
    }
    stop.store(true, Ordering::Relaxed);
    let connected: usize = connecting.into_iter().map(|one| one.join().expect("nobody is refused")).sum();
    let answered = adding.join().expect("nobody is refused");
    println!("3 programs took over; {connected} connections, none refused; {} tasks were answered", answered.len());
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let there: Vec<Task> = runtime.block_on(async {
        let list = todo(pb).await.expect("the password is right");
        list.call("list", &()).await.expect("it is answered").read().expect("tasks")
    });
    let there: Vec<&str> = there.iter().map(|task| task.text.as_str()).collect();
    for text in &answered {
        assert_eq!(there.iter().filter(|one| **one == text).count(), 1, "{text} was answered");
    }
    assert!(!answered.is_empty() && connected > 0);
    assert_eq!(host.id(), process);
    let runs = std::fs::read_link(format!("/proc/{process}/exe")).expect("it runs");
    assert_eq!(runs.file_name(), other.file_name());
    in_trail(&host, "host.upgraded", 3);
    host.home.run(&["audit", "verify"], "");
    assert_eq!(host.terminate(), Some(0));
    assert!(TcpStream::connect(lines).is_err() && TcpStream::connect(pb).is_err(), "a host that ends closes its doors");
}

#[test]
fn a_program_that_cannot_take_over_changes_nothing() {
    let (host, lines, _) = host();
    let home = &host.home;
    let real = credhost().display().to_string();
    let not = |words: &str, does: &str| format!("case \"$*\" in *{words}*) {does};; esac\nexec {real} \"$@\"");
    let text = home.path().join("text");
    std::fs::write(&text, "not a program").expect("it can be written");
    let newer = "echo 'credhost: the store is of a later version' >&2; exit 1";
    let rows = [
        ("there is none", home.path().join("nothing"), "it cannot be started: No such file"),
        ("no program", text, "it cannot be started: Permission denied"),
        ("a folder", home.path(), "it cannot be started"),
        ("says nothing", script(home, "mute", "exit 3"), "it ended without a message (exit status: 3)"),
        ("says yes to everything", PathBuf::from("/bin/true"), "it is not credhost: its version is"),
        (
            "speaks like it",
            script(home, "parrot", "echo credhost 9.9"),
            "would not start here: it does not confirm that",
        ),
        ("dies", script(home, "dies", "kill -9 $$"), "it ended without a message (signal: 9"),
        ("another program", script(home, "other", &not("--check", "echo hi >&2; exit 2")), "would not start here: hi"),
        ("an older one", script(home, "older", &not("--check", newer)), "the store is of a later version"),
        (
            "cannot load",
            script(home, "loads", &not("vet*todo", "echo 'credhost: no' >&2; exit 1")),
            "would not load what serves: todo (libtodo.so): no",
        ),
    ];
    let mut alice = Lines::connect(lines);
    alice.send("login alice alice-pw");
    assert!(alice.line().contains("alice has alice"));
    for (what, program, wanted) in rows {
        let refused = home.refused(&["upgrade", &program.display().to_string()], "");
        assert!(refused.contains(wanted) && refused.contains("\n  "), "{what}: {refused}");
        alice.send("ping");
        assert!(!alice.line().is_empty(), "{what}: she is still connected");
    }
    // With `--anyway`, the upgrade is carried out, and prints a warning.
    let said = home.run_with(&["upgrade", &home.path().join("loads").display().to_string(), "--anyway"], "");
    let warned = String::from_utf8_lossy(&said.stderr);
    assert!(said.status.success() && warned.contains("warning: todo (libtodo.so): no"), "{warned}");
    let no_host = TestHome::new();
    no_host.make();
    assert!(no_host.refused(&["upgrade"], "").contains("no host runs in this home"));
}

#[test]
fn if_the_new_program_vanishes_the_old_one_serves() {
    let (mut host, lines, _) = host();
    let (real, process) = (credhost().display().to_string(), host.id());
    let goes = script(&host.home, "goes", &format!("case \"$*\" in *vet*) rm -f \"$0\";; esac\nexec {real} \"$@\""));
    let before = host.address();
    let refused = host.home.refused(&["upgrade", &goes.display().to_string(), "--anyway"], "");
    assert!(refused.contains("cannot be started: No such file"), "{refused}");
    assert!(refused.contains("the previous program serves again"), "{refused}");
    host.wait_for("this program serves again");
    assert_eq!((host.id(), std::fs::read_link(format!("/proc/{process}/exe")).ok()), (process, Some(credhost())));
    let mut client = Lines::connect(lines);
    client.send("login alice alice-pw");
    assert!(client.line().contains("alice has alice"));
    TcpStream::connect(before).expect("it listens where it did");
    // An earlier failure does not prevent the next upgrade.
    assert!(upgrade(&host, &credhost()).contains("serves, in place of"));
}

#[test]
fn an_upgrade_closes_only_sockets_no_longer_configured() {
    let (host, lines, file) = host();
    let address = lines.to_string();
    host.home.configure(|text| text.replace(&format!(", \"unix:{}\"", file.display()), ""));
    host.home.configure(|text| {
        text.replace("[\"127.0.0.1:0\"]", &format!("{{ address = \"{address}\", login = \"9 s\" }}"))
    });
    upgrade(&host, &credhost());
    let closed = host.log();
    let closed = closed.lines().find(|line| line.contains("is no longer configured")).expect("the log names it");
    assert!(closed.contains("[service.lines.listen] lines = \"unix:"), "{closed}");
    assert!(UnixStream::connect(&file).is_err());
    let mut client = Lines::connect(lines);
    client.send("login alice alice-pw");
    assert!(client.line().contains("alice has alice"), "the same address, written otherwise");
}

/// The settings of a listener before an upgrade, and after it: the host serves there, and nowhere else.
#[test]
fn listeners_may_be_changed_before_an_upgrade() {
    // An address that no other test listens on.
    let free = || std::net::TcpListener::bind("127.0.0.77:0").and_then(|one| one.local_addr()).expect("a port").port();
    let (one, two, three) = (free(), free(), free());
    let folder = tempfile::tempdir().expect("a folder");
    let file = folder.path().join("sock").display().to_string();
    let steps = [
        (format!("lines = \"127.0.0.77:{one}\""), vec![one]),
        (format!("lines = {{ address = \"0.0.0.0:{one}\", plaintext = true }}"), vec![one]),
        (format!("lines = \"127.0.0.77:{one}\""), vec![one]),
        (format!("lines = [\"127.0.0.77:{two}\", \"127.0.0.77:{one}\", \"unix:{file}\"]"), vec![one, two]),
        (format!("lines = [\"127.0.0.77:{one}\", \"127.0.0.77:{three}\", \"unix:{file}\"]"), vec![one, three]),
        (format!("lines = \"127.0.0.77:{three}\"\nother = \"unix:{file}\""), vec![three]),
        (format!("lines = [\"unix:{file}\", \"127.0.0.77:{two}\"]"), vec![two]),
    ];
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.lines.listen]\n{}\n", steps[0].0));
    home.identity("alice", "alice-pw", &["lines"]);
    home.install("lines");
    let host = home.start();
    for step in 0..steps.len() {
        if step > 0 {
            host.home.configure(|text| text.replace(&steps[step - 1].0, &steps[step].0));
            upgrade(&host, &credhost());
        }
        let (settings, open) = &steps[step];
        for port in [one, two, three] {
            let address = SocketAddr::from(([127, 0, 0, 77], port));
            if open.contains(&port) {
                let mut client = Lines::connect(address);
                client.send("login alice alice-pw");
                assert!(client.line().contains("alice has alice"), "{settings}: {port}");
            } else {
                assert!(TcpStream::connect(address).is_err(), "{settings}: {port}");
            }
        }
    }
}

/// If the other program cannot be started, each socket is what it was, whatever their numbers are.
#[test]
fn a_failed_upgrade_leaves_the_sockets_unchanged() {
    let home = TestHome::new();
    home.make();
    home.run(&["tls", "init"], "");
    let extra = "[multiservice.a]\nservices = []\nlisten = \"127.0.0.1:0\"\n[multiservice.b]\nservices = []\nlisten = \"127.0.0.1:0\"\n";
    let listen = "lines = [\"127.0.0.1:0\", { address = \"127.0.0.2:0\", tls = true }]";
    home.configure(|text| format!("{text}\n{extra}[service.lines.listen]\n{listen}\n"));
    home.identity("alice", "alice-pw", &["lines"]);
    home.install("lines");
    let mut host = home.start();
    let plain = door(&mut host);
    let line = host.wait_for("serving lines over TLS on ");
    let tls: SocketAddr = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    host.home.configure(|text| text.replace(extra, ""));
    upgrade(&host, &credhost());
    let real = credhost().display().to_string();
    for round in 0..3 {
        let goes = format!("case \"$*\" in *vet*) rm -f \"$0\";; esac\nexec {real} \"$@\"");
        let goes = script(&host.home, &format!("goes{round}"), &goes);
        let refused = host.home.refused(&["upgrade", &goes.display().to_string()], "");
        assert!(refused.contains("serves again"), "{refused}");
        for _ in 0..4 {
            let mut client = Lines::connect(plain);
            client.send("login alice alice-pw");
            assert!(client.line().contains("alice has alice"), "it is in the clear");
            // An answer in the clear would be a line of text.
            let mut client = Lines::socket(tls);
            std::io::Write::write_all(&mut client, b"login alice alice-pw\r\n").expect("it can be sent");
            let mut answer = [0; 1];
            assert!(
                client.read(&mut answer).map_or(true, |count| count == 0 || answer[0] == 21),
                "{answer:?}: TLS alone"
            );
        }
    }
    let trail = host.home.run(&["audit", "show"], "");
    assert!(
        trail.matches("host.upgrade-failed").count() == 3 && trail.matches("host.upgraded").count() == 1,
        "{trail}"
    );
}

fn signal(host: &TestHost, signal: rustix::process::Signal) {
    let process = rustix::process::Pid::from_raw(host.id().cast_signed()).expect("a process");
    rustix::process::kill_process(process, signal).expect("it runs");
}

/// Signals that tell the process to reload its settings or to end take effect even while another program takes over.
#[test]
fn signals_are_heard_while_another_program_takes_over() {
    let (mut host, lines, _) = host();
    let mut upgrading = host.home.command().arg("upgrade").spawn().expect("it runs");
    // Starts with the other program's first line.
    let guard = std::time::Instant::now();
    while host.log().matches("passwords of 1 character").count() < 2 {
        assert!(guard.elapsed().as_secs() < 60, "it does not come to that");
        std::thread::yield_now();
    }
    while upgrading.try_wait().expect("it can be waited for").is_none() {
        signal(&host, rustix::process::Signal::HUP);
        std::thread::yield_now();
    }
    assert!(upgrading.wait().expect("it ends").success());
    let mut alice = Lines::connect(lines);
    alice.send("login alice alice-pw");
    assert!(alice.line().contains("alice has alice"));

    // While a slow program is being checked, another upgrade is refused, and a signal that ends the host does not wait
    // for the check.
    let slow =
        format!("case \"$*\" in *--check*) touch $0.asked; sleep 100;; esac\nexec {} \"$@\"", credhost().display());
    let slow = script(&host.home, "slow", &slow);
    let mut asking = host.home.command().args(["upgrade", &slow.display().to_string()]).spawn().expect("it runs");
    let guard = std::time::Instant::now();
    while !slow.with_extension("asked").exists() {
        assert!(guard.elapsed().as_secs() < 60, "it does not come to that");
        std::thread::yield_now();
    }
    let refused = host.home.refused(&["upgrade"], "");
    assert!(refused.contains("another program is taking over already, or is being asked"), "{refused}");
    signal(&host, rustix::process::Signal::TERM);
    assert_eq!(host.terminate(), Some(0));
    assert!(!asking.wait().expect("it ends").success());

    // A host that gets a signal to end after it has begun to make way ends.
    let (mut host, ..) = self::host();
    let upgrading = host.home.command().arg("upgrade").stdout(std::process::Stdio::null()).spawn();
    let mut upgrading = upgrading.expect("it runs");
    host.wait_for(" takes over");
    signal(&host, rustix::process::Signal::TERM);
    // Either of the two may get the signal. Between them, when neither handles it, the system ends the process.
    assert!(matches!(host.terminate(), Some(0) | None));
    let _ = upgrading.wait();
}

#[test]
fn concurrent_upgrades_each_report_their_outcome() {
    let (host, ..) = host();
    let all: Vec<_> = (0..4)
        .map(|_| {
            let mut command = host.home.command();
            command.args(["upgrade"]).arg(credhost()).stdout(std::process::Stdio::piped());
            command.stderr(std::process::Stdio::piped()).spawn().expect("it runs")
        })
        .collect();
    let said: Vec<_> = all.into_iter().map(|one| one.wait_with_output().expect("it ends")).collect();
    let done = said.iter().filter(|said| said.status.success()).count();
    let refused =
        said.iter().filter(|said| String::from_utf8_lossy(&said.stderr).contains("another program is taking over"));
    assert!(done >= 1 && done + refused.count() == 4, "{said:?}");
    in_trail(&host, "host.upgraded", done);
}

/// A check reports what would prevent a start, in the same words, and changes nothing.
#[test]
fn a_check_says_what_a_start_would() {
    let seen = AtomicUsize::new(0);
    for (what, line) in [
        ("no setting", "[pb]\nlistn = \"127.0.0.1:1\"\n"),
        ("no address", "[pb]\nlisten = \"nowhere\"\n"),
        ("in the clear", "[pb]\nlisten = \"0.0.0.0:0\"\n"),
        ("no collection", "[pb]\nmultiservice = \"none\"\n"),
        ("no proxy", "[pb]\nproxies = [\"nginx\"]\n"),
        ("no certificate", "[pb]\nlisten_tls = \"127.0.0.1:0\"\n"),
        ("no rule", "[pb]\nanonymous = \"todo\"\n"),
        ("of a collection", "[multiservice.games]\nservices = []\nlisten = \"nowhere\"\n"),
        ("a door", "[service.lines.listen]\nlines = \"nowhere\"\n"),
        ("a permission", "[service.lines]\nallow = [\"fly\"]\n"),
        ("no isolation", "[plugins]\nisolation = \"jail\"\n"),
        ("no vetting", "[plugins]\nvetting = \"jail\"\n"),
        ("no limit", "[limits]\nconnections = \"many\"\n"),
        ("no keeping", "[audit]\nkeep = \"for ever\"\n"),
        ("an archive", "[audit]\narchive = \"old\"\n"),
        ("cheap", "[password]\nmemory = 1\n"),
        ("dear", "[password]\nmemory = 99999999\n"),
        ("no list", "[password]\nblocked = \"nothing.txt\"\n"),
    ] {
        let home = TestHome::new();
        home.make();
        std::fs::write(home.path().join("credhost.toml"), line).expect("it can be written");
        let before = std::fs::read(home.path().join("store.db")).expect("it is there");
        let checked = home.refused(&["run", "--check"], "");
        assert_eq!(std::fs::read(home.path().join("store.db")).expect("it is there"), before, "{what}");
        let started = home.refused(&["run"], "");
        // The log may come before.
        assert!(started.ends_with(&checked) && checked.starts_with("credhost: "), "{what}: {checked}\n{started}");
        seen.fetch_add(1, Ordering::Relaxed);
    }
    println!("{} reasons", seen.load(Ordering::Relaxed));
    let taken = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let taken = taken.local_addr().expect("it has one");
    let home = TestHome::new();
    home.make();
    assert!(home.refused(&["run", "--check", "--listen", &taken.to_string()], "").contains("Address already in use"));
    let home = TestHome::new();
    home.make();
    assert_eq!(home.run(&["run", "--check"], ""), "it would start");
    let host = home.start();
    assert_eq!(host.home.run(&["run", "--check"], ""), "it would start", "while a host runs");
}
