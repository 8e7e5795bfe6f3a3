//! Logins: the result of each message, the time of refusals, and what an identity gets that changes during its lookup.

use std::collections::BTreeMap;
use std::time::Duration;

use jelly::{Node, Value};
use pb::Target;
use plugin_api::abi::frame::ToHost;

use super::super::login::{Found, Proof, Question};
use super::pair::{DEAD, Heard, Pair, Told, luid, references};
use crate::cred::{Key, ListenerRules};

fn text(values: &[&str]) -> Vec<u8> {
    Value::tuple(values.iter().map(|value| Value::from(*value))).encode()
}

fn root(pair: &mut Pair, method: &str, arguments: &[u8]) -> u64 {
    let request = pair.call(Target::Name("root"), method, arguments);
    pair.turn();
    request
}

/// The bytes and the luid of a challenge.
fn challenge(value: &Value) -> (Vec<u8>, u64) {
    let mut items = value.root().items();
    match (items.next().map(|item| item.node()), items.next().map(|item| item.node())) {
        (Some(Node::Bytes(bytes)), Some(Node::Reference(_, Some(luid)))) => (bytes.to_vec(), luid),
        other => panic!("no challenge: {other:?}"),
    }
}

#[test]
fn both_eras_log_in_by_a_challenge_that_never_repeats() {
    let mut pair = Pair::new();
    let mut seen = Vec::new();
    for method in ["username", "login", "login"] {
        let request = root(&mut pair, method, &text(&["alice"]));
        let (bytes, challenger) = challenge(&pair.answer(request));
        assert!(bytes.len() == 16 && !seen.contains(&bytes));
        seen.push(bytes);
        let proof = Value::tuple([Value::from(&b"proof"[..])]).encode();
        let request = pair.call(Target::Luid(challenger), "respond", &proof);
        pair.turn();
        let avatar = luid(&pair.answer(request));
        assert_eq!(pair.sessions.list()[0].identities, ["alice"]);
        let request = pair.call(Target::Luid(avatar), "keys", &text(&[]));
        pair.turn();
        match method {
            "username" => assert_eq!(pair.error(request), "twisted.spread.flavors.NoSuchMethod"),
            _ => {
                assert_eq!(pair.answer(request).root().items().len(), 3);
                let request = pair.call(Target::Luid(avatar), "identity", &text(&[]));
                pair.turn();
                assert_eq!(pair.answer(request).root().as_text(), Some("alice"));
            }
        }
    }
}

#[test]
fn a_login_name_may_include_the_perspective() {
    let mut pair = Pair::new();
    let request = pair.log_in("alice/board/shared", Some('m'));
    pair.turn();
    let (_, perspective) = pair.attached("board", request);
    pair.reaches("board", perspective).unwrap();
    assert_eq!(pair.sessions.list()[0].perspectives, ["board/shared"]);
    let mut other = Pair::new();
    let request = other.log_in("alice/board/nobody", None);
    other.turn();
    other.error(request);
    assert!(!other.session().logged_in(), "nothing came of it");
    let request = pair.log_in("alice/board/nobody", Some('n'));
    pair.turn();
    assert_eq!(pair.error(request), "twisted.cred.error.KeyNotFound");
    assert!(pair.heard.contains(&Heard::Dropped('n')));
    assert_eq!(pair.notes.len(), 1);
    assert_eq!((pair.notes[0].asked.as_str(), pair.notes[0].why), ("board/nobody", "no such key"));
    for (name, class) in
        [("alice/chess", "twisted.python.failure.DefaultException"), ("alice/board/a\nb", "builtins.ValueError")]
    {
        let request = pair.log_in(name, None);
        pair.turn();
        assert_eq!(pair.error(request), class, "{name}");
    }
    // A key to a service that is not there.
    pair.identities.get_mut("alice").unwrap().keyring.add(Key::new("chess", "alice").unwrap());
    let request = pair.log_in("alice/chess", Some('o'));
    pair.turn();
    assert_eq!(pair.error(request), "builtins.KeyError");
    assert!(pair.heard.contains(&Heard::Dropped('o')));
}

