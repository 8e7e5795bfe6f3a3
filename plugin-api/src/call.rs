//! The call being served, and its attachment.

use std::cell::Cell;
use std::rc::Rc;

use serde::de::DeserializeOwned;

use crate::fault::{Fault, Result};
use crate::followed::{Follow, Followed};
use crate::handle::{Handle, View};
use crate::remote::Remote;
use crate::runtime::core::{Core, Object};
use crate::service::Callable;

/// The call being served. A method that needs it takes a parameter `call: Call` (async) or `call: &Call`.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Room;
/// # #[service("room", save = "never")]
/// # impl Service for Room {
/// #     type Perspective = Guest;
/// # }
/// #[derive(Default)]
/// struct Guest;
///
/// #[perspective]
/// impl Guest {
///     /// Returns the caller's identity.
///     fn whoami(&self, call: &Call) -> String {
///         call.attachment().identity().to_owned()
///     }
///
///     /// Rings the caller's own object, unless the caller has left.
///     async fn ring(_me: Handle<Self>, call: Call) -> Result<String> {
///         call.mind()?.call("ring", ("wake up",)).await
///     }
/// }
///
/// let host = TestHost::<Room>::start()?;
/// let alice = host.attach_with("alice", |method, _| Ok(Value::from(format!("heard {method}"))))?;
/// assert_eq!(alice.call::<String>("whoami", ())?, "alice");
/// assert_eq!(alice.call::<String>("ring", ())?, "heard ring");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct Call {
    shared: Rc<CallCell>,
}

struct CallCell {
    attachment: Attachment,
    /// The caller's perspective, if the called object knows it.
    avatar: Option<Rc<dyn Object>>,
    gone: Cell<bool>,
    told: tokio::sync::Notify,
}

impl Call {
    pub(crate) fn new(attachment: &Attachment, avatar: Option<Rc<dyn Object>>) -> Self {
        let (attachment, gone, told) = (attachment.clone(), Cell::new(false), tokio::sync::Notify::new());
        Self { shared: Rc::new(CallCell { attachment, avatar, gone, told }) }
    }

    pub(crate) fn set_gone(&self) {
        self.shared.gone.set(true);
        self.shared.told.notify_waiters();
    }

    /// The object that the client passed when it attached, for callbacks.
    ///
    /// # Errors
    /// If the client passed no object.
    pub fn mind(&self) -> Result<&Remote> {
        self.shared.attachment.mind().ok_or_else(|| {
            Fault::value("this call needs a mind: the client must pass an object for callbacks when it logs in")
        })
    }

    /// The caller's perspective. A method of an object that several clients share uses it to find out which of them
    /// calls.
    ///
    /// In Twisted: the first argument of a `view_…` method of a `pb.Viewable`.
    ///
    /// # Errors
    /// If the client has released the perspective, or it has another type.
    pub fn perspective<P: Callable>(&self) -> Result<Handle<P>> {
        let kept = || self.shared.avatar.clone();
        kept()
            .or_else(|| Core::current()?.avatar(self.attachment().id()))
            .and_then(|avatar| avatar.any().downcast_ref::<Handle<P>>().cloned())
            .ok_or_else(|| Fault::value("the caller no longer has such a perspective"))
    }

    /// A reference to an object for this caller alone. A call through it is a call by this attachment, whoever makes
    /// it. Two identities of one client get two different references.
    ///
    /// In Twisted: a `pb.Viewable` that a perspective returns becomes a `pb.ViewPoint`.
    #[must_use]
    pub fn view<T: Callable>(&self, object: &Handle<T>) -> View {
        View::new(object, self.attachment())
    }

    /// The attachment of this call. It identifies the caller.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.shared.attachment
    }

    /// Whether the client has left in the meantime. The call continues nevertheless, within the operator's limits
    /// (`orphans` and `orphan_calls` in `[limits]`).
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # #[derive(Default)]
    /// # struct Library;
    /// # #[perspective]
    /// # impl Library {
    /// /// Searches all shelves, but stops when the client has left.
    /// async fn search(_me: Handle<Self>, call: Call) -> Result<u32> {
    ///     let mut found = 0;
    ///     for shelf in (0..1000).take_while(|_| !call.is_gone()) {
    ///         found += plugin_api::blocking(move || shelf % 7).await?;
    ///     }
    ///     Ok(found)
    /// }
    /// # }
    /// ```
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.gone.get()
    }

    /// Waits until the client has left. Never returns if the client stays.
    pub async fn gone(&self) {
        let told = self.shared.told.notified();
        if !self.is_gone() {
            told.await;
        }
    }
}

impl std::fmt::Debug for Call {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Call").field("attachment", self.attachment()).finish_non_exhaustive()
    }
}

