//! Cached objects: clients hold copies of their state and receive the changes.

use std::any::Any;
use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};

use serde::de::Error as _;
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::remote;
use crate::runtime::core::{Core, Encoded};
use crate::service::Callable;

/// A type whose values clients can hold copies of.
///
/// In Twisted: `twisted.spread.pb.Cacheable`. A Python client registers its own class for the copies:
/// `pb.setUnjellyableForClass("board.Board", RemoteBoard)`. That class is a `pb.RemoteCache` with `observe_…` methods.
///
/// ```
/// use plugin_api::prelude::*;
///
/// #[derive(Serialize)]
/// struct Board {
///     score: u32,
/// }
///
/// impl Cacheable for Board {
///     const TYPE: &'static str = "game.Board";
/// }
/// ```
pub trait Cacheable: Serialize + 'static {
    /// The name of the type for clients: "module.Class".
    const TYPE: &'static str;

    /// Called when a client's first copy has just been sent to it. Does nothing by default.
    ///
    /// In Twisted: `getStateToCacheAndObserveFor`.
    fn observed(&mut self, observer: &Observer) {
        let _ = observer;
    }

    /// Called when a client has released its last copy, or has left. A call by [`Observer::call`] from here still
    /// reaches a released copy. Does nothing by default.
    ///
    /// In Twisted: `stoppedObserving`.
    fn unobserved(&mut self, observer: &Observer) {
        let _ = observer;
    }
}

/// A client that holds a copy of a cached object.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// #[derive(Serialize)]
/// struct Board {
///     score: u32,
///     /// The clients that hold a copy. This field is not sent to clients.
///     #[serde(skip)]
///     watched_by: Vec<Observer>,
/// }
///
/// impl Cacheable for Board {
///     const TYPE: &'static str = "game.Board";
///
///     fn observed(&mut self, observer: &Observer) {
///         self.watched_by.push(observer.clone());
///         // Calls `observe_welcome(…)` on this copy only.
///         let _ = observer.call("welcome", (self.watched_by.len(),));
///     }
///
///     fn unobserved(&mut self, observer: &Observer) {
///         self.watched_by.retain(|other| other != observer);
///     }
/// }
///
/// struct Game {
///     board: Cached<Board>,
/// }
///
/// #[service("game", save = "never")]
/// impl Service for Game {
///     type Perspective = Player;
///
///     fn init(_: &Context<Self>, _: &Config) -> Result<Self> {
///         Ok(Self { board: Cached::new(Board { score: 0, watched_by: Vec::new() }) })
///     }
/// }
///
/// #[derive(Default)]
/// struct Player;
///
/// #[perspective]
/// impl Player {
///     fn board(&self, context: &Context<Game>) -> Result<Cached<Board>> {
///         context.service()?.read(|game| game.board.clone())
///     }
///
///     fn watchers(&self, context: &Context<Game>) -> Result<usize> {
///         context.service()?.read(|game| game.board.read(|board| board.watched_by.len()))?
///     }
/// }
///
/// let host = TestHost::<Game>::start()?;
/// let (alice, bob) = (host.attach("alice")?, host.attach("bob")?);
/// alice.call::<Value>("board", ())?;
/// bob.call::<Value>("board", ())?;
/// assert_eq!(alice.call::<usize>("watchers", ())?, 2);
/// assert_eq!(alice.updates().len(), 1, "each was welcomed alone");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct Observer {
    core: Weak<Core>,
    object: u64,
    connection: u32,
}

impl Observer {
    /// Calls `observe_{method}(*arguments)` on this client's copy only.
    ///
    /// # Errors
    /// If the arguments cannot be serialized, or the service has ended.
    pub fn call<A: Serialize>(&self, method: &str, arguments: A) -> Result<()> {
        let core = self.core.upgrade().ok_or_else(|| Fault::new("RuntimeError", "the service has ended"))?;
        let arguments = remote::tuple(Some(&*core), &arguments)?;
        core.update_one(self.connection, self.object, method, &arguments);
        Ok(())
    }

    /// The perspective of type `P` that this client is attached to. If there are several, one of them.
    #[must_use]
    pub fn perspective<P: Callable>(&self) -> Option<Handle<P>> {
        self.core.upgrade()?.perspective_of(self.connection)
    }
}

