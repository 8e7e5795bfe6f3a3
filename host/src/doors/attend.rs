//! What the host does for a stream while a service serves it: TLS, deadlines, and its end.

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdUnix;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use plugin_api::abi::frame::ToLibrary;
use plugin_api::pace::Rates;
use rustix::net::Shutdown;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_rustls::TlsAcceptor;

use super::Doors;
use super::ends::number;
use super::held::{Greeted, Held};
use super::listening::Listening;
use super::logins::still;
use super::words::{Asker, LoggedIn};
use crate::cred::ClientCertificate;
use crate::login_gate::network;
use crate::memory::{AccountKey, Kept, Meter};
use crate::sessions::{Herald, Notice, SessionEntry};
use crate::store;

/// How much is moved at once, in bytes.
const CHUNK: usize = 8 << 10;
/// What is counted for a stream, in bytes: its descriptors, its entries, its task.
const COST: usize = 8 << 10;
/// What is counted for one whose bytes the host moves.
const RELAYED: usize = 64 << 10;
/// How long a client may take for TLS's greeting.
const GREETING: Duration = Duration::from_secs(10);
/// How long a service may take to let go of a stream that has ended.
const LAST: Duration = Duration::from_secs(30);
/// How long a service may take to hear that a login has ended, before the command that has ended it returns.
const HEARS: Duration = Duration::from_secs(1);
/// How long a client may take to close, once it has all.
const LINGER: Duration = Duration::from_secs(2);

/// A client's stream, whatever it is.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Moves the bytes of one stream in and out of TLS, or past a watch.
type Relay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A client's greeting of TLS, which its service has asked for.
type Greeting<'h> = Pin<Box<dyn Future<Output = (Asker, io::Result<Relay>)> + Send + 'h>>;

/// However attending to a stream ends, it is forgotten.
struct Attended {
    doors: Arc<Doors>,
    held: Arc<Held>,
}

impl Drop for Attended {
    fn drop(&mut self) {
        self.held.listening.forget(self.held.number, self.held.place);
        self.doors.forget(&self.held);
    }
}

/// A client's stream, when the last byte came, and how many have left.
struct Watched<T> {
    inner: T,
    heard: watch::Sender<Instant>,
    said: Arc<AtomicUsize>,
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
        let written = Pin::new(&mut self.inner).poll_write(poll, bytes);
        if let Poll::Ready(Ok(count)) = written {
            self.said.fetch_add(count, Ordering::Relaxed);
        }
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, poll: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(poll)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, poll: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(poll)
    }
}

/// Moves bytes both ways until both have ended. What has gone through is erased.
async fn carry(client: &mut (impl AsyncRead + AsyncWrite + Unpin), own: &mut UnixStream) {
    async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = zeroize::Zeroizing::new(vec![0; CHUNK]);
        loop {
            // One that fails has ended: TLS without a goodbye, say. What came before that counts.
            let count = from.read(&mut bytes).await.unwrap_or(0);
            if count == 0 {
                return to.shutdown().await;
            }
            to.write_all(&bytes[..count]).await?;
            to.flush().await?;
        }
    }
    let (mut hears, mut says) = tokio::io::split(client);
    let (mut reads, mut writes) = own.split();
    // However they end, they have ended: that nothing can be said to a client any more does not keep what it has sent.
    let _ = tokio::join!(one_way(&mut hears, &mut writes), one_way(&mut reads, &mut says));
}

/// Has the host move a stream's bytes, and ends it when none has come from the client for so long.
fn relay<T: AsyncRead + AsyncWrite + Send + Unpin + 'static>(
    held: &Held,
    client: T,
    greeted: Option<Greeted>,
) -> io::Result<Relay> {
    let (own, theirs) = StdUnix::pair()?;
    own.set_nonblocking(true)?;
    let mut own = UnixStream::from_std(own)?;
    held.relayed(theirs.into(), greeted);
    held.mailbox.meter().add(Kept::Input, RELAYED);
    let (heard, mut hears) = watch::channel(Instant::now());
    let said = Arc::clone(&held.said);
    let (mut client, idle) = (Watched { inner: client, heard, said }, held.listening.settings.idle);
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
            () = carry(&mut client, &mut own) => {}
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
    /// A notice has come.
    Mail,
    /// The service has said something of it.
    Told,
    /// The client's greeting of TLS has come to its end.
    Greeted(Asker, io::Result<Relay>),
    /// The host moves nothing any more: the client has gone, or was silent for too long.
    Relayed,
    /// A deadline may have passed.
    Due,
}

