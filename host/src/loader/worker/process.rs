//! A worker, as the host has it: a process, and the thread that talks to it.

use std::io::{self, BufRead, BufReader, Read};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::thread::Builder;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal};

use super::confinement::Confinement;
use super::link::{Ending, Link};
use super::owed::{Told, refused};
use super::pid::Process;
use super::{Setup, WORD};
use crate::loader::exit::ended;
use crate::loader::gate::{Gate, Outlet};
use crate::loader::own_folder::OwnFolder;
use crate::loader::private::PrivateCopy;

/// How long a worker that has sent its last frame may take to end.
const GONE: Duration = Duration::from_secs(5);
/// The most bytes of its standard error in one line of the log.
const LINE: u64 = 2_000;
/// How long a worker that has closed its socket may take to end.
const CLOSED: Duration = Duration::from_millis(500);

/// What a worker runs, and how; another can be started from it.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The program that calls [`super::child`] when its first argument is [`WORD`].
    pub program: PathBuf,
    /// The private copy of the library.
    pub copy: Arc<PrivateCopy>,
    /// The file that it was copied from, which has the names of its functions.
    pub file: PathBuf,
    /// How it is confined.
    pub confinement: Confinement,
}

impl Worker {
    /// The thread's work: starts the process, moves its messages, and stands in for it when it has died.
    pub(crate) fn run(&self, link: &Link, theirs: OwnedFd, gate: &Gate, outlet: &Arc<dyn Outlet>, process: &Process) {
        let (outlet, says) = (&**outlet, Arc::clone(outlet));
        let folder = match OwnFolder::beside(self.copy.path()) {
            Ok(folder) => folder,
            Err(error) => return outlet.frames(&refused(&format!("no folder of its own can be made for it: {error}"))),
        };
        let mut child = match self.start(link, theirs, folder.path(), process, says) {
            Ok(child) => child,
            Err(error) => return outlet.frames(&refused(&format!("no process can be started for it: {error}"))),
        };
        let mut crash = Vec::new();
        let ending = link.serve(gate, outlet, &mut crash);
        if link.has_stopped() && matches!(ending, Ending::Closed) {
            link.over(gate);
            let _ = reap(&mut child, process, GONE);
            return;
        }
        if let Ending::Malformed(wrong) = &ending {
            process.kill(&format!("sent {wrong}, and was killed"));
        }
        // Its socket closes before the process is gone.
        let status = reap(&mut child, process, if process.killed().is_some() { Duration::ZERO } else { CLOSED });
        let how = died(status, process.killed());
        link.died(gate, outlet, &format!("the service {how}; it is not known whether the call was carried out"));
        if link.told() == Told::Nothing {
            outlet.crashed(&how, &place(&crash));
        }
        link.stand_in(gate, outlet);
    }

    fn start(
        &self,
        link: &Link,
        theirs: OwnedFd,
        folder: &Path,
        process: &Process,
        says: Arc<dyn Outlet>,
    ) -> io::Result<Child> {
        let mut child = Command::new(&self.program)
            .arg(WORD)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| may_be_known(name)))
            .env("TMPDIR", folder)
            .env(ARENAS.0, ARENAS.1)
            .current_dir(folder)
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .process_group(0)
            .spawn()?;
        let begun = self.begin(&mut child, link, folder, process, says);
        if let Err(error) = begun {
            let _ = child.kill();
            let _ = child.wait();
            return Err(error);
        }
        Ok(child)
    }

    fn begin(
        &self,
        child: &mut Child,
        link: &Link,
        folder: &Path,
        process: &Process,
        says: Arc<dyn Outlet>,
    ) -> io::Result<()> {
        if let Some(stderr) = child.stderr.take() {
            Builder::new().name("worker-says".to_owned()).spawn(move || hear(stderr, &*says))?;
        }
        process.is(child.id())?;
        let (copy, confinement) = (self.copy.path().to_owned(), self.confinement.clone());
        let setup = Setup { copy, host: std::process::id(), folder: folder.to_owned(), confinement };
        link.set_up(&serde_json::to_vec(&setup)?)
    }
}

/// Writes a worker's standard error to its service's log, line by line.
fn hear(stderr: ChildStderr, outlet: &dyn Outlet) {
    let mut stderr = BufReader::new(stderr);
    loop {
        let mut line = Vec::new();
        // A line ends at the limit, even one without an end.
        match (&mut stderr).take(LINE).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => outlet.log(3, "stderr", String::from_utf8_lossy(&line).trim_end()),
        }
    }
}

/// Where it crashed, as far as it reports that.
fn place(crash: &[u8]) -> Vec<u64> {
    crash.chunks_exact(8).filter_map(|at| at.try_into().ok().map(u64::from_le_bytes)).take(64).collect()
}

/// Keeps the system's allocator from reserving more than a process in a sandbox may map.
pub(crate) const ARENAS: (&str, &str) = ("MALLOC_ARENA_MAX", "2");

/// Whether a worker may have this environment variable of the host's: no secret is passed on by accident.
pub(crate) fn may_be_known(name: &std::ffi::OsStr) -> bool {
    const KNOWN: [&str; 9] =
        ["PATH", "LANG", "TZ", "RUST_BACKTRACE", "RUST_LOG", "LD_LIBRARY_PATH", "HOME", "USER", "LLVM_PROFILE_FILE"];
    name.to_str().is_some_and(|name| KNOWN.contains(&name) || name.starts_with("LC_"))
}

/// Waits until it has ended, but no longer than `patience`. Then it is killed, with everything that it has started.
fn reap(child: &mut Child, process: &Process, patience: Duration) -> io::Result<ExitStatus> {
    if let Some(handle) = process.handle() {
        let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        // It is readable when the process has ended. If that takes too long, it is killed below.
        let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&patience));
    }
    // Its process id is its own until it is waited for.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        // It leads its own group. If all of that has ended, there is nothing to kill.
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
    }
    let _ = child.kill();
    child.wait()
}

/// How a worker has died, as the rest of a sentence.
fn died(status: io::Result<ExitStatus>, killed: Option<&String>) -> String {
    match (killed, status) {
        (Some(why), _) => why.clone(),
        (None, Ok(status)) if status.signal().is_some() => ended(status).replace("crashes", "crashed"),
        (None, Ok(status)) => ended(status).replace("ends the process", "ended its process"),
        (None, Err(error)) => format!("ended, and the system does not say how: {error}"),
    }
}

/// A pair of sockets: the host's end, and the worker's.
pub(crate) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours.into(), theirs.into()))
}
