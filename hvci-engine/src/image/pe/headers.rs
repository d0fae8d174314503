//! DOS, COFF and optional header and the section table (PE/COFF specification, "File Headers" and "Section Table").
//!
//! `goblin`'s header and section parsers are the reader. Around them stands what they cannot do:
//! - more than 16 data directories, or a directory table cut by the end of the file, make goblin fail; Windows reads the first 16. Such a
//!   header is read from a copy in which NumberOfRvaAndSizes is lowered;
//! - a section name that starts with `/` makes goblin look into the COFF string table and fail where there is none. Images have no such
//!   table, so goblin gets the entry without its name, and the name is kept as it stands.
//!
//! Trusts nothing. Refuses what is no PE, other optional headers than PE32 and PE32+, and headers or a section table cut short.

use goblin::pe::{
    header::{DosHeader, Header, SIZEOF_COFF_HEADER, SIZEOF_PE_MAGIC},
    optional_header::{IMAGE_NT_OPTIONAL_HDR32_MAGIC, IMAGE_NT_OPTIONAL_HDR64_MAGIC, IMAGE_ROM_OPTIONAL_HDR_MAGIC},
    section_table::{SIZEOF_SECTION_TABLE, SectionTable},
};
use smol_str::SmolStr;

use crate::{
    bytes::{self, Span, index, widen},
    facts::Permissions,
    finding::Code,
    image::{ImageError, shown::text_of},
};

/// Index of the export table's data directory.
pub const EXPORT_DIRECTORY: usize = 0;
/// Index of the import table's data directory.
pub const IMPORT_DIRECTORY: usize = 1;
/// Index of the resource table's data directory.
pub const RESOURCE_DIRECTORY: usize = 2;
/// Index of the certificate table's data directory; its address is a file offset.
pub const CERTIFICATE_DIRECTORY: usize = 4;
/// Index of the base relocation table's data directory.
pub const RELOCATION_DIRECTORY: usize = 5;
/// Index of the debug directory's data directory.
pub const DEBUG_DIRECTORY: usize = 6;
/// Index of the load configuration's data directory.
pub const LOAD_CONFIG_DIRECTORY: usize = 10;
/// Index of the import address table's data directory.
pub const IAT_DIRECTORY: usize = 12;

/// Index of the delay-load import table's data directory.
pub const DELAY_IMPORT_DIRECTORY: usize = 13;

const DIRECTORIES: usize = 16;
const SIZEOF_DIRECTORY: usize = 8;
/// signature, COFF header, optional header of PE32+ with all its directories
const SIZEOF_HEADERS: usize = 4 + 20 + 112 + DIRECTORIES * SIZEOF_DIRECTORY;
/// CheckSum stands at the same place in both optional headers
const CHECKSUM_IN_OPTIONAL: usize = 64;

/// The header fields that loading and hashing depend on.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Headers {
    /// Offset of the PE signature in the file (`e_lfanew`).
    pub pe_offset: usize,
    /// Whether the optional header is that of PE32+.
    pub is_plus: bool,
    /// `Machine`.
    pub machine: u16,
    /// `TimeDateStamp`; a hash in reproducible builds.
    pub timestamp: u32,
    /// `Characteristics` of the COFF header.
    pub file_characteristics: u16,
    /// `SizeOfOptionalHeader` in bytes.
    pub size_of_optional_header: u16,
    /// `AddressOfEntryPoint` relative to the image base; 0 where there is none.
    pub entry: u32,
    /// `ImageBase`.
    pub image_base: u64,
    /// `SectionAlignment` in bytes.
    pub section_alignment: u32,
    /// `FileAlignment` in bytes.
    pub file_alignment: u32,
    /// `SizeOfImage` in bytes.
    pub size_of_image: u32,
    /// `SizeOfHeaders` in bytes.
    pub size_of_headers: u32,
    /// `CheckSum` as it stands.
    pub checksum: u32,
    /// `Subsystem`.
    pub subsystem: u16,
    /// `DllCharacteristics`.
    pub dll_characteristics: u16,
    /// `NumberOfRvaAndSizes` as it stands; at most 16 are looked at.
    pub directory_count: u32,
    /// Data directories; those that the image does not have are empty.
    pub directories: [Directory; DIRECTORIES],
}

/// A data directory: where a table is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directory {
    /// Address relative to the image base; for the certificate table the file offset.
    pub address: u32,
    /// Length in bytes.
    pub size: u32,
}

impl Directory {
    /// Whether there is no such table: Windows looks at the address only.
    pub const fn is_empty(self) -> bool {
        self.address == 0
    }
}

