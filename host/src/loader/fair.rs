//! Who is served next, of all connections whose frames wait for one generation: whoever has cost it least.
//!
//! Each connection has a lane, in which its frames keep their order. A lane has a clock of its own, which runs on by what its
//! calls cost; the lane whose clock is furthest behind is next, and one that comes again starts with those that are there
//! (start-time fair queueing). What a call will cost is taken to be what the lane's calls have cost before. A batch is
//! short, so that nobody waits for more than the call that is under way and a few short ones. Connections of one owner
//! share one place: each of their clocks runs faster by their number.
//!
//! The host's own frames go before all, but for a barrier, which is behind all that came before it. Reads no clock.

use std::collections::{BTreeSet, HashMap, VecDeque};

/// What a batch may cost, in nanoseconds, as far as can be told beforehand.
const BATCH_COST: u64 = 1_000_000;
/// The most frames of a batch.
const BATCH_CALLS: u32 = 256;
/// The most bytes of a batch, beyond its first call.
const BATCH_BYTES: usize = 256 << 10;
/// What the first call of a lane is taken to cost, in nanoseconds.
const FIRST_COST: u64 = 20_000;
/// What no call costs less than, in nanoseconds.
const LEAST_COST: u64 = 500;
/// What a byte of a call costs, in nanoseconds.
const BYTE_COST: u64 = 1;
/// So many lanes without frames are remembered before they are looked through.
const IDLE_LANES: usize = 256;

/// A connection, and whose it is.
#[derive(Debug, Clone)]
pub(super) struct Lane<M> {
    /// Its number.
    pub(super) connection: u32,
    /// Lanes of one owner share one place.
    pub(super) owner: usize,
    /// What says whether its calls may begin.
    pub(super) meter: M,
}

#[derive(Debug)]
struct Record {
    length: u32,
    is_call: bool,
    /// How many barriers had come before it.
    epoch: u64,
}

#[derive(Debug)]
struct Waiting<M> {
    lane: Lane<M>,
    bytes: VecDeque<u8>,
    records: VecDeque<Record>,
    clock: u64,
    /// What one of its calls costs, in nanoseconds.
    cost: u64,
    paused: bool,
}

/// A frame that comes behind all that was there before it, and what the host has said since.
#[derive(Debug)]
struct Barrier {
    frames: Vec<u8>,
    /// How many frames of lanes are still before it, and behind the barrier before.
    left: usize,
}

/// What a lane had in the last batch.
#[derive(Debug)]
struct Share {
    connection: u32,
    calls: u32,
    /// What they were taken to cost, in nanoseconds.
    estimate: u64,
}

/// What waits of one owner's.
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
    /// Lanes whose next frame may be popped, by their clocks.
    ready: BTreeSet<(u64, u32)>,
    /// The clock of the lane that was served last; when nobody waits, of the lane that is furthest ahead.
    clock: u64,
    furthest: u64,
    /// With so many lanes, those that need not be remembered are looked for.
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
    /// Of all owners; of one, a quarter of that.
    pub all: usize,
    /// Of each owner, also when the gate is full.
    pub each: usize,
}

impl GateLimits {
    /// As many as there are.
    pub(crate) const NONE: Self = Self { all: usize::MAX, each: usize::MAX };

    /// Whether this many bytes more may wait of an owner's, of whose `own` wait and of all others' `all` with them.
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

    /// Whether this many bytes more may wait of an owner's.
    pub(super) fn admits(&self, owner: usize, more: usize, limits: GateLimits) -> bool {
        limits.admit(self.owners.get(&owner).map_or(0, |owner| owner.bytes), self.bytes, more)
    }

    /// Whether nothing can be popped just now.
    pub(super) fn is_idle(&self) -> bool {
        self.host.is_empty() && self.ready.is_empty() && self.barriers.front().is_none_or(|barrier| barrier.left > 0)
    }

    /// The host says something: before all calls, and behind barriers.
    pub(super) fn host(&mut self, frames: &[u8]) {
        self.bytes += frames.len();
        match self.barriers.back_mut() {
            Some(barrier) => barrier.frames.extend_from_slice(frames),
            None => self.host.extend_from_slice(frames),
        }
    }

    /// The host says something that comes before all, and before barriers, too. `barred`: only if there is a barrier, which
    /// is what it is to come before.
    pub(super) fn ahead(&mut self, frames: &[u8], barred: bool) {
        if !barred || !self.barriers.is_empty() {
            self.bytes += frames.len();
            self.host.extend_from_slice(frames);
        }
    }

    /// The host says something that comes behind all that waits now.
    pub(super) fn barrier(&mut self, frame: &[u8]) {
        self.bytes += frame.len();
        let epoch = self.epoch + self.barriers.len() as u64;
        let of_this =
            |waiting: &Waiting<M>| waiting.records.iter().rev().take_while(|record| record.epoch == epoch).count();
        let left = self.lanes.values().map(of_this).sum();
        self.barriers.push_back(Barrier { frames: frame.to_vec(), left });
        // Nobody is spared now: what has to come before the barrier comes.
        let paused: Vec<u32> = self.lanes.iter().filter(|(_, waiting)| waiting.paused).map(|(no, _)| *no).collect();
        paused.into_iter().for_each(|connection| self.resume(connection));
    }

