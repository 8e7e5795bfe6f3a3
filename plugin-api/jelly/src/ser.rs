//! Encoding of serde types directly into bytes.

use serde::ser::{self, Serialize};

use crate::error::{Error, Result};
use crate::scan::{Classes, RefKind, Scanner, Shape};
use crate::token;
use crate::types::name;
use crate::{Limits, Value};

/// Writes `value` as Jelly.
///
/// # Errors
/// Returns an error if the type's own `Serialize` fails, or an integer is 2^448 or more.
pub fn to_vec<T: Serialize + ?Sized>(value: &T) -> Result<Vec<u8>> {
    let mut out = Vec::new();
    write(&mut out, value)?;
    Ok(out)
}

/// Appends `value` to `out` as Jelly. After an error, `out` is unchanged.
///
/// # Errors
/// As [`to_vec`].
pub fn write<T: Serialize + ?Sized>(out: &mut Vec<u8>, value: &T) -> Result<()> {
    write_with(out, value, Classes::Any, &mut Vec::new())
}

/// [`write()`], where untyped values in `value` may contain instances of `classes` only. Appends every reference written to
/// `references`, in order. After an error, `references` contains those that were written before it.
///
/// # Errors
/// As [`to_vec`]. Returns an error if an untyped value contains an instance of another class, or something that no peer would
/// read.
pub fn write_with<T: Serialize + ?Sized>(
    out: &mut Vec<u8>,
    value: &T,
    classes: Classes,
    references: &mut Vec<(RefKind, u64)>,
) -> Result<()> {
    let before = out.len();
    let output = Output { bytes: std::mem::take(out), shared: 0, classes, references: std::mem::take(references) };
    let mut lent = Lent { output, out, references };
    let written = value.serialize(&mut Serializer { out: &mut lent.output, special: Special::None });
    drop(lent);
    if written.is_err() {
        out.truncate(before);
    }
    written
}

/// The caller's buffers while they are written into. They are returned even if a `Serialize` panics, with what it wrote before.
struct Lent<'b> {
    output: Output,
    out: &'b mut Vec<u8>,
    references: &'b mut Vec<(RefKind, u64)>,
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        *self.out = std::mem::take(&mut self.output.bytes);
        *self.references = std::mem::take(&mut self.output.references);
    }
}

/// The output, and the number of `(reference n …)` in it so far. Two untyped values in one typed value must not use the same
/// numbers.
#[derive(Debug)]
struct Output {
    bytes: Vec<u8>,
    shared: u64,
    /// The classes whose instances untyped values may contain.
    classes: Classes,
    /// The references written so far.
    references: Vec<(RefKind, u64)>,
}

/// The form of the value inside a newtype that has one of [`name`]'s names.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Special {
    None,
    Bytes,
    Int,
    Set(&'static str),
    Text(&'static str),
    Decimal,
    Value,
    Reference(RefKind),
    /// A tuple whose first element is its tag.
    Cache,
    /// The number in such a tuple.
    CacheNumber,
}

/// The serializer behind [`to_vec`].
///
/// A struct becomes a dictionary with texts as keys. A struct whose serde name contains a dot
/// (`#[serde(rename = "module.Class")]`) becomes a Copyable of that type. Enums are externally tagged: a unit variant is a
/// text, any other a dictionary of one pair. A newtype or struct variant whose name contains a dot becomes a Copyable of that
/// type.
#[derive(Debug)]
pub struct Serializer<'o> {
    out: &'o mut Output,
    special: Special,
}

impl Output {
    /// Appends an untyped value that was encoded separately. What it shares gets numbers of its own.
    fn splice(&mut self, encoded: &[u8]) -> Result<()> {
        let mut scanner = Scanner::new(Shape::Value, Limits::NONE).with_classes(self.classes);
        if let Some(scanned) = scanner.scan(encoded)? {
            if let Some(defect) = scanned.defect {
                return Err(defect.clone().into());
            }
            let numbers = scanned.references.iter().filter_map(|found| Some((found.kind, found.luid?)));
            self.references.extend(numbers);
        }
        if scanner.shares() {
            Value::decode_scanned(encoded)?.write(&mut self.bytes, &mut self.shared);
        } else {
            self.bytes.extend_from_slice(encoded);
        }
        Ok(())
    }
}

