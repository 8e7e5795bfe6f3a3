//! A pulled cable: clients disappear without closing their connections. The test has a network of its own, and can take down its
//! only link.

use std::os::unix::net::UnixStream;
use std::process::Command;
use std::time::{Duration, Instant};

use pb::client::Client;
use system_tests::debian::program;
use system_tests::host::TestHome;
use system_tests::lines::Lines;
use tokio::net::TcpStream;

/// The environment variable that marks a process in that network.
const INSIDE: &str = "CREDHOST_TEST_NETWORK";
const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

#[test]
fn only_clients_that_vanish_silently_are_disconnected() {
    let (unshare, own) = (program("unshare", "util-linux"), std::env::current_exe().expect("it has a path"));
    // It runs as root in its namespace; the user need not be root here.
    let mut inside = Command::new(unshare);
    inside.args(["--map-root-user", "--net"]).arg(own).args(["--exact", "in_a_network_of_its_own", "--nocapture"]);
    assert!(inside.env(INSIDE, "1").status().expect("it runs").success());
}

fn link(state: &str) {
    let ip = Command::new(program("ip", "iproute2")).args(["link", "set", "lo", state]).output().expect("it runs");
    assert!(ip.status.success(), "{}", String::from_utf8_lossy(&ip.stderr));
}

#[tokio::test]
async fn in_a_network_of_its_own() {
    if std::env::var_os(INSIDE).is_none() {
        return;
    }
    link("up");
    let home = TestHome::new();
    home.make();
    let local = home.path().join("irc");
    home.configure(|text| {
        let doors = format!("[service.chat.listen]\nirc = [\"127.0.0.1:0\", \"unix:{}\"]\n", local.display());
        format!("{text}\n[limits]\nsilence = \"4 s\"\n\n{doors}")
    });
    for name in ["alice", "judith", "ivo", "sonja"] {
        home.identity(name, PASSWORD, &["chat"]);
    }
    home.install("chat");
    let mut host = home.start();
    let line = host.wait_for("serving irc on 127");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let login = async || {
        let client = Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await?;
        client.login_password("alice/chat", PASSWORD, None).await
    };
    let alice = login().await.expect("she logs in");
    let judith = Lines::irc(address, "judith", PASSWORD);
    let socket = UnixStream::connect(local).expect("the door is open");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("it can be set");
    let mut ivo = Lines::over(socket);
    ivo.join("ivo", PASSWORD);
    // Everything sent to her alone has arrived, so nothing is in flight to her; to the others something will be.
    let mut sonja = Lines::irc(address, "sonja", PASSWORD);
    sonja.send("PART #chat\r\nPING :done");
    sonja.until("done");
    let inside = || {
        let list = host.home.run(&["session", "list"], "");
        ["alice", "judith", "sonja", "ivo"].map(|name| list.contains(name))
    };
    assert_eq!(inside(), [true; 4]);
    link("down");
    ivo.send("PRIVMSG #chat :is anybody there?");
    let deadline = Instant::now() + Duration::from_secs(60);
    while inside() != [false, false, false, true] {
        assert!(Instant::now() < deadline, "{:?}", inside());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    // The others in the room are notified that she has gone.
    ivo.until("judith");
    drop((alice, judith, sonja));
    link("up");
    assert!(login().await.is_ok(), "and comes again");
}
