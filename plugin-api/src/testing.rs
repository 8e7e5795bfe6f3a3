//! Runs a service in a unit test, without a host.
//!
//! ```
//! use plugin_api::prelude::*;
//! use plugin_api::testing::TestHost;
//!
//! #[derive(Default)]
//! struct Guestbook;
//!
//! #[service("guestbook")]
//! impl Service for Guestbook {
//!     type Perspective = Page;
//! }
//!
//! #[derive(Default, Serialize, Deserialize)]
//! struct Page(Vec<String>);
//!
//! #[perspective]
//! impl Page {
//!     fn sign(&mut self, text: String) -> usize {
//!         self.0.push(text);
//!         self.0.len()
//!     }
//! }
//!
//! let host = TestHost::<Guestbook>::start()?;
//! let alice = host.attach("alice")?;
//! assert_eq!(alice.call::<usize>("sign", ("hello",))?, 1);
//! // A wrong call fails with the error that a client would receive.
//! let wrong = alice.call::<usize>("sign", (5,)).unwrap_err();
//! assert_eq!(wrong.class(), "TypeError");
//! // Changes are saved before the answer.
//! assert!(host.saved("alice").is_some());
//! # Ok::<(), Fault>(())
//! ```
//!
//! The service runs on its own thread, as in a host. The test's thread acts as the clients. A client's mind is called
//! while the test waits: for an answer, or in [`TestHost::settle`].

mod doors;
mod objects;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jelly::{Classes, RefKind, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::abi::frame::{self, ToHost, ToLibrary};
use crate::fault::{Fault, Result};
use crate::remote;
use crate::runtime::{Sleep, Wall, run};
use crate::service::Service;

pub use self::doors::TestStream;
pub use self::objects::{TestCached, TestObject, TestRemote};

/// The timeout for a service that never answers.
const PATIENCE: Duration = Duration::from_secs(30);

type Mind = Box<dyn FnMut(&str, Value) -> Result<Value>>;

/// A running service and its clients.
pub struct TestHost<S: Service> {
    /// Frames from generations, each with the generation's number.
    frames: Receiver<(usize, Vec<u8>)>,
    sender: Sender<(usize, Vec<u8>)>,
    /// In order of creation. The last one serves.
    generations: RefCell<Vec<Generation>>,
    state: RefCell<State>,
    config: Vec<u8>,
    clock_stands: bool,
    /// How many generations were started.
    made: Cell<usize>,
    /// How many objects have been numbered.
    objects: Cell<u64>,
    service: PhantomData<fn() -> S>,
}

struct Generation {
    number: usize,
    gate: Arc<Gate>,
    thread: JoinHandle<()>,
}

/// An attached client, kept to attach it to new code.
#[derive(Clone)]
struct Known {
    perspective: String,
    identity: String,
    mind: u64,
    /// A mind that is not one object, in jelly.
    value: Vec<u8>,
    /// The client's objects in that value.
    handles: Vec<u8>,
}

#[derive(Default)]
struct State {
    next: u64,
    saved: HashMap<String, Vec<u8>>,
    answers: HashMap<u64, Result<Vec<u8>>>,
    attached: HashSet<u64>,
    minds: HashMap<u64, Mind>,
    known: BTreeMap<u64, Known>,
    lifecycle: Vec<(usize, std::result::Result<&'static str, String>)>,
    /// What the last frozen generation left to its successor.
    heirlooms: (Vec<u8>, Vec<u8>),
    updates: HashMap<u64, Vec<(String, Value)>>,
    data: BTreeMap<Vec<u8>, Vec<u8>>,
    data_version: u64,
    ended: HashSet<u64>,
    /// Clients' cacheable objects, and whether the service has their state.
    copies: HashMap<u64, std::rc::Rc<Cell<bool>>>,
    /// How often clients' objects were sent, minus how often they were released.
    sent: HashMap<u64, u64>,
    /// How many references to the service's objects clients hold.
    handed_out: u64,
    doors: doors::Doors,
    /// Streams from code that was already replaced.
    late: Vec<u64>,
}

#[derive(Default)]
struct Gate {
    queue: Mutex<Vec<u8>>,
    come: Notify,
    come_at_all: Condvar,
    #[cfg(feature = "testing")]
    advanced: Mutex<Duration>,
}

struct TestWall {
    number: usize,
    gate: Arc<Gate>,
    frames: Sender<(usize, Vec<u8>)>,
    #[cfg_attr(not(feature = "testing"), expect(dead_code, reason = "the clock is the machine's"))]
    clock_stands: bool,
}

impl Drop for TestWall {
    fn drop(&mut self) {
        // Also sent if the main loop has panicked. The test may have ended.
        let mut stopped = Vec::new();
        ToHost::Stopped {}.write(&mut stopped);
        let _ = self.frames.send((self.number, stopped));
    }
}

impl Wall for TestWall {
    fn pop(&self, into: &mut Vec<u8>) {
        into.append(&mut lock(&self.gate.queue));
    }

