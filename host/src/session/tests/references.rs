//! References in transit: which pass, what each becomes, and that each is given back, whatever fails.

use jelly::token;
use pb::Target;
use plugin_api::abi::frame::ToHost;

use super::pair::{CONNECTION, DEAD, Heard, Pair, Told, cache, list, luid, references, remote};

const INSECURE: &str = "twisted.spread.jelly.InsecureJelly";

fn attached() -> (Pair, u64, u64) {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    let (attachment, perspective) = pair.attach(avatar, "board", "alice", None);
    (pair, attachment, perspective)
}

/// Attaches with a mind and releases the perspective again. Returns the attachment and the mind's handle.
fn let_go_with_mind() -> (Pair, u64, u64) {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    let request = pair.begin_attach(avatar, "board", "alice", Some('m'));
    pair.turn();
    let Some(Told::Attach { attachment, mind, .. }) = pair.told("board").last().cloned() else { panic!() };
    pair.says("board", &ToHost::Attached { attachment });
    let perspective = luid(&pair.answer(request));
    pair.client.output.release(perspective, 1);
    pair.turn();
    (pair, attachment, mind)
}

fn keywords() -> Vec<u8> {
    jelly::to_vec(&std::collections::BTreeMap::<u8, u8>::new()).unwrap()
}

/// The client calls with these arguments. Returns the call's number, and the arguments and handles as the service receives
/// them.
fn arrives(pair: &mut Pair, perspective: u64, arguments: &[u8]) -> Result<(u64, Vec<u8>, Vec<u64>), String> {
    match pair.begin("board", perspective, arguments) {
        (_, Some(Told::Call { call, arguments, handles, .. })) => Ok((call, arguments, handles)),
        (request, _) => Err(pair.error(request)),
    }
}

fn answer(pair: &mut Pair, call: u64, value: &[u8], objects: &[u64]) {
    pair.says("board", &ToHost::Answer { call, value, objects: &list(objects) });
}

#[test]
fn a_clients_object_returns_to_it_as_its_own() {
    let (mut pair, _, perspective) = attached();
    let mine = pair.own('a');
    let (call, arguments, handles) = arrives(&mut pair, perspective, &references(b"remote", &[mine])).unwrap();
    assert_eq!(arguments, references(b"remote", &handles));
    // In a typed value, a service writes it as the reader's own; in an untyped value it stays as it came.
    let home = [references(b"local", &handles), references(b"remote", &handles)];
    answer(&mut pair, call, &home[0], &[]);
    let value = pair.heard.iter().find_map(|heard| match heard {
        Heard::Answer { value, .. } => Some(value.encode()),
        _ => None,
    });
    assert_eq!(value, Some(references(b"local", &[mine])));
    pair.heard.clear();
    let (call, ..) = arrives(&mut pair, perspective, &references(b"remote", &[])).unwrap();
    answer(&mut pair, call, &home[1], &[]);
    assert!(
        matches!(&pair.heard[..], [Heard::Answer { value, .. }] if value.encode() == references(b"local", &[mine]))
    );
    // The service releases it, and so does the client.
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('a')));
}

#[test]
fn a_services_object_in_an_untyped_value_can_be_forwarded() {
    let (mut pair, _, perspective) = attached();
    let object = pair.hand_out("board", perspective, 50);
    let (call, arguments, _) = arrives(&mut pair, perspective, &references(b"local", &[object])).unwrap();
    assert_eq!(arguments, references(b"local", &[50]), "it is the service's own again");
    // The service answers with what it was given, which counts once more.
    answer(&mut pair, call, &arguments, &[50]);
    let again = references(b"remote", &[object]);
    assert!(pair.heard.iter().any(|heard| matches!(heard, Heard::Answer { value, .. } if value.encode() == again)));
    pair.client.output.release(object, 2);
    pair.turn();
    assert!(pair.told("board").contains(&Told::Dropped { object: 50, count: 2 }));
}

#[test]
fn the_avatar_can_be_an_argument_and_comes_back_as_itself() {
    let (mut pair, attachment, perspective) = attached();
    let (call, arguments, _) = arrives(&mut pair, perspective, &references(b"local", &[perspective])).unwrap();
    assert_eq!(arguments, references(b"local", &[attachment]));
    answer(&mut pair, call, &arguments, &[]);
    let same = references(b"remote", &[perspective]);
    assert!(pair.heard.iter().any(|heard| matches!(heard, Heard::Answer { value, .. } if value.encode() == same)));
    pair.client.output.release(perspective, 1);
    pair.turn();
    assert_eq!(pair.reaches("board", perspective), Ok(attachment), "the client has it once more");
}

