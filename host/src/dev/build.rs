//! Builds services by cargo, each in an invocation of its own: in one build with the host, the host's features would also become
//! the services'.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a build has made.
#[derive(Debug, Clone)]
pub struct Built {
    /// The libraries that can be loaded, each with the name of its crate.
    pub libraries: Vec<(String, PathBuf)>,
    /// The folders of the crates on this disk that it was built from (path dependencies), including its own.
    pub crates: Vec<PathBuf>,
}

/// Why there is nothing to load.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum NotBuilt {
    /// There is no crate.
    #[error("{} is not a crate: it has no Cargo.toml", .0.display())]
    NoCrate(PathBuf),
    /// Cargo cannot be run.
    #[error("cargo cannot be run: {0}")]
    NoCargo(std::io::Error),
    /// It does not compile; the compiler has printed the reason on standard error.
    #[error("it does not compile; see cargo's output above")]
    Fails {
        /// As in [`Built`]; empty if cargo does not know them either.
        crates: Vec<PathBuf>,
    },
    /// It is not a library that a host could load.
    #[error("it is not a cdylib: Cargo.toml needs [lib] with crate-type = [\"cdylib\"]")]
    NoLibrary,
}

/// Builds in this folder. The compiler's messages go to standard error, as usual.
///
/// # Errors
/// If there is nothing to load.
pub fn build(folder: &Path, arguments: &[&str]) -> Result<Built, NotBuilt> {
    if !folder.join("Cargo.toml").is_file() {
        return Err(NotBuilt::NoCrate(folder.to_owned()));
    }
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder).arg("build").args(arguments).arg("--message-format=json-render-diagnostics");
    let output = cargo.stdin(Stdio::null()).stderr(Stdio::inherit()).output().map_err(NotBuilt::NoCargo)?;
    if !output.status.success() {
        return Err(NotBuilt::Fails { crates: crates(folder) });
    }
    let (mut libraries, mut crates) = (Vec::new(), Vec::new());
    for line in output.stdout.split(|byte| *byte == b'\n') {
        let Ok(message) = serde_json::from_slice::<serde_json::Value>(line) else { continue };
        let local = message["package_id"].as_str().is_some_and(|id| id.starts_with("path+file:"));
        let folder = message["manifest_path"].as_str().and_then(|manifest| Path::new(manifest).parent());
        if let Some(folder) = folder.filter(|folder| local && !crates.iter().any(|known| known == folder)) {
            crates.push(folder.to_owned());
        }
        let target = &message["target"];
        let is_cdylib =
            target["kind"].as_array().is_some_and(|kinds| kinds.iter().any(|kind| kind.as_str() == Some("cdylib")));
        let name = target["name"].as_str().unwrap_or_default();
        let files = message["filenames"].as_array().map(Vec::as_slice).unwrap_or_default();
        let paths = files.iter().filter_map(|file| file.as_str()).map(PathBuf::from);
        let library = paths.filter(|path| is_cdylib && path.extension().is_some_and(|end| end == "so"));
        libraries.extend(library.map(|path| (name.to_owned(), path)));
    }
    if libraries.is_empty() { Err(NotBuilt::NoLibrary) } else { Ok(Built { libraries, crates }) }
}

/// The crates on this disk that the one in this folder is built from, or shares a workspace with, if the build has not listed
/// them.
fn crates(folder: &Path) -> Vec<PathBuf> {
    let mut cargo = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    cargo.current_dir(folder).args(["metadata", "--format-version", "1"]);
    let Ok(output) = cargo.stdin(Stdio::null()).stderr(Stdio::null()).output() else { return Vec::new() };
    let Ok(known) = serde_json::from_slice::<serde_json::Value>(&output.stdout) else { return Vec::new() };
    let packages = known["packages"].as_array().map(Vec::as_slice).unwrap_or_default();
    let local = packages.iter().filter(|package| package["source"].is_null());
    local.filter_map(|package| Some(Path::new(package["manifest_path"].as_str()?).parent()?.to_owned())).collect()
}

/// Puts a library into a folder of services atomically: a host that watches never sees half of it. Returns its path, and whether
/// it differs from the file that was there before.
///
/// # Errors
/// If it cannot be copied.
pub fn put(library: &Path, folder: &Path) -> std::io::Result<(PathBuf, bool)> {
    let name = library.file_name().unwrap_or_default();
    let place = folder.join(name);
    let same = std::fs::read(&place).is_ok_and(|old| std::fs::read(library).is_ok_and(|new| old == new));
    if !same {
        let half = folder.join(format!(".{}.half", name.to_string_lossy()));
        std::fs::copy(library, &half)?;
        std::fs::rename(half, &place)?;
    }
    Ok((place, !same))
}
