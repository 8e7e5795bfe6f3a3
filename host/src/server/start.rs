//! Starts a host.

use std::cell::{Cell, OnceCell, RefCell};
use std::rc::Rc;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::sync::{Notify, mpsc};

use super::Host;
use super::configured::{Configured, Opened, limits_of};
use super::options::{Options, StartError};
use crate::accounts::Accounts;
use crate::config::{ConfigFile, Fixed, Home, Lock, MultiServiceSection, Settings, random};
use crate::control;
use crate::cred::login::Login;
use crate::cred::{Authorizer, HashCost, Password};
use crate::doors::{Doors, Surroundings};
use crate::folder::{Folder, Group};
use crate::listener::Endpoint;
use crate::loader::watch::Watch;
use crate::login_gate::{LoginGate, LoginRules};
use crate::multiservice::context::HostContext;
use crate::multiservice::{MultiService, Quarantined};
use crate::session::Limits;
use crate::sessions::Sessions;

/// How long a host waits while a command, or a host that stops, holds the home's lock. It does not wait for a running
/// host.
const LOCKED: std::time::Duration = std::time::Duration::from_secs(10);

impl Host {
    /// Starts a host: it loads the libraries in its folder, and then opens its listeners. Takes the home's lock.
    ///
    /// # Errors
    /// If it cannot start. A library that cannot be loaded does not prevent this.
    pub async fn start(home: Home, options: &Options) -> Result<(Rc<Self>, Watch), StartError> {
        home.make()?;
        let lock = locked(&home).await?;
        let (accounts, settings) = Accounts::open(&home, "the host")?;
        let accounts = Arc::new(accounts);
        if let Some(weaker) = accounts.rules().weaker_than_standard() {
            tracing::warn!("{weaker}");
        }
        let configured = Configured::read(&home, settings, options)?;
        for name in configured.close_others(&options.inherited) {
            tracing::info!("{name} is no longer configured; the previous host listened there");
        }
        let opened = configured.open_all(options)?;
        let mut watch = Watch::new(&home.plugins(), options.poll);
        let (host, socket) = put_together(home, lock, accounts, (configured, &opened), options).await?;
        host.load(socket, &mut watch).await;
        host.open(opened)?;
        Ok((host, watch))
    }
}

async fn put_together(
    home: Home,
    lock: Lock,
    accounts: Arc<Accounts>,
    (configured, opened): (Configured, &[Opened]),
    options: &Options,
) -> Result<(Rc<Host>, tokio::net::UnixListener), StartError> {
    let (crashed, quarantined) = mpsc::unbounded_channel();
    let mut context = context(&accounts, &configured, crashed)?;
    let gate = gate(&accounts, &context, &configured).await?;
    let sessions = sessions(&accounts);
    let limits = configured.limits(refusal(accounts.cost()).await)?;
    context.memory.set_limit(limits.memory);
    let services = MultiService::new("pb");
    let groups = groups(&services, &configured.settings);
    let roots = Roots { accounts: &accounts, gate: &gate, sessions: &sessions, limits };
    let doors = roots.doors(&services, &context, (&configured, opened), options)?;
    context.doors = Arc::clone(&doors) as Arc<_>;
    let within = roots.endpoint(&services, &context, &configured)?;
    let mut endpoints = Vec::new();
    for door in &configured.doors {
        let of = door.of.as_ref().and_then(|of| groups.iter().find(|group| group.services.name() == of));
        let endpoint = roots.endpoint(of.map_or(&services, |group| &group.services), &context, &configured)?;
        endpoint.set_rules(door.rules.clone());
        let own = limits_of(&configured.settings, door.section.as_deref(), limits).map_err(StartError::Section)?;
        endpoint.set_limits(own);
        endpoints.push(endpoint);
    }
    let memory = Arc::clone(&context.memory);
    let Configured { settings, doors: own, certificates, retention, sections, confinements, vet, .. } = configured;
    let folder =
        Folder::new(&home, Arc::clone(&services), groups, context, (sections, confinements), vet, options.debuggable)?;
    let socket = control::listen(&home.control())?;
    let fixed = ConfigFile::open(&home.config()).map(|file| Fixed::of(&file)).unwrap_or_default();
    let host = Host {
        home,
        own: opened.iter().map(|door| door.settings.clone()).collect(),
        fixed,
        _lock: lock,
        accounts,
        services,
        folder,
        gate,
        sessions,
        listeners: OnceCell::new(),
        sections: own.iter().map(|door| door.section.clone()).collect(),
        names: own.into_iter().map(|door| door.name).collect(),
        certificates,
        endpoints,
        within,
        doors,
        memory,
        limits: Cell::new(limits),
        quarantined: Cell::new(Some(quarantined)),
        watchdog: Some(settings.plugins.watchdog).filter(|seconds| *seconds > 0).map(Duration::from_secs),
        retention: RefCell::new(retention),
        commands: Cell::new(None),
        under_way: control::UnderWay::default(),
        inherited: options.inherited.clone(),
        words: options.words.clone(),
        upgrade: RefCell::default(),
        makes_way: Notify::new(),
        began: std::time::SystemTime::now(),
    };
    Ok((Rc::new(host), socket))
}

