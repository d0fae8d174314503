//! 17 to 25: changing something between the check and the use.

use std::sync::Barrier;

use anyhow::{Context, Result, ensure};
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, Gva, PAGE_SIZE, Vtl},
    explore::{Bug, Space, explore},
    load::{File, Function, Place, Request},
    status::HvStatus,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::PARTITION_ID_SELF,
        secure_call::BLOCK,
    },
};

use super::{
    Attack, Guest, attack, forge,
    guest::{MODULE, POOL},
};

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        17,
        "race/write-before-grant",
        "write into the image from another processor when the file is verified and nothing is granted yet",
        "HV_STATUS 0x6, HVCI-MEM-001",
        |guest| {
            let file = forge::Module::new()?.signed()?;
            guest.present(&file)?;
            guest.refused();
            let write = || guest.host.store(1, Gpa(MODULE.1 + 0x20), &[0x90]);
            // pages are asked for when the verdict is there
            let page = |at: Gva| {
                let page = at.0.checked_sub(MODULE.0)? / PAGE_SIZE;
                write().ok()?;
                Some(Gpn(MODULE.1 / PAGE_SIZE + page))
            };
            let request = Request {
                name: "good",
                file: File::Private(&file),
                place: Place::Base(Gva(MODULE.0)),
                pages: &page,
                time: guest.engine.time,
                vp: Some(0),
            };
            let attempt = guest.engine.loader.load(&request);
            ensure!(attempt.verdict.is_some_and(|v| v.decision == hvci_engine::policy::Decision::Accept), "the file is not accepted");
            Ok(guest.outcome(attempt.outcome.err().map_or(HvStatus::SUCCESS, |refusal| refusal.status)))
        },
    ),
    attack(18, "race/stale-translation", "write through a translation that was remembered before the load", "#GP, HVCI-MEM-005", |guest| {
        let before = guest.write_to(1, MODULE.0 + 0x20)?;
        ensure!(before == "goes through, code CHANGED", "before the load: {before}");
        guest.load()?;
        guest.write_to(1, MODULE.0 + 0x20)
    }),
    attack(19, "race/flush-one-processor", "have only the processor that asks forget its translations", "the explorer finds it", |_| {
        seeded(Bug::FlushOneVp)
    }),
    attack(
        20,
        "race/device-slice",
        "write to a module's page by memory that a device was given before the load",
        "HV_STATUS 0x19, HVCI-MEM-011; then the device gets 0x6",
        |guest| {
            let file = forge::Module::new()?.signed()?;
            let arguments = guest.present(&file)?;
            let vmm = guest.machine.vmm().clone();
            let held = vmm.slice(Gpa(MODULE.1), 64, Access::Write)?;
            let during = guest.ask(Function::VALIDATE_MODULE, &arguments)?;
            held.write(&[0xC3])?;
            drop(held);
            guest.load()?;
            match vmm.write(Gpa(MODULE.1), &[0x90]) {
                Err(status) => Ok(format!("{during}; then the device gets {:#x}", status.0)),
                Ok(()) => Ok(format!("{during}; then the device WRITES")),
            }
        },
    ),
    attack(
        21,
        "race/emulated-instruction",
        "load while the VMM emulates an instruction that has read from the module's page and is about to write to it",
        "HV_STATUS 0x19, HVCI-MEM-011; not executable",
        |guest| {
            let arguments = guest.present(&forge::Module::new()?.signed()?)?;
            let vmm = guest.machine.vmm().clone();
            // what an emulated read-modify-write holds from its read to its write
            let mut word = [0; 8];
            let held = vmm.slice(Gpa(MODULE.1), 8, Access::Write)?;
            held.read(&mut word)?;
            let during = guest.ask(Function::VALIDATE_MODULE, &arguments)?;
            held.write(&word)?;
            let executable = guest.host.permission(Vtl::Vtl0, Gpn(MODULE.1 / PAGE_SIZE)).contains(MapGpaFlags::KERNEL_EXECUTABLE);
            Ok(format!("{during}; {}", if executable { "EXECUTABLE" } else { "not executable" }))
        },
    ),
    attack(22, "race/two-loads", "load one module twice at once, into the same pages", "one wins, the other gets 0x19", |guest| {
        let arguments = guest.present(&forge::Module::new()?.signed()?)?;
        let mut block = [0; BLOCK];
        for (place, word) in block.as_chunks_mut::<8>().0.iter_mut().zip([Function::VALIDATE_MODULE.0].iter().chain(&arguments)) {
            *place = word.to_le_bytes();
        }
        let start = Barrier::new(2);
        let (engine, start) = (&guest.engine, &start);
        let load = |vp| {
            start.wait();
            engine.loader.call(&block, vp, engine.time).0
        };
        let both = std::thread::scope(|scope| {
            let other = scope.spawn(|| load(1));
            [load(0), other.join().unwrap_or(HvStatus::INVALID_VP_STATE)]
        });
        let won = both.iter().filter(|status| **status == HvStatus::SUCCESS).count();
        let lost = both.iter().find(|status| **status != HvStatus::SUCCESS).context("both were loaded")?;
        ensure!(won == 1 && engine.loader.modules_loaded().len() == 1, "{both:?}");
        Ok(format!("one wins, the other gets {:#x}", lost.0))
    }),
    attack(
        23,
        "race/unload-before-flush",
        "give an unloaded module's memory back before processors forget that it was code",
        "the explorer finds it",
        |_| seeded(Bug::GrantBeforeFlush),
    ),
    attack(24, "race/execute-after-unload", "call into a module that was unloaded", "#GP, HVCI-MEM-006, zeroed", |guest| {
        let id = guest.load()?;
        let loaded = guest.call_to(1, MODULE.0)?;
        ensure!(loaded == "goes through", "while it is loaded: {loaded}");
        guest.call(Function::UNLOAD_MODULE, &[id])?.0.ok()?;
        let observed = guest.call_to(1, MODULE.0)?;
        let left = if guest.read(MODULE.1, 64)? == [0; 64] { "zeroed" } else { "code LEFT" };
        Ok(format!("{observed}, {left}"))
    }),
    attack(
        25,
        "race/half-a-list",
        "have the protection of three pages fail at each of the host's calls in turn",
        "none is done, nothing is wider",
        |guest| {
            let pages: Vec<u64> = (0..3).map(|page| POOL.1 / PAGE_SIZE + page).collect();
            let mut input = vec![0; 40];
            PARTITION_ID_SELF.put(&mut input, 0);
            MapGpaFlags::READABLE.0.put(&mut input, 8);
            for (index, page) in pages.iter().enumerate() {
                page.put(&mut input, 16 + 8 * index);
            }
            let permissions = |guest: &Guest| pages.iter().map(|gpn| guest.host.permission(Vtl::Vtl0, Gpn(*gpn))).collect::<Vec<_>>();
            let before = permissions(guest);
            let mut call = 0;
            loop {
                guest.host.fail_call(Some(call), HvStatus::INSUFFICIENT_MEMORY);
                let (status, done) = guest.hypercall_of_vtl1(Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 3), &input)?;
                guest.host.fail_call(None, HvStatus::SUCCESS);
                if status == HvStatus::SUCCESS {
                    ensure!(call > 2 && done == 3, "{done} done after {call} calls");
                    return Ok("none is done, nothing is wider".to_owned());
                }
                if done != 0 {
                    return Ok(format!("call {call} fails, and {done} are said to be DONE"));
                }
                if permissions(guest).iter().zip(&before).any(|(now, before)| !before.contains(*now)) {
                    return Ok(format!("call {call} fails, and a page is WIDER"));
                }
                call += 1;
                ensure!(call < 1000, "it fails always: {status}");
            }
        },
    ),
];

/// Whether the explorer finds a mistake that is put into the protocol, in the smallest machine.
fn seeded(bug: Bug) -> Result<String> {
    let space = Space { bug: Some(bug), large_leaf: false, ..Space::new(3, 2, 2) };
    let broken = explore(&space, &mut |_, _| true).broken;
    Ok(if broken.is_some() { "the explorer finds it" } else { "NOT found" }.to_owned())
}
