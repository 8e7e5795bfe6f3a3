//! Services' own doors: listeners that are opened once, their streams, and the logins by these.
//!
//! A stream's bytes go from the socket to the service, and pass through the host only for TLS or an idle timeout. The
//! host keeps a descriptor of its own, by which it ends the stream when the login's access is revoked. While no
//! generation takes streams, a few of them are held for a limited time.

mod account;
mod attend;
mod change;
mod doorkeeper;
mod ends;
mod first;
mod held;
mod lasting;
mod listening;
mod logins;
mod port;
mod remembering;
mod shared;
mod ways;
mod words;

use std::collections::{BTreeSet, HashMap};
use std::net::TcpListener;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use plugin_api::abi::frame::ToLibrary;
use tokio::sync::watch;

use self::held::{Held, Offer};
pub use self::listening::ListenerStatus;
use self::listening::Listening;
pub(crate) use self::listening::{name as socket_name, wanted as wanted_socket};
use self::port::Port;
use self::words::Asker;
use crate::accounts::Accounts;
use crate::config::ListenerSettings;
use crate::cred::login::Login;
use crate::listener::tls::Certificates;
use crate::listener::{Endpoint, Entrance, Listener, Ways};
use crate::login_gate::LoginGate;
use crate::memory::Budget;
use crate::multiservice::router::Router;
use crate::multiservice::{Backend, Backends, Lane, SlotNo, Speaker};
use crate::session::Limits;
use crate::sessions::Sessions;
use crate::successor::Inherited;

/// What doors need from their host.
pub struct Surroundings {
    /// The services, by name. A weak reference, because the services own the doors.
    pub services: Weak<dyn Backends>,
    /// Looks up identities and verifies proofs.
    pub login: Login,
    /// Makes users' changes of their own credentials. `None`: they cannot change them.
    pub accounts: Option<Arc<Accounts>>,
    /// The gate that every login passes.
    pub gate: Arc<LoginGate>,
    /// Who is logged in.
    pub sessions: Arc<Sessions>,
    /// The router of connections. A stream is one of them.
    pub router: Arc<Router>,
    /// The budget for the memory that the host keeps for clients.
    pub memory: Arc<Budget>,
    /// The certificates for TLS, if there are any.
    pub certificates: Option<Arc<Certificates>>,
    /// The limits that apply at first.
    pub limits: Limits,
}

impl std::fmt::Debug for Surroundings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Surroundings")
    }
}

/// How long the doors' threads may take to end.
const ENDING: Duration = Duration::from_secs(2);

/// The delay before a stream is offered again to a service that is about to serve.
const AGAIN: Duration = Duration::from_millis(50);

/// All doors of a host's services.
pub struct Doors {
    around: Surroundings,
    limits: RwLock<Limits>,
    lane: Lane,
    listeners: Vec<Arc<Listening>>,
    /// The listeners' sockets. Several listeners may share one.
    ports: Vec<Arc<Port>>,
    streams: Mutex<HashMap<u32, Arc<Held>>>,
    /// The stream that each login came by.
    logins: Mutex<HashMap<u64, u32>>,
    /// The host's ends of services' connections to other services, by login.
    ways: Mutex<HashMap<u64, Vec<UnixStream>>>,
    /// Logins without a stream.
    lasting: Mutex<lasting::Table>,
    /// Serves the connections in `ways`. Not set before the host's own listeners are open.
    within: OnceLock<Ways>,
    /// Entrances of the host's own listeners that share a socket with services' listeners, in the order of `of_host`.
    entrances: OnceLock<Vec<Entrance>>,
    next_login: AtomicU64,
    /// Listeners that services want, but that have no address.
    wanting: Mutex<BTreeSet<(String, String)>>,
    /// Allows one change of credentials at a time, because hashing a password takes memory.
    changing: tokio::sync::Mutex<()>,
    /// Set when no more connections are accepted.
    closing: watch::Sender<bool>,
    /// Moves the bytes of TLS, and watches streams.
    threads: Mutex<Option<tokio::runtime::Runtime>>,
    me: Weak<Self>,
}

impl std::fmt::Debug for Doors {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Doors").field("listeners", &self.listeners.len()).finish_non_exhaustive()
    }
}

impl Doors {
    /// Creates the doors. Their listeners do not accept connections yet.
    ///
    /// # Errors
    /// Returns an error if a listener cannot be opened, with its place in credhost.toml, or if no threads can be
    /// started.
    pub fn new(
        around: Surroundings,
        settings: Vec<ListenerSettings>,
        inherited: &Inherited,
    ) -> Result<Arc<Self>, String> {
        Self::beside(Vec::new(), around, settings, inherited)
    }

