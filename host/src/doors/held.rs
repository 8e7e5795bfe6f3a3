//! One stream, from the host's side.

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

/// Who has the stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Owner {
    /// No service has been told about it.
    Nobody,
    /// It was offered to this slot, whose code has not taken it yet.
    Offered(SlotNo),
    /// This generation of the slot serves it.
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
    /// Whether it is the stream itself. If not, it is a connection to other services for its login.
    stream: bool,
}

/// A stream's state, serialized by one generation for the next.
struct Carried {
    /// The replacement that it is for. 0: a generation that was already replaced has carried it.
    replacement: u64,
    bytes: Vec<u8>,
}

/// The result of offering a stream.
pub(super) enum Offer {
    /// It is offered: the frame, the descriptor that the frame names, and the login in it.
    Frame(Vec<u8>, Arc<OwnedFd>, Option<u64>),
    /// It was already offered, or is served.
    Already,
    /// There is nothing left to serve.
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
    /// How many bytes the client has been sent, if the host moves them.
    pub(super) said: Arc<AtomicUsize>,
    /// Notified when there is something to look at, for example when the service has closed it or asks for TLS.
    pub(super) told: Notify,
}

struct State {
    /// The client's socket.
    client: Arc<OwnedFd>,
    /// The end that the service duplicates: the client's socket, or the inner end of a relay. `None`: the service no
    /// longer needs it.
    service: Option<Arc<OwnedFd>>,
    /// Whether that is a TCP socket.
    tcp: bool,
    tls: bool,
    greeted: Greeted,
    owner: Owner,
    login: Option<LoggedIn>,
    /// How often the host was notified of a change of an identity.
    changes: u64,
    carried: Option<Carried>,
    /// Since when no generation serves it.
    untaken: Instant,
    /// What the service keeps for it, in bytes, as it reports.
    buffered: usize,
    /// Descriptors that frames have named and that no library has answered yet. Their numbers must not be reused.
    lent: VecDeque<Lent>,
    /// The challenge that the client was given to sign.
    challenge: Option<KeyChallenge>,
    /// Acknowledgements that wait until the service has processed the end of a login.
    waiting: Vec<Acknowledgement>,
    closing: bool,
    cut: bool,
    ended: bool,
    /// Whether a proof is being checked.
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

    /// The name of the door, for the trail and for lists.
    pub(super) fn door(&self) -> String {
        format!("{}:{}", self.listening.settings.service, self.listening.settings.name)
    }

    pub(super) fn client(&self) -> Arc<OwnedFd> {
        Arc::clone(&self.state.lock().client)
    }

    /// From now on the host moves the bytes, for TLS or to watch for silence. `inner` is the service's end. `greeted`:
    /// what the client said in its TLS handshake.
    pub(super) fn relayed(&self, inner: OwnedFd, greeted: Option<Greeted>) {
        let mut state = self.state.lock();
        state.service = Some(Arc::new(inner));
        (state.tcp, state.tls) = (false, greeted.is_some());
        state.greeted = greeted.unwrap_or_default();
    }

    /// The client's certificate. TLS has verified that the client has the private key.
    pub(super) fn certificate(&self) -> Option<Arc<ClientCertificate>> {
        self.state.lock().greeted.certificate.clone()
    }

    /// Whether the client's end is a TCP socket.
    pub(super) fn is_tcp(&self) -> bool {
        self.client_tcp
    }

    /// Whether it comes from a proxy that the operator trusts to name the source of each request.
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

