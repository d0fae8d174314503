//! Bytes of successive pages. Where they are those of the signed file, they are not copied.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use core::ops::Range;
use std::borrow::Cow;

use crate::{crypto::Job, digest::DigestAlg};

/// [`PAGE_SIZE`](crate::addr::PAGE_SIZE), for lengths of slices.
pub(super) const PAGE: usize = 4096;

static ZEROS: [u8; PAGE] = [0; PAGE];

/// SHA-256 of each page, or part of one, to be calculated side by side.
pub(super) fn page_jobs<'p>(parts: impl Iterator<Item = &'p [u8]>) -> Vec<Job<'p>> {
    parts.map(|part| Job { alg: DigestAlg::Sha256, pieces: vec![part] }).collect()
}

/// Bytes of whole pages.
#[derive(Clone, Debug)]
pub struct Pages<'a>(Store<'a>);

#[derive(Clone, Debug)]
enum Store<'a> {
    /// Computed, nearly every page of them.
    Whole(Vec<u8>),
    /// Mostly the file's.
    Each(Vec<Page<'a>>),
}

#[derive(Clone, Debug)]
struct Page<'a> {
    shared: &'a [u8; PAGE],
    /// in place of them
    own: Option<Box<[u8; PAGE]>>,
}

impl<'a> Page<'a> {
    const fn shared(shared: &'a [u8; PAGE]) -> Self {
        Self { shared, own: None }
    }

    fn bytes(&self) -> &[u8; PAGE] {
        self.own.as_deref().unwrap_or(self.shared)
    }

    fn bytes_mut(&mut self) -> &mut [u8; PAGE] {
        self.own.get_or_insert_with(|| Box::new(*self.shared))
    }
}

impl<'a> Pages<'a> {
    /// As many bytes of `file` as there are, then zeros, `count` pages in all.
    pub(super) fn of_file(file: &'a [u8], count: usize) -> Self {
        let (full, rest) = file.as_chunks::<PAGE>();
        let mut pages = Vec::with_capacity(count);
        pages.extend(full.iter().take(count).map(Page::shared));
        if pages.len() < count && !rest.is_empty() {
            let mut last = Page::shared(&ZEROS);
            if let Some(to) = last.bytes_mut().get_mut(..rest.len()) {
                to.copy_from_slice(rest);
            }
            pages.push(last);
        }
        pages.resize(count, Page::shared(&ZEROS));
        Self(Store::Each(pages))
    }

    /// `bytes`, of whole pages: what is more is left out.
    pub(super) fn computed(bytes: Vec<u8>) -> Self {
        Self(Store::Whole(bytes))
    }

    /// How many pages.
    pub fn count(&self) -> usize {
        match &self.0 {
            Store::Whole(bytes) => bytes.as_chunks::<PAGE>().0.len(),
            Store::Each(pages) => pages.len(),
        }
    }

    /// Every page, in order.
    pub fn iter(&self) -> impl Iterator<Item = &[u8; PAGE]> {
        let (whole, each): (&[[u8; PAGE]], &[Page<'a>]) = match &self.0 {
            Store::Whole(bytes) => (bytes.as_chunks().0, &[]),
            Store::Each(pages) => (&[], pages),
        };
        whole.iter().chain(each.iter().map(Page::bytes))
    }

    #[cfg(test)]
    pub(super) fn to_vec(&self) -> Vec<u8> {
        self.iter().flatten().copied().collect()
    }

    /// Bytes of this range, copied only if they are in several pages.
    pub fn get(&self, range: Range<usize>) -> Option<Cow<'_, [u8]>> {
        match &self.0 {
            Store::Whole(bytes) => bytes.get(range).map(Cow::Borrowed),
            Store::Each(pages) => {
                if let Some((page, within)) = within_page(&range) {
                    return pages.get(page)?.bytes().get(within).map(Cow::Borrowed);
                }
                let first = range.start / PAGE;
                let touched = pages.get(first..range.end.div_ceil(PAGE))?;
                let (skipped, len) = (range.start % PAGE, range.end.checked_sub(range.start)?);
                Some(Cow::Owned(touched.iter().flat_map(|page| page.bytes()).skip(skipped).take(len).copied().collect()))
            }
        }
    }

