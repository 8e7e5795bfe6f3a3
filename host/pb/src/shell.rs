//! Values for shells: arguments as people type them, answers as JSON. The crate's feature `shell`.

use std::collections::BTreeMap;

use jelly::{Node, Value, ValueRef};

/// An argument that is not accepted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{what}")]
pub struct Wrong {
    /// The problem.
    pub what: String,
    /// The remedy; empty if none is known.
    pub hint: String,
}

/// Keyword arguments by name.
pub type Keywords = BTreeMap<String, serde_json::Value>;

/// Parses one argument. JSON is taken as such, everything else as a text.
///
/// # Errors
/// Returns an error for a number that would lose its last digits.
pub fn value(text: &str) -> Result<serde_json::Value, Wrong> {
    let Ok(value) = serde_json::from_str(text) else { return Ok(serde_json::Value::String(text.to_owned())) };
    // It would become a float and lose its last digits.
    match whole_numbers(text).find(|number| number.parse::<i64>().is_err() && number.parse::<u64>().is_err()) {
        None => Ok(value),
        Some(number) => Err(Wrong {
            what: format!("{number} does not fit into 64 bits"),
            hint: format!("numbers have 64 bits; write it as text: {}", quoted(number)),
        }),
    }
}

/// Quotes a text for a shell, so that it is taken as a text whatever it looks like.
#[must_use]
pub fn quoted(text: &str) -> String {
    format!("'{}'", serde_json::Value::from(text).to_string().replace('\'', r"'\''"))
}

/// Converts an argument to a Jelly value.
///
/// # Errors
/// Returns an error if Jelly cannot hold the argument.
pub fn typed(value: &serde_json::Value) -> Result<Value, Wrong> {
    Value::from_typed(value).map_err(|error| Wrong { what: error.to_string(), hint: String::new() })
}

/// The numbers in JSON that have neither a point nor an exponent.
fn whole_numbers(json: &str) -> impl Iterator<Item = &str> {
    let mut within = false;
    let mut before = ' ';
    let outside = json.split(move |c: char| {
        // A whole string separates the parts before and after it.
        let quote = c == '"' && !(within && before == '\\');
        // The second of two backslashes escapes nothing.
        before = if within && before == '\\' && c == '\\' { ' ' } else { c };
        let parts = within || quote;
        within ^= quote;
        parts || !(c.is_ascii_digit() || matches!(c, '-' | '+' | '.' | 'e' | 'E'))
    });
    outside.filter(|token| token.contains(|c: char| c.is_ascii_digit()) && !token.contains(['.', 'e', 'E']))
}

/// Splits NAME=ARGUMENT.
#[must_use]
pub fn keyword(text: &str) -> Option<(&str, &str)> {
    text.split_once('=').filter(|(name, _)| {
        let mut letters = name.chars();
        letters.next().is_some_and(|first| first.is_alphabetic() || first == '_')
            && letters.all(|letter| letter.is_alphanumeric() || letter == '_')
    })
}

/// Parses the arguments of a command line. JSON is taken as such, everything else as a text. NAME=ARGUMENT is a keyword argument.
///
/// # Errors
/// As [`value`]. Returns an error if a name is given twice.
///
/// ```
/// let texts = ["milk", "5", "done=true"].map(str::to_owned);
/// let (positional, keywords) = pb::shell::arguments(&texts)?;
/// assert_eq!(positional.to_string(), "(\"milk\", 5)");
/// assert_eq!(keywords["done"], true);
/// # Ok::<(), pb::shell::Wrong>(())
/// ```
pub fn arguments(texts: &[String]) -> Result<(Value, Keywords), Wrong> {
    let mut positional = Vec::new();
    let mut keywords = BTreeMap::new();
    for text in texts {
        match keyword(text) {
            Some((name, text)) => {
                if keywords.insert(name.to_owned(), value(text)?).is_some() {
                    return Err(Wrong {
                        what: format!("the argument {name} is given twice"),
                        hint: format!("an argument with an = is read as NAME=ARGUMENT; write text as {}", quoted(text)),
                    });
                }
            }
            None => positional.push(typed(&value(text)?)?),
        }
    }
    Ok((Value::tuple(positional), keywords))
}

/// Converts an answer to JSON without loss. What JSON cannot represent is an object with a key that begins with `$`.
///
/// | Python | JSON |
/// |---|---|
/// | `bytes` | `{"$bytes": "aGk="}`, in base64 |
/// | `tuple`, `set`, `frozenset` | `{"$tuple": [1, 2]}` and so on |
/// | an `int` beyond 64 bits; `nan`, `inf` | `{"$int": "12…"}`; `{"$float": "nan"}` |
/// | dates and times, `Decimal` | `{"$datetime": "2020 1 2 3 4 5 6"}`, as Jelly has them; `{"$decimal": "-125e-2"}` |
/// | a dictionary with keys that are not texts, or begin with `$` | `{"$dict": [[key, value]]}` |
/// | an instance | `{"$class": "shop.Card", "state": {…}}` |
/// | a reference | `{"$reference": 5}` |
/// | a value within itself | `{"$cycle": true}` |
///
/// Values within themselves can refer to each other in more ways than anybody could read: behind as many values as one message may have,
/// all that is left is `{"$cycle": true}`, too.
#[must_use]
pub fn json(value: ValueRef<'_>) -> serde_json::Value {
    let limits = jelly::Limits::default();
    let bytes = limits.expression.saturating_mul(4);
    Writing { open: Vec::new(), depth: limits.depth, left: limits.values - 1, bytes }.value(value)
}