#[test]
fn every_refusal_is_sent_at_its_time_whatever_the_reason() {
    for (name, class, text) in [
        ("mallory", "twisted.cred.error.UnauthorizedLogin", ""),
        // No identity has this name: it was removed right after its proof.
        ("nobody", "twisted.cred.error.UnauthorizedLogin", ""),
        ("busy", "twisted.cred.error.LoginFailed", "busy"),
        ("wait", "twisted.cred.error.LoginFailed", "too many failed logins"),
        ("locked", "twisted.cred.error.LoginFailed", "the operator can unlock it"),
        ("broken", "twisted.cred.error.LoginFailed", "cannot check logins"),
    ] {
        let mut pair = Pair::new();
        let request = pair.log_in(name, Some('m'));
        pair.turn();
        assert_eq!(pair.reply(request), None, "{name}");
        assert!(pair.heard.contains(&Heard::Dropped('m')), "{name}");
        pair.now.instant += Duration::from_millis(249);
        pair.turn();
        assert_eq!(pair.reply(request), None, "{name}");
        pair.now.instant += Duration::from_millis(1);
        pair.turn();
        let heard = pair.reply(request);
        assert!(
            matches!(&heard, Some(Heard::Error { class: of, text: said, .. }) if of == class && said.contains(text)),
            "{name}: {heard:?}"
        );
        assert!(pair.sessions.list().is_empty() && !pair.session().logged_in(), "{name}");
    }
}

#[test]
fn a_client_with_many_pending_refusals_is_not_read() {
    let mut pair = Pair::new();
    let requests: Vec<u64> = (0..70).map(|_| pair.log_in("mallory", None)).collect();
    pair.turn();
    assert!(pair.session().is_waiting());
    pair.now.instant += Duration::from_millis(250);
    pair.turn();
    pair.now.instant += Duration::from_millis(250);
    pair.turn();
    for request in requests {
        // Four are checked at once. The others are refused as busy, at the same time.
        assert!(pair.error(request).starts_with("twisted.cred.error."));
    }
}

#[test]
fn invalid_login_calls_are_errors_and_retain_nothing() {
    let mut pair = Pair::new();
    for (method, arguments, class) in [
        ("nonsense", text(&[]), "twisted.spread.flavors.NoSuchMethod"),
        ("loginAnonymous", text(&[]), "twisted.cred.error.UnhandledCredentials"),
        ("login", Value::tuple([Value::from(5)]).encode(), "builtins.TypeError"),
        ("loginPassword", text(&["alice"]), "builtins.TypeError"),
        ("loginKey", text(&["alice", "ssh-ed25519 nonsense"]), "builtins.ValueError"),
        ("loginToken", Value::tuple([Value::from(1)]).encode(), "builtins.TypeError"),
    ] {
        let request = root(&mut pair, method, &arguments);
        assert_eq!(pair.error(request), class, "{method}");
    }
    let mine = pair.own('x');
    let request = root(&mut pair, "login", &references(b"remote", &[mine]));
    assert_eq!(pair.error(request), "builtins.TypeError");
    assert!(pair.heard.contains(&Heard::Dropped('x')));
    assert!(pair.session().owners.login.is_idle());
}

#[test]
fn an_identity_that_changes_during_its_login_counts_as_changed() {
    // The identity is looked up. Before the session processes the result, the identity is disabled or loses its key.
    for disabled in [true, false] {
        let mut pair = Pair::new();
        pair.holds_questions = true;
        let request = pair.log_in("alice/board/alice", Some('m'));
        pair.turn();
        let (no, question) = pair.questions.remove(0);
        let (found, now) = (pair.find(&question), pair.now);
        pair.session().found(no, found, now);
        pair.turn();
        let (no, question) = pair.questions.remove(0);
        assert!(matches!(&question, Question::Identity(name) if name == "alice"));
        let old = pair.find(&question);
        let alice = pair.identities.get_mut("alice").unwrap();
        if disabled {
            alice.enabled = false;
        } else {
            alice.keyring.remove(&Key::new("board", "alice").unwrap());
        }
        pair.tell_of("alice");
        pair.session().found(no, old, now);
        pair.holds_questions = false;
        pair.turn();
        for (no, question) in std::mem::take(&mut pair.questions) {
            let found = pair.find(&question);
            pair.session().found(no, found, now);
        }
        pair.now.instant += Duration::from_millis(250);
        pair.turn();
        let class = if disabled { "twisted.cred.error.UnauthorizedLogin" } else { "twisted.cred.error.KeyNotFound" };
        assert_eq!(pair.error(request), class);
        assert!(pair.told("board").is_empty(), "the service never hears of it");
        assert!(pair.heard.contains(&Heard::Dropped('m')));
        assert!(pair.sessions.list().is_empty(), "the operator does not see who has nothing here");
    }
}

