//! A program that takes over from a host in the same process, by `exec`. The listening sockets stay open, so that no
//! client is refused that connects meanwhile.
//!
//! They are passed as systemd passes sockets (sd_listen_fds(3)): from descriptor 3 on, with their number in
//! `LISTEN_FDS`. `CREDHOST_SOCKETS` has the purpose of each, as a JSON list of texts.

use std::ffi::OsString;
use std::io;
use std::net::{SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use command_fds::{CommandFdExt, FdMapping};
use parking_lot::Mutex;

/// The environment variable with the names of the passed sockets.
const NAMES: &str = "CREDHOST_SOCKETS";
/// The environment variable with the reason why this program was restarted instead of the other one.
const FAILED: &str = "CREDHOST_NOT_TAKEN_OVER";
/// The environment variable with the previous version, which this one replaces.
const BEFORE: &str = "CREDHOST_BEFORE";
/// systemd's variable with the names of its sockets, and the prefix of these names here.
const OF_SYSTEMD: (&str, &str) = ("LISTEN_FDNAMES", "systemd:");
/// The first descriptor of the passed sockets.
const FIRST: i32 = 3;

/// The program that takes over when a host has ended.
#[derive(Debug)]
pub struct Successor {
    program: PathBuf,
    words: Vec<OsString>,
    /// Listening sockets, with their names. None of their descriptors is one at which the successor expects a socket
    /// (from [`FIRST`] on).
    sockets: Vec<(String, OwnedFd)>,
}

impl Successor {
    /// Creates a successor from this program, its arguments, and these sockets with their names.
    ///
    /// # Errors
    /// If no more descriptors are available.
    pub fn new(program: PathBuf, words: Vec<OsString>, sockets: Vec<(String, OwnedFd)>) -> io::Result<Self> {
        // `exec` first copies the sockets to the numbers from FIRST on, and then may fail. The originals must not have such numbers:
        // the copies would overwrite them.
        let beyond = FIRST + i32::try_from(sockets.len()).map_err(io::Error::other)?;
        let moved =
            sockets.into_iter().map(|(name, socket)| Ok((name, rustix::io::fcntl_dupfd_cloexec(socket, beyond)?)));
        Ok(Self { program, words, sockets: moved.collect::<io::Result<_>>()? })
    }

    /// Replaces this program by the other. Returns only if that fails; then [`Successor::once_more`] is possible.
    #[must_use]
    pub fn exec(&self) -> io::Error {
        self.become_program(&self.program, None)
    }

    /// The program.
    #[must_use]
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Restarts this program, even if its file was replaced. Returns only if that fails.
    #[must_use]
    pub fn once_more(&self, why: &io::Error) -> io::Error {
        let why = format!("{} cannot be started: {why}", self.program.display());
        self.become_program(Path::new("/proc/self/exe"), Some(why))
    }

    fn become_program(&self, program: &Path, failed: Option<String>) -> io::Error {
        let mut command = Command::new(program);
        command.env(BEFORE, concat!("credhost ", env!("CARGO_PKG_VERSION")));
        command.args(&self.words).env_remove("LISTEN_FDNAMES").env_remove(FAILED);
        command.envs(failed.map(|why| (FAILED, why)));
        match self.pass_on(&mut command) {
            Ok(()) => command.exec(),
            Err(error) => error,
        }
    }

    fn pass_on(&self, command: &mut Command) -> io::Result<()> {
        let names: Vec<&str> = self.sockets.iter().map(|(name, _)| name.as_str()).collect();
        command.env(NAMES, serde_json::to_string(&names)?);
        command.env("LISTEN_FDS", names.len().to_string()).env("LISTEN_PID", std::process::id().to_string());
        let beyond = FIRST + i32::try_from(names.len()).map_err(io::Error::other)?;
        let mut mappings = Vec::new();
        for (child_fd, (_, socket)) in (FIRST..).zip(&self.sockets) {
            mappings.push(FdMapping { parent_fd: rustix::io::fcntl_dupfd_cloexec(socket, beyond)?, child_fd });
        }
        command.fd_mappings(mappings).map(|_| ()).map_err(io::Error::other)
    }
}

/// The result of the upgrade that started this process.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TakenOver {
    /// This program took over from that version.
    From(String),
    /// The other program could not be started, for this reason, and this one was started again.
    Not(String),
}

