//! Objects of test clients: references to a service's objects, and objects of their own.

use jelly::{Limits, Scanner, Shape};
use serde::de::DeserializeOwned;
use serde::ser::Error as _;
use serde::{Serialize, Serializer};

use super::{Mind, TestCall, TestClient, TestHost};
use crate::abi::frame::ToLibrary;
use crate::fault::{Fault, Result};
use crate::service::Service;
use crate::{RefKind, Value};

/// A client's reference to an object of the service. The client releases it when this is dropped.
///
/// As an argument of a call, it resolves to the object itself.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Desk;
/// # #[service("desk", save = "never")]
/// # impl Service for Desk {
/// #     type Perspective = View_;
/// # }
/// struct Ticket(u32);
///
/// #[perspective]
/// impl Ticket {
///     fn number(&self) -> u32 {
///         self.0
///     }
/// }
///
/// #[derive(Default)]
/// struct View_;
///
/// #[perspective]
/// impl View_ {
///     fn ticket(&self) -> Handle<Ticket> {
///         Handle::new(Ticket(7))
///     }
///
///     fn read(&self, ticket: Handle<Ticket>) -> Result<u32> {
///         ticket.read(|ticket| ticket.0)
///     }
/// }
///
/// let host = TestHost::<Desk>::start()?;
/// let alice = host.attach("alice")?;
/// let ticket = alice.reference("ticket", ())?;
/// assert_eq!(ticket.call::<u32>("number", ())?, 7);
/// assert_eq!(alice.call::<u32>("read", (&ticket,))?, 7);
/// # Ok::<(), Fault>(())
/// ```
pub struct TestObject<'h, S: Service> {
    host: &'h TestHost<S>,
    attachment: u64,
    number: u64,
}

/// A test client's own object, other than its mind. Pass it as an argument.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
///
/// # #[derive(Default)]
/// # struct Radio;
/// # #[service("radio", save = "never")]
/// # impl Service for Radio {
/// #     type Perspective = Listener;
/// # }
/// #[derive(Default)]
/// struct Listener {
///     observers: Vec<Remote>,
/// }
///
/// #[perspective]
/// impl Listener {
///     fn observe(&mut self, observer: Remote) {
///         self.observers.push(observer);
///     }
///
///     fn unobserve(&mut self, observer: Remote) -> bool {
///         let before = self.observers.len();
///         self.observers.retain(|of| *of != observer);
///         self.observers.len() < before
///     }
///
///     fn play(&self, song: String) -> Result<()> {
///         self.observers.iter().try_for_each(|observer| observer.notify("song", (&song,)))
///     }
/// }
///
/// let host = TestHost::<Radio>::start()?;
/// let alice = host.attach("alice")?;
/// let (said, heard) = std::sync::mpsc::channel();
/// let observer = alice.give(move |method, _| Ok(said.send(method.to_owned()).map(|()| Value::none())?));
/// alice.call::<()>("observe", (&observer,))?;
/// alice.call::<()>("play", ("waltz",))?;
/// assert_eq!(heard.try_recv()?, "song");
/// assert!(alice.call::<bool>("unobserve", (&observer,))?);
/// assert!(host.was_let_go(&observer)?, "the service holds it no more");
/// # Ok::<(), Fault>(())
/// ```
#[derive(Debug)]
pub struct TestRemote {
    handle: u64,
}

/// A test client's own cacheable object. Pass it as an argument. Its state is sent with it the first time.
///
/// See [`Followed`](crate::Followed).
#[derive(Debug)]
pub struct TestCached {
    handle: u64,
    class: String,
    state: Value,
    /// Whether the service has its state. False again once the service has released it.
    sent: std::rc::Rc<std::cell::Cell<bool>>,
}

impl Serialize for TestCached {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> std::result::Result<Z::Ok, Z::Error> {
        if self.sent.replace(true) {
            return serializer.serialize_newtype_struct(jelly::types::reference::CACHED, &self.handle);
        }
        let whole = (jelly::types::Name(&self.class), self.handle, &self.state);
        serializer.serialize_newtype_struct(jelly::types::reference::CACHE, &whole)
    }
}

impl<'h, S: Service> TestObject<'h, S> {
    /// Calls a method of the object. `arguments` is a tuple.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive.
    pub fn call<R: DeserializeOwned>(&self, method: &str, arguments: impl Serialize) -> Result<R> {
        self.begin(method, arguments)?.wait()
    }

    /// Begins a call; wait for its answer later.
    ///
    /// # Errors
    /// If the arguments cannot be serialized.
    pub fn begin(&self, method: &str, arguments: impl Serialize) -> Result<TestCall<'h, S>> {
        let target = (self.attachment, self.number);
        self.host.send_call(target, method, &arguments, &std::collections::HashMap::<String, u8>::new())
    }

    /// Whether both are references to the same object.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.number == other.number
    }
}

impl<S: Service> Serialize for TestObject<'_, S> {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> std::result::Result<Z::Ok, Z::Error> {
        serializer.serialize_newtype_struct(jelly::types::reference::LOCAL, &self.number)
    }
}

impl<S: Service> Drop for TestObject<'_, S> {
    fn drop(&mut self) {
        if let Ok(mut state) = self.host.state.try_borrow_mut() {
            state.handed_out = state.handed_out.saturating_sub(1);
        }
        self.host.send(&ToLibrary::Dropped { object: self.number, count: 1, had: self.attachment });
    }
}

impl<S: Service> std::fmt::Debug for TestObject<'_, S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "TestObject({})", self.number)
    }
}

