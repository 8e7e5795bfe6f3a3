//! Several services at one address, with Perspective Broker beside them. The TLS client hello or the first bytes decide
//! to which listener a connection belongs. Judged by OpenSSH, curl, ii, Twisted and rustls.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::process::Command;

use system_tests::debian;
use system_tests::host::{TestHome, TestHost};
use system_tests::irc::ii;
use system_tests::lines::Lines;
use system_tests::python::twisted;
use system_tests::ssh::Ssh;
use system_tests::tls::{P256, client, made};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

/// An address that no other test uses, so that its port can be fixed beforehand.
fn own_address() -> SocketAddr {
    let id = std::process::id();
    SocketAddr::from(([127, 78, (id / 250 % 250) as u8, (1 + id % 250) as u8], 4443))
}

/// Fetches the URL with curl. Whatever name is in the URL, curl connects to this address.
fn curl(address: SocketAddr, authority: &str, url: &str) -> Result<String, String> {
    curl_from("127.0.0.1", address, authority, url)
}

fn curl_from(own: &str, address: SocketAddr, authority: &str, url: &str) -> Result<String, String> {
    let mut curl = Command::new(debian::program("curl", "curl"));
    let to = format!("::{}:{}", address.ip(), address.port());
    let output = curl
        .args(["-sS", "--interface", own, "--http1.1", "--connect-to", &to, "--cacert", authority, url])
        .output()
        .expect("curl runs");
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(String::from_utf8_lossy(&output.stderr).into_owned()),
    }
}

fn host(address: SocketAddr) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        format!(
            r#"{}
[service.ssh]
may = ["attach", "vouch"]
[service.ssh.listen]
ssh = {{ address = "{address}", encrypted = true }}
[service.chat.listen]
irc = [
    {{ address = "{address}", tls = true, names = ["chat.example.org"] }},
    {{ address = "{address}", tls = true, alpn = ["irc"] }},
    {{ address = "{address}", begins = ["NICK ", "PASS ", "USER ", "CAP "] }},
]
[service.scores.listen]
http = [
    {{ address = "{address}", tls = true, names = ["*.example.org"], alpn = ["http/1.1"] }},
    {{ address = "{address}", begins = ["GET ", "HEAD ", "POST "] }},
]
"#,
            text.replace(
                "[pb]\n",
                &format!("[pb]\nlisten_tls = {{ address = \"{address}\", names = [\"pb.example.org\"] }}\n")
            )
        )
    });
    home.run(&["tls", "init", "--name", "localhost", "--name", "*.example.org"], "");
    for name in ["alice", "bob", "carol", "ivo"] {
        home.identity(name, PASSWORD, &["ssh", "todo", "chat"]);
    }
    ["ssh", "todo", "chat", "scores"].iter().for_each(|service| home.install(service));
    home.start()
}

/// Checks that each service's own clients reach it.
fn all_are_served(host: &TestHost, address: SocketAddr, alice: &Ssh, round: u32) {
    let authority = host.home.path().join("tls/ca.pem");
    let pem = std::fs::read(&authority).expect("it is there");
    let authority = authority.to_str().expect("a text");
    let came = alice.run(&["todo", "add", "milk"]);
    assert_eq!((came.status, came.said), (Some(0), format!("{round}\n")), "{}", came.errors);
    for url in ["http://somewhere/", "https://scores.example.org/"] {
        let page = curl(address, authority, url).unwrap_or_else(|said| panic!("{url}: {said}"));
        assert!(page.contains("<title>"), "{url}: {page}");
    }
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let tasks = twisted("by_name.py", &[&ip, &port, authority, PASSWORD, "pb.example.org"]);
    assert_eq!(tasks.trim(), (round + 1).to_string());
    let mut bob = Lines::over(client(&pem, "chat.example.org", &[], Lines::socket(address)));
    bob.join("bob", PASSWORD);
    let mut carol = Lines::over(client(&pem, "localhost", &["h2", "irc"], Lines::socket(address)));
    carol.join("carol", PASSWORD);
    let ivo = ii(address, "ivo", PASSWORD);
    carol.until(":ivo!ivo@credhost JOIN");
    bob.send("PRIVMSG #chat :hello");
    carol.until("PRIVMSG #chat :hello");
    ivo.hears("hello");
    // A connection that belongs to no listener gets TLS's own alert.
    let said = curl(address, authority, "https://localhost/").expect_err("nobody's");
    assert!(said.contains("no application protocol"), "{said}");
    // A client disconnects after the beginning of a client hello.
    let mut strange = Lines::socket(address);
    strange.write_all(&[22, 3]).expect("it can be sent");
    drop(strange);
}

