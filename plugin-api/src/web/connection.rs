//! Serves an HTTP/1.1 connection with hyper, and hands it on when the code is replaced.

use std::cell::RefCell;
use std::collections::HashMap;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicUsize};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Poller, Poll, ready};

use axum::Router;
use axum::body::{Body, HttpBody};
use axum::http::{HeaderValue, Request, Response, StatusCode, header};
use axum::response::IntoResponse;
use hyper::body::{Frame, Incoming, SizeHint};
use hyper::server::conn::http1::{Builder, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;
use tower_service::Service as _;

use super::shown::{ShownTo, over};
use super::visitor::{Visit, Visitor};
use crate::abi::limits::ServiceLimits;
use crate::context::Context;
use crate::doors::{Listener, Pace, Stream};
use crate::service::Service;

/// Serves pages to the clients of a listener until the service is replaced. Run it with [`Context::spawn`]. Handlers learn who is
/// asking from [`Visitor`](super::Visitor).
///
/// When the code is replaced, this code answers the requests in progress. Then it hands the connection on to the new code; a
/// connection without requests in progress is handed on at once. The client notices nothing.
pub async fn serve<S: Service>(context: Context<S>, mut streams: Listener, pages: Router) {
    let at_once = AtOnce::default();
    while let Some(stream) = streams.accept().await {
        context.spawn_for(one(context.clone(), stream, pages.clone(), Rc::clone(&at_once)));
    }
}

/// The progress of a connection. It stays on one thread, but axum requires types that can be moved between threads.
#[derive(Default)]
struct Progress {
    /// Requests that are being answered.
    open: AtomicUsize,
    /// How many requests have begun.
    begun: AtomicUsize,
    /// Whether the body of the last request was not read to its end yet: what is left of it is not a request.
    unread: AtomicBool,
    /// Whether a page waits for more of the body.
    waits: AtomicBool,
    /// Whether there is output that has not left yet.
    unsent: AtomicBool,
    /// The logins that this output is for.
    shown_to: Mutex<Vec<ShownTo>>,
}

impl Progress {
    fn is_at_rest(&self) -> bool {
        let unsent = self.unsent.load(Relaxed) || self.unread.load(Relaxed);
        self.open.load(Relaxed) == 0 && !unsent
    }

    /// What is written next is for these logins.
    fn shows_to(&self, logins: ShownTo) {
        self.shown_to.lock().unwrap_or_else(PoisonError::into_inner).push(logins);
    }

    /// All output has left.
    fn has_left(&self) {
        self.shown_to.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Whether a login that the output is for was revoked.
    fn is_over(&self) -> bool {
        self.shown_to.lock().unwrap_or_else(PoisonError::into_inner).iter().any(ShownTo::is_over)
    }
}

/// A request's body.
struct Reading {
    body: Incoming,
    progress: Arc<Progress>,
}

impl HttpBody for Reading {
    type Data = bytes::Bytes;
    type Error = hyper::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        poll: &mut Poller<'_>,
    ) -> Poll<Option<Result<Frame<Self::Data>, Self::Error>>> {
        let frame = Pin::new(&mut self.body).poll_frame(poll);
        self.progress.waits.store(frame.is_pending(), Relaxed);
        let frame = ready!(frame);
        if frame.is_none() || self.body.is_end_stream() {
            self.progress.unread.store(false, Relaxed);
        }
        Poll::Ready(frame)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Reading {
    fn drop(&mut self) {
        self.progress.waits.store(false, Relaxed);
    }
}

/// How many requests of each visitor are being answered, of those that come by proxies.
type AtOnce = Rc<RefCell<HashMap<String, usize>>>;

/// One of these requests.
struct Counted {
    all: AtOnce,
    visitor: String,
}

impl Counted {
    /// Counts one more; `None`: there are too many.
    fn new(all: &AtOnce, visitor: &str, most: usize) -> Option<Self> {
        let mut counts = all.borrow_mut();
        let count = counts.entry(visitor.to_owned()).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Self { all: Rc::clone(all), visitor: visitor.to_owned() })
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut counts = self.all.borrow_mut();
        if let Some(count) = counts.get_mut(&self.visitor) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.visitor);
            }
        }
    }
}

