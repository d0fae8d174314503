//! A Linux module in memory (Linux `kernel/module/main.c`: `layout_sections`, `simplify_symbols`; `arch/x86/kernel/module.c`:
//! `__write_relocate_add`; x86-64 psABI, "Relocation Types").
//!
//! - *Sections* that are allocated go by [`Class`] into pages that hold nothing else. As in the kernel, `.modinfo` and `__versions` are not
//!   loaded. Whatever is executable is code, by whatever name.
//! - *Addresses* are the guest's word ([`Placement`]), and come down to one page for each class: behind one another in the order of the
//!   section table, each at its alignment, is where a kernel puts the sections of a class. A guest that could move them at will would choose
//!   bytes of the displacements between them.
//! - *Relocations* are the six that the kernel applies, and must find zeros where they write, as the kernel demands. Sums that do not fit are
//!   refused, also where the kernel would not notice.
//! - *Symbols* are in a section that is loaded, absolute numbers of 32 bits, or exported by somebody else; one that is weak may be missing and is then 0.
//! - `.gnu.linkonce.this_module` is data like any other: what is expected is its content right after relocation. So a guest has the module
//!   verified before the kernel links it into its lists.
//! - *Per-CPU variables* (`.data..percpu`) lie in no page of the module and are not verified. Their address stands in the code, so that it is
//!   the guest's word where one may execute; it is held to be below [`PER_CPU_END`], as those of kernels before 6.15 are.
//!
//! Not applied: alternatives, paravirtual calls, retpolines, static calls, ftrace sites and jump labels that the kernel writes into code while
//! it loads; and the copy of the symbol table that it puts behind the data. A guest has the module verified before, and asks for patches.
//! Refuses livepatch modules, and whatever a kernel refuses.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::Arc;

use super::{
    Expected, Exports, Pages, Part, Refusal, Segment, Symbols,
    expected::{MAX_IMAGE, is_kernel_range, whole_pages},
};
use crate::{
    addr::{Gva, PAGE_SIZE},
    bytes::{index, widen},
    facts::FileKind,
    finding::{Code, Note},
    frames::Kind,
    image::{
        elf::{Elf, Relocation, Section, SymbolTable},
        pe,
    },
};

/// Addresses of per-CPU variables are offsets from the start of a processor's area, of which modules have a part near its start.
pub(super) const PER_CPU_END: u64 = 1 << 20;

const SHT_NOBITS: u32 = 8;
const SHT_RELA: u32 = 4;
const SHT_REL: u32 = 9;
/// write, alloc, execute, merge, strings, info link, link order, group: those that mean nothing to the loader, or what is done with them
const KNOWN_FLAGS: u64 = 0x2F7;
/// SHF_RELA_LIVEPATCH
const LIVEPATCH: u64 = 0x0010_0000;
const SHN_UNDEF: u16 = 0;
const SHN_LORESERVE: u16 = 0xFF00;
const SHN_ABS: u16 = 0xFFF1;
/// The largest absolute value that is no address of a kernel's.
const MAX_NUMBER: u64 = 0xFFFF_FFFF;

/// What is wrong with a module that is not loaded.
const REFUSED: [Code; 5] = [Code::ImageHeader, Code::ImageDivergence, Code::ImageSectionBounds, Code::ImageSectionOverlap, Code::ImageWx];

/// Where the guest says that it put the sections of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Placement {
    /// Each allocated section once, in any order; those without bytes may be missing.
    pub sections: Vec<Placed>,
}

/// Where a section is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Placed {
    /// Its number in the section header table.
    pub section: usize,
    /// Address of its first byte.
    pub address: Gva,
}

