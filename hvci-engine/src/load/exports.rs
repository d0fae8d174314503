//! What a module that is loaded exports, by addresses in its own segments (PE/COFF specification, "The .edata Section"; Linux
//! `include/linux/export.h`, `struct kernel_symbol`).
//!
//! - *Drivers*: the export table, by name and by ordinal. A forwarder is kept as it is written, and followed when it is asked for.
//! - *Linux modules*: `__ksymtab` and `__ksymtab_gpl` as they stand in memory, with names in `__ksymtab_strings`. An entry holds value, name
//!   and, since Linux 5.4, name space; each is 64 bits, or since 4.19 a distance of 32 bits from itself. Which of the four it is nothing says:
//!   it is the one by which every entry has a name.
//!
//! Licences, versions and name spaces are not compared: they are the guest kernel's, and say nothing of integrity. What is not in a segment that
//! stays, such as `DllInitialize` in discardable code, is not exported, and neither is what cannot be read: whoever imports it is refused. Only
//! per-CPU variables lie in no segment: theirs is an address near the start of a processor's area, as when their own module refers to them.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::borrow::Cow;

use super::{Segment, elf::PER_CPU_END};
use crate::{
    addr::Gva,
    bytes::{array, slice, widen},
    image::pe::{ExportTarget, Pe, Symbol},
};

/// The longest name of a Linux symbol (`KSYM_NAME_LEN`).
const MAX_NAME: usize = 512;
/// How many entries of a module's table, and how many bytes of names in all, are looked at. The largest of Debian's modules exports 700.
const MAX_EXPORTS: usize = 65_536;
const MAX_NAMES: usize = 4 << 20;
/// Bytes of a word of a `struct kernel_symbol`, and how many words it has.
const LAYOUTS: [(usize, usize); 4] = [(4, 3), (8, 3), (4, 2), (8, 2)];

/// The exports of a module.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports {
    /// one behind the other
    names: Vec<u8>,
    /// by name
    named: Vec<(Name, Target)>,
    /// by number
    ordinals: Vec<(u16, Target)>,
}

/// Where a text is in `names`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Name {
    start: usize,
    len: usize,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Target {
    At(Gva),
    Forward(Name),
}

/// What an export leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Found<'e> {
    At(Gva),
    /// `library.name` or `library.#ordinal`.
    Forward(&'e [u8]),
}

impl Exports {
    /// How many there are, each name and each ordinal number counted.
    pub const fn count(&self) -> usize {
        self.named.len().saturating_add(self.ordinals.len())
    }

    pub(super) fn find(&self, symbol: Symbol<'_>) -> Option<Found<'_>> {
        let target = match symbol {
            Symbol::Name(name) => {
                let at = self.named.partition_point(|(other, _)| self.text(*other) < name);
                self.named.get(at).filter(|(other, _)| self.text(*other) == name)?.1
            }
            Symbol::Ordinal(ordinal) => {
                let at = self.ordinals.binary_search_by_key(&ordinal, |(ordinal, _)| *ordinal).ok()?;
                self.ordinals.get(at)?.1
            }
        };
        Some(match target {
            Target::At(address) => Found::At(address),
            Target::Forward(text) => Found::Forward(self.text(text)),
        })
    }

    /// Of a driver at `base` with these segments.
    pub(super) fn of_driver(pe: &Pe<'_>, base: u64, segments: &[Segment<'_>]) -> Self {
        let mut exports = Self::default();
        let read = pe.exports();
        for (ordinal, target) in &read.ordinals {
            let target = exports.target(*target, base, segments);
            exports.ordinals.extend(target.map(|target| (*ordinal, target)));
        }
        for (name, target) in &read.names {
            if let Some(target) = exports.target(*target, base, segments) {
                exports.add(name, target);
            }
        }
        exports.sort();
        exports
    }

