//! A crate for a service to begin from: it compiles, has tests, and runs unchanged.

use std::path::{Path, PathBuf};

/// How the new crate finds `plugin-api`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Api {
    /// In this folder.
    Folder(PathBuf),
    /// In the registry, of this version.
    Version(String),
}

/// Why the crate was not created.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotMade {
    /// The name cannot be that of a crate.
    #[error("{name} cannot be the name of a crate: {why}")]
    Name {
        /// The name.
        name: String,
        /// Why.
        why: &'static str,
    },
    /// The place exists already.
    #[error("{} exists already", .0.display())]
    There(PathBuf),
    /// The folder is not that of `plugin-api`.
    #[error("{} is not the folder of plugin-api: it has no Cargo.toml of that package", .0.display())]
    NoApi(PathBuf),
    /// It cannot be written.
    #[error("{}: {error}", path.display())]
    Io {
        /// The path.
        path: PathBuf,
        /// Why.
        error: std::io::Error,
    },
}

/// Creates the crate in the folder `place`, whose last component is its name. Returns the service's name.
///
/// # Errors
/// If it cannot be created. Only [`NotMade::Io`] may leave a part of it behind.
pub fn make(place: &Path, api: &Api) -> Result<String, NotMade> {
    let name = place.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    if let Some(why) = wrong(&name) {
        return Err(NotMade::Name { name, why });
    }
    if place.exists() {
        return Err(NotMade::There(place.to_owned()));
    }
    let api = match api {
        Api::Version(version) => format!("version = {}", quoted(version)),
        Api::Folder(folder) => {
            let whole = folder.canonicalize().map_err(|_| NotMade::NoApi(folder.clone()))?;
            let is_api = std::fs::read_to_string(whole.join("Cargo.toml"))
                .is_ok_and(|text| text.contains("name = \"plugin-api\""));
            if !is_api {
                return Err(NotMade::NoApi(folder.clone()));
            }
            format!("path = {}", quoted(&whole.to_string_lossy()))
        }
    };
    let service = camel(&name);
    let files = [
        ("Cargo.toml", MANIFEST.replace("{name}", &name).replace("{api}", &api)),
        (".gitignore", "/target\n/credhost-home\n".to_owned()),
        ("src/lib.rs", LIBRARY.replace("{name}", &name).replace("{Name}", &service)),
        ("src/tests.rs", TESTS.replace("{Name}", &service)),
    ];
    for (file, text) in files {
        let path = place.join(file);
        let folder = path.parent().unwrap_or(place);
        let failed = |error| NotMade::Io { path: path.clone(), error };
        std::fs::create_dir_all(folder).and_then(|()| std::fs::write(&path, text)).map_err(failed)?;
    }
    Ok(name)
}

/// Why a name cannot be that of a crate.
fn wrong(name: &str) -> Option<&'static str> {
    const TAKEN: [&str; 12] = [
        "core",
        "std",
        "alloc",
        "test",
        "proc_macro",
        "plugin-api",
        "plugin_api",
        "serde",
        "self",
        "super",
        "crate",
        "tests",
    ];
    let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '_';
    match name.chars().next() {
        None => Some("it is empty"),
        Some(first) if !first.is_ascii_lowercase() => Some("it must start with a small letter, a to z"),
        _ if !name.chars().all(plain) => Some("it may have only small letters, digits, - and _"),
        _ if name.len() > 64 => Some("it is longer than 64 letters"),
        _ if TAKEN.contains(&name) => Some("the name is reserved"),
        _ => None,
    }
}

/// A crate's name as that of a type: `guest-book` becomes `GuestBook`.
fn camel(name: &str) -> String {
    let words = name.split(['-', '_']).filter(|word| !word.is_empty());
    let camel: String = words.map(|word| format!("{}{}", word[..1].to_ascii_uppercase(), &word[1..])).collect();
    // Names that the crate uses for something else, or that are in plugin_api's prelude.
    const NAMES: &[&str] = &[
        "AnyHandle",
        "Attachment",
        "Box",
        "Cacheable",
        "Cached",
        "Call",
        "Config",
        "Context",
        "Deserialize",
        "Err",
        "Fault",
        "Handle",
        "None",
        "Ok",
        "Option",
        "Page",
        "Reason",
        "Remote",
        "Result",
        "Save",
        "Select",
        "Serialize",
        "Service",
        "Some",
        "String",
        "TestHost",
        "Value",
        "Vec",
    ];
    let taken = NAMES.contains(&camel.as_str());
    if taken { format!("{camel}Service") } else { camel }
}