impl Placement {
    /// One class of sections behind the other, all of them from the page at `base` up. Per-CPU variables are at the start of their area.
    ///
    /// # Errors
    /// [`Refusal`]: the module takes more than [`MAX_IMAGE`], or asks for an alignment that is none.
    pub fn contiguous(elf: &Elf<'_>, base: Gva) -> Result<Self, Refusal> {
        let sections: Vec<Section<'_>> = elf.sections().collect();
        let mut placed = Vec::new();
        let mut start = base.0;
        for layout in Layout::of(&sections)? {
            let at = if layout.class == Class::PerCpu { 0 } else { start };
            placed.extend(
                layout.members.iter().map(|(section, offset)| Placed { section: *section, address: Gva(at.wrapping_add(*offset)) }),
            );
            start = start.wrapping_add(layout.pages()?);
        }
        Ok(Self { sections: placed })
    }
}

/// The module `elf`, loaded where `placement` says.
///
/// # Errors
/// [`Refusal`]: the module is none that is loaded, the placement cannot be, a symbol is not resolved, a relocation must not be.
pub fn elf(elf: &Elf<'_>, placement: &Placement, symbols: &dyn Symbols) -> Result<Expected<'static>, Refusal> {
    examined(elf, &[elf.notes(), elf.lint()].concat(), placement, symbols)
}

/// The same, of whose examination `notes` came.
pub(super) fn examined(elf: &Elf<'_>, notes: &[Note], placement: &Placement, symbols: &dyn Symbols) -> Result<Expected<'static>, Refusal> {
    if !elf.is_x86_64_object() || elf.kind() != FileKind::ElfModule {
        return Err(Refusal::unsupported("no module for x86-64"));
    }
    Refusal::any(notes, &REFUSED)?;
    let mut module = Module::place(elf, placement)?;
    let table = elf.symbol_table().ok_or_else(|| Refusal::layout("there is no symbol table, or more than one"))?;
    let resolved = module.resolve(&table, symbols)?;
    module.relocate(&table, &resolved.values)?;
    let exports = Arc::new(Exports::of_module(&module.segments));
    Ok(Expected { segments: module.segments, entry: resolved.entry, security_cookie: None, exports })
}

/// What memory a section goes into (Linux `enum mod_mem_type`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Class {
    Text,
    RoData,
    RoAfterInit,
    Data,
    InitText,
    InitRoData,
    InitData,
    PerCpu,
}

impl Class {
    const ALL: [Self; 8] =
        [Self::Text, Self::RoData, Self::RoAfterInit, Self::Data, Self::InitText, Self::InitRoData, Self::InitData, Self::PerCpu];

    /// `None` for a section that is not loaded.
    fn of(section: &Section<'_>) -> Option<Self> {
        if !section.is_allocated() || section.is_called(".modinfo") || section.is_called("__versions") {
            return None;
        }
        let init = section.is_init();
        Some(if section.is_executable() {
            if init { Self::InitText } else { Self::Text }
        } else if section.is_called(".data..percpu") {
            Self::PerCpu
        } else if !section.is_writable() {
            if init { Self::InitRoData } else { Self::RoData }
        } else if section.is_called(".data..ro_after_init") || section.is_called("__jump_table") {
            Self::RoAfterInit
        } else if init {
            Self::InitData
        } else {
            Self::Data
        })
    }

    const fn name(self) -> &'static str {
        match self {
            Self::Text => "text",
            Self::RoData => "rodata",
            Self::RoAfterInit => "ro_after_init",
            Self::Data => "data",
            Self::InitText => "init text",
            Self::InitRoData => "init rodata",
            Self::InitData => "init data",
            Self::PerCpu => "percpu",
        }
    }

    const fn kind(self) -> Kind {
        match self {
            Self::Text | Self::InitText => Kind::Code,
            Self::RoData | Self::InitRoData => Kind::RoData,
            Self::RoAfterInit => Kind::RoAfterInit,
            Self::Data | Self::InitData | Self::PerCpu => Kind::Data,
        }
    }

    const fn is_discardable(self) -> bool {
        matches!(self, Self::InitText | Self::InitRoData | Self::InitData)
    }
}

