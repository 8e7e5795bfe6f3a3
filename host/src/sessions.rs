//! The sessions that are logged in, and how they are notified of revocations.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cred::Identity;
use crate::multiservice::router::Mailbox;

/// How long connections may take to act on a notice. They take microseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The number of stored names of removed identities. If more were removed during a login, its identity counts as
/// removed.
const REMOVED: usize = 1024;

/// All connections with a login.
#[derive(Debug, Default)]
pub struct Sessions {
    all: Mutex<HashMap<u32, Arc<SessionEntry>>>,
    removed: Mutex<Removed>,
}

/// Identities that were removed since the host started.
#[derive(Debug, Default)]
struct Removed {
    count: u64,
    /// The latest names, at most [`REMOVED`].
    names: VecDeque<String>,
}

/// A connection with a login, as the operator sees it.
#[derive(Debug)]
pub struct SessionEntry {
    number: u32,
    peer: Box<str>,
    tls: AtomicBool,
    /// When it was opened, in seconds since 1970.
    since: u64,
    mailbox: Arc<Mailbox>,
    sessions: Arc<Sessions>,
    /// The connection that this one belongs to, which the operator sees instead.
    of: Option<Arc<SessionEntry>>,
    about: Mutex<About>,
    notified: AtomicBool,
    notices: Mutex<Vec<(Notice, Acknowledgement)>>,
    herald: OnceLock<Weak<dyn Herald>>,
}

#[derive(Debug, Default)]
struct About {
    /// The identities that have logged in, sorted. Nearly always one.
    identities: Vec<Box<str>>,
    /// The attached perspectives, sorted, with the number of attachments.
    perspectives: Vec<(Box<str>, usize)>,
}

impl About {
    /// The index of a perspective, or where to insert it.
    fn place(&self, perspective: &str) -> Result<usize, usize> {
        self.perspectives.binary_search_by(|(known, _)| (**known).cmp(perspective))
    }
}

/// Dropped when a connection has acted on a notice.
pub type Acknowledgement = Sender<()>;

/// A notice to a connection.
#[derive(Debug, Clone)]
pub enum Notice {
    /// An identity has changed to this, or was removed.
    Changed(String, Option<Arc<Identity>>),
    /// The rules of its listener have changed.
    Rules,
    /// It must close.
    Cut,
}

/// Receives a connection's notices before any connection acts on them. It revokes immediately what it can, however much
/// work all the connections have afterwards.
pub trait Herald: Send + Sync {
    /// Called with each notice.
    fn hears(&self, notice: &Notice);
}

/// A session, as the operator sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number.
    pub session: u32,
    /// The identities that have logged in.
    pub identities: Vec<String>,
    /// The client's address.
    pub peer: String,
    /// Whether it uses TLS.
    pub tls: bool,
    /// When it was opened, in seconds since 1970.
    pub since: u64,
    /// The attached perspectives.
    pub perspectives: Vec<String>,
}

