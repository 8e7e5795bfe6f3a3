//! Values that Rust has no type for. Each is a small type that serde reads and writes.
//!
//! In formats other than Jelly (the JSON of a test, for example), they are strings, lists or integers.

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;

use serde::de::{self, Deserialize, Deserializer, SeqAccess, Visitor};
use serde::ser::{Serialize, SerializeTuple, Serializer};

use crate::token;

/// The names by which the types below identify themselves to Jelly's own serializer and deserializer.
pub(crate) mod name {
    pub(crate) const BYTES: &str = "$jelly::bytes";
    pub(crate) const INT: &str = "$jelly::int";
    pub(crate) const SET: &str = "$jelly::set";
    pub(crate) const FROZENSET: &str = "$jelly::frozenset";
    pub(crate) const DATETIME: &str = "$jelly::datetime";
    pub(crate) const DATE: &str = "$jelly::date";
    pub(crate) const TIME: &str = "$jelly::time";
    pub(crate) const TIMEDELTA: &str = "$jelly::timedelta";
    pub(crate) const DECIMAL: &str = "$jelly::decimal";
    pub(crate) const VALUE: &str = "$jelly::value";
    pub(crate) const REMOTE: &str = "$jelly::remote";
    pub(crate) const LOCAL: &str = "$jelly::local";
    pub(crate) const CACHED: &str = "$jelly::cached";
    pub(crate) const CACHE: &str = "$jelly::cache";
}

/// The names under which a reference passes through serde as its number, for the types of `plugin-api` and `pb`. A newtype of
/// such a name around a `u64` is written as `(remote n)`, `(local n)` or `(cached n)`.
pub mod reference {
    /// `(remote n)`: an object of the writer.
    pub const REMOTE: &str = super::name::REMOTE;
    /// `(local n)`: an object of the reader.
    pub const LOCAL: &str = super::name::LOCAL;
    /// `(cached n)`: a cached object of the writer.
    pub const CACHED: &str = super::name::CACHED;
    /// `("type" n state)`: a cached object of the writer, with its state. The newtype is around a tuple of the type's name as
    /// bytes ([`super::Name`]), the number, and the state. It is read as the same three, or as only the number of a `(cached n)`.
    pub const CACHE: &str = super::name::CACHE;
}

/// The name of a type, as written at the head of its values.
#[derive(Debug, Clone, Copy)]
pub struct Name<'a>(pub &'a str);

impl Serialize for Name<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(name::BYTES, &Raw(self.0.as_bytes()))
    }
}

/// Writes `&[u8]` as a byte string without copying it. It is the content of a newtype.
pub(crate) struct Raw<'a>(pub(crate) &'a [u8]);

impl Serialize for Raw<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

/// A byte string: Python 3's `bytes`, Python 2's `str`.
///
/// To serde, `Vec<u8>` is a list of small integers, and it is written as such. It can also be read from a byte string.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Bytes(pub Vec<u8>);

impl Serialize for Bytes {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(name::BYTES, &Raw(&self.0))
    }
}

impl<'de> Deserialize<'de> for Bytes {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Bytes;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("bytes")
            }
            fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Bytes, E> {
                Ok(Bytes(bytes.to_vec()))
            }
            fn visit_byte_buf<E>(self, bytes: Vec<u8>) -> Result<Bytes, E> {
                Ok(Bytes(bytes))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Bytes, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                Ok(Bytes(bytes))
            }
        }
        deserializer.deserialize_byte_buf(Of)
    }
}

impl<T: Into<Vec<u8>>> From<T> for Bytes {
    fn from(bytes: T) -> Self {
        Self(bytes.into())
    }
}

impl std::ops::Deref for Bytes {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        &self.0
    }
}

macro_rules! set {
    ($set:ident, $name:expr, $python:literal) => {
        #[doc = concat!("Python's `", $python, "`. Twisted of 2005 does not know it and breaks its connection on one.")]
        #[derive(Debug, Clone, Default, PartialEq, Eq)]
        pub struct $set<T>(pub BTreeSet<T>);

        impl<T: Serialize> Serialize for $set<T> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_newtype_struct($name, &self.0)
            }
        }

        impl<'de, T: Deserialize<'de> + Ord> Deserialize<'de> for $set<T> {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                BTreeSet::deserialize(deserializer).map(Self)
            }
        }

        impl<T: Ord> FromIterator<T> for $set<T> {
            fn from_iter<I: IntoIterator<Item = T>>(items: I) -> Self {
                Self(items.into_iter().collect())
            }
        }
    };
}

set!(Set, name::SET, "set");
set!(FrozenSet, name::FROZENSET, "frozenset");

/// An integer of any size that fits the wire: below 2^448 in magnitude.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct BigInt(num_bigint::BigInt);

