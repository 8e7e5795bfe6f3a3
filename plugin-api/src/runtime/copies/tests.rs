//! The owners of copies, and the copies that are handed over.

use std::any::Any;

use super::*;
use crate::runtime::core::tests::recorded;

struct Boat;

impl AnyFollowed for Boat {
    fn any(self: Rc<Self>) -> Rc<dyn Any> {
        self
    }

    fn observe(&self, _: &str, _: Value) -> Result<()> {
        Ok(())
    }

    fn class(&self) -> &'static str {
        "race.Boat"
    }

    fn write(&self, out: &mut Vec<u8>, _: jelly::Classes, _: &mut Vec<(RefKind, u64)>) -> jelly::Result<()> {
        jelly::write(out, &vec![0u8; 1_000])
    }
}

/// Two attachments of one connection, and one of another.
const ONE: u64 = 1 << 32 | 1;
const TWO: u64 = 1 << 32 | 2;
const OTHER: u64 = 2 << 32 | 1;
const BOAT: u64 = 1 << 32 | 7;

fn next(core: &Rc<Core>, attached: &[u64]) -> Rc<Core> {
    let frozen = core.copies.frozen(core);
    let next = recorded();
    attached.iter().for_each(|attachment| next.connected(*attachment));
    next.copies.adopt(&next, &frozen);
    next
}

#[test]
fn a_copy_lives_while_any_of_its_attachments_does() {
    let core = recorded();
    [ONE, TWO, OTHER].iter().for_each(|attachment| core.connected(*attachment));
    let _held = Remote::received(&core, BOAT, ONE);
    core.copies.follow(BOAT, ONE, Rc::new(Boat));
    core.copies.came(BOAT, TWO);
    for by in [ONE, TWO] {
        assert_eq!(core.copies.of(by, "race.Boat"), [BOAT]);
    }
    assert!(core.copies.of(OTHER, "race.Boat").is_empty() && core.copies.of(ONE, "race.Raft").is_empty());
    core.disconnected(ONE);
    assert!(core.copies.of(ONE, "race.Boat").is_empty());
    let next = next(&core, &[TWO, OTHER]);
    assert_eq!(next.copies.of(TWO, "race.Boat"), [BOAT]);
    // The copy is held until the attachments that may ask for it have done so, whichever others come first.
    next.copies.asked(OTHER);
    next.copies.resume(&next);
    assert!(next.known_remote(BOAT).is_some());
    next.copies.asked(TWO);
    assert!(next.known_remote(BOAT).is_none());
    next.disconnected(TWO);
    assert!(matches!(next.copies.find(BOAT, "race.Boat", false), Found::Nothing));
}

#[test]
fn an_unheld_copy_is_known_to_the_next_code_but_not_held() {
    let core = recorded();
    core.connected(ONE);
    core.copies.follow(BOAT, ONE, Rc::new(Boat));
    let next = next(&core, &[ONE]);
    assert!(next.known_remote(BOAT).is_none());
    assert!(matches!(next.copies.find(BOAT, "race.Boat", false), Found::Waits(_)));
}

#[test]
fn each_connection_has_its_share_of_the_handed_over_copies() {
    let copies = |count: usize, size: usize| vec![vec![0u8; size]; count];
    let all = BTreeMap::from([(1, copies(70, 1 << 20)), (2, copies(3, 1 << 20)), (3, copies(1, 40 << 20))]);
    let most = 64 << 20;
    let share = (most / 3) >> 20;
    assert_eq!(shared_out(all, most).len() >> 20, share + 3, "one has too much, one is too large");
    let all = BTreeMap::from([(1, copies(60, 1 << 20)), (2, copies(3, 1 << 20))]);
    assert_eq!(shared_out(all, most).len() >> 20, 63, "it is all that there is");
}

#[test]
fn changes_are_bounded_for_each_connection_and_room_comes_back() {
    let core = recorded();
    [ONE, OTHER].iter().for_each(|attachment| core.connected(*attachment));
    let boats: Vec<u64> = (1..=10).map(|at| 1 << 32 | at).chain([2 << 32 | 9]).collect();
    for boat in &boats {
        let waits = Waiting { class: "race.Boat".to_owned(), state: Some(vec![]), ..Waiting::default() };
        core.copies.all.borrow_mut().insert(*boat, Copy { kept: Kept::Waits(waits), ..Copy::lost() });
    }
    let arguments = jelly::to_vec(&("x".repeat(10_000),)).unwrap();
    let told = |boat: u64| core.copies.observed(boat, "name", &arguments, 64 << 10).is_ok();
    let kept = boats[..10].iter().filter(|boat| told(**boat)).count();
    assert_eq!(kept, 6, "what one connection may keep");
    assert!(told(boats[10]), "another has its own");
    core.copies.unfollow(boats[0]);
    let left: Vec<bool> = boats[1..6].iter().map(|boat| told(*boat)).collect();
    assert_eq!(
        left,
        [true, false, true, false, true],
        "there is room for one again, and in the place of each that is lost"
    );
    // A reference is not kept, because it would be the client's to count.
    let mut refers = Vec::new();
    jelly::token::list(&mut refers, 2);
    jelly::token::bytes(&mut refers, b"tuple");
    jelly::token::list(&mut refers, 2);
    jelly::token::bytes(&mut refers, b"remote");
    jelly::token::uint(&mut refers, BOAT);
    assert!(core.copies.observed(boats[10], "captain", &refers, 64 << 10).is_err());
    core.copies.clear();
    assert!(core.copies.changes.borrow().is_empty());
}
