//! PE32 and PE32+ images (Microsoft PE/COFF specification): drivers, EFI images with Linux kernels, user-mode images.
//!
//! [`Pe::parse`] reads headers and section table and notes what is odd about them; it never looks at the content of a section.
//! Everything else is read when asked for, from borrowed bytes. After a successful [`Pe::parse`] every method is total: no panic, and no
//! work or memory beyond a small multiple of the file, on any bytes.

#![deny(
    clippy::indexing_slicing,
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic
)]

mod certificates;
mod checksum;
mod crosscheck;
mod directories;
mod dynamic_relocations;
mod exports;
mod hash;
mod headers;
mod lint;
mod load_config;
mod pages;
#[cfg(test)]
pub(crate) mod sample;
mod structure;
mod version;

pub use certificates::{CertificateEntry, CertificateTable};
pub use checksum::CheckSum;
pub use directories::{Import, Imports, Relocation, RelocationBlock, RelocationBlocks, Symbol};
pub use dynamic_relocations::ImportTransfer;
pub use exports::{ExportTarget, Exports};
pub use headers::{
    CERTIFICATE_DIRECTORY, DEBUG_DIRECTORY, DELAY_IMPORT_DIRECTORY, Directory, EXPORT_DIRECTORY, Headers, IAT_DIRECTORY, IMPORT_DIRECTORY,
    LOAD_CONFIG_DIRECTORY, RELOCATION_DIRECTORY, RESOURCE_DIRECTORY, Section,
};
pub use load_config::LoadConfig;
pub use pages::Page;
pub use version::VersionInfo;

use crate::{
    bytes::{index, le32, slice},
    facts::{FileKind, ImageFacts, SbatComponent, SectionFacts},
    finding::{Code, Note},
    image::ImageError,
};

/// How many notes of one code an image gets; the last one says that there are more.
const MAX_NOTES_PER_CODE: usize = 16;

/// Longest name of a section that is looked at, in bytes.
const MAX_SECTION_NAME: usize = 64;

/// A PE32 or PE32+ image.
#[derive(Clone, Debug)]
pub struct Pe<'a> {
    data: &'a [u8],
    headers: Headers,
    sections: Vec<Section>,
    notes: Vec<Note>,
}

impl<'a> Pe<'a> {
    /// Whether `data` begins as a PE image does. DOS programs do too; [`Pe::parse`] tells.
    pub fn is_pe(data: &[u8]) -> bool {
        data.starts_with(b"MZ")
    }

    /// Reads headers and section table of the file `data`.
    ///
    /// # Errors
    /// Only where there is no image or no usable header: `InputNotImage`, `ImageTruncated`, `ImageHeader`, `ImageUnsupported`.
    pub fn parse(data: &'a [u8]) -> Result<Self, ImageError> {
        let (headers, sections) = Headers::parse(data)?;
        let mut pe = Self { data, headers, sections, notes: Vec::new() };
        let mut notes = Vec::new();
        pe.structure_notes(&mut notes);
        pe.digest_notes(&mut notes);
        pe.divergence_notes(&mut notes);
        pe.notes = notes;
        Ok(pe)
    }

