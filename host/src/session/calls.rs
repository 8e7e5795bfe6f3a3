//! Calls: the client's calls under way in services, its parked calls, and services' calls of the client's objects.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use super::limits::PeerLimits;
use super::numbers::{AttachmentNo, CallKind, CallNo, Table};
use crate::multiservice::{Backend, SlotNo};

/// The assumed size of the first answer, in bytes.
const FIRST_ANSWER: usize = 64 << 10;
/// The bytes of answers that may be on their way to a client, estimated from the sizes of earlier answers.
const WINDOW: usize = 4 << 20;
/// The smallest size that is assumed for an answer, in bytes.
const SMALLEST_ANSWER: usize = 4 << 10;
/// The number of windows (20 ms each) without a finished call after which reading resumes although many calls wait.
const QUIET: u32 = 250;
/// A client always has this many calls under way, however large its answers.
const LEAST_CALLS: usize = 4;

/// A call on its way through a service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct InFlight {
    /// The service.
    pub(crate) slot: SlotNo,
    /// The attachment that it came by. The call ends with it.
    pub(crate) attachment: AttachmentNo,
    /// The client's number for it.
    pub(crate) request: u64,
    /// Whether the client wants an answer.
    pub(crate) answer: bool,
    /// The size of its arguments, in bytes.
    pub(crate) size: usize,
}

/// A call's method, arguments and keywords as the service reads them, one after the other in one buffer.
#[derive(Debug, Default)]
pub(crate) struct Words {
    bytes: Vec<u8>,
    /// Where the arguments begin, and where the keywords begin.
    begin: (usize, usize),
}

impl Words {
    /// Stores a method. `write` appends its arguments and then its keywords, and returns where the keywords begin.
    pub(crate) fn new(method: &str, write: impl FnOnce(&mut Vec<u8>) -> usize) -> Self {
        let mut bytes = Vec::with_capacity(method.len() + 64);
        bytes.extend_from_slice(method.as_bytes());
        let middle = write(&mut bytes);
        Self { bytes, begin: (method.len(), middle) }
    }

    /// The method, the arguments, the keywords.
    pub(crate) fn parts(&self) -> (&str, &[u8], &[u8]) {
        let (rest, keywords) = self.bytes.split_at(self.begin.1);
        let (method, arguments) = rest.split_at(self.begin.0);
        (std::str::from_utf8(method).unwrap_or_default(), arguments, keywords)
    }
}

/// A call that waits until others have ended.
#[derive(Debug)]
pub(crate) struct Parked {
    /// The call.
    pub(crate) call: InFlight,
    /// The service's object; 0: the perspective.
    pub(crate) object: u64,
    /// Its method, arguments and keywords.
    pub(crate) words: Words,
    /// The client's objects in the arguments and keywords, one entry per occurrence. Each is counted for the service.
    pub(crate) handles: Vec<u64>,
}

impl Parked {
    pub(crate) fn size(&self) -> usize {
        size_of::<Self>() + self.words.bytes.len() + self.handles.len() * 8
    }
}

/// A service's call of an object of the client's.
pub(crate) struct Outgoing {
    /// The service.
    pub(crate) backend: Arc<dyn Backend>,
    /// The generation of the slot that called. No other generation gets the answer.
    pub(crate) generation: u32,
    /// The library's number for it.
    pub(crate) call: u64,
    /// The attachment by which the service has the called object.
    pub(crate) attachment: AttachmentNo,
}

impl Outgoing {
    fn whose(&self) -> (SlotNo, u32, u64) {
        (self.backend.number(), self.generation, self.call)
    }
}

/// The calls that ended with attachments.
#[derive(Default)]
pub(crate) struct Ended {
    /// The client's calls that need an answer, by its numbers, in order.
    pub(crate) owed: Vec<u64>,
    /// Calls that services have received. Nobody waits for them any more.
    pub(crate) begun: Vec<(SlotNo, CallNo)>,
    /// The client's objects in calls that no service has received.
    pub(crate) handles: Vec<(SlotNo, u64)>,
    /// Services' own calls.
    pub(crate) outgoing: Vec<Outgoing>,
}

