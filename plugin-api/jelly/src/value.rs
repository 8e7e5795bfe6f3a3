//! An untyped value, held as an arena: nodes refer to each other by index.
//!
//! This keeps sharing and cycles as received, and lets a value nested a hundred thousand deep be dropped without recursion.

mod build;
mod show;

use serde::de::{self, Deserialize, Deserializer, Visitor};
use serde::ser::{Serialize, Serializer};

use self::build::Builder;
pub(crate) use self::build::Parts;
use crate::error::{Error, Result};
use crate::scan::{Limits, RefKind, Scanner, Shape};
use crate::token;
use crate::types::{BigInt, Date, DateTime, Decimal, Raw, Time, TimeDelta, name};

/// Any value that Jelly can carry.
///
/// Two values are equal if their encodings are equal: sharing counts, and so does the order in dictionaries.
#[derive(Clone)]
pub struct Value {
    nodes: Vec<Stored>,
    root: u32,
}

#[derive(Clone)]
enum Stored {
    None,
    Bool(bool),
    Int(i64),
    Big(BigInt),
    Float(f64),
    Bytes(Vec<u8>),
    Text(String),
    /// list, tuple, set, frozenset, and types that PB refuses (class, module …).
    Items(&'static str, Vec<u32>),
    Dictionary(Vec<(u32, u32)>),
    DateTime(DateTime),
    Date(Date),
    Time(Time),
    TimeDelta(TimeDelta),
    Decimal(Decimal),
    Reference(RefKind, Option<u64>),
    Instance {
        tag: String,
        luid: Option<u64>,
        state: u32,
    },
}

/// A view of one node of a [`Value`].
#[derive(Clone, Copy)]
pub struct ValueRef<'a> {
    value: &'a Value,
    index: u32,
}

