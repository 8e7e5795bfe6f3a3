//! The folder of services, as an operator uses it.

use system_tests::build::library;
use system_tests::host::{TestHome, TestHost, put};

fn serving(home: TestHome) -> TestHost {
    home.make();
    home.identity("alice", "alice-pw", &["todo", "scores"]);
    home.start()
}

fn call(host: &TestHost, target: &str, rest: &[&str]) -> String {
    let target = format!("alice@{}/{target}", host.address());
    let arguments: Vec<&str> = ["call", &target].iter().chain(rest).copied().chain(["--password-stdin"]).collect();
    host.home.run(&arguments, "alice-pw")
}

#[test]
fn a_library_that_is_copied_in_serves_a_moment_later() {
    let mut host = serving(TestHome::new());
    let target = format!("alice@{}/todo", host.address());
    let refused = host.home.refused(&["call", &target, "list", "--password-stdin"], "alice-pw");
    assert!(refused.contains("there is no service named todo"), "{refused}");
    assert!(host.home.run(&["service", "list"], "").contains("no services yet"));

    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    assert_eq!(call(&host, "todo", &["list"]), r#"[{"text": "milk", "done": False}]"#);
    // A service without the api's `host` feature, loaded while another one serves.
    host.home.install("scores");
    host.wait_for("libscores.so serves");
    assert_eq!(call(&host, "scores", &["submit", "50"]), r#"{"best": 50, "tries": 1, "rank": 1}"#);

    let list = host.home.run(&["service", "list"], "");
    assert!(list.contains("todo") && list.contains("libscores.so") && !list.contains("refused"), "{list}");
    let described = host.home.run(&["describe", "todo"], "");
    assert!(described.contains("add(text: text) -> int") && described.contains("Adds a task"), "{described}");
    let shown = host.home.run(&["service", "show", "todo"], "");
    assert!(shown.contains("serving") && shown.contains("plugin-api"), "{shown}");
}

#[test]
fn a_file_that_is_no_service_is_refused_and_the_host_goes_on() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    let whole = std::fs::read(library("todo")).expect("the library is there");
    let cases: [(&str, Vec<u8>, &str); 5] = [
        ("empty.so", Vec::new(), "it is empty"),
        ("text.so", b"#!/bin/sh\necho hello\n".to_vec(), "it does not start like an ELF file"),
        ("half.so", whole[..whole.len() / 2].to_vec(), "it is only part of a library"),
        (
            "arm.so",
            {
                let mut arm = whole.clone();
                arm[18] = 183;
                arm
            },
            "it is built for another processor",
        ),
        (
            "program.so",
            std::fs::read(system_tests::build::credhost()).expect("it is there"),
            "the system cannot open it",
        ),
    ];
    for (file, bytes, says) in &cases {
        std::fs::write(host.home.plugins().join(file), bytes).expect("it can be written");
        let line = host.wait_for(&format!("{file} is not loaded"));
        assert!(line.contains(says), "{line}");
        assert_eq!(call(&host, "todo", &["list"]), "[]");
    }
    let list = host.home.run(&["service", "list"], "");
    for (file, _, says) in &cases {
        let line = list.lines().find(|line| line.contains(file)).unwrap_or_else(|| panic!("{file} in {list}"));
        assert!(line.contains("refused") && line.contains(says), "{line}");
    }
}

#[test]
fn a_second_library_of_one_name_is_refused_naming_the_first() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    put(&library("todo"), &host.home.plugins().join("another.so"));
    let line = host.wait_for("another.so is not loaded");
    assert!(line.contains("its service todo is served by the file libtodo.so already"), "{line}");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

#[test]
fn a_host_that_is_told_to_stop_stops_cleanly() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    assert_eq!(host.terminate(), Some(0));
    assert!(!host.home.path().join("control.sock").exists());
    let refused = host.home.refused(&["session", "list"], "");
    assert!(refused.contains("no host runs in this home") && refused.contains("credhost run"), "{refused}");
}

