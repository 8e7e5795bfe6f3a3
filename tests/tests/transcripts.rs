//! What a person reads who tries it for the first time, kept word for word in `golden/transcripts`: an operator's commands,
//! an author's first service, clients. What differs from run to run is written as <TIME>, <PORT> and so on.
//!
//! When a change of what is said is meant: `CREDHOST_WRITE=1 cargo test -p system-tests --test transcripts`, and read the
//! difference.

use std::process::{Command, Stdio};

use regex::Regex;
use system_tests::host::TestHome;
use system_tests::{python, workspace};

/// What differs from run to run, and what stands for it.
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
        (r"\bfor \d+ days\b", "for <N> days"),
        (r"uid \d+", "uid <N>"),
        (r"plugin-api( +)\d+\.\d+\.\d+", "plugin-api${1}<VERSION>"),
        // How many lines the trail has by then.
        (r"(?m)^\d+ (<TIME>|<DIGEST>)", "<NUMBER> $1"),
        (r"\d+ lines, all as", "<N> lines, all as"),
        // What this machine allows.
        (r"(?m)^connections +\d+ ", "connections <N> "),
        (r"(?m)^warning +files and connections .*\n +raise .*\n", ""),
    ];
    let mut text = text.to_owned();
    for (rule, by) in rules {
        text = Regex::new(rule).expect("a rule").replace_all(&text, by).into_owned();
    }
    text
}

/// What was typed and what was read.
struct Transcript(String);

impl Transcript {
    fn new(about: &str) -> Self {
        Self(format!("# {about}\n"))
    }

    /// Types a command; a line of input may follow it, after `<<<`.
    fn types(&mut self, home: &TestHome, line: &str) {
        let (words, input) = line.split_once(" <<< ").unwrap_or((line, ""));
        let arguments: Vec<&str> = words.split_whitespace().collect();
        let output = home.run_with(&arguments, input);
        let (said, warned) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        self.0 += &format!("\n$ credhost {}\n", replaced(line));
        // Its columns are as wide as what this machine allows.
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
    home.in_its_own_process();
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
fn what_is_asked_of_a_program_in_json() {
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
    // Numbers of seconds differ, too.
    let seconds = Regex::new(r#""(at|created|expires)":\d+(\.\d+)?"#).expect("a rule");
    hour.0 = seconds.replace_all(&hour.0, "\"$1\":<SECONDS>").into_owned();
    hour.is_as_reviewed("json.txt");
}

#[test]
fn what_help_says() {
    let home = TestHome::new();
    let mut hour = Transcript::new("What --help says.");
    for line in
        ["--help", "identity --help", "identity import --help", "audit show --help", "call --help", "describe --help"]
    {
        hour.types(&home, line);
    }
    hour.is_as_reviewed("help.txt");
}

/// What a client program prints that meets each error for the first time.
#[test]
fn what_a_twisted_programmer_reads() {
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
