//! `credhost describe`

use std::fmt::Write;

use clap::Args;
use credhost::config::Home;
use credhost::control::Request;
use plugin_api::manifest::Manifest;

use super::home::ask;
use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct Describe {
    /// The service's name.
    service: String,
}

impl Describe {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let answer = ask(home, &Request::Describe { service: self.service })?;
        let manifest: Manifest = serde_json::from_value(answer.clone())?;
        output.show(&answer, || described(&manifest));
        Ok(())
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
        paragraph("", &format!("\n  {}", method.signature));
        paragraph("      ", &method.doc);
    }
    text
}
