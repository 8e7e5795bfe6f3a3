//! What a slot needs of whoever keeps services' doors.

use std::time::Duration;

use plugin_api::abi::frame::ToHost;

use super::slot_no::SlotNo;

/// Which generation says something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Speaker<'s> {
    /// Its slot.
    pub slot: SlotNo,
    /// Its number.
    pub generation: u32,
    /// The service's name.
    pub service: &'s str,
    /// Whether it has yet to come to serve.
    pub embargoed: bool,
    /// Whether its successor serves already.
    pub retired: bool,
}

/// Who keeps the streams of services' own doors, and knows who logs in by them.
pub trait Doorkeeper: Send + Sync {
    /// A generation says something of its doors. Must not wait: it is said on the service's own thread.
    fn said(&self, from: Speaker<'_>, frame: &ToHost<'_>);

    /// A generation of this slot serves from now on: streams can be handed to it.
    fn serves(&self, slot: SlotNo, service: &str, generation: u32);

    /// Another generation is about to serve: frames that hand it what the one before has carried for this replacement.
    fn handed_on(&self, slot: SlotNo, replacement: u64) -> Vec<u8>;

    /// Nothing has come of the replacement: what was carried stays where it is.
    fn stays(&self, slot: SlotNo);

    /// How many streams of this slot are served by generations before this one.
    fn with_others(&self, _slot: SlotNo, _generation: u32) -> usize {
        0
    }

    /// How long code of a service's that was replaced may go on for connections that cannot be carried over, if not for as long
    /// as for calls.
    fn grace(&self, _service: &str) -> Option<Duration> {
        None
    }

    /// A generation has ended: whether none serves in its place; and whether it has said so itself, and was not given up.
    fn ended(&self, slot: SlotNo, service: &str, generation: u32, how: (bool, bool));
}

/// For hosts whose services have no doors of their own.
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
