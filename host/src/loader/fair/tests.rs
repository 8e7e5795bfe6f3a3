//! A simulated generation whose calls take as long as a test says, and connections that call it.

use std::collections::HashSet;

use proptest::prelude::*;

use super::*;

const CALL: u8 = 5;
const OTHER: u8 = 6;

fn lane(connection: u32) -> Lane<()> {
    Lane { connection, owner: connection as usize, meter: () }
}

/// A frame that contains its connection's number and its own index.
fn bytes(kind: u8, connection: u32, index: u32, more: usize) -> Vec<u8> {
    let mut out = (9 + more as u32).to_le_bytes().to_vec();
    out.push(kind);
    out.extend(connection.to_le_bytes());
    out.extend(index.to_le_bytes());
    out.resize(out.len() + more, 0);
    out
}

fn read(mut all: &[u8]) -> Vec<(u8, u32, u32)> {
    let mut frames = Vec::new();
    while let Some((length, kind)) = frame(all) {
        let number = |at: usize| u32::from_le_bytes(all[at..at + 4].try_into().unwrap());
        frames.push((kind, number(5), number(9)));
        all = &all[length as usize..];
    }
    frames
}

/// A queue, the time, and the paused connections.
#[derive(Default)]
struct World {
    queue: FairQueue<()>,
    now: u64,
    paused: HashSet<u32>,
}

impl World {
    fn call(&mut self, connection: u32, index: u32) {
        self.queue.push(&lane(connection), &bytes(CALL, connection, index, 0), |kind| kind == CALL);
    }

    fn pop(&mut self) -> Vec<(u8, u32, u32)> {
        let (mut out, paused) = (Vec::new(), &self.paused);
        self.queue.pop(&mut out, self.now, |lane| !paused.contains(&lane.connection), |_, _| {});
        read(&out)
    }
}

#[test]
fn frames_that_take_calls_away_overtake_them_and_barriers() {
    for barred in [false, true] {
        let mut world = World::default();
        (0..3).for_each(|index| world.call(1, index));
        world.queue.barrier(&bytes(OTHER, 0, 10, 0));
        world.queue.host(&bytes(OTHER, 0, 11, 0));
        world.queue.ahead(&bytes(OTHER, 0, 12, 0), barred);
        let indexes: Vec<u32> = world.pop().into_iter().map(|(_, _, index)| index).collect();
        assert_eq!(indexes, [12, 0, 1, 2, 10, 11]);
        // The barrier has been popped: nobody reads on who was to be told before it.
        world.queue.ahead(&bytes(OTHER, 0, 13, 0), barred);
        assert_eq!(world.pop().len(), usize::from(!barred));
        assert_eq!(world.queue.len(), 0);
    }
}

#[test]
fn one_owner_may_fill_a_quarter_and_a_full_gate_admits_a_little() {
    const LITTLE: usize = 256 << 10;
    const LIMITS: GateLimits = GateLimits { all: 8 * LITTLE, each: LITTLE };
    let mut queue = FairQueue::default();
    let mut push = |connection: u32, owner: usize, size: usize| {
        let frame = bytes(CALL, connection, 0, size - 13);
        let admitted = queue.admits(owner, frame.len(), LIMITS);
        if admitted {
            queue.push(&Lane { connection, owner, meter: () }, &frame, |kind| kind == CALL);
        }
        admitted
    };
    // However many connections the owner uses.
    assert!(push(1, 1, LIMITS.all / 4 - 100) && push(2, 1, 100) && !push(3, 1, 100));
    for owner in 2..=4 {
        assert!(push(owner as u32 * 10, owner, LIMITS.all / 4));
    }
    assert!(!push(90, 9, LITTLE + 1) && push(90, 9, LITTLE) && !push(91, 9, 100), "all is taken");
    assert!(push(92, 10, LITTLE));
    let mut out = Vec::new();
    while {
        out.clear();
        queue.pop(&mut out, 0, |_| true, |_, _| {});
        !out.is_empty()
    } {}
    assert!(queue.owners.is_empty() && queue.len() == 0);
    assert!(queue.admits(1, LIMITS.all / 4, LIMITS));
}

#[test]
fn a_flood_of_long_calls_delays_others_by_one_call() {
    let mut world = World::default();
    for index in 0..1000 {
        world.call(1, index);
    }
    let took = |connection: u32| if connection == 1 { 50_000_000 } else { 5_000 };
    // The cost of its calls is unknown at first: one batch with an estimate of a millisecond goes by.
    for frame in world.pop() {
        world.now += took(frame.1);
    }
    let mut worst = 0;
    for index in 0..200 {
        let asked = world.now;
        world.call(2, index);
        loop {
            let frames = world.pop();
            assert!(frames.iter().filter(|frame| frame.1 == 1).count() <= 1, "a long call is alone in its batch");
            frames.iter().for_each(|frame| world.now += took(frame.1));
            if frames.iter().any(|frame| frame.1 == 2) {
                break;
            }
        }
        worst = worst.max(world.now - asked);
    }
    assert!(worst < 2 * 50_000_000, "{worst} ns");
}

#[test]
fn connections_that_ask_for_too_much_get_equal_time() {
    let mut world = World::default();
    let took = [0, 1_000, 10_000, 3_000_000];
    let mut spent = [0; 4];
    for index in 0..20_000 {
        (1..4).for_each(|connection| world.call(connection, index));
    }
    while world.now < 1_000_000_000 {
        for (_, connection, _) in world.pop() {
            world.now += took[connection as usize];
            spent[connection as usize] += took[connection as usize];
        }
    }
    // The first has no more than this to do: 20,000 calls of a microsecond each.
    assert_eq!(spent[1], 20_000_000);
    let [two, three] = [spent[2], spent[3]];
    assert!(two == 200_000_000 && three > 700_000_000, "{spent:?}");
}