/// The sections of a class.
struct Layout {
    class: Class,
    /// number and offset, in order of both
    members: Vec<(usize, u64)>,
    /// end of the last section with bytes; 0 for a class that takes no memory
    len: u64,
}

impl Layout {
    /// Of each class, in the order of [`Class::ALL`]: where its sections are relative to one another (`module_get_offset`).
    fn of(sections: &[Section<'_>]) -> Result<[Self; 8], Refusal> {
        let mut layouts = Class::ALL.map(|class| Self { class, members: Vec::new(), len: 0 });
        let mut ends = [0_u64; 8];
        for section in sections {
            let Some(class) = Class::of(section) else { continue };
            let Some((layout, end)) = layouts.iter_mut().zip(&mut ends).find(|(layout, _)| layout.class == class) else { continue };
            let alignment = section.alignment.max(1);
            if !alignment.is_power_of_two() || section.flags & !KNOWN_FLAGS != 0 {
                let detail = format!("sh_addralign {alignment:#x}, sh_flags {:#x}", section.flags);
                return Err(Refusal::unsupported(detail).of(section.display_name()));
            }
            let offset = end.checked_next_multiple_of(alignment);
            let next = offset.and_then(|offset| offset.checked_add(section.size)).filter(|end| *end <= MAX_IMAGE);
            let (Some(offset), Some(next)) = (offset, next) else { return Err(too_large().of(section.display_name())) };
            layout.members.push((section.index, offset));
            if section.size > 0 {
                layout.len = next;
            }
            *end = next;
        }
        Ok(layouts)
    }

    /// Bytes of whole pages; none for per-CPU variables.
    fn pages(&self) -> Result<u64, Refusal> {
        if self.class == Class::PerCpu { Ok(0) } else { whole_pages(self.len).map(widen).ok_or_else(too_large) }
    }
}

/// A module in memory.
struct Module<'a> {
    sections: Vec<Section<'a>>,
    /// of each section
    places: Vec<Place>,
    segments: Vec<Segment<'static>>,
}

#[derive(Clone, Copy, Default)]
struct Place {
    address: Option<u64>,
    /// number and offset; `None` for a section without bytes and for per-CPU variables
    segment: Option<(usize, usize)>,
}

struct Resolved {
    /// Of each symbol; `None` for one in a section that is not loaded.
    values: Vec<Option<u64>>,
    entry: Option<Gva>,
}

impl<'a> Module<'a> {
    fn place(elf: &Elf<'a>, placement: &Placement) -> Result<Self, Refusal> {
        let sections: Vec<Section<'a>> = elf.sections().collect();
        let mut module = Self { places: vec![Place::default(); sections.len()], segments: Vec::new(), sections };
        for placed in &placement.sections {
            module.take(placed)?;
        }
        let mut layouts = Vec::with_capacity(Class::ALL.len());
        let mut total = 0_u64;
        for layout in Layout::of(&module.sections)? {
            total = total.saturating_add(layout.pages()?);
            layouts.push((module.base(&layout)?, layout));
        }
        if total > MAX_IMAGE {
            return Err(too_large());
        }
        layouts.sort_unstable_by_key(|(base, _)| *base);
        // where an empty class may be
        let mut edges = vec![0];
        let mut end = 0;
        for (base, layout) in layouts.iter().filter(|(_, layout)| layout.len > 0) {
            module.settle(layout, *base)?;
            if layout.class == Class::PerCpu {
                continue;
            }
            if *base < end {
                let detail = format!("{} at {} shares pages with other sections", layout.class.name(), Gva(*base));
                return Err(Refusal::placement(detail).of(layout.class.name()));
            }
            // `base` has made sure that it does not overflow
            end = base.saturating_add(layout.pages()?);
            edges.extend([*base, end]);
            module.fill(*base, layout)?;
        }
        for (_, layout) in layouts.iter().filter(|(_, layout)| layout.len == 0) {
            module.settle_empty(layout, &edges)?;
        }
        Ok(module)
    }

