//! What programs compute.

use iced_x86::{IcedError, code_asm::*};
use proptest::prelude::*;

use super::*;
use crate::testing::{DATA, STACK, assemble};

#[test]
fn a_small_program_runs_to_its_end() {
    let mut machine = Machine::with(|a| {
        let (mut copy, mut again, mut sum) = (a.create_label(), a.create_label(), a.create_label());
        // copy 64 bytes, then add them up
        a.mov(rsi, DATA)?;
        a.lea(rdi, rsi + 0x800)?;
        a.mov(ecx, 64)?;
        a.call(copy)?;
        a.mov(rsi, DATA + 0x800)?;
        a.mov(ecx, 64)?;
        a.xor(eax, eax)?;
        a.set_label(&mut sum)?;
        a.movzx(edx, byte_ptr(rsi + rcx - 1))?;
        a.add(rax, rdx)?;
        a.dec(ecx)?;
        a.jne(sum)?;
        a.hlt()?;
        a.set_label(&mut copy)?;
        a.endbr64()?;
        a.push(rbx)?;
        a.xor(ebx, ebx)?;
        a.set_label(&mut again)?;
        a.mov(al, byte_ptr(rsi + rbx))?;
        a.mov(byte_ptr(rdi + rbx), al)?;
        a.inc(rbx)?;
        a.cmp(rbx, rcx)?;
        a.jb(again)?;
        a.pop(rbx)?;
        a.ret()
    });
    let bytes: Vec<u8> = (100..164).collect();
    machine.load(DATA, &bytes);
    machine.general().gpr[RBX] = 0x1234;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!(machine.bytes(DATA + 0x800, 64), bytes);
    assert_eq!(machine.gpr(RAX), (100..164).sum::<u64>());
    assert_eq!((machine.gpr(RBX), machine.gpr(RSP)), (0x1234, STACK - 0x100));
    assert_eq!(machine.cpu.retired(), 4 + (3 + 5 * 64 + 2) + 3 + 4 * 64 + 1);
}

/// Runs code up to its HLT with these values in RAX, RCX, RDX and RBX, and gives them back with RFLAGS.
fn compute(start: [u64; 4], build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> ([u64; 4], u64) {
    let mut machine = Machine::with(|a| {
        build(a)?;
        a.hlt()
    });
    machine.general().gpr[..4].copy_from_slice(&start);
    machine.load(DATA, &0x8877_6655_4433_2211_u64.to_le_bytes());
    assert_eq!(machine.run(), Exit::Halt);
    let general = machine.cpu.registers().general;
    (general.gpr[..4].try_into().unwrap(), general.rflags)
}

#[test]
fn parts_of_registers() {
    let ones = [u64::MAX; 4];
    assert_eq!(compute(ones, |a| a.mov(eax, 1)).0[0], 1);
    assert_eq!(compute(ones, |a| a.mov(ax, 1)).0[0], 0xffff_ffff_ffff_0001);
    assert_eq!(compute(ones, |a| a.mov(al, 1)).0[0], 0xffff_ffff_ffff_ff01);
    assert_eq!(compute(ones, |a| a.mov(ah, 1)).0[0], 0xffff_ffff_ffff_01ff);
    assert_eq!(compute([0x1234, 0, 0, 0], |a| a.mov(bl, ah)).0[3], 0x12);
    assert_eq!(compute([0x80, 0, 0, 0], |a| a.movsx(ecx, al)).0[1], 0xffff_ff80);
    assert_eq!(compute([0x8000_0000, 0, 0, 0], |a| a.movsxd(rcx, eax)).0[1], 0xffff_ffff_8000_0000);
    assert_eq!(compute(ones, |a| a.movzx(ecx, ax)).0[1], 0xffff);
    assert_eq!(compute(ones, |a| a.cmove(ecx, eax)).0[1], 0xffff_ffff, "a move that is not done clears the upper half");
    assert_eq!(compute([3, 0, 0, 0], |a| a.mov(rax, -2_i64)).0[0], u64::MAX - 1);
    assert_eq!(compute([0x8000, 0, 5, 0], |a| a.cwd()).0[2], 0xffff);
    assert_eq!(compute([u64::MAX, 0, 5, 0], |a| a.cqo()).0[2], u64::MAX);
    assert_eq!(compute([0x80, 0, 0, 0], |a| a.cbw()).0[0], 0xff80);
}

#[test]
fn exchanges() {
    assert_eq!(compute([1, 2, 0, 0], |a| a.xchg(rax, rcx)).0[..2], [2, 1]);
    assert_eq!(compute([0x0102, 0, 0, 0], |a| a.xchg(al, ah)).0[0], 0x0201);
    let (registers, rflags) = compute([5, 9, 5, 0], |a| a.cmpxchg(edx, ecx));
    assert_eq!((registers[..3].to_vec(), rflags & flag::ZF), (vec![5, 9, 9], flag::ZF));
    assert_eq!(compute([5, 9, u64::MAX, 0], |a| a.cmpxchg(edx, ecx)).0[..3], [0xffff_ffff, 9, u64::MAX]);
    let (registers, rflags) = compute([5, 9, 7, 0], |a| a.cmpxchg(rdx, rcx));
    assert_eq!((registers[..3].to_vec(), rflags & (flag::ZF | flag::CF)), (vec![7, 9, 7], flag::CF));
    let locked = |a: &mut CodeAssembler| {
        a.mov(rbx, DATA)?;
        a.mov(rax, 0x8877_6655_4433_2211_u64)?;
        a.lock().cmpxchg(qword_ptr(rbx), rcx)?;
        a.mov(rdx, qword_ptr(rbx))?;
        a.xchg(qword_ptr(rbx), rdx)
    };
    assert_eq!(compute([0, 42, 0, 0], locked).0[2], 42);
}

#[test]
fn addresses() {
    let load = |a: &mut CodeAssembler| {
        a.mov(rbx, DATA - 0x10)?;
        a.mov(ecx, 2)?;
        a.mov(rax, qword_ptr(rbx + rcx * 8))?;
        a.lea(edx, rbx + rcx * 4 + 1)
    };
    assert_eq!(compute([0; 4], load).0, [0x8877_6655_4433_2211, 2, 0x4f_fff9, DATA - 0x10]);
    // of 32 bits, the sum wraps and the address is below what is mapped
    assert_eq!(compute([0, 9, 0, 0xffff_fffc], |a| a.lea(rax, ebx + ecx)).0[0], 5);
    let mut machine = Machine::with(|a| a.mov(rax, qword_ptr(ebx)));
    machine.general().gpr[RBX] = DATA;
    let Exit::Exception(fault) = machine.run() else { panic!() };
    assert_eq!((fault.vector, fault.cr2, fault.error_code), (14, Some(DATA & 0xffff_ffff), Some(1)), "SMAP");
    // FS and GS
    let mut machine = Machine::with(|a| {
        a.mov(rax, qword_ptr(8).gs())?;
        a.swapgs()?;
        a.mov(rcx, qword_ptr(0).gs())?;
        a.hlt()
    });
    machine.load(DATA, &7_u64.to_le_bytes());
    machine.load(DATA + 0x18, &9_u64.to_le_bytes());
    machine.cpu.registers_mut().gs.base = DATA + 0x10;
    machine.cpu.registers_mut().kernel_gs_base = DATA;
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.gpr(RAX), machine.gpr(RCX)), (9, 7));
}

