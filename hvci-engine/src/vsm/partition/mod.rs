//! A partition under enforcement: what a VMM holds as [`Enforcer`].
//!
//! ```text
//! hypercall ─► decoded, checked in the TLFS's order ─► a transaction on the frame table ─► host: protect, quiesce ─► event
//! intercept ─► the state of the frame ─► #GP for the guest, or again ─► event
//! ```
//!
//! A request for protection is not a permission that is stored: it is translated to a row of the transition table, or refused. Execution in
//! kernel mode cannot be asked for at all; only a load grants it.
//! **Invariant I8:** the end of boot is one-way: from there on levels, configuration and pinned registers are as they are.

use alloc::{sync::Arc, vec, vec::Vec};
use core::sync::atomic::Ordering;

use super::{
    intercept::{CR0_PINNED, CR4_PINNED, CrInterceptControl, Interceptable},
    register::RegisterName,
    status_register::VsmPartitionConfig,
};
use crate::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, PAGE_SIZE, Vtl},
    event::{Event, Ring, What},
    finding::Code,
    frames::{Change, FrameTable, Kind, State, Step, Transaction, Transition},
    host::{Action, Capabilities, Enforcer, Host, MemoryIntercept, Vp},
    status::HvStatus,
    sync::{AtomicU32, SpinMutex},
};

mod hypercalls;
mod saved;
#[cfg(feature = "std")]
mod vtl0;

/// What VTL1 protects for itself belongs to this owner; modules have others.
pub const OWNER_VTL1: u32 = u32::MAX;
/// What the credential vault keeps belongs to this one.
pub const OWNER_VAULT: u32 = u32::MAX - 1;

/// Vector of #GP.
const GENERAL_PROTECTION: u8 = 13;

/// The guest of a VMM, its frames, its levels and what it tried.
pub struct Partition {
    host: Arc<dyn Host>,
    capabilities: Capabilities,
    frames: FrameTable,
    ram: Vec<GpnRange>,
    levels: SpinMutex<Levels>,
    events: SpinMutex<Ring>,
    /// Of transactions, so that no two at a time have the same name; and how far this machine has come.
    next: AtomicU32,
}

/// Nanoseconds that the phases of a change took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Phases {
    /// Claiming the frames and closing every alias.
    pub lock: u64,
    /// Waiting until nobody uses an older permission.
    pub quiesce: u64,
    /// Looking at the bytes.
    pub inspect: u64,
    /// Scrubbing, granting, and letting the frames go.
    pub grant: u64,
}

impl Phases {
    const fn of(&mut self, step: Step) -> &mut u64 {
        match Phase::of(step) {
            Phase::Lock => &mut self.lock,
            Phase::Quiesce => &mut self.quiesce,
            Phase::Inspect => &mut self.inspect,
            Phase::Grant => &mut self.grant,
        }
    }
}

/// Steps between which nobody looks at the clock.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Phase {
    Lock,
    Quiesce,
    Inspect,
    Grant,
}

impl Phase {
    const fn of(step: Step) -> Self {
        match step {
            Step::Claim | Step::Restrict => Self::Lock,
            Step::Quiesce => Self::Quiesce,
            Step::Inspect => Self::Inspect,
            _ => Self::Grant,
        }
    }
}

/// What is enabled, chosen and over.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Levels {
    vtl1: bool,
    mbec: bool,
    shadow_stack: bool,
    /// Of each processor: whether it has VTL1.
    vps: Vec<bool>,
    config: VsmPartitionConfig,
    intercepts: CrInterceptControl,
    cr0_mask: u64,
    cr4_mask: u64,
    end_of_boot: bool,
}

impl core::fmt::Debug for Partition {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Partition").field("frames", &self.frames.len()).field("levels", &*self.levels.lock()).finish_non_exhaustive()
    }
}

