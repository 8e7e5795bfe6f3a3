//! The fate of each thing when something ends: one row for each thing that a client can have, one column for each way of taking
//! it away.

use plugin_api::abi::frame::ToHost;

use super::pair::{DEAD, Heard, Pair, Told, cache, list, luid, references, remote};

/// Something that came by alice's key to "board/alice", or the client's object that was sent by it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Thing {
    Perspective,
    Object,
    /// Handed out by a call of an object.
    ObjectOfObject,
    CachedCopy,
    Mind,
    /// The service has answered with an object; the session has not processed the answer yet.
    AnswerOnItsWay,
    CallUnderWay,
    ParkedCall,
    /// An object that also came by the key of bob, who is logged in on the same connection.
    SharedObject,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    KeyRemoved,
    CredentialRemoved,
    IdentityDisabled,
    IdentityRemoved,
    SessionCut,
    ServiceStopped,
    ServiceReplaced,
    PerspectiveLetGo,
    ClientGone,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    /// It can be used as before: calls arrive, updates arrive, answers arrive.
    Lives,
    /// Using it fails with DeadReferenceError; what it counted for is given back, on both sides.
    Dead,
    /// The luid no longer exists: the client gave it back itself.
    Unknown,
    /// The connection has ended, and what it counted for is given back to the service.
    Closed,
}

/// The expected fate, and the reason.
fn fate(thing: Thing, end: End) -> (Fate, &'static str) {
    use End::{ClientGone, PerspectiveLetGo, ServiceReplaced, ServiceStopped, SessionCut};
    match (thing, end) {
        (_, SessionCut | ClientGone) => (Fate::Closed, "nothing outlives the connection"),
        (_, ServiceStopped) => (Fate::Dead, "nobody is there who could serve it"),
        (_, ServiceReplaced) => (Fate::Lives, "the next generation serves what this one did"),
        (Thing::Perspective, PerspectiveLetGo) => (Fate::Unknown, "that is what letting go of it means"),
        (_, PerspectiveLetGo) => (Fate::Lives, "Twisted's rule: an object lives until its own references are gone"),
        (Thing::SharedObject, _) => (Fate::Lives, "it came by bob's key, too, which he still has"),
        _ => (Fate::Dead, "what it came by was taken away"),
    }
}

const THINGS: [Thing; 9] = [
    Thing::Perspective,
    Thing::Object,
    Thing::ObjectOfObject,
    Thing::CachedCopy,
    Thing::Mind,
    Thing::AnswerOnItsWay,
    Thing::CallUnderWay,
    Thing::ParkedCall,
    Thing::SharedObject,
];
const ENDS: [End; 9] = [
    End::KeyRemoved,
    End::CredentialRemoved,
    End::IdentityDisabled,
    End::IdentityRemoved,
    End::SessionCut,
    End::ServiceStopped,
    End::ServiceReplaced,
    End::PerspectiveLetGo,
    End::ClientGone,
];

/// A client that is attached as alice (with a mind), for a shared object also as bob, and has one thing.
struct Scene {
    pair: Pair,
    /// Alice's.
    attachment: u64,
    perspective: u64,
    /// The service's handle of the mind.
    mind: u64,
    /// The numbers that identify the thing: a luid, or the client's or the service's number of a call.
    luid: u64,
    request: u64,
    call: u64,
}

/// The numbers of the service's own objects.
const OBJECT: u64 = 50;
const INNER: u64 = 51;
const COPY: u64 = 52;

impl Scene {
    fn new(thing: Thing) -> Self {
        let mut limits = super::super::Limits::default();
        limits.after.calls = if thing == Thing::ParkedCall { 1 } else { 1024 };
        let mut pair = Pair::with(limits);
        let alice = pair.login("alice", None);
        let request = pair.begin_attach(alice, "board", "alice", Some('m'));
        pair.turn();
        let told = pair.told("board");
        let Some(Told::Attach { attachment, mind, .. }) = told.last().cloned() else { panic!("{told:?}") };
        pair.says("board", &ToHost::Attached { attachment });
        let perspective = luid(&pair.answer(request));
        let mut scene = Self { pair, attachment, perspective, mind, luid: 0, request: 0, call: 0 };
        scene.get(thing);
        scene
    }

