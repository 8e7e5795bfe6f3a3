//! Checks whether a file is a complete library for this machine, before anything opens it: a truncated library does not fail to
//! open, it crashes the process that opens it.

use super::fault::LibraryFault;

/// The extent of a library, up to the end of its loaded part. Symbols for debuggers follow that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Bytes to copy.
    pub loaded: u64,
}

const MACHINE: u16 = if cfg!(target_arch = "x86_64") {
    62
} else if cfg!(target_arch = "aarch64") {
    183
} else if cfg!(target_arch = "riscv64") {
    243
} else {
    0
};

/// Checks the head of a file that has `length` bytes.
///
/// # Errors
/// If the file cannot be such a library; the error is one sentence.
pub fn check(file: &[u8], length: u64) -> Result<Extent, LibraryFault> {
    if length == 0 {
        return Err(file_fault("it is empty"));
    }
    if file.get(..4) != Some(b"\x7fELF") {
        return Err(file_fault("it is not a library: it does not start like an ELF file"));
    }
    let truncated = || file_fault("it is only part of a library: was it copied completely?");
    let u16_at = |at: usize| at_place(file, at).map(u16::from_le_bytes);
    let u32_at = |at: usize| at_place(file, at).map(u32::from_le_bytes);
    let u64_at = |at: usize| at_place(file, at).map(u64::from_le_bytes);
    if file.len() < 64 {
        return Err(truncated());
    }
    if file[4] != 2 || file[5] != 1 {
        return Err(file_fault("it is built for another kind of machine: this host needs 64 bits, little-endian"));
    }
    let machine = u16_at(18).unwrap_or_default();
    if MACHINE != 0 && machine != MACHINE {
        let what = format!("it is built for another processor (ELF machine {machine}; this host is {MACHINE})");
        return Err(LibraryFault::File(what));
    }
    match u16_at(16) {
        Some(3) => {}
        Some(1) => return Err(file_fault("it is an object file, not a library: set crate-type = [\"cdylib\"]")),
        _ => return Err(file_fault("it is a program, not a library: set crate-type = [\"cdylib\"]")),
    }
    let (start, size, count) = (u64_at(32), u16_at(54), u16_at(56));
    let (Some(start), Some(size), Some(count)) = (start, size, count) else {
        return Err(truncated());
    };
    if size < 56 || count == 0 {
        return Err(file_fault("its program headers are damaged"));
    }
    let mut loaded = 64;
    for index in 0..u64::from(count) {
        let header =
            start.checked_add(index * u64::from(size)).and_then(|at| usize::try_from(at).ok()).ok_or_else(truncated)?;
        let (Some(kind), Some(offset), Some(bytes)) =
            (u32_at(header), u64_at(header.saturating_add(8)), u64_at(header.saturating_add(32)))
        else {
            return Err(truncated());
        };
        if kind == 1 {
            let end = offset.checked_add(bytes).ok_or_else(|| file_fault("its program headers are damaged"))?;
            if end > length {
                return Err(truncated());
            }
            loaded = loaded.max(end);
        }
        loaded = loaded.max((header as u64).saturating_add(u64::from(size)));
    }
    // The section table ends the file: a copy without it is incomplete, even if it has everything that is loaded.
    if let (Some(sections), Some(size), Some(count)) = (u64_at(40), u16_at(58), u16_at(60))
        && sections.saturating_add(u64::from(size) * u64::from(count)) > length
    {
        return Err(truncated());
    }
    Ok(Extent { loaded })
}

/// If a library's flags for the dynamic linker forbid unloading it: the place of these flags in the file, and the flags without
/// that one. The library's head must have been checked. `read` reads from a place in the file.
///
/// In the gABI: `DT_FLAGS_1`, `DF_1_NODELETE`. Some linkers set it by themselves.
pub fn without_nodelete(
    head: &[u8],
    mut read: impl FnMut(u64, &mut [u8]) -> std::io::Result<()>,
) -> std::io::Result<Option<(u64, [u8; 8])>> {
    const PT_DYNAMIC: u32 = 2;
    const DT_FLAGS_1: u64 = 0x6fff_fffb;
    const DF_1_NODELETE: u64 = 8;
    /// The most entries of a dynamic section that are read. A real section has about thirty.
    const MOST: u64 = 4096;
    let (Some(start), Some(size), Some(count)) = (
        at_place(head, 32).map(u64::from_le_bytes),
        at_place(head, 54).map(u16::from_le_bytes),
        at_place(head, 56).map(u16::from_le_bytes),
    ) else {
        return Ok(None);
    };
    for index in 0..u64::from(count) {
        let Ok(header) = usize::try_from(start + index * u64::from(size)) else { break };
        if at_place(head, header).map(u32::from_le_bytes) != Some(PT_DYNAMIC) {
            continue;
        }
        let (Some(offset), Some(bytes)) =
            (at_place(head, header + 8).map(u64::from_le_bytes), at_place(head, header + 32).map(u64::from_le_bytes))
        else {
            break;
        };
        // Read at once; a file has one such section.
        let mut section = vec![0; usize::try_from((bytes / 16).min(MOST) * 16).unwrap_or(0)];
        read(offset, &mut section)?;
        let entries = section.chunks_exact(16).map(|entry| (at_place(entry, 0), at_place(entry, 8)));
        let entries = entries.map_while(|(tag, flags)| Some((u64::from_le_bytes(tag?), u64::from_le_bytes(flags?))));
        let entries = (0u64..).zip(entries).take_while(|(_, (tag, _))| *tag != 0);
        // If there are several, the linker takes the last.
        let last = entries.filter(|(_, (tag, _))| *tag == DT_FLAGS_1).last();
        return Ok(last.filter(|(_, (_, flags))| flags & DF_1_NODELETE != 0).and_then(|(index, (_, flags))| {
            let at = offset.checked_add(index * 16 + 8)?;
            Some((at, (flags & !DF_1_NODELETE).to_le_bytes()))
        }));
    }
    Ok(None)
}

fn file_fault(what: &str) -> LibraryFault {
    LibraryFault::File(what.to_owned())
}

/// Bytes at a place that the file itself names. It may lie anywhere.
fn at_place<const N: usize>(file: &[u8], at: usize) -> Option<[u8; N]> {
    file.get(at..at.checked_add(N)?)?.try_into().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_are_not_libraries_are_refused_with_the_reason() {
        assert_eq!(check(b"", 0).unwrap_err().to_string(), "it is empty");
        assert!(check(b"#!/bin/sh\n", 10).unwrap_err().to_string().starts_with("it is not a library"));
        assert!(check(b"\x7fELF\x02\x01", 6).unwrap_err().to_string().starts_with("it is only part"));
    }

    #[test]
    fn the_test_program_is_whole_until_it_is_cut() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        let length = own.len() as u64;
        let extent = check(&own, length).unwrap();
        assert!(extent.loaded <= length);
        for cut in [64, 300, 4_000, length / 2, length - 1] {
            let part = &own[..usize::try_from(cut).unwrap()];
            assert!(check(part, cut).is_err(), "cut at {cut}");
        }
    }

    #[test]
    fn a_flipped_bit_in_the_head_never_causes_a_panic() {
        let own = std::fs::read(std::env::current_exe().unwrap()).unwrap();
        for at in 0..512 {
            for bit in 0..8 {
                let mut flipped = own[..4096.min(own.len())].to_vec();
                flipped[at] ^= 1 << bit;
                let _ = check(&flipped, own.len() as u64);
            }
        }
    }
}
