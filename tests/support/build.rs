//! Builds with cargo. Services are built in an invocation of their own: in one invocation with the host, cargo would unify
//! features, and the services would get the host's, too.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Mutex, OnceLock};

/// The sample services and the services for tests, which are all built at once.
const LIBRARIES: [&str; 24] = [
    "todo",
    "scores",
    "chat",
    "mail",
    "seat",
    "my-service",
    "another-service",
    "restless",
    "hostile",
    "dependant",
    "ledger",
    "ledger-next",
    "judge",
    "drawers",
    "dummy",
    "exchange",
    "buildmaster",
    "howto",
    "ponds",
    "talk",
    "lines",
    "confined",
    "ssh",
    "web",
];

/// Whether this program is optimised: it builds the libraries and the command likewise.
const OPTIMISED: bool = !cfg!(debug_assertions);

/// Returns the library of a sample service, or of a service for tests.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn library(package: &str) -> PathBuf {
    static BUILT: OnceLock<HashMap<String, PathBuf>> = OnceLock::new();
    let built = BUILT.get_or_init(|| {
        let mut arguments: Vec<&str> = if OPTIMISED { vec!["build", "--release"] } else { vec!["build"] };
        for package in LIBRARIES {
            arguments.extend(["--package", package]);
        }
        let artifacts = cargo(&arguments, &crate::target().join("plugins"));
        let libraries = artifacts.into_iter().filter(|(_, path)| path.extension().is_some_and(|end| end == "so"));
        libraries.map(|(name, path)| (name.replace('_', "-"), path)).collect()
    });
    built.get(package).unwrap_or_else(|| panic!("{package} is not among the libraries that are built")).clone()
}

/// Returns the library `ledger` or `ledger-next`, set to this mode: see their MODE.
///
/// # Panics
/// When the library has no mode.
#[must_use]
pub fn mode(package: &str, mode: &str) -> Vec<u8> {
    mode_of(&library(package), mode)
}

/// As [`mode`], for the library in this file.
///
/// # Panics
/// When the library has no mode.
#[must_use]
pub fn mode_of(library: &Path, mode: &str) -> Vec<u8> {
    const MARK: &[u8] = b"credhost-mode=";
    let mut bytes = std::fs::read(library).expect("it is built");
    let at = bytes.windows(MARK.len()).position(|window| window == MARK).expect("it has a mode") + MARK.len();
    let room = &mut bytes[at..at + 32];
    room.fill(b' ');
    room[..mode.len()].copy_from_slice(mode.as_bytes());
    bytes
}

/// Returns the library `hostile`, set to this mode: `init-panic`, `call-abort` and so on.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn told(mode: &str) -> Vec<u8> {
    const MARK: &[u8] = b"MODE=good ";
    let mut bytes = std::fs::read(library("hostile")).expect("it is built");
    let at = bytes.windows(MARK.len()).position(|window| window == MARK).expect("the library has its mark");
    bytes[at + 5..at + 32].copy_from_slice(format!("{mode:<27}").as_bytes());
    bytes
}

/// Builds one library, optimised: for benches.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn release(package: &str) -> PathBuf {
    one(&["build", "--release", "--package", package], package)
}

/// Builds one library in the debug profile, as its author does during development.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn debug(package: &str) -> PathBuf {
    one(&["build", "--package", package], package)
}

fn one(arguments: &[&str], package: &str) -> PathBuf {
    let artifacts = cargo(arguments, &crate::target().join("plugins"));
    let mut libraries = artifacts.into_iter().filter(|(_, path)| path.extension().is_some_and(|end| end == "so"));
    libraries.find(|(name, _)| name.replace('_', "-") == package).expect("it is built").1
}

