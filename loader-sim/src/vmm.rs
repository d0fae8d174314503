//! What the VMM does with guest memory on the guest's behalf: its devices, its emulator of instructions, its debugger and its snapshots.
//!
//! None of them is bound by the second-level table, so each asks the engine first ([`Enforcer::check`]); and holds a pin from before it asks
//! until it is done, so that a change of permission waits for it. Without an engine nobody is asked.

use std::sync::Arc;

use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, PAGE_SIZE, Vtl},
    embed::Pin,
    host::{Enforcer, Host},
    status::HvStatus,
};

use crate::{
    bus::{Bus, Fault},
    device::Device,
    host::SimHost,
    machine::View,
    memory::PAGE,
};

/// The VMM's own way to guest memory.
#[derive(Clone)]
pub struct Vmm {
    host: Arc<SimHost>,
    enforcer: Option<Arc<dyn Enforcer>>,
}

impl std::fmt::Debug for Vmm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Vmm").field("enforced", &self.enforcer.is_some()).finish_non_exhaustive()
    }
}

impl Vmm {
    /// Over the memory of `host`, under `enforcer` if there is one.
    pub fn new(host: Arc<SimHost>, enforcer: Option<Arc<dyn Enforcer>>) -> Self {
        Self { host, enforcer }
    }

    /// Memory for one request of a device: checked now, used until it is dropped.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] if VTL0 may not access all of it so; [`HvStatus::INVALID_PARAMETER`] where there is no RAM.
    pub fn slice(&self, gpa: Gpa, len: u64, access: Access) -> Result<Slice<'_>, HvStatus> {
        // before the check: either it sees a change, or the change sees the pin
        let pin = self.host.pin();
        if let Some(enforcer) = &self.enforcer {
            enforcer.check(Vtl::Vtl0, gpa, len, access)?;
        }
        Ok(Slice { host: &self.host, gpa, len, _pin: pin })
    }

    /// Reads on behalf of the guest.
    ///
    /// # Errors
    /// As [`slice`](Self::slice).
    pub fn read(&self, gpa: Gpa, bytes: &mut [u8]) -> Result<(), HvStatus> {
        self.slice(gpa, bytes.len() as u64, Access::Read)?.read(bytes)
    }

    /// Writes on behalf of the guest.
    ///
    /// # Errors
    /// As [`slice`](Self::slice); nothing is written then.
    pub fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.slice(gpa, bytes.len() as u64, Access::Write)?.write(bytes)
    }

    /// Has an assigned device access memory, page by page, as the IOMMU has it: what it writes before the page that is refused is written.
    ///
    /// # Errors
    /// [`HvStatus::ACCESS_DENIED`] for a page that is refused.
    pub fn dma(&self, gpa: Gpa, access: Access, bytes: &mut [u8]) -> Result<(), HvStatus> {
        let mut rest = bytes;
        for (gpa, len) in pieces(gpa, rest.len())? {
            let (now, later) = rest.split_at_mut(len);
            match access {
                Access::Read => self.host.dma_load(gpa, now)?,
                Access::Write => self.host.dma_store(gpa, now)?,
                _ => drop(self.host.iommu(gpa, access)?),
            }
            rest = later;
        }
        Ok(())
    }

    /// The pages of RAM that VTL0 may read, with their bytes, and those that it may not: what a snapshot may hold in clear, and what not.
    ///
    /// # Errors
    /// None that occurs for pages of RAM.
    pub fn snapshot(&self, pages: impl Iterator<Item = Gpn>) -> Result<Snapshot, HvStatus> {
        let mut snapshot = Snapshot::default();
        for gpn in pages {
            let mut bytes = vec![0; PAGE];
            match self.read(gpn.gpa().ok_or(HvStatus::INVALID_PARAMETER)?, &mut bytes) {
                Ok(()) => snapshot.pages.push((gpn, bytes)),
                Err(HvStatus::ACCESS_DENIED) => snapshot.left_out.push(gpn),
                Err(status) => return Err(status),
            }
        }
        Ok(snapshot)
    }
}

/// Guest memory as a snapshot has it.
#[derive(Clone, Debug, Default)]
pub struct Snapshot {
    /// Pages and their bytes.
    pub pages: Vec<(Gpn, Vec<u8>)>,
    /// Pages whose bytes are not the VMM's to read.
    pub left_out: Vec<Gpn>,
}

