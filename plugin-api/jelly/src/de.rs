//! Decoding of bytes directly into serde types.
//!
//! One file, although it is long: most of it are the methods of serde's five traits, which share the reader's position.

use serde::de::{
    self, Deserialize, DeserializeSeed, EnumAccess, IntoDeserializer, MapAccess, SeqAccess, VariantAccess, Visitor,
};

use crate::error::{Error, Result};
use crate::scan::{Classes, Defect, Limits, Scanner, Shape, expansion};
use crate::token::{self, Integer, Token};
use crate::types::name;
use crate::value::Parts;

/// Reads one whole value within the default [`Limits`].
///
/// # Errors
/// Returns an error if the bytes are not valid Jelly, exceed the limits, are followed by others, or do not fit the type.
pub fn from_slice<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T> {
    from_slice_with(bytes, Classes::Any)
}

/// [`from_slice`], where untyped values may contain instances of `classes` only.
///
/// # Errors
/// As [`from_slice`]. Returns an error if an untyped value contains an instance of another class.
pub fn from_slice_with<'de, T: Deserialize<'de>>(bytes: &'de [u8], classes: Classes) -> Result<T> {
    let mut scanner = Scanner::new(Shape::Value, Limits::default());
    let scanned = scanner.scan(bytes)?.ok_or(Error::Incomplete)?;
    if let Some(defect) = scanned.defect {
        return Err(defect.clone().into());
    }
    if scanned.end != bytes.len() {
        return Err(Error::Trailing(bytes.len() - scanned.end));
    }
    T::deserialize(&mut Deserializer::new(bytes).with_classes(classes))
}

/// Reads one value from bytes that a [`Scanner`] has accepted. On other bytes it may fail late or recurse deeper than the limits
/// allow; it is never unsound.
///
/// # Errors
/// Returns an error if the bytes do not fit the type.
pub fn from_scanned<'de, T: Deserialize<'de>>(bytes: &'de [u8]) -> Result<T> {
    let mut deserializer = Deserializer::new(bytes);
    T::deserialize(&mut deserializer)
}

/// The deserializer behind [`from_slice`].
#[derive(Debug)]
pub struct Deserializer<'de> {
    bytes: &'de [u8],
    at: usize,
    /// Created at the first `(dereference n)`. It knows the position of each `(reference n …)`.
    index: Option<Scanner>,
    /// The references that are being followed. One that occurs again contains itself.
    following: Vec<u64>,
    /// Created at the first untyped value that refers to something outside itself.
    parts: Option<Parts>,
    /// How many bytes may still be read a second time, through references to them.
    again: u64,
    /// The classes whose instances untyped values may contain.
    classes: Classes,
}

/// A cached object with its state: its type, its number, its state.
struct WithState<'d, 'de> {
    this: &'d mut Deserializer<'de>,
    class: Option<&'de [u8]>,
    left: u32,
}

impl<'de> SeqAccess<'de> for WithState<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if let Some(class) = self.class.take() {
            let class = std::str::from_utf8(class).map_err(|_| Error::NotUtf8)?;
            return seed.deserialize(de::value::BorrowedStrDeserializer::new(class)).map(Some);
        }
        match self.left.checked_sub(1) {
            None => Ok(None),
            Some(left) => {
                self.left = left;
                seed.deserialize(&mut *self.this).map(Some)
            }
        }
    }
}

