//! Privileged instructions, and the exits of those that the host answers.

use hvci_engine::{host::Vp, status::HvStatus, vsm::register::RegisterName as Name};
use iced_x86::code_asm::*;

use super::*;
use crate::{
    cpu::registers::{Segment, Table, cr0, cr4, efer, msr},
    testing::{DATA, STACK, USER_CODE, USER_DATA, assemble},
};

/// In user mode.
fn user(code: &[u8]) -> Machine {
    let mut machine = Machine::new();
    machine.load(USER_CODE, code);
    machine.cpu.registers_mut().cs.selector = 0x33;
    machine.general().rip = USER_CODE;
    machine.general().gpr[RBX] = USER_DATA;
    machine
}

#[test]
fn user_mode_has_no_privileges() {
    let codes: [Code; 17] = [
        |a| a.hlt(),
        |a| a.cli(),
        |a| a.sti(),
        |a| a.wbinvd(),
        |a| a.swapgs(),
        |a| a.rdmsr(),
        |a| a.wrmsr(),
        |a| a.mov(rax, cr0),
        |a| a.mov(cr3, rax),
        |a| a.lgdt(fword_ptr(rbx)),
        |a| a.lidt(fword_ptr(rbx)),
        |a| a.sgdt(fword_ptr(rbx)),
        |a| a.ltr(ax),
        |a| a.lldt(ax),
        |a| a.invlpg(byte_ptr(rbx)),
        |a| a.xsetbv(),
        |a| a.in_(al, dx),
    ];
    for (n, code) in codes.into_iter().enumerate() {
        let mut machine = user(&assemble(USER_CODE, code));
        assert_eq!(exception(&machine.run()), (13, Some(0)), "{n}");
    }
    for code in [&[0x0f, 0x01, 0xcb][..], &[0x0f, 0x01, 0xca]] {
        assert_eq!(exception(&user(code).run()), (6, None), "STAC and CLAC");
    }
    assert_eq!(exception(&user(&[0x48, 0x0f, 0x07]).run()), (13, Some(0)), "SYSRET");
    let mut machine = user(&[0x0f, 0x01, 0xc1]);
    assert_eq!(machine.run(), Exit::Hypercall { cpl: 3, vmmcall: false });
    // POPF leaves what it may not change
    let mut machine = user(&assemble(USER_CODE, |a| a.popfq()));
    machine.load(USER_DATA, &0x3202_u64.to_le_bytes());
    machine.general().gpr[RSP] = USER_DATA;
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.cpu.registers().general.rflags, flag::FIXED);
}

#[test]
fn register_writes_ask_first() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, cr0)?;
        a.and(eax, !0x1_0000)?;
        a.mov(cr0, rax)?;
        a.hlt()
    });
    let old = machine.cpu.registers().cr0;
    let exit = Exit::RegisterWrite { name: Name::CR0, old, new: old & !cr0::WP };
    assert_eq!(machine.run(), exit);
    assert_eq!(machine.cpu.registers().cr0, old);
    // stepping again asks again
    assert_eq!(machine.run(), exit);
    assert_eq!(machine.cpu.answer(0), Err(HvStatus::INVALID_VP_STATE));
    machine.cpu.allow_write().unwrap();
    assert_eq!(machine.cpu.allow_write(), Err(HvStatus::INVALID_VP_STATE));
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.registers().cr0, old & !cr0::WP);
}

#[test]
fn permission_is_for_one_value() {
    let mut machine = Machine::with(|a| {
        a.mov(cr0, rax)?;
        a.hlt()
    });
    let old = machine.cpu.registers().cr0;
    machine.general().gpr[RAX] = old;
    assert!(matches!(machine.run(), Exit::RegisterWrite { .. }));
    machine.cpu.allow_write().unwrap();
    machine.general().gpr[RAX] = old & !cr0::WP;
    assert_eq!(machine.run(), Exit::RegisterWrite { name: Name::CR0, old, new: old & !cr0::WP });
    machine.cpu.skip().unwrap();
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.registers().cr0, old);
    // it does not outlive an instruction, or an injection
    machine.general().rip = CODE;
    assert!(matches!(machine.run(), Exit::RegisterWrite { .. }));
    machine.cpu.allow_write().unwrap();
    Vp::inject(&mut machine.cpu, 13, Some(0));
    assert_eq!(exception(&machine.run()), (13, Some(0)));
    assert!(matches!(machine.run(), Exit::RegisterWrite { .. }));
}

