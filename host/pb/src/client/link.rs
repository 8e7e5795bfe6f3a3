//! What passes between a connection's handles, which anybody has, and the task that drives it.

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

/// The most bytes of changes that wait, of one connection, until their copies are read; and what each counts for beside its own.
const UNREAD_CHANGES: usize = 4 << 20;
/// See [`UNREAD_CHANGES`].
const CHANGE: usize = 1 << 10;

/// The handles' end. The connection lives for as long as anybody has one.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) flow: Arc<Flow>,
}

/// The driver's end of it: it keeps no connection alive.
#[derive(Debug, Clone)]
pub(super) struct WeakLink {
    pub(super) commands: mpsc::WeakUnboundedSender<Command>,
    pub(super) flow: Arc<Flow>,
}

impl WeakLink {
    /// `None`: nobody uses the connection any more.
    pub(super) fn upgrade(&self) -> Option<Link> {
        Some(Link { commands: self.commands.upgrade()?, flow: Arc::clone(&self.flow) })
    }
}

impl Link {
    /// Says something that needs no room. On a connection that has ended, nobody hears it.
    pub(super) fn tell(&self, command: Command) {
        let _ = self.commands.send(command);
    }
}

/// Who waits for an answer.
pub(super) type Waiting = oneshot::Sender<Result<Came, Error>>;

/// What the driver is asked for.
pub(super) enum Command {
    Call {
        target: Option<u64>,
        words: Words,
        /// Who waits for the answer, and the room that it takes meanwhile.
        done: Option<(Waiting, Room)>,
        bytes: Option<Bytes>,
    },
    /// The peer's object is given back, so many times.
    Release { luid: u64, count: u64 },
    /// The copy of the peer's object is given back, so many times.
    Uncopy { luid: u64, count: u64 },
    /// An object of ours, by its number from now on.
    Register { number: u64, object: Arc<dyn Serve> },
    /// Nobody here has a handle to this object of ours any more.
    Forget { number: u64 },
    /// `room`: that of the call, of those that the peer may have under way.
    Reply { request: u64, result: Result<Made, Failure>, room: OwnedSemaphorePermit },
    /// The state of a cached object of ours is another from now on; whoever has a copy is told by this call.
    Change { number: u64, state: Vec<u8>, told: Option<(Words, Bytes)> },
}

impl std::fmt::Debug for Command {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Command")
    }
}

/// A method, and what it is given: a tuple and a dictionary, in Jelly, with references by our own numbers.
pub(super) struct Words {
    pub(super) method: String,
    pub(super) arguments: Zeroizing<Vec<u8>>,
    pub(super) keywords: Zeroizing<Vec<u8>>,
    /// There is a password in it.
    pub(super) secret: bool,
    /// The objects in it, in their order; so many of them are in the arguments.
    pub(super) objects: Objects,
    pub(super) middle: usize,
}

/// Objects that were written, in their order. A value has no others in it: an untyped one has numbers alone, which may be another
/// connection's.
pub(super) type Objects = Vec<Object>;

/// One of them: what kind of reference it is, and its number.
pub(super) type Object = (RefKind, u64);

/// A value of ours that has yet to be written down. It may refer to objects, which must not be dropped before it has gone.
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
    /// Whose connection a value is written down for, and the objects in it so far: they have numbers that are good on their own
    /// connection alone.
    static WRITING: RefCell<Vec<(*const Flow, Objects)>> = const { RefCell::new(Vec::new()) };
}

/// Says for whose connection a value is written down, meanwhile.
pub(super) struct Writing;

impl Writing {
    pub(super) fn for_this(flow: &Arc<Flow>) -> Self {
        WRITING.with_borrow_mut(|writing| writing.push((Arc::as_ptr(flow), Vec::new())));
        Self
    }

    /// The objects that were written so far.
    pub(super) fn objects(&self) -> Objects {
        WRITING
            .with_borrow_mut(|writing| writing.last_mut().map(|(_, objects)| std::mem::take(objects)))
            .unwrap_or_default()
    }

    /// Whether an object of this connection's may be written just now; it is taken note of.
    pub(super) fn admits<E: serde::ser::Error>(flow: &Arc<Flow>, kind: RefKind, number: u64) -> Result<(), E> {
        WRITING.with_borrow_mut(|writing| match writing.last_mut() {
            Some((now, objects)) if *now == Arc::as_ptr(flow) => {
                objects.push((kind, number));
                Ok(())
            }
            Some(_) => Err(E::custom("an object of another connection's has no meaning here")),
            None => Err(E::custom("an object can be sent in calls and answers only")),
        })
    }
}

impl Drop for Writing {
    fn drop(&mut self) {
        WRITING.with_borrow_mut(Vec::pop);
    }
}

/// A value of the peer's, and what it refers to.
#[derive(Default)]
pub(super) struct Came {
    pub(super) bytes: Vec<u8>,
    /// The peer's objects, by their numbers in the value.
    pub(super) remotes: HashMap<u64, Held>,
    /// Our own, which come home.
    pub(super) locals: HashMap<u64, Local>,
    /// The peer's objects that we have a copy of.
    pub(super) copies: HashMap<u64, HeldCopy>,
}