fn quoted(text: &str) -> String {
    toml_edit::Value::from(text).to_string().trim().to_owned()
}

const MANIFEST: &str = r#"[package]
name = "{name}"
version = "0.1.0"
edition = "2024"

[lib]
crate-type = ["cdylib"]

[dependencies]
plugin-api = { {api} }
serde = { version = "1", features = ["derive"] }

[dev-dependencies]
# A clock that tests move.
plugin-api = { {api}, features = ["testing"] }

# File and line of a panic are enough while one edits and saves; less is faster.
[profile.dev]
debug = "line-tables-only"

# A workspace of its own, wherever it stands.
[workspace]
"#;

const LIBRARY: &str = r#"//! {Name}: what it is for.

use plugin_api::prelude::*;

plugin_api::export!({Name});

/// What this service is for: `credhost describe {name}` shows it.
#[derive(Default)]
struct {Name};

#[service("{name}")]
impl Service for {Name} {
    type Perspective = Page;
}

/// What one identity has. Saved after each call that changes it, and kept when this code is replaced.
#[derive(Default, Serialize, Deserialize)]
struct Page {
    #[serde(default)]
    entries: Vec<String>,
}

/// Each method here can be called by whoever has the key.
#[perspective]
impl Page {
    /// Signs the page; answers with the number of entries.
    fn sign(&mut self, text: String) -> Result<usize> {
        if text.is_empty() {
            return Err(Fault::value("say something"));
        }
        self.entries.push(text);
        Ok(self.entries.len())
    }

    /// All entries.
    fn read(&self) -> &[String] {
        &self.entries
    }
}

#[cfg(test)]
mod tests;
"#;

const TESTS: &str = r#"//! What clients can rely on.

use plugin_api::prelude::*;
use plugin_api::testing::TestHost;

use super::{Name};

#[test]
fn an_entry_is_kept_and_is_there_after_a_reload() -> Result<()> {
    let host = TestHost::<{Name}>::start()?;
    let alice = host.attach("alice")?;
    assert_eq!(alice.call::<usize>("sign", ("hello",))?, 1);
    host.reload()?;
    assert_eq!(alice.call::<Vec<String>>("read", ())?, ["hello"]);
    Ok(())
}

#[test]
fn nothing_is_no_entry() -> Result<()> {
    let host = TestHost::<{Name}>::start()?;
    let refused = host.attach("alice")?.call::<usize>("sign", ("",)).unwrap_err();
    assert_eq!(refused.class(), "ValueError");
    Ok(())
}
"#;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_cargo_would_refuse_are_refused_with_the_reason() {
        let folder = tempfile::tempdir().expect("a folder");
        for (name, says) in [
            ("Guest", "small letter"),
            ("7up", "small letter"),
            ("a b", "small letters, digits"),
            ("std", "reserved"),
            ("äh", "small letter"),
        ] {
            let error = make(&folder.path().join(name), &Api::Version("1".to_owned())).expect_err(name);
            assert!(error.to_string().contains(says), "{error}");
        }
        assert_eq!(std::fs::read_dir(folder.path()).expect("it is there").count(), 0);
    }

    #[test]
    fn an_existing_folder_is_refused() {
        let folder = tempfile::tempdir().expect("a folder");
        let place = folder.path().join("guest-book");
        assert_eq!(make(&place, &Api::Version("1".to_owned())).expect("it is made"), "guest-book");
        assert!(std::fs::read_to_string(place.join("src/lib.rs")).expect("it is there").contains("struct GuestBook;"));
        assert!(matches!(make(&place, &Api::Version("1".to_owned())), Err(NotMade::There(_))));
    }
}
