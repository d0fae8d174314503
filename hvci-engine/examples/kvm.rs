//! A guest of KVM whose code page is sealed: its write there exits, the engine answers, and the guest takes #GP.
//!
//! Every page is a memory slot. What VTL0 may not write is a read-only slot, what it may not read is none. KVM has no control of execution by
//! page, so that this shows the way of an exit, not the whole of what a backend must do. Without `/dev/kvm` it says so and ends.
//!
//! `cargo run -p hvci-engine --example kvm`

// UNSAFETY: KVM is told which memory of this process is the guest's
#![expect(unsafe_code, reason = "the ioctl that sets a memory slot")]

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
mod machine {
    use std::{
        error::Error,
        sync::{Arc, Mutex, PoisonError},
    };

    use hvci_engine::{
        access::{Access, MapGpaFlags},
        addr::{Frame, Gpa, Gpn, GpnRange, Gva, PAGE_SIZE, Vtl},
        frames::Kind,
        host::{Action, Capabilities, Enforcer, Host, MemoryIntercept, Partial, Vp},
        status::HvStatus,
        vsm::partition::Partition,
    };
    use kvm_bindings::{KVM_MEM_READONLY, kvm_userspace_memory_region};
    use kvm_ioctls::{Cap, Kvm, VcpuExit, VcpuFd, VmFd};
    use vm_memory::{Bytes, GuestAddress, GuestMemoryBackend, GuestMemoryMmap};

    const PAGES: u64 = 16;
    const CODE: u64 = 0x1000;
    const HANDLER: u64 = 0x2000;
    const STACK: u64 = 0x4000;
    /// Real mode: `mov byte [0x1100], 0x90; hlt`.
    const WRITES_CODE: [u8; 6] = [0xc6, 0x06, 0x00, 0x11, 0x90, 0xf4];
    const TARGET: u64 = 0x1100;
    /// `mov al, 'G'; out 0xe9, al; hlt`.
    const SAYS_G: [u8; 5] = [0xb0, b'G', 0xe6, 0xe9, 0xf4];
    /// Of the interrupt table: the vector of #GP, offset and segment.
    const GP_ENTRY: u64 = 13 * 4;

    struct Machine {
        vm: VmFd,
        memory: GuestMemoryMmap,
        /// Whether the page has a slot.
        slots: Mutex<[bool; 16]>,
    }

    impl Machine {
        /// A slot cannot become read-only in place: it is deleted and set again.
        fn set_slot(&self, gpn: Gpn, flags: MapGpaFlags) -> Result<(), Box<dyn Error>> {
            let gpa = gpn.gpa().ok_or("no address")?;
            let mut region = kvm_userspace_memory_region {
                slot: u32::try_from(gpn.0)?,
                flags: if flags.contains(MapGpaFlags::WRITABLE) { 0 } else { KVM_MEM_READONLY },
                guest_phys_addr: gpa.0,
                memory_size: 0,
                userspace_addr: u64::try_from(self.memory.get_host_address(GuestAddress(gpa.0))?.addr())?,
            };
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            let present = slots.get_mut(usize::try_from(gpn.0)?).ok_or("no such page")?;
            if *present {
                // SAFETY: a size of 0 deletes the slot: KVM has less of our memory then
                unsafe { self.vm.set_user_memory_region(region) }?;
                *present = false;
            }
            if flags.contains(MapGpaFlags::READABLE) {
                region.memory_size = PAGE_SIZE;
                // SAFETY: the page is in `memory`, which was mapped for the guest, and `run` drops the processor and the machine before it
                unsafe { self.vm.set_user_memory_region(region) }?;
                *present = true;
            }
            Ok(())
        }
    }

