//! Errors on the wire: `twisted.spread.pb.CopyableFailure`.
//!
//! One form satisfies both eras. Today's Twisted requires texts as keys and loses its connection on anything else; Twisted of
//! 2005 accepts them. Builtin exceptions have a different module in each (`exceptions.ValueError`, `builtins.ValueError`).
//! `parents`, which a client's `trap` searches, names both.

use jelly::{Node, Value, ValueRef, exceptions, token};

/// An error with the class name that clients trap it by.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    /// The dotted name of its class, in today's spelling: `builtins.ValueError`, `twisted.cred.error.KeyNotFound`.
    pub class: String,
    /// The message.
    pub value: String,
    /// The classes by which it can be trapped, its own first.
    pub parents: Vec<String>,
    /// A traceback, if the sender discloses one.
    pub traceback: Option<Box<str>>,
    /// Its own fields, as a dictionary in Jelly; empty if it has none.
    pub fields: Box<[u8]>,
    /// Whether it is sent as an instance of its class, instead of a description of one. A peer that does not know the class ends
    /// its connection then.
    pub whole: bool,
}

impl std::fmt::Display for Failure {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.value.is_empty() { f.write_str(&self.class) } else { write!(f, "{}: {}", self.class, self.value) }
    }
}

impl std::error::Error for Failure {}

/// Twisted's class for errors that are meant for clients.
const ERROR: &str = "twisted.spread.pb.Error";

/// The largest number of parent classes that a failure keeps, and the longest class name, in bytes.
const MOST_PARENTS: usize = 64;
const LONGEST_NAME: usize = 512;

/// The longest text in an error, in bytes: far below what breaks a peer's connection.
const LONGEST: usize = 16 << 10;

/// The part of a text that an error may carry.
fn short(text: &str) -> &str {
    let mut end = text.len().min(LONGEST);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    &text[..end]
}

impl Failure {
    /// Creates a failure of this class. A builtin may be given by its bare name (`ValueError`). An unknown class is assumed to
    /// derive from `twisted.spread.pb.Error`, Twisted's class for errors that are meant for clients.
    #[must_use]
    pub fn new(class: &str, value: impl Into<String>) -> Self {
        let mut parents = Vec::new();
        let class = match exceptions::bases(class) {
            Some(_) => {
                under(&mut parents, class);
                format!("builtins.{}", exceptions::bare(class))
            }
            None => {
                parents.push(class.to_owned());
                match exceptions::of_twisted(class) {
                    Some(bases) => bases.iter().for_each(|base| under(&mut parents, base)),
                    None if class == ERROR => {}
                    None => parents.push(ERROR.to_owned()),
                }
                under(&mut parents, "Exception");
                class.to_owned()
            }
        };
        parents.push("builtins.object".to_owned());
        Self { class, value: value.into(), parents, traceback: None, fields: Box::default(), whole: false }
    }

