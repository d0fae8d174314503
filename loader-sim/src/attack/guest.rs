//! A small guest that is set up for an attack: a kernel of two verified pages, data, a stack, pages that it may write and execute as far as its
//! own tables go, and a signed module that it loads by a VTL call.

use std::sync::{Arc, LazyLock};

use anyhow::{Context, Result, ensure};
use corpus::synth::{
    certificate::{Identity, Template},
    elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    event::Event,
    frames::Kind,
    host::{Enforcer, Host},
    load::{Function, Loader},
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
    },
};
use iced_x86::{IcedError, code_asm::*};
use x509_cert::der::Encode;

use crate::{
    cpu::{
        Exit,
        registers::{Registers, Table},
    },
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
    machine::{Engine, Machine, Stop, View},
    memory::PAGE,
    paging::{PageTables, entry},
};

/// Where the guest has what; behind each address the GPA.
pub(super) const KERNEL: (u64, u64) = (0xFFFF_8000_0040_0000, 0x10_000);
pub(super) const DATA: (u64, u64) = (0xFFFF_8000_0050_0000, 0x20_000);
pub(super) const STACK: (u64, u64) = (0xFFFF_8000_0060_0000, 0x30_000);
/// Pages that the guest may write and, as far as its own tables go, execute.
pub(super) const POOL: (u64, u64) = (0xFFFF_8000_0070_0000, 0x40_000);
/// The module: its pages are writable and executable in the guest's tables, which is nobody's business.
pub(super) const MODULE: (u64, u64) = (0xFFFF_FFFF_C040_0000, 0x100_000);
/// A second mapping of the alias of the module's first page.
pub(super) const ALIAS: u64 = 0xFFFF_8000_0080_0000;
const PAGES: u64 = 0x400;
/// Handlers of #UD, #GP and #PF store this and the vector, and halt.
const CAUGHT: u64 = 0xCA06_0000;
/// General registers by number.
const RAX: usize = 0;
const RDX: usize = 2;
const R15: usize = 15;

const RSP: usize = 4;
/// What a program leaves in R15 if it comes to its end.
pub const THROUGH: u64 = 0x600D;

/// Whose key signs the module.
static KEY: LazyLock<std::result::Result<Identity, String>> = LazyLock::new(|| {
    let key = Key::derive(7, "module", KeyKind::Rsa(2048)).map_err(|e| e.to_string())?;
    Template::leaf("CN=module key", &[]).issue(&key, None).map_err(|e| e.to_string())
});

/// The guest and the engine above it.
#[derive(Debug)]
pub struct Guest {
    /// Its memory.
    pub host: Arc<SimHost>,
    /// What stands above it.
    pub engine: Engine,
    /// Its processors.
    pub machine: Machine,
    /// Its page tables.
    pub tables: PageTables,
}

type Build<'b> = &'b dyn Fn(&mut CodeAssembler) -> std::result::Result<(), IcedError>;

fn assemble(address: u64, build: Build<'_>) -> Result<Vec<u8>> {
    let mut assembler = CodeAssembler::new(64)?;
    build(&mut assembler)?;
    Ok(assembler.assemble(address)?)
}

fn key() -> Result<&'static Identity> {
    KEY.as_ref().map_err(|error| anyhow::anyhow!("no key: {error}"))
}

/// A signed module that returns at its first instruction.
fn module() -> Result<Vec<u8>> {
    let mut module = elf::module("good", false)?;
    // the synthesiser's code is random; its first function shall do nothing but return
    let text = guest_loader::place(&module, Gva(MODULE.0))?.remove(&MODULE.0).context("no code")?;
    let at = module.windows(32).position(|w| text.starts_with(w)).context("no code")?;
    *module.get_mut(at).context("no code")? = 0xC3;
    Ok(elf::signed(&module, &elf::signing(key()?))?)
}

