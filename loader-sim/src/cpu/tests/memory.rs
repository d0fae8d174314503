//! Accesses that are refused, that cross pages, that are stale; and hostile code.

use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, Gva},
    host::MemoryIntercept,
    status::HvStatus,
};
use iced_x86::code_asm::*;
use proptest::prelude::*;

use super::*;
use crate::{
    cpu::registers::efer,
    paging::entry,
    testing::{DATA, STACK, USER_CODE, USER_DATA, USER_STACK},
};

fn intercept(gpa: u64, gva: u64, access: Access, rip: u64) -> Exit {
    Exit::Memory(MemoryIntercept { gpa: Gpa(gpa), gva: Some(Gva(gva)), access, page_walk: false, cpl: 0, rip: Gva(rip) })
}

#[test]
fn a_refused_store_changes_nothing_and_can_be_resumed() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA)?;
        a.push(qword_ptr(rax))?;
        a.add(qword_ptr(rax), 1)?;
        a.hlt()
    });
    machine.load(DATA, &u64::MAX.to_le_bytes());
    machine.bus.protect(Gpn(0x20), false, false);
    let exit = machine.run();
    assert_eq!(exit, intercept(0x2_0000, DATA, Access::Write, CODE + 12));
    let before = *machine.cpu.registers();
    assert_eq!(machine.run(), exit);
    assert_eq!(machine.cpu.registers(), &before);
    assert_eq!(machine.qword(DATA), u64::MAX);
    machine.bus.protect(Gpn(0x20), true, false);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.qword(DATA), 0);
    assert_eq!(machine.cpu.registers().general.rflags & flag::STATUS, flag::ZF | flag::CF | flag::AF | flag::PF);
}

#[test]
fn a_refused_store_can_be_skipped() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA)?;
        a.mov(dword_ptr(rax), 1)?;
        a.hlt()
    });
    machine.bus.protect(Gpn(0x20), false, false);
    assert!(matches!(machine.run(), Exit::Memory(_)));
    machine.cpu.skip().unwrap();
    assert_eq!(machine.cpu.skip(), Err(HvStatus::INVALID_VP_STATE));
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.qword(DATA), 0);
}

#[test]
fn stores_across_pages_are_all_or_nothing() {
    for (protected, at) in [(0x20, DATA + 0xffc), (0x21, DATA + 0x1000)] {
        let mut machine = Machine::with(|a| {
            a.mov(rax, DATA + 0xffc)?;
            a.mov(qword_ptr(rax), rcx)?;
            a.hlt()
        });
        machine.general().gpr[RCX] = u64::MAX;
        machine.bus.protect(Gpn(protected), false, false);
        assert_eq!(machine.run(), intercept((protected << 12) + (at & 0xfff), at, Access::Write, CODE + 10));
        assert_eq!(machine.qword(DATA + 0xffc), 0);
        machine.bus.protect(Gpn(protected), true, false);
        assert_eq!(machine.run(), Exit::Halt);
        assert_eq!(machine.qword(DATA + 0xffc), u64::MAX);
    }
    // the guest's own tables
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA + 0x3ffc)?;
        a.mov(qword_ptr(rax), rcx)
    });
    machine.general().gpr[RCX] = u64::MAX;
    let Exit::Exception(fault) = machine.run() else { panic!() };
    assert_eq!((fault.vector, fault.error_code, fault.cr2), (14, Some(2), Some(DATA + 0x4000)));
    assert_eq!(machine.bytes(DATA + 0x3ffc, 4), [0; 4]);
}

#[test]
fn pages_of_one_access_need_not_be_neighbours() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA + 0xffc)?;
        a.mov(qword_ptr(rax), rcx)?;
        a.mov(rdx, qword_ptr(rax))?;
        a.hlt()
    });
    let bits = entry::PRESENT | entry::WRITABLE;
    machine.tables.map(&mut machine.bus, DATA + 0x1000, Gpa(0x2_3000), 0x1000, bits).unwrap();
    machine.general().gpr[RCX] = 0x1122_3344_5566_7788;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.gpr(RDX), 0x1122_3344_5566_7788);
    assert_eq!(machine.bus.bytes(Gpa(0x2_0ffc), 4), [0x88, 0x77, 0x66, 0x55]);
    assert_eq!(machine.bus.bytes(Gpa(0x2_3000), 4), [0x44, 0x33, 0x22, 0x11]);
    assert_eq!(machine.bus.bytes(Gpa(0x2_1000), 4), [0; 4]);
}

