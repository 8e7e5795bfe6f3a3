//! Decides which connection a generation serves next: of all whose frames wait, the one that has cost it least.
//!
//! Each connection has a lane, in which its frames keep their order. Each lane has a clock that advances by the cost of its
//! calls. The lane whose clock is furthest behind is next; a lane that was idle starts level with the others (start-time fair
//! queueing). The cost of a call is estimated from the lane's earlier calls. A batch is short, so that nobody waits for more
//! than the call in progress and a few short ones. Connections of one owner share one place: each of their clocks runs faster
//! by their number.
//!
//! The host's own frames go first, except for barriers, which stay behind everything that came before them. Reads no clock.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// How much a batch may cost, in nanoseconds, by estimate.
const BATCH_COST: u64 = 1_000_000;
/// The most frames of a batch.
const BATCH_CALLS: u32 = 256;
/// A batch that has reached this many bytes takes no more frames.
const BATCH_BYTES: usize = 256 << 10;
/// The estimated cost of a lane's first call, in nanoseconds.
const FIRST_COST: u64 = 20_000;
/// The least cost of a call, in nanoseconds.
const LEAST_COST: u64 = 500;
/// The cost of a byte of a call, in nanoseconds.
const BYTE_COST: u64 = 1;
/// The least number of lanes at which idle ones are removed.
const IDLE_LANES: usize = 256;

/// A connection and its owner.
#[derive(Debug, Clone)]
pub(super) struct Lane<M> {
    /// Its number.
    pub(super) connection: u32,
    /// Lanes of one owner share one place.
    pub(super) owner: usize,
    /// Decides whether its calls may begin.
    pub(super) meter: M,
}

#[derive(Debug)]
struct Record {
    length: u32,
    is_call: bool,
    /// How many barriers came before it.
    epoch: u64,
}

#[derive(Debug)]
struct Waiting<M> {
    lane: Lane<M>,
    bytes: VecDeque<u8>,
    records: VecDeque<Record>,
    clock: u64,
    /// The estimated cost of one of its calls, in nanoseconds.
    cost: u64,
    paused: bool,
}

/// A frame that stays behind everything that came before it, and the host's later frames.
#[derive(Debug)]
struct Barrier {
    frames: Vec<u8>,
    /// How many frames of lanes are still ahead of it, and behind the barrier before it.
    left: usize,
}

/// A lane's part of the last batch.
#[derive(Debug)]
struct Share {
    connection: u32,
    calls: u32,
    /// Their estimated cost, in nanoseconds.
    estimate: u64,
}

/// What one owner has waiting.
#[derive(Debug, Default)]
struct Owner {
    /// How many of its lanes have frames.
    lanes: u32,
    bytes: usize,
}

/// Frames that wait for one generation.
#[derive(Debug)]
pub(super) struct FairQueue<M> {
    host: Vec<u8>,
    barriers: VecDeque<Barrier>,
    /// How many barriers have been popped.
    epoch: u64,
    lanes: HashMap<u32, Waiting<M>>,
    owners: HashMap<usize, Owner>,
    /// Lanes whose next frame can be popped, by their clocks.
    ready: BTreeSet<(u64, u32)>,
    /// The clock of the lane that was served last; if nothing waits, of the lane that is furthest ahead.
    clock: u64,
    furthest: u64,
    /// With this many lanes, idle ones are removed.
    sweep_at: usize,
    bytes: usize,
    batch: Vec<Share>,
    popped_at: u64,
}

impl<M> Default for FairQueue<M> {
    fn default() -> Self {
        Self {
            host: Vec::new(),
            barriers: VecDeque::new(),
            epoch: 0,
            lanes: HashMap::new(),
            owners: HashMap::new(),
            ready: BTreeSet::new(),
            clock: 0,
            furthest: 0,
            sweep_at: IDLE_LANES,
            bytes: 0,
            batch: Vec::new(),
            popped_at: 0,
        }
    }
}

/// How many bytes may wait for one service.
#[allow(unreachable_pub, reason = "the model of the gate is a test that has this file alone")]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct GateLimits {
    /// For all owners. One owner may have a quarter of it.
    pub all: usize,
    /// For each owner, even when the gate is full.
    pub each: usize,
}

impl GateLimits {
    /// No limit.
    pub(crate) const NONE: Self = Self { all: usize::MAX, each: usize::MAX };