/// An object with one key.
fn only(key: &str, value: impl Into<serde_json::Value>) -> serde_json::Value {
    serde_json::Value::Object(std::iter::once((key.to_owned(), value.into())).collect())
}

/// A value that is being written as JSON.
struct Writing<'v> {
    /// The values that the current one is within.
    open: Vec<ValueRef<'v>>,
    /// How many there may be.
    depth: usize,
    /// How many values may still be written, and bytes of texts.
    left: u64,
    bytes: usize,
}

impl<'v> Writing<'v> {
    fn value(&mut self, value: ValueRef<'v>) -> serde_json::Value {
        let within = self.open.iter().any(|open| open.is(&value));
        // All within it are charged before they are looked at.
        let count = (value.items().len() + 2 * value.pairs().len()) as u64;
        let bytes = match value.node() {
            Node::Text(text) => text.len(),
            Node::Bytes(bytes) => bytes.len(),
            Node::Instance(class) => class.len(),
            // Its names are written without being values.
            Node::Dictionary if count <= self.left => {
                value.pairs().map(|(key, _)| key.as_text().map_or(0, str::len)).fold(0, usize::saturating_add)
            }
            _ => 0,
        };
        let (Some(left), Some(bytes)) = (self.left.checked_sub(count), self.bytes.checked_sub(bytes)) else {
            return only("$cycle", true);
        };
        if within || self.open.len() >= self.depth {
            return only("$cycle", true);
        }
        (self.left, self.bytes) = (left, bytes);
        self.open.push(value);
        let written = self.node(value);
        self.open.pop();
        written
    }

    fn items(&mut self, value: ValueRef<'v>) -> serde_json::Value {
        value.items().map(|item| self.value(item)).collect()
    }

    fn node(&mut self, value: ValueRef<'v>) -> serde_json::Value {
        use serde_json::Value as Json;
        match value.node() {
            Node::None => Json::Null,
            Node::Bool(value) => value.into(),
            Node::Int(value) => value.into(),
            Node::Float(value) if value.is_finite() => value.into(),
            Node::Float(value) => only("$float", value.to_string().to_lowercase()),
            Node::Text(value) => value.into(),
            Node::Bytes(value) => only("$bytes", data_encoding::BASE64.encode(value)),
            Node::List => self.items(value),
            Node::Tuple => only("$tuple", self.items(value)),
            Node::Set => only("$set", self.items(value)),
            Node::FrozenSet => only("$frozenset", self.items(value)),
            Node::Dictionary => self.dictionary(value),
            Node::Instance(class) => {
                let state = value.items().next().map_or(Json::Null, |state| self.value(state));
                Json::Object([("$class".to_owned(), class.into()), ("state".to_owned(), state)].into_iter().collect())
            }
            Node::BigInt(value) => only("$int", value.to_string()),
            Node::DateTime(value) => only("$datetime", value.to_string()),
            Node::Date(value) => only("$date", value.to_string()),
            Node::Time(value) => only("$time", value.to_string()),
            Node::TimeDelta(value) => only("$timedelta", value.to_string()),
            Node::Decimal(value) => only("$decimal", format!("{}e{}", value.digits, value.exponent)),
            Node::Reference(_, luid) => only("$reference", luid),
            other => only("$other", format!("{other:?}")),
        }
    }

