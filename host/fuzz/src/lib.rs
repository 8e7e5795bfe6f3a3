//! What is done to any bytes at all. Plain functions: cargo-fuzz calls them with bytes it makes up, and a test of the
//! workspace with the bytes that were kept in `corpus/`.

use std::collections::BTreeMap;

use jelly::{Limits, Scanner, Shape, Value};

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 12] = [
    ("value", value),
    ("typed", typed),
    ("broker", broker),
    ("frames", frames),
    ("elf", elf),
    ("login", login),
    ("manifest", manifest),
    ("control", control),
    ("credential", credential),
    ("record", record),
    ("entries", entries),
    ("worker", worker),
];

/// Untyped values: what is taken is written, and taken again as the same.
pub fn value(bytes: &[u8]) {
    if let Ok(value) = Value::decode(bytes) {
        let again = value.encode();
        assert_eq!(Value::decode(&again).map(|value| value.encode()).as_deref(), Ok(again.as_slice()));
        let _ = value.to_string();
    }
}

#[derive(Debug, serde::Serialize, serde::Deserialize)]
struct Everything {
    number: Option<i128>,
    text: String,
    list: Vec<(bool, f64)>,
    map: BTreeMap<String, Everything>,
    date: Option<jelly::DateTime>,
    bytes: jelly::Bytes,
    rest: Value,
}

/// Typed values.
pub fn typed(bytes: &[u8]) {
    if let Ok(value) = jelly::from_slice::<Everything>(bytes) {
        let again = jelly::to_vec(&value).expect("what was read can be written");
        assert!(jelly::from_slice::<Everything>(&again).is_ok());
    }
    let _ = jelly::from_slice::<Vec<Everything>>(bytes);
}

/// A server's broker, fed in two pieces, and whole: the same comes of it.
pub fn broker(bytes: &[u8]) {
    let run = |cut: usize| {
        let mut broker: pb::Broker<u32> = pb::Broker::new(pb::Role::Server, Limits::default(), 16);
        let mut seen = Vec::new();
        for piece in [&bytes[..cut], &bytes[cut..]] {
            broker.receive(piece);
            loop {
                match broker.event() {
                    Ok(Some(event)) => seen.push(format!("{event:?}").len()),
                    Ok(None) => break,
                    Err(fault) => {
                        seen.push(fault.to_string().len());
                        return seen;
                    }
                }
            }
        }
        seen
    };
    assert_eq!(run(0), run(bytes.len() / 2));
    let mut scanner = Scanner::new(Shape::Value, Limits::BEFORE_LOGIN);
    let _ = scanner.scan(bytes);
}

/// Frames of a library that is not well.
pub fn frames(mut bytes: &[u8]) {
    let mut other = bytes;
    while plugin_api::abi::frame::ToHost::read(&mut bytes).is_some() {}
    while plugin_api::abi::frame::ToLibrary::read(&mut other).is_some() {}
}

/// The head of a file that somebody dropped into the folder.
pub fn elf(bytes: &[u8]) {
    let _ = credhost::loader::elf::check(bytes, bytes.len() as u64);
    let _ = credhost::loader::elf::check(bytes, u64::MAX);
    let _ = credhost::loader::relocations::check(bytes);
}

/// A name, then a line's end, then a proof: nobody gets in by it, and every name gets a challenge.
pub fn login(bytes: &[u8]) {
    use credhost::cred::login::{Challenge, Login, Wanted};
    use credhost::cred::{DefaultAuthorizer, Identity, MasterKey};

    let split = bytes.iter().position(|byte| *byte == b'\n').unwrap_or(bytes.len());
    let (name, proof) = (String::from_utf8_lossy(&bytes[..split]), bytes.get(split + 1..).unwrap_or_default());
    let authorizer = std::sync::Arc::new(DefaultAuthorizer::new());
    if let Ok(identity) = Identity::new("alice") {
        let _ = authorizer.add(identity);
    }
    let login = Login::new(authorizer, MasterKey::new([1; 32]), &[2; 24]);
    let wanted = Wanted::parse(&name);
    let challenge = Challenge::new(&wanted.identity, [3; 16]);
    // An authorizer in memory answers at once.
    let mut answer = std::pin::pin!(login.respond(&challenge, proof, 0));
    match answer.as_mut().poll(&mut std::task::Context::from_waker(std::task::Waker::noop())) {
        std::task::Poll::Ready(answer) => assert!(answer.is_ok_and(|proof| proof.is_err()), "alice has no password"),
        std::task::Poll::Pending => unreachable!("nothing is waited for"),
    }
}