impl Serializer<'_> {
    fn text(&mut self, text: &str) {
        token::list(&mut self.out.bytes, 2);
        token::bytes(&mut self.out.bytes, b"unicode");
        token::bytes(&mut self.out.bytes, text.as_bytes());
    }

    fn tagged(&mut self, tag: &str, length: usize) {
        token::list(&mut self.out.bytes, length + 1);
        token::bytes(&mut self.out.bytes, tag.as_bytes());
    }

    fn pair(&mut self, key: &str) {
        token::list(&mut self.out.bytes, 2);
        self.text(key);
    }

    fn begin(&mut self, tag: &'static str, length: Option<usize>) -> Compound<'_> {
        let start = self.out.bytes.len();
        self.tagged(tag, length.unwrap_or(0));
        Compound { out: self.out, tag, start, body: 0, announced: length, count: 0 }.at_body()
    }
}

/// A list or dictionary that is being written. serde may not know its length in advance, or may be wrong about it. The header is
/// then corrected at the end.
#[derive(Debug)]
pub struct Compound<'o> {
    out: &'o mut Output,
    tag: &'static str,
    start: usize,
    body: usize,
    announced: Option<usize>,
    count: usize,
}

impl Compound<'_> {
    fn at_body(mut self) -> Self {
        self.body = self.out.bytes.len();
        self
    }

    fn element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        // Only the tuple of a cached object has no tag. It holds the class, the number and the state.
        let special = if self.tag.is_empty() && self.count == 1 { Special::CacheNumber } else { Special::None };
        self.count += 1;
        value.serialize(&mut Serializer { out: self.out, special })
    }

    fn field<T: Serialize + ?Sized>(&mut self, key: &str, value: &T) -> Result<()> {
        self.count += 1;
        let mut serializer = Serializer { out: self.out, special: Special::None };
        serializer.pair(key);
        value.serialize(&mut serializer)
    }

    fn finish(self) {
        if self.announced != Some(self.count) {
            let mut header = Vec::with_capacity(16);
            token::list(&mut header, self.count + 1);
            token::bytes(&mut header, self.tag.as_bytes());
            self.out.bytes.splice(self.start..self.body, header);
        }
    }
}

macro_rules! ints {
    ($($method:ident: $int:ty),*) => {$(
        fn $method(self, value: $int) -> Result<()> {
            token::int(&mut self.out.bytes, i64::from(value));
            Ok(())
        }
    )*};
}

