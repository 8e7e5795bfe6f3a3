//! Jelly in Banana: the one value encoding of credhost.
//!
//! *Banana* is a framing of tokens (integers, floats, byte strings, lists); *Jelly* is a grammar over such lists that
//! says what is a text, a dictionary, a date, a reference. Together they are the wire format of Twisted's Perspective
//! Broker, unchanged since 2002. The sources are `twisted.spread.banana` and `twisted.spread.jelly`.
//!
//! This crate is bytes in, bytes out. It does no IO, reads no clock and draws no randomness.
//!
//! * [`to_vec`] and [`from_slice`] go straight between bytes and an author's serde types, with no tree between.
//! * [`Value`] is for what has no type: an arena, so that sharing and cycles are kept and a deep value is dropped flat.
//! * [`Scanner`] is the one pass that everything from a wire goes through first: it finds where an expression ends,
//!   follows Jelly's grammar, charges the [`Limits`], and says where the true references are.
//! * [`exceptions`] are Python's, by what they derive from.
//! * [`token`] is Banana itself.
//! * [`types`] are the values that Rust has no type for: [`Bytes`], [`Set`], dates, big integers.
//!
//! What it is not: it knows no connection and no message (crate `pb`), and it never makes an object of bytes.

mod de;
mod error;
pub mod exceptions;
mod scan;
mod ser;
pub mod token;
pub mod types;
mod value;
pub mod vocabulary;

pub use de::{Deserializer, from_scanned, from_slice, from_slice_with};
pub use error::{Error, Result};
pub use scan::{Classes, Defect, Limits, RefKind, Reference, Scanned, Scanner, Shape};
pub use ser::{Serializer, to_vec, write, write_with};
pub use types::{BigInt, Bytes, Date, DateTime, Decimal, FrozenSet, Set, Time, TimeDelta};
pub use value::{Node, Value, ValueRef};
