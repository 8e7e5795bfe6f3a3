//! Clients' objects whose state a service has a copy of, and is told the changes of.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::rc::Rc;

use jelly::Value;
use serde::de::{DeserializeOwned, Error as _, SeqAccess, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::Notify;

use crate::fault::{Fault, Result};
use crate::remote::Remote;
use crate::runtime::core::Core;

/// A type whose values are copies of clients' objects.
///
/// In Twisted: `twisted.spread.pb.RemoteCache`; the client's object is a `pb.Cacheable`.
pub trait Follow: DeserializeOwned + 'static {
    /// The name by which clients know the type: "module.Class".
    const TYPE: &'static str;

    /// The client's object has changed: `observer.callRemote(method, *arguments)` there. `arguments` is a tuple.
    ///
    /// # Errors
    /// What the client is told, if it asks.
    fn observe(&mut self, method: &str, arguments: Value) -> Result<()>;
}

/// A client's object that this service has a copy of. Clones are the same copy; the client is told when the last has been
/// dropped. Sent back to the client, it is the object itself.
///
/// The copy does not outlive the code: after a reload the client's object is dead for the service, until the client sends
/// it to the new code (a client that was told so by `Reason::Reload` in `attached`, say).
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
/// #[derive(Deserialize)]
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
    /// The client's object, which counts how often it came.
    remote: Remote,
}

struct FollowedCell<T> {
    value: RefCell<T>,
    changed: Notify,
}

/// A copy, whatever its type.
pub(crate) trait AnyFollowed {
    fn any(self: Rc<Self>) -> Rc<dyn Any>;
    fn observe(&self, method: &str, arguments: Value) -> Result<()>;
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
}

fn in_use() -> Fault {
    Fault::new("RuntimeError", "the object is in use further up in the same call")
}

impl<T: Follow> Followed<T> {
    /// Looks at the copy.
    ///
    /// # Errors
    /// When it is being changed by the caller itself, further up.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> Result<R> {
        if let Some(core) = Core::current() {
            core.looks_elsewhere();
        }
        Ok(look(&*self.shared.value.try_borrow().map_err(|_| in_use())?))
    }

    /// Waits until the client has told of a change.
    pub async fn changed(&self) {
        self.shared.changed.notified().await;
    }

    /// Whether its client has gone: the copy changes no more.
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
        if Core::current().is_none() {
            return Err(S::Error::custom("a client's object can be sent in calls only"));
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

            /// One that has come before.
            fn visit_u64<E: serde::de::Error>(self, handle: u64) -> std::result::Result<Followed<T>, E> {
                Core::current()
                    .and_then(|core| {
                        let shared = core.followed(handle)?.any().downcast::<FollowedCell<T>>().ok()?;
                        Some(Followed { shared, remote: core.arriving(handle)? })
                    })
                    .ok_or_else(|| E::custom("a cached object of the client's that is not there any more"))
            }

            /// Its type, its number, its state.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> std::result::Result<Followed<T>, A::Error> {
                let short = || A::Error::custom("a cached object of the client's with its state");
                let class: &str = seq.next_element()?.ok_or_else(short)?;
                if class != T::TYPE {
                    return Err(A::Error::custom(format!("expected a {}, found a {class}", T::TYPE)));
                }
                let handle: u64 = seq.next_element()?.ok_or_else(short)?;
                let value: T = seq.next_element()?.ok_or_else(short)?;
                let core =
                    Core::current().ok_or_else(|| A::Error::custom("a client's object can come in calls only"))?;
                let remote = core.arriving(handle).ok_or_else(short)?;
                let shared = Rc::new(FollowedCell { value: RefCell::new(value), changed: Notify::new() });
                // Kept until the client has ended it: it may send it once more, without its state.
                core.follow(handle, Rc::<FollowedCell<T>>::clone(&shared));
                Ok(Followed { shared, remote })
            }
        }
        deserializer.deserialize_newtype_struct(jelly::types::reference::CACHE, Of(PhantomData))
    }
}
