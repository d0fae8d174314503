#![expect(clippy::unwrap_used, clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests")]

use proptest::prelude::*;

use super::*;

const PROGBITS: u32 = 1;
const NOBITS: u32 = 8;
const W: u64 = 1;
const A: u64 = 2;
const X: u64 = 4;

/// A section of a test file: name, type, flags, content.
type Section<'a> = (&'a str, u32, u64, &'a [u8]);

/// An ELF64 relocatable object: header, contents, names, section headers. Section 1 of the file is the first of `sections`.
fn object(big_endian: bool, sections: &[Section<'_>]) -> Vec<u8> {
    let n = |value: u64, len: usize| {
        let bytes = value.to_be_bytes()[8 - len..].to_vec();
        if big_endian { bytes } else { bytes.into_iter().rev().collect() }
    };
    let mut names = vec![0];
    let mut contents = Vec::new();
    let mut table = vec![0; SHDR_LEN];
    let mut add = |name: usize, kind: u32, flags: u64, offset: usize, size: usize| {
        for (value, len) in [(name as u64, 4), (kind.into(), 4), (flags, 8), (0, 8), (offset as u64, 8), (size as u64, 8)] {
            table.extend(n(value, len));
        }
        for (value, len) in [(0, 4), (0, 4), (16, 8), (0, 8)] {
            table.extend(n(value, len));
        }
    };
    for (name, kind, flags, content) in sections {
        add(names.len(), *kind, *flags, EHDR_LEN + contents.len(), content.len());
        names.extend_from_slice(name.as_bytes());
        names.push(0);
        contents.extend_from_slice(if *kind == NOBITS { &[] } else { content });
    }
    let at = names.len();
    names.extend_from_slice(b".shstrtab\0");
    add(at, 3, 0, EHDR_LEN + contents.len(), names.len());
    contents.extend(names);
    let mut file = b"\x7fELF\x02".to_vec();
    file.extend([if big_endian { 2 } else { 1 }, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
    let shoff = (EHDR_LEN + contents.len()) as u64;
    let count = sections.len() as u64 + 2;
    for (value, len) in [(1, 2), (if big_endian { 22 } else { 62 }, 2), (1, 4), (0, 8), (0, 8), (shoff, 8), (0, 4)] {
        file.extend(n(value, len));
    }
    for value in [64, 0, 0, 64, count, count - 1] {
        file.extend(n(value, 2));
    }
    file.extend(contents);
    file.extend(table);
    file
}

fn module() -> Vec<u8> {
    object(
        false,
        &[
            (".text", PROGBITS, A | X, &[0x90; 20]),
            (".init.text", PROGBITS, A | X, &[0xC3; 4]),
            (".bss", NOBITS, A | W, &[0; 100]),
            (".modinfo", PROGBITS, A, b"license=GPL\0name=tiny\0version=1.2\0vermagic=6.1.0 SMP \0"),
            (".comment", PROGBITS, 0, b"GCC"),
        ],
    )
}

fn set(file: &mut [u8], offset: usize, bytes: &[u8]) {
    file[offset..offset + bytes.len()].copy_from_slice(bytes);
}

/// Offset of the header of section `index` in a little-endian `file`.
fn header_of(file: &[u8], index: usize) -> usize {
    usize::try_from(crate::bytes::le64(file, 40).unwrap()).unwrap() + index * SHDR_LEN
}

fn code(file: &[u8]) -> Code {
    Elf::parse(file).unwrap_err().code
}

#[test]
fn facts_of_a_module() {
    let file = module();
    let elf = Elf::parse(&file).unwrap();
    assert_eq!(elf.kind(), FileKind::ElfModule);
    assert_eq!((elf.notes(), elf.lint()), (vec![], vec![]));
    let facts = elf.facts();
    assert_eq!((facts.format.as_str(), facts.machine.as_str(), facts.subsystem.as_str()), ("ELF64", "x86-64", "REL"));
    assert_eq!((facts.file_version.as_deref(), facts.vermagic.as_deref()), (Some("1.2"), Some("6.1.0 SMP ")));
    assert_eq!(facts.section_alignment, 16);
    // each at its alignment of 16: 20, 32 + 4, 48 + 100, 160 + 54
    assert_eq!(facts.image_size, 160 + 54);
    let sections: Vec<_> = facts.sections.iter().map(|s| (s.name.as_str(), s.permissions.as_str(), s.file)).collect();
    assert_eq!(
        sections,
        [
            (".text", "r-x--", Some(Span::new(64, 20))),
            (".init.text", "r-x-d", Some(Span::new(84, 4))),
            (".bss", "rw---", None),
            (".modinfo", "r----", Some(Span::new(88, 54))),
            (".comment", "-----", Some(Span::new(142, 3))),
            (".shstrtab", "-----", Some(Span::new(145, 51))),
        ]
    );
    let modinfo = elf.modinfo().unwrap();
    assert_eq!((modinfo.name().as_deref(), modinfo.license().as_deref()), (Some("tiny"), Some("GPL")));
    assert_eq!(elf.section(".comment"), Some(&b"GCC"[..]));
    assert_eq!(elf.section(".bss"), None);
}

#[test]
fn big_endian_reads_the_same() {
    let file = object(true, &[(".modinfo", PROGBITS, A, b"license=GPL\0"), (".data", PROGBITS, A | W | X, b"1234")]);
    let elf = Elf::parse(&file).unwrap();
    assert_eq!(elf.kind(), FileKind::ElfModule);
    assert_eq!(elf.facts().machine, "S390");
    assert_eq!(elf.facts().sections[1].permissions.as_str(), "rwx--");
    assert_eq!(elf.notes(), []);
    assert_eq!(elf.lint()[0].code, Code::ImageWx);
}

#[test]
fn a_module_has_modinfo_or_a_trailer() {
    let plain = object(false, &[(".text", PROGBITS, A | X, &[0x90])]);
    assert_eq!(Elf::parse(&plain).unwrap().kind(), FileKind::ElfOther);
    let signed = [&plain, &b"sig"[..], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3], MODULE_SIG_STRING].concat();
    let elf = Elf::parse(&signed).unwrap();
    assert_eq!((elf.kind(), elf.notes()), (FileKind::ElfModule, vec![]));
    let mut executable = module();
    set(&mut executable, 16, &[2]);
    let elf = Elf::parse(&executable).unwrap();
    assert_eq!((elf.kind(), elf.facts().subsystem.as_str()), (FileKind::ElfOther, "EXEC"));
}

#[test]
fn refusals() {
    assert_eq!(code(b""), Code::InputNotImage);
    assert_eq!(code(b"MZ"), Code::InputNotImage);
    assert_eq!(code(b"\x7fELF"), Code::ImageTruncated);
    assert_eq!(code(b"\x7fELF\x01\x01\x01"), Code::ImageUnsupported);
    let changed = |offset: usize, bytes: &[u8]| {
        let mut file = module();
        set(&mut file, offset, bytes);
        code(&file)
    };
    assert_eq!(changed(4, &[3]), Code::ImageHeader);
    assert_eq!(changed(5, &[0]), Code::ImageHeader);
    assert_eq!(changed(6, &[2]), Code::ImageHeader);
    assert_eq!(changed(58, &40_u16.to_le_bytes()), Code::ImageHeader);
    assert_eq!(changed(60, &0xFFFF_u16.to_le_bytes()), Code::ImageTruncated);
    assert_eq!(changed(40, &u64::MAX.to_le_bytes()), Code::ImageTruncated);
    assert_eq!(changed(40, &1000_u64.to_le_bytes()), Code::ImageTruncated);
}

#[test]
fn the_section_table_may_not_reach_into_the_signature() {
    let file = module();
    let table = header_of(&file, 0);
    let sig_len = u32::try_from(file.len() - table - 1).unwrap().to_be_bytes();
    let signed = [&file, &[0, 0, 2, 0, 0, 0, 0, 0][..], &sig_len, MODULE_SIG_STRING].concat();
    let error = Elf::parse(&signed).unwrap_err();
    assert_eq!(error.code, Code::ImageTruncated);
    assert_eq!(error.span, Some(Span::new(table, 7 * SHDR_LEN)));
    assert_eq!(Note::from(error.clone()).code, error.code);
}

#[test]
fn a_section_may_not_reach_into_the_signature() {
    let mut file = module();
    let (text, len) = (header_of(&file, 1), file.len());
    set(&mut file, text + 24, &(len as u64 - 4).to_le_bytes());
    let signed = [&file, &[0; 100][..], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 100], MODULE_SIG_STRING].concat();
    let notes = Elf::parse(&signed).unwrap().notes();
    assert_eq!(notes[0].code, Code::ImageSectionBounds);
    assert_eq!((notes[0].subject.as_deref(), notes[0].span), (Some(".text"), Some(Span::new(len - 4, 20))));
}

#[test]
fn extended_section_numbers() {
    let mut file = module();
    set(&mut file, 60, &[0, 0, 0xFF, 0xFF]);
    let null = header_of(&file, 0);
    set(&mut file, null + 32, &7_u64.to_le_bytes());
    set(&mut file, null + 40, &6_u32.to_le_bytes());
    let elf = Elf::parse(&file).unwrap();
    assert_eq!((elf.facts().sections.len(), elf.kind(), elf.notes()), (6, FileKind::ElfModule, vec![]));
    for count in [8, 70_000, u64::MAX] {
        set(&mut file, null + 32, &count.to_le_bytes());
        assert!(matches!(code(&file), Code::ImageTruncated | Code::ImageHeader), "{count}");
    }
}

#[test]
fn no_table_of_names() {
    for index in [0_u16, 1, 3, 99] {
        let mut file = module();
        set(&mut file, 62, &index.to_le_bytes());
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.notes()[0].code, Code::ImageHeader, "{index}");
        assert_eq!((elf.kind(), elf.modinfo()), (FileKind::ElfOther, None));
    }
}

