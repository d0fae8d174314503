#![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
#![expect(clippy::cast_possible_truncation, reason = "tests")]

use proptest::prelude::*;

use super::{super::pages::PAGE, *};
use crate::{
    bytes::{le32, le64},
    status::HvStatus,
};

const BASE: u64 = 0xFFFF_FFFF_C040_0000;
const PRINTK: u64 = 0xFFFF_FFFF_8112_3450;

const PROGBITS: u32 = 1;
const SYMTAB: u32 = 2;
const STRTAB: u32 = 3;
const W: u64 = 1;
const A: u64 = 2;
const X: u64 = 4;

/// Numbers of the symbols.
const INIT: usize = 1;
const TEXT: usize = 2;
const DATA: usize = 3;
const KERNEL: usize = 4;
const ABSENT: usize = 5;
const NUMBER: usize = 6;
const NOTES: usize = 7;
const COUNTER: usize = 8;

#[derive(Clone)]
struct Piece {
    name: &'static str,
    kind: u32,
    flags: u64,
    size: u64,
    link: u32,
    info: u32,
    align: u64,
    content: Vec<u8>,
}

/// A module as an assembler writes it: sections 1 to 10, their relocations, symbols, names.
#[derive(Clone)]
struct Object {
    parts: Vec<Piece>,
    symbols: Vec<(&'static str, u8, u16, u64)>,
}

const SECTION_TEXT: usize = 1;
const SECTION_DATA: usize = 2;
const SECTION_BSS: usize = 3;
const SECTION_RODATA: usize = 4;
const SECTION_INIT: usize = 5;
const SECTION_MODINFO: usize = 6;
const SECTION_PER_CPU: usize = 7;
const SECTION_RO: usize = 8;
const SECTION_EMPTY: usize = 9;
/// Of `.text`.
const SECTION_RELA: usize = 10;
const SECTION_SYMTAB: u32 = 11;

impl Object {
    fn new() -> Self {
        let part = |name, kind, flags, content: Vec<u8>| Piece {
            name,
            kind,
            flags,
            size: content.len() as u64,
            link: 0,
            info: 0,
            align: 16,
            content,
        };
        let mut parts = vec![
            part("", 0, 0, vec![]),
            part(".text", PROGBITS, A | X, vec![0; 0x40]),
            part(".data", PROGBITS, A | W, vec![0xDA; 0x20]),
            part(".bss", SHT_NOBITS, A | W, vec![]),
            part(".rodata", PROGBITS, A, b"constant".to_vec()),
            part(".init.text", PROGBITS, A | X, vec![0xC3; 4]),
            part(".modinfo", PROGBITS, A, b"license=GPL\0".to_vec()),
            part(".data..percpu", PROGBITS, A | W, vec![0; 8]),
            part(".data..ro_after_init", PROGBITS, A | W, vec![1; 8]),
            part(".empty", PROGBITS, A | W, vec![]),
            part(".rela.text", SHT_RELA, 0x40, vec![]),
            part(".symtab", SYMTAB, 0, vec![]),
            part(".strtab", STRTAB, 0, vec![]),
            part(".shstrtab", STRTAB, 0, vec![]),
        ];
        parts[SECTION_BSS].size = 0x1800;
        (parts[SECTION_RELA].link, parts[SECTION_RELA].info) = (SECTION_SYMTAB, SECTION_TEXT as u32);
        parts[11].link = 12;
        let symbols = vec![
            ("", 0, 0, 0),
            ("init_module", 0x12, SECTION_INIT as u16, 1),
            ("", 3, SECTION_TEXT as u16, 0),
            ("", 3, SECTION_DATA as u16, 0),
            ("_printk", 0x10, 0, 0),
            ("absent", 0x20, 0, 0),
            ("number", 0x10, SHN_ABS, 0x1234_5678),
            ("", 3, SECTION_MODINFO as u16, 0),
            ("counter", 1, SECTION_PER_CPU as u16, 0),
        ];
        Self { parts, symbols }
    }

    /// With a relocation of `.text`.
    fn relocated(mut self, offset: u64, kind: u32, symbol: usize, addend: i64) -> Self {
        let table = &mut self.parts[SECTION_RELA];
        for word in [offset, (symbol as u64) << 32 | u64::from(kind), addend.cast_unsigned()] {
            table.content.extend(word.to_le_bytes());
        }
        table.size = table.content.len() as u64;
        self
    }

