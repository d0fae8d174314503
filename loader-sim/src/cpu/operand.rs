//! Operands: registers, immediates and memory, and the address of the latter.

use hvci_engine::access::Access;
use iced_x86::{Instruction, OpKind, Register};

use super::{
    Cpu, Trap,
    alu::Width,
    linear::{Place, Ring},
    registers::RSP,
};
use crate::bus::Bus;

/// Where a value is read and written.
#[derive(Clone, Copy, Debug)]
pub(super) enum Target {
    Register(Gpr),
    Memory(Place, Width),
}

/// A general register, or a part of it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Gpr {
    index: usize,
    width: Width,
    /// AH, CH, DH or BH.
    high: bool,
}

impl Gpr {
    pub(super) fn of(register: Register) -> Option<Self> {
        let number = register.number();
        let (index, width, high) = if register.is_gpr64() {
            (number, Width::Qword, false)
        } else if register.is_gpr32() {
            (number, Width::Dword, false)
        } else if register.is_gpr16() {
            (number, Width::Word, false)
        } else if register.is_gpr8() {
            // AL to BL, AH to BH, SPL to DIL, R8L to R15L
            match number {
                4..8 => (number - 4, Width::Byte, true),
                8.. => (number - 4, Width::Byte, false),
                _ => (number, Width::Byte, false),
            }
        } else {
            return None;
        };
        (index < 16).then_some(Self { index, width, high })
    }
}

/// A register's value after a part of it was written: 32-bit writes clear the upper half, shorter ones keep what is above them.
pub(super) const fn merged(old: u64, new: u64, width: Width) -> u64 {
    match width {
        Width::Qword => new,
        Width::Dword => new & width.mask(),
        Width::Byte | Width::Word => old & !width.mask() | new & width.mask(),
    }
}

impl Cpu {
    pub(super) fn gpr(&self, gpr: Gpr) -> u64 {
        let value = self.registers.general.gpr[gpr.index];
        (if gpr.high { value >> 8 } else { value }) & gpr.width.mask()
    }

    pub(super) fn set_gpr(&mut self, gpr: Gpr, value: u64) {
        let old = self.registers.general.gpr[gpr.index];
        self.registers.general.gpr[gpr.index] = if gpr.high { old & !0xff00 | (value & 0xff) << 8 } else { merged(old, value, gpr.width) };
    }

    /// The linear address of the memory operand, and whether it is one of the stack segment.
    pub(super) fn address(&self, instruction: &Instruction) -> Result<(u64, bool), Trap> {
        let (base, index) = (instruction.memory_base(), instruction.memory_index());
        let mut offset = instruction.memory_displacement64();
        // relative to RIP: the displacement is the address
        if !matches!(base, Register::None | Register::RIP | Register::EIP) {
            offset = offset.wrapping_add(self.gpr(Gpr::of(base).ok_or_else(|| self.unsupported(instruction))?));
        }
        if index != Register::None {
            let index = self.gpr(Gpr::of(index).ok_or_else(|| self.unsupported(instruction))?);
            offset = offset.wrapping_add(index.wrapping_mul(instruction.memory_index_scale().into()));
        }
        if [base, index].iter().any(|r| r.is_gpr32() || *r == Register::EIP) {
            offset &= Width::Dword.mask();
        }
        let segment = instruction.memory_segment();
        Ok((self.segment_base(segment).wrapping_add(offset), segment == Register::SS))
    }

    pub(super) fn segment_base(&self, segment: Register) -> u64 {
        match segment {
            Register::FS => self.registers.fs.base,
            Register::GS => self.registers.gs.base,
            _ => 0,
        }
    }

    /// An operand as a place. What will be written is asked for with [`Access::Write`] before it is read.
    pub(super) fn target<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, operand: u32, access: Access) -> Result<Target, Trap> {
        match i.op_kind(operand) {
            OpKind::Register => Gpr::of(i.op_register(operand)).map(Target::Register).ok_or_else(|| self.unsupported(i)),
            OpKind::Memory => {
                let width = Width::of(i.memory_size().size()).ok_or_else(|| self.unsupported(i))?;
                let (address, stack) = self.address(i)?;
                let place = self.locate(bus, address, width.bytes(), access, Ring::Current, stack)?;
                Ok(Target::Memory(place, width))
            }
            _ => Err(self.unsupported(i)),
        }
    }

    pub(super) fn get<B: Bus + ?Sized>(&self, bus: &mut B, target: Target) -> Result<u64, Trap> {
        match target {
            Target::Register(gpr) => Ok(self.gpr(gpr)),
            Target::Memory(place, width) => {
                let mut bytes = [0; 8];
                self.load_at(bus, place, &mut bytes[..width.bytes()])?;
                Ok(u64::from_le_bytes(bytes))
            }
        }
    }

    /// Writes a place; memory for good, so as the last thing that an instruction can fail at.
    pub(super) fn put<B: Bus + ?Sized>(&mut self, bus: &mut B, target: Target, value: u64) -> Result<(), Trap> {
        match target {
            Target::Register(gpr) => {
                self.set_gpr(gpr, value);
                Ok(())
            }
            Target::Memory(place, width) => self.store_at(bus, place, &value.to_le_bytes()[..width.bytes()]),
        }
    }

    /// The value of an operand, not masked if it is an immediate.
    pub(super) fn read<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, operand: u32) -> Result<u64, Trap> {
        match i.op_kind(operand) {
            OpKind::Register | OpKind::Memory => {
                let target = self.target(bus, i, operand, Access::Read)?;
                self.get(bus, target)
            }
            _ => i.try_immediate(operand).map_err(|_| self.unsupported(i)),
        }
    }

    pub(super) fn write<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, operand: u32, value: u64) -> Result<(), Trap> {
        let target = self.target(bus, i, operand, Access::Write)?;
        self.put(bus, target, value)
    }

    /// Pushes a value and moves RSP.
    pub(super) fn push<B: Bus + ?Sized>(&mut self, bus: &mut B, value: u64, width: Width) -> Result<(), Trap> {
        let rsp = self.registers.general.gpr[RSP].wrapping_sub(width.bytes() as u64);
        let place = self.locate(bus, rsp, width.bytes(), Access::Write, Ring::Current, true)?;
        self.store_at(bus, place, &value.to_le_bytes()[..width.bytes()])?;
        self.registers.general.gpr[RSP] = rsp;
        Ok(())
    }

    /// Pops a value and moves RSP.
    pub(super) fn pop<B: Bus + ?Sized>(&mut self, bus: &mut B, width: Width) -> Result<u64, Trap> {
        let rsp = self.registers.general.gpr[RSP];
        let place = self.locate(bus, rsp, width.bytes(), Access::Read, Ring::Current, true)?;
        let mut bytes = [0; 8];
        self.load_at(bus, place, &mut bytes[..width.bytes()])?;
        self.registers.general.gpr[RSP] = rsp.wrapping_add(width.bytes() as u64);
        Ok(u64::from_le_bytes(bytes))
    }
}

impl Target {
    pub(super) const fn width(self) -> Width {
        match self {
            Self::Register(gpr) => gpr.width,
            Self::Memory(_, width) => width,
        }
    }
}