    fn dictionary(&mut self, value: ValueRef<'v>) -> serde_json::Value {
        use serde_json::Value as Json;
        let plain = |key: ValueRef<'_>| matches!(key.node(), Node::Text(text) if !text.starts_with('$'));
        if value.pairs().all(|(key, _)| plain(key)) {
            let pairs =
                value.pairs().map(|(key, value)| (key.as_text().unwrap_or_default().to_owned(), self.value(value)));
            return Json::Object(pairs.collect());
        }
        let pairs = value.pairs().map(|(key, value)| Json::Array(vec![self.value(key), self.value(value)]));
        only("$dict", pairs.collect::<Vec<_>>())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nested lists. Each contains references to itself and to all lists around it, and references to all of them follow at the
    /// end: there are too many paths through them to enumerate.
    fn tangled(lists: u64, long: &str, named: bool) -> Value {
        use jelly::token;
        fn one(out: &mut Vec<u8>, number: u64, lists: u64, (long, named): (&str, bool)) {
            token::list(out, 3);
            token::bytes(out, b"reference");
            token::int(out, number.cast_signed());
            token::list(out, usize::try_from(number).unwrap() + if number < lists { 3 } else { 2 });
            token::bytes(out, b"list");
            if named {
                // A dictionary with this one key.
                token::list(out, 2);
                token::bytes(out, b"dictionary");
                token::list(out, 2);
                token::list(out, 2);
                token::bytes(out, b"unicode");
                token::bytes(out, long.as_bytes());
                token::int(out, 1);
            } else {
                token::bytes(out, long.as_bytes());
            }
            (1..=number).for_each(|outer| again(out, outer));
            if number < lists {
                one(out, number + 1, lists, (if number.is_multiple_of(8) { long } else { "" }, named));
            }
        }
        fn again(out: &mut Vec<u8>, number: u64) {
            token::list(out, 2);
            token::bytes(out, b"dereference");
            token::int(out, number.cast_signed());
        }
        let mut bytes = Vec::new();
        token::list(&mut bytes, usize::try_from(lists).unwrap() + 2);
        token::bytes(&mut bytes, b"list");
        one(&mut bytes, 1, lists, (long, named));
        (1..=lists).for_each(|number| again(&mut bytes, number));
        Value::decode(&bytes).unwrap()
    }

    #[test]
    fn a_cyclic_value_is_written_once() {
        let written = json(tangled(1, "a", false).root()).to_string();
        assert_eq!(written, r#"[[{"$bytes":"YQ=="},{"$cycle":true}],[{"$bytes":"YQ=="},{"$cycle":true}]]"#);
        // Writing ends, with no more values or bytes than a message has.
        let texts = [(40, ""), (40, "a text of some length"), (30, &*"x".repeat(600_000))];
        for (lists, long, named) in
            texts.map(|(lists, long)| [(lists, long, false), (lists, long, true)]).as_flattened()
        {
            let value = tangled(*lists, long, *named);
            let written = json(value.root()).to_string();
            assert!(written.len() < 80 << 20, "{} bytes", written.len());
            let shown = value.to_string();
            assert!(shown.len() <= value.most_shown() + 3, "{} of {} bytes", shown.len(), value.most_shown());
        }
    }

    #[test]
    fn arguments_are_json_or_texts_and_may_be_named() {
        let texts = ["milk", "5", "[1,2]", "\"5\"", "done=true", "a b=c"].map(str::to_owned);
        let (positional, keywords) = arguments(&texts).ok().unwrap();
        assert_eq!(positional.to_string(), "(\"milk\", 5, [1, 2], \"5\", \"a b=c\")");
        assert_eq!(keywords["done"], serde_json::Value::Bool(true));
    }

    #[test]
    fn arguments_that_would_be_changed_or_lost_are_refused() {
        for (texts, says) in [
            (&["what=a", "what=b"][..], "the argument what is given twice"),
            (&["99999999999999999999999"], "99999999999999999999999 does not fit"),
            (&["-9223372036854775809"], "-9223372036854775809 does not fit"),
            (&["[1, {\"a\": 18446744073709551616}]"], "18446744073709551616 does not fit"),
            (&["n=18446744073709551616"], "18446744073709551616 does not fit"),
        ] {
            let texts: Vec<String> = texts.iter().map(|text| (*text).to_owned()).collect();
            let Err(Wrong { what, .. }) = arguments(&texts) else { panic!("{texts:?}") };
            assert!(what.contains(says), "{texts:?}: {what}");
        }
        let exact = [
            "18446744073709551615",
            "-9223372036854775808",
            "1e300",
            "0.5",
            "[\"99999999999999999999999\", \"a\\\\\", 7]",
            "\"a \\\" 99999999999999999999999\"",
            "99999999999999999999999 bottles",
        ];
        for text in exact {
            assert!(arguments(&[text.to_owned()]).is_ok(), "{text}");
        }
    }

    #[test]
    fn answers_are_json_exactly() {
        let decoded = |value: &Value| json(value.root()).to_string();
        let text = |text: &str| Value::from(text);
        let cases = [
            (Value::none(), "null"),
            (Value::from(5), "5"),
            (Value::from(f64::NAN), r#"{"$float":"nan"}"#),
            (Value::from(f64::NEG_INFINITY), r#"{"$float":"-inf"}"#),
            (text("h\u{e9}"), "\"h\u{e9}\""),
            (Value::from(&b"hi\xff"[..]), r#"{"$bytes":"aGn/"}"#),
            (Value::list([Value::from(1)]), "[1]"),
            (Value::tuple([Value::from(1), text("x")]), r#"{"$tuple":[1,"x"]}"#),
            (Value::set([Value::from(1)]), r#"{"$set":[1]}"#),
            (Value::dictionary([(text("k"), Value::from(1))]), r#"{"k":1}"#),
            (Value::dictionary([(Value::from(1), text("v"))]), r#"{"$dict":[[1,"v"]]}"#),
            (Value::dictionary([(text("$set"), text("v"))]), r#"{"$dict":[["$set","v"]]}"#),
            (
                Value::try_from("1000000000000000000000".parse::<jelly::BigInt>().unwrap()).unwrap(),
                r#"{"$int":"1000000000000000000000"}"#,
            ),
        ];
        for (value, expected) in cases {
            assert_eq!(decoded(&value), expected);
        }
    }
}