    /// Replaces the parents that follow from the class with these classes, the nearest first. Builtins may be given by their bare
    /// names or with their module. Their bases are added.
    #[must_use]
    pub fn under<'p>(mut self, classes: impl IntoIterator<Item = &'p str>) -> Self {
        // A class has a few parents. The limit bounds the work that a hostile sender can cause others.
        self.parents = vec![self.class.clone()];
        if exceptions::bases(&self.class).is_some() {
            self.parents.clear();
            under(&mut self.parents, &self.class);
        }
        let classes = classes.into_iter().filter(|class| class.len() <= LONGEST_NAME);
        classes.take(MOST_PARENTS).for_each(|class| under(&mut self.parents, class));
        under(&mut self.parents, "Exception");
        if !self.parents.iter().any(|parent| parent == "builtins.object") {
            self.parents.push("builtins.object".to_owned());
        }
        self
    }

    /// Whether a client's `trap(class)` would catch it.
    #[must_use]
    pub fn is(&self, class: &str) -> bool {
        self.parents.iter().any(|parent| parent == class)
    }

    /// Appends the failure as the Jelly that follows `(error id`.
    pub fn write(&self, out: &mut Vec<u8>) {
        if self.whole {
            token::list(out, 2);
            token::bytes(out, self.class.as_bytes());
            return match self.fields.is_empty() {
                true => {
                    token::list(out, 1);
                    token::bytes(out, b"dictionary");
                }
                false => out.extend_from_slice(&self.fields),
            };
        }
        // Only the pairs of the dictionary, without the list's head and its tag.
        let (more, pairs) = self.pairs().unwrap_or_default();
        token::list(out, 2);
        token::bytes(out, b"twisted.spread.pb.CopyableFailure");
        token::list(out, 11 + more);
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
        text(out, short(self.traceback.as_deref().unwrap_or("Traceback unavailable\n")));
        out.extend_from_slice(pairs);
    }

    /// The number of fields, and their pairs in Jelly. `None`: there are none, or one has a name that every failure uses.
    fn pairs(&self) -> Option<(usize, &[u8])> {
        let mut reader = jelly::Deserializer::new(&self.fields);
        let count = reader.dictionary().ok()?;
        let pairs = reader.rest();
        for _ in 0..count {
            if OWN.contains(&reader.key().ok()?) {
                return None;
            }
            reader.skip().ok()?;
        }
        Some((count, pairs))
    }

    /// Reads what follows `(error id` from a peer of either era: a failure, or an exception that was sent as itself.
    ///
    /// # Errors
    /// Returns an error if it is neither, or longer than 256 KiB. Nobody would read that much, and others wait while it is read.
    pub fn read(bytes: &[u8]) -> jelly::Result<Self> {
        const MOST: usize = 256 << 10;
        if bytes.len() > MOST {
            let found = format!("{} bytes", bytes.len());
            return Err(jelly::Error::Unexpected { expected: "a failure of at most 256 KiB", found });
        }
        let value = Value::decode(bytes)?;
        let root = value.root();
        let Node::Instance(class) = root.node() else {
            return Err(jelly::Error::Unexpected { expected: "a failure", found: root.within(200).to_string() });
        };
        let Some(state) = root.items().next() else {
            return Ok(Self { whole: true, ..Self::new(class, "") });
        };
        let field = |name: &str| state.get(name).and_then(|found: ValueRef<'_>| found.as_text()).unwrap_or_default();
        if class != "twisted.spread.pb.CopyableFailure" && class != "twisted.spread.pb.CopiedFailure" {
            let fields = fields(state, |name| !OWN.contains(&name));
            return Ok(Self { fields, whole: true, ..Self::new(class, field("value")) });
        }
        let parents = state.get("parents").map(|parents| {
            let names = parents.items().filter_map(|parent| parent.as_text()).filter(|name| name.len() <= LONGEST_NAME);
            names.take(MOST_PARENTS).map(str::to_owned).collect::<Vec<_>>()
        });
        let traceback = field("traceback");
        Ok(Self {
            class: field("type").to_owned(),
            value: field("value").to_owned(),
            parents: parents.unwrap_or_default(),
            traceback: (!traceback.is_empty() && traceback != "Traceback unavailable\n").then(|| traceback.into()),
            fields: fields(state, |name| !OWN.contains(&name)),
            whole: false,
        })
    }
}

/// The fields that every failure has.
const OWN: [&str; 13] = [
    "type",
    "value",
    "parents",
    "traceback",
    "tb",
    "frames",
    "stack",
    "count",
    "unsafeTracebacks",
    "captureVars",
    "pickled",
    "_frames",
    "_withoutTraceback",
];

/// The entries of a dictionary whose names are wanted, as a dictionary in Jelly; empty if there are none. References, and values
/// that contain one, are left out, because nobody would count them. Values that are too large for a field are left out, too.
fn fields(state: ValueRef<'_>, wanted: impl Fn(&str) -> bool) -> Box<[u8]> {
    /// The largest number of fields that are read, and of values in all of them.
    const MOST: usize = 64;
    const VALUES: usize = 4096;
    /// The most bytes of names and texts: no more is sent on.
    const BYTES: usize = 64 << 10;
    /// The deepest nesting.
    const DEPTH: usize = 128;
    let mut left = Left { values: VALUES, bytes: BYTES };
    let pairs: Vec<(Value, Value)> = state
        .pairs()
        .take(MOST)
        .filter_map(|(name, value)| {
            let name = name.as_text().filter(|name| wanted(name))?;
            let plain = left.bytes(name.len()) && left.is_plain(value, DEPTH);
            plain.then(|| (Value::from(name), value.to_value()))
        })
        .collect();
    if pairs.is_empty() { Box::default() } else { Value::dictionary(pairs).encode().into() }
}

/// How much of a failure's fields is still examined, each shared value as often as it is used.
struct Left {
    values: usize,
    bytes: usize,
}

impl Left {
    /// Whether there is room for this many bytes more.
    fn bytes(&mut self, count: usize) -> bool {
        let left = self.bytes.checked_sub(count);
        self.bytes = left.unwrap_or(0);
        left.is_some()
    }

    /// Whether a value contains no reference and no instance, and is not too large or too deep.
    fn is_plain(&mut self, value: ValueRef<'_>, depth: usize) -> bool {
        self.values = self.values.saturating_sub(1);
        let text = match value.node() {
            Node::Text(text) => text.len(),
            Node::Bytes(bytes) => bytes.len(),
            _ => 0,
        };
        self.values > 0
            && depth > 0
            && self.bytes(text)
            && !matches!(value.node(), Node::Reference(..) | Node::Refused(_) | Node::Instance(_))
            && value.items().all(|item| self.is_plain(item, depth - 1))
            && value.pairs().all(|(key, value)| self.is_plain(key, depth - 1) && self.is_plain(value, depth - 1))
    }
}