    /// Whether `more` bytes of an owner may wait in addition to its `own`, if `all` bytes of all owners, this one included,
    /// wait already.
    pub(crate) fn admit(self, own: usize, all: usize, more: usize) -> bool {
        let own = own.saturating_add(more);
        own <= self.each || own <= self.all / 4 && all.saturating_add(more) <= self.all
    }
}

impl Default for GateLimits {
    fn default() -> Self {
        Self { all: 256 << 20, each: 256 << 10 }
    }
}

impl<M: Clone> FairQueue<M> {
    /// How many bytes wait.
    #[cfg(test)]
    fn len(&self) -> usize {
        self.bytes
    }

    /// Whether this many more bytes of an owner may wait.
    pub(super) fn admits(&self, owner: usize, more: usize, limits: GateLimits) -> bool {
        limits.admit(self.owners.get(&owner).map_or(0, |owner| owner.bytes), self.bytes, more)
    }

    /// Whether nothing can be popped now.
    pub(super) fn is_idle(&self) -> bool {
        self.host.is_empty() && self.ready.is_empty() && self.barriers.front().is_none_or(|barrier| barrier.left > 0)
    }

    /// Adds frames of the host: ahead of all calls, and behind barriers.
    pub(super) fn host(&mut self, frames: &[u8]) {
        self.bytes += frames.len();
        match self.barriers.back_mut() {
            Some(barrier) => barrier.frames.extend_from_slice(frames),
            None => self.host.extend_from_slice(frames),
        }
    }

    /// Adds frames of the host ahead of everything, including barriers. `barred`: only if there is a barrier, ahead of which
    /// they must go.
    pub(super) fn ahead(&mut self, frames: &[u8], barred: bool) {
        if !barred || !self.barriers.is_empty() {
            self.bytes += frames.len();
            self.host.extend_from_slice(frames);
        }
    }

    /// Adds a frame of the host behind everything that waits now.
    pub(super) fn barrier(&mut self, frame: &[u8]) {
        self.bytes += frame.len();
        let epoch = self.epoch + self.barriers.len() as u64;
        let of_this =
            |waiting: &Waiting<M>| waiting.records.iter().rev().take_while(|record| record.epoch == epoch).count();
        let left = self.lanes.values().map(of_this).sum();
        self.barriers.push_back(Barrier { frames: frame.to_vec(), left });
        // Nobody is paused now: everything ahead of the barrier must come.
        let paused: Vec<u32> = self.lanes.iter().filter(|(_, waiting)| waiting.paused).map(|(no, _)| *no).collect();
        paused.into_iter().for_each(|connection| self.resume(connection));
    }

    /// Adds frames of a connection. `is_call` says which kinds are calls.
    pub(super) fn push(&mut self, lane: &Lane<M>, frames: &[u8], is_call: impl Fn(u8) -> bool) {
        if self.ready.is_empty() {
            // Nobody waits, so nobody is owed anything.
            self.clock = self.furthest;
        }
        self.sweep();
        let epoch = self.epoch + self.barriers.len() as u64;
        let clock = self.clock;
        let waiting = self.lanes.entry(lane.connection).or_insert_with(|| Waiting {
            lane: lane.clone(),
            bytes: VecDeque::new(),
            records: VecDeque::new(),
            clock,
            cost: FIRST_COST,
            paused: false,
        });
        let was_empty = waiting.records.is_empty();
        let mut rest = frames;
        while let Some((length, kind)) = frame(rest) {
            waiting.records.push_back(Record { length, is_call: is_call(kind), epoch });
            rest = &rest[length as usize..];
        }
        let taken = frames.len() - rest.len();
        waiting.bytes.extend(&frames[..taken]);
        self.bytes += taken;
        if was_empty && !waiting.records.is_empty() {
            // An idle lane does not accumulate credit.
            waiting.clock = waiting.clock.max(clock);
            waiting.lane = lane.clone();
            self.ready.insert((waiting.clock, lane.connection));
            self.owners.entry(lane.owner).or_default().lanes += 1;
        }
        if let Some(owner) = self.owners.get_mut(&waiting.lane.owner) {
            owner.bytes += taken;
        }
    }

    /// The calls of a connection may begin again.
    pub(super) fn resume(&mut self, connection: u32) {
        if let Some(waiting) = self.lanes.get_mut(&connection)
            && std::mem::replace(&mut waiting.paused, false)
            && !waiting.records.is_empty()
        {
            waiting.clock = waiting.clock.max(self.clock);
            self.ready.insert((waiting.clock, connection));
        }
    }