#[test]
fn the_stack() {
    let (registers, _) = compute([1, 2, 3, 4], |a| {
        a.push(rax)?;
        a.push(-1)?;
        a.pop(rcx)?;
        a.pop(rdx)?;
        a.push(rsp)?;
        a.pop(rbx)?;
        a.sub(rbx, rsp)
    });
    assert_eq!(registers, [1, u64::MAX, 1, 0]);
    // POP to memory addresses with the new RSP, PUSH from memory with the old one
    let (registers, _) = compute([0x11, 0x22, 0, 0], |a| {
        a.push(rax)?;
        a.push(rcx)?;
        a.pop(qword_ptr(rsp))?;
        a.push(qword_ptr(rsp))?;
        a.pop(rdx)?;
        a.pop(rbx)
    });
    assert_eq!(registers, [0x11, 0x22, 0x22, 0x22]);
    // 16 bits
    let (registers, _) = compute([0xaaaa_bbbb, 0, 0, 0], |a| {
        a.mov(rbx, rsp)?;
        a.push(ax)?;
        a.sub(rbx, rsp)?;
        a.pop(cx)
    });
    assert_eq!((registers[1], registers[3]), (0xbbbb, 2));
    // CALL through memory that the stack pointer names, RET that frees arguments, LEAVE
    let mut machine = Machine::with(|a| {
        let mut callee = a.create_label();
        a.lea(rax, ptr(callee))?;
        a.push(5)?;
        a.push(rax)?;
        a.call(qword_ptr(rsp))?;
        a.hlt()?;
        a.set_label(&mut callee)?;
        a.push(rbp)?;
        a.mov(rbp, rsp)?;
        a.sub(rsp, 0x40)?;
        a.mov(rdx, qword_ptr(rbp + 24))?;
        a.leave()?;
        a.ret_1(16)
    });
    assert_eq!(machine.run(), Exit::Halt);
    assert_eq!((machine.gpr(RDX), machine.gpr(RSP)), (5, STACK - 0x100));
}

#[test]
fn flags_on_the_stack() {
    let (registers, rflags) = compute([0, 0, 0, 0], |a| {
        a.stc()?;
        a.std()?;
        a.pushfq()?;
        a.pop(rax)?;
        a.push(0x1000_7fd5 & !0x100)?;
        a.popfq()?;
        a.pushfq()?;
        a.pop(rcx)
    });
    assert_eq!(registers[0], flag::FIXED | flag::CF | flag::DF);
    // level 0 sets IOPL, IF and NT; reserved bits stay
    assert_eq!(registers[1], 0x7ed7);
    assert_eq!(rflags, 0x7ed7);
}