#[test]
fn an_avatar_attaches_for_as_long_as_its_credential_lasts() {
    let mut pair = Pair::new();
    let alice = pair.identities.get_mut("alice").unwrap();
    alice.credentials[0].expires = Some(2_000);
    let avatar = pair.login("alice", None);
    pair.attach(avatar, "board", "alice", None);
    pair.now.unix = 2_000;
    let request = pair.begin_attach(avatar, "board", "shared", Some('m'));
    pair.turn();
    assert_eq!(pair.error(request), "twisted.cred.error.UnauthorizedLogin");
    assert!(pair.heard.contains(&Heard::Dropped('m')));
}

#[test]
fn pending_passwords_and_other_questions_have_their_own_limits() {
    let mut pair = Pair::new();
    pair.login("alice", None);
    pair.holds_questions = true;
    let requests: Vec<u64> = (0..6).map(|_| pair.log_in("alice", None)).collect();
    pair.turn();
    assert_eq!(pair.questions.len(), 4);
    pair.now.instant += Duration::from_millis(250);
    pair.turn();
    for request in &requests[4..] {
        assert!(matches!(pair.reply(*request), Some(Heard::Error { text, .. }) if text.contains("busy")));
    }
    // Other questions make the session wait before it reads on; it reads on when one is answered.
    for _ in 0..6 {
        pair.call(Target::Name("root"), "loginToken", &text(&["token"]));
    }
    pair.turn();
    assert_eq!(pair.questions.len(), 8);
    assert!(pair.session().is_waiting());
    let at = pair.questions.iter().position(|(_, of)| matches!(of, Question::Prove(Proof::Token(_)))).unwrap();
    let (no, _) = pair.questions.remove(at);
    let now = pair.now;
    pair.session().found(no, Found::Broken, now);
    pair.turn();
    assert_eq!(pair.questions.len(), 8);
}

#[test]
fn released_attachments_in_use_count_towards_the_limit() {
    let mut limits = super::super::Limits::default();
    limits.after.attachments = 2;
    let mut pair = Pair::with(limits);
    let avatar = pair.login("alice", None);
    let (_, first) = pair.attach(avatar, "board", "alice", None);
    pair.attach(avatar, "board", "shared", None);
    let object = pair.hand_out("board", first, 50);
    pair.client.output.release(first, 1);
    let request = pair.begin_attach(avatar, "board", "alice", Some('m'));
    pair.turn();
    assert!(matches!(pair.reply(request), Some(Heard::Error { text, .. }) if text.contains("has 2 attachments")));
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    pair.client.output.release(object, 1);
    pair.turn();
    pair.attach(avatar, "board", "alice", None);
}

#[test]
fn a_service_may_refuse_an_attachment_or_end_it() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    let request = pair.begin_attach(avatar, "board", "alice", Some('m'));
    pair.turn();
    let Some(Told::Attach { attachment, .. }) = pair.told("board").pop() else { panic!() };
    pair.says(
        "board",
        &ToHost::Failed { call: attachment, class: "board.Full", message: "full", fault: false, detail: &[] },
    );
    assert_eq!(pair.error(request), "board.Full");
    assert!(pair.heard.contains(&Heard::Dropped('m')));
    assert_eq!(pair.told("board"), [Told::Detach(attachment)]);
    let (attachment, perspective) = pair.attach(avatar, "board", "alice", None);
    // Another service cannot.
    pair.says("mail", &ToHost::End { attachment });
    pair.reaches("board", perspective).unwrap();
    pair.says("board", &ToHost::End { attachment });
    assert_eq!(pair.reaches("board", perspective), Err(DEAD.to_owned()));
    // A refusal of an existing attachment: the new code does not take it over.
    let (attachment, perspective) = pair.attach(avatar, "board", "alice", None);
    pair.says(
        "board",
        &ToHost::Failed { call: attachment, class: "board.Full", message: "full", fault: false, detail: &[] },
    );
    assert_eq!(pair.reaches("board", perspective), Err(DEAD.to_owned()));
}

