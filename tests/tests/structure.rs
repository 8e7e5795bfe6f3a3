//! Rules for the source itself.

use std::collections::{BTreeMap, BTreeSet};
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
    let tree = std::env::var_os("CREDHOST_TREE").map_or_else(workspace, PathBuf::from);
    sources(&tree, &mut paths);
    let relative = |path: &Path| path.strip_prefix(&tree).expect("inside").to_string_lossy().into_owned();
    paths.iter().map(|path| (relative(path), fs::read_to_string(path).expect("it can be read"))).collect()
}

/// The lines of a file that are code, without its tests.
fn code(text: &str) -> impl Iterator<Item = &str> {
    let end = text.find("#[cfg(test)]").unwrap_or(text.len());
    text[..end].lines().filter(|line| !line.trim_start().starts_with("//"))
}

/// A test's allocation counter.
const COUNTER: &str = "tests/tests/allocations.rs";
/// Fixtures that crash on purpose.
const HOSTILE: [&str; 2] = ["tests/fixtures/hostile/src/lib.rs", "tests/fixtures/confined/src/lib.rs"];

/// A name says what the test shows. Details belong in the comment.
#[test]
fn names_of_functions_and_tests_are_short() {
    const LONGEST: usize = 60;
    for (path, text) in all() {
        let names = text.lines().filter_map(|line| line.split_once("fn ")?.1.split(['(', '<']).next());
        let long: Vec<&str> = names.filter(|name| name.len() > LONGEST && !name.contains(' ')).collect();
        assert!(long.is_empty(), "{path}: {long:?}");
    }
}

#[test]
fn unsafe_lives_in_two_rooms() {
    let rooms = ["plugin-api/src/abi/", "host/src/loader/"];
    let mut outside = BTreeSet::new();
    let mut allowed = BTreeSet::new();
    for (path, text) in all().iter().filter(|(path, _)| path != "tests/tests/structure.rs") {
        let uses = code(text).any(|line| {
            ["unsafe {", "unsafe fn", "unsafe impl", "unsafe extern"].iter().any(|form| line.contains(form))
        });
        if uses
            && path != COUNTER
            && !HOSTILE.contains(&path.as_str())
            && !rooms.iter().any(|room| path.starts_with(room))
        {
            outside.insert(path.clone());
        }
        if text.contains("allow(unsafe_code") {
            allowed.insert(path.clone());
        }
    }
    assert_eq!(outside, BTreeSet::new());
    assert_eq!(
        allowed,
        BTreeSet::from(
            ["host/src/lib.rs", "plugin-api/src/lib.rs", COUNTER, HOSTILE[0], HOSTILE[1]].map(str::to_owned)
        )
    );
}

