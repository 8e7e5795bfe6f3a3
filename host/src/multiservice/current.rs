//! Which generation serves: many hand frames to it, one replaces it or takes it away. A test walks all interleavings
//! (`tests/tests/gate_model.rs`); that is why its locks come from `super::sync`.

use std::collections::HashMap;

use super::sync::{Arc, RwLock};

/// The generation of a slot that serves now, if any; what waits during a replacement; and the attachments.
#[derive(Debug)]
pub(super) struct Current<G, L>(RwLock<Now<G, L>>);

#[derive(Debug)]
struct Now<G, L> {
    generation: Option<Arc<G>>,
    /// During a replacement: what has arrived since the freeze.
    frozen: Option<Waiting<L>>,
    attached: HashMap<u64, Attachment>,
    next: u64,
}

#[derive(Debug)]
struct Waiting<L> {
    /// In order, each with its lane.
    frames: Vec<(L, Vec<u8>)>,
    bytes: usize,
    /// How many of the bytes each owner has.
    owned: HashMap<usize, usize>,
    changes: Vec<AttachmentChange>,
    /// Attachments whose calls must not begin any more.
    revoked: Vec<u64>,
}

impl<L> Default for Waiting<L> {
    fn default() -> Self {
        Self { frames: Vec::new(), bytes: 0, owned: HashMap::new(), changes: Vec::new(), revoked: Vec::new() }
    }
}

/// How the next generation learns of an attachment.
#[derive(Debug)]
struct Attachment {
    order: u64,
    frame: Vec<u8>,
    let_go: bool,
}

/// A change of attachments, with the frame that hands it over.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "a test has this file as a part of its own")]
pub enum AttachmentChange {
    /// This attachment has begun; the frame that tells the next generation.
    Attached(u64, Vec<u8>),
    /// It lives on, although its client has released the perspective. From now on this frame tells the next generation.
    LetGo(u64, Vec<u8>),
    /// It has ended.
    Ended(u64),
}

/// Why nothing was handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotHanded<E> {
    /// Nothing serves.
    Ended,
    /// The generation refuses it.
    Refused(E),
    /// Too much waits already, for its owner or in all.
    Full,
}

impl<G, L> Current<G, L> {
    pub(super) fn new(generation: Arc<G>) -> Self {
        let (generation, attached) = (Some(generation), HashMap::new());
        Self(RwLock::new(Now { generation, frozen: None, attached, next: 0 }))
    }

    /// Hands over an owner's frames. The lock is held meanwhile, so that nothing reaches a generation that was taken away.
    /// During a replacement they wait, in the lane that `waits` returns. `waits` is given how many bytes wait already, of this
    /// owner and in all; if it returns `None`, the frames are refused.
    pub(super) fn hand_over<E>(
        &self,
        (owner, frames): (usize, &[u8]),
        changes: &mut Vec<AttachmentChange>,
        waits: impl FnOnce(usize, usize) -> Option<L>,
        push: impl FnOnce(&G) -> Result<(), E>,
    ) -> Result<(), NotHanded<E>> {
        if changes.is_empty() {
            let now = self.0.read();
            let Some(generation) = &now.generation else { return Err(NotHanded::Ended) };
            if now.frozen.is_none() {
                return push(generation).map_err(NotHanded::Refused);
            }
        }
        let mut now = self.0.write();
        let Now { generation, frozen, .. } = &mut *now;
        let Some(generation) = generation else { return Err(NotHanded::Ended) };
        match frozen {
            Some(waiting) => {
                let own = waiting.owned.entry(owner).or_default();
                let lane = waits(*own, waiting.bytes).ok_or(NotHanded::Full)?;
                *own += frames.len();
                waiting.bytes += frames.len();
                waiting.frames.push((lane, frames.to_vec()));
                waiting.changes.append(changes);
            }
            None => {
                push(generation).map_err(NotHanded::Refused)?;
                changes.drain(..).for_each(|change| now.know(change));
            }
        }
        Ok(())
    }

    /// The generation that serves, if any.
    pub(super) fn get(&self) -> Option<Arc<G>> {
        self.0.read().generation.clone()
    }

    /// From now on, frames that are handed over wait. `tell` tells the generation so, behind everything that it was given.
    pub(super) fn freeze(&self, tell: impl FnOnce(&G)) {
        let mut now = self.0.write();
        if let Some(generation) = &now.generation {
            tell(generation);
            now.frozen.get_or_insert_default();
        }
    }

    /// Calls by these attachments must not begin any more: `tell` passes this to the generation. During a replacement its flag
    /// is true: this concerns the calls ahead of the freeze, and the next generation learns of it before it receives what
    /// waits. Returns whether anything serves.
    pub(super) fn revoke(&self, attachments: &[u64], tell: impl FnOnce(&G, bool)) -> bool {
        let mut now = self.0.write();
        let Now { generation, frozen, .. } = &mut *now;
        if let Some(waiting) = frozen {
            waiting.revoked.extend_from_slice(attachments);
        }
        if let Some(generation) = generation {
            tell(generation, frozen.is_some());
        }
        generation.is_some()
    }

    /// The generation resumes: `tell` hands it the revoked attachments and the frames that have waited.
    pub(super) fn thaw(&self, tell: impl FnOnce(&G, &[u64], &[(L, Vec<u8>)])) {
        let mut now = self.0.write();
        let waiting = now.frozen.take().unwrap_or_default();
        if let Some(generation) = &now.generation {
            tell(generation, &waiting.revoked, &waiting.frames);
        }
        waiting.changes.into_iter().for_each(|change| now.know(change));
    }

    /// Another generation serves from now on. `tell` hands it the attachments of its predecessor, in the order in which they
    /// began, the revoked attachments, and then the frames that have waited.
    pub(super) fn switch(&self, next: Arc<G>, tell: impl FnOnce(&G, &[(u64, &[u8])], &[u64], &[(L, Vec<u8>)])) {
        let mut now = self.0.write();
        let waiting = now.frozen.take().unwrap_or_default();
        let mut attached: Vec<(u64, u64, &[u8])> =
            now.attached.iter().map(|(id, known)| (known.order, *id, known.frame.as_slice())).collect();
        attached.sort_unstable();
        let attached: Vec<(u64, &[u8])> = attached.into_iter().map(|(_, id, frame)| (id, frame)).collect();
        tell(&next, &attached, &waiting.revoked, &waiting.frames);
        now.generation = Some(next);
        waiting.changes.into_iter().for_each(|change| now.know(change));
    }

    /// Takes the generation away: frames that were being handed to it have arrived by now, and no more will.
    pub(super) fn take(&self) -> Option<Arc<G>> {
        let mut now = self.0.write();
        now.frozen = None;
        now.attached = HashMap::new();
        now.generation.take()
    }

    /// How many clients are attached and have not released their perspective.
    pub(super) fn attached(&self) -> usize {
        self.0.read().attached.values().filter(|attached| !attached.let_go).count()
    }
}

impl<G, L> Now<G, L> {
    fn know(&mut self, change: AttachmentChange) {
        match change {
            AttachmentChange::Attached(id, frame) => {
                self.next += 1;
                self.attached.insert(id, Attachment { order: self.next, frame, let_go: false });
            }
            AttachmentChange::LetGo(id, frame) => {
                self.next += 1;
                let attached =
                    self.attached.entry(id).or_insert(Attachment { order: self.next, frame: Vec::new(), let_go: true });
                (attached.frame, attached.let_go) = (frame, true);
            }
            AttachmentChange::Ended(id) => drop(self.attached.remove(&id)),
        }
    }
}
