//! What does not depend on the service's type: output to the host, waiting calls, references.

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
    /// The service that runs on this thread. Each service has its own thread, so there is at most one.
    static CURRENT: RefCell<Option<Rc<Core>>> = const { RefCell::new(None) };
}

/// One of the service's objects that a client holds.
pub(crate) trait Object {
    fn invoke(&self, incoming: Incoming<'_>) -> Invoked;
    fn any(&self) -> &dyn Any;
    fn address(&self) -> usize;
    /// The only attachment that has the object in this form; 0 if the form is the same for all.
    fn seen_by(&self) -> u64 {
        0
    }
    /// What the object can be rebuilt from, if it can be.
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

/// A value encoded for a client, and the service's own objects in it. Each occurrence of an object is counted as handed out.
#[derive(Debug, Default)]
pub struct Encoded {
    pub(crate) bytes: Vec<u8>,
    /// The objects' numbers, 8 bytes each, as in frames.
    pub(crate) objects: Vec<u8>,
}

/// The states that a method has accessed, from its beginning to its end.
#[derive(Debug, Default)]
pub(crate) struct Looked {
    /// A perspective that is saved after each call.
    perspective: Option<Rc<str>>,
    /// The service, which is saved in the same way.
    service: bool,
    /// More than one perspective, or an object that is saved later or never: nobody knows what the latter was made from.
    elsewhere: bool,
}

type Waiting = oneshot::Sender<Result<Reply>>;

/// The answer to a call or a request of the library's.
#[derive(Default)]
pub(crate) struct Reply {
    pub(crate) bytes: Vec<u8>,
    /// Whether there is a state; for data, whether there are more entries.
    pub(crate) some: bool,
    /// The version of what was requested.
    pub(crate) version: u64,
    /// A login that has succeeded.
    pub(crate) login: Option<Login>,
    /// A descriptor that the library owns.
    pub(crate) descriptor: Option<std::os::fd::OwnedFd>,
    /// The client's objects that came with the answer: held until it is read.
    pub(crate) remotes: Vec<Remote>,
}

pub(crate) struct Core {
    pub(crate) wall: Box<dyn Wall>,
    /// The service's name.
    pub(crate) service: Cell<&'static str>,
    /// Frames that have not been passed to the host yet.
    out: RefCell<Vec<u8>>,
    /// Notified when a task has written frames while the main loop slept.
    pub(crate) written: Notify,
    next: Cell<u64>,
    /// The highest number of an object of the service's, given by this generation or an earlier one. Its upper half stays zero:
    /// this tells the service's objects from clients' objects.
    pub(crate) numbered: Cell<u64>,
    /// Whether another generation serves: then no saved state can be changed here any more.
    pub(crate) retired: Cell<bool>,
    /// Whether the author's `start` is running at the moment.
    pub(crate) starting: Cell<bool>,
    /// Whether `start` has succeeded. Only then is `stop` called.
    pub(crate) started: Cell<bool>,
    waiting: RefCell<HashMap<u64, Waiting>>,
    objects: RefCell<HashMap<u64, Exported>>,
    /// Cached objects that have yet to be notified of who observes them.
    watches: RefCell<Vec<Watch>>,
    places: RefCell<HashMap<Place, u64>>,
    remotes: RefCell<HashMap<u64, Weak<remote::RemoteCell>>>,
    /// Copies of clients' objects.
    pub(crate) copies: Copies,
    /// The clients' perspectives, by attachment: they may come back as arguments.
    avatars: RefCell<HashMap<u64, Rc<dyn Object>>>,
    /// The attachment by which the values came that are being read; 0 if by none.
    reading: Cell<u64>,
    /// The classes whose instances untyped values may contain.
    pub(crate) classes: Cell<Classes>,
    /// Notified when an attachment has ended.
    pub(crate) left: Notify,
    /// All attachments. Those of one connection are adjacent, and any of them identifies it.
    attached: RefCell<BTreeSet<u64>>,
    scratch: RefCell<Vec<u8>>,
    /// What the running method has accessed.
    looked: RefCell<Looked>,
    /// The limits that the library enforces.
    pub(crate) limits: Cell<ServiceLimits>,
    /// The perspectives that another version of the service has, and the error for attempts to change them.
    elsewhere: RefCell<HashMap<String, String>>,
    /// Admits one transaction on the service's data at a time.
    pub(crate) data_turn: Arc<tokio::sync::Mutex<()>>,
    /// The service's own doors.
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
            started: Cell::new(false),
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

    /// Reports that a call, or an attachment, has failed.
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

    /// A number for a call or a request that this generation has not used yet.
    pub(crate) fn number(&self) -> u64 {
        self.next.set(self.next.get() + 1);
        self.next.get()
    }

    /// Queues a frame for the host, until the next flush.
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

    /// Passes the queued frames to the host.
    pub(crate) fn flush(&self) {
        let mut out = self.out.borrow_mut();
        if !out.is_empty() {
            self.wall.push(&out);
            out.clear();
            // Do not keep the buffer of a burst of large answers.
            if out.capacity() > 1 << 20 {
                out.shrink_to(1 << 16);
            }
        }
    }

    /// Passes the queued frames to the host if they are large: so a generation itself keeps hardly more than its largest answer.
    pub(crate) fn flush_large(&self) {
        const MUCH: usize = 256 << 10;
        if self.out.borrow().len() > MUCH {
            self.flush();
        }
    }

    /// A method begins: it has accessed nothing yet.
    pub(crate) fn looks_anew(&self) {
        self.looked.take();
    }

    /// The method accesses a state that is saved after each call. The service's own state has an empty name.
    pub(crate) fn looks_at(&self, name: &Rc<str>) {
        let mut looked = self.looked.borrow_mut();
        match &looked.perspective {
            _ if name.is_empty() => looked.service = true,
            None => looked.perspective = Some(Rc::clone(name)),
            Some(known) => looked.elsewhere |= known != name,
        }
    }

    /// The method accesses anything else.
    pub(crate) fn looks_elsewhere(&self) {
        self.looked.borrow_mut().elsewhere = true;
    }

    /// Reports which states the following answer depends on, if that is known.
    pub(crate) fn tells_of(&self, call: u64) {
        let looked = self.looked.take();
        if !looked.elsewhere {
            let perspective = looked.perspective.as_deref().map(str::as_bytes);
            self.push(&ToHost::Looked { call, perspective, service: looked.service });
        }
    }

    /// Records that another version of the service has this perspective.
    pub(crate) fn yields(&self, perspective: &str, why: &str) {
        self.elsewhere.borrow_mut().insert(perspective.to_owned(), why.to_owned());
    }

    /// This version has the perspective again.
    pub(crate) fn regains(&self, perspective: &str) {
        self.elsewhere.borrow_mut().remove(perspective);
        self.push(&ToHost::Regained { perspective });
    }

    /// Whether the perspective cannot be changed for this reason, and no other reason has come since.
    pub(crate) fn is_elsewhere_for(&self, perspective: &str, why: &str) -> bool {
        self.elsewhere.borrow().get(perspective).is_some_and(|known| known == why)
    }

    /// Why this perspective cannot be changed; `None` if it can.
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

    /// Appends a value for a client to `bytes`. The service's own objects in it are counted as handed out and appended to
    /// `objects`; after an error, none are.
    pub(crate) fn encode<T: Serialize + ?Sized>(
        &self,
        value: &T,
        bytes: &mut Vec<u8>,
        objects: &mut Vec<u8>,
    ) -> jelly::Result<()> {
        let (mut references, before, start) = (Vec::new(), objects.len(), bytes.len());
        // An author's `Serialize` may panic. What it wrote before is counted by then.
        let written = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            jelly::write_with(bytes, value, self.classes.get(), &mut references)
        }));
        let (written, panicked) = match written {
            Ok(written) => (written, None),
            Err(panicked) => (Err(serde::ser::Error::custom("it panicked")), Some(panicked)),
        };
        for (kind, number) in references {
            let counted = match kind {
                // A client's object.
                _ if number >> 32 != 0 => false,
                // Counted where it was written.
                RefKind::Remote | RefKind::Cache => true,
                // One of the service's own objects inside an untyped value, on its way to the receiver of that value.
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

    /// Reads values that came by an attachment, and records that the client's objects in them came by it.
    pub(crate) fn reading<R>(&self, attachment: u64, read: impl FnOnce() -> R) -> R {
        /// Restores the previous attachment, also after a panic.
        struct Until<'a>(&'a Cell<u64>, u64);
        impl Drop for Until<'_> {
            fn drop(&mut self) {
                self.0.set(self.1);
            }
        }
        let _until = Until(&self.reading, self.reading.replace(attachment));
        read()
    }

