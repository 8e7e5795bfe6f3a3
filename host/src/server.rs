//! A host, put together: a home folder, its identities, its services, its doors.

use std::collections::BTreeMap;
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use parking_lot::Mutex;

use crate::config::{AccountError, Accounts, Home, HomeError, Lock, Settings, random};
use crate::control::{self, Failed, LibraryStatus, Request};
use crate::cred::login::Login;
use crate::loader::generation::Source;
use crate::loader::private::PrivateFolder;
use crate::loader::watch::{Change, Watch};
use crate::multiservice::slot::{Slot, State, Surroundings};
use crate::multiservice::switchboard::Switchboard;
use crate::multiservice::{MultiService, NotAdded};
use crate::session::{AuthRoot, Door, Limits};
use crate::store::MemoryStore;

/// How a host is started.
#[derive(Debug, Clone, Default)]
pub struct Options {
    /// Where to serve PB, instead of what the home's configuration says.
    pub listen: Option<String>,
    /// Serve in the clear where others can listen, whatever the configuration says.
    pub plaintext: bool,
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
}

/// What became of a file in the folder of services.
#[derive(Debug)]
enum Library {
    Loaded { slot: Arc<Slot>, note: Option<String> },
    Refused(String),
}

/// A host that serves.
pub struct Host {
    home: Home,
    _lock: Lock,
    accounts: Arc<Accounts>,
    services: Arc<MultiService>,
    surroundings: Surroundings,
    settings: Settings,
    libraries: Mutex<BTreeMap<PathBuf, Library>>,
    private: Arc<PrivateFolder>,
    door: Door,
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
        let private = Arc::new(PrivateFolder::new(home.private())?);

        let address = options.listen.as_deref().unwrap_or(&settings.pb.listen);
        let listener = listen(address, options.plaintext || settings.pb.plaintext)?;
        let authorizer = Arc::clone(accounts.authorizer()) as Arc<_>;
        let login = Login::new(authorizer, accounts.key().clone(), &random()?);
        let root = AuthRoot::new(login, Arc::clone(&services), surroundings.clone(), Limits::default());

        let mut watch = Watch::new(&home.plugins());
        services.start().await;
        let mut libraries = BTreeMap::new();
        for path in watch.present() {
            let library = load(&private, &services, &surroundings, &settings, &libraries, &path).await;
            libraries.insert(path, library);
        }
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        let door = root.listen_on(listener, threads)?;
        let host = Self {
            home,
            _lock: lock,
            accounts,
            services,
            surroundings,
            settings,
            libraries: Mutex::new(libraries),
            private,
            door,
        };
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
                    self.changed(change).await;
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
        self.libraries.lock().iter().map(|(path, library)| status(path, library)).collect()
    }

    async fn answer(self: Rc<Self>, request: Request) -> Result<serde_json::Value, Failed> {
        let libraries = self.libraries();
        let (accounts, services) = (Arc::clone(&self.accounts), Arc::clone(&self.services));
        let done =
            tokio::task::spawn_blocking(move || control::perform(&request, &accounts, Some((&services, &libraries))));
        done.await.unwrap_or_else(|_| {
            Err(Failed { error: "a fault of the host's own; please report it".to_owned(), hint: None })
        })
    }

    async fn changed(&self, change: Change) {
        match change {
            Change::Came(path) => {
                let file = shown(&path);
                let mut replaced = false;
                if let Some(Library::Loaded { slot, note }) = self.libraries.lock().get_mut(&path) {
                    replaced = true;
                    *note = Some("the file has changed; restart the host to serve it".to_owned());
                    tracing::warn!(service = slot.name().as_str(), "{file} has changed; restart the host to serve it");
                }
                if replaced {
                    return;
                }
                let known = std::mem::take(&mut *self.libraries.lock());
                let library =
                    load(&self.private, &self.services, &self.surroundings, &self.settings, &known, &path).await;
                let mut libraries = self.libraries.lock();
                *libraries = known;
                libraries.insert(path, library);
            }
            Change::Gone(path) => {
                let file = shown(&path);
                let mut libraries = self.libraries.lock();
                match libraries.get_mut(&path) {
                    Some(Library::Loaded { slot, note }) => {
                        *note = Some("the file is gone; it serves until the host stops".to_owned());
                        tracing::warn!(
                            service = slot.name().as_str(),
                            "{file} is gone; its service goes on until the host stops"
                        );
                    }
                    _ => {
                        libraries.remove(&path);
                    }
                }
            }
        }
    }
}

fn shown(path: &Path) -> String {
    path.file_name().map_or_else(String::new, |name| name.to_string_lossy().into_owned())
}

fn status(path: &Path, library: &Library) -> LibraryStatus {
    let file = shown(path);
    match library {
        Library::Refused(why) => {
            LibraryStatus { file, service: None, state: format!("refused: {why}"), note: None, calls: 0, faults: 0 }
        }
        Library::Loaded { slot, note } => LibraryStatus {
            file,
            service: Some(slot.name().to_string()),
            state: match slot.state() {
                State::Serving => "serving".to_owned(),
                State::Loaded => "starting".to_owned(),
                State::Failed(why) => format!("failed: {why}"),
                State::Stopped => "stopped".to_owned(),
            },
            note: note.clone(),
            calls: slot.calls(),
            faults: slot.faults(),
        },
    }
}

async fn load(
    private: &Arc<PrivateFolder>,
    services: &MultiService,
    surroundings: &Surroundings,
    settings: &Settings,
    known: &BTreeMap<PathBuf, Library>,
    path: &Path,
) -> Library {
    let file = shown(path);
    match try_load(private, services, surroundings, settings, known, path).await {
        Ok(slot) => {
            tracing::info!(service = slot.name().as_str(), "{file} serves");
            Library::Loaded { slot, note: None }
        }
        Err(why) => {
            tracing::error!("{file} is not loaded: {why}");
            Library::Refused(why)
        }
    }
}

async fn try_load(
    private: &Arc<PrivateFolder>,
    services: &MultiService,
    surroundings: &Surroundings,
    settings: &Settings,
    known: &BTreeMap<PathBuf, Library>,
    path: &Path,
) -> Result<Arc<Slot>, String> {
    let (folder, source) = (Arc::clone(private), path.to_owned());
    let copy = tokio::task::spawn_blocking(move || folder.copy(&source)).await.map_err(|error| error.to_string())??;
    let section = |name: &str| match settings.service.get(name) {
        Some(table) => jelly::to_vec(table)
            .map_err(|error| format!("[service.{name}] in credhost.toml cannot be handed to it: {error}")),
        None => Ok(Vec::new()),
    };
    let slot = Slot::load(Source::Copy(copy), surroundings, section).await.map_err(|error| error.to_string())?;
    match services.add(Arc::clone(&slot)).await {
        Ok(()) => Ok(slot),
        Err(NotAdded::NameTaken(taken)) => {
            slot.stop().await;
            let other = known.iter().find_map(|(path, library)| match library {
                Library::Loaded { slot, .. } if slot.name().as_str() == taken.0 => Some(shown(path)),
                _ => None,
            });
            let other = other.map_or_else(|| "another".to_owned(), |file| format!("the file {file}"));
            Err(format!("its service {} is served by {other} already; remove one of the two", taken.0))
        }
        Err(error) => Err(error.to_string()),
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
