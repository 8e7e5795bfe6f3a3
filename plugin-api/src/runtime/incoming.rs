//! One call on its way to a method: what `#[perspective]` writes calls upon.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::Pin;
use std::rc::Rc;

use jelly::Value;
use serde::Serialize;

use super::arguments::Arguments;
use super::copies::Told;
use super::core::{Core, Encoded, Object};
use crate::call::{Attachment, Call};
use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::handle::Handle;
use crate::manifest::Method;
use crate::service::{Callable, Service};

/// What became of a call.
pub enum Invoked {
    /// It has run; its answer is in the buffer that came with it.
    Done(Result<()>),
    /// It runs on. Its answer comes with its end.
    Later(Pin<Box<dyn Future<Output = Result<Encoded>>>>, Option<Call>),
}

/// A call on its way.
pub struct Incoming<'a> {
    pub(crate) method: &'a str,
    pub(crate) arguments: &'a [u8],
    pub(crate) keywords: &'a [u8],
    pub(crate) attachment: &'a Attachment,
    /// The perspective of whoever calls, where the object knows it.
    pub(crate) avatar: Option<&'a Rc<dyn Object>>,
    /// Whether it is for an object, and not for a perspective.
    pub(crate) object: bool,
    /// The service's context, whose type the perspective knows.
    pub(crate) context: &'a dyn std::any::Any,
    pub(crate) core: &'a Rc<Core>,
    pub(crate) answer: &'a mut Vec<u8>,
    /// The own objects in the answer.
    pub(crate) objects: &'a mut Vec<u8>,
}

/// Where a method's answer goes.
pub struct Sink<'a> {
    core: &'a Core,
    answer: &'a mut Vec<u8>,
    objects: &'a mut Vec<u8>,
}

impl Sink<'_> {
    /// Writes the answer.
    ///
    /// # Errors
    /// When the type's `Serialize` fails.
    pub fn value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.core.encode(value, self.answer, self.objects).map_err(unsendable)
    }
}

fn unsendable(error: jelly::Error) -> Fault {
    Fault::new("RuntimeError", format!("the answer cannot be sent: {error}"))
}

/// The answer of an async method.
///
/// # Errors
/// When the type's `Serialize` fails.
pub fn encode<T: Serialize + ?Sized>(value: &T) -> Result<Encoded> {
    let core = Core::current().ok_or_else(|| Fault::new("RuntimeError", "an answer is written in calls only"))?;
    let mut encoded = Encoded::default();
    core.encode(value, &mut encoded.bytes, &mut encoded.objects).map_err(unsendable)?;
    Ok(encoded)
}

impl<'a> Incoming<'a> {
    /// The method's name.
    #[must_use]
    pub fn method(&self) -> &'a str {
        self.method
    }

    /// There is no such method.
    #[must_use]
    pub fn no_such_method<T: Callable>(self) -> Invoked {
        let known: Vec<&str> = T::METHODS.iter().map(|method| method.name).collect();
        // As Twisted has it: of a Referenceable its own class, which derives from the one that an Avatar's has.
        let class = if self.object { "twisted.spread.flavors.NoSuchMethod" } else { "AttributeError" };
        Invoked::Done(Err(Fault::new(
            class,
            format!("{} has no method {}; it has {}", T::NAME, self.method, known.join(", ")),
        )))
    }

    /// The call, for a method that wants to know about it.
    #[must_use]
    pub fn call(&self) -> Call {
        Call::new(self.attachment, self.avatar.cloned())
    }

    /// The service's context, for a method that wants it.
    ///
    /// # Errors
    /// When the object is not one of that service.
    pub fn context<S: Service>(&self) -> Result<Context<S>> {
        self.context
            .downcast_ref::<Context<S>>()
            .cloned()
            .ok_or_else(|| Fault::new("RuntimeError", "the context of another service"))
    }

    /// Runs a method that only looks.
    pub fn read<T: Callable>(
        self,
        me: &Handle<T>,
        method: &'static Method,
        run: impl FnOnce(&T, &mut Arguments<'_>, &mut Sink<'_>) -> Result<()>,
    ) -> Invoked {
        let Self { core, answer, objects, .. } = self;
        let done = Arguments::new(method, self.arguments, self.keywords, core).and_then(|mut arguments| {
            let mut sink = Sink { core, answer, objects };
            contained(method, || me.read(|this| run(this, &mut arguments, &mut sink)))?
        });
        Invoked::Done(done)
    }

    /// Runs a method that may change.
    pub fn write<T: Callable>(
        self,
        me: &Handle<T>,
        method: &'static Method,
        run: impl FnOnce(&mut T, &mut Arguments<'_>, &mut Sink<'_>) -> Result<()>,
    ) -> Invoked {
        let Self { core, answer, objects, .. } = self;
        let done = Arguments::new(method, self.arguments, self.keywords, core).and_then(|mut arguments| {
            let mut sink = Sink { core, answer, objects };
            contained(method, || me.write(|this| run(this, &mut arguments, &mut sink)))?
        });
        Invoked::Done(done)
    }

    /// A client's object has changed that a copy is here of.
    pub(crate) fn observe(self, handle: u64) -> Invoked {
        let Self { method, arguments, core, answer, objects, .. } = self;
        let told = || {
            if let Told::Tell(copy) = core.copies.observed(handle, method, arguments, core.limits.get().changes)? {
                let arguments: Value = jelly::from_slice_with(arguments, core.classes.get())?;
                copy.observe(method, arguments)?;
            }
            Sink { core, answer, objects }.value(&())
        };
        Invoked::Done(catch_unwind(AssertUnwindSafe(told)).unwrap_or_else(|_| Err(Fault::panicked("observe"))))
    }

    /// Begins a method that may wait.
    pub fn begin<F>(
        self,
        method: &'static Method,
        call: Option<Call>,
        begin: impl FnOnce(&mut Arguments<'_>) -> Result<F>,
    ) -> Invoked
    where
        F: Future<Output = Result<Encoded>> + 'static,
    {
        let begun = contained(method, || {
            Arguments::new(method, self.arguments, self.keywords, self.core)
                .and_then(|mut arguments| begin(&mut arguments))
        });
        match begun {
            Ok(future) => Invoked::Later(Box::pin(future), call),
            Err(fault) => Invoked::Done(Err(fault)),
        }
    }
}

impl std::fmt::Debug for Sink<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Sink({})", self.answer.len())
    }
}

impl std::fmt::Debug for Incoming<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Incoming({})", self.method)
    }
}

impl std::fmt::Debug for Invoked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Done(result) => write!(f, "Done({result:?})"),
            Self::Later(..) => f.write_str("Later"),
        }
    }
}

/// A panic inside answers its caller, and ends there.
fn contained<R>(method: &'static Method, run: impl FnOnce() -> Result<R>) -> Result<R> {
    catch_unwind(AssertUnwindSafe(run)).unwrap_or_else(|_| Err(Fault::panicked(method.name)))
}
