//! Properties of all values, and of all bytes.

use std::collections::BTreeMap;

use jelly::{BigInt, Bytes, Limits, Scanner, Shape, Value};
use proptest::prelude::*;
use serde::{Deserialize, Serialize};

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
enum Shade {
    Plain,
    Mixed(u8, u8),
    Named { name: String },
    Wrapped(Option<Box<Shade>>),
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Everything {
    small: i8,
    wide: i128,
    large: u128,
    float: f64,
    text: String,
    letter: char,
    bytes: Bytes,
    maybe: Option<u64>,
    list: Vec<(String, bool)>,
    map: BTreeMap<String, Vec<i64>>,
    shade: Shade,
    unit: (),
}

fn shade() -> impl Strategy<Value = Shade> {
    let leaf = prop_oneof![
        Just(Shade::Plain),
        any::<(u8, u8)>().prop_map(|(one, two)| Shade::Mixed(one, two)),
        any::<String>().prop_map(|name| Shade::Named { name }),
        // Some(None) and None are the same to Python, so an Option of an Option is not distinguished.
    ];
    leaf.prop_recursive(3, 6, 1, |inner| inner.prop_map(|inner| Shade::Wrapped(Some(Box::new(inner)))))
}

fn everything() -> impl Strategy<Value = Everything> {
    let numbers = (any::<i8>(), any::<i128>(), any::<u128>(), -1e300..1e300f64);
    let texts = (any::<String>(), any::<char>(), any::<Vec<u8>>(), any::<Option<u64>>());
    let lists = (any::<Vec<(String, bool)>>(), any::<BTreeMap<String, Vec<i64>>>(), shade());
    (numbers, texts, lists).prop_map(
        |((small, wide, large, float), (text, letter, bytes, maybe), (list, map, shade))| Everything {
            small,
            wide,
            large,
            float,
            text,
            letter,
            bytes: Bytes(bytes),
            maybe,
            list,
            map,
            shade,
            unit: (),
        },
    )
}

/// A parser's worst friends: bytes that are nearly tokens.
fn nearly() -> impl Strategy<Value = Vec<u8>> {
    let token = prop_oneof![
        (0..6u8).prop_map(|length| vec![length, 0x80]),
        (1..32u8).prop_map(|word| vec![word, 0x87]),
        (0..4u8).prop_map(|number| vec![number, 0x81]),
        Just(vec![7, 0x82, b'u', b'n', b'i', b'c', b'o', b'd', b'e']),
        Just(vec![3, 0x82, b'a', b'.', b'b']),
        any::<Vec<u8>>(),
    ];
    prop::collection::vec(token, 0..40).prop_map(|tokens| tokens.concat())
}

proptest! {
    #[test]
    fn typed_values_survive_a_round_trip(value in everything()) {
        let bytes = jelly::to_vec(&value).unwrap();
        prop_assert_eq!(&jelly::from_slice::<Everything>(&bytes).unwrap(), &value);
        // The untyped form has the same bytes.
        prop_assert_eq!(Value::decode(&bytes).unwrap().encode(), bytes);
    }

    #[test]
    fn integers_of_any_size_survive_a_round_trip(digits in "-?[1-9][0-9]{0,130}") {
        let value: BigInt = digits.parse().unwrap();
        let bytes = jelly::to_vec(&value).unwrap();
        prop_assert_eq!(jelly::from_slice::<BigInt>(&bytes).unwrap().to_string(), digits);
    }

    #[test]
    fn any_bytes_are_read_or_refused_without_a_panic(bytes in nearly()) {
        let value = Value::decode(&bytes);
        let _ = jelly::from_slice::<Everything>(&bytes);
        let _ = jelly::from_slice::<Vec<Value>>(&bytes);
        let _ = jelly::from_slice::<BTreeMap<String, Value>>(&bytes);
        if let Ok(value) = value {
            // An accepted value is written and read back as the same value.
            let again = value.encode();
            prop_assert_eq!(Value::decode(&again).unwrap().encode(), again);
            let _ = value.to_string();
        }
    }

    #[test]
    fn it_does_not_matter_how_bytes_arrive(bytes in nearly(), cuts in prop::collection::vec(any::<prop::sample::Index>(), 0..6)) {
        let mut whole = Scanner::new(Shape::Message, Limits::default());
        let all = whole.scan(&bytes).map(|found| found.map(|found| (found.end, found.count, found.defect.cloned(), found.references.to_vec())));
        let mut slow = Scanner::new(Shape::Message, Limits::default());
        let mut ends: Vec<usize> = cuts.iter().map(|cut| cut.index(bytes.len() + 1)).collect();
        ends.sort_unstable();
        ends.push(bytes.len());
        let mut last = Ok(None);
        for end in ends {
            last = slow.scan(&bytes[..end]).map(|found| found.map(|found| (found.end, found.count, found.defect.cloned(), found.references.to_vec())));
            if !matches!(last, Ok(None)) {
                break;
            }
        }
        prop_assert_eq!(last, all);
    }
}