    fn bytes(&self) -> Vec<u8> {
        let mut parts = self.parts.clone();
        let mut names = vec![0];
        for (name, info, section, value) in &self.symbols {
            let table = &mut parts[SECTION_SYMTAB as usize].content;
            table.extend((if name.is_empty() { 0 } else { names.len() as u32 }).to_le_bytes());
            table.extend([*info, 0]);
            table.extend(section.to_le_bytes());
            table.extend(value.to_le_bytes());
            table.extend([0; 8]);
            if !name.is_empty() {
                names.extend(name.bytes());
                names.push(0);
            }
        }
        parts[12].content = names;
        let mut names = vec![];
        let at: Vec<u32> = parts
            .iter()
            .map(|part| {
                let at = names.len() as u32;
                names.extend(part.name.bytes());
                names.push(0);
                at
            })
            .collect();
        parts[13].content = names;
        for part in &mut parts[11..] {
            part.size = part.content.len() as u64;
        }
        let contents: usize = parts.iter().map(|p| p.content.len()).sum();
        let mut file = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0\x01\0\x3e\0\x01\0\0\0".to_vec();
        file.extend([0; 16]);
        file.extend((64 + contents as u64).to_le_bytes());
        file.extend([0, 0, 0, 0, 64, 0, 0, 0, 0, 0, 64, 0, parts.len() as u8, 0, 13, 0]);
        let mut table = Vec::new();
        for (part, name) in parts.iter().zip(at) {
            table.extend(name.to_le_bytes());
            table.extend(part.kind.to_le_bytes());
            for word in [part.flags, 0, file.len() as u64, part.size] {
                table.extend(word.to_le_bytes());
            }
            table.extend(part.link.to_le_bytes());
            table.extend(part.info.to_le_bytes());
            for word in [part.align, 0] {
                table.extend(word.to_le_bytes());
            }
            file.extend(&part.content);
        }
        // the empty section
        table[..64].fill(0);
        file.extend(table);
        file
    }

    fn load_with(&self, change: impl Fn(&mut Placement)) -> Result<Expected<'static>, Refusal> {
        let file = self.bytes();
        let parsed = Elf::parse(&file).unwrap();
        let mut placement = Placement::contiguous(&parsed, Gva(BASE))?;
        change(&mut placement);
        elf(&parsed, &placement, &Kernel)
    }

    fn load(&self) -> Result<Expected<'static>, Refusal> {
        self.load_with(|_| ())
    }

    fn text(&self) -> Vec<u8> {
        self.load().unwrap().segments[0].bytes.to_vec()
    }

    fn refusal(&self) -> (Code, HvStatus) {
        let refusal = self.load().unwrap_err();
        (refusal.note.code, refusal.status)
    }
}

struct Kernel;

impl Symbols for Kernel {
    fn resolve(&self, library: &[u8], symbol: pe::Symbol<'_>) -> Option<Gva> {
        assert_eq!(library, b"");
        (symbol == pe::Symbol::Name(b"_printk")).then_some(Gva(PRINTK))
    }
}

fn placed(placement: &mut Placement, section: usize) -> &mut Gva {
    &mut placement.sections.iter_mut().find(|p| p.section == section).unwrap().address
}

#[test]
fn classes_lie_in_pages_of_their_own() {
    let expected = Object::new().load().unwrap();
    let segments: Vec<_> =
        expected.segments.iter().map(|s| (s.name.as_str(), s.start.0 - BASE, s.bytes.count(), s.kind, s.discardable)).collect();
    assert_eq!(
        segments,
        [
            ("text", 0, 1, Kind::Code, false),
            ("rodata", 0x1000, 1, Kind::RoData, false),
            ("ro_after_init", 0x2000, 1, Kind::RoAfterInit, false),
            ("data", 0x3000, 2, Kind::Data, false),
            ("init text", 0x5000, 1, Kind::Code, true),
        ]
    );
    assert_eq!((expected.entry, expected.security_cookie), (Some(Gva(BASE + 0x5001)), None));
    let data = &expected.segments[3];
    let parts: Vec<_> = data.parts.iter().map(|p| (p.section.as_str(), p.offset, p.len)).collect();
    assert_eq!(parts, [(".data", 0, 0x20), (".bss", 0x20, 0x1800)]);
    assert_eq!((&data.bytes.to_vec()[..0x20], data.bytes.to_vec()[0x20..].iter().all(|b| *b == 0)), (&[0xDA; 0x20][..], true));
    assert_eq!(&expected.segments[1].bytes.to_vec()[..9], b"constant\0");
    assert!(expected.segments.iter().all(|s| !s.bytes.to_vec().windows(7).any(|w| w == b"license")), ".modinfo is not loaded");
}

