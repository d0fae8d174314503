//! HVCI compatibility, told from the image alone: what Driver Verifier's code integrity checks (bug check 0xC4, codes 0x2000 to 0x2005)
//! would find.
//!
//! Sources: Microsoft windows-driver-docs, `devtest/code-integrity-checking.md` and `driversecurity/implement-hvci-compatible-code.md`.
//! 0x2003 to 0x2005 are violations; 0x2000 to 0x2002 depend on arguments at run time, so that an import is only a risk.

use super::{DELAY_IMPORT_DIRECTORY, IAT_DIRECTORY, IMPORT_DIRECTORY, Imports, Pe, Symbol, push_section};
use crate::finding::{Code, Note};

const PAGE: u32 = 0x1000;
/// IMAGE_DLLCHARACTERISTICS_NX_COMPAT
const NX_COMPAT: u16 = 0x0100;

/// Images that export kernel functions. Windows compares without regard to case.
const KERNEL_LIBRARIES: [&str; 9] =
    ["clfs.sys", "fltmgr.sys", "hal.dll", "mcd.sys", "ndis.sys", "ntoskrnl.exe", "portcls.sys", "storport.sys", "videoprt.sys"];

/// Functions of the list in `implement-hvci-compatible-code.md` that an image can import by name, sorted, with what their parameters can
/// ask for. Not among them are those that are called through a table: WDF functions, interface methods, display callbacks.
const RISKY: [(&str, Risk); 32] = [
    ("ChangerClassAllocatePool", Risk::Pool),
    ("ClfsCreateMarshallingArea", Risk::Pool),
    ("ExAllocatePool", Risk::Pool),
    ("ExAllocatePoolWithQuota", Risk::Pool),
    ("ExAllocatePoolWithQuotaTag", Risk::Pool),
    ("ExAllocatePoolWithTag", Risk::Pool),
    ("ExAllocatePoolWithTagPriority", Risk::Pool),
    ("ExInitializeLookasideListEx", Risk::Pool),
    ("ExInitializeNPagedLookasideList", Risk::Pool),
    ("FltAllocateContext", Risk::Pool),
    ("FltAllocatePoolAlignedWithTag", Risk::Pool),
    ("MmAllocateContiguousMemory", Risk::Any),
    ("MmAllocateContiguousMemorySpecifyCache", Risk::Any),
    ("MmAllocateContiguousMemorySpecifyCacheNode", Risk::Any),
    ("MmAllocateContiguousNodeMemory", Risk::Protection),
    ("MmCopyMemory", Risk::Any),
    ("MmMapIoSpace", Risk::Any),
    ("MmMapLockedPages", Risk::Mapping),
    ("MmMapLockedPagesSpecifyCache", Risk::Mapping),
    ("MmProtectMdlSystemAddress", Risk::Protection),
    ("NdisAllocateMemoryWithTagPriority", Risk::Any),
    ("NtCreateSection", Risk::Protection),
    ("NtMapViewOfSection", Risk::Protection),
    ("PcNewDmaChannel", Risk::Pool),
    ("PcNewResourceList", Risk::Pool),
    ("PcNewResourceSublist", Risk::Pool),
    ("StorPortGetDataInBufferSystemAddress", Risk::Mapping),
    ("StorPortGetSystemAddress", Risk::Mapping),
    ("VideoPortAllocatePool", Risk::Pool),
    ("ZwAllocateVirtualMemory", Risk::Protection),
    ("ZwCreateSection", Risk::Protection),
    ("ZwMapViewOfSection", Risk::Protection),
];

/// Which run-time check of Driver Verifier a function can fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Risk {
    /// It takes a pool type, or has the one that is executable.
    Pool,
    /// It takes a page protection.
    Protection,
    /// It maps an MDL.
    Mapping,
    /// Listed, but not by one of these parameters.
    Any,
}

impl Risk {
    const fn verifier_code(self) -> &'static str {
        match self {
            Self::Pool => "0x2000",
            Self::Protection => "0x2001",
            Self::Mapping => "0x2002",
            Self::Any => "0x2000 to 0x2002",
        }
    }
}

