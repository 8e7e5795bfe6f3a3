//! `credhost describe`

mod clients;
mod shape;

use std::fmt::Write;

use clap::Args;
use credhost::config::Home;
use credhost::control::Request;
use credhost::nearest;
use plugin_api::manifest::{FaultManifest, FieldManifest, Manifest, MethodManifest, TypeManifest};

use self::shape::{Shape, Signature};
use super::home::ask_running;
use super::{CliError, Output, say};

#[derive(Debug, Args)]
pub(super) struct Describe {
    /// The service's name.
    service: String,
    /// Write a typed client for Python with Twisted.
    #[arg(long, conflicts_with = "rust")]
    python: bool,
    /// Write a typed client for Rust with the crate `pb`.
    #[arg(long)]
    rust: bool,
}

impl Describe {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let manifest = self.manifest(home)?;
        match (self.python, self.rust) {
            (true, _) => say(clients::python(&manifest).trim_end()),
            (_, true) => say(clients::rust(&manifest).trim_end()),
            _ => output.show(&serde_json::to_value(&manifest)?, || described(&manifest)),
        }
        Ok(())
    }
}

impl Describe {
    /// The service's manifest: from the running host, or else from the library in the folder.
    fn manifest(&self, home: &Home) -> Result<Manifest, CliError> {
        if let Some(answer) = ask_running(home, &Request::Describe { service: self.service.clone() })? {
            return Ok(serde_json::from_value(answer)?);
        }
        home.check()?;
        let bench = super::trial::Trial::new(home)?;
        let all = bench.vet_all(home)?;
        let mut manifests = all.into_iter().filter_map(|(_, vetted)| Some(vetted.ok()?.manifest)).collect::<Vec<_>>();
        let at = manifests.iter().position(|manifest| manifest.service == self.service);
        at.map(|at| manifests.swap_remove(at)).ok_or_else(|| {
            let meant = nearest::meant(&self.service, manifests.iter().map(|manifest| &manifest.service));
            CliError::new(format!("no library in {} is the service {}{meant}", home.plugins().display(), self.service))
                .hint("`credhost service list` shows the services; no host runs")
        })
    }
}

/// Text in lines, each with an indent.
#[derive(Default)]
struct Page(String);

impl Page {
    fn lines(&mut self, indent: usize, text: &str) {
        for line in text.lines() {
            // Writing to a String cannot fail.
            let _ = write!(self.0, "\n{:indent$}{line}", "");
        }
    }

    fn blank(&mut self) {
        self.0.push('\n');
    }

    /// Methods, each with its doc.
    fn methods(&mut self, indent: usize, methods: &[MethodManifest]) {
        for method in methods {
            self.blank();
            self.lines(indent, &Signature::of(method).words());
            self.lines(indent + 4, &method.doc);
            if !method.raises.is_empty() {
                self.lines(indent + 4, &format!("Raises {}.", method.raises.join(", ")));
            }
        }
    }

    fn fields(&mut self, indent: usize, fields: &[FieldManifest]) {
        for field in fields {
            let may = if field.optional { ", if it is there" } else { "" };
            self.lines(indent, &format!("{}: {}{may}", field.name, Shape::of(&field.r#type).words()));
            self.lines(indent + 4, &field.doc);
        }
    }

    fn value(&mut self, of: &TypeManifest) {
        self.blank();
        let class = if of.class.is_empty() { String::new() } else { format!(", an instance of {}", of.class) };
        self.lines(2, &format!("{}{class}", of.name));
        self.lines(6, &of.doc);
        self.fields(6, &of.fields);
        for variant in &of.variants {
            self.lines(6, &format!("{:?}", variant.name));
            self.lines(10, &variant.doc);
            self.fields(10, &variant.fields);
        }
    }

    fn fault(&mut self, of: &FaultManifest) {
        self.blank();
        let under = if of.parents.is_empty() { String::new() } else { format!(" (under {})", of.parents.join(", ")) };
        self.lines(2, &format!("{}{under}", of.class));
        self.lines(6, &of.doc);
        if !of.message.is_empty() {
            self.lines(6, &format!("{:?}", of.message));
        }
        self.fields(6, &of.fields);
    }
}

fn described(manifest: &Manifest) -> String {
    let mut page = Page(manifest.service.clone());
    page.lines(2, &manifest.doc);
    page.lines(2, &manifest.perspective_doc);
    let saved = match manifest.save.as_str() {
        "call" => "Changes are saved before they are answered.",
        "detach" => "Changes are saved when the last client leaves: answered changes can be lost.",
        _ => "Nothing is saved.",
    };
    page.lines(2, saved);
    page.methods(2, &manifest.methods);
    if let Some(mind) = &manifest.mind {
        page.blank();
        page.lines(0, &format!("{}: the object that a client passes as its mind, for callbacks", mind.name));
        page.lines(2, &mind.doc);
        page.methods(2, &mind.methods);
    }
    for object in &manifest.objects {
        page.blank();
        page.lines(0, &format!("{}: an object that clients get references to", object.name));
        page.lines(2, &object.doc);
        page.methods(2, &object.methods);
    }
    if !manifest.types.is_empty() {
        page.blank();
        page.lines(0, "Values");
        manifest.types.iter().for_each(|of| page.value(of));
    }
    if !manifest.faults.is_empty() {
        page.blank();
        page.lines(0, "Errors");
        manifest.faults.iter().for_each(|of| page.fault(of));
    }
    page.0
}
