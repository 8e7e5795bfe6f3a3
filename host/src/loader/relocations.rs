//! Checks that a library tells the dynamic linker to write only into itself. The linker trusts what it is told: a damaged
//! relocation that points outside the library crashes a program or changes something in it unnoticed, as chance has it. It is
//! the only damage for which success in the vetting process says nothing about the host.

use object::LittleEndian;
use object::elf::{self, FileHeader64, Rela64, Sym64};
use object::read::elf::{Dyn, FileHeader, GnuHashTable, ProgramHeader};

use super::fault::LibraryFault;

type Head = FileHeader64<LittleEndian>;
const ENDIAN: LittleEndian = LittleEndian;

/// Checks the segments, the tables for the dynamic linker, every relocation and every symbol of a library, or of a private
/// copy of one.
///
/// # Errors
/// If it is damaged; the error is one sentence.
pub fn check(file: &[u8]) -> Result<(), LibraryFault> {
    let checked = Image::new(file).and_then(|image| image.check());
    checked.map_err(|Damage(what)| LibraryFault::File(format!("it is damaged: {what}")))
}

/// What is damaged.
#[derive(Debug)]
struct Damage(String);

impl<T: Into<String>> From<T> for Damage {
    fn from(what: T) -> Self {
        Self(what.into())
    }
}

/// A library as it would lie in memory, from address 0 on.
struct Image<'f> {
    file: &'f [u8],
    segments: &'f [elf::ProgramHeader64<LittleEndian>],
    dynamic: &'f [elf::Dyn64<LittleEndian>],
    machine: elf::Machine,
}

impl<'f> Image<'f> {
    fn new(file: &'f [u8]) -> Result<Self, Damage> {
        let head = Head::parse(file).map_err(|_| Damage::from("its header cannot be read"))?;
        let segments =
            head.program_headers(ENDIAN, file).map_err(|_| Damage::from("its program headers cannot be read"))?;
        let mut image = Self { file, segments, dynamic: &[], machine: head.e_machine(ENDIAN) };
        // As the linker finds it: by its address, up to its end mark.
        let mut of = segments.iter().filter(|segment| segment.p_type(ENDIAN) == elf::PT_DYNAMIC);
        let (Some(place), None) = (of.next(), of.next()) else {
            return Err("it does not have one table for the dynamic linker".into());
        };
        let bytes = image.from(place.p_vaddr(ENDIAN)).unwrap_or_default();
        let count = bytes.len() / size_of::<elf::Dyn64<LittleEndian>>();
        let (all, _) = object::slice_from_bytes::<elf::Dyn64<LittleEndian>>(bytes, count)
            .map_err(|()| Damage::from("its table for the dynamic linker cannot be read"))?;
        let end = all.iter().position(|entry| entry.d_tag(ENDIAN) == elf::DT_NULL);
        image.dynamic = &all[..end.ok_or("its table for the dynamic linker has no end")?];
        Ok(image)
    }

    fn check(&self) -> Result<(), Damage> {
        self.segments()?;
        for entry in self.dynamic {
            let (tag, address) = (entry.d_tag(ENDIAN), entry.d_val(ENDIAN));
            // The linker itself writes DT_DEBUG. What its own extensions mean by an address is unknown here.
            let known = object::read::elf::Dynamic { tag, val: address }.is_address() && tag != elf::DT_DEBUG;
            if known && !self.has(address, 0) {
                return Err(format!("the table {:#x} for the dynamic linker lies outside of it", tag.0).into());
            }
        }
        let mut last = 0;
        for (table, size) in [(elf::DT_RELA, elf::DT_RELASZ), (elf::DT_JMPREL, elf::DT_PLTRELSZ)] {
            let Some(bytes) = self.table(table, size)? else { continue };
            let all = object::slice_from_all_bytes::<Rela64<LittleEndian>>(bytes);
            for relocation in all.map_err(|()| Damage::from("its relocations are cut"))? {
                last = last.max(self.relocation(relocation)?);
            }
        }
        self.packed()?;
        let hashed = self.value(elf::DT_GNU_HASH).and_then(|table| {
            let table = GnuHashTable::<Head>::parse(ENDIAN, self.from(table)?).ok()?;
            table.symbol_table_length(ENDIAN)
        });
        (1..hashed.unwrap_or(0).max(last.saturating_add(1))).try_for_each(|index| self.symbol(index))
    }