/// An entry of the section table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Section {
    /// Name, padded with zeros; not always text.
    pub name: [u8; 8],
    /// `VirtualAddress`, relative to the image base.
    pub address: u32,
    /// `VirtualSize` in bytes.
    pub memory_size: u32,
    /// `PointerToRawData`.
    pub file_offset: u32,
    /// `SizeOfRawData` in bytes.
    pub file_size: u32,
    /// `Characteristics`.
    pub characteristics: u32,
}

impl Section {
    const EXECUTE: u32 = 0x2000_0000;
    const READ: u32 = 0x4000_0000;
    const WRITE: u32 = 0x8000_0000;
    const SHARED: u32 = 0x1000_0000;
    const DISCARDABLE: u32 = 0x0200_0000;

    /// IMAGE_SCN_MEM_READ.
    pub const fn is_readable(&self) -> bool {
        self.characteristics & Self::READ != 0
    }

    /// IMAGE_SCN_MEM_WRITE.
    pub const fn is_writable(&self) -> bool {
        self.characteristics & Self::WRITE != 0
    }

    /// IMAGE_SCN_MEM_EXECUTE.
    pub const fn is_executable(&self) -> bool {
        self.characteristics & Self::EXECUTE != 0
    }

    /// IMAGE_SCN_MEM_SHARED.
    pub const fn is_shared(&self) -> bool {
        self.characteristics & Self::SHARED != 0
    }

    /// IMAGE_SCN_MEM_DISCARDABLE.
    pub const fn is_discardable(&self) -> bool {
        self.characteristics & Self::DISCARDABLE != 0
    }

    /// Permissions and marks as `rwxsd`, `-` where not.
    pub fn permissions(&self) -> Permissions {
        Permissions::new([self.is_readable(), self.is_writable(), self.is_executable(), self.is_shared(), self.is_discardable()])
    }

    /// Name for people: without the padding, and escaped where it is not printable.
    pub fn display_name(&self) -> SmolStr {
        let end = self.name.iter().rposition(|b| *b != 0).map_or(0, |last| last.saturating_add(1));
        text_of(self.name.get(..end).unwrap_or_default()).into()
    }

    /// The bytes in the file, whether the file has them or not; empty for a section without.
    pub fn file_span(&self) -> Span {
        Span { offset: u64::from(self.file_offset), len: u64::from(self.file_size) }
    }

    /// Length in memory: `VirtualSize`, or where that is 0 (old linkers) `SizeOfRawData`.
    pub const fn mapped_size(&self) -> u32 {
        if self.memory_size == 0 { self.file_size } else { self.memory_size }
    }
}

impl Headers {
    /// Reads the headers and the section table.
    ///
    /// # Errors
    /// `InputNotImage` without both signatures, `ImageTruncated` where headers or section table reach past the end, `ImageUnsupported` for
    /// another optional header.
    pub(super) fn parse(data: &[u8]) -> Result<(Self, Vec<Section>), ImageError> {
        let not_pe = |detail: &str| ImageError::new(Code::InputNotImage, detail);
        let dos = DosHeader::parse(data).map_err(|_| not_pe("no DOS and PE signature"))?;
        let pe_offset = index(dos.pe_pointer);
        let cut = |what: &str| {
            ImageError::new(Code::ImageTruncated, format!("the file ends within its {what}"))
                .at(Span::new(pe_offset, data.len().saturating_sub(pe_offset)))
        };
        let window = data.get(pe_offset..).ok_or_else(|| not_pe("no PE signature"))?;
        let window = window.get(..SIZEOF_HEADERS).unwrap_or(window);

        let optional = SIZEOF_PE_MAGIC.saturating_add(SIZEOF_COFF_HEADER);
        let magic = bytes::le16(window, optional).ok_or_else(|| cut("headers"))?;
        let (is_plus, count_at) = match magic {
            IMAGE_NT_OPTIONAL_HDR32_MAGIC => (false, optional.saturating_add(92)),
            IMAGE_NT_OPTIONAL_HDR64_MAGIC => (true, optional.saturating_add(108)),
            IMAGE_ROM_OPTIONAL_HDR_MAGIC => return Err(unsupported(magic, pe_offset, "a ROM image")),
            _ => return Err(unsupported(magic, pe_offset, "neither PE32 nor PE32+")),
        };
        let directory_count = bytes::le32(window, count_at).ok_or_else(|| cut("optional header"))?;
        let present = window.len().saturating_sub(count_at.saturating_add(4)) / SIZEOF_DIRECTORY;
        if present < index(directory_count).min(DIRECTORIES) {
            return Err(cut("data directories"));
        }

        let mut lowered = [0; SIZEOF_HEADERS];
        let readable = if index(directory_count) > DIRECTORIES {
            for (to, from) in lowered.iter_mut().zip(window) {
                *to = *from;
            }
            if let Some(count) = lowered.get_mut(count_at..count_at.saturating_add(4)) {
                count.copy_from_slice(&16_u32.to_le_bytes());
            }
            &lowered[..]
        } else {
            window
        };
        let header = Header::parse_without_dos(readable).map_err(|error| {
            ImageError::new(Code::ImageHeader, format!("the headers cannot be read: {error}")).at(Span::new(pe_offset, window.len()))
        })?;
        let Some(optional_header) = header.optional_header else {
            return Err(
                ImageError::new(Code::ImageHeader, "SizeOfOptionalHeader is 0: an object file").at(Span::new(pe_offset, window.len()))
            );
        };

        let coff = header.coff_header;
        let (standard, windows) = (optional_header.standard_fields, optional_header.windows_fields);
        let mut directories = [Directory::default(); DIRECTORIES];
        for (to, from) in directories.iter_mut().zip(optional_header.data_directories.data_directories) {
            if let Some((_, from)) = from {
                *to = Directory { address: from.virtual_address, size: from.size };
            }
        }
        let headers = Self {
            pe_offset,
            is_plus,
            machine: coff.machine,
            timestamp: coff.time_date_stamp,
            file_characteristics: coff.characteristics,
            size_of_optional_header: coff.size_of_optional_header,
            entry: standard.address_of_entry_point,
            image_base: windows.image_base,
            section_alignment: windows.section_alignment,
            file_alignment: windows.file_alignment,
            size_of_image: windows.size_of_image,
            size_of_headers: windows.size_of_headers,
            checksum: windows.check_sum,
            subsystem: windows.subsystem,
            dll_characteristics: windows.dll_characteristics,
            directory_count,
            directories,
        };
        let sections = headers.read_sections(data, coff.number_of_sections).ok_or_else(|| cut("section table"))?;
        Ok((headers, sections))
    }

