//! What does not depend on the service's type: the way out to the host, calls that wait, references.

mod objects;
mod waiting;

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use jelly::{Classes, RefKind};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};

pub(crate) use self::objects::Place;
use self::objects::{Exported, Watch};
use self::waiting::Commits;
use super::Wall;
use super::copies::Copies;
use super::incoming::{Incoming, Invoked};
use crate::abi::frame::{self, ToHost};
use crate::abi::limits::ServiceLimits;
use crate::doors::{self, Login};
use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::remote::{self, Remote};
use crate::service::Callable;

thread_local! {
    /// The service that runs on this thread. Its thread is its own, so that there is one at most.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// An object of the service's that a client holds.
pub(crate) trait Object {
    fn invoke(&self, incoming: Incoming<'_>) -> Invoked;
    fn any(&self) -> &dyn Any;
    fn address(&self) -> usize;
    /// Which attachment alone has it so; 0: it is the same for all.
    fn seen_by(&self) -> u64 {
        0
    }
    /// By what it can be made again, if it can.
    fn origin(&self) -> Option<String>;
}

impl<T: Callable> Object for Handle<T> {
    fn invoke(&self, incoming: Incoming<'_>) -> Invoked {
        T::invoke(self, incoming)
    }

    fn any(&self) -> &dyn Any {
        self
    }

    fn address(&self) -> usize {
        Self::address(self)
    }

    fn origin(&self) -> Option<String> {
        Self::origin(self)
    }
}

/// The connection that a number of a call, an attachment or a client's object belongs to.
pub(crate) fn connection(number: u64) -> u32 {
    (number >> 32) as u32
}

/// A value written for a client, and the own objects in it: each is counted as handed out, once for each time.
#[derive(Debug, Default)]
pub struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// Their numbers, 8 bytes each, as frames have them.
    pub(crate) objects: Vec<u8>,
}

/// What a method has looked at, from its beginning to its end.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// A perspective that is saved after each call.
    perspective: Option<Rc<str>>,
    /// The service, which is saved so.
    service: bool,
    /// More than one perspective, or an object that is saved later or never: nobody knows what that was made from.
    elsewhere: bool,
}

type Waiting = oneshot::Sender<Result<Reply>>;

/// What a call of ours, or a wish for a state, is answered with.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    /// Whether there is a state at all; of data, whether there is more.
    pub(crate) some: bool,
    /// The version of what was asked for.
    pub(crate) version: u64,
    /// Somebody who has logged in.
    pub(crate) login: Option<Login>,
    /// A descriptor of the library's own.
    pub(crate) descriptor: Option<std::os::fd::OwnedFd>,
    /// What came with it: held until it is read.
    pub(crate) _remotes: Vec<Remote>,
}

pub(crate) struct Core {
    pub(crate) wall: Box<dyn Wall>,
    /// The service's name.
    pub(crate) service: Cell<&'static str>,
    /// Frames that have not been handed to the host yet.
    out: RefCell<Vec<u8>>,
    /// Notified when a task has written frames while the main loop slept.
    pub(crate) written: Notify,
    next: Cell<u64>,
    /// The highest number that an object of the service's was given, by this generation or one before it. Its upper
    /// half stays empty: it tells a client's object from one of the service's.
    pub(crate) numbered: Cell<u64>,
    /// Another generation serves: nothing that is saved can be changed here any more.
    pub(crate) retired: Cell<bool>,
    /// Whether the author's `start` is running just now.
    pub(crate) starting: Cell<bool>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    objects: RefCell<HashMap<u64, Exported>>,
    /// Cached objects that are to be told who observes them.
    watches: RefCell<Vec<Watch>>,
    places: RefCell<HashMap<Place, u64>>,
    remotes: RefCell<HashMap<u64, Weak<remote::RemoteCell>>>,
    /// Copies of clients' objects.
    pub(crate) copies: Copies,
    /// The perspectives that clients have, by attachment: one that comes back as an argument.
    avatars: RefCell<HashMap<u64, Rc<dyn Object>>>,
    /// By which attachment the values come that are being read just now; 0: by none.
    reading: Cell<u64>,
    /// Which classes untyped values may have instances of.
    pub(crate) classes: Cell<Classes>,
    /// Notified when an attachment has ended.
    pub(crate) left: Notify,
    /// All attachments, each connection's side by side: one of them names it.
    attached: RefCell<BTreeSet<u64>>,
    scratch: RefCell<Vec<u8>>,
    /// What the method that runs just now has looked at.
    looked: RefCell<Looked>,
    /// What is enforced in here.
    pub(crate) limits: Cell<ServiceLimits>,
    /// The perspectives that another version of the service has, and the error for whoever changes one.
    elsewhere: RefCell<HashMap<String, String>>,
    /// One transaction at a time has the service's data.
    pub(crate) data_turn: Arc<tokio::sync::Mutex<()>>,
    /// Doors of the service's own.
    pub(crate) doors: doors::Table,
    commits: Commits,
}

