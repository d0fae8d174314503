//! Guest code under the engine: the catalogue of attacks, and what an honest guest does.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::{collections::BTreeSet, sync::Arc};

use hvci_engine::{
    access::MapGpaFlags,
    addr::{Gpa, Gpn, PAGE_SIZE, Vtl},
    event::{Event, What},
    host::Host,
};
use iced_x86::code_asm::*;
use loader_sim::{
    attack::{ATTACKS, CATALOGUE, Guest},
    cpu::{Exit, registers::Registers},
    host::{Config, SimHost},
    machine::{Machine, Stop},
};

#[test]
fn every_attack_comes_to_what_is_expected() {
    for attack in ATTACKS.iter() {
        assert_eq!(attack.attempt().unwrap(), attack.expected, "{}: {}", attack.name, attack.what);
    }
    assert!(ATTACKS.is_sorted_by_key(|attack| attack.number));
    let tried = ATTACKS.iter().map(|attack| attack.number);
    assert_eq!(tried.collect::<BTreeSet<_>>(), (1..=CATALOGUE).collect(), "each number is tried, or said to be missing");
}

#[test]
fn the_same_programs_give_the_same_events() {
    let events = || {
        let mut guest = Guest::new().unwrap();
        guest.load().unwrap();
        for vp in [1, 0, 1] {
            guest
                .run(vp, &|a| {
                    a.mov(rax, 0xFFFF_FFFF_C040_0000_u64)?;
                    a.mov(qword_ptr(rax), rax)
                })
                .unwrap();
        }
        let timeless = |event: Event| {
            let what = match event.what {
                What::Load { name, pages, digest, .. } => What::Load { name, pages, digest, phases: Vec::new() },
                other => other,
            };
            Event { at: 0, what, ..event }
        };
        guest.engine.partition.take_events().0.into_iter().map(timeless).collect::<Vec<_>>()
    };
    let first = events();
    assert!(first.len() >= 5);
    assert_eq!(first, events());
}

#[test]
fn without_an_engine_everything_goes() {
    let guest = Guest::new().unwrap();
    let pages = 0x400;
    let host = Arc::new(SimHost::new(&Config { pages, ..Config::default() }).unwrap());
    for gpn in (0..pages).map(Gpn) {
        let page = guest.read(gpn.0 * PAGE_SIZE, 4096).unwrap();
        host.write(gpn.gpa().unwrap(), &page).unwrap();
    }
    let (kernel, pool) = (0xFFFF_8000_0040_0000_u64, 0xFFFF_8000_0070_0000_u64);
    let mut a = CodeAssembler::new(64).unwrap();
    a.mov(rax, pool).unwrap();
    a.mov(dword_ptr(rax), 0xC3).unwrap();
    a.call(rax).unwrap();
    a.mov(r15, 0x600D_u64).unwrap();
    a.hlt().unwrap();
    host.write(Gpa(0x10_000), &a.assemble(kernel).unwrap()).unwrap();
    let registers = Registers::kernel(kernel, 0xFFFF_8000_0060_1F00, guest.tables.root().0);
    let mut machine = Machine::new(Arc::clone(&host), None, [registers]);
    assert_eq!(machine.run(0, 100), Ok(Stop::Exit(Exit::Halt)));
    assert_eq!(machine.cpu(0).unwrap().registers().general.gpr[15], 0x600D);
    assert!(host.permission(Vtl::Vtl0, Gpn(0x40)).contains(MapGpaFlags::KERNEL_EXECUTABLE));
}