/// The beginning of a value: a whole atom, or a type whose elements follow.
#[derive(Debug)]
enum Head<'de> {
    Int(Integer<'de>),
    Float(f64),
    Bytes(&'de [u8]),
    None,
    Bool(bool),
    Text(&'de str),
    List(&'static str, u32),
    Dictionary(u32),
    Calendar(&'static str, &'de str),
    Decimal,
    Handle(&'static str, u64),
    /// An unknown type. Its state follows.
    Instance(&'de [u8], u32),
    /// `(dereference n)`: the number, and the position after it.
    Shared(u64, usize),
}

impl Head<'_> {
    fn describe(&self) -> String {
        match self {
            Self::Int(value) => format!("the integer {value}"),
            Self::Float(value) => format!("the float {value}"),
            Self::Bytes(bytes) => match std::str::from_utf8(bytes) {
                Ok(text) => format!("the byte string {:?}", short(text)),
                Err(_) => format!("a byte string of {} bytes", bytes.len()),
            },
            Self::None => "None".to_owned(),
            Self::Bool(value) => format!("the boolean {value}"),
            Self::Text(text) => format!("the text {:?}", short(text)),
            Self::List(tag, length) => format!("a {tag} of {length}"),
            Self::Dictionary(length) => format!("a dictionary of {length}"),
            Self::Calendar(tag, _) => format!("a {tag}"),
            Self::Decimal => "a decimal".to_owned(),
            Self::Handle(tag, _) => match *tag {
                name::REMOTE => "a reference",
                name::LOCAL => "a reference to an own object",
                _ => "a cached object",
            }
            .to_owned(),
            Self::Instance(tag, _) => format!("an instance of {}", short(&String::from_utf8_lossy(tag))),
            Self::Shared(..) => "a shared value".to_owned(),
        }
    }
}

fn short(text: &str) -> String {
    if text.chars().count() <= 40 { text.to_owned() } else { text.chars().take(40).chain(['…']).collect() }
}

impl<'de> Deserializer<'de> {
    /// Creates a deserializer at the start of `bytes`, which a [`Scanner`] has accepted.
    #[must_use]
    pub fn new(bytes: &'de [u8]) -> Self {
        let again = expansion(bytes.len());
        Self { bytes, at: 0, index: None, following: Vec::new(), parts: None, again, classes: Classes::Any }
    }

    /// Where the next value starts: see [`Deserializer::go_to`].
    #[must_use]
    pub fn place(&self) -> usize {
        self.at
    }

    /// Continues at a value's start, which [`Deserializer::place`] has returned.
    pub fn go_to(&mut self, place: usize) {
        self.at = place;
    }

    /// Restricts untyped values to instances of these classes.
    #[must_use]
    pub fn with_classes(self, classes: Classes) -> Self {
        Self { classes, ..self }
    }

    /// The number of bytes that have been read.
    #[must_use]
    pub fn position(&self) -> usize {
        self.at
    }

    /// Reads the header of a `(tuple …)` or `(list …)`, and returns the number of its elements. The elements are then read one by
    /// one. This is for a call's arguments.
    ///
    /// # Errors
    /// Returns an error if it is another value.
    pub fn sequence(&mut self) -> Result<usize> {
        match self.head()? {
            Head::List(_, length) => Ok(length as usize),
            other => Err(unexpected("a tuple", &other)),
        }
    }

    /// Reads the header of a `(dictionary …)`, and returns the number of its pairs. Each pair is then read with
    /// [`Deserializer::key`] and one value. This is for a call's keywords.
    ///
    /// # Errors
    /// Returns an error if it is another value.
    pub fn dictionary(&mut self) -> Result<usize> {
        match self.head()? {
            Head::Dictionary(length) => Ok(length as usize),
            other => Err(unexpected("a dictionary", &other)),
        }
    }

    /// Reads the next pair's key as text, from either era.
    ///
    /// # Errors
    /// Returns an error if the key is not text.
    pub fn key(&mut self) -> Result<&'de str> {
        self.pair()?;
        match self.head()? {
            Head::Text(text) => Ok(text),
            Head::Bytes(bytes) => std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8),
            other => Err(unexpected("a text", &other)),
        }
    }

    /// The bytes that have not been read.
    #[must_use]
    pub fn rest(&self) -> &'de [u8] {
        self.bytes.get(self.at..).unwrap_or_default()
    }

    /// Skips the next value, whatever it is.
    ///
    /// # Errors
    /// Returns an error if the bytes end inside the value.
    pub fn skip(&mut self) -> Result<()> {
        let mut pending = 1u64;
        while pending > 0 {
            pending -= 1;
            if let Token::List(length) = self.token()? {
                pending += u64::from(length);
            }
        }
        Ok(())
    }

    fn token(&mut self) -> Result<Token<'de>> {
        let rest = self.bytes.get(self.at..).unwrap_or_default();
        let (token, used) = token::read(rest, u32::MAX)?.ok_or(Error::Incomplete)?;
        self.at += used;
        Ok(token)
    }

    fn pair(&mut self) -> Result<()> {
        match self.token()? {
            Token::List(2) => Ok(()),
            other => Err(Error::Unexpected { expected: "a pair", found: other.kind().to_owned() }),
        }
    }

    fn raw(&mut self) -> Result<&'de [u8]> {
        match self.token()? {
            Token::Bytes(bytes) => Ok(bytes),
            other => Err(Error::Unexpected { expected: "a byte string", found: other.kind().to_owned() }),
        }
    }

    fn raw_text(&mut self) -> Result<&'de str> {
        std::str::from_utf8(self.raw()?).map_err(|_| Error::NotUtf8)
    }

    fn number(&mut self) -> Result<u64> {
        match self.token()? {
            Token::Int(value) => value.to_u64().ok_or_else(|| Error::IntegerRange(value.to_string())),
            other => Err(Error::Unexpected { expected: "a number", found: other.kind().to_owned() }),
        }
    }

    fn head(&mut self) -> Result<Head<'de>> {
        loop {
            let length = match self.token()? {
                Token::Int(value) => return Ok(Head::Int(value)),
                Token::Float(value) => return Ok(Head::Float(value)),
                Token::Bytes(bytes) => return Ok(Head::Bytes(bytes)),
                Token::List(length) => length,
            };
            let tag = self.raw()?;
            let rest = length.saturating_sub(1);
            return Ok(match tag {
                b"unicode" => Head::Text(self.raw_text()?),
                b"list" => Head::List("list", rest),
                b"tuple" => Head::List("tuple", rest),
                b"dictionary" => Head::Dictionary(rest),
                b"None" => Head::None,
                b"boolean" => Head::Bool(self.raw()? == b"true"),
                b"set" => Head::List("set", rest),
                b"frozenset" => Head::List("frozenset", rest),
                b"datetime" => Head::Calendar(name::DATETIME, self.raw_text()?),
                b"date" => Head::Calendar(name::DATE, self.raw_text()?),
                b"time" => Head::Calendar(name::TIME, self.raw_text()?),
                b"timedelta" => Head::Calendar(name::TIMEDELTA, self.raw_text()?),
                b"decimal" => Head::Decimal,
                b"remote" => Head::Handle(name::REMOTE, self.number()?),
                b"local" => Head::Handle(name::LOCAL, self.number()?),
                b"cached" => Head::Handle(name::CACHED, self.number()?),
                b"reference" => {
                    self.number()?;
                    continue;
                }
                b"dereference" => {
                    let id = self.number()?;
                    Head::Shared(id, self.at)
                }
                other => Head::Instance(other, rest),
            });
        }
    }

    /// The position of the value in `(reference id …)`.
    fn definition(&mut self, id: u64) -> Result<usize> {
        if self.index.is_none() {
            let mut scanner = Scanner::new(Shape::Value, Limits::NONE);
            scanner.scan(self.bytes)?.ok_or(Error::Incomplete)?;
            self.index = Some(scanner);
        }
        self.index.as_ref().and_then(|index| index.shared_at(id)).ok_or(Error::Dangling(id))
    }

    /// Runs `read` on the value that `(dereference id)` refers to, then continues after the dereference.
    fn follow<T>(&mut self, id: u64, back: usize, read: impl FnOnce(&mut Self) -> Result<T>) -> Result<T> {
        if self.following.contains(&id) {
            return Err(Error::Cycle);
        }
        let definition = self.definition(id)?;
        if definition > back {
            // The scanner refuses a use before the definition. Bytes that were not scanned must not differ.
            return Err(Error::Dangling(id));
        }
        self.at = definition;
        self.following.push(id);
        let result = read(self);
        self.following.pop();
        let again = self.at.saturating_sub(definition);
        self.at = back;
        self.charge(again)?;
        result
    }

    /// Charges bytes that are read again. The scanner counted only values that were complete when they were referred to. Here all
    /// are counted, including those that contain the reference to them.
    fn charge(&mut self, bytes: usize) -> Result<()> {
        let left = self.again.checked_sub(bytes as u64);
        self.again = left.ok_or_else(|| Defect::TooLarge(expansion(self.bytes.len())))?;
        Ok(())
    }

    /// Reads a head, follows it if it is shared, and passes it to `read`.
    fn with_head<T>(&mut self, read: impl FnOnce(&mut Self, Head<'de>) -> Result<T>) -> Result<T> {
        match self.head()? {
            Head::Shared(id, back) => self.follow(id, back, |this| this.with_head_again(read)),
            head => read(self, head),
        }
    }

    fn with_head_again<T>(&mut self, read: impl FnOnce(&mut Self, Head<'de>) -> Result<T>) -> Result<T> {
        match self.head()? {
            // `(reference 1 (dereference 2))`: Twisted never writes this.
            Head::Shared(..) => Err(Error::Cycle),
            head => read(self, head),
        }
    }

    fn list<V: Visitor<'de>>(&mut self, length: u32, visitor: V) -> Result<V::Value> {
        let mut elements = Elements { de: self, left: length };
        let value = visitor.visit_seq(&mut elements)?;
        for _ in 0..elements.left {
            self.skip()?;
        }
        Ok(value)
    }

    fn pairs<V: Visitor<'de>>(&mut self, length: u32, visitor: V) -> Result<V::Value> {
        let mut elements = Elements { de: self, left: length };
        let value = visitor.visit_map(&mut elements)?;
        for _ in 0..elements.left {
            self.skip()?;
        }
        Ok(value)
    }

    fn any<V: Visitor<'de>>(&mut self, head: Head<'de>, visitor: V) -> Result<V::Value> {
        match head {
            Head::Int(value) => integer(value, visitor),
            Head::Float(value) => visitor.visit_f64(value),
            Head::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            Head::None => visitor.visit_unit(),
            Head::Bool(value) => visitor.visit_bool(value),
            Head::Text(text) | Head::Calendar(_, text) => visitor.visit_borrowed_str(text),
            Head::List(_, length) => self.list(length, visitor),
            Head::Decimal => self.list(2, visitor),
            Head::Dictionary(length) => self.pairs(length, visitor),
            // A Copyable that may be of one of several types, which are distinguished by its fields.
            Head::Instance(_, 1) => de::Deserializer::deserialize_map(self, visitor),
            Head::Handle(..) | Head::Instance(..) | Head::Shared(..) => Err(unexpected("a plain value", &head)),
        }
    }

    /// The bytes of one value, made self-contained: they include what the value shares with its surroundings.
    fn alone(&mut self) -> Result<Vec<u8>> {
        let start = self.at;
        self.skip()?;
        let slice = &self.bytes[start..self.at];
        let mut scanner = Scanner::new(Shape::Value, Limits::NONE).with_classes(self.classes);
        match scanner.scan(slice)?.ok_or(Error::Incomplete)?.defect {
            None => return Ok(slice.to_vec()),
            // It refers to something outside itself. Read the whole, and extract the value from that.
            Some(Defect::Dangling(_)) => {}
            Some(defect) => return Err(defect.clone().into()),
        }
        if self.parts.is_none() {
            self.parts = Some(Parts::of(self.bytes)?);
        }
        let parts = self.parts.as_mut().ok_or(Error::Incomplete)?;
        let value = parts.encode(start)?;
        self.charge(value.len())?;
        let mut scanner = Scanner::new(Shape::Value, Limits::NONE).with_classes(self.classes);
        match scanner.scan(&value)?.ok_or(Error::Incomplete)?.defect {
            None => Ok(value),
            Some(defect) => Err(defect.clone().into()),
        }
    }
}

