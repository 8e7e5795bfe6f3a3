//! What does not depend on the service's type: the way out to the host, calls that wait, references.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeSet, HashMap};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use jelly::{Classes, RefKind};
use serde::Serialize;
use tokio::sync::{Notify, oneshot};

use super::Wall;
use super::copies::Copies;
use super::incoming::{Incoming, Invoked};
use crate::abi::frame::{self, ToHost};
use crate::cached::Observed;
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
    /// By what it can be made anew, if it can.
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

/// How often a cached object has gone to each connection.
#[derive(Default)]
struct Holders(HashMap<u32, u64>);

impl Holders {
    /// True: it had none before.
    fn more(&mut self, connection: u32) -> bool {
        let has = self.0.entry(connection).or_default();
        *has += 1;
        *has == 1
    }

    /// True: it had some, and has none any more.
    fn less(&mut self, connection: u32, count: u64) -> bool {
        let Some(has) = self.0.get_mut(&connection) else { return false };
        *has = has.saturating_sub(count);
        if *has > 0 {
            return false;
        }
        self.0.remove(&connection);
        true
    }
}

/// The connection that a number of a call, an attachment or a client's object belongs to.
pub(crate) fn connection(number: u64) -> u32 {
    (number >> 32) as u32
}

/// What clients have of the service's own.
enum Own {
    /// An object whose methods they call.
    Object(Rc<dyn Object>),
    /// One whose state they have a copy of.
    Cached(Rc<dyn Observed>, Holders),
}

/// A client has begun, or ceased, to observe a cached object.
struct Watch {
    cached: Rc<dyn Observed>,
    object: u64,
    connection: u32,
    begins: bool,
}

/// Where an object is, and which attachment alone has it so (0: all have).
pub(crate) type Place = (usize, u64);

struct Exported {
    own: Own,
    place: Place,
    count: u64,
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
    /// Told when a task has written frames while the main loop slept.
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
    /// Told when an attachment has ended.
    pub(crate) left: Notify,
    /// All attachments, each connection's side by side: one of them names it.
    attached: RefCell<BTreeSet<u64>>,
    scratch: RefCell<Vec<u8>>,
    /// What the method that runs just now has looked at.
    looked: RefCell<Looked>,
    /// How many bytes a saved state may have.
    pub(crate) quota: Cell<u64>,
    /// The perspectives that another version of the service has, and what whoever wants to change one is told.
    elsewhere: RefCell<HashMap<String, String>>,
    /// One transaction at a time has the service's data.
    pub(crate) data_turn: Arc<tokio::sync::Mutex<()>>,
    /// Doors of the service's own.
    pub(crate) doors: doors::Table,
    commits: Commits,
}

/// How many states were given to the host to commit, and how far that is known to have come.
#[derive(Default)]
struct Commits {
    given: Cell<u64>,
    /// So many are to be told of.
    asked: Cell<u64>,
    done: Cell<u64>,
    /// How often a commit has failed.
    failed: Cell<u64>,
    told: Notify,
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
            quota: Cell::new(u64::MAX),
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

