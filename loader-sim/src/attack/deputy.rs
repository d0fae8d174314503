//! 26 to 30, 70 and 93: having the VMM do what the guest may not.

use anyhow::{Result, ensure};
use hvci_engine::{
    addr::{Gpa, PAGE_SIZE},
    load::Function,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{HostVisibility, PARTITION_ID_SELF},
    },
};
use iced_x86::code_asm::*;

use super::{
    Attack, Guest, attack, forge,
    guest::{DATA, DEVICE, MODULE, POOL, VTL1_PAGE},
};
use crate::{
    device::{ASSIGNED, FROM_MEMORY, TO_MEMORY},
    paging::entry,
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(26, "deputy/emulated-device", "have a device of the VMM's write to sealed code", "the device gets 0x6, HVCI-MEM-009", |guest| {
        guest.load()?;
        let proper = guest.device(TO_MEMORY, POOL.1, 64)?;
        ensure!(proper == "goes through" && guest.read(POOL.1, 64)? == [0x41; 64], "to a page of the guest's: {proper}");
        guest.device(TO_MEMORY, MODULE.1 + 0x20, 64)
    }),
    attack(26, "deputy/assigned-device", "have an assigned device write to sealed code", "the device gets 0x6", |guest| {
        guest.load()?;
        let proper = guest.device(TO_MEMORY | ASSIGNED, POOL.1, 64)?;
        ensure!(proper == "goes through" && guest.read(POOL.1, 64)? == [0x41; 64], "to a page of the guest's: {proper}");
        guest.device(TO_MEMORY | ASSIGNED, MODULE.1 + 0x20, 64)
    }),
    attack(27, "deputy/device-reads", "have a device of the VMM's read a page of VTL1", "the device gets 0x6, HVCI-MEM-009", |guest| {
        guest.secure_page()?;
        guest.device(FROM_MEMORY, VTL1_PAGE, 64)
    }),
    attack(27, "deputy/assigned-device-reads", "have an assigned device read a page of VTL1", "the device gets 0x6", |guest| {
        guest.secure_page()?;
        guest.device(FROM_MEMORY | ASSIGNED, VTL1_PAGE, 64)
    }),
    attack(28, "deputy/hypercall-output", "have a hypercall write its output over sealed code", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        let proper = guest.get_register(DATA.1, DATA.1 + 0x800)?;
        ensure!(proper == "goes through", "to a page of the guest's: {proper}");
        guest.get_register(DATA.1, MODULE.1)
    }),
    attack(28, "deputy/hypercall-input", "have a hypercall read its input from memory of VTL1", "#GP, HVCI-MEM-007", |guest| {
        guest.secure_page()?;
        guest.get_register(VTL1_PAGE, DATA.1 + 0x800)
    }),
    attack(29, "deputy/time-page", "have the hypervisor keep the time in a page of sealed code", "#GP, HVCI-MEM-010", |guest| {
        guest.load()?;
        let proper = guest.time_page(POOL.1)?;
        ensure!(proper == "goes through", "in a page of the guest's: {proper}");
        guest.machine.tick(0x1234)?;
        ensure!(guest.read(POOL.1, 2)? == [0x34, 0x12], "the time is not kept there");
        guest.time_page(MODULE.1)
    }),
    attack(
        29,
        "deputy/time-page-first",
        "have the hypervisor keep the time in a page, then load a module into it",
        "HV_STATUS 0x8, HVCI-MEM-011",
        |guest| {
            let proper = guest.time_page(MODULE.1)?;
            ensure!(proper == "goes through", "in a page of the guest's: {proper}");
            let arguments = guest.present(&forge::Module::new()?.signed()?)?;
            guest.ask(Function::VALIDATE_MODULE, &arguments)
        },
    ),
    attack(
        30,
        "deputy/emulator",
        "have the VMM emulate an instruction that moves a word of a device's into memory of VTL1",
        "#GP, HVCI-MEM-009 HVCI-MEM-007",
        |guest| {
            guest.secure_page()?;
            guest.map(POOL.0 + 4 * PAGE_SIZE, VTL1_PAGE, entry::PRESENT | entry::WRITABLE)?;
            move_from_device(guest, POOL.0 + 4 * PAGE_SIZE)
        },
    ),
    attack(70, "deputy/debugger", "write to sealed code with the VMM's debugger", "refused with 0x6, HVCI-MEM-009", |guest| {
        guest.load()?;
        guest.refused();
        let status = guest.machine.vmm().write(Gpa(MODULE.1 + 0x20), &[0xCC]).err();
        let status = status.map_or_else(|| "it WRITES".to_owned(), |status| format!("refused with {:#x}", status.0));
        Ok(guest.with_codes(status))
    }),
    attack(93, "deputy/host-visibility", "share a page of sealed code with the host", "HV_STATUS 0x8, HVCI-MEM-010", |guest| {
        guest.load()?;
        let proper = share(guest, POOL.1)?;
        ensure!(proper == "goes through", "a page of the guest's: {proper}");
        share(guest, MODULE.1)
    }),
];

/// MOVSQ from the device's DATA to memory: no processor does it by itself.
pub(super) fn move_from_device(guest: &mut Guest, to: u64) -> Result<String> {
    guest.attempt(0, &|a| {
        a.mov(rsi, DEVICE + 0x10)?;
        a.mov(rdi, to)?;
        a.movsq()
    })
}

/// HvCallModifySparseGpaPageHostVisibility.
fn share(guest: &mut Guest, gpa: u64) -> Result<String> {
    let mut input = [0; 24];
    PARTITION_ID_SELF.put(&mut input, 0);
    HostVisibility::SHARED.0.put(&mut input, 8);
    (gpa / PAGE_SIZE).put(&mut input, 16);
    guest.refused();
    let (status, _) = guest.hypercall(Control::rep(HypercallCode::MODIFY_SPARSE_GPA_PAGE_HOST_VISIBILITY, 1), &input)?;
    Ok(guest.outcome(status))
}