    /// Bytes of this range, to change them. `None` too for a range over the end of a page whose neighbour lies elsewhere.
    pub(super) fn get_mut(&mut self, range: Range<usize>) -> Option<&mut [u8]> {
        match &mut self.0 {
            Store::Whole(bytes) => bytes.get_mut(range),
            Store::Each(pages) => {
                let (page, within) = within_page(&range)?;
                pages.get_mut(page)?.bytes_mut().get_mut(within)
            }
        }
    }
}

/// The page that the whole range is in, and the range there.
fn within_page(range: &Range<usize>) -> Option<(usize, Range<usize>)> {
    let page = range.start / PAGE;
    let start = range.start % PAGE;
    let end = start.checked_add(range.end.checked_sub(range.start)?)?;
    (end <= PAGE).then_some((page, start..end))
}

/// The same bytes, wherever they stand.
impl PartialEq for Pages<'_> {
    fn eq(&self, other: &Self) -> bool {
        self.iter().eq(other.iter())
    }
}

impl Eq for Pages<'_> {}

#[cfg(test)]
mod tests {
    #![expect(clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

    use proptest::prelude::*;

    use super::*;

    /// The file's bytes and zeros behind them.
    fn naive(file: &[u8], count: usize) -> Vec<u8> {
        let mut bytes = file[..file.len().min(count * PAGE)].to_vec();
        bytes.resize(count * PAGE, 0);
        bytes
    }

    #[test]
    fn only_what_is_changed_is_copied() {
        let file = vec![7; 2 * PAGE + 3];
        let mut pages = Pages::of_file(&file, 5);
        let shared = |pages: &Pages<'_>| match &pages.0 {
            Store::Each(pages) => pages.iter().map(|page| page.own.is_none()).collect::<Vec<_>>(),
            Store::Whole(_) => Vec::new(),
        };
        assert_eq!(shared(&pages), [true, true, false, true, true], "the third is part file, part zeros");
        pages.get_mut(PAGE + 8..PAGE + 16).unwrap().fill(1);
        assert_eq!(shared(&pages), [true, false, false, true, true]);
        assert_eq!((file[PAGE + 8], ZEROS[0]), (7, 0), "what is shared stays");
        pages.get_mut(4 * PAGE..4 * PAGE + 1).unwrap().fill(1);
        let bytes = pages.to_vec();
        assert_eq!((bytes[4 * PAGE], bytes[3 * PAGE], ZEROS[0]), (1, 0, 0));
    }

    proptest! {
        #[test]
        fn bytes_are_those_of_one_vector(
            len in 0..4 * PAGE,
            count in 0..4_usize,
            changes in prop::collection::vec((0..4 * PAGE, any::<[u8; 8]>()), 0..4),
            ranges in prop::collection::vec((0..5 * PAGE, 0..2 * PAGE), 0..8),
        ) {
            let file: Vec<u8> = (0..=250).cycle().take(len).collect();
            let mut naive = naive(&file, count);
            let mut pages = Pages::of_file(&file, count);
            for (at, bytes) in changes {
                let place = pages.get_mut(at..at + 8);
                prop_assert_eq!(place.is_some(), at + 8 <= naive.len() && at % PAGE + 8 <= PAGE);
                if let Some(place) = place {
                    place.copy_from_slice(&bytes);
                    naive[at..at + 8].copy_from_slice(&bytes);
                }
            }
            prop_assert_eq!(pages.count(), count);
            prop_assert_eq!(pages.to_vec(), naive.clone());
            for (at, len) in ranges {
                let bytes = pages.get(at..at + len);
                prop_assert_eq!(bytes.as_deref(), naive.get(at..at + len));
            }
            prop_assert_eq!(&pages, &Pages::computed(naive));
        }
    }
}
