//! An author's day, from an empty folder to a service that is called, changed and checked, with the commands as typed.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use system_tests::build::{credhost, library, mode, told};
use system_tests::host::{TestHome, TestHost};

/// A guard against hanging, not a measure: a first build takes long.
const PATIENCE: Duration = Duration::from_secs(600);

/// A person at a terminal, in a folder of their own. The commands that they type are counted.
struct Author {
    folder: tempfile::TempDir,
    /// A home other than the usual `credhost-home`.
    home: Option<PathBuf>,
    commands: usize,
}

/// A running `credhost dev`.
struct Developing {
    child: Child,
    lines: Receiver<String>,
    heard: Vec<String>,
}

impl Author {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().expect("a folder"), home: None, commands: 0 }
    }

    fn command(&mut self, line: &str) -> Command {
        self.commands += 1;
        println!("$ {line}");
        let mut shell = Command::new("sh");
        shell.arg("-c").arg(line).current_dir(self.folder.path());
        let program = credhost();
        let path = std::env::var("PATH").unwrap_or_default();
        shell.env("PATH", format!("{}:{path}", program.parent().expect("it is in a folder").display()));
        shell.env_remove("CREDHOST_HOME").env_remove("CREDHOST_LOG").env_remove("RUSTFLAGS");
        shell.envs(self.home.iter().map(|home| ("CREDHOST_HOME", home)));
        // One target directory for all these tests, so that dependencies are built once; by default it would be the crate's own.
        shell.env("CARGO_TARGET_DIR", system_tests::target().join("authors"));
        shell
    }

    fn types(&mut self, line: &str) -> Output {
        let output = self.command(line).output().expect("a shell");
        print!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
        output
    }

    fn sees(&mut self, line: &str) -> String {
        let output = self.types(line);
        assert!(output.status.success(), "{line}");
        String::from_utf8(output.stdout).expect("text").trim_end().to_owned()
    }

    fn develops(&mut self, line: &str) -> Developing {
        let mut child = self.command(&format!("exec {line}")).stdout(Stdio::piped()).spawn().expect("a shell");
        let (sender, lines) = channel();
        let output = BufReader::new(child.stdout.take().expect("it has an output"));
        std::thread::spawn(move || {
            for line in output.lines().map_while(Result::ok) {
                println!("{line}");
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        Developing { child, lines, heard: Vec::new() }
    }

    fn edit(&self, file: &str, old: &str, new: &str) {
        let path = self.folder.path().join(file);
        let text = std::fs::read_to_string(&path).expect("it is there");
        assert!(text.contains(old), "{text}");
        std::fs::write(path, text.replace(old, new)).expect("it can be written");
    }
}

impl Developing {
    /// Returns the next line that contains this text.
    fn says(&mut self, text: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let line = self.lines.recv_timeout(left);
            let line = line.unwrap_or_else(|_| panic!("{text:?} did not come; it said {:#?}", self.heard));
            self.heard.push(line.clone());
            if line.contains(text) {
                return line;
            }
        }
    }
}

impl Drop for Developing {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// `name`: a different crate for each test, because all builds share one folder.
fn developed(name: &str, poll: &str, home: Option<&str>) {
    let mut author = Author::new();
    author.home = home.map(|home| author.folder.path().join(home));
    let source = format!("{name}/src/lib.rs");
    // The time to build the host itself is not the author's.
    let _ = credhost();
    let began = Instant::now();
    author.sees(&format!("credhost new {name}"));
    let mut dev = author.develops(&format!("credhost dev {name} --listen 127.0.0.1:0 {poll}"));
    let first = dev.says("live in");
    assert!(first.starts_with(&format!("{name} \u{b7} first build \u{b7} compiled in")), "{first}");
    let compiled = first.split("compiled in ").nth(1).and_then(|rest| rest.split(' ').next()?.parse::<f64>().ok());
    // The command that it suggests, with a text filled in.
    let call = dev.says("credhost call").trim().replace("TEXT", "hello");
    assert_eq!(author.sees(&call), "1");
    let took = began.elapsed().as_secs_f64() - compiled.expect("it says how long that took");
    println!(
        "from `credhost new` to the first answered call: {} commands, no line of code, {took:.1} s without the compiler",
        author.commands
    );

    // A change, saved as it is written: it compiles and serves, and the earlier state is kept. `dev` may see a save while it is
    // being written, and again when it is complete; then it builds twice.
    author.edit(&source, "Ok(self.entries.len())", "Ok(self.entries.len() * 100)");
    let line = dev.says("generation 2");
    assert!(line.contains("src/lib.rs changed"), "{line}");
    assert!(line.contains("compiled in") && line.contains("live in"), "{line}");
    assert_eq!(author.sees(&call), "200");
    // A change that does not compile has no effect.
    author.edit(&source, "Ok(self.entries.len() * 100)", "Ok(\"many\")");
    let line = dev.says("it does not compile; see cargo's output above; the old code serves");
    assert!(line.contains("src/lib.rs changed"), "{line}");
    assert_eq!(author.sees(&call), "300");
    // Nor has one that compiles but does not start.
    author.edit(&source, "Ok(\"many\")", "Ok(self.entries.len())");
    author.edit(
        &source,
        "type Perspective = Page;\n",
        "type Perspective = Page;\n\n    fn health(_: &Handle<Self>) -> Result<()> {\n        Err(Fault::value(\"not today\"))\n    }\n",
    );
    let line = dev.says("not today");
    assert!(line.contains("refused: ") && line.contains("the old code serves"), "{line}");
    let status = author.sees(&format!("credhost --json service show {name}"));
    assert!(status.contains("not today"), "the operator is told, too: {status}");
    // Code that serves but cannot read the saved state is reported at once, not only when a client is refused because of it.
    author.edit(&source, "Err(Fault::value(\"not today\"))", "Ok(())");
    author.edit(&source, "entries: Vec<String>,", "entries: Vec<String>,\n    title: String,");
    let line = dev.says("cannot be read");
    assert!(
        line.contains("1 of 1 saved state cannot be read") && line.contains("dev: ") && line.contains("title"),
        "{line}"
    );
}

#[test]
fn dev_goes_from_an_empty_folder_to_a_live_reload() {
    developed("guestbook", "", None);
}

/// The host also sees the built file by itself: before it is notified of it, if it knows that the file is complete.
#[test]
fn dev_works_wherever_the_home_is() {
    developed("travellers", "", Some("a home elsewhere"));
}

#[test]
fn a_generated_crate_passes_its_own_tests_and_is_good() {
    let mut author = Author::new();
    author.sees("credhost new guest-book");
    let tested = author.types("cd guest-book && cargo test --quiet");
    assert!(tested.status.success() && String::from_utf8_lossy(&tested.stdout).contains("2 passed"));
    author.sees("cd guest-book && cargo build --quiet");
    let built = system_tests::target().join("authors/debug/libguest_book.so");
    let checked = author.sees(&format!("credhost check {}", built.display()));
    assert!(checked.contains("verdict") && checked.contains("good"), "{checked}");
    // Names that Rust or the api use for something else are still valid service names.
    for name in ["service", "result", "test-host", "page"] {
        author.sees(&format!("credhost new {name} && cd {name} && cargo check --quiet --tests"));
    }
    let again = author.types("credhost new guest-book");
    assert!(String::from_utf8_lossy(&again.stderr).contains("exists already"));
    let wrong = author.types("credhost new 'Guest Book'");
    assert!(String::from_utf8_lossy(&wrong.stderr).contains("small letter"));
    let nowhere = author.types("credhost dev nowhere");
    let says = String::from_utf8_lossy(&nowhere.stderr);
    assert!(says.contains("nowhere is not a crate") && says.contains("credhost new"), "{says}");
}

#[test]
fn a_check_says_what_is_wrong_with_a_library() {
    let mut author = Author::new();
    let checked = author.types(&format!("credhost check --reloads 20 {}", library("restless").display()));
    let table = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1));
    assert!(table.contains("panic panics, called with no arguments"), "{table}");
    assert!(table.contains("hang blocks, called with no arguments"), "the one that blocks, and no other: {table}");
    let checked = author.types(&format!("credhost --json check --reloads 20 {}", library("todo").display()));
    let found: serde_json::Value = serde_json::from_slice(&checked.stdout).expect("JSON");
    assert!(checked.status.success() && found["refused"].as_u64() > Some(30), "{found}");
    let grown = |what: &str| found["grown"][what].as_i64().expect("a number");
    // A thread that was just ending at the first count does not matter.
    assert!(grown("descriptors") == 0 && grown("threads") <= 0, "{found}");
    std::fs::write(author.folder.path().join("crashes.so"), told("call-abort")).expect("it can be written");
    let checked = author.types("credhost check crashes.so");
    let table = String::from_utf8_lossy(&checked.stdout).into_owned();
    assert_eq!(checked.status.code(), Some(1), "the command itself goes on");
    assert!(table.contains("crashes (SIGABRT) during this step: calling hello with no arguments"), "{table}");
    let refused = author.types("credhost check nothing.so");
    assert!(String::from_utf8_lossy(&refused.stderr).contains("nothing.so is not a file"));
}

