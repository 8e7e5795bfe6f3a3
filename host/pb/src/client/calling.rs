//! Calls of the other side's objects.

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

/// What a call with a secret in it has room for, in bytes: names and passwords are shorter.
const SECRET: usize = 16 << 10;
/// An empty tuple, as it is written for `&()`, which is Python's None to serde.
const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];

/// Writes what a method is given. `arguments` is a tuple.
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
        // So that it does not grow, and leave what it was behind.
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

/// The same without keywords.
pub(super) fn plain_words<A: Serialize>(flow: &Arc<Flow>, method: &str, arguments: &A) -> Result<Words, Error> {
    words(flow, method, arguments, &NoKeywords {}, false)
}

/// What is written, and where its references are, which are to be these objects alone.
///
/// # Errors
/// When no peer would read it: that would end the connection, and all calls with it. When there are other references in it.
pub(super) fn scanned<R>(
    bytes: &[u8],
    objects: &[Object],
    then: impl FnOnce(&[Reference]) -> R,
) -> Result<R, jelly::Error> {
    // A string or a list that is longer is read by nobody.
    let limits = Limits { item: Limits::default().item, ..Limits::NONE };
    let mut scanner = Scanner::new(Shape::Value, limits);
    let found = scanner.scan(bytes)?.ok_or(jelly::Error::Incomplete)?;
    if let Some(defect) = found.defect {
        return Err(defect.clone().into());
    }
    let known = found.references.iter().map(|reference| (reference.kind, reference.luid.unwrap_or(u64::MAX)));
    if !known.eq(objects.iter().copied()) {
        let what =
            "an untyped value refers to an object by its number, which may be another connection's: send the object";
        return Err(jelly::Error::Custom(what.to_owned()));
    }
    Ok(then(found.references))
}

/// [`scanned`], and nothing else.
pub(super) fn check(bytes: &[u8], objects: &[Object]) -> Result<(), jelly::Error> {
    scanned(bytes, objects, |_| ())
}

/// A call that was sent. Its room is others' as soon as it is not waited for any more.
pub(super) struct Begun {
    link: Link,
    answer: oneshot::Receiver<Result<Came, Error>>,
    room: Room,
}

impl Begun {
    /// Waits for the answer.
    pub(super) async fn answer(mut self) -> Result<Came, Error> {
        // Whoever drove the connection is gone without a word: it may have sent it.
        (&mut self.answer).await.unwrap_or_else(|_| Err(self.link.flow.lost()))
    }
}

impl Drop for Begun {
    fn drop(&mut self) {
        self.room.give_back();
    }
}

impl Words {
    /// The objects in the arguments, and in the keywords.
    pub(super) fn objects(&self) -> (&[Object], &[Object]) {
        self.objects.split_at(self.middle.min(self.objects.len()))
    }

    /// Whether others read it.
    pub(super) fn check(&self) -> Result<(), jelly::Error> {
        let (first, second) = self.objects();
        check(&self.arguments, first)?;
        check(&self.keywords, second)
    }

    /// How much room it takes.
    pub(super) fn size(&self) -> usize {
        self.method.len() + self.arguments.len() + self.keywords.len()
    }
}

impl Remote {
    /// Calls a method. `arguments` is a tuple: `&(text,)` for one, `&()` for none.
    ///
    /// It waits while as many calls are under way as [`Options`](super::Options) say. Dropped before that, nothing is sent;
    /// dropped later, the answer is not waited for: the other side is not told, for PB has no word for it.
    ///
    /// # Errors
    /// What the other side raised; [`Error::NotSent`] and [`Error::Lost`]; [`Error::TimedOut`], if there is a limit of time.
    pub async fn call<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        self.call_with(method, arguments, &NoKeywords {}).await
    }

    /// Calls a method with keywords: a struct or a map.
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

    /// [`Remote::call`] with something in it that must not be kept.
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

    /// Calls a method and wants no answer: neither will an error be heard of. It waits while too much has yet to be written.
    ///
    /// # Errors
    /// When the arguments cannot be written, or the connection is lost.
    pub async fn notify<A: Serialize>(&self, method: &str, arguments: &A) -> Result<(), Error> {
        let link = &self.held.link;
        let words = plain_words(&link.flow, method, arguments)?;
        let bytes = link.flow.bytes(words.size()).await?;
        let command = Command::Call { target: self.held.luid, words, done: None, bytes: Some(bytes) };
        link.commands.send(command).map_err(|_| link.flow.not_sent())
    }

    /// Sends a call, as soon as there is room for it.
    pub(super) async fn begin(&self, words: Words) -> Result<Begun, Error> {
        let (link, (done, answer)) = (self.held.link.clone(), oneshot::channel());
        let room = link.flow.room(words.size()).await?;
        let begun = Begun { link: link.clone(), answer, room: room.clone() };
        let (bytes, done) = (room.bytes(), Some((done, room)));
        let command = Command::Call { target: self.held.luid, words, done, bytes };
        link.commands.send(command).map_err(|_| link.flow.not_sent())?;
        Ok(begun)
    }

    /// The same object; calls by this one that take longer than `limit` are an error, [`Error::TimedOut`], and are not waited
    /// for. What comes with their answers has the same limit.
    ///
    /// ```no_run
    /// # async fn run(chat: pb::client::Remote) -> Result<(), pb::client::Error> {
    /// use std::collections::HashMap;
    /// use std::time::Duration;
    ///
    /// // In Python: `chat.callRemote("say", "hello", loud=True)`, and no answer later than this.
    /// let quick = chat.with_timeout(Duration::from_secs(5));
    /// quick.call_with("say", &("hello",), &HashMap::from([("loud", true)])).await?;
    /// // Nobody waits for what becomes of it.
    /// chat.notify("typing", &(true,)).await?;
    /// assert!(!chat.is_lost());
    /// # Ok(()) }
    /// ```
    #[must_use]
    pub fn with_timeout(&self, limit: Duration) -> Self {
        Self { timeout: Some(limit), ..self.clone() }
    }

    /// Whether the connection is lost that it came by.
    #[must_use]
    pub fn is_lost(&self) -> bool {
        self.held.link.commands.is_closed()
    }
}