    fn arm(&self) -> bool {
        lock(&self.gate.queue).is_empty()
    }

    fn push(&self, frames: &[u8]) {
        // The test may have ended.
        let _ = self.frames.send((self.number, frames.to_vec()));
    }

    fn wait(&self) {
        let queue = lock(&self.gate.queue);
        if queue.is_empty() {
            drop(self.gate.come_at_all.wait_timeout(queue, PATIENCE));
        }
    }

    #[cfg(feature = "testing")]
    fn advanced(&self) -> Option<Duration> {
        let mut advanced = self.gate.advanced.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let by = std::mem::take(&mut *advanced);
        (!by.is_zero()).then_some(by)
    }

    #[cfg(feature = "testing")]
    fn clock_stands(&self) -> bool {
        self.clock_stands
    }

    fn sleep(&self) -> Box<dyn Sleep> {
        Box::new(Asleep(Arc::clone(&self.gate)))
    }
}

struct Asleep(Arc<Gate>);

impl Sleep for Asleep {
    fn sleep(&self) -> Pin<Box<dyn Future<Output = ()> + '_>> {
        Box::pin(self.0.come.notified())
    }
}

fn lock(queue: &Mutex<Vec<u8>>) -> std::sync::MutexGuard<'_, Vec<u8>> {
    queue.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}

impl<S: Service> TestHost<S> {
    /// Starts the service with an empty configuration.
    ///
    /// # Errors
    /// If the service refuses to start, with its error.
    pub fn start() -> Result<Self> {
        Self::start_with(&HashMap::<String, String>::new(), HashMap::new())
    }

    /// Starts the service with a configuration (a struct or a map) and the states it saved earlier, by the names of
    /// the perspectives. The service's own state has an empty name.
    ///
    /// # Errors
    /// If the service refuses to start, with its error.
    pub fn start_with<C: Serialize>(config: &C, saved: HashMap<String, Value>) -> Result<Self> {
        Self::begin(config, saved, false)
    }

    /// Like [`TestHost::start`], but with a paused clock that only [`TestHost::advance`] moves, so that an hour's
    /// wait takes no time in the test. Requires the feature `testing`.
    ///
    /// # Errors
    /// If the service refuses to start, with its error.
    #[cfg(feature = "testing")]
    pub fn start_paused() -> Result<Self> {
        Self::begin(&HashMap::<String, String>::new(), HashMap::new(), true)
    }

