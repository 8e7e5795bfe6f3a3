//! A client that speaks in lines, as IRC's do.

use std::io::{self, BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(60);

/// What lines are read from and written to.
pub trait Io: Read + Write + Send {}
impl<T: Read + Write + Send> Io for T {}

/// A client that speaks in lines.
pub struct Lines(BufReader<Box<dyn Io>>);

impl Lines {
    /// Connects.
    ///
    /// # Panics
    /// When nobody listens there.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        Self::over(Self::socket(address))
    }

    /// A socket that does not wait for ever.
    ///
    /// # Panics
    /// When nobody listens there.
    #[must_use]
    pub fn socket(address: SocketAddr) -> TcpStream {
        let socket = TcpStream::connect(address).expect("somebody listens");
        socket.set_read_timeout(Some(PATIENCE)).expect("it has a timeout");
        socket
    }

    /// Speaks over something that is connected.
    #[must_use]
    pub fn over(io: impl Io + 'static) -> Self {
        Self(BufReader::new(Box::new(io)))
    }

    /// Somebody who has logged in to the chat's room.
    #[must_use]
    pub fn irc(address: SocketAddr, name: &str, password: &str) -> Self {
        let mut lines = Self::connect(address);
        lines.join(name, password);
        lines
    }

    /// Logs in to the chat, and comes into the room.
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

    /// Sends what is no whole line.
    ///
    /// # Panics
    /// When it cannot be sent.
    pub fn write(&mut self, text: &str) {
        let io = self.0.get_mut();
        io.write_all(text.as_bytes()).and_then(|()| io.flush()).expect("it can be sent");
    }

    /// Sends a line, if there is still somebody.
    pub fn try_send(&mut self, line: &str) -> bool {
        let io = self.0.get_mut();
        io.write_all(format!("{line}\r\n").as_bytes()).and_then(|()| io.flush()).is_ok()
    }

    /// The next line; none: it has ended.
    ///
    /// # Panics
    /// When none comes.
    pub fn next_line(&mut self) -> Option<String> {
        let mut line = Vec::new();
        match self.0.read_until(b'\n', &mut line) {
            Ok(0) => None,
            Ok(_) => Some(String::from_utf8_lossy(&line).trim_end().to_owned()),
            Err(error) if ended(&error) => None,
            Err(error) => panic!("no line comes: {error}"),
        }
    }

    /// The next line, which must come.
    ///
    /// # Panics
    /// When it does not.
    pub fn line(&mut self) -> String {
        self.next_line().expect("it has not ended")
    }

    /// Reads up to the line that has this in it.
    ///
    /// # Panics
    /// When none has.
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

    /// Reads to the end.
    pub fn rest(&mut self) -> Vec<String> {
        std::iter::from_fn(|| self.next_line()).collect()
    }
}

/// Whether the other end has gone, in whatever way.
fn ended(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::ConnectionReset | ErrorKind::BrokenPipe | ErrorKind::UnexpectedEof)
}
