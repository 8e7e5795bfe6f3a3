//! Services' own doors under load: reloads while connections arrive, and long sessions that are carried over.
//!
//! `CREDHOST_RELOADS` and `CREDHOST_SESSIONS` set the numbers (default 20 and 200); `-- --nocapture` prints the figures.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use credhost::control::{Request, send};
use system_tests::host::{TestHome, TestHost};
use system_tests::lines::Lines;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn number(variable: &str, default: usize) -> usize {
    std::env::var(variable).ok().and_then(|text| text.parse().ok()).unwrap_or(default)
}

/// A host whose chat accepts many connections from one address, and a token of alice's.
fn host() -> (TestHost, SocketAddr, String) {
    let home = TestHome::new();
    home.make();
    home.configure(|text| {
        format!(
            "{text}\n[service.chat.listen]\nirc = {{ address = \"127.0.0.1:0\", connections = 20000, per_source = 20000 }}\n\
             [limits]\nconnections = 20000\nper_source = 20000\n"
        )
    });
    home.identity("alice", PASSWORD, &["chat"]);
    home.identity("bob", PASSWORD, &["chat"]);
    let token = home.run(&["token", "new", "alice"], "");
    let token = token.split_whitespace().find(|word| word.starts_with("credhost_")).expect("a token").to_owned();
    home.install("chat");
    let mut host = home.start_with(&[], &[("CREDHOST_LOG", "info")]);
    let line = host.wait_for("serving irc on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    (host, address, token)
}

fn ask(host: &TestHost, request: &Request) -> serde_json::Value {
    let answer = send(&host.home.path().join("control.sock"), request, &mut |_, _| {});
    answer.expect("the host answers").expect("it is done")
}

fn reload(host: &TestHost) {
    ask(host, &Request::ServiceReload { name: "chat".to_owned() });
}

/// One connection from beginning to end, which must be served and not cut.
fn visit(address: SocketAddr) -> std::io::Result<()> {
    let mut socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    socket.write_all(b"PING here\r\nQUIT :bye\r\n")?;
    let mut all = Vec::new();
    socket.read_to_end(&mut all)?;
    let whole = b":credhost PONG credhost :here\r\nERROR :bye\r\n";
    if all == whole { Ok(()) } else { Err(std::io::Error::other(String::from_utf8_lossy(&all).into_owned())) }
}

#[test]
fn nobody_is_refused_or_cut_while_the_code_is_replaced() {
    let (reloads, sessions) = (number("CREDHOST_RELOADS", 20), number("CREDHOST_SESSIONS", 200));
    let (host, address, token) = host();
    let mut idle: Vec<Lines> = (0..sessions).map(|_| Lines::irc(address, "alice", &token)).collect();
    let mut bob = Lines::irc(address, "bob", PASSWORD);
    let (over, served) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let visitors: Vec<_> = (0..4)
        .map(|_| {
            let (over, served) = (Arc::clone(&over), Arc::clone(&served));
            std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match visit(address) {
                        Ok(()) => drop(served.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(error.to_string()),
                    }
                }
                failed
            })
        })
        .collect();
    let began = Instant::now();
    for turn in 0..reloads {
        bob.send(&format!("PRIVMSG #chat :{turn}"));
        reload(&host);
    }
    let took = began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let failed: Vec<String> = visitors.into_iter().flat_map(|visitor| visitor.join().expect("it ends")).collect();
    assert!(failed.is_empty(), "{} of {} failed: {:?}", failed.len(), served.load(Ordering::Relaxed), &failed[..1]);
    for client in &mut idle {
        for turn in 0..reloads {
            let line = client.until("PRIVMSG");
            assert_eq!(line, format!(":bob!bob@credhost PRIVMSG #chat :{turn}"), "each once, in order");
        }
    }
    let served = served.load(Ordering::Relaxed);
    println!(
        "{reloads} reloads in {took:.1} s, {served} new connections meanwhile ({:.0} a second): 0 refused, 0 cut; \
         {sessions} sessions carried over each: 0 lost",
        served as f64 / took
    );
    assert!(served > 0);
}
