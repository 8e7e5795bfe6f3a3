//! Plain tokio streams for services.

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
    /// The peer that a frame `Stream` describes.
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

    /// The name of the service's listener that the stream came by.
    #[must_use]
    pub fn listener(&self) -> &str {
        &self.listener
    }

    /// The client's address, for people to read: `127.0.0.1:50022`.
    ///
    /// ```
    /// # use plugin_api::Peer;
    /// /// How a log describes a client.
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

    /// Whether the client speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls
    }

    /// Whether the operator lets clients of this listener switch to TLS ([`Transport::start_tls`](crate::Transport::start_tls)),
    /// and this one has not done so yet.
    #[must_use]
    pub fn can_start_tls(&self) -> bool {
        self.starttls && !self.tls
    }

    /// The host name that the client asked for in TLS (SNI).
    #[must_use]
    pub fn asked_for(&self) -> Option<&str> {
        Some(self.asked.as_str()).filter(|name| !name.is_empty())
    }

    /// The public key of the certificate that the client has shown in TLS, in OpenSSH's format (`ssh-ed25519 AAAA…`). The client
    /// has the private key. Clients are asked for a certificate only if the operator has set `certificates = true` for the
    /// listener. [`Authorizer::certificate`](crate::Authorizer::certificate) says whether the key is an identity's.
    #[must_use]
    pub fn certificate(&self) -> Option<&str> {
        Some(self.certificate.as_str()).filter(|key| !key.is_empty())
    }

    /// The protocol that the client and the listener have agreed on in TLS (ALPN, RFC 7301): one of those that the operator has
    /// named (`alpn = ["h2", "http/1.1"]` for the listener).
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

    /// Whether the peer is a proxy that passes on others' requests and says whose they are, and that the operator trusts
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

/// Makes the same call on either kind of socket.
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

/// A stream as the host knows it, wherever its bytes are moved. When this is dropped, the stream is closed.
#[derive(Debug)]
pub struct StreamCell {
    pub(super) number: u64,
    peer: Mutex<Peer>,
    login: Mutex<Option<Arc<LoginCell>>>,
    posts: Posts,
    /// Whether it has been handed on to other code.
    carried: AtomicBool,
    /// How fast it must move.
    pub(crate) rates: Rates,
    /// The number of buffered bytes that the host was last told.
    buffered: AtomicUsize,
}

/// By how many bytes the buffered amount must change before the host is told.
const STEP: usize = 8 << 10;

impl StreamCell {
    pub(super) fn new(number: u64, peer: Peer, posts: Posts, rates: Rates) -> Arc<Self> {
        let (peer, login, carried) = (Mutex::new(peer), Mutex::default(), AtomicBool::new(false));
        Arc::new(Self { number, peer, login, posts, carried, rates, buffered: AtomicUsize::new(0) })
    }

    /// Takes the number of bytes that are buffered for the stream. Returns the frame for the host, if it must be told.
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

    /// Separates the stream from its login.
    pub(crate) fn forget_login(&self) {
        let before = self.login.lock().unwrap_or_else(PoisonError::into_inner).take();
        drop(before);
    }

    /// Marks the stream, and its login, as handed on: the host is not told when they are dropped here.
    pub(super) fn carry(&self) {
        self.carried.store(true, Ordering::Relaxed);
        if let Some(login) = &*self.login.lock().unwrap_or_else(PoisonError::into_inner) {
            login.carry();
        }
    }

    /// Has the host speak TLS from here on. Returns the socket to continue with.
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
        // If the service has ended, the host knows already.
        let _ = self.posts.send(Box::new(move |core| core.doors.gone(core, number, !carried)));
    }
}

/// What a client can log in by: a stream, or something that came by one.
pub trait Caller: sealed::Caller {}

impl Caller for Stream {}
impl Caller for Client {}
impl Caller for super::Transport {}

pub(crate) mod sealed {
    use std::sync::Arc;

    /// Something that has a stream.
    pub trait Caller {
        #[doc(hidden)]
        fn cell(&self) -> Option<Arc<super::StreamCell>>;

        /// The address of the client whose request a proxy passes on. Empty: the request is the stream's own.
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

/// A socket. What is written leaves once every earlier change of the service's states is committed.
#[derive(Debug)]
pub(super) struct Committed {
    socket: Socket,
    /// Input that other code has read and not used.
    ahead: Bytes,
    committing: Option<oneshot::Receiver<Result<()>>>,
}

impl Committed {
    pub(super) fn new(socket: Socket) -> Self {
        Self { socket, ahead: Bytes::new(), committing: None }
    }

