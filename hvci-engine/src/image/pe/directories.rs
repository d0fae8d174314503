//! Tables that data directories point to: imports, base relocations, version resource, PDB name. `object` takes the records apart; where
//! they lie, and how much of it is looked at, is decided here, because `object` searches for the end of a name without a bound.

use object::{
    LittleEndian as LE,
    pe::{IMAGE_DEBUG_TYPE_CODEVIEW, ImageNtHeaders32, ImageNtHeaders64, RT_RCDATA, RT_VERSION},
    read::pe::{
        DelayLoadImportTable, ImageNtHeaders, ImageThunkData, ImportTable, ResourceDirectory, ResourceDirectoryEntryData,
        ResourceDirectoryTable, ResourceNameOrId,
    },
};

use super::{
    DEBUG_DIRECTORY, DELAY_IMPORT_DIRECTORY, IMPORT_DIRECTORY, Pe, RELOCATION_DIRECTORY, RESOURCE_DIRECTORY, Section, version::VersionInfo,
};
use crate::{
    budget::Budget,
    bytes::{self, Span, index},
    facts::SecurityVersion,
    finding::{Code, Note},
};

/// How many imports are looked at. The largest image seen has 6,000.
const MAX_IMPORTS: u32 = 65_536;
/// How many sections are looked at for all imports, or all exports, together: each has its section searched.
pub(super) const MAX_SECTION_STEPS: u32 = 1 << 24;
/// How long an imported or exported name may be; decorated C++ names are below 4 KiB.
pub(super) const MAX_NAME: usize = 4_096;
/// How long a PDB path may be: MAX_PATH of the linkers that write it, several times over.
const MAX_PDB_PATH: usize = 1_024;
/// How many debug directory entries are looked at; linkers write fewer than 10.
const MAX_DEBUG_ENTRIES: usize = 64;
const SIZEOF_DEBUG_ENTRY: usize = 28;
/// How many named resources of a type are looked at.
const MAX_RESOURCE_NAMES: usize = 4_096;

/// What the image imports, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Imports<'a> {
    /// Imported functions, in table order; those that are delay-loaded come last.
    pub imports: Vec<Import<'a>>,
    /// Where each library's part of the import address table is, relative to the image base. The tables of delay-loaded libraries are not
    /// among them: the image fills them itself.
    pub slots: Vec<u32>,
    /// `ImageImports` for each of the two tables whose reading had to stop.
    pub notes: Vec<Note>,
}

/// An imported function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Import<'a> {
    /// Image that exports it, as it is written.
    pub library: &'a [u8],
    /// Which function.
    pub symbol: Symbol<'a>,
    /// Where its address is put, relative to the image base: in the import address table, or in that of delay-loaded imports.
    pub slot: u32,
    /// Whether it is found when it is first called, not when the image is loaded.
    pub delayed: bool,
}

/// How an import names its function.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Symbol<'a> {
    /// By its name.
    Name(&'a [u8]),
    /// By its ordinal number.
    Ordinal(u16),
}

/// A base relocation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// Address of the first byte that it changes, relative to the image base.
    pub address: u32,
    /// IMAGE_REL_BASED value; its meaning is the machine's.
    pub kind: u16,
}

impl Relocation {
    /// How many bytes it changes. `None` for a type that Windows does not apply.
    pub const fn width(self) -> Option<u32> {
        match self.kind {
            // ABSOLUTE is filler
            0 => Some(0),
            // HIGH, LOW
            1 | 2 => Some(2),
            // HIGHLOW
            3 => Some(4),
            // ARM_MOV32, THUMB_MOV32, DIR64
            5 | 7 | 10 => Some(8),
            _ => None,
        }
    }
}

/// Base relocations of one page.
#[derive(Clone, Copy, Debug)]
pub struct RelocationBlock<'a> {
    /// What offsets are relative to, itself relative to the image base: a page's address, where nobody forges it.
    pub page: u32,
    entries: &'a [u8],
}

