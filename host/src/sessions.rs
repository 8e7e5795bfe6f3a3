//! Who is logged in, and how they are told that they are not any more.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cred::Identity;
use crate::multiservice::router::Mailbox;

/// How long connections may take to end what they were told to. They take microseconds.
const TIMEOUT: Duration = Duration::from_secs(10);

/// How many names of removed identities are kept. Who was being checked while more were removed counts as removed.
const REMOVED: usize = 1024;

/// All connections that somebody has logged in by.
#[derive(Debug, Default)]
pub struct Sessions {
    all: Mutex<HashMap<u32, Arc<SessionEntry>>>,
    removed: Mutex<Removed>,
}

/// Identities that were removed since the host began.
#[derive(Debug, Default)]
struct Removed {
    count: u64,
    /// The last ones, [`REMOVED`] at most.
    names: VecDeque<String>,
}

/// A connection, as the operator sees it once somebody has logged in by it.
#[derive(Debug)]
pub struct SessionEntry {
    number: u32,
    peer: Box<str>,
    tls: AtomicBool,
    /// Since when it is in the list, in seconds since 1970.
    since: u64,
    mailbox: Arc<Mailbox>,
    sessions: Arc<Sessions>,
    /// The connection that this one is a part of: it is what the operator sees.
    of: Option<Arc<SessionEntry>>,
    about: Mutex<About>,
    notified: AtomicBool,
    notices: Mutex<Vec<(Notice, Acknowledgement)>>,
    herald: OnceLock<Weak<dyn Herald>>,
}

#[derive(Debug, Default)]
struct About {
    /// Who has logged in, sorted: one, nearly always.
    identities: Vec<Box<str>>,
    /// What it is attached to, sorted, and how often.
    perspectives: Vec<(Box<str>, usize)>,
}

impl About {
    /// Where a perspective is, or else would be.
    fn place(&self, perspective: &str) -> Result<usize, usize> {
        self.perspectives.binary_search_by(|(known, _)| (**known).cmp(perspective))
    }
}

/// Dropped when a connection has done what a notice asks for.
pub type Acknowledgement = Sender<()>;

/// What a connection is told.
#[derive(Debug, Clone)]
pub enum Notice {
    /// An identity is this now, or is no more.
    Changed(String, Option<Arc<Identity>>),
    /// Its listener gives something else beside keys.
    Rules,
    /// It is to close.
    Cut,
}

/// Hears what a connection is told, before any connection has its turn: what can be taken away at once is gone, however much
/// all of them have to do then.
pub trait Herald: Send + Sync {
    /// It is told this.
    fn hears(&self, notice: &Notice);
}

/// A session, for the operator to see.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct SessionStatus {
    /// Its number.
    pub session: u32,
    /// Who has logged in.
    pub identities: Vec<String>,
    /// Where the client is.
    pub peer: String,
    /// Whether it speaks TLS.
    pub tls: bool,
    /// Since when, in seconds since 1970.
    pub since: u64,
    /// What it is attached to.
    pub perspectives: Vec<String>,
}

impl SessionEntry {
    /// A connection that nobody has logged in by yet. `since` is in seconds since 1970; its mailbox wakes it.
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

    /// A connection within the host, of whoever has logged in by another one: the operator sees that, with all that this one is
    /// attached to.
    #[must_use]
    pub fn within(sessions: &Arc<Sessions>, number: u32, of: Arc<Self>, mailbox: Arc<Mailbox>) -> Arc<Self> {
        let (peer, tls, since) = (of.peer.clone(), AtomicBool::new(of.tls.load(Ordering::Relaxed)), of.since);
        let (sessions, of) = (Arc::clone(sessions), Some(of));
        let (about, notified, notices) = (Mutex::default(), AtomicBool::new(false), Mutex::default());
        let herald = OnceLock::new();
        Arc::new(Self { number, peer, tls, since, mailbox, sessions, of, about, notified, notices, herald })
    }

    /// This one hears of notices first. Once at most.
    pub fn heralded_to(&self, herald: Weak<dyn Herald>) {
        let set = self.herald.set(herald);
        debug_assert!(set.is_ok(), "there is one already");
    }

