//! Typed clients of a service, written from what it says of itself.

use plugin_api::manifest::{FieldManifest, Manifest, MindManifest, TypeManifest};

use super::shape::{Known, Shape, Signature};

/// Words that Python keeps to itself, and names that the class has.
const PYTHON: [&str; 38] = [
    "False",
    "None",
    "True",
    "and",
    "as",
    "assert",
    "async",
    "await",
    "break",
    "class",
    "continue",
    "def",
    "del",
    "elif",
    "else",
    "except",
    "finally",
    "for",
    "from",
    "global",
    "if",
    "import",
    "in",
    "is",
    "lambda",
    "nonlocal",
    "not",
    "or",
    "pass",
    "raise",
    "return",
    "try",
    "while",
    "with",
    "yield",
    "self",
    "login",
    "perspective",
];
/// The same of Rust, as far as a method of a service can have such a name.
const RUST: [&str; 2] = ["login", "perspective"];

/// The name of a class for a service: `my-service` is MyService.
fn class(service: &str) -> String {
    let words = service.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty());
    let name: String = words
        .map(|word| {
            let mut letters = word.chars();
            letters.next().map(|first| first.to_uppercase().chain(letters).collect::<String>()).unwrap_or_default()
        })
        .collect();
    if name.chars().next().is_none_or(char::is_numeric) { format!("Service{name}") } else { name }
}

/// A doc comment as lines, each with this before it.
fn comment(doc: &str, before: &str) -> String {
    // What ends a line in other ways would end the comment.
    let line = |line: &str| format!("{before} {}", line.replace(char::is_control, " ")).trim_end().to_owned() + "\n";
    doc.lines().map(line).collect()
}

fn signatures(manifest: &Manifest) -> Vec<Signature<'_>> {
    manifest.methods.iter().map(Signature::of).collect()
}

/// Names that the modules use themselves: a type of one of these would take its place.
const TAKEN: [&str; 40] = [
    "Any",
    "Dict",
    "List",
    "Set",
    "Tuple",
    "TypedDict",
    "NotRequired",
    "UsernamePassword",
    "Deferred",
    "pb",
    "datetime",
    "decimal",
    "str",
    "int",
    "float",
    "bool",
    "bytes",
    "None",
    "True",
    "False",
    "Vec",
    "Option",
    "Box",
    "String",
    "Result",
    "Ok",
    "Err",
    "Some",
    "Self",
    "std",
    "i64",
    "f64",
    "serde",
    "Debug",
    "Clone",
    "PartialEq",
    "Serialize",
    "Deserialize",
    "PhantomData",
    "Default",
];

/// Types whose values are dictionaries with fields that are known: they have a type of their own in a module.
fn known(manifest: &Manifest) -> Known<'_> {
    let own = class(&manifest.service);
    let named = |name: &str| identifier(name) == name && name != own && !TAKEN.contains(&name) && raw(name) == name;
    let whole = |of: &&TypeManifest| of.class.is_empty() && !of.fields.is_empty() && named(&of.name);
    let mind = manifest.mind.as_ref().map(|mind| mind.name.as_str());
    Known { types: manifest.types.iter().filter(whole).collect(), mind }
}

/// Names that differ: one that was there before has an underscore behind it.
fn unlike(name: String, before: &mut Vec<String>) -> String {
    let mut name = name;
    while before.contains(&name) {
        name.push('_');
    }
    before.push(name.clone());
    name
}

/// What is said of a method, with the errors that it answers with.
fn about_method(doc: &str, raises: &[String]) -> String {
    match raises {
        [] => doc.to_owned(),
        raises if doc.is_empty() => format!("Raises {}.", raises.join(", ")),
        raises => format!("{doc}\n\nRaises {}.", raises.join(", ")),
    }
}

