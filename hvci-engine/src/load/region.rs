//! Memory of VTL0 that is written through the engine alone: dynamic kernel data protection, the bitmap of control flow guard, and supervisor
//! shadow stacks.
//!
//! | kind | what VTL0 may do | who writes, and what |
//! |---|---|---|
//! | pool ([`Kind::KernelData`]) | read | whoever shows the cookie that the region was made with: any bytes within it |
//! | bitmap ([`Kind::CfgBitmap`]) | read | the engine, the two bits of an address in sealed code |
//! | shadow stack ([`Kind::ShadowStack`]) | read; CALL, RET and the shadow stack instructions | the processor; the engine, the token at its top when it is made |
//!
//! A region is named by a number that is never used again, and by a cookie of its maker's (`ExSecurePoolUpdate` takes both too). Offsets are
//! the guest's and may be anything: a write lies in the region as a whole, or nothing is written.
//!
//! The bitmap has two bits for each 16 bytes of address space from the region's base on: 01 if the first of them is a valid target of an
//! indirect call, 11 if each of them is. A bit outlives the module that it was set for: what stands there later executes only if it was verified
//! too. The token is its own address (Intel SDM volume 1, "Supervisor Shadow Stack Token").

#![deny(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    clippy::unwrap_used
)]

use std::collections::BTreeMap;

use super::{Loader, module::Life};
use crate::{
    addr::{Gpa, Gpn, Gva, PAGE_SIZE, Vtl},
    bytes::widen,
    event::What,
    finding::Code,
    frames::Kind,
    status::HvStatus,
};

/// Most regions at a time.
pub const MAX_REGIONS: usize = 4096;
/// Most pages of one.
pub const MAX_REGION_PAGES: u64 = 512;

/// Bytes of address space that two bits of the bitmap are about.
const SLOT: u64 = 16;

/// A region.
#[derive(Clone, Debug)]
pub(super) struct Region {
    pub(super) kind: Kind,
    pub(super) pages: Vec<Gpn>,
    pub(super) base: Gva,
    pub(super) cookie: u64,
}

impl Region {
    fn size(&self) -> u64 {
        widen(self.pages.len()).saturating_mul(PAGE_SIZE)
    }

    /// Where the bytes from `offset` on are, piece by piece of a page; `None` unless all of them are in it.
    fn places(&self, offset: u64, len: usize) -> Option<Vec<(Gpa, u64)>> {
        let end = offset.checked_add(widen(len)).filter(|end| *end <= self.size())?;
        let mut at = offset;
        let mut places = Vec::new();
        while at < end {
            let into = at.checked_rem(PAGE_SIZE)?;
            let piece = PAGE_SIZE.saturating_sub(into).min(end.saturating_sub(at));
            let gpn = self.pages.get(usize::try_from(at.checked_div(PAGE_SIZE)?).ok()?)?;
            places.push((Gpa(gpn.gpa()?.0.checked_add(into)?), piece));
            at = at.checked_add(piece)?;
        }
        Some(places)
    }
}