    /// A number for an object that goes out. `None`: four thousand million objects have gone out.
    fn object_number(&self) -> Option<u64> {
        let next = self.numbered.get() + 1;
        if next >> 32 != 0 {
            return None;
        }
        self.numbered.set(next);
        Some(next)
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

    /// These own objects are on their way to a connection: of cached ones it hears the changes.
    fn gone_out(&self, to: u32, objects: &[u8]) {
        if objects.is_empty() {
            return;
        }
        let mut all = self.objects.borrow_mut();
        for object in frame::numbers(objects) {
            if let Some(Exported { own: Own::Cached(cached, holders), .. }) = all.get_mut(&object)
                && holders.more(to)
            {
                self.watch(cached, object, to, true);
            }
        }
    }

    /// A client has got its first copy of a cached object, or has let go of its last: the object is told when nothing of
    /// the author's runs.
    fn watch(&self, cached: &Rc<dyn Observed>, object: u64, connection: u32, begins: bool) {
        self.watches.borrow_mut().push(Watch { cached: Rc::clone(cached), object, connection, begins });
        self.written.notify_one();
    }

    /// Tells cached objects who has come and gone.
    pub(crate) fn tell_watched(self: &Rc<Self>) {
        while !self.watches.borrow().is_empty() {
            for Watch { cached, object, connection, begins } in self.watches.take() {
                let told = || cached.watched(self, object, connection, begins);
                if std::panic::catch_unwind(std::panic::AssertUnwindSafe(told)).is_err() {
                    tracing::error!("a cached object panicked when it was told who observes it");
                }
            }
        }
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

    /// These were not handed out after all.
    pub(crate) fn take_back(&self, objects: &[u8]) {
        frame::numbers(objects).for_each(|object| self.dropped(object, 1));
    }

    /// An own object is handed out so many times more; false: it is not there any more.
    fn retain(&self, id: u64, times: u64) -> bool {
        match self.objects.borrow_mut().get_mut(&id) {
            Some(exported) => {
                exported.count += times;
                true
            }
            None => false,
        }
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

    /// What is waited for; `called` is the client's object, if one is.
    fn wait(self: &Rc<Self>, called: u64) -> (u64, impl Future<Output = Result<Reply>> + use<>) {
        let (done, answer) = oneshot::channel();
        let number = self.number();
        self.waiting.borrow_mut().insert(number, done);
        let waiting = WaiterGuard { core: Rc::clone(self), number, called };
        (number, async move {
            let answer = answer.await;
            drop(waiting);
            answer.unwrap_or_else(|_| Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the service is ending")))
        })
    }

    /// A question to the host: its number, and the answer.
    pub(crate) fn ask(self: &Rc<Self>) -> (u64, impl Future<Output = Result<Reply>> + use<>) {
        self.wait(0)
    }

    /// Whether all that was saved so far is known to be committed.
    pub(crate) fn is_committed(&self) -> bool {
        self.commits.done.get() >= self.commits.given.get()
    }

    /// Waits until all that was saved so far is committed.
    ///
    /// # Errors
    /// When it could not be: it is undone.
    pub(crate) async fn committed(self: &Rc<Self>) -> Result<()> {
        let (given, failed) = (self.commits.given.get(), self.commits.failed.get());
        while self.commits.done.get() < given {
            if self.commits.asked.get() < given {
                self.commits.asked.set(given);
                let (request, answer) = self.wait(0);
                self.push(&ToHost::Sync { request });
                let core = Rc::downgrade(self);
                tokio::task::spawn_local(async move {
                    let answer = answer.await;
                    let Some(core) = core.upgrade() else { return };
                    core.commits.failed.set(core.commits.failed.get() + u64::from(answer.is_err()));
                    core.commits.done.set(core.commits.done.get().max(given));
                    core.commits.told.notify_waiters();
                });
            }
            self.commits.told.notified().await;
        }
        if self.commits.failed.get() == failed {
            return Ok(());
        }
        Err(Fault::new("RuntimeError", "a change could not be saved, and is undone"))
    }

    /// Says something with a secret in it to the host, at once: of that no copy is kept here. It has no more than `size` bytes.
    pub(crate) fn push_secret(&self, frame: &ToHost<'_>, size: usize) {
        self.flush();
        // It is not moved while it grows: that would leave a copy behind.
        let mut bytes = zeroize::Zeroizing::new(Vec::with_capacity(size));
        frame.write(&mut bytes);
        self.wall.push(&bytes);
    }

    /// Calls a client's object, which came by an attachment. `arguments` are a tuple and a dictionary, one behind the
    /// other; the dictionary begins at `keywords`.
    pub(crate) fn call(
        self: &Rc<Self>,
        (handle, attachment): (u64, u64),
        method: &str,
        arguments: &Encoded,
        keywords: usize,
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (call, answer) = self.wait(handle);
        self.push_call(call, (handle, attachment), method, arguments, keywords);
        answer
    }

    /// [`Core::call`], whose answer goes to `call`; 0: none is wanted.
    pub(crate) fn push_call(
        &self,
        call: u64,
        (handle, attachment): (u64, u64),
        method: &str,
        arguments: &Encoded,
        keywords: usize,
    ) {
        let (objects, answer) = (arguments.objects.as_slice(), call != 0);
        let (arguments, keywords) = arguments.bytes.split_at(keywords.min(arguments.bytes.len()));
        self.push(&ToHost::Call { call, handle, answer, method, arguments, keywords, attachment, objects });
    }

    /// Asks for a perspective's saved state; answers with its version, too.
    pub(crate) fn load(
        self: &Rc<Self>,
        perspective: &str,
    ) -> impl Future<Output = Result<(Option<Vec<u8>>, u64)>> + use<> {
        let (request, answer) = self.wait(0);
        self.push(&ToHost::Load { request, perspective });
        async move {
            let reply = answer.await?;
            Ok((reply.some.then_some(reply.bytes), reply.version))
        }
    }

    /// Asks for some of the service's data.
    pub(crate) fn data(
        self: &Rc<Self>,
        from: &[u8],
        to: Option<&[u8]>,
        limit: u64,
        reverse: bool,
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (request, answer) = self.wait(0);
        self.push(&ToHost::Data { request, from, to, limit, reverse });
        answer
    }

    /// Writes some of the service's data.
    pub(crate) fn write_data(
        self: &Rc<Self>,
        base: u64,
        entries: &[u8],
    ) -> impl Future<Output = Result<Reply>> + use<> {
        let (request, answer) = self.wait(0);
        let refused = if self.retired.get() {
            Some(Fault::reloaded())
        } else if self.starting.get() {
            let message = "data can be changed once the service serves: do it in a task (Context::spawn)";
            Some(Fault::new("RuntimeError", message))
        } else {
            self.push(&ToHost::Write { request, base, entries });
            None
        };
        async move {
            match refused {
                Some(fault) => Err(fault),
                None => answer.await,
            }
        }
    }

    /// An answer has come.
    pub(crate) fn answered(&self, number: u64, answer: Result<Reply>) {
        let waiting = self.waiting.borrow_mut().remove(&number);
        if let Some(waiting) = waiting {
            // Who asked may have given up.
            let _ = waiting.send(answer);
        }
    }

    /// The number of an object that goes out to a client once more.
    pub(crate) fn export(&self, place: Place, object: impl FnOnce() -> Rc<dyn Object>) -> Result<u64> {
        if self.retired.get() {
            return Err(Fault::reloaded());
        }
        if let Some(&id) = self.places.borrow().get(&place)
            && let Some(exported) = self.objects.borrow_mut().get_mut(&id)
        {
            exported.count += 1;
            return Ok(id);
        }
        let id = self.object_number().ok_or_else(|| Fault::new("RuntimeError", "too many objects were handed out"))?;
        self.objects.borrow_mut().insert(id, Exported { own: Own::Object(object()), place, count: 1 });
        self.places.borrow_mut().insert(place, id);
        Ok(id)
    }

    /// The objects that clients have and that can be made anew, as `Frozen` tells of them.
    pub(crate) fn heirlooms(&self) -> Vec<u8> {
        let mut list = Vec::new();
        for (&id, exported) in self.objects.borrow().iter() {
            if let Own::Object(object) = &exported.own
                && let Some(origin) = object.origin()
            {
                frame::put_object(&mut list, id, exported.count, &origin);
            }
        }
        list
    }

    /// An object of an earlier generation's was made anew: clients have had it all the time.
    pub(crate) fn adopt(&self, id: u64, count: u64, object: Rc<dyn Object>) {
        let place = (object.address(), object.seen_by());
        self.objects.borrow_mut().insert(id, Exported { own: Own::Object(object), place, count });
        self.places.borrow_mut().insert(place, id);
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

    pub(crate) fn object(&self, id: u64) -> Option<Rc<dyn Object>> {
        match &self.objects.borrow().get(&id)?.own {
            Own::Object(object) => Some(Rc::clone(object)),
            Own::Cached(..) => None,
        }
    }

    /// By what number clients know an own object, without one more of them: as one that was handed out, or as a perspective.
    pub(crate) fn known_as(&self, place: Place) -> Option<u64> {
        let avatar = || {
            let avatars = self.avatars.borrow();
            avatars.iter().find(|(_, object)| object.address() == place.0).map(|(attachment, _)| *attachment)
        };
        self.places.borrow().get(&place).copied().or_else(avatar)
    }

    /// An own object that a client has sent back: one that was handed out, or the perspective of an attachment.
    pub(crate) fn own<T: 'static>(&self, id: u64) -> Option<Handle<T>> {
        let object = if id >> 32 == 0 { self.object(id) } else { self.avatar(id) };
        object?.any().downcast_ref::<Handle<T>>().cloned()
    }

    /// The perspective that a client has, by this attachment.
    pub(crate) fn avatar(&self, attachment: u64) -> Option<Rc<dyn Object>> {
        self.avatars.borrow().get(&attachment).cloned()
    }

    /// A client has a perspective, by this attachment.
    pub(crate) fn has_avatar(&self, attachment: u64, perspective: Rc<dyn Object>) {
        self.avatars.borrow_mut().insert(attachment, perspective);
    }

    /// It has let go of it.
    pub(crate) fn forget_avatar(&self, attachment: u64) {
        let gone = self.avatars.borrow_mut().remove(&attachment);
        drop(gone);
    }

    /// A connection has given back references to an own object; `had` is a number of its own.
    pub(crate) fn given_back(&self, id: u64, count: u64, had: u64) {
        if let Some(Exported { own: Own::Cached(cached, holders), .. }) = self.objects.borrow_mut().get_mut(&id)
            && holders.less(connection(had), count)
        {
            // It lives until it has been told.
            self.watch(cached, id, connection(had), false);
        }
        self.dropped(id, count);
    }

    /// References to an own object are counted no more.
    pub(crate) fn dropped(&self, id: u64, count: u64) {
        let mut objects = self.objects.borrow_mut();
        let Some(exported) = objects.get_mut(&id) else { return };
        exported.count = exported.count.saturating_sub(count);
        if exported.count == 0 {
            let gone = objects.remove(&id);
            // Dropping the object may run code of the author's, which may come back here.
            drop(objects);
            if let Some(gone) = gone {
                let mut places = self.places.borrow_mut();
                // Two numbers may be one object that was made anew.
                if places.get(&gone.place) == Some(&id) {
                    places.remove(&gone.place);
                }
            }
        }
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

    /// The number of a cached object that goes out once more; `known` is the one that it had before. It lives for as
    /// long as clients have it.
    pub(crate) fn export_cached(&self, object: Rc<dyn Observed>, known: Option<u64>) -> Result<u64> {
        if self.retired.get() {
            return Err(Fault::reloaded());
        }
        if let Some(number) = known.filter(|number| self.retain(*number, 1)) {
            return Ok(number);
        }
        let number = known
            .or_else(|| self.object_number())
            .ok_or_else(|| Fault::new("RuntimeError", "too many objects were handed out"))?;
        self.objects
            .borrow_mut()
            .insert(number, Exported { own: Own::Cached(object, Holders::default()), place: (0, 0), count: 1 });
        Ok(number)
    }

    pub(crate) fn cached(&self, number: u64) -> Option<Rc<dyn Any>> {
        match &self.objects.borrow().get(&number)?.own {
            Own::Cached(object, _) => Some(Rc::clone(object).any()),
            Own::Object(_) => None,
        }
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

    /// Tells those of a change who have the object, by any of their attachments. Each gets its own count of the objects in the
    /// arguments.
    pub(crate) fn update(&self, object: u64, method: &str, arguments: &Encoded) {
        const NO_KEYWORDS: &[u8] = &[1, 0x80, 5, 0x87];
        let told: Vec<u64> = {
            let (objects, attached) = (self.objects.borrow(), self.attached.borrow());
            let holders = match objects.get(&object).map(|exported| &exported.own) {
                Some(Own::Cached(_, holders)) => holders.0.keys(),
                _ => Default::default(),
            };
            let first = |connection: &u32| {
                let least = u64::from(*connection) << 32;
                attached.range(least..=least | u64::from(u32::MAX)).next().copied()
            };
            holders.filter_map(first).collect()
        };
        match (told.len() as u64).checked_sub(1) {
            None => self.take_back(&arguments.objects),
            Some(more) => frame::numbers(&arguments.objects).for_each(|object| {
                self.retain(object, more);
            }),
        }
        let (objects, arguments, keywords) = (arguments.objects.as_slice(), arguments.bytes.as_slice(), NO_KEYWORDS);
        for attachment in told {
            self.push(&ToHost::Update { attachment, object, method, arguments, keywords, objects });
        }
    }

    /// Tells one client alone of a change of a cached object that it has, or had just now.
    pub(crate) fn update_one(&self, connection: u32, object: u64, method: &str, arguments: &Encoded) {
        const NO_KEYWORDS: &[u8] = &[1, 0x80, 5, 0x87];
        let (objects, arguments, keywords) = (arguments.objects.as_slice(), arguments.bytes.as_slice(), NO_KEYWORDS);
        let attachment = u64::from(connection) << 32;
        self.push(&ToHost::Update { attachment, object, method, arguments, keywords, objects });
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

/// Forgets who waits, if they give up.
struct WaiterGuard {
    core: Rc<Core>,
    number: u64,
    /// The client's object that was called; 0: none was.
    called: u64,
}

impl Drop for WaiterGuard {
    fn drop(&mut self) {
        let waited = self.core.waiting.borrow_mut().remove(&self.number);
        if waited.is_some() && self.called != 0 {
            self.core.push(&ToHost::Forget { call: self.number, handle: self.called });
        }
    }
}

#[cfg(test)]
pub(crate) mod tests;