impl TakenOver {
    /// Reads the result from the environment. `None` if no upgrade started this process.
    #[must_use]
    pub fn from_environment() -> Option<Self> {
        let failed = std::env::var(FAILED).ok().map(Self::Not);
        failed.or_else(|| std::env::var(BEFORE).ok().map(Self::From))
    }
}

/// A listening socket.
#[derive(Debug)]
pub enum Open {
    /// A TCP socket.
    Tcp(TcpListener),
    /// A Unix socket, in a file.
    Unix(UnixListener),
}

/// Sockets that a previous host has opened. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Inherited(Arc<Mutex<Vec<(String, Open)>>>);

impl Inherited {
    /// Takes the sockets that this process was given, by a previous host or by systemd.
    #[must_use]
    pub fn from_environment() -> Self {
        let passed = std::env::var(NAMES).ok().and_then(|names| serde_json::from_str::<Vec<String>>(&names).ok());
        let (of_systemd, prefix) = OF_SYSTEMD;
        let given = || {
            let names = std::env::var(of_systemd).unwrap_or_default();
            names.split(':').filter(|name| !name.is_empty()).map(|name| format!("{prefix}{name}")).collect()
        };
        let names: Vec<String> = passed.filter(|names| !names.is_empty()).unwrap_or_else(given);
        if names.is_empty() {
            return Self::default();
        }
        let mut given = listenfd::ListenFd::from_env();
        let mut all = Vec::new();
        for (index, name) in names.into_iter().enumerate() {
            let open = match given.take_tcp_listener(index) {
                Ok(Some(listener)) => Some(Open::Tcp(listener)),
                Ok(None) => None,
                Err(_) => given.take_unix_listener(index).ok().flatten().map(Open::Unix),
            };
            all.extend(open.map(|open| (name, open)));
        }
        Self(Arc::new(Mutex::new(all)))
    }

    /// Takes the wanted socket.
    #[must_use]
    pub fn take(&self, wanted: &Wanted<'_>) -> Option<Open> {
        let mut all = self.0.lock();
        let found = wanted.among(&all)?;
        Some(all.swap_remove(found).1)
    }

    /// Takes the wanted socket, if it is a TCP socket.
    #[must_use]
    pub fn take_tcp(&self, wanted: &Wanted<'_>) -> Option<TcpListener> {
        match self.take(wanted)? {
            Open::Tcp(listener) => Some(listener),
            Open::Unix(_) => None,
        }
    }

