//! Intel's extended page tables (SDM volume 3, "The Extended Page Table Mechanism", tables of the entry formats).
//!
//! | bits | |
//! |---|---|
//! | 0, 1, 2 | read, write, execute (in kernel mode, with mode-based execute control) |
//! | 5:3, 6 | leaf: memory type, ignore PAT |
//! | 7 | a leaf above the lowest level |
//! | 8, 9 | accessed, dirty |
//! | 10 | execute in user mode, with mode-based execute control |
//! | 51:12 | frame |
//! | 57, 58 | verify guest paging, paging-write access |
//! | 60, 61, 63 | supervisor shadow stack, sub-page write permissions, suppress #VE |
//!
//! Execute-only leaves are taken to be supported, as `IA32_VMX_EPT_VPID_CAP` bit 0 says of every processor with mode-based execute control.

use super::entry::{
    CannotRepresent, Encoding, FRAME, INACCESSIBLE, Kind, LARGE, Leaf, LeafSize, MemoryType, Misconfiguration, Mode, bits, frame_bits,
    frame_of, low_frame_bits,
};
use crate::{access::MapGpaFlags, addr::PAGE_SHIFT};

const READ: u64 = 1;
const WRITE: u64 = 1 << 1;
const KERNEL_EXECUTE: u64 = 1 << 2;
const MEMORY_TYPE_SHIFT: u32 = 3;
const IGNORE_PAT: u64 = 1 << 6;
const USER_EXECUTE: u64 = 1 << 10;
const VERIFY_GUEST_PAGING: u64 = 1 << 57;
const PAGING_WRITE: u64 = 1 << 58;
const SHADOW_STACK: u64 = 1 << 60;
const SUB_PAGE: u64 = 1 << 61;
const SUPPRESS_VE: u64 = 1 << 63;

/// Which flag is which bit.
const FLAGS: [(MapGpaFlags, u64); 7] = [
    (MapGpaFlags::READABLE, READ),
    (MapGpaFlags::WRITABLE, WRITE),
    (MapGpaFlags::KERNEL_EXECUTABLE, KERNEL_EXECUTE),
    (MapGpaFlags::USER_EXECUTABLE, USER_EXECUTE),
    (MapGpaFlags::VERIFY_PAGING_WRITABILITY, VERIFY_GUEST_PAGING),
    (MapGpaFlags::PAGING_WRITABILITY, PAGING_WRITE),
    (MapGpaFlags::SUPERVISOR_SHADOW_STACK, SHADOW_STACK),
];

/// Extended page tables, with every field in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ept;

impl Encoding for Ept {
    const PERMISSIONS: u64 = Self::RIGHTS | VERIFY_GUEST_PAGING | PAGING_WRITE | SHADOW_STACK | INACCESSIBLE;
    const RIGHTS: u64 = READ | WRITE | KERNEL_EXECUTE | USER_EXECUTE;
    const INVERTED: u64 = 0;
    const ACCESSED: u64 = 1 << 8;
    const DIRTY: u64 = 1 << 9;

    fn permissions(flags: MapGpaFlags) -> Result<u64, CannotRepresent> {
        let known = FLAGS.into_iter().filter(|(flag, _)| flags.contains(*flag));
        let (represented, entry) = known.fold((MapGpaFlags::NONE, 0), |(f, e), (flag, bit)| (f | flag, e | bit));
        let refused = represented != flags || entry & (READ | WRITE) == WRITE;
        match entry & Self::RIGHTS {
            _ if refused => Err(CannotRepresent::Flags(flags)),
            0 => Ok(entry | INACCESSIBLE),
            _ => Ok(entry),
        }
    }

    fn encode(leaf: &Leaf) -> Result<u64, CannotRepresent> {
        let memory: u64 = match leaf.memory {
            MemoryType::Uncacheable => 0,
            MemoryType::WriteCombining => 1,
            MemoryType::WriteThrough => 4,
            MemoryType::WriteProtected => 5,
            MemoryType::WriteBack => 6,
        };
        let mut entry = Self::permissions(leaf.flags)? | frame_bits(leaf)? | memory << MEMORY_TYPE_SHIFT;
        for (set, bit) in [
            (leaf.size != LeafSize::FourKib, LARGE),
            (leaf.ignore_pat, IGNORE_PAT),
            (leaf.accessed, Self::ACCESSED),
            (leaf.dirty, Self::DIRTY),
            (leaf.sub_page, SUB_PAGE),
            (leaf.suppress_ve, SUPPRESS_VE),
        ] {
            entry |= if set { bit } else { 0 };
        }
        Ok(entry)
    }

