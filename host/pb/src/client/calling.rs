//! Calls of remote objects.

use std::sync::Arc;
use std::time::Duration;

use jelly::{Limits, Reference, Scanner, Shape};
use serde::Serialize;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::error::Error;
use super::flow::{Flow, Room};
use super::link::{Came, Command, Link, Object, Words, Writing};
use super::received::{Answer, Remote};

#[derive(Serialize)]
struct NoKeywords {}

/// The buffer size, in bytes, for the arguments of a call that contains a secret. Names and passwords are shorter.
const SECRET: usize = 16 << 10;
/// `&()` as serde writes it: Python's None. A call sends an empty tuple instead.
const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];

/// Encodes a call's arguments. `arguments` is a tuple.
pub(super) fn words<A: Serialize, K: Serialize>(
    flow: &Arc<Flow>,
    method: &str,
    arguments: &A,
    keywords: &K,
    secret: bool,
) -> Result<Words, Error> {
    let writing = Writing::for_this(flow);
    let mut written = Zeroizing::new(Vec::new());
    if secret {
        // A buffer that grows would leave a copy of the secret behind.
        written.reserve(SECRET);
    }
    jelly::write(&mut written, arguments)?;
    let mut arguments = written;
    if *arguments == NONE {
        *arguments = EMPTY.to_vec();
    }
    let mut objects = writing.objects();
    let middle = objects.len();
    let keywords = Zeroizing::new(jelly::to_vec(keywords)?);
    objects.extend(writing.objects());
    Ok(Words { method: method.to_owned(), arguments, keywords, secret, objects, middle })
}

/// [`words`] without keywords.
pub(super) fn plain_words<A: Serialize>(flow: &Arc<Flow>, method: &str, arguments: &A) -> Result<Words, Error> {
    words(flow, method, arguments, &NoKeywords {}, false)
}

/// Scans encoded bytes, and passes their references to `then`. The references must be exactly `objects`.
///
/// # Errors
/// Returns an error if no peer would read the bytes: sending them would end the connection, and all calls with it. Returns an
/// error if they contain other references.
pub(super) fn scanned<R>(
    bytes: &[u8],
    objects: &[Object],
    then: impl FnOnce(&[Reference]) -> R,
) -> Result<R, jelly::Error> {
    // No peer reads a longer string or list.
    let limits = Limits { item: Limits::default().item, ..Limits::NONE };
    let mut scanner = Scanner::new(Shape::Value, limits);
    let found = scanner.scan(bytes)?.ok_or(jelly::Error::Incomplete)?;
    if let Some(defect) = found.defect {
        return Err(defect.clone().into());
    }
    let known = found.references.iter().map(|reference| (reference.kind, reference.luid.unwrap_or(u64::MAX)));
    if !known.eq(objects.iter().copied()) {
        let what = "an untyped value refers to an object by its number, which may belong to another connection: send the object";
        return Err(jelly::Error::Custom(what.to_owned()));
    }
    Ok(then(found.references))
}

/// The checks of [`scanned`] alone.
pub(super) fn check(bytes: &[u8], objects: &[Object]) -> Result<(), jelly::Error> {
    scanned(bytes, objects, |_| ())
}

/// A call that was sent. Its room is freed as soon as nobody waits for the answer.
pub(super) struct Begun {
    link: Link,
    answer: oneshot::Receiver<Result<Came, Error>>,
    room: Room,
}

impl Begun {
    /// Waits for the answer.
    pub(super) async fn answer(mut self) -> Result<Came, Error> {
        // The driver has ended without an answer. It may have sent the call.
        (&mut self.answer).await.unwrap_or_else(|_| Err(self.link.flow.lost()))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.room.give_back();
    }
}

impl Words {
    /// The objects in the arguments, and those in the keywords.
    pub(super) fn objects(&self) -> (&[Object], &[Object]) {
        self.objects.split_at(self.middle.min(self.objects.len()))
    }

    /// Checks that a peer can read it.
    pub(super) fn check(&self) -> Result<(), jelly::Error> {
        let (first, second) = self.objects();
        check(&self.arguments, first)?;
        check(&self.keywords, second)
    }

