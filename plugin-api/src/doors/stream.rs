//! Streams, as tokio has them.

use std::io;
use std::os::fd::OwnedFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context as Poller, Poll, ready};

use bytes::Bytes;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::{mpsc, oneshot};

use super::authorizer::{Login, LoginCell, asked};
use super::drive::Resting;
use super::pace::Rates;
use super::table::Posts;
use crate::abi::descriptor;
use crate::abi::frame::{ToHost, ToLibrary};
use crate::fault::{Fault, Result};
use crate::runtime::core::{Core, Reply};

/// Who is at the other end of a stream.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Peer {
    listener: String,
    address: String,
    tls: bool,
    starttls: bool,
    asked: String,
    certificate: String,
    protocol: String,
    forwarded: bool,
}

impl Peer {
    /// The peer that a frame `Stream` tells of.
    pub(super) fn of(frame: &ToLibrary<'_>) -> Self {
        match *frame {
            ToLibrary::Stream { listener, peer, tls, starttls, asked, forwarded, certificate, protocol, .. } => {
                let (listener, address, asked) = (listener.to_owned(), peer.to_owned(), asked.to_owned());
                let [certificate, protocol] =
                    [certificate, protocol].map(|bytes| String::from_utf8_lossy(bytes).into_owned());
                Self { listener, address, tls, starttls, asked, certificate, protocol, forwarded }
            }
            _ => Self::default(),
        }
    }

    /// By which of the service's listeners it came.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// Where it is, for a person to read: `127.0.0.1:50022`.
    ///
    /// ```
    /// # use plugin_api::Peer;
    /// /// What a log says of who is there.
    /// fn described(peer: &Peer) -> String {
    ///     let how = match (peer.is_tls(), peer.can_start_tls()) {
    ///         (true, _) => format!("TLS for {}", peer.asked_for().unwrap_or("no name")),
    ///         (false, true) => "in the clear until STARTTLS".to_owned(),
    ///         (false, false) => "in the clear".to_owned(),
    ///     };
    ///     let passed_on = if peer.is_proxy() { ", a proxy" } else { "" };
    ///     format!("{} by {} ({how}{passed_on})", peer.address(), peer.listener())
    /// }
    ///
    /// assert_eq!(described(&Peer::default()), " by  (in the clear)");
    /// ```
    #[must_use]
    pub fn address(&self) -> &str {
        &self.address
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether the operator lets clients of this listener go over to TLS ([`Transport::start_tls`](crate::Transport::start_tls)),
    /// and this one has not yet.
    #[must_use]
    pub fn can_start_tls(&self) -> bool {
        self.starttls && !self.tls
    }

    /// The name of a host that the client asked for by TLS (SNI).
    #[must_use]
    pub fn asked_for(&self) -> Option<&str> {
        Some(self.asked.as_str()).filter(|name| !name.is_empty())
    }

    /// The key of the certificate that it has shown by TLS, as OpenSSH writes it (`ssh-ed25519 AAAA…`): it has the private one. Where the
    /// operator has clients asked for one (`certificates = true` for the listener).
    /// [`Authorizer::certificate`](crate::Authorizer::certificate) says whether it is somebody's.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        Some(self.certificate.as_str()).filter(|key| !key.is_empty())
    }

