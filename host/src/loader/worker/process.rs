//! A worker, as the host has it: a process, and the thread that talks to it.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};

use super::confinement::Confinement;
use super::link::{Ending, Link, SAID_BESIDE};
use super::owed::Told;
use super::{Setup, WORD};
use crate::loader::gate::{Gate, Outlet};
use crate::loader::private::PrivateCopy;
use crate::loader::vet::ended;

/// How long a worker that has said its last word may take to be gone.
const GONE: Duration = Duration::from_secs(5);
/// How long one may that has closed its socket.
const CLOSED: Duration = Duration::from_millis(500);

/// What a worker runs, and how; another can be started from it.
#[derive(Debug, Clone)]
pub struct Worker {
    /// The program that calls [`super::child`] when its first argument is [`WORD`].
    pub program: PathBuf,
    /// The private copy of the library.
    pub copy: Arc<PrivateCopy>,
    /// How it is kept apart.
    pub confinement: Confinement,
    /// The largest state that it may save, in bytes.
    pub quota: usize,
}

/// A worker's process.
#[derive(Debug, Default)]
pub(crate) struct Process {
    handle: OnceLock<(u32, OwnedFd)>,
    /// Why the host has killed it, if it has.
    killed: OnceLock<String>,
}

/// What the system says of a worker's process.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Facts {
    /// Its number.
    pub pid: u32,
    /// Its memory, in bytes.
    pub memory: u64,
    /// The processor's time that it has had, in milliseconds.
    pub cpu_ms: u64,
}

impl Process {
    /// Ends it at once; why is told to who waits for it.
    pub(crate) fn kill(&self, why: Option<&str>) {
        if let Some(why) = why {
            // The first reason counts.
            let _ = self.killed.set(why.to_owned());
        }
        if let Some((_, handle)) = self.handle.get() {
            // One that has ended is told nothing.
            let _ = pidfd_send_signal(handle, Signal::KILL);
        }
    }

    /// What the system says of it, while it lives.
    pub(crate) fn facts(&self) -> Option<Facts> {
        let (pid, _) = self.handle.get()?;
        facts(*pid)
    }
}

fn facts(pid: u32) -> Option<Facts> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // Its name is in brackets, and may have blanks.
    let fields: Vec<&str> = stat.rsplit_once(')')?.1.split_whitespace().collect();
    let number = |at: usize| fields.get(at).and_then(|field| field.parse::<u64>().ok());
    let (user, system, pages) = (number(11)?, number(12)?, number(21)?);
    let ticks = rustix::param::clock_ticks_per_second().max(1);
    let memory = pages * rustix::param::page_size() as u64;
    Some(Facts { pid, memory, cpu_ms: (user + system) * 1000 / ticks })
}

impl Worker {
    /// The thread's work: starts the process, moves what it says, and stands in for it when it has died.
    pub(crate) fn run(&self, link: &Link, theirs: OwnedFd, gate: &Gate, outlet: &dyn Outlet, process: &Process) {
        let folder = match own_folder(self.copy.path()) {
            Ok(folder) => folder,
            Err(error) => return refuse(outlet, &format!("no folder of its own can be made for it: {error}")),
        };
        let mut child = match self.start(link, theirs, folder.path(), process) {
            Ok(child) => child,
            Err(error) => return refuse(outlet, &format!("no process can be started for it: {error}")),
        };
        let (limit, mut crash) = (self.quota as u64 + SAID_BESIDE, Vec::new());
        let ending = link.serve(gate, outlet, limit, &mut crash);
        if link.has_stopped() && matches!(ending, Ending::Closed) {
            link.over(gate);
            let _ = reap(&mut child, process, GONE);
            return;
        }
        if let Ending::Malformed(wrong) = &ending {
            process.kill(Some(&format!("said {wrong}, and was killed for it")));
        }
        // Its socket is closed before it is gone.
        let status = reap(&mut child, process, if process.killed.get().is_some() { Duration::ZERO } else { CLOSED });
        let how = died(status, process.killed.get());
        link.died(outlet, &format!("the service {how}; whether the call was done is not known"));
        if link.told() == Told::Nothing {
            outlet.crashed(&how, &place(&crash));
        }
        link.stand_in(gate, outlet);
    }