fn integer<'de, V: Visitor<'de>>(value: Integer<'_>, visitor: V) -> Result<V::Value> {
    if let Some(small) = value.to_i64() {
        return visitor.visit_i64(small);
    }
    if let Some(small) = value.to_u64() {
        return visitor.visit_u64(small);
    }
    if let Some(wide) = value.to_i128() {
        return visitor.visit_i128(wide);
    }
    match value.magnitude() {
        Some(wide) if !value.negative => visitor.visit_u128(wide),
        _ => Err(Error::IntegerRange(value.to_string())),
    }
}

fn unexpected(expected: &'static str, found: &Head<'_>) -> Error {
    Error::Unexpected { expected, found: found.describe() }
}

macro_rules! ints {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
            self.with_head(|_, head| match head {
                Head::Int(value) => integer(value, visitor),
                other => Err(unexpected("an integer", &other)),
            })
        }
    )*};
}

impl<'de> de::Deserializer<'de> for &mut Deserializer<'de> {
    type Error = Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|this, head| this.any(head, visitor))
    }

    ints!(deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128);
    ints!(deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128);

    fn deserialize_bool<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|_, head| match head {
            Head::Bool(value) => visitor.visit_bool(value),
            other => Err(unexpected("a boolean", &other)),
        })
    }

    fn deserialize_f32<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_f64(visitor)
    }

    fn deserialize_f64<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|_, head| match head {
            Head::Float(value) => visitor.visit_f64(value),
            Head::Int(value) => integer(value, visitor),
            other => Err(unexpected("a number", &other)),
        })
    }

    fn deserialize_char<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_str<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|_, head| match head {
            Head::Text(text) => visitor.visit_borrowed_str(text),
            Head::Bytes(bytes) => visitor.visit_borrowed_str(std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8)?),
            other => Err(unexpected("a text", &other)),
        })
    }

    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_bytes<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|_, head| match head {
            Head::Bytes(bytes) => visitor.visit_borrowed_bytes(bytes),
            other => Err(unexpected("bytes", &other)),
        })
    }

    fn deserialize_byte_buf<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_bytes(visitor)
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        let start = self.at;
        if let Ok(Head::None) = self.head() {
            return visitor.visit_none();
        }
        self.at = start;
        visitor.visit_some(self)
    }

    fn deserialize_unit<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|_, head| match head {
            Head::None => visitor.visit_unit(),
            other => Err(unexpected("None", &other)),
        })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(self, _name: &'static str, visitor: V) -> Result<V::Value> {
        self.deserialize_unit(visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, name: &'static str, visitor: V) -> Result<V::Value> {
        match name {
            name::INT => self.with_head(|_, head| match head {
                Head::Int(value) => match value.to_i64() {
                    Some(small) => visitor.visit_i64(small),
                    None => {
                        let mut bytes = vec![u8::from(value.negative)];
                        bytes.extend_from_slice(value.digits);
                        visitor.visit_bytes(&bytes)
                    }
                },
                other => Err(unexpected("an integer", &other)),
            }),
            name::DATETIME | name::DATE | name::TIME | name::TIMEDELTA => self.with_head(|_, head| match head {
                Head::Calendar(tag, text) if tag == name => visitor.visit_borrowed_str(text),
                other => Err(unexpected(name.trim_start_matches("$jelly::"), &other)),
            }),
            name::DECIMAL => self.with_head(|this, head| match head {
                Head::Decimal => this.list(2, visitor),
                other => Err(unexpected("a decimal", &other)),
            }),
            name::REMOTE | name::LOCAL | name::CACHED => self.with_head(|_, head| match head {
                Head::Handle(tag, number) if tag == name => visitor.visit_u64(number),
                other => Err(unexpected("a reference", &other)),
            }),
            name::CACHE => self.with_head(|this, head| match head {
                Head::Handle(tag, number) if tag == name::CACHED => visitor.visit_u64(number),
                Head::Instance(class, 2) => visitor.visit_seq(WithState { this, class: Some(class), left: 2 }),
                other => Err(unexpected("a cached object", &other)),
            }),
            name::VALUE => visitor.visit_byte_buf(self.alone()?),
            _ => visitor.visit_newtype_struct(self),
        }
    }

    fn deserialize_seq<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|this, head| match head {
            Head::List(_, length) => this.list(length, visitor),
            // A `Vec<u8>` from bytes.
            Head::Bytes(bytes) => visitor.visit_seq(de::value::SeqDeserializer::new(bytes.iter().copied())),
            other => Err(unexpected("a list", &other)),
        })
    }

    fn deserialize_tuple<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        self.with_head(|this, head| match head {
            Head::List(tag, found) if found as usize != length => {
                Err(Error::Custom(format!("expected {length} elements, found a {tag} of {found}")))
            }
            Head::List(_, found) => this.list(found, visitor),
            other => Err(unexpected("a tuple", &other)),
        })
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        length: usize,
        visitor: V,
    ) -> Result<V::Value> {
        self.deserialize_tuple(length, visitor)
    }

    fn deserialize_map<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.with_head(|this, head| match head {
            Head::Dictionary(length) => this.pairs(length, visitor),
            other => Err(unexpected("a dictionary", &other)),
        })
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        if !name.contains('.') {
            return self.deserialize_map(visitor);
        }
        self.with_head(|this, head| match head {
            Head::Instance(tag, 1) if tag == name.as_bytes() => de::Deserializer::deserialize_map(this, visitor),
            // A cached object reads as its state.
            Head::Instance(tag, 2) if tag == name.as_bytes() => {
                this.number()?;
                de::Deserializer::deserialize_map(this, visitor)
            }
            other => Err(Error::Unexpected { expected: name, found: other.describe() }),
        })
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value> {
        self.with_head(|this, head| match head {
            Head::Text(text) => visitor.visit_enum(text.into_deserializer()),
            Head::Bytes(bytes) => {
                let text = std::str::from_utf8(bytes).map_err(|_| Error::NotUtf8)?;
                visitor.visit_enum(text.into_deserializer())
            }
            Head::Dictionary(1) => {
                this.pair()?;
                visitor.visit_enum(Variant { de: this, class: None })
            }
            // A Copyable: each of the classes is a variant.
            Head::Instance(class, 1) => {
                let class = std::str::from_utf8(class).map_err(|_| Error::NotUtf8)?;
                visitor.visit_enum(Variant { de: this, class: Some(class) })
            }
            other => Err(unexpected("a variant", &other)),
        })
    }

    fn deserialize_identifier<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.deserialize_str(visitor)
    }

    fn deserialize_ignored_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value> {
        self.skip()?;
        visitor.visit_unit()
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

struct Elements<'a, 'de> {
    de: &'a mut Deserializer<'de>,
    left: u32,
}

impl<'de> SeqAccess<'de> for &mut Elements<'_, 'de> {
    type Error = Error;

    fn next_element_seed<T: DeserializeSeed<'de>>(&mut self, seed: T) -> Result<Option<T::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        seed.deserialize(&mut *self.de).map(Some)
    }

    fn size_hint(&self) -> Option<usize> {
        // serde limits what it allocates for a hint.
        Some(self.left as usize)
    }
}