impl Guest {
    /// A guest whose boot is over; the module is not loaded yet.
    ///
    /// # Errors
    /// None that occurs.
    pub fn new() -> Result<Self> {
        let config = Config { pages: PAGES, aliases: vec![Gpn(MODULE.1 / PAGE_SIZE)], ..Config::default() };
        let (host, partition) = SimHost::with_partition(&config)?;
        let mut trust = TrustStore::builtin();
        trust.add_der(&key()?.certificate.to_der()?, Purposes::MODULE, "attack")?;
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
        let time = UnixTime::parse("2026-11-24").context("no time")?;
        let engine = Engine { partition, loader: Arc::new(loader), time };

        let mut bus = View::new(&host, 0);
        let mut tables = PageTables::new(&mut bus, GpnRange { start: Gpn(0x200), pages: 64 })?;
        let (p, w, nx) = (entry::PRESENT, entry::WRITABLE, entry::NO_EXECUTE);
        for ((address, gpa), pages, bits) in [
            (KERNEL, 2, p),
            (DATA, 8, p | w | nx),
            (STACK, 2, p | w | nx),
            (POOL, 4, p | w),
            (MODULE, 16, p | w),
            ((ALIAS, PAGES * PAGE_SIZE), 1, p | w),
        ] {
            tables.map(&mut bus, address, Gpa(gpa), pages * PAGE_SIZE, bits)?;
        }
        let mut registers = Registers::kernel(KERNEL.0, STACK.0 + 0x1F00, tables.root().0);
        registers.idtr = Table { base: DATA.0 + 0x1000, limit: 0xFFF };
        let machine = Machine::new(Arc::clone(&host), Some(engine.clone()), [registers, registers]);
        let mut guest = Self { host, engine, machine, tables };
        for vector in [6_u8, 13, 14] {
            let handler = KERNEL.0 + 0x1000 + u64::from(vector) * 0x20;
            let low = (handler & 0xFFFF) | 0x10 << 16 | 0x8E00 << 32 | (handler >> 16 & 0xFFFF) << 48;
            let gate = u128::from(low) | u128::from(handler >> 32) << 64;
            guest.write(DATA.1 + 0x1000 + u64::from(vector) * 16, &gate.to_le_bytes())?;
            let code = assemble(handler, &|a| {
                a.mov(r15, CAUGHT | u64::from(vector))?;
                a.hlt()
            })?;
            guest.write(KERNEL.1 + 0x1000 + u64::from(vector) * 0x20, &code)?;
        }
        // what the guest's kernel is made of was verified when it was booted
        let pages = [0, 1].map(|page| (Gpn(KERNEL.1 / PAGE_SIZE + page), Kind::Code));
        guest.engine.partition.transform(u32::MAX, &pages, || Ok(()))?;
        guest.enable_vtl1()?;
        guest.engine.partition.end_of_boot();
        Ok(guest)
    }

