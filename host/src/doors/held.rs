//! One stream, as the host has it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;
use plugin_api::abi::frame::ToLibrary;
use rustix::net::{RecvFlags, Shutdown};
use tokio::sync::Notify;
use zeroize::Zeroize;

use super::listening::Listening;
use crate::listener::sources::Place;
use crate::multiservice::router::Mailbox;
use crate::multiservice::{SlotNo, Speaker};
use crate::sessions::{Acknowledgement, SessionEntry};

/// How much of what a client has sent is thrown away at its end, in bytes: more than a socket keeps.
const DISCARDED: usize = 64 << 20;

/// Throws away what has come by a socket that is shut: the system would still give it to who reads.
fn discard(end: &OwnedFd) {
    let (mut bytes, mut discarded, mut come) = ([0; 4 << 10], 0, 0);
    // TCP is asked to copy nothing.
    let flags = RecvFlags::DONTWAIT | RecvFlags::TRUNC;
    while let Ok((count, _)) = rustix::net::recv(end, &mut bytes[..], flags) {
        (discarded, come) = (discarded + count, come.max(count));
        if count == 0 || discarded > DISCARDED {
            break;
        }
    }
    let come = come.min(bytes.len());
    bytes[..come].zeroize();
}

/// Who has logged in by a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct LoggedIn {
    pub(super) number: u64,
    pub(super) identity: String,
    pub(super) credential: u64,
    pub(super) perspectives: Vec<String>,
}

/// Which generation asks, to be answered later.
#[derive(Debug, Clone)]
pub(super) struct Asker {
    pub(super) slot: SlotNo,
    pub(super) generation: u32,
    pub(super) service: String,
    pub(super) request: u64,
}

impl Asker {
    pub(super) fn new(from: Speaker<'_>, request: u64) -> Self {
        Self { slot: from.slot, generation: from.generation, service: from.service.to_owned(), request }
    }
}

/// Whose turn it is with a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// Nobody has been told of it.
    Nobody,
    /// It was handed to this slot, whose code has not looked at it yet.
    Offered(SlotNo),
    /// This generation of it serves it.
    Taken(SlotNo, u32),
}

/// A stream.
pub(super) struct Held {
    /// Its number, as a connection.
    pub(super) number: u32,
    pub(super) listening: Arc<Listening>,
    pub(super) source: SocketAddr,
    pub(super) peer: String,
    pub(super) place: Place,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) entry: Arc<SessionEntry>,
    client_tcp: bool,
    state: Mutex<State>,
    /// Told when the service has closed it, or wants TLS.
    pub(super) told: Notify,
}

struct State {
    /// The client's end, while it is not inside of TLS.
    client: Arc<OwnedFd>,
    /// What the service makes its own descriptor of: the same, or the inner end of TLS. None: it needs it no more.
    service: Option<Arc<OwnedFd>>,
    /// Whether that is a socket of TCP's.
    tcp: bool,
    tls: bool,
    asked: String,
    owner: Owner,
    login: Option<LoggedIn>,
    /// How often something about its identity has changed.
    changes: u64,
    carried: Option<Vec<u8>>,
    /// What frames have named that no library has answered yet: nothing else may have these numbers.
    lent: VecDeque<Arc<OwnedFd>>,
    /// Who waits until the service has heard that a login has ended.
    waiting: Vec<Acknowledgement>,
    closing: bool,
    cut: bool,
    ended: bool,
    /// Whether a proof is being looked at.
    asking: bool,
    start_tls: Option<Asker>,
}

impl Held {
    #[expect(clippy::too_many_arguments, reason = "what is known of a connection when it comes")]
    pub(super) fn new(
        number: u32,
        listening: Arc<Listening>,
        source: SocketAddr,
        peer: String,
        place: Place,
        mailbox: Arc<Mailbox>,
        entry: Arc<SessionEntry>,
        (client, tcp): (OwnedFd, bool),
    ) -> Arc<Self> {
        let client = Arc::new(client);
        let state = State {
            service: Some(Arc::clone(&client)),
            client,
            tcp,
            tls: false,
            asked: String::new(),
            owner: Owner::Nobody,
            login: None,
            changes: 0,
            carried: None,
            lent: VecDeque::new(),
            waiting: Vec::new(),
            closing: false,
            cut: false,
            ended: false,
            asking: false,
            start_tls: None,
        };
        let (state, told) = (Mutex::new(state), Notify::new());
        Arc::new(Self { number, listening, source, peer, place, mailbox, entry, client_tcp: tcp, state, told })
    }

