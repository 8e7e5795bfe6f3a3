//! One end of the socket between the host and a worker: messages and descriptors in and out.

use std::collections::VecDeque;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{MemfdFlags, SealFlags};
use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags,
};

use super::wire::{Decoder, HEADER, Header, Kind, Malformed};

/// Longer bodies go through a memory file. In bytes: more than a socket takes at once.
const LARGE: usize = 256 << 10;
/// The most descriptors that the system sends at once.
const AT_ONCE: usize = 250;
/// How much is read at once, in bytes.
const READ: usize = 64 << 10;

/// The sending side.
#[derive(Debug, Default)]
pub(super) struct Outbound {
    /// Everything goes through the socket, however long it is: memory files cannot be made.
    plain: bool,
    /// What the socket has not taken yet, in order.
    waiting: VecDeque<Part>,
}

/// Bytes, and the descriptors that go with the first of them.
#[derive(Debug)]
struct Part {
    bytes: Vec<u8>,
    at: usize,
    descriptors: Vec<OwnedFd>,
}

impl Outbound {
    /// Sends a message, or as much of it as the socket takes at once; the rest waits for [`Outbound::go_on`].
    ///
    /// # Errors
    /// If nobody is at the other end any more, or the machine has no memory or descriptor for it.
    pub(super) fn send(
        &mut self,
        socket: &OwnedFd,
        kind: Kind,
        body: &[u8],
        descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        if body.len() <= LARGE || self.plain {
            return self.send_parts(socket, kind, false, body, descriptors);
        }
        let Ok(file) = sealed(body) else {
            // Without a descriptor for it, everything goes through the socket.
            return self.send_parts(socket, kind, false, body, descriptors);
        };
        let mut all = vec![file];
        all.extend(descriptors);
        self.send_parts(socket, kind, true, &(body.len() as u64).to_le_bytes(), all)
    }

    fn send_parts(
        &mut self,
        socket: &OwnedFd,
        kind: Kind,
        large: bool,
        body: &[u8],
        mut descriptors: Vec<OwnedFd>,
    ) -> io::Result<()> {
        let wrong = |_| io::Error::from(io::ErrorKind::InvalidInput);
        let length = u32::try_from(body.len()).map_err(wrong)?;
        let header = Header { length, kind, large, descriptors: u16::try_from(descriptors.len()).map_err(wrong)? };
        let mut bytes = header.bytes().to_vec();
        if descriptors.is_empty() && self.waiting.is_empty() {
            // Nearly all messages go this way: nothing is copied.
            let sent = send(socket, &[IoSlice::new(&bytes), IoSlice::new(body)], &[])?;
            if sent == HEADER + body.len() {
                return Ok(());
            }
            bytes.extend_from_slice(body);
            self.waiting.push_back(Part { bytes, at: sent, descriptors });
            return Ok(());
        }
        bytes.extend_from_slice(body);
        // One byte for each load of descriptors, except the last.
        while descriptors.len() > AT_ONCE {
            let rest = descriptors.split_off(AT_ONCE);
            let tail = bytes.split_off(1);
            self.waiting.push_back(Part { bytes: std::mem::replace(&mut bytes, tail), at: 0, descriptors });
            descriptors = rest;
        }
        self.waiting.push_back(Part { bytes, at: 0, descriptors });
        self.go_on(socket)
    }

    /// Sends what waits, as much as the socket takes.
    ///
    /// # Errors
    /// As [`Outbound::send`].
    pub(super) fn go_on(&mut self, socket: &OwnedFd) -> io::Result<()> {
        while let Some(part) = self.waiting.front_mut() {
            let rest = part.bytes.get(part.at..).unwrap_or_default();
            let borrowed: Vec<BorrowedFd<'_>> = part.descriptors.iter().map(AsFd::as_fd).collect();
            let sent = send(socket, &[IoSlice::new(rest)], &borrowed)?;
            if sent == 0 {
                return Ok(());
            }
            part.descriptors.clear();
            part.at += sent;
            if part.at == part.bytes.len() {
                self.waiting.pop_front();
            }
        }
        Ok(())
    }

