//! Objects of which clients keep a copy beyond their connection.

use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::cached::{Cacheable, Cached};
use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::manifest::Method;
use crate::runtime::core::Core;
use crate::runtime::incoming::{Incoming, Invoked};
use crate::service::Callable;

/// A type whose values clients keep. In Python it is a `twisted.spread.publish.RemotePublished`, registered by
/// `pb.setUnjellyableForClass`. Clients keep what `Serialize` writes: a struct or a map.
pub trait Publish: Serialize + 'static {
    /// The name by which clients know the type: "module.Class".
    const TYPE: &'static str;
}

/// An object whose state clients keep in a file. A client that has the current state already does not fetch it again.
///
/// When it is sent to a client, the client receives its name and the time of its last change. A client with a
/// different time in its file asks for the state. A client that has the object learns of a change only when the
/// object is sent to it again. Clones are the same object.
///
/// In Twisted: `twisted.spread.publish.Publishable`.
///
/// ```
/// use std::time::{Duration, SystemTime};
///
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
/// use plugin_api::{Publish, Published};
///
/// /// The state that clients keep.
/// #[derive(Serialize)]
/// struct Catalogue {
///     entries: Vec<String>,
/// }
///
/// impl Publish for Catalogue {
///     const TYPE: &'static str = "library.Catalogue";
/// }
///
/// struct Library {
///     catalogue: Published<Catalogue>,
/// }
///
/// #[service("library", save = "never")]
/// impl Service for Library {
///     type Perspective = Reader;
///
///     fn init(_: &Context<Self>, _: &Config) -> Result<Self> {
///         // The time of the state, not of the start, so that no client fetches it again because the code was replaced.
///         let changed = SystemTime::UNIX_EPOCH + Duration::from_secs(1_750_000_000);
///         let catalogue = Catalogue { entries: vec!["Moby-Dick".to_owned()] };
///         Ok(Self { catalogue: Published::changed_at("catalogue", changed, catalogue) })
///     }
/// }
///
/// #[derive(Default)]
/// struct Reader;
///
/// #[perspective]
/// impl Reader {
///     fn catalogue(&self, context: &Context<Library>) -> Result<Published<Catalogue>> {
///         context.service()?.read(|library| library.catalogue.clone())
///     }
///
///     fn add(&self, context: &Context<Library>, entry: String) -> Result<()> {
///         let catalogue = context.service()?.read(|library| library.catalogue.clone())?;
///         catalogue.republish(|catalogue| catalogue.entries.push(entry))
///     }
/// }
///
/// let host = TestHost::<Library>::start()?;
/// let alice = host.attach("alice")?;
/// let catalogue = alice.reference("catalogue", ())?;
/// let state: std::collections::HashMap<String, Vec<String>> = catalogue.call("getStateToPublish", ())?;
/// assert_eq!(state["entries"], ["Moby-Dick"]);
/// # Ok::<(), Fault>(())
/// ```
pub struct Published<T: Publish> {
    state: Rc<State<T>>,
    /// The message that is sent to clients. Replaced after each change.
    announced: Rc<RefCell<Cached<Announced<T>>>>,
}

struct State<T> {
    id: String,
    value: RefCell<T>,
    changed: Cell<SystemTime>,
}

/// The message that a client receives, with Twisted's five fields.
struct Announced<T: Publish> {
    source: Handle<Source<T>>,
    changed: SystemTime,
}

/// The object from which a client fetches the state.
struct Source<T>(Rc<State<T>>);

impl<T: Publish> Published<T> {
    /// Creates an object that counts as changed now. Its name must be unique in this service, across all types,
    /// because clients name their files by it.
    #[must_use]
    pub fn new(id: impl Into<String>, value: T) -> Self {
        Self::changed_at(id, SystemTime::now(), value)
    }

    /// Creates an object that was last changed at this time, as the service has saved it.
    #[must_use]
    pub fn changed_at(id: impl Into<String>, changed: SystemTime, value: T) -> Self {
        let state = Rc::new(State { id: id.into(), value: RefCell::new(value), changed: Cell::new(changed) });
        let announced = Rc::new(RefCell::new(announce(&state)));
        Self { state, announced }
    }

