//! What a service in a sandbox may not do: one row for each thing to try. What it may do serves as a control.

use std::net::{SocketAddr, TcpListener};
use std::time::Duration;

use credhost::control::{Request, send};
use pb::client::{Client, Remote};

use system_tests::host::{TestHome, TestHost};
use tokio::net::TcpStream;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// Starts a host with a service that tries things, in this isolation. `allow` holds the words of what it is allowed.
fn serving(isolation: &str, allow: &[&str]) -> TestHost {
    let home = TestHome::new();
    home.make();
    home.isolate(isolation);
    let words: Vec<String> = allow.iter().map(|word| format!("{word:?}")).collect();
    let section = format!("\n[service.confined]\nallow = [{}]\nmost = {{ memory = \"256 MiB\" }}\n", words.join(", "));
    home.configure(|text| text.to_owned() + &section);
    home.identity("alice", "alice-pw", &["confined"]);
    home.install("confined");
    home.start()
}

async fn prisoner(host: &TestHost) -> Remote {
    let client = Client::new(TcpStream::connect(host.address()).await.expect("the door is open")).await;
    let client = client.expect("it speaks PB");
    let found = client.login_password("alice/confined", "alice-pw", None).await.expect("there is a key");
    // Its connection is to live as long as the test.
    std::mem::forget(client);
    found
}

async fn attempt(prisoner: &Remote, what: &str, at: &str) -> String {
    let tried = tokio::time::timeout(PATIENCE, prisoner.call("attempt", &(what, at))).await.expect("it does not hang");
    tried.expect("it is answered").read().expect("a text")
}

/// Whether the attempt was refused, and did not merely fail.
fn is_refused(said: &str) -> bool {
    matches!(said, "EPERM" | "EACCES" | "EXDEV" | "ENETUNREACH") || said.contains("Function not implemented")
}