#[test]
fn references_that_the_sender_may_not_use_do_not_pass() {
    let (mut pair, _, perspective) = attached();
    let avatar = pair.login("bob", None);
    let (_, mail) = pair.attach(avatar, "mail", "bob", None);
    let letter = pair.hand_out("mail", mail, 70);
    // To a service: an avatar, another service's perspective and object, and a cached object of the client's.
    for (tag, luid) in [(&b"local"[..], avatar), (b"local", mail), (b"local", letter), (b"lcache", 5), (b"cached", 5)] {
        let refused = arrives(&mut pair, perspective, &references(tag, &[luid]));
        assert_eq!(refused, Err(INSECURE.to_owned()), "{tag:?} {luid}");
    }
    // An unknown reference becomes None, as in Twisted.
    let (call, arguments, _) = arrives(&mut pair, perspective, &references(b"local", &[999])).unwrap();
    assert_eq!(arguments, jelly::to_vec(&(None::<u8>,)).unwrap());
    // To the client: another connection's handle, an unknown handle, and another service's attachment.
    let foreign = u64::from(CONNECTION + 1) << 32 | 1;
    let nobody = u64::from(CONNECTION) << 32 | 2 << 30 | 77;
    let mut calls = vec![call];
    for number in [foreign, nobody, u64::from(CONNECTION) << 32 | 1 << 30 | 2] {
        for tag in [&b"local"[..], b"remote"] {
            let call =
                calls.pop().unwrap_or_else(|| arrives(&mut pair, perspective, &references(b"remote", &[])).unwrap().0);
            pair.heard.clear();
            answer(&mut pair, call, &references(tag, &[number]), &[]);
            assert!(matches!(&pair.heard[..], [Heard::Error { class, .. }] if class == INSECURE), "{:?}", pair.heard);
        }
    }
}

#[test]
fn an_unknown_cached_number_is_not_given_back() {
    let (mut pair, _, perspective) = attached();
    let before = pair.session().output().len();
    pair.call(Target::Luid(perspective), "m", &references(b"cached", &[99]));
    let sent = std::mem::take(&mut pair.client.output.bytes);
    pair.session().input().extend_from_slice(&sent);
    let now = pair.now;
    pair.session().serve(now).unwrap();
    let out = pair.session().output()[before..].to_vec();
    assert!(!out.windows(7).any(|window| window == b"decache"), "no word of 99 goes back");
}

/// A tuple of one cached object of the client's, with its state the first time.
fn own_cached(pair: &mut Pair, object: char) -> (u64, Vec<u8>) {
    let mut arguments = Vec::new();
    token::list(&mut arguments, 2);
    token::bytes(&mut arguments, b"tuple");
    let (luid, first) = pair.client.output.tables.cache(&object).unwrap();
    match first {
        true => arguments.extend_from_slice(&cache(luid, &[])),
        false => {
            token::list(&mut arguments, 2);
            token::bytes(&mut arguments, b"cached");
            token::uint(&mut arguments, luid);
        }
    }
    (luid, arguments)
}