#[test]
fn fetches_across_pages() {
    let code = [0x48, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 0xf4];
    let mut machine = Machine::new();
    machine.load(CODE + 0xffb, &code);
    machine.general().rip = CODE + 0xffb;
    machine.bus.protect(Gpn(0x11), true, false);
    assert_eq!(machine.run(), intercept(0x1_1000, CODE + 0x1000, Access::KernelExecute, CODE + 0xffb));
    assert_eq!(machine.cpu.skip(), Err(HvStatus::INVALID_VP_STATE), "nobody knows how long it is");
    machine.bus.protect(Gpn(0x11), true, true);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.gpr(RAX), 0x0807_0605_0403_0201);
    // one that ends with the page does not look at the next
    let mut machine = Machine::new();
    machine.load(CODE + 0xffe, &[0x90, 0xf4]);
    machine.general().rip = CODE + 0xffe;
    machine.bus.hide(Gpn(0x11));
    assert_eq!(machine.run(), Exit::Halt);
}

#[test]
fn user_mode_fetches_as_user() {
    let mut machine = Machine::new();
    machine.cpu.registers_mut().cs.selector = 0x33;
    machine.general().rip = USER_CODE;
    machine.bus.protect(Gpn(0x40), true, false);
    let Exit::Memory(intercept) = machine.run() else { panic!() };
    assert_eq!((intercept.access, intercept.cpl), (Access::UserExecute, 3));
}

#[test]
fn walks_that_are_refused_say_so() {
    let mut machine = Machine::with(|a| {
        a.mov(rax, DATA)?;
        a.mov(qword_ptr(rax), rax)
    });
    let at = *machine.tables.entries(&mut machine.bus, DATA).unwrap().last().unwrap();
    // the accessed bit of the code's entry lies in the same table
    machine.cpu.step(&mut machine.bus).unwrap();
    machine.bus.protect(at.gpn(), false, true);
    let expected = MemoryIntercept { gpa: at, gva: Some(Gva(DATA)), access: Access::Write, page_walk: true, cpl: 0, rip: Gva(CODE + 10) };
    assert_eq!(machine.run(), Exit::Memory(expected));
    assert_eq!(machine.qword(DATA), 0);
}

#[test]
fn stale_translations_are_used_until_they_are_flushed() {
    let read = |machine: &mut Machine| {
        machine.general().rip = CODE;
        assert_eq!(machine.run(), Exit::Halt);
        machine.gpr(RCX)
    };
    let mut machine = Machine::with(|a| {
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()?;
        // at CODE + 4
        a.invlpg(byte_ptr(rbx))?;
        a.hlt()
    });
    machine.general().gpr[RBX] = DATA;
    machine.load(DATA, &1_u64.to_le_bytes());
    machine.load(DATA + 0x1000, &2_u64.to_le_bytes());
    assert_eq!(read(&mut machine), 1);
    machine.tables.map(&mut machine.bus, DATA, Gpa(0x2_1000), 0x1000, entry::PRESENT).unwrap();
    assert_eq!(read(&mut machine), 1);
    machine.general().rip = CODE + 4;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(read(&mut machine), 2);
    // a right that is taken away is still there; one that is given is found
    machine.tables.map(&mut machine.bus, DATA, Gpa(0x2_0000), 0x1000, 0).unwrap();
    assert_eq!(read(&mut machine), 2);
    machine.cpu.flush_translations();
    machine.general().rip = CODE;
    assert_eq!(exception(&machine.run()), (14, Some(0)));
    machine.tables.map(&mut machine.bus, DATA, Gpa(0x2_0000), 0x1000, entry::PRESENT).unwrap();
    assert_eq!(read(&mut machine), 1);
}

#[test]
fn the_first_store_after_loads_sets_the_dirty_bit() {
    let mut machine = Machine::with(|a| {
        a.mov(rcx, qword_ptr(rbx))?;
        a.mov(qword_ptr(rbx), rcx)?;
        a.hlt()
    });
    machine.general().gpr[RBX] = DATA;
    let at = *machine.tables.entries(&mut machine.bus, DATA).unwrap().last().unwrap();
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.bus.qword(at) & (entry::ACCESSED | entry::DIRTY), entry::ACCESSED);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.bus.qword(at) & (entry::ACCESSED | entry::DIRTY), entry::ACCESSED | entry::DIRTY);
}