/// The kind and content of a node.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the Python type of that name")]
pub enum Node<'a> {
    None,
    Bool(bool),
    Int(i64),
    /// An integer beyond 64 bits.
    BigInt(&'a BigInt),
    Float(f64),
    Bytes(&'a [u8]),
    Text(&'a str),
    List,
    Tuple,
    Set,
    FrozenSet,
    Dictionary,
    DateTime(DateTime),
    Date(Date),
    Time(Time),
    TimeDelta(TimeDelta),
    Decimal(&'a Decimal),
    /// A reference, with its number if it has one.
    Reference(RefKind, Option<u64>),
    /// An instance of this class. [`ValueRef::items`] returns its state.
    Instance(&'a str),
    /// A type that PB does not allow (`class`, `module`, `function`, `method`, `instance`, `persistent`) or could not
    /// send (`unpersistable`).
    Refused(&'a str),
}

impl Value {
    /// Reads one whole value within the default limits.
    ///
    /// # Errors
    /// Returns an error if the bytes are not valid Jelly, exceed the limits, or are followed by others.
    pub fn decode(bytes: &[u8]) -> Result<Self> {
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        let scanned = scanner.scan(bytes)?.ok_or(Error::Incomplete)?;
        if let Some(defect) = scanned.defect {
            return Err(defect.clone().into());
        }
        if scanned.end != bytes.len() {
            return Err(Error::Trailing(bytes.len() - scanned.end));
        }
        Self::decode_scanned(bytes)
    }

    /// Reads one value from bytes that a scanner has accepted.
    pub(crate) fn decode_scanned(bytes: &[u8]) -> Result<Self> {
        Builder::default().read(bytes)
    }

    /// Encodes the value. What is used more than once is written once, as `(reference n …)`. The numbers are those that Twisted
    /// would assign.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        self.write(&mut out, &mut 0);
        out
    }

    /// Converts a typed value to an untyped one.
    ///
    /// # Errors
    /// As [`crate::to_vec`] and [`Value::decode`].
    pub fn from_typed<T: Serialize + ?Sized>(typed: &T) -> Result<Self> {
        Self::decode(&crate::to_vec(typed)?)
    }

    /// Converts the value to a typed one.
    ///
    /// # Errors
    /// Returns an error if the value does not fit the type, or contains itself.
    pub fn to_typed<T: de::DeserializeOwned>(&self) -> Result<T> {
        crate::from_slice(&self.encode())
    }

    /// The outermost node.
    #[must_use]
    pub fn root(&self) -> ValueRef<'_> {
        ValueRef { value: self, index: self.root }
    }

    /// Python's None.
    #[must_use]
    pub fn none() -> Self {
        Self::leaf(Stored::None)
    }

    /// A list of values.
    pub fn list(items: impl IntoIterator<Item = Self>) -> Self {
        Self::items("list", items)
    }

    /// A tuple of values.
    pub fn tuple(items: impl IntoIterator<Item = Self>) -> Self {
        Self::items("tuple", items)
    }

    /// A set of values. Duplicates are not detected.
    pub fn set(items: impl IntoIterator<Item = Self>) -> Self {
        Self::items("set", items)
    }

    /// A dictionary of pairs, in this order. Duplicate keys are not detected.
    pub fn dictionary(pairs: impl IntoIterator<Item = (Self, Self)>) -> Self {
        let mut all = Self { nodes: Vec::new(), root: 0 };
        let pairs = pairs.into_iter().map(|(key, value)| (all.absorb(key), all.absorb(value))).collect();
        all.root = all.push(Stored::Dictionary(pairs));
        all
    }

    fn items(tag: &'static str, items: impl IntoIterator<Item = Self>) -> Self {
        let mut all = Self { nodes: Vec::new(), root: 0 };
        let items = items.into_iter().map(|item| all.absorb(item)).collect();
        all.root = all.push(Stored::Items(tag, items));
        all
    }

    fn leaf(node: Stored) -> Self {
        Self { nodes: vec![node], root: 0 }
    }

    fn push(&mut self, node: Stored) -> u32 {
        self.nodes.push(node);
        index(self.nodes.len() - 1)
    }

    fn absorb(&mut self, other: Self) -> u32 {
        let base = index(self.nodes.len());
        self.nodes.extend(other.nodes.into_iter().map(|mut node| {
            match &mut node {
                Stored::Items(_, items) => items.iter_mut().for_each(|item| *item += base),
                Stored::Dictionary(pairs) => pairs.iter_mut().for_each(|(key, value)| {
                    *key += base;
                    *value += base;
                }),
                Stored::Instance { state, .. } => *state += base,
                _ => {}
            }
            node
        }));
        other.root + base
    }

    /// Assigns numbers to the nodes that are visited more than once from `root`, in the order of their second visit, as Twisted
    /// does. `next` is the highest number in use.
    fn number_shared(&self, root: u32, next: &mut u64, marks: &mut Marks) {
        let mut stack = vec![root];
        while let Some(at) = stack.pop() {
            let node = &self.nodes[at as usize];
            if !node.is_shared() {
                continue;
            }
            let mark = &mut marks.0[at as usize];
            match mark {
                Mark::Unmet => {
                    *mark = Mark::Once;
                    marks.1.push(at);
                }
                Mark::Once => {
                    *next += 1;
                    *mark = Mark::Shared(*next);
                    continue;
                }
                Mark::Shared(_) | Mark::Written(_) => continue,
            }
            match node {
                Stored::Items(_, items) => stack.extend(items.iter().rev()),
                Stored::Dictionary(pairs) => stack.extend(pairs.iter().rev().flat_map(|(key, value)| [value, key])),
                Stored::Instance { state, .. } => stack.push(*state),
                _ => {}
            }
        }
    }

    /// Appends the value to an expression that already uses the numbers up to `next` for shared values.
    pub(crate) fn write(&self, out: &mut Vec<u8>, next: &mut u64) {
        self.write_part(self.root, out, next, &mut Marks::of(self));
    }

    /// Appends the value at the node `root`. The cost is proportional to what is written, because `marks` is reset afterwards.
    fn write_part(&self, root: u32, out: &mut Vec<u8>, next: &mut u64, marks: &mut Marks) {
        enum Step {
            Node(u32),
            Pair,
        }
        self.number_shared(root, next, marks);
        let mut stack = vec![Step::Node(root)];
        while let Some(step) = stack.pop() {
            let Step::Node(at) = step else {
                token::list(out, 2);
                continue;
            };
            match marks.0[at as usize] {
                Mark::Unmet | Mark::Once => {}
                Mark::Shared(number) => {
                    marks.0[at as usize] = Mark::Written(number);
                    tagged(out, "reference", 2);
                    token::uint(out, number);
                }
                Mark::Written(number) => {
                    tagged(out, "dereference", 1);
                    token::uint(out, number);
                    continue;
                }
            }
            match &self.nodes[at as usize] {
                Stored::Items(tag, items) => {
                    tagged(out, tag, items.len());
                    stack.extend(items.iter().rev().map(|item| Step::Node(*item)));
                }
                Stored::Dictionary(pairs) => {
                    tagged(out, "dictionary", pairs.len());
                    for (key, value) in pairs.iter().rev() {
                        stack.extend([Step::Node(*value), Step::Node(*key), Step::Pair]);
                    }
                }
                Stored::Instance { tag, luid, state } => {
                    tagged(out, tag, 1 + usize::from(luid.is_some()));
                    if let Some(luid) = luid {
                        token::uint(out, *luid);
                    }
                    stack.push(Step::Node(*state));
                }
                leaf => leaf.write(out),
            }
        }
        marks.clear();
    }
}

/// The state of a node while the value is written.
#[derive(Debug, Clone, Copy)]
enum Mark {
    Unmet,
    Once,
    /// Visited more than once, and not written yet. This is its number.
    Shared(u64),
    Written(u64),
}

/// A mark for each node of an arena, and the list of those that are set, so that they can be cleared without visiting the others.
#[derive(Debug)]
struct Marks(Vec<Mark>, Vec<u32>);

impl Marks {
    fn of(value: &Value) -> Self {
        Self(vec![Mark::Unmet; value.nodes.len()], Vec::new())
    }

    fn clear(&mut self) {
        for at in self.1.drain(..) {
            self.0[at as usize] = Mark::Unmet;
        }
    }
}

impl Stored {
    /// Whether it is written once, however often it is used. Twisted shares what has parts. A long text is used again only if the
    /// sender has said so, and would be longer than what has come if each use were a copy.
    fn is_shared(&self) -> bool {
        const LONG: usize = 32;
        match self {
            Self::Items(..) | Self::Dictionary(_) | Self::Instance { .. } => true,
            Self::Bytes(bytes) => bytes.len() > LONG,
            Self::Text(text) => text.len() > LONG,
            Self::Big(_) => true,
            Self::Decimal(_) => true,
            _ => false,
        }
    }

    fn write(&self, out: &mut Vec<u8>) {
        let text = |out: &mut Vec<u8>, tag: &str, text: &str| {
            tagged(out, tag, 1);
            token::bytes(out, text.as_bytes());
        };
        match self {
            Self::None => tagged(out, "None", 0),
            Self::Bool(value) => text(out, "boolean", if *value { "true" } else { "false" }),
            Self::Int(value) => token::int(out, *value),
            Self::Big(value) => big(out, value),
            Self::Float(value) => token::float(out, *value),
            Self::Bytes(value) => token::bytes(out, value),
            Self::Text(value) => text(out, "unicode", value),
            Self::DateTime(value) => text(out, "datetime", &value.to_string()),
            Self::Date(value) => text(out, "date", &value.to_string()),
            Self::Time(value) => text(out, "time", &value.to_string()),
            Self::TimeDelta(value) => text(out, "timedelta", &value.to_string()),
            Self::Decimal(value) => {
                tagged(out, "decimal", 2);
                big(out, &value.digits);
                token::int(out, value.exponent);
            }
            Self::Reference(kind, luid) => {
                tagged(out, kind.tag(), 1);
                match luid {
                    Some(luid) => token::uint(out, *luid),
                    None => token::bytes(out, b"root"),
                }
            }
            Self::Items(..) | Self::Dictionary(_) | Self::Instance { .. } => {}
        }
    }
}

fn big(out: &mut Vec<u8>, value: &BigInt) {
    // A value read from the wire fits it. A value made in Rust is checked where it is made.
    let (negative, digits) = value.digits().unwrap_or_default();
    token::integer(out, token::Integer { negative, digits: &digits });
}

fn tagged(out: &mut Vec<u8>, tag: &str, length: usize) {
    token::list(out, length + 1);
    token::bytes(out, tag.as_bytes());
}

fn index(at: usize) -> u32 {
    // An expression has fewer tokens than bytes, and its length is limited far below this.
    u32::try_from(at).unwrap_or(u32::MAX)
}

impl<'a> ValueRef<'a> {
    /// The kind and content of the node.
    #[must_use]
    pub fn node(&self) -> Node<'a> {
        match &self.value.nodes[self.index as usize] {
            Stored::None => Node::None,
            Stored::Bool(value) => Node::Bool(*value),
            Stored::Int(value) => Node::Int(*value),
            Stored::Big(value) => Node::BigInt(value),
            Stored::Float(value) => Node::Float(*value),
            Stored::Bytes(value) => Node::Bytes(value),
            Stored::Text(value) => Node::Text(value),
            Stored::Items("list", _) => Node::List,
            Stored::Items("tuple", _) => Node::Tuple,
            Stored::Items("set", _) => Node::Set,
            Stored::Items("frozenset", _) => Node::FrozenSet,
            Stored::Items(tag, _) => Node::Refused(tag),
            Stored::Dictionary(_) => Node::Dictionary,
            Stored::DateTime(value) => Node::DateTime(*value),
            Stored::Date(value) => Node::Date(*value),
            Stored::Time(value) => Node::Time(*value),
            Stored::TimeDelta(value) => Node::TimeDelta(*value),
            Stored::Decimal(value) => Node::Decimal(value),
            Stored::Reference(kind, luid) => Node::Reference(*kind, *luid),
            Stored::Instance { tag, .. } => Node::Instance(tag),
        }
    }

    /// This part as a separate value, with everything that it shares.
    #[must_use]
    pub fn to_value(&self) -> Value {
        let mut bytes = Vec::new();
        self.value.write_part(self.index, &mut bytes, &mut 0, &mut Marks::of(self.value));
        // It was written from a value, so it is one.
        build::Builder::default().read(&bytes).unwrap_or_else(|_| Value::none())
    }

    /// The elements of a list, tuple or set; the state of an instance; empty for others.
    pub fn items(&self) -> impl ExactSizeIterator<Item = ValueRef<'a>> + use<'a> {
        let value = self.value;
        let items: &[u32] = match &value.nodes[self.index as usize] {
            Stored::Items(_, items) => items,
            Stored::Instance { state, .. } => std::slice::from_ref(state),
            _ => &[],
        };
        items.iter().map(move |&index| ValueRef { value, index })
    }

    /// The pairs of a dictionary; empty for others.
    pub fn pairs(&self) -> impl ExactSizeIterator<Item = (ValueRef<'a>, ValueRef<'a>)> + use<'a> {
        let value = self.value;
        let pairs: &[(u32, u32)] = match &value.nodes[self.index as usize] {
            Stored::Dictionary(pairs) => pairs,
            _ => &[],
        };
        pairs.iter().map(move |&(key, index)| (ValueRef { value, index: key }, ValueRef { value, index }))
    }

    /// The value under this key, if this is a dictionary that has the key. Texts and byte strings both match.
    #[must_use]
    pub fn get(&self, key: &str) -> Option<ValueRef<'a>> {
        self.pairs().find(|(found, _)| found.as_text() == Some(key)).map(|(_, value)| value)
    }

    /// The text, from either era: a text, or a byte string in UTF-8.
    #[must_use]
    pub fn as_text(&self) -> Option<&'a str> {
        match self.node() {
            Node::Text(text) => Some(text),
            Node::Bytes(bytes) => std::str::from_utf8(bytes).ok(),
            _ => None,
        }
    }

    /// The integer, if this is one that fits an `i64`.
    #[must_use]
    pub fn as_int(&self) -> Option<i64> {
        match self.node() {
            Node::Int(value) => Some(value),
            _ => None,
        }
    }

    /// Whether both are the same node, not only equal ones.
    #[must_use]
    pub fn is(&self, other: &ValueRef<'_>) -> bool {
        std::ptr::eq(self.value, other.value) && self.index == other.index
    }
}