impl Loader {
    /// Has pages of VTL0's data be written through the engine alone from now on; `base` is the first address of a shadow stack, or the first
    /// one that a bitmap is about. A bitmap and a shadow stack begin empty. Returns the region's number.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for another kind, no page, or more than [`MAX_REGION_PAGES`]; [`HvStatus::FEATURE_UNAVAILABLE`] for a
    /// shadow stack on a host without; [`HvStatus::INSUFFICIENT_MEMORY`] beyond [`MAX_REGIONS`]; as [`Partition::transform`], and nothing is
    /// changed then.
    ///
    /// [`Partition::transform`]: crate::vsm::partition::Partition::transform
    pub fn protect_region(&self, kind: Kind, pages: &[Gpn], base: Gva, cookie: u64) -> Result<u32, HvStatus> {
        let known = matches!(kind, Kind::KernelData | Kind::CfgBitmap | Kind::ShadowStack);
        if !known || pages.is_empty() || widen(pages.len()) > MAX_REGION_PAGES {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if kind == Kind::ShadowStack && !self.partition.host().capabilities().shadow_stack {
            return Err(HvStatus::FEATURE_UNAVAILABLE);
        }
        let mut regions = self.regions();
        if regions.len() >= MAX_REGIONS {
            return Err(HvStatus::INSUFFICIENT_MEMORY);
        }
        let id = self.next_owner()?;
        let region = Region { kind, pages: pages.to_vec(), base, cookie };
        self.change(id, format!("protect a {kind}"), &changes(&region, kind))?;
        if kind == Kind::ShadowStack {
            let offset = region.size().saturating_sub(8);
            let token = base.0.wrapping_add(offset);
            if let Err(status) = self.put(&region, offset, &token.to_le_bytes()) {
                // without its token it can be switched to by nobody
                self.change(id, format!("give up a {kind}"), &changes(&region, Kind::Data))?;
                return Err(status);
            }
        }
        regions.insert(id, region);
        Ok(id)
    }

    /// Writes into a pool.
    ///
    /// # Errors
    /// [`HvStatus::NOT_FOUND`] for no such region, [`HvStatus::ACCESS_DENIED`] for another cookie or kind, [`HvStatus::INVALID_PARAMETER`] for
    /// bytes that do not all lie in it: nothing is written then.
    pub fn write_region(&self, id: u32, cookie: u64, offset: u64, bytes: &[u8], vp: Option<u32>) -> Result<(), HvStatus> {
        let regions = self.regions();
        let result = find(&regions, id, cookie, Kind::KernelData).and_then(|region| self.put(region, offset, bytes));
        self.record_write(id, offset, bytes.len(), vp, result);
        result
    }

    /// Makes an address a valid target of indirect calls: the first of its slot, or every one of the slot if it is not that.
    ///
    /// # Errors
    /// As [`write_region`](Self::write_region); [`HvStatus::ACCESS_DENIED`] for an address that is not in the sealed code of a module,
    /// [`HvStatus::INVALID_PARAMETER`] for one that the bitmap is not about.
    pub fn mark_call_target(&self, id: u32, cookie: u64, target: Gva, vp: Option<u32>) -> Result<(), HvStatus> {
        let regions = self.regions();
        let slot = |region: &Region| target.0.checked_sub(region.base.0)?.checked_div(SLOT);
        let mark = |region: &Region| {
            if !self.is_code(target) {
                return Err(HvStatus::ACCESS_DENIED);
            }
            let slot = slot(region).ok_or(HvStatus::INVALID_PARAMETER)?;
            let (offset, shift) = (slot / 4, (slot % 4).saturating_mul(2));
            let mut byte = [0];
            let (gpa, _) = region.places(offset, 1).and_then(|p| p.first().copied()).ok_or(HvStatus::INVALID_PARAMETER)?;
            self.partition.host().read(gpa, &mut byte)?;
            let bits: u8 = if target.0.is_multiple_of(SLOT) { 1 } else { 3 };
            let [old] = byte;
            self.put(region, offset, &[old | bits << shift])
        };
        let result = find(&regions, id, cookie, Kind::CfgBitmap).and_then(mark);
        let offset = regions.get(&id).and_then(slot).unwrap_or(u64::MAX) / 4;
        self.record_write(id, offset, 1, vp, result);
        result
    }

    /// Gives the pages of a region back to VTL0; of a shadow stack without what stood in it.
    ///
    /// # Errors
    /// [`HvStatus::NOT_FOUND`] for no such region, [`HvStatus::ACCESS_DENIED`] for another cookie; as [`Partition::transform`].
    ///
    /// [`Partition::transform`]: crate::vsm::partition::Partition::transform
    pub fn release_region(&self, id: u32, cookie: u64) -> Result<(), HvStatus> {
        let mut regions = self.regions();
        let region = regions.get(&id).ok_or(HvStatus::NOT_FOUND)?;
        if region.cookie != cookie {
            return Err(HvStatus::ACCESS_DENIED);
        }
        self.change(id, format!("release a {}", region.kind), &changes(region, Kind::Data))?;
        regions.remove(&id);
        Ok(())
    }

    /// Whether a module that is loaded executes the byte at `at`.
    fn is_code(&self, at: Gva) -> bool {
        let modules = self.modules();
        let sealed = modules.of.values().filter(|module| module.life == Life::Live).flat_map(|module| &module.segments);
        sealed.into_iter().any(|s| s.kind == Kind::Code && s.contains(at))
    }

    fn put(&self, region: &Region, offset: u64, bytes: &[u8]) -> Result<(), HvStatus> {
        let places = region.places(offset, bytes.len()).ok_or(HvStatus::INVALID_PARAMETER)?;
        let mut rest = bytes;
        for (gpa, len) in places {
            let (now, later) = rest.split_at_checked(usize::try_from(len).unwrap_or(usize::MAX)).ok_or(HvStatus::INVALID_PARAMETER)?;
            self.partition.host().write(gpa, now)?;
            rest = later;
        }
        Ok(())
    }

    fn record_write(&self, region: u32, offset: u64, len: usize, vp: Option<u32>, result: Result<(), HvStatus>) {
        let (status, code) = result.err().map_or((HvStatus::SUCCESS, None), |status| (status, Some(Code::MemRegion)));
        self.partition.record(vp, Vtl::Vtl0, What::RegionWrite { region, offset, len: widen(len) }, status, code);
    }
}

/// The region with this number, if it is of this kind and that is its cookie.
fn find(regions: &BTreeMap<u32, Region>, id: u32, cookie: u64, kind: Kind) -> Result<&Region, HvStatus> {
    let region = regions.get(&id).ok_or(HvStatus::NOT_FOUND)?;
    if region.cookie == cookie && region.kind == kind { Ok(region) } else { Err(HvStatus::ACCESS_DENIED) }
}

fn changes(region: &Region, to: Kind) -> Vec<(Gpn, Kind)> {
    region.pages.iter().map(|gpn| (*gpn, to)).collect()
}
