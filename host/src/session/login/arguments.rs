//! The arguments of a call of log-in's: small, and few.

use jelly::{Node, RefKind, Value, ValueRef};
use pb::{Call, Failure};

use super::super::numbers::MindValue;
use super::super::values::defective;

/// Positional and named, by the names of Twisted's parameters.
pub(super) struct Arguments {
    positional: Value,
    keywords: Value,
}

/// The longest arguments of log-in's own calls, in bytes: they are read into a tree, where other clients wait.
const MOST: usize = 256 << 10;

/// The largest mind that is no object, in bytes: it is kept for as long as its attachment.
const LARGEST_MIND: usize = 16 << 10;

impl Arguments {
    pub(super) fn read(call: &Call<'_>) -> Result<Self, Failure> {
        if let Some(defect) = call.defect {
            return Err(defective(defect));
        }
        let bytes = call.arguments.bytes().len() + call.keywords.bytes().len();
        if bytes > MOST {
            return Err(Failure::new("ValueError", format!("{bytes} bytes of arguments; log-in reads at most {MOST}")));
        }
        let read = |bytes| Value::decode(bytes).map_err(|error| Failure::new("TypeError", error.to_string()));
        Ok(Self { positional: read(call.arguments.bytes())?, keywords: read(call.keywords.bytes())? })
    }

    fn at(&self, index: usize, name: &str) -> Option<ValueRef<'_>> {
        self.positional.root().items().nth(index).or_else(|| self.keywords.root().get(name))
    }

    pub(super) fn text(&self, index: usize, name: &str) -> Result<String, Failure> {
        self.at(index, name)
            .and_then(|value| value.as_text().map(str::to_owned))
            .ok_or_else(|| Failure::new("TypeError", format!("argument {name}: expected a text")))
    }

    pub(super) fn optional_text(&self, index: usize, name: &str) -> Result<Option<String>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            None | Some(Node::None) => Ok(None),
            Some(_) => self.text(index, name).map(Some),
        }
    }

    pub(super) fn bytes(&self, index: usize, name: &str) -> Result<Vec<u8>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            Some(Node::Bytes(bytes)) => Ok(bytes.to_vec()),
            _ => Err(Failure::new("TypeError", format!("argument {name}: expected bytes"))),
        }
    }

    /// A client's own object, or any value, or nothing.
    pub(super) fn mind(&self, index: usize, name: &str) -> Result<Given, Failure> {
        let wrong = |what: String| Err(Failure::new("TypeError", format!("argument {name}: {what}")));
        let Some(value) = self.at(index, name) else { return Ok(Given::default()) };
        match value.node() {
            Node::None => Ok(Given::default()),
            Node::Reference(RefKind::Remote, Some(luid)) => Ok(Given { luid: Some(luid), value: None }),
            _ if refers(value, &mut LARGEST_MIND.clone()) => {
                wrong(format!("a mind is one reference, or a value of at most {LARGEST_MIND} bytes without any"))
            }
            _ => {
                let bytes = value.to_value().encode();
                if bytes.len() > LARGEST_MIND {
                    return wrong(format!(
                        "{} bytes; a mind that is no reference has {LARGEST_MIND} at most",
                        bytes.len()
                    ));
                }
                Ok(Given { luid: None, value: Some(bytes.into()) })
            }
        }
    }
}

/// A mind as it came.
#[derive(Debug, Default, Clone)]
pub(super) struct Given {
    /// The client's number of its object.
    pub(super) luid: Option<u64>,
    /// What it gave that is no object.
    pub(super) value: Option<MindValue>,
}

/// Whether a reference is in a value, or a value that is no client's to send; or it has more parts than `left`.
fn refers(value: ValueRef<'_>, left: &mut usize) -> bool {
    *left = left.saturating_sub(1);
    *left == 0
        || matches!(value.node(), Node::Reference(..) | Node::Refused(_))
        || value.items().any(|item| refers(item, left))
        || value.pairs().any(|(key, value)| refers(key, left) || refers(value, left))
}
