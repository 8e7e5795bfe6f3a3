//! Objects that clients hold and give, and their fate: references, views, copies, faults with fields.

use std::collections::HashMap;

use plugin_api::prelude::*;
use plugin_api::testing::TestHost;
use plugin_api::{Follow, Followed};

#[derive(Default)]
struct Desk {
    view: Option<View>,
}

#[service("desk", save = "never")]
impl Service for Desk {
    type Perspective = Seat;
}

#[derive(Default)]
struct Seat {
    boats: Vec<Followed<Boat>>,
    kept: Vec<Remote>,
}

struct Ticket;

#[perspective]
impl Ticket {
    fn whose(&self, call: &Call) -> String {
        call.attachment().identity().to_owned()
    }
}

#[derive(Serialize, Deserialize)]
struct Boat {
    knots: u32,
}

impl Follow for Boat {
    const TYPE: &'static str = "race.Boat";

    fn observe(&mut self, _: &str, arguments: Value) -> Result<()> {
        (self.knots,) = arguments.to_typed()?;
        Ok(())
    }
}

#[derive(Serialize, Fault)]
#[fault(class = "desk.Odd", message = "odd")]
struct Odd {
    ticket: Handle<Ticket>,
}

#[perspective]
impl Seat {
    /// Gives a view of the caller's, and keeps it for others.
    fn ticket(&self, call: &Call, context: &Context<Desk>) -> Result<View> {
        let view = call.view(&Handle::new(Ticket));
        context.service()?.write(|desk| desk.view = Some(view.clone()))?;
        Ok(view)
    }

    /// The view that another was given.
    fn others(&self, context: &Context<Desk>) -> Result<Option<View>> {
        context.service()?.read(|desk| desk.view.clone())
    }

    /// An error with a reference among its fields.
    fn odd(&self) -> Result<()> {
        Err(Odd { ticket: Handle::new(Ticket) }.into())
    }

    fn enter(&mut self, boat: Followed<Boat>) -> Result<u32> {
        let knots = boat.read(|boat| boat.knots)?;
        self.boats.push(boat);
        Ok(knots)
    }

    fn forget(&mut self) {
        self.boats.clear();
        self.kept.clear();
    }

    fn keep(&mut self, object: Remote) {
        self.kept.push(object);
    }

    fn same(&self, one: Remote, other: Remote) -> bool {
        one == other
    }
}

#[test]
fn a_view_ends_with_its_owner_wherever_it_went() {
    let host = TestHost::<Desk>::start().unwrap();
    let (alice, bob) = (host.attach("alice").unwrap(), host.attach("bob").unwrap());
    let own = alice.reference("ticket", ()).unwrap();
    let given = bob.reference("others", ()).unwrap();
    assert_eq!(own.call::<String>("whose", ()).unwrap(), "alice");
    assert_eq!(given.call::<String>("whose", ()).unwrap(), "alice", "it is the view of alice that bob was given");
    drop(alice);
    let fault = given.call::<String>("whose", ()).unwrap_err();
    assert!(fault.is("twisted.spread.pb.DeadReferenceError"), "{fault}");
}

#[test]
fn a_reference_in_a_fault_is_neither_sent_nor_counted() {
    let host = TestHost::<Desk>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    let fault = alice.call::<()>("odd", ()).unwrap_err();
    assert_eq!((fault.class(), fault.message()), ("desk.Odd", "odd"));
    assert!(fault.fields::<HashMap<String, Value>>().unwrap().is_empty());
    // The next object gets the number that this one had, because this one was not kept.
    let ticket = alice.reference("ticket", ()).unwrap();
    assert_eq!(ticket.call::<String>("whose", ()).unwrap(), "alice");
    assert_eq!(host.handed_out().unwrap(), 1);
}

#[test]
fn a_released_cacheable_is_sent_again_with_its_state() {
    let host = TestHost::<Desk>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    let boat = alice.give_cached("race.Boat", &HashMap::from([("knots", 5)])).unwrap();
    assert_eq!(alice.call::<u32>("enter", (&boat,)).unwrap(), 5);
    alice.tell(&boat, "speed", (7,)).unwrap();
    assert_eq!(alice.call::<u32>("enter", (&boat,)).unwrap(), 7, "the copy has followed");
    alice.call::<()>("forget", ()).unwrap();
    assert_eq!(alice.call::<u32>("enter", (&boat,)).unwrap(), 5, "its state came with it");
    let other = alice.give_cached("race.Raft", &HashMap::from([("knots", 5)])).unwrap();
    let fault = alice.call::<u32>("enter", (&other,)).unwrap_err();
    assert!(fault.message().contains("race.Raft"), "{fault}");
}

#[test]
fn references_are_compared_and_given_back() {
    let host = TestHost::<Desk>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    let (one, other) = (alice.give(|_, _| Ok(Value::none())), alice.give(|_, _| Ok(Value::none())));
    assert!(alice.call::<bool>("same", (&one, &one)).unwrap());
    assert!(!alice.call::<bool>("same", (&one, &other)).unwrap());
    alice.call::<()>("keep", (&one,)).unwrap();
    assert!(!host.was_let_go(&one).unwrap() && host.was_let_go(&other).unwrap());
    alice.call::<()>("forget", ()).unwrap();
    assert!(host.was_let_go(&one).unwrap());
}

#[test]
fn faults_have_an_ancestry() {
    let fault = Fault::new("FileNotFoundError", "no");
    assert!(fault.is("OSError") && fault.is("builtins.OSError") && fault.is("Exception"));
    assert!(!fault.is("LookupError") && !fault.is("twisted.spread.pb.Error"));
    let own = Fault::new("shop.Full", "").with_parents(["shop.Error", "KeyError"]);
    assert!(own.is("shop.Full") && own.is("shop.Error") && own.is("LookupError"));
    assert!(!own.is("twisted.spread.pb.Error"), "its author says what it is under");
}
