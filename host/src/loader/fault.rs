//! Why a library does not serve: whose fault that is is in the type, what is wrong in the words.

/// Why a library, or the service in it, does not serve. Shown, it is one sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryFault {
    /// The file is no library, not a whole one, or damaged.
    #[error("{0}")]
    File(String),
    /// The library's own: it refuses, panics, crashes, or does not come back.
    #[error("{0}")]
    Library(String),
    /// What the operator has set up does not fit: the configuration, the name, what it needs.
    #[error("{0}")]
    Operator(String),
    /// The machine has no room, descriptor, thread or permission for it. It may have, later.
    #[error("{0}")]
    Machine(String),
    /// What was asked for does not fit what the service is just now: it has stopped, is starting, was overtaken.
    #[error("{0}")]
    State(String),
}

impl LibraryFault {
    /// The machine refuses something that it may allow later.
    #[must_use]
    pub fn machine(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Machine(format!("{what}: {error}"))
    }

    /// Whether another try may go well, though nobody has changed anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Machine(_))
    }
}
