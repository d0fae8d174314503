//! A device that reaches guest memory through the engine's view: its queue works, and reaches nothing that VTL1 protects.

#![cfg(feature = "vm-memory")]

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use hvci_engine::{
    access::MapGpaFlags,
    addr::{Frame, Gpa, Gpn, GpnRange, PAGE_SIZE, Vtl},
    embed::{Epochs, VtlMemory},
    event::What,
    frames::Kind,
    host::{Capabilities, Enforcer, Host, Partial, Vp},
    status::HvStatus,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        partition::Partition,
        register::RegisterName,
    },
};
use virtio_queue::{Queue, QueueOwnedT, QueueT, desc::split::Descriptor};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions};

const PAGES: u64 = 16;
const TABLE: u64 = 0;
const AVAILABLE: u64 = 0x1000;
const USED: u64 = 0x2000;
const PLAIN: u64 = 0x5000;
const READ_ONLY: u64 = 0x6000;
const SECURE: u64 = 0x7000;
const UNTOUCHED: [u8; 16] = [0x5a; 16];
/// `HvRegisterVsmPartitionConfig`: protection is enabled, and the default is all but execution in kernel mode.
const PROTECTION_ON: u64 = 1 | 0b1011 << 1;
/// The descriptor is for the device to write.
const FOR_DEVICE: u16 = 2;

type Memory = GuestMemoryMmap<()>;

/// A page of the guest is the frame of the same number. The memory of devices is the only thing to bind.
struct Machine {
    memory: Memory,
    epochs: Arc<Epochs>,
    protections: Mutex<Vec<(Gpn, MapGpaFlags)>>,
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
        if vtl == Vtl::Vtl0 {
            self.protections.lock().unwrap().extend(ranges.iter().flat_map(|range| range.iter()).map(|gpn| (gpn, flags)));
        }
        Ok(())
    }
    fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        self.epochs.synchronize(Duration::from_millis(20))
    }
    fn read(&self, gpa: Gpa, buffer: &mut [u8]) -> Result<(), HvStatus> {
        self.memory.read_slice(buffer, GuestAddress(gpa.0)).map_err(|_| HvStatus::INVALID_PARAMETER)
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.memory.write_slice(bytes, GuestAddress(gpa.0)).map_err(|_| HvStatus::INVALID_PARAMETER)
    }
}

struct Processor;

impl Vp for Processor {
    fn index(&self) -> u32 {
        0
    }
    fn register(&self, _: u32) -> Result<u128, HvStatus> {
        Ok(0)
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Ok(())
    }
    fn inject(&mut self, _: u8, _: Option<u32>) {}
}

struct Guest {
    /// Whatever is protected, as the guest's other side sees it.
    raw: Memory,
    partition: Arc<Partition>,
    devices: VtlMemory<Memory>,
}

fn guest() -> Guest {
    let raw = Memory::from_ranges(&[(GuestAddress(0), usize::try_from(PAGES * PAGE_SIZE).unwrap())]).unwrap();
    for page in [PLAIN, READ_ONLY, SECURE] {
        raw.write_slice(&UNTOUCHED, GuestAddress(page)).unwrap();
    }
    let epochs = Arc::new(Epochs::default());
    let machine = Machine { memory: raw.clone(), epochs: Arc::clone(&epochs), protections: Mutex::default() };
    let ram = [GpnRange { start: Gpn(0), pages: PAGES }];
    let partition = Arc::new(Partition::new(Arc::new(machine), Frame(0), 16, &ram, 1, 64).unwrap());
    let mut input = [0; 16];
    PARTITION_ID_SELF.put(&mut input, 0);
    (input[8], input[9]) = (1, 1);
    let enable = Control::simple(HypercallCode::ENABLE_PARTITION_VTL);
    assert_eq!(partition.hypercall(&mut Processor, Vtl::Vtl0, enable.0, &input, &mut []).0, HvStatus::SUCCESS);
    // VTL1 turns protection on
    let mut input = [0; 48];
    PARTITION_ID_SELF.put(&mut input, 0);
    VP_INDEX_SELF.put(&mut input, 8);
    RegisterName::VSM_PARTITION_CONFIG.0.put(&mut input, 16);
    PROTECTION_ON.put(&mut input, 32);
    let configure = Control::rep(HypercallCode::SET_VP_REGISTERS, 1);
    assert_eq!(partition.hypercall(&mut Processor, Vtl::Vtl1, configure.0, &input, &mut []).0, HvStatus::SUCCESS);
    let devices = VtlMemory::new(raw.clone(), Arc::clone(&partition) as Arc<dyn Enforcer>, epochs);
    Guest { raw, partition, devices }
}

