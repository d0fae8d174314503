//! A virtual processor in 64-bit mode: an interpreter of x86-64 code, decoded by `iced-x86`.
//!
//! Every fetch, load and store goes through the guest's page tables and then through the [`Bus`]. An instruction is precise: it is done, or
//! it has changed nothing, but accessed and dirty bits of page tables. A repeated string instruction does one element a step. An instruction
//! that is not known here is never guessed: [`Exit::Unsupported`].
//!
//! Simplified: there are no other modes; a code segment is flat and its privilege level is the selector's two low bits; a handler of an
//! exception runs at level 0; I/O above IOPL is refused whatever the TSS says; locked instructions, and the marks of page walks, are atomic
//! only as far as the bus lets no other processor between a load and a store; kernel and user fetches are told apart by privilege level, not
//! by the U/S bits of the page.

mod alu;
mod exception;
mod execute;
mod linear;
mod operand;
pub mod registers;
mod string;
mod system;
#[cfg(test)]
mod tests;

use hvci_engine::{addr::Gva, host::MemoryIntercept, status::HvStatus, vsm::register::RegisterName};
use iced_x86::{Code, Decoder, DecoderError, DecoderOptions, Formatter, Instruction, NasmFormatter};

pub use self::exception::Exception;
pub(crate) use self::exception::{INTERRUPT_GATE, gate};
use self::{
    alu::Width,
    registers::{General, Registers, flag},
};
use crate::{
    bus::Bus,
    memory::{PAGE, page_offset},
    paging::{Tlb, is_canonical},
};

/// The longest instruction.
const MAX_LENGTH: usize = 15;

/// Decoded instructions that are kept.
const DECODED: usize = 0x400;

/// Why a processor stopped. But for [`Halt`](Self::Halt), everything is as it was before the instruction, RIP included.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Exit {
    /// The second-level table refused an access. Step again once it is allowed, [`skip`](Cpu::skip) the instruction, or inject.
    Memory(MemoryIntercept),
    /// A register is about to be written that a higher level may have pinned. [`allow_write`](Cpu::allow_write), skip, or inject.
    RegisterWrite {
        /// Which.
        name: RegisterName,
        /// What it holds: of GDTR and IDTR the base, of LDTR and TR the selector.
        old: u64,
        /// What would be written.
        new: u64,
    },
    /// RDMSR of a register that the processor does not have: [`answer`](Cpu::answer), or inject #GP.
    ReadMsr {
        /// ECX.
        msr: u32,
    },
    /// WRMSR to a register that the processor does not have: skip, or inject #GP.
    WriteMsr {
        /// ECX.
        msr: u32,
        /// EDX:EAX.
        value: u64,
    },
    /// VMCALL or VMMCALL: skip once it is answered in the registers.
    Hypercall {
        /// Privilege level of the caller.
        cpl: u8,
        /// Whether it is VMMCALL.
        vmmcall: bool,
    },
    /// IN or OUT: answer an IN, skip an OUT.
    Io {
        /// The port.
        port: u16,
        /// Bytes: 1, 2 or 4.
        width: usize,
        /// What an OUT writes; `None` for an IN.
        write: Option<u32>,
    },
    /// CPUID: [`answer_cpuid`](Cpu::answer_cpuid).
    Cpuid {
        /// EAX.
        leaf: u32,
        /// ECX.
        subleaf: u32,
    },
    /// HLT is done; RIP is behind it.
    Halt,
    /// An exception while the guest has no interrupt descriptor table.
    Exception(Exception),
    /// A fault while a double fault was delivered.
    TripleFault,
    /// An instruction, or a state, that this processor does not simulate.
    Unsupported {
        /// Where.
        rip: Gva,
        /// The bytes of the instruction.
        bytes: Vec<u8>,
        /// The instruction as text, or what is wrong.
        text: String,
    },
    /// As many instructions were executed as [`run`](Cpu::run) was allowed.
    Budget,
}

/// Why an instruction was not completed in the ordinary way.
#[derive(Debug)]
enum Trap {
    Exception(Exception),
    Exit(Exit),
}

/// What the host owes to the instruction that exited last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Pending {
    next_rip: u64,
    reply: Reply,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Reply {
    Nothing,
    Write,
    Msr,
    In(Width),
    Cpuid,
}

/// An instruction as it was decoded at an address from some bytes.
#[derive(Clone, Copy, Debug)]
struct Decoded {
    bytes: [u8; MAX_LENGTH],
    instruction: Instruction,
}

/// A virtual processor.
#[derive(Clone, Debug)]
pub struct Cpu {
    index: u32,
    registers: Registers,
    tlb: Tlb,
    /// By address; used only if the bytes are still the same, so that it cannot be stale.
    decoded: Box<[Option<Decoded>]>,
    /// Of the current instruction: where it goes on.
    next_rip: u64,
    pending: Option<Pending>,
    /// The register write that the host was asked about: a name and all of the value, which is more than the host is told of tables.
    asked: Option<(RegisterName, u128)>,
    /// The one that it has allowed.
    allowed: Option<(RegisterName, u128)>,
    injected: Option<Exception>,
    retired: u64,
}

