//! Errors that a client is meant to see.

use std::panic::Location;

use jelly::{Classes, exceptions};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::core::Core;

/// An error with the class name that clients trap it by.
///
/// In Twisted: `failure.trap("todo.NoSuchTask")`, or `failure.trap(ValueError)` for a builtin. A class that is neither
/// a builtin nor one of Twisted's counts as derived from `twisted.spread.pb.Error`.
///
/// `?` converts any error into a fault of class `RuntimeError` with the error's own message. Use a more specific class
/// where the client can act on the error. To define a class with fields and parents, derive it on a type with
/// [`#[derive(Fault)]`](derive@crate::Fault).
///
/// ```
/// use plugin_api::Fault;
///
/// // Twisted: `failure.trap("todo.NoSuchTask")`.
/// let fault = Fault::new("todo.NoSuchTask", "there is no task 7");
/// assert_eq!((fault.class(), fault.message()), ("todo.NoSuchTask", "there is no task 7"));
/// assert!(fault.is("twisted.spread.pb.Error"));
///
/// // `?` converts any error.
/// fn number(text: &str) -> plugin_api::Result<u32> {
///     Ok(text.parse::<u32>()?)
/// }
/// assert_eq!(number("seven").unwrap_err().class(), "RuntimeError");
///
/// // A builtin also matches the classes that it derives from.
/// assert!(Fault::new("KeyError", "'milk'").is("LookupError"));
/// ```
#[derive(Clone)]
pub struct Fault {
    class: String,
    message: String,
    /// A panic: the author's mistake, not the client's.
    pub(crate) internal: bool,
    /// Where the author's code created it. `None` if it came from elsewhere.
    place: Option<&'static Location<'static>>,
    detail: Option<Box<Detail>>,
}

/// What an error has in addition to its class and its message, as it crosses the wall.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Detail {
    /// The classes that it derives from. If empty, those of its class.
    pub parents: Vec<String>,
    /// A dictionary in Jelly. Empty if it has no fields.
    pub fields: jelly::Bytes,
    /// Whether it is sent to clients as an instance of its class, which they must know.
    pub whole: bool,
    /// Where it was created, for a developer. Empty if unknown.
    pub traceback: String,
}

impl PartialEq for Fault {
    /// Two faults are equal if a client cannot tell them apart.
    fn eq(&self, other: &Self) -> bool {
        let told = |fault: &Self| {
            let detail = fault.detail.as_deref();
            let detail = detail.map(|detail| (detail.parents.clone(), detail.fields.clone(), detail.whole));
            (fault.class.clone(), fault.message.clone(), fault.internal, detail.unwrap_or_default())
        };
        told(self) == told(other)
    }
}

impl Eq for Fault {}

/// The class of [`Fault::is_reloaded`].
const RELOADED: &str = "credhost.Reloaded";
/// The class of [`Fault::is_elsewhere`].
const ELSEWHERE: &str = "credhost.Elsewhere";
/// The class that every error derives from, except builtins, unless its author says otherwise.
const ERROR: &str = "twisted.spread.pb.Error";

/// The return type of a perspective's method that can fail.
pub type Result<T, E = Fault> = std::result::Result<T, E>;

impl Fault {
    /// Creates an error of this class: `todo.NoSuchTask`, or a Python builtin by its bare name.
    #[must_use]
    #[track_caller]
    pub fn new(class: impl Into<String>, message: impl Into<String>) -> Self {
        let place = Some(Location::caller());
        Self { class: class.into(), message: message.into(), internal: false, place, detail: None }
    }

    /// Python's ValueError: an argument of the right type that makes no sense.
    #[must_use]
    #[track_caller]
    pub fn value(message: impl Into<String>) -> Self {
        Self::new("ValueError", message)
    }

    /// Python's TypeError: an argument of the wrong type.
    ///
    /// ```
    /// # use plugin_api::Fault;
    /// assert_eq!(Fault::arguments("a number, not a text").class(), "TypeError");
    /// ```
    #[must_use]
    #[track_caller]
    pub fn arguments(message: impl Into<String>) -> Self {
        Self::new("TypeError", message)
    }

    /// Twisted's refusal: the caller may not do this.
    ///
    /// ```
    /// # use plugin_api::Fault;
    /// let refused = Fault::unauthorized("only the owner may");
    /// assert!(refused.is("twisted.cred.error.Unauthorized"));
    /// ```
    #[must_use]
    #[track_caller]
    pub fn unauthorized(message: impl Into<String>) -> Self {
        Self::new("twisted.cred.error.Unauthorized", message)
    }