#[test]
fn a_clients_cacheable_is_followed_returned_and_released() {
    let (mut pair, attachment, perspective) = attached();
    let (luid, first) = own_cached(&mut pair, 'c');
    let (call, arguments, handles) = arrives(&mut pair, perspective, &first).unwrap();
    assert_eq!(handles.len(), 1);
    assert!(arguments.windows(8).any(|window| window == b"board.Bo"), "its state comes with it");
    answer(&mut pair, call, &references(b"local", &handles), &[]);
    let home = pair.heard.iter().find_map(|heard| match heard {
        Heard::Answer { value, .. } => Some(value.encode()),
        _ => None,
    });
    assert_eq!(home, Some(references(b"lcache", &[luid])));
    // Sent again without its state, it is the same object.
    let (_, second) = own_cached(&mut pair, 'c');
    let (call, arguments, again) = arrives(&mut pair, perspective, &second).unwrap();
    assert_eq!((again.as_slice(), arguments), (handles.as_slice(), references(b"cached", &handles)));
    answer(&mut pair, call, &references(b"remote", &[]), &[]);
    // It changes: its follower is called, by the attachment that it came by.
    let empty = [1, 0x80, 11, 0x87];
    let nothing = pb::Jelly::new(&empty, &[], 0, 4);
    let keywords = [1, 0x80, 5, 0x87];
    let none = pb::Jelly::new(&keywords, &[], 0, 4);
    let never = |_: &mut pb::Tables<char>, _: &jelly::Reference| Err::<pb::Translated, ()>(());
    pair.client.output.update_translated(luid, "moved", &nothing, &none, never).unwrap();
    pair.turn();
    let told = pair.told("board");
    let observed = told.iter().find_map(|told| match told {
        Told::Call { attachment, object, method, .. } => Some((*attachment, *object, method.clone())),
        _ => None,
    });
    assert_eq!(observed, Some((attachment, handles[0], "moved".to_owned())));
    // It came twice, and is given back twice.
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert_eq!(pair.client.output.tables.held().1, 1);
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert_eq!(pair.client.output.tables.held().1, 0);
    // The client has ended it: the service is notified, and the next time it comes with its state.
    assert!(pair.told("board").iter().any(|told| matches!(told, Told::Other(what) if what.contains("Uncached"))));
    let (_, anew) = own_cached(&mut pair, 'c');
    let (_, arguments, _) = arrives(&mut pair, perspective, &anew).unwrap();
    assert!(arguments.windows(8).any(|window| window == b"board.Bo"), "its state comes with it");
}

/// Until the client has heard that nobody has its object any more, it sends the object without the state.
#[test]
fn a_cacheable_that_is_being_given_back_can_be_sent_again() {
    let (mut pair, _, perspective) = attached();
    let (_, first) = own_cached(&mut pair, 'c');
    let (_, _, handles) = arrives(&mut pair, perspective, &first).unwrap();
    pair.says_as(1, "board", &ToHost::Release { handle: handles[0], count: 1 });
    let (_, second) = own_cached(&mut pair, 'c');
    let (_, arguments, again) = arrives(&mut pair, perspective, &second).unwrap();
    assert_eq!((again.as_slice(), arguments), (handles.as_slice(), references(b"cached", &handles)));
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert_eq!(pair.client.output.tables.held().1, 0);
}

/// A service keeps each state until the client has ended it, so all states together have a limit.
#[test]
fn the_states_of_a_clients_cacheables_are_bounded_in_total() {
    let (mut pair, _, perspective) = attached();
    pair.turn();
    let mut came = Vec::new();
    for object in ['a', 'b', 'c'] {
        let (luid, _) = pair.client.output.tables.cache(&object).unwrap();
        let mut arguments = Vec::new();
        token::list(&mut arguments, 2);
        token::bytes(&mut arguments, b"tuple");
        token::list(&mut arguments, 3);
        token::bytes(&mut arguments, b"board.Board");
        token::uint(&mut arguments, luid);
        token::list(&mut arguments, 13);
        token::bytes(&mut arguments, b"list");
        (0..12).for_each(|_| token::bytes(&mut arguments, &vec![0; 600_000]));
        came.push(arrives(&mut pair, perspective, &arguments));
    }
    assert_eq!(came[2].as_ref().unwrap_err(), "builtins.MemoryError");
    assert_eq!(pair.client.output.tables.held().1, 2, "what was refused was given back");
    // Once one has ended, there is room again.
    let (_, _, handles) = came[0].as_ref().unwrap();
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert_eq!(pair.client.output.tables.held().1, 1);
    assert!(pair.session().owners.references.copied_bytes() < 8 << 20);
}

#[test]
fn a_clients_cacheable_belongs_to_one_service() {
    let (mut pair, _, perspective) = attached();
    let (_, first) = own_cached(&mut pair, 'c');
    let (_, _, handles) = arrives(&mut pair, perspective, &first).unwrap();
    let avatar = pair.login("alice", None);
    let (_, mail) = pair.attach(avatar, "mail", "alice", None);
    let (_, second) = own_cached(&mut pair, 'c');
    let refused = match pair.begin("mail", mail, &second) {
        (request, None) => pair.error(request),
        other => panic!("{other:?}"),
    };
    assert_eq!(refused, INSECURE, "its state is not sent a second time");
    // What one service does not accept is given back to the client; what the other has stays.
    assert_eq!(pair.client.output.tables.held().1, 1);
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert_eq!(pair.client.output.tables.held().1, 0);
}

