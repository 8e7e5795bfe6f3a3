//! GUIDE.md, followed to the letter: from an empty folder to a running service.

use std::process::Command;

use system_tests::host::{TestHome, put};
use system_tests::workspace;

/// The code block that starts with this line.
fn block(guide: &str, first: &str) -> String {
    let blocks = guide.split("```").skip(1).step_by(2);
    let bodies = blocks.map(|block| block.split_once('\n').map_or("", |(_, body)| body));
    bodies.into_iter().find(|body| body.starts_with(first)).unwrap_or_else(|| panic!("{first} in GUIDE.md")).to_owned()
}

#[test]
fn the_guides_crate_compiles_passes_its_test_and_serves() {
    let guide = std::fs::read_to_string(workspace().join("plugin-api/GUIDE.md")).expect("the guide");
    // Below the target directory: dependencies are built once, also for later runs.
    let crate_folder = system_tests::target().join("guide/guestbook");
    std::fs::create_dir_all(crate_folder.join("src")).expect("a folder");
    let api = workspace().join("plugin-api");
    let manifest = block(&guide, "# Cargo.toml").replace("../credhost/plugin-api", &api.to_string_lossy());
    let code = block(&guide, "// src/lib.rs") + &block(&guide, "#[cfg(test)]");
    std::fs::write(crate_folder.join("Cargo.toml"), manifest).expect("it can be written");
    std::fs::write(crate_folder.join("src/lib.rs"), code).expect("it can be written");
    // The versions that this workspace is tested with.
    std::fs::copy(workspace().join("Cargo.lock"), crate_folder.join("Cargo.lock")).expect("the lock file");
    let cargo = |arguments: &[&str]| {
        let output = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()))
            .args(arguments)
            .current_dir(&crate_folder)
            // The setting of `credhost new`, and the target directory of its tests: dependencies that both need are built once.
            .env("CARGO_PROFILE_DEV_DEBUG", "line-tables-only")
            .env("CARGO_TARGET_DIR", system_tests::target().join("authors"))
            .output()
            .expect("cargo runs");
        let said = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success(), "cargo {arguments:?}: {said}");
        assert!(!said.contains("warning: "), "an author's first build warns of nothing: {said}");
        said
    };
    assert!(cargo(&["test", "--lib"]).contains("test result: ok. 1 passed"));
    cargo(&["build"]);

    let home = TestHome::new();
    home.make();
    home.identity("alice", "alice-pw", &["guestbook"]);
    let mut host = home.start();
    let library = system_tests::target().join("authors/debug/libguestbook.so");
    put(&library, &host.home.plugins().join("libguestbook.so"));
    host.wait_for("libguestbook.so serves");
    let target = format!("alice@{}/guestbook", host.address());
    assert_eq!(host.home.run(&["call", &target, "sign", "hello", "--password-stdin"], "alice-pw"), "1");
    assert_eq!(host.home.run(&["call", &target, "entries", "--password-stdin"], "alice-pw"), "[\"hello\"]");
    assert!(host.home.run(&["describe", "guestbook"], "").contains("Signs the page"));
}
