#![expect(
    clippy::arithmetic_side_effects,
    clippy::as_conversions,
    clippy::cast_possible_truncation,
    clippy::indexing_slicing,
    clippy::unwrap_used,
    reason = "tests of a few pages"
)]

use alloc::{sync::Arc, vec, vec::Vec};

use proptest::prelude::*;
use spin::Mutex;

use super::*;
use crate::{
    addr::Gva,
    host::Partial,
    vsm::{
        hypercall::{Control, HypercallCode},
        input::{InputVtl, PARTITION_ID_SELF, VP_INDEX_SELF},
        register::RegisterName,
        wire::Wire,
    },
};

const PAGES: u64 = 16;

/// Sixteen pages; the last one is an alias of the first.
struct Machine(Mutex<(Vec<[MapGpaFlags; 2]>, Vec<u8>)>, Capabilities);

impl Host for Machine {
    fn capabilities(&self) -> Capabilities {
        self.1
    }
    fn frame(&self, gpn: Gpn) -> Option<Frame> {
        (gpn.0 < PAGES).then_some(Frame(100 + gpn.0 % (PAGES - 1)))
    }
    fn aliases(&self, frame: Frame, each: &mut dyn FnMut(Gpn)) {
        (0..PAGES).map(Gpn).filter(|gpn| self.frame(*gpn) == Some(frame)).for_each(each);
    }
    fn protect(&self, vtl: Vtl, ranges: &[GpnRange], flags: MapGpaFlags) -> Result<(), Partial> {
        for gpn in ranges.iter().flat_map(|r| r.iter()) {
            self.0.lock().0[gpn.0 as usize][usize::from(vtl.number())] = flags;
        }
        Ok(())
    }
    fn quiesce(&self, _: Vtl, _: &[GpnRange]) -> Result<(), HvStatus> {
        Ok(())
    }
    fn read(&self, _: Gpa, _: &mut [u8]) -> Result<(), HvStatus> {
        Ok(())
    }
    fn write(&self, gpa: Gpa, bytes: &[u8]) -> Result<(), HvStatus> {
        self.0.lock().1[gpa.gpn().0 as usize] = bytes[0];
        Ok(())
    }
}

#[derive(Default)]
struct Processor {
    index: u32,
    injected: Vec<(u8, Option<u32>)>,
}

impl Vp for Processor {
    fn index(&self) -> u32 {
        self.index
    }
    fn register(&self, name: u32) -> Result<u128, HvStatus> {
        if name == RegisterName::RIP.0 { Ok(0x1234) } else { Err(HvStatus::INVALID_PARAMETER) }
    }
    fn set_register(&mut self, _: u32, _: u128) -> Result<(), HvStatus> {
        Ok(())
    }
    fn inject(&mut self, vector: u8, error_code: Option<u32>) {
        self.injected.push((vector, error_code));
    }
}

fn made(capabilities: Capabilities) -> Result<(Arc<Machine>, Partition), HvStatus> {
    // as firmware may leave it
    let leftover = MapGpaFlags::DATA | MapGpaFlags::KERNEL_EXECUTABLE;
    let machine = Arc::new(Machine(Mutex::new((vec![[leftover; 2]; 16], vec![0xcc; 16])), capabilities));
    let ram = [GpnRange { start: Gpn(0), pages: PAGES }];
    Ok((Arc::clone(&machine), Partition::new(machine, Frame(100), 15, &ram, 2, 64)?))
}

fn machine() -> (Arc<Machine>, Partition) {
    made(Capabilities::ALL).unwrap()
}

fn simple(partition: &Partition, vtl: Vtl, code: HypercallCode, input: &[u8]) -> HvStatus {
    partition.hypercall(&mut Processor::default(), vtl, Control::simple(code).0, input, &mut []).0
}

fn enable(partition: &Partition, vtl: Vtl, flags: u8) -> HvStatus {
    let mut input = [0; 16];
    PARTITION_ID_SELF.put(&mut input, 0);
    (input[8], input[9]) = (1, flags);
    simple(partition, vtl, HypercallCode::ENABLE_PARTITION_VTL, &input)
}

