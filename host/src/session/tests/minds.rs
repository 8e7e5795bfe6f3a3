//! Minds: each object in what a client gives at a login or an attachment is given back as often as it was sent, however that
//! ends.

use jelly::{Scanner, Shape, Value, token};
use pb::{Jelly, Target, Translated};
use plugin_api::abi::frame::ToHost;

use super::super::Limits;
use super::pair::{Heard, Pair, Told, cache, luid, references, remote, with_mind};
use crate::cred::{Key, ListenerRules};

/// What a client gives: objects to be called, and objects to be copied.
const MINDS: [(&str, &[char], &[char]); 9] = [
    ("one object", &['m'], &[]),
    ("a text", &[], &[]),
    ("two objects", &['m', 'n'], &[]),
    ("the same object twice", &['m', 'm'], &[]),
    ("objects in a dictionary", &['m', 'n', 'o'], &[]),
    ("an object and a number", &['m'], &[]),
    ("one cached object", &[], &['c']),
    ("two cached objects", &[], &['c', 'd']),
    ("the same cached object twice, and an object", &['m'], &['c', 'c']),
];

/// How the client gives it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Way {
    /// With a login that leads to a perspective.
    Login,
    /// With a login that leads to an avatar, which keeps it.
    Kept,
    /// With `attach`.
    Attach,
    /// With an anonymous login.
    Anonymous,
    /// With a key that is to be proven.
    Key,
}

/// How the attachment ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The service refuses to attach.
    Refused,
    /// The service accepts nothing.
    Bounced,
    /// There is no such key, or the proof was wrong.
    NotLetIn,
    /// The client releases everything, and the service releases the client's objects.
    LetGo,
    /// The identity is removed.
    Removed,
    /// The service stops.
    Stopped,
    /// The service is replaced: the new code has the mind, the old code gives it back, and later the new code does.
    Replaced,
}

const WAYS: [Way; 5] = [Way::Login, Way::Kept, Way::Attach, Way::Anonymous, Way::Key];
const ENDS: [End; 7] =
    [End::Refused, End::Bounced, End::NotLetIn, End::LetGo, End::Removed, End::Stopped, End::Replaced];

/// A mind in Jelly; each of its objects counts as sent.
fn mind(pair: &mut Pair, which: usize) -> Vec<u8> {
    let mut objects: Vec<Vec<u8>> = MINDS[which].1.iter().map(|object| remote(pair.own(*object))).collect();
    let mut out = Vec::new();
    match which {
        0 => return objects.remove(0),
        1 => return jelly::to_vec("a text").unwrap(),
        4 => {
            token::list(&mut out, 3);
            token::bytes(&mut out, b"dictionary");
            for (key, objects) in [("a", &objects[..1]), ("b", &objects[1..])] {
                token::list(&mut out, 2);
                token::bytes(&mut out, key.as_bytes());
                token::list(&mut out, 1 + objects.len());
                token::bytes(&mut out, b"list");
                objects.iter().for_each(|object| out.extend_from_slice(object));
            }
            return out;
        }
        5 => objects.push(jelly::to_vec(&7).unwrap()),
        _ => {}
    }
    for object in MINDS[which].2 {
        let (luid, first) = pair.client.output.tables.cache(object).unwrap();
        let mut cached = references(b"cached", &[luid]);
        objects.push(if first { cache(luid, &[]) } else { cached.split_off(references(b"cached", &[]).len()) });
    }
    if which == 6 {
        return objects.remove(0);
    }
    token::list(&mut out, 1 + objects.len());
    token::bytes(&mut out, b"list");
    objects.iter().for_each(|object| out.extend_from_slice(object));
    out
}

