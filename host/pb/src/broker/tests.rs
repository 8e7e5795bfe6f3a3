//! Two brokers back to back: a whole network in one thread.

use super::*;

const TUPLE: &[u8] = &[1, 0x80, 11, 0x87];
const DICTIONARY: &[u8] = &[1, 0x80, 5, 0x87];
const NONE: &[u8] = &[1, 0x80, 1, 0x87];

struct Pair {
    server: Broker<char>,
    client: Broker<char>,
}

/// Everything that happened at one end, in words.
fn drain(broker: &mut Broker<char>) -> Result<Vec<String>, PeerFault> {
    let mut seen = Vec::new();
    while let Some(event) = broker.event()? {
        seen.push(match event {
            Event::Ready => "ready".to_owned(),
            Event::Call(call) => format!("call {:?} {} {}", call.target, call.method, call.answer),
            Event::CacheCall(call) => format!("cachecall {:?} {}", call.target, call.method),
            Event::Answer { request, value, .. } => format!("answer {request} {:?}", value.bytes()),
            Event::Error { request, failure, .. } => {
                format!("error {request} {}", Failure::read(failure.bytes()).expect("a failure"))
            }
            Event::Dropped(object) => format!("dropped {object}"),
            Event::DidNotUnderstand => "did not understand".to_owned(),
            Event::Uncached { object, luid } => format!("uncached {object} {luid}"),
            Event::Ended(luid) => format!("ended {luid}"),
        });
    }
    Ok(seen)
}

impl Pair {
    fn new() -> Self {
        let limits = Limits::default();
        let mut pair =
            Self { server: Broker::new(Role::Server, limits, 1024), client: Broker::new(Role::Client, limits, 1024) };
        assert_eq!(pair.at_client(), Ok(vec!["ready".to_owned()]));
        assert_eq!(pair.at_server(), Ok(vec!["ready".to_owned()]));
        assert_eq!(pair.at_client(), Ok(vec![]));
        pair
    }

    fn at_server(&mut self) -> Result<Vec<String>, PeerFault> {
        let bytes = std::mem::take(&mut self.client.output.bytes);
        self.server.receive(&bytes);
        drain(&mut self.server)
    }

    fn at_client(&mut self) -> Result<Vec<String>, PeerFault> {
        let bytes = std::mem::take(&mut self.server.output.bytes);
        self.client.receive(&bytes);
        drain(&mut self.client)
    }
}

#[test]
fn a_call_gets_its_answer_or_its_error() {
    let mut pair = Pair::new();
    let first = pair.client.output.call(Target::Name("root"), "login", true, TUPLE, DICTIONARY);
    let second = pair.client.output.call(Target::Luid(9), "echo", true, TUPLE, DICTIONARY);
    pair.client.output.call(Target::Luid(9), "tell", false, TUPLE, DICTIONARY);
    assert_eq!(
        pair.at_server().unwrap(),
        ["call Name(\"root\") login true", "call Luid(9) echo true", "call Luid(9) tell false"]
    );
    pair.server.output.fail(second, &Failure::new("twisted.spread.pb.Error", "Invalid Object ID"));
    pair.server.output.answer(first, NONE);
    assert_eq!(
        pair.at_client().unwrap(),
        ["error 2 twisted.spread.pb.Error: Invalid Object ID".to_owned(), format!("answer 1 {NONE:?}")]
    );
    assert_eq!(pair.client.output.waiting().count(), 0);
}

#[test]
fn each_sending_of_a_reference_is_counted() {
    let mut pair = Pair::new();
    let call = pair.client.output.call(Target::Name("root"), "get", true, TUPLE, DICTIONARY);
    pair.at_server().unwrap();
    let both = jelly::to_vec(&(1, 2)).unwrap();
    assert_eq!(pair.server.output.tables.export(&'a'), Ok(1));
    assert_eq!(pair.server.output.tables.export(&'a'), Ok(1));
    pair.server.output.answer(call, &both);
    pair.at_client().unwrap();
    pair.client.output.release(1, 2);
    assert_eq!(pair.at_server().unwrap(), ["dropped a"]);
}

