//! A listener: its socket, and the streams that wait for its service.

use std::net::{IpAddr, SocketAddr};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use rustls::ServerConfig;
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, UnixListener};
use tokio::sync::watch;

use crate::config::{Address, ListenerSettings};
use crate::listener::sources::{Most, Place, Sources};
use crate::login_gate::network;
use crate::multiservice::SlotNo;
use crate::successor::{Inherited, Open, Wanted};

/// Permissions of a Unix socket without a configured mode. Its folder controls access.
const ANYBODY: u32 = 0o666;

/// A listener, for the operator to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ListenerStatus {
    /// The service's name.
    pub service: String,
    /// The listener's name.
    pub name: String,
    /// The address. `None`: credhost.toml has none for it.
    pub address: Option<String>,
    /// "tls", "starttls", or nothing.
    pub tls: String,
    /// What distinguishes its connections from those of other listeners at the same address, as written in
    /// credhost.toml.
    #[serde(default)]
    pub marks: String,
    /// The number of connections.
    pub connections: usize,
    /// The number of them that wait for the service.
    pub held: usize,
    /// Whether a service takes them.
    pub taken: bool,
}

/// A listener. It stays open as long as the host runs.
pub(super) struct Listening {
    pub(super) settings: ListenerSettings,
    socket: Arc<Bound>,
    /// The TLS configuration, created at first use.
    pub(super) tls: OnceLock<Arc<ServerConfig>>,
    sources: Mutex<Sources>,
    /// What its service keeps for its clients, in bytes, as it reports.
    buffered: AtomicUsize,
    /// The limit of `buffered`.
    most: AtomicUsize,
    waiting: Mutex<Waiting>,
    /// Its index among the host's own listeners. `None`: it belongs to a service.
    pub(super) of_host: Option<usize>,
}

pub(super) enum Bound {
    Tcp(std::net::TcpListener),
    Unix(std::os::unix::net::UnixListener),
}

/// The same, for tokio.
pub(super) enum Socket {
    Tcp(TcpListener),
    Unix(UnixListener),
}

#[derive(Default)]
struct Waiting {
    /// The slot that takes streams.
    taken: Option<SlotNo>,
    /// Whether clients need not log in.
    public: bool,
    /// The generation that set this.
    by: u32,
    /// What a generation has set that does not serve yet.
    next: Option<(u32, bool)>,
    held: Vec<u32>,
}

impl Listening {
    /// Opens it, or takes it over from the previous host.
    pub(super) fn open(settings: ListenerSettings, inherited: &Inherited) -> Result<Arc<Self>, String> {
        let at = |why: &dyn std::fmt::Display| {
            format!(
                "[service.{}.listen] {}: cannot listen on {}: {why}",
                settings.service, settings.name, settings.shown
            )
        };
        let socket = match (inherited.take(&wanted(&settings, &name(&settings))), &settings.address) {
            (Some(Open::Tcp(listener)), _) => Bound::Tcp(listener),
            (Some(Open::Unix(listener)), address) => {
                // The previous host may have set another mode. Without a configured mode, systemd may have set one.
                if let (Address::Unix(path), Some(mode)) = (address, settings.mode) {
                    permit(path, mode).map_err(|error| at(&error))?;
                }
                Bound::Unix(listener)
            }
            (None, Address::Tcp(found)) => {
                let listener = std::net::TcpListener::bind(found.as_slice()).map_err(|error| at(&error))?;
                // The longest queue that the system allows: the library's default is short.
                rustix::net::listen(&listener, i32::MAX).map_err(|error| at(&error))?;
                Bound::Tcp(listener)
            }
            (None, Address::Unix(path)) => Bound::Unix(bind_unix(path, settings.mode).map_err(|error| at(&error))?),
            (None, Address::Systemd(_)) => return Err(at(&not_given(&inherited.of_systemd()))),
        };
        if matches!(socket, Bound::Unix(_)) && !settings.proxy_protocol.is_empty() {
            return Err(at(&"proxy_protocol is for TCP connections"));
        }
        Ok(Self::on(Arc::new(socket), settings, None))
    }

