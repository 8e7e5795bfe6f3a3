//! Test clients: how each attaches, and its calls.

use std::collections::HashMap;

use jelly::{Classes, RefKind, Value};
use serde::Serialize;
use serde::de::DeserializeOwned;

use super::{Known, Mind, TestCall, TestClient, TestHost};
use crate::abi::frame::{self, ToLibrary};
use crate::fault::Result;
use crate::service::Service;

impl<S: Service> TestHost<S> {
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

    pub(super) fn attach_as(&self, perspective: &str, identity: &str, mind: Option<Mind>) -> Result<TestClient<'_, S>> {
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

    pub(super) fn attach_known<'h>(&self, client: TestClient<'h, S>, known: Known) -> Result<TestClient<'h, S>> {
        self.state.borrow_mut().known.insert(client.attachment, known);
        if let Err(fault) = self.attach_now(client.attachment, false) {
            self.state.borrow_mut().known.remove(&client.attachment);
            return Err(fault);
        }
        Ok(client)
    }

    pub(super) fn attach_now(&self, attachment: u64, again: bool) -> Result<()> {
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
