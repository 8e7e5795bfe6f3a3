//! Users with accounts elsewhere: their files are imported, and they log in with their existing passwords.

use std::path::PathBuf;

use system_tests::host::TestHome;
use system_tests::python;

/// Files as their own programs write them, and Twisted's reading of its own file.
fn made() -> (tempfile::TempDir, String) {
    let folder = tempfile::tempdir().expect("a folder");
    let read = python::twisted("importing.py", &[&folder.path().display().to_string()]);
    (folder, read)
}

/// A file, the options to import it, the identities that are imported, and the refused entries with their reasons.
struct Case {
    file: &'static str,
    format: &'static [&'static str],
    people: &'static [&'static str],
    refused: &'static [&'static str],
}

const CASES: [Case; 4] = [
    Case {
        file: "htpasswd",
        format: &[],
        people: &["hanna"],
        refused: &[
            "april: the hash of the password cannot be used: Apache's md5 (apr1)",
            "des: the hash of the password cannot be used: crypt(3)'s oldest",
        ],
    },
    Case {
        file: "shadow",
        format: &[],
        people: &["sven"],
        refused: &["yes: the hash of the password cannot be used: yescrypt"],
    },
    Case {
        file: "people.ldif",
        format: &[],
        people: &["lena", "ludwig"],
        refused: &["uid=sally,dc=example,dc=org: userPassword is {SSHA}"],
    },
    Case { file: "passwords.txt", format: &["--format", "filepassworddb"], people: &["tina", "tom"], refused: &[] },
];

#[test]
fn imported_identities_log_in_with_their_old_passwords() {
    let (folder, twisted) = made();
    assert_eq!(twisted, "tina tina-pw\ntom tom-pw\n", "as Twisted reads its own file");
    let home = TestHome::new();
    home.make();
    home.install("todo");
    let host = home.start();
    let path = |file: &str| -> PathBuf { folder.path().join(file) };
    for Case { file, format, people, refused } in CASES {
        let path = path(file).display().to_string();
        let import = |more: &[&str]| {
            let arguments = [&["identity", "import", &path, "--key", "todo"], format, more].concat();
            let done = host.home.run_with(&arguments, "");
            let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
            assert_eq!(done.status.success(), refused.is_empty(), "{file}: {}", text(&done.stderr));
            (text(&done.stdout), text(&done.stderr))
        };
        // First a dry run, which changes nothing.
        let before = host.home.run(&["identity", "list"], "");
        let (would, why) = import(&["--dry-run"]);
        assert_eq!(host.home.run(&["identity", "list"], ""), before, "{file}");
        for person in people {
            assert!(
                would.lines().any(|line| line.contains(&format!(": {person}: ")) && line.contains("todo/")),
                "{file}: {would}"
            );
        }
        refused.iter().for_each(|words| assert!(why.contains(words), "{file}: {words} in {why}"));
        let (did, why) = import(&[]);
        assert_eq!(would.contains("skipped"), did.contains("skipped"), "{file}: {would} {did}");
        refused.iter().for_each(|words| assert!(why.contains(words), "{file}: {words} in {why}"));
        for person in people {
            let target = format!("{person}@{}/todo", host.address());
            let call = |password: &str| host.home.run_with(&["call", &target, "list", "--password-stdin"], password);
            assert!(!call("wrong").status.success(), "{person}");
            let done = call(&format!("{person}-pw"));
            assert!(done.status.success(), "{person}: {}", String::from_utf8_lossy(&done.stderr));
        }
    }
    // A locked account is imported as a disabled identity.
    let shown = host.home.run(&["identity", "show", "lock"], "");
    assert!(shown.contains("disabled"), "{shown}");
    // The host replaces a foreign hash by its own once its owner has logged in.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    loop {
        let export = host.home.run(&["identity", "export"], "");
        let old: Vec<&str> = export.lines().filter(|line| line.contains("\"$2")).collect();
        if old.len() == 1 && old[0].contains("\"lock\"") {
            break;
        }
        assert!(std::time::Instant::now() < deadline, "{old:?}");
    }
    let target = format!("hanna@{}/todo", host.address());
    assert!(host.home.run_with(&["call", &target, "list", "--password-stdin"], "hanna-pw").status.success());
}

