//! Ranges of pages taken apart as the levels of a table take them apart.

use core::iter;

use super::entry::LeafSize;
use crate::addr::{Frame, Gpn, GpnRange, PAGE_SHIFT, PHYSICAL_BITS};

/// Entries of a table.
pub(super) const ENTRIES: usize = 512;
const INDEX_BITS: u32 = 9;
/// The level of the root.
pub(super) const ROOT_LEVEL: u32 = 4;

/// How many pages an entry of a level is about, as a power of two.
pub(super) const fn shift(level: u32) -> u32 {
    level.wrapping_sub(1).wrapping_mul(INDEX_BITS)
}

/// Pages from `start` and before `end`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Span {
    pub(super) start: u64,
    pub(super) end: u64,
}

/// What of a span falls to one entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Part {
    /// Which entry of its table.
    pub(super) index: usize,
    pub(super) span: Span,
    /// Whether that is all that the entry is about.
    pub(super) whole: bool,
}

impl Span {
    /// Every page that four levels reach: 48 bits of address.
    pub(super) const ALL: Self = Self { start: 0, end: 1 << INDEX_BITS.saturating_mul(ROOT_LEVEL) };

    /// The pages of a range; `None` if four levels do not reach them.
    pub(super) fn of(range: GpnRange) -> Option<Self> {
        let end = range.start.0.checked_add(range.pages)?;
        (end <= Self::ALL.end).then_some(Self { start: range.start.0, end })
    }

    pub(super) const fn len(self) -> u64 {
        self.end.saturating_sub(self.start)
    }

    /// As a range.
    pub(super) const fn range(self) -> GpnRange {
        GpnRange { start: Gpn(self.start), pages: self.len() }
    }

    /// What falls to each entry of a table of a level. The span must lie within what the table is about.
    pub(super) fn parts(self, level: u32) -> impl Iterator<Item = Part> {
        let below = low_bits(level);
        let mut at = self.start;
        iter::from_fn(move || {
            let start = at;
            at = (start | below).saturating_add(1).min(self.end);
            let span = Self { start, end: at };
            let whole = start & below == 0 && at & below == 0;
            (start < self.end).then(|| Part { index: index(start, level), span, whole })
        })
    }
}

/// All pages that the entry of a page is about.
pub(super) const fn covered(gpn: u64, level: u32) -> Span {
    let below = low_bits(level);
    Span { start: gpn & !below, end: (gpn | below).saturating_add(1) }
}

/// Which entry of its table of a level is the page's.
pub(super) fn index(gpn: u64, level: u32) -> usize {
    usize::try_from(gpn.wrapping_shr(shift(level)) & 0x1ff).unwrap_or_default()
}

const fn low_bits(level: u32) -> u64 {
    1_u64.wrapping_shl(shift(level)).saturating_sub(1)
}

/// How far frames are from their pages, where successive pages have successive frames.
#[derive(Clone, Copy, Debug)]
pub(super) struct Backing(u64);

impl Backing {
    /// `None` if the last frame would have too many bits.
    pub(super) fn new(span: Span, first: Frame) -> Option<Self> {
        let end = first.0.checked_add(span.len())?;
        (end <= 1 << PHYSICAL_BITS.saturating_sub(PAGE_SHIFT)).then(|| Self(first.0.wrapping_sub(span.start)))
    }

    pub(super) const fn frame(self, gpn: u64) -> u64 {
        gpn.wrapping_add(self.0)
    }

    /// Whether one leaf of a level can map the part.
    pub(super) fn fits(self, part: &Part, level: u32) -> bool {
        part.whole && LeafSize::at(level).is_some() && self.frame(part.span.start) & low_bits(level) == 0
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use alloc::vec::Vec;

    use super::*;

    #[test]
    fn spans_fall_into_entries() {
        let parts =
            |start, end, level| Span { start, end }.parts(level).map(|p| (p.index, p.span.start, p.span.end, p.whole)).collect::<Vec<_>>();
        assert_eq!(
            parts(0x1fe, 0x603, 2),
            [(0, 0x1fe, 0x200, false), (1, 0x200, 0x400, true), (2, 0x400, 0x600, true), (3, 0x600, 0x603, false)]
        );
        assert_eq!(parts(0x203, 0x205, 1), [(3, 0x203, 0x204, true), (4, 0x204, 0x205, true)]);
        assert_eq!(parts(7, 7, 1), []);
        assert_eq!(parts((1 << 36) - 1, 1 << 36, 4), [(511, (1 << 36) - 1, 1 << 36, false)]);
        assert_eq!(covered(0x40201, 3), Span { start: 0x40000, end: 0x80000 });
    }

    #[test]
    fn frames_follow_pages() {
        let span = Span { start: 0x400, end: 0x600 };
        let part = span.parts(2).next().unwrap();
        let fits = |first| Backing::new(span, Frame(first)).map(|b| (b.frame(0x401), b.fits(&part, 2)));
        assert_eq!(fits(0), Some((1, true)));
        assert_eq!(fits(0x1000), Some((0x1001, true)));
        assert_eq!(fits(0x1001), Some((0x1002, false)));
        assert_eq!(fits((1 << 40) - 0x1ff), None);
        assert_eq!(Span::of(GpnRange { start: Gpn(1 << 36), pages: 1 }), None);
    }
}
