//! What a module looks like in memory, and the comparison with what stands there.

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

use super::{Exports, Refusal};
use crate::{
    addr::{Gva, PAGE_SIZE},
    bytes::{index, widen},
    finding::{Code, Note},
    frames::Kind,
    status::HvStatus,
};

/// Most bytes that a module may take in memory.
pub const MAX_IMAGE: u64 = 256 << 20;

/// [`PAGE_SIZE`], for lengths of slices.
pub(super) const PAGE: usize = 4096;

/// What a module looks like in memory when it was loaded as it was signed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Expected {
    /// In order of address; no two share a page.
    pub segments: Vec<Segment>,
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
pub struct Segment {
    /// What it is, for people: the section's name, or that of the class of sections.
    pub name: String,
    /// Address of the first byte: of a page.
    pub start: Gva,
    /// What the frames become.
    pub kind: Kind,
    /// Whether it is gone when the module's initialisation is over: then not executable, and scrubbed.
    pub discardable: bool,
    /// Whole pages; zeros wherever no section lies.
    pub bytes: Vec<u8>,
    /// Which sections its bytes are of, in order.
    pub parts: Vec<Part>,
}

/// A section in a segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Part {
    /// The section's name, for people.
    pub section: String,
    /// Bytes from the start of the segment.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
}

impl Segment {
    /// How many pages.
    pub fn page_count(&self) -> u64 {
        widen(self.bytes.len()) / PAGE_SIZE
    }

    /// Every page with its address.
    pub fn pages(&self) -> impl Iterator<Item = (Gva, &[u8; PAGE])> {
        (self.start.0..).step_by(PAGE).map(Gva).zip(self.bytes.as_chunks().0)
    }
}

impl fmt::Debug for Segment {
    /// Without the bytes.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { name, start, kind, discardable, parts, .. } = self;
        let discardable = if *discardable { ", discardable" } else { "" };
        write!(f, "{name} at {start}, {} pages, {kind}{discardable}: {parts:?}", self.page_count())
    }
}

/// Memory is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Difference {
    /// The first byte that differs.
    #[error("{at}: {found:#04x} stands where {expected:#04x} belongs")]
    Differs {
        /// Where.
        at: Gva,
        /// What the signed file says.
        expected: u8,
        /// What stands there.
        found: u8,
    },
    /// The page at this address cannot be read.
    #[error("{at}: {status}")]
    Unreadable {
        /// Where.
        at: Gva,
        /// Why.
        status: HvStatus,
    },
}

impl From<Difference> for Refusal {
    fn from(difference: Difference) -> Self {
        let status = match difference {
            Difference::Differs { .. } => HvStatus::ACCESS_DENIED,
            Difference::Unreadable { status, .. } => status,
        };
        Self { note: Note::new(Code::MemMismatch, difference.to_string()), status }
    }
}

impl Expected {
    /// Compares memory with this, every byte but those of the [cookie](Self::security_cookie). `read` fills in the page at an address.
    ///
    /// # Errors
    /// The first difference, in order of address; the first page that `read` has no bytes of.
    pub fn compare(&self, mut read: impl FnMut(Gva, &mut [u8]) -> Result<(), HvStatus>) -> Result<(), Difference> {
        let mut found = [0; PAGE];
        for (at, expected) in self.segments.iter().flat_map(Segment::pages) {
            read(at, &mut found).map_err(|status| Difference::Unreadable { at, status })?;
            self.accept_cookie(at, expected, &mut found);
            if found != *expected {
                let differing = (at.0..).zip(expected.iter().zip(&found)).find(|(_, (expected, found))| expected != found);
                if let Some((at, (expected, found))) = differing {
                    return Err(Difference::Differs { at: Gva(at), expected: *expected, found: *found });
                }
            }
        }
        Ok(())
    }