    /// Takes the guest's word for the address of one section.
    fn take(&mut self, placed: &Placed) -> Result<(), Refusal> {
        let bad = |detail: String| Refusal::placement(format!("section {} at {}: {detail}", placed.section, placed.address));
        let (Some(section), Some(place)) = (self.sections.get(placed.section), self.places.get_mut(placed.section)) else {
            return Err(bad("there is none".to_owned()));
        };
        if Class::of(section).is_none() {
            return Err(bad(format!("{} is not loaded", section.display_name())).of(section.display_name()));
        }
        match place.address.replace(placed.address.0) {
            None => Ok(()),
            Some(before) => Err(bad(format!("{} is at {} too", section.display_name(), Gva(before))).of(section.display_name())),
        }
    }

    /// Where a class begins: told by its first section with bytes. 0 for one that takes no memory.
    fn base(&self, layout: &Layout) -> Result<u64, Refusal> {
        let size = |section: usize| self.sections.get(section).map_or(0, |s| s.size);
        let Some((first, offset)) = layout.members.iter().copied().find(|(section, _)| size(*section) > 0) else { return Ok(0) };
        let name = self.sections.get(first).map(Section::display_name).unwrap_or_default();
        let Some(address) = self.places.get(first).and_then(|p| p.address) else {
            return Err(Refusal::placement(format!("{name} is not placed")).of(name));
        };
        let base = address.wrapping_sub(offset);
        let possible = match layout.class {
            // no page of the module; only as aligned as its variables
            Class::PerCpu => {
                let alignment = layout.members.iter().filter_map(|(section, _)| self.sections.get(*section)).map(|s| s.alignment).max();
                let aligned = base.is_multiple_of(alignment.unwrap_or(1).clamp(1, PAGE_SIZE));
                aligned && base.checked_add(layout.len).is_some_and(|end| end <= PER_CPU_END)
            }
            _ => base.is_multiple_of(PAGE_SIZE) && is_kernel_range(base, layout.pages()?),
        };
        if !possible {
            let detail = format!("{name} at {}: {} cannot begin at {}", Gva(address), layout.class.name(), Gva(base));
            return Err(Refusal::placement(detail).of(name));
        }
        Ok(base)
    }

    /// Compares the guest's word for every section of a class with where it must be. One without bytes may have been left out.
    fn settle(&mut self, layout: &Layout, base: u64) -> Result<(), Refusal> {
        for (which, offset) in &layout.members {
            let (Some(section), Some(place)) = (self.sections.get(*which), self.places.get_mut(*which)) else { continue };
            // wraps only behind the last section with bytes
            let right = base.wrapping_add(*offset);
            let found = match place.address {
                Some(address) if address != right => Gva(address).to_string(),
                None if section.size > 0 => "nowhere".to_owned(),
                _ => {
                    place.address = Some(right);
                    continue;
                }
            };
            let name = section.display_name();
            return Err(Refusal::placement(format!("{name} is at {found}, and belongs at {}", Gva(right))).of(name));
        }
        Ok(())
    }

    /// The sections of a class that takes no memory: kernels have them at 0, or where it would begin, behind another class.
    fn settle_empty(&self, layout: &Layout, edges: &[u64]) -> Result<(), Refusal> {
        for (which, _) in &layout.members {
            let address = self.places.get(*which).and_then(|p| p.address);
            if let Some(address) = address.filter(|address| !edges.contains(address)) {
                let name = self.sections.get(*which).map(Section::display_name).unwrap_or_default();
                return Err(Refusal::placement(format!("{name} is empty and at {}", Gva(address))).of(name));
            }
        }
        Ok(())
    }