    /// Charges a connection this additional cost, in nanoseconds.
    pub(super) fn charge(&mut self, connection: u32, cost: u64) {
        let Some(waiting) = self.lanes.get_mut(&connection) else { return };
        let sharing = self.owners.get(&waiting.lane.owner).map_or(1, |owner| owner.lanes.max(1));
        let was_ready = self.ready.remove(&(waiting.clock, connection));
        waiting.clock = waiting.clock.saturating_add(cost.saturating_mul(u64::from(sharing)));
        self.furthest = self.furthest.max(waiting.clock);
        if was_ready {
            self.ready.insert((waiting.clock, connection));
        }
    }

    /// Charges the last batch a cost beyond its time, in nanoseconds, that was unknown when it was popped. The connections
    /// whose calls were in the batch share it.
    pub(super) fn charge_batch(&mut self, cost: u64) {
        let all: u64 = self.batch.iter().map(|share| share.estimate).sum();
        let shares: Vec<(u32, u64)> =
            self.batch.iter().map(|share| (share.connection, part(cost, share.estimate, all))).collect();
        shares.into_iter().for_each(|(connection, cost)| self.charge(connection, cost));
    }

    /// Pops the next frames at the time `now`, in nanoseconds. The batch before has cost the time that has passed since. `may`
    /// says whether a connection's calls may begin; if not, they wait until the connection is resumed. `popped` is told how
    /// many bytes have left a lane.
    pub(super) fn pop(
        &mut self,
        into: &mut Vec<u8>,
        now: u64,
        mut may: impl FnMut(&Lane<M>) -> bool,
        mut popped: impl FnMut(&Lane<M>, usize),
    ) {
        self.account(now.saturating_sub(self.popped_at));
        self.popped_at = now;
        self.bytes -= self.host.len();
        into.append(&mut self.host);
        let (mut calls, mut cost) = (0, 0);
        let start = into.len();
        while calls < BATCH_CALLS && cost < BATCH_COST && into.len() - start < BATCH_BYTES {
            if self.pop_barrier(into) {
                continue;
            }
            let Some(&(clock, connection)) = self.ready.first() else { break };
            let Some(waiting) = self.lanes.get_mut(&connection) else { break };
            let Some(next) = waiting.records.front() else { break };
            let before_barrier = !self.barriers.is_empty();
            if before_barrier && next.epoch != self.epoch {
                // It is behind the barrier: lanes ahead of that come first.
                self.ready.remove(&(clock, connection));
                waiting.paused = true;
                continue;
            }
            if next.is_call && !before_barrier && !may(&waiting.lane) {
                self.ready.remove(&(clock, connection));
                waiting.paused = true;
                continue;
            }
            if calls > 0 && waiting.cost > BATCH_COST {
                // A long call is alone in its batch, so that its cost becomes known.
                break;
            }
            popped(&waiting.lane, next.length as usize);
            let bytes = self.take_front(connection, into);
            // Frames of all kinds: attaching and detaching runs an author's code, too.
            cost += self.begin(connection, bytes);
            calls += 1;
        }
    }