#[test]
fn permission_is_for_all_of_a_table() {
    let mut machine = Machine::with(|a| {
        a.lidt(fword_ptr(rbx))?;
        a.hlt()
    });
    machine.general().gpr[RBX] = DATA;
    machine.load(DATA, &[0xff, 0]);
    assert_eq!(machine.run(), Exit::RegisterWrite { name: Name::IDTR, old: 0, new: 0 });
    machine.cpu.allow_write().unwrap();
    // another processor changes the limit, of which the host was not told
    machine.load(DATA, &[0xff, 0xf]);
    assert_eq!(machine.run(), Exit::RegisterWrite { name: Name::IDTR, old: 0, new: 0 });
    machine.cpu.allow_write().unwrap();
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.registers().idtr.limit, 0xfff);
}

/// How code ended: with HLT or an exception.
type Ended = Result<(), (u8, Option<u32>)>;

/// Runs code to its end, and lets every register write happen; their names.
fn permissive(machine: &mut Machine) -> (Vec<Name>, Ended) {
    let mut names = Vec::new();
    loop {
        match machine.run() {
            Exit::RegisterWrite { name, .. } => {
                names.push(name);
                machine.cpu.allow_write().unwrap();
            }
            Exit::Halt => return (names, Ok(())),
            exit => return (names, Err(exception(&exit))),
        }
    }
}

#[test]
fn control_registers_refuse_what_they_cannot_hold() {
    let write = |code: Code, value: u64| {
        let mut machine = Machine::with(|a| {
            code(a)?;
            a.hlt()
        });
        machine.general().gpr[RAX] = value;
        let (_, outcome) = permissive(&mut machine);
        (outcome, *machine.cpu.registers())
    };
    let registers = *Machine::new().cpu.registers();
    let refused = Err((13, Some(0)));
    let to_cr0: Code = |a| a.mov(cr0, rax);
    for value in [registers.cr0 & !cr0::PG, registers.cr0 & !cr0::PE, registers.cr0 | cr0::NW, registers.cr0 | 1 << 32] {
        assert_eq!(write(to_cr0, value).0, refused, "{value:#x}");
    }
    assert_eq!(write(to_cr0, registers.cr0 & !cr0::ET | 1 << 6).1.cr0, registers.cr0, "ET is set, what does not exist is not");
    let to_cr4: Code = |a| a.mov(cr4, rax);
    for value in
        [registers.cr4 & !cr4::PAE, registers.cr4 | 1 << 12, registers.cr4 | 1 << 13, registers.cr4 | 1 << 17, registers.cr4 | 1 << 40]
    {
        assert_eq!(write(to_cr4, value).0, refused, "{value:#x}");
    }
    assert_eq!(write(to_cr4, registers.cr4 & !cr4::SMEP).1.cr4, registers.cr4 & !cr4::SMEP);
    assert_eq!(write(|a| a.mov(cr3, rax), 1 << 52).0, refused);
    assert_eq!(write(|a| a.mov(cr8, rax), 16).0, refused);
    assert_eq!(write(|a| a.mov(cr8, rax), 15).1.cr8, 15);
    assert_eq!(write(|a| a.mov(cr2, rax), 5).1.cr2, 5);
    let mut machine = Machine::new();
    machine.load(CODE, &[0x0f, 0x22, 0xc8]);
    assert_eq!(exception(&machine.run()), (6, None), "there is no CR1");
}

