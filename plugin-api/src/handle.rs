//! Handles to the service's own objects.

use std::cell::{Cell, RefCell};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::abi::frame::ToHost;
use crate::fault::{Fault, Result};
use crate::runtime::core::{Core, Object, Place};
use crate::runtime::incoming::{Incoming, Invoked};
use crate::service::{Callable, Save};

/// The prefix of a perspective's origin.
pub(crate) const PERSPECTIVE: &str = "perspective/";
/// The prefix of a named object's origin.
pub(crate) const NAMED: &str = "object/";

/// A handle to any of the service's own objects whose methods clients can call.
/// [`Service::rebuild`](crate::Service::rebuild) returns one.
///
/// ```
/// use plugin_api::prelude::*;
/// # struct Ticket;
/// # #[perspective]
/// # impl Ticket {}
///
/// /// Like [`Service::rebuild`]: clients' references by this name lead to the returned object.
/// fn made_anew(name: &str) -> Result<AnyHandle> {
///     match name {
///         "ticket" => Ok(Handle::named("ticket", Ticket).into()),
///         _ => Err(Fault::value("there is no such object any more")),
///     }
/// }
/// assert!(made_anew("ticket").is_ok());
/// ```
#[derive(Clone)]
pub struct AnyHandle(pub(crate) Rc<dyn Object>);

impl Serialize for AnyHandle {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        export((self.0.address(), self.0.seen_by()), || Rc::clone(&self.0), serializer)
    }
}

/// A reference to an object for one client alone, made by [`Call::view`](crate::Call::view).
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Game;
/// # #[service("game", save = "never")]
/// # impl Service for Game {
/// #     type Perspective = Player;
/// # }
/// /// One board for all clients.
/// struct Board;
///
/// #[perspective]
/// impl Board {
///     /// Returns who moves.
///     fn mover(&self, call: &Call) -> String {
///         call.attachment().identity().to_owned()
///     }
/// }
///
/// #[derive(Default)]
/// struct Player;
///
/// #[perspective]
/// impl Player {
///     fn board(&self, call: &Call) -> View {
///         call.view(&Handle::new(Board))
///     }
/// }
///
/// let host = TestHost::<Game>::start()?;
/// let alice = host.attach("alice")?;
/// let board = alice.reference("board", ())?;
/// assert_eq!(board.call::<String>("mover", ())?, "alice");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct View {
    object: Rc<dyn Object>,
    address: usize,
    by: crate::call::Attachment,
    /// The perspective that the attachment had when the view was made. Kept even if the client releases it.
    avatar: Option<Rc<dyn Object>>,
}

impl View {
    pub(crate) fn new<T: Callable>(object: &Handle<T>, by: &crate::call::Attachment) -> Self {
        let avatar = Core::current().and_then(|core| core.avatar(by.id()));
        Self { object: Rc::new(object.clone()), address: object.address(), by: by.clone(), avatar }
    }
}

impl Object for View {
    fn invoke(&self, incoming: Incoming<'_>) -> Invoked {
        // The attachment may have ended, and another client may hold this view.
        if !incoming.core.has(self.by.id()) {
            return Invoked::Done(Err(crate::runtime::dead()));
        }
        self.object.invoke(Incoming { attachment: &self.by, avatar: self.avatar.as_ref(), ..incoming })
    }

    fn any(&self) -> &dyn std::any::Any {
        self.object.any()
    }

    fn address(&self) -> usize {
        self.address
    }

    fn seen_by(&self) -> u64 {
        self.by.id()
    }

    fn origin(&self) -> Option<String> {
        None
    }
}

impl Serialize for View {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        export((self.address, self.seen_by()), || Rc::new(self.clone()), serializer)
    }
}

impl std::fmt::Debug for View {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "View({})", self.by.id())
    }
}

