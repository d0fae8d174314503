//! Accesses by linear address: translated page by page, all of it before any byte is written.

use hvci_engine::{
    access::Access,
    addr::{Gpa, Gva},
    host::MemoryIntercept,
};

use super::{
    Cpu, Exception, Exit, Trap,
    registers::{cr0, flag},
};
use crate::{
    bus::{Bus, Fault},
    memory::{PAGE, page_offset},
    paging::{Request, WalkError, is_canonical, translate},
};

/// In whose name memory is accessed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Ring {
    /// The program's.
    Current,
    /// The kernel's, whatever the privilege level: pushes on a handler's stack.
    Kernel,
    /// The processor's own: descriptor tables and the TSS. RFLAGS.AC lifts no SMAP.
    System,
}

/// Bytes of one page.
#[derive(Clone, Copy, Debug)]
struct Piece {
    gpa: Gpa,
    address: u64,
    len: usize,
}

/// Where an operand in memory is: in one page, or in two.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    first: Piece,
    second: Option<Piece>,
}

impl Cpu {
    /// Translates `len` bytes, at most a page; `stack` says which fault an address beyond the canonical ones is.
    pub(super) fn locate<B: Bus + ?Sized>(
        &mut self,
        bus: &mut B,
        address: u64,
        len: usize,
        access: Access,
        ring: Ring,
        stack: bool,
    ) -> Result<Place, Trap> {
        let last = address.wrapping_add(len as u64).wrapping_sub(1);
        if !is_canonical(address) || !is_canonical(last) {
            return Err(if stack { Exception::stack(0) } else { Exception::general_protection(0) }.into());
        }
        let user = ring == Ring::Current && self.registers.cpl() == 3;
        let checked = user && self.registers.cr0 & cr0::AM != 0 && self.registers.is_set(flag::AC);
        if checked && len.is_power_of_two() && !address.is_multiple_of(len as u64) {
            return Err(Exception::ALIGNMENT.into());
        }
        let here = (PAGE - page_offset(address)).min(len);
        let gpa = self.translate(bus, address, access, ring)?;
        let first = Piece { gpa, address, len: here };
        let second = if here == len {
            None
        } else {
            let address = address.wrapping_add(here as u64);
            Some(Piece { gpa: self.translate(bus, address, access, ring)?, address, len: len - here })
        };
        Ok(Place { first, second })
    }

    pub(super) fn load_at<B: Bus + ?Sized>(&self, bus: &mut B, place: Place, bytes: &mut [u8]) -> Result<(), Trap> {
        let (here, there) = bytes.split_at_mut(place.first.len);
        let mut load = |piece: Piece, bytes: &mut [u8]| {
            bus.load(piece.gpa, Access::Read, false, bytes).map_err(|fault| self.intercept(fault, piece.address))
        };
        load(place.first, here)?;
        place.second.map_or(Ok(()), |piece| load(piece, there))
    }

    /// Writes all of it or nothing. To be the last thing that an instruction can fail at.
    pub(super) fn store_at<B: Bus + ?Sized>(&self, bus: &mut B, place: Place, bytes: &[u8]) -> Result<(), Trap> {
        let (here, there) = bytes.split_at(place.first.len);
        if let Some(piece) = place.second {
            for piece in [place.first, piece] {
                bus.check_store(piece.gpa, piece.len).map_err(|fault| self.intercept(fault, piece.address))?;
            }
        }
        let mut store =
            |piece: Piece, bytes: &[u8]| bus.store(piece.gpa, false, bytes).map_err(|fault| self.intercept(fault, piece.address));
        store(place.first, here)?;
        place.second.map_or(Ok(()), |piece| store(piece, there))
    }

    pub(super) fn load_linear<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, bytes: &mut [u8], ring: Ring) -> Result<(), Trap> {
        let place = self.locate(bus, address, bytes.len(), Access::Read, ring, false)?;
        self.load_at(bus, place, bytes)
    }

    /// Fetches bytes of one page.
    pub(super) fn fetch_bytes<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, bytes: &mut [u8]) -> Result<(), Trap> {
        let access = if self.registers.cpl() == 3 { Access::UserExecute } else { Access::KernelExecute };
        let gpa = self.translate(bus, address, access, Ring::Current)?;
        bus.load(gpa, access, false, bytes).map_err(|fault| self.intercept(fault, address))
    }

    /// Where the instruction of this length is that the processor stands at: `None` where it cannot be fetched, or lies over the end of a page,
    /// behind which the guest may map anything.
    pub fn instruction_gpa<B: Bus + ?Sized>(&mut self, bus: &mut B, len: u64) -> Option<Gpa> {
        let rip = self.registers.general.rip;
        let access = if self.registers.cpl() == 3 { Access::UserExecute } else { Access::KernelExecute };
        let gpa = self.translate(bus, rip, access, Ring::Current).ok()?;
        (gpa.offset() + len <= PAGE as u64).then_some(gpa)
    }

    fn translate<B: Bus + ?Sized>(&mut self, bus: &mut B, address: u64, access: Access, ring: Ring) -> Result<Gpa, Trap> {
        let request = Request {
            access,
            user: ring == Ring::Current && self.registers.cpl() == 3,
            smap_off: ring != Ring::System && self.registers.is_set(flag::AC),
        };
        let controls = self.registers.controls();
        let offset = page_offset(address) as u64;
        if !request.user
            && let Some(page) = bus.translation(address)
        {
            return Ok(Gpa(page.0 | offset));
        }
        if let Some(known) = self.tlb.get(address) {
            if known.allows(request, &controls) && (known.dirty || access != Access::Write) {
                return Ok(Gpa(known.page.0 | offset));
            }
            self.tlb.flush_page(address);
        }
        match translate(bus, &controls, address, request) {
            Ok(translation) => {
                self.tlb.insert(address, translation);
                Ok(Gpa(translation.page.0 | offset))
            }
            Err(WalkError::Page(error_code)) => Err(Exception::page(error_code, address).into()),
            Err(WalkError::Bus(fault)) => Err(self.intercept(fault, address)),
        }
    }

    fn intercept(&self, fault: Fault, address: u64) -> Trap {
        Trap::Exit(Exit::Memory(MemoryIntercept {
            gpa: fault.gpa,
            gva: Some(Gva(address)),
            access: fault.access,
            page_walk: fault.page_walk,
            cpl: self.registers.cpl(),
            rip: Gva(self.registers.general.rip),
        }))
    }
}
