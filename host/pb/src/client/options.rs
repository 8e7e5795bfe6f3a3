//! Limits of a connection.

use std::time::Duration;

use jelly::Limits;

/// Limits of a connection, and the timeout of its calls.
///
/// ```
/// use std::time::Duration;
/// use pb::client::Options;
///
/// let options = Options { timeout: Some(Duration::from_secs(5)), calls: 16, ..Options::default() };
/// # let _ = options;
/// ```
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// The most calls that wait for an answer (256). Further calls wait to be sent. Calls that a local object makes while it
    /// serves one count, too.
    pub calls: usize,
    /// The most bytes of arguments, of calls that wait for an answer and of messages that are not written yet (4 MiB). A call with
    /// more than a quarter of that counts as a quarter.
    pub bytes: usize,
    /// The longest time from making a call to its answer; `None`: no limit.
    /// [`Remote::with_timeout`](super::Remote::with_timeout) sets it for one object.
    pub timeout: Option<Duration>,
    /// Limits on each message that the other side sends.
    pub limits: Limits,
    /// The most local objects that the other side may hold, and the most copies that this side may hold (1,024 each, as in
    /// Twisted).
    pub references: usize,
    /// Nobody but the host can read the connection. The client then sends passwords as they are, which lets the host check them against
    /// an argon2id hash. An [`Endpoint`](super::Endpoint) sets this for TLS and for Unix sockets. It does not for TCP on this machine:
    /// another user could listen on the port while the host is down. [`Endpoint::private`](super::Endpoint::private) sets it there.
    pub private: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (calls, bytes, references) = (256, 4 << 20, 1024);
        Self { calls, bytes, timeout: None, limits: Limits::default(), references, private: false }
    }
}
