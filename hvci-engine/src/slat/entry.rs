//! What an entry says, whatever its format: [`Leaf`]; and what a format must tell the tables: [`Encoding`].
//!
//! Both formats have the frame in bits 51:12, a leaf above the lowest level marked by bit 7, and bit 11 for software. An entry of all zeros
//! maps nothing. Software's bit is set in the leaf of a page that is mapped and may not be accessed at all, which no other bit might tell
//! from an empty one.

use core::{fmt, ops::RangeInclusive};

use crate::{
    access::{Access, MapGpaFlags},
    addr::{Frame, PAGE_SHIFT, PHYSICAL_BITS},
};

/// Where an entry has its frame.
pub(super) const FRAME: u64 = bits(12..=51);
/// Set in leaves above the lowest level (Intel SDM volume 3, "EPT Translation Mechanism"; AMD APM volume 2, "PS").
pub(super) const LARGE: u64 = 1 << 7;
/// Ignored by processors: mapped, and nothing is allowed.
pub(super) const INACCESSIBLE: u64 = 1 << 11;

/// A mask of these bits.
pub(super) const fn bits(range: RangeInclusive<u32>) -> u64 {
    let (low, high) = (*range.start(), *range.end());
    (u64::MAX >> (u64::BITS - 1).saturating_sub(high)) & (u64::MAX << low)
}

/// Memory types, with the numbers of the MTRRs and of EPT (Intel SDM volume 3, "EPT and Memory Typing").
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MemoryType {
    /// UC.
    Uncacheable = 0,
    /// WC.
    WriteCombining = 1,
    /// WT.
    WriteThrough = 4,
    /// WP.
    WriteProtected = 5,
    /// WB: RAM.
    WriteBack = 6,
}

/// How much one leaf maps.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum LeafSize {
    /// One page.
    FourKib,
    /// 512 pages.
    TwoMib,
    /// 512 × 512 pages.
    OneGib,
}

impl LeafSize {
    /// Every size, the smallest first.
    pub const ALL: [Self; 3] = [Self::FourKib, Self::TwoMib, Self::OneGib];

    /// How many pages of 4 KiB.
    pub const fn pages(self) -> u64 {
        match self {
            Self::FourKib => 1,
            Self::TwoMib => 1 << 9,
            Self::OneGib => 1 << 18,
        }
    }

    /// The size of a leaf at a level, 1 being that of the tables whose entries map single pages. None at level 4.
    pub(super) const fn at(level: u32) -> Option<Self> {
        match level {
            1 => Some(Self::FourKib),
            2 => Some(Self::TwoMib),
            3 => Some(Self::OneGib),
            _ => None,
        }
    }
}

/// How the processor has been told to walk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Mode {
    /// Execution in kernel and in user mode are told apart: Intel's mode-based execute control (secondary processor-based control 22), or
    /// AMD's GMET. If not, what is said of kernel mode holds for both in an EPT (TLFS `vsm.md`).
    pub mbec: bool,
}

/// What a leaf says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Leaf {
    /// The frame that backs the first of the pages that it is about: one page asked for, or a range.
    pub frame: Frame,
    /// What is allowed.
    pub flags: MapGpaFlags,
    /// How it is cached.
    pub memory: MemoryType,
    /// The guest's PAT does not count (EPT only).
    pub ignore_pat: bool,
    /// How much the entry maps.
    pub size: LeafSize,
    /// There was an access since this was cleared; says nothing in tables without such bits.
    pub accessed: bool,
    /// There was a write since this was cleared; says nothing in tables without such bits.
    pub dirty: bool,
    /// A violation exits and is never turned into #VE (EPT only).
    pub suppress_ve: bool,
    /// Write permission is per 128 bytes, in another table (EPT only).
    pub sub_page: bool,
}

impl Leaf {
    /// A leaf with nothing out of the ordinary.
    pub const fn new(frame: Frame, flags: MapGpaFlags, memory: MemoryType, size: LeafSize) -> Self {
        Self { frame, flags, memory, ignore_pat: false, size, accessed: false, dirty: false, suppress_ve: false, sub_page: false }
    }

    /// Whether an access is allowed.
    pub const fn allows(&self, access: Access, mode: Mode) -> bool {
        match access {
            Access::UserExecute if !mode.mbec => self.flags.allows(Access::KernelExecute),
            _ => self.flags.allows(access),
        }
    }

