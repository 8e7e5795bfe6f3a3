//! Data from the other side: answers, calls of local objects, and the objects that they refer to.

use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jelly::types::reference;
use jelly::{RefKind, Value};
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::error::Error;
use super::link::{Asked, Came, Held, HeldCopy, Link, Local, Writing};
use crate::Failure;

/// A reference to an object of the other side. Clones are the same reference. It is given back when the last clone is dropped.
///
/// It can be read from an answer or a call, also as a part of a larger value: `answer.read::<(String, Remote)>()`. Sent back, it
/// is the object itself.
#[derive(Debug, Clone)]
pub struct Remote {
    pub(super) held: Arc<Held>,
    /// The timeout of its calls.
    pub(super) timeout: Option<Duration>,
}

/// Equal if they are the same object of the same connection.
impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.held.luid == other.held.luid && Arc::ptr_eq(&self.held.link.flow, &other.held.link.flow)
    }
}

impl Eq for Remote {}

impl Serialize for Remote {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let luid = self.held.luid.ok_or_else(|| S::Error::custom("the root has no number and cannot be sent"))?;
        Writing::admits(&self.held.link.flow, RefKind::Local, luid)?;
        serializer.serialize_newtype_struct(reference::LOCAL, &luid)
    }
}

impl Serialize for Local {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Writing::admits(&self.cell.link.flow, RefKind::Remote, self.cell.number)?;
        serializer.serialize_newtype_struct(reference::REMOTE, &self.cell.number)
    }
}

/// The objects that a value refers to.
#[derive(Debug, Default)]
pub(super) struct Objects {
    remotes: HashMap<u64, Remote>,
    locals: HashMap<u64, Local>,
    pub(super) copies: HashMap<u64, Arc<HeldCopy>>,
}

thread_local! {
    /// The objects of the values that are being read.
    static READING: RefCell<Vec<Arc<Objects>>> = const { RefCell::new(Vec::new()) };
}

/// Makes a value's objects available while the value is read.
struct Reading;

impl Reading {
    fn of(objects: &Arc<Objects>) -> Self {
        READING.with_borrow_mut(|reading| reading.push(Arc::clone(objects)));
        Self
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        READING.with_borrow_mut(Vec::pop);
    }
}

/// Finds an object of the value that is being read.
pub(super) fn referred<T>(find: impl FnOnce(&Objects) -> Option<T>) -> Option<T> {
    READING.with_borrow(|reading| reading.last().map(Arc::clone)).and_then(|objects| find(&objects))
}

/// Reads the number that stands for an object.
pub(super) struct Number(pub(super) &'static str);

impl Visitor<'_> for Number {
    type Value = u64;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.0)
    }

    fn visit_u64<E>(self, number: u64) -> Result<u64, E> {
        Ok(number)
    }
}

impl<'de> Deserialize<'de> for Remote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let luid = deserializer.deserialize_newtype_struct(reference::REMOTE, Number("an object of the other side"))?;
        referred(|objects| objects.remotes.get(&luid).cloned())
            .ok_or_else(|| D::Error::custom("an object can be read only from an answer or a call"))
    }
}

impl<'de> Deserialize<'de> for Local {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let luid = deserializer.deserialize_newtype_struct(reference::LOCAL, Number("a local object"))?;
        referred(|objects| objects.locals.get(&luid).cloned())
            .ok_or_else(|| D::Error::custom("a local object that no longer exists"))
    }
}

/// The answer to a call.
pub struct Answer {
    bytes: Vec<u8>,
    objects: Arc<Objects>,
}

impl std::fmt::Debug for Answer {
    /// Without the contents, which do not belong in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Answer({} bytes)", self.bytes.len())
    }
}

impl Answer {
    pub(super) fn new(came: Came, timeout: Option<Duration>) -> Self {
        let remote = |(luid, held)| (luid, Remote { held: Arc::new(held), timeout });
        let objects = Objects {
            remotes: came.remotes.into_iter().map(remote).collect(),
            locals: came.locals,
            copies: came.copies.into_iter().map(|(luid, copy)| (luid, Arc::new(copy))).collect(),
        };
        Self { bytes: came.bytes, objects: Arc::new(objects) }
    }

