//! The audit trail: a chain of lines about events.
//!
//! Each line has a digest of itself and of the line before it, by a key that is sealed under `master.key`. Someone who
//! can write to the store, but does not have that key, cannot change, remove or reorder lines without detection. Lines
//! cut off at the end are detected by the *head*: the last line's number and digest, stored in a file beside the store
//! (`audit.head`, with its own digest by the same key), and anywhere else that the operator notes it down.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::cred::StoreSecret;

/// The purpose of the digests.
const PURPOSE: &str = "audit trail, version 1";

/// The role of a line that is recorded with its own digest. A line sealed for one role is invalid for another.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Edge {
    /// The last line, recorded beside the store.
    Head,
    /// The last dropped line, recorded in the store.
    Anchor,
}

impl Edge {
    fn purpose(self) -> &'static str {
        match self {
            Self::Head => "head of the audit trail, version 1",
            Self::Anchor => "beginning of the audit trail, version 1",
        }
    }
}

/// The longest text in an event, in bytes.
pub const LONGEST: usize = 512;

/// An event.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The time, in milliseconds since 1970.
    pub at: u64,
    /// The kind of event, in words joined by dots: "login.refused".
    pub what: &'static str,
    /// More about the event.
    pub about: Map<String, Value>,
}

impl Event {
    /// Creates an event that happens now.
    #[must_use]
    pub fn new(what: &'static str) -> Self {
        let at = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
        Self { at: u64::try_from(at.as_millis()).unwrap_or(u64::MAX), what, about: Map::new() }
    }

    /// Adds a detail.
    ///
    /// A text longer than [`LONGEST`] bytes is cut there: the trail belongs to the operator, not to the client that it
    /// is about.
    #[must_use]
    pub fn with(mut self, key: &str, value: impl Into<Value>) -> Self {
        let value = match value.into() {
            Value::String(text) if text.len() > LONGEST => {
                let mut end = LONGEST;
                while !text.is_char_boundary(end) {
                    end -= 1;
                }
                Value::String(format!("{}… ({} bytes)", &text[..end], text.len()))
            }
            value => value,
        };
        self.about.insert(key.to_owned(), value);
        self
    }

    /// The same event with the current time.
    #[must_use]
    pub fn now(self) -> Self {
        Self { at: Self::new(self.what).at, ..self }
    }

    /// Its approximate size, in bytes.
    #[must_use]
    pub fn size(&self) -> usize {
        let value = |value: &Value| value.as_str().map_or(16, str::len);
        128 + self.about.iter().map(|(key, of)| key.len() + value(of)).sum::<usize>()
    }

    /// The line's text, in JSON.
    #[must_use]
    pub fn text(&self) -> String {
        let mut all = Map::new();
        all.insert("at".to_owned(), self.at.into());
        all.insert("what".to_owned(), self.what.into());
        all.extend(self.about.clone());
        Value::Object(all).to_string()
    }
}

/// A stored line of the trail.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Line {
    /// Its number; the first is 1.
    pub number: u64,
    /// Its text, in JSON.
    pub text: String,
    /// Its digest, in hex.
    pub digest: String,
}

/// The digest before the first line.
pub const BEGINNING: &str = "";

/// The form in which that is written.
const NONE: &str = "-";

/// Computes the digest of a line.
#[must_use]
pub fn digest(secret: &StoreSecret, before: &str, number: u64, text: &str) -> String {
    let parts = [before.as_bytes(), &number.to_le_bytes(), text.as_bytes()];
    data_encoding::HEXLOWER.encode(&secret.digest(PURPOSE, &parts))
}

/// A fault in a trail.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Broken {
    /// A line is missing, or in another place.
    #[error("after line {0} comes line {1}: lines were removed or reordered")]
    Gap(u64, u64),
    /// A line was changed, or the line before it was replaced.
    #[error("line {0} is not as written: it, or a line before it, was changed or moved")]
    Changed(u64),
    /// The end was cut off.
    #[error("the trail ends at line {0}, but line {1} was written: lines were cut off at the end")]
    Short(u64, u64),
    /// The line that should be the head is a different one.
    #[error("line {0} differs from the head that was noted down")]
    Head(u64),
}

/// Verifies a trail, line by line.
#[derive(Debug, Clone)]
pub struct Verifier<'a> {
    secret: &'a StoreSecret,
    number: u64,
    digest: String,
    head: Option<Head>,
}

/// The last line of a trail at some time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Head {
    /// Its number; 0 if there is none.
    pub number: u64,
    /// Its digest.
    pub digest: String,
}

impl Head {
    /// Parses the output of [`Head`]'s `Display`.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let (number, digest) = text.trim().split_once(' ')?;
        let digest = if digest == NONE { BEGINNING } else { digest };
        Some(Self { number: number.parse().ok()?, digest: digest.to_owned() })
    }

    /// The head before the first line.
    #[must_use]
    pub fn beginning() -> Self {
        Self { number: 0, digest: BEGINNING.to_owned() }
    }
}

impl Head {
    /// Formats it with its own digest, so that someone who can write to its file cannot record another line there.
    #[must_use]
    pub fn sealed(&self, edge: Edge, secret: &StoreSecret) -> String {
        format!("{self} {}", self.seal(edge, secret))
    }

    /// Parses the output of [`Head::sealed`].
    #[must_use]
    pub fn unsealed(text: &str, edge: Edge, secret: &StoreSecret) -> Option<Self> {
        let (head, seal) = text.trim().rsplit_once(' ')?;
        Self::parse(head).filter(|head| head.seal(edge, secret) == seal)
    }