/// Guest memory that was checked; changes of its permissions wait until this is dropped.
#[derive(Debug)]
pub struct Slice<'v> {
    host: &'v SimHost,
    gpa: Gpa,
    len: u64,
    _pin: Pin,
}

impl Slice<'_> {
    /// Reads from its start on.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] beyond its end, or where there is no RAM.
    pub fn read(&self, bytes: &mut [u8]) -> Result<(), HvStatus> {
        let mut rest = bytes;
        for (gpa, len) in self.pieces(rest.len())? {
            let (now, later) = rest.split_at_mut(len);
            self.host.read(gpa, now)?;
            rest = later;
        }
        Ok(())
    }

    /// Writes from its start on.
    ///
    /// # Errors
    /// As [`read`](Self::read).
    pub fn write(&self, bytes: &[u8]) -> Result<(), HvStatus> {
        let mut rest = bytes;
        for (gpa, len) in self.pieces(rest.len())? {
            let (now, later) = rest.split_at(len);
            self.host.write(gpa, now)?;
            rest = later;
        }
        Ok(())
    }

    fn pieces(&self, len: usize) -> Result<impl Iterator<Item = (Gpa, usize)> + use<>, HvStatus> {
        if len as u64 > self.len {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        pieces(self.gpa, len)
    }
}

/// `len` bytes from `gpa` on, page by page.
fn pieces(gpa: Gpa, len: usize) -> Result<impl Iterator<Item = (Gpa, usize)> + use<>, HvStatus> {
    let end = gpa.0.checked_add(len as u64).ok_or(HvStatus::INVALID_PARAMETER)?;
    let mut at = gpa.0;
    Ok(std::iter::from_fn(move || {
        let now = (PAGE_SIZE - at % PAGE_SIZE).min(end - at);
        let piece = (Gpa(at), usize::try_from(now).ok()?);
        at += now;
        (now > 0).then_some(piece)
    }))
}

/// Memory as the VMM's emulator of instructions reaches it: what a processor could not do by itself because an operand is a device's.
#[derive(Debug)]
pub(crate) struct Emulator<'v> {
    vmm: &'v Vmm,
    device: &'v mut Device,
    /// How the processor translates.
    view: View<'v>,
    /// Held from the first access to the last, so that no change of permission comes in between.
    _pin: Pin,
}

impl<'v> Emulator<'v> {
    pub(crate) fn new(vmm: &'v Vmm, device: &'v mut Device, view: View<'v>) -> Self {
        Self { vmm, device, view, _pin: vmm.host.pin() }
    }
}

impl Bus for Emulator<'_> {
    fn load(&mut self, gpa: Gpa, access: Access, page_walk: bool, bytes: &mut [u8]) -> Result<(), Fault> {
        let loaded = match Device::register_at(gpa) {
            Some(register) if access == Access::Read && !page_walk => self.device.load(register, bytes),
            Some(_) => Err(HvStatus::ACCESS_DENIED),
            None => self.vmm.slice(gpa, bytes.len() as u64, access).and_then(|slice| slice.read(bytes)),
        };
        loaded.map_err(|_| Fault { gpa, access, page_walk })
    }

    fn check_store(&mut self, gpa: Gpa, len: usize) -> Result<(), Fault> {
        let access = Access::Write;
        let checked = match Device::register_at(gpa) {
            Some(_) => Ok(()),
            None => self.vmm.slice(gpa, len as u64, access).map(drop),
        };
        checked.map_err(|_| Fault { gpa, access, page_walk: false })
    }

    fn store(&mut self, gpa: Gpa, page_walk: bool, bytes: &[u8]) -> Result<(), Fault> {
        let stored = match Device::register_at(gpa) {
            Some(register) if !page_walk => self.device.store(register, bytes, self.vmm),
            Some(_) => Err(HvStatus::ACCESS_DENIED),
            None => self.vmm.write(gpa, bytes),
        };
        stored.map_err(|_| Fault { gpa, access: Access::Write, page_walk })
    }

    fn translation(&self, address: u64) -> Option<Gpa> {
        self.view.translation(address)
    }
}
