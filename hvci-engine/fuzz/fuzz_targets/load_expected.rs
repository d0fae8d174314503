//! What a module looks like in memory. The first byte moves one section of an ELF object, the second says by how much.
#![no_main]

use hvci_engine::{
    addr::{Gva, PAGE_SIZE},
    frames::Kind,
    image::{
        elf::Elf,
        pe::{Pe, Symbol},
    },
    load::{self, Expected, MAX_IMAGE, Placement, Symbols},
};
use libfuzzer_sys::fuzz_target;

/// A kernel that exports everything with a name of an even length.
struct Kernel;

impl Symbols for Kernel {
    fn resolve(&self, _: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        match symbol {
            Symbol::Name(name) if name.len() % 2 == 1 => None,
            Symbol::Name(name) => Some(Gva(0xFFFF_FFFF_8100_0000 + name.len() as u64)),
            Symbol::Ordinal(ordinal) => Some(Gva(0xFFFF_FFFF_8200_0000 + u64::from(ordinal))),
        }
    }
}

fuzz_target!(|data: &[u8]| {
    let [which, by, file @ ..] = data else { return };
    let expected = if Pe::is_pe(file) {
        let Ok(pe) = Pe::parse(file) else { return };
        load::pe(&pe, Gva(0xFFFF_F800_0000_0000), &Kernel)
    } else {
        let Ok(elf) = Elf::parse(file) else { return };
        let Ok(mut placement) = Placement::contiguous(&elf, Gva(0xFFFF_FFFF_C000_0000)) else { return };
        if let Some(placed) = placement.sections.get_mut(usize::from(*which)) {
            placed.address.0 = placed.address.0.wrapping_add(u64::from(*by) << 8);
        }
        load::elf(&elf, &placement, &Kernel)
    };
    if let Ok(expected) = expected {
        check(&expected);
    }
});

fn check(expected: &Expected<'_>) {
    let mut end = 0;
    let mut total = 0;
    for segment in &expected.segments {
        assert!(segment.start.0 >= end && segment.start.0.is_multiple_of(PAGE_SIZE));
        assert!(segment.parts.iter().all(|p| p.offset + p.len <= segment.size()));
        end = segment.start.0 + segment.size();
        total += segment.size();
    }
    // the headers of a PE image are outside SizeOfImage only by their last page
    assert!(total <= MAX_IMAGE + PAGE_SIZE);
    // each ordinal number and each name once, of two tables
    assert!(expected.exports.count() <= 2 * 65_536);
    let kind = |at: Gva| {
        let holds = expected.segments.iter().find(|s| at >= s.start && at.0 - s.start.0 < s.size());
        holds.map(|s| s.kind)
    };
    assert!(expected.entry.is_none_or(|entry| kind(entry) == Some(Kind::Code)));
    assert!(expected.security_cookie.is_none_or(|cookie| kind(cookie) == Some(Kind::Data)));
    // its pages are the bytes that it answers for their range
    for segment in &expected.segments {
        for (at, page) in segment.pages() {
            let from = (at.0 - segment.start.0) as usize;
            assert_eq!(segment.bytes.get(from..from + page.len()).as_deref(), Some(&page[..]));
        }
    }
}