    /// Frames of a connection: `is_call` tells which are calls.
    pub(super) fn push(&mut self, lane: &Lane<M>, frames: &[u8], is_call: impl Fn(u8) -> bool) {
        if self.ready.is_empty() {
            // Nobody waits: nobody is owed anything.
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
            // Who was away does not come back with what it has saved up.
            waiting.clock = waiting.clock.max(clock);
            waiting.lane = lane.clone();
            self.ready.insert((waiting.clock, lane.connection));
            self.owners.entry(lane.owner).or_default().lanes += 1;
        }
        if let Some(owner) = self.owners.get_mut(&waiting.lane.owner) {
            owner.bytes += taken;
        }
    }

    /// A connection has room again.
    pub(super) fn resume(&mut self, connection: u32) {
        if let Some(waiting) = self.lanes.get_mut(&connection)
            && std::mem::replace(&mut waiting.paused, false)
            && !waiting.records.is_empty()
        {
            waiting.clock = waiting.clock.max(self.clock);
            self.ready.insert((waiting.clock, connection));
        }
    }

    /// A connection has cost so much more, in nanoseconds.
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

    /// What was not known of a batch when it was popped: it has cost so much more than time, in nanoseconds. It is
    /// charged to those whose calls were in it.
    pub(super) fn charge_batch(&mut self, cost: u64) {
        let all: u64 = self.batch.iter().map(|share| share.estimate).sum();
        let shares: Vec<(u32, u64)> =
            self.batch.iter().map(|share| (share.connection, part(cost, share.estimate, all))).collect();
        shares.into_iter().for_each(|(connection, cost)| self.charge(connection, cost));
    }

    /// The next frames, at a time in nanoseconds: what the batch before has cost is the time that has passed since.
    /// `may` says whether a connection's calls may begin; if not, it waits until it is resumed.
    /// `popped` is told what has left a lane, in bytes.
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
                // Behind the barrier: those before it first.
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
                // One that takes long is alone in its batch: so it is known what it takes.
                break;
            }
            popped(&waiting.lane, next.length as usize);
            let bytes = self.take_front(connection, into);
            // Whatever it is: coming and going runs an author's code, too.
            cost += self.begin(connection, bytes);
            calls += 1;
        }
    }

    /// Empties all lanes; `each` is told how many bytes were in one.
    pub(super) fn drain(&mut self, mut each: impl FnMut(&Lane<M>, usize)) {
        for (_, waiting) in self.lanes.drain() {
            self.bytes -= waiting.bytes.len();
            each(&waiting.lane, waiting.bytes.len());
        }
        self.barriers.iter_mut().for_each(|barrier| barrier.left = 0);
        self.ready.clear();
        self.owners.clear();
    }

    /// How many bytes of the host's own wait.
    pub(super) fn of_host(&self) -> usize {
        self.host.len() + self.barriers.iter().map(|barrier| barrier.frames.len()).sum::<usize>()
    }

    /// Takes everything out, whoever may not begin: what the host has said, what is in each lane, and last what stands behind
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

    /// Pops the barrier that is next, if nothing is before it any more.
    fn pop_barrier(&mut self, into: &mut Vec<u8>) -> bool {
        if self.barriers.front().is_none_or(|barrier| barrier.left > 0) {
            return false;
        }
        let Some(mut barrier) = self.barriers.pop_front() else { return false };
        self.epoch += 1;
        self.bytes -= barrier.frames.len();
        into.append(&mut barrier.frames);
        // What waited behind it.
        let paused: Vec<u32> = self.lanes.iter().filter(|(_, waiting)| waiting.paused).map(|(no, _)| *no).collect();
        paused.into_iter().for_each(|connection| self.resume(connection));
        true
    }

    /// Moves a lane's first frame; answers with its length.
    fn take_front(&mut self, connection: u32, into: &mut Vec<u8>) -> usize {
        let Some(waiting) = self.lanes.get_mut(&connection) else { return 0 };
        let Some(record) = waiting.records.pop_front() else { return 0 };
        let length = record.length as usize;
        // In slices: what drains a deque goes byte by byte.
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

    /// A lane's call is in this batch; answers with what it is taken to cost.
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

    /// The last batch has taken this long: what was taken for its cost is put right, for its lanes in proportion.
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

    /// Lanes in which nothing waits, and whose clocks are not ahead, need not be remembered.
    fn sweep(&mut self) {
        if self.lanes.len() < self.sweep_at {
            return;
        }
        let clock = self.clock;
        self.lanes.retain(|_, waiting| !waiting.records.is_empty() || waiting.clock > clock);
        // Twice as many as are left: each is looked at a few times, however many come and go.
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

// By its path: a model of the gate has this file as a part of its own.
#[cfg(test)]
#[path = "fair/tests.rs"]
mod tests;