fn file(folder: &std::path::Path, bytes: &[u8]) -> PathBuf {
    let path = folder.join("next.so");
    std::fs::write(&path, bytes).expect("it can be written");
    path
}

#[test]
fn saved_states_are_tried_on_a_library_before_it_serves() {
    let home = TestHome::new();
    home.make();
    for name in ["alice", "bob"] {
        home.identity(name, "a-password", &["ledger"]);
    }
    home.install("ledger");
    let host = home.start();
    for name in ["alice", "bob"] {
        let target = format!("{name}@{}/ledger", host.address());
        host.home.run(&["call", &target, "next", "1", "--password-stdin"], "a-password");
    }
    let folder = tempfile::tempdir().expect("a folder");
    let try_on = |host: &TestHost, bytes: &[u8]| {
        let path = file(folder.path(), bytes);
        let path = path.to_str().expect("a plain path").to_owned();
        host.home.run_with(&["service", "check-states", "ledger", &path], "")
    };
    // Three states: of the two accounts, and the service's own.
    let good = try_on(&host, &mode("ledger-next", "migrates"));
    let says = String::from_utf8_lossy(&good.stdout).into_owned();
    assert!(good.status.success() && says.contains("can read all 3 saved states of ledger"), "{says}");
    let bad = try_on(&host, &mode("ledger-next", "plain"));
    let (table, error) = (String::from_utf8_lossy(&bad.stdout), String::from_utf8_lossy(&bad.stderr));
    assert_eq!(bad.status.code(), Some(1));
    assert!(table.contains("alice") && table.contains("bob") && table.contains("balance"), "{table}");
    assert!(error.contains("cannot read 2 of 3 saved states") && error.contains("migrate"), "{error}");
    let other = try_on(&host, &std::fs::read(library("todo")).expect("it is built"));
    assert!(String::from_utf8_lossy(&other.stderr).contains("is the service todo, not ledger"));
    // The same without a host.
    let mut host = host;
    assert_eq!(host.terminate(), Some(0));
    let bad = try_on(&host, &mode("ledger-next", "plain"));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("cannot read 2 of 3 saved states"));
}

