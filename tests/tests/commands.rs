//! The commands: with a running host and without one, as text and as JSON.

use system_tests::host::{TestHome, TestHost};

const PASSWORD: &str = "wooden giraffe sings at noon";

#[test]
fn identity_and_key_commands_work_without_a_host() {
    let home = TestHome::new();
    assert!(home.refused(&["identity", "list"], "").contains("there is no home folder"));
    home.run(&["identity", "add", "alice", "--password-stdin"], PASSWORD);
    let again = home.refused(&["identity", "add", "alice", "--password-stdin"], PASSWORD);
    assert!(again.contains("There is already an identity named alice."), "{again}");
    let short = home.refused(&["identity", "add", "bob", "--password-stdin"], "short");
    assert!(short.contains("the password has 5 characters; it needs 15"), "{short}");
    let slash = home.refused(&["identity", "add", "a/b", "--no-password"], "");
    assert!(slash.contains("cannot be the name of an identity: it has a `/`"), "{slash}");
    home.run(&["key", "add", "alice", "todo"], "");
    home.run(&["key", "add", "alice", "my service", "work"], "");
    assert_eq!(home.run(&["key", "list", "alice"], ""), "my service/work\ntodo/alice");
    let none = home.refused(&["key", "remove", "alice", "chat"], "");
    assert!(none.contains("alice has no key for service chat, perspective alice"), "{none}");
    home.run(&["key", "remove", "alice", "todo"], "");
    let shown: serde_json::Value =
        serde_json::from_str(&home.run(&["identity", "show", "alice", "--json"], "")).unwrap();
    assert_eq!(shown["keys"], serde_json::json!([{ "service": "my service", "perspective": "work" }]));
    assert_eq!(shown["password"], true);
    let nobody = home.refused(&["identity", "show", "carol"], "");
    assert!(nobody.contains("there is no identity named carol") && nobody.contains("identity list"), "{nobody}");
    home.run(&["identity", "password", "alice", "--clear"], "");
    assert!(home.run(&["identity", "list"], "").contains("no password"));
    home.run(&["identity", "remove", "alice"], "");
    assert!(home.run(&["identity", "list"], "").contains("nobody yet"));
}

#[test]
fn identity_and_key_commands_act_at_once_on_a_running_host() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    let host = home.start();
    let target = format!("alice@{}/todo", host.address());
    let list = |password: &str| host.home.run_with(&["call", &target, "list", "--password-stdin"], password);
    assert!(!list("one").status.success());
    host.home.run(&["identity", "add", "alice", "--password-stdin"], "one");
    let keyless = host.home.refused(&["call", &target, "list", "--password-stdin"], "one");
    assert!(keyless.contains("alice has no key to") && keyless.contains("credhost key add alice todo"), "{keyless}");
    host.home.run(&["key", "add", "alice", "todo"], "");
    assert!(list("one").status.success());
    host.home.run(&["identity", "password", "alice", "--password-stdin"], "two");
    let wrong = host.home.refused(&["call", &target, "list", "--password-stdin"], "one");
    assert!(wrong.contains("the host refused the login of alice: wrong name or password"), "{wrong}");
    assert!(list("two").status.success());
    host.home.run(&["identity", "remove", "alice"], "");
    assert!(!list("two").status.success());
}

#[test]
fn identities_in_an_old_configuration_move_into_the_store() {
    let home = TestHome::new();
    home.make();
    let config = home.path().join("credhost.toml");
    let identities = "[identity.alice]\nkeys = [\"todo/alice\"]\n\n[identity.bob]\ndisabled = true\n";
    home.configure(|text| format!("# my own words\n{text}\n{identities}"));
    assert_eq!(home.run(&["key", "list", "alice"], ""), "todo/alice");
    assert!(home.run(&["identity", "list"], "").contains("bob       disabled"));
    let text = std::fs::read_to_string(&config).unwrap();
    assert!(
        text.contains("# my own words") && text.contains("# The address of Perspective Broker without TLS"),
        "{text}"
    );
    assert!(!text.contains("identity.alice") && !text.contains("identity.bob"), "{text}");
}

#[test]
fn files_that_others_could_read_are_refused() {
    use std::os::unix::fs::PermissionsExt;
    for file in ["credhost.toml", "master.key", "store.db", "."] {
        let home = TestHome::new();
        home.make();
        std::fs::set_permissions(home.path().join(file), std::fs::Permissions::from_mode(0o755)).unwrap();
        let refused = home.refused(&["run", "--listen", "127.0.0.1:0"], "");
        assert!(refused.contains("(mode 755)") && refused.contains("chmod"), "{file}: {refused}");
    }
}

#[test]
fn a_configuration_error_names_the_file_and_the_setting() {
    let home = TestHome::new();
    home.make();
    home.configure(|text| text.replace("listen =", "lisen ="));
    let refused = home.refused(&["run"], "");
    assert!(refused.contains("credhost.toml") && refused.contains("lisen"), "{refused}");
}

#[test]
fn plaintext_is_served_to_this_machine_only() {
    let home = TestHome::new();
    home.make();
    let refused = home.refused(&["run", "--listen", "0.0.0.0:0"], "");
    assert!(refused.contains("others can reach") && refused.contains("--plaintext"), "{refused}");
}

