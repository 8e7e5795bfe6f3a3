//! A listening socket, the threads that serve its connections, and the path from a socket to a session and back.
//!
//! [`Endpoint`] is the root of the object hierarchy that clients see, like `twisted.spread.pb.AuthRoot`: through it
//! they log in, in either era's words, and attach to perspectives. `connection` moves bytes and decides nothing: the
//! state and decisions of a connection are in a [`Session`](crate::session). A `stream` is a socket with or without
//! `tls`; `proxy` reads the source of a connection that a proxy passes on.

mod connection;
mod end;
mod entrance;
mod lobby;
mod open;
mod proxy;
pub(crate) mod sources;
mod stream;
mod timers;
pub mod tls;
mod turns;
mod within;

pub(crate) use entrance::Entrance;
pub(crate) use proxy::{Header, behind as behind_proxy, find_header, header as proxy_header};
use std::io;
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::thread::JoinHandle;
pub(crate) use stream::keep_alive;
pub(crate) use within::{Ways, Within};

use ipnet::IpNet;
use parking_lot::{Mutex, RwLock};
use rustls::ServerConfig;
use tokio::sync::{Mutex as AsyncMutex, mpsc, watch};
use tokio::task::LocalSet;

use self::lobby::Insiders;
use self::sources::{Most, Place, Sources};
use self::tls::Certificates;
use crate::cred::login::Login;
use crate::cred::{CurrentRules, ListenerRules, StoreSecret};
use crate::health;
use crate::login_gate::{LoginGate, LoginRules, network};
use crate::multiservice::MultiService;
use crate::multiservice::context::HostContext;
use crate::multiservice::router::{Mailbox, Router};
use crate::session::Limits;
use crate::sessions::{SessionEntry, Sessions};
use crate::store;

/// The default for the memory that password checks may use, in KiB.
const BUDGET: u32 = 128 << 10;

/// The root object that clients log in through.
#[derive(Clone)]
pub struct Endpoint {
    shared: Arc<EndpointState>,
}

struct EndpointState {
    login: Login,
    services: Arc<MultiService>,
    context: HostContext,
    limits: RwLock<Arc<Limits>>,
    gate: Arc<LoginGate>,
    sessions: Arc<Sessions>,
    sources: Mutex<Sources>,
    /// Addresses of proxies, which name the source of each connection.
    proxies: RwLock<Vec<IpNet>>,
    /// The access that the listener gives without keys.
    rules: Arc<CurrentRules>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("services", &self.shared.services.name()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Creates a root through which the identities of `login` reach these services.
    #[must_use]
    pub fn new(login: Login, services: Arc<MultiService>, context: HostContext, limits: Limits) -> Self {
        let gate = Self::gate_before(&login, &context);
        Self::with_gate(login, services, context, limits, (gate, Sessions::new()))
    }

    /// Creates a gate with the default rules, as [`Endpoint::new`] does.
    #[must_use]
    pub fn gate_before(login: &Login, context: &HostContext) -> Arc<LoginGate> {
        let mut secret = [0; 32];
        if let Err(error) = getrandom::fill(&mut secret) {
            // The secret only tells names apart; it protects nothing secret.
            tracing::warn!(%error, "no randomness for the throttle");
        }
        let store = Arc::clone(&context.store);
        LoginGate::new(store, StoreSecret::new(secret), login.cost(), BUDGET, LoginRules::default())
    }

    /// As [`Endpoint::new`], with a gate and sessions that are shared with other listeners.
    #[must_use]
    pub fn with_gate(
        login: Login,
        services: Arc<MultiService>,
        context: HostContext,
        limits: Limits,
        (gate, sessions): (Arc<LoginGate>, Arc<Sessions>),
    ) -> Self {
        let (sources, limits) = (Mutex::default(), RwLock::new(Arc::new(limits)));
        let (proxies, rules) = (RwLock::default(), Arc::default());
        let shared = EndpointState { login, services, context, limits, gate, sessions, sources, proxies, rules };
        let endpoint = Self { shared: Arc::new(shared) };
        endpoint.take_up_limits();
        endpoint
    }

    /// Applies the limits that belong to the whole host and are the same for all its listeners.
    fn take_up_limits(&self) {
        let limits = self.limits();
        self.shared.gate.set_checks(limits.checks, limits.checks_per_source);
        self.shared.gate.set_known_sources(limits.known_sources);
        self.shared.context.limits.set(limits.slots);
    }

    /// Replaces the limits: those of new connections, and the number of connections.
    pub fn set_limits(&self, limits: Limits) {
        *self.shared.limits.write() = Arc::new(limits);
        self.take_up_limits();
    }

    /// The limits of its clients.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.shared.limits()
    }

