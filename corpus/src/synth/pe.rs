//! PE images made from a small description (PE format specification, 2025): drivers, EFI applications, programs, and odd ones.

use hvci_engine::facts::FileKind;
use object::{
    pe,
    write::pe::{NtHeaders, SectionRange, Writer},
};
use rand_core::RngCore;

use super::{
    Error, Result,
    authenticode::{pad, set_checksum},
    import_calls::{self, ImportCall, LOAD_CONFIG},
    key::stream,
    layout::{Layout, to_u32, write32},
};

/// Usual section marks: code.
pub const CODE: u32 = pe::IMAGE_SCN_CNT_CODE | pe::IMAGE_SCN_MEM_EXECUTE | pe::IMAGE_SCN_MEM_READ;
/// Usual section marks: constants.
pub const CONST: u32 = pe::IMAGE_SCN_CNT_INITIALIZED_DATA | pe::IMAGE_SCN_MEM_READ;
/// Usual section marks: data.
pub const DATA: u32 = CONST | pe::IMAGE_SCN_MEM_WRITE;
/// Usual section marks: code that is dropped after initialisation.
pub const INIT: u32 = CODE | pe::IMAGE_SCN_MEM_DISCARDABLE;

/// What an image is to be.
#[derive(Clone, Debug)]
pub struct Image {
    /// Its name, from which its code is derived.
    pub name: String,
    /// Machine; PE32 for i386, PE32+ for every other.
    pub machine: u16,
    /// Subsystem.
    pub subsystem: u16,
    /// DllCharacteristics.
    pub characteristics: u16,
    /// SectionAlignment in bytes.
    pub section_alignment: u32,
    /// FileAlignment in bytes.
    pub file_alignment: u32,
    /// NumberOfRvaAndSizes.
    pub directories: usize,
    /// Sections: name, marks, bytes of content. Import, debug, version and relocation data are put behind the content of the first two.
    pub sections: Vec<(&'static str, u32, usize)>,
    /// Module and functions that it imports.
    pub imports: (&'static str, Vec<&'static str>),
    /// Index of the section that gets the import and export tables, and the list of import calls.
    pub import_section: usize,
    /// Calls of what it imports that a kernel may make direct ones.
    pub import_calls: Vec<ImportCall>,
    /// What it exports, by names and by ordinals from 1 up.
    pub exports: Vec<(&'static str, Export)>,
    /// Relocations: index of section, offset in it.
    pub relocations: Vec<(usize, u32)>,
    /// File and product version; none without.
    pub version: Option<[u16; 4]>,
    /// InternalName of its version resource.
    pub internal_name: Option<&'static str>,
    /// Major and minor security version number of a Windows boot manager.
    pub security_version: Option<[u16; 2]>,
    /// PDB name; none without.
    pub pdb: Option<&'static str>,
    /// Bytes between the second and the third section that belong to none.
    pub gap: u32,
    /// Bytes of the first section that SizeOfHeaders reaches over.
    pub headers_over: u32,
    /// Bytes at the end that belong to no section.
    pub tail: usize,
}

/// What an image exports.
#[derive(Clone, Copy, Debug)]
pub enum Export {
    /// A place in the section of this index.
    At(usize, u32),
    /// Another image's export: `library.name` or `library.#ordinal`.
    Forward(&'static str),
}

impl Image {
    /// A good image of this kind.
    pub fn of(kind: FileKind, name: &str) -> Self {
        let driver = Self {
            name: name.to_owned(),
            machine: pe::IMAGE_FILE_MACHINE_AMD64,
            subsystem: pe::IMAGE_SUBSYSTEM_NATIVE,
            characteristics: pe::IMAGE_DLLCHARACTERISTICS_NX_COMPAT | pe::IMAGE_DLLCHARACTERISTICS_DYNAMIC_BASE,
            section_alignment: 0x1000,
            file_alignment: 0x200,
            directories: 16,
            sections: vec![(".text", CODE, 0x1400), (".rdata", CONST, 0x200), (".data", DATA, 0x300), ("INIT", INIT, 0x180)],
            imports: ("ntoskrnl.exe", vec!["DbgPrint", "IoCreateDevice", "IoDeleteDevice", "KeBugCheckEx", "ExAllocatePool2"]),
            import_section: 1,
            import_calls: Vec::new(),
            exports: Vec::new(),
            relocations: vec![(2, 0x10), (2, 0x18), (2, 0x100)],
            version: Some([1, 2, 3, 4]),
            internal_name: None,
            security_version: None,
            pdb: Some("synthetic.pdb"),
            gap: 0,
            headers_over: 0,
            tail: 0,
        };
        match kind {
            FileKind::PeEfi => Self {
                subsystem: pe::IMAGE_SUBSYSTEM_EFI_APPLICATION,
                sections: vec![(".text", CODE, 0x1800), (".rdata", CONST, 0x200), (".data", DATA, 0x200)],
                imports: ("", Vec::new()),
                version: None,
                pdb: None,
                ..driver
            },
            FileKind::PeUser => Self {
                subsystem: pe::IMAGE_SUBSYSTEM_WINDOWS_CUI,
                sections: vec![(".text", CODE, 0x1000), (".rdata", CONST, 0x400), (".data", DATA, 0x200)],
                imports: ("kernel32.dll", vec!["ExitProcess", "GetTickCount"]),
                ..driver
            },
            _ => driver,
        }
    }

    /// The file.
    ///
    /// # Errors
    /// A description that gives no image.
    pub fn build(&self) -> Result<Vec<u8>> {
        let mut bytes = Vec::new();
        let mut writer = Writer::new(self.is_wide(), self.section_alignment, self.file_alignment, &mut bytes);
        writer.reserve_dos_header_and_stub();
        writer.reserve_nt_headers(self.directories.max(6));
        let extra = usize::from(self.version.is_some()) + usize::from(!self.relocations.is_empty());
        writer.reserve_section_headers(u16::try_from(self.sections.len() + extra).map_err(|_| Error::NotApplicable("too many sections"))?);

        let mut contents: Vec<(SectionRange, Vec<u8>)> = Vec::new();
        let mut export_table = None;
        for (index, (name, marks, len)) in self.sections.iter().enumerate() {
            let mut content = vec![0; *len];
            stream(0, &format!("{} {name}", self.name)).fill_bytes(&mut content);
            if index == 2 && self.gap > 0 {
                writer.reserve_until(writer.reserved_len() + self.gap);
            }
            let address = writer.virtual_len();
            if index == self.import_section && !self.imports.1.is_empty() {
                pad(&mut content);
                let at = address + to_u32(content.len());
                let (tables, iat) = imports(&self.imports, at, self.is_wide());
                writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_IMPORT, at, 40);
                // the table is found through the import directory where there is no room for its own
                if self.directories > pe::IMAGE_DIRECTORY_ENTRY_IAT {
                    writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_IAT, at + iat.0, iat.1);
                }
                content.extend(tables);
                if !self.import_calls.is_empty() {
                    pad(&mut content);
                    let offset = to_u32(content.len());
                    writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_LOAD_CONFIG, address + offset, LOAD_CONFIG);
                    content.extend(import_calls::tables(&self.import_calls, &mut contents, at + iat.0, (index + 1, offset))?);
                }
            }
            if index == self.import_section && !self.exports.is_empty() {
                pad(&mut content);
                let at = address + to_u32(content.len());
                // where the sections are that come later is not known yet
                let table = self.export_table(at, &[]);
                writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_EXPORT, at, to_u32(table.len()));
                export_table = Some((content.len(), at));
                content.extend(table);
            }
            if let Some(pdb) = self.pdb.filter(|_| index == 1 && self.directories > pe::IMAGE_DIRECTORY_ENTRY_DEBUG) {
                pad(&mut content);
                let at = address + to_u32(content.len());
                // the file offset that this section will get
                let raw = writer.reserved_len().next_multiple_of(self.file_alignment) + to_u32(content.len());
                writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_DEBUG, at, 28);
                content.extend(debug(pdb, at, raw));
            }
            let len = to_u32(content.len());
            contents.push((writer.reserve_section(section_name(name), *marks, len, len), content));
        }
        if let Some((offset, at)) = export_table {
            let sections: Vec<u32> = contents.iter().map(|(range, _)| range.virtual_address).collect();
            let table = self.export_table(at, &sections);
            let place = contents.get_mut(self.import_section).and_then(|(_, content)| content.get_mut(offset..offset + table.len()));
            place.ok_or(Error::NotApplicable("exports in no section"))?.copy_from_slice(&table);
        }
        if let Some(version) = self.version {
            let content = self.resources(version, writer.virtual_len());
            let len = to_u32(content.len());
            let range = writer.reserve_section(section_name(".rsrc"), CONST, len, len);
            writer.set_data_directory(pe::IMAGE_DIRECTORY_ENTRY_RESOURCE, range.virtual_address, len);
            contents.push((range, content));
        }
        let kind = if self.is_wide() { pe::IMAGE_REL_BASED_DIR64 } else { pe::IMAGE_REL_BASED_HIGHLOW };
        for (section, offset) in &self.relocations {
            let range = contents.get(*section).ok_or(Error::NotApplicable("a relocation in no section"))?.0;
            writer.add_reloc(range.virtual_address + offset, kind);
        }
        if writer.has_relocs() {
            writer.reserve_reloc_section();
        }

        writer.write_dos_header_and_stub()?;
        writer.write_nt_headers(self.headers(contents.first().map_or(0, |(range, _)| range.virtual_address)));
        writer.write_section_headers();
        for (range, content) in &contents {
            writer.write_section(range.file_offset, content);
        }
        writer.write_reloc_section();
        drop(writer);

        bytes.extend(vec![0xEE; self.tail]);
        let layout = Layout::of(&bytes)?;
        if self.directories < 6 {
            write32(&mut bytes, layout.directory_count, to_u32(self.directories))?;
        }
        if self.headers_over > 0 {
            let first = contents.first().map_or(0, |(range, _)| range.file_offset);
            write32(&mut bytes, layout.size_of_headers, first + self.headers_over)?;
        }
        set_checksum(&mut bytes)?;
        Ok(bytes)
    }

    /// A resource section at `address` with one VS_VERSIONINFO, and before it the security version number of a boot manager that has one.
    fn resources(&self, version: [u16; 4], address: u32) -> Vec<u8> {
        const NUMBER: &str = "BOOTMGRSECURITYVERSIONNUMBER";
        const SUBDIRECTORY: u32 = 0x8000_0000;
        // a type by its number, then its name, then language 0x409
        let number = self.security_version.map(|[major, minor]| {
            let name = [&u16::try_from(NUMBER.len()).unwrap_or(0).to_le_bytes()[..], &utf16(NUMBER)].concat();
            (10, Some(name), [minor.to_le_bytes(), major.to_le_bytes()].concat())
        });
        let info = (16, None, version_info(version, self.internal_name));
        let all: Vec<(u32, Option<Vec<u8>>, Vec<u8>)> = number.into_iter().chain([info]).collect();
        // directories first: of types, then two and the data entry for each; names and data behind
        let root_len = 16 + 8 * all.len();
        let mut data_at: usize = root_len + all.len() * (24 + 24 + 16);
        let (mut root, mut below, mut data) = (Vec::new(), Vec::new(), Vec::new());
        for (kind, name, content) in all {
            let at = root_len + below.len();
            root.push((kind, SUBDIRECTORY | to_u32(at)));
            let id = if name.is_some() { SUBDIRECTORY | to_u32(data_at) } else { 1 };
            below.extend(resource_directory(u16::from(name.is_some()), &[(id, SUBDIRECTORY | to_u32(at + 24))]));
            below.extend(resource_directory(0, &[(0x409, to_u32(at + 48))]));
            let mut behind = name.unwrap_or_default();
            behind.resize(behind.len().next_multiple_of(4), 0);
            for word in [address + to_u32(data_at + behind.len()), to_u32(content.len()), 0, 0] {
                below.extend(word.to_le_bytes());
            }
            behind.extend(content);
            behind.resize(behind.len().next_multiple_of(4), 0);
            data_at += behind.len();
            data.extend(behind);
        }
        [resource_directory(0, &root), below, data].concat()
    }

    /// The export table, to stand at `at`: directory, addresses, names, ordinals, texts.
    fn export_table(&self, at: u32, sections: &[u32]) -> Vec<u8> {
        let count = to_u32(self.exports.len());
        let [addresses, names, ordinals] = [at + 40, at + 40 + count * 4, at + 40 + count * 8];
        let mut texts = format!("{}.sys\0", self.name).into_bytes();
        let texts_at = ordinals + count * 2;
        let mut tables = [Vec::new(), Vec::new(), Vec::new()];
        for (number, (name, export)) in (0_u16..).zip(&self.exports) {
            let mut text = |text: &str| {
                let at = texts_at + to_u32(texts.len());
                texts.extend(text.bytes());
                texts.push(0);
                at
            };
            let name = text(name);
            let address = match export {
                Export::At(section, offset) => sections.get(*section).copied().unwrap_or(0) + offset,
                Export::Forward(to) => text(to),
            };
            tables[0].extend(address.to_le_bytes());
            tables[1].extend(name.to_le_bytes());
            tables[2].extend(number.to_le_bytes());
        }
        let fields = [0, 0, 0, texts_at, 1, count, count, addresses, names, ordinals];
        [fields.iter().flat_map(|f| f.to_le_bytes()).collect(), tables.concat(), texts].concat()
    }

    const fn is_wide(&self) -> bool {
        self.machine != pe::IMAGE_FILE_MACHINE_I386
    }

    fn headers(&self, entry: u32) -> NtHeaders {
        let wide = if self.is_wide() { pe::IMAGE_FILE_LARGE_ADDRESS_AWARE } else { pe::IMAGE_FILE_32BIT_MACHINE };
        NtHeaders {
            machine: self.machine,
            time_date_stamp: 1_700_000_000,
            characteristics: pe::IMAGE_FILE_EXECUTABLE_IMAGE | wide,
            major_linker_version: 14,
            minor_linker_version: 0,
            address_of_entry_point: entry,
            image_base: if self.is_wide() { 0x1_4000_0000 } else { 0x40_0000 },
            major_operating_system_version: 10,
            minor_operating_system_version: 0,
            major_image_version: 0,
            minor_image_version: 0,
            major_subsystem_version: 6,
            minor_subsystem_version: 1,
            subsystem: self.subsystem,
            dll_characteristics: self.characteristics,
            size_of_stack_reserve: 0x10_0000,
            size_of_stack_commit: 0x1000,
            size_of_heap_reserve: 0x10_0000,
            size_of_heap_commit: 0x1000,
        }
    }
}

