//! The single pass over everything that comes from a wire or a library.
//!
//! It is resumable (an incomplete expression is never read twice), does not recurse, and is charged to a budget. It follows
//! Jelly's grammar, to distinguish `("remote" 5)` as a pair of a dictionary from a true reference.
//!
//! One file, although it is long: the grammar is one state machine, whose every state has its checks and its charges beside it.

use std::collections::BTreeMap;

use crate::token::{self, BananaError, Token};
use crate::types;

/// Limits for one expression. The defaults are for a peer that has logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// The longest string in bytes, and the longest list in elements.
    pub item: u32,
    /// The longest expression, in bytes.
    pub expression: usize,
    /// How deep lists may nest. Shared values are followed.
    pub depth: usize,
    /// The most values. A shared value counts every time it is used.
    pub values: u64,
}

impl Limits {
    /// For a peer that has not logged in.
    pub const BEFORE_LOGIN: Self = Self { item: 1024, expression: 4096, depth: 16, values: 64 };
    /// No limits but those of the machine, for what the host itself has written.
    pub const NONE: Self = Self { item: u32::MAX, expression: usize::MAX, depth: 512, values: u64::MAX };
}

impl Default for Limits {
    fn default() -> Self {
        Self { item: token::SIZE_LIMIT, expression: 8 << 20, depth: 128, values: 1_000_000 }
    }
}

/// The classes whose instances an expression may contain: Copyables, and Cacheables with their state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Classes {
    /// All classes. The typed reader and writer name the classes themselves.
    #[default]
    Any,
    /// Only classes with these names, each "module.Class".
    Only(&'static [&'static str]),
}

impl Classes {
    fn has(self, name: &[u8]) -> bool {
        match self {
            Self::Any => true,
            Self::Only(names) => names.iter().any(|known| known.as_bytes() == name),
        }
    }
}

/// With its shared values expanded, an expression may have this many times [`Limits::expression`] bytes.
const EXPANSION: u64 = 4;

/// The most bytes that an expression of `own` bytes may expand to, with shared values counted each time. The fixed part lets a
/// small expression share freely. The rest is proportional to `own`, and so is the time to read the expression.
pub(crate) fn expansion(own: usize) -> u64 {
    const FREE: u64 = 64 << 10;
    const FACTOR: u64 = 64;
    FREE + FACTOR.saturating_mul(own as u64)
}
/// The most elements of a buffer that are kept from one expression to the next.
const KEPT: usize = 1024;

/// The form of the outermost tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Shape {
    /// One Jelly value.
    Value,
    /// A message of the broker: a list whose elements are Jelly values.
    Message,
}

/// A complete expression that is not valid Jelly, or exceeds a limit. Its call is answered with an error; the connection stays
/// open.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum Defect {
    /// Nested deeper than the limit.
    #[error("nested deeper than {0}")]
    TooDeep(usize),
    /// More values than the limit. Shared values are counted each time.
    #[error("more than {0} values")]
    TooManyValues(u64),
    /// More bytes than this limit. Shared values are counted each time.
    #[error("more than {0} bytes, shared values counted each time")]
    TooLarge(u64),
    /// A list whose first element is not a byte string.
    #[error("a list that does not start with its type")]
    Untagged,
    /// A list of a known type that does not have the elements of that type.
    #[error("a malformed {0}")]
    Malformed(String),
    /// A key of a dictionary, or an element of a set, that Python cannot hash.
    #[error("unhashable: a list, set or dictionary as a key")]
    Unhashable,
    /// Two `(reference n …)` with the same number.
    #[error("reference {0} is defined twice")]
    DuplicateReference(u64),
    /// A `(dereference n)` without a `(reference n …)` before it in the same value. Jelly defines a value where it occurs first.
    #[error("dereference of {0}, which is not defined before it")]
    Dangling(u64),
    /// A type that a stock Twisted refuses, and ends its connection over: `class`, `module`, `function`, `method`, `instance`,
    /// `persistent`, and every other name without a module.
    #[error("a {0}, which Perspective Broker does not let through")]
    Insecure(String),
    /// An instance of a class that the receiver has not named.
    #[error("an instance of {0}, a class that this service does not name as copyable")]
    UnnamedClass(String),
    /// A type that Twisted of 2005 does not know. It ends its connection over one.
    #[error("a {0}, which a Twisted as old as this client's does not know")]
    TooNew(String),
    /// Tokens that are not Banana, where the framing was known by other means.
    #[error(transparent)]
    Banana(BananaError),
}