/// What a library says of itself.
pub fn manifest(bytes: &[u8]) {
    if let Ok(manifest) = jelly::from_slice::<plugin_api::manifest::Manifest>(bytes) {
        let again = jelly::to_vec(&manifest).expect("what was read can be written");
        assert_eq!(jelly::from_slice(&again), Ok(manifest.clone()));
        let _ = credhost::cred::Name::new(credhost::cred::NameOf::Service, &manifest.service);
    }
}

/// A line on the control socket: what is taken shows no secret.
pub fn control(bytes: &[u8]) {
    if let Ok(request) = serde_json::from_slice::<credhost::control::Request>(bytes) {
        assert!(!format!("{request:?}").contains("hunter2"));
        assert!(serde_json::to_string(&request).is_ok());
    }
    let _ = serde_json::from_slice::<credhost::control::Response>(bytes);
}

/// A public key, as a line or as bytes, a signature by it, the hash of a password: nothing is let in by it.
pub fn credential(bytes: &[u8]) {
    use credhost::cred::{Password, PublicKey, check_hash};

    let text = String::from_utf8_lossy(bytes);
    if let Ok((key, _)) = PublicKey::parse(&text) {
        assert_eq!(PublicKey::parse(&key.line()).map(|(again, _)| again), Ok(key.clone()));
        assert!(!key.verifies(b"what nobody has signed", bytes));
    }
    if let Ok(key) = PublicKey::from_bytes(bytes) {
        assert!(!key.verifies(b"what nobody has signed", bytes));
    }
    // One that is let in costs no more than this to check, and is checked by no password's luck.
    if check_hash(&text, 64, credhost::cred::HashCost { memory: 8, passes: 1 }).is_ok() {
        // Bcrypt's at the highest cost that is taken is a quarter of a second.
        let _ = text.starts_with("$argon2id$") && Password::new("").matches(&text);
    }
}

/// An identity of an import: what is taken is written and read as the same.
pub fn record(bytes: &[u8]) {
    use credhost::store::Record;

    let Ok(record) = serde_json::from_slice::<Record>(bytes) else { return };
    let Ok(identity) = record.identity() else { return };
    let written = serde_json::to_vec(&Record::from(&identity)).expect("what was read can be written");
    let again: Record = serde_json::from_slice(&written).expect("what was written can be read");
    assert_eq!(again.identity(), Ok(identity));
    let _ = credhost::store::audit::Head::parse(&String::from_utf8_lossy(bytes));
}

/// Entries of a service's data, and objects that go from one generation to the next, as they cross the wall.
pub fn entries(bytes: &[u8]) {
    use plugin_api::abi::frame;

    let read: Vec<(&[u8], Option<&[u8]>)> = frame::entries(bytes).collect();
    let mut written = Vec::new();
    for (key, value) in &read {
        frame::put_entry(&mut written, key, *value);
    }
    assert!(frame::entries(&written).eq(read));
    let read: Vec<(u64, u64, &str)> = frame::objects(bytes).collect();
    let mut written = Vec::new();
    for (object, count, name) in &read {
        frame::put_object(&mut written, *object, *count, name);
    }
    assert!(frame::objects(&written).eq(read));
}

/// What a worker says, by hand: messages, the frames in them, and what is said in its place when it is dead.
pub fn worker(bytes: &[u8]) {
    use credhost::loader::worker::owed::Owed;
    use credhost::loader::worker::wire::{Decoder, Kind, line};
    use plugin_api::abi::frame::ToHost;

    let (mut decoder, mut owed) = (Decoder::new(1 << 16), Owed::default());
    decoder.feed(bytes);
    while let Ok(Some((header, body))) = decoder.message() {
        let good = match header.kind {
            Kind::Frames => owed.said(body, 1 << 10).is_ok(),
            Kind::Log => line(body).is_some(),
            _ => true,
        };
        if !good {
            break;
        }
    }
    // Nobody has asked it anything: there is nothing to answer, and nothing to give back.
    assert!(owed.failed("it crashed").is_empty());
    let last = owed.ended();
    assert_eq!(ToHost::read(&mut last.as_slice()), Some(ToHost::Stopped {}));
}
