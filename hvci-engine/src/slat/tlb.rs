//! What one virtual processor remembers of a view. It goes on believing it when the tables have changed, as processors do, so that a flush
//! that was forgotten shows.
//!
//! - A translation is remembered for all that its leaf maps: after one access to a page of 2 MiB, 511 others are remembered that were never
//!   touched. Nothing that is not mapped, and no violation, is remembered (Intel SDM volume 3, "Caching Translation Information").
//! - An access that no remembered translation permits ends those that there are and walks again; only that walk can fault. The SDM ("Operations
//!   that Invalidate Cached Mappings", "Guidelines for Use of the INVEPT Instruction") lets a processor fault on what it remembers, has that
//!   violation end the translation, and so lets the second try succeed. Here both tries are one: a fault that a retry would not meet is not
//!   reported, for it stops no access.
//! - A write by a translation remembered as clean walks again too, for a processor must set the dirty bit.
//! - Where a small and a large translation of one page are remembered, either may be used; the one that permits the access is, as the worst
//!   that a processor may do.

use alloc::collections::BTreeMap;

use super::{
    entry::{Encoding, Leaf, LeafSize, Mode},
    table::Slat,
    walk::Violation,
};
use crate::{
    access::Access,
    addr::{Gpa, Gpn, GpnRange},
};

/// Remembered translations of one virtual processor. Two with the same entries are equal, whatever led there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Tlb {
    /// By first page and size.
    entries: BTreeMap<(Gpn, LeafSize), Leaf>,
    capacity: usize,
}

impl Tlb {
    /// An empty one that remembers at most `capacity` translations. If it is full, the one of the lowest page makes place.
    pub const fn new(capacity: usize) -> Self {
        Self { entries: BTreeMap::new(), capacity }
    }

    /// Translates one access: by what is remembered if that permits it, or else by a walk, which is then remembered.
    ///
    /// # Errors
    /// [`Violation`] of the walk.
    pub fn access<E: Encoding>(&mut self, slat: &Slat<E>, gpa: Gpa, access: Access, mode: Mode) -> Result<Leaf, Violation> {
        let must_mark = |leaf: &Leaf| slat.has_accessed_dirty() && access == Access::Write && !leaf.dirty;
        let gpn = gpa.gpn();
        let usable = self.covering(gpn).find(|(_, leaf)| leaf.allows(access, mode) && !must_mark(leaf));
        if let Some((start, leaf)) = usable {
            return Ok(leaf.onwards(gpn.0.saturating_sub(start.0)));
        }
        self.evict(gpn);
        let leaf = slat.walk(gpa, access, mode)?;
        self.remember(gpn, leaf);
        Ok(leaf)
    }

    /// Forgets everything.
    pub fn flush_all(&mut self) {
        self.entries.clear();
    }

    /// Forgets every translation that reaches into the range.
    pub fn flush(&mut self, range: GpnRange) {
        let end = range.start.0.saturating_add(range.pages);
        self.entries.retain(|(start, size), _| start.0 >= end || start.0.saturating_add(size.pages()) <= range.start.0);
    }

    /// Forgets every translation of a page, as a processor may at any time.
    pub fn evict(&mut self, gpn: Gpn) {
        for size in LeafSize::ALL {
            self.entries.remove(&(first_page(gpn, size), size));
        }
    }

    /// What is remembered, in the order of the pages. The frame is that of the first.
    pub fn entries(&self) -> impl Iterator<Item = (GpnRange, Leaf)> {
        self.entries.iter().map(|((start, size), leaf)| (GpnRange { start: *start, pages: size.pages() }, *leaf))
    }

    /// Translations of a page, with the first page of each; the smallest first.
    fn covering(&self, gpn: Gpn) -> impl Iterator<Item = (Gpn, Leaf)> {
        LeafSize::ALL.into_iter().filter_map(move |size| {
            let start = first_page(gpn, size);
            Some((start, *self.entries.get(&(start, size))?))
        })
    }

    /// `leaf` is about the page.
    fn remember(&mut self, gpn: Gpn, leaf: Leaf) {
        if self.capacity == 0 {
            return;
        }
        if self.entries.len() >= self.capacity {
            self.entries.pop_first();
        }
        let start = first_page(gpn, leaf.size);
        self.entries.insert((start, leaf.size), leaf.back(gpn.0.saturating_sub(start.0)));
    }
}

