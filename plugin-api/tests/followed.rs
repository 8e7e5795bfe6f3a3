//! Clients' cached objects when the service is replaced.

use std::collections::HashMap;

use plugin_api::prelude::*;
use plugin_api::testing::{TestCached, TestClient, TestHost};
use plugin_api::{Follow, Followed};

#[derive(Default)]
struct Race {
    /// What was seen of a watched boat.
    seen: Vec<u8>,
}

#[service("race", save = "never")]
impl Service for Race {
    type Perspective = Marshal;

    /// "bob" asks for nothing, "carol" too late, "erin" for her mind, and everybody else for all there is.
    fn attached(_: &Context<Self>, marshal: Handle<Marshal>, by: &Attachment) -> Result<Handle<Marshal>> {
        if by.perspective() == "erin" {
            let boats = by.mind_as()?;
            marshal.write(|marshal| marshal.boats = boats)?;
        } else if !["bob", "carol"].contains(&by.perspective()) {
            marshal.write(|marshal| marshal.boats = by.followed())?;
        }
        Ok(marshal)
    }

    fn rebuild(_: Context<Self>, name: String) -> impl Future<Output = Result<AnyHandle>> {
        std::future::ready(Ok(Handle::named(&name, Pier).into()))
    }
}

/// One of the service's own objects, which a boat may be at.
struct Pier;

#[perspective]
impl Pier {}

/// A cached object of a client's, with every kind of reference.
#[derive(Serialize, Deserialize)]
struct Boat {
    knots: u32,
    #[serde(default)]
    log: Vec<String>,
    #[serde(default)]
    captain: Option<Remote>,
    #[serde(default)]
    tender: Option<Followed<Tender>>,
    #[serde(default)]
    pier: Option<Handle<Pier>>,
    #[serde(default, serialize_with = "breaks")]
    broken: bool,
}

fn breaks<S: serde::Serializer>(broken: &bool, serializer: S) -> Result<S::Ok, S::Error> {
    assert!(!broken, "a boat that cannot be written");
    serializer.serialize_bool(*broken)
}

impl Follow for Boat {
    const TYPE: &'static str = "race.Boat";

    fn observe(&mut self, method: &str, arguments: Value) -> Result<()> {
        self.log.push(method.to_owned());
        match method {
            "speed" => (self.knots,) = arguments.to_typed()?,
            "captain" => (self.captain,) = arguments.to_typed()?,
            "panic" => panic!("told to"),
            other => return Err(Fault::value(format!("boats have no {other}"))),
        }
        Ok(())
    }
}

#[derive(Serialize, Deserialize)]
struct Tender {
    seats: u32,
}

impl Follow for Tender {
    const TYPE: &'static str = "race.Tender";

    fn observe(&mut self, _: &str, arguments: Value) -> Result<()> {
        (self.seats,) = arguments.to_typed()?;
        Ok(())
    }
}

#[derive(Default)]
struct Marshal {
    boats: Vec<Followed<Boat>>,
}

#[perspective]
impl Marshal {
    fn enter(&mut self, boat: Followed<Boat>) {
        self.boats.push(boat);
    }

    /// Has it, and does not end.
    async fn wait(_: Handle<Self>, boat: Followed<Boat>) -> Result<()> {
        let _boat = boat;
        std::future::pending().await
    }

    /// Counts the boat's changes until the client leaves, as a task of the service's.
    async fn watch(_: Handle<Self>, context: Context<Race>, boat: Followed<Boat>) -> Result<()> {
        let service = context.service()?;
        context.spawn(async move {
            while boat.changed().await {
                let _ = service.write(|race| race.seen.push(1));
            }
            let _ = service.write(|race| race.seen.push(0));
        });
        Ok(())
    }

    /// Waits until this many were seen: 1 for a change, 0 for the end.
    async fn seen(_: Handle<Self>, context: Context<Race>, count: usize) -> Result<Vec<u8>> {
        loop {
            let seen = context.service()?.read(|race| race.seen.clone())?;
            if seen.len() >= count {
                return Ok(seen);
            }
            tokio::task::yield_now().await;
        }
    }

    fn read_mind(&mut self, call: &Call) -> Result<()> {
        self.boats = call.attachment().mind_as()?;
        Ok(())
    }

    fn forget(&mut self) {
        self.boats.clear();
    }