impl BigInt {
    /// Sign and base-128 digits, least significant first, as on the wire. `None` from 2^448 on.
    pub(crate) fn digits(&self) -> Option<(bool, Vec<u8>)> {
        let (sign, digits) = self.0.to_radix_le(128);
        (digits.len() <= token::PREFIX_LIMIT).then_some((sign == num_bigint::Sign::Minus, digits))
    }

    pub(crate) fn from_digits(negative: bool, digits: &[u8]) -> Option<Self> {
        let sign = if negative { num_bigint::Sign::Minus } else { num_bigint::Sign::Plus };
        num_bigint::BigInt::from_radix_le(sign, digits, 128).map(Self)
    }
}

impl fmt::Display for BigInt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl FromStr for BigInt {
    type Err = &'static str;
    /// Reads decimal digits with an optional sign.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse().map(Self).map_err(|_| "not an integer")
    }
}

impl From<token::Integer<'_>> for BigInt {
    fn from(value: token::Integer<'_>) -> Self {
        // The digits of a token are all below 128, so this cannot fail.
        Self::from_digits(value.negative, value.digits).unwrap_or_default()
    }
}

macro_rules! from_int {
    ($($int:ty),*) => {$(
        impl From<$int> for BigInt {
            fn from(value: $int) -> Self {
                Self(value.into())
            }
        }
        impl TryFrom<&BigInt> for $int {
            type Error = &'static str;
            fn try_from(value: &BigInt) -> Result<Self, Self::Error> {
                (&value.0).try_into().map_err(|_| "the integer is too large")
            }
        }
    )*};
}
from_int!(i32, i64, u32, u64, i128, u128, usize);

impl From<num_bigint::BigInt> for BigInt {
    fn from(value: num_bigint::BigInt) -> Self {
        Self(value)
    }
}

impl From<BigInt> for num_bigint::BigInt {
    fn from(value: BigInt) -> Self {
        value.0
    }
}

impl Serialize for BigInt {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if let Ok(small) = i64::try_from(self) {
            return serializer.serialize_i64(small);
        }
        let (negative, mut digits) =
            self.digits().ok_or_else(|| serde::ser::Error::custom("an integer of 2^448 or more cannot be sent"))?;
        digits.insert(0, u8::from(negative));
        serializer.serialize_newtype_struct(name::INT, &Raw(&digits))
    }
}

impl<'de> Deserialize<'de> for BigInt {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = BigInt;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an integer")
            }
            fn visit_i64<E>(self, value: i64) -> Result<BigInt, E> {
                Ok(value.into())
            }
            fn visit_u64<E>(self, value: u64) -> Result<BigInt, E> {
                Ok(value.into())
            }
            fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<BigInt, E> {
                bytes
                    .split_first()
                    .and_then(|(sign, digits)| BigInt::from_digits(*sign != 0, digits))
                    .ok_or_else(|| E::custom("not an integer"))
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<BigInt, D::Error> {
                deserializer.deserialize_any(self)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<BigInt, A::Error> {
                let mut bytes = Vec::new();
                while let Some(byte) = seq.next_element()? {
                    bytes.push(byte);
                }
                self.visit_bytes(&bytes)
            }
        }
        deserializer.deserialize_newtype_struct(name::INT, Of)
    }
}

/// Python's `datetime.datetime`, without a time zone (Jelly has none).
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[expect(missing_docs, reason = "they are what they say")]
pub struct DateTime {
    pub date: Date,
    pub time: Time,
}

/// Python's `datetime.date`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Date {
    /// 1 to 9999.
    pub year: u16,
    /// 1 to 12.
    pub month: u8,
    /// 1 to 31, as the month allows.
    pub day: u8,
}

/// Python's `datetime.time`, without a time zone.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// 0 to 23.
    pub hour: u8,
    /// 0 to 59.
    pub minute: u8,
    /// 0 to 59.
    pub second: u8,
    /// 0 to 999,999.
    pub microsecond: u32,
}

/// Python's `datetime.timedelta`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TimeDelta {
    /// Negative for a span backwards; -999,999,999 to 999,999,999.
    pub days: i32,
    /// 0 to 86,399.
    pub seconds: u32,
    /// 0 to 999,999.
    pub microseconds: u32,
}

fn numbers<const N: usize>(text: &str) -> Result<[i64; N], &'static str> {
    let mut found = [0; N];
    let mut words = text.split(' ');
    for slot in &mut found {
        *slot = words.next().and_then(|word| word.parse().ok()).ok_or("not numbers with one space between")?;
    }
    if words.next().is_some() { Err("too many numbers") } else { Ok(found) }
}

fn within<T: TryFrom<i64>>(value: i64, range: std::ops::RangeInclusive<i64>) -> Result<T, &'static str> {
    if range.contains(&value) { T::try_from(value).map_err(|_| "out of range") } else { Err("out of range") }
}

