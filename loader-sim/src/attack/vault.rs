//! 71 to 85: memory of VTL1, as far as there is something in it.

use hvci_engine::{
    addr::{Gpa, Gpn, PAGE_SIZE},
    status::HvStatus,
};

use super::{
    Attack, attack,
    deputy::move_from_device,
    guest::{DATA, POOL, VTL1_PAGE},
};
use crate::{
    device::{ASSIGNED, FROM_MEMORY},
    paging::entry,
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(71, "vault/read", "read a page of VTL1", "#GP, HVCI-MEM-007", |guest| {
        guest.secure_page()?;
        guest.map(POOL.0, VTL1_PAGE, entry::PRESENT)?;
        guest.read_from(0, POOL.0)
    }),
    attack(
        72,
        "vault/every-other-way",
        "reach a page of VTL1 by both kinds of device, a hypercall, an emulated instruction, the debugger and a snapshot",
        "refused by all six",
        |guest| {
            guest.secure_page()?;
            guest.write(VTL1_PAGE, b"a secret of VTL1's")?;
            guest.map(POOL.0 + 4 * PAGE_SIZE, VTL1_PAGE, entry::PRESENT | entry::WRITABLE)?;
            let emulated = guest.device(FROM_MEMORY, VTL1_PAGE, 64)?;
            let assigned = guest.device(FROM_MEMORY | ASSIGNED, VTL1_PAGE, 64)?;
            let called = guest.get_register(VTL1_PAGE, DATA.1 + 0x800)?;
            let moved = move_from_device(guest, POOL.0 + 4 * PAGE_SIZE)?;
            let mut bytes = [0; 16];
            let debugged = guest.machine.vmm().read(Gpa(VTL1_PAGE), &mut bytes);
            let snapshot = guest.machine.vmm().snapshot((0..0x400).map(Gpn))?;
            let ways = [
                emulated == "the device gets 0x6, HVCI-MEM-009",
                assigned == "the device gets 0x6",
                called == "#GP, HVCI-MEM-007",
                moved == "#GP, HVCI-MEM-009 HVCI-MEM-007",
                debugged == Err(HvStatus::ACCESS_DENIED) && bytes == [0; 16],
                snapshot.left_out == [Gpn(VTL1_PAGE / PAGE_SIZE)] && snapshot.pages.len() == 0x3FF,
            ];
            Ok(if ways == [true; 6] {
                "refused by all six".to_owned()
            } else {
                format!("{emulated}; {assigned}; {called}; {moved}; {ways:?}")
            })
        },
    ),
];
