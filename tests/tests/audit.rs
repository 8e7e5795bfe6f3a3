//! The audit trail: it has every event with its true reason, and nobody can change it unnoticed.

use std::path::PathBuf;

use system_tests::host::{TestHome, TestHost};

fn lines(home: &TestHome, with: &str) -> Vec<String> {
    home.run(&["audit", "show", "--with", with], "").lines().map(str::to_owned).collect()
}

fn call(host: &TestHost, who: &str, password: &str) {
    let target = format!("{who}@127.0.0.1:{}/todo", host.port());
    let _ = host.home.run_with(&["call", &target, "list", "--password-stdin"], password);
}

/// A home with some events in its trail, whose host has ended.
fn scene() -> TestHome {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let mut host = home.start();
    call(&host, "alice", "alice-pw");
    call(&host, "alice", "wrong");
    call(&host, "hunter2-hunter2", "x");
    host.home.run(&["token", "new", "alice", "--label", "ci"], "");
    host.home.run(&["identity", "disable", "alice"], "");
    call(&host, "alice", "alice-pw");
    assert_eq!(host.terminate(), Some(0));
    host.into_home()
}

#[test]
fn the_trail_has_each_login_refusal_and_change_with_its_reason() {
    let home = scene();
    let has = |with: &str, words: &[&str]| {
        let found = lines(&home, with);
        let whole = |line: &&String| words.iter().all(|word| line.contains(word));
        assert!(found.iter().any(|line| whole(&line)), "{with} {words:?} in {found:#?}");
    };
    has("identity.added", &["identity=alice", "by=\"a command of uid "]);
    has("key.added", &["identity=alice", "service=todo", "perspective=alice"]);
    has("host.started", &[]);
    has("service.started", &["service=todo", "file=libtodo.so"]);
    has("login", &["login identity=alice peer=127.0.0.1:", "how=password credential=password"]);
    has("login.refused", &["identity=alice", "why=\"wrong password\""]);
    has("login.refused", &["identity=\"(unknown ", "why=\"unknown name\""]);
    has("login.refused", &["identity=alice", "why=\"the identity is disabled\""]);
    has("token.added", &["identity=alice", "label=ci", "by=\"a command of uid "]);
    has("identity.disabled", &["identity=alice"]);
    has("service.stopped", &["service=todo"]);
    has("host.stopped", &[]);
    assert!(lines(&home, "hunter2").is_empty(), "people type passwords where names should be");
}

#[test]
fn lockouts_missing_keys_and_expired_tokens_are_in_the_trail() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let host = home.start();
    let old = host.home.run(&["token", "new", "alice", "--label", "old", "--expires", "1s"], "");
    let target = format!("alice@127.0.0.1:{}/todo", host.port());
    let refused = |input: &str, with: &str| {
        let output = host.home.run_with(&["call", &target, "list", with], input);
        String::from_utf8_lossy(&output.stderr).into_owned()
    };
    // Until the login itself reports that the token has expired; it may also expire between the login and the attachment.
    while !refused(&old, "--token-stdin").contains("refused the login") {}
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !lines(&host.home, "login.refused").iter().any(|line| line.contains("expired token")) {
        assert!(std::time::Instant::now() < deadline, "{:#?}", host.home.run(&["audit", "show"], ""));
        let _ = refused(&old, "--token-stdin");
    }
    let other = format!("alice@127.0.0.1:{}/another", host.port());
    let _ = host.home.run_with(&["call", &other, "list", "--password-stdin"], "alice-pw");
    // Guesses one right after the other, until the host refuses to check one.
    while !refused("wrong", "--password-stdin").contains("too many failed logins") {}
    // Entries that no request waits for are written a moment later.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    let has = |with: &str, words: &[&str]| loop {
        let found = lines(&host.home, with);
        if found.iter().any(|line| words.iter().all(|word| line.contains(word))) {
            return;
        }
        assert!(std::time::Instant::now() < deadline, "{with} {words:?} in {found:#?}");
    };
    has("login.refused", &["identity=alice", "how=token", "why=\"expired token\""]);
    has("refused", &["refused identity=alice", "asked=another/", "why=\"no such key\""]);
    has("login.refused", &["identity=alice", "why=\"too many failed logins: not checked\""]);
}

