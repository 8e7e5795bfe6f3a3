//! The hand-over between generations: the old one freezes, hands over, and ends; the new one adopts what it receives.

use super::{Attaching, Runtime, contained, settle};
use crate::abi::frame::{self, ToHost, ToLibrary};
use crate::handle::{AnyHandle, NAMED, PERSPECTIVE};
use crate::service::Service;

impl<S: Service> Runtime<S> {
    /// Whether another generation serves, and no call and no stream is left here.
    pub(super) fn is_done(&self) -> bool {
        self.core.retired.get() && self.suspended.borrow().is_empty() && self.core.doors.open() == 0
    }

    pub(super) fn is_attaching(&self) -> bool {
        self.attachments.borrow().values().any(|attaching| matches!(attaching, Attaching::Pending { .. }))
    }

    /// Saves everything, and blocks the thread until the host says how to continue. `kept` receives the frames that arrive
    /// meanwhile.
    pub(super) fn freeze(&self, request: u64, kept: &mut Vec<u8>) {
        let core = &self.core;
        let live = self.perspectives.borrow().live();
        let saved = live
            .iter()
            .try_for_each(|perspective| {
                let saved = contained("save", || perspective.hand_over());
                // Pass large states on immediately, instead of buffering all of them.
                core.flush_large();
                saved
            })
            .and_then(|()| self.service().and_then(|service| contained("save", || service.hand_over())));
        let states = live.iter().filter(|perspective| perspective.is_saved()).count() as u64;
        drop(live);
        if let Err(fault) = saved {
            let message = format!(
                "the old code cannot save its state ({fault}); to discard the unsaved changes, stop and start the service"
            );
            core.push(&ToHost::Refused { message: &message });
            return core.flush();
        }
        core.doors.freeze(core, request);
        let calls: Vec<u8> = self.suspended.borrow().keys().flat_map(|call| call.to_le_bytes()).collect();
        let (objects, numbers, copies) = (core.heirlooms(), core.numbered.get(), core.copies.frozen(core));
        core.push(&ToHost::Frozen { request, calls: &calls, objects: &objects, numbers, states, copies: &copies });
        core.flush();
        // No task runs meanwhile, because the thread itself blocks.
        let mut looked_at = 0;
        loop {
            let mut rest = kept.get(looked_at..).unwrap_or_default();
            while let Some(frame) = ToLibrary::read(&mut rest) {
                if matches!(frame, ToLibrary::Thaw {} | ToLibrary::Retire {} | ToLibrary::Stop {}) {
                    return;
                }
            }
            looked_at = kept.len() - rest.len();
            core.wall.wait();
            core.wall.pop(kept);
        }
    }

    /// Another generation serves. Only suspended calls remain here.
    pub(super) fn retire(&self) {
        self.core.retire();
        self.tasks.take().abort_all();
        self.revoked.borrow_mut().clear();
        // Handles that calls hold stay valid. The attachments end here without notice: the clients are attached to the new
        // generation.
        let attachments = std::mem::take(&mut *self.attachments.borrow_mut());
        let kept = self.perspectives.borrow_mut().release_all();
        drop((attachments, kept));
    }

    /// Rebuilds objects that an earlier generation has handed out.
    pub(super) async fn adopt(&self, objects: &[u8]) {
        let mut adopted = 0;
        for (id, count, origin) in frame::objects(objects) {
            let made = if let Some(name) = origin.strip_prefix(PERSPECTIVE) {
                settle("perspective", self.perspective(name)).await.map(|found| AnyHandle::from(found).0)
            } else if let Some(name) = origin.strip_prefix(NAMED) {
                settle("rebuild", S::rebuild(self.context(), name.to_owned())).await.map(|AnyHandle(object)| object)
            } else {
                continue;
            };
            match made {
                Ok(object) => {
                    self.core.adopt(id, count, object);
                    adopted += 1;
                }
                Err(fault) => tracing::warn!(origin, %fault, "an object that clients hold cannot be rebuilt"),
            }
        }
        self.core.push(&ToHost::Adopted { objects: adopted });
    }
}
