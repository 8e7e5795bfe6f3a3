//! The channel between a connection's handles and the task that drives it.

use std::cell::RefCell;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::ThreadId;

use jelly::RefKind;
use serde::Serialize;
use tokio::sync::{OwnedSemaphorePermit, mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::error::Error;
use super::flow::{Bytes, Flow, Room};
use crate::Failure;

/// The most bytes of queued changes per connection, of copies that were not read yet.
const UNREAD_CHANGES: usize = 4 << 20;
/// What each queued change counts for in addition to its own bytes.
const CHANGE: usize = 1 << 10;

/// A handle's end. The connection stays open while one exists.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) flow: Arc<Flow>,
}

/// The driver's end. It does not keep the connection open.
#[derive(Debug, Clone)]
pub(super) struct WeakLink {
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
    pub(super) flow: Arc<Flow>,
}

impl WeakLink {
    /// `None`: the last handle was dropped.
    pub(super) fn upgrade(&self) -> Option<Link> {
        Some(Link { commands: self.commands.upgrade()?, flow: Arc::clone(&self.flow) })
    }
}

impl Link {
    /// Sends a command that needs no room. It is ignored after the connection has ended.
    pub(super) fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// The sender for a call's answer.
pub(super) type Waiting = oneshot::Sender<Result<Came, Error>>;

/// A command for the driver.
pub(super) enum Command {
    Call {
        target: Option<u64>,
        words: Words,
        /// The sender for the answer, and the room that the call occupies meanwhile.
        done: Option<(Waiting, Room)>,
        bytes: Option<Bytes>,
    },
    /// Gives back the peer's object, `count` times.
    Release { luid: u64, count: u64 },
    /// Gives back the copy of the peer's object, `count` times.
    Uncopy { luid: u64, count: u64 },
    /// Registers a local object under this number.
    Register { number: u64, object: Arc<dyn Serve> },
    /// Removes one local handle to this local object.
    Forget { number: u64 },
    /// Answers a call. `room` is its share of the limit on the peer's calls.
    Reply { request: u64, result: Result<Made, Failure>, room: OwnedSemaphorePermit },
    /// Sets the state of a local cached object. `told` is the call that announces the change to the peer's copy.
    Change { number: u64, state: Vec<u8>, told: Option<(Words, Bytes)> },
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// A method and its arguments: a tuple and a dictionary in Jelly. References are local numbers.
pub(super) struct Words {
    pub(super) method: String,
    pub(super) arguments: Zeroizing<Vec<u8>>,
    pub(super) keywords: Zeroizing<Vec<u8>>,
    /// The arguments contain a password.
    pub(super) secret: bool,
    /// Its objects, in order. The first `middle` of them are in the arguments.
    pub(super) objects: Objects,
    pub(super) middle: usize,
}

/// The objects that were written into a value, in order. The value must refer to no others: an untyped value holds only numbers,
/// which may belong to another connection.
pub(super) type Objects = Vec<Object>;

/// An object in a value: the kind of reference, and its number.
pub(super) type Object = (RefKind, u64);

/// A local value that is not encoded yet. It may refer to objects, which must not be dropped before it is sent.
pub(super) type Made = Box<dyn Write + Send>;

/// See [`Made`].
pub(super) trait Write {
    fn write(&self) -> Result<Vec<u8>, jelly::Error>;
}

impl<T: Serialize> Write for T {
    fn write(&self) -> Result<Vec<u8>, jelly::Error> {
        jelly::to_vec(self)
    }
}

thread_local! {
    /// The connections that values are being encoded for, each with the objects written so far. An object's number is valid on
    /// its own connection only.
    static WRITING: RefCell<Vec<(*const Flow, Objects)>> = const { RefCell::new(Vec::new()) };
}

/// Sets the connection that values are encoded for, while it exists.
pub(super) struct Writing;

impl Writing {
    pub(super) fn for_this(flow: &Arc<Flow>) -> Self {
        WRITING.with_borrow_mut(|writing| writing.push((Arc::as_ptr(flow), Vec::new())));
        Self
    }

    /// Takes the objects that were written so far.
    pub(super) fn objects(&self) -> Objects {
        WRITING
            .with_borrow_mut(|writing| writing.last_mut().map(|(_, objects)| std::mem::take(objects)))
            .unwrap_or_default()
    }