    /// Of each boat: how fast it is, and which changes it has received.
    fn boats(&self) -> Result<Vec<(u32, Vec<String>)>> {
        self.boats.iter().map(|boat| boat.read(|boat| (boat.knots, boat.log.clone()))).collect()
    }

    fn pier(&self) -> Handle<Pier> {
        Handle::named("north", Pier)
    }

    /// The seats of the first boat's tender.
    fn seats(&self) -> Result<Option<u32>> {
        self.boats[0].read(|boat| boat.tender.as_ref().map(|tender| tender.read(|tender| tender.seats)).transpose())?
    }

    /// Asks the first boat's captain, and looks at its tender and its pier.
    async fn aboard(me: Handle<Self>) -> Result<(String, u32, bool)> {
        let boat = me.read(|marshal| marshal.boats[0].clone())?;
        let captain = boat.read(|boat| boat.captain.clone())?.ok_or_else(|| Fault::value("no captain"))?;
        let seats =
            boat.read(|boat| boat.tender.as_ref().map_or(Ok(0), |tender| tender.read(|tender| tender.seats)))??;
        Ok((captain.call("name", ()).await?, seats, boat.read(|boat| boat.pier.is_some())?))
    }
}

type Boats = Vec<(u32, Vec<String>)>;

fn boat(client: &TestClient<'_, Race>, knots: u32) -> TestCached {
    client.give_cached("race.Boat", &HashMap::from([("knots", knots)])).expect("it can be written")
}

fn knots(client: &TestClient<'_, Race>) -> Vec<u32> {
    client.call::<Boats>("boats", ()).expect("boats").into_iter().map(|(knots, _)| knots).collect()
}

#[test]
fn copies_claimed_in_attached_are_current_and_keep_following() {
    let host = TestHost::<Race>::start().unwrap();
    let (alice, dave) = (host.attach("alice").unwrap(), host.attach("dave").unwrap());
    let (one, other, daves) = (boat(&alice, 1), boat(&alice, 2), boat(&dave, 3));
    alice.call::<()>("enter", (&one,)).unwrap();
    alice.call::<()>("enter", (&other,)).unwrap();
    dave.call::<()>("enter", (&daves,)).unwrap();
    for reloads in 1..=3 {
        alice.tell(&one, "speed", (10 * reloads,)).unwrap();
        host.reload().unwrap();
        assert_eq!(knots(&alice), [10 * reloads, 2], "after {reloads} replacements");
        assert_eq!(knots(&dave), [3], "each has what came by their own attachment");
    }
    alice.tell(&other, "speed", (99,)).unwrap();
    alice.call::<()>("enter", (&other,)).unwrap();
    assert_eq!(knots(&alice), [30, 99, 99], "it is the same copy that is sent once more without its state");
}

#[test]
fn unclaimed_copies_are_released_and_can_be_sent_again() {
    let host = TestHost::<Race>::start().unwrap();
    let bob = host.attach("bob").unwrap();
    let yacht = boat(&bob, 5);
    bob.call::<()>("enter", (&yacht,)).unwrap();
    bob.tell(&yacht, "speed", (7,)).unwrap();
    host.reload().unwrap();
    // Until the old code has ended, and the client has ended its object because of that, the old copy is used.
    let came = std::iter::repeat_with(|| {
        bob.call::<()>("enter", (&yacht,)).unwrap();
        let came = knots(&bob);
        bob.call::<()>("forget", ()).unwrap();
        came
    });
    let mut came = came.take(100_000).skip_while(|knots| *knots == [7]);
    assert_eq!(came.next().unwrap(), [5], "its state came with it");
}

/// A waiting call keeps the old code, so the client has not ended its object.
#[test]
fn a_copy_may_come_without_state_until_its_client_ended_it() {
    let host = TestHost::<Race>::start().unwrap();
    let carol = host.attach("carol").unwrap();
    let yacht = boat(&carol, 5);
    let _waits = carol.begin("wait", (&yacht,)).unwrap();
    carol.tell(&yacht, "speed", (6,)).unwrap();
    host.reload().unwrap();
    carol.tell(&yacht, "speed", (7,)).unwrap();
    let refused = carol.tell(&yacht, "panic", ());
    refused.expect("nobody knows its type yet");
    carol.tell(&yacht, "speed", (8,)).unwrap();
    host.reload().unwrap();
    carol.tell(&yacht, "speed", (9,)).unwrap();
    carol.call::<()>("enter", (&yacht,)).unwrap();
    let told = ["speed", "speed", "panic", "speed", "speed"].map(str::to_owned).to_vec();
    assert_eq!(carol.call::<Boats>("boats", ()).unwrap(), [(9, told)]);
}

