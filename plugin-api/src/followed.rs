//! Copies of clients' objects: a service holds their state and receives the changes.

use std::any::Any;
use std::cell::RefCell;
use std::future::poll_fn;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::rc::Rc;
use std::task::Poll;

use jelly::{Classes, RefKind, Value};
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::Notify;

use crate::abi::frame;
use crate::fault::{Fault, Result};
use crate::remote::Remote;
use crate::runtime::copies::{Found, Waiting};
use crate::runtime::core::Core;

/// A type whose values are copies of clients' objects.
///
/// `Deserialize` reads the state that the client sends. When the service is replaced, `Serialize` writes the copy, and
/// the new code reads it. So the type must be able to read what it writes.
///
/// In Twisted: `twisted.spread.pb.RemoteCache`; the client's object is a `pb.Cacheable`.
pub trait Follow: Serialize + DeserializeOwned + 'static {
    /// The name of the type for clients: "module.Class".
    const TYPE: &'static str;

    /// Called when the client's object has changed: `observer.callRemote(method, *arguments)` at the client.
    /// `arguments` is a tuple.
    ///
    /// # Errors
    /// The error is sent to the client, if the client waits for an answer.
    fn observe(&mut self, method: &str, arguments: Value) -> Result<()>;
}

/// A copy of a client's object. Clones are the same copy. The client is notified when the last clone has been dropped.
/// Sent back to the client, it is the object itself.
///
/// When the service is replaced, the new code asks in `attached` for the copies of the clients that were here before:
/// [`Attachment::followed`](crate::Attachment::followed). Copies that it does not ask for are released. The client may
/// send them again at any time.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::{Follow, Followed};
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Race;
/// # #[service("race", save = "never")]
/// # impl Service for Race {
/// #     type Perspective = Marshal;
/// # }
/// /// A copy of each client's boat.
/// #[derive(Serialize, Deserialize)]
/// struct Boat {
///     knots: f64,
/// }
///
/// impl Follow for Boat {
///     const TYPE: &'static str = "race.Boat";
///
///     fn observe(&mut self, method: &str, arguments: Value) -> Result<()> {
///         match method {
///             "speed" => (self.knots,) = arguments.to_typed()?,
///             other => return Err(Fault::new("AttributeError", format!("boats have no {other}"))),
///         }
///         Ok(())
///     }
/// }
///
/// #[derive(Default)]
/// struct Marshal {
///     boats: Vec<Followed<Boat>>,
/// }
///
/// #[perspective]
/// impl Marshal {
///     fn enter(&mut self, boat: Followed<Boat>) {
///         self.boats.push(boat);
///     }
///
///     fn fastest(&self) -> Result<f64> {
///         self.boats.iter().try_fold(0.0, |most, boat| Ok(boat.read(|boat| boat.knots)?.max(most)))
///     }
/// }
///
/// let host = TestHost::<Race>::start()?;
/// let alice = host.attach("alice")?;
/// let boat = alice.give_cached("race.Boat", &std::collections::HashMap::from([("knots", 5.0)]))?;
/// alice.call::<()>("enter", (&boat,))?;
/// assert_eq!(alice.call::<f64>("fastest", ())?, 5.0);
/// alice.tell(&boat, "speed", (7.5,))?;
/// assert_eq!(alice.call::<f64>("fastest", ())?, 7.5);
/// # Ok::<(), Fault>(())
/// ```
pub struct Followed<T> {
    shared: Rc<FollowedCell<T>>,
    /// The client's object, which counts how often it was received.
    remote: Remote,
}

struct FollowedCell<T> {
    value: RefCell<T>,
    changed: Notify,
}

/// A copy of any type.
pub(crate) trait AnyFollowed {
    fn any(self: Rc<Self>) -> Rc<dyn Any>;
    fn observe(&self, method: &str, arguments: Value) -> Result<()>;
    fn class(&self) -> &'static str;
    /// Appends its state to `out`, and the references in it to `references`.
    fn write(&self, out: &mut Vec<u8>, classes: Classes, references: &mut Vec<(RefKind, u64)>) -> jelly::Result<()>;
}

impl<T: Follow> AnyFollowed for FollowedCell<T> {
    fn any(self: Rc<Self>) -> Rc<dyn Any> {
        self
    }

    fn observe(&self, method: &str, arguments: Value) -> Result<()> {
        let mut value = self.value.try_borrow_mut().map_err(|_| in_use())?;
        value.observe(method, arguments)?;
        drop(value);
        self.changed.notify_waiters();
        Ok(())
    }

