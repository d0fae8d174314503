//! A small guest that is set up for an attack: a kernel of two verified pages, data, a stack, pages that it may write and execute as far as its
//! own tables go, and a signed module that it loads by a VTL call.

use std::sync::Arc;

use anyhow::{Context, Result, bail, ensure};
use hvci_engine::{
    access::MapGpaFlags,
    addr::{Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    event::Event,
    frames::Kind,
    host::{Enforcer, Host},
    load::{Function, Loader, Sealed},
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    time::UnixTime,
    vault::Vault,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        partition::Partition,
        register::RegisterName,
    },
};
use iced_x86::{IcedError, code_asm::*};
use x509_cert::der::Encode;

use super::forge;
use crate::{
    cpu::{
        Exit, INTERRUPT_GATE, gate,
        registers::{Registers, Segment, Table},
    },
    device::MMIO,
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
    machine::{Engine, Machine, REFERENCE_TSC, Stop, View},
    memory::{PAGE, page_offset},
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
/// Mappings of a second guest page for each of the module's frames.
pub(super) const ALIAS: u64 = 0xFFFF_8000_0080_0000;
/// The registers of the device.
pub(super) const DEVICE: u64 = 0xFFFF_8000_0090_0000;
/// Verified code of the kernel's that sets EAX to [`OTHER_CODE`] and returns.
pub(super) const FUNCTION: u64 = KERNEL.0 + 0x1800;
pub(super) const OTHER_CODE: u32 = 0x0BAD_C0DE;
/// Where the guest reads the files of modules into, and how many pages there are.
const FILE: (u64, u64) = (0x50_000, 0x40);
pub(super) const MODULE_PAGES: u64 = 16;
/// A page that is VTL1's once [`Guest::secure_page`] was called.
pub(super) const VTL1_PAGE: u64 = 0x90_000;
/// Of the guest's secure pool.
pub(super) const COOKIE: u64 = 0xC00C_1E00_1234_5678;
const PAGES: u64 = 0x400;
/// Handlers of #UD, #GP and #PF store this and the vector, and halt.
pub(super) const CAUGHT: u64 = 0xCA06_0000;
/// A vector whose handler returns.
const INTERRUPT: u8 = 32;
/// General registers by number.
pub(super) const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const R15: usize = 15;

const RSP: usize = 4;
/// What a program leaves in R15 if it comes to its end.
pub const THROUGH: u64 = 0x600D;

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

/// Machine code for an address.
pub(crate) fn assemble(address: u64, build: Build<'_>) -> Result<Vec<u8>> {
    let mut assembler = CodeAssembler::new(64)?;
    build(&mut assembler)?;
    Ok(assembler.assemble(address)?)
}

impl Guest {
    /// A guest whose boot is over; the module is not loaded yet.
    ///
    /// # Errors
    /// None that occurs.
    pub fn new() -> Result<Self> {
        Self::with_vault(|_| Ok(None))
    }

    /// The same with a vault, if there is to be one.
    ///
    /// # Errors
    /// Those of `vault`.
    pub fn with_vault(vault: impl FnOnce(&Arc<Partition>) -> Result<Option<Arc<Vault>>>) -> Result<Self> {
        let aliases = (MODULE.1 / PAGE_SIZE..).map(Gpn).take(usize::try_from(MODULE_PAGES)?).collect();
        let config = Config { pages: PAGES, aliases, ..Config::default() };
        let (host, partition) = SimHost::with_partition(&config)?;
        let mut trust = TrustStore::builtin();
        trust.add_der(&forge::module_key()?.certificate.to_der()?, Purposes::MODULE, "attack")?;
        trust.add_der(&forge::driver_key()?.certificate.to_der()?, Purposes::KERNEL, "attack")?;
        trust.add_der(&forge::timestamp_key()?.certificate.to_der()?, Purposes::TIMESTAMP, "attack")?;
        let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
        let time = UnixTime::parse("2026-11-24").context("no time")?;
        let vault = vault(&partition)?;
        let engine = Engine { partition, loader: Arc::new(loader), vault, time };

        let mut bus = View::new(&host, 0);
        let mut tables = PageTables::new(&mut bus, GpnRange { start: Gpn(0x200), pages: 64 })?;
        let (p, w, nx) = (entry::PRESENT, entry::WRITABLE, entry::NO_EXECUTE);
        for ((address, gpa), pages, bits) in [
            (KERNEL, 2, p),
            (DATA, 8, p | w | nx),
            (STACK, 2, p | w | nx),
            (POOL, 4, p | w),
            (MODULE, MODULE_PAGES, p | w),
            ((ALIAS, PAGES * PAGE_SIZE), MODULE_PAGES, p | w),
            ((DEVICE, MMIO.0), 1, p | w | nx),
        ] {
            tables.map(&mut bus, address, Gpa(gpa), pages * PAGE_SIZE, bits)?;
        }
        let mut registers = Registers::kernel(KERNEL.0, STACK.0 + 0x1F00, tables.root().0);
        registers.idtr = Table { base: DATA.0 + 0x1000, limit: 0x7FF };
        registers.tr = Segment { selector: 0x40, base: DATA.0 + 0x1800, limit: 0x67 };
        let machine = Machine::new(Arc::clone(&host), Some(engine.clone()), [registers, registers]);
        let mut guest = Self { host, engine, machine, tables };
        for vector in [6_u8, 13, 14, INTERRUPT] {
            let handler = KERNEL.0 + 0x1000 + u64::from(vector) * 0x20;
            guest.write(DATA.1 + 0x1000 + u64::from(vector) * 16, &gate(handler, INTERRUPT_GATE))?;
            let code = assemble(handler, &|a| {
                if vector == INTERRUPT {
                    return a.iretq();
                }
                a.mov(r15, CAUGHT | u64::from(vector))?;
                a.hlt()
            })?;
            guest.write(KERNEL.1 + 0x1000 + u64::from(vector) * 0x20, &code)?;
        }
        // where a handler's stack is that interrupts user mode
        guest.write(DATA.1 + 0x1804, &(STACK.0 + 0x1F00).to_le_bytes())?;
        let function = assemble(FUNCTION, &|a| {
            a.mov(eax, OTHER_CODE)?;
            a.ret()
        })?;
        guest.write(KERNEL.1 + FUNCTION - KERNEL.0, &function)?;
        // what the guest's kernel is made of was verified when it was booted
        let pages = [0, 1].map(|page| (Gpn(KERNEL.1 / PAGE_SIZE + page), Kind::Code));
        guest.engine.partition.transform(u32::MAX, &pages, || Ok(()))?;
        guest.machine.enable_vtl1(1)?;
        guest.engine.partition.end_of_boot();
        Ok(guest)
    }

    /// Puts bytes into memory, whatever its protection: what was there before the attack.
    ///
    /// # Errors
    /// Where there is no RAM.
    pub fn write(&self, gpa: u64, bytes: &[u8]) -> Result<()> {
        let first = bytes.len().min(PAGE - page_offset(gpa));
        let (now, rest) = bytes.split_at(first);
        self.host.write(Gpa(gpa), now)?;
        for (chunk, at) in rest.chunks(PAGE).zip((gpa + now.len() as u64..).step_by(PAGE)) {
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
        let mut at = gpa;
        // of a whole page as much as is left of it
        while let Some(rest) = bytes.get_mut(usize::try_from(at - gpa)?..).filter(|rest| !rest.is_empty()) {
            let now = rest.len().min(PAGE - page_offset(at));
            self.host.read(Gpa(at), rest.get_mut(..now).context("no rest")?)?;
            at += now as u64;
        }
        Ok(bytes)
    }

    /// Runs code of the guest's kernel on a processor until it halts; what R15 holds then.
    ///
    /// # Errors
    /// A program that does not assemble or does not halt.
    pub fn run(&mut self, vp: u32, build: Build<'_>) -> Result<u64> {
        self.start(vp, build)?;
        self.run_again(vp)
    }

    /// Has a processor stand before a program.
    fn start(&mut self, vp: u32, build: Build<'_>) -> Result<()> {
        // as if it had been there when the kernel was verified
        let code = assemble(KERNEL.0, &|a| {
            build(a)?;
            a.mov(r15, THROUGH)?;
            a.hlt()
        })?;
        ensure!(code.len() < PAGE, "the program is too long");
        self.write(KERNEL.1, &code)?;
        self.rewind(vp)
    }

    /// Has a processor stand before the program that is there.
    fn rewind(&mut self, vp: u32) -> Result<()> {
        let general = &mut self.machine.cpu(vp).context("no processor")?.registers_mut().general;
        (general.rip, general.gpr[R15], general.gpr[RSP]) = (KERNEL.0, 0, STACK.0 + 0x1F00);
        Ok(())
    }

    /// Runs the last program again; what R15 holds then.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn run_again(&mut self, vp: u32) -> Result<u64> {
        self.rewind(vp)?;
        let stop = self.machine.run(vp, 10_000)?;
        ensure!(stop == Stop::Exit(Exit::Halt), "the program stopped: {stop:?}");
        Ok(self.register(vp, R15)?)
    }

    /// The time from now on.
    pub fn set_time(&mut self, time: UnixTime) {
        self.engine.time = time;
        self.machine.set_time(time);
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
        self.write(DATA.1 + 0x3000, &[0; hvci_engine::vsm::secure_call::BLOCK])?;
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

    /// Has the guest load the good module; its number.
    ///
    /// # Errors
    /// As [`run`](Self::run); a module that is refused.
    pub fn load(&mut self) -> Result<u64> {
        let arguments = self.present(&forge::Module::new()?.signed()?)?;
        let (status, id) = self.call(Function::VALIDATE_MODULE, &arguments)?;
        status.ok()?;
        Ok(id)
    }

    /// Has the guest read a file and place it, if its loader can; the arguments of the call that has it loaded.
    pub(crate) fn present(&self, file: &[u8]) -> Result<[u64; 7]> {
        self.present_at(file, MODULE.0)
    }

    /// The same at another address, in the same pages.
    pub(super) fn present_at(&self, file: &[u8], base: u64) -> Result<[u64; 7]> {
        let list = |from: u64, count: u64| (from..from + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
        let pages = (file.len() as u64).div_ceil(PAGE_SIZE);
        ensure!(pages <= FILE.1, "a file of {} bytes", file.len());
        self.write(FILE.0, file)?;
        let mut count = MODULE_PAGES;
        if let Ok(placed) = guest_loader::place(file, Gva(base)) {
            count = guest_loader::pages_of(&placed, Gva(base));
            ensure!(count <= MODULE_PAGES, "the module takes {count} pages");
            // what is sealed stays as it is: no loader of the guest's could write there
            if self.engine.partition.kind(Gpn(MODULE.1 / PAGE_SIZE)) == Some(Kind::Data) {
                guest_loader::put(&*self.host, &placed, Gva(base), Gpn(MODULE.1 / PAGE_SIZE))?;
            }
        }
        self.write(DATA.1 + 0x4000, b"good")?;
        self.write(DATA.1 + 0x5000, &list(FILE.0 / PAGE_SIZE, pages))?;
        self.write(DATA.1 + 0x6000, &list(MODULE.1 / PAGE_SIZE, count))?;
        Ok([DATA.1 + 0x4000, 4, DATA.1 + 0x5000, file.len() as u64, base, DATA.1 + 0x6000, count])
    }

    /// Has the guest load a file; what comes of it.
    pub(super) fn submit(&mut self, file: &[u8]) -> Result<String> {
        let arguments = self.present(file)?;
        self.ask(Function::VALIDATE_MODULE, &arguments)
    }

    /// A VTL call; its status and why it was refused.
    pub(super) fn ask(&mut self, function: Function, arguments: &[u64]) -> Result<String> {
        self.refused();
        let (status, _) = self.call(function, arguments)?;
        Ok(self.outcome(status))
    }

    /// A status, and what the engine has refused since the last time.
    pub(super) fn outcome(&self, status: HvStatus) -> String {
        let status = if status == HvStatus::SUCCESS { "goes through".to_owned() } else { format!("HV_STATUS {:#x}", status.0) };
        self.with_codes(status)
    }

    pub(super) fn with_codes(&self, what: String) -> String {
        let mut codes: Vec<String> = self.refused().iter().filter_map(|event| event.code).map(|code| code.to_string()).collect();
        codes.dedup();
        if codes.is_empty() { what } else { format!("{what}, {}", codes.join(" ")) }
    }

    /// The first segment of this kind of a module that is loaded.
    pub(super) fn segment(&self, kind: Kind) -> Result<Sealed> {
        let modules = self.engine.loader.modules_loaded();
        modules.iter().flat_map(|m| &m.segments).find(|s| s.kind == kind).cloned().with_context(|| format!("no {kind} is loaded"))
    }

    /// Maps a page of the guest's once more, as the guest can by itself.
    ///
    /// # Errors
    /// No page is left for the tables.
    pub fn map(&mut self, address: u64, gpa: u64, bits: u64) -> Result<()> {
        let mut bus = View::new(&self.host, 0);
        self.tables.map(&mut bus, address, Gpa(gpa), PAGE_SIZE, bits)?;
        for vp in 0..2 {
            self.machine.cpu(vp).context("no processor")?.flush_translations();
        }
        Ok(())
    }

    /// Has VTL1 take a page for itself.
    pub(super) fn secure_page(&self) -> Result<()> {
        self.engine.partition.transform(u32::MAX, &[(Gpn(VTL1_PAGE / PAGE_SIZE), Kind::SecureOnly)], || Ok(()))?;
        Ok(())
    }

    /// Has the guest make a secure pool of the first pages of its pool.
    pub(super) fn pool(&mut self, pages: u64) -> Result<u32> {
        let list: Vec<u8> = (0..pages).flat_map(|page| (POOL.1 / PAGE_SIZE + page).to_le_bytes()).collect();
        self.write(DATA.1 + 0x7000, &list)?;
        let (status, region) = self.call(Function::PROTECT_REGION, &[0, DATA.1 + 0x7000, pages, 0, COOKIE])?;
        status.ok()?;
        Ok(u32::try_from(region)?)
    }

    /// What VTL0 may do with each page.
    pub(super) fn permissions(&self) -> Vec<MapGpaFlags> {
        (0..PAGES + MODULE_PAGES).map(|gpn| self.host.permission(Vtl::Vtl0, Gpn(gpn))).collect()
    }

    /// [`run`](Self::run) with an interrupt before every instruction.
    pub(super) fn run_flooded(&mut self, vp: u32, build: Build<'_>) -> Result<u64> {
        self.start(vp, build)?;
        for _ in 0..1_000 {
            // the interrupt, its handler, and an instruction
            self.machine.cpu(vp).context("no processor")?.inject(INTERRUPT, None);
            for _ in 0..3 {
                match self.machine.run(vp, 1)? {
                    Stop::Exit(Exit::Budget) => {}
                    Stop::Exit(Exit::Halt) => return Ok(self.register(vp, R15)?),
                    stop => bail!("the program stopped: {stop:?}"),
                }
            }
        }
        bail!("the program does not end")
    }

    /// A hypercall by code of the guest's, with this input; its status, and how many elements of it are done.
    pub(super) fn hypercall(&mut self, control: Control, input: &[u8]) -> Result<(HvStatus, u64)> {
        self.write(DATA.1 + 0x3000, input)?;
        let end = self.run(0, &|a| {
            a.mov(rcx, control.0)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.mov(r8, DATA.1 + 0x3800)?;
            a.vmcall()
        })?;
        ensure!(end == THROUGH, "the hypercall faulted");
        let result = self.register(0, RAX)?;
        Ok((HvStatus((result & 0xFFFF).try_into()?), result >> 32 & 0xFFF))
    }

    /// The same by VTL1, whose code is not simulated: by the engine's own entry.
    pub(super) fn hypercall_of_vtl1(&mut self, control: Control, input: &[u8]) -> Result<(HvStatus, u16)> {
        let cpu = self.machine.cpu(0).context("no processor")?;
        Ok(self.engine.partition.hypercall(cpu, Vtl::Vtl1, control.0, input, &mut [0; 256]))
    }

    /// Has a processor write to an address.
    pub(super) fn write_to(&mut self, vp: u32, address: u64) -> Result<String> {
        self.attempt(vp, &|a| {
            a.mov(rax, address)?;
            a.mov(qword_ptr(rax), rax)
        })
    }

    /// Has a processor read from an address.
    pub(super) fn read_from(&mut self, vp: u32, address: u64) -> Result<String> {
        self.attempt(vp, &|a| {
            a.mov(rax, address)?;
            a.mov(rbx, qword_ptr(rax))
        })
    }

    /// Has a processor call what stands at an address.
    pub(super) fn call_to(&mut self, vp: u32, address: u64) -> Result<String> {
        self.attempt(vp, &|a| {
            a.mov(rax, address)?;
            a.call(rax)
        })
    }

    /// The same with its output to this page, and its input where the guest may have it.
    pub(super) fn hypercall_output(&mut self, output: u64) -> Result<String> {
        self.get_register(DATA.1 + 0x800, output)
    }

    /// HvCallGetVpRegisters of RIP by code of the guest's, with its input and output there.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn get_register(&mut self, input: u64, output: u64) -> Result<String> {
        let mut bytes = [0; 20];
        PARTITION_ID_SELF.put(&mut bytes, 0);
        VP_INDEX_SELF.put(&mut bytes, 8);
        RegisterName::RIP.0.put(&mut bytes, 16);
        self.host.write(Gpa(input), &bytes)?;
        self.attempt(0, &|a| {
            a.mov(rcx, Control::rep(HypercallCode::GET_VP_REGISTERS, 1).0)?;
            a.mov(rdx, input)?;
            a.mov(r8, output)?;
            a.vmcall()
        })
    }

    /// WRMSR to `HV_X64_MSR_REFERENCE_TSC`: has the hypervisor keep the time in a page.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn time_page(&mut self, gpa: u64) -> Result<String> {
        self.attempt(0, &|a| {
            a.mov(ecx, REFERENCE_TSC)?;
            a.mov(rax, gpa | 1)?;
            a.mov(rdx, gpa >> 32)?;
            a.wrmsr()
        })
    }

    /// Has a driver of the guest's give the device a command; what came of it, also for the device.
    ///
    /// # Errors
    /// As [`run`](Self::run).
    pub fn device(&mut self, command: u64, gpa: u64, length: u64) -> Result<String> {
        let end = self.attempt(0, &|a| {
            a.mov(rbx, DEVICE)?;
            for (register, value) in [(0, gpa), (8, length), (0x10, 0x4141_4141_4141_4141), (0x18, command)] {
                a.mov(rax, value)?;
                a.mov(qword_ptr(rbx + register), rax)?;
            }
            a.mov(rcx, qword_ptr(rbx + 0x20))
        })?;
        let status = self.register(0, RCX)?;
        Ok(match end.strip_prefix("goes through") {
            Some(rest) if status != 0 => format!("the device gets {status:#x}{rest}"),
            _ => end,
        })
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
        let changed = if self.read(MODULE.1, PAGE)? == before { "" } else { ", code CHANGED" };
        Ok(self.with_codes(end) + changed)
    }

    /// The events since the last time that refused something.
    pub(super) fn refused(&self) -> Vec<Event> {
        self.engine.partition.take_events().0.into_iter().filter(|event| event.code.is_some()).collect()
    }
}
