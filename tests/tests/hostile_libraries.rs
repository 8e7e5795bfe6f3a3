//! Whatever file is put into the folder: the host says one clear sentence, a good service keeps answering, and nothing is left
//! behind.

use std::ops::Range;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use object::{Object, ObjectSection};
use system_tests::build::{library, told};
use system_tests::host::{TestHome, TestHost};

/// A guard against hanging.
const PATIENCE: Duration = Duration::from_secs(120);

/// The position of the first occurrence.
fn find(bytes: &[u8], what: &[u8]) -> Option<usize> {
    bytes.windows(what.len()).position(|window| window == what)
}

/// Replaces every occurrence of a text in a library by one of the same length.
fn replaced(mut bytes: Vec<u8>, old: &[u8], new: &[u8]) -> Vec<u8> {
    assert_eq!(old.len(), new.len());
    let mut from = 0;
    let mut found = false;
    while let Some(at) = find(&bytes[from..], old) {
        bytes[from + at..from + at + old.len()].copy_from_slice(new);
        from += at + old.len();
        found = true;
    }
    assert!(found, "the library has {}", String::from_utf8_lossy(old));
    bytes
}

fn patched(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut good = told("good");
    good[at..at + bytes.len()].copy_from_slice(bytes);
    good
}

fn cut(part: usize) -> Vec<u8> {
    let good = told("good");
    let length = good.len() * part / 1000;
    good[..length].to_vec()
}

/// Every kind of bad file, with the complete sentence that the host says about it.
fn kinds() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    const PART: &str = "it is only part of a library: was it copied completely?";
    let mut half_zeroed = told("good");
    let half = half_zeroed.len() / 2;
    half_zeroed[half..].fill(0);
    vec![
        ("empty", Vec::new(), "it is empty"),
        ("text", b"#!/bin/sh\necho hello\n".to_vec(), "it is not a library: it does not start like an ELF file"),
        ("cut-to-header", told("good")[..40].to_vec(), PART),
        ("cut-to-64", told("good")[..64].to_vec(), PART),
        ("cut-to-100th", cut(10), PART),
        ("cut-to-10th", cut(100), PART),
        ("cut-to-half", cut(500), PART),
        ("cut-by-one", told("good")[..told("good").len() - 1].to_vec(), PART),
        ("arm", patched(18, &[183, 0]), "it is built for another processor (ELF machine 183; this host is 62)"),
        ("32-bit", patched(4, &[1]), "it is built for another kind of machine: this host needs 64 bits, little-endian"),
        (
            "big-endian",
            patched(5, &[2]),
            "it is built for another kind of machine: this host needs 64 bits, little-endian",
        ),
        ("object", patched(16, &[1, 0]), "it is an object file, not a library: set crate-type = [\"cdylib\"]"),
        ("program", patched(16, &[2, 0]), "it is a program, not a library: set crate-type = [\"cdylib\"]"),
        ("no-headers", patched(56, &[0, 0]), "its program headers are damaged"),
        (
            "no-symbol",
            replaced(told("good"), b"\0credhost_service\0", b"\0credhost_nothing\0"),
            "it is a library, but not a service: it lacks plugin_api::export!(…)",
        ),
        (
            "missing-dependency",
            replaced(told("good"), b"\0libgcc_s.so.1\0", b"\0libgcc_x.so.9\0"),
            "the system cannot open it: libgcc_x.so.9: cannot open shared object file: No such file or directory",
        ),
        (
            "other-abi-stable",
            replaced(told("good"), b"abi stable library for Rust     ", b"another stable library for Rust "),
            "it was built with another abi_stable than this host's; rebuild it with the host's plugin-api",
        ),
        (
            "constructor-abort",
            told("constructor-abort"),
            "it crashes (SIGABRT) while it is opened: is it damaged, or does a constructor of it do that?",
        ),
        (
            "constructor-segv",
            told("constructor-segv"),
            "it crashes (SIGSEGV) while it is opened: is it damaged, or does a constructor of it do that?",
        ),
        (
            "constructor-exit",
            told("constructor-exit"),
            "it ends the process (exit code 3) while it is opened: is it damaged, or does a constructor of it do that?",
        ),
        (
            "constructor-loop",
            told("constructor-loop"),
            "it cannot be opened within 2 seconds: does a constructor of it wait?",
        ),
        ("init-error", told("init-error"), "ValueError: not today"),
        ("init-panic", told("init-panic"), "RuntimeError: init failed inside the service (panicked at"),
        ("init-abort", told("init-abort"), "its init crashes (SIGABRT)"),
        ("init-segv", told("init-segv"), "its init crashes (SIGSEGV)"),
        ("init-exit", told("init-exit"), "its init ends the process (exit code 3)"),
        ("init-overflow", told("init-overflow"), "its init crashes (SIGABRT)"),
        ("init-eat", told("init-eat"), "its init crashes (SIGABRT)"),
        ("init-loop", told("init-loop"), "its init does not return within 2 seconds"),
        ("start-error", told("start-error"), "ValueError: not today"),
        ("start-panic", told("start-panic"), "RuntimeError: start failed inside the service (panicked at"),
        ("start-abort", told("start-abort"), "its start crashes (SIGABRT)"),
        ("start-loop", told("start-loop"), "its start does not return within 2 seconds"),
        ("health-error", told("health-error"), "ValueError: not today"),
        ("health-abort", told("health-abort"), "its health check crashes (SIGABRT)"),
        ("health-loop", told("health-loop"), "its health check does not return within 2 seconds"),
        ("stop-abort", told("stop-abort"), "its stop crashes (SIGABRT)"),
        ("stop-loop", told("stop-loop"), "its stop does not return within 2 seconds"),
        ("drop-abort", told("drop-abort"), "its stop crashes (SIGABRT)"),
        (
            "other-name",
            replaced(told("good"), b"hostile", b"ho/tile"),
            "\"ho/tile\" cannot be the name of a service: it has a `/`",
        ),
    ]
}

