//! What real modules look like in memory, against an independent loader: `object`'s reading of the file, and the shortest way to place it.
//!
//! `HVCI_CORPORA` names the folder with the corpora; each test says that it skips where its corpus is missing.

#![expect(clippy::cast_possible_truncation, reason = "tests of 64-bit images on 64-bit machines")]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

use hvci_engine::{
    addr::{Gva, PAGE_SIZE},
    finding::Code,
    frames::Kind,
    image::{
        elf::Elf,
        pe::{Pe, Symbol},
    },
    load::{self, Expected, Placement, Symbols},
};
use object::{
    Object, ObjectSection, ObjectSymbol, RelocationFlags, RelocationKind, RelocationTarget,
    read::{elf::ElfFile64, pe::PeFile64},
};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

#[expect(dead_code, reason = "other tests use the rest of it")]
mod corpora;

use corpora::{files, folder};

const DRIVERS: u64 = 0xFFFF_F800_1234_0000;
const ELSEWHERE: u64 = 0xFFFF_F80A_BCDE_F000;
const MODULES: u64 = 0xFFFF_FFFF_C040_0000;

/// A kernel that exports everything at an address of its own, but for the functions of control flow guard, which it does not have on.
struct Stubs;

impl Symbols for Stubs {
    fn resolve(&self, library: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        if [load::GUARD_CHECK, load::GUARD_DISPATCH].contains(&symbol) {
            return None;
        }
        let name = match symbol {
            Symbol::Name(name) => name.to_vec(),
            Symbol::Ordinal(ordinal) => ordinal.to_le_bytes().to_vec(),
        };
        Some(Gva(stub(library, &name)))
    }
}

/// FNV-1a, in the 16 MiB behind the start of a kernel.
fn stub(library: &[u8], name: &[u8]) -> u64 {
    let hash = library.iter().chain(name).fold(0xCBF2_9CE4_8422_2325_u64, |hash, b| (hash ^ u64::from(*b)).wrapping_mul(0x100_0000_01B3));
    0xFFFF_FFFF_8100_0000 + (hash % 0x10_0000) * 16
}

/// The x86-64 drivers of a corpus.
fn drivers() -> Option<Vec<(PathBuf, Vec<u8>)>> {
    let found = files(&folder("windows-drivers")?).into_iter().filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("sys")));
    let found = found.map(|path| (fs::read(&path).unwrap(), path)).map(|(bytes, path)| (path, bytes));
    Some(found.filter(|(_, bytes)| Pe::parse(bytes).is_ok_and(|pe| pe.headers().is_plus && pe.headers().machine == 0x8664)).collect())
}

fn load_driver(bytes: &[u8], base: u64) -> Result<Expected, load::Refusal> {
    load::pe(&Pe::parse(bytes).unwrap(), Gva(base), &Stubs)
}

/// Every byte of the module by its address.
fn memory(expected: &Expected) -> BTreeMap<u64, &[u8]> {
    expected.segments.iter().map(|s| (s.start.0, s.bytes.as_slice())).collect()
}

fn name_of(path: &Path) -> String {
    path.file_name().unwrap().to_string_lossy().into_owned()
}

