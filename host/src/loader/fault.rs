//! Why a library does not serve: the variant says whose fault it is, and the text what is wrong.

/// Why a library, or the service in it, does not serve. It displays as one sentence for the operator.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum LibraryFault {
    /// The file is no library, is incomplete, or is damaged.
    #[error("{0}")]
    File(String),
    /// The library's own fault: it refuses, panics, crashes, or does not return.
    #[error("{0}")]
    Library(String),
    /// The operator's setup does not fit: the configuration, the name, the needs.
    #[error("{0}")]
    Operator(String),
    /// The machine lacks room, a descriptor, a thread or a permission for it. This may change later.
    #[error("{0}")]
    Machine(String),
    /// The request does not fit the present state of the service: it has stopped, is starting, or was overtaken.
    #[error("{0}")]
    State(String),
}

impl LibraryFault {
    /// A fault of the machine, which may allow later what it refuses now.
    #[must_use]
    pub fn machine(what: &str, error: impl std::fmt::Display) -> Self {
        Self::Machine(format!("{what}: {error}"))
    }

    /// Whether another attempt may succeed although nobody has changed anything.
    #[must_use]
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Machine(_))
    }
}
