//! A host, put together: a home folder, its identities, its services, its doors.

mod commands;
mod retention;

use std::cell::{Cell, OnceCell, RefCell};
use std::net::{SocketAddr, TcpListener, ToSocketAddrs};
use std::path::PathBuf;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::{Arc, Weak};

use tokio::sync::mpsc;

use self::retention::Retention;
use crate::accounts::{AccountError, Accounts};
use crate::config::{self, ConfigFile, Home, HomeError, ListenerSettings, Lock, Settings, random};
use crate::control::{self, ControlFailure, LibraryStatus, known};
use crate::cred::login::Login;
use crate::cred::{Authorizer, HashCost, Password};
use crate::doors::{Doors, Surroundings};
use crate::folder::{self, Folder, Group};
use crate::limits;
use crate::listener::tls::{Certificates, TlsError};
use crate::listener::{Endpoint, Listener, proxies};
use crate::loader::fault::LibraryFault;
use crate::loader::vet::Vet;
use crate::loader::watch::Watch;
use crate::login_gate::{LoginGate, LoginRules};
use crate::memory::Budget;
use crate::multiservice::MultiService;
use crate::multiservice::Quarantined;
use crate::multiservice::context::HostContext;
use crate::session::Limits;
use crate::sessions::Sessions;
use crate::store::StoreError;
use crate::store::audit::Event;

/// This very program, also when its file has been replaced since it was started.
const SELF: &str = "/proc/self/exe";

/// How a host is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to serve PB, instead of what the home's configuration says.
    pub listen: Option<String>,
    /// Where to serve it over TLS, instead of what the configuration says.
    pub listen_tls: Option<String>,
    /// Serve in the clear where others can listen, whatever the configuration says.
    pub plaintext: bool,
    /// Look for libraries that have changed now and then: for file systems that do not tell.
    pub poll: bool,
    /// Keep whole copies of libraries for as long as they are loaded, so that debuggers find their symbols and lines.
    pub debuggable: bool,
    /// The program that vets libraries, which calls [`crate::loader::vet::child`]; this one, if none is given.
    pub vetter: Option<PathBuf>,
}

/// Why a host does not start.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is what the error in it says")]
pub enum StartError {
    #[error(transparent)]
    Home(#[from] HomeError),
    #[error(transparent)]
    Accounts(#[from] AccountError),
    #[error("cannot listen on {address}: {error}")]
    Listen { address: String, error: std::io::Error },
    #[error(
        "{0} can be reached by others, and PB in the clear lets them listen; serve there with --listen-tls (`credhost tls init` makes certificates), or insist with --plaintext"
    )]
    Plaintext(SocketAddr),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("TLS: {0}; `credhost tls init` makes certificates of one's own")]
    Tls(#[from] TlsError),
    #[error("{0}")]
    Section(String),
}

/// How long a host that ends waits for commands that it has begun.
const COMMANDS: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a host waits while a command, or a host that stops, holds the home's lock. It does not wait for a host that runs.
const LOCKED: std::time::Duration = std::time::Duration::from_secs(10);

async fn locked(home: &Home) -> Result<Lock, StartError> {
    let home = home.clone();
    let waiting = tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        home.lock_patiently(|| {
            std::thread::sleep(std::time::Duration::from_millis(10));
            !control::is_served(&home.control()) && began.elapsed() < LOCKED
        })
    });
    Ok(waiting.await.map_err(std::io::Error::other)??)
}

/// How often the files of certificates are looked at.
const CERTIFICATES: std::time::Duration = std::time::Duration::from_secs(2);

/// A host that serves.
pub struct Host {
    home: Home,
    _lock: Lock,
    accounts: Arc<Accounts>,
    services: Arc<MultiService>,
    folder: Rc<Folder>,
    gate: Arc<LoginGate>,
    sessions: Arc<Sessions>,
    /// Its doors, once they are open: the first is the one that every host has; then those over TLS, and of collections
    /// that have a door of their own.
    listeners: OnceCell<Vec<Listener>>,
    certificates: Option<Arc<Certificates>>,
    endpoints: Vec<Endpoint>,
    /// The root for those who have logged in by services' own doors.
    within: Endpoint,
    /// Services' own doors.
    doors: Arc<Doors>,
    memory: Arc<Budget>,
    limits: Cell<Limits>,
    /// Services whose code has crashed too often.
    quarantined: Cell<Option<mpsc::UnboundedReceiver<Quarantined>>>,
    /// After how long a service is late that does not come back.
    watchdog: Option<std::time::Duration>,
    retention: RefCell<Option<Retention>>,
    /// Has commands answered while it is polled.
    commands: Cell<Option<Pin<Box<dyn Future<Output = ()>>>>>,
    under_way: control::UnderWay,
}