impl Partition {
    /// The partition of a guest with `vps` processors and this RAM, backed by `count` frames from `first`. Every page of RAM becomes data: what
    /// firmware left executable is executable no more. At most `records` events wait to be [taken](Self::take_events).
    ///
    /// # Errors
    /// [`HvStatus::FEATURE_UNAVAILABLE`] for a host that cannot bind devices or tell the aliases of a frame;
    /// [`HvStatus::INVALID_PARAMETER`] for RAM that no frame of these backs; the host's own.
    pub fn new(host: Arc<dyn Host>, first: Frame, count: usize, ram: &[GpnRange], vps: u32, records: usize) -> Result<Self, HvStatus> {
        let capabilities = host.capabilities();
        if !capabilities.device_view || !capabilities.aliases {
            return Err(HvStatus::FEATURE_UNAVAILABLE);
        }
        let frames = FrameTable::new(first, count);
        for gpn in ram.iter().flat_map(|range| range.iter()) {
            let frame = host.frame(gpn).ok_or(HvStatus::INVALID_PARAMETER)?;
            // unless another page leads to it
            if frames.state(frame).ok_or(HvStatus::INVALID_PARAMETER)?.kind == Kind::Free {
                frames.place(frame, Kind::Data)?;
            }
        }
        for vtl in [Vtl::Vtl0, Vtl::Vtl1] {
            host.protect(vtl, ram, Kind::Data.allows(vtl)).map_err(|partial| partial.status)?;
            host.quiesce(vtl, ram)?;
        }
        let levels = Levels {
            vtl1: false,
            mbec: false,
            shadow_stack: false,
            vps: vec![false; usize::try_from(vps).map_err(|_| HvStatus::INVALID_PARAMETER)?],
            config: VsmPartitionConfig(0),
            intercepts: CrInterceptControl::NONE,
            cr0_mask: CR0_PINNED,
            cr4_mask: CR4_PINNED,
            end_of_boot: false,
        };
        Ok(Self {
            host,
            capabilities,
            frames,
            ram: ram.to_vec(),
            levels: SpinMutex::new(levels),
            events: SpinMutex::new(Ring::new(records)),
            next: AtomicU32::new(1),
        })
    }

    /// The guest's memory, for the engine's own use.
    #[cfg(feature = "std")]
    pub(crate) fn host(&self) -> &dyn Host {
        &*self.host
    }

    /// Whether the boot is over.
    #[cfg(feature = "std")]
    pub(crate) fn is_booted(&self) -> bool {
        self.levels.lock().end_of_boot
    }

    /// What a guest page is; `None` where there is no RAM of this partition.
    pub fn kind(&self, gpn: Gpn) -> Option<Kind> {
        Some(self.state(gpn)?.kind)
    }

    /// What a guest page is, and whose.
    pub(crate) fn state(&self, gpn: Gpn) -> Option<State> {
        self.frames.state(self.host.frame(gpn)?)
    }

    /// The frame behind a guest page, what it is, and whose.
    #[cfg(feature = "std")]
    pub(crate) fn frame_state(&self, gpn: Gpn) -> Option<(Frame, State)> {
        let frame = self.host.frame(gpn)?;
        Some((frame, self.frames.state(frame)?))
    }

    /// Ends the boot: levels, configuration and the set of pinned registers can be changed no more. There is no way back.
    pub fn end_of_boot(&self) {
        let mut levels = self.levels.lock();
        levels.end_of_boot = true;
        levels.intercepts = levels.intercepts | CrInterceptControl::PINNED;
        drop(levels);
        self.record(None, Vtl::Vtl1, What::EndOfBoot, HvStatus::SUCCESS, None);
    }

    /// Takes the events out, oldest first, and says how many were lost since the partition was made.
    pub fn take_events(&self) -> (Vec<Event>, u64) {
        let mut ring = self.events.lock();
        (ring.drain(), ring.dropped())
    }

    /// Has the frames behind `pages`, each one of `from`, become `to`, together or not at all, without anything being looked at.
    fn change(&self, owner: u32, from: &[Kind], pages: impl Iterator<Item = Gpn>, to: Kind) -> Result<(), HvStatus> {
        let mut changes = Vec::new();
        for gpn in pages {
            let frame = self.host.frame(gpn).ok_or(HvStatus::INVALID_PARAMETER)?;
            let state = self.frames.state(frame).ok_or(HvStatus::INVALID_PARAMETER)?;
            if !from.contains(&state.kind) {
                return Err(HvStatus::OPERATION_DENIED);
            }
            if state.kind != to {
                // it may become something else before it is claimed
                changes.push(Change { frame, from: Some(state.kind), to });
            }
        }
        changes.sort_unstable_by_key(|change| change.frame);
        // two pages may lead to one frame
        changes.dedup();
        if changes.is_empty() {
            return Ok(());
        }
        // a way that wants bytes verified is a load's
        self.run(owner, &changes, || Err(HvStatus::OPERATION_DENIED), &|| 0).map(drop)
    }

    /// Has the frames behind these pages become what is said of each, on behalf of the module or region `owner`: together or not at all.
    /// `inspect` is called, if bytes must be verified, when every alias of the frames is closed and quiet; what it approves is granted.
    ///
    /// Whoever calls this vouches for the bytes. A guest's modules go through `load::Loader`.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a page that is no RAM or a frame that is named twice; [`HvStatus::OBJECT_IN_USE`] for a frame that
    /// somebody else has; [`HvStatus::OPERATION_DENIED`] and [`HvStatus::ACCESS_DENIED`] for a change that may not be, or not by this owner;
    /// what `inspect` says; the host's own. Everything is as it was then, or narrower.
    pub fn transform(&self, owner: u32, changes: &[(Gpn, Kind)], inspect: impl FnOnce() -> Result<(), HvStatus>) -> Result<(), HvStatus> {
        self.run(owner, &self.changes(changes)?, inspect, &|| 0).map(drop)
    }