    /// As [`Doors::new`], with listeners of the host's own, whose sockets are open. Services' listeners with the same
    /// address share these sockets; each connection goes to one of the listeners.
    pub(crate) fn beside(
        of_host: Vec<(ListenerSettings, TcpListener)>,
        around: Surroundings,
        settings: Vec<ListenerSettings>,
        inherited: &Inherited,
    ) -> Result<Arc<Self>, String> {
        let (mut listeners, mut ports) = (Vec::new(), Vec::<Vec<Arc<Listening>>>::new());
        for (at, (settings, socket)) in of_host.into_iter().enumerate() {
            let shared = ports.iter_mut().find(|port| port[0].settings.shares(&settings.address));
            let listening = Listening::of_host(at, settings, socket);
            match shared {
                Some(port) => port.push(listening),
                None => ports.push(vec![listening]),
            }
        }
        for one in settings {
            let shared = ports.iter_mut().find(|port| port[0].settings.shares(&one.address));
            let listening = match &shared {
                Some(port) => Listening::beside(&port[0], one),
                None => Listening::open(one, inherited)?,
            };
            listeners.push(Arc::clone(&listening));
            match shared {
                Some(port) => port.push(listening),
                None => ports.push(vec![listening]),
            }
        }
        let ports = ports.into_iter().map(Port::new).collect();
        let limits = RwLock::new(around.limits);
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(threads).thread_name("door").enable_all().build();
        let runtime = runtime.map_err(|error| format!("the threads for services' doors cannot be started: {error}"))?;
        Ok(Arc::new_cyclic(|me| Self {
            around,
            limits,
            lane: Lane::unbounded(0),
            listeners,
            ports,
            streams: Mutex::default(),
            logins: Mutex::default(),
            ways: Mutex::default(),
            lasting: Mutex::default(),
            within: OnceLock::new(),
            entrances: OnceLock::new(),
            next_login: AtomicU64::new(1),
            wanting: Mutex::default(),
            changing: tokio::sync::Mutex::default(),
            threads: Mutex::new(Some(runtime)),
            closing: watch::Sender::new(false),
            me: Weak::clone(me),
        }))
    }

    /// Starts accepting connections. Connections of logins to other services are served on the threads of this
    /// listener.
    ///
    /// # Errors
    /// Returns an error if a socket cannot be used.
    pub fn open(&self, within: (&Endpoint, &Listener)) -> std::io::Result<()> {
        self.open_beside(within, Vec::new())
    }

    /// As [`Doors::open`]. Connections for the host's own listeners go to these entrances.
    pub(crate) fn open_beside(
        &self,
        (within, listener): (&Endpoint, &Listener),
        entrances: Vec<Entrance>,
    ) -> std::io::Result<()> {
        self.share_memory(&self.limits.read());
        // Set only once, because the doors are opened once.
        let _ = self.within.set(within.ways(listener));
        let _ = self.entrances.set(entrances);
        for listening in &self.listeners {
            let settings = &listening.settings;
            let how = match (settings.tls, settings.starttls) {
                (true, _) => " over TLS",
                (_, true) => " with STARTTLS",
                _ => "",
            };
            let marks = settings.marks.shown();
            let of = if marks.is_empty() { String::new() } else { format!(", for connections with {marks}") };
            tracing::info!(service = settings.service, "serving {}{how} on {}{of}", settings.name, listening.address());
        }
        for port in &self.ports {
            let socket = self.within_threads(|| port.socket()?.listen())?;
            let closed = self.closing.subscribe();
            let (Some(me), port) = (self.me.upgrade(), Arc::clone(port)) else { continue };
            self.spawn(async move {
                listening::accept(socket, closed, |client, source| me.come_to(&port, client, source)).await;
            });
        }
        Ok(())
    }

    /// Replaces the limits.
    pub fn set_limits(&self, limits: Limits) {
        *self.limits.write() = limits;
        self.share_memory(&limits);
    }

    /// A service may report any memory use for the clients of a listener. The host accepts at most a quarter of the
    /// limit.
    fn share_memory(&self, limits: &Limits) {
        self.listeners.iter().for_each(|listening| listening.set_most(limits.memory / 4));
    }

