//! Bytes in, bytes out: as much as there is in one read, all answers that are ready in one write. What they mean is the
//! session's to say; this has the socket, the clock and the timers.

use std::io;
use std::net::TcpStream as Socket;
use std::sync::Arc;

use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::time::{Instant, sleep_until};

use super::stream::Stream;
use super::tls::Certificates;
use super::{Admitted, EndpointState};
use crate::login_gate::Source;
use crate::multiservice::Backends;
use crate::multiservice::router::Mailbox;
use crate::session::login::{Found, Now, Policy, QuestionNo};
use crate::session::{Demand, Session, SessionContext, Violation};
use crate::sessions::SessionEntry;
use crate::store;

/// How much is read at once, at least.
const READ: usize = 16 << 10;
/// An output buffer that has become larger than this is given back when it is empty.
const KEEP: usize = 256 << 10;
/// Answers beyond this are not kept for a client, however it reads: it is let go.
const BACKLOG: usize = 64 << 20;
/// After so many reads in a row others get their turn.
const TURNS: u32 = 8;
/// How long calls wait for room while nothing is answered.
const RESET_WINDOW: std::time::Duration = std::time::Duration::from_millis(20);
/// The deadline where there is none.
const FAR_FUTURE: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client has closed it")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Violation(#[from] Violation),
    #[error("the host has no randomness: {0}")]
    NoRandomness(getrandom::Error),
    #[error("login timed out")]
    NoLogin,
    #[error("the client reads nothing")]
    Stalled,
    #[error("output buffer limit exceeded: the client does not read its answers")]
    Backlog,
    #[error("the operator has cut it")]
    Cut,
    #[error("the host closes")]
    Closing,
}

/// Answers of the store and of password checks, on their way to the session that asked.
type Answers = mpsc::UnboundedReceiver<(QuestionNo, Found)>;

/// One connection's session, and what does things for it outside.
struct Driver {
    session: Session,
    shared: Arc<EndpointState>,
    from: Source,
    answers: Answers,
    answer: mpsc::UnboundedSender<(QuestionNo, Found)>,
}

fn now() -> Now {
    Now { instant: std::time::Instant::now(), unix: store::now() }
}

impl Driver {
    fn new(shared: &Arc<EndpointState>, admitted: &Admitted, number: u32, mailbox: &Arc<Mailbox>) -> Result<Self, End> {
        let mut seed = [0; 32];
        getrandom::fill(&mut seed).map_err(End::NoRandomness)?;
        let (address, tls) = (admitted.source, admitted.tls.is_some());
        let peer = address.to_string();
        let rules = shared.gate.rules();
        let policy = Policy {
            stock: rules.stock,
            private: tls || rules.loopback_is_private && address.ip().to_canonical().is_loopback(),
            refusal: shared.limits.refusal,
        };
        let mailbox = Arc::clone(mailbox);
        let entry = SessionEntry::new(&shared.sessions, number, &peer, tls, store::now(), mailbox);
        let backends = Arc::clone(&shared.services) as Arc<dyn Backends>;
        let context = SessionContext { number, peer: peer.clone(), backends, entry };
        let session = Session::new(context, shared.limits, policy, seed);
        let (answer, answers) = mpsc::unbounded_channel();
        Ok(Self { session, shared: Arc::clone(shared), from: Source { address, peer }, answers, answer })
    }

    /// Serves what is there: bytes, mail, notices.
    fn serve(&mut self, mail: &[u8]) -> Result<(), End> {
        self.session.mail(mail);
        if self.session.notices() {
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
                    let (shared, from, answer) = (Arc::clone(&self.shared), self.from.clone(), self.answer.clone());
                    tokio::task::spawn_local(async move {
                        let found = shared.gate.answer(&shared.login, &from, question).await;
                        // The client may have gone.
                        let _ = answer.send((no, found));
                    });
                }
            }
        }
    }
}

/// Serves one connection to its end.
pub(super) async fn serve(
    shared: Arc<EndpointState>,
    socket: Socket,
    admitted: Admitted,
    closed: watch::Receiver<bool>,
) {
    let peer = admitted.source;
    let end = match open(socket, admitted.tls.as_deref()) {
        Ok(mut stream) => {
            let (number, mailbox) = shared.context.router.connect();
            let end = match Driver::new(&shared, &admitted, number, &mailbox) {
                Err(end) => end,
                Ok(mut driver) => {
                    let end = Box::pin(run(&mut stream, &mut driver, &mailbox, closed)).await;
                    stream.close();
                    // From here on calls back to this client fail at once.
                    shared.context.router.disconnect(number);
                    let mut mail = Vec::new();
                    mailbox.close(&mut mail);
                    driver.session.mail(&mail);
                    driver.session.close();
                    end
                }
            };
            shared.context.router.disconnect(number);
            end
        }
        Err(error) => End::Io(error),
    };
    match end {
        End::Closed | End::Closing => tracing::debug!(%peer, "{end}"),
        end => tracing::info!(%peer, "connection closed: {end}"),
    }
}

fn open(socket: Socket, tls: Option<&Certificates>) -> io::Result<Stream> {
    let socket = TcpStream::from_std(socket)?;
    match tls {
        Some(certificates) => Ok(Stream::tls(socket, certificates.accept().map_err(io::Error::other)?)),
        None => Ok(Stream::Plain(socket)),
    }
}

