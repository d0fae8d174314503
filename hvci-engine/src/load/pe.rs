//! A Windows driver in memory (PE/COFF specification; Windows Research Kernel, `MiCreateImageFileMap`, `LdrRelocateImage`,
//! `MiSnapThunk`).
//!
//! - *Sections*: as many bytes of the file as there are, up to the end of the section's last page, then zeros. What lies behind `VirtualSize`
//!   on that page is what Windows maps there too: the file's padding, which every digest form covers; nothing beyond is mapped.
//! - *Headers*: `SizeOfHeaders` bytes as they stand in the file, then zeros, read-only. `ImageBase` in memory stays what was signed.
//! - *Relocations*: DIR64 and the filler ABSOLUTE; linkers write no other for x86-64.
//! - *Imports*: every slot of the import address table. Those of delay-loaded imports stay as they are: the image fills them itself.
//! - *Guard function pointers*: what [`Symbols`] says of [`GUARD_CHECK`] and [`GUARD_DISPATCH`]; as they are in the file if it knows none, as
//!   with a kernel that does not have control flow guard on.
//! - *Security cookie*: if it has the value that linkers give it, so that a loader sets it, its eight bytes are not compared. They must be in
//!   data that is writable and not executable.
//!
//! Not applied: return thunks and other code that a kernel rewrites while it loads; for import optimisation see `import_site`. Refuses what is no x86-64 driver, what
//! is not compatible with HVCI (the lint's findings), and everything whose loading is defined by no specification.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::sync::Arc;

use smol_str::SmolStr;

use super::{
    Expected, Exports, Pages, Part, Refusal, Segment, Symbols,
    expected::{is_kernel_range, whole_pages},
    pages::PAGE,
};
use crate::{
    addr::{Gva, PAGE_SIZE},
    bytes::{index, slice, widen},
    facts::FileKind,
    finding::{Code, Note},
    frames::Kind,
    image::pe::{Imports, Pe, Relocation, Section, Symbol},
};

/// The library that [`GUARD_CHECK`] and [`GUARD_DISPATCH`] are asked for in.
pub const GUARD_LIBRARY: &[u8] = b"ntoskrnl.exe";
/// The kernel's function that checks the target of an indirect call.
pub const GUARD_CHECK: Symbol<'static> = Symbol::Name(b"_guard_check_icall");
/// The kernel's function that checks the target of an indirect call and calls it.
pub const GUARD_DISPATCH: Symbol<'static> = Symbol::Name(b"_guard_dispatch_icall");

const MACHINE_AMD64: u16 = 0x8664;
/// IMAGE_FILE_RELOCS_STRIPPED
const RELOCS_STRIPPED: u16 = 1;
const ABSOLUTE: u16 = 0;
const DIR64: u16 = 10;
/// Windows counts the file in sectors, and forgets what is below.
const SECTOR: u32 = 512;
/// What linkers put where the cookie belongs (`DEFAULT_SECURITY_COOKIE` of the C run-time library for 64 bits).
const DEFAULT_COOKIE: u64 = 0x2B99_2DDF_A232;

/// What is wrong with an image that is not loaded. How much of it a reader of many files minds does not matter here.
const REFUSED: [Code; 13] = [
    Code::ImageTruncated,
    Code::ImageHeader,
    Code::ImageDivergence,
    Code::ImageSectionBounds,
    Code::ImageSectionOverlap,
    Code::ImageHeadersCover,
    Code::ImageWx,
    Code::ImageSectionAlignment,
    Code::ImageIatExecutable,
    Code::ImageRelocStraddle,
    Code::ImageRelocations,
    Code::ImageImports,
    // what would be mapped of the table is in no digest
    Code::SigTableOverlap,
];

/// The driver `pe`, loaded at `base`.
///
/// # Errors
/// [`Refusal`]: the image is none that is loaded, `base` cannot be, an import is not resolved.
pub fn pe<'a>(pe: &Pe<'a>, base: Gva, symbols: &dyn Symbols) -> Result<Expected<'a>, Refusal> {
    let imports = pe.imports();
    let notes = [pe.notes(), &pe.lint(&imports), &pe.certificate_table().notes].concat();
    examined(pe, &imports, &notes, base, symbols)
}