impl<'de> MapAccess<'de> for &mut Elements<'_, 'de> {
    type Error = Error;

    fn next_key_seed<K: DeserializeSeed<'de>>(&mut self, seed: K) -> Result<Option<K::Value>> {
        if self.left == 0 {
            return Ok(None);
        }
        self.left -= 1;
        self.de.pair()?;
        seed.deserialize(&mut *self.de).map(Some)
    }

    fn next_value_seed<V: DeserializeSeed<'de>>(&mut self, seed: V) -> Result<V::Value> {
        seed.deserialize(&mut *self.de)
    }

    fn size_hint(&self) -> Option<usize> {
        Some(self.left as usize)
    }
}

struct Variant<'a, 'de> {
    de: &'a mut Deserializer<'de>,
    /// The variant's name, if it has been read.
    class: Option<&'de str>,
}

impl<'de> EnumAccess<'de> for Variant<'_, 'de> {
    type Error = Error;
    type Variant = Self;

    fn variant_seed<V: DeserializeSeed<'de>>(self, seed: V) -> Result<(V::Value, Self)> {
        let value = match self.class {
            Some(class) => seed.deserialize(de::value::BorrowedStrDeserializer::<Error>::new(class))?,
            None => seed.deserialize(&mut *self.de)?,
        };
        Ok((value, self))
    }
}

impl<'de> VariantAccess<'de> for Variant<'_, 'de> {
    type Error = Error;

    fn unit_variant(self) -> Result<()> {
        <()>::deserialize(self.de)
    }

    fn newtype_variant_seed<T: DeserializeSeed<'de>>(self, seed: T) -> Result<T::Value> {
        seed.deserialize(self.de)
    }

    fn tuple_variant<V: Visitor<'de>>(self, length: usize, visitor: V) -> Result<V::Value> {
        de::Deserializer::deserialize_tuple(self.de, length, visitor)
    }

    fn struct_variant<V: Visitor<'de>>(self, _fields: &'static [&'static str], visitor: V) -> Result<V::Value> {
        de::Deserializer::deserialize_map(self.de, visitor)
    }
}
