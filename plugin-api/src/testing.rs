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
//! // What is wrong with a call is told as a client would be told.
//! let wrong = alice.call::<usize>("sign", (5,)).unwrap_err();
//! assert_eq!(wrong.class(), "TypeError");
//! // What was answered is saved.
//! assert!(host.saved("alice").is_some());
//! # Ok::<(), Fault>(())
//! ```
//!
//! The service runs on a thread of its own, as it does in a host; the test's thread plays the clients. A client's mind
//! is called while the test waits for something: for an answer, or in [`TestHost::settle`].

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::marker::PhantomData;
use std::pin::Pin;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use jelly::Value;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::sync::Notify;

use crate::abi::frame::{self, ToHost, ToLibrary};
use crate::fault::{Fault, Result};
use crate::remote;
use crate::runtime::{Sleep, Wall, run};
use crate::service::Service;

/// A guard against a service that never answers.
const PATIENCE: Duration = Duration::from_secs(30);

type Mind = Box<dyn FnMut(&str, Value) -> Result<Value>>;

/// A service that runs, and its clients.
pub struct TestHost<S: Service> {
    gate: Arc<Gate>,
    frames: Receiver<Vec<u8>>,
    thread: Option<JoinHandle<()>>,
    state: RefCell<State>,
    service: PhantomData<fn() -> S>,
}

#[derive(Default)]
struct State {
    next: u64,
    saved: HashMap<String, Vec<u8>>,
    answers: HashMap<u64, Result<Vec<u8>>>,
    attached: HashSet<u64>,
    minds: HashMap<u64, Mind>,
    lifecycle: Vec<std::result::Result<&'static str, String>>,
    updates: HashMap<u64, Vec<(String, Value)>>,
    data: BTreeMap<Vec<u8>, Vec<u8>>,
    data_version: u64,
    ended: HashSet<u64>,
}

#[derive(Default)]
struct Gate {
    queue: Mutex<Vec<u8>>,
    come: Notify,
}

struct TestWall {
    gate: Arc<Gate>,
    frames: Sender<Vec<u8>>,
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
        let _ = self.frames.send(frames.to_vec());
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
    /// What it refuses to start with.
    pub fn start() -> Result<Self> {
        Self::start_with(&HashMap::<String, String>::new(), HashMap::new())
    }

    /// Starts the service with a configuration (a struct or a map) and the states it saved earlier, by the names of
    /// perspectives; the service's own has an empty name.
    ///
    /// # Errors
    /// What it refuses to start with.
    pub fn start_with<C: Serialize>(config: &C, saved: HashMap<String, Value>) -> Result<Self> {
        let (sender, frames) = channel();
        let gate = Arc::new(Gate::default());
        let wall_gate = Arc::clone(&gate);
        let thread = std::thread::spawn(move || run::<S>(Box::new(TestWall { gate: wall_gate, frames: sender })));
        let saved = saved.into_iter().map(|(name, state)| (name, state.encode())).collect();
        let state = RefCell::new(State { saved, ..State::default() });
        let host = Self { gate, frames, thread: Some(thread), state, service: PhantomData };
        let config = jelly::to_vec(config)?;
        host.tell(&ToLibrary::Init { config: &config, vetting: false, quota: 64 << 20 });
        host.stage("initialised")?;
        let own = host.state.borrow().saved.get("").cloned();
        host.tell(&ToLibrary::Start { saved: own.as_deref(), version: u64::from(own.is_some()) });
        host.stage("started")?;
        Ok(host)
    }