#[test]
fn cr3_and_cr4_flush() {
    let code = |a: &mut CodeAssembler| {
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()?;
        a.mov(rax, cr3)?;
        a.mov(cr3, rax)?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()?;
        a.mov(rax, cr4)?;
        a.mov(cr4, rax)?;
        a.mov(rcx, qword_ptr(rbx))?;
        a.hlt()
    };
    for (global, after_cr3) in [(0, 2), (entry::GLOBAL, 1)] {
        let mut machine = Machine::with(code);
        machine.tables.map(&mut machine.bus, DATA, Gpa(0x2_0000), 0x1000, entry::PRESENT | global).unwrap();
        machine.general().gpr[RBX] = DATA;
        machine.load(DATA, &1_u64.to_le_bytes());
        machine.load(DATA + 0x1000, &2_u64.to_le_bytes());
        assert_eq!(machine.run(), Exit::Halt);
        machine.tables.map(&mut machine.bus, DATA, Gpa(0x2_1000), 0x1000, entry::PRESENT).unwrap();
        assert_eq!(machine.run(), Exit::Halt);
        assert_eq!(machine.gpr(RCX), after_cr3);
        assert!(matches!(machine.run(), Exit::RegisterWrite { .. }));
        machine.cpu.allow_write().unwrap();
        assert_eq!(machine.run(), Exit::Halt);
        assert_eq!(machine.gpr(RCX), 2);
    }
}

#[test]
fn repeated_moves_stop_where_they_are_refused() {
    let mut machine = Machine::with(|a| {
        a.rep().movsb()?;
        a.hlt()
    });
    let bytes: Vec<u8> = (0..=255).cycle().take(0x2000).collect();
    machine.load(DATA, &bytes);
    machine.general().gpr[RSI] = DATA + 0x10;
    machine.general().gpr[RDI] = DATA + 0x1ff0;
    machine.general().gpr[RCX] = 0x40;
    machine.bus.protect(Gpn(0x22), false, false);
    assert_eq!(machine.run(), intercept(0x2_2000, DATA + 0x2000, Access::Write, CODE));
    assert_eq!((machine.gpr(RCX), machine.gpr(RSI), machine.gpr(RDI)), (0x30, DATA + 0x20, DATA + 0x2000));
    assert_eq!(machine.bytes(DATA + 0x1ff0, 16), bytes[0x10..0x20]);
    assert_eq!(machine.bytes(DATA + 0x2000, 16), [0; 16]);
    machine.bus.protect(Gpn(0x22), true, false);
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.gpr(RCX), machine.gpr(RSI), machine.gpr(RDI)), (0, DATA + 0x50, DATA + 0x2030));
    assert_eq!(machine.bytes(DATA + 0x1ff0, 0x40), bytes[0x10..0x50]);
    assert_eq!(machine.cpu.retired(), 0x40 + 1);
}

#[test]
fn repeated_stores_of_every_size_and_direction() {
    let mut machine = Machine::with(|a| {
        a.rep().stosq()?;
        a.mov(ecx, 3)?;
        a.rep().stosb()?;
        a.std()?;
        a.mov(rdi, DATA + 0x110)?;
        a.mov(ecx, 2)?;
        a.rep().stosd()?;
        a.xor(ecx, ecx)?;
        a.rep().stosd()?;
        a.stosw()?;
        a.hlt()
    });
    machine.general().gpr[RAX] = 0x8877_6655_4433_2211;
    machine.general().gpr[RDI] = DATA;
    machine.general().gpr[RCX] = 2;
    assert_eq!(machine.run(), Exit::Halt);
    let pattern = [0x11, 0x22, 0x33, 0x44, 0x55, 0x66, 0x77, 0x88];
    assert_eq!(machine.bytes(DATA, 20), [&pattern[..], &pattern, &[0x11, 0x11, 0x11, 0]].concat());
    assert_eq!(machine.bytes(DATA + 0x108, 16), [0x11, 0x22, 0, 0, 0x11, 0x22, 0x33, 0x44, 0x11, 0x22, 0x33, 0x44, 0, 0, 0, 0]);
    assert_eq!((machine.gpr(RDI), machine.gpr(RCX)), (DATA + 0x106, 0));
}

#[test]
fn an_endless_repetition_is_bounded() {
    let mut machine = Machine::with(|a| {
        a.rep().lodsb()?;
        a.hlt()
    });
    machine.general().gpr[RSI] = DATA;
    machine.general().gpr[RCX] = u64::MAX;
    assert_eq!(machine.cpu.run(&mut machine.bus, 1000), Exit::Budget);
    assert_eq!((machine.gpr(RCX), machine.cpu.retired()), (u64::MAX - 1000, 1000));
}