/// Whether both are the same client's copy of the same object.
impl PartialEq for Observer {
    fn eq(&self, other: &Self) -> bool {
        (self.object, self.connection) == (other.object, other.connection)
    }
}

impl Eq for Observer {}

impl std::hash::Hash for Observer {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        (self.object, self.connection).hash(state);
    }
}

impl std::fmt::Debug for Observer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Observer({}, {})", self.object, self.connection)
    }
}

/// A cached object of any type.
pub(crate) trait Observed {
    fn any(self: Rc<Self>) -> Rc<dyn Any>;
    /// Tells the object that a client has received its first copy, or (`begins` is `false`) released its last.
    fn watched(&self, core: &Rc<Core>, object: u64, connection: u32, begins: bool);
}

impl<T: Cacheable> Observed for CachedCell<T> {
    fn any(self: Rc<Self>) -> Rc<dyn Any> {
        self
    }

    fn watched(&self, core: &Rc<Core>, object: u64, connection: u32, begins: bool) {
        let observer = Observer { core: Rc::downgrade(core), object, connection };
        let Ok(mut value) = self.value.try_borrow_mut() else { return };
        match begins {
            true => value.observed(&observer),
            false => value.unobserved(&observer),
        }
    }
}

/// An object of the service that clients hold copies of. They receive its changes. Clones refer to the same object.
///
/// The first time the object is sent to a client, its whole state is sent. From then on the client receives each
/// [`Cached::update`], until it releases its copy or its connection ends. A copy that the client sends back arrives as
/// this object. A client that is no longer attached to any perspective of the service receives no updates.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// /// The object that clients hold copies of.
/// #[derive(Serialize)]
/// struct Board {
///     score: u32,
/// }
///
/// impl Cacheable for Board {
///     const TYPE: &'static str = "game.Board";
/// }
///
/// struct Game {
///     board: Cached<Board>,
/// }
///
/// #[service("game", save = "never")]
/// impl Service for Game {
///     type Perspective = Player;
///
///     fn init(_: &Context<Self>, _: &Config) -> Result<Self> {
///         Ok(Self { board: Cached::new(Board { score: 0 }) })
///     }
/// }
///
/// #[derive(Default)]
/// struct Player;
///
/// #[perspective]
/// impl Player {
///     /// Returns the board. From now on the client holds a copy.
///     fn board(&self, context: &Context<Game>) -> Result<Cached<Board>> {
///         context.service()?.read(|game| game.board.clone())
///     }
///
///     /// Updates every copy: a Python client's `observe_score(score)` is called.
///     fn score(&self, context: &Context<Game>, more: u32) -> Result<u32> {
///         let board = context.service()?.read(|game| game.board.clone())?;
///         let score = board.read(|board| board.score + more)?;
///         board.update("score", (score,), |board| board.score = score)?;
///         Ok(score)
///     }
/// }
///
/// let host = TestHost::<Game>::start()?;
/// let alice = host.attach("alice")?;
/// alice.call::<Value>("board", ())?;
/// assert_eq!(alice.call::<u32>("score", (5,))?, 5);
/// assert_eq!(alice.updates().len(), 1);
/// # Ok::<(), Fault>(())
/// ```
pub struct Cached<T> {
    shared: Rc<CachedCell<T>>,
}

struct CachedCell<T> {
    value: RefCell<T>,
    /// Its number, once it has been sent, and the core that knows it by this number.
    sent: RefCell<Option<(Weak<Core>, u64)>>,
    busy: Cell<bool>,
}

