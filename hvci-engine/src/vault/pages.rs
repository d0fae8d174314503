//! Frames of VTL1 that secrets are in: [`Kind::SecureOnly`], so that no processor, device, emulator, hypercall, debugger or snapshot of
//! VTL0's reads them (invariants I3, I11).

use alloc::sync::Arc;

use zeroize::Zeroizing;

use super::{
    error::VaultError,
    secret::{Key, MAX_KEY, RECORD, Record},
};
use crate::{
    addr::{Gpa, Gpn, PAGE_SIZE},
    bytes::widen,
    frames::{Kind, State},
    status::HvStatus,
    vsm::partition::{OWNER_VAULT, Partition},
};

const SLOTS: u64 = PAGE_SIZE / 128;

/// Records in frames of the vault's own.
pub(super) struct Pages {
    partition: Arc<Partition>,
    pages: Vec<Gpn>,
}

impl Pages {
    /// Takes these pages from VTL0, and wipes them. Pages of a vault that is no more, or was not opened in the end, are given back first,
    /// as zeros.
    pub(super) fn take(partition: Arc<Partition>, pages: &[Gpn]) -> Result<Self, VaultError> {
        let left = State { kind: Kind::SecureOnly, owner: OWNER_VAULT };
        let left: Vec<(Gpn, Kind)> =
            pages.iter().filter(|gpn| partition.state(**gpn) == Some(left)).map(|gpn| (*gpn, Kind::Data)).collect();
        if !left.is_empty() {
            partition.transform(OWNER_VAULT, &left, || Err(HvStatus::OPERATION_DENIED))?;
        }
        let changes: Vec<(Gpn, Kind)> = pages.iter().map(|gpn| (*gpn, Kind::SecureOnly)).collect();
        partition.transform(OWNER_VAULT, &changes, || Err(HvStatus::OPERATION_DENIED))?;
        let pages = Self { partition, pages: pages.to_vec() };
        for gpn in &pages.pages {
            let gpa = gpn.gpa().ok_or(HvStatus::INVALID_PARAMETER)?;
            pages.partition.host().write(gpa, &[0; 1 << crate::addr::PAGE_SHIFT])?;
        }
        Ok(pages)
    }

    /// How many records fit.
    pub(super) fn capacity(&self) -> usize {
        self.pages.len().saturating_mul(usize::try_from(SLOTS).unwrap_or(0))
    }

    pub(super) fn read(&self, slot: usize) -> Result<Record, VaultError> {
        let mut record = Record::empty();
        self.partition.host().read(self.place(slot)?, &mut *record.0)?;
        Ok(record)
    }

    /// A key of a record, and nothing else of it.
    pub(super) fn key(&self, slot: usize, at: usize, len: usize) -> Result<Key, VaultError> {
        let mut bytes = Zeroizing::new([0; MAX_KEY]);
        let key = bytes.get_mut(..len).filter(|_| at.saturating_add(len) <= RECORD).ok_or(VaultError::Kind)?;
        let place = Gpa(self.place(slot)?.0.saturating_add(widen(at)));
        self.partition.host().read(place, key)?;
        Key::new(key).ok_or(VaultError::Kind)
    }

    pub(super) fn write(&self, slot: usize, record: &Record) -> Result<(), VaultError> {
        Ok(self.partition.host().write(self.place(slot)?, &*record.0)?)
    }

    pub(super) fn wipe(&self, slot: usize) -> Result<(), VaultError> {
        self.write(slot, &Record::empty())
    }

    fn place(&self, slot: usize) -> Result<Gpa, HvStatus> {
        const _: () = assert!(RECORD == 128);
        let slot = widen(slot);
        let page = usize::try_from(slot.checked_div(SLOTS).unwrap_or(0)).ok().and_then(|page| self.pages.get(page));
        let start = page.and_then(|gpn| gpn.gpa()).ok_or(HvStatus::INVALID_PARAMETER)?;
        Ok(Gpa(start.0.saturating_add((slot % SLOTS).saturating_mul(128))))
    }
}

impl Drop for Pages {
    /// What was secret is gone before the pages are anybody's again; the pages stay VTL1's.
    fn drop(&mut self) {
        for gpa in self.pages.iter().filter_map(|gpn| gpn.gpa()) {
            let _ = self.partition.host().write(gpa, &[0; 1 << crate::addr::PAGE_SHIFT]);
        }
    }
}