    /// The same; returns how long each phase took.
    ///
    /// # Errors
    /// As [`transform`](Self::transform).
    #[cfg(feature = "std")]
    pub(crate) fn transform_timed(
        &self,
        owner: u32,
        changes: &[(Gpn, Kind)],
        inspect: impl FnOnce() -> Result<(), HvStatus>,
    ) -> Result<Phases, HvStatus> {
        self.run(owner, &self.changes(changes)?, inspect, &|| self.host.now())
    }

    fn changes(&self, of: &[(Gpn, Kind)]) -> Result<Vec<Change>, HvStatus> {
        let mut changes = Vec::with_capacity(of.len());
        for (gpn, to) in of {
            let frame = self.host.frame(*gpn).ok_or(HvStatus::INVALID_PARAMETER)?;
            changes.push(Change { frame, from: None, to: *to });
        }
        Ok(changes)
    }

    /// Has the hypervisor lay a page of its own over the guest's, such as the one that it keeps the time in, or take it away again (TLFS "GPA
    /// overlay pages"). A load can have no such page, and none that a module, a region or VTL1 has can be laid over.
    ///
    /// # Errors
    /// [`HvStatus::OPERATION_DENIED`] for a page that is something else; as [`transform`](Self::transform).
    pub fn overlay(&self, vp: Option<u32>, gpn: Gpn, on: bool) -> Result<(), HvStatus> {
        let (from, to) = if on { (Kind::Data, Kind::Overlay) } else { (Kind::Overlay, Kind::Data) };
        let result = self.change(0, &[from], core::iter::once(gpn), to);
        let transition = Transition::between(from, to).map_or("", |way| way.name).into();
        let what = What::Change { transition, pages: vec![GpnRange { start: gpn, pages: 1 }] };
        let (status, code) = result.err().map_or((HvStatus::SUCCESS, None), |status| (status, Some(Code::MemProtection)));
        self.record(vp, Vtl::Vtl0, what, status, code);
        result
    }

    /// Makes the changes, and says how long each phase took by `now`.
    fn run(
        &self,
        owner: u32,
        changes: &[Change],
        inspect: impl FnOnce() -> Result<(), HvStatus>,
        now: &dyn Fn() -> u64,
    ) -> Result<Phases, HvStatus> {
        let mut transaction = Transaction::new(self.next_transaction(), owner, changes)?;
        let mut inspect = Some(inspect);
        let mut phases = Phases::default();
        let mut since = now();
        loop {
            let step = transaction.step();
            match step {
                Step::Failed(status) => return Err(status),
                Step::Inspect => match inspect.take().map_or(Err(HvStatus::OPERATION_DENIED), |inspect| inspect()) {
                    Ok(()) => transaction.approve(),
                    Err(status) => transaction.reject(status),
                },
                _ => {
                    transaction.perform(&self.frames, &*self.host, usize::MAX);
                }
            }
            let next = transaction.step();
            if Phase::of(next) != Phase::of(step) || next == Step::Done {
                let until = now();
                *phases.of(step) = phases.of(step).saturating_add(until.saturating_sub(since));
                since = until;
            }
            if next == Step::Done {
                return Ok(phases);
            }
        }
    }

    /// 0 names no transaction, and 2^32 of them do not run at once.
    fn next_transaction(&self) -> u32 {
        match self.next.fetch_add(1, Ordering::SeqCst) {
            0 => self.next.fetch_add(1, Ordering::SeqCst),
            id => id,
        }
    }

    pub(crate) fn record(&self, vp: Option<u32>, vtl: Vtl, what: What, status: HvStatus, code: Option<Code>) {
        let event = Event { sequence: 0, at: self.host.now(), vp, vtl, what, status, code };
        self.events.lock().push(event);
    }

    /// Whether each of these bytes may be accessed. Where not, there is an event.
    #[inline(never)]
    fn check_each(&self, vtl: Vtl, gpa: Gpa, len: u64, access: Access) -> Result<(), HvStatus> {
        let pages = GpnRange::touched(gpa, len).ok_or(HvStatus::INVALID_PARAMETER);
        let checked = pages.and_then(|pages| pages.iter().try_for_each(|gpn| self.allows(vtl, gpn, access)));
        if let Err(status) = checked {
            self.record(None, vtl, What::DeviceAccess { gpa, len, access }, status, Some(Code::MemDevice));
        }
        checked
    }

