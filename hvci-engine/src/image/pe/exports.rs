//! The export table (PE/COFF specification, "The .edata Section"): what other images may import.
//!
//! Trusts nothing: an entry whose name or forwarder lies outside the file is left out, and what is handed out as an address may be any number.

use super::{
    EXPORT_DIRECTORY, Pe,
    directories::{MAX_NAME, MAX_SECTION_STEPS, c_string},
};
use crate::{
    budget::Budget,
    bytes::{index, le32, slice},
};

/// How many exports, and how many names of them, are looked at: ordinals have 16 bits.
const MAX_EXPORTS: usize = 65_536;
/// How many bytes of names are looked at in all; the largest kernel image seen has 100 KiB.
const MAX_NAMES: usize = 4 << 20;

/// What an image exports, as far as it could be read.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Exports<'a> {
    /// By ordinal number, ascending. Those that are not used are missing.
    pub ordinals: Vec<(u16, ExportTarget<'a>)>,
    /// By name, in table order.
    pub names: Vec<(&'a [u8], ExportTarget<'a>)>,
}

/// What an export leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExportTarget<'a> {
    /// An address relative to the image base.
    Address(u32),
    /// An export of another image: `library.name` or `library.#ordinal`.
    Forward(&'a [u8]),
}

impl<'a> Pe<'a> {
    /// Reads the export table.
    pub fn exports(&self) -> Exports<'a> {
        let directory = self.headers.directory(EXPORT_DIRECTORY);
        if directory.is_empty() {
            return Exports::default();
        }
        Reader::new(self).and_then(|reader| reader.read()).unwrap_or_default()
    }
}

struct Reader<'p, 'a> {
    pe: &'p Pe<'a>,
    /// each text has its section searched
    texts: Budget,
    /// bytes of texts that are left
    bytes: usize,
}

impl<'p, 'a> Reader<'p, 'a> {
    fn new(pe: &'p Pe<'a>) -> Option<Self> {
        let sections = u32::try_from(pe.sections.len()).ok()?.max(1);
        Some(Self { pe, texts: Budget::new(MAX_SECTION_STEPS.checked_div(sections)?), bytes: MAX_NAMES })
    }

