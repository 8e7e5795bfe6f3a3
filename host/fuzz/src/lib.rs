//! What is done to any bytes at all. Plain functions: cargo-fuzz calls them with bytes it makes up, and a test of the
//! workspace with the bytes that were kept in `corpus/`.

use std::collections::BTreeMap;

use jelly::{Limits, Scanner, Shape, Value};

/// A target: its name, and what it does.
pub type Target = (&'static str, fn(&[u8]));

/// All targets.
pub const TARGETS: [Target; 5] =
    [("value", value), ("typed", typed), ("broker", broker), ("frames", frames), ("elf", elf)];

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
}
