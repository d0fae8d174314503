//! Privileged instructions, and those that change the privilege level or leave the processor (Intel SDM volumes 2 and 3).
//!
//! The privilege level is checked first, then the host is asked, then the value is checked.

use hvci_engine::{
    access::Access,
    vsm::{intercept::Interceptable, register::RegisterName as Name},
};
use iced_x86::{Instruction, Mnemonic, OpKind, Register};

use super::{
    Cpu, Exception, Exit, Trap,
    linear::Ring,
    registers::{RSP, Registers, Segment, Table, cr4, efer, flag},
};
use crate::{
    bus::Bus,
    paging::{entry, is_canonical},
};

const RCX: usize = 1;
const R11: usize = 11;

/// Types of system descriptors.
const LDT: u64 = 2;
const AVAILABLE_TSS: u64 = 9;

impl Cpu {
    pub(super) fn system<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        use Mnemonic as M;
        match i.mnemonic() {
            M::Hlt | M::Wbinvd => self.kernel_only(),
            M::Cli | M::Sti if self.registers.cpl() > self.registers.iopl() => Err(Exception::general_protection(0).into()),
            M::Cli => self.change_flags(flag::IF, 0),
            M::Sti => self.change_flags(0, flag::IF),
            M::Clac | M::Stac if self.registers.cpl() != 0 => Err(Exception::INVALID_OPCODE.into()),
            M::Clac => self.change_flags(flag::AC, 0),
            M::Stac => self.change_flags(0, flag::AC),
            M::Swapgs => {
                self.kernel_only()?;
                let registers = &mut self.registers;
                (registers.gs.base, registers.kernel_gs_base) = (registers.kernel_gs_base, registers.gs.base);
                Ok(())
            }
            M::Invlpg => {
                self.kernel_only()?;
                let (address, _) = self.address(i)?;
                self.tlb.flush_page(address);
                Ok(())
            }

            M::Rdmsr => self.read_msr(),
            M::Wrmsr => self.write_msr(),
            M::Xgetbv | M::Xsetbv if self.registers.cr4 & cr4::OSXSAVE == 0 => Err(Exception::INVALID_OPCODE.into()),
            M::Xgetbv => {
                if self.low(RCX) != 0 {
                    return Err(Exception::general_protection(0).into());
                }
                let xcr0 = self.registers.xcr0;
                self.set_pair(xcr0);
                Ok(())
            }
            M::Xsetbv => {
                self.kernel_only()?;
                let new = self.pair();
                if self.low(RCX) != 0 {
                    return Err(Exception::general_protection(0).into());
                }
                self.ask(Name::XCR0, self.registers.xcr0, new, new.into())?;
                if !Registers::is_xcr0(new) {
                    return Err(Exception::general_protection(0).into());
                }
                self.registers.xcr0 = new;
                Ok(())
            }

            M::Lgdt | M::Lidt => self.load_table(bus, i),
            M::Sgdt | M::Sidt => self.store_table(bus, i),
            M::Lldt | M::Ltr => self.load_system_segment(bus, i),

            M::Vmcall | M::Vmmcall => Err(Trap::Exit(Exit::Hypercall { cpl: self.registers.cpl(), vmmcall: i.mnemonic() == M::Vmmcall })),
            M::Cpuid => Err(Trap::Exit(Exit::Cpuid { leaf: self.low(0), subleaf: self.low(RCX) })),
            M::In | M::Out => self.port(bus, i),

            M::Syscall => self.system_call(),
            M::Sysretq => self.system_return(),
            M::Iretq => self.interrupt_return(bus),
            _ => Err(self.unsupported(i)),
        }
    }

    pub(super) fn is_control_register(&self, i: &Instruction) -> bool {
        [0, 1].iter().any(|operand| i.op_kind(*operand) == OpKind::Register && i.op_register(*operand).is_cr())
    }

    /// MOV to and from a control register.
    pub(super) fn move_control(&mut self, i: &Instruction) -> Result<(), Trap> {
        self.kernel_only()?;
        let (to, from) = (i.op_register(0), i.op_register(1));
        if let Some(gpr) = super::operand::Gpr::of(to) {
            let value = match from {
                Register::CR0 => self.registers.cr0,
                Register::CR2 => self.registers.cr2,
                Register::CR3 => self.registers.cr3,
                Register::CR4 => self.registers.cr4,
                Register::CR8 => self.registers.cr8,
                _ => return Err(Exception::INVALID_OPCODE.into()),
            };
            self.set_gpr(gpr, value);
            return Ok(());
        }
        let Some(gpr) = super::operand::Gpr::of(from) else { return Err(self.unsupported(i)) };
        let new = self.gpr(gpr);
        let refused = Exception::general_protection(0);
        match to {
            Register::CR0 => {
                self.ask(Name::CR0, self.registers.cr0, new, new.into())?;
                self.registers.cr0 = Registers::cr0_value(new).ok_or(refused)?;
            }
            Register::CR2 => self.registers.cr2 = new,
            Register::CR3 => {
                if new & !(entry::ADDRESS | 0xfff) != 0 {
                    return Err(refused.into());
                }
                self.registers.cr3 = new;
                self.tlb.flush_local();
            }
            Register::CR4 => {
                self.ask(Name::CR4, self.registers.cr4, new, new.into())?;
                self.registers.cr4 = Registers::cr4_value(new).ok_or(refused)?;
                self.tlb.flush();
            }
            Register::CR8 if new > 15 => return Err(refused.into()),
            Register::CR8 => self.registers.cr8 = new,
            _ => return Err(Exception::INVALID_OPCODE.into()),
        }
        Ok(())
    }

    fn kernel_only(&self) -> Result<(), Trap> {
        if self.registers.cpl() == 0 { Ok(()) } else { Err(Exception::general_protection(0).into()) }
    }

    fn low(&self, gpr: usize) -> u32 {
        (self.registers.general.gpr[gpr] & 0xffff_ffff) as u32
    }

    /// EDX:EAX.
    fn pair(&self) -> u64 {
        u64::from(self.low(2)) << 32 | u64::from(self.low(0))
    }

    fn set_pair(&mut self, value: u64) {
        let gpr = &mut self.general().gpr;
        (gpr[0], gpr[2]) = (value & 0xffff_ffff, value >> 32);
    }

    fn read_msr(&mut self) -> Result<(), Trap> {
        self.kernel_only()?;
        let msr = self.low(RCX);
        let Some(value) = self.registers.msr(msr).map(|msr| *msr.value) else { return Err(Trap::Exit(Exit::ReadMsr { msr })) };
        self.set_pair(value);
        Ok(())
    }

    fn write_msr(&mut self) -> Result<(), Trap> {
        self.kernel_only()?;
        let (number, new) = (self.low(RCX), self.pair());
        let Some((name, old)) = self.registers.msr(number).map(|msr| (msr.name, *msr.value)) else {
            return Err(Trap::Exit(Exit::WriteMsr { msr: number, value: new }));
        };
        if Interceptable::of_register(name).is_some() {
            self.ask(name, old, new, new.into())?;
        }
        if !self.registers.msr(number).is_some_and(|msr| msr.write(new)) {
            return Err(Exception::general_protection(0).into());
        }
        // NXE changes what entries mean
        if name == Name::EFER {
            self.tlb.flush();
        }
        Ok(())
    }

    fn load_table<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        self.kernel_only()?;
        let (address, stack) = self.address(i)?;
        let place = self.locate(bus, address, 10, Access::Read, Ring::Current, stack)?;
        let mut bytes = [0; 16];
        self.load_at(bus, place, &mut bytes[..10])?;
        let value = u128::from_le_bytes(bytes);
        let new = Table { base: (value >> 16 & 0xffff_ffff_ffff_ffff) as u64, limit: (value & 0xffff) as u16 };
        let interrupts = i.mnemonic() == Mnemonic::Lidt;
        let (name, old) = if interrupts { (Name::IDTR, self.registers.idtr) } else { (Name::GDTR, self.registers.gdtr) };
        self.ask(name, old.base, new.base, value)?;
        if !is_canonical(new.base) {
            return Err(Exception::general_protection(0).into());
        }
        *(if interrupts { &mut self.registers.idtr } else { &mut self.registers.gdtr }) = new;
        Ok(())
    }

    fn store_table<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        if self.registers.cpl() != 0 && self.registers.cr4 & cr4::UMIP != 0 {
            return Err(Exception::general_protection(0).into());
        }
        let table = if i.mnemonic() == Mnemonic::Sidt { self.registers.idtr } else { self.registers.gdtr };
        let bytes = (u128::from(table.base) << 16 | u128::from(table.limit)).to_le_bytes();
        let (address, stack) = self.address(i)?;
        let place = self.locate(bus, address, 10, Access::Write, Ring::Current, stack)?;
        self.store_at(bus, place, &bytes[..10])
    }

    /// LLDT and LTR: the descriptor is read from the GDT; that of a TSS is marked busy.
    fn load_system_segment<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        self.kernel_only()?;
        let selector = (self.read(bus, i, 0)? & 0xffff) as u16;
        let task = i.mnemonic() == Mnemonic::Ltr;
        let (name, old, kind) = if task { (Name::TR, self.registers.tr, AVAILABLE_TSS) } else { (Name::LDTR, self.registers.ldtr, LDT) };
        if selector & !3 == 0 && !task {
            self.ask(name, old.selector.into(), selector.into(), selector.into())?;
            self.registers.ldtr = Segment { selector, ..Segment::default() };
            return Ok(());
        }
        let error_code = u32::from(selector & !3);
        let refused = Exception::general_protection(error_code);
        let gdtr = self.registers.gdtr;
        // a null selector, one of the LDT, or beyond the table
        if error_code == 0 || selector & 4 != 0 || u32::from(gdtr.limit) < u32::from(selector & !7) + 15 {
            return Err(refused.into());
        }
        let at = gdtr.base.wrapping_add((selector & !7).into());
        let mut bytes = [0; 16];
        self.load_linear(bus, at, &mut bytes, Ring::System)?;
        let descriptor = u128::from_le_bytes(bytes);
        let bits = |from: u32, len: u32| (descriptor >> from & ((1 << len) - 1) & 0xffff_ffff_ffff_ffff) as u64;
        let base = bits(16, 24) | bits(56, 40) << 24;
        if bits(40, 5) != kind || !is_canonical(base) {
            return Err(refused.into());
        }
        if bits(47, 1) == 0 {
            return Err(Exception::not_present(error_code).into());
        }
        let limit = ((bits(0, 16) | bits(48, 4) << 16) & 0xf_ffff) as u32;
        let limit = if bits(55, 1) == 0 { limit } else { limit << 12 | 0xfff };
        let whole = u128::from(base) | u128::from(limit) << 64 | u128::from(selector) << 96;
        self.ask(name, old.selector.into(), selector.into(), whole)?;
        if task {
            let busy = bytes[5] | 2;
            let place = self.locate(bus, at.wrapping_add(5), 1, Access::Write, Ring::System, false)?;
            self.store_at(bus, place, &[busy])?;
        }
        *(if task { &mut self.registers.tr } else { &mut self.registers.ldtr }) = Segment { selector, base, limit };
        Ok(())
    }

    fn port<B: Bus + ?Sized>(&mut self, bus: &mut B, i: &Instruction) -> Result<(), Trap> {
        if self.registers.cpl() > self.registers.iopl() {
            return Err(Exception::general_protection(0).into());
        }
        let input = i.mnemonic() == Mnemonic::In;
        let (data, port) = if input { (0, 1) } else { (1, 0) };
        let port = (self.read(bus, i, port)? & 0xffff) as u16;
        let target = self.target(bus, i, data, Access::Read)?;
        let value = (self.get(bus, target)? & 0xffff_ffff) as u32;
        let width = target.width().bytes();
        Err(Trap::Exit(Exit::Io { port, width, write: (!input).then_some(value) }))
    }

    fn system_call(&mut self) -> Result<(), Trap> {
        if self.registers.efer & efer::SCE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        let (behind, rflags) = (self.next_rip, self.registers.general.rflags);
        let registers = &mut self.registers;
        registers.general.gpr[RCX] = behind;
        registers.general.gpr[R11] = rflags & !flag::RF;
        registers.general.rflags = rflags & !(registers.sfmask | flag::RF) | flag::FIXED;
        let selector = (registers.star >> 32 & 0xfffc) as u16;
        registers.cs.selector = selector;
        registers.ss.selector = selector.wrapping_add(8);
        self.next_rip = registers.lstar;
        Ok(())
    }

    fn system_return(&mut self) -> Result<(), Trap> {
        if self.registers.efer & efer::SCE == 0 {
            return Err(Exception::INVALID_OPCODE.into());
        }
        self.kernel_only()?;
        self.branch(self.registers.general.gpr[RCX])?;
        let registers = &mut self.registers;
        let allowed = flag::LOADED | flag::IF | flag::IOPL;
        registers.general.rflags = registers.general.gpr[R11] & allowed | flag::FIXED;
        let selector = (registers.star >> 48 & 0xffff) as u16;
        registers.cs.selector = selector.wrapping_add(16) | 3;
        registers.ss.selector = selector.wrapping_add(8) | 3;
        Ok(())
    }

    fn interrupt_return<B: Bus + ?Sized>(&mut self, bus: &mut B) -> Result<(), Trap> {
        if self.registers.is_set(flag::NT) {
            return Err(Exception::general_protection(0).into());
        }
        let mut frame = [0; 40];
        let rsp = self.registers.general.gpr[RSP];
        let place = self.locate(bus, rsp, frame.len(), Access::Read, Ring::Current, true)?;
        self.load_at(bus, place, &mut frame)?;
        let mut values = [0; 5];
        for (value, bytes) in values.iter_mut().zip(frame.as_chunks::<8>().0) {
            *value = u64::from_le_bytes(*bytes);
        }
        let [rip, cs, rflags, new_rsp, ss] = values;
        let (cs, ss) = ((cs & 0xffff) as u16, (ss & 0xffff) as u16);
        let (to, from) = ((cs & 3) as u8, self.registers.cpl());
        let selector = |selector: u16| Exception::general_protection((selector & !3).into());
        if cs & !3 == 0 || to < from {
            return Err(selector(cs).into());
        }
        // no stack segment is needed in the kernel
        if ss & 3 != cs & 3 || ss & !3 == 0 && to == 3 {
            return Err(selector(ss).into());
        }
        self.branch(rip)?;
        self.load_flags(rflags);
        let registers = &mut self.registers;
        registers.general.gpr[RSP] = new_rsp;
        registers.cs.selector = cs;
        registers.ss.selector = ss;
        Ok(())
    }
}