    /// The protocol that it and the listener have agreed on by TLS (ALPN, RFC 7301): one of those that the operator has named
    /// (`alpn = ["h2", "http/1.1"]` for the listener).
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// #[derive(Default)]
    /// struct Pages;
    ///
    /// #[service("pages", save = "never")]
    /// impl Service for Pages {
    ///     type Perspective = Reader;
    ///
    ///     async fn start(_: Handle<Self>, context: Context<Self>) -> Result<()> {
    ///         let mut listener = context.listen("web")?;
    ///         let serve = async move {
    ///             while let Some(mut stream) = listener.accept().await {
    ///                 let protocol = stream.peer().protocol().unwrap_or("none").to_owned();
    ///                 let _ = tokio::io::AsyncWriteExt::write_all(&mut stream, protocol.as_bytes()).await;
    ///             }
    ///         };
    ///         context.spawn(serve);
    ///         Ok(())
    ///     }
    /// }
    /// # #[derive(Default)]
    /// # struct Reader;
    /// # #[perspective]
    /// # impl Reader {}
    ///
    /// let host = TestHost::<Pages>::start()?;
    /// let mut client = host.connect_with_protocol("web", "h2")?;
    /// assert_eq!(client.rest()?, "h2");
    /// # Ok::<(), Fault>(())
    /// ```
    #[must_use]
    pub fn protocol(&self) -> Option<&str> {
        Some(self.protocol.as_str()).filter(|protocol| !protocol.is_empty())
    }

    /// Whether it is a proxy's, which passes on others' requests and says whose they are: the operator believes it
    /// (`proxies = ["127.0.0.1"]` for the listener).
    #[must_use]
    pub fn is_proxy(&self) -> bool {
        self.forwarded
    }
}

/// A socket of one of two kinds.
#[derive(Debug)]
pub(super) enum Socket {
    Tcp(TcpStream),
    Unix(UnixStream),
}

/// The same call, whichever it is.
macro_rules! either {
    ($socket:expr, $one:ident => $call:expr) => {
        match $socket {
            Socket::Tcp($one) => $call,
            Socket::Unix($one) => $call,
        }
    };
}

impl Socket {
    pub(super) fn new(own: OwnedFd, tcp: bool) -> io::Result<Self> {
        Ok(if tcp {
            let socket = std::net::TcpStream::from(own);
            socket.set_nonblocking(true)?;
            Self::Tcp(TcpStream::from_std(socket)?)
        } else {
            let socket = std::os::unix::net::UnixStream::from(own);
            socket.set_nonblocking(true)?;
            Self::Unix(UnixStream::from_std(socket)?)
        })
    }

    pub(super) async fn readable(&self) -> io::Result<()> {
        either!(self, socket => socket.readable().await)
    }

    pub(super) async fn writable(&self) -> io::Result<()> {
        either!(self, socket => socket.writable().await)
    }

    pub(super) fn try_read(&self, room: &mut [u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_read(room))
    }

    pub(super) fn try_write(&self, bytes: &[u8]) -> io::Result<usize> {
        either!(self, socket => socket.try_write(bytes))
    }
}

/// What a stream is to the host, wherever its bytes are moved. Dropped, it is closed.
#[derive(Debug)]
pub struct StreamCell {
    pub(super) number: u64,
    peer: Mutex<Peer>,
    login: Mutex<Option<Arc<LoginCell>>>,
    posts: Posts,
    /// It has been handed on to other code.
    carried: AtomicBool,
    /// How fast it has to move.
    pub(crate) rates: Rates,
    /// How many bytes the host knows to be kept for it.
    buffered: AtomicUsize,
}

/// The host is told of what is kept for a stream when it has become so much more, or less, in bytes.
const STEP: usize = 8 << 10;

impl StreamCell {
    pub(super) fn new(number: u64, peer: Peer, posts: Posts, rates: Rates) -> Arc<Self> {
        let (peer, login, carried) = (Mutex::new(peer), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { number, peer, login, posts, carried, rates, buffered: AtomicUsize::new(0) })
    }