/// The table that a reference names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum RefKind {
    /// `(remote luid)`: an object of the sender.
    Remote,
    /// `(local luid)`: an object of the receiver, sent back.
    Local,
    /// `(cached luid)`: a cached object of the sender that the receiver has.
    Cached,
    /// `(lcache luid)`: a cached object of the receiver, sent back.
    Lcache,
    /// `("type" luid state)`: a cached object of the sender, for the first time.
    Cache,
}

impl RefKind {
    /// Its tag. A cached object with its state has its class in this place; without its state, it is written as `remote`.
    #[must_use]
    pub fn tag(self) -> &'static str {
        match self {
            Self::Remote | Self::Cache => "remote",
            Self::Local => "local",
            Self::Cached => "cached",
            Self::Lcache => "lcache",
        }
    }
}

/// A true reference, with the position of its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reference {
    /// The table that it names.
    pub kind: RefKind,
    /// Its number; `None` for a name (`(local "root")`).
    pub luid: Option<u64>,
    /// The start of its list, from the start of the expression.
    pub open: usize,
    /// The start of its number's token.
    pub start: usize,
    /// The end of that token.
    pub end: usize,
    /// The end of its list. The state of a cached object, with references of its own, is before it.
    pub close: usize,
}

/// The result of scanning a complete expression.
#[derive(Debug, Clone, Copy)]
pub struct Scanned<'s> {
    /// The length of the expression, in bytes.
    pub end: usize,
    /// The starts of a message's elements (the first eight; a message has at most seven), then the end of the message.
    pub elements: &'s [usize],
    /// The number of elements in the message.
    pub count: usize,
    /// The true references, in order.
    pub references: &'s [Reference],
    /// The defect, if any. The references are incomplete then.
    pub defect: Option<&'s Defect>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Message,
    /// The type is not read yet.
    Untyped,
    /// Values without restrictions (list, tuple, unpersistable).
    Values,
    /// Values that must be hashable.
    Set,
    Dictionary,
    Pair,
    /// `(None)`: no further elements.
    Nothing,
    /// One byte string, checked by the type's own rule.
    Leaf(Leaf),
    Decimal,
    ReferenceId,
    ReferenceBody(u64),
    DereferenceId,
    Handle(RefKind),
    /// No further elements may follow.
    Full,
    /// An unknown type: an instance, a Copyable, or a Cacheable.
    Instance,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    Boolean,
    Unicode,
    DateTime,
    Date,
    Time,
    TimeDelta,
}

#[derive(Debug, Clone, Copy)]
struct Frame {
    kind: Kind,
    left: u32,
    length: u32,
    /// Where its own token starts.
    open: usize,
    /// The deepest level below this one, in absolute depth.
    deepest: usize,
    hashable: bool,
    /// The count of values at its start.
    values: u64,
    /// The count of bytes at its start.
    bytes: u64,
    /// The index of its reference (for an instance that is cached).
    reference: usize,
}

#[derive(Debug, Clone, Copy)]
struct SharedValue {
    at: usize,
    /// Set when it is complete: the values and bytes that it counts for, its levels, and whether it can be a key.
    done: Option<(u64, u64, usize, bool)>,
}

/// Finds the end of one expression after another. Keeps its buffers in between.
#[derive(Debug)]
pub struct Scanner {
    shape: Shape,
    limits: Limits,
    classes: Classes,
    /// Whether types that came after 2005 are a defect.
    old: bool,
    at: usize,
    stack: Vec<Frame>,
    /// After a defect: the number of tokens still to come, whatever they mean.
    pending: u64,
    values: u64,
    /// The bytes so far. Shared values are counted each time.
    bytes: u64,
    elements: Vec<usize>,
    count: usize,
    references: Vec<Reference>,
    /// The values that the current scope defines: the whole expression, or one element of a message. Twisted numbers the
    /// shared values of each argument list from 1.
    shared: BTreeMap<u64, SharedValue>,
    defect: Option<Defect>,
    done: bool,
}

