//! Exceptions and their delivery through the guest's interrupt descriptor table (Intel SDM volume 3, chapter 6; "64-bit mode" in 6.14).

use hvci_engine::access::Access;

use super::{
    Cpu, Exit, Trap,
    linear::Ring,
    registers::{RSP, flag},
};
use crate::{bus::Bus, paging::is_canonical};

/// #BP.
pub(super) const BREAKPOINT: u8 = 3;
const DOUBLE_FAULT: u8 = 8;
const INVALID_TSS: u8 = 10;
const NOT_PRESENT: u8 = 11;
const STACK_FAULT: u8 = 12;
const GENERAL_PROTECTION: u8 = 13;
const PAGE_FAULT: u8 = 14;
const ALIGNMENT_CHECK: u8 = 17;

/// In an error code: the event came from outside the program; the index is one of the IDT.
const EXTERNAL: u32 = 1;
const IN_IDT: u32 = 2;

/// Bits 32 to 47 of a gate: present, for an interrupt.
pub(crate) const INTERRUPT_GATE: u64 = 0x8E00;

/// A gate to the kernel with these bits 32 to 47: type, DPL, presence and IST ("64-bit mode IDT").
pub(crate) fn gate(handler: u64, kind: u64) -> [u8; 16] {
    let low = (handler & 0xFFFF) | 0x10 << 16 | kind << 32 | (handler >> 16 & 0xFFFF) << 48;
    (u128::from(low) | u128::from(handler >> 32) << 64).to_le_bytes()
}

/// An exception, or a software interrupt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Exception {
    /// Its number.
    pub vector: u8,
    /// What is pushed with it.
    pub error_code: Option<u32>,
    /// The address of a page fault.
    pub cr2: Option<u64>,
    /// Whether INT or INT3 raised it: the handler returns behind the instruction.
    pub software: bool,
}

impl Exception {
    /// #UD.
    pub(super) const INVALID_OPCODE: Self = Self::new(6, None);
    /// #AC.
    pub(super) const ALIGNMENT: Self = Self::new(ALIGNMENT_CHECK, Some(0));

    pub(super) const fn new(vector: u8, error_code: Option<u32>) -> Self {
        Self { vector, error_code, cr2: None, software: false }
    }

    pub(super) const fn software(vector: u8) -> Self {
        Self { vector, error_code: None, cr2: None, software: true }
    }

    pub(super) const fn general_protection(error_code: u32) -> Self {
        Self::new(GENERAL_PROTECTION, Some(error_code))
    }

    pub(super) const fn not_present(error_code: u32) -> Self {
        Self::new(NOT_PRESENT, Some(error_code))
    }

    pub(super) const fn stack(error_code: u32) -> Self {
        Self::new(STACK_FAULT, Some(error_code))
    }

    pub(super) const fn page(error_code: u32, address: u64) -> Self {
        Self { vector: PAGE_FAULT, error_code: Some(error_code), cr2: Some(address), software: false }
    }

    /// What becomes of a fault while this is delivered; `None` if the processor gives up.
    fn followed_by(self, second: Self) -> Option<Self> {
        let contributory = |vector| matches!(vector, 0 | INVALID_TSS..=GENERAL_PROTECTION);
        let double = match self.vector {
            DOUBLE_FAULT if !self.software => return None,
            PAGE_FAULT => contributory(second.vector) || second.vector == PAGE_FAULT,
            first => contributory(first) && contributory(second.vector),
        };
        Some(if double && !self.software { Self::new(DOUBLE_FAULT, Some(0)) } else { second })
    }
}

impl From<Exception> for Trap {
    fn from(exception: Exception) -> Self {
        Self::Exception(exception)
    }
}

impl Cpu {
    /// Delivers an exception, or what comes of it. If the second-level table is in the way nothing has changed.
    pub(super) fn deliver<B: Bus + ?Sized>(&mut self, bus: &mut B, exception: Exception) -> Result<(), Exit> {
        if self.registers.idtr.limit == 0 {
            return Err(Exit::Exception(exception));
        }
        let mut exception = exception;
        loop {
            match self.enter_handler(bus, exception) {
                Ok(()) => return Ok(()),
                Err(Trap::Exit(exit)) => return Err(exit),
                // ends: a software interrupt becomes a fault, that a double fault, that none
                Err(Trap::Exception(second)) => exception = exception.followed_by(second).ok_or(Exit::TripleFault)?,
            }
        }
    }

