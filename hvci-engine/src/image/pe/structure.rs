//! What is odd about header fields and where sections lie, told from the headers alone.

use super::{Pe, Section, push, push_section};
use crate::{
    bytes::{Span, index, slice, widen},
    finding::{Code, Note},
};

/// IMAGE_FILE_EXECUTABLE_IMAGE
const EXECUTABLE_IMAGE: u16 = 0x0002;

impl Pe<'_> {
    /// `ImageHeader`, `ImageFewDirectories`, `ImageTruncated`, `ImageSectionBounds`, `ImageSectionOverlap`, `ImageSectionGap`,
    /// `ImageHeadersCover`.
    pub(super) fn structure_notes(&self, notes: &mut Vec<Note>) {
        self.header_notes(notes);
        self.bounds_notes(notes);
        self.file_order_notes(notes);
        self.memory_order_notes(notes);
    }

    fn header_notes(&self, notes: &mut Vec<Note>) {
        let h = &self.headers;
        let optional = Span::new(h.optional_offset(), usize::from(h.size_of_optional_header));
        let mut bad = |detail: String| notes.push(Note::new(Code::ImageHeader, detail).at(optional));
        // the conditions of the Windows kernel's check of image headers (MiVerifyImageHeader)
        let power_of_two = |n: u32| n != 0 && n & n.wrapping_sub(1) == 0;
        if !power_of_two(h.section_alignment) || !power_of_two(h.file_alignment) {
            bad(format!("SectionAlignment {:#x} or FileAlignment {:#x} is no power of two", h.section_alignment, h.file_alignment));
        } else if h.section_alignment < h.file_alignment {
            bad(format!("SectionAlignment {:#x} is below FileAlignment {:#x}", h.section_alignment, h.file_alignment));
        }
        if h.size_of_headers >= h.size_of_image {
            bad(format!("SizeOfHeaders {:#x} is not below SizeOfImage {:#x}", h.size_of_headers, h.size_of_image));
        }
        if h.file_characteristics & EXECUTABLE_IMAGE == 0 {
            bad(format!("Characteristics {:#06x} do not say that it is an executable image", h.file_characteristics));
        }
        if self.sections.is_empty() {
            bad("there are no sections".to_owned());
        }
        if h.directory_count > 16 {
            bad(format!("NumberOfRvaAndSizes is {}; the first 16 are read", h.directory_count));
        }
        let directories = index(h.directory_count).min(16).saturating_mul(8);
        if usize::from(h.size_of_optional_header) < h.fields_len().saturating_add(directories) {
            bad(format!("SizeOfOptionalHeader {:#x} is too small for {} data directories", h.size_of_optional_header, h.directory_count));
        }
        if h.certificate_directory_span().is_none() {
            let detail = format!("NumberOfRvaAndSizes is {}", h.directory_count);
            notes.push(Note::new(Code::ImageFewDirectories, detail).at(optional));
        }
    }

    fn bounds_notes(&self, notes: &mut Vec<Note>) {
        let file = widen(self.data.len());
        let headers = u64::from(self.headers.size_of_headers);
        let table_end = widen(self.headers.section_table_offset()).saturating_add(widen(self.sections.len()).saturating_mul(40));
        if headers > file {
            let missing = Span { offset: file, len: headers.saturating_sub(file) };
            notes.push(Note::new(Code::ImageTruncated, format!("SizeOfHeaders is {headers:#x}, the file has {file:#x} bytes")).at(missing));
        } else if headers < table_end {
            notes.push(
                Note::new(Code::ImageHeader, format!("SizeOfHeaders {headers:#x} ends before the section table does ({table_end:#x})"))
                    .at(Span { offset: headers, len: table_end.saturating_sub(headers) }),
            );
        }
        for section in self.sections.iter().filter(|s| s.file_size > 0) {
            let span = section.file_span();
            if span.end().is_none_or(|end| end > file) {
                let detail = || format!("{} is at {span}, the file has {file:#x} bytes", section.display_name());
                push_section(notes, Code::ImageSectionBounds, section, detail);
            }
        }
    }

    fn file_order_notes(&self, notes: &mut Vec<Note>) {
        let mut sections: Vec<&Section> = self.sections.iter().filter(|s| s.file_size > 0).collect();
        sections.sort_by_key(|s| s.file_offset);
        let headers = u64::from(self.headers.size_of_headers);
        if let Some(first) = sections.first().filter(|first| u64::from(first.file_offset) < headers) {
            let covered = Span { offset: u64::from(first.file_offset), len: headers.saturating_sub(u64::from(first.file_offset)) };
            let name = first.display_name();
            notes.push(Note::new(Code::ImageHeadersCover, format!("SizeOfHeaders {headers:#x} reaches into {name}")).at(covered).of(name));
        }
        let (mut sections_end, mut before) = (0, None::<&Section>);
        let named = |section: Option<&Section>| section.map_or_else(|| "the headers".into(), Section::display_name);
        for section in sections {
            let span = section.file_span();
            let end = headers.max(sections_end);
            if span.offset > end {
                let gap = Span { offset: end, len: span.offset.saturating_sub(end) };
                let bytes = usize::try_from(gap.offset).ok().and_then(|at| slice(self.data, at, usize::try_from(gap.len).ok()?));
                // a gap that reaches out of the file belongs to a section that does
                if let Some(bytes) = bytes {
                    push(notes, Code::ImageSectionGap, || {
                        let filled = if bytes.iter().all(|b| *b == 0) { "all zero" } else { "not all zero" };
                        let detail = format!("{} bytes, {filled}, between {} and {}", gap.len, named(before), section.display_name());
                        Note::new(Code::ImageSectionGap, detail).at(gap)
                    });
                }
            } else if span.offset < sections_end {
                let detail = || format!("{} overlaps {} in the file", section.display_name(), named(before));
                push_section(notes, Code::ImageSectionOverlap, section, detail);
            }
            if let Some(section_end) = span.end().filter(|e| *e > sections_end) {
                (sections_end, before) = (section_end, Some(section));
            }
        }
    }

    /// Windows wants sections one after the other in memory.
    fn memory_order_notes(&self, notes: &mut Vec<Note>) {
        let mut end = 0;
        for section in &self.sections {
            let start = u64::from(section.address);
            if start < end {
                let detail =
                    || format!("{} at address {start:#x} begins before the section ahead of it ends ({end:#x})", section.display_name());
                push_section(notes, Code::ImageSectionOverlap, section, detail);
            }
            end = start.saturating_add(u64::from(section.mapped_size())).max(end);
        }
        if end > u64::from(self.headers.size_of_image) {
            notes.push(Note::new(Code::ImageHeader, format!("sections end at {end:#x}, SizeOfImage is {:#x}", self.headers.size_of_image)));
        }
    }
}