impl SessionEntry {
    /// Creates the entry of a connection without a login. `since` is in seconds since 1970. The mailbox wakes the
    /// connection.
    #[must_use]
    pub fn new(
        sessions: &Arc<Sessions>,
        number: u32,
        peer: &str,
        tls: bool,
        since: u64,
        mailbox: Arc<Mailbox>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            peer: peer.into(),
            tls: AtomicBool::new(tls),
            since,
            mailbox,
            sessions: Arc::clone(sessions),
            of: None,
            about: Mutex::default(),
            notified: AtomicBool::new(false),
            notices: Mutex::default(),
            herald: OnceLock::new(),
        })
    }

    /// Creates the entry of a connection within the host, on behalf of a login by another connection. The operator sees
    /// that one, with everything that this one is attached to.
    #[must_use]
    pub fn within(sessions: &Arc<Sessions>, number: u32, of: Arc<Self>, mailbox: Arc<Mailbox>) -> Arc<Self> {
        let (peer, tls, since) = (of.peer.clone(), AtomicBool::new(of.tls.load(Ordering::Relaxed)), of.since);
        let (sessions, of) = (Arc::clone(sessions), Some(of));
        let (about, notified, notices) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        let herald = OnceLock::new();
        Arc::new(Self { number, peer, tls, since, mailbox, sessions, of, about, notified, notices, herald })
    }

    /// Sets the herald, which receives notices first. Call it at most once.
    pub fn heralded_to(&self, herald: Weak<dyn Herald>) {
        let set = self.herald.set(herald);
        debug_assert!(set.is_ok(), "there is one already");
    }

    /// The client's address, for people.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// Records that it uses TLS now.
    pub fn speaks_tls(&self) {
        self.tls.store(true, Ordering::Relaxed);
    }

    /// Takes the notices since the last call.
    pub fn notices(&self) -> Vec<(Notice, Acknowledgement)> {
        if self.notified.swap(false, Ordering::AcqRel) { std::mem::take(&mut *self.notices.lock()) } else { Vec::new() }
    }

    /// Records a successful login. From now on, the connection is notified of changes to this identity.
    pub fn enter(self: &Arc<Self>, identity: &str) {
        let mut about = self.about.lock();
        // A login without a name is counted for its source.
        if !identity.is_empty() && about.identities.iter().all(|known| known.is_empty()) {
            self.mailbox.meter().log_in(identity);
        }
        if let Err(at) = about.identities.binary_search_by(|known| (**known).cmp(identity)) {
            about.identities.reserve_exact(1);
            about.identities.insert(at, identity.into());
        }
        drop(about);
        self.sessions.all.lock().entry(self.number).or_insert_with(|| Arc::clone(self));
    }

    /// The number of identities that were removed so far.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.sessions.removals()
    }

    /// Its number, as the operator sees it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.of.as_ref().map_or(self.number, |of| of.number)
    }

    /// Whether an identity of this name was removed after the first `removals` ones.
    #[must_use]
    pub fn removed_since(&self, removals: u64, name: &str) -> bool {
        let removed = self.sessions.removed.lock();
        let since = usize::try_from(removed.count - removals).unwrap_or(usize::MAX);
        since > removed.names.len() || removed.names.iter().rev().take(since).any(|removed| removed == name)
    }

    /// Records that an identity has nothing at this connection any more. Without identities, the operator does not see
    /// the connection.
    pub fn left(&self, identity: &str) {
        let nobody = {
            let mut about = self.about.lock();
            about.identities.retain(|known| **known != *identity);
            about.identities.is_empty()
        };
        if nobody {
            self.close();
        }
    }

    /// Records an attachment to a perspective.
    pub fn attached(&self, perspective: &str) {
        if let Some(of) = &self.of {
            return of.attached(perspective);
        }
        let mut about = self.about.lock();
        match about.place(perspective) {
            Ok(at) => about.perspectives[at].1 += 1,
            Err(at) => {
                about.perspectives.reserve_exact(1);
                about.perspectives.insert(at, (perspective.into(), 1));
            }
        }
    }

    /// Records the end of an attachment.
    pub fn detached(&self, perspective: &str) {
        if let Some(of) = &self.of {
            return of.detached(perspective);
        }
        let mut about = self.about.lock();
        if let Ok(at) = about.place(perspective) {
            about.perspectives[at].1 -= 1;
            if about.perspectives[at].1 == 0 {
                about.perspectives.remove(at);
            }
        }
    }

    /// Removes the connection, which has ended.
    pub fn close(&self) {
        self.sessions.all.lock().remove(&self.number);
    }

    /// Stores a notice, without waking the connection.
    fn notify(&self, notice: Notice, acknowledgement: Acknowledgement) {
        self.notices.lock().push((notice, acknowledgement));
        self.notified.store(true, Ordering::Release);
    }

    fn status(&self) -> SessionStatus {
        let about = self.about.lock();
        SessionStatus {
            session: self.number,
            identities: about.identities.iter().filter(|name| !name.is_empty()).map(|name| name.to_string()).collect(),
            peer: self.peer.to_string(),
            tls: self.tls.load(Ordering::Relaxed),
            since: self.since,
            perspectives: about.perspectives.iter().map(|(name, _)| name.to_string()).collect(),
        }
    }
}

