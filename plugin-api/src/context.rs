//! The environment of a service.

use std::collections::BTreeMap;
use std::rc::{Rc, Weak};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, IgnoredAny};

use crate::abi::frame::ToHost;
use crate::call::Attachment;
use crate::data::Data;
use crate::doors::{self, Authorizer, Door, Listener};
use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::runtime::Runtime;
use crate::service::Service;

/// The environment of a service: its own handle, its perspectives, its tasks. Clones refer to the same service.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// #[derive(Default)]
/// struct Counter {
///     calls: u32,
/// }
///
/// #[service("counter", save = "never")]
/// impl Service for Counter {
///     type Perspective = View;
///
///     async fn start(me: Handle<Self>, context: Context<Self>) -> Result<()> {
///         // A task of the service. It ends with this generation.
///         context.spawn(async move {
///             let _ = me.write(|counter| counter.calls = 100);
///         });
///         Ok(())
///     }
/// }
///
/// #[derive(Default)]
/// struct View;
///
/// #[perspective]
/// impl View {
///     /// Counts for all clients together.
///     fn count(&self, context: &Context<Counter>) -> Result<u32> {
///         context.service()?.write(|counter| {
///             counter.calls += 1;
///             counter.calls
///         })
///     }
/// }
///
/// let host = TestHost::<Counter>::start()?;
/// let (alice, bob) = (host.attach("alice")?, host.attach("bob")?);
/// assert_eq!(alice.call::<u32>("count", ())?, 101);
/// assert_eq!(bob.call::<u32>("count", ())?, 102);
/// # Ok::<(), Fault>(())
/// ```
pub struct Context<S: Service> {
    runtime: Weak<Runtime<S>>,
}

impl<S: Service> Context<S> {
    pub(crate) fn new(runtime: &Rc<Runtime<S>>) -> Self {
        Self { runtime: Rc::downgrade(runtime) }
    }

    fn runtime(&self) -> Result<Rc<Runtime<S>>> {
        self.runtime
            .upgrade()
            .ok_or_else(|| Fault::new("twisted.spread.pb.DeadReferenceError", "the service has ended"))
    }

    /// The service itself: the state that all perspectives share.
    ///
    /// # Errors
    /// If `init` has not returned yet, or the service has ended.
    pub fn service(&self) -> Result<Handle<S>> {
        self.runtime()?.service()
    }

    /// The perspective of this name: the attached one, else loaded from its saved state, else newly created. It is kept
    /// while a client is attached to it or something holds its handle. No key is required, because the service itself
    /// asks.
    ///
    /// # Errors
    /// If its saved state cannot be read, or the service creates no such perspective.
    pub async fn perspective(&self, name: &str) -> Result<Handle<S::Perspective>> {
        self.runtime()?.perspective(name).await
    }

    /// The perspectives that clients are attached to, by name, in no particular order.
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
    ///     fn who(&self, context: &Context<Room>) -> Vec<String> {
    ///         let mut names: Vec<String> = context.attached().into_iter().map(|(name, _)| name).collect();
    ///         names.sort();
    ///         names
    ///     }
    /// }
    ///
    /// let host = TestHost::<Room>::start()?;
    /// let (alice, _bob) = (host.attach("alice")?, host.attach("bob")?);
    /// assert_eq!(alice.call::<Vec<String>>("who", ())?, ["alice", "bob"]);
    /// # Ok::<(), Fault>(())
    /// ```
    #[must_use]
    pub fn attached(&self) -> Vec<(String, Handle<S::Perspective>)> {
        self.runtime().map(|runtime| runtime.attached()).unwrap_or_default()
    }

    /// The service's own data, for what is too large for one state.
    #[must_use]
    pub fn data(&self) -> Data {
        self.runtime.upgrade().map_or_else(Data::none, |runtime| Data::new(runtime.core()))
    }