impl Core {
    pub(crate) fn new(wall: Box<dyn Wall>) -> Rc<Self> {
        Rc::new(Self {
            wall,
            service: Cell::new(""),
            out: RefCell::default(),
            written: Notify::new(),
            next: Cell::new(0),
            numbered: Cell::new(0),
            retired: Cell::new(false),
            starting: Cell::new(false),
            waiting: RefCell::default(),
            objects: RefCell::default(),
            watches: RefCell::default(),
            places: RefCell::default(),
            remotes: RefCell::default(),
            copies: Copies::default(),
            avatars: RefCell::default(),
            reading: Cell::new(0),
            classes: Cell::new(Classes::Any),
            left: Notify::new(),
            attached: RefCell::default(),
            scratch: RefCell::default(),
            looked: RefCell::default(),
            limits: Cell::default(),
            elsewhere: RefCell::default(),
            data_turn: Arc::default(),
            doors: doors::Table::default(),
            commits: Commits::default(),
        })
    }

    /// Says that a call, or an attachment, has failed.
    pub(crate) fn fail(&self, call: u64, fault: &Fault) {
        let (class, message, detail) = (fault.class(), fault.message(), &*fault.detail(self.service.get()));
        self.push(&ToHost::Failed { call, class, message, fault: fault.internal, detail });
    }

    pub(crate) fn current() -> Option<Rc<Self>> {
        CURRENT.with(|current| current.try_borrow().ok()?.clone())
    }

    pub(crate) fn set_current(core: Option<Rc<Self>>) {
        let before = CURRENT.with(|current| current.replace(core));
        drop(before);
    }

    /// A number of a call or a request that this generation has not used yet.
    pub(crate) fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Says something to the host, at the next occasion.
    pub(crate) fn push(&self, frame: &ToHost<'_>) {
        match frame {
            ToHost::Answer { call: to, objects, .. }
            | ToHost::Call { handle: to, objects, .. }
            | ToHost::Update { attachment: to, objects, .. } => self.gone_out(connection(*to), objects),
            ToHost::Save { .. } => self.commits.given.set(self.commits.given.get() + 1),
            _ => {}
        }
        let mut out = self.out.borrow_mut();
        if out.is_empty() {
            self.written.notify_one();
        }
        frame.write(&mut out);
    }

    /// Hands over what has been said since the last time.
    pub(crate) fn flush(&self) {
        let mut out = self.out.borrow_mut();
        if !out.is_empty() {
            self.wall.push(&out);
            out.clear();
            // A burst of large answers must not be kept for ever.
            if out.capacity() > 1 << 20 {
                out.shrink_to(1 << 16);
            }
        }
    }

    /// Hands over what has been said, if that is much: what a generation itself keeps is bounded by its largest answer.
    pub(crate) fn flush_large(&self) {
        const MUCH: usize = 256 << 10;
        if self.out.borrow().len() > MUCH {
            self.flush();
        }
    }

    /// A method begins: it has looked at nothing yet.
    pub(crate) fn looks_anew(&self) {
        self.looked.take();
    }

