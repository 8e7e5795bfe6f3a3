//! What a listener grants in addition to keys: to clients that have not logged in, and to clients that name no
//! perspective.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use parking_lot::RwLock;

use super::{Key, Name, NameError, NameOf};

/// The rules of one listener, as the operator set them in `[pb]` or `[multiservice.NAME]`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ListenerRules {
    /// The perspective that `loginAnonymous` attaches to. Without it, anonymous logins are refused.
    pub anonymous: Option<Key>,
    /// The service of the perspective that `login(name)` leads to if the name contains no service. Without it, such a
    /// login leads to an avatar.
    pub default_service: Option<Name>,
    /// Perspectives that everybody can call by name without a login. `getRootObject` answers with `root`, which also
    /// has the login methods.
    pub names: BTreeMap<String, Key>,
    /// Whether errors contain their place in a service's code, for developers.
    pub tracebacks: bool,
}

/// An invalid rule.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RuleError {
    /// Not of the form "service/perspective".
    #[error("{0} = {1:?}: write \"service/perspective\"")]
    NoKey(String, String),
    /// An invalid name.
    #[error("{0} = {1:?}: {2}")]
    Name(String, String, NameError),
}

impl ListenerRules {
    /// Parses the rules that the operator has written.
    ///
    /// # Errors
    /// If one of them is invalid: which one.
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
    /// Whether a client that has not logged in may have the perspective of this key: by this name, or, without a name,
    /// by an anonymous login.
    #[must_use]
    pub(crate) fn gives(&self, name: Option<&str>, key: &Key) -> bool {
        match name {
            Some(name) => self.names.get(name) == Some(key),
            None => self.anonymous.as_ref() == Some(key),
        }
    }

    /// The differences between these rules and others, for the operator.
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

/// The current rules of a listener. The operator may change them while connections are open.
#[derive(Debug, Default)]
pub(crate) struct CurrentRules(RwLock<Arc<ListenerRules>>);

impl CurrentRules {
    /// Starts with these rules.
    #[cfg(test)]
    pub(crate) fn new(rules: ListenerRules) -> Arc<Self> {
        Arc::new(Self(RwLock::new(Arc::new(rules))))
    }

    /// The current rules.
    pub(crate) fn get(&self) -> Arc<ListenerRules> {
        Arc::clone(&self.0.read())
    }

    /// Replaces the rules.
    pub(crate) fn set(&self, rules: ListenerRules) {
        *self.0.write() = Arc::new(rules);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn invalid_listener_rules_are_refused_with_their_name() {
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