/// A stream, and its progress.
struct Tracked {
    stream: Stream,
    progress: Arc<Progress>,
    /// The pace at which the client reads.
    leaving: Pace,
    /// The deadline of a client that reads too slowly.
    stalled: Option<Pin<Box<tokio::time::Sleep>>>,
    coming: Coming,
}

/// A request that is arriving: its head, or the body that its page reads.
struct Coming {
    pace: Pace,
    /// How many requests had begun at the last read.
    begun: usize,
    /// Whether a part of a head has arrived.
    head: bool,
    /// Since when nobody has asked for more: this time does not count against the client.
    unasked: Option<Instant>,
    /// The deadline for more to arrive.
    late: Option<Pin<Box<tokio::time::Sleep>>>,
}

impl Coming {
    /// More is read.
    fn asked(&mut self, progress: &Progress, now: Instant) {
        if let Some(since) = self.unasked.take() {
            self.pace.pause(now - since);
        }
        let begun = progress.begun.load(Relaxed);
        if std::mem::replace(&mut self.begun, begun) != begun {
            // From here on, the input is a body or the next request.
            self.head = false;
            self.pace.rest();
        }
    }

    /// This many bytes have arrived.
    fn came(&mut self, progress: &Progress, bytes: usize, now: Instant) {
        self.head |= !progress.unread.load(Relaxed);
        self.pace.begin(now);
        self.pace.moved(bytes, now);
        (self.unasked, self.late) = (Some(now), None);
    }

    /// Nothing has arrived. Ready: a request that has begun is too late.
    fn is_late(&mut self, progress: &Progress, now: Instant, poll: &mut Poller<'_>) -> Poll<()> {
        // What nobody asks for, the client need not send; and it may be there.
        if !self.head && !progress.waits.load(Relaxed) {
            self.pace.rest();
            self.late = None;
            return Poll::Pending;
        }
        self.pace.begin(now);
        let due = self.pace.due().unwrap_or(now);
        self.late.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due))).as_mut().poll(poll)
    }
}

impl Tracked {
    fn new(stream: Stream, progress: Arc<Progress>) -> Self {
        let (leaving, pace) = (stream.rates().leaving(), stream.rates().coming());
        let coming = Coming { pace, begun: 0, head: false, unasked: None, late: None };
        Self { stream, progress, leaving, stalled: None, coming }
    }
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let Self { stream, progress, coming, .. } = &mut *self;
        let (before, now) = (buffer.filled().len(), Instant::now());
        coming.asked(progress, now);
        let read = Pin::new(stream).poll_read(poll, buffer);
        match read {
            Poll::Ready(_) => coming.came(progress, buffer.filled().len() - before, now),
            Poll::Pending if coming.is_late(progress, now, poll).is_ready() => {
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
            Poll::Pending => {}
        }
        read
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        if self.progress.is_over() {
            return Poll::Ready(Err(over()));
        }
        self.progress.unsent.store(true, Relaxed);
        let (written, now) = (Pin::new(&mut self.stream).poll_write(poll, bytes), Instant::now());
        self.leaving.begin(now);
        if let Poll::Ready(written) = written {
            self.leaving.moved(*written.as_ref().unwrap_or(&0), now);
            self.stalled = None;
            return Poll::Ready(written);
        }
        let due = self.leaving.due().unwrap_or(now);
        let stalled = self.stalled.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(due)));
        match stalled.as_mut().poll(poll) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }

    // hyper flushes once it has written everything.
    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(poll));
        self.progress.unsent.store(false, Relaxed);
        self.progress.has_left();
        self.leaving.rest();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(poll)
    }
}

