//! The settings in credhost.toml that a host reads only at its start.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::Value;

use super::file::ConfigFile;

/// Sections that `credhost reload` applies, or handles in another way.
const SECTIONS: [&str; 5] = ["limits", "state", "audit", "service", "identity"];
/// The settings of other sections that it applies. Those of `[multiservice.NAME]` are the same as those of `[pb]`.
const TAKEN_UP: [(&str, &[&str]); 2] = [
    ("pb", &["proxies", "anonymous", "default_service", "names", "tracebacks", "limits"]),
    ("plugins", &["isolation"]),
];

/// Settings that a running host does not apply, by their place: `[pb] listen`.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Fixed(BTreeMap<String, Value>);

impl Fixed {
    /// Collects those of a file. Empty if the file is invalid.
    #[must_use]
    pub fn of(file: &ConfigFile) -> Self {
        let mut all = BTreeMap::new();
        let sections = file.values().into_iter().filter(|(name, _)| !SECTIONS.contains(&name.as_str()));
        for (name, value) in sections {
            let Value::Object(section) = value else { continue };
            match name.as_str() {
                "multiservice" => {
                    for (name, section) in section {
                        if let Value::Object(section) = section {
                            put(&mut all, "pb", &format!("multiservice.{name}"), section);
                        }
                    }
                }
                name => put(&mut all, name, name, section),
            }
        }
        Self(all)
    }

    /// The places where the other file differs.
    #[must_use]
    pub fn unlike<'a>(&'a self, other: &'a Self) -> BTreeSet<&'a str> {
        let of = |one: &'a Self, other: &'a Self| {
            one.0.iter().filter(|(place, value)| other.0.get(*place) != Some(value)).map(|(place, _)| place.as_str())
        };
        of(self, other).chain(of(other, self)).collect()
    }
}

fn put(all: &mut BTreeMap<String, Value>, like: &str, place: &str, section: serde_json::Map<String, Value>) {
    let taken_up = TAKEN_UP.iter().find(|(of, _)| *of == like).map_or(&[][..], |(_, keys)| keys);
    let fixed = section.into_iter().filter(|(key, _)| !taken_up.contains(&key.as_str()));
    all.extend(fixed.map(|(key, value)| (format!("[{place}] {key}"), value)));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_that_need_a_restart_are_named_by_their_place() {
        let folder = tempfile::tempdir().unwrap();
        let fixed = |text: &str| {
            let path = folder.path().join("credhost.toml");
            std::fs::write(&path, text).unwrap();
            std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
            Fixed::of(&ConfigFile::open(&path).unwrap())
        };
        let before = "[pb]\nlisten = \"a:1\" # here\ntracebacks = true\n[limits]\ncalls = 5\n[multiservice.games]\nlisten = \"a:2\"\n";
        for (after, places) in [
            (before.replace(" # here", ""), &[][..]),
            (before.replace("a:1", "a:3"), &["[pb] listen"]),
            (before.replace("true", "false").replace("calls = 5", "calls = 6"), &[]),
            (before.replace("a:2", "a:4"), &["[multiservice.games] listen"]),
            (format!("{before}[multiservice.games.limits]\ncalls = 2\n[pb.limits]\ncalls = 3\n"), &[]),
            (before.replace("[multiservice.games]\nlisten = \"a:2\"\n", ""), &["[multiservice.games] listen"]),
            (
                format!("{before}[password]\nshortest = 9\n[plugins]\nisolation = \"process\"\ngrace = 5\n"),
                &["[password] shortest", "[plugins] grace"],
            ),
            (format!("{before}[[tls.others]]\ncertificate = \"a\"\nkey = \"b\"\n"), &["[tls] others"]),
            (format!("{before}[service.chat]\nx = 1\n[audit]\nkeep = \"1 year\"\n"), &[]),
        ] {
            let (before, after) = (fixed(before), fixed(&after));
            assert_eq!(before.unlike(&after).into_iter().collect::<Vec<_>>(), places);
            assert_eq!(after.unlike(&before), before.unlike(&after));
        }
    }
}
