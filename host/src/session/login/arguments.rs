//! The arguments of a call of log-in's: small, and few.

use jelly::{Node, RefKind, Value, ValueRef};
use pb::{Call, Failure};

use super::super::values::defective;

/// Positional and named, by the names of Twisted's parameters.
pub(super) struct Arguments {
    positional: Value,
    keywords: Value,
}

/// The longest arguments of log-in's own calls, in bytes: they are read into a tree, where other clients wait.
const MOST: usize = 256 << 10;

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

    /// A client's own object, or nothing.
    pub(super) fn mind(&self, index: usize, name: &str) -> Result<Option<u64>, Failure> {
        match self.at(index, name).map(|value| value.node()) {
            None | Some(Node::None) => Ok(None),
            Some(Node::Reference(RefKind::Remote, Some(luid))) => Ok(Some(luid)),
            Some(_) => Err(Failure::new("TypeError", format!("argument {name}: expected a reference or None"))),
        }
    }
}