#[test]
fn plaintext_imports_can_use_twisteds_own_login() {
    let (folder, _) = made();
    let home = TestHome::new();
    home.make();
    home.install("todo");
    let file = folder.path().join("passwords.txt").display().to_string();
    let weak = home.run(&["identity", "import", &file, "--format", "filepassworddb", "--key", "todo"], "");
    assert!(weak.starts_with("2 added"), "{weak}");
    let shown = home.run(&["identity", "show", "tina"], "");
    assert!(shown.contains("stock PB login") && shown.contains("possible"), "{shown}");
}

#[test]
fn import_needs_a_clear_format_and_refuses_duplicates() {
    let home = TestHome::new();
    home.make();
    let unknown = home.refused(&["identity", "import", "-"], "alice:secret\n");
    assert!(unknown.contains("the file's format is not clear") && unknown.contains("filepassworddb"), "{unknown}");
    let twice = "{\"name\": \"a\"}\n{\"name\": \"a\"}\n";
    for more in [&["--dry-run"][..], &[]] {
        let done = home.run_with(&[&["identity", "import", "-"], more].concat(), twice);
        let said = String::from_utf8_lossy(&done.stderr);
        assert!(
            !done.status.success() && said.contains("line 2: a: it is there twice; line 1 counts"),
            "{more:?}: {said}"
        );
    }
    let wrong = home.refused(&["identity", "import", "-"], "{\"name\": \"b\"}\n{\"name\": \"c\", \"keys\": 5}\n");
    assert!(wrong.contains("line 2: column 23: 5 stands where a list is expected"), "{wrong}");
    let json: serde_json::Value =
        serde_json::from_str(&home.run(&["identity", "import", "-", "--dry-run", "--json"], "{\"name\": \"d\"}"))
            .expect("one value");
    assert_eq!((json["added"].as_u64(), json["dry_run"].as_bool()), (Some(1), Some(true)), "{json}");
    assert!(home.refused(&["identity", "show", "d"], "").contains("no identity"));
}

#[test]
fn a_dry_run_needs_no_home_and_lists_only_accepted_entries() {
    let home = TestHome::new();
    let file = "alice:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\nbob:$apr1$r31.....$HqJZimcKQFAMYayBlzkrA/\n";
    let done = home.run_with(&["identity", "import", "-", "--dry-run"], file);
    let (said, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(said.contains("line 1: alice: a bcrypt hash") && !said.contains("bob"), "{said}");
    assert!(why.contains("line 2: bob: ") && why.contains("1 would be refused"), "{why}");
    assert!(!home.path().exists(), "it leaves nothing behind");
}

#[test]
fn importing_a_password_keeps_the_rest_and_disabled_stays_so() {
    let home = TestHome::new();
    home.make();
    home.identity("alice", "old", &["todo"]);
    home.run(&["token", "new", "alice", "--label", "ci"], "");
    home.run(&["identity", "disable", "alice"], "");
    let file = "alice:$2y$05$c4WoMPo3SXsafkva.HHa6uXQZWr7oboPiC2bT/r7q1BB8I2s0BRqC\n";
    assert!(home.run(&["identity", "import", "-", "--replace"], file).contains("1 replaced"));
    let shown = home.run(&["identity", "show", "alice"], "");
    assert!(shown.contains("disabled") && shown.contains("todo/alice") && shown.contains("ci, since"), "{shown}");
    assert_eq!(shown.matches("password").count(), 2, "its kind and its label, once: {shown}");
    assert!(home.run(&["audit", "show", "--with", "alice"], "").contains("identity.replaced identity=alice"));
}

#[test]
fn an_entry_that_cannot_be_imported_does_not_stop_the_others() {
    let home = TestHome::new();
    home.make();
    let file = format!("alice:alice-pw\nbob:{}\ncarol:carol-pw\n", "x".repeat(1100));
    for more in [&["--dry-run"][..], &[]] {
        let arguments = [&["identity", "import", "-", "--format", "filepassworddb", "--key", "tood"], more].concat();
        let done = home.run_with(&arguments, &file);
        let (said, why) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
        assert!(said.contains("2 added") || said.contains("2 would be added"), "{said}");
        assert!(why.contains("line 2: bob: the password has more than 1024 bytes"), "{why}");
        assert!(why.contains("there is no service \"tood\" yet"), "{why}");
    }
    let unseen = home.refused(&["identity", "import", "-", "--key", "to\u{200b}do"], "{\"name\": \"x\"}");
    assert!(unseen.contains("invisible character, U+200B"), "{unseen}");
}
