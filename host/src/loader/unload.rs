//! Unloads a library, or reports what still holds it.

use std::fmt;
use std::time::{Duration, Instant};

use plugin_api::abi::import::Place;

use super::library::OpenLibrary;
use super::{ledger, mapping};

/// How long to wait for threads that are ending.
const GRACE: Duration = Duration::from_secs(1);

/// What became of a generation's library.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum UnloadOutcome {
    /// It was linked into the program, or never opened: there is nothing to unload.
    Nothing,
    /// It is closed and unmapped, and the memory that it had left is freed.
    Retired {
        /// The bytes that its statics held.
        left: usize,
    },
    /// It stays mapped for as long as the process lives; the reasons.
    Pinned(Vec<String>),
    /// Its thread did not return: the thread and its library stay.
    Condemned,
}

impl fmt::Display for UnloadOutcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Nothing => f.write_str("ended"),
            Self::Retired { .. } => f.write_str("retired"),
            Self::Pinned(why) => write!(f, "pinned: {}", why.join("; ")),
            Self::Condemned => f.write_str("condemned: its thread does not return"),
        }
    }
}

/// Unloads a library whose own thread has ended, and which was told where to keep the chain of its memory.
///
/// Takes up to a second if threads are just ending: do not call it on a thread that serves.
#[must_use]
pub fn unload(library: OpenLibrary, place: Option<Place>) -> UnloadOutcome {
    let pinned = |library: OpenLibrary, place, why| {
        // It may be called, and written to, at any time.
        std::mem::forget((library, place));
        UnloadOutcome::Pinned(why)
    };
    if !ledger::works() {
        let why = "this program does not export the functions that track threads".to_owned();
        return pinned(library, place, vec![why]);
    }
    let Some(code) = library.code.clone() else {
        return pinned(library, place, vec!["its mapping in memory is unknown".to_owned()]);
    };
    let patience = Instant::now() + GRACE;
    let holders = loop {
        let holders = ledger::holders(&code, library.main);
        if holders.is_empty() || Instant::now() >= patience {
            break holders;
        }
        std::thread::sleep(Duration::from_millis(2));
    };
    if !holders.is_empty() {
        return pinned(library, place, holders.iter().map(ToString::to_string).collect());
    }
    ledger::delete_keys(&code);
    let file = library.file.clone();
    let OpenLibrary { opened, owned, .. } = library;
    if let Err(error) = opened.close() {
        std::mem::forget(place);
        return UnloadOutcome::Pinned(vec![format!("the system does not close it: {error}")]);
    }
    if owned {
        let _ = std::fs::remove_file(&file);
    }
    if !matches!(mapping::of(&file), Ok(None)) {
        std::mem::forget(place);
        return UnloadOutcome::Pinned(vec![
            "the system keeps it: it was built so that it is never unloaded, or something in it is shared by all"
                .to_owned(),
        ]);
    }
    // SAFETY: the library is closed and not mapped any more, none of its threads or thread-locals was left, and nothing
    // of the host's points into its memory: frames were copied, and the two function tables went with it.
    let left = place.map_or(0, |place| unsafe { place.free() });
    UnloadOutcome::Retired { left }
}
