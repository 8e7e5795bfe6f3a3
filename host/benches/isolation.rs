//! The cost of a process per service: calls one at a time and 100 in flight, a start, a replacement, and memory, of the same
//! service in the host's process, in its own process, and in a sandbox; all in one run, in turns, with ratios to the first.
//! Then the effect on its callers when its process is killed, and on callers of another service while it dies in every known
//! way.
//!
//! `cargo bench -p credhost --bench isolation`.

use std::time::Instant;

use credhost::control::{LibraryStatus, Request, send};
use futures_like::join_all;
use pb::client::{Client, Remote};
use system_tests::build;
use system_tests::host::{TestHome, TestHost};

const MODES: [&str; 3] = ["none", "process", "sandbox"];
const ROUNDS: usize = 10;
const CALLS: u64 = 2_000;
const IN_FLIGHT: u64 = 100;
const RELOADS: usize = 40;
const QUIET: usize = 5_000;
const DEATHS: usize = 100;
const LARGE: usize = 600 << 10;

fn main() {
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    runtime.block_on(run());
}

struct Place {
    host: TestHost,
    account: Remote,
    confined: Remote,
    _client: (Client, Client),
}

async fn place(isolation: &str) -> Place {
    let home = TestHome::new();
    home.make();
    home.isolate(isolation);
    home.identity("alice", "alice-pw", &["ledger", "confined"]);
    for package in ["ledger", "confined"] {
        std::fs::copy(build::release(package), home.plugins().join(format!("lib{package}.so")))
            .expect("it can be copied");
    }
    let host = home.start();
    let (client, account) = login(&host, "ledger").await;
    let (other, confined) = login(&host, "confined").await;
    Place { host, account, confined, _client: (client, other) }
}

async fn login(host: &TestHost, service: &str) -> (Client, Remote) {
    let stream = tokio::net::TcpStream::connect(host.address()).await.expect("the door is open");
    let client = Client::new(stream).await.expect("it speaks PB");
    let found = client.login_password(&format!("alice/{service}"), "alice-pw", None).await.expect("there is a key");
    (client, found)
}

async fn run() {
    let mut places = Vec::new();
    for isolation in MODES {
        places.push(place(isolation).await);
    }
    let mut table: Vec<(&str, [Vec<f64>; 3])> = [
        "a call, one at a time, us",
        "a call, 100 in flight, us",
        "a call with 600 KiB of arguments, us",
        "a replacement: loaded and made, ms",
        "a replacement: calls wait, ms",
    ]
    .map(|what| (what, [const { Vec::new() }; 3]))
    .into();
    for _ in 0..ROUNDS {
        for (at, place) in places.iter().enumerate() {
            let large = "a".repeat(LARGE);
            table[0].1[at].push(one_at_a_time(&place.account, CALLS).await);
            table[1].1[at].push(in_flight(&place.account).await);
            table[2].1[at].push(large_calls(&place.confined, &large).await);
        }
    }
    for _ in 0..RELOADS {
        for (at, place) in places.iter().enumerate() {
            let request = Request::ServiceReload { name: "ledger".to_owned() };
            let answer = send(&place.host.home.path().join("control.sock"), &request, &mut |_, _| {});
            let answer = answer.expect("the host answers").expect("it is replaced");
            table[3].1[at].push(answer["reloaded"]["load_ms"].as_f64().unwrap_or(0.0));
            table[4].1[at].push(answer["reloaded"]["freeze_ms"].as_f64().unwrap_or(0.0));
        }
    }
    println!("{:44} {:>9} {:>9} {:>9} {:>8} {:>8}", "p50", "none", "process", "sandbox", "process", "sandbox");
    for (what, of) in table {
        let of = of.map(|mut times| {
            times.sort_by(f64::total_cmp);
            times.get(times.len() / 2).copied().unwrap_or(0.0)
        });
        println!(
            "{what:44} {:>9.2} {:>9.2} {:>9.2} {:>7.2}x {:>7.2}x",
            of[0],
            of[1],
            of[2],
            of[1] / of[0],
            of[2] / of[0]
        );
    }
    for (isolation, place) in MODES.iter().zip(&places).skip(1) {
        deaths(isolation, place).await;
    }
    beside(&places[1]).await;
    for (isolation, place) in MODES.iter().zip(&places).skip(1) {
        let process = status(&place.host).process.expect("it has one");
        println!("memory of a worker, {isolation}: {:.1} MiB", process.memory as f64 / f64::from(1 << 20));
    }
}

async fn one_at_a_time(account: &Remote, calls: u64) -> f64 {
    let began = Instant::now();
    for _ in 0..calls {
        account.call("total", &()).await.expect("it answers");
    }
    began.elapsed().as_secs_f64() * 1e6 / calls as f64
}

async fn in_flight(account: &Remote) -> f64 {
    let (began, rounds) = (Instant::now(), CALLS * 5 / IN_FLIGHT);
    for _ in 0..rounds {
        let calls = (0..IN_FLIGHT).map(|_| account.call("total", &()));
        for answer in join_all(calls).await {
            answer.expect("it answers");
        }
    }
    began.elapsed().as_secs_f64() * 1e6 / (rounds * IN_FLIGHT) as f64
}

async fn large_calls(confined: &Remote, large: &str) -> f64 {
    const TIMES: u32 = 20;
    let began = Instant::now();
    for _ in 0..TIMES {
        confined.call("attempt", &("nothing", large)).await.expect("it answers");
    }
    began.elapsed().as_secs_f64() * 1e6 / f64::from(TIMES)
}