    fn class(&self) -> &'static str {
        T::TYPE
    }

    fn write(&self, out: &mut Vec<u8>, classes: Classes, references: &mut Vec<(RefKind, u64)>) -> jelly::Result<()> {
        let value = self.value.try_borrow().map_err(<jelly::Error as serde::ser::Error>::custom)?;
        jelly::write_with(out, &*value, classes, references)
    }
}

impl<T: Follow> FollowedCell<T> {
    fn new(value: T) -> Rc<Self> {
        Rc::new(Self { value: RefCell::new(value), changed: Notify::new() })
    }

    /// Finds the copy with this number, which came by attachment `by`. `first` reads its initial state, if that is
    /// available.
    fn known(
        core: &Rc<Core>,
        (handle, by): (u64, u64),
        first: Option<&mut dyn FnMut() -> Result<T>>,
    ) -> Result<Option<Rc<Self>>> {
        let other = |class: &str| Fault::arguments(format!("expected a {}, found a {class}", T::TYPE));
        let lost = |why: &str| Fault::arguments(format!("a cached object of the client, a {}, {why}", T::TYPE));
        let waiting = match core.copies.find(handle, T::TYPE, first.is_some()) {
            Found::Nothing => return Ok(None),
            Found::Other(class) => return Err(other(&class)),
            Found::Lost => return Err(lost("some of whose changes were lost")),
            Found::InMind => return Err(lost("whose state is in its mind: read the mind first")),
            Found::Here(copy) => {
                let class = copy.class();
                let copy = copy.any().downcast().map_err(|_| other(class))?;
                core.copies.came(handle, by);
                return Ok(Some(copy));
            }
            Found::Waits(waiting) => waiting,
        };
        /// Marks the copy as lost if it cannot be read, or if reading it panics.
        struct Unread<'a>(&'a Core, u64);
        impl Drop for Unread<'_> {
            fn drop(&mut self) {
                self.0.copies.lose(self.1);
            }
        }
        let unread = Unread(core, handle);
        let copy = core.reading(by, || Self::go_on(core, &waiting, first))?;
        std::mem::forget(unread);
        core.copies.follow(handle, by, Rc::<Self>::clone(&copy));
        Ok(Some(copy))
    }

    /// Builds a copy that nobody has asked for yet, in its current state.
    fn go_on(core: &Core, waiting: &Waiting, first: Option<&mut dyn FnMut() -> Result<T>>) -> Result<Rc<Self>> {
        let classes = core.classes.get();
        let unreadable = |error| Fault::arguments(format!("the state of a {}: {error}", T::TYPE));
        let state = match (&waiting.state, first) {
            (Some(state), _) => jelly::from_slice_with(state, classes).map_err(unreadable)?,
            (None, Some(first)) => first()?,
            (None, None) => return Err(Fault::arguments(format!("the state of a {} is missing", T::TYPE))),
        };
        let copy = Self::new(state);
        for (method, arguments) in frame::entries(&waiting.changes) {
            let method = String::from_utf8_lossy(method);
            let tell = || copy.observe(&method, jelly::from_slice_with(arguments.unwrap_or_default(), classes)?);
            // The client has been answered already, so an error is only logged.
            match catch_unwind(AssertUnwindSafe(tell)).unwrap_or_else(|_| Err(Fault::panicked("observe"))) {
                Ok(()) => {}
                Err(fault) => tracing::warn!(class = T::TYPE, %method, %fault, "a change to a client's object is lost"),
            }
        }
        Ok(copy)
    }
}

fn in_use() -> Fault {
    Fault::new("RuntimeError", "the object is in use further up in the same call")
}

impl<T: Follow> Followed<T> {
    /// The copies that came by this attachment.
    pub(crate) fn of(core: &Rc<Core>, attachment: u64) -> Vec<Self> {
        let follow = |handle| {
            let remote = core.reading(attachment, || core.arriving(handle))?;
            let unreadable = |fault| tracing::warn!(%fault, "a copy of a client's object is lost");
            let shared = FollowedCell::known(core, (handle, attachment), None).map_err(unreadable).ok()??;
            Some(Self { shared, remote })
        };
        core.copies.of(attachment, T::TYPE).into_iter().filter_map(follow).collect()
    }

