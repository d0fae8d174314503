//! Plays inputs on a machine.

use std::{collections::BTreeMap, sync::Arc};

use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, Gva, Vtl},
    frames::Kind,
    host::Host,
    load::Loader,
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    vsm::partition::OWNER_VTL1,
};

use super::{Input, Machine as Spec, Output, Why, limits};
use crate::{
    cpu::{
        Exit,
        registers::{Registers, Table},
    },
    guest_loader::StubKernel,
    host::{Clock, Config, SimHost},
    machine::{Engine, Machine, Stop},
};

/// Events of one input that are kept.
const RECORDS: usize = 1 << 12;
const UNDEFINED_OPCODE: u8 = 6;
const GENERAL_PROTECTION: u8 = 13;
/// General registers by number.
const R15: usize = 15;

/// A machine that inputs are played on. The same inputs give the same outputs.
#[derive(Debug)]
pub struct Player {
    host: Arc<SimHost>,
    engine: Option<Engine>,
    machine: Machine,
    vps: u32,
    pages: u64,
    booted: bool,
    /// Of the host, when the invariants were looked at.
    calls: u64,
    /// Events that were lost so far.
    lost: u64,
}

impl Player {
    /// The machine before its first input.
    ///
    /// # Errors
    /// [`HvStatus::INVALID_PARAMETER`] for a certificate or a purpose that is none; as [`SimHost::with_partition`].
    pub fn new(spec: &Spec) -> Result<Self, HvStatus> {
        let config = Config {
            pages: spec.pages,
            vps: spec.vps,
            aliases: spec.aliases.clone(),
            records: RECORDS,
            clock: Clock::Counting,
            ..Config::default()
        };
        let (host, engine) = if spec.engine {
            let (host, partition) = SimHost::with_partition(&config)?;
            let mut trust = TrustStore::builtin();
            for anchor in &spec.trust {
                let purposes = Purposes::from_name(&anchor.purpose).ok_or(HvStatus::INVALID_PARAMETER)?;
                trust.add_der(&anchor.der, purposes, "trace").map_err(|_| HvStatus::INVALID_PARAMETER)?;
            }
            let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
            (host, Some(Engine { partition, loader: Arc::new(loader), vault: None, time: spec.time }))
        } else {
            (Arc::new(SimHost::new(&config)?), None)
        };
        let registers = (0..spec.vps).map(|_| Registers::kernel(0, 0, 0));
        let machine = Machine::new(Arc::clone(&host), engine.clone(), registers);
        let pages = spec.pages + spec.aliases.len() as u64;
        Ok(Self { host, engine, machine, vps: spec.vps, pages, booted: false, calls: 0, lost: 0 })
    }

    /// Applies an input; what came of it.
    pub fn apply(&mut self, input: &Input) -> Vec<Output> {
        let refused = |result: Result<(), HvStatus>| result.err().map(|status| Output::Answer { status, bytes: Vec::new() });
        let answer = match input {
            Input::Write { gpa, bytes, assigned } => {
                let written = if *assigned {
                    self.machine.vmm().dma(*gpa, Access::Write, &mut bytes.clone())
                } else {
                    self.machine.vmm().write(*gpa, bytes)
                };
                // it changes no permission
                self.calls = self.host.calls();
                refused(written)
            }
            Input::Tick { time } => refused(self.machine.tick(*time)),
            Input::Read { gpa, len, assigned } => Some(match self.read(*gpa, *len, *assigned) {
                Ok(bytes) => Output::Answer { status: HvStatus::SUCCESS, bytes },
                Err(status) => Output::Answer { status, bytes: Vec::new() },
            }),
            Input::Boot { code } => refused(self.boot(code)),
            Input::Start { vp, rip, rsp, cr3, idt } => {
                let mut registers = Registers::kernel(rip.0, rsp.0, cr3.0);
                registers.idtr = Table { base: idt.0, limit: 0xFFF };
                refused(self.start(*vp, registers))
            }
            Input::Interrupt { vp, vector } => refused(match self.machine.cpu(*vp) {
                // an exception goes before
                Some(cpu) if cpu.has_injected() => Err(HvStatus::INVALID_VP_STATE),
                Some(cpu) => {
                    cpu.inject(*vector, None);
                    Ok(())
                }
                None => Err(HvStatus::INVALID_VP_INDEX),
            }),
            Input::FailCall { after, status } => {
                self.host.fail_call(Some(*after), *status);
                self.calls = 0;
                None
            }
            Input::Run { vp, instructions } => Some(match self.run(*vp, *instructions) {
                Ok(stopped) => stopped,
                Err(status) => Output::Answer { status, bytes: Vec::new() },
            }),
        };
        let mut outputs = self.events();
        outputs.extend(answer);
        outputs.extend(self.broken());
        outputs
    }

