//! A module that is loaded: which pages it has, and whose bytes they hold.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
};

use smol_str::SmolStr;

use super::{Exports, Part, pages::PAGE, patch::Site};
use crate::{
    addr::{Gpn, Gva, PAGE_SIZE},
    bytes::widen,
    digest::Digest,
    frames::Kind,
};

/// A module.
#[derive(Clone, Debug)]
pub struct Module {
    /// The owner of its frames. No two modules of a machine have the same.
    pub id: u32,
    /// What the guest called it.
    pub name: String,
    /// The digest that its signature is over.
    pub digest: Option<Digest>,
    /// Where it is entered, if it is.
    pub entry: Option<Gva>,
    /// In order of address.
    pub segments: Vec<Sealed>,
    /// What other modules may import of it.
    pub exports: Arc<Exports>,
    /// The modules that it imports from: none of them is unloaded before it.
    pub uses: BTreeSet<u32>,
    /// Its code that may be changed.
    pub(super) sites: BTreeMap<Gva, Site>,
    pub(super) life: Life,
}

/// Successive pages of one kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Sealed {
    /// What it is, for people.
    pub name: SmolStr,
    /// Address of the first byte.
    pub start: Gva,
    /// What the frames are.
    pub kind: Kind,
    /// Whether it goes when the initialisation is over.
    pub discardable: bool,
    /// The guest pages, in order of address; `None` for a page of code that is [out](super::Loader::page_out).
    pub pages: Vec<Option<Gpn>>,
    /// Which sections its bytes are of.
    pub parts: Vec<Part>,
}

/// Whether somebody is at a module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Life {
    /// It is being loaded: nothing of it is verified.
    Loading,
    /// It is being changed or unloaded.
    Changing,
    /// It is loaded.
    Live,
}

impl Sealed {
    /// Bytes.
    pub fn size(&self) -> u64 {
        widen(self.pages.len()).saturating_mul(PAGE_SIZE)
    }

    /// Whether the byte at `at` is in it.
    pub fn contains(&self, at: Gva) -> bool {
        at.0.checked_sub(self.start.0).is_some_and(|into| into < self.size())
    }
}

impl Module {
    /// The section that the byte at `at` is of, and its offset there.
    pub fn part_at(&self, at: Gva) -> Option<(&Part, u64)> {
        let segment = self.segments.iter().find(|s| s.contains(at))?;
        let into = at.0.checked_sub(segment.start.0)?;
        let offset = |part: &Part| into.checked_sub(part.offset).filter(|offset| *offset < part.len);
        segment.parts.iter().find_map(|part| Some((part, offset(part)?)))
    }

    /// The guest page that the byte at `at` is in; `None` while it is out.
    pub(super) fn gpn_of(&self, at: Gva) -> Option<Gpn> {
        let segment = self.segments.iter().find(|s| s.contains(at))?;
        let page = at.0.checked_sub(segment.start.0)?.checked_div(PAGE_SIZE)?;
        segment.pages.get(usize::try_from(page).ok()?).copied().flatten()
    }

    /// Has the page of code at `at` be in this guest page, or out.
    pub(super) fn set_page(&mut self, at: Gva, gpn: Option<Gpn>) {
        for segment in self.segments.iter_mut().filter(|s| s.kind == Kind::Code && s.contains(at)) {
            let page = at.0.saturating_sub(segment.start.0) / PAGE_SIZE;
            if let Some(place) = usize::try_from(page).ok().and_then(|page| segment.pages.get_mut(page)) {
                *place = gpn;
            }
        }
    }

    /// The code that may be changed, by the addresses of jump labels and imports.
    pub fn patch_sites(&self) -> impl Iterator<Item = Gva> {
        self.sites.keys().copied()
    }

    /// The sites whose change is begun and not ended.
    pub fn pending_patches(&self) -> impl Iterator<Item = Gva> {
        self.sites.iter().filter(|(_, site)| site.is_pending()).map(|(at, _)| *at)
    }

    /// The addresses of its pages that are out.
    pub fn pages_out(&self) -> impl Iterator<Item = Gva> {
        let pages = self.segments.iter().flat_map(|s| (s.start.0..).step_by(PAGE).map(Gva).zip(&s.pages));
        pages.filter(|(_, gpn)| gpn.is_none()).map(|(at, _)| at)
    }

    /// Whether an address would belong to two.
    pub(super) fn overlaps(&self, others: &[Sealed]) -> bool {
        let overlap = |a: &Sealed, b: &Sealed| a.contains(b.start) || b.contains(a.start);
        self.segments.iter().any(|mine| others.iter().any(|other| overlap(mine, other)))
    }
}
