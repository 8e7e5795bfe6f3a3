//! Translation of values between two sides that number references differently.

use jelly::{RefKind, Reference, token};

/// A value as it stands in an expression, with the true references in it.
#[derive(Debug, Clone, Copy)]
pub struct Jelly<'b> {
    bytes: &'b [u8],
    references: &'b [Reference],
    /// The position of `bytes` in the expression. The references count from the start of the expression.
    base: usize,
}

/// The replacement of a reference.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Translated {
    /// The same kind of reference with this number.
    Number(u64),
    /// A reference of another kind with this number. It replaces the whole, including the state of a cached object.
    As(RefKind, u64),
    /// This value in place of the whole. References in it are not translated.
    Whole(Vec<u8>),
    /// Python's None, as Twisted does for a `(local n)` that it does not know.
    None,
}

impl<'b> Jelly<'b> {
    /// The part `start..end` of an expression. A scanner has found these references in the expression.
    #[must_use]
    pub fn new(expression: &'b [u8], references: &'b [Reference], start: usize, end: usize) -> Self {
        let first = references.partition_point(|reference| reference.open < start);
        let last = references.partition_point(|reference| reference.open < end);
        Self {
            bytes: expression.get(start..end).unwrap_or_default(),
            references: references.get(first..last).unwrap_or_default(),
            base: start,
        }
    }

    /// The value as received.
    #[must_use]
    pub fn bytes(&self) -> &'b [u8] {
        self.bytes
    }

    /// The bytes of one of its references.
    #[must_use]
    pub fn part(&self, reference: &Reference) -> &'b [u8] {
        let at = |position: usize| position.saturating_sub(self.base).min(self.bytes.len());
        self.bytes.get(at(reference.open)..at(reference.close)).unwrap_or_default()
    }

    /// The true references in the value.
    #[must_use]
    pub fn references(&self) -> &'b [Reference] {
        self.references
    }

    /// Appends the value to `out` with each reference translated. After an error, `out` is unchanged.
    ///
    /// # Errors
    /// Returns the error of `translate`.
    pub fn translate<E>(
        &self,
        out: &mut Vec<u8>,
        mut translate: impl FnMut(&Reference) -> Result<Translated, E>,
    ) -> Result<(), E> {
        let before = out.len();
        let mut copied = 0;
        for reference in self.references {
            let at = |position: usize| position.saturating_sub(self.base).min(self.bytes.len());
            if at(reference.open) < copied {
                // It is inside the state of a cached object that is not sent again.
                continue;
            }
            let new = match translate(reference) {
                Ok(new) => new,
                Err(error) => {
                    out.truncate(before);
                    return Err(error);
                }
            };
            match &new {
                Translated::Whole(value) => {
                    out.extend_from_slice(&self.bytes[copied..at(reference.open)]);
                    out.extend_from_slice(value);
                }
                Translated::Number(number) => {
                    out.extend_from_slice(&self.bytes[copied..at(reference.start)]);
                    token::uint(out, *number);
                }
                Translated::As(kind, number) => {
                    out.extend_from_slice(&self.bytes[copied..at(reference.open)]);
                    token::list(out, 2);
                    token::bytes(out, tag(*kind));
                    token::uint(out, *number);
                }
                Translated::None => {
                    out.extend_from_slice(&self.bytes[copied..at(reference.open)]);
                    token::list(out, 1);
                    token::bytes(out, b"None");
                }
            }
            copied = match new {
                Translated::Number(_) => at(reference.end),
                Translated::As(..) | Translated::Whole(_) | Translated::None => at(reference.close),
            };
        }
        out.extend_from_slice(&self.bytes[copied..]);
        Ok(())
    }
}

fn tag(kind: RefKind) -> &'static [u8] {
    match kind {
        RefKind::Remote | RefKind::Cache => b"remote",
        RefKind::Local => b"local",
        RefKind::Cached => b"cached",
        RefKind::Lcache => b"lcache",
    }
}