fn enable_vp(partition: &Partition, vtl: Vtl, vp: u32) -> HvStatus {
    let mut input = [0; 0xF0];
    PARTITION_ID_SELF.put(&mut input, 0);
    vp.put(&mut input, 8);
    input[12] = 1;
    simple(partition, vtl, HypercallCode::ENABLE_VP_VTL, &input)
}

fn protect(partition: &Partition, vtl: Vtl, target: u8, flags: MapGpaFlags, pages: &[u64]) -> (HvStatus, u16) {
    let mut input = vec![0; 16 + 8 * pages.len()];
    PARTITION_ID_SELF.put(&mut input, 0);
    flags.0.put(&mut input, 8);
    input[12] = target;
    for (index, page) in pages.iter().enumerate() {
        page.put(&mut input, 16 + 8 * index);
    }
    let control = Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, pages.len() as u16);
    partition.hypercall(&mut Processor::default(), vtl, control.0, &input, &mut [])
}

fn set(partition: &Partition, vtl: Vtl, name: RegisterName, value: u64) -> HvStatus {
    let mut input = [0; 48];
    PARTITION_ID_SELF.put(&mut input, 0);
    VP_INDEX_SELF.put(&mut input, 8);
    name.0.put(&mut input, 16);
    value.put(&mut input, 32);
    let control = Control::rep(HypercallCode::SET_VP_REGISTERS, 1);
    partition.hypercall(&mut Processor::default(), vtl, control.0, &input, &mut []).0
}

fn get(partition: &Partition, vtl: Vtl, name: RegisterName) -> Result<u64, HvStatus> {
    let (mut input, mut output) = ([0; 20], [0; 16]);
    PARTITION_ID_SELF.put(&mut input, 0);
    VP_INDEX_SELF.put(&mut input, 8);
    name.0.put(&mut input, 16);
    let control = Control::rep(HypercallCode::GET_VP_REGISTERS, 1);
    partition.hypercall(&mut Processor::default(), vtl, control.0, &input, &mut output).0.ok().map(|()| u64::get(&output, 0).unwrap())
}

const VTL1: u8 = 0x11;
const READ: MapGpaFlags = MapGpaFlags::READABLE;
/// Protection enabled, with RW and user execution by default.
const CONFIG: u64 = 1 | 0b1011 << 1;

/// With VTL1 enabled by VTL0 and protection by VTL1.
fn booted() -> (Arc<Machine>, Partition) {
    let (machine, partition) = machine();
    assert_eq!(enable(&partition, Vtl::Vtl0, 1), HvStatus::SUCCESS);
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, VP_INDEX_SELF), HvStatus::SUCCESS);
    assert_eq!(set(&partition, Vtl::Vtl1, RegisterName::VSM_PARTITION_CONFIG, CONFIG), HvStatus::SUCCESS);
    (machine, partition)
}

#[test]
fn what_firmware_left_executable_is_so_no_more() {
    let (machine, _) = machine();
    assert!(machine.0.lock().0.iter().all(|f| *f == [MapGpaFlags::DATA, Kind::Data.allows(Vtl::Vtl1)]));
}

#[test]
fn a_host_that_cannot_do_it_is_refused() {
    for capabilities in [Capabilities { device_view: false, ..Capabilities::ALL }, Capabilities { aliases: false, ..Capabilities::ALL }] {
        assert_eq!(made(capabilities).err(), Some(HvStatus::FEATURE_UNAVAILABLE));
    }
    let (_, partition) = made(Capabilities { mbec: false, ..Capabilities::ALL }).unwrap();
    assert_eq!(enable(&partition, Vtl::Vtl0, 1), HvStatus::FEATURE_UNAVAILABLE);
    assert_eq!(enable(&partition, Vtl::Vtl0, 0), HvStatus::SUCCESS);
}