    /// A listener of the host's own, whose socket others share.
    pub(super) fn of_host(at: usize, settings: ListenerSettings, socket: std::net::TcpListener) -> Arc<Self> {
        Self::on(Arc::new(Bound::Tcp(socket)), settings, Some(at))
    }

    /// Another listener on the socket of an existing one.
    pub(super) fn beside(other: &Self, settings: ListenerSettings) -> Arc<Self> {
        Self::on(Arc::clone(&other.socket), settings, None)
    }

    fn on(socket: Arc<Bound>, settings: ListenerSettings, of_host: Option<usize>) -> Arc<Self> {
        let (sources, waiting, tls) = (Mutex::default(), Mutex::default(), OnceLock::new());
        let (buffered, most) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
        Arc::new(Self { settings, socket, tls, sources, buffered, most, waiting, of_host })
    }

    /// The socket and its name, for the next host.
    pub(super) fn hand_on(&self) -> std::io::Result<(String, OwnedFd)> {
        let socket = match &*self.socket {
            Bound::Tcp(listener) => listener.try_clone()?.into(),
            Bound::Unix(listener) => listener.try_clone()?.into(),
        };
        Ok((name(&self.settings), socket))
    }

    /// The socket, for a task that accepts connections.
    pub(super) fn socket(&self) -> std::io::Result<Bound> {
        Ok(match &*self.socket {
            Bound::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                Bound::Tcp(listener.try_clone()?)
            }
            Bound::Unix(listener) => {
                listener.set_nonblocking(true)?;
                Bound::Unix(listener.try_clone()?)
            }
        })
    }

    /// The address that it actually listens on: with port 0, the system chooses one.
    pub(super) fn address(&self) -> String {
        match &*self.socket {
            Bound::Tcp(listener) => listener.local_addr().map_or_else(|_| String::new(), |address| address.to_string()),
            Bound::Unix(_) => self.settings.shown.clone(),
        }
    }

    pub(super) fn is(&self, service: &str, name: &str) -> bool {
        self.settings.service == service && self.settings.name == name
    }

    /// The slot that takes its streams.
    pub(super) fn taken(&self) -> Option<SlotNo> {
        self.waiting.lock().taken
    }

    pub(super) fn is_public(&self) -> bool {
        self.waiting.lock().public
    }

    /// This generation takes its streams: now, or, if `embargoed`, once it serves.
    pub(super) fn take(&self, slot: SlotNo, generation: u32, public: bool, embargoed: bool) {
        let mut waiting = self.waiting.lock();
        if embargoed {
            waiting.next = Some((generation, public));
        } else {
            (waiting.taken, waiting.public, waiting.by) = (Some(slot), public, generation);
        }
    }

    /// This generation serves. It takes the streams if it has said so; a previous generation no longer does.
    pub(super) fn serves(&self, slot: SlotNo, generation: u32) {
        let mut waiting = self.waiting.lock();
        match waiting.next.take_if(|(by, _)| *by == generation) {
            Some((by, public)) => (waiting.taken, waiting.public, waiting.by) = (Some(slot), public, by),
            None if waiting.taken == Some(slot) && waiting.by != generation => waiting.taken = None,
            None => {}
        }
    }

    /// This slot no longer takes its streams.
    pub(super) fn give_up(&self, slot: SlotNo) {
        self.waiting.lock().taken.take_if(|taken| *taken == slot);
    }

    /// Holds a stream, if it is not held yet. Returns the slot that takes streams by now.
    pub(super) fn hold(&self, number: u32) -> Option<SlotNo> {
        let mut waiting = self.waiting.lock();
        if !waiting.held.contains(&number) {
            waiting.held.push(number);
        }
        waiting.taken
    }

    pub(super) fn take_held(&self) -> Vec<u32> {
        std::mem::take(&mut self.waiting.lock().held)
    }

    /// The stream has gone while it waited.
    pub(super) fn forget(&self, number: u32, place: Place) {
        self.waiting.lock().held.retain(|waits| *waits != number);
        self.leave(place);
    }

    /// Frees a place.
    pub(super) fn leave(&self, place: Place) {
        self.sources.lock().leave(place);
    }

    pub(super) fn status(&self) -> ListenerStatus {
        let waiting = self.waiting.lock();
        let tls = match (self.settings.tls, self.settings.starttls) {
            (true, _) => "tls",
            (_, true) => "starttls",
            _ => "",
        };
        ListenerStatus {
            service: self.settings.service.clone(),
            name: self.settings.name.clone(),
            address: Some(self.address()),
            tls: tls.to_owned(),
            marks: self.settings.marks.shown(),
            connections: self.sources.lock().all(),
            held: waiting.held.len(),
            taken: waiting.taken.is_some(),
        }
    }

    /// Adds bytes that the service keeps for this listener's clients. `false`: the limit would be exceeded. `little`:
    /// no limit applies.
    pub(super) fn buffers(&self, more: usize, little: bool) -> bool {
        let most = if little { usize::MAX } else { self.most.load(Ordering::Relaxed) };
        let add = |before: usize| before.checked_add(more).filter(|all| *all <= most);
        self.buffered.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add).is_ok()
    }

    /// Subtracts bytes that the service no longer keeps.
    pub(super) fn has_less(&self, less: usize) {
        self.buffered.fetch_sub(less, Ordering::Relaxed);
    }

    /// Sets the limit of what may be kept for its clients, in bytes.
    pub(super) fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Takes a place for one more connection, if there is one. `arriving`: how many may wait for the service.
    pub(super) fn admit(&self, source: IpAddr, known: bool, proxy: bool, arriving: usize) -> Option<Place> {
        let waiting = self.waiting.lock();
        if waiting.taken.is_none() && waiting.held.len() >= arriving {
            return None;
        }
        drop(waiting);
        // All clients of a proxy come from its address: their logins are counted by the source that the proxy names.
        let source = (!proxy).then(|| network(source));
        let place = Place { source, stranger: !known && !proxy };
        let most = Most { connections: self.settings.connections, per_source: self.settings.per_source };
        self.sources.lock().enter(place, most).then_some(place)
    }
}

