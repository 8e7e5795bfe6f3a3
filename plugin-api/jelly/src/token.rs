//! Banana: tokens of `prefix* type [body]`.
//!
//! A prefix byte is below 0x80 and holds seven bits, least significant first; a type byte is 0x80 or more.
//! Source: `twisted.spread.banana`.

use crate::vocabulary;

/// The most digits that a prefix may have (`twisted.spread.banana`: 64), so that integers stay below 2^448.
pub const PREFIX_LIMIT: usize = 64;
/// The longest string, in bytes, and the longest list, in elements (`twisted.spread.banana.SIZE_LIMIT`).
pub const SIZE_LIMIT: u32 = 640 * 1024;

const LIST: u8 = 0x80;
const INT: u8 = 0x81;
const STRING: u8 = 0x82;
const NEG: u8 = 0x83;
const FLOAT: u8 = 0x84;
const LONGINT: u8 = 0x85;
const LONGNEG: u8 = 0x86;
const VOCAB: u8 = 0x87;

/// One token, borrowed from the bytes it was read from.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Token<'a> {
    /// A list of this many elements, which follow.
    List(u32),
    /// A byte string, spelled out or by its number in the vocabulary.
    Bytes(&'a [u8]),
    /// An integer, under any of the four integer types.
    Int(Integer<'a>),
    /// A float.
    Float(f64),
}

impl Token<'_> {
    /// The kind of token, for an error message.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::List(_) => "a list",
            Self::Bytes(_) => "a byte string",
            Self::Int(_) => "an integer",
            Self::Float(_) => "a float",
        }
    }
}

/// An integer as encoded: a sign, and base-128 digits, least significant first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Integer<'a> {
    /// Whether it is negative (a negative zero is zero).
    pub negative: bool,
    /// Its digits, each below 128, least significant first; trailing zeros are allowed.
    pub digits: &'a [u8],
}

impl Integer<'_> {
    /// Its magnitude, if it fits.
    #[must_use]
    pub fn magnitude(&self) -> Option<u128> {
        let mut value: u128 = 0;
        for (index, &digit) in self.digits.iter().enumerate() {
            if digit == 0 {
                continue;
            }
            let shift = 7 * u32::try_from(index).ok()?;
            if shift >= 128 || (u128::from(digit) << shift) >> shift != u128::from(digit) {
                return None;
            }
            value |= u128::from(digit) << shift;
        }
        Some(value)
    }

    /// As an `i64`, if it fits.
    #[must_use]
    pub fn to_i64(&self) -> Option<i64> {
        if self.digits.len() <= 9 {
            let mut value: i64 = 0;
            for &digit in self.digits.iter().rev() {
                value = value << 7 | i64::from(digit);
            }
            return Some(if self.negative { -value } else { value });
        }
        self.to_i128().and_then(|value| i64::try_from(value).ok())
    }

    /// As a `u64`, if it fits.
    #[must_use]
    pub fn to_u64(&self) -> Option<u64> {
        match self.magnitude()? {
            0 => Some(0),
            _ if self.negative => None,
            value => u64::try_from(value).ok(),
        }
    }

    /// As an `i128`, if it fits.
    #[must_use]
    pub fn to_i128(&self) -> Option<i128> {
        let magnitude = self.magnitude()?;
        if self.negative { 0i128.checked_sub_unsigned(magnitude) } else { i128::try_from(magnitude).ok() }
    }
}

impl std::fmt::Display for Integer<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}", crate::BigInt::from(*self))
    }
}

/// Bytes that are not a token. A connection that sends them is closed, as in Twisted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BananaError {
    /// More than 64 digits before a type.
    #[error("a token's prefix is longer than {PREFIX_LIMIT} bytes")]
    PrefixTooLong,
    /// A string longer than the limit.
    #[error("a string of more than {0} bytes")]
    StringTooLong(u32),
    /// A list longer than the limit.
    #[error("a list of more than {0} elements")]
    ListTooLong(u32),
    /// A type byte that Banana does not have.
    #[error("{0:#04x} is no type of token")]
    UnknownType(u8),
    /// A number that the vocabulary does not have.
    #[error("a vocabulary number outside 1 to 31")]
    UnknownWord,
    /// A whole expression longer than the limit.
    #[error("an expression of more than {0} bytes")]
    ExpressionTooLong(usize),
}

