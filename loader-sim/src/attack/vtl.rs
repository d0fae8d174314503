//! 86 to 92: the levels themselves.

use anyhow::{Context, ensure};
use hvci_engine::{
    addr::PAGE_SIZE,
    load::Function,
    vsm::{
        Wire,
        hypercall::{Control, HypercallCode},
        input::{PARTITION_ID_SELF, VP_INDEX_SELF},
    },
};
use iced_x86::code_asm::*;

use super::{
    Attack, attack, forge,
    guest::{DATA, KERNEL, MODULE, POOL, RAX, THROUGH},
};
use crate::{cpu::registers::Registers, paging::entry};

pub(super) const ATTACKS: &[Attack] = &[
    attack(
        86,
        "vtl/own-protection",
        "change protections from VTL0, for VTL0, for VTL1 and for itself",
        "0x5 0x6 0x5, nothing changes",
        |guest| {
            let mut statuses = Vec::new();
            let before = guest.permissions();
            for target in [0x10, 0x11, 0_u8] {
                let mut input = [0; 24];
                PARTITION_ID_SELF.put(&mut input, 0);
                15_u32.put(&mut input, 8);
                input[12] = target;
                (POOL.1 / PAGE_SIZE).put(&mut input, 16);
                let (status, _) = guest.hypercall(Control::rep(HypercallCode::MODIFY_VTL_PROTECTION_MASK, 1), &input)?;
                statuses.push(format!("{:#x}", status.0));
            }
            let same = if guest.permissions() == before { "nothing changes" } else { "something CHANGES" };
            Ok(format!("{}, {same}", statuses.join(" ")))
        },
    ),
    attack(87, "vtl/reserved-bits", "make a VTL call with reserved bits set", "#UD", |guest| {
        guest.attempt(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1)?;
            a.mov(eax, 1)?;
            a.vmcall()
        })
    }),
    attack(87, "vtl/user-mode", "make a VTL call in user mode", "#UD", |guest| {
        // the code selector of user mode, as after IRETQ
        guest.machine.cpu(0).context("no processor")?.registers_mut().cs.selector |= 3;
        guest.map(KERNEL.0, KERNEL.1, entry::PRESENT | entry::USER)?;
        guest.attempt(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1)?;
            a.xor(eax, eax)?;
            a.vmcall()
        })
    }),
    attack(88, "vtl/enable-another", "enable VTL1 on another processor, and again on this one", "0x6 0x86", |guest| {
        let mut statuses = Vec::new();
        for vp in [1, VP_INDEX_SELF] {
            let (status, _) = guest.hypercall(Control::simple(HypercallCode::ENABLE_VP_VTL), &start_input(vp, 1))?;
            statuses.push(format!("{:#x}", status.0));
        }
        Ok(statuses.join(" "))
    }),
    attack(89, "vtl/restart-processor", "start a processor anew from VTL0 while VTL1 forbids it", "HV_STATUS 0x6", |guest| {
        let (status, _) = guest.hypercall(Control::simple(HypercallCode::START_VIRTUAL_PROCESSOR), &start_input(1, 0))?;
        Ok(guest.outcome(status))
    }),
    attack(90, "vtl/register-hygiene", "look for words of VTL1 in the registers after a VTL call", "two answers, nothing else", |guest| {
        let id = guest.load()?;
        let block: Vec<u8> = [Function::FREE_MODULE_INIT.0, id].iter().flat_map(|w| w.to_le_bytes()).collect();
        guest.write(DATA.1 + 0x3000, &[0; hvci_engine::vsm::secure_call::BLOCK])?;
        guest.write(DATA.1 + 0x3000, &block)?;
        let before = *guest.machine.cpu(0).context("no processor")?.registers();
        let marks = [(rbx, 3), (rbp, 5), (rsi, 6), (rdi, 7), (r8, 8), (r9, 9), (r10, 10), (r11, 11), (r12, 12), (r13, 13), (r14, 14)];
        let control = Control::simple(HypercallCode::VTL_CALL).0;
        guest.run(0, &|a| {
            for (register, number) in marks {
                a.mov(register, 0x5EED_0000_u64 + number)?;
            }
            a.mov(rcx, control)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.xor(eax, eax)?;
            a.vmcall()
        })?;
        let after = *guest.machine.cpu(0).context("no processor")?.registers();
        let gpr = after.general.gpr;
        let mut changed: Vec<usize> = (3..15).filter(|n| *n != 4).filter(|n| gpr.get(*n) != Some(&(0x5EED_0000 + *n as u64))).collect();
        changed.extend((gpr[1] != control).then_some(1));
        // every other register is as it was before the program
        let same = Registers { general: before.general, ..after } == before;
        Ok(match (changed.as_slice(), same, gpr[RAX]) {
            ([], true, 0) => "two answers, nothing else".to_owned(),
            _ => format!("also CHANGED: {changed:?}, status {:#x}", gpr[RAX]),
        })
    }),
    attack(91, "vtl/interrupt-flood", "interrupt the processor before every instruction of a VTL call", "the call is done", |guest| {
        let id = guest.load()?;
        let block: Vec<u8> = [Function::UNLOAD_MODULE.0, id].iter().flat_map(|w| w.to_le_bytes()).collect();
        guest.write(DATA.1 + 0x3000, &[0; hvci_engine::vsm::secure_call::BLOCK])?;
        guest.write(DATA.1 + 0x3000, &block)?;
        let end = guest.run_flooded(0, &|a| {
            a.mov(rcx, Control::simple(HypercallCode::VTL_CALL).0)?;
            a.mov(rdx, DATA.1 + 0x3000)?;
            a.xor(eax, eax)?;
            a.vmcall()
        })?;
        ensure!(end == THROUGH, "the program ends with {end:#x}");
        Ok(if guest.engine.loader.modules_loaded().is_empty() { "the call is done" } else { "the call is NOT done" }.to_owned())
    }),
    attack(
        92,
        "vtl/stale-patch-site",
        "patch a site of a module that was unloaded, where another is loaded now",
        "HV_STATUS 0x10",
        |guest| {
            let old = guest.load()?;
            guest.call(Function::UNLOAD_MODULE, &[old])?.0.ok()?;
            guest.load()?;
            guest.ask(Function::PATCH_TEXT, &[old, MODULE.0 + forge::SITE, 0, 1, 0xCC])
        },
    ),
];

/// Input of HvCallEnableVpVtl and HvCallStartVirtualProcessor.
fn start_input(vp: u32, vtl: u8) -> [u8; 0xF0] {
    let mut input = [0; 0xF0];
    PARTITION_ID_SELF.put(&mut input, 0);
    vp.put(&mut input, 8);
    input[12] = vtl;
    input
}