impl<T: Cacheable> Cached<T> {
    /// Creates an object that no client has yet.
    #[must_use]
    pub fn new(value: T) -> Self {
        Self {
            shared: Rc::new(CachedCell {
                value: RefCell::new(value),
                sent: RefCell::default(),
                busy: Cell::new(false),
            }),
        }
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If the object is being changed further up the call stack.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R> {
        looks();
        Ok(look(&*self.shared.value.try_borrow().map_err(|_| in_use())?))
    }

    /// Changes the object and calls `observe_{method}(*arguments)` on every client's copy. `arguments` is a tuple.
    ///
    /// This does not save the change. Keep data that must last in a perspective.
    ///
    /// # Errors
    /// If the object is in use further up the call stack, or the arguments cannot be serialized. Then nothing is
    /// changed.
    pub fn update<A: Serialize, R>(&self, method: &str, arguments: A, change: impl FnOnce(&mut T) -> R) -> Result<R> {
        looks();
        let sent = self.shared.sent.borrow().clone();
        let sent = sent.and_then(|(core, number)| Some((core.upgrade()?, number)));
        let mut value = self.shared.value.try_borrow_mut().map_err(|_| in_use())?;
        let arguments = remote::tuple(sent.as_ref().map(|(core, _)| &**core), &arguments)?;
        let unsent = Unsent { core: sent.as_ref().map(|(core, _)| &**core), arguments: Some(arguments) };
        let result = change(&mut value);
        drop(value);
        let arguments = unsent.send();
        if let (Some((core, number)), Some(arguments)) = (&sent, &arguments) {
            core.update(*number, method, arguments);
        }
        Ok(result)
    }

    /// Whether both are the same object.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.shared, &other.shared)
    }
}

/// Serialized arguments, whose objects are counted as handed out. If this is dropped before the arguments are sent
/// (because the change panics, for example), the objects are no longer counted.
struct Unsent<'c> {
    core: Option<&'c Core>,
    arguments: Option<Encoded>,
}

impl Unsent<'_> {
    fn send(mut self) -> Option<Encoded> {
        self.arguments.take()
    }
}

impl Drop for Unsent<'_> {
    fn drop(&mut self) {
        if let (Some(core), Some(arguments)) = (self.core, &self.arguments) {
            core.take_back(&arguments.objects);
        }
    }
}

/// Exists while the object is being serialized, so that an object cannot contain itself. A panic of the author's code
/// ends it, too.
struct Writing<'c>(&'c Cell<bool>);

impl<'c> Writing<'c> {
    fn begin(busy: &'c Cell<bool>) -> Option<Self> {
        (!busy.replace(true)).then_some(Self(busy))
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        self.0.set(false);
    }
}

/// Records that the running method accesses something that is not saved.
fn looks() {
    if let Some(core) = Core::current() {
        core.looks_elsewhere();
    }
}

fn in_use() -> Fault {
    Fault::new("RuntimeError", "the object is in use further up in the same call")
}

impl<T> Clone for Cached<T> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared) }
    }
}

/// Whether both are the same object.
impl<T> PartialEq for Cached<T> {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.shared, &other.shared)
    }
}

impl<T> Eq for Cached<T> {}

impl<T> std::fmt::Debug for Cached<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Cached<{}>", std::any::type_name::<T>())
    }
}

impl<T: Cacheable> Serialize for Cached<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let known = self.shared.sent.borrow().as_ref().map(|(_, number)| *number);
        let core = Core::current().ok_or_else(|| S::Error::custom("a cached object can be sent only during a call"))?;
        if core.copies.is_carrying() {
            return Err(S::Error::custom(
                "it contains a cached object of this service, which cannot outlive this code",
            ));
        }
        let _writing = Writing::begin(&self.shared.busy)
            .ok_or_else(|| S::Error::custom("a cached object that contains itself"))?;
        let object: Rc<dyn Observed> = Rc::<CachedCell<T>>::clone(&self.shared);
        let number = core.export_cached(object, known).map_err(S::Error::custom)?;
        *self.shared.sent.borrow_mut() = Some((Rc::downgrade(&core), number));
        looks();
        match self.shared.value.try_borrow() {
            Ok(value) => serializer.serialize_newtype_struct(
                jelly::types::reference::CACHE,
                &(jelly::types::Name(T::TYPE), number, &*value),
            ),
            Err(_) => {
                // Nothing was serialized, so this reference does not count.
                core.dropped(number, 1);
                Err(S::Error::custom("a cached object that is being changed"))
            }
        }
    }
}

impl<'de, T: Cacheable> Deserialize<'de> for Cached<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let number = remote::number(deserializer, jelly::types::reference::LOCAL, "a cached object of this service")?;
        let core = Core::current().ok_or_else(|| D::Error::custom("a cached object can be received only in a call"))?;
        core.cached(number)
            .and_then(|object| object.downcast::<CachedCell<T>>().ok())
            .map(|shared| Self { shared })
            .ok_or_else(|| D::Error::custom("a cached object that no longer exists"))
    }
}
