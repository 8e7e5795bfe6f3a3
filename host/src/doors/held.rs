//! One stream, as the host has it.

use std::collections::VecDeque;
use std::net::SocketAddr;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;

use parking_lot::Mutex;
use plugin_api::abi::frame::ToLibrary;
use rustix::net::Shutdown;
use tokio::sync::Notify;
use tokio::time::Instant;

use super::ends::{discard, number};
use super::listening::Listening;
use super::words::{Asker, LoggedIn};
use crate::cred::ClientCertificate;
use crate::cred::login::KeyChallenge;
use crate::listener::sources::Place;
use crate::memory::{FLOOR, Kept};
use crate::multiservice::SlotNo;
use crate::multiservice::router::Mailbox;
use crate::session::Limits;
use crate::sessions::{Acknowledgement, SessionEntry};

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

/// What the client said in its TLS handshake.
#[derive(Debug, Clone, Default)]
pub(super) struct Greeted {
    /// The host name that it asked for (SNI), or empty.
    pub(super) asked: String,
    pub(super) certificate: Option<Arc<ClientCertificate>>,
    /// The protocol that was agreed on (ALPN), or empty.
    pub(super) protocol: Vec<u8>,
}

impl Greeted {
    /// The public key of the client's certificate in OpenSSH's format, for frames. Empty without a certificate.
    pub(super) fn shown(&self) -> Vec<u8> {
        self.certificate.as_ref().map_or_else(Vec::new, |certificate| certificate.key.line().into_bytes())
    }
}

/// A descriptor that a frame has named.
struct Lent {
    end: Arc<OwnedFd>,
    /// Whether it is the stream itself; if not, it is a way to what its login has keys for.
    stream: bool,
}

/// What code has made of a stream, for the code that comes next.
struct Carried {
    /// Which replacement it is for; 0: code that is replaced already has said it.
    replacement: u64,
    bytes: Vec<u8>,
}

