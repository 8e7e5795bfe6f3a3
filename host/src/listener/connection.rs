//! Moves bytes: as much as there is in one read, all answers that are ready in one write. The session interprets them;
//! this module has the socket, the clock and the timers.

use std::cell::RefCell;
use std::io;
use std::rc::Rc;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};
use zeroize::Zeroize;

use super::end::End;
use super::stream::Stream;
use super::timers::Timers;
use super::{Admitted, EndpointState, turns};
use crate::login_gate::Source;
use crate::memory::Kept;
use crate::multiservice::Backends;
use crate::multiservice::router::{Mailbox, first_frames};
use crate::session::login::{Found, Now, Policy, QuestionNo};
use crate::session::{Demand, Session, SessionContext};
use crate::store;

/// The least number of bytes to read at once.
const READ: usize = 16 << 10;
/// An output buffer that has grown beyond this is shrunk when it is empty.
const KEEP: usize = 256 << 10;
/// The bytes of mail that are served before other connections have their turn. Whole frames, and at least one.
const MAIL: usize = 64 << 10;
/// A connection yields to others after this many reads in a row.
const TURNS: u32 = 8;
/// How long calls wait for room while no call is answered.
const RESET_WINDOW: std::time::Duration = std::time::Duration::from_millis(20);
/// The time without traffic after which a connection's spare buffers are freed.
const REST: std::time::Duration = std::time::Duration::from_millis(20);
/// Stands for a deadline where a connection has none.
const FAR_FUTURE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Answers of the store and of password checks, on their way to the session that asked. All on one thread.
///
/// Not a channel: a channel allocates room for 32 and costs 800 bytes per connection.
type Answers = Rc<RefCell<Vec<(QuestionNo, Found)>>>;

/// One connection's session, and what it needs to carry out its demands.
pub(super) struct Driver {
    /// Boxed, because tasks hold more than one copy of what they move.
    pub(super) session: Box<Session>,
    shared: Arc<EndpointState>,
    pub(super) from: Source,
    /// Whether somebody has logged in from this source before.
    pub(super) known: bool,
    /// Whether this is a lobby's thread.
    lobby: bool,
    answers: Answers,
    pub(super) mailbox: Arc<Mailbox>,
    /// The number of bytes of the session's output that have been sent.
    pub(super) sent: usize,
}

fn now() -> Now {
    Now { instant: std::time::Instant::now(), unix: store::now() }
}