async fn run(stream: &mut Stream, driver: &mut Driver, mailbox: &Mailbox, mut closed: watch::Receiver<bool>) -> End {
    // Small answers must not wait for each other's acknowledgement.
    if let Err(error) = stream.set_nodelay() {
        return error.into();
    }
    let limits = driver.shared.limits;
    let mut mail = Vec::new();
    let mut sent = 0;
    let mut readable = true;
    let mut writable = true;
    let mut login_by = Some(Instant::now() + limits.login);
    let mut moved = Instant::now();
    let mut closing: Option<Instant> = None;
    let mut turns = 0u32;
    loop {
        let all = mailbox.take(&mut mail);
        if !all {
            return End::Backlog;
        }
        if let Err(end) = driver.serve(&mail) {
            // What was answered before the fault is still sent, as far as it goes.
            let _ = stream.try_write(&driver.session.output()[sent..]);
            return end;
        }
        mail.shrink_to(KEEP);
        let session = &mut driver.session;
        login_by = match login_by {
            _ if session.logged_in() => None,
            // Whoever was sent away has as long as one who comes.
            None => Some(Instant::now() + limits.login),
            by => by,
        };
        let refusal = session.refuse_due(now()).map(Instant::from_std);

        while writable && sent < session.output().len() {
            match stream.try_write(&session.output()[sent..]) {
                Ok(0) => return End::Closed,
                Ok(count) => {
                    sent += count;
                    moved = Instant::now();
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable = false,
                Err(error) => return error.into(),
            }
        }
        if writable && stream.wants_write() {
            match stream.flush() {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => writable = false,
                Err(error) => return error.into(),
                Ok(()) => moved = Instant::now(),
            }
        }
        let output = session.output();
        if sent == output.len() {
            output.clear();
            output.shrink_to(KEEP);
            sent = 0;
            if !stream.wants_write() {
                moved = Instant::now();
            }
        } else if sent > KEEP {
            output.drain(..sent);
            sent = 0;
        }
        let unread = output.len() - sent + usize::from(stream.wants_write());
        if unread > BACKLOG {
            return End::Backlog;
        }
        if unread == 0 && session.any_parked() {
            // What waited for answers to be read can begin.
            session.unpark();
            session.submit();
        }

        if closing.is_some() && unread == 0 && session.is_idle() {
            return End::Closing;
        }
        // A client that does not read its answers does not get more of them.
        let listens = unread <= session.limits().unread && closing.is_none() && !session.is_waiting();
        if listens && readable {
            let buffer = session.input();
            if buffer.capacity() - buffer.len() < READ / 4 {
                buffer.reserve(READ);
            }
            match stream.try_read_buf(buffer) {
                Ok(0) => return End::Closed,
                Ok(_) => {
                    // A client that never lets up must not keep the others of this thread waiting, nor its deadlines
                    // from being looked at.
                    turns += 1;
                    if turns.is_multiple_of(TURNS) {
                        tokio::task::yield_now().await;
                        if let Some(end) = overdue(login_by, closing, unread > 0, moved, limits.stalled) {
                            return end;
                        }
                        if *closed.borrow() && closing.is_none() {
                            closing = Some(Instant::now() + limits.grace);
                        }
                    }
                    continue;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    readable = false;
                    if unread == 0 && stream.wants_write() {
                        // A handshake's next words.
                        continue;
                    }
                }
                Err(error) => return error.into(),
            }
        }

        let interest = match (listens, unread > 0) {
            (true, true) => Interest::READABLE | Interest::WRITABLE,
            (false, true) => Interest::WRITABLE,
            // One that is closing is still watched for its client's end.
            (_, false) => Interest::READABLE,
        };
        // Calls that wait for room, though nothing comes that would make any: those before them wait for something
        // else.
        let reset = (unread == 0 && session.any_parked()).then(|| Instant::now() + RESET_WINDOW);
        let deadline = [login_by, closing, reset, refusal, (unread > 0).then(|| moved + limits.stalled)]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            biased;
            () = mailbox.come() => {}
            Some((no, found)) = driver.answers.recv() => {
                driver.session.found(no, found, now());
                driver.perform();
            }
            ready = stream.ready(interest), if listens || unread > 0 => match ready {
                Ok(ready) => {
                    readable |= ready.is_readable() || ready.is_read_closed();
                    writable |= ready.is_writable() || ready.is_write_closed();
                }
                Err(error) => return error.into(),
            },
            () = sleep_until(deadline.unwrap_or_else(|| Instant::now() + FAR_FUTURE)), if deadline.is_some() => {
                if let Some(end) = overdue(login_by, closing, unread > 0, moved, limits.stalled) {
                    return end;
                }
                if reset.is_some() {
                    session.reset_window();
                    session.submit();
                }
            }
            _ = closed.wait_for(|closed| *closed), if closing.is_none() => {
                closing = Some(Instant::now() + limits.grace);
            }
        }
    }
}

/// Whether a deadline has passed.
fn overdue(
    login_by: Option<Instant>,
    closing: Option<Instant>,
    unread: bool,
    moved: Instant,
    stalled: std::time::Duration,
) -> Option<End> {
    let now = Instant::now();
    if closing.is_some_and(|by| now >= by) {
        return Some(End::Closing);
    }
    if login_by.is_some_and(|by| now >= by) {
        return Some(End::NoLogin);
    }
    (unread && now >= moved + stalled).then_some(End::Stalled)
}