#[test]
fn vtl1_protects_pages_from_vtl0_through_every_alias() {
    let (machine, partition) = booted();
    let flags = || machine.0.lock().0.iter().map(|f| f[0]).collect::<Vec<_>>();
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[0, 3]), (HvStatus::SUCCESS, 2));
    assert_eq!([flags()[0], flags()[15], flags()[3], flags()[4]], [READ, READ, READ, MapGpaFlags::DATA]);
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, MapGpaFlags::NONE, &[5]), (HvStatus::SUCCESS, 1));
    assert_eq!((partition.kind(Gpn(5)), flags()[5]), (Some(Kind::SecureOnly), MapGpaFlags::NONE));
    // a secret does not come back to VTL0
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, MapGpaFlags::DATA, &[5]), (HvStatus::SUCCESS, 1));
    assert_eq!(flags()[5], MapGpaFlags::DATA);
    assert_eq!(machine.0.lock().1[5], 0);
    // what is so already is done
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[0, 15]), (HvStatus::SUCCESS, 2));
}

#[test]
fn nobody_asks_for_execution_and_vtl0_for_nothing() {
    let (machine, partition) = booted();
    let before = machine.0.lock().0.clone();
    let refused = |vtl, target, flags, pages: &[u64]| protect(&partition, vtl, target, flags, pages);
    assert_eq!(refused(Vtl::Vtl1, VTL1, MapGpaFlags::CODE, &[1]), (HvStatus::OPERATION_DENIED, 0));
    let wx = MapGpaFlags::CODE | MapGpaFlags::WRITABLE;
    assert_eq!(refused(Vtl::Vtl1, VTL1, wx, &[1]), (HvStatus::OPERATION_DENIED, 0));
    assert_eq!(refused(Vtl::Vtl1, VTL1, MapGpaFlags::WRITABLE, &[1]), (HvStatus::INVALID_REGISTER_VALUE, 0));
    // attack 86
    assert_eq!(refused(Vtl::Vtl0, VTL1, MapGpaFlags::DATA, &[1]), (HvStatus::ACCESS_DENIED, 0));
    assert_eq!(refused(Vtl::Vtl0, 0x10, MapGpaFlags::DATA, &[1]), (HvStatus::INVALID_PARAMETER, 0));
    assert_eq!(refused(Vtl::Vtl0, 0, MapGpaFlags::DATA, &[1]), (HvStatus::INVALID_PARAMETER, 0));
    assert_eq!(refused(Vtl::Vtl1, 0x12, MapGpaFlags::DATA, &[1]), (HvStatus::INVALID_PARAMETER, 0));
    // none of a list that has a page that is no RAM
    assert_eq!(refused(Vtl::Vtl1, VTL1, READ, &[1, 99]), (HvStatus::INVALID_PARAMETER, 0));
    assert_eq!(machine.0.lock().0, before);
    let (events, dropped) = partition.take_events();
    let denied = events.iter().filter(|e| e.code == Some(Code::MemProtection)).count();
    assert_eq!((denied, dropped), (8, 0), "{events:#?}");
}

fn share(partition: &Partition, vtl: Vtl, visibility: u32, page: u64) -> HvStatus {
    let mut input = [0; 24];
    PARTITION_ID_SELF.put(&mut input, 0);
    visibility.put(&mut input, 8);
    page.put(&mut input, 16);
    let control = Control::rep(HypercallCode::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY, 1);
    partition.hypercall(&mut Processor::default(), vtl, control.0, &input, &mut []).0
}