/// A dictionary with these keys, for Python.
fn typed_dict(of: &TypeManifest, known: &Known<'_>) -> String {
    let kind = |field: &FieldManifest| {
        let kind = Shape::of(&field.r#type).python(known);
        if field.optional { format!("NotRequired[{kind}]") } else { kind }
    };
    let is_name = |name: &str| {
        !PYTHON.contains(&name)
            && !name.starts_with(|first: char| first.is_ascii_digit())
            && name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_')
    };
    if !of.fields.iter().all(|field| is_name(&field.name)) {
        let fields = of.fields.iter().map(|field| format!("{}: {}", quoted(&field.name), quoted(&kind(field))));
        let fields = fields.collect::<Vec<_>>().join(", ");
        return format!("\n\n{} = TypedDict({}, {{{fields}}})\n", of.name, quoted(&of.name));
    }
    let mut out = format!("\n\nclass {}(TypedDict):\n", of.name);
    out += &doc_string(if of.doc.is_empty() { "A value of the service's." } else { &of.doc }, "    ");
    for field in &of.fields {
        out += "\n";
        out += &comment(&field.doc, "    #");
        out += &format!("    {}: {}\n", field.name, kind(field));
    }
    out
}

/// What the client gives to be called back, for Python: to be derived from.
fn python_mind(mind: &MindManifest, of: &str, known: &Known<'_>) -> String {
    let own = class(&mind.name);
    let taken = own == of || known.has(&own) || TAKEN.contains(&&*own);
    let mut out = format!("\n\nclass {own}{}(pb.Referenceable):\n", if taken { "Mind" } else { "" });
    let doc = if mind.doc.is_empty() { "What the service calls." } else { &mind.doc };
    out += &doc_string(&format!("{doc}\n\nDerive from it, and give one as the mind."), "    ");
    for (at, method) in mind.methods.iter().map(Signature::of).enumerate() {
        // A service may have two ways to call one method: the last is the one that is told of.
        if mind.methods[at + 1..].iter().any(|later| later.name == method.name) {
            continue;
        }
        if identifier(method.name) != method.name {
            out += &format!("\n    # {} is nothing that a method of Python's can be called.\n", quoted(method.name));
            continue;
        }
        let named = |name: &str| format!("{}{}", identifier(name), if PYTHON.contains(&name) { "_" } else { "" });
        let parameters = method.parameters.iter().map(|(name, of)| format!(", {}: {}", named(name), of.python(known)));
        let (parameters, returns) = (parameters.collect::<String>(), method.returns.python(known));
        out += &format!("\n    def remote_{}(self{parameters}) -> {returns}:\n", method.name);
        if !method.doc.is_empty() {
            out += &doc_string(method.doc, "        ");
        }
        out += "        raise NotImplementedError\n";
    }
    out
}

/// A name that both languages can have: what cannot be in one is an underscore.
fn identifier(name: &str) -> String {
    let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let bad = name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit());
    if bad { format!("_{name}") } else { name }
}

/// A text in quotes, as Python reads it.
fn quoted(text: &str) -> String {
    // What JSON escapes, Python reads as the same.
    serde_json::Value::from(text).to_string()
}

/// A doc string, which ends where it is to end.
fn doc_string(doc: &str, indent: &str) -> String {
    let safe = doc.replace('\\', "\\\\").replace('"', "\\\"");
    let lines: Vec<String> = safe.lines().map(|line| line.trim_end().to_owned()).collect();
    let text = lines.join(&format!("\n{indent}")).replace(&format!("\n{indent}\n"), "\n\n");
    format!("{indent}\"\"\"{text}\"\"\"\n")
}