    fn decode(entry: u64, size: LeafSize, _: Mode) -> Leaf {
        let flags = FLAGS.into_iter().filter(|(_, bit)| entry & bit != 0).fold(MapGpaFlags::NONE, |flags, (flag, _)| flags | flag);
        Leaf {
            frame: frame_of(entry),
            flags,
            // the reserved ones are of no kind; uncacheable is what a processor takes for an entry that it cannot trust
            memory: memory_type(entry).unwrap_or(MemoryType::Uncacheable),
            ignore_pat: entry & IGNORE_PAT != 0,
            size,
            accessed: entry & Self::ACCESSED != 0,
            dirty: entry & Self::DIRTY != 0,
            suppress_ve: entry & SUPPRESS_VE != 0,
            sub_page: entry & SUB_PAGE != 0,
        }
    }

    fn table(number: u64) -> u64 {
        (number << PAGE_SHIFT) & FRAME | Self::RIGHTS
    }

    fn kind(entry: u64, level: u32) -> Result<Kind, Misconfiguration> {
        let is_leaf = level == 1 || entry & LARGE != 0;
        // of an entry that allows nothing a processor looks at no other bit
        if entry & Self::RIGHTS == 0 {
            return Ok(if is_leaf && entry != 0 && LeafSize::at(level).is_some() { Kind::Leaf } else { Kind::Empty });
        }
        if entry & (READ | WRITE) == WRITE {
            return Err(Misconfiguration::WriteOnly);
        }
        if !is_leaf {
            return if entry & bits(3..=6) == 0 { Ok(Kind::Table(frame_of(entry).0)) } else { Err(Misconfiguration::Reserved) };
        }
        match memory_type(entry) {
            _ if LeafSize::at(level).is_none() || entry & low_frame_bits(level) != 0 => Err(Misconfiguration::Reserved),
            None => Err(Misconfiguration::MemoryType),
            Some(_) => Ok(Kind::Leaf),
        }
    }
}

