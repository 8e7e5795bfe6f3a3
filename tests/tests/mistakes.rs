//! The program reports what an operator mistypes, and suggests what may have been meant. The report changes nothing
//! else.

use system_tests::host::TestHome;

/// Commands that succeed, and the warning that each prints; "" stands for none.
const DONE: [(&[&str], &str); 6] = [
    (&["key", "add", "alice", "todo"], ""),
    (
        &["key", "add", "alice", "tood"],
        "there is no service \"tood\" yet: the key has no effect until there is one; did you mean \"todo\"?",
    ),
    (
        &["key", "add", "alice", "weather"],
        "there is no service \"weather\" yet: the key has no effect until there is one",
    ),
    (&["identity", "unlock", "alice"], ""),
    (&["identity", "unlock", "alcie"], "there is no identity named alcie; did you mean \"alice\"?"),
    (&["identity", "unlock", "zelda"], "there is no identity named zelda"),
];

/// Commands that are refused, and the reasons.
const REFUSED: [(&[&str], &[&str]); 6] = [
    (&["identity", "show", "alcie"], &["there is no identity named alcie", "did you mean \"alice\"?"]),
    (&["key", "list", "Alice"], &["there is no identity named Alice", "did you mean \"alice\"?"]),
    (&["identity", "add", "bob\u{200b}", "--no-password"], &["an invisible character, U+200B"]),
    (&["identity", "add", " bob", "--no-password"], &["begins or ends with a space"]),
    (&["key", "add", "alice", "todo", "work\u{a0}"], &["an unusual space, U+00A0"]),
    (&["tls", "init", "--name", "bad name"], &["\"bad name\" is neither a DNS name"]),
];

fn check(home: &TestHome) {
    for (arguments, warning) in DONE {
        let done = home.run_with(arguments, "");
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(done.status.success(), "{arguments:?}: {said}");
        let expected = if warning.is_empty() { String::new() } else { format!("credhost: warning: {warning}") };
        assert_eq!(said.trim_end(), expected, "{arguments:?}");
        let shown: serde_json::Value =
            serde_json::from_str(&home.run(&[arguments, &["--json"]].concat(), "")).expect("one value");
        assert_eq!(shown["warnings"][0].as_str().unwrap_or_default(), warning, "{arguments:?}: {shown}");
    }
    for (arguments, why) in REFUSED {
        let said = home.refused(arguments, "");
        why.iter().for_each(|why| assert!(said.contains(why), "{arguments:?}: {said}"));
    }
}

#[test]
fn a_mistyped_name_is_reported_with_and_without_a_host() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    home.identity("alice", "alice-pw", &["todo"]);
    home.run(&["tls", "init"], "");
    let certificate = || std::fs::read(home.path().join("tls/cert.pem")).expect("it is there");
    let before = certificate();
    check(&home);
    assert_eq!(certificate(), before, "a good certificate stays");
    let host = home.start();
    check(&host.home);
    for (arguments, meant) in [
        (["describe", "tood"].as_slice(), "did you mean \"todo\"?"),
        (&["service", "show", "tood"], "did you mean \"todo\"?"),
        (&["service", "stop", "tood"], "did you mean \"todo\"?"),
        (&["service", "rollback", "weather"], "`credhost service list`"),
        (&["service", "why", "todoo"], "did you mean \"todo\"?"),
    ] {
        let said = host.home.refused(arguments, "");
        assert!(said.contains("there is no service named") && said.contains(meant), "{arguments:?}: {said}");
    }
}

#[test]
fn settings_that_nothing_reads_cause_warnings() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    home.install("seat");
    home.configure(|text| {
        let sections = "[service.tood]\nx = 1\n[service.seat]\npolicy = \"kick\"\npolice = 2\n[service.todo]\ny = 1\n";
        format!("{text}\n{sections}[multiservice.games]\nservices = [\"seta\"]\n")
    });
    let host = home.start();
    let log = host.log();
    for expected in [
        "[service.tood] in credhost.toml: no service here has this name; did you mean \"todo\"?",
        "[multiservice.games] services = [\"seta\"] in credhost.toml: no service here has this name; did you mean \"seat\"?",
        "the service has no setting \"police\"",
        "the service reads no settings: its section of credhost.toml has no effect",
    ] {
        assert!(log.contains(expected), "{expected} in {log}");
    }
    assert_eq!(log.matches("has no effect").count(), 2, "each is said once: {log}");
    let said = String::from_utf8_lossy(&host.home.run_with(&["doctor"], "").stdout).into_owned();
    assert!(said.contains("[service.tood]") && said.contains("did you mean \"todo\""), "{said}");
}

#[test]
fn an_invalid_log_level_is_reported_and_logging_continues() {
    for (asked, said) in [
        ("nonsense", "CREDHOST_LOG is invalid (\"nonsense\" is not one of off, error"),
        ("inof", "did you mean \"info\"?"),
        ("credhost=loud", "CREDHOST_LOG is invalid (\"loud\" is not one of off"),
        ("crehdost=debug", "did you mean \"credhost\"?"),
        ("9", "CREDHOST_LOG is invalid"),
        (" info", "libtodo"),
        ("pb=debug", "libtodo"),
        ("debug ,jelly=warn", "libtodo"),
    ] {
        let home = TestHome::new();
        home.make();
        std::fs::write(home.plugins().join("libtodo.so"), "no library").expect("it can be written");
        let host = home.start_with(&[], &[("CREDHOST_LOG", asked)]);
        let log = host.log();
        assert!(log.contains(said) && log.contains("serving Perspective Broker"), "{asked}: {log}");
    }
}
