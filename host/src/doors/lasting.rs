//! A login that outlives the streams that it came by, while a service has it.
//!
//! The authorizer stores a remembered login as a credential of its identity ([`crate::cred::Remembered`]). This module
//! holds what a service has of it: a number, a line in the list of sessions, and a mailbox for changes.

use std::collections::{BTreeMap, HashMap};
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::Notify;

use super::ends::number;
use super::words::LoggedIn;
use crate::config::Grants;
use crate::multiservice::SlotNo;
use crate::multiservice::router::Mailbox;
use crate::sessions::{Acknowledgement, SessionEntry};

/// A login without a stream.
pub(super) struct Lasting {
    /// Its number, as a connection. Notices arrive by it.
    pub(super) connection: u32,
    pub(super) service: String,
    pub(super) slot: SlotNo,
    pub(super) grants: Grants,
    pub(super) source: SocketAddr,
    pub(super) peer: String,
    pub(super) door: Arc<str>,
    pub(super) entry: Arc<SessionEntry>,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) login: LoggedIn,
    pub(super) state: Mutex<State>,
    /// Notified when the state has changed.
    pub(super) told: Notify,
}

/// Why a login is over.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Over {
    /// No generation has it any more. It can be resumed.
    Left,
    /// The access that it came by was revoked.
    Gone,
    /// It is to be forgotten.
    Forgotten,
}

#[derive(Default)]
pub(super) struct State {
    /// The generations that have it, and how often each was answered with it.
    holders: BTreeMap<u32, u64>,
    /// When it expires if it is not used, in seconds since 1970.
    pub(super) expires: u64,
    /// Descriptors in frames, and the generation that each frame went to, that no library has answered yet.
    lent: Vec<(u32, Arc<OwnedFd>)>,
    over: Option<Over>,
    /// Whether nobody has its token yet, as far as is known. When no generation has it any more, it is forgotten then.
    unclaimed: bool,
    /// Acknowledgements that wait until the service has processed the end.
    waiting: Vec<Acknowledgement>,
}

impl State {
    /// The state of a login that is about to be sent to this generation.
    pub(super) fn of(generation: u32) -> Self {
        Self { holders: [(generation, 0)].into(), ..Self::default() }
    }
}

impl Lasting {
    pub(super) fn login(&self) -> LoggedIn {
        self.login.clone()
    }

    /// The identity's name, and the number of the credential.
    pub(super) fn key(&self) -> (String, u64) {
        (self.login.identity.clone(), self.login.credential)
    }

    /// Whether it belongs to this slot's service.
    pub(super) fn is_of(&self, slot: SlotNo) -> bool {
        self.slot == slot
    }

    pub(super) fn is_over(&self) -> bool {
        self.over().is_some()
    }

    pub(super) fn over(&self) -> Option<Over> {
        self.state.lock().over
    }

    /// Ends it. `false`: it was already over.
    pub(super) fn end(&self, over: Over, acknowledgement: Option<Acknowledgement>) -> bool {
        let mut state = self.state.lock();
        state.waiting.extend(acknowledgement);
        let first = state.over.is_none();
        state.over = state.over.max(Some(over));
        drop(state);
        self.told.notify_one();
        first
    }

    /// A generation is about to be answered with it. Fails if it is over, with the reason.
    pub(super) fn is_held_by(&self, generation: u32, expires: u64) -> Result<(), Over> {
        let mut state = self.state.lock();
        if let Some(over) = state.over {
            return Err(over);
        }
        *state.holders.entry(generation).or_default() += 1;
        state.expires = expires;
        Ok(())
    }

    /// A generation has released it, or has processed its end. `answers`: how many answers with it the generation has
    /// received.
    pub(super) fn let_go_by(&self, generation: u32, answers: u64) {
        let mut state = self.state.lock();
        let over = state.over.is_some();
        if let Some(left) = state.holders.get_mut(&generation) {
            *left = left.saturating_sub(answers);
            if *left == 0 || over {
                state.holders.remove(&generation);
            }
        }
        drop(state);
        self.told.notify_one();
    }

