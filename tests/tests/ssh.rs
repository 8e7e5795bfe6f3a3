//! Every service by SSH, judged by OpenSSH's client and Twisted's conch.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost};
use system_tests::python;
use system_tests::ssh::{Ssh, Terminal};

const PASSWORD: &str = "ottern-quirk-velvet-93-lamp";

fn address(host: &mut TestHost) -> SocketAddr {
    let line = host.wait_for("serving ssh on ");
    line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address")
}

/// Starts a host with the services ssh, todo, scores and chat. Alice has keys for all but scores, and an SSH key.
fn host() -> (TestHost, Ssh) {
    host_with("", "")
}

/// The same, with more settings for its listener, and with limits.
fn host_with(more: &str, limits: &str) -> (TestHost, Ssh) {
    let home = TestHome::new();
    home.make();
    let listen = format!("ssh = {{ address = \"127.0.0.1:0\", grace = \"1 hour\"{more} }}");
    let may = "[service.ssh]\nmay = [\"attach\", \"vouch\"]";
    let section = format!("{may}\n[service.ssh.listen]\n{listen}\n[limits]\n{limits}");
    home.configure(|text| format!("{text}\n{section}"));
    home.identity("alice", PASSWORD, &["ssh", "todo", "todo/work", "chat"]);
    home.identity("bob", PASSWORD, &["todo", "chat"]);
    ["ssh", "todo", "scores", "chat"].iter().for_each(|service| home.install(service));
    let mut host = home.start();
    let alice = Ssh::new(address(&mut host), "alice", &["ed25519"]);
    host.home.run(&["pubkey", "add", "alice", &alice.public().display().to_string()], "");
    (host, alice)
}

/// Returns the host key, as the service reports it.
fn host_key(host: &TestHost) -> String {
    let target = format!("alice@{}/ssh", host.address());
    let key = host.home.run(&["--json", "call", &target, "host_key", "--password-stdin"], PASSWORD);
    key.trim_matches('"').to_owned()
}

/// The limits of `[service.ssh]` are those of the connections that begin after the service was reloaded.
#[test]
fn the_operator_sets_how_long_a_piped_line_may_be() {
    let (host, alice) = host();
    let lines = format!("todo add {}\n", "x".repeat(200));
    let piped = || alice.run_with(&[], &[], &lines);
    assert_eq!(piped().status, Some(0));
    host.home.configure(|text| text.replace("\n[service.ssh]\nmay", "\n[service.ssh]\npiped_line = 100\nmay"));
    host.home.run(&["service", "reload", "ssh"], "");
    let refused = piped();
    assert!(
        refused.status != Some(0) && refused.errors.contains("a line is too long: 100 bytes at most"),
        "{}",
        refused.errors
    );
}

#[test]
fn openssh_calls_every_service() {
    let (_host, alice) = host();
    let said = |words: &[&str]| {
        let came = alice.run(words);
        assert_eq!((came.status, came.errors.as_str()), (Some(0), ""), "{words:?}");
        came.said
    };
    assert_eq!(said(&["todo", "add", "milk"]), "0\n");
    assert_eq!(
        said(&["todo", "add", "two litres of", "oat milk"]),
        "1\n",
        "SSH parts words: a text at the end is whole"
    );
    assert_eq!(said(&["todo", "done", "number=0"]), "");
    assert_eq!(
        said(&["--json", "todo", "list"]),
        "[{\"text\":\"milk\",\"done\":true},{\"text\":\"two litres of oat milk\",\"done\":false}]\n"
    );
    assert_eq!(said(&["todo", "list"]).lines().count(), 2, "an item a line");
    assert_eq!(said(&["todo/work", "list"]), "", "another list of hers");
    let help = said(&["help"]);
    assert!(help.contains("todo  A to-do list for everyone.") && help.contains("todo/work"), "{help}");
    assert!(!help.contains("scores"), "there is no key for it: {help}");
    assert!(said(&["todo"]).contains("add(text: String) -> usize"), "a service alone shows what it has");
    assert!(said(&["help", "todo", "add"]).contains("Returns its number"));
    // Lines through a pipe, in one connection.
    let piped = alice.run_with(&[], &[], "todo add bread\n--json todo add jam\nexit\ntodo add never\n");
    assert_eq!((piped.status, piped.said.as_str()), (Some(0), "2\n3\n"));
}

