//! A complete host: a home folder, its identities, its services, its doors.

mod commands;
mod configured;
mod options;
mod retention;
mod start;
mod taking_up;
mod trial;
mod upgrade;

pub use configured::check;
pub use options::{Options, StartError};

use std::cell::{Cell, OnceCell, RefCell};
use std::ffi::OsString;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;

use tokio::sync::{Notify, mpsc};

use self::configured::Opened;
use self::retention::Retention;
use crate::accounts::Accounts;
use crate::config::{ConfigFile, Fixed, Home, ListenerSettings, Lock};
use crate::control::{self, ControlFailure, LibraryStatus, known};
use crate::doors::Doors;
use crate::folder::{self, Folder};
use crate::listener::tls::Certificates;
use crate::listener::{Accepts, Endpoint, Listener};
use crate::loader::fault::LibraryFault;
use crate::loader::watch::Watch;
use crate::login_gate::LoginGate;
use crate::memory::Budget;
use crate::multiservice::{MultiService, Quarantined};
use crate::session::Limits;
use crate::sessions::Sessions;
use crate::store::audit::Event;
use crate::successor::{Inherited, Successor, TakenOver};

/// How long a host that stops waits for commands that it has begun.
const COMMANDS: std::time::Duration = std::time::Duration::from_secs(10);

/// The interval between two checks of the certificates' files.
const CERTIFICATES: std::time::Duration = std::time::Duration::from_secs(2);

/// The state of a takeover by another program.
#[derive(Debug, Default)]
enum Upgrade {
    #[default]
    Idle,
    /// Another program is being asked whether it can take over.
    Asking,
    /// This program takes over when this host has ended.
    MakesWay(PathBuf),
}

/// A host that serves.
pub struct Host {
    home: Home,
    _lock: Lock,
    accounts: Arc<Accounts>,
    services: Arc<MultiService>,
    folder: Rc<Folder>,
    gate: Arc<LoginGate>,
    sessions: Arc<Sessions>,
    /// Its listeners, once they are open. The first is the one that every host has; the others are those over TLS, and
    /// those of collections with their own listeners.
    listeners: OnceCell<Vec<Listener>>,
    /// The names by which the next host recognizes their sockets.
    names: Vec<String>,
    certificates: Option<Arc<Certificates>>,
    endpoints: Vec<Endpoint>,
    /// The `[multiservice.NAME]` section with each listener's rules. `None`: they are in `[pb]`.
    sections: Vec<Option<String>>,
    /// The root for logins by services' own doors.
    within: Endpoint,
    /// The host's own listeners, to be compared with others at the same address.
    own: Vec<ListenerSettings>,
    /// The settings that are read only at the start, as they were then.
    fixed: Fixed,
    /// Services' own doors.
    doors: Arc<Doors>,
    memory: Arc<Budget>,
    limits: Cell<Limits>,
    /// Services whose code crashed too often.
    quarantined: Cell<Option<mpsc::UnboundedReceiver<Quarantined>>>,
    /// The time after which a service that does not return counts as late.
    watchdog: Option<std::time::Duration>,
    retention: RefCell<Option<Retention>>,
    /// Answers commands while it is polled.
    commands: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    under_way: control::UnderWay,
    /// Inherited sockets, from a previous host or systemd, that nothing has taken.
    inherited: Inherited,
    /// The arguments that start a host like this one.
    words: Option<Vec<OsString>>,
    upgrade: RefCell<Upgrade>,
    /// Notified when another program takes over.
    makes_way: Notify,
    began: std::time::SystemTime,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Host {
    /// Loads the libraries in the folder. Commands are answered meanwhile, since a service may take long to start.
    async fn load(self: &Rc<Self>, socket: tokio::net::UnixListener, watch: &mut Watch) {
        let me = Rc::downgrade(self);
        let mut commands: Pin<Box<dyn Future<Output = ()>>> =
            Box::pin(control::serve(socket, self.under_way.clone(), move |request, uid, progress| {
                let me = me.upgrade();
                async move {
                    match me {
                        Some(me) => me.answer(request, uid, progress).await,
                        None => Err(ControlFailure { error: "the host has ended".to_owned(), hint: None }),
                    }
                }
            }));
        let loading = async {
            self.services.start().await;
            self.folder.load_all(watch.present()).await;
        };
        tokio::select! {
            () = loading => {}
            () = &mut commands => {}
        }
        self.commands.set(Some(commands));
    }

    /// Opens the listeners.
    fn open(&self, opened: Vec<Opened>) -> Result<(), StartError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let (mut open, mut entrances) = (Vec::<Listener>::new(), Vec::new());
        for (endpoint, Opened { settings, socket, first, shared, tls }) in self.endpoints.iter().zip(opened) {
            let over = if tls.is_some() { " over TLS" } else { "" };
            let how = Accepts { itself: !shared, hands_on: first };
            let (listener, entrance) = endpoint.listen_as(socket, threads, tls, how)?;
            if !open.is_empty() {
                let marks = settings.marks.shown();
                let of = if marks.is_empty() { marks } else { format!(", for connections with {marks}") };
                tracing::info!("serving also{over} on {}{of}", listener.address());
            }
            open.push(listener);
            entrances.extend(shared.then_some(entrance));
        }
        // There is at least one.
        let first = open.first().ok_or_else(|| std::io::Error::other("the host has no listener"))?;
        self.doors.open_beside((&self.within, first), entrances)?;
        // It is set only here.
        let _ = self.listeners.set(open);
        self.accounts.store().keep_room(self.limits.get().reserve);
        self.accounts.note_host("host.started");
        match TakenOver::from_environment() {
            Some(TakenOver::From(version)) => {
                let event = Event::new("host.upgraded").with("from", version);
                self.accounts.note(event.with("to", concat!("credhost ", env!("CARGO_PKG_VERSION"))));
            }
            Some(TakenOver::Not(why)) => {
                tracing::error!("{why}; this program serves again");
                self.accounts.note(Event::new("host.upgrade-failed").with("why", why));
            }
            None => {}
        }
        if let Ok(settings) = ConfigFile::open(&self.home.config()).and_then(|file| file.settings()) {
            let known = known::services(&self.home, Some(&self.libraries()));
            known::sections_of_none(&settings, &known).iter().for_each(|what| tracing::warn!("{what}"));
        }
        erase(&self.accounts);
        Ok(())
    }