/// Attack 93: what is protected is neither shared nor, by way of that, given back.
#[test]
fn sharing_takes_nothing_from_vtl1() {
    let (machine, partition) = booted();
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[1]).0, HvStatus::SUCCESS);
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, MapGpaFlags::NONE, &[2]).0, HvStatus::SUCCESS);
    let before = machine.0.lock().0.clone();
    for (vtl, page, visibility) in [(Vtl::Vtl0, 1, 0), (Vtl::Vtl0, 1, 3), (Vtl::Vtl0, 2, 0), (Vtl::Vtl0, 2, 3), (Vtl::Vtl1, 2, 0)] {
        assert_eq!(share(&partition, vtl, visibility, page), HvStatus::OPERATION_DENIED, "{vtl} {page} {visibility}");
    }
    assert_eq!(machine.0.lock().0, before);
    // also where it became protected since it was looked at
    assert_eq!(partition.change(0, Kind::ALL, [Gpn(1)].into_iter(), Kind::Data), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(partition.change(0, Kind::ALL, [Gpn(2)].into_iter(), Kind::Data), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(share(&partition, Vtl::Vtl0, 3, 3), HvStatus::SUCCESS);
    // what the host sees is not protected from VTL0 as if it did not
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[3]), (HvStatus::OPERATION_DENIED, 0));
    assert_eq!(share(&partition, Vtl::Vtl0, 0, 3), HvStatus::SUCCESS);
    assert_eq!(partition.kind(Gpn(3)), Some(Kind::Data));
}

#[test]
fn protection_waits_for_vtl1_and_its_switch() {
    let (_, partition) = machine();
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[1]).0, HvStatus::INVALID_VTL_STATE);
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, 0), HvStatus::INVALID_VTL_STATE);
    assert_eq!(enable(&partition, Vtl::Vtl0, 1), HvStatus::SUCCESS);
    assert_eq!(enable(&partition, Vtl::Vtl0, 1), HvStatus::VTL_ALREADY_ENABLED);
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[1]).0, HvStatus::ACCESS_DENIED);
    // attack 88
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, 1), HvStatus::ACCESS_DENIED);
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, 0), HvStatus::SUCCESS);
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, 0), HvStatus::VTL_ALREADY_ENABLED);
    assert_eq!(enable_vp(&partition, Vtl::Vtl0, 1), HvStatus::ACCESS_DENIED);
    assert_eq!(enable_vp(&partition, Vtl::Vtl1, 1), HvStatus::SUCCESS);
    assert_eq!(enable_vp(&partition, Vtl::Vtl1, 2), HvStatus::INVALID_VP_INDEX);
}

#[test]
fn the_configuration_is_vtl1s_and_cannot_be_taken_back() {
    let (_, partition) = booted();
    let config = RegisterName::VSM_PARTITION_CONFIG;
    assert_eq!(set(&partition, Vtl::Vtl0, config, 0), HvStatus::ACCESS_DENIED);
    assert_eq!(get(&partition, Vtl::Vtl0, config), Err(HvStatus::ACCESS_DENIED));
    for wrong in [0, 1 | 0b0001 << 1, 1 | 0b1111 << 1, CONFIG | 1 << 40] {
        assert_eq!(set(&partition, Vtl::Vtl1, config, wrong), HvStatus::INVALID_REGISTER_VALUE, "{wrong:#x}");
    }
    assert_eq!(get(&partition, Vtl::Vtl1, config), Ok(CONFIG));
    assert_eq!(get(&partition, Vtl::Vtl0, RegisterName::VSM_PARTITION_STATUS), Ok(0x21_0003));
    assert_eq!(get(&partition, Vtl::Vtl0, RegisterName::RIP), Ok(0x1234));
}

#[test]
fn the_end_of_boot_is_one_way() {
    let (_, partition) = booted();
    partition.end_of_boot();
    for (name, value) in [(RegisterName::VSM_PARTITION_CONFIG, CONFIG), (RegisterName::CR_INTERCEPT_CONTROL, 0)] {
        assert_eq!(set(&partition, Vtl::Vtl1, name, value), HvStatus::ACCESS_DENIED);
    }
    // memory is protected all the same
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[1]), (HvStatus::SUCCESS, 1));
}