    /// Puts bytes into memory, whatever its protection: what was there before the attack.
    pub(super) fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        for (chunk, at) in bytes.chunks(PAGE).zip((gpa..).step_by(PAGE)) {
            self.host.write(Gpa(at), chunk)?;
        }
        Ok(())
    }

    /// Bytes of memory, whatever its protection.
    ///
    /// # Errors
    /// Where there is no RAM.
    pub fn read(&self, gpa: u64, len: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; len];
        self.host.read(Gpa(gpa), &mut bytes)?;
        Ok(bytes)
    }

    fn enable_vtl1(&mut self) -> Result<()> {
        let cpu = self.machine.cpu(0).context("no processor")?;
        let mut input = [0; 16];
        PARTITION_ID_SELF.put(&mut input, 0);
        (input[8], input[9]) = (1, 1);
        let simple = |code| Control::simple(code).0;
        let partition = &self.engine.partition;
        partition.hypercall(cpu, Vtl::Vtl0, simple(HypercallCode::ENABLE_PARTITION_VTL), &input, &mut []).0.ok()?;
        let mut input = [0; 0xF0];
        PARTITION_ID_SELF.put(&mut input, 0);
        VP_INDEX_SELF.put(&mut input, 8);
        input[12] = 1;
        partition.hypercall(cpu, Vtl::Vtl0, simple(HypercallCode::ENABLE_VP_VTL), &input, &mut []).0.ok()?;
        Ok(())
    }

    /// Runs code of the guest's kernel on a processor until it halts; what R15 holds then.
    ///
    /// # Errors
    /// A program that does not assemble or does not halt.
    pub fn run(&mut self, vp: u32, build: Build<'_>) -> Result<u64> {
        // as if it had been there when the kernel was verified
        let code = assemble(KERNEL.0, &|a| {
            build(a)?;
            a.mov(r15, THROUGH)?;
            a.hlt()
        })?;
        ensure!(code.len() < PAGE, "the program is too long");
        self.write(KERNEL.1, &code)?;
        let general = &mut self.machine.cpu(vp).context("no processor")?.registers_mut().general;
        (general.rip, general.gpr[R15], general.gpr[RSP]) = (KERNEL.0, 0, STACK.0 + 0x1F00);
        let stop = self.machine.run(vp, 10_000)?;
        ensure!(stop == Stop::Exit(Exit::Halt), "the program stopped: {stop:?}");
        Ok(self.register(vp, R15)?)
    }

    /// A general register, by number.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_INDEX`] for no processor.
    pub fn register(&mut self, vp: u32, number: usize) -> Result<u64, HvStatus> {
        let cpu = self.machine.cpu(vp).ok_or(HvStatus::INVALID_VP_INDEX)?;
        cpu.registers().general.gpr.get(number).copied().ok_or(HvStatus::INVALID_PARAMETER)
    }

    /// A VTL call with this argument block, by code of the guest's; the status and the value that it answers.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn call(&mut self, function: Function, arguments: &[u64]) -> Result<(HvStatus, u64)> {
        let block: Vec<u8> = std::iter::once(&function.0).chain(arguments).flat_map(|w| w.to_le_bytes()).collect();
        self.write(DATA.1 + 0x3000, &[0; hvci_engine::load::BLOCK])?;
        self.write(DATA.1 + 0x3000, &block)?;
        let end = self.run(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.xor(eax, eax)?;
            a.vmcall()
        })?;
        ensure!(end == THROUGH, "the VTL call faulted");
        Ok((HvStatus(u16::try_from(self.register(0, RAX)?)?), self.register(0, RDX)?))
    }

    /// Has the guest load the module; its number.
    ///
    /// # Errors
    /// As [`run`](Self::run); a module that is refused.
    pub fn load(&mut self) -> Result<u64> {
        let file = module()?;
        let list = |from: u64, count: u64| (from..from + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        self.write(0x50_000, &file)?;
        let placed = guest_loader::place(&file, Gva(MODULE.0))?;
        guest_loader::put(&*self.host, &placed, Gva(MODULE.0), Gpn(MODULE.1 / PAGE_SIZE))?;
        self.write(DATA.1 + 0x4000, b"good")?;
        self.write(DATA.1 + 0x5000, &list(0x50, 16))?;
        self.write(DATA.1 + 0x6000, &list(MODULE.1 / PAGE_SIZE, 16))?;
        let arguments = [DATA.1 + 0x4000, 4, DATA.1 + 0x5000, u64::try_from(file.len())?, MODULE.0, DATA.1 + 0x6000, 16];
        let (status, id) = self.call(Function::VALIDATE_MODULE, &arguments)?;
        status.ok()?;
        Ok(id)
    }

    /// What comes of a program: how it ended, what the engine recorded, and whether the module's code is still what it was.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn attempt(&mut self, vp: u32, build: Build<'_>) -> Result<String> {
        self.refused();
        let before = self.read(MODULE.1, PAGE)?;
        let end = match self.run(vp, build)? {
            THROUGH => "goes through".to_owned(),
            end if end == CAUGHT | 6 => "#UD".to_owned(),
            end if end == CAUGHT | 13 => "#GP".to_owned(),
            end if end == CAUGHT | 14 => "#PF".to_owned(),
            end => format!("R15 {end:#x}"),
        };
        let codes: Vec<String> = self.refused().iter().filter_map(|event| event.code).map(|code| code.to_string()).collect();
        let changed = if self.read(MODULE.1, PAGE)? == before { "" } else { ", code CHANGED" };
        Ok(if codes.is_empty() { format!("{end}{changed}") } else { format!("{end}, {}{changed}", codes.join(" ")) })
    }

    /// The events since the last time that refused something.
    fn refused(&self) -> Vec<Event> {
        self.engine.partition.take_events().0.into_iter().filter(|event| event.code.is_some()).collect()
    }
}