#[test]
fn relocations_are_those_of_the_abi() {
    let word = |kind, symbol, addend| {
        let text = Object::new().relocated(8, kind, symbol, addend).text();
        assert!(text[..8].iter().chain(&text[16..]).all(|b| *b == 0));
        le64(&text, 8).unwrap()
    };
    // S + A
    assert_eq!(word(1, KERNEL, 5), PRINTK + 5);
    assert_eq!(word(1, DATA, -8), BASE + 0x2FF8);
    assert_eq!(word(10, NUMBER, 8), 0x1234_5680);
    assert_eq!(word(11, DATA, 4), 0xC040_3004);
    assert_eq!(word(11, COUNTER, 4), 4);
    assert_eq!(word(1, ABSENT, 0), 0);
    // S + A - P
    assert_eq!(word(2, DATA, -4), 0x2FF4);
    assert_eq!(word(4, KERNEL, -4), u64::from((PRINTK as u32).wrapping_sub(4).wrapping_sub(BASE as u32 + 8)));
    assert_eq!(word(24, TEXT, 0), u64::MAX - 7);
    // nothing
    assert_eq!(word(0, 99, 7), 0);
    // several, and up to the end of the section
    let text = Object::new().relocated(0x3C, 2, TEXT, 0).relocated(0, 11, TEXT, 0).text();
    assert_eq!((le32(&text, 0), le32(&text, 0x3C)), (Some(BASE as u32), Some(0xFFFF_FFC4)));
}

#[test]
fn relocations_that_are_not_applied() {
    let refused = |offset, kind, symbol, addend| Object::new().relocated(offset, kind, symbol, addend).refusal();
    let denied = (Code::MemRelocation, HvStatus::ACCESS_DENIED);
    // they do not fit
    assert_eq!(refused(0, 10, DATA, 0), denied);
    assert_eq!(refused(0, 11, NUMBER, 0x7000_0000), denied);
    assert_eq!(refused(0, 2, NUMBER, 0x4000_0000), denied);
    // outside the section, over something
    assert_eq!(refused(0x3D, 2, TEXT, 0), denied);
    assert_eq!(refused(0x39, 1, TEXT, 0), denied);
    assert_eq!(refused(u64::MAX, 2, TEXT, 0), denied);
    assert_eq!(Object::new().relocated(4, 1, TEXT, 0).relocated(0xB, 2, TEXT, 0).refusal(), denied);
    let mut filled = Object::new();
    filled.parts[SECTION_TEXT].content[3] = 1;
    assert_eq!(filled.relocated(0, 2, TEXT, 0).refusal(), denied);
    // of no symbol, of one that is not loaded
    assert_eq!(refused(0, 2, 9, 0), denied);
    assert_eq!(refused(0, 2, 0, 0), denied);
    assert_eq!(refused(0, 2, NOTES, 0), denied);
    let unsupported = (Code::MemRelocation, HvStatus::FEATURE_UNAVAILABLE);
    for kind in [3, 5, 8, 9, 12, 14, 25, 42, u32::MAX] {
        assert_eq!(refused(0, kind, TEXT, 0), unsupported, "type {kind}");
    }
    let changed = |change: &dyn Fn(&mut Piece)| {
        let mut object = Object::new().relocated(0, 2, TEXT, 0);
        change(&mut object.parts[SECTION_RELA]);
        object.refusal()
    };
    assert_eq!(changed(&|table| table.kind = SHT_REL), unsupported);
    assert_eq!(changed(&|table| table.link = 12), denied);
    assert_eq!(changed(&|table| table.flags |= LIVEPATCH), (Code::ImageUnsupported, HvStatus::FEATURE_UNAVAILABLE));
    assert_eq!(changed(&|table| table.info = SECTION_BSS as u32), denied);
    // of what is not loaded
    for section in [SECTION_MODINFO, SECTION_PER_CPU, 12, 99] {
        let mut object = Object::new().relocated(0, 99, 99, 0);
        object.parts[SECTION_RELA].info = section as u32;
        assert!(object.load().is_ok(), "section {section}");
    }
}

