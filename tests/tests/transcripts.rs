//! What a person reads who tries the program for the first time, kept word for word in `golden/transcripts`: an
//! operator's commands, an author's first service, clients. Text that differs from run to run is written as <TIME>,
//! <PORT> and so on.
//!
//! If a change of the text is intended: `CREDHOST_WRITE=1 cargo test -p system-tests --test transcripts`, and read the
//! difference.

use std::path::Path;
use std::process::{Command, Stdio};

use pb::client::{Call, Credential, Endpoint, Error, Session, Status};
use regex::Regex;
use system_tests::demo::demo;
use system_tests::host::{TestHome, put};
use system_tests::{build, python, workspace};

/// Substitutes fixed names such as `<TIME>` for text that differs from run to run.
fn replaced(text: &str) -> String {
    let rules = [
        (r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", "<TIME>"),
        (r"127\.0\.0\.1:[1-9]\d*", "127.0.0.1:<PORT>"),
        (r"/[^\s]*/home\b", "<HOME>"),
        (r"/[^\s]*/store.backup", "<FOLDER>/store.backup"),
        (r"\$argon2id\$[^\s]*", "<HASH>"),
        (r"credhost_[A-Za-z0-9_-]{20,}", "<TOKEN>"),
        (r"\b[0-9a-f]{64}\b", "<DIGEST>"),
        (r"\d+(\.\d+)? ?ms\b", "<N> ms"),
        (r"\d+(\.\d+)? ?[KMG]iB\b", "<SIZE>"),
        (r"\b\d+\.\d+ s\b", "<N> s"),
        (r"\bfor \d+ days\b", "for <N> days"),
        (r"uid \d+", "uid <N>"),
        (r"\d+ calls a second", "<N> calls a second"),
        (r"\d+ % of those", "<N> % of those"),
        (r", [\d.]+ at the longest", ", <N> at the longest"),
        (r"[+-]\d+ (resident memory|mappings|threads)", "+<N> $1"),
        (r"/[^\s]*/\.tmp[A-Za-z0-9]+", "<FOLDER>"),
        (r"plugin-api( +)\d+\.\d+\.\d+", "plugin-api${1}<VERSION>"),
        // The number of lines that the trail has by then.
        (r"(?m)^\d+ (<TIME>|<DIGEST>)", "<NUMBER> $1"),
        (r"\d+ lines, all as", "<N> lines, all as"),
        // Limits of this machine.
        (r"(?m)^connections +\d+ ", "connections <N> "),
        (r"(?m)^warning +files and connections .*\n +raise .*\n", ""),
    ];
    let mut text = text.to_owned();
    for (rule, by) in rules {
        text = Regex::new(rule).expect("a rule").replace_all(&text, by).into_owned();
    }
    text
}

/// What was typed, and what the program printed.
struct Transcript(String);

impl Transcript {
    fn new(about: &str) -> Self {
        Self(format!("# {about}\n"))
    }

    /// Types a command. A line of input may follow it, after `<<<`.
    fn types(&mut self, home: &TestHome, line: &str) {
        let (words, input) = line.split_once(" <<< ").unwrap_or((line, ""));
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let output = home.run_with(&arguments, input);
        let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.0 += &format!("\n$ credhost {}\n", replaced(line));
        // The width of its columns depends on the limits of this machine.
        let columns = Regex::new(" {3,}").expect("a rule");
        self.0 +=
            &if line == "limits" { columns.replace_all(&replaced(&said), "  ").into_owned() } else { replaced(&said) };
        for line in replaced(&warned).lines() {
            self.0 += &format!("! {line}\n");
        }
        if let Some(code) = output.status.code().filter(|code| *code != 0) {
            self.0 += &format!("[exit status {code}]\n");
        }
    }

    /// Types a line to a shell in this folder, where `credhost` is in the path. Cargo's output goes where that of the
    /// other authors' crates is.
    fn types_in(&mut self, folder: &Path, line: &str) {
        let path = std::env::var("PATH").unwrap_or_default();
        let program = build::credhost();
        let mut shell = Command::new("sh");
        shell.args(["-c", line]).current_dir(folder).stdin(Stdio::null());
        shell.env("PATH", format!("{}:{path}", program.parent().expect("it is in a folder").display()));
        shell.env("CARGO_TARGET_DIR", system_tests::target().join("authors"));
        shell.env_remove("CREDHOST_HOME").env_remove("CREDHOST_LOG").env_remove("RUSTFLAGS");
        let output = shell.output().expect("a shell");
        let text = |bytes: &[u8]| {
            let text = String::from_utf8_lossy(bytes).replace(&*system_tests::target().to_string_lossy(), "<TARGET>");
            replaced(&text.replace(&*folder.to_string_lossy(), "<FOLDER>"))
        };
        self.0 += &format!("\n$ {}\n{}", text(line.as_bytes()), text(&output.stdout));
        // A library's own threads log in any order.
        for line in text(&output.stderr).lines().filter(|line| !line.starts_with("<TIME>")) {
            self.0 += &format!("! {line}\n");
        }
        if let Some(code) = output.status.code().filter(|code| *code != 0) {
            self.0 += &format!("[exit status {code}]\n");
        }
    }

    fn is_as_reviewed(&self, file: &str) {
        let path = workspace().join("tests/golden/transcripts").join(file);
        if std::env::var_os("CREDHOST_WRITE").is_some() {
            std::fs::write(&path, &self.0).expect("it can be written");
        }
        let kept = std::fs::read_to_string(&path).expect("it is kept");
        let differs = kept.lines().zip(self.0.lines()).find(|(kept, now)| kept != now);
        assert!(kept == self.0, "{file}: {differs:#?}\n{}", self.0);
    }
}

const PASSWORD: &str = "wooden giraffe sings at noon";

#[test]
fn an_operators_first_hour() {
    let home = TestHome::new();
    let mut hour = Transcript::new("An operator's first hour. Lines with ! are on standard error.");
    for line in [
        "doctor",
        "identity list",
        &format!("identity add alice --password-stdin <<< {PASSWORD}"),
        "identity add bob --password-stdin <<< short",
        "identity add alice --no-password",
        &format!("identity add bob --password-stdin <<< {PASSWORD}"),
        "key add alice todo",
        "service list",
        "audit show",
        "doctor",
    ] {
        hour.types(&home, line);
    }
    home.install("todo");
    home.in_the_hosts_process();
    let host = home.start();
    let address = host.address();
    hour.0 += "\n(libtodo.so is copied into the folder, and the host is started)\n";
    for line in [
        "service list",
        "service show todo",
        "describe todo",
        "key add alice tood",
        "key list alice",
        &format!("call alice@{address}/todo add milk --password-stdin <<< {PASSWORD}"),
        &format!("call alice@{address}/todo list --password-stdin <<< {PASSWORD}"),
        &format!("call alice@{address}/todo list --password-stdin <<< wrong"),
        &format!("call bob@{address}/todo list --password-stdin <<< {PASSWORD}"),
        &format!("call alice@{address}/todo fly --password-stdin <<< {PASSWORD}"),
        &format!("call alice@{address}/todo add --password-stdin <<< {PASSWORD}"),
        "token new alice --label ci --expires 90d",
        "token list alice",
        "identity show alice",
        "identity list",
        "session list",
        "service reload todo",
        "service rollback todo",
        "service stop todo",
        "service stop todo",
        "service start todo",
        "service why todo",
        "identity disable alice",
        "identity enable alice",
        "identity unlock carol",
        "identity remove bob",
        "identity show bob",
        "audit show --last 3",
        "audit verify",
        "backup store.backup",
        "limits",
        "reload",
        "tls init --name this.host",
        "doctor",
        "vet nothing.so",
        "frobnicate",
    ] {
        hour.types(&host.home, line);
    }
    hour.is_as_reviewed("operator.txt");
}

#[test]
fn json_output_reads_as_reviewed() {
    let home = TestHome::new();
    let mut hour = Transcript::new("The same for programs: --json.");
    for line in [
        &format!("identity add alice --password-stdin --json <<< {PASSWORD}") as &str,
        "identity add alice --no-password --json",
        "key add alice tood --json",
        "key list alice --json",
        "identity list --json",
        "token new alice --label ci --json",
        "token list alice --json",
        "audit show --last 1 --json",
        "identity import - --dry-run --json <<< {\"name\": \"bob\"}",
        "identity frobnicate --json",
    ] {
        hour.types(&home, line);
    }
    // Numbers of seconds also differ.
    let seconds = Regex::new(r#""(at|created|expires)":\d+(\.\d+)?"#).expect("a rule");
    hour.0 = seconds.replace_all(&hour.0, "\"$1\":<SECONDS>").into_owned();
    hour.is_as_reviewed("json.txt");
}

#[test]
fn help_reads_as_reviewed() {
    let home = TestHome::new();
    let mut hour = Transcript::new("What --help says.");
    for line in
        ["--help", "identity --help", "identity import --help", "audit show --help", "call --help", "describe --help"]
    {
        hour.types(&home, line);
    }
    hour.is_as_reviewed("help.txt");
}

/// The output of a client program that meets each error for the first time.
#[test]
fn a_twisted_programmers_first_hour() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    home.identity("alice", PASSWORD, &["todo"]);
    let host = home.start();
    let program = workspace().join("tests/twisted/first_hour.py");
    let run = Command::new(python::python())
        .args(["-W", "ignore"])
        .arg(program)
        .args([&host.port(), PASSWORD])
        .stdin(Stdio::null())
        .output()
        .expect("python runs");
    let (said, error) = (String::from_utf8_lossy(&run.stdout), String::from_utf8_lossy(&run.stderr));
    assert!(run.status.success(), "{said} {error}");
    let mut hour = Transcript::new("What Twisted shows of answers and errors.");
    hour.0 += &format!("\n{}", replaced(&said));
    hour.is_as_reviewed("twisted.txt");
}

/// The first of the README's two commands, without cargo's own output.
#[test]
fn the_demo_prints_what_was_reviewed() {
    let home = TestHome::new();
    let mut hour = Transcript::new("What `cargo run --release -- demo` prints.");
    let passwords = Regex::new(r"(?m)^  (alice|bob)( +)\w{15,}$").expect("a rule");
    let port = Regex::new(r#""127\.0\.0\.1", \d+"#).expect("a rule");
    for again in [false, true] {
        let printed = replaced(&demo(&home).printed.join("\n"));
        let printed = passwords.replace_all(&printed, "  $1$2<PASSWORD>");
        let printed = port.replace_all(&printed, "\"127.0.0.1\", <PORT>");
        let heading = if again { "\n(it is stopped, and run again)\n" } else { "" };
        hour.0 += &format!("{heading}\n$ cargo run --release -- demo\n{printed}\n");
    }
    hour.is_as_reviewed("demo.txt");
}

/// From an empty folder to a service that serves, with what an author reads who makes each mistake for the first time.
#[test]
fn an_authors_first_hour() {
    let folder = tempfile::tempdir().expect("a folder");
    let here = folder.path();
    let mut hour = Transcript::new("An author's first hour.");
    for line in [
        "credhost new",
        "credhost new Garden",
        "credhost new garden",
        "credhost new garden",
        "cat garden/src/lib.rs",
        "credhost dev gardn",
        "cd garden && cargo build --quiet",
    ] {
        hour.types_in(here, line);
    }
    let built = system_tests::target().join("authors/debug/libgarden.so");
    std::fs::copy(&built, here.join("libgarden.so")).expect("it was built");
    let whole = std::fs::read(&built).expect("it was built");
    std::fs::write(here.join("libhalf.so"), &whole[..whole.len() / 2]).expect("it can be written");
    std::fs::write(here.join("libnotes.so"), "remember the milk").expect("it can be written");
    put(&build::library("restless"), &here.join("librestless.so"));
    for line in [
        "credhost vet libgarden.so",
        "credhost vet libhalf.so",
        "credhost vet libnotes.so",
        "credhost vet libgarden",
        "credhost check --reloads 20 libgarden.so",
        "credhost check --reloads 20 librestless.so",
    ] {
        hour.types_in(here, line);
    }
    let home = TestHome::new();
    home.make();
    home.identity("alice", PASSWORD, &["garden"]);
    put(&built, &home.plugins().join("libgarden.so"));
    let host = home.start();
    let at = format!("alice@{}/garden", host.address());
    let half = here.join("libhalf.so");
    put(&half, &host.home.plugins().join("libhalf.so"));
    for line in [
        "describe garden".to_owned(),
        format!("call --password-stdin {at} sign hello <<< {PASSWORD}"),
        format!("call --password-stdin {at} sign <<< {PASSWORD}"),
        format!("call --password-stdin {at} sing hello <<< {PASSWORD}"),
        format!("call --password-stdin {at} list <<< {PASSWORD}"),
        format!("service check-states garden {}", here.join("libgarden.so").display()),
        "service reload gardn".to_owned(),
    ] {
        hour.types(&host.home, &line);
    }
    hour.is_as_reviewed("author.txt");
}

/// The output of a Rust program that meets each error for the first time.
#[tokio::test]
async fn a_rust_programmers_first_hour() {
    let home = TestHome::new();
    home.make();
    home.install("todo");
    home.identity("alice", PASSWORD, &["todo"]);
    let nobody = Endpoint::tcp("127.0.0.1:1").connect().await;
    let host = home.start();
    let at = Endpoint::tcp(&host.address().to_string());
    let mut hour = Transcript::new("What a client in Rust shows of answers and errors.");
    let mut show = |what: &str, came: Result<String, Error>| {
        let came = came.map_or_else(|error| format!("!! {error}"), |answer| format!("-> {answer}"));
        hour.0 += &format!("\n{what} {}", replaced(&came));
    };
    show("connect, where nobody listens", nobody.map(|_| String::new()));
    let client = at.connect().await.expect("it serves");
    let todo = client.login("alice/todo", PASSWORD, None).await.expect("the password is right");
    let told =
        |answer: pb::client::Answer| answer.value().map_or_else(|error| error.to_string(), |value| value.to_string());
    show("add(\"milk\")", todo.call("add", &("milk",)).await.map(told));
    show("list()", todo.call("list", &()).await.map(told));
    let count = todo.call("list", &()).await.expect("it answers");
    show("list() as a number", count.read::<u32>().map(|count| count.to_string()).map_err(Into::into));
    show("done(7)", todo.call("done", &(7,)).await.map(told));
    show("done(\"first\")", todo.call("done", &("first",)).await.map(told));
    show("add()", todo.call("add", &()).await.map(told));
    show("fly()", todo.call("fly", &()).await.map(told));
    show(
        "an answer that is no object",
        todo.call("list", &()).await.expect("it answers").remote().map(|_| String::new()),
    );
    for (what, name, password) in [
        ("login with a wrong password", "alice/todo", "wrong"),
        ("login for a service that she has no key for", "alice/chat", PASSWORD),
        ("login for another's perspective", "alice/todo/bob", PASSWORD),
    ] {
        let refused = at.connect().await.expect("it serves").login(name, password, None).await;
        show(what, refused.map(|_| String::new()));
    }
    let mind = |call: Call| async move { Err::<(), _>(call.unknown()) };
    let session = Session::builder(at.clone(), Credential::password("alice", "wrong")).mind(mind).start();
    show("a session with a wrong password", session.connected().await.map(|()| String::new()));
    assert!(matches!(session.status(), Status::Refused(_)));
    drop(host);
    client.closed().await;
    show("add(\"bread\"), when the host has gone", todo.call("add", &("bread",)).await.map(told));
    hour.0 += "\n";
    hour.is_as_reviewed("rust.txt");
}
