//! What the host does for a stream while a service serves it: TLS, deadlines, and its end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnix;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use plugin_api::abi::frame::ToLibrary;
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::Doors;
use super::held::{Asker, Held};
use super::listening::Listening;
use super::logins::still;
use crate::login_gate::network;
use crate::memory::{AccountKey, Kept, Meter};
use crate::sessions::{Notice, SessionEntry};
use crate::store;

/// What is counted for a stream, in bytes: its descriptors, its entries, its task.
const COST: usize = 8 << 10;
/// What is counted for one whose bytes the host moves.
const RELAYED: usize = 64 << 10;
/// How long a client may take for TLS's greeting.
const GREETING: Duration = Duration::from_secs(10);
/// How long a stream is held that no service takes.
const UNTAKEN: Duration = Duration::from_secs(15);
/// How long the last bytes may take to their client, once the service has closed a stream.
const LAST: Duration = Duration::from_secs(30);
/// How long a client may take to close, once it has all.
const LINGER: Duration = Duration::from_secs(2);

/// A client's stream, whatever it is.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Moves the bytes of one stream in and out of TLS, or past a watch.
type Relay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A client's stream, and when the last byte came.
struct Watched<T> {
    inner: T,
    heard: watch::Sender<Instant>,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(mut self: Pin<&mut Self>, poll: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let before = buffer.filled().len();
        let read = Pin::new(&mut self.inner).poll_read(poll, buffer);
        if buffer.filled().len() > before {
            self.heard.send_replace(Instant::now());
        }
        read
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, poll: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.inner).poll_write(poll, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(poll)
    }
}

/// Has the host move a stream's bytes, and ends it when none has come from the client for so long.
fn relay<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    held: &Held,
    client: T,
    asked: Option<&str>,
) -> io::Result<Relay> {
    let (own, theirs) = StdUnix::pair()?;
    own.set_nonblocking(true)?;
    let mut own = UnixStream::from_std(own)?;
    held.relayed(theirs.into(), asked);
    held.mailbox.meter().add(Kept::Input, RELAYED);
    let (heard, mut hears) = watch::channel(Instant::now());
    let (mut client, idle) = (Watched { inner: client, heard }, held.listening.settings.idle);
    Ok(Box::pin(async move {
        let silence = async {
            let Some(idle) = idle else { return std::future::pending().await };
            loop {
                let by = *hears.borrow_and_update() + idle;
                tokio::time::sleep_until(by).await;
                if *hears.borrow() + idle <= Instant::now() {
                    return;
                }
            }
        };
        tokio::select! {
            // However it ends, it has ended.
            _ = tokio::io::copy_bidirectional(&mut client, &mut own) => {}
            () = silence => {}
        }
    }))
}

/// The socket, for tokio.
fn open(client: &OwnedFd, tcp: bool) -> io::Result<Box<dyn Io>> {
    let own = client.try_clone()?;
    Ok(if tcp {
        let socket = std::net::TcpStream::from(own);
        socket.set_nonblocking(true)?;
        Box::new(TcpStream::from_std(socket)?)
    } else {
        let socket = StdUnix::from(own);
        socket.set_nonblocking(true)?;
        Box::new(UnixStream::from_std(socket)?)
    })
}

/// What has happened.
enum Step {
    /// The connection is told something.
    Mail,
    /// The service has said something of it.
    Told,
    /// TLS has ended.
    Relayed,
    /// Its time is up.
    Late,
}

/// Attends to a stream to its end.
async fn attend(doors: &Arc<Doors>, held: &Arc<Held>) {
    held.mailbox.meter().add(Kept::Input, COST);
    let mut relay = None;
    if held.listening.settings.tls {
        match secure(doors, held).await {
            Ok(secured) => relay = Some(secured),
            Err(error) => return tracing::debug!(peer = held.peer, %error, "TLS has not come about"),
        }
    }
    if relay.is_none() && held.listening.settings.idle.is_some() {
        let watched = open(&held.client(), held.is_tcp()).and_then(|client| self::relay(held, client, None));
        match watched {
            Ok(watched) => relay = Some(watched),
            Err(error) => return tracing::warn!(%error, "a connection cannot be watched"),
        }
    }
    doors.offer(held);
    let mut login_by = Instant::now() + held.listening.settings.login;
    let taken_by = Instant::now() + UNTAKEN;
    let mut logged_in = false;
    loop {
        let now = held.login().is_some();
        if logged_in && !now {
            // Whoever was sent away has as long as one who comes.
            login_by = Instant::now() + held.listening.settings.login;
        }
        logged_in = now;
        let login = (!logged_in && !held.listening.is_public()).then_some(login_by);
        let untaken = (!held.is_taken()).then_some(taken_by);
        let due = login.into_iter().chain(untaken).min();
        let step = tokio::select! {
            () = held.mailbox.come() => Step::Mail,
            () = held.told.notified() => Step::Told,
            () = relayed(&mut relay) => Step::Relayed,
            () = until(due) => Step::Late,
        };
        match step {
            Step::Mail => {
                if doors.notices(held) {
                    break;
                }
            }
            Step::Told => {
                if let Some(asker) = held.wants_tls() {
                    relay = start_tls(doors, held, asker).await.or(relay);
                }
                if held.is_closing() {
                    return close(held, relay).await;
                }
            }
            Step::Relayed => {
                // The service sees its end, and says so.
                relay = None;
                held.cut();
                held.let_go();
            }
            // It may have come just in time.
            Step::Late if logged_in_or_taken(held, login.is_some(), untaken.is_some()) => {}
            Step::Late => {
                tracing::debug!(peer = held.peer, door = held.door(), "a connection is let go: its time is up");
                held.cut();
                break;
            }
        }
    }
    drop(relay);
    // The service says that it has let go of its end. One that has not looked at the stream yet knows it by the number of the
    // host's descriptor, which nothing else may have until then.
    let began = Instant::now();
    while !held.is_closing() && (held.is_offered() || held.is_taken() && began.elapsed() < LAST) {
        let _ = tokio::time::timeout(LAST, held.told.notified()).await;
    }
}