#[test]
fn model_specific_registers() {
    let write = |number: u32, value: u64| {
        let mut machine = Machine::with(|a| {
            a.wrmsr()?;
            a.xor(eax, eax)?;
            a.xor(edx, edx)?;
            a.rdmsr()?;
            a.hlt()
        });
        machine.general().gpr[..3].copy_from_slice(&[value & 0xffff_ffff, number.into(), value >> 32]);
        let (names, outcome) = permissive(&mut machine);
        (names, outcome.map(|()| machine.gpr(RDX) << 32 | machine.gpr(RAX)))
    };
    let refused = Err((13, Some(0)));
    let pinned = [
        (msr::APIC_BASE, Name::APIC_BASE),
        (msr::SYSENTER_CS, Name::SYSENTER_CS),
        (msr::SYSENTER_EIP, Name::SYSENTER_EIP),
        (msr::SYSENTER_ESP, Name::SYSENTER_ESP),
        (msr::MISC_ENABLE, Name::MISC_ENABLE),
        (msr::STAR, Name::STAR),
        (msr::LSTAR, Name::LSTAR),
        (msr::CSTAR, Name::CSTAR),
        (msr::SFMASK, Name::SFMASK),
        (msr::TSC_AUX, Name::TSC_AUX),
    ];
    for (number, name) in pinned {
        assert_eq!(write(number, 0x1234_5678), (vec![name], Ok(0x1234_5678)), "{number:#x}");
    }
    for number in [msr::FS_BASE, msr::GS_BASE, msr::KERNEL_GS_BASE] {
        assert_eq!(write(number, DATA), (vec![], Ok(DATA)));
        assert_eq!(write(number, 1 << 47), (vec![], refused));
    }
    assert_eq!(write(msr::LSTAR, 1 << 63), (vec![Name::LSTAR], refused));
    assert_eq!(write(msr::SFMASK, 1 << 32).1, refused);
    assert_eq!(write(msr::PAT, 2).1, refused);
    assert_eq!(write(msr::EFER, 0xd01 & !efer::NXE).1, Ok(0x501));
    assert_eq!(write(msr::EFER, efer::LME).1, Ok(efer::LME | efer::LMA), "LMA is not written");
    assert_eq!(write(msr::EFER, efer::NXE).1, refused, "long mode is not left");
    assert_eq!(write(msr::EFER, 0xd01 | 1 << 12).1, refused);
    // what the processor does not have is for the host
    let mut machine = Machine::with(|a| {
        a.mov(ecx, 0x4000_0000)?;
        a.wrmsr()?;
        a.rdmsr()?;
        a.hlt()
    });
    machine.general().gpr[RAX] = 5;
    machine.general().gpr[RDX] = 6;
    assert_eq!(machine.run(), Exit::WriteMsr { msr: 0x4000_0000, value: 6 << 32 | 5 });
    machine.cpu.skip().unwrap();
    assert_eq!(machine.run(), Exit::ReadMsr { msr: 0x4000_0000 });
    machine.cpu.answer(0x1_0000_0002).unwrap();
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.gpr(RAX), machine.gpr(RDX)), (2, 1));
}

#[test]
fn descriptor_tables() {
    let mut machine = Machine::with(|a| {
        a.mov(rbx, DATA)?;
        a.lgdt(fword_ptr(rbx))?;
        a.lidt(fword_ptr(rbx + 0x10))?;
        a.sgdt(fword_ptr(rbx + 0x20))?;
        a.sidt(fword_ptr(rbx + 0x30))?;
        a.mov(eax, 0x28)?;
        a.ltr(ax)?;
        a.mov(ecx, 0x18)?;
        a.lldt(cx)?;
        a.hlt()
    });
    let table = |base: u64, limit: u16| [&limit.to_le_bytes()[..], &base.to_le_bytes()].concat();
    machine.load(DATA, &table(DATA + 0x100, 0x37));
    machine.load(DATA + 0x10, &table(DATA + 0x1000, 0xfff));
    // base, limit 0x67, present; a TSS and an LDT
    let descriptor = |base: u64, kind: u64| {
        let low = 0x67 | (base & 0xff_ffff) << 16 | kind << 40 | 1 << 47 | (base >> 24 & 0xff) << 56;
        [low.to_le_bytes(), (base >> 32).to_le_bytes()].concat()
    };
    machine.load(DATA + 0x128, &descriptor(DATA + 0x2000, 9));
    machine.load(DATA + 0x118, &descriptor(DATA + 0x3000, 2));
    let (names, outcome) = permissive(&mut machine);
    assert_eq!(outcome, Ok(()));
    assert_eq!(names, [Name::GDTR, Name::IDTR, Name::TR, Name::LDTR]);
    let registers = *machine.cpu.registers();
    assert_eq!(registers.gdtr, Table { base: DATA + 0x100, limit: 0x37 });
    assert_eq!(registers.idtr, Table { base: DATA + 0x1000, limit: 0xfff });
    assert_eq!(registers.tr, Segment { selector: 0x28, base: DATA + 0x2000, limit: 0x67 });
    assert_eq!(registers.ldtr, Segment { selector: 0x18, base: DATA + 0x3000, limit: 0x67 });
    assert_eq!(machine.bytes(DATA + 0x20, 10), table(DATA + 0x100, 0x37));
    assert_eq!(machine.bytes(DATA + 0x30, 10), table(DATA + 0x1000, 0xfff));
    // a selector of the LDT names nothing of the GDT
    machine.load(CODE, &assemble(CODE, |a| a.lldt(ax)));
    machine.general().rip = CODE;
    machine.general().gpr[RAX] = 0x1c;
    machine.cpu.registers_mut().idtr.limit = 0;
    assert_eq!(exception(&machine.run()), (13, Some(0x1c)));
    assert_eq!(machine.bytes(DATA + 0x12d, 1), [0x8b], "the TSS is busy");
    // which is why it is not loaded again; nor is anything but a TSS, or what is beyond the table
    for (selector, error_code) in [(0x28, 0x28), (0x18, 0x18), (0x30, 0x30), (0, 0), (0x2c, 0x2c)] {
        machine.load(CODE, &assemble(CODE, |a| a.ltr(ax)));
        machine.general().rip = CODE;
        machine.general().gpr[RAX] = selector;
        assert_eq!(exception(&machine.run()), (13, Some(error_code)), "{selector:#x}");
    }
}