#[test]
fn errors_are_reported_with_an_exit_status() {
    let (_host, alice) = host();
    for (words, status, says) in [
        (
            &["scores", "table"][..],
            2,
            "error: you have no key for a service scores\nhint: you have keys for chat, ssh, todo\n",
        ),
        (
            &["nothing", "at", "all"],
            2,
            "error: you have no key for a service nothing\nhint: you have keys for chat, ssh, todo\n",
        ),
        (&["todo", "ad", "milk"], 2, "error: todo has no method ad\nhint: `help todo` shows what it has\n"),
        (&["todo", "done", "77"], 1, "error: todo.NoSuchTask: there is no task 77\n"),
        (&["todo", "add", "it's"], 2, "error: a quotation mark is not closed\n"),
        (&["--jsn", "todo", "list"], 2, "error: there is no option --jsn\n"),
        (&["todo/play", "list"], 2, "error: you have no key for todo/play\nhint: `help` shows your keys\n"),
        (&["todo", "add"], 2, "error: add(text): argument text is missing\n"),
    ] {
        let came = alice.run(words);
        assert_eq!((came.status, came.said.as_str()), (Some(status), ""), "{words:?}");
        assert!(came.errors.starts_with(says), "{words:?}: {}", came.errors);
    }
    // Something that no shell has is refused, and the session continues.
    let sftp = alice.run_with(&["-s"], &["sftp"], "");
    assert_ne!(sftp.status, Some(0));
    assert_eq!(alice.run(&["todo", "list"]).status, Some(0));
}

#[test]
fn a_terminal_completes_remembers_and_shows_what_services_call() {
    let (host, alice) = host();
    let mut terminal = alice.terminal();
    terminal.until("alice> ");
    // Completed twice: the service and the method.
    terminal.types("to\ta\tmilk\r");
    terminal.until("todo add milk\u{1b}[K\r\n0\r\n");
    terminal.types("\u{1b}[A\r");
    terminal.until("\r\n1\r\n");
    terminal.types("todo \t\t");
    terminal.until("add  clear  done  list  remind");
    terminal.types("xx\u{3}");
    terminal.until("^C\r\n");
    // A slow call is abandoned, and the session continues.
    terminal.types("chat say hello\r");
    terminal.until("chat: heard(\"alice\", \"hello\")\r\n");
    let target = format!("bob@{}/chat", host.address());
    host.home.run(&["call", &target, "say", "\u{1b}[2J", "--password-stdin"], PASSWORD);
    let before = terminal.until("chat: went(\"bob\")");
    assert!(
        before.contains("heard(\"bob\", \"\\u{1b}[2J\")"),
        "what others say does not steer the terminal: {before:?}"
    );
    terminal.types("todo nothing\r");
    terminal.until("error: todo has no method nothing");
    terminal.types("exit\r");
    assert_eq!(terminal.ends().0, Some(0));
    // A command that stays open.
    let mut follows = alice.follow(&["--json", "--follow", "chat", "say", "here"]);
    follows.until("\"call\":\"heard\",\"arguments\":{\"$tuple\":[\"alice\",\"here\"]}");
    host.home.run(&["call", &target, "say", "hello", "--password-stdin"], PASSWORD);
    follows.until("{\"$tuple\":[\"bob\",\"hello\"]}");
}