    /// Lends the descriptor that the service duplicates. Its number is not reused until the library has said `Taken`.
    pub(super) fn lend(&self) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = state.service.clone().filter(|_| !state.ended)?;
        state.lent.push_back(Lent { end: Arc::clone(&end), stream: true });
        Some(end)
    }

    /// As [`lend`](Self::lend), for a connection to other services.
    pub(super) fn lend_way(&self, end: OwnedFd) -> Option<Arc<OwnedFd>> {
        let mut state = self.state.lock();
        let end = Some(Arc::new(end)).filter(|_| !state.ended)?;
        state.lent.push_back(Lent { end: Arc::clone(&end), stream: false });
        Some(end)
    }

    /// Ends the stream, unless a descriptor in a frame is still unanswered. After that, none is lent any more.
    pub(super) fn ends(&self) -> bool {
        let mut state = self.state.lock();
        state.ended |= state.lent.is_empty();
        state.ended
    }

    /// Offers the stream to this slot, if it has no owner or its generation has carried it.
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
        // The generation that takes it reports its memory use again.
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
            // A stream with an empty state is offered as a new one.
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

    /// A generation has duplicated the descriptor and serves the stream. What the previous generation carried is now
    /// its own.
    pub(super) fn taken_by(&self, generation: u32, descriptor: u64) {
        let mut state = self.state.lock();
        let at = state.lent.iter().position(|lent| number(&lent.end) == descriptor);
        let answered = at.and_then(|at| state.lent.remove(at));
        match state.owner {
            _ if answered.as_ref().is_none_or(|lent| !lent.stream) => {}
            // The answer belongs to TLS that an older generation asked for.
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

    /// Since when no generation serves it. `None`: one does.
    pub(super) fn untaken(&self) -> Option<Instant> {
        let state = self.state.lock();
        (!matches!(state.owner, Owner::Taken(..))).then_some(state.untaken)
    }

    /// The thread of this generation has ended: it will not use the descriptor numbers in its frames. `serving`:
    /// whether it was the serving generation.
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

    /// Whether a generation serves it.
    pub(super) fn is_taken(&self) -> bool {
        matches!(self.state.lock().owner, Owner::Taken(..))
    }

    /// The serving generation has serialized the stream for this replacement.
    pub(super) fn carry(&self, generation: u32, replacement: u64, bytes: Vec<u8>) {
        let mut state = self.state.lock();
        if matches!(state.owner, Owner::Taken(_, by) if by == generation) {
            state.carried = Some(Carried { replacement, bytes });
        }
    }

    /// Whether it was carried for this replacement, and not offered yet.
    pub(super) fn is_carried(&self, slot: SlotNo, replacement: u64) -> bool {
        let state = self.state.lock();
        matches!(state.owner, Owner::Taken(of, _) if of == slot)
            && state.carried.as_ref().is_some_and(|carried| carried.replacement == replacement)
    }

    /// The replacement has failed: what was carried stays with its generation.
    pub(super) fn stays(&self) {
        let mut state = self.state.lock();
        if matches!(state.owner, Owner::Taken(..)) {
            state.carried = None;
        }
    }

    /// Whether this generation, which has ended, was the one that had the stream.
    pub(super) fn is_left_by(&self, generation: u32, serving: bool) -> bool {
        let state = self.state.lock();
        match state.owner {
            // If it was carried and not handed on, the generation that it was for has ended, too.
            Owner::Taken(_, by) => by == generation && (serving || state.carried.is_none()),
            Owner::Offered(_) => serving && state.carried.is_some(),
            Owner::Nobody => false,
        }
    }

    /// Whether another generation of this slot serves it.
    pub(super) fn is_with_another(&self, slot: SlotNo, generation: u32) -> bool {
        matches!(self.state.lock().owner, Owner::Taken(of, by) if of == slot && by != generation)
    }

    /// Withdraws an offer that no generation has taken. `false`: there was none.
    pub(super) fn returns(&self) -> bool {
        let mut state = self.state.lock();
        let offered = matches!(state.owner, Owner::Offered(_)) && !state.closing;
        if offered {
            (state.owner, state.untaken) = (Owner::Nobody, Instant::now());
        }
        offered
    }

    /// A frame was not delivered: nobody reads the descriptor number in it.
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
        // Everybody may have a little, whatever other clients of this listener use.
        let little = bytes <= FLOOR;
        let admits = more == 0 || meter.admits(more) && self.listening.buffers(more, little);
        // A stream that is refused more must not take memory from the others.
        let less = if admits { state.buffered.saturating_sub(bytes) } else { state.buffered };
        self.listening.has_less(less);
        state.buffered = if admits { bytes } else { 0 };
        meter.set(Kept::Output, state.buffered);
        admits
    }

    /// This generation has finished with the stream, if it is the one that serves it.
    pub(super) fn close_by(&self, generation: u32) {
        if matches!(self.state.lock().owner, Owner::Taken(_, by) if by == generation) {
            self.close();
        }
    }

    /// Whether this generation is the one that must process the end.
    pub(super) fn is_heard_by(&self, generation: u32) -> bool {
        match self.state.lock().owner {
            Owner::Taken(_, by) => by == generation,
            Owner::Offered(_) | Owner::Nobody => true,
        }
    }

    /// The service has finished with the stream.
    pub(super) fn close(&self) {
        self.state.lock().closing = true;
        self.told.notify_one();
    }

    pub(super) fn is_closing(&self) -> bool {
        self.state.lock().closing
    }

    /// Drops the host's copy of the service's end. Descriptors that frames have named stay open.
    pub(super) fn let_go(&self) {
        let let_go = self.state.lock().service.take();
        drop(let_go);
    }

    /// The client has gone, or was silent for too long. The service can still read what the client has sent.
    pub(super) fn hang_up(&self) {
        let _ = rustix::net::shutdown(&*self.client(), Shutdown::Both);
    }

    /// Cuts the stream at once in both directions. Bytes on their way are discarded.
    pub(super) fn cut(&self) {
        let (client, service) = {
            let mut state = self.state.lock();
            state.cut = true;
            // The memory kept for it is about to be freed.
            self.listening.has_less(std::mem::take(&mut state.buffered));
            self.mailbox.meter().set(Kept::Output, 0);
            (Arc::clone(&state.client), state.service.clone())
        };
        let inner = service.filter(|service| !Arc::ptr_eq(service, &client));
        for end in [Some(client), inner].into_iter().flatten() {
            // Disconnecting makes TCP discard unsent and unread bytes. Other sockets have nothing unsent.
            if rustix::net::connect_unspec(&*end).is_err() {
                // The peer may have gone.
                let _ = rustix::net::shutdown(&*end, Shutdown::Both);
            }
            discard(&end);
        }
    }

    /// Whether the host has cut it.
    pub(super) fn is_cut(&self) -> bool {
        self.state.lock().cut
    }

    /// Whether it has ended.
    pub(super) fn has_ended(&self) -> bool {
        self.state.lock().ended
    }

    /// Adds an acknowledgement that waits until the service has processed the end of the login.
    pub(super) fn waits(&self, acknowledgement: Acknowledgement) {
        self.state.lock().waiting.push(acknowledgement);
    }

    /// The service has processed the end of the login, or its time is up.
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

    /// Begins to check a proof. `false`: another one is being checked.
    pub(super) fn begins_asking(&self) -> bool {
        !std::mem::replace(&mut self.state.lock().asking, true)
    }

    pub(super) fn ends_asking(&self) {
        self.state.lock().asking = false;
    }

    /// Stores the challenge that the client is to sign.
    pub(super) fn challenges(&self, challenge: KeyChallenge) {
        self.state.lock().challenge = Some(challenge);
    }

    /// Takes the challenge. Each can be used once.
    pub(super) fn challenged(&self) -> Option<KeyChallenge> {
        self.state.lock().challenge.take()
    }

    pub(super) fn changes(&self) -> u64 {
        self.state.lock().changes
    }

    /// The host was notified of a change of an identity.
    pub(super) fn changed(&self) {
        self.state.lock().changes += 1;
    }

    /// Stores a login and returns the previous one. Fails if the host was notified of a change since `changes` was
    /// read.
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

    /// Ends this login, if it is the current one.
    pub(super) fn log_out(&self, login: u64) -> Option<LoggedIn> {
        self.state.lock().login.take_if(|has| has.number == login)
    }

    /// Ends the stream. Returns the login that it had.
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