#[test]
fn the_last_update_of_a_copy_comes_before_its_end() {
    let (mut pair, attachment, perspective) = attached();
    let (call, _, _) = arrives(&mut pair, perspective, &references(b"remote", &[])).unwrap();
    answer(&mut pair, call, &cache(7, &[]), &[7]);
    let luid = pair.heard.iter().find_map(|heard| match heard {
        Heard::Answer { luids, .. } => luids.first().copied(),
        _ => None,
    });
    let luid = luid.expect("it was sent");
    pair.service("board").deaf.store(true, std::sync::atomic::Ordering::Relaxed);
    pair.client.output.decache(luid);
    pair.turn();
    assert!(pair.client.output.tables.keeps(luid), "nobody has told the client yet that it is over");
    let (arguments, keywords) = (&[1, 0x80, 11, 0x87][..], &[1, 0x80, 5, 0x87][..]);
    let last = ToHost::Update { attachment, object: 7, method: "end", arguments, keywords, objects: &[] };
    pair.says("board", &last);
    assert!(
        pair.heard
            .iter()
            .any(|heard| matches!(heard, Heard::Update { luid: of, method, .. } if *of == luid && method == "end"))
    );
    pair.service("board").deaf.store(false, std::sync::atomic::Ordering::Relaxed);
    pair.turn();
    pair.turn();
    assert!(!pair.client.output.tables.keeps(luid));
    pair.heard.clear();
    pair.says("board", &last);
    assert!(pair.heard.is_empty(), "what comes later reaches nobody");
}

/// Whatever happens to a value, its objects are given back as often as they were counted.
#[test]
fn objects_in_undeliverable_values_are_given_back() {
    let many = vec![0u8; 700_000];
    let mut large = Vec::new();
    token::list(&mut large, 3);
    token::bytes(&mut large, b"tuple");
    large.extend_from_slice(&remote(50));
    token::bytes(&mut large, &many);
    let mut class = Vec::new();
    token::list(&mut class, 3);
    token::bytes(&mut class, b"tuple");
    class.extend_from_slice(&remote(50));
    token::list(&mut class, 2);
    token::bytes(&mut class, b"class");
    token::bytes(&mut class, b"os.system");
    let foreign = {
        let mut out = Vec::new();
        token::list(&mut out, 3);
        token::bytes(&mut out, b"tuple");
        out.extend_from_slice(&remote(50));
        out.extend_from_slice(&remote(u64::from(CONNECTION + 1) << 32 | 3));
        out
    };
    let half = references(b"remote", &[50])[..5].to_vec();
    for (what, value) in [("too large", large), ("unreadable", class), ("foreign", foreign), ("half", half)] {
        let (mut pair, attachment, perspective) = attached();
        let mine = pair.own('m');
        let (call, _, handles) = arrives(&mut pair, perspective, &references(b"remote", &[mine])).unwrap();
        // As an answer.
        answer(&mut pair, call, &value, &[50]);
        assert!(pair.heard.iter().any(|heard| matches!(heard, Heard::Error { .. })), "{what}");
        assert!(pair.service("board").out.lock().is_empty(), "{what}: an answer");
        // As arguments, with an answer wanted and without.
        for answer in [true, false] {
            let (arguments, keywords, objects) = (value.as_slice(), keywords(), list(&[50]));
            let handle = handles[0];
            pair.says(
                "board",
                &ToHost::Call {
                    call: 3,
                    handle,
                    answer,
                    method: "m",
                    arguments,
                    keywords: &keywords,
                    attachment,
                    objects: &objects,
                },
            );
            assert!(pair.service("board").out.lock().is_empty(), "{what}: arguments, {answer}");
            let failed = pair.told("board").iter().any(|told| matches!(told, Told::Failed { call: 3, .. }));
            assert_eq!(failed, answer, "{what}: the error is its sender's");
        }
        // As an update of a cached object that the client has.
        pair.get("board", perspective, &cache(60, &[]), &[60]);
        let (keywords, objects) = (keywords(), list(&[50]));
        let update = ToHost::Update {
            attachment,
            object: 60,
            method: "m",
            arguments: &value,
            keywords: &keywords,
            objects: &objects,
        };
        pair.says("board", &update);
        assert_eq!(pair.service("board").out.lock().get(&50), None, "{what}: an update");
        assert_eq!(pair.reaches("board", perspective), Ok(attachment), "{what}: the connection lives");
    }
}

