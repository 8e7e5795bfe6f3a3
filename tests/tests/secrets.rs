//! Secrets stay where they belong: they appear in no log, no error, no file, and not in the audit trail.

use std::path::Path;

use system_tests::host::TestHome;
use system_tests::python;

/// Planted secrets: these letters appear nowhere else.
const PASSWORD: &str = "zebra-Quartz-vixen-7341";
const WRONG: &str = "wrong-Fjord-waltz-9182";

fn files(folder: &Path, into: &mut Vec<std::path::PathBuf>) {
    for entry in std::fs::read_dir(folder).expect("it can be read").flatten() {
        if entry.path().is_dir() { files(&entry.path(), into) } else { into.push(entry.path()) }
    }
}

#[test]
fn planted_secrets_appear_in_no_output_or_file() {
    let home = TestHome::new();
    home.make();
    let mut said = Vec::new();
    let mut keep = |output: std::process::Output| {
        said.push(String::from_utf8_lossy(&output.stdout).into_owned());
        said.push(String::from_utf8_lossy(&output.stderr).into_owned());
    };
    home.run(&["identity", "add", "alice", "--password-stdin"], PASSWORD);
    home.run(&["key", "add", "alice", "my service"], "");
    home.install("my-service");
    let mut host = home.start_with(&[], &[("CREDHOST_LOG", "trace")]);
    let token = host.home.run(&["token", "new", "alice"], "");
    let target = format!("alice@127.0.0.1:{}/my service", host.port());
    for (with, input) in [
        ("--password-stdin", PASSWORD),
        ("--password-stdin", WRONG),
        ("--token-stdin", &*token),
        ("--token-stdin", WRONG),
    ] {
        keep(host.home.run_with(&["call", &target, "none", with], input));
    }
    // Logins by Twisted, and a panic in the service.
    keep(host.home.run_with(&["call", &target, "bump_and_panic", "--password-stdin"], PASSWORD));
    python::twisted("plant.py", &[&host.port(), "alice", PASSWORD, WRONG]);
    // Refused by the rules; and everything that is listed.
    keep(host.home.run_with(&["identity", "add", "bob/x", "--password-stdin"], PASSWORD));
    keep(host.home.run_with(&["identity", "show", "alice", "--json"], ""));
    keep(host.home.run_with(&["identity", "list", "--json"], ""));
    keep(host.home.run_with(&["session", "list", "--json"], ""));
    keep(host.home.run_with(&["audit", "show", "--json"], ""));
    host.terminate();
    said.push(host.log());
    let home = host.into_home();
    let mut paths = Vec::new();
    files(&home.path(), &mut paths);
    assert!(paths.iter().any(|path| path.ends_with("store.db")));
    for secret in [PASSWORD, WRONG, token.as_str()] {
        for text in &said {
            assert!(!text.contains(secret), "{secret} was said: {text}");
        }
        for path in &paths {
            let bytes = std::fs::read(path).expect("it can be read");
            let found = bytes.windows(secret.len()).any(|window| window == secret.as_bytes());
            assert!(!found, "{secret} is in {}", path.display());
        }
    }
    // The control: the search can find something.
    assert!(said.iter().any(|text| text.contains("wrong password")));
}

#[test]
fn files_with_secrets_are_refused_if_others_can_read_them() {
    use std::os::unix::fs::PermissionsExt;
    let home = TestHome::new();
    home.make();
    home.run(&["tls", "init"], "");
    let key = home.path().join("tls/key.pem");
    assert_eq!(std::fs::metadata(&key).expect("it is there").permissions().mode() & 0o777, 0o600);
    std::fs::set_permissions(&key, std::fs::Permissions::from_mode(0o640)).expect("it is ours");
    let refused = home.refused(&["run", "--listen", "127.0.0.1:0", "--listen-tls", "127.0.0.1:0"], "");
    assert!(refused.contains("key.pem (mode 640)"), "{refused}");
    for file in ["store.db", "master.key"] {
        let path = home.path().join(file);
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o604)).expect("it is ours");
        let refused = home.refused(&["identity", "list"], "");
        assert!(refused.contains("other users can access") && refused.contains("chmod 600"), "{refused}");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).expect("it is ours");
    }
}