impl<'a> RelocationBlock<'a> {
    /// In table order.
    pub fn relocations(self) -> impl Iterator<Item = Relocation> + use<'a> {
        let entries = self.entries.as_chunks().0.iter().map(|entry| u16::from_le_bytes(*entry));
        entries.map(move |entry| Relocation { address: self.page.wrapping_add(u32::from(entry & 0xFFF)), kind: entry >> 12 })
    }
}

/// Reads base relocations.
#[derive(Clone, Debug)]
pub struct RelocationBlocks<'a> {
    /// blocks that are not begun; `None` when the file does not have the table
    rest: Option<&'a [u8]>,
    span: Option<Span>,
}

impl<'a> Iterator for RelocationBlocks<'a> {
    type Item = Result<RelocationBlock<'a>, Note>;

    fn next(&mut self) -> Option<Self::Item> {
        let block = self.block()?;
        Some(block.map_err(|detail| {
            self.rest = Some(&[]);
            Note { span: self.span, ..Note::new(Code::ImageRelocations, detail) }
        }))
    }
}

impl<'a> RelocationBlocks<'a> {
    /// `None` at the end of the table.
    fn block(&mut self) -> Option<Result<RelocationBlock<'a>, String>> {
        let Some(rest) = self.rest else { return Some(Err("the table lies outside the file".to_owned())) };
        if rest.iter().all(|b| *b == 0) {
            return None;
        }
        let (Some(page), Some(size)) = (bytes::le32(rest, 0), bytes::le32(rest, 4)) else {
            return Some(Err(format!("{} bytes follow the last block", rest.len())));
        };
        let Some((block, rest)) = rest.split_at_checked(index(size)).filter(|_| size.is_multiple_of(2)) else {
            return Some(Err(format!("a block for address {page:#x} of {size} bytes, {} are left", rest.len())));
        };
        // a block without its header ends the reading: nothing says where the next one begins
        let Some(entries) = block.get(8..) else { return Some(Err(format!("a block for address {page:#x} of {size} bytes"))) };
        self.rest = Some(rest);
        Some(Ok(RelocationBlock { page, entries }))
    }
}

impl<'a> Pe<'a> {
    /// The section that holds this address in memory.
    pub fn section_at(&self, address: u32) -> Option<&Section> {
        self.sections.iter().find(|s| address.checked_sub(s.address).is_some_and(|into| into < s.mapped_size()))
    }