    /// Empties all lanes. `each` is told how many bytes each one had.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Lane<M>, usize)) {
        for (_, waiting) in self.lanes.drain() {
            self.bytes -= waiting.bytes.len();
            each(&waiting.lane, waiting.bytes.len());
        }
        self.barriers.iter_mut().for_each(|barrier| barrier.left = 0);
        self.ready.clear();
        self.owners.clear();
    }

    /// How many bytes of the host's own frames wait.
    pub(super) fn of_host(&self) -> usize {
        self.host.len() + self.barriers.iter().map(|barrier| barrier.frames.len()).sum::<usize>()
    }

    /// Takes everything out, regardless of what may begin: the host's frames, the frames in each lane, and last those of
    /// barriers.
    pub(super) fn take_all(&mut self, mut each: impl FnMut(Option<&Lane<M>>, &[u8])) {
        each(None, &std::mem::take(&mut self.host));
        for (_, waiting) in self.lanes.drain() {
            if !waiting.records.is_empty() {
                each(Some(&waiting.lane), &Vec::from(waiting.bytes));
            }
        }
        for barrier in self.barriers.drain(..) {
            self.epoch += 1;
            each(None, &barrier.frames);
        }
        self.ready.clear();
        self.owners.clear();
        self.bytes = 0;
    }

    /// Pops the next barrier, if nothing is ahead of it any more.
    fn pop_barrier(&mut self, into: &mut Vec<u8>) -> bool {
        if self.barriers.front().is_none_or(|barrier| barrier.left > 0) {
            return false;
        }
        let Some(mut barrier) = self.barriers.pop_front() else { return false };
        self.epoch += 1;
        self.bytes -= barrier.frames.len();
        into.append(&mut barrier.frames);
        // Lanes that waited behind it.
        let paused: Vec<u32> = self.lanes.iter().filter(|(_, waiting)| waiting.paused).map(|(no, _)| *no).collect();
        paused.into_iter().for_each(|connection| self.resume(connection));
        true
    }

    /// Moves out a lane's first frame; returns its length.
    fn take_front(&mut self, connection: u32, into: &mut Vec<u8>) -> usize {
        let Some(waiting) = self.lanes.get_mut(&connection) else { return 0 };
        let Some(record) = waiting.records.pop_front() else { return 0 };
        let length = record.length as usize;
        // In slices: draining a deque goes byte by byte.
        let (first, second) = waiting.bytes.as_slices();
        let split = first.len().min(length);
        into.extend_from_slice(&first[..split]);
        into.extend_from_slice(&second[..length - split]);
        waiting.bytes.drain(..length);
        self.bytes -= length;
        self.clock = self.clock.max(waiting.clock);
        if let Some(barrier) = self.barriers.front_mut()
            && record.epoch == self.epoch
        {
            barrier.left -= 1;
        }
        let is_empty = waiting.records.is_empty();
        if is_empty {
            self.ready.remove(&(waiting.clock, connection));
            waiting.bytes.shrink_to(0);
            waiting.records.shrink_to(4);
        }
        if let Some(owner) = self.owners.get_mut(&waiting.lane.owner) {
            owner.bytes -= length;
            owner.lanes -= u32::from(is_empty);
            if owner.lanes == 0 {
                self.owners.remove(&waiting.lane.owner);
            }
        }
        length
    }

    /// Adds a lane's call to this batch; returns its estimated cost.
    fn begin(&mut self, connection: u32, bytes: usize) -> u64 {
        let cost = self.lanes.get(&connection).map_or(FIRST_COST, |waiting| waiting.cost);
        let estimate = cost.saturating_add(bytes as u64 * BYTE_COST);
        self.charge(connection, estimate);
        match self.batch.iter_mut().rfind(|share| share.connection == connection) {
            Some(share) => {
                share.calls += 1;
                share.estimate += estimate;
            }
            None => self.batch.push(Share { connection, calls: 1, estimate }),
        }
        estimate
    }

    /// The last batch has taken this long: corrects the estimated costs of its lanes in proportion.
    fn account(&mut self, took: u64) {
        let batch = std::mem::take(&mut self.batch);
        let all: u64 = batch.iter().map(|share| share.estimate).sum();
        for share in &batch {
            let actual = part(took, share.estimate, all);
            let each = (actual / u64::from(share.calls.max(1))).max(LEAST_COST);
            if let Some(waiting) = self.lanes.get_mut(&share.connection) {
                // Quick to rise, slow to fall.
                waiting.cost = if each > waiting.cost { each } else { waiting.cost - (waiting.cost - each) / 8 };
            }
            self.charge(share.connection, actual.saturating_sub(share.estimate));
        }
        self.batch = batch;
        self.batch.clear();
    }

    /// Forgets lanes in which nothing waits and whose clocks are not ahead.
    fn sweep(&mut self) {
        if self.lanes.len() < self.sweep_at {
            return;
        }
        let clock = self.clock;
        self.lanes.retain(|_, waiting| !waiting.records.is_empty() || waiting.clock > clock);
        // Twice as many as are left: so each lane is examined only a few times, however many come and go.
        self.sweep_at = IDLE_LANES.max(self.lanes.len() * 2);
        self.lanes.shrink_to(self.sweep_at);
    }
}

/// A part of a whole, in proportion.
fn part(whole: u64, share: u64, all: u64) -> u64 {
    let part = u128::from(whole) * u128::from(share) / u128::from(all.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// The first frame's whole length, and its kind.
fn frame(bytes: &[u8]) -> Option<(u32, u8)> {
    let length = u32::from_le_bytes(bytes.first_chunk::<4>().copied()?).checked_add(4)?;
    let kind = *bytes.get(4)?;
    (bytes.len() >= length as usize).then_some((length, kind))
}

// By its path: a model of the gate includes this file.
#[cfg(test)]
#[path = "fair/tests.rs"]
mod tests;
