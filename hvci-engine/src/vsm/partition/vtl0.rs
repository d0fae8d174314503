//! Memory as VTL0 itself could use it: what the engine reads and writes on its behalf. What it cannot read it cannot have read to it.

use super::Partition;
use crate::{
    access::Access,
    addr::{Gpa, GpnRange, PAGE_SIZE, Vtl},
    bytes::index,
    frames::Hold,
    status::HvStatus,
};

use alloc::{vec, vec::Vec};

impl Partition {
    /// Bytes of one page.
    pub(crate) fn read_vtl0(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), HvStatus> {
        self.allows(Vtl::Vtl0, gpa.gpn(), Access::Read)?;
        self.host.read(gpa, bytes)
    }

    /// `len` bytes, bounded by the caller.
    pub(crate) fn copy_vtl0(&self, gpa: Gpa, len: u64) -> Result<Vec<u8>, HvStatus> {
        let mut bytes = vec![0; index(u32::try_from(len).map_err(|_| HvStatus::INSUFFICIENT_MEMORY)?)];
        pieces(gpa, &mut bytes, |at, piece| self.read_vtl0(at, piece))?;
        Ok(bytes)
    }

    /// Writes all of it or nothing. No frame becomes anything else meanwhile.
    pub(crate) fn write_vtl0(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), HvStatus> {
        let pages = GpnRange::touched(gpa, crate::bytes::widen(bytes.len())).ok_or(HvStatus::INVALID_PARAMETER)?;
        let mut holds: Vec<Hold<'_>> = Vec::new();
        for gpn in pages.iter() {
            let hold = self.frames.hold(self.host.frame(gpn).ok_or(HvStatus::INVALID_PARAMETER)?)?;
            if !hold.state().kind.allows(Vtl::Vtl0).allows(Access::Write) {
                return Err(HvStatus::ACCESS_DENIED);
            }
            holds.push(hold);
        }
        pieces(gpa, bytes, |at, piece| self.host.write(at, piece))
    }
}

/// Each page's part of some bytes.
fn pieces(gpa: Gpa, bytes: &mut [u8], mut each: impl FnMut(Gpa, &mut [u8]) -> Result<(), HvStatus>) -> Result<(), HvStatus> {
    let (mut at, mut rest) = (gpa, bytes);
    while !rest.is_empty() {
        let room = PAGE_SIZE.saturating_sub(at.offset());
        let now = rest.len().min(index(u32::try_from(room).unwrap_or(0)));
        let (piece, later) = rest.split_at_mut_checked(now).ok_or(HvStatus::INVALID_PARAMETER)?;
        each(at, piece)?;
        rest = later;
        at = Gpa(at.0.checked_add(room).ok_or(HvStatus::INVALID_PARAMETER)?);
    }
    Ok(())
}
