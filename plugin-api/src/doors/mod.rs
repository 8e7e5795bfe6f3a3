//! Doors of a service's own: streams that come by listeners of the host's, and who logs in by them.
//!
//! The operator gives a service its addresses (`[service.chat.listen] irc = "127.0.0.1:6667"`); the host opens them once,
//! and keeps them open while the service is replaced. Two ways lead to the streams: a [`Door`] is a protocol without IO of
//! its own, whose connections are carried over when the code is replaced; a [`Listener`] gives plain streams of tokio's, for
//! libraries that want one.

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

/// One connection of a protocol of the service's own: what came in goes to [`received`](Door::received), what is to go out to
/// the [`Transport`].
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
    /// The service whose door it is.
    type Service: Service;

    /// Whether nobody needs to log in here: no connection is closed because nobody has.
    const PUBLIC: bool = false;
    /// The longest message, in bytes: a client that sends as much without a message being whole is let go. So is one whose message
    /// has begun, and does not come on at the rate that the operator has set (`message` and `rate` in `[limits]`, or for the
    /// listener): what is left in the input counts as one. A door for what people type byte by byte takes each byte out.
    const LONGEST: usize = 64 << 10;
    /// The most bytes that wait for the client to read them: one that does not is let go. Once half of it waits, nothing is
    /// read of the client until most of it has left. What waits is counted in the host's memory, for whoever has logged in: beyond their share of that, too, they are
    /// let go.
    const UNREAD: usize = 256 << 10;
    /// After so long without a byte from the client, [`idle`](Door::idle) is called.
    const IDLE: Duration = Duration::from_secs(120);

    /// A connection has come.
    ///
    /// # Errors
    /// To refuse it: it is closed, behind what was written.
    fn opened(context: &Context<Self::Service>, transport: &Transport) -> Result<Self>;

    /// Bytes have come, behind those that were left in `input`. Takes what is whole out of it, and leaves the rest for the next
    /// time. No more is read until it returns, so that what a client sends is served in order.
    ///
    /// While it waits for something the code may be replaced: then the service's state cannot be changed here any more
    /// ([`Fault::is_reloaded`]). Whoever leaves a message in `input` until it is done, and returns `Ok` then, has it done by the
    /// new code. A loop looks at [`Transport::is_closed`]: what came by a login that was taken away is not to be done any more.
    ///
    /// # Errors
    /// To end the connection, behind what was written.
    fn received(
        &mut self,
        context: &Context<Self::Service>,
        transport: &Transport,
        input: &mut Input,
    ) -> impl Future<Output = Result<()>>;

    /// Nothing has come for [`IDLE`](Door::IDLE): time to ask whether the client is there.
    ///
    /// # Errors
    /// To end the connection.
    fn idle(&mut self, _context: &Context<Self::Service>, _transport: &Transport) -> Result<()> {
        Ok(())
    }

    /// The connection has ended: by the client, by an error, or because the service does. Not called when it is carried over
    /// to other code.
    fn closed(self, _context: &Context<Self::Service>, _transport: &Transport) {}

    /// Makes bytes of the connection, for the code that comes next. Called when the code is replaced, between two calls of
    /// [`received`](Door::received); if it goes on after all, so does this.
    ///
    /// # Errors
    /// When it cannot be: it stays with this code, until the operator's grace for code that was replaced is over.
    fn freeze(&self) -> Result<Vec<u8>> {
        Err(Fault::new("RuntimeError", "connections of this door stay with their code"))
    }

    /// Goes on with a connection, from what the code before has made of it. Its login, if it has one, is the transport's.
    ///
    /// # Errors
    /// When it cannot: the connection is closed, behind what was written.
    fn thaw(_context: &Context<Self::Service>, _transport: &Transport, _state: &[u8]) -> Result<Self> {
        Err(Fault::new("RuntimeError", "connections of this door stay with their code"))
    }
}
