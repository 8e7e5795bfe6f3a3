//! SSH logins with a key: their cost to the sample service's host and to OpenSSH's sshd, in processor time of the server alone.
//! Both are called by the same client, Twisted's conch, in turns. `cargo bench -p credhost --bench ssh`; `-- 2000` for more
//! logins.

#![allow(missing_docs, clippy::unwrap_used, reason = "a bench")]

use std::fmt::Write as _;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use system_tests::host::{TestHome, TestHost};
use system_tests::ssh::Ssh;
use system_tests::{debian, python};

/// Processor time of a process and of its children that have ended, in seconds.
fn spent(process: u32) -> f64 {
    let stat = std::fs::read_to_string(format!("/proc/{process}/stat")).unwrap();
    // The fields from the third one on, after the name, which may contain anything.
    let fields: Vec<&str> = stat.rsplit_once(')').unwrap().1.split_whitespace().collect();
    let ticks: u64 = fields[11..15].iter().map(|ticks| ticks.parse::<u64>().unwrap()).sum();
    ticks as f64 / 100.0
}

/// OpenSSH's server, which accepts one key for root.
struct Sshd {
    child: Child,
    port: u16,
    _folder: tempfile::TempDir,
}

impl Sshd {
    fn start(public: &Path) -> Self {
        let (sshd, folder) = (debian::program("sshd", "openssh-server"), tempfile::tempdir().unwrap());
        let path = |name: &str| folder.path().join(name).display().to_string();
        let mut keygen = Command::new(debian::program("ssh-keygen", "openssh-client"));
        assert!(keygen.args(["-q", "-t", "ed25519", "-N", "", "-f", &path("host")]).status().unwrap().success());
        std::fs::copy(public, path("keys")).unwrap();
        // A port that is free just now.
        let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let mut config = String::new();
        for line in [
            &format!("Port {port}"),
            "ListenAddress 127.0.0.1",
            &format!("HostKey {}", path("host")),
            &format!("AuthorizedKeysFile {}", path("keys")),
            &format!("PidFile {}", path("pid")),
            "PermitRootLogin yes",
            "PasswordAuthentication no",
            "UsePAM no",
            "StrictModes no",
            "LogLevel QUIET",
            "MaxStartups 1000",
        ] {
            writeln!(config, "{line}").unwrap();
        }
        std::fs::write(path("config"), config).unwrap();
        // sshd needs this folder for privilege separation.
        std::fs::create_dir_all("/run/sshd").unwrap();
        let child = Command::new(sshd).args(["-D", "-f", &path("config")]).stdin(Stdio::null()).spawn().unwrap();
        while std::net::TcpStream::connect(("127.0.0.1", port)).is_err() {
            std::thread::sleep(Duration::from_millis(10));
        }
        Self { child, port, _folder: folder }
    }
}

impl Drop for Sshd {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn credhost() -> (TestHost, Ssh) {
    let home = TestHome::new();
    home.make();
    let listen = "ssh = { address = \"127.0.0.1:0\", connections = 4000, per_source = 4000 }";
    home.configure(|text| {
        format!(
            "{text}\n[service.ssh]\nmay = [\"attach\", \"vouch\"]\n[service.ssh.listen]\n{listen}\n\
             [limits]\nper_source = 4000\n"
        )
    });
    home.identity("alice", "ottern-quirk-velvet-93-lamp", &["ssh"]);
    home.install("ssh");
    let mut host = home.start();
    let line = host.wait_for("serving ssh on ");
    let address = line.split_whitespace().find_map(|word| word.parse().ok()).unwrap();
    let alice = Ssh::new(address, "alice", &["ed25519"]);
    host.home.run(&["pubkey", "add", "alice", &alice.public().display().to_string()], "");
    (host, alice)
}

fn main() {
    let logins: u32 = std::env::args().find_map(|word| word.parse().ok()).unwrap_or(400);
    let (host, alice) = credhost();
    let sshd = Sshd::start(&alice.public());
    let key = alice.private().display().to_string();
    // One turn: the server's processor time for this many logins, and their duration, both in seconds.
    let turn = |process: u32, port: u16, name: &str, logins: u32| {
        let before = spent(process);
        let took = python::twisted("ssh_logins.py", &[&port.to_string(), name, &key, &logins.to_string()]);
        // Leaves time for the disconnected clients to be gone.
        std::thread::sleep(Duration::from_millis(300));
        (spent(process) - before, took.trim().parse::<f64>().unwrap())
    };
    let both = [("credhost", host.id(), alice.address().port(), "alice"), ("sshd", sshd.child.id(), sshd.port, "root")];
    let mut all = [(0.0, 0.0); 2];
    for (_, process, port, name) in both {
        turn(process, port, name, 20);
    }
    for _ in 0..4 {
        for (at, (_, process, port, name)) in both.iter().enumerate() {
            let (spent, took) = turn(*process, *port, name, logins / 4);
            all[at] = (all[at].0 + spent, all[at].1 + took);
        }
    }
    for ((name, ..), (spent, took)) in both.iter().zip(all) {
        let logins = f64::from(logins / 4 * 4);
        println!(
            "{name:9} {logins} logins by key: {:.2} ms of processor time each, {:.0} per second of it; {took:.1} s in all",
            spent / logins * 1000.0,
            logins / spent
        );
    }
    println!("credhost's logins per second of processor time: {:.1} times sshd's", all[1].0 / all[0].0);
}
