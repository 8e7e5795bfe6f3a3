//! `credhost vet`

use std::path::PathBuf;
use std::time::Duration;

use clap::Args;
use credhost::config::{ConfigFile, Home};
use credhost::folder;
use credhost::loader::private::PrivateFolder;
use credhost::loader::vet::Sections;

use super::{Output, Trouble};

#[derive(Debug, Args)]
pub(super) struct Vet {
    /// The library.
    file: PathBuf,
    /// How many seconds it may take for each step.
    #[arg(long, default_value_t = 10, value_name = "SECONDS")]
    patience: u64,
}

impl Vet {
    pub(super) fn run(self, home: &Home, output: Output) -> Result<(), Trouble> {
        // With the configuration that it would be given, where there is one.
        let sections = if home.config().exists() {
            let settings = ConfigFile::open(&home.config())?.settings()?;
            folder::sections(&settings).map_err(Trouble::new)?
        } else {
            Sections::new()
        };
        let place = std::env::temp_dir().join(format!("credhost-vet-{}", std::process::id()));
        let private = PrivateFolder::new(place.clone())?;
        let vet = credhost::loader::vet::Vet::new(std::env::current_exe()?, Duration::from_secs(self.patience.max(1)));
        let verdict = private.copy(&self.file).and_then(|copy| vet.vet(&copy, &sections));
        drop(private);
        // What is left there is empty.
        let _ = std::fs::remove_dir_all(place);
        let file = self.file.display();
        let vetted = verdict.map_err(|why| Trouble::new(format!("{file} would not be loaded: {why}")))?;
        output.show(&serde_json::json!(vetted), || {
            let mut text = format!("{file} is good: it serves {}", vetted.manifest.service);
            for note in &vetted.notes {
                text.push_str(&format!("\n  note: {note}"));
            }
            text
        });
        Ok(())
    }
}
