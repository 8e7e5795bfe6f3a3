//! Opening a library.

use std::ops::Range;
use std::path::{Path, PathBuf};

use abi_stable::library::AbiHeaderRef;
use libloading::os::unix::{Library as Opened, RTLD_LOCAL, RTLD_NOW};
use plugin_api::abi::import::Library;
use plugin_api::abi::types::SYMBOL;

use super::fault::LibraryFault;
use super::mapping;

/// An open library that is known to be a service.
#[derive(Debug)]
pub struct OpenLibrary {
    pub(in crate::loader) library: Library,
    /// Only `unload` closes it.
    pub(super) opened: Opened,
    /// The private copy that it was opened from. The file may be gone; its name stays in the list of mappings.
    pub(super) file: PathBuf,
    /// Where it is mapped.
    pub(in crate::loader) code: Option<Range<usize>>,
    /// The system's id of its own thread.
    pub(super) main: i32,
    /// Whether its file must be removed when it is closed.
    pub(super) owned: bool,
}

/// Opens the private copy of a library and checks that the host can talk to it. This runs code of the library: call it only on
/// a thread made for that.
///
/// # Errors
/// If it cannot be opened, or is no service for this host; the error is one sentence.
pub fn open(copy: &Path) -> Result<OpenLibrary, LibraryFault> {
    // SAFETY: opening runs the library's initialisers, with the host's rights: that is what a folder of libraries
    // means (SECURITY.md). The file is a private copy under a name of its own, which nobody truncates or replaces
    // while it is mapped, and its segments and relocations were found inside of it (`elf`, `relocations`).
    let opened = unsafe { Opened::open(Some(copy), RTLD_NOW | RTLD_LOCAL) }
        .map_err(|error| LibraryFault::Library(explain(&error, copy)))?;
    // SAFETY: the symbol is a static of a library built with `plugin_api::export!`; one of that name in any other
    // library is read as a header, whose magic string is checked before anything else of it is used.
    let symbol = unsafe { opened.get::<AbiHeaderRef>(SYMBOL.as_bytes()) };
    let Ok(symbol) = symbol else {
        let why = "it is a library, but not a service: it lacks plugin_api::export!(…)";
        return Err(LibraryFault::Library(why.to_owned()));
    };
    // SAFETY: the symbol is that static, and the library stays open: `OpenLibrary` keeps it beside what is made of it.
    let library = unsafe { Library::check(*symbol) }.map_err(|wrong| {
        tracing::debug!(details = wrong.details, "the library's layout");
        LibraryFault::Library(wrong.message)
    })?;
    Ok(OpenLibrary {
        library,
        opened,
        file: copy.to_owned(),
        owned: false,
        code: mapping::of(copy).map_err(|error| LibraryFault::machine("/proc/self/maps", error))?,
        main: rustix::thread::gettid().as_raw_nonzero().get(),
    })
}

/// The dynamic linker's error, in one sentence.
fn explain(error: &libloading::Error, copy: &Path) -> String {
    // The system's message is behind libloading's own.
    let text = std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string);
    // "/path/to/copy: undefined symbol: x": the path is the private copy's, which means nothing to anybody.
    let text = match text.split_once(": ") {
        Some((path, rest)) if path.starts_with('/') => rest,
        _ => text.as_str(),
    };
    format!("the system cannot open it: {}", text.trim().replace(&format!(" (required by {})", copy.display()), ""))
}