    /// This many bytes are kept for it. Answers with what to tell the host, if it is to hear of that.
    pub(super) fn buffers(&self, bytes: usize) -> Option<ToHost<'static>> {
        let told = self.buffered.load(Ordering::Relaxed);
        let told_of = told.abs_diff(bytes) >= STEP || bytes == 0 && told > 0;
        told_of.then(|| {
            self.buffered.store(bytes, Ordering::Relaxed);
            ToHost::Buffered { stream: self.number, bytes: u64::try_from(bytes).unwrap_or(u64::MAX) }
        })
    }

    pub(super) fn peer(&self) -> Peer {
        self.peer.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn login(&self) -> Option<Login> {
        self.login.lock().unwrap_or_else(PoisonError::into_inner).clone().map(Login)
    }

    pub(super) fn set_login(&self, login: Arc<LoginCell>) {
        login.has(self.number);
        let before = self.login.lock().unwrap_or_else(PoisonError::into_inner).replace(login);
        drop(before);
    }

    /// It belongs to no login any more.
    pub(crate) fn forget_login(&self) {
        let before = self.login.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(before);
    }

    /// It has been handed on: its end here is nobody's business.
    pub(super) fn carry(&self) {
        self.carried.store(true, Ordering::Relaxed);
        if let Some(login) = &*self.login.lock().unwrap_or_else(PoisonError::into_inner) {
            login.carry();
        }
    }

    /// Has the host speak TLS from here on; answers with the socket to go on with.
    pub(super) async fn start_tls(&self) -> Result<Socket> {
        let stream = self.number;
        let secured = asked(&self.posts, move |core, request| core.push(&ToHost::StartTls { request, stream })).await;
        let secured = secured.map_err(|refused| Fault::new("RuntimeError", refused.message().to_owned()))?;
        let own = secured.descriptor.ok_or_else(|| Fault::new("RuntimeError", "there is no descriptor left"))?;
        let [asked, certificate, protocol]: [String; 3] = jelly::from_slice(&secured.bytes).unwrap_or_default();
        let mut peer = self.peer.lock().unwrap_or_else(PoisonError::into_inner);
        *peer = Peer { tls: true, asked, certificate, protocol, ..std::mem::take(&mut *peer) };
        drop(peer);
        Ok(Socket::new(own, false)?)
    }
}

impl Drop for StreamCell {
    fn drop(&mut self) {
        let (number, carried) = (self.number, *self.carried.get_mut());
        // The service may have ended: the host knows then.
        let _ = self.posts.send(Box::new(move |core| core.doors.gone(core, number, !carried)));
    }
}

/// What came by a stream: who tries to log in by it.
pub trait Caller: sealed::Caller {}

impl Caller for Stream {}
impl Caller for Client {}
impl Caller for super::Transport {}

pub(crate) mod sealed {
    use std::sync::Arc;

    /// What has a stream.
    pub trait Caller {
        #[doc(hidden)]
        fn cell(&self) -> Option<Arc<super::StreamCell>>;

        /// Whose request a proxy passes on: an address; empty: it is the stream's own.
        #[doc(hidden)]
        fn source(&self) -> &str {
            ""
        }
    }

    impl Caller for super::Stream {
        fn cell(&self) -> Option<Arc<super::StreamCell>> {
            Some(Arc::clone(&self.cell))
        }
    }

    impl Caller for super::Client {
        fn cell(&self) -> Option<Arc<super::StreamCell>> {
            Some(Arc::clone(&self.0))
        }
    }

    impl Caller for crate::doors::Transport {
        fn cell(&self) -> Option<Arc<super::StreamCell>> {
            self.stream()
        }
    }
}

/// A socket. What is written leaves when every change of the service's states before it is committed.
#[derive(Debug)]
pub(super) struct Committed {
    socket: Socket,
    /// What has come before, to other code.
    ahead: Bytes,
    committing: Option<oneshot::Receiver<Result<()>>>,
}