/// Reads the token at the start of `bytes`; `None` while it is incomplete. `size_limit` limits the length of strings and lists.
///
/// # Errors
/// Returns an error as soon as the bytes cannot become a token within the limits any more, even if they are incomplete.
pub fn read(bytes: &[u8], size_limit: u32) -> std::result::Result<Option<(Token<'_>, usize)>, BananaError> {
    let mut at = 0;
    let kind = loop {
        match bytes.get(at) {
            Some(&byte) if byte >= 0x80 => break byte,
            Some(_) if at == PREFIX_LIMIT => return Err(BananaError::PrefixTooLong),
            Some(_) => at += 1,
            None => return Ok(None),
        }
    };
    let digits = &bytes[..at];
    let body = at + 1;
    let token = match kind {
        LIST => Token::List(size(digits, size_limit).ok_or(BananaError::ListTooLong(size_limit))?),
        STRING => {
            let length = size(digits, size_limit).ok_or(BananaError::StringTooLong(size_limit))? as usize;
            match bytes.get(body..body + length) {
                Some(string) => return Ok(Some((Token::Bytes(string), body + length))),
                None => return Ok(None),
            }
        }
        INT | LONGINT => Token::Int(Integer { negative: false, digits }),
        NEG | LONGNEG => Token::Int(Integer { negative: true, digits }),
        FLOAT => match bytes.get(body..body + 8) {
            Some(raw) => {
                let mut eight = [0; 8];
                eight.copy_from_slice(raw);
                return Ok(Some((Token::Float(f64::from_be_bytes(eight)), body + 8)));
            }
            None => return Ok(None),
        },
        VOCAB => {
            let id = size(digits, 31).ok_or(BananaError::UnknownWord)?;
            let word = u8::try_from(id).ok().and_then(vocabulary::word).ok_or(BananaError::UnknownWord)?;
            Token::Bytes(word)
        }
        other => return Err(BananaError::UnknownType(other)),
    };
    Ok(Some((token, body)))
}

/// The length of the string at the start of `bytes` in bytes, header included, if its header is complete. This tells a reader in
/// advance how much is still to come.
#[must_use]
pub fn announced(bytes: &[u8]) -> Option<usize> {
    let at = bytes.iter().take(PREFIX_LIMIT + 1).position(|&byte| byte >= 0x80)?;
    (bytes[at] == STRING).then(|| at + 1 + size(&bytes[..at], u32::MAX).unwrap_or(u32::MAX) as usize)
}

fn size(digits: &[u8], limit: u32) -> Option<u32> {
    let mut value: u64 = 0;
    for (index, &digit) in digits.iter().enumerate() {
        if digit == 0 {
            continue;
        }
        if index >= 5 {
            return None;
        }
        value |= u64::from(digit) << (7 * index);
    }
    u32::try_from(value).ok().filter(|&value| value <= limit)
}

fn digits(out: &mut Vec<u8>, mut value: u64) {
    loop {
        out.push((value & 0x7f) as u8);
        value >>= 7;
        if value == 0 {
            return;
        }
    }
}

/// Writes the header of a list of `length` elements.
pub fn list(out: &mut Vec<u8>, length: usize) {
    digits(out, length as u64);
    out.push(LIST);
}

/// Writes a byte string. A word of the vocabulary is written as its number.
pub fn bytes(out: &mut Vec<u8>, string: &[u8]) {
    match vocabulary::id(string) {
        Some(id) => out.extend_from_slice(&[id, VOCAB]),
        None => spelled(out, string),
    }
}

/// Writes a byte string spelled out, even if it is in the vocabulary (for dialect "none", and for the negotiation itself).
pub fn spelled(out: &mut Vec<u8>, string: &[u8]) {
    digits(out, string.len() as u64);
    out.push(STRING);
    out.extend_from_slice(string);
}

/// Writes an integer as today's Twisted does: 32 bits as INT or NEG, beyond that as LONGINT or LONGNEG.
pub fn int(out: &mut Vec<u8>, value: i64) {
    magnitude(out, value < 0, u128::from(value.unsigned_abs()));
}

/// Writes an unsigned integer, as [`int`] does.
pub fn uint(out: &mut Vec<u8>, value: u64) {
    magnitude(out, false, u128::from(value));
}

/// Writes an integer given by sign and magnitude, as [`int`] does.
pub fn magnitude(out: &mut Vec<u8>, negative: bool, value: u128) {
    let short = value < 1 << 31 || (negative && value == 1 << 31);
    match u64::try_from(value) {
        Ok(small) => digits(out, small),
        Err(_) => {
            let mut rest = value;
            while rest != 0 {
                out.push((rest & 0x7f) as u8);
                rest >>= 7;
            }
        }
    }
    out.push(match (short, negative && value != 0) {
        (true, false) => INT,
        (true, true) => NEG,
        (false, false) => LONGINT,
        (false, true) => LONGNEG,
    });
}

/// Writes an integer of any size up to 64 digits, given as [`Integer`], in its shortest form.
pub fn integer(out: &mut Vec<u8>, value: Integer<'_>) {
    if let Some(small) = value.magnitude() {
        return magnitude(out, value.negative, small);
    }
    let used = value.digits.iter().rposition(|&digit| digit != 0).map_or(0, |last| last + 1);
    out.extend_from_slice(&value.digits[..used]);
    out.push(if value.negative { LONGNEG } else { LONGINT });
}

