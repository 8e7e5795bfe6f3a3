//! A host, put together: a home folder, its identities, its services, its doors.

use std::net::{SocketAddr, ToSocketAddrs};
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use crate::config::{AccountError, Accounts, Home, HomeError, Lock, random};
use crate::control::{self, Failed, LibraryStatus, Request};
use crate::cred::Authorizer;
use crate::cred::login::Login;
use crate::folder::{self, Folder, Group};
use crate::loader::vet::Vet;
use crate::loader::watch::Watch;
use crate::multiservice::MultiService;
use crate::multiservice::slot::Surroundings;
use crate::multiservice::switchboard::Switchboard;
use crate::session::{AuthRoot, Door, Limits};
use crate::store::MemoryStore;

/// This very program, also when its file has been replaced since it was started.
const SELF: &str = "/proc/self/exe";

/// How a host is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to serve PB, instead of what the home's configuration says.
    pub listen: Option<String>,
    /// Serve in the clear where others can listen, whatever the configuration says.
    pub plaintext: bool,
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
        "{0} can be reached by others, and PB in the clear lets them listen; serve on 127.0.0.1, or insist with --plaintext"
    )]
    Plaintext(SocketAddr),
    #[error(transparent)]
    Io(#[from] std::io::Error),
    #[error("{0}")]
    Section(String),
}

/// A host that serves.
pub struct Host {
    home: Home,
    _lock: Lock,
    accounts: Arc<Accounts>,
    services: Arc<MultiService>,
    folder: Rc<Folder>,
    door: Door,
    /// Of collections that have a door of their own.
    others: Vec<Door>,
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
        let lock = home.lock()?;
        let (accounts, settings) = Accounts::open(&home)?;
        let accounts = Arc::new(accounts);
        let surroundings = Surroundings { store: Arc::new(MemoryStore::new()), switchboard: Switchboard::new() };
        let services = MultiService::new("pb");
        let patience = std::time::Duration::from_secs(settings.plugins.patience.max(1));
        let vet = Vet::new(options.vetter.clone().unwrap_or_else(|| PathBuf::from(SELF)), patience);
        let sections = folder::sections(&settings).map_err(StartError::Section)?;

        let address = options.listen.as_deref().unwrap_or(&settings.pb.listen);
        let listener = listen(address, options.plaintext || settings.pb.plaintext)?;
        let authorizer: Arc<dyn Authorizer> = Arc::clone(accounts.authorizer()) as Arc<_>;
        let mut groups = Vec::new();
        let mut more = Vec::new();
        for (name, section) in &settings.multiservice {
            let group = MultiService::new(name.clone());
            // It has no services yet, whose names could be taken.
            let _ = services.add_collection(Arc::clone(&group));
            if let Some(address) = &section.listen {
                more.push((listen(address, options.plaintext || settings.pb.plaintext)?, Arc::clone(&group)));
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
        let serve = |served: &Arc<MultiService>| -> Result<AuthRoot, StartError> {
            let login = Login::new(Arc::clone(&authorizer), accounts.key().clone(), &random()?);
            Ok(AuthRoot::new(login, Arc::clone(served), surroundings.clone(), Limits::default()))
        };
        let root = serve(served)?;
        let mut roots = Vec::new();
        for (listener, group) in more {
            roots.push((listener, serve(&group)?));
        }

        let folder = Folder::new(&home, Arc::clone(&services), groups, surroundings.clone(), sections, vet)?;
        let mut watch = Watch::new(&home.plugins());
        services.start().await;
        folder.load_all(watch.present()).await;
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let door = root.listen_on(listener, threads)?;
        let mut others = Vec::new();
        for (listener, root) in roots {
            let door = root.listen_on(listener, threads)?;
            tracing::info!("serving some services on {}", door.address());
            others.push(door);
        }
        let host = Self { home, _lock: lock, accounts, services, folder, door, others };
        Ok((Rc::new(host), watch))
    }

    /// Serves commands and watches the folder, until `stop`; then closes the door, lets calls end, and stops the
    /// services. On a `LocalSet`.
    pub async fn run(self: Rc<Self>, mut watch: Watch, stop: impl Future<Output = ()>) {
        let (control, me) = (self.home.control(), Rc::clone(&self));
        let commands = control::serve(&control, move |request| Rc::clone(&me).answer(request));
        let folder = async {
            loop {
                for change in watch.next().await {
                    self.folder.changed(change);
                }
            }
        };
        tokio::select! {
            result = commands => if let Err(error) = result {
                tracing::error!(%error, "commands cannot be served");
            },
            () = folder => {}
            () = stop => {}
        }
        tracing::info!("stopping");
        // Connections live on threads of their own; so do the services that their calls wait for.
        self.door.close();
        self.others.iter().for_each(Door::close);
        self.services.stop().await;
        let _ = std::fs::remove_file(self.home.control());
    }

    /// Where PB is served.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.door.address()
    }

    /// The folder that libraries are dropped into.
    #[must_use]
    pub fn plugins(&self) -> PathBuf {
        self.home.plugins()
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
        self.folder.libraries()
    }

    async fn answer(self: Rc<Self>, request: Request) -> Result<serde_json::Value, Failed> {
        let failed = |error| Failed { error, hint: Some("`credhost service list` shows what there is".to_owned()) };
        match &request {
            Request::ServiceStop { name } => {
                return self.folder.stop(name).await.map(|()| serde_json::Value::Null).map_err(failed);
            }
            Request::ServiceStart { name } => {
                return self.folder.start_again(name).await.map(|()| serde_json::Value::Null).map_err(failed);
            }
            Request::ServiceRollback { name } => {
                return self.folder.rollback(name).await.map(|()| serde_json::Value::Null).map_err(failed);
            }
            Request::ServiceWhy { name } => {
                let held: Vec<String> = self.folder.why(name).iter().map(|ended| ended.account.to_string()).collect();
                return Ok(serde_json::json!({ "held": held, "retired": self.folder.retired() }));
            }
            _ => {}
        }
        let libraries = self.libraries();
        let (accounts, services) = (Arc::clone(&self.accounts), Arc::clone(&self.services));
        let done =
            tokio::task::spawn_blocking(move || control::perform(&request, &accounts, Some((&services, &libraries))));
        done.await.unwrap_or_else(|_| {
            Err(Failed { error: "a fault of the host's own; please report it".to_owned(), hint: None })
        })
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
    Ok(listener)
}
