//! Every way to memory that there is beside an instruction's own, against every kind of frame: what each lets through is what the frame's
//! kind allows VTL0, and nothing but a processor executes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::sync::Arc;

use hvci_engine::{
    access::Access,
    addr::{Gpa, Gpn, PAGE_SIZE, Vtl},
    frames::Kind,
    host::Host,
    status::HvStatus,
    vsm::partition::Partition,
};
use iced_x86::code_asm::*;
use loader_sim::{
    attack::Guest,
    device::{ASSIGNED, FROM_MEMORY, MMIO, TO_MEMORY},
    host::SimHost,
    machine::View,
    paging::entry,
};

/// The page that is reached, and where the guest maps it.
const PAGE: Gpn = Gpn(0x180);
const AT: u64 = 0xFFFF_8000_0090_0000 + 0x10_0000;
const DEVICE: u64 = 0xFFFF_8000_0090_0000;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Path {
    Cpu,
    EmulatedDevice,
    AssignedDevice,
    Emulator,
    Hypercall,
    TimePage,
    Debugger,
    Snapshot,
}

const PATHS: [Path; 8] = [
    Path::Cpu,
    Path::EmulatedDevice,
    Path::AssignedDevice,
    Path::Emulator,
    Path::Hypercall,
    Path::TimePage,
    Path::Debugger,
    Path::Snapshot,
];
const ACCESSES: [Access; 3] = [Access::Read, Access::Write, Access::KernelExecute];

/// A guest in which the page is of this kind.
fn guest(kind: Kind) -> Guest {
    let mut guest = Guest::new().unwrap();
    let mut bus = View::new(&guest.host, 0);
    guest.tables.map(&mut bus, AT, PAGE.gpa().unwrap(), PAGE_SIZE, entry::PRESENT | entry::WRITABLE).unwrap();
    // what a called function is: it returns
    guest.host.write(PAGE.gpa().unwrap(), &[0xC3; 64]).unwrap();
    if kind != Kind::Data {
        guest.engine.partition.transform(7, &[(PAGE, kind)], || Ok(())).unwrap();
    }
    guest
}

/// Whether the access is let through. What is not must have changed nothing.
fn reaches(guest: &mut Guest, path: Path, access: Access) -> bool {
    let gpa = PAGE.gpa().unwrap();
    let mut before = [0; 64];
    guest.host.read(gpa, &mut before).unwrap();
    let through = attempt(guest, path, access, gpa);
    let mut after = [0; 64];
    guest.host.read(gpa, &mut after).unwrap();
    assert_eq!(
        after != before,
        through && access == Access::Write,
        "{path:?} {access:?} of {:?}: what was written",
        guest.engine.partition.kind(PAGE)
    );
    through
}

