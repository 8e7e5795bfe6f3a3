//! What a listener gives beside what keys give: to clients that have not logged in, and to those that name no perspective.

use std::collections::BTreeMap;

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
