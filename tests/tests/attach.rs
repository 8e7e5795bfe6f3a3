//! A client that has logged in at a service's own door can attach to other services' perspectives: only if the operator permits
//! it for the service, only with the identity's keys, and only for as long as the login lasts.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use signature::Signer;
use ssh_key::private::{Ed25519Keypair, PrivateKey};
use ssh_key::{LineEnding, Signature};
use system_tests::host::{TestHome, TestHost};
use system_tests::lines::Lines;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// A host with the service `lines`, which has these permissions, and two other services.
fn host(may: &str) -> (TestHost, SocketAddr) {
    let home = TestHome::new();
    home.make();
    let section = format!("[service.lines]\nmay = [{may}]\n[service.lines.listen]\nlines = \"127.0.0.1:0\"\n");
    home.configure(|text| format!("{text}\n{section}"));
    home.identity("alice", PASSWORD, &["lines", "todo"]);
    home.identity("bob", PASSWORD, &["lines"]);
    ["lines", "todo", "scores"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let line = host.wait_for("serving lines on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    (host, address)
}

/// Sends a line and returns the answer without its number.
fn ask(client: &mut Lines, line: &str) -> String {
    client.send(line);
    let answer = client.line();
    answer.split_once(": ").map_or(answer.clone(), |(_, answer)| answer.to_owned())
}

fn logged_in(address: SocketAddr, name: &str) -> Lines {
    let mut client = Lines::connect(address);
    assert_eq!(ask(&mut client, &format!("login {name} {PASSWORD}")), format!("{name} has {name}"));
    client
}

#[test]
fn a_login_reaches_only_what_its_keys_open() {
    let (host, address) = host("\"attach\"");
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    assert_eq!(ask(&mut alice, "call add milk"), "0");
    assert_eq!(ask(&mut alice, "call add text=bread"), "1");
    assert!(ask(&mut alice, "call list").contains("bread"));
    assert!(ask(&mut alice, "describe todo").contains("A to-do list for everyone"));
    assert!(host.home.run(&["session", "list"], "").contains("todo/alice"), "the operator sees it");
    // A client without a key cannot find out whether a service exists.
    let mut bob = logged_in(address, "bob");
    for word in ["attach", "describe"] {
        let (there, not) = (ask(&mut bob, &format!("{word} scores")), ask(&mut bob, &format!("{word} nothing")));
        assert_eq!(there, not, "{word}");
        assert!(there.contains("No such perspective"), "{there}");
    }
    assert_eq!(ask(&mut Lines::connect(address), "attach todo"), "nobody");
    until(
        || {
            let trail = host.home.run(&["audit", "show"], "");
            trail.lines().any(|line| {
                line.contains("refused identity=bob")
                    && line.contains("door=lines:lines")
                    && line.contains("asked=scores/")
            })
        },
        "the trail has it",
    );
}

#[test]
fn a_service_without_permission_attaches_nobody() {
    let (_host, address) = host("");
    let said = ask(&mut logged_in(address, "alice"), "attach todo");
    assert!(said.contains("[service.lines] may = [\"attach\"] in credhost.toml"), "{said}");
    let said = ask(&mut Lines::connect(address), "vouch alice ssh-ed25519 AAAA");
    assert!(said.contains("[service.lines] may = [\"vouch\"] in credhost.toml"), "{said}");
}

#[test]
fn revoked_access_ends_attachments_at_once() {
    let (host, address) = host("\"attach\"");
    // Removing only the key: the connection stays, the attachment made with the key ends.
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    host.home.run(&["key", "remove", "alice", "todo"], "");
    assert!(ask(&mut alice, "call add milk").contains("the access by which this object came was revoked"));
    assert!(ask(&mut alice, "attach todo").contains("No such perspective"));
    host.home.run(&["key", "add", "alice", "todo"], "");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    assert_eq!(ask(&mut alice, "call add milk"), "0", "nothing came through meanwhile");
    // Revoking the login itself: both connections are closed before the command returns.
    type Take = fn(&TestHost);
    let takes: [(&str, Take); 4] = [
        ("disabled", |host| drop(host.home.run(&["identity", "disable", "alice"], ""))),
        ("another password", |host| {
            drop(host.home.run(&["identity", "password", "alice", "--password-stdin"], PASSWORD))
        }),
        ("its own key", |host| drop(host.home.run(&["key", "remove", "alice", "lines"], ""))),
        ("removed", |host| drop(host.home.run(&["identity", "remove", "alice"], ""))),
    ];
    for (what, take) in takes {
        let mut alice = logged_in(address, "alice");
        assert_eq!(ask(&mut alice, "attach todo"), "attached", "{what}");
        take(&host);
        assert_eq!(alice.next_line(), None, "{what}");
        let sessions = host.home.run(&["session", "list"], "");
        assert!(!sessions.contains("alice"), "{what}: {sessions}");
        let _ = host.home.run_with(&["identity", "enable", "alice"], "");
        let _ = host.home.run_with(&["key", "add", "alice", "lines"], "");
    }
    // A new identity with the same name is a different one, and can attach like any other.
    host.home.identity("alice", PASSWORD, &["lines", "todo"]);
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
}

#[test]
fn a_connection_and_its_attachments_are_one_session() {
    let (host, address) = host("\"attach\"");
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    let list = host.home.run(&["session", "list"], "");
    assert_eq!(list.lines().count(), 2, "{list}");
    assert!(list.contains("lines:lines") && list.contains("todo/alice"), "{list}");
    let number = list.lines().nth(1).and_then(|line| line.split_whitespace().next()).expect("a number").to_owned();
    host.home.run(&["session", "cut", &number], "");
    assert_eq!(alice.next_line(), None);
    assert_eq!(host.home.run(&["session", "list"], ""), "nobody is logged in");
}

#[test]
fn a_closed_connection_releases_its_attachments() {
    let (host, address) = host("\"attach\"");
    // Whatever is created only once now exists.
    drop(logged_in(address, "alice"));
    let before = descriptors(&host);
    for _ in 0..50 {
        let mut alice = logged_in(address, "alice");
        assert_eq!(ask(&mut alice, "attach todo"), "attached");
    }
    // Some descriptors are opened on first use and stay; a leak would leave two for each of the fifty connections.
    settles(&host, before + 20);
    until(|| host.home.run(&["session", "list"], "") == "nobody is logged in", "all have gone");
}

/// A login is remembered for as long as somebody may have its token. The host knows that from the service; if the service ends
/// before it says so, nobody has the token.
#[test]
fn a_remembered_login_stays_only_if_its_token_was_claimed() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.lines.listen]\nlines = \"127.0.0.1:0\"\n"));
    home.identity("alice", PASSWORD, &["lines"]);
    home.install("lines");
    home.isolate("process");
    let mut host = home.start();
    let line = host.wait_for("serving lines on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let events = |event: &str| host.home.run(&["audit", "show"], "").matches(event).count();
    let token = ask(&mut logged_in(address, "alice"), "remember");
    assert_eq!(ask(&mut Lines::connect(address), &format!("resume {token}")), "alice has alice");
    let mut dies = logged_in(address, "alice");
    dies.send("remember die");
    assert!(dies.rest().is_empty(), "the service has ended");
    until(|| events("login.forgotten") == 1, "the login without a token is forgotten");
    assert_eq!(events("login.remembered"), 2);
    until(|| host.home.run(&["service", "show", "lines"], "").contains("serving"), "the service serves again");
    assert_eq!(ask(&mut Lines::connect(address), &format!("resume {token}")), "alice has alice");
}

