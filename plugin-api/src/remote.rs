//! Objects of the client's.

use std::rc::Rc;

use serde::de::{DeserializeOwned, Error as _, Visitor};
use serde::ser::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::abi::frame::ToHost;
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// An object of a client's: its mind, or a reference it has sent. Clones are the same reference; it is given back to
/// the client when the last is dropped.
///
/// The client can go at any time; a call then answers with `twisted.spread.pb.PBConnectionLost`.
#[derive(Clone)]
pub struct Remote {
    shared: Rc<Shared>,
}

pub(crate) struct Shared {
    core: Rc<Core>,
    handle: u64,
    /// How many times it has come in: each is given back.
    pub(crate) count: std::cell::Cell<u64>,
}

impl Remote {
    /// One that has come in once more.
    pub(crate) fn received(core: &Rc<Core>, handle: u64) -> Self {
        let shared = core.remote(handle, |core| Shared { core, handle, count: std::cell::Cell::new(0) });
        shared.count.set(shared.count.get() + 1);
        Self { shared }
    }

    /// Calls a method of the client's object: `arguments` is a tuple, `(text,)` for one. The call is on its way when
    /// this returns; await the answer.
    ///
    /// # Errors
    /// The client's own exceptions, by their class; `twisted.spread.pb.PBConnectionLost` when it has gone; a TypeError
    /// when the answer is not of the type asked for.
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
    pub fn call_with<A: Serialize, K: Serialize, R: DeserializeOwned>(
        &self,
        method: &str,
        arguments: A,
        keywords: K,
    ) -> impl Future<Output = Result<R>> + use<A, K, R> {
        let core = &self.shared.core;
        let sent = tuple(&arguments)
            .and_then(|arguments| Ok((arguments, jelly::to_vec(&keywords)?)))
            .map(|(arguments, keywords)| core.call(self.shared.handle, method, &arguments, &keywords));
        // The client's object lives until its answer has come.
        let keep = self.clone();
        async move {
            let answer = sent?.await;
            drop(keep);
            // What came with the answer is held until it is read.
            let answer = answer?;
            jelly::from_slice(&answer.bytes).map_err(|error| Fault::arguments(format!("the client's answer: {error}")))
        }
    }

    /// Calls a method of the client's object and wants no answer: neither will an error be heard of.
    ///
    /// # Errors
    /// When the arguments cannot be written.
    pub fn notify<A: Serialize>(&self, method: &str, arguments: A) -> Result<()> {
        let arguments = tuple(&arguments)?;
        let keywords = jelly::to_vec(&NoKeywords {})?;
        self.shared.core.push(&ToHost::Call {
            call: 0,
            handle: self.shared.handle,
            answer: false,
            method,
            arguments: &arguments,
            keywords: &keywords,
        });
        Ok(())
    }

    /// Whether both are the same object of the same client.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        self.shared.handle == other.shared.handle
    }
}

#[derive(Serialize)]
struct NoKeywords {}

/// Arguments as a tuple; `()` is the empty one.
pub(crate) fn tuple<A: Serialize>(arguments: &A) -> Result<Vec<u8>> {
    const NONE: [u8; 4] = [1, 0x80, 1, 0x87];
    const EMPTY: [u8; 4] = [1, 0x80, 11, 0x87];
    let bytes = jelly::to_vec(arguments)?;
    if bytes == NONE {
        return Ok(EMPTY.to_vec());
    }
    let is_tuple = jelly::Deserializer::new(&bytes).sequence().is_ok();
    if is_tuple { Ok(bytes) } else { Err(Fault::arguments("arguments are a tuple: (text,) for one")) }
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.core.forget_remote(self.handle);
        self.core.push(&ToHost::Release { handle: self.handle, count: self.count.get() });
    }
}

impl std::fmt::Debug for Remote {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Remote({})", self.shared.handle)
    }
}

impl Serialize for Remote {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        if Core::current().is_none() {
            return Err(S::Error::custom("a reference can be sent in calls only"));
        }
        serializer.serialize_newtype_struct(jelly::types::reference::LOCAL, &self.shared.handle)
    }
}

impl<'de> Deserialize<'de> for Remote {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        let handle = number(deserializer, jelly::types::reference::REMOTE, "a reference to an object of the client's")?;
        // The runtime holds what has come in with a call while its arguments are read.
        let known = Core::current().and_then(|core| core.known_remote(handle));
        known.map(|shared| Self { shared }).ok_or_else(|| D::Error::custom("a reference can come in calls only"))
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
