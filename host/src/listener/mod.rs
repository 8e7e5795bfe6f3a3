//! A listening socket, the threads that its connections live on, and the way from a socket to a session and back.
//!
//! [`Endpoint`] is the root of the object hierarchy that clients see, as `twisted.spread.pb.AuthRoot` was: through it they
//! log in, in either era's words, and attach to perspectives. `connection` moves bytes, and decides nothing: what a
//! connection knows and decides is a [`Session`](crate::session). A `stream` is a socket, with or without `tls`; `proxy` reads whose
//! it is, where a proxy passes it on.

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
pub use proxy::proxies;
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

/// The memory that checking passwords may take, if nothing else is said, in KiB.
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
    /// Who passes on others' connections, and says whose they are.
    proxies: RwLock<Vec<IpNet>>,
    /// What it gives beside keys.
    rules: Arc<CurrentRules>,
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint").field("services", &self.shared.services.name()).finish_non_exhaustive()
    }
}

impl Endpoint {
    /// A root through which `login`'s identities reach these services.
    #[must_use]
    pub fn new(login: Login, services: Arc<MultiService>, context: HostContext, limits: Limits) -> Self {
        let gate = Self::gate_before(&login, &context);
        Self::with_gate(login, services, context, limits, (gate, Sessions::new()))
    }

    /// A gate of its own, as [`Endpoint::new`] has it.
    #[must_use]
    pub fn gate_before(login: &Login, context: &HostContext) -> Arc<LoginGate> {
        let mut secret = [0; 32];
        if let Err(error) = getrandom::fill(&mut secret) {
            // It keeps names apart, no secrets.
            tracing::warn!(%error, "no randomness for the throttle");
        }
        let store = Arc::clone(&context.store);
        LoginGate::new(store, StoreSecret::new(secret), login.cost(), BUDGET, LoginRules::default())
    }

    /// The same behind a gate that stands before other listeners, too, and with the sessions of all of them.
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

    /// Those that are the whole host's, and the same for each of its listeners.
    fn take_up_limits(&self) {
        let limits = self.limits();
        self.shared.gate.set_checks(limits.checks, limits.checks_per_source);
        self.shared.gate.set_known_sources(limits.known_sources);
        self.shared.context.limits.set(limits.slots);
    }

    /// Other limits from now on: for connections that are to come, and for how many there may be.
    pub fn set_limits(&self, limits: Limits) {
        *self.shared.limits.write() = Arc::new(limits);
        self.take_up_limits();
    }

    /// What its clients may cost.
    #[must_use]
    pub fn limits(&self) -> Limits {
        *self.shared.limits()
    }

    /// What it gives beside keys, from now on. What connections have by the rules before ends when they hear of it
    /// ([`Sessions::rules_changed`]).
    pub fn set_rules(&self, rules: ListenerRules) {
        self.shared.rules.set(rules);
    }

    /// What it gives beside keys.
    #[must_use]
    pub fn rules(&self) -> Arc<ListenerRules> {
        self.shared.rules.get()
    }

    /// Connections from these addresses come by a proxy: they begin with a header that says whose they are.
    pub fn set_proxies(&self, proxies: Vec<IpNet>) {
        *self.shared.proxies.write() = proxies;
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.shared.sources.lock().all()
    }

    /// What stands before every login.
    #[must_use]
    pub fn gate(&self) -> &Arc<LoginGate> {
        &self.shared.gate
    }

    /// Who is logged in.
    #[must_use]
    pub fn sessions(&self) -> &Arc<Sessions> {
        &self.shared.sessions
    }

