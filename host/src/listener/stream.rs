//! A client's socket, with or without TLS. Reads and writes as far as possible, without blocking.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ServerConnection;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use crate::session::Limits;

/// How many bytes are taken out of TLS at once.
const CHUNK: usize = 16 << 10;

/// A client's socket.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
    /// The other end belongs to a service, in this process.
    Within(UnixStream),
}

pub(super) struct Tls {
    socket: TcpStream,
    connection: ServerConnection,
}

/// The socket, as rustls needs it.
struct Raw<'s>(&'s TcpStream);

impl Read for Raw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.0.try_read(buffer)
    }
}

impl Write for Raw<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.try_write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The same, registered with no thread.
pub(super) enum Resting {
    Plain(std::net::TcpStream),
    Tls(Box<(std::net::TcpStream, ServerConnection)>),
    Within(std::os::unix::net::UnixStream),
}

/// How many probes a silent peer gets.
const ASKED: u32 = 4;

/// Lets the system detect a peer that is gone without having closed the connection (a pulled cable): after this
/// silence, during which it is probed and does not answer. The system counts in whole seconds.
///
/// # Errors
/// Returns the system's error. The connection can be used all the same.
pub(crate) fn keep_alive(socket: impl AsFd, limits: &Limits) -> io::Result<()> {
    let silence = limits.silence;
    let socket = socket.as_fd();
    let second = Duration::from_secs(1);
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, (silence / 2).max(second))?;
    sockopt::set_tcp_keepintvl(socket, (silence / 2 / ASKED).max(second))?;
    sockopt::set_tcp_keepcnt(socket, ASKED)?;
    // A peer with unacknowledged data is not probed: TCP retransmits, by default for a quarter of an hour. This timeout
    // also ends the connection of a client that is alive and accepts nothing for so long, but no sooner than `stalled`
    // does.
    let unread = silence.max(limits.stalled);
    sockopt::set_tcp_user_timeout(socket, u32::try_from(unread.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

impl Stream {
    pub(super) fn tls(socket: TcpStream, connection: ServerConnection) -> Self {
        Self::Tls(Box::new(Tls { socket, connection }))
    }

    /// Deregisters it from its thread.
    ///
    /// # Errors
    /// Returns an error if the system does not release it.
    pub(super) fn rest(self) -> io::Result<Resting> {
        Ok(match self {
            Self::Plain(socket) => Resting::Plain(socket.into_std()?),
            Self::Tls(tls) => {
                let Tls { socket, connection } = *tls;
                Resting::Tls(Box::new((socket.into_std()?, connection)))
            }
            Self::Within(socket) => Resting::Within(socket.into_std()?),
        })
    }

    /// Registers it with this thread.
    ///
    /// # Errors
    /// Returns an error if the system has no room for it.
    pub(super) fn resume(resting: Resting) -> io::Result<Self> {
        Ok(match resting {
            Resting::Plain(socket) => Self::Plain(TcpStream::from_std(socket)?),
            Resting::Tls(tls) => {
                let (socket, connection) = *tls;
                Self::tls(TcpStream::from_std(socket)?, connection)
            }
            Resting::Within(socket) => Self::Within(UnixStream::from_std(socket)?),
        })
    }

    /// The socket, if it is a TCP socket.
    fn tcp(&self) -> Option<&TcpStream> {
        match self {
            Self::Plain(socket) => Some(socket),
            Self::Tls(tls) => Some(&tls.socket),
            Self::Within(_) => None,
        }
    }

    pub(super) fn set_nodelay(&self) -> io::Result<()> {
        self.tcp().map_or(Ok(()), |socket| socket.set_nodelay(true))
    }

    /// See [`keep_alive`].
    pub(super) fn set_keepalive(&self, limits: &Limits) -> io::Result<()> {
        self.tcp().map_or(Ok(()), |socket| keep_alive(socket, limits))
    }

    /// Waits until it may be readable or writable.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Plain(socket) => socket.ready(interest).await,
            Self::Tls(tls) => tls.socket.ready(interest).await,
            Self::Within(socket) => socket.ready(interest).await,
        }
    }

    /// Appends what has arrived. 0: the other side has closed the connection.
    ///
    /// # Errors
    /// `WouldBlock` if nothing has arrived; `InvalidData` if it is not TLS.
    pub(super) fn try_read_buf(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(buffer),
            Self::Within(socket) => socket.try_read_buf(buffer),
            Self::Tls(tls) => tls.try_read_buf(buffer),
        }
    }

    /// Writes as much as possible. Returns how much that was.
    ///
    /// # Errors
    /// `WouldBlock` if nothing can be written at present.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Within(socket) => socket.try_write(bytes),
            Self::Tls(tls) => tls.try_write(bytes),
        }
    }

    /// Whether TLS has bytes of its own to write.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Within(_) => false,
            Self::Tls(tls) => tls.connection.wants_write(),
        }
    }

    /// Writes the bytes that TLS has.
    ///
    /// # Errors
    /// `WouldBlock` if not all of them can be written at present.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Within(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Closes the connection, with TLS's `close_notify` as far as it can be written.
    pub(super) fn close(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(tls) => {
                tls.connection.send_close_notify();
                // The peer may have gone.
                let _ = tls.flush();
            }
            // The door has a descriptor of this end, too, and closes it by that.
            Self::Within(socket) => drop(rustix::net::shutdown(&*socket, rustix::net::Shutdown::Both)),
        }
    }
}

impl Tls {
    fn flush(&mut self) -> io::Result<()> {
        while self.connection.wants_write() {
            self.connection.write_tls(&mut Raw(&self.socket))?;
        }
        Ok(())
    }

    fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Earlier encrypted bytes go first, so that no more than one write is buffered.
        self.flush()?;
        let taken = self.connection.writer().write(bytes)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // rustls buffers nothing before the handshake is complete.
            _ if taken == 0 && !bytes.is_empty() => Err(io::ErrorKind::WouldBlock.into()),
            _ => Ok(taken),
        }
    }

    fn try_read_buf(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        loop {
            let mut chunk = zeroize::Zeroizing::new([0; CHUNK]);
            match self.connection.reader().read(&mut *chunk) {
                Ok(count) => {
                    buffer.extend_from_slice(&chunk[..count]);
                    return Ok(count);
                }
                // The peer has closed without a close_notify.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
            if self.connection.read_tls(&mut Raw(&self.socket))? == 0 {
                return Ok(0);
            }
            if let Err(error) = self.connection.process_new_packets() {
                // Sends the alert to the peer, as far as possible.
                let _ = self.flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}