    /// Its size in bytes, which counts towards the connection's limit.
    pub(super) fn size(&self) -> usize {
        self.method.len() + self.arguments.len() + self.keywords.len()
    }
}

impl Remote {
    /// Calls a method. `arguments` is a tuple: `&(text,)` for one, `&()` for none.
    ///
    /// The call waits while the limits of the [`Options`](super::Options) are reached. If the future is dropped before the call
    /// is sent, nothing is sent. If it is dropped later, the answer is discarded. The other side is not notified, because PB has
    /// no message for that.
    ///
    /// # Errors
    /// Returns [`Error::Failure`] if the other side raised an exception, [`Error::NotSent`] or [`Error::Lost`] if the connection
    /// is lost, and [`Error::TimedOut`] if there is a timeout and it expires.
    pub async fn call<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        self.call_with(method, arguments, &NoKeywords {}).await
    }

    /// Calls a method with keyword arguments: a struct or a map.
    ///
    /// # Errors
    /// As [`Remote::call`].
    pub async fn call_with<A: Serialize, K: Serialize>(
        &self,
        method: &str,
        arguments: &A,
        keywords: &K,
    ) -> Result<Answer, Error> {
        self.ask(words(&self.held.link.flow, method, arguments, keywords, false)?).await
    }

    /// [`Remote::call`] with a secret in the arguments, which must not stay in memory.
    pub(super) async fn call_secretly<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        self.ask(words(&self.held.link.flow, method, arguments, &NoKeywords {}, true)?).await
    }

    async fn ask(&self, words: Words) -> Result<Answer, Error> {
        let asked = async { self.begin(words).await?.answer().await };
        let came = match self.timeout {
            None => asked.await?,
            Some(limit) => tokio::time::timeout(limit, asked).await.map_err(|_| Error::TimedOut(limit))??,
        };
        Ok(Answer::new(came, self.timeout))
    }

    /// Calls a method without an answer. Errors of the call are not reported either. Waits while the limit
    /// [`Options::bytes`](super::Options) is reached.
    ///
    /// # Errors
    /// Returns an error if the arguments cannot be written, or the connection is lost.
    pub async fn notify<A: Serialize>(&self, method: &str, arguments: &A) -> Result<(), Error> {
        let link = &self.held.link;
        let words = plain_words(&link.flow, method, arguments)?;
        let bytes = link.flow.bytes(words.size()).await?;
        let command = Command::Call { target: self.held.luid, words, done: None, bytes: Some(bytes) };
        link.commands.send(command).map_err(|_| link.flow.not_sent())
    }

    /// Sends a call as soon as there is room for it.
    pub(super) async fn begin(&self, words: Words) -> Result<Begun, Error> {
        let (link, (done, answer)) = (self.held.link.clone(), oneshot::channel());
        let room = link.flow.room(words.size()).await?;
        let begun = Begun { link: link.clone(), answer, room: room.clone() };
        let (bytes, done) = (room.bytes(), Some((done, room)));
        let command = Command::Call { target: self.held.luid, words, done, bytes };
        link.commands.send(command).map_err(|_| link.flow.not_sent())?;
        Ok(begun)
    }

    /// The same object with a timeout: its calls fail with [`Error::TimedOut`] if they take longer than `limit`. Objects that
    /// arrive in the answers have the same timeout.
    ///
    /// ```no_run
    /// # async fn run(chat: pb::client::Remote) -> Result<(), pb::client::Error> {
    /// use std::collections::HashMap;
    /// use std::time::Duration;
    ///
    /// // In Python: `chat.callRemote("say", "hello", loud=True)`. Here the answer has a timeout.
    /// let quick = chat.with_timeout(Duration::from_secs(5));
    /// quick.call_with("say", &("hello",), &HashMap::from([("loud", true)])).await?;
    /// // No answer is sent for this call.
    /// chat.notify("typing", &(true,)).await?;
    /// assert!(!chat.is_lost());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, limit: Duration) -> Self {
        Self { timeout: Some(limit), ..self.clone() }
    }

    /// Whether its connection is lost.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.link.commands.is_closed()
    }
}
