//! From a generation's thread to a connection's: finds connections by their numbers.
//!
//! The upper half of the number of a call, an attachment or a handle is the connection's number, so an answer finds its way by
//! its number alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::memory::{Kept, Meter};

/// The mail of one connection: frames of services, each with the slot that it comes from.
#[derive(Debug, Default)]
pub struct Mailbox {
    frames: Mutex<Vec<u8>>,
    come: Notify,
    closed: AtomicBool,
    full: AtomicBool,
    meter: Arc<Meter>,
    /// The most bytes that may wait for the client, even if the memory budget has room.
    most: usize,
}

impl Mailbox {
    /// A mailbox of the connection that `meter` counts for. At most `most` bytes may wait for its client, even if the memory
    /// budget has room.
    #[must_use]
    pub fn new(meter: Arc<Meter>, most: usize) -> Self {
        Self { meter, most, ..Self::default() }
    }

    /// The connection's meter.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

/// What it means to the client if a frame is not delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// An answer. An error can replace it. There are no more answers than calls.
    Answer,
    /// A service's own call, which may fail. Their number has no limit.
    Call,
    /// Something that nothing can replace and that somebody waits for: an error, an end. These are few and small.
    Must,
    /// A change that nothing can replace. A client that leaves too many unread is disconnected.
    Change,
}

/// The result of putting a frame into a mailbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is in. True: the mailbox was empty, and its owner must be woken.
    In(bool),
    /// The client would exceed its share.
    Over,
    /// Nobody will take it out.
    Gone,
}

/// Answers of up to this many bytes are always accepted.
const SMALL: usize = 1 << 10;

impl Mailbox {
    /// Puts a frame in.
    fn push(&self, slot: u64, frame: &[u8], weight: Weight) -> Put {
        let mut frames = self.frames.lock();
        if self.closed.load(Ordering::Relaxed) {
            return Put::Gone;
        }
        let size = frame.len() + 8;
        let over = || self.meter.untaken() + size > self.most || !self.meter.admits(size);
        if (weight == Weight::Call || weight == Weight::Answer && frame.len() > SMALL) && over() {
            return Put::Over;
        }
        if weight == Weight::Change && over() {
            // It must not be left out: from then on the client's copy would be wrong.
            self.full.store(true, Ordering::Relaxed);
            return Put::Gone;
        }
        self.meter.add(Kept::Mail, size);
        let empty = frames.is_empty();
        frames.extend_from_slice(&slot.to_le_bytes());
        frames.extend_from_slice(frame);
        Put::In(empty)
    }

    /// Takes the last frames and closes the mailbox: no more are put in.
    pub fn close(&self, last: &mut Vec<u8>) {
        let mut frames = self.frames.lock();
        self.closed.store(true, Ordering::Relaxed);
        last.clear();
        std::mem::swap(&mut *frames, last);
        drop(frames);
        self.meter.sub(Kept::Mail, last.len());
        self.meter.close();
    }

    /// Swaps the contents for an empty buffer: slot numbers of eight bytes, little-endian, each before its frame. They count as
    /// mail until [`Mailbox::served`]. Returns false if the limit was exceeded and a frame is lost.
    pub fn take(&self, empty: &mut Vec<u8>) -> bool {
        empty.clear();
        std::mem::swap(&mut *self.frames.lock(), empty);
        !self.full.load(Ordering::Relaxed)
    }

    /// Frames of this many bytes are processed, and no longer count as mail.
    pub fn served(&self, bytes: usize) {
        if bytes > 0 {
            self.meter.sub(Kept::Mail, bytes);
        }
    }

    /// Wakes the owner for another reason than mail.
    pub fn wake(&self) {
        self.come.notify_one();
    }

    /// Waits until something arrives.
    pub async fn come(&self) {
        self.come.notified().await;
    }
}

/// The length in bytes of the first frames of mail, with their slots: as many as fit into `most` together, and at least one.
#[must_use]
pub fn first_frames(mail: &[u8], most: usize) -> usize {
    let mut end = 0;
    while let Some((_, frame)) = mail[end..].split_first_chunk::<8>() {
        let Some((length, _)) = frame.split_first_chunk::<4>() else { return mail.len() };
        let next = end.saturating_add(12).saturating_add(u32::from_le_bytes(*length) as usize);
        if next > mail.len() {
            return mail.len();
        }
        if next > most && end > 0 {
            return end;
        }
        end = next;
    }
    mail.len()
}

/// All connections, by number.
#[derive(Debug, Default)]
pub struct Router {
    next: AtomicU32,
    mailboxes: RwLock<HashMap<u32, Arc<Mailbox>>>,
}