#[test]
fn pinned_registers_answer_with_a_general_protection_fault() {
    let (_, partition) = booted();
    let write = |name: RegisterName, old, new| {
        let mut vp = Processor::default();
        (partition.on_register_write(&mut vp, name.0, old, new), vp.injected)
    };
    let (wp, lstar) = (1 << 16 | 1 << 31 | 1, 0xffff_f800_0000_1000);
    assert_eq!(write(RegisterName::CR0, wp, 1 << 31 | 1).0, Action::Resume);
    partition.end_of_boot();
    let refused = (Action::InjectedFault, vec![(13, Some(0))]);
    assert_eq!(write(RegisterName::CR0, wp, 1 << 31 | 1), refused);
    // task switched is nobody's business
    assert_eq!(write(RegisterName::CR0, wp, wp | 1 << 3).0, Action::Resume);
    assert_eq!(write(RegisterName::CR4, 0, 1 << 20), refused);
    assert_eq!(write(RegisterName::CR4, 0, 1 << 7).0, Action::Resume);
    assert_eq!(write(RegisterName::LSTAR, lstar, lstar + 1), refused);
    assert_eq!(write(RegisterName::LSTAR, lstar, lstar).0, Action::Resume);
    assert_eq!(write(RegisterName::GDTR, 0, 0), refused);
    // attack 44
    assert_eq!(write(RegisterName(0xdead), 0, 0), refused);
    let (events, _) = partition.take_events();
    assert_eq!(events.iter().filter(|e| e.code == Some(Code::MemRegister)).count(), 5);
}

#[test]
fn what_the_table_refuses_is_answered_by_state() {
    let (_, partition) = booted();
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[0]).0, HvStatus::SUCCESS);
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, MapGpaFlags::NONE, &[5]).0, HvStatus::SUCCESS);
    let fault = |page: u64, access| {
        let mut vp = Processor::default();
        let intercept = MemoryIntercept { gpa: Gpa(page << 12), gva: None, access, page_walk: false, cpl: 0, rip: Gva(7) };
        let action = partition.on_memory(&mut vp, &intercept);
        (action, vp.injected.len(), partition.take_events().0.pop().and_then(|e| e.code))
    };
    // an older translation was used
    assert_eq!(fault(0, Access::Read), (Action::Resume, 0, None));
    assert_eq!(fault(15, Access::Write), (Action::InjectedFault, 1, Some(Code::MemAccess)));
    assert_eq!(fault(1, Access::KernelExecute), (Action::InjectedFault, 1, Some(Code::MemExecute)));
    assert_eq!(fault(5, Access::Read), (Action::InjectedFault, 1, Some(Code::MemSecure)));
    assert_eq!(fault(99, Access::Read), (Action::InjectedFault, 1, Some(Code::MemAccess)));
}

