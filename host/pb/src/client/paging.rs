//! Large data in pages, in both directions, as with `twisted.spread.util`.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use jelly::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{mpsc, watch};

use super::calling::{Begun, plain_words};
use super::connection::Client;
use super::error::Error;
use super::link::Local;
use super::objects::{Referenceable, Reply};
use super::received::{Call, Remote};
use crate::Failure;

/// The most pages that are sent before the first of them is answered.
const WINDOW: usize = 16;
/// A page is answered at once while at most this many pages wait to be read, itself included.
const KEPT: usize = 4;
/// The most bytes that wait to be read, if the sender does not wait for answers.
const MOST: usize = 64 << 20;
/// What a page counts for in addition to its bytes.
const EACH: usize = 64;
/// The largest page, in bytes: the longest string that Twisted reads.
const LARGEST: usize = 640 << 10;

/// Sends all data of a reader to a page collector of the other side, in pages of `size` bytes, and then announces the end.
/// Returns the number of bytes sent. Reading continues as pages are answered, so that memory holds only a few pages, however
/// large the whole.
///
/// In Twisted: `twisted.spread.util.Pager`; on a host, `plugin_api::Pages` is the collector.
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
/// Returns an error if the reader fails, a page is refused, or `size` is 0 or more than 655,360 bytes, which no peer reads.
pub async fn page(collector: &Remote, mut reader: impl AsyncRead + Unpin, size: usize) -> Result<u64, Error> {
    if !(1..=LARGEST).contains(&size) {
        return Err(Error::Unexpected(format!("a page has 1 to {LARGEST} bytes, not {size}")));
    }
    let flow = &collector.held.link.flow;
    let (mut total, mut waiting) = (0, VecDeque::new());
    loop {
        let mut page = Vec::with_capacity(size);
        (&mut reader).take(size as u64).read_to_end(&mut page).await.map_err(Error::Reading)?;
        if page.is_empty() {
            break;
        }
        total += page.len() as u64;
        let words = plain_words(flow, "gotPage", &(Bytes(page),))?;
        // At most half of the room, so that others can call meanwhile.
        while waiting.len() >= WINDOW || waiting.len() > 1 && waiting.len() * (size + 64) > flow.most / 2 {
            let Some(first) = waiting.pop_front() else { break };
            answered(first).await?;
        }
        // Sent before the next page is read, which keeps their order.
        waiting.push_back(collector.begin(words).await?);
    }
    for last in waiting {
        answered(last).await?;
    }
    collector.call("endedPaging", &()).await?;
    Ok(total)
}

async fn answered(page: Begun) -> Result<(), Error> {
    page.answer().await.map(drop)
}

/// What a sender has sent.
enum Come {
    Page(Vec<u8>),
    End,
    /// More than may wait. The rest is lost.
    TooMuch,
}

/// Data that the other side sends in pages: see [`Client::pages`].
#[derive(Debug)]
pub struct Pages {
    come: mpsc::UnboundedReceiver<Come>,
    /// The number of bytes that wait here.
    kept: Arc<AtomicUsize>,
    /// The number of pages taken.
    taken: watch::Sender<usize>,
    ended: bool,
}

/// The object that the other side calls: `twisted.spread.util.CallbackPageCollector`.
struct Collector {
    state: Mutex<Collecting>,
    kept: Arc<AtomicUsize>,
    taken: watch::Receiver<usize>,
}

struct Collecting {
    /// `None`: no more pages are accepted.
    to: Option<mpsc::UnboundedSender<Come>>,
    /// The number of pages received.
    pages: usize,
}

impl Client {
    /// Creates a collector to pass to a method that sends pages, and the receiver of the pages. A page is answered while only a
    /// few wait to be read. A slow reader therefore slows down a sender that waits for answers, as credhost's does. Twisted's
    /// sender does not wait: at most 64 MiB of its pages wait to be read, and more are an error of [`Pages::next`].
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
        let (to, come) = mpsc::unbounded_channel();
        let (kept, taken) = (Arc::default(), watch::Sender::new(0));
        let state = Mutex::new(Collecting { to: Some(to), pages: 0 });
        let collector = Collector { state, kept: Arc::clone(&kept), taken: taken.subscribe() };
        (self.register(collector), Pages { come, kept, taken, ended: false })
    }
}

impl Pages {
    /// Returns the next page; `None` at the end.
    ///
    /// # Errors
    /// Returns an error if the other side drops the collector or disconnects before the end, or if more bytes wait than
    /// [`Client::pages`] allows.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>, Error> {
        if self.ended {
            return Ok(None);
        }
        match self.come.recv().await {
            Some(Come::Page(page)) => {
                self.kept.fetch_sub(page.len() + EACH, Ordering::Relaxed);
                self.taken.send_modify(|taken| *taken += 1);
                Ok(Some(page))
            }
            Some(Come::End) => {
                self.ended = true;
                Ok(None)
            }
            Some(Come::TooMuch) => {
                Err(Error::Lost(format!("more than {MOST} bytes of pages arrived before they were read")))
            }
            None => Err(Error::Lost("the pages stopped before the last one".to_owned())),
        }
    }

    /// Returns all pages in one block.
    ///
    /// # Errors
    /// As [`Pages::next`]. Returns an error if the pages have more than `limit` bytes.
    ///
    /// ```no_run
    /// # async fn run(client: &pb::client::Client, files: &pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
    /// // In Twisted: `getAllPages(files, "read")`.
    /// let (collector, pages) = client.pages();
    /// files.call("read", &("readme.txt", collector)).await?;
    /// let file = pages.all(1 << 20).await?;
    /// println!("{} bytes", file.len());
    /// # Ok(()) }
    /// ```
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

impl Collector {
    /// Takes a page or the end, in the order of the calls. Returns how many have come so far, this one included.
    fn take(&self, call: &Call) -> Result<usize, Failure> {
        let come = match call.method() {
            "gotPage" => Come::Page(call.read::<(Bytes,)>()?.0.0),
            "endedPaging" => Come::End,
            _ => return Err(call.unknown()),
        };
        let gone = || Failure::new("ValueError", "the receiver of these pages has gone");
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        let to = state.to.as_ref().ok_or_else(gone)?;
        let size = if let Come::Page(page) = &come { page.len() + EACH } else { 0 };
        let fits = self.kept.fetch_add(size, Ordering::Relaxed) + size <= MOST;
        let last = !fits || matches!(come, Come::End);
        to.send(if fits { come } else { Come::TooMuch }).map_err(|_| gone())?;
        if last {
            state.to = None;
        }
        state.pages += 1;
        if fits { Ok(state.pages) } else { Err(Failure::new("MemoryError", "too many pages wait to be read")) }
    }
}

impl Referenceable for Collector {
    fn call(&self, call: Call) -> Reply {
        let (taken, mut read) = (self.take(&call), self.taken.clone());
        if !call.wants_answer() {
            return Reply::now(taken.map(drop));
        }
        Reply::new(async move {
            let number = taken?;
            let gone = |_| Failure::new("ValueError", "the receiver of these pages has gone");
            read.wait_for(|read| read + KEPT >= number).await.map(drop).map_err(gone)
        })
    }
}
