//! Delivery through the guest's IDT, and what happens where it fails.

use hvci_engine::{addr::Gpn, host::Vp};
use iced_x86::code_asm::*;

use super::*;
use crate::{
    cpu::{Exception, gate, registers::cr4},
    testing::{DATA, STACK, USER_CODE, USER_DATA, USER_STACK},
};

const HANDLER: u64 = CODE + 0x400;

/// The frame that a handler without an error code finds at RSP: RIP, CS, RFLAGS, RSP, SS.
fn frame(machine: &mut Machine, at: u64) -> [u64; 5] {
    [0, 1, 2, 3, 4].map(|n| machine.qword(at + n * 8))
}

#[test]
fn a_handler_repairs_and_returns() {
    // the handler maps nothing: it moves the pointer to where there is memory, and retries
    let mut machine = Machine::with(|a| {
        a.mov(rbx, DATA + 0x4000)?;
        a.sti()?;
        a.mov(rax, qword_ptr(rbx))?;
        a.hlt()
    });
    machine.load(
        HANDLER,
        &crate::testing::assemble(HANDLER, |a| {
            a.mov(rcx, cr2)?;
            a.pop(rdx)?;
            a.mov(rbx, DATA)?;
            a.iretq()
        }),
    );
    machine.interrupts(&[(14, HANDLER)]);
    machine.load(DATA, &77_u64.to_le_bytes());
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.gpr(RAX), machine.gpr(RCX), machine.gpr(RDX)), (77, DATA + 0x4000, 0));
    let registers = machine.cpu.registers();
    assert_eq!((registers.general.rflags, registers.general.gpr[RSP]), (flag::FIXED | flag::IF, STACK - 0x100));
    assert_eq!((registers.cs.selector, registers.ss.selector), (0x10, 0x18));
    // the frame lies on an aligned stack, behind the error code
    let pushed = frame(&mut machine, STACK - 0x100 - 40);
    assert_eq!(pushed, [CODE + 11, 0x10, flag::FIXED | flag::IF | flag::RF, STACK - 0x100, 0x18]);
}

#[test]
fn stacks_are_aligned_and_interrupts_masked() {
    let mut machine = Machine::with(|a| a.ud2());
    machine.interrupts(&[(6, HANDLER)]);
    machine.general().gpr[RSP] = STACK - 0x105;
    machine.general().rflags |= flag::IF | flag::DF | flag::NT;
    machine.cpu.step(&mut machine.bus).unwrap();
    let general = machine.cpu.registers().general;
    assert_eq!((general.rip, general.gpr[RSP]), (HANDLER, STACK - 0x110 - 40));
    assert_eq!(general.rflags, flag::FIXED | flag::DF);
    assert_eq!(frame(&mut machine, STACK - 0x110 - 40)[3], STACK - 0x105);
    // a trap gate leaves them
    machine.load(DATA + 0x1060, &gate(HANDLER, 0x8f00));
    machine.general().rip = CODE;
    machine.general().rflags |= flag::IF;
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.cpu.registers().general.rflags, flag::FIXED | flag::DF | flag::IF);
}

#[test]
fn user_mode_comes_in_on_the_kernels_stack() {
    let mut machine = Machine::new();
    machine.load(USER_CODE, &[0xcc, 0xf4]);
    machine.interrupts(&[(3, HANDLER)]);
    let registers = machine.cpu.registers_mut();
    (registers.cs.selector, registers.ss.selector) = (0x33, 0x2b);
    registers.general.rip = USER_CODE;
    registers.general.gpr[RSP] = USER_STACK - 8;
    machine.cpu.step(&mut machine.bus).unwrap();
    let registers = *machine.cpu.registers();
    assert_eq!((registers.cpl(), registers.cs.selector, registers.ss.selector), (0, 0x10, 0));
    assert_eq!((registers.general.rip, registers.general.gpr[RSP]), (HANDLER, STACK - 40));
    // behind the INT3, and without RF: it is a trap
    assert_eq!(frame(&mut machine, STACK - 40), [USER_CODE + 1, 0x33, flag::FIXED, USER_STACK - 8, 0x2b]);
    machine.load(HANDLER, &[0x48, 0xcf]);
    machine.cpu.step(&mut machine.bus).unwrap();
    let registers = machine.cpu.registers();
    assert_eq!((registers.cpl(), registers.general.rip, registers.general.gpr[RSP]), (3, USER_CODE + 1, USER_STACK - 8));
}

#[test]
fn interrupt_stacks() {
    let mut machine = Machine::with(|a| a.ud2());
    machine.interrupts(&[]);
    machine.load(DATA + 0x1060, &gate(HANDLER, 0x8e02));
    machine.load(DATA + 0x2000 + 0x24 + 8, &(DATA + 0x1000).to_le_bytes());
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.gpr(RSP), DATA + 0x1000 - 40);
    assert_eq!(frame(&mut machine, DATA + 0x1000 - 40)[3], STACK - 0x100);
}