    /// Of a Linux module with these segments.
    pub(super) fn of_module(segments: &[Segment<'_>]) -> Self {
        let mut exports = Self::default();
        let Some((strings_at, strings)) = section(segments, "__ksymtab_strings") else { return exports };
        for (at, table) in ["__ksymtab", "__ksymtab_gpl"].into_iter().filter_map(|name| section(segments, name)) {
            let read = LAYOUTS.into_iter().find_map(|(width, words)| {
                let entries = table.chunks(width.checked_mul(words)?).zip((at..).step_by(width.checked_mul(words)?));
                let entry = |(entry, at)| {
                    let name = word(entry, at, width, 1)?.checked_sub(strings_at).and_then(|into| usize::try_from(into).ok())?;
                    Some((c_string(strings.get(name..)?)?, word(entry, at, width, 0)?))
                };
                entries.take(MAX_EXPORTS).map(entry).collect::<Option<Vec<_>>>()
            });
            for (name, address) in read.unwrap_or_default() {
                if is_kept(segments, address) || address < PER_CPU_END {
                    exports.add(name, Target::At(Gva(address)));
                }
            }
        }
        exports.sort();
        exports
    }

    /// Every address that is exported and lies in a segment.
    pub(super) fn addresses(&self) -> impl Iterator<Item = Gva> {
        let targets = self.named.iter().map(|(_, target)| target).chain(self.ordinals.iter().map(|(_, target)| target));
        targets.filter_map(|target| match target {
            Target::At(address) => Some(*address).filter(|address| address.0 >= PER_CPU_END),
            Target::Forward(_) => None,
        })
    }

    /// Each export: how it is named (0: a name, 1: a number), what it leads to (0: an address, 1: a forwarder), then both; a text has its
    /// length in front of it, in 16 bits.
    pub(super) fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = Vec::new();
        let put = |bytes: &mut Vec<u8>, text: &[u8]| {
            // none is longer than a page
            bytes.extend(u16::try_from(text.len()).unwrap_or(u16::MAX).to_le_bytes());
            bytes.extend(text);
        };
        let named = self.named.iter().map(|(name, target)| (Symbol::Name(self.text(*name)), target));
        let ordinals = self.ordinals.iter().map(|(ordinal, target)| (Symbol::Ordinal(*ordinal), target));
        for (symbol, target) in named.chain(ordinals) {
            bytes.extend([u8::from(matches!(symbol, Symbol::Ordinal(_))), u8::from(matches!(target, Target::Forward(_)))]);
            match symbol {
                Symbol::Name(name) => put(&mut bytes, name),
                Symbol::Ordinal(ordinal) => bytes.extend(ordinal.to_le_bytes()),
            }
            match target {
                Target::At(address) => bytes.extend(address.0.to_le_bytes()),
                Target::Forward(text) => put(&mut bytes, self.text(*text)),
            }
        }
        bytes
    }

    /// `None` for what is not so, or not in order.
    pub(super) fn from_bytes(bytes: &[u8]) -> Option<Self> {
        let mut exports = Self::default();
        let mut rest = bytes;
        while let Some((&[by, to], after)) = rest.split_first_chunk() {
            let (&word, after) = after.split_first_chunk()?;
            let number = u16::from_le_bytes(word);
            let (name, after) = after.split_at_checked(if by == 0 { usize::from(number) } else { 0 })?;
            let (target, after) = match to {
                0 => {
                    let (address, after) = after.split_first_chunk()?;
                    (Target::At(Gva(u64::from_le_bytes(*address))), after)
                }
                1 => {
                    let (len, after) = after.split_first_chunk()?;
                    let (text, after) = after.split_at_checked(usize::from(u16::from_le_bytes(*len)))?;
                    (Target::Forward(exports.push(text)?), after)
                }
                _ => return None,
            };
            match by {
                0 => {
                    let name = exports.push(name)?;
                    exports.named.push((name, target));
                }
                1 => exports.ordinals.push((number, target)),
                _ => return None,
            }
            rest = after;
        }
        let in_order =
            exports.named.is_sorted_by(|a, b| exports.text(a.0) < exports.text(b.0)) && exports.ordinals.is_sorted_by(|a, b| a.0 < b.0);
        (rest.is_empty() && in_order).then_some(exports)
    }