    /// Ends an attachment. The client's references through it are dead, the service's [`detached`](Service::detached)
    /// is called, and the client stays connected. For services that admit one client of an identity at a time.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// /// One window each: a client that opens another leaves the first.
    /// #[derive(Default)]
    /// struct Desk {
    ///     windows: std::collections::HashMap<String, Attachment>,
    /// }
    ///
    /// #[service("desk", save = "never")]
    /// impl Service for Desk {
    ///     type Perspective = Clerk;
    ///
    ///     fn attached(context: &Context<Self>, clerk: Handle<Clerk>, by: &Attachment) -> Result<Handle<Clerk>> {
    ///         let name = by.perspective().to_owned();
    ///         let before = context.service()?.write(|desk| desk.windows.insert(name, by.clone()))?;
    ///         if let Some(before) = before {
    ///             context.end(&before);
    ///         }
    ///         Ok(clerk)
    ///     }
    /// }
    ///
    /// # #[derive(Default)]
    /// # struct Clerk;
    /// # #[perspective]
    /// # impl Clerk {}
    /// let host = TestHost::<Desk>::start()?;
    /// let first = host.attach("alice")?;
    /// let second = host.attach("alice")?;
    /// host.settle()?;
    /// assert!(first.ended() && !second.ended());
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn end(&self, attachment: &Attachment) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.core().push(&ToHost::End { attachment: attachment.id() });
        }
    }

    /// Whether the host is vetting the library. Before the host loads a library, it creates, starts and stops the
    /// service once in a separate process, without saved state. A `start` with effects that others would notice (a mail
    /// sent, a lock taken) should skip them then.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # #[derive(Default)]
    /// # struct Letters;
    /// # #[derive(Default)]
    /// # struct Writer;
    /// # #[perspective]
    /// # impl Writer {}
    /// #[service("letters", save = "never")]
    /// impl Service for Letters {
    ///     type Perspective = Writer;
    ///
    ///     async fn start(_: Handle<Self>, context: Context<Self>) -> Result<()> {
    ///         if !context.vetting() {
    ///             tracing::info!("letters are sent from now on");
    ///         }
    ///         Ok(())
    ///     }
    /// }
    /// ```
    #[must_use]
    pub fn vetting(&self) -> bool {
        self.runtime.upgrade().is_some_and(|runtime| runtime.vetting.get())
    }

    /// Serves the streams of a listener with a protocol of the service: see [`Door`]. The operator assigns an address
    /// to the listener (`[service.NAME.listen]` in credhost.toml). Without one, no streams arrive.
    ///
    /// # Errors
    /// If the service has ended.
    pub fn serve<D: Door<Service = S>>(&self, listener: &str) -> Result<()> {
        let core = Rc::clone(self.runtime()?.core());
        doors::serve::<D>(&core, self.clone(), listener);
        Ok(())
    }

    /// Accepts the streams of a listener as plain tokio streams, for libraries that need one. They are not carried over
    /// when the code is replaced. Spawn the task that serves a stream with [`Context::spawn_for`]: it continues until
    /// it ends, or until the operator's grace period for replaced code is over.
    ///
    /// # Errors
    /// If the service has ended.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    /// use tokio::io::{AsyncReadExt, AsyncWriteExt};
    ///
    /// #[derive(Default)]
    /// struct Upper;
    ///
    /// #[service("upper", save = "never")]
    /// impl Service for Upper {
    ///     type Perspective = Nobody;
    ///
    ///     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
    ///         let mut streams = context.listen("text")?;
    ///         context.clone().spawn(async move {
    ///             while let Some(mut stream) = streams.accept().await {
    ///                 context.spawn_for(async move {
    ///                     let mut text = Vec::new();
    ///                     if stream.read_to_end(&mut text).await.is_ok() {
    ///                         // The client may have gone.
    ///                         let _ = stream.write_all(&text.to_ascii_uppercase()).await;
    ///                     }
    ///                 });
    ///             }
    ///         });
    ///         Ok(())
    ///     }
    /// }
    ///
    /// # #[derive(Default)]
    /// # struct Nobody;
    /// # #[perspective]
    /// # impl Nobody {}
    /// let host = TestHost::<Upper>::start()?;
    /// let mut client = host.connect("text")?;
    /// client.send("hello\n")?;
    /// client.finish()?;
    /// assert_eq!(client.line()?, "HELLO");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn listen(&self, listener: &str) -> Result<Listener> {
        Ok(Listener::new(self.runtime()?.core(), listener, false))
    }

    /// Like [`Context::listen`], for a listener that needs no login: the host closes no stream for the lack of one.
    ///
    /// # Errors
    /// If the service has ended.
    pub fn listen_public(&self, listener: &str) -> Result<Listener> {
        Ok(Listener::new(self.runtime()?.core(), listener, true))
    }

    /// Spawns a task that serves a stream. Unlike a task of [`Context::spawn`], it continues in replaced code, until
    /// the operator's grace period is over.
    pub fn spawn_for(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(crate::runtime::held::holding(Vec::new(), task));
    }

    /// Whether other code has replaced this code. Messages to the service's objects in this code then reach nobody.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.runtime.upgrade().is_none_or(|runtime| runtime.core().retired.get())
    }

    /// What the operator allows the service's clients.
    #[cfg(feature = "web")]
    pub(crate) fn limits(&self) -> crate::abi::limits::ServiceLimits {
        self.runtime.upgrade().map(|runtime| runtime.core().limits.get()).unwrap_or_default()
    }

    /// Waits until other code replaces this code, and returns at once if it has. Tasks of [`Context::spawn_for`] should finish then.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # use tokio::io::AsyncWriteExt;
    /// # async fn ticks<S: Service>(context: Context<S>, mut stream: plugin_api::Stream) {
    /// // Writes something now and then, until other code serves. That code continues with the stream.
    /// context.clone().spawn_for(async move {
    ///     while !context.is_replaced() {
    ///         if stream.write_all(b"tick\n").await.is_err() {
    ///             return;
    ///         }
    ///         let second = tokio::time::sleep(std::time::Duration::from_secs(1));
    ///         tokio::select! {
    ///             () = second => {}
    ///             () = context.replaced() => {}
    ///         }
    ///     }
    ///     stream.hand_on(&[]);
    /// });
    /// # }
    /// ```
    pub async fn replaced(&self) {
        let Some(core) = self.runtime.upgrade().map(|runtime| Rc::clone(runtime.core())) else { return };
        core.doors.replaced(|| core.retired.get()).await;
    }

    /// The authorizer, which checks logins for the service's own doors.
    #[must_use]
    pub fn authorizer(&self) -> Authorizer {
        Authorizer::new(self.runtime.upgrade().map(|runtime| Rc::clone(runtime.core())).as_deref())
    }

    /// Spawns a background task on the service's own thread. The task ends when the service ends or is replaced. The
    /// new code's `start` spawns its own tasks.
    pub fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        if let Some(runtime) = self.runtime.upgrade() {
            runtime.spawn(task);
        }
    }
}

