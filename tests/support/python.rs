//! Real Twisted, from PyPI.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

/// Today's Twisted.
const TWISTED: &str = "Twisted==26.10.0";

/// A Python with today's Twisted, set up under the target directory by the first test that wants it.
///
/// # Panics
/// When there is no python3, or Twisted cannot be installed.
#[must_use]
pub fn python() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY
        .get_or_init(|| {
            let folder = crate::target().join("python");
            std::fs::create_dir_all(&folder).expect("the folder for Python can be made");
            // Several test programs may want it at once.
            let lock = File::create(folder.join("lock")).expect("the lock can be made");
            flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
            let (environment, ready) = (folder.join("environment"), folder.join(format!("{TWISTED}.ready")));
            let python = environment.join("bin/python");
            if !ready.exists() {
                set_up(&environment, &python);
                File::create(ready).expect("the mark can be made");
            }
            python
        })
        .clone()
}

fn set_up(environment: &Path, python: &Path) {
    let made = Command::new("python3")
        .args(["-m", "venv", "--clear"])
        .arg(environment)
        .output();
    let made =
        made.unwrap_or_else(|error| panic!("these tests need python3 (3.9 or newer), which does not run: {error}"));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(
        made.status.success(),
        "python3 cannot make an environment; install python3-venv: {said}"
    );
    let installed = Command::new(python)
        .args([
            "-m",
            "pip",
            "install",
            "--quiet",
            "--disable-pip-version-check",
            TWISTED,
        ])
        .status()
        .expect("pip runs");
    assert!(
        installed.success(),
        "{TWISTED} cannot be installed from PyPI; pip says why above"
    );
}

/// Runs one of `tests/twisted`'s programs, which asserts for itself; answers with what it prints.
///
/// # Panics
/// When it fails.
pub fn twisted(program: &str, arguments: &[&str]) -> String {
    run(&python(), &[], program, arguments)
}

pub(crate) fn run(python: &Path, environment: &[(&str, String)], program: &str, arguments: &[&str]) -> String {
    let path = crate::workspace().join("tests/twisted").join(program);
    let mut command = Command::new(python);
    command
        .arg("-W")
        .arg("ignore")
        .arg(path)
        .args(arguments)
        .stdin(Stdio::null());
    command
        .env("PYTHONDONTWRITEBYTECODE", "1")
        .envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().expect("python runs");
    let (out, error) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(output.status.success(), "{program} failed:\n{out}\n{error}");
    out.into_owned()
}
