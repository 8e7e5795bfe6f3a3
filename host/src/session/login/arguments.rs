//! The arguments of a call of login. They are few and small.

use std::sync::Arc;

use jelly::{Limits, Node, RefKind, Scanner, Shape, Value, ValueRef};
use pb::{Call, Failure};

use super::super::mind::{Mind, MindValue, Sent};
use super::super::values::defective;

/// Positional and keyword arguments, with the names of Twisted's parameters.
pub(super) struct Arguments {
    positional: Value,
    keywords: Value,
    /// The largest mind that is not one object, in bytes: it is kept as long as its attachment.
    most_mind: usize,
}

/// The longest arguments of login's own calls, in bytes: they are read into a tree while other clients wait.
const MOST: usize = 256 << 10;

impl Arguments {
    pub(super) fn read(call: &Call<'_>, most_mind: usize) -> Result<Self, Failure> {
        if let Some(defect) = call.defect {
            return Err(defective(defect));
        }
        let bytes = call.arguments.bytes().len() + call.keywords.bytes().len();
        if bytes > MOST {
            return Err(Failure::new(
                "ValueError",
                format!("{bytes} bytes of arguments; the maximum for a login is {MOST}"),
            ));
        }
        let read = |bytes| Value::decode(bytes).map_err(|error| Failure::new("TypeError", error.to_string()));
        let (positional, keywords) = (read(call.arguments.bytes())?, read(call.keywords.bytes())?);
        Ok(Self { positional, keywords, most_mind })
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

    /// An object of the client's, any other value, or none.
    pub(super) fn mind(&self, index: usize, name: &str) -> Result<Mind, Failure> {
        let wrong = |what: String| Err(Failure::new("TypeError", format!("argument {name}: {what}")));
        let Some(value) = self.at(index, name) else { return Ok(Mind::Nothing) };
        match value.node() {
            Node::None => return Ok(Mind::Nothing),
            Node::Reference(RefKind::Remote, Some(luid)) => return Ok(Mind::Object(luid)),
            _ => {}
        }
        let jelly = value.to_value().encode();
        if jelly.len() > self.most_mind {
            let (bytes, most) = (jelly.len(), self.most_mind);
            return wrong(format!("{bytes} bytes; the maximum for a mind that is not one object is {most}"));
        }
        let mut scanner = Scanner::new(Shape::Value, Limits::default());
        let references = match scanner.scan(&jelly) {
            Ok(Some(scanned)) if scanned.defect.is_none() => scanned.references,
            _ => return wrong("it cannot be stored".to_owned()),
        };
        let objects = references.iter().filter_map(Sent::of).collect();
        Ok(Mind::Value(Arc::new(MindValue { objects, jelly: jelly.into() })))
    }
}