    /// Checks that an object of this connection may be written now, and records it.
    pub(super) fn admits<E: serde::ser::Error>(flow: &Arc<Flow>, kind: RefKind, number: u64) -> Result<(), E> {
        WRITING.with_borrow_mut(|writing| match writing.last_mut() {
            Some((now, objects)) if *now == Arc::as_ptr(flow) => {
                objects.push((kind, number));
                Ok(())
            }
            Some(_) => Err(E::custom("the object belongs to another connection")),
            None => Err(E::custom("an object can be sent only in calls and answers")),
        })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITING.with_borrow_mut(Vec::pop);
    }
}

/// A value from the peer, with the objects that it refers to.
#[derive(Default)]
pub(super) struct Came {
    pub(super) bytes: Vec<u8>,
    /// The peer's objects, by their numbers in the value.
    pub(super) remotes: HashMap<u64, Held>,
    /// Local objects that were sent back.
    pub(super) locals: HashMap<u64, Local>,
    /// Copies of the peer's objects.
    pub(super) copies: HashMap<u64, HeldCopy>,
}

impl std::fmt::Debug for Came {
    /// Without the contents, which do not belong in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Came({} bytes)", self.bytes.len())
    }
}

/// A call by the peer.
#[derive(Debug)]
pub(super) struct Asked {
    /// The connection that it arrived on.
    pub(super) link: Link,
    pub(super) method: String,
    /// Whether the peer wants an answer.
    pub(super) answer: bool,
    pub(super) arguments: Came,
    pub(super) keywords: Came,
}

/// An object of the peer. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) link: Link,
    /// `None`: the root, which is not counted.
    pub(super) luid: Option<u64>,
    /// How often it was received.
    pub(super) count: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(luid) = self.luid {
            self.link.tell(Command::Release { luid, count: self.count });
        }
    }
}

/// A local object, to be sent in a call or an answer. Clones are the same object. The other side can call it for as long as it
/// holds it, even after all local clones have been dropped.
#[derive(Debug, Clone)]
pub struct Local {
    pub(super) cell: Arc<LocalCell>,
}

#[derive(Debug)]
pub(super) struct LocalCell {
    pub(super) link: Link,
    pub(super) number: u64,
}

impl Drop for LocalCell {
    fn drop(&mut self) {
        self.link.tell(Command::Forget { number: self.number });
    }
}

/// Equal if they are the same object.
impl PartialEq for Local {
    fn eq(&self, other: &Self) -> bool {
        self.cell.number == other.cell.number
    }
}

impl Eq for Local {}

/// The future of a local object's answer.
pub(super) type Serving = Pin<Box<dyn Future<Output = Result<Made, Failure>> + Send>>;

/// A local object.
pub(super) trait Serve: Send + Sync {
    /// Serves a call. Runs on the connection's task until it waits for something.
    fn serve(&self, asked: Asked) -> Serving;
}

/// A copy of an object of the peer. It is given back when this is dropped.
#[derive(Debug)]
pub(super) struct HeldCopy {
    pub(super) link: Link,
    pub(super) luid: u64,
    pub(super) count: u64,
    pub(super) cell: Arc<CopyCell>,
}

impl Drop for HeldCopy {
    fn drop(&mut self) {
        // Before the driver receives the command.
        self.cell.held.fetch_sub(1, Ordering::SeqCst);
        self.link.tell(Command::Uncopy { luid: self.luid, count: self.count });
    }
}

/// A copy of an object of the peer.
#[derive(Debug)]
pub(super) struct CopyCell {
    state: Mutex<CopyState>,
    /// Locked during the first read. `reader` is the thread that reads.
    reading: Mutex<()>,
    reader: Mutex<Option<ThreadId>>,
    /// The number of [`HeldCopy`]s of it.
    pub(super) held: AtomicUsize,
    flow: Arc<Flow>,
    pub(super) news: watch::Sender<News>,
}

/// What has happened to a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// The number of changes so far.
    Changed(u64),
    /// It changes no more.
    Ended,
}

/// A copy with its type: the value (`Arc<Mutex<T>>`), and the function that applies a change.
#[derive(Clone)]
pub(super) struct Typed {
    pub(super) value: Arc<dyn std::any::Any + Send + Sync>,
    pub(super) change: fn(&(dyn std::any::Any + Send + Sync), Asked) -> Result<(), Failure>,
}

impl std::fmt::Debug for Typed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Typed")
    }
}

#[derive(Debug)]
enum CopyState {
    /// It was not read yet, so its type is not known.
    Unread(Unread),
    Read(Typed),
    /// It has missed changes: too many were queued, or no handle was left meanwhile.
    Missed,
}

/// The data of a copy that was not read yet.
#[derive(Default)]
struct Unread {
    /// As received, with its type and number; empty if it is not kept.
    state: Arc<[u8]>,
    /// The changes since then.
    changes: Vec<Asked>,
    /// The number of bytes counted for it.
    counted: usize,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unread({} changes)", self.changes.len())
    }
}

