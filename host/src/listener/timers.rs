//! When what of a connection is overdue.

use std::sync::Arc;

use tokio::time::Instant;

use super::end::End;
use crate::session::Limits;

/// A message that has begun.
struct Coming {
    /// How many came whole before it.
    before: u64,
    /// Since when it is looked at how fast it comes.
    since: Instant,
    /// How much of it was there then.
    bytes: usize,
}

/// When what is overdue.
pub(super) struct Timers {
    limits: Arc<Limits>,
    /// Until when somebody has to log in.
    pub(super) login: Option<Instant>,
    /// When the next refusal leaves.
    pub(super) refusal: Option<Instant>,
    /// When bytes left last, or none were left to send.
    pub(super) moved: Instant,
    /// The message that is coming.
    message: Option<Coming>,
    /// When buffers are given back, if nothing comes or goes by then.
    pub(super) rest: Option<Instant>,
    /// When calls under way are given up, once the listener closes.
    pub(super) closing: Option<Instant>,
}

impl Timers {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        let now = Instant::now();
        let login = Some(now + limits.login);
        Self { limits, login, refusal: None, moved: now, message: None, closing: None, rest: None }
    }

    pub(super) fn close(&mut self) {
        self.closing.get_or_insert_with(|| Instant::now() + self.limits.grace);
    }

    /// Updates the deadline of the incoming message: `messages` are complete, `unserved` bytes of the next have arrived.
    pub(super) fn receiving(&mut self, messages: u64, unserved: usize) {
        match &mut self.message {
            _ if unserved == 0 => self.message = None,
            Some(coming) if coming.before == messages => {
                let (time, rate) = self.limits.message;
                // Fast enough until now: it has as long again for as much more.
                if unserved >= coming.bytes.saturating_add(rate.saturating_mul(time.as_secs() as usize)) {
                    (coming.since, coming.bytes) = (Instant::now(), unserved);
                }
            }
            _ => self.message = Some(Coming { before: messages, since: Instant::now(), bytes: unserved }),
        }
    }

    /// The host does not read: nobody is late.
    pub(super) fn not_listening(&mut self) {
        self.message = None;
    }

    /// By when the message that is coming has to have come on, or be whole.
    fn message_by(&self) -> Option<Instant> {
        self.message.as_ref().map(|coming| coming.since + self.limits.message.0)
    }

    /// Whoever was sent away has as long as one who comes.
    pub(super) fn logged_in(&mut self, logged_in: bool) {
        self.login =
            if logged_in { None } else { Some(self.login.unwrap_or_else(|| Instant::now() + self.limits.login)) };
    }

    /// Whether a deadline has passed.
    pub(super) fn overdue(&self, unread: bool) -> Result<(), End> {
        let now = Instant::now();
        if self.closing.is_some_and(|by| now >= by) {
            return Err(End::Closing);
        }
        if self.login.is_some_and(|by| now >= by) {
            return Err(End::NoLogin);
        }
        if self.message_by().is_some_and(|by| now >= by) {
            return Err(End::Unfinished);
        }
        if unread && now >= self.moved + self.limits.stalled { Err(End::Stalled) } else { Ok(()) }
    }

    /// The next deadline.
    pub(super) fn next(&self, unread: bool, reset: Option<Instant>) -> Option<Instant> {
        let stalled = unread.then(|| self.moved + self.limits.stalled);
        let all = [self.login, self.closing, self.refusal, self.message_by(), reset, stalled, self.rest];
        all.into_iter().flatten().min()
    }
}