/// Gives it. Returns the luid that holds it, if any, and the call whose answer is the perspective.
fn give(pair: &mut Pair, way: Way, end: End, which: usize) -> (Option<u64>, Option<u64>) {
    let given = mind(pair, which);
    let bad = end == End::NotLetIn;
    match way {
        Way::Login => {
            let name = if bad { "mallory/board" } else { "alice/board" };
            (None, Some(pair.log_in_with(name, Some(&given))))
        }
        Way::Kept => {
            let request = pair.log_in_with(if bad { "mallory" } else { "alice" }, Some(&given));
            pair.turn();
            if bad {
                return (None, Some(request));
            }
            let avatar = luid(&pair.answer(request));
            (Some(avatar), Some(pair.begin_attach(avatar, "board", "alice", None)))
        }
        Way::Attach => {
            let avatar = pair.login("alice", None);
            let perspective = if bad { "nobody" } else { "alice" };
            (Some(avatar), Some(pair.begin_attach_with(avatar, "board", perspective, Some(&given))))
        }
        Way::Anonymous => {
            let arguments = with_mind(&[], Some(&given));
            (None, Some(pair.call(Target::Name("root"), "loginAnonymous", &arguments)))
        }
        Way::Key => {
            let key = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJdD7y3aLq454yWBdwLWbieU1ebz9/cu7/QEXn9OIeZJ";
            let request = pair.call(Target::Name("root"), "loginKey", &with_mind(&["alice/board", key], Some(&given)));
            pair.turn();
            let answer = pair.answer(request);
            let signer = luid(&answer.root().items().nth(1).unwrap().to_value());
            if bad {
                // It changes its mind.
                pair.client.output.release(signer, 1);
                return (None, None);
            }
            let request = pair.call(Target::Luid(signer), "respond", &with_mind(&["signed"], None));
            (Some(signer), Some(request))
        }
    }
}

/// The numbers by which the service knows the client's objects.
fn numbers(value: &[u8]) -> Vec<u64> {
    let mut scanner = Scanner::new(Shape::Value, jelly::Limits::default());
    let scanned = scanner.scan(value).unwrap().unwrap();
    assert!(scanned.defect.is_none());
    scanned.references.iter().map(|of| of.luid.unwrap()).collect()
}

fn release(pair: &mut Pair, generation: u64, handles: &[u64]) {
    for handle in handles {
        pair.says_as(generation, "board", &ToHost::Release { handle: *handle, count: 1 });
    }
    pair.turn();
}

/// Whether the client's cached objects in a mind are still held.
fn are_copied(pair: &Pair, which: usize) -> bool {
    MINDS[which].2.iter().all(|object| pair.client.output.tables.cached_as(object).is_some())
}

