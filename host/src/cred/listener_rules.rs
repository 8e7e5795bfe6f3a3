//! What a listener gives beside what keys give: to clients that have not logged in, and to those that name no perspective.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Key, Name, NameError, NameOf};

/// The rules of one listener: the operator's word, from `[pb]` or `[multiservice.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerRules {
    /// The perspective that `loginAnonymous` attaches to. Without it, anonymous logins are refused.
    pub anonymous: Option<Key>,
    /// The service whose perspective `login(name)` leads to, where the name names none. Without it, such a login leads to
    /// an avatar.
    pub default_service: Option<Name>,
    /// Perspectives that everybody can call, by name, without a login: `root` is what `getRootObject` answers with, beside
    /// log-in's own methods.
    pub names: BTreeMap<String, Key>,
    /// Whether errors tell where in a service's code they were made: for developers.
    pub tracebacks: bool,
}

/// A rule that cannot be.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Not the way to a perspective.
    #[error("{0} = {1:?}: write \"service/perspective\"")]
    NoKey(String, String),
    /// A name that cannot be.
    #[error("{0} = {1:?}: {2}")]
    Name(String, String, NameError),
}

impl ListenerRules {
    /// The rules as the operator has written them.
    ///
    /// # Errors
    /// Which of them cannot be.
    pub fn read(
        anonymous: Option<&str>,
        default_service: Option<&str>,
        names: &BTreeMap<String, String>,
        tracebacks: bool,
    ) -> Result<Self, RuleError> {
        let key = |what: &str, text: &str| {
            let wrong = || RuleError::NoKey(what.to_owned(), text.to_owned());
            let (service, perspective) = text.split_once('/').ok_or_else(wrong)?;
            Key::new(service, perspective).map_err(|error| RuleError::Name(what.to_owned(), text.to_owned(), error))
        };
        let service = |text: &str| {
            Name::new(NameOf::Service, text)
                .map_err(|error| RuleError::Name("default_service".to_owned(), text.to_owned(), error))
        };
        Ok(Self {
            anonymous: anonymous.map(|text| key("anonymous", text)).transpose()?,
            default_service: default_service.map(service).transpose()?,
            names: names
                .iter()
                .map(|(name, text)| Ok((name.clone(), key(&format!("names.{name}"), text)?)))
                .collect::<Result<_, RuleError>>()?,
            tracebacks,
        })
    }
}

impl ListenerRules {
    /// Whether a client that has not logged in may have the perspective of this key: by this name, or without a name by an
    /// anonymous login.
    #[must_use]
    pub(crate) fn gives(&self, name: Option<&str>, key: &Key) -> bool {
        match name {
            Some(name) => self.names.get(name) == Some(key),
            None => self.anonymous.as_ref() == Some(key),
        }
    }

    /// What others say that these do not, for the operator to read.
    #[must_use]
    pub(crate) fn changes_to(&self, others: &Self) -> Vec<String> {
        let key = |key: Option<&Key>| key.map(|key| format!("{}/{}", key.service, key.perspective));
        let service = |rules: &Self| rules.default_service.as_ref().map(ToString::to_string);
        let traced = |rules: &Self| rules.tracebacks.then(|| "true".to_owned());
        let mut settings = vec![
            ("anonymous".to_owned(), key(self.anonymous.as_ref()), key(others.anonymous.as_ref())),
            ("default_service".to_owned(), service(self), service(others)),
            ("tracebacks".to_owned(), traced(self), traced(others)),
        ];
        let names: BTreeSet<&String> = self.names.keys().chain(others.names.keys()).collect();
        settings.extend(names.into_iter().map(|name| {
            (format!("names.{}", name.escape_debug()), key(self.names.get(name)), key(others.names.get(name)))
        }));
        let shown = |value: Option<String>| value.unwrap_or_else(|| "none".to_owned());
        let changed = settings.into_iter().filter(|(_, before, after)| before != after);
        changed.map(|(name, before, after)| format!("{name}: {} → {}", shown(before), shown(after))).collect()
    }
}

/// The rules of a listener as they are now: the operator may change them while connections are open.
#[derive(Debug, Default)]
pub(crate) struct CurrentRules(RwLock<Arc<ListenerRules>>);

impl CurrentRules {
    /// These, to begin with.
    #[cfg(test)]
    pub(crate) fn new(rules: ListenerRules) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(rules))))
    }

    /// As they are.
    pub(crate) fn get(&self) -> Arc<ListenerRules> {
        Arc::clone(&self.0.read())
    }

    /// Others from now on.
    pub(crate) fn set(&self, rules: ListenerRules) {
        *self.0.write() = Arc::new(rules);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_is_said_with_its_name() {
        let none = BTreeMap::new();
        let rules = ListenerRules::read(Some("board/guest"), Some("todo"), &none, false).unwrap();
        assert_eq!(rules.anonymous, Some(Key::new("board", "guest").unwrap()));
        let said = ListenerRules::read(Some("board"), None, &none, false).unwrap_err().to_string();
        assert_eq!(said, "anonymous = \"board\": write \"service/perspective\"");
        let names = BTreeMap::from([("root".to_owned(), "board/".to_owned())]);
        let said = ListenerRules::read(None, None, &names, false).unwrap_err().to_string();
        assert!(said.starts_with("names.root = \"board/\": "), "{said}");
        assert!(ListenerRules::read(None, Some(""), &none, false).is_err());
    }
}