impl Scanner {
    /// Creates a scanner for expressions of this shape, within these limits.
    #[must_use]
    pub fn new(shape: Shape, limits: Limits) -> Self {
        Self {
            shape,
            limits,
            classes: Classes::Any,
            old: false,
            at: 0,
            stack: Vec::new(),
            pending: 0,
            values: 0,
            bytes: 0,
            elements: Vec::new(),
            count: 0,
            references: Vec::new(),
            shared: BTreeMap::new(),
            defect: None,
            done: false,
        }
    }

    /// Restricts expressions to instances of these classes.
    #[must_use]
    pub fn with_classes(self, classes: Classes) -> Self {
        Self { classes, ..self }
    }

    /// If `old`, checks values that are sent to a Twisted of 2005 (2.1.0): sets, frozensets and decimals, which it does not know,
    /// are then a defect.
    #[must_use]
    pub fn for_twisted_of_2005(self, old: bool) -> Self {
        Self { old, ..self }
    }

    /// Changes the limits, from the next token on. For a peer that has logged in.
    pub fn set_limits(&mut self, limits: Limits) {
        self.limits = limits;
    }

    /// Continues with the expression that starts at `bytes[0]`. Returns `None` while it is incomplete. A call with more bytes of
    /// the same expression continues where the last one stopped. After a complete expression, the next call starts a new one.
    ///
    /// # Errors
    /// Returns an error if the bytes are not Banana within the limits. Invalid Jelly is only reported in [`Scanned::defect`].
    pub fn scan(&mut self, bytes: &[u8]) -> Result<Option<Scanned<'_>>, BananaError> {
        if self.done {
            self.clear();
        }
        loop {
            let rest = bytes.get(self.at..).unwrap_or_default();
            let Some((token, used)) = token::read(rest, self.limits.item)? else {
                let expected = self.at + token::announced(rest).unwrap_or(rest.len());
                return if expected > self.limits.expression {
                    Err(BananaError::ExpressionTooLong(self.limits.expression))
                } else {
                    Ok(None)
                };
            };
            let start = self.at;
            self.at += used;
            self.bytes = self.bytes.saturating_add(used as u64);
            if self.at > self.limits.expression {
                return Err(BananaError::ExpressionTooLong(self.limits.expression));
            }
            if self.defect.is_some() {
                self.pending -= 1;
                if let Token::List(length) = token {
                    self.pending += u64::from(length);
                }
            } else if let Err(defect) = self.step(token, start) {
                self.give_up(defect, token);
            }
            let complete = if self.defect.is_some() { self.pending == 0 } else { self.stack.is_empty() };
            if complete {
                return Ok(Some(self.finish()));
            }
        }
    }

    /// The position of the value of `(reference n …)` in the expression just scanned.
    #[must_use]
    pub fn shared_at(&self, id: u64) -> Option<usize> {
        self.shared.get(&id).map(|shared| shared.at)
    }

    /// Whether the expression just scanned contains any `(reference n …)`.
    #[must_use]
    pub fn shares(&self) -> bool {
        !self.shared.is_empty()
    }

    fn clear(&mut self) {
        self.at = 0;
        self.stack.clear();
        self.pending = 0;
        self.values = 0;
        self.bytes = 0;
        // The buffers of a large expression must not be kept forever.
        self.elements.clear();
        self.references.shrink_to(KEPT);
        self.stack.shrink_to(KEPT);
        self.count = 0;
        self.references.clear();
        self.shared.clear();
        self.defect = None;
        self.done = false;
    }

    fn finish(&mut self) -> Scanned<'_> {
        self.done = true;
        self.elements.push(self.at);
        self.last()
    }

    /// The result of the last scan, if it was complete. For a caller that could not keep the borrow.
    #[must_use]
    pub fn last(&self) -> Scanned<'_> {
        Scanned {
            end: self.at,
            elements: &self.elements,
            count: self.count,
            references: &self.references,
            defect: self.defect.as_ref(),
        }
    }

    /// Records a defect. From here on, tokens are only counted, to find the end of the expression.
    fn give_up(&mut self, defect: Defect, token: Token<'_>) {
        self.defect = Some(defect);
        self.pending = self.stack.iter().map(|frame| u64::from(frame.left)).sum();
        if let Token::List(length) = token {
            self.pending += u64::from(length);
        }
        self.stack.clear();
    }

    /// Takes one token. The token is subtracted from what its list still lacks before anything can fail.
    fn step(&mut self, token: Token<'_>, start: usize) -> Result<(), Defect> {
        let depth = self.stack.len();
        let Some(frame) = self.stack.last_mut() else {
            return self.outermost(token, start);
        };
        frame.left -= 1;
        let kind = frame.kind;
        match kind {
            Kind::Message => {
                if self.elements.len() < 8 {
                    self.elements.push(start);
                }
                self.shared.clear();
                self.value(token, start)?;
            }
            Kind::Untyped => {
                let Token::Bytes(name) = token else {
                    return Err(Defect::Untagged);
                };
                if self.old && matches!(name, b"set" | b"frozenset" | b"decimal") {
                    return Err(Defect::TooNew(shown(name)));
                }
                frame.kind = kind_of(name, frame.left)?;
                if frame.kind == Kind::Instance && !self.classes.has(name) {
                    return Err(Defect::UnnamedClass(shown(name)));
                }
                if matches!(frame.kind, Kind::Dictionary | Kind::Set) || name == b"list" {
                    frame.hashable = name == b"frozenset";
                }
            }
            Kind::Values | Kind::ReferenceBody(_) => self.value(token, start)?,
            Kind::Set => self.value(token, start)?,
            Kind::Instance => {
                if frame.length == 3 && frame.left == 1 {
                    let Token::Int(value) = token else {
                        return Err(malformed("instance"));
                    };
                    let luid = value.to_u64().ok_or_else(|| malformed("instance"))?;
                    frame.reference = self.references.len();
                    let (open, end) = (frame.open, self.at);
                    let kind = RefKind::Cache;
                    self.references.push(Reference { kind, luid: Some(luid), open, start, end, close: end });
                } else {
                    self.value(token, start)?;
                }
            }
            Kind::Dictionary => match token {
                Token::List(2) => {
                    if depth >= self.limits.depth {
                        return Err(Defect::TooDeep(self.limits.depth));
                    }
                    self.stack.push(Frame::new(Kind::Pair, 2, start, depth + 1, (self.values, self.bytes)));
                    return Ok(());
                }
                _ => return Err(malformed("dictionary")),
            },
            Kind::Pair => self.value(token, start)?,
            Kind::Nothing | Kind::Full => return Err(malformed("value")),
            Kind::Leaf(leaf) => {
                let Token::Bytes(string) = token else {
                    return Err(malformed(leaf.name()));
                };
                if !leaf.accepts(string) {
                    return Err(malformed(leaf.name()));
                }
                frame.kind = Kind::Full;
            }
            Kind::Decimal => {
                let Token::Int(number) = token else {
                    return Err(malformed("decimal"));
                };
                if frame.left == 0 && number.to_i64().is_none() {
                    return Err(malformed("decimal"));
                }
            }
            Kind::ReferenceId => {
                let id = number(token).ok_or_else(|| malformed("reference"))?;
                frame.kind = Kind::ReferenceBody(id);
                let shared = SharedValue { at: self.at, done: None };
                if self.shared.insert(id, shared).is_some() {
                    return Err(Defect::DuplicateReference(id));
                }
            }
            Kind::DereferenceId => {
                let id = number(token).ok_or_else(|| malformed("dereference"))?;
                frame.kind = Kind::Full;
                let frames = self.stack.split_last_mut();
                let Some((frame, around)) = frames else { return Err(malformed("dereference")) };
                match self.shared.get(&id) {
                    Some(SharedValue { done: Some((values, bytes, levels, hashable)), .. }) => {
                        frame.hashable = *hashable;
                        frame.deepest = frame.deepest.max(depth + levels);
                        self.values = self.values.saturating_add(*values);
                        self.bytes = self.bytes.saturating_add(*bytes);
                        if depth + levels > self.limits.depth {
                            return Err(Defect::TooDeep(self.limits.depth));
                        }
                    }
                    // Inside its own definition: a cycle. It is for untyped values only, which share the value and never expand it.
                    // A value that is nothing but a use of itself has no definition.
                    Some(SharedValue { done: None, .. }) if names_itself(around, id) => {
                        return Err(Defect::Dangling(id));
                    }
                    Some(SharedValue { done: None, .. }) => {}
                    // Nobody could tell yet what a use before the definition expands to.
                    None => return Err(Defect::Dangling(id)),
                }
                self.charge(0)?;
            }
            Kind::Handle(kind) => {
                let luid = match token {
                    // A number that no table can have is not a reference.
                    Token::Int(value) => Some(value.to_u64().ok_or_else(|| malformed(handle_name(kind)))?),
                    Token::Bytes(_) if kind == RefKind::Local => None,
                    _ => return Err(malformed(handle_name(kind))),
                };
                frame.kind = Kind::Full;
                let open = frame.open;
                self.references.push(Reference { kind, luid, open, start, end: self.at, close: self.at });
            }
        }
        self.close()
    }

    fn outermost(&mut self, token: Token<'_>, start: usize) -> Result<(), Defect> {
        match (self.shape, token) {
            (Shape::Message, Token::List(length)) => {
                self.count = length as usize;
                self.stack.push(Frame::new(Kind::Message, length, start, 1, (0, 0)));
                self.close()
            }
            (Shape::Message, _) => Ok(()),
            (Shape::Value, _) => {
                self.value(token, start)?;
                self.close()
            }
        }
    }

    /// Takes a token in the place of a value: an atom, or the list that begins a typed value.
    fn value(&mut self, token: Token<'_>, start: usize) -> Result<(), Defect> {
        self.charge(1)?;
        if let Token::List(length) = token {
            let depth = self.stack.len();
            if depth >= self.limits.depth {
                return Err(Defect::TooDeep(self.limits.depth));
            }
            if length == 0 {
                return Err(Defect::Untagged);
            }
            self.stack.push(Frame::new(Kind::Untyped, length, start, depth + 1, (self.values - 1, self.bytes)));
        }
        Ok(())
    }

    fn charge(&mut self, values: u64) -> Result<(), Defect> {
        self.values = self.values.saturating_add(values);
        if self.values > self.limits.values {
            return Err(Defect::TooManyValues(self.limits.values));
        }
        let most = (self.limits.expression as u64).saturating_mul(EXPANSION).min(expansion(self.at));
        if self.bytes > most { Err(Defect::TooLarge(most)) } else { Ok(()) }
    }

    /// Pops every complete list, and makes the checks that need the complete list.
    fn close(&mut self) -> Result<(), Defect> {
        while let Some(frame) = self.stack.last() {
            // A pair's key is complete when its value has not begun.
            if frame.left > 0 {
                return Ok(());
            }
            let frame = *frame;
            self.stack.pop();
            match frame.kind {
                Kind::Leaf(leaf) => return Err(malformed(leaf.name())),
                Kind::ReferenceId => return Err(malformed("reference")),
                Kind::DereferenceId => return Err(malformed("dereference")),
                Kind::Handle(kind) => return Err(malformed(handle_name(kind))),
                Kind::Untyped => return Err(Defect::Untagged),
                Kind::ReferenceBody(id) => {
                    let depth = self.stack.len() + 1;
                    if let Some(shared) = self.shared.get_mut(&id) {
                        let values = self.values.saturating_sub(frame.values);
                        let bytes = self.bytes.saturating_sub(frame.bytes);
                        shared.done = Some((values, bytes, frame.deepest.saturating_sub(depth), frame.hashable));
                    }
                }
                Kind::Instance if frame.length == 3 => {
                    if let Some(reference) = self.references.get_mut(frame.reference) {
                        reference.close = self.at;
                    }
                }
                _ => {}
            }
            if let Some(parent) = self.stack.last_mut() {
                parent.deepest = parent.deepest.max(frame.deepest);
                match parent.kind {
                    Kind::Pair if parent.left == 1 && !frame.hashable => return Err(Defect::Unhashable),
                    Kind::Set if !frame.hashable => return Err(Defect::Unhashable),
                    Kind::Values | Kind::ReferenceBody(_) => parent.hashable &= frame.hashable,
                    _ => {}
                }
            }
        }
        Ok(())
    }
}