fn memory_type(entry: u64) -> Option<MemoryType> {
    match (entry >> MEMORY_TYPE_SHIFT) & 7 {
        0 => Some(MemoryType::Uncacheable),
        1 => Some(MemoryType::WriteCombining),
        4 => Some(MemoryType::WriteThrough),
        5 => Some(MemoryType::WriteProtected),
        6 => Some(MemoryType::WriteBack),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use super::*;
    use crate::addr::Frame;

    const MBEC: Mode = Mode { mbec: true };

    fn leaf(frame: u64, flags: MapGpaFlags, size: LeafSize) -> Leaf {
        Leaf::new(Frame(frame), flags, MemoryType::WriteBack, size)
    }

    /// Written by hand from the SDM's tables of formats.
    #[test]
    fn leaves_have_every_bit_in_its_place() {
        let data = leaf(0x12345, MapGpaFlags::DATA, LeafSize::FourKib);
        let everything = Leaf {
            frame: Frame((1 << 40) - 1),
            flags: MapGpaFlags(0x7f),
            memory: MemoryType::WriteProtected,
            ignore_pat: true,
            size: LeafSize::FourKib,
            accessed: true,
            dirty: true,
            suppress_ve: true,
            sub_page: true,
        };
        for (leaf, entry) in [
            (data, 0x0000_0000_1234_5433),
            (leaf(0x12345, MapGpaFlags::CODE, LeafSize::FourKib), 0x0000_0000_1234_5435),
            (leaf(0x600, MapGpaFlags::READABLE, LeafSize::TwoMib), 0x0000_0000_0060_00b1),
            (leaf(0x8_0000, MapGpaFlags::CODE, LeafSize::OneGib), 0x0000_0000_8000_04b5),
            (leaf(1, MapGpaFlags::KERNEL_EXECUTABLE, LeafSize::FourKib), 0x0000_0000_0000_1034),
            (leaf(1, MapGpaFlags::NONE, LeafSize::FourKib), 0x0000_0000_0000_1830),
            (Leaf { accessed: true, ..data }, 0x0000_0000_1234_5533),
            (Leaf { dirty: true, ..data }, 0x0000_0000_1234_5633),
            (Leaf { suppress_ve: true, ..data }, 0x8000_0000_1234_5433),
            (Leaf { sub_page: true, ..data }, 0x2000_0000_1234_5433),
            (Leaf { ignore_pat: true, ..data }, 0x0000_0000_1234_5473),
            (Leaf { memory: MemoryType::Uncacheable, ..data }, 0x0000_0000_1234_5403),
            (Leaf { flags: MapGpaFlags(0x11), ..data }, 0x1000_0000_1234_5031),
            (Leaf { flags: MapGpaFlags(0x21), ..data }, 0x0400_0000_1234_5031),
            (Leaf { flags: MapGpaFlags(0x41), ..data }, 0x0200_0000_1234_5031),
            (everything, 0xb60f_ffff_ffff_f76f),
        ] {
            assert_eq!(Ept::encode(&leaf), Ok(entry), "{leaf:?}");
            assert_eq!(Ept::decode(entry, leaf.size, MBEC), leaf);
        }
        assert_eq!(Ept::table(0x1234), 0x0123_4407);
    }

    #[test]
    fn what_has_no_bit_is_refused() {
        for flags in [MapGpaFlags::WRITABLE, MapGpaFlags(0x0a), MapGpaFlags::ADJUSTABLE, MapGpaFlags(0x8000_0001)] {
            assert_eq!(Ept::permissions(flags), Err(CannotRepresent::Flags(flags)));
        }
        for (frame, size) in [(1, LeafSize::TwoMib), (0x200, LeafSize::OneGib), (1 << 40, LeafSize::FourKib)] {
            assert_eq!(Ept::encode(&leaf(frame, MapGpaFlags::DATA, size)), Err(CannotRepresent::Frame(Frame(frame))));
        }
    }

    #[test]
    fn misconfigured_entries_are_told_from_absent_ones() {
        for (entry, level, kind) in [
            (0, 1, Ok(Kind::Empty)),
            (0xffff_ffff_ffff_f308, 4, Ok(Kind::Empty)),
            (0x1002, 1, Err(Misconfiguration::WriteOnly)),
            (0x1006, 1, Err(Misconfiguration::WriteOnly)),
            (0x1007, 1, Ok(Kind::Leaf)),
            (0x100f | 0x10, 1, Err(Misconfiguration::MemoryType)),
            (0x1017, 1, Err(Misconfiguration::MemoryType)),
            (0x103f, 1, Err(Misconfiguration::MemoryType)),
            (0x1007, 2, Ok(Kind::Table(1))),
            (0x100f, 2, Err(Misconfiguration::Reserved)),
            (0x1047, 4, Err(Misconfiguration::Reserved)),
            (0x20_0087, 2, Ok(Kind::Leaf)),
            (0x20_1087, 2, Err(Misconfiguration::Reserved)),
            (0x4000_0087, 3, Ok(Kind::Leaf)),
            (0x4020_0087, 3, Err(Misconfiguration::Reserved)),
            (0x4000_0087, 4, Err(Misconfiguration::Reserved)),
        ] {
            assert_eq!(Ept::kind(entry, level), kind, "{entry:#x} at level {level}");
        }
    }

    #[test]
    fn without_mode_based_control_the_kernel_bit_governs_both() {
        use crate::access::Access::{KernelExecute, UserExecute};
        let data = Ept::decode(Ept::encode(&leaf(1, MapGpaFlags::DATA, LeafSize::FourKib)).unwrap(), LeafSize::FourKib, MBEC);
        let kernel = Leaf { flags: MapGpaFlags::READABLE | MapGpaFlags::KERNEL_EXECUTABLE, ..data };
        let may = |leaf: Leaf, mbec| [KernelExecute, UserExecute].map(|access| leaf.allows(access, Mode { mbec }));
        assert_eq!([may(data, true), may(data, false)], [[false, true], [false, false]]);
        assert_eq!([may(kernel, true), may(kernel, false)], [[true, false], [true, true]]);
    }
}