    /// A client attaches to the perspective of this name, as the identity of the same name, without a mind.
    ///
    /// # Errors
    /// What the service refuses with.
    pub fn attach(&self, name: &str) -> Result<TestClient<'_, S>> {
        self.attach_as(name, name, None)
    }

    /// A client attaches with a mind: whatever the service calls of it, goes to `mind` by method and arguments.
    ///
    /// # Errors
    /// What the service refuses with.
    pub fn attach_with(
        &self,
        name: &str,
        mind: impl FnMut(&str, Value) -> Result<Value> + 'static,
    ) -> Result<TestClient<'_, S>> {
        self.attach_as(name, name, Some(Box::new(mind)))
    }

    fn attach_as(&self, perspective: &str, identity: &str, mind: Option<Mind>) -> Result<TestClient<'_, S>> {
        // Each client is a connection of its own, whose number is the upper half.
        let attachment = self.number() << 32;
        let handle = if mind.is_some() { self.number() } else { 0 };
        if let Some(mind) = mind {
            self.state.borrow_mut().minds.insert(handle, mind);
        }
        self.tell(&ToLibrary::Attach { attachment, perspective, identity, mind: handle, peer: "a test" });
        self.until(|state| {
            if state.attached.contains(&attachment) {
                return Some(Ok(()));
            }
            state.answers.remove(&attachment).map(|refused| refused.map(drop))
        })?;
        Ok(TestClient { host: self, attachment })
    }

    /// The saved state of a perspective; of the service itself, by an empty name.
    #[must_use]
    pub fn saved(&self, perspective: &str) -> Option<Value> {
        let state = self.state.borrow();
        state.saved.get(perspective).and_then(|state| Value::decode(state).ok())
    }

    /// Waits until the service has served all that it was given, and serves its calls meanwhile. Tasks that wait for
    /// time or for others may still run.
    ///
    /// # Errors
    /// When the service has ended, or says that it is not well.
    pub fn settle(&self) -> Result<()> {
        self.tell(&ToLibrary::Health { request: 0 });
        self.stage("healthy")
    }

    /// Stops the service; answers with all saved states, to start it anew with.
    ///
    /// # Errors
    /// When it does not stop.
    pub fn stop(mut self) -> Result<HashMap<String, Value>> {
        self.tell(&ToLibrary::Stop {});
        self.stage("stopped")?;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        let saved = std::mem::take(&mut self.state.borrow_mut().saved);
        Ok(saved.into_iter().filter_map(|(name, state)| Some((name, Value::decode(&state).ok()?))).collect())
    }

    fn number(&self) -> u64 {
        let mut state = self.state.borrow_mut();
        state.next += 1;
        state.next
    }

    fn tell(&self, frame: &ToLibrary<'_>) {
        frame.write(&mut lock(&self.gate.queue));
        self.gate.come.notify_one();
    }

    fn stage(&self, wanted: &'static str) -> Result<()> {
        self.until(|state| {
            state.lifecycle.pop().map(|stage| match stage {
                Ok(found) if found == wanted => Ok(()),
                Ok(found) => Err(Fault::new("RuntimeError", format!("the service is {found}, not {wanted}"))),
                Err(why) => Err(Fault::new("RuntimeError", why)),
            })
        })
    }

    /// Serves what the service says until something is the case.
    fn until<R>(&self, mut ready: impl FnMut(&mut State) -> Option<Result<R>>) -> Result<R> {
        loop {
            if let Some(result) = ready(&mut self.state.borrow_mut()) {
                return result;
            }
            match self.frames.recv_timeout(PATIENCE) {
                Ok(frames) => {
                    let mut rest = frames.as_slice();
                    while let Some(frame) = ToHost::read(&mut rest) {
                        self.serve(frame);
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

    fn serve(&self, frame: ToHost<'_>) {
        let mut state = self.state.borrow_mut();
        match frame {
            ToHost::Initialised {} => state.lifecycle.push(Ok("initialised")),
            ToHost::Started {} => state.lifecycle.push(Ok("started")),
            ToHost::Healthy { .. } => state.lifecycle.push(Ok("healthy")),
            ToHost::Stopped {} => state.lifecycle.push(Ok("stopped")),
            ToHost::Refused { message } => state.lifecycle.push(Err(message.to_owned())),
            ToHost::Attached { attachment } => {
                state.attached.insert(attachment);
            }
            ToHost::Answer { call, value } => {
                state.answers.insert(call, Ok(value.to_vec()));
            }
            ToHost::Failed { call, class, message, .. } => {
                state.answers.insert(call, Err(Fault::new(class, message)));
            }
            ToHost::Save { perspective, state: saved, .. } => {
                state.saved.insert(perspective.to_owned(), saved.to_vec());
            }
            ToHost::Load { request, perspective } => {
                let saved = state.saved.get(perspective).cloned();
                drop(state);
                let version = u64::from(saved.is_some());
                self.tell(&ToLibrary::Loaded { request, state: saved.as_deref(), version });
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
                self.tell(&ToLibrary::Entries { request, entries: &entries, more, version });
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
                    self.tell(&ToLibrary::Committed { request });
                } else {
                    self.tell(&ToLibrary::NotLoaded { request, message: "it was changed meanwhile" });
                }
            }
            ToHost::End { attachment } => {
                state.ended.insert(attachment);
                drop(state);
                self.tell(&ToLibrary::Detach { attachment });
            }
            ToHost::Update { attachment, method, arguments, .. } => {
                let arguments = Value::decode(arguments).unwrap_or_else(|_| Value::none());
                state.updates.entry(attachment).or_default().push((method.to_owned(), arguments));
            }
            ToHost::Call { call, handle, answer, method, arguments, .. } => {
                let mind = state.minds.remove(&handle);
                // The mind may use the host.
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
                    Ok(value) => self.tell(&ToLibrary::Answer { call, value: &value.encode(), handles: &[] }),
                    Err(fault) => {
                        self.tell(&ToLibrary::Failed { call, class: fault.class(), message: fault.message() });
                    }
                }
            }
            _ => {}
        }
    }
}

impl<S: Service> Drop for TestHost<S> {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            self.tell(&ToLibrary::Stop {});
            // A service that does not stop must not hang the test.
            let _ = self.stage("stopped");
            drop(thread);
        }
    }
}

