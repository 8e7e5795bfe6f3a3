//! From an expression to the arena. References are resolved as they are read: each is defined before its first use.

use super::{Marks, Stored, Value, index};
use crate::error::{Error, Result};
use crate::scan::RefKind;
use crate::token::{self, Token};
use crate::types::Decimal;

#[derive(Default)]
pub(super) struct Builder {
    nodes: Vec<Stored>,
    stack: Vec<Open>,
    /// `(reference n …)` to its node.
    defined: std::collections::BTreeMap<u64, u32>,
    /// Where each value starts, and its node, in order; noted down for [`Parts`] only.
    starts: Option<Vec<(usize, u32)>>,
}

/// An expression as one arena, of which parts are taken out as values that stand alone. A part costs what it holds, not
/// what the whole does.
#[derive(Debug)]
pub(crate) struct Parts {
    whole: Value,
    starts: Vec<(usize, u32)>,
    marks: Marks,
}

impl Parts {
    /// Reads the whole expression, which a scanner has found good.
    pub(crate) fn of(bytes: &[u8]) -> Result<Self> {
        let mut builder = Builder { starts: Some(Vec::new()), ..Builder::default() };
        let whole = builder.read(bytes)?;
        Ok(Self { marks: Marks::of(&whole), whole, starts: builder.starts.unwrap_or_default() })
    }

    /// The value that starts at `start`, written with all that it shares.
    pub(crate) fn encode(&mut self, start: usize) -> Result<Vec<u8>> {
        let place = self.starts.binary_search_by_key(&start, |(begins, _)| *begins).map_err(|_| Error::Incomplete)?;
        let mut out = Vec::new();
        self.whole.write_part(self.starts[place].1, &mut out, &mut 0, &mut self.marks);
        Ok(out)
    }
}

/// A list that is being read.
struct Open {
    node: u32,
    left: u32,
    pair: bool,
    key: Option<u32>,
}

