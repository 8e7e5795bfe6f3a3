//! A service's description of itself: its name, its methods, their types and docs. `credhost describe` shows it.

use serde::{Deserialize, Serialize};

/// A method of a perspective or of another object, as the `#[perspective]` macro found it.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Method {
    /// The name that clients call.
    pub name: &'static str,
    /// Its doc comment.
    pub doc: &'static str,
    /// Its parameters, without those that the runtime provides.
    pub parameters: &'static [Parameter],
    /// Its return type, as written; empty if it has none.
    pub returns: &'static str,
    /// Whether it can change the perspective.
    pub changes: bool,
    /// The classes of the errors that it declares.
    pub raises: &'static [&'static str],
}

/// A parameter of a method.
#[derive(Debug, Clone, Copy, Serialize)]
pub struct Parameter {
    /// Its name, which a keyword argument refers to.
    pub name: &'static str,
    /// Its type, as written.
    pub r#type: &'static str,
}

impl std::fmt::Display for Method {
    /// The signature: `add(text: String) -> usize`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}(", self.name)?;
        for (index, parameter) in self.parameters.iter().enumerate() {
            let comma = if index > 0 { ", " } else { "" };
            write!(f, "{comma}{}: {}", parameter.name, parameter.r#type)?;
        }
        f.write_str(")")?;
        if self.returns.is_empty() { Ok(()) } else { write!(f, " -> {}", self.returns) }
    }
}

/// A service's manifest, as it crosses the wall.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    /// The service's name: `#[service("todo")]`.
    pub service: String,
    /// Its doc comment.
    pub doc: String,
    /// When its perspectives are saved: "call", "detach" or "never".
    pub save: String,
    /// Whether the service's own state is saved.
    pub shared: bool,
    /// Services that must be serving before it starts, and that stop after it.
    #[serde(default)]
    pub needs: Vec<String>,
    /// The permissions that it needs in a sandbox beyond computing, as the operator writes them: "net:tcp:443",
    /// "read:/etc/ssl".
    #[serde(default)]
    pub permissions: Vec<String>,
    /// The version of `plugin-api` it was built with.
    pub api: String,
    /// The perspective's type, as written.
    pub perspective: String,
    /// Its doc comment.
    pub perspective_doc: String,
    /// The methods of its perspective.
    pub methods: Vec<MethodManifest>,
    /// Types of its own that methods take and return, if the types describe themselves.
    #[serde(default)]
    pub types: Vec<TypeManifest>,
    /// Objects of its own to which methods return references.
    #[serde(default)]
    pub objects: Vec<ObjectManifest>,
    /// Errors of its own that methods declare.
    #[serde(default)]
    pub faults: Vec<FaultManifest>,
    /// The mind: the object that its clients pass for callbacks.
    #[serde(default)]
    pub mind: Option<MindManifest>,
}

/// A type of values.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct TypeManifest {
    /// Its name, as methods write it.
    pub name: String,
    /// The class that its values are instances of, such as "shop.Card"; empty if they are dictionaries.
    pub class: String,
    /// Its doc comment.
    pub doc: String,
    /// Its fields, if it is a struct.
    pub fields: Vec<FieldManifest>,
    /// Its variants, if it is an enum.
    pub variants: Vec<VariantManifest>,
}

/// A field, in its form on the wire.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FieldManifest {
    /// Its name.
    pub name: String,
    /// Its type, as written.
    pub r#type: String,
    /// Its doc comment.
    pub doc: String,
    /// Whether it may be absent from a value that the service sends.
    #[serde(default)]
    pub optional: bool,
}

/// A variant of an enum.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct VariantManifest {
    /// Its name on the wire.
    pub name: String,
    /// Its doc comment.
    pub doc: String,
    /// Its fields.
    pub fields: Vec<FieldManifest>,
}

/// An object to which clients get references.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ObjectManifest {
    /// Its name, as methods write it.
    pub name: String,
    /// The doc comment of its `#[perspective]` block.
    pub doc: String,
    /// Its methods.
    pub methods: Vec<MethodManifest>,
}

