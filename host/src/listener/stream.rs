//! A client's socket, with TLS on it or without: read and written as far as it goes, without waiting.

use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::time::Duration;

use rustix::net::sockopt;
use rustls::ServerConnection;
use tokio::io::{Interest, Ready};
use tokio::net::{TcpStream, UnixStream};

use crate::session::Limits;

/// How much is taken out of TLS at once.
const CHUNK: usize = 16 << 10;

/// A client's socket.
pub(super) enum Stream {
    Plain(TcpStream),
    Tls(Box<Tls>),
    /// The other end is a service's, in this process.
    Within(UnixStream),
}

pub(super) struct Tls {
    socket: TcpStream,
    connection: ServerConnection,
}

/// The socket as rustls wants it.
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

/// The same, of no thread.
pub(super) enum Resting {
    Plain(std::net::TcpStream),
    Tls(Box<(std::net::TcpStream, ServerConnection)>),
    Within(std::os::unix::net::UnixStream),
}

/// How often a peer that is silent is asked whether it is still there.
const ASKED: u32 = 4;

/// Notices a peer that is not there any more, though it has not said goodbye (a cable was pulled): after so long a silence, in which
/// it is asked and does not answer. In seconds: the system knows no less.
///
/// # Errors
/// What the system says; it is a connection all the same.
pub(crate) fn keep_alive(socket: impl AsFd, limits: &Limits) -> io::Result<()> {
    let silence = limits.silence;
    let socket = socket.as_fd();
    let second = Duration::from_secs(1);
    sockopt::set_socket_keepalive(socket, true)?;
    sockopt::set_tcp_keepidle(socket, (silence / 2).max(second))?;
    sockopt::set_tcp_keepintvl(socket, (silence / 2 / ASKED).max(second))?;
    sockopt::set_tcp_keepcnt(socket, ASKED)?;
    // Nobody is asked to whom something is on its way: that is sent again and again, for a quarter of an hour if nothing is said.
    // It also ends a client that is there and takes nothing for so long: no sooner than `stalled` does.
    let unread = silence.max(limits.stalled);
    sockopt::set_tcp_user_timeout(socket, u32::try_from(unread.as_millis()).unwrap_or(u32::MAX))?;
    Ok(())
}

impl Stream {
    pub(super) fn tls(socket: TcpStream, connection: ServerConnection) -> Self {
        Self::Tls(Box::new(Tls { socket, connection }))
    }

    /// Takes it from its thread.
    ///
    /// # Errors
    /// When the system does not let go of it.
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

    /// Goes on on this thread.
    ///
    /// # Errors
    /// When the system has no room for it.
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

    /// The socket, where it is one of TCP's.
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

    /// Waits until something can be tried.
    pub(super) async fn ready(&self, interest: Interest) -> io::Result<Ready> {
        match self {
            Self::Plain(socket) => socket.ready(interest).await,
            Self::Tls(tls) => tls.socket.ready(interest).await,
            Self::Within(socket) => socket.ready(interest).await,
        }
    }

    /// Appends what there is. 0: the other side has closed it.
    ///
    /// # Errors
    /// `WouldBlock`, when there is nothing just now; `InvalidData`, when it is no TLS.
    pub(super) fn try_read_buf(&mut self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_read_buf(buffer),
            Self::Within(socket) => socket.try_read_buf(buffer),
            Self::Tls(tls) => tls.try_read_buf(buffer),
        }
    }

    /// Writes what goes, and says how much that was.
    ///
    /// # Errors
    /// `WouldBlock`, when nothing goes just now.
    pub(super) fn try_write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Self::Plain(socket) => socket.try_write(bytes),
            Self::Within(socket) => socket.try_write(bytes),
            Self::Tls(tls) => tls.try_write(bytes),
        }
    }

    /// Whether there is something to write that nobody but TLS knows of.
    pub(super) fn wants_write(&self) -> bool {
        match self {
            Self::Plain(_) | Self::Within(_) => false,
            Self::Tls(tls) => tls.connection.wants_write(),
        }
    }

    /// Writes what TLS has to write.
    ///
    /// # Errors
    /// `WouldBlock`, when not all of it goes just now.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match self {
            Self::Plain(_) | Self::Within(_) => Ok(()),
            Self::Tls(tls) => tls.flush(),
        }
    }

    /// Says goodbye, as far as it goes.
    pub(super) fn close(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(tls) => {
                tls.connection.send_close_notify();
                // It may have gone.
                let _ = tls.flush();
            }
            // The door has this end, too, to close it by.
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
        // What was encrypted before goes first, so that no more of it is kept than one write.
        self.flush()?;
        let taken = self.connection.writer().write(bytes)?;
        match self.flush() {
            Err(error) if error.kind() != io::ErrorKind::WouldBlock => Err(error),
            // rustls keeps nothing before the handshake is done: not yet.
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
                // It has gone without a goodbye.
                Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(0),
                Err(error) if error.kind() != io::ErrorKind::WouldBlock => return Err(error),
                Err(_) => {}
            }
            if self.connection.read_tls(&mut Raw(&self.socket))? == 0 {
                return Ok(0);
            }
            if let Err(error) = self.connection.process_new_packets() {
                // It is told what was wrong, as far as that goes.
                let _ = self.flush();
                return Err(io::Error::new(io::ErrorKind::InvalidData, error));
            }
        }
    }
}
