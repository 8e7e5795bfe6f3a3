//! Which generation serves: handed to by many, replaced or taken away by one. A test walks all interleavings
//! (`tests/tests/gate_model.rs`), which is why its locks come from `super::sync`.

use std::collections::HashMap;

use super::sync::{Arc, RwLock};

/// The generation of a slot that serves now, if one does; what waits while it is replaced; and who is attached to it.
#[derive(Debug)]
pub(super) struct Current<G, L>(RwLock<Now<G, L>>);

#[derive(Debug)]
struct Now<G, L> {
    generation: Option<Arc<G>>,
    /// While it is being replaced: what has come meanwhile.
    frozen: Option<Waiting<L>>,
    attached: HashMap<u64, Attachment>,
    next: u64,
}

#[derive(Debug)]
struct Waiting<L> {
    /// In order, with the lane that each is of.
    frames: Vec<(L, Vec<u8>)>,
    bytes: usize,
    /// How many of them are each owner's.
    owned: HashMap<usize, usize>,
    changes: Vec<AttachmentChange>,
    /// Attachments whose calls are not to begin any more.
    revoked: Vec<u64>,
}

impl<L> Default for Waiting<L> {
    fn default() -> Self {
        Self { frames: Vec::new(), bytes: 0, owned: HashMap::new(), changes: Vec::new(), revoked: Vec::new() }
    }
}

/// How an attachment is told to the next generation.
#[derive(Debug)]
struct Attachment {
    order: u64,
    frame: Vec<u8>,
    let_go: bool,
}

/// What changes in who is attached, with the frames that it is handed over with.
#[derive(Debug)]
#[allow(unreachable_pub, reason = "a test has this file as a part of its own")]
pub enum AttachmentChange {
    /// This attachment has begun; the frame that tells the next generation.
    Attached(u64, Vec<u8>),
    /// It lives though its client has let go of the perspective; this frame tells the next generation from now on.
    LetGo(u64, Vec<u8>),
    /// It has ended.
    Ended(u64),
}

/// Why nothing was handed over.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum NotHanded<E> {
    /// Nothing serves.
    Ended,
    /// The generation does not take it.
    Refused(E),
    /// Too much waits already, of its owner's or in all.
    Full,
}

impl<G, L> Current<G, L> {
    pub(super) fn new(generation: Arc<G>) -> Self {
        let (generation, attached) = (Some(generation), HashMap::new());
        Self(RwLock::new(Now { generation, frozen: None, attached, next: 0 }))
    }

    /// Hands over frames of an owner's. The lock is held meanwhile: nothing is handed to a generation that was taken away. While
    /// it is being replaced, they wait, with the lane that `waits` answers with, which is told how many bytes wait already, of
    /// this owner's and in all; without one they are not taken.
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

    /// The generation itself.
    pub(super) fn get(&self) -> Option<Arc<G>> {
        self.0.read().generation.clone()
    }

    /// From now on what is handed over waits. `tell` says so to the generation, behind all that it was given.
    pub(super) fn freeze(&self, tell: impl FnOnce(&G)) {
        let mut now = self.0.write();
        if let Some(generation) = &now.generation {
            tell(generation);
            now.frozen.get_or_insert_default();
        }
    }

    /// Calls by these attachments are not to begin any more: `tell` says so to the generation. While that is being replaced it
    /// is told, too (true), of calls that are before the word to stand still; and what serves next hears of it before it hears of
    /// what waits. Answers with whether there is anything that serves.
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

    /// The generation goes on: `tell` hands it whose calls are not to begin, and what has waited.
    pub(super) fn thaw(&self, tell: impl FnOnce(&G, &[u64], &[(L, Vec<u8>)])) {
        let mut now = self.0.write();
        let waiting = now.frozen.take().unwrap_or_default();
        if let Some(generation) = &now.generation {
            tell(generation, &waiting.revoked, &waiting.frames);
        }
        waiting.changes.into_iter().for_each(|change| now.know(change));
    }

    /// Another generation serves from now on: `tell` hands it the attachments of the one before, in the order in which
    /// they began, whose calls are not to begin, and then what has waited.
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

    /// Takes it away: whoever was handing something to it has done so by now, and nobody else will.
    pub(super) fn take(&self) -> Option<Arc<G>> {
        let mut now = self.0.write();
        now.frozen = None;
        now.attached = HashMap::new();
        now.generation.take()
    }

    /// How many are attached, and have not let go of their perspective.
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
