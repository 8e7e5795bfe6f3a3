//! Names of identities, services and perspectives.

use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

/// The most bytes of UTF-8 that a name may have.
const LIMIT: usize = 255;

/// What a name is of, for an error message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum NameOf {
    Identity,
    Service,
    Perspective,
}

/// A name that is one: 1 to 255 bytes of UTF-8 in NFC, no control characters, no `/` (which log-in uses to join them).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a name is none.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of {}: {why}", match of { NameOf::Identity => "an identity", NameOf::Service => "a service", NameOf::Perspective => "a perspective" })]
pub struct NameError {
    of: NameOf,
    name: String,
    why: &'static str,
}

impl Name {
    /// A name, brought into NFC.
    ///
    /// # Errors
    /// When it is empty, too long, or has a `/` or a control character.
    pub fn new(of: NameOf, name: &str) -> Result<Self, NameError> {
        let normal: String = name.nfc().collect();
        let refuse = |why| Err(NameError { of, name: normal.chars().take(40).collect(), why });
        if normal.is_empty() {
            return refuse("it is empty");
        }
        if normal.len() > LIMIT {
            return refuse("it has more than 255 bytes");
        }
        if normal.contains('/') {
            return refuse("it has a `/`");
        }
        if normal.chars().any(char::is_control) {
            return refuse("it has a control character");
        }
        Ok(Self(normal.into()))
    }

    /// The name.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::borrow::Borrow<str> for Name {
    fn borrow(&self) -> &str {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_edges_of_a_name() {
        assert!(Name::new(NameOf::Identity, &"a".repeat(255)).is_ok());
        for bad in ["", "a/b", "a\nb", &"a".repeat(256)] {
            assert!(Name::new(NameOf::Identity, bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn two_spellings_of_one_name_are_one() {
        let composed = Name::new(NameOf::Identity, "Zo\u{eb}");
        assert_eq!(composed, Name::new(NameOf::Identity, "Zoe\u{308}"));
    }
}
