//! The comparison of a module's pages with what stands in memory, every byte of them.
//!
//! It goes in steps of a few hundred bytes, to be done [beside](crate::crypto::digest_jobs_beside) the digest of the file: so a step calls nobody.
//! Where a page is special, or something is, all of the page is looked at outside the line, one piece after the other: the eight bytes of the
//! [cookie](Expected::security_cookie) are not compared, and calls of imports may stand in either of two forms ([`Standing`]).

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use core::{
    iter,
    sync::atomic::{AtomicU64, Ordering},
};
use std::collections::{BTreeMap, BTreeSet};

use super::{Expected, Refusal, Segment, import_site::Standing, pages::PAGE, patch::Site};
use crate::{
    addr::{Gpa, Gpn, Gva, PAGE_SIZE},
    bytes::widen,
    finding::{Code, Note},
    host::Host,
    status::HvStatus,
};

const WORDS: usize = PAGE / 8;
/// Eight words.
const LINES: usize = PAGE / 64;
/// Lines of one step.
const STEP: usize = 4;

/// A comparison on its way. Nobody may write to the pages until it is over.
pub(super) struct Comparison<'c, P> {
    host: &'c dyn Host,
    cookie: Option<Gva>,
    standing: Standing<'c>,
    /// those to come
    pages: P,
    is_over: bool,
    /// the page that it has come to
    page: Page<'c>,
    words: &'c [AtomicU64; WORDS],
    /// how many lines of it are done
    line: usize,
    /// bits that differ in them
    differing: u64,
    outcome: Result<(), Difference>,
}

/// What belongs into a page.
#[derive(Clone, Copy)]
pub(super) struct Page<'c> {
    at: Gva,
    bytes: &'c [u8; PAGE],
    /// the guest page that it is in; `None`: it is to come
    gpn: Option<Gpn>,
}

/// Memory is not what it must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Difference {
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

impl<'c> Comparison<'c, iter::Empty<Page<'c>>> {
    /// Compares what the guest pages `gpns` hold, which are those of `expected` in order, with what is expected of them. Of `sites` each may have
    /// either form.
    pub(super) fn new(
        expected: &'c Expected<'_>,
        gpns: &'c [Option<Gpn>],
        sites: &'c BTreeMap<Gva, Site>,
        host: &'c dyn Host,
    ) -> Comparison<'c, impl Iterator<Item = Page<'c>>> {
        static NO_WORDS: [AtomicU64; WORDS] = [const { AtomicU64::new(0) }; WORDS];
        // a page of which nobody says where it is, is none that can be read
        let gpns = gpns.iter().copied().chain(iter::repeat(Some(Gpn(u64::MAX))));
        let pages = expected.segments.iter().flat_map(Segment::pages).zip(gpns);
        Comparison {
            host,
            cookie: expected.security_cookie,
            standing: Standing::new(sites),
            pages: pages.map(|((at, bytes), gpn)| Page { at, bytes, gpn }),
            is_over: false,
            page: Page { at: Gva(0), bytes: &[0; PAGE], gpn: None },
            words: &NO_WORDS,
            line: LINES,
            differing: 0,
            outcome: Ok(()),
        }
    }
}

