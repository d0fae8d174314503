//! A bus over plain memory with a protection per page, and machines to run pieces of code on.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::collections::HashMap;

use hvci_engine::{
    access::Access,
    addr::{Frame, Gpa, Gpn, GpnRange, PAGE_SIZE},
};
use iced_x86::{IcedError, code_asm::CodeAssembler};

use crate::{
    bus::{Bus, Fault},
    cpu::{
        Cpu, Exit, gate,
        registers::{General, Registers, Segment, Table},
    },
    memory::{GuestMemory, PAGE},
    paging::{PageTables, entry},
};

/// Guest page n is frame n.
#[derive(Debug)]
pub(crate) struct FlatBus {
    pub(crate) memory: GuestMemory,
    /// (readable, writable, executable); all three where nothing is said.
    protection: HashMap<Gpn, (bool, bool, bool)>,
    /// What was asked for, of whole accesses: to see that none crosses a page.
    pub(crate) longest: usize,
}

impl FlatBus {
    pub(crate) fn new(frames: u64) -> Self {
        Self { memory: GuestMemory::new(frames).unwrap(), protection: HashMap::new(), longest: 0 }
    }

    pub(crate) fn protect(&mut self, page: Gpn, writable: bool, executable: bool) {
        self.protection.insert(page, (true, writable, executable));
    }

    pub(crate) fn hide(&mut self, page: Gpn) {
        self.protection.insert(page, (false, false, false));
    }

    pub(crate) fn bytes(&self, gpa: Gpa, len: usize) -> Vec<u8> {
        let mut bytes = vec![0; len];
        self.memory.read(Frame(gpa.gpn().0), gpa.offset(), &mut bytes).unwrap();
        bytes
    }

    pub(crate) fn qword(&self, gpa: Gpa) -> u64 {
        u64::from_le_bytes(self.bytes(gpa, 8).try_into().unwrap())
    }

    fn check(&mut self, gpa: Gpa, access: Access, page_walk: bool, len: usize) -> Result<(), Fault> {
        assert!(usize::try_from(gpa.offset()).unwrap() + len <= PAGE, "an access crosses a page");
        self.longest = self.longest.max(len);
        let (read, write, execute) = self.protection.get(&gpa.gpn()).copied().unwrap_or((true, true, true));
        let allowed = match access {
            Access::Read => read,
            Access::Write => write,
            Access::KernelExecute | Access::UserExecute => execute,
        };
        if allowed && gpa.gpn().0 < self.memory.frames() { Ok(()) } else { Err(Fault { gpa, access, page_walk }) }
    }
}

impl Bus for FlatBus {
    fn load(&mut self, gpa: Gpa, access: Access, page_walk: bool, bytes: &mut [u8]) -> Result<(), Fault> {
        self.check(gpa, access, page_walk, bytes.len())?;
        self.memory.read(Frame(gpa.gpn().0), gpa.offset(), bytes).unwrap();
        Ok(())
    }

    fn check_store(&mut self, gpa: Gpa, len: usize) -> Result<(), Fault> {
        self.check(gpa, Access::Write, false, len)
    }

    fn store(&mut self, gpa: Gpa, page_walk: bool, bytes: &[u8]) -> Result<(), Fault> {
        self.check(gpa, Access::Write, page_walk, bytes.len())?;
        self.memory.write(Frame(gpa.gpn().0), gpa.offset(), bytes).unwrap();
        Ok(())
    }
}

/// Where a [`Machine`] has its code: two pages of the kernel, at GPA 0x10000.
pub(crate) const CODE: u64 = 0xffff_8000_0040_0000;
/// Four pages of data of the kernel, at GPA 0x20000.
pub(crate) const DATA: u64 = 0xffff_8000_0050_0000;
/// The end of two pages of the kernel's stack, at GPA 0x30000.
pub(crate) const STACK: u64 = 0xffff_8000_0060_2000;
/// Two pages of code of user mode, at GPA 0x40000.
pub(crate) const USER_CODE: u64 = 0x40_0000;
/// Two pages of data of user mode, at GPA 0x50000.
pub(crate) const USER_DATA: u64 = 0x50_0000;
/// The end of two pages of stack of user mode, at GPA 0x60000.
pub(crate) const USER_STACK: u64 = 0x60_2000;