#[test]
fn software_interrupts_need_the_gates_privilege() {
    let run = |dpl: u64| {
        let mut machine = Machine::new();
        machine.load(USER_CODE, &[0xcd, 0x30]);
        machine.interrupts(&[(13, HANDLER)]);
        machine.load(DATA + 0x1300, &gate(HANDLER + 1, 0x8e00 | dpl << 13));
        machine.cpu.registers_mut().cs.selector = 0x33;
        machine.general().rip = USER_CODE;
        machine.cpu.step(&mut machine.bus).unwrap();
        let rip = machine.cpu.registers().general.rip;
        let top = machine.gpr(RSP);
        (rip, machine.qword(top))
    };
    assert_eq!(run(3), (HANDLER + 1, USER_CODE + 2));
    assert_eq!(run(0), (HANDLER, 0x30 * 8 + 2), "#GP with the index of the gate");
}

#[test]
fn faults_in_delivery() {
    let deliver = |machine: &mut Machine| {
        let outcome = machine.cpu.step(&mut machine.bus);
        let top = machine.gpr(RSP);
        outcome.map(|()| (machine.cpu.registers().general.rip, if top < STACK && top > STACK - 0x2000 { machine.qword(top) } else { 0 }))
    };
    let with = |code: &[u8], gates: &[(u8, u64)]| {
        let mut machine = Machine::new();
        machine.load(CODE, code);
        machine.interrupts(gates);
        machine
    };
    let (ud2, no_gp) = (&[0x0f, 0x0b][..], &[(8, HANDLER)][..]);
    // no gate: #GP, of the IDT and external; none for that either: #DF
    assert_eq!(deliver(&mut with(ud2, &[(13, HANDLER)])), Ok((HANDLER, 6 * 8 + 3)));
    assert_eq!(deliver(&mut with(ud2, no_gp)), Ok((HANDLER, 0)));
    assert_eq!(deliver(&mut with(ud2, &[])), Err(Exit::TripleFault));
    // not present
    let mut machine = with(ud2, &[(11, HANDLER)]);
    machine.load(DATA + 0x1060, &gate(HANDLER, 0x0e00));
    assert_eq!(deliver(&mut machine), Ok((HANDLER, 6 * 8 + 3)));
    // beyond the limit
    let mut machine = with(ud2, &[(6, HANDLER), (13, HANDLER + 1)]);
    machine.cpu.registers_mut().idtr.limit = 6 * 16 + 14;
    assert_eq!(deliver(&mut machine), Err(Exit::TripleFault));
    // a page fault on the stack of a page fault, with an interrupt stack for #DF
    let mut machine = with(&[0xa1, 0, 0, 0, 0, 0, 0, 0, 0], &[(14, HANDLER)]);
    machine.load(DATA + 0x1080, &gate(HANDLER + 1, 0x8e01));
    machine.load(DATA + 0x2024, &STACK.to_le_bytes());
    machine.general().gpr[RSP] = 0x1000;
    assert_eq!(deliver(&mut machine), Ok((HANDLER + 1, 0)));
    // #GP, then a page fault: that is delivered
    let mut machine = with(&[0x0f, 0x32, 0xf4], &[(13, HANDLER)]);
    machine.load(DATA + 0x10e0, &gate(HANDLER + 2, 0x8e01));
    machine.load(DATA + 0x2024, &STACK.to_le_bytes());
    machine.cpu.registers_mut().cs.selector = 0x13;
    machine.load(DATA + 0x2004, &0x1000_u64.to_le_bytes());
    machine.tables.map(&mut machine.bus, CODE, hvci_engine::addr::Gpa(0x1_0000), 0x1000, 5).unwrap();
    assert_eq!(deliver(&mut machine), Ok((HANDLER + 2, 2)));
    assert_eq!(machine.cpu.registers().cr2, 0x1000 - 48);
    // user mode without a TSS
    let mut machine = with(ud2, &[(6, HANDLER)]);
    machine.load(USER_CODE, ud2);
    machine.cpu.registers_mut().cs.selector = 0x33;
    machine.cpu.registers_mut().tr.limit = 10;
    machine.general().rip = USER_CODE;
    assert_eq!(deliver(&mut machine), Err(Exit::TripleFault));
}

#[test]
fn descriptor_tables_are_the_kernels() {
    let run = |flags: u64| {
        let mut machine = Machine::with(|a| a.ud2());
        machine.interrupts(&[]);
        machine.load(USER_DATA + 0x60, &gate(HANDLER, 0x8e00));
        machine.cpu.registers_mut().idtr.base = USER_DATA;
        machine.general().rflags |= flags;
        machine.cpu.registers_mut().cr4 &= if flags == 0 { !cr4::SMAP } else { u64::MAX };
        machine.cpu.step(&mut machine.bus)
    };
    assert_eq!(run(0), Ok(()), "without SMAP");
    assert_eq!(run(flag::AC), Err(Exit::TripleFault), "AC lifts SMAP only for what the program itself does");
}