impl<S: Service> Clone for Context<S> {
    fn clone(&self) -> Self {
        Self { runtime: Weak::clone(&self.runtime) }
    }
}

impl<S: Service> std::fmt::Debug for Context<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Context<{}>", S::NAME)
    }
}

/// Runs blocking work (file access, a computation) on a separate thread, while other calls continue.
///
/// # Errors
/// If the work panics.
///
/// ```
/// # use plugin_api::prelude::*;
/// # struct Files;
/// # #[perspective]
/// # impl Files {
/// /// Reads a file. Other calls run in the meantime.
/// async fn motd(_me: Handle<Self>) -> Result<String> {
///     let text = plugin_api::blocking(|| std::fs::read_to_string("/etc/motd")).await?;
///     Ok(text.unwrap_or_default())
/// }
/// # }
/// ```
pub async fn blocking<R: Send + 'static>(work: impl FnOnce() -> R + Send + 'static) -> Result<R> {
    tokio::task::spawn_blocking(work).await.map_err(|_| Fault::panicked("work on a thread of its own"))
}

/// The service's section of the host's configuration: `[service.NAME]` in `credhost.toml`.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
/// use std::collections::HashMap;
///
/// /// `[service.greeter]` in credhost.toml. Absent keys have the values of `default`.
/// #[derive(Deserialize)]
/// #[serde(default)]
/// struct Settings {
///     greeting: String,
/// }
///
/// impl Default for Settings {
///     fn default() -> Self {
///         Self { greeting: "hello".to_owned() }
///     }
/// }
///
/// struct Greeter {
///     settings: Settings,
/// }
///
/// #[service("greeter", save = "never")]
/// impl Service for Greeter {
///     type Perspective = View;
///
///     fn init(_: &Context<Self>, config: &Config) -> Result<Self> {
///         Ok(Self { settings: config.read()? })
///     }
/// }
///
/// #[derive(Default)]
/// struct View;
///
/// #[perspective]
/// impl View {
///     fn greet(&self, context: &Context<Greeter>) -> Result<String> {
///         context.service()?.read(|greeter| greeter.settings.greeting.clone())
///     }
/// }
///
/// let section = HashMap::from([("greeting", "good day")]);
/// let host = TestHost::<Greeter>::start_with(&section, HashMap::new())?;
/// assert_eq!(host.attach("alice")?.call::<String>("greet", ())?, "good day");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Debug, Clone)]
pub struct Config {
    pub(crate) bytes: Vec<u8>,
    /// Whether the service has read it.
    pub(crate) read: Arc<AtomicBool>,
}

