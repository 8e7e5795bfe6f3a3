//! Doors of a service's own: streams from listeners that the host opens, and the logins by these streams.
//!
//! The operator gives a service its addresses (`[service.chat.listen] irc = "127.0.0.1:6667"`). The host opens them once, and
//! keeps them open while the service is replaced. There are two ways to serve the streams. A [`Door`] is a protocol without IO of
//! its own, whose connections are carried over when the code is replaced. A [`Listener`] gives plain tokio streams, for libraries
//! that need one.

#[cfg(feature = "attach")]
mod attach;
mod authorizer;
mod drive;
mod input;
mod pace;
mod queue;
mod remembered;
mod stream;
mod table;
mod transport;
mod turns;

use std::time::Duration;

use crate::context::Context;
use crate::fault::{Fault, Result};
use crate::service::Service;

pub(crate) use self::authorizer::Wait;
pub use self::authorizer::{Authorizer, Challenge, Login, Refused};
pub(crate) use self::drive::serve;
pub use self::input::Input;
pub use self::pace::{Pace, Rates};
pub use self::remembered::{Account, CredentialShown, Lasts, RememberedShown, SessionShown};
pub(crate) use self::stream::lent;
pub use self::stream::{Caller, Client, Listener, Peer, Stream};
#[cfg(feature = "web")]
pub(crate) use self::stream::{StreamCell, sealed};
pub(crate) use self::table::{Table, take_turns, tend};
pub use self::transport::Transport;

/// One connection of a service's own protocol. Input arrives at [`received`](Door::received); output goes to the [`Transport`].
///
/// In Twisted: `twisted.internet.protocol.Protocol`.
///
/// ```
/// use plugin_api::prelude::*;
/// use plugin_api::testing::TestHost;
/// use plugin_api::{Door, Input, Transport};
///
/// #[derive(Default)]
/// struct Echo;
///
/// #[service("echo", save = "never")]
/// impl Service for Echo {
///     type Perspective = Nobody;
///
///     async fn start(_me: Handle<Self>, context: Context<Self>) -> Result<()> {
///         context.serve::<Lines>("lines")
///     }
/// }
///
/// /// Answers each line with its number.
/// #[derive(Serialize, Deserialize)]
/// struct Lines {
///     seen: u32,
/// }
///
/// impl Door for Lines {
///     type Service = Echo;
///
///     fn opened(_: &Context<Echo>, transport: &Transport) -> Result<Self> {
///         transport.write(b"welcome\n");
///         Ok(Self { seen: 0 })
///     }
///
///     async fn received(&mut self, _: &Context<Echo>, transport: &Transport, input: &mut Input) -> Result<()> {
///         while let Some(line) = input.line() {
///             self.seen += 1;
///             transport.write(format!("{}: {}\n", self.seen, *line).as_bytes());
///         }
///         Ok(())
///     }
///
///     fn freeze(&self) -> Result<Vec<u8>> {
///         Ok(self.seen.to_le_bytes().to_vec())
///     }
///
///     fn thaw(_: &Context<Echo>, _: &Transport, state: &[u8]) -> Result<Self> {
///         let seen = state.try_into().map_err(|_| Fault::value("four bytes"))?;
///         Ok(Self { seen: u32::from_le_bytes(seen) })
///     }
/// }
///
/// # #[derive(Default)]
/// # struct Nobody;
/// # #[perspective]
/// # impl Nobody {}
/// let host = TestHost::<Echo>::start()?;
/// let mut client = host.connect("lines")?;
/// assert_eq!(client.line()?, "welcome");
/// client.send("hello\nhalf")?;
/// assert_eq!(client.line()?, "1: hello");
/// // The code is replaced, and the client does not notice.
/// host.reload()?;
/// client.send(" a line\n")?;
/// assert_eq!(client.line()?, "2: half a line");
/// # Ok::<(), Fault>(())
/// ```
pub trait Door: Sized + 'static {
    /// The service that this door belongs to.
    type Service: Service;

    /// Whether clients need not log in here. If `true`, no connection is closed for lack of a login.
    const PUBLIC: bool = false;
    /// The longest message, in bytes. A client that sends as many bytes without completing a message is disconnected. So is a
    /// client whose message has begun but does not arrive at the rate that the operator has set (`message` and `rate` in
    /// `[limits]`, or for the listener): whatever is left in the input counts as one message. A door for people who type byte by
    /// byte takes every byte out. The operator may allow less (`doors.input`).
    const LONGEST: usize = 64 << 10;
    /// The most output, in bytes, that may wait for a client to read it. A client that lets more wait is disconnected. Once half
    /// of it waits, the library reads nothing from the client until most of it has left. The host counts what waits in its
    /// memory, for the identity or else for the source; a client that exceeds their share is disconnected, too. The operator may
    /// allow less (`doors.output`), and 16 KiB for each client while more than `doors.unread` waits for all of them.
    const UNREAD: usize = 256 << 10;
    /// How long a client may send nothing before [`idle`](Door::idle) is called.
    const IDLE: Duration = Duration::from_secs(120);

    /// Called for each new connection.
    ///
    /// # Errors
    /// Return an error to refuse the connection. It is closed after what was written.
    fn opened(context: &Context<Self::Service>, transport: &Transport) -> Result<Self>;

    /// Called when bytes have arrived. They follow those that were left in `input`. Take complete messages out of it, and leave
    /// the rest for the next call. The library reads no more until this returns, so a client's messages are served in order.
    ///
    /// While this waits for something, the code may be replaced. After that, this code can no longer change the service's state
    /// ([`Fault::is_reloaded`]). To let the new code handle a message, leave it in `input` until it is done, and return `Ok` if
    /// the code was replaced. A loop must check [`Transport::is_closed`]: messages that came by a login that was revoked must no
    /// longer be handled.
    ///
    /// # Errors
    /// Return an error to end the connection, after what was written.
    fn received(
        &mut self,
        context: &Context<Self::Service>,
        transport: &Transport,
        input: &mut Input,
    ) -> impl Future<Output = Result<()>>;

    /// Called when nothing has arrived for [`IDLE`](Door::IDLE): time to ask whether the client is still there.
    ///
    /// # Errors
    /// Return an error to end the connection.
    fn idle(&mut self, _context: &Context<Self::Service>, _transport: &Transport) -> Result<()> {
        Ok(())
    }

    /// Called when the connection has ended: by the client, by the service, or by an error. Not called when it is carried over
    /// to other code, or when the service is stopped.
    fn closed(self, _context: &Context<Self::Service>, _transport: &Transport) {}

    /// Saves the connection as bytes, for the next generation. Called when the code is replaced, between two calls of
    /// [`received`](Door::received). If this code resumes after all, so does this connection.
    ///
    /// # Errors
    /// Return an error if the connection cannot be saved. It then stays with this code until the operator's grace period for
    /// replaced code is over.
    fn freeze(&self) -> Result<Vec<u8>> {
        Err(Fault::new("RuntimeError", "connections of this door stay with their code"))
    }

    /// Continues a connection from the bytes that the previous generation saved. Its login, if it has one, is in the transport.
    ///
    /// # Errors
    /// Return an error if the connection cannot continue. It is closed after what was written.
    fn thaw(_context: &Context<Self::Service>, _transport: &Transport, _state: &[u8]) -> Result<Self> {
        Err(Fault::new("RuntimeError", "connections of this door stay with their code"))
    }
}