impl Driver {
    pub(super) fn new(
        shared: &Arc<EndpointState>,
        admitted: &Admitted,
        (number, lobby): (u32, bool),
        mailbox: &Arc<Mailbox>,
    ) -> Result<Self, End> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(End::NoRandomness)?;
        let (address, tls) = (admitted.source, admitted.tls.is_some());
        let peer = admitted.peer();
        let (rules, limits) = (shared.gate.rules(), shared.limits());
        let policy = Policy {
            stock: rules.stock,
            private: tls || rules.loopback_is_private && address.ip().to_canonical().is_loopback(),
            limits: Arc::clone(&limits),
            within: admitted.within.as_ref().map(|within| Box::new(within.proven.clone())),
        };
        let entry = admitted.listed(number, mailbox);
        let backends = Arc::clone(&shared.services) as Arc<dyn Backends>;
        let (meter, rules) = (Arc::clone(mailbox.meter()), Arc::clone(&shared.rules));
        let context = SessionContext { number, backends, entry, meter, rules };
        let session = Box::new(Session::new(context, limits, policy, seed));
        let door = admitted.within.as_ref().map(|within| Arc::clone(&within.door));
        let (from, mailbox) = (Source { address, peer, door }, Arc::clone(mailbox));
        let (shared, known, answers) = (Arc::clone(shared), admitted.is_known(), Answers::default());
        Ok(Self { session, shared, from, known, lobby, answers, mailbox, sent: 0 })
    }

    /// Continues a connection that another thread has served.
    pub(super) fn moved(
        (session, from, known): (Box<Session>, Source, bool),
        shared: &Arc<EndpointState>,
        mailbox: Arc<Mailbox>,
        sent: usize,
    ) -> Self {
        let (shared, answers) = (Arc::clone(shared), Answers::default());
        Self { session, shared, from, known, lobby: false, answers, mailbox, sent }
    }

    /// Whether it moves from the lobby to the other threads: somebody has logged in, and no answer is on its way here.
    fn moves(&self) -> bool {
        self.lobby
            && self.session.logged_in()
            && Rc::strong_count(&self.answers) == 1
            && self.answers.borrow().is_empty()
    }

    /// The connection has ended: from now on calls of this client's objects fail, and the session returns what is in
    /// its mail.
    pub(super) fn close(mut self, number: u32) {
        self.shared.context.router.disconnect(number);
        let mut mail = Vec::new();
        self.mailbox.close(&mut mail);
        self.session.mail(&mail);
        self.session.close();
    }

    /// Whether it must wait for its turn: nobody has logged in, or it is still in the lobby.
    fn is_stranger(&self) -> bool {
        self.lobby || !self.session.logged_in()
    }

    /// Waits for this connection's turn. Returns at once if somebody has logged in.
    async fn turn(&self) {
        if self.is_stranger() {
            turns::stranger(self.known).await;
        }
    }

    /// Serves everything that is there: answers, mail, notices, bytes.
    fn serve(&mut self, mail: &[u8]) -> Result<(), End> {
        for (no, found) in self.answers.take() {
            self.session.found(no, found, now());
            self.perform();
        }
        // Before the mail, so that nothing is delivered by access that was revoked.
        let cut = self.session.notices();
        self.session.mail(mail);
        if cut {
            return Err(End::Cut);
        }
        self.session.serve(now())?;
        self.perform();
        self.session.submit();
        Ok(())
    }

    /// Carries out the session's demands. Questions are answered in tasks of their own.
    fn perform(&mut self) {
        for demand in self.session.demands() {
            match demand {
                Demand::Note(refused) => self.shared.gate.note_refused(&self.from, &refused),
                Demand::Ask(no, question) => {
                    let (shared, from) = (Arc::clone(&self.shared), self.from.clone());
                    let (answers, mailbox) = (Rc::clone(&self.answers), Arc::clone(&self.mailbox));
                    let (stranger, known) = (self.is_stranger(), self.known);
                    tokio::task::spawn_local(async move {
                        if stranger {
                            turns::stranger(known).await;
                        }
                        let found = shared.gate.answer(&shared.login, &from, question).await;
                        // The client may have gone. Then nobody reads this.
                        answers.borrow_mut().push((no, found));
                        mailbox.wake();
                    });
                }
            }
        }
    }
}

/// Moves bytes through the session until the connection ends. In the lobby, only until somebody has logged in.
pub(super) async fn run(stream: &mut Stream, driver: &mut Driver, closed: watch::Receiver<bool>) -> End {
    let mailbox = Arc::clone(&driver.mailbox);
    let mailbox = &*mailbox;
    // Small answers must not wait for the acknowledgement of earlier ones.
    if let Err(error) = stream.set_nodelay() {
        return error.into();
    }
    if let Err(error) = stream.set_keepalive(&driver.shared.limits()) {
        tracing::debug!(%error, "TCP keepalive cannot be set for a client");
    }
    let timers = Timers::new(driver.shared.limits());
    let mut pump = Pump { stream, driver, closed, timers, readable: true, writable: true, reads: 0, starved: false };
    let mut mail = Vec::new();
    loop {
        pump.driver.turn().await;
        if let Err(end) = pump.turn(mailbox, &mut mail).await {
            return end;
        }
        if pump.driver.moves() {
            return End::Inside;
        }
        loop {
            match pump.wait(mailbox).await {
                Err(end) => return end,
                Ok(Wake::Work) => break,
                Ok(Wake::Rest) => pump.driver.session.rest(),
            }
        }
    }
}

/// Why a connection woke up.
enum Wake {
    /// There is something to do.
    Work,
    /// There has been nothing to do for a while.
    Rest,
}

/// Moves one connection's bytes.
struct Pump<'c> {
    stream: &'c mut Stream,
    driver: &'c mut Driver,
    closed: watch::Receiver<bool>,
    timers: Timers,
    readable: bool,
    writable: bool,
    reads: u32,
    /// Reading is paused: the client's account has used up its share of the memory budget.
    starved: bool,
}