    /// The whole file.
    pub const fn data(&self) -> &'a [u8] {
        self.data
    }

    /// Header fields.
    pub const fn headers(&self) -> &Headers {
        &self.headers
    }

    /// Sections in table order.
    pub fn sections(&self) -> &[Section] {
        &self.sections
    }

    /// Who loads it, by its subsystem.
    pub const fn kind(&self) -> FileKind {
        match self.headers.subsystem {
            1 => FileKind::PeDriver,
            10..=13 => FileKind::PeEfi,
            _ => FileKind::PeUser,
        }
    }

    /// What is odd about headers and sections: `IMG` codes. Those of the certificate table come with
    /// [`certificate_table`](Self::certificate_table), those of HVCI compatibility from [`lint`](Self::lint).
    pub fn notes(&self) -> &[Note] {
        &self.notes
    }

    /// The content of the first section called `name`, without what fills it up to FileAlignment. `None` without one, or where it lies
    /// outside the file.
    pub fn section_content(&self, name: &str) -> Option<&'a [u8]> {
        let section = self.sections.iter().find(|s| self.section_name(s) == Some(name.as_bytes()))?;
        slice(self.data, index(section.file_offset), index(section.file_size.min(section.mapped_size())))
    }

    /// A section's whole name. One of more than 8 bytes stands in COFF's string table, and the header has its offset there as `/12` (PE/COFF
    /// specification, "Section Table"): linkers for EFI write those, and no loader looks at them.
    fn section_name<'s>(&'s self, section: &'s Section) -> Option<&'s [u8]> {
        const SYMBOL: usize = 18;
        let end = section.name.iter().position(|b| *b == 0).unwrap_or(section.name.len());
        let short = section.name.get(..end)?;
        let Some(digits) = short.strip_prefix(b"/") else { return Some(short) };
        let offset: usize = core::str::from_utf8(digits).ok()?.parse().ok()?;
        let coff = self.headers.optional_offset().checked_sub(20)?;
        let symbols = index(le32(self.data, coff.checked_add(8)?)?);
        let count = index(le32(self.data, coff.checked_add(12)?)?);
        let text = self.data.get(symbols.checked_add(count.checked_mul(SYMBOL)?)?.checked_add(offset)?..)?;
        let text = text.get(..MAX_SECTION_NAME.min(text.len()))?;
        text.get(..text.iter().position(|b| *b == 0)?)
    }

    /// What the image says of its generations, if it says it: `BootSbatMalformed`.
    pub fn sbat(&self) -> Option<Result<Vec<SbatComponent>, Note>> {
        let content = self.section_content(".sbat")?;
        Some(super::sbat::section(content).map_err(|note| note.of(".sbat")))
    }

    /// Headers, sections, version and PDB name as facts.
    pub fn facts(&self) -> ImageFacts {
        let version = self.version_info();
        let headers = &self.headers;
        ImageFacts {
            format: if headers.is_plus { "PE32+" } else { "PE32" }.to_owned(),
            machine: machine_name(headers.machine),
            subsystem: subsystem_name(headers.subsystem),
            entry: u64::from(headers.entry),
            image_base: headers.image_base,
            image_size: u64::from(headers.size_of_image),
            section_alignment: headers.section_alignment,
            characteristics: headers.dll_characteristics,
            timestamp: headers.timestamp,
            file_version: version.as_ref().map(|v| dotted(v.file)),
            product_version: version.as_ref().map(|v| dotted(v.product)),
            internal_name: version.and_then(|v| v.internal_name),
            // only programs of firmware have one, and a program's own resources may be many
            security_version: (self.kind() == FileKind::PeEfi).then(|| self.security_version()).flatten(),
            pdb: self.pdb(),
            vermagic: None,
            sections: self.sections.iter().map(section_facts).collect(),
            sbat: self.sbat().and_then(Result::ok),
        }
    }
}

/// Makes and adds a note of `code`, unless there are [`MAX_NOTES_PER_CODE`] of them: a hostile section table holds 65,535 reasons for one.
fn push(notes: &mut Vec<Note>, code: Code, note: impl FnOnce() -> Note) {
    const MORE: &str = " (more like it are not listed)";
    if notes.iter().filter(|n| n.code == code).count() < MAX_NOTES_PER_CODE {
        notes.push(note());
    } else if let Some(last) = notes.iter_mut().rfind(|n| n.code == code)
        && !last.detail.ends_with(MORE)
    {
        last.detail.push_str(MORE);
    }
}

/// Makes and adds a note that blames `section`; see [`push`].
fn push_section(notes: &mut Vec<Note>, code: Code, section: &Section, detail: impl FnOnce() -> String) {
    push(notes, code, || Note::new(code, detail()).at(section.file_span()).of(section.display_name()));
}

fn section_facts(section: &Section) -> SectionFacts {
    SectionFacts {
        name: section.display_name(),
        address: u64::from(section.address),
        memory_size: u64::from(section.memory_size),
        file: (section.file_size > 0).then(|| section.file_span()),
        permissions: section.permissions(),
    }
}

fn dotted([a, b, c, d]: [u16; 4]) -> String {
    format!("{a}.{b}.{c}.{d}")
}