#[test]
fn devices_obey_and_straddling_accesses_are_refused_whole() {
    let (_, partition) = booted();
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, READ, &[3]).0, HvStatus::SUCCESS);
    let check = |gpa, len, access| partition.check(Vtl::Vtl0, Gpa(gpa), len, access);
    assert_eq!(check(0x2ff8, 8, Access::Write), Ok(()));
    assert_eq!(check(0x2ff9, 8, Access::Write), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(check(0x2ff9, 8, Access::Read), Ok(()));
    assert_eq!(check(0xf000, 0x1001, Access::Read), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(check(u64::MAX, 2, Access::Read), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(partition.take_events().0.iter().filter(|e| e.code == Some(Code::MemDevice)).count(), 3);
}

#[test]
fn a_saved_state_comes_back_and_an_older_one_does_not() {
    let (_, partition) = booted();
    let saved = |partition: &Partition| {
        let mut bytes = Vec::new();
        partition.save(&mut |part| bytes.extend(part));
        bytes
    };
    let early = saved(&partition);
    assert_eq!(protect(&partition, Vtl::Vtl1, VTL1, MapGpaFlags::NONE, &[0]).0, HvStatus::SUCCESS);
    let late = saved(&partition);
    // attack 69
    assert_eq!(partition.restore(&early), Err(HvStatus::OPERATION_DENIED));
    assert_eq!((partition.kind(Gpn(15)), saved(&partition)), (Some(Kind::SecureOnly), late.clone()));
    let (machine, other) = machine();
    assert_eq!(other.restore(&late), Ok(()));
    assert_eq!(saved(&other), late);
    assert_eq!(machine.0.lock().0[15], [MapGpaFlags::NONE, Kind::SecureOnly.allows(Vtl::Vtl1)]);
    assert_eq!(protect(&other, Vtl::Vtl1, VTL1, READ, &[1]), (HvStatus::SUCCESS, 1));
    // the end of boot is not undone by a state from before it
    other.end_of_boot();
    assert_eq!(other.restore(&late), Err(HvStatus::OPERATION_DENIED));
    for len in 0..late.len() {
        assert_eq!(partition.restore(&late[..len]), Err(HvStatus::INVALID_PARAMETER));
    }
}

#[test]
fn code_comes_of_an_inspection_of_closed_pages_and_goes_with_its_owner() {
    let (machine, partition) = machine();
    let flags = |gpn: usize| machine.0.lock().0[gpn][0];
    let code = [(Gpn(15), Kind::Code), (Gpn(2), Kind::Data)];
    let rejected = partition.transform(7, &code, || {
        assert_eq!((flags(0), flags(15), flags(2)), (MapGpaFlags::READABLE, MapGpaFlags::READABLE, MapGpaFlags::READABLE));
        assert_eq!(partition.transform(8, &code, || Ok(())), Err(HvStatus::OBJECT_IN_USE), "one of two wins");
        Err(HvStatus::NOT_FOUND)
    });
    assert_eq!(rejected, Err(HvStatus::NOT_FOUND));
    assert_eq!([0, 2, 15].map(flags), [MapGpaFlags::DATA; 3]);
    assert!(partition.transform(7, &code, || Ok(())).is_ok());
    assert_eq!([0, 2, 15].map(flags), [MapGpaFlags::CODE, MapGpaFlags::DATA, MapGpaFlags::CODE]);
    assert_eq!(partition.transform(8, &[(Gpn(0), Kind::Data)], || Ok(())), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(partition.transform(7, &[(Gpn(0), Kind::Data), (Gpn(15), Kind::Data)], || Ok(())), Err(HvStatus::INVALID_PARAMETER));
    assert!(partition.transform(7, &[(Gpn(0), Kind::Data)], || Ok(())).is_ok());
    assert_eq!((flags(15), machine.0.lock().1[0]), (MapGpaFlags::DATA, 0), "scrubbed");
}

proptest! {
    #[test]
    fn no_input_of_a_hypercall_panics_or_makes_anything_executable(
        code in prop::sample::select(vec![0x0c_u64, 0x0d, 0x0f, 0x11, 0x12, 0x50, 0x51, 0x02, 0x03, 0x13, 0x14, 0xaf, 0xb0, 0xd4, 0xdb, 0x99]),
        high: u64, count in 0..8_u64, own: bool, vtl1: bool, boot: bool,
        mut input in prop::collection::vec(any::<u8>(), 0..300),
    ) {
        let (machine, partition) = if boot { booted() } else { made(Capabilities::ALL).unwrap() };
        if own {
            PARTITION_ID_SELF.put(&mut input, 0);
            if input.len() > 12 {
                input[12] = InputVtl::of(Vtl::Vtl1).0;
            }
        }
        let caller = if vtl1 { Vtl::Vtl1 } else { Vtl::Vtl0 };
        let mut output = [0; 256];
        for control in [code, code | count << 32, code | high << 16] {
            let (_, done) = partition.hypercall(&mut Processor::default(), caller, control, &input, &mut output);
            prop_assert!(done < 1 << 12);
        }
        prop_assert!(machine.0.lock().0.iter().flatten().all(|f| !f.contains(MapGpaFlags::KERNEL_EXECUTABLE)));
        let _ = partition.restore(&input);
    }
}
