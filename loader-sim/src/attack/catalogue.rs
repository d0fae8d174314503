//! The attacks.

use anyhow::{Context, Result};
use hvci_engine::{
    addr::{Gpa, Gpn, PAGE_SIZE},
    frames::Kind,
    host::Host,
    load::Function,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
        register::RegisterName,
    },
};
use iced_x86::code_asm::*;

use super::{
    Attack, Guest,
    guest::{ALIAS, DATA, KERNEL, MODULE, POOL},
};
use crate::{machine::View, paging::entry};

const fn attack(
    number: u8,
    name: &'static str,
    what: &'static str,
    expected: &'static str,
    run: fn(&mut Guest) -> Result<String>,
) -> Attack {
    Attack { number, name, what, expected, run }
}

/// Every attack that runs, by number.
pub const ATTACKS: &[Attack] = &[
    attack(1, "code/write", "write into the code of a sealed module", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        write(guest, 1, MODULE.0 + 0x20)
    }),
    attack(2, "code/write-protect-off", "clear CR0.WP", "#GP, HVCI-MEM-008", |guest| {
        guest.attempt(0, &|a| {
            a.mov(rax, cr0)?;
            a.and(eax, -0x1_0001)?;
            a.mov(cr0, rax)
        })
    }),
    attack(
        2,
        "code/write-without-protection",
        "write into sealed code with CR0.WP clear, as if it were not pinned",
        "#GP, HVCI-MEM-005",
        |guest| {
            guest.load()?;
            guest.machine.cpu(0).context("no processor")?.registers_mut().cr0 &= !0x1_0000;
            write(guest, 0, MODULE.0)
        },
    ),
    attack(3, "code/writable-mapping", "map sealed code writable and executable in the guest's own tables", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        let mut bus = View::new(&guest.host, 0);
        guest.tables.map(&mut bus, POOL.0, Gpa(MODULE.1), PAGE_SIZE, entry::PRESENT | entry::WRITABLE)?;
        write(guest, 0, POOL.0)
    }),
    attack(4, "code/pool", "write code into a pool page and call it", "#GP, HVCI-MEM-006", |guest| execute(guest, POOL.0)),
    attack(5, "code/data", "write code into the module's data and call it", "#GP, HVCI-MEM-006", |guest| {
        guest.load()?;
        let modules = guest.engine.loader.modules_loaded();
        let data = modules.iter().flat_map(|m| &m.segments).find(|s| s.kind == Kind::Data).context("no data")?.start;
        execute(guest, data.0)
    }),
    attack(6, "code/alias", "write to sealed code through another guest page of the same frame", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        write(guest, 1, ALIAS)
    }),
    attack(
        11,
        "code/straddling-execution",
        "execute from a verified page on into one that the guest wrote",
        "#GP, HVCI-MEM-006",
        |guest| {
            let mut bus = View::new(&guest.host, 0);
            guest.tables.map(&mut bus, POOL.0 + 8 * PAGE_SIZE, Gpa(KERNEL.1), PAGE_SIZE, entry::PRESENT)?;
            guest.tables.map(&mut bus, POOL.0 + 9 * PAGE_SIZE, Gpa(POOL.1), PAGE_SIZE, entry::PRESENT | entry::WRITABLE)?;
            // two bytes of a five byte jump
            guest.write(KERNEL.1 + 0xFFE, &[0xE9, 0])?;
            guest.attempt(0, &|a| {
                a.mov(rax, POOL.0 + 8 * PAGE_SIZE + 0xFFE)?;
                a.jmp(rax)
            })
        },
    ),
    attack(
        12,
        "code/straddling-write",
        "write half to a page of the guest's and half to sealed code",
        "#GP, HVCI-MEM-005, nothing written",
        |guest| {
            guest.load()?;
            let mut bus = View::new(&guest.host, 0);
            guest.tables.map(&mut bus, POOL.0 + 4 * PAGE_SIZE, Gpa(MODULE.1), PAGE_SIZE, entry::PRESENT | entry::WRITABLE)?;
            let before = guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8)?;
            let observed = write(guest, 0, POOL.0 + 4 * PAGE_SIZE - 4)?;
            let written = if guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8)? == before { "nothing written" } else { "half of it WRITTEN" };
            Ok(format!("{observed}, {written}"))
        },
    ),
    attack(18, "race/stale-translation", "write through a translation that was remembered before the load", "#GP, HVCI-MEM-005", |guest| {
        let before = write(guest, 1, MODULE.0 + 0x20)?;
        anyhow::ensure!(before == "goes through, code CHANGED", "before the load: {before}");
        guest.load()?;
        write(guest, 1, MODULE.0 + 0x20)
    }),
    attack(24, "race/execute-after-unload", "call into a module that was unloaded", "#GP, HVCI-MEM-006, zeroed", |guest| {
        let id = guest.load()?;
        let call = |a: &mut CodeAssembler| {
            a.mov(rax, MODULE.0)?;
            a.call(rax)
        };
        let loaded = guest.attempt(1, &call)?;
        anyhow::ensure!(loaded == "goes through", "while it is loaded: {loaded}");
        guest.call(Function::UNLOAD_MODULE, &[id])?.0.ok()?;
        let observed = guest.attempt(1, &call)?;
        let left = if guest.read(MODULE.1, 64)? == [0; 64] { "zeroed" } else { "code LEFT" };
        Ok(format!("{observed}, {left}"))
    }),
    attack(28, "deputy/hypercall-output", "have a hypercall write its output over sealed code", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        let proper = get_register(guest, DATA.1, DATA.1 + 0x800)?;
        anyhow::ensure!(proper == "goes through", "to a page of the guest's: {proper}");
        get_register(guest, DATA.1, MODULE.1)
    }),
    attack(28, "deputy/hypercall-input", "have a hypercall read its input from memory of VTL1", "#GP, HVCI-MEM-007", |guest| {
        guest.engine.partition.transform(u32::MAX, &[(Gpn(0x90), Kind::SecureOnly)], || Ok(()))?;
        get_register(guest, 0x90_000, DATA.1 + 0x800)
    }),
    attack(32, "service/page-lists", "ask for a load with lists of pages that have no end", "HV_STATUS 0xb", |guest| {
        let (status, _) = guest.call(Function::VALIDATE_MODULE, &[DATA.1, 4, DATA.1, u64::MAX, MODULE.0, DATA.1, u64::MAX])?;
        Ok(format!("HV_STATUS {:#x}", status.0))
    }),
    attack(34, "service/patch-elsewhere", "ask for a patch where the module lists none", "HV_STATUS 0x6", |guest| {
        let id = guest.load()?;
        let (status, _) = guest.call(Function::PATCH_TEXT, &[id, MODULE.0 + 0x20, 0, 1, 0xCC])?;
        Ok(format!("HV_STATUS {:#x}", status.0))
    }),
    attack(36, "service/protect-others", "name the code of a module as its data", "HV_STATUS 0x6", |guest| {
        let id = guest.load()?;
        let (status, _) = guest.call(Function::PROTECT_MEMORY, &[id, MODULE.0])?;
        Ok(format!("HV_STATUS {:#x}", status.0))
    }),
    attack(40, "service/late-key", "give a key for modules when the boot is over", "HV_STATUS 0x6", |guest| {
        let (status, _) = guest.call(Function::LOAD_KDATA, &[DATA.1, 64])?;
        Ok(format!("HV_STATUS {:#x}", status.0))
    }),
    attack(58, "image/giant", "ask for a load of a file of 2^40 bytes", "HV_STATUS 0xb", |guest| {
        let (status, _) = guest.call(Function::VALIDATE_MODULE, &[DATA.1, 4, DATA.1, 1 << 40, MODULE.0, DATA.1, 16])?;
        Ok(format!("HV_STATUS {:#x}", status.0))
    }),
    attack(65, "data/protected-section", "write to a module's data that is protected", "#GP, HVCI-MEM-005", |guest| {
        let id = guest.load()?;
        let modules = guest.engine.loader.modules_loaded();
        let data = modules.iter().flat_map(|m| &m.segments).find(|s| s.kind == Kind::Data).context("no data")?.start;
        guest.call(Function::PROTECT_MEMORY, &[id, data.0])?.0.ok()?;
        write(guest, 0, data.0)
    }),
    attack(71, "vault/read", "read a page of VTL1", "#GP, HVCI-MEM-007", |guest| {
        guest.engine.partition.transform(u32::MAX, &[(Gpn(POOL.1 / PAGE_SIZE), Kind::SecureOnly)], || Ok(()))?;
        guest.attempt(0, &|a| {
            a.mov(rax, POOL.0)?;
            a.mov(rbx, qword_ptr(rax))
        })
    }),
    attack(87, "vtl/reserved-bits", "make a VTL call with reserved bits set", "#UD", |guest| {
        guest.attempt(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1)?;
            a.mov(eax, 1)?;
            a.vmcall()
        })
    }),
];

fn write(guest: &mut Guest, vp: u32, address: u64) -> Result<String> {
    guest.attempt(vp, &|a| {
        a.mov(rax, address)?;
        a.mov(qword_ptr(rax), rax)
    })
}

fn execute(guest: &mut Guest, address: u64) -> Result<String> {
    guest.attempt(0, &|a| {
        a.mov(rax, address)?;
        a.mov(dword_ptr(rax), 0xC3)?;
        a.call(rax)
    })
}

/// HvCallGetVpRegisters of RIP, with its input and output there.
fn get_register(guest: &mut Guest, input: u64, output: u64) -> Result<String> {
    let mut bytes = [0; 20];
    PARTITION_ID_SELF.put(&mut bytes, 0);
    VP_INDEX_SELF.put(&mut bytes, 8);
    RegisterName::RIP.0.put(&mut bytes, 16);
    guest.host.write(Gpa(input), &bytes)?;
    guest.attempt(0, &|a| {
        a.mov(rcx, Control::rep(HypercallCode::GET_VP_REGISTERS, 1).0)?;
        a.mov(rdx, input)?;
        a.mov(r8, output)?;
        a.vmcall()
    })
}
