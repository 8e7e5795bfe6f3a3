//! Objects of the client.

use std::rc::Rc;

use jelly::types::reference;
use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::abi::frame::ToHost;
use crate::fault::{Fault, Result};
use crate::runtime::core::{Core, Encoded, Reply};
use crate::runtime::held;

/// An object of a client: its mind, or a reference that it has sent. Clones are the same reference. The reference is
/// released when the last clone is dropped.
///
/// The client can disconnect at any time. A call then fails with `twisted.spread.pb.PBConnectionLost`.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Clock;
/// # #[service("clock", save = "never")]
/// # impl Service for Clock {
/// #     type Perspective = View;
/// # }
/// #[derive(Default)]
/// struct View;
///
/// #[perspective]
/// impl View {
///     /// Calls the client's object and waits for its answer.
///     async fn ask(_me: Handle<Self>, call: Call) -> Result<u32> {
///         call.mind()?.call("how_many", ("apples",)).await
///     }
///
///     /// Notifies the client's object and does not wait.
///     fn tell(&self, call: &Call) -> Result<()> {
///         call.mind()?.notify("tick", (1,))
///     }
/// }
///
/// let host = TestHost::<Clock>::start()?;
/// let alice = host.attach_with("alice", |_, _| Ok(Value::from(3)))?;
/// assert_eq!(alice.call::<u32>("ask", ())?, 3);
/// // The service receives exceptions that the object raises.
/// let bob = host.attach_with("bob", |_, _| Err(Fault::new("bob.Busy", "later")))?;
/// assert_eq!(bob.call::<u32>("ask", ()).unwrap_err().class(), "bob.Busy");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Clone)]
pub struct Remote {
    shared: Rc<RemoteCell>,
    /// The attachment by which this clone arrived; 0 if unknown.
    attachment: u64,
}

pub(crate) struct RemoteCell {
    core: Rc<Core>,
    handle: u64,
    /// How often it was received. Each time is given back.
    pub(crate) count: std::cell::Cell<u64>,
}

impl Remote {
    /// A reference that was received once more, by an attachment (0 if unknown).
    pub(crate) fn received(core: &Rc<Core>, handle: u64, attachment: u64) -> Self {
        let shared = core.remote(handle, |core| RemoteCell { core, handle, count: std::cell::Cell::new(0) });
        shared.count.set(shared.count.get() + 1);
        Self { shared, attachment }
    }

    /// A reference in a value that is being read.
    pub(crate) fn arriving(shared: Rc<RemoteCell>, attachment: u64) -> Self {
        Self { shared, attachment }
    }

    /// The reference in jelly, in the form that a service receives.
    pub(crate) fn jelly(&self) -> Vec<u8> {
        let mut out = Vec::new();
        jelly::token::list(&mut out, 2);
        jelly::token::bytes(&mut out, b"remote");
        jelly::token::uint(&mut out, self.shared.handle);
        out
    }

    /// The service's number for it.
    pub(crate) fn handle(&self) -> u64 {
        self.shared.handle
    }

    /// How many references to it there are here.
    pub(crate) fn references(&self) -> usize {
        Rc::strong_count(&self.shared)
    }

    fn target(&self) -> (u64, u64) {
        (self.shared.handle, self.attachment)
    }

    /// Calls a method of the client's object. `arguments` is a tuple: `(text,)` for one argument. The call is on its
    /// way when this returns; await the answer.
    ///
    /// # Errors
    /// * The client's own exceptions, by their class.
    /// * `twisted.spread.pb.PBConnectionLost` if the client has gone.
    /// * `MemoryError` if the client does not answer, or does not read, and the limit of calls that wait for it
    ///   (`[limits] unanswered`) is reached.
    /// * `TypeError` if the answer is not of the requested type.
    pub fn call<A: Serialize, R: DeserializeOwned>(
        &self,
        method: &str,
        arguments: A,
    ) -> impl Future<Output = Result<R>> + use<A, R> {
        self.call_with(method, arguments, NoKeywords {})
    }

    /// [`Remote::call`] with keyword arguments: `keywords` is a struct or a map.
    ///
    /// # Errors
    /// As [`Remote::call`].
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::testing::TestHost;
    /// # use std::collections::HashMap;
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
    ///     async fn ring(_me: Handle<Self>, call: Call) -> Result<String> {
    ///         let bell = call.mind()?;
    ///         if bell.is_gone() {
    ///             return Ok("nobody is there".to_owned());
    ///         }
    ///         bell.call_with("ring", (3,), HashMap::from([("loud", true)])).await
    ///     }
    /// }
    ///
    /// let host = TestHost::<Room>::start()?;
    /// // The object is called with the method and `(arguments, keywords)`.
    /// let alice = host.attach_with("alice", |method, arguments| Ok(Value::from(format!("{method}{arguments}"))))?;
    /// assert!(alice.call::<String>("ring", ())?.starts_with("ring"));
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn call_with<A: Serialize, K: Serialize, R: DeserializeOwned>(
        &self,
        method: &str,
        arguments: A,
        keywords: K,
    ) -> impl Future<Output = Result<R>> + use<A, K, R> {
        let core = &self.shared.core;
        let sent = arguments_of(core, &arguments, &keywords)
            .map(|(arguments, middle)| core.call(self.target(), method, &arguments, middle));
        // Keeps the client's object alive until its answer has come.
        let keep = self.clone();
        async move {
            let Reply { bytes, remotes, .. } = sent?.await?;
            let core = &keep.shared.core;
            let answer = core.reading(keep.attachment, || jelly::from_slice_with(&bytes, core.classes.get()));
            held::hold(remotes, &keep);
            answer.map_err(|error| Fault::arguments(format!("the client's answer: {error}")))
        }
    }