/// The name of a listener's socket, for the next host.
pub(crate) fn name(settings: &ListenerSettings) -> String {
    if let Address::Systemd(_) = &settings.address {
        return settings.shown.clone();
    }
    format!("[service.{}.listen] {} = {:?}", settings.service, settings.name, settings.shown)
}

/// The inherited socket that fits this listener, which has this name.
pub(crate) fn wanted<'a>(settings: &'a ListenerSettings, name: &'a str) -> Wanted<'a> {
    match &settings.address {
        Address::Tcp(found) => Wanted::Tcp(name, found),
        Address::Unix(path) => Wanted::Unix(path),
        Address::Systemd(name) => Wanted::OfSystemd(name),
    }
}

/// Explains why systemd's socket is missing.
fn not_given(names: &[String]) -> String {
    match names.join(":") {
        names if names.is_empty() => "systemd has passed no sockets (LISTEN_FDNAMES)".to_owned(),
        names => format!("systemd has passed no socket of this name, only {names:?}; see FileDescriptorName="),
    }
}

/// Binds a Unix socket in a file. Removes a socket file that a previous host has left, unless a program still listens
/// on it.
fn bind_unix(path: &Path, mode: Option<u32>) -> std::io::Result<std::os::unix::net::UnixListener> {
    let is_socket = || std::fs::symlink_metadata(path).is_ok_and(|found| found.file_type().is_socket());
    let left = || -> std::io::Result<bool> {
        // Does not block: a live socket may have a long queue.
        let probe = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.nonblocking(), None)?;
        let refused = probe.connect(&socket2::SockAddr::unix(path)?).err();
        Ok(refused.is_some_and(|error| error.kind() == std::io::ErrorKind::ConnectionRefused))
    };
    if is_socket() && left()? {
        std::fs::remove_file(path)?;
    }
    let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM.cloexec(), None)?;
    socket.bind(&socket2::SockAddr::unix(path)?)?;
    // Before anybody can connect. Without a configured mode, the folder controls access.
    permit(path, mode.unwrap_or(ANYBODY))?;
    socket.listen(i32::MAX)?;
    Ok(socket.into())
}

fn permit(path: &Path, mode: u32) -> std::io::Result<()> {
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
}