#[test]
fn extended_control() {
    let mut machine = Machine::with(|a| {
        a.xor(ecx, ecx)?;
        a.xor(edx, edx)?;
        a.mov(eax, 7)?;
        a.xsetbv()?;
        a.xor(eax, eax)?;
        a.xgetbv()?;
        a.mov(ebx, eax)?;
        a.mov(eax, 5)?;
        a.xsetbv()?;
        a.hlt()
    });
    assert_eq!(permissive(&mut machine), (vec![Name::XCR0, Name::XCR0], Err((13, Some(0)))), "no AVX without SSE");
    assert_eq!((machine.gpr(RBX), machine.cpu.registers().xcr0), (7, 7));
    machine.general().rip = CODE;
    machine.cpu.registers_mut().cr4 &= !cr4::OSXSAVE;
    assert_eq!(permissive(&mut machine), (vec![], Err((6, None))));
}

#[test]
fn system_calls() {
    let mut machine = user(&assemble(USER_CODE, |a| {
        a.syscall()?;
        a.nop()
    }));
    machine.load(
        CODE,
        &assemble(CODE, |a| {
            a.mov(eax, 42)?;
            a.sysretq()
        }),
    );
    let registers = machine.cpu.registers_mut();
    registers.lstar = CODE;
    registers.star = 0x0023_0010_0000_0000;
    registers.sfmask = flag::IF | flag::DF;
    registers.general.rflags |= flag::IF | flag::DF | flag::CF;
    machine.cpu.step(&mut machine.bus).unwrap();
    let registers = *machine.cpu.registers();
    assert_eq!((registers.general.rip, registers.cpl(), registers.cs.selector, registers.ss.selector), (CODE, 0, 0x10, 0x18));
    assert_eq!(registers.general.rflags, flag::FIXED | flag::CF);
    assert_eq!((registers.general.gpr[RCX], registers.general.gpr[11]), (USER_CODE + 2, flag::FIXED | flag::IF | flag::DF | flag::CF));
    machine.cpu.step(&mut machine.bus).unwrap();
    machine.cpu.step(&mut machine.bus).unwrap();
    let registers = *machine.cpu.registers();
    assert_eq!((registers.general.rip, registers.cpl(), registers.cs.selector, registers.ss.selector), (USER_CODE + 2, 3, 0x33, 0x2b));
    assert_eq!(registers.general.rflags, flag::FIXED | flag::IF | flag::DF | flag::CF);
    let mut machine = user(&[0x0f, 0x05]);
    machine.cpu.registers_mut().efer &= !efer::SCE;
    assert_eq!(exception(&machine.run()), (6, None));
}

