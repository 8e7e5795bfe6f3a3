//! Typed clients of a service, written from what it says of itself.

use plugin_api::manifest::Manifest;

use super::shape::{Shape, Signature};

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
    doc.lines().map(|line| format!("{before} {line}").trim_end().to_owned() + "\n").collect()
}

fn signatures(manifest: &Manifest) -> Vec<Signature<'_>> {
    manifest.methods.iter().map(Signature::of).collect()
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
    let class = class(&manifest.service);
    let about = |doc: &str, more: &str| if doc.is_empty() { more.to_owned() } else { format!("{doc}\n\n{more}") };
    let written = format!("Written by `credhost describe --python {}`. Needs Twisted.", manifest.service);
    let mut out = doc_string(&about(&manifest.doc, &written), "");
    out += "\nfrom __future__ import annotations\n\nimport datetime\nimport decimal\nfrom typing import Any, Dict, List, Set, Tuple\n\n";
    out += "from twisted.cred.credentials import UsernamePassword\nfrom twisted.internet.defer import Deferred\n";
    out += &format!("from twisted.spread import pb\n\n\nclass {class}:\n");
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
    for method in signatures(manifest) {
        let safe = |name: &str| format!("{name}{}", if PYTHON.contains(&name) { "_" } else { "" });
        // What may be left out must come last: what comes before it then may not.
        let last_needed = method.parameters.iter().rposition(|(_, shape)| !shape.is_optional());
        let parameters = method.parameters.iter().enumerate().map(|(at, (name, shape))| {
            let default = if last_needed.is_none_or(|needed| at > needed) { " = None" } else { "" };
            format!(", {}: {}{default}", safe(name), shape.python())
        });
        let parameters: String = parameters.collect();
        let arguments: String = method.parameters.iter().map(|(name, _)| format!(", {}", safe(name))).collect();
        out +=
            &format!("\n    def {}(self{parameters}) -> Deferred[{}]:\n", safe(method.name), method.returns.python());
        if !method.doc.is_empty() {
            out += &doc_string(method.doc, "        ");
        }
        out += &format!("        return self.perspective.callRemote({}{arguments})\n", quoted(method.name));
    }
    out
}

/// A module for Rust, on `pb::client`.
pub(super) fn rust(manifest: &Manifest) -> String {
    let class = class(&manifest.service);
    let mut out = comment(&manifest.doc, "//!");
    if !out.is_empty() {
        out += "//!\n";
    }
    out += &format!(
        "//! Written by `credhost describe --rust {}`. Needs the crate `pb` with its feature `client`.\n\n",
        manifest.service.replace(char::is_control, " ")
    );
    let signatures = signatures(manifest);
    out += "use pb::client::{Client, Error, Local, Remote};\n\n";
    let doc =
        if manifest.perspective_doc.is_empty() { "A perspective of the service." } else { &manifest.perspective_doc };
    out += &comment(doc, "///");
    out += &format!(
        "#[derive(Debug, Clone)]
pub struct {class} {{
    /// What it calls.
    pub perspective: Remote,
}}

impl {class} {{
    /// Logs in as an identity, and asks for its perspective.
    ///
    /// # Errors
    /// When it is not let in, has no key, or the connection is lost.
    pub async fn login(client: &Client, name: &str, password: &str, mind: Option<Local>) -> Result<Self, Error> {{
        let path = format!(\"{{name}}/{{}}\", {:?});
        Ok(Self {{ perspective: client.login_password(&path, password, mind).await? }})
    }}
",
        manifest.service
    );
    for method in &signatures {
        let name = if RUST.contains(&method.name) { format!("{}_", method.name) } else { raw(method.name) };
        let parameters = method.parameters.iter().map(|(name, shape)| format!(", {}: {}", raw(name), shape.rust(true)));
        let parameters: String = parameters.collect();
        let names: Vec<String> = method.parameters.iter().map(|(name, _)| raw(name)).collect();
        // One alone is a tuple by its comma.
        let arguments = if names.len() == 1 { format!("{},", names[0]) } else { names.join(", ") };
        let doc = if method.doc.is_empty() { "A method of the service." } else { method.doc };
        let call = format!("self.perspective.call({:?}, &({})).await?", method.name, arguments);
        let answer = match method.returns {
            Shape::Object(_) => format!("{call}.remote()"),
            _ => format!("Ok({call}.read()?)"),
        };
        out += &format!(
            "\n{}    ///\n    /// # Errors\n    /// What the service answers with, and when the connection is lost.\n    pub async fn {name}(&self{parameters}) -> Result<{}, Error> {{\n        {answer}\n    }}\n",
            comment(doc, "    ///"),
            method.returns.rust(false),
        );
    }
    out + "}\n"
}

/// A name that may be a word of Rust's.
fn raw(name: &str) -> String {
    const WORDS: [&str; 12] =
        ["type", "match", "move", "ref", "use", "where", "loop", "impl", "trait", "mod", "fn", "dyn"];
    if WORDS.contains(&name) { format!("r#{name}") } else { name.to_owned() }
}