async fn locked(home: &Home) -> Result<Lock, StartError> {
    let home = home.clone();
    let waiting = tokio::task::spawn_blocking(move || {
        let began = std::time::Instant::now();
        home.lock_patiently(|| {
            std::thread::sleep(Duration::from_millis(10));
            !control::is_served(&home.control()) && began.elapsed() < LOCKED
        })
    });
    Ok(waiting.await.map_err(std::io::Error::other)??)
}

fn context(
    accounts: &Accounts,
    configured: &Configured,
    crashed: mpsc::UnboundedSender<Quarantined>,
) -> Result<HostContext, StartError> {
    let settings = &configured.settings;
    Ok(HostContext {
        grace: Duration::from_secs(settings.plugins.grace),
        // More patient than vetting, since the host has other work, too.
        patience: 3 * configured.patience(),
        quarantine: Some(crashed),
        ..HostContext::new(Arc::clone(accounts.store()))
    })
}

async fn gate(
    accounts: &Accounts,
    context: &HostContext,
    configured: &Configured,
) -> Result<Arc<LoginGate>, StartError> {
    let settings = &configured.settings;
    let rules = LoginRules { stock: settings.pb.stock_login, loopback_is_private: settings.pb.loopback_is_private };
    let gate = LoginGate::new(
        Arc::clone(&context.store),
        accounts.secret().clone(),
        accounts.cost(),
        settings.password.budget.saturating_mul(1024),
        rules,
    );
    gate.set_known_sources(configured.limits(Duration::ZERO)?.known_sources);
    gate.restore().await?;
    Ok(gate)
}

/// Creates the list of sessions, which is notified of every revocation.
fn sessions(accounts: &Accounts) -> Arc<Sessions> {
    let sessions = Sessions::new();
    let all = Arc::clone(&sessions);
    accounts.on_change(Box::new(move |name, identity| {
        let done = all.changed(name, identity);
        if !done {
            tracing::error!(name, "a connection did not end in time; please report it");
        }
        done
    }));
    sessions
}

fn groups(services: &Arc<MultiService>, settings: &Settings) -> Vec<Group> {
    let group = |(name, section): (&String, &MultiServiceSection)| {
        let group = MultiService::new(name.clone());
        // The group has no services yet whose names could conflict.
        let _ = services.add_collection(Arc::clone(&group));
        Group { services: group, names: section.services.clone() }
    };
    settings.multiservice.iter().map(group).collect()
}

/// Measures after what time every refusal is sent: later than the longest check takes.
async fn refusal(own: HashCost) -> Duration {
    let measured = tokio::task::spawn_blocking(move || {
        let time = |cost| {
            let began = std::time::Instant::now();
            // The result is ignored.
            let _ = std::hint::black_box(Password::new("").hash(cost, &[0; 16]));
            began.elapsed()
        };
        // Hashes of other programs are accepted up to eight times the work.
        (4 * time(own)).max(16 * time(HashCost::LEAST))
    });
    Limits::default().refusal.max(measured.await.unwrap_or_default())
}

/// The parts that the roots of all listeners share.
struct Roots<'a> {
    accounts: &'a Arc<Accounts>,
    gate: &'a Arc<LoginGate>,
    sessions: &'a Arc<Sessions>,
    limits: Limits,
}

impl Roots<'_> {
    fn login(&self) -> Result<Login, StartError> {
        let authorizer: Arc<dyn Authorizer> = Arc::new(self.accounts.authorizer());
        Ok(Login::with_cost(authorizer, self.accounts.key().clone(), &random()?, self.accounts.cost()))
    }

    fn endpoint(
        &self,
        served: &Arc<MultiService>,
        context: &HostContext,
        configured: &Configured,
    ) -> Result<Endpoint, StartError> {
        let before = (Arc::clone(self.gate), Arc::clone(self.sessions));
        let endpoint = Endpoint::with_gate(self.login()?, Arc::clone(served), context.clone(), self.limits, before);
        endpoint.set_proxies(configured.proxies.clone());
        Ok(endpoint)
    }

    fn doors(
        &self,
        services: &Arc<MultiService>,
        context: &HostContext,
        (configured, opened): (&Configured, &[Opened]),
        options: &Options,
    ) -> Result<Arc<Doors>, StartError> {
        let around = Surroundings {
            services: Arc::downgrade(services) as Weak<_>,
            login: self.login()?,
            accounts: Some(Arc::clone(self.accounts)),
            gate: Arc::clone(self.gate),
            sessions: Arc::clone(self.sessions),
            router: Arc::clone(&context.router),
            memory: Arc::clone(&context.memory),
            certificates: configured.certificates.clone(),
            limits: self.limits,
        };
        let shared = opened.iter().filter(|door| door.shared);
        let shared = shared.map(|door| Ok((door.settings.clone(), door.socket.try_clone()?)));
        let shared = shared.collect::<std::io::Result<Vec<_>>>()?;
        let of_services = configured.of_services.clone();
        Doors::beside(shared, around, of_services, &options.inherited).map_err(StartError::Section)
    }
}
