//! What commands that try a library share: a folder for copies, the configuration that the library would receive, and a first
//! verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use credhost::config::{self, ConfigFile, Home};
use credhost::folder;
use credhost::loader::private::PrivateFolder;
use credhost::loader::vet::{Allowed, Sections, Vet, Vetted};
use credhost::loader::worker::confinement::Isolation;

use super::CliError;

/// A library, and the verdict on it.
pub(super) type Verdict = (PathBuf, Result<Vetted, CliError>);

/// Where a library is tried. Its folder is removed with it.
pub(super) struct Trial {
    pub(super) private: PrivateFolder,
    /// The services' sections of the configuration, if there is a home.
    pub(super) sections: Sections,
    /// What services are allowed.
    pub(super) allowed: Allowed,
    /// The isolation in which libraries are vetted.
    vetting: Isolation,
    // Last, so that it is removed when nothing in it is used any more. Nobody can guess its name.
    _folder: tempfile::TempDir,
}

impl Trial {
    pub(super) fn new(home: &Home) -> Result<Self, CliError> {
        let (mut sections, mut allowed, mut vetting) = (Sections::new(), Allowed::new(), Isolation::Sandbox);
        if home.config().exists() {
            let settings = ConfigFile::open(&home.config())?.settings()?;
            sections = folder::sections(&settings).map_err(|fault| CliError::new(fault.to_string()))?;
            allowed = config::confinements(&settings).map_err(CliError::new)?.allowed();
            vetting =
                settings.plugins.vetting.parse().map_err(|why| CliError::new(format!("[plugins] vetting = {why}")))?;
        }
        let folder = tempfile::Builder::new().prefix("credhost-").tempdir()?;
        let private = PrivateFolder::new(folder.path().join("libraries"))?;
        Ok(Self { private, sections, allowed, vetting, _folder: folder })
    }

    /// The verdicts on all libraries in a home's folder, ordered by name.
    pub(super) fn vet_all(&self, home: &Home) -> Result<Vec<Verdict>, CliError> {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(home.plugins()) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) => return Err(CliError::new(format!("{}: {error}", home.plugins().display()))),
        };
        files.retain(|file| file.extension().is_some_and(|extension| extension == "so"));
        files.sort();
        Ok(files.into_iter().map(|file| (file.clone(), self.vet(&file, Duration::from_secs(10)))).collect())
    }

    /// The verdict on a library. `patience` is the timeout of each step.
    pub(super) fn vet(&self, file: &Path, patience: Duration) -> Result<Vetted, CliError> {
        if !file.is_file() {
            return Err(CliError::new(format!("{} is not a file", file.display())).hint("build it: `cargo build`"));
        }
        let vet = Vet::new(std::env::current_exe()?, patience).within(self.vetting);
        let verdict = self.private.copy(file).and_then(|copy| vet.vet(&copy, &self.sections, &self.allowed));
        verdict.map_err(|why| CliError::new(format!("{} would not be loaded: {why}", file.display())))
    }
}
