//! A real product that speaks Perspective Broker: an unmodified buildbot-worker, from PyPI, whose master is a service.

use std::process::{Child, Command, Stdio};

use system_tests::host::{TestHome, TestHost};
use system_tests::python::{buildbot, twisted};

/// The worker's process: ended with the test.
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

/// Makes a worker as its manual says, and starts it. It says that it is there each second.
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

/// 1,000 commands while the service is replaced 100 times: `CREDHOST_COMMANDS=1000 CREDHOST_RELOADS=100`.
#[test]
fn a_buildbot_worker_notices_nothing_of_a_hundred_reloads() {
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