#[test]
fn each_attachment_is_revoked_before_it_is_detached() {
    let mut pair = Pair::new();
    let avatar = pair.login("alice", None);
    let (first, _) = pair.attach(avatar, "board", "alice", None);
    let (second, _) = pair.attach(avatar, "board", "alice", None);
    pair.told("board");
    pair.identities.remove("alice");
    pair.tell_of("alice");
    pair.turn();
    let told = pair.told("board");
    assert_eq!(told.iter().filter(|told| matches!(told, Told::Revoke(_))).count(), 2, "{told:?}");
    let at = |what: &Told| told.iter().position(|told| told == what).unwrap();
    assert!([first, second].iter().all(|no| at(&Told::Revoke(*no)) < at(&Told::Detach(*no))), "{told:?}");
}

#[test]
fn a_2005_perspective_stays_attached_until_disconnect() {
    let mut pair = Pair::new();
    let request = root(&mut pair, "username", &text(&["alice"]));
    let (_, challenger) = challenge(&pair.answer(request));
    let request = pair.call(Target::Luid(challenger), "respond", &Value::tuple([Value::from(&b"p"[..])]).encode());
    pair.turn();
    let wrapper = luid(&pair.answer(request));
    let (attachment, perspective) = pair.attach(wrapper, "board", "alice", None);
    pair.client.output.release(perspective, 1);
    pair.turn();
    assert!(pair.told("board").is_empty());
    pair.close();
    assert_eq!(pair.told("board"), [Told::Detach(attachment)]);
}

#[test]
fn a_removed_identitys_proof_does_not_open_its_successor() {
    // During the check of the proof, the identity is removed, and another with its name and number is added.
    for (removed, well) in [("alice", false), ("bob", true)] {
        let mut pair = Pair::new();
        pair.holds_questions = true;
        let request = pair.log_in("alice/board/alice", Some('m'));
        pair.turn();
        let (no, question) = pair.questions.remove(0);
        let (found, now) = (pair.find(&question), pair.now);
        let kept = pair.identities.remove(removed).unwrap();
        pair.tell_of(removed);
        pair.identities.insert(removed.to_owned(), kept);
        pair.session().found(no, found, now);
        pair.holds_questions = false;
        pair.turn();
        for (no, question) in std::mem::take(&mut pair.questions) {
            let found = pair.find(&question);
            pair.session().found(no, found, now);
        }
        pair.now.instant += Duration::from_millis(250);
        pair.turn();
        if well {
            pair.attached("board", request);
        } else {
            assert_eq!(pair.error(request), "twisted.cred.error.UnauthorizedLogin");
            assert!(pair.heard.contains(&Heard::Dropped('m')));
            assert!(pair.sessions.list().is_empty());
        }
    }
}

/// An anonymous client counts as logged in once a service has accepted it, and no longer once its last attachment has ended.
#[test]
fn an_anonymous_client_counts_once_a_service_accepts_it() {
    let rules = ListenerRules {
        anonymous: Some(Key::new("board", "guest").unwrap()),
        names: BTreeMap::from([("shop".to_owned(), Key::new("mail", "shop").unwrap())]),
        ..ListenerRules::default()
    };
    let mut pair = Pair::with_rules(rules);
    let request = root(&mut pair, "loginAnonymous", &text(&[]));
    assert!(!pair.session().logged_in(), "nobody has taken them yet");
    let (attachment, perspective) = pair.attached("board", request);
    assert!(pair.session().logged_in());
    assert!(pair.begin("board", perspective, &text(&["x"])).1.is_some());
    pair.says("board", &ToHost::End { attachment });
    assert!(!pair.session().logged_in(), "they are gone");
    // By a name: the call does not wait, and the service's refusal answers it.
    let request = pair.call(Target::Name("shop"), "m", &text(&["x"]));
    pair.turn();
    let told = pair.told("mail");
    let asked = told.iter().find_map(|told| match told {
        Told::Attach { attachment, .. } => Some(*attachment),
        _ => None,
    });
    let attachment = asked.expect("it is attached at its first call");
    assert!(told.iter().any(|told| matches!(told, Told::Call { attachment: by, .. } if *by == attachment)));
    let (class, message) = ("mail.Closed", "closed");
    pair.says("mail", &ToHost::Failed { call: attachment, class, message, fault: false, detail: &[] });
    assert_eq!(pair.error(request), "mail.Closed");
    assert!(!pair.session().logged_in());
    let request = pair.call(Target::Name("nothing"), "m", &text(&[]));
    pair.turn();
    assert_eq!(pair.error(request), "twisted.spread.pb.Error");
}