#[test]
fn drivers_are_what_a_naive_loader_makes_of_them() {
    let Some(drivers) = drivers() else { return };
    let mut loaded = 0;
    for (path, bytes) in &drivers {
        let expected = match load_driver(bytes, DRIVERS) {
            Ok(expected) => expected,
            Err(refusal) => {
                // built with sections that are writable and executable
                assert_eq!(refusal.note.code, Code::ImageWx, "{}: {refusal}", path.display());
                continue;
            }
        };
        loaded += 1;
        let file = PeFile64::parse(bytes.as_slice()).unwrap();
        let headers = file.nt_headers().optional_header;
        let preferred = headers.image_base.get(object::LittleEndian);
        let mut image = vec![0; headers.size_of_image.get(object::LittleEndian) as usize];
        let len = headers.size_of_headers.get(object::LittleEndian) as usize;
        image[..len].copy_from_slice(&bytes[..len]);
        for section in file.sections() {
            let at = (section.address() - preferred) as usize;
            let data = section.data().unwrap();
            image[at..at + data.len()].copy_from_slice(data);
        }
        let mut blocks = file.data_directories().relocation_blocks(file.data(), &file.section_table()).unwrap().unwrap();
        let mut words = BTreeSet::new();
        while let Some(block) = blocks.next().unwrap() {
            for relocation in block.filter(|r| r.typ == 10) {
                let word = &mut image[relocation.virtual_address as usize..][..8];
                let value = u64::from_le_bytes(word.try_into().unwrap()).wrapping_sub(preferred).wrapping_add(DRIVERS);
                word.copy_from_slice(&value.to_le_bytes());
                words.insert(DRIVERS + u64::from(relocation.virtual_address));
            }
        }
        for import in Pe::parse(bytes).unwrap().imports().imports {
            let Symbol::Name(name) = import.symbol else { panic!("{}: an ordinal", path.display()) };
            image[import.slot as usize..][..8].copy_from_slice(&stub(import.library, name).to_le_bytes());
        }
        for (start, bytes) in memory(&expected) {
            let at = (start - DRIVERS) as usize;
            assert!(image[at..at + bytes.len()] == *bytes, "{}: segment at {start:#x}", path.display());
        }
        // another base: the same but for the words that are relocated
        let other = load_driver(bytes, ELSEWHERE).unwrap();
        for (here, there) in expected.segments.iter().zip(&other.segments) {
            for (at, (a, b)) in (here.start.0..).step_by(8).zip(here.bytes.chunks(8).zip(there.bytes.chunks(8))) {
                let inside = |byte: u64| (byte.saturating_sub(7)..=byte).any(|start| words.contains(&start));
                let differs = a.iter().zip(b).zip(at..).find(|((a, b), at)| a != b && !inside(*at));
                assert!(differs.is_none(), "{}: {differs:x?}", path.display());
            }
        }
        let in_code =
            |gva: Gva| expected.segments.iter().any(|s| s.kind == Kind::Code && s.pages().any(|(page, _)| gva.0 & !0xFFF == page.0));
        assert!(in_code(expected.entry.unwrap()));
    }
    assert!(loaded >= 2 && loaded < drivers.len(), "{loaded} of {}", drivers.len());
    eprintln!("{loaded} drivers loaded of {}", drivers.len());
}

#[test]
fn modules_are_what_a_naive_loader_makes_of_them() {
    let Some(folder) = folder("debian-kernel") else { return };
    let paths: Vec<PathBuf> = files(&folder).into_iter().filter(|p| p.extension().is_some_and(|e| e == "ko")).collect();
    let wrong: Vec<String> =
        paths.par_iter().filter_map(|path| module_fault(path).map(|fault| format!("{}: {fault}", name_of(path)))).collect();
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), paths.len(), wrong[..wrong.len().min(20)].join("\n"));
    assert!(paths.len() > 1_000, "only {} modules", paths.len());
    eprintln!("{} modules loaded", paths.len());
}

