//! What is wrong with the sections of an ELF file, one function a finding.

use goblin::{elf::section_header, elf64::section_header::SectionHeader};

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
    if are_in_order(occupied) {
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

/// Whether each begins behind the one before it, if relocations are put where they belong. So linkers lay out nearly every file: contents in
/// order, then relocations in order; in the table each stands behind what it relocates.
fn are_in_order<'a, I: Iterator<Item = (Span, &'a SectionHeader)>>(occupied: impl Fn() -> I) -> bool {
    let relocates = |s: &SectionHeader| matches!(s.sh_type, section_header::SHT_RELA | section_header::SHT_REL);
    let mut contents = occupied().filter(|(_, s)| !relocates(s)).map(|(span, _)| span).peekable();
    let mut relocations = occupied().filter(|(_, s)| relocates(s)).map(|(span, _)| span).peekable();
    let mut end = Some(0);
    loop {
        let next = match (contents.peek(), relocations.peek()) {
            (Some(content), Some(relocation)) if relocation.offset < content.offset => relocations.next(),
            (Some(_), _) => contents.next(),
            (None, _) => relocations.next(),
        };
        let Some(span) = next else { return true };
        if end.is_none_or(|end| end > span.offset) {
            return false;
        }
        end = span.end();
    }
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

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn in_order(spans: &[(bool, u64, u64)]) -> bool {
        let section = |relocates| {
            let sh_type = if relocates { section_header::SHT_RELA } else { section_header::SHT_PROGBITS };
            SectionHeader { sh_type, ..SectionHeader::default() }
        };
        let sections: Vec<_> = spans.iter().map(|(relocates, ..)| section(*relocates)).collect();
        are_in_order(|| spans.iter().map(|(_, offset, len)| Span { offset: *offset, len: *len }).zip(&sections))
    }

    #[test]
    fn relocations_stand_behind_contents_or_between_them() {
        assert!(in_order(&[]));
        assert!(in_order(&[(false, 0, 4), (true, 20, 4), (false, 4, 10), (true, 24, 8), (false, 32, 1)]));
        assert!(!in_order(&[(false, 0, 4), (true, 20, 5), (false, 4, 10), (true, 24, 8)]));
        assert!(!in_order(&[(false, 0, 4), (true, 20, 4), (false, 4, 17)]));
        assert!(!in_order(&[(false, 4, 4), (false, 0, 4)]));
        assert!(!in_order(&[(true, 0, u64::MAX), (false, u64::MAX, 2), (true, 3, 1)]));
    }

    proptest! {
        #[test]
        fn what_is_in_order_does_not_overlap(spans in proptest::collection::vec((any::<bool>(), 0..60_u64, 1..4_u64), 0..6)) {
            let span = |(_, offset, len): (bool, u64, u64)| Span { offset, len };
            let overlap = spans.iter().enumerate().any(|(i, a)| spans.iter().take(i).any(|b| span(*a).overlaps(span(*b))));
            prop_assert!(!(in_order(&spans) && overlap));
            let mut sorted = spans.clone();
            sorted.sort_by_key(|s| span(*s));
            prop_assert_eq!(in_order(&sorted), !overlap);
        }
    }
}