impl Pump<'_> {
    /// Serves, writes and reads, until there is nothing left to do at once.
    async fn turn(&mut self, mailbox: &Mailbox, mail: &mut Vec<u8>) -> Result<(), End> {
        loop {
            self.look_for_close();
            // Postponed in each turn. That costs nothing: the timer is only a number.
            self.timers.rest = Some(Instant::now() + REST);
            let complete = mailbox.take(mail);
            // Refusals that are sent make room for messages, which are served in the same turn.
            self.driver.session.refuse_due(now());
            let ahead = self.most_of(mailbox, mail).await?;
            let served = self.driver.serve(&mail[ahead..]);
            let mailed = mail.len() - ahead;
            mail.clear();
            mail.shrink_to(if mailed > 0 { KEEP } else { 0 });
            // What was answered before a violation is still sent, as far as possible: see `say_why`.
            self.meter(mailbox, mailed);
            served?;
            if !complete {
                return Err(End::Backlog);
            }
            self.timers.logged_in(self.driver.session.logged_in());
            self.timers.refusal = self.driver.session.refuse_due(now()).map(Instant::from_std);
            self.write()?;
            self.meter(mailbox, 0);
            if self.driver.moves() {
                // Also if the client never stops sending.
                return Ok(());
            }
            let (messages, unserved) = self.driver.session.received();
            self.timers.receiving(messages, unserved);
            let unread = self.unread();
            if unread > self.timers.backlog() {
                return Err(End::Backlog);
            }
            let session = &mut self.driver.session;
            if unread == 0 && session.any_parked() {
                // Calls that waited for answers to be read can begin.
                session.unpark();
                session.submit();
            }
            if self.timers.closing.is_some() && unread == 0 && session.is_idle() {
                return Err(End::Closing);
            }
            if !(self.listens() && self.readable && self.read(unread).await?) {
                return Ok(());
            }
        }
    }

    /// Serves large mail in parts. After each part, the output is written and other connections of this thread have
    /// their turn. Returns how much was served; the rest is small, or one frame.
    async fn most_of(&mut self, mailbox: &Mailbox, mail: &[u8]) -> Result<usize, End> {
        let mut at = 0;
        loop {
            let part = first_frames(&mail[at..], MAIL);
            if part > MAIL {
                let (mut upto, frame) = (MAIL, &mail[at..at + part]);
                while self.driver.session.look_ahead(frame, upto) {
                    upto += MAIL;
                    tokio::task::yield_now().await;
                }
            }
            if at + part == mail.len() {
                return Ok(at);
            }
            let ended = self.driver.session.notices().then_some(End::Cut);
            self.driver.session.mail(&mail[at..at + part]);
            at += part;
            self.meter(mailbox, part);
            let ended = ended.or_else(|| self.write().err());
            if let Some(end) = ended {
                // The session returns what is in the rest.
                self.driver.session.mail(&mail[at..]);
                self.meter(mailbox, mail.len() - at);
                return Err(end);
            }
            self.meter(mailbox, 0);
            self.driver.session.submit();
            tokio::task::yield_now().await;
        }
    }

    /// Updates the meter. `mailed` bytes of mail have been served.
    fn meter(&mut self, mailbox: &Mailbox, mailed: usize) {
        self.driver.session.count_held();
        let kept = self.driver.session.kept();
        let unread = self.driver.session.output().len() - self.driver.sent;
        self.driver.mailbox.meter().set(Kept::Input, kept);
        self.driver.mailbox.meter().set(Kept::Output, unread);
        mailbox.served(mailed);
    }

    /// Checks whether the listener is closing. That wakes every connection.
    fn look_for_close(&mut self) {
        if self.closed.has_changed().unwrap_or(true) {
            self.timers.close();
        }
    }

    /// The number of bytes that the client has not read.
    fn unread(&mut self) -> usize {
        self.driver.session.output().len() - self.driver.sent + usize::from(self.stream.wants_write())
    }

    /// Whether the client's calls are read. A client that does not read its answers must not get more of them.
    fn listens(&mut self) -> bool {
        let unread = self.unread();
        let session = &self.driver.session;
        unread <= session.limits().unread && self.timers.closing.is_none() && !session.is_waiting()
    }

    /// Writes as much as the socket takes.
    fn write(&mut self) -> Result<(), End> {
        let Driver { session, sent, .. } = &mut *self.driver;
        let output = session.output();
        while self.writable && *sent < output.len() {
            match self.stream.try_write(&output[*sent..]) {
                Ok(0) => return Err(End::Closed),
                Ok(count) => {
                    *sent += count;
                    self.timers.leaving.moved(count, Instant::now());
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error.into()),
            }
        }
        if self.writable && self.stream.wants_write() {
            match self.stream.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.writable = false,
                Err(error) => return Err(error.into()),
                Ok(()) => {}
            }
        }
        if *sent == output.len() {
            output.clear();
            output.shrink_to(KEEP);
            *sent = 0;
            if !self.stream.wants_write() {
                self.timers.leaving.rest();
            }
        } else if *sent > KEEP.max(output.len() / 2) {
            // At least half, so that in total each byte is moved at most once.
            output.drain(..*sent);
            *sent = 0;
        }
        if *sent < output.len() || self.stream.wants_write() {
            self.timers.leaving.begin(Instant::now());
        }
        Ok(())
    }

    /// Reads once. `true`: there is something to serve.
    async fn read(&mut self, unread: usize) -> Result<bool, End> {
        self.starved = !self.driver.mailbox.meter().admits(READ);
        if self.starved {
            return Ok(false);
        }
        let buffer = self.driver.session.input();
        if buffer.capacity() - buffer.len() < READ / 4 {
            buffer.reserve(READ);
        }
        match self.stream.try_read_buf(buffer) {
            Ok(0) => Err(End::Closed),
            Ok(_) => {
                // A client that never stops sending must not delay the other connections of this thread, or the check
                // of its own deadlines.
                self.reads = self.reads.wrapping_add(1);
                let inside = !self.driver.is_stranger();
                if !inside || self.reads.is_multiple_of(TURNS) {
                    match inside {
                        true => tokio::task::yield_now().await,
                        false => self.driver.turn().await,
                    }
                    self.timers.overdue(unread > 0)?;
                    self.look_for_close();
                }
                Ok(true)
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                self.readable = false;
                // TLS may have to write its next handshake messages.
                Ok(unread == 0 && self.stream.wants_write())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Frees empty buffers: most connections are idle most of the time.
    fn idle(&mut self) {
        let session = &mut self.driver.session;
        if session.input().is_empty() {
            // It may have contained a password.
            session.input().zeroize();
            *session.input() = Vec::new();
        }
        if session.output().is_empty() {
            *session.output() = Vec::new();
        }
        self.driver.mailbox.meter().set(Kept::Input, self.driver.session.kept());
    }

    /// Waits until there is something to do.
    async fn wait(&mut self, mailbox: &Mailbox) -> Result<Wake, End> {
        let (listens, unread) = (self.listens(), self.unread() > 0);
        if !listens {
            self.timers.not_listening();
        }
        // A socket that is not read is not polled for reading: it would stay readable.
        let reads = listens && !self.starved;
        let interest = match (reads, unread) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            // While closing, the end of the client's stream is still of interest.
            (_, false) => Interest::READABLE,
        };
        // Parked calls may wait although nothing is due that makes room: the calls before them may wait for something
        // else.
        let parked = !unread && self.driver.session.any_parked();
        let reset = (parked || self.starved).then(|| Instant::now() + RESET_WINDOW);
        self.idle();
        let deadline = self.timers.next(unread, reset);
        tokio::select! {
            () = mailbox.come() => {}
            ready = self.stream.ready(interest), if reads || unread => {
                let ready = ready?;
                self.readable |= ready.is_readable() || ready.is_read_closed();
                self.writable |= ready.is_writable() || ready.is_write_closed();
            }
            () = sleep_until(deadline.unwrap_or_else(|| Instant::now() + FAR_FUTURE)), if deadline.is_some() => {
                self.timers.overdue(unread)?;
                self.starved = false;
                if self.timers.rest.take_if(|by| Instant::now() >= *by).is_some() {
                    return Ok(Wake::Rest);
                }
                if parked {
                    self.driver.session.reset_window();
                    self.driver.session.submit();
                }
            }
        }
        Ok(Wake::Work)
    }
}
