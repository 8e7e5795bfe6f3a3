//! From a generation's thread to a connection's: who is where.
//!
//! Calls, attachments and handles are numbers whose upper half is the connection's, so that an answer finds its way
//! by its number alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::memory::{Kept, Meter};

/// What has come for one connection: frames of services, each with the slot it comes from.
#[derive(Debug, Default)]
pub struct Mailbox {
    frames: Mutex<Vec<u8>>,
    come: Notify,
    closed: AtomicBool,
    full: AtomicBool,
    meter: Arc<Meter>,
    /// What may wait for the client, in bytes, however much there is for all.
    most: usize,
}

impl Mailbox {
    /// A mailbox of a connection, for which so much is kept: `most` bytes, however much there is for all.
    #[must_use]
    pub fn new(meter: Arc<Meter>, most: usize) -> Self {
        Self { meter, most, ..Self::default() }
    }

    /// What is kept for the connection.
    #[must_use]
    pub fn meter(&self) -> &Arc<Meter> {
        &self.meter
    }
}

/// What it means to the client that a frame does not reach it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Weight {
    /// An answer, in place of which an error can be told. There are no more of them than calls.
    Answer,
    /// A service's own call, which can fail. There is no end of them.
    Call,
    /// Something that nothing can stand for, and that somebody waits for: an error, an end. They are few, and small.
    Must,
    /// A change that nothing can stand for: who does not read so many is let go.
    Change,
}

/// What became of a frame for a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Put {
    /// It is in; true: the mailbox was empty, and its owner is to be woken.
    In(bool),
    /// More would be kept for the client than its share.
    Over,
    /// Nobody will take it out.
    Gone,
}

/// What is not longer is taken always, in bytes: errors among them.
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
            // It must not be left out: the client's copy would be another from then on.
            self.full.store(true, Ordering::Relaxed);
            return Put::Gone;
        }
        self.meter.add(Kept::Mail, size);
        let empty = frames.is_empty();
        frames.extend_from_slice(&slot.to_le_bytes());
        frames.extend_from_slice(frame);
        Put::In(empty)
    }

    /// Takes what has come last: nothing is put in any more.
    pub fn close(&self, last: &mut Vec<u8>) {
        let mut frames = self.frames.lock();
        self.closed.store(true, Ordering::Relaxed);
        last.clear();
        std::mem::swap(&mut *frames, last);
        drop(frames);
        self.meter.sub(Kept::Mail, last.len());
        self.meter.close();
    }

    /// Swaps what has come for an empty buffer: slot numbers of eight bytes, little-endian, each before its frame.
    /// It counts as mail until [`Mailbox::served`]. False: more came than is kept, and some of it is lost.
    pub fn take(&self, empty: &mut Vec<u8>) -> bool {
        empty.clear();
        std::mem::swap(&mut *self.frames.lock(), empty);
        !self.full.load(Ordering::Relaxed)
    }

    /// What was taken out is served: what is left of it is the client's to read.
    pub fn served(&self, bytes: usize) {
        if bytes > 0 {
            self.meter.sub(Kept::Mail, bytes);
        }
    }

    /// Wakes who waits, for another reason.
    pub fn wake(&self) {
        self.come.notify_one();
    }

    /// Waits until something has come.
    pub async fn come(&self) {
        self.come.notified().await;
    }
}

/// How many bytes the first frames of mail have, with their slots: as many as are no more than `most` together, and one at least.
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

    /// A number and a mailbox for a connection: see [`Mailbox::new`].
    pub fn connect(&self, meter: Arc<Meter>, most: usize) -> (u32, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::new(meter, most));
        let mut mailboxes = self.mailboxes.write();
        loop {
            // Zero is no connection's: a handle of zero means none.
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
    /// More would be kept for the client than its share: nothing that is longer than an error is taken.
    Over,
    /// It has gone.
    Gone,
}

/// One batch of frames on its way: wakes each connection once.
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
        /// Mail in parts is the same mail: each part is whole frames, no more than was wanted unless it is one.
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
    fn what_is_no_mail_is_one_part() {
        for mail in [&[][..], &[1; 7], &[1; 11], &[255; 30]] {
            assert_eq!(first_frames(mail, 5), mail.len());
        }
    }
}