impl CopyCell {
    /// A new copy. `state` is `("type" number state)` if it contains no objects; empty if it is not known.
    pub(super) fn new(flow: &Arc<Flow>, state: &[u8]) -> Self {
        let cell = Self {
            state: Mutex::new(CopyState::Unread(Unread::default())),
            reading: Mutex::default(),
            reader: Mutex::default(),
            held: AtomicUsize::new(0),
            flow: Arc::clone(flow),
            news: watch::Sender::new(News::Changed(0)),
        };
        cell.with(|unread| {
            // Half of the limit is reserved for changes. The state can also be read from the answer that it came with.
            let fits = flow.unread_changes.load(Ordering::Relaxed) + state.len() <= UNREAD_CHANGES / 2;
            if let (CopyState::Unread(unread), true) = (unread, fits) {
                cell.counts(unread, state.len());
                unread.state = state.into();
            }
        });
        cell
    }

    /// Counts bytes that are kept until the copy is read. Returns false if they exceed the limit.
    fn counts(&self, unread: &mut Unread, size: usize) -> bool {
        unread.counted += size;
        self.flow.unread_changes.fetch_add(size, Ordering::Relaxed) + size <= UNREAD_CHANGES
    }

    /// Its state as received, if nobody has read it yet.
    pub(super) fn unread(&self) -> Option<Arc<[u8]>> {
        self.with(|state| match state {
            CopyState::Unread(unread) if !unread.state.is_empty() => Some(Arc::clone(&unread.state)),
            _ => None,
        })
    }

    /// No foreign code runs while it is locked.
    fn with<R>(&self, then: impl FnOnce(&mut CopyState) -> R) -> R {
        then(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Applies or queues a change of the peer's object.
    pub(super) fn change(&self, asked: Asked) -> Result<(), Failure> {
        let size = CHANGE + asked.method.len() + asked.arguments.bytes.len() + asked.keywords.bytes.len();
        let typed = self.with(|state| match state {
            CopyState::Unread(unread) => {
                // A change that contains copies would keep them, and itself, alive forever.
                let whole = asked.arguments.copies.is_empty() && asked.keywords.copies.is_empty();
                if self.counts(unread, size) && whole {
                    unread.changes.push(asked);
                } else {
                    self.forget(state);
                }
                None
            }
            CopyState::Read(typed) => Some((typed.clone(), asked)),
            CopyState::Missed => None,
        });
        let changed = typed.map_or(Ok(()), |(typed, asked)| (typed.change)(&*typed.value, asked));
        self.news.send_modify(|news| {
            if let News::Changed(count) = news {
                *count += 1;
            }
        });
        changed
    }

    /// Drops the changes that wait, because no handle is left to read them.
    pub(super) fn let_go(&self) {
        self.with(|state| self.forget(state));
    }

    fn forget(&self, state: &mut CopyState) {
        if let CopyState::Unread(unread) = state {
            self.flow.unread_changes.fetch_sub(unread.counted, Ordering::Relaxed);
            *state = CopyState::Missed;
        }
    }

    /// The copy's value, with all changes applied. The first reader passes in `made`, the value that it has decoded. `None`: the copy
    /// has missed changes, its state has not been decoded, or this thread is decoding it further up.
    pub(super) fn typed(&self, made: Option<Typed>) -> Option<Arc<dyn std::any::Any + Send + Sync>> {
        let here = Some(std::thread::current().id());
        let reader = || self.reader.lock().unwrap_or_else(PoisonError::into_inner);
        // Whether this thread is reading it further up: the code of a change may read it.
        let within = *reader() == here;
        let _reading = (!within).then(|| self.reading.lock().unwrap_or_else(PoisonError::into_inner));
        let reads = made.filter(|_| !within);
        while let Some(typed) = &reads {
            *reader() = here;
            let changes = self.with(|state| match state {
                CopyState::Unread(unread) => {
                    let changes = std::mem::take(&mut unread.changes);
                    if changes.is_empty() {
                        self.flow.unread_changes.fetch_sub(unread.counted, Ordering::Relaxed);
                        *state = CopyState::Read(typed.clone());
                    }
                    changes
                }
                _ => Vec::new(),
            });
            if changes.is_empty() {
                *reader() = None;
                break;
            }
            // The lock is released while the author's code runs. That code does not panic here: see `change`.
            for change in changes {
                // The sender of the change wants no answer any more.
                let _ = (typed.change)(&*typed.value, change);
            }
        }
        self.with(|state| match state {
            CopyState::Read(typed) => Some(Arc::clone(&typed.value)),
            _ => None,
        })
    }
}

impl Drop for CopyCell {
    fn drop(&mut self) {
        self.let_go();
    }
}
