//! Helpers of the system tests: libraries built as their authors would build them, a host in a home of its own, real
//! Twisted.

#![allow(missing_docs, reason = "helpers of tests, named for what they do")]

pub mod build;
pub mod debian;
pub mod demo;
pub mod embedded;
pub mod every_door;
pub mod host;
pub mod irc;
pub mod jelly_bytes;
pub mod lines;
pub mod python;
pub mod sites;
pub mod ssh;
pub mod tls;
pub mod web;
pub mod wire;

use std::path::PathBuf;

/// Returns the root of the checkout.
#[must_use]
pub fn workspace() -> PathBuf {
    let tests = PathBuf::from(env!("CARGO_MANIFEST_DIR"));
    tests.parent().map_or_else(|| tests.clone(), PathBuf::from)
}

/// Returns the target directory that this test was built in.
///
/// # Panics
/// When the test does not know its own path.
#[must_use]
pub fn target() -> PathBuf {
    let own = std::env::current_exe().expect("a test knows its own path");
    // target/debug/deps/test-1234
    own.ancestors().nth(3).expect("a test stands in target/PROFILE/deps").to_owned()
}

/// Reports that a test does not run here, and why. Bypasses the capture of test output, so that it is always visible.
pub fn skipped(why: &str) {
    use std::io::Write;
    // If standard error is closed, there is no other place to report it.
    let _ = writeln!(std::io::stderr(), "SKIPPED: {why}");
}
