//! Programs of Debian's, which these tests are judged by.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

/// Where a program is, which this package has. It is installed, where it is not there.
///
/// # Panics
/// When it is not there, and cannot be installed: by who is not root, or without apt.
#[must_use]
pub fn program(name: &str, package: &str) -> PathBuf {
    let found = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
    };
    // Several test programs may want it at once, and apt takes one.
    let lock = File::create(crate::target().join("apt.lock")).expect("the lock can be made");
    flock(&lock, FlockOperation::LockExclusive).expect("the lock can be taken");
    found().unwrap_or_else(|| {
        let apt = |arguments: &[&str]| {
            let mut apt = Command::new("apt-get");
            apt.arg("-qq").args(arguments).env("DEBIAN_FRONTEND", "noninteractive").output()
        };
        let said = apt(&["update"]).and_then(|_| apt(&["install", "-y", "--no-install-recommends", package]));
        found().unwrap_or_else(|| panic!("these tests need {name}: `apt-get install {package}`; apt says: {said:?}"))
    })
}