    /// Checks a relocation; returns the symbol that it refers to, 0 for none.
    fn relocation(&self, relocation: &Rela64<LittleEndian>) -> Result<u32, Damage> {
        let place = relocation.r_offset.get(ENDIAN);
        if !self.has(place, 8) {
            return Err(format!("a relocation of it writes to {place:#x}, which is outside of it").into());
        }
        let kind = elf::RelocationType(relocation.r_info.get(ENDIAN) as u32);
        let relative = match self.machine {
            elf::EM_X86_64 => kind == elf::R_X86_64_RELATIVE || kind == elf::R_X86_64_IRELATIVE,
            elf::EM_AARCH64 => kind == elf::R_AARCH64_RELATIVE || kind == elf::R_AARCH64_IRELATIVE,
            elf::EM_RISCV => kind == elf::R_RISCV_RELATIVE || kind == elf::R_RISCV_IRELATIVE,
            _ => false,
        };
        let target = relocation.r_addend.get(ENDIAN).cast_unsigned();
        // Programs may also point to one past the end.
        if relative && !self.has(target, 0) {
            return Err(format!("a relocation of it points to {target:#x}, which is outside of it").into());
        }
        Ok((relocation.r_info.get(ENDIAN) >> 32) as u32)
    }

    /// Checks what the linker does with whole segments: they follow one another, and what it protects, or copies for threads,
    /// lies within them.
    fn segments(&self) -> Result<(), Damage> {
        const PAGE: u64 = 64 << 10;
        let mut last = 0;
        for segment in self.segments {
            let (start, size, filled) = (segment.p_vaddr(ENDIAN), segment.p_memsz(ENDIAN), segment.p_filesz(ENDIAN));
            let within = |of: &elf::ProgramHeader64<LittleEndian>| {
                let end = of
                    .p_vaddr(ENDIAN)
                    .checked_add(of.p_memsz(ENDIAN))
                    .and_then(|end| end.checked_next_multiple_of(PAGE));
                start >= of.p_vaddr(ENDIAN) && start.checked_add(size).zip(end).is_some_and(|(own, end)| own <= end)
            };
            let sound = match segment.p_type(ENDIAN) {
                elf::PT_LOAD => {
                    let follows = start >= last && filled <= size;
                    last = start.checked_add(size).ok_or("a segment of it has no end")?;
                    follows
                }
                elf::PT_GNU_RELRO => self.loaded().any(within),
                elf::PT_TLS => filled <= size && (filled == 0 || self.bytes(start, filled).is_some()),
                _ => true,
            };
            if !sound {
                return Err(format!("its segment at {start:#x} does not lie where it should").into());
            }
        }
        Ok(())
    }

    /// Checks relative relocations in their packed form (DT_RELR): an address, then words whose bits say which of the next 63
    /// words are relocated, too.
    fn packed(&self) -> Result<(), Damage> {
        let Some(bytes) = self.table(elf::DT_RELR, elf::DT_RELRSZ)? else { return Ok(()) };
        let all = object::slice_from_all_bytes::<object::U64<LittleEndian>>(bytes);
        let mut next = 0u64;
        for word in all.map_err(|()| Damage::from("its relocations are cut"))? {
            let word = word.get(ENDIAN);
            let (places, after) = match word & 1 {
                0 => (vec![word], word.saturating_add(8)),
                _ => {
                    let bits = (0..63).filter(|bit| word >> (bit + 1) & 1 == 1);
                    (bits.map(|bit| next.saturating_add(8 * bit)).collect(), next.saturating_add(8 * 63))
                }
            };
            next = after;
            for place in places {
                let target = self.bytes(place, 8).and_then(|bytes| Some(u64::from_le_bytes(bytes.try_into().ok()?)));
                if !target.is_some_and(|target| self.has(target, 0)) {
                    return Err(format!("a packed relocation of it, at {place:#x}, leads outside of it").into());
                }
            }
        }
        Ok(())
    }

