//! The messages on the socket between the host and a worker: each has a header and a body. No IO.
//!
//! A header is 8 bytes, little-endian: the body's length (4), the kind (1), whether the body is in a sealed memory file instead
//! (1), and how many descriptors come with it (2). The memory file is the first of them; its length is then the body, in 8
//! bytes. The other side is hostile: nothing is allocated for what has not arrived, and what exceeds a limit is an error.

use std::fmt;

/// The length of a header, in bytes.
pub const HEADER: usize = 8;

/// The kind of a message.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// From the host, first: what the worker must run, and how, in JSON.
    Setup = 1,
    /// From the host: the next batch of frames.
    Batch = 2,
    /// From the worker: frames.
    Frames = 3,
    /// From the worker: a line for the log. Its level (1), the length of its target (4), the target, the text.
    Log = 4,
    /// From the worker: it has processed what it was given, and asks for more.
    Ask = 5,
    /// From the worker, last: where it crashed. Addresses, 8 bytes each, as offsets in its library.
    Crash = 6,
}

impl Kind {
    fn of(number: u8) -> Option<Self> {
        const ALL: [Kind; 6] = [Kind::Setup, Kind::Batch, Kind::Frames, Kind::Log, Kind::Ask, Kind::Crash];
        ALL.into_iter().find(|kind| *kind as u8 == number)
    }
}

/// What precedes a body.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// The length of the body, in bytes.
    pub length: u32,
    /// The kind of the message.
    pub kind: Kind,
    /// Whether the body is in a memory file.
    pub large: bool,
    /// How many descriptors come with it.
    pub descriptors: u16,
}

impl Header {
    /// Encodes it for the socket.
    #[must_use]
    pub fn bytes(self) -> [u8; HEADER] {
        let ([a, b, c, d], [e, f]) = (self.length.to_le_bytes(), self.descriptors.to_le_bytes());
        [a, b, c, d, self.kind as u8, u8::from(self.large), e, f]
    }

    /// Decodes a header.
    fn read(bytes: [u8; HEADER]) -> Result<Self, Malformed> {
        let [a, b, c, d, kind, large, e, f] = bytes;
        let kind = Kind::of(kind).ok_or(Malformed::Kind(kind))?;
        let (length, descriptors) = (u32::from_le_bytes([a, b, c, d]), u16::from_le_bytes([e, f]));
        Ok(Self { length, kind, large: large != 0, descriptors })
    }
}

/// What is wrong with what the other side has sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Malformed {
    /// There is no such kind, or not from that side.
    Kind(u8),
    /// It has this many bytes, which is too long.
    Long(u64),
    /// It names descriptors that did not arrive, or brings some that nobody wants.
    Descriptors,
    /// A memory file that can still be changed, or does not have the announced length.
    Unsealed,
    /// Its content is not frames.
    Frames,
    /// It answers something that it was not asked.
    Unasked,
    /// It has this many questions open, which is too many.
    Questions(usize),
}

impl fmt::Display for Malformed {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Kind(kind) => write!(f, "a message of unknown kind {kind}"),
            Self::Long(length) => write!(f, "a message of {length} bytes"),
            Self::Descriptors => f.write_str("descriptors that do not belong to a message"),
            Self::Unsealed => f.write_str("a memory file that is not sealed, or does not have the stated length"),
            Self::Frames => f.write_str("malformed frames"),
            Self::Unasked => f.write_str("an answer or a request out of turn"),
            Self::Questions(open) => write!(f, "{open} open questions at once"),
        }
    }
}

/// Separates what arrives into whole messages.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    /// Where the next message begins.
    at: usize,
    /// The longest body, in bytes.
    limit: u64,
}

/// The capacity that an emptied buffer keeps at most, in bytes.
const KEPT: usize = 1 << 20;

