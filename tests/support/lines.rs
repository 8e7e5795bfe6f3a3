//! A client of a line-based protocol, such as IRC.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A stream to read lines from and write lines to.
pub trait Io: Read + Write + Send {}
impl<T: Read + Write + Send> Io for T {}

/// A client of a line-based protocol.
pub struct Lines(BufReader<Box<dyn Io>>);

impl Lines {
    /// Connects.
    ///
    /// # Panics
    /// When nothing listens there.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(Self::socket(address))
    }

    /// Connects a socket with a read timeout.
    ///
    /// # Panics
    /// When nothing listens there.
    #[must_use]
    pub fn socket(address: SocketAddr) -> TcpStream {
        let socket = TcpStream::connect(address).expect("somebody listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("it has a timeout");
        socket
    }

    /// Uses an established connection.
    #[must_use]
    pub fn over(io: impl Io + 'static) -> Self {
        Self(BufReader::new(Box::new(io)))
    }

    /// Connects, logs in to the chat, and joins the room.
    #[must_use]
    pub fn irc(address: SocketAddr, name: &str, password: &str) -> Self {
        let mut lines = Self::connect(address);
        lines.join(name, password);
        lines
    }

    /// Logs in to the chat, and joins the room.
    pub fn join(&mut self, name: &str, password: &str) {
        self.send(&format!("PASS :{password}\r\nNICK {name}\r\nUSER {name} 0 * :{name}\r\nJOIN #chat"));
        self.until(" 366 ");
    }

    /// Sends a line.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn send(&mut self, line: &str) {
        let io = self.0.get_mut();
        io.write_all(format!("{line}\r\n").as_bytes()).and_then(|()| io.flush()).expect("it can be sent");
    }

    /// Sends text without a line end.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn write(&mut self, text: &str) {
        let io = self.0.get_mut();
        io.write_all(text.as_bytes()).and_then(|()| io.flush()).expect("it can be sent");
    }

    /// Sends a line. Returns false if the connection has ended.
    pub fn try_send(&mut self, line: &str) -> bool {
        let io = self.0.get_mut();
        io.write_all(format!("{line}\r\n").as_bytes()).and_then(|()| io.flush()).is_ok()
    }

    /// Returns the next line, or `None` if the connection has ended.
    ///
    /// # Panics
    /// When no line arrives in time.
    pub fn next_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            Err(error) if ended(&error) => None,
            Err(error) => panic!("no line comes: {error}"),
        }
    }

    /// Returns the next line.
    ///
    /// # Panics
    /// When no line arrives in time, or the connection has ended.
    pub fn line(&mut self) -> String {
        self.next_line().expect("it has not ended")
    }

    /// Reads up to the next line that contains this text, and returns it.
    ///
    /// # Panics
    /// When no such line arrives.
    pub fn until(&mut self, wanted: &str) -> String {
        let mut before = Vec::new();
        loop {
            let Some(line) = self.next_line() else { panic!("it has ended, before {wanted:?} came: {before:#?}") };
            if line.contains(wanted) {
                return line;
            }
            before.push(line);
        }
    }

    /// Reads all lines until the connection ends.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next_line()).collect()
    }
}

/// Whether this error means that the other end has closed the connection.
fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}
