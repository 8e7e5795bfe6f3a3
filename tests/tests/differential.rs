//! Our encoder and decoder compared with Twisted's own, on thousands of values, in both directions.

use std::collections::BTreeMap;
use std::io::Write;

use jelly::{BigInt, Bytes, Date, DateTime, Decimal, Set, Time, TimeDelta, Value};
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use system_tests::python::twisted;

fn hex(line: &str) -> Vec<u8> {
    data_encoding::HEXLOWER.decode(line.as_bytes()).expect("a line of hexadecimal digits")
}

#[test]
fn bytes_from_twisted_decode_and_re_encode_identically() {
    let seed = std::env::var("CREDHOST_SEED").unwrap_or_else(|_| "20251124".to_owned());
    let lines = twisted("differential.py", &["generate", &seed, "5000"]);
    let mut shared = 0;
    for line in lines.lines() {
        let bytes = hex(line);
        let value = Value::decode(&bytes).unwrap_or_else(|error| panic!("{error}: {line}"));
        assert_eq!(data_encoding::HEXLOWER.encode(&value.encode()), line, "{value}");
        shared += usize::from(line.contains("048701"));
    }
    assert!(lines.lines().count() == 5000 && shared > 100, "values that share are among them: {shared}");
}

/// The base classes that we know for Twisted's error classes are the ones that they have in Twisted.
#[test]
fn twisteds_errors_have_the_bases_that_twisted_gives_them() {
    // From Twisted's cred of before 2003, or not derived from Python's own classes where they exist.
    let gone = ["twisted.cred.error.KeyNotFound", "twisted.cred.error.DuplicateIdentity"];
    let known: Vec<_> = jelly::exceptions::all_of_twisted().filter(|(name, _)| !gone.contains(name)).collect();
    let names: Vec<&str> = known.iter().map(|(name, _)| *name).collect();
    let lines = twisted("differential.py", &[&["bases"], names.as_slice()].concat());
    assert_eq!(lines.lines().count(), known.len(), "{lines}");
    for ((name, bases), line) in known.into_iter().zip(lines.lines()) {
        let wanted: Vec<&str> = line.split(' ').take_while(|base| *base != "BaseException").collect();
        assert_eq!(bases, wanted, "{name}");
    }
}

/// Values of every kind, nested to various depths.
fn any_value() -> impl Strategy<Value = Value> {
    let int = prop_oneof![
        any::<i64>().prop_map(Value::from),
        (any::<u128>(), any::<bool>(), 0..320u32).prop_map(|(value, negative, shift)| {
            let value = num(value, shift);
            let text = if negative { format!("-{value}") } else { value };
            Value::try_from(text.parse::<BigInt>().expect("digits")).expect("below 2^448")
        }),
    ];
    let time = (0..24u8, 0..60u8, 0..60u8, 0..1_000_000u32).prop_map(|(hour, minute, second, microsecond)| Time {
        hour,
        minute,
        second,
        microsecond,
    });
    let date = (1..=9999u16, 1..=12u8, 1..=28u8).prop_map(|(year, month, day)| Date { year, month, day });
    let leaf = prop_oneof![
        Just(Value::none()),
        any::<bool>().prop_map(Value::from),
        int,
        any::<f64>().prop_filter("a NaN has many faces", |value| !value.is_nan()).prop_map(Value::from),
        any::<String>().prop_map(Value::from),
        any::<Vec<u8>>().prop_map(|bytes| Value::from(Bytes(bytes))),
        Just(Value::from(Bytes::from(*b"reference"))),
        date.clone().prop_map(Value::from),
        time.clone().prop_map(Value::from),
        (date, time).prop_map(|(date, time)| Value::from(DateTime { date, time })),
        (-999_999_999..=999_999_999i32, 0..86_400u32, 0..1_000_000u32)
            .prop_map(|(days, seconds, microseconds)| { Value::from(TimeDelta { days, seconds, microseconds }) }),
        (any::<i64>(), -50..50i64)
            .prop_map(|(digits, exponent)| Value::from(Decimal { digits: digits.into(), exponent })),
        any::<i64>().prop_map(|item| Value::set([Value::from(item)])),
    ];
    leaf.prop_recursive(5, 60, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..6).prop_map(Value::list),
            prop::collection::vec(inner.clone(), 1..6).prop_map(Value::tuple),
            prop::collection::btree_map(any::<String>(), inner, 0..6).prop_map(|pairs| {
                Value::dictionary(pairs.into_iter().map(|(key, value)| (Value::from(key), value)))
            }),
        ]
    })
}

/// `value * 2^shift` in decimal digits.
fn num(value: u128, shift: u32) -> String {
    let mut digits: Vec<u8> = value.to_string().bytes().rev().map(|digit| digit - b'0').collect();
    for _ in 0..shift {
        let mut carry = 0;
        for digit in &mut digits {
            let double = *digit * 2 + carry;
            (*digit, carry) = (double % 10, double / 10);
        }
        if carry > 0 {
            digits.push(carry);
        }
    }
    digits.iter().rev().map(|digit| char::from(b'0' + digit)).collect()
}

#[test]
fn twisted_decodes_and_re_encodes_our_bytes_identically() {
    let mut runner = TestRunner::deterministic();
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    let values: Vec<Value> = (0..3000).map(|_| any_value().new_tree(&mut runner).expect("a value").current()).collect();
    for value in &values {
        writeln!(file, "{}", data_encoding::HEXLOWER.encode(&value.encode())).expect("it can be written");
    }
    let lines = twisted("differential.py", &["return", &file.path().to_string_lossy()]);
    assert_eq!(lines.lines().count(), values.len());
    for (line, value) in lines.lines().zip(&values) {
        assert_eq!(line, data_encoding::HEXLOWER.encode(&value.encode()), "{value}");
    }
}

#[test]
fn typed_values_survive_a_round_trip_through_twisted() {
    let typed = (BTreeMap::from([("a", 1)]), Set::from_iter([2]), Some(1.5), "text", Bytes::from(*b"bytes"));
    let bytes = jelly::to_vec(&typed).expect("it can be written");
    let mut file = tempfile::NamedTempFile::new().expect("a file");
    writeln!(file, "{}", data_encoding::HEXLOWER.encode(&bytes)).expect("it can be written");
    let line = twisted("differential.py", &["return", &file.path().to_string_lossy()]);
    assert_eq!(line.trim(), data_encoding::HEXLOWER.encode(&bytes));
}
