//! From a generation's thread to a connection's: who is where.
//!
//! Calls, attachments and handles are numbers whose upper half is the connection's, so that an answer finds its way
//! by its number alone.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

/// What has come for one connection: frames of services, each with the slot it comes from.
#[derive(Debug, Default)]
pub struct Mailbox {
    frames: Mutex<Vec<u8>>,
    come: Notify,
    full: AtomicBool,
    closed: AtomicBool,
}

/// What may wait in a mailbox, in bytes: its connection takes it out at once, whatever its client does.
const LIMIT: usize = 64 << 20;

impl Mailbox {
    /// Puts a frame in; true if the mailbox was empty, and who owns it is to be woken. `None`: nobody will take it out.
    fn push(&self, slot: u64, frame: &[u8]) -> Option<bool> {
        let mut frames = self.frames.lock();
        if self.closed.load(Ordering::Relaxed) {
            return None;
        }
        if frames.len() > LIMIT {
            // The connection is let go of when it looks; nothing of it is answered any more.
            self.full.store(true, Ordering::Relaxed);
            return None;
        }
        let empty = frames.is_empty();
        frames.extend_from_slice(&slot.to_le_bytes());
        frames.extend_from_slice(frame);
        Some(empty)
    }

    /// Takes what has come last: nothing is put in any more.
    pub fn close(&self, last: &mut Vec<u8>) {
        let mut frames = self.frames.lock();
        self.closed.store(true, Ordering::Relaxed);
        last.clear();
        std::mem::swap(&mut *frames, last);
    }

    /// Swaps what has come for an empty buffer: slot numbers of eight bytes, little-endian, each before its frame.
    /// False: more came than is kept, and some of it is lost.
    pub fn take(&self, empty: &mut Vec<u8>) -> bool {
        empty.clear();
        std::mem::swap(&mut *self.frames.lock(), empty);
        !self.full.load(Ordering::Relaxed)
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

    /// A number and a mailbox for a connection.
    pub fn connect(&self) -> (u32, Arc<Mailbox>) {
        let mailbox = Arc::new(Mailbox::default());
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

    /// How many connections there are.
    #[must_use]
    pub fn connections(&self) -> usize {
        self.mailboxes.read().len()
    }

    /// Hands a frame to every connection.
    pub(super) fn broadcast(&self, slot: u64, frame: &[u8]) {
        let mailboxes: Vec<Arc<Mailbox>> = self.mailboxes.read().values().cloned().collect();
        for mailbox in mailboxes {
            if mailbox.push(slot, frame) == Some(true) {
                mailbox.come.notify_one();
            }
        }
    }

    fn find(&self, number: u64) -> Option<Arc<Mailbox>> {
        let connection = u32::try_from(number >> 32).ok()?;
        self.mailboxes.read().get(&connection).cloned()
    }
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

    /// Hands a frame to the connection whose number is in `number`; false if it has gone.
    pub(super) fn deliver(&mut self, number: u64, slot: u64, frame: &[u8]) -> bool {
        let connection = (number >> 32) as u32;
        if self.last.as_ref().is_none_or(|(last, _)| *last != connection) {
            let Some(mailbox) = self.router.find(number) else {
                return false;
            };
            self.last = Some((connection, mailbox));
        }
        let Some((_, mailbox)) = &self.last else { return false };
        match mailbox.push(slot, frame) {
            Some(true) => self.woken.push(Arc::clone(mailbox)),
            Some(false) => {}
            None => return false,
        }
        true
    }
}

impl Drop for Delivery<'_> {
    fn drop(&mut self) {
        for mailbox in &self.woken {
            mailbox.come.notify_one();
        }
    }
}