    /// Replaces the rules for access without keys. Existing access by the old rules ends when connections are notified
    /// ([`Sessions::rules_changed`]).
    pub fn set_rules(&self, rules: ListenerRules) {
        self.shared.rules.set(rules);
    }

    /// The rules for access without keys.
    #[must_use]
    pub fn rules(&self) -> Arc<ListenerRules> {
        self.shared.rules.get()
    }

    /// Sets the addresses of proxies. Connections from these begin with a header that names their source.
    pub fn set_proxies(&self, proxies: Vec<IpNet>) {
        *self.shared.proxies.write() = proxies;
    }

    /// The number of connections.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.sources.lock().all()
    }

    /// The gate that every login passes.
    #[must_use]
    pub fn gate(&self) -> &Arc<LoginGate> {
        &self.shared.gate
    }

    /// Who is logged in.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.shared.sessions
    }

    /// Listens on this address. Serves on as many threads as there are processors.
    ///
    /// # Errors
    /// Returns an error if the host cannot listen on the address, or a thread cannot be started.
    pub fn listen(&self, address: impl std::net::ToSocketAddrs) -> io::Result<Listener> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.listen_on(TcpListener::bind(address)?, threads, None)
    }

    /// Serves on a listening socket. With certificates, all connections use TLS.
    ///
    /// # Errors
    /// Returns an error if a thread cannot be started.
    pub fn listen_on(
        &self,
        listener: TcpListener,
        threads: usize,
        tls: Option<Arc<Certificates>>,
    ) -> io::Result<Listener> {
        let tls = tls.map(|certificates| certificates.config_for(&[], false));
        Ok(self.listen_as(listener, threads, tls, Accepts { itself: true, hands_on: true })?.0)
    }

    /// As [`Endpoint::listen_on`]. Also returns an entrance for connections that others have accepted.
    pub(crate) fn listen_as(
        &self,
        listener: TcpListener,
        threads: usize,
        tls: Option<Arc<ServerConfig>>,
        accepts: Accepts,
    ) -> io::Result<(Listener, Entrance)> {
        let address = listener.local_addr()?;
        listener.set_nonblocking(true)?;
        let socket = Mutex::new(accepts.hands_on.then(|| listener.try_clone()).transpose()?);
        // Everything that can fail is done before the threads start: a listener that is reported as open is open.
        let accepting = runtime()?;
        let listener = {
            let _within = accepting.enter();
            tokio::net::TcpListener::from_std(listener)?
        };
        let (closing, closed) = watch::channel(false);
        let mut workers = Vec::new();
        let mut spawn = |name: String, inside: Option<Insiders<Coming>>| {
            let (sender, connections) = mpsc::unbounded_channel();
            let (closed, runtime) = (closed.clone(), runtime()?);
            workers.push(std::thread::Builder::new().name(name).spawn(move || {
                if inside.is_some() {
                    lobby::yields_to_those_inside();
                }
                // The queue survives a panic of its thread's loop: the next run continues with it.
                let connections = Arc::new(AsyncMutex::new(connections));
                let with = || (closed.clone(), inside.clone());
                forever("a thread for connections", || work(&runtime, Arc::clone(&connections), with()));
            })?);
            io::Result::Ok(sender)
        };
        let (inside, strangers) = (threads.max(1), threads.div_ceil(2).max(1));
        let inside = (0..inside).map(|index| spawn(format!("io-{index}"), None)).collect::<io::Result<Vec<_>>>()?;
        // Connections of clients that have logged in already do not pass through the lobby.
        let within: Vec<_> = inside.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let inside = Insiders::new(inside);
        let senders = (0..strangers).map(|index| spawn(format!("lobby-{index}"), Some(inside.clone())));
        let senders = senders.collect::<io::Result<Vec<_>>>()?;
        drop(inside);
        let shared = Arc::clone(&self.shared);
        let threads: Vec<_> = senders.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let entrance = Entrance::new(Arc::downgrade(&shared), threads, tls.clone());
        // Even if it does not accept connections itself, its threads continue until it is closed.
        let listener = accepts.itself.then_some(listener);
        workers.push(std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            forever("the thread that accepts connections", || {
                accepting.block_on(accept(&shared, listener.as_ref(), &senders, closed.clone(), tls.as_ref()));
            });
        })?);
        let router = Arc::clone(&self.shared.context.router);
        Ok((Listener { address, socket, closing, router, within, workers: Mutex::new(workers) }, entrance))
    }

    /// Entrances for clients that have logged in by services' own doors, served on the threads of this listener.
    pub(crate) fn ways(&self, listener: &Listener) -> Ways {
        Ways::new(Arc::downgrade(&self.shared), listener.within.clone())
    }
}

