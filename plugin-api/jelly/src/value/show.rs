//! A value for a person to read.

use std::fmt::{self, Write as _};

use super::{Node, Stored, Value, ValueRef};

/// The deepest nesting that is shown.
const DEPTH: usize = 256;
/// What is written when there is more than may be shown.
const MORE: &str = "…";

/// Shows a value as Python would, closely enough for a person to read. A value that shares much can be far longer to show than to
/// hold: behind [`Value::most_shown`] comes `…`.
impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.root().within(self.most_shown()).fmt(f)
    }
}

impl Value {
    /// How many bytes its texts, and how many values it has, both together. A shared one counts once.
    #[must_use]
    pub fn size(&self) -> usize {
        let of = |node: &Stored| match node {
            Stored::Bytes(bytes) => bytes.len(),
            Stored::Text(text) => text.len(),
            Stored::Instance { tag, .. } => tag.len(),
            // Below 2^448: that has 135 digits.
            Stored::Big(_) | Stored::Decimal(_) => 160,
            _ => 0,
        };
        self.nodes.iter().map(of).sum::<usize>() + self.nodes.len()
    }

    /// How many bytes of it are shown. Each byte of a text takes six at most, and each value 64.
    #[must_use]
    pub fn most_shown(&self) -> usize {
        let values = self.nodes.len().saturating_mul(64);
        self.size().saturating_mul(6).saturating_add(values).saturating_add(64 << 10)
    }
}

impl<'a> ValueRef<'a> {
    /// The value as [`Value`]'s `Display` shows it, in this many bytes at most, and `…` if there are more.
    ///
    /// ```
    /// let value = jelly::Value::list(["milk", "eggs"].map(jelly::Value::from));
    /// assert_eq!(value.root().within(100).to_string(), "[\"milk\", \"eggs\"]");
    /// assert_eq!(value.root().within(7).to_string(), "[\"milk\"…");
    /// ```
    #[must_use]
    pub fn within(self, most: usize) -> impl fmt::Display + use<'a> {
        Within { value: self, most }
    }
}

struct Within<'a> {
    value: ValueRef<'a>,
    most: usize,
}

impl fmt::Display for Within<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut short = Short { f, left: self.most, over: false };
        match self.value.show(&mut short) {
            // The error is its own.
            Err(_) if short.over => short.f.write_str(MORE),
            shown => shown,
        }
    }
}

/// Writes so many bytes, and then fails.
struct Short<'f, 'g> {
    f: &'f mut fmt::Formatter<'g>,
    left: usize,
    over: bool,
}

impl fmt::Write for Short<'_, '_> {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let whole = text.len() <= self.left;
        let mut end = text.len().min(self.left);
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        self.left -= end;
        self.f.write_str(&text[..end])?;
        self.over = !whole;
        if whole { Ok(()) } else { Err(fmt::Error) }
    }
}

impl ValueRef<'_> {
    fn show(self, f: &mut Short<'_, '_>) -> fmt::Result {
        enum Step<'a> {
            Node(u32),
            Word(&'a str),
        }
        let mut stack = vec![Step::Node(self.index)];
        // The lists and such that are open, and how many steps there were before each.
        let mut open: Vec<(usize, u32)> = Vec::new();
        while let Some(step) = stack.pop() {
            while open.last().is_some_and(|(depth, _)| stack.len() < *depth) {
                open.pop();
            }
            let at = match step {
                Step::Word(word) => {
                    f.write_str(word)?;
                    continue;
                }
                Step::Node(at) => at,
            };
            let node = ValueRef { value: self.value, index: at };
            let (before, after) = match node.node() {
                Node::None => ("None", ""),
                Node::Bool(true) => ("True", ""),
                Node::Bool(false) => ("False", ""),
                Node::Int(value) => {
                    write!(f, "{value}")?;
                    continue;
                }
                Node::BigInt(value) => {
                    write!(f, "{value}")?;
                    continue;
                }
                Node::Float(value) => {
                    write!(f, "{value:?}")?;
                    continue;
                }
                Node::Bytes(value) => {
                    write!(f, "b\"{}\"", value.escape_ascii())?;
                    continue;
                }
                Node::Text(value) => {
                    write!(f, "{value:?}")?;
                    continue;
                }
                Node::DateTime(value) => {
                    write!(f, "datetime({value})")?;
                    continue;
                }
                Node::Date(value) => {
                    write!(f, "date({value})")?;
                    continue;
                }
                Node::Time(value) => {
                    write!(f, "time({value})")?;
                    continue;
                }
                Node::TimeDelta(value) => {
                    write!(f, "timedelta({value})")?;
                    continue;
                }
                Node::Decimal(value) => {
                    write!(f, "{}e{}", value.digits, value.exponent)?;
                    continue;
                }
                Node::Reference(kind, luid) => {
                    write!(f, "<{kind:?} {}>", luid.unwrap_or(0))?;
                    continue;
                }
                Node::List => ("[", "]"),
                Node::Tuple if node.items().len() == 1 => ("(", ",)"),
                Node::Tuple => ("(", ")"),
                Node::Set if node.items().len() == 0 => ("set()", ""),
                Node::Set => ("{", "}"),
                Node::FrozenSet => ("frozenset({", "})"),
                Node::Dictionary => ("{", "}"),
                Node::Instance(tag) | Node::Refused(tag) => {
                    f.write_str(tag)?;
                    ("(", ")")
                }
            };
            let many = node.items().len() + node.pairs().len();
            if many > 0 && (open.len() >= DEPTH || open.iter().any(|(_, outer)| *outer == at)) {
                f.write_str(MORE)?;
                continue;
            }
            f.write_str(before)?;
            // Each takes a byte at least.
            let most = f.left.saturating_add(1);
            open.push((stack.len(), at));
            stack.push(Step::Word(after));
            for (place, (key, value)) in node.pairs().take(most).enumerate().collect::<Vec<_>>().into_iter().rev() {
                stack.extend([Step::Node(value.index), Step::Word(": "), Step::Node(key.index)]);
                if place > 0 {
                    stack.push(Step::Word(", "));
                }
            }
            for (place, item) in node.items().take(most).enumerate().collect::<Vec<_>>().into_iter().rev() {
                stack.push(Step::Node(item.index));
                if place > 0 {
                    stack.push(Step::Word(", "));
                }
            }
        }
        Ok(())
    }
}