    /// Listens on this address, and serves on as many threads as there are processors.
    ///
    /// # Errors
    /// When the address cannot be listened on, or a thread cannot be started.
    pub fn listen(&self, address: impl std::net::ToSocketAddrs) -> io::Result<Listener> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        self.listen_on(TcpListener::bind(address)?, threads, None)
    }

    /// Serves on a socket that listens already; with certificates, all that comes through it is TLS.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn listen_on(
        &self,
        listener: TcpListener,
        threads: usize,
        tls: Option<Arc<Certificates>>,
    ) -> io::Result<Listener> {
        let tls = tls.map(|certificates| certificates.config_for(&[], false));
        Ok(self.listen_as(listener, threads, tls, Accepts { itself: true, hands_on: true })?.0)
    }

    /// The same. Also answers with a way in for connections that others have accepted.
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
        // All that a thread needs is there before the thread: a door of which it is said that it is open, is.
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
                // What is to come is kept by the thread: whatever serves it ends, another goes on with it.
                let connections = Arc::new(AsyncMutex::new(connections));
                let with = || (closed.clone(), inside.clone());
                forever("a thread for connections", || work(&runtime, Arc::clone(&connections), with()));
            })?);
            io::Result::Ok(sender)
        };
        let (inside, strangers) = (threads.max(1), threads.div_ceil(2).max(1));
        let inside = (0..inside).map(|index| spawn(format!("io-{index}"), None)).collect::<io::Result<Vec<_>>>()?;
        // What has logged in already need not come by the lobby.
        let within: Vec<_> = inside.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let inside = Insiders::new(inside);
        let senders = (0..strangers).map(|index| spawn(format!("lobby-{index}"), Some(inside.clone())));
        let senders = senders.collect::<io::Result<Vec<_>>>()?;
        drop(inside);
        let shared = Arc::clone(&self.shared);
        let threads: Vec<_> = senders.iter().map(mpsc::UnboundedSender::downgrade).collect();
        let entrance = Entrance::new(Arc::downgrade(&shared), threads, tls.clone());
        // If it does not accept itself, its threads go on until it is closed all the same.
        let listener = accepts.itself.then_some(listener);
        workers.push(std::thread::Builder::new().name("accept".to_owned()).spawn(move || {
            forever("the thread that accepts connections", || {
                accepting.block_on(accept(&shared, listener.as_ref(), &senders, closed.clone(), tls.as_ref()));
            });
        })?);
        let router = Arc::clone(&self.shared.context.router);
        Ok((Listener { address, socket, closing, router, within, workers: Mutex::new(workers) }, entrance))
    }

    /// Ways in for those who have logged in by services' own doors: on the threads of this listener.
    pub(crate) fn ways(&self, listener: &Listener) -> Ways {
        Ways::new(Arc::downgrade(&self.shared), listener.within.clone())
    }
}

/// How a listener comes by connections.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Accepts {
    /// Whether it accepts them; if not, others do, and hand them in by its [`Entrance`].
    pub(crate) itself: bool,
    /// Whether the socket is its own, to be handed on to the next host.
    pub(crate) hands_on: bool,
}

/// A socket that listens. Closing it lets calls in flight end first, for a while.
#[derive(Debug)]
pub struct Listener {
    address: SocketAddr,
    /// Its socket, as long as it is not closed.
    socket: Mutex<Option<TcpListener>>,
    closing: watch::Sender<bool>,
    router: Arc<Router>,
    /// Where those are served who are inside: for as long as it listens.
    within: Vec<mpsc::WeakUnboundedSender<Coming>>,
    workers: Mutex<Vec<JoinHandle<()>>>,
}

impl Listener {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Its socket, for whoever serves it next: it goes on listening when this is closed, and who connects meanwhile waits.
    #[must_use]
    pub fn hand_on(&self) -> Option<TcpListener> {
        self.socket.lock().take()
    }

    /// Closes it: nobody comes in, calls in flight end, or are given up after the grace time. Blocks until all is
    /// closed.
    pub fn close(&self) {
        drop(self.socket.lock().take());
        // Nobody listens any more if all has ended.
        let _ = self.closing.send(true);
        // Connections look when they wake: none of them keeps a place in a list for that.
        self.router.wake_all();
        for worker in self.workers.lock().drain(..) {
            if worker.join().is_err() {
                tracing::error!("a fault of the host's own on a connection's thread; please report it");
            }
        }
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        self.close();
    }
}