#[test]
fn addresses_beyond_the_canonical_ones() {
    for (address, len8, vector) in [(0x8000_0000_0000, false, 13), (0x7fff_ffff_fffc, true, 13), (0xffff_7fff_ffff_ffff, false, 13)] {
        let mut machine = Machine::with(|a| if len8 { a.mov(rax, qword_ptr(rbx)) } else { a.mov(al, byte_ptr(rbx)) });
        machine.general().gpr[RBX] = address;
        assert_eq!(exception(&machine.run()), (vector, Some(0)));
    }
    let mut machine = Machine::with(|a| a.mov(rax, qword_ptr(rsp)));
    machine.general().gpr[RSP] = 1 << 47;
    assert_eq!(exception(&machine.run()), (12, Some(0)), "a stack fault");
    let mut machine = Machine::with(|a| a.jmp(rbx));
    machine.general().gpr[RBX] = 1 << 47;
    assert_eq!(exception(&machine.run()), (13, Some(0)));
    assert_eq!(machine.cpu.registers().general.rip, CODE, "the jump faults, not what is there");
}

#[test]
fn alignment_is_checked_in_user_mode() {
    let mut machine = Machine::new();
    machine.load(USER_CODE, &[0x8b, 0x03, 0xf4]);
    machine.cpu.registers_mut().cs.selector = 0x33;
    machine.general().rip = USER_CODE;
    machine.general().gpr[RBX] = USER_DATA + 1;
    assert_eq!(exception(&machine.run()), (13, Some(0)), "HLT");
    machine.general().rip = USER_CODE;
    machine.general().rflags |= flag::AC;
    assert_eq!(exception(&machine.run()), (17, Some(0)));
}

#[test]
fn calls_are_precise() {
    let mut machine = Machine::with(|a| a.call(rax));
    machine.general().gpr[RAX] = CODE + 0x100;
    machine.general().gpr[RSP] = STACK + 0x8000;
    assert_eq!(exception(&machine.run()), (14, Some(2)));
    assert_eq!((machine.cpu.registers().general.rip, machine.gpr(RSP)), (CODE, STACK + 0x8000));
    machine.general().gpr[RSP] = STACK - 0x1800;
    machine.bus.protect(Gpn(0x30), false, false);
    assert!(matches!(machine.run(), Exit::Memory(_)));
    machine.cpu.skip().unwrap();
    assert_eq!(machine.cpu.registers().general.rip, CODE + 2, "behind the call, not at its target");
}

#[test]
fn second_accesses_that_are_refused_leave_no_trace() {
    let codes: [(Code, u64); 14] = [
        // to the read-only page at RBX and RDI
        (|a| a.movsq(), 0x21),
        (|a| a.rep().movsb(), 0x21),
        (|a| a.pop(qword_ptr(rbx)), 0x21),
        (|a| a.add(qword_ptr(rbx), rcx), 0x21),
        (|a| a.inc(byte_ptr(rbx)), 0x21),
        (|a| a.neg(dword_ptr(rbx)), 0x21),
        (|a| a.shl(word_ptr(rbx), 3), 0x21),
        (|a| a.xchg(qword_ptr(rbx), rcx), 0x21),
        (|a| a.cmpxchg(qword_ptr(rbx), rcx), 0x21),
        (|a| a.lock().cmpxchg(dword_ptr(rbx), eax), 0x21),
        (|a| a.sgdt(fword_ptr(rbx)), 0x21),
        // to the stack, after a read
        (|a| a.push(qword_ptr(rbx)), 0x31),
        (|a| a.call(qword_ptr(rbx)), 0x31),
        (|a| a.pushfq(), 0x31),
    ];
    for (n, (code, protected)) in codes.into_iter().enumerate() {
        for at_first_level in [false, true] {
            let mut machine = Machine::with(code);
            machine.load(DATA + 0x1ffc, &[0x55; 12]);
            machine.load(DATA + 0x10, &[0x66; 16]);
            machine.load(STACK - 0x100, &[0x77; 16]);
            machine.general().gpr[..8].copy_from_slice(&[1, 9, 5, DATA + 0x1100, STACK - 0x100, 6, DATA + 0x10, DATA + 0x1100]);
            machine.general().rflags |= flag::CF | flag::OF;
            // a handle to code, so that CALL gets as far as the stack
            machine.load(DATA + 0x1100, &CODE.to_le_bytes());
            if at_first_level {
                let page = if protected == 0x21 { DATA + 0x1000 } else { STACK - 0x1000 };
                machine.tables.map(&mut machine.bus, page, Gpa(protected << 12), 0x1000, entry::PRESENT).unwrap();
            } else {
                machine.bus.protect(Gpn(protected), false, false);
            }
            let ram = |machine: &Machine| (0x10..0x40).map(|page| machine.bus.bytes(Gpa(page << 12), 4096)).collect::<Vec<_>>();
            let (memory, registers) = (ram(&machine), *machine.cpu.registers());
            match machine.run() {
                Exit::Memory(m) if !at_first_level => {
                    assert_eq!((m.access, m.gpa.gpn(), m.page_walk), (Access::Write, Gpn(protected), false));
                }
                Exit::Exception(e) if at_first_level => assert_eq!((e.vector, e.error_code), (14, Some(3))),
                exit => panic!("{n}: {exit:?}"),
            }
            assert_eq!(machine.cpu.registers(), &registers, "{n}");
            assert!(ram(&machine) == memory, "{n}");
        }
    }
}