    /// Closes the sockets that are not wanted, so that their addresses are free. Returns their names. systemd's sockets
    /// stay open, since they cannot be opened again.
    #[must_use]
    pub fn close_others(&self, wanted: &[Wanted<'_>]) -> Vec<String> {
        let mut all = self.0.lock();
        let (mut kept, mut closed) = (Vec::new(), Vec::new());
        for one in wanted {
            if let Some(found) = one.among(&all) {
                kept.push(all.swap_remove(found));
            }
        }
        for (name, open) in all.drain(..) {
            if name.starts_with(OF_SYSTEMD.1) { kept.push((name, open)) } else { closed.push(name) }
        }
        *all = kept;
        closed
    }

    /// Duplicates the remaining sockets, for the next host.
    ///
    /// # Errors
    /// If no more descriptors are available.
    pub fn rest(&self) -> io::Result<Vec<(String, OwnedFd)>> {
        let all = self.0.lock();
        let copy = |open: &Open| match open {
            Open::Tcp(listener) => listener.try_clone().map(OwnedFd::from),
            Open::Unix(listener) => listener.try_clone().map(OwnedFd::from),
        };
        all.iter().map(|(name, open)| Ok((name.clone(), copy(open)?))).collect()
    }

    /// The names of systemd's sockets that nothing has taken.
    #[must_use]
    pub fn of_systemd(&self) -> Vec<String> {
        let all = self.0.lock();
        all.iter().filter_map(|(name, _)| Some(name.strip_prefix(OF_SYSTEMD.1)?.to_owned())).collect()
    }
}

/// The purpose of a wanted socket.
#[derive(Debug, Clone, Copy)]
pub enum Wanted<'a> {
    /// To listen on one of these addresses. If one of them has port 0, a socket with this name matches whatever its address.
    Tcp(&'a str, &'a [SocketAddr]),
    /// To listen at this file.
    Unix(&'a Path),
    /// systemd's socket with this name.
    OfSystemd(&'a str),
}

impl Wanted<'_> {
    /// The index of the matching socket.
    fn among(&self, all: &[(String, Open)]) -> Option<usize> {
        match *self {
            Self::Tcp(name, addresses) => {
                let fits = |open: &Open| {
                    let Open::Tcp(socket) = open else { return false };
                    let fits = |at: SocketAddr| addresses.iter().any(|one| *one == at || one.port() == 0);
                    socket.local_addr().is_ok_and(fits)
                };
                let exact = |open: &Open| {
                    matches!(open, Open::Tcp(socket) if socket.local_addr().is_ok_and(|at| addresses.contains(&at)))
                };
                let by_name = all.iter().position(|(known, open)| known == name && fits(open));
                by_name.or_else(|| all.iter().position(|(_, open)| exact(open)))
            }
            Self::Unix(path) => all.iter().position(|(_, open)| {
                matches!(open, Open::Unix(socket) if socket.local_addr().is_ok_and(|at| at.as_pathname() == Some(path)))
            }),
            Self::OfSystemd(name) => all.iter().position(|(known, _)| known.strip_prefix(OF_SYSTEMD.1) == Some(name)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn listener() -> (TcpListener, SocketAddr) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        (listener, address)
    }

    fn inherited(all: Vec<(&str, Open)>) -> Inherited {
        Inherited(Arc::new(Mutex::new(all.into_iter().map(|(name, open)| (name.to_owned(), open)).collect())))
    }

    #[test]
    fn a_socket_is_taken_once_by_its_name_or_else_by_its_address() {
        let ((first, at_first), (second, at_second)) = (listener(), listener());
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("socket");
        let unix = UnixListener::bind(&path).unwrap();
        let all = inherited(vec![("pb", Open::Tcp(first)), ("door", Open::Tcp(second)), ("local", Open::Unix(unix))]);
        let any_port: [SocketAddr; 1] = ["127.0.0.1:0".parse().unwrap()];
        let at = |name: &str, addresses: &[SocketAddr]| {
            all.take_tcp(&Wanted::Tcp(name, addresses)).map(|listener| listener.local_addr().unwrap())
        };
        assert_eq!(at("local", &any_port), None, "of another kind");
        assert_eq!(at("pb", &["127.0.0.1:1".parse().unwrap()]), None, "the name alone is not where it should listen");
        assert_eq!(at("pb", &any_port), Some(at_first));
        assert_eq!(at("pb", &[at_first]), None, "once");
        assert_eq!(at("renamed", &[at_first, at_second]), Some(at_second));
        assert!(all.take(&Wanted::Unix(Path::new("/elsewhere"))).is_none());
        assert!(all.take(&Wanted::Unix(&path)).is_some() && all.take(&Wanted::Unix(&path)).is_none());
    }

    #[test]
    fn unwanted_sockets_are_closed_except_those_from_systemd() {
        let ((old, at_old), (kept, at_kept), (given, at_given)) = (listener(), listener(), listener());
        let all =
            inherited(vec![("old", Open::Tcp(old)), ("kept", Open::Tcp(kept)), ("systemd:web", Open::Tcp(given))]);
        assert_eq!(all.close_others(&[Wanted::Tcp("other", &[at_kept])]), ["old"]);
        TcpListener::bind(at_old).unwrap();
        assert!(TcpListener::bind(at_kept).is_err() && TcpListener::bind(at_given).is_err());
        assert_eq!(all.of_systemd(), ["web"]);
        assert_eq!(all.rest().unwrap().len(), 2);
        assert!(all.take(&Wanted::OfSystemd("web")).is_some() && all.of_systemd().is_empty());
    }

    #[test]
    fn inherited_descriptors_avoid_the_numbers_used_to_pass_them() {
        use std::os::fd::AsRawFd;
        let sockets = (0..20).map(|number| (number.to_string(), listener().0.into())).collect();
        let successor = Successor::new("/nothing".into(), Vec::new(), sockets).unwrap();
        assert!(successor.sockets.iter().all(|(_, socket)| socket.as_raw_fd() >= FIRST + 20));
    }
}
