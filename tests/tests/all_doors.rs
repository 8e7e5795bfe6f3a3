//! Every door at once: the code of each service is replaced in turn while clients connect and disconnect at each door.
//!
//! `CREDHOST_RELOADS` sets the number of reloads (default 40); `-- --nocapture` prints the figures.

use std::io::{Error, Read, Result, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use credhost::control::{Request, send};
use pb::client::Client;
use system_tests::every_door::EveryDoor;

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";
/// The services to replace, in turn. Each has a door of its own, except the last, which Perspective Broker clients call.
const SERVICES: [&str; 4] = ["chat", "scores", "ssh", "todo"];
/// Clients at each door.
const CLIENTS: usize = 2;

fn connect(address: SocketAddr) -> Result<TcpStream> {
    let socket = TcpStream::connect(address)?;
    socket.set_read_timeout(Some(Duration::from_secs(60)))?;
    Ok(socket)
}

/// Reads everything up to the end of the stream.
fn rest(mut socket: TcpStream) -> Result<String> {
    let mut all = Vec::new();
    socket.read_to_end(&mut all)?;
    Ok(String::from_utf8_lossy(&all).into_owned())
}

fn expect(said: &str, right: bool) -> Result<()> {
    if right { Ok(()) } else { Err(Error::other(format!("{:?}", &said[..said.len().min(200)]))) }
}

fn irc(address: SocketAddr) -> Result<()> {
    let mut socket = connect(address)?;
    socket.write_all(b"PING here\r\nQUIT :bye\r\n")?;
    let said = rest(socket)?;
    expect(&said, said == ":credhost PONG credhost :here\r\nERROR :bye\r\n")
}

fn http(address: SocketAddr) -> Result<()> {
    let mut socket = connect(address)?;
    socket.write_all(b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")?;
    let said = rest(socket)?;
    expect(&said, said.starts_with("HTTP/1.1 200 ") && said.contains("</html>"))
}

/// Exchanges version strings and reads the server's first message, which lists its key algorithms.
fn ssh(address: SocketAddr) -> Result<()> {
    let mut socket = connect(address)?;
    socket.write_all(b"SSH-2.0-visitor\r\n")?;
    let mut said = Vec::new();
    while !said.windows(11).any(|window| window == b"ssh-ed25519") {
        let mut some = [0; 4096];
        let count = socket.read(&mut some)?;
        expect(&String::from_utf8_lossy(&said), count > 0)?;
        said.extend_from_slice(&some[..count]);
    }
    expect(&String::from_utf8_lossy(&said), said.starts_with(b"SSH-2.0-"))
}

/// Logs in, attaches, and calls.
fn broker(address: SocketAddr, token: &str) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let called = async {
        let client = Client::new(tokio::net::TcpStream::connect(address).await?).await.map_err(Error::other)?;
        let avatar = client.login_token(token, None).await.map_err(Error::other)?;
        let tasks = avatar.call("attach", &("todo",)).await.and_then(|answer| answer.remote()).map_err(Error::other)?;
        let tasks = tasks.call("list", &()).await.map_err(Error::other)?;
        tasks.read::<Vec<jelly::Value>>().map_err(Error::other)
    };
    let tasks = runtime.block_on(called)?;
    expect("tasks that nobody has added", tasks.is_empty())
}

#[test]
fn reloads_refuse_and_cut_nobody_at_any_door() {
    let reloads = std::env::var("CREDHOST_RELOADS").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let EveryDoor { host, irc: at_irc, ssh: at_ssh, http: at_http, token } = EveryDoor::open(&SERVICES, PASSWORD);
    let at_pb = host.address();
    type Visit = Arc<dyn Fn() -> Result<()> + Send + Sync>;
    let doors: [(&str, Visit); 4] = [
        ("IRC", Arc::new(move || irc(at_irc))),
        ("HTTP", Arc::new(move || http(at_http))),
        ("SSH", Arc::new(move || ssh(at_ssh))),
        ("PB", Arc::new(move || broker(at_pb, &token))),
    ];
    // Each door serves before anything is replaced.
    for (name, visit) in &doors {
        visit().unwrap_or_else(|error| panic!("{name}: {error}"));
    }
    let over = Arc::new(AtomicBool::new(false));
    let visited: Vec<Arc<AtomicUsize>> = doors.iter().map(|_| Arc::default()).collect();
    let mut visitors = Vec::new();
    for ((name, visit), count) in doors.iter().zip(&visited) {
        for _ in 0..CLIENTS {
            let (name, visit, count, over) = (*name, Arc::clone(visit), Arc::clone(count), Arc::clone(&over));
            visitors.push(std::thread::spawn(move || {
                let mut failed = Vec::new();
                while !over.load(Ordering::Relaxed) {
                    match visit() {
                        Ok(()) => drop(count.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => failed.push(format!("{name}: {error}")),
                    }
                }
                failed
            }));
        }
    }
    let began = Instant::now();
    for turn in 0..reloads {
        // Every door must serve a client before the next reload.
        let before: Vec<usize> = visited.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let request = Request::ServiceReload { name: SERVICES[turn % SERVICES.len()].to_owned() };
        let answer = send(&host.home.path().join("control.sock"), &request, &mut |_, _| {});
        answer.expect("the host answers").unwrap_or_else(|failure| panic!("{turn}: {}", failure.error));
        let waits = |(count, before): (&Arc<AtomicUsize>, &usize)| count.load(Ordering::Relaxed) == *before;
        let since = Instant::now();
        while visited.iter().zip(&before).any(waits) && visitors.iter().all(|visitor| !visitor.is_finished()) {
            assert!(since.elapsed() < Duration::from_secs(60), "a door serves nobody");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
    let took = began.elapsed().as_secs_f64();
    over.store(true, Ordering::Relaxed);
    let failed: Vec<String> = visitors.into_iter().flat_map(|visitor| visitor.join().expect("it ends")).collect();
    let counts: Vec<usize> = visited.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    let all: usize = counts.iter().sum();
    let each = doors.iter().zip(&counts).map(|((name, _), count)| format!("{name} {count}"));
    println!(
        "{reloads} reloads in {took:.1} s; {all} new connections meanwhile, {:.0} a second ({}): {} refused or cut",
        all as f64 / took,
        each.collect::<Vec<_>>().join(", "),
        failed.len()
    );
    assert!(failed.is_empty(), "{:?}", &failed[..failed.len().min(5)]);
}