#[test]
fn every_unsafe_block_has_a_safety_comment() {
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

/// A line of code without its strings.
fn without_texts(line: &str) -> String {
    let line = line.replace("\\\"", "");
    line.split('"').step_by(2).collect()
}

#[test]
fn dependencies_point_one_way() {
    let forbidden: [(&str, &[&str]); 11] = [
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
        (
            "host/src/session/",
            &[
                "crate::config",
                "crate::control",
                "crate::server",
                "crate::loader",
                "crate::listener",
                "crate::login_gate",
                "crate::store",
            ],
        ),
        (
            "host/src/login_gate/",
            &["crate::listener", "crate::config", "crate::control", "crate::multiservice", "pb::"],
        ),
        ("host/src/listener/", &["crate::config", "crate::control", "crate::server", "crate::loader"]),
        ("plugins/", &["jelly::", "credhost", "pb::", "abi_stable"]),
    ];
    for (path, text) in all() {
        for (room, words) in forbidden.iter().filter(|(room, _)| path.starts_with(room)) {
            // Names from the original appear in strings.
            let uses = |word: &str| code(&text).find(|line| without_texts(line).contains(word));
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
    let rooms = [
        "plugin-api/jelly/src/",
        "host/pb/src/",
        "host/src/cred/",
        "host/src/session/",
        "host/src/multiservice/outgoing/commits.rs",
    ];
    let words =
        ["Instant::now", "SystemTime", "getrandom", "rand::", "std::net", "std::fs", "std::env", "tokio::", ".await"];
    for (path, text) in all() {
        // The client on tokio is a shell around the broker. An authorizer may take its time.
        let waits = path.starts_with("host/pb/src/client/") || path == "host/src/cred/login.rs";
        // Tests have a clock of their own.
        let tests = path.contains("/tests/");
        if rooms.iter().any(|room| path.starts_with(room)) && !waits && !tests {
            for line in code(&text) {
                assert!(!words.iter().any(|word| line.contains(word)), "{path}: {line}");
            }
        }
    }
}

/// The session's owners know neither each other nor the session. They share only numbers and limits.
#[test]
fn the_sessions_owners_do_not_know_each_other() {
    let owners = ["login", "attachments", "calls", "references", "outbox", "values"];
    // Log-in reads arguments and writes references in the words of the two that know how; eras and scopes are its
    // callers' words.
    let allowed = [("login", "values"), ("login", "references"), ("login", "attachments")];
    for owner in owners {
        let is_of = |path: &str| {
            path == format!("host/src/session/{owner}.rs") || path.starts_with(&format!("host/src/session/{owner}/"))
        };
        for (path, text) in all().iter().filter(|(path, _)| is_of(path)) {
            for line in code(text).filter(|line| line.trim_start().starts_with("use ")) {
                for other in owners.iter().filter(|other| **other != owner && !allowed.contains(&(owner, **other))) {
                    let own = line.contains("super::") || line.contains("crate::session::");
                    let words = line.split(|letter: char| !(letter.is_alphanumeric() || letter == '_'));
                    assert!(!(own && words.into_iter().any(|word| word == *other)), "{path} knows {other}: {line}");
                }
            }
        }
    }
}

/// The modules of a crate and what they import from each other, resolved through re-exports.
struct Imports {
    modules: BTreeMap<Vec<String>, Module>,
}

#[derive(Default)]
struct Module {
    uses: Vec<Vec<String>>,
    /// What it re-exports, by name.
    shown: BTreeMap<String, Vec<String>>,
}

impl Imports {
    fn of(root: &str) -> Self {
        let mut modules = BTreeMap::new();
        let files: Vec<(Vec<String>, String)> = all()
            .into_iter()
            .filter_map(|(path, text)| {
                let path = path.strip_prefix(root)?.strip_suffix(".rs")?.to_owned();
                let mut name: Vec<String> = path.split('/').map(str::to_owned).collect();
                if ["mod", "lib", "main"].iter().any(|own| name.last().is_some_and(|last| last == own)) {
                    name.pop();
                }
                Some((name, text))
            })
            .filter(|(name, _)| !name.contains(&"tests".to_owned()))
            .collect();
        for (name, text) in files {
            let mut module = Module::default();
            let code = code(&text).collect::<Vec<_>>().join("\n");
            for statement in code.split(';') {
                let Some(at) = statement.find("use ") else { continue };
                let before = statement[..at].trim_end().rsplit('\n').next().unwrap_or_default().trim();
                if !(before.is_empty() || before.starts_with("pub")) {
                    continue;
                }
                for path in expand(&statement[at + 4..]) {
                    let Some(path) = absolute(&name, &path, before.starts_with("pub")) else { continue };
                    match path.last().cloned().filter(|_| before.starts_with("pub")) {
                        Some(last) => drop(module.shown.insert(last, path)),
                        None => module.uses.push(path),
                    }
                }
            }
            modules.insert(name, module);
        }
        Self { modules }
    }

    /// Returns the module that a path leads to.
    fn resolve(&self, path: &[String], depth: usize) -> Option<&Vec<String>> {
        (0..=path.len()).rev().find_map(|length| {
            let (name, module) = self.modules.get_key_value(&path[..length])?;
            let further = path.get(length).and_then(|next| module.shown.get(next)).filter(|_| depth < 5);
            match further {
                Some(further) => self.resolve(&[further.as_slice(), &path[length + 1..]].concat(), depth + 1),
                None => Some(name),
            }
        })
    }

    fn of_module(&self, name: &[String]) -> BTreeSet<&Vec<String>> {
        let uses = &self.modules[name].uses;
        uses.iter().filter_map(|path| self.resolve(path, 0)).filter(|found| found.as_slice() != name).collect()
    }

    /// Returns a path from a module back to itself.
    fn circle(&self, from: &Vec<String>) -> Option<Vec<String>> {
        let mut stack = vec![vec![from]];
        let mut seen = BTreeSet::new();
        while let Some(way) = stack.pop() {
            let last = way[way.len() - 1];
            for next in self.of_module(last) {
                if next == from {
                    return Some(way.iter().map(|module| module.join("/")).collect());
                }
                if seen.insert(next) {
                    stack.push([way.as_slice(), &[next]].concat());
                }
            }
        }
        None
    }
}

/// Returns the paths of a `use`, with its braces expanded.
fn expand(tree: &str) -> Vec<Vec<String>> {
    let (mut parts, mut depth, mut start) = (Vec::new(), 0, 0);
    for (at, c) in tree.char_indices() {
        match c {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&tree[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&tree[start..]);
    let mut paths = Vec::new();
    for part in parts.into_iter().map(str::trim).filter(|part| !part.is_empty()) {
        match part.split_once('{') {
            Some((prefix, inner)) => {
                let prefix: Vec<String> =
                    prefix.split("::").map(str::trim).filter(|name| !name.is_empty()).map(str::to_owned).collect();
                let inner = inner.strip_suffix('}').unwrap_or(inner);
                paths.extend(expand(inner).into_iter().map(|rest| [prefix.as_slice(), &rest].concat()));
            }
            None => paths.push(part.split("::").map(|name| name.trim().to_owned()).collect()),
        }
    }
    paths
}

/// Returns a path from the crate's root, or `None` if it leads out of the crate.
fn absolute(module: &[String], path: &[String], shown: bool) -> Option<Vec<String>> {
    let supers = path.iter().take_while(|name| *name == "super").count();
    match path.first()?.as_str() {
        "crate" => Some(path[1..].to_vec()),
        "self" => Some([module, &path[1..]].concat()),
        "super" => Some([&module[..module.len().checked_sub(supers)?], &path[supers..]].concat()),
        // As in `pub use child::Name`.
        _ if shown => Some([module, path].concat()),
        _ => None,
    }
}

#[test]
fn no_files_of_the_host_import_each_other_in_a_circle() {
    for root in ["host/src/", "host/pb/src/"] {
        let imports = Imports::of(root);
        assert!(imports.modules.len() > 3, "{root} is found");
        for module in imports.modules.keys() {
            assert_eq!(imports.circle(module), None, "{root}");
        }
    }
}

#[test]
fn the_search_for_circles_finds_one() {
    let path = |text: &str| text.split("::").map(str::to_owned).collect::<Vec<String>>();
    let module = |uses: &[&str]| Module { uses: uses.iter().map(|of| path(of)).collect(), ..Module::default() };
    let mut modules = BTreeMap::from([
        (path("a"), module(&["b::Thing"])),
        (path("b"), module(&["c::Shown"])),
        (path("c"), Module { shown: BTreeMap::from([("Shown".to_owned(), path("c::d::Shown"))]), ..module(&[]) }),
        (path("c::d"), module(&["a::Thing"])),
    ]);
    let circle = Imports { modules: std::mem::take(&mut modules) }.circle(&path("a"));
    assert_eq!(circle, Some(vec!["a".to_owned(), "b".to_owned(), "c/d".to_owned()]));
    assert_eq!(expand("a::{b, c::{d, e}}"), [path("a::b"), path("a::c::d"), path("a::c::e")]);
    assert_eq!(absolute(&path("a::b"), &path("super::super::c"), false), Some(path("c")));
}

/// A function, as rustfmt formats it: where it begins, its number of lines, its number of parameters.
struct Function {
    place: String,
    lines: usize,
    parameters: usize,
}

fn functions(path: &str, text: &str) -> Vec<Function> {
    let lines: Vec<&str> = text.lines().collect();
    let mut found = Vec::new();
    for (at, line) in lines.iter().enumerate() {
        let indent = line.len() - line.trim_start().len();
        let head = line.trim_start().trim_start_matches("pub ").trim_start_matches("pub(super) ");
        let head = head.trim_start_matches("pub(crate) ").trim_start_matches("const ");
        let head = head.trim_start_matches("async ").trim_start_matches("unsafe ");
        let Some(name) = head.strip_prefix("fn ") else { continue };
        let end = format!("{}}}", " ".repeat(indent));
        let Some(length) = lines[at..].iter().position(|line| *line == end).filter(|_| !line.ends_with(';')) else {
            continue;
        };
        let signature: String = lines[at..].iter().take(30).copied().collect::<Vec<_>>().join(" ");
        let name = name.split(['(', '<']).next().unwrap_or_default();
        found.push(Function {
            place: format!("{path}:{} {name}", at + 1),
            lines: length + 1,
            parameters: parameters(&signature),
        });
    }
    found
}

/// Returns the number of a signature's parameters, without `self`.
fn parameters(signature: &str) -> usize {
    let Some(open) = signature.find("fn ").and_then(|at| Some(at + signature[at..].find('(')?)) else { return 0 };
    let (mut depth, mut all) = (0, vec![String::new()]);
    for c in signature[open..].replace("->", "").chars() {
        match c {
            '(' | '<' | '[' | '{' => depth += 1,
            ')' | '>' | ']' | '}' => depth -= 1,
            ',' if depth == 1 => all.push(String::new()),
            _ => {}
        }
        if depth == 0 {
            break;
        }
        all.last_mut().expect("there is one").push(c);
    }
    let is_one = |text: &&String| text.contains(':');
    all.iter().filter(is_one).count()
}

/// `cargo test -p system-tests --test structure sizes -- --nocapture` prints them. `CREDHOST_TREE` names another tree.
#[test]
fn sizes_are_printed_and_the_sessions_are_small() {
    let of = |path: &str| path.starts_with("host/") || path.starts_with("plugin-api/");
    let files: Vec<(String, String)> = all()
        .into_iter()
        .filter(|(path, _)| of(path) && !path.contains("/tests") && !path.contains("/benches/"))
        .collect();
    let cut = |text: &str| text[..text.find("#[cfg(test)]").unwrap_or(text.len())].to_owned();
    let all: Vec<Function> = files.iter().flat_map(|(path, text)| functions(path, &cut(text))).collect();
    let long: Vec<&Function> = all.iter().filter(|of| of.lines > 60).collect();
    let wide: Vec<&Function> = all.iter().filter(|of| of.parameters > 6).collect();
    let mut sizes: Vec<(usize, &str)> =
        files.iter().map(|(path, text)| (text.lines().count(), path.as_str())).collect();
    sizes.sort_unstable_by(|one, other| other.cmp(one));
    let imports = Imports::of("host/src/");
    let circles = imports.modules.keys().filter(|module| imports.circle(module).is_some()).count();
    println!("{} functions in {} files", all.len(), files.len());
    println!("{} of more than 60 lines, {} with more than 6 parameters", long.len(), wide.len());
    println!("{circles} files of the host in circles of imports");
    println!("{} files of more than 500 lines", sizes.iter().filter(|(lines, _)| *lines > 500).count());
    for (lines, path) in sizes.iter().take(6) {
        println!("  {lines} {path}");
    }
    let mut longest: Vec<&&Function> = long.iter().collect();
    longest.sort_by_key(|of| std::cmp::Reverse(of.lines));
    for of in longest.iter().take(12) {
        println!("  {} lines: {}", of.lines, of.place);
    }
    for of in &wide {
        println!("  {} parameters: {}", of.parameters, of.place);
    }
    if std::env::var_os("CREDHOST_TREE").is_none() {
        let session = |of: &&&Function| of.place.starts_with("host/src/session/");
        assert!(long.iter().chain(&wide).find(session).is_none_or(|of| panic!("{}", of.place)));
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
fn an_authors_library_has_no_host_features_or_tokio_signals() {
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

/// The functions that a file shows to its readers: public ones whose documentation is not hidden.
fn shown(text: &str) -> Vec<String> {
    let (mut found, mut hidden) = (Vec::new(), false);
    for line in code(text).map(str::trim_start) {
        let words = ["pub fn ", "pub async fn ", "pub const fn "];
        if let Some(rest) = words.iter().find_map(|word| line.strip_prefix(word)) {
            let name = rest.split(|letter: char| !letter.is_alphanumeric() && letter != '_').next();
            found.extend(name.filter(|_| !hidden).map(str::to_owned));
        }
        // Attributes come before the item that they belong to.
        hidden = line.starts_with("#[doc(hidden)]") || hidden && line.starts_with("#[");
    }
    found
}

/// Returns the examples of a file's documentation.
fn examples(text: &str) -> String {
    let (mut examples, mut within) = (String::new(), false);
    for line in text.lines().map(str::trim_start) {
        let Some(line) = line.strip_prefix("///").or_else(|| line.strip_prefix("//!")) else {
            within = false;
            continue;
        };
        match line.trim_start().starts_with("```") {
            true => within = !within,
            false if within => examples.extend([line, "\n"]),
            false => {}
        }
    }
    examples
}

#[test]
fn every_public_method_is_called_in_a_compiled_example() {
    // What authors do not see; and what is theirs, but reads as a sentence: `Pace` of the host's own.
    let hidden = ["src/abi/", "src/runtime/", "doors/pace.rs", "doors/turns.rs", "doors/queue.rs", "doors/table.rs"];
    let all = all();
    for crate_of in ["plugin-api/src/", "host/pb/src/client/"] {
        let of = || {
            let files = all.iter().filter(|(path, _)| path.starts_with(crate_of));
            files.filter(|(path, _)| !hidden.iter().any(|hidden| path.contains(hidden)))
        };
        let examples: String = of().map(|(_, text)| examples(text)).collect();
        let is_called = |name: &str| {
            let calls = examples.match_indices(name).map(|(at, _)| (&examples[..at], &examples[at + name.len()..]));
            calls.into_iter().any(|(before, after)| {
                let whole = before.ends_with(['.', ':', ' ', '(', '!']) && !before.ends_with("fn ");
                whole && (after.starts_with('(') || after.starts_with("::<"))
            })
        };
        let functions: Vec<(&String, String)> =
            of().flat_map(|(path, text)| shown(text).into_iter().map(move |name| (path, name))).collect();
        assert!(functions.len() > 50, "{crate_of}: {}", functions.len());
        let without: Vec<_> = functions.iter().filter(|(_, name)| !is_called(name)).collect();
        assert!(without.is_empty(), "in no example: {without:#?}");
    }
}