impl std::fmt::Debug for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl std::fmt::Debug for ValueRef<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:?}", self.node())
    }
}

impl PartialEq for Value {
    fn eq(&self, other: &Self) -> bool {
        self.encode() == other.encode()
    }
}

impl Serialize for Value {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        serializer.serialize_newtype_struct(name::VALUE, &Raw(&self.encode()))
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        struct Of;
        impl Visitor<'_> for Of {
            type Value = Value;
            fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
                f.write_str("a value in Jelly")
            }
            fn visit_byte_buf<E: de::Error>(self, bytes: Vec<u8>) -> std::result::Result<Value, E> {
                Value::decode_scanned(&bytes).map_err(E::custom)
            }
        }
        deserializer.deserialize_newtype_struct(name::VALUE, Of)
    }
}

macro_rules! from {
    ($($type:ty, $value:ident => $stored:expr;)*) => {$(
        impl From<$type> for Value {
            fn from($value: $type) -> Self {
                Self::leaf($stored)
            }
        }
    )*};
}
from! {
    bool, value => Stored::Bool(value);
    i32, value => Stored::Int(value.into());
    i64, value => Stored::Int(value);
    u32, value => Stored::Int(value.into());
    f64, value => Stored::Float(value);
    &str, value => Stored::Text(value.to_owned());
    String, value => Stored::Text(value);
    crate::Bytes, value => Stored::Bytes(value.0);
    &[u8], value => Stored::Bytes(value.to_vec());
    DateTime, value => Stored::DateTime(value);
    Date, value => Stored::Date(value);
    Time, value => Stored::Time(value);
    TimeDelta, value => Stored::TimeDelta(value);
    Decimal, value => Stored::Decimal(value);
}

