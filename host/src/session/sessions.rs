//! Who is logged in, and how they are told that they are not any more.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use crate::cred::Identity;
use crate::multiservice::switchboard::Mailbox;

/// How long connections may take to end what they were told to. They take microseconds.
const PATIENCE: Duration = Duration::from_secs(10);

/// All connections that somebody has logged in by.
#[derive(Debug, Default)]
pub struct Sessions {
    all: Mutex<HashMap<u32, Arc<Session>>>,
}

/// A connection that somebody has logged in by.
#[derive(Debug)]
pub(super) struct Session {
    number: u32,
    peer: String,
    tls: bool,
    since: u64,
    mailbox: Arc<Mailbox>,
    about: Mutex<About>,
    told: AtomicBool,
    notices: Mutex<Vec<(Notice, Heard)>>,
}

#[derive(Debug, Default)]
struct About {
    /// Who has logged in.
    identities: BTreeSet<String>,
    /// What it is attached to, and how often.
    perspectives: BTreeMap<String, usize>,
}

/// Dropped when a connection has done what it was told to.
pub(super) type Heard = Sender<()>;

/// What a connection is told.
#[derive(Debug, Clone)]
pub(super) enum Notice {
    /// An identity is this now, or is no more.
    Changed(String, Option<Arc<Identity>>),
    /// It is to close.
    Cut,
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

impl Session {
    pub(super) fn new(number: u32, peer: &str, tls: bool, since: u64, mailbox: Arc<Mailbox>) -> Arc<Self> {
        Arc::new(Self {
            number,
            peer: peer.to_owned(),
            tls,
            since,
            mailbox,
            about: Mutex::default(),
            told: AtomicBool::new(false),
            notices: Mutex::default(),
        })
    }

    /// What it has been told since it was asked last.
    pub(super) fn notices(&self) -> Vec<(Notice, Heard)> {
        if self.told.swap(false, Ordering::AcqRel) { std::mem::take(&mut *self.notices.lock()) } else { Vec::new() }
    }

    /// Somebody has logged in by it.
    pub(super) fn entered(&self, identity: &str) {
        self.about.lock().identities.insert(identity.to_owned());
    }

    /// An identity has nothing there any more.
    pub(super) fn left(&self, identity: &str) {
        self.about.lock().identities.remove(identity);
    }

    pub(super) fn attached(&self, perspective: String) {
        *self.about.lock().perspectives.entry(perspective).or_default() += 1;
    }

    pub(super) fn detached(&self, perspective: &str) {
        let mut about = self.about.lock();
        if let Some(count) = about.perspectives.get_mut(perspective) {
            *count -= 1;
            if *count == 0 {
                about.perspectives.remove(perspective);
            }
        }
    }

    fn tell(&self, notice: Notice, heard: Heard) {
        self.notices.lock().push((notice, heard));
        self.told.store(true, Ordering::Release);
        self.mailbox.wake();
    }

    fn status(&self) -> SessionStatus {
        let about = self.about.lock();
        SessionStatus {
            session: self.number,
            identities: about.identities.iter().cloned().collect(),
            peer: self.peer.clone(),
            tls: self.tls,
            since: self.since,
            perspectives: about.perspectives.keys().cloned().collect(),
        }
    }
}

impl Sessions {
    /// Nobody is logged in.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    pub(super) fn open(&self, session: &Arc<Session>) {
        self.all.lock().insert(session.number, Arc::clone(session));
    }

    pub(super) fn close(&self, number: u32) {
        self.all.lock().remove(&number);
    }

    /// All of them, in the order of their numbers.
    #[must_use]
    pub fn list(&self) -> Vec<SessionStatus> {
        let mut all: Vec<SessionStatus> = self.all.lock().values().map(|session| session.status()).collect();
        all.sort_by_key(|session| session.session);
        all
    }

    /// An identity is this now, or is no more: whoever is logged in as it keeps only what it still may have. Waits until
    /// that is so. False if it is not so in time: somebody's connection hangs, which is a fault.
    pub fn changed(&self, name: &str, identity: Option<&Arc<Identity>>) -> bool {
        // Who logs in as it just now is listed before it looks whether it still may.
        let has = |session: &&Arc<Session>| session.about.lock().identities.contains(name);
        let all: Vec<Arc<Session>> = self.all.lock().values().filter(has).cloned().collect();
        let (heard, waiting) = channel();
        for session in all {
            session.tell(Notice::Changed(name.to_owned(), identity.cloned()), heard.clone());
        }
        drop(heard);
        all_heard(&waiting)
    }

    /// Closes a connection by its number, or all of an identity's. Answers with those that were closed.
    pub fn cut(&self, number: Option<u32>, identity: Option<&str>) -> Vec<SessionStatus> {
        let wanted = |session: &Arc<Session>| {
            let has = |name: &str| session.about.lock().identities.contains(name);
            number.is_none_or(|number| session.number == number) && identity.is_none_or(has)
        };
        let all: Vec<Arc<Session>> = self.all.lock().values().filter(|session| wanted(session)).cloned().collect();
        let (heard, waiting) = channel();
        let mut cut = Vec::new();
        for session in all {
            cut.push(session.status());
            session.tell(Notice::Cut, heard.clone());
        }
        drop(heard);
        all_heard(&waiting);
        cut
    }
}

fn all_heard(waiting: &Receiver<()>) -> bool {
    // Nothing is ever sent: the last one who drops its end says that all have.
    waiting.recv_timeout(PATIENCE) == Err(std::sync::mpsc::RecvTimeoutError::Disconnected)
}
