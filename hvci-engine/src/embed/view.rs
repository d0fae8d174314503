//! Guest memory as devices and the VMM's own emulator may use it: vm-memory's [`GuestMemory`] over any backend, asked of an [`Enforcer`].
//!
//! The view is had from a [`VtlMemory`] and lives in a [`Guard`], which pins the epoch before anything is looked up: slices borrow from it, so
//! that [`Epochs::synchronize`] returns when the last one is gone. The memory behind it is not given out
//! ([`physical_memory`](GuestMemory::physical_memory) is `None`).
//!
//! It trusts the backend to be the memory that the enforcer's pages are of. An access that is not allowed is
//! [`InvalidGuestAddress`](vm_memory::GuestMemoryError::InvalidGuestAddress), the error that devices know; the enforcer keeps the record.

use core::{fmt, ops::Deref};
use std::sync::Arc;

use vm_memory::{
    Address, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryBackend, GuestMemoryError, GuestMemoryRegion, Permissions,
    bitmap::BS, guest_memory::GuestMemorySliceIterator,
};

use super::epoch::{Epochs, Pin};
use crate::{
    access::Access,
    addr::{Gpa, Vtl},
    host::Enforcer,
};

/// Memory of a guest, as far as VTL0 may access it.
pub struct VtlView<M> {
    backend: M,
    enforcer: Arc<dyn Enforcer>,
}

impl<M> VtlView<M> {
    fn allows(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        let Ok(len) = u64::try_from(count) else { return false };
        let allows = |access| self.enforcer.check(Vtl::Vtl0, Gpa(addr.raw_value()), len, access).is_ok();
        match access {
            Permissions::Write => allows(Access::Write),
            Permissions::ReadWrite => allows(Access::Read) && allows(Access::Write),
            // a slice that is asked for without a permission can be read all the same
            Permissions::Read | Permissions::No => allows(Access::Read),
        }
    }
}

impl<M> fmt::Debug for VtlView<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VtlView").finish_non_exhaustive()
    }
}

impl<M: GuestMemoryBackend> GuestMemory for VtlView<M> {
    type PhysicalMemory = M;
    type Bitmap = <M::R as GuestMemoryRegion>::B;

    fn check_range(&self, addr: GuestAddress, count: usize, access: Permissions) -> bool {
        self.backend.check_range(addr, count) && self.allows(addr, count, access)
    }

    fn get_slices<'a>(
        &'a self,
        addr: GuestAddress,
        count: usize,
        access: Permissions,
    ) -> Result<impl GuestMemorySliceIterator<'a, BS<'a, Self::Bitmap>>, GuestMemoryError> {
        if !self.allows(addr, count, access) {
            return Err(GuestMemoryError::InvalidGuestAddress(addr));
        }
        Ok(GuestMemoryBackend::get_slices(&self.backend, addr, count))
    }
}

/// The memory of a guest, for its devices: what a VMM has where it had the backend.
pub struct VtlMemory<M> {
    view: Arc<VtlView<M>>,
    epochs: Arc<Epochs>,
}

impl<M> VtlMemory<M> {
    /// Memory whose accesses `enforcer` decides. `epochs` is what the host synchronizes to [quiesce](crate::host::Host::quiesce).
    pub fn new(backend: M, enforcer: Arc<dyn Enforcer>, epochs: Arc<Epochs>) -> Self {
        Self { view: Arc::new(VtlView { backend, enforcer }), epochs }
    }
}

impl<M> Clone for VtlMemory<M> {
    fn clone(&self) -> Self {
        Self { view: Arc::clone(&self.view), epochs: Arc::clone(&self.epochs) }
    }
}

impl<M> fmt::Debug for VtlMemory<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("VtlMemory").field("epochs", &self.epochs).finish_non_exhaustive()
    }
}

impl<M: GuestMemoryBackend> GuestAddressSpace for VtlMemory<M> {
    type M = VtlView<M>;
    type T = Guard<M>;

    fn memory(&self) -> Guard<M> {
        Guard { _pin: self.epochs.pin(), memory: self.clone() }
    }
}

/// A [`VtlView`] and the epoch that it is used in. To be held for one request of a device, not for its life.
#[derive(Debug)]
pub struct Guard<M> {
    memory: VtlMemory<M>,
    _pin: Pin,
}

impl<M> Clone for Guard<M> {
    /// Pins the epoch of now: slices had from the clone are checked in it.
    fn clone(&self) -> Self {
        Self { _pin: self.memory.epochs.pin(), memory: self.memory.clone() }
    }
}

impl<M> Deref for Guard<M> {
    type Target = VtlView<M>;

    fn deref(&self) -> &VtlView<M> {
        &self.memory.view
    }
}