    fn target(&mut self, target: ExportTarget<'_>, base: u64, segments: &[Segment<'_>]) -> Option<Target> {
        match target {
            ExportTarget::Address(address) => {
                let address = base.checked_add(u64::from(address)).filter(|address| is_kept(segments, *address))?;
                Some(Target::At(Gva(address)))
            }
            ExportTarget::Forward(text) => self.push(text).map(Target::Forward),
        }
    }

    fn add(&mut self, name: &[u8], target: Target) {
        let name = self.push(name);
        self.named.extend(name.map(|name| (name, target)));
    }

    fn push(&mut self, text: &[u8]) -> Option<Name> {
        let start = self.names.len();
        if text.len() > MAX_NAMES.saturating_sub(start) {
            return None;
        }
        self.names.extend_from_slice(text);
        Some(Name { start, len: text.len() })
    }

    /// Of several of one name the first counts.
    fn sort(&mut self) {
        let (names, named) = (self.names.as_slice(), &mut self.named);
        named.sort_by_key(|(name, _)| text(names, *name));
        named.dedup_by_key(|(name, _)| text(names, *name));
    }

    fn text(&self, name: Name) -> &[u8] {
        text(&self.names, name)
    }
}

fn text(names: &[u8], name: Name) -> &[u8] {
    slice(names, name.start, name.len).unwrap_or_default()
}

/// A section's address and bytes: of several of that name the first, as in the kernel.
fn section<'s>(segments: &'s [Segment<'_>], name: &str) -> Option<(u64, Cow<'s, [u8]>)> {
    let (segment, part) = segments.iter().find_map(|s| Some((s, s.parts.iter().find(|part| part.section == name)?)))?;
    let start = usize::try_from(part.offset).ok()?;
    let bytes = segment.bytes.get(start..start.checked_add(usize::try_from(part.len).ok()?)?)?;
    Some((segment.start.0.checked_add(part.offset)?, bytes))
}

/// What word `number` of the entry at `at` says: an address, or how far behind the word it is.
fn word(entry: &[u8], at: u64, width: usize, number: usize) -> Option<u64> {
    let offset = width.checked_mul(number)?;
    if width == 8 {
        return array(entry, offset).map(u64::from_le_bytes);
    }
    let distance = i64::from(array(entry, offset).map(i32::from_le_bytes)?);
    Some(at.checked_add(widen(offset))?.wrapping_add_signed(distance))
}

/// The bytes before the first zero; `None` for no name.
fn c_string(bytes: &[u8]) -> Option<&[u8]> {
    let bytes = bytes.get(..MAX_NAME).unwrap_or(bytes);
    bytes.get(..bytes.iter().position(|b| *b == 0)?).filter(|name| !name.is_empty())
}

