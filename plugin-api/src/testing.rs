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

mod clients;
mod doors;
mod frames;
mod objects;
mod wall;

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::marker::PhantomData;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use jelly::{Classes, RefKind, Value};
use serde::Serialize;

use self::wall::{Gate, TestWall};
use crate::abi::frame::{self, ToLibrary};
use crate::fault::Result;
use crate::remote;
use crate::runtime::run;
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
