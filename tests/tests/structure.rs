//! What holds of the source itself.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use system_tests::workspace;

fn sources(folder: &Path, into: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        let (path, name) = (entry.path(), entry.file_name());
        if path.is_dir() {
            if !["target", ".git", "corpus", "artifacts"].iter().any(|skipped| name == *skipped) {
                sources(&path, into);
            }
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            into.push(path);
        }
    }
}

fn all() -> Vec<(String, String)> {
    let mut paths = Vec::new();
    sources(&workspace(), &mut paths);
    let relative = |path: &Path| path.strip_prefix(workspace()).expect("inside").to_string_lossy().into_owned();
    paths.iter().map(|path| (relative(path), fs::read_to_string(path).expect("it can be read"))).collect()
}

/// The lines of a file that are code, and no test's.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// A test's allocation counter.
const COUNTER: &str = "tests/tests/allocations.rs";
/// A fixture that crashes on purpose.
const HOSTILE: &str = "tests/fixtures/hostile/src/lib.rs";

#[test]
fn unsafe_lives_in_two_rooms() {
    let rooms = ["plugin-api/src/abi/", "host/src/loader/"];
    let mut outside = BTreeSet::new();
    let mut allowed = BTreeSet::new();
    for (path, text) in all().iter().filter(|(path, _)| path != "tests/tests/structure.rs") {
        let uses = code(text).any(|line| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| line.contains(form))
        });
        if uses && path != COUNTER && path != HOSTILE && !rooms.iter().any(|room| path.starts_with(room)) {
            outside.insert(path.clone());
        }
        if text.contains("allow(unsafe_code") {
            allowed.insert(path.clone());
        }
    }
    assert_eq!(outside, BTreeSet::new());
    assert_eq!(
        allowed,
        BTreeSet::from(["host/src/lib.rs", "plugin-api/src/lib.rs", COUNTER, HOSTILE].map(str::to_owned))
    );
}

#[test]
fn every_unsafe_block_argues() {
    for (path, text) in all().iter().filter(|(path, _)| path.contains("/abi/") || path.contains("/loader/")) {
        let lines: Vec<&str> = text.lines().collect();
        for (index, line) in lines.iter().enumerate() {
            if line.contains("unsafe {") && !line.trim_start().starts_with("//") {
                let before = lines[index.saturating_sub(8)..index].join("\n");
                assert!(before.contains("SAFETY:"), "{path}:{}", index + 1);
            }
        }
    }
}

#[test]
fn dependencies_point_one_way() {
    let forbidden: [(&str, &[&str]); 9] = [
        ("plugin-api/jelly/src/", &["plugin_api", "pb::", "tokio", "std::net", "std::fs"]),
        ("host/pb/src/", &["plugin_api", "credhost::", "crate::cred"]),
        ("plugin-api/src/", &["pb::Broker", "credhost::"]),
        (
            "host/src/cred/",
            &[
                "crate::session",
                "crate::store",
                "crate::loader",
                "crate::multiservice",
                "crate::config",
                "plugin_api",
                "pb::",
                "tokio",
            ],
        ),
        ("host/src/store/", &["crate::session", "crate::loader", "crate::multiservice", "crate::config", "pb::"]),
        ("host/src/loader/", &["crate::session", "crate::multiservice", "crate::config", "crate::cred", "pb::"]),
        ("host/src/multiservice/", &["crate::session", "crate::config", "crate::control", "pb::"]),
        ("host/src/session/", &["crate::config", "crate::control", "crate::server", "crate::loader"]),
        ("plugins/", &["jelly::", "credhost", "pb::", "abi_stable"]),
    ];
    for (path, text) in all() {
        for (room, words) in forbidden.iter().filter(|(room, _)| path.starts_with(room)) {
            // The original's names stand in strings.
            let uses = |word: &str| {
                code(&text).find(|line| {
                    line.contains(word) && !line.contains(&format!("spread.{word}")) && !line.contains('"')
                })
            };
            for word in *words {
                if let Some(line) = uses(word) {
                    panic!("{path} is in {room}, which must not know {word}: {line}");
                }
            }
        }
    }
}

#[test]
fn the_deterministic_rooms_read_no_clock_and_draw_no_randomness() {
    let rooms = ["plugin-api/jelly/src/", "host/pb/src/", "host/src/cred/"];
    let words = ["Instant::now", "SystemTime", "getrandom", "rand::", "std::net", "std::fs", "std::env"];
    for (path, text) in all() {
        // The client on tokio is a shell around the broker.
        if rooms.iter().any(|room| path.starts_with(room)) && path != "host/pb/src/client.rs" {
            for line in code(&text) {
                assert!(!words.iter().any(|word| line.contains(word)), "{path}: {line}");
            }
        }
    }
}

#[test]
fn the_table_of_counterparts_is_complete_and_its_tests_exist() {
    let table = fs::read_to_string(workspace().join("host/src/cred/COUNTERPARTS.md")).expect("the table");
    let rows = fs::read_to_string(workspace().join("tests/golden/cred_api_rows.txt")).expect("the rows");
    let entries: Vec<Vec<&str>> = table
        .lines()
        .filter(|line| line.starts_with("| ") && !line.starts_with("| original"))
        .map(|line| line.trim_matches('|').split(" | ").map(str::trim).collect())
        .collect();
    let mut missing: Vec<&str> = rows.lines().collect();
    for entry in &entries {
        assert_eq!(entry.len(), 3, "{entry:?}");
        let at = missing.iter().position(|row| *row == entry[0]);
        missing.remove(at.unwrap_or_else(|| panic!("{} is no row of the original's", entry[0])));
    }
    assert_eq!(missing, Vec::<&str>::new(), "rows without a counterpart");
    let functions: String = all().into_iter().map(|(_, text)| text).collect();
    for entry in &entries {
        match entry[2] {
            "–" => assert!(entry[1].starts_with("not here"), "{}: no test, and no reason", entry[0]),
            test => {
                let name = test.trim_matches('`');
                assert!(functions.contains(&format!("fn {name}(")), "{}: there is no test {name}", entry[0]);
            }
        }
    }
}

#[test]
fn a_library_of_an_authors_brings_neither_the_hosts_features_nor_tokios_signals() {
    let tree = std::process::Command::new("cargo")
        .args(["tree", "--package", "todo", "--edges", "normal,features", "--offline", "--prefix", "none"])
        .current_dir(workspace())
        .output()
        .expect("cargo runs");
    let tree = String::from_utf8_lossy(&tree.stdout).into_owned();
    assert!(tree.contains("plugin-api"), "{tree}");
    for feature in [
        "plugin-api feature \"host\"",
        "tokio feature \"signal\"",
        "tokio feature \"process\"",
        "tokio feature \"full\"",
    ] {
        assert!(!tree.contains(feature), "{feature}");
    }
}
