//! The 31 words that dialect "pb" sends as one number, in both directions. The list never changes.
//!
//! Source: `twisted.spread.banana.Banana` (its `outgoingVocabulary`). Every byte string equal to a word is sent as its number,
//! including user data. A receiver accepts the string, too.

/// The words; a word's number is its index plus one.
pub const WORDS: [&str; 31] = [
    "None",
    "class",
    "dereference",
    "reference",
    "dictionary",
    "function",
    "instance",
    "list",
    "module",
    "persistent",
    "tuple",
    "unpersistable",
    "copy",
    "cache",
    "cached",
    "remote",
    "local",
    "lcache",
    "version",
    "login",
    "password",
    "challenge",
    "logged_in",
    "not_logged_in",
    "cachemessage",
    "message",
    "answer",
    "error",
    "decref",
    "decache",
    "uncache",
];

/// The word with this number, if there is one.
#[must_use]
pub fn word(id: u8) -> Option<&'static [u8]> {
    WORDS.get(usize::from(id).checked_sub(1)?).map(|word| word.as_bytes())
}

/// The number of this word, if it is in the vocabulary.
#[must_use]
pub fn id(bytes: &[u8]) -> Option<u8> {
    let id = match bytes {
        b"None" => 1,
        b"class" => 2,
        b"dereference" => 3,
        b"reference" => 4,
        b"dictionary" => 5,
        b"function" => 6,
        b"instance" => 7,
        b"list" => 8,
        b"module" => 9,
        b"persistent" => 10,
        b"tuple" => 11,
        b"unpersistable" => 12,
        b"copy" => 13,
        b"cache" => 14,
        b"cached" => 15,
        b"remote" => 16,
        b"local" => 17,
        b"lcache" => 18,
        b"version" => 19,
        b"login" => 20,
        b"password" => 21,
        b"challenge" => 22,
        b"logged_in" => 23,
        b"not_logged_in" => 24,
        b"cachemessage" => 25,
        b"message" => 26,
        b"answer" => 27,
        b"error" => 28,
        b"decref" => 29,
        b"decache" => 30,
        b"uncache" => 31,
        _ => return None,
    };
    Some(id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_has_its_own_number_both_ways() {
        for (index, text) in WORDS.iter().enumerate() {
            let number = u8::try_from(index + 1).unwrap();
            assert_eq!(word(number), Some(text.as_bytes()));
            assert_eq!(id(text.as_bytes()), Some(number));
        }
        assert_eq!(word(0), None);
        assert_eq!(word(32), None);
        assert_eq!(id(b"unicode"), None);
    }
}