#[test]
fn six_listeners_of_three_services_and_pb_share_a_port() {
    let address = own_address();
    let mut host = host(address);
    let mut alice = Ssh::new(address, "alice", &["ed25519"]);
    host.home.run(&["pubkey", "add", "alice", &alice.public().display().to_string()], "");
    alice.moves(address);
    all_are_served(&host, address, &alice, 0);
    for service in ["ssh", "chat", "scores"] {
        host.home.run(&["service", "reload", service], "");
    }
    all_are_served(&host, address, &alice, 1);
    // The socket is passed on once in an upgrade.
    let program = system_tests::build::credhost();
    let said = host.home.run(&["upgrade", &program.display().to_string()], "");
    assert!(said.contains("serves"), "{said}");
    all_are_served(&host, address, &alice, 2);
    host.kill();
}

/// A client may send its first bytes one by one. One that sends nothing gets the listener that speaks first.
#[test]
fn first_bytes_may_trickle_and_silence_selects_a_listener() {
    let address = own_address();
    let address = SocketAddr::new(address.ip(), 4444);
    let host = host(address);
    let drip = |text: &[u8]| {
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.set_nodelay(true).expect("an option");
        text.chunks(1).for_each(|byte| socket.write_all(byte).expect("it is read"));
        let mut answer = vec![0; 4];
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("an option");
        socket.read_exact(&mut answer).expect("it answers");
        answer
    };
    assert_eq!(drip(b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"), b"HTTP");
    assert_eq!(drip(b"GETTING"), b"SSH-");
    assert_eq!(drip(b""), b"SSH-", "whoever speaks first");
    assert_eq!(drip(b"NIC"), b"SSH-", "whoever says no more than that");
    drop(host);
}

/// Connections that do not show which listener they are for take no more than their share. Others are served meanwhile.
#[test]
fn undecided_connections_do_not_keep_others_out() {
    let address = own_address();
    let address = SocketAddr::new(address.ip(), 4445);
    let mut host = host(address);
    // The beginning of a client hello, and no more.
    let undecided: Vec<TcpStream> = (0..400)
        .map(|_| {
            let mut socket = TcpStream::connect(address).expect("it listens");
            // The host closes those beyond the share at once.
            let _ = socket.write_all(&[22, 3, 1, 2, 0, 1]);
            socket
        })
        .collect();
    // The host accepts 256 from one source, also where Perspective Broker shares the address.
    for _ in 0..400 - 256 {
        host.wait_for("too many connections have not shown which listener they are for");
    }
    let authority = host.home.path().join("tls/ca.pem");
    let page = curl_from("127.9.9.9", address, authority.to_str().expect("a text"), "https://www.example.org/");
    assert!(page.as_ref().is_ok_and(|page| page.contains("<title>")), "{page:?}");
    // Nobody answers them. The host closes each one, at once or when its time is up.
    for mut socket in undecided {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("an option");
        assert!(!matches!(socket.read(&mut [0; 1]), Ok(1..)));
    }
}

#[test]
fn the_operator_sets_how_long_a_connection_may_be_undecided() {
    let address = SocketAddr::new(own_address().ip(), 4447);
    let host = host(address);
    let undecided = |time: &str| {
        let limit = |time: &str| format!("\n[limits]\ngreeting = \"{time}\"\n");
        host.home.configure(|text| text.replace(&limit("1 h"), "") + &limit(time));
        host.home.run(&["reload"], "");
        let mut socket = TcpStream::connect(address).expect("it listens");
        socket.write_all(&[22, 3, 1, 2, 0, 1]).expect("it can be sent");
        socket
    };
    let (patient, mut short) = (undecided("1 h"), undecided("1 s"));
    short.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("an option");
    let ended = short.read(&mut [0; 1]);
    assert!(
        ended.as_ref().map_or_else(|error| error.kind() == std::io::ErrorKind::ConnectionReset, |count| *count == 0)
    );
    patient.set_nonblocking(true).expect("an option");
    let still = patient.peek(&mut [0; 1]).expect_err("nothing has come, and it is open");
    assert_eq!(still.kind(), std::io::ErrorKind::WouldBlock);
}

/// A client sends half of the bytes that select a listener, and then its end closes. That ends the connection, and
/// costs nothing.
#[test]
fn connections_that_end_undecided_occupy_no_thread() {
    let address = own_address();
    let address = SocketAddr::new(address.ip(), 4446);
    let host = host(address);
    let authority = host.home.path().join("tls/ca.pem");
    let authority = authority.to_str().expect("a text");
    let begin: [&[u8]; 5] = [&[22, 3, 1, 2, 0], &[22], b"NI", b"PASS", b""];
    let mut open = Vec::new();
    for first in begin {
        for half in [false, true] {
            let mut socket = TcpStream::connect(address).expect("it listens");
            socket.write_all(first).expect("it can be sent");
            if half {
                // The client still reads.
                socket.shutdown(std::net::Shutdown::Write).expect("it is open");
                open.push((first, socket));
            }
        }
    }
    for (first, mut socket) in open {
        socket.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("an option");
        let mut answer = Vec::new();
        let ended = socket.read_to_end(&mut answer);
        let in_time = ended.as_ref().err().is_none_or(|error| error.kind() == std::io::ErrorKind::ConnectionReset);
        assert!(in_time, "{first:?}: {ended:?}");
        // Connections in the clear go to the listener for the rest, which speaks first. Those that began TLS get
        // nothing.
        assert_eq!(answer.starts_with(b"SSH-"), !first.starts_with(&[22]), "{first:?}: {answer:?}");
    }
    // A thread in a busy loop would serve nobody else.
    for _ in 0..20 {
        let page = curl(address, authority, "https://www.example.org/").expect("it is served");
        assert!(page.contains("<title>"), "{page}");
    }
}

/// Perspective Broker, in the clear and over TLS, at an address with a service's listeners. In the clear, it gets the
/// clients that wait for the server to speak first; over TLS, those that offer its protocol, even where no name is set.
/// The service learns what was negotiated, and each name has its own certificate.
#[test]
fn pb_gets_the_rest_in_the_clear_and_names_have_certificates() {
    let address = SocketAddr::new(own_address().ip(), 4447);
    let home = TestHome::new();
    home.make();
    home.run(&["tls", "init", "--name", "pb.example.org"], "");
    let other = made(
        &home.path().join("tls"),
        "other",
        &[P256.as_slice(), &["-addext", "subjectAltName=DNS:www.other.org"]].concat(),
        "/CN=x",
    );
    let authority = home.path().join("tls/ca.pem");
    home.configure(|text| {
        let pb = format!("[pb]\nlisten_tls = {{ address = \"{address}\", alpn = [\"pb\"] }}\n");
        format!(
            r#"{}
[[tls.others]]
certificate = "tls/other.crt"
key = "tls/other.key"
[service.scores.listen]
http = [
    {{ address = "{address}", tls = true, names = ["www.other.org"], alpn = ["http/1.1", "x"] }},
    {{ address = "{address}", begins = ["GET "] }},
]
"#,
            text.replace("[pb]\n", &pb)
        )
    });
    home.identity("bob", PASSWORD, &["todo"]);
    ["todo", "scores"].iter().for_each(|service| home.install(service));
    let host = home.start_with(&["--listen", &address.to_string()], &[]);
    let (ip, port) = (address.ip().to_string(), address.port().to_string());
    let ca = authority.to_str().expect("a text");
    let tasks = twisted("by_name.py", &[&ip, &port, ca, PASSWORD, "pb.example.org", "pb"]);
    assert_eq!(tasks.trim(), "1");
    let said = host.home.run(&["call", "--password-stdin", &format!("bob@{address}/todo"), "list"], PASSWORD);
    assert!(said.contains("by pb.example.org"), "{said}");
    let page =
        curl(address, other.to_str().expect("a text"), "https://www.other.org/").expect("by its own certificate");
    assert!(page.contains("<title>"), "{page}");
    let page = curl(address, ca, "http://www.other.org/").expect("in the clear");
    assert!(page.contains("<title>"), "{page}");
    let said = curl(address, ca, "https://pb.example.org/").expect_err("it does not speak PB");
    assert!(said.contains("no application protocol"), "{said}");
    // It is one socket, which is passed on once in an upgrade.
    let program = system_tests::build::credhost();
    host.home.run(&["upgrade", &program.display().to_string()], "");
    let tasks = twisted("by_name.py", &[&ip, &port, ca, PASSWORD, "pb.example.org", "pb"]);
    assert_eq!(tasks.trim(), "2");
    let page = curl(address, ca, "http://www.other.org/").expect("in the clear");
    assert!(page.contains("<title>"), "{page}");
    // `doctor` knows both certificates.
    let found = host.home.run(&["doctor"], "");
    assert!(found.contains("cert.pem") && found.contains("other.crt"), "{found}");
}

/// What a proxy forwards is for Perspective Broker, and may be for any of its listeners. A connection that a proxy
/// opens for itself may be for any listener at all.
#[tokio::test]
async fn a_proxied_connection_reaches_the_listener_it_names() {
    use pb::client::{Client, Options};
    use tokio::io::AsyncWriteExt;

    let address = SocketAddr::new(own_address().ip(), 4448);
    let home = TestHome::new();
    home.make();
    home.run(&["tls", "init", "--name", "*.example.org"], "");
    home.configure(|text| {
        let pb = format!(
            "[pb]\nproxies = [\"127.0.0.1\"]\nlisten_tls = {{ address = \"{address}\", names = [\"pb.example.org\"] }}\n"
        );
        format!(
            r#"{}
[multiservice.games]
services = ["scores"]
anonymous = "scores/guest"
listen_tls = {{ address = "{address}", names = ["games.example.org"] }}
[service.scores.listen]
http = {{ address = "{address}", tls = true, names = ["www.example.org"], alpn = ["http/1.1"] }}
"#,
            text.replace("[pb]\n", &pb)
        )
    });
    home.install("scores");
    let host = home.start();
    let authority = host.home.path().join("tls/ca.pem");
    let pem = std::fs::read(&authority).expect("it is there");
    let connector = tokio_rustls::TlsConnector::from(std::sync::Arc::new(system_tests::tls::config(&pem, &[], None)));
    for (name, lets_in) in [("games.example.org", true), ("pb.example.org", false)] {
        let mut socket = tokio::net::TcpStream::connect(address).await.expect("it listens");
        let header = format!("PROXY TCP4 10.1.2.3 10.9.9.9 5555 {}\r\n", address.port());
        socket.write_all(header.as_bytes()).await.expect("it is sent");
        let stream = connector.connect(name.try_into().expect("a name"), socket).await.expect("TLS behind the header");
        let client = Client::with(stream, Options::default()).await.expect("Perspective Broker");
        let guest = client.root().call("loginAnonymous", &((),)).await;
        assert_eq!(guest.is_ok(), lets_in, "{name}: {guest:?}");
    }
    let page =
        curl(address, authority.to_str().expect("a text"), "https://www.example.org/").expect("by the proxy itself");
    assert!(page.contains("<title>"), "{page}");
}
