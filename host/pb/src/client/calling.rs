//! Calls of the other side's objects.

use std::time::Duration;

use serde::Serialize;
use tokio::sync::oneshot;
use zeroize::Zeroizing;

use super::error::Error;
use super::link::{Command, Waiting, Words};
use super::received::{Answer, Remote};

#[derive(Serialize)]
struct NoKeywords {}

/// An empty tuple, as it is written for `&()`, which is Python's None to serde.
const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];

/// Writes what a method is given. `arguments` is a tuple.
pub(super) fn words<A: Serialize, K: Serialize>(
    method: &str,
    arguments: &A,
    keywords: &K,
    secret: bool,
) -> Result<Words, Error> {
    let mut arguments = Zeroizing::new(jelly::to_vec(arguments)?);
    if *arguments == NONE {
        *arguments = EMPTY.to_vec();
    }
    let keywords = Zeroizing::new(jelly::to_vec(keywords)?);
    Ok(Words { method: method.to_owned(), arguments, keywords, secret })
}

/// The same without keywords.
pub(super) fn plain_words<A: Serialize>(method: &str, arguments: &A) -> Result<Words, Error> {
    words(method, arguments, &NoKeywords {}, false)
}

impl Words {
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
        self.ask(words(method, arguments, keywords, false)?).await
    }

    /// [`Remote::call`] with something in it that must not be kept.
    pub(super) async fn call_secretly<A: Serialize>(&self, method: &str, arguments: &A) -> Result<Answer, Error> {
        self.ask(words(method, arguments, &NoKeywords {}, true)?).await
    }

    async fn ask(&self, words: Words) -> Result<Answer, Error> {
        let link = &self.held.link;
        let asked = async {
            let (done, answer) = oneshot::channel();
            self.send(words, Some(done)).await?;
            // Whoever drove the connection has not come to it, or has said what became of it.
            answer.await.unwrap_or_else(|_| Err(link.flow.not_sent()))
        };
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
        self.send(plain_words(method, arguments)?, None).await
    }

    async fn send(&self, words: Words, done: Option<Waiting>) -> Result<(), Error> {
        let link = &self.held.link;
        let room = link.flow.room(words.size(), done.is_some()).await?;
        let command = Command::Call { target: self.held.luid, words, done, room };
        link.commands.send(command).map_err(|_| link.flow.not_sent())
    }

    /// The same object; calls by this one that take longer than `limit` are an error, [`Error::TimedOut`], and are not waited
    /// for. What comes with their answers has the same limit.
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
