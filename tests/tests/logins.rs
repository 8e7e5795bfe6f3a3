//! Ways to log in: by password, by key, by token; in plaintext on one machine, and over TLS.

use std::path::Path;
use std::process::Command;

use system_tests::host::{TestHome, TestHost};
use system_tests::python;

/// A host where alice has a password, keys of three kinds and a token, and TLS certificates exist.
fn scene() -> (TestHost, String, Vec<String>) {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.identity("bob", "bob-pw", &["todo"]);
    home.install("todo");
    home.run(&["tls", "init"], "");
    let files = ["ed25519", "ecdsa", "rsa"].map(|kind| {
        let file = home.path().join(format!("id_{kind}"));
        make_key(kind, &file);
        home.run(&["pubkey", "add", "alice", &format!("{}.pub", file.display())], "");
        file.display().to_string()
    });
    let token = home.run(&["token", "new", "alice", "--label", "ci", "--expires", "90d"], "");
    let host = home.start_with(&["--listen-tls", "127.0.0.1:0"], &[]);
    (host, token, files.to_vec())
}

/// After a restart of the host, all of a user's clients log in at once: that is no guessing.
#[test]
fn concurrent_right_passwords_all_get_in_and_guesses_do_not() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let host = home.start();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
    let all = |password: &'static str, count: usize| {
        runtime.block_on(async {
            let one = async move |address| {
                let stream = tokio::net::TcpStream::connect(address).await.expect("the door is open");
                let client = pb::client::Client::new(stream).await.expect("it speaks PB");
                client.login_password("alice/todo", password, None).await
            };
            let each: Vec<_> = (0..count).map(|_| tokio::task::spawn(one(host.address()))).collect();
            let mut said = Vec::new();
            for one in each {
                said.push(one.await.expect("it ends").map(drop).map_err(|error| error.to_string()));
            }
            said
        })
    };
    let said = all("alice-pw", 15);
    assert!(said.iter().all(Result::is_ok), "{said:?}");
    let said = all("wrong", 15);
    let looked_at = said.iter().filter(|said| said.as_ref().is_err_and(|why| !why.contains("too many"))).count();
    assert!(said.iter().all(Result::is_err) && looked_at == 3, "{said:?}");
}

/// Keys in OpenSSH's format, made by the library that conch uses: this machine need not have OpenSSH.
fn make_key(kind: &str, file: &Path) {
    let program = "
import sys
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.hazmat.primitives import serialization as s
kind, file = sys.argv[1:]
key = {
    'ed25519': ed25519.Ed25519PrivateKey.generate,
    # Always the same: this library pads what needs none, in half of all keys, and ssh-key 0.6.7 does not take that.
    'ecdsa': lambda: ec.derive_private_key(int('8b' * 32, 16), ec.SECP256R1()),
    'rsa': lambda: rsa.generate_private_key(65537, 2048),
}[kind]()
with open(file, 'wb') as out:
    out.write(key.private_bytes(s.Encoding.PEM, s.PrivateFormat.OpenSSH, s.NoEncryption()))
with open(file + '.pub', 'wb') as out:
    out.write(key.public_key().public_bytes(s.Encoding.OpenSSH, s.PublicFormat.OpenSSH) + b' ' + kind.encode() + b'\\n')
";
    let made = Command::new(python::python()).args(["-c", program, kind]).arg(file).output().expect("python runs");
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}

#[test]
fn twisted_logs_in_by_password_key_and_token() {
    let (mut host, token, files) = scene();
    let (port, tls) = (host.port(), host.tls_port());
    let ca = host.home.path().join("tls/ca.pem").display().to_string();
    let mut arguments: Vec<&str> = vec![&port, &tls, &ca, &token];
    arguments.extend(files.iter().map(String::as_str));
    assert!(python::twisted("logins.py", &arguments).contains("all ways lead in"));
}

