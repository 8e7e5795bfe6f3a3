//! An operator's daily commands: lists, times, following the trail; with a running host and without.

use std::io::{BufRead, BufReader};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixDatagram;
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use system_tests::build::credhost;
use system_tests::host::TestHome;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

fn scene() -> TestHome {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    home.identity("alice", "alice-pw", &["todo"]);
    home
}

#[test]
fn lists_have_headings_and_work_without_a_host() {
    let home = scene();
    let head = |arguments: &[&str]| home.run(arguments, "").lines().next().unwrap_or_default().to_owned();
    assert_eq!(head(&["identity", "list"]).split_whitespace().collect::<Vec<_>>(), ["identity", "state", "keys"]);
    let list = home.run(&["service", "list"], "");
    assert!(list.starts_with("service  file"), "{list}");
    assert!(list.contains("todo     libtodo.so") && list.contains("no host runs; it would serve"), "{list}");
    std::fs::write(home.plugins().join("libbroken.so"), "no library").expect("it can be written");
    let list = home.run(&["service", "list"], "");
    assert!(list.contains("libbroken.so  no host runs; ") && list.contains("would not be loaded"), "{list}");
    assert!(home.run(&["describe", "todo"], "").contains("add(text"), "a method of it");
    let none = home.refused(&["describe", "tood"], "");
    assert!(none.contains("is the service tood; did you mean \"todo\"?"), "{none}");
    assert!(home.run(&["limits"], "").contains("per_source"));
    let host = home.start();
    let list = host.home.run(&["service", "list"], "");
    assert!(list.contains("todo     libtodo.so    serving"), "{list}");
    assert!(host.home.run(&["describe", "todo"], "").contains("add(text"));
}

#[test]
fn the_trail_can_be_filtered_and_followed() {
    let home = scene();
    for label in ["one", "two", "three"] {
        home.run(&["token", "new", "alice", "--label", label], "");
    }
    let show = |more: &[&str]| home.run(&[&["audit", "show"], more].concat(), "");
    let all = show(&[]);
    let last: Vec<&str> = all.lines().rev().take(2).collect();
    assert_eq!(show(&["--last", "2"]).lines().rev().collect::<Vec<_>>(), last);
    assert_eq!(show(&["--last", "1", "--with", "token.added"]).lines().count(), 1);
    assert!(show(&["--last", "1", "--with", "token.added"]).contains("label=three"));
    assert_eq!(show(&["--since", "1h"]), all);
    assert_eq!(show(&["--since", "2999-01-01"]), "");
    assert_eq!(show(&["--since", "2020-01-01T00:00:00Z"]), all);
    let odd = home.refused(&["audit", "show", "--since", "yesterday"], "");
    assert!(odd.contains("\"yesterday\" is not a time") && odd.contains("2027-01-31"), "{odd}");
    let json = show(&["--last", "1", "--json"]);
    let line: serde_json::Value = serde_json::from_str(&json).expect("one object");
    assert_eq!((&line["what"], &line["about"]["label"]), (&"token.added".into(), &"three".into()), "{json}");
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).expect("a clock").as_secs_f64();
    assert!(line["at"].as_f64().is_some_and(|at| at > now - 3600.0 && at < now + 1.0), "in seconds: {json}");

    // Following: new lines are printed, and closing the output ends the command.
    let host = home.start();
    let mut command = host.home.command();
    command.args(["audit", "show", "--follow", "--last", "1"]).stdin(Stdio::null()).stdout(Stdio::piped());
    let mut following = command.spawn().expect("credhost runs");
    let mut lines = BufReader::new(following.stdout.take().expect("it has an output")).lines();
    // Which line it is depends on what was committed by then.
    assert!(lines.next().expect("a line").is_ok());
    host.home.run(&["identity", "disable", "alice"], "");
    assert!(lines.any(|line| line.expect("text").contains("identity.disabled identity=alice")));
    drop(lines);
    let began = Instant::now();
    while following.try_wait().expect("it can be asked").is_none() {
        assert!(began.elapsed() < PATIENCE, "it ends when nobody reads it");
        std::thread::yield_now();
    }
    assert!(following.wait().expect("it has ended").success());
}

#[test]
fn a_token_ends_at_a_date_and_not_in_the_past() {
    let home = scene();
    home.run(&["token", "new", "alice", "--label", "a", "--expires", "2999-01-31"], "");
    home.run(&["token", "new", "alice", "--label", "b", "--expires", "2999-01-31T12:00:00Z"], "");
    let list = home.run(&["token", "list", "alice"], "");
    assert!(list.contains("until 2999-01-31T00:00:00Z") && list.contains("until 2999-01-31T12:00:00Z"), "{list}");
    for (when, why) in [
        ("2020-01-01", "\"2020-01-01\" has passed already"),
        ("0s", "has passed already"),
        ("2027-02-30", "is not a time"),
        ("soon", "write it as 90d, 12h, 1y, 2027-01-31"),
        ("9000y", "is after the year 9999"),
    ] {
        let refused = home.refused(&["token", "new", "alice", "--label", "c", "--expires", when], "");
        assert!(refused.contains(why), "{when}: {refused}");
    }
}