#[test]
fn symbols_are_found_or_weak() {
    let changed = |which: usize, symbol: (&'static str, u8, u16, u64)| {
        let mut object = Object::new();
        object.symbols[which] = symbol;
        object
    };
    let refusal = changed(KERNEL, ("_printl", 0x10, 0, 0)).load().unwrap_err();
    assert_eq!((refusal.note.code, refusal.note.subject.as_deref()), (Code::MemUnresolved, Some("_printl")));
    assert_eq!(changed(ABSENT, ("absent", 0x10, 0, 0)).refusal(), (Code::MemUnresolved, HvStatus::ACCESS_DENIED));
    // common, of livepatch, in an extended table
    for section in [0xFFF2, 0xFF20, 0xFFFF] {
        let expected = (Code::ImageUnsupported, HvStatus::FEATURE_UNAVAILABLE);
        assert_eq!(changed(NUMBER, ("common", 0x11, section, 8)).refusal(), expected);
    }
    // at the end of its section, and behind it
    assert!(changed(DATA, ("", 0, SECTION_DATA as u16, 0x20)).relocated(0, 2, DATA, 0).load().is_ok());
    let denied = (Code::MemRelocation, HvStatus::ACCESS_DENIED);
    assert_eq!(changed(DATA, ("", 0, SECTION_DATA as u16, 0x21)).relocated(0, 2, DATA, 0).refusal(), denied);
    assert_eq!(changed(DATA, ("", 0, 99, 0)).relocated(0, 2, DATA, 0).refusal(), denied);
    // the entry point
    for symbol in [("init_module", 0x12, SECTION_DATA as u16, 0), ("init_module", 0x12, SECTION_INIT as u16, 4)] {
        assert_eq!(changed(INIT, symbol).refusal(), (Code::MemLayout, HvStatus::ACCESS_DENIED));
    }
    assert_eq!(changed(INIT, ("init_modul", 0x12, SECTION_INIT as u16, 0)).load().unwrap().entry, None);
}

#[test]
fn the_guests_word_is_checked() {
    let refused = |change: &dyn Fn(&mut Placement)| {
        let refusal = Object::new().load_with(change).unwrap_err();
        assert_eq!((refusal.note.code, refusal.status), (Code::MemLayout, HvStatus::INVALID_PARAMETER), "{refusal}");
        refusal.note.detail
    };
    let moved = |section, address| refused(&|p| *placed(p, section) = Gva(address));
    let missing = |section| refused(&|p| p.sections.retain(|s| s.section != section));
    assert!(missing(SECTION_TEXT).contains(".text is not placed"));
    assert!(missing(SECTION_BSS).contains(".bss is at nowhere"));
    assert!(missing(SECTION_PER_CPU).contains(".data..percpu is not placed"));
    assert!(refused(&|p| p.sections.push(p.sections[0])).contains("too"));
    assert!(refused(&|p| p.sections.push(Placed { section: 99, address: Gva(BASE) })).contains("none"));
    assert!(refused(&|p| p.sections.push(Placed { section: SECTION_MODINFO, address: Gva(BASE) })).contains("not loaded"));
    assert!(refused(&|p| p.sections.push(Placed { section: 12, address: Gva(BASE) })).contains("not loaded"));
    for address in [BASE + 8, BASE + 0x10, 0x10_0000, 0, u64::MAX - 0xFFF, u64::MAX - 0xF] {
        assert!(moved(SECTION_TEXT, address).contains("cannot begin"), "{address:#x}");
    }
    // over other classes, from below and from above
    for address in [BASE + 0x1000, BASE + 0x3000, BASE + 0x4000, BASE + 0x5000] {
        assert!(moved(SECTION_TEXT, address).contains("shares pages"), "{address:#x}");
    }
    // apart from its class
    assert!(moved(SECTION_BSS, BASE + 0x3030).contains("belongs at"));
    assert!(moved(SECTION_BSS, BASE + 0x10_0000).contains("belongs at"));
    assert!(moved(SECTION_DATA, BASE + 0x10_0000).contains("belongs at"));
    for address in [BASE, 8, 1 << 20, (1 << 20) + 16] {
        assert!(moved(SECTION_PER_CPU, address).contains("cannot begin"), "{address:#x}");
    }
    for address in [0x10, (1 << 20) - 0x10] {
        assert!(Object::new().load_with(|p| *placed(p, SECTION_PER_CPU) = Gva(address)).is_ok(), "{address:#x}");
    }
    // without bytes, behind .bss of its class
    assert!(moved(SECTION_EMPTY, BASE + 0x4830).contains("belongs at GVA 0xffffffffc0404820"));
    assert!(Object::new().load_with(|p| p.sections.retain(|s| s.section != SECTION_EMPTY)).is_ok());
    assert!(Object::new().load_with(|p| p.sections.reverse()).is_ok());
}