    fn read(&self, gpa: Gpa, len: u64, assigned: bool) -> Result<Vec<u8>, HvStatus> {
        if len > limits::DATA {
            return Err(HvStatus::INVALID_PARAMETER);
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(|_| HvStatus::INVALID_PARAMETER)?];
        if assigned {
            self.machine.vmm().dma(gpa, Access::Read, &mut bytes)?;
        } else {
            self.machine.vmm().read(gpa, &mut bytes)?;
        }
        Ok(bytes)
    }

    fn boot(&mut self, code: &[Gpn]) -> Result<(), HvStatus> {
        if std::mem::replace(&mut self.booted, true) {
            return Err(HvStatus::OPERATION_DENIED);
        }
        let Some(Engine { partition, .. }) = &self.engine else { return Ok(()) };
        let pages: Vec<(Gpn, Kind)> = code.iter().map(|gpn| (*gpn, Kind::Code)).collect();
        partition.transform(OWNER_VTL1, &pages, || Ok(()))?;
        self.machine.enable_vtl1(self.vps)?;
        partition.end_of_boot();
        Ok(())
    }

    fn start(&mut self, vp: u32, registers: Registers) -> Result<(), HvStatus> {
        let cpu = self.machine.cpu(vp).ok_or(HvStatus::INVALID_VP_INDEX)?;
        *cpu.registers_mut() = registers;
        cpu.flush_translations();
        Ok(())
    }

    fn run(&mut self, vp: u32, instructions: u64) -> Result<Output, HvStatus> {
        let stop = self.machine.run(vp, instructions)?;
        let cpu = self.machine.cpu(vp).ok_or(HvStatus::INVALID_VP_INDEX)?;
        let mut inject = |vector, error_code| {
            cpu.inject(vector, error_code);
            Why::Injected(vector)
        };
        let why = match stop {
            Stop::Terminated => Why::Terminated,
            Stop::Exit(Exit::Budget) => Why::Budget,
            Stop::Exit(Exit::Halt) => Why::Halt,
            // nobody is there to be called
            Stop::Exit(Exit::Hypercall { .. }) => inject(UNDEFINED_OPCODE, None),
            Stop::Exit(Exit::ReadMsr { .. } | Exit::WriteMsr { .. }) => inject(GENERAL_PROTECTION, Some(0)),
            Stop::Exit(other) => Why::Exit(format!("{other:?}")),
        };
        let general = &cpu.registers().general;
        Ok(Output::Stopped { vp, rip: Gva(general.rip), r15: general.gpr[R15], why })
    }

    fn events(&mut self) -> Vec<Output> {
        let Some(engine) = &self.engine else { return Vec::new() };
        let (events, lost) = engine.partition.take_events();
        let more = lost - std::mem::replace(&mut self.lost, lost);
        let lost = (more > 0).then_some(Output::Lost { events: more });
        lost.into_iter().chain(events.into_iter().map(Output::Event)).collect()
    }

    /// Invariant I1 over the tables and all aliases, whenever the engine has called the host.
    fn broken(&mut self) -> Option<Output> {
        let calls = self.host.calls();
        if !self.booted || self.engine.is_none() || std::mem::replace(&mut self.calls, calls) == calls {
            return None;
        }
        let mut allowed: BTreeMap<Frame, MapGpaFlags> = BTreeMap::new();
        for gpn in (0..self.pages).map(Gpn) {
            let flags = self.host.permission(Vtl::Vtl0, gpn);
            let of = allowed.entry(self.host.frame(gpn)?).or_insert(MapGpaFlags::NONE);
            *of = *of | flags;
        }
        let (frame, _) = allowed.into_iter().find(|(_, flags)| flags.is_writable_and_executable())?;
        Some(Output::Broken { invariant: format!("I1: {frame} can be written and executed") })
    }
}