/// Serializes a reference to one of the service's own objects.
fn export<S: Serializer>(
    place: Place,
    object: impl FnOnce() -> Rc<dyn Object>,
    serializer: S,
) -> std::result::Result<S::Ok, S::Error> {
    let core = Core::current().ok_or_else(|| S::Error::custom("a reference can be sent only during a call"))?;
    if core.copies.is_carrying() {
        let id = core.known_as(place).ok_or_else(|| S::Error::custom("it contains an object that no client holds"))?;
        return serializer.serialize_newtype_struct(jelly::types::reference::LOCAL, &id);
    }
    let id = core.export(place, object).map_err(S::Error::custom)?;
    serializer.serialize_newtype_struct(jelly::types::reference::REMOTE, &id)
}

impl<T: Callable> From<Handle<T>> for AnyHandle {
    fn from(handle: Handle<T>) -> Self {
        Self(Rc::new(handle))
    }
}

impl std::fmt::Debug for AnyHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AnyHandle")
    }
}

/// A handle to a perspective, to the service, or to any other object of the service's own.
///
/// A service runs on one thread, one thing at a time. `read` and `write` are short and never wait, and no lock is
/// held across an `await`. Clones refer to the same object.
///
/// Sent to a client, in an answer or an argument, a handle becomes a reference whose methods the client can call.
/// When the client sends the reference back, it is this object again. Only a type with a `#[perspective]` block can
/// be sent.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Desk;
/// # #[service("desk", save = "never")]
/// # impl Service for Desk {
/// #     type Perspective = View;
/// # }
/// /// An object of the service's own.
/// struct Ticket {
///     taken: bool,
/// }
///
/// #[perspective]
/// impl Ticket {
///     /// Takes the ticket, once.
///     fn take(&mut self) -> Result<()> {
///         match std::mem::replace(&mut self.taken, true) {
///             false => Ok(()),
///             true => Err(Fault::value("it is taken")),
///         }
///     }
/// }
///
/// #[derive(Default)]
/// struct View;
///
/// #[perspective]
/// impl View {
///     /// Returns a reference that the client can call and send back.
///     fn ticket(&self) -> Handle<Ticket> {
///         Handle::new(Ticket { taken: false })
///     }
///
///     /// The client sends a ticket back: it is the same object.
///     fn is_taken(&self, ticket: Handle<Ticket>) -> Result<bool> {
///         ticket.read(|ticket| ticket.taken)
///     }
/// }
///
/// let ticket = Handle::new(Ticket { taken: false });
/// ticket.write(|ticket| ticket.take())??;
/// assert!(ticket.read(|ticket| ticket.taken)?);
/// # let _ = TestHost::<Desk>::start()?;
/// # Ok::<(), Fault>(())
/// ```
pub struct Handle<T> {
    shared: Rc<ObjectCell<T>>,
}

struct ObjectCell<T> {
    value: RefCell<T>,
    saver: Option<Saver<T>>,
    /// The service's name for it, if it is to outlive this generation.
    name: Option<String>,
    /// Set for good once its generation has ended.
    ended: Cell<bool>,
    /// Whether it has changed since the last save.
    dirty: Cell<bool>,
}

impl<T> Drop for ObjectCell<T> {
    fn drop(&mut self) {
        // It changed while nobody was attached, so no detach has saved it.
        if let Some(saver) = &self.saver
            && saver.policy == Save::Detach
            && self.dirty.get()
            && saver.saves()
        {
            let value = self.value.get_mut();
            if let Ok(Err(fault)) = catch_unwind(AssertUnwindSafe(|| saver.keep(value))) {
                tracing::error!(perspective = &*saver.name, %fault, "the perspective could not be saved");
            }
        }
    }
}

