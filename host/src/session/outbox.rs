//! Frames for services, gathered while one read is served. Each service has its frames, and a record of each frame, so
//! that a frame that cannot be submitted is refused without decoding the host's own bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use plugin_api::abi::frame::ToLibrary;

use super::numbers::{AttachmentNo, CallNo};
use crate::multiservice::{AttachmentChange, Backend, Lane, SlotNo};

/// A buffer that has grown beyond this is shrunk when it is empty, in bytes.
const KEPT: usize = 64 << 10;

/// The kind of a frame, for the case that it is refused.
#[derive(Debug)]
enum Record {
    /// A call, with the client's objects in it.
    Call(CallNo, Box<[u64]>),
    /// An attachment, with the client's objects in it.
    Attach(AttachmentNo, Box<[u64]>),
    /// A frame that ends something. It is submitted in any case.
    End,
}

/// Frames for one service.
struct Frames {
    backend: Arc<dyn Backend>,
    bytes: Vec<u8>,
    /// Each with the offset of its frame's end.
    records: Vec<(Record, usize)>,
    changes: Vec<AttachmentChange>,
    calls: u64,
}

/// What a service did not accept.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bounced {
    /// A call, and the client's objects in it.
    Call(CallNo, Box<[u64]>),
    /// An attachment, and the client's objects in it.
    Attach(AttachmentNo, Box<[u64]>),
    /// The client's objects in an answer to a generation that no longer exists.
    Handles(Vec<u64>),
}

/// A service that did not accept its frames.
pub(crate) struct Refusal {
    /// Its slot.
    pub(crate) slot: SlotNo,
    /// The reason, for the client to read.
    pub(crate) why: String,
    /// What was not accepted.
    pub(crate) bounced: Vec<Bounced>,
}

/// Frames for all services of a connection.
pub(crate) struct Outbox {
    /// Sorted by slot. A vector, because a client is attached to a few services and a tree's node has room for eleven.
    services: Vec<(SlotNo, Frames)>,
    /// The connection's place in services' gates.
    lane: Lane,
    /// Answers to services' own calls, for one generation each.
    answers: BTreeMap<(SlotNo, u32), Answers>,
}

/// Answers for one generation of a service, and the client's objects in them.
struct Answers {
    backend: Arc<dyn Backend>,
    bytes: Vec<u8>,
    handles: Vec<u64>,
}

impl Outbox {
    pub(crate) fn new(lane: Lane) -> Self {
        Self { services: Vec::new(), lane, answers: BTreeMap::new() }
    }

    fn to(&mut self, backend: &Arc<dyn Backend>) -> &mut Frames {
        let slot = backend.number();
        let at = self.place(slot).unwrap_or_else(|at| {
            let (bytes, records, changes) = (Vec::new(), Vec::new(), Vec::new());
            self.services.reserve_exact(1);
            self.services
                .insert(at, (slot, Frames { backend: Arc::clone(backend), bytes, records, changes, calls: 0 }));
            at
        });
        &mut self.services[at].1
    }

    /// The index of a service's frames, or the index to insert them at.
    fn place(&self, slot: SlotNo) -> Result<usize, usize> {
        self.services.binary_search_by_key(&slot, |(slot, _)| *slot)
    }

    /// Frees empty buffers.
    pub(crate) fn rest(&mut self) {
        for (_, to) in &mut self.services {
            if to.bytes.is_empty() {
                (to.bytes, to.records) = (Vec::new(), Vec::new());
            }
            to.changes.shrink_to_fit();
        }
    }

    /// Adds a call, with the client's objects in it.
    pub(crate) fn call(&mut self, backend: &Arc<dyn Backend>, no: CallNo, handles: &[u64], frame: &ToLibrary<'_>) {
        let to = self.to(backend);
        frame.write(&mut to.bytes);
        to.records.push((Record::Call(no, handles.into()), to.bytes.len()));
        to.calls += 1;
    }

    /// Adds an attachment, with the client's objects in it. `again` is the frame for a generation that takes over.
    pub(crate) fn attach(
        &mut self,
        backend: &Arc<dyn Backend>,
        (no, number): (AttachmentNo, u64),
        handles: Box<[u64]>,
        frame: &ToLibrary<'_>,
        again: Vec<u8>,
    ) {
        let to = self.to(backend);
        frame.write(&mut to.bytes);
        to.records.push((Record::Attach(no, handles), to.bytes.len()));
        to.changes.push(AttachmentChange::Attached(number, again));
    }

