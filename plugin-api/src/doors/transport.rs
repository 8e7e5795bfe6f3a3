//! The way out of a connection that a [`Door`](super::Door) drives.

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

/// The output that may wait for each client, in bytes, when more waits for all than
/// [`ServiceLimits::unread`](crate::abi::limits::ServiceLimits::unread).
const LITTLE: usize = 16 << 10;

/// How far a connection's end has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Ending {
    /// It lives.
    No,
    /// It ends when what was written has gone.
    Flushing,
    /// It has ended.
    Over,
}

/// The way out of a connection: what is written is kept, and leaves when the client reads it, and when every change of the
/// service's states before it is committed. Clones are the same connection; that they are kept does not keep it open.
///
/// In Twisted: `transport` of a `Protocol`.
#[derive(Clone)]
pub struct Transport(Rc<Way>);

pub(super) struct Way {
    /// Not there any more once it has ended here.
    open: RefCell<Option<Open>>,
    peer: RefCell<Peer>,
    core: Weak<Core>,
    output: RefCell<BytesMut>,
    /// The most that may wait.
    most: usize,
    /// How fast the client reads.
    leaving: RefCell<Pace>,
    /// What has come, and was not taken, in bytes.
    input: Cell<usize>,
    ending: Cell<Ending>,
    /// Notified when there is something to write, or it is to end.
    work: Notify,
    /// Notified when all is written, or nearly all, and when it ends.
    flushed: Notify,
    /// Notified when it ends.
    ended: Notify,
    /// What it came by was taken away.
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
    /// Whether they are of one connection.
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

    /// Writes something. A client that does not read what it is sent is let go: nothing is waited for.
    pub fn write(&self, bytes: &[u8]) {
        if self.0.ending.get() != Ending::No {
            return;
        }
        let (Some(core), before) = (self.0.core.upgrade(), self.0.output.borrow().len()) else { return };
        let limits = core.limits.get();
        let most = if core.doors.unread() > limits.unread { LITTLE } else { limits.output };
        let most = most.min(self.0.most);
        if before.saturating_add(bytes.len()) > most {
            tracing::debug!(peer = self.0.peer.borrow().address(), "a client does not read what it is sent: let go");
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

    /// So much has come, and was not taken.
    pub(super) fn set_input(&self, bytes: usize) {
        self.0.input.set(bytes);
        if let Some(core) = self.0.core.upgrade() {
            self.count(&core);
        }
    }

    /// Tells the host what is kept here, if that has changed by much.
    fn count(&self, core: &Core) {
        let kept = self.0.input.get() + self.0.output.borrow().len();
        if let Some(frame) = self.stream().and_then(|cell| cell.buffers(kept)) {
            core.push(&frame);
        }
    }

    /// If half of what may wait for the client ([`UNREAD`](super::Door::UNREAD)) waits, waits until most of it has left, or the
    /// connection ends. For a door that answers much: it writes a part, and waits. The code may be replaced meanwhile
    /// ([`Context::is_replaced`](crate::Context::is_replaced)).
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

    /// So much may still wait when there is room again.
    fn little(&self) -> usize {
        self.0.most / 64
    }

    /// Whether [`room`](Transport::room) would wait.
    pub(super) fn is_full(&self) -> bool {
        self.0.output.borrow().len() > self.0.most / 2
    }

    /// What the code before has written, and has not left.
    pub(super) fn restore(&self, bytes: &[u8]) {
        if let Some(core) = self.0.core.upgrade() {
            self.put(&core, bytes);
        }
    }

    /// Ends the connection, when what was written has left.
    pub fn close(&self) {
        if self.0.ending.get() == Ending::No {
            self.0.ending.set(Ending::Flushing);
            self.0.work.notify_one();
            self.0.ended.notify_waiters();
        }
    }

    /// Whether it has ended, or is about to.
    #[must_use]
    pub fn is_closed(&self) -> bool {
        self.0.ending.get() != Ending::No
    }

    /// Who is at the other end.
    #[must_use]
    pub fn peer(&self) -> Peer {
        self.0.peer.borrow().clone()
    }

    /// Who has logged in by it; nobody, once it has ended.
    #[must_use]
    pub fn login(&self) -> Option<Login> {
        self.0.open.borrow().as_ref().and_then(|open| open.cell.login())
    }

    /// Has the host speak TLS from here on, when all that was written has left: within [`received`](super::Door::received), which
    /// has taken the client's word for it out of its input. If there is more in that, it must end the connection: whoever sent
    /// it spoke in the clear, and wanted it to look as if it had come by TLS. What the client has said before counts for nothing:
    /// others may have said it.
    ///
    /// # Errors
    /// When the operator has given no certificate, or the client does not speak TLS.
    ///
    /// ```no_run
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::{Input, Transport};
    /// # async fn served(transport: &Transport, input: &mut Input) -> Result<()> {
    /// while let Some(line) = input.line().filter(|_| !transport.is_closed()) {
    ///     match line.as_str() {
    ///         // Whatever follows it was not sent by TLS.
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

    /// It ends now, whatever was written.
    pub(super) fn end(&self) {
        if self.0.ending.replace(Ending::Over) != Ending::Over {
            self.0.work.notify_one();
            self.0.flushed.notify_waiters();
            self.0.ended.notify_waiters();
        }
    }

    /// What it came by was taken away: it ends now, and what has come is not served any more.
    pub(super) fn cut(&self) {
        self.0.cut.set(true);
        self.end();
    }

    /// Whether it was: see [`Transport::cut`].
    pub(super) fn is_cut(&self) -> &Rc<Cell<bool>> {
        &self.0.cut
    }

    /// It has ended here, whoever still has it: what it was made of is let go of.
    pub(super) fn release(&self) {
        self.end();
        let open = self.0.open.borrow_mut().take();
        let output = std::mem::take(&mut *self.0.output.borrow_mut());
        if let Some(core) = self.0.core.upgrade() {
            core.doors.count_unread(0, output.len());
        }
        drop((open, output));
    }

    /// What was written, and has not left.
    pub(super) fn unsent(&self) -> Vec<u8> {
        self.0.output.borrow().to_vec()
    }

    /// Waits until it ends, or is to.
    pub(super) async fn until_ended(&self) {
        let ended = self.0.ended.notified();
        if self.0.ending.get() == Ending::No {
            ended.await;
        }
    }

    /// Waits until it has ended.
    pub(super) async fn until_over(&self) {
        loop {
            let told = self.0.flushed.notified();
            if self.0.ending.get() == Ending::Over {
                return;
            }
            told.await;
        }
    }

    /// Writes to the client for as long as there is one; ends the connection when it was to end and all has left.
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
        // Gone with the service.
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
        // The first look at a socket is not in vain, whatever the time is.
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

    /// This many bytes were written.
    fn has_left(&self, sent: usize) {
        let (mut output, mut leaving) = (self.0.output.borrow_mut(), self.0.leaving.borrow_mut());
        let (before, little) = (output.len(), self.little());
        output.advance(sent);
        if output.is_empty() {
            // A connection at rest keeps nothing.
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
