//! A client for Python, on Twisted.

use plugin_api::manifest::{FieldManifest, Manifest, MindManifest, TypeManifest};

use super::super::shape::{Known, Shape, Signature};
use super::{TAKEN, about_method, class, comment, identifier, known, signatures, unlike};

/// Python's keywords, and names that the generated class has.
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
/// A typed dictionary with these keys.
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

/// A class to derive the client's mind from.
fn python_mind(mind: &MindManifest, of: &str, known: &Known<'_>) -> String {
    let own = class(&mind.name);
    let taken = own == of || known.has(&own) || TAKEN.contains(&&*own);
    let mut out = format!("\n\nclass {own}{}(pb.Referenceable):\n", if taken { "Mind" } else { "" });
    let doc = if mind.doc.is_empty() { "What the service calls." } else { &mind.doc };
    out += &doc_string(&format!("{doc}\n\nDerive from it, and give one as the mind."), "    ");
    for (at, method) in mind.methods.iter().map(Signature::of).enumerate() {
        // A service may list two ways to call one method: the client gets the last.
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

/// A string literal of Python.
fn quoted(text: &str) -> String {
    // Python reads JSON's escapes in the same way.
    serde_json::Value::from(text).to_string()
}

/// A doc string, escaped so that its text cannot end it.
fn doc_string(doc: &str, indent: &str) -> String {
    let safe = doc.replace('\\', "\\\\").replace('"', "\\\"");
    let lines: Vec<String> = safe.lines().map(|line| line.trim_end().to_owned()).collect();
    let text = lines.join(&format!("\n{indent}")).replace(&format!("\n{indent}\n"), "\n\n");
    format!("{indent}\"\"\"{text}\"\"\"\n")
}

/// A module for Python, on Twisted.
pub(in super::super) fn python(manifest: &Manifest) -> String {
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
        // Parameters that take the rest come last.
        let plain: Vec<_> = method.parameters.iter().filter(|(name, _)| !name.starts_with('*')).collect();
        let rest = || method.parameters.iter().filter_map(|(name, of)| Some((stars(name)?, of)));
        // An optional parameter has a default only if all after it are optional, too.
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

/// The stars before the name of a parameter that takes the rest, and the name.
fn stars(name: &str) -> Option<(&'static str, &str)> {
    let of = |stars| Some((stars, name.strip_prefix(stars)?));
    of("**").or_else(|| of("*"))
}