impl TryFrom<BigInt> for Value {
    type Error = Error;
    /// # Errors
    /// Returns an error from 2^448 on.
    fn try_from(value: BigInt) -> Result<Self> {
        if let Ok(small) = i64::try_from(&value) {
            return Ok(Self::leaf(Stored::Int(small)));
        }
        match value.digits() {
            Some(_) => Ok(Self::leaf(Stored::Big(value))),
            None => Err(Error::IntegerRange(value.to_string())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cycles_are_kept_and_written_as_they_came() {
        // (reference 1 (list 1 (dereference 1))), from the captures of Twisted 26.10.
        let bytes = [3, 0x80, 4, 0x87, 1, 0x81, 3, 0x80, 8, 0x87, 1, 0x81, 2, 0x80, 3, 0x87, 1, 0x81];
        let value = Value::decode(&bytes).unwrap();
        let inner = value.root().items().nth(1).unwrap();
        assert!(inner.is(&value.root()));
        assert_eq!(value.encode(), bytes);
        assert_eq!(value.to_string(), "[1, …]");
        assert_eq!(
            value.to_typed::<Vec<i64>>().unwrap_err(),
            Error::Unexpected { expected: "an integer", found: "a list of 2".to_owned() }
        );
        #[derive(Debug, serde::Deserialize)]
        #[serde(untagged)]
        #[expect(dead_code, reason = "only its shape matters")]
        enum Nested {
            Leaf(i64),
            List(Vec<Nested>),
        }
        assert_eq!(value.to_typed::<Vec<Nested>>().unwrap_err(), Error::Cycle);
    }

    #[test]
    fn a_list_that_contains_itself_first_is_not_empty() {
        let bytes = Value::decode(&[3, 0x80, 4, 0x87, 1, 0x81, 2, 0x80, 8, 0x87, 2, 0x80, 3, 0x87, 1, 0x81]).unwrap();
        assert_eq!(bytes.root().items().len(), 1);
        assert!(bytes.root().items().next().unwrap().is(&bytes.root()));
    }

    #[test]
    fn a_deep_value_is_dropped_without_recursion() {
        let mut value = Value::from(1);
        for _ in 0..2_000 {
            value = Value::list([value]);
        }
        assert_eq!(value.encode().len(), 2 + 2_000 * 4);
        drop(value);
    }

    #[test]
    fn two_untyped_values_in_one_typed_do_not_share_numbers() {
        let shared = Value::decode(&[
            3, 0x80, 11, 0x87, 3, 0x80, 4, 0x87, 1, 0x81, 2, 0x80, 8, 0x87, 1, 0x81, 2, 0x80, 3, 0x87, 1, 0x81,
        ])
        .unwrap();
        let both = crate::to_vec(&(&shared, &shared)).unwrap();
        let (one, two): (Value, Value) = crate::from_slice(&both).unwrap();
        assert_eq!(one, shared);
        assert_eq!(two, shared);
    }

    #[test]
    fn an_untyped_part_takes_along_what_it_shares_with_the_rest() {
        // (tuple (reference 1 (list 1)) (dereference 1)): the second element alone is the list.
        let bytes =
            [3, 0x80, 11, 0x87, 3, 0x80, 4, 0x87, 1, 0x81, 2, 0x80, 8, 0x87, 1, 0x81, 2, 0x80, 3, 0x87, 1, 0x81];
        let (one, two): (Vec<i64>, Value) = crate::from_slice(&bytes).unwrap();
        assert_eq!(one, [1]);
        assert_eq!(two, Value::list([Value::from(1)]));
        let typed: (Vec<i64>, Vec<i64>) = crate::from_slice(&bytes).unwrap();
        assert_eq!(typed, (vec![1], vec![1]));
    }
}