/// A host with a good service, which a client calls throughout the test.
struct Scene {
    host: TestHost,
    calling: Arc<AtomicBool>,
    answered: Arc<AtomicU64>,
    client: Option<std::thread::JoinHandle<()>>,
}

impl Scene {
    fn new() -> Self {
        let home = TestHome::new();
        home.make();
        home.configure(|text| text.replace("patience = 10", "patience = 2"));
        // The search for leftovers covers only one process.
        home.in_the_hosts_process();
        home.identity("alice", "alice-pw", &["todo"]);
        home.install("todo");
        let host = home.start();
        let (calling, answered) = (Arc::new(AtomicBool::new(true)), Arc::new(AtomicU64::new(0)));
        let (go_on, count, address) = (Arc::clone(&calling), Arc::clone(&answered), host.address());
        let client = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(async {
                let stream = tokio::net::TcpStream::connect(address).await.expect("the door is open");
                let client = pb::client::Client::new(stream).await.expect("it speaks PB");
                let todo = client.login("alice/todo", "alice-pw", None).await.expect("alice may");
                let mut number = 0;
                while go_on.load(Ordering::Relaxed) {
                    let added: usize =
                        todo.call("add", &("x",)).await.expect("it answers").read().expect("with a number");
                    assert_eq!(added, number, "in order, none lost, none twice");
                    number += 1;
                    count.fetch_add(1, Ordering::Relaxed);
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            });
        });
        Self { host, calling, answered, client: Some(client) }
    }

    /// The host's verdict on a file, once it has examined it.
    fn verdict(&self, file: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let list = self.host.home.run(&["service", "list", "--json"], "");
            let list: serde_json::Value = serde_json::from_str(&list).expect("it is JSON");
            let found = list.as_array().and_then(|list| list.iter().find(|library| library["file"] == file));
            match found.map(|found| found["state"].as_str().unwrap_or_default().to_owned()) {
                Some(state) if state != "being vetted" && state != "starting" => return state,
                _ => assert!(Instant::now() < deadline, "no verdict on {file}; {}", self.host.log()),
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn put(&self, file: &str, bytes: &[u8]) -> PathBuf {
        let path = self.host.home.plugins().join(file);
        std::fs::write(&path, bytes).expect("it can be written");
        path
    }

    /// Waits until the good service answers again.
    fn goes_on(&mut self) {
        let before = self.answered.load(Ordering::Relaxed);
        let deadline = Instant::now() + PATIENCE;
        while self.answered.load(Ordering::Relaxed) == before {
            assert!(Instant::now() < deadline, "the good service does not answer any more");
            std::thread::sleep(Duration::from_millis(5));
        }
    }

    fn end(mut self) {
        self.goes_on();
        self.calling.store(false, Ordering::Relaxed);
        self.client.take().expect("it runs").join().expect("every call was answered");
        // The library that was removed last is unloaded two seconds later.
        let deadline = Instant::now() + PATIENCE;
        loop {
            let left = left_behind(&self.host, 1);
            if left.is_empty() {
                break;
            }
            assert!(Instant::now() < deadline, "left behind: {left:?}");
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_eq!(self.host.terminate(), Some(0));
    }
}

/// Leftovers: child processes, mappings of more libraries than the good ones, service threads other than theirs, and files other
/// than todo's.
fn left_behind(host: &TestHost, good: usize) -> Vec<String> {
    let mut left = Vec::new();
    let id = host.id();
    let read = |path: String| std::fs::read_to_string(path).unwrap_or_default();
    // A child belongs to the thread that started it, as long as that lives.
    let threads = || std::fs::read_dir(format!("/proc/{id}/task")).expect("it runs").flatten();
    let children: String = threads().map(|thread| read(format!("{}/children", thread.path().display()))).collect();
    left.extend(children.split_whitespace().map(|child| format!("child {child}")));
    let maps = read(format!("/proc/{id}/maps"));
    let mut mapped: Vec<&str> = maps.lines().filter_map(|line| line.split("/generations/").nth(1)).collect();
    mapped.dedup();
    left.extend(mapped.iter().skip(good).map(|file| format!("mapping of {file}")));
    let names = threads().map(|thread| read(format!("{}/comm", thread.path().display())).trim().to_owned());
    let services = names.filter(|name| name == "service" || name == "vet").count();
    if services != good {
        left.push(format!("{services} threads of services"));
    }
    for folder in ["generations", "good"] {
        let files = std::fs::read_dir(host.home.path().join(folder)).expect("it is there").flatten();
        let names = files.map(|file| file.file_name().to_string_lossy().into_owned());
        left.extend(names.filter(|name| name != "libtodo.so").map(|name| format!("file {folder}/{name}")));
    }
    left
}

#[test]
fn each_bad_library_is_refused_in_one_sentence() {
    let mut scene = Scene::new();
    let kinds = kinds();
    assert!(kinds.len() >= 25);
    let mut wrong = Vec::new();
    for (name, bytes, sentence) in &kinds {
        let file = format!("{name}.so");
        scene.put(&file, bytes);
        let verdict = scene.verdict(&file);
        // A reported panic is followed by its file and line.
        let as_said = match verdict.strip_prefix(&format!("refused: {sentence}")) {
            Some(place) if name.ends_with("panic") => place.contains("src/lib.rs:") && place.ends_with(')'),
            Some(rest) => rest.is_empty(),
            None => false,
        };
        if !as_said {
            wrong.push(format!("{name}: {verdict}"));
        }
    }
    assert_eq!(wrong, Vec::<String>::new());
    for (name, ..) in &kinds {
        std::fs::remove_file(scene.host.home.plugins().join(format!("{name}.so"))).expect("it is there");
    }
    scene.goes_on();
    scene.end();
}

#[test]
fn vet_gives_the_hosts_verdict_beforehand() {
    let home = TestHome::new();
    home.make();
    let folder = home.path().join("drafts");
    std::fs::create_dir_all(&folder).expect("it can be made");
    let vet = |name: &str, bytes: &[u8]| {
        let path = folder.join(name);
        std::fs::write(&path, bytes).expect("it can be written");
        home.run_with(&["vet", &path.display().to_string(), "--patience", "2"], "")
    };
    let bad = vet("bad.so", &told("init-abort"));
    assert!(String::from_utf8_lossy(&bad.stderr).contains("bad.so would not be loaded: its init crashes (SIGABRT)"));
    assert_eq!(bad.status.code(), Some(1));
    let good = vet("good.so", &told("good"));
    assert!(String::from_utf8_lossy(&good.stdout).contains("good.so is good: it serves hostile"));
    let note = vet("haunted.so", &told("start-thread"));
    let note = String::from_utf8_lossy(&note.stdout).into_owned();
    assert!(note.contains("it cannot be unloaded: pinned: its thread ghost"), "{note}");
}

#[test]
fn folder_entries_that_are_no_libraries_are_skipped() {
    let scene = Scene::new();
    let plugins = scene.host.home.plugins();
    std::fs::create_dir(plugins.join("folder.so")).expect("it can be made");
    symlink("/nowhere", plugins.join("dangling.so")).expect("it can be made");
    std::fs::write(plugins.join(".hidden.so"), b"x").expect("it can be made");
    std::fs::write(plugins.join("README"), b"x").expect("it can be made");
    // Once the host reports this one, it has examined the others.
    scene.put("last.so", b"");
    assert_eq!(scene.verdict("last.so"), "refused: it is empty");
    let list = scene.host.home.run(&["service", "list"], "");
    assert!(!["folder", "hidden", "README", "dangling"].iter().any(|name| list.contains(name)), "{list}");
    std::fs::remove_file(plugins.join("last.so")).expect("it is there");
    scene.end();
}

/// A small deterministic generator, so that a failure can be reproduced.
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (self.0 >> 33) as usize % sides
    }
}