    /// Makes the segment of a class.
    fn fill(&mut self, base: u64, layout: &Layout) -> Result<(), Refusal> {
        let len = whole_pages(layout.len).ok_or_else(too_large)?;
        let number = self.segments.len();
        let mut bytes = Vec::new();
        let mut parts = Vec::with_capacity(layout.members.len());
        for (which, offset) in &layout.members {
            let (Some(section), Some(place)) = (self.sections.get(*which), self.places.get_mut(*which)) else { continue };
            if section.size == 0 {
                continue;
            }
            let at = usize::try_from(*offset).unwrap_or(usize::MAX);
            place.segment = Some((number, at));
            parts.push(Part { section: section.display_name(), offset: *offset, len: section.size });
            match section.bytes {
                Some(content) => {
                    bytes.reserve_exact(len.saturating_sub(bytes.len()));
                    bytes.resize(at.min(len), 0);
                    bytes.extend_from_slice(content);
                }
                None if section.kind == SHT_NOBITS => {}
                None => return Err(Refusal::layout(format!("{} has no bytes", section.display_name())).of(section.display_name())),
            }
        }
        if bytes.is_empty() {
            bytes = vec![0; len];
        }
        bytes.resize(len, 0);
        self.segments.push(Segment {
            name: layout.class.name().into(),
            start: Gva(base),
            kind: layout.class.kind(),
            discardable: layout.class.is_discardable(),
            bytes: Pages::computed(bytes),
            parts,
        });
        Ok(())
    }

    /// Finds out what every symbol is, as the kernel does before it relocates anything.
    fn resolve(&self, table: &SymbolTable<'_>, symbols: &dyn Symbols) -> Result<Resolved, Refusal> {
        let mut resolved = Resolved { values: Vec::with_capacity(table.iter().len()), entry: None };
        for (number, symbol) in table.iter().enumerate() {
            let value = match symbol.section {
                // the first is empty
                SHN_UNDEF if number == 0 => None,
                SHN_UNDEF => {
                    let name = symbol.name().ok_or_else(|| Refusal::layout(format!("symbol {number} has no name")))?;
                    match symbols.resolve(b"", pe::Symbol::Name(name)) {
                        Some(address) => Some(address.0),
                        None if symbol.is_weak() => Some(symbol.value),
                        None => return Err(Refusal::unresolved(name.escape_ascii().to_string())),
                    }
                }
                // a number, such as the CRC of an export; an address is one of the module's own or somebody's export
                SHN_ABS => Some(symbol.value).filter(|value| *value <= MAX_NUMBER),
                // common symbols, those of livepatch, tables of more than 65,279 sections: as in the kernel
                SHN_LORESERVE.. => {
                    let name = symbol.name().unwrap_or_default().escape_ascii();
                    return Err(Refusal::unsupported(format!("symbol {number}, {name}, in section {:#06x}", symbol.section)));
                }
                section => {
                    let section = usize::from(section);
                    let size = self.sections.get(section).map_or(0, |s| s.size);
                    let address = self.places.get(section).and_then(|p| p.address).filter(|_| symbol.value <= size);
                    address.map(|address| address.wrapping_add(symbol.value))
                }
            };
            if symbol.is_global() && symbol.is_called("init_module") {
                let is_code = self.sections.get(usize::from(symbol.section)).is_some_and(|s| s.is_executable() && symbol.value < s.size);
                let entry = value.filter(|_| is_code).ok_or_else(|| Refusal::layout("init_module is in no executable section"))?;
                resolved.entry = Some(Gva(entry));
            }
            resolved.values.push(value);
        }
        Ok(resolved)
    }