/// How a value is saved, and restored after a panic.
pub(crate) struct Saver<T> {
    pub(crate) core: Rc<Core>,
    /// The perspective's name; empty for the service itself.
    pub(crate) name: Rc<str>,
    pub(crate) policy: Save,
    pub(crate) save: fn(&T) -> Result<Vec<u8>>,
    pub(crate) load: fn(&[u8]) -> Result<T>,
    /// Creates a new value if nothing is saved.
    pub(crate) fresh: Box<dyn Fn() -> Result<T>>,
    /// The state that a service started with, used while none is saved: a service is created only once, and not by a
    /// name.
    pub(crate) first: RefCell<Option<Vec<u8>>>,
    /// The last state that was given to the host.
    pub(crate) last: RefCell<Option<Vec<u8>>>,
    /// The version of that state; 0 if there is none.
    pub(crate) version: Cell<u64>,
    /// Whether the value may differ from the saved state, because a field that is not saved has changed or because
    /// the value was recreated. An answer that depends on the value then waits for every earlier change.
    pub(crate) beside: Cell<bool>,
}

impl<T> Handle<T> {
    /// Creates an object that is not saved. Perspectives are created when the host asks for them; use this for all
    /// other objects.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self::make(value, None, None)
    }

    /// Like [`Handle::new`], for an object that clients can keep while the service is replaced. The new code is asked
    /// for the object of this name ([`Service::rebuild`](crate::Service::rebuild)), and clients' references then lead
    /// to that object. References to an object without a name are dead after a replacement. (Perspectives need no
    /// such name: they have their own.)
    #[must_use]
    pub fn named(name: impl Into<String>, value: T) -> Self {
        Self::make(value, None, Some(name.into()))
    }

    pub(crate) fn saved(value: T, saver: Saver<T>) -> Self {
        Self::make(value, Some(saver), None)
    }

    fn make(value: T, saver: Option<Saver<T>>, name: Option<String>) -> Self {
        let (ended, dirty) = (Cell::new(false), Cell::new(false));
        Self { shared: Rc::new(ObjectCell { value: RefCell::new(value), saver, name, ended, dirty }) }
    }

    /// The origin by which another generation can recreate it, if it can.
    pub(crate) fn origin(&self) -> Option<String> {
        match (&self.shared.saver, &self.shared.name) {
            // The service itself: its handle has a different type than those of its perspectives.
            (Some(saver), _) if saver.name.is_empty() => None,
            (Some(saver), _) => Some(format!("{PERSPECTIVE}{}", saver.name)),
            (None, Some(name)) => Some(format!("{NAMED}{name}")),
            (None, None) => None,
        }
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If the caller itself is writing to it further up in the same call, or if its service has ended.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R> {
        self.live()?;
        self.looks();
        let value = self.shared.value.try_borrow().map_err(|_| busy())?;
        Ok(look(&value))
    }

    /// Changes the object. If it is saved after each call, it is saved now, before anyone is told of the change.
    ///
    /// # Errors
    /// * If the caller itself is using it further up in the same call.
    /// * If its service has ended.
    /// * If it cannot be saved. The change is then undone.
    /// * If the service was replaced while the caller waited ([`Fault::is_reloaded`]).
    /// * If another version of the service, on trial, has this perspective meanwhile ([`Fault::is_elsewhere`]).
    ///
    /// # Panics
    /// If `change` panics. A saved object is then back at its last saved state.
    pub fn write<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R> {
        self.live()?;
        if self.shared.saver.as_ref().is_some_and(|saver| saver.core.retired.get()) {
            return Err(Fault::reloaded());
        }
        if let Some(elsewhere) = self.shared.saver.as_ref().and_then(Saver::is_elsewhere) {
            return Err(elsewhere);
        }
        self.looks();
        let mut value = self.shared.value.try_borrow_mut().map_err(|_| busy())?;
        let changed = catch_unwind(AssertUnwindSafe(|| change(&mut value)));
        match changed {
            Ok(result) => {
                if let Some(saver) = &self.shared.saver
                    && saver.policy == Save::Call
                {
                    let before = saver.version.get();
                    saver.keep(&mut value)?;
                    // A write that saved nothing may have changed a field that is in no committed state.
                    saver.beside.set(saver.version.get() == before);
                }
                self.shared.dirty.set(true);
                Ok(result)
            }
            Err(panic) => {
                if let Some(saver) = &self.shared.saver {
                    saver.restore(&mut value);
                }
                drop(value);
                std::panic::resume_unwind(panic)
            }
        }
    }

    /// Saves it now, whenever its policy would save it. Does nothing if it is never saved.
    pub(crate) fn flush(&self) -> Result<()> {
        let Some(saver) = self.shared.saver.as_ref().filter(|saver| saver.saves()) else { return Ok(()) };
        let mut value = self.shared.value.try_borrow_mut().map_err(|_| busy())?;
        self.shared.dirty.set(false);
        saver.keep(&mut value)
    }

    /// Saves it before other code takes over. On failure it stays unchanged, because this code may continue.
    pub(crate) fn hand_over(&self) -> Result<()> {
        let Some(saver) = self.shared.saver.as_ref().filter(|saver| saver.saves()) else { return Ok(()) };
        let value = self.shared.value.try_borrow().map_err(|_| busy())?;
        saver.send(saver.serialized(&value)?);
        self.shared.dirty.set(false);
        Ok(())
    }

    /// Whether other code that takes over finds its state.
    pub(crate) fn is_saved(&self) -> bool {
        self.shared.saver.as_ref().is_some_and(|saver| saver.policy != Save::Never)
    }

    /// Returns to the saved state, because the host could not commit or another version has changed it.
    ///
    /// # Errors
    /// If this code cannot read that state. The value then stays unchanged, and must not be saved over the state that
    /// could not be read.
    pub(crate) fn revert(&self, state: Option<&[u8]>, version: u64) -> Result<()> {
        let Some(saver) = &self.shared.saver else { return Ok(()) };
        let mut value = self.shared.value.try_borrow_mut().map_err(|_| busy())?;
        saver.go_back(&mut value, state)?;
        *saver.last.borrow_mut() = state.map(<[u8]>::to_vec);
        saver.version.set(version);
        self.shared.dirty.set(false);
        Ok(())
    }

    pub(crate) fn replace(&self, value: T) {
        if let Ok(mut place) = self.shared.value.try_borrow_mut() {
            *place = value;
        }
    }

    /// Records the state and version that the host has.
    pub(crate) fn remember(&self, state: Option<Vec<u8>>, version: u64) {
        if let Some(saver) = &self.shared.saver {
            if version == 0 {
                saver.first.borrow_mut().clone_from(&state);
            }
            *saver.last.borrow_mut() = state;
            saver.version.set(version);
        }
    }

    /// Records that the method that is running accesses this object.
    fn looks(&self) {
        match &self.shared.saver {
            Some(saver) if saver.policy == Save::Call && !saver.beside.get() => saver.core.looks_at(&saver.name),
            Some(saver) => saver.core.looks_elsewhere(),
            None => {
                if let Some(core) = Core::current() {
                    core.looks_elsewhere();
                }
            }
        }
    }

    pub(crate) fn end(&self) {
        self.shared.ended.set(true);
    }

    fn live(&self) -> Result<()> {
        if self.shared.ended.get() {
            Err(Fault::new("twisted.spread.pb.DeadReferenceError", "the service has ended"))
        } else {
            Ok(())
        }
    }

    /// Whether both are the same object.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.shared, &other.shared)
    }

    pub(crate) fn address(&self) -> usize {
        Rc::as_ptr(&self.shared).cast::<()>() as usize
    }

    pub(crate) fn downgrade(&self) -> WeakHandle<T> {
        WeakHandle(Rc::downgrade(&self.shared))
    }
}