fn end(pair: &mut Pair, way: Way, end: End, which: usize) {
    pair.service("board").refuse((end == End::Bounced).then_some("it takes nothing"));
    let (holder, request) = give(pair, way, end, which);
    pair.turn();
    pair.now.instant += std::time::Duration::from_secs(1);
    pair.turn();
    let told = pair.told("board");
    let asked = told.iter().find_map(|told| match told {
        Told::Attach { attachment, mind, value, handles } => Some((*attachment, *mind, value.clone(), handles.clone())),
        _ => None,
    });
    let Some((attachment, mind, value, handles)) = asked else {
        assert!(matches!(end, End::Bounced | End::NotLetIn), "{told:?} {:?}", pair.heard);
        if let Some(holder) = holder.filter(|_| end != End::NotLetIn || way == Way::Attach) {
            pair.client.output.release(holder, 1);
        }
        request.map(|request| pair.error(request));
        return pair.turn();
    };
    let given = if mind == 0 { handles } else { vec![mind] };
    assert_eq!(given.len(), MINDS[which].1.len() + MINDS[which].2.len());
    if mind == 0 {
        assert_eq!(given, numbers(&value), "what is in the value is what is counted");
    }
    if end == End::Refused {
        let frame = ToHost::Failed { call: attachment, class: "X", message: "", fault: false, detail: &[] };
        pair.says("board", &frame);
        assert_eq!(pair.error(request.unwrap()), "X");
        release(pair, 1, &given);
    } else {
        pair.says("board", &ToHost::Attached { attachment });
        let perspective = luid(&pair.answer(request.unwrap()));
        // Each of them is there.
        let (called, copied) = given.split_at(MINDS[which].1.len());
        for (handle, object) in copied.iter().zip(MINDS[which].2) {
            tell(pair, *object);
            let object = pair.told("board").iter().find_map(|told| match told {
                Told::Call { call, object, .. } => Some((*call, *object)),
                _ => None,
            });
            assert_eq!(object.map(|(_, object)| object), Some(*handle), "the copy hears of changes");
            let call = object.unwrap().0;
            pair.says("board", &ToHost::Answer { call, value: &[1, 0x80, 1, 0x87], objects: &[] });
        }
        for (at, handle) in called.iter().enumerate() {
            let (arguments, keywords) = (
                jelly::to_vec(&(1,)).unwrap(),
                jelly::to_vec(&std::collections::BTreeMap::<String, u8>::new()).unwrap(),
            );
            let call = ToHost::Call {
                call: 1 + at as u64,
                handle: *handle,
                answer: false,
                method: "m",
                arguments: &arguments,
                keywords: &keywords,
                attachment,
                objects: &[],
            };
            pair.says("board", &call);
            let object = MINDS[which].1.iter().find(|object| {
                pair.heard.iter().any(|heard| matches!(heard, Heard::Call { object: of, .. } if of == *object))
            });
            assert!(object.is_some(), "{handle} is called: {:?}", pair.heard);
        }
        match end {
            End::Removed => {
                pair.identities.remove("alice");
                pair.tell_of("alice");
                release(pair, 1, &given);
            }
            End::Stopped => {
                pair.says("board", &ToHost::Stopped {});
            }
            End::Replaced => {
                given.iter().for_each(|handle| pair.says_as(2, "board", &ToHost::Retained { handle: *handle }));
                release(pair, 1, &given);
                assert!(!pair.heard.iter().any(|heard| matches!(heard, Heard::Dropped(_))));
                assert!(are_copied(pair, which), "the new code has them");
                pair.client.output.release(perspective, 1);
                release(pair, 2, &given);
            }
            _ => {
                pair.client.output.release(perspective, 1);
                pair.turn();
                assert!(are_copied(pair, which), "the service has them");
                release(pair, 1, &given);
                assert!(way != Way::Kept || are_copied(pair, which), "the avatar has them");
            }
        }
    }
    if let Some(holder) = holder {
        pair.client.output.release(holder, 1);
    }
    pair.turn();
}

#[test]
fn objects_in_minds_are_released_in_every_case() {
    for way in WAYS {
        for how in ENDS {
            for (which, (name, objects, copies)) in MINDS.iter().enumerate() {
                if matches!((way, how), (Way::Anonymous, End::NotLetIn | End::Removed)) {
                    continue;
                }
                let rules =
                    ListenerRules { anonymous: Some(Key::new("board", "guest").unwrap()), ..ListenerRules::default() };
                let mut pair = Pair::with_rules(rules);
                // One more of each is the client's own business: what is given back too often would end that. Of one that is
                // copied, the client ends what nobody has: there is one more only once it has gone.
                let called: std::collections::BTreeSet<char> = objects.iter().copied().collect();
                for object in &called {
                    pair.own(*object);
                }
                end(&mut pair, way, how, which);
                let what = format!("{name}, by {way:?}, ends by {how:?}");
                let counts = pair.session().owners.references.counts();
                assert_eq!(counts, (0, 0, 0), "{what}: nothing is held");
                let dropped = pair.heard.iter().filter(|heard| matches!(heard, Heard::Dropped(_))).count();
                assert_eq!(dropped, 0, "{what}: nothing is given back too often");
                for object in copies.iter() {
                    assert!(pair.client.output.tables.cached_as(object).is_none(), "{what}: {object} is given back");
                }
                for object in called {
                    let luid =
                        pair.client.output.tables.exported_as(&object).expect("one is the client's own business");
                    pair.client.output.tables.unexport(&object);
                    assert!(
                        pair.client.output.tables.exported_as(&object).is_none(),
                        "{what}: {object} ({luid}) is given back as often as it was sent"
                    );
                }
            }
        }
    }
}

