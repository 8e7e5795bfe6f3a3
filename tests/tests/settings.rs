//! Limits belong to the operator: they are set in credhost.toml, shown with their current use, and applied while the
//! host serves.

use std::io::Read;
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use system_tests::host::{TestHome, TestHost};

fn limits(home: &TestHome, section: &str) {
    home.configure(|text| {
        let end = text.find("\n[limits]\n").unwrap_or(text.len());
        format!("{}\n[limits]\n{section}\n", &text[..end])
    });
}

/// Returns how many of these connections are served. Those that the host turns away read nothing.
fn served(address: SocketAddr, count: usize) -> (usize, Vec<TcpStream>) {
    let mut all: Vec<TcpStream> = (0..count).map(|_| TcpStream::connect(address).expect("it listens")).collect();
    let served = all.iter_mut().filter_map(|stream| {
        stream.set_read_timeout(Some(Duration::from_secs(30))).expect("a limit");
        stream.read(&mut [0; 8]).ok().filter(|count| *count > 0)
    });
    (served.count(), all)
}

/// Waits until closed connections are no longer counted.
fn all_gone(home: &TestHome) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !home.run(&["limits"], "").lines().any(|line| line.starts_with("connections") && line.contains("  0  ")) {
        assert!(Instant::now() < deadline, "{}", home.run(&["limits"], ""));
    }
}

/// A collection's listeners have limits of their own, which a reload applies like those of the whole host.
#[test]
fn a_collections_listeners_have_limits_of_their_own() {
    let home = TestHome::new();
    home.make();
    let section = |more: &str| {
        format!(
            "per_source = 3\n[multiservice.games]\nservices = []\nlisten = \"127.0.0.1:0\"\n[multiservice.games.limits]\n{more}"
        )
    };
    limits(&home, &section("per_source = 1"));
    let mut host = home.start();
    let line = host.wait_for("serving also on");
    let games: SocketAddr = line.split_whitespace().find_map(|word| word.parse().ok()).expect("an address");
    let both = |games_of: usize, all_of: usize| {
        let (count, open) = served(games, 5);
        assert_eq!(count, games_of, "by the collection's listener");
        drop(open);
        let (count, open) = served(host.address(), 5);
        assert_eq!(count, all_of, "by the host's");
        drop(open);
        all_gone(&host.home);
    };
    both(1, 3);
    let shown = host.home.run(&["limits"], "");
    assert!(shown.contains("of [multiservice.games]\nper_source  1"), "{shown}");
    limits(&host.home, &section("per_source = 2"));
    assert_eq!(host.home.run(&["reload"], "").trim(), "[multiservice.games] per_source: 1 → 2");
    both(2, 3);
    // An invalid setting is reported with its place, and changes nothing.
    for (wrong, said) in [
        ("memory = 5", "[multiservice.games.limits] memory: this limit is for the whole host"),
        ("x = 5", "] x: there is no such"),
    ] {
        limits(&host.home, &section(wrong));
        let refused = host.home.refused(&["reload"], "");
        assert!(refused.contains(said), "{refused}");
        let found = String::from_utf8_lossy(&host.home.run_with(&["doctor"], "").stdout).into_owned();
        assert!(found.contains(said), "{found}");
    }
    both(2, 3);
    // Without a section of their own, they have the limits of the host.
    limits(&host.home, &section(""));
    assert_eq!(host.home.run(&["reload"], "").trim(), "[multiservice.games] per_source: 2 → 3");
    both(3, 3);
}