/// A socket that listens.
fn listening() -> (TcpListener, SocketAddr) {
    let listener = TcpListener::bind("127.0.0.1:0").expect("a socket");
    let address = listener.local_addr().expect("it has an address");
    (listener, address)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sandbox_refuses_every_forbidden_action() {
    let host = serving("sandbox", &[]);
    let prisoner = prisoner(&host).await;
    let (_listener, address) = listening();
    let outside = tempfile::tempdir().expect("a folder");
    let file = outside.path().join("file");
    std::fs::write(&file, b"theirs").expect("it can be written");
    let own: String = prisoner.call("folder", &()).await.expect("it is answered").read().expect("a path");
    let in_home = |name: &str| host.home.path().join(name).display().to_string();
    let of_host = host.id().to_string();
    let path = |path: &std::path::Path| path.display().to_string();
    let rows: Vec<(&str, String)> = vec![
        // Files.
        ("read", "/etc/passwd".to_owned()),
        ("read", in_home("master.key")),
        ("read", in_home("store.db")),
        ("read", in_home("credhost.toml")),
        ("read", path(&file)),
        ("list", "/".to_owned()),
        ("list", "/root".to_owned()),
        ("list", path(&host.home.path())),
        ("write", path(&file)),
        ("write", path(&outside.path().join("new"))),
        ("write", "/tmp/new-of-a-sandbox".to_owned()),
        ("write", "/dev/shm/new-of-a-sandbox".to_owned()),
        ("write", "/usr/new-of-a-sandbox".to_owned()),
        ("append", path(&file)),
        ("truncate", path(&file)),
        ("remove", path(&file)),
        ("rename-in", path(&file)),
        ("link-in", path(&file)),
        ("symlink", path(&file)),
        ("mkdir", path(&outside.path().join("folder"))),
        ("mknod", path(&outside.path().join("device"))),
        ("mknod", format!("{own}/device")),
        ("chmod", in_home("plugins")),
        ("owner", in_home("plugins")),
        ("touch", in_home("plugins/libconfined.so")),
        ("attribute", in_home("plugins/libconfined.so")),
        ("watch", String::new()),
        ("remove", in_home("plugins/libconfined.so")),
        ("write", in_home("plugins/libmore.so")),
        // The network.
        ("tcp", address.to_string()),
        ("listen", String::new()),
        ("udp", String::new()),
        ("unix", in_home("control.sock")),
        ("abstract", String::new()),
        ("raw", String::new()),
        ("packet", String::new()),
        ("netlink", String::new()),
        ("vsock", String::new()),
        ("mptcp", String::new()),
        ("datagrams", String::new()),
        ("packets", String::new()),
        // Operations on an open file other than on its bytes.
        ("lease", "/usr/bin/id".to_owned()),
        ("signals-to", "/usr/bin/id".to_owned()),
        ("asynchronous", "/usr/bin/id".to_owned()),
        ("news-of", "/usr".to_owned()),
        ("memory-file", String::new()),
        ("namespace", String::new()),
        // Processes, its own and those of others.
        ("fork", String::new()),
        ("spawn", String::new()),
        ("exec", String::new()),
        ("kill", of_host.clone()),
        ("kill", "1".to_owned()),
        ("kill", "0".to_owned()),
        ("kill", "-1".to_owned()),
        ("kill-thread", of_host.clone()),
        ("ptrace", of_host.clone()),
        ("memory-of", of_host.clone()),
        ("environment-of", of_host.clone()),
        ("descriptor-of", of_host.clone()),
        ("read-of", of_host),
        // The machine.
        ("mount", String::new()),
        ("unshare", String::new()),
        ("setns", String::new()),
        ("chroot", String::new()),
        ("setuid", String::new()),
        ("capset", String::new()),
        ("bpf", String::new()),
        ("perf", String::new()),
        ("keyctl", String::new()),
        ("io-uring", String::new()),
        ("userfaultfd", String::new()),
        ("modules", String::new()),
        ("kexec", String::new()),
        ("reboot", String::new()),
        ("clock", String::new()),
        ("hostname", String::new()),
        ("personality", String::new()),
        ("priority", String::new()),
        ("handle", String::new()),
        ("terminal", String::new()),
        ("undumpable", String::new()),
        ("limits", String::new()),
    ];
    let mut passed = Vec::new();
    for (what, at) in &rows {
        let said = attempt(&prisoner, what, at).await;
        if !is_refused(&said) {
            passed.push(format!("{what} {at}: {said}"));
        }
    }
    assert!(passed.is_empty(), "{passed:#?}");
    assert_eq!(std::fs::read(&file).expect("it is there"), b"theirs");
    // The control: what it may do.
    for (what, at) in
        [("own", ""), ("thread", ""), ("read", "/usr/lib/os-release"), ("kill", &std::process::id().to_string())]
    {
        let at = if what == "kill" {
            prisoner.call("process", &()).await.expect("it is answered").read::<u32>().expect("a number").to_string()
        } else {
            at.to_owned()
        };
        assert_eq!(attempt(&prisoner, what, &at).await, "done", "{what}");
    }
}

/// The rows above make real attempts: without a sandbox, these are not refused.
#[tokio::test(flavor = "multi_thread")]
async fn actions_that_a_sandbox_refuses_succeed_without_one() {
    let host = serving("process", &["processes"]);
    let prisoner = prisoner(&host).await;
    let (_listener, address) = listening();
    let outside = tempfile::tempdir().expect("a folder");
    let file = outside.path().join("file");
    std::fs::write(&file, b"theirs").expect("it can be written");
    let home = host.home.path();
    for (what, at) in [
        ("read", "/etc/passwd".to_owned()),
        ("read", home.join("master.key").display().to_string()),
        ("list", "/".to_owned()),
        ("append", file.display().to_string()),
        ("symlink", file.display().to_string()),
        ("tcp", address.to_string()),
        ("listen", String::new()),
        ("udp", String::new()),
        ("unix", home.join("control.sock").display().to_string()),
        ("abstract", String::new()),
        ("fork", String::new()),
        ("spawn", String::new()),
        ("kill", host.id().to_string()),
        ("environment-of", host.id().to_string()),
        ("descriptor-of", host.id().to_string()),
        ("own", String::new()),
    ] {
        assert_eq!(attempt(&prisoner, what, &at).await, "done", "{what}");
    }
}

/// A service in a process of its own without a sandbox starts no processes either, unless it is allowed to.
#[tokio::test(flavor = "multi_thread")]
async fn a_service_starts_no_processes_unless_it_may() {
    for isolation in ["process", "sandbox"] {
        let host = serving(isolation, &[]);
        let prisoner = prisoner(&host).await;
        for what in ["fork", "spawn", "exec"] {
            assert_eq!(attempt(&prisoner, what, "").await, "EPERM", "{what} in a {isolation}");
        }
        assert_eq!(attempt(&prisoner, "thread", "").await, "done");
    }
    let host = serving("sandbox", &["processes"]);
    let prisoner = prisoner(&host).await;
    for what in ["fork", "spawn"] {
        assert_eq!(attempt(&prisoner, what, "").await, "done", "{what}");
    }
    // Other namespaces are still refused.
    assert_eq!(attempt(&prisoner, "namespace", "").await, "EPERM");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_actions_that_the_operator_allows_succeed() {
    let ((_one, one), (_other, other)) = (listening(), listening());
    let outside = tempfile::tempdir().expect("a folder");
    let (readable, writable) = (outside.path().join("readable"), outside.path().join("writable"));
    for folder in [&readable, &writable] {
        std::fs::create_dir(folder).expect("it can be made");
        std::fs::write(folder.join("file"), b"x").expect("it can be written");
    }
    let allow = [
        format!("read:{}", readable.display()),
        format!("write:{}", writable.display()),
        format!("net:tcp:{}", one.port()),
    ];
    let host = serving("sandbox", &allow.each_ref().map(String::as_str));
    let prisoner = prisoner(&host).await;
    let (read_file, write_file) =
        (readable.join("file").display().to_string(), writable.join("file").display().to_string());
    for (what, at, is_done) in [
        ("read", read_file.as_str(), true),
        ("append", &read_file, false),
        ("remove", &read_file, false),
        ("read", &write_file, true),
        ("append", &write_file, true),
        ("truncate", &write_file, true),
        ("mkdir", &writable.join("folder").display().to_string(), true),
        ("remove", &write_file, true),
        ("read", "/etc/passwd", false),
        ("tcp", &one.to_string(), true),
        ("tcp", &other.to_string(), false),
        ("udp", "", false),
        ("raw", "", false),
        ("mptcp", "", false),
        ("abstract", "", false),
        ("spawn", "", false),
    ] {
        let said = attempt(&prisoner, what, at).await;
        assert!(if is_done { said == "done" } else { is_refused(&said) }, "{what} {at}: {said}");
    }
    let shown = host.home.run(&["service", "show", "confined"], "");
    assert!(shown.contains("sandbox") && shown.contains(&allow[2]), "{shown}");
}

/// The files that a service writes are removed with its process, and nobody else may read them.
#[tokio::test(flavor = "multi_thread")]
async fn a_sandboxs_folder_is_removed_with_its_process() {
    let host = serving("sandbox", &[]);
    let prisoner = prisoner(&host).await;
    assert_eq!(attempt(&prisoner, "own", "").await, "done");
    let own: String = prisoner.call("folder", &()).await.expect("it is answered").read().expect("a path");
    assert!(std::path::Path::new(&own).join("own").exists());
    let reload = Request::ServiceReload { name: "confined".to_owned() };
    send(&host.home.path().join("control.sock"), &reload, &mut |_, _| {}).expect("it answers").expect("it is replaced");
    let other: String = prisoner.call("folder", &()).await.expect("it is answered").read().expect("a path");
    assert_ne!(own, other);
    assert!(is_refused(&attempt(&prisoner, "list", &own).await) || !std::path::Path::new(&own).exists());
    let began = std::time::Instant::now();
    while std::path::Path::new(&own).exists() {
        assert!(began.elapsed() < PATIENCE, "it goes with its process");
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_invalid_isolation_setting_is_reported_at_the_start() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| text.to_owned() + "\n[service.confined]\nisolation = \"jail\"\n");
    let output = home.run_with(&["run", "--listen", "127.0.0.1:0"], "");
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(said.contains("[service.confined] isolation: \"jail\" is not an isolation"), "{said}");
    assert_eq!(output.status.code(), Some(1), "it does not start");
}
