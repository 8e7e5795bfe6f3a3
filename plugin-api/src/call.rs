//! The call being served, and the attachment it comes by.

use std::cell::Cell;
use std::rc::Rc;

use crate::fault::{Fault, Result};
use crate::remote::Remote;

/// The call being served. A method that wants it takes `call: Call` (async) or `call: &Call`.
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
///     /// Answers with who calls.
///     fn whoami(&self, call: &Call) -> String {
///         call.attachment().identity().to_owned()
///     }
///
///     /// Rings the caller's own object, unless they have gone.
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
    gone: Cell<bool>,
    told: tokio::sync::Notify,
}

impl Call {
    pub(crate) fn new(attachment: &Attachment) -> Self {
        let attachment = attachment.clone();
        Self { shared: Rc::new(CallCell { attachment, gone: Cell::new(false), told: tokio::sync::Notify::new() }) }
    }

    pub(crate) fn set_gone(&self) {
        self.shared.gone.set(true);
        self.shared.told.notify_waiters();
    }

    /// The object that the client gave when it attached: to call it back.
    ///
    /// # Errors
    /// When it gave none.
    pub fn mind(&self) -> Result<&Remote> {
        self.shared
            .attachment
            .mind()
            .ok_or_else(|| Fault::value("this needs a client that gives an object to call back"))
    }

    /// By which attachment it comes: whose it is.
    #[must_use]
    pub fn attachment(&self) -> &Attachment {
        &self.shared.attachment
    }

    /// Whether the client has gone meanwhile. The call runs to its end all the same.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        self.shared.gone.get()
    }

    /// Waits until the client has gone; for ever, if it stays.
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
    mind: Option<Remote>,
    reason: Reason,
}

/// Why a client attaches.
///
/// ```
/// # use plugin_api::prelude::*;
/// fn attached(attachment: &Attachment) {
///     // Who was here before the code was replaced has not come just now.
///     if attachment.reason() == Reason::Login {
///         println!("{} has come", attachment.perspective());
///     }
/// }
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Reason {
    /// It has asked for the perspective.
    Login,
    /// It was attached to the code before this, and does not notice that the service was replaced.
    Reload,
}

impl Attachment {
    pub(crate) fn new(
        id: u64,
        perspective: &str,
        identity: &str,
        peer: &str,
        mind: Option<Remote>,
        reason: Reason,
    ) -> Self {
        let (perspective, identity, peer) = (perspective.to_owned(), identity.to_owned(), peer.to_owned());
        Self { shared: Rc::new(AttachmentCell { id, perspective, identity, peer, mind, reason }) }
    }

    /// Why it attaches: a service that greets its clients does not greet them again after a reload.
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

    /// Where the client is, for a person to read: "127.0.0.1:40312".
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.shared.peer
    }

    /// The object that the client gave, if it gave one.
    #[must_use]
    pub fn mind(&self) -> Option<&Remote> {
        self.shared.mind.as_ref()
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