#[test]
fn limits_are_shown_and_reloaded_while_the_host_serves() {
    let home = TestHome::new();
    home.make();
    limits(&home, "per_source = 2\nmemory = \"100 MiB\"\nlogin = 60");
    let mut host = home.start();
    let (count, open) = served(host.address(), 4);
    assert_eq!(count, 2);
    let shown = host.home.run(&["limits"], "");
    let row =
        |name: &str| shown.lines().find(|line| line.starts_with(name)).unwrap_or_else(|| panic!("{shown}")).to_owned();
    assert!(row("per_source").contains("  2  ") && row("login ").contains("1 min"), "{shown}");
    assert!(row("memory").contains("100 MiB") && row("connections").contains("  2  "), "{shown}");
    drop(open);
    all_gone(&host.home);

    limits(&host.home, "per_source = 3");
    assert_eq!(
        host.home.run(&["reload"], "").lines().next(),
        Some("memory: 100 MiB → ".to_owned() + &half(&host.home)).as_deref()
    );
    let (count, open) = served(host.address(), 4);
    assert_eq!(count, 3);
    drop(open);
    all_gone(&host.home);

    // An invalid setting is reported, and changes nothing.
    limits(&host.home, "per_source = 1\nper_sauce = 5");
    let refused = host.home.refused(&["reload"], "");
    assert!(refused.contains("per_sauce: there is no such limit; is per_source meant?"), "{refused}");
    assert!(refused.contains("nothing was changed"), "{refused}");
    let (count, open) = served(host.address(), 4);
    assert_eq!(count, 3);
    drop(open);
    all_gone(&host.home);

    limits(&host.home, "per_source = 1");
    let process = rustix::process::Pid::from_raw(host.id().cast_signed()).expect("it has a number");
    rustix::process::kill_process(process, rustix::process::Signal::HUP).expect("it can be told");
    host.wait_for("limits: per_source: 3 → 1");
    assert_eq!(served(host.address(), 4).0, 1);
    // An event that nobody waits for is written a moment later.
    let deadline = Instant::now() + Duration::from_secs(30);
    while !host.home.run(&["audit", "show"], "").contains("limits.changed by=SIGHUP") {
        assert!(Instant::now() < deadline, "{}", host.home.run(&["audit", "show"], ""));
    }
}

/// Running services obey the limits that the operator has set since their start, in the host's own process and in
/// processes of their own.
#[test]
fn running_services_apply_changed_limits() {
    for isolated in [false, true] {
        let home = TestHome::new();
        home.make();
        home.identity("alice", "alice-pw", &["todo", "mail"]);
        ["todo", "mail"].iter().for_each(|service| home.install(service));
        if isolated {
            home.isolate("process");
        }
        let host = home.start();
        let call = |service: &str, words: &[&str]| {
            let target = format!("alice@127.0.0.1:{}/{service}", host.port());
            let output = host.home.run_with(&[&["call", &target], words, &["--password-stdin"]].concat(), "alice-pw");
            (output.status.success(), String::from_utf8_lossy(&output.stderr).into_owned())
        };
        let long = "x".repeat(2_000);
        let letter = ["send", "alice", "a subject", long.as_str()];
        let over = |limit: &str| limit.to_owned();
        for (section, add, send) in [
            ("", None, None),
            ("state = 1500\ndata.value = 1024", Some(over("1500")), Some(over("1024"))),
            ("state = \"1 MiB\"\ndata.value = \"256 MiB\"", None, None),
        ] {
            limits(&host.home, section);
            host.home.run(&["reload"], "");
            for (answer, wanted) in [(call("todo", &["add", &long]), add), (call("mail", &letter), send)] {
                let (done, said) = answer;
                assert_eq!(done, wanted.is_none(), "{section}: {said}");
                assert!(wanted.is_none_or(|wanted| said.contains(&wanted)), "{section}: {said}");
            }
        }
    }
}

/// A service reads its own section when it is created. A reload of the settings names the services that have to be
/// reloaded to see theirs.
#[test]
fn a_reload_names_the_services_whose_sections_have_changed() {
    let host = TestHost::with(&["todo", "ssh"]);
    assert!(!host.home.run(&["reload"], "").contains("[service."));
    host.home.configure(|text| format!("{text}\n[service.ssh]\nchannels = 20\n"));
    let waits = "[service.ssh] has changed: `credhost service reload ssh` applies it";
    assert_eq!(host.home.run(&["reload"], ""), waits);
    host.home.run(&["service", "reload", "ssh"], "");
    assert!(!host.home.run(&["reload"], "").contains("[service."));
    host.home.configure(|text| text.replace("channels = 20", "channels = 0"));
    let refused = host.home.refused(&["service", "reload", "ssh"], "");
    assert!(refused.contains("[service.ssh] channels is 0: the range is 1 to 1000"), "{refused}");
}