impl std::fmt::Debug for Came {
    /// What somebody has said is nobody else's to read in a log.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Came({} bytes)", self.bytes.len())
    }
}

/// A call by the peer.
#[derive(Debug)]
pub(super) struct Asked {
    /// The connection that it came by.
    pub(super) link: Link,
    pub(super) method: String,
    /// Whether the peer wants an answer.
    pub(super) answer: bool,
    pub(super) arguments: Came,
    pub(super) keywords: Came,
}

/// An object of the peer's, for as long as it is held here.
#[derive(Debug)]
pub(super) struct Held {
    pub(super) link: Link,
    /// `None`: the root, which is not counted.
    pub(super) luid: Option<u64>,
    /// How many times it has come.
    pub(super) count: u64,
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Some(luid) = self.luid {
            self.link.tell(Command::Release { luid, count: self.count });
        }
    }
}

/// An object of ours, to be sent in a call or an answer. Clones are the same object. The other side can call it for as long as
/// it holds it, also when all clones here have been dropped.
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

/// Two are equal if they are the same object.
impl PartialEq for Local {
    fn eq(&self, other: &Self) -> bool {
        self.cell.number == other.cell.number
    }
}

impl Eq for Local {}

/// What an object of ours answers with, one day.
pub(super) type Serving = Pin<Box<dyn Future<Output = Result<Made, Failure>> + Send>>;

/// An object of ours.
pub(super) trait Serve: Send + Sync {
    /// Serves a call. Runs on the connection's task until it waits for something.
    fn serve(&self, asked: Asked) -> Serving;
}

/// A copy of an object of the peer's, for as long as it is held here.
#[derive(Debug)]
pub(super) struct HeldCopy {
    pub(super) link: Link,
    pub(super) luid: u64,
    pub(super) count: u64,
    pub(super) cell: Arc<CopyCell>,
}

impl Drop for HeldCopy {
    fn drop(&mut self) {
        // Before the driver hears of it.
        self.cell.held.fetch_sub(1, Ordering::SeqCst);
        self.link.tell(Command::Uncopy { luid: self.luid, count: self.count });
    }
}

/// A copy of an object of the peer's.
#[derive(Debug)]
pub(super) struct CopyCell {
    state: Mutex<CopyState>,
    /// Locked while it is read the first time; by which thread.
    reading: Mutex<()>,
    reader: Mutex<Option<ThreadId>>,
    /// How many [`HeldCopy`]s there are of it.
    pub(super) held: AtomicUsize,
    flow: Arc<Flow>,
    pub(super) news: watch::Sender<News>,
}

/// What has become of a copy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum News {
    /// It has changed so many times.
    Changed(u64),
    /// It changes no more.
    Ended,
}

/// A copy with its type: the value (`Arc<Mutex<T>>`), and how it takes a change.
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
    /// Nobody has said what type it is of.
    Unread(Unread),
    Read(Typed),
    /// More had changed than was kept, or nobody has had it meanwhile.
    Missed,
}

/// What there is of a copy that was not read yet.
#[derive(Default)]
struct Unread {
    /// As it came, with its type and its number; nothing, if that was too much.
    state: Arc<[u8]>,
    /// What has changed since.
    changes: Vec<Asked>,
    /// How many bytes that counts for.
    counted: usize,
}

impl std::fmt::Debug for Unread {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Unread({} changes)", self.changes.len())
    }
}

impl CopyCell {
    /// One whose state has come: `("type" number state)`, if there are no objects in it; nothing, if it is not known.
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
            // Half of the room is for changes: what came can also be read from its answer.
            let fits = flow.unread_changes.load(Ordering::Relaxed) + state.len() <= UNREAD_CHANGES / 2;
            if let (CopyState::Unread(unread), true) = (unread, fits) {
                cell.counts(unread, state.len());
                unread.state = state.into();
            }
        });
        cell
    }

    /// Counts what is kept until it is read; false: that is too much.
    fn counts(&self, unread: &mut Unread, size: usize) -> bool {
        unread.counted += size;
        self.flow.unread_changes.fetch_add(size, Ordering::Relaxed) + size <= UNREAD_CHANGES
    }

    /// Its state as it came, if nobody has read it.
    pub(super) fn unread(&self) -> Option<Arc<[u8]>> {
        self.with(|state| match state {
            CopyState::Unread(unread) if !unread.state.is_empty() => Some(Arc::clone(&unread.state)),
            _ => None,
        })
    }

    /// Nothing of others' runs while it is locked.
    fn with<R>(&self, then: impl FnOnce(&mut CopyState) -> R) -> R {
        then(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The peer's object has changed.
    pub(super) fn change(&self, asked: Asked) -> Result<(), Failure> {
        let size = CHANGE + asked.method.len() + asked.arguments.bytes.len() + asked.keywords.bytes.len();
        let typed = self.with(|state| match state {
            CopyState::Unread(unread) => {
                // One with copies in it would keep them, and itself, for ever.
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
        // Further up on this thread it is being read: what changes it reads it.
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
            // Unlocked: it is an author's code, which does not panic here: see `change`.
            for change in changes {
                // Whoever told of it wants no answer any more.
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
