//! ELF64 object files: Linux kernel modules (gABI chapter 4; Linux `kernel/module/main.c`, `elf_validity_cache_copy`).
//!
//! Reads the ELF header, the section header table, section names and `.modinfo`; never the contents of another section. Both byte orders.
//! As in the kernel, a signature trailer is cut off first: a header that points into it points outside the file.
//! `goblin` reads the headers, `object` reads them again, a difference is a finding.
//!
//! Refuses (an error): ELF32, entry sizes that are not those of ELF64, a section table outside the file, more than [`MAX_SECTIONS`]
//! sections. Everything else that a kernel would refuse is a note.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

mod appended;
mod lint;
mod machine;
mod modinfo;
mod names;
mod relocatable;
mod second;

pub use appended::{Appended, MODULE_SIG_STRING, MODULE_SIGNATURE_LEN};
use goblin::{
    container::{Container, Ctx, Endian},
    elf::{Header, header, section_header},
    elf64::{self, section_header::SectionHeader},
};
pub use modinfo::ModInfo;
use names::Names;
pub use relocatable::{Relocation, Section, Symbol, SymbolTable};

use super::ImageError;
use crate::{
    budget::MAX_SECTIONS,
    bytes::{Span, index, slice, widen},
    facts::{FileKind, ImageFacts, Permissions, SectionFacts},
    finding::{Code, Note},
};

/// An ELF64 file.
#[derive(Debug)]
pub struct Elf<'a> {
    content: &'a [u8],
    tables: Tables,
    names: Names<'a>,
    modinfo: Option<ModInfo<'a>>,
    signed: bool,
    divergence: Option<Note>,
}

/// What the first reader made of the headers.
#[derive(Debug)]
struct Tables {
    header: Header,
    sections: Vec<SectionHeader>,
    /// Index of the section that holds section names; 0: none
    names_index: usize,
}

impl<'a> Elf<'a> {
    /// Whether `data` begins as ELF files of any class do.
    pub fn is_elf(data: &[u8]) -> bool {
        data.starts_with(header::ELFMAG)
    }

    /// Reads the headers of a whole file, signature trailer included.
    ///
    /// # Errors
    /// [`Code::InputNotImage`] without the magic, [`Code::ImageUnsupported`] for ELF32, [`Code::ImageTruncated`] for tables outside the
    /// file, [`Code::ImageHeader`] for values that no kernel accepts, [`Code::ImageDivergence`] where only one of the readers accepts.
    pub fn parse(data: &'a [u8]) -> Result<Self, ImageError> {
        let appended = Appended::find(data);
        let content = appended.and_then(|a| a.content).unwrap_or(data);
        let tables = Tables::read(content)?;
        let divergence = second::difference(content, &tables).map(|detail| Note::new(Code::ImageDivergence, detail));
        let names = Names::new(tables.sections.get(tables.names_index).and_then(|s| section_bytes(content, s)).unwrap_or_default());
        let modinfo = tables
            .sections
            .iter()
            .find(|s| names.is_called(index(s.sh_name), ".modinfo"))
            .and_then(|s| section_bytes(content, s))
            .map(ModInfo::new);
        Ok(Self { content, tables, names, modinfo, signed: appended.is_some(), divergence })
    }

    /// [`FileKind::ElfModule`] for a relocatable object with `.modinfo` or a signature trailer, otherwise [`FileKind::ElfOther`].
    pub fn kind(&self) -> FileKind {
        let module = self.tables.header.e_type == header::ET_REL && (self.modinfo.is_some() || self.signed);
        if module { FileKind::ElfModule } else { FileKind::ElfOther }
    }