impl Cpu {
    /// A processor with these registers.
    pub fn new(index: u32, registers: Registers) -> Self {
        Self {
            index,
            registers,
            tlb: Tlb::new(),
            decoded: vec![None; DECODED].into(),
            next_rip: registers.general.rip,
            pending: None,
            asked: None,
            allowed: None,
            injected: None,
            retired: 0,
        }
    }

    /// `HV_VP_INDEX`.
    pub const fn index(&self) -> u32 {
        self.index
    }

    /// The registers.
    pub const fn registers(&self) -> &Registers {
        &self.registers
    }

    /// The registers, to be set from outside: nothing is asked, checked or flushed. After a change of CR0, CR3, CR4 or EFER,
    /// [`flush_translations`](Self::flush_translations).
    pub const fn registers_mut(&mut self) -> &mut Registers {
        &mut self.registers
    }

    /// How many instructions were completed; of repeated ones every element counts.
    pub const fn retired(&self) -> u64 {
        self.retired
    }

    /// Forgets every translation of the guest's page tables, as a hypercall that flushes does.
    pub fn flush_translations(&mut self) {
        self.tlb.flush();
    }

    /// Executes instructions until one exits, at most `max_instructions`; a delivered exception counts as one.
    pub fn run<B: Bus + ?Sized>(&mut self, bus: &mut B, max_instructions: u64) -> Exit {
        for _ in 0..max_instructions {
            if let Err(exit) = self.step(bus) {
                return exit;
            }
        }
        Exit::Budget
    }

    /// Executes one instruction, or one element of a repeated one, or delivers the exception that was injected or that the instruction raises.
    ///
    /// # Errors
    /// [`Exit`], which is no failure but what the host has to answer.
    pub fn step<B: Bus + ?Sized>(&mut self, bus: &mut B) -> Result<(), Exit> {
        self.pending = None;
        let allowed = self.allowed.take();
        if self.registers.is_set(flag::TF) {
            let rip = Gva(self.registers.general.rip);
            return Err(Exit::Unsupported { rip, bytes: Vec::new(), text: "single step (RFLAGS.TF)".into() });
        }
        if let Some(exception) = self.injected {
            let outcome = self.deliver(bus, exception);
            // what the second-level table refused comes again
            if !matches!(outcome, Err(Exit::Memory(_))) {
                self.injected = None;
            }
            return outcome;
        }
        let instruction = match self.fetch(bus) {
            Ok(instruction) => instruction,
            Err(trap) => return self.stop(bus, trap),
        };
        let before = self.registers.general;
        self.next_rip = instruction.next_ip();
        self.allowed = allowed;
        let outcome = self.execute(bus, &instruction);
        self.allowed = None;
        match outcome {
            Ok(()) => {
                self.registers.general.rip = self.next_rip;
                self.retired += 1;
                if instruction.code() == Code::Hlt { Err(Exit::Halt) } else { Ok(()) }
            }
            Err(trap) => {
                self.registers.general = before;
                if let Trap::Exit(exit) = &trap {
                    self.pending = Some(Pending { next_rip: self.next_rip, reply: reply(exit) });
                }
                self.stop(bus, trap)
            }
        }
    }

    /// Goes on behind the instruction that exited, without it.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_STATE`] if the last step did not exit in an instruction whose length is known: it exited in a fetch, or while an
    /// exception was delivered.
    pub fn skip(&mut self) -> Result<(), HvStatus> {
        let pending = self.pending.take().ok_or(HvStatus::INVALID_VP_STATE)?;
        self.registers.general.rip = pending.next_rip;
        Ok(())
    }

    /// Lets the register write of [`Exit::RegisterWrite`] happen: the next step executes the instruction again, which exits again only if it
    /// would write something else.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_STATE`] if the last step was no such exit.
    pub fn allow_write(&mut self) -> Result<(), HvStatus> {
        if self.pending.map(|pending| pending.reply) != Some(Reply::Write) {
            return Err(HvStatus::INVALID_VP_STATE);
        }
        self.pending = None;
        self.allowed = self.asked;
        Ok(())
    }

    /// Completes an IN or a RDMSR with what was read, and goes on behind it.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_STATE`] if the last step was no such exit.
    pub fn answer(&mut self, value: u64) -> Result<(), HvStatus> {
        let gpr = &mut self.registers.general.gpr;
        match self.pending.map(|pending| pending.reply) {
            Some(Reply::Msr) => (gpr[0], gpr[2]) = (value & 0xffff_ffff, value >> 32),
            Some(Reply::In(width)) => gpr[0] = operand::merged(gpr[0], value, width),
            _ => return Err(HvStatus::INVALID_VP_STATE),
        }
        self.skip()
    }