impl Sessions {
    /// Creates an empty list.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// The number of identities that were removed so far.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.removed.lock().count
    }

    /// All sessions, sorted by number.
    #[must_use]
    pub fn list(&self) -> Vec<SessionStatus> {
        let shown = |session: &&Arc<SessionEntry>| session.of.is_none();
        let mut all: Vec<SessionStatus> =
            self.all.lock().values().filter(shown).map(|session| session.status()).collect();
        all.sort_by_key(|session| session.session);
        all
    }

    /// Announces that an identity has changed to this, or was removed: its sessions keep only what it may still have.
    /// Waits until that is so. Returns false if it is not so in time: a connection hangs, which is a fault.
    pub fn changed(&self, name: &str, identity: Option<&Arc<Identity>>) -> bool {
        if identity.is_none() {
            let mut removed = self.removed.lock();
            removed.count += 1;
            removed.names.push_back(name.to_owned());
            if removed.names.len() > REMOVED {
                removed.names.pop_front();
            }
        }
        self.tell(name, &Notice::Changed(name.to_owned(), identity.cloned()))
    }

    /// Announces that the rules of listeners have changed: clients without a login keep only what is still granted.
    /// Returns as [`Sessions::changed`].
    pub fn rules_changed(&self) -> bool {
        self.tell("", &Notice::Rules)
    }

    /// Notifies the sessions of this identity, and waits until they have acted on it.
    fn tell(&self, name: &str, notice: &Notice) -> bool {
        // A concurrent login is listed before it checks whether it is still allowed.
        let has = |session: &&Arc<SessionEntry>| session.about.lock().identities.iter().any(|known| **known == *name);
        let all: Vec<Arc<SessionEntry>> = self.all.lock().values().filter(has).cloned().collect();
        all_acknowledged(&notify(all, notice))
    }

    /// Closes a connection by its number, or all connections of an identity. Returns those that were closed.
    pub fn cut(&self, number: Option<u32>, identity: Option<&str>) -> Vec<SessionStatus> {
        let wanted = |session: &Arc<SessionEntry>| {
            let has = |name: &str| session.about.lock().identities.iter().any(|known| **known == *name);
            let own = session.of.as_ref().map_or(session.number, |of| of.number);
            number.is_none_or(|number| number == own) && identity.is_none_or(has)
        };
        let all: Vec<Arc<SessionEntry>> = self.all.lock().values().filter(|session| wanted(session)).cloned().collect();
        let cut = all.iter().filter(|session| session.of.is_none()).map(|session| session.status()).collect();
        all_acknowledged(&notify(all, &Notice::Cut));
        cut
    }
}

/// Sends a notice to these connections. The receiver is disconnected when all have acted on it.
fn notify(all: Vec<Arc<SessionEntry>>, notice: &Notice) -> Receiver<()> {
    let (acknowledgement, waiting) = channel();
    // First the notice is in place, where each connection looks before it sends anything. Then heralds revoke what they
    // can. Only then are the connections woken, since thousands of them may have much work.
    for session in &all {
        session.notify(notice.clone(), acknowledgement.clone());
    }
    for herald in all.iter().filter_map(|session| session.herald.get()?.upgrade()) {
        herald.hears(notice);
    }
    // This also drops the entries: a connection that has ended without looking has nothing left to do, and must not be
    // waited for.
    all.into_iter().for_each(|session| session.mailbox.wake());
    waiting
}

fn all_acknowledged(waiting: &Receiver<()>) -> bool {
    // Nothing is ever sent. When the last sender is dropped, all connections have acted on the notice.
    waiting.recv_timeout(TIMEOUT) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
}