    /// Reads the copy.
    ///
    /// # Errors
    /// If the copy is being changed further up the call stack.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R> {
        if let Some(core) = Core::current() {
            core.looks_elsewhere();
        }
        Ok(look(&*self.shared.value.try_borrow().map_err(|_| in_use())?))
    }

    /// Waits until the client reports a change. Returns `false` if the client has left: then no change comes any more.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Follow, Followed};
    /// /// Waits until a client's boat is fast, or has gone.
    /// async fn fast<B: Follow>(boat: &Followed<B>, is_fast: impl Fn(&B) -> bool) -> Result<bool> {
    ///     while !boat.read(&is_fast)? {
    ///         if !boat.changed().await {
    ///             return Ok(false);
    ///         }
    ///     }
    ///     Ok(true)
    /// }
    /// ```
    pub async fn changed(&self) -> bool {
        let (mut changed, mut gone) = (pin!(self.shared.changed.notified()), pin!(self.remote.gone()));
        poll_fn(|poll| match (changed.as_mut().poll(poll), gone.as_mut().poll(poll)) {
            (Poll::Ready(()), _) => Poll::Ready(true),
            (Poll::Pending, Poll::Ready(())) => Poll::Ready(false),
            (Poll::Pending, Poll::Pending) => Poll::Pending,
        })
        .await
    }

    /// Whether the client has left. The copy then no longer changes.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.remote.is_gone()
    }
}

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self { shared: Rc::clone(&self.shared), remote: self.remote.clone() }
    }
}

/// Whether both are copies of the same object.
impl<T> PartialEq for Followed<T> {
    fn eq(&self, other: &Self) -> bool {
        self.remote == other.remote
    }
}

impl<T> Eq for Followed<T> {}

impl<T> std::fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Followed<{}>", std::any::type_name::<T>())
    }
}

impl<T> Serialize for Followed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let core =
            Core::current().ok_or_else(|| S::Error::custom("a client's object can be sent only during a call"))?;
        if core.copies.is_carrying() {
            return serializer.serialize_newtype_struct(jelly::types::reference::CACHED, &self.remote.handle());
        }
        self.remote.serialize(serializer)
    }
}

impl<'de, T: Follow> Deserialize<'de> for Followed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Of<T>(PhantomData<T>);
        impl<'de, T: Follow> Visitor<'de> for Of<T> {
            type Value = Followed<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a cached object of the client's, a {}", T::TYPE)
            }

            /// An object that was received before.
            fn visit_u64<E: serde::de::Error>(self, handle: u64) -> std::result::Result<Followed<T>, E> {
                let gone = || E::custom("a cached object of the client's that is not there any more");
                let core = Core::current().ok_or_else(gone)?;
                let remote = core.arriving(handle).ok_or_else(gone)?;
                let known = FollowedCell::known(&core, (handle, core.read_by()), None);
                let shared = known.map_err(|fault| E::custom(fault.message()))?.ok_or_else(gone)?;
                Ok(Followed { shared, remote })
            }

            /// Its type, its number, its state.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Followed<T>, A::Error> {
                let short = || A::Error::custom("a cached object of the client's with its state");
                let class: &str = seq.next_element()?.ok_or_else(short)?;
                if class != T::TYPE {
                    return Err(A::Error::custom(format!("expected a {}, found a {class}", T::TYPE)));
                }
                let handle: u64 = seq.next_element()?.ok_or_else(short)?;
                let core = Core::current()
                    .ok_or_else(|| A::Error::custom("a client's object can be received only in a call"))?;
                let gone = || match core.copies.reads_again() {
                    true => A::Error::custom("a cached object of the client that was lost with the old code"),
                    false => A::Error::custom("a cached object of the client's that is not there any more"),
                };
                let remote = core.arriving(handle).ok_or_else(gone)?;
                let fault = |fault: Fault| A::Error::custom(fault.message());
                // A mind may be read several times: its state is that of the first time.
                let mut first = None;
                let mut read = || {
                    let state = seq.next_element::<T>().map_err(|error| Fault::arguments(error.to_string()))?;
                    first = Some(());
                    state.ok_or_else(|| Fault::arguments("a cached object without its state"))
                };
                if let Some(shared) =
                    FollowedCell::known(&core, (handle, core.read_by()), Some(&mut read)).map_err(fault)?
                {
                    if first.is_none() {
                        let _: Option<IgnoredAny> = seq.next_element()?;
                    }
                    return Ok(Followed { shared, remote });
                }
                if core.copies.reads_again() {
                    return Err(gone());
                }
                let value: T = seq.next_element()?.ok_or_else(short)?;
                let shared = FollowedCell::new(value);
                // Kept until the client ends the object: the client may send it again without its state.
                core.copies.follow(handle, core.read_by(), Rc::<FollowedCell<T>>::clone(&shared));
                Ok(Followed { shared, remote })
            }
        }
        deserializer.deserialize_newtype_struct(jelly::types::reference::CACHE, Of(PhantomData))
    }
}
