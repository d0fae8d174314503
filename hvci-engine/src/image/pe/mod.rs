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
mod crosscheck;
mod directories;
mod hash;
mod headers;
mod lint;
mod pages;
mod structure;

pub use certificates::{CertificateEntry, CertificateTable};
pub use directories::{FixedVersion, Import, Imports, Relocation, Relocations, Symbol};
pub use headers::{
    CERTIFICATE_DIRECTORY, DEBUG_DIRECTORY, Directory, Headers, IAT_DIRECTORY, IMPORT_DIRECTORY, RELOCATION_DIRECTORY, RESOURCE_DIRECTORY,
    Section,
};
pub use pages::Page;

use crate::{
    facts::{FileKind, ImageFacts, SectionFacts},
    finding::Note,
    image::ImageError,
};

/// How many notes of one code an image gets; the last one says that there are more.
const MAX_NOTES_PER_CODE: usize = 16;

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
            file_version: version.map(|v| dotted(v.file)),
            product_version: version.map(|v| dotted(v.product)),
            pdb: self.pdb(),
            vermagic: None,
            sections: self.sections.iter().map(section_facts).collect(),
        }
    }
}

/// Adds a note, unless there are [`MAX_NOTES_PER_CODE`] of its code: a hostile section table holds 65,535 reasons for one.
fn push(notes: &mut Vec<Note>, note: Note) {
    const MORE: &str = " (more like it are not listed)";
    if notes.iter().filter(|n| n.code == note.code).count() < MAX_NOTES_PER_CODE {
        notes.push(note);
    } else if let Some(last) = notes.iter_mut().rfind(|n| n.code == note.code)
        && !last.detail.ends_with(MORE)
    {
        last.detail.push_str(MORE);
    }
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