#[test]
fn only_one_host_uses_a_home() {
    let host = serving(TestHome::new());
    let refused = host.home.refused(&["run", "--listen", "127.0.0.1:0"], "");
    assert!(refused.contains("another credhost uses"), "{refused}");
}

/// Another build of a library: the same service with a different word in its docs.
fn rebuilt(package: &str, old: &str, new: &str) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut bytes = std::fs::read(library(package)).expect("it is built");
    let mut found = false;
    for at in 0..bytes.len() - old.len() {
        if &bytes[at..at + old.len()] == old.as_bytes() {
            bytes[at..at + old.len()].copy_from_slice(new.as_bytes());
            found = true;
        }
    }
    assert!(found, "{package} says {old}");
    bytes
}

fn describes(host: &TestHost, what: &str) {
    until(host, || {
        let described = host.home.run_with(&["describe", "todo"], "");
        String::from_utf8_lossy(&described.stdout).contains(what)
    });
}

/// Waits until a condition holds; if it does not, the panic shows the host's log.
fn until(host: &TestHost, ready: impl Fn() -> bool) {
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while !ready() {
        assert!(std::time::Instant::now() < deadline, "it does not come to pass; the log: {}", host.log());
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
}

fn listed(host: &TestHost) -> String {
    host.home.run(&["service", "list"], "")
}

#[test]
fn removing_a_file_stops_its_service_and_keeps_its_state() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    let file = host.home.plugins().join("libtodo.so");

    // A client in the middle of a call is notified.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let address = host.address();
    runtime.block_on(async {
        let stream = tokio::net::TcpStream::connect(address).await.expect("the door is open");
        let client = pb::client::Client::new(stream).await.expect("it speaks PB");
        let todo = client.login("alice/todo", "alice-pw", None).await.expect("alice may");
        let ring = client.register(|_: pb::client::Call| async { Ok(()) });
        let minded = client.login("alice/todo", "alice-pw", Some(ring)).await.expect("alice may");
        let mut waiting = std::pin::pin!(minded.call("remind", &(0, 3600)));
        // The call has begun, and is sent before the next call is answered.
        let begun = tokio::time::timeout(std::time::Duration::from_millis(1), waiting.as_mut()).await;
        assert!(begun.is_err());
        todo.call("list", &()).await.expect("it serves");
        std::fs::remove_file(&file).expect("it is there");
        let told = waiting.await.expect_err("the service has stopped");
        assert!(told.to_string().contains("DeadReferenceError"), "{told}");
        let told = todo.call("list", &()).await.expect_err("the service has stopped");
        assert!(told.to_string().contains("DeadReferenceError"), "{told}");
        // The connection stays, for the other services.
        let refused = client.login("alice/todo", "alice-pw", None).await.expect_err("there is no such service");
        assert!(refused.to_string().contains("KeyError: 'todo'"), "{refused}");
    });
    host.wait_for("libtodo.so was removed: its service stops, its state is kept");
    // The library is unmapped.
    let maps = format!("/proc/{}/maps", host.id());
    until(&host, || !std::fs::read_to_string(&maps).expect("it runs").contains("/generations/"));
    assert!(listed(&host).contains("no services yet"));

    host.home.install("todo");
    describes(&host, "Adds a task");
    assert_eq!(call(&host, "todo", &["list"]), r#"[{"text": "milk", "done": False}]"#);
}

#[test]
fn a_build_that_removes_and_recreates_the_file_stops_nothing() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    let file = host.home.plugins().join("libtodo.so");
    for _ in 0..3 {
        std::fs::remove_file(&file).expect("it is there");
        host.home.install("todo");
    }
    // The host reports removals in order, so this later one is reported last.
    host.home.install("scores");
    host.wait_for("libscores.so serves");
    std::fs::remove_file(host.home.plugins().join("libscores.so")).expect("it is there");
    host.wait_for("libscores.so was removed");
    assert_eq!(host.log().matches("libtodo.so serves").count(), 1, "{}", host.log());
    assert!(listed(&host).contains("serving"));
}