#[test]
fn dev_watches_a_crate_that_the_service_depends_on() {
    let mut author = Author::new();
    author.sees("credhost new neighbours");
    author.sees("cargo new --quiet --lib --vcs none fence");
    let fence = author.folder.path().join("fence/src/lib.rs");
    std::fs::write(&fence, "pub fn height() -> usize {\n    three\n}\n").expect("it can be written");
    author.edit("neighbours/Cargo.toml", "[dependencies]", "[dependencies]\nfence = { path = \"../fence\" }");
    author.edit("neighbours/src/lib.rs", "Ok(self.entries.len())", "Ok(fence::height())");
    let mut dev = author.develops("credhost dev neighbours --listen 127.0.0.1:0");
    // `dev` watches it even while it does not compile.
    dev.says("it does not compile; see cargo's output above; nothing serves yet");
    author.edit("fence/src/lib.rs", "three", "3");
    let line = dev.says("live in");
    assert!(line.contains("fence/src/lib.rs changed"), "{line}");
    let call = dev.says("credhost call").trim().replace("TEXT", "hello");
    assert_eq!(author.sees(&call), "3");
    author.edit("fence/src/lib.rs", "3", "4");
    let line = dev.says("generation 2");
    assert!(line.contains("fence/src/lib.rs changed"), "{line}");
    assert_eq!(author.sees(&call), "4");
}

#[test]
fn without_inotify_libraries_and_sources_are_polled() {
    developed("visitors", "--poll", None);
    let home = TestHome::new();
    home.make();
    home.identity("alice", "a-password", &["todo"]);
    let mut host = home.start_with(&["--poll"], &[]);
    host.home.install("todo");
    host.wait_for("libtodo.so serves");
}