/// Import descriptors, names and the address table for one module, to stand at `at`; and offset and length of the address table.
fn imports((module, functions): &(&str, Vec<&str>), at: u32, wide: bool) -> (Vec<u8>, (u32, u32)) {
    let width: u32 = if wide { 8 } else { 4 };
    let table = (to_u32(functions.len()) + 1) * width;
    let (lookup, iat) = (40, 40 + table);
    let mut names = Vec::new();
    let mut pointers = Vec::new();
    for function in functions {
        pointers.push(at + iat + table + to_u32(names.len()));
        names.extend([0, 0]);
        names.extend(function.bytes());
        names.push(0);
        names.resize(names.len().next_multiple_of(2), 0);
    }
    let module_at = at + iat + table + to_u32(names.len());
    names.extend(module.bytes());
    names.push(0);

    let mut bytes = Vec::new();
    for field in [at + lookup, 0, 0, module_at, at + iat, 0, 0, 0, 0, 0] {
        bytes.extend(field.to_le_bytes());
    }
    for _ in 0..2 {
        for pointer in pointers.iter().copied().chain([0]) {
            bytes.extend(pointer.to_le_bytes());
            bytes.extend(vec![0; if wide { 4 } else { 0 }]);
        }
    }
    bytes.extend(names);
    (bytes, (iat, table))
}