impl Guest {
    fn protect(&self, gpa: u64, flags: MapGpaFlags) -> HvStatus {
        let mut input = [0; 24];
        PARTITION_ID_SELF.put(&mut input, 0);
        flags.0.put(&mut input, 8);
        (gpa / PAGE_SIZE).put(&mut input, 16);
        let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 1);
        self.partition.hypercall(&mut Processor, Vtl::Vtl1, control.0, &input, &mut []).0
    }

    /// What a device answers to one descriptor of the queue: it reads or writes 16 bytes where that points.
    fn device(&self, target: u64, flags: u16) -> Result<[u8; 16], vm_memory::GuestMemoryError> {
        self.raw.write_obj(Descriptor::new(target, 16, flags, 0), GuestAddress(TABLE)).unwrap();
        // flags, index, the first entry
        self.raw.write_slice(&[0, 0, 1, 0, 0, 0], GuestAddress(AVAILABLE)).unwrap();
        let mut queue = Queue::new(16).unwrap();
        queue.try_set_desc_table_address(GuestAddress(TABLE)).unwrap();
        queue.try_set_avail_ring_address(GuestAddress(AVAILABLE)).unwrap();
        queue.try_set_used_ring_address(GuestAddress(USED)).unwrap();
        queue.set_ready(true);
        let memory = self.devices.memory();
        assert!(queue.is_valid(&*memory));
        let mut chain = queue.iter(memory.clone()).unwrap().next().unwrap();
        let (head, descriptor) = (chain.head_index(), chain.next().unwrap());
        let mut bytes = [0xee; 16];
        if descriptor.is_write_only() {
            memory.write_slice(&bytes, descriptor.addr())?;
        } else {
            memory.read_slice(&mut bytes, descriptor.addr())?;
        }
        queue.add_used(&*memory, head, 16).unwrap();
        assert_eq!(self.raw.read_obj::<u16>(GuestAddress(USED + 2)).unwrap(), 1);
        Ok(bytes)
    }

    fn bytes(&self, gpa: u64) -> [u8; 16] {
        self.raw.read_obj(GuestAddress(gpa)).unwrap()
    }
}

#[test]
fn a_queue_works_where_vtl0_may() {
    let guest = guest();
    assert_eq!(guest.device(PLAIN, 0).unwrap(), UNTOUCHED);
    guest.device(PLAIN, FOR_DEVICE).unwrap();
    assert_eq!(guest.bytes(PLAIN), [0xee; 16]);
}

#[test]
fn a_device_writes_no_page_that_vtl0_may_only_read() {
    let guest = guest();
    assert_eq!(guest.protect(READ_ONLY, MapGpaFlags::READABLE), HvStatus::SUCCESS);
    assert_eq!(guest.device(READ_ONLY, 0).unwrap(), UNTOUCHED);
    assert!(guest.device(READ_ONLY, FOR_DEVICE).is_err());
    assert_eq!(guest.bytes(READ_ONLY), UNTOUCHED);
    let refused = |what: &What| matches!(what, What::DeviceAccess { gpa, .. } if gpa.0 == READ_ONLY);
    assert!(guest.partition.take_events().0.iter().any(|event| refused(&event.what)));
}

#[test]
fn a_device_reads_no_page_of_vtl1() {
    let guest = guest();
    assert_eq!(guest.protect(SECURE, MapGpaFlags::NONE), HvStatus::SUCCESS);
    assert_eq!(guest.partition.kind(Gpn(SECURE / PAGE_SIZE)), Some(Kind::SecureOnly));
    assert!(guest.device(SECURE, 0).is_err());
    assert!(guest.device(SECURE, FOR_DEVICE).is_err());
    assert_eq!(guest.bytes(SECURE), UNTOUCHED);
    // nor by a range that only ends there, nor without saying what for
    let memory = guest.devices.memory();
    let before = GuestAddress(SECURE - 8);
    assert!(memory.read_slice(&mut [0; 16], before).is_err());
    for access in [Permissions::No, Permissions::Read, Permissions::Write, Permissions::ReadWrite] {
        assert!(!memory.check_range(before, 16, access));
        assert!(memory.check_range(before, 8, access));
        assert!(memory.get_slices(before, 16, access).is_err());
    }
    assert!(memory.physical_memory().is_none());
}

#[test]
fn a_page_is_not_taken_away_under_a_slice_that_a_device_holds() {
    let guest = guest();
    let memory = guest.devices.memory();
    let slice = memory.get_slices(GuestAddress(PLAIN), 16, Permissions::Write).unwrap().next().unwrap().unwrap();
    assert_eq!(guest.protect(PLAIN, MapGpaFlags::READABLE), HvStatus::OBJECT_IN_USE);
    slice.write_slice(&[1; 16], 0).unwrap();
    assert_eq!(guest.partition.kind(Gpn(PLAIN / PAGE_SIZE)), Some(Kind::Data));
    drop(memory);
    assert_eq!(guest.protect(PLAIN, MapGpaFlags::READABLE), HvStatus::SUCCESS);
    assert!(guest.device(PLAIN, FOR_DEVICE).is_err());
    assert_eq!(guest.bytes(PLAIN), [1; 16]);
}