pub(crate) struct WeakHandle<T>(std::rc::Weak<ObjectCell<T>>);

impl<T> WeakHandle<T> {
    pub(crate) fn upgrade(&self) -> Option<Handle<T>> {
        self.0.upgrade().map(|shared| Handle { shared })
    }
}

impl<T> Saver<T> {
    /// Why it cannot be changed; `None` if it can.
    fn is_elsewhere(&self) -> Option<Fault> {
        self.core.is_elsewhere(&self.name)
    }

    /// Whether this code is responsible for saving it.
    fn saves(&self) -> bool {
        self.policy != Save::Never && !self.core.retired.get() && self.is_elsewhere().is_none()
    }

    /// Sends the state to the host if it differs from the host's. If that fails, undoes the change.
    fn keep(&self, value: &mut T) -> Result<()> {
        match self.serialized(value) {
            Ok(state) => self.send(state),
            Err(fault) => {
                self.restore(value);
                return Err(fault);
            }
        }
        Ok(())
    }

    fn serialized(&self, value: &T) -> Result<Vec<u8>> {
        let saved = catch_unwind(AssertUnwindSafe(|| (self.save)(value)));
        let state = saved.unwrap_or_else(|_| Err(Fault::panicked("saving it")))?;
        if state.len() > self.core.limits.get().state {
            return Err(Fault::new(
                "RuntimeError",
                format!(
                    "the state would have {} bytes, and {} are allowed ([limits] state in credhost.toml): it is not \
                     saved. Store large data with Context::data()",
                    state.len(),
                    self.core.limits.get().state
                ),
            ));
        }
        Ok(state)
    }

