//! A client for Rust, on `pb::client`.

use plugin_api::manifest::{Manifest, TypeManifest};

use super::super::shape::{Known, Shape};
use super::{about_method, class, comment, known, raw, signatures, unlike};

/// Names that the generated struct has, as far as a service's method can have them, too.
const RUST: [&str; 2] = ["login", "perspective"];

/// A module for Rust, on `pb::client`.
pub(in super::super) fn rust(manifest: &Manifest) -> String {
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
        // A tuple of one element needs a comma.
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

/// A parameter's type in Rust: large values are borrowed.
fn given(shape: &Shape, known: &Known<'_>) -> String {
    let written = shape.rust(true, known);
    match shape {
        Shape::Named(name) if *name == written => format!("&{written}"),
        _ => written,
    }
}

/// A Rust struct with these fields.
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
        // Types may contain each other.
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
