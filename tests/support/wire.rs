//! A raw connection, for bytes that no well-behaved client sends.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use jelly::token;

/// A guard against hanging, not a measure.
const PATIENCE: Duration = Duration::from_secs(30);

/// A raw connection to a PB door.
pub struct Wire {
    pub stream: TcpStream,
    pub received: Vec<u8>,
}

impl Wire {
    /// Connects, and chooses the dialect "pb".
    ///
    /// # Panics
    /// When nothing listens there, or the greeting does not arrive.
    #[must_use]
    pub fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).expect("the door is open");
        stream.set_read_timeout(Some(PATIENCE)).expect("a timeout can be set");
        Self { stream, received: Vec::new() }.greet()
    }

    /// Waits for the host's greeting, and chooses the dialect "pb".
    ///
    /// # Panics
    /// When the greeting does not arrive.
    #[must_use]
    pub fn greet(mut self) -> Self {
        let wire = &mut self;
        wire.wait_for(&[2, 0x80, 2, 0x82, b'p', b'b', 4, 0x82, b'n', b'o', b'n', b'e']);
        wire.send(&[2, 0x82, b'p', b'b', 2, 0x80, 19, 0x87, 6, 0x81]);
        self
    }

    /// Sends bytes. Ignores a closed connection.
    pub fn send(&mut self, bytes: &[u8]) {
        let _ = self.stream.write_all(bytes);
    }

    /// Reads until these bytes have arrived. Takes and returns everything up to their end.
    ///
    /// # Panics
    /// When the connection ends first.
    pub fn wait_for(&mut self, wanted: &[u8]) -> Vec<u8> {
        loop {
            if let Some(at) = self.received.windows(wanted.len()).position(|window| window == wanted) {
                return self.received.drain(..at + wanted.len()).collect();
            }
            assert!(self.read(), "it closed before {wanted:?} came; it sent {:?}", self.received);
        }
    }

    /// Reads once. Returns false if the connection has ended.
    pub fn read(&mut self) -> bool {
        let mut buffer = [0; 64 << 10];
        let read = loop {
            match self.stream.read(&mut buffer) {
                // A signal to the test itself, such as for the end of a child, only interrupts the read.
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                read => break read,
            }
        };
        match read {
            Ok(0) => false,
            Ok(count) => {
                self.received.extend_from_slice(&buffer[..count]);
                true
            }
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => false,
            Err(error) => panic!("it neither answers nor closes: {error}"),
        }
    }

    /// Reads until the other side closes the connection. Returns all bytes that have arrived.
    pub fn closed(mut self) -> Vec<u8> {
        while self.read() {}
        self.received
    }
}

/// Encodes a call of an object, by its luid, or of the root, by its name.
#[must_use]
pub fn call(request: u64, target: Result<u64, &str>, method: &str, arguments: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, 7);
    token::bytes(&mut out, b"message");
    token::uint(&mut out, request);
    match target {
        Ok(luid) => token::uint(&mut out, luid),
        Err(name) => token::bytes(&mut out, name.as_bytes()),
    }
    token::bytes(&mut out, method.as_bytes());
    token::int(&mut out, 1);
    out.extend_from_slice(arguments);
    out.extend_from_slice(&[1, 0x80, 5, 0x87]);
    out
}