fn date([year, month, day]: [i64; 3]) -> Result<Date, &'static str> {
    let leap = (year % 4 == 0 && year % 100 != 0) || year % 400 == 0;
    let last = match month {
        2 => 28 + i64::from(leap),
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    };
    Ok(Date { year: within(year, 1..=9999)?, month: within(month, 1..=12)?, day: within(day, 1..=last)? })
}

fn time([hour, minute, second, microsecond]: [i64; 4]) -> Result<Time, &'static str> {
    Ok(Time {
        hour: within(hour, 0..=23)?,
        minute: within(minute, 0..=59)?,
        second: within(second, 0..=59)?,
        microsecond: within(microsecond, 0..=999_999)?,
    })
}

impl FromStr for Date {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        date(numbers(text)?)
    }
}

impl FromStr for Time {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        time(numbers(text)?)
    }
}

impl FromStr for DateTime {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let [year, month, day, hour, minute, second, microsecond] = numbers(text)?;
        Ok(Self { date: date([year, month, day])?, time: time([hour, minute, second, microsecond])? })
    }
}

impl FromStr for TimeDelta {
    type Err = &'static str;
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let [days, seconds, microseconds] = numbers(text)?;
        Ok(Self {
            days: within(days, -999_999_999..=999_999_999)?,
            seconds: within(seconds, 0..=86_399)?,
            microseconds: within(microseconds, 0..=999_999)?,
        })
    }
}

impl fmt::Display for Date {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.year, self.month, self.day)
    }
}

impl fmt::Display for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {} {}", self.hour, self.minute, self.second, self.microsecond)
    }
}

impl fmt::Display for DateTime {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.date, self.time)
    }
}

impl fmt::Display for TimeDelta {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {} {}", self.days, self.seconds, self.microseconds)
    }
}

macro_rules! as_text {
    ($type:ty, $name:expr, $what:literal) => {
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.serialize_newtype_struct($name, &self.to_string())
            }
        }

        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Of;
                impl<'de> Visitor<'de> for Of {
                    type Value = $type;
                    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                        f.write_str($what)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(E::custom)
                    }
                    fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<$type, D::Error> {
                        deserializer.deserialize_str(self)
                    }
                }
                deserializer.deserialize_newtype_struct($name, Of)
            }
        }
    };
}

as_text!(DateTime, name::DATETIME, "a datetime");
as_text!(Date, name::DATE, "a date");
as_text!(Time, name::TIME, "a time");
as_text!(TimeDelta, name::TIMEDELTA, "a timedelta");

/// Python's `decimal.Decimal`: `digits * 10^exponent`. Twisted of 2005 does not know it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Decimal {
    /// All its digits, with the sign.
    pub digits: BigInt,
    /// The power of ten they are multiplied by.
    pub exponent: i64,
}

impl Serialize for Decimal {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        struct Pair<'a>(&'a Decimal);
        impl Serialize for Pair<'_> {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                let mut tuple = serializer.serialize_tuple(2)?;
                tuple.serialize_element(&self.0.digits)?;
                tuple.serialize_element(&self.0.exponent)?;
                tuple.end()
            }
        }
        serializer.serialize_newtype_struct(name::DECIMAL, &Pair(self))
    }
}

impl<'de> Deserialize<'de> for Decimal {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Of;
        impl<'de> Visitor<'de> for Of {
            type Value = Decimal;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a decimal")
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Decimal, A::Error> {
                let missing = || de::Error::custom("a decimal has digits and an exponent");
                let digits = seq.next_element()?.ok_or_else(missing)?;
                let exponent = seq.next_element()?.ok_or_else(missing)?;
                Ok(Decimal { digits, exponent })
            }
            fn visit_newtype_struct<D: Deserializer<'de>>(self, deserializer: D) -> Result<Decimal, D::Error> {
                deserializer.deserialize_tuple(2, self)
            }
        }
        deserializer.deserialize_newtype_struct(name::DECIMAL, Of)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dates_outside_the_calendar_are_refused() {
        for bad in ["2021 2 29", "2020 13 1", "0 1 1", "2020 1", "2020 1 1 1", "2020  1 1", "a b c", "10000 1 1"] {
            assert!(bad.parse::<Date>().is_err(), "{bad}");
        }
        assert_eq!("2020 2 29".parse::<Date>().unwrap().to_string(), "2020 2 29");
        assert!("24 0 0 0".parse::<Time>().is_err());
        assert_eq!("-1 86399 5".parse::<TimeDelta>().unwrap().days, -1);
    }

    #[test]
    fn the_largest_integer_is_just_below_two_to_the_448() {
        let largest: num_bigint::BigInt = (num_bigint::BigInt::from(1) << 448usize) - 1;
        assert!(BigInt(largest.clone()).digits().is_some());
        assert!(BigInt(largest + 1).digits().is_none());
    }
}
