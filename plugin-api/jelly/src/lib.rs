//! Jelly in Banana: the one value encoding of credhost.
//!
//! *Banana* is a framing of tokens (integers, floats, byte strings, lists). *Jelly* is a grammar over such lists, which defines
//! texts, dictionaries, dates and references. Together they are the wire format of Twisted's Perspective Broker, unchanged since
//! 2002. The sources are `twisted.spread.banana` and `twisted.spread.jelly`.
//!
//! This crate is bytes in, bytes out. It does no IO, reads no clock and draws no randomness.
//!
//! * [`to_vec`] and [`from_slice`] convert directly between bytes and serde types, without an intermediate tree.
//! * [`Value`] holds untyped values. It is an arena: it keeps sharing and cycles, and drops a deep value without recursion.
//! * [`Scanner`] is the single pass that everything from a wire goes through first. It finds the end of an expression, checks
//!   Jelly's grammar, charges the [`Limits`], and locates the true references.
//! * [`exceptions`] lists Python's builtin exceptions and their bases.
//! * [`token`] is Banana itself.
//! * [`types`] defines the types that Rust lacks: [`Bytes`], [`Set`], dates, big integers.
//!
//! The crate knows no connections and no messages (crate `pb` does), and it never creates objects from bytes.

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