/// One client, attached to one perspective.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// /// Knows who is here.
/// #[derive(Default)]
/// struct Room {
///     present: Vec<Attachment>,
/// }
///
/// #[service("room", save = "never")]
/// impl Service for Room {
///     type Perspective = Guest;
///
///     fn attached(context: &Context<Self>, guest: Handle<Guest>, attachment: &Attachment) -> Result<Handle<Guest>> {
///         context.service()?.write(|room| room.present.push(attachment.clone()))?;
///         Ok(guest)
///     }
///
///     fn detached(context: &Context<Self>, _: Handle<Guest>, attachment: &Attachment) {
///         let _ = context.service().and_then(|room| {
///             room.write(|room| room.present.retain(|other| other.id() != attachment.id()))
///         });
///     }
/// }
///
/// #[derive(Default)]
/// struct Guest;
///
/// #[perspective]
/// impl Guest {
///     fn present(&self, context: &Context<Room>) -> Result<Vec<String>> {
///         context.service()?.read(|room| room.present.iter().map(|guest| guest.perspective().to_owned()).collect())
///     }
/// }
///
/// let host = TestHost::<Room>::start()?;
/// let (alice, bob) = (host.attach("alice")?, host.attach("bob")?);
/// assert_eq!(alice.call::<Vec<String>>("present", ())?, ["alice", "bob"]);
/// drop(bob);
/// assert_eq!(alice.call::<Vec<String>>("present", ())?, ["alice"]);
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct Attachment {
    shared: Rc<AttachmentCell>,
}

struct AttachmentCell {
    id: u64,
    perspective: String,
    identity: String,
    peer: String,
    mind: Mind,
    reason: Reason,
}

/// The mind that a client passed when it attached.
pub(crate) enum Mind {
    /// Nothing.
    None,
    /// An object, for callbacks.
    Object(Remote),
    /// Any other value, in Jelly. `_objects` are the client's callable objects in it, held for as long as the value.
    /// Copied objects are held with the other copies. `again`: the client passed the value to an earlier generation,
    /// and the states in it date from then.
    Value { jelly: Vec<u8>, _objects: Vec<Remote>, again: bool },
}

impl Mind {
    /// Receives a mind across the wall: a handle or 0, and a value or nothing, with the client's objects in it.
    /// `again`: the previous generation had it, too.
    pub(crate) fn received(
        core: &Rc<Core>,
        attachment: u64,
        handle: u64,
        (value, handles): (&[u8], &[u8]),
        again: bool,
    ) -> Self {
        match handle {
            0 if value.is_empty() => Self::None,
            0 => {
                let objects = core.received(handles, attachment);
                let _objects = match objects.is_empty() {
                    true => objects,
                    false => core.copies.mind(attachment, value, objects, again),
                };
                Self::Value { jelly: value.to_vec(), _objects, again }
            }
            handle => Self::Object(Remote::received(core, handle, attachment)),
        }
    }
}

/// Why a client attaches.
///
/// ```
/// # use plugin_api::prelude::*;
/// fn attached(attachment: &Attachment) {
///     // A client that was here before the code was replaced has not just arrived.
///     if attachment.reason() == Reason::Login {
///         println!("{} has come", attachment.perspective());
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// The client has asked for the perspective.
    Login,
    /// The client was attached to the previous code. It does not notice that the service was replaced.
    Reload,
}

impl Attachment {
    pub(crate) fn new(id: u64, perspective: &str, identity: &str, peer: &str, mind: Mind, reason: Reason) -> Self {
        let (perspective, identity, peer) = (perspective.to_owned(), identity.to_owned(), peer.to_owned());
        Self { shared: Rc::new(AttachmentCell { id, perspective, identity, peer, mind, reason }) }
    }

    /// Why the client attaches. A service that greets its clients checks this, so as not to greet them again after a
    /// reload.
    #[must_use]
    pub fn reason(&self) -> Reason {
        self.shared.reason
    }

    /// A number that no other attachment of this service has.
    #[must_use]
    pub fn id(&self) -> u64 {
        self.shared.id
    }

    /// The perspective's name.
    #[must_use]
    pub fn perspective(&self) -> &str {
        &self.shared.perspective
    }

    /// The name of the identity that has logged in.
    #[must_use]
    pub fn identity(&self) -> &str {
        &self.shared.identity
    }

    /// The client's address, in human-readable form: "127.0.0.1:40312".
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// The object that the client passed when it attached, if any.
    #[must_use]
    pub fn mind(&self) -> Option<&Remote> {
        match &self.shared.mind {
            Mind::Object(remote) => Some(remote),
            Mind::None | Mind::Value { .. } => None,
        }
    }