impl Config {
    /// Reads the section into a type of the author. Absent keys take the type's defaults (`#[serde(default)]`).
    ///
    /// # Errors
    /// If a key is missing or has another type. The host shows the message to the operator.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        self.read.store(true, Ordering::Relaxed);
        let section: Section<T> = jelly::from_slice(&self.bytes)
            .map_err(|error| Fault::value(format!("the configuration of the service is invalid: {error}")))?;
        for setting in section.unknown {
            tracing::warn!("the service has no setting {setting:?}: it has no effect in its section of credhost.toml");
        }
        Ok(section.read)
    }

    /// Logs a warning if the section has settings and the service has not read it: a mistake of the operator.
    pub(crate) fn warn_if_unread(&self) {
        let some = || jelly::from_slice::<BTreeMap<String, IgnoredAny>>(&self.bytes).is_ok_and(|all| !all.is_empty());
        if !self.read.load(Ordering::Relaxed) && some() {
            tracing::warn!("the service reads no settings: its section of credhost.toml has no effect");
        }
    }
}

/// A section that was read, and the paths of the settings in it that nothing has read.
struct Section<T> {
    read: T,
    unknown: Vec<String>,
}

impl<'de, T: Deserialize<'de>> Deserialize<'de> for Section<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let mut unknown = Vec::new();
        let read = serde_ignored::deserialize(deserializer, |path| unknown.push(path.to_string()))?;
        Ok(Self { read, unknown })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Deserialize)]
    #[serde(default)]
    struct Settings {
        title: String,
        inner: Inner,
    }

    #[derive(Default, Deserialize)]
    struct Inner {
        size: u8,
    }

    impl Default for Settings {
        fn default() -> Self {
            Self { title: "none".to_owned(), inner: Inner::default() }
        }
    }

    #[test]
    fn settings_that_nothing_reads_are_named_by_their_path() {
        let inner = BTreeMap::from([("size", 3), ("sise", 4)]);
        let bytes = jelly::to_vec(&BTreeMap::from([("inner", inner)])).unwrap();
        let section: Section<Settings> = jelly::from_slice(&bytes).unwrap();
        assert_eq!((section.read.title.as_str(), section.read.inner.size), ("none", 3));
        assert_eq!(section.unknown, ["inner.sise"]);
        let all: Section<BTreeMap<String, BTreeMap<String, u8>>> = jelly::from_slice(&bytes).unwrap();
        assert!(all.unknown.is_empty(), "a map takes whatever there is");
    }
}