    /// Advances the clock of a service that was [started with a paused clock](TestHost::start_paused), and waits
    /// until everything that is due by then has run.
    ///
    /// # Errors
    /// If the service has ended.
    ///
    /// ```
    /// use std::time::Duration;
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// # #[derive(Default)]
    /// # struct Kitchen;
    /// # #[service("kitchen", save = "never")]
    /// # impl Service for Kitchen {
    /// #     type Perspective = Cook;
    /// # }
    /// # #[derive(Default)]
    /// # struct Cook;
    /// #[perspective]
    /// impl Cook {
    ///     async fn bake(_me: Handle<Self>, what: String) -> String {
    ///         tokio::time::sleep(Duration::from_secs(3600)).await;
    ///         format!("{what} is done")
    ///     }
    /// }
    ///
    /// let host = TestHost::<Kitchen>::start_paused()?;
    /// let alice = host.attach("alice")?;
    /// let bread = alice.begin("bake", ("bread",))?;
    /// // It has begun.
    /// host.settle()?;
    /// host.advance(Duration::from_secs(3600))?;
    /// assert_eq!(bread.wait::<String>()?, "bread is done");
    /// # Ok::<(), Fault>(())
    /// ```
    #[cfg(feature = "testing")]
    pub fn advance(&self, by: Duration) -> Result<()> {
        // Includes replaced generations, in which calls may still wait.
        for generation in &*self.generations.borrow() {
            *generation.gate.advanced.lock().unwrap_or_else(std::sync::PoisonError::into_inner) += by;
            generation.gate.come.notify_one();
        }
        self.settle()
    }

    fn begin<C: Serialize>(config: &C, saved: HashMap<String, Value>, clock_stands: bool) -> Result<Self> {
        let (sender, frames) = channel();
        let saved = saved.into_iter().map(|(name, state)| (name, state.encode())).collect();
        let state = RefCell::new(State { saved, ..State::default() });
        let config = jelly::to_vec(config)?;
        let (generations, made, objects) = (RefCell::default(), Cell::new(0), Cell::new(0));
        let service = PhantomData;
        let host = Self { frames, sender, generations, state, config, clock_stands, made, objects, service };
        host.generation()?;
        Ok(host)
    }

    /// Starts another generation.
    fn generation(&self) -> Result<()> {
        let gate = Arc::new(Gate::default());
        let number = self.made.get() + 1;
        self.made.set(number);
        let wall =
            TestWall { number, gate: Arc::clone(&gate), frames: self.sender.clone(), clock_stands: self.clock_stands };
        let thread = std::thread::spawn(move || run::<S>(Box::new(wall)));
        self.generations.borrow_mut().push(Generation { number, gate, thread });
        self.send(&ToLibrary::Init { config: &self.config, vetting: false, quota: 64 << 20, orphans: 300_000 });
        self.stage(number, "initialised")?;
        let own = self.state.borrow().saved.get("").cloned();
        self.send(&ToLibrary::Start { saved: own.as_deref(), version: u64::from(own.is_some()) });
        self.stage(number, "started")
    }

    /// Replaces the service with itself, as a host does when the library is replaced. The service is frozen and
    /// saved, then restarted from its saved states. Attached clients are attached again, with their minds. State that
    /// only the old generation had in memory is lost. Waiting calls continue in the old generation.
    ///
    /// # Errors
    /// If the service cannot be saved, does not start again (the old generation then continues), or refuses a client
    /// that was attached.
    pub fn reload(&self) -> Result<()> {
        let old = self.serving();
        self.send_to(old, &ToLibrary::Freeze { request: 0 });
        self.stage(old, "frozen")?;
        let adopted = self.generation().and_then(|()| {
            let objects = self.state.borrow().heirlooms.0.clone();
            self.send(&ToLibrary::Adopt { objects: &objects, numbers: self.objects.get() });
            self.stage(self.serving(), "adopted")?;
            self.settle()
        });
        if let Err(fault) = adopted {
            self.send(&ToLibrary::Stop {});
            let _ = self.stage(self.serving(), "stopped");
            self.generations.borrow_mut().pop();
            self.keep_carried();
            self.send_to(old, &ToLibrary::Thaw {});
            return Err(fault);
        }
        let copies = self.state.borrow().heirlooms.1.clone();
        for handle in frame::handed_on(&copies) {
            *self.state.borrow_mut().sent.entry(handle).or_default() += 1;
        }
        self.send(&ToLibrary::Copies { copies: &copies });
        let known: Vec<u64> = self.state.borrow().known.keys().copied().collect();
        self.state.borrow_mut().attached.clear();
        let mut refused = None;
        for attachment in known {
            if let Err(fault) = self.attach_now(attachment, true) {
                self.state.borrow_mut().known.remove(&attachment);
                refused = refused.or(Some(fault));
            }
        }
        self.hand_on();
        self.send(&ToLibrary::Resume {});
        self.send_to(old, &ToLibrary::Retire {});
        refused.map_or(Ok(()), Err)
    }