#[test]
fn objects_in_late_messages_are_given_back() {
    let (mut pair, attachment, perspective) = attached();
    let mine = pair.own('m');
    let (call, _, handles) = arrives(&mut pair, perspective, &references(b"remote", &[mine])).unwrap();
    let (arguments, keywords, objects) = (references(b"remote", &[50]), keywords(), list(&[50]));
    // An update of an object that the client does not have.
    let update = ToHost::Update {
        attachment,
        object: 60,
        method: "m",
        arguments: &arguments,
        keywords: &keywords,
        objects: &objects,
    };
    pair.says("board", &update);
    assert!(pair.service("board").out.lock().is_empty());
    // An answer to a call that was answered.
    answer(&mut pair, call, &remote(50), &[50]);
    answer(&mut pair, call, &remote(50), &[50]);
    assert_eq!(pair.service("board").out.lock().get(&50), Some(&1));
    // A call of an object that was given back.
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    pair.says(
        "board",
        &ToHost::Call {
            call: 3,
            handle: handles[0],
            answer: true,
            method: "m",
            arguments: &arguments,
            keywords: &keywords,
            attachment,
            objects: &objects,
        },
    );
    assert_eq!(pair.service("board").out.lock().get(&50), Some(&1));
    assert!(pair.told("board").contains(&Told::Failed { call: 3, class: DEAD.to_owned() }));
}

#[test]
fn a_cached_state_that_is_not_sent_again_gives_its_objects_back() {
    let (mut pair, _, perspective) = attached();
    let (_, luids) = pair.get("board", perspective, &cache(60, &[50]), &[60, 50]);
    assert_eq!(luids.len(), 2);
    // The second time only its number goes out.
    let (_, again) = pair.get("board", perspective, &cache(60, &[50]), &[60, 50]);
    assert_eq!(again, luids[..1]);
    let out = pair.service("board").out.lock().clone();
    assert_eq!(out.into_iter().collect::<Vec<_>>(), [(50, 1), (60, 2)]);
    pair.client.output.decache(luids[0]);
    pair.client.output.decache(luids[0]);
    pair.client.output.release(luids[1], 1);
    pair.turn();
    assert!(pair.service("board").out.lock().is_empty());
}

#[test]
fn a_copy_that_was_taken_away_is_sent_again_with_its_state() {
    let (mut pair, _, perspective) = attached();
    let (_, stale) = pair.get("board", perspective, &cache(60, &[]), &[60]);
    let alice = pair.identities.get_mut("alice").unwrap();
    alice.keyring.remove(&crate::cred::Key::new("board", "alice").unwrap());
    pair.tell_of("alice");
    let avatar = pair.login("alice", None);
    let (_, shared) = pair.attach(avatar, "board", "shared", None);
    let (value, fresh) = pair.get("board", shared, &cache(60, &[]), &[60]);
    assert_ne!(stale, fresh, "it missed updates");
    assert!(matches!(value.root().node(), jelly::Node::Instance("board.Board")), "{value}");
    // The client still has to give back the stale copy.
    pair.client.output.decache(stale[0]);
    pair.client.output.decache(fresh[0]);
    pair.turn();
    assert!(pair.service("board").out.lock().is_empty());
}

#[test]
fn a_revoked_luid_never_names_anything_again() {
    let (mut pair, _, perspective) = attached();
    let object = pair.hand_out("board", perspective, 50);
    let alice = pair.identities.get_mut("alice").unwrap();
    alice.keyring.remove(&crate::cred::Key::new("board", "alice").unwrap());
    pair.tell_of("alice");
    let avatar = pair.login("alice", None);
    let (by, shared) = pair.attach(avatar, "board", "shared", None);
    let again = pair.hand_out("board", shared, 50);
    assert_ne!(object, again);
    assert_eq!(pair.reaches("board", again), Ok(by));
    assert_eq!(pair.reaches("board", object), Err(DEAD.to_owned()));
    // As an argument, it is dead too.
    let refused = arrives(&mut pair, shared, &references(b"local", &[object]));
    assert_eq!(refused, Err(DEAD.to_owned()));
    pair.client.output.release(object, 1);
    pair.turn();
    assert_eq!(pair.reaches("board", again), Ok(by));
}