impl Router {
    /// A router without connections.
    #[must_use]
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Adds a connection; returns its number and its mailbox. See [`Mailbox::new`].
    pub fn connect(&self, meter: Arc<Meter>, most: usize) -> (u32, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::new(meter, most));
        let mut mailboxes = self.mailboxes.write();
        loop {
            // No connection has the number zero: a handle of zero means none.
            let number = self.next.fetch_add(1, Ordering::Relaxed).wrapping_add(1);
            if number != 0 && !mailboxes.contains_key(&number) {
                mailboxes.insert(number, Arc::clone(&mailbox));
                return (number, mailbox);
            }
        }
    }

    /// The connection has ended.
    pub fn disconnect(&self, number: u32) {
        self.mailboxes.write().remove(&number);
    }

    /// Wakes every connection, for another reason than mail.
    pub fn wake_all(&self) {
        let mailboxes: Vec<Arc<Mailbox>> = self.mailboxes.read().values().cloned().collect();
        mailboxes.iter().for_each(|mailbox| mailbox.wake());
    }

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.mailboxes.read().len()
    }

    /// Hands a frame to every connection.
    pub(super) fn broadcast(&self, slot: u64, frame: &[u8]) {
        let mailboxes: Vec<Arc<Mailbox>> = self.mailboxes.read().values().cloned().collect();
        for mailbox in mailboxes {
            if mailbox.push(slot, frame, Weight::Must) == Put::In(true) {
                mailbox.come.notify_one();
            }
        }
    }

    fn find(&self, number: u64) -> Option<Arc<Mailbox>> {
        let connection = u32::try_from(number >> 32).ok()?;
        self.mailboxes.read().get(&connection).cloned()
    }
}

/// Whether a frame has reached a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Delivered {
    Yes,
    /// The client would exceed its share: it gets nothing longer than an error.
    Over,
    /// The connection has ended.
    Gone,
}

/// A batch of frames that is being delivered. Wakes each connection once.
#[derive(Debug)]
pub(super) struct Delivery<'s> {
    router: &'s Router,
    last: Option<(u32, Arc<Mailbox>)>,
    woken: Vec<Arc<Mailbox>>,
}

impl<'s> Delivery<'s> {
    pub(super) fn new(router: &'s Router) -> Self {
        Self { router, last: None, woken: Vec::new() }
    }

    /// Hands a frame to the connection whose number is in `number`.
    pub(super) fn deliver(&mut self, number: u64, slot: u64, frame: &[u8], weight: Weight) -> Delivered {
        let connection = (number >> 32) as u32;
        if self.last.as_ref().is_none_or(|(last, _)| *last != connection) {
            let Some(mailbox) = self.router.find(number) else {
                return Delivered::Gone;
            };
            self.last = Some((connection, mailbox));
        }
        let Some((_, mailbox)) = &self.last else { return Delivered::Gone };
        match mailbox.push(slot, frame, weight) {
            Put::In(true) => self.woken.push(Arc::clone(mailbox)),
            Put::In(false) => {}
            Put::Over => return Delivered::Over,
            Put::Gone => return Delivered::Gone,
        }
        Delivered::Yes
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        for mailbox in &self.woken {
            mailbox.come.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use plugin_api::abi::frame::ToHost;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        /// The parts together are the mail. Each part consists of whole frames, and is no longer than wanted unless it is a
        /// single frame.
        #[test]
        fn parts_are_whole_frames(sizes in proptest::collection::vec(0..300usize, 0..40), most in 0..1000usize) {
            let mut mail = Vec::new();
            for (slot, size) in sizes.iter().enumerate() {
                mail.extend_from_slice(&(slot as u64).to_le_bytes());
                ToHost::Refused { message: &"x".repeat(*size) }.write(&mut mail);
            }
            let (mut at, mut seen) = (0, 0);
            while at < mail.len() {
                let part = &mail[at..at + first_frames(&mail[at..], most)];
                let (mut rest, mut frames) = (part, 0);
                while let Some((slot, frame)) = rest.split_first_chunk::<8>() {
                    prop_assert_eq!(u64::from_le_bytes(*slot), seen);
                    rest = frame;
                    let said = ToHost::read(&mut rest);
                    let message = "x".repeat(sizes[seen as usize]);
                    prop_assert_eq!(said, Some(ToHost::Refused { message: &message }));
                    (seen, frames) = (seen + 1, frames + 1);
                }
                prop_assert!(frames == 1 || part.len() <= most, "{} frames, {} bytes of {most}", frames, part.len());
                at += part.len();
            }
            prop_assert_eq!(seen, sizes.len() as u64);
        }
    }

    #[test]
    fn malformed_mail_is_one_part() {
        for mail in [&[][..], &[1; 7], &[1; 11], &[255; 30]] {
            assert_eq!(first_frames(mail, 5), mail.len());
        }
    }
}
