//! What a session needs of a service, and of services by name. A slot is one, a test's is another.

use std::sync::Arc;

use plugin_api::abi::frame::ToLibrary;

use super::context::SlotNo;
use super::current::AttachmentChange;
use crate::loader::fault::LibraryFault;
use crate::loader::gate::Lane;

/// Where a session's frames for one service go.
pub trait Backend: Send + Sync {
    /// Its slot's number.
    fn number(&self) -> SlotNo;

    /// What it says of itself, in Jelly: a [`Manifest`](plugin_api::manifest::Manifest).
    fn described(&self) -> Vec<u8>;

    /// Hands over a connection's frames in order, and what they change in who is attached. `calls` of them are calls.
    ///
    /// # Errors
    /// When it does not serve, or does not keep up; nothing was handed over then.
    fn submit(
        &self,
        lane: &Lane,
        frames: &[u8],
        changes: &mut Vec<AttachmentChange>,
        calls: u64,
    ) -> Result<(), LibraryFault>;

    /// Hands over what ends something: it is never too much.
    fn submit_anyway(&self, lane: &Lane, frames: &[u8], changes: &mut Vec<AttachmentChange>);

    /// Hands answers to the generation that asked; false: it is not there any more.
    fn answer(&self, lane: &Lane, generation: u32, frames: &[u8]) -> bool;

    /// What these attachments came by was taken away: calls by them that wait do not begin any more. Their end itself is
    /// told in order, as with any other.
    fn revoke(&self, attachments: &[u64]);

    /// Tells whatever code of the service's runs, ahead of all that waits.
    fn urge(&self, frame: &ToLibrary<'_>) {
        self.notify_retired(frame);
    }

    /// Tells generations that were replaced.
    fn notify_retired(&self, frame: &ToLibrary<'_>);
}

/// Services by name.
pub trait Backends: Send + Sync {
    /// The service of this name.
    fn backend(&self, name: &str) -> Option<Arc<dyn Backend>>;

    /// The service of this name, as it serves this identity: it may be trying another version.
    fn backend_for(&self, name: &str, identity: &str) -> Option<Arc<dyn Backend>> {
        let _ = identity;
        self.backend(name)
    }
}