    /// Adds fields that the client can read, from a struct or a map. [`#[derive(Fault)]`](derive@crate::Fault) uses it.
    /// Fields have names and contain no references, and have 64 KiB at most in all. If one of them is a reference, or has a name
    /// that every failure has (`value`, for example), or if there is more, none is sent.
    ///
    /// ```
    /// # use plugin_api::Fault;
    /// # use std::collections::HashMap;
    /// let fault = Fault::new("shop.Full", "no room").with_fields(&HashMap::from([("left", 3)]));
    /// // In Python: `failure.left`.
    /// assert_eq!(fault.fields::<HashMap<String, u32>>()?["left"], 3);
    /// # Ok::<(), Fault>(())
    /// ```
    #[must_use]
    pub fn with_fields<T: Serialize + ?Sized>(mut self, fields: &T) -> Self {
        let (mut bytes, mut references) = (Vec::new(), Vec::new());
        let written = jelly::write_with(&mut bytes, fields, Classes::Any, &mut references);
        // An object of the service was counted as handed out when it was serialized.
        if let Some(core) = Core::current() {
            let own = references.iter().filter(|(_, number)| number >> 32 == 0);
            own.for_each(|(_, number)| core.dropped(*number, 1));
        }
        let mut reader = jelly::Deserializer::new(&bytes);
        if written.is_ok() && references.is_empty() && reader.dictionary().is_ok() {
            self.detail_mut().fields = jelly::Bytes(bytes);
        }
        self
    }