impl<'c, P: Iterator<Item = Page<'c>>> Comparison<'c, P> {
    /// Compares a little more.
    #[inline(always)]
    pub(super) fn step(&mut self) {
        if self.line == LINES && !self.is_over {
            self.turn();
        }
        self.lines(STEP);
    }

    /// Compares the rest. Answers which sites hold the second of their forms.
    ///
    /// # Errors
    /// The first difference, in order of address; the first page that cannot be read.
    pub(super) fn finish(mut self) -> Result<BTreeSet<Gva>, Difference> {
        while !self.is_over {
            self.lines(LINES);
            self.turn();
        }
        self.outcome?;
        self.standing.whole()
    }

    /// Compares the next lines of the page.
    #[inline(always)]
    fn lines(&mut self, count: usize) {
        let bytes = self.page.bytes.as_chunks::<64>().0.get(self.line..).unwrap_or_default();
        let words = self.words.as_chunks::<8>().0.get(self.line..).unwrap_or_default();
        // nearly always there is no difference: one look at the end costs less than one a line
        let (mut even, mut odd) = (self.differing, 0);
        for (line, words) in bytes.iter().zip(words).take(count) {
            for (bytes, words) in line.as_chunks::<16>().0.iter().zip(words.as_chunks::<2>().0) {
                let ([low, high], _) = bytes.as_chunks::<8>() else { continue };
                let [even_word, odd_word] = words;
                even |= even_word.load(Ordering::Relaxed) ^ u64::from_le_bytes(*low);
                odd |= odd_word.load(Ordering::Relaxed) ^ u64::from_le_bytes(*high);
            }
        }
        self.differing = even | odd;
        self.line = self.line.saturating_add(count).min(LINES);
    }

    /// Goes to the next page.
    #[cold]
    #[inline(never)]
    fn turn(&mut self) {
        if core::mem::take(&mut self.differing) != 0 {
            self.outcome = self.whole(self.page);
        }
        let Some(page) = self.pages.next().filter(|_| self.outcome.is_ok()) else {
            self.is_over = true;
            return;
        };
        let is_plain = self.is_plain(page);
        match page.gpn.filter(|_| is_plain).and_then(|gpn| self.host.words(gpn)) {
            Some(words) => (self.page, self.words, self.line) = (page, words, 0),
            // it comes as it is signed, or not at all
            None if is_plain && page.gpn.is_none() => {}
            None => {
                self.outcome = self.whole(page);
                self.is_over = self.outcome.is_err();
            }
        }
    }

    /// Whether every byte of it must be as expected.
    fn is_plain(&self, page: Page<'_>) -> bool {
        !self.standing.is_near(page.at) && self.cookie.is_none_or(|cookie| cookie.page() != page.at)
    }

    /// Compares one page, at any rate.
    fn whole(&mut self, page: Page<'_>) -> Result<(), Difference> {
        let (before, behind) = around(self.cookie, page).unwrap_or((page.bytes, &[]));
        let end = page.at.0.saturating_add(PAGE_SIZE);
        for (at, bytes) in [(page.at, before), (Gva(end.saturating_sub(widen(behind.len()))), behind)] {
            let gpa = page.gpn.map(|gpn| gpn.gpa().map(|start| Gpa(start.0 | (at.0 % PAGE_SIZE))).ok_or(HvStatus::INVALID_PARAMETER));
            let found = gpa.transpose().and_then(|gpa| self.standing.compare(at, bytes, gpa, self.host));
            if let Some((into, found)) = found.map_err(|status| Difference::Unreadable { at, status })? {
                let expected = bytes.get(into).copied().unwrap_or_default();
                return Err(Difference::Differs { at: Gva(at.0.saturating_add(widen(into))), expected, found });
            }
        }
        Ok(())
    }
}