    /// Serves commands and watches the folder, until `stop`, or until another program takes over. Then it closes the
    /// listeners, lets calls end, and stops the services. Must run on a `LocalSet`. Returns the program that takes
    /// over, if there is one: the caller executes it when nothing of this host is left.
    pub async fn run(self: Rc<Self>, mut watch: Watch, stop: impl Future<Output = ()>) -> Option<Successor> {
        let commands = self.commands.take()?;
        let certificates = self.look_at_certificates();
        let folder = async {
            loop {
                for change in watch.next().await {
                    self.folder.changed(change);
                }
            }
        };
        let summing = async {
            loop {
                tokio::time::sleep(std::time::Duration::from_secs(10)).await;
                self.gate.flush(false);
            }
        };
        tokio::select! {
            () = summing => {}
            () = retention::drop_old_lines(&self.retention, self.accounts.store()) => {}
            () = self.hear_hangups() => {}
            () = self.see_to_quarantined() => {}
            () = self.look_after_services() => {}
            () = commands => {}
            () = self.folder.retry_refused() => {}
            () = folder => {}
            () = certificates => {}
            () = stop => {}
            () = self.makes_way.notified() => {}
        }
        tracing::info!("stopping");
        let successor = self.successor();
        // This also stops accepting on addresses that services' listeners share.
        self.doors.stop_accepting();
        // Connections run on their own threads, as do the services that their calls wait for.
        self.listeners.get().into_iter().flatten().for_each(Listener::close);
        self.gate.flush(true);
        let serving: Vec<String> = self.services.services().iter().map(|service| service.name().to_string()).collect();
        self.services.stop().await;
        self.doors.close();
        for service in serving {
            self.accounts.note(Event::new("service.stopped").with("service", service).with("library", "the host ends"));
        }
        self.accounts.note_host("host.stopped");
        let _ = std::fs::remove_file(self.home.control());
        // Commands that have begun are still answered.
        let _ = tokio::time::timeout(COMMANDS, self.under_way.ended()).await;
        successor
    }