/// The same, of whose examination `notes` came.
pub(super) fn examined<'a>(
    pe: &Pe<'a>,
    imports: &Imports<'_>,
    notes: &[Note],
    base: Gva,
    symbols: &dyn Symbols,
) -> Result<Expected<'a>, Refusal> {
    let headers = pe.headers();
    if !headers.is_plus || headers.machine != MACHINE_AMD64 || pe.kind() != FileKind::PeDriver {
        let detail = format!("{} of machine {:#06x}, subsystem {}", pe.facts().format, headers.machine, headers.subsystem);
        return Err(Refusal::unsupported(format!("{detail}: no driver for x86-64")));
    }
    Refusal::any(notes, &REFUSED)?;
    let mut image = Image::map(pe, base)?;
    image.relocate()?;
    image.bind(imports, symbols)?;
    let security_cookie = image.configure(symbols)?;
    let entry = image.entry()?;
    let exports = Arc::new(Exports::of_driver(pe, image.base, &image.segments));
    Ok(Expected { segments: image.segments, entry, security_cookie, exports })
}

fn move_by(delta: u64, word: &mut [u8; 8]) {
    *word = u64::from_le_bytes(*word).wrapping_add(delta).to_le_bytes();
}

/// An image in memory.
struct Image<'p, 'a> {
    pe: &'p Pe<'a>,
    base: u64,
    /// the first is the headers
    segments: Vec<Segment<'a>>,
    /// of each segment: relative to the image base, without the slack of its last page
    extents: Vec<Extent>,
    /// the segment that was last written to: relocations come in order
    last: usize,
}

#[derive(Clone, Copy)]
struct Extent {
    start: u32,
    len: u32,
}

impl Extent {
    /// Offset of the eight bytes at `address`, if they are in it.
    fn word(self, address: u32) -> Option<usize> {
        let into = address.checked_sub(self.start)?;
        (into.checked_add(8)? <= self.len).then(|| index(into))
    }
}

impl<'p, 'a> Image<'p, 'a> {
    fn map(pe: &'p Pe<'a>, base: Gva) -> Result<Self, Refusal> {
        let headers = pe.headers();
        let Some(size) = whole_pages(u64::from(headers.size_of_image)).map(widen) else {
            return Err(Refusal::too_large(format!("SizeOfImage is {:#x}", headers.size_of_image)));
        };
        if !base.0.is_multiple_of(PAGE_SIZE) || !is_kernel_range(base.0, size) {
            return Err(Refusal::placement(format!("{size:#x} bytes at {base}")));
        }
        let room = pe.sections().len().saturating_add(1);
        let mut image = Self { pe, base: base.0, segments: Vec::with_capacity(room), extents: Vec::with_capacity(room), last: 0 };
        let extent = Extent { start: 0, len: headers.size_of_headers };
        image.add("headers".into(), extent, pe.data().get(..index(headers.size_of_headers)), Kind::RoData, false)?;
        for section in pe.sections().iter().filter(|s| s.mapped_size() > 0) {
            image.add_section(section)?;
        }
        Ok(image)
    }

    fn add_section(&mut self, section: &Section) -> Result<(), Refusal> {
        let extent = Extent { start: section.address, len: section.mapped_size() };
        let name = section.display_name();
        // all the other sections lie behind one that does (`ImageSectionOverlap`)
        if self.segments.first().map_or(0, Segment::size) > u64::from(section.address) {
            return Err(Refusal::layout(format!("{name} at address {:#x} begins in the headers", section.address)).of(name));
        }
        if section.file_size > 0 && !section.file_offset.is_multiple_of(SECTOR) {
            return Err(Refusal::layout(format!("PointerToRawData of {name} is {:#x}, within a sector", section.file_offset)).of(name));
        }
        let kind = match (section.is_executable(), section.is_writable()) {
            // both: refused by the lint
            (true, _) => Kind::Code,
            (false, true) => Kind::Data,
            (false, false) => Kind::RoData,
        };
        let file = slice(self.pe.data(), index(section.file_offset), index(section.file_size));
        self.add(name, extent, if section.file_size > 0 { file } else { Some(&[]) }, kind, section.is_discardable())
    }

