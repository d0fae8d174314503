//! What is wrong with the sections of an ELF file, one function a finding.

use goblin::elf::{SectionHeader, section_header};

use super::{Elf, file_span};
use crate::{
    bytes::{Span, widen},
    finding::{Code, Note},
};

/// Sections that are writable and executable at once. A kernel with `CONFIG_STRICT_MODULE_RWX` refuses such a module with `ENOEXEC`
/// (`kernel/module/strict_rwx.c`, `module_enforce_rwx_sections`); as there, it does not matter whether the section is loaded.
pub(super) fn writable_executable(elf: &Elf<'_>) -> Vec<Note> {
    let both = u64::from(section_header::SHF_WRITE | section_header::SHF_EXECINSTR);
    let found = elf.tables.sections.iter().filter(|s| s.sh_flags & both == both);
    limited(found.map(|s| note(elf, Code::ImageWx, s, format!("sh_flags {:#x}; kernels with STRICT_MODULE_RWX give ENOEXEC", s.sh_flags))))
}

/// Sections whose bytes are not all in the file before the signature (`validate_section_offset` gives `ENOEXEC`).
pub(super) fn out_of_bounds(elf: &Elf<'_>) -> Vec<Note> {
    let len = widen(elf.content.len());
    let found = elf.tables.sections.iter().skip(1).filter(|s| file_span(s).is_some_and(|f| f.end().is_none_or(|end| end > len)));
    limited(found.map(|s| note(elf, Code::ImageSectionBounds, s, format!("the file without signature ends at {len:#x}"))))
}

/// Sections that share bytes of the file.
pub(super) fn overlaps(elf: &Elf<'_>) -> Vec<Note> {
    let occupied = || elf.tables.sections.iter().skip(1).filter_map(|s| Some((file_span(s)?, s))).filter(|(span, _)| span.len > 0);
    // nearly every file: each behind the one before it
    let mut end = Some(0);
    if occupied().all(|(span, _)| core::mem::replace(&mut end, span.end()).is_some_and(|end| end <= span.offset)) {
        return Vec::new();
    }
    let mut spans: Vec<(Span, &SectionHeader)> = occupied().collect();
    spans.sort_by_key(|(span, _)| *span);
    let mut reach: Option<(Span, &SectionHeader)> = None;
    let mut found = Vec::new();
    for (span, section) in spans {
        match reach {
            Some((before, other)) if before.overlaps(span) => {
                found.push((section, other));
                if span.end() > before.end() {
                    reach = Some((span, section));
                }
            }
            _ => reach = Some((span, section)),
        }
    }
    limited(found.into_iter().map(|(s, other)| note(elf, Code::ImageSectionOverlap, s, format!("with {:?}", elf.name(other)))))
}

fn note(elf: &Elf<'_>, code: Code, section: &SectionHeader, detail: String) -> Note {
    let note = Note::new(code, detail).of(elf.name(section));
    match file_span(section) {
        Some(span) => note.at(span),
        None => note,
    }
}

/// The first 16, then how many more there are: a hostile file has 65,535 of everything.
fn limited(mut notes: impl Iterator<Item = Note>) -> Vec<Note> {
    let mut kept: Vec<Note> = notes.by_ref().take(MAX_NOTES).collect();
    let more = notes.count();
    if let Some(last) = kept.last_mut().filter(|_| more > 0) {
        last.detail.push_str(&format!("; and {more} more sections"));
    }
    kept
}

const MAX_NOTES: usize = 16;