#[test]
fn sessions_go_on_while_all_code_is_replaced() {
    let (host, alice) = host();
    let mut terminal = alice.terminal();
    terminal.until("alice> ");
    for turn in 0..5 {
        terminal.types(&format!("todo add {turn}x\r"));
        terminal.until(&format!("\r\n{turn}\r\n"));
        for service in ["todo", "ssh", "chat"] {
            let said = host.home.run(&["service", "reload", service], "");
            let stays = said.contains("; 1 connection of its own doors is still with the old code");
            assert_eq!(stays, service == "ssh", "{said}");
        }
        assert_eq!(alice.run(&["todo", "list"]).said.lines().count(), turn + 1, "new connections are the new code's");
    }
    let shown = host.home.run(&["service", "show", "ssh"], "");
    assert!(shown.contains("1 replaced"), "the code that the session is with stays, and no other: {shown}");
    host.home.run(&["identity", "disable", "alice"], "");
    assert_ne!(terminal.ends().0, Some(0), "the window closes");
    let deadline = Instant::now() + Duration::from_secs(60);
    while host.home.run(&["service", "show", "ssh"], "").contains("replaced,") {
        assert!(Instant::now() < deadline, "the code is let go of with its last session");
        std::thread::sleep(Duration::from_millis(20));
    }
    assert_eq!(alice.run(&["todo", "list"]).status, Some(255));
}