/// All calls of a connection.
pub(crate) struct Calls {
    in_flight: Table<CallKind, InFlight>,
    in_flight_bytes: usize,
    /// Each with the value of `waited` when it was parked, itself included.
    parked: VecDeque<(u64, Parked)>,
    parked_bytes: usize,
    /// The number of calls parked so far.
    waited: u64,
    /// The number of windows in a row in which no call ended while others waited.
    quiet: u32,
    /// The expected size of an answer, in bytes. It rises fast and falls slowly.
    answer_size: usize,
    /// By the broker's number.
    outgoing: BTreeMap<u64, Outgoing>,
    /// The broker's number, by slot, generation and the library's number of the call.
    by_call: BTreeMap<(SlotNo, u32, u64), u64>,
}

impl Default for Calls {
    fn default() -> Self {
        Self {
            in_flight: Table::default(),
            in_flight_bytes: 0,
            parked: VecDeque::new(),
            parked_bytes: 0,
            waited: 0,
            quiet: 0,
            answer_size: FIRST_ANSWER,
            outgoing: BTreeMap::new(),
            by_call: BTreeMap::new(),
        }
    }
}

impl Calls {
    /// The number of calls that may be under way: up to the limit if answers are small; fewer if they are large; none
    /// if too many bytes (`unread`) have not been read.
    fn window(&self, unread: usize, limits: &PeerLimits) -> usize {
        if unread > limits.unread {
            return 0;
        }
        (WINDOW / self.answer_size.max(SMALLEST_ANSWER)).max(LEAST_CALLS).min(limits.calls)
    }

    /// Whether a new call begins at once, and not behind parked ones.
    #[must_use]
    pub(crate) fn admits(&self, unread: usize, limits: &PeerLimits) -> bool {
        self.parked.is_empty() && self.has_room(unread, limits)
    }

    /// Whether there is room for one more, by the number of calls and by the size of their arguments.
    fn has_room(&self, unread: usize, limits: &PeerLimits) -> bool {
        let under_way = self.in_flight.len();
        under_way < self.window(unread, limits) && (under_way < LEAST_CALLS || self.in_flight_bytes <= limits.parked)
    }

    /// A call begins. Returns its number.
    pub(crate) fn begin(&mut self, call: InFlight) -> CallNo {
        self.in_flight_bytes += call.size;
        self.in_flight.insert(call)
    }

    /// Parks a call.
    ///
    /// # Errors
    /// Returns the call itself if the limit would be exceeded.
    pub(crate) fn park(&mut self, parked: Parked, limits: &PeerLimits) -> Result<(), Box<Parked>> {
        // Without an answer, the client would not learn of a refusal: one such call may exceed the limit, and reading
        // stops.
        let fits = self.parked_bytes + parked.size() <= limits.parked;
        let last = !parked.call.answer && self.outgoing.is_empty() && self.parked_bytes <= limits.parked;
        if !fits && !last {
            return Err(Box::new(parked));
        }
        self.parked_bytes += parked.size();
        self.waited += 1;
        self.parked.push_back((self.waited, parked));
        Ok(())
    }

    /// Takes the next parked call, if there is room for it.
    pub(crate) fn unpark(&mut self, unread: usize, limits: &PeerLimits) -> Option<Parked> {
        if self.parked.is_empty() || !self.has_room(unread, limits) {
            return None;
        }
        let (_, parked) = self.parked.pop_front()?;
        self.parked_bytes -= parked.size();
        Some(parked)
    }

    /// A service has ended a call. `None` if the call is not one of this service.
    pub(crate) fn ended(&mut self, no: CallNo, slot: SlotNo) -> Option<InFlight> {
        if self.in_flight.get(no)?.slot != slot {
            return None;
        }
        let call = self.in_flight.remove(no)?;
        self.in_flight_bytes -= call.size;
        self.quiet = 0;
        Some(call)
    }

    /// Records the size of an answer, in bytes.
    pub(crate) fn record_answer_size(&mut self, size: usize) {
        self.answer_size = size.max(self.answer_size - self.answer_size / 8);
    }

    /// No answer for a while: the sizes of earlier answers say nothing about those to come.
    pub(crate) fn reset_window(&mut self) {
        self.quiet = if self.parked.is_empty() { 0 } else { self.quiet.saturating_add(1) };
        self.answer_size = SMALLEST_ANSWER;
    }

    /// A service calls an object of the client's. `request` is the broker's number of the call.
    pub(crate) fn call_out(&mut self, request: u64, outgoing: Outgoing) {
        self.by_call.insert(outgoing.whose(), request);
        self.outgoing.insert(request, outgoing);
    }

