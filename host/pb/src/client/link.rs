//! What passes between a connection's handles, which anybody has, and the task that drives it.

use std::any::Any;
use std::collections::HashMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use zeroize::Zeroizing;

use super::error::Error;
use crate::Failure;

/// The most bytes of a copy's changes that wait until its owner has read it.
const UNREAD_CHANGES: usize = 4 << 20;

/// The handles' end. The connection lives for as long as anybody has one.
#[derive(Debug, Clone)]
pub(super) struct Link {
    pub(super) commands: mpsc::UnboundedSender<Command>,
    pub(super) flow: Arc<Flow>,
}

/// How much may be under way.
#[derive(Debug)]
pub(super) struct Flow {
    /// Calls that wait for an answer.
    pub(super) calls: Arc<Semaphore>,
    /// Bytes of arguments: of calls that wait for an answer, and of those that have yet to be written.
    bytes: Arc<Semaphore>,
    most: usize,
    /// Why the connection has ended.
    ended: OnceLock<String>,
}

/// The room that one call takes.
#[derive(Debug)]
pub(super) struct Room {
    _call: Option<OwnedSemaphorePermit>,
    _bytes: OwnedSemaphorePermit,
}

impl Flow {
    pub(super) fn new(calls: usize, bytes: usize) -> Self {
        let most = bytes.clamp(1, u32::MAX as usize >> 1);
        let permits = |count: usize| Arc::new(Semaphore::new(count.clamp(1, Semaphore::MAX_PERMITS)));
        Self { calls: permits(calls), bytes: permits(most), most, ended: OnceLock::new() }
    }

    /// Waits until there is room for a call of this size. One that is larger than all there may be goes alone.
    pub(super) async fn room(&self, size: usize, answer: bool) -> Result<Room, Error> {
        let size = u32::try_from(size.clamp(1, self.most)).unwrap_or(u32::MAX);
        let closed = |_| self.not_sent();
        let bytes = Arc::clone(&self.bytes).acquire_many_owned(size).await.map_err(closed)?;
        let call = match answer {
            true => Some(Arc::clone(&self.calls).acquire_owned().await.map_err(closed)?),
            false => None,
        };
        Ok(Room { _call: call, _bytes: bytes })
    }

    /// The connection has ended: nobody waits for room any more.
    pub(super) fn end(&self, why: &str) {
        // Whoever says it first is right.
        let _ = self.ended.set(why.to_owned());
        self.calls.close();
        self.bytes.close();
    }

    /// Why the connection has ended.
    pub(super) fn why(&self) -> String {
        self.ended.get().cloned().unwrap_or_else(|| "it closed".to_owned())
    }

    pub(super) fn not_sent(&self) -> Error {
        Error::NotSent(self.why())
    }
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
        done: Option<Waiting>,
        room: Room,
    },
    /// The peer's object is given back, so many times.
    Release {
        luid: u64,
        count: u64,
    },
    /// The copy of the peer's object is given back, so many times.
    Uncopy {
        luid: u64,
        count: u64,
    },
    /// An object of ours, by its number from now on.
    Register {
        number: u64,
        object: Arc<dyn Serve>,
    },
    /// Nobody here has a handle to this object of ours any more.
    Forget {
        number: u64,
    },
    Reply {
        request: u64,
        result: Result<Made, Failure>,
    },
    /// A cached object of ours has changed: whoever has a copy is told.
    Change {
        number: u64,
        words: Words,
        room: Room,
    },
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
}

/// A value of ours, written down, and what must not be dropped before it has gone: it may refer to that.
pub(super) struct Made {
    pub(super) bytes: Vec<u8>,
    pub(super) _keep: Box<dyn Any + Send>,
}

/// A value of the peer's, and what it refers to.
#[derive(Debug, Default)]
pub(super) struct Came {
    pub(super) bytes: Vec<u8>,
    /// The peer's objects, by their numbers in the value.
    pub(super) remotes: HashMap<u64, Held>,
    /// Our own, which come home.
    pub(super) locals: HashMap<u64, Local>,
    /// The peer's objects that we have a copy of.
    pub(super) copies: HashMap<u64, HeldCopy>,
}

/// A call by the peer.
#[derive(Debug)]
pub(super) struct Asked {
    /// The connection that it came by.
    pub(super) link: Link,
    pub(super) method: String,
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
        self.link.tell(Command::Uncopy { luid: self.luid, count: self.count });
    }
}

/// A copy of an object of the peer's.
#[derive(Debug)]
pub(super) struct CopyCell {
    copy: Mutex<CopyState>,
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
pub(super) struct Typed {
    pub(super) value: Arc<dyn Any + Send + Sync>,
    pub(super) change: fn(&(dyn Any + Send + Sync), Asked) -> Result<(), Failure>,
}

impl std::fmt::Debug for Typed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Typed")
    }
}

#[derive(Debug)]
enum CopyState {
    /// Nobody has said what type it is of; what has changed since it came.
    Unread(Vec<Asked>, usize),
    Read(Typed),
    /// More had changed than was kept.
    Missed,
}

impl Default for CopyCell {
    fn default() -> Self {
        Self { copy: Mutex::new(CopyState::Unread(Vec::new(), 0)), news: watch::Sender::new(News::Changed(0)) }
    }
}

impl CopyCell {
    fn lock(&self) -> MutexGuard<'_, CopyState> {
        // Whoever panicked has left it whole: a change is contained below.
        self.copy.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The peer's object has changed.
    pub(super) fn change(&self, asked: Asked) -> Result<(), Failure> {
        let mut state = self.lock();
        let changed = match &mut *state {
            CopyState::Unread(changes, size) => {
                *size += asked.method.len() + asked.arguments.bytes.len() + asked.keywords.bytes.len() + 64;
                if *size > UNREAD_CHANGES {
                    *state = CopyState::Missed;
                } else {
                    changes.push(asked);
                }
                Ok(())
            }
            CopyState::Read(typed) => (typed.change)(&*typed.value, asked),
            CopyState::Missed => Ok(()),
        };
        drop(state);
        self.news.send_modify(|news| {
            if let News::Changed(count) = news {
                *count += 1;
            }
        });
        changed
    }

    /// The value of a copy whose type is known from now on, with all that has changed since it came: `made` makes it of what
    /// came, if this is the first time that it is read. `None`: it has missed changes, or its state did not come here.
    pub(super) fn typed(&self, made: Option<Typed>) -> Option<Arc<dyn Any + Send + Sync>> {
        let mut state = self.lock();
        if let CopyState::Unread(changes, _) = &mut *state {
            let typed = made?;
            for change in std::mem::take(changes) {
                // Whoever told of it wants no answer any more.
                let _ = (typed.change)(&*typed.value, change);
            }
            *state = CopyState::Read(typed);
        }
        match &*state {
            CopyState::Read(typed) => Some(Arc::clone(&typed.value)),
            _ => None,
        }
    }
}
