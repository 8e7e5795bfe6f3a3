//! `credhost vet`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use credhost::config::Home;

use super::trial::Trial;
use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct Vet {
    /// The library.
    file: PathBuf,
    /// Timeout of each step, in seconds.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    patience: u64,
}

impl Vet {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), CliError> {
        let vetted = Trial::new(home)?.vet(&self.file, Duration::from_secs(self.patience.max(1)))?;
        output.show(&serde_json::json!(vetted), || {
            let mut text = format!("{} is good: it serves {}", self.file.display(), vetted.manifest.service);
            if !vetted.lacks.is_empty() {
                let (service, lacks) = (&vetted.manifest.service, vetted.lacks.join("\", \""));
                text.push_str(&format!(
                    "\n  in a sandbox it also needs these permissions: [service.{service}] allow = [\"{lacks}\"]"
                ));
            }
            for note in &vetted.notes {
                text.push_str(&format!("\n  note: {note}"));
            }
            text
        });
        Ok(())
    }
}
