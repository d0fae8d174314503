//! Addresses of a guest and its host, as types that do not mix: guest-physical and guest-virtual, bytes and pages, guest pages and host frames.
//!
//! All pages are of 4 KiB (`HV_PAGE_SIZE`, TLFS `datatypes/hv_gpa_page_number.md`); larger leaves are a matter of [`slat`](crate::slat).

use alloc::vec::Vec;
use core::fmt;

use serde::{Deserialize, Serialize};

/// Bytes of a page.
pub const PAGE_SIZE: u64 = 1 << PAGE_SHIFT;
/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Guest-physical and host-physical addresses have at most this many bits (Intel SDM volume 3, "MAXPHYADDR").
pub const PHYSICAL_BITS: u32 = 52;

macro_rules! address {
    ($(#[$doc:meta])* $name:ident $prefix:literal) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(pub u64);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, concat!($prefix, " {:#x}"), self.0)
            }
        }
    };
}

address! {
    /// A guest-physical address, in bytes.
    Gpa "GPA"
}
address! {
    /// A guest-physical page number (`HV_GPA_PAGE_NUMBER`).
    Gpn "GPN"
}
address! {
    /// A guest-virtual address, in bytes.
    Gva "GVA"
}
address! {
    /// A page of host memory: what a guest page is backed by. Several guest pages may be backed by one frame; they are its aliases.
    Frame "frame"
}

impl Gpa {
    /// The page it lies in.
    pub const fn gpn(self) -> Gpn {
        Gpn(self.0 >> PAGE_SHIFT)
    }

    /// Bytes from the start of its page.
    pub const fn offset(self) -> u64 {
        self.0 & (PAGE_SIZE - 1)
    }
}

impl Gpn {
    /// The address of its first byte; `None` beyond 64 bits.
    pub const fn gpa(self) -> Option<Gpa> {
        match self.0.checked_mul(PAGE_SIZE) {
            Some(address) => Some(Gpa(address)),
            None => None,
        }
    }
}

impl Gva {
    /// The address of the first byte of its page.
    pub const fn page(self) -> Self {
        Self(self.0 & !(PAGE_SIZE - 1))
    }
}

/// Successive guest pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct GpnRange {
    /// The first.
    pub start: Gpn,
    /// How many.
    pub pages: u64,
}

impl GpnRange {
    /// `pages` pages from `start`; `None` if the last would lie beyond [`PHYSICAL_BITS`].
    pub fn new(start: Gpn, pages: u64) -> Option<Self> {
        let end = start.0.checked_add(pages)?;
        (end <= 1 << (PHYSICAL_BITS - PAGE_SHIFT)).then_some(Self { start, pages })
    }

    /// The pages that `len` bytes from `gpa` touch; `None` as for [`new`](Self::new). No bytes touch no page.
    pub fn touched(gpa: Gpa, len: u64) -> Option<Self> {
        let Some(last) = len.checked_sub(1) else { return Self::new(gpa.gpn(), 0) };
        let last = Gpa(gpa.0.checked_add(last)?).gpn();
        Self::new(gpa.gpn(), last.0.checked_sub(gpa.gpn().0)?.checked_add(1)?)
    }

    /// Ranges of these pages, in their order: a page that follows the one before it is of the same range.
    pub fn of_pages(pages: impl Iterator<Item = Gpn>) -> Vec<Self> {
        let mut ranges = Vec::new();
        pages.for_each(|gpn| Self::append(&mut ranges, gpn));
        ranges
    }

    /// Adds a page behind those of `ranges`.
    pub(crate) fn append(ranges: &mut Vec<Self>, gpn: Gpn) {
        match ranges.last_mut() {
            Some(last) if last.start.0.checked_add(last.pages) == Some(gpn.0) => last.pages = last.pages.saturating_add(1),
            _ => ranges.push(Self { start: gpn, pages: 1 }),
        }
    }

    /// Every page, in order.
    pub fn iter(self) -> impl DoubleEndedIterator<Item = Gpn> {
        (self.start.0..self.start.0.saturating_add(self.pages)).map(Gpn)
    }

    /// Whether the page is one of them.
    pub const fn contains(self, gpn: Gpn) -> bool {
        gpn.0 >= self.start.0 && gpn.0 - self.start.0 < self.pages
    }
}

impl fmt::Display for GpnRange {
    /// Half open: `GPN 0x10..0x18`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}..{:#x}", self.start, self.start.0.saturating_add(self.pages))
    }
}

/// A virtual trust level (TLFS `vsm.md`, `HV_VTL`). The two that exist today.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Vtl {
    /// The normal guest: its kernel, its programs, whoever took them over.
    Vtl0 = 0,
    /// The secure kernel, which says what VTL0 may do with memory.
    Vtl1 = 1,
}

impl Vtl {
    /// Its `HV_VTL` number.
    pub const fn number(self) -> u8 {
        match self {
            Self::Vtl0 => 0,
            Self::Vtl1 => 1,
        }
    }

    /// The level of a number; `None` for one that does not exist.
    pub const fn from_number(number: u8) -> Option<Self> {
        match number {
            0 => Some(Self::Vtl0),
            1 => Some(Self::Vtl1),
            _ => None,
        }
    }
}

impl fmt::Display for Vtl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VTL{}", self.number())
    }
}

#[cfg(test)]
mod tests {
    use alloc::string::ToString;

    use super::*;

    #[test]
    fn bytes_touch_pages() {
        let touched = |gpa, len| GpnRange::touched(Gpa(gpa), len).map(|r| (r.start.0, r.pages));
        assert_eq!(touched(0x1fff, 1), Some((1, 1)));
        assert_eq!(touched(0x1fff, 2), Some((1, 2)));
        assert_eq!(touched(0x2000, 0x1000), Some((2, 1)));
        assert_eq!(touched(0x2000, 0), Some((2, 0)));
        assert_eq!(touched(u64::MAX, 2), None);
        assert_eq!(touched((1 << 52) - 1, 1), Some(((1 << 40) - 1, 1)));
        assert_eq!(touched((1 << 52) - 1, 2), None);
    }

    #[test]
    fn ranges_know_their_pages() {
        let range = GpnRange::new(Gpn(0x10), 8).unwrap();
        assert_eq!(range.to_string(), "GPN 0x10..0x18");
        assert_eq!(range.iter().map(|g| g.0).collect::<Vec<_>>(), (0x10..0x18).collect::<Vec<_>>());
        assert_eq!([0xf, 0x10, 0x17, 0x18].map(|n| range.contains(Gpn(n))), [false, true, true, false]);
        assert_eq!(GpnRange::new(Gpn(1 << 40), 1), None);
        assert_eq!(Gpn(u64::MAX).gpa(), None);
        let ranges = GpnRange::of_pages([3, 4, 5, 9, 8, 9].map(Gpn).into_iter());
        assert_eq!(ranges.iter().map(|r| (r.start.0, r.pages)).collect::<Vec<_>>(), [(3, 3), (9, 1), (8, 2)]);
        assert_eq!((Gpa(0x1234).gpn(), Gpa(0x1234).offset()), (Gpn(1), 0x234));
    }

    #[test]
    fn levels_round_trip() {
        assert_eq!([0, 1, 2, 15].map(Vtl::from_number), [Some(Vtl::Vtl0), Some(Vtl::Vtl1), None, None]);
        assert!(Vtl::Vtl0 < Vtl::Vtl1);
    }
}
