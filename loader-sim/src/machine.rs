//! The joined machine: processors that execute guest code under the engine.
//!
//! ```text
//! Cpu ─ View (TLB, second-level table) ─► SimHost ─► GuestMemory
//!  └─ exit ─► Partition: intercepts, hypercalls      VTL call ─► Loader
//!       └──► Emulator: an operand is a device's      WRMSR ─► a page that the hypervisor writes the time to
//! ```
//!
//! One processor runs at a time, for as many instructions as the caller says; so the same calls give the same events. Without an engine
//! nothing is asked and every page allows everything.

use std::sync::Arc;

use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, Gva, PAGE_SIZE, Vtl},
    host::{Action, Enforcer, MemoryIntercept},
    load::Loader,
    status::HvStatus,
    time::UnixTime,
    vault::{Caller, Vault},
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        partition::Partition,
        register::RegisterName,
        secure_call::BLOCK,
        status_register::VsmPartitionConfig,
    },
};

use crate::{
    bus::{Bus, Fault},
    cpu::{Cpu, Exit, registers::Registers},
    device::Device,
    host::SimHost,
    vmm::{Emulator, Vmm},
};

/// How often an access is tried again that is said to be allowed by now.
const RETRIES: u32 = 16;
/// Bytes of VMCALL and VMMCALL.
const VMCALL_LEN: u64 = 3;
const UNDEFINED_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
/// `HV_X64_MSR_REFERENCE_TSC`: bit 0 enables a page that the hypervisor keeps the time in, bits 63:12 are its number.
pub const REFERENCE_TSC: u32 = 0x4000_0021;
/// Numbers of general registers.
const RAX: usize = 0;
const RCX: usize = 1;
const RDX: usize = 2;
const R8: usize = 8;

/// What stands above the guest.
#[derive(Clone, Debug)]
pub struct Engine {
    /// Who decides.
    pub partition: Arc<Partition>,
    /// Who answers VTL calls about modules.
    pub loader: Arc<Loader>,
    /// Who answers those about credentials, if there is somebody.
    pub vault: Option<Arc<Vault>>,
    /// The time that loads are for.
    pub time: UnixTime,
}

/// Memory as a processor in VTL0 reaches it.
#[derive(Clone, Copy, Debug)]
pub struct View<'h> {
    host: &'h SimHost,
    vp: u32,
    /// Whose translations come before the guest's.
    hvpt: Option<&'h Loader>,
}

impl<'h> View<'h> {
    /// The view of processor `vp`.
    pub const fn new(host: &'h SimHost, vp: u32) -> Self {
        Self { host, vp, hvpt: None }
    }
}

impl Bus for View<'_> {
    fn load(&mut self, gpa: Gpa, access: Access, page_walk: bool, bytes: &mut [u8]) -> Result<(), Fault> {
        self.host.load(self.vp, gpa, access, bytes).map_err(|_| Fault { gpa, access, page_walk })
    }

    fn check_store(&mut self, gpa: Gpa, _: usize) -> Result<(), Fault> {
        let access = Access::Write;
        self.host.access(self.vp, gpa, access).map(drop).map_err(|_| Fault { gpa, access, page_walk: false })
    }

    fn store(&mut self, gpa: Gpa, page_walk: bool, bytes: &[u8]) -> Result<(), Fault> {
        self.host.store(self.vp, gpa, bytes).map_err(|_| Fault { gpa, access: Access::Write, page_walk })
    }

    fn translation(&self, address: u64) -> Option<Gpa> {
        self.hvpt?.translation(Gva(address))?.gpa()
    }
}

/// A guest's processors and memory, and the engine above them unless it is off.
#[derive(Debug)]
pub struct Machine {
    host: Arc<SimHost>,
    engine: Option<Engine>,
    cpus: Vec<Cpu>,
    vmm: Vmm,
    device: Device,
    hvpt: bool,
    /// The page that the guest has the time kept in.
    reference_tsc: Option<Gpn>,
}