impl std::fmt::Debug for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Host").field("home", &self.home).finish_non_exhaustive()
    }
}

impl Host {
    /// Starts a host: loads what is in its folder, then opens its door. Takes the home's lock.
    ///
    /// # Errors
    /// What keeps it from starting. A library that cannot be loaded does not.
    pub async fn start(home: Home, options: &Options) -> Result<(Rc<Self>, Watch), StartError> {
        home.make()?;
        let lock = locked(&home).await?;
        let (accounts, settings) = Accounts::open(&home, "the host")?;
        let accounts = Arc::new(accounts);
        if let Some(weaker) = accounts.rules().weaker_than_standard() {
            tracing::warn!("{weaker}");
        }
        let proxies = proxies(&settings.pb.proxies).map_err(StartError::Section)?;
        let retention = Retention::of(&home, &settings.audit).map_err(StartError::Section)?;
        let wrong = |error: limits::LimitError| StartError::Section(error.to_string());
        let orphans = limits::of_host(std::time::Duration::ZERO, &settings.limits).map_err(wrong)?.orphans;
        let mut context = HostContext {
            orphans,
            quota: settings.state.largest,
            grace: std::time::Duration::from_secs(settings.plugins.grace),
            // Vetting was patient already; the host has more to do besides.
            patience: 3 * std::time::Duration::from_secs(settings.plugins.patience.max(1)),
            ..HostContext::new(Arc::clone(accounts.store()))
        };
        let (crashed, quarantined) = mpsc::unbounded_channel();
        context.quarantine = Some(crashed);
        let services = MultiService::new("pb");
        let patience = std::time::Duration::from_secs(settings.plugins.patience.max(1));
        let vet = Vet::new(options.vetter.clone().unwrap_or_else(|| PathBuf::from(SELF)), patience);
        let vetting = settings
            .plugins
            .vetting
            .parse()
            .map_err(|why| StartError::Section(format!("[plugins] vetting = {why}")))?;
        let vet = vet.within(vetting);
        let sections = folder::sections(&settings).map_err(|fault| StartError::Section(fault.to_string()))?;
        let confinements = config::confinements(&settings).map_err(StartError::Section)?;

        let address = options.listen.as_deref().unwrap_or(&settings.pb.listen);
        let listener = listen(address, options.plaintext || settings.pb.plaintext)?;
        let authorizer: Arc<dyn Authorizer> = Arc::new(accounts.authorizer());
        let tls_address = options.listen_tls.as_ref().or(settings.pb.listen_tls.as_ref());
        let of_services = config::listeners(&settings).map_err(StartError::Section)?;
        let certificates = certificates(&home, &settings, &of_services, tls_address.is_some())?;
        let gate = LoginGate::new(
            Arc::clone(&context.store),
            accounts.secret().clone(),
            accounts.cost(),
            settings.password.budget.saturating_mul(1024),
            LoginRules { stock: settings.pb.stock_login, loopback_is_private: settings.pb.loopback_is_private },
        );
        gate.restore().await?;
        let sessions = Sessions::new();
        let all = Arc::clone(&sessions);
        accounts.on_change(Box::new(move |name, identity| {
            let done = all.changed(name, identity);
            if !done {
                tracing::error!(name, "a connection does not end what it was told to; please report it");
            }
            done
        }));
        let mut groups = Vec::new();
        let mut more = Vec::new();
        for (name, section) in &settings.multiservice {
            let rules =
                section.rules().map_err(|wrong| StartError::Section(format!("[multiservice.{name}] {wrong}")))?;
            let group = MultiService::new(name.clone());
            // It has no services yet, whose names could be taken.
            let _ = services.add_collection(Arc::clone(&group));
            if let Some(address) = &section.listen {
                let plaintext = options.plaintext || settings.pb.plaintext;
                more.push((listen(address, plaintext)?, Arc::clone(&group), None, rules.clone()));
            }
            if let Some(address) = &section.listen_tls {
                more.push((listen(address, true)?, Arc::clone(&group), certificates.clone(), rules));
            }
            groups.push(Group { services: group, names: section.services.clone() });
        }
        let served = match &settings.pb.multiservice {
            Some(name) => {
                groups.iter().find(|group| group.services.name() == name).map(|group| &group.services).ok_or_else(
                    || {
                        StartError::Section(format!(
                            "[pb] multiservice = {name:?}: there is no [multiservice.{name}] in credhost.toml"
                        ))
                    },
                )?
            }
            None => &services,
        };
        // Every refusal leaves when the most expensive to find out has been found out for long.
        let own = accounts.cost();
        let measured = tokio::task::spawn_blocking(move || {
            let time = |cost| {
                let began = std::time::Instant::now();
                // What it comes to is not looked at.
                let _ = std::hint::black_box(Password::new("").hash(cost, &[0; 16]));
                began.elapsed()
            };
            // Of hashes of other programs, those are taken that are no more than eight times as much work.
            (4 * time(own)).max(16 * time(HashCost::LEAST))
        });
        let refusal = Limits::default().refusal.max(measured.await.unwrap_or_default());
        let limits = limits::of_host(refusal, &settings.limits).map_err(wrong)?;
        context.memory.set_limit(limits.memory);
        let doors = Doors::new(
            Surroundings {
                services: Arc::downgrade(&services) as Weak<_>,
                login: Login::with_cost(Arc::clone(&authorizer), accounts.key().clone(), &random()?, accounts.cost()),
                gate: Arc::clone(&gate),
                sessions: Arc::clone(&sessions),
                router: Arc::clone(&context.router),
                memory: Arc::clone(&context.memory),
                certificates: certificates.clone(),
                limits,
            },
            of_services,
        )
        .map_err(StartError::Section)?;
        context.doors = Arc::clone(&doors) as Arc<_>;
        let serve = |served: &Arc<MultiService>| -> Result<Endpoint, StartError> {
            let (key, cost) = (accounts.key().clone(), accounts.cost());
            let login = Login::with_cost(Arc::clone(&authorizer), key, &random()?, cost);
            let before = (Arc::clone(&gate), Arc::clone(&sessions));
            let endpoint = Endpoint::with_gate(login, Arc::clone(served), context.clone(), limits, before);
            endpoint.set_proxies(proxies.clone());
            Ok(endpoint)
        };
        let rules = settings.pb.rules().map_err(|wrong| StartError::Section(format!("[pb] {wrong}")))?;
        let within = serve(&services)?;
        let root = serve(served)?;
        root.set_rules(rules.clone());
        let mut roots = Vec::new();
        if let Some(address) = tls_address {
            let root = serve(served)?;
            root.set_rules(rules);
            roots.push((listen(address, true)?, root, certificates.clone()));
        }
        for (listener, group, tls, rules) in more {
            let root = serve(&group)?;
            root.set_rules(rules);
            roots.push((listener, root, tls));
        }

        let folder = Folder::new(
            &home,
            Arc::clone(&services),
            groups,
            context.clone(),
            (sections, confinements),
            vet,
            options.debuggable,
        )?;
        let mut watch = Watch::new(&home.plugins(), options.poll);
        roots.insert(0, (listener, root, None));
        let (endpoints, listening): (Vec<_>, Vec<_>) =
            roots.into_iter().map(|(listener, root, tls)| (root, (listener, tls))).unzip();
        let memory = Arc::clone(&context.memory);
        let socket = control::listen(&home.control())?;
        let host = Rc::new(Self {
            home,
            _lock: lock,
            accounts,
            services,
            folder,
            gate,
            sessions,
            listeners: OnceCell::new(),
            certificates,
            endpoints,
            within,
            doors,
            memory,
            limits: Cell::new(limits),
            quarantined: Cell::new(Some(quarantined)),
            watchdog: Some(settings.plugins.watchdog)
                .filter(|seconds| *seconds > 0)
                .map(std::time::Duration::from_secs),
            retention: RefCell::new(retention),
            commands: Cell::new(None),
            under_way: control::UnderWay::default(),
        });
        host.load(socket, &mut watch).await;
        host.open(listening)?;
        Ok((host, watch))
    }

