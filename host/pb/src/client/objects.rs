//! Local objects that the other side can call.

use std::future::ready;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use serde::Serialize;

use super::link::{Asked, Command, Link, Local, LocalCell, Made, Serve, Serving};
use super::received::Call;
use crate::Failure;

/// The answer of a local object, now or later.
pub struct Reply(Serving);

impl std::fmt::Debug for Reply {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Reply")
    }
}

impl Reply {
    /// An answer that takes time. Until it first waits for something, no other call is handled: calls begin in their order.
    pub fn new<T, F>(answer: F) -> Self
    where
        T: Serialize + Send + 'static,
        F: Future<Output = Result<T, Failure>> + Send + 'static,
    {
        Self(Box::pin(async move {
            let value: Made = Box::new(answer.await?);
            Ok(value)
        }))
    }

    /// An answer that is available now.
    ///
    /// ```
    /// # use pb::Failure;
    /// # use pb::client::{Call, Referenceable, Reply};
    /// /// Adds at once, and answers `later` after a second.
    /// struct Adder;
    ///
    /// impl Referenceable for Adder {
    ///     fn call(&self, call: Call) -> Reply {
    ///         match call.method() {
    ///             "add" => Reply::now(call.read::<(i64, i64)>().map(|(one, other)| one + other)),
    ///             "later" => Reply::new(async move {
    ///                 tokio::time::sleep(std::time::Duration::from_secs(1)).await;
    ///                 Ok("now")
    ///             }),
    ///             _ => Reply::now(Err::<(), Failure>(call.unknown())),
    ///         }
    ///     }
    /// }
    /// # let _ = Adder;
    /// ```
    pub fn now<T: Serialize + Send + 'static>(answer: Result<T, Failure>) -> Self {
        Self::new(ready(answer))
    }
}

/// A local object that the other side can call, for example a mind. Closures implement this, too:
///
/// ```no_run
/// # fn register(client: &pb::client::Client) -> pb::client::Local {
/// use pb::client::Call;
///
/// client.register(|call: Call| async move {
///     match call.method() {
///         "add" => call.read::<(i64, i64)>().map(|(one, other)| one + other),
///         _ => Err(call.unknown()),
///     }
/// })
/// # }
/// ```
///
/// In Twisted: `twisted.spread.pb.Referenceable`, whose methods are called `remote_…`.
pub trait Referenceable: Send + Sync + 'static {
    /// Serves a call.
    fn call(&self, call: Call) -> Reply;
}

impl<F, T, R> Referenceable for F
where
    F: Fn(Call) -> R + Send + Sync + 'static,
    R: Future<Output = Result<T, Failure>> + Send + 'static,
    T: Serialize + Send + 'static,
{
    fn call(&self, call: Call) -> Reply {
        Reply::new(self(call))
    }
}

/// An object, with the timeout for the objects in its calls.
struct Served<O: ?Sized> {
    object: Arc<O>,
    timeout: Option<Duration>,
}

impl<O: Referenceable + ?Sized> Serve for Served<O> {
    fn serve(&self, asked: Asked) -> Serving {
        self.object.call(Call::new(asked, self.timeout)).0
    }
}

impl Call {
    /// Registers a local object with the connection that the call came by, so that it can be sent, for example in the answer.
    #[must_use]
    pub fn register(&self, object: impl Referenceable) -> Local {
        register(&self.link, self.timeout, Arc::new(object))
    }
}

/// Registers an object with a connection.
pub(super) fn register(link: &Link, timeout: Option<Duration>, object: Arc<dyn Referenceable>) -> Local {
    let number = number();
    link.tell(Command::Register { number, object: Arc::new(Served { object, timeout }) });
    Local { cell: Arc::new(LocalCell { link: link.clone(), number }) }
}

/// A new number for a local object, unique in this process.
pub(super) fn number() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// An object without methods. It only stands for something else.
pub(super) struct Nothing;

impl Serve for Nothing {
    fn serve(&self, asked: Asked) -> Serving {
        let call = Call::new(asked, None);
        let refused: Pin<Box<dyn Future<Output = _> + Send>> = Box::pin(ready(Err(call.unknown())));
        refused
    }
}