    fn add(&mut self, name: SmolStr, extent: Extent, file: Option<&'a [u8]>, kind: Kind, discardable: bool) -> Result<(), Refusal> {
        let (Some(file), Some(len)) = (file, whole_pages(u64::from(extent.len))) else {
            return Err(Refusal::layout(format!("{:#x} bytes of {name}, or their place in the file, cannot be", extent.len)).of(name));
        };
        let bytes = Pages::of_file(file, len / PAGE);
        let parts = vec![Part { section: name.clone(), offset: 0, len: u64::from(extent.len) }];
        let start = Gva(self.base.saturating_add(u64::from(extent.start)));
        self.segments.push(Segment { name, start, kind, discardable, bytes, parts });
        self.extents.push(extent);
        Ok(())
    }

    /// The eight bytes at `address` of a section, never of the headers, and what their segment becomes.
    fn word(&mut self, address: u32) -> Option<(&mut [u8; 8], Kind)> {
        let mut which = self.last;
        let mut offset = self.extents.get(which).and_then(|e| e.word(address));
        if offset.is_none() {
            // sections are in order of address and do not overlap (`ImageSectionOverlap`)
            which = self.extents.partition_point(|e| e.start <= address).checked_sub(1)?;
            offset = self.extents.get(which)?.word(address);
        }
        self.last = which;
        let segment = self.segments.get_mut(which).filter(|_| which > 0)?;
        let offset = offset?;
        Some((segment.bytes.get_mut(offset..offset.checked_add(8)?)?.first_chunk_mut()?, segment.kind))
    }

    fn relocate(&mut self) -> Result<(), Refusal> {
        let headers = self.pe.headers();
        let delta = self.base.wrapping_sub(headers.image_base);
        if delta != 0 && headers.file_characteristics & RELOCS_STRIPPED != 0 {
            let detail = format!("the relocations are stripped, and the image is not at {:#x}", headers.image_base);
            return Err(Refusal::relocation(detail));
        }
        // the lint has refused tables that cannot be read
        for block in self.pe.relocation_blocks().flatten() {
            let mut relocations = block.relocations();
            loop {
                // nearly all are of words that lie in the page
                let page = self.rest_of_page(block.page).unwrap_or_default();
                let mut in_page = |relocation: &Relocation| {
                    let into = index(relocation.address.wrapping_sub(block.page));
                    let word = page.get_mut(into..).and_then(<[u8]>::first_chunk_mut).filter(|_| relocation.kind == DIR64);
                    word.map(|word| move_by(delta, word))
                };
                let Some(relocation) = relocations.by_ref().find(|relocation| in_page(relocation).is_none()) else { break };
                match relocation.kind {
                    ABSOLUTE => {}
                    DIR64 => {
                        let Some((word, _)) = self.word(relocation.address) else {
                            return Err(Refusal::relocation(format!("a relocation at address {:#x}, in no section", relocation.address)));
                        };
                        move_by(delta, word);
                    }
                    kind => {
                        let detail = format!("a relocation of type {kind} at address {:#x}", relocation.address);
                        return Err(Refusal::relocation_kind(detail));
                    }
                }
            }
        }
        Ok(())
    }

    /// The bytes of a section from `address` on, never of the headers, as far as they are in one page.
    fn rest_of_page(&mut self, address: u32) -> Option<&mut [u8]> {
        let which = self.extents.partition_point(|e| e.start <= address).checked_sub(1).filter(|which| *which > 0)?;
        let extent = self.extents.get(which)?;
        let into = index(address.checked_sub(extent.start)?);
        let end = into.checked_add(1)?.checked_next_multiple_of(PAGE)?.min(index(extent.len));
        self.segments.get_mut(which)?.bytes.get_mut(into..end)
    }

    fn bind(&mut self, imports: &Imports<'_>, symbols: &dyn Symbols) -> Result<(), Refusal> {
        for import in imports.imports.iter().filter(|i| !i.delayed) {
            let address =
                symbols.resolve(import.library, import.symbol).ok_or_else(|| Refusal::unresolved(named(import.library, import.symbol)))?;
            self.set(import.slot, address, "an import")?;
        }
        Ok(())
    }

