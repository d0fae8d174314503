//! The least that a VMM does: memory of sixteen pages, a partition over it, and a page that the guest may write no more.
//!
//! `cargo run -p hvci-engine --example minimal_vmm`

use std::sync::{Arc, Mutex, PoisonError};

use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Frame, Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
    host::{Action, Capabilities, Enforcer, Host, MemoryIntercept, Partial, Vp},
    status::HvStatus,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        partition::Partition,
        register::RegisterName,
    },
};

const PAGES: u64 = 16;

/// Guest page N is frame N. A real one sets second-level tables in `protect` and flushes in `quiesce`; here nothing runs.
struct Machine(Mutex<Vec<u8>>);

impl Machine {
    fn with<T>(&self, gpa: Gpa, len: usize, run: impl FnOnce(&mut [u8]) -> T) -> Result<T, HvStatus> {
        let mut memory = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let start = usize::try_from(gpa.0).map_err(|_| HvStatus::INVALID_PARAMETER)?;
        let end = start.checked_add(len).ok_or(HvStatus::INVALID_PARAMETER)?;
        memory.get_mut(start..end).map(run).ok_or(HvStatus::INVALID_PARAMETER)
    }
}

impl Host for Machine {
    fn capabilities(&self) -> Capabilities {
        Capabilities::ALL
    }
    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        (gpn.0 < PAGES).then_some(Frame(gpn.0))
    }
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        each(Gpn(frame.0));
    }
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        if let [GpnRange { start, pages: 1 }] = ranges {
            println!("host: VTL{} has {flags} of {start}", vtl.number());
        }
        Ok(())
    }
    fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        Ok(())
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        self.with(gpa, buffer.len(), |bytes| buffer.copy_from_slice(bytes))
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.with(gpa, bytes.len(), |there| there.copy_from_slice(bytes))
    }
}

struct Processor;

impl Vp for Processor {
    fn index(&self) -> u32 {
        0
    }
    fn register(&self, _: u32) -> Result<u128, HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Err(HvStatus::INVALID_PARAMETER)
    }
    fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        println!("vp 0: exception {vector}, error code {error_code:?}");
    }
}

fn main() -> Result<(), HvStatus> {
    let memory = usize::try_from(PAGES * PAGE_SIZE).map_err(|_| HvStatus::INVALID_PARAMETER)?;
    let host = Arc::new(Machine(Mutex::new(vec![0; memory])));
    let partition = Partition::new(host, Frame(0), 16, &[GpnRange { start: Gpn(0), pages: PAGES }], 1, 64)?;

    // the guest's loader enables VTL1, and MBEC with it
    let mut input = [0; 16];
    PARTITION_ID_SELF.put(&mut input, 0);
    (input[8], input[9]) = (1, 1);
    let enable = Control::simple(HypercallCode::ENABLE_PARTITION_VTL);
    partition.hypercall(&mut Processor, Vtl::Vtl0, enable.0, &input, &mut []).0.ok()?;

    // VTL1 turns protection on; by default all but execution in kernel mode is allowed
    let mut input = [0; 48];
    PARTITION_ID_SELF.put(&mut input, 0);
    VP_INDEX_SELF.put(&mut input, 8);
    RegisterName::VSM_PARTITION_CONFIG.0.put(&mut input, 16);
    (1 | 0b1011_u64 << 1).put(&mut input, 32);
    let configure = Control::rep(HypercallCode::SET_VP_REGISTERS, 1);
    partition.hypercall(&mut Processor, Vtl::Vtl1, configure.0, &input, &mut []).0.ok()?;

    // VTL1 has page 5 read-only
    let mut input = [0; 24];
    PARTITION_ID_SELF.put(&mut input, 0);
    MapGpaFlags::READABLE.0.put(&mut input, 8);
    5u64.put(&mut input, 16);
    let protect = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 1);
    partition.hypercall(&mut Processor, Vtl::Vtl1, protect.0, &input, &mut []).0.ok()?;

    // VTL0 writes there all the same: its processor exits, its device asks
    let gpa = Gpa(5 * PAGE_SIZE);
    let write = MemoryIntercept { gpa, gva: None, access: Access::Write, page_walk: false, cpl: 0, rip: Gva(0x1000) };
    let action = partition.on_memory(&mut Processor, &write);
    let device = partition.check(Vtl::Vtl0, gpa, 512, Access::Write);
    for event in partition.take_events().0 {
        println!("event: {:?}: {:?}", event.what, event.status);
    }
    if action != Action::InjectedFault || device != Err(HvStatus::ACCESS_DENIED) {
        return Err(HvStatus::OPERATION_DENIED);
    }
    println!("refused, both");
    Ok(())
}
