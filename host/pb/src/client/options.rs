//! What a connection may cost.

use std::time::Duration;

use jelly::Limits;

/// What a connection may cost, and how long calls may take.
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
    /// So many calls wait for an answer at once (256); more wait to be sent. An object of ours that calls the other side while it
    /// serves a call needs room for that, too.
    pub calls: usize,
    /// So many bytes their arguments have, together with what has yet to be written (4 MiB). A call that
    /// has more than a quarter of that counts for a quarter.
    pub bytes: usize,
    /// How long a call may take, from when it is made until its answer has come; none: as long as it likes. [`Remote::with_timeout`](super::Remote::with_timeout)
    /// is for one object alone.
    pub timeout: Option<Duration>,
    /// What one message of the other side's may cost.
    pub limits: Limits,
    /// So many of our objects the other side may hold, and we of its copies (1,024, as in Twisted).
    pub references: usize,
    /// Nobody but the host can read what is sent: passwords go as they are, which is the only way to check them against an
    /// argon2id hash. True of TLS and of Unix sockets that an [`Endpoint`](super::Endpoint) opens; of a port of this machine's somebody
    /// has to say so, for whoever else is here could listen there while the host is down.
    pub private: bool,
}

impl Default for Options {
    fn default() -> Self {
        let (calls, bytes, references) = (256, 4 << 20, 1024);
        Self { calls, bytes, timeout: None, limits: Limits::default(), references, private: false }
    }
}
