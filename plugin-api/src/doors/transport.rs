//! The output side of a connection that a [`Door`](super::Door) drives.

use std::cell::{Cell, RefCell};
use std::rc::{Rc, Weak};
use std::sync::Arc;

use bytes::{Buf, BytesMut};
use tokio::sync::Notify;
use tokio::time::Instant;

use super::authorizer::Login;
use super::pace::Pace;
use super::stream::{Peer, Socket, StreamCell};
use crate::fault::{Fault, Result};
use crate::runtime::core::Core;

/// How far the end of a connection has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It lives.
    No,
    /// It ends when its output has left.
    Flushing,
    /// It has ended.
    Over,
}

/// The output side of a connection. Output is queued. It leaves as the client reads it, once every earlier change of the
/// service's states is committed. Clones belong to the same connection; keeping them does not keep it open.
///
/// In Twisted: `transport` of a `Protocol`.
#[derive(Clone)]
pub struct Transport(Rc<Way>);

pub(super) struct Way {
    /// `None` once the connection has ended here.
    open: RefCell<Option<Open>>,
    peer: RefCell<Peer>,
    core: Weak<Core>,
    output: RefCell<BytesMut>,
    /// The most output that may wait, in bytes.
    most: usize,
    /// The pace at which the client reads.
    leaving: RefCell<Pace>,
    /// Input that was not taken yet, in bytes.
    input: Cell<usize>,
    ending: Cell<Ending>,
    /// Notified when there is output to send, or when the connection is to end.
    work: Notify,
    /// Notified when all output has left, or nearly all, and when the connection ends.
    flushed: Notify,
    /// Notified when the connection ends.
    ended: Notify,
    /// Whether the login was revoked.
    cut: Rc<Cell<bool>>,
}

/// What a connection is made of.
struct Open {
    cell: Arc<StreamCell>,
    socket: Rc<Socket>,
}

impl Drop for Way {
    fn drop(&mut self) {
        if let Some(core) = self.core.upgrade() {
            core.doors.count_unread(0, self.output.get_mut().len());
        }
    }
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Transport({})", self.0.peer.borrow().address())
    }
}

impl PartialEq for Transport {
    /// Whether both belong to the same connection.
    fn eq(&self, other: &Self) -> bool {
        Rc::ptr_eq(&self.0, &other.0)
    }
}

impl Eq for Transport {}

fn gone() -> Fault {
    Fault::new("twisted.spread.pb.PBConnectionLost", "the client has gone")
}

impl Transport {
    pub(super) fn new(core: &Rc<Core>, socket: Socket, cell: Arc<StreamCell>, most: usize) -> Self {
        Self(Rc::new(Way {
            peer: RefCell::new(cell.peer()),
            leaving: RefCell::new(cell.rates.leaving()),
            input: Cell::new(0),
            open: RefCell::new(Some(Open { cell, socket: Rc::new(socket) })),
            core: Rc::downgrade(core),
            output: RefCell::default(),
            most,
            ending: Cell::new(Ending::No),
            work: Notify::new(),
            flushed: Notify::new(),
            ended: Notify::new(),
            cut: Rc::default(),
        }))
    }

    /// Queues output for the client, without waiting. A client that does not read its output is disconnected.
    pub fn write(&self, bytes: &[u8]) {
        if self.0.ending.get() != Ending::No {
            return;
        }
        let (Some(core), before) = (self.0.core.upgrade(), self.0.output.borrow().len()) else { return };
        let limits = core.limits.get();
        let most = if core.doors.unread() > limits.unread { limits.each.min(self.0.most) } else { self.0.most };
        if before.saturating_add(bytes.len()) > most {
            tracing::debug!(
                peer = self.0.peer.borrow().address(),
                "a connection is closed: output buffer limit exceeded, because the client does not read"
            );
            return self.end();
        }
        self.put(&core, bytes);
    }

    fn put(&self, core: &Core, bytes: &[u8]) {
        core.doors.count_unread(bytes.len(), 0);
        self.0.output.borrow_mut().extend_from_slice(bytes);
        self.0.work.notify_one();
        self.count(core);
    }