#[test]
fn exits_that_are_answered() {
    let mut machine = Machine::with(|a| {
        a.vmcall()?;
        a.mov(eax, 0x4000_0000)?;
        a.mov(ecx, 7)?;
        a.cpuid()?;
        a.in_(al, 0x60)?;
        a.mov(dx, 0x3f8)?;
        a.out(dx, ax)?;
        a.hlt()
    });
    assert_eq!(machine.run(), Exit::Hypercall { cpl: 0, vmmcall: false });
    assert_eq!(machine.cpu.registers().general.rip, CODE);
    Vp::set_register(&mut machine.cpu, Name::RAX.0, 9).unwrap();
    machine.cpu.skip().unwrap();
    assert_eq!(machine.run(), Exit::Cpuid { leaf: 0x4000_0000, subleaf: 7 });
    assert_eq!(machine.cpu.answer(1), Err(HvStatus::INVALID_VP_STATE));
    machine.cpu.answer_cpuid([0x1111_1111, 2, 3, 4]).unwrap();
    assert_eq!([RAX, RBX, RCX, RDX].map(|n| machine.gpr(n)), [0x1111_1111, 2, 3, 4]);
    assert_eq!(machine.run(), Exit::Io { port: 0x60, width: 1, write: None });
    machine.cpu.answer(0xabcd).unwrap();
    assert_eq!(machine.run(), Exit::Io { port: 0x3f8, width: 2, write: Some(0x11cd) });
    machine.cpu.skip().unwrap();
    assert_eq!(machine.run(), Exit::Halt);
}

#[test]
fn supervisor_access_prevention_is_lifted_by_ac() {
    let mut machine = Machine::with(|a| {
        a.stac()?;
        a.mov(rax, qword_ptr(rbx))?;
        a.clac()?;
        a.mov(rax, qword_ptr(rbx))
    });
    machine.general().gpr[RBX] = USER_DATA;
    let Exit::Exception(fault) = machine.run() else { panic!() };
    assert_eq!((fault.vector, fault.error_code, fault.cr2), (14, Some(1), Some(USER_DATA)));
    assert_eq!(machine.cpu.registers().general.rip, CODE + 9);
}

#[test]
fn registers_by_name() {
    let mut machine = Machine::new();
    let cpu = &mut machine.cpu;
    let vp: &mut dyn Vp = cpu;
    assert_eq!(vp.register(Name::RIP.0), Ok(CODE.into()));
    assert_eq!(vp.register(Name::RSP.0), Ok((STACK - 0x100).into()));
    assert_eq!(vp.register(0x0003_0000), Err(HvStatus::INVALID_PARAMETER));
    for n in Name::RAX.0..=Name::R15.0 {
        vp.set_register(n, u128::from(n) << 32).unwrap();
        assert_eq!(vp.register(n), Ok(u128::from(n) << 32));
    }
    assert_eq!(vp.set_register(Name::RAX.0, 1 << 64), Err(HvStatus::INVALID_REGISTER_VALUE));
    assert_eq!(vp.set_register(Name::CR0.0, 1), Err(HvStatus::INVALID_REGISTER_VALUE));
    assert_eq!(vp.set_register(Name::RIP.0, 1 << 47), Err(HvStatus::INVALID_REGISTER_VALUE));
    assert_eq!(vp.set_register(Name::RFLAGS.0, flag::VM.into()), Err(HvStatus::INVALID_REGISTER_VALUE));
    assert_eq!(vp.set_register(Name::EFER.0, 0), Err(HvStatus::INVALID_REGISTER_VALUE));
    vp.set_register(Name::RFLAGS.0, flag::IF.into()).unwrap();
    assert_eq!(vp.register(Name::RFLAGS.0), Ok((flag::IF | flag::FIXED).into()));
    let table = u128::from(DATA) << 64 | 0xfff << 48;
    vp.set_register(Name::IDTR.0, table).unwrap();
    assert_eq!(vp.register(Name::IDTR.0), Ok(table));
    // user mode: a 64-bit code segment of level 3
    vp.set_register(Name::CS.0, 0x33 << 96).unwrap();
    assert_eq!(vp.register(Name::CS.0), Ok(0xa0fb << 112 | 0x33 << 96));
    vp.set_register(Name::GS.0, u128::from(DATA)).unwrap();
    assert_eq!(machine.cpu.registers().gs.base, DATA);
    assert_eq!(machine.cpu.registers().idtr, Table { base: DATA, limit: 0xfff });
    assert_eq!(machine.cpu.registers().cpl(), 3);
}