    fn relocate(&mut self, table: &SymbolTable<'_>, values: &[Option<u64>]) -> Result<(), Refusal> {
        for relocations in self.sections.iter().filter(|s| matches!(s.kind, SHT_RELA | SHT_REL)) {
            let name = || relocations.display_name();
            if relocations.flags & LIVEPATCH != 0 {
                return Err(Refusal::unsupported("relocations for livepatch").of(name()));
            }
            let place = self.places.get(index(relocations.info)).copied().unwrap_or_default();
            // as the kernel: of a section that is not loaded they are not applied
            let (Some(address), Some((segment, offset))) = (place.address, place.segment) else { continue };
            if relocations.kind == SHT_REL {
                return Err(Refusal::relocation_kind("relocations without addends").of(name()));
            }
            if index(relocations.link) != table.section {
                let detail = format!("sh_link is {}, the symbol table is section {}", relocations.link, table.section);
                return Err(Refusal::relocation(detail).of(name()));
            }
            // empty for a section without bytes in the file
            let len = self.sections.get(index(relocations.info)).and_then(|s| s.bytes).map_or(0, <[u8]>::len);
            let target = self.segments.get_mut(segment).and_then(|s| s.bytes.get_mut(offset..offset.saturating_add(len)));
            let target = target.unwrap_or_default();
            for relocation in relocations.relocations() {
                apply(&relocation, values, address, target).map_err(|fault| fault.of(&relocation).of(name()))?;
            }
        }
        Ok(())
    }
}

/// Why a relocation is not applied.
#[derive(Clone, Copy)]
enum Fault {
    Symbol,
    Overflow,
    Place,
    Kind,
}

impl Fault {
    #[cold]
    fn of(self, relocation: &Relocation) -> Refusal {
        let Relocation { offset, kind, symbol, .. } = *relocation;
        let what = match self {
            Self::Kind => return Refusal::relocation_kind(format!("type {kind} at offset {offset:#x}")),
            Self::Symbol => "the symbol is in nothing that is loaded",
            Self::Overflow => "the value does not fit",
            Self::Place => "it is to be written outside its section, or over something else",
        };
        Refusal::relocation(format!("type {kind} at offset {offset:#x}, symbol {symbol}: {what}"))
    }
}

/// Applies one relocation to the section `target` at `address`.
fn apply(relocation: &Relocation, values: &[Option<u64>], address: u64, target: &mut [u8]) -> Result<(), Fault> {
    const NONE: u32 = 0;
    const R64: u32 = 1;
    const PC32: u32 = 2;
    const PLT32: u32 = 4;
    const R32: u32 = 10;
    const R32S: u32 = 11;
    const PC64: u32 = 24;
    let Relocation { offset, kind, symbol, addend } = *relocation;
    if kind == NONE {
        return Ok(());
    }
    let Some(Some(value)) = values.get(symbol) else { return Err(Fault::Symbol) };
    let sum = value.wrapping_add_signed(addend);
    let relative = sum.wrapping_sub(address.wrapping_add(offset)).cast_signed();
    let wide = sum.to_le_bytes();
    let overflow = |_| Fault::Overflow;
    match kind {
        R64 => put(target, offset, wide),
        PC64 => put(target, offset, relative.to_le_bytes()),
        PC32 | PLT32 => put(target, offset, i32::try_from(relative).map_err(overflow)?.to_le_bytes()),
        R32 => put(target, offset, u32::try_from(sum).map_err(overflow)?.to_le_bytes()),
        R32S => put(target, offset, i32::try_from(sum.cast_signed()).map_err(overflow)?.to_le_bytes()),
        _ => return Err(Fault::Kind),
    }
    .ok_or(Fault::Place)
}

/// Writes over zeros, as the kernel demands.
fn put<const N: usize>(target: &mut [u8], offset: u64, value: [u8; N]) -> Option<()> {
    let place = target.get_mut(usize::try_from(offset).ok()?..)?.first_chunk_mut::<N>()?;
    (*place == [0; N]).then(|| *place = value)
}

fn too_large() -> Refusal {
    Refusal::too_large(format!("the module takes more than {MAX_IMAGE:#x} bytes"))
}

#[cfg(test)]
mod tests;