    /// Reads the object.
    ///
    /// # Errors
    /// If the caller itself is changing it further up in the same call.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R> {
        looks();
        Ok(look(&*self.state.value.try_borrow().map_err(|_| in_use())?))
    }

    /// Changes the object. A client to which it is sent from now on fetches its state.
    ///
    /// # Errors
    /// If the caller itself is using it further up in the same call.
    pub fn republish<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R> {
        looks();
        let changed = change(&mut *self.state.value.try_borrow_mut().map_err(|_| in_use())?);
        // Two changes have different times, however close they are, and whatever happens to the machine's clock.
        let least = self.state.changed.get() + Duration::from_micros(1);
        self.state.changed.set(SystemTime::now().max(least));
        let before = self.announced.replace(announce(&self.state));
        drop(before);
        Ok(changed)
    }

    /// Returns the time of the last change.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Publish, Published};
    /// /// Whether it has changed since it was saved.
    /// fn is_newer<T: Publish>(published: &Published<T>, saved: std::time::SystemTime) -> bool {
    ///     published.changed() > saved
    /// }
    /// ```
    #[must_use]
    pub fn changed(&self) -> SystemTime {
        self.state.changed.get()
    }
}

fn announce<T: Publish>(state: &Rc<State<T>>) -> Cached<Announced<T>> {
    Cached::new(Announced { source: Handle::new(Source(Rc::clone(state))), changed: state.changed.get() })
}

fn looks() {
    if let Some(core) = Core::current() {
        core.looks_elsewhere();
    }
}

fn in_use() -> Fault {
    Fault::new("RuntimeError", "the object is in use further up in the same call")
}

impl<T: Publish> Clone for Published<T> {
    fn clone(&self) -> Self {
        Self { state: Rc::clone(&self.state), announced: Rc::clone(&self.announced) }
    }
}

/// Whether both are the same object.
impl<T: Publish> PartialEq for Published<T> {
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.state, &other.state)
    }
}

impl<T: Publish> Eq for Published<T> {}

impl<T: Publish> std::fmt::Debug for Published<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Published<{}>({:?})", std::any::type_name::<T>(), self.state.id)
    }
}

impl<T: Publish> Serialize for Published<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        // One that a client has sent back may be older than the state.
        let is_old = self.announced.borrow().read(|announced| announced.changed != self.state.changed.get());
        if is_old.unwrap_or_default() {
            let before = self.announced.replace(announce(&self.state));
            drop(before);
        }
        self.announced.borrow().serialize(serializer)
    }
}

impl<'de, T: Publish> Deserialize<'de> for Published<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let announced = Cached::<Announced<T>>::deserialize(deserializer)?;
        let state = announced
            .read(|announced| announced.source.read(|Source(state)| Rc::clone(state)))
            .and_then(std::convert::identity)
            .map_err(|fault| serde::de::Error::custom(fault.message()))?;
        Ok(Self { state, announced: Rc::new(RefCell::new(announced)) })
    }
}

impl<T: Publish> Cacheable for Announced<T> {
    const TYPE: &'static str = T::TYPE;
}

impl<T: Publish> Serialize for Announced<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::{Error as _, SerializeMap as _};
        let id = self.source.read(|Source(state)| state.id.clone()).map_err(S::Error::custom)?;
        let since = self.changed.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        let mut five = serializer.serialize_map(Some(5))?;
        five.serialize_entry("remote", &self.source)?;
        five.serialize_entry("publishedID", &id)?;
        // The state is the same for all perspectives, and clients name their files by these three.
        five.serialize_entry("perspective", "None")?;
        five.serialize_entry("service", &Core::current().map_or("None", |core| core.service.get()))?;
        five.serialize_entry("timestamp", &since.as_secs_f64())?;
        five.end()
    }
}

const METHODS: &[Method] = &[Method {
    name: "getStateToPublish",
    doc: "Returns the state that clients keep.",
    parameters: &[],
    returns: "",
    changes: false,
    raises: &[],
}];

impl<T: Publish> Callable for Source<T> {
    const METHODS: &'static [Method] = METHODS;
    const NAME: &'static str = "Published";
    const DOC: &'static str = "An object whose state clients keep.";

    fn invoke(me: &Handle<Self>, incoming: Incoming<'_>) -> Invoked {
        match (incoming.method(), METHODS) {
            ("getStateToPublish", [method]) => incoming.read(me, method, |Self(state), arguments, sink| {
                arguments.end()?;
                sink.value(&*state.value.try_borrow().map_err(|_| in_use())?)
            }),
            _ => incoming.no_such_method::<Self>(),
        }
    }
}