    /// Bytes in the file from this address, relative to the image base, to the end of its section or of the headers. `None` where the file
    /// has none.
    pub fn at_address(&self, address: u32) -> Option<&'a [u8]> {
        let offset = self.file_offset(address)?;
        let end = match self.section_at(address) {
            Some(section) => index(section.file_offset.checked_add(section.file_size)?),
            None => index(self.headers.size_of_headers),
        };
        self.data.get(offset..end.min(self.data.len()))
    }

    /// Offset in the file of the byte at this address.
    pub fn file_offset(&self, address: u32) -> Option<usize> {
        let Some(section) = self.section_at(address) else {
            return (address < self.headers.size_of_headers).then(|| index(address));
        };
        let into = address.checked_sub(section.address).filter(|into| *into < section.file_size)?;
        section.file_offset.checked_add(into).map(index)
    }

    /// Reads the import table and the delay-load import table.
    pub fn imports(&self) -> Imports<'a> {
        if self.headers.is_plus { self.both_imports::<ImageNtHeaders64>() } else { self.both_imports::<ImageNtHeaders32>() }
    }

    /// Base relocations in table order, page by page; ends after the first error, which is an `ImageRelocations` note.
    ///
    /// Not read by `object`: it refuses blocks whose size is no multiple of 4, such as the 10-byte one that gnu-efi puts into shim.
    pub fn relocation_blocks(&self) -> RelocationBlocks<'a> {
        let directory = self.headers.directory(RELOCATION_DIRECTORY);
        let present = !directory.is_empty() && directory.size > 0;
        let table = if present { self.at_address(directory.address).and_then(|t| t.get(..index(directory.size))) } else { Some(&[][..]) };
        RelocationBlocks { rest: table, span: self.place(directory.address, directory.size) }
    }

    /// What the first version resource says. `None` without one; `resource_note` says whether that is for a fault.
    pub fn version_info(&self) -> Option<VersionInfo> {
        self.read_version().ok().flatten()
    }

    /// The security version number of a Windows boot manager: the resource of type RT_RCDATA that is named so, two numbers of 16 bits, the lesser
    /// one first.
    pub fn security_version(&self) -> Option<SecurityVersion> {
        let data = self.resource(RT_RCDATA, Some("BOOTMGRSECURITYVERSIONNUMBER")).ok()??;
        Some(SecurityVersion { major: bytes::le16(data, 2)?, minor: bytes::le16(data, 0)? })
    }

    /// `ImageResources`, when the way to the version resource is broken.
    pub fn resource_note(&self) -> Option<Note> {
        self.read_version().err().map(|detail| self.directory_note(Code::ImageResources, RESOURCE_DIRECTORY, detail))
    }

    /// Path of the PDB file in the first CodeView record, escaped where it is not printable ASCII.
    pub fn pdb(&self) -> Option<String> {
        let directory = self.headers.directory(DEBUG_DIRECTORY);
        if directory.is_empty() {
            return None;
        }
        let table = self.at_address(directory.address)?;
        let table = table.get(..index(directory.size)).unwrap_or(table);
        table.chunks_exact(SIZEOF_DEBUG_ENTRY).take(MAX_DEBUG_ENTRIES).find_map(|entry| {
            if bytes::le32(entry, 12)? != IMAGE_DEBUG_TYPE_CODEVIEW {
                return None;
            }
            let record = bytes::slice(self.data, index(bytes::le32(entry, 24)?), index(bytes::le32(entry, 16)?))?;
            let path = match record.get(..4)? {
                b"RSDS" => record.get(24..)?,
                b"NB10" => record.get(16..)?,
                _ => return None,
            };
            Some(c_string(path, MAX_PDB_PATH)?.escape_ascii().to_string().replace(r"\\", r"\"))
        })
    }

    /// Where the file has `len` bytes from an address, as far as it has them.
    pub(super) fn place(&self, address: u32, len: u32) -> Option<Span> {
        let offset = self.file_offset(address).filter(|offset| *offset < self.data.len())?;
        Some(Span::new(offset, index(len).min(self.data.len().saturating_sub(offset))))
    }

    /// A note that blames the table of a data directory.
    fn directory_note(&self, code: Code, which: usize, detail: impl Into<String>) -> Note {
        let directory = self.headers.directory(which);
        Note { span: self.place(directory.address, directory.size), ..Note::new(code, detail) }
    }

    fn both_imports<H: ImageNtHeaders>(&self) -> Imports<'a> {
        let sections = u32::try_from(self.sections.len()).unwrap_or(u32::MAX).max(1);
        let mut budget = Budget::new(MAX_IMPORTS.min(MAX_SECTION_STEPS.checked_div(sections).unwrap_or(0)));
        let mut imports = Imports::default();
        let loaded = self.read_imports::<H>(&mut imports, &mut budget);
        let delayed = self.read_delayed::<H>(&mut imports, &mut budget);
        for (directory, read) in [(IMPORT_DIRECTORY, loaded), (DELAY_IMPORT_DIRECTORY, delayed)] {
            imports.notes.extend(read.err().map(|detail| self.directory_note(Code::ImageImports, directory, detail)));
        }
        imports
    }

    fn read_imports<H: ImageNtHeaders>(&self, imports: &mut Imports<'a>, budget: &mut Budget) -> Result<(), String> {
        let directory = self.headers.directory(IMPORT_DIRECTORY);
        if directory.is_empty() {
            return Ok(());
        }
        // a table that begins at its own address: `object` wants the section
        let table = self.at_address(directory.address).ok_or_else(|| outside("the table", directory.address))?;
        let table = ImportTable::new(table, directory.address, directory.address);
        for descriptor in table.descriptors().map_err(|e| e.to_string())? {
            let descriptor = descriptor.map_err(|e| e.to_string())?;
            budget.spend().map_err(|e| e.to_string())?;
            let (name, slots) = (descriptor.name.get(LE), descriptor.first_thunk.get(LE));
            let lookup = Some(descriptor.original_first_thunk.get(LE)).filter(|address| *address != 0).unwrap_or(slots);
            imports.slots.push(slots);
            self.read_library::<H>(Library { name, lookup, slots, base: 0, delayed: false }, imports, budget)?;
        }
        Ok(())
    }

    /// The delay-load import table ("Delay-Load Import Tables" of the specification). Tools before Visual C++ 7 wrote virtual addresses into
    /// it where others have ones relative to the image base, and left the lowest bit of Attributes clear (`delayimp.h`, `dlattrRva`).
    fn read_delayed<H: ImageNtHeaders>(&self, imports: &mut Imports<'a>, budget: &mut Budget) -> Result<(), String> {
        const RELATIVE: u32 = 1;
        let directory = self.headers.directory(DELAY_IMPORT_DIRECTORY);
        if directory.is_empty() {
            return Ok(());
        }
        let table = self.at_address(directory.address).ok_or_else(|| outside("the delay-load table", directory.address))?;
        let table = DelayLoadImportTable::new(table, directory.address, directory.address);
        for descriptor in table.descriptors().map_err(|e| e.to_string())? {
            let descriptor = descriptor.map_err(|e| e.to_string())?;
            budget.spend().map_err(|e| e.to_string())?;
            // addresses of 32 bits are of no use to an image of 64
            let absolute = descriptor.attributes.get(LE) & RELATIVE == 0 && !self.headers.is_plus;
            let base = if absolute { u32::try_from(self.headers.image_base).unwrap_or(0) } else { 0 };
            let (name, lookup) = (descriptor.dll_name_rva.get(LE), descriptor.import_name_table_rva.get(LE));
            let slots = descriptor.import_address_table_rva.get(LE).saturating_sub(base);
            self.read_library::<H>(Library { name, lookup, slots, base, delayed: true }, imports, budget)?;
        }
        Ok(())
    }

    fn read_library<H: ImageNtHeaders>(&self, from: Library, imports: &mut Imports<'a>, budget: &mut Budget) -> Result<(), String> {
        let Library { name, lookup, slots, base, delayed } = from;
        let width = if self.headers.is_plus { 8 } else { 4 };
        let mut slot = slots;
        let at = |address: u32| self.at_address(address.checked_sub(base)?);
        let library = at(name).and_then(|d| c_string(d, MAX_NAME)).ok_or_else(|| outside("a library's name", name))?;
        let mut thunks = at(lookup)
            .and_then(|data| ImportTable::new(data, lookup, lookup).thunks(lookup).ok())
            .ok_or_else(|| outside("an import lookup table", lookup))?;
        while let Some(thunk) = thunks.next::<H>().map_err(|e| e.to_string())? {
            budget.spend().map_err(|e| e.to_string())?;
            let symbol = if thunk.is_ordinal() {
                Symbol::Ordinal(thunk.ordinal())
            } else {
                // hint, then name
                let address = thunk.address();
                let name = at(address).and_then(|d| c_string(d.get(2..)?, MAX_NAME));
                Symbol::Name(name.ok_or_else(|| outside("a function's name", address))?)
            };
            imports.imports.push(Import { library, symbol, slot, delayed });
            // one beyond 32 bits is in no image
            slot = slot.saturating_add(width);
        }
        Ok(())
    }

    fn read_version(&self) -> Result<Option<VersionInfo>, String> {
        let Some(data) = self.resource(RT_VERSION, None)? else { return Ok(None) };
        VersionInfo::read(data).map(Some).ok_or_else(|| "no VS_FIXEDFILEINFO in the version resource".to_owned())
    }

    /// The first resource of this type, of those that have this name if one is wanted, in whichever language comes first.
    fn resource(&self, kind: u16, wanted: Option<&str>) -> Result<Option<&'a [u8]>, String> {
        let directory = self.headers.directory(RESOURCE_DIRECTORY);
        if directory.is_empty() {
            return Ok(None);
        }
        let section = ResourceDirectory::new(self.at_address(directory.address).ok_or("the resources lie outside the file")?);
        let types = section.root().map_err(|e| e.to_string())?;
        let Some(of_kind) = types.entries.iter().find(|e| matches!(e.name_or_id(), ResourceNameOrId::Id(id) if id == kind)) else {
            return Ok(None);
        };
        // type, name, language: always three levels
        let names = of_kind.data(section).map_err(|e| e.to_string())?.table();
        let languages = match wanted {
            None => first(names, section)?.table(),
            Some(wanted) => {
                let is_wanted = |name: ResourceNameOrId| match name {
                    ResourceNameOrId::Name(name) => {
                        name.data(section).is_ok_and(|units| units.iter().map(|unit| unit.get(LE)).eq(wanted.encode_utf16()))
                    }
                    ResourceNameOrId::Id(_) => false,
                };
                let names = names.map(|table| table.entries).unwrap_or_default();
                let Some(named) = names.iter().take(MAX_RESOURCE_NAMES).find(|entry| is_wanted(entry.name_or_id())) else {
                    return Ok(None);
                };
                named.data(section).map_err(|e| e.to_string())?.table()
            }
        };
        let entry = first(languages, section)?.data().ok_or("a directory where the resource's data belong")?;
        let (address, size) = (entry.offset_to_data.get(LE), index(entry.size.get(LE)));
        self.at_address(address).and_then(|d| d.get(..size)).map(Some).ok_or_else(|| "the resource's data lie outside the file".to_owned())
    }
}