#[test]
fn delivery_that_the_second_level_refuses_comes_again() {
    let mut machine = Machine::with(|a| a.ud2());
    machine.interrupts(&[(6, HANDLER)]);
    machine.bus.protect(Gpn(0x31), false, false);
    let before = *machine.cpu.registers();
    for _ in 0..2 {
        assert!(matches!(machine.cpu.step(&mut machine.bus), Err(Exit::Memory(m)) if m.gva.unwrap().0 == STACK - 0x100 - 40));
        assert_eq!(machine.cpu.registers(), &before);
    }
    machine.bus.protect(Gpn(0x31), true, false);
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.cpu.registers().general.rip, HANDLER);
}

#[test]
fn injected_exceptions() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA)?;
        a.mov(qword_ptr(rax), rax)?;
        a.hlt()
    });
    machine.interrupts(&[(13, HANDLER)]);
    machine.load(HANDLER, &[0xf4]);
    machine.bus.protect(Gpn(0x20), false, false);
    assert!(matches!(machine.run(), Exit::Memory(_)));
    Vp::inject(&mut machine.cpu, 13, Some(0));
    assert!(machine.cpu.skip().is_err(), "what exited is given up");
    // the stack is in the way at first: the exception stays pending
    machine.bus.protect(Gpn(0x31), false, false);
    assert!(matches!(machine.run(), Exit::Memory(_)));
    machine.bus.protect(Gpn(0x31), true, false);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.cpu.registers().general.rip, HANDLER + 1);
    let top = machine.gpr(RSP);
    assert_eq!((machine.qword(top), machine.qword(top + 8)), (0, CODE + 10));
    assert_eq!(machine.qword(DATA), 0);
    // without an IDT it is an exit, once
    let mut machine = Machine::with(|a| a.hlt());
    Vp::inject(&mut machine.cpu, 13, Some(0));
    assert_eq!(machine.run(), Exit::Exception(Exception { vector: 13, error_code: Some(0), cr2: None, software: false }));
    assert_eq!(machine.run(), Exit::Halt);
}

#[test]
fn returns_are_checked() {
    let run = |frame: [u64; 5], selector: u16, rflags: u64| {
        let mut machine = Machine::with(|a| a.iretq());
        let at = STACK - 0x100;
        (0..).zip(frame).for_each(|(n, value)| machine.load(at + n * 8, &value.to_le_bytes()));
        machine.cpu.registers_mut().cs.selector = selector;
        machine.general().rflags |= rflags;
        if selector & 3 == 3 {
            machine.tables.map(&mut machine.bus, CODE, hvci_engine::addr::Gpa(0x1_0000), 0x1000, 5).unwrap();
            machine.tables.map(&mut machine.bus, STACK - 0x1000, hvci_engine::addr::Gpa(0x3_1000), 0x1000, 7).unwrap();
        }
        let outcome = machine.cpu.step(&mut machine.bus);
        let registers = machine.cpu.registers();
        outcome
            .map(|()| (registers.general.rip, registers.general.rflags, registers.general.gpr[RSP], registers.cpl()))
            .map_err(|e| exception(&e))
    };
    let all = 0x3f_7fd7 & !flag::TF;
    assert_eq!(run([CODE, 0x10, all, 5, 0], 0x10, 0), Ok((CODE, 0x24_7ed7, 5, 0)));
    assert_eq!(run([USER_CODE, 0x33, all, USER_DATA, 0x2b], 0x10, 0), Ok((USER_CODE, 0x24_7ed7, USER_DATA, 3)));
    // user mode changes neither IOPL nor IF
    assert_eq!(run([USER_CODE, 0x33, all, 5, 0x2b], 0x33, 0), Ok((USER_CODE, 0x24_4cd7, 5, 3)));
    assert_eq!(run([CODE, 0x10, 2, 5, 0], 0x33, 0), Err((13, Some(0x10))), "not to more privilege");
    assert_eq!(run([CODE, 0, 2, 5, 0], 0x10, 0), Err((13, Some(0))));
    assert_eq!(run([CODE, 0x33, 2, 5, 0x28], 0x10, 0), Err((13, Some(0x28))));
    assert_eq!(run([CODE, 0x33, 2, 5, 3], 0x10, 0), Err((13, Some(0))));
    assert_eq!(run([1 << 47, 0x10, 2, 5, 0], 0x10, 0), Err((13, Some(0))));
    assert_eq!(run([CODE, 0x10, 2, 5, 0], 0x10, flag::NT), Err((13, Some(0))));
}
