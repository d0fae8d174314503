//! The guest-side TLB of a processor: translations of virtual pages, used until something flushes them.
//!
//! An entry that no longer agrees with the tables is used all the same, as on hardware; what a program sees after it changed a table without
//! a flush is a stale translation. One that does not allow an access is dropped and the tables are asked again.

use super::Translation;

const ENTRIES: usize = 1024;

/// Direct-mapped by the low bits of the page number; large pages are held as the 4 KiB pages of them that were used.
#[derive(Clone, Debug)]
pub(crate) struct Tlb {
    entries: Box<[Option<(u64, Translation)>]>,
}

impl Tlb {
    pub(crate) fn new() -> Self {
        Self { entries: vec![None; ENTRIES].into() }
    }

    pub(crate) fn get(&self, address: u64) -> Option<&Translation> {
        match &self.entries[slot(address)] {
            Some((page, translation)) if *page == address >> 12 => Some(translation),
            _ => None,
        }
    }

    pub(crate) fn insert(&mut self, address: u64, translation: Translation) {
        self.entries[slot(address)] = Some((address >> 12, translation));
    }

    /// Forgets the translation of an address: all of the large page, if it is one.
    pub(crate) fn flush_page(&mut self, address: u64) {
        for entry in &mut self.entries {
            if entry.is_some_and(|(page, t)| page >> (t.shift - 12) == address >> t.shift) {
                *entry = None;
            }
        }
    }

    /// Forgets everything but global translations.
    pub(crate) fn flush_local(&mut self) {
        for entry in &mut self.entries {
            if entry.is_some_and(|(_, t)| !t.global) {
                *entry = None;
            }
        }
    }

    pub(crate) fn flush(&mut self) {
        self.entries.fill(None);
    }
}

fn slot(address: u64) -> usize {
    (address >> 12 & (ENTRIES as u64 - 1)) as usize
}

#[cfg(test)]
mod tests {
    use hvci_engine::addr::Gpa;

    use super::*;

    fn translation(page: u64, shift: u32, global: bool) -> Translation {
        Translation { page: Gpa(page), shift, writable: true, user: true, no_execute: false, dirty: true, global }
    }

    #[test]
    fn flushes_reach_what_they_should() {
        let mut tlb = Tlb::new();
        let present = |tlb: &Tlb| [0x20_0000, 0x3f_f000, 0x40_0000, 0x7000].map(|address| tlb.get(address + 0xabc).is_some());
        tlb.insert(0x20_0000, translation(0, 21, false));
        tlb.insert(0x3f_f123, translation(0x1f_f000, 21, false));
        tlb.insert(0x40_1000, translation(0, 12, false));
        tlb.insert(0x7000, translation(0, 12, true));
        assert_eq!(present(&tlb), [true, true, false, true]);
        assert_eq!(tlb.get(0x3f_ffff).map(|t| t.page.0), Some(0x1f_f000));
        tlb.flush_page(0x2a_bcde);
        assert_eq!(present(&tlb), [false, false, false, true]);
        assert!(tlb.get(0x40_1000).is_some());
        tlb.flush_local();
        assert!(tlb.get(0x40_1000).is_none());
        assert_eq!(present(&tlb), [false, false, false, true]);
        tlb.flush();
        assert_eq!(present(&tlb), [false; 4]);
    }
}