    /// Sets how much input was not taken, in bytes.
    pub(super) fn set_input(&self, bytes: usize) {
        self.0.input.set(bytes);
        if let Some(core) = self.0.core.upgrade() {
            self.count(&core);
        }
    }

    /// Tells the host how much is buffered here, if that has changed by much.
    fn count(&self, core: &Core) {
        let kept = self.0.input.get() + self.0.output.borrow().len();
        if let Some(frame) = self.stream().and_then(|cell| cell.buffers(kept)) {
            core.push(&frame);
        }
    }

    /// If half of the output that may wait for the client ([`UNREAD`](super::Door::UNREAD)) waits, waits until most of it has
    /// left or the connection has ended. For a door that answers at length: it writes a part, then waits. The code may be
    /// replaced meanwhile ([`Context::is_replaced`](crate::Context::is_replaced)).
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::Transport;
    /// # async fn list(transport: &Transport, names: &[String]) {
    /// for name in names {
    ///     transport.write(name.as_bytes());
    ///     transport.room().await;
    /// }
    /// # }
    /// ```
    pub async fn room(&self) {
        let full = self.is_full();
        while full && self.0.output.borrow().len() > self.little() && self.0.ending.get() != Ending::Over {
            self.0.flushed.notified().await;
        }
    }

    /// How much output may still wait when there is room again, in bytes.
    fn little(&self) -> usize {
        self.0.most / 64
    }

    /// Whether [`room`](Transport::room) would wait.
    pub(super) fn is_full(&self) -> bool {
        self.0.output.borrow().len() > self.0.most / 2
    }

    /// Queues the output of the previous generation that has not left yet.
    pub(super) fn restore(&self, bytes: &[u8]) {
        if let Some(core) = self.0.core.upgrade() {
            self.put(&core, bytes);
        }
    }

    /// Ends the connection once its output has left.
    pub fn close(&self) {
        if self.0.ending.get() == Ending::No {
            self.0.ending.set(Ending::Flushing);
            self.0.work.notify_one();
            self.0.ended.notify_waiters();
        }
    }