    /// Derives this error from these classes and the classes that they derive from, the nearest first. Nothing else is
    /// added, except Python's `Exception`.
    ///
    /// ```
    /// # use plugin_api::Fault;
    /// let fault = Fault::new("shop.NoSuchThing", "no milk").with_parents(["KeyError"]);
    /// assert!(fault.is("KeyError") && fault.is("LookupError") && !fault.is("ValueError"));
    /// ```
    #[must_use]
    pub fn with_parents<'p>(mut self, parents: impl IntoIterator<Item = &'p str>) -> Self {
        self.detail_mut().parents = parents.into_iter().map(str::to_owned).collect();
        self
    }

    /// Sends this error as an instance of its class with its fields, and not as a description of one. Twisted does the
    /// same with a `pb.Error` that is `Jellyable`. **A client that does not know the class loses its connection.** A
    /// client that does (`pb.setUnjellyableForClass`) receives the instance itself as `failure.value`.
    ///
    /// ```
    /// # use plugin_api::Fault;
    /// # use std::collections::HashMap;
    /// // In Python, the client registers a class `shop.Full` with `pb.setUnjellyableForClass`, and receives an
    /// // instance.
    /// let fault = Fault::new("shop.Full", "no room").with_fields(&HashMap::from([("left", 3)])).as_instance();
    /// assert_eq!(fault.class(), "shop.Full");
    /// ```
    #[must_use]
    pub fn as_instance(mut self) -> Self {
        self.detail_mut().whole = true;
        self
    }

    fn detail_mut(&mut self) -> &mut Detail {
        self.detail.get_or_insert_default()
    }

    /// Another generation of the service has taken over while this code waited. This code can no longer change the
    /// state. The client can call again.
    #[must_use]
    pub(crate) fn reloaded() -> Self {
        Self::new(RELOADED, "the service was replaced during the call; call again")
    }

    /// Whether this error says that another generation has taken over. This code can then no longer change anything
    /// that is saved.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # #[derive(Default)]
    /// # struct Counter { total: u32 }
    /// # #[perspective]
    /// # impl Counter {
    /// async fn count(me: Handle<Self>) -> Result<u32> {
    ///     tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ///     match me.write(|counter| { counter.total += 1; counter.total }) {
    ///         // Other code serves now. Nothing was counted, and the client is asked to try again.
    ///         Err(fault) if fault.is_reloaded() => Err(Fault::new("counter.TryAgain", "the service was just replaced")),
    ///         counted => counted,
    ///     }
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn is_reloaded(&self) -> bool {
        self.class == RELOADED
    }

    /// Whether this error says that another version of the service has the perspective, because somebody tries that
    /// version (`credhost service try`). The perspective can be changed again when the trial is over and its state has been loaded
    /// again. If this version cannot read the state that the other one saved, that lasts until it is replaced.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    ///
    /// # #[derive(Default)]
    /// # struct Post;
    /// # #[service("post", save = "call")]
    /// # impl Service for Post {
    /// #     type Perspective = Mailbox;
    /// # }
    /// # #[derive(Default, serde::Serialize, serde::Deserialize)]
    /// # struct Mailbox { letters: Vec<String> }
    /// # #[perspective]
    /// # impl Mailbox {}
    /// /// Leaves a letter in somebody's mailbox. Returns false if the caller has to try again later.
    /// async fn post(context: &Context<Post>, to: &str, letter: &str) -> Result<bool> {
    ///     let mailbox = context.perspective(to).await?;
    ///     match mailbox.write(|mailbox| mailbox.letters.push(letter.to_owned())) {
    ///         Err(fault) if fault.is_elsewhere() => Ok(false),
    ///         written => written.map(|()| true),
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn is_elsewhere(&self) -> bool {
        self.class == ELSEWHERE
    }

    pub(crate) fn elsewhere(why: &String) -> Self {
        Self::new(ELSEWHERE, why)
    }

    pub(crate) fn panicked(what: &str) -> Self {
        Self { internal: true, ..Self::new("RuntimeError", format!("{what} failed inside the service")) }
    }

    /// An error from elsewhere, received across the wall.
    pub(crate) fn received(class: &str, message: &str, detail: &[u8]) -> Self {
        let detail = if detail.is_empty() { None } else { jelly::from_slice(detail).ok().map(Box::new) };
        Self { place: None, detail, ..Self::new(exceptions::bare(class), message) }
    }

    /// What it has in addition to its class and its message, to cross the wall. Empty if there is nothing.
    pub(crate) fn detail(&self, service: &str) -> Vec<u8> {
        let mut detail = self.detail.as_deref().cloned().unwrap_or_default();
        let panic = if self.internal { crate::logging::last_panic() } else { None };
        let place = panic.or_else(|| {
            self.place.filter(|_| !self.internal).map(|at| (at.file().to_owned(), at.line(), String::new()))
        });
        if let Some((file, line, said)) = place {
            let words = if said.is_empty() { self.to_string() } else { format!("panicked: {said}") };
            detail.traceback =
                format!("Traceback (most recent call last):\n  File \"{file}\", line {line}, in {service}\n{words}\n");
        }
        if detail == Detail::default() { Vec::new() } else { jelly::to_vec(&detail).unwrap_or_default() }
    }

    /// The class that clients trap it by.
    #[must_use]
    pub fn class(&self) -> &str {
        &self.class
    }

    /// The message.
    #[must_use]
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Whether the error is of this class, or of one that derives from it. Give a builtin by its bare name, any other
    /// class with its module. For a client's error, the whole ancestry is known.
    #[must_use]
    pub fn is(&self, class: &str) -> bool {
        let wanted = exceptions::bare(class);
        let under = |name: &str| {
            let bases = exceptions::bases(name).or_else(|| exceptions::of_twisted(name)).unwrap_or_default();
            exceptions::bare(name) == wanted || bases.contains(&wanted)
        };
        let parents = self.detail.as_deref().map_or(&[][..], |detail| &detail.parents);
        let known = exceptions::bases(&self.class).or_else(|| exceptions::of_twisted(&self.class));
        let by_default = parents.is_empty() && known.is_none();
        under(&self.class)
            || parents.iter().any(|parent| under(parent))
            || matches!(wanted, "Exception" | "BaseException")
            || by_default && wanted == ERROR
    }

    /// The error's fields, as a struct or a map: those of a client's error, or those set by [`Fault::with_fields`].
    ///
    /// # Errors
    /// If the error has no fields of this shape.
    pub fn fields<T: DeserializeOwned>(&self) -> Result<T> {
        const EMPTY: &[u8] = &[1, 0x80, 5, 0x87];
        let fields = self.detail.as_deref().map_or(&[][..], |detail| &detail.fields.0);
        let fields = if fields.is_empty() { EMPTY } else { fields };
        jelly::from_slice(fields).map_err(|error| Fault::arguments(format!("the fields of {}: {error}", self.class)))
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

/// `Fault` does not implement `Error` itself, so that `?` can convert every error into one.
impl<E: std::error::Error> From<E> for Fault {
    #[track_caller]
    fn from(error: E) -> Self {
        Self::new("RuntimeError", error.to_string())
    }
}