    /// The listeners whose settings differ from the open ones, as "[service.chat.listen] irc".
    #[must_use]
    pub fn unlike(&self, settings: &[ListenerSettings]) -> BTreeSet<String> {
        let open = || self.listeners.iter().map(|listening| &listening.settings);
        let new = settings.iter().filter(|one| open().all(|open| open != *one));
        let gone = open().filter(|open| settings.iter().all(|one| one != *open));
        new.chain(gone).map(|one| format!("[service.{}.listen] {}", one.service, one.name)).collect()
    }

    /// Stops accepting. Returns the sockets with their names; they stay open, so that new connections wait.
    ///
    /// # Errors
    /// Returns an error if the process has no descriptor left.
    pub fn hand_on(&self) -> std::io::Result<Vec<(String, OwnedFd)>> {
        let sockets = self.ports.iter().filter_map(|port| port.hand_on()).collect();
        self.stop_accepting();
        sockets
    }

    /// Stops accepting connections.
    pub fn stop_accepting(&self) {
        // There is no receiver if no listener was opened.
        let _ = self.closing.send(true);
    }

    /// Runs `act` within the runtime of the doors' threads.
    fn within_threads<T>(&self, act: impl FnOnce() -> std::io::Result<T>) -> std::io::Result<T> {
        let handle = self.threads.lock().as_ref().map(|threads| threads.handle().clone());
        let handle = handle.ok_or_else(|| std::io::Error::other("services' doors are closed"))?;
        let _within = handle.enter();
        act()
    }

    /// Closes the doors: nothing is accepted any more, and all streams are cut.
    pub fn close(&self) {
        // The lock is released first: tasks that are ending may want to spawn others.
        let threads = self.threads.lock().take();
        if let Some(threads) = threads {
            // Waits for the tasks, so that none of them keeps objects of the host. On a thread that may block.
            let ending = std::thread::spawn(move || threads.shutdown_timeout(ENDING));
            if ending.join().is_err() {
                tracing::error!("a fault in the host: services' doors do not close; please report it");
            }
        }
        let streams = std::mem::take(&mut *self.streams.lock());
        for held in streams.into_values() {
            held.cut();
            self.forget(&held);
        }
    }

    /// The status of all listeners.
    #[must_use]
    pub fn status(&self) -> Vec<ListenerStatus> {
        let open = self.listeners.iter().map(|listening| listening.status());
        let wanting = self.wanting.lock();
        let wanting = wanting.iter().map(|(service, name)| ListenerStatus {
            service: service.clone(),
            name: name.clone(),
            address: None,
            tls: String::new(),
            marks: String::new(),
            connections: 0,
            held: 0,
            taken: true,
        });
        open.chain(wanting).collect()
    }

    fn spawn(&self, task: impl Future<Output = ()> + Send + 'static) {
        // Once the doors are closed, nothing is spawned.
        if let Some(threads) = &*self.threads.lock() {
            threads.spawn(task);
        }
    }

    /// The service of this name, if this slot serves it.
    fn backend(&self, service: &str, slot: SlotNo) -> Option<Arc<dyn Backend>> {
        self.around.services.upgrade()?.backend(service).filter(|backend| backend.number() == slot)
    }

    /// Sends frames to the serving generation. `false`: none serves.
    fn tell_bytes(&self, service: &str, slot: SlotNo, frames: &[u8]) -> bool {
        let backend = self.backend(service, slot);
        backend.is_some_and(|backend| backend.submit(&self.lane, frames, &mut Vec::new(), 0).is_ok())
    }

    /// Runs `act` on a thread of the doors' own. A service's thread must not call into a slot: it speaks while the way out of
    /// its generation is locked, and a replacement takes that lock and the slot's in the other order.
    fn later(&self, act: impl FnOnce(&Arc<Self>) + Send + 'static) {
        let me = self.me.upgrade();
        self.spawn(async move {
            if let Some(me) = me {
                act(&me);
            }
        });
    }

    /// Answers the generation that asked. `false`: it no longer exists.
    fn answer(&self, asker: &Asker, frame: &ToLibrary<'_>) -> bool {
        let Some(backend) = self.backend(&asker.service, asker.slot) else { return false };
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        backend.answer(&self.lane, asker.generation, &bytes)
    }

