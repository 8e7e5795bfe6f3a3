//! One loaded library, or one service linked into this program, on a thread of its own.
//!
//! A library's code runs on no other thread of the host: a library that blocks, spins or panics stalls only itself, and what it
//! leaves in its thread ends with the thread.

use std::mem::ManuallyDrop;
use std::sync::Arc;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;

use parking_lot::Mutex;
use plugin_api::Service;
use plugin_api::abi::export::linked;
use plugin_api::abi::frame::ToLibrary;
use plugin_api::abi::import::{Library, Place};
use plugin_api::abi::types::ModuleRef;

use super::gate::{Full, Gate, Lane, Outlet, host};
use super::library::{self, OpenLibrary};
use super::private::PrivateCopy;
use super::unload::{UnloadOutcome, unload};
use super::worker::link::Link;
use super::worker::owed::refused;
use super::worker::{self, Facts, Process, Worker};

/// Where a generation's code comes from.
pub enum Source {
    /// The private copy of a library.
    Copy(PrivateCopy),
    /// A service that is linked into this program.
    Linked(Linked),
    /// A library that runs in a process of its own.
    Worker(Worker),
}

/// A service that is linked into this program.
#[derive(Clone, Copy)]
pub struct Linked(ModuleRef);

impl Linked {
    /// The service `S`.
    #[must_use]
    pub fn new<S: Service>() -> Self {
        Self(linked::<S>())
    }
}

impl std::fmt::Debug for Linked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Linked")
    }
}

/// A generation, from its first frame to its last.
#[derive(Debug)]
pub struct Generation {
    gate: Arc<Gate>,
    place: RunsIn,
}

/// Where a generation runs.
#[derive(Debug)]
enum RunsIn {
    /// On a thread of this process.
    Thread(Mutex<Option<JoinHandle<Option<Left>>>>),
    /// In a process of its own. This thread talks to it.
    Worker { worker: Worker, process: Arc<Process>, link: Arc<Link>, thread: Mutex<Option<JoinHandle<()>>> },
}

/// What a thread leaves. It is not dropped: if a thread was given up and returns after all, its library must not be closed
/// without an account.
type Left = ManuallyDrop<(OpenLibrary, Option<Place>)>;

impl Generation {
    /// Starts the thread. The generation's frames go to `outlet`: first its manifest, or the reason why there is none.
    ///
    /// # Errors
    /// If the machine has no thread or descriptor left.
    pub fn start(source: Source, outlet: Arc<dyn Outlet>) -> std::io::Result<Self> {
        let source = match source {
            Source::Worker(worker) => return Self::start_worker(worker, outlet),
            source => source,
        };
        let gate = Gate::new(Arc::clone(&outlet))?;
        let own = Arc::clone(&gate);
        let thread = Builder::new().name("service".to_owned()).spawn(move || match source {
            Source::Linked(Linked(module)) => {
                match Library::of(module) {
                    Ok(library) => library.run(host(), own.number()),
                    Err(wrong) => outlet.frames(&refused(&wrong.message)),
                }
                None
            }
            Source::Copy(copy) => match library::open(copy.path()) {
                Ok(mut open) => {
                    open.owned = copy.opened();
                    open.library.run(host(), own.number());
                    let place = Place::new();
                    let place = open.library.hand_over(&place).then_some(place);
                    Some(ManuallyDrop::new((open, place)))
                }
                Err(fault) => {
                    outlet.frames(&refused(&fault.to_string()));
                    None
                }
            },
            // It was started above.
            Source::Worker(_) => None,
        })?;
        Ok(Self { gate, place: RunsIn::Thread(Mutex::new(Some(thread))) })
    }

    fn start_worker(of: Worker, outlet: Arc<dyn Outlet>) -> std::io::Result<Self> {
        let (ours, theirs) = worker::sockets()?;
        let process = Arc::new(Process::default());
        let link = Link::new(ours, Arc::clone(&process))?;
        let gate = Gate::of_worker(Arc::clone(&link) as Arc<_>, Arc::clone(&outlet));
        let (own, of_link, of_process, running) =
            (Arc::clone(&gate), Arc::clone(&link), Arc::clone(&process), of.clone());
        // The process is started on a thread that lives as long as it does: it dies with that thread, so also when the host
        // dies.
        let thread = Builder::new()
            .name("worker".to_owned())
            .spawn(move || running.run(&of_link, theirs, &own, &outlet, &of_process))?;
        Ok(Self { gate, place: RunsIn::Worker { worker: of, process, link, thread: Mutex::new(Some(thread)) } })
    }

