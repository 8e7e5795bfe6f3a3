//! Connections begin in a lobby, and move when a client has logged in on them: no client notices, and strangers leave the
//! processors to the clients inside.

use std::path::PathBuf;

use credhost::session::Limits;
use system_tests::embedded::{Embedded, RawClient};

/// The number of clients at once, the logins of each, and the calls that each sends before it reads.
const CLIENTS: usize = 8;
const ROUNDS: usize = 25;
const CALLS: i64 = 100;

#[test]
fn calls_during_the_move_from_the_lobby_keep_their_order() {
    let host = Embedded::start(Limits::default());
    let address = host.address();
    let clients: Vec<_> = (0..CLIENTS)
        .map(|_| {
            std::thread::spawn(move || {
                for round in 0..ROUNDS {
                    let mut alice = RawClient::login(address, "alice");
                    // The host has answered, and may be moving the connection at this moment.
                    let requests: Vec<u64> = (0..CALLS).map(|number| alice.begin("echo_int", &(number,))).collect();
                    if round % 5 == 0 {
                        // This client disconnects before it has read any answer.
                        continue;
                    }
                    for (number, request) in requests.into_iter().enumerate() {
                        let message = alice.message().expect("it goes on");
                        assert_eq!((message.command.as_str(), message.number), ("answer", request), "in order");
                        assert_eq!(jelly::from_slice::<usize>(&message.value).expect("a number"), number);
                    }
                }
            })
        })
        .collect();
    clients.into_iter().for_each(|client| client.join().expect("all is answered"));
    while !host.sessions().list().is_empty() {
        std::thread::yield_now();
    }
}

/// The nice values of this process's threads whose names start with this.
fn threads(of: &str) -> Vec<i64> {
    let tasks = std::fs::read_dir("/proc/self/task").expect("/proc is there").flatten();
    let of = |task: PathBuf| {
        let name = std::fs::read_to_string(task.join("comm")).ok()?;
        // The name may contain blanks and parentheses: the other fields follow the last parenthesis.
        let stat = std::fs::read_to_string(task.join("stat")).ok()?;
        let nice = stat.rsplit_once(')')?.1.split_whitespace().nth(16)?.parse().ok()?;
        name.starts_with(of).then_some(nice)
    };
    tasks.filter_map(|task| of(task.path())).collect()
}

#[test]
fn the_lobby_lets_those_inside_go_first() {
    let host = Embedded::start(Limits::default());
    // Once they have served a client, the threads have started.
    drop(RawClient::login(host.address(), "alice"));
    let (lobby, inside) = (threads("lobby-"), threads("io-"));
    assert!(!lobby.is_empty() && !inside.is_empty());
    let nicest = inside.iter().max().copied().unwrap_or_default();
    assert!(lobby.iter().any(|nice| *nice > nicest), "{lobby:?}, {inside:?}");
}