    /// Attaches a client to the perspective of this name, as the identity of the same name, without a mind.
    ///
    /// # Errors
    /// If the service refuses, with its error.
    pub fn attach(&self, name: &str) -> Result<TestClient<'_, S>> {
        self.attach_as(name, name, None)
    }

    /// Attaches a client with a mind. Each call that the service makes to it is passed to `mind`, as method and
    /// arguments.
    ///
    /// # Errors
    /// If the service refuses, with its error.
    pub fn attach_with(
        &self,
        name: &str,
        mind: impl FnMut(&str, Value) -> Result<Value> + 'static,
    ) -> Result<TestClient<'_, S>> {
        self.attach_as(name, name, Some(Box::new(mind)))
    }

    /// Attaches a client with a mind that is a value, not an object
    /// ([`Attachment::mind_as`](crate::Attachment::mind_as)).
    ///
    /// # Errors
    /// If the service refuses, with its error, or if the value cannot be serialized.
    pub fn attach_with_value(&self, name: &str, mind: &impl Serialize) -> Result<TestClient<'_, S>> {
        self.attach_giving(name, |_| mind)
    }

    /// Attaches a client with a mind that is not one object, but a value with objects of the client in it. `mind`
    /// creates the value and makes the objects ([`TestClient::give`]) with the client that is about to attach.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// # #[derive(Default)]
    /// # struct Radio;
    /// #[service("radio", save = "never")]
    /// impl Service for Radio {
    ///     type Perspective = Listener;
    ///
    ///     fn attached(_: &Context<Self>, listener: Handle<Listener>, by: &Attachment) -> Result<Handle<Listener>> {
    ///         let (name, ear): (String, Remote) = by.mind_as()?;
    ///         ear.notify("welcome", (name,))?;
    ///         Ok(listener)
    ///     }
    /// }
    /// # #[derive(Default)]
    /// # struct Listener;
    /// # #[perspective]
    /// # impl Listener {}
    ///
    /// let host = TestHost::<Radio>::start()?;
    /// let (said, heard) = std::sync::mpsc::channel();
    /// let alice = host.attach_giving("alice", |alice| {
    ///     let ear = alice.give(move |method, _| Ok(said.send(method.to_owned()).map(|()| Value::none())?));
    ///     ("ally", ear)
    /// })?;
    /// host.settle()?;
    /// assert_eq!(heard.try_recv()?, "welcome");
    /// # Ok::<(), Fault>(())
    /// ```
    ///
    /// # Errors
    /// If the service refuses, with its error, or if the value cannot be serialized.
    pub fn attach_giving<V: Serialize>(
        &self,
        name: &str,
        mind: impl FnOnce(&TestClient<'_, S>) -> V,
    ) -> Result<TestClient<'_, S>> {
        let client = TestClient { host: self, attachment: self.number() << 32 };
        let (mut value, mut references) = (Vec::new(), Vec::new());
        jelly::write_with(&mut value, &mind(&client), Classes::Any, &mut references)?;
        let handles = references
            .into_iter()
            .filter(|(kind, _)| matches!(kind, RefKind::Remote | RefKind::Cache | RefKind::Cached));
        let handles = handles.flat_map(|(_, handle)| handle.to_le_bytes()).collect();
        let (perspective, identity) = (name.to_owned(), name.to_owned());
        self.attach_known(client, Known { perspective, identity, mind: 0, value, handles })
    }

    /// Attaches an anonymous client, one that has not logged in, to the perspective of this name
    /// ([`Attachment::is_anonymous`](crate::Attachment::is_anonymous)).
    ///
    /// # Errors
    /// If the service refuses, with its error.
    pub fn attach_anonymous(&self, name: &str) -> Result<TestClient<'_, S>> {
        self.attach_as(name, "", None)
    }

    fn attach_as(&self, perspective: &str, identity: &str, mind: Option<Mind>) -> Result<TestClient<'_, S>> {
        // Each client has its own connection, whose number is the upper half.
        let attachment = self.number() << 32;
        let handle = if mind.is_some() { attachment | self.number() } else { 0 };
        if let Some(mind) = mind {
            self.state.borrow_mut().minds.insert(handle, mind);
        }
        let (perspective, identity) = (perspective.to_owned(), identity.to_owned());
        let known = Known { perspective, identity, mind: handle, value: Vec::new(), handles: Vec::new() };
        self.attach_known(TestClient { host: self, attachment }, known)
    }

    fn attach_known<'h>(&self, client: TestClient<'h, S>, known: Known) -> Result<TestClient<'h, S>> {
        self.state.borrow_mut().known.insert(client.attachment, known);
        if let Err(fault) = self.attach_now(client.attachment, false) {
            self.state.borrow_mut().known.remove(&client.attachment);
            return Err(fault);
        }
        Ok(client)
    }

    fn attach_now(&self, attachment: u64, again: bool) -> Result<()> {
        let Some(known) = self.state.borrow().known.get(&attachment).cloned() else { return Ok(()) };
        for handle in frame::numbers(&known.handles) {
            *self.state.borrow_mut().sent.entry(handle).or_default() += 1;
        }
        let Known { perspective, identity, mind, value, handles } = &known;
        let (mind, peer) = (*mind, "a test");
        self.send(&ToLibrary::Attach { attachment, perspective, identity, mind, peer, again, value, handles });
        self.until(|state| {
            if state.attached.contains(&attachment) {
                return Some(Ok(()));
            }
            state.answers.remove(&attachment).map(|refused| refused.map(drop))
        })
    }

    /// Returns the saved state of a perspective; of the service itself for an empty name.
    #[must_use]
    pub fn saved(&self, perspective: &str) -> Option<Value> {
        let state = self.state.borrow();
        state.saved.get(perspective).and_then(|state| Value::decode(state).ok())
    }

    /// Waits until the service has processed everything it was sent, and serves its calls meanwhile. Tasks that wait
    /// for a timer or for others may still be running.
    ///
    /// # Errors
    /// If the service has ended, or reports that it is not healthy.
    pub fn settle(&self) -> Result<()> {
        self.send(&ToLibrary::Health { request: 0 });
        self.stage(self.serving(), "healthy")
    }

    /// Stops the service. Returns all saved states, with which it can be started again.
    ///
    /// # Errors
    /// If it does not stop.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::testing::TestHost;
    /// # use std::collections::HashMap;
    /// # #[derive(Default)]
    /// # struct Guestbook;
    /// # #[service("guestbook")]
    /// # impl Service for Guestbook {
    /// #     type Perspective = Page;
    /// # }
    /// # #[derive(Default, Serialize, Deserialize)]
    /// # struct Page(Vec<String>);
    /// # #[perspective]
    /// # impl Page {
    /// #     fn sign(&mut self, text: String) -> usize {
    /// #         self.0.push(text);
    /// #         self.0.len()
    /// #     }
    /// # }
    /// let host = TestHost::<Guestbook>::start()?;
    /// host.attach("alice")?.call::<usize>("sign", ("hello",))?;
    /// // Like a host that stops and starts again.
    /// let saved = host.stop()?;
    /// let host = TestHost::<Guestbook>::start_with(&HashMap::<String, String>::new(), saved)?;
    /// assert_eq!(host.attach("alice")?.call::<usize>("sign", ("again",))?, 2);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn stop(self) -> Result<HashMap<String, Value>> {
        self.end_all()?;
        let saved = std::mem::take(&mut self.state.borrow_mut().saved);
        Ok(saved.into_iter().filter_map(|(name, state)| Some((name, Value::decode(&state).ok()?))).collect())
    }

    /// Calls a perspective (object 0) or an object through an attachment.
    fn send_call(
        &self,
        (attachment, object): (u64, u64),
        method: &str,
        arguments: &impl Serialize,
        keywords: &impl Serialize,
    ) -> Result<TestCall<'_, S>> {
        // The upper half identifies the client.
        let call = attachment | self.number();
        let mut references = Vec::new();
        // Rejects arguments that are not a tuple.
        let arguments = remote::tuple(None, arguments)?.bytes;
        let mut written = Vec::new();
        jelly::write_with(&mut written, &Value::decode(&arguments)?, Classes::Any, &mut references)?;
        jelly::write_with(&mut written, keywords, Classes::Any, &mut references)?;
        let keywords = jelly::to_vec(keywords)?;
        let own = |kind| matches!(kind, RefKind::Remote | RefKind::Cache | RefKind::Cached);
        let sent = references.into_iter().filter(|(kind, _)| own(*kind)).map(|(_, handle)| handle);
        let mut handles = Vec::new();
        for handle in sent {
            *self.state.borrow_mut().sent.entry(handle).or_default() += 1;
            handles.extend_from_slice(&handle.to_le_bytes());
        }
        let (arguments, keywords, handles) = (&*arguments, &*keywords, &*handles);
        let answer = true;
        self.send(&ToLibrary::Call { call, attachment, object, answer, method, arguments, keywords, handles });
        Ok(TestCall { host: self, call })
    }

    fn number(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        state.next
    }

    /// Stops all generations, the oldest first.
    fn end_all(&self) -> Result<()> {
        let all: Vec<usize> = self.generations.borrow().iter().map(|generation| generation.number).collect();
        for number in all {
            self.send_to(number, &ToLibrary::Stop {});
            self.stage(number, "stopped")?;
        }
        for generation in self.generations.take() {
            let _ = generation.thread.join();
        }
        Ok(())
    }

    /// Sends a frame to the serving generation.
    fn send(&self, frame: &ToLibrary<'_>) {
        self.send_to(self.serving(), frame);
    }

    /// The number of the serving generation.
    fn serving(&self) -> usize {
        self.generations.borrow().last().map_or(0, |generation| generation.number)
    }

    fn send_to(&self, generation: usize, frame: &ToLibrary<'_>) {
        let generations = self.generations.borrow();
        if let Some(generation) = generations.iter().find(|known| known.number == generation) {
            frame.write(&mut lock(&generation.gate.queue));
            generation.gate.come.notify_one();
            generation.gate.come_at_all.notify_one();
        }
    }

    fn stage(&self, generation: usize, wanted: &'static str) -> Result<()> {
        self.until(|state| {
            let mut stages = state.lifecycle.iter();
            // When the end is awaited, anything reported before it does not matter.
            let at = stages.position(|(number, stage)| {
                *number == generation && (wanted != "stopped" || *stage == Ok("stopped"))
            })?;
            Some(match state.lifecycle.remove(at).1 {
                Ok(found) if found == wanted => Ok(()),
                Ok(found) => Err(Fault::new("RuntimeError", format!("the service is {found}, not {wanted}"))),
                Err(why) => Err(Fault::new("RuntimeError", why)),
            })
        })
    }

    /// Processes frames from the service until `ready` returns a result.
    fn until<R>(&self, mut ready: impl FnMut(&mut State) -> Option<Result<R>>) -> Result<R> {
        loop {
            if let Some(result) = ready(&mut self.state.borrow_mut()) {
                return result;
            }
            match self.frames.recv_timeout(PATIENCE) {
                Ok((from, frames)) => {
                    let mut rest = frames.as_slice();
                    while let Some(frame) = ToHost::read(&mut rest) {
                        self.serve(from, frame);
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    return Err(Fault::new("TimeoutError", "the service does not answer"));
                }
                Err(RecvTimeoutError::Disconnected) => {
                    return Err(Fault::new("RuntimeError", "the service has ended"));
                }
            }
        }
    }

    fn serve(&self, from: usize, frame: ToHost<'_>) {
        let mut state = self.state.borrow_mut();
        let tell = |frame: &ToLibrary<'_>| self.send_to(from, frame);
        if self.serve_doors(&mut state, from, &frame) {
            return;
        }
        match frame {
            ToHost::Initialised {} => state.lifecycle.push((from, Ok("initialised"))),
            ToHost::Started {} => state.lifecycle.push((from, Ok("started"))),
            ToHost::Healthy { .. } => state.lifecycle.push((from, Ok("healthy"))),
            ToHost::Adopted { .. } => state.lifecycle.push((from, Ok("adopted"))),
            ToHost::Stopped {} => state.lifecycle.push((from, Ok("stopped"))),
            ToHost::Refused { message } => state.lifecycle.push((from, Err(message.to_owned()))),
            ToHost::Frozen { objects, numbers, copies, .. } => {
                state.heirlooms = (objects.to_vec(), copies.to_vec());
                self.objects.set(numbers);
                state.lifecycle.push((from, Ok("frozen")));
            }
            ToHost::Attached { attachment } => {
                state.attached.insert(attachment);
            }
            ToHost::Answer { call, value, objects } => {
                state.handed_out += frame::numbers(objects).count() as u64;
                state.answers.insert(call, Ok(value.to_vec()));
            }
            ToHost::Failed { call, class, message, detail, .. } => {
                state.answers.insert(call, Err(Fault::received(class, message, detail)));
            }
            ToHost::Release { handle, count } => {
                let left = state.sent.get_mut(&handle).map(|sent| {
                    *sent = sent.saturating_sub(count);
                    *sent
                });
                // As a client does: ends an object of which nobody has a copy any more.
                if left == Some(0)
                    && let Some(has) = state.copies.get(&handle)
                {
                    has.set(false);
                    drop(state);
                    self.send(&ToLibrary::Uncached { handle });
                }
            }
            ToHost::Save { perspective, state: saved, .. } => {
                state.saved.insert(perspective.to_owned(), saved.to_vec());
            }
            ToHost::Load { request, perspective } => {
                let saved = state.saved.get(perspective).cloned();
                drop(state);
                let version = u64::from(saved.is_some());
                tell(&ToLibrary::Loaded { request, state: saved.as_deref(), version });
            }
            ToHost::Data { request, from, to, limit, reverse } => {
                let within = state.data.range(from.to_vec()..);
                let mut found: Vec<(&Vec<u8>, &Vec<u8>)> =
                    within.take_while(|(key, _)| to.is_none_or(|to| key.as_slice() < to)).collect();
                if reverse {
                    found.reverse();
                }
                let more = found.len() as u64 > limit;
                found.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
                let mut entries = Vec::new();
                for (key, value) in found {
                    frame::put_entry(&mut entries, key, Some(value));
                }
                let version = state.data_version;
                drop(state);
                tell(&ToLibrary::Entries { request, entries: &entries, more, version });
            }
            ToHost::Write { request, base, entries } => {
                let fits = state.data_version == base;
                if fits {
                    state.data_version += 1;
                    for (key, value) in frame::entries(entries) {
                        match value {
                            Some(value) => drop(state.data.insert(key.to_vec(), value.to_vec())),
                            None => drop(state.data.remove(key)),
                        }
                    }
                }
                drop(state);
                if fits {
                    tell(&ToLibrary::Committed { request });
                } else {
                    tell(&ToLibrary::NotLoaded { request, message: "it was changed meanwhile" });
                }
            }
            ToHost::End { attachment } => {
                state.ended.insert(attachment);
                state.known.remove(&attachment);
                drop(state);
                self.send(&ToLibrary::Detach { attachment });
            }
            ToHost::Update { attachment, method, arguments, .. } => {
                let arguments = Value::decode(arguments).unwrap_or_else(|_| Value::none());
                state.updates.entry(attachment).or_default().push((method.to_owned(), arguments));
            }
            ToHost::Call { call, handle, answer, method, arguments, .. } => {
                let mind = state.minds.remove(&handle);
                // The mind may call the host.
                drop(state);
                let result = match mind {
                    Some(mut mind) => {
                        let arguments = Value::decode(arguments).unwrap_or_else(|_| Value::none());
                        let result = mind(method, arguments);
                        self.state.borrow_mut().minds.insert(handle, mind);
                        result
                    }
                    None => Err(Fault::new("twisted.spread.pb.PBConnectionLost", "the client has gone")),
                };
                match result {
                    _ if !answer => {}
                    Ok(value) => tell(&ToLibrary::Answer { call, value: &value.encode(), handles: &[] }),
                    Err(fault) => {
                        let (class, message, detail) = (fault.class(), fault.message(), &*fault.detail("the client"));
                        tell(&ToLibrary::Failed { call, class, message, detail });
                    }
                }
            }
            _ => {}
        }
    }
}

