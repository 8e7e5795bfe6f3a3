//! The deadlines of a connection.

use std::sync::Arc;

use plugin_api::pace::{Pace, Rates};
use tokio::time::Instant;

use super::end::End;
use crate::session::Limits;

/// A message that has begun.
struct Coming {
    /// The number of complete messages before it.
    before: u64,
    /// The number of its bytes that have arrived.
    bytes: usize,
}

/// The deadlines of a connection.
pub(super) struct Timers {
    limits: Arc<Limits>,
    /// When somebody must have logged in.
    pub(super) login: Option<Instant>,
    /// When the next refusal is due.
    pub(super) refusal: Option<Instant>,
    /// How fast the client reads its output.
    pub(super) leaving: Pace,
    /// How fast the incoming message arrives.
    coming: Pace,
    message: Option<Coming>,
    /// When buffers are freed, unless there is traffic before.
    pub(super) rest: Option<Instant>,
    /// When calls in flight are given up, once the listener closes.
    pub(super) closing: Option<Instant>,
}

impl Timers {
    pub(super) fn new(limits: Arc<Limits>) -> Self {
        let login = Some(Instant::now() + limits.login);
        let rates = Rates { stalled: limits.stalled, message: limits.message.0, rate: limits.message.1 };
        let (leaving, coming) = (rates.leaving(), rates.coming());
        Self { limits, login, refusal: None, leaving, coming, message: None, closing: None, rest: None }
    }

    /// Unread answers, in bytes, beyond which the client is disconnected.
    pub(super) fn backlog(&self) -> usize {
        // What may be unread may be there.
        self.limits.most_unread()
    }

    pub(super) fn close(&mut self) {
        self.closing.get_or_insert_with(|| Instant::now() + self.limits.grace);
    }

    /// Updates the deadline of the incoming message: `messages` are complete, `unserved` bytes of the next have arrived.
    pub(super) fn receiving(&mut self, messages: u64, unserved: usize) {
        let now = Instant::now();
        match &mut self.message {
            _ if unserved == 0 => return self.not_listening(),
            Some(coming) if coming.before == messages => {
                let more = unserved.saturating_sub(coming.bytes);
                coming.bytes = unserved;
                if more > 0 {
                    self.coming.moved(more, now);
                }
            }
            _ => {
                self.message = Some(Coming { before: messages, bytes: unserved });
                self.coming.rest();
            }
        }
        self.coming.begin(now);
    }

    /// The host does not read, so no message can be late.
    pub(super) fn not_listening(&mut self) {
        self.message = None;
        self.coming.rest();
    }

    /// A client whose login has ended has as long as a new one.
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
        if self.coming.is_late(now) {
            return Err(End::Unfinished);
        }
        if unread && self.leaving.is_late(now) { Err(End::Stalled) } else { Ok(()) }
    }

    /// The next deadline.
    pub(super) fn next(&self, unread: bool, reset: Option<Instant>) -> Option<Instant> {
        let stalled = unread.then(|| self.leaving.due()).flatten();
        let all = [self.login, self.closing, self.refusal, self.coming.due(), reset, stalled, self.rest];
        all.into_iter().flatten().min()
    }
}