    /// The client has answered a service's call.
    pub(crate) fn answered(&mut self, request: u64) -> Option<Outgoing> {
        let outgoing = self.outgoing.remove(&request)?;
        self.by_call.remove(&outgoing.whose());
        Some(outgoing)
    }

    /// The service no longer waits for a call of its own.
    pub(crate) fn forget(&mut self, slot: SlotNo, generation: u32, call: u64) -> Option<Outgoing> {
        let request = *self.by_call.get(&(slot, generation, call))?;
        self.answered(request)
    }

    /// Removes all calls by these attachments, which are sorted.
    pub(crate) fn end(&mut self, gone: &[AttachmentNo]) -> Ended {
        let is_gone = |no: AttachmentNo| gone.binary_search(&no).is_ok();
        let mut ended = Ended::default();
        for (no, call) in self.in_flight.take(|_, call| is_gone(call.attachment)) {
            ended.owed.extend(call.answer.then_some(call.request));
            ended.begun.push((call.slot, no));
            self.in_flight_bytes -= call.size;
        }
        let (parked, stay): (VecDeque<_>, VecDeque<_>) =
            std::mem::take(&mut self.parked).into_iter().partition(|(_, parked)| is_gone(parked.call.attachment));
        self.parked = stay;
        for (_, parked) in parked {
            self.parked_bytes -= parked.size();
            ended.owed.extend(parked.call.answer.then_some(parked.call.request));
            ended.handles.extend(parked.handles.iter().map(|handle| (parked.call.slot, *handle)));
        }
        ended.owed.sort_unstable();
        let outgoing: Vec<u64> =
            self.outgoing.iter().filter(|(_, of)| is_gone(of.attachment)).map(|(at, _)| *at).collect();
        ended.outgoing.extend(outgoing.into_iter().filter_map(|at| self.answered(at)));
        ended
    }

    /// The size of parked calls, in bytes.
    #[must_use]
    pub(crate) fn parked_bytes(&self) -> usize {
        self.parked_bytes
    }

    /// The client's calls that need an answer, by its numbers.
    pub(crate) fn owed(&self) -> impl Iterator<Item = u64> {
        let begun = self.in_flight.iter().map(|(_, call)| call);
        begun
            .chain(self.parked.iter().map(|(_, parked)| &parked.call))
            .filter(|call| call.answer)
            .map(|call| call.request)
    }

    /// The number of calls parked so far. What the client sends now comes behind all of them.
    #[must_use]
    pub(crate) fn waited(&self) -> u64 {
        self.waited
    }

    /// Whether none of the first `waited` parked calls still waits.
    #[must_use]
    pub(crate) fn has_begun(&self, waited: u64) -> bool {
        self.parked.front().is_none_or(|(place, _)| *place > waited)
    }

    /// Whether reading must pause because of parked calls. Reading continues while a service waits for an answer of
    /// this client, because the answer may be behind the calls. It also resumes after a long time in which no call has
    /// ended: calls that exceed the limit are then refused.
    #[must_use]
    pub(crate) fn is_crowded(&self, limits: &PeerLimits) -> bool {
        let full = self.parked_bytes > limits.parked;
        self.outgoing.is_empty() && (full || self.parked_bytes > limits.parked / 2 && self.quiet < QUIET)
    }

    /// Whether any call is parked.
    #[must_use]
    pub(crate) fn any_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    /// Whether no call of the client is under way or parked.
    #[must_use]
    pub(crate) fn is_idle(&self) -> bool {
        self.in_flight.is_empty() && self.parked.is_empty()
    }

    /// The numbers of calls under way, parked calls, and services' own calls.
    #[cfg(test)]
    pub(crate) fn counts(&self) -> (usize, usize, usize) {
        (self.in_flight.len(), self.parked.len(), self.outgoing.len())
    }
}

#[cfg(test)]
mod tests {
    use super::super::numbers::AttachmentKind;
    use super::*;

    fn limits() -> PeerLimits {
        PeerLimits { calls: 6, parked: 2000, ..super::super::Limits::default().after }
    }

    fn call(attachment: AttachmentNo, request: u64) -> InFlight {
        InFlight { slot: SlotNo(1), attachment, request, answer: true, size: 0 }
    }

    fn parked(attachment: AttachmentNo, request: u64, size: usize) -> Parked {
        let words = Words::new("m", |out| {
            out.resize(out.len() + size, 0);
            out.len()
        });
        Parked { call: call(attachment, request), object: 0, words, handles: vec![9] }
    }

