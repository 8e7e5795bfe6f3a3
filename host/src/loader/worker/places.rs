//! Where a crash was, for the service's author: names of functions, from the library's file.

use std::path::Path;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol, SymbolKind};

use crate::loader::private;

/// How many functions are named, from the crash outwards.
const NAMED: usize = 3;

/// Prefixes of functions that are not an author's: they belong to panics and aborts themselves.
const OF_NOBODY: [&str; 7] = ["std::", "core::", "alloc::", "__rust", "rust_", "<core::", "<alloc::"];

/// The functions at these addresses, if the file is still the library that they belong to and has symbols. `original` is the
/// hash of that library.
#[must_use]
pub fn named(file: &Path, original: &[u8; 32], at: &[u64]) -> Option<String> {
    if at.is_empty() || private::original(file).ok()? != *original {
        return None;
    }
    let bytes = std::fs::read(file).ok()?;
    let library = ElfFile64::<object::Endianness>::parse(&*bytes).ok()?;
    let mut functions: Vec<(u64, u64, &str)> = library
        .symbols()
        .filter(|symbol| symbol.kind() == SymbolKind::Text && symbol.size() > 0)
        .filter_map(|symbol| Some((symbol.address(), symbol.size(), symbol.name().ok()?)))
        .collect();
    functions.sort_unstable();
    let mut found: Vec<String> = Vec::new();
    for address in at {
        // A return address is behind the call, and may already be the start of another function.
        let address = address.saturating_sub(1);
        let behind = functions.partition_point(|(start, _, _)| *start <= address);
        let Some((start, size, name)) = behind.checked_sub(1).and_then(|index| functions.get(index)) else { continue };
        if address - start >= *size {
            continue;
        }
        let name = format!("{:#}", rustc_demangle::demangle(name));
        if OF_NOBODY.iter().any(|prefix| name.starts_with(prefix)) || found.last() == Some(&name) {
            continue;
        }
        found.push(name);
        if found.len() == NAMED {
            break;
        }
    }
    (!found.is_empty()).then(|| found.join(", called by "))
}
