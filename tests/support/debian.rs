//! Programs from Debian that the tests check the host against.

use std::fs::File;
use std::path::PathBuf;
use std::process::Command;

use rustix::fs::{FlockOperation, flock};

/// Returns the path of a program from this Debian package. Installs the package if the program is missing.
///
/// # Panics
/// When the program is missing and cannot be installed: the user is not root, or there is no apt.
#[must_use]
pub fn program(name: &str, package: &str) -> PathBuf {
    let found = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join(name)).find(|program| program.is_file())
    };
    // Several test programs may install it at the same time; apt allows only one at once.
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
