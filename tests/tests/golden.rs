//! Every recorded message of real Twisted, of both eras and in both directions, can be read; and messages of today's Twisted are
//! re-encoded byte by byte.

use jelly::token::{self, Token};
use jelly::{Limits, Scanner, Shape, Value};
use system_tests::workspace;

/// The pieces of a recording. Each holds whole messages. A blob of the letter x that did not fit into one piece was left out, except
/// for its end.
fn pieces(file: &str) -> Vec<Vec<u8>> {
    let text = std::fs::read_to_string(workspace().join("tests/golden").join(file)).expect("the recording is there");
    let lines = text.lines().map(|line| serde_json::from_str(line).expect("a line is JSON"));
    let pieces = lines.filter_map(|line: serde_json::Value| line["hex"].as_str().map(str::to_owned));
    pieces.map(|hex| data_encoding::HEXLOWER.decode(hex.as_bytes()).expect("hexadecimal digits")).collect()
}

/// All messages of these bytes: the command of each, and its Jelly values. `None`: the bytes are not whole messages.
fn whole(bytes: &[u8]) -> Option<Vec<(String, Vec<Vec<u8>>)>> {
    let (mut messages, mut rest) = (Vec::new(), bytes);
    let mut scanner = Scanner::new(Shape::Message, Limits::default());
    while !rest.is_empty() {
        let scanned = scanner.scan(rest).ok().flatten()?;
        assert_eq!(scanned.defect, None);
        let parts = (0..scanned.count).map(|at| rest[scanned.elements[at]..scanned.elements[at + 1]].to_vec());
        let parts: Vec<Vec<u8>> = parts.collect();
        let command = match parts.first().and_then(|first| token::read(first, u32::MAX).ok()?) {
            Some((Token::Bytes(name), _)) => String::from_utf8_lossy(name).into_owned(),
            _ => "dialect".to_owned(),
        };
        let values = match command.as_str() {
            "message" | "cachemessage" => parts[5..].to_vec(),
            "answer" | "error" => parts[2..].to_vec(),
            _ => Vec::new(),
        };
        messages.push((command, values));
        rest = &rest[scanned.end..];
    }
    Some(messages)
}

/// All messages of a recording.
fn messages(file: &str) -> Vec<(String, Vec<Vec<u8>>)> {
    let read = |bytes: Vec<u8>| {
        // No message begins with an x: that would be a list of 120 elements.
        let begin = bytes.iter().position(|byte| *byte != b'x').unwrap_or(bytes.len());
        whole(&bytes[begin..]).unwrap_or_else(|| panic!("{file}: {bytes:x?}"))
    };
    pieces(file).into_iter().flat_map(read).collect()
}

#[test]
fn todays_messages_are_written_again_byte_by_byte() {
    let messages = messages("new.jsonl");
    assert!(messages.len() > 100, "{}", messages.len());
    for (command, values) in &messages {
        for bytes in values {
            let value = Value::decode(bytes).unwrap_or_else(|error| panic!("{command}: {error}"));
            assert_eq!(value.encode(), *bytes, "{command} {value}");
        }
    }
    for command in ["message", "answer", "error", "decref", "cachemessage", "decache", "uncache", "version"] {
        assert!(messages.iter().any(|(found, _)| found == command), "{command} is in the recording");
    }
}

#[test]
fn the_messages_of_2005_mean_the_same_when_written_again() {
    let messages = messages("old.jsonl");
    assert!(messages.len() > 150, "{}", messages.len());
    for (command, values) in &messages {
        for bytes in values {
            let value = Value::decode(bytes).unwrap_or_else(|error| panic!("{command}: {error}"));
            // Its integers use other types for the same number; nothing else differs.
            let again = Value::decode(&value.encode()).expect("what we write we read");
            assert_eq!(again.to_string(), value.to_string());
        }
    }
}

#[test]
fn recorded_failures_are_read() {
    for (file, class) in [("new.jsonl", "builtins.ValueError"), ("old.jsonl", "exceptions.ValueError")] {
        let errors = messages(file).into_iter().filter(|(command, _)| command == "error");
        let failures: Vec<pb::Failure> =
            errors.map(|(_, values)| pb::Failure::read(&values[0]).expect("a failure")).collect();
        let failure = failures.iter().find(|failure| failure.class == class).expect("it is in the recording");
        assert_eq!(failure.value, "bad value");
        assert!(failure.is(class));
    }
}