    /// Sets the words that the load configuration names. Returns where the cookie is that is not compared.
    fn configure(&mut self, symbols: &dyn Symbols) -> Result<Option<Gva>, Refusal> {
        let Some(config) = self.pe.load_config() else { return Ok(None) };
        for (pointer, symbol) in [(config.guard_check, GUARD_CHECK), (config.guard_dispatch, GUARD_DISPATCH)] {
            if let Some(pointer) = pointer
                && let Some(function) = symbols.resolve(GUARD_LIBRARY, symbol)
            {
                self.set(self.relative(pointer)?, function, "a guard function pointer")?;
            }
        }
        let Some(cookie) = config.security_cookie else { return Ok(None) };
        let address = self.relative(cookie)?;
        match self.word(address) {
            Some((word, _)) if u64::from_le_bytes(*word) != DEFAULT_COOKIE => Ok(None),
            Some((_, Kind::Data)) if address.is_multiple_of(8) => Ok(Some(Gva(self.base.saturating_add(u64::from(address))))),
            _ => Err(Refusal::layout(format!("the security cookie at address {address:#x} is not in writable data"))),
        }
    }

    fn entry(&self) -> Result<Option<Gva>, Refusal> {
        let entry = self.pe.headers().entry;
        if entry == 0 {
            return Ok(None);
        }
        let section = self.extents.iter().zip(&self.segments).find(|(e, _)| entry.checked_sub(e.start).is_some_and(|into| into < e.len));
        match section {
            Some((_, segment)) if segment.kind == Kind::Code => Ok(Some(Gva(self.base.saturating_add(u64::from(entry))))),
            _ => Err(Refusal::layout(format!("the entry point at address {entry:#x} is in no executable section"))),
        }
    }

    /// Writes a loader's word, which may be in any section but one with code.
    fn set(&mut self, slot: u32, value: Gva, what: &str) -> Result<(), Refusal> {
        match self.word(slot) {
            Some((word, kind)) if kind != Kind::Code => {
                *word = value.0.to_le_bytes();
                Ok(())
            }
            _ => Err(Refusal::layout(format!("{what} is to be put at address {slot:#x}, which is in no section that holds no code"))),
        }
    }

    /// Relative to the image base.
    fn relative(&self, address: u64) -> Result<u32, Refusal> {
        let relative = address.checked_sub(self.pe.headers().image_base).and_then(|a| u32::try_from(a).ok());
        relative.ok_or_else(|| Refusal::layout(format!("the load configuration names address {address:#x}, outside the image")))
    }
}