#[test]
fn changes_of_an_unclaimed_copy_are_bounded() {
    let host = TestHost::<Race>::start().unwrap();
    let carol = host.attach("carol").unwrap();
    let yacht = boat(&carol, 5);
    let _waits = carol.begin("wait", (&yacht,)).unwrap();
    host.reload().unwrap();
    let long = "x".repeat(1_000);
    let kept = (0..100).take_while(|_| carol.tell(&yacht, "name", (&long,)).is_ok()).count();
    assert!((60..66).contains(&kept), "{kept} thousand bytes");
    let fault = carol.call::<()>("enter", (&yacht,)).unwrap_err();
    assert!(fault.message().contains("changes were lost"), "{fault}");
}

/// The lost part of a mind is given back to the client, which can send it again. It is never read in its first state.
#[test]
fn a_mind_read_too_late_fails_and_its_objects_can_come_again() {
    let host = TestHost::<Race>::start().unwrap();
    let mut kept = None;
    let carol = host.attach_giving("carol", |carol| (&*kept.insert(boat(carol, 1)),)).unwrap();
    let yacht = kept.unwrap();
    let long = "x".repeat(1_000);
    assert!((0..100).any(|_| carol.tell(&yacht, "name", (&long,)).is_err()));
    let fault = carol.call::<()>("read_mind", ()).unwrap_err();
    assert!(fault.message().contains("not there any more"), "{fault}");
    carol.call::<()>("enter", (&yacht,)).unwrap();
    assert_eq!(knots(&carol), [1], "with its state");
}

#[test]
fn states_in_a_mind_may_have_objects_of_their_own() {
    let host = TestHost::<Race>::start().unwrap();
    #[derive(Serialize)]
    struct State<'a> {
        knots: u32,
        tender: &'a TestCached,
    }
    let mut kept = None;
    let erin = host
        .attach_giving("erin", |erin| {
            let tender = erin.give_cached("race.Tender", &HashMap::from([("seats", 4)])).expect("it can be written");
            kept = Some(tender);
            let tender = kept.as_ref().expect("just now");
            // Its own state is sent with the first value that contains it.
            let yacht = Written { class: "race.Boat", state: State { knots: 3, tender } };
            (yacht.given(erin),)
        })
        .unwrap();
    for seats in 4..8 {
        assert_eq!((knots(&erin), erin.call("seats", ()).unwrap()), (vec![3], Some(seats)));
        erin.tell(kept.as_ref().unwrap(), "seats", (seats + 1,)).unwrap();
        host.reload().unwrap();
    }
}

/// A cached object whose state is written where it is sent.
struct Written<T> {
    class: &'static str,
    state: T,
}

impl<T: Serialize> Written<T> {
    fn given(&self, client: &TestClient<'_, Race>) -> TestCached {
        client.give_cached(self.class, &self.state).expect("it can be written")
    }
}

#[test]
fn copies_in_a_mind_follow_from_the_start_however_often_read() {
    for (name, early) in [("erin", true), ("carol", false)] {
        let host = TestHost::<Race>::start().unwrap();
        let mut kept = None;
        let client = host
            .attach_giving(name, |client| {
                let (one, other) = &*kept.insert((boat(client, 1), boat(client, 2)));
                (one, other, one)
            })
            .unwrap();
        let (one, _) = kept.unwrap();
        assert_eq!(knots(&client), if early { vec![1, 2, 1] } else { vec![] });
        client.tell(&one, "speed", (5,)).unwrap();
        for round in 0..3 {
            client.call::<()>("read_mind", ()).unwrap();
            assert_eq!(knots(&client), [5 + round, 2, 5 + round], "{name}");
            client.tell(&one, "speed", (6 + round,)).unwrap();
            assert_eq!(knots(&client), [6 + round, 2, 6 + round], "{name}");
            host.reload().unwrap();
            assert_eq!(knots(&client).len(), if early { 3 } else { 0 });
        }
    }
}