/// A debug directory with a CodeView record, at this address and file offset.
fn debug(pdb: &str, address: u32, raw: u32) -> Vec<u8> {
    let record = [b"RSDS".as_slice(), &[0x5A; 16], &1_u32.to_le_bytes(), pdb.as_bytes(), b"\0"].concat();
    let fields = [0, 1_700_000_000, 0, pe::IMAGE_DEBUG_TYPE_CODEVIEW, to_u32(record.len()), address + 28, raw + 28];
    fields.iter().flat_map(|f| f.to_le_bytes()).chain(record).collect()
}

/// A directory of resources with these entries, each a number (or the place of a name, with the highest bit) and where it leads.
fn resource_directory(named: u16, entries: &[(u32, u32)]) -> Vec<u8> {
    let by_number = u16::try_from(entries.len()).unwrap_or(u16::MAX) - named;
    let head = [0, 0, 0, u32::from(by_number) << 16 | u32::from(named)];
    head.into_iter().chain(entries.iter().flat_map(|(id, next)| [*id, *next])).flat_map(u32::to_le_bytes).collect()
}

fn utf16(text: &str) -> Vec<u8> {
    text.encode_utf16().flat_map(u16::to_le_bytes).collect()
}

/// VS_VERSIONINFO with a VS_FIXEDFILEINFO and, if there is a name, a StringFileInfo with it and nothing else.
fn version_info([a, b, c, d]: [u16; 4], internal_name: Option<&str>) -> Vec<u8> {
    let high = u32::from(a) << 16 | u32::from(b);
    let low = u32::from(c) << 16 | u32::from(d);
    // signature, structure version, file and product version, mask, flags, VOS_NT_WINDOWS32, VFT_DRV, VFT2_DRV_SYSTEM, date
    let fixed = [0xFEEF_04BD, 0x1_0000, high, low, high, low, 0x3F, 0, 0x4_0004, 3, 7, 0, 0].map(u32::to_le_bytes).concat();
    let strings = internal_name.map(|name| {
        let string = version_block("InternalName", &utf16(&format!("{name}\0")), true, &[]);
        version_block("StringFileInfo", &[], true, &version_block("040904B0", &[], true, &string))
    });
    version_block("VS_VERSION_INFO", &fixed, false, &strings.unwrap_or_default())
}

/// A block of a version resource.
fn version_block(key: &str, value: &[u8], is_text: bool, children: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 6];
    bytes.extend(utf16(&format!("{key}\0")));
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes.extend(value);
    if !children.is_empty() {
        bytes.resize(bytes.len().next_multiple_of(4), 0);
        bytes.extend(children);
    }
    let units = if is_text { value.len() / 2 } else { value.len() };
    for (at, field) in [bytes.len(), units, usize::from(is_text)].into_iter().enumerate() {
        bytes[at * 2..at * 2 + 2].copy_from_slice(&u16::try_from(field).unwrap_or(u16::MAX).to_le_bytes());
    }
    bytes
}

fn section_name(name: &str) -> [u8; 8] {
    let mut field = [0; 8];
    field.iter_mut().zip(name.bytes()).for_each(|(f, b)| *f = b);
    field
}
