//! The guest's own loader: places a driver or a Linux module in memory as the guest's kernel does, and knows nothing of signatures.
//!
//! Reads the file with the `object` crate and takes the shortest way, so that it is a second opinion on what `hvci_engine::load` computes: the
//! tests compare the two on every module at hand. Nobody need believe it; what it got wrong, the engine refuses.

mod exports;
mod guest;
mod links;

use std::collections::BTreeMap;

pub use exports::{Loaded, PartialKernel};
pub use guest::{Guest, LoadFault, Tried};
pub use links::Links;

use hvci_engine::{
    addr::{Gpa, Gpn, Gva, PAGE_SIZE},
    host::Host,
    image::{elf::Elf, pe::Symbol},
    load::{self, Placement, Symbols},
    status::HvStatus,
};
use object::{
    LittleEndian, Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationKind, RelocationTarget,
    pe::{IMAGE_REL_BASED_DIR64, ImageNtHeaders64},
    read::{
        elf::ElfFile64,
        pe::{ImageNtHeaders, ImageOptionalHeader, ImageThunkData, Import, PeFile64},
    },
};

use crate::memory::{PAGE, page_offset};

/// The guest's loader gave up.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the guest's loader cannot place the file: {0}")]
pub struct GuestLoaderError(String);

impl From<object::Error> for GuestLoaderError {
    fn from(error: object::Error) -> Self {
        Self(error.to_string())
    }
}

impl From<load::Refusal> for GuestLoaderError {
    fn from(refusal: load::Refusal) -> Self {
        Self(refusal.to_string())
    }
}

fn wrong(what: impl Into<String>) -> GuestLoaderError {
    GuestLoaderError(what.into())
}

/// A kernel that exports everything, each symbol at an address of its own in the 16 MiB behind the start of its image; but for the functions
/// of control flow guard, which it does not have on.
#[derive(Clone, Copy, Debug, Default)]
pub struct StubKernel;

/// Where the kernel's image starts.
const KERNEL: u64 = 0xFFFF_FFFF_8100_0000;

impl Symbols for StubKernel {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        let name: &[u8] = match symbol {
            symbol if [load::GUARD_CHECK, load::GUARD_DISPATCH].contains(&symbol) => return None,
            Symbol::Name(name) => name,
            Symbol::Ordinal(ordinal) => &ordinal.to_le_bytes(),
        };
        // FNV-1a
        let hash =
            library.iter().chain(name).fold(0xCBF2_9CE4_8422_2325_u64, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3));
        Some(Gva(KERNEL + (hash % 0x10_0000) * 16))
    }
}

/// Where a Windows kernel puts drivers, and a Linux kernel modules: the address that `image` is placed at or behind.
pub fn region_of(image: &[u8]) -> Gva {
    Gva(if image.starts_with(b"MZ") { 0xFFFF_F800_1000_0000 } else { 0xFFFF_FFFF_C000_0000 })
}

/// A module in memory: successive bytes by the address of the first. Whatever lies between is zero.
pub type Memory = BTreeMap<u64, Vec<u8>>;

/// Places `file` at `base`: sections, relocations, imports of [`StubKernel`].
///
/// # Errors
/// [`GuestLoaderError`] for a file that no kernel's loader could place either.
pub fn place(file: &[u8], base: Gva) -> Result<Memory, GuestLoaderError> {
    place_with(file, base, &StubKernel)
}

/// The same with imports of `symbols`.
///
/// # Errors
/// As [`place`].
pub fn place_with(file: &[u8], base: Gva, symbols: &dyn Symbols) -> Result<Memory, GuestLoaderError> {
    if file.starts_with(b"MZ") { driver(file, base.0, symbols) } else { module(file, base, symbols) }
}

/// How many pages a module takes that is placed at `base`.
pub fn pages_of(memory: &Memory, base: Gva) -> u64 {
    let end = memory.iter().map(|(start, bytes)| start.wrapping_sub(base.0).saturating_add(bytes.len() as u64)).max();
    end.unwrap_or_default().div_ceil(PAGE_SIZE)
}

/// Puts a module that is placed at `base` into guest memory, from the page `at` on. What lies between is zeroed. Returns how many pages it takes.
///
/// # Errors
/// [`HvStatus::INVALID_PARAMETER`] where there is no RAM for it.
pub fn put(host: &dyn Host, memory: &Memory, base: Gva, at: Gpn) -> Result<u64, HvStatus> {
    let pages = pages_of(memory, base);
    let gpa = |offset: u64| at.gpa().and_then(|gpa| gpa.0.checked_add(offset)).map(Gpa).ok_or(HvStatus::INVALID_PARAMETER);
    for page in 0..pages {
        host.write(gpa(page * PAGE_SIZE)?, &[0; PAGE])?;
    }
    for (start, bytes) in memory {
        let mut offset = start.wrapping_sub(base.0);
        let mut rest = bytes.as_slice();
        while !rest.is_empty() {
            let (now, later) = rest.split_at(rest.len().min(PAGE - page_offset(offset)));
            host.write(gpa(offset)?, now)?;
            offset = offset.saturating_add(now.len() as u64);
            rest = later;
        }
    }
    Ok(pages)
}

/// The `len` bytes at `offset`.
fn bytes_at(bytes: &mut [u8], offset: u64, len: usize) -> Result<&mut [u8], GuestLoaderError> {
    let start = usize::try_from(offset).map_err(|_| wrong("an offset of 64 bits"))?;
    let end = start.checked_add(len).ok_or_else(|| wrong("an offset of 64 bits"))?;
    bytes.get_mut(start..end).ok_or_else(|| wrong(format!("{offset:#x} lies outside")))
}