#[test]
fn sections_that_overlap() {
    let mut file = module();
    let init = header_of(&file, 2);
    set(&mut file, init + 24, &70_u64.to_le_bytes());
    let notes = Elf::parse(&file).unwrap().notes();
    assert_eq!(notes.len(), 1);
    assert_eq!((notes[0].code, notes[0].subject.as_deref()), (Code::ImageSectionOverlap, Some(".init.text")));
    assert_eq!(notes[0].detail, "with \".text\"");
}

#[test]
fn lint_is_short_however_many_sections() {
    let sections: Vec<Section<'_>> = (0..500).map(|_| (".wx", PROGBITS, W | X, &b""[..])).collect();
    let file = object(false, &sections);
    let lint = Elf::parse(&file).unwrap().lint();
    assert_eq!((lint.len(), lint[0].code, lint[0].subject.as_deref()), (16, Code::ImageWx, Some(".wx")));
    assert!(lint[15].detail.ends_with("; and 484 more sections"), "{}", lint[15].detail);
}

#[test]
fn long_and_odd_names_are_cut_and_escaped() {
    let long = "a".repeat(10_000);
    let file = object(false, &[(&long, PROGBITS, A, b"x"), ("\u{7}\n", PROGBITS, A, b"y")]);
    let facts = Elf::parse(&file).unwrap().facts();
    assert_eq!(facts.sections[0].name, "a".repeat(64));
    assert_eq!(facts.sections[1].name, "\\x07\\n");
}

