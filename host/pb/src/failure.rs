//! Errors as they cross the wire: `twisted.spread.pb.CopyableFailure`.
//!
//! One form satisfies both eras. Today's Twisted demands texts as keys and loses its connection on anything else; that
//! of 2005 takes them, too. Builtin exceptions have another module name in each (`exceptions.ValueError`,
//! `builtins.ValueError`); `parents`, which a client's `trap` looks in, names both.

use jelly::{Value, ValueRef, token};

/// An error with the class name that clients trap it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The dotted name of its class, in today's spelling: `builtins.ValueError`, `twisted.cred.error.KeyNotFound`.
    pub class: String,
    /// What it says.
    pub value: String,
    /// The classes by which it can be trapped, its own first.
    pub parents: Vec<String>,
    /// A traceback, where the sender gives one away.
    pub traceback: Option<String>,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.value.is_empty() { f.write_str(&self.class) } else { write!(f, "{}: {}", self.class, self.value) }
    }
}

impl std::error::Error for Failure {}

/// Builtins by what they derive from, up to `Exception`.
const BUILTINS: [(&str, &[&str]); 15] = [
    ("ValueError", &[]),
    ("TypeError", &[]),
    ("AttributeError", &[]),
    ("KeyError", &["LookupError"]),
    ("IndexError", &["LookupError"]),
    ("RuntimeError", &[]),
    ("NotImplementedError", &["RuntimeError"]),
    ("RecursionError", &["RuntimeError"]),
    ("AssertionError", &[]),
    ("PermissionError", &["OSError"]),
    ("TimeoutError", &["OSError"]),
    ("OverflowError", &["ArithmeticError"]),
    ("UnicodeError", &["ValueError"]),
    ("MemoryError", &[]),
    ("Exception", &[]),
];

/// Twisted's classes that we send, by what they derive from.
const TWISTED: [(&str, &[&str]); 10] = [
    ("twisted.cred.error.Unauthorized", &["Exception"]),
    ("twisted.cred.error.LoginFailed", &["Exception"]),
    (
        "twisted.cred.error.UnauthorizedLogin",
        &["twisted.cred.error.LoginFailed", "twisted.cred.error.Unauthorized", "Exception"],
    ),
    ("twisted.cred.error.UnhandledCredentials", &["twisted.cred.error.LoginFailed", "Exception"]),
    ("twisted.cred.error.LoginDenied", &["twisted.cred.error.LoginFailed", "Exception"]),
    ("twisted.cred.error.KeyNotFound", &["KeyError", "LookupError", "twisted.cred.error.Unauthorized", "Exception"]),
    ("twisted.cred.error.DuplicateIdentity", &["KeyError", "LookupError", "Exception"]),
    ("twisted.spread.flavors.NoSuchMethod", &["AttributeError", "Exception"]),
    ("twisted.spread.jelly.InsecureJelly", &["Exception"]),
    ("twisted.python.failure.DefaultException", &["Exception"]),
];

/// The longest text that an error carries, in bytes: far below what breaks a peer's connection.
const LONGEST: usize = 16 << 10;