    /// Completes a CPUID with EAX, EBX, ECX and EDX, and goes on behind it.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_STATE`] if the last step was no such exit.
    pub fn answer_cpuid(&mut self, values: [u32; 4]) -> Result<(), HvStatus> {
        if self.pending.map(|pending| pending.reply) != Some(Reply::Cpuid) {
            return Err(HvStatus::INVALID_VP_STATE);
        }
        let gpr = &mut self.registers.general.gpr;
        [gpr[0], gpr[3], gpr[1], gpr[2]] = values.map(u64::from);
        self.skip()
    }

    /// Has an exception delivered before the next instruction. For a page fault CR2 is set by the host. What exited is given up.
    pub fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        self.pending = None;
        self.allowed = None;
        self.injected = Some(Exception::new(vector, error_code));
    }

    /// Whether an exception waits to be delivered.
    pub const fn has_injected(&self) -> bool {
        self.injected.is_some()
    }

    fn stop<B: Bus + ?Sized>(&mut self, bus: &mut B, trap: Trap) -> Result<(), Exit> {
        match trap {
            Trap::Exception(exception) => self.deliver(bus, exception),
            Trap::Exit(exit) => Err(exit),
        }
    }

    /// The instruction at RIP. The page behind is touched only if the instruction goes on there.
    fn fetch<B: Bus + ?Sized>(&mut self, bus: &mut B) -> Result<Instruction, Trap> {
        let rip = self.registers.general.rip;
        if !is_canonical(rip) {
            return Err(Exception::general_protection(0).into());
        }
        let mut bytes = [0; MAX_LENGTH];
        let here = (PAGE - page_offset(rip)).min(MAX_LENGTH);
        self.fetch_bytes(bus, rip, &mut bytes[..here])?;
        let slot = slot(rip);
        if let Some(Decoded { bytes: old, instruction }) = &self.decoded[slot] {
            let len = instruction.len();
            if instruction.ip() == rip && len <= here && old[..len] == bytes[..len] {
                return Ok(*instruction);
            }
        }
        let (mut instruction, mut error) = decode(&bytes[..here], rip);
        let mut known = here;
        if error == DecoderError::NoMoreBytes && here < MAX_LENGTH {
            let there = rip.wrapping_add(here as u64);
            if !is_canonical(there) {
                return Err(Exception::general_protection(0).into());
            }
            self.fetch_bytes(bus, there, &mut bytes[here..])?;
            (instruction, error) = decode(&bytes, rip);
            known = MAX_LENGTH;
        }
        match error {
            DecoderError::None => {
                self.decoded[slot] = Some(Decoded { bytes, instruction });
                Ok(instruction)
            }
            // fifteen bytes and no end: too long an instruction
            DecoderError::NoMoreBytes if known == MAX_LENGTH => Err(Exception::general_protection(0).into()),
            _ => Err(Exception::INVALID_OPCODE.into()),
        }
    }

    /// The exit for an instruction that is not simulated.
    fn unsupported(&self, instruction: &Instruction) -> Trap {
        let rip = instruction.ip();
        let known = self.decoded[slot(rip)].filter(|decoded| decoded.instruction.ip() == rip);
        let bytes = known.map_or_else(Vec::new, |decoded| decoded.bytes[..instruction.len()].to_vec());
        let mut text = String::new();
        NasmFormatter::new().format(instruction, &mut text);
        Trap::Exit(Exit::Unsupported { rip: Gva(rip), bytes, text })
    }

    /// Asks the host before a register is written, unless it has allowed just that. `whole` is all that would be written, where it is more
    /// than `new`: the guest may change it in memory while the host decides.
    fn ask(&mut self, name: RegisterName, old: u64, new: u64, whole: u128) -> Result<(), Trap> {
        if self.allowed == Some((name, whole)) {
            return Ok(());
        }
        self.asked = Some((name, whole));
        Err(Trap::Exit(Exit::RegisterWrite { name, old, new }))
    }

    fn general(&mut self) -> &mut General {
        &mut self.registers.general
    }
}

fn decode(bytes: &[u8], rip: u64) -> (Instruction, DecoderError) {
    let mut decoder = Decoder::with_ip(64, bytes, rip, DecoderOptions::NONE);
    let instruction = decoder.decode();
    (instruction, decoder.last_error())
}

fn slot(rip: u64) -> usize {
    (rip & 0x3ff) as usize
}

fn reply(exit: &Exit) -> Reply {
    match exit {
        Exit::RegisterWrite { .. } => Reply::Write,
        Exit::ReadMsr { .. } => Reply::Msr,
        Exit::Io { width, write: None, .. } => Width::of(*width).map_or(Reply::Nothing, Reply::In),
        Exit::Cpuid { .. } => Reply::Cpuid,
        _ => Reply::Nothing,
    }
}
