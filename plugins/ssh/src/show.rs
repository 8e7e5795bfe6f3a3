//! Values as people read them. Text from elsewhere cannot control their terminal.

use plugin_api::{Node, Value, ValueRef};

/// Whether a letter controls a terminal, or the letters beside it, instead of being visible.
fn steers(letter: char) -> bool {
    letter.is_control()
        || matches!(letter, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}

/// A text of visible letters: those that control a terminal are escaped, except line feeds and tabs.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        let seen = !steers(letter) || matches!(letter, '\n' | '\t');
        if seen { shown.push(letter) } else { shown.extend(letter.escape_unicode()) }
    }
    shown
}

/// A value as JSON, on a line of its own, of visible letters.
pub(crate) fn as_json(value: &serde_json::Value) -> String {
    let mut shown = String::new();
    for letter in value.to_string().chars() {
        if steers(letter) {
            // Four digits are enough for all of them.
            shown.push_str(&format!("\\u{:04x}", u32::from(letter)));
        } else {
            shown.push(letter);
        }
    }
    shown.push('\n');
    shown
}

/// An answer, ready to be shown: a text unchanged, the items of a list one per line, nothing for None.
pub(crate) fn answer(value: &Value) -> String {
    let root = value.root();
    let lines = match root.node() {
        Node::None => return String::new(),
        // One line each, whatever is in it.
        Node::List | Node::Tuple | Node::Set | Node::FrozenSet => {
            let (mut lines, mut left) = (Vec::new(), value.most_shown());
            for one in root.items() {
                let line = item(one, left).replace('\n', "\\n");
                left = left.saturating_sub(line.len() + 1);
                lines.push(line);
                if left == 0 {
                    lines.push("…".to_owned());
                    break;
                }
            }
            lines
        }
        _ => vec![item(root, value.most_shown())],
    };
    let mut shown = lines.join("\n");
    if !shown.is_empty() {
        shown.push('\n');
    }
    shown
}

/// One value, on a line of its own, of this many bytes at most. A text is shown whole: it is no longer than what was sent.
fn item(value: ValueRef<'_>, most: usize) -> String {
    match value.as_text() {
        Some(text) => escaped(text),
        None => escaped(&value.within(most).to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn foreign_text_does_not_control_the_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb\u{9b}c\r\u{202e}d\n\te"), "a\\u{1b}[2Jb\\u{9b}c\\u{d}\\u{202e}d\n\te");
        let value = Value::list([Value::from("x\u{7}\ny"), Value::from(5)]);
        assert_eq!(answer(&value), "x\\u{7}\\ny\n5\n");
        let json = serde_json::json!(["a\u{9b}b\u{202e}c\u{7}\nd\u{e9}"]);
        assert_eq!(as_json(&json), "[\"a\\u009bb\\u202ec\\u0007\\nd\u{e9}\"]\n");
        // A long list is shown completely, whatever it contains.
        let moments = Value::list((0..10_000).map(|at| Value::from(1_700_000_000_000_i64 + at)));
        assert_eq!(answer(&moments).lines().count(), 10_000);
        let numbers = Value::list((0..10_000).map(|at| Value::from(1.0 / (f64::from(at) + 3.0))));
        assert_eq!(answer(&numbers).lines().count(), 10_000);
        assert_eq!(answer(&Value::none()), "");
        assert_eq!(answer(&Value::from("milk")), "milk\n");
    }
}