    /// Calls a method of the client's object and requests no answer. Errors are not reported either.
    ///
    /// # Errors
    /// If the arguments cannot be serialized.
    pub fn notify<A: Serialize>(&self, method: &str, arguments: A) -> Result<()> {
        let core = &self.shared.core;
        let (arguments, middle) = arguments_of(core, &arguments, &NoKeywords {})?;
        core.push_call(0, self.target(), method, &arguments, middle);
        Ok(())
    }

    /// Whether the client has gone: its connection has no attachment to this service any more.
    #[must_use]
    pub fn is_gone(&self) -> bool {
        !self.shared.core.is_attached(self.shared.handle)
    }

    /// Waits until the client has gone, for a task that looks after it.
    ///
    /// In Twisted: `notifyOnDisconnect`.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # fn watch<S: Service>(context: &Context<S>, remote: Remote) {
    /// context.spawn(async move {
    ///     remote.gone().await;
    ///     tracing::info!("one less");
    /// });
    /// # }
    /// ```
    pub async fn gone(&self) {
        loop {
            let told = self.shared.core.left.notified();
            if self.is_gone() {
                return;
            }
            told.await;
        }
    }

    /// Whether both are the same object of the same client.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.shared.handle == other.shared.handle
    }
}

#[derive(Serialize)]
struct NoKeywords {}

/// Encodes the arguments, then the keywords; also returns where the keywords begin.
fn arguments_of(core: &Core, arguments: &impl Serialize, keywords: &impl Serialize) -> Result<(Encoded, usize)> {
    let mut encoded = tuple(Some(core), arguments)?;
    let middle = encoded.bytes.len();
    if let Err(error) = core.encode(keywords, &mut encoded.bytes, &mut encoded.objects) {
        core.take_back(&encoded.objects);
        return Err(error.into());
    }
    Ok((encoded, middle))
}

/// Encodes arguments as a tuple; `()` is the empty one. Counts the service's own objects in them as handed out, if
/// there is a service.
pub(crate) fn tuple<A: Serialize>(core: Option<&Core>, arguments: &A) -> Result<Encoded> {
    const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
    const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];
    let mut encoded = Encoded::default();
    match core {
        Some(core) => core.encode(arguments, &mut encoded.bytes, &mut encoded.objects)?,
        None => encoded.bytes = jelly::to_vec(arguments)?,
    }
    if encoded.bytes == NONE {
        encoded.bytes = EMPTY.to_vec();
    }
    if jelly::Deserializer::new(&encoded.bytes).sequence().is_ok() {
        return Ok(encoded);
    }
    if let Some(core) = core {
        core.take_back(&encoded.objects);
    }
    Err(Fault::arguments("arguments must be a tuple: (text,) for one"))
}

impl Drop for RemoteCell {
    fn drop(&mut self) {
        self.core.forget_remote(self.handle);
        self.core.push(&ToHost::Release { handle: self.handle, count: self.count.get() });
    }
}

/// Whether both are the same object of the same client.
impl PartialEq for Remote {
    fn eq(&self, other: &Self) -> bool {
        self.is(other)
    }
}

impl Eq for Remote {}

impl std::hash::Hash for Remote {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.shared.handle.hash(state);
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.shared.handle)
    }
}

impl Serialize for Remote {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let core = Core::current().ok_or_else(|| S::Error::custom("a reference can be sent only during a call"))?;
        let kind = if core.copies.is_carrying() { reference::REMOTE } else { reference::LOCAL };
        serializer.serialize_newtype_struct(kind, &self.shared.handle)
    }
}

impl<'de> Deserialize<'de> for Remote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let handle = number(deserializer, reference::REMOTE, "a reference to an object of the client")?;
        Core::current()
            .and_then(|core| core.arriving(handle))
            .ok_or_else(|| D::Error::custom("a reference can be received only in a call"))
    }
}

/// The number inside a reference of this kind.
pub(crate) fn number<'de, D: Deserializer<'de>>(
    deserializer: D,
    kind: &'static str,
    expected: &'static str,
) -> std::result::Result<u64, D::Error> {
    struct Of(&'static str);
    impl Visitor<'_> for Of {
        type Value = u64;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str(self.0)
        }
        fn visit_u64<E>(self, value: u64) -> std::result::Result<u64, E> {
            Ok(value)
        }
    }
    deserializer.deserialize_newtype_struct(kind, Of(expected))
}