    /// Makes no more memory files from now on.
    pub(super) fn be_plain(&mut self) {
        self.plain = true;
    }

    /// Whether something waits for room in the socket.
    pub(super) fn is_waiting(&self) -> bool {
        !self.waiting.is_empty()
    }
}

/// Returns how much the socket takes at once: nothing, if it is full.
fn send(socket: &OwnedFd, bytes: &[IoSlice<'_>], descriptors: &[BorrowedFd<'_>]) -> io::Result<usize> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() {
        // There is room for the most that are ever sent at once.
        control.push(SendAncillaryMessage::ScmRights(descriptors));
    }
    loop {
        match rustix::net::sendmsg(socket, bytes, &mut control, SendFlags::DONTWAIT | SendFlags::NOSIGNAL) {
            Ok(sent) => return Ok(sent),
            Err(rustix::io::Errno::INTR) => {}
            // The second: too many descriptors are in flight, until the other side has taken some.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::TOOMANYREFS) => return Ok(0),
            Err(error) => return Err(error.into()),
        }
    }
}

/// A memory file with these bytes, sealed against changes.
fn sealed(bytes: &[u8]) -> io::Result<OwnedFd> {
    let file = rustix::fs::memfd_create("credhost", MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING)?;
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        at += rustix::io::pwrite(&file, rest, at as u64)?;
    }
    rustix::fs::fcntl_add_seals(&file, SEALS)?;
    Ok(file)
}

const SEALS: SealFlags = SealFlags::WRITE.union(SealFlags::SHRINK).union(SealFlags::GROW).union(SealFlags::SEAL);

/// Copies what is in a memory file that the other side has sent, once it is known that it cannot change.
fn unsealed(file: &OwnedFd, length: u64) -> Result<Vec<u8>, Malformed> {
    let seals = rustix::fs::fcntl_get_seals(file).map_err(|_| Malformed::Unsealed)?;
    let is_so_long = rustix::fs::fstat(file).is_ok_and(|stat| u64::try_from(stat.st_size) == Ok(length));
    if !seals.contains(SEALS) || !is_so_long {
        return Err(Malformed::Unsealed);
    }
    let mut bytes = vec![0; usize::try_from(length).map_err(|_| Malformed::Long(length))?];
    let mut at = 0;
    while at < bytes.len() {
        match rustix::io::pread(file, &mut bytes[at..], at as u64) {
            Ok(read) if read > 0 => at += read,
            Err(rustix::io::Errno::INTR) => {}
            _ => return Err(Malformed::Unsealed),
        }
    }
    Ok(bytes)
}

/// The receiving side.
#[derive(Debug)]
pub(super) struct Inbound {
    decoder: Decoder,
    limit: u64,
    /// Descriptors that have arrived before their messages.
    descriptors: VecDeque<OwnedFd>,
    /// The most descriptors that may do so.
    most: usize,
    buffer: Box<[u8]>,
    /// Only descriptors of memory files are accepted.
    memory_alone: bool,
    /// This process had no descriptor left for one that the next message brings. It has those before that one.
    truncated: bool,
}

/// A complete message.
#[derive(Debug)]
pub(super) struct Message<'b> {
    pub(super) kind: Kind,
    pub(super) body: std::borrow::Cow<'b, [u8]>,
    pub(super) descriptors: Vec<OwnedFd>,
    /// Whether it should have some.
    pub(super) lends: bool,
}

/// The result of a read.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Come {
    /// Bytes have arrived.
    Some,
    /// Nothing has arrived.
    Nothing,
    /// The other side is gone.
    End,
}