    /// It looks at a state that is saved after each call; the service's own has no name.
    pub(crate) fn looks_at(&self, name: &Rc<str>) {
        let mut looked = self.looked.borrow_mut();
        match &looked.perspective {
            _ if name.is_empty() => looked.service = true,
            None => looked.perspective = Some(Rc::clone(name)),
            Some(known) => looked.elsewhere |= known != name,
        }
    }

    /// It looks at anything else.
    pub(crate) fn looks_elsewhere(&self) {
        self.looked.borrow_mut().elsewhere = true;
    }

    /// Says what the answer that follows tells of, if that is known.
    pub(crate) fn tells_of(&self, call: u64) {
        let looked = self.looked.take();
        if !looked.elsewhere {
            let perspective = looked.perspective.as_deref().map(str::as_bytes);
            self.push(&ToHost::Looked { call, perspective, service: looked.service });
        }
    }

    /// Another version of the service has this perspective.
    pub(crate) fn yields(&self, perspective: &str, why: &str) {
        self.elsewhere.borrow_mut().insert(perspective.to_owned(), why.to_owned());
    }

    /// It is this one's again.
    pub(crate) fn regains(&self, perspective: &str) {
        self.elsewhere.borrow_mut().remove(perspective);
        self.push(&ToHost::Regained { perspective });
    }

    /// Whether it cannot be changed for this reason, and for no other that came since.
    pub(crate) fn is_elsewhere_for(&self, perspective: &str, why: &str) -> bool {
        self.elsewhere.borrow().get(perspective).is_some_and(|known| known == why)
    }

    /// Why this perspective cannot be changed; `None`: it can.
    pub(crate) fn is_elsewhere(&self, perspective: &str) -> Option<Fault> {
        let elsewhere = self.elsewhere.borrow();
        if elsewhere.is_empty() { None } else { elsewhere.get(perspective).map(Fault::elsewhere) }
    }

    /// Lends a buffer to write a value into.
    pub(crate) fn with_scratch<R>(&self, use_it: impl FnOnce(&mut Vec<u8>) -> R) -> R {
        let mut buffer = self.scratch.take();
        buffer.clear();
        let result = use_it(&mut buffer);
        if buffer.capacity() <= 1 << 20 {
            self.scratch.replace(buffer);
        }
        result
    }