    /// Offset of the optional header in the file.
    pub const fn optional_offset(&self) -> usize {
        self.pe_offset.saturating_add(SIZEOF_PE_MAGIC).saturating_add(SIZEOF_COFF_HEADER)
    }

    /// Offset of the section table in the file.
    pub fn section_table_offset(&self) -> usize {
        self.optional_offset().saturating_add(usize::from(self.size_of_optional_header))
    }

    /// The CheckSum field.
    pub fn checksum_span(&self) -> Span {
        Span::new(self.optional_offset().saturating_add(CHECKSUM_IN_OPTIONAL), 4)
    }

    /// The certificate table's data directory entry; `None` where NumberOfRvaAndSizes leaves none.
    pub fn certificate_directory_span(&self) -> Option<Span> {
        (index(self.directory_count) > CERTIFICATE_DIRECTORY).then(|| {
            let directories = self.optional_offset().saturating_add(self.fields_len());
            Span::new(directories.saturating_add(CERTIFICATE_DIRECTORY.saturating_mul(SIZEOF_DIRECTORY)), SIZEOF_DIRECTORY)
        })
    }

    /// The data directory `which`; empty when there is none.
    pub fn directory(&self, which: usize) -> Directory {
        self.directories.get(which).copied().unwrap_or_default()
    }

    /// Length of the optional header without its data directories.
    pub(super) const fn fields_len(&self) -> usize {
        if self.is_plus { 112 } else { 96 }
    }

    fn read_sections(&self, data: &[u8], count: u16) -> Option<Vec<Section>> {
        let len = usize::from(count).checked_mul(SIZEOF_SECTION_TABLE)?;
        let table = bytes::slice(data, self.section_table_offset(), len)?;
        table.chunks_exact(SIZEOF_SECTION_TABLE).map(read_section).collect()
    }
}

fn read_section(entry: &[u8]) -> Option<Section> {
    let name: [u8; 8] = bytes::array(entry, 0)?;
    let mut nameless: [u8; SIZEOF_SECTION_TABLE] = entry.try_into().ok()?;
    nameless.get_mut(..name.len())?.fill(0);
    let read = SectionTable::parse(&nameless, &mut 0, 0).ok()?;
    Some(Section {
        name,
        address: read.virtual_address,
        memory_size: read.virtual_size,
        file_offset: read.pointer_to_raw_data,
        file_size: read.size_of_raw_data,
        characteristics: read.characteristics,
    })
}

fn unsupported(magic: u16, pe_offset: usize, what: &str) -> ImageError {
    let span = Span { offset: widen(pe_offset).saturating_add(24), len: 2 };
    ImageError::new(Code::ImageUnsupported, format!("optional header magic {magic:#06x}: {what}")).at(span)
}