/// Adds a class with its bases. A builtin is added under its names in both eras.
fn under(parents: &mut Vec<String>, class: &str) {
    let mut push = |name: String| {
        if !parents.contains(&name) {
            parents.push(name);
        }
    };
    let Some(bases) = exceptions::bases(class) else { return push(class.to_owned()) };
    for name in std::iter::once(&exceptions::bare(class)).chain(bases) {
        if *name == "BaseException" {
            push("builtins.BaseException".to_owned());
            continue;
        }
        for module in ["builtins", "exceptions"] {
            push(format!("{module}.{name}"));
        }
        if *name == "Exception" {
            // Python 2 has a class in between.
            push("exceptions.StandardError".to_owned());
        }
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
    fn a_failure_is_read_back_as_written() {
        let failure = Failure::new("ValueError", "h\u{e9}llo");
        let mut bytes = Vec::new();
        failure.write(&mut bytes);
        assert_eq!(Failure::read(&bytes), Ok(failure));
    }

    #[test]
    fn the_ancestry_of_a_peers_failure_is_bounded() {
        let many: Vec<String> = (0..10_000).map(|number| format!("a.C{number}")).collect();
        let failure = Failure::new("a.C", "").under(many.iter().map(String::as_str));
        assert!(failure.parents.len() < 2 * MOST_PARENTS);
        let mut written = Vec::new();
        Failure { parents: many, ..failure }.write(&mut written);
        assert_eq!(Failure::read(&written).unwrap().parents.len(), MOST_PARENTS);
    }

    #[test]
    fn a_field_never_replaces_an_entry_that_every_failure_has() {
        let fields = Value::dictionary([(Value::from("type"), Value::from(3)), (Value::from("left"), Value::from(4))]);
        let failure = Failure { fields: fields.encode().into(), ..Failure::new("a.C", "text") };
        let mut written = Vec::new();
        failure.write(&mut written);
        let read = Failure::read(&written).unwrap();
        assert_eq!((read.class.as_str(), read.fields.len()), ("a.C", 0), "not one of them is sent");
        // An exception sent as itself: fields with names that every failure uses are not passed on.
        let mut sent = Vec::new();
        Failure { whole: true, ..failure }.write(&mut sent);
        let read = Failure::read(&sent).unwrap();
        assert_eq!(read.fields, Value::dictionary([(Value::from("left"), Value::from(4))]).encode().into());
    }

    fn dereference(out: &mut Vec<u8>, number: i64) {
        token::list(out, 2);
        token::bytes(out, b"dereference");
        token::int(out, number);
    }

    fn reference(out: &mut Vec<u8>, number: i64, items: usize) {
        token::list(out, 3);
        token::bytes(out, b"reference");
        token::int(out, number);
        token::list(out, 1 + items);
        token::bytes(out, b"list");
    }

    /// 256 KiB may share one long text often enough for 16 MiB. A failure keeps as much of that as it would send.
    #[test]
    fn the_fields_of_a_failure_are_bounded_as_expanded() {
        let read = |length: usize| {
            let mut bytes = Vec::new();
            token::list(&mut bytes, 2);
            token::bytes(&mut bytes, b"a.C");
            token::list(&mut bytes, 65);
            token::bytes(&mut bytes, b"dictionary");
            for field in 0..64 {
                token::list(&mut bytes, 2);
                text(&mut bytes, &format!("field {field}"));
                if field > 0 {
                    dereference(&mut bytes, 1);
                } else {
                    reference(&mut bytes, 1, 1);
                    token::bytes(&mut bytes, &vec![1; length]);
                }
            }
            let fields = Failure::read(&bytes).unwrap().fields;
            if fields.is_empty() { 0 } else { jelly::Deserializer::new(&fields).dictionary().unwrap() }
        };
        assert_eq!(read(10), 64, "all of them, if they are short");
        assert_eq!(read(10_000), 6, "64 KiB of them");
        assert_eq!(read(200_000), 0);
    }

    /// A list in a list with a long text. The inner list consists of nothing but uses of the outer one: short to send, and long
    /// to show.
    #[test]
    fn a_value_that_is_not_a_failure_is_shown_shortened() {
        let mut bytes = Vec::new();
        let (count, text) = (2000, vec![1; 200_000]);
        token::list(&mut bytes, 3);
        token::bytes(&mut bytes, b"list");
        reference(&mut bytes, 1, 2);
        token::bytes(&mut bytes, &text);
        reference(&mut bytes, 2, count);
        (0..count).for_each(|_| dereference(&mut bytes, 1));
        dereference(&mut bytes, 2);
        let error = Failure::read(&bytes).unwrap_err().to_string();
        assert!(error.starts_with("expected a failure, found [[b\"\\x01") && error.len() < 300, "{error}");
        let value = Value::decode(&bytes).unwrap();
        assert!(value.to_string().len() <= value.most_shown() + 3, "of {} bytes", bytes.len());
    }
}