#[test]
fn a_new_build_serves_however_it_is_put_in_place() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["add", "milk"]), "0");
    let file = host.home.plugins().join("libtodo.so");
    let aside = host.home.path().join("aside");
    std::fs::create_dir_all(&aside).expect("it can be made");
    let build = |word: &str| {
        let path = aside.join(format!("{word}.so"));
        std::fs::write(&path, rebuilt("todo", "Adds a task", &format!("{word} a task"))).expect("it can be written");
        path
    };
    // cp: written in place.
    std::fs::write(&file, std::fs::read(build("Puts")).expect("it is there")).expect("it can be written");
    describes(&host, "Puts a task");
    // mv, as editors and rsync do.
    std::fs::rename(build("Lays"), &file).expect("it can be moved");
    describes(&host, "Lays a task");
    // ln, as cargo does.
    std::fs::remove_file(&file).expect("it is there");
    std::fs::hard_link(build("Sets"), &file).expect("it can be linked");
    describes(&host, "Sets a task");
    // A symbolic link that is exchanged.
    let link = host.home.plugins().join("link");
    std::os::unix::fs::symlink(build("Logs"), &link).expect("it can be linked");
    std::fs::rename(&link, &file).expect("it can be moved");
    describes(&host, "Logs a task");
    // The folder itself.
    let (plugins, old) = (host.home.plugins(), host.home.path().join("old"));
    std::fs::rename(&plugins, &old).expect("it can be moved");
    std::fs::create_dir(&plugins).expect("it can be made");
    std::fs::rename(build("Pins"), &file).expect("it can be moved");
    describes(&host, "Pins a task");
    // And the new folder is watched.
    std::fs::rename(build("Jots"), &file).expect("it can be moved");
    describes(&host, "Jots a task");
    assert_eq!(call(&host, "todo", &["list"]), r#"[{"text": "milk", "done": False}]"#);
}

#[test]
fn a_build_that_is_refused_leaves_the_old_one_serving() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    let file = host.home.plugins().join("libtodo.so");
    let whole = std::fs::read(&file).expect("it is there");
    std::fs::write(&file, &whole[..whole.len() / 2]).expect("it can be written");
    host.wait_for("libtodo.so is not loaded, the old code serves: it is only part of a library");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
    let shown = listed(&host);
    assert!(shown.contains("serving") && shown.contains("the file is not serving: it is only part"), "{shown}");
}

#[test]
fn a_service_stops_starts_and_rolls_back_by_command() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    host.home.run(&["service", "stop", "todo"], "");
    assert!(listed(&host).contains("stopped"));
    let target = format!("alice@{}/todo", host.address());
    let refused = host.home.refused(&["call", &target, "list", "--password-stdin"], "alice-pw");
    assert!(refused.contains("no service named todo"), "{refused}");
    let again = host.home.refused(&["service", "stop", "todo"], "");
    assert!(again.contains("todo does not serve"), "{again}");
    host.home.run(&["service", "start", "todo"], "");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
    let again = host.home.refused(&["service", "start", "todo"], "");
    assert!(again.contains("todo serves already"), "{again}");
    assert!(host.home.run(&["service", "why", "todo"], "").contains("nothing keeps an old library of todo"));

    let nothing = host.home.refused(&["service", "rollback", "todo"], "");
    assert!(nothing.contains("there is nothing to go back to"), "{nothing}");
    let file = host.home.plugins().join("libtodo.so");
    std::fs::write(&file, rebuilt("todo", "Adds a task", "Puts a task")).expect("it can be written");
    describes(&host, "Puts a task");
    host.home.run(&["service", "rollback", "todo"], "");
    describes(&host, "Adds a task");
    assert!(listed(&host).contains("rolled back"), "{}", listed(&host));
    // Back and forth.
    host.home.run(&["service", "rollback", "todo"], "");
    describes(&host, "Puts a task");
}

