//! The table of dynamic relocations (`IMAGE_DYNAMIC_RELOCATION_TABLE` of the Windows SDK, `winnt.h`; "Dynamic Value Relocation Table (DVRT)
//! details", Denuvo Software Solutions): code that a kernel rewrites while it loads an image.
//!
//! ```text
//! version u32 | size u32 | groups
//! 1: symbol u64 | size u32                                          | blocks
//! 2: header size u32 | size u32 | symbol u64 | group u32 | flags u32 … | blocks
//! block: address of a page u32 | size u32 | entries
//! ```
//!
//! Read are the entries of [`IMPORT_CONTROL_TRANSFER`]; what other symbols stand for is skipped. Trusts nothing. A table that cannot be read has
//! no entries from there on: code that nothing is said of is left alone, so nothing is lost by it but speed.

use super::{IAT_DIRECTORY, Pe};
use crate::bytes::{index, le32, le64, slice};

/// IMAGE_DYNAMIC_RELOCATION_GUARD_IMPORT_CONTROL_TRANSFER
const IMPORT_CONTROL_TRANSFER: u64 = 3;
/// `IATIndex` of an entry that has none (all of its 19 bits).
const NO_SLOT: u32 = 0x7_FFFF;
/// Bytes in front of the groups, and in front of the entries of a block.
const HEADER: usize = 8;
/// The least header of a group of version 2.
const GROUP_HEADER: usize = 24;

/// A call of an imported function, or a jump to one (`IMAGE_IMPORT_CONTROL_TRANSFER_DYNAMIC_RELOCATION`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ImportTransfer {
    /// Address of its first byte, relative to the image base.
    pub address: u32,
    /// Whether it is a call.
    pub is_call: bool,
    /// The slot of the import address table that it goes through, relative to the image base; `None` if the table has none of that number.
    pub slot: Option<u32>,
}

impl<'a> Pe<'a> {
    /// The calls of imported functions that the image of a PE32+ file lists, in the order of its table.
    pub fn import_transfers(&self) -> impl Iterator<Item = ImportTransfer> + 'a {
        let iat = self.headers().directory(IAT_DIRECTORY);
        let slot = move |number: u32| {
            let offset = number.checked_mul(8).filter(|at| number != NO_SLOT && at.checked_add(8).is_some_and(|end| end <= iat.size))?;
            iat.address.checked_add(offset)
        };
        let groups = self.dynamic_relocations().unwrap_or(Groups { rest: &[], version: 1 });
        let blocks = groups.filter(|(symbol, _)| *symbol == IMPORT_CONTROL_TRANSFER).flat_map(|(_, blocks)| Blocks(blocks));
        blocks.flat_map(move |(page, entries)| {
            entries.as_chunks::<4>().0.iter().enumerate().filter_map(move |(number, entry)| {
                let entry = u32::from_le_bytes(*entry);
                let into = entry & 0xFFF;
                // anywhere but in front it is filler
                if into == 0 && number > 0 {
                    return None;
                }
                Some(ImportTransfer { address: page.checked_add(into)?, is_call: entry & 0x1000 != 0, slot: slot(entry >> 13) })
            })
        })
    }

    fn dynamic_relocations(&self) -> Option<Groups<'a>> {
        let (offset, section) = self.load_config()?.dynamic_relocations?;
        let section = self.sections().get(usize::from(section).checked_sub(1)?)?;
        let table = slice(self.data(), index(section.file_offset), index(section.file_size))?.get(index(offset)..)?;
        let version = le32(table, 0).filter(|version| matches!(version, 1 | 2))?;
        Some(Groups { rest: slice(table, HEADER, index(le32(table, 4)?))?, version })
    }
}

/// Reads groups: a symbol, and its blocks.
struct Groups<'a> {
    rest: &'a [u8],
    version: u32,
}

impl<'a> Iterator for Groups<'a> {
    type Item = (u64, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let group = core::mem::take(&mut self.rest);
        let (symbol, header, size) = match self.version {
            1 => (le64(group, 0)?, 12, index(le32(group, 8)?)),
            _ => (le64(group, 8)?, index(le32(group, 0)?), index(le32(group, 4)?)),
        };
        if self.version != 1 && header < GROUP_HEADER {
            return None;
        }
        let (blocks, rest) = group.get(header..)?.split_at_checked(size)?;
        self.rest = rest;
        Some((symbol, blocks))
    }
}

/// Reads blocks: the address of a page, and its entries.
struct Blocks<'a>(&'a [u8]);