impl Committed {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, ahead: Bytes::new(), committing: None }
    }

    /// Whether every change before is committed.
    fn poll_committed(&mut self, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        if self.committing.is_none() {
            match Core::current() {
                Some(core) if !core.is_committed() => {
                    let (done, committed) = oneshot::channel();
                    tokio::task::spawn_local(async move {
                        // Who writes may have gone.
                        let _ = done.send(core.committed().await);
                    });
                    self.committing = Some(committed);
                }
                _ => return Poll::Ready(Ok(())),
            }
        }
        let Some(committing) = &mut self.committing else { return Poll::Ready(Ok(())) };
        let committed = ready!(Pin::new(committing).poll(poll));
        self.committing = None;
        Poll::Ready(match committed {
            Ok(Ok(())) => Ok(()),
            Ok(Err(fault)) => Err(io::Error::other(fault.to_string())),
            Err(_) => Err(io::ErrorKind::BrokenPipe.into()),
        })
    }
}

impl AsyncRead for Committed {
    fn poll_read(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if !self.ahead.is_empty() {
            let count = self.ahead.len().min(buffer.remaining());
            buffer.put_slice(&self.ahead.split_to(count));
            return Poll::Ready(Ok(()));
        }
        either!(&mut self.socket, socket => Pin::new(socket).poll_read(poll, buffer))
    }
}

impl AsyncWrite for Committed {
    fn poll_write(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        ready!(self.poll_committed(poll))?;
        either!(&mut self.socket, socket => Pin::new(socket).poll_write(poll, bytes))
    }

    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        either!(&mut self.socket, socket => Pin::new(socket).poll_flush(poll))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_committed(poll))?;
        either!(&mut self.socket, socket => Pin::new(socket).poll_shutdown(poll))
    }
}

/// Who is at the other end of a stream that something else reads: to log in by. The stream is closed when the last of both is
/// dropped.
#[derive(Debug, Clone)]
pub struct Client(Arc<StreamCell>);

impl Client {
    /// Who has logged in by it.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.0.login()
    }

    /// This many bytes are kept for it by whatever reads the stream: what has come and was not looked at, what is to be written. They are
    /// counted in the host's memory, for whoever has logged in; beyond their share of that the host closes the stream. To be said
    /// again whenever it has changed: a number that is much like the last one costs nothing.
    ///
    /// ```no_run
    /// # async fn run(mut listener: plugin_api::Listener) {
    /// while let Some(stream) = listener.accept().await {
    ///     let client = stream.client();
    ///     let waiting: Vec<u8> = Vec::new();
    ///     // …
    ///     client.set_buffered(waiting.len());
    /// }
    /// # }
    /// ```
    pub fn set_buffered(&self, bytes: usize) {
        if let Some(frame) = self.0.buffers(bytes) {
            // The service may have ended: nothing is kept then.
            let _ = self.0.posts.send(Box::new(move |core| core.push(&frame)));
        }
    }
}

/// A connection, as a plain stream of tokio's. Dropped, it is closed.
///
/// What is written leaves when every change of the service's states before it is committed: so a client is told of nothing
/// that could be lost. It may be moved to other threads; what is written there waits for nothing.
#[derive(Debug)]
pub struct Stream {
    socket: Committed,
    pub(super) cell: Arc<StreamCell>,
}

impl Stream {
    /// `ahead` is what has come before, to the code that had it.
    pub(super) fn new(socket: Socket, cell: Arc<StreamCell>, ahead: Vec<u8>) -> Self {
        Self { socket: Committed { ahead: ahead.into(), ..Committed::new(socket) }, cell }
    }

    /// Hands it on to the code that has replaced this ([`Context::replaced`](crate::Context::replaced)), which accepts it like a new
    /// one: for protocols with nothing to remember between two messages, as HTTP's. `input` is what was read of it, and not used;
    /// what was written has left. Once it has been handed on nothing may be done with it here.
    pub fn hand_on(self, input: &[u8]) {
        let ahead = [input, &self.socket.ahead].concat();
        // One that nothing has come of is as it was.
        let state = if ahead.is_empty() { Vec::new() } else { Resting::stream(ahead) };
        let (cell, number) = (Arc::clone(&self.cell), self.cell.number);
        let posts = self.cell.posts.clone();
        drop(self);
        // The service may have ended: the host knows then.
        let _ = posts.send(Box::new(move |core| {
            // If nothing has replaced it, it is closed.
            if core.retired.get() {
                core.push(&ToHost::Carry { stream: number, replacement: 0, state: &state });
                cell.carry();
            }
        }));
    }