/// What comes of offering a stream.
pub(super) enum Offer {
    /// It is offered: this frame tells of it, which names this descriptor, and of this login.
    Frame(Vec<u8>, Arc<OwnedFd>, Option<u64>),
    /// It is offered, or served, already.
    Already,
    /// There is nothing to serve any more.
    Gone,
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
    /// How many bytes have gone to the client, where the host moves them.
    pub(super) said: Arc<AtomicUsize>,
    /// Notified when the service has closed it, or wants TLS.
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
    greeted: Greeted,
    owner: Owner,
    login: Option<LoggedIn>,
    /// How often something about its identity has changed.
    changes: u64,
    carried: Option<Carried>,
    /// Since when nobody serves it.
    untaken: Instant,
    /// What the service keeps for it, in bytes.
    buffered: usize,
    /// What frames have named that no library has answered yet: nothing else may have these numbers.
    lent: VecDeque<Lent>,
    /// What the client was given to sign.
    challenge: Option<KeyChallenge>,
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
            greeted: Greeted::default(),
            owner: Owner::Nobody,
            login: None,
            changes: 0,
            carried: None,
            untaken: Instant::now(),
            buffered: 0,
            lent: VecDeque::new(),
            challenge: None,
            waiting: Vec::new(),
            closing: false,
            cut: false,
            ended: false,
            asking: false,
            start_tls: None,
        };
        let (state, said, told) = (Mutex::new(state), Arc::default(), Notify::new());
        Arc::new(Self { number, listening, source, peer, place, mailbox, entry, client_tcp: tcp, state, said, told })
    }

    /// The door, as the trail and lists have it.
    pub(super) fn door(&self) -> String {
        format!("{}:{}", self.listening.settings.service, self.listening.settings.name)
    }

    pub(super) fn client(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.state.lock().client)
    }

    /// The host moves its bytes from now on, in TLS or because it watches them: this is the inner end. `greeted`: what the client
    /// has said by TLS.
    pub(super) fn relayed(&self, inner: OwnedFd, greeted: Option<Greeted>) {
        let mut state = self.state.lock();
        state.service = Some(Arc::new(inner));
        (state.tcp, state.tls) = (false, greeted.is_some());
        state.greeted = greeted.unwrap_or_default();
    }

    /// The client's certificate; TLS has checked that it has the private key.
    pub(super) fn certificate(&self) -> Option<Arc<ClientCertificate>> {
        self.state.lock().greeted.certificate.clone()
    }

    /// Whether the client's end is a socket of TCP's.
    pub(super) fn is_tcp(&self) -> bool {
        self.client_tcp
    }

    /// Whether it is a proxy's, which the operator believes when it says whose requests it passes on.
    pub(super) fn is_proxy(&self) -> bool {
        self.listening.settings.is_proxy(self.client_tcp.then(|| self.source.ip()))
    }

    /// What the client said in its TLS handshake.
    pub(super) fn greeted(&self) -> Greeted {
        self.state.lock().greeted.clone()
    }

    pub(super) fn is_tls(&self) -> bool {
        self.state.lock().tls
    }

    /// The descriptor that the service is to make its own of: nothing else has its number, until the library has said `Taken`.
    pub(super) fn lend(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = state.service.clone().filter(|_| !state.ended)?;
        state.lent.push_back(Lent { end: Arc::clone(&end), stream: true });
        Some(end)
    }

    /// The same, of a way to what its login has keys for.
    pub(super) fn lend_way(&self, end: OwnedFd) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = Some(Arc::new(end)).filter(|_| !state.ended)?;
        state.lent.push_back(Lent { end: Arc::clone(&end), stream: false });
        Some(end)
    }

    /// It ends, if no frame names a descriptor that was not answered yet: none will from now on.
    pub(super) fn ends(&self) -> bool {
        let mut state = self.state.lock();
        state.ended |= state.lent.is_empty();
        state.ended
    }

    /// Offers it to this slot: it is nobody's, or what it served has carried it.
    pub(super) fn offer(&self, slot: SlotNo, limits: &Limits) -> Offer {
        let mut state = self.state.lock();
        match state.owner {
            Owner::Nobody => {}
            Owner::Taken(..) if state.carried.is_some() => {}
            Owner::Offered(_) | Owner::Taken(..) => return Offer::Already,
        }
        let whole = !(state.ended || state.cut || state.closing);
        let Some(service) = state.service.clone().filter(|_| whole) else { return Offer::Gone };
        (state.owner, state.untaken) = (Owner::Offered(slot), Instant::now());
        // The generation that takes it reports again what it keeps.
        self.listening.has_less(std::mem::take(&mut state.buffered));
        self.mailbox.meter().set(Kept::Output, 0);
        state.lent.push_back(Lent { end: Arc::clone(&service), stream: true });
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
            descriptor: number(&service),
            tcp: state.tcp,
            peer: &self.peer,
            tls: state.tls,
            starttls: self.listening.settings.starttls,
            asked: &state.greeted.asked,
            // One that nothing was done with is as it was.
            state: state.carried.as_ref().map(|carried| carried.bytes.as_slice()).filter(|bytes| !bytes.is_empty()),
            login,
            identity,
            perspectives: &perspectives,
            forwarded: self.is_proxy(),
            certificate: &state.greeted.shown(),
            protocol: &state.greeted.protocol,
            rates: &self.listening.settings.rates(limits).to_bytes(),
        };
        frame.write(&mut bytes);
        Offer::Frame(bytes, service, (login != 0).then_some(login))
    }

    pub(super) fn slot(&self) -> Option<SlotNo> {
        match self.state.lock().owner {
            Owner::Nobody => None,
            Owner::Offered(slot) | Owner::Taken(slot, _) => Some(slot),
        }
    }

    /// A generation has made a descriptor of its own, and serves it: what the one before had carried is that one's.
    pub(super) fn taken_by(&self, generation: u32, descriptor: u64) {
        let mut state = self.state.lock();
        let at = state.lent.iter().position(|lent| number(&lent.end) == descriptor);
        let answered = at.and_then(|at| state.lent.remove(at));
        match state.owner {
            _ if answered.as_ref().is_none_or(|lent| !lent.stream) => {}
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

    /// Since when nobody serves it; none: somebody does.
    pub(super) fn untaken(&self) -> Option<Instant> {
        let state = self.state.lock();
        (!matches!(state.owner, Owner::Taken(..))).then_some(state.untaken)
    }

    /// The thread of this generation has ended: nobody makes anything of the numbers that frames have told it. `serving`: it was
    /// the one that served.
    pub(super) fn unread(&self, generation: u32, serving: bool) {
        let mut state = self.state.lock();
        let own = match state.owner {
            Owner::Taken(_, by) => by == generation,
            Owner::Offered(_) => serving,
            Owner::Nobody => false,
        };
        let lent = if own { std::mem::take(&mut state.lent) } else { VecDeque::new() };
        drop(state);
        drop(lent);
        self.told.notify_one();
    }

    /// Whether somebody serves it.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.state.lock().owner, Owner::Taken(..))
    }

    /// The generation that serves it has made bytes of it, for this replacement.
    pub(super) fn carry(&self, generation: u32, replacement: u64, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        if matches!(state.owner, Owner::Taken(_, by) if by == generation) {
            state.carried = Some(Carried { replacement, bytes });
        }
    }

    /// Whether it was carried for this replacement, and is not on its way yet.
    pub(super) fn is_carried(&self, slot: SlotNo, replacement: u64) -> bool {
        let state = self.state.lock();
        matches!(state.owner, Owner::Taken(of, _) if of == slot)
            && state.carried.as_ref().is_some_and(|carried| carried.replacement == replacement)
    }

    /// Nothing has come of a replacement: what was carried stays where it is.
    pub(super) fn stays(&self) {
        let mut state = self.state.lock();
        if matches!(state.owner, Owner::Taken(..)) {
            state.carried = None;
        }
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

    /// Whether another generation of this slot than this one serves it.
    pub(super) fn is_with_another(&self, slot: SlotNo, generation: u32) -> bool {
        matches!(self.state.lock().owner, Owner::Taken(of, by) if of == slot && by != generation)
    }

    /// Nobody has looked at it: it is nobody's again. False: somebody has.
    pub(super) fn returns(&self) -> bool {
        let mut state = self.state.lock();
        let offered = matches!(state.owner, Owner::Offered(_)) && !state.closing;
        if offered {
            (state.owner, state.untaken) = (Owner::Nobody, Instant::now());
        }
        offered
    }

    /// A frame was not handed over after all: nobody reads the number in it.
    pub(super) fn takes_back(&self, named: &Arc<OwnedFd>) {
        let mut state = self.state.lock();
        let at = state.lent.iter().rposition(|lent| Arc::ptr_eq(&lent.end, named));
        let unread = at.and_then(|at| state.lent.remove(at));
        drop(state);
        drop(unread);
    }

    /// Records how many bytes the serving generation keeps for this stream. `false`: that exceeds the share of its identity or source,
    /// or the limit of its listener.
    pub(super) fn buffered(&self, generation: u32, bytes: usize) -> bool {
        let mut state = self.state.lock();
        let serves = matches!(state.owner, Owner::Taken(_, by) if by == generation);
        if !serves || state.closing || state.cut {
            return true;
        }
        let meter = self.mailbox.meter();
        let more = bytes.saturating_sub(state.buffered);
        // A little everybody has, whatever others of this listener use.
        let little = bytes <= FLOOR;
        let admits = more == 0 || meter.admits(more) && self.listening.buffers(more, little);
        // One that is let go takes no more from those who stay.
        let less = if admits { state.buffered.saturating_sub(bytes) } else { state.buffered };
        self.listening.has_less(less);
        state.buffered = if admits { bytes } else { 0 };
        meter.set(Kept::Output, state.buffered);
        admits
    }

    /// This generation is done with it, if it is the one that serves it.
    pub(super) fn close_by(&self, generation: u32) {
        if matches!(self.state.lock().owner, Owner::Taken(_, by) if by == generation) {
            self.close();
        }
    }

    /// Whether this generation is the one that has to hear of its end.
    pub(super) fn is_heard_by(&self, generation: u32) -> bool {
        match self.state.lock().owner {
            Owner::Taken(_, by) => by == generation,
            Owner::Offered(_) | Owner::Nobody => true,
        }
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

    /// Its client has gone, or was silent for too long: what it has sent is still the service's to read.
    pub(super) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&*self.client(), Shutdown::Both);
    }

    /// Ends it at once, both ways: also what is still on its way.
    pub(super) fn cut(&self) {
        let (client, service) = {
            let mut state = self.state.lock();
            state.cut = true;
            // What is kept for it is as good as gone.
            self.listening.has_less(std::mem::take(&mut state.buffered));
            self.mailbox.meter().set(Kept::Output, 0);
            (Arc::clone(&state.client), state.service.clone())
        };
        let inner = service.filter(|service| !Arc::ptr_eq(service, &client));
        for end in [Some(client), inner].into_iter().flatten() {
            // TCP forgets what it has yet to send, and what nobody has read; others have nothing to send.
            if rustix::net::connect_unspec(&*end).is_err() {
                // It may have gone.
                let _ = rustix::net::shutdown(&*end, Shutdown::Both);
            }
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

    /// What the client is to sign from now on.
    pub(super) fn challenges(&self, challenge: KeyChallenge) {
        self.state.lock().challenge = Some(challenge);
    }

    /// What it was given to sign: once.
    pub(super) fn challenged(&self) -> Option<KeyChallenge> {
        self.state.lock().challenge.take()
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
        self.listening.has_less(std::mem::take(&mut state.buffered));
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