fn attempt(guest: &mut Guest, path: Path, access: Access, gpa: Gpa) -> bool {
    let program = |guest: &mut Guest, build: &dyn Fn(&mut CodeAssembler) -> Result<(), IcedError>| {
        let end = guest.attempt(0, build).unwrap();
        assert!(end.starts_with("goes through") || end.starts_with("#GP"), "{end}");
        end.starts_with("goes through")
    };
    let device = |guest: &mut Guest, command| guest.device(command, gpa.0, 32).unwrap().starts_with("goes through");
    match (path, access) {
        (Path::Cpu, Access::Read) => program(guest, &|a| a.mov(rax, qword_ptr(AT))),
        (Path::Cpu, Access::Write) => program(guest, &|a| {
            a.mov(rax, 0x5A5A_u64)?;
            a.mov(qword_ptr(AT), rax)
        }),
        (Path::Cpu, _) => program(guest, &|a| {
            a.mov(rax, AT)?;
            a.call(rax)
        }),
        (Path::EmulatedDevice, Access::Read) => device(guest, FROM_MEMORY),
        (Path::EmulatedDevice, Access::Write) => device(guest, TO_MEMORY),
        (Path::AssignedDevice, Access::Read) => device(guest, FROM_MEMORY | ASSIGNED),
        (Path::AssignedDevice, Access::Write) => device(guest, TO_MEMORY | ASSIGNED),
        // the IOMMU lets no device fetch
        (Path::AssignedDevice, _) => guest.host.iommu(gpa, access).is_ok(),
        // a word to the device, by an instruction of which the first operand is the device's
        (Path::Emulator, Access::Read) => emulated(guest, gpa, Access::Read),
        (Path::Emulator, Access::Write) => program(guest, &|a| {
            a.mov(rax, 0x4242_u64)?;
            a.mov(qword_ptr(DEVICE + 0x10), rax)?;
            a.mov(rsi, DEVICE + 0x10)?;
            a.mov(rdi, AT)?;
            a.movsq()
        }),
        // an instruction that is emulated is fetched again
        (Path::Emulator, _) => emulated(guest, gpa, access),
        (Path::Hypercall, Access::Read) => hypercall(guest, gpa, Gpa(0x20_800)),
        (Path::Hypercall, Access::Write) => hypercall(guest, Gpa(0x20_000), gpa),
        // the hypervisor has a page of its own there, or it has none
        (Path::TimePage, Access::Read) => time_page(guest, gpa),
        (Path::TimePage, Access::Write) => time_page(guest, gpa) && guest.machine.tick(0x1234).is_ok(),
        (Path::Debugger, Access::Read) => guest.machine.vmm().read(gpa, &mut [0; 8]).is_ok(),
        (Path::Debugger, Access::Write) => guest.machine.vmm().write(gpa, &[0xCC]).is_ok(),
        (Path::Snapshot, Access::Read) => !guest.machine.vmm().snapshot([PAGE].into_iter()).unwrap().pages.is_empty(),
        // what puts a snapshot back writes like any other
        (Path::Snapshot, Access::Write) => {
            guest.machine.vmm().slice(gpa, PAGE_SIZE, Access::Write).is_ok_and(|s| s.write(&[7; 4096]).is_ok())
        }
        // none of them runs code
        (Path::EmulatedDevice | Path::Hypercall | Path::TimePage | Path::Debugger | Path::Snapshot, _) => false,
    }
}

/// The emulator's question for an operand, or for the instruction itself.
fn emulated(guest: &Guest, gpa: Gpa, access: Access) -> bool {
    guest.machine.vmm().slice(gpa, 8, access).is_ok()
}

fn hypercall(guest: &mut Guest, input: Gpa, output: Gpa) -> bool {
    let mut saved = [0; 20];
    guest.host.read(input, &mut saved).unwrap();
    let end = guest.get_register(input.0, output.0).unwrap();
    guest.host.write(input, &saved).unwrap();
    assert!(["goes through", "#GP, HVCI-MEM-005", "#GP, HVCI-MEM-007"].contains(&end.as_str()), "{end}");
    end == "goes through"
}

fn time_page(guest: &mut Guest, gpa: Gpa) -> bool {
    guest.time_page(gpa.0).unwrap() == "goes through"
}

#[test]
fn twenty_four_ways_against_every_kind() {
    let kinds = Kind::ALL
        .iter()
        .copied()
        .filter(|kind| !kind.is_held() && !matches!(kind, Kind::Free | Kind::Device) && (*kind == Kind::Data || has_way(*kind)));
    let mut cells = 0;
    for kind in kinds {
        for path in PATHS {
            for access in ACCESSES {
                let mut guest = guest(kind);
                let executes = matches!(path, Path::Cpu | Path::Emulator);
                let expected = match path {
                    // it takes the place of data that nobody vouches for, and of nothing else
                    Path::TimePage => kind == Kind::Data && access != Access::KernelExecute,
                    _ => kind.allows(Vtl::Vtl0).allows(access) && (executes || access != Access::KernelExecute),
                };
                assert_eq!(reaches(&mut guest, path, access), expected, "{path:?} {access:?} of {kind}");
                cells += 1;
            }
        }
    }
    assert_eq!(cells % 24, 0);
    assert!(cells >= 24 * 9, "{cells}");
}