/// Looking for the end of each name would read 60 GB here.
#[test]
fn one_long_name_for_every_section() {
    let long = "a".repeat(1 << 20);
    let sections: Vec<Section<'_>> =
        (0..60_000).map(|_| ("", PROGBITS, 0, &b""[..])).chain([(&*long, PROGBITS, W | X, &b""[..])]).collect();
    let mut file = object(false, &sections);
    for index in 1..=60_000 {
        let header = header_of(&file, index);
        set(&mut file, header, &60_001_u32.to_le_bytes());
    }
    let elf = Elf::parse(&file).unwrap();
    assert_eq!((elf.section(".text"), elf.facts().sections[7].name.len(), elf.lint().len()), (None, 64, 1));
}

#[test]
fn the_readers_are_compared_field_by_field() {
    let file = module();
    let differs = |change: &dyn Fn(&mut Tables)| {
        let mut tables = Tables::read(&file).unwrap();
        change(&mut tables);
        second::difference(&file, &tables)
    };
    assert_eq!(differs(&|_| {}), None);
    assert_eq!(differs(&|t| t.header.e_entry = 16).as_deref(), Some("e_entry: goblin 0x10, object 0x0"));
    assert_eq!(differs(&|t| t.sections.truncate(6)).as_deref(), Some("number of sections: goblin 6, object 7"));
    assert!(differs(&|t| t.sections[2].sh_size += 1).unwrap().starts_with("section 2: "));
    assert!(differs(&|t| t.sections[6].sh_addralign = 3).unwrap().starts_with("section 6: "));
    assert_eq!(differs(&|t| t.names_index = 1).as_deref(), Some("section name table: goblin 1, object 6"));
    assert!(second::difference(&file[..80], &Tables::read(&file).unwrap()).unwrap().contains("object does not"));
}

#[test]
fn real_modules() {
    let Some(corpus) = std::env::var_os("HVCI_CORPUS") else {
        println!("skipped: HVCI_CORPUS is no directory of modules");
        return;
    };
    let mut seen = 0;
    for entry in std::fs::read_dir(corpus).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|e| e != "ko") {
            continue;
        }
        let data = std::fs::read(&path).unwrap();
        let elf = Elf::parse(&data).unwrap();
        assert_eq!((elf.kind(), elf.notes(), elf.lint()), (FileKind::ElfModule, vec![], vec![]), "{}", path.display());
        assert!(elf.facts().vermagic.is_some());
        seen += 1;
    }
    println!("{seen} modules");
}