    fn symbol(&self, index: u32) -> Result<(), Damage> {
        let outside = |what: &str| Damage(format!("{what} of its symbol {index} is outside of it"));
        let size = size_of::<Sym64<LittleEndian>>() as u64;
        let entry = self.value(elf::DT_SYMTAB).and_then(|table| table.checked_add(u64::from(index) * size));
        let bytes = entry.and_then(|entry| self.bytes(entry, size)).ok_or_else(|| outside("the entry"))?;
        let (symbol, _) =
            object::from_bytes::<Sym64<LittleEndian>>(bytes).map_err(|()| outside("a part of the entry"))?;
        let name = u64::from(symbol.st_name.get(ENDIAN));
        if self.value(elf::DT_STRSZ).is_none_or(|names| name >= names) {
            return Err(outside("the name"));
        }
        // The values of others are no addresses (thread-locals, absolute ones), or nobody reads them (linkers' own marks).
        let code_or_data = matches!(symbol.st_type(), elf::STT_FUNC | elf::STT_OBJECT | elf::STT_GNU_IFUNC);
        let section = symbol.st_shndx.get(ENDIAN);
        let elsewhere = section == elf::SHN_UNDEF || section == elf::SHN_ABS;
        if code_or_data && !elsewhere && !self.has(symbol.st_value.get(ENDIAN), 0) {
            return Err(outside("the value"));
        }
        Ok(())
    }

    fn value(&self, tag: elf::DynamicTag) -> Option<u64> {
        // The linker takes the last.
        self.dynamic.iter().rfind(|entry| entry.d_tag(ENDIAN) == tag).map(|entry| entry.d_val(ENDIAN))
    }