#[test]
fn both_ends_may_be_replaced() {
    let (host, address) = host("\"attach\"");
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    let before = descriptors(&host);
    for turn in 0..12 {
        host.home.run(&["service", "reload", "todo"], "");
        assert_eq!(ask(&mut alice, "call add milk"), format!("{}", 2 * turn), "the attachment is carried over");
        host.home.run(&["service", "reload", "lines"], "");
        assert_eq!(
            ask(&mut alice, "call add milk"),
            "nothing is attached",
            "the new code has a login, and attaches anew"
        );
        assert_eq!(ask(&mut alice, "attach todo"), "attached");
        assert_eq!(ask(&mut alice, "call add milk"), format!("{}", 2 * turn + 1));
    }
    settles(&host, before);
}

#[test]
fn a_key_logs_in_by_the_hosts_challenge_or_by_the_services_word() {
    let (host, address) = host("\"vouch\"");
    let (own, other) = (key(1), key(2));
    let line = |key: &PrivateKey| key.public_key().to_openssh().expect("it can be written");
    let file = host.home.path().join("key.pub");
    std::fs::write(&file, line(&own)).expect("it can be written");
    host.home.run(&["pubkey", "add", "alice", &file.display().to_string()], "");
    let answer = |client: &mut Lines, name: &str, key: &PrivateKey, with: &PrivateKey| {
        let challenge = ask(client, &format!("challenge {name} {}", line(key)));
        let bytes = data_encoding::HEXLOWER.decode(challenge.as_bytes()).expect("bytes to be signed");
        let signed: Signature = with.try_sign(&bytes).expect("it can be signed");
        let signed = Vec::try_from(signed).expect("it can be written");
        ask(client, &format!("respond {}", data_encoding::HEXLOWER.encode(&signed)))
    };
    assert_eq!(answer(&mut Lines::connect(address), "alice", &own, &own), "alice has alice");
    let wrong = "wrong name or password";
    for (name, key, with) in
        [("alice", &own, &other), ("alice", &other, &other), ("bob", &own, &own), ("eve", &own, &own)]
    {
        assert_eq!(answer(&mut Lines::connect(address), name, key, with), wrong, "{name}");
    }
    let mut client = Lines::connect(address);
    assert_eq!(ask(&mut client, &format!("vouch alice {}", line(&other))), wrong);
    assert_eq!(ask(&mut client, &format!("vouch alice {}", line(&own))), "alice has alice");
    assert!(ask(&mut client, "vouch alice ssh-ed25519").contains("key"), "what is no key is said to be none");
    until(
        || {
            let trail = host.home.run(&["audit", "show"], "");
            let why = |why: &str| {
                trail
                    .lines()
                    .any(|line| line.contains(why) && line.contains("how=key") && line.contains("door=lines:lines"))
            };
            why("wrong signature") && why("not a key of the identity") && why("login identity=alice")
        },
        "the trail has each with its reason",
    );
}