impl<S: Service> Drop for TestHost<S> {
    fn drop(&mut self) {
        if !self.generations.borrow().is_empty() {
            // A service that does not stop must not hang the test.
            let _ = self.end_all();
        }
    }
}

impl<S: Service> std::fmt::Debug for TestHost<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestHost({})", S::NAME)
    }
}

/// An attached client. It detaches when this is dropped.
pub struct TestClient<'h, S: Service> {
    host: &'h TestHost<S>,
    attachment: u64,
}

/// A call that is under way.
#[derive(Debug)]
pub struct TestCall<'h, S: Service> {
    host: &'h TestHost<S>,
    call: u64,
}

impl<'h, S: Service> TestClient<'h, S> {
    /// Calls a method. `arguments` is a tuple.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive.
    pub fn call<R: DeserializeOwned>(&self, method: &str, arguments: impl Serialize) -> Result<R> {
        self.begin(method, arguments)?.wait()
    }

    /// Calls a method with keywords: a struct or a map.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive.
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
    ///     fn greet(&self, name: String, loud: Option<bool>) -> String {
    ///         if loud == Some(true) { name.to_uppercase() } else { name }
    ///     }
    /// }
    ///
    /// let host = TestHost::<Room>::start()?;
    /// // In Python: `callRemote("greet", "bob", loud=True)`.
    /// let said: String = host.attach("alice")?.call_with("greet", ("bob",), HashMap::from([("loud", true)]))?;
    /// assert_eq!(said, "BOB");
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn call_with<R: DeserializeOwned>(
        &self,
        method: &str,
        arguments: impl Serialize,
        keywords: impl Serialize,
    ) -> Result<R> {
        self.send(method, &arguments, &keywords)?.wait()
    }