    /// The same, of the page that is so many pages further on.
    #[must_use]
    pub(super) const fn onwards(self, pages: u64) -> Self {
        Self { frame: Frame(self.frame.0.saturating_add(pages)), ..self }
    }

    /// The same, of the page that is so many pages before.
    #[must_use]
    pub(super) const fn back(self, pages: u64) -> Self {
        Self { frame: Frame(self.frame.0.saturating_sub(pages)), ..self }
    }
}

/// What an encoding has no entry for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CannotRepresent {
    /// These flags together.
    #[error("cannot represent {0} in an entry")]
    Flags(MapGpaFlags),
    /// This memory type.
    #[error("cannot represent the memory type {0:?} in an entry")]
    Memory(MemoryType),
    /// A frame that is not aligned to the size of the leaf, or has too many bits.
    #[error("cannot represent {0} in an entry of this size")]
    Frame(Frame),
    /// One of the fields that are said to be EPT's alone.
    #[error("cannot represent a field that only an EPT has")]
    Field,
}

/// An entry that a processor refuses to use at all (Intel SDM volume 3, "EPT Misconfigurations"; AMD APM volume 2, #NPF with RSV).
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, thiserror::Error)]
pub enum Misconfiguration {
    /// Writable and not readable.
    #[error("writable and not readable")]
    WriteOnly,
    /// A reserved bit is set.
    #[error("a reserved bit is set")]
    Reserved,
    /// A memory type that does not exist.
    #[error("no such memory type")]
    MemoryType,
    /// A table that does not exist.
    #[error("no such table")]
    Table,
}

/// What stands in an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nothing.
    Empty,
    /// The number of a table of the level below.
    Table(u64),
    /// A leaf.
    Leaf,
}

/// A format of entries: [`Ept`](super::Ept) or [`Npt`](super::Npt). What both have alike, such as where the frame is, the tables take for
/// granted.
pub trait Encoding: fmt::Debug + Send + Sync + 'static {
    /// The bits of a leaf that depend on its flags.
    const PERMISSIONS: u64;
    /// Those of them that count at every level: what an access needs must be allowed by all entries on its way.
    const RIGHTS: u64;
    /// Those of them that forbid when set.
    const INVERTED: u64;
    /// There was an access.
    const ACCESSED: u64;
    /// There was a write.
    const DIRTY: u64;

    /// The [`PERMISSIONS`](Self::PERMISSIONS) of a leaf with these flags.
    ///
    /// # Errors
    /// The format cannot represent them: it never does with more or with less.
    fn permissions(flags: MapGpaFlags) -> Result<u64, CannotRepresent>;

    /// The entry of a leaf.
    ///
    /// # Errors
    /// The format cannot represent it.
    fn encode(leaf: &Leaf) -> Result<u64, CannotRepresent>;

    /// What the entry of a leaf says to a processor in this mode. For entries of [`Kind::Leaf`].
    fn decode(entry: u64, size: LeafSize, mode: Mode) -> Leaf;

    /// The entry that leads to a table, with every right.
    fn table(number: u64) -> u64;

    /// What an entry is at a level: 1, whose entries map single pages, to 4, the root.
    ///
    /// # Errors
    /// A processor would refuse to use it.
    fn kind(entry: u64, level: u32) -> Result<Kind, Misconfiguration>;
}

/// The frame of a leaf, in its place.
pub(super) fn frame_bits(leaf: &Leaf) -> Result<u64, CannotRepresent> {
    let fits = leaf.frame.0 < 1 << PHYSICAL_BITS.saturating_sub(PAGE_SHIFT);
    match leaf.frame.0.checked_rem(leaf.size.pages()) {
        Some(0) if fits => Ok(leaf.frame.0 << PAGE_SHIFT),
        _ => Err(CannotRepresent::Frame(leaf.frame)),
    }
}

/// The frame that stands in an entry.
pub(super) const fn frame_of(entry: u64) -> Frame {
    Frame((entry & FRAME) >> PAGE_SHIFT)
}

/// Bits of the frame that must be zero in a leaf of a level.
pub(super) const fn low_frame_bits(level: u32) -> u64 {
    match level {
        2 => bits(12..=20),
        3 => bits(12..=29),
        _ => 0,
    }
}
