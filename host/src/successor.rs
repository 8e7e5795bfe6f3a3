//! A program that takes over from a host in the same process, by `exec`: the sockets that listen stay open, so that nobody is
//! refused who connects meanwhile.
//!
//! They are passed on as systemd passes sockets (sd_listen_fds(3)): from descriptor 3 on, counted by `LISTEN_FDS`. What each is for
//! stands in [`NAMES`], a list of texts in JSON.

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

/// The environment variable with the names of what is passed on.
const NAMES: &str = "CREDHOST_SOCKETS";
/// The environment variable that says why this program was started once more, and not the other.
const FAILED: &str = "CREDHOST_NOT_TAKEN_OVER";
/// The first descriptor that is passed on.
const FIRST: i32 = 3;

/// What takes over when a host has ended.
#[derive(Debug)]
pub struct Successor {
    /// The program.
    pub program: PathBuf,
    /// What it is started with.
    pub words: Vec<OsString>,
    /// Sockets that listen, by what they are for.
    pub sockets: Vec<(String, OwnedFd)>,
}

impl Successor {
    /// Becomes this program. Comes back only where that cannot be; then this very program can still be started once more:
    /// [`Successor::once_more`].
    #[must_use]
    pub fn exec(&self) -> io::Error {
        self.become_program(&self.program, None)
    }

    /// Becomes this very program again, whatever has become of its file. Comes back only where that cannot be.
    #[must_use]
    pub fn once_more(&self, why: &io::Error) -> io::Error {
        let why = format!("{} cannot be started: {why}", self.program.display());
        self.become_program(Path::new("/proc/self/exe"), Some(why))
    }

    fn become_program(&self, program: &Path, failed: Option<String>) -> io::Error {
        let mut command = Command::new(program);
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
        let (mut mappings, mut child) = (Vec::new(), FIRST);
        let beyond = FIRST + i32::try_from(names.len()).map_err(io::Error::other)?;
        for (_, socket) in &self.sockets {
            // Out of the way of those numbers: where the program cannot be started, this one still has what it had.
            let parent_fd = rustix::io::fcntl_dupfd_cloexec(socket, beyond)?;
            mappings.push(FdMapping { parent_fd, child_fd: child });
            child += 1;
        }
        command.fd_mappings(mappings).map(|_| ()).map_err(io::Error::other)
    }
}

/// Why this program was started once more, if the one that was to take over could not be.
#[must_use]
pub fn not_taken_over() -> Option<String> {
    std::env::var(FAILED).ok()
}

/// A socket that listens.
#[derive(Debug)]
pub enum Open {
    /// For TCP.
    Tcp(TcpListener),
    /// In a file.
    Unix(UnixListener),
}

/// Sockets that a host before this one has opened. Clones have the same.
#[derive(Debug, Clone, Default)]
pub struct Inherited(Arc<Mutex<Vec<(String, Open)>>>);

impl Inherited {
    /// What this process was given; nothing, if no host was here before.
    #[must_use]
    pub fn from_environment() -> Self {
        let names: Vec<String> =
            std::env::var(NAMES).ok().and_then(|names| serde_json::from_str(&names).ok()).unwrap_or_default();
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

    /// The socket that has this name; or, for settings that have been written anew, one that listens on one of these addresses.
    #[must_use]
    pub fn tcp(&self, name: &str, addresses: &[SocketAddr]) -> Option<TcpListener> {
        let mut all = self.0.lock();
        let is = |open: &Open| matches!(open, Open::Tcp(_));
        let there = |open: &Open| matches!(open, Open::Tcp(socket) if socket.local_addr().is_ok_and(|at| addresses.contains(&at)));
        let by_name = all.iter().position(|(known, open)| known == name && is(open));
        let found = by_name.or_else(|| all.iter().position(|(_, open)| there(open)))?;
        match all.swap_remove(found).1 {
            Open::Tcp(listener) => Some(listener),
            Open::Unix(_) => None,
        }
    }

    /// The socket that has this name, of whatever kind.
    #[must_use]
    pub fn any(&self, name: &str) -> Option<Open> {
        let mut all = self.0.lock();
        let found = all.iter().position(|(known, _)| known == name)?;
        Some(all.swap_remove(found).1)
    }

    /// Closes what nobody has asked for; answers with what it was for.
    #[must_use]
    pub fn close_rest(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock()).into_iter().map(|(name, _)| name).collect()
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

    #[test]
    fn a_socket_is_had_once_by_its_name_or_else_by_where_it_listens() {
        let ((first, at_first), (second, at_second)) = (listener(), listener());
        let folder = tempfile::tempdir().unwrap();
        let unix = UnixListener::bind(folder.path().join("socket")).unwrap();
        let named = [("pb", Open::Tcp(first)), ("door", Open::Tcp(second)), ("local", Open::Unix(unix))];
        let all = Inherited(Arc::new(Mutex::new(named.map(|(name, open)| (name.to_owned(), open)).into())));
        let at = |listener: Option<TcpListener>| listener.map(|listener| listener.local_addr().unwrap());
        assert_eq!(at(all.tcp("local", &[])), None, "of another kind");
        assert_eq!(at(all.tcp("pb", &[at_second])), Some(at_first), "the name goes before the address");
        assert_eq!(at(all.tcp("pb", &[at_first])), None, "once");
        assert_eq!(at(all.tcp("renamed", &[at_first, at_second])), Some(at_second));
        assert!(matches!(all.any("local"), Some(Open::Unix(_))) && all.any("local").is_none());
        assert_eq!(all.close_rest(), Vec::<String>::new());
    }

    #[test]
    fn what_nobody_asks_for_is_closed() {
        let (socket, address) = listener();
        let all = Inherited(Arc::new(Mutex::new(vec![("old".to_owned(), Open::Tcp(socket))])));
        assert_eq!(all.clone().close_rest(), ["old"]);
        TcpListener::bind(address).unwrap();
    }
}
