//! Values as people read them. What came from elsewhere cannot steer their terminal.

use plugin_api::{Node, Value, ValueRef};

/// A text whose control characters are written out, but for ends of lines and tabs.
pub(crate) fn escaped(text: &str) -> String {
    let mut shown = String::with_capacity(text.len());
    for letter in text.chars() {
        let steers = letter.is_control() && !matches!(letter, '\n' | '\t')
            // They turn round what stands beside them.
            || matches!(letter, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
        if steers { shown.extend(letter.escape_unicode()) } else { shown.push(letter) }
    }
    shown
}

/// An answer, ready to be shown: a text as it is, the items of a list on a line each; empty for none.
pub(crate) fn answer(value: &Value) -> String {
    let root = value.root();
    let lines = match root.node() {
        Node::None => return String::new(),
        Node::List | Node::Tuple | Node::Set | Node::FrozenSet => root.items().map(item).collect::<Vec<_>>(),
        _ => vec![item(root)],
    };
    let mut shown = lines.join("\n");
    if !shown.is_empty() {
        shown.push('\n');
    }
    shown
}

/// One value, on a line of its own.
fn item(value: ValueRef<'_>) -> String {
    match value.as_text() {
        Some(text) => escaped(text),
        None => escaped(&value.to_value().to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_came_from_elsewhere_does_not_steer_a_terminal() {
        assert_eq!(escaped("a\u{1b}[2Jb\u{9b}c\r\u{202e}d\n\te"), "a\\u{1b}[2Jb\\u{9b}c\\u{d}\\u{202e}d\n\te");
        let value = Value::list([Value::from("x\u{7}"), Value::from(5)]);
        assert_eq!(answer(&value), "x\\u{7}\n5\n");
        assert_eq!(answer(&Value::none()), "");
        assert_eq!(answer(&Value::from("milk")), "milk\n");
    }
}