    fn start(&self, link: &Link, theirs: OwnedFd, folder: &Path, process: &Process) -> io::Result<Child> {
        let child = Command::new(&self.program)
            .arg(WORD)
            .env_clear()
            .envs(std::env::vars_os().filter(|(name, _)| may_be_known(name)))
            .env("TMPDIR", folder)
            .current_dir(folder)
            .stdin(Stdio::from(theirs))
            .process_group(0)
            .spawn()?;
        if let Some(pid) = Pid::from_raw(child.id().cast_signed()) {
            let handle = pidfd_open(pid, PidfdFlags::empty())?;
            let _ = process.handle.set((child.id(), handle));
        }
        if process.killed.get().is_some() {
            // It was given up before it was there.
            process.kill(None);
        }
        let (copy, confinement) = (self.copy.path().to_owned(), self.confinement.clone());
        let setup = Setup { copy, host: std::process::id(), folder: folder.to_owned(), confinement };
        link.set_up(&serde_json::to_vec(&setup)?)?;
        Ok(child)
    }
}

/// Where it was when it crashed, as far as it says.
fn place(crash: &[u8]) -> Vec<u64> {
    crash.chunks_exact(8).filter_map(|at| at.try_into().ok().map(u64::from_le_bytes)).take(64).collect()
}

/// What of the host's surroundings a worker may know: no secret is handed on by accident.
pub(crate) fn may_be_known(name: &std::ffi::OsStr) -> bool {
    const KNOWN: [&str; 9] =
        ["PATH", "LANG", "TZ", "RUST_BACKTRACE", "RUST_LOG", "LD_LIBRARY_PATH", "HOME", "USER", "LLVM_PROFILE_FILE"];
    name.to_str().is_some_and(|name| KNOWN.contains(&name) || name.starts_with("LC_"))
}

/// A folder that nobody else has, removed when it is dropped.
struct OwnFolder(PathBuf);

impl OwnFolder {
    fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for OwnFolder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// A folder for what a worker writes, beside the copy of its library.
fn own_folder(copy: &Path) -> io::Result<OwnFolder> {
    use std::os::unix::fs::DirBuilderExt;
    use std::sync::atomic::{AtomicU64, Ordering};
    static NEXT: AtomicU64 = AtomicU64::new(1);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    let path = copy.with_extension(format!("{number}.tmp"));
    std::fs::DirBuilder::new().mode(0o700).create(&path)?;
    Ok(OwnFolder(path))
}

/// What is said of a worker that could not be started: as if it had refused to be made.
pub(crate) fn refuse(outlet: &dyn Outlet, message: &str) {
    let mut frame = Vec::new();
    plugin_api::abi::frame::ToHost::Refused { message }.write(&mut frame);
    plugin_api::abi::frame::ToHost::Stopped {}.write(&mut frame);
    outlet.frames(&frame);
}

/// Waits until it has ended, for so long; then it is ended, with all that it has started.
fn reap(child: &mut Child, process: &Process, patience: Duration) -> io::Result<ExitStatus> {
    if let Some((_, handle)) = process.handle.get() {
        let patience = Timespec { tv_sec: patience.as_secs().cast_signed(), tv_nsec: patience.subsec_nanos().into() };
        // It is readable when the process has ended; if it does not come to that, it is ended now.
        let _ = poll(&mut [PollFd::new(handle, PollFlags::IN)], Some(&patience));
    }
    // Its number is its own until it is waited for.
    if let Some(group) = Pid::from_raw(child.id().cast_signed()) {
        // It leads its own group; when all of it has ended there is nobody to tell.
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
        (None, Err(error)) => format!("is gone, and the system does not say how: {error}"),
    }
}

/// A pair of sockets: the host's end, and the worker's.
pub(crate) fn sockets() -> io::Result<(OwnedFd, OwnedFd)> {
    let (ours, theirs) = UnixStream::pair()?;
    ours.set_nonblocking(true)?;
    Ok((ours.into(), theirs.into()))
}
