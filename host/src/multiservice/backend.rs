//! What a session needs of a service, and of services by name. Slots implement it, and so do tests.

use std::sync::Arc;

use plugin_api::abi::frame::ToLibrary;

use super::context::SlotNo;
use super::current::AttachmentChange;
use crate::loader::fault::LibraryFault;
use crate::loader::gate::Lane;

/// Where a session sends its frames for one service.
pub trait Backend: Send + Sync {
    /// Its slot's number.
    fn number(&self) -> SlotNo;

    /// Its [`Manifest`](plugin_api::manifest::Manifest), in Jelly.
    fn described(&self) -> Vec<u8>;

    /// Hands over a connection's frames in order, with the changes of attachments that they cause. `calls` of the frames are
    /// calls.
    ///
    /// # Errors
    /// If it does not serve or does not keep up; then nothing was handed over.
    fn submit(
        &self,
        lane: &Lane,
        frames: &[u8],
        changes: &mut Vec<AttachmentChange>,
        calls: u64,
    ) -> Result<(), LibraryFault>;

    /// Hands over frames that end something. They are accepted regardless of limits.
    fn submit_anyway(&self, lane: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>);

    /// Hands answers to the generation that asked. Returns false if that is gone.
    fn answer(&self, lane: &Lane, generation: u32, frames: &[u8]) -> bool;

    /// The access of these attachments was revoked: their calls that wait must not begin. Their end itself is reported in
    /// order, as with any other.
    fn revoke(&self, attachments: &[u64]);

    /// Sends a frame to all running code of the service, ahead of everything that waits.
    fn urge(&self, frame: &ToLibrary<'_>) {
        self.notify_retired(frame);
    }

    /// Sends a frame to replaced generations that still run.
    fn notify_retired(&self, frame: &ToLibrary<'_>);
}

/// Services by name.
pub trait Backends: Send + Sync {
    /// The service of this name.
    fn backend(&self, name: &str) -> Option<Arc<dyn Backend>>;

    /// The service of this name for this identity, which may be trying another version.
    fn backend_for(&self, name: &str, identity: &str) -> Option<Arc<dyn Backend>> {
        let _ = identity;
        self.backend(name)
    }
}