impl Bound {
    /// The same, registered with tokio. Must be called within a runtime.
    pub(super) fn listen(self) -> std::io::Result<Socket> {
        Ok(match self {
            Self::Tcp(listener) => Socket::Tcp(TcpListener::from_std(listener)?),
            Self::Unix(listener) => Socket::Unix(UnixListener::from_std(listener)?),
        })
    }
}

impl Socket {
    /// Accepts the next connection. Returns its descriptor and its source.
    async fn accept(&self) -> std::io::Result<(OwnedFd, Option<SocketAddr>)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, source) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((stream.into_std()?.into(), Some(source)))
            }
            Self::Unix(listener) => Ok((listener.accept().await?.0.into_std()?.into(), None)),
        }
    }
}

/// Accepts connections until `closed` is set. Each is passed on with its source, if that is an address.
pub(super) async fn accept(
    socket: Socket,
    mut closed: watch::Receiver<bool>,
    come: impl Fn(OwnedFd, Option<SocketAddr>),
) {
    loop {
        let accepted = tokio::select! {
            accepted = socket.accept() => accepted,
            _ = closed.wait_for(|closed| *closed) => return,
        };
        match accepted {
            Ok((client, source)) => come(client, source),
            Err(error) => {
                // Most likely out of descriptors: existing connections continue; try again in a while.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    #[test]
    fn a_generations_settings_count_once_it_serves() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", folder.path().join("socket").display());
        let listening =
            Listening::open(ListenerSettings::at("chat", "irc", &address).unwrap(), &Inherited::default()).unwrap();
        let slot = SlotNo(1);
        listening.take(slot, 1, false, false);
        assert_eq!((listening.taken(), listening.is_public()), (Some(slot), false));
        // Generation 2 never serves, generation 3 does, generation 4 has no such door.
        listening.take(slot, 2, true, true);
        assert!(!listening.is_public());
        listening.take(slot, 3, true, true);
        listening.serves(slot, 3);
        assert_eq!((listening.taken(), listening.is_public()), (Some(slot), true));
        listening.serves(slot, 4);
        assert_eq!(listening.taken(), None);
        assert_eq!((listening.hold(7), listening.hold(7)), (None, None));
        assert_eq!(listening.take_held(), [7], "once");
    }

    #[test]
    fn each_client_may_buffer_a_little_even_if_the_listener_is_full() {
        let folder = tempfile::tempdir().unwrap();
        let address = format!("unix:{}", folder.path().join("socket").display());
        let listening =
            Listening::open(ListenerSettings::at("chat", "irc", &address).unwrap(), &Inherited::default()).unwrap();
        assert!(listening.buffers(usize::MAX >> 1, false), "nothing is said of how much there may be");
        listening.has_less(usize::MAX >> 1);
        listening.set_most(100);
        assert!(listening.buffers(100, false) && !listening.buffers(1, false));
        assert!(listening.buffers(32 << 10, true), "a little is always there");
        assert!(!listening.buffers(1, false), "and it counts");
        listening.has_less(32 << 10);
        assert!(!listening.buffers(1, false));
        listening.has_less(1);
        assert!(listening.buffers(1, false));
        // Streams that wait for the service have their own limit until the service takes them.
        let source = IpAddr::from([127, 0, 0, 1]);
        assert_eq!([1, 2].map(|number| listening.hold(number)), [None, None]);
        assert!(listening.admit(source, true, false, 2).is_none() && listening.admit(source, true, false, 3).is_some());
        listening.take(SlotNo(1), 1, false, false);
        assert!(listening.admit(source, true, false, 2).is_some());
    }

    #[test]
    fn only_a_socket_that_a_host_left_behind_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        drop(UnixListener::bind(&path).unwrap());
        let served = bind_unix(&path, Some(0o660)).unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o660);
        assert!(bind_unix(&path, None).is_err(), "it is served");
        UnixStream::connect(&path).unwrap();
        drop(served);
        std::fs::remove_file(&path).unwrap();
        let other = UnixDatagram::bind(&path).unwrap();
        assert!(bind_unix(&path, None).is_err(), "another program's");
        UnixDatagram::unbound().unwrap().send_to(b"still there", &path).unwrap();
        drop(other);
        std::fs::remove_file(&path).unwrap();
        std::fs::write(&path, "a file").unwrap();
        assert!(bind_unix(&path, None).is_err() && path.is_file());
    }
}