#[test]
fn answered_calls_to_other_services_survive_a_kill() {
    let (mut host, address) = host("\"attach\"");
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    let said = (0..100).map(|at| ask(&mut alice, &format!("call add {at}x"))).count();
    host.kill();
    let mut host = host.into_home().start();
    let line = host.wait_for("serving lines on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let mut alice = logged_in(address, "alice");
    assert_eq!(ask(&mut alice, "attach todo"), "attached");
    assert_eq!(ask(&mut alice, "call list").matches("\"text\"").count(), said);
}

/// A deterministic key.
fn key(seed: u8) -> PrivateKey {
    let key = PrivateKey::from(Ed25519Keypair::from_seed(&[seed; 32]));
    assert!(key.to_openssh(LineEnding::LF).is_ok());
    key
}

fn descriptors(host: &TestHost) -> usize {
    std::fs::read_dir(format!("/proc/{}/fd", host.id())).expect("it runs").count()
}

fn until(done: impl Fn() -> bool, what: &str) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !done() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Waits until the host has at most this many descriptors.
fn settles(host: &TestHost, most: usize) {
    until(|| descriptors(host) <= most, "descriptors are given back");
}

#[test]
fn an_unknown_service_permission_is_refused_at_the_hosts_start() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| format!("{text}\n[service.lines]\nmay = [\"fly\"]\n"));
    let said = home.refused(&["run", "--listen", "127.0.0.1:0"], "");
    assert!(said.contains("[service.lines] may: \"fly\""), "{said}");
}
