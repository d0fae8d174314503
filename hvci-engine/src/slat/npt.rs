//! AMD's nested page tables: long-mode entries (APM volume 2, "Long-Mode Page Translation" and "Nested Paging"), for use with the guest
//! mode execute trap.
//!
//! | bits | |
//! |---|---|
//! | 0, 1, 2 | present, writable, user |
//! | 3, 4 | write-through, cache disable: an index into the host's PAT, which is taken to be as after reset |
//! | 5, 6 | accessed, dirty |
//! | 7 | a leaf above the lowest level |
//! | 51:12 | frame |
//! | 63 | no execute |
//!
//! A nested walk is one of user mode, so all that is not marked user is out of reach — but for GMET (VMCB nested control bit 3), which traps
//! fetches in kernel mode from what is marked user, and lets everything reach the rest. There is one bit against execution, so kernel
//! execution without user execution cannot be represented, nor any right without read.
//!
//! **A table in this format must be walked with GMET.** A processor without it lets the kernel execute what only user mode should:
//! [`Encoding::decode`] shows that, rather than what was meant.

use super::entry::{
    CannotRepresent, Encoding, FRAME, INACCESSIBLE, Kind, LARGE, Leaf, LeafSize, MemoryType, Misconfiguration, Mode, bits, frame_bits,
    frame_of, low_frame_bits,
};
use crate::{access::MapGpaFlags, addr::PAGE_SHIFT};

const PRESENT: u64 = 1;
const WRITE: u64 = 1 << 1;
const USER: u64 = 1 << 2;
const WRITE_THROUGH: u64 = 1 << 3;
const CACHE_DISABLE: u64 = 1 << 4;
const NO_EXECUTE: u64 = 1 << 63;

/// Nested page tables with GMET.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Npt;

impl Encoding for Npt {
    const PERMISSIONS: u64 = Self::RIGHTS | INACCESSIBLE;
    const RIGHTS: u64 = PRESENT | WRITE | USER | NO_EXECUTE;
    const INVERTED: u64 = NO_EXECUTE;
    const ACCESSED: u64 = 1 << 5;
    const DIRTY: u64 = 1 << 6;

    fn permissions(flags: MapGpaFlags) -> Result<u64, CannotRepresent> {
        if flags == MapGpaFlags::NONE {
            return Ok(INACCESSIBLE | USER | NO_EXECUTE);
        }
        let known = MapGpaFlags::READABLE | MapGpaFlags::WRITABLE | MapGpaFlags::EXECUTABLE;
        if !flags.contains(MapGpaFlags::READABLE) || !known.contains(flags) {
            return Err(CannotRepresent::Flags(flags));
        }
        let write = if flags.contains(MapGpaFlags::WRITABLE) { WRITE } else { 0 };
        let execute = match flags & MapGpaFlags::EXECUTABLE {
            MapGpaFlags::NONE => USER | NO_EXECUTE,
            MapGpaFlags::USER_EXECUTABLE => USER,
            MapGpaFlags::EXECUTABLE => 0,
            _ => return Err(CannotRepresent::Flags(flags)),
        };
        Ok(PRESENT | write | execute)
    }

    fn encode(leaf: &Leaf) -> Result<u64, CannotRepresent> {
        if leaf.ignore_pat || leaf.suppress_ve || leaf.sub_page {
            return Err(CannotRepresent::Field);
        }
        let mut entry = Self::permissions(leaf.flags)? | frame_bits(leaf)?;
        entry |= match leaf.memory {
            MemoryType::WriteBack => 0,
            MemoryType::WriteThrough => WRITE_THROUGH,
            MemoryType::Uncacheable => WRITE_THROUGH | CACHE_DISABLE,
            MemoryType::WriteCombining | MemoryType::WriteProtected => return Err(CannotRepresent::Memory(leaf.memory)),
        };
        for (set, bit) in [(leaf.size != LeafSize::FourKib, LARGE), (leaf.accessed, Self::ACCESSED), (leaf.dirty, Self::DIRTY)] {
            entry |= if set { bit } else { 0 };
        }
        Ok(entry)
    }

    fn decode(entry: u64, size: LeafSize, mode: Mode) -> Leaf {
        let memory = match entry & (WRITE_THROUGH | CACHE_DISABLE) {
            0 => MemoryType::WriteBack,
            WRITE_THROUGH => MemoryType::WriteThrough,
            _ => MemoryType::Uncacheable,
        };
        Leaf {
            accessed: entry & Self::ACCESSED != 0,
            dirty: entry & Self::DIRTY != 0,
            ..Leaf::new(frame_of(entry), flags_of(entry, mode), memory, size)
        }
    }

    fn table(number: u64) -> u64 {
        (number << PAGE_SHIFT) & FRAME | PRESENT | WRITE | USER
    }

    fn kind(entry: u64, level: u32) -> Result<Kind, Misconfiguration> {
        let is_leaf = level == 1 || entry & LARGE != 0;
        if entry & PRESENT == 0 {
            return Ok(if is_leaf && entry != 0 && LeafSize::at(level).is_some() { Kind::Leaf } else { Kind::Empty });
        }
        if !is_leaf {
            return Ok(Kind::Table(frame_of(entry).0));
        }
        // bit 12 of a large leaf is the third bit of the PAT's index, which no entry of ours has; at level 4, bits 8:7 must be zero
        let wrong = LeafSize::at(level).is_none() || entry & low_frame_bits(level) != 0 || (level == 1 && entry & bits(7..=7) != 0);
        if wrong { Err(Misconfiguration::Reserved) } else { Ok(Kind::Leaf) }
    }
}

