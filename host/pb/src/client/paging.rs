//! Large data in pages, both ways: as `twisted.spread.util` sends and collects it.

use std::collections::VecDeque;
use std::future::poll_fn;
use std::sync::Mutex;
use std::task::Poll;

use jelly::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::mpsc;

use super::connection::Client;
use super::error::Error;
use super::link::Local;
use super::objects::{Referenceable, Reply};
use super::received::{Call, Remote};
use crate::Failure;

/// So many pages are on their way before the first of them is answered.
const WINDOW: usize = 16;
/// So many pages that have come wait to be read; more wait in their callers.
const KEPT: usize = 4;
/// The largest page, in bytes: what Twisted reads as one string.
const LARGEST: usize = 640 << 10;

/// Sends all that a reader has to a page collector of the other side's, in pages of `size` bytes, and says when that was all.
/// Answers with how many bytes it was. It reads on as pages are answered, so that memory holds a few, however large the whole.
///
/// In Twisted: `twisted.spread.util.Pager`; on a host, `plugin_api::Pages` collects.
///
/// ```no_run
/// # async fn run(archive: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
/// let collector = archive.call("store", &("notes.txt",)).await?.remote()?;
/// let file = tokio::fs::File::open("notes.txt").await?;
/// pb::client::page(&collector, file, 64 << 10).await?;
/// # Ok(()) }
/// ```
///
/// # Errors
/// When the reader fails, or a page is refused. When `size` is 0, or more than 655,360 bytes: no peer reads that.
pub async fn page(collector: &Remote, mut reader: impl AsyncRead + Unpin, size: usize) -> Result<u64, Error> {
    if !(1..=LARGEST).contains(&size) {
        return Err(Error::Unexpected(format!("a page has 1 to {LARGEST} bytes, not {size}")));
    }
    let (mut total, mut waiting) = (0, VecDeque::new());
    loop {
        let mut page = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match reader.read(&mut page[filled..]).await.map_err(Error::Reading)? {
                0 => break,
                more => filled += more,
            }
        }
        if filled == 0 {
            break;
        }
        page.truncate(filled);
        total += filled as u64;
        if waiting.len() >= WINDOW
            && let Some(first) = waiting.pop_front()
        {
            first.await?;
        }
        let collector = collector.clone();
        // Polled once it is on its way, or waits for room behind those before it.
        let mut going = Box::pin(async move { collector.call("gotPage", &(Bytes(page),)).await.map(drop) });
        match poll_fn(|poll| Poll::Ready(going.as_mut().poll(poll))).await {
            Poll::Ready(answered) => answered?,
            Poll::Pending => waiting.push_back(going),
        }
    }
    for last in waiting {
        last.await?;
    }
    collector.call("endedPaging", &()).await?;
    Ok(total)
}

/// A page, or that there are no more.
type Come = Option<Vec<u8>>;

/// Data that the other side sends in pages: see [`Client::pages`].
#[derive(Debug)]
pub struct Pages {
    come: mpsc::Receiver<Come>,
    ended: bool,
}

/// What the other side calls: `twisted.spread.util.CallbackPageCollector`.
struct Collector {
    to: Mutex<Option<mpsc::Sender<Come>>>,
}

impl Client {
    /// A collector to be given to a method that sends pages, and what comes of it. Pages wait until they are read, and are
    /// bounded: whoever reads slowly makes a sender slow that waits for its answers, as credhost's does.
    ///
    /// ```no_run
    /// # async fn run(client: pb::client::Client, archive: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
    /// let (collector, mut pages) = client.pages();
    /// archive.call("read", &(collector, "notes.txt")).await?;
    /// while let Some(page) = pages.next().await? {
    ///     println!("{} bytes", page.len());
    /// }
    /// # Ok(()) }
    /// ```
    ///
    /// In Twisted: `twisted.spread.util.getAllPages`.
    #[must_use]
    pub fn pages(&self) -> (Local, Pages) {
        let (to, come) = mpsc::channel(KEPT);
        (self.register(Collector { to: Mutex::new(Some(to)) }), Pages { come, ended: false })
    }
}

impl Pages {
    /// The next page; `None` when there are no more.
    ///
    /// # Errors
    /// When the other side has let go of the collector, or has gone, before the end.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.ended {
            return Ok(None);
        }
        match self.come.recv().await {
            Some(Some(page)) => Ok(Some(page)),
            Some(None) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(Error::Lost("the pages have ended before their end".to_owned())),
        }
    }

    /// All pages in one.
    ///
    /// # Errors
    /// As [`Pages::next`], and when they are more than `limit` bytes.
    pub async fn all(mut self, limit: usize) -> Result<Vec<u8>, Error> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            if all.len() + page.len() > limit {
                return Err(Error::Unexpected(format!("more than {limit} bytes were sent")));
            }
            all.extend_from_slice(&page);
        }
        Ok(all)
    }
}

impl Referenceable for Collector {
    fn call(&self, call: Call) -> Reply {
        let page = match call.method() {
            "gotPage" => call.read::<(Bytes,)>().map(|(page,)| Some(page.0)),
            "endedPaging" => Ok(None),
            _ => Err(call.unknown()),
        };
        let gone = || Failure::new("ValueError", "nobody takes pages here any more");
        let ready = page.and_then(|page| {
            let mut to = self.to.lock().map_err(|_| gone())?;
            let to = if page.is_none() { to.take() } else { to.clone() };
            Ok((page, to.ok_or_else(gone)?))
        });
        // Those that wait for room do so in the order of their calls.
        Reply::new(async move {
            let (page, to) = ready?;
            to.send(page).await.map_err(|_| gone())
        })
    }
}