impl Frame {
    fn new(kind: Kind, length: u32, open: usize, depth: usize, (values, bytes): (u64, u64)) -> Self {
        Self { kind, left: length, length, open, deepest: depth, hashable: true, values, bytes, reference: 0 }
    }
}

impl Leaf {
    fn name(self) -> &'static str {
        match self {
            Self::Boolean => "boolean",
            Self::Unicode => "unicode",
            Self::DateTime => "datetime",
            Self::Date => "date",
            Self::Time => "time",
            Self::TimeDelta => "timedelta",
        }
    }

    fn accepts(self, string: &[u8]) -> bool {
        let text = || std::str::from_utf8(string);
        match self {
            Self::Boolean => matches!(string, b"true" | b"false"),
            Self::Unicode => text().is_ok(),
            Self::DateTime => text().is_ok_and(|text| text.parse::<types::DateTime>().is_ok()),
            Self::Date => text().is_ok_and(|text| text.parse::<types::Date>().is_ok()),
            Self::Time => text().is_ok_and(|text| text.parse::<types::Time>().is_ok()),
            Self::TimeDelta => text().is_ok_and(|text| text.parse::<types::TimeDelta>().is_ok()),
        }
    }
}

/// Whether the value in these lists is the whole value of `(reference id …)`, perhaps under further names.
fn names_itself(around: &[Frame], id: u64) -> bool {
    let names = around.iter().rev().map_while(|frame| match frame.kind {
        Kind::ReferenceBody(name) => Some(name),
        _ => None,
    });
    names.into_iter().any(|name| name == id)
}