/// Builds a sample service after changes to its source: each first text is replaced by the second. The result is separate from
/// the unchanged library.
///
/// # Panics
/// When the source does not contain a text that is to be replaced, or the service does not build.
#[must_use]
pub fn changed(package: &str, changes: &[(&str, &str)]) -> PathBuf {
    let (folder, workspace) = (crate::target().join("changed").join(package), crate::workspace());
    let source = workspace.join("plugins").join(package);
    let sources = folder.join("src");
    std::fs::create_dir_all(&sources).expect("a folder");
    let mut left: Vec<&(&str, &str)> = changes.iter().collect();
    for file in std::fs::read_dir(source.join("src")).expect("it has sources").map_while(Result::ok) {
        let mut text = std::fs::read_to_string(file.path()).expect("a text");
        left.retain(|(before, after)| {
            let found = text.contains(before);
            text = text.replace(before, after);
            !found
        });
        write_if_changed(&sources.join(file.file_name()), &text);
    }
    assert!(left.is_empty(), "nothing to change: {left:?}");
    // The copy is its own workspace, with the dependency versions of this one.
    let ours = std::fs::read_to_string(workspace.join("Cargo.toml")).expect("it is there");
    let own = std::fs::read_to_string(source.join("Cargo.toml")).expect("it is there");
    // The package gets another name, so that its library does not replace the original's.
    let name = format!("{package}-changed");
    let own = own.replacen(&format!("name = \"{package}\""), &format!("name = \"{name}\""), 1);
    let from = |mark: &str| ours.find(mark).map(|at| &ours[at..]).expect("it has a section");
    let common = from("[workspace.package]").replace("path = \"", &format!("path = \"{}/", workspace.display()));
    write_if_changed(&folder.join("Cargo.toml"), &format!("{own}\n[workspace]\n{common}"));
    std::fs::copy(workspace.join("Cargo.lock"), folder.join("Cargo.lock")).expect("it can be written");
    let manifest = folder.join("Cargo.toml").display().to_string();
    one(&["build", "--manifest-path", &manifest], &name)
}

/// Leaves an unchanged file alone, so that cargo does not rebuild it.
fn write_if_changed(path: &Path, text: &str) {
    if std::fs::read_to_string(path).is_ok_and(|kept| kept == text) {
        return;
    }
    std::fs::write(path, text).expect("it can be written");
}

/// Builds the command `credhost`.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn credhost() -> PathBuf {
    static BUILT: OnceLock<PathBuf> = OnceLock::new();
    BUILT
        .get_or_init(|| {
            let mut arguments = vec!["build", "--package", "credhost", "--bin", "credhost"];
            if OPTIMISED {
                arguments.push("--release");
            }
            let artifacts = cargo(&arguments, &crate::target());
            let found = artifacts.into_iter().find(|(name, path)| name == "credhost" && path.extension().is_none());
            found.expect("the command is built").1
        })
        .clone()
}

/// Builds an example of the package `credhost` or `pb`.
///
/// # Panics
/// When it does not build.
#[must_use]
pub fn example(name: &str) -> PathBuf {
    // `--workspace` enables the features of all packages, as in `cargo test --workspace`, which has built it already.
    let artifacts = cargo(&["build", "--workspace", "--example", name], &crate::target());
    let found = artifacts.into_iter().find(|(found, path)| found == name && path.extension().is_none());
    found.expect("the example is built").1
}

/// Runs cargo. Returns the names of the targets, each with a file that was built.
fn cargo(arguments: &[&str], target: &Path) -> Vec<(String, PathBuf)> {
    // One build at a time in this process. Cargo's own lock covers other processes.
    static TURN: Mutex<()> = Mutex::new(());
    let _turn = TURN.lock();
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(crate::workspace()).args(arguments).arg("--target-dir").arg(target);
    cargo.args(["--quiet", "--message-format=json-render-diagnostics"]);
    // The flags of this test's build do not apply to the builds that it starts.
    cargo.env_remove("RUSTFLAGS").env_remove("CARGO_ENCODED_RUSTFLAGS");
    // Nor do the variables of its package: cargo would rebuild everything whose build script reads one of them.
    let own = |name: &str| name == "OUT_DIR" || name.starts_with("CARGO_PKG_") || name.starts_with("CARGO_MANIFEST_");
    for (name, _) in std::env::vars().filter(|(name, _)| own(name)) {
        cargo.env_remove(name);
    }
    let output = cargo.stderr(Stdio::inherit()).output().expect("cargo runs");
    assert!(output.status.success(), "cargo {} failed; see above", arguments.join(" "));
    let mut artifacts = Vec::new();
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else {
            continue;
        };
        let name = message["target"]["name"].as_str().unwrap_or_default().to_owned();
        let mut files: Vec<&str> = Vec::new();
        files.extend(message["filenames"].as_array().into_iter().flatten().filter_map(serde_json::Value::as_str));
        artifacts.extend(files.into_iter().map(|file| (name.clone(), PathBuf::from(file))));
    }
    artifacts
}