    /// The value that the client passed when it attached: an object ([`Remote`], or a type with `#[mind]`), a string, a
    /// number, a dictionary, anything. If the client passed nothing, the value is `None`: read it as an `Option`.
    ///
    /// A cacheable object of the client becomes a [`Followed`]. Each call returns the same copy, until the client
    /// releases the perspective. After that, the mind has no copies, and cannot be read. An object whose changes were
    /// lost (because the previous code crashed, for example) causes an error.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// #[derive(Default)]
    /// struct Room;
    ///
    /// #[service("room", save = "never")]
    /// impl Service for Room {
    ///     type Perspective = Guest;
    ///
    ///     fn attached(_: &Context<Self>, guest: Handle<Guest>, by: &Attachment) -> Result<Handle<Guest>> {
    ///         let nick: Option<String> = by.mind_as()?;
    ///         guest.write(|guest| guest.nick = nick.unwrap_or_else(|| by.identity().to_owned()))?;
    ///         Ok(guest)
    ///     }
    /// }
    ///
    /// #[derive(Default)]
    /// struct Guest {
    ///     nick: String,
    /// }
    ///
    /// #[perspective]
    /// impl Guest {
    ///     fn nick(&self) -> &str {
    ///         &self.nick
    ///     }
    /// }
    ///
    /// let host = TestHost::<Room>::start()?;
    /// let alice = host.attach_with_value("alice", &"ally")?;
    /// assert_eq!(alice.call::<String>("nick", ())?, "ally");
    /// assert_eq!(host.attach("bob")?.call::<String>("nick", ())?, "bob");
    /// # Ok::<(), Fault>(())
    /// ```
    ///
    /// # Errors
    /// If the value has another type.
    pub fn mind_as<T: DeserializeOwned>(&self) -> Result<T> {
        const NONE: &[u8] = &[1, 0x80, 1, 0x87];
        let object;
        let (value, again): (&[u8], bool) = match &self.shared.mind {
            Mind::None => (NONE, false),
            Mind::Value { jelly, again, .. } => (jelly, *again),
            Mind::Object(remote) => {
                object = remote.jelly();
                (&object, false)
            }
        };
        let read = |classes| jelly::from_slice_with(value, classes);
        match Core::current() {
            Some(core) => core.reading(self.id(), || core.copies.reading(again, || read(core.classes.get()))),
            None => read(jelly::Classes::Any),
        }
        .map_err(|error| Fault::arguments(format!("the client's mind: {error}")))
    }

    /// The copies of this client's objects that have type `T`, came by this attachment, and are still held by this
    /// service.
    ///
    /// After the service was replaced, a call in `attached` returns the copies that the previous code held, in their
    /// current state. Copies that are not asked for there are released. So are copies that came by a perspective that
    /// the client has released since: `attached` is not called for it. A copy that this code cannot read is omitted,
    /// and the reason is logged.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    /// use plugin_api::{Follow, Followed};
    ///
    /// #[derive(Default)]
    /// struct Race;
    ///
    /// #[service("race", save = "never")]
    /// impl Service for Race {
    ///     type Perspective = Marshal;
    ///
    ///     fn attached(_: &Context<Self>, marshal: Handle<Marshal>, by: &Attachment) -> Result<Handle<Marshal>> {
    ///         marshal.write(|marshal| marshal.boats = by.followed())?;
    ///         Ok(marshal)
    ///     }
    /// }
    ///
    /// #[derive(Serialize, Deserialize)]
    /// struct Boat {
    ///     knots: f64,
    /// }
    ///
    /// impl Follow for Boat {
    ///     const TYPE: &'static str = "race.Boat";
    ///
    ///     fn observe(&mut self, _: &str, arguments: Value) -> Result<()> {
    ///         (self.knots,) = arguments.to_typed()?;
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
    /// alice.tell(&boat, "speed", (7.5,))?;
    /// host.reload()?;
    /// assert_eq!(alice.call::<f64>("fastest", ())?, 7.5);
    /// alice.tell(&boat, "speed", (8.0,))?;
    /// assert_eq!(alice.call::<f64>("fastest", ())?, 8.0);
    /// # Ok::<(), Fault>(())
    /// ```
    #[must_use]
    pub fn followed<T: Follow>(&self) -> Vec<Followed<T>> {
        Core::current().map(|core| Followed::of(&core, self.id())).unwrap_or_default()
    }

    /// Whether the client has not logged in. The operator admits everybody here, by `[pb] anonymous` or by a name in
    /// `[pb.names]`. The [`identity`](Attachment::identity) is then empty.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::testing::TestHost;
    /// # #[derive(Default)]
    /// # struct Room;
    /// # #[service("room", save = "never")]
    /// # impl Service for Room {
    /// #     type Perspective = Guest;
    /// # }
    /// # #[derive(Default)]
    /// # struct Guest;
    /// #[perspective]
    /// impl Guest {
    ///     fn say(&self, call: &Call, text: String) -> Result<String> {
    ///         if call.attachment().is_anonymous() {
    ///             return Err(Fault::unauthorized("only who has logged in may say something"));
    ///         }
    ///         Ok(text)
    ///     }
    /// }
    ///
    /// let host = TestHost::<Room>::start()?;
    /// let refused = host.attach_anonymous("guest")?.call::<String>("say", ("hello",)).unwrap_err();
    /// assert!(refused.is("twisted.cred.error.Unauthorized"));
    /// assert_eq!(host.attach("alice")?.call::<String>("say", ("hello",))?, "hello");
    /// # Ok::<(), Fault>(())
    /// ```
    #[must_use]
    pub fn is_anonymous(&self) -> bool {
        self.shared.identity.is_empty()
    }
}

impl std::fmt::Debug for Attachment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Attachment")
            .field("identity", &self.identity())
            .field("perspective", &self.perspective())
            .finish_non_exhaustive()
    }
}
