//! What a VMM gives the engine ([`Host`], [`Vp`]) and what it gets from it ([`Enforcer`]).
//!
//! All three are object-safe; `&self` may be called from any thread. The engine calls no method of a host while it answers a call of the
//! host's that says it may not.

use core::sync::atomic::AtomicU64;

use crate::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, Vtl},
    status::HvStatus,
};

/// What a backend can express. What it cannot, the engine refuses to do; it never does less than it was asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Capabilities {
    /// Execution in kernel and in user mode are told apart (Intel MBEC, AMD GMET for what it can represent).
    pub mbec: bool,
    /// [`MapGpaFlags::SUPERVISOR_SHADOW_STACK`] is known.
    pub shadow_stack: bool,
    /// [`Host::protect`] binds devices and the VMM's own accesses too.
    pub device_view: bool,
    /// [`Host::aliases`] tells every guest page of a frame.
    pub aliases: bool,
}

impl Capabilities {
    /// Everything.
    pub const ALL: Self = Self { mbec: true, shadow_stack: true, device_view: true, aliases: true };
}

/// A call on several ranges that ended early.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Partial {
    /// Why.
    pub status: HvStatus,
    /// How many of the ranges were done, from the first.
    pub done: usize,
}

/// The guest's memory and processors, as the VMM has them.
pub trait Host: Send + Sync {
    /// What this backend can do. Always the same answer.
    fn capabilities(&self) -> Capabilities;

    /// The frame that a guest page is backed by; `None` if it is not RAM.
    fn frame(&self, gpn: Gpn) -> Option<Frame>;

    /// Every guest page that `frame` backs.
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn));

    /// Sets what `vtl`, and for VTL0 its devices, may do with the pages. When it returns, new translations obey; cached ones may not yet.
    ///
    /// # Errors
    /// [`Partial`]: ranges from `done` on are as they were.
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial>;

    /// Returns when nothing uses an older permission of the pages: the TLBs of every processor are flushed, instructions that the VMM
    /// emulates are done, and slices of memory that devices hold are given back.
    ///
    /// # Errors
    /// [`HvStatus::OBJECT_IN_USE`] if that takes too long; nothing may be concluded then.
    fn quiesce(&self, vtl: Vtl, ranges: &[GpnRange]) -> Result<(), HvStatus>;

    /// Reads guest memory, whatever its protection: for the engine's own use.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] where there is no RAM.
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus>;

    /// The words of a page of guest memory, little-endian, where the host has it at hand: what the engine only compares it looks at there, and
    /// need not [read](Self::read). `None` from a host that has not.
    fn words(&self, gpn: Gpn) -> Option<&[AtomicU64; 512]> {
        let _ = gpn;
        None
    }

    /// Writes guest memory, whatever its protection: for the engine's own use.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] where there is no RAM; nothing is written then.
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus>;

    /// Nanoseconds of a clock that never goes back, for the timing in events. A host without one answers 0.
    fn now(&self) -> u64 {
        0
    }
}

/// A virtual processor that has exited to the VMM; valid until it is resumed.
pub trait Vp {
    /// `HV_VP_INDEX`.
    fn index(&self) -> u32;

    /// The value of the register with this `HV_REGISTER_NAME`.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a name that the backend does not know.
    fn register(&self, name: u32) -> Result<u128, HvStatus>;

    /// Sets a register.
    ///
    /// # Errors
    /// As [`register`](Self::register), or [`HvStatus::INVALID_REGISTER_VALUE`].
    fn set_register(&mut self, name: u32, value: u128) -> Result<(), HvStatus>;

    /// Has an exception delivered before the next instruction.
    fn inject(&mut self, vector: u8, error_code: Option<u32>);
}

/// An access that the second-level table refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryIntercept {
    /// Where.
    pub gpa: Gpa,
    /// The virtual address that led there, if it was an access of a program.
    pub gva: Option<Gva>,
    /// What was tried.
    pub access: Access,
    /// Whether it was the walk of the guest's page tables, not the access itself.
    pub page_walk: bool,
    /// Privilege level, 0 to 3.
    pub cpl: u8,
    /// Address of the instruction.
    pub rip: Gva,
}

/// What the VMM does after an intercept.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Run the instruction again: the permission is there by now.
    Resume,
    /// Go on behind the instruction.
    Skip,
    /// Resume; an exception has been injected.
    InjectedFault,
    /// Stop the machine: it cannot go on.
    Terminate,
}

/// What a VMM holds, as `Option<Arc<dyn Enforcer>>`: an engine that is off costs one branch.
pub trait Enforcer: Send + Sync {
    /// Answers a hypercall of `vtl`: its status and how many elements of a rep call are done.
    fn hypercall(&self, vp: &mut dyn Vp, vtl: Vtl, control: u64, input: &[u8], output: &mut [u8]) -> (HvStatus, u16);

    /// Answers an access of VTL0 that the second-level table refused.
    fn on_memory(&self, vp: &mut dyn Vp, intercept: &MemoryIntercept) -> Action;

    /// Answers a write to a register that is intercepted, before it is done. [`Action::Resume`] lets it happen.
    fn on_register_write(&self, vp: &mut dyn Vp, name: u32, old: u64, new: u64) -> Action;

    /// Whether `vtl`, its devices or the VMM on its behalf may access `len` bytes from `gpa`. All of them or none.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] if not; [`HvStatus::INVALID_PARAMETER`] where there is no RAM.
    fn check(&self, vtl: Vtl, gpa: Gpa, len: u64, access: Access) -> Result<(), HvStatus>;

    /// The protection state, for a snapshot or a migration.
    fn save(&self, sink: &mut dyn FnMut(&[u8]));

    /// Takes over a saved state.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for what is no saved state of a known version; [`HvStatus::OPERATION_DENIED`] for one that is older
    /// than what this machine has reached. Nothing is changed then. An error of the host's own comes when the state is taken over already, and
    /// leaves permissions narrower than it allows.
    fn restore(&self, source: &[u8]) -> Result<(), HvStatus>;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn traits_are_object_safe() {
        fn _uses(_: &dyn Host, _: &mut dyn Vp, _: &dyn Enforcer) {}
    }
}