/// Whether what was waited for has come meanwhile.
fn logged_in_or_taken(held: &Held, login: bool, untaken: bool) -> bool {
    (!login || held.login().is_some()) && (!untaken || held.is_taken())
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn relayed(relay: &mut Option<Relay>) {
    match relay {
        Some(relay) => relay.await,
        None => std::future::pending().await,
    }
}

/// The service is done: its last words reach the client.
async fn close(held: &Held, relay: Option<Relay>) {
    held.let_go();
    if let Some(relay) = relay {
        // It may take no more.
        let _ = tokio::time::timeout(LAST, relay).await;
        return;
    }
    let client = held.client();
    if rustix::net::shutdown(&*client, Shutdown::Write).is_err() {
        return;
    }
    // What the client still sends would make the system throw away what it has not read.
    let Ok(mut socket) = open(&client, held.is_tcp()) else { return };
    let drained = async {
        let mut bytes = [0; 4096];
        while matches!(socket.read(&mut bytes).await, Ok(count) if count > 0) {}
    };
    let _ = tokio::time::timeout(LINGER, drained).await;
}

/// Has TLS spoken with the client, with the operator's certificate.
async fn secure(doors: &Doors, held: &Held) -> io::Result<Relay> {
    let certificates = doors.around.certificates.as_ref().ok_or_else(|| io::Error::other("no certificate"))?;
    let socket = open(&held.client(), held.is_tcp())?;
    let acceptor = TlsAcceptor::from(certificates.config());
    let tls = tokio::time::timeout(GREETING, acceptor.accept(socket)).await??;
    let asked = tls.get_ref().1.server_name().unwrap_or_default().to_owned();
    relay(held, tls, Some(&asked))
}

/// The service wants TLS from here on.
async fn start_tls(doors: &Doors, held: &Held, asker: Asker) -> Option<Relay> {
    let request = asker.request;
    if held.is_tls() {
        let message = "it speaks TLS already";
        doors.answer(&asker, &ToLibrary::NotLoggedIn { request, message, wait: 0 });
        return None;
    }
    match secure(doors, held).await {
        Ok(relay) => {
            let (descriptor, asked) = (held.descriptor(), held.asked());
            doors.answer(&asker, &ToLibrary::Secured { request, descriptor, asked: &asked });
            Some(relay)
        }
        Err(error) => {
            let message = format!("TLS has not come about: {error}");
            doors.answer(&asker, &ToLibrary::NotLoggedIn { request, message: &message, wait: 0 });
            None
        }
    }
}

impl Doors {
    /// A connection has come.
    pub(super) fn come(self: &Arc<Self>, listening: &Arc<Listening>, client: OwnedFd, source: Option<SocketAddr>) {
        let around = &self.around;
        let address = source.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let known = source.is_none() || around.gate.is_known(address.ip());
        let Some(place) = listening.admit(address.ip(), known) else {
            return tracing::debug!(%address, listener = listening.settings.name, "too many connections");
        };
        let account = around.memory.account(AccountKey::Source(network(address.ip())));
        let meter = Arc::new(Meter::new(account, usize::MAX));
        if !meter.admits(COST) {
            listening.leave(place);
            return tracing::debug!(%address, "no memory for one more connection");
        }
        let (number, mailbox) = around.router.connect(meter);
        let peer = source.map_or_else(|| format!("unix:{}", listening.settings.name), |source| source.to_string());
        let tls = listening.settings.tls;
        let entry = SessionEntry::new(&around.sessions, number, &peer, tls, store::now(), Arc::clone(&mailbox));
        let (of, tcp) = (Arc::clone(listening), source.is_some());
        let held = Held::new(number, of, address, peer, place, mailbox, entry, (client, tcp));
        self.streams.lock().insert(number, Arc::clone(&held));
        let doors = Arc::clone(self);
        self.spawn(async move {
            attend(&doors, &held).await;
            held.listening.forget(held.number, held.place);
            doors.forget(&held);
        });
    }

    /// Does what a stream was told; true: it has ended by that.
    fn notices(&self, held: &Arc<Held>) -> bool {
        let mut over = false;
        // Acknowledged when it is done.
        for (notice, _acknowledgement) in held.entry.notices() {
            match notice {
                Notice::Cut => {
                    held.cut();
                    over = true;
                }
                Notice::Changed(name, identity) => {
                    held.changed();
                    let Some(login) = held.login().filter(|login| login.identity == name) else { continue };
                    let service = &held.listening.settings.service;
                    if !identity.is_some_and(|identity| still(&identity, &login, service)) {
                        tracing::debug!(peer = held.peer, name, "what a login came by was taken away");
                        held.cut();
                        over = true;
                    }
                }
            }
        }
        if over && let (Some(login), Some(slot)) = (held.login(), held.slot()) {
            self.login_ended(&held.listening.settings.service, slot, login.number);
        }
        over
    }
}
