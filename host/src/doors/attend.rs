//! What the host does for a stream while a service serves it: TLS, deadlines, and the end.

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

/// How many bytes are moved at once.
const CHUNK: usize = 8 << 10;
/// What is counted for a stream, in bytes: its descriptors, its entries, its task.
const COST: usize = 8 << 10;
/// What is counted in addition if the host moves its bytes.
const RELAYED: usize = 64 << 10;
/// How long a service may take to release a stream that has ended.
const LAST: Duration = Duration::from_secs(30);
/// How long a service may take to process the end of a login before the command that ended it returns.
const HEARS: Duration = Duration::from_secs(1);
/// How long a client may take to close once it has everything.
const LINGER: Duration = Duration::from_secs(2);

/// A client's stream of any kind.
trait Io: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Io for T {}

/// Moves the bytes of one stream through TLS, or past a watch for silence.
type Relay = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A TLS handshake that the service has asked for.
type Greeting<'h> = Pin<Box<dyn Future<Output = (Asker, io::Result<Relay>)> + Send + 'h>>;

/// Forgets the stream when attending to it ends, in any way.
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

/// A client's stream, with the time of its last byte and the number of bytes sent to it.
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

/// Copies bytes in both directions until both have ended. Buffers are erased.
async fn carry(client: &mut (impl AsyncRead + AsyncWrite + Unpin), own: &mut UnixStream) {
    async fn one_way(from: &mut (impl AsyncRead + Unpin), to: &mut (impl AsyncWrite + Unpin)) -> io::Result<()> {
        let mut bytes = zeroize::Zeroizing::new(vec![0; CHUNK]);
        loop {
            // An error ends this direction, for example TLS without a close_notify. What came before counts.
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
    // Errors are ignored: a client that can no longer be written to may have sent bytes that must be delivered.
    let _ = tokio::join!(one_way(&mut hears, &mut writes), one_way(&mut reads, &mut says));
}

/// Lets the host move a stream's bytes. Ends when the client has sent nothing for the idle time.
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

/// An event of a stream.
enum Step {
    /// A notice has come.
    Mail,
    /// The service has said something about the stream.
    Told,
    /// The client's TLS handshake has ended.
    Greeted(Asker, io::Result<Relay>),
    /// The relay has ended: the client has gone, or was silent for too long.
    Relayed,
    /// A deadline may have passed.
    Due,
}

/// The deadlines of a stream.
struct Deadlines {
    login: Instant,
    logged_in: bool,
}

impl Deadlines {
    fn new(held: &Held) -> Self {
        Self { login: Instant::now() + held.listening.settings.login, logged_in: false }
    }

    /// The next deadline that applies.
    fn next(&mut self, held: &Held, arriving: Duration) -> Option<Instant> {
        let now = held.login().is_some();
        if self.logged_in && !now {
            // A client whose login has ended has as long as a new one.
            self.login = Instant::now() + held.listening.settings.login;
        }
        self.logged_in = now;
        let login = (!now && !held.listening.is_public()).then_some(self.login);
        let taken = held.untaken().map(|since| since + arriving);
        login.into_iter().chain(taken).min()
    }
}

/// Attends to a stream until it has ended.
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
            Err(error) => return tracing::debug!(peer = held.peer, %error, "a connection failed before it was served"),
        }
    }
    doors.offer(held);
    let (mut deadlines, mut greeting) = (Deadlines::new(held), None::<Greeting<'_>>);
    // Who waits for the greeting.
    let mut greets = None;
    loop {
        let due = deadlines.next(held, doors.limits.read().arriving.1);
        if due.is_some_and(|due| due <= Instant::now()) {
            tracing::debug!(peer = held.peer, door = held.door(), "a connection is closed: a deadline has passed");
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
        // The stream was cut elsewhere: its notice is there, and the command waits until the service has processed it.
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
                    doors.greets_no_more(greets.replace(asker.clone()));
                    greeting = Some(Box::pin(async move { (asker, secure(doors, held).await) }));
                }
            }
            Step::Greeted(asker, secured) => {
                (greeting, greets) = (None, None);
                relay = doors.greeted(held, &asker, secured).or(relay);
            }
            Step::Relayed => {
                // The service reads the end of the stream and reports it.
                relay = None;
                held.hang_up();
                held.let_go();
            }
            Step::Due => {}
        }
    }
    drop((relay, greeting));
    // Nobody waits for what does not come any more.
    doors.greets_no_more(greets);
    if held.is_cut() && doors.notices(held) {
        doors.after_the_cut(held).await;
    }
    // Waits until the service reports that it has released its end. A frame that the service has not read yet names the
    // host's descriptor by its number, which must not be reused until then.
    let began = Instant::now();
    while !held.is_closing() && held.is_taken() && began.elapsed() < LAST || !held.ends() {
        doors.greets_no_more(held.wants_tls());
        doors.while_hearing(held, tokio::time::timeout(LAST, held.told.notified())).await;
    }
    doors.greets_no_more(held.wants_tls());
}

