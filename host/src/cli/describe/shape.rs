//! Types as a service's author has written them, in a client's terms.

use plugin_api::manifest::TypeManifest;

/// The type of a value, as a client sees it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    Nothing,
    Text,
    /// A whole number, with its type in Rust.
    Int(&'static str),
    Float,
    Bool,
    Bytes,
    List(Box<Shape>),
    Set(Box<Shape>),
    Dict(Box<Shape>, Box<Shape>),
    Tuple(Vec<Shape>),
    /// One that may be left out, or be None.
    Maybe(Box<Shape>),
    /// A reference to an object of the service's.
    Object(String),
    /// A reference to an object of the client's own.
    Own,
    /// A copy that is kept up to date.
    Cached(String),
    /// One of Python's `datetime` or `decimal`: its name there.
    Python(&'static str),
    /// A type of the service's own.
    Named(String),
    Any,
}

/// What a generated module has types of its own for.
#[derive(Default)]
pub(super) struct Known<'m> {
    /// Values that are dictionaries.
    pub(super) types: Vec<&'m TypeManifest>,
    /// The client's mind, which the service calls back.
    pub(super) mind: Option<&'m str>,
}

impl Known<'_> {
    pub(super) fn has(&self, name: &str) -> bool {
        self.types.iter().any(|of| of.name == name)
    }

    fn is_mind(&self, name: &str) -> bool {
        self.mind == Some(name)
    }
}

