//! MOVS, STOS and LODS: one element a step, so that a repeated one can be interrupted anywhere with RCX, RSI and RDI right.

use hvci_engine::access::Access;
use iced_x86::{Instruction, Mnemonic, OpKind};

use super::{Cpu, Trap, alu::Width, linear::Ring, operand::merged, registers::flag};
use crate::bus::Bus;

const RCX: usize = 1;
const RSI: usize = 6;
const RDI: usize = 7;

impl Cpu {
    pub(super) fn string<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        use Mnemonic as M;
        let width = match i.mnemonic() {
            M::Movsb | M::Stosb | M::Lodsb => Width::Byte,
            M::Movsw | M::Stosw | M::Lodsw => Width::Word,
            M::Movsd | M::Stosd | M::Lodsd => Width::Dword,
            M::Movsq | M::Stosq | M::Lodsq => Width::Qword,
            _ => return Err(self.unsupported(i)),
        };
        let short = |kind| matches!(kind, OpKind::MemoryESEDI | OpKind::MemorySegESI);
        if i.op_kinds().any(short) {
            return Err(self.unsupported(i));
        }
        let repeated = i.has_rep_prefix() || i.has_repne_prefix();
        let left = self.registers.general.gpr[RCX];
        if repeated && left == 0 {
            return Ok(());
        }
        let reads = i.op_kinds().any(|kind| kind == OpKind::MemorySegRSI);
        let writes = i.op_kinds().any(|kind| kind == OpKind::MemoryESRDI);
        let gpr = self.registers.general.gpr;
        let mut value = gpr[0].to_le_bytes();
        if reads {
            let address = self.segment_base(i.memory_segment()).wrapping_add(gpr[RSI]);
            self.load_linear(bus, address, &mut value[..width.bytes()], Ring::Current)?;
        }
        if writes {
            let place = self.locate(bus, gpr[RDI], width.bytes(), Access::Write, Ring::Current, false)?;
            self.store_at(bus, place, &value[..width.bytes()])?;
        }
        let down = self.registers.is_set(flag::DF);
        let size = width.bytes() as u64;
        let moved = |at: u64| if down { at.wrapping_sub(size) } else { at.wrapping_add(size) };
        let general = self.general();
        if reads {
            general.gpr[RSI] = moved(gpr[RSI]);
        }
        if writes {
            general.gpr[RDI] = moved(gpr[RDI]);
        } else {
            general.gpr[0] = merged(gpr[0], u64::from_le_bytes(value), width);
        }
        if repeated {
            general.gpr[RCX] = left - 1;
            if left > 1 {
                self.next_rip = i.ip();
            }
        }
        Ok(())
    }
}
