//! Transfers large data in pages, in both directions, as `twisted.spread.util` does.

use std::collections::VecDeque;
use std::pin::Pin;
use std::rc::Rc;

use jelly::Bytes;
use tokio::io::{AsyncRead, AsyncReadExt};
use tokio::sync::{Mutex, mpsc};

use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::perspective;
use crate::remote::Remote;

/// The maximum number of pages on their way to a client before the first of them is answered.
const WINDOW: usize = 16;
/// The number of received pages that are buffered. While the buffer is full, calls that bring further pages wait.
const KEPT: usize = 4;
/// The largest page, in bytes: the longest string that Twisted reads.
const LARGEST: usize = 640 << 10;

/// Sends all data of a reader to a client's page collector, in pages of `size` bytes, then signals the end. Returns
/// the number of bytes sent.
///
/// Reads on only as the client answers, so that memory holds only a few pages, however large the whole is.
///
/// In Twisted: `twisted.spread.util.Pager`, and the client's `getAllPages(reference, "method")`, or a
/// `CallbackPageCollector` of its own.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::page;
///
/// # struct Files;
/// #[perspective]
/// # impl Files {
/// /// In Twisted: `yield util.getAllPages(files, "read")`.
/// async fn read(_me: Handle<Self>, context: Context<Archive>, collector: Remote) -> Result<()> {
///     // Twisted's pager answers at once, then sends the pages.
///     context.spawn(async move {
///         let data: &[u8] = b"much more than fits into one answer";
///         let _ = page(&collector, data, 8192).await;
///     });
///     Ok(())
/// }
/// # }
/// # struct Archive;
/// # #[service("archive", save = "never")]
/// # impl Service for Archive {
/// #     type Perspective = Files;
/// #     fn init(_: &Context<Self>, _: &Config) -> Result<Self> { Ok(Self) }
/// #     fn perspective(&self, _: &str) -> Result<Files> { Ok(Files) }
/// # }
/// ```
///
/// # Errors
/// If the reader fails, or the client, for example because it has disconnected. The collector is not notified of
/// this, because Twisted's collector has no message for it. If `size` is 0, or more than 655,360 bytes, which no peer
/// reads.
pub async fn page(collector: &Remote, mut reader: impl AsyncRead + Unpin, size: usize) -> Result<u64> {
    if !(1..=LARGEST).contains(&size) {
        return Err(Fault::value(format!("a page has 1 to {LARGEST} bytes, not {size}")));
    }
    let mut total = 0;
    let mut waiting: VecDeque<Pin<Box<dyn Future<Output = Result<()>>>>> = VecDeque::new();
    loop {
        let mut page = vec![0; size];
        let mut filled = 0;
        while filled < size {
            match reader.read(&mut page[filled..]).await? {
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
        waiting.push_back(Box::pin(collector.call("gotPage", (Bytes(page),))));
    }
    for last in waiting {
        last.await?;
    }
    collector.call::<_, ()>("endedPaging", ()).await?;
    Ok(total)
}

/// A page, or `None` at the end.
type Come = Option<Vec<u8>>;

/// Data that a client sends in pages. See [`Pages::collector`].
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::{Pages, testing::TestHost};
///
/// # #[derive(Default)]
/// # struct Archive;
/// # #[service("archive", save = "never")]
/// # impl Service for Archive {
/// #     type Perspective = Desk;
/// # }
/// #[derive(Default)]
/// struct Desk;
///
/// #[perspective]
/// impl Desk {
///     /// Asks the client for a file, which it sends in pages (in Twisted: by a `util.FilePager`).
///     async fn fetch(_me: Handle<Self>, call: Call, name: String) -> Result<usize> {
///         let (collector, mut pages) = Pages::collector();
///         call.mind()?.notify("send", (name, collector))?;
///         let mut size = 0;
///         while let Some(page) = pages.next().await? {
///             size += page.len();
///         }
///         Ok(size)
///     }
/// }
/// # let _ = TestHost::<Archive>::start()?;
/// # Ok::<(), Fault>(())
/// ```
#[derive(Debug)]
pub struct Pages {
    come: mpsc::Receiver<Come>,
    ended: bool,
}

/// Collects pages. Give it to the client that is to send them.
///
/// In Twisted: `twisted.spread.util.CallbackPageCollector`.
#[derive(Debug)]
pub struct PageCollector {
    /// Pages are added in the order in which they came.
    to: Rc<Mutex<Option<mpsc::Sender<Come>>>>,
}

impl Pages {
    /// Returns a collector to give to a client, and the pages that arrive in it. The collector buffers what the
    /// client sends until it is read. The buffer is bounded, so a slow reader slows down its client.
    #[must_use]
    pub fn collector() -> (Handle<PageCollector>, Self) {
        let (to, come) = mpsc::channel(KEPT);
        let to = Rc::new(Mutex::new(Some(to)));
        (Handle::new(PageCollector { to }), Self { come, ended: false })
    }

    /// Returns the next page; `None` when there are no more.
    ///
    /// # Errors
    /// If the client has released the collector, or has disconnected, before the end: `twisted.spread.pb.PBConnectionLost`.
    pub async fn next(&mut self) -> Result<Option<Vec<u8>>> {
        if self.ended {
            return Ok(None);
        }
        match self.come.recv().await {
            Some(Some(page)) => Ok(Some(page)),
            Some(None) => {
                self.ended = true;
                Ok(None)
            }
            None => Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the pages stopped before the last one")),
        }
    }

    /// Returns all pages joined into one.
    ///
    /// # Errors
    /// As [`Pages::next`], and if they have more than `limit` bytes in total.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Pages, page};
    /// # struct Desk;
    /// # #[perspective]
    /// # impl Desk {
    /// /// Lets the client send a file, and sends it back in pages.
    /// async fn mirror(_me: Handle<Self>, call: Call, name: String, to: Remote) -> Result<u64> {
    ///     let (collector, pages) = Pages::collector();
    ///     call.mind()?.notify("send", (name, collector))?;
    ///     let file = pages.all(1 << 20).await?;
    ///     page(&to, file.as_slice(), 8192).await
    /// }
    /// # }
    /// ```
    pub async fn all(mut self, limit: usize) -> Result<Vec<u8>> {
        let mut all = Vec::new();
        while let Some(page) = self.next().await? {
            if all.len() + page.len() > limit {
                return Err(Fault::value(format!("more than {limit} bytes were sent")));
            }
            all.extend_from_slice(&page);
        }
        Ok(all)
    }
}

/// The object that a client calls to send pages.
#[perspective]
impl PageCollector {
    /// Receives one page. Answers when there is room for it.
    #[method("gotPage")]
    async fn got_page(me: Handle<Self>, page: Bytes) -> Result<()> {
        put(&me, Some(page.0)).await
    }

    /// Signals that there are no more pages.
    #[method("endedPaging")]
    async fn ended_paging(me: Handle<Self>) -> Result<()> {
        put(&me, None).await
    }
}

async fn put(me: &Handle<PageCollector>, page: Come) -> Result<()> {
    let to = me.read(|collector| Rc::clone(&collector.to))?;
    // The lock is fair: pages are sent in the order in which they came.
    let mut to = to.lock().await;
    let last = page.is_none();
    let gone = || Fault::value("the receiver of these pages has gone");
    to.as_ref().ok_or_else(gone)?.send(page).await.map_err(|_| gone())?;
    if last {
        *to = None;
    }
    Ok(())
}