#[test]
fn a_cached_object_is_sent_once_and_ends_with_its_last_decache() {
    let mut pair = Pair::new();
    let call = pair.client.output.call(Target::Name("root"), "get", true, TUPLE, DICTIONARY);
    pair.at_server().unwrap();
    // A list with the same object twice, as a service writes it. The object's state contains a reference.
    let mut value = Vec::new();
    token::list(&mut value, 3);
    token::bytes(&mut value, b"list");
    for _ in 0..2 {
        token::list(&mut value, 3);
        token::bytes(&mut value, b"board.Board");
        token::uint(&mut value, 70);
        token::list(&mut value, 2);
        token::bytes(&mut value, b"remote");
        token::uint(&mut value, 80);
    }
    let mut scanner = Scanner::new(Shape::Value, Limits::default());
    let scanned = scanner.scan(&value).unwrap().unwrap();
    assert_eq!(scanned.defect, None);
    let jelly = Jelly::new(&value, scanned.references, 0, value.len());
    let sent = pair.server.output.answer_translated(call, &jelly, |tables, reference| {
        Ok::<_, crate::TooManyReferences>(match (reference.kind, reference.luid) {
            (jelly::RefKind::Cache, Some(70)) => match tables.cache(&'b')? {
                (luid, true) => Translated::Number(luid),
                (luid, false) => Translated::As(jelly::RefKind::Cached, luid),
            },
            (jelly::RefKind::Remote, Some(80)) => Translated::Number(tables.export(&'r')?),
            other => panic!("{other:?}"),
        })
    });
    assert_eq!(sent, Ok(()));
    let bytes = std::mem::take(&mut pair.server.output.bytes);
    pair.client.receive(&bytes);
    let Ok(Some(Event::Answer { value, defect: None, .. })) = pair.client.event() else { panic!("no answer") };
    let found: Vec<_> = value.references().iter().map(|reference| (reference.kind, reference.luid)).collect();
    use jelly::RefKind::{Cache, Cached, Remote};
    assert_eq!(found, [(Cache, Some(1)), (Remote, Some(2)), (Cached, Some(1))], "its state goes out once");

    let nothing = |bytes| Jelly::new(bytes, &[], 0, bytes.len());
    let luid = pair.server.output.tables.cached_as(&'b').unwrap();
    let never = |_: &mut Tables<char>, _: &Reference| Err::<Translated, ()>(());
    pair.server.output.update_translated(luid, "moved", &nothing(TUPLE), &nothing(DICTIONARY), never).unwrap();
    assert_eq!(pair.at_client().unwrap(), ["cachecall Luid(1) moved"]);
    pair.client.output.decache(1);
    assert!(pair.at_server().unwrap().is_empty());
    pair.client.output.decache(1);
    assert_eq!(pair.at_server().unwrap(), ["uncached b 1"]);
    pair.server.output.update_translated(1, "end", &nothing(TUPLE), &nothing(DICTIONARY), never).unwrap();
    pair.server.output.uncache(1);
    assert_eq!(
        pair.at_client().unwrap(),
        ["cachecall Luid(1) end", "ended 1"],
        "a last word, and its end is confirmed"
    );
    assert!(!pair.client.output.tables.keeps(1));
    assert_eq!(pair.server.output.tables.cache(&'b'), Ok((3, true)));
}

#[test]
fn messages_that_twisted_closes_on_close_the_connection() {
    let (list, spelled) =
        (|out: &mut Vec<u8>, n| token::list(out, n), |out: &mut Vec<u8>, s: &str| token::bytes(out, s.as_bytes()));
    type Write = Box<dyn Fn(&mut Vec<u8>)>;
    let cases: Vec<(&str, Write, PeerFault)> = vec![
        ("not a list", Box::new(|out| token::int(out, 5)), PeerFault::NotAMessage),
        ("an empty list", Box::new(move |out| list(out, 0)), PeerFault::NotAMessage),
        (
            "no command",
            Box::new(move |out| {
                list(out, 1);
                token::int(out, 1)
            }),
            PeerFault::NotAMessage,
        ),
        (
            "a wrong arity",
            Box::new(move |out| {
                list(out, 1);
                spelled(out, "decref")
            }),
            PeerFault::Malformed("decref"),
        ),
        (
            "an answer to nothing",
            Box::new(move |out| {
                list(out, 3);
                spelled(out, "answer");
                token::int(out, 7);
                token::int(out, 1)
            }),
            PeerFault::UnknownRequest(7),
        ),
        (
            "a decref of nothing",
            Box::new(move |out| {
                list(out, 2);
                spelled(out, "decref");
                token::int(out, 7)
            }),
            PeerFault::UnknownReference("decref", 7),
        ),
        (
            "a decref of root",
            Box::new(move |out| {
                list(out, 2);
                spelled(out, "decref");
                spelled(out, "root")
            }),
            PeerFault::Malformed("decref"),
        ),
        (
            "a decache of nothing",
            Box::new(move |out| {
                list(out, 2);
                spelled(out, "decache");
                token::int(out, 7)
            }),
            PeerFault::UnknownReference("decache", 7),
        ),
        (
            "an uncache of nothing",
            Box::new(move |out| {
                list(out, 2);
                spelled(out, "uncache");
                token::int(out, 7)
            }),
            PeerFault::UnknownReference("uncache", 7),
        ),
        (
            "another version",
            Box::new(move |out| {
                list(out, 2);
                spelled(out, "version");
                token::int(out, 7)
            }),
            PeerFault::Version("7".to_owned()),
        ),
        ("an unknown token", Box::new(|out| out.push(0x88)), PeerFault::Banana(BananaError::UnknownType(0x88))),
        ("an unknown word", Box::new(|out| out.extend([32, 0x87])), PeerFault::Banana(BananaError::UnknownWord)),
        (
            "a method that is no text",
            Box::new(move |out| {
                list(out, 7);
                spelled(out, "message");
                token::int(out, 1);
                spelled(out, "root");
                token::bytes(out, &[0xff]);
                token::int(out, 1);
                out.extend(TUPLE);
                out.extend(DICTIONARY)
            }),
            PeerFault::Malformed("message"),
        ),
    ];
    for (name, write, fault) in cases {
        let mut pair = Pair::new();
        write(&mut pair.client.output.bytes);
        assert_eq!(pair.at_server(), Err(fault), "{name}");
    }
}

