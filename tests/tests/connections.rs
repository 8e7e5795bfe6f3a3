//! As many connections as the machine has descriptors for; further ones do no harm.

use std::io::{BufRead, BufReader, Write};
use std::net::SocketAddr;
use std::process::{Command, Stdio};

use credhost::session::Limits;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use system_tests::embedded::{Embedded, RawClient};
use system_tests::wire::Wire;

/// The environment variable that marks the clients' process.
const CLIENTS: &str = "CREDHOST_TEST_CLIENTS";
/// Descriptors reserved for the clients' process itself.
const SPARE: u64 = 200;
/// Clients that connect when the host has no descriptor left.
const MORE: usize = 20;

fn limit(soft: u64) {
    let hard = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: Some(soft), maximum: hard }).expect("a lower limit can be set");
}

fn hard() -> u64 {
    // Without a limit, this many are enough.
    getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX).min(50_000)
}

fn open() -> u64 {
    std::fs::read_dir("/proc/self/fd").expect("/proc is there").count() as u64
}

/// The clients' process: it reads one command a line, and reports each as done.
#[test]
fn clients_of_another_process() {
    let Ok(address) = std::env::var(CLIENTS) else { return };
    let address: SocketAddr = address.parse().expect("an address");
    let wanted = (hard() - SPARE - open() - MORE as u64) as usize;
    limit(hard());
    let mut clients = Vec::new();
    let mut late = Vec::new();
    for line in std::io::stdin().lines().map_while(Result::ok) {
        let said = match line.as_str() {
            "come" => {
                clients.extend((0..wanted).map(|_| RawClient::login(address, "alice")));
                clients.len()
            }
            "call" => {
                let step = (clients.len() / 100).max(1);
                let asked = clients.iter_mut().step_by(step);
                let right = asked.filter_map(|client| {
                    let call = client.begin("echo_int", &(42,));
                    (client.answer(call).to_string() == "42").then_some(())
                });
                right.count()
            }
            "come late" => {
                let sockets = (0..MORE).map(|_| std::net::TcpStream::connect(address).expect("the system has room"));
                late.extend(sockets);
                late.len()
            }
            "be served" => {
                let offered = late.drain(..).filter(|stream| {
                    let stream = stream.try_clone().expect("there are descriptors");
                    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("it can be set");
                    Wire { stream, received: Vec::new() }.read()
                });
                offered.count()
            }
            other => panic!("{other}?"),
        };
        println!("\ndone {said}");
    }
}

#[test]
fn clients_beyond_the_descriptor_limit_wait_and_disturb_nobody() {
    if std::env::var_os(CLIENTS).is_some() {
        return;
    }
    limit(hard());
    let (most, default) = (usize::MAX, Limits::default());
    // All clients log in as one identity.
    let of_identity = Limits { identity_attachments: most, identity_objects: most, ..default };
    let all = Limits { connections: most, per_source: most, ..of_identity };
    let host = Embedded::start(all);
    let mut command = Command::new(std::env::current_exe().expect("it has a path"));
    command.args(["--exact", "clients_of_another_process", "--nocapture"]);
    command.env(CLIENTS, host.address().to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut other = command.spawn().expect("it runs");
    let mut input = other.stdin.take().expect("it has one");
    let mut lines = BufReader::new(other.stdout.take().expect("it has one")).lines();
    let mut tell = |what: &str| -> usize {
        writeln!(input, "{what}").expect("it listens");
        loop {
            let line = lines.next().expect("it runs").expect("it says text");
            if let Some(number) = line.strip_prefix("done ") {
                return number.parse().expect("a number");
            }
        }
    };
    let logged_in = tell("come");
    println!("{logged_in} clients are logged in at once; the machine allows {} descriptors", hard());
    assert_eq!(logged_in as u64 / 100, (hard() - SPARE) / 100 - 1, "all but those that are spare");
    assert!(tell("call") >= 100, "each is answered");

    // No descriptor is left for the next clients: they wait, and no other client is affected.
    limit(open() + 3);
    assert_eq!(tell("come late"), MORE);
    assert!(tell("call") >= 100, "who is there is answered");
    limit(hard());
    assert_eq!(tell("be served"), MORE, "and they are served when there are descriptors again");
    drop(input);
    assert!(other.wait().expect("it ends").success());
}