    /// The bytes of a table, whose place is in one entry and whose size is in another. `None` if there is neither.
    fn table(&self, place: elf::DynamicTag, size: elf::DynamicTag) -> Result<Option<&'f [u8]>, Damage> {
        match (self.value(place), self.value(size)) {
            (None, None) => Ok(None),
            (Some(_), Some(0)) => Ok(None),
            (Some(place), Some(size)) => {
                self.bytes(place, size).map(Some).ok_or_else(|| "its relocations lie outside of it".into())
            }
            _ => Err("it does not say where its relocations are, or how many".into()),
        }
    }

    fn loaded(&self) -> impl Iterator<Item = &elf::ProgramHeader64<LittleEndian>> {
        self.segments.iter().filter(|segment| segment.p_type(ENDIAN) == elf::PT_LOAD)
    }

    /// Whether this many bytes from this address on are the library's own memory.
    fn has(&self, address: u64, bytes: u64) -> bool {
        address.checked_add(bytes).is_some_and(|end| {
            self.loaded().any(|segment| {
                let start = segment.p_vaddr(ENDIAN);
                address >= start && start.checked_add(segment.p_memsz(ENDIAN)).is_some_and(|last| end <= last)
            })
        })
    }

    /// The file's bytes for that memory.
    fn bytes(&self, address: u64, size: u64) -> Option<&'f [u8]> {
        self.loaded().find_map(|segment| segment.data_range(ENDIAN, self.file, address, size).ok().flatten())
    }

    /// All bytes of the file from that address to the end of the segment.
    fn from(&self, address: u64) -> Option<&'f [u8]> {
        self.loaded().find_map(|segment| {
            let at = usize::try_from(address.checked_sub(segment.p_vaddr(ENDIAN))?).ok()?;
            segment.data(ENDIAN, self.file).ok()?.get(at..)
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn own() -> Vec<u8> {
        std::fs::read(std::env::current_exe().unwrap()).unwrap()
    }

    /// The offset of the relocations in the file, and their size in bytes.
    fn relocations(file: &[u8]) -> (usize, usize) {
        let image = Image::new(file).unwrap();
        let (table, size) = (image.value(elf::DT_RELA).unwrap(), image.value(elf::DT_RELASZ).unwrap());
        let bytes = image.bytes(table, size).unwrap();
        (bytes.as_ptr().addr() - file.as_ptr().addr(), bytes.len())
    }

    #[test]
    fn the_test_program_is_sound() {
        assert_eq!(check(&own()), Ok(()));
    }

    #[test]
    fn relocations_that_write_or_point_outside_are_refused() {
        let good = own();
        let (start, size) = relocations(&good);
        for at in (start..start + size).step_by(24 * 997) {
            let mut bad = good.clone();
            bad[at + 4] ^= 1;
            let what = check(&bad).unwrap_err().to_string();
            assert!(what.starts_with("it is damaged: a relocation of it writes to 0x1"), "{what}");
            let mut bad = good.clone();
            bad[at + 12..at + 16].fill(0xff);
            let what = check(&bad).unwrap_err().to_string();
            assert!(what.starts_with("it is damaged: the ") && what.contains("of its symbol"), "{what}");
        }
    }

    /// The offset in the file of the header of this kind of segment.
    fn header(file: &[u8], kind: elf::ProgramType) -> usize {
        let image = Image::new(file).unwrap();
        let header = image.segments.iter().find(|segment| segment.p_type(ENDIAN) == kind).unwrap();
        std::ptr::from_ref(header).addr() - file.as_ptr().addr()
    }

    /// The offset in the file of an entry of the dynamic table.
    fn entry(file: &[u8], tag: elf::DynamicTag) -> usize {
        let image = Image::new(file).unwrap();
        let entry = image.dynamic.iter().find(|entry| entry.d_tag(ENDIAN) == tag).unwrap();
        std::ptr::from_ref(entry).addr() - file.as_ptr().addr()
    }

    #[test]
    fn misplaced_segments_and_tables_are_refused() {
        const OFFSET: usize = 16;
        const SIZE: usize = 40;
        let good = own();
        let refused = |at: usize, byte: u8| {
            let mut bad = good.clone();
            bad[at] ^= byte;
            check(&bad).unwrap_err().to_string()
        };
        for kind in [elf::PT_GNU_RELRO, elf::PT_TLS, elf::PT_LOAD] {
            let at = header(&good, kind);
            // The RELRO segment becomes too long, or loaded segments overlap; the thread-local segment gets an address outside
            // the image.
            let what = match kind {
                elf::PT_TLS => refused(at + OFFSET + 4, 1),
                _ => refused(at + SIZE + 4, 1),
            };
            assert!(what.starts_with("it is damaged: its segment at 0x"), "{kind:?}: {what}");
        }
        let what = refused(header(&good, elf::PT_DYNAMIC) + OFFSET + 4, 1);
        assert_eq!(what, "it is damaged: its table for the dynamic linker has no end");
        let what = refused(entry(&good, elf::DT_SYMTAB) + 12, 1);
        assert_eq!(what, "it is damaged: the table 0x6 for the dynamic linker lies outside of it");
        let what = refused(entry(&good, elf::DT_RELASZ), 0x40);
        assert_eq!(what, "it is damaged: it does not say where its relocations are, or how many");
        let what = refused(entry(&good, elf::DT_RELASZ) + 12, 1);
        assert_eq!(what, "it is damaged: its relocations lie outside of it");
    }

    #[test]
    fn the_check_reads_the_same_entry_as_the_linker() {
        let good = own();
        let image = Image::new(&good).unwrap();
        let size = image.value(elf::DT_RELASZ).unwrap();
        // A later entry becomes another of its kind: the linker would take the later value.
        let after = image.dynamic.iter().skip_while(|entry| entry.d_tag(ENDIAN) != elf::DT_RELASZ).skip(1);
        let other = after.map(|entry| entry.d_tag(ENDIAN)).find(|tag| *tag == elf::DT_RELAENT).unwrap();
        let mut bad = good.clone();
        let at = entry(&good, other);
        bad[at..at + 8].copy_from_slice(&(elf::DT_RELASZ.0 as u64).to_le_bytes());
        let last = Image::new(&bad).unwrap().value(elf::DT_RELASZ).unwrap();
        assert_ne!(last, size);
        assert_eq!(last, 24);
    }

    #[test]
    fn a_flipped_bit_never_causes_a_panic() {
        let good = own();
        let (start, _) = relocations(&good);
        let mut flipped = good.clone();
        for at in (0..1024).step_by(5).chain((start..start + 480).step_by(3)) {
            flipped[at] ^= 1 << (at % 8);
            let _ = check(&flipped);
            flipped[at] ^= 1 << (at % 8);
        }
    }
}
