//! Calls of imported functions that a driver's guest has made direct ones.

use anyhow::{Context, Result, ensure};
use corpus::synth::{import_calls::ImportCall, pe::Image};
use hvci_engine::{
    addr::PAGE_SIZE,
    image::pe::Symbol,
    load::{Function, Symbols},
};
use iced_x86::code_asm::*;

use super::{
    Guest, assemble, forge,
    guest::{KERNEL, MODULE, OTHER_CODE, RAX},
};
use crate::{guest_loader::StubKernel, paging::entry};

const RAW_POINTER: usize = 20;
const R10: usize = 10;
/// Bytes of a call.
const LEN: usize = 12;
/// Where the driver has its code, and calls in it: the third lies in two pages.
const TEXT: u64 = 0x1000;
const CALLS: [u32; 3] = [0, 0x40, 0xFFA];

/// Both forms of a call through `slot` of a function at `target`.
fn forms(at: u64, slot: u64, target: u64) -> Result<[Vec<u8>; 2]> {
    let to_slot = i32::try_from(slot.wrapping_sub(at + 7).cast_signed())?.to_le_bytes();
    let distance = i32::try_from(target.wrapping_sub(at + 12).cast_signed())?.to_le_bytes();
    let signed = [&[0x48, 0xFF, 0x15][..], &to_slot, &[0x0F, 0x1F, 0x44, 0, 0]].concat();
    Ok([signed, [&[0x4C, 0x8B, 0x15][..], &to_slot, &[0xE8], &distance].concat()])
}

fn patch(guest: &mut Guest, id: u64, at: u64, offset: u64, bytes: &[u8]) -> Result<String> {
    let mut words = [0; 16];
    words.get_mut(..bytes.len()).context("too long")?.copy_from_slice(bytes);
    let [low, high] = [0, 8].map(|at| words.get(at..).and_then(|w| w.first_chunk()).copied().map_or(0, u64::from_le_bytes));
    guest.ask(Function::PATCH_TEXT, &[id, at, offset, bytes.len() as u64, low, high])
}

/// Runs a call of the driver's; what the function that it came to says, and what R10 is then.
fn run(guest: &mut Guest, at: u64) -> Result<(u64, u64)> {
    let end = guest.call_to(0, at)?;
    ensure!(end == "goes through", "the call: {end}");
    Ok((guest.register(0, RAX)?, guest.register(0, R10)?))
}

pub(super) fn redirect(guest: &mut Guest) -> Result<String> {
    let image = forge::driver("imports");
    let resolve = |name: &str| StubKernel.resolve(image.imports.0.as_bytes(), Symbol::Name(name.as_bytes())).map(|at| at.0);
    // a function for which there is room on the kernel's page of functions
    let targets = image.imports.1.iter().map(|name| resolve(name).unwrap_or_default());
    let (function, target) = targets.enumerate().find(|(_, at)| (0x900..0xFF0).contains(&(at % PAGE_SIZE))).context("no room")?;
    let code = assemble(target, &|a| {
        a.mov(eax, OTHER_CODE)?;
        a.ret()
    })?;
    guest.write(KERNEL.1 + PAGE_SIZE + target % PAGE_SIZE, &code)?;
    guest.map(target - target % PAGE_SIZE, KERNEL.1 + PAGE_SIZE, entry::PRESENT)?;

    let function = u32::try_from(function)?;
    let import_calls = CALLS.map(|offset| ImportCall { section: 0, offset, function, is_call: true }).to_vec();
    let file = forge::signed_driver(&Image { import_calls, ..image }, |bytes, layout| {
        let text = forge::get(bytes, layout.section(0) + RAW_POINTER).unwrap_or_default() as usize;
        for offset in CALLS {
            // returns behind it
            bytes.iter_mut().skip(text + offset as usize + LEN).take(1).for_each(|byte| *byte = 0xC3);
        }
    })?;
    let arguments = guest.present(&file)?;
    let (status, id) = guest.call(Function::VALIDATE_MODULE, &arguments)?;
    status.ok()?;

    let sites = CALLS.map(|offset| MODULE.0 + TEXT + u64::from(offset));
    let slot = |at: u64, signed: &[u8]| {
        let distance = signed.get(3..).and_then(|bytes| bytes.first_chunk()).copied().map_or(0, i32::from_le_bytes);
        (at + 7).wrapping_add_signed(i64::from(distance))
    };
    let [first, second, third] = sites;
    let slot = slot(first, &guest.read(MODULE.1 + first - MODULE.0, LEN)?);
    let stands = |guest: &Guest, at: u64| guest.read(MODULE.1 + at - MODULE.0, LEN);
    let [signed, direct] = forms(first, slot, target)?;
    ensure!(stands(guest, first)? == signed, "the call is not there");
    ensure!(run(guest, first)?.0 == u64::from(OTHER_CODE), "the import is not called");

    let [_, elsewhere] = forms(first, slot, target + 16)?;
    let [_, itself] = forms(first, slot, first)?;
    let [_, other_slot] = forms(first, slot + 8, target)?;
    let [_, others] = forms(second, slot, target)?;
    let mut jump = direct.clone();
    jump.iter_mut().skip(7).take(1).for_each(|byte| *byte = 0xE9);
    let longer = [&direct[..], &[0x90]].concat();
    let whole = [elsewhere, itself, other_slot, others, jump, signed.clone(), longer];
    let [head, tail] = [direct.get(..7).context("short")?, direct.get(7..).context("short")?];
    let parts: [(u64, &[u8]); 4] = [(0, head), (7, tail), (0, &[0xCC]), (0, &[])];
    let before = guest.read(MODULE.1, 0x3000)?;
    for (offset, bytes) in whole.iter().map(|bytes| (0, bytes.as_slice())).chain(parts) {
        let observed = patch(guest, id, first, offset, bytes)?;
        if observed != "HV_STATUS 0x6, HVCI-MEM-012" {
            return Ok(format!("{bytes:x?} at {offset}: {observed}"));
        }
    }
    ensure!(guest.read(MODULE.1, 0x3000)? == before, "something is written");

    // what is allowed goes through, also over two pages, and the same function is called
    for at in [first, third] {
        let [signed, direct] = forms(at, slot, target)?;
        let observed = patch(guest, id, at, 0, &direct)?;
        ensure!(observed == "goes through", "the direct call: {observed}");
        ensure!(stands(guest, at)? == direct, "the direct call is not there");
        ensure!(run(guest, at)? == (u64::from(OTHER_CODE), target), "the import is not called directly");
        let observed = patch(guest, id, at, 0, &signed)?;
        ensure!(observed == "HV_STATUS 0x6, HVCI-MEM-012", "back: {observed}");
    }
    // nor when others use the module
    guest.call(Function::FREE_MODULE_INIT, &[id])?.0.ok()?;
    let [signed, direct] = forms(second, slot, target)?;
    let observed = patch(guest, id, second, 0, &direct)?;
    ensure!(stands(guest, second)? == signed, "it is changed after the initialisation");
    Ok(format!("every one: {observed}"))
}
