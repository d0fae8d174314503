//! Sets of virtual processors in hypercall inputs: a mask of 64, or `HV_VP_SET` (TLFS `datatypes/hv_vp_set.md`).

use crate::bytes::le64;

open! {
    /// The format of an `HV_VP_SET`.
    VpSetFormat(u64) "VP set format" {
        SPARSE_4K = 0 "HV_GENERIC_SET_SPARSE_4K";
        ALL = 1 "HV_GENERIC_SET_ALL";
    }
}

/// A set of virtual processors.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VpSet<'a> {
    /// Every processor of the partition.
    All,
    /// A bit for each of the first 64.
    Mask(u64),
    /// A bit for each of 4096, in banks of 64 of which only some are given.
    Sparse(SparseVps<'a>),
}

/// The sparse form: a mask for every bank whose bit is set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SparseVps<'a> {
    valid_banks: u64,
    banks: &'a [u8],
}

impl<'a> SparseVps<'a> {
    /// A set of the masks in `banks`, 8 bytes each; `None` if there are more or fewer than bits in `valid_banks`.
    pub fn new(valid_banks: u64, banks: &'a [u8]) -> Option<Self> {
        let expected = usize::try_from(valid_banks.count_ones()).ok()?.checked_mul(8)?;
        (banks.len() == expected).then_some(Self { valid_banks, banks })
    }

    fn contains(&self, vp_index: u32) -> bool {
        let Some(bank) = 1_u64.checked_shl(vp_index / 64).filter(|bank| self.valid_banks & bank != 0) else { return false };
        let before = (self.valid_banks & bank.wrapping_sub(1)).count_ones();
        let mask = usize::try_from(before).ok().and_then(|n| le64(self.banks, n.checked_mul(8)?));
        mask.is_some_and(|mask| mask & 1_u64.wrapping_shl(vp_index % 64) != 0)
    }
}

impl VpSet<'_> {
    /// Whether the processor of this `HV_VP_INDEX` is in the set. Whether the partition has such a processor is not known here.
    pub fn contains(&self, vp_index: u32) -> bool {
        match self {
            Self::All => true,
            Self::Mask(mask) => 1_u64.checked_shl(vp_index).is_some_and(|bit| mask & bit != 0),
            Self::Sparse(sparse) => sparse.contains(vp_index),
        }
    }
}

#[cfg(test)]
mod tests {
    #![expect(clippy::unwrap_used, reason = "tests")]

    use alloc::{collections::BTreeSet, vec::Vec};

    use proptest::prelude::*;

    use super::*;

    #[test]
    fn the_example_of_the_specification() {
        // processors 0, 5 and 130 of 200: banks 0 and 2
        let banks = [0x21, 0, 0, 0, 0, 0, 0, 0, 0x04, 0, 0, 0, 0, 0, 0, 0];
        let set = VpSet::Sparse(SparseVps::new(0x05, &banks).unwrap());
        assert_eq!((0..200).filter(|vp| set.contains(*vp)).collect::<Vec<_>>(), [0, 5, 130]);
        assert!(!set.contains(4096) && !set.contains(u32::MAX));
    }

    #[test]
    fn the_example_of_a_mask() {
        assert_eq!((0..200).filter(|vp| VpSet::Mask(0x51).contains(*vp)).collect::<Vec<_>>(), [0, 4, 6]);
        assert!(VpSet::All.contains(u32::MAX));
    }

    #[test]
    fn banks_are_as_many_as_said() {
        assert_eq!(SparseVps::new(0x05, &[0; 8]), None);
        assert_eq!(SparseVps::new(0x05, &[0; 24]), None);
        assert_eq!(SparseVps::new(0x05, &[0; 15]), None);
        assert!(SparseVps::new(0, &[]).is_some());
        assert!(SparseVps::new(u64::MAX, &[0; 512]).is_some());
    }

    proptest! {
        #[test]
        fn what_was_put_in_is_found(vps in proptest::collection::btree_set(0_u32..4096, 0..40), asked in 0_u32..5000) {
            let banks: BTreeSet<u32> = vps.iter().map(|vp| vp / 64).collect();
            let valid = banks.iter().fold(0_u64, |mask, bank| mask | 1 << bank);
            let of_bank = |bank: &u32| vps.iter().filter(|vp| *vp / 64 == *bank).fold(0_u64, |mask, vp| mask | 1 << (vp % 64));
            let bytes: Vec<u8> = banks.iter().map(of_bank).flat_map(u64::to_le_bytes).collect();
            let set = VpSet::Sparse(SparseVps::new(valid, &bytes).unwrap());
            prop_assert_eq!(set.contains(asked), vps.contains(&asked));
            prop_assert!(vps.iter().all(|vp| set.contains(*vp)));
        }
    }
}