impl Serialize for TestRemote {
    fn serialize<Z: Serializer>(&self, serializer: Z) -> std::result::Result<Z::Ok, Z::Error> {
        if self.handle == 0 {
            return Err(Z::Error::custom("an object that belongs to nobody"));
        }
        serializer.serialize_newtype_struct(jelly::types::reference::REMOTE, &self.handle)
    }
}

impl<'h, S: Service> TestClient<'h, S> {
    /// Calls a method that returns a reference.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive. A `TypeError` if the answer does not have
    /// exactly one reference.
    pub fn reference(&self, method: &str, arguments: impl Serialize) -> Result<TestObject<'h, S>> {
        let mut all = self.references(method, arguments)?;
        match all.len() {
            1 => Ok(all.remove(0)),
            many => Err(Fault::arguments(format!("the answer has {many} references, not one"))),
        }
    }

    /// Calls a method whose answer contains references. Returns all of them, in order.
    ///
    /// # Errors
    /// If the call fails, with the error that a client would receive.
    ///
    /// ```
    /// use plugin_api::prelude::*;
    /// use plugin_api::testing::TestHost;
    ///
    /// # #[derive(Default)]
    /// # struct Garage;
    /// # #[service("garage", save = "never")]
    /// # impl Service for Garage {
    /// #     type Perspective = Keeper;
    /// # }
    /// # #[derive(Default)]
    /// # struct Keeper;
    /// struct Car {
    ///     seats: u8,
    /// }
    ///
    /// #[perspective]
    /// impl Car {
    ///     fn seats(&self) -> u8 {
    ///         self.seats
    ///     }
    /// }
    ///
    /// #[perspective]
    /// impl Keeper {
    ///     fn cars(&self) -> Vec<Handle<Car>> {
    ///         vec![Handle::new(Car { seats: 2 }), Handle::new(Car { seats: 5 })]
    ///     }
    /// }
    ///
    /// let host = TestHost::<Garage>::start()?;
    /// let alice = host.attach("alice")?;
    /// let cars = alice.references("cars", ())?;
    /// let large = cars[1].begin("seats", ())?;
    /// assert_eq!((cars[0].call::<u8>("seats", ())?, large.wait::<u8>()?), (2, 5));
    /// // Two objects, each handed out once. They are released when dropped.
    /// assert_eq!(host.handed_out()?, 2);
    /// drop(cars);
    /// assert_eq!(host.handed_out()?, 0);
    /// # Ok::<(), Fault>(())
    /// ```
    pub fn references(&self, method: &str, arguments: impl Serialize) -> Result<Vec<TestObject<'h, S>>> {
        let answer: Value = self.call(method, arguments)?;
        // As they are on the wire: once each, wherever the answer shares them.
        let (bytes, mut scanner) = (answer.encode(), Scanner::new(Shape::Value, Limits::NONE));
        let scanned = scanner.scan(&bytes).map_err(|error| Fault::arguments(error.to_string()))?;
        let found = scanned.map(|scanned| scanned.references.to_vec()).unwrap_or_default();
        let remotes = found.into_iter().filter(|reference| reference.kind == RefKind::Remote);
        let of = |number| TestObject { host: self.host, attachment: self.attachment, number };
        Ok(remotes.filter_map(|reference| reference.luid).map(of).collect())
    }

    /// Creates a cacheable object of this client, of this class and state (a struct or a map).
    ///
    /// # Errors
    /// If the state cannot be serialized.
    pub fn give_cached(&self, class: &str, state: &impl Serialize) -> Result<TestCached> {
        let handle = self.attachment | self.host.number();
        let (class, state) = (class.to_owned(), Value::from_typed(state)?);
        let sent = std::rc::Rc::new(std::cell::Cell::new(false));
        self.host.state.borrow_mut().copies.insert(handle, std::rc::Rc::clone(&sent));
        Ok(TestCached { handle, class, state, sent })
    }

    /// Notifies the service of a change to a cacheable object of which it has a copy. `arguments` is a tuple.
    ///
    /// # Errors
    /// If the call fails, with the error that the client would receive.
    pub fn tell(&self, cached: &TestCached, method: &str, arguments: impl Serialize) -> Result<()> {
        let target = (self.attachment, cached.handle);
        self.host.send_call(target, method, &arguments, &std::collections::HashMap::<String, u8>::new())?.wait()
    }

    /// Creates an object of this client. Each call that the service makes to it is passed to `object`, as method and
    /// arguments, while the test waits.
    #[must_use]
    pub fn give(&self, object: impl FnMut(&str, Value) -> Result<Value> + 'static) -> TestRemote {
        let handle = self.attachment | self.host.number();
        let object: Mind = Box::new(object);
        self.host.state.borrow_mut().minds.insert(handle, object);
        TestRemote { handle }
    }
}

impl<S: Service> TestHost<S> {
    /// Whether the service has released all references to this object of a client.
    ///
    /// # Errors
    /// If the service has ended.
    pub fn was_let_go(&self, object: &TestRemote) -> Result<bool> {
        self.settle()?;
        Ok(self.state.borrow().sent.get(&object.handle).is_none_or(|count| *count == 0))
    }

    /// Returns how many references to the service's objects clients hold, as counted by the service when it handed
    /// them out.
    ///
    /// # Errors
    /// If the service has ended.
    pub fn handed_out(&self) -> Result<u64> {
        self.settle()?;
        Ok(self.state.borrow().handed_out)
    }
}
