//! Typed clients of a service, generated from its manifest.

mod python;
mod rust;

use plugin_api::manifest::{Manifest, TypeManifest};

pub(super) use self::python::python;
pub(super) use self::rust::rust;
use super::shape::{Known, Signature};

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

/// A doc comment as lines, each with this prefix.
fn comment(doc: &str, before: &str) -> String {
    // Other line terminators would end the comment.
    let line = |line: &str| format!("{before} {}", line.replace(char::is_control, " ")).trim_end().to_owned() + "\n";
    doc.lines().map(line).collect()
}

fn signatures(manifest: &Manifest) -> Vec<Signature<'_>> {
    manifest.methods.iter().map(Signature::of).collect()
}

/// Names that the generated modules use: a type of the same name would shadow them.
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

/// Types whose values are dictionaries with known fields: they get a type of their own in the generated module.
fn known(manifest: &Manifest) -> Known<'_> {
    let own = class(&manifest.service);
    let named = |name: &str| identifier(name) == name && name != own && !TAKEN.contains(&name) && raw(name) == name;
    let whole = |of: &&TypeManifest| of.class.is_empty() && !of.fields.is_empty() && named(&of.name);
    let mind = manifest.mind.as_ref().map(|mind| mind.name.as_str());
    Known { types: manifest.types.iter().filter(whole).collect(), mind }
}

/// Makes a name unique: if it was used before, an underscore is appended.
fn unlike(name: String, before: &mut Vec<String>) -> String {
    let mut name = name;
    while before.contains(&name) {
        name.push('_');
    }
    before.push(name.clone());
    name
}

/// A method's doc, with the errors that it raises.
fn about_method(doc: &str, raises: &[String]) -> String {
    match raises {
        [] => doc.to_owned(),
        raises if doc.is_empty() => format!("Raises {}.", raises.join(", ")),
        raises => format!("{doc}\n\nRaises {}.", raises.join(", ")),
    }
}

/// A name that is valid in both languages: invalid characters become underscores.
fn identifier(name: &str) -> String {
    let name: String = name.chars().map(|letter| if letter.is_ascii_alphanumeric() { letter } else { '_' }).collect();
    let bad = name.is_empty() || name.starts_with(|first: char| first.is_ascii_digit());
    if bad { format!("_{name}") } else { name }
}

/// A name as Rust writes it, also if it is a keyword.
fn raw(name: &str) -> String {
    // Of all editions, including reserved ones.
    const WORDS: [&str; 47] = [
        "abstract", "as", "async", "await", "become", "box", "break", "const", "continue", "do", "dyn", "else", "enum",
        "extern", "false", "final", "fn", "for", "gen", "if", "impl", "in", "let", "loop", "macro", "match", "mod",
        "move", "mut", "override", "priv", "pub", "ref", "return", "static", "struct", "trait", "true", "try", "type",
        "typeof", "unsafe", "unsized", "use", "virtual", "where", "while",
    ];
    let name = identifier(name);
    match &*name {
        // These cannot be raw identifiers.
        "self" | "Self" | "super" | "crate" | "_" => format!("{name}_"),
        word if WORDS.contains(&word) || word == "yield" => format!("r#{name}"),
        _ => name,
    }
}

#[cfg(test)]
mod tests {
    use plugin_api::manifest::{FieldManifest, MethodManifest, MindManifest, VariantManifest};

    use super::*;

    /// The part of Python source that is outside strings and comments.
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

    /// Rust's code without its texts and line comments.
    fn outside_of_rust(rust: &str) -> String {
        let (mut out, mut rest) = (String::new(), rust);
        while let Some(letter) = rest.chars().next() {
            if rest.starts_with("//") {
                rest = rest.find(['\n', '\r']).map_or("", |end| &rest[end..]);
            } else if let Some((hashes, text)) = raw(rest) {
                let end = format!("\"{hashes}");
                let (_, behind) = text.split_once(&end).expect("a raw text has an end");
                rest = behind;
            } else if letter == '"' {
                rest = &rest[1..];
                while !rest.starts_with('"') {
                    let skipped = rest.chars().take(1 + usize::from(rest.starts_with('\\'))).map(char::len_utf8).sum();
                    rest = rest.get(skipped..).filter(|rest| !rest.is_empty()).expect("a text has an end");
                }
                rest = &rest[1..];
            } else {
                out.push(letter);
                rest = &rest[letter.len_utf8()..];
            }
        }
        out
    }

    /// A raw text's hashes, and what follows its opening quote.
    fn raw(rest: &str) -> Option<(&str, &str)> {
        let behind = rest.strip_prefix('r')?;
        let (hashes, text) = behind.split_once('"')?;
        hashes.chars().all(|hash| hash == '#').then_some((hashes, text))
    }

    /// A manifest may contain anything, and the code generated from it is run.
    #[test]
    fn no_text_in_a_manifest_becomes_code() {
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
        assert!(!outside_of_rust(&rust(&manifest)).contains("import os"), "{}", rust(&manifest));
        // The check finds what it is for.
        for code in ["let a = \"\\\"\"; import os", "// a\rimport os", "/// a\nimport os", "r#\"\"# import os"] {
            assert!(outside_of_rust(code).contains("import os"), "{code:?}");
        }
    }

    #[test]
    fn methods_with_variadic_arguments_are_called_with_them() {
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
    fn names_that_are_taken_or_reserved_are_written_differently() {
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
            "pub async fn x_y(&self, r#in: u8, self_: u8)",
            "pub async fn x_y_(&self, ear: pb::client::Local) -> Result<pb::jelly::Value, pb::client::Error>",
            "pub async fn r#for(&self) -> Result<One, pb::client::Error>",
            "pub user_id: u8",
            "pub user_id_: u8",
            "pub other: Option<Box<Other>>",
            "pub one: Option<Box<One>>",
            "pub r#const: u8",
        ] {
            assert!(rust.contains(part), "{part}: {rust}");
        }
        let python = python(&manifest);
        for part in ["def x_y(self, in_: int, self_: int)", "def x_y_(self, ear: pb.Referenceable) -> Deferred[Any]"] {
            assert!(python.contains(part), "{part}: {python}");
        }
    }
}