/// As much of a text as an error carries.
fn short(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Failure {
    /// A failure of this class. A builtin may be given by its bare name (`ValueError`). A class that is not known here
    /// is taken for one derived from `twisted.spread.pb.Error`, Twisted's class for errors that are meant for clients.
    #[must_use]
    pub fn new(class: &str, value: impl Into<String>) -> Self {
        let bare = class.strip_prefix("builtins.").or_else(|| class.strip_prefix("exceptions.")).unwrap_or(class);
        let mut parents = Vec::new();
        let class = if let Some((name, bases)) = BUILTINS.iter().find(|(name, _)| *name == bare) {
            push(&mut parents, name);
            bases.iter().for_each(|base| push(&mut parents, base));
            format!("builtins.{name}")
        } else {
            parents.push(class.to_owned());
            match TWISTED.iter().find(|(name, _)| *name == class) {
                Some((_, bases)) => bases.iter().for_each(|base| push(&mut parents, base)),
                None if class == "twisted.spread.pb.Error" => {}
                None => parents.push("twisted.spread.pb.Error".to_owned()),
            }
            class.to_owned()
        };
        push(&mut parents, "Exception");
        parents.extend(["builtins.BaseException", "builtins.object"].map(str::to_owned));
        Self { class, value: value.into(), parents, traceback: None }
    }

    /// Whether a client's `trap(class)` would catch it.
    #[must_use]
    pub fn is(&self, class: &str) -> bool {
        self.parents.iter().any(|parent| parent == class)
    }

    /// Appends it as the Jelly that follows `(error id`.
    pub fn write(&self, out: &mut Vec<u8>) {
        token::list(out, 2);
        token::bytes(out, b"twisted.spread.pb.CopyableFailure");
        token::list(out, 11);
        token::bytes(out, b"dictionary");
        let key = |out: &mut Vec<u8>, key: &str| {
            token::list(out, 2);
            text(out, key);
        };
        key(out, "count");
        token::int(out, 0);
        key(out, "type");
        token::bytes(out, short(&self.class).as_bytes());
        key(out, "value");
        text(out, short(&self.value));
        key(out, "captureVars");
        boolean(out, false);
        key(out, "tb");
        token::list(out, 1);
        token::bytes(out, b"None");
        key(out, "unsafeTracebacks");
        boolean(out, false);
        key(out, "parents");
        list(out, &self.parents);
        key(out, "frames");
        list(out, &[]);
        key(out, "stack");
        list(out, &[]);
        key(out, "traceback");
        text(out, self.traceback.as_deref().unwrap_or("Traceback unavailable\n"));
    }

    /// Reads what follows `(error id` from a peer of either era: a failure, or an exception that was sent itself.
    ///
    /// # Errors
    /// When it is neither, or longer than 256 KiB: nobody would read that, and it is read where others wait.
    pub fn read(bytes: &[u8]) -> jelly::Result<Self> {
        const MOST: usize = 256 << 10;
        if bytes.len() > MOST {
            let found = format!("{} bytes", bytes.len());
            return Err(jelly::Error::Unexpected { expected: "a failure of at most 256 KiB", found });
        }
        let value = Value::decode(bytes)?;
        let root = value.root();
        let jelly::Node::Instance(class) = root.node() else {
            return Err(jelly::Error::Unexpected { expected: "a failure", found: value.to_string() });
        };
        let Some(state) = root.items().next() else {
            return Ok(Self::new(class, ""));
        };
        let field = |name: &str| state.get(name).and_then(|found: ValueRef<'_>| found.as_text()).unwrap_or_default();
        if class != "twisted.spread.pb.CopyableFailure" && class != "twisted.spread.pb.CopiedFailure" {
            return Ok(Self::new(class, field("value")));
        }
        let parents = state.get("parents").map(|parents| {
            parents.items().filter_map(|parent| parent.as_text().map(str::to_owned)).collect::<Vec<_>>()
        });
        let traceback = field("traceback");
        Ok(Self {
            class: field("type").to_owned(),
            value: field("value").to_owned(),
            parents: parents.unwrap_or_default(),
            traceback: (!traceback.is_empty() && traceback != "Traceback unavailable\n").then(|| traceback.to_owned()),
        })
    }
}

fn push(parents: &mut Vec<String>, name: &str) {
    if name.contains('.') {
        parents.push(name.to_owned());
        return;
    }
    let both = |parents: &mut Vec<String>, name: &str| {
        for module in ["builtins", "exceptions"] {
            let full = format!("{module}.{name}");
            if !parents.contains(&full) {
                parents.push(full);
            }
        }
    };
    both(parents, name);
    if name == "Exception" {
        // Python 2 has a class between.
        parents.push("exceptions.StandardError".to_owned());
    }
}

fn text(out: &mut Vec<u8>, text: &str) {
    token::list(out, 2);
    token::bytes(out, b"unicode");
    token::bytes(out, text.as_bytes());
}

fn boolean(out: &mut Vec<u8>, value: bool) {
    token::list(out, 2);
    token::bytes(out, b"boolean");
    token::bytes(out, if value { b"true" } else { b"false" });
}

fn list(out: &mut Vec<u8>, items: &[String]) {
    token::list(out, items.len() + 1);
    token::bytes(out, b"list");
    items.iter().for_each(|item| text(out, item));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_eras_can_trap_it() {
        let failure = Failure::new("KeyError", "'late'");
        for class in ["builtins.KeyError", "exceptions.KeyError", "builtins.LookupError", "exceptions.StandardError"] {
            assert!(failure.is(class), "{class}");
        }
        let refused = Failure::new("twisted.cred.error.KeyNotFound", "");
        assert!(refused.is("twisted.cred.error.Unauthorized") && refused.is("exceptions.KeyError"));
        assert!(Failure::new("todo.NoSuchTask", "").is("twisted.spread.pb.Error"));
    }

    #[test]
    fn it_reads_what_it_writes() {
        let failure = Failure::new("ValueError", "h\u{e9}llo");
        let mut bytes = Vec::new();
        failure.write(&mut bytes);
        assert_eq!(Failure::read(&bytes), Ok(failure));
    }
}
