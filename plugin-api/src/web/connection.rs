//! One connection of HTTP/1.1, by hyper: served, and handed on when the code is replaced.

use std::cell::Cell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::rc::Rc;
use std::task::{Context as Poller, Poll, ready};
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, Response, StatusCode};
use axum::response::IntoResponse;
use hyper::body::Incoming;
use hyper::server::conn::http1::{Builder, Connection};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tower_service::Service as _;

use super::visitor::Visit;
use crate::context::Context;
use crate::doors::{Listener, Stream};
use crate::service::Service;

/// How long a client may take for a request's head, and how long it may ask for nothing: longer than proxies keep connections
/// open, so that none is closed while a request is on its way.
const HEAD: Duration = Duration::from_secs(75);
/// How long a request may take, with its body.
const REQUEST: Duration = Duration::from_secs(60);
/// How many bytes a request's head may have.
const LONGEST_HEAD: usize = 64 << 10;

/// Serves these pages to whoever comes by a listener, until the service is replaced: to be spawned by [`Context::spawn`]. Pages see
/// who asks by [`Visitor`](super::Visitor).
///
/// When the code is replaced, requests under way are answered by this code; then, or at once where there is none, the connection is
/// handed on to the new code. The client notices nothing.
pub async fn serve<S: Service>(context: Context<S>, mut streams: Listener, pages: Router) {
    while let Some(stream) = streams.accept().await {
        context.spawn_for(one(context.clone(), stream, pages.clone()));
    }
}

/// How a connection stands.
#[derive(Default)]
struct Progress {
    /// Requests that are being answered.
    open: Cell<usize>,
    /// How many have begun.
    begun: Cell<u64>,
    /// Whether something was written that has yet to leave.
    unsent: Cell<bool>,
}

impl Progress {
    fn is_at_rest(&self) -> bool {
        self.open.get() == 0 && !self.unsent.get()
    }
}

/// A stream, and how it stands.
struct Tracked {
    stream: Stream,
    progress: Rc<Progress>,
}

impl AsyncRead for Tracked {
    fn poll_read(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(poll, buffer)
    }
}

impl AsyncWrite for Tracked {
    fn poll_write(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.progress.unsent.set(true);
        Pin::new(&mut self.stream).poll_write(poll, bytes)
    }

    // hyper flushes when all that it has was written.
    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(poll));
        self.progress.unsent.set(false);
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(poll)
    }
}

/// Answers requests by a router.
struct Answers {
    pages: Router,
    visit: Visit,
    progress: Rc<Progress>,
}

type Answer = Pin<Box<dyn Future<Output = Result<Response<Body>, std::convert::Infallible>>>>;

impl hyper::service::Service<Request<Incoming>> for Answers {
    type Response = Response<Body>;
    type Error = std::convert::Infallible;
    type Future = Answer;

    fn call(&self, request: Request<Incoming>) -> Answer {
        let (mut pages, progress) = (self.pages.clone(), Rc::clone(&self.progress));
        progress.open.set(progress.open.get() + 1);
        progress.begun.set(progress.begun.get() + 1);
        let mut request = request.map(Body::new);
        request.extensions_mut().insert(self.visit.clone());
        Box::pin(async move {
            let answered = tokio::time::timeout(REQUEST, pages.call(request)).await;
            progress.open.set(progress.open.get() - 1);
            Ok(match answered {
                Ok(answer) => answer.unwrap_or_else(|never| match never {}),
                Err(_) => StatusCode::REQUEST_TIMEOUT.into_response(),
            })
        })
    }
}

type Serving = Connection<TokioIo<Tracked>, Answers>;

/// How it goes on.
enum Goes {
    /// It has ended.
    Ended(hyper::Result<()>),
    /// Other code serves, and nothing is under way.
    Elsewhere,
}

/// Serves one connection to its end, or until it is handed on.
async fn one<S: Service>(context: Context<S>, stream: Stream, pages: Router) {
    let (visit, progress) = (Visit::of(&stream), Rc::<Progress>::default());
    let peer = stream.peer();
    let io = TokioIo::new(Tracked { stream, progress: Rc::clone(&progress) });
    let mut builder = Builder::new();
    builder.timer(TokioTimer::new()).header_read_timeout(HEAD).max_buf_size(LONGEST_HEAD);
    let mut serving = builder.serve_connection(io, Answers { pages, visit, progress: Rc::clone(&progress) });
    match until_replaced(&context, &mut serving, &progress).await {
        Goes::Ended(ended) => report(peer.address(), ended),
        Goes::Elsewhere => match rests(&mut serving, &progress).await {
            true => {
                let parts = serving.into_parts();
                parts.io.into_inner().stream.hand_on(&parts.read_buf);
            }
            // A request had begun to come: it is answered, and is the last.
            false => report(peer.address(), serving.await),
        },
    }
}

fn report(peer: &str, ended: hyper::Result<()>) {
    if let Err(error) = ended {
        tracing::debug!(peer, %error, "a connection has ended");
    }
}

/// Serves until the client ends it, or until other code serves and nothing is under way.
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

/// Has hyper let go of a connection at rest; false: something has come of it meanwhile.
async fn rests(serving: &mut Serving, progress: &Progress) -> bool {
    let begun = progress.begun.get();
    Pin::new(&mut *serving).graceful_shutdown();
    let ended = poll_fn(|poll| Poll::Ready(serving.poll_without_shutdown(poll).is_ready())).await;
    ended && progress.begun.get() == begun && progress.is_at_rest()
}