/// The content that follows a type's name. `rest` is the number of elements that follow.
fn kind_of(name: &[u8], rest: u32) -> Result<Kind, Defect> {
    let exactly = |count: u32, kind: Kind| {
        if rest == count { Ok(kind) } else { Err(malformed(&String::from_utf8_lossy(name))) }
    };
    match name {
        b"list" | b"tuple" => Ok(Kind::Values),
        b"unicode" => exactly(1, Kind::Leaf(Leaf::Unicode)),
        b"dictionary" => Ok(Kind::Dictionary),
        b"None" => exactly(0, Kind::Nothing),
        b"boolean" => exactly(1, Kind::Leaf(Leaf::Boolean)),
        b"set" | b"frozenset" => Ok(Kind::Set),
        b"reference" => exactly(2, Kind::ReferenceId),
        b"dereference" => exactly(1, Kind::DereferenceId),
        b"remote" => exactly(1, Kind::Handle(RefKind::Remote)),
        b"local" => exactly(1, Kind::Handle(RefKind::Local)),
        b"cached" => exactly(1, Kind::Handle(RefKind::Cached)),
        b"lcache" => exactly(1, Kind::Handle(RefKind::Lcache)),
        b"datetime" => exactly(1, Kind::Leaf(Leaf::DateTime)),
        b"date" => exactly(1, Kind::Leaf(Leaf::Date)),
        b"time" => exactly(1, Kind::Leaf(Leaf::Time)),
        b"timedelta" => exactly(1, Kind::Leaf(Leaf::TimeDelta)),
        b"decimal" => exactly(2, Kind::Decimal),
        b"unpersistable" => exactly(1, Kind::Values),
        // A class has a module. A stock peer cannot read any other tag.
        _ if !name.contains(&b'.') => Err(Defect::Insecure(shown(name))),
        _ => match rest {
            1 | 2 => Ok(Kind::Instance),
            _ => Err(malformed(&String::from_utf8_lossy(name))),
        },
    }
}

/// A type's name for an error, shortened to 64 characters.
fn shown(name: &[u8]) -> String {
    String::from_utf8_lossy(name).chars().take(64).collect()
}

fn handle_name(kind: RefKind) -> &'static str {
    match kind {
        RefKind::Remote => "remote",
        RefKind::Local => "local",
        RefKind::Cached => "cached",
        RefKind::Lcache => "lcache",
        RefKind::Cache => "cache",
    }
}

fn malformed(what: &str) -> Defect {
    Defect::Malformed(what.chars().take(64).collect())
}

fn number(token: Token<'_>) -> Option<u64> {
    match token {
        Token::Int(value) => value.to_u64(),
        _ => None,
    }
}

#[cfg(test)]
mod tests;