/// A library with up to `most` bits flipped in one part of it.
fn flipped(dice: &mut Dice, good: &[u8], part: &Range<usize>, most: usize) -> Vec<u8> {
    let mut bytes = good.to_vec();
    for _ in 0..1 + dice.roll(most) {
        let at = part.start + dice.roll(part.len());
        bytes[at] ^= 1 << dice.roll(8);
    }
    bytes
}

/// The range of a section in a library's file.
fn section(bytes: &[u8], name: &str) -> Range<usize> {
    let file = object::File::parse(bytes).expect("it is a library");
    let section = file.section_by_name(name).unwrap_or_else(|| panic!("it has {name}"));
    let (start, size) = section.file_range().expect("it is in the file");
    usize::try_from(start).expect("it fits")..usize::try_from(start + size).expect("it fits")
}

/// `CREDHOST_SEED=N` damages different bits.
fn dice() -> Dice {
    Dice(std::env::var("CREDHOST_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(2005))
}

#[test]
fn bits_flipped_in_the_linkers_tables_never_reach_the_host() {
    let scene = Scene::new();
    let good = told("good");
    // From the header to the last relocation: everything by which a library can do harm before its own code runs.
    let tables = 0..section(&good, ".rela.dyn").end;
    let mut dice = dice();
    let mut refused = 0;
    for round in 0..200 {
        let bytes = flipped(&mut dice, &good, &tables, 4);
        let file = format!("flipped-{round}.so");
        let path = scene.put(&file, &bytes);
        let verdict = scene.verdict(&file);
        refused += usize::from(verdict.starts_with("refused"));
        std::fs::remove_file(path).expect("it is there");
    }
    println!("{refused} of 200 refused");
    assert!(refused > 100);
    scene.end();
}

/// Damaged code may do anything, and not the same each time, so no trial can promise that it will not crash the host later; but
/// the trial itself ends with a verdict.
#[test]
fn bits_flipped_in_code_do_no_harm_to_the_vetting_process() {
    let home = TestHome::new();
    home.make();
    let good = told("good");
    let code = section(&good, ".text");
    let mut dice = dice();
    let path = home.path().join("flipped.so");
    let mut refused = 0;
    for _ in 0..50 {
        std::fs::write(&path, flipped(&mut dice, &good, &code, 2000)).expect("it can be written");
        let vetted = home.run_with(&["vet", &path.display().to_string(), "--patience", "2"], "");
        let said = String::from_utf8_lossy(if vetted.status.success() { &vetted.stdout } else { &vetted.stderr });
        assert!(said.contains("flipped.so is good") || said.contains("flipped.so would not be loaded: "), "{said}");
        refused += usize::from(!vetted.status.success());
    }
    println!("{refused} of 50 refused");
    assert!(refused > 0);
}

/// `another-service`, with these compiler flags in the last build step; its dependencies are built already.
fn built_with(flags: &[&str]) -> Vec<u8> {
    // The output replaces the plain build, which no other test here uses.
    static TURN: std::sync::Mutex<()> = std::sync::Mutex::new(());
    let _turn = TURN.lock();
    let plain = library("another-service");
    let target = plain.ancestors().nth(2).expect("target/plugins/debug/lib.so");
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.args(["rustc", "--package", "another-service", "--"]).args(flags);
    of_another_service(cargo, target)
}

/// Builds `another-service` with this cargo in this target directory.
fn of_another_service(mut cargo: Command, target: &Path) -> Vec<u8> {
    cargo.current_dir(system_tests::workspace()).env("CARGO_TARGET_DIR", target);
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    assert!(cargo.status().expect("cargo runs").success());
    std::fs::read(target.join("debug/libanother_service.so")).expect("it is built")
}

#[test]
fn packed_relocations_are_checked_and_served() {
    let built = built_with(&["-Clink-arg=-Wl,-z,pack-relative-relocs"]);
    let home = TestHome::new();
    home.make();
    let path = home.path().join("packed.so");
    let said = |bytes: &[u8]| {
        std::fs::write(&path, bytes).expect("it can be written");
        let vetted = home.run_with(&["vet", &path.display().to_string()], "");
        String::from_utf8_lossy(&[vetted.stdout, vetted.stderr].concat()).into_owned()
    };
    let verdict = said(&built);
    assert!(verdict.contains("packed.so is good"), "{verdict}");
    let packed = section(&built, ".relr.dyn");
    let mut damaged = built.clone();
    damaged[packed.start + 4] ^= 1;
    let verdict = said(&damaged);
    assert!(verdict.contains("it is damaged: a packed relocation of it, at 0x1"), "{verdict}");
}

#[test]
fn a_library_whose_panics_abort_is_refused() {
    let built = built_with(&["-Cpanic=abort"]);
    let home = TestHome::new();
    home.make();
    let path = home.path().join("aborts.so");
    std::fs::write(&path, built).expect("it can be written");
    let verdict = home.refused(&["vet", &path.display().to_string()], "");
    assert!(verdict.contains("it was built with panic = \"abort\": its first panic would end the host"), "{verdict}");
}

#[test]
fn a_library_of_another_compiler_serves() {
    let nightly = |arguments: &[&str]| {
        let mut rustup = Command::new("rustup");
        rustup.args(["run", "nightly"]).args(arguments);
        rustup.env_remove("RUSTUP_TOOLCHAIN").env_remove("RUSTC").env_remove("CARGO");
        rustup
    };
    let version = nightly(&["rustc", "--version"]).output();
    if !version.is_ok_and(|version| version.status.success()) {
        system_tests::skipped("no nightly toolchain on this machine, to be the other compiler");
        return;
    }
    let target = system_tests::target().join("plugins-nightly");
    let built = of_another_service(nightly(&["cargo", "build", "--package", "another-service"]), &target);
    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["another service"]);
    std::fs::write(home.plugins().join("another.so"), built).expect("it can be written");
    let host = home.start();
    let target = format!("alice@{}/another service", host.address());
    assert_eq!(host.home.run(&["call", &target, "now", "--password-stdin"], "alice-pw"), "12345");
    std::fs::remove_file(host.home.plugins().join("another.so")).expect("it is there");
    let deadline = Instant::now() + PATIENCE;
    while left_behind(&host, 0).iter().any(|left| left.contains("mapping") || left.contains("service")) {
        assert!(Instant::now() < deadline, "it is let go of: {:?}", left_behind(&host, 0));
        std::thread::sleep(Duration::from_millis(50));
    }
}