    /// The door, as the trail and lists have it.
    pub(super) fn door(&self) -> String {
        format!("{}:{}", self.listening.settings.service, self.listening.settings.name)
    }

    pub(super) fn client(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.state.lock().client)
    }

    /// The host moves its bytes from now on, in TLS or because it watches them: this is the inner end. `asked`: the name that
    /// the client asked for by TLS.
    pub(super) fn relayed(&self, inner: OwnedFd, asked: Option<&str>) {
        let mut state = self.state.lock();
        state.service = Some(Arc::new(inner));
        (state.tcp, state.tls) = (false, asked.is_some());
        asked.unwrap_or_default().clone_into(&mut state.asked);
    }

    /// Whether the client's end is a socket of TCP's.
    pub(super) fn is_tcp(&self) -> bool {
        self.client_tcp
    }

    /// The name that the client asked for by TLS.
    pub(super) fn asked(&self) -> String {
        self.state.lock().asked.clone()
    }

    pub(super) fn is_tls(&self) -> bool {
        self.state.lock().tls
    }

    /// The number of the descriptor that the service is to make its own of: nothing else has it, until the library has said
    /// `Taken`.
    pub(super) fn lend(&self) -> u64 {
        let mut state = self.state.lock();
        let Some(end) = state.service.clone() else { return u64::MAX };
        let number = u64::try_from(end.as_raw_fd()).unwrap_or(u64::MAX);
        state.lent.push_back(end);
        number
    }

    /// Whether a frame that was not answered yet names a descriptor.
    pub(super) fn lends(&self) -> bool {
        !self.state.lock().lent.is_empty()
    }

    /// The frame that tells a generation of it, and the login that it tells of; none: there is nothing to tell of any more.
    pub(super) fn frame(&self) -> Option<(Vec<u8>, Option<u64>)> {
        let mut state = self.state.lock();
        let service = state.service.clone()?;
        state.lent.push_back(Arc::clone(&service));
        let (login, identity, perspectives) = match &state.login {
            Some(login) => {
                (login.number, login.identity.as_str(), jelly::to_vec(&login.perspectives).unwrap_or_default())
            }
            None => (0, "", Vec::new()),
        };
        let mut bytes = Vec::new();
        let frame = ToLibrary::Stream {
            stream: u64::from(self.number),
            listener: &self.listening.settings.name,
            descriptor: u64::try_from(service.as_raw_fd()).unwrap_or(u64::MAX),
            tcp: state.tcp,
            peer: &self.peer,
            tls: state.tls,
            starttls: self.listening.settings.starttls,
            asked: &state.asked,
            state: state.carried.as_deref(),
            login,
            identity,
            perspectives: &perspectives,
        };
        frame.write(&mut bytes);
        Some((bytes, (login != 0).then_some(login)))
    }

    pub(super) fn slot(&self) -> Option<SlotNo> {
        match self.state.lock().owner {
            Owner::Nobody => None,
            Owner::Offered(slot) | Owner::Taken(slot, _) => Some(slot),
        }
    }

    /// It is handed to this slot.
    pub(super) fn offered(&self, slot: SlotNo) {
        self.state.lock().owner = Owner::Offered(slot);
    }

    /// A generation has made a descriptor of its own, and serves it: what the one before had carried is that one's.
    pub(super) fn taken_by(&self, generation: u32) {
        let mut state = self.state.lock();
        let answered = state.lent.pop_front();
        match state.owner {
            // Of TLS that was asked for by code that is replaced by now.
            Owner::Taken(_, by) if by > generation => {}
            Owner::Offered(slot) | Owner::Taken(slot, _) => {
                (state.owner, state.carried) = (Owner::Taken(slot, generation), None);
            }
            Owner::Nobody => {}
        }
        drop(state);
        drop(answered);
        self.told.notify_one();
    }

    /// It is handed on to a generation that has not answered yet.
    pub(super) fn handed_on(&self) {
        let mut state = self.state.lock();
        if let Owner::Taken(slot, _) = state.owner {
            state.owner = Owner::Offered(slot);
        }
    }

    /// The thread of this generation has ended: nobody makes anything of the numbers that frames have told it.
    pub(super) fn unread(&self, generation: u32) {
        let mut state = self.state.lock();
        let others = matches!(state.owner, Owner::Taken(_, by) if by != generation);
        let lent = if others { VecDeque::new() } else { std::mem::take(&mut state.lent) };
        drop(state);
        drop(lent);
        self.told.notify_one();
    }

    /// Whether somebody serves it.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.state.lock().owner, Owner::Taken(..))
    }

    /// Code that served it has made bytes of it.
    pub(super) fn carry(&self, bytes: Vec<u8>) {
        self.state.lock().carried = Some(bytes);
    }

    pub(super) fn is_carried(&self, slot: SlotNo) -> bool {
        self.slot() == Some(slot) && self.state.lock().carried.is_some()
    }

    pub(super) fn stays(&self) {
        self.state.lock().carried = None;
    }

    /// Whether this generation, which has ended, was the one that had it.
    pub(super) fn is_left_by(&self, generation: u32, serving: bool) -> bool {
        let state = self.state.lock();
        match state.owner {
            // Made bytes of, and not handed on: those it was for have ended as well.
            Owner::Taken(_, by) => by == generation && (serving || state.carried.is_none()),
            Owner::Offered(_) => serving && state.carried.is_some(),
            Owner::Nobody => false,
        }
    }

    /// Nobody has looked at it: it is nobody's again. False: somebody has.
    pub(super) fn returns(&self) -> bool {
        let mut state = self.state.lock();
        let offered = matches!(state.owner, Owner::Offered(_)) && !state.closing;
        if offered {
            state.owner = Owner::Nobody;
        }
        offered
    }

    /// A frame was not handed over after all: nobody reads its number.
    pub(super) fn takes_back(&self) {
        let unread = self.state.lock().lent.pop_back();
        drop(unread);
    }

    /// The service is done with it.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.told.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    /// The service's end is closed, as far as the host has it, but for what frames have named.
    pub(super) fn let_go(&self) {
        let let_go = self.state.lock().service.take();
        drop(let_go);
    }

    /// Ends it at once, both ways.
    pub(super) fn cut(&self) {
        let (client, service) = {
            let mut state = self.state.lock();
            state.cut = true;
            (Arc::clone(&state.client), state.service.clone())
        };
        let inner = service.filter(|service| !Arc::ptr_eq(service, &client));
        for end in [Some(client), inner].into_iter().flatten() {
            // It may have gone.
            let _ = rustix::net::shutdown(&*end, Shutdown::Both);
            discard(&end);
        }
    }

    /// Whether it was ended from here.
    pub(super) fn is_cut(&self) -> bool {
        self.state.lock().cut
    }

    /// Whether it is forgotten.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Whoever waits is answered when the service has heard that the login has ended.
    pub(super) fn waits(&self, acknowledgement: Acknowledgement) {
        self.state.lock().waiting.push(acknowledgement);
    }

    /// The service has heard it, or has had its time.
    pub(super) fn heard(&self) {
        let waiting = std::mem::take(&mut self.state.lock().waiting);
        drop(waiting);
    }

    pub(super) fn start_tls(&self, asker: Asker) {
        self.state.lock().start_tls = Some(asker);
        self.told.notify_one();
    }

    pub(super) fn wants_tls(&self) -> Option<Asker> {
        self.state.lock().start_tls.take()
    }

    /// Begins to look at a proof; false: one is being looked at.
    pub(super) fn begins_asking(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().asking, true)
    }

    pub(super) fn ends_asking(&self) {
        self.state.lock().asking = false;
    }

    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// Something about an identity has changed.
    pub(super) fn changed(&self) {
        self.state.lock().changes += 1;
    }

    /// Somebody has logged in, unless something has changed since; the one who had before.
    pub(super) fn log_in(&self, login: LoggedIn, changes: u64) -> Result<Option<LoggedIn>, ()> {
        let mut state = self.state.lock();
        if state.changes != changes {
            return Err(());
        }
        Ok(state.login.replace(login))
    }

    pub(super) fn login(&self) -> Option<LoggedIn> {
        self.state.lock().login.clone()
    }

    /// Nobody is logged in any more, if it was by this login.
    pub(super) fn log_out(&self, login: u64) -> Option<LoggedIn> {
        self.state.lock().login.take_if(|has| has.number == login)
    }

    /// It has ended: who was logged in.
    pub(super) fn end(&self) -> Option<LoggedIn> {
        let mut state = self.state.lock();
        state.service = None;
        (state.closing, state.ended) = (true, true);
        let login = state.login.take();
        let waiting = std::mem::take(&mut state.waiting);
        drop(state);
        drop(waiting);
        self.entry.close();
        let mut last = Vec::new();
        self.mailbox.close(&mut last);
        login
    }
}