    fn seal(&self, edge: Edge, secret: &StoreSecret) -> String {
        let parts = [&self.number.to_le_bytes(), self.digest.as_bytes()];
        data_encoding::HEXLOWER.encode(&secret.digest(edge.purpose(), &parts))
    }
}

/// The seal of a segment. It covers the segment's beginning and end, so that neither can be moved.
#[must_use]
pub fn segment_seal(secret: &StoreSecret, after: &Head, end: &Head) -> String {
    let (first, last) = (after.number.to_le_bytes(), end.number.to_le_bytes());
    let parts = [&first[..], after.digest.as_bytes(), &last[..], end.digest.as_bytes()];
    data_encoding::HEXLOWER.encode(&secret.digest("segment of the audit trail, version 1", &parts))
}

impl std::fmt::Display for Head {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.number, if self.digest.is_empty() { NONE } else { &self.digest })
    }
}

impl<'a> Verifier<'a> {
    /// Starts after a line, or at [`Head::beginning`]. `head` is a line that must be there, unless it is before the
    /// start.
    #[must_use]
    pub fn new(secret: &'a StoreSecret, after: Head, head: Option<Head>) -> Self {
        Self { secret, number: after.number, digest: after.digest, head }
    }

    /// Verifies the next line.
    ///
    /// # Errors
    /// If it is wrong.
    pub fn line(&mut self, line: &Line) -> Result<(), Broken> {
        if line.number != self.number + 1 {
            return Err(Broken::Gap(self.number, line.number));
        }
        if line.digest != digest(self.secret, &self.digest, line.number, &line.text) {
            return Err(Broken::Changed(line.number));
        }
        if let Some(head) = &self.head
            && head.number == line.number
            && head.digest != line.digest
        {
            return Err(Broken::Head(line.number));
        }
        self.number = line.number;
        self.digest.clone_from(&line.digest);
        Ok(())
    }

    /// Ends the trail, and returns its head.
    ///
    /// # Errors
    /// If it ended too early.
    pub fn end(self) -> Result<Head, Broken> {
        match &self.head {
            Some(head) if head.number > self.number => Err(Broken::Short(self.number, head.number)),
            _ => Ok(Head { number: self.number, digest: self.digest }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trail(secret: &StoreSecret) -> Vec<Line> {
        let mut before = BEGINNING.to_owned();
        (1..=5)
            .map(|number| {
                let text = Event::new("test").with("n", number).text();
                before = digest(secret, &before, number, &text);
                Line { number, text, digest: before.clone() }
            })
            .collect()
    }

    fn verify(lines: &[Line], head: Option<Head>) -> Result<Head, Broken> {
        let secret = StoreSecret::new([1; 32]);
        let mut verifier = Verifier::new(&secret, Head::beginning(), head);
        lines.iter().try_for_each(|line| verifier.line(line))?;
        verifier.end()
    }

    #[test]
    fn any_change_removal_or_reordering_is_found() {
        let lines = trail(&StoreSecret::new([1; 32]));
        let head = verify(&lines, None).unwrap();
        assert_eq!(Head::parse(&head.to_string()), Some(head.clone()));
        assert_eq!(verify(&lines, Some(head.clone())), Ok(head.clone()));
        for at in 0..5 {
            let mut changed = lines.clone();
            changed[at].text = changed[at].text.replace("test", "tent");
            assert_eq!(verify(&changed, None), Err(Broken::Changed(at as u64 + 1)));
            let mut removed = lines.clone();
            removed.remove(at);
            assert!(verify(&removed, Some(head.clone())).is_err(), "{at}");
        }
        let mut swapped = lines.clone();
        swapped.swap(1, 2);
        assert_eq!(verify(&swapped, None), Err(Broken::Gap(1, 3)));
        let renumbered: Vec<Line> =
            [0, 2, 1, 3, 4].iter().zip(1..).map(|(at, number)| Line { number, ..lines[*at].clone() }).collect();
        assert_eq!(verify(&renumbered, None), Err(Broken::Changed(2)));
        assert_eq!(verify(&lines[..3], Some(head)), Err(Broken::Short(3, 5)));
    }

    #[test]
    fn a_head_can_be_noted_only_with_the_key() {
        let secret = StoreSecret::new([1; 32]);
        let lines = trail(&secret);
        let head = |at: usize| Head { number: lines[at].number, digest: lines[at].digest.clone() };
        assert_eq!(Head::unsealed(&head(4).sealed(Edge::Head, &secret), Edge::Head, &secret), Some(head(4)));
        // The head as it is in the store is not enough, and neither is the seal of another line.
        assert_eq!(Head::unsealed(&head(2).to_string(), Edge::Head, &secret), None);
        let moved = head(4).sealed(Edge::Head, &secret).replace(&head(4).to_string(), &head(2).to_string());
        assert_eq!(Head::unsealed(&moved, Edge::Head, &secret), None);
        // The head beside the store is not the beginning of the trail; otherwise everything before it could be removed.
        for (made, read) in [(Edge::Head, Edge::Anchor), (Edge::Anchor, Edge::Head)] {
            assert_eq!(Head::unsealed(&head(4).sealed(made, &secret), read, &secret), None);
        }
        assert_eq!(Head::parse(&Head::beginning().to_string()), Some(Head::beginning()));
    }

    #[test]
    fn a_trail_written_without_the_key_does_not_verify() {
        let forged = trail(&StoreSecret::new([2; 32]));
        assert_eq!(verify(&forged, None), Err(Broken::Changed(1)));
    }
}
