//! A real proxy that forwards connections: HAProxy, in front of Perspective Broker and of a service's own door.

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use pb::client::Client;
use system_tests::debian;
use system_tests::host::{TestHome, TestHost};
use system_tests::lines::Lines;
use tokio::net::TcpSocket;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";
/// The address that the proxy connects from, which the host trusts.
const PROXY: &str = "127.0.0.9";

/// A running HAProxy. Stops it when dropped.
struct Haproxy(Child);

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Returns a port that is unused at the moment.
fn free() -> SocketAddr {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).and_then(|listener| listener.local_addr()).expect("there is one")
}

/// Starts HAProxy. It forwards each of these addresses to one of the host's, with this kind of header.
fn haproxy(home: &TestHome, passes: &[(SocketAddr, SocketAddr, &str)]) -> Haproxy {
    let mut settings =
        "defaults\n mode tcp\n timeout connect 5s\n timeout client 60s\n timeout server 60s\n".to_owned();
    for (at, (from, to, header)) in passes.iter().enumerate() {
        settings +=
            &format!("listen l{at}\n bind {from}\n source {PROXY}\n server host {to} {header} check inter 100ms\n");
    }
    let file = home.path().join("haproxy.cfg");
    std::fs::write(&file, settings).expect("it can be written");
    let mut haproxy = Command::new(debian::program("haproxy", "haproxy"));
    let child = haproxy.arg("-db").arg("-f").arg(&file).stdout(Stdio::null()).stderr(Stdio::inherit()).spawn();
    let started = Haproxy(child.expect("it starts"));
    let began = Instant::now();
    for (from, ..) in passes {
        while std::net::TcpStream::connect(from).is_err() {
            assert!(began.elapsed() < Duration::from_secs(60), "HAProxy does not listen on {from}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    started
}

/// Connects from this address of the machine.
async fn from(source: &str, to: SocketAddr) -> tokio::net::TcpStream {
    let socket = TcpSocket::new_v4().expect("a socket");
    socket.bind(SocketAddr::new(source.parse().expect("an address"), 0)).expect("it is of this machine");
    socket.connect(to).await.expect("somebody listens")
}

async fn irc(source: &str, to: SocketAddr) -> Lines {
    let socket = from(source, to).await.into_std().expect("a socket");
    socket.set_nonblocking(false).expect("it can be waited for");
    socket.set_read_timeout(Some(Duration::from_secs(60))).expect("it has a timeout");
    Lines::over(socket)
}

fn door(host: &mut TestHost, name: &str) -> SocketAddr {
    let line = host.wait_for(&format!("serving {name}"));
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("there is an address in it")
}

#[tokio::test]
async fn clients_behind_haproxy_keep_their_own_address() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        let text = text.replace("[pb]\n", &format!("[pb]\nproxies = [\"{PROXY}\"]\n"));
        let listen = format!("{{ address = \"127.0.0.1:0\", proxy_protocol = [\"{PROXY}\"], per_source = 2 }}");
        format!("{text}\n[service.chat.listen]\nirc = {listen}\n")
    });
    ["alice", "bob"].iter().for_each(|name| home.identity(name, PASSWORD, &["chat"]));
    home.install("chat");
    let mut host = home.start();
    let chat = door(&mut host, "irc on ");
    let [pb_front, irc_front] = [free(), free()];
    let _haproxy = haproxy(&host.home, &[(pb_front, host.address(), "send-proxy-v2"), (irc_front, chat, "send-proxy")]);
    let client = Client::new(from("127.0.0.33", pb_front).await).await.expect("it speaks PB");
    let refused = client.login_password("alice", "wrong", None).await;
    assert!(refused.is_err());
    client.login("alice/chat", PASSWORD, None).await.expect("the password is right");
    let mut bob = irc("127.0.0.34", irc_front).await;
    bob.join("bob", PASSWORD);
    let listed = host.home.run(&["session", "list"], "");
    assert!(listed.contains("127.0.0.33:") && listed.contains("127.0.0.34:") && !listed.contains(PROXY), "{listed}");
    let trail = host.home.run(&["audit", "show", "--with", "login.refused"], "");
    assert!(trail.contains("127.0.0.33") && !trail.contains(PROXY), "{trail}");
    // Two connections from one source are allowed. Another source behind the same proxy has its own two.
    let mut second = irc("127.0.0.34", irc_front).await;
    second.send("PING x");
    second.until("PONG");
    assert_eq!(irc("127.0.0.34", irc_front).await.next_line(), None, "a third of one source");
    let mut other = irc("127.0.0.35", irc_front).await;
    other.send("PING x");
    other.until("PONG");
    // A connection from the proxy's address without a header is closed. From any other address, the header is not an
    // IRC command.
    let mut bare = irc(PROXY, chat).await;
    bare.send("PING x and more than a header");
    assert_eq!(bare.next_line(), None, "it has to begin with a header");
    let mut claims = irc("127.0.0.36", chat).await;
    claims.send("PROXY TCP4 10.1.2.3 127.0.0.1 1000 6667");
    claims.send("PING x");
    claims.until("PONG");
    let listed = host.home.run(&["service", "show", "chat"], "");
    assert!(listed.contains("irc on"), "{listed}");
}