/// Changes the store as an attacker with write access but no key would; `audit verify` must report it.
fn tampered(what: &str) -> String {
    let home = scene();
    home.run(&["audit", "verify"], "");
    change(&home, what);
    home.refused(&["audit", "verify"], "")
}

fn change(home: &TestHome, change: &str) {
    let program = "import sqlite3, sys; db = sqlite3.connect(sys.argv[1]); db.executescript(sys.argv[2]); db.commit()";
    let mut command = std::process::Command::new("python3");
    command.args(["-c", program]).arg(home.path().join("store.db")).arg(change);
    let done = command.output().expect("python3 runs");
    assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
}

#[test]
fn verify_finds_changed_removed_moved_and_cut_off_lines() {
    let refused = tampered("UPDATE audit SET text = replace(text, 'wrong password', 'unknown name');");
    assert!(refused.contains("is not as written"), "{refused}");
    let refused = tampered("DELETE FROM audit WHERE number = 4;");
    assert!(refused.contains("after line 3 comes line 5"), "{refused}");
    let swap = "UPDATE audit SET number = -number WHERE number IN (3, 4);
                UPDATE audit SET number = CASE number WHEN -3 THEN 4 ELSE 3 END WHERE number < 0;";
    assert!(tampered(swap).contains("is not as written"));
    let refused = tampered("DELETE FROM audit WHERE number > 5;");
    assert!(refused.contains("the trail ends at line 5") && refused.contains("cut off at the end"), "{refused}");
    // An attacker with write access can also replace the head, but not with one that verifies.
    let home = scene();
    home.run(&["audit", "verify"], "");
    let cut = "DELETE FROM audit WHERE number > 5;";
    change(&home, cut);
    let line = "import sqlite3, sys; print(*sqlite3.connect(sys.argv[1]).execute('SELECT number, digest FROM audit ORDER BY number DESC').fetchone())";
    let read = std::process::Command::new("python3").args(["-c", line]).arg(home.path().join("store.db")).output();
    std::fs::write(home.path().join("audit.head"), read.expect("python3 runs").stdout).expect("it can be written");
    let refused = home.refused(&["audit", "verify"], "");
    assert!(refused.contains("was not written by this host") && refused.contains("--head"), "{refused}");
    // An empty trail without a head is not accepted either.
    let home = scene();
    change(&home, "DELETE FROM audit;");
    std::fs::remove_file(home.path().join("audit.head")).expect("it is there");
    assert!(home.refused(&["audit", "verify"], "").contains("it was removed"));
    assert!(tampered("INSERT INTO audit SELECT max(number) + 1, text, digest FROM audit;").contains("is not as"));
}

#[test]
fn a_head_noted_elsewhere_detects_a_restored_store() {
    let home = scene();
    let copy = |from: &str, to: &str| {
        let at = |name: &str| -> PathBuf { home.path().join(name) };
        std::fs::copy(at(from), at(to)).expect("it can be copied");
    };
    copy("store.db", "store.then");
    copy("audit.head", "head.then");
    home.run(&["identity", "add", "mallory", "--no-password"], "");
    let verified = home.run(&["audit", "verify"], "");
    let head = verified.lines().last().expect("a head").to_owned();
    home.run(&["audit", "verify", "--head", &head], "");
    copy("store.then", "store.db");
    copy("head.then", "audit.head");
    home.run(&["audit", "verify"], "");
    let refused = home.refused(&["audit", "verify", "--head", &head], "");
    assert!(refused.contains("cut off at the end"), "{refused}");
    assert!(home.refused(&["audit", "verify", "--head", "nonsense"], "").contains("is not the head of a trail"));
}