/// An error.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultManifest {
    /// Its class.
    pub class: String,
    /// Its parent classes, the nearest first.
    pub parents: Vec<String>,
    /// Its message, with its fields in braces.
    pub message: String,
    /// Its doc comment.
    pub doc: String,
    /// Its fields.
    pub fields: Vec<FieldManifest>,
}

/// The mind: the object that clients pass for callbacks.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MindManifest {
    /// The service's name for it.
    pub name: String,
    /// Its doc comment.
    pub doc: String,
    /// The methods that the service calls.
    pub methods: Vec<MethodManifest>,
}

/// A method, as it crosses the wall: see [`Method`].
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MethodManifest {
    /// Its name.
    pub name: String,
    /// Its signature, as written.
    pub signature: String,
    /// Its doc comment.
    pub doc: String,
    /// Whether it can change the perspective.
    pub changes: bool,
    /// The classes of the errors that it declares.
    #[serde(default)]
    pub raises: Vec<String>,
}

impl MethodManifest {
    /// The names of its parameters.
    #[must_use]
    pub fn parameters(&self) -> Vec<&str> {
        self.typed_parameters().into_iter().map(|(name, _)| name).collect()
    }

    /// Its parameters: the name of each, and its type as written.
    ///
    /// ```
    /// # use plugin_api::prelude::*;
    /// # use plugin_api::manifest::Manifest;
    /// # #[derive(Default)]
    /// # struct Room;
    /// # #[service("room", save = "never")]
    /// # impl Service for Room {
    /// #     type Perspective = Guest;
    /// # }
    /// # #[derive(Default)]
    /// # struct Guest;
    /// #[perspective]
    /// impl Guest {
    ///     fn move_to(&self, x: i32, y: i32) {}
    /// }
    ///
    /// let manifest = Manifest::of::<Room>();
    /// assert_eq!(manifest.methods[0].parameters(), ["x", "y"]);
    /// assert_eq!(manifest.methods[0].typed_parameters(), [("x", "i32"), ("y", "i32")]);
    /// ```
    #[must_use]
    pub fn typed_parameters(&self) -> Vec<(&str, &str)> {
        let Some((_, rest)) = self.signature.split_once('(') else { return Vec::new() };
        let (mut depth, mut all, mut start) = (0i32, Vec::new(), 0);
        for (at, letter) in rest.char_indices() {
            match letter {
                '(' | '<' | '[' => depth += 1,
                ')' | ',' if depth == 0 => {
                    all.extend(rest[start..at].split_once(':').map(|(name, of)| (name.trim(), of.trim())));
                    start = at + 1;
                    if letter == ')' {
                        break;
                    }
                }
                ')' | '>' | ']' => depth -= 1,
                _ => {}
            }
        }
        all
    }
}

impl From<&Method> for MethodManifest {
    fn from(method: &Method) -> Self {
        Self {
            name: method.name.to_owned(),
            signature: method.to_string(),
            doc: method.doc.to_owned(),
            changes: method.changes,
            raises: method.raises.iter().map(|class| (*class).to_owned()).collect(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_from_the_signature() {
        let named = |signature: &str| {
            let signature = signature.to_owned();
            let method = MethodManifest { signature, ..MethodManifest::default() };
            method.parameters().into_iter().map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(named("list() -> &[Task]"), [""; 0]);
        assert_eq!(named("add(text: String) -> usize"), ["text"]);
        assert_eq!(named("put(key: (u8, u8), all: HashMap<String, [u8; 2]>)"), ["key", "all"]);
        let signature = "put(key: (u8, u8), all: HashMap<String, [u8; 2]>) -> bool".to_owned();
        let method = MethodManifest { signature, ..MethodManifest::default() };
        assert_eq!(method.typed_parameters(), [("key", "(u8, u8)"), ("all", "HashMap<String, [u8; 2]>")]);
    }
}