#[test]
fn a_bad_file_at_start_falls_back_to_the_last_good_one() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(host.terminate(), Some(0));
    let home = host.into_home();
    let file = home.plugins().join("libtodo.so");
    std::fs::write(&file, b"not at all").expect("it can be written");
    let mut host = home.start();
    host.wait_for("libtodo.so was rejected (it is not a library");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
    assert!(listed(&host).contains("the last good copy serves"), "{}", listed(&host));
}

#[test]
fn a_duplicate_file_does_not_serve_after_a_restart() {
    let mut host = serving(TestHome::new());
    let file = host.home.plugins().join("libtodo.so");
    std::fs::write(&file, rebuilt("todo", "Adds a task", "Puts a task")).expect("it can be written");
    host.wait_for("libtodo.so serves");
    // Its name sorts before the other's.
    host.home.install("todo");
    std::fs::rename(&file, host.home.plugins().join("libtodo-old.so")).expect("it can be moved");
    std::fs::write(&file, rebuilt("todo", "Adds a task", "Puts a task")).expect("it can be written");
    let before = |host: &TestHost| host.home.run(&["describe", "todo"], "");
    while !before(&host).contains("Puts a task") || !listed(&host).contains("libtodo-old.so  ") {
        std::thread::yield_now();
    }
    assert_eq!(host.terminate(), Some(0));
    let host = host.into_home().start();
    assert!(before(&host).contains("Puts a task"), "{}", before(&host));
    assert!(listed(&host).contains("is served by the file libtodo.so already"), "{}", listed(&host));
}

/// The lowest descriptor that the host does not use: the next file that it opens gets this number.
fn first_free_descriptor(host: &TestHost) -> u64 {
    let now = || {
        let open: std::collections::HashSet<u64> = std::fs::read_dir(format!("/proc/{}/fd", host.id()))
            .expect("it runs")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        (0..).find(|number| !open.contains(number)).expect("a number")
    };
    // A file that the host opens for a moment raises the number, for instance for the trail's line about its start.
    host.home.run(&["audit", "show"], "");
    let (mut lowest, mut seen) = (now(), 0);
    while seen < 100 {
        let number = now();
        (lowest, seen) = if number < lowest { (number, 0) } else { (lowest, seen + 1) };
        std::thread::yield_now();
    }
    lowest
}

#[test]
fn a_library_refused_for_a_passing_reason_is_retried() {
    use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};
    let mut host = serving(TestHome::new());
    let process = Pid::from_raw(host.id().cast_signed());
    let first = first_free_descriptor(&host);
    let may_open = |more| {
        let limit = Rlimit { current: Some(first + more), ..getrlimit(Resource::Nofile) };
        prlimit(process, Resource::Nofile, limit).expect("it can be set");
    };
    may_open(0);
    host.home.install("todo");
    host.wait_for("the folder of services cannot be read");
    // It can read the folder and open the library, but not copy it.
    may_open(1);
    host.wait_for("libtodo.so is not loaded: it cannot be");
    may_open(100);
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

