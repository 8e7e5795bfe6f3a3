//! The traits of a service: what an author implements.

use jelly::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::call::Attachment;
use crate::context::{Config, Context};
use crate::described::Descriptions;
use crate::fault::{Fault, Result};
use crate::handle::{AnyHandle, Handle};
use crate::manifest::Method;
use crate::runtime::incoming::{Incoming, Invoked};

/// When perspectives are saved: `#[service("name", save = "call")]`.
///
/// ```
/// use plugin_api::prelude::*;
///
/// #[derive(Default)]
/// struct Cursors;
///
/// /// Where clients point: not worth a disk write each time.
/// #[service("cursors", save = "detach")]
/// impl Service for Cursors {
///     type Perspective = Cursor;
/// }
///
/// #[derive(Default, Serialize, Deserialize)]
/// struct Cursor(u32, u32);
///
/// #[perspective]
/// impl Cursor {}
///
/// assert_eq!(Cursors::SAVE, Save::Detach);
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Save {
    /// After each call that changed it, before the answer is sent, so that everything a client is told is durable.
    /// The default.
    Call,
    /// When the last client detaches. Faster, but a power failure may lose changes that clients were told of.
    Detach,
    /// Never.
    Never,
}

impl Save {
    /// The value's name in `#[service]`.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Detach => "detach",
            Self::Never => "never",
        }
    }
}

/// A unit of functionality that people log in to. Write it with `#[service("name")]`, which provides everything that
/// is absent.
///
/// In Twisted: `twisted.cred.service.Service`.
pub trait Service: Sized + 'static {
    /// One identity's view onto the service.
    type Perspective: Callable + Served<Service = Self>;

    /// Its name, which keys refer to. Set by the attribute.
    const NAME: &'static str;
    /// When its perspectives are saved. Set by the attribute.
    const SAVE: Save;
    /// Whether the service itself is also saved (`#[service("name", shared)]`): after each change, as a perspective
    /// with `save = "call"`. Set by the attribute.
    const SHARED: bool;
    /// Services of the same host that must be serving before it starts, and that stop after it
    /// (`#[service("name", needs = ["other"])]`). Set by the attribute.
    const NEEDS: &'static [&'static str];
    /// The permissions that it needs in a sandbox beyond computing, as the operator writes them
    /// (`#[service("name", permissions = ["net:tcp:443", "read:/etc/ssl"])]`). The operator grants them by
    /// `[service.name] allow`, and `credhost vet` reports which are missing. Default: none.
    const PERMISSIONS: &'static [&'static str] = &[];
    /// The classes whose instances untyped values ([`Value`]) may contain, in arguments and answers
    /// (`#[service("name", copyables = ["shop.Card"])]`). A stock client that does not know a class loses its
    /// connection over it, so the sender of a value with any other class gets an error. Typed arguments and answers
    /// name their classes themselves. Default: none.
    const COPYABLES: &'static [&'static str] = &[];
    /// Its doc comment. Set by the attribute.
    const DOC: &'static str;

    /// Describes the object that clients pass for callbacks (`#[service("name", mind = Ear)]`). Default: nothing.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions) {
        let _ = into;
    }

    /// Creates the service from its configuration. The saved state is not available yet. Must have no side effects,
    /// because another generation may be serving. Default: the type's `Default`.
    ///
    /// # Errors
    /// If the service cannot be created, with a message for the operator. The library is then not loaded.
    fn init(context: &Context<Self>, config: &Config) -> Result<Self>;

    /// Starts the service. If it is `shared`, its saved state is loaded by now. Begin background tasks here. Default:
    /// does nothing.
    ///
    /// # Errors
    /// If the service cannot start, with a message for the operator. The service is then not started.
    fn start(me: Handle<Self>, context: Context<Self>) -> impl Future<Output = Result<()>>;

    /// Stops the service. Default: does nothing. Not called if `start` has failed or was never called.
    ///
    /// Called also for new code that has started but is then discarded, because it cannot take over from the old code: the old
    /// code serves on meanwhile.
    ///
    /// If the service is stopped, its tasks end after this returns. If its code is replaced, this is called later: the tasks of
    /// [`Context::spawn`] have ended and the new code serves by then, and the last call of this code has been answered.
    fn stop(me: Handle<Self>, context: Context<Self>) -> impl Future<Output = ()>;

    /// Creates the perspective of this name, which has no saved state. Default: the perspective's `Default`.
    ///
    /// # Errors
    /// If there is to be no perspective of this name.
    fn perspective(&self, name: &str) -> Result<Self::Perspective>;

    /// Called when a client attaches, with a key or by a listener's rules for clients without a login, and again for every attached
    /// client when the code is replaced ([`Reason`](crate::Reason)). Returns the perspective that is actually attached, which may be
    /// another one (a guest's, a temporary one). Default: returns the requested perspective.
    ///
    /// # Errors
    /// To refuse the attachment.
    fn attached(
        context: &Context<Self>,
        perspective: Handle<Self::Perspective>,
        attachment: &Attachment,
    ) -> Result<Handle<Self::Perspective>>;

    /// Called when the client has released the perspective, or the attachment has ended, with the perspective that `attached`
    /// returned. Called once, by the code that serves then: replaced code gets no call for clients that stay. Default: does
    /// nothing.
    fn detached(context: &Context<Self>, perspective: Handle<Self::Perspective>, attachment: &Attachment);

    /// Checks whether the service is healthy. Called after a start, before the service serves. Default: it is.
    ///
    /// # Errors
    /// If it is not healthy.
    fn health(me: &Handle<Self>) -> Result<()>;

    /// Recreates an object that earlier code handed out to clients under a name
    /// ([`Handle::named`](crate::Handle::named)). Called at a reload. The clients' references then refer to the
    /// returned object. Default: an error for every name.
    ///
    /// # Errors
    /// If there is no such object any more. References to it are then dead.
    fn rebuild(context: Context<Self>, name: String) -> impl Future<Output = Result<AnyHandle>>;

    /// Converts a perspective's saved state, written by any version of the code, into one that this version can read.
    /// Called with each state before it is read. Default: returns the state unchanged.
    ///
    /// # Errors
    /// If the state cannot be converted. Nobody can attach to the perspective then, and its state stays unchanged.
    fn migrate(state: Value) -> Result<Value>;

    /// Like [`Service::migrate`], for the service's own state. Default: returns the state unchanged.
    ///
    /// # Errors
    /// If the state cannot be converted. The service does not start then.
    fn migrate_shared(state: Value) -> Result<Value>;

    /// Provided by the attribute.
    #[doc(hidden)]
    fn save_perspective(perspective: &Self::Perspective) -> Result<Vec<u8>>;
    /// Provided by the attribute.
    #[doc(hidden)]
    fn load_perspective(state: &[u8]) -> Result<Self::Perspective>;
    /// Provided by the attribute.
    #[doc(hidden)]
    fn save_service(&self) -> Result<Vec<u8>>;
    /// Provided by the attribute.
    #[doc(hidden)]
    fn load_service(state: &[u8]) -> Result<Self>;
}