    /// Loads what is in the folder. Commands are answered meanwhile: a service may take its time to start.
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

    /// Opens the doors.
    fn open(&self, listening: Vec<(TcpListener, Option<Arc<Certificates>>)>) -> Result<(), StartError> {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let mut open: Vec<Listener> = Vec::new();
        for (endpoint, (listener, tls)) in self.endpoints.iter().zip(listening) {
            let over = if tls.is_some() { " over TLS" } else { "" };
            let listener = endpoint.listen_on(listener, threads, tls)?;
            if !open.is_empty() {
                tracing::info!("serving also{over} on {}", listener.address());
            }
            open.push(listener);
        }
        // There is one at least.
        let first = open.first().ok_or_else(|| std::io::Error::other("the host has no listener"))?;
        self.doors.open((&self.within, first))?;
        // Nobody else sets it.
        let _ = self.listeners.set(open);
        self.accounts.store().keep_room();
        self.accounts.note_host("host.started");
        if let Ok(settings) = ConfigFile::open(&self.home.config()).and_then(|file| file.settings()) {
            let known = known::services(&self.home, Some(&self.libraries()));
            known::sections_of_none(&settings, &known).iter().for_each(|what| tracing::warn!("{what}"));
        }
        erase(&self.accounts);
        Ok(())
    }