    /// Reads the answer as a Rust type, which may contain [`Remote`]s, [`Local`]s and [`Followed`](super::Followed) copies.
    ///
    /// # Errors
    /// Returns an error if the answer does not fit the type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, jelly::Error> {
        let _reading = Reading::of(&self.objects);
        jelly::from_slice(&self.bytes)
    }

    /// Returns the answer as an untyped value. References in it are numbers: see [`Answer::remotes`].
    ///
    /// # Errors
    /// Returns an error if the answer is not valid Jelly.
    pub fn value(&self) -> Result<Value, jelly::Error> {
        Value::decode(&self.bytes)
    }

    /// The objects of the other side that the answer refers to, by their numbers in the value.
    ///
    /// ```no_run
    /// # async fn run(garage: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
    /// // Prints any answer, and the number of objects in it.
    /// let answer = garage.call("cars", &()).await?;
    /// println!("{}, with {} objects", answer.value()?, answer.remotes().len());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn remotes(&self) -> &HashMap<u64, Remote> {
        &self.objects.remotes
    }

    /// Returns the object, if the answer is a single reference.
    ///
    /// # Errors
    /// Returns an error if the answer is something else.
    pub fn remote(self) -> Result<Remote, Error> {
        self.read().map_err(|_| Error::Unexpected("it is not a reference".to_owned()))
    }
}

/// A call of a local object, or a change of an object that this side has a copy of.
#[derive(Debug)]
pub struct Call {
    pub(super) link: Link,
    pub(super) timeout: Option<Duration>,
    method: String,
    answer: bool,
    arguments: Answer,
    keywords: Answer,
}

impl Call {
    pub(super) fn new(asked: Asked, timeout: Option<Duration>) -> Self {
        let Asked { link, method, answer, arguments, keywords } = asked;
        Self {
            link,
            timeout,
            method,
            answer,
            arguments: Answer::new(arguments, timeout),
            keywords: Answer::new(keywords, timeout),
        }
    }

    /// Whether the caller wants an answer. If not, neither an answer nor an error is sent.
    #[must_use]
    pub fn wants_answer(&self) -> bool {
        self.answer
    }

    /// The method's name.
    #[must_use]
    pub fn method(&self) -> &str {
        &self.method
    }

    /// Reads the arguments as a tuple: `call.read::<(String, u32)>()`, `(String,)` for one. The tuple may contain objects.
    ///
    /// # Errors
    /// Returns a TypeError for the caller if the arguments do not fit the type.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.arguments.read().map_err(|error| self.wrong(&error))
    }

    /// Reads the keyword arguments as a struct or a map.
    ///
    /// # Errors
    /// Returns a TypeError for the caller if the keywords do not fit the type.
    ///
    /// ```no_run
    /// # fn run(client: &pb::client::Client) {
    /// use std::collections::HashMap;
    /// use pb::client::Call;
    ///
    /// // Prints each call.
    /// let ear = client.register(|call: Call| async move {
    ///     let loud = call.keywords::<HashMap<String, bool>>()?.get("loud").copied().unwrap_or_default();
    ///     let (arguments, keywords) = call.values()?;
    ///     println!("{}{arguments}{keywords} {loud}, waits: {}", call.method(), call.wants_answer());
    ///     Ok(())
    /// });
    /// # let _ = ear;
    /// # }
    /// ```
    pub fn keywords<T: DeserializeOwned>(&self) -> Result<T, Failure> {
        self.keywords.read().map_err(|error| self.wrong(&error))
    }

    /// Returns the arguments untyped: a tuple and a dictionary.
    ///
    /// # Errors
    /// Returns a TypeError for the caller if they are not valid Jelly.
    pub fn values(&self) -> Result<(Value, Value), Failure> {
        let arguments = self.arguments.value().map_err(|error| self.wrong(&error))?;
        Ok((arguments, self.keywords.value().map_err(|error| self.wrong(&error))?))
    }

    /// The failure to answer with if there is no such method.
    #[must_use]
    pub fn unknown(&self) -> Failure {
        Failure::new("twisted.spread.flavors.NoSuchMethod", format!("No such method: remote_{}", self.method))
    }

    fn wrong(&self, error: &jelly::Error) -> Failure {
        Failure::new("TypeError", format!("{}: {error}", self.method))
    }
}

impl From<jelly::Error> for Failure {
    /// For a method of a local object that reads answers of others.
    fn from(error: jelly::Error) -> Self {
        Self::new("TypeError", error.to_string())
    }
}

impl From<Error> for Failure {
    /// For a method of a local object that calls others. Their exceptions are passed on to its caller.
    fn from(error: Error) -> Self {
        match error {
            Error::Failure(failure) => failure,
            Error::TimedOut(_) => Self::new("twisted.internet.error.TimeoutError", error.to_string()),
            Error::Jelly(_) => Self::new("TypeError", error.to_string()),
            Error::Lost(_) | Error::NotSent(_) => Self::new("twisted.spread.pb.PBConnectionLost", error.to_string()),
            _ => Self::new("RuntimeError", error.to_string()),
        }
    }
}
