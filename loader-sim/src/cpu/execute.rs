//! What programs are made of: moves, arithmetic, branches, the stack. The rest goes to [`system`](super::system) and
//! [`string`](super::string).

use hvci_engine::access::Access;
use iced_x86::{Code, ConditionCode, Instruction, Mnemonic, OpKind};

use super::{
    Cpu, Exception, Trap,
    alu::{self, Outcome, Shift, Width},
    exception::BREAKPOINT,
    operand::Target,
    registers::{RSP, flag},
};
use crate::{bus::Bus, paging::is_canonical};

impl Cpu {
    /// Executes an instruction up to RIP, which the caller moves to `next_rip`. On a trap the caller puts the general registers back.
    #[expect(clippy::too_many_lines, reason = "one arm for each instruction")]
    pub(super) fn execute<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        use Mnemonic as M;
        if i.is_string_instruction() {
            return self.string(bus, i);
        }
        match i.mnemonic() {
            M::Mov if self.is_control_register(i) => self.move_control(i),
            M::Mov => {
                let value = self.read(bus, i, 1)?;
                self.write(bus, i, 0, value)
            }
            M::Movzx => {
                let value = self.read(bus, i, 1)?;
                self.write(bus, i, 0, value)
            }
            M::Movsx | M::Movsxd => {
                let source = self.target(bus, i, 1, Access::Read)?;
                let value = source.width().signed(self.get(bus, source)?).cast_unsigned();
                self.write(bus, i, 0, value)
            }
            M::Lea => {
                // the segment's base is no part of it
                let (address, _) = self.address(i)?;
                let offset = address.wrapping_sub(self.segment_base(i.memory_segment()));
                self.write(bus, i, 0, offset)
            }

            M::Add => self.binary(bus, i, |a, b, _, width| alu::add(a, b, false, width)),
            M::Adc => self.binary(bus, i, alu::add),
            M::Sub => self.binary(bus, i, |a, b, _, width| alu::subtract(a, b, false, width)),
            M::Sbb => self.binary(bus, i, alu::subtract),
            M::And => self.binary(bus, i, |a, b, _, width| alu::logic(a & b, width)),
            M::Or => self.binary(bus, i, |a, b, _, width| alu::logic(a | b, width)),
            M::Xor => self.binary(bus, i, |a, b, _, width| alu::logic(a ^ b, width)),
            M::Cmp => self.compare(bus, i, |a, b, width| alu::subtract(a, b, false, width)),
            M::Test => self.compare(bus, i, |a, b, width| alu::logic(a & b, width)),
            M::Inc => self.unary(bus, i, |a, width| alu::keep_carry(alu::add(a, 1, false, width))),
            M::Dec => self.unary(bus, i, |a, width| alu::keep_carry(alu::subtract(a, 1, false, width))),
            M::Neg => self.unary(bus, i, |a, width| alu::subtract(0, a, false, width)),
            M::Not => self.unary(bus, i, |a, width| Outcome { value: !a & width.mask(), flags: 0, changed: 0 }),
            M::Shl | M::Sal => self.shift(bus, i, Shift::Left),
            M::Shr => self.shift(bus, i, Shift::Right),
            M::Sar => self.shift(bus, i, Shift::Arithmetic),
            M::Rol => self.shift(bus, i, Shift::RotateLeft),
            M::Ror => self.shift(bus, i, Shift::RotateRight),
            M::Imul if i.op_count() > 1 => {
                let destination = self.target(bus, i, 0, Access::Write)?;
                let a = self.read(bus, i, i.op_count() - 2)?;
                let b = self.read(bus, i, i.op_count() - 1)?;
                let (value, _, outcome) = alu::multiply(a, b, true, destination.width());
                self.set_flags(outcome);
                self.put(bus, destination, value)
            }
            M::Imul => self.multiply(bus, i, true),
            M::Mul => self.multiply(bus, i, false),
            M::Cbw => self.extend(Width::Byte, Width::Word),
            M::Cwde => self.extend(Width::Word, Width::Dword),
            M::Cdqe => self.extend(Width::Dword, Width::Qword),
            M::Cwd => self.spread(Width::Word),
            M::Cdq => self.spread(Width::Dword),
            M::Cqo => self.spread(Width::Qword),

            M::Xchg => {
                let a = self.target(bus, i, 0, Access::Write)?;
                let b = self.target(bus, i, 1, Access::Write)?;
                let (old_a, old_b) = (self.get(bus, a)?, self.get(bus, b)?);
                // at most one of them is memory, and that goes last
                let (first, second) = if matches!(a, Target::Memory(..)) { ((b, old_a), (a, old_b)) } else { ((a, old_b), (b, old_a)) };
                self.put(bus, first.0, first.1)?;
                self.put(bus, second.0, second.1)
            }
            M::Cmpxchg => self.compare_exchange(bus, i),

            M::Jmp | M::Call => self.jump(bus, i),
            M::Ret => {
                let rip = match i.code() {
                    Code::Retnq | Code::Retnq_imm16 => self.pop(bus, Width::Qword)?,
                    _ => return Err(self.unsupported(i)),
                };
                if i.code() == Code::Retnq_imm16 {
                    let rsp = &mut self.general().gpr[RSP];
                    *rsp = rsp.wrapping_add(i.immediate16().into());
                }
                self.branch(rip)
            }
            M::Push => {
                let width = self.stack_width(i)?;
                let value = self.read(bus, i, 0)?;
                self.push(bus, value, width)
            }
            M::Pop => {
                let width = self.stack_width(i)?;
                let value = self.pop(bus, width)?;
                // with RSP as base, the address is that after the pop
                self.write(bus, i, 0, value)
            }
            M::Leave if i.code() == Code::Leaveq => {
                self.general().gpr[RSP] = self.general().gpr[RSP + 1];
                self.general().gpr[RSP + 1] = self.pop(bus, Width::Qword)?;
                Ok(())
            }
            M::Pushfq => self.push(bus, self.registers.general.rflags & !(flag::RF | flag::VM), Width::Qword),
            M::Popfq => {
                let value = self.pop(bus, Width::Qword)?;
                self.load_flags(value);
                self.general().rflags &= !flag::RF;
                Ok(())
            }

            M::Nop | M::Endbr64 | M::Pause | M::Mfence | M::Lfence | M::Sfence => Ok(()),
            M::Int3 => Err(Exception::software(BREAKPOINT).into()),
            M::Int => Err(Exception::software(i.immediate8()).into()),
            M::Ud2 => Err(Exception::INVALID_OPCODE.into()),
            M::Clc => self.change_flags(flag::CF, 0),
            M::Stc => self.change_flags(0, flag::CF),
            M::Cmc => {
                self.general().rflags ^= flag::CF;
                Ok(())
            }
            M::Cld => self.change_flags(flag::DF, 0),
            M::Std => self.change_flags(0, flag::DF),

            _ if i.is_jcc_short_or_near() => {
                if self.holds(i.condition_code()) {
                    self.branch(i.near_branch_target())?;
                }
                Ok(())
            }
            _ if i.condition_code() != ConditionCode::None => self.conditional(bus, i),
            _ => self.system(bus, i),
        }
    }

    /// Clears flags, then sets flags.
    pub(super) fn change_flags(&mut self, clear: u64, set: u64) -> Result<(), Trap> {
        let rflags = &mut self.general().rflags;
        *rflags = *rflags & !clear | set;
        Ok(())
    }

    /// Loads RFLAGS as POPF and IRET do at this privilege level.
    pub(super) fn load_flags(&mut self, value: u64) {
        let cpl = self.registers.cpl();
        let mut changed = flag::LOADED;
        if cpl <= self.registers.iopl() {
            changed |= flag::IF;
        }
        if cpl == 0 {
            changed |= flag::IOPL;
        }
        let rflags = &mut self.general().rflags;
        *rflags = *rflags & !changed | value & changed;
    }

    /// Goes on at an address.
    pub(super) fn branch(&mut self, rip: u64) -> Result<(), Trap> {
        if !is_canonical(rip) {
            return Err(Exception::general_protection(0).into());
        }
        self.next_rip = rip;
        Ok(())
    }

    pub(super) fn set_flags(&mut self, outcome: Outcome) {
        let rflags = &mut self.general().rflags;
        *rflags = outcome.apply(*rflags);
    }

    fn binary<B: Bus + ?Sized>(
        &mut self,
        bus: &mut B,
        i: &Instruction,
        operation: impl FnOnce(u64, u64, bool, Width) -> Outcome,
    ) -> Result<(), Trap> {
        let target = self.target(bus, i, 0, Access::Write)?;
        let width = target.width();
        let (a, b) = (self.get(bus, target)?, self.read(bus, i, 1)? & width.mask());
        let outcome = operation(a, b, self.registers.is_set(flag::CF), width);
        self.set_flags(outcome);
        self.put(bus, target, outcome.value)
    }

    fn compare<B: Bus + ?Sized>(
        &mut self,
        bus: &mut B,
        i: &Instruction,
        operation: impl FnOnce(u64, u64, Width) -> Outcome,
    ) -> Result<(), Trap> {
        let target = self.target(bus, i, 0, Access::Read)?;
        let (a, b) = (self.get(bus, target)?, self.read(bus, i, 1)? & target.width().mask());
        self.set_flags(operation(a, b, target.width()));
        Ok(())
    }

    fn unary<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, operation: impl FnOnce(u64, Width) -> Outcome) -> Result<(), Trap> {
        let target = self.target(bus, i, 0, Access::Write)?;
        let outcome = operation(self.get(bus, target)?, target.width());
        self.set_flags(outcome);
        self.put(bus, target, outcome.value)
    }

    fn shift<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, kind: Shift) -> Result<(), Trap> {
        let target = self.target(bus, i, 0, Access::Write)?;
        let (a, count) = (self.get(bus, target)?, self.read(bus, i, 1)?);
        let outcome = alu::shift(kind, a, count, target.width());
        self.set_flags(outcome);
        self.put(bus, target, outcome.value)
    }

    /// The product of the accumulator in RDX and RAX; of bytes, in AX.
    fn multiply<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction, signed: bool) -> Result<(), Trap> {
        let factor = self.target(bus, i, 0, Access::Read)?;
        let (b, width) = (self.get(bus, factor)?, factor.width());
        let (low, high, outcome) = alu::multiply(self.accumulator(width), b, signed, width);
        self.set_flags(outcome);
        if width == Width::Byte {
            self.set_accumulator(low | high << 8, Width::Word);
        } else {
            self.set_accumulator(low, width);
            self.set_data(high, width);
        }
        Ok(())
    }

    fn extend(&mut self, from: Width, to: Width) -> Result<(), Trap> {
        self.set_accumulator(from.signed(self.accumulator(from)).cast_unsigned(), to);
        Ok(())
    }

    /// The sign of the accumulator in all of RDX.
    fn spread(&mut self, width: Width) -> Result<(), Trap> {
        let sign = width.signed(self.accumulator(width)) >> 63;
        self.set_data(sign.cast_unsigned(), width);
        Ok(())
    }

    /// Memory is written in either case, with what it held if the comparison fails; a register is left alone then.
    fn compare_exchange<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        let target = self.target(bus, i, 0, Access::Write)?;
        let (width, old) = (target.width(), self.get(bus, target)?);
        let new = self.read(bus, i, 1)?;
        let outcome = alu::subtract(self.accumulator(width), old, false, width);
        self.set_flags(outcome);
        if outcome.value == 0 {
            return self.put(bus, target, new);
        }
        if let Target::Memory(..) = target {
            self.put(bus, target, old)?;
        }
        self.set_accumulator(old, width);
        Ok(())
    }

    fn jump<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        let target = match i.op0_kind() {
            OpKind::NearBranch64 => i.near_branch_target(),
            OpKind::Register | OpKind::Memory => {
                let target = self.target(bus, i, 0, Access::Read)?;
                if target.width() != Width::Qword || !is_near(i.code()) {
                    return Err(self.unsupported(i));
                }
                self.get(bus, target)?
            }
            _ => return Err(self.unsupported(i)),
        };
        let behind = self.next_rip;
        self.branch(target)?;
        if i.mnemonic() == Mnemonic::Call {
            // a push that faults must not leave the target behind
            self.push(bus, behind, Width::Qword).inspect_err(|_| self.next_rip = behind)?;
        }
        Ok(())
    }

    /// SETcc and CMOVcc.
    fn conditional<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        let holds = self.holds(i.condition_code());
        if is_setcc(i) {
            return self.write(bus, i, 0, holds.into());
        }
        if !is_cmovcc(i) {
            return Err(self.unsupported(i));
        }
        // the source is read, and the upper half of a 32-bit destination cleared, in either case
        let value = self.read(bus, i, 1)?;
        let target = self.target(bus, i, 0, Access::Write)?;
        let value = if holds { value } else { self.get(bus, target)? };
        self.put(bus, target, value)
    }

    fn holds(&self, condition: ConditionCode) -> bool {
        use ConditionCode as C;
        let is = |flag| self.registers.is_set(flag);
        let less = is(flag::SF) != is(flag::OF);
        match condition {
            C::None => false,
            C::o => is(flag::OF),
            C::no => !is(flag::OF),
            C::b => is(flag::CF),
            C::ae => !is(flag::CF),
            C::e => is(flag::ZF),
            C::ne => !is(flag::ZF),
            C::be => is(flag::CF) || is(flag::ZF),
            C::a => !is(flag::CF) && !is(flag::ZF),
            C::s => is(flag::SF),
            C::ns => !is(flag::SF),
            C::p => is(flag::PF),
            C::np => !is(flag::PF),
            C::l => less,
            C::ge => !less,
            C::le => less || is(flag::ZF),
            C::g => !less && !is(flag::ZF),
        }
    }

    fn stack_width(&self, i: &Instruction) -> Result<Width, Trap> {
        match i.stack_pointer_increment() {
            -8 | 8 => Ok(Width::Qword),
            -2 | 2 => Ok(Width::Word),
            _ => Err(self.unsupported(i)),
        }
    }

    fn accumulator(&self, width: Width) -> u64 {
        self.registers.general.gpr[0] & width.mask()
    }

    fn set_accumulator(&mut self, value: u64, width: Width) {
        let rax = &mut self.general().gpr[0];
        *rax = super::operand::merged(*rax, value, width);
    }

    fn set_data(&mut self, value: u64, width: Width) {
        let rdx = &mut self.general().gpr[2];
        *rdx = super::operand::merged(*rdx, value, width);
    }
}

/// Far jumps through memory look like near ones but for the code.
const fn is_near(code: Code) -> bool {
    matches!(code, Code::Jmp_rm64 | Code::Call_rm64)
}

fn is_setcc(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Seto
            | M::Setno
            | M::Setb
            | M::Setae
            | M::Sete
            | M::Setne
            | M::Setbe
            | M::Seta
            | M::Sets
            | M::Setns
            | M::Setp
            | M::Setnp
            | M::Setl
            | M::Setge
            | M::Setle
            | M::Setg
    )
}

fn is_cmovcc(i: &Instruction) -> bool {
    use Mnemonic as M;
    matches!(
        i.mnemonic(),
        M::Cmovo
            | M::Cmovno
            | M::Cmovb
            | M::Cmovae
            | M::Cmove
            | M::Cmovne
            | M::Cmovbe
            | M::Cmova
            | M::Cmovs
            | M::Cmovns
            | M::Cmovp
            | M::Cmovnp
            | M::Cmovl
            | M::Cmovge
            | M::Cmovle
            | M::Cmovg
    )
}
