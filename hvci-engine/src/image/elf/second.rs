//! The second opinion: the same headers through `object`, which shares no code with the first reader (`goblin`).
//!
//! `goblin` copies the section table and checks little; `object` borrows it and checks entry size and version. What one accepts and the
//! other does not, or reads otherwise, is how checks get bypassed: the caller reports it and nobody loads the file.

use goblin::{elf::Header, elf64::section_header::SectionHeader};
use object::{
    Endianness,
    elf::{FileHeader64, SectionHeader64},
    read::elf::{FileHeader as _, SectionHeader as _},
};

use super::Tables;

/// Where `object` reads `content` otherwise than `first`, as text; `None` where both agree.
pub(super) fn difference(content: &[u8], first: &Tables) -> Option<String> {
    match read(content) {
        Err(e) => Some(format!("goblin reads the headers, object does not: {e}")),
        Ok((endian, header, sections, names)) => header_difference(endian, header, &first.header)
            .or_else(|| sections_difference(endian, sections, &first.sections))
            .or_else(|| (names != first.names_index).then(|| format!("section name table: goblin {}, object {names}", first.names_index))),
    }
}

/// Whether `object` reads the headers that the first reader refused.
pub(super) fn accepts(content: &[u8]) -> bool {
    read(content).is_ok()
}

type Read<'a> = (Endianness, &'a FileHeader64<Endianness>, &'a [SectionHeader64<Endianness>], usize);

fn read(content: &[u8]) -> object::read::Result<Read<'_>> {
    let header = FileHeader64::<Endianness>::parse(content)?;
    let endian = header.endian()?;
    let sections = header.section_headers(endian, content)?;
    let names = if sections.is_empty() { 0 } else { header.shstrndx(endian, content).map_or(0, crate::bytes::index) };
    Ok((endian, header, sections, names))
}

fn header_difference(e: Endianness, b: &FileHeader64<Endianness>, a: &Header) -> Option<String> {
    let fields: [(&str, u64, u64); 13] = [
        ("e_type", a.e_type.into(), b.e_type.get(e).into()),
        ("e_machine", a.e_machine.into(), b.e_machine.get(e).into()),
        ("e_version", a.e_version.into(), b.e_version.get(e).into()),
        ("e_entry", a.e_entry, b.e_entry.get(e)),
        ("e_phoff", a.e_phoff, b.e_phoff.get(e)),
        ("e_shoff", a.e_shoff, b.e_shoff.get(e)),
        ("e_flags", a.e_flags.into(), b.e_flags.get(e).into()),
        ("e_ehsize", a.e_ehsize.into(), b.e_ehsize.get(e).into()),
        ("e_phentsize", a.e_phentsize.into(), b.e_phentsize.get(e).into()),
        ("e_phnum", a.e_phnum.into(), b.e_phnum.get(e).into()),
        ("e_shentsize", a.e_shentsize.into(), b.e_shentsize.get(e).into()),
        ("e_shnum", a.e_shnum.into(), b.e_shnum.get(e).into()),
        ("e_shstrndx", a.e_shstrndx.into(), b.e_shstrndx.get(e).into()),
    ];
    fields.into_iter().find(|(_, a, b)| a != b).map(|(name, a, b)| format!("{name}: goblin {a:#x}, object {b:#x}"))
}

fn sections_difference(e: Endianness, b: &[SectionHeader64<Endianness>], a: &[SectionHeader]) -> Option<String> {
    if a.len() != b.len() {
        return Some(format!("number of sections: goblin {}, object {}", a.len(), b.len()));
    }
    let differs = |(_, (a, b)): &(usize, (&SectionHeader, &SectionHeader64<Endianness>))| {
        a.sh_name != b.sh_name(e)
            || a.sh_type != b.sh_type(e)
            || a.sh_flags != b.sh_flags(e)
            || a.sh_addr != b.sh_addr(e)
            || a.sh_offset != b.sh_offset(e)
            || a.sh_size != b.sh_size(e)
            || a.sh_link != b.sh_link(e)
            || a.sh_info != b.sh_info(e)
            || a.sh_addralign != b.sh_addralign(e)
            || a.sh_entsize != b.sh_entsize(e)
    };
    a.iter().zip(b).enumerate().find(differs).map(|(i, (a, _))| format!("section {i}: goblin {a:?}, object reads another"))
}
