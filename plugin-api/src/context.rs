//! What a service knows of its surroundings.

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

/// The surroundings of a service: its own handle, its perspectives, its tasks. Clones are the same.
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
///         // A task of the service's: it ends with this generation.
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
    /// Before `init` has returned, and after the service has ended.
    pub fn service(&self) -> Result<Handle<S>> {
        self.runtime()?.service()
    }

    /// The perspective of this name: the one that is attached, or else loaded from its saved state, or else made new.
    /// It is kept for as long as somebody is attached to it or holds its handle. Keys are not asked for: the service
    /// itself looks.
    ///
    /// # Errors
    /// When its saved state cannot be read, or the service makes no such perspective.
    pub async fn perspective(&self, name: &str) -> Result<Handle<S::Perspective>> {
        self.runtime()?.perspective(name).await
    }

    /// The perspectives that clients are attached to, by name, in no order.
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

    /// The service's own data: for what is too much for one state.
    #[must_use]
    pub fn data(&self) -> Data {
        self.runtime.upgrade().map_or_else(Data::none, |runtime| Data::new(runtime.core()))
    }

    /// Ends an attachment: the client's references by it are dead, the service's [`detached`](Service::detached) is
    /// called, and the client stays connected. For services that let one client of an identity in at a time.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// /// One window each: who comes by another leaves the first.
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

    /// Whether this is a trial: before the host loads a library it makes and starts its service once in a process of
    /// its own, with nothing saved, and stops it again. A `start` that others would notice (a mail sent, a lock taken)
    /// leaves that out then.
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

    /// Serves the streams of a listener by a protocol of the service's own: see [`Door`]. The operator gives the listener its
    /// address (`[service.NAME.listen]` in credhost.toml); without one, nobody comes.
    ///
    /// # Errors
    /// When the service has ended.
    pub fn serve<D: Door<Service = S>>(&self, listener: &str) -> Result<()> {
        let core = Rc::clone(self.runtime()?.core());
        doors::serve::<D>(&core, self.clone(), listener);
        Ok(())
    }

    /// Takes the streams of a listener, as plain streams of tokio's: for libraries that want one. They are not carried over
    /// when the code is replaced: what serves them is spawned by [`Context::spawn_for`], and goes on until it ends, or the
    /// operator's grace for code that was replaced is over.
    ///
    /// # Errors
    /// When the service has ended.
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

    /// As [`Context::listen`], where nobody needs to log in: no stream is closed because nobody has.
    ///
    /// # Errors
    /// When the service has ended.
    pub fn listen_public(&self, listener: &str) -> Result<Listener> {
        Ok(Listener::new(self.runtime()?.core(), listener, true))
    }

    /// Runs a task that serves a stream: unlike one of [`Context::spawn`], it goes on in code that was replaced, until the
    /// operator's grace is over.
    pub fn spawn_for(&self, task: impl Future<Output = ()> + 'static) {
        tokio::task::spawn_local(task);
    }

    /// Whether other code serves in place of this: what is said to the service's objects here reaches nobody any more.
    #[must_use]
    pub fn is_replaced(&self) -> bool {
        self.runtime.upgrade().is_none_or(|runtime| runtime.core().retired.get())
    }

    /// Waits until other code serves in place of this: time for tasks of [`Context::spawn_for`] to come to an end.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # use tokio::io::AsyncWriteExt;
    /// # async fn ticks<S: Service>(context: Context<S>, mut stream: plugin_api::Stream) {
    /// // Something now and then, until other code serves; that goes on with the stream.
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
        core.doors.replaced().await;
    }

    /// Who says who somebody is: for doors of the service's own.
    #[must_use]
    pub fn authorizer(&self) -> Authorizer {
        Authorizer::new(self.runtime.upgrade().map(|runtime| Rc::clone(runtime.core())).as_deref())
    }

    /// Runs a task beside the calls, on the service's own thread. It ends with the service, and with its being replaced:
    /// the new code's `start` begins its own.
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

/// Runs what blocks (a file, a computation) on a thread of its own, while other calls go on.
///
/// # Errors
/// When it panics.
///
/// ```
/// # use plugin_api::prelude::*;
/// # struct Files;
/// # #[perspective]
/// # impl Files {
/// /// Reads a file: other calls go on meanwhile.
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
/// /// `[service.greeter]` in credhost.toml. What is absent there is as in `default`.
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
    /// Reads the section as a type of the author's; absent keys take the type's defaults (`#[serde(default)]`).
    ///
    /// # Errors
    /// When a key is missing or has another type; the host shows the message to the operator.
    pub fn read<T: DeserializeOwned>(&self) -> Result<T> {
        self.read.store(true, Ordering::Relaxed);
        let section: Section<T> = jelly::from_slice(&self.bytes)
            .map_err(|error| Fault::value(format!("the configuration of the service is not right: {error}")))?;
        for setting in section.unknown {
            tracing::warn!("the service has no setting {setting:?}: it has no effect in its section of credhost.toml");
        }
        Ok(section.read)
    }

    /// Settings that nobody has read are a mistake of whoever wrote them.
    pub(crate) fn warn_if_unread(&self) {
        let some = || jelly::from_slice::<BTreeMap<String, IgnoredAny>>(&self.bytes).is_ok_and(|all| !all.is_empty());
        if !self.read.load(Ordering::Relaxed) && some() {
            tracing::warn!("the service reads no settings: its section of credhost.toml has no effect");
        }
    }
}

/// A section that was read, and what is in it that nothing has read.
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
    fn settings_that_nothing_reads_are_known_by_their_path() {
        let inner = BTreeMap::from([("size", 3), ("sise", 4)]);
        let bytes = jelly::to_vec(&BTreeMap::from([("inner", inner)])).unwrap();
        let section: Section<Settings> = jelly::from_slice(&bytes).unwrap();
        assert_eq!((section.read.title.as_str(), section.read.inner.size), ("none", 3));
        assert_eq!(section.unknown, ["inner.sise"]);
        let all: Section<BTreeMap<String, BTreeMap<String, u8>>> = jelly::from_slice(&bytes).unwrap();
        assert!(all.unknown.is_empty(), "a map takes whatever there is");
    }
}
