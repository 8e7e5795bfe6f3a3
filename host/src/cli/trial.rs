//! What commands that try a library have in common: a folder of their own for copies, the configuration that the library
//! would be given, and a first verdict.

use std::path::{Path, PathBuf};
use std::time::Duration;

use credhost::config::{ConfigFile, Home};
use credhost::folder;
use credhost::loader::private::PrivateFolder;
use credhost::loader::vet::{Sections, Vet, Vetted};

use super::CliError;

/// A library, and what is said of it.
pub(super) type Verdict = (PathBuf, Result<Vetted, CliError>);

/// Where a library is tried. Its folder goes with it.
pub(super) struct Trial {
    pub(super) private: PrivateFolder,
    /// What services are configured to be, where there is a home.
    pub(super) sections: Sections,
    // Last: it is removed when nothing in it is used any more. Its name is nobody's to guess.
    _folder: tempfile::TempDir,
}

impl Trial {
    pub(super) fn new(home: &Home) -> Result<Self, CliError> {
        let sections = if home.config().exists() {
            let settings = ConfigFile::open(&home.config())?.settings()?;
            folder::sections(&settings).map_err(|fault| CliError::new(fault.to_string()))?
        } else {
            Sections::new()
        };
        let folder = tempfile::Builder::new().prefix("credhost-").tempdir()?;
        let private = PrivateFolder::new(folder.path().join("libraries"))?;
        Ok(Self { private, sections, _folder: folder })
    }

    /// The verdicts on all libraries in a home's folder, by their names.
    pub(super) fn vet_all(&self, home: &Home) -> Result<Vec<Verdict>, CliError> {
        let mut files: Vec<PathBuf> = match std::fs::read_dir(home.plugins()) {
            Ok(entries) => entries.flatten().map(|entry| entry.path()).collect(),
            Err(error) => return Err(CliError::new(format!("{}: {error}", home.plugins().display()))),
        };
        files.retain(|file| file.extension().is_some_and(|extension| extension == "so"));
        files.sort();
        Ok(files.into_iter().map(|file| (file.clone(), self.vet(&file, Duration::from_secs(10)))).collect())
    }

    /// The verdict on a library, which is given so much time for each step.
    pub(super) fn vet(&self, file: &Path, patience: Duration) -> Result<Vetted, CliError> {
        if !file.is_file() {
            return Err(CliError::new(format!("{} is no file", file.display())).hint("build it: `cargo build`"));
        }
        let vet = Vet::new(std::env::current_exe()?, patience);
        let verdict = self.private.copy(file).and_then(|copy| vet.vet(&copy, &self.sections));
        verdict.map_err(|why| CliError::new(format!("{} would not be loaded: {why}", file.display())))
    }
}