fn flags_of(entry: u64, mode: Mode) -> MapGpaFlags {
    let user = entry & USER != 0;
    // without GMET the walk is one of user mode, without exception
    if entry & PRESENT == 0 || !(user || mode.mbec) {
        return MapGpaFlags::NONE;
    }
    let write = if entry & WRITE != 0 { MapGpaFlags::WRITABLE } else { MapGpaFlags::NONE };
    let execute = match (entry & NO_EXECUTE != 0, user && mode.mbec) {
        (true, _) => MapGpaFlags::NONE,
        (false, true) => MapGpaFlags::USER_EXECUTABLE,
        (false, false) => MapGpaFlags::EXECUTABLE,
    };
    MapGpaFlags::READABLE | write | execute
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::addr::Frame;

    const GMET: Mode = Mode { mbec: true };

    /// Written by hand from the APM's figures of the formats.
    #[test]
    fn leaves_have_every_bit_in_its_place() {
        let data = Leaf::new(Frame(0x12345), MapGpaFlags::DATA, MemoryType::WriteBack, LeafSize::FourKib);
        for (leaf, entry) in [
            (data, 0x0000_0000_1234_5007),
            (Leaf { flags: MapGpaFlags::CODE, ..data }, 0x0000_0000_1234_5001),
            (Leaf { flags: MapGpaFlags::READABLE, ..data }, 0x8000_0000_1234_5005),
            (Leaf { flags: MapGpaFlags(3), ..data }, 0x8000_0000_1234_5007),
            (Leaf { flags: MapGpaFlags::NONE, ..data }, 0x8000_0000_1234_5804),
            (Leaf { accessed: true, ..data }, 0x0000_0000_1234_5027),
            (Leaf { dirty: true, ..data }, 0x0000_0000_1234_5047),
            (Leaf { memory: MemoryType::WriteThrough, ..data }, 0x0000_0000_1234_500f),
            (Leaf { memory: MemoryType::Uncacheable, ..data }, 0x0000_0000_1234_501f),
            (Leaf { frame: Frame(0x600), size: LeafSize::TwoMib, ..data }, 0x0000_0000_0060_0087),
            (Leaf { frame: Frame(0x8_0000), size: LeafSize::OneGib, ..data }, 0x0000_0000_8000_0087),
            (Leaf { frame: Frame((1 << 40) - 1), ..data }, 0x000f_ffff_ffff_f007),
        ] {
            assert_eq!(Npt::encode(&leaf), Ok(entry), "{leaf:?}");
            assert_eq!(Npt::decode(entry, leaf.size, GMET), leaf);
        }
        assert_eq!(Npt::table(0x1234), 0x0123_4007);
    }

    #[test]
    fn what_has_no_entry_is_refused() {
        for flags in [2, 4, 5, 7, 8, 0xa, 0x11, 0x21, 0x41, 0x8001].map(MapGpaFlags) {
            assert_eq!(Npt::permissions(flags), Err(CannotRepresent::Flags(flags)));
        }
        let data = Leaf::new(Frame(1), MapGpaFlags::DATA, MemoryType::WriteBack, LeafSize::FourKib);
        for (leaf, why) in [
            (Leaf { memory: MemoryType::WriteCombining, ..data }, CannotRepresent::Memory(MemoryType::WriteCombining)),
            (Leaf { suppress_ve: true, ..data }, CannotRepresent::Field),
            (Leaf { sub_page: true, ..data }, CannotRepresent::Field),
            (Leaf { ignore_pat: true, ..data }, CannotRepresent::Field),
            (Leaf { size: LeafSize::TwoMib, ..data }, CannotRepresent::Frame(Frame(1))),
        ] {
            assert_eq!(Npt::encode(&leaf), Err(why));
        }
    }

    #[test]
    fn a_processor_without_gmet_is_shown_as_it_is() {
        let seen = |flags| Npt::permissions(flags).map(|bits| Npt::decode(bits, LeafSize::FourKib, Mode { mbec: false }).flags);
        assert_eq!(seen(MapGpaFlags::DATA), Ok(MapGpaFlags::DATA | MapGpaFlags::KERNEL_EXECUTABLE));
        assert_eq!(seen(MapGpaFlags::CODE), Ok(MapGpaFlags::NONE));
        assert_eq!(seen(MapGpaFlags::READABLE), Ok(MapGpaFlags::READABLE));
    }

    #[test]
    fn reserved_bits_are_found() {
        for (entry, level, kind) in [
            (0, 1, Ok(Kind::Empty)),
            (0xffe, 3, Ok(Kind::Leaf)),
            (0xffe, 4, Ok(Kind::Empty)),
            (0xf7e, 3, Ok(Kind::Empty)),
            (0x1087, 1, Err(Misconfiguration::Reserved)),
            (0x1007, 3, Ok(Kind::Table(1))),
            (0x20_0087, 2, Ok(Kind::Leaf)),
            (0x20_1087, 2, Err(Misconfiguration::Reserved)),
            (0x4020_0087, 3, Err(Misconfiguration::Reserved)),
            (0x4000_0087, 4, Err(Misconfiguration::Reserved)),
        ] {
            assert_eq!(Npt::kind(entry, level), kind, "{entry:#x} at level {level}");
        }
    }
}