    impl Host for Machine {
        fn capabilities(&self) -> Capabilities {
            // no device here reaches memory, so that none is unbound
            Capabilities { mbec: false, shadow_stack: false, device_view: true, aliases: true }
        }
        fn frame(&self, gpn: Gpn) -> Option<Frame> {
            (gpn.0 < PAGES).then_some(Frame(gpn.0))
        }
        fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
            each(Gpn(frame.0));
        }
        fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
            // nothing runs as VTL1 here
            for (done, range) in ranges.iter().enumerate().filter(|_| vtl == Vtl::Vtl0) {
                for gpn in range.iter() {
                    self.set_slot(gpn, flags).map_err(|_| Partial { status: HvStatus::INVALID_PARAMETER, done })?;
                }
            }
            Ok(())
        }
        fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
            // KVM flushes when a slot goes, and the one processor is not running
            Ok(())
        }
        fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
            self.memory.read_slice(buffer, GuestAddress(gpa.0)).map_err(|_| HvStatus::INVALID_PARAMETER)
        }
        fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
            self.memory.write_slice(bytes, GuestAddress(gpa.0)).map_err(|_| HvStatus::INVALID_PARAMETER)
        }
    }

    #[derive(Default)]
    struct Processor {
        injected: Option<u8>,
    }

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
        fn inject(&mut self, vector: u8, _: Option<u32>) {
            // in real mode an exception has no error code
            self.injected = Some(vector);
        }
    }

    fn start(vcpu: &VcpuFd) -> Result<(), Box<dyn Error>> {
        let mut segments = vcpu.get_sregs()?;
        for segment in [&mut segments.cs, &mut segments.ds, &mut segments.ss] {
            (segment.base, segment.selector) = (0, 0);
        }
        vcpu.set_sregs(&segments)?;
        let mut registers = vcpu.get_regs()?;
        (registers.rip, registers.rsp, registers.rflags) = (CODE, STACK, 2);
        Ok(vcpu.set_regs(&registers)?)
    }

    pub(crate) fn run() -> Result<(), Box<dyn Error>> {
        let kvm = match Kvm::new() {
            Ok(kvm) if kvm.check_extension(Cap::ReadonlyMem) => kvm,
            Ok(_) => return skip("KVM here has no read-only memory slots"),
            Err(error) => return skip(&format!("/dev/kvm: {error}")),
        };
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), usize::try_from(PAGES * PAGE_SIZE)?)])?;
        memory.write_slice(&WRITES_CODE, GuestAddress(CODE))?;
        memory.write_slice(&SAYS_G, GuestAddress(HANDLER))?;
        memory.write_obj(u32::try_from(HANDLER)?, GuestAddress(GP_ENTRY))?;
        let machine = Arc::new(Machine { vm: kvm.create_vm()?, memory: memory.clone(), slots: Mutex::default() });
        let ram = [GpnRange { start: Gpn(0), pages: PAGES }];
        let partition = Partition::new(Arc::clone(&machine) as Arc<dyn Host>, Frame(0), 16, &ram, 1, 64).map_err(refused)?;

        // the bytes are compared with what is trusted while nobody can write them
        let inspect = || {
            let mut bytes = [0; WRITES_CODE.len()];
            machine.read(Gpa(CODE), &mut bytes)?;
            if bytes == WRITES_CODE { Ok(()) } else { Err(HvStatus::OPERATION_DENIED) }
        };
        let code = Gpa(CODE).gpn();
        partition.transform(1, &[(code, Kind::Code)], inspect).map_err(refused)?;
        println!("{code} is {:?}", partition.kind(code));

        let mut vcpu = machine.vm.create_vcpu(0)?;
        start(&vcpu)?;
        let mut said = Vec::new();
        loop {
            // KVM is behind the instruction when it tells of its write: where the processor was entered stands in for it
            let rip = vcpu.get_regs()?.rip;
            let gpa = match vcpu.run()? {
                VcpuExit::MmioWrite(gpa, bytes) => {
                    println!("exit: write of {bytes:02x?} to {gpa:#x}");
                    Gpa(gpa)
                }
                VcpuExit::IoOut(0xe9, bytes) => {
                    said.extend_from_slice(bytes);
                    continue;
                }
                VcpuExit::Hlt => break,
                other => return Err(format!("unexpected exit: {other:?}").into()),
            };
            let write = MemoryIntercept { gpa, gva: None, access: Access::Write, page_walk: false, cpl: 0, rip: Gva(rip) };
            let mut processor = Processor::default();
            let action = partition.on_memory(&mut processor, &write);
            println!("engine: {action:?}");
            match (action, processor.injected) {
                (Action::InjectedFault, Some(vector)) => {
                    let mut events = vcpu.get_vcpu_events()?;
                    (events.exception.injected, events.exception.nr, events.exception.has_error_code) = (1, vector, 0);
                    vcpu.set_vcpu_events(&events)?;
                }
                _ => return Err("the engine let the write be".into()),
            }
        }
        let left = memory.read_obj::<u8>(GuestAddress(TARGET))?;
        println!("guest: its handler of #GP said {:?}; the byte at {TARGET:#x} is {left}", String::from_utf8_lossy(&said));
        for event in partition.take_events().0 {
            println!("event: {:?}: {:?}", event.what, event.status);
        }
        if said == b"G" && left == 0 { Ok(()) } else { Err("the write was not refused as it should be".into()) }
    }

    fn refused(status: HvStatus) -> String {
        format!("refused: {status:?}")
    }

    fn skip(why: &str) -> Result<(), Box<dyn Error>> {
        println!("skipped: {why}");
        Ok(())
    }
}

#[cfg(all(target_os = "linux", target_arch = "x86_64"))]
fn main() -> Result<(), Box<dyn std::error::Error>> {
    machine::run()
}

#[cfg(not(all(target_os = "linux", target_arch = "x86_64")))]
fn main() {
    println!("skipped: KVM on x86-64 only");
}