/// Why the machine gave a processor back.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Stop {
    /// An exit that is the caller's: HLT, an exception that nobody handles, what is not simulated, the end of the budget.
    Exit(Exit),
    /// The engine says that the machine cannot go on, or an access fails that is said to be allowed.
    Terminated,
}

impl Machine {
    /// A machine whose processors begin with these registers.
    pub fn new(host: Arc<SimHost>, engine: Option<Engine>, registers: impl IntoIterator<Item = Registers>) -> Self {
        let cpus = (0..).zip(registers).map(|(index, registers)| Cpu::new(index, registers)).collect();
        let enforcer = engine.as_ref().map(|engine| Arc::clone(&engine.partition) as Arc<dyn Enforcer>);
        let vmm = Vmm::new(Arc::clone(&host), enforcer);
        Self { host, engine, cpus, vmm, device: Device::default(), hvpt: false, reference_tsc: None }
    }

    /// The VMM's own way to memory: what its debugger and its snapshots use.
    pub const fn vmm(&self) -> &Vmm {
        &self.vmm
    }

    /// Has the hypervisor write the time to the page that the guest gave it, if it did.
    ///
    /// # Errors
    /// As [`Vmm::write`].
    pub fn tick(&self, time: u64) -> Result<(), HvStatus> {
        match self.reference_tsc.and_then(Gpn::gpa) {
            Some(gpa) => self.vmm.write(gpa, &time.to_le_bytes()),
            None => Ok(()),
        }
    }

    /// Makes VTL1 usable for the partition and its first `vps` processors, and chooses what a secure kernel chooses first.
    ///
    /// # Errors
    /// The hypercalls' own; [`HvStatus::INVALID_VP_INDEX`] for no processor. Without an engine there is nothing to do.
    pub fn enable_vtl1(&mut self, vps: u32) -> Result<(), HvStatus> {
        let Some(Engine { partition, .. }) = &self.engine else { return Ok(()) };
        let mut call = |vp: u32, caller, control: Control, input: &[u8]| {
            let cpu = usize::try_from(vp).ok().and_then(|vp| self.cpus.get_mut(vp)).ok_or(HvStatus::INVALID_VP_INDEX)?;
            partition.hypercall(cpu, caller, control.0, input, &mut []).0.ok()
        };
        let mut input = [0; 16];
        PARTITION_ID_SELF.put(&mut input, 0);
        (input[8], input[9]) = (1, 1);
        call(0, Vtl::Vtl0, Control::simple(HypercallCode::ENABLE_PARTITION_VTL), &input)?;
        let mut input = [0; 0xF0];
        PARTITION_ID_SELF.put(&mut input, 0);
        VP_INDEX_SELF.put(&mut input, 8);
        input[12] = 1;
        for vp in 0..vps {
            // VTL0 starts VTL1 on the first; VTL1 starts itself on the others
            let caller = if vp == 0 { Vtl::Vtl0 } else { Vtl::Vtl1 };
            call(vp, caller, Control::simple(HypercallCode::ENABLE_VP_VTL), &input)?;
        }
        let config = VsmPartitionConfig(0)
            .with_enable_vtl_protection(true)
            .with_default_vtl_protection_mask(MapGpaFlags::DATA.0.to_le_bytes()[0])
            .with_deny_lower_vtl_startup(true);
        let mut input = [0; 48];
        PARTITION_ID_SELF.put(&mut input, 0);
        VP_INDEX_SELF.put(&mut input, 8);
        RegisterName::VSM_PARTITION_CONFIG.0.put(&mut input, 16);
        config.0.put(&mut input, 32);
        call(0, Vtl::Vtl1, Control::rep(HypercallCode::SET_VP_REGISTERS, 1), &input)
    }

    /// Whether processors take the translations of what modules seal from the engine, not from the guest's page tables (HVPT, as Intel HLAT has it).
    pub const fn set_hvpt(&mut self, on: bool) {
        self.hvpt = on;
    }

    /// The time from now on.
    pub fn set_time(&mut self, time: UnixTime) {
        if let Some(engine) = &mut self.engine {
            engine.time = time;
        }
    }