    /// Offers a stream to the service that takes it. If none does, the stream is held.
    fn offer(&self, held: &Arc<Held>) {
        let service = &held.listening.settings.service;
        let taken = held.listening.taken();
        let Some(slot) = taken else {
            // A service may have taken the listener meanwhile, after the held streams were offered.
            if let Some(slot) = held.listening.hold(held.number) {
                self.later(move |me| me.offer_held(slot));
            }
            return;
        };
        let (frame, named, login) = match held.offer(slot, &self.limits.read()) {
            Offer::Frame(frame, named, login) => (frame, named, login),
            // The service was told when the stream was offered.
            Offer::Already => return,
            // The client's end is gone: there is nothing to serve.
            Offer::Gone => return held.close(),
        };
        if !self.tell_bytes(service, slot, &frame) {
            held.takes_back(&named);
            // Only the task that finds it without an owner holds it.
            if held.returns()
                && let Some(slot) = held.listening.hold(held.number)
            {
                // The service is about to serve, or has begun meanwhile.
                let me = self.me.clone();
                self.spawn(async move {
                    tokio::time::sleep(AGAIN).await;
                    if let Some(me) = me.upgrade() {
                        me.offer_held(slot);
                    }
                });
            }
            return;
        }
        // The login may have ended while the frame was on its way.
        if let Some(login) = login.filter(|login| held.login().is_none_or(|has| has.number != *login)) {
            self.login_ended(service, slot, login);
        }
    }

    /// Offers the held streams to this slot.
    fn offer_held(&self, slot: SlotNo) {
        for listening in self.listeners.iter().filter(|listening| listening.taken() == Some(slot)) {
            for number in listening.take_held() {
                let held = self.streams.lock().get(&number).cloned();
                if let Some(held) = held {
                    self.offer(&held);
                }
            }
        }
    }

    /// Answers a question with bytes.
    fn tell(&self, asker: &Asker, bytes: &[u8]) {
        // The generation may have ended.
        let _ = self.answer(asker, &ToLibrary::Told { request: asker.request, bytes });
    }

    /// Answers a question with a refusal. The next attempt is checked after `wait` seconds.
    fn not_logged_in(&self, asker: &Asker, message: &str, wait: u64) {
        // The generation may have ended.
        let _ = self.answer(asker, &ToLibrary::NotLoggedIn { request: asker.request, message, wait });
    }

    fn next_login(&self) -> u64 {
        self.next_login.fetch_add(1, Ordering::Relaxed)
    }

    /// Refuses a question.
    fn refuse(&self, asker: Asker, message: impl Into<String>) {
        let message = message.into();
        self.later(move |me| me.not_logged_in(&asker, &message, 0));
    }

    fn stream(&self, number: u64) -> Option<Arc<Held>> {
        let number = u32::try_from(number).ok()?;
        self.streams.lock().get(&number).cloned()
    }

    /// The stream of this number, if it belongs to this service.
    fn stream_of(&self, from: Speaker<'_>, number: u64) -> Option<Arc<Held>> {
        self.stream(number).filter(|held| held.listening.settings.service == from.service)
    }

    /// The stream has ended.
    fn forget(&self, held: &Held) {
        self.streams.lock().remove(&held.number);
        if let Some(login) = held.end() {
            self.over(login.number);
            let (slot, service) = (held.slot(), &held.listening.settings.service);
            if let Some(slot) = slot {
                self.login_ended(service, slot, login.number);
            }
        }
        self.around.router.disconnect(held.number);
    }

    /// Notifies all generations of the service that a login has ended, ahead of everything that waits.
    fn login_ended(&self, service: &str, slot: SlotNo, login: u64) {
        if let Some(backend) = self.backend(service, slot) {
            backend.urge(&ToLibrary::LoginEnded { login });
        }
    }

    fn listen(&self, from: Speaker<'_>, listener: &str, public: bool) {
        let mut found = self.listeners.iter().filter(|listening| listening.is(from.service, listener)).peekable();
        if found.peek().is_none() {
            tracing::debug!(
                service = from.service,
                "the service has a listener {listener}, but [service.{}.listen] in credhost.toml has no address for it",
                from.service
            );
            self.wanting.lock().insert((from.service.to_owned(), listener.to_owned()));
        }
        found.for_each(|listening| listening.take(from.slot, from.generation, public, from.embargoed));
        let slot = from.slot;
        self.later(move |me| me.offer_held(slot));
    }

    /// A generation has carried a stream. It is handed on with the others, or at once if another generation serves
    /// already.
    fn carry(&self, from: Speaker<'_>, held: &Arc<Held>, replacement: u64, state: &[u8]) {
        held.carry(from.generation, replacement, state.to_vec());
        if from.retired && replacement == 0 {
            let held = Arc::clone(held);
            self.later(move |me| me.offer(&held));
        }
    }
}

impl Drop for Doors {
    fn drop(&mut self) {
        if let Some(threads) = self.threads.get_mut().take() {
            threads.shutdown_background();
        }
    }
}