/// Half of the memory, as `limits` shows it.
fn half(home: &TestHome) -> String {
    let shown = home.run(&["limits"], "");
    let row = shown.lines().find(|line| line.starts_with("memory")).expect("it is there").to_owned();
    row["memory".len()..].trim_start().split("  ").next().expect("what it is").to_owned()
}

#[test]
fn an_invalid_limit_prevents_the_start_and_is_explained() {
    for (section, said) in [
        ("calls = 0", "[limits] calls is 0: the range is 1 to 1000000"),
        ("login = \"soon\"", "[limits] login = \"soon\": expected a time, such as 30 (seconds) or \"2 min\""),
        ("conections = 5", "is connections meant?"),
    ] {
        let home = TestHome::new();
        home.make();
        limits(&home, section);
        let refused = home.refused(&["run", "--listen", "127.0.0.1:0"], "");
        assert!(refused.contains(said), "{section}: {refused}");
    }
}

/// What `[pb]` gives to clients without a login is applied while the host serves. What it no longer gives ends at once.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn anonymous_rules_are_reloaded_while_the_host_serves() {
    use pb::client::Client;

    let set = |home: &TestHome, pb: &str| {
        home.configure(|text| {
            let rest = text.split("# given\n").nth(2).unwrap_or(text);
            let rest = rest.replacen("[pb]\n", "", 1);
            format!("# given\n[pb]\n{pb}\n# given\n{rest}")
        });
    };
    let home = TestHome::new();
    home.make();
    home.install("exchange");
    set(&home, "anonymous = \"exchange/guest\"\nnames.root = \"exchange/root\"");
    let host = home.start();
    let stream = tokio::net::TcpStream::connect(host.address()).await.expect("it listens");
    let client = Client::new(stream).await.expect("it speaks PB");
    let guest = client.login_anonymous(None).await.expect("everybody may");
    let call = async |what: &pb::client::Remote| {
        let answered = tokio::time::timeout(Duration::from_secs(60), what.call("kind", &(5,)));
        answered.await.expect("it does not hang")
    };
    call(&guest).await.expect("it is there");
    call(&client.root()).await.expect("it is there");

    set(&host.home, "names.root = \"exchange/root\"");
    assert_eq!(host.home.run(&["reload"], ""), "[pb] anonymous: exchange/guest → none");
    let refused = call(&guest).await.expect_err("it is gone").to_string();
    assert!(refused.contains("was revoked"), "{refused}");
    call(&client.root()).await.expect("it stays");
    let refused = client.login_anonymous(None).await.expect_err("nobody may").to_string();
    assert!(refused.contains("anonymous logins are not allowed here"), "{refused}");

    set(&host.home, "anonymous = \"exchange\"\nanonymus = 5");
    let refused = host.home.refused(&["reload"], "");
    assert!(refused.contains("nothing was changed"), "{refused}");
    call(&client.root()).await.expect("it stays");

    set(&host.home, "anonymous = \"exchange/visitor\"\ndefault_service = \"exchange\"");
    let changed = "[pb] anonymous: none → exchange/visitor\n[pb] default_service: none → exchange\n[pb] names.root: exchange/root → none";
    assert_eq!(host.home.run(&["reload"], ""), changed);
    call(&client.root()).await.expect_err("the root has log-in's own methods alone");
    call(&client.login_anonymous(None).await.expect("everybody may")).await.expect("it is there");
    assert_eq!(host.home.run(&["reload"], ""), "the changeable settings in credhost.toml are the same as before");
    // A service that is not here is named.
    set(&host.home, "anonymous = \"exchnage/visitor\"");
    let said = host.home.run(&["reload"], "");
    assert!(said.contains("no service here has this name; did you mean \"exchange\"?"), "{said}");
}