    /// A processor, between two runs.
    pub fn cpu(&mut self, vp: u32) -> Option<&mut Cpu> {
        self.cpus.get_mut(usize::try_from(vp).ok()?)
    }

    /// Runs a processor for at most `max_instructions`.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_VP_INDEX`] for no processor.
    pub fn run(&mut self, vp: u32, max_instructions: u64) -> Result<Stop, HvStatus> {
        let cpu = usize::try_from(vp).ok().and_then(|vp| self.cpus.get_mut(vp)).ok_or(HvStatus::INVALID_VP_INDEX)?;
        let hvpt = self.engine.as_ref().filter(|_| self.hvpt).map(|engine| &*engine.loader);
        let mut view = View { hvpt, ..View::new(&self.host, vp) };
        let mut retries = 0;
        for _ in 0..max_instructions {
            let stepped = match cpu.step(&mut view) {
                Err(Exit::Memory(intercept)) if Device::register_at(intercept.gpa).is_some() => {
                    cpu.step(&mut Emulator::new(&self.vmm, &mut self.device, view))
                }
                stepped => stepped,
            };
            let Err(exit) = stepped else {
                retries = 0;
                continue;
            };
            let Some(engine) = &self.engine else { return Ok(Stop::Exit(exit)) };
            let action = match exit {
                Exit::Memory(intercept) => engine.loader.on_memory(cpu, &intercept),
                Exit::RegisterWrite { name, old, new } => match engine.partition.on_register_write(cpu, name.0, old, new) {
                    Action::Resume => {
                        cpu.allow_write()?;
                        continue;
                    }
                    other => other,
                },
                Exit::Hypercall { cpl, .. } => engine.hypercall(cpu, &mut view, cpl),
                Exit::WriteMsr { msr: REFERENCE_TSC, value } => match engine.lend(vp, &mut self.reference_tsc, value) {
                    Ok(()) => Action::Skip,
                    Err(_) => {
                        cpu.inject(GENERAL_PROTECTION, Some(0));
                        Action::InjectedFault
                    }
                },
                exit => return Ok(Stop::Exit(exit)),
            };
            match action {
                Action::Resume if retries < RETRIES => retries += 1,
                Action::Resume | Action::Terminate => return Ok(Stop::Terminated),
                Action::Skip => cpu.skip()?,
                Action::InjectedFault => {}
            }
        }
        Ok(Stop::Exit(Exit::Budget))
    }
}

impl Engine {
    /// Takes a page for the hypervisor to write to, or gives it back: an overlay, which no load can have and which lies over nothing sealed.
    fn lend(&self, vp: u32, page: &mut Option<Gpn>, value: u64) -> Result<(), HvStatus> {
        if let Some(old) = page.take() {
            self.partition.overlay(Some(vp), old, false)?;
        }
        if value & 1 == 1 {
            let gpn = Gpn(value >> 12);
            self.partition.overlay(Some(vp), gpn, true)?;
            *page = Some(gpn);
        }
        Ok(())
    }

