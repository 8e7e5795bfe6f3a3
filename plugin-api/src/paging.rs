//! Large data in pages, both ways: as `twisted.spread.util` sends and collects it.

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

/// This many pages are on their way to a client before the first of them is answered.
const WINDOW: usize = 16;
/// This many pages that have come wait to be read; more wait in their callers.
const KEPT: usize = 4;
/// The largest page, in bytes: what Twisted reads as one string.
const LARGEST: usize = 640 << 10;

/// Sends all that a reader has to a client's page collector, in pages of `size` bytes, and says when that was all. Answers
/// with how many bytes it was.
///
/// It reads on as the client answers, so that memory holds a few pages, however large the whole is.
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
///     // Twisted's answers at once, and sends pages then.
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
/// When the reader fails, or the client: it has gone, say. The collector is not told then: Twisted's has no word for it. When
/// `size` is 0, or more than 655,360 bytes: no peer reads that.
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

/// A page, or that there are no more.
type Come = Option<Vec<u8>>;

/// Data that a client sends in pages: see [`Pages::collector`].
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

/// What collects the pages: give it to the client that sends them.
///
/// In Twisted: `twisted.spread.util.CallbackPageCollector`.
#[derive(Debug)]
pub struct PageCollector {
    /// Pages wait here in the order in which they came.
    to: Rc<Mutex<Option<mpsc::Sender<Come>>>>,
}

impl Pages {
    /// A collector to be given to a client, and what comes of it. What the client sends waits in it until it is read, and
    /// is bounded: a reader that is slow makes its client slow.
    #[must_use]
    pub fn collector() -> (Handle<PageCollector>, Self) {
        let (to, come) = mpsc::channel(KEPT);
        let to = Rc::new(Mutex::new(Some(to)));
        (Handle::new(PageCollector { to }), Self { come, ended: false })
    }

    /// The next page; `None` when there are no more.
    ///
    /// # Errors
    /// When the client has let go of the collector, or has gone, before the end.
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
            None => Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the pages have ended before their end")),
        }
    }

    /// All pages in one.
    ///
    /// # Errors
    /// As [`Pages::next`], and when they are more than `limit` bytes.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Pages, page};
    /// # struct Desk;
    /// # #[perspective]
    /// # impl Desk {
    /// /// Has the client send a file, and sends it back in pages of its own.
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

/// What a client calls that sends pages.
#[perspective]
impl PageCollector {
    /// One page. It is answered when there is room for it.
    #[method("gotPage")]
    async fn got_page(me: Handle<Self>, page: Bytes) -> Result<()> {
        put(&me, Some(page.0)).await
    }

    /// That was the last.
    #[method("endedPaging")]
    async fn ended_paging(me: Handle<Self>) -> Result<()> {
        put(&me, None).await
    }
}

async fn put(me: &Handle<PageCollector>, page: Come) -> Result<()> {
    let to = me.read(|collector| Rc::clone(&collector.to))?;
    // Whoever came first has it first.
    let mut to = to.lock().await;
    let last = page.is_none();
    let gone = || Fault::value("the receiver of these pages has gone");
    to.as_ref().ok_or_else(gone)?.send(page).await.map_err(|_| gone())?;
    if last {
        *to = None;
    }
    Ok(())
}