#[test]
fn a_mind_may_contain_its_own_services_objects_only() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    let (_, board) = pair.attach(avatar, "board", "alice", None);
    let (_, mail) = pair.attach(avatar, "mail", "alice", None);
    let object = pair.hand_out("board", board, 50);
    let home = |luid: u64| {
        let mut out = Vec::new();
        token::list(&mut out, 2);
        token::bytes(&mut out, b"list");
        token::list(&mut out, 2);
        token::bytes(&mut out, b"local");
        token::uint(&mut out, luid);
        out
    };
    let attach = |pair: &mut Pair, mind: &[u8]| {
        let request = pair.begin_attach_with(avatar, "board", "shared", Some(mind));
        pair.turn();
        match pair.told("board").pop() {
            Some(Told::Attach { attachment, value, .. }) => {
                pair.says("board", &ToHost::Attached { attachment });
                Ok(value)
            }
            _ => Err(pair.error(request)),
        }
    };
    let value = attach(&mut pair, &home(object)).unwrap();
    assert_eq!(value, home(50), "by the service's own number");
    assert_eq!(attach(&mut pair, &home(mail)).unwrap_err(), "twisted.spread.jelly.InsecureJelly");
}

/// Sends a change of one of the client's cached objects.
fn tell(pair: &mut Pair, object: char) {
    let luid = pair.client.output.tables.cached_as(&object).expect("it was sent");
    let (arguments, keywords) = (jelly::to_vec(&(5,)).unwrap(), [1, 0x80, 5, 0x87]);
    let (arguments, keywords) = (Jelly::new(&arguments, &[], 0, arguments.len()), Jelly::new(&keywords, &[], 0, 4));
    let none = |_: &mut _, _: &jelly::Reference| Ok::<_, std::convert::Infallible>(Translated::None);
    pair.client.output.update_translated(luid, "speed", &arguments, &keywords, none).unwrap();
    pair.turn();
}

/// Logs in with a cached object as the mind, which the avatar keeps.
fn kept(pair: &mut Pair) -> u64 {
    let (luid, _) = pair.client.output.tables.cache(&'c').unwrap();
    let request = pair.log_in_with("alice", Some(&cache(luid, &[])));
    pair.turn();
    self::luid(&pair.answer(request))
}

/// Attaches with an avatar's mind. Returns the service's numbers of the client's objects in it, and what else the service
/// received.
fn attach(pair: &mut Pair, avatar: u64, service: &str, name: &str) -> Result<(Vec<u64>, Vec<Told>), String> {
    let request = pair.begin_attach(avatar, service, name, None);
    pair.turn();
    let mut told = pair.told(service);
    match told.iter().position(|told| matches!(told, Told::Attach { .. })) {
        Some(at) => {
            let Told::Attach { attachment, handles, .. } = told.remove(at) else { unreachable!() };
            pair.says(service, &ToHost::Attached { attachment });
            Ok((handles, told))
        }
        None => Err(pair.error(request)),
    }
}

/// A copy that came with a refused attachment belongs to nobody: the service is notified, and keeps nothing of it.
#[test]
fn copies_from_a_refused_attachment_end_in_the_service() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    pair.attach(avatar, "board", "alice", None);
    for _ in 0..3 {
        let (luid, _) = pair.client.output.tables.cache(&'c').unwrap();
        let request = pair.begin_attach_with(avatar, "board", "shared", Some(&cache(luid, &[])));
        pair.turn();
        let told = pair.told("board");
        let Some(Told::Attach { attachment, handles, .. }) = told.first() else { panic!("{told:?}") };
        let frame = ToHost::Failed { call: *attachment, class: "X", message: "", fault: false, detail: &[] };
        pair.says("board", &frame);
        assert_eq!(pair.error(request), "X");
        let uncached = format!("Uncached {{ handle: {} }}", handles[0]);
        let told = pair.told("board");
        assert!(told.iter().any(|told| matches!(told, Told::Other(said) if *said == uncached)), "{told:?}");
        assert!(pair.client.output.tables.cached_as(&'c').is_none(), "and the client has it back");
    }
}