    /// Ready when every earlier change is committed.
    fn poll_committed(&mut self, poll: &mut Poller<'_>) -> Poll<io::Result<()>> {
        if self.committing.is_none() {
            match Core::current() {
                Some(core) if !core.is_committed() => {
                    let (done, committed) = oneshot::channel();
                    tokio::task::spawn_local(async move {
                        // The writer may have gone.
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

/// The client of a stream that something else reads, for logging in. The stream is closed when both it and the last `Client` are
/// dropped.
#[derive(Debug, Clone)]
pub struct Client(Arc<StreamCell>);

impl Client {
    /// The login of this stream, if the client has logged in.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.0.login()
    }

    /// Tells the host how many bytes are buffered for this client by whatever reads the stream: input that was not processed yet,
    /// and output to be written. The host counts them in its memory, for whoever has logged in, and closes the stream beyond
    /// their share. Call this again whenever the number has changed: one that is close to the last costs nothing.
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

/// A connection, as a plain tokio stream. Dropping it closes the connection.
///
/// Written bytes leave once every earlier change of the service's states is committed, so a client is never told anything that
/// could be lost. The stream can be moved to other threads, but what is written there does not wait for commits.
#[derive(Debug)]
pub struct Stream {
    socket: Committed,
    pub(super) cell: Arc<StreamCell>,
}

impl Stream {
    /// `ahead` is input that earlier code has read and not used.
    pub(super) fn new(socket: Socket, cell: Arc<StreamCell>, ahead: Vec<u8>) -> Self {
        Self { socket: Committed { ahead: ahead.into(), ..Committed::new(socket) }, cell }
    }

    /// Hands the stream on to the code that has replaced this ([`Context::replaced`](crate::Context::replaced)), which accepts it
    /// like a new one. For protocols that need not remember anything between two messages, such as HTTP. `input` is what was read
    /// from the stream and not used; what was written has left. Once the stream has been handed on, nothing may be done with it
    /// here.
    pub fn hand_on(self, input: &[u8]) {
        let ahead = [input, &self.socket.ahead].concat();
        // A stream without pending input needs no state.
        let state = if ahead.is_empty() { Vec::new() } else { Resting::stream(ahead) };
        let (cell, number) = (Arc::clone(&self.cell), self.cell.number);
        let posts = self.cell.posts.clone();
        drop(self);
        // If the service has ended, the host knows already.
        let _ = posts.send(Box::new(move |core| {
            // If nothing has replaced this code, the stream is closed.
            if core.retired.get() {
                core.push(&ToHost::Carry { stream: number, replacement: 0, state: &state });
                cell.carry();
            }
        }));
    }

    /// How fast the stream must move.
    #[cfg(feature = "web")]
    pub(crate) fn rates(&self) -> Rates {
        self.cell.rates
    }

    /// The client at the other end, for when a library owns the stream itself.
    #[must_use]
    pub fn client(&self) -> Client {
        Client(Arc::clone(&self.cell))
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.cell.peer()
    }

    /// The login of this stream, if the client has logged in.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.cell.login()
    }

    /// Switches to TLS, when the client is about to do so. The host speaks TLS, with the operator's certificate; the stream that
    /// this returns carries the decrypted bytes. What was read before must be all that the client has sent in the clear. Anything
    /// more is a fault or an attack, and the connection must end.
    ///
    /// # Errors
    /// If the operator has given no certificate, or the client does not speak TLS.
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
    /// // The login of the stream, once the client has logged in.
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

/// The streams of one of the service's listeners: from [`Context::listen`](crate::Context::listen).
#[derive(Debug)]
pub struct Listener {
    streams: mpsc::UnboundedReceiver<Stream>,
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.streams.close();
        // Streams that nobody has accepted go to the next generation, if this one is replaced.
        while let Ok(stream) = self.streams.try_recv() {
            stream.hand_on(&[]);
        }
    }
}

impl Listener {
    pub(crate) fn new(core: &Core, listener: &str, public: bool) -> Self {
        // The host limits how many there are.
        let (come, streams) = mpsc::unbounded_channel();
        let taker = move |taken: super::table::Taken| {
            // State that was saved by another kind of code cannot be used here: the stream is closed.
            let Some(ahead) = taken.state.as_deref().map_or(Some(Vec::new()), Resting::of_stream) else { return };
            // If the listener has been dropped, the stream is closed.
            let _ = come.send(Stream::new(taken.socket, taken.cell, ahead));
        };
        core.doors.listen(core, listener, public, std::rc::Rc::new(taker));
        Self { streams }
    }

    /// Waits for the next stream. `None`: the service has been replaced, and other code takes the streams.
    pub async fn accept(&mut self) -> Option<Stream> {
        self.streams.recv().await
    }
}

/// Makes the reply for a descriptor that the host lends: with a duplicate of it, so that the host may close its own. `greeting`:
/// the name that the client asked for in TLS, the key of its certificate, and the protocol that was agreed on.
pub(crate) fn lent(core: &Core, stream: u64, descriptor: u64, greeting: [&[u8]; 3]) -> Reply {
    let own = descriptor::duplicate(descriptor);
    core.push(&ToHost::Taken { stream, descriptor });
    if let Err(error) = &own {
        tracing::error!(%error, "there is no descriptor left for a stream of the host");
    }
    let said = jelly::to_vec(&greeting.map(String::from_utf8_lossy));
    Reply { bytes: said.unwrap_or_default(), some: true, descriptor: own.ok(), ..Reply::default() }
}