impl<S: Service> std::fmt::Debug for TestHost<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestHost({})", S::NAME)
    }
}

/// A client that is attached. Dropped, it detaches.
pub struct TestClient<'h, S: Service> {
    host: &'h TestHost<S>,
    attachment: u64,
}

/// A call that was begun.
#[derive(Debug)]
pub struct TestCall<'h, S: Service> {
    host: &'h TestHost<S>,
    call: u64,
}

impl<'h, S: Service> TestClient<'h, S> {
    /// Calls a method; `arguments` is a tuple.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn call<R: DeserializeOwned>(&self, method: &str, arguments: impl Serialize) -> Result<R> {
        self.begin(method, arguments)?.wait()
    }

    /// Calls a method with keywords: a struct or a map.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn call_with<R: DeserializeOwned>(
        &self,
        method: &str,
        arguments: impl Serialize,
        keywords: impl Serialize,
    ) -> Result<R> {
        self.send(method, &arguments, &keywords)?.wait()
    }

    /// Begins a call, to be waited for later.
    ///
    /// # Errors
    /// When the arguments cannot be written.
    pub fn begin(&self, method: &str, arguments: impl Serialize) -> Result<TestCall<'h, S>> {
        self.send(method, &arguments, &HashMap::<String, u8>::new())
    }

    /// What this client was told of changes to cached objects, since it was asked last: methods and arguments. A
    /// client of a real host is told only of those that it has.
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
        let call = self.host.number();
        let (arguments, keywords) = (remote::tuple(arguments)?, jelly::to_vec(keywords)?);
        self.host.tell(&ToLibrary::Call {
            call,
            attachment: self.attachment,
            object: 0,
            answer: true,
            method,
            arguments: &arguments,
            keywords: &keywords,
            handles: &[],
        });
        Ok(TestCall { host: self.host, call })
    }
}

impl<S: Service> TestCall<'_, S> {
    /// Waits for the answer.
    ///
    /// # Errors
    /// What a client would be told.
    pub fn wait<R: DeserializeOwned>(self) -> Result<R> {
        let answer = self.host.until(|state| state.answers.remove(&self.call))?;
        Ok(jelly::from_slice(&answer)?)
    }
}

impl<S: Service> Drop for TestClient<'_, S> {
    fn drop(&mut self) {
        self.host.tell(&ToLibrary::Detach { attachment: self.attachment });
    }
}

impl<S: Service> std::fmt::Debug for TestClient<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestClient({})", self.attachment)
    }
}
