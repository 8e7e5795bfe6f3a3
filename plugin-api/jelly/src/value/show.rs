//! A value for a person to read.

use super::{Node, Value, ValueRef};

/// As Python would show it, near enough for a person to read.
impl std::fmt::Display for Value {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        enum Step<'a> {
            Node(u32),
            Word(&'a str),
        }
        let mut open = vec![false; self.nodes.len()];
        let mut stack = vec![Step::Node(self.root)];
        // A value that shares much could be far longer to show than to hold.
        let mut budget = 10_000;
        let mut closing: Vec<(usize, u32)> = Vec::new();
        while let Some(step) = stack.pop() {
            while closing.last().is_some_and(|(depth, _)| stack.len() < *depth) {
                if let Some((_, at)) = closing.pop() {
                    open[at as usize] = false;
                }
            }
            let at = match step {
                Step::Word(word) => {
                    f.write_str(word)?;
                    continue;
                }
                Step::Node(at) => at,
            };
            budget -= 1;
            if budget == 0 {
                return f.write_str("…");
            }
            let node = ValueRef { value: self, index: at };
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
            if std::mem::replace(&mut open[at as usize], true) && node.items().len() + node.pairs().len() > 0 {
                f.write_str("…")?;
                continue;
            }
            f.write_str(before)?;
            closing.push((stack.len(), at));
            stack.push(Step::Word(after));
            for (place, (key, value)) in node.pairs().enumerate().collect::<Vec<_>>().into_iter().rev() {
                stack.extend([Step::Node(value.index), Step::Word(": "), Step::Node(key.index)]);
                if place > 0 {
                    stack.push(Step::Word(", "));
                }
            }
            for (place, item) in node.items().enumerate().collect::<Vec<_>>().into_iter().rev() {
                stack.push(Step::Node(item.index));
                if place > 0 {
                    stack.push(Step::Word(", "));
                }
            }
        }
        Ok(())
    }
}