    fn send(&self, state: Vec<u8>) {
        let mut last = self.last.borrow_mut();
        if last.as_deref() != Some(&state) {
            let base = self.version.get();
            self.core.push(&ToHost::Save { perspective: &self.name, state: &state, base, version: base + 1 });
            self.version.set(base + 1);
            *last = Some(state);
        }
    }

    /// Returns to the last saved state, or to a new value if nothing is saved.
    fn restore(&self, value: &mut T) {
        let last = self.last.borrow();
        if let Err(fault) = self.go_back(value, last.as_deref()) {
            tracing::error!(name = &*self.name, %fault, "cannot revert to the last saved state; the state stays unchanged");
        }
    }

    /// Makes the value from this state, or a new one if nothing is saved. On error the value stays unchanged.
    fn go_back(&self, value: &mut T, state: Option<&[u8]>) -> Result<()> {
        let first = self.first.borrow();
        let back = catch_unwind(AssertUnwindSafe(|| match state.or(first.as_deref()) {
            Some(state) if self.policy != Save::Never => (self.load)(state),
            _ => (self.fresh)(),
        }));
        self.beside.set(true);
        let back = back.unwrap_or_else(|_| Err(Fault::panicked("reading the saved state")))?;
        let undone = std::mem::replace(value, back);
        // The old value may be broken, so that dropping it panics again.
        let _ = catch_unwind(AssertUnwindSafe(|| drop(undone)));
        Ok(())
    }
}

fn busy() -> Fault {
    Fault::new("RuntimeError", "the object is in use further up in the same call")
}

impl<T> Clone for Handle<T> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

/// Whether both are the same object.
impl<T> PartialEq for Handle<T> {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl<T> Eq for Handle<T> {}

impl<T> std::hash::Hash for Handle<T> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.address().hash(state);
    }
}

impl<T> std::fmt::Debug for Handle<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Handle<{}>", std::any::type_name::<T>())
    }
}

impl<T: Callable> Serialize for Handle<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        export((self.address(), 0), || Rc::new(self.clone()), serializer)
    }
}

impl<'de, T: Callable> Deserialize<'de> for Handle<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let id = crate::remote::number(
            deserializer,
            jelly::types::reference::LOCAL,
            "a reference to an object of this service",
        )?;
        let core = Core::current().ok_or_else(|| D::Error::custom("a reference can be received only in a call"))?;
        core.own(id).ok_or_else(|| D::Error::custom("a reference to another kind of object"))
    }
}
