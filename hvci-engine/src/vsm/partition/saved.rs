//! The protection state as bytes, for snapshots and migration.
//!
//! ```text
//! "HVCIPROT" | version u16 | zero u16 | processors u32 | reached u32 | flags u32 | config u64 | intercepts u64 | CR0 mask u64 | CR4 mask u64
//! | frames u64 | a frame: kind u8, owner u32 | a processor: has VTL1 u8
//! ```
//!
//! Little-endian. A state says how far its machine had come, and is refused by a machine that has come farther: going back to an older
//! snapshot is a new machine's, which the VMM makes on purpose, never a running one's.

use alloc::vec::Vec;
use core::sync::atomic::Ordering;

use super::{Levels, Partition};
use crate::{
    addr::{Gpn, GpnRange, Vtl},
    frames::{Kind, State},
    status::HvStatus,
    vsm::{intercept::CrInterceptControl, status_register::VsmPartitionConfig, wire::Wire},
};

const MAGIC: [u8; 8] = *b"HVCIPROT";
const VERSION: u16 = 1;
const HEADER: usize = 64;
const FRAME: usize = 5;

impl Partition {
    pub(super) fn saved(&self) -> Vec<u8> {
        let levels = self.levels.lock().clone();
        let flags = [levels.vtl1, levels.mbec, levels.shadow_stack, levels.end_of_boot];
        let flags: u32 = flags.iter().enumerate().map(|(bit, on)| u32::from(*on) << bit).sum();
        let mut bytes = Vec::with_capacity(HEADER);
        bytes.extend(MAGIC);
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend([0; 2]);
        bytes.extend(u32::try_from(levels.vps.len()).unwrap_or(u32::MAX).to_le_bytes());
        bytes.extend(self.next.load(Ordering::SeqCst).to_le_bytes());
        bytes.extend(flags.to_le_bytes());
        for word in [levels.config.0, levels.intercepts.0, levels.cr0_mask, levels.cr4_mask, crate::bytes::widen(self.frames.len())] {
            bytes.extend(word.to_le_bytes());
        }
        for state in self.frames.frames().filter_map(|frame| self.frames.state(frame)) {
            // what is on its way when a snapshot is taken is what it was before for nobody: a load begins again
            let state = if state.kind.is_held() { State::of(Kind::Quarantined) } else { state };
            bytes.push(state.kind.number());
            bytes.extend(state.owner.to_le_bytes());
        }
        bytes.extend(levels.vps.iter().map(|has| u8::from(*has)));
        bytes
    }

    pub(super) fn take_over(&self, bytes: &[u8]) -> Result<(), HvStatus> {
        let saved = Saved::parse(bytes).ok_or(HvStatus::INVALID_PARAMETER)?;
        if saved.frames.len() != self.frames.len() {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        // held until the host obeys, so that nothing begins between what is checked here and that
        let taken = self.frames.take_all()?;
        let mut levels = self.levels.lock();
        if saved.levels.vps.len() != levels.vps.len() {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        if saved.reached < self.next.load(Ordering::SeqCst) || levels.end_of_boot && !saved.levels.end_of_boot {
            return Err(HvStatus::OPERATION_DENIED);
        }
        *levels = saved.levels;
        // a transaction that has its name already, and no frame yet, keeps it to itself
        self.next.fetch_max(saved.reached, Ordering::SeqCst);
        drop(levels);
        let result = self.obey(&saved.frames);
        taken.settle(&saved.frames);
        result
    }

    /// Has the host obey these states, everywhere: first nothing is allowed to either level, so that no order of pages or levels matters.
    fn obey(&self, states: &[State]) -> Result<(), HvStatus> {
        for vtl in [Vtl::Vtl0, Vtl::Vtl1] {
            self.host.protect(vtl, &self.ram, Kind::Free.allows(vtl)).map_err(|partial| partial.status)?;
            self.host.quiesce(vtl, &self.ram)?;
        }
        let kind = |gpn| Some(states.get(self.frames.index(self.host.frame(gpn)?)?)?.kind);
        for gpn in self.ram.iter().flat_map(|range| range.iter()) {
            let kind = kind(gpn).unwrap_or(Kind::Free);
            for vtl in [Vtl::Vtl0, Vtl::Vtl1] {
                self.host.protect(vtl, &[page(gpn)], kind.allows(vtl)).map_err(|partial| partial.status)?;
            }
        }
        Ok(())
    }
}

const fn page(gpn: Gpn) -> GpnRange {
    GpnRange { start: gpn, pages: 1 }
}

struct Saved {
    reached: u32,
    levels: Levels,
    frames: Vec<State>,
}

impl Saved {
    /// `None` for what no engine of this version has saved.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let (magic, version, zero) = (<[u8; 8]>::get(bytes, 0)?, u16::get(bytes, 8)?, u16::get(bytes, 10)?);
        let (vps, reached, flags) = (u32::get(bytes, 12)?, u32::get(bytes, 16)?, u32::get(bytes, 20)?);
        let word = |index: usize| u64::get(bytes, 24_usize.checked_add(index.checked_mul(8)?)?);
        let (vps, count) = (usize::try_from(vps).ok()?, usize::try_from(word(4)?).ok()?);
        let frames_len = count.checked_mul(FRAME)?;
        let sound = (magic, version, zero, flags >> 4) == (MAGIC, VERSION, 0, 0);
        if !sound || bytes.len() != HEADER.checked_add(frames_len)?.checked_add(vps)? {
            return None;
        }
        let (frames, vps) = bytes.get(HEADER..)?.split_at_checked(frames_len)?;
        let state = |entry: &[u8]| Some(State { kind: Kind::from_number(*entry.first()?)?, owner: u32::get(entry, 1)? });
        let frames: Vec<State> = frames.chunks_exact(FRAME).map(state).collect::<Option<_>>()?;
        let consistent = |s: &State| !s.kind.is_held() && (s.kind.is_owned() || s.owner == 0);
        let levels = Levels {
            vtl1: flags & 1 != 0,
            mbec: flags & 2 != 0,
            shadow_stack: flags & 4 != 0,
            end_of_boot: flags & 8 != 0,
            vps: vps.iter().map(|has| (*has < 2).then_some(*has == 1)).collect::<Option<_>>()?,
            config: VsmPartitionConfig(word(0)?),
            intercepts: CrInterceptControl(word(1)?),
            cr0_mask: word(2)?,
            cr4_mask: word(3)?,
        };
        (frames.iter().all(consistent) && levels.config.unknown() == 0 && levels.intercepts.unknown() == 0).then_some(Self {
            reached,
            levels,
            frames,
        })
    }
}