/// Whether the byte at `address` is in a section of the module as long as the module is loaded.
fn is_kept(segments: &[Segment<'_>], address: u64) -> bool {
    // both are in order
    let segment = segments.partition_point(|s| s.start.0 <= address).checked_sub(1).and_then(|at| segments.get(at));
    let Some(segment) = segment.filter(|s| !s.discardable) else { return false };
    let into = address.saturating_sub(segment.start.0);
    let part = segment.parts.partition_point(|part| part.offset <= into).checked_sub(1).and_then(|at| segment.parts.get(at));
    part.is_some_and(|part| into.saturating_sub(part.offset) < part.len)
}

#[cfg(test)]
mod tests {
    #![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;
    use crate::load::Pages;
    use crate::{
        frames::Kind,
        image::pe::sample::Sample,
        load::{Part, Symbols, pe},
    };

    const CODE: u64 = 0xFFFF_FFFF_C000_0000;
    const TABLES: u64 = CODE + 0x1000;
    const INIT: u64 = CODE + 0x2000;

    /// A module whose code has 0x100 bytes, with these tables of exports and names.
    fn module(tables: &[(&str, &[u8])]) -> Vec<Segment<'static>> {
        let mut rodata = Vec::new();
        let mut parts = Vec::new();
        for (name, table) in tables {
            rodata.resize(rodata.len().next_multiple_of(16), 0);
            parts.push(Part { section: (*name).into(), offset: rodata.len() as u64, len: table.len() as u64 });
            rodata.extend_from_slice(table);
        }
        rodata.resize(0x1000, 0);
        let segment = |start, kind, discardable, bytes, parts| {
            let bytes = Pages::computed(bytes);
            Segment { name: "".into(), start: Gva(start), kind, discardable, bytes, parts }
        };
        let code = || vec![Part { section: ".text".into(), offset: 0, len: 0x100 }];
        vec![
            segment(CODE, Kind::Code, false, vec![0; 0x1000], code()),
            segment(TABLES, Kind::RoData, false, rodata, parts),
            segment(INIT, Kind::Code, true, vec![0; 0x1000], code()),
        ]
    }

    /// A table at `at` of entries with these values and names, which are offsets in the strings at the start of the tables' page.
    fn table(at: u64, (width, words): (usize, usize), entries: &[(u64, u64)]) -> Vec<u8> {
        let mut table = Vec::new();
        for (value, name) in entries {
            // the name space is the empty text at offset 0
            for address in [*value, TABLES + name, TABLES].into_iter().take(words) {
                let from = at + table.len() as u64;
                let word = if width == 8 { address } else { address.wrapping_sub(from) };
                table.extend_from_slice(&word.to_le_bytes()[..width]);
            }
        }
        table
    }

    struct Kernel;

    impl Symbols for Kernel {
        fn resolve(&self, _: &[u8], _: Symbol<'_>) -> Option<Gva> {
            Some(Gva(CODE))
        }
    }

    fn at(exports: &Exports, name: &str) -> Option<u64> {
        match exports.find(Symbol::Name(name.as_bytes()))? {
            Found::At(address) => Some(address.0),
            Found::Forward(_) => None,
        }
    }

    #[test]
    fn tables_of_every_kernel_are_read() {
        let strings = b"\0one\0two\0";
        for layout in LAYOUTS {
            for count in 1..=6 {
                let entries: Vec<(u64, u64)> = [(CODE + 0xFF, 5), (CODE, 1)].into_iter().cycle().take(count).collect();
                let licensed = table(TABLES + 0x10, layout, &entries);
                let exports = Exports::of_module(&module(&[("__ksymtab_strings", strings), ("__ksymtab_gpl", &licensed)]));
                assert_eq!(at(&exports, "two"), Some(CODE + 0xFF), "{layout:?} {count}");
                assert_eq!(at(&exports, "one"), (count > 1).then_some(CODE), "{layout:?} {count}");
                assert_eq!(exports.count(), count.min(2));
            }
        }
        let (free, licensed) = (table(TABLES + 0x10, (4, 3), &[(CODE, 1)]), table(TABLES + 0x20, (4, 3), &[(CODE + 1, 5), (CODE + 2, 1)]));
        let exports = Exports::of_module(&module(&[("__ksymtab_strings", strings), ("__ksymtab", &free), ("__ksymtab_gpl", &licensed)]));
        assert_eq!((at(&exports, "one"), at(&exports, "two"), at(&exports, "on")), (Some(CODE), Some(CODE + 1), None));
        assert_eq!(exports.find(Symbol::Ordinal(0)), None);
    }

    #[test]
    fn what_does_not_stay_or_has_no_name_is_not_exported() {
        let of = |strings: &[u8], entries: &[(u64, u64)]| {
            Exports::of_module(&module(&[("__ksymtab_strings", strings), ("__ksymtab", &table(TABLES + 0x10, (4, 3), entries))])).count()
        };
        assert_eq!(of(b"\0one\0", &[(CODE, 1)]), 1);
        assert_eq!(of(b"\0one\0", &[(INIT, 1)]), 0, "goes with the initialisation");
        assert_eq!(of(b"\0one\0", &[(CODE + 0x100, 1)]), 0, "in no section");
        assert_eq!(of(b"\0one\0", &[(CODE - 1, 1)]), 0);
        // modules are within 2 GiB of the start of the address space, and so are the areas that per-CPU variables are counted from
        assert_eq!(of(b"\0one\0", &[(PER_CPU_END - 1, 1)]), 1);
        assert_eq!(of(b"\0one\0", &[(PER_CPU_END, 1)]), 0);
        assert_eq!(of(b"\0one\0", &[(CODE, 0)]), 0, "no name");
        assert_eq!(of(b"\0one\0", &[(CODE, 5)]), 0, "behind the names");
        assert_eq!(of(b"\0one", &[(CODE, 1)]), 0, "no end");
        assert_eq!(of(b"\0one\0", &[(CODE, 1), (CODE, 9)]), 0, "one of them without a name: no table");
        assert_eq!(Exports::of_module(&module(&[("__ksymtab", &table(TABLES, (4, 3), &[(CODE, 0)]))])), Exports::default());
    }

    #[test]
    fn a_driver_exports_by_name_and_number() {
        let base = 0xFFFF_F801_0000_0000;
        let of = |sample: &Sample| pe(&Pe::parse(&sample.0).unwrap(), Gva(base), &Kernel).unwrap().exports;
        let exports = of(&Sample::with_exports());
        for symbol in [Symbol::Name(b"Run"), Symbol::Ordinal(7)] {
            assert_eq!(exports.find(symbol), Some(Found::At(Gva(base + 0x1100))));
        }
        assert_eq!(exports.find(Symbol::Name(b"Table")), Some(Found::At(Gva(base + 0x2100))));
        assert_eq!(exports.find(Symbol::Ordinal(10)), Some(Found::Forward(b"OTHER.Start")));
        assert_eq!(exports.find(Symbol::Name(b"Number")), Some(Found::Forward(b"other.#3")));
        assert_eq!((exports.find(Symbol::Ordinal(8)), exports.find(Symbol::Name(b"run"))), (None, None));
        // behind the image, and within it behind the section
        for outside in [0x3000, 0x1200, u32::MAX] {
            let mut sample = Sample::with_exports();
            sample.set32(0x450, outside);
            assert_eq!((of(&sample).find(Symbol::Name(b"Run")), of(&sample).count()), (None, 6), "{outside:#x}");
        }
    }

    #[test]
    fn exports_are_saved_as_they_are() {
        let sample = Sample::with_exports();
        let driver = pe(&Pe::parse(&sample.0).unwrap(), Gva(0xFFFF_F801_0000_0000), &Kernel).unwrap().exports;
        let strings = b"\0one\0two\0";
        let table = table(TABLES + 0x10, (4, 3), &[(CODE, 1), (CODE + 8, 5)]);
        let linux = Exports::of_module(&module(&[("__ksymtab_strings", strings), ("__ksymtab", &table)]));
        for exports in [&*driver, &linux, &Exports::default()] {
            let bytes = exports.to_bytes();
            let read = Exports::from_bytes(&bytes).unwrap();
            assert_eq!((read.count(), read.to_bytes()), (exports.count(), bytes.clone()));
            for (name, _) in &exports.named {
                let name = Symbol::Name(exports.text(*name));
                assert_eq!(read.find(name), exports.find(name));
            }
            for len in 1..bytes.len() {
                let cut = Exports::from_bytes(&bytes[..len]);
                assert!(cut.is_none_or(|cut| cut.count() < exports.count() && bytes.starts_with(&cut.to_bytes())), "{len}");
            }
            assert_eq!(Exports::from_bytes(&[&bytes[..], &[2, 0, 0, 0]].concat()), None);
        }
        let twice = linux.to_bytes().repeat(2);
        assert_eq!(Exports::from_bytes(&twice), None, "not in order");
    }

    proptest! {
        #[test]
        fn whatever_stands_in_the_tables_exports_are_in_the_module(
            tables in prop::collection::vec((0..4_usize, prop::collection::vec(any::<u8>(), 0..80)), 3),
            changes in prop::collection::vec((0x10..0x60_usize, any::<u8>()), 0..4),
        ) {
            let names = ["__ksymtab_strings", "__ksymtab", "__ksymtab_gpl", ".rodata"];
            let strings: &[u8] = b"\0one\0two\0";
            let good = table(TABLES + 0x10, (4, 3), &[(CODE, 1), (CODE + 8, 5), (INIT, 1)]);
            let listed: Vec<(&str, &[u8])> = tables.iter().map(|(name, table)| (names[*name], table.as_slice())).collect();
            let mut changed = module(&[("__ksymtab_strings", strings), ("__ksymtab", &good)]);
            for (at, byte) in changes {
                changed[1].bytes.get_mut(at..at + 1).unwrap()[0] = byte;
            }
            for segments in [module(&listed), changed] {
                let exports = Exports::of_module(&segments);
                prop_assert!(exports.named.is_sorted_by(|a, b| exports.text(a.0) < exports.text(b.0)));
                for (name, target) in &exports.named {
                    let is_there = |at: u64| is_kept(&segments, at) || at < PER_CPU_END;
                    prop_assert!(matches!(target, Target::At(address) if is_there(address.0)) && !exports.text(*name).is_empty());
                }
            }
        }
    }
}