/// A processor with memory in which the pages above are mapped.
#[derive(Debug)]
pub(crate) struct Machine {
    pub(crate) bus: FlatBus,
    pub(crate) cpu: Cpu,
    pub(crate) tables: PageTables,
}

impl Machine {
    pub(crate) fn new() -> Self {
        let mut bus = FlatBus::new(128);
        let mut tables = PageTables::new(&mut bus, GpnRange::new(Gpn(100), 28).unwrap()).unwrap();
        let (p, w, u, nx) = (entry::PRESENT, entry::WRITABLE, entry::USER, entry::NO_EXECUTE);
        for (address, gpa, pages, bits) in [
            (CODE, 0x1_0000, 2, p),
            (DATA, 0x2_0000, 4, p | w | nx),
            (STACK - 0x2000, 0x3_0000, 2, p | w | nx),
            (USER_CODE, 0x4_0000, 2, p | u),
            (USER_DATA, 0x5_0000, 2, p | w | u | nx),
            (USER_STACK - 0x2000, 0x6_0000, 2, p | w | u | nx),
        ] {
            tables.map(&mut bus, address, Gpa(gpa), pages * PAGE_SIZE, bits).unwrap();
        }
        let cpu = Cpu::new(0, Registers::kernel(CODE, STACK - 0x100, tables.root().0));
        Self { bus, cpu, tables }
    }

    /// With code at [`CODE`].
    pub(crate) fn with(build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Self {
        let mut machine = Self::new();
        machine.load(CODE, &assemble(CODE, build));
        machine
    }

    /// Where a mapped address lies.
    pub(crate) fn gpa(&mut self, address: u64) -> Gpa {
        let entries = self.tables.entries(&mut self.bus, address).unwrap();
        let value = self.bus.qword(*entries.last().unwrap());
        Gpa((value & entry::ADDRESS) | (address & 0xfff))
    }

    /// Puts bytes into memory, whatever the protection.
    pub(crate) fn load(&mut self, address: u64, bytes: &[u8]) {
        for (address, byte) in (address..).zip(bytes) {
            let gpa = self.gpa(address);
            self.bus.memory.write(Frame(gpa.gpn().0), gpa.offset(), &[*byte]).unwrap();
        }
    }

    pub(crate) fn bytes(&mut self, address: u64, len: usize) -> Vec<u8> {
        (address..)
            .take(len)
            .map(|address| {
                let gpa = self.gpa(address);
                self.bus.bytes(gpa, 1)[0]
            })
            .collect()
    }

    pub(crate) fn qword(&mut self, address: u64) -> u64 {
        u64::from_le_bytes(self.bytes(address, 8).try_into().unwrap())
    }

    pub(crate) fn run(&mut self) -> Exit {
        self.cpu.run(&mut self.bus, 10_000)
    }

    pub(crate) fn gpr(&self, index: usize) -> u64 {
        self.cpu.registers().general.gpr[index]
    }

    pub(crate) fn general(&mut self) -> &mut General {
        &mut self.cpu.registers_mut().general
    }

    /// An IDT at [`DATA`]` + 0x1000` with these 64-bit interrupt gates, and a TSS at [`DATA`]` + 0x2000` whose RSP0 is [`STACK`].
    pub(crate) fn interrupts(&mut self, gates: &[(u8, u64)]) {
        for &(vector, handler) in gates {
            self.load(DATA + 0x1000 + u64::from(vector) * 16, &gate(handler, 0xee00));
        }
        self.load(DATA + 0x2004, &STACK.to_le_bytes());
        let registers = self.cpu.registers_mut();
        registers.idtr = Table { base: DATA + 0x1000, limit: 0xfff };
        registers.tr = Segment { selector: 0x40, base: DATA + 0x2000, limit: 0x67 };
    }
}

/// Machine code for an address.
pub(crate) fn assemble(address: u64, build: impl FnOnce(&mut CodeAssembler) -> Result<(), IcedError>) -> Vec<u8> {
    let mut assembler = CodeAssembler::new(64).unwrap();
    build(&mut assembler).unwrap();
    assembler.assemble(address).unwrap()
}