/// A type whose methods clients can call. Implemented by `#[perspective]`.
pub trait Callable: Sized + 'static {
    /// Its methods.
    const METHODS: &'static [Method];
    /// Its name, as written.
    const NAME: &'static str;
    /// The doc comment of its `#[perspective]` block.
    const DOC: &'static str;

    /// Describes what its methods take and return.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions) {
        let _ = into;
    }

    /// Calls one of them.
    #[doc(hidden)]
    fn invoke(me: &Handle<Self>, incoming: Incoming<'_>) -> Invoked;
}

/// Which service a perspective belongs to. Implemented by `#[service]`.
pub trait Served {
    /// The service.
    type Service: Service;
}

/// For `#[service]`: serializes a value into its state.
///
/// # Errors
/// If its `Serialize` fails.
#[doc(hidden)]
pub fn save<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    jelly::to_vec(value).map_err(|error| Fault::new("RuntimeError", format!("the state cannot be saved: {error}")))
}

/// For `#[service]`: deserializes a value from its state.
///
/// # Errors
/// If its `Deserialize` fails.
#[doc(hidden)]
pub fn load<T: DeserializeOwned>(state: &[u8]) -> Result<T> {
    // A state has its own quota; the wire's limits do not apply.
    jelly::from_scanned(state)
        .map_err(|error| Fault::new("RuntimeError", format!("the saved state does not fit this version: {error}")))
}

/// For `#[service]`: [`load`] with the author's `migrate`.
///
/// # Errors
/// If `migrate` fails, and as [`load`].
#[doc(hidden)]
pub fn load_migrated<T: DeserializeOwned>(state: &[u8], migrate: fn(Value) -> Result<Value>) -> Result<T> {
    let state: Value = load(state)?;
    load(&migrate(state)?.encode())
}
