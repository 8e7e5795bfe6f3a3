//! What an author implements.

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
/// /// Where clients point to: not worth a write to the disk each time.
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
    /// After each call that changed it, before its answer leaves: what a client is told is durable. The default.
    Call,
    /// When the last client has detached: faster, and what was told may be lost with the power.
    Detach,
    /// Never.
    Never,
}

impl Save {
    /// As `#[service]` has it.
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Call => "call",
            Self::Detach => "detach",
            Self::Never => "never",
        }
    }
}

/// A unit of functionality that people log in to. Write it with `#[service("name")]`, which fills in what is absent.
///
/// In the original: `twisted.cred.service.Service`.
pub trait Service: Sized + 'static {
    /// One identity's view onto the service.
    type Perspective: Callable + Served<Service = Self>;

    /// Its name, by which keys name it. Filled in.
    const NAME: &'static str;
    /// When its perspectives are saved. Filled in.
    const SAVE: Save;
    /// Whether the service itself is saved, too (`#[service("name", shared)]`): after each change, as a perspective
    /// is. Filled in.
    const SHARED: bool;
    /// Services of the same host that must serve before it starts, and are stopped after it
    /// (`#[service("name", needs = ["other"])]`). Filled in.
    const NEEDS: &'static [&'static str];
    /// What it needs in a sandbox beside computing, in the operator's words
    /// (`#[service("name", permissions = ["net:tcp:443", "read:/etc/ssl"])]`): the operator grants it by `[service.name] allow`, and
    /// `credhost vet` says what is lacking. Filled in: nothing.
    const PERMISSIONS: &'static [&'static str] = &[];
    /// The classes that untyped values ([`Value`]) may have instances of, in and out
    /// (`#[service("name", copyables = ["shop.Card"])]`): a stock client that does not know a class loses its
    /// connection over it, so a value with another class is an error to who sends it. Typed arguments and answers name
    /// their classes themselves. Filled in: none.
    const COPYABLES: &'static [&'static str] = &[];
    /// Its doc comment. Filled in.
    const DOC: &'static str;

    /// Tells what clients give to be called back (`#[service("name", mind = Ear)]`). Filled in: nothing.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions) {
        let _ = into;
    }

    /// Makes the service from its configuration. No state yet, and no side effects: another generation may be
    /// serving. Filled in: `Default`.
    ///
    /// # Errors
    /// What the operator should know; the library is then not loaded.
    fn init(context: &Context<Self>, config: &Config) -> Result<Self>;

    /// Starts it: its saved state, if it is `shared`, is there. Background tasks begin here. Filled in: nothing.
    ///
    /// # Errors
    /// What the operator should know; the service is then not started.
    fn start(me: Handle<Self>, context: Context<Self>) -> impl Future<Output = Result<()>>;

    /// Ends it. Its tasks are ended after this returns. Filled in: nothing.
    fn stop(me: Handle<Self>, context: Context<Self>) -> impl Future<Output = ()>;

    /// Makes the perspective of this name, which has no saved state. Filled in: `Default`.
    ///
    /// # Errors
    /// When there shall be none of this name.
    fn perspective(&self, name: &str) -> Result<Self::Perspective>;

    /// Somebody with the key attaches. Answers with the perspective that is actually attached, which may be another
    /// one (a guest's, a throw-away), or refuses. Filled in: the one asked for.
    ///
    /// # Errors
    /// To refuse.
    fn attached(
        context: &Context<Self>,
        perspective: Handle<Self::Perspective>,
        attachment: &Attachment,
    ) -> Result<Handle<Self::Perspective>>;

    /// The attachment has ended: called once for each `attached` that did not refuse, on what that answered with.
    /// Filled in: nothing.
    fn detached(context: &Context<Self>, perspective: Handle<Self::Perspective>, attachment: &Attachment);

    /// Whether it is well; asked after a start, before it serves. Filled in: yes.
    ///
    /// # Errors
    /// When it is not.
    fn health(me: &Handle<Self>) -> Result<()>;

    /// Makes an object again that code before this has handed out to clients under a name
    /// ([`Handle::named`](crate::Handle::named)), after a reload; the clients' references are to this object then.
    /// Filled in: there is none.
    ///
    /// # Errors
    /// When there is no such object any more: references to it are dead.
    fn rebuild(context: Context<Self>, name: String) -> impl Future<Output = Result<AnyHandle>>;

    /// Makes a perspective's saved state, of whatever version of the code, one that this version can read. Called with
    /// each state before it is read. Filled in: as it is.
    ///
    /// # Errors
    /// When it cannot be; nobody can attach to the perspective then, and its state stays as it is.
    fn migrate(state: Value) -> Result<Value>;

    /// As [`Service::migrate`], for the service's own state. Filled in: as it is.
    ///
    /// # Errors
    /// When it cannot be; the service does not start then.
    fn migrate_shared(state: Value) -> Result<Value>;

    /// Filled in.
    #[doc(hidden)]
    fn save_perspective(perspective: &Self::Perspective) -> Result<Vec<u8>>;
    /// Filled in.
    #[doc(hidden)]
    fn load_perspective(state: &[u8]) -> Result<Self::Perspective>;
    /// Filled in.
    #[doc(hidden)]
    fn save_service(&self) -> Result<Vec<u8>>;
    /// Filled in.
    #[doc(hidden)]
    fn load_service(state: &[u8]) -> Result<Self>;
}

/// A type whose methods clients can call. Written by `#[perspective]`.
pub trait Callable: Sized + 'static {
    /// Its methods.
    const METHODS: &'static [Method];
    /// Its name, as written.
    const NAME: &'static str;
    /// The doc comment of its `#[perspective]` block.
    const DOC: &'static str;

    /// Tells what its methods take and answer with.
    #[doc(hidden)]
    fn describe(into: &mut Descriptions) {
        let _ = into;
    }

    /// Calls one of them.
    #[doc(hidden)]
    fn invoke(me: &Handle<Self>, incoming: Incoming<'_>) -> Invoked;
}

/// Which service a perspective belongs to. Written by `#[service]`.
pub trait Served {
    /// The service.
    type Service: Service;
}

/// For `#[service]`: the state of a type with serde.
///
/// # Errors
/// As its `Serialize`.
#[doc(hidden)]
pub fn save<T: Serialize>(value: &T) -> Result<Vec<u8>> {
    jelly::to_vec(value).map_err(|error| Fault::new("RuntimeError", format!("the state cannot be saved: {error}")))
}

/// For `#[service]`: a type with serde, of its state.
///
/// # Errors
/// As its `Deserialize`.
#[doc(hidden)]
pub fn load<T: DeserializeOwned>(state: &[u8]) -> Result<T> {
    // A state has a quota of its own, not the wire's limits.
    jelly::from_scanned(state)
        .map_err(|error| Fault::new("RuntimeError", format!("the saved state does not fit this version: {error}")))
}

/// For `#[service]`: [`load`], for an author who migrates.
///
/// # Errors
/// As `migrate`, and as [`load`].
#[doc(hidden)]
pub fn load_migrated<T: DeserializeOwned>(state: &[u8], migrate: fn(Value) -> Result<Value>) -> Result<T> {
    let state: Value = load(state)?;
    load(&migrate(state)?.encode())
}