#[test]
fn a_link_that_leads_nowhere_keeps_nobody_from_serving() {
    let mut host = serving(TestHome::new());
    let plugins = host.home.plugins();
    for (name, to) in [("libnone.so", "nothing"), ("libself.so", "libself.so"), ("libdir.so", ".")] {
        std::os::unix::fs::symlink(to, plugins.join(name)).expect("it can be made");
    }
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

#[test]
fn commands_accept_file_names_even_of_refused_libraries() {
    let mut host = serving(TestHome::new());
    std::fs::write(host.home.plugins().join("libbroken.so"), "not at all").expect("it can be written");
    host.wait_for("libbroken.so is not loaded");
    for command in ["start", "reload"] {
        let refused = host.home.refused(&["service", command, "libbroken.so"], "");
        assert!(refused.contains("it is not a library"), "{command}: {refused}");
    }
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    host.home.run(&["service", "stop", "libtodo.so"], "");
    assert!(listed(&host).contains("todo") && listed(&host).contains("stopped"), "{}", listed(&host));
    host.home.run(&["service", "start", "todo"], "");
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

#[test]
fn a_service_starts_after_its_needs_and_stops_before_them() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo", "dependant"]);
    // In the order of names, the service that needs the other comes first.
    home.install("dependant");
    let mut host = home.start();
    host.wait_for("libdependant.so waits: it needs todo, which does not serve");
    assert!(listed(&host).contains("waits: it needs todo"), "{}", listed(&host));
    host.home.install("todo");
    host.wait_for("libdependant.so serves");
    assert_eq!(call(&host, "dependant", &["hello"]), r#""hello""#);

    host.home.run(&["service", "stop", "todo"], "");
    host.wait_for("it stops because todo stops, which it needs");
    assert!(listed(&host).contains("waits: it needs todo"), "{}", listed(&host));
    host.home.run(&["service", "start", "todo"], "");
    until(&host, || !listed(&host).contains("waits"));
    assert_eq!(call(&host, "dependant", &["hello"]), r#""hello""#);
    assert_eq!(host.terminate(), Some(0));
}

#[test]
fn a_collection_has_a_door_of_its_own_and_is_part_of_the_whole() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo", "scores"]);
    let section = "[multiservice.games]\nservices = [\"scores\"]\nlisten = \"127.0.0.1:0\"\n";
    home.configure(|text| format!("{text}\n{section}"));
    home.install("todo");
    home.install("scores");
    let mut host = home.start();
    let line = host.wait_for("serving also on ");
    let games = line.rsplit(' ').next().expect("it ends with the address").to_owned();
    let best = r#"{"best": 50, "tries": 1, "rank": 1}"#;
    assert_eq!(call(&host, "scores", &["submit", "50"]), best, "the whole has what its parts have");
    let at = |service: &str, method: &str| {
        let target = format!("alice@{games}/{service}");
        host.home.run_with(&["call", &target, method, "--password-stdin"], "alice-pw")
    };
    assert!(at("scores", "top").status.success(), "the part has its own");
    let refused = at("todo", "list");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("no service named todo"), "and no more");
}

#[test]
fn services_that_wait_for_the_same_service_each_start_once() {
    let home = TestHome::new();
    home.make();
    for number in 1..=6 {
        let name = format!("dependan{number}");
        let path = home.plugins().join(format!("{name}.so"));
        std::fs::write(path, rebuilt("dependant", "dependant", &name)).expect("it can be written");
    }
    home.install("todo");
    let mut host = home.start();
    // Each starts once at first, and once more when the service that it needs has stopped and serves again.
    for round in 1..=2 {
        until(&host, || listed(&host).matches("serving").count() == 7);
        for number in 1..=6 {
            let serves = format!("dependan{number}.so serves");
            assert_eq!(host.log().matches(&serves).count(), round, "{}", host.log());
        }
        let file = host.home.plugins().join("libtodo.so");
        if round == 1 {
            // A replacement of that service does not affect them.
            std::fs::write(&file, rebuilt("todo", "Adds a task", "Puts a task")).expect("it can be written");
            host.wait_for("libtodo.so serves the new code");
            assert_eq!(listed(&host).matches("serving").count(), 7);
            std::fs::remove_file(&file).expect("it can be removed");
            host.wait_for("it stops because todo stops, which it needs");
            host.home.install("todo");
        }
    }
}

#[test]
fn a_library_that_is_renamed_serves_under_its_new_name() {
    let mut host = serving(TestHome::new());
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
    let plugins = host.home.plugins();
    std::fs::rename(plugins.join("libtodo.so"), plugins.join("todo.so")).expect("it can be moved");
    host.wait_for("todo.so is not loaded: its service todo is served by the file libtodo.so already");
    host.wait_for("libtodo.so was removed");
    until(&host, || listed(&host).contains("serving"));
    assert_eq!(call(&host, "todo", &["list"]), "[]");
}

/// A debugger looks for a library's symbols and line numbers in the mapped file.
#[test]
fn debuggable_keeps_whole_libraries_while_loaded() {
    let home = TestHome::new();
    home.make();
    home.in_the_hosts_process();
    home.install("todo");
    let mut host = home.start_with(&["--debuggable"], &[]);
    host.wait_for("libtodo.so serves");
    let copies = host.home.path().join("generations");
    let sizes = || {
        let copies = std::fs::read_dir(&copies).expect("it is there").flatten();
        copies.map(|copy| copy.metadata().expect("it is there").len()).collect::<Vec<_>>()
    };
    let whole = std::fs::metadata(system_tests::build::library("todo")).expect("it is built").len();
    assert_eq!(sizes(), [whole]);
    let maps = std::fs::read_to_string(format!("/proc/{}/maps", host.id())).expect("it runs");
    let mapped = maps.lines().find(|line| line.contains("/generations/")).expect("it is mapped");
    assert!(mapped.ends_with(".so"), "its name is there: {mapped}");
    host.home.run(&["service", "reload", "todo"], "");
    // The old library's file is deleted, too.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(60);
    while sizes() != [whole] {
        assert!(std::time::Instant::now() < deadline, "{:?}", sizes());
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    host.home.run(&["service", "stop", "todo"], "");
    assert_eq!(sizes(), [0u64; 0]);
}

#[test]
fn a_rollback_survives_a_restart_until_the_file_changes() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["ledger"]);
    home.install("ledger");
    let replace = |host: &TestHost, how: &str| {
        let new = host.home.path().join("new.so");
        std::fs::write(&new, system_tests::build::mode("ledger", how)).expect("it can be written");
        std::fs::rename(new, host.home.plugins().join("libledger.so")).expect("it can be moved");
        host.home.run(&["service", "reload", "ledger"], "");
    };
    let serves = |host: &TestHost| {
        let target = format!("alice@{}/ledger", host.address());
        let said = host.home.run(&["call", &target, "mode", "--password-stdin"], "alice-pw");
        said.trim_matches('"').to_owned()
    };
    let rolled_back = |host: &TestHost| host.home.run(&["service", "list"], "").contains("rolled back");
    let host = home.start();
    replace(&host, "v=2");
    assert_eq!(serves(&host), "v=2");
    let said = host.home.run(&["service", "rollback", "ledger"], "");
    assert!(said.contains("until the file in the folder changes") && said.contains("generation 3"), "{said}");
    assert_eq!(serves(&host), "plain");
    assert!(host.home.run(&["doctor"], "").contains("ledger: rolled back"));
    // The host is killed and restarted.
    let host = host.into_home().start();
    assert_eq!(serves(&host), "plain", "it is still the older one");
    assert!(rolled_back(&host));
    // Rolled back once more: the file in the folder serves, and the host reports nothing wrong with it.
    host.home.run(&["service", "rollback", "ledger"], "");
    assert_eq!(serves(&host), "v=2");
    assert!(!rolled_back(&host));
    host.home.run(&["service", "rollback", "ledger"], "");
    assert!(rolled_back(&host));
    // A different file ends the rollback.
    replace(&host, "v=3");
    assert_eq!(serves(&host), "v=3");
    let host = host.into_home().start();
    assert_eq!((serves(&host), rolled_back(&host)), ("v=3".to_owned(), false));
}

#[test]
fn concurrent_commands_on_one_library_all_succeed() {
    let host = TestHost::with(&["todo"]);
    std::thread::scope(|scope| {
        for _ in 0..6 {
            scope.spawn(|| {
                for _ in 0..4 {
                    host.home.run(&["service", "reload", "todo"], "");
                }
            });
        }
    });
}