/// The parts between the commas that are outside of brackets.
fn parts(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut found) = (0, 0, Vec::new());
    for (at, letter) in text.char_indices() {
        match letter {
            '<' | '(' | '[' => depth += 1,
            '>' | ')' | ']' => depth -= 1,
            ',' if depth == 0 => {
                found.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    found.push(&text[start..]);
    found.into_iter().map(str::trim).filter(|part| !part.is_empty()).collect()
}

impl Shape {
    /// The shape of a type, as it is written in Rust.
    pub(super) fn of(written: &str) -> Self {
        let mut text = written.trim();
        while let Some(rest) = text.strip_prefix('&') {
            text = rest.trim_start();
            if text.starts_with('\'') {
                text = text.split_once(' ').map_or("", |(_, rest)| rest.trim_start());
            }
            text = text.strip_prefix("mut ").unwrap_or(text);
        }
        if text.is_empty() || text == "()" {
            return Self::Nothing;
        }
        if let Some(inner) = text.strip_prefix('(').and_then(|rest| rest.strip_suffix(')')) {
            return Self::Tuple(parts(inner).into_iter().map(Self::of).collect());
        }
        if let Some(inner) = text.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            return Self::List(Box::new(Self::of(inner.split(';').next().unwrap_or_default())));
        }
        let (path, arguments) = match text.split_once('<') {
            Some((path, rest)) => (path, parts(rest.strip_suffix('>').unwrap_or(rest))),
            None => (text, Vec::new()),
        };
        let name = path.trim().rsplit("::").next().unwrap_or_default().trim();
        Self::named(name, &arguments)
    }

    fn named(name: &str, arguments: &[&str]) -> Self {
        if let Some(integer) = integer(name) {
            return Self::Int(integer);
        }
        let first = || Box::new(arguments.first().map_or(Self::Any, |first| Self::of(first)));
        match name {
            "String" | "str" | "char" => Self::Text,
            "bool" => Self::Bool,
            "f32" | "f64" => Self::Float,
            "BigInt" => Self::Int("pb::jelly::BigInt"),
            "Bytes" => Self::Bytes,
            "Value" => Self::Any,
            "Remote" => Self::Own,
            "AnyHandle" => Self::Object("object".to_owned()),
            "Handle" => Self::Object(arguments.first().map_or_else(|| "object".to_owned(), |of| (*of).to_owned())),
            "Cached" => Self::Cached(arguments.first().map_or_else(|| "object".to_owned(), |of| (*of).to_owned())),
            "Option" => Self::Maybe(first()),
            "Result" | "Box" | "Rc" | "Arc" => *first(),
            "Cow" => arguments.last().map_or(Self::Any, |of| Self::of(of)),
            "Vec" | "VecDeque" => Self::List(first()),
            "Set" | "FrozenSet" => Self::Set(first()),
            // Written as lists.
            "HashSet" | "BTreeSet" => Self::List(first()),
            "HashMap" | "BTreeMap" | "IndexMap" => {
                Self::Dict(first(), Box::new(arguments.get(1).map_or(Self::Any, |value| Self::of(value))))
            }
            "DateTime" => Self::Python("datetime.datetime"),
            "Date" => Self::Python("datetime.date"),
            "Time" => Self::Python("datetime.time"),
            "TimeDelta" => Self::Python("datetime.timedelta"),
            "Decimal" => Self::Python("decimal.Decimal"),
            name => Self::Named(name.to_owned()),
        }
    }

    /// Whether an argument of it may be left out.
    pub(super) fn is_optional(&self) -> bool {
        matches!(self, Self::Maybe(_))
    }

    /// The type of a list's elements, or of a dictionary's values.
    pub(super) fn element(&self) -> &Self {
        match self {
            Self::List(of) | Self::Set(of) | Self::Dict(_, of) => of,
            other => other,
        }
    }

    /// In words.
    pub(super) fn words(&self) -> String {
        match self {
            Self::Nothing => "None".to_owned(),
            Self::Text => "text".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Float => "float".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::List(of) => format!("list of {}", of.words()),
            Self::Set(of) => format!("set of {}", of.words()),
            Self::Dict(key, value) => format!("dict of {} to {}", key.words(), value.words()),
            Self::Tuple(of) => format!("({})", of.iter().map(Self::words).collect::<Vec<_>>().join(", ")),
            Self::Maybe(of) => format!("{} or None", of.words()),
            Self::Object(of) => format!("reference to {of}"),
            Self::Own => "object of the client's own".to_owned(),
            Self::Cached(of) => format!("cached {of}"),
            Self::Python(name) => (*name).to_owned(),
            Self::Named(name) => name.clone(),
            Self::Any => "any value".to_owned(),
        }
    }

    /// As an annotation in Python. `known`: types that have a class in the module.
    pub(super) fn python(&self, known: &Known<'_>) -> String {
        match self {
            Self::Nothing => "None".to_owned(),
            Self::Text => "str".to_owned(),
            Self::Int(_) => "int".to_owned(),
            Self::Float => "float".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Bytes => "bytes".to_owned(),
            Self::List(of) => format!("List[{}]", of.python(known)),
            Self::Set(of) => format!("Set[{}]", of.python(known)),
            Self::Dict(key, value) => format!("Dict[{}, {}]", key.python(known), value.python(known)),
            Self::Tuple(of) => {
                format!("Tuple[{}]", of.iter().map(|of| of.python(known)).collect::<Vec<_>>().join(", "))
            }
            Self::Maybe(of) => format!("{} | None", of.python(known)),
            Self::Object(_) => "pb.RemoteReference".to_owned(),
            Self::Own => "pb.Referenceable".to_owned(),
            Self::Cached(_) => "pb.RemoteCache".to_owned(),
            Self::Python(name) => (*name).to_owned(),
            Self::Named(name) if known.has(name) => name.clone(),
            Self::Named(name) if known.is_mind(name) => "pb.Referenceable".to_owned(),
            Self::Named(_) | Self::Any => "Any".to_owned(),
        }
    }

    /// As a type in Rust: of an argument if `given`, otherwise of an answer. `known`: types that have a struct in the module.
    pub(super) fn rust(&self, given: bool, known: &Known<'_>) -> String {
        match self {
            Self::Nothing => "()".to_owned(),
            Self::Text if given => "&str".to_owned(),
            Self::Text => "String".to_owned(),
            Self::Int(integer) => (*integer).to_owned(),
            Self::Float => "f64".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Bytes => "pb::jelly::Bytes".to_owned(),
            Self::List(of) if given => format!("&[{}]", of.rust(true, known)),
            Self::List(of) | Self::Set(of) => format!("Vec<{}>", of.rust(given, known)),
            Self::Dict(key, value) => {
                format!("std::collections::BTreeMap<{}, {}>", key.rust(given, known), value.rust(given, known))
            }
            Self::Tuple(of) => {
                let comma = if of.len() == 1 { "," } else { "" };
                format!("({}{comma})", of.iter().map(|of| of.rust(given, known)).collect::<Vec<_>>().join(", "))
            }
            Self::Maybe(of) => format!("Option<{}>", of.rust(given, known)),
            Self::Object(_) => "pb::client::Remote".to_owned(),
            Self::Own => "pb::client::Local".to_owned(),
            Self::Named(name) if known.has(name) => name.clone(),
            Self::Named(name) if known.is_mind(name) => "pb::client::Local".to_owned(),
            Self::Cached(_) | Self::Python(_) | Self::Named(_) | Self::Any => "pb::jelly::Value".to_owned(),
        }
    }
}

/// The type of a client's integers for a service's. Those that depend on the machine have 64 bits.
fn integer(name: &str) -> Option<&'static str> {
    const ALL: [&str; 10] = ["u8", "u16", "u32", "u64", "u128", "i8", "i16", "i32", "i64", "i128"];
    match name {
        "usize" => Some("u64"),
        "isize" => Some("i64"),
        name => ALL.into_iter().find(|integer| *integer == name),
    }
}