/// Answers requests with a router.
struct Answers {
    pages: Router,
    visit: Visit,
    progress: Arc<Progress>,
    at_once: AtOnce,
    limits: ServiceLimits,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, Infallible>>>>;

impl hyper::service::Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let (mut pages, progress, limits) = (self.pages.clone(), Arc::clone(&self.progress), self.limits);
        progress.open.fetch_add(1, Relaxed);
        progress.begun.fetch_add(1, Relaxed);
        progress.unread.store(!request.body().is_end_stream(), Relaxed);
        let shown_to = ShownTo::default();
        let visitor = Visitor::of(Some(self.visit.clone()), shown_to.clone(), request.headers());
        let looks = request.method().is_safe();
        // The host counts the others, by their connections.
        let counted =
            visitor.is_by_proxy().then(|| Counted::new(&self.at_once, visitor.address(), limits.http_at_once));
        let reading = Arc::clone(&progress);
        let mut request = request.map(|body| Body::new(Reading { body, progress: reading }));
        request.extensions_mut().insert(self.visit.clone());
        request.extensions_mut().insert(shown_to.clone());
        Box::pin(async move {
            let answered = match counted {
                Some(None) => Ok(Ok(StatusCode::TOO_MANY_REQUESTS.into_response())),
                _ => tokio::time::timeout(limits.http_request, pages.call(request)).await,
            };
            progress.open.fetch_sub(1, Relaxed);
            drop(counted);
            let mut answer = match answered {
                Ok(answer) => answer.unwrap_or_else(|never| match never {}),
                Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
            };
            // A visitor who changes something is told the result, even if they have ended their own login.
            if looks && shown_to.guards(&answer) {
                let theirs = !shown_to.is_over();
                answer = shown_to.answer(answer);
                if theirs {
                    progress.shows_to(shown_to);
                }
            }
            // Other code could not continue with the rest of a body.
            if progress.unread.load(Relaxed) {
                answer.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok(answer)
        })
    }
}

type Serving = Connection<TokioIo<Tracked>, Answers>;

/// What becomes of a connection.
enum Goes {
    /// It has ended.
    Ended(hyper::Result<()>),
    /// Other code serves, and no request is in progress.
    Elsewhere,
}

/// Serves one connection until it ends or is handed on.
async fn one<S: Service>(context: Context<S>, stream: Stream, pages: Router, at_once: AtOnce) {
    let (visit, progress, limits) = (Visit::of(&stream), Arc::<Progress>::default(), context.limits());
    let peer = stream.peer();
    let io = TokioIo::new(Tracked::new(stream, Arc::clone(&progress)));
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(limits.http_idle).max_buf_size(limits.http_head);
    let mut serving =
        builder.serve_connection(io, Answers { pages, visit, progress: Arc::clone(&progress), at_once, limits });
    match until_replaced(&context, &mut serving, &progress).await {
        Goes::Ended(ended) => report(peer.address(), ended),
        Goes::Elsewhere => match rests(&mut serving, &progress).await {
            true => {
                let parts = serving.into_parts();
                parts.io.into_inner().stream.hand_on(&parts.read_buf);
            }
            // A request had begun to arrive: it is answered, as the last one.
            false => report(peer.address(), serving.await),
        },
    }
}

fn report(peer: &str, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(peer, %error, "a connection has ended");
    }
}

/// Serves until the connection ends, or until other code serves and no request is in progress.
async fn until_replaced<S: Service>(context: &Context<S>, serving: &mut Serving, progress: &Progress) -> Goes {
    let (mut replaced, mut elsewhere) = (pin!(context.replaced()), context.is_replaced());
    poll_fn(|poll| {
        if let Poll::Ready(ended) = Pin::new(&mut *serving).poll(poll) {
            return Poll::Ready(Goes::Ended(ended));
        }
        elsewhere = elsewhere || replaced.as_mut().poll(poll).is_ready();
        if elsewhere && progress.is_at_rest() { Poll::Ready(Goes::Elsewhere) } else { Poll::Pending }
    })
    .await
}

/// Has hyper release a connection at rest. `false`: something has arrived meanwhile. A connection on which no request has begun
/// is at rest even if a part of its first request has arrived: hyper gives that part back.
async fn rests(serving: &mut Serving, progress: &Progress) -> bool {
    let begun = progress.begun.load(Relaxed);
    Pin::new(&mut *serving).graceful_shutdown();
    let ended = poll_fn(|poll| Poll::Ready(serving.poll_without_shutdown(poll).is_ready())).await;
    (ended || begun == 0) && progress.begun.load(Relaxed) == begun && progress.is_at_rest()
}
