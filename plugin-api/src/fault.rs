//! Errors that a client is meant to see.

/// An error with the class name that clients trap it by.
///
/// In Twisted: `failure.trap("todo.NoSuchTask")`, or `failure.trap(ValueError)` for a builtin. A class that is neither
/// a builtin nor one of Twisted's counts as derived from `twisted.spread.pb.Error`.
///
/// `?` makes one of any error (class `RuntimeError`, the error's own words): say something better where the client can
/// do something about it.
///
/// ```
/// use plugin_api::Fault;
///
/// // Twisted: `failure.trap("todo.NoSuchTask")`.
/// let fault = Fault::new("todo.NoSuchTask", "there is no task 7");
/// assert_eq!((fault.class(), fault.message()), ("todo.NoSuchTask", "there is no task 7"));
///
/// // Any error by `?`.
/// fn number(text: &str) -> plugin_api::Result<u32> {
///     Ok(text.parse::<u32>()?)
/// }
/// assert_eq!(number("seven").unwrap_err().class(), "RuntimeError");
/// ```
#[derive(Clone, PartialEq, Eq)]
pub struct Fault {
    class: String,
    message: String,
    /// The author's mistake, not the client's: a panic.
    pub(crate) internal: bool,
}

/// The class of [`Fault::is_reloaded`].
const RELOADED: &str = "credhost.Reloaded";

/// What a method of a perspective answers with when it can fail.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// An error of this class: `todo.NoSuchTask`, or a Python builtin by its bare name.
    #[must_use]
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        Self { class: class.into(), message: message.into(), internal: false }
    }

    /// Python's ValueError: an argument of the right type that makes no sense.
    #[must_use]
    pub fn value(message: impl Into<String>) -> Self {
        Self::new("ValueError", message)
    }

    /// Python's TypeError: an argument of the wrong type.
    #[must_use]
    pub fn arguments(message: impl Into<String>) -> Self {
        Self::new("TypeError", message)
    }

    /// Twisted's refusal: the caller may not do this.
    #[must_use]
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new("twisted.cred.error.Unauthorized", message)
    }

    /// Another generation of the service has taken over while this code waited: what it would change is not its own any
    /// more. The client can call again.
    #[must_use]
    pub(crate) fn reloaded() -> Self {
        Self::new(RELOADED, "the service was replaced while the call was under way; call again")
    }

    /// Whether it says that another generation has taken over: nothing that is saved can be changed any more.
    #[must_use]
    pub fn is_reloaded(&self) -> bool {
        self.class == RELOADED
    }

    pub(crate) fn panicked(what: &str) -> Self {
        Self { internal: true, ..Self::new("RuntimeError", format!("{what} failed inside the service")) }
    }

    /// The class that clients trap it by.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// What it says.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }
}

impl std::fmt::Debug for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Display for Fault {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.message.is_empty() { f.write_str(&self.class) } else { write!(f, "{}: {}", self.class, self.message) }
    }
}

/// Not an `Error` itself, so that `?` can make one of every error.
impl<E: std::error::Error> From<E> for Fault {
    fn from(error: E) -> Self {
        Self::new("RuntimeError", error.to_string())
    }
}
