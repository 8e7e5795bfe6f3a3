//! Bytes in, bytes out: as much as there is in one read, all answers that are ready in one write. What they mean is the
//! session's to say; this has the socket, the clock and the timers.

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

/// How much is read at once, at least.
const READ: usize = 16 << 10;
/// An output buffer that has become larger than this is given back when it is empty.
const KEEP: usize = 256 << 10;
/// So much mail is served before others have their turn: whole frames, and one at least.
const MAIL: usize = 64 << 10;
/// A connection yields to others after this many reads in a row.
const TURNS: u32 = 8;
/// How long calls wait for room while nothing is answered.
const RESET_WINDOW: std::time::Duration = std::time::Duration::from_millis(20);
/// Nothing has come or gone for so long: what a busy connection keeps ready is given back.
const REST: std::time::Duration = std::time::Duration::from_millis(20);
/// Stands for a deadline where a connection has none.
const FAR_FUTURE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Answers of the store and of password checks, on their way to the session that asked. All are of one thread.
///
/// No channel: one keeps room for 32 and costs 800 bytes, of each connection.
type Answers = Rc<RefCell<Vec<(QuestionNo, Found)>>>;

/// One connection's session, and what does things for it outside.
pub(super) struct Driver {
    /// Boxed: tasks hold what they move more than once.
    pub(super) session: Box<Session>,
    shared: Arc<EndpointState>,
    pub(super) from: Source,
    /// Somebody has logged in from there before.
    pub(super) known: bool,
    /// Whether this thread is a lobby's.
    lobby: bool,
    answers: Answers,
    pub(super) mailbox: Arc<Mailbox>,
    /// How much of the session's output has been sent.
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

    /// One that was served elsewhere.
    pub(super) fn moved(
        (session, from, known): (Box<Session>, Source, bool),
        shared: &Arc<EndpointState>,
        mailbox: Arc<Mailbox>,
        sent: usize,
    ) -> Self {
        let (shared, answers) = (Arc::clone(shared), Answers::default());
        Self { session, shared, from, known, lobby: false, answers, mailbox, sent }
    }

    /// Whether it goes from the lobby to those inside: somebody has logged in, and no answer is on its way here.
    fn moves(&self) -> bool {
        self.lobby
            && self.session.logged_in()
            && Rc::strong_count(&self.answers) == 1
            && self.answers.borrow().is_empty()
    }

    /// It has ended: calls back to this client fail from here on, and what has come for it is given back.
    pub(super) fn close(mut self, number: u32) {
        self.shared.context.router.disconnect(number);
        let mut mail = Vec::new();
        self.mailbox.close(&mut mail);
        self.session.mail(&mail);
        self.session.close();
    }

    /// Whether it waits for its turn: nobody has logged in, or it is in the lobby still.
    fn is_stranger(&self) -> bool {
        self.lobby || !self.session.logged_in()
    }

    /// Waits until it is this connection's turn: at once, once somebody has logged in.
    async fn turn(&self) {
        if self.is_stranger() {
            turns::stranger(self.known).await;
        }
    }

    /// Serves what is there: answers, mail, notices, bytes.
    fn serve(&mut self, mail: &[u8]) -> Result<(), End> {
        for (no, found) in self.answers.take() {
            self.session.found(no, found, now());
            self.perform();
        }
        // Before the mail: what comes of something that was taken away is for nobody.
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

    /// Does what the session wants done outside. Questions are answered beside it.
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
                        // The client may have gone: then nobody looks.
                        answers.borrow_mut().push((no, found));
                        mailbox.wake();
                    });
                }
            }
        }
    }
}