    /// Serves commands and watches the folder, until `stop`; then closes the door, lets calls end, and stops the
    /// services. On a `LocalSet`.
    pub async fn run(self: Rc<Self>, mut watch: Watch, stop: impl Future<Output = ()>) {
        let Some(commands) = self.commands.take() else { return };
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
        }
        tracing::info!("stopping");
        // Connections live on threads of their own; so do the services that their calls wait for.
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
        // Commands that have begun get their answers.
        let _ = tokio::time::timeout(COMMANDS, self.under_way.ended()).await;
    }

    /// Sees to services whose code has crashed too often, for as long as it is polled.
    async fn see_to_quarantined(&self) {
        let Some(mut quarantined) = self.quarantined.take() else { return std::future::pending().await };
        while let Some(one) = quarantined.recv().await {
            self.folder.quarantine(one).await;
        }
        std::future::pending().await
    }

    /// Looks whether services come back from what they were given, for as long as it is polled.
    async fn look_after_services(&self) {
        let Some(patience) = self.watchdog else { return std::future::pending().await };
        loop {
            tokio::time::sleep(patience / 8).await;
            for service in self.services.services() {
                // What it finds it has seen to.
                let _ = service.look_after(patience);
            }
        }
    }

    /// Takes up what can be changed while it runs.
    async fn take_up(&self) -> Result<Vec<String>, ControlFailure> {
        let mut changed = self.reload()?;
        let moved = self.folder.move_services().await;
        let hint = Some("services stay where they are; put it right, and try again".to_owned());
        changed.extend(moved.map_err(|error| ControlFailure { error: error.to_string(), hint })?);
        Ok(changed)
    }

    /// Reads the limits in credhost.toml again, and takes them up.
    ///
    /// # Errors
    /// What is wrong with the file; all stays as it is.
    fn reload(&self) -> Result<Vec<String>, ControlFailure> {
        let settings = ConfigFile::open(&self.home.config()).and_then(|file| file.settings());
        let before = self.limits.get();
        let read = settings.map_err(|error| error.to_string()).and_then(|settings| {
            let retention = Retention::of(&self.home, &settings.audit)?;
            let limits = limits::of_host(before.refusal, &settings.limits).map_err(|error| error.to_string())?;
            let proxies = proxies(&settings.pb.proxies)?;
            Ok((limits, retention, proxies))
        });
        let (limits, retention, proxies) = read.map_err(|error| {
            let hint = "everything stays as it was; put it right, and try again".to_owned();
            ControlFailure { error, hint: Some(hint) }
        })?;
        *self.retention.borrow_mut() = retention;
        self.memory.set_limit(limits.memory);
        self.endpoints.iter().chain([&self.within]).for_each(|endpoint| {
            endpoint.set_limits(limits);
            endpoint.set_proxies(proxies.clone());
        });
        self.doors.set_limits(limits);
        self.limits.set(limits);
        let changed = limits::SETTINGS.iter().filter(|setting| (setting.get)(&before) != (setting.get)(&limits));
        let changed: Vec<String> = changed
            .map(|setting| {
                let shown = |limits| setting.unit.shown((setting.get)(limits));
                format!("{}: {} → {}", setting.name, shown(&before), shown(&limits))
            })
            .collect();
        changed.iter().for_each(|change| tracing::info!("limits: {change}"));
        Ok(changed)
    }

    /// Takes the settings up again whenever the process is told to by SIGHUP.
    async fn hear_hangups(&self) {
        let Ok(mut hangup) = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::hangup()) else {
            return std::future::pending().await;
        };
        while hangup.recv().await.is_some() {
            match self.take_up().await {
                Ok(changed) if changed.is_empty() => {
                    tracing::info!("SIGHUP: what can be changed in credhost.toml is as it was")
                }
                Ok(_) => self.accounts.note(Event::new("limits.changed").with("by", "SIGHUP")),
                Err(failure) => tracing::error!("SIGHUP: {}; everything stays as it was", failure.error),
            }
        }
        std::future::pending().await
    }

    /// Looks whether the files of the certificate have changed, for as long as it is polled.
    async fn look_at_certificates(&self) {
        let Some(certificates) = &self.certificates else { return std::future::pending().await };
        let mut wrong = None;
        loop {
            tokio::time::sleep(CERTIFICATES).await;
            match certificates.refresh() {
                Ok(true) => {
                    wrong = None;
                    tracing::info!("a new certificate is used from now on");
                    self.accounts.note(Event::new("tls.renewed"));
                }
                Ok(false) => {}
                Err(error) => {
                    // Said once: the two files are written one after the other.
                    if wrong.as_ref() != Some(&error) {
                        tracing::warn!(%error, "the new certificate cannot be used yet; the old one stays");
                    }
                    wrong = Some(error);
                }
            }
        }
    }

    /// Where PB is served.
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

    /// A file is in place in the folder, and whole: it is served at once. See [`Folder::place`].
    ///
    /// # Errors
    /// Why it is refused.
    pub async fn place(&self, file: &std::path::Path) -> Result<folder::Placed, LibraryFault> {
        self.folder.place(file).await
    }

    /// Its identities.
    #[must_use]
    pub fn accounts(&self) -> &Arc<Accounts> {
        &self.accounts
    }

    /// Its services.
    #[must_use]
    pub fn services(&self) -> &Arc<MultiService> {
        &self.services
    }

    /// What became of the files in the folder of services.
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