    fn get(&mut self, thing: Thing) {
        let (pair, perspective) = (&mut self.pair, self.perspective);
        match thing {
            Thing::Perspective => self.luid = perspective,
            Thing::Object => self.luid = pair.hand_out("board", perspective, OBJECT),
            Thing::ObjectOfObject => {
                let outer = pair.hand_out("board", perspective, OBJECT);
                self.luid = pair.hand_out("board", outer, INNER);
                // The object it came from may go.
                pair.client.output.release(outer, 1);
                pair.turn();
            }
            Thing::CachedCopy => {
                let (_, luids) = pair.get("board", perspective, &cache(COPY, &[]), &[COPY]);
                self.luid = luids[0];
            }
            Thing::Mind => {}
            Thing::AnswerOnItsWay | Thing::CallUnderWay => {
                let (request, told) = pair.begin("board", perspective, &references(b"remote", &[]));
                let Some(Told::Call { call, .. }) = told else { panic!("not called") };
                (self.request, self.call) = (request, call);
            }
            Thing::ParkedCall => {
                let (_, told) = pair.begin("board", perspective, &references(b"remote", &[]));
                let Some(Told::Call { call, .. }) = told else { panic!("not called") };
                self.call = call;
                let argument = pair.own('p');
                let (request, told) = pair.begin("board", perspective, &references(b"remote", &[argument]));
                assert_eq!(told, None, "it waits");
                self.request = request;
            }
            Thing::SharedObject => {
                let bob = pair.login("bob", None);
                let (_, bobs) = pair.attach(bob, "board", "shared", None);
                self.luid = pair.hand_out("board", perspective, OBJECT);
                assert_eq!(pair.hand_out("board", bobs, OBJECT), self.luid, "one object has one luid");
            }
        }
    }

    /// The service answers the call with an object.
    fn answer(&mut self) {
        let (call, value, objects) = (self.call, remote(OBJECT), list(&[OBJECT]));
        self.pair.says_as(1, "board", &ToHost::Answer { call, value: &value, objects: &objects });
    }

    fn end(&mut self, end: End) {
        let pair = &mut self.pair;
        match end {
            End::KeyRemoved => {
                let alice = pair.identities.get_mut("alice").unwrap();
                alice.keyring.remove(&crate::cred::Key::new("board", "alice").unwrap());
                pair.tell_of("alice");
            }
            End::CredentialRemoved => {
                pair.identities.get_mut("alice").unwrap().credentials.retain(|credential| credential.id != 1);
                pair.tell_of("alice");
            }
            End::IdentityDisabled => {
                pair.identities.get_mut("alice").unwrap().enabled = false;
                pair.tell_of("alice");
            }
            End::IdentityRemoved => {
                pair.identities.remove("alice");
                pair.tell_of("alice");
            }
            End::SessionCut => {
                let sessions = std::sync::Arc::clone(&pair.sessions);
                std::thread::scope(|scope| {
                    let cutting = scope.spawn(move || sessions.cut(None, Some("alice")));
                    // The driver closes the connection when it is told to.
                    while !pair.session().notices() {
                        std::thread::yield_now();
                    }
                    pair.close();
                    assert_eq!(cutting.join().unwrap().len(), 1);
                });
            }
            End::ServiceStopped => pair.says("board", &ToHost::Stopped {}),
            End::ServiceReplaced => {
                // The next generation has the mind too, and the previous one releases it.
                pair.says_as(2, "board", &ToHost::Retained { handle: self.mind });
                pair.says_as(1, "board", &ToHost::Release { handle: self.mind, count: 1 });
                pair.turn();
            }
            End::PerspectiveLetGo => {
                pair.client.output.release(self.perspective, 1);
                pair.turn();
            }
            End::ClientGone => pair.close(),
        }
    }

