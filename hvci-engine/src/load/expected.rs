//! What a module looks like in memory.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use core::fmt;
use std::sync::Arc;

use smol_str::SmolStr;

use super::{Exports, Pages, pages::PAGE};
use crate::{
    addr::{Gva, PAGE_SIZE},
    bytes::{index, widen},
    frames::Kind,
};

/// Most bytes that a module may take in memory.
pub const MAX_IMAGE: u64 = 256 << 20;

/// What a module looks like in memory when it was loaded as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected<'a> {
    /// In order of address; no two share a page.
    pub segments: Vec<Segment<'a>>,
    /// Where it is entered (`DriverEntry`, `init_module`): in a segment of [`Kind::Code`]. `None` for a module without.
    pub entry: Option<Gva>,
    /// Address of the eight bytes, in one page of a segment of [`Kind::Data`], that are not compared: the cookie that the guest's loader sets
    /// to a random number.
    pub security_cookie: Option<Gva>,
    /// What other modules may import of it.
    pub exports: Arc<Exports>,
}

/// Successive pages of one kind.
#[derive(Clone, PartialEq, Eq)]
pub struct Segment<'a> {
    /// What it is, for people: the section's name, or that of the class of sections.
    pub name: SmolStr,
    /// Address of the first byte: of a page.
    pub start: Gva,
    /// What the frames become.
    pub kind: Kind,
    /// Whether it is gone when the module's initialisation is over: then not executable, and scrubbed.
    pub discardable: bool,
    /// Zeros wherever no section lies.
    pub bytes: Pages<'a>,
    /// Which sections its bytes are of, in order.
    pub parts: Vec<Part>,
}

/// A section in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The section's name, for people.
    pub section: SmolStr,
    /// Bytes from the start of the segment.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Segment<'_> {
    /// How many bytes.
    pub fn size(&self) -> u64 {
        widen(self.bytes.count()).saturating_mul(PAGE_SIZE)
    }

    /// Every page with its address.
    pub fn pages(&self) -> impl Iterator<Item = (Gva, &[u8; PAGE])> {
        (self.start.0..).step_by(PAGE).map(Gva).zip(self.bytes.iter())
    }
}

impl fmt::Debug for Segment<'_> {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, start, kind, discardable, parts, .. } = self;
        let discardable = if *discardable { ", discardable" } else { "" };
        write!(f, "{name} at {start}, {} pages, {kind}{discardable}: {parts:?}", self.bytes.count())
    }
}

/// Whether `len` bytes from `start` are addresses of a kernel: canonical (five-level paging: 57 bits) and in the upper half.
pub(super) fn is_kernel_range(start: u64, len: u64) -> bool {
    start >= 0xFF00_0000_0000_0000 && start.checked_add(len).is_some()
}

/// `len` rounded up to whole pages; `None` above [`MAX_IMAGE`].
pub(super) fn whole_pages(len: u64) -> Option<usize> {
    let len = len.checked_next_multiple_of(PAGE_SIZE).filter(|len| *len <= MAX_IMAGE)?;
    u32::try_from(len).ok().map(index)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds() {
        assert_eq!((whole_pages(0), whole_pages(1), whole_pages(4097)), (Some(0), Some(4096), Some(8192)));
        assert_eq!((whole_pages(MAX_IMAGE), whole_pages(MAX_IMAGE + 1), whole_pages(u64::MAX)), (Some(256 << 20), None, None));
        assert!(is_kernel_range(0xFF00_0000_0000_0000, 1) && !is_kernel_range(0xFEFF_FFFF_FFFF_F000, 1));
        assert!(!is_kernel_range(0xFFFF_FFFF_FFFF_F000, 0x1000), "its end is no address");
        assert!(!is_kernel_range(0x1000, 1));
    }
}