/// By when what has to have come.
struct Deadlines {
    login: Instant,
    logged_in: bool,
}

impl Deadlines {
    fn new(held: &Held) -> Self {
        Self { login: Instant::now() + held.listening.settings.login, logged_in: false }
    }

    /// The next one that counts.
    fn next(&mut self, held: &Held, arriving: Duration) -> Option<Instant> {
        let now = held.login().is_some();
        if self.logged_in && !now {
            // Whoever was sent away has as long as one who comes.
            self.login = Instant::now() + held.listening.settings.login;
        }
        self.logged_in = now;
        let login = (!now && !held.listening.is_public()).then_some(self.login);
        let taken = held.untaken().map(|since| since + arriving);
        login.into_iter().chain(taken).min()
    }
}

/// Attends to a stream to its end.
async fn attend(doors: &Arc<Doors>, held: &Arc<Held>) {
    held.mailbox.meter().add(Kept::Input, COST);
    let (settings, mut relay) = (&held.listening.settings, None);
    if settings.tls || settings.idle.is_some() {
        let begun = match settings.tls {
            true => secure(doors, held).await,
            false => open(&held.client(), held.is_tcp()).and_then(|client| self::relay(held, client, None)),
        };
        match begun {
            Ok(begun) => relay = Some(begun),
            Err(error) => return tracing::debug!(peer = held.peer, %error, "a connection has not come about"),
        }
    }
    doors.offer(held);
    let (mut deadlines, mut greeting) = (Deadlines::new(held), None::<Greeting<'_>>);
    loop {
        let due = deadlines.next(held, doors.limits.read().arriving.1);
        if due.is_some_and(|due| due <= Instant::now()) {
            tracing::debug!(peer = held.peer, door = held.door(), "a connection is let go: its time is up");
            held.cut();
            break;
        }
        let step = tokio::select! {
            () = held.mailbox.come() => Step::Mail,
            () = held.told.notified() => Step::Told,
            (asker, secured) = or_never(&mut greeting) => Step::Greeted(asker, secured),
            () = or_never(&mut relay) => Step::Relayed,
            () = until(due) => Step::Due,
        };
        // Cut from outside: its notice is there, and whoever gave the command waits until the service has heard it.
        let cut = held.is_cut() && doors.notices(held);
        match step {
            _ if cut => {
                doors.after_the_cut(held).await;
                break;
            }
            Step::Mail => {
                if doors.notices(held) {
                    doors.after_the_cut(held).await;
                    break;
                }
            }
            Step::Told => {
                if held.is_closing() {
                    close(doors, held, relay.take()).await;
                    break;
                }
                if let Some(asker) = held.wants_tls() {
                    greeting = Some(Box::pin(async move { (asker, secure(doors, held).await) }));
                }
            }
            Step::Greeted(asker, secured) => {
                greeting = None;
                relay = doors.greeted(held, &asker, secured).or(relay);
            }
            Step::Relayed => {
                // The service sees its end, and says so.
                relay = None;
                held.hang_up();
                held.let_go();
            }
            Step::Due => {}
        }
    }
    drop((relay, greeting));
    if held.is_cut() && doors.notices(held) {
        doors.after_the_cut(held).await;
    }
    // The service says that it has let go of its end. What it has not looked at yet it knows by the number of the host's
    // descriptor, which nothing else may have until then.
    let began = Instant::now();
    while !held.is_closing() && held.is_taken() && began.elapsed() < LAST || !held.ends() {
        doors.while_hearing(held, tokio::time::timeout(LAST, held.told.notified())).await;
    }
}

/// Whether this ends a stream: what its login came by is taken away, or it is to close.
fn is_over(held: &Held, notice: &Notice) -> bool {
    match notice {
        Notice::Cut => true,
        // Nobody is there without a login.
        Notice::Rules => false,
        Notice::Changed(name, identity) => {
            let login = held.login().filter(|login| login.identity == *name);
            let keeps = |login: &LoggedIn| {
                identity.as_deref().is_some_and(|identity| still(identity, login, &held.listening.settings.service))
            };
            login.is_some_and(|login| !keeps(&login))
        }
    }
}

/// Its bytes end at once. Everything else that follows is for whoever attends it.
impl Herald for Held {
    fn hears(&self, notice: &Notice) {
        if is_over(self, notice) {
            self.cut();
        }
    }
}

async fn until(due: Option<Instant>) {
    match due {
        Some(due) => tokio::time::sleep_until(due).await,
        None => std::future::pending().await,
    }
}

async fn or_never<T>(pending: &mut Option<Pin<Box<dyn Future<Output = T> + Send + '_>>>) -> T {
    match pending {
        Some(pending) => pending.await,
        None => std::future::pending().await,
    }
}

/// The service is done: its last words reach the client.
async fn close(doors: &Doors, held: &Arc<Held>, relay: Option<Relay>) {
    held.let_go();
    if let Some(relay) = relay {
        return doors.while_hearing(held, at_its_rate(held, doors.rates(held), relay)).await;
    }
    let client = held.client();
    if rustix::net::shutdown(&*client, Shutdown::Write).is_err() {
        return;
    }
    // What the client still sends would make the system throw away what it has not read.
    let Ok(mut socket) = open(&client, held.is_tcp()) else { return };
    let drained = async {
        let mut bytes = zeroize::Zeroizing::new([0; 4096]);
        while matches!(socket.read(&mut bytes[..]).await, Ok(count) if count > 0) {}
    };
    doors.while_hearing(held, tokio::time::timeout(LINGER, drained)).await;
}

/// Waits until a relay has ended, for as long as its client reads what is left fast enough.
async fn at_its_rate(held: &Held, rates: Rates, mut relay: Relay) {
    let mut leaving = rates.leaving();
    let mut said = held.said.load(Ordering::Relaxed);
    leaving.begin(Instant::now());
    while let Some(due) = leaving.due().filter(|due| *due > Instant::now()) {
        if tokio::time::timeout_at(due, &mut relay).await.is_ok() {
            return;
        }
        let now = held.said.load(Ordering::Relaxed);
        leaving.moved(now - std::mem::replace(&mut said, now), Instant::now());
    }
}

/// Has TLS spoken with the client, with the operator's certificate.
async fn secure(doors: &Doors, held: &Held) -> io::Result<Relay> {
    let certificates = doors.around.certificates.as_ref().ok_or_else(|| io::Error::other("no certificate"))?;
    let socket = open(&held.client(), held.is_tcp())?;
    let settings = &held.listening.settings;
    let tls = held.listening.tls.get_or_init(|| certificates.config_for(&settings.marks.alpn, settings.certificates));
    let acceptor = TlsAcceptor::from(Arc::clone(tls));
    let tls = tokio::time::timeout(GREETING, acceptor.accept(socket)).await??;
    let greeting = tls.get_ref().1;
    let asked = greeting.server_name().unwrap_or_default().to_owned();
    let shown = greeting.peer_certificates().and_then(|shown| shown.first());
    let certificate = shown.and_then(|shown| {
        let read = ClientCertificate::read(shown);
        read.inspect_err(|error| tracing::debug!(peer = held.peer, %error, "a client's certificate")).ok()
    });
    let protocol = greeting.alpn_protocol().unwrap_or_default().to_vec();
    relay(held, tls, Some(Greeted { asked, certificate: certificate.map(Arc::new), protocol }))
}

impl Doors {
    /// Tells the service whether the TLS greeting has succeeded. Answers with the relay, if it has.
    fn greeted(&self, held: &Held, asker: &Asker, secured: io::Result<Relay>) -> Option<Relay> {
        let request = asker.request;
        match secured {
            Ok(relay) => {
                held.entry.speaks_tls();
                let (end, greeted) = (held.lend(), held.greeted());
                let (stream, descriptor) = (u64::from(held.number), end.as_deref().map_or(u64::MAX, number));
                let (asked, certificate, protocol) = (greeted.asked.as_str(), &*greeted.shown(), &*greeted.protocol);
                let frame = ToLibrary::Lent { request, stream, descriptor, asked, certificate, protocol };
                let told = self.answer(asker, &frame);
                if let Some(end) = end.filter(|_| !told) {
                    held.takes_back(&end);
                }
                Some(relay)
            }
            Err(error) => {
                let message = format!("TLS has not come about: {error}");
                self.answer(asker, &ToLibrary::NotLoggedIn { request, message: &message, wait: 0 });
                None
            }
        }
    }

    /// How fast a stream's client has to be.
    fn rates(&self, held: &Held) -> Rates {
        held.listening.settings.rates(&self.limits.read())
    }

    /// Waits until `done` is ready, or until a notice ends the stream.
    async fn while_hearing<T>(&self, held: &Arc<Held>, done: impl Future<Output = T>) {
        let mut done = std::pin::pin!(done);
        loop {
            tokio::select! {
                _ = &mut done => return,
                () = held.mailbox.come() => {
                    if self.notices(held) {
                        return self.after_the_cut(held).await;
                    }
                }
            }
        }
    }

    /// A connection has come.
    pub(super) fn come(self: &Arc<Self>, listening: &Arc<Listening>, client: OwnedFd, source: Option<SocketAddr>) {
        let (around, limits) = (&self.around, *self.limits.read());
        let address = source.unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let known = source.is_none() || around.gate.is_known(address.ip());
        let proxy = listening.settings.is_proxy(source.map(|source| source.ip()));
        let Some(place) = listening.admit(address.ip(), known, proxy, limits.arriving.0) else {
            return tracing::debug!(%address, listener = listening.settings.name, "too many connections");
        };
        let account = around.memory.account(AccountKey::Source(network(address.ip())));
        let meter = Arc::new(Meter::new(account, usize::MAX));
        if !meter.admits(COST) {
            listening.leave(place);
            return tracing::debug!(%address, "no memory for one more connection");
        }
        let (number, mailbox) = around.router.connect(meter, limits.backlog);
        let peer = source.map_or_else(|| format!("unix:{}", listening.settings.name), |source| source.to_string());
        // Nobody else can listen.
        let tls = listening.settings.tls || listening.settings.encrypted;
        let entry = SessionEntry::new(&around.sessions, number, &peer, tls, store::now(), Arc::clone(&mailbox));
        let (of, tcp) = (Arc::clone(listening), source.is_some());
        let held = Held::new(number, of, address, peer, place, mailbox, entry, (client, tcp));
        let herald: Weak<dyn Herald> = Arc::<Held>::downgrade(&held);
        held.entry.heralded_to(herald);
        self.streams.lock().insert(number, Arc::clone(&held));
        let attended = Attended { doors: Arc::clone(self), held };
        self.spawn(async move { attend(&attended.doors, &attended.held).await });
    }

    /// Applies the stream's notices. True: one of them has cut it.
    fn notices(&self, held: &Arc<Held>) -> bool {
        let mut over = false;
        // Frames that go to every connection (a service has stopped) mean nothing to a stream.
        let mut mail = Vec::new();
        held.mailbox.take(&mut mail);
        held.mailbox.served(mail.len());
        for (notice, acknowledgement) in held.entry.notices() {
            if matches!(notice, Notice::Changed(..)) {
                held.changed();
            }
            if is_over(held, &notice) {
                tracing::debug!(peer = held.peer, "the login's access was revoked, or the operator ends it");
                held.cut();
                held.waits(acknowledgement);
                over = true;
            }
        }
        over
    }

    /// Tells the service about a stream that was cut, after all the others are cut: to tell it about thousands takes a while.
    async fn after_the_cut(&self, held: &Arc<Held>) {
        tokio::task::yield_now().await;
        match (held.login(), held.slot()) {
            (Some(login), Some(slot)) => {
                self.close_ways(login.number);
                self.login_ended(&held.listening.settings.service, slot, login.number);
                // Whoever gave the command waits until the service has heard it: not for long, if that does not come round.
                let held = Arc::clone(held);
                self.spawn(async move {
                    tokio::time::sleep(HEARS).await;
                    held.heard();
                });
            }
            _ => held.heard(),
        }
    }
}