    /// Handles services whose code crashed too often, for as long as it is polled.
    async fn see_to_quarantined(&self) {
        let Some(mut quarantined) = self.quarantined.take() else { return std::future::pending().await };
        while let Some(one) = quarantined.recv().await {
            self.folder.quarantine(one).await;
        }
        std::future::pending().await
    }

    /// Checks whether services return from what they were given, for as long as it is polled.
    async fn look_after_services(&self) {
        let Some(patience) = self.watchdog else { return std::future::pending().await };
        loop {
            tokio::time::sleep(patience / 8).await;
            for service in self.services.services() {
                // The service handles the result itself.
                let _ = service.look_after(patience);
            }
        }
    }

    /// Reloads the settings at each SIGHUP.
    async fn hear_hangups(&self) {
        let Ok(mut hangup) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
            return std::future::pending().await;
        };
        while hangup.recv().await.is_some() {
            match self.take_up("SIGHUP").await {
                Ok(taken) => {
                    taken.warnings.iter().for_each(|warning| tracing::warn!("SIGHUP: {warning}"));
                    if taken.changed.is_empty() {
                        tracing::info!("SIGHUP: the changeable settings in credhost.toml are the same as before");
                    }
                }
                Err(ControlFailure { error, hint }) => {
                    tracing::error!("SIGHUP: {error}{}", hint.map(|hint| format!("; {hint}")).unwrap_or_default());
                }
            }
        }
        std::future::pending().await
    }

    /// Checks whether the certificates' files have changed, for as long as it is polled.
    async fn look_at_certificates(&self) {
        let Some(certificates) = &self.certificates else { return std::future::pending().await };
        let mut said = Vec::new();
        loop {
            tokio::time::sleep(CERTIFICATES).await;
            let (new, wrong) = certificates.refresh();
            for _ in 0..new {
                tracing::info!("a new certificate is used from now on");
                self.accounts.note(Event::new("tls.renewed"));
            }
            // Each error is logged once, since the two files are written one after the other.
            for error in wrong.iter().filter(|error| !said.contains(*error)) {
                tracing::warn!(%error, "the new certificate cannot be used yet; the old one stays");
            }
            said = wrong;
        }
    }

    /// The address of Perspective Broker.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        // `start` returns a host only after its first door is open.
        self.listeners.get().and_then(|all| all.first()).map_or_else(|| ([0; 4], 0).into(), Listener::address)
    }

    /// The folder that libraries are dropped into.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.home.plugins()
    }

    /// Serves a file that is completely written into the folder, without waiting for the watcher. See
    /// [`Folder::place`].
    ///
    /// # Errors
    /// If it is refused: the reason.
    pub async fn place(&self, file: &std::path::Path) -> Result<folder::Placed, LibraryFault> {
        self.folder.place(file).await
    }

    /// The host's identities.
    #[must_use]
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// The host's services.
    #[must_use]
    pub fn services(&self) -> &Arc<MultiService> {
        &self.services
    }

    /// The state of each file in the folder of services.
    #[must_use]
    pub fn libraries(&self) -> Vec<LibraryStatus> {
        let (mut libraries, mut listeners) = (self.folder.libraries(), self.doors.status());
        for library in &mut libraries {
            let own = listeners.extract_if(.., |listener| Some(&listener.service) == library.service.as_ref());
            library.listeners = own.collect();
        }
        libraries
    }
}

/// Erases the verifiers for Twisted's own login if it is disabled, while the host serves.
fn erase(accounts: &Arc<Accounts>) {
    let accounts = Arc::clone(accounts);
    let erasing =
        std::thread::Builder::new().name("erase".to_owned()).spawn(move || match accounts.erase_verifiers() {
            Ok(0) => {}
            Ok(erased) => {
                tracing::info!("secrets for Twisted's own login were erased; identities that had one: {erased}")
            }
            Err(error) => tracing::error!(%error, "secrets for Twisted's own login could not be erased"),
        });
    if let Err(error) = erasing {
        tracing::error!(%error, "secrets for Twisted's own login could not be erased");
    }
}