    /// What `.modinfo` says, if there is one.
    pub fn modinfo(&self) -> Option<ModInfo<'a>> {
        self.modinfo
    }

    /// Bytes of the first section called `name`, if it has bytes in the file.
    pub fn section(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.tables.sections.iter().find(|s| self.names.is_called(index(s.sh_name), name))?;
        section_bytes(self.content, section)
    }

    /// Headers and sections. A relocatable object has no image base; its length in memory is that of the sections that are loaded, each at
    /// its alignment.
    pub fn facts(&self) -> ImageFacts {
        let header = &self.tables.header;
        let loaded = || self.tables.sections.iter().filter(|s| s.sh_flags & u64::from(section_header::SHF_ALLOC) != 0);
        let end =
            |at: u64, s: &SectionHeader| at.checked_next_multiple_of(s.sh_addralign.max(1)).unwrap_or(u64::MAX).saturating_add(s.sh_size);
        let (file_version, vermagic) = self.modinfo.map_or((None, None), |m| m.version_and_vermagic());
        ImageFacts {
            format: "ELF64".to_owned(),
            machine: machine::machine(header.e_machine),
            subsystem: machine::object_type(header.e_type),
            entry: header.e_entry,
            image_size: loaded().fold(0, end),
            section_alignment: u32::try_from(loaded().map(|s| s.sh_addralign).max().unwrap_or(0)).unwrap_or(u32::MAX),
            file_version,
            vermagic,
            sections: self.sections().zip(&self.tables.sections).skip(1).map(|(s, header)| section_facts(&s, header)).collect(),
            ..ImageFacts::default()
        }
    }

    /// What is wrong or odd about the container: the readers' difference, section bounds, names, overlaps. At most 16 notes a code.
    pub fn notes(&self) -> Vec<Note> {
        let mut notes: Vec<Note> = self.divergence.iter().cloned().collect();
        notes.extend(self.names_note());
        notes.extend(lint::out_of_bounds(self));
        notes.extend(lint::overlaps(self));
        notes
    }

    /// What stands against loading it under enforced W^X: sections that are writable and executable. At most 16 notes.
    pub fn lint(&self) -> Vec<Note> {
        lint::writable_executable(self)
    }

    fn name(&self, section: &SectionHeader) -> String {
        self.names.shown(index(section.sh_name)).into_owned()
    }

    fn names_note(&self) -> Option<Note> {
        if self.tables.sections.is_empty() || self.names.is_terminated() {
            return None;
        }
        let index = self.tables.names_index;
        Some(Note::new(Code::ImageHeader, format!("e_shstrndx {index} is no table of section names")))
    }
}

impl Tables {
    fn read(content: &[u8]) -> Result<Self, ImageError> {
        if !Elf::is_elf(content) {
            return Err(ImageError::new(Code::InputNotImage, "no ELF magic"));
        }
        match content.get(header::EI_CLASS) {
            Some(&header::ELFCLASS64) => {}
            Some(&header::ELFCLASS32) => return Err(ImageError::new(Code::ImageUnsupported, "ELF32")),
            Some(class) => return Err(header_error(header::EI_CLASS, 1, format!("EI_CLASS is {class}"))),
            None => return Err(truncated(content)),
        }
        let header: Header = match elf64::header::Header::parse(content) {
            Ok(header) => header.into(),
            Err(_) if content.len() < EHDR_LEN => return Err(truncated(content)),
            Err(e) => return Err(header_error(0, EHDR_LEN, e.to_string())),
        };
        if content.get(header::EI_VERSION) != Some(&1) {
            return Err(header_error(header::EI_VERSION, 1, "EI_VERSION is not 1"));
        }
        let sections = read_sections(content, &header)?;
        let names_index = match header.e_shstrndx {
            SHN_XINDEX => sections.first().map_or(0, |s| index(s.sh_link)),
            i => usize::from(i),
        };
        Ok(Self { header, sections, names_index })
    }
}

