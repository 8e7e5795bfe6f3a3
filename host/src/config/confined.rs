//! `isolation`, `allow` and `most`: how services are isolated from the host.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use super::{LimitValue, Settings};
use crate::limits::Unit;
use crate::loader::worker::confinement::{Confinement, Isolation, Permission};

/// The keys in a service's section that are for the host.
pub(super) const ISOLATION: &str = "isolation";
pub(super) const ALLOW: &str = "allow";
/// The resource limits of the service: a table.
pub(super) const MOST: &str = "most";

/// The smallest memory limit for a service, in bytes. With less, no library can be opened.
const LEAST_MEMORY: u64 = 16 << 20;
/// The lowest limit of descriptors.
const LEAST_FILES: u64 = 32;
/// The smallest limit of its files' size, in bytes.
const LEAST_FILE: u64 = 4 << 10;

/// The isolation of each service.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Confinements {
    default: Isolation,
    of: BTreeMap<String, Confinement>,
}

impl Confinements {
    /// The isolation of this service.
    #[must_use]
    pub fn of(&self, service: &str) -> Confinement {
        let default = || Confinement { isolation: self.default, ..Confinement::default() };
        self.of.get(service).cloned().unwrap_or_else(default)
    }

    /// The permissions of services, by name.
    #[must_use]
    pub fn allowed(&self) -> BTreeMap<String, Vec<Permission>> {
        self.of.iter().map(|(service, confinement)| (service.clone(), confinement.allow.clone())).collect()
    }
}

/// Reads the isolation of all services from the settings.
///
/// # Errors
/// If one is invalid: the reason, with its place.
pub fn confinements(settings: &Settings) -> Result<Confinements, String> {
    let default =
        settings.plugins.isolation.parse::<Isolation>().map_err(|why| format!("[plugins] isolation = {why}"))?;
    let mut of = BTreeMap::new();
    for (service, section) in &settings.service {
        let at = |key: &str, why: String| format!("[service.{service}] {key}: {why}");
        let isolation = match section.get(ISOLATION) {
            None => default,
            Some(Value::String(word)) => word.parse().map_err(|why| at(ISOLATION, why))?,
            Some(_) => return Err(at(ISOLATION, "expected \"none\", \"process\" or \"sandbox\"".to_owned())),
        };
        let allow = permissions(section.get(ALLOW)).map_err(|why| at(ALLOW, why))?;
        let (memory, files, file) = match section.get(MOST) {
            Some(Value::Object(most)) => resources(most).map_err(|why| at(MOST, why))?,
            // A service may have a setting of its own with this name.
            _ => (None, None, None),
        };
        of.insert(service.clone(), Confinement { isolation, allow, memory, files, file });
    }
    Ok(Confinements { default, of })
}

fn permissions(words: Option<&Value>) -> Result<Vec<Permission>, String> {
    let words = match words {
        None => return Ok(Vec::new()),
        Some(Value::Array(words)) => words,
        Some(_) => return Err("expected a list, such as [\"net:tcp:443\", \"read:/etc/ssl\"]".to_owned()),
    };
    let read = |word: &Value| word.as_str().ok_or_else(|| format!("{word} is not text"))?.parse();
    words.iter().map(read).collect()
}

/// Memory in bytes, descriptors, and the largest file in bytes.
type Resources = (Option<u64>, Option<u64>, Option<u64>);

fn resources(most: &Map<String, Value>) -> Result<Resources, String> {
    let mut found = (None, None, None);
    for (key, value) in most {
        let (unit, least, into) = match key.as_str() {
            "memory" => (Unit::Bytes, LEAST_MEMORY, &mut found.0),
            "files" => (Unit::Count, LEAST_FILES, &mut found.1),
            "file" => (Unit::Bytes, LEAST_FILE, &mut found.2),
            _ => return Err(format!("{key:?} is not a limit: the limits are memory, files, file")),
        };
        let read: Option<u64> =
            serde_json::from_value::<LimitValue>(value.clone()).ok().and_then(|value| unit.read(&value));
        let read = read.ok_or_else(|| format!("{key} = {value}: expected {}", unit.expected()))?;
        if read < least {
            return Err(format!("{key} = {value}: the minimum is {}", unit.shown(least)));
        }
        *into = Some(read);
    }
    Ok(found)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Confinements, String> {
        confinements(&toml_edit::de::from_str(text).expect("it is TOML"))
    }

    #[test]
    fn one_word_says_where_a_service_runs() {
        let all = read(
            "[plugins]\nisolation = \"process\"\n[service.todo]\ncolour = \"red\"\n[service.chat]\nisolation = \"none\"\n\
             [service.web]\nisolation = \"sandbox\"\nallow = [\"net:tcp:443\"]\nmost = { memory = \"64 MiB\", files = 64 }\n",
        )
        .expect("it can be");
        let isolation = |service| all.of(service).isolation;
        assert_eq!(
            [isolation("todo"), isolation("chat"), isolation("web"), isolation("other")],
            [Isolation::Process, Isolation::None, Isolation::Sandbox, Isolation::Process]
        );
        let web = all.of("web");
        assert_eq!((web.allow, web.memory, web.files), (vec![Permission::Connect(443)], Some(64 << 20), Some(64)));
        assert_eq!(read("").expect("it can be").of("todo"), Confinement::default());
    }

    #[test]
    fn invalid_confinement_settings_are_refused_with_their_place() {
        for (text, said) in [
            (
                "[plugins]\nisolation = \"jail\"",
                "[plugins] isolation = \"jail\" is not an isolation: use \"none\", \"process\" or \"sandbox\"",
            ),
            ("[service.a]\nisolation = 1", "[service.a] isolation: expected \"none\", \"process\" or \"sandbox\""),
            (
                "[service.a]\nallow = \"net\"",
                "[service.a] allow: expected a list, such as [\"net:tcp:443\", \"read:/etc/ssl\"]",
            ),
            ("[service.a]\nallow = [1]", "[service.a] allow: 1 is not text"),
            (
                "[service.a]\nallow = [\"read:etc\"]",
                "[service.a] allow: \"read:etc\": a path must begin with / and must not contain ..",
            ),
            (
                "[service.a]\nmost = { memory = \"1 MB\" }",
                "[service.a] most: memory = \"1 MB\": expected a size, such as 8388608 or \"8 MiB\"",
            ),
            ("[service.a]\nmost = { memory = 1 }", "[service.a] most: memory = 1: the minimum is 16 MiB"),
            (
                "[service.a]\nmost = { cpu = 1 }",
                "[service.a] most: \"cpu\" is not a limit: the limits are memory, files, file",
            ),
        ] {
            assert_eq!(read(text).expect_err(text), said);
        }
    }
}