#[test]
fn read_only_commands_create_no_files() {
    let folder = tempfile::tempdir().expect("a folder");
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).expect("it is ours");
    let commands: [&[&str]; 9] = [
        &["doctor"],
        &["identity", "list"],
        &["identity", "show", "alice"],
        &["identity", "import", "/dev/null", "--dry-run"],
        &["audit", "show"],
        &["audit", "verify"],
        &["limits"],
        &["key", "list", "alice"],
        &["session", "list"],
    ];
    for arguments in commands {
        let mut command = Command::new(credhost());
        let done = command.arg("--home").arg(folder.path()).args(arguments).output().expect("it runs");
        // Some have nothing to show, and say so; none is wrong usage, or a panic.
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(matches!(done.status.code(), Some(0 | 1)), "{arguments:?}: {said}");
        let left: Vec<_> = std::fs::read_dir(folder.path()).expect("it is there").flatten().collect();
        assert!(left.is_empty(), "{arguments:?} leaves {left:?}");
    }
}

#[test]
fn other_errors_come_before_the_password_prompt() {
    let home = scene();
    // Standard input is no terminal here. A prompt for a password would fail with an error that mentions the terminal.
    for (arguments, why) in [
        (&["identity", "add", "alice"][..], "There is already an identity named alice."),
        (&["identity", "add", "a/b"], "it has a `/`"),
        (&["identity", "password", "bob"], "there is no identity named bob"),
        (&["call", "alice@127.0.0.1:1/todo", "list"], "127.0.0.1:1"),
        (
            &["call", "alice@127.0.0.1:99999/todo", "list"],
            "\"99999\" is not a port: a port is a number from 1 to 65535",
        ),
        (&["call", "alice@127.0.0.1", "list"], "there is no /SERVICE at its end"),
        (&["call", "127.0.0.1/todo", "list"], "there is no USER@ at its beginning"),
        (&["call", "@127.0.0.1/todo", "list"], "there is no user before the @"),
    ] {
        let said = home.refused(arguments, "");
        assert!(said.contains(why) && !said.contains("terminal"), "{arguments:?}: {said}");
    }
}

#[test]
fn doctor_reports_each_problem_once() {
    let home = scene();
    home.configure(|text| text.replace("shortest = 1", "shortest = \"one\""));
    let done = home.run_with(&["doctor"], "");
    let said = String::from_utf8_lossy(&done.stdout);
    assert_eq!(said.matches("\"one\" stands where a whole number from 0 on is expected").count(), 1, "{said}");
    assert!(!said.contains("usize") && !said.contains("invalid type"), "{said}");
    assert!(String::from_utf8_lossy(&done.stderr).contains("1 problem to fix"));
}

#[test]
fn doctor_finds_settings_that_prevent_a_start() {
    for (settings, said) in [
        ("[audit]\nkeep = \"soon\"", "[audit] keep: "),
        ("[limits]\nconnections = \"many\"", "[limits] connections"),
        ("[limits]\nconections = 5", "is connections meant?"),
        ("[limits]\nmemory = 1.5", "a limit is a whole number from 0 on"),
        (
            "[multiservice.games]\nlisten = \"127.0.0.1\"",
            "[multiservice.games] listen = \"127.0.0.1\" is not ADDRESS:PORT",
        ),
    ] {
        let home = scene();
        home.configure(|text| format!("{text}\n{settings}\n"));
        let done = home.run_with(&["doctor"], "");
        let found = String::from_utf8_lossy(&done.stdout);
        assert!(done.status.code() == Some(1) && found.contains(said), "{settings}: {found}");
        assert!(
            !home.run_with(&["run", "--listen", "127.0.0.1:0"], "").status.success(),
            "{settings}: and it does not"
        );
    }
    let home = scene();
    home.configure(|text| text.replace("memory = 19456", "memory = 67108864"));
    let refused = home.refused(&["run", "--listen", "127.0.0.1:0"], "");
    assert!(refused.contains("is in KiB: 64 GiB for each password"), "{refused}");
}