    /// Begins a call; wait for its answer later.
    ///
    /// # Errors
    /// If the arguments cannot be serialized.
    pub fn begin(&self, method: &str, arguments: impl Serialize) -> Result<TestCall<'h, S>> {
        self.send(method, &arguments, &HashMap::<String, u8>::new())
    }

    /// Takes the updates of cached objects that this client has received since the last call of this method: methods
    /// and arguments. A client receives updates of the objects that it has.
    #[must_use]
    pub fn updates(&self) -> Vec<(String, Value)> {
        self.host.state.borrow_mut().updates.remove(&self.attachment).unwrap_or_default()
    }

    /// Whether the service has ended this attachment ([`Context::end`](crate::Context::end)).
    #[must_use]
    pub fn ended(&self) -> bool {
        self.host.state.borrow().ended.contains(&self.attachment)
    }

    fn send(&self, method: &str, arguments: &impl Serialize, keywords: &impl Serialize) -> Result<TestCall<'h, S>> {
        self.host.send_call((self.attachment, 0), method, arguments, keywords)
    }
}

impl<S: Service> TestCall<'_, S> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive.
    pub fn wait<R: DeserializeOwned>(self) -> Result<R> {
        let answer = self.host.until(|state| state.answers.remove(&self.call))?;
        Ok(jelly::from_slice(&answer)?)
    }
}

impl<S: Service> Drop for TestClient<'_, S> {
    fn drop(&mut self) {
        self.host.state.borrow_mut().known.remove(&self.attachment);
        self.host.send(&ToLibrary::Detach { attachment: self.attachment });
    }
}

impl<S: Service> std::fmt::Debug for TestClient<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestClient({})", self.attachment)
    }
}
