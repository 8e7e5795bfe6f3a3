//! What a slot needs from the keeper of services' doors.

use std::time::Duration;

use plugin_api::abi::frame::ToHost;

use super::slot_no::SlotNo;

/// The generation that sends a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker<'s> {
    /// Its slot.
    pub slot: SlotNo,
    /// Its number.
    pub generation: u32,
    /// The service's name.
    pub service: &'s str,
    /// Whether it does not serve yet.
    pub embargoed: bool,
    /// Whether its successor already serves.
    pub retired: bool,
}

/// Keeps the streams of services' own doors, and their logins.
pub trait Doorkeeper: Send + Sync {
    /// Handles a generation's frame about its doors. Must not block: it runs on the service's own thread.
    fn said(&self, from: Speaker<'_>, frame: &ToHost<'_>);

    /// A generation of this slot serves from now on, and can receive streams.
    fn serves(&self, slot: SlotNo, service: &str, generation: u32);

    /// Called before another generation serves. Returns the frames that hand it what its predecessor carried over for this
    /// replacement.
    fn handed_on(&self, slot: SlotNo, replacement: u64) -> Vec<u8>;

    /// The replacement failed: what was carried over stays where it is.
    fn stays(&self, slot: SlotNo);

    /// How many streams of this slot earlier generations serve.
    fn with_others(&self, _slot: SlotNo, _generation: u32) -> usize {
        0
    }

    /// How long replaced code of a service may continue for connections that cannot be carried over. `None`: as long as for
    /// calls.
    fn grace(&self, _service: &str) -> Option<Duration> {
        None
    }

    /// A generation has ended. `how`: whether none serves in its place; and whether it reported its end itself and was not
    /// given up.
    fn ended(&self, slot: SlotNo, service: &str, generation: u32, how: (bool, bool));
}

/// A doorkeeper for hosts whose services have no doors of their own.
#[derive(Debug, Clone, Copy, Default)]
pub struct NoDoors;

impl Doorkeeper for NoDoors {
    fn said(&self, from: Speaker<'_>, frame: &ToHost<'_>) {
        if let ToHost::Listen { listener, .. } = frame {
            tracing::debug!(service = from.service, listener, "this host has no doors for services");
        }
    }

    fn serves(&self, _: SlotNo, _: &str, _: u32) {}

    fn handed_on(&self, _: SlotNo, _: u64) -> Vec<u8> {
        Vec::new()
    }

    fn stays(&self, _: SlotNo) {}

    fn ended(&self, _: SlotNo, _: &str, _: u32, _: (bool, bool)) {}
}