/// Everything there is to call.
fn exercise(data: &[u8]) {
    if let Ok(elf) = Elf::parse(data) {
        let facts = elf.facts();
        assert!(facts.sections.len() <= data.len() / SHDR_LEN);
        assert!(elf.notes().len() <= 1 + 1 + 16 + 16 && elf.lint().len() <= 16);
        let _ = (elf.kind(), elf.section(".text"), elf.modinfo().map(|m| m.entries().count()));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn never_panics_on_a_prefix_or_mutation(
        cut in 0_usize..1000,
        changes in proptest::collection::vec((0_usize..800, prop_oneof![any::<u8>(), Just(0xFF), Just(0), Just(0x80)]), 0..12),
        signed in any::<bool>(),
    ) {
        let mut file = module();
        if signed {
            file.extend([&[0; 20][..], &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 20], MODULE_SIG_STRING].concat());
        }
        for (at, byte) in changes {
            if let Some(b) = file.get_mut(at) {
                *b = byte;
            }
        }
        exercise(&file[..cut.min(file.len())]);
        exercise(&file);
    }
}

#[test]
fn sections_symbols_and_relocations_of_an_object() {
    let entry = |words: [u64; 3]| words.map(u64::to_le_bytes).concat();
    let symbols = [entry([0; 3]), entry([0x0001_0012_0000_0001, 8, 0]), entry([0x20 << 32 | 5, 9, 0])].concat();
    let rela = [entry([4, 1 << 32 | 2, u64::MAX]), vec![0; 23]].concat();
    let sections: [Section<'_>; 5] = [
        (".init.text", PROGBITS, A | X, &[0; 16]),
        (".bss", NOBITS, A | W, &[0; 8]),
        (".rela.init.text", 4, 0, &rela),
        (".symtab", 2, 0, &symbols),
        (".strtab", 3, 0, b"\0run\0weak\0"),
    ];
    let mut file = object(false, &sections);
    let link = header_of(&file, 4) + 40;
    set(&mut file, link, &[5]);
    let elf = Elf::parse(&file).unwrap();
    assert!(elf.is_x86_64_object());
    let all: Vec<_> = elf.sections().collect();
    let flags = |n: usize| (all[n].is_allocated(), all[n].is_writable(), all[n].is_executable(), all[n].is_init());
    assert_eq!((flags(1), flags(2), flags(3)), ((true, false, true, true), (true, true, false, false), (false, false, false, false)));
    assert!(all[1].is_called(".init.text") && !all[1].is_called(".init") && all[2].bytes.is_none());
    assert_eq!((all[2].size, all[2].index, all[2].alignment, all[4].link), (8, 2, 16, 5));
    // what is left over is none
    assert_eq!(all[3].relocations().collect::<Vec<_>>(), [Relocation { offset: 4, kind: 2, symbol: 1, addend: -1 }]);
    assert_eq!(all[4].relocations().count(), 0);
    let table = elf.symbol_table().unwrap();
    let read: Vec<_> = table.iter().map(|s| (s.name(), s.section, s.value, s.is_global(), s.is_weak())).collect();
    let expected = [(Some(&b""[..]), 0, 0, false, false), (Some(&b"run"[..]), 1, 8, true, false), (Some(&b"weak"[..]), 0, 9, false, true)];
    assert_eq!((table.section, read), (4, expected.to_vec()));

    // no table of names, two tables, another byte order
    let none = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut file = file.clone();
        change(&mut file);
        Elf::parse(&file).is_ok_and(|elf| elf.symbol_table().is_none())
    };
    assert!(none(&|file| set(file, link, &[1])));
    assert!(none(&|file| set(file, link, &[99])));
    let kind = header_of(&file, 3) + 4;
    assert!(none(&|file| set(file, kind, &[2])));
    let big = object(true, &[(".symtab", 2, 0, &symbols), (".strtab", 3, 0, b"\0")]);
    let elf = Elf::parse(&big).unwrap();
    assert!(elf.symbol_table().is_none() && !elf.is_x86_64_object());
}

proptest! {
    /// The oracle of the section table that is read at once.
    #[test]
    fn any_section_table_is_read_as_field_by_field(noise in proptest::collection::vec(any::<u8>(), SHDR_LEN * 3), big_endian: bool) {
        let mut file = object(big_endian, &[(".text", PROGBITS, A | X, b"x")]);
        let table = file.len() - noise.len();
        file.splice(table.., noise);
        let header: Header = elf64::header::Header::parse(&file).unwrap().into();
        let ctx = Ctx { container: Container::Big, le: if big_endian { Endian::Big } else { Endian::Little } };
        let by_field = goblin::elf::SectionHeader::parse(&file, table, 3, ctx).unwrap();
        prop_assert_eq!(read_sections(&file, &header).unwrap(), by_field.into_iter().map(SectionHeader::from).collect::<Vec<_>>());
    }
}