/// The certificates that doors over TLS need.
fn certificates(
    home: &Home,
    settings: &Settings,
    of_services: &[ListenerSettings],
    pb: bool,
) -> Result<Option<Arc<Certificates>>, StartError> {
    let of_services = of_services.iter().any(|listener| listener.tls || listener.starttls);
    let needed = pb || of_services || settings.multiservice.values().any(|section| section.listen_tls.is_some());
    if !needed {
        return Ok(None);
    }
    let (certificate, key) = home.certificates(&settings.tls);
    if key.exists() {
        crate::config::private(&key, 0o600)?;
    }
    Ok(Some(Certificates::load(&certificate, &key)?))
}

/// Erases what Twisted's own login needs, where it is not offered, while the host serves.
fn erase(accounts: &Arc<Accounts>) {
    let accounts = Arc::clone(accounts);
    let erasing =
        std::thread::Builder::new().name("erase".to_owned()).spawn(move || match accounts.erase_verifiers() {
            Ok(0) => {}
            Ok(erased) => tracing::info!("what Twisted's own login needs was erased; identities that had it: {erased}"),
            Err(error) => tracing::error!(%error, "what Twisted's own login needs could not be erased"),
        });
    if let Err(error) = erasing {
        tracing::error!(%error, "what Twisted's own login needs could not be erased");
    }
}

fn listen(address: &str, plaintext: bool) -> Result<std::net::TcpListener, StartError> {
    let failed = |error| StartError::Listen { address: address.to_owned(), error };
    let found: Vec<SocketAddr> = address.to_socket_addrs().map_err(failed)?.collect();
    if let Some(open) = found.iter().find(|found| !found.ip().is_loopback())
        && !plaintext
    {
        return Err(StartError::Plaintext(*open));
    }
    let listener = std::net::TcpListener::bind(found.as_slice()).map_err(failed)?;
    // As many as the system lets wait: the library's own number is small.
    rustix::net::listen(&listener, i32::MAX).map_err(|error| failed(error.into()))?;
    Ok(listener)
}
