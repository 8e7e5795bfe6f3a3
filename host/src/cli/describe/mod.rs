//! `credhost describe`

mod clients;
mod shape;

use std::fmt::Write;

use clap::Args;
use credhost::config::Home;
use credhost::control::Request;
use credhost::nearest;
use plugin_api::manifest::Manifest;

use self::shape::Signature;
use super::home::ask_running;
use super::{CliError, Output, say};

#[derive(Debug, Args)]
pub(super) struct Describe {
    /// The service's name.
    service: String,
    /// Write a client of it for Python, on Twisted: a module.
    #[arg(long, conflicts_with = "rust")]
    python: bool,
    /// Write a client of it for Rust, on the crate `pb`: a module.
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
    /// What the service says of itself: as it serves, or else as the library in the folder has it.
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
                .hint("`credhost service list` shows what is in there; no host runs")
        })
    }
}

fn described(manifest: &Manifest) -> String {
    let mut text = manifest.service.clone();
    let mut paragraph = |indent: &str, doc: &str| {
        for line in doc.lines() {
            // Writing to a String cannot fail.
            let _ = write!(text, "\n{indent}{line}");
        }
    };
    paragraph("  ", &manifest.doc);
    paragraph("  ", &manifest.perspective_doc);
    paragraph(
        "  ",
        match manifest.save.as_str() {
            "call" => "Changes are saved before they are answered.",
            "detach" => "Changes are saved when the last client has gone: what was answered may be lost.",
            _ => "Nothing is saved.",
        },
    );
    for method in &manifest.methods {
        paragraph("", &format!("\n  {}", Signature::of(method).words()));
        paragraph("      ", &method.doc);
    }
    text
}