#[test]
fn the_shell_logs_in_by_password_key_and_token() {
    let (mut host, token, files) = scene();
    let ca = host.home.path().join("tls/ca.pem").display().to_string();
    let (plain, tls) = (host.port(), host.tls_port());
    for (port, over) in [(plain, &[][..]), (tls, &["--tls", "--ca", &ca])] {
        let target = format!("alice@localhost:{port}/todo");
        let call = |with: &[&str], input: &str| {
            let arguments: Vec<&str> = ["call", &target, "list"].iter().chain(over).chain(with).copied().collect();
            host.home.run_with(&arguments, input)
        };
        for (with, input) in [(&["--password-stdin"][..], "alice-pw"), (&["--token-stdin"], token.as_str())] {
            let output = call(with, input);
            assert!(output.status.success(), "{with:?}: {}", String::from_utf8_lossy(&output.stderr));
        }
        for file in &files[..2] {
            let output = call(&["--key", file], "");
            assert!(output.status.success(), "{file}: {}", String::from_utf8_lossy(&output.stderr));
        }
        let refused = call(&["--token-stdin"], "credhost_nonsense");
        assert!(String::from_utf8_lossy(&refused.stderr).contains("the host refused the login of alice"));
        if over.is_empty() {
            continue;
        }
        let untrusted = host.home.refused(&["call", &target, "list", "--tls", "--password-stdin"], "alice-pw");
        assert!(untrusted.contains("is not trusted") && untrusted.contains("--ca"), "{untrusted}");
    }
    host.home.run(&["pubkey", "remove", "alice", "ecdsa"], "");
    host.home.run(&["token", "remove", "alice", "ci"], "");
    let target = format!("alice@localhost:{}/todo", host.port());
    assert!(host.home.refused(&["call", &target, "list", "--key", &files[1]], "").contains("refused the login"));
    assert!(host.home.refused(&["call", &target, "list", "--token-stdin"], &token).contains("refused the login"));
    assert!(host.home.run_with(&["call", &target, "list", "--key", &files[0]], "").status.success());
    let rsa = host.home.refused(&["call", &target, "list", "--key", &files[2]], "");
    assert!(rsa.contains("cannot sign with") && rsa.contains("Ed25519"), "{rsa}");
}

#[test]
fn a_new_certificate_is_taken_up_while_the_host_runs() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    home.run(&["tls", "init", "--name", "somewhere.else"], "");
    let mut host = home.start_with(&["--listen-tls", "127.0.0.1:0"], &[]);
    let ca = host.home.path().join("tls/ca.pem").display().to_string();
    let target = format!("alice@localhost:{}/todo", host.tls_port());
    let call = ["call", &target, "list", "--tls", "--ca", &ca, "--password-stdin"];
    assert!(host.home.refused(&call, "alice-pw").contains("has a certificate for other names"), "it is another's name");
    host.home.run(&["tls", "init", "--name", "localhost"], "");
    host.wait_for("a new certificate is used from now on");
    assert_eq!(host.home.run(&call, "alice-pw"), "[]");
    std::fs::write(host.home.path().join("tls/cert.pem"), "nonsense").expect("it can be written");
    host.wait_for("the new certificate cannot be used yet; the old one stays");
    assert_eq!(host.home.run(&call, "alice-pw"), "[]");
}

#[test]
fn turning_stock_login_off_erases_what_it_needs() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    assert!(home.run(&["identity", "show", "alice"], "").contains("stock PB login"));
    home.configure(|text| text.replace("stock_login = true", "stock_login = false"));
    let mut host = home.start();
    host.wait_for("were erased; identities that had one: 1");
    assert!(!host.home.run(&["identity", "show", "alice"], "").contains("stock PB login"));
    let exported = host.home.run(&["identity", "export"], "");
    assert!(exported.contains("$argon2id$") && !exported.contains("verifier"), "{exported}");
    let target = format!("alice@localhost:{}/todo", host.port());
    assert_eq!(host.home.run(&["call", &target, "list", "--password-stdin"], "alice-pw"), "[]");
    host.home.run(&["identity", "password", "alice", "--password-stdin"], "other-pw");
    assert!(!host.home.run(&["identity", "export"], "").contains("verifier"));
    assert_eq!(host.home.run(&["call", &target, "list", "--password-stdin"], "other-pw"), "[]");
}

#[test]
fn a_cheaply_hashed_password_is_rehashed_at_login() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    home.configure(|text| text.replace("passes = 2", "passes = 3"));
    let host = home.start();
    let target = format!("alice@localhost:{}/todo", host.port());
    assert!(host.home.run(&["identity", "export"], "").contains("t=2,"));
    assert_eq!(host.home.run(&["call", &target, "list", "--password-stdin"], "alice-pw"), "[]");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while !host.home.run(&["identity", "export"], "").contains("t=3,") {
        assert!(std::time::Instant::now() < deadline, "it is not hashed anew");
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    assert_eq!(host.home.run(&["call", &target, "list", "--password-stdin"], "alice-pw"), "[]");
}

#[test]
fn master_key_replacement_keeps_everybody_logged_in() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let before = std::fs::read(home.path().join("master.key")).expect("it is there");
    let host = home.start();
    host.home.run(&["master-key", "replace"], "");
    let after = std::fs::read(host.home.path().join("master.key")).expect("it is there");
    assert!(after.len() == 32 && after != before);
    let listed = python::twisted("stock.py", &[&host.port(), "alice", "alice-pw"]);
    assert!(listed.contains("[]"), "{listed}");
    let home = host.into_home();
    assert!(home.run(&["doctor"], "").contains("master.key decrypts all secrets"));
    let host = home.start();
    assert!(python::twisted("stock.py", &[&host.port(), "alice", "alice-pw"]).contains("[]"));
    host.home.run(&["audit", "verify"], "");
}