    /// A generation has ended. If it was abandoned (not `stopped`), it may still read its frames.
    pub(super) fn left_by(&self, generation: u32, stopped: bool) {
        let mut state = self.state.lock();
        state.holders.remove(&generation);
        let unread = state.lent.extract_if(.., |(of, _)| stopped && *of == generation).collect::<Vec<_>>();
        drop(state);
        drop(unread);
        self.told.notify_one();
    }

    /// Ends it if no generation has it any more. It can be resumed. Returns whether it is over.
    pub(super) fn ends_if_left(&self) -> bool {
        let mut state = self.state.lock();
        if state.over.is_none() && state.holders.is_empty() {
            state.over = Some(if state.unclaimed { Over::Forgotten } else { Over::Left });
        }
        state.over.is_some()
    }

    /// Its token is about to be sent to a service, which says when a client has it.
    pub(super) fn is_unclaimed(&self) {
        self.state.lock().unclaimed = true;
    }

    /// A client has its token.
    pub(super) fn is_claimed(&self) {
        self.state.lock().unclaimed = false;
    }

    /// Whether a descriptor in a frame is still unanswered. Its number must not be reused.
    pub(super) fn has_lent(&self) -> bool {
        !self.state.lock().lent.is_empty()
    }

    /// Whether no generation has it any more.
    pub(super) fn is_left(&self) -> bool {
        self.state.lock().holders.is_empty()
    }

    /// Lends a descriptor that a frame is about to name.
    pub(super) fn lend(&self, generation: u32, end: OwnedFd) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = Some(Arc::new(end)).filter(|_| state.over.is_none())?;
        state.lent.push((generation, Arc::clone(&end)));
        Some(end)
    }

    /// A library has duplicated a descriptor.
    pub(super) fn taken(&self, descriptor: u64) {
        let mut state = self.state.lock();
        let at = state.lent.iter().position(|(_, end)| number(end) == descriptor);
        let taken = at.map(|at| state.lent.remove(at));
        drop(state);
        drop(taken);
        // Its end waits for this.
        self.told.notify_one();
    }

    /// A frame was not delivered.
    pub(super) fn takes_back(&self, named: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        let at = state.lent.iter().rposition(|(_, end)| Arc::ptr_eq(end, named));
        let unread = at.map(|at| state.lent.remove(at));
        drop(state);
        drop(unread);
        self.told.notify_one();
    }

    pub(super) fn heard(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        drop(waiting);
    }
}

/// All logins without a stream.
#[derive(Default)]
pub(super) struct Table {
    /// By the identity's name, and the number of the credential.
    pub(super) by_key: HashMap<(String, u64), Arc<Lasting>>,
    /// By the login's number.
    pub(super) by_login: HashMap<u64, Arc<Lasting>>,
    /// By its number as a connection.
    pub(super) by_connection: HashMap<u64, Arc<Lasting>>,
}

impl Table {
    pub(super) fn all(&self) -> impl Iterator<Item = &Arc<Lasting>> {
        self.by_login.values()
    }

    pub(super) fn insert(&mut self, new: &Arc<Lasting>) {
        self.by_key.insert(new.key(), Arc::clone(new));
        self.by_login.insert(new.login.number, Arc::clone(new));
        self.by_connection.insert(u64::from(new.connection), Arc::clone(new));
    }

    /// Its token no longer leads to it.
    pub(super) fn unlist(&mut self, of: &Arc<Lasting>) {
        if self.by_key.get(&of.key()).is_some_and(|listed| Arc::ptr_eq(listed, of)) {
            self.by_key.remove(&of.key());
        }
    }

    pub(super) fn remove(&mut self, of: &Arc<Lasting>) {
        self.unlist(of);
        self.by_login.remove(&of.login.number);
        self.by_connection.remove(&u64::from(of.connection));
    }
}
