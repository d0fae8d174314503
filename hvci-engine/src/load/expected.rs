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

use smol_str::SmolStr;

use super::{Exports, Pages, Refusal, pages::PAGE};
use crate::{
    addr::{Gva, PAGE_SIZE},
    bytes::{index, widen},
    finding::{Code, Note},
    frames::Kind,
    status::HvStatus,
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

impl Expected<'_> {
    /// Compares memory with this, every byte but those of the [cookie](Self::security_cookie). `compare` gets the number of a page
    /// of the module, counted from 0 over all segments, bytes of that page and the address that they belong at, and says which of them is another
    /// there, and what stands there ([`Host::compare`]).
    ///
    /// # Errors
    /// The first difference, in order of address; the first page that `compare` cannot look at.
    ///
    /// [`Host::compare`]: crate::host::Host::compare
    pub fn compare(&self, mut compare: impl FnMut(usize, Gva, &[u8]) -> Result<Option<(usize, u8)>, HvStatus>) -> Result<(), Difference> {
        let mut piece = |page: usize, at: u64, expected: &[u8]| match compare(page, Gva(at), expected) {
            Ok(None) => Ok(()),
            Ok(Some((into, found))) => {
                let expected = expected.get(into).copied().unwrap_or_default();
                Err(Difference::Differs { at: Gva(at.saturating_add(widen(into))), expected, found })
            }
            Err(status) => Err(Difference::Unreadable { at: Gva(at), status }),
        };
        for (number, (at, page)) in self.segments.iter().flat_map(Segment::pages).enumerate() {
            match self.around_cookie(at, page) {
                None => piece(number, at.0, page)?,
                Some((before, behind)) => {
                    let end = at.0.saturating_add(PAGE_SIZE);
                    [(at.0, before), (end.saturating_sub(widen(behind.len())), behind)]
                        .into_iter()
                        .filter(|(_, bytes)| !bytes.is_empty())
                        .try_for_each(|(at, bytes)| piece(number, at, bytes))?;
                }
            }
        }
        Ok(())
    }

    /// The bytes before and behind the cookie, if it is in the page at `at`.
    fn around_cookie<'p>(&self, at: Gva, page: &'p [u8; PAGE]) -> Option<(&'p [u8], &'p [u8])> {
        let into = usize::try_from(self.security_cookie?.0.checked_sub(at.0)?).ok()?;
        let (before, rest) = page.split_at_checked(into)?;
        Some((before, rest.get(8..)?))
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

    fn expected() -> Expected<'static> {
        let segment = |page: u64, kind, fill: u8, pages: usize| Segment {
            name: "".into(),
            start: Gva(BASE + page * PAGE_SIZE),
            kind,
            discardable: false,
            bytes: Pages::computed(vec![fill; pages * PAGE]),
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
        expected.compare(|_, at, bytes| {
            let found = &memory[(at.0 - BASE) as usize..];
            Ok(bytes.iter().zip(found).position(|(a, b)| a != b).map(|into| (into, found[into])))
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
        let result = expected().compare(|_, at, _| {
            pages += 1;
            if at.0 == BASE + PAGE_SIZE { Err(HvStatus::NOT_FOUND) } else { Ok(None) }
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