#[test]
fn classes_may_lie_anywhere() {
    let apart = Object::new()
        .relocated(4, 2, DATA, 0)
        .load_with(|p| {
            *placed(p, SECTION_TEXT) = Gva(BASE + 0x10_0000);
            for section in [SECTION_DATA, SECTION_BSS, SECTION_EMPTY] {
                placed(p, section).0 += 0x20_0000;
            }
        })
        .unwrap();
    let segments: Vec<_> = apart.segments.iter().map(|s| (s.name.as_str(), s.start.0 - BASE, s.bytes.count())).collect();
    let expected =
        [("rodata", 0x1000, 1), ("ro_after_init", 0x2000, 1), ("init text", 0x5000, 1), ("text", 0x10_0000, 1), ("data", 0x20_3000, 2)];
    assert_eq!(segments, expected);
    let text = &apart.segments[3].bytes.to_vec();
    assert_eq!(le32(text, 4), Some(0x20_3000 - 0x10_0004));
    assert!(text[..4].iter().chain(&text[8..]).all(|b| *b == 0));
}

#[test]
fn layouts_that_are_not_loaded() {
    let changed = |change: &dyn Fn(&mut Object)| {
        let mut object = Object::new();
        change(&mut object);
        object.refusal()
    };
    assert_eq!(changed(&|o| o.parts[SECTION_TEXT].flags |= W), (Code::ImageWx, HvStatus::ACCESS_DENIED));
    assert_eq!(changed(&|o| o.parts[SECTION_TEXT].size = 0x100_0000).0, Code::ImageSectionBounds);
    assert_eq!(changed(&|o| o.parts[SECTION_TEXT].size += 1).0, Code::ImageSectionOverlap);
    assert_eq!(changed(&|o| o.parts[SECTION_DATA].flags |= 0x400), (Code::ImageUnsupported, HvStatus::FEATURE_UNAVAILABLE));
    assert_eq!(changed(&|o| o.parts[SECTION_SYMTAB as usize].kind = PROGBITS), (Code::MemLayout, HvStatus::ACCESS_DENIED));
    assert_eq!(changed(&|o| o.parts[SECTION_RO].kind = SYMTAB), (Code::MemLayout, HvStatus::ACCESS_DENIED));
    // whatever is executable is code, by whatever name
    let mut odd = Object::new();
    odd.parts[SECTION_RODATA].flags |= X;
    let kinds: Vec<_> = odd.load().unwrap().segments.iter().map(|s| (s.kind, s.parts.len())).collect();
    assert_eq!(kinds, [(Kind::Code, 2), (Kind::RoAfterInit, 1), (Kind::Data, 2), (Kind::Code, 1)]);
    let mut large = Object::new();
    large.parts[SECTION_BSS].size = MAX_IMAGE;
    let file = large.bytes();
    let refusal = Placement::contiguous(&Elf::parse(&file).unwrap(), Gva(BASE)).unwrap_err();
    assert_eq!(refusal.status, HvStatus::INSUFFICIENT_MEMORY);
    // each class is small enough, all of them are not
    large.parts[SECTION_BSS].size = MAX_IMAGE - 0x2000;
    let file = large.bytes();
    let placement = Placement {
        sections: (1..=8)
            .filter(|n| *n != SECTION_MODINFO)
            .map(|section| Placed {
                section,
                address: Gva(if section == SECTION_PER_CPU { 0 } else { 0xFFFF_A000_0000_0000 + ((section as u64) << 30) }),
            })
            .collect(),
    };
    let refusal = elf(&Elf::parse(&file).unwrap(), &placement, &Kernel).unwrap_err();
    assert_eq!((refusal.note.code, refusal.status), (Code::MemLayout, HvStatus::INSUFFICIENT_MEMORY));
    let mut other = Object::new().bytes();
    other[18] = 183;
    let refusal = elf(&Elf::parse(&other).unwrap(), &Placement::default(), &Kernel).unwrap_err();
    assert_eq!((refusal.note.code, refusal.status), (Code::ImageUnsupported, HvStatus::FEATURE_UNAVAILABLE));
}