/// Writes a float.
pub fn float(out: &mut Vec<u8>, value: f64) {
    out.push(FLOAT);
    out.extend_from_slice(&value.to_be_bytes());
}

/// Appends `expression`, which may use the vocabulary, in the dialect "none", which has no vocabulary.
///
/// # Errors
/// Returns an error if `expression` contains something that is not a token. An incomplete token at the end is left out.
pub fn transcode_to_none(out: &mut Vec<u8>, mut expression: &[u8]) -> std::result::Result<(), BananaError> {
    while let Some((token, used)) = read(expression, u32::MAX)? {
        match token {
            Token::Bytes(string) => spelled(out, string),
            _ => out.extend_from_slice(&expression[..used]),
        }
        expression = &expression[used..];
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn one(bytes: &[u8]) -> Token<'_> {
        read(bytes, SIZE_LIMIT).unwrap().unwrap().0
    }

    #[test]
    fn zero_may_have_no_digit_and_digits_may_trail() {
        for bytes in [&[0x81][..], &[0, 0x81], &[0, 0, 0x83], &[0x83]] {
            let Token::Int(value) = one(bytes) else { panic!("{bytes:?}") };
            assert_eq!(value.to_i64(), Some(0));
        }
        let Token::Int(five) = one(&[5, 0, 0, 0x81]) else { panic!() };
        assert_eq!(five.to_u64(), Some(5));
    }

    #[test]
    fn integers_are_written_as_twisted_26_writes_them() {
        let cases: [(i128, &[u8]); 8] = [
            (0, &[0, 0x81]),
            (-7, &[7, 0x83]),
            (2_147_483_647, &[0x7f, 0x7f, 0x7f, 0x7f, 7, 0x81]),
            (2_147_483_648, &[0, 0, 0, 0, 8, 0x85]),
            (-2_147_483_648, &[0, 0, 0, 0, 8, 0x83]),
            (-2_147_483_649, &[1, 0, 0, 0, 8, 0x86]),
            (1 << 40, &[0, 0, 0, 0, 0, 0x20, 0x85]),
            (-(1 << 40), &[0, 0, 0, 0, 0, 0x20, 0x86]),
        ];
        for (value, bytes) in cases {
            let mut out = Vec::new();
            magnitude(&mut out, value < 0, value.unsigned_abs());
            assert_eq!(out, bytes, "{value}");
            let Token::Int(back) = one(&out) else { panic!() };
            assert_eq!(back.to_i128(), Some(value));
        }
    }

    #[test]
    fn limits_are_checked_at_the_header() {
        let mut header = Vec::new();
        digits(&mut header, u64::from(SIZE_LIMIT) + 1);
        let list_header = [header.clone(), vec![LIST]].concat();
        let string_header = [header, vec![STRING]].concat();
        assert_eq!(read(&list_header, SIZE_LIMIT), Err(BananaError::ListTooLong(SIZE_LIMIT)));
        assert_eq!(read(&string_header, SIZE_LIMIT), Err(BananaError::StringTooLong(SIZE_LIMIT)));
        assert_eq!(read(&[0; 64], SIZE_LIMIT), Ok(None));
        assert_eq!(read(&[0; 65], SIZE_LIMIT), Err(BananaError::PrefixTooLong));
        assert!(read(&[[0x7f; 64].as_slice(), &[LONGINT]].concat(), SIZE_LIMIT).unwrap().is_some());
        assert_eq!(read(&[0x88], SIZE_LIMIT), Err(BananaError::UnknownType(0x88)));
        assert_eq!(read(&[0, VOCAB], SIZE_LIMIT), Err(BananaError::UnknownWord));
        assert_eq!(read(&[32, VOCAB], SIZE_LIMIT), Err(BananaError::UnknownWord));
    }

    #[test]
    fn an_incomplete_token_is_not_malformed() {
        assert_eq!(read(&[], SIZE_LIMIT), Ok(None));
        assert_eq!(read(&[3, STRING, b'a', b'b'], SIZE_LIMIT), Ok(None));
        assert_eq!(read(&[FLOAT, 0, 0], SIZE_LIMIT), Ok(None));
        assert_eq!(announced(&[3, STRING, b'a']), Some(5));
        assert_eq!(announced(&[3]), None);
    }

    #[test]
    fn words_of_users_are_written_as_numbers_too() {
        let mut out = Vec::new();
        bytes(&mut out, b"list");
        bytes(&mut out, b"lists");
        assert_eq!(out, [8, VOCAB, 5, STRING, b'l', b'i', b's', b't', b's']);
        let mut none = Vec::new();
        transcode_to_none(&mut none, &out).unwrap();
        assert_eq!(none, [4, STRING, b'l', b'i', b's', b't', 5, STRING, b'l', b'i', b's', b't', b's']);
    }
}
