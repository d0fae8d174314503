//! 31 to 45: hostile requests to the secure kernel.

use anyhow::{Context, ensure};
use corpus::synth::elf as synth;
use hvci_engine::{
    access::MapGpaFlags,
    addr::{Gpn, PAGE_SIZE, Vtl},
    frames::Kind,
    host::{Action, Enforcer},
    load::Function,
    status::HvStatus,
};
use object::{elf::R_X86_64_GOTPCREL, write::SymbolSection};

use super::{
    Attack, Guest, attack, forge,
    guest::{DATA, MODULE},
    imports,
};

/// `VSM_VTL_CALL_FUNC_ID_ALLOCATE_RINGBUFFER_MEMORY`, which the engine does not have.
const ALLOCATE_RINGBUFFER: Function = Function(0x1_FFEC);

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        31,
        "service/unknown-algorithm",
        "load a module that is signed with an algorithm nobody here knows",
        "HV_STATUS 0x6, HVCI-SIG-021",
        |guest| {
            let module = forge::Module::new()?.unsigned()?;
            guest.submit(&synth::ml_dsa(&module, forge::module_key()?, corpus::synth::oid::ML_DSA_65)?)
        },
    ),
    attack(
        31,
        "service/unknown-relocation",
        "load a module with a relocation of a type that no module has",
        "HV_STATUS 0x1e, HVCI-MEM-003",
        |guest| {
            let mut module = forge::Module::new()?;
            let (text, data) = (module.text, module.data);
            module.relocate(text, 0x80, data, R_X86_64_GOTPCREL, -4)?;
            guest.submit(&module.signed()?)
        },
    ),
    attack(32, "service/page-lists", "ask for a load with lists of pages that have no end", "HV_STATUS 0xb", |guest| {
        guest.ask(Function::VALIDATE_MODULE, &[DATA.1, 4, DATA.1, u64::MAX, MODULE.0, DATA.1, u64::MAX])
    }),
    attack(
        33,
        "service/short-memory",
        "ask for a load into fewer pages than the module's code takes",
        "HV_STATUS 0x5, HVCI-MEM-004",
        |guest| {
            let mut arguments = guest.present(&forge::Module::new()?.signed()?)?;
            arguments[6] = 1;
            guest.ask(Function::VALIDATE_MODULE, &arguments)
        },
    ),
    attack(34, "service/patch-elsewhere", "ask for a patch where the module lists none", "HV_STATUS 0x6, HVCI-MEM-012", |guest| {
        let id = guest.load()?;
        guest.ask(Function::PATCH_TEXT, &[id, MODULE.0 + 0x20, 0, 1, 0xCC])
    }),
    attack(
        34,
        "service/patch-across",
        "patch a site that lies in two pages with offsets and lengths that reach beyond it",
        "every one: HV_STATUS 0x6, HVCI-MEM-012",
        |guest| {
            let id = guest.load()?;
            let site = MODULE.0 + forge::SITE;
            let before = guest.read(MODULE.1, 0x2000)?;
            for (offset, len, bytes) in [(0, 2, 0xCCCC), (1, 1, 0xCC), (4, 2, 0x9090), (5, 1, 0xCC), (0x1000, 1, 0xCC), (u64::MAX, 1, 0xCC)]
            {
                let observed = guest.ask(Function::PATCH_TEXT, &[id, site, offset, len, bytes])?;
                if observed != "HV_STATUS 0x6, HVCI-MEM-012" {
                    return Ok(format!("{len} bytes at {offset:#x}: {observed}"));
                }
            }
            ensure!(guest.read(MODULE.1, 0x2000)? == before, "something is written");
            // what is allowed goes through, over both pages
            for (offset, len, bytes) in [(0, 1, 0xCC), (1, 4, 0x0000_00FD), (0, 1, 0xE9)] {
                let observed = guest.ask(Function::PATCH_TEXT, &[id, site, offset, len, bytes])?;
                ensure!(observed == "goes through", "the jump label itself: {observed}");
            }
            ensure!(guest.read(MODULE.1 + forge::SITE, 5)? == [0xE9, 0xFD, 0, 0, 0], "the jump is not there");
            Ok("every one: HV_STATUS 0x6, HVCI-MEM-012".to_owned())
        },
    ),
    attack(
        34,
        "service/patch-import",
        "have the call of an imported function made a call of something else, or in part",
        "every one: HV_STATUS 0x6, HVCI-MEM-012",
        imports::redirect,
    ),
    attack(35, "service/patch-abandoned", "begin a patch and never end it", "pending, and listed", |guest| {
        let id = guest.load()?;
        let site = MODULE.0 + forge::SITE;
        let begun = guest.ask(Function::PATCH_TEXT, &[id, site, 0, 1, 0xCC])?;
        ensure!(begun == "goes through", "the first step: {begun}");
        let modules = guest.engine.loader.modules_loaded();
        let pending: Vec<u64> = modules.iter().flat_map(|module| module.pending_patches()).map(|at| at.0).collect();
        let skipped = guest.ask(Function::PATCH_TEXT, &[id, site, 0, 1, 0xE9])?;
        ensure!(skipped == "HV_STATUS 0x6, HVCI-MEM-012", "head and tail of two forms: {skipped}");
        Ok(if pending == [site] { "pending, and listed".to_owned() } else { format!("pending: {pending:x?}") })
    }),
    attack(36, "service/protect-others", "name the code of a module as its data", "HV_STATUS 0x6", |guest| {
        let id = guest.load()?;
        guest.ask(Function::PROTECT_MEMORY, &[id, MODULE.0])
    }),
    attack(
        36,
        "service/other-modules-pages",
        "name another module's code as pages of a module that is loaded",
        "HV_STATUS 0x8, HVCI-MEM-011",
        |guest| {
            guest.load()?;
            let arguments = guest.present_at(&forge::Module::new()?.signed()?, MODULE.0 + 0x20_0000)?;
            guest.ask(Function::VALIDATE_MODULE, &arguments)
        },
    ),
    attack(
        37,
        "service/rollback",
        "have a load into a page that was read-only fail at its last step",
        "read-only again, each time",
        |guest| {
            let region = guest.pool(1)?;
            let permission = |guest: &Guest| guest.host.permission(Vtl::Vtl0, Gpn(super::guest::POOL.1 / PAGE_SIZE));
            let before = permission(guest);
            ensure!(!before.contains(MapGpaFlags::WRITABLE), "the page is writable");
            for call in 0.. {
                guest.host.fail_call(Some(call), HvStatus::INSUFFICIENT_MEMORY);
                let released = guest.engine.loader.release_region(region, super::guest::COOKIE);
                guest.host.fail_call(None, HvStatus::SUCCESS);
                if released.is_ok() {
                    ensure!(call > 2, "only {call} calls");
                    break;
                }
                if !before.contains(permission(guest)) {
                    return Ok(format!("call {call} fails, and the page is {:?}", permission(guest)));
                }
            }
            Ok("read-only again, each time".to_owned())
        },
    ),
    attack(
        38,
        "service/relocated-field",
        "place a module with another value where a relocation is",
        "HV_STATUS 0x6, HVCI-MEM-001",
        |guest| {
            let arguments = guest.present(&forge::Module::new()?.signed()?)?;
            let field = guest.read(MODULE.1 + forge::REFERENCE, 1)?;
            guest.write(MODULE.1 + forge::REFERENCE, &[field.first().context("no field")? ^ 0x10])?;
            guest.ask(Function::VALIDATE_MODULE, &arguments)
        },
    ),
    attack(39, "service/unresolved", "load a module that refers to a symbol nobody exports", "HV_STATUS 0x6, HVCI-MEM-002", |guest| {
        let mut module = forge::Module::new()?;
        let symbol = module.symbol("_guard_check_icall", SymbolSection::Undefined, 0);
        let text = module.text;
        module.relocate_symbol(text, 0x80, symbol, object::elf::R_X86_64_PLT32, -4)?;
        guest.submit(&module.signed()?)
    }),
    attack(40, "service/late-key", "give a key for modules when the boot is over", "HV_STATUS 0x6", |guest| {
        guest.ask(Function::LOAD_KDATA, &[DATA.1, 64])
    }),
    attack(
        41,
        "service/already-checked",
        "say with every spare word of a request that the signature is checked already",
        "HV_STATUS 0x6, HVCI-SIG-001",
        |guest| {
            let arguments = guest.present(&forge::Module::new()?.unsigned()?)?;
            guest.ask(Function::VALIDATE_MODULE, &[&arguments[..], &[1; 5]].concat())
        },
    ),
    attack(42, "service/refused-and-used", "execute a module whose load was refused", "#GP, HVCI-MEM-006", |guest| {
        let refused = guest.submit(&forge::Module::new()?.unsigned()?)?;
        ensure!(refused == "HV_STATUS 0x6, HVCI-SIG-001", "the load: {refused}");
        guest.call_to(0, MODULE.0)
    }),
    attack(
        43,
        "service/part-of-the-pages",
        "name each part of a module's pages as if it were all of them",
        "every one: HV_STATUS 0x5, HVCI-MEM-004",
        |guest| {
            let arguments = guest.present(&forge::Module::new()?.signed()?)?;
            for count in 0..arguments[6] {
                let mut fewer = arguments;
                fewer[6] = count;
                let observed = guest.ask(Function::VALIDATE_MODULE, &fewer)?;
                let locked =
                    (0..arguments[6]).find(|page| guest.engine.partition.kind(Gpn(MODULE.1 / PAGE_SIZE + page)) != Some(Kind::Data));
                if observed != "HV_STATUS 0x5, HVCI-MEM-004" || locked.is_some() {
                    return Ok(format!("{count} pages: {observed}, {locked:?}"));
                }
            }
            Ok("every one: HV_STATUS 0x5, HVCI-MEM-004".to_owned())
        },
    ),
    attack(44, "service/unknown-intercept", "have a register intercepted that no level knows", "#GP, HVCI-MEM-008", |guest| {
        guest.refused();
        let cpu = guest.machine.cpu(0).context("no processor")?;
        let action = guest.engine.partition.on_register_write(cpu, 0xDEAD, 0, 1);
        Ok(guest.with_codes(if action == Action::InjectedFault { "#GP" } else { "it is WRITTEN" }.to_owned()))
    }),
    attack(45, "service/ring-buffer", "name a page for a ring buffer of the secure kernel's after the boot", "HV_STATUS 0x1e", |guest| {
        guest.ask(ALLOCATE_RINGBUFFER, &[MODULE.1, 0x1000])
    }),
];