/// Name of an IMAGE_FILE_MACHINE value without its prefix.
fn machine_name(machine: u16) -> String {
    let name = match machine {
        0x014C => "I386",
        0x0184 => "ALPHA",
        0x01C0 => "ARM",
        0x01C2 => "THUMB",
        0x01C4 => "ARMNT",
        0x0200 => "IA64",
        0x0284 => "ALPHA64",
        0x0EBC => "EBC",
        0x5032 => "RISCV32",
        0x5064 => "RISCV64",
        0x6232 => "LOONGARCH32",
        0x6264 => "LOONGARCH64",
        0x8664 => "AMD64",
        0xA641 => "ARM64EC",
        0xAA64 => "ARM64",
        _ => return format!("{machine:#06x}"),
    };
    name.to_owned()
}

/// Name of an IMAGE_SUBSYSTEM value without its prefix.
fn subsystem_name(subsystem: u16) -> String {
    let name = match subsystem {
        1 => "NATIVE",
        2 => "WINDOWS_GUI",
        3 => "WINDOWS_CUI",
        5 => "OS2_CUI",
        7 => "POSIX_CUI",
        8 => "NATIVE_WINDOWS",
        9 => "WINDOWS_CE_GUI",
        10 => "EFI_APPLICATION",
        11 => "EFI_BOOT_SERVICE_DRIVER",
        12 => "EFI_RUNTIME_DRIVER",
        13 => "EFI_ROM",
        14 => "XBOX",
        16 => "WINDOWS_BOOT_APPLICATION",
        _ => return format!("{subsystem:#06x}"),
    };
    name.to_owned()
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::{sample::*, *};
    use crate::{digest::DigestAlg, facts::DigestForm};

    fn codes(pe: &Pe<'_>) -> Vec<Code> {
        pe.notes().iter().map(|n| n.code).collect()
    }

    fn error(data: &[u8]) -> Code {
        Pe::parse(data).unwrap_err().code
    }

    #[test]
    fn reads_what_is_there() {
        let sample = Sample::with_tables();
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!(pe.notes(), []);
        assert_eq!(pe.kind(), FileKind::PeDriver);
        let facts = pe.facts();
        assert_eq!((facts.format.as_str(), facts.machine.as_str(), facts.subsystem.as_str()), ("PE32+", "AMD64", "NATIVE"));
        assert_eq!((facts.entry, facts.image_base, facts.image_size), (0x1000, 0x1_0001_0000, 0x3000));
        assert_eq!((facts.characteristics, facts.timestamp, facts.section_alignment), (0x0160, 0x5F00_0000, 0x1000));
        assert_eq!(facts.file_version.as_deref(), Some("10.1.2.3"));
        assert_eq!(facts.product_version.as_deref(), Some("11.0.0.7"));
        assert_eq!(facts.pdb.as_deref(), Some(r"a\b.pdb"));
        let text = &facts.sections[0];
        assert_eq!((text.name.as_str(), text.permissions.as_str(), text.memory_size), (".text", "r-x--", 0x1F0));
        assert_eq!(text.file.unwrap().to_string(), "0x400..0x600");
    }

    #[test]
    fn kinds_come_from_the_subsystem() {
        for (subsystem, kind) in [(1, FileKind::PeDriver), (10, FileKind::PeEfi), (13, FileKind::PeEfi), (3, FileKind::PeUser)] {
            let mut sample = Sample::new();
            sample.set16(OPTIONAL + 68, subsystem);
            assert_eq!(Pe::parse(&sample.0).unwrap().kind(), kind);
        }
    }

    #[test]
    fn refuses_only_what_is_no_image() {
        let good = Sample::new();
        assert_eq!(error(b""), Code::InputNotImage);
        assert_eq!(error(b"MZ"), Code::InputNotImage);
        assert_eq!(error(&good.0[..0x7F]), Code::InputNotImage);
        assert_eq!(error(&good.0[..0x99]), Code::ImageTruncated);
        assert_eq!(error(&good.0[..0x180]), Code::ImageTruncated);
        assert_eq!(error(&good.0[..SECTIONS + 79]), Code::ImageTruncated);
        assert!(Pe::parse(&good.0[..SECTIONS + 80]).is_ok());
        let changed = |at, value| {
            let mut sample = good.clone();
            sample.set16(at, value);
            error(&sample.0)
        };
        assert_eq!(changed(0x80, 0x454E), Code::InputNotImage);
        assert_eq!(changed(OPTIONAL, 0x107), Code::ImageUnsupported);
        assert_eq!(changed(OPTIONAL, 0x30B), Code::ImageUnsupported);
        assert_eq!(changed(COFF + 16, 0), Code::ImageHeader);
        assert_eq!(changed(COFF + 2, 0xFFFF), Code::ImageTruncated);
    }

    #[test]
    fn pe32_has_its_own_offsets() {
        let mut sample = Sample::new();
        sample.set16(OPTIONAL, 0x10B);
        sample.set16(COFF, 0x014C);
        let directories = sample.0[OPTIONAL + 108..OPTIONAL + 240].to_vec();
        sample.bytes(OPTIONAL + 92, &directories);
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!((pe.facts().format.as_str(), pe.headers().image_base), ("PE32", 1));
        assert_eq!(pe.headers().certificate_directory_span().unwrap().offset, 0x98 + 96 + 32);
    }

    #[test]
    fn directory_counts_outside_5_to_16() {
        let mut sample = Sample::new();
        sample.set32(DIRECTORY_COUNT, 17);
        let pe = Pe::parse(&sample.0).unwrap();
        assert!(pe.notes().iter().any(|n| n.code == Code::ImageHeader && n.detail.contains("NumberOfRvaAndSizes is 17")));
        // `object` goes by SizeOfOptionalHeader and refuses it, which is worth knowing
        assert!(codes(&pe).contains(&Code::ImageDivergence));

        let mut sample = Sample::new();
        sample.sign(&[(0x200, 2, &BLOB)]);
        sample.set32(DIRECTORY_COUNT, 4);
        let pe = Pe::parse(&sample.0).unwrap();
        assert_eq!(codes(&pe), [Code::ImageFewDirectories]);
        assert_eq!(pe.certificate_table(), CertificateTable::default());
    }

    #[test]
    fn sections_that_lie_badly() {
        let with = |which, place, characteristics| {
            let mut sample = Sample::new();
            sample.section(which, b"odd\xFF\0\0\0\0", place, characteristics);
            sample
        };
        let note = |sample: &Sample, code| Pe::parse(&sample.0).unwrap().notes().iter().find(|n| n.code == code).cloned();

        let outside = with(1, [0x200, 0x2000, 0x201, 0x600], 0xC000_0040);
        let found = note(&outside, Code::ImageSectionBounds).unwrap();
        assert_eq!((found.subject.as_deref(), found.span.unwrap().to_string().as_str()), (Some(r"odd\xff"), "0x600..0x801"));

        let overlapping = with(1, [0x200, 0x2000, 0x220, 0x5E0], 0xC000_0040);
        assert_eq!(note(&overlapping, Code::ImageSectionOverlap).unwrap().detail, r"odd\xff overlaps .text in the file");

        let mapped_over = with(1, [0x200, 0x1100, 0x200, 0x600], 0xC000_0040);
        assert!(note(&mapped_over, Code::ImageSectionOverlap).unwrap().detail.contains("begins before"));

        let gap = with(1, [0x200, 0x2000, 0x1F0, 0x610], 0xC000_0040);
        let found = note(&gap, Code::ImageSectionGap).unwrap();
        assert_eq!(found.detail, r"16 bytes, not all zero, between .text and odd\xff");
        assert_eq!(found.span.unwrap().to_string(), "0x600..0x610");

        let mut covered = Sample::new();
        covered.set32(OPTIONAL + 60, 0x500);
        assert_eq!(note(&covered, Code::ImageHeadersCover).unwrap().span.unwrap().to_string(), "0x400..0x500");
        assert_eq!(note(&covered, Code::ImageSectionOverlap), None);

        let mut cut = Sample::new();
        cut.0.truncate(0x300);
        assert!(note(&cut, Code::ImageTruncated).is_some() && note(&cut, Code::ImageSectionBounds).is_some());
    }

    #[test]
    fn parsers_disagree_about_a_short_optional_header() {
        let mut sample = Sample::new();
        // the section table then starts within the data directories
        sample.set16(COFF + 16, 112 + 8);
        let pe = Pe::parse(&sample.0).unwrap();
        let note = pe.notes().iter().find(|n| n.code == Code::ImageDivergence).unwrap();
        assert!(note.detail.contains("object refuses"), "{}", note.detail);
    }

    #[test]
    fn notes_are_bounded() {
        let mut sample = Sample::new();
        sample.0.resize(0x400 + 65_535 * 40, 0);
        sample.set16(COFF + 2, 65_535);
        for n in 0..65_535 {
            sample.section(n, b"s\0\0\0\0\0\0\0", [0x1000, 1, 0xFFFF_FFFF, 0x200], 0xE000_0020);
        }
        let pe = Pe::parse(&sample.0).unwrap();
        for code in [Code::ImageSectionBounds, Code::ImageSectionOverlap] {
            let notes: Vec<_> = pe.notes().iter().filter(|n| n.code == code).collect();
            assert_eq!(notes.len(), MAX_NOTES_PER_CODE);
            assert!(notes[MAX_NOTES_PER_CODE - 1].detail.ends_with("(more like it are not listed)"));
        }
        assert!(pe.lint(&pe.imports()).len() <= 4 * MAX_NOTES_PER_CODE);
    }

    /// Everything that can be asked of an image.
    fn exercise(data: &[u8]) {
        let Ok(pe) = Pe::parse(data) else { return };
        let _ = (pe.kind(), pe.facts(), pe.lint(&pe.imports()), pe.exports());
        let _ = (pe.forms_differ(), pe.checksum_note(pe.checksum()), pe.resource_note());
        assert!(pe.import_transfers().count() <= data.len());
        let table = pe.certificate_table();
        for entry in &table.entries {
            assert_eq!(entry.payload, [entry.pkcs7, entry.padding].concat());
            assert_eq!(&data[entry.payload_offset..entry.payload_offset + entry.payload.len()], entry.payload);
        }
        let linear = pe.hash_pieces(DigestForm::Linear).unwrap().concat();
        let fields = 4 + pe.headers().certificate_directory_span().map_or(0, |_| 8);
        let table_len = table.span.map_or(0, |s| usize::try_from(s.len).unwrap());
        assert_eq!(linear.len(), data.len() - fields - table_len);
        let _ = pe.hash_pieces(DigestForm::SectionSum);
        let pages: Vec<_> = pe.pages().take(1_000).collect();
        assert!(pages.iter().all(|p| p.pieces.iter().map(|piece| piece.len()).sum::<usize>() <= pe.page_size()));
        let _ = pe.verify_page_table(data, DigestAlg::Sha1);
    }

    proptest! {
        #[test]
        fn never_panics_on_a_prefix(len in 0..END + 64) {
            let mut sample = Sample::with_tables().delay_loading();
            sample.sign(&[(0x200, 2, &BLOB), (0x200, 0xEF1, &BLOB)]);
            exercise(&sample.0[..len.min(sample.0.len())]);
        }

        #[test]
        fn never_panics_on_changed_headers(changes in prop::collection::vec((0x3C..0x1E0_usize, any::<u8>()), 1..6)) {
            let mut sample = Sample::with_tables().delay_loading();
            sample.sign(&[(0x200, 2, &BLOB), (0x200, 0xEF1, &BLOB)]);
            for (at, value) in changes {
                sample.0[at] = value;
            }
            exercise(&sample.0);
        }

        #[test]
        fn never_panics_on_changed_fields(changes in prop::collection::vec((0x20..0x20C_usize, prop::sample::select(vec![0, 1, 7, 8, 0x1F8, 0x400, 0x7FF, 0x800, 0x1000, 0x2000, 0x7FFF_FFFF, 0xFFFF_FFF8, u32::MAX])), 1..8)) {
            let mut sample = Sample::with_tables().delay_loading();
            sample.sign(&[(0x200, 2, &BLOB), (0x200, 0xEF1, &BLOB)]);
            for (at, value) in changes {
                sample.set32(at * 4, value);
            }
            exercise(&sample.0);
        }

        #[test]
        fn never_panics_on_changed_tables(changes in prop::collection::vec((0x600..0x830_usize, any::<u8>()), 1..20)) {
            let mut sample = Sample::with_tables().delay_loading();
            sample.sign(&[(0x200, 2, &BLOB), (0x200, 0xEF1, &BLOB)]);
            for (at, value) in changes {
                sample.0[at] = value;
            }
            exercise(&sample.0);
        }

        #[test]
        fn never_panics_on_anything(tail in prop::collection::vec(any::<u8>(), 0..1024)) {
            exercise(&tail);
            let mut sample = Sample::new();
            sample.0.truncate(OPTIONAL + 2);
            sample.0.extend_from_slice(&tail);
            exercise(&sample.0);
        }
    }
}