    /// What it runs, if it has a process of its own. Another one like it can be started from this.
    #[must_use]
    pub fn worker(&self) -> Option<&Worker> {
        match &self.place {
            RunsIn::Worker { worker, .. } => Some(worker),
            RunsIn::Thread(_) => None,
        }
    }

    /// What the system reports of its process, if it has one of its own.
    #[must_use]
    pub fn facts(&self) -> Option<Facts> {
        match &self.place {
            RunsIn::Worker { process, .. } => process.facts(),
            RunsIn::Thread(_) => None,
        }
    }

    /// Kills its process, if it has one of its own, as if that had crashed. Returns false if it has none.
    pub fn kill(&self, why: &str) -> bool {
        let RunsIn::Worker { process, .. } = &self.place else { return false };
        process.kill(why);
        true
    }

    /// For how long it has been busy with its last batch, and with which methods that may be. `None` if for less than `long`.
    #[must_use]
    pub fn busy_for(&self, long: Duration) -> Option<(Duration, Vec<String>)> {
        self.gate.busy_for(long)
    }

    /// The calls that its process was not given before it died, with their lanes. They now belong to another generation.
    #[must_use]
    pub fn left(&self) -> Vec<(Lane, Vec<u8>)> {
        match &self.place {
            RunsIn::Worker { link, .. } => link.left(&self.gate),
            RunsIn::Thread(_) => Vec::new(),
        }
    }

    /// Hands whole frames of a connection to it.
    ///
    /// # Errors
    /// If it does not keep up.
    pub fn push(&self, lane: &Lane, frames: &[u8]) -> Result<(), Full> {
        self.gate.push(lane, frames)
    }

    /// Hands over frames that must not be lost, however much waits: they are small, and end what others began.
    pub fn push_anyway(&self, lane: &Lane, frames: &[u8]) {
        self.gate.push_anyway(lane, frames);
    }

    /// Hands over the host's own frames: ahead of all calls that wait.
    pub fn push_host(&self, frames: &[u8]) {
        self.gate.push_host(frames);
    }

    /// Calls by these attachments that wait must not begin. `barred`: only those ahead of a freeze, if one waits.
    pub fn revoke(&self, attachments: &[u64], barred: bool) {
        let mut frames = Vec::new();
        attachments.iter().for_each(|attachment| ToLibrary::Revoke { attachment: *attachment }.write(&mut frames));
        if !frames.is_empty() {
            self.gate.push_ahead(&frames, barred);
        }
    }

    /// Hands over one frame of the host: ahead of all calls that wait.
    pub fn send(&self, frame: &ToLibrary<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.gate.push_host(&bytes);
    }

    /// Hands over one frame behind everything that waits: a freeze or a stop.
    pub fn send_last(&self, frame: &ToLibrary<'_>) {
        let mut bytes = Vec::new();
        frame.write(&mut bytes);
        self.gate.push_last(&bytes);
    }

    /// Joins its thread, which has reported that it has stopped, and unloads its library. It blocks: do not call it on a thread
    /// that serves.
    pub fn join(&self) -> UnloadOutcome {
        let thread = match &self.place {
            RunsIn::Worker { thread, .. } => {
                // A panic there is the host's own fault and is in the log. The process has ended with its socket.
                let ended = thread.lock().take().map(JoinHandle::join);
                return if ended.is_some() { UnloadOutcome::Retired { left: 0 } } else { UnloadOutcome::Nothing };
            }
            RunsIn::Thread(thread) => thread,
        };
        let Some(thread) = thread.lock().take() else {
            return UnloadOutcome::Nothing;
        };
        let account = match thread.join() {
            Ok(Some(left)) => {
                let (open, place) = ManuallyDrop::into_inner(left);
                unload(open, place)
            }
            Ok(None) => UnloadOutcome::Nothing,
            Err(_) => UnloadOutcome::Condemned,
        };
        if matches!(account, UnloadOutcome::Pinned(_) | UnloadOutcome::Condemned) {
            // A library that stays mapped may still call its gate.
            self.gate.give_up();
            std::mem::forget(Arc::clone(&self.gate));
        }
        account
    }

    /// Gives up on a thread that does not return: the thread and its library stay for as long as the process lives. A process
    /// of its own is killed.
    pub fn condemn(&self) -> UnloadOutcome {
        let thread = match &self.place {
            RunsIn::Worker { process, .. } => {
                process.kill("did not stop in time, and was killed");
                // Nothing of it is in this process.
                return UnloadOutcome::Retired { left: 0 };
            }
            RunsIn::Thread(thread) => thread,
        };
        if let Some(thread) = thread.lock().take() {
            self.gate.give_up();
            std::mem::forget(Arc::clone(&self.gate));
            drop(thread);
        }
        UnloadOutcome::Condemned
    }
}