/// Where a descriptor says that a library's name and its import lookup table are, relative to `base` above the image base, and where the
/// slots for addresses are, relative to the image base.
#[derive(Clone, Copy)]
struct Library {
    name: u32,
    lookup: u32,
    slots: u32,
    base: u32,
    delayed: bool,
}

fn outside(what: &str, address: u32) -> String {
    format!("{what} at address {address:#x} lies outside the file")
}

/// What the first entry of a resource table leads to.
fn first<'a>(table: Option<ResourceDirectoryTable<'a>>, section: ResourceDirectory<'a>) -> Result<ResourceDirectoryEntryData<'a>, String> {
    let entry = table.as_ref().and_then(|t| t.entries.first()).ok_or("a resource directory is empty or missing")?;
    entry.data(section).map_err(|e| e.to_string())
}

/// The bytes before the first zero; `None` when there is none among the first `max`.
pub(super) fn c_string(data: &[u8], max: usize) -> Option<&[u8]> {
    let data = data.get(..max).unwrap_or(data);
    data.get(..data.iter().position(|b| *b == 0)?)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use super::{
        super::sample::{COFF, OPTIONAL, Sample},
        *,
    };

    #[test]
    fn imports_by_name_and_ordinal() {
        let sample = Sample::with_tables();
        let imports = Pe::parse(&sample.0).unwrap().imports();
        let library = &b"NTOSKRNL.exe"[..];
        let [name, ordinal] = [(Symbol::Name(b"ExAllocatePool"), 0x2050), (Symbol::Ordinal(5), 0x2058)].map(|(symbol, slot)| Import {
            library,
            symbol,
            slot,
            delayed: false,
        });
        assert_eq!(imports.imports, [name, ordinal]);
        assert_eq!((imports.slots, imports.notes), (vec![0x2050], vec![]));

        let delayed = |i: Import<'static>| Import { delayed: true, ..i };
        let sample = Sample::with_tables().delay_loading();
        let imports = Pe::parse(&sample.0).unwrap().imports();
        assert_eq!(imports.imports, [name, ordinal, delayed(name), delayed(ordinal)]);
        assert_eq!((imports.slots, imports.notes), (vec![0x2050], vec![]));
        let mut alone = Sample::with_tables().delay_loading();
        alone.directory(1, 0, 0);
        // the bit says nothing in an image of 64 bits
        alone.set32(0x7B0, 0);
        let imports = Pe::parse(&alone.0).unwrap().imports();
        assert_eq!((imports.imports, imports.slots, imports.notes), (vec![delayed(name), delayed(ordinal)], vec![], vec![]));
    }

    #[test]
    fn old_delay_load_tables_hold_virtual_addresses() {
        let mut sample = Sample::with_tables().delay_loading();
        sample.set16(OPTIONAL, 0x10B);
        sample.set16(COFF, 0x014C);
        sample.set32(OPTIONAL + 28, 0x1_0000);
        let directories = sample.0[OPTIONAL + 108..OPTIONAL + 240].to_vec();
        sample.bytes(OPTIONAL + 92, &directories);
        sample.bytes(OPTIONAL + 96 + 8, &[0; 8]);
        for (at, value) in
            [(0x7B0, 0), (0x7B4, 0x1_2070), (0x7BC, 0x1_2050), (0x7C0, 0x1_2030), (0x630, 0x1_2080), (0x634, 0x8000_0007), (0x638, 0)]
        {
            sample.set32(at, value);
        }
        let (library, delayed) = (&b"NTOSKRNL.exe"[..], true);
        let [name, ordinal] = [(Symbol::Name(b"ExAllocatePool"), 0x2050), (Symbol::Ordinal(7), 0x2054)].map(|(symbol, slot)| Import {
            library,
            symbol,
            slot,
            delayed,
        });
        let imports = Pe::parse(&sample.0).unwrap().imports();
        assert_eq!((imports.imports, imports.notes), (vec![name, ordinal], vec![]));
        // below the image base
        sample.set32(0x7B4, 0x2070);
        let notes = Pe::parse(&sample.0).unwrap().imports().notes;
        assert!(notes[0].detail.contains("a library's name at address 0x2070"), "{notes:?}");
    }

    #[test]
    fn faults_of_the_import_table_are_named() {
        let fault = |change: &dyn Fn(&mut Sample)| {
            let mut sample = Sample::with_tables();
            change(&mut sample);
            let [note] = <[Note; 1]>::try_from(Pe::parse(&sample.0).unwrap().imports().notes).unwrap();
            assert_eq!(note.code, Code::ImageImports);
            note.detail
        };
        assert!(fault(&|s| s.directory(1, 0x9000, 40)).contains("the table at address 0x9000"));
        assert!(fault(&|s| s.set32(0x60C, 0x9000)).contains("a library's name"));
        assert!(fault(&|s| s.set32(0x600, 0x9000)).contains("an import lookup table"));
        assert!(fault(&|s| s.set32(0x630, 0x9000)).contains("a function's name"));
        // a descriptor that is repeated to the end of the section
        assert!(fault(&|s| s.0[0x600..0x800].fill(0xFF)).contains("outside the file"));

        let delayed = |at: usize, value: u32| {
            fault(&|s| {
                *s = s.clone().delay_loading();
                s.set32(at, value);
            })
        };
        assert!(delayed(OPTIONAL + 112 + 13 * 8, 0x9000).contains("the delay-load table at address 0x9000"));
        assert!(delayed(0x7B4, 0x9000).contains("a library's name"));
        assert!(delayed(0x7C0, 0x9000).contains("an import lookup table"));
        // a second descriptor in place of the empty one, and no room for an empty one
        assert!(delayed(0x7D4, 0x9000).contains("a library's name at address 0x9000"));
        assert!(delayed(OPTIONAL + 112 + 13 * 8, 0x21F0).contains("null delay-load"));
    }

    #[test]
    fn both_import_tables_can_be_at_fault() {
        let mut sample = Sample::with_tables().delay_loading();
        sample.directory(1, 0x9000, 40);
        sample.directory(13, 0x9000, 64);
        let notes = Pe::parse(&sample.0).unwrap().imports().notes;
        assert_eq!(notes.len(), 2, "{notes:?}");
    }

    #[test]
    fn imports_are_bounded_by_sections_too() {
        let mut sample = Sample::with_tables();
        sample.0.resize(0x400 + 65_535 * 40, 0);
        let data = sample.0[0x600..0x800].to_vec();
        let count = 60_000_u16;
        sample.set16(COFF + 2, count);
        sample.0.extend_from_slice(&data);
        let at = u32::try_from(sample.0.len() - 0x200).unwrap();
        for n in 0..usize::from(count) {
            sample.section(n, b"s\0\0\0\0\0\0\0", [0x1000, 0x10_0000, 0, 0], 0x4000_0040);
        }
        // the last one holds an endless list of imports
        sample.section(usize::from(count) - 1, b"s\0\0\0\0\0\0\0", [0x20_0000, 0x2000, 0x20_0000, at], 0x4000_0040);
        sample.0.resize(sample.0.len() + 0x20_0000, 0x20);
        let thunks = usize::try_from(at).unwrap() + 0x30;
        for n in 0..10_000 {
            sample.set32(thunks + n * 8, 0x2080);
        }
        // and so does the delay-load table: the two have one budget
        sample.directory(13, 0x2000, 0x1000);
        let imports = Pe::parse(&sample.0).unwrap().imports();
        assert!(imports.imports.len() < 300, "{}", imports.imports.len());
        assert_eq!(imports.notes[0].detail, "the work budget is used up");
        assert_eq!(imports.notes.len(), 2);
    }

    #[test]
    fn relocations_of_every_width() {
        let sample = Sample::with_tables();
        let pe = Pe::parse(&sample.0).unwrap();
        let read: Vec<_> = pe.relocation_blocks().flat_map(|block| block.unwrap().relocations()).collect();
        assert_eq!(read, [Relocation { address: 0x1010, kind: 10 }, Relocation { address: 0x1000, kind: 0 }]);
        assert_eq!((read[0].width(), read[1].width(), Relocation { address: 0, kind: 9 }.width()), (Some(8), Some(0), None));
    }

    #[test]
    fn faults_of_the_relocation_table_are_named_once() {
        let read = |size: u32, block: u32| {
            let mut sample = Sample::with_tables();
            sample.directory(5, 0x20A0, size);
            sample.set32(0x6A4, block);
            let pe = Pe::parse(&sample.0).unwrap();
            let results: Vec<_> = pe.relocation_blocks().take(20).collect();
            (
                results.iter().flatten().flat_map(|block| block.relocations()).count(),
                results.into_iter().filter_map(Result::err).map(|n| n.detail).collect::<Vec<_>>(),
            )
        };
        // gnu-efi's block, an empty block, zeros behind the last block
        assert_eq!(read(10, 10), (1, vec![]));
        assert_eq!(read(8, 8), (0, vec![]));
        assert_eq!(read(16, 12), (2, vec![]));
        assert_eq!(read(12, 7).1.len(), 1);
        assert_eq!(read(12, 0).1, ["a block for address 0x1000 of 0 bytes"]);
        assert_eq!(read(12, 14).1, ["a block for address 0x1000 of 14 bytes, 12 are left"]);
        assert_eq!(read(11, 8), (0, vec!["3 bytes follow the last block".to_owned()]));
        assert_eq!(read(0x1000, 12), (0, vec!["the table lies outside the file".to_owned()]));
    }

    #[test]
    fn faults_of_the_version_resource_are_named() {
        let sample = Sample::with_tables();
        let version = VersionInfo { file: [10, 1, 2, 3], product: [11, 0, 0, 7], internal_name: None };
        assert_eq!(Pe::parse(&sample.0).unwrap().version_info(), Some(version));
        let fault = |at: usize, value: u32| {
            let mut sample = Sample::with_tables();
            sample.set32(at, value);
            let pe = Pe::parse(&sample.0).unwrap();
            assert_eq!(pe.version_info(), None);
            pe.resource_note().map(|n| n.detail)
        };
        assert_eq!(fault(0x700, 17), None);
        assert!(fault(0x770, 0).unwrap().contains("no VS_FIXEDFILEINFO"));
        assert!(fault(0x738, 0x9000).unwrap().contains("outside the file"));
        // a directory that is its own child ends after three levels
        assert!(fault(0x734, 0x8000_0030).unwrap().contains("a directory where"));
        assert!(fault(OPTIONAL + 128, 0x9000).unwrap().contains("the resources lie outside"));
    }

    #[test]
    fn addresses_without_file_bytes() {
        let mut sample = Sample::new();
        sample.section(1, b".bss\0\0\0\0", [0x1000, 0x2000, 0x100, 0x600], 0xC000_0080);
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!((pe.file_offset(0x20FF), pe.file_offset(0x2100), pe.file_offset(0x3000)), (Some(0x6FF), None, None));
        assert_eq!((pe.file_offset(0x10), pe.file_offset(0x400)), (Some(0x10), None));
        assert_eq!(pe.at_address(0x2080).map(<[u8]>::len), Some(0x80));
    }
}