#[test]
fn doctor_warns_of_misleading_names_and_sockets() {
    let home = scene();
    home.run(&["tls", "init", "--name", "*.example.org", "--name", "example.org"], "");
    let folder = home.path().join("sockets");
    std::fs::create_dir(&folder).expect("it can be made");
    let socket =
        |mode: &str| format!("http = {{ address = \"unix:{}/x\", proxies = [\"unix\"]{mode} }}", folder.display());
    let others = "[[tls.others]]\ncertificate = \"tls/cert.pem\"\nkey = \"tls/key.pem\"\n[service.todo.listen]\n";
    let listener = |name: &str| format!("x = {{ address = \"127.0.0.1:1\", tls = true, names = [\"{name}\"] }}");
    let before = std::fs::read_to_string(home.path().join("credhost.toml")).expect("it is there");
    for (settings, enters, said) in [
        (others.to_owned(), true, Some("also matches *.example.org and comes first")),
        (
            format!("[service.todo.listen]\n{}", listener("www.example.com")),
            true,
            Some("no certificate is for this name"),
        ),
        (
            format!("[service.todo.listen]\n{}", listener("a.b.example.org")),
            true,
            Some("no certificate is for this name"),
        ),
        (format!("[service.todo.listen]\n{}", listener("www.example.org")), true, None),
        (format!("[service.todo.listen]\n{}", listener("*.example.org")), true, None),
        (format!("[service.todo.listen]\n{}", socket("")), true, Some("is trusted as a proxy")),
        (format!("[service.todo.listen]\n{}", socket("")), false, None),
        (format!("[service.todo.listen]\n{}", socket(", mode = \"0660\"")), true, None),
    ] {
        // Other users can enter the home, but not list it. The check is about the socket's folder.
        std::fs::set_permissions(&folder, std::fs::Permissions::from_mode(if enters { 0o755 } else { 0o750 }))
            .expect("it can be set");
        std::fs::set_permissions(home.path(), std::fs::Permissions::from_mode(0o711)).expect("it can be set");
        home.configure(|_| format!("{before}\n# {enters}\n{settings}\n"));
        let done = home.run_with(&["doctor"], "");
        let found = String::from_utf8_lossy(&done.stdout).into_owned();
        let warned =
            ["comes first", "no certificate is", "is trusted as a proxy"].iter().any(|one| found.contains(one));
        assert!(said.map_or(!warned, |said| found.contains(said)), "{settings} ({enters}): {found}");
    }
}

