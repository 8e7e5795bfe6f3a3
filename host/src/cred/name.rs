//! Names of identities, services and perspectives.

use std::borrow::Cow;
use std::sync::Arc;

use unicode_normalization::UnicodeNormalization;

use crate::show::is_hidden;

/// The longest name, in bytes of UTF-8.
const LIMIT: usize = 255;

/// The kind of a name, for an error message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "they are what they say")]
pub enum NameOf {
    Identity,
    Service,
    Perspective,
}

/// A valid name: 1 to 255 bytes of UTF-8 in NFC, without control characters and without `/` (which separates names in a
/// login).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Arc<str>);

/// Why a text is not a valid name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{name:?} cannot be the name of {}: {why}", match of { NameOf::Identity => "an identity", NameOf::Service => "a service", NameOf::Perspective => "a perspective" })]
pub struct NameError {
    of: NameOf,
    name: String,
    why: Cow<'static, str>,
}

impl Name {
    /// Creates a name, normalized to NFC.
    ///
    /// # Errors
    /// If it is empty, too long, or has a `/` or a control character.
    pub fn new(of: NameOf, name: &str) -> Result<Self, NameError> {
        let normal: String = name.nfc().collect();
        let refuse =
            |why: &'static str| Err(NameError { of, name: normal.chars().take(40).collect(), why: why.into() });
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

    /// Creates a name for something new. It must not look like another name: no space at either end, no two spaces in a
    /// row, no space other than U+0020, and no invisible characters.
    ///
    /// Existing names are read by [`Name::new`], which accepts all of these. So whatever has such a name can still log
    /// in, and be removed.
    ///
    /// # Errors
    /// If it could be mistaken for another name, or is invalid.
    ///
    /// ```
    /// use credhost::cred::{Name, NameOf};
    ///
    /// assert!(Name::chosen(NameOf::Identity, "Zoë Müller").is_ok());
    /// let error = Name::chosen(NameOf::Identity, "bob\u{200b}").unwrap_err();
    /// assert!(error.to_string().contains("U+200B"));
    /// ```
    pub fn chosen(of: NameOf, name: &str) -> Result<Self, NameError> {
        let chosen = Self::new(of, name)?;
        let refuse = |why: String| Err(NameError { of, name: chosen.0.chars().take(40).collect(), why: why.into() });
        let text = chosen.as_str();
        if let Some(hidden) = text.chars().find(|c| is_unseen(*c)) {
            return refuse(format!("it has an invisible character, U+{:04X}", u32::from(hidden)));
        }
        if let Some(space) = text.chars().find(|c| c.is_whitespace() && *c != ' ') {
            return refuse(format!("it has an unusual space, U+{:04X}", u32::from(space)));
        }
        if text.trim() != text {
            return refuse("it begins or ends with a space".to_owned());
        }
        if text.contains("  ") {
            return refuse("it has two spaces in a row".to_owned());
        }
        Ok(chosen)
    }

    /// The name as text.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// Whether a character is invisible, so that two names that differ in it look the same. This covers more than
/// [`is_hidden`]: a variation selector that makes a heart red is harmless in text that is only shown.
fn is_unseen(c: char) -> bool {
    is_hidden(c)
        || matches!(c, '\u{34f}' | '\u{115f}' | '\u{1160}' | '\u{17b4}' | '\u{17b5}' | '\u{180b}'..='\u{180f}'
            | '\u{2800}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{ffa0}' | '\u{fff0}'..='\u{ffff}' | '\u{13430}'..='\u{1345f}' | '\u{16fe4}'
            | '\u{1bca0}'..='\u{1bca3}' | '\u{1d159}' | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
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
    fn a_new_name_cannot_be_mistaken_for_another() {
        for good in ["alice", "Zoë Müller", "o'brien@example.org", "李小龍", "שרה", "👍", "a b c"] {
            assert!(Name::chosen(NameOf::Identity, good).is_ok(), "{good:?}");
        }
        let hidden =
            ["\u{200b}", "\u{202e}", "\u{ad}", "\u{feff}", "\u{2066}", "\u{3164}", "\u{e0041}", "\u{fe0f}", "\u{34f}"];
        for hidden in hidden {
            for name in [format!("{hidden}bob"), format!("b{hidden}ob"), format!("bob{hidden}")] {
                let why = Name::chosen(NameOf::Identity, &name).unwrap_err().to_string();
                assert!(why.contains("invisible character, U+") && !why.contains(is_hidden), "{why}");
                assert!(Name::new(NameOf::Identity, &name).is_ok(), "who has it keeps it");
            }
        }
        for (name, why) in [
            (" bob", "ends with a space"),
            ("bob ", "ends with a space"),
            ("b  ob", "two spaces"),
            ("b\u{a0}ob", "unusual space, U+00A0"),
            ("bob\u{3000}", "unusual space, U+3000"),
        ] {
            let refused = Name::chosen(NameOf::Identity, name).unwrap_err().to_string();
            assert!(refused.contains(why), "{name:?}: {refused}");
        }
    }

    #[test]
    fn two_spellings_of_one_name_are_one() {
        let composed = Name::new(NameOf::Identity, "Zo\u{eb}");
        assert_eq!(composed, Name::new(NameOf::Identity, "Zoe\u{308}"));
    }
}