    /// RCX says what, RDX and R8 where the input and the output are (TLFS "Hypercall interface", x64). A VTL call takes the address
    /// of its argument block in RDX, and answers a status in RAX and a value in RDX.
    fn hypercall(&self, cpu: &mut Cpu, view: &mut View<'_>, cpl: u8) -> Action {
        if cpl != 0 {
            cpu.inject(UNDEFINED_OPCODE, None);
            return Action::InjectedFault;
        }
        let gpr = cpu.registers().general.gpr;
        let (control, input, output) = (Control(gpr[RCX]), Gpa(gpr[RDX]), Gpa(gpr[R8]));
        let is_vtl_call = control == Control::simple(HypercallCode::VTL_CALL);
        let lengths = match control.lengths() {
            Ok(lengths) => lengths,
            Err(error) => return answer(cpu, error.status(), 0, None),
        };
        if control.fast() && !is_vtl_call {
            // the registers behind R8 are not simulated
            let words = [gpr[RDX].to_le_bytes(), gpr[R8].to_le_bytes()].concat();
            let (status, done) = match words.get(..lengths.input) {
                Some(bytes) if lengths.output == 0 => self.partition.hypercall(cpu, Vtl::Vtl0, control.0, bytes, &mut []),
                _ => (HvStatus::INVALID_HYPERCALL_INPUT, 0),
            };
            return answer(cpu, status, done, None);
        }
        let mut bytes = vec![0; if is_vtl_call { BLOCK } else { lengths.input }];
        if let Err(fault) = load(view, input, &mut bytes) {
            return self.refused(cpu, fault);
        }
        if is_vtl_call {
            // its input is RAX; whatever is wrong is no hypercall's error (TLFS "VTL call")
            let (status, _) = self.partition.hypercall(cpu, Vtl::Vtl0, control.0, &gpr[RAX].to_le_bytes(), &mut []);
            if status != HvStatus::SUCCESS {
                cpu.inject(UNDEFINED_OPCODE, None);
                return Action::InjectedFault;
            }
            let called = bytes.first_chunk().map(|block| self.secure_call(cpu, view, block));
            let (status, value) = called.unwrap_or((HvStatus::INVALID_PARAMETER, 0));
            return answer(cpu, status, 0, Some(value));
        }
        let mut answered = vec![0; lengths.output];
        // before anything is done
        if let Err(fault) = store(view, output, &answered, true) {
            return self.refused(cpu, fault);
        }
        let (status, done) = self.partition.hypercall(cpu, Vtl::Vtl0, control.0, &bytes, &mut answered);
        match store(view, output, &answered, false) {
            Ok(()) => answer(cpu, status, done, None),
            Err(fault) => self.refused(cpu, fault),
        }
    }

    /// A VTL call is the vault's or the loader's. Who asks the vault is the module that the instruction is of, by the frame that it was fetched from.
    fn secure_call(&self, cpu: &mut Cpu, view: &mut View<'_>, block: &[u8; BLOCK]) -> (HvStatus, u64) {
        match &self.vault {
            Some(vault) if Vault::answers(block) => {
                let code = cpu.instruction_gpa(view, VMCALL_LEN);
                let module = code.and_then(|gpa| self.loader.module_at(gpa.gpn())).and_then(|module| module.digest);
                vault.call(block, &Caller { module, vp: cpu.index(), time: self.time })
            }
            _ => self.loader.call(block, cpu.index(), self.time),
        }
    }

    /// A page of a hypercall's that VTL0 may not use so: a memory intercept, and the call is not executed (TLFS "Hypercall interface").
    fn refused(&self, cpu: &mut Cpu, Fault { gpa, access, page_walk }: Fault) -> Action {
        let rip = Gva(cpu.registers().general.rip);
        let intercept = MemoryIntercept { gpa, gva: None, access, page_walk, cpl: 0, rip };
        self.partition.on_memory(cpu, &intercept)
    }
}

/// `HV_HYPERCALL_RESULT` in RAX.
fn answer(cpu: &mut Cpu, status: HvStatus, done: u16, value: Option<u64>) -> Action {
    let gpr = &mut cpu.registers_mut().general.gpr;
    gpr[RAX] = u64::from(status.0) | u64::from(done) << 32;
    if let Some(value) = value {
        gpr[RDX] = value;
    }
    Action::Skip
}

fn load(view: &mut View<'_>, gpa: Gpa, bytes: &mut [u8]) -> Result<(), Fault> {
    if bytes.len() as u64 > PAGE_SIZE - gpa.offset() {
        return Err(Fault { gpa, access: Access::Read, page_walk: false });
    }
    if bytes.is_empty() { Ok(()) } else { view.load(gpa, Access::Read, false, bytes) }
}

fn store(view: &mut View<'_>, gpa: Gpa, bytes: &[u8], only_check: bool) -> Result<(), Fault> {
    if bytes.len() as u64 > PAGE_SIZE - gpa.offset() {
        return Err(Fault { gpa, access: Access::Write, page_walk: false });
    }
    match bytes {
        [] => Ok(()),
        _ if only_check => view.check_store(gpa, bytes.len()),
        _ => view.store(gpa, false, bytes),
    }
}