fn module_fault(path: &Path) -> Option<String> {
    let bytes = fs::read(path).unwrap();
    let elf = Elf::parse(&bytes).unwrap();
    let placement = Placement::contiguous(&elf, Gva(MODULES)).unwrap();
    let expected = match load::elf(&elf, &placement, &Stubs) {
        Ok(expected) => expected,
        Err(refusal) => return Some(format!("{:?}", refusal.note)),
    };
    let places: BTreeMap<usize, u64> = placement.sections.iter().map(|p| (p.section, p.address.0)).collect();
    let file = ElfFile64::<object::Endianness>::parse(bytes.as_slice()).unwrap();
    let memory = memory(&expected);
    let mut seen = 0;
    for section in file.sections() {
        let (Some(address), true) = (places.get(&section.index().0), section.size() > 0) else { continue };
        if section.name() == Ok(".data..percpu") {
            continue;
        }
        let mut content = section.data().unwrap().to_vec();
        content.resize(section.size() as usize, 0);
        for (offset, relocation) in section.relocations() {
            let RelocationTarget::Symbol(index) = relocation.target() else { return Some("a relocation without symbol".to_owned()) };
            let symbol = file.symbol_by_index(index).unwrap();
            let value = match symbol.section_index() {
                Some(section) => places[&section.0] + symbol.address(),
                None if symbol.is_undefined() => stub(b"", symbol.name_bytes().unwrap()),
                None => symbol.address(),
            };
            let sum = value.wrapping_add_signed(relocation.addend());
            let relative = sum.wrapping_sub(address + offset);
            let (sum, width) = match (relocation.kind(), relocation.flags()) {
                (RelocationKind::Absolute, _) => (sum, usize::from(relocation.size() / 8)),
                (RelocationKind::Relative | RelocationKind::PltRelative, _) => (relative, usize::from(relocation.size() / 8)),
                // `object` has no name for what R_X86_64_PC64 is
                (_, RelocationFlags::Elf { r_type: 24 }) => (relative, 8),
                (_, RelocationFlags::Elf { r_type: 0 }) => continue,
                (_, other) => return Some(format!("{other:?}")),
            };
            content[offset as usize..][..width].copy_from_slice(&sum.to_le_bytes()[..width]);
        }
        let (start, segment) = memory.range(..=address).next_back().unwrap();
        let at = (address - start) as usize;
        if segment[at..at + content.len()] != content {
            return Some(format!("{} differs", section.name().unwrap()));
        }
        seen += content.len();
    }
    // the rest is zero: a byte counted twice would be missing there
    let set = memory.values().flat_map(|s| s.iter()).filter(|b| **b != 0).count();
    (set > seen).then(|| format!("{set} bytes are set, sections have {seen}"))
}

/// Nothing panics on files with changed bytes, and what is loaded consists of pages that do not overlap.
#[test]
fn changed_files_are_refused_or_loaded_in_pages() {
    let (drivers, modules) = (drivers().unwrap_or_default(), folder("debian-kernel").map(|f| files(&f)).unwrap_or_default());
    let small = |p: &PathBuf| p.extension().is_some_and(|e| e == "ko") && fs::metadata(p).is_ok_and(|m| m.len() < 100_000);
    let modules = modules.into_iter().filter(small).step_by(60).map(|path| (fs::read(&path).unwrap(), path)).map(|(b, p)| (p, b));
    let all: Vec<(PathBuf, Vec<u8>)> = drivers.into_iter().chain(modules).collect();
    all.par_iter().enumerate().for_each(|(number, (path, original))| {
        let mut random = ChaCha8Rng::seed_from_u64(number as u64);
        let mut bytes = original.clone();
        for _ in 0..200 {
            let mut changed = Vec::new();
            for _ in 0..=random.next_u32() % 4 {
                // headers of PE images are at the start, tables of ELF objects at the end
                let at = match random.next_u32() % 4 {
                    0 => random.next_u32() as usize % bytes.len(),
                    _ if original.starts_with(b"MZ") => random.next_u32() as usize % 0x400,
                    _ => bytes.len() - 1 - random.next_u32() as usize % (bytes.len() / 4),
                };
                bytes[at] = random.next_u32() as u8;
                changed.push(at);
            }
            if let Some(expected) = load_any(&bytes) {
                let mut end = 0;
                for segment in &expected.segments {
                    assert!(segment.start.0 >= end && segment.start.0.is_multiple_of(PAGE_SIZE), "{}: {changed:x?}", path.display());
                    end = segment.start.0 + segment.page_count() * PAGE_SIZE;
                }
            }
            for at in changed {
                bytes[at] = original[at];
            }
        }
    });
}

fn load_any(bytes: &[u8]) -> Option<Expected> {
    if Pe::is_pe(bytes) {
        return load::pe(&Pe::parse(bytes).ok()?, Gva(DRIVERS), &Stubs).ok();
    }
    let elf = Elf::parse(bytes).ok()?;
    load::elf(&elf, &Placement::contiguous(&elf, Gva(MODULES)).ok()?, &Stubs).ok()
}