#[test]
fn a_service_that_accepts_nothing_refuses_and_keeps_nothing() {
    let (mut pair, _, perspective) = attached();
    pair.service("board").refuse(Some("board: too much waits"));
    let mine = pair.own('a');
    let request = pair.call(Target::Luid(perspective), "m", &references(b"remote", &[mine]));
    let avatar = pair.login("alice", None);
    let attaching = pair.begin_attach(avatar, "board", "shared", Some('m'));
    pair.turn();
    for request in [request, attaching] {
        assert!(
            matches!(pair.reply(request), Some(Heard::Error { class, text, .. }) if class == DEAD && text.contains("too much"))
        );
    }
    for object in ['a', 'm'] {
        assert!(pair.heard.contains(&Heard::Dropped(object)), "{object} is given back");
    }
    pair.service("board").refuse(None);
    pair.reaches("board", perspective).unwrap();
}

#[test]
fn an_avatars_mind_is_given_back_when_nobody_has_it() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", Some('m'));
    let request = pair.begin_attach(avatar, "board", "alice", None);
    pair.turn();
    let Some(Told::Attach { attachment, mind, .. }) = pair.told("board").last().cloned() else { panic!() };
    assert_ne!(mind, 0, "an avatar lends its mind to what is attached by it");
    pair.says("board", &ToHost::Attached { attachment });
    let perspective = luid(&pair.answer(request));
    // The avatar is released first: the perspective still has the mind.
    pair.client.output.release(avatar, 1);
    pair.turn();
    assert!(!pair.heard.contains(&Heard::Dropped('m')));
    pair.client.output.release(perspective, 1);
    pair.says("board", &ToHost::Release { handle: mind, count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    let session = pair.session();
    assert_eq!(session.owners.references.counts(), (0, 0, 0));
}

#[test]
fn a_call_that_a_service_gave_up_on_is_forgotten() {
    let (mut pair, attachment, perspective) = attached();
    let mine = pair.own('m');
    let (call, _, handles) = arrives(&mut pair, perspective, &references(b"remote", &[mine])).unwrap();
    answer(&mut pair, call, &jelly::to_vec(&()).unwrap(), &[]);
    let (arguments, keywords) = (references(b"remote", &[]), keywords());
    pair.says(
        "board",
        &ToHost::Call {
            call: 3,
            handle: handles[0],
            answer: true,
            method: "m",
            arguments: &arguments,
            keywords: &keywords,
            attachment,
            objects: &[],
        },
    );
    let Some(Heard::Call { request, .. }) = pair.heard.pop() else { panic!() };
    assert_eq!(pair.session().owners.calls.counts(), (0, 0, 1));
    pair.says("board", &ToHost::Forget { call: 3, handle: handles[0] });
    assert_eq!(pair.session().owners.calls.counts(), (0, 0, 0));
    // The client answers nevertheless, with a reference, which is given back.
    let luid = pair.own('x');
    pair.client.output.answer(request, &remote(luid));
    pair.turn();
    assert!(pair.heard.contains(&Heard::Dropped('x')));
    assert!(!pair.told("board").iter().any(|told| matches!(told, Told::Answer { .. })));
}

#[test]
fn the_clients_answers_and_errors_go_to_the_caller() {
    let (mut pair, attachment, perspective) = attached();
    let mine = pair.own('m');
    let (_, _, handles) = arrives(&mut pair, perspective, &references(b"remote", &[mine])).unwrap();
    let (arguments, keywords) = (references(b"remote", &[]), keywords());
    let ask = |pair: &mut Pair, call: u64| {
        pair.says(
            "board",
            &ToHost::Call {
                call,
                handle: handles[0],
                answer: true,
                method: "m",
                arguments: &arguments,
                keywords: &keywords,
                attachment,
                objects: &[],
            },
        );
        match pair.heard.pop() {
            Some(Heard::Call { request, .. }) => request,
            other => panic!("{other:?}"),
        }
    };
    let request = ask(&mut pair, 1);
    let luid = pair.own('x');
    pair.client.output.answer(request, &remote(luid));
    pair.turn();
    let Some(Told::Answer { call: 1, handles, .. }) = pair.told("board").pop() else { panic!() };
    pair.says("board", &ToHost::Release { handle: handles[0], count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('x')));
    let request = ask(&mut pair, 2);
    pair.client.output.fail(request, &pb::Failure::new("KeyError", "no"));
    pair.turn();
    assert_eq!(pair.told("board").pop(), Some(Told::Failed { call: 2, class: "builtins.KeyError".to_owned() }));
    // An unreadable answer is an error for the caller, and nothing more.
    let request = ask(&mut pair, 3);
    pair.client.output.answer(request, &references(b"cached", &[4]));
    pair.turn();
    assert_eq!(pair.told("board").pop(), Some(Told::Failed { call: 3, class: INSECURE.to_owned() }));
    // The client's cached objects are nobody's to call.
    let none = references(b"remote", &[]);
    let request = pair.call(Target::Luid(31), "m", &none);
    pair.turn();
    assert_eq!(pair.error(request), "twisted.spread.pb.Error");
    let request = pair.call(Target::Name("nobody"), "m", &none);
    pair.turn();
    assert_eq!(pair.error(request), "twisted.spread.pb.Error");
}

#[test]
fn a_mind_outlives_its_perspective_and_can_be_given_objects() {
    let (mut pair, attachment, mind) = let_go_with_mind();
    // Nothing can come by the attachment, so the service need not know it, though it may hold the mind.
    assert_eq!(pair.told("board"), [Told::LetGo(attachment), Told::Detach(attachment)]);
    assert_eq!(pair.service("board").known(), 0);
    let (arguments, keywords, objects) = (references(b"remote", &[50]), keywords(), list(&[50]));
    pair.says(
        "board",
        &ToHost::Call {
            call: 0,
            handle: mind,
            answer: false,
            method: "take",
            arguments: &arguments,
            keywords: &keywords,
            attachment,
            objects: &objects,
        },
    );
    let Some(Heard::Call { object: 'm', luids, .. }) = pair.heard.pop() else { panic!("{:?}", pair.heard) };
    // Objects can arrive by this attachment again: the host notifies the service, and sends the mind again.
    assert!(matches!(&pair.told("board")[..], [Told::Other(linger)] if linger.contains("Linger")));
    assert_eq!(pair.service("board").known(), 1);
    assert_eq!(pair.reaches("board", luids[0]), Ok(attachment));
    pair.client.output.release(luids[0], 1);
    pair.says("board", &ToHost::Release { handle: mind, count: 1 });
    assert_eq!(pair.told("board"), [Told::Dropped { object: 50, count: 1 }, Told::Detach(attachment)]);
    assert!(!pair.heard.contains(&Heard::Dropped('m')), "the service has it once more");
    pair.says("board", &ToHost::Release { handle: mind, count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    assert!(pair.session().owners.attachments.is_empty());
}

#[test]
fn calling_a_mind_does_not_revive_its_attachment() {
    let (mut pair, attachment, mind) = let_go_with_mind();
    pair.told("board");
    let (arguments, keywords) = (references(b"remote", &[]), keywords());
    for call in 1..4 {
        pair.says(
            "board",
            &ToHost::Call {
                call,
                handle: mind,
                answer: true,
                method: "tick",
                arguments: &arguments,
                keywords: &keywords,
                attachment,
                objects: &[],
            },
        );
        let Some(Heard::Call { object: 'm', request, .. }) = pair.heard.pop() else { panic!("{:?}", pair.heard) };
        pair.client.output.fail(request, &super::super::references::revoked());
        pair.turn();
        // None of the service's objects went out, so nothing can come by the attachment.
        assert!(!pair.told("board").iter().any(|told| matches!(told, Told::Other(_) | Told::Detach(_))));
        assert_eq!(pair.service("board").known(), 0);
    }
    pair.says("board", &ToHost::Release { handle: mind, count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    assert!(pair.session().owners.attachments.is_empty());
}

#[test]
fn an_avatars_mind_lasts_for_attachments_already_requested() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", Some('m'));
    // In one read, the client attaches with the mind that the avatar keeps, and releases the avatar.
    let request = pair.begin_attach(avatar, "board", "alice", None);
    pair.client.output.release(avatar, 1);
    pair.turn();
    let Some(Told::Attach { attachment, mind, .. }) = pair.told("board").last().cloned() else { panic!() };
    assert_ne!(mind, 0);
    assert!(!pair.heard.contains(&Heard::Dropped('m')), "the service has it");
    pair.says("board", &ToHost::Attached { attachment });
    let perspective = luid(&pair.answer(request));
    pair.client.output.release(perspective, 1);
    pair.turn();
    pair.says("board", &ToHost::Release { handle: mind, count: 1 });
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    assert!(pair.session().owners.attachments.is_empty());
}