impl Pe<'_> {
    /// Checks HVCI compatibility: `ImageWx`, `ImageSectionAlignment`, `ImageIatExecutable`, `ImageRelocStraddle`, `ImageRiskyImport`,
    /// `ImageSharedWritable`, `ImageNoNxCompat`, `ImageInitExecutable`; also `ImageImports` and `ImageRelocations` where these tables cannot
    /// be read to their end. `imports` are the [`imports`](Self::imports) of this image; reads the relocation table.
    pub fn lint(&self, imports: &Imports<'_>) -> Vec<Note> {
        let mut notes = Vec::new();
        self.section_lint(&mut notes);
        self.alignment_lint(&mut notes);
        if self.headers.dll_characteristics & NX_COMPAT == 0 {
            let detail = format!("DllCharacteristics is {:#06x}", self.headers.dll_characteristics);
            notes.push(Note::new(Code::ImageNoNxCompat, detail));
        }
        self.iat_lint(imports, &mut notes);
        self.import_lint(imports, &mut notes);
        notes.extend_from_slice(&imports.notes);
        self.relocation_lint(&mut notes);
        notes
    }

    fn section_lint(&self, notes: &mut Vec<Note>) {
        for section in &self.sections {
            let mut add = |code, detail: &str| push_section(notes, code, section, || format!("{} {detail}", section.permissions()));
            if section.is_writable() && section.is_executable() {
                add(Code::ImageWx, "is writable and executable: Driver Verifier 0x2003");
            }
            if section.is_shared() && section.is_writable() {
                add(Code::ImageSharedWritable, "is shared and writable");
            }
            if section.is_discardable() && section.is_executable() {
                add(Code::ImageInitExecutable, "is discardable and executable");
            }
        }
    }

    fn alignment_lint(&self, notes: &mut Vec<Note>) {
        let alignment = self.headers.section_alignment;
        if !alignment.is_multiple_of(PAGE) || alignment == 0 {
            let detail = format!("SectionAlignment is {alignment:#x}, no multiple of {PAGE:#x}: Driver Verifier 0x2004");
            notes.push(Note::new(Code::ImageSectionAlignment, detail));
        }
        for section in self.sections.iter().filter(|s| !s.address.is_multiple_of(PAGE)) {
            let detail = || format!("begins at address {:#x}: Driver Verifier 0x2004", section.address);
            push_section(notes, Code::ImageSectionAlignment, section, detail);
        }
    }

    fn iat_lint(&self, imports: &Imports<'_>, notes: &mut Vec<Note>) {
        // old linkers leave the directory empty, and nothing makes it and the descriptors name the same place
        let directory = self.headers.directory(IAT_DIRECTORY);
        let places = Some(directory.address).filter(|_| !directory.is_empty()).into_iter().chain(imports.slots.iter().copied());
        let executable = places.filter_map(|address| Some((address, self.section_at(address)?))).find(|(_, s)| s.is_executable());
        if let Some((address, section)) = executable {
            let name = section.display_name();
            let detail = format!(
                "the import address table at address {address:#x} lies in {name} ({}): Driver Verifier 0x2005",
                section.permissions()
            );
            let note = Note { span: self.place(address, directory.size), ..Note::new(Code::ImageIatExecutable, detail) };
            notes.push(note.of(name));
        }
    }

    fn import_lint(&self, imports: &Imports<'_>, notes: &mut Vec<Note>) {
        let mut found: Vec<(&str, Risk, bool)> = imports
            .imports
            .iter()
            .filter_map(|import| {
                let Symbol::Name(name) = import.symbol else { return None };
                let at = RISKY.binary_search_by(|(risky, _)| risky.as_bytes().cmp(name)).ok()?;
                let (name, risk) = RISKY.get(at).copied()?;
                KERNEL_LIBRARIES.iter().any(|library| import.library.eq_ignore_ascii_case(library.as_bytes())).then_some((
                    name,
                    risk,
                    import.delayed,
                ))
            })
            .collect();
        // one that is imported both ways is named once, and not as delay-loaded
        found.sort_unstable_by_key(|(name, _, delayed)| (*name, *delayed));
        found.dedup_by_key(|(name, ..)| *name);
        if !found.is_empty() {
            let names: Vec<&str> = found.iter().map(|(name, ..)| *name).collect();
            let details: Vec<String> = found
                .iter()
                .map(|(name, risk, delayed)| {
                    let how = if *delayed { "delay-loaded, " } else { "" };
                    format!("{name} ({how}Driver Verifier {})", risk.verifier_code())
                })
                .collect();
            let all_delayed = found.iter().all(|(.., delayed)| *delayed);
            let table = self.headers.directory(if all_delayed { DELAY_IMPORT_DIRECTORY } else { IMPORT_DIRECTORY });
            let note = Note::new(Code::ImageRiskyImport, format!("imports {}", details.join(", ")));
            notes.push(Note { span: self.place(table.address, table.size), ..note }.of(names.join(", ")));
        }
    }

    fn relocation_lint(&self, notes: &mut Vec<Note>) {
        let mut straddling = 0_u32;
        let mut first = None;
        for block in self.relocation_blocks() {
            let block = match block {
                Ok(block) => block,
                Err(note) => {
                    notes.push(note);
                    break;
                }
            };
            for relocation in block.relocations() {
                let into_page = relocation.address & PAGE.wrapping_sub(1);
                let width = relocation.width().unwrap_or(0);
                if into_page.saturating_add(width) > PAGE {
                    straddling = straddling.saturating_add(1);
                    first = first.or(Some((relocation.address, width)));
                }
            }
        }
        if let Some((address, width)) = first {
            let detail = format!("{straddling} relocations cross the end of a page, the first one at address {address:#x} ({width} bytes)");
            notes.push(Note { span: self.place(address, width), ..Note::new(Code::ImageRelocStraddle, detail) });
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::{
        super::sample::{OPTIONAL, Sample},
        *,
    };

    fn lint(sample: &Sample) -> Vec<(Code, String)> {
        let pe = Pe::parse(&sample.0).unwrap();
        pe.lint(&pe.imports()).into_iter().map(|n| (n.code, format!("{} {}", n.subject.unwrap_or_default(), n.detail))).collect()
    }

    #[test]
    fn risky_functions_are_sorted() {
        assert!(RISKY.is_sorted_by(|a, b| a.0 < b.0));
    }

    #[test]
    fn a_clean_driver_is_clean() {
        assert_eq!(lint(&Sample::new()), []);
    }

    #[test]
    fn sections() {
        let text = |characteristics| {
            let mut sample = Sample::new();
            sample.section(0, b"INIT\0\0\0\0", [0x1F0, 0x1000, 0x200, 0x400], characteristics);
            lint(&sample)
        };
        let (wx, init) = ("INIT rwx-d is writable and executable: Driver Verifier 0x2003", "INIT rwx-d is discardable and executable");
        assert_eq!(text(0xE200_0020), [(Code::ImageWx, wx.to_owned()), (Code::ImageInitExecutable, init.to_owned())]);
        assert_eq!(text(0xD000_0040), [(Code::ImageSharedWritable, "INIT rw-s- is shared and writable".to_owned())]);
        assert_eq!(text(0x6000_0020), []);
    }

    #[test]
    fn alignment() {
        let mut low = Sample::new();
        low.set32(OPTIONAL + 32, 0x200);
        assert_eq!(
            lint(&low),
            [(Code::ImageSectionAlignment, " SectionAlignment is 0x200, no multiple of 0x1000: Driver Verifier 0x2004".to_owned())]
        );
        let mut moved = Sample::new();
        moved.section(1, b".data\0\0\0", [0x200, 0x2010, 0x200, 0x600], 0xC000_0040);
        assert_eq!(lint(&moved), [(Code::ImageSectionAlignment, ".data begins at address 0x2010: Driver Verifier 0x2004".to_owned())]);
    }

    #[test]
    fn nx_compat() {
        let mut sample = Sample::new();
        sample.set16(OPTIONAL + 70, 0x0060);
        assert_eq!(lint(&sample), [(Code::ImageNoNxCompat, " DllCharacteristics is 0x0060".to_owned())]);
    }

    #[test]
    fn risky_imports_of_kernel_libraries_only() {
        let mut sample = Sample::with_tables();
        let risk = "ExAllocatePool imports ExAllocatePool (Driver Verifier 0x2000)";
        assert_eq!(lint(&sample), [(Code::ImageRiskyImport, risk.to_owned())]);
        sample.bytes(0x670, b"myother.dll\0");
        assert_eq!(lint(&sample), []);
    }

    #[test]
    fn delay_loaded_imports_are_imports() {
        let mut sample = Sample::with_tables().delay_loading();
        let loaded = "ExAllocatePool imports ExAllocatePool (Driver Verifier 0x2000)";
        assert_eq!(lint(&sample), [(Code::ImageRiskyImport, loaded.to_owned())]);
        sample.directory(1, 0, 0);
        let delayed = "ExAllocatePool imports ExAllocatePool (delay-loaded, Driver Verifier 0x2000)";
        assert_eq!(lint(&sample), [(Code::ImageRiskyImport, delayed.to_owned())]);
        // blamed is the table that they stand in
        let pe = Pe::parse(&sample.0).unwrap();
        let note = pe.lint(&pe.imports()).remove(0);
        assert_eq!(note.span.unwrap().to_string(), "0x7b0..0x7f0");
    }

    #[test]
    fn import_address_table_in_code() {
        let mut sample = Sample::with_tables();
        sample.bytes(0x670, b"myother.dll\0");
        sample.section(1, b".text2\0\0", [0x200, 0x2000, 0x200, 0x600], 0x6000_0020);
        let expected = "the import address table at address 0x2050 lies in .text2 (r-x--): Driver Verifier 0x2005";
        assert_eq!(lint(&sample), [(Code::ImageIatExecutable, format!(".text2 {expected}"))]);
        // the descriptors say where it is, whatever the directory says
        sample.directory(12, 0, 0);
        assert_eq!(lint(&sample), [(Code::ImageIatExecutable, format!(".text2 {expected}"))]);
        sample.directory(12, 0x10, 8);
        assert_eq!(lint(&sample), [(Code::ImageIatExecutable, format!(".text2 {expected}"))]);
    }

    #[test]
    fn relocations_over_the_end_of_a_page() {
        let straddles = |entry: u16| {
            let mut sample = Sample::with_tables();
            sample.directory(1, 0, 0);
            sample.set16(0x6A8, entry);
            lint(&sample)
        };
        assert_eq!(straddles(0xAFF8), []);
        assert_eq!(straddles(0x3FFC), []);
        let note = " 1 relocations cross the end of a page, the first one at address 0x1ff9 (8 bytes)";
        assert_eq!(straddles(0xAFF9), [(Code::ImageRelocStraddle, note.to_owned())]);
        assert_eq!(straddles(0x3FFD).len(), 1);
    }
}
