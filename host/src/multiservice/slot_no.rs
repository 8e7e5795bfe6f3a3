//! The number of a slot.

/// A slot's number. No other slot of this process has had it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNo(pub u32);
