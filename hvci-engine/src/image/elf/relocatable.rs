//! What an object file holds for the one who loads it: sections, symbols, relocations (gABI chapter 4, "Sections", "Symbol Table",
//! "Relocation").
//!
//! Symbols and relocations are read from little-endian files only; those of others read as none. Trusts nothing: an index, an offset or a
//! value that is handed out may be any number.

use goblin::{
    elf::{header, section_header},
    elf64::section_header::SectionHeader,
};
use smol_str::SmolStr;

use super::{
    Elf,
    names::{Names, is_called},
    section_bytes,
};
use crate::bytes::{index, le16, le32, le64};

/// How long a symbol's name may be (Linux `include/linux/kallsyms.h`, `KSYM_NAME_LEN`).
const MAX_SYMBOL_NAME: usize = 512;
const SYMBOL_LEN: usize = 24;
const RELA_LEN: usize = 24;

/// A section with what a loader needs of it.
#[derive(Clone, Copy, Debug)]
pub struct Section<'a> {
    /// Its number in the section header table.
    pub index: usize,
    /// `sh_type`.
    pub kind: u32,
    /// `sh_flags`.
    pub flags: u64,
    /// `sh_size`: bytes in memory.
    pub size: u64,
    /// `sh_addralign`; 0 and 1 ask for nothing.
    pub alignment: u64,
    /// `sh_link`.
    pub link: u32,
    /// `sh_info`.
    pub info: u32,
    /// Its bytes in the file; `None` for `SHT_NOBITS`, and where the file does not have them.
    pub bytes: Option<&'a [u8]>,
    names: Names<'a>,
    name: usize,
}

impl<'a> Section<'a> {
    /// Whether it is loaded (`SHF_ALLOC`).
    pub const fn is_allocated(&self) -> bool {
        self.flags & 2 != 0
    }

    /// `SHF_WRITE`.
    pub const fn is_writable(&self) -> bool {
        self.flags & 1 != 0
    }

    /// `SHF_EXECINSTR`.
    pub const fn is_executable(&self) -> bool {
        self.flags & 4 != 0
    }

    /// Whether that is its name.
    pub fn is_called(&self, name: &str) -> bool {
        self.names.is_called(self.name, name)
    }

    /// Whether the kernel frees it when the module's init function returns (`module_init_section`).
    pub fn is_init(&self) -> bool {
        self.names.begins(self.name, b".init")
    }

    /// Name for people: escaped where it is not printable, cut off at 64 bytes.
    pub fn display_name(&self) -> SmolStr {
        self.names.shown(self.name).into()
    }

    /// Relocations with addends; none unless the section is of type `SHT_RELA` and in the file.
    pub fn relocations(&self) -> impl Iterator<Item = Relocation> + use<'a> {
        let table = self.bytes.filter(|_| self.kind == section_header::SHT_RELA).unwrap_or_default();
        table.as_chunks::<RELA_LEN>().0.iter().filter_map(|entry| {
            Some(Relocation {
                offset: le64(entry, 0)?,
                kind: le32(entry, 8)?,
                symbol: index(le32(entry, 12)?),
                addend: le64(entry, 16)?.cast_signed(),
            })
        })
    }
}

/// An `Elf64_Rela`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Relocation {
    /// `r_offset`: of the first byte that it changes, in the section that `sh_info` names.
    pub offset: u64,
    /// `ELF64_R_TYPE`.
    pub kind: u32,
    /// `ELF64_R_SYM`: number in the symbol table.
    pub symbol: usize,
    /// `r_addend`.
    pub addend: i64,
}

/// The symbol table.
#[derive(Clone, Copy, Debug)]
pub struct SymbolTable<'a> {
    /// Number of its section.
    pub section: usize,
    entries: &'a [[u8; SYMBOL_LEN]],
    names: &'a [u8],
}

impl<'a> SymbolTable<'a> {
    /// Every symbol in order, the empty one at 0 too.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = Symbol<'a>> + use<'a> {
        let names = self.names;
        self.entries.iter().map(move |entry| Symbol {
            names,
            name: le32(entry, 0).map_or(usize::MAX, index),
            info: entry.get(4).copied().unwrap_or(0),
            section: le16(entry, 6).unwrap_or(0),
            value: le64(entry, 8).unwrap_or(0),
        })
    }
}

/// An `Elf64_Sym`.
#[derive(Clone, Copy, Debug)]
pub struct Symbol<'a> {
    /// `st_info`: binding and type.
    pub info: u8,
    /// `st_shndx`.
    pub section: u16,
    /// `st_value`: offset in its section, or the value itself.
    pub value: u64,
    names: &'a [u8],
    name: usize,
}

impl<'a> Symbol<'a> {
    /// Whether it is of binding `STB_GLOBAL`.
    pub const fn is_global(&self) -> bool {
        self.info >> 4 == 1
    }

    /// Whether it is of binding `STB_WEAK`: it need not be defined.
    pub const fn is_weak(&self) -> bool {
        self.info >> 4 == 2
    }

    /// Whether that is its name.
    pub fn is_called(&self, name: &str) -> bool {
        is_called(self.names, self.name, name)
    }

    /// Its name; `None` where the table of names has none that ends within 512 bytes.
    pub fn name(&self) -> Option<&'a [u8]> {
        let rest = self.names.get(self.name..)?;
        let longest = rest.get(..MAX_SYMBOL_NAME).unwrap_or(rest);
        longest.get(..longest.iter().position(|b| *b == 0)?)
    }
}

impl<'a> Elf<'a> {
    /// Whether it is a relocatable object for x86-64.
    pub const fn is_x86_64_object(&self) -> bool {
        let header = &self.tables.header;
        let [_, _, _, _, _, data, ..] = header.e_ident;
        header.e_type == header::ET_REL && header.e_machine == header::EM_X86_64 && data == header::ELFDATA2LSB
    }

    /// Every section in order, the empty one at 0 too.
    pub fn sections(&self) -> impl ExactSizeIterator<Item = Section<'a>> {
        let (content, names) = (self.content, self.names);
        self.tables.sections.iter().enumerate().map(move |(index, s): (usize, &SectionHeader)| Section {
            index,
            kind: s.sh_type,
            flags: s.sh_flags,
            size: s.sh_size,
            alignment: s.sh_addralign,
            link: s.sh_link,
            info: s.sh_info,
            bytes: section_bytes(content, s),
            names,
            name: crate::bytes::index(s.sh_name),
        })
    }

    /// The symbol table; `None` unless there is exactly one, as the kernel has it (`elf_validity_cache_index_sym`), with a table of names.
    pub fn symbol_table(&self) -> Option<SymbolTable<'a>> {
        let mut tables = self.sections().filter(|s| s.kind == section_header::SHT_SYMTAB);
        let (table, None) = (tables.next()?, tables.next()) else { return None };
        if self.tables.header.e_ident.get(header::EI_DATA) != Some(&header::ELFDATA2LSB) {
            return None;
        }
        let names = self.tables.sections.get(index(table.link)).filter(|s| s.sh_type == section_header::SHT_STRTAB)?;
        let names = section_bytes(self.content, names)?;
        Some(SymbolTable { section: table.index, entries: table.bytes?.as_chunks().0, names })
    }
}