    /// Makes the cookie, if it is in the page at `at`, what it was before it was set.
    fn accept_cookie(&self, at: Gva, expected: &[u8; PAGE], found: &mut [u8; PAGE]) {
        let into = self.security_cookie.and_then(|cookie| usize::try_from(cookie.0.checked_sub(at.0)?).ok());
        let Some(cookie) = into.and_then(|into| into.checked_add(8).map(|end| into..end)) else { return };
        if let (Some(to), Some(from)) = (found.get_mut(cookie.clone()), expected.get(cookie)) {
            to.copy_from_slice(from);
        }
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
    #![expect(clippy::indexing_slicing, clippy::arithmetic_side_effects, clippy::as_conversions, reason = "tests")]
    #![expect(clippy::cast_possible_truncation, reason = "tests")]

    use super::*;

    const BASE: u64 = 0xFFFF_F800_0000_0000;

    fn expected() -> Expected {
        let segment = |page: u64, kind, fill: u8, pages: usize| Segment {
            name: String::new(),
            start: Gva(BASE + page * PAGE_SIZE),
            kind,
            discardable: false,
            bytes: vec![fill; pages * PAGE],
            parts: Vec::new(),
        };
        let segments = vec![segment(0, Kind::Code, 0xCC, 2), segment(5, Kind::Data, 0, 1)];
        Expected { segments, entry: None, security_cookie: Some(Gva(BASE + 5 * PAGE_SIZE + 16)), exports: Arc::default() }
    }

    /// Compares with memory in which the bytes at these offsets from the base are changed.
    fn compare(changes: &[(u64, u8)]) -> Result<(), Difference> {
        let expected = expected();
        let mut memory = vec![0; 6 * PAGE];
        memory[..2 * PAGE].fill(0xCC);
        for (at, value) in changes {
            memory[*at as usize] = *value;
        }
        expected.compare(|at, page| {
            let at = (at.0 - BASE) as usize;
            page.copy_from_slice(&memory[at..at + PAGE]);
            Ok(())
        })
    }

    #[test]
    fn every_byte_counts_but_the_cookie() {
        assert_eq!(compare(&[]), Ok(()));
        assert_eq!(compare(&[(0x2000, 1), (0x4FFF, 1)]), Ok(()), "no pages of the module");
        let differs = |at, expected, found| Err(Difference::Differs { at: Gva(BASE + at), expected, found });
        assert_eq!(compare(&[(0, 0xC3)]), differs(0, 0xCC, 0xC3));
        assert_eq!(compare(&[(0x5000, 1), (0x1FFF, 0)]), differs(0x1FFF, 0xCC, 0));
        for at in 0x5010..0x5018 {
            assert_eq!(compare(&[(at, 7)]), Ok(()));
        }
        assert_eq!(compare(&[(0x500F, 7)]), differs(0x500F, 0, 7));
        assert_eq!(compare(&[(0x5018, 7)]), differs(0x5018, 0, 7));
        assert_eq!(compare(&[(0x5FFF, 7)]), differs(0x5FFF, 0, 7));
    }

    #[test]
    fn what_cannot_be_read_is_no_match() {
        let mut pages = 0;
        let result = expected().compare(|at, page| {
            pages += 1;
            page.fill(0xCC);
            if at.0 == BASE + PAGE_SIZE { Err(HvStatus::NOT_FOUND) } else { Ok(()) }
        });
        let difference = Difference::Unreadable { at: Gva(BASE + PAGE_SIZE), status: HvStatus::NOT_FOUND };
        assert_eq!((result, pages), (Err(difference), 2));
        let refusal = Refusal::from(difference);
        assert_eq!((refusal.note.code, refusal.status), (Code::MemMismatch, HvStatus::NOT_FOUND));
    }

    #[test]
    fn bounds() {
        assert_eq!((whole_pages(0), whole_pages(1), whole_pages(4097)), (Some(0), Some(4096), Some(8192)));
        assert_eq!((whole_pages(MAX_IMAGE), whole_pages(MAX_IMAGE + 1), whole_pages(u64::MAX)), (Some(256 << 20), None, None));
        assert!(is_kernel_range(0xFF00_0000_0000_0000, 1) && !is_kernel_range(0xFEFF_FFFF_FFFF_F000, 1));
        assert!(!is_kernel_range(0xFFFF_FFFF_FFFF_F000, 0x1000), "its end is no address");
        assert!(!is_kernel_range(0x1000, 1));
    }
}