    /// The thing's actual fate.
    fn fate(&mut self, thing: Thing) -> Fate {
        if self.pair.session.is_none() {
            assert!(self.pair.service("board").out.lock().is_empty(), "all is given back");
            assert_eq!(self.pair.service("board").known(), 0);
            assert_eq!(self.pair.sessions.list(), []);
            return Fate::Closed;
        }
        match thing {
            Thing::Perspective | Thing::Object | Thing::ObjectOfObject | Thing::SharedObject => {
                match self.pair.reaches("board", self.luid) {
                    Ok(_) => Fate::Lives,
                    Err(class) if class == DEAD => Fate::Dead,
                    Err(class) if class == "twisted.spread.pb.Error" => Fate::Unknown,
                    Err(other) => panic!("{other}"),
                }
            }
            Thing::CachedCopy => {
                let none = references(b"remote", &[]);
                let (attachment, keywords) =
                    (self.attachment, jelly::to_vec(&std::collections::BTreeMap::<u8, u8>::new()).unwrap());
                let update = ToHost::Update {
                    attachment,
                    object: COPY,
                    method: "moved",
                    arguments: &none,
                    keywords: &keywords,
                    objects: &[],
                };
                self.pair.says("board", &update);
                let heard = self.pair.heard.iter().any(|heard| matches!(heard, Heard::Update { .. }));
                if heard { Fate::Lives } else { Fate::Dead }
            }
            Thing::Mind => self.mind_is_called(),
            Thing::AnswerOnItsWay | Thing::CallUnderWay => {
                self.pair.turn();
                match self.pair.reply(self.request) {
                    Some(Heard::Answer { value, .. }) => {
                        self.luid = luid(&value);
                        Fate::Lives
                    }
                    Some(Heard::Error { class, .. }) if class == DEAD => Fate::Dead,
                    other => panic!("{other:?}"),
                }
            }
            Thing::ParkedCall => {
                let nothing = jelly::to_vec(&()).unwrap();
                self.pair.says("board", &ToHost::Answer { call: self.call, value: &nothing, objects: &[] });
                let begun = self.pair.told("board").iter().any(|told| matches!(told, Told::Call { .. }));
                match (begun, self.pair.reply(self.request)) {
                    (true, None) => Fate::Lives,
                    (false, Some(Heard::Error { class, .. })) if class == DEAD => {
                        assert!(self.pair.heard.contains(&Heard::Dropped('p')), "its argument is given back");
                        Fate::Dead
                    }
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    fn mind_is_called(&mut self) -> Fate {
        let (none, handle, attachment) = (references(b"remote", &[]), self.mind, self.attachment);
        let keywords = jelly::to_vec(&std::collections::BTreeMap::<u8, u8>::new()).unwrap();
        let (arguments, keywords) = (none.as_slice(), keywords.as_slice());
        let call = ToHost::Call {
            call: 9,
            handle,
            answer: true,
            method: "tell",
            arguments,
            keywords,
            attachment,
            objects: &[],
        };
        self.pair.says("board", &call);
        let heard = self.pair.heard.iter().any(|heard| matches!(heard, Heard::Call { object: 'm', .. }));
        if heard {
            return Fate::Lives;
        }
        assert!(self.pair.heard.contains(&Heard::Dropped('m')), "it is given back");
        Fate::Dead
    }
}

#[test]
fn each_thing_ends_when_its_source_ends_and_not_before() {
    let mut rows = 0;
    for thing in THINGS {
        for end in ENDS {
            let (expected, why) = fate(thing, end);
            let mut scene = Scene::new(thing);
            if thing == Thing::AnswerOnItsWay {
                if matches!(end, End::ServiceReplaced | End::PerspectiveLetGo) {
                    scene.end(end);
                    scene.answer();
                } else {
                    // The end comes first. The answer was sent before it, and arrives after it.
                    scene.end(end);
                    if scene.pair.session.is_some() {
                        scene.answer();
                    }
                }
            } else {
                scene.end(end);
                if thing == Thing::CallUnderWay && expected == Fate::Lives {
                    scene.answer();
                }
            }
            assert_eq!(scene.fate(thing), expected, "{thing:?} when {end:?}: {why}");
            if expected == Fate::Dead && end != End::ServiceStopped {
                scene.pair.turn();
                let out = scene.pair.service("board").out.lock().clone();
                assert_eq!(out, Default::default(), "{thing:?} when {end:?}: the service gets back what it handed out");
            }
            rows += 1;
        }
    }
    assert_eq!(rows, THINGS.len() * ENDS.len());
}

/// Things that live on after the client has released their perspective must still end with its key.
#[test]
fn things_that_outlive_their_perspective_end_with_its_key() {
    let kept = [Thing::Object, Thing::ObjectOfObject, Thing::CachedCopy, Thing::Mind, Thing::CallUnderWay];
    for thing in kept {
        for end in [End::KeyRemoved, End::CredentialRemoved, End::IdentityDisabled, End::IdentityRemoved] {
            let mut scene = Scene::new(thing);
            scene.end(End::PerspectiveLetGo);
            if thing == Thing::Mind {
                // It lives as long as anything else came by the attachment, or itself.
                assert_eq!(scene.mind_is_called(), Fate::Lives);
                scene.pair.heard.clear();
            }
            scene.end(end);
            assert_eq!(scene.fate(thing), Fate::Dead, "{thing:?} when {end:?}");
            assert_eq!(scene.pair.service("board").known(), 0);
        }
    }
}

/// One object, two attachments: each of the service's messages goes by the attachment that it names.
#[test]
fn a_mind_given_twice_counts_for_the_attachment_that_calls_it() {
    for (lost, other) in [("alice", "shared"), ("shared", "alice")] {
        let mut pair = Pair::new();
        let avatar = pair.login("alice", None);
        let mut by = std::collections::BTreeMap::new();
        let mut mind = 0;
        for perspective in ["alice", "shared"] {
            let request = pair.begin_attach(avatar, "board", perspective, Some('m'));
            pair.turn();
            let Some(Told::Attach { attachment, mind: handle, .. }) = pair.told("board").last().cloned() else {
                panic!()
            };
            pair.says("board", &ToHost::Attached { attachment });
            pair.answer(request);
            assert!(mind == 0 || mind == handle, "one object is one handle");
            mind = handle;
            by.insert(perspective, attachment);
        }
        let keywords = jelly::to_vec(&std::collections::BTreeMap::<u8, u8>::new()).unwrap();
        let hand = |pair: &mut Pair, by: u64, object: u64| {
            let (arguments, objects) = (references(b"remote", &[object]), list(&[object]));
            pair.says(
                "board",
                &ToHost::Call {
                    call: object,
                    handle: mind,
                    answer: false,
                    method: "take",
                    arguments: &arguments,
                    keywords: &keywords,
                    attachment: by,
                    objects: &objects,
                },
            );
            match pair.heard.pop() {
                Some(Heard::Call { luids, .. }) => Some(luids[0]),
                _ => None,
            }
        };
        let (first, second) = (hand(&mut pair, by["alice"], 60).unwrap(), hand(&mut pair, by["shared"], 61).unwrap());
        let alice = pair.identities.get_mut("alice").unwrap();
        alice.keyring.remove(&crate::cred::Key::new("board", lost).unwrap());
        pair.tell_of("alice");
        let of = |perspective| if perspective == "alice" { first } else { second };
        assert_eq!(pair.reaches("board", of(lost)), Err(DEAD.to_owned()), "{lost}: it came by the key that is gone");
        assert_eq!(pair.reaches("board", of(other)), Ok(by[other]), "{lost}: it came by the key that is there");
        assert_eq!(hand(&mut pair, by[lost], 62), None, "{lost}: that mind is deaf");
        assert!(hand(&mut pair, by[other], 63).is_some(), "{lost}: the other's mind is not");
        // A service that does not know by which attachment it has the object calls it by the remaining ones.
        assert!(hand(&mut pair, 0, 64).is_some());
    }
}

#[test]
fn a_released_perspective_detaches_after_its_last_use() {
    let mut scene = Scene::new(Thing::CallUnderWay);
    scene.end(End::PerspectiveLetGo);
    assert_eq!(scene.pair.told("board"), [Told::LetGo(scene.attachment)]);
    scene.answer();
    scene.pair.turn();
    let object = luid(&scene.pair.answer(scene.request));
    assert_eq!(scene.pair.reaches("board", object), Ok(scene.attachment), "calls of it come by the attachment");
    // The mind uses the attachment, too.
    scene.pair.says("board", &ToHost::Release { handle: scene.mind, count: 1 });
    assert!(!scene.pair.told("board").contains(&Told::Detach(scene.attachment)));
    scene.pair.client.output.release(object, 1);
    scene.pair.turn();
    let told = scene.pair.told("board");
    assert_eq!(told, [Told::Dropped { object: OBJECT, count: 1 }, Told::Detach(scene.attachment)]);
    assert_eq!(scene.pair.service("board").known(), 0);
}