    /// How fast it has to move.
    #[cfg(feature = "web")]
    pub(crate) fn rates(&self) -> Rates {
        self.cell.rates
    }

    /// Who is at the other end, for when a library has the stream itself.
    #[must_use]
    pub fn client(&self) -> Client {
        Client(Arc::clone(&self.cell))
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.cell.peer()
    }

    /// Who has logged in by it.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.cell.login()
    }

    /// The client is about to speak TLS: has the host do so, with the operator's certificate, and goes on in the clear inside.
    /// What was read before must have been all that the client sent in the clear: more of it is a fault, or an attack, and the
    /// connection must end.
    ///
    /// # Errors
    /// When the operator has given no certificate, or the client does not speak TLS.
    ///
    /// ```no_run
    /// # use plugin_api::Stream;
    /// # use tokio::io::{AsyncReadExt, AsyncWriteExt};
    /// # async fn greet(mut stream: Stream) -> plugin_api::Result<Stream> {
    /// let mut word = [0; 10];
    /// stream.read_exact(&mut word).await?;
    /// if &word == b"STARTTLS\r\n" && stream.peer().can_start_tls() {
    ///     stream.write_all(b"OK\r\n").await?;
    ///     stream = stream.start_tls().await?;
    /// }
    /// // Who has logged in by it, once somebody has.
    /// let who = stream.client().login().or(stream.login());
    /// stream.write_all(who.map_or("nobody", |_| "somebody").as_bytes()).await?;
    /// # Ok(stream) }
    /// ```
    pub async fn start_tls(mut self) -> Result<Self> {
        self.socket = Committed::new(self.cell.start_tls().await?);
        Ok(self)
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_read(poll, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, poll: &mut Poller<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.socket).poll_write(poll, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_flush(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.socket).poll_shutdown(poll)
    }
}

/// Streams that come by one of the service's listeners: from [`Context::listen`](crate::Context::listen).
#[derive(Debug)]
pub struct Listener {
    streams: mpsc::UnboundedReceiver<Stream>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.streams.close();
        // Those that nobody has accepted are the next code's, if it is replaced.
        while let Ok(stream) = self.streams.try_recv() {
            stream.hand_on(&[]);
        }
    }
}

impl Listener {
    pub(crate) fn new(core: &Core, listener: &str, public: bool) -> Self {
        // The host bounds how many there are.
        let (come, streams) = mpsc::unbounded_channel();
        let taker = move |taken: super::table::Taken| {
            // What another kind of code has made of one means nothing to this: it is closed.
            let Some(ahead) = taken.state.as_deref().map_or(Some(Vec::new()), Resting::of_stream) else { return };
            // Who listens may have ceased to: then it is closed.
            let _ = come.send(Stream::new(taken.socket, taken.cell, ahead));
        };
        core.doors.listen(core, listener, public, std::rc::Rc::new(taker));
        Self { streams }
    }

    /// The next stream. `None`: the service has been replaced, and other code takes them.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// What the host lends a descriptor for, as a reply: with one of one's own, and after that the host may close its.
/// `greeting`: the name that the client asked for by TLS, the key of its certificate, and the protocol that was agreed on.
pub(crate) fn lent(core: &Core, stream: u64, descriptor: u64, greeting: [&[u8]; 3]) -> Reply {
    let own = descriptor::duplicate(descriptor);
    core.push(&ToHost::Taken { stream, descriptor });
    if let Err(error) = &own {
        tracing::error!(%error, "there is no descriptor left for what the host lends");
    }
    let said = jelly::to_vec(&greeting.map(String::from_utf8_lossy));
    Reply { bytes: said.unwrap_or_default(), some: true, descriptor: own.ok(), ..Reply::default() }
}