    /// Where the client is, for a person to read.
    #[must_use]
    pub fn peer(&self) -> &str {
        &self.peer
    }

    /// It speaks TLS from now on.
    pub fn speaks_tls(&self) {
        self.tls.store(true, Ordering::Relaxed);
    }

    /// What it was told since it was asked last.
    pub fn notices(&self) -> Vec<(Notice, Acknowledgement)> {
        if self.notified.swap(false, Ordering::AcqRel) { std::mem::take(&mut *self.notices.lock()) } else { Vec::new() }
    }

    /// Somebody has proven who they are: from now on it hears of what changes about them.
    pub fn enter(self: &Arc<Self>, identity: &str) {
        let mut about = self.about.lock();
        // Who has no name is counted among its source.
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

    /// How many identities were removed so far.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.sessions.removals()
    }

    /// Its number, as the operator sees it.
    #[must_use]
    pub fn number(&self) -> u32 {
        self.of.as_ref().map_or(self.number, |of| of.number)
    }

    /// Whether an identity of this name was removed after so many had been.
    #[must_use]
    pub fn removed_since(&self, removals: u64, name: &str) -> bool {
        let removed = self.sessions.removed.lock();
        let since = usize::try_from(removed.count - removals).unwrap_or(usize::MAX);
        since > removed.names.len() || removed.names.iter().rev().take(since).any(|removed| removed == name)
    }

    /// An identity has nothing there any more. The operator sees no connection that nobody is logged in by.
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

    /// It is attached to a perspective.
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

    /// It is not attached to it any more.
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

    /// It has ended.
    pub fn close(&self) {
        self.sessions.all.lock().remove(&self.number);
    }

    /// What it is told is there when it looks; it is not woken yet.
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
    /// Nobody is logged in.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// How many identities were removed so far.
    #[must_use]
    pub fn removals(&self) -> u64 {
        self.removed.lock().count
    }

    /// All of them, in the order of their numbers.
    #[must_use]
    pub fn list(&self) -> Vec<SessionStatus> {
        let shown = |session: &&Arc<SessionEntry>| session.of.is_none();
        let mut all: Vec<SessionStatus> =
            self.all.lock().values().filter(shown).map(|session| session.status()).collect();
        all.sort_by_key(|session| session.session);
        all
    }

    /// An identity is this now, or is no more: whoever is logged in as it keeps only what it still may have. Waits until
    /// that is so. False if it is not so in time: somebody's connection hangs, which is a fault.
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

    /// Listeners give something else beside keys: whoever has not logged in keeps only what is still given. As
    /// [`Sessions::changed`].
    pub fn rules_changed(&self) -> bool {
        self.tell("", &Notice::Rules)
    }

    /// Tells those that have somebody of this name, and waits until they have done what follows.
    fn tell(&self, name: &str, notice: &Notice) -> bool {
        // Who logs in as it just now is listed before it looks whether it still may.
        let has = |session: &&Arc<SessionEntry>| session.about.lock().identities.iter().any(|known| **known == *name);
        let all: Vec<Arc<SessionEntry>> = self.all.lock().values().filter(has).cloned().collect();
        all_acknowledged(&notify(all, notice))
    }

    /// Closes a connection by its number, or all of an identity's. Answers with those that were closed.
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

/// Tells these connections something. What comes back ends when all have done what follows.
fn notify(all: Vec<Arc<SessionEntry>>, notice: &Notice) -> Receiver<()> {
    let (acknowledgement, waiting) = channel();
    // First it is where they look before they send anything, then what can be ended from here is, and only then they are
    // woken: thousands have much to do when something ends.
    for session in &all {
        session.notify(notice.clone(), acknowledgement.clone());
    }
    for herald in all.iter().filter_map(|session| session.herald.get()?.upgrade()) {
        herald.hears(notice);
    }
    // Given up with that: one that has ended without looking has nothing more to do, and who waits is not to wait for it.
    all.into_iter().for_each(|session| session.mailbox.wake());
    waiting
}

fn all_acknowledged(waiting: &Receiver<()>) -> bool {
    // Nothing is ever sent: the last one who drops its end says that all have.
    waiting.recv_timeout(TIMEOUT) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
}