/// Runs until it returns. A fault of the host's own does not end what all connections need.
fn forever(what: &str, run: impl Fn()) {
    while std::panic::catch_unwind(std::panic::AssertUnwindSafe(&run)).is_err() {
        health::count(&health::WORKERS_REPLACED);
        tracing::error!("{what} ended by a bug in the host and is replaced; please report it");
        // One that fails at once must not fill the log.
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
    // Not a task of its own: if it panics, so does this thread's turn, and the next begins.
    runtime.block_on(tasks.run_until(serving));
}

fn report(ended: Result<(), tokio::task::JoinError>) {
    if let Err(error) = ended {
        health::count(&health::CONNECTIONS_PANICKED);
        tracing::error!(%error, "a fault of the host's own on a connection; please report it");
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
                // Out of descriptors, most likely: what is connected goes on; look again in a while.
                tracing::warn!(%error, "a connection cannot be accepted");
                tokio::time::sleep(std::time::Duration::from_millis(100)).await;
                continue;
            }
        };
        let Some(admitted) = shared.admitted(source, tls.cloned()) else { continue };
        let Ok(stream) = stream.into_std() else { continue };
        next = (next + 1) % workers.len();
        // If nobody serves any more, the place is given back with it.
        let _ = workers[next].send(Coming::New(Socket::Tcp(stream), admitted));
    }
}

/// Where a connection comes from.
enum Socket {
    Tcp(TcpStream),
    /// From a service, in this process.
    Within(std::os::unix::net::UnixStream),
}

/// A connection that is to be served. Boxed: a task that is spawned keeps what it was given twice.
struct Arrived {
    coming: Coming,
    closed: watch::Receiver<bool>,
    /// Where it goes when somebody has logged in, if this is a lobby.
    inside: Option<Insiders<Coming>>,
}

/// A connection on its way to the thread that serves it.
enum Coming {
    /// It is new.
    New(Socket, Admitted),
    /// Somebody has logged in by it.
    Inside(Box<open::Inside>),
}

/// A connection that was let in: its place is given back however it ends.
struct Admitted {
    shared: Arc<EndpointState>,
    source: SocketAddr,
    /// None of its own has what comes from within: the stream has one that it came by.
    place: Option<Place>,
    tls: Option<Arc<ServerConfig>>,
    /// Boxed: few have it, and all would have the room for it.
    within: Option<Box<Within>>,
}

impl Admitted {
    /// Whether a header has to say first whose it is.
    fn is_proxied(&self) -> bool {
        self.place.is_some_and(|place| place.source.is_none())
    }

    /// How the operator is to see it.
    fn listed(&self, number: u32, mailbox: &Arc<Mailbox>) -> Arc<SessionEntry> {
        let (sessions, mailbox) = (&self.shared.sessions, Arc::clone(mailbox));
        match &self.within {
            Some(within) => SessionEntry::within(sessions, number, Arc::clone(&within.entry), mailbox),
            None => SessionEntry::new(sessions, number, &self.peer(), self.tls.is_some(), store::now(), mailbox),
        }
    }

    /// Whether somebody has logged in from there before.
    fn is_known(&self) -> bool {
        self.place.is_none_or(|place| !place.stranger)
    }

    /// Where the client is, for a person to read.
    fn peer(&self) -> String {
        self.within.as_ref().map_or_else(|| self.source.to_string(), |within| within.peer.clone())
    }

    /// A proxy has said whose it is; false: there are too many of theirs.
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

    /// A connection, if there is a place for it.
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
        // A proxy is named by the operator: it belongs here.
        let stranger = !proxied && !self.gate.is_known(address);
        let place = Place { source: (!proxied).then(|| network(address)), stranger };
        self.sources.lock().enter(place, self.most()).then_some(place)
    }
}