/// Moves bytes until the connection ends: in, through the session, out.
/// In the lobby only until somebody has logged in.
pub(super) async fn run(stream: &mut Stream, driver: &mut Driver, closed: watch::Receiver<bool>) -> End {
    let mailbox = Arc::clone(&driver.mailbox);
    let mailbox = &*mailbox;
    // Small answers must not wait for each other's acknowledgement.
    if let Err(error) = stream.set_nodelay() {
        return error.into();
    }
    if let Err(error) = stream.set_keepalive(&driver.shared.limits()) {
        tracing::debug!(%error, "the system does not look whether a client is still there");
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

/// What a connection was woken for.
enum Wake {
    /// There is something to do.
    Work,
    /// There is nothing to do, and was not for a while.
    Rest,
}

/// One connection's bytes on their way.
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
    /// Serves what is there, writes what is ready, and reads, until there is nothing left to do at once.
    async fn turn(&mut self, mailbox: &Mailbox, mail: &mut Vec<u8>) -> Result<(), End> {
        loop {
            self.look_for_close();
            // Put off by each turn; a timer that is not due is only a number.
            self.timers.rest = Some(Instant::now() + REST);
            let complete = mailbox.take(mail);
            // What it leaves room for is served in the same turn.
            self.driver.session.refuse_due(now());
            let ahead = self.most_of(mailbox, mail).await?;
            let served = self.driver.serve(&mail[ahead..]);
            let mailed = mail.len() - ahead;
            mail.clear();
            mail.shrink_to(if mailed > 0 { KEEP } else { 0 });
            // What was answered before a fault is still sent, as far as it goes: see `say_why`.
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
                // Also one that never lets up.
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
                // What waited for answers to be read can begin.
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

    /// Serves mail, if there is much of it: a part after the other, which leaves, and others of this thread have their turn. Answers
    /// with how much that was; what is left is not much, or one frame.
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
                // Whatever comes with it is given back.
                self.driver.session.mail(&mail[at..]);
                self.meter(mailbox, mail.len() - at);
                return Err(end);
            }
            self.meter(mailbox, 0);
            self.driver.session.submit();
            tokio::task::yield_now().await;
        }
    }

    /// Counts what is kept for this client; so much of its mail has become something else.
    fn meter(&mut self, mailbox: &Mailbox, mailed: usize) {
        self.driver.session.count_held();
        let kept = self.driver.session.kept();
        let unread = self.driver.session.output().len() - self.driver.sent;
        self.driver.mailbox.meter().set(Kept::Input, kept);
        self.driver.mailbox.meter().set(Kept::Output, unread);
        mailbox.served(mailed);
    }

    /// The listener may have closed: that wakes each connection.
    fn look_for_close(&mut self) {
        if self.closed.has_changed().unwrap_or(true) {
            self.timers.close();
        }
    }

    /// How many bytes the client has not read.
    fn unread(&mut self) -> usize {
        self.driver.session.output().len() - self.driver.sent + usize::from(self.stream.wants_write())
    }

    /// Whether the client's calls are read: a client that does not read its answers does not get more of them.
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
            // Half of it at least: each byte is moved once, all in all.
            output.drain(..*sent);
            *sent = 0;
        }
        if *sent < output.len() || self.stream.wants_write() {
            self.timers.leaving.begin(Instant::now());
        }
        Ok(())
    }

    /// Reads once; true: there is something to serve.
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
                // A client that never lets up must not keep the others of this thread waiting, nor its deadlines from being
                // looked at.
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
                // A handshake's next words.
                Ok(unread == 0 && self.stream.wants_write())
            }
            Err(error) => Err(error.into()),
        }
    }

    /// Gives back buffers that are empty: most connections wait, most of the time.
    fn idle(&mut self) {
        let session = &mut self.driver.session;
        if session.input().is_empty() {
            // There may have been a password in it.
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
        // One that is not read is not waited for either: it would be readable for ever.
        let reads = listens && !self.starved;
        let interest = match (reads, unread) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            // One that is closing is still watched for its client's end.
            (_, false) => Interest::READABLE,
        };
        // Calls that wait for room, though nothing comes that would make any: those before them wait for something else.
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