/// A module for Python, on Twisted.
pub(super) fn python(manifest: &Manifest) -> String {
    let (class, known) = (class(&manifest.service), known(manifest));
    let about = |doc: &str, more: &str| if doc.is_empty() { more.to_owned() } else { format!("{doc}\n\n{more}") };
    let written = format!("Written by `credhost describe --python {}`. Needs Twisted.", manifest.service);
    let mut out = doc_string(&about(&manifest.doc, &written), "");
    out += "\nfrom __future__ import annotations\n\nimport datetime\nimport decimal\nfrom typing import Any, Dict, List, Set, Tuple, TypedDict\n\n";
    if known.types.iter().any(|of| of.fields.iter().any(|field| field.optional)) {
        out += "from typing_extensions import NotRequired\n\n";
    }
    out += "from twisted.cred.credentials import UsernamePassword\nfrom twisted.internet.defer import Deferred\n";
    out += "from twisted.spread import pb\n";
    known.types.iter().for_each(|of| out += &typed_dict(of, &known));
    out += &manifest.mind.as_ref().map(|mind| python_mind(mind, &class, &known)).unwrap_or_default();
    out += &format!("\n\nclass {class}:\n");
    let doc =
        if manifest.perspective_doc.is_empty() { "A perspective of the service." } else { &manifest.perspective_doc };
    out += &doc_string(doc, "    ");
    let service = quoted(&manifest.service);
    out += &format!(
        "
    def __init__(self, perspective: pb.RemoteReference) -> None:
        self.perspective = perspective

    @classmethod
    def login(
        cls,
        factory: pb.PBClientFactory,
        name: str,
        password: str,
        mind: pb.Referenceable | None = None,
        perspective: str | None = None,
    ) -> Deferred[{class}]:
        \"\"\"Logs in by a factory that connects, as with reactor.connectTCP(host, port, factory).\"\"\"
        path = [name, {service}] + ([perspective] if perspective else [])
        credentials = UsernamePassword(\"/\".join(path).encode(), password.encode())
        return factory.login(credentials, mind).addCallback(cls)
"
    );
    let mut names = Vec::new();
    for method in signatures(manifest) {
        let safe = |name: &str| format!("{}{}", identifier(name), if PYTHON.contains(&name) { "_" } else { "" });
        // Those that take what is left come last.
        let plain: Vec<_> = method.parameters.iter().filter(|(name, _)| !name.starts_with('*')).collect();
        let rest = || method.parameters.iter().filter_map(|(name, of)| Some((stars(name)?, of)));
        // What may be left out must come last: what comes before it then may not.
        let last_needed = plain.iter().rposition(|(_, shape)| !shape.is_optional());
        let parameters = plain.iter().enumerate().map(|(at, (name, shape))| {
            let default = if last_needed.is_none_or(|needed| at > needed) { " = None" } else { "" };
            format!(", {}: {}{default}", safe(name), shape.python(&known))
        });
        let more =
            rest().map(|((stars, name), of)| format!(", {stars}{}: {}", safe(name), of.element().python(&known)));
        let parameters: String = parameters.chain(more).collect();
        let arguments = plain.iter().map(|(name, _)| format!(", {}", safe(name)));
        let more = rest().map(|((stars, name), _)| format!(", {stars}{}", safe(name)));
        let arguments: String = arguments.chain(more).collect();
        let name = unlike(safe(method.name), &mut names);
        out += &format!("\n    def {name}(self{parameters}) -> Deferred[{}]:\n", method.returns.python(&known));
        let doc = about_method(method.doc, method.raises);
        if !doc.is_empty() {
            out += &doc_string(&doc, "        ");
        }
        out += &format!("        return self.perspective.callRemote({}{arguments})\n", quoted(method.name));
    }
    out
}

/// The stars before the name of a parameter that takes what is left, and the name.
fn stars(name: &str) -> Option<(&'static str, &str)> {
    let of = |stars| Some((stars, name.strip_prefix(stars)?));
    of("**").or_else(|| of("*"))
}

/// A module for Rust, on `pb::client`.
pub(super) fn rust(manifest: &Manifest) -> String {
    let (class, known) = (class(&manifest.service), known(manifest));
    let mut out = comment(&manifest.doc, "//!");
    if !out.is_empty() {
        out += "//!\n";
    }
    out += &format!(
        "//! Written by `credhost describe --rust {}`. Needs the crate `pb` with its feature `client`{}.\n\n",
        manifest.service.replace(char::is_control, " "),
        if known.types.is_empty() { "" } else { ", and serde with its feature `derive`" },
    );
    let signatures = signatures(manifest);
    if !known.types.is_empty() {
        out += "use serde::{Deserialize, Serialize};\n\n";
    }
    known.types.iter().for_each(|of| out += &structure(of, &known));
    let doc =
        if manifest.perspective_doc.is_empty() { "A perspective of the service." } else { &manifest.perspective_doc };
    out += &comment(doc, "///");
    out += &format!(
        "#[derive(Debug, Clone)]
pub struct {class} {{
    /// What it calls.
    pub perspective: pb::client::Remote,
}}

impl {class} {{
    /// Logs in as an identity, and asks for its perspective.
    ///
    /// # Errors
    /// When it is not let in, has no key, or the connection is lost.
    pub async fn login(
        client: &pb::client::Client,
        name: &str,
        password: &str,
        mind: Option<pb::client::Local>,
    ) -> Result<Self, pb::client::Error> {{
        let path = format!(\"{{name}}/{{}}\", {:?});
        Ok(Self {{ perspective: client.login_password(&path, password, mind).await? }})
    }}
",
        manifest.service
    );
    let mut written = Vec::new();
    for method in &signatures {
        if method.parameters.iter().any(|(name, _)| name.starts_with('*')) {
            out += &format!(
                "\n    // {:?} takes as many arguments as there are: call it by hand, `perspective.call(…)`.\n",
                method.name
            );
            continue;
        }
        let name = if RUST.contains(&method.name) { format!("{}_", method.name) } else { raw(method.name) };
        let name = unlike(name, &mut written);
        let parameters =
            method.parameters.iter().map(|(name, shape)| format!(", {}: {}", raw(name), given(shape, &known)));
        let parameters: String = parameters.collect();
        let names: Vec<String> = method.parameters.iter().map(|(name, _)| raw(name)).collect();
        // One alone is a tuple by its comma.
        let arguments = if names.len() == 1 { format!("{},", names[0]) } else { names.join(", ") };
        let doc =
            about_method(if method.doc.is_empty() { "A method of the service." } else { method.doc }, method.raises);
        let call = format!("self.perspective.call({:?}, &({})).await?", method.name, arguments);
        let answer = match method.returns {
            Shape::Object(_) => format!("{call}.remote()"),
            _ => format!("Ok({call}.read()?)"),
        };
        out += &format!(
            "\n{}    ///\n    /// # Errors\n    /// What the service answers with, and when the connection is lost.\n    pub async fn {name}(&self{parameters}) -> Result<{}, pb::client::Error> {{\n        {answer}\n    }}\n",
            comment(&doc, "    ///"),
            method.returns.rust(false, &known),
        );
    }
    out + "}\n"
}

/// What a parameter is in Rust: what is large is borrowed.
fn given(shape: &Shape, known: &Known<'_>) -> String {
    let written = shape.rust(true, known);
    match shape {
        Shape::Named(name) if *name == written => format!("&{written}"),
        _ => written,
    }
}

/// A struct with these fields, for Rust.
fn structure(of: &TypeManifest, known: &Known<'_>) -> String {
    let mut out = comment(if of.doc.is_empty() { "A value of the service's." } else { &of.doc }, "///");
    out += &format!("#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]\npub struct {} {{\n", of.name);
    let mut names = Vec::new();
    for field in &of.fields {
        out += &comment(if field.doc.is_empty() { "A field of it." } else { &field.doc }, "    ///");
        let own: String = field.name.chars().fold(String::new(), |mut own, letter| {
            match letter {
                upper if upper.is_ascii_uppercase() => {
                    own.extend((!own.is_empty()).then_some('_'));
                    own.push(upper.to_ascii_lowercase());
                }
                letter if letter.is_ascii_alphanumeric() => own.push(letter),
                _ => own.push('_'),
            }
            own
        });
        let own = if own.starts_with(|first: char| first.is_ascii_digit()) { format!("_{own}") } else { own };
        let own = unlike(raw(&own), &mut names);
        if own.trim_start_matches("r#") != field.name {
            out += &format!("    #[serde(rename = {:?})]\n", field.name);
        }
        let kind = Shape::of(&field.r#type).rust(false, known);
        // Types may hold each other.
        let boxed = |kind: String, of: &&TypeManifest| {
            kind.replace(&format!("Option<{}>", of.name), &format!("Option<Box<{}>>", of.name))
        };
        let kind = known.types.iter().fold(kind, boxed);
        let whole = field.optional && matches!(Shape::of(&field.r#type), Shape::Named(_));
        let kind = if whole { format!("Option<{kind}>") } else { kind };
        if field.optional {
            out += "    #[serde(default)]\n";
        }
        out += &format!("    pub {own}: {kind},\n");
    }
    out + "}\n\n"
}

/// A name that may be a word of Rust's.
fn raw(name: &str) -> String {
    // Of all editions, also those that are kept for later.
    const WORDS: [&str; 47] = [
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn", "else", "enum",
        "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
        "move", "mut", "override", "priv", "pub", "ref", "return", "static", "struct", "trait", "true", "try", "type",
        "typeof", "unsafe", "unsized", "use", "virtual", "where", "while",
    ];
    let name = identifier(name);
    match &*name {
        // These cannot be had at all.
        "self" | "Self" | "super" | "crate" | "_" => format!("{name}_"),
        word if WORDS.contains(&word) || word == "yield" => format!("r#{name}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use plugin_api::manifest::{MethodManifest, VariantManifest};

    use super::*;

    /// What stands outside of texts and comments, as Python reads it.
    fn outside(python: &str) -> String {
        let (mut out, mut rest) = (String::new(), python);
        while let Some(letter) = rest.chars().next() {
            let end = ["\"\"\"", "\""].into_iter().find(|quote| rest.starts_with(quote));
            if let Some(end) = end {
                rest = &rest[end.len()..];
                while !rest.starts_with(end) {
                    let skipped = rest.chars().take(1 + usize::from(rest.starts_with('\\'))).map(char::len_utf8).sum();
                    rest = rest.get(skipped..).filter(|rest| !rest.is_empty()).expect("a text has an end");
                }
                rest = &rest[end.len()..];
            } else if letter == '#' {
                rest = rest.find(['\n', '\r']).map_or("", |end| &rest[end..]);
            } else {
                out.push(letter);
                rest = &rest[letter.len_utf8()..];
            }
        }
        out
    }

    /// A library may say anything of itself, and what is written from that is run.
    #[test]
    fn whatever_a_manifest_says_is_no_code() {
        let odd = "x\r\nimport os #\u{2028}\u{c}'\"\"\"\\";
        let method = || MethodManifest {
            name: odd.to_owned(),
            signature: format!("{odd}({odd}: String, class: {odd}) -> Vec<{odd}>"),
            doc: odd.to_owned(),
            raises: vec![odd.to_owned()],
            ..MethodManifest::default()
        };
        let field =
            || FieldManifest { name: odd.to_owned(), r#type: odd.to_owned(), doc: odd.to_owned(), optional: true };
        let (fields, doc) = (vec![field(), field()], odd.to_owned());
        let data = |name: &str| TypeManifest {
            name: name.to_owned(),
            class: String::new(),
            doc: doc.clone(),
            fields: fields.clone(),
            variants: vec![VariantManifest { name: odd.to_owned(), doc: doc.clone(), fields: Vec::new() }],
        };
        let manifest = Manifest {
            service: odd.to_owned(),
            doc: doc.clone(),
            perspective_doc: doc.clone(),
            methods: vec![method()],
            types: vec![data(odd), data("Plain")],
            mind: Some(MindManifest { name: odd.to_owned(), doc: doc.clone(), methods: vec![method()] }),
            ..Manifest::default()
        };
        assert!(!outside(&python(&manifest)).contains("import os"), "{}", python(&manifest));
        for line in rust(&manifest).split(['\n', '\r']) {
            let code = line.trim_start();
            assert!(
                !code.starts_with("import") && !code.contains("os #") || code.starts_with("//") || code.contains('"'),
                "{line:?}"
            );
        }
    }

    #[test]
    fn what_takes_all_that_is_left_is_called_with_it() {
        let method = MethodManifest {
            name: "all".to_owned(),
            signature: "all(first: i64, *more: Vec<String>, **named: HashMap<String, Value>) -> Vec<Value>".to_owned(),
            ..MethodManifest::default()
        };
        let manifest = Manifest { service: "x".to_owned(), methods: vec![method], ..Manifest::default() };
        let python = python(&manifest);
        assert!(
            python.contains("def all(self, first: int, *more: str, **named: Any) -> Deferred[List[Any]]:"),
            "{python}"
        );
        assert!(python.contains("callRemote(\"all\", first, *more, **named)"), "{python}");
        assert!(rust(&manifest).contains("// \"all\" takes as many arguments"), "{}", rust(&manifest));
    }

    #[test]
    fn names_that_are_taken_or_kept_are_written_in_another_way() {
        let method = |name: &str, signature: &str| MethodManifest {
            name: name.to_owned(),
            signature: format!("{name}{signature}"),
            ..MethodManifest::default()
        };
        let field = |name: &str, kind: &str| FieldManifest {
            name: name.to_owned(),
            r#type: kind.to_owned(),
            ..FieldManifest::default()
        };
        let data = |name: &str, fields: Vec<FieldManifest>| TypeManifest {
            name: name.to_owned(),
            fields,
            ..TypeManifest::default()
        };
        let manifest = Manifest {
            service: "x".to_owned(),
            methods: vec![
                method("x-y", "(in: u8, self: u8)"),
                method("x_y", "(ear: Ear) -> List"),
                method("for", "() -> One"),
            ],
            types: vec![
                data("List", vec![field("a", "u8")]),
                data("One", vec![field("userId", "u8"), field("user_id", "u8"), field("other", "Option<Other>")]),
                data("Other", vec![field("one", "Option<One>"), field("const", "u8")]),
            ],
            mind: Some(MindManifest { name: "Ear".to_owned(), ..MindManifest::default() }),
            ..Manifest::default()
        };
        let rust = rust(&manifest);
        for part in [
            "pub async fn x_y(&self, r#in: i64, self_: i64)",
            "pub async fn x_y_(&self, ear: pb::client::Local) -> Result<pb::jelly::Value, pb::client::Error>",
            "pub async fn r#for(&self) -> Result<One, pb::client::Error>",
            "pub user_id: i64",
            "pub user_id_: i64",
            "pub other: Option<Box<Other>>",
            "pub one: Option<Box<One>>",
            "pub r#const: i64",
        ] {
            assert!(rust.contains(part), "{part}: {rust}");
        }
        let python = python(&manifest);
        for part in ["def x_y(self, in_: int, self_: int)", "def x_y_(self, ear: pb.Referenceable) -> Deferred[Any]"] {
            assert!(python.contains(part), "{part}: {python}");
        }
    }
}
