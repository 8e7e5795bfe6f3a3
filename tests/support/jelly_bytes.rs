//! Jelly values as bytes, including values that no well-behaved client writes.

use jelly::token;

/// Encodes a list whose first item is its kind: `["dictionary", ..]`.
pub fn list(tag: &str, items: impl IntoIterator<Item = Vec<u8>>) -> Vec<u8> {
    let items: Vec<Vec<u8>> = items.into_iter().collect();
    let mut out = Vec::new();
    token::list(&mut out, items.len() + 1);
    token::bytes(&mut out, tag.as_bytes());
    items.iter().for_each(|item| out.extend_from_slice(item));
    out
}

#[must_use]
pub fn int(value: u64) -> Vec<u8> {
    let mut out = Vec::new();
    token::uint(&mut out, value);
    out
}

/// Encodes a string of characters.
#[must_use]
pub fn text(value: &str) -> Vec<u8> {
    let mut bytes = Vec::new();
    token::bytes(&mut bytes, value.as_bytes());
    list("unicode", [bytes])
}

/// Encodes an item of a dictionary.
#[must_use]
pub fn pair(key: Vec<u8>, value: Vec<u8>) -> Vec<u8> {
    let mut out = Vec::new();
    token::list(&mut out, 2);
    out.extend(key);
    out.extend(value);
    out
}