#[test]
fn a_class_without_bytes_is_at_an_edge() {
    let mut object = Object::new();
    object.parts[SECTION_EMPTY].flags = A | X;
    object.parts[SECTION_TEXT].flags = A;
    object.symbols[TEXT].2 = SECTION_EMPTY as u16;
    object.parts[SECTION_RELA].info = SECTION_TEXT as u32;
    let object = object.relocated(8, 1, TEXT, 0);
    let load = |address| object.load_with(|p| *placed(p, SECTION_EMPTY) = Gva(address));
    for address in [0, BASE, BASE + 0x1000, BASE + 0x2000, BASE + 0x5000] {
        assert_eq!(le64(&load(address).unwrap().segments[0].bytes.to_vec(), 8), Some(address));
    }
    for address in [8, 0x1000, BASE - 0x1000, BASE + 0x10, BASE + 0x3000, BASE + 0x6000] {
        assert_eq!(load(address).unwrap_err().status, HvStatus::INVALID_PARAMETER, "{address:#x}");
    }
    let refusal = object.load_with(|p| p.sections.retain(|s| s.section != SECTION_EMPTY)).unwrap_err();
    assert_eq!(refusal.note.code, Code::MemRelocation);
}

/// Whatever is loaded: whole pages in order, nothing shared.
fn check(file: &[u8], moves: &[(usize, u64)]) {
    let Ok(parsed) = Elf::parse(file) else { return };
    let Ok(mut placement) = Placement::contiguous(&parsed, Gva(BASE)) else { return };
    for (which, by) in moves {
        if let Some(placed) = placement.sections.get_mut(*which) {
            placed.address.0 = placed.address.0.wrapping_add(*by);
        }
    }
    let Ok(expected) = elf(&parsed, &placement, &Kernel) else { return };
    let mut end = 0;
    for segment in &expected.segments {
        assert!(segment.start.0 >= end && segment.start.0.is_multiple_of(PAGE as u64));
        end = segment.start.0 + segment.size();
    }
}

fn relocated() -> Vec<u8> {
    Object::new().relocated(0, 2, DATA, 0).relocated(8, 1, KERNEL, 0).relocated(0x10, 11, COUNTER, 0).bytes()
}

proptest! {
    #[test]
    fn never_panics_on_changed_bytes(changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6)) {
        let mut file = relocated();
        for (at, value) in changes {
            let at = at.index(file.len());
            file[at] = value;
        }
        check(&file, &[]);
    }

    #[test]
    fn never_panics_on_changed_tables(changes in prop::collection::vec((0..14_usize, 0..8_usize, any::<u64>()), 1..4)) {
        let mut file = relocated();
        let table = file.len() - 14 * 64;
        for (section, field, value) in changes {
            let at = table + section * 64 + field * 8;
            file[at..at + 8].copy_from_slice(&value.to_le_bytes());
        }
        check(&file, &[]);
    }

    #[test]
    fn never_panics_on_any_placement(moves in prop::collection::vec((0..10_usize, prop_oneof![any::<u64>(), 0..0x8000_u64]), 1..6)) {
        check(&relocated(), &moves);
    }

    #[test]
    fn never_panics_on_a_prefix(len in any::<prop::sample::Index>()) {
        let file = relocated();
        check(&file[..len.index(file.len())], &[]);
    }
}