#[test]
fn segments_verify_alone_and_with_the_kept_lines() {
    let home = scene();
    let file = |name: &str| home.path().join(name).display().to_string();
    let (all, one, two) = (file("all"), file("one"), file("two"));
    let before = lines(&home, "").len();
    let said = home.run(&["audit", "export", &all], "");
    assert!(said.contains(&format!("lines 1 to {before}")), "{said}");
    assert!(home.refused(&["audit", "export", &all], "").contains("it exists already"));
    assert!(
        home.refused(&["audit", "prune", "--keep", "1 KiB"], "").contains("--export"),
        "not without a word about it"
    );
    assert!(home.refused(&["audit", "prune", "--keep", "soon", "--discard"], "").contains("90 days"));
    assert!(home.run(&["audit", "prune", "--keep", "1 year", "--discard"], "").contains("nothing is older"));
    home.run(&["audit", "prune", "--keep", "1 KiB", "--export", &one], "");
    // A running host does the same.
    let host = home.start();
    let home = &host.home;
    call(&host, "alice", "wrong");
    home.run(&["audit", "prune", "--keep", "1 KiB", "--export", &two], "");
    let verified = home.run(&["audit", "verify", "--file", &one, "--file", &two], "");
    assert!(verified.contains("(those before were dropped)") && !verified.contains("missing"), "{verified}");
    let pruned = lines(home, "audit.pruned");
    assert!(!pruned.is_empty() && pruned.iter().all(|line| line.contains("by=\"a command of uid ")), "{pruned:?}");
    // A segment is missing, or was changed.
    let refused = home.refused(&["audit", "verify", "--file", &one], "");
    assert!(refused.contains("are neither in these files"), "{refused}");
    let text = std::fs::read_to_string(&two).expect("a segment");
    std::fs::write(&two, text.replace("alice", "mallo")).expect("it can be written");
    let refused = home.refused(&["audit", "verify", "--file", &one, "--file", &two], "");
    assert!(refused.contains("two, line ") && refused.contains("is not as written"), "{refused}");
}

#[test]
fn the_trails_anchor_cannot_be_moved_without_the_key() {
    for begins in ["audit.head", "made up"] {
        let home = scene();
        let sealed = match begins {
            "audit.head" => std::fs::read_to_string(home.path().join("audit.head")).expect("a head").trim().to_owned(),
            _ => format!("5 {} {}", "0".repeat(64), "1".repeat(64)),
        };
        let number = sealed.split(' ').next().expect("a number");
        change(
            &home,
            &format!(
                "DELETE FROM audit WHERE number <= {number}; INSERT INTO meta VALUES ('audit anchor', '{sealed}');"
            ),
        );
        let refused = home.refused(&["audit", "verify"], "");
        assert!(refused.contains("was not written by this host"), "{begins}: {refused}");
    }
}

#[test]
fn audit_keep_archives_what_exceeds_it() {
    let home = scene();
    home.configure(|config| format!("{config}\n[audit]\nkeep = \"1 KiB\"\narchive = \"old\"\n"));
    let mut host = home.start();
    host.wait_for("old lines of the audit trail are dropped");
    let segments: Vec<PathBuf> = std::fs::read_dir(host.home.path().join("old"))
        .expect("the archive")
        .map(|entry| entry.expect("it can be listed").path())
        .collect();
    assert_eq!(segments.len(), 1, "{segments:?}");
    host.home.run(&["audit", "verify", "--file", &segments[0].display().to_string()], "");
    assert_eq!(host.terminate(), Some(0));
    let home = host.into_home();
    for (wrong, said) in [("keep = \"soon\"", "90 days"), ("archive = \"old\"", "without [audit] keep")] {
        home.configure(|config| {
            let before = config.split("\n[audit]").next().expect("what is before");
            format!("{before}\n[audit]\n{wrong}\n")
        });
        let refused = home.refused(&["run"], "");
        assert!(refused.contains("[audit]") && refused.contains(said), "{refused}");
    }
}