/// Bytes that make up instructions more often than chance has it.
fn code_bytes() -> impl Strategy<Value = u8> {
    let frequent =
        b"\x48\x66\x0f\xf3\xf0\x65\x8b\x89\x01\x31\xff\xe8\xeb\xc3\x50\x58\xa4\xab\x22\x20\x30\x32\xcf\x05\x07\x00\x9d\xcc\x87\xb1";
    prop_oneof![any::<u8>(), prop::sample::select(frequent.to_vec())]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(3000))]

    /// Whatever the bytes and the registers: no panic, nothing outside the bus, no step without an end. The bus checks that no access
    /// crosses a page; what is not writable stays as it is.
    #[test]
    fn hostile_code(code in prop::collection::vec(code_bytes(), 1..64), seed in prop::collection::vec(0..8_u64, 16), user: bool, handlers: bool) {
        let mut machine = Machine::new();
        if handlers {
            let gates: Vec<(u8, u64)> = (0..32).map(|vector| (vector, CODE + 0x800 + u64::from(vector))).collect();
            machine.interrupts(&gates);
        }
        machine.load(CODE, &code);
        machine.load(USER_CODE, &code);
        let places = [DATA, DATA + 0xffd, USER_DATA, USER_DATA + 0x1fff, STACK - 0x400, USER_STACK - 8, 3, 1 << 47];
        for (gpr, at) in machine.general().gpr.iter_mut().zip(&seed) {
            *gpr = places[usize::try_from(*at).unwrap()];
        }
        if user {
            machine.cpu.registers_mut().cs.selector = 0x33;
            machine.general().rip = USER_CODE;
            // no way into the kernel but handlers
            machine.cpu.registers_mut().efer &= !efer::SCE;
        }
        machine.bus.protect(Gpn(0x21), false, false);
        let sealed = machine.bus.bytes(Gpa(0x2_1000), 4096);
        for _ in 0..200 {
            let before = machine.cpu.registers().general;
            match machine.cpu.step(&mut machine.bus) {
                Ok(()) => {}
                Err(Exit::Memory(intercept)) => {
                    prop_assert_eq!(machine.cpu.registers().general, before);
                    prop_assert_eq!(intercept.rip.0, before.rip);
                    if machine.cpu.skip().is_err() { break; }
                }
                Err(Exit::RegisterWrite { .. }) => machine.cpu.allow_write().unwrap(),
                Err(Exit::Cpuid { .. }) => machine.cpu.answer_cpuid([1, 2, 3, 4]).unwrap(),
                Err(Exit::ReadMsr { .. } | Exit::Io { write: None, .. }) => machine.cpu.answer(u64::MAX).unwrap(),
                Err(Exit::Hypercall { .. } | Exit::WriteMsr { .. } | Exit::Io { .. }) => machine.cpu.skip().unwrap(),
                Err(Exit::Halt) => {}
                Err(exit) => {
                    prop_assert_eq!(machine.cpu.registers().general, before, "{:?}", exit);
                    break;
                }
            }
        }
        prop_assert_eq!(machine.bus.bytes(Gpa(0x2_1000), 4096), sealed);
        if user && !handlers {
            prop_assert_eq!(machine.cpu.registers().cpl(), 3);
        }
    }
}