#[test]
fn valid_credentials_are_accepted_and_others_refused_alike() {
    let (host, alice) = host();
    let address = alice.address();
    // Every kind of key that OpenSSH generates, a password, and a token in its place.
    for kind in [&["rsa", "-b", "2048"][..], &["ecdsa", "-b", "256"], &["ecdsa", "-b", "384"]] {
        let other = Ssh::new(address, "alice", kind);
        let file = other.public().display().to_string();
        host.home.run(&["pubkey", "add", "alice", &file, "--label", &kind.join(" ")], "");
        assert_eq!(other.run(&["todo", "list"]).status, Some(0), "{kind:?}");
    }
    assert_eq!(alice.by_password(PASSWORD, &["todo", "list"]).status, Some(0));
    let token = host.home.run(&["token", "new", "alice", "--label", "laptop"], "");
    assert_eq!(alice.by_password(&token, &["todo", "list"]).status, Some(0), "{token}");
    // Everybody else gets the same refusal, whether the name exists or not.
    let (stranger, nobody, bob) = (
        Ssh::new(address, "alice", &["ed25519"]),
        Ssh::new(address, "nobody-there", &["ed25519"]),
        Ssh::new(address, "bob", &["ed25519"]),
    );
    host.home.run(&["pubkey", "add", "bob", &bob.public().display().to_string()], "");
    for (who, why) in [(&stranger, "not a key of the identity"), (&nobody, "unknown name"), (&bob, "no such key")] {
        let came = who.run_with(&["-o", "PasswordAuthentication=no"], &["todo", "list"], "");
        assert_eq!((came.status, came.said.as_str()), (Some(255), ""), "{why}");
        assert!(came.errors.contains("Permission denied (publickey,password)"), "{}", came.errors);
        let deadline = Instant::now() + Duration::from_secs(60);
        while !host
            .home
            .run(&["audit", "show"], "")
            .lines()
            .any(|line| line.contains(why) && line.contains("door=ssh:ssh"))
        {
            assert!(Instant::now() < deadline, "{why}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }
    assert_eq!(alice.by_password("wrong-quirk-velvet-93-lamp", &["todo", "list"]).status, Some(255));
    let second = alice.by_passwords(&["wrong-quirk-velvet-93-lamp", PASSWORD], &["todo", "list"]);
    assert_eq!(second.status, Some(0), "whoever was wrong may try again: {}", second.errors);
}

#[test]
fn wrong_keys_before_the_right_one_are_not_guesses() {
    let (host, alice) = host();
    let others: Vec<Ssh> = (0..5).map(|_| Ssh::new(alice.address(), "alice", &["ed25519"])).collect();
    let files: Vec<String> = others.iter().map(|other| other.private().display().to_string()).collect();
    let mut options: Vec<&str> = files.iter().flat_map(|file| ["-i", file]).collect();
    options.extend(["-o", "PasswordAuthentication=no"]);
    let last = alice.private().display().to_string();
    options.extend(["-i", &last]);
    // ssh tries the keys in this order. The key of `others[0]` is always the first, so it is left out here.
    for _ in 0..3 {
        let came = others[0].run_with(&options[2..], &["todo", "list"], "");
        assert_eq!(came.status, Some(0), "{}", came.errors);
    }
    assert!(!host.home.run(&["audit", "show"], "").contains("too many failed logins"));
}

#[test]
fn no_client_makes_the_others_wait() {
    let (host, alice) = host();
    let mut terminal = alice.terminal();
    terminal.until("alice> ");
    // Drawing a letter once walked over the whole line: a paste of 4,000 letters blocked everybody for minutes.
    terminal.types(&"x".repeat(100_000));
    // A command with much output, for a client that does not read.
    for at in 0..20 {
        let text = format!("{at}{}", "y".repeat(100_000));
        assert_eq!(alice.run_with(&[], &[], &format!("todo add {}\n", &text[..60_000])).status, Some(0));
    }
    let mut silent = alice.command(&[], &["todo", "list"]);
    let mut silent =
        silent.stdin(std::process::Stdio::null()).stdout(std::process::Stdio::piped()).spawn().expect("ssh runs");
    for _ in 0..3 {
        assert_eq!(alice.run(&["todo/work", "list"]).status, Some(0), "others are served");
    }
    // A megabyte of empty lines.
    let mut idle = alice.follow(&[]);
    idle.types(&"\n".repeat(1 << 20));
    for _ in 0..3 {
        assert_eq!(alice.run(&["todo/work", "list"]).status, Some(0), "others are served");
    }
    terminal.types("\u{15}todo/work list\r");
    terminal.until("list\u{1b}[K\r\n");
    silent.kill().and_then(|()| silent.wait()).expect("it can be ended");
    drop((terminal, idle));
    let deadline = Instant::now() + Duration::from_secs(60);
    while host.home.run(&["session", "list"], "") != "nobody is logged in" {
        assert!(Instant::now() < deadline, "they are gone: {}", host.home.run(&["session", "list"], ""));
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn no_piped_command_is_lost_without_an_error() {
    let (_host, alice) = host();
    let lines = |count: usize| (0..count).map(|at| format!("todo add {at} {}\n", "z".repeat(1000))).collect::<String>();
    let all = alice.run_with(&[], &[], &lines(500));
    assert_eq!((all.status, all.said.lines().count()), (Some(0), 500), "{}", all.errors);
    // More than the host can queue: the commands that ran are the first ones, and complete.
    let help = alice.run(&["help", "todo", "add"]).said;
    // The first command is slow.
    let lines = format!("todo remind 0 5\n{}", format!("help todo add {}\n", "z".repeat(60_000)).repeat(400));
    let more = alice.run_with(&[], &[], &lines);
    assert_eq!(more.status, Some(2));
    assert!(more.errors.contains("error: too many commands wait"), "{}", more.errors);
    assert_eq!(more.errors.matches("error:").count(), 1, "no part of a line was taken for one: {}", more.errors);
    let ran = more.said.len() / help.len();
    assert!(ran < 400 && more.said == help.repeat(ran), "{ran}");
    let long = alice.run_with(&[], &[], &format!("todo add {}", "z".repeat(100_000)));
    assert_eq!(long.status, Some(2));
    assert!(long.errors.contains("a line is too long: 65536 bytes at most"), "{}", long.errors);
    // The last command's status is the session's, however the input ends.
    for (typed, status) in
        [("todo nosuch", 2), ("todo nosuch\n", 2), ("todo nosuch\n\n \n", 2), ("todo nosuch\ntodo\n", 0), ("\n", 0)]
    {
        assert_eq!(alice.run_with(&[], &[], typed).status, Some(status), "{typed:?}");
    }
}

#[test]
fn following_ends_when_the_key_is_removed() {
    let (host, alice) = host();
    let mut follows = alice.follow(&["--follow", "chat", "say", "here"]);
    follows.until("heard(\"alice\", \"here\")");
    host.home.run(&["key", "remove", "alice", "chat"], "");
    assert_eq!(follows.ends().0, Some(1));
    assert_eq!(alice.run(&["chat", "say", "x"]).status, Some(2));
    host.home.run(&["service", "stop", "todo"], "");
    let came = alice.run(&["todo", "list"]);
    assert_eq!((came.status, came.errors.as_str()), (Some(1), "error: todo is not serving just now\n"));
}

#[test]
fn the_hosts_key_is_kept() {
    let (mut host, mut alice) = host();
    let key = host_key(&host);
    alice.trust(&key);
    assert_eq!(alice.run(&["todo", "list"]).status, Some(0), "it is the one that ssh is shown");
    host.terminate();
    let mut host = host.into_home().start();
    alice.moves(address(&mut host));
    alice.trust(&key);
    assert_eq!(alice.run(&["todo", "list"]).status, Some(0));
    alice.trust("ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIIXWmYbVgA8E5kFyTKPBbOLQQ0rJyQ1j1SgtxTtzvpDX");
    assert_eq!(alice.run(&["todo", "list"]).status, Some(255), "no other is");
}

#[test]
fn conch_of_twisted_can_log_in() {
    let (host, alice) = host();
    alice.trust(&host_key(&host));
    let known = alice.known().display().to_string();
    let (port, key) = (alice.address().port().to_string(), alice.private().display().to_string());
    let conch = |words: &[&str]| python::twisted("ssh.py", &[&[&port, "alice", &key, &known], words].concat());
    assert_eq!(conch(&["todo", "add", "milk"]).trim(), "0\nstatus 0");
    assert!(conch(&["todo", "list"]).contains("milk"));
    assert_eq!(conch(&["todo", "done", "9"]).trim(), "status 1");
}

/// `CREDHOST_SSH=1000 cargo test --release -p system-tests --test ssh idle -- --nocapture` opens that many; the default
/// is 40.
#[test]
fn idle_ssh_sessions_survive_twenty_reloads() {
    let count = std::env::var("CREDHOST_SSH").ok().and_then(|text| text.parse().ok()).unwrap_or(40);
    let limits = "connections = 4000\nper_source = 4000\n";
    let (host, alice) = host_with(", connections = 4000, per_source = 4000", limits);
    let program = system_tests::workspace().join("tests/twisted/ssh_idle.py");
    let (port, key) = (alice.address().port().to_string(), alice.private().display().to_string());
    let mut python = std::process::Command::new(python::python());
    python.arg(program).args([&port, "alice", &key, &count.to_string()]);
    let mut sessions = Terminal::new(python);
    let began = Instant::now();
    sessions.until("ready\n");
    let came = began.elapsed().as_secs_f64();
    sessions.types("todo/work add here\n");
    assert_eq!(sessions.until("\n"), format!("all {count} lost 0"));
    let began = Instant::now();
    for _ in 0..20 {
        for service in ["ssh", "todo", "chat"] {
            host.home.run(&["service", "reload", service], "");
        }
    }
    let took = began.elapsed().as_secs_f64();
    sessions.types("todo/work add there\n");
    assert_eq!(sessions.until("\n"), format!("all {count} lost 0"));
    let tasks = alice.run(&["--json", "todo/work", "list"]).said;
    assert_eq!((tasks.matches("\"here\"").count(), tasks.matches("\"there\"").count()), (count, count), "each once");
    println!("{count} sessions in {came:.1} s; 20 reloads of ssh, todo and chat each in {took:.1} s: 0 lost");
}