#[test]
fn references_in_a_state_are_handed_over_with_it() {
    let host = TestHost::<Race>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    let captain = alice.give(|_, _| Ok(Value::from("ahab")));
    let tender = alice.give_cached("race.Tender", &HashMap::from([("seats", 4)])).unwrap();
    let pier = alice.reference("pier", ()).unwrap();
    #[derive(Serialize)]
    struct State<'a>(
        #[serde(serialize_with = "whole")] (&'a TestCached, &'a plugin_api::testing::TestObject<'a, Race>),
    );
    fn whole<S: serde::Serializer>(
        (tender, pier): &(&TestCached, &plugin_api::testing::TestObject<'_, Race>),
        serializer: S,
    ) -> std::result::Result<S::Ok, S::Error> {
        use serde::ser::SerializeMap;
        let mut map = serializer.serialize_map(Some(3))?;
        map.serialize_entry("knots", &1)?;
        map.serialize_entry("tender", tender)?;
        map.serialize_entry("pier", pier)?;
        map.end()
    }
    let yacht = alice.give_cached("race.Boat", &State((&tender, &pier))).unwrap();
    alice.call::<()>("enter", (&yacht,)).unwrap();
    alice.tell(&yacht, "captain", (&captain,)).unwrap();
    for seats in 5..8 {
        alice.tell(&tender, "seats", (seats,)).unwrap();
        host.reload().unwrap();
        assert_eq!(alice.call::<(String, u32, bool)>("aboard", ()).unwrap(), ("ahab".to_owned(), seats, true));
    }
    assert!(!host.was_let_go(&captain).unwrap());
    alice.call::<()>("forget", ()).unwrap();
    // The old code ends on its own threads.
    let mut looks = (0..1_000_000).map(|_| host.was_let_go(&captain).unwrap());
    assert!(looks.any(|gone| gone), "each generation gave back what it was given");
}

#[test]
fn a_copy_lost_in_a_reload_does_not_return_to_its_first_state() {
    let host = TestHost::<Race>::start().unwrap();
    #[derive(Serialize)]
    struct State {
        knots: u32,
        broken: bool,
    }
    let mut kept = None;
    let carol = host
        .attach_giving("carol", |carol| {
            let boat = carol.give_cached("race.Boat", &State { knots: 1, broken: true });
            (&*kept.insert(boat.expect("it can be written")),)
        })
        .unwrap();
    carol.call::<()>("read_mind", ()).unwrap();
    carol.tell(kept.as_ref().unwrap(), "speed", (5,)).unwrap();
    host.reload().unwrap();
    let fault = carol.call::<()>("read_mind", ()).unwrap_err();
    assert!(fault.message().contains("lost with the old code"), "{fault}");
    // The copy was given back. Until the client knows that, it is not available.
    let mut tries = (0..100_000).map(|_| carol.call::<()>("enter", (kept.as_ref().unwrap(),)));
    assert!(tries.any(|entered| entered.is_ok()), "it comes again with its state");
}

#[test]
fn a_copy_that_cannot_be_serialized_is_skipped_in_a_reload() {
    let host = TestHost::<Race>::start().unwrap();
    let alice = host.attach("alice").unwrap();
    #[derive(Serialize)]
    struct State {
        knots: u32,
        broken: bool,
    }
    let broken = alice.give_cached("race.Boat", &State { knots: 1, broken: true }).unwrap();
    let sound = boat(&alice, 2);
    alice.call::<()>("enter", (&broken,)).unwrap();
    alice.call::<()>("enter", (&sound,)).unwrap();
    host.reload().unwrap();
    assert_eq!(knots(&alice), [2]);
}

#[test]
fn a_watched_copy_changes_until_its_client_leaves() {
    let host = TestHost::<Race>::start().unwrap();
    let (alice, dave) = (host.attach("alice").unwrap(), host.attach("dave").unwrap());
    let watched = boat(&alice, 1);
    alice.call::<()>("watch", (&watched,)).unwrap();
    // By then, the task waits.
    host.settle().unwrap();
    for count in 1..=2 {
        alice.tell(&watched, "speed", (count,)).unwrap();
        assert_eq!(dave.call::<Vec<u8>>("seen", (count,)).unwrap(), vec![1; count as usize]);
    }
    drop(alice);
    assert_eq!(dave.call::<Vec<u8>>("seen", (3,)).unwrap(), [1, 1, 0]);
}
