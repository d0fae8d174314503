//! 1 to 16: changing code, executing data, and other ways to map both.

use anyhow::{Context, Result, ensure};
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, PAGE_SIZE, Vtl},
    event::What,
    frames::Kind,
    load::Function,
    status::HvStatus,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::PARTITION_ID_SELF,
    },
};
use iced_x86::code_asm::*;

use super::{
    Attack, Guest, attack, beyond,
    guest::{ALIAS, FUNCTION, KERNEL, MODULE, MODULE_PAGES, OTHER_CODE, POOL, RAX},
};
use crate::{
    host::{Config, SimHost},
    memory::PAGE,
    paging::entry,
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(1, "code/write", "write into the code of a sealed module", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        guest.write_to(1, MODULE.0 + 0x20)
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
            guest.write_to(0, MODULE.0)
        },
    ),
    attack(3, "code/writable-mapping", "map sealed code writable and executable in the guest's own tables", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        guest.map(POOL.0, MODULE.1, entry::PRESENT | entry::WRITABLE)?;
        guest.write_to(0, POOL.0)
    }),
    attack(4, "code/pool", "write code into a pool page and call it", "#GP, HVCI-MEM-006", |guest| execute(guest, POOL.0)),
    attack(5, "code/data", "write code into the module's data and call it", "#GP, HVCI-MEM-006", |guest| {
        guest.load()?;
        let data = guest.segment(Kind::Data)?.start;
        execute(guest, data.0)
    }),
    attack(
        5,
        "code/paged-out",
        "have a page of code taken out of memory, write into it while it is the guest's, and call it",
        "#GP, HVCI-MEM-001 HVCI-MEM-006",
        |guest| {
            let pages = page_out(guest, 1)?;
            guest.write(MODULE.1, &pages)?;
            let changed = guest.write_to(1, MODULE.0 + 0x20)?;
            ensure!(changed.starts_with("goes through"), "writing into a page that is the guest's: {changed}");
            guest.call_to(0, MODULE.0)
        },
    ),
    attack(
        5,
        "code/paged-elsewhere",
        "have two pages of code taken out of memory, bring each back at the other's address, and call one",
        "#GP, HVCI-MEM-001 HVCI-MEM-006",
        |guest| {
            let mut pages = page_out(guest, 2)?;
            pages.rotate_left(PAGE);
            guest.write(MODULE.1, &pages)?;
            guest.call_to(0, MODULE.0)
        },
    ),
    attack(6, "code/alias", "write to sealed code through another guest page of the same frame", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        guest.write_to(1, ALIAS)
    }),
    attack(
        7,
        "code/alias-window",
        "write to every page of the module through a window of high guest pages onto its frames",
        "code and constants: #GP, HVCI-MEM-005",
        |guest| {
            guest.load()?;
            let sealed = |kind: Kind| matches!(kind, Kind::Code | Kind::RoData);
            let (mut refused, mut through) = (0, 0);
            for page in 0..MODULE_PAGES {
                let kind = guest.engine.partition.kind(Gpn(MODULE.1 / PAGE_SIZE + page)).context("no RAM")?;
                match (sealed(kind), guest.write_to(0, ALIAS + page * PAGE_SIZE)?.as_str()) {
                    (true, "#GP, HVCI-MEM-005") => refused += 1,
                    (false, "goes through") => through += 1,
                    (_, other) => return Ok(format!("a page that is {kind}: {other}")),
                }
            }
            ensure!(refused >= 3 && through >= 2, "{refused} pages are sealed, {through} are not");
            Ok("code and constants: #GP, HVCI-MEM-005".to_owned())
        },
    ),
    beyond(
        8,
        "code/remapped-function",
        "leave sealed code alone and have its virtual address lead to other verified code",
        "the other code runs",
        |guest| {
            guest.load()?;
            let call = MODULE.0 + FUNCTION % PAGE_SIZE;
            guest.map(MODULE.0, KERNEL.1 + PAGE_SIZE, entry::PRESENT)?;
            let end = guest.call_to(0, call)?;
            ensure!(end == "goes through", "the call: {end}");
            Ok(if guest.register(0, RAX)? == u64::from(OTHER_CODE) { "the other code runs" } else { "it does not run" }.to_owned())
        },
    ),
    attack(
        8,
        "code/remapped-function-hvpt",
        "the same where the hypervisor translates the addresses of sealed pages (HVPT)",
        "the module's own code runs",
        |guest| {
            guest.load()?;
            // what stands there in the other page is no code
            guest.map(MODULE.0, KERNEL.1 + PAGE_SIZE, entry::PRESENT)?;
            ensure!(guest.call_to(0, MODULE.0)? != "goes through", "the other page was not mapped");
            guest.machine.set_hvpt(true);
            let end = guest.call_to(0, MODULE.0)?;
            Ok(if end == "goes through" { "the module's own code runs".to_owned() } else { end })
        },
    ),
    attack(9, "code/writable-constants", "map a module's constants a second time, writable, and write", "#GP, HVCI-MEM-005", |guest| {
        guest.load()?;
        let constants = guest.segment(Kind::RoData)?.pages.first().copied().flatten().context("no page")?;
        guest.map(POOL.0, constants.0 * PAGE_SIZE, entry::PRESENT | entry::WRITABLE)?;
        guest.write_to(0, POOL.0)
    }),
    attack(10, "code/slack", "hide code behind the last byte of a section before the load", "HV_STATUS 0x6, HVCI-MEM-001", |guest| {
        let arguments = guest.present(&super::forge::Module::new()?.signed()?)?;
        // the last bytes of the module's second page of code
        guest.write(MODULE.1 + 2 * PAGE_SIZE - 16, &[0x90; 16])?;
        guest.ask(Function::VALIDATE_MODULE, &arguments)
    }),
    attack(
        11,
        "code/straddling-execution",
        "execute from a verified page on into one that the guest wrote",
        "#GP, HVCI-MEM-006",
        |guest| {
            guest.map(POOL.0 + 8 * PAGE_SIZE, KERNEL.1, entry::PRESENT)?;
            guest.map(POOL.0 + 9 * PAGE_SIZE, POOL.1, entry::PRESENT | entry::WRITABLE)?;
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
            guest.map(POOL.0 + 4 * PAGE_SIZE, MODULE.1, entry::PRESENT | entry::WRITABLE)?;
            let before = guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8)?;
            let observed = guest.write_to(0, POOL.0 + 4 * PAGE_SIZE - 4)?;
            let written = if guest.read(POOL.1 + 4 * PAGE_SIZE - 8, 8)? == before { "nothing written" } else { "half of it WRITTEN" };
            Ok(format!("{observed}, {written}"))
        },
    ),
    attack(
        13,
        "code/large-page",
        "write all around a module while the large page that it lies in is split",
        "never both; neighbours stay writable",
        |guest| {
            let stop = std::sync::atomic::AtomicBool::new(false);
            let (module, neighbour) = (Gpn(MODULE.1 / PAGE_SIZE), Gpn(MODULE.1 / PAGE_SIZE + 2 * MODULE_PAGES));
            let host = std::sync::Arc::clone(&guest.host);
            let both = |flags: MapGpaFlags| flags.contains(MapGpaFlags::WRITABLE) && flags.contains(MapGpaFlags::KERNEL_EXECUTABLE);
            let watch = || {
                let mut observed = "never both; neighbours stay writable";
                loop {
                    // so that the last look is after the load
                    let last = stop.load(std::sync::atomic::Ordering::SeqCst);
                    if (0..MODULE_PAGES).any(|page| both(host.permission(Vtl::Vtl0, Gpn(module.0 + page)))) {
                        observed = "writable and executable AT ONCE";
                    }
                    let written = neighbour.gpa().map(|gpa| host.store(1, gpa, &[1]));
                    if written != Some(Ok(())) {
                        observed = "a neighbour is NOT writable";
                    }
                    if last {
                        return observed;
                    }
                }
            };
            std::thread::scope(|scope| {
                let watcher = scope.spawn(watch);
                let loaded = (0..8).try_for_each(|_| {
                    let id = guest.load()?;
                    guest.call(Function::UNLOAD_MODULE, &[id])?.0.ok().map_err(anyhow::Error::from)
                });
                stop.store(true, std::sync::atomic::Ordering::SeqCst);
                let observed = watcher.join().map_err(|_| anyhow::anyhow!("the other processor failed"))?;
                loaded.map(|()| observed.to_owned())
            })
        },
    ),
    attack(
        14,
        "code/protection-mask",
        "have VTL1 itself ask for execution without reading, for writing without reading, and for both at once",
        "0x50 0x50 0x8",
        |guest| {
            let statuses = [MapGpaFlags::KERNEL_EXECUTABLE.0, MapGpaFlags::WRITABLE.0, 15].map(|flags| {
                let mut input = [0; 24];
                PARTITION_ID_SELF.put(&mut input, 0);
                flags.put(&mut input, 8);
                (POOL.1 / PAGE_SIZE).put(&mut input, 16);
                guest.hypercall_of_vtl1(Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 1), &input)
            });
            let mut texts = Vec::new();
            for status in statuses {
                texts.push(format!("{:#x}", status?.0.0));
            }
            Ok(texts.join(" "))
        },
    ),
    attack(
        15,
        "code/firmware-leftover",
        "execute a page that firmware left readable, writable and executable",
        "executable before, not after",
        |_| {
            let config = Config { pages: 0x100, ..Config::default() };
            let before = SimHost::new(&config)?.access(0, Gpa(0x5000), Access::KernelExecute);
            let (host, _partition) = SimHost::with_partition(&config)?;
            let after = host.access(0, Gpa(0x5000), Access::KernelExecute);
            Ok(match (before, after) {
                (Ok(_), Err(HvStatus::ACCESS_DENIED)) => "executable before, not after".to_owned(),
                other => format!("{other:?}"),
            })
        },
    ),
    attack(
        16,
        "code/page-walk",
        "put a page table into protected memory and have a page walk write to it",
        "#GP, HVCI-MEM-005, a page walk, unchanged",
        |guest| {
            let mut bus = crate::machine::View::new(&guest.host, 0);
            let entries = guest.tables.entries(&mut bus, ALIAS)?;
            let last = *entries.last().context("no entry")?;
            guest.engine.partition.transform(u32::MAX, &[(last.gpn(), Kind::KernelData)], || Ok(()))?;
            let before = guest.read(last.gpn().gpa().context("no page")?.0, PAGE)?;
            guest.refused();
            let end = guest.run(0, &|a| {
                a.mov(rax, ALIAS)?;
                a.mov(rbx, qword_ptr(rax))
            })?;
            let events = guest.refused();
            let walks = events.iter().all(|e| matches!(e.what, What::Access { page_walk: true, access: Access::Write, .. }));
            let code = events.first().and_then(|e| e.code).context("nothing was refused")?;
            let same = guest.read(last.gpn().gpa().context("no page")?.0, PAGE)? == before;
            Ok(format!(
                "{}, {code}, {}, {}",
                if end == super::guest::CAUGHT | 13 { "#GP" } else { "no #GP" },
                if walks { "a page walk" } else { "NOT a page walk" },
                if same { "unchanged" } else { "CHANGED" }
            ))
        },
    ),
];

/// Has the guest load the module and give up its first pages; what stood in them.
fn page_out(guest: &mut Guest, count: u64) -> Result<Vec<u8>> {
    let id = guest.load()?;
    let bytes = guest.read(MODULE.1, usize::try_from(count * PAGE_SIZE)?)?;
    for page in 0..count {
        guest.call(Function::PAGE_OUT, &[id, MODULE.0 + page * PAGE_SIZE])?.0.ok()?;
    }
    let scrubbed = guest.read(MODULE.1, bytes.len())?;
    ensure!(scrubbed.iter().all(|byte| *byte == 0), "what is taken out is not scrubbed");
    Ok(bytes)
}

fn execute(guest: &mut Guest, address: u64) -> Result<String> {
    guest.attempt(0, &|a| {
        a.mov(rax, address)?;
        a.mov(dword_ptr(rax), 0xC3)?;
        a.call(rax)
    })
}