#[test]
fn master_key_replacements_lose_no_concurrent_password() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    let record = |name: &str| {
        home.identity(name, "a-password", &["todo"]);
        let export = home.run(&["identity", "export"], "");
        export.lines().find(|line| line.contains(&format!("\"{name}\""))).expect("it is exported").to_owned()
    };
    let sealed = record("sealed");
    let host = home.start();
    let home = &host.home;
    std::thread::scope(|scope| {
        let replacing: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..5 {
                        // Only one replacement runs at a time: the others are refused as already in progress.
                        let output = home.run_with(&["master-key", "replace"], "");
                        let error = String::from_utf8_lossy(&output.stderr).into_owned();
                        assert!(output.status.success() || error.contains("being replaced already"), "{error}");
                    }
                })
            })
            .collect();
        for number in 0.. {
            if replacing.iter().all(std::thread::ScopedJoinHandle::is_finished) {
                assert!(number > 0);
                break;
            }
            home.run(&["identity", "add", &format!("new{number}"), "--password-stdin"], "a-password");
            home.run(&["identity", "password", "sealed", "--password-stdin"], "a-password");
        }
    });
    assert_eq!(std::fs::read(home.path().join("master.key")).expect("it is there").len(), 32);
    assert!(home.run(&["doctor"], "").contains("master.key decrypts all secrets"));
    // A verifier that was sealed under a key that no longer exists is left out on import: nothing can open it.
    let imported = home.run(&["identity", "import", "-", "--replace"], &sealed);
    assert!(imported.contains("sealed under another master.key"), "{imported}");
}

#[test]
fn a_token_is_not_sent_where_others_can_listen() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let token = home.run(&["token", "new", "alice"], "");
    let host = home.start();
    // An address of this machine, which a command cannot recognise as such.
    let target = format!("alice@0.0.0.0:{}/todo", host.port());
    let output = host.home.run_with(&["call", &target, "list", "--token-stdin"], &token);
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && error.contains("was not sent") && error.contains("--tls"), "{error}");
    assert!(!host.home.run(&["audit", "show"], "").contains("login "), "nobody has asked the host");
}

#[test]
fn failures_survive_restarts_and_unlock_clears_them() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    let call = |host: &TestHost, password: &str| {
        let target = format!("alice@127.0.0.1:{}/todo", host.port());
        let output = host.home.run_with(&["call", &target, "list", "--password-stdin"], password);
        String::from_utf8_lossy(&[output.stdout, output.stderr].concat()).trim().to_owned()
    };
    let fail = |host: &TestHost| {
        // Until the wait is longer than a slow machine needs for the steps that follow.
        let long = |said: &str| {
            let wait = said.split("try again in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse().ok());
            wait.is_some_and(|wait: u64| wait >= 4)
        };
        loop {
            let said = call(host, "wrong");
            assert!(said.contains("refused the login") || said.contains("too many failed logins"), "{said}");
            if long(&said) {
                break;
            }
        }
        assert!(call(host, "alice-pw").contains("too many failed logins"), "the right one has to wait, too");
    };
    let mut host = home.start();
    fail(&host);
    assert!(host.home.run(&["identity", "show", "alice"], "").contains("in a row"));
    host.home.run(&["identity", "unlock", "alice"], "");
    assert_eq!(call(&host, "alice-pw"), "[]");
    // From here on she has logged in before, so her address has a counter of its own.
    fail(&host);
    host.terminate();
    let mut host = host.into_home().start();
    assert!(call(&host, "alice-pw").contains("too many failed logins"), "a restart is no pardon");
    host.terminate();
    let home = host.into_home();
    home.run(&["identity", "unlock", "alice"], "");
    assert_eq!(call(&home.start(), "alice-pw"), "[]");
}

#[test]
fn a_token_that_is_not_the_targets_calls_nothing() {
    let home = TestHome::new();
    home.make();
    for name in ["alice", "bob"] {
        home.identity(name, "a-pw", &["todo"]);
    }
    home.install("todo");
    let host = home.start();
    let token = host.home.run(&["token", "new", "alice", "--label", "ci"], "");
    let target = |user: &str| format!("{user}@localhost:{}/todo", host.port());
    let refused = host.home.refused(&["call", &target("bob"), "list", "--token-stdin"], &token);
    assert!(refused.contains("the token is alice's, not bob's"), "{refused}");
    assert_eq!(host.home.run(&["call", &target("alice"), "list", "--token-stdin"], &token), "[]");
}

#[test]
fn behind_a_proxy_on_the_same_machine_nobody_is_private() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["todo"]);
    home.install("todo");
    home.configure(|text| text.replace("[pb]", "[pb]\nloopback_is_private = false"));
    let host = home.start();
    let target = format!("alice@localhost:{}/todo", host.port());
    let token = host.home.run(&["token", "new", "alice", "--label", "ci"], "");
    let refused = host.home.refused(&["call", &target, "list", "--token-stdin"], &token);
    assert!(refused.contains("only over TLS"), "{refused}");
}