impl Builder {
    pub(super) fn read(&mut self, bytes: &[u8]) -> Result<Value> {
        let mut at = 0;
        let mut root = None;
        let read = |at: &mut usize| -> Result<Token<'_>> {
            let rest = bytes.get(*at..).unwrap_or_default();
            let (token, used) = token::read(rest, u32::MAX)?.ok_or(Error::Incomplete)?;
            *at += used;
            Ok(token)
        };
        let raw = |at: &mut usize| match read(at)? {
            Token::Bytes(bytes) => Ok(bytes),
            other => Err(Error::Unexpected { expected: "a byte string", found: other.kind().to_owned() }),
        };
        let text = |at: &mut usize| std::str::from_utf8(raw(at)?).map_err(|_| Error::NotUtf8);
        let number = |at: &mut usize| match read(at)? {
            Token::Int(value) => value.to_u64().ok_or_else(|| Error::IntegerRange(value.to_string())),
            other => Err(Error::Unexpected { expected: "a number", found: other.kind().to_owned() }),
        };
        loop {
            // A pair of a dictionary: its own list, not a value.
            if let Some(open) = self.stack.last()
                && open.pair
                && open.key.is_none()
            {
                match read(&mut at)? {
                    Token::List(2) => {}
                    other => {
                        return Err(Error::Unexpected { expected: "a pair", found: other.kind().to_owned() });
                    }
                }
            }
            let begins = at;
            let depth = self.stack.len();
            let mut references = Vec::new();
            let node = loop {
                let length = match read(&mut at)? {
                    Token::Int(value) => {
                        break self.node(match value.to_i64() {
                            Some(small) => Stored::Int(small),
                            None => Stored::Big(value.into()),
                        });
                    }
                    Token::Float(value) => break self.node(Stored::Float(value)),
                    Token::Bytes(bytes) => break self.node(Stored::Bytes(bytes.to_vec())),
                    Token::List(length) => length,
                };
                let tag = raw(&mut at)?;
                let rest = length.saturating_sub(1);
                let calendar = |_| Error::Custom("an invalid date".to_owned());
                break match tag {
                    b"None" => self.node(Stored::None),
                    b"boolean" => {
                        let value = raw(&mut at)? == b"true";
                        self.node(Stored::Bool(value))
                    }
                    b"unicode" => {
                        let value = text(&mut at)?.to_owned();
                        self.node(Stored::Text(value))
                    }
                    b"datetime" => {
                        let value = text(&mut at)?.parse().map_err(calendar)?;
                        self.node(Stored::DateTime(value))
                    }
                    b"date" => {
                        let value = text(&mut at)?.parse().map_err(calendar)?;
                        self.node(Stored::Date(value))
                    }
                    b"time" => {
                        let value = text(&mut at)?.parse().map_err(calendar)?;
                        self.node(Stored::Time(value))
                    }
                    b"timedelta" => {
                        let value = text(&mut at)?.parse().map_err(calendar)?;
                        self.node(Stored::TimeDelta(value))
                    }
                    b"decimal" => {
                        let (Token::Int(digits), Token::Int(exponent)) = (read(&mut at)?, read(&mut at)?) else {
                            return Err(Error::Custom("a decimal has digits and an exponent".to_owned()));
                        };
                        let exponent = exponent.to_i64().ok_or_else(|| Error::IntegerRange(exponent.to_string()))?;
                        self.node(Stored::Decimal(Decimal { digits: digits.into(), exponent }))
                    }
                    b"remote" | b"local" | b"cached" | b"lcache" => {
                        let kind = match tag {
                            b"remote" => RefKind::Remote,
                            b"local" => RefKind::Local,
                            b"cached" => RefKind::Cached,
                            _ => RefKind::Lcache,
                        };
                        let luid = match read(&mut at)? {
                            Token::Int(value) => value.to_u64(),
                            _ => None,
                        };
                        self.node(Stored::Reference(kind, luid))
                    }
                    b"reference" => {
                        references.push(number(&mut at)?);
                        continue;
                    }
                    b"dereference" => {
                        let id = number(&mut at)?;
                        *self.defined.get(&id).ok_or(Error::Dangling(id))?
                    }
                    b"dictionary" => {
                        let node = self.node(Stored::Dictionary(Vec::new()));
                        self.stack.push(Open { node, left: rest, pair: true, key: None });
                        node
                    }
                    other => {
                        let known = [
                            "list",
                            "tuple",
                            "set",
                            "frozenset",
                            "unpersistable",
                            "persistent",
                            "class",
                            "module",
                            "function",
                            "method",
                            "instance",
                        ];
                        let stored = match known.iter().find(|known| known.as_bytes() == other) {
                            Some(tag) => (Stored::Items(tag, Vec::new()), rest),
                            None => {
                                let tag = String::from_utf8_lossy(other).into_owned();
                                let luid = if rest == 2 { Some(number(&mut at)?) } else { None };
                                (Stored::Instance { tag, luid, state: u32::MAX }, 1)
                            }
                        };
                        let node = self.node(stored.0);
                        self.stack.push(Open { node, left: stored.1, pair: false, key: None });
                        node
                    }
                };
            };
            for id in references {
                self.defined.insert(id, node);
            }
            if let Some(starts) = &mut self.starts {
                starts.push((begins, node));
            }
            root.get_or_insert(node);
            // Give it to the list it stands in, which may now lie below the one that it opened.
            if let Some(parent) = depth.checked_sub(1) {
                self.give(parent, node);
            }
            while self.stack.last().is_some_and(|open| open.left == 0) {
                self.stack.pop();
            }
            if self.stack.is_empty() {
                break;
            }
        }
        let root = root.ok_or(Error::Incomplete)?;
        Ok(Value { nodes: std::mem::take(&mut self.nodes), root })
    }

    fn node(&mut self, stored: Stored) -> u32 {
        self.nodes.push(stored);
        index(self.nodes.len() - 1)
    }

    fn give(&mut self, parent: usize, child: u32) {
        let open = &mut self.stack[parent];
        match &mut self.nodes[open.node as usize] {
            Stored::Items(_, items) => items.push(child),
            Stored::Instance { state, .. } => *state = child,
            Stored::Dictionary(pairs) => match open.key.take() {
                None => {
                    open.key = Some(child);
                    return;
                }
                Some(key) => pairs.push((key, child)),
            },
            _ => {}
        }
        open.left -= 1;
    }
}
