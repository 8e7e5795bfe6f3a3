//! Displays text from outside: on a terminal, in the log, in JSON.
//!
//! Names, messages and files of clients, libraries and operators may contain any characters. A newline would forge a
//! line, an escape would control the terminal, and a bidirectional control would display one name as another. All of
//! these are shown as escapes.

use std::borrow::Cow;
use std::fmt::Write;

/// Whether a character is escaped: control characters, and those that have no width or change the direction of the text
/// after them.
#[must_use]
pub fn is_hidden(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}

fn escaped(text: &str, is_hidden: impl Fn(char) -> bool) -> Cow<'_, str> {
    let Some(first) = text.find(&is_hidden) else { return Cow::Borrowed(text) };
    let mut out = String::with_capacity(text.len() + 16);
    out.push_str(&text[..first]);
    for c in text[first..].chars() {
        match c {
            c if !is_hidden(c) => out.push(c),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            // Writing to a string cannot fail.
            c => {
                let _ = write!(out, "\\u{{{:x}}}", u32::from(c));
            }
        }
    }
    Cow::Owned(out)
}

/// Escapes text from outside for use within a line.
///
/// ```
/// assert_eq!(credhost::show::line("bob\n2026 alice \u{1b}[31m\u{202e}"), r"bob\n2026 alice \u{1b}[31m\u{202e}");
/// ```
#[must_use]
pub fn line(text: &str) -> Cow<'_, str> {
    escaped(text, is_hidden)
}

/// Escapes a text of several lines, in which text from outside was already escaped by [`line()`]. If that was forgotten
/// somewhere, at most a line break remains.
#[must_use]
pub fn lines(text: &str) -> Cow<'_, str> {
    escaped(text, |c| is_hidden(c) && c != '\n')
}

/// Formats a number of items: "1 line", "2 lines".
///
/// ```
/// assert_eq!(credhost::show::many(1, "identity", "identities"), "1 identity");
/// assert_eq!(credhost::show::many(0, "identity", "identities"), "0 identities");
/// ```
#[must_use]
pub fn many(count: usize, one: &str, more: &str) -> String {
    format!("{count} {}", if count == 1 { one } else { more })
}

/// As [`many`], for a number in JSON.
#[must_use]
pub fn many_json(count: &serde_json::Value, one: &str, more: &str) -> String {
    many(count.as_u64().and_then(|count| usize::try_from(count).ok()).unwrap_or(usize::MAX), one, more)
}

/// Formats JSON on one line. Hidden characters are escaped in ASCII.
///
/// ```
/// assert_eq!(credhost::show::json(&serde_json::json!({"name": "\u{202e}bob\u{e0001}"})), r#"{"name":"\u202ebob\udb40\udc01"}"#);
/// ```
#[must_use]
pub fn json(value: &serde_json::Value) -> String {
    // Characters that JSON itself does not escape occur only in strings.
    let mut out = String::new();
    for c in value.to_string().chars() {
        if is_hidden(c) {
            for unit in c.encode_utf16(&mut [0; 2]) {
                // As above.
                let _ = write!(out, "\\u{unit:04x}");
            }
        } else {
            out.push(c);
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_shown_unchanged_is_not_copied() {
        assert!(matches!(line("grüße, 世界 👍"), Cow::Borrowed(_)));
    }

    #[test]
    fn escaped_json_reads_back_as_the_same_value() {
        let all: String = (0..0x11_0000).filter_map(char::from_u32).collect();
        let value = serde_json::json!({ "all": all });
        let text = json(&value);
        assert_eq!(text.chars().find(|c| is_hidden(*c)), None);
        assert_eq!(serde_json::from_str::<serde_json::Value>(&text).unwrap(), value);
    }
}
