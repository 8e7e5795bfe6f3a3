//! Known names, for suggestions when a name is mistyped.

use std::collections::{BTreeMap, BTreeSet};

use super::protocol::LibraryStatus;
use crate::config::{Home, Settings};
use crate::nearest::{meant, nearest};

/// The names of services: those of the loaded libraries, and for others, the names that their files suggest.
#[must_use]
pub fn services(home: &Home, libraries: Option<&[LibraryStatus]>) -> BTreeSet<String> {
    let Some(libraries) = libraries else {
        let files = [home.plugins(), home.good()]
            .into_iter()
            .flat_map(|folder| std::fs::read_dir(folder).into_iter().flatten());
        let files = files.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned());
        return files.flat_map(|file| of_file(&file)).collect();
    };
    // A library that is not loaded yet may contain any service.
    let not_loaded =
        libraries.iter().filter(|library| library.service.is_none()).flat_map(|library| of_file(&library.file));
    libraries.iter().filter_map(|library| library.service.clone()).chain(not_loaded).collect()
}

/// The likely names of the services in a library file: `libmy_service.so` suggests its crate's name.
fn of_file(file: &str) -> Vec<String> {
    let Some((stem, _)) = file.split_once(".so") else { return Vec::new() };
    let name = stem.strip_prefix("lib").unwrap_or(stem).to_owned();
    let mut names = vec![name.replace('_', "-"), name.replace('_', " "), name];
    names.dedup();
    names
}

/// Advice if there is no service of this name.
#[must_use]
pub fn hint(name: &str, libraries: &[LibraryStatus]) -> String {
    let named = || libraries.iter().filter_map(|library| library.service.as_deref());
    // If the service exists, something else is wrong.
    let other = nearest(name, named()).filter(|_| named().all(|known| known != name));
    other.map_or_else(
        || "`credhost service list` shows the services".to_owned(),
        |name| format!("did you mean {name:?}?"),
    )
}

/// The settings in credhost.toml for services that do not exist, each as a sentence.
#[must_use]
pub fn sections_of_none(settings: &Settings, known: &BTreeSet<String>) -> Vec<String> {
    let own = settings.service.keys().map(|name| (format!("[service.{name}]"), name));
    let members = settings.multiservice.iter().flat_map(|(collection, section)| {
        section.services.iter().map(move |name| (format!("[multiservice.{collection}] services = [{name:?}]"), name))
    });
    let pb = &settings.pb;
    let listeners =
        std::iter::once(("[pb]".to_owned(), opened(pb.anonymous.as_deref(), pb.default_service.as_deref(), &pb.names)));
    let others = settings.multiservice.iter().map(|(name, section)| {
        let opened = opened(section.anonymous.as_deref(), section.default_service.as_deref(), &section.names);
        (format!("[multiservice.{name}]"), opened)
    });
    let rules = listeners.chain(others).flat_map(|(section, opened)| {
        opened.into_iter().map(move |(setting, service)| (format!("{section} {setting}"), service))
    });
    let strange = own.chain(members).map(|(section, name)| (section, name.clone())).chain(rules);
    strange
        .filter(|(_, name)| !known.contains(name))
        .map(|(section, name)| {
            format!("{section} in credhost.toml: no service here has this name{}", meant(&name, known))
        })
        .collect()
}

/// The services that a listener's rules name, each with its setting.
fn opened(
    anonymous: Option<&str>,
    default_service: Option<&str>,
    names: &BTreeMap<String, String>,
) -> Vec<(String, String)> {
    let service = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let anonymous = anonymous.map(|path| (format!("anonymous = {path:?}"), service(path)));
    let default_service = default_service.map(|name| (format!("default_service = {name:?}"), name.to_owned()));
    let names = names.iter().map(|(name, path)| (format!("names.{name} = {path:?}"), service(path)));
    anonymous.into_iter().chain(default_service).chain(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sections_of_unknown_services_are_named_with_a_suggestion() {
        let text = "[pb]\ndefault_service = \"todo\"\nanonymous = \"scors/guest\"\n[pb.names]\nroot = \"todo/root\"\n\
                    [service.tood]\nx = 1\n[service.todo]\nx = 1\n[multiservice.games]\nservices = [\"scoers\", \"todo\"]\n";
        let settings: Settings = toml_edit::de::from_str(text).unwrap();
        let known = ["todo", "scores"].map(str::to_owned).into();
        let said = sections_of_none(&settings, &known);
        assert_eq!(
            said,
            [
                "[service.tood] in credhost.toml: no service here has this name; did you mean \"todo\"?",
                "[multiservice.games] services = [\"scoers\"] in credhost.toml: no service here has this name; did you mean \"scores\"?",
                "[pb] anonymous = \"scors/guest\" in credhost.toml: no service here has this name; did you mean \"scores\"?",
            ]
        );
    }

    #[test]
    fn a_file_stands_for_services_of_its_name() {
        assert!(of_file("libmy_service.so").contains(&"my-service".to_owned()));
        assert_eq!(of_file("todo.so.previous"), ["todo"]);
        assert!(of_file("README").is_empty());
    }
}