/// The effect on another service's callers while one service dies, in its own process, in every known way: the p99 of calls one
/// at a time, beside that of a quiet host before and after.
async fn beside(place: &Place) {
    const WAYS: [&str; 14] = [
        "segv",
        "abort",
        "exit",
        "overflow",
        "kill",
        "garbage",
        "unknown",
        "long",
        "no-frames",
        "asks",
        "half",
        "close",
        "descriptors",
        "fill",
    ];
    let p99 = |mut times: Vec<f64>| {
        times.sort_by(f64::total_cmp);
        times[(times.len() - 1) * 99 / 100]
    };
    let before = p99(latencies(&place.account, QUIET).await);
    let reload = || {
        let request = Request::ServiceReload { name: "confined".to_owned() };
        send(&place.host.home.path().join("control.sock"), &request, &mut |_, _| {})
    };
    let mut during = Vec::new();
    for how in WAYS {
        let dying = tokio::spawn({
            let confined = place.confined.clone();
            // The call fails, or the connection to the process ends, which is reported as an error too.
            async move { drop(confined.call("die", &(how,)).await) }
        });
        while !dying.is_finished() {
            during.extend(latencies(&place.account, 20).await);
        }
        // And during the restart.
        during.extend(latencies(&place.account, 500).await);
        let _ = reload();
    }
    let during = p99(during);
    let after = p99(latencies(&place.account, QUIET).await);
    println!(
        "another service's calls, p99: quiet {before:.0} and {after:.0} us; while one dies in {} ways {during:.0} us, {:.2}x",
        WAYS.len(),
        during / before.max(after)
    );
}

async fn latencies(account: &Remote, calls: usize) -> Vec<f64> {
    let mut times = Vec::with_capacity(calls);
    for _ in 0..calls {
        let began = Instant::now();
        account.call("total", &()).await.expect("it answers");
        times.push(began.elapsed().as_secs_f64() * 1e6);
    }
    times
}

/// Kills the service's process while a call waits. Measures when the caller learns of it, and when the next call is answered.
async fn deaths(isolation: &str, place: &Place) {
    let (mut heard, mut gone, mut served) = (Vec::new(), Vec::new(), Vec::new());
    for _ in 0..DEATHS {
        let waits = tokio::spawn({
            let account = place.account.clone();
            async move {
                let failed = account.call("never", &()).await.is_err();
                (failed, Instant::now())
            }
        });
        tokio::task::yield_now().await;
        // This call arrives after the one that waits.
        place.account.call("total", &()).await.expect("it answers");
        let pid = status(&place.host).process.expect("it has one").pid;
        let pid = rustix::process::Pid::from_raw(pid.cast_signed()).expect("a process");
        // The control: when the system reports the end of the process, after it has freed the process's memory.
        let handle = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).expect("it runs");
        let ends = std::thread::spawn(move || {
            let mut ready = [rustix::event::PollFd::new(&handle, rustix::event::PollFlags::IN)];
            rustix::event::poll(&mut ready, None).expect("it can be waited for");
            Instant::now()
        });
        let killed = Instant::now();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).expect("it runs");
        let (failed, at) = waits.await.expect("it ends");
        assert!(failed, "it was killed");
        heard.push(at.duration_since(killed).as_secs_f64() * 1e3);
        gone.push(ends.join().expect("it ends").duration_since(killed).as_secs_f64() * 1e3);
        while place.account.call("total", &()).await.is_err() {}
        served.push(killed.elapsed().as_secs_f64() * 1e3);
        // A reload resets the count of crashes.
        let request = Request::ServiceReload { name: "ledger".to_owned() };
        send(&place.host.home.path().join("control.sock"), &request, &mut |_, _| {})
            .expect("the host answers")
            .expect("it is replaced");
    }
    let at = |times: &mut Vec<f64>, part: f64| {
        times.sort_by(f64::total_cmp);
        times[((times.len() - 1) as f64 * part) as usize]
    };
    println!(
        "killed, {isolation}: it is gone after p50 {:.2} ms, p99 {:.2} ms; its caller hears of it after p50 {:.2} ms, p99 {:.2} ms; it answers \
         again after p50 {:.1} ms, p99 {:.1} ms",
        at(&mut gone, 0.5),
        at(&mut gone, 0.99),
        at(&mut heard, 0.5),
        at(&mut heard, 0.99),
        at(&mut served, 0.5),
        at(&mut served, 0.99)
    );
}

fn status(host: &TestHost) -> LibraryStatus {
    let request = Request::ServiceShow { name: "ledger".to_owned() };
    let answer = send(&host.home.path().join("control.sock"), &request, &mut |_, _| {});
    let answer = answer.expect("the host answers").expect("it is there");
    serde_json::from_value(answer["library"].clone()).expect("a status")
}

/// Runs all futures at once; each wake-up polls all that are unfinished.
mod futures_like {
    use std::pin::Pin;
    use std::task::Poll;

    pub(super) async fn join_all<F: Future>(futures: impl Iterator<Item = F>) -> Vec<F::Output> {
        let mut waiting: Vec<Pin<Box<F>>> = futures.map(Box::pin).collect();
        let mut done = Vec::with_capacity(waiting.len());
        std::future::poll_fn(|context| {
            waiting.retain_mut(|future| match future.as_mut().poll(context) {
                Poll::Ready(output) => {
                    done.push(output);
                    false
                }
                Poll::Pending => true,
            });
            if waiting.is_empty() { Poll::Ready(()) } else { Poll::Pending }
        })
        .await;
        done
    }
}
