//! Local copies of remote objects, which follow their changes.

use std::any::Any;
use std::cell::RefCell;
use std::marker::PhantomData;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use jelly::RefKind;
use jelly::types::reference;
use serde::de::{DeserializeOwned, Error as _, IgnoredAny, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer, Serialize, Serializer};
use tokio::sync::watch;

use super::error::Error;
use super::link::{Asked, HeldCopy, News, Typed, Writing};
use super::received::{Call, referred};
use crate::Failure;

/// A type for local copies of remote objects.
///
/// In Twisted: `twisted.spread.pb.RemoteCache`; the service's object is a `Cacheable` of `plugin_api` or of Twisted.
pub trait Follow: DeserializeOwned + Send + 'static {
    /// The other side's name for the type: "module.Class".
    const TYPE: &'static str;

    /// Applies a change to the copy. The other side has called `observer.callRemote(method, …)`. This runs on the connection's
    /// task, in the order of the changes, and before later answers are delivered.
    ///
    /// # Errors
    /// The error is sent to the other side, if it asked for an answer.
    fn observe(&mut self, change: &Call) -> Result<(), Failure>;
}

/// A local copy of a remote object, which follows the object's changes. It is read from an answer or a call. Clones share the
/// copy. The other side is notified when the last clone is dropped. Sent back, it is the object itself.
///
/// ```no_run
/// # async fn run(todo: pb::client::Remote) -> Result<(), Box<dyn std::error::Error>> {
/// use pb::Failure;
/// use pb::client::{Call, Follow, Followed};
///
/// #[derive(serde::Deserialize)]
/// struct Scores {
///     points: i64,
/// }
///
/// impl Follow for Scores {
///     const TYPE: &'static str = "game.Scores";
///
///     fn observe(&mut self, change: &Call) -> Result<(), Failure> {
///         match change.method() {
///             "points" => (self.points,) = change.read()?,
///             _ => return Err(change.unknown()),
///         }
///         Ok(())
///     }
/// }
///
/// let mut scores: Followed<Scores> = todo.call("scores", &()).await?.read()?;
/// loop {
///     println!("{}", scores.read(|scores| scores.points));
///     scores.changed().await?;
/// }
/// # }
/// ```
pub struct Followed<T> {
    value: Arc<Mutex<T>>,
    held: Arc<HeldCopy>,
    news: watch::Receiver<News>,
}

impl<T: Follow> Followed<T> {
    /// Passes the copy to `look`. Changes wait meanwhile, and so does everything else on the connection: be brief.
    ///
    /// # Panics
    /// Panics if the copy's own [`Follow::observe`] calls it.
    pub fn read<R>(&self, look: impl FnOnce(&T) -> R) -> R {
        // After a panic in a change, the author's code is responsible for the value's consistency.
        let this = Arc::as_ptr(&self.value).cast::<()>();
        let within = OBSERVING.with_borrow(|observing| observing.contains(&this));
        assert!(!within, "a copy is read while its own `observe` runs");
        look(&self.value.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Waits for a change since the previous call on this clone.
    ///
    /// # Errors
    /// Returns an error if the connection is lost, or the other side has ended the object. The copy changes no more then.
    pub async fn changed(&mut self) -> Result<(), Error> {
        if *self.news.borrow() == News::Ended {
            return Err(self.held.link.flow.lost());
        }
        let changed = self.news.changed().await;
        match *self.news.borrow_and_update() {
            News::Changed(_) if changed.is_ok() => Ok(()),
            _ => Err(self.held.link.flow.lost()),
        }
    }

    fn new(held: Arc<HeldCopy>, made: Option<Typed>) -> Option<Self> {
        let value = held.cell.typed(made)?.downcast().ok()?;
        let news = held.cell.news.subscribe();
        Some(Self { value, held, news })
    }
}

thread_local! {
    /// The values that are being changed on this thread.
    static OBSERVING: RefCell<Vec<*const ()>> = const { RefCell::new(Vec::new()) };
}

fn change<T: Follow>(value: &(dyn Any + Send + Sync), asked: Asked) -> Result<(), Failure> {
    let Some(value) = value.downcast_ref::<Mutex<T>>() else { return Ok(()) };
    let call = Call::new(asked, None);
    let this: *const () = std::ptr::from_ref(value).cast();
    if OBSERVING.with_borrow(|observing| observing.contains(&this)) {
        return Err(Failure::new("RuntimeError", "the copy's own `observe` is running"));
    }
    OBSERVING.with_borrow_mut(|observing| observing.push(this));
    let observed =
        catch_unwind(AssertUnwindSafe(|| value.lock().unwrap_or_else(PoisonError::into_inner).observe(&call)));
    OBSERVING.with_borrow_mut(Vec::pop);
    observed.unwrap_or_else(|_| Err(Failure::new("RuntimeError", "the client's code panicked")))
}

impl<T> Clone for Followed<T> {
    fn clone(&self) -> Self {
        Self { value: Arc::clone(&self.value), held: Arc::clone(&self.held), news: self.news.clone() }
    }
}

/// Equal if they are copies of the same object.
impl<T> PartialEq for Followed<T> {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.value, &other.value)
    }
}

impl<T> Eq for Followed<T> {}

impl<T> std::fmt::Debug for Followed<T> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Followed<{}>", std::any::type_name::<T>())
    }
}

impl<T> Serialize for Followed<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        Writing::admits(&self.held.link.flow, RefKind::Cached, self.held.luid)?;
        serializer.serialize_newtype_struct(reference::CACHED, &self.held.luid)
    }
}

impl<'de, T: Follow> Deserialize<'de> for Followed<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of<T>(PhantomData<T>);
        impl<'de, T: Follow> Visitor<'de> for Of<T> {
            type Value = Followed<T>;

            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                write!(f, "a cached object of the other side, a {}", T::TYPE)
            }

            /// A copy that was received before.
            fn visit_u64<E: serde::de::Error>(self, luid: u64) -> Result<Followed<T>, E> {
                let held = referred(|objects| objects.copies.get(&luid).cloned());
                let unread = held.as_ref().and_then(|held| held.cell.unread());
                if let Some(copy) = unread.and_then(|state| jelly::from_slice(&state).ok()) {
                    return Ok(copy);
                }
                held.and_then(|held| Followed::new(held, None))
                    .ok_or_else(|| E::custom(format!("it was not read as a {} when its state arrived", T::TYPE)))
            }

            /// A copy with its type, number and state.
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Followed<T>, A::Error> {
                let short = || A::Error::custom("a cached object of the other side with its state");
                let class: &str = seq.next_element()?.ok_or_else(short)?;
                if class != T::TYPE {
                    while seq.next_element::<IgnoredAny>()?.is_some() {}
                    return Err(A::Error::custom(format!("expected a {}, found a {class}", T::TYPE)));
                }
                let luid: u64 = seq.next_element()?.ok_or_else(short)?;
                let value: T = seq.next_element()?.ok_or_else(short)?;
                let made = Typed { value: Arc::new(Mutex::new(value)), change: change::<T> };
                referred(|objects| objects.copies.get(&luid).cloned())
                    .ok_or_else(|| A::Error::custom("a copy can be read only from an answer or a call"))
                    .and_then(|held| {
                        Followed::new(held, Some(made))
                            .ok_or_else(|| A::Error::custom("too many changes arrived before it was read"))
                    })
            }
        }
        deserializer.deserialize_newtype_struct(reference::CACHE, Of(PhantomData))
    }
}