    fn enter_handler<B: Bus + ?Sized>(&mut self, bus: &mut B, exception: Exception) -> Result<(), Trap> {
        let registers = self.registers;
        let cpl = registers.cpl();
        let external = if exception.software { 0 } else { EXTERNAL };
        let in_idt = u32::from(exception.vector) << 3 | IN_IDT | external;

        let slot = u16::from(exception.vector) * 16;
        if registers.idtr.limit < slot + 15 {
            return Err(Exception::general_protection(in_idt).into());
        }
        let mut gate = [0; 16];
        self.load_linear(bus, registers.idtr.base.wrapping_add(slot.into()), &mut gate, Ring::System)?;
        let gate = Gate(u128::from_le_bytes(gate));
        if exception.software && gate.dpl() < cpl || !gate.is_gate() {
            return Err(Exception::general_protection(in_idt).into());
        }
        if !gate.is_present() {
            return Err(Exception::not_present(in_idt).into());
        }
        if gate.selector() & !3 == 0 || !is_canonical(gate.offset()) {
            return Err(Exception::general_protection(external).into());
        }

        let old_rsp = registers.general.gpr[RSP];
        let stack = match (gate.ist(), cpl) {
            (0, 0) => old_rsp,
            (0, _) => self.tss_stack(bus, 4, external)?,
            (ist, _) => self.tss_stack(bus, 0x1c + 8 * ist, external)?,
        };
        let (rip, resume) = if exception.software {
            (self.next_rip, registers.general.rflags)
        } else {
            (registers.general.rip, registers.general.rflags | flag::RF)
        };
        let frame =
            [exception.error_code.map_or(0, u64::from), rip, registers.cs.selector.into(), resume, old_rsp, registers.ss.selector.into()];
        let frame = if exception.error_code.is_some() { &frame[..] } else { &frame[1..] };
        let bytes: Vec<u8> = frame.iter().flat_map(|value| value.to_le_bytes()).collect();
        let rsp = (stack & !15).wrapping_sub(bytes.len() as u64);
        if !is_canonical(rsp) || !is_canonical(rsp.wrapping_add(bytes.len() as u64 - 1)) {
            return Err(Exception::stack(external).into());
        }
        let place = self.locate(bus, rsp, bytes.len(), Access::Write, Ring::Kernel, true)?;
        self.store_at(bus, place, &bytes)?;

        let mut cleared = flag::TF | flag::NT | flag::RF | flag::VM;
        if gate.masks_interrupts() {
            cleared |= flag::IF;
        }
        let registers = &mut self.registers;
        registers.general.gpr[RSP] = rsp;
        registers.general.rip = gate.offset();
        registers.general.rflags &= !cleared;
        registers.cs.selector = gate.selector() & !3;
        if cpl != 0 {
            registers.ss.selector = 0;
        }
        if let Some(address) = exception.cr2 {
            registers.cr2 = address;
        }
        Ok(())
    }

    /// A stack pointer of the task state segment.
    fn tss_stack<B: Bus + ?Sized>(&mut self, bus: &mut B, offset: u32, external: u32) -> Result<u64, Trap> {
        let tr = self.registers.tr;
        if tr.limit < offset + 7 {
            return Err(Exception::new(INVALID_TSS, Some(u32::from(tr.selector & !3) | external)).into());
        }
        let mut stack = [0; 8];
        self.load_linear(bus, tr.base.wrapping_add(offset.into()), &mut stack, Ring::System)?;
        Ok(u64::from_le_bytes(stack))
    }
}

/// A 64-bit interrupt or trap gate.
#[derive(Clone, Copy)]
struct Gate(u128);

impl Gate {
    const fn bits(self, from: u32, len: u32) -> u64 {
        (self.0 >> from & ((1 << len) - 1) & 0xffff_ffff_ffff_ffff) as u64
    }

    const fn selector(self) -> u16 {
        (self.0 >> 16 & 0xffff) as u16
    }

    const fn ist(self) -> u32 {
        (self.0 >> 32 & 7) as u32
    }

    /// The type is an interrupt gate's or a trap gate's, and the descriptor is one of the system.
    const fn is_gate(self) -> bool {
        matches!(self.bits(40, 5), 0xe | 0xf)
    }

    const fn masks_interrupts(self) -> bool {
        self.bits(40, 4) == 0xe
    }

    const fn dpl(self) -> u8 {
        (self.0 >> 45 & 3) as u8
    }

    const fn is_present(self) -> bool {
        self.bits(47, 1) != 0
    }

    const fn offset(self) -> u64 {
        self.bits(0, 16) | self.bits(48, 48) << 16
    }
}