#[test]
fn changes_before_an_attachment_are_sent_after_it() {
    let mut pair = Pair::new();
    pair.holds_questions = true;
    let (luid, _) = pair.client.output.tables.cache(&'c').unwrap();
    pair.log_in_with("alice/board", Some(&cache(luid, &[])));
    pair.turn();
    (0..3).for_each(|_| tell(&mut pair, 'c'));
    assert_eq!(pair.told("board"), []);
    pair.holds_questions = false;
    let held = std::mem::take(&mut pair.questions);
    for (no, question) in held {
        let (found, now) = (pair.find(&question), pair.now);
        pair.session().found(no, found, now);
    }
    pair.turn();
    let told = pair.told("board");
    let [Told::Attach { attachment, handles, .. }, changes @ ..] = told.as_slice() else { panic!("{told:?}") };
    assert_eq!(changes.len(), 3);
    for change in changes {
        let Told::Call { attachment: by, object, method, .. } = change else { panic!("{change:?}") };
        assert_eq!((by, object, method.as_str()), (attachment, &handles[0], "speed"));
    }
}

#[test]
fn a_state_in_a_mind_belongs_to_one_service_and_is_never_stale() {
    // The state belongs to the first service that is attached, which may attach again; no other service gets it after that one
    // has released it.
    let mut pair = Pair::new();
    let avatar = kept(&mut pair);
    let (first, _) = attach(&mut pair, avatar, "board", "alice").unwrap();
    tell(&mut pair, 'c');
    let (second, _) = attach(&mut pair, avatar, "board", "shared").unwrap();
    assert_eq!(first, second);
    assert_eq!(attach(&mut pair, avatar, "mail", "alice").unwrap_err(), "twisted.spread.jelly.InsecureJelly");
    pair.says("board", &ToHost::Stopped {});
    assert_eq!(attach(&mut pair, avatar, "mail", "alice").unwrap_err(), "twisted.spread.jelly.InsecureJelly");
    pair.client.output.release(avatar, 1);
    pair.turn();
    assert_eq!(pair.client.output.tables.held().1, 0, "the client has it back");

    // The service accepts nothing at first, and later it does.
    let mut pair = Pair::new();
    let avatar = kept(&mut pair);
    pair.service("board").refuse(Some("it starts"));
    assert!(attach(&mut pair, avatar, "board", "alice").is_err());
    pair.service("board").refuse(None);
    assert_eq!(attach(&mut pair, avatar, "board", "alice").unwrap().0.len(), 1, "its state is still there");

    // More changes came than the session keeps.
    let mut pair = Pair::new();
    let avatar = kept(&mut pair);
    (0..2_000).for_each(|_| tell(&mut pair, 'c'));
    assert!(pair.session().owners.references.copied_bytes() < 1_000, "nothing is kept of what is worth nothing");
    assert_eq!(attach(&mut pair, avatar, "board", "alice").unwrap_err(), "twisted.spread.jelly.InsecureJelly");
}

#[test]
fn a_mind_that_is_not_one_object_is_limited() {
    let limits = Limits { mind: 1000, ..Limits::default() };
    let text = |bytes: usize| Value::from("x".repeat(bytes)).encode();
    let largest = (1..2000).find(|bytes| text(*bytes).len() == 1000).unwrap();
    for (bytes, taken) in [(largest, true), (largest + 1, false)] {
        let mut pair = Pair::with(limits);
        let request = pair.log_in_with("alice/board/alice", Some(&text(bytes)));
        pair.turn();
        match pair.reply(request) {
            Some(Heard::Error { text, .. }) => {
                let said = "argument mind: 1001 bytes; the maximum for a mind that is not one object is 1000";
                assert!(!taken && text == said, "{text}");
            }
            heard => assert!(taken, "{heard:?}"),
        }
    }
}
