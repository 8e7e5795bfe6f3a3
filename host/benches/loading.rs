//! The time from a library's arrival to its first answer, by part, in milliseconds.
//!
//! `cargo bench -p credhost --bench loading`. The parts are measured inside this process, on libraries as the sample
//! services are built; the whole, on a running host, from the file's arrival to the answer of a client's first call.

use std::sync::Arc;
use std::time::{Duration, Instant};

use credhost::loader::generation::Source;
use credhost::loader::private::PrivateFolder;
use credhost::loader::unload::UnloadOutcome;
use credhost::loader::vet::{Allowed, Sections, Vet};
use credhost::multiservice::MultiService;
use credhost::multiservice::context::HostContext;
use credhost::multiservice::slot::Slot;
use credhost::store::MemoryStore;
use system_tests::build;
use system_tests::host::{TestHome, put};

const ROUNDS: usize = 50;
const WHOLE_ROUNDS: usize = 10;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let (debug, release) = (build::debug("my-service"), build::release("my-service"));
    println!("{:44} {:>9} {:>9} {:>9}", "", "p50 ms", "p99 ms", "size MB");
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    for (build, library) in [("release", &release), ("debug", &debug)] {
        let size = std::fs::metadata(library).map_or(0, |about| about.len());
        let mut parts: [Vec<Duration>; 5] = Default::default();
        runtime.block_on(async {
            let home = tempfile::tempdir().expect("a folder");
            let private = PrivateFolder::new(home.path().join("generations")).expect("a folder");
            let context = HostContext::new(Arc::new(MemoryStore::new()));
            for _ in 0..ROUNDS {
                let start = Instant::now();
                let copy = private.copy(library).expect("it is a library");
                parts[0].push(start.elapsed());
                // A `Vet` remembers its verdicts, so each round uses a new one.
                let vet = Vet::new(build::credhost(), Duration::from_secs(10));
                let start = Instant::now();
                vet.vet(&copy, &Sections::new(), &Allowed::new()).expect("it is good");
                parts[1].push(start.elapsed());
                let start = Instant::now();
                let slot = Slot::load(Source::Copy(copy), &context, |_| Vec::new()).await.expect("it loads");
                parts[2].push(start.elapsed());
                let services = MultiService::new("pb");
                services.start().await;
                let start = Instant::now();
                services.add(Arc::clone(&slot)).await.expect("it starts");
                parts[3].push(start.elapsed());
                let start = Instant::now();
                let account = slot.stop().await;
                parts[4].push(start.elapsed());
                assert!(matches!(account, UnloadOutcome::Retired { .. }), "{account:?}");
            }
        });
        let names = [
            "check and private copy",
            "vetted in a process of its own",
            "open, check types, manifest",
            "made, started, asked whether it is well",
            "stopped, unloaded",
        ];
        for (name, times) in names.iter().zip(parts) {
            print(&format!("{build}: {name}"), times, size);
        }
        print(&format!("{build}: whole, from file to first answer"), whole(library), size);
    }
}

fn print(name: &str, mut times: Vec<Duration>, size: u64) {
    times.sort_unstable();
    let at = |part: usize| times.get(times.len() * part / 100).map_or(0.0, |time| time.as_secs_f64() * 1e3);
    println!("{name:44} {:>9.2} {:>9.2} {:>9.1}", at(50), at(99), size as f64 / 1e6);
}

/// Measures the whole on a running host. Each round starts its own host.
fn whole(library: &std::path::Path) -> Vec<Duration> {
    let mut times = Vec::new();
    for _ in 0..WHOLE_ROUNDS {
        let home = TestHome::new();
        home.make();
        home.identity("alice", "alice-pw", &["my service"]);
        let host = home.start();
        let client = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        let time = client.block_on(async {
            let stream = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
            let client = pb::client::Client::new(stream).await.expect("it speaks PB");
            let place = host.home.plugins().join("my_service.so");
            let half = host.home.plugins().join(".half");
            put(library, &half);
            let start = Instant::now();
            std::fs::rename(half, place).expect("it can be renamed");
            loop {
                // Refused until the service is there.
                match client.login("alice/my service", "alice-pw", None).await {
                    Ok(perspective) => {
                        perspective.call("add", &(1,)).await.expect("it answers");
                        return start.elapsed();
                    }
                    Err(_) => tokio::time::sleep(Duration::from_millis(1)).await,
                }
            }
        });
        times.push(time);
    }
    times
}
