//! Keys: the perspectives that an identity may use.

use std::collections::BTreeSet;

use super::name::{Name, NameError, NameOf};

/// The key to one perspective of one service.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key {
    /// The service's name.
    pub service: Name,
    /// The perspective's name.
    pub perspective: Name,
}

impl Key {
    /// The key to this perspective of this service. It is not checked whether they exist, since keys outlive services.
    ///
    /// # Errors
    /// If one of the names is invalid.
    pub fn new(service: &str, perspective: &str) -> Result<Self, NameError> {
        Ok(Self {
            service: Name::new(NameOf::Service, service)?,
            perspective: Name::new(NameOf::Perspective, perspective)?,
        })
    }
}

/// An identity's keys.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Keyring(BTreeSet<Key>);

impl Keyring {
    /// Adds a key. Returns false if it was there already.
    pub fn add(&mut self, key: Key) -> bool {
        self.0.insert(key)
    }

    /// Removes a key. Returns false if it was not there.
    pub fn remove(&mut self, key: &Key) -> bool {
        self.0.remove(key)
    }

    /// Whether it has this key.
    #[must_use]
    pub fn has(&self, key: &Key) -> bool {
        self.0.contains(key)
    }

    /// The first key to this service, sorted by name: used for a client that names no perspective.
    #[must_use]
    pub fn first_for(&self, service: &str) -> Option<&Key> {
        self.0.iter().find(|key| key.service.as_str() == service)
    }

    /// All keys, sorted by name.
    pub fn keys(&self) -> impl ExactSizeIterator<Item = &Key> {
        self.0.iter()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_key_is_added_only_once_and_the_first_is_first_by_name() {
        let mut keyring = Keyring::default();
        assert!(keyring.add(Key::new("one", "b").unwrap()));
        assert!(keyring.add(Key::new("one", "a").unwrap()));
        assert!(!keyring.add(Key::new("one", "a").unwrap()));
        assert_eq!(keyring.first_for("one"), Some(&Key::new("one", "a").unwrap()));
        assert_eq!(keyring.first_for("two"), None);
        assert!(keyring.remove(&Key::new("one", "a").unwrap()));
        assert!(!keyring.remove(&Key::new("one", "a").unwrap()));
    }
}