#[test]
fn the_host_notifies_systemd_when_it_serves_and_stops() {
    let home = scene();
    let socket = home.path().join("notify.sock");
    let systemd = UnixDatagram::bind(&socket).expect("a socket");
    systemd.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let said = || {
        let mut bytes = [0; 4096];
        let count = systemd.recv(&mut bytes).expect("it says something");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let mut host = home.start_with(&[], &[("NOTIFY_SOCKET", socket.to_str().expect("a plain path"))]);
    assert!(said().contains("READY=1"));
    assert!(host.home.run(&["service", "list"], "").contains("serving"), "and it does");
    assert_eq!(host.terminate(), Some(0));
    assert!(said().contains("STOPPING=1"));
}

/// Creates namespaces: as any user where the system allows that, otherwise as root.
fn unshare() -> Command {
    let as_any = ["--user", "--map-root-user"];
    let works = Command::new("unshare").args(as_any).arg("true").stderr(Stdio::null()).status();
    let mut command = Command::new("unshare");
    if works.is_ok_and(|status| status.success()) {
        command.args(as_any);
    }
    command
}

/// The lines of the unit in host/OPERATING.md, as `KEY=VALUE`.
fn unit() -> Vec<(String, String)> {
    let text = std::fs::read_to_string(system_tests::workspace().join("host/OPERATING.md")).expect("it is there");
    let unit = text.split("```ini").nth(1).and_then(|rest| rest.split("```").next()).expect("it has a unit");
    unit.lines()
        .filter_map(|line| line.split_once('='))
        .map(|(key, value)| (key.to_owned(), value.to_owned()))
        .collect()
}

/// The restrictions that systemd derives from the unit's directives, set up with namespaces: this machine need not run
/// systemd.
#[test]
fn the_documented_unit_serves_under_its_own_restrictions() {
    let unit = unit();
    let value =
        |key: &str| unit.iter().find(|(has, _)| has == key).map(|(_, value)| value.as_str()).unwrap_or_default();
    for (key, expected) in [
        ("Type", "notify"),
        ("NoNewPrivileges", "yes"),
        ("ProtectSystem", "strict"),
        ("PrivateTmp", "yes"),
        ("CapabilityBoundingSet", ""),
    ] {
        assert!(unit.iter().any(|(has, value)| has == key && value == expected), "{key}={expected} in {unit:?}");
    }
    // In the place of the unit's StateDirectory. It is not in /tmp, which the unit does not see.
    let place = system_tests::target().join("unit");
    std::fs::create_dir_all(&place).expect("a folder");
    let state = tempfile::tempdir_in(&place).expect("a folder");
    let home = state.path().join("credhost");
    let make = |arguments: &[&str]| {
        let done = Command::new(credhost()).arg("--home").arg(&home).args(arguments).output().expect("it runs");
        assert!(done.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&done.stderr));
    };
    make(&["identity", "add", "alice", "--no-password"]);
    make(&["tls", "init"]);
    std::fs::copy(system_tests::build::library("todo"), home.join("plugins/libtodo.so")).expect("it can be copied");
    let command = value("ExecStart");
    let (_, arguments) = command.split_once("/var/lib/credhost").expect("it names the home");
    let arguments = arguments.replace("0.0.0.0:8788", "127.0.0.1:0").replace("127.0.0.1:8787", "127.0.0.1:0");
    let script = format!(
        "mount --rbind / / && mount --bind {home} {home} && mount -t tmpfs none /tmp && \
         mount -o remount,bind,ro / && exec setpriv --no-new-privs --bounding-set=-all \
         {program} --home {home} {arguments} --listen 127.0.0.1:0",
        home = home.display(),
        program = credhost().display(),
    );
    let socket = home.join("notify.sock");
    let systemd = UnixDatagram::bind(&socket).expect("a socket");
    systemd.set_read_timeout(Some(PATIENCE)).expect("a limit");
    let mut namespace = unshare();
    namespace.args(["--mount", "sh", "-c", &script]).env("NOTIFY_SOCKET", &socket);
    let mut host = namespace.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().expect("unshare runs");
    let mut bytes = [0; 4096];
    let ready = systemd.recv(&mut bytes).map(|count| String::from_utf8_lossy(&bytes[..count]).into_owned());
    let list = || {
        let done = Command::new(credhost()).arg("--home").arg(&home).args(["service", "list"]).output();
        String::from_utf8_lossy(&done.expect("it runs").stdout).into_owned()
    };
    let listed = list();
    let id = rustix::process::Pid::from_raw(host.id().cast_signed()).expect("a number");
    rustix::process::kill_process(id, rustix::process::Signal::TERM).expect("it can be told");
    let mut log = String::new();
    std::io::Read::read_to_string(&mut host.stderr.take().expect("it has an output"), &mut log).expect("text");
    assert!(ready.as_ref().is_ok_and(|ready| ready.contains("READY=1")), "{ready:?} {log}");
    assert!(listed.contains("serving"), "{listed} {log}");
    assert!(host.wait().expect("it ends").success(), "{log}");
}

#[test]
fn as_process_1_the_host_reaps_orphans_and_handles_signals() {
    let home = scene();
    // A process namespace, as a container has one. The parent of the sleepers ends at once.
    let script = "(sleep 0.2 & sleep 0.2 &) ; exec \"$@\"";
    let mut command = unshare();
    command.args(["--pid", "--fork", "--mount-proc", "--kill-child", "sh", "-c", script, "sh"]);
    command.arg(credhost()).arg("--home").arg(home.path()).args(["run", "--listen", "127.0.0.1:0"]);
    let mut namespace =
        command.stdout(Stdio::null()).stderr(Stdio::piped()).process_group(0).spawn().expect("unshare runs");
    let mut log = BufReader::new(namespace.stderr.take().expect("it has an output")).lines().map_while(Result::ok);
    assert!(log.any(|line| line.contains("serving Perspective Broker")), "it serves");
    let children = |of: u32| {
        let list = std::fs::read_to_string(format!("/proc/{of}/task/{of}/children")).unwrap_or_default();
        list.split_whitespace().filter_map(|id| id.parse::<u32>().ok()).collect::<Vec<_>>()
    };
    let first = children(namespace.id())[0];
    let name = |of: u32| std::fs::read_to_string(format!("/proc/{of}/comm")).unwrap_or_default();
    let began = Instant::now();
    // Only the host remains of the children. Sleepers that have ended are gone, and leave no zombies.
    while children(first).iter().any(|child| name(*child).starts_with("sleep")) {
        assert!(began.elapsed() < PATIENCE, "orphans are waited for");
        std::thread::yield_now();
    }
    assert_eq!(children(first).len(), 1, "the host itself");
    let first = rustix::process::Pid::from_raw(first.cast_signed()).expect("a number");
    rustix::process::kill_process(first, rustix::process::Signal::TERM).expect("it can be told");
    assert!(log.any(|line| line.contains("stopping")), "the host has heard it");
    assert!(namespace.wait().expect("it ends").success());
}
