//! Errors of values, in the words of the person who made the value.

/// A value that could not be read or written.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The bytes are not a Banana token, or the token exceeds a limit.
    #[error(transparent)]
    Banana(#[from] crate::token::BananaError),
    /// The tokens are not valid Jelly, or exceed a limit.
    #[error(transparent)]
    Defect(#[from] crate::scan::Defect),
    /// The bytes end inside a value.
    #[error("the value ends too early")]
    Incomplete,
    /// There are bytes after the value.
    #[error("{0} bytes follow the value")]
    Trailing(usize),
    /// The value is not of the expected kind.
    #[error("expected {expected}, found {found}")]
    Unexpected {
        /// The expected kind.
        expected: &'static str,
        /// The kind that was found.
        found: String,
    },
    /// A text that is not UTF-8.
    #[error("a text that is not UTF-8")]
    NotUtf8,
    /// An integer that does not fit the expected type.
    #[error("the integer {0} is too large here")]
    IntegerRange(String),
    /// A value that contains itself, where a plain type was expected.
    #[error("the value contains itself; only an untyped value can hold a cycle")]
    Cycle,
    /// A `(dereference n)` without a `(reference n …)` before it.
    #[error("dereference of {0}, which is not defined before it")]
    Dangling(u64),
    /// An error of a type's own `Serialize` or `Deserialize`.
    #[error("{0}")]
    Custom(String),
}

/// The result of reading or writing a value.
pub type Result<T> = std::result::Result<T, Error>;

impl serde::de::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Custom(message.to_string())
    }
}

impl serde::ser::Error for Error {
    fn custom<T: std::fmt::Display>(message: T) -> Self {
        Self::Custom(message.to_string())
    }
}
