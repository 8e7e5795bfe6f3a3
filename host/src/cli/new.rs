//! `credhost new`

use std::path::{Path, PathBuf};

use clap::Args;
use credhost::dev::template::{Api, make};

use super::{CliError, Output};

#[derive(Debug, Args)]
pub(super) struct New {
    /// The service's name, or a folder that ends with it.
    #[arg(value_name = "NAME")]
    place: PathBuf,
    /// Use plugin-api from this folder, or this version from the registry.
    #[arg(long, value_name = "FOLDER|VERSION")]
    api: Option<String>,
}

impl New {
    pub(super) fn run(self, output: Output) -> Result<(), CliError> {
        let own = Path::new(env!("CARGO_MANIFEST_DIR")).join("../plugin-api");
        let api = match self.api {
            Some(version) if version.starts_with(|c: char| c.is_ascii_digit()) => Api::Version(version),
            Some(folder) => Api::Folder(folder.into()),
            // The checkout that this program was built in, if it is still there.
            None if own.join("Cargo.toml").is_file() => Api::Folder(own),
            None => Api::Version("1".to_owned()),
        };
        let name = make(&self.place, &api)?;
        let place = self.place.display().to_string();
        output.show(&serde_json::json!({ "service": name, "folder": place }), || {
            format!(
                "{place} is a service that compiles, is tested and runs. Next:\n  credhost dev {place}   \
                 # builds it, serves it, and replaces it whenever you save\n  cd {place} && cargo test"
            )
        });
        Ok(())
    }
}