/// How connections reach a listener.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepts {
    /// Whether it accepts them itself. If not, others accept them and pass them to its [`Entrance`].
    pub(crate) itself: bool,
    /// Whether it owns the socket, and hands it on to the next host.
    pub(crate) hands_on: bool,
}

/// A listening socket. When it is closed, calls in flight have until the grace time to end.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    /// The socket to hand on, until it is handed on or closed.
    socket: Mutex<Option<TcpListener>>,
    closing: watch::Sender<bool>,
    router: Arc<Router>,
    /// The queues of the threads for clients that have logged in, as long as it listens.
    within: Vec<mpsc::WeakUnboundedSender<Coming>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Listener {
    /// The address that it listens on.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes the socket, for the next host. The socket keeps listening when this is closed; new connections wait.
    #[must_use]
    pub fn hand_on(&self) -> Option<TcpListener> {
        self.socket.lock().take()
    }

    /// Closes it: accepts nothing more, and lets calls in flight end, up to the grace time. Blocks until all
    /// connections are closed.
    pub fn close(&self) {
        drop(self.socket.lock().take());
        // There is no receiver if all threads have ended.
        let _ = self.closing.send(true);
        // Connections check the flag when they wake, so that none of them needs an entry in a list of waiters.
        self.router.wake_all();
        for worker in self.workers.lock().drain(..) {
            if worker.join().is_err() {
                tracing::error!("a fault in the host on a thread for connections; please report it");
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs `run` until it returns, again after each panic: a bug in the host must not end a thread that all connections
/// need.
fn forever(what: &str, run: impl Fn()) {
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(&run)).is_err() {
        health::count(&health::WORKERS_REPLACED);
        tracing::error!("{what} ended by a bug in the host and is replaced; please report it");
        // A run that fails at once must not fill the log.
        std::thread::sleep(std::time::Duration::from_millis(100));
    }
}

fn runtime() -> io::Result<tokio::runtime::Runtime> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()
}

fn work(
    runtime: &tokio::runtime::Runtime,
    connections: Arc<AsyncMutex<mpsc::UnboundedReceiver<Coming>>>,
    (closed, inside): (watch::Receiver<bool>, Option<Insiders<Coming>>),
) {
    let tasks = LocalSet::new();
    let serving = async move {
        let mut connections = connections.lock().await;
        let mut all = tokio::task::JoinSet::new();
        loop {
            tokio::select! {
                socket = connections.recv() => match socket {
                    Some(coming) => {
                        let arrived = Box::new(Arrived { coming, closed: closed.clone(), inside: inside.clone() });
                        all.spawn_local(open::serve(arrived));
                    }
                    None => break,
                },
                Some(ended) = all.join_next(), if !all.is_empty() => report(ended),
            }
        }
        while let Some(ended) = all.join_next().await {
            report(ended);
        }
    };
    // Not a spawned task: a panic ends this run of the thread, and the next one begins.
    runtime.block_on(tasks.run_until(serving));
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        health::count(&health::CONNECTIONS_PANICKED);
        tracing::error!(%error, "a fault in the host ended a connection; please report it");
    }
}

async fn accept(
    shared: &Arc<EndpointState>,
    listener: Option<&tokio::net::TcpListener>,
    workers: &[mpsc::UnboundedSender<Coming>],
    mut closed: watch::Receiver<bool>,
    tls: Option<&Arc<ServerConfig>>,
) {
    let mut next = 0;
    loop {
        let accepted = async {
            match listener {
                Some(listener) => listener.accept().await,
                None => std::future::pending().await,
            }
        };
        let accepted = tokio::select! {
            accepted = accepted => accepted,
            _ = closed.wait_for(|closed| *closed) => return,
        };
        let (stream, source) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                // Most likely out of descriptors: existing connections continue; try again in a while.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(admitted) = shared.admitted(source, tls.cloned()) else { continue };
        let Ok(stream) = stream.into_std() else { continue };
        next = (next + 1) % workers.len();
        // If nobody serves any more, the place is freed with it.
        let _ = workers[next].send(Coming::New(Socket::Tcp(stream), admitted));
    }
}

/// The socket of a new connection.
enum Socket {
    Tcp(TcpStream),
    /// From a service's connection within this process.
    Within(std::os::unix::net::UnixStream),
}

/// A connection to serve. Boxed, because a spawned task holds its arguments twice.
struct Arrived {
    coming: Coming,
    closed: watch::Receiver<bool>,
    /// The threads that it moves to after the login, if this is a lobby.
    inside: Option<Insiders<Coming>>,
}

/// A connection on its way to the thread that serves it.
enum Coming {
    /// A new connection.
    New(Socket, Admitted),
    /// A connection that somebody has logged in by.
    Inside(Box<open::Inside>),
}

/// An accepted connection. Its place is freed when this is dropped.
struct Admitted {
    shared: Arc<EndpointState>,
    source: SocketAddr,
    /// `None` for a connection from within: the stream that it belongs to has a place.
    place: Option<Place>,
    tls: Option<Arc<ServerConfig>>,
    /// Boxed, because few connections have it.
    within: Option<Box<Within>>,
}

impl Admitted {
    /// Whether a PROXY header must name its source first.
    fn is_proxied(&self) -> bool {
        self.place.is_some_and(|place| place.source.is_none())
    }

    /// Its entry in the list of sessions.
    fn listed(&self, number: u32, mailbox: &Arc<Mailbox>) -> Arc<SessionEntry> {
        let (sessions, mailbox) = (&self.shared.sessions, Arc::clone(mailbox));
        match &self.within {
            Some(within) => SessionEntry::within(sessions, number, Arc::clone(&within.entry), mailbox),
            None => SessionEntry::new(sessions, number, &self.peer(), self.tls.is_some(), store::now(), mailbox),
        }
    }

    /// Whether somebody has logged in from its source before.
    fn is_known(&self) -> bool {
        self.place.is_none_or(|place| !place.stranger)
    }

    /// The client's address, for a person to read.
    fn peer(&self) -> String {
        self.within.as_ref().map_or_else(|| self.source.to_string(), |within| within.peer.clone())
    }

    /// A proxy has named the source. `false`: the source has too many connections.
    fn comes_from(&mut self, source: SocketAddr) -> bool {
        let of = Some(network(source.ip()));
        let counted = self.shared.sources.lock().count_source(of, self.shared.most());
        if counted {
            self.source = source;
            if let Some(place) = &mut self.place {
                place.source = of;
            }
        }
        counted
    }
}

impl Drop for Admitted {
    fn drop(&mut self) {
        if let Some(place) = self.place {
            self.shared.sources.lock().leave(place);
        }
    }
}

impl EndpointState {
    fn limits(&self) -> Arc<Limits> {
        Arc::clone(&self.limits.read())
    }

    fn most(&self) -> Most {
        let limits = self.limits();
        Most { connections: limits.connections, per_source: limits.per_source }
    }

    /// Admits a connection, if there is a place for it.
    fn admitted(self: &Arc<Self>, source: SocketAddr, tls: Option<Arc<ServerConfig>>) -> Option<Admitted> {
        let place = self.admit(source.ip());
        if place.is_none() {
            tracing::debug!(%source, "too many connections");
        }
        Some(Admitted { shared: Arc::clone(self), source, place: Some(place?), tls, within: None })
    }

    /// Whether this is the address of a proxy.
    fn is_proxy(&self, address: IpAddr) -> bool {
        let canonical = address.to_canonical();
        self.proxies.read().iter().any(|proxy| proxy.contains(&canonical))
    }

    fn admit(&self, address: IpAddr) -> Option<Place> {
        let proxied = self.is_proxy(address);
        // The operator has named the proxy, so it is not a stranger.
        let stranger = !proxied && !self.gate.is_known(address);
        let place = Place { source: (!proxied).then(|| network(address)), stranger };
        self.sources.lock().enter(place, self.most()).then_some(place)
    }
}