    fn read(mut self) -> Option<Exports<'a>> {
        let directory = self.pe.headers.directory(EXPORT_DIRECTORY);
        let table = self.pe.at_address(directory.address)?;
        let [base, functions, names, addresses_at, names_at, ordinals_at] = [16, 20, 24, 28, 32, 36].map(|at| le32(table, at));
        let base = base?;
        let addresses = self.words(addresses_at?, functions?, 4)?;
        let is_forwarder = |address: u32| address.checked_sub(directory.address).is_some_and(|into| into < directory.size);
        let mut exports = Exports::default();
        for (number, address) in (0_u32..).zip(addresses.as_chunks::<4>().0) {
            let address = u32::from_le_bytes(*address);
            // behind the largest ordinal there is none that can be asked for
            let Some(ordinal) = base.checked_add(number).and_then(|ordinal| u16::try_from(ordinal).ok()) else { break };
            let target = match address {
                0 => None,
                address if is_forwarder(address) => match self.text(address) {
                    Some(text) => text.map(ExportTarget::Forward),
                    None => break,
                },
                address => Some(ExportTarget::Address(address)),
            };
            exports.ordinals.extend(target.map(|target| (ordinal, target)));
        }
        let (Some(pointers), Some(numbers)) = (self.words(names_at?, names?, 4), self.words(ordinals_at?, names?, 2)) else {
            return Some(exports);
        };
        for (pointer, number) in pointers.as_chunks::<4>().0.iter().zip(numbers.as_chunks::<2>().0) {
            let number = u32::from(u16::from_le_bytes(*number));
            let ordinal = base.checked_add(number).and_then(|ordinal| u16::try_from(ordinal).ok());
            let found = ordinal.and_then(|ordinal| exports.ordinals.binary_search_by_key(&ordinal, |(ordinal, _)| *ordinal).ok());
            let Some((_, target)) = found.and_then(|at| exports.ordinals.get(at)).copied() else { continue };
            // what is behind the limits is not exported
            let Some(name) = self.text(u32::from_le_bytes(*pointer)) else { break };
            exports.names.extend(name.map(|name| (name, target)));
        }
        Some(exports)
    }

    /// A table of `count` entries of `width` bytes, or as many as there may be.
    fn words(&self, address: u32, count: u32, width: usize) -> Option<&'a [u8]> {
        if count == 0 {
            return Some(&[]);
        }
        slice(self.pe.at_address(address)?, 0, index(count).min(MAX_EXPORTS).checked_mul(width)?)
    }

    /// `None` if the limits are reached, `Some(None)` for a text that is not in the file.
    fn text(&mut self, address: u32) -> Option<Option<&'a [u8]>> {
        self.texts.spend().ok()?;
        let text = self.pe.at_address(address).and_then(|data| c_string(data, MAX_NAME));
        self.bytes = self.bytes.checked_sub(text.map_or(MAX_NAME, <[u8]>::len))?;
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::{super::sample::Sample, ExportTarget::*, *};

    fn exports(sample: &Sample) -> Exports<'_> {
        Pe::parse(&sample.0).unwrap().exports()
    }

    #[test]
    fn by_ordinal_and_by_name() {
        let sample = Sample::with_exports();
        let (start, third) = (Forward(b"OTHER.Start"), Forward(b"other.#3"));
        let ordinals = vec![(7, Address(0x1100)), (9, Address(0x2100)), (10, start), (11, third)];
        let names: Vec<(&[u8], _)> = vec![(b"Run", Address(0x1100)), (b"Table", Address(0x2100)), (b"Alias", start), (b"Number", third)];
        assert_eq!(exports(&sample), Exports { ordinals, names });
        assert_eq!(Pe::parse(&Sample::with_tables().0).unwrap().exports(), Exports::default());
    }

    #[test]
    fn what_is_not_there_is_not_exported() {
        let changed = |at, value| {
            let mut sample = Sample::with_exports();
            sample.set32(at, value);
            let exports = exports(&sample);
            (exports.ordinals.len(), exports.names.len())
        };
        assert_eq!(changed(0x434, 0), (0, 0), "no addresses");
        assert_eq!(changed(0x434, u32::MAX), (0, 0), "more addresses than the file has");
        assert_eq!(changed(0x438, u32::MAX), (4, 0), "more names than the file has");
        assert_eq!(changed(0x43C, 0x9000), (0, 0), "addresses outside");
        assert_eq!(changed(0x440, 0x9000), (4, 0), "names outside");
        assert_eq!(changed(0x444, 0x9000), (4, 0), "ordinals outside");
        assert_eq!(changed(0x470, 0x9000), (4, 3), "one name outside");
        assert_eq!(changed(0x480, 0x0002_0001), (4, 3), "a name of no address");
        assert_eq!(changed(0x480, 0x0002_0005), (4, 3), "a name behind the addresses");
        assert_eq!(changed(0x430, 0xFFFD), (2, 2), "ordinals of more than 16 bits");
        assert_eq!(changed(0x430, u32::MAX), (0, 0), "ordinals of more than 32 bits");
        // a directory up to the section's end, so that two of them are forwarders without one
        let mut endless = Sample::with_exports();
        endless.0.truncate(0x600);
        endless.bytes(0x4D0, &[b'.'; 0x130]);
        endless.directory(0, 0x1020, 0x1D0);
        assert_eq!(exports(&endless).ordinals, [(9, Address(0x2100)), (10, Forward(b"OTHER.Start"))]);
    }

    #[test]
    fn names_are_bounded() {
        let mut sample = Sample::with_exports();
        let (count, text) = (65_536_usize, 0x1000 + 65_536 * 6);
        sample.0.resize(0x800, 0);
        let size = u32::try_from(text + 0x1000).unwrap();
        sample.0.resize(0x800 + text, 0);
        sample.0.resize(0x800 + text + 0xFFF, b'n');
        sample.0.push(0);
        sample.section(1, b".data\0\0\0", [size, 0x2000, size, 0x800], 0xC000_0040);
        sample.set32(0x438, 65_536);
        sample.set32(0x440, 0x3000);
        sample.set32(0x444, u32::try_from(0x3000 + count * 4).unwrap());
        for name in 0..count {
            sample.set32(0x1800 + name * 4, u32::try_from(0x2000 + text).unwrap());
        }
        let pe = Pe::parse(&sample.0).unwrap();
        let names = pe.exports().names;
        assert_eq!((names.len(), names.first().unwrap().0.len()), (MAX_NAMES / 0xFFF, 0xFFF));
    }

    proptest! {
        #[test]
        fn whatever_is_changed_what_is_read_is_in_order(changes in prop::collection::vec((0x108..0x138_usize, any::<u32>()), 1..6)) {
            let mut sample = Sample::with_exports();
            for (at, value) in changes {
                sample.set32(at * 4, value);
            }
            let exports = exports(&sample);
            prop_assert!(exports.ordinals.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert!(exports.names.iter().all(|(_, target)| exports.ordinals.iter().any(|(_, other)| other == target)));
        }
    }
}