/// The bytes before and behind the cookie, if it is in this page.
fn around<'p>(cookie: Option<Gva>, page: Page<'p>) -> Option<(&'p [u8], &'p [u8])> {
    let into = usize::try_from(cookie?.0.checked_sub(page.at.0)?).ok()?;
    let (before, rest) = page.bytes.split_at_checked(into)?;
    Some((before, rest.get(8..)?))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::as_conversions, clippy::indexing_slicing, reason = "tests")]
    #![expect(clippy::cast_possible_truncation, reason = "tests")]

    use std::sync::Arc;

    use proptest::prelude::*;

    use super::*;
    use crate::{
        access::MapGpaFlags,
        addr::{Frame, GpnRange, Vtl},
        frames::Kind,
        host::{Capabilities, Partial},
        load::Pages,
    };

    const BASE: u64 = 0xFFFF_F800_0000_0000;
    const COOKIE: u64 = 5 * PAGE_SIZE + 16;

    /// Guest pages from 0 on, some of which the host has at hand. Page 99 cannot be read.
    struct Memory {
        pages: Vec<[AtomicU64; WORDS]>,
        at_hand: Vec<bool>,
    }

    impl Host for Memory {
        fn capabilities(&self) -> Capabilities {
            Capabilities::ALL
        }

        fn frame(&self, gpn: Gpn) -> Option<Frame> {
            Some(Frame(gpn.0))
        }

        fn aliases(&self, _: Frame, _: &mut dyn FnMut(Gpn)) {}

        fn protect(&self, _: Vtl, _: &[GpnRange], _: MapGpaFlags) -> Result<(), Partial> {
            Ok(())
        }

        fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
            Ok(())
        }

        fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
            let page = self.pages.get(gpa.gpn().0 as usize).ok_or(HvStatus::NOT_FOUND)?;
            let bytes: Vec<u8> = page.iter().flat_map(|word| word.load(Ordering::Relaxed).to_le_bytes()).collect();
            buffer.copy_from_slice(&bytes[gpa.offset() as usize..][..buffer.len()]);
            Ok(())
        }

        fn write(&self, _: Gpa, _: &[u8]) -> Result<(), HvStatus> {
            Err(HvStatus::OPERATION_DENIED)
        }

        fn words(&self, gpn: Gpn) -> Option<&[AtomicU64; WORDS]> {
            self.pages.get(gpn.0 as usize).filter(|_| self.at_hand[gpn.0 as usize])
        }
    }

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
        Expected { segments, entry: None, security_cookie: Some(Gva(BASE + COOKIE)), exports: Arc::default() }
    }

    /// Compares with memory in which the bytes at these offsets from the base are changed, after `steps` steps at once.
    fn compare_in(at_hand: [bool; 3], steps: usize, changes: &[(u64, u8)]) -> Result<(), Difference> {
        let expected = expected();
        let mut bytes = [vec![0xCC; 2 * PAGE], vec![0; PAGE]].concat();
        for (at, value) in changes {
            let page = if *at < 5 * PAGE_SIZE { *at } else { at - 3 * PAGE_SIZE };
            bytes[page as usize] = *value;
        }
        let words = |page: &[u8; PAGE]| core::array::from_fn(|i| AtomicU64::new(u64::from_le_bytes(page.as_chunks().0[i])));
        let memory = Memory { pages: bytes.as_chunks().0.iter().map(words).collect(), at_hand: at_hand.to_vec() };
        let gpns = [Some(Gpn(0)), Some(Gpn(1)), Some(Gpn(2))];
        let none = BTreeMap::new();
        let mut comparison = Comparison::new(&expected, &gpns, &none, &memory);
        (0..steps).for_each(|_| comparison.step());
        comparison.finish().map(drop)
    }

    fn compare(changes: &[(u64, u8)]) -> Result<(), Difference> {
        let outcome = compare_in([true; 3], 0, changes);
        assert_eq!(compare_in([false; 3], 0, changes), outcome);
        outcome
    }

    const fn differs(at: u64, expected: u8, found: u8) -> Result<(), Difference> {
        Err(Difference::Differs { at: Gva(BASE + at), expected, found })
    }

    #[test]
    fn every_byte_counts_but_the_cookie() {
        assert_eq!(compare(&[]), Ok(()));
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
        let expected = expected();
        let memory = Memory { pages: Vec::new(), at_hand: Vec::new() };
        let none = BTreeMap::new();
        for (gpns, status) in [(&[Some(Gpn(99))][..], HvStatus::NOT_FOUND), (&[], HvStatus::INVALID_PARAMETER)] {
            let difference = Difference::Unreadable { at: Gva(BASE), status };
            assert_eq!(Comparison::new(&expected, gpns, &none, &memory).finish(), Err(difference));
            let refusal = Refusal::from(difference);
            assert_eq!((refusal.note.code, refusal.status), (Code::MemMismatch, status));
        }
        // those that are to come are not compared yet
        assert_eq!(Comparison::new(&expected, &[None; 3], &none, &memory).finish(), Ok(BTreeSet::new()));
    }

    proptest! {
        #[test]
        fn steps_and_places_make_no_difference(
            at_hand: [bool; 3],
            steps in 0..70_usize,
            changes in prop::collection::vec((0..3 * PAGE_SIZE, 1..=255_u8), 0..3),
        ) {
            let place = |at: u64| if at < 2 * PAGE_SIZE { at } else { at + 3 * PAGE_SIZE };
            let belongs = |at: u64| if at < 2 * PAGE_SIZE { 0xCC } else { 0 };
            let changes: BTreeMap<u64, u8> = changes.into_iter().map(|(at, change)| (place(at), belongs(at) ^ change)).collect();
            let first = changes.iter().find(|(at, _)| !(COOKIE..COOKIE + 8).contains(*at));
            let right = first.map_or(Ok(()), |(at, found)| differs(*at, if *at < 2 * PAGE_SIZE { 0xCC } else { 0 }, *found));
            let changes: Vec<(u64, u8)> = changes.into_iter().collect();
            prop_assert_eq!(compare_in(at_hand, steps, &changes), right);
        }
    }
}