impl<'a> Iterator for Blocks<'a> {
    type Item = (u32, &'a [u8]);

    fn next(&mut self) -> Option<Self::Item> {
        let blocks = core::mem::take(&mut self.0);
        let (page, size) = (le32(blocks, 0)?, le32(blocks, 4)?);
        let (block, rest) = blocks.split_at_checked(index(size))?;
        // one without its header says not where the next begins
        let entries = block.get(HEADER..)?;
        self.0 = rest;
        Some((page, entries))
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]
    #![expect(clippy::cast_possible_truncation, reason = "tests")]

    use proptest::prelude::*;

    use super::{super::sample::Sample, *};

    /// Where the samples here have the table: in `.data`.
    const TABLE: usize = 0x7B0;
    const CALL: u32 = 0x1000;

    fn entry(into: u32, flags: u32, slot: u32) -> u32 {
        into | flags | (slot << 13)
    }

    fn block(page: u32, entries: &[u32]) -> Vec<u8> {
        [page, 8 + entries.len() as u32 * 4].iter().chain(entries).flat_map(|word| word.to_le_bytes()).collect()
    }

    fn group(version: u32, symbol: u64, blocks: &[u8]) -> Vec<u8> {
        let size = (blocks.len() as u32).to_le_bytes();
        match version {
            1 => [&symbol.to_le_bytes()[..], &size, blocks].concat(),
            // four bytes more of header than there were fields
            _ => [&28_u32.to_le_bytes()[..], &size, &symbol.to_le_bytes(), &[0; 12], blocks].concat(),
        }
    }

    fn table(version: u32, groups: &[Vec<u8>]) -> Vec<u8> {
        let groups = groups.concat();
        [&version.to_le_bytes()[..], &(groups.len() as u32).to_le_bytes(), &groups].concat()
    }

    fn sample(table: &[u8]) -> Sample {
        let mut sample = Sample::with_load_config();
        sample.directory(10, 0x1000, 0xE8);
        sample.set32(0x400, 0xE8);
        sample.set32(0x4E0, (TABLE - 0x600) as u32);
        sample.set16(0x4E4, 2);
        sample.bytes(TABLE, table);
        sample
    }

    fn read(sample: &Sample) -> Vec<(u32, bool, Option<u32>)> {
        Pe::parse(&sample.0).unwrap().import_transfers().map(|t| (t.address, t.is_call, t.slot)).collect()
    }

    #[test]
    fn both_versions_say_the_same() {
        let blocks = [block(0x1000, &[entry(0x10, CALL, 0), entry(0xFFC, 0, 1)]), block(0x3000, &[entry(0, CALL, 2)])].concat();
        let expected = [(0x1010, true, Some(0x2050)), (0x1FFC, false, Some(0x2058)), (0x3000, true, Some(0x2060))];
        assert_eq!(read(&sample(&table(1, &[group(1, 3, &blocks)]))), expected);
        assert_eq!(read(&sample(&table(2, &[group(2, 3, &blocks)]))), expected);
        for (version, read_as) in [(1, 2), (2, 1), (1, 0), (1, 3)] {
            let mut other = table(version, &[group(version, 3, &blocks)]);
            other[..4].copy_from_slice(&u32::to_le_bytes(read_as));
            assert_eq!(read(&sample(&other)), [], "version {version} read as {read_as}");
        }
    }

    #[test]
    fn other_symbols_and_filler_are_skipped() {
        let short = [&0x1000_u32.to_le_bytes()[..], &12_u32.to_le_bytes(), &[0x34, 0x12, 0, 0]].concat();
        let own = block(0x1000, &[entry(0, CALL, 0), 0, entry(8, CALL, 1), entry(0, CALL, 1)]);
        let table = table(1, &[group(1, 4, &short), group(1, 3, &own), group(1, u64::MAX, &[])]);
        assert_eq!(read(&sample(&table)), [(0x1000, true, Some(0x2050)), (0x1008, true, Some(0x2058))]);
    }

    #[test]
    fn slots_are_in_the_import_address_table() {
        let entries: Vec<u32> = [2, 3, 0x7_FFFE, NO_SLOT].map(|slot| entry(4, CALL, slot)).to_vec();
        let slots: Vec<_> = read(&sample(&table(1, &[group(1, 3, &block(0x1000, &entries))]))).into_iter().map(|t| t.2).collect();
        assert_eq!(slots, [Some(0x2060), None, None, None], "it has three");
        let mut without = sample(&table(1, &[group(1, 3, &block(0x1000, &entries))]));
        without.directory(12, 0, 0);
        assert!(read(&without).iter().all(|t| t.2.is_none()));
        let mut last = sample(&table(1, &[group(1, 3, &block(0xFFFF_F000, &[entry(0xFFF, 0, 0)]))]));
        last.directory(12, 0xFFFF_FFF8, 0x18);
        assert_eq!(read(&last), [(u32::MAX, false, Some(0xFFFF_FFF8))]);
    }

    #[test]
    fn where_a_table_cannot_be_read_it_ends() {
        let good = table(1, &[group(1, 3, &[block(0x1000, &[entry(4, 0, 0)]), block(0x1000, &[entry(8, 0, 0)])].concat())]);
        let changed = |at: usize, value: u32| {
            let mut sample = sample(&good);
            sample.set32(TABLE + at, value);
            read(&sample).len()
        };
        // the table's size, the group's, those of the blocks
        for (at, value, count) in [
            (4, 0x24, 2),
            (4, 0x23, 0),
            (4, 0x49, 0),
            (4, u32::MAX, 0),
            (16, 0x18, 2),
            (16, 0x17, 1),
            (16, u32::MAX, 0),
            (24, 12, 2),
            (24, 8, 0),
            (24, 7, 0),
            (24, 0, 0),
            (24, u32::MAX, 0),
            (36, 13, 1),
        ] {
            assert_eq!(changed(at, value), count, "{value:#x} at {at}");
        }
        // the load configuration: shorter, another section or none, an offset behind its end
        for (at, value) in [(0x400, 0xE5), (0x4E4, 0), (0x4E4, 1), (0x4E4, 3), (0x4E0, 0x1F9), (0x4E0, u32::MAX)] {
            let mut sample = sample(&good);
            sample.set32(at, value);
            assert_eq!(read(&sample), [], "{value:#x} at {at:#x}");
        }
    }

    proptest! {
        #[test]
        fn never_more_than_the_file_has(version in 1..3_u32, changes in prop::collection::vec((0..0x50_usize, any::<u8>()), 0..6)) {
            let blocks = [block(0x1000, &[entry(0x10, CALL, 0), entry(0xFFC, 0, 1)]), block(0x3000, &[entry(0, CALL, 2)])].concat();
            let mut sample = sample(&table(version, &[group(version, 3, &blocks)]));
            for (at, value) in changes {
                sample.0[TABLE + at] = value;
            }
            prop_assert!(read(&sample).len() <= 0x50 / 4);
        }
    }
}