impl Inbound {
    /// `limit` is the longest body, in bytes; `most` is how many descriptors may arrive ahead of their message.
    pub(super) fn new(limit: u64, most: usize) -> Self {
        let (decoder, buffer) = (Decoder::new(limit.min(u64::from(u32::MAX))), vec![0; READ].into());
        Self { decoder, limit, descriptors: VecDeque::new(), most, buffer, memory_alone: false, truncated: false }
    }

    /// Sets the longest body, in bytes.
    pub(super) fn set_limit(&mut self, limit: u64) {
        self.limit = limit;
        self.decoder.set_limit(limit.min(u64::from(u32::MAX)));
    }

    /// The other side is not trusted: only descriptors of memory files are accepted from it.
    pub(super) fn memory_alone(self) -> Self {
        Self { memory_alone: true, ..self }
    }

    /// Reads what has arrived, without waiting.
    ///
    /// # Errors
    /// If there are unwanted descriptors.
    pub(super) fn read(&mut self, socket: &OwnedFd) -> Result<Come, Malformed> {
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(AT_ONCE + 3))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        let flags = RecvFlags::DONTWAIT | RecvFlags::CMSG_CLOEXEC;
        let received = loop {
            match rustix::net::recvmsg(socket, &mut [IoSliceMut::new(&mut self.buffer)], &mut control, flags) {
                Ok(received) => break received,
                Err(rustix::io::Errno::INTR) => {}
                Err(rustix::io::Errno::AGAIN) => return Ok(Come::Nothing),
                Err(_) => return Ok(Come::End),
            }
        };
        for message in control.drain() {
            if let RecvAncillaryMessage::ScmRights(descriptors) = message {
                let descriptors = descriptors.collect::<Vec<_>>();
                if !self.truncated {
                    self.descriptors.extend(descriptors);
                }
            }
        }
        self.truncated |= received.flags.contains(ReturnFlags::CTRUNC);
        let other = |descriptor: &OwnedFd| rustix::fs::fcntl_get_seals(descriptor).is_err();
        let unwanted = self.memory_alone && self.descriptors.iter().any(other);
        if unwanted || self.truncated && self.memory_alone || self.descriptors.len() > self.most {
            // Closing a socket may take arbitrarily long: nothing waits for that.
            let unwanted = std::mem::take(&mut self.descriptors);
            let _ = std::thread::Builder::new().name("close".to_owned()).spawn(move || drop(unwanted));
            return Err(Malformed::Descriptors);
        }
        if received.bytes == 0 {
            return Ok(Come::End);
        }
        self.decoder.feed(self.buffer.get(..received.bytes).unwrap_or_default());
        Ok(Come::Some)
    }

    /// The next complete message.
    ///
    /// # Errors
    /// If it is invalid.
    pub(super) fn message(&mut self) -> Result<Option<Message<'_>>, Malformed> {
        let Some((header, body)) = self.decoder.message()? else { return Ok(None) };
        let mut count = usize::from(header.descriptors);
        if std::mem::take(&mut self.truncated) {
            // The missing ones are the last.
            count = count.min(self.descriptors.len());
        }
        if self.descriptors.len() < count || usize::from(header.large) > count {
            return Err(Malformed::Descriptors);
        }
        let mut descriptors: Vec<OwnedFd> = self.descriptors.drain(..count).collect();
        if !header.large {
            let lends = header.descriptors > 0;
            return Ok(Some(Message { kind: header.kind, body: body.into(), descriptors, lends }));
        }
        let length = body.first_chunk::<8>().map(|length| u64::from_le_bytes(*length)).ok_or(Malformed::Unsealed)?;
        if length > self.limit {
            return Err(Malformed::Long(length));
        }
        let file = descriptors.remove(0);
        let lends = header.descriptors > 1;
        Ok(Some(Message { kind: header.kind, body: unsealed(&file, length)?.into(), descriptors, lends }))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixStream;

    use super::*;

    fn pair() -> (OwnedFd, OwnedFd) {
        let (a, b) = UnixStream::pair().expect("a pair of sockets");
        (a.into(), b.into())
    }

    /// All messages that arrive until the other side has nothing more to send.
    fn exchanged(bodies: &[(Vec<u8>, usize)]) -> Vec<(usize, u64, usize)> {
        let (a, b) = pair();
        let (mut out, mut inbound, mut found) = (Outbound::default(), Inbound::new(64 << 20, 2_000), Vec::new());
        for (body, descriptors) in bodies {
            let descriptors = (0..*descriptors).map(|_| a.try_clone().expect("a descriptor")).collect();
            out.send(&a, Kind::Batch, body, descriptors).expect("it is sent");
        }
        loop {
            out.go_on(&a).expect("it is sent");
            let come = inbound.read(&b).expect("it is a message");
            while let Some(message) = inbound.message().expect("it is a message") {
                let sum = message.body.iter().map(|byte| u64::from(*byte)).sum();
                found.push((message.body.len(), sum, message.descriptors.len()));
            }
            if come == Come::Nothing && !out.is_waiting() {
                return found;
            }
        }
    }

    #[test]
    fn messages_of_all_sizes_and_their_descriptors_come_in_order() {
        let mut bodies = Vec::new();
        for (number, size) in [0, 1, 100, LARGE, LARGE + 1, 3 << 20, 7, 1 << 20, 50_000].into_iter().enumerate() {
            bodies.push((vec![number as u8 + 1; size], number * 3));
        }
        // More descriptors than can be sent at once.
        bodies.push((vec![1; 2_000], 700));
        bodies.push((vec![2; 10], 0));
        let expected: Vec<_> = bodies
            .iter()
            .map(|(body, descriptors)| (body.len(), body.iter().map(|b| u64::from(*b)).sum(), *descriptors))
            .collect();
        assert_eq!(exchanged(&bodies), expected);
    }

    #[test]
    fn unexpected_descriptors_and_unsealed_files_are_errors() {
        let (a, b) = pair();
        let mut inbound = Inbound::new(1 << 20, 4);
        let mut out = Outbound::default();
        let many = (0..9).map(|_| a.try_clone().expect("a descriptor")).collect();
        out.send(&a, Kind::Frames, b"x", many).expect("it is sent");
        assert_eq!(inbound.read(&b), Err(Malformed::Descriptors));

        type Make = fn() -> OwnedFd;
        let files: [(&str, u64, Make); 4] = [
            ("no memory file", 5, || std::fs::File::open("/dev/zero").expect("it is there").into()),
            ("not sealed", 5, || {
                let file = rustix::fs::memfd_create("t", MemfdFlags::ALLOW_SEALING).expect("a memory file");
                rustix::io::pwrite(&file, b"hello", 0).expect("it is written");
                file
            }),
            ("shorter than it says", 6, || sealed(b"hello").expect("a memory file")),
            ("longer than it may be", 2 << 20, || sealed(b"hello").expect("a memory file")),
        ];
        for (what, length, file) in files {
            let (a, b) = pair();
            let (mut out, mut inbound) = (Outbound::default(), Inbound::new(1 << 20, 4));
            out.send_parts(&a, Kind::Frames, true, &length.to_le_bytes(), vec![file()]).expect("it is sent");
            assert_eq!(inbound.read(&b), Ok(Come::Some), "{what}");
            assert!(inbound.message().is_err(), "{what}");
        }
        // Fewer descriptors than the header says.
        let (a, b) = pair();
        let header = Header { length: 0, kind: Kind::Frames, large: false, descriptors: 1 };
        rustix::io::write(&a, &header.bytes()).expect("it is written");
        let mut inbound = Inbound::new(100, 4);
        assert_eq!(inbound.read(&b), Ok(Come::Some));
        assert!(matches!(inbound.message(), Err(Malformed::Descriptors)));
    }
}