impl Decoder {
    /// A decoder for bodies of at most this many bytes.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self { buffer: Vec::new(), at: 0, limit }
    }

    /// Sets the longest body, in bytes.
    pub fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
    }

    /// Adds bytes that have arrived.
    pub fn feed(&mut self, bytes: &[u8]) {
        self.compact();
        self.buffer.extend_from_slice(bytes);
    }

    fn compact(&mut self) {
        if self.at == self.buffer.len() {
            self.buffer.clear();
            self.buffer.shrink_to(KEPT);
        } else if self.at > 0 {
            self.buffer.drain(..self.at);
        }
        self.at = 0;
    }

    /// How many bytes of the message that has begun are still missing, as far as is known.
    #[must_use]
    pub fn lacks(&self) -> usize {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some(header) = rest.first_chunk::<HEADER>().and_then(|header| Header::read(*header).ok()) else {
            return HEADER.saturating_sub(rest.len());
        };
        (HEADER + header.length as usize).saturating_sub(rest.len())
    }

    /// The next whole message, if it has arrived.
    ///
    /// # Errors
    /// If the bytes that have arrived are no message.
    pub fn message(&mut self) -> Result<Option<(Header, &[u8])>, Malformed> {
        let rest = self.buffer.get(self.at..).unwrap_or_default();
        let Some(header) = rest.first_chunk::<HEADER>() else { return Ok(None) };
        let header = Header::read(*header)?;
        if u64::from(header.length) > self.limit {
            return Err(Malformed::Long(header.length.into()));
        }
        let end = HEADER + header.length as usize;
        if rest.len() < end {
            return Ok(None);
        }
        let begin = self.at;
        self.at += end;
        Ok(self.buffer.get(begin + HEADER..begin + end).map(|body| (header, body)))
    }
}

/// Appends a log line, as a body.
pub fn put_line(out: &mut Vec<u8>, level: u8, target: &[u8], text: &[u8]) {
    out.push(level);
    out.extend_from_slice(&u32::try_from(target.len()).unwrap_or(u32::MAX).to_le_bytes());
    out.extend_from_slice(target);
    out.extend_from_slice(text);
}

/// A log line: level, target, text.
#[must_use]
pub fn line(body: &[u8]) -> Option<(u8, &[u8], &[u8])> {
    let (level, rest) = body.split_first()?;
    let (length, rest) = rest.split_first_chunk::<4>()?;
    let (target, text) = rest.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    Some((*level, target, text))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn message(kind: Kind, body: &[u8]) -> Vec<u8> {
        let header = Header { length: body.len() as u32, kind, large: false, descriptors: 0 };
        [&header.bytes()[..], body].concat()
    }

    #[test]
    fn a_line_of_the_log_is_read_as_written() {
        let mut body = Vec::new();
        put_line(&mut body, 3, b"todo", "saved ✓".as_bytes());
        assert_eq!(line(&body), Some((3, &b"todo"[..], "saved ✓".as_bytes())));
        for end in 0..5 {
            assert_eq!(line(&body[..end]), None);
        }
    }

    #[test]
    fn invalid_message_headers_are_errors() {
        let cases = [
            ([0, 0, 0, 0, 9, 0, 0, 0], Malformed::Kind(9)),
            ([0, 0, 0, 0, 0, 0, 0, 0], Malformed::Kind(0)),
            ([101, 0, 0, 0, 3, 0, 0, 0], Malformed::Long(101)),
            ([255, 255, 255, 255, 3, 0, 0, 0], Malformed::Long(u64::from(u32::MAX))),
        ];
        for (bytes, wrong) in cases {
            let mut decoder = Decoder::new(100);
            decoder.feed(&bytes);
            assert_eq!(decoder.message(), Err(wrong));
        }
    }

    proptest! {
        /// However a socket splits them, messages come out as they went in.
        #[test]
        fn messages_come_out_as_they_went_in(
            bodies in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 0..8),
            cuts in proptest::collection::vec(1_usize..200, 1..40),
        ) {
            let all: Vec<u8> = bodies.iter().flat_map(|body| message(Kind::Frames, body)).collect();
            let (mut decoder, mut found, mut at, mut cuts) = (Decoder::new(300), Vec::new(), 0, cuts.iter().cycle());
            while at < all.len() {
                let end = (at + cuts.next().copied().unwrap_or(1)).min(all.len());
                decoder.feed(&all[at..end]);
                at = end;
                while let Some((header, body)) = decoder.message().expect("they are messages") {
                    prop_assert_eq!(header.kind, Kind::Frames);
                    found.push(body.to_vec());
                }
            }
            prop_assert_eq!(found, bodies);
            prop_assert_eq!(decoder.lacks(), HEADER);
        }

        /// Any bytes are a message, a part of one, or an error.
        #[test]
        fn any_bytes_are_messages_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
            let mut decoder = Decoder::new(200);
            decoder.feed(&bytes);
            while let Ok(Some((header, body))) = decoder.message() {
                prop_assert_eq!(header.length as usize, body.len());
                let _ = line(body);
            }
        }
    }
}