fn read_sections(content: &[u8], header: &Header) -> Result<Vec<SectionHeader>, ImageError> {
    if header.e_shoff == 0 {
        return Ok(Vec::new());
    }
    if usize::from(header.e_shentsize) != SHDR_LEN {
        return Err(header_error(58, 2, format!("e_shentsize is {}", header.e_shentsize)));
    }
    let little_endian = header.endianness().map_err(|e| header_error(header::EI_DATA, 1, e.to_string()))? == Endian::Little;
    let ctx = Ctx { container: Container::Big, le: if little_endian { Endian::Little } else { Endian::Big } };
    let offset = usize::try_from(header.e_shoff).map_err(|_| table_outside(content, header, 1))?;
    let count = match header.e_shnum {
        0 => extended_count(content, offset, little_endian).ok_or_else(|| table_outside(content, header, 1))?,
        n => u64::from(n),
    };
    // before goblin allocates anything: the count must be one that the file can hold
    let count = usize::try_from(count).ok().filter(|n| *n <= MAX_SECTIONS);
    let count = count.ok_or_else(|| header_error(60, 2, format!("more than {MAX_SECTIONS} sections")))?;
    if count == 0 {
        return Ok(Vec::new());
    }
    let Some(table) = slice(content, offset, count.saturating_mul(SHDR_LEN)) else {
        return Err(table_outside(content, header, count));
    };
    if little_endian == cfg!(target_endian = "little") {
        // this processor's byte order: as they stand, which takes a third of the time that field by field takes
        return Ok(SectionHeader::from_bytes(table, count));
    }
    let sections = goblin::elf::SectionHeader::parse(content, offset, count, ctx).map_err(|e| {
        let code = if second::accepts(content) { Code::ImageDivergence } else { Code::ImageHeader };
        ImageError::new(code, format!("section headers: goblin: {e}"))
    })?;
    Ok(sections.into_iter().map(Into::into).collect())
}

/// `sh_size` of section 0, which holds the number of sections where `e_shnum` is 0 (gABI, `e_shnum`).
fn extended_count(content: &[u8], table: usize, little_endian: bool) -> Option<u64> {
    let bytes = crate::bytes::array(content, table.checked_add(32)?)?;
    Some(if little_endian { u64::from_le_bytes(bytes) } else { u64::from_be_bytes(bytes) })
}

/// Bytes of a section in the file; `None` for `SHT_NOBITS` and for what lies outside.
fn section_bytes<'a>(content: &'a [u8], section: &SectionHeader) -> Option<&'a [u8]> {
    if section.sh_type == section_header::SHT_NOBITS {
        return None;
    }
    slice(content, usize::try_from(section.sh_offset).ok()?, usize::try_from(section.sh_size).ok()?)
}

fn section_facts(section: &Section<'_>, header: &SectionHeader) -> SectionFacts {
    let permissions = Permissions::new([section.is_allocated(), section.is_writable(), section.is_executable(), false, section.is_init()]);
    SectionFacts {
        name: section.display_name(),
        address: header.sh_addr,
        memory_size: header.sh_size,
        file: file_span(header),
        permissions,
    }
}

/// Where the section says its bytes are; `None` for one that has none.
fn file_span(section: &SectionHeader) -> Option<Span> {
    let none = section.sh_type == section_header::SHT_NOBITS || section.sh_type == section_header::SHT_NULL;
    (!none).then_some(Span { offset: section.sh_offset, len: section.sh_size })
}

fn truncated(content: &[u8]) -> ImageError {
    let detail = format!("{} bytes, the ELF header has {EHDR_LEN}", content.len());
    ImageError::new(Code::ImageTruncated, detail).at(Span::new(0, content.len()))
}

fn table_outside(content: &[u8], header: &Header, count: usize) -> ImageError {
    let table = Span { offset: header.e_shoff, len: widen(count.saturating_mul(SHDR_LEN)) };
    let detail = format!("section headers at {table}, the file without signature ends at {:#x}", content.len());
    ImageError::new(Code::ImageTruncated, detail).at(table)
}

fn header_error(offset: usize, len: usize, detail: impl Into<String>) -> ImageError {
    ImageError::new(Code::ImageHeader, detail).at(Span::new(offset, len))
}

const EHDR_LEN: usize = 64;
const SHDR_LEN: usize = 64;
const SHN_XINDEX: u16 = 0xFFFF;

#[cfg(test)]
mod tests;
