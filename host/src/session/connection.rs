//! Bytes in, bytes out: as much as there is in one read, all answers that are ready in one write.

use std::io;
use std::net::TcpStream as Socket;
use std::sync::Arc;

use pb::PeerFault;
use tokio::io::Interest;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep_until};

use super::desk::{Desk, Peer};
use super::door::{Admitted, Shared};
use super::stream::Stream;
use super::tls::Certificates;

/// How much is read at once, at least.
const READ: usize = 16 << 10;
/// An output buffer that has become larger than this is given back when it is empty.
const KEEP: usize = 256 << 10;
/// Answers beyond this are not kept for a client, however it reads: it is let go.
const BACKLOG: usize = 64 << 20;
/// After so many reads in a row others get their turn.
const TURNS: u32 = 8;
/// How long calls wait for room while nothing is answered.
const LIFT: std::time::Duration = std::time::Duration::from_millis(20);
/// Somebody who does not log in has that far a deadline.
const NEVER: std::time::Duration = std::time::Duration::from_secs(365 * 24 * 3600);

/// Why a connection ended.
#[derive(Debug, thiserror::Error)]
pub(super) enum End {
    #[error("the client has closed it")]
    Closed,
    #[error("{0}")]
    Io(#[from] io::Error),
    #[error("{0}")]
    Peer(#[from] PeerFault),
    #[error("nobody logged in in time")]
    NoLogin,
    #[error("the client reads nothing")]
    Stalled,
    #[error("more answers wait for the client than are kept")]
    Backlog,
    #[error("too many calls wait for others to end")]
    TooManyCalls,
    #[error("the operator has cut it")]
    Cut,
    #[error("the host closes")]
    Closing,
}

/// Serves one connection to its end.
pub(super) async fn serve(shared: Arc<Shared>, socket: Socket, admitted: Admitted, closed: watch::Receiver<bool>) {
    let peer = admitted.source;
    let end = match open(socket, admitted.tls.as_deref()) {
        Ok(mut stream) => {
            let (number, mailbox) = shared.surroundings.switchboard.connect();
            let tls = admitted.tls.is_some();
            let from = Peer { address: peer, private: tls || peer.ip().to_canonical().is_loopback(), tls };
            let mut desk = Desk::new(Arc::clone(&shared), number, from, Arc::clone(&mailbox));
            let end = Box::pin(run(&shared, &mut stream, &mut desk, &mailbox, closed)).await;
            stream.close();
            // From here on calls back to this client fail at once.
            shared.surroundings.switchboard.disconnect(number);
            let mut mail = Vec::new();
            mailbox.close(&mut mail);
            desk.mail(&mail);
            desk.end();
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

async fn run(
    shared: &Shared,
    stream: &mut Stream,
    desk: &mut Desk,
    mailbox: &crate::multiservice::switchboard::Mailbox,
    mut closed: watch::Receiver<bool>,
) -> End {
    // Small answers must not wait for each other's acknowledgement.
    if let Err(error) = stream.set_nodelay() {
        return error.into();
    }
    let limits = &shared.limits;
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
        desk.mail(&mail);
        if !all {
            return End::Backlog;
        }
        if desk.notices() {
            return End::Cut;
        }
        mail.shrink_to(KEEP);
        if let Err(end) = desk.serve().await {
            // What was answered before the fault is still sent, as far as it goes.
            let _ = stream.try_write(&desk.broker.output.bytes[sent..]);
            return end;
        }
        desk.submit();
        login_by = match login_by {
            _ if desk.logged_in() => None,
            // Whoever was sent away has as long as one who comes.
            None => Some(Instant::now() + limits.login),
            by => by,
        };
        let refusal = desk.refuse_due();

        while writable && sent < desk.broker.output.bytes.len() {
            match stream.try_write(&desk.broker.output.bytes[sent..]) {
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
        let output = &mut desk.broker.output.bytes;
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
        if unread == 0 && desk.parked() {
            // What waited for answers to be read can begin.
            desk.unpark();
            desk.submit();
        }

        if closing.is_some() && unread == 0 && desk.idle() {
            return End::Closing;
        }
        // A client that does not read its answers does not get more of them.
        let listens = unread <= desk.limits().unread && closing.is_none();
        if listens && readable {
            let buffer = desk.broker.input.buffer();
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
        let lift = (unread == 0 && desk.parked()).then(|| Instant::now() + LIFT);
        let deadline = [login_by, closing, lift, refusal, (unread > 0).then(|| moved + limits.stalled)]
            .into_iter()
            .flatten()
            .min();
        tokio::select! {
            biased;
            () = mailbox.come() => {}
            checked = desk.checked() => desk.finish(checked).await,
            ready = stream.ready(interest), if listens || unread > 0 => match ready {
                Ok(ready) => {
                    readable |= ready.is_readable() || ready.is_read_closed();
                    writable |= ready.is_writable() || ready.is_write_closed();
                }
                Err(error) => return error.into(),
            },
            () = sleep_until(deadline.unwrap_or_else(|| Instant::now() + NEVER)), if deadline.is_some() => {
                if let Some(end) = overdue(login_by, closing, unread > 0, moved, limits.stalled) {
                    return end;
                }
                if lift.is_some() {
                    desk.lift();
                    desk.submit();
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