/// Whether a notice ends a stream: its login's access was revoked, or it is to be cut.
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

/// Cuts the stream at once. Its task does everything else.
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

/// The service has closed the stream: delivers its last bytes to the client.
async fn close(doors: &Doors, held: &Arc<Held>, relay: Option<Relay>) {
    held.let_go();
    if let Some(relay) = relay {
        return doors.while_hearing(held, at_its_rate(held, doors.rates(held), relay)).await;
    }
    let client = held.client();
    if rustix::net::shutdown(&*client, Shutdown::Write).is_err() {
        return;
    }
    // Reads and discards input: with unread input, the system would discard output that the client has not read yet.
    let Ok(mut socket) = open(&client, held.is_tcp()) else { return };
    let drained = async {
        let mut bytes = zeroize::Zeroizing::new([0; 4096]);
        while matches!(socket.read(&mut bytes[..]).await, Ok(count) if count > 0) {}
    };
    doors.while_hearing(held, tokio::time::timeout(LINGER, drained)).await;
}

/// Waits until a relay has ended, as long as its client reads the rest fast enough.
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

/// Performs the TLS handshake with the client, using the operator's certificate.
async fn secure(doors: &Doors, held: &Held) -> io::Result<Relay> {
    let certificates = doors.around.certificates.as_ref().ok_or_else(|| io::Error::other("no certificate"))?;
    let socket = open(&held.client(), held.is_tcp())?;
    let settings = &held.listening.settings;
    let tls = held.listening.tls.get_or_init(|| certificates.config_for(&settings.marks.alpn, settings.certificates));
    let acceptor = TlsAcceptor::from(Arc::clone(tls));
    let within = doors.limits.read().greeting.min(settings.login);
    let tls = tokio::time::timeout(within, acceptor.accept(socket)).await??;
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
    /// Tells the service whether the TLS handshake has succeeded. Returns the relay, if it has.
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
                let message = format!("the TLS handshake failed: {error}");
                self.answer(asker, &ToLibrary::NotLoggedIn { request, message: &message, wait: 0 });
                None
            }
        }
    }

    /// A stream has ended for which a service waits to speak TLS.
    fn greets_no_more(&self, asker: Option<Asker>) {
        if let Some(asker) = asker {
            self.not_logged_in(&asker, "the TLS handshake failed: the connection has ended", 0);
        }
    }

    /// The rates that a stream's client must keep.
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

    /// Takes a new connection.
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
        let (number, mailbox) = around.router.connect(meter, limits.most_unread());
        let peer = source.map_or_else(|| format!("unix:{}", listening.settings.name), |source| source.to_string());
        // Whether nobody can eavesdrop.
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

    /// Applies the stream's notices. `true`: one of them has cut it.
    fn notices(&self, held: &Arc<Held>) -> bool {
        let mut over = false;
        // Frames for every connection (a service has stopped) do not concern a stream.
        let mut mail = Vec::new();
        held.mailbox.take(&mut mail);
        held.mailbox.served(mail.len());
        for (notice, acknowledgement) in held.entry.notices() {
            if matches!(notice, Notice::Changed(..)) {
                held.changed();
            }
            if is_over(held, &notice) {
                tracing::debug!(
                    peer = held.peer,
                    "a connection is closed: its login's access was revoked, or the operator ended it"
                );
                held.cut();
                held.waits(acknowledgement);
                over = true;
            }
        }
        over
    }

    /// Notifies the service of a stream that was cut. Yields first, so that all other streams are cut before:
    /// notifications about thousands take a while.
    async fn after_the_cut(&self, held: &Arc<Held>) {
        tokio::task::yield_now().await;
        match (held.login(), held.slot()) {
            (Some(login), Some(slot)) => {
                self.close_ways(login.number);
                self.login_ended(&held.listening.settings.service, slot, login.number);
                // The command waits until the service has processed it, but not for long.
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