    /// Whether the connection has ended, or is about to.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.ending.get() != Ending::No
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer.borrow().clone()
    }

    /// The login of this connection, if the client has logged in. `None` once the connection has ended.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.0.open.borrow().as_ref().and_then(|open| open.cell.login())
    }

    /// Waits until all output has left, then has the host speak TLS from here on. Call this in
    /// [`received`](super::Door::received), after taking the client's request for TLS out of the input. If there is more in the
    /// input, end the connection: whoever sent that spoke in the clear, and wanted it to look as if it had come over TLS. Ignore
    /// what the client has said before: others may have said it.
    ///
    /// # Errors
    /// If the operator has given no certificate, or the client does not speak TLS.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Input, Transport};
    /// # async fn served(transport: &Transport, input: &mut Input) -> Result<()> {
    /// while let Some(line) = input.line().filter(|_| !transport.is_closed()) {
    ///     match line.as_str() {
    ///         // Whatever follows it was not sent over TLS.
    ///         "STARTTLS" if !input.is_empty() => return Err(Fault::value("more than STARTTLS")),
    ///         "STARTTLS" => {
    ///             transport.write(b"OK\r\n");
    ///             transport.start_tls().await?;
    ///         }
    ///         "QUIT" => transport.close(),
    ///         _ => {
    ///             let who = transport.login().map_or("nobody".to_owned(), |login| login.identity().to_owned());
    ///             transport.write(format!("{who} at {}\r\n", transport.peer().address()).as_bytes());
    ///         }
    ///     }
    /// }
    /// # Ok(()) }
    /// ```
    pub async fn start_tls(&self) -> Result<()> {
        while !self.0.output.borrow().is_empty() {
            if self.0.ending.get() == Ending::Over {
                return Err(gone());
            }
            self.0.flushed.notified().await;
        }
        let cell = self.stream().ok_or_else(gone)?;
        let socket = Rc::new(cell.start_tls().await?);
        self.0.peer.replace(cell.peer());
        if let Some(open) = &mut *self.0.open.borrow_mut() {
            open.socket = socket;
        }
        Ok(())
    }

    pub(super) fn stream(&self) -> Option<Arc<StreamCell>> {
        self.0.open.borrow().as_ref().map(|open| Arc::clone(&open.cell))
    }

    pub(super) fn socket(&self) -> Option<Rc<Socket>> {
        self.0.open.borrow().as_ref().map(|open| Rc::clone(&open.socket))
    }

    pub(super) fn ending(&self) -> Ending {
        self.0.ending.get()
    }

    /// Ends the connection now, without sending what waits.
    pub(super) fn end(&self) {
        if self.0.ending.replace(Ending::Over) != Ending::Over {
            self.0.work.notify_one();
            self.0.flushed.notify_waiters();
            self.0.ended.notify_waiters();
        }
    }

    /// Ends the connection now because its login was revoked: input that has arrived is no longer served.
    pub(super) fn cut(&self) {
        self.0.cut.set(true);
        self.end();
    }

    /// Whether the login was revoked: see [`Transport::cut`].
    pub(super) fn is_cut(&self) -> &Rc<Cell<bool>> {
        &self.0.cut
    }

    /// Ends the connection here and releases its parts, whoever still holds a clone.
    pub(super) fn release(&self) {
        self.end();
        let open = self.0.open.borrow_mut().take();
        let output = std::mem::take(&mut *self.0.output.borrow_mut());
        if let Some(core) = self.0.core.upgrade() {
            core.doors.count_unread(0, output.len());
        }
        drop((open, output));
    }

    /// Output that has not left yet.
    pub(super) fn unsent(&self) -> Vec<u8> {
        self.0.output.borrow().to_vec()
    }

    /// Waits until the connection ends, or is about to.
    pub(super) async fn until_ended(&self) {
        let ended = self.0.ended.notified();
        if self.0.ending.get() == Ending::No {
            ended.await;
        }
    }

    /// Waits until the connection has ended.
    pub(super) async fn until_over(&self) {
        loop {
            let told = self.0.flushed.notified();
            if self.0.ending.get() == Ending::Over {
                return;
            }
            told.await;
        }
    }

    /// Sends output for as long as the connection lasts. Ends a connection that is to end once its output has left.
    pub(super) async fn pump(&self) {
        loop {
            let work = self.0.work.notified();
            let empty = self.0.output.borrow().is_empty();
            match (empty, self.0.ending.get()) {
                (_, Ending::Over) => return,
                (true, Ending::Flushing) => return self.end(),
                (true, Ending::No) => {}
                (false, _) => {
                    if self.write_some().await.is_err() {
                        return self.end();
                    }
                    continue;
                }
            }
            work.await;
        }
    }

    async fn write_some(&self) -> std::io::Result<()> {
        let ended = || std::io::Error::from(std::io::ErrorKind::BrokenPipe);
        // The service has ended.
        let core = self.0.core.upgrade().ok_or_else(ended)?;
        if !core.is_committed() {
            core.committed().await.map_err(|fault| std::io::Error::other(fault.to_string()))?;
        }
        let socket = self.socket().ok_or_else(ended)?;
        drop(core);
        let due = {
            let mut leaving = self.0.leaving.borrow_mut();
            leaving.begin(Instant::now());
            leaving.due()
        };
        // A socket that is writable at the first look counts, whatever the time is.
        let stalled = tokio::time::timeout_at(due.unwrap_or_else(Instant::now), socket.writable()).await;
        stalled.map_err(|_| std::io::Error::from(std::io::ErrorKind::TimedOut))??;
        let sent = socket.try_write(&self.0.output.borrow());
        let core = self.0.core.upgrade().ok_or_else(ended)?;
        match sent {
            Ok(sent) => {
                self.has_left(sent);
                core.doors.count_unread(0, sent);
                self.count(&core);
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// This many bytes of output were sent.
    fn has_left(&self, sent: usize) {
        let (mut output, mut leaving) = (self.0.output.borrow_mut(), self.0.leaving.borrow_mut());
        let (before, little) = (output.len(), self.little());
        output.advance(sent);
        if output.is_empty() {
            // A connection at rest keeps no buffer.
            *output = BytesMut::new();
            leaving.rest();
        } else {
            leaving.moved(sent, Instant::now());
        }
        if output.is_empty() || before > little && output.len() <= little {
            self.0.flushed.notify_waiters();
        }
    }
}