    /// The attachment by which the values came that are being read; 0 if by none.
    pub(crate) fn read_by(&self) -> u64 {
        self.reading.get()
    }

    /// Passes a frame that contains a secret to the host immediately, and keeps no copy of it. The frame has at most `size`
    /// bytes.
    pub(crate) fn push_secret(&self, frame: &ToHost<'_>, size: usize) {
        self.flush();
        // The buffer must not be reallocated: that would leave a copy behind.
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(size));
        frame.write(&mut bytes);
        self.wall.push(&bytes);
    }

    /// Another generation serves from now on: it has the objects that clients know, and reports their changes to clients.
    pub(crate) fn retire(&self) {
        self.retired.set(true);
        let objects = std::mem::take(&mut *self.objects.borrow_mut());
        self.places.borrow_mut().clear();
        self.attached.borrow_mut().clear();
        // Here, all clients are gone.
        self.left.notify_waiters();
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

    /// The client's objects that came with a frame: held until its values are read, then given back unless somebody kept them.
    pub(crate) fn received(self: &Rc<Self>, handles: &[u8], attachment: u64) -> Vec<Remote> {
        frame::numbers(handles).map(|handle| Remote::received(self, handle, attachment)).collect()
    }

    /// A client's object in the values that are being read. Meanwhile, the runtime holds what came with the call.
    pub(crate) fn arriving(&self, handle: u64) -> Option<Remote> {
        Some(Remote::arriving(self.known_remote(handle)?, self.read_by()))
    }

    pub(crate) fn forget_remote(&self, handle: u64) {
        self.remotes.borrow_mut().remove(&handle);
    }

    /// An attachment has begun.
    pub(crate) fn connected(&self, attachment: u64) {
        self.attached.borrow_mut().insert(attachment);
    }

    /// An attachment has ended.
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

    /// Whether this attachment exists, including one whose perspective was released.
    pub(crate) fn has(&self, attachment: u64) -> bool {
        self.attached.borrow().contains(&attachment)
    }

    /// Whether this connection is attached to anything here.
    pub(crate) fn is_attached(&self, number: u64) -> bool {
        let least = u64::from(connection(number)) << 32;
        self.attached.borrow().range(least..=least | u64::from(u32::MAX)).next().is_some()
    }

    /// The perspective of this type that a connection is attached to, if there is one.
    pub(crate) fn perspective_of<T: 'static>(&self, connection: u32) -> Option<Handle<T>> {
        let least = u64::from(connection) << 32;
        let all: Vec<u64> = self.attached.borrow().range(least..=least | u64::from(u32::MAX)).copied().collect();
        all.into_iter().find_map(|attachment| self.own(attachment))
    }

    /// Drops everything that was handed out, and all pending requests.
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