    #[test]
    fn words_are_read_as_they_were_written() {
        let words = Words::new("method", |out| {
            out.extend([1, 2, 3]);
            8
        });
        assert_eq!(words.parts(), ("method", &[1, 2][..], &[3][..]));
    }

    #[test]
    fn calls_begin_in_order_as_far_as_there_is_room() {
        let (mut calls, limits) = (Calls::default(), limits());
        let by = Table::<AttachmentKind, ()>::default().insert(());
        let begun: Vec<CallNo> = (0..6).map(|request| calls.begin(call(by, request))).collect();
        assert!(!calls.admits(0, &limits));
        calls.park(parked(by, 6, 10), &limits).unwrap();
        calls.park(parked(by, 7, 10), &limits).unwrap();
        let refused = calls.park(parked(by, 8, 2000), &limits).unwrap_err();
        assert_eq!((refused.call.request, calls.counts().1), (8, 2));
        assert!(calls.unpark(0, &limits).is_none());
        assert_eq!(calls.ended(begun[0], SlotNo(2)), None, "a service ends its own calls only");
        assert_eq!(calls.ended(begun[0], SlotNo(1)), Some(call(by, 0)));
        assert_eq!(calls.ended(begun[0], SlotNo(1)), None);
        assert!(!calls.admits(0, &limits), "others wait");
        assert!(calls.unpark(limits.unread + 1, &limits).is_none(), "the client does not read");
        assert_eq!(calls.unpark(0, &limits).map(|next| next.call.request), Some(6));
    }

    #[test]
    fn few_calls_are_under_way_while_answers_are_large() {
        let (mut calls, limits) = (Calls::default(), limits());
        assert_eq!(calls.window(0, &limits), 6);
        calls.record_answer_size(8 << 20);
        assert_eq!(calls.window(0, &limits), LEAST_CALLS);
        (0..100).for_each(|_| calls.record_answer_size(10));
        assert_eq!(calls.window(0, &limits), 6);
        calls.record_answer_size(8 << 20);
        calls.reset_window();
        assert_eq!(calls.window(0, &limits), 6);
        assert_eq!(calls.window(limits.unread + 1, &limits), 0);
    }

    #[test]
    fn reading_pauses_when_full_and_one_way_calls_are_not_refused() {
        let (mut calls, limits) = (Calls::default(), limits());
        let by = Table::<AttachmentKind, ()>::default().insert(());
        let begun = calls.begin(call(by, 0));
        let room = limits.parked - 2 * parked(by, 0, 0).size();
        calls.park(parked(by, 1, room / 2), &limits).unwrap();
        assert!(!calls.is_crowded(&limits));
        calls.park(parked(by, 2, room / 2), &limits).unwrap();
        assert!(calls.is_crowded(&limits), "half of the room is taken");
        (0..QUIET).for_each(|_| calls.reset_window());
        assert!(!calls.is_crowded(&limits), "nothing ends: it is not waited for");
        assert!(calls.park(parked(by, 3, 500), &limits).is_err(), "who asks is told");
        let mut silent = parked(by, 4, 500);
        silent.call.answer = false;
        calls.park(silent, &limits).unwrap();
        assert!(calls.is_crowded(&limits), "and then no more is read");
        let mut silent = parked(by, 5, 500);
        silent.call.answer = false;
        assert!(calls.park(silent, &limits).is_err(), "one is over the limit");
        calls.ended(begun, SlotNo(1));
        while calls.unpark(0, &limits).is_some() {}
        assert!(!calls.is_crowded(&limits));
    }

    #[test]
    fn calls_end_with_the_attachment_they_came_by() {
        let (mut calls, limits) = (Calls::default(), limits());
        let mut attachments = Table::<AttachmentKind, ()>::default();
        let (one, other) = (attachments.insert(()), attachments.insert(()));
        let first = calls.begin(call(one, 5));
        calls.begin(call(other, 6));
        calls.park(parked(one, 4, 0), &limits).unwrap();
        calls.park(parked(other, 7, 0), &limits).unwrap();
        let ended = calls.end(&[one]);
        assert_eq!(
            (ended.owed, ended.begun, ended.handles),
            (vec![4, 5], vec![(SlotNo(1), first)], vec![(SlotNo(1), 9)])
        );
        assert_eq!(calls.counts(), (1, 1, 0));
        calls.end(&[other]);
        assert!(calls.is_idle() && calls.parked_bytes == 0);
    }
}