fn driver(file: &[u8], base: u64, symbols: &dyn Symbols) -> Result<Memory, GuestLoaderError> {
    let pe = PeFile64::parse(file)?;
    let headers = pe.nt_headers().optional_header();
    let size = u64::from(headers.size_of_image());
    if size > load::MAX_IMAGE {
        return Err(wrong(format!("SizeOfImage is {size:#x}")));
    }
    let mut image = vec![0; usize::try_from(size.next_multiple_of(0x1000)).map_err(|_| wrong("too large"))?];
    let len = usize::try_from(headers.size_of_headers()).map_err(|_| wrong("too large"))?;
    let from = file.get(..len).ok_or_else(|| wrong("the headers are cut short"))?;
    bytes_at(&mut image, 0, len)?.copy_from_slice(from);
    for section in pe.sections() {
        let at = section.address().wrapping_sub(headers.image_base());
        let data = section.data()?;
        bytes_at(&mut image, at, data.len())?.copy_from_slice(data);
    }
    if let Some(mut blocks) = pe.data_directories().relocation_blocks(file, &pe.section_table())? {
        while let Some(block) = blocks.next()? {
            for relocation in block.filter(|r| r.typ == IMAGE_REL_BASED_DIR64) {
                let word = bytes_at(&mut image, u64::from(relocation.virtual_address), 8)?;
                let value = word.first_chunk().map_or(0, |word| u64::from_le_bytes(*word));
                word.copy_from_slice(&value.wrapping_sub(headers.image_base()).wrapping_add(base).to_le_bytes());
            }
        }
    }
    if let Some(table) = pe.import_table()? {
        let mut descriptors = table.descriptors()?;
        while let Some(descriptor) = descriptors.next()? {
            let library = table.name(descriptor.name.get(LittleEndian))?;
            let slots = descriptor.first_thunk.get(LittleEndian);
            let names = match descriptor.original_first_thunk.get(LittleEndian) {
                0 => slots,
                names => names,
            };
            let mut thunks = table.thunks(names)?;
            let mut slot = u64::from(slots);
            while let Some(thunk) = thunks.next::<ImageNtHeaders64>()? {
                let value = match table.import::<ImageNtHeaders64>(thunk)? {
                    Import::Ordinal(ordinal) => symbols.resolve(library, Symbol::Ordinal(ordinal)),
                    Import::Name(_, name) => symbols.resolve(library, Symbol::Name(name)),
                };
                let value = value.ok_or_else(|| wrong(format!("no export for import {:#x}", thunk.address())))?;
                bytes_at(&mut image, slot, 8)?.copy_from_slice(&value.0.to_le_bytes());
                slot = slot.saturating_add(8);
            }
        }
    }
    Ok(BTreeMap::from([(base, image)]))
}

fn module(file: &[u8], base: Gva, symbols: &dyn Symbols) -> Result<Memory, GuestLoaderError> {
    let parsed = Elf::parse(file).map_err(|e| wrong(e.to_string()))?;
    let placement = Placement::contiguous(&parsed, base)?;
    let places: BTreeMap<usize, u64> = placement.sections.iter().map(|p| (p.section, p.address.0)).collect();
    let elf = ElfFile64::<object::Endianness>::parse(file)?;
    let mut memory = Memory::new();
    for section in elf.sections() {
        let (Some(address), true) = (places.get(&section.index().0), section.size() > 0) else { continue };
        // each processor has a copy of per-CPU variables elsewhere; nobody verifies what is written all the time
        if section.name() == Ok(".data..percpu") {
            continue;
        }
        if section.size() > load::MAX_IMAGE {
            return Err(wrong(format!("a section of {:#x} bytes", section.size())));
        }
        let mut content = section.data()?.to_vec();
        content.resize(usize::try_from(section.size()).map_err(|_| wrong("too large"))?, 0);
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { return Err(wrong("a relocation without symbol")) };
            let symbol = elf.symbol_by_index(index)?;
            let value = match symbol.section_index() {
                Some(section) => {
                    let place = places.get(&section.0).ok_or_else(|| wrong("a symbol of a section that is not loaded"))?;
                    place.wrapping_add(symbol.address())
                }
                None if symbol.is_undefined() => match symbols.resolve(b"", Symbol::Name(symbol.name_bytes()?)) {
                    Some(address) => address.0,
                    None if symbol.is_weak() => 0,
                    None => return Err(wrong(format!("nothing exports {}", symbol.name().unwrap_or("a symbol")))),
                },
                None => symbol.address(),
            };
            let sum = value.wrapping_add_signed(relocation.addend());
            let relative = sum.wrapping_sub(address.wrapping_add(offset));
            let (sum, width) = match (relocation.kind(), relocation.flags()) {
                (RelocationKind::Absolute, _) => (sum, usize::from(relocation.size() / 8)),
                (RelocationKind::Relative | RelocationKind::PltRelative, _) => (relative, usize::from(relocation.size() / 8)),
                // `object` has no name for R_X86_64_PC64
                (_, RelocationFlags::Elf { r_type: object::elf::R_X86_64_PC64 }) => (relative, 8),
                (_, RelocationFlags::Elf { r_type: object::elf::R_X86_64_NONE }) => continue,
                (_, other) => return Err(wrong(format!("{other:?}"))),
            };
            let bytes = sum.to_le_bytes();
            let low = bytes.get(..width).ok_or_else(|| wrong("a relocation of more than 8 bytes"))?;
            bytes_at(&mut content, offset, width)?.copy_from_slice(low);
        }
        memory.insert(*address, content);
    }
    Ok(memory)
}
