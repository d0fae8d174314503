//! What real modules look like in memory, against the guest's own loader, which reads the file with another parser.
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
    image::{elf::Elf, pe::Pe},
    load::{self, Expected, Placement},
};
use loader_sim::guest_loader::{self, StubKernel};
use rand_chacha::ChaCha8Rng;
use rand_core::{RngCore, SeedableRng};
use rayon::prelude::*;

#[expect(dead_code, reason = "other tests use the rest of it")]
#[path = "../../corpus/tests/corpora/mod.rs"]
mod corpora;

use corpora::{files, folder};

const DRIVERS: u64 = 0xFFFF_F800_1234_0000;
const ELSEWHERE: u64 = 0xFFFF_F80A_BCDE_F000;
const MODULES: u64 = 0xFFFF_FFFF_C040_0000;

/// The x86-64 drivers of a corpus.
fn drivers() -> Option<Vec<(PathBuf, Vec<u8>)>> {
    let found = files(&folder("windows-drivers")?).into_iter().filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("sys")));
    let found = found.map(|path| (fs::read(&path).unwrap(), path)).map(|(bytes, path)| (path, bytes));
    Some(found.filter(|(_, bytes)| Pe::parse(bytes).is_ok_and(|pe| pe.headers().is_plus && pe.headers().machine == 0x8664)).collect())
}

fn load_driver(bytes: &[u8], base: u64) -> Result<Expected<'_>, load::Refusal> {
    load::pe(&Pe::parse(bytes).unwrap(), Gva(base), &StubKernel)
}

/// Every byte of the module by its address.
fn memory(expected: &Expected<'_>) -> BTreeMap<u64, Vec<u8>> {
    expected.segments.iter().map(|s| (s.start.0, s.bytes.iter().flatten().copied().collect())).collect()
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
        let image = guest_loader::place(bytes, Gva(DRIVERS)).unwrap().remove(&DRIVERS).unwrap();
        for (start, bytes) in memory(&expected) {
            let at = (start - DRIVERS) as usize;
            assert!(image[at..at + bytes.len()] == bytes, "{}: segment at {start:#x}", path.display());
        }
        // another base: the same but for the words that are relocated
        let other = load_driver(bytes, ELSEWHERE).unwrap();
        let relocations = Pe::parse(bytes).unwrap().relocation_blocks().flat_map(|block| block.unwrap().relocations());
        let words: BTreeSet<u64> = relocations.map(|r| DRIVERS + u64::from(r.address)).collect();
        for (here, there) in expected.segments.iter().zip(&other.segments) {
            for (at, (a, b)) in
                (here.start.0..).step_by(8).zip(memory(&expected)[&here.start.0].chunks(8).zip(memory(&other)[&there.start.0].chunks(8)))
            {
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
    let expected = match load::elf(&elf, &placement, &StubKernel) {
        Ok(expected) => expected,
        Err(refusal) => return Some(format!("{:?}", refusal.note)),
    };
    let memory = memory(&expected);
    let mut seen = 0;
    for (address, content) in guest_loader::place(&bytes, Gva(MODULES)).unwrap() {
        let (start, segment) = memory.range(..=address).next_back().unwrap();
        let at = (address - start) as usize;
        if segment[at..at + content.len()] != content {
            return Some(format!("the section at {address:#x} differs"));
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
                    end = segment.start.0 + segment.size();
                }
            }
            for at in changed {
                bytes[at] = original[at];
            }
        }
    });
}

fn load_any(bytes: &[u8]) -> Option<Expected<'_>> {
    if Pe::is_pe(bytes) {
        return load::pe(&Pe::parse(bytes).ok()?, Gva(DRIVERS), &StubKernel).ok();
    }
    let elf = Elf::parse(bytes).ok()?;
    load::elf(&elf, &Placement::contiguous(&elf, Gva(MODULES)).ok()?, &StubKernel).ok()
}