/// A reload names what cannot be applied while the host serves. It refuses what would prevent the host from starting,
/// and `doctor` reports it.
#[test]
fn a_reload_names_the_settings_that_it_cannot_apply() {
    let home = TestHome::new();
    home.make();
    home.install("chat");
    home.configure(|text| format!("{text}\n[service.chat.listen]\nirc = \"127.0.0.1:0\"\n"));
    let mut host = home.start();
    assert_eq!(host.home.run(&["reload"], ""), "the changeable settings in credhost.toml are the same as before");
    host.home
        .configure(|text| text.replace("irc = \"127.0.0.1:0\"", "irc = { address = \"127.0.0.1:0\", per_source = 5 }"));
    let said = host.home.run(&["reload"], "");
    assert_eq!(said, "[service.chat.listen] irc has changed: restart the host to apply it");
    host.home.configure(|text| text.replace("per_source = 5", "certificates = true"));
    let refused = host.home.refused(&["reload"], "");
    assert!(refused.contains("certificates needs TLS") && refused.contains("nothing was changed"), "{refused}");
    let output = host.home.run_with(&["doctor"], "");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(!output.status.success() && said.contains("certificates needs TLS"), "{said}");
    // A host that has ended has written its whole trail.
    assert_eq!(host.terminate(), Some(0));
    let trail = host.home.run(&["audit", "show"], "");
    assert!(!trail.contains("limits.changed"), "nothing was other than before: {trail}");
}

/// The applied changes are in the trail even if the same command could not do everything.
#[test]
fn the_trail_has_the_changes_that_a_failed_reload_applied() {
    let home = TestHome::new();
    home.make();
    home.install("chat");
    let host = home.start();
    limits(&host.home, "per_source = 5");
    host.home.configure(|text| format!("{text}\n[service.chat]\nisolation = \"moon\"\n"));
    let refused = host.home.refused(&["reload"], "");
    assert!(refused.contains("moon") && refused.contains("applied nevertheless: per_source: 256 → 5"), "{refused}");
    // An event that nobody waits for is written a moment later.
    let deadline = Instant::now() + Duration::from_secs(30);
    loop {
        let trail = host.home.run(&["audit", "show"], "");
        let changed = trail.lines().find(|line| line.contains("limits.changed"));
        if let Some(changed) = changed {
            return assert!(changed.contains("per_source: 256 → 5"), "{changed}");
        }
        assert!(Instant::now() < deadline, "{trail}");
    }
}

/// A reload names each setting that only a restart applies, by its place. It does not name what it has applied.
#[test]
fn a_reload_names_settings_that_need_a_restart() {
    let home = TestHome::new();
    home.make();
    let host = home.start();
    let before = std::fs::read_to_string(host.home.path().join("credhost.toml")).expect("it is there");
    for (from, to, place) in [
        ("listen = \"127.0.0.1:8787\"", "listen = \"127.0.0.1:8789\"", "[pb] listen"),
        ("stock_login = true", "stock_login = false", "[pb] stock_login"),
        ("shortest = ", "blocked = \"no.txt\"\nshortest = ", "[password] blocked"),
        ("grace = 10", "grace = 11", "[plugins] grace"),
        ("[password]", "[tls]\ncertificate = \"a.pem\"\n[password]", "[tls] certificate"),
    ] {
        host.home.configure(|_| before.replacen(from, to, 1));
        let said = host.home.run(&["reload"], "");
        assert!(said.contains(&format!("{place} has changed: restart the host to apply it")), "{place}: {said}");
        host.home.configure(|_| before.clone());
        assert!(!host.home.run(&["reload"], "").contains("restart"), "{place}: as it was");
    }
    host.home.configure(|_| before.replacen("[pb]", "[limits]\ncalls = 77\n[pb]\ntracebacks = true", 1));
    assert!(!host.home.run(&["reload"], "").contains("restart"));
}
