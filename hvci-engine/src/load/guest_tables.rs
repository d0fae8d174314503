//! The guest's own page tables (Intel SDM volume 3A, 4.5), read for a hint.
//!
//! They are the guest's: what they say decides which pages are looked at, and nothing else. They are read as VTL0 reads memory: from what a table
//! in memory of VTL1 led to, the guest could learn what stands there.

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use crate::{
    addr::{Gpa, Gpn, Gva},
    host::Vp,
    vsm::{partition::Partition, register::RegisterName},
};

const PRESENT: u64 = 1;
/// In a table of the second or third level: an entry for a large page.
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000F_FFFF_FFFF_F000;
/// Of CR4: five levels.
const LA57: u64 = 1 << 12;

/// The guest page that a processor's page tables put an address into, in long mode.
pub(super) fn page_of(vp: &dyn Vp, partition: &Partition, at: Gva) -> Option<Gpn> {
    let register = |name: RegisterName| vp.register(name.0).ok().and_then(|value| u64::try_from(value).ok());
    let mut entry = register(RegisterName::CR3)?;
    let top = if register(RegisterName::CR4)? & LA57 == 0 { 4_u32 } else { 5 };
    for level in (1..=top).rev() {
        let shift = 3_u32.saturating_add(level.saturating_mul(9));
        let index = (at.0 >> shift) & 0x1FF;
        let mut bytes = [0; 8];
        partition.read_vtl0(Gpa((entry & ADDRESS) | (index << 3)), &mut bytes).ok()?;
        entry = u64::from_le_bytes(bytes);
        if entry & PRESENT == 0 {
            return None;
        }
        if entry & LARGE != 0 && matches!(level, 2 | 3) {
            // pages of 2 MiB or 1 GiB: the lower bits are the address's
            let within = (1_u64 << shift).wrapping_sub(1);
            return Some(Gpa((entry & ADDRESS & !within) | (at.0 & within)).gpn());
        }
    }
    Some(Gpa(entry & ADDRESS).gpn())
}