#[test]
fn wrong_usage_has_exit_code_2_and_a_wrong_target_1() {
    let home = TestHome::new();
    assert_eq!(home.run_with(&["frobnicate"], "").status.code(), Some(2));
    let odd = home.refused(&["call", "alice", "list"], "");
    assert!(odd.contains("names no perspective") && odd.contains("alice@127.0.0.1:8787/todo"), "{odd}");
}

#[test]
fn answers_are_json_on_request() {
    let host = TestHost::with(&["my-service"]);
    let target = format!("alice@{}/my service", host.address());
    let call = |rest: &[&str]| {
        let arguments: Vec<&str> =
            ["call", &target].iter().chain(rest).copied().chain(["--json", "--password-stdin"]).collect();
        host.home.run(&arguments, "alice-pw")
    };
    assert_eq!(call(&["add", "2", "b=5"]), "7");
    assert_eq!(call(&["add", "-2"]), "-1");
    assert_eq!(call(&["echo", r#"{"a": [1, null, "x"]}"#]), r#"{"a":[1,null,"x"]}"#);
    assert_eq!(call(&["note"]), r#"{"$class":"golden.Note","state":{"text":"hi","tags":["a","b"]}}"#);
    let types = call(&["types"]);
    for exactly in [
        r#""bytes":{"$bytes":"Ynl0ZXM="}"#,
        r#""tuple":{"$tuple":[1,2]}"#,
        r#""set":{"$set":[1]}"#,
        r#""big":{"$int":"-1000000000000000000000000000000"}"#,
        r#""date":{"$date":"2020 1 2"}"#,
        r#""decimal":{"$decimal":"-125e-2"}"#,
    ] {
        assert!(types.contains(exactly), "{exactly} in {types}");
    }
}

#[test]
fn lines_that_cannot_be_imported_are_named_and_skipped() {
    let home = TestHome::new();
    home.make();
    home.run(&["identity", "add", "alice", "--no-password"], "");
    home.run(&["token", "new", "alice", "--label", "ci"], "");
    let export = home.run(&["identity", "export"], "");
    let token = export.split("\"token\":\"").nth(1).and_then(|rest| rest.split('"').next()).expect("a digest");
    let key = "\"pubkey\": \"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAILM+rvN+ot98qgEN796jTiQfZfG1KaT0PtFDJ/XFSqti\"";
    let records = [
        "{\"name\": \"good\"}".to_owned(),
        format!("{{\"name\": \"thief\", \"credentials\": [{{\"label\": \"x\", \"token\": \"{token}\"}}]}}"),
        format!(
            "{{\"name\": \"large\", \"credentials\": [{{\"label\": \"x\", \"id\": 18446744073709551615, {key}}}]}}"
        ),
        format!(
            "{{\"name\": \"late\", \"credentials\": [{{\"label\": \"x\", \"expires\": 18446744073709551615, {key}}}]}}"
        ),
        format!("{{\"name\": \"red\", \"credentials\": [{{\"label\": \"\\u001b[31m\", {key}}}]}}"),
        "{\"name\": \"also good\"}".to_owned(),
    ];
    // Together more than fits into one request of the control protocol.
    let many: Vec<String> = (0..2000)
        .map(|number| {
            let credentials: Vec<String> = (0..12).map(|at| format!("{{\"label\": \"{at:0250}\", {key}}}")).collect();
            format!("{{\"name\": \"many{number}\", \"credentials\": [{}]}}", credentials.join(", "))
        })
        .collect();
    let output = home.run_with(&["identity", "import", "-"], &records.join("\n"));
    let (said, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    for (name, why) in [
        ("thief", "its token \"x\" also belongs to another identity"),
        ("large", "its number, or the next one, is too large"),
        ("late", "up to the year 9999"),
        ("red", "it has a control character"),
    ] {
        assert!(error.lines().any(|line| line.contains(name) && line.contains(why)), "{name}: {error}");
    }
    assert!(said.contains("2 added") && error.contains("4 were refused"), "{said} {error}");
    let host = home.start();
    assert!(host.home.run(&["identity", "import", "-"], &many.join("\n")).contains("2000 added"));
    assert!(host.home.refused(&["token", "new", "alice", "--expires", "9000y"], "").contains("year 9999"));
}

#[test]
fn doctor_says_what_is_wrong_though_the_store_cannot_be_opened() {
    use std::os::unix::fs::PermissionsExt;
    let home = TestHome::new();
    home.make();
    home.run(&["tls", "init"], "");
    let said = home.run(&["doctor"], "");
    assert!(said.contains("the store is sound") && said.contains("cert.pem and its key are valid for 39"), "{said}");
    let key = home.path().join("master.key");
    std::fs::rename(&key, home.path().join("elsewhere")).expect("it is there");
    std::fs::set_permissions(home.path().join("audit.head"), std::fs::Permissions::from_mode(0o644))
        .expect("it is ours");
    let output = home.run_with(&["doctor"], "");
    let said = String::from_utf8_lossy(&output.stdout);
    assert_eq!(output.status.code(), Some(1));
    assert!(said.contains("master.key is missing") && said.contains("other users can access"), "{said}");
    assert!(said.contains("the disk has"), "the rest is looked at, too: {said}");
    assert!(!key.exists(), "no other key is made in its place");
}