/// Whether a page of data can become that.
fn has_way(kind: Kind) -> bool {
    hvci_engine::frames::Transition::between(Kind::Data, kind).is_some()
}

#[test]
fn what_is_refused_is_recorded_and_what_is_held_is_waited_for() {
    let guest = Guest::new().unwrap();
    let (partition, vmm): (Arc<Partition>, _) = (Arc::clone(&guest.engine.partition), guest.machine.vmm().clone());
    partition.transform(7, &[(PAGE, Kind::SecureOnly)], || Ok(())).unwrap();
    partition.take_events();
    assert_eq!(vmm.read(PAGE.gpa().unwrap(), &mut [0; 8]), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(partition.take_events().0.iter().filter(|event| event.code.is_some()).count(), 1);
    // the last byte of RAM and the one behind it
    assert_eq!(vmm.read(Gpa(0x410 * PAGE_SIZE - 4), &mut [0; 8]), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(vmm.slice(Gpa(u64::MAX - 3), 8, Access::Read).unwrap_err(), HvStatus::INVALID_PARAMETER);

    let next = Gpn(PAGE.0 + 1);
    let held = vmm.slice(next.gpa().unwrap(), 8, Access::Write).unwrap();
    assert_eq!(held.write(&[0; 9]), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(partition.transform(7, &[(next, Kind::KernelData)], || Ok(())), Err(HvStatus::OBJECT_IN_USE));
    assert_eq!(partition.kind(next), Some(Kind::Data));
    held.write(&[1; 8]).unwrap();
    drop(held);
    partition.transform(7, &[(next, Kind::KernelData)], || Ok(())).unwrap();
    assert_eq!(vmm.write(next.gpa().unwrap(), &[2; 8]), Err(HvStatus::ACCESS_DENIED));
}

#[test]
fn a_device_without_an_engine_reaches_everything() {
    let host = Arc::new(SimHost::new(&loader_sim::host::Config { pages: 0x400, ..Default::default() }).unwrap());
    let vmm = loader_sim::vmm::Vmm::new(Arc::clone(&host), None);
    let mut device = loader_sim::device::Device::default();
    for (register, value) in [(0_u64, 0x5000_u64), (8, 16), (0x10, 0x4242_4242_4242_4242), (0x18, TO_MEMORY)] {
        device.store(register, &value.to_le_bytes(), &vmm).unwrap();
    }
    let mut bytes = [0; 17];
    host.read(Gpa(0x5000), &mut bytes).unwrap();
    assert_eq!((&bytes[..16], bytes[16]), (&[0x42; 16][..], 0));
    for (register, bytes) in [(0x28_u64, &[0; 8][..]), (0, &[0; 4]), (4, &[0; 8])] {
        assert_eq!(device.store(register, bytes, &vmm), Err(HvStatus::INVALID_PARAMETER));
    }
    // hostile lengths and addresses are told in STATUS
    for (address, length) in [(0_u64, 0_u64), (0, u64::MAX), (u64::MAX - 8, 64), (0x400 * PAGE_SIZE, 8)] {
        device.store(0, &address.to_le_bytes(), &vmm).unwrap();
        device.store(8, &length.to_le_bytes(), &vmm).unwrap();
        for command in [FROM_MEMORY, FROM_MEMORY | ASSIGNED, 0x77] {
            device.store(0x18, &command.to_le_bytes(), &vmm).unwrap();
            let mut status = [0; 8];
            device.load(0x20, &mut status).unwrap();
            assert_ne!(u64::from_le_bytes(status), 0, "{address:#x} {length:#x} {command:#x}");
        }
    }
    const { assert!(MMIO.0 > loader_sim::memory::MAX_BYTES) };
}
