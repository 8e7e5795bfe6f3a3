//! The client of 2005 at the same door: the real one where python2.7 is available, and its recorded bytes everywhere.

use jelly::{Value, token};
use system_tests::host::TestHost;
use system_tests::python::twisted_of_2005;
use system_tests::wire::{Wire, call};

#[test]
fn twisted_of_2005_gets_perspectives_in_every_way_it_has() {
    let host = TestHost::with(&["my-service", "another-service"]);
    twisted_of_2005("old_client.py", &[&host.port()]);
}

/// Returns the value of the answer to call `request`, or the class of the error.
fn answered(wire: &mut Wire, request: u64) -> Result<Value, String> {
    let mut scanner = jelly::Scanner::new(jelly::Shape::Message, jelly::Limits::default());
    loop {
        if let Some(scanned) = scanner.scan(&wire.received).expect("the host speaks Banana") {
            let (end, elements) = (scanned.end, scanned.elements.to_vec());
            let message: Vec<u8> = wire.received.drain(..end).collect();
            let number = token::read(&message[elements[1]..], u32::MAX);
            let Ok(Some((token::Token::Int(number), _))) = number else {
                continue;
            };
            if number.to_u64() != Some(request) || elements.len() != 4 {
                continue;
            }
            let value = &message[elements[2]..elements[3]];
            return match message[elements[0]] {
                27 => Ok(Value::decode(value).expect("an answer in Jelly")),
                _ => Err(pb::Failure::read(value).expect("a failure").class),
            };
        }
        assert!(wire.read(), "it closed");
    }
}

/// Sends what Twisted 2.1.0 was recorded to send, from `tests/golden/old.jsonl`. The proof for the host's own challenge
/// replaces the recorded one.
#[test]
fn the_recorded_bytes_of_2005_log_in_attach_and_call() {
    let host = TestHost::with(&["my-service", "another-service"]);
    let mut wire = Wire::connect(host.address());
    let hex = |text: &str| data_encoding::HEXLOWER.decode(text.replace(' ', "").as_bytes()).expect("hex");
    // (message 1 'root' 'username' 1 (tuple 'alice') (dictionary))
    wire.send(&hex("07801a870181 0482726f6f74 0882757365726e616d65 0181 02800b87 0582616c696365 01800587"));
    let answer = answered(&mut wire, 1).expect("a challenge");
    let mut items = answer.root().items();
    let Some(jelly::Node::Bytes(challenge)) = items.next().map(|item| item.node()) else { panic!("{answer}") };
    assert!(matches!(
        items.next().map(|item| item.node()),
        Some(jelly::Node::Reference(jelly::RefKind::Remote, Some(1)))
    ));
    let proof = credhost::cred::challenge_response(challenge, &credhost::cred::Password::new("alice-pw"));
    // (message 2 1 'respond' 1 (tuple PROOF) (dictionary)), and together with it (decref 1), before the answer has
    // arrived.
    let mut respond = hex("07801a8702810181 0782726573706f6e64 0181 02800b87 1082");
    respond.extend_from_slice(&proof);
    respond.extend_from_slice(&hex("01800587 02801d870181"));
    wire.send(&respond);
    let wrapper = answered(&mut wire, 2).expect("a wrapper");
    assert_eq!(wrapper.to_string(), "<Remote 2>");
    // (message 3 2 'attach' 1 (tuple 'my service' 'alice' (remote 1)) (dictionary)), (decref 2)
    let arguments = hex("04800b87 0a826d792073657276696365 0582616c696365 028010870181");
    let mut attach = call(3, Ok(2), "attach", &arguments);
    attach.extend_from_slice(&hex("02801d870281"));
    wire.send(&attach);
    assert_eq!(answered(&mut wire, 3).expect("a perspective").to_string(), "<Remote 3>");
    // (message 4 3 'echo' 1 (tuple 'hello') (dictionary)), and its integers of nine digits under INT.
    wire.send(&hex("07801a870481 0381 04826563686f 0181 02800b87 058268656c6c6f 01800587"));
    assert_eq!(answered(&mut wire, 4).expect("an answer").to_string(), "b\"hello\"");
    wire.send(&hex("07801a870581 0381 04826563686f 0181 02800b87 00000000002081 01800587"));
    assert_eq!(answered(&mut wire, 5).expect("an answer").root().as_int(), Some(1 << 40));
    // add(1, b=5), with a keyword that is a plain string.
    wire.send(&hex("07801a870681 0381 0382616464 0181 02800b870181 02800587 02800182620581"));
    assert_eq!(answered(&mut wire, 6).expect("an answer").root().as_int(), Some(6));
}

#[test]
fn the_old_roots_refusals_are_the_originals() {
    let host = TestHost::with(&["my-service"]);
    let mut wire = Wire::connect(host.address());
    let text = |text: &str| jelly::to_vec(&(jelly::Bytes::from(text),)).expect("a name");
    for (request, name) in [(1, "alice"), (3, "mallory")] {
        // Unlike in the original, an unknown name also gets a challenge.
        wire.send(&call(request, Err("root"), "username", &text(name)));
        let answer = answered(&mut wire, request).expect("a challenge");
        let challenger = answer.root().items().nth(1).map(|item| item.node());
        let Some(jelly::Node::Reference(_, Some(luid))) = challenger else { panic!("{answer}") };
        wire.send(&call(request + 1, Ok(luid), "respond", &text("0123456789abcdef")));
        assert_eq!(answered(&mut wire, request + 1).expect("None").to_string(), "None");
    }
    wire.send(&call(5, Err("root"), "nosuch", &[1, 0x80, 11, 0x87]));
    assert_eq!(answered(&mut wire, 5).unwrap_err(), "twisted.spread.flavors.NoSuchMethod");
    wire.send(&call(6, Ok(99), "x", &[1, 0x80, 11, 0x87]));
    assert_eq!(answered(&mut wire, 6).unwrap_err(), "twisted.spread.pb.Error");
    wire.send(&call(7, Err("root"), "username", &[1, 0x80, 11, 0x87]));
    assert_eq!(answered(&mut wire, 7).unwrap_err(), "builtins.TypeError");
}