/// `library!function` for people.
fn named(library: &[u8], symbol: Symbol<'_>) -> String {
    match symbol {
        Symbol::Name(name) => format!("{}!{}", library.escape_ascii(), name.escape_ascii()),
        Symbol::Ordinal(ordinal) => format!("{}!#{ordinal}", library.escape_ascii()),
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
    #![expect(clippy::cast_possible_truncation, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::{
        bytes::le64,
        image::pe::sample::{COFF, OPTIONAL, SECTIONS, Sample},
        status::HvStatus,
    };

    /// `ImageBase` of the samples here.
    const PREFERRED: u64 = 0xFFFF_F800_0001_0000;
    const ALLOCATE: u64 = 0xFFFF_F801_1234_5678;
    const FIVE: u64 = 0xFFFF_F801_1234_0005;
    const CHECK: u64 = 0xFFFF_F801_0000_0100;

    /// Exports what the sample imports, and one of the two guard functions.
    struct Kernel {
        guard: bool,
    }

    impl Symbols for Kernel {
        fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
            let address = match (library, symbol) {
                (b"NTOSKRNL.exe", Symbol::Name(b"ExAllocatePool")) => ALLOCATE,
                (b"NTOSKRNL.exe", Symbol::Ordinal(5)) => FIVE,
                (GUARD_LIBRARY, GUARD_CHECK) if self.guard => CHECK,
                _ => return None,
            };
            Some(Gva(address))
        }
    }

    fn load_at(sample: &Sample, base: u64, guard: bool) -> Result<Expected<'static>, Refusal> {
        let mut sample = sample.clone();
        sample.set32(OPTIONAL + 28, (PREFERRED >> 32) as u32);
        pe(&Pe::parse(sample.0.leak()).unwrap(), Gva(base), &Kernel { guard })
    }

    fn load(sample: &Sample) -> Expected<'static> {
        load_at(sample, PREFERRED, false).unwrap()
    }

    fn refusal(sample: &Sample) -> (Code, HvStatus) {
        let refusal = load_at(sample, PREFERRED, false).unwrap_err();
        (refusal.note.code, refusal.status)
    }

    fn word(expected: &Expected<'_>, address: u64) -> u64 {
        let segment = expected.segments.iter().rfind(|s| s.start.0 <= PREFERRED + address).unwrap();
        le64(&segment.bytes.to_vec(), (PREFERRED + address - segment.start.0) as usize).unwrap()
    }

    /// The loader on one page: sections of the file to their places, at the preferred base.
    fn naive(file: &[u8], imports: &[(usize, u64)]) -> Vec<u8> {
        let read = |at: usize| u32::from_le_bytes(file[at..at + 4].try_into().unwrap()) as usize;
        let mut memory = vec![0; read(OPTIONAL + 56)];
        let headers = read(OPTIONAL + 60);
        memory[..headers].copy_from_slice(&file[..headers]);
        for at in [SECTIONS, SECTIONS + 40] {
            let [address, len, offset] = [12, 16, 20].map(|field| read(at + field));
            memory[address..address + len].copy_from_slice(&file[offset..offset + len]);
        }
        for (at, value) in imports {
            memory[*at..*at + 8].copy_from_slice(&value.to_le_bytes());
        }
        memory
    }

    #[test]
    fn sections_stand_where_the_headers_say() {
        let mut sample = Sample::with_tables();
        let expected = load(&sample);
        let segments: Vec<_> =
            expected.segments.iter().map(|s| (s.name.as_str(), s.start.0 - PREFERRED, s.bytes.count(), s.kind, s.discardable)).collect();
        assert_eq!(
            segments,
            [("headers", 0, 1, Kind::RoData, false), (".text", 0x1000, 1, Kind::Code, false), (".data", 0x2000, 1, Kind::Data, false)]
        );
        assert_eq!((expected.entry, expected.security_cookie), (Some(Gva(PREFERRED + 0x1000)), None));
        assert_eq!(expected.segments[1].parts, [Part { section: ".text".into(), offset: 0, len: 0x1F0 }]);
        sample.set32(OPTIONAL + 28, (PREFERRED >> 32) as u32);
        let memory = naive(&sample.0, &[(0x2050, ALLOCATE), (0x2058, FIVE)]);
        assert_eq!(expected.segments.iter().flat_map(|s| s.bytes.to_vec()).collect::<Vec<_>>(), memory);
    }

    #[test]
    fn what_depends_on_arguments_at_run_time_is_loaded() {
        let mut sample = Sample::with_tables();
        sample.set16(OPTIONAL + 70, 0);
        let parsed = Pe::parse(&sample.0).unwrap();
        let mut codes: Vec<_> = parsed.lint(&parsed.imports()).into_iter().map(|n| n.code).collect();
        codes.sort_unstable();
        codes.dedup();
        assert_eq!(codes, [Code::ImageRiskyImport, Code::ImageNoNxCompat]);
        load(&sample);
    }

    #[test]
    fn kinds_and_discardable_come_from_the_characteristics() {
        let mut sample = Sample::with_tables();
        sample.section(0, b"INIT\0\0\0\0", [0x1F0, 0x1000, 0x200, 0x400], 0x6200_0020);
        sample.section(1, b".rdata\0\0", [0x200, 0x2000, 0x200, 0x600], 0x4000_0040);
        let kinds: Vec<_> = load(&sample).segments.iter().map(|s| (s.kind, s.discardable)).collect();
        assert_eq!(kinds, [(Kind::RoData, false), (Kind::Code, true), (Kind::RoData, false)]);
    }

    #[test]
    fn what_the_file_lacks_is_zero_and_what_it_has_too_much_is_not_mapped() {
        // 0x10 bytes in memory, 0x200 in the file: the page has them all
        let mut tail = Sample::with_tables();
        tail.directory(5, 0, 0);
        tail.section(0, b".text\0\0\0", [0x10, 0x1000, 0x200, 0x400], 0x6000_0020);
        let text = load(&tail).segments[1].bytes.to_vec();
        assert_eq!((&text[..0x200], &text[0x200..]), (&tail.0[0x400..0x600], &[0; 0xE00][..]));
        // more in the file than its pages hold: the rest is nowhere
        let mut long = Sample::with_tables();
        long.0.extend(vec![0xCC; 0x2000]);
        long.section(0, b".text\0\0\0", [0x1000, 0x1000, 0x1800, 0x800], 0x6000_0020);
        assert_eq!(load(&long).segments[1].bytes.to_vec(), [0xCC; 0x1000]);
        // more in memory than in the file
        let mut short = Sample::with_tables();
        short.set32(OPTIONAL + 56, 0x5000);
        short.section(1, b".data\0\0\0", [0x2100, 0x2000, 0x200, 0x600], 0xC000_0040);
        let data = load(&short).segments[2].bytes.to_vec();
        assert_eq!((data.len(), data[0x200..].iter().all(|b| *b == 0)), (0x3000, true));
    }

    #[test]
    fn bases_differ_in_relocated_words_alone() {
        let mut sample = Sample::with_tables();
        sample.bytes(0x410, &(PREFERRED + 0x2000).to_le_bytes());
        let (here, there) = (load(&sample), load_at(&sample, 0xFFFF_F802_3456_7000, false).unwrap());
        assert_eq!(word(&here, 0x1010), PREFERRED + 0x2000);
        assert_eq!(le64(&there.segments[1].bytes.to_vec(), 0x10), Some(0xFFFF_F802_3456_9000));
        let differing = |n: usize| {
            let (a, b) = (here.segments[n].bytes.to_vec(), there.segments[n].bytes.to_vec());
            a.iter().zip(&b).enumerate().filter(|(_, (a, b))| a != b).map(|(at, _)| at).collect::<Vec<_>>()
        };
        assert_eq!((differing(0), differing(2)), (vec![], vec![]));
        assert!(differing(1).iter().all(|at| (0x10..0x18).contains(at)) && !differing(1).is_empty());
        assert_eq!(there.entry, Some(Gva(0xFFFF_F802_3456_8000)));
    }

    #[test]
    fn relocations_that_are_not_applied() {
        let relocated = |change: &dyn Fn(&mut Sample)| {
            let mut sample = Sample::with_tables();
            change(&mut sample);
            refusal(&sample)
        };
        let denied = (Code::MemRelocation, HvStatus::ACCESS_DENIED);
        // in the headers, behind the image, behind the section's end and over it
        assert_eq!(relocated(&|s| s.set32(0x6A0, 0)), denied);
        assert_eq!(relocated(&|s| s.set32(0x6A0, 0x3000)), denied);
        assert_eq!(relocated(&|s| s.set32(0x6A0, 0xFFFF_F000)), denied);
        assert_eq!(relocated(&|s| s.set16(0x6A8, 0xA1F0)), denied);
        assert_eq!(relocated(&|s| s.set16(0x6A8, 0xA1E9)), denied);
        // over the end of a page
        assert_eq!(relocated(&|s| s.set16(0x6A8, 0xAFF9)), (Code::ImageRelocStraddle, HvStatus::ACCESS_DENIED));
        for kind in [1, 2, 3, 4, 5, 9, 15] {
            let expected = (Code::MemRelocation, HvStatus::FEATURE_UNAVAILABLE);
            assert_eq!(relocated(&|s| s.set16(0x6A8, kind << 12 | 0x10)), expected, "type {kind}");
        }
        assert_eq!(relocated(&|s| s.set32(0x6A4, 7)), (Code::ImageRelocations, HvStatus::ACCESS_DENIED));
        let mut stripped = Sample::new();
        stripped.set16(COFF + 18, 0x23);
        assert!(load_at(&stripped, PREFERRED, false).is_ok());
        let refusal = load_at(&stripped, PREFERRED + 0x1000, false).unwrap_err();
        assert_eq!((refusal.note.code, refusal.status), denied);
    }

    #[test]
    fn imports_are_bound_and_must_be_found() {
        let expected = load(&Sample::with_tables());
        assert_eq!((word(&expected, 0x2050), word(&expected, 0x2058), word(&expected, 0x2060)), (ALLOCATE, FIVE, 0));
        // those that are delay-loaded stay as they are
        let mut delayed = Sample::with_tables().delay_loading();
        delayed.directory(1, 0, 0);
        assert_eq!(word(&load(&delayed), 0x2050), 0x2080);
        let mut unknown = Sample::with_tables();
        unknown.bytes(0x682, b"ExAllocatePoke");
        let refused = load_at(&unknown, PREFERRED, false).unwrap_err();
        assert_eq!((refused.note.code, refused.note.subject.as_deref()), (Code::MemUnresolved, Some("NTOSKRNL.exe!ExAllocatePoke")));
        assert_eq!(
            refused.to_string(),
            "nothing that is loaded exports what the module imports: nothing that is loaded exports NTOSKRNL.exe!ExAllocatePoke"
        );
        // slots in the headers, over the end of the section, in code behind data
        for (slot, code) in [(0x10, Code::MemLayout), (0x21F9, Code::MemLayout), (0x1100, Code::ImageIatExecutable)] {
            let mut outside = Sample::with_tables();
            outside.set32(0x610, slot);
            assert_eq!(refusal(&outside), (code, HvStatus::ACCESS_DENIED), "{slot:#x}");
        }
    }

    #[test]
    fn the_loaders_words_are_known_or_only_data() {
        let rebased = || {
            let mut sample = Sample::with_load_config();
            for field in [0x45C, 0x474, 0x47C] {
                sample.set32(field, (PREFERRED >> 32) as u32);
            }
            sample
        };
        let expected = load_at(&rebased(), PREFERRED, true).unwrap();
        assert_eq!(expected.security_cookie, Some(Gva(PREFERRED + 0x2190)));
        assert_eq!((word(&expected, 0x2198), word(&expected, 0x21A0)), (CHECK, 0));
        // a kernel without the functions
        assert_eq!(word(&load(&rebased()), 0x2198), 0);
        // a cookie of its own stays
        let mut own = rebased();
        own.set32(0x790, 1);
        assert_eq!(load(&own).security_cookie, None);
        let mut constant = rebased();
        constant.section(1, b".rdata\0\0", [0x200, 0x2000, 0x200, 0x600], 0x4000_0040);
        assert_eq!(refusal(&constant), (Code::MemLayout, HvStatus::ACCESS_DENIED));
        let mut crooked = rebased();
        crooked.set32(0x458, 0x1_2194);
        crooked.bytes(0x794, &DEFAULT_COOKIE.to_le_bytes());
        assert_eq!(refusal(&crooked), (Code::MemLayout, HvStatus::ACCESS_DENIED));
        // in code, in the headers, below the image
        for pointer in [0x1_1100, 0x1_0010, 0x1000] {
            let mut code = rebased();
            code.bytes(0x500, &DEFAULT_COOKIE.to_le_bytes());
            code.set32(0x470, pointer);
            assert_eq!(load_at(&code, PREFERRED, true).unwrap_err().note.code, Code::MemLayout);
            code.set32(0x458, pointer);
            assert_eq!(refusal(&code).0, Code::MemLayout);
        }
    }

    #[test]
    fn layouts_that_are_not_loaded() {
        let changed = |change: &dyn Fn(&mut Sample)| {
            let mut sample = Sample::with_tables();
            change(&mut sample);
            refusal(&sample)
        };
        let text = |place, characteristics| move |s: &mut Sample| s.section(0, b".text\0\0\0", place, characteristics);
        let place = [0x1F0, 0x1000, 0x200, 0x400];
        let unsupported = (Code::ImageUnsupported, HvStatus::FEATURE_UNAVAILABLE);
        assert_eq!(changed(&|s| s.set16(COFF, 0xAA64)), unsupported);
        assert_eq!(changed(&|s| s.set16(OPTIONAL + 68, 3)), unsupported);
        let denied = |code| (code, HvStatus::ACCESS_DENIED);
        assert_eq!(changed(&text(place, 0xE000_0020)), denied(Code::ImageWx));
        assert_eq!(changed(&text([0x1F0, 0x1010, 0x200, 0x400], 0x6000_0020)), denied(Code::ImageSectionAlignment));
        assert_eq!(changed(&text([0x1F0, 0x2000, 0x200, 0x400], 0x6000_0020)), denied(Code::ImageSectionOverlap));
        assert_eq!(changed(&text([0x1F0, 0x1000, 0x300, 0x400], 0x6000_0020)), denied(Code::ImageSectionOverlap));
        assert_eq!(changed(&text([0x1F0, 0x1000, 0x200, 0x200], 0x6000_0020)), denied(Code::ImageHeadersCover));
        assert_eq!(changed(&text([0x1F0, 0x1000, 0x9000, 0x400], 0x6000_0020)), denied(Code::ImageSectionBounds));
        assert_eq!(changed(&text([0x1F0, 0, 0x200, 0x400], 0x6000_0020)), denied(Code::MemLayout));
        assert_eq!(changed(&text([0x1F0, 0x1000, 0x100, 0x480], 0x6000_0020)), denied(Code::MemLayout));
        assert_eq!(changed(&|s| s.directory(4, 0x700, 0x100)), denied(Code::SigTableOverlap));
        assert_eq!(changed(&text(place, 0x4000_0020)), denied(Code::MemLayout), "the entry point");
        assert_eq!(changed(&|s| s.set32(OPTIONAL + 16, 0x10)), denied(Code::MemLayout));
        assert_eq!(changed(&|s| s.set32(OPTIONAL + 56, 0x1000_1000)), (Code::MemLayout, HvStatus::INSUFFICIENT_MEMORY));
        for base in [0x1000, PREFERRED + 8, u64::MAX - 0x2FFF, u64::MAX - 0xFFF] {
            let refusal = load_at(&Sample::new(), base, false).unwrap_err();
            assert_eq!((refusal.note.code, refusal.status), (Code::MemLayout, HvStatus::INVALID_PARAMETER), "{base:#x}");
        }
        assert!(load_at(&Sample::new(), u64::MAX - 0x3FFF, false).is_ok());
        let mut entryless = Sample::new();
        entryless.set32(OPTIONAL + 16, 0);
        assert_eq!(load(&entryless).entry, None);
    }

    /// Whatever is loaded: whole pages in order, nothing shared, and an entry point in code.
    fn check(sample: &Sample) {
        let Ok(parsed) = Pe::parse(&sample.0) else { return };
        let Ok(expected) = pe(&parsed, Gva(PREFERRED), &Kernel { guard: true }) else { return };
        let mut end = 0;
        for segment in &expected.segments {
            assert!(segment.start.0 >= end && segment.start.0.is_multiple_of(PAGE as u64));
            end = segment.start.0 + segment.size();
        }
        let kind_at = |at: Gva| expected.segments.iter().find(|s| (s.start.0..s.start.0 + s.size()).contains(&at.0)).unwrap().kind;
        assert!(expected.entry.is_none_or(|entry| kind_at(entry) == Kind::Code));
        assert!(expected.security_cookie.is_none_or(|cookie| kind_at(cookie) == Kind::Data));
    }

    proptest! {
        #[test]
        fn never_panics_on_changed_words(changes in prop::collection::vec((0..0x200_usize, any::<u32>()), 1..4)) {
            let mut sample = Sample::with_load_config();
            for (at, value) in changes {
                sample.set32(at * 4, value);
            }
            check(&sample);
        }

        #[test]
        fn never_panics_on_changed_bytes(changes in prop::collection::vec((0x80..0x800_usize, any::<u8>()), 1..4)) {
            let mut sample = Sample::with_load_config();
            for (at, value) in changes {
                sample.0[at] = value;
            }
            check(&sample);
        }
    }
}
