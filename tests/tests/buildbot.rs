//! A real product that speaks Perspective Broker: an unmodified buildbot-worker from PyPI with a service as its master, and an
//! unmodified buildmaster whose worker is an example of the client for Rust.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use pb::client::{Credential, Endpoint, Session};
use serde::{Deserialize, Serialize};

use system_tests::host::{TestHome, TestHost};
use system_tests::python::{buildbot, buildmaster, twisted};
use system_tests::{build, workspace};

/// The worker's process, killed when the test ends.
struct Worker(Child);

impl Drop for Worker {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn master() -> TestHost {
    let home = TestHome::new();
    home.make();
    home.configure(|text| text.replace("[pb]\n", "[pb]\ndefault_service = \"buildmaster\"\n"));
    home.install("buildmaster");
    home.identity("worker", "worker-pw", &["buildmaster"]);
    home.identity("driver", "driver-pw", &["buildmaster"]);
    home.start()
}

/// Creates and starts a worker as its manual says. It sends a keepalive each second.
fn worker(host: &TestHost, folder: &std::path::Path) -> Worker {
    let bin = buildbot();
    let made = Command::new(bin.join("buildbot-worker"))
        .args(["create-worker", "--keepalive=1", "--maxdelay=1"])
        .arg(folder)
        .args([&format!("127.0.0.1:{}", host.port()), "worker", "worker-pw"])
        .output()
        .expect("buildbot-worker runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    let mut command = Command::new(bin.join("twistd"));
    command.args(["--nodaemon", "--pidfile=", "--python=buildbot.tac"]).current_dir(folder);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Worker(command.spawn().expect("twistd runs"))
}

/// `CREDHOST_COMMANDS=1000 CREDHOST_RELOADS=100` runs 1,000 commands during 100 reloads of the service.
#[test]
fn a_buildbot_worker_does_not_notice_reloads() {
    let number = |name: &str, default: u32| {
        std::env::var(name).ok().and_then(|number| number.parse().ok()).unwrap_or(default).to_string()
    };
    let host = master();
    let folder = tempfile::tempdir().expect("a folder");
    let folder = folder.path().join("worker");
    let _worker = worker(&host, &folder);
    let credhost = host.home.command();
    let reload: Vec<String> = std::iter::once(credhost.get_program())
        .chain(credhost.get_args())
        .map(|word| word.to_string_lossy().into_owned())
        .chain(["service", "reload", "buildmaster"].map(str::to_owned))
        .collect();
    let (port, commands, reloads) = (host.port(), number("CREDHOST_COMMANDS", 200), number("CREDHOST_RELOADS", 20));
    let mut arguments = vec![port.as_str(), commands.as_str(), reloads.as_str()];
    arguments.extend(reload.iter().map(String::as_str));
    println!("{}", twisted("buildmaster.py", &arguments).trim());
    let log = std::fs::read_to_string(folder.join("twistd.log")).expect("the worker has a log");
    let connected = log.matches("Connected to buildmaster").count();
    assert_eq!(connected, 1, "the worker keeps its first connection:\n{log}");
}

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(240);

/// Buildbot's result for a step that was stopped, and for its build.
const CANCELLED: i32 = 6;

/// A change, as a repository's hook reports it.
#[derive(Serialize)]
struct Change {
    who: &'static str,
    files: Vec<&'static str>,
    comments: &'static str,
    branch: &'static str,
}

#[derive(Debug, Deserialize)]
struct Built {
    results: i32,
    steps: Vec<Step>,
}

#[derive(Debug, Deserialize)]
struct Step {
    name: String,
    results: i32,
    log: String,
    size: usize,
}

/// A stock buildmaster, created and started as its manual says.
fn stock_master(folder: &Path, port: u16, result: &Path) -> Worker {
    let bin = buildmaster();
    if !folder.exists() {
        let made = Command::new(bin.join("buildbot")).args(["create-master", "--quiet"]).arg(folder).output();
        let made = made.expect("buildbot runs");
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
        std::fs::copy(workspace().join("tests/twisted/master_cfg.py"), folder.join("master.cfg")).expect("it is there");
    }
    let mut command = Command::new(bin.join("twistd"));
    command.args(["--nodaemon", "--pidfile=", "--python=buildbot.tac"]).current_dir(folder);
    command.env("PB_PORT", port.to_string()).env("RESULT", result);
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
    Worker(command.spawn().expect("twistd runs"))
}

/// Reports a change to the master, and waits for the result of the build.
async fn built(port: u16, result: &Path) -> Built {
    let hook = Credential::password("hook", "hook-pw");
    let session = Session::builder(Endpoint::tcp(&format!("127.0.0.1:{port}")), hook).start();
    let change = Change { who: "alice", files: vec!["a.c"], comments: "better", branch: "main" };
    session.avatar().call("addChange", &(change,)).await.expect("it takes the change");
    while !result.exists() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    let built = serde_json::from_slice(&std::fs::read(result).expect("it is there")).expect("it is JSON");
    std::fs::remove_file(result).expect("it can be removed");
    built
}

#[tokio::test]
async fn a_rust_worker_serves_a_stock_buildmaster_and_reconnects() {
    let folder = tempfile::tempdir().expect("a folder");
    let (home, result) = (folder.path().join("master"), folder.path().join("result.json"));
    let port = std::net::TcpListener::bind("127.0.0.1:0").and_then(|door| door.local_addr()).expect("a port").port();
    let mut command = Command::new(build::example("worker"));
    command.args([&format!("127.0.0.1:{port}"), "rusty", "rusty-pw"]).arg(folder.path().join("worker"));
    // The worker starts before the master.
    let _worker = Worker(command.stdout(Stdio::null()).spawn().expect("the example runs"));
    for round in 0..2 {
        let _master = stock_master(&home, port, &result);
        let built = tokio::time::timeout(PATIENCE, built(port, &result)).await.unwrap_or_else(|_| {
            let log = std::fs::read_to_string(home.join("twistd.log")).unwrap_or_default();
            panic!("nothing was built in round {round}:\n{log}");
        });
        let names: Vec<&str> = built.steps.iter().map(|step| step.name.as_str()).collect();
        let all = ["make", "greet", "talk", "stat", "upload", "download", "compare", "copy", "interrupt", "remove"];
        // Before the first comes buildbot's own step, which waits for the worker.
        assert_eq!(names[names.len() - all.len()..], all, "{built:#?}");
        let step = |name: &str| built.steps.iter().find(|step| step.name == name).expect("it was run");
        for name in all.iter().filter(|name| **name != "interrupt") {
            assert_eq!(step(name).results, 0, "{:#?}", step(name));
        }
        assert!(step("greet").log.contains("hello to you"), "{:#?}", step("greet"));
        assert!(step("talk").log.contains("line 19999\n"), "{:#?}", step("talk"));
        assert!(step("talk").size > 20_000 * 10, "{}", step("talk").size);
        assert!(step("interrupt").log.contains("command interrupted"), "{:#?}", step("interrupt"));
        assert_eq!((step("interrupt").results, built.results), (CANCELLED, CANCELLED), "{built:#?}");
        assert_eq!(std::fs::metadata(home.join("uploaded")).expect("it was uploaded").len(), 3_000_000);
        std::fs::remove_file(home.join("uploaded")).expect("it can be removed");
    }
}