/// A connection without a login may have few attachments, whatever the limit of others.
#[test]
fn an_anonymous_connection_may_have_few_attachments() {
    let rules = ListenerRules { anonymous: Some(Key::new("board", "guest").unwrap()), ..ListenerRules::default() };
    let mut pair = Pair::with_rules(rules);
    for _ in 0..16 {
        let request = root(&mut pair, "loginAnonymous", &text(&[]));
        pair.attached("board", request);
    }
    let request = root(&mut pair, "loginAnonymous", &text(&[]));
    assert_eq!(pair.error(request), "twisted.spread.pb.Error");
}

/// The operator decides what a listener gives without a login. Whatever it no longer gives ends at once, and nothing else does.
#[test]
fn access_that_is_no_longer_given_without_login_ends_at_once() {
    let key = |service: &str, perspective: &str| Key::new(service, perspective).unwrap();
    let rules = |anonymous: Option<(&str, &str)>, shop: Option<(&str, &str)>| ListenerRules {
        anonymous: anonymous.map(|(service, perspective)| key(service, perspective)),
        names: shop.map(|(service, perspective)| ("shop".to_owned(), key(service, perspective))).into_iter().collect(),
        ..ListenerRules::default()
    };
    let guest = Some(("board", "guest"));
    let shop = Some(("mail", "shop"));
    // The new rules, and whether what came by an anonymous login lives, and what came by a name.
    for (after, anonymous, named) in [
        (rules(guest, shop), true, true),
        (rules(None, shop), false, true),
        (rules(Some(("board", "alice")), shop), false, true),
        (rules(guest, None), true, false),
        (rules(guest, guest), true, false),
        (rules(None, None), false, false),
    ] {
        let what = format!("{after:?}");
        let mut pair = Pair::with_rules(rules(guest, shop));
        let request = root(&mut pair, "loginAnonymous", &text(&[]));
        let (attachment, perspective) = pair.attached("board", request);
        let object = pair.hand_out("board", perspective, 50);
        // Somebody with a key of their own to the same perspective.
        pair.identities.get_mut("alice").unwrap().keyring.add(key("board", "guest"));
        let avatar = pair.login("alice", None);
        let (_, own) = pair.attach(avatar, "board", "guest", None);
        pair.call(Target::Name("shop"), "m", &text(&[]));
        pair.turn();
        let told = pair.told("mail");
        let Some(Told::Attach { attachment: by_name, .. }) = told.first().cloned() else { panic!("{told:?}") };
        pair.says("mail", &ToHost::Attached { attachment: by_name });
        pair.told("board");
        pair.gives(after.clone());
        let told = (pair.told("board"), pair.told("mail"));
        assert_eq!(told.0.contains(&Told::Detach(attachment)), !anonymous, "{what}: {told:?}");
        assert_eq!(told.0.contains(&Told::Revoke(attachment)), !anonymous, "{what}: {told:?}");
        assert_eq!(told.1.contains(&Told::Detach(by_name)), !named, "{what}: {told:?}");
        for luid in [perspective, object] {
            assert_eq!(pair.reaches("board", luid).is_ok(), anonymous, "{what}");
        }
        pair.reaches("board", own).expect("whoever has a key keeps what it leads to");
        // Later logins and calls follow the new rules.
        let request = root(&mut pair, "loginAnonymous", &text(&[]));
        match after.anonymous {
            Some(_) => drop(pair.attached("board", request)),
            None => assert_eq!(pair.error(request), "twisted.cred.error.UnhandledCredentials", "{what}"),
        }
        let request = pair.call(Target::Name("shop"), "m", &text(&[]));
        pair.turn();
        if after.names.is_empty() {
            assert_eq!(pair.error(request), "twisted.spread.pb.Error", "{what}");
        }
    }
}