    /// Writes a value for a client behind what is in `bytes`. The own objects in it are counted as handed out, and
    /// appended to `objects`; after an error none are.
    pub(crate) fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        bytes: &mut Vec<u8>,
        objects: &mut Vec<u8>,
    ) -> jelly::Result<()> {
        let (mut references, before, start) = (Vec::new(), objects.len(), bytes.len());
        // An author's `Serialize` may panic, and what it wrote before is counted by then.
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            jelly::write_with(bytes, value, self.classes.get(), &mut references)
        }));
        let (written, panicked) = match written {
            Ok(written) => (written, None),
            Err(panicked) => (Err(serde::ser::Error::custom("it panicked")), Some(panicked)),
        };
        for (kind, number) in references {
            let counted = match kind {
                // A client's.
                _ if number >> 32 != 0 => false,
                // Counted where it was written.
                RefKind::Remote | RefKind::Cache => true,
                // An own object that came inside an untyped value, on its way to whoever gets that.
                RefKind::Local => written.is_ok() && self.retain(number, 1),
                RefKind::Cached | RefKind::Lcache => false,
            };
            if counted {
                objects.extend_from_slice(&number.to_le_bytes());
            }
        }
        if written.is_err() {
            self.take_back(objects.get(before..).unwrap_or_default());
            objects.truncate(before);
            bytes.truncate(start);
        }
        if let Some(panicked) = panicked {
            std::panic::resume_unwind(panicked);
        }
        written
    }

    /// Reads values that have come by an attachment: the client's objects in them are known to have come by it.
    pub(crate) fn reading<R>(&self, attachment: u64, read: impl FnOnce() -> R) -> R {
        /// Also when what is read panics.
        struct Until<'a>(&'a Cell<u64>, u64);
        impl Drop for Until<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _until = Until(&self.reading, self.reading.replace(attachment));
        read()
    }

    /// By which attachment the values come that are being read just now; 0: by none.
    pub(crate) fn read_by(&self) -> u64 {
        self.reading.get()
    }

    /// Says something with a secret in it to the host, at once: of that no copy is kept here. It has no more than `size` bytes.
    pub(crate) fn push_secret(&self, frame: &ToHost<'_>, size: usize) {
        self.flush();
        // It is not moved while it grows: that would leave a copy behind.
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(size));
        frame.write(&mut bytes);
        self.wall.push(&bytes);
    }

    /// Another generation serves: it has the objects that clients know, and tells them of changes.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        let objects = std::mem::take(&mut *self.objects.borrow_mut());
        self.places.borrow_mut().clear();
        self.attached.borrow_mut().clear();
        let avatars = std::mem::take(&mut *self.avatars.borrow_mut());
        drop((objects, avatars));
        self.doors.retire();
    }

    pub(crate) fn remote(
        self: &Rc<Self>,
        handle: u64,
        make: impl FnOnce(Rc<Self>) -> remote::RemoteCell,
    ) -> Rc<remote::RemoteCell> {
        self.known_remote(handle).unwrap_or_else(|| {
            let shared = Rc::new(make(Rc::clone(self)));
            self.remotes.borrow_mut().insert(handle, Rc::downgrade(&shared));
            shared
        })
    }

    pub(crate) fn known_remote(&self, handle: u64) -> Option<Rc<remote::RemoteCell>> {
        self.remotes.borrow().get(&handle).and_then(Weak::upgrade)
    }

    /// What has come in with a frame: held until its values are read, then given back if nobody kept it.
    pub(crate) fn received(self: &Rc<Self>, handles: &[u8], attachment: u64) -> Vec<Remote> {
        frame::numbers(handles).map(|handle| Remote::received(self, handle, attachment)).collect()
    }

    /// A client's object in what is being read just now: the runtime holds what has come in with a call meanwhile.
    pub(crate) fn arriving(&self, handle: u64) -> Option<Remote> {
        Some(Remote::arriving(self.known_remote(handle)?, self.read_by()))
    }

    pub(crate) fn forget_remote(&self, handle: u64) {
        self.remotes.borrow_mut().remove(&handle);
    }

    /// A client has come to an attachment.
    pub(crate) fn connected(&self, attachment: u64) {
        self.attached.borrow_mut().insert(attachment);
    }

    /// A client has gone from an attachment.
    pub(crate) fn disconnected(&self, attachment: u64) {
        self.attached.borrow_mut().remove(&attachment);
        self.left.notify_waiters();
        self.copies.left(attachment);
        if !self.is_attached(attachment) {
            // Copies of a client's objects end with its connection.
            let least = u64::from(connection(attachment)) << 32;
            self.copies.disconnected(least, least | u64::from(u32::MAX));
        }
    }

    /// Whether this attachment lasts: also one whose perspective was let go of.
    pub(crate) fn has(&self, attachment: u64) -> bool {
        self.attached.borrow().contains(&attachment)
    }

    /// Whether this connection is attached to anything here.
    pub(crate) fn is_attached(&self, number: u64) -> bool {
        let least = u64::from(connection(number)) << 32;
        self.attached.borrow().range(least..=least | u64::from(u32::MAX)).next().is_some()
    }

    /// The perspective of this type that a connection is attached to, if it is to one.
    pub(crate) fn perspective_of<T: 'static>(&self, connection: u32) -> Option<Handle<T>> {
        let least = u64::from(connection) << 32;
        let all: Vec<u64> = self.attached.borrow().range(least..=least | u64::from(u32::MAX)).copied().collect();
        all.into_iter().find_map(|attachment| self.own(attachment))
    }

    /// Drops everything that was handed out, and everybody who waits.
    pub(crate) fn clear(&self) {
        let objects = std::mem::take(&mut *self.objects.borrow_mut());
        self.places.borrow_mut().clear();
        let waiting = std::mem::take(&mut *self.waiting.borrow_mut());
        let avatars = std::mem::take(&mut *self.avatars.borrow_mut());
        drop((objects, waiting, avatars, self.watches.take()));
        self.copies.clear();
        self.doors.clear();
    }
}

#[cfg(test)]
pub(crate) mod tests;
