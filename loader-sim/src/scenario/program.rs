//! Programs of a scenario: machine code from the words that `docs/scenarios.md` lists.
//!
//! A program halts at its end, at an exception, and at a call that is refused, and says in R15 which of them it was.

use hvci_engine::vsm::{
    hypercall::{Control, HypercallCode},
    secure_call::BLOCK,
};
use iced_x86::{IcedError, code_asm::*};
use toml::Spanned;

use super::{
    Scenario, ScenarioError,
    format::ProgramEntry,
    layout::{CAUGHT, Layout, NUMBER, Place, UNLOAD, number},
    machine,
};
use crate::{attack, memory::PAGE};

/// What R15 says at the end.
const THROUGH: u64 = 0x600D;
/// And with the status in its low half, if a call was refused.
const REFUSED: u64 = 0xBAD0_0000;
/// From one argument block to the next.
const STRIDE: usize = 128;
const _: () = assert!(STRIDE >= BLOCK);

/// A program in memory.
pub(super) struct Assembled {
    pub(super) code: Vec<u8>,
    pub(super) blocks: Vec<u8>,
}

/// Halts for good.
pub(super) fn halt(a: &mut CodeAssembler) -> Result<(), IcedError> {
    let mut stop = a.create_label();
    a.set_label(&mut stop)?;
    a.hlt()?;
    a.jmp(stop)
}

/// How a program ended, by what R15 says.
pub(super) fn ending(end: u64) -> String {
    match (end, end & !0xFF, end & !0xFFFF) {
        (THROUGH, _, _) => "through".to_owned(),
        (_, CAUGHT, _) => match end & 0xFF {
            6 => "#UD".to_owned(),
            8 => "#DF".to_owned(),
            13 => "#GP".to_owned(),
            14 => "#PF".to_owned(),
            vector => format!("exception {vector}"),
        },
        (_, _, REFUSED) => format!("status {:#x}", end & 0xFFFF),
        _ => format!("halted with R15 {end:#x}"),
    }
}

/// What one line does.
enum Op {
    /// The address of a block, and where the number that is answered goes.
    Call(Place, Option<u64>),
    /// The same, with the number from there.
    CallFor(Place, u64),
    Write(u64, u64),
    Read(u64),
    Go(u64),
    Raw(Vec<u8>),
}

/// Assembles a program for `address`, with its argument blocks at `data`.
pub(super) fn assemble(
    scenario: &Scenario,
    program: &ProgramEntry,
    address: u64,
    data: Place,
    layout: &Layout,
) -> Result<Assembled, ScenarioError> {
    let mut blocks = Vec::new();
    let mut ops = Vec::new();
    for line in &program.code {
        let op = parse(line, data, &mut blocks, layout).map_err(|what| scenario.source().wrong(line.span(), what))?;
        // who would be called is not there
        if scenario.engine || !matches!(op, Op::Call(..) | Op::CallFor(..)) {
            ops.push(op);
        }
    }
    let code = attack::assemble(address, &|a| build(a, program.repeat, &ops)).map_err(machine)?;
    if code.len() > PAGE {
        return Err(scenario.source().wrong(program.name.span(), format!("{} takes more than a page", program.name.get_ref())));
    }
    Ok(Assembled { code, blocks })
}

fn parse(line: &Spanned<String>, data: Place, blocks: &mut Vec<u8>, layout: &Layout) -> Result<Op, String> {
    let words: Vec<&str> = line.get_ref().split_whitespace().collect();
    Ok(match words.as_slice() {
        ["load", driver] => {
            let block = layout.blocks(driver)?;
            Op::Call(block, Some(block.gva + NUMBER))
        }
        ["unload", driver] => {
            let block = layout.blocks(driver)?;
            Op::CallFor(Place { gva: block.gva + UNLOAD, gpa: block.gpa + UNLOAD }, block.gva + NUMBER)
        }
        ["write", at, value] => Op::Write(layout.place(at)?.gva, number(value)?),
        ["read", at] => Op::Read(layout.place(at)?.gva),
        ["call", at] => Op::Go(layout.place(at)?.gva),
        ["hex", bytes @ ..] => Op::Raw(hex::decode(bytes.concat()).map_err(|error| format!("no hexadecimal: {error}"))?),
        ["vtl-call", function, arguments @ ..] => {
            let mut words = vec![number(function)?];
            for argument in arguments {
                words.push(layout.place(argument)?.gva);
            }
            let mut block: Vec<u8> = words.iter().flat_map(|word| word.to_le_bytes()).collect();
            if block.len() > BLOCK {
                return Err(format!("{} arguments; a call has at most {}", arguments.len(), BLOCK / 8 - 1));
            }
            block.resize(STRIDE, 0);
            let offset = blocks.len() as u64;
            blocks.append(&mut block);
            if blocks.len() > PAGE {
                return Err(format!("more than {} calls in a program", PAGE / STRIDE));
            }
            Op::Call(Place { gva: data.gva + offset, gpa: data.gpa + offset }, None)
        }
        _ => {
            return Err(format!(
                "{:?} is none of load DRIVER, unload DRIVER, write AT VALUE, read AT, call AT, vtl-call FUNCTION ARGUMENT..., hex BYTES",
                line.get_ref()
            ));
        }
    })
}

fn build(a: &mut CodeAssembler, repeat: u32, ops: &[Op]) -> Result<(), IcedError> {
    let (mut again, mut refused) = (a.create_label(), a.create_label());
    a.mov(r14, u64::from(repeat.max(1)))?;
    a.set_label(&mut again)?;
    // a label needs an instruction, and there may be no other
    a.nop()?;
    for op in ops {
        match op {
            Op::Write(at, value) => {
                a.mov(rbx, *at)?;
                a.mov(rax, *value)?;
                a.mov(qword_ptr(rbx), rax)?;
            }
            Op::Read(at) => {
                a.mov(rbx, *at)?;
                a.mov(rax, qword_ptr(rbx))?;
            }
            Op::Go(at) => {
                a.mov(rax, *at)?;
                a.call(rax)?;
            }
            Op::Raw(bytes) => bytes.chunks(16).try_for_each(|chunk| a.db(chunk))?,
            Op::CallFor(block, number) => {
                a.mov(rbx, *number)?;
                a.mov(rax, qword_ptr(rbx))?;
                a.mov(rbx, block.gva + 8)?;
                a.mov(qword_ptr(rbx), rax)?;
                vtl_call(a, block.gpa, refused)?;
            }
            Op::Call(block, number) => {
                vtl_call(a, block.gpa, refused)?;
                if let Some(number) = number {
                    a.mov(rbx, *number)?;
                    a.mov(qword_ptr(rbx), rdx)?;
                }
            }
        }
    }
    a.dec(r14)?;
    a.jnz(again)?;
    a.mov(r15, THROUGH)?;
    halt(a)?;
    a.set_label(&mut refused)?;
    a.mov(r15, REFUSED)?;
    a.or(r15, rax)?;
    halt(a)
}

fn vtl_call(a: &mut CodeAssembler, block: u64, refused: CodeLabel) -> Result<(), IcedError> {
    a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
    a.mov(rdx, block)?;
    a.xor(eax, eax)?;
    a.vmcall()?;
    a.test(eax, eax)?;
    a.jnz(refused)
}
