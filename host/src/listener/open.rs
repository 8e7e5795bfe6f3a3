//! One connection from its beginning to its end: on one thread, or first in the lobby and then on another thread.

use std::io;
use std::sync::Arc;

use pb::Failure;
use rustls::ServerConnection;
use tokio::net::{TcpStream, UnixStream};
use tokio::sync::watch;

use super::connection::{Driver, run};
use super::end::End;
use super::lobby::Insiders;
use super::stream::{Resting, Stream};
use super::{Admitted, Arrived, Coming, EndpointState, Socket, proxy};
use crate::login_gate::{Source, network};
use crate::memory::{AccountKey, Meter};
use crate::multiservice::router::Mailbox;
use crate::session::Session;

/// A connection on its way to another thread. Nothing of it is under way.
pub(super) struct Inside {
    stream: Resting,
    session: Box<Session>,
    from: Source,
    known: bool,
    mailbox: Arc<Mailbox>,
    sent: usize,
    admitted: Admitted,
    number: u32,
}

/// An open connection, and everything that belongs to it.
struct Open {
    stream: Stream,
    driver: Driver,
    admitted: Admitted,
    number: u32,
}

/// Serves one connection until it ends, or, in the lobby, until somebody has logged in by it.
pub(super) async fn serve(arrived: Box<Arrived>) {
    let Arrived { coming, mut closed, inside } = *arrived;
    let opened = match coming {
        Coming::New(socket, admitted) => Box::pin(Open::new(socket, admitted, &mut closed, inside.is_some())).await,
        Coming::Inside(moved) => Open::moved(*moved),
    };
    let Some(mut open) = opened else { return };
    let end = Box::pin(run(&mut open.stream, &mut open.driver, closed)).await;
    match inside {
        Some(inside) if matches!(end, End::Inside) => open.moves(&inside),
        _ => open.ends(end),
    }
}

impl Open {
    /// Opens a new connection. `None`: it could not be opened.
    async fn new(
        socket: Socket,
        mut admitted: Admitted,
        closed: &mut watch::Receiver<bool>,
        lobby: bool,
    ) -> Option<Box<Self>> {
        let shared = Arc::clone(&admitted.shared);
        let stream = match open(socket, &mut admitted, &shared, closed).await {
            Ok(stream) => stream,
            Err(end) => {
                say(&admitted, end);
                return None;
            }
        };
        let account = AccountKey::Source(network(admitted.source.ip()));
        let limits = shared.limits();
        let meter = Arc::new(Meter::new(shared.context.memory.account(account), limits.after.unread));
        let (number, mailbox) = shared.context.router.connect(meter, limits.most_unread());
        match Driver::new(&shared, &admitted, (number, lobby), &mailbox) {
            Ok(driver) => Some(Box::new(Self { stream, driver, admitted, number })),
            Err(end) => {
                shared.context.router.disconnect(number);
                say(&admitted, end);
                None
            }
        }
    }

    /// Takes over a connection from the lobby. `None`: its socket could not be registered on this thread, and it is closed.
    fn moved(moved: Inside) -> Option<Box<Self>> {
        let Inside { stream, session, from, known, mailbox, sent, admitted, number } = moved;
        let driver = Driver::moved((session, from, known), &admitted.shared, mailbox, sent);
        match Stream::resume(stream) {
            Ok(stream) => Some(Box::new(Self { stream, driver, admitted, number })),
            Err(error) => {
                driver.close(number);
                say(&admitted, error.into());
                None
            }
        }
    }

    /// Moves it to a thread for clients that have logged in. Nothing of it is under way.
    fn moves(self: Box<Self>, inside: &Insiders<Coming>) {
        let Self { stream, driver, admitted, number } = *self;
        let Driver { session, from, known, mailbox, sent, .. } = driver;
        match stream.rest() {
            Ok(stream) => {
                let moved = Inside { stream, session, from, known, mailbox, sent, admitted, number };
                // If nobody serves there any more, the host is closing.
                let refused = inside.send(Coming::Inside(Box::new(moved)));
                if let Some(Coming::Inside(moved)) = refused
                    && let Some(open) = Self::moved(*moved)
                {
                    open.ends(End::Closing);
                }
            }
            Err(error) => {
                Driver::moved((session, from, known), &admitted.shared, mailbox, sent).close(number);
                say(&admitted, error.into());
            }
        }
    }

    /// Ends the connection.
    fn ends(self: Box<Self>, end: End) {
        let Self { mut stream, mut driver, admitted, number } = *self;
        say_why(&mut stream, &mut driver, &end);
        stream.close();
        driver.close(number);
        say(&admitted, end);
    }
}

/// Logs why a connection has ended.
fn say(admitted: &Admitted, end: End) {
    let peer = admitted.source;
    match end {
        End::Closed | End::Closing => tracing::debug!(%peer, "{end}"),
        // The service has closed its end. It reports by itself what has become of its client.
        End::Io(_) if admitted.within.is_some() => tracing::debug!(%peer, "{end}"),
        end => tracing::info!(%peer, "connection closed: {end}"),
    }
}

/// Sends an error with the reason to every call that still waits, as far as the socket accepts it at once.
fn say_why(stream: &mut Stream, driver: &mut Driver, end: &End) {
    if matches!(end, End::Closed | End::Io(_)) {
        return;
    }
    let why = Failure::new("twisted.spread.pb.PBConnectionLost", format!("the host ends the connection: {end}"));
    driver.session.tell_why(&why);
    let output = driver.session.output();
    // What the socket does not accept now is lost with the connection.
    if let Ok(sent) = stream.try_write(&output[driver.sent.min(output.len())..]) {
        driver.sent += sent;
    }
    let _ = stream.flush();
}

async fn open(
    socket: Socket,
    admitted: &mut Admitted,
    shared: &EndpointState,
    closed: &mut watch::Receiver<bool>,
) -> Result<Stream, End> {
    let mut socket = match socket {
        Socket::Tcp(socket) => TcpStream::from_std(socket)?,
        Socket::Within(socket) => return Ok(Stream::Within(UnixStream::from_std(socket)?)),
    };
    if admitted.is_proxied() {
        let within = shared.limits().greeting.min(shared.limits().login);
        // Boxed: few connections need it, and otherwise all would reserve the space.
        let header = Box::pin(tokio::time::timeout(within, proxy::header(&mut socket)));
        let source = tokio::select! {
            source = header => source.map_err(|_| End::NoLogin)??,
            _ = closed.wait_for(|closed| *closed) => return Err(End::Closing),
        };
        if !admitted.comes_from(proxy::behind(admitted.source, source)) {
            return Err(End::TooMany);
        }
    }
    match &admitted.tls {
        Some(tls) => {
            let connection = ServerConnection::new(Arc::clone(tls)).map_err(io::Error::other)?;
            Ok(Stream::tls(socket, connection))
        }
        None => Ok(Stream::Plain(socket)),
    }
}