    /// Adds a frame that ends something, and the change to the list of attachments.
    pub(crate) fn notify(
        &mut self,
        backend: &Arc<dyn Backend>,
        frame: &ToLibrary<'_>,
        change: Option<AttachmentChange>,
    ) {
        let to = self.to(backend);
        frame.write(&mut to.bytes);
        to.records.push((Record::End, to.bytes.len()));
        to.changes.extend(change);
    }

    /// Adds the result of a service's own call, with the client's objects in the answer.
    pub(crate) fn answer(
        &mut self,
        backend: &Arc<dyn Backend>,
        generation: u32,
        handles: &[u64],
        frame: &ToLibrary<'_>,
    ) {
        let key = (backend.number(), generation);
        let to = self.answers.entry(key).or_insert_with(|| Answers {
            backend: Arc::clone(backend),
            bytes: Vec::new(),
            handles: Vec::new(),
        });
        frame.write(&mut to.bytes);
        to.handles.extend_from_slice(handles);
    }

    /// A service that this connection has sent something to.
    #[must_use]
    pub(crate) fn backend(&self, slot: SlotNo) -> Option<Arc<dyn Backend>> {
        self.place(slot).ok().map(|at| Arc::clone(&self.services[at].1.backend))
    }

    /// A service has ended: its frames are dropped.
    pub(crate) fn forget(&mut self, slot: SlotNo) {
        self.services.retain(|(of, _)| *of != slot);
        self.answers.retain(|(of, _), _| *of != slot);
    }

    /// Submits everything. Returns what services did not accept, except frames that end something.
    pub(crate) fn submit(&mut self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for ((slot, generation), to) in std::mem::take(&mut self.answers) {
            if !to.backend.answer(&self.lane, generation, &to.bytes) && !to.handles.is_empty() {
                // The service will not return what it never received.
                refusals.push(Refusal { slot, why: String::new(), bounced: vec![Bounced::Handles(to.handles)] });
            }
        }
        for (slot, to) in &mut self.services {
            if to.bytes.is_empty() && to.changes.is_empty() {
                continue;
            }
            let calls = std::mem::take(&mut to.calls);
            if let Err(error) = to.backend.submit(&self.lane, &to.bytes, &mut to.changes, calls) {
                let bounced = to.bounce(&self.lane);
                refusals.push(Refusal { slot: *slot, why: error.to_string(), bounced });
            }
            to.bytes.clear();
            to.bytes.shrink_to(KEPT);
            to.records.clear();
            to.records.shrink_to(KEPT / size_of::<(Record, usize)>());
        }
        refusals
    }

    /// Submits everything, whether services keep up or not: the connection has ended.
    pub(crate) fn submit_all(&mut self) {
        for ((_, generation), to) in std::mem::take(&mut self.answers) {
            // What it does not accept ends with the connection.
            let _ = to.backend.answer(&self.lane, generation, &to.bytes);
        }
        for to in self.services.iter_mut().map(|(_, to)| to).filter(|to| !to.bytes.is_empty() || !to.changes.is_empty())
        {
            to.backend.submit_anyway(&self.lane, &to.bytes, &mut to.changes);
        }
        self.services.clear();
    }
}

impl Frames {
    /// The frames were not accepted: submits those that end something alone. The rest is returned as bounced.
    fn bounce(&mut self, lane: &Lane) -> Vec<Bounced> {
        let (mut bounced, mut ends, mut start) = (Vec::new(), Vec::new(), 0);
        for (record, end) in std::mem::take(&mut self.records) {
            let frame: Range<usize> = start..end;
            start = end;
            match record {
                Record::Call(no, handles) => bounced.push(Bounced::Call(no, handles)),
                Record::Attach(no, handles) => bounced.push(Bounced::Attach(no, handles)),
                Record::End => ends.extend_from_slice(&self.bytes[frame]),
            }
        }
        self.changes.retain(|change| !matches!(change, AttachmentChange::Attached(..)));
        self.backend.submit_anyway(lane, &ends, &mut self.changes);
        bounced
    }
}
