//! The time from a new library's arrival to its first answer, for a client that was attached before, in milliseconds; on a
//! running host, by part.
//!
//! `cargo bench -p credhost --bench reloading`. Under load, with every call counted:
//! `CREDHOST_RELOADS=200 CREDHOST_CALLS=1000000 cargo test --release -p system-tests --test reload under_load -- --nocapture`.

use std::time::{Duration, Instant};

use credhost::control::{LibraryStatus, Request, send};
use pb::client::{Client, Remote};
use system_tests::build;
use system_tests::host::{TestHome, TestHost};

const ROUNDS: u32 = 100;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    println!("{:56} {:>8} {:>8}", "", "p50 ms", "p99 ms");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (how, library) in [("release", build::release("ledger")), ("debug", build::debug("ledger"))] {
        runtime.block_on(rounds(how, &library));
    }
}

async fn rounds(how: &str, library: &std::path::Path) {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["ledger"]);
    let place = home.plugins().join("libledger.so");
    std::fs::copy(library, &place).expect("it can be copied");
    let host = home.start();
    let client = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
    let client = Client::new(client).await.expect("it speaks PB");
    let account = client.login_password("alice/ledger", "alice-pw", None).await.expect("there is a key");
    let (mut whole, mut load, mut freeze, mut rest) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let wanted = format!("v={round}");
        let new = host.home.path().join("new.so");
        std::fs::write(&new, build::mode_of(library, &wanted)).expect("it can be written");
        let start = Instant::now();
        std::fs::rename(&new, &place).expect("it can be moved");
        while mode(&account).await != wanted {
            tokio::time::sleep(Duration::from_micros(200)).await;
        }
        let took = start.elapsed().as_secs_f64() * 1e3;
        let reloaded = status(&host).reloaded.expect("it was replaced");
        whole.push(took);
        load.push(reloaded.load_ms);
        freeze.push(reloaded.freeze_ms);
        rest.push(took - reloaded.load_ms - reloaded.freeze_ms);
    }
    print(&format!("{how}: seen, at rest, copied, vetted; and answered"), rest);
    print(&format!("{how}: loaded and made, beside the old"), load);
    print(&format!("{how}: frozen, saved, started, switched: calls wait"), freeze);
    print(&format!("{how}: whole, from file in place to first answer"), whole);
}

async fn mode(account: &Remote) -> String {
    account.call("mode", &()).await.expect("it answers").read().expect("a text")
}

fn status(host: &TestHost) -> LibraryStatus {
    let request = Request::ServiceShow { name: "ledger".to_owned() };
    let answer = send(&host.home.path().join("control.sock"), &request, &mut |_, _| {});
    let answer = answer.expect("the host answers").expect("it is there");
    serde_json::from_value(answer["library"].clone()).expect("a status")
}

fn print(name: &str, mut times: Vec<f64>) {
    times.sort_by(f64::total_cmp);
    let at = |part: usize| times.get(times.len() * part / 100).copied().unwrap_or(0.0);
    println!("{name:56} {:>8.2} {:>8.2}", at(50), at(99));
}