/// A method's signature, parsed.
pub(super) struct Signature<'a> {
    pub(super) name: &'a str,
    pub(super) doc: &'a str,
    pub(super) parameters: Vec<(&'a str, Shape)>,
    pub(super) returns: Shape,
    pub(super) raises: &'a [String],
}

impl<'a> Signature<'a> {
    pub(super) fn of(method: &'a plugin_api::manifest::MethodManifest) -> Self {
        let rest = method.signature.split_once('(').map_or("", |(_, rest)| rest);
        let mut depth = 0;
        let end = rest.char_indices().find(|(_, letter)| {
            depth += match letter {
                '(' | '<' | '[' => 1,
                ')' if depth == 0 => return true,
                ')' | '>' | ']' => -1,
                _ => 0,
            };
            false
        });
        let (inside, after) = end.map_or((rest, ""), |(at, _)| (&rest[..at], &rest[at + 1..]));
        let parameter = |text: &'a str| {
            let (name, kind) = text.split_once(':')?;
            Some((name.trim(), Shape::of(kind)))
        };
        Self {
            name: &method.name,
            doc: &method.doc,
            parameters: parts(inside).into_iter().filter_map(parameter).collect(),
            returns: Shape::of(after.trim().trim_start_matches("->")),
            raises: &method.raises,
        }
    }

    /// `add(text: text) -> int`
    pub(super) fn words(&self) -> String {
        let parameters: Vec<String> =
            self.parameters.iter().map(|(name, shape)| format!("{name}: {}", shape.words())).collect();
        let returns = match &self.returns {
            Shape::Nothing => String::new(),
            returns => format!(" -> {}", returns.words()),
        };
        format!("{}({}){returns}", self.name, parameters.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_described_in_a_clients_words() {
        for (written, words, python, rust) in [
            ("String", "text", "str", "String"),
            ("&'static str", "text", "str", "String"),
            ("usize", "int", "int", "u64"),
            ("i32", "int", "int", "i32"),
            ("BigInt", "int", "int", "pb::jelly::BigInt"),
            ("Result<()>", "None", "None", "()"),
            ("", "None", "None", "()"),
            ("Result<Vec<String>, Fault>", "list of text", "List[str]", "Vec<String>"),
            ("&[Task]", "list of Task", "List[Any]", "Vec<pb::jelly::Value>"),
            ("[u8; 4]", "list of int", "List[int]", "Vec<u8>"),
            ("Option<bool>", "bool or None", "bool | None", "Option<bool>"),
            ("(u8, f64)", "(int, float)", "Tuple[int, float]", "(u8, f64)"),
            (
                "std::collections::HashMap<String, Vec<u64>>",
                "dict of text to list of int",
                "Dict[str, List[int]]",
                "std::collections::BTreeMap<String, Vec<u64>>",
            ),
            ("Handle<Room>", "reference to Room", "pb.RemoteReference", "pb::client::Remote"),
            ("Cached<Score>", "cached Score", "pb.RemoteCache", "pb::jelly::Value"),
            ("plugin_api::DateTime", "datetime.datetime", "datetime.datetime", "pb::jelly::Value"),
            ("Value", "any value", "Any", "pb::jelly::Value"),
            ("Cow<'static, str>", "text", "str", "String"),
        ] {
            let shape = Shape::of(written);
            assert_eq!(
                (
                    shape.words().as_str(),
                    shape.python(&Known::default()).as_str(),
                    shape.rust(false, &Known::default()).as_str()
                ),
                (words, python, rust)
            );
        }
    }

    #[test]
    fn any_text_is_read_as_a_type_without_a_panic() {
        for odd in [
            "<",
            ">",
            "Vec<",
            "&",
            "&'",
            "((",
            "[;",
            "Vec<Vec<Vec<u8>>>>>",
            "Option<,>",
            "impl Fn(u8) -> u8",
            "dyn A + B",
        ] {
            let _ = Shape::of(odd).words();
        }
    }
}