impl<'a> ser::Serializer for &'a mut Serializer<'_> {
    type Ok = ();
    type Error = Error;
    type SerializeSeq = Compound<'a>;
    type SerializeTuple = Compound<'a>;
    type SerializeTupleStruct = Compound<'a>;
    type SerializeTupleVariant = Compound<'a>;
    type SerializeMap = Compound<'a>;
    type SerializeStruct = Compound<'a>;
    type SerializeStructVariant = Compound<'a>;

    ints!(serialize_i8: i8, serialize_i16: i16, serialize_i32: i32, serialize_i64: i64);
    ints!(serialize_u8: u8, serialize_u16: u16, serialize_u32: u32);

    fn serialize_u64(self, value: u64) -> Result<()> {
        match self.special {
            Special::Reference(kind) => {
                self.tagged(kind.tag(), 1);
                token::uint(&mut self.out.bytes, value);
                self.out.references.push((kind, value));
            }
            Special::CacheNumber => {
                token::uint(&mut self.out.bytes, value);
                self.out.references.push((RefKind::Cache, value));
            }
            _ => token::uint(&mut self.out.bytes, value),
        }
        Ok(())
    }

    fn serialize_i128(self, value: i128) -> Result<()> {
        token::magnitude(&mut self.out.bytes, value < 0, value.unsigned_abs());
        Ok(())
    }

    fn serialize_u128(self, value: u128) -> Result<()> {
        token::magnitude(&mut self.out.bytes, false, value);
        Ok(())
    }

    fn serialize_bool(self, value: bool) -> Result<()> {
        self.tagged("boolean", 1);
        token::bytes(&mut self.out.bytes, if value { b"true" } else { b"false" });
        Ok(())
    }

    fn serialize_f32(self, value: f32) -> Result<()> {
        token::float(&mut self.out.bytes, f64::from(value));
        Ok(())
    }

    fn serialize_f64(self, value: f64) -> Result<()> {
        token::float(&mut self.out.bytes, value);
        Ok(())
    }

    fn serialize_char(self, value: char) -> Result<()> {
        self.text(value.encode_utf8(&mut [0; 4]));
        Ok(())
    }

    fn serialize_str(self, value: &str) -> Result<()> {
        match self.special {
            Special::Text(tag) => {
                self.tagged(tag, 1);
                token::bytes(&mut self.out.bytes, value.as_bytes());
            }
            _ => self.text(value),
        }
        Ok(())
    }

    fn serialize_bytes(self, value: &[u8]) -> Result<()> {
        match self.special {
            Special::Value => self.out.splice(value)?,
            Special::Int => {
                let (sign, digits) = value.split_first().unwrap_or((&0, &[]));
                token::integer(&mut self.out.bytes, token::Integer { negative: *sign != 0, digits });
            }
            _ => token::bytes(&mut self.out.bytes, value),
        }
        Ok(())
    }

    fn serialize_none(self) -> Result<()> {
        self.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<()> {
        value.serialize(self)
    }

    fn serialize_unit(self) -> Result<()> {
        self.tagged("None", 0);
        Ok(())
    }

    fn serialize_unit_struct(self, _name: &'static str) -> Result<()> {
        self.serialize_unit()
    }

    fn serialize_unit_variant(self, _name: &'static str, _index: u32, variant: &'static str) -> Result<()> {
        self.text(variant);
        Ok(())
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<()> {
        let special = match name {
            name::BYTES => Special::Bytes,
            name::INT => Special::Int,
            name::SET => Special::Set("set"),
            name::FROZENSET => Special::Set("frozenset"),
            name::DATETIME => Special::Text("datetime"),
            name::DATE => Special::Text("date"),
            name::TIME => Special::Text("time"),
            name::TIMEDELTA => Special::Text("timedelta"),
            name::DECIMAL => Special::Decimal,
            name::VALUE => Special::Value,
            name::REMOTE => Special::Reference(RefKind::Remote),
            name::LOCAL => Special::Reference(RefKind::Local),
            name::CACHED => Special::Reference(RefKind::Cached),
            name::CACHE => Special::Cache,
            _ => Special::None,
        };
        value.serialize(&mut Serializer { out: self.out, special })
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<()> {
        if variant.contains('.') {
            self.tagged(variant, 1);
            return value.serialize(self);
        }
        self.tagged("dictionary", 1);
        self.pair(variant);
        value.serialize(self)
    }

    fn serialize_seq(self, length: Option<usize>) -> Result<Compound<'a>> {
        let tag = if let Special::Set(tag) = self.special { tag } else { "list" };
        Ok(self.begin(tag, length))
    }

    fn serialize_tuple(self, length: usize) -> Result<Compound<'a>> {
        if self.special == Special::Cache {
            token::list(&mut self.out.bytes, length);
            return Ok(Compound { out: self.out, tag: "", start: 0, body: 0, announced: Some(length), count: 0 });
        }
        let tag = if self.special == Special::Decimal { "decimal" } else { "tuple" };
        Ok(self.begin(tag, Some(length)))
    }

    fn serialize_tuple_struct(self, _name: &'static str, length: usize) -> Result<Compound<'a>> {
        Ok(self.begin("tuple", Some(length)))
    }

    fn serialize_tuple_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Compound<'a>> {
        self.tagged("dictionary", 1);
        self.pair(variant);
        Ok(self.begin("tuple", Some(length)))
    }

    fn serialize_map(self, length: Option<usize>) -> Result<Compound<'a>> {
        Ok(self.begin("dictionary", length))
    }

    fn serialize_struct(self, name: &'static str, length: usize) -> Result<Compound<'a>> {
        if name.contains('.') {
            self.tagged(name, 1);
        }
        Ok(self.begin("dictionary", Some(length)))
    }

    fn serialize_struct_variant(
        self,
        _name: &'static str,
        _index: u32,
        variant: &'static str,
        length: usize,
    ) -> Result<Compound<'a>> {
        if variant.contains('.') {
            self.tagged(variant, 1);
        } else {
            self.tagged("dictionary", 1);
            self.pair(variant);
        }
        Ok(self.begin("dictionary", Some(length)))
    }

    fn is_human_readable(&self) -> bool {
        false
    }
}

impl ser::SerializeSeq for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTuple for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_element<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleStruct for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeTupleVariant for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        self.element(value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeMap for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<()> {
        token::list(&mut self.out.bytes, 2);
        self.element(key)
    }
    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<()> {
        value.serialize(&mut Serializer { out: self.out, special: Special::None })
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStruct for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        self.field(key, value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}

impl ser::SerializeStructVariant for Compound<'_> {
    type Ok = ();
    type Error = Error;
    fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<()> {
        self.field(key, value)
    }
    fn end(self) -> Result<()> {
        self.finish();
        Ok(())
    }
}
