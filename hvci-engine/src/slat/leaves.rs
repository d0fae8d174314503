//! What is mapped in a range, for whoever checks it or shows it.

use super::{
    entry::{Encoding, Leaf, Mode},
    span::Span,
    table::Slat,
};
use crate::addr::GpnRange;

/// What is mapped, in the order of the pages; made by [`Slat::leaves`].
#[derive(Debug)]
pub struct Leaves<'a, E> {
    slat: &'a Slat<E>,
    /// What has not been looked at.
    rest: Span,
    /// What has been looked at, and may go on.
    open: Option<(Span, Leaf)>,
}

impl<E: Encoding> Slat<E> {
    /// What is mapped in a range: successive pages with successive frames and leaves that are alike are one. The frame is that of the first.
    /// Takes time in the number of leaves, whatever the range. If the tables change meanwhile, each entry is as it was when it was reached.
    pub fn leaves(&self, range: GpnRange) -> Leaves<'_, E> {
        let end = range.start.0.saturating_add(range.pages).min(Span::ALL.end);
        Leaves { slat: self, rest: Span { start: range.start.0, end }, open: None }
    }
}

impl<E: Encoding> Leaves<'_, E> {
    /// The part of the next leaf that lies in the range.
    fn advance(&mut self) -> Option<(Span, Leaf)> {
        while self.rest.start < self.rest.end {
            let start = self.rest.start;
            match self.slat.find(start) {
                Ok(found) => {
                    let span = Span { start, end: found.span.end.min(self.rest.end) };
                    self.rest.start = span.end;
                    return Some((span, found.leaf::<E>(start, Mode { mbec: true }, 0)));
                }
                Err(nothing) => self.rest.start = nothing.span.end,
            }
        }
        None
    }
}

impl<E: Encoding> Iterator for Leaves<'_, E> {
    type Item = (GpnRange, Leaf);

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            let next = self.advance();
            match (self.open, next) {
                (Some((open, leaf)), Some((span, after))) if span.start == open.end && after == leaf.onwards(open.len()) => {
                    self.open = Some((Span { start: open.start, end: span.end }, leaf));
                }
                (None, Some(_)) => self.open = next,
                (done, _) => {
                    self.open = next;
                    return done.map(|(span, leaf)| (span.range(), leaf));
                }
            }
        }
    }
}
