//! What goes to services, gathered while one read is served: for each service its frames, and beside them what each is, so
//! that one which cannot be handed over is refused without reading our own bytes.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use plugin_api::abi::frame::ToLibrary;

use super::numbers::{AttachmentNo, CallNo};
use crate::multiservice::{AttachmentChange, Backend, Lane, SlotNo};

/// A buffer that has become larger is given back when it is empty, in bytes.
const KEPT: usize = 64 << 10;

/// What a frame is, if it can be refused.
#[derive(Debug)]
enum Record {
    /// A call, with the client's objects in it.
    Call(CallNo, Box<[u64]>),
    /// An attachment, with the client's objects in it.
    Attach(AttachmentNo, Box<[u64]>),
    /// What ends something: it is handed over whatever else is.
    End,
}

/// Frames for one service.
struct Frames {
    backend: Arc<dyn Backend>,
    bytes: Vec<u8>,
    /// Each with the place where its frame ends.
    records: Vec<(Record, usize)>,
    changes: Vec<AttachmentChange>,
    calls: u64,
}

/// What could not be handed over.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Bounced {
    /// A call, and the client's objects in it.
    Call(CallNo, Box<[u64]>),
    /// An attachment, and the client's objects in it.
    Attach(AttachmentNo, Box<[u64]>),
    /// The client's objects in an answer to a generation that is not there any more.
    Handles(Vec<u64>),
}

/// A service that did not take what it was given.
pub(crate) struct Refusal {
    /// Its slot.
    pub(crate) slot: SlotNo,
    /// Why, for a client to read.
    pub(crate) why: String,
    /// What was not taken.
    pub(crate) bounced: Vec<Bounced>,
}

/// Frames for all services of a connection.
pub(crate) struct Outbox {
    /// In the order of their slots: a client is attached to a few, and a tree's node has room for eleven.
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

    /// Where a service's frames are, or else would be.
    fn place(&self, slot: SlotNo) -> Result<usize, usize> {
        self.services.binary_search_by_key(&slot, |(slot, _)| *slot)
    }

    /// Gives back buffers that are empty.
    pub(crate) fn rest(&mut self) {
        for (_, to) in &mut self.services {
            if to.bytes.is_empty() {
                (to.bytes, to.records) = (Vec::new(), Vec::new());
            }
            to.changes.shrink_to_fit();
        }
    }

    /// A call, with the client's objects in it.
    pub(crate) fn call(&mut self, backend: &Arc<dyn Backend>, no: CallNo, handles: &[u64], frame: &ToLibrary<'_>) {
        let to = self.to(backend);
        frame.write(&mut to.bytes);
        to.records.push((Record::Call(no, handles.into()), to.bytes.len()));
        to.calls += 1;
    }

    /// An attachment, with the client's objects in it; `again` tells a generation that takes over of it.
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

    /// What ends something, and what it changes in who is attached.
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

    /// How a service's own call has ended, with the client's objects in the answer.
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

    /// A service that this connection has something to do with.
    #[must_use]
    pub(crate) fn backend(&self, slot: SlotNo) -> Option<Arc<dyn Backend>> {
        self.place(slot).ok().map(|at| Arc::clone(&self.services[at].1.backend))
    }

    /// A service has ended: nothing goes there any more.
    pub(crate) fn forget(&mut self, slot: SlotNo) {
        self.services.retain(|(of, _)| *of != slot);
        self.answers.retain(|(of, _), _| *of != slot);
    }

    /// Hands everything over. What a service does not take is answered with, but for what ends something.
    pub(crate) fn submit(&mut self) -> Vec<Refusal> {
        let mut refusals = Vec::new();
        for ((slot, generation), to) in std::mem::take(&mut self.answers) {
            if !to.backend.answer(&self.lane, generation, &to.bytes) && !to.handles.is_empty() {
                // It will not give back what it was never given.
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

    /// Hands everything over, whether services keep up or not: the connection has ended.
    pub(crate) fn submit_all(&mut self) {
        for ((_, generation), to) in std::mem::take(&mut self.answers) {
            // What it does not take ends with the connection.
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
    /// It was not taken: what ends something is handed over alone, and the rest is what bounces.
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