    fn allows(&self, vtl: Vtl, gpn: Gpn, access: Access) -> Result<(), HvStatus> {
        let kind = self.kind(gpn).ok_or(HvStatus::INVALID_PARAMETER)?;
        if kind.allows(vtl).allows(access) { Ok(()) } else { Err(HvStatus::ACCESS_DENIED) }
    }

    /// Refuses what a processor tried: #GP(0), as a secure kernel answers.
    fn general_protection(vp: &mut dyn Vp) -> Action {
        vp.inject(GENERAL_PROTECTION, Some(0));
        Action::InjectedFault
    }
}

impl Enforcer for Partition {
    fn hypercall(&self, vp: &mut dyn Vp, vtl: Vtl, control: u64, input: &[u8], output: &mut [u8]) -> (HvStatus, u16) {
        self.answer(vp, vtl, control, input, output)
    }

    fn on_memory(&self, vp: &mut dyn Vp, intercept: &MemoryIntercept) -> Action {
        let access = intercept.access;
        let kind = self.kind(intercept.gpa.gpn());
        match kind {
            // on its way; or there by now, and the processor used an older translation
            Some(kind) if kind.is_held() || kind.allows(Vtl::Vtl0).allows(access) => return Action::Resume,
            _ => {}
        }
        let code = match (kind, access) {
            (Some(Kind::SecureOnly), _) => Code::MemSecure,
            (_, Access::KernelExecute | Access::UserExecute) => Code::MemExecute,
            _ => Code::MemAccess,
        };
        let MemoryIntercept { gpa, gva, rip, page_walk, .. } = *intercept;
        let what = What::Access { gpa, gva, access, rip, page_walk };
        self.record(Some(vp.index()), Vtl::Vtl0, what, HvStatus::ACCESS_DENIED, Some(code));
        Self::general_protection(vp)
    }

    fn on_register_write(&self, vp: &mut dyn Vp, name: u32, old: u64, new: u64) -> Action {
        let register = RegisterName(name);
        let changed = {
            let levels = self.levels.lock();
            match Interceptable::of_register(register) {
                Some(one) if !levels.intercepts.contains(one.write) => 0,
                Some(_) if register == RegisterName::CR0 => (old ^ new) & levels.cr0_mask,
                Some(_) if register == RegisterName::CR4 => (old ^ new) & levels.cr4_mask,
                // a register of several words, such as GDTR, is not compared by one
                Some(one) if one.msr.is_none() => 1,
                Some(_) => old ^ new,
                // nothing intercepts it: whoever sends it here is wrong about something
                None => 1,
            }
        };
        if changed == 0 {
            return Action::Resume;
        }
        let what = What::RegisterWrite { register: name, old, new };
        self.record(Some(vp.index()), Vtl::Vtl0, what, HvStatus::ACCESS_DENIED, Some(Code::MemRegister));
        Self::general_protection(vp)
    }

    fn check(&self, vtl: Vtl, gpa: Gpa, len: u64, access: Access) -> Result<(), HvStatus> {
        // nearly all of them are within a page and allowed; the others go the long way
        if len.wrapping_sub(1) < PAGE_SIZE.wrapping_sub(gpa.offset()) && self.allows(vtl, gpa.gpn(), access).is_ok() {
            return Ok(());
        }
        self.check_each(vtl, gpa, len, access)
    }

    fn save(&self, sink: &mut dyn FnMut(&[u8])) {
        sink(&self.saved());
    }

    fn restore(&self, source: &[u8]) -> Result<(), HvStatus> {
        self.take_over(source)
    }
}

/// What a protection mask means: the kind that a frame must be to have exactly that.
///
/// # Errors
/// [`HvStatus::OPERATION_DENIED`]: no kind has it, or only a load gives it.
fn kind_of(flags: MapGpaFlags) -> Result<Kind, HvStatus> {
    const RWU: u32 = MapGpaFlags::DATA.0;
    const RW: u32 = MapGpaFlags::READABLE.0 | MapGpaFlags::WRITABLE.0;
    const RU: u32 = MapGpaFlags::READABLE.0 | MapGpaFlags::USER_EXECUTABLE.0;
    const R: u32 = MapGpaFlags::READABLE.0;
    match flags.0 {
        RWU | RW => Ok(Kind::Data),
        R | RU => Ok(Kind::KernelData),
        0 => Ok(Kind::SecureOnly),
        _ => Err(HvStatus::OPERATION_DENIED),
    }
}

#[cfg(test)]
pub(crate) mod races;
#[cfg(test)]
mod tests;