#[test]
fn every_condition() {
    for rflags in 0..32 {
        let bit = |n: u32, flag: u64| if rflags >> n & 1 == 1 { flag } else { 0 };
        let (of, cf, zf, sf, pf) = (bit(0, flag::OF), bit(1, flag::CF), bit(2, flag::ZF), bit(3, flag::SF), bit(4, flag::PF));
        let (l, be) = ((of != 0) != (sf != 0), cf != 0 || zf != 0);
        let expected = [of != 0, cf != 0, zf != 0, be, sf != 0, pf != 0, l, l || zf != 0]
            .iter()
            .flat_map(|c| [*c, !*c])
            .map(u64::from)
            .collect::<Vec<_>>();
        let (mut set, mut jumped, mut moved) = (Vec::new(), Vec::new(), Vec::new());
        for condition in 0..16_u8 {
            // setcc al; cmovcc ecx, edx; jcc +2; mov bl, 0; hlt
            let code = [0x0f, 0x90 | condition, 0xc0, 0x0f, 0x40 | condition, 0xca, 0x70 | condition, 2, 0xb3, 0, 0xf4];
            let mut machine = Machine::new();
            machine.load(CODE, &code);
            machine.general().gpr[..4].copy_from_slice(&[0, 0, 1, 1]);
            machine.general().rflags = flag::FIXED | of | cf | zf | sf | pf;
            assert_eq!(machine.run(), Exit::Halt);
            set.push(machine.gpr(RAX));
            moved.push(machine.gpr(RCX));
            jumped.push(machine.gpr(RBX));
        }
        assert_eq!(set, expected);
        assert_eq!(moved, expected);
        assert_eq!(jumped, expected);
    }
}

#[test]
fn multiplication() {
    assert_eq!(compute([u64::MAX, 2, 0, 0], |a| a.mul(rcx)).0[..3], [u64::MAX - 1, 2, 1]);
    assert_eq!(compute([0xff, 0xff, 7, 0], |a| a.imul(cl)).0[..3], [1, 0xff, 7]);
    assert_eq!(compute([0, 7, 0, 0], |a| a.imul_3(eax, ecx, -3)).0[0], 0xffff_ffeb);
    assert_eq!(compute([6, 7, 0, 0], |a| a.imul_2(rax, rcx)).0[0], 42);
}

#[test]
fn what_is_not_simulated_is_named() {
    let mut machine = Machine::with(|a| {
        a.nop()?;
        a.movaps(xmm0, xmm1)
    });
    assert_eq!(
        machine.run(),
        Exit::Unsupported { rip: hvci_engine::addr::Gva(CODE + 1), bytes: vec![0x0f, 0x28, 0xc1], text: "movaps xmm0,xmm1".into() }
    );
    assert_eq!(machine.cpu.registers().general.rip, CODE + 1);
    // single steps
    let mut machine = Machine::with(|a| a.nop());
    machine.general().rflags |= flag::TF;
    assert!(matches!(machine.run(), Exit::Unsupported { text, .. } if text.contains("TF")));
    // far jumps, segment registers, debug registers, 32-bit string addresses
    for code in [&[0xff, 0x28][..], &[0x8e, 0xd8], &[0x0f, 0x23, 0xc0], &[0x67, 0xa4], &[0x48, 0x0f, 0xc7, 0x08]] {
        let mut machine = Machine::new();
        machine.load(CODE, code);
        machine.general().gpr[RAX] = DATA;
        assert!(matches!(machine.run(), Exit::Unsupported { bytes, .. } if bytes == code), "{code:x?}");
    }
}

#[test]
fn code_that_changes_is_decoded_again() {
    let mut machine = Machine::with(|a| a.mov(eax, 1));
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.gpr(RAX), 1);
    machine.load(CODE, &assemble(CODE, |a| a.mov(eax, 2)));
    machine.general().rip = CODE;
    machine.cpu.step(&mut machine.bus).unwrap();
    assert_eq!(machine.gpr(RAX), 2);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    /// Register forms go through the same arithmetic as memory forms.
    #[test]
    fn memory_and_registers_agree(operation in 0..8_u8, a: u64, b: u64, carry: bool, width in 0..4_usize) {
        let prefix: &[u8] = [&[][..], &[0x66], &[], &[0x48]][width];
        let opcode = operation << 3 | u8::from(width != 0);
        let run = |modrm: u8| {
            let mut machine = Machine::new();
            machine.load(CODE, &[prefix, &[opcode, modrm, 0xf4]].concat());
            machine.load(DATA, &a.to_le_bytes());
            machine.general().gpr[..4].copy_from_slice(&[DATA, b, a, 0]);
            machine.general().rflags |= u64::from(carry);
            assert_eq!(machine.run(), Exit::Halt);
            let mask = u64::MAX >> (64 - (8_u32 << width));
            let result = if modrm == 0x08 { machine.qword(DATA) } else { machine.gpr(RDX) };
            (result & mask, machine.cpu.registers().general.rflags)
        };
        // op [rax], rcx; op rdx, rcx
        prop_assert_eq!(run(0x08), run(0xca));
    }
}