#[test]
fn an_unknown_command_is_answered_and_the_connection_stays_open() {
    let mut pair = Pair::new();
    token::list(&mut pair.client.output.bytes, 1);
    token::bytes(&mut pair.client.output.bytes, b"frobnicate");
    pair.client.output.call(Target::Name("root"), "login", true, TUPLE, DICTIONARY);
    assert_eq!(pair.at_server().unwrap(), ["call Name(\"root\") login true"]);
    assert_eq!(pair.at_client().unwrap(), ["did not understand"]);
}

#[test]
fn an_unknown_dialect_is_refused_and_none_spells_words_out() {
    let mut server: Broker<char> = Broker::new(Role::Server, Limits::default(), 16);
    token::spelled(server.input.buffer(), b"morse");
    assert_eq!(drain(&mut server), Err(PeerFault::Dialect));

    let mut server: Broker<char> = Broker::new(Role::Server, Limits::default(), 16);
    server.output.bytes.clear();
    token::spelled(server.input.buffer(), b"none");
    drain(&mut server).unwrap();
    server.output.answer(1, NONE);
    let mut expected = Vec::new();
    token::list(&mut expected, 2);
    token::spelled(&mut expected, b"version");
    token::int(&mut expected, 6);
    token::list(&mut expected, 3);
    token::spelled(&mut expected, b"answer");
    token::int(&mut expected, 1);
    token::list(&mut expected, 1);
    token::spelled(&mut expected, b"None");
    assert_eq!(server.output.bytes, expected);
}

#[test]
fn bad_arguments_reach_the_call_and_the_next_call_is_read() {
    let mut pair = Pair::new();
    let bad = [2, 0x80, 11, 0x87, 0, 0x80]; // (tuple ())
    pair.client.output.call(Target::Name("root"), "one", true, &bad, DICTIONARY);
    pair.client.output.call(Target::Name("root"), "two", true, TUPLE, DICTIONARY);
    let bytes = std::mem::take(&mut pair.client.output.bytes);
    pair.server.receive(&bytes);
    let Some(Event::Call(call)) = pair.server.event().unwrap() else { panic!() };
    assert_eq!((call.method, call.defect), ("one", Some(&Defect::Untagged)));
    let Some(Event::Call(call)) = pair.server.event().unwrap() else { panic!() };
    assert_eq!((call.method, call.defect), ("two", None));
}

#[test]
fn the_fourth_excess_reference_closes_the_connection() {
    let mut pair = Pair::new();
    pair.server.output.set_limit(1);
    assert!(pair.server.output.tables.export(&'a').is_ok());
    for _ in 0..4 {
        assert!(pair.server.output.tables.export(&'b').is_err());
    }
    assert_eq!(pair.at_server(), Err(PeerFault::TooManyReferences));
}

#[test]
fn bytes_that_arrive_one_by_one_give_the_same_calls() {
    let mut pair = Pair::new();
    for name in ["one", "two", "three"] {
        pair.client.output.call(Target::Name("root"), name, true, TUPLE, DICTIONARY);
    }
    let bytes = std::mem::take(&mut pair.client.output.bytes);
    let mut seen = Vec::new();
    for byte in bytes {
        pair.server.receive(&[byte]);
        seen.extend(drain(&mut pair.server).unwrap());
    }
    assert_eq!(seen.len(), 3);
}