#[test]
fn connections_of_one_owner_share_one_place() {
    let mut world = World::default();
    for index in 0..10_000 {
        for connection in 10..20 {
            let lane = Lane { connection, owner: 1, meter: () };
            world.queue.push(&lane, &bytes(CALL, connection, index, 0), |kind| kind == CALL);
        }
        world.call(1000, index);
    }
    let mut spent = [0u64; 2];
    while world.now < 300_000_000 {
        for (_, connection, _) in world.pop() {
            world.now += 20_000;
            spent[usize::from(connection == 1000)] += 20_000;
        }
    }
    let share = spent[1] as f64 / world.now as f64;
    assert!((0.4..0.6).contains(&share), "{spent:?}");
}

#[test]
fn a_paused_connection_keeps_its_order_and_delays_nobody() {
    let mut world = World::default();
    world.paused.insert(1);
    world.call(1, 0);
    world.queue.push(&lane(1), &bytes(OTHER, 1, 1, 0), |kind| kind == CALL);
    world.call(2, 0);
    assert_eq!(world.pop(), [(CALL, 2, 0)]);
    assert!(world.queue.is_idle());
    world.paused.clear();
    world.queue.resume(1);
    assert!(!world.queue.is_idle());
    assert_eq!(world.pop(), [(CALL, 1, 0), (OTHER, 1, 1)]);
}

#[test]
fn a_barrier_waits_for_everything_before_it_even_if_paused() {
    let mut world = World::default();
    world.paused.insert(1);
    world.call(1, 0);
    assert_eq!(world.pop(), []);
    world.queue.barrier(&bytes(17, 0, 0, 0));
    world.queue.host(&bytes(18, 0, 0, 0));
    world.call(1, 1);
    world.call(2, 0);
    let popped = world.pop();
    assert_eq!(popped, [(CALL, 1, 0), (17, 0, 0), (18, 0, 0), (CALL, 2, 0)]);
    world.paused.clear();
    world.queue.resume(1);
    assert_eq!(world.pop(), [(CALL, 1, 1)]);
}

#[test]
fn lanes_of_former_connections_are_forgotten() {
    let mut world = World::default();
    for connection in 0..100_000 {
        world.call(connection, 0);
        while !world.queue.is_idle() {
            world.pop();
            world.now += 1000;
        }
    }
    assert!(world.queue.lanes.len() <= IDLE_LANES, "{}", world.queue.lanes.len());
    assert_eq!((world.queue.len(), world.queue.owners.len()), (0, 0));
}

#[derive(Debug, Clone)]
enum Act {
    Push(u32, bool, usize),
    Host,
    Barrier,
    Pause(u32),
    Resume(u32),
    Pop(u64),
    Charge(u32, u64),
}

fn act() -> impl Strategy<Value = Act> {
    prop_oneof![
        6 => (1..5u32, any::<bool>(), 0..300_000usize).prop_map(|(who, call, size)| Act::Push(who, call, size)),
        1 => Just(Act::Host),
        1 => Just(Act::Barrier),
        1 => (1..5u32).prop_map(Act::Pause),
        2 => (1..5u32).prop_map(Act::Resume),
        4 => (0..5_000_000u64).prop_map(Act::Pop),
        1 => (1..5u32, 0..9_000_000u64).prop_map(|(who, cost)| Act::Charge(who, cost)),
    ]
}

proptest! {
    /// No frame is lost or duplicated, and each connection's frames keep their order. A barrier comes after all earlier frames
    /// and before all later ones.
    #[test]
    fn every_frame_comes_once_and_in_order(acts in prop::collection::vec(act(), 1..80)) {
        let mut world = World::default();
        let (mut next, mut pushed, mut popped) = (0, Vec::new(), Vec::new());
        for act in acts {
            next += 1;
            match act {
                Act::Push(who, call, size) => {
                    let kind = if call { CALL } else { OTHER };
                    world.queue.push(&lane(who), &bytes(kind, who, next, size), |kind| kind == CALL);
                    pushed.push((kind, who, next));
                }
                Act::Host => {
                    world.queue.host(&bytes(16, 0, next, 0));
                    pushed.push((16, 0, next));
                }
                Act::Barrier => {
                    world.queue.barrier(&bytes(17, 0, next, 0));
                    pushed.push((17, 0, next));
                }
                Act::Pause(who) => drop(world.paused.insert(who)),
                Act::Resume(who) => {
                    world.paused.remove(&who);
                    world.queue.resume(who);
                }
                Act::Pop(took) => {
                    popped.extend(world.pop());
                    world.now += took;
                }
                Act::Charge(who, cost) => world.queue.charge(who, cost),
            }
        }
        world.paused.clear();
        (1..5).for_each(|who| world.queue.resume(who));
        while !world.queue.is_idle() {
            let some = world.pop();
            prop_assert!(!some.is_empty(), "it says that there is something");
            popped.extend(some);
        }
        prop_assert_eq!(world.queue.len(), 0);
        for who in 0..5 {
            let of = |all: &[(u8, u32, u32)]| all.iter().filter(|frame| frame.1 == who).copied().collect::<Vec<_>>();
            prop_assert_eq!(of(&pushed), of(&popped));
        }
        for (at, barrier) in popped.iter().enumerate().filter(|(_, frame)| frame.0 == 17) {
            prop_assert!(popped[..at].iter().all(|frame| frame.2 < barrier.2));
            let before = pushed.iter().filter(|frame| frame.2 < barrier.2).count();
            prop_assert_eq!(before, at, "all that came before it is before it");
        }
    }
}