/// The first page of the leaf of a size that a page lies in.
const fn first_page(gpn: Gpn, size: LeafSize) -> Gpn {
    Gpn(gpn.0 & !size.pages().saturating_sub(1))
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use alloc::vec::Vec;

    use super::*;
    use crate::{
        access::MapGpaFlags,
        addr::Frame,
        slat::{Ept, MemoryType, ViolationKind},
    };

    const RW: MapGpaFlags = MapGpaFlags(3);
    const RO: MapGpaFlags = MapGpaFlags::READABLE;
    const MBEC: Mode = Mode { mbec: true };

    fn pages(start: u64, pages: u64) -> GpnRange {
        GpnRange { start: Gpn(start), pages }
    }

    fn mapped(slat: Slat, count: u64) -> Slat {
        slat.map(pages(0, count), Frame(512), RW, MemoryType::WriteBack).unwrap();
        slat
    }

    fn held(tlb: &Tlb) -> Vec<(u64, u64, u64, u32)> {
        tlb.entries().map(|(range, leaf)| (range.start.0, range.pages, leaf.frame.0, leaf.flags.0)).collect()
    }

    #[test]
    fn a_stale_translation_is_used_until_it_is_flushed() {
        let slat = mapped(Slat::new(8), 4);
        let write = |tlb: &mut Tlb, gpa| tlb.access(&slat, Gpa(gpa), Access::Write, MBEC).map(|leaf| leaf.frame.0);
        let mut tlb = Tlb::new(8);
        assert_eq!(write(&mut tlb, 0x1004), Ok(513));
        slat.protect(pages(0, 4), RO).unwrap();
        assert_eq!(write(&mut tlb, 0x1008), Ok(513));
        assert_eq!(write(&mut tlb, 0x2000).unwrap_err().kind, ViolationKind::Permission);
        tlb.flush(pages(2, 9));
        assert_eq!(write(&mut tlb, 0x1000), Ok(513));
        tlb.flush(pages(0, 2));
        assert_eq!(write(&mut tlb, 0x1000).unwrap_err().kind, ViolationKind::Permission);
        assert_eq!(held(&tlb), []);
    }

    #[test]
    fn a_missing_permission_is_looked_for_in_the_tables() {
        let slat = mapped(Slat::new(8), 1);
        let mut tlb = Tlb::new(8);
        slat.protect(pages(0, 1), RO).unwrap();
        tlb.access(&slat, Gpa(0), Access::Read, MBEC).unwrap();
        slat.protect(pages(0, 1), RW).unwrap();
        assert_eq!(held(&tlb), [(0, 1, 512, 1)]);
        tlb.access(&slat, Gpa(0), Access::Write, MBEC).unwrap();
        assert_eq!(held(&tlb), [(0, 1, 512, 3)]);
        // a violation ends what was remembered
        slat.unmap(pages(0, 1)).unwrap();
        assert_eq!(tlb.access(&slat, Gpa(0), Access::KernelExecute, MBEC).unwrap_err().kind, ViolationKind::NotPresent);
        assert_eq!(held(&tlb), []);
    }

    #[test]
    fn a_large_translation_outlives_the_split_of_its_leaf() {
        let slat = mapped(Slat::<Ept>::new(8), 512);
        let mut tlb = Tlb::new(8);
        assert_eq!(tlb.access(&slat, Gpa(0x5000), Access::Read, MBEC).unwrap().frame, Frame(517));
        assert_eq!(held(&tlb), [(0, 512, 512, 3)]);
        slat.protect(pages(9, 1), RO).unwrap();
        // the page was never touched before it was protected
        assert_eq!(tlb.access(&slat, Gpa(0x9000), Access::Write, MBEC).unwrap().frame, Frame(521));
        tlb.evict(Gpn(9));
        assert!(tlb.access(&slat, Gpa(0x9000), Access::Write, MBEC).is_err());
        assert_eq!(tlb.access(&slat, Gpa(0x9000), Access::Read, MBEC).unwrap().frame, Frame(521));
        assert_eq!(held(&tlb), [(9, 1, 521, 1)]);
        // the small one stays beside the large one of a merged leaf, and the more permissive is used
        slat.protect(pages(9, 1), RW).unwrap();
        tlb.access(&slat, Gpa(0), Access::Read, MBEC).unwrap();
        assert_eq!(held(&tlb), [(0, 512, 512, 3), (9, 1, 521, 1)]);
        slat.protect(pages(0, 512), RO).unwrap();
        assert!(tlb.access(&slat, Gpa(0x9000), Access::Write, MBEC).is_ok());
        tlb.flush(pages(511, 1));
        assert_eq!(held(&tlb), [(9, 1, 521, 1)]);
        tlb.flush_all();
        assert_eq!(tlb, Tlb::new(8));
    }

    #[test]
    fn a_clean_translation_is_no_way_round_the_dirty_bit() {
        let slat = mapped(Slat::with_accessed_dirty(8), 1);
        let mut tlb = Tlb::new(8);
        tlb.access(&slat, Gpa(0), Access::Read, MBEC).unwrap();
        assert!(!slat.get(Gpn(0)).unwrap().dirty);
        tlb.access(&slat, Gpa(0), Access::Write, MBEC).unwrap();
        assert!(slat.get(Gpn(0)).unwrap().dirty);
        // and the walk for it sees what has become of the permission
        let slat = mapped(Slat::with_accessed_dirty(8), 1);
        tlb.flush_all();
        tlb.access(&slat, Gpa(0), Access::Read, MBEC).unwrap();
        slat.protect(pages(0, 1), RO).unwrap();
        assert!(tlb.access(&slat, Gpa(0), Access::Write, MBEC).is_err());
    }

    #[test]
    fn a_full_one_makes_place_in_the_same_way_every_time() {
        let slat = mapped(Slat::new(8), 5);
        let mut tlb = Tlb::new(2);
        for gpn in [3, 1, 4] {
            tlb.access(&slat, Gpa(gpn << 12), Access::Read, MBEC).unwrap();
        }
        assert_eq!(held(&tlb), [(3, 1, 515, 3), (4, 1, 516, 3)]);
        let mut none = Tlb::new(0);
        none.access(&slat, Gpa(0), Access::Read, MBEC).unwrap();
        assert_eq!(held(&none), []);
    }
}
