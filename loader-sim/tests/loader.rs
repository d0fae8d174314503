//! The load transaction over the simulated host: real and synthetic modules, races, hostile calls, and an error at every call of the host.

#![expect(clippy::cast_possible_truncation, reason = "tests of 64-bit machines")]

use std::{
    collections::BTreeMap,
    fs,
    sync::{Arc, Barrier, LazyLock, Mutex},
    thread,
};

use corpus::synth::{
    certificate::{Identity, Template},
    elf as synth_elf,
    key::{Key, KeyKind},
};
use hvci_engine::{
    access::{Access, MapGpaFlags},
    addr::{Gpa, Gpn, Gva, PAGE_SIZE, Vtl},
    crypto::digest,
    digest::DigestAlg,
    event::What,
    finding::Code,
    frames::Kind,
    host::{Capabilities, Host},
    load::{Attempt, File, Function, Loader, Place, Request},
    policy::Decision,
    signature::{
        block_list::BlockList,
        catalog::CatalogIndex,
        kernel::kernel_certificates,
        modsig::ModuleTrailer,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    vsm::{partition::Partition, secure_call::BLOCK},
};
use loader_sim::{
    guest_loader::{self, StubKernel},
    host::{Config, SimHost},
};
use proptest::prelude::*;

#[path = "../../corpus/tests/corpora/mod.rs"]
#[expect(dead_code, reason = "other tests use the rest of it")]
mod corpora;

use corpora::{files, folder, time};

const BASE: Gva = Gva(0xFFFF_FFFF_C040_0000);
/// Where the guest puts modules.
const AT: u64 = 0x400;

static KEY: LazyLock<Identity> =
    LazyLock::new(|| Template::leaf("CN=module key", &[]).issue(&Key::derive(7, "module", KeyKind::Rsa(2048)).unwrap(), None).unwrap());

struct Guest {
    host: Arc<SimHost>,
    partition: Arc<Partition>,
    loader: Loader,
    key: Identity,
}

fn guest(config: &Config) -> Guest {
    let (host, partition) = SimHost::with_partition(config).unwrap();
    let key = KEY.clone();
    let mut trust = TrustStore::builtin();
    trust.add_der(&der(&key), Purposes::MODULE, "test").unwrap();
    let loader = Loader::new(Arc::clone(&partition), trust, CatalogIndex::default(), None, Box::new(StubKernel));
    Guest { host, partition, loader, key }
}

fn der(identity: &Identity) -> Vec<u8> {
    use x509_cert::der::Encode;
    identity.certificate.to_der().unwrap()
}

impl Guest {
    fn signed(&self, name: &str) -> Vec<u8> {
        synth_elf::signed(&synth_elf::module(name, false).unwrap(), &synth_elf::signing(&self.key)).unwrap()
    }

    /// Has the guest's loader put a file at `at`.
    fn map(&self, file: &[u8], base: Gva, at: u64) {
        guest_loader::put(&*self.host, &guest_loader::place(file, base).unwrap(), base, Gpn(at)).unwrap();
    }

    fn ask(&self, file: &[u8], base: Gva, at: u64) -> Attempt {
        let pages = |gva: Gva| Some(Gpn(at + (gva.0.checked_sub(base.0)?) / PAGE_SIZE));
        let request =
            Request { name: "module", file: File::Private(file), place: Place::Base(base), pages: &pages, time: time(), vp: Some(0) };
        self.loader.load(&request)
    }

    fn load(&self, file: &[u8], base: Gva, at: u64) -> Attempt {
        self.map(file, base, at);
        self.ask(file, base, at)
    }

    /// What VTL0 may do with each page, and its bytes.
    fn state(&self, pages: std::ops::Range<u64>) -> Vec<(Option<Kind>, MapGpaFlags, Vec<u8>)> {
        pages.map(Gpn).map(|gpn| (self.partition.kind(gpn), self.host.permission(Vtl::Vtl0, gpn), self.bytes(gpn))).collect()
    }

    fn bytes(&self, gpn: Gpn) -> Vec<u8> {
        let mut bytes = vec![0; 4096];
        self.host.read(gpn.gpa().unwrap(), &mut bytes).unwrap();
        bytes
    }
}

fn small() -> Config {
    Config { pages: 0x1000, ..Config::default() }
}

#[test]
fn a_signed_module_is_sealed_and_leaves_nothing_behind() {
    let guest = guest(&Config { aliases: vec![Gpn(AT)], ..small() });
    let file = guest.signed("good");
    let attempt = guest.load(&file, BASE, AT);
    let module = attempt.outcome.unwrap();
    assert_eq!(attempt.verdict.unwrap().decision, Decision::Accept);
    let kinds: BTreeMap<&str, Kind> = module.segments.iter().map(|s| (s.name.as_str(), s.kind)).collect();
    assert_eq!((kinds["text"], kinds["rodata"], kinds["data"]), (Kind::Code, Kind::RoData, Kind::Data), "{kinds:?}");
    for segment in &module.segments {
        for gpn in segment.pages.iter().flatten() {
            assert_eq!(guest.host.permission(Vtl::Vtl0, *gpn), segment.kind.allows(Vtl::Vtl0));
        }
    }
    assert!(guest.host.access(1, Gpa(AT * PAGE_SIZE), Access::KernelExecute).is_ok());
    // the other page of the same frame
    assert_eq!(guest.host.access(1, Gpa(0x1000 * PAGE_SIZE), Access::Write), Err(HvStatus::ACCESS_DENIED));
    let (owner, part, offset) = guest.loader.provenance(Gva(BASE.0 + 0x10)).unwrap();
    assert_eq!((owner.id, part.section.as_str(), offset), (module.id, ".text", 0x10));

    let (events, _) = guest.partition.take_events();
    let load = events.iter().find_map(|e| match &e.what {
        What::Load { digest, phases, .. } => Some((e.status, *digest, phases.iter().map(|(n, _)| n.clone()).collect::<Vec<_>>())),
        _ => None,
    });
    let (status, digest, phases) = load.unwrap();
    assert_eq!((status, digest), (HvStatus::SUCCESS, module.digest));
    assert_eq!(phases, ["parse", "relocate", "lock", "quiesce", "hash", "signature", "policy", "compare", "grant"]);

    // what is sealed has a translation of the engine's; the guest's data has not
    for segment in &module.segments {
        for (at, gpn) in (segment.start.0..).step_by(4096).zip(&segment.pages) {
            assert_eq!(guest.loader.translation(Gva(at + 5)), gpn.filter(|_| segment.kind != Kind::Data), "{segment:?}");
        }
    }
    assert_eq!(guest.loader.translation(Gva(BASE.0 - 1)), None);

    // a second module at the same addresses; the same pages for another module
    assert_eq!(guest.ask(&file, BASE, AT).outcome.unwrap_err().status, HvStatus::OBJECT_IN_USE);
    assert_eq!(guest.ask(&file, Gva(BASE.0 + 0x10_0000), AT).outcome.unwrap_err().status, HvStatus::OPERATION_DENIED);

    guest.loader.unload(module.id).unwrap();
    assert_eq!(guest.loader.unload(module.id), Err(HvStatus::NOT_FOUND));
    assert_eq!(guest.host.access(1, Gpa(AT * PAGE_SIZE), Access::KernelExecute), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(guest.bytes(Gpn(AT)), [0; 4096]);
    assert!(guest.loader.provenance(BASE).is_none() && guest.loader.modules_loaded().is_empty());
    assert_eq!(guest.loader.translation(BASE), None);
    assert!(guest.load(&file, BASE, AT).outcome.is_ok(), "and again");
}

#[test]
fn what_is_not_as_signed_is_refused_and_everything_is_as_it_was() {
    let guest = guest(&small());
    let file = guest.signed("good");
    guest.map(&file, BASE, AT);
    // one byte of code, one of what is only slack
    for offset in [0x10, 0xFFF] {
        let gpa = Gpa(AT * PAGE_SIZE + offset);
        let mut byte = [0];
        guest.host.read(gpa, &mut byte).unwrap();
        guest.host.write(gpa, &[byte[0] ^ 1]).unwrap();
        let before = guest.state(AT..AT + 8);
        let refusal = guest.ask(&file, BASE, AT).outcome.unwrap_err();
        assert_eq!(refusal.note.code, Code::MemMismatch);
        assert!(guest.state(AT..AT + 8) == before);
        guest.host.write(gpa, &byte).unwrap();
    }
    // an unsigned file; one that is signed, but not by anybody trusted; one with a changed byte
    let unsigned = synth_elf::module("good", false).unwrap();
    let stranger = Template::leaf("CN=stranger", &[]).issue(&Key::derive(8, "stranger", KeyKind::Rsa(2048)).unwrap(), None).unwrap();
    let strange = synth_elf::signed(&unsigned, &synth_elf::signing(&stranger)).unwrap();
    let mut forged = file.clone();
    forged[0x200] ^= 1;
    for file in [&unsigned, &strange, &forged] {
        let attempt = guest.ask(file, BASE, AT);
        assert_ne!(attempt.verdict.unwrap().decision, Decision::Accept);
        assert!(attempt.outcome.is_err());
    }
    let twice = |_: Gva| Some(Gpn(AT));
    let request = Request { name: "twice", file: File::Private(&file), place: Place::Base(BASE), pages: &twice, time: time(), vp: None };
    assert_eq!(guest.loader.load(&request).outcome.unwrap_err().status, HvStatus::INVALID_PARAMETER);
    assert!(guest.ask(&file, BASE, AT).outcome.is_ok());
}

/// What an attempt came to, without times and without the number that each module has of its own.
fn outcome(attempt: Attempt) -> String {
    let Attempt { verdict, outcome, .. } = attempt;
    let module = outcome.map(|m| (m.name.clone(), m.digest, m.entry, m.segments.clone()));
    format!("{verdict:?} {module:?}")
}

#[test]
fn a_file_that_was_examined_before_is_judged_and_compared_as_any() {
    let guest = guest(&small());
    let file = guest.signed("good");
    let load = |file: &[u8]| {
        let attempt = guest.load(file, BASE, AT);
        if let Ok(module) = &attempt.outcome {
            guest.loader.unload(module.id).unwrap();
        }
        attempt
    };
    let first = outcome(load(&file));
    (0..3).for_each(|_| assert_eq!(outcome(load(&file)), first));
    // the same length, and the same signature at its end
    let mut forged = file.clone();
    for at in [0x40, 0x200, file.len() - 200] {
        forged[at] ^= 1;
        guest.map(&file, BASE, AT);
        let attempt = guest.ask(&forged, BASE, AT);
        assert!(attempt.outcome.is_err() && attempt.verdict.unwrap().decision != Decision::Accept, "{at:#x}");
        forged[at] ^= 1;
    }
    assert_eq!(outcome(load(&file)), first, "known again after the others");
    // known or not, what is in memory is compared
    guest.map(&file, BASE, AT);
    guest.host.write(Gpa(AT * PAGE_SIZE + 0x10), &[0xCC]).unwrap();
    assert_eq!(guest.ask(&file, BASE, AT).outcome.unwrap_err().note.code, Code::MemMismatch);
    // a list that came since, by an algorithm of which no digest was made when the file was examined
    let content = ModuleTrailer::find(&file).unwrap().unwrap().content;
    let mut list = BlockList::new(1);
    list.block_file(digest(DigestAlg::Sha384, &[content]), "vulnerable");
    guest.loader.replace_blocked(list).unwrap();
    (0..3).for_each(|_| assert_eq!(load(&file).verdict.unwrap().decision, Decision::Refuse));
}

#[test]
fn of_loads_that_race_for_a_page_one_wins() {
    let guest = guest(&small());
    let file = guest.signed("good");
    let elsewhere = Gva(BASE.0 + 0x10_0000);
    // the same bytes at either base: synthetic modules have no relocations
    guest.map(&file, BASE, AT);
    for _ in 0..50 {
        let barrier = Barrier::new(2);
        let won = Mutex::new(Vec::new());
        thread::scope(|scope| {
            for base in [BASE, elsewhere] {
                let (barrier, won, guest, file) = (&barrier, &won, &guest, &file);
                scope.spawn(move || {
                    barrier.wait();
                    match guest.ask(file, base, AT).outcome {
                        Ok(module) => won.lock().unwrap().push(module.id),
                        Err(refusal) => {
                            assert!([HvStatus::OBJECT_IN_USE, HvStatus::OPERATION_DENIED].contains(&refusal.status), "{refusal}");
                        }
                    }
                });
            }
        });
        let won = won.into_inner().unwrap();
        assert_eq!(won.len(), 1, "{won:?}");
        guest.loader.unload(won[0]).unwrap();
        guest.map(&file, BASE, AT);
    }
}

#[test]
fn many_modules_load_at_once() {
    let guest = guest(&small());
    thread::scope(|scope| {
        for number in 0..4_u64 {
            let guest = &guest;
            scope.spawn(move || {
                for round in 0..8 {
                    let file = guest.signed(&format!("m{number}_{round}"));
                    let index = number * 8 + round;
                    let attempt = guest.load(&file, Gva(BASE.0 + index * 0x10_0000), AT + index * 16);
                    attempt.outcome.unwrap();
                }
            });
        }
    });
    assert_eq!(guest.loader.modules_loaded().len(), 32);
}

/// Invariant I6.
#[test]
fn an_error_at_any_call_of_the_host_leaves_no_more_than_there_was() {
    let guest = guest(&small());
    let file = guest.signed("good");
    guest.map(&file, BASE, AT);
    let narrower = |guest: &Guest, before: &[(Option<Kind>, MapGpaFlags, Vec<u8>)]| {
        for ((gpn, old), new) in (AT..).zip(before).zip(guest.state(AT..AT + 8)) {
            assert!(old.1.contains(new.1), "GPN {gpn:#x}: {:?} was {:?}", new.1, old.1);
            assert!(!new.1.is_writable_and_executable());
        }
    };
    let before = guest.state(AT..AT + 8);
    guest.host.fail_call(None, HvStatus::SUCCESS);
    let id = guest.ask(&file, BASE, AT).outcome.unwrap().id;
    let calls = guest.host.calls();
    guest.loader.unload(id).unwrap();
    let unload_calls = guest.host.calls() - calls;
    assert!(calls >= 6 && unload_calls >= 6, "{calls} {unload_calls}");
    guest.map(&file, BASE, AT);
    for n in 0..calls {
        guest.host.fail_call(Some(n), HvStatus::INSUFFICIENT_MEMORY);
        let refusal = guest.ask(&file, BASE, AT).outcome.unwrap_err();
        assert_eq!((refusal.note.code, refusal.status), (Code::MemClaim, HvStatus::INSUFFICIENT_MEMORY), "call {n}");
        guest.host.fail_call(None, HvStatus::SUCCESS);
        narrower(&guest, &before);
        assert!(guest.loader.modules_loaded().is_empty());
        assert!(guest.state(AT..AT + 8) == before, "call {n}");
    }
    for n in 0..unload_calls {
        let module = guest.load(&file, BASE, AT).outcome.unwrap();
        let loaded = guest.state(AT..AT + 8);
        guest.host.fail_call(Some(n), HvStatus::INSUFFICIENT_MEMORY);
        let result = guest.loader.unload(module.id);
        guest.host.fail_call(None, HvStatus::SUCCESS);
        assert_eq!(result, Err(HvStatus::INSUFFICIENT_MEMORY), "call {n}");
        narrower(&guest, &loaded);
        // also if it was scrubbed half-way, and is taken out of use
        assert_eq!(guest.loader.unload(module.id), Ok(()), "call {n}");
    }
}

/// Invariant I9.
#[test]
fn i9_every_byte_that_executes_has_a_provenance() {
    let guest = guest(&small());
    let elsewhere = (Gva(BASE.0 + 0x10_0000), AT + 0x100);
    let check = |what: &str, modules: usize| {
        let loaded = guest.loader.modules_loaded();
        assert_eq!(loaded.len(), modules, "{what}");
        let mut known = BTreeMap::new();
        for (module, segment) in loaded.iter().flat_map(|m| m.segments.iter().map(move |s| (m, s))) {
            for part in &segment.parts {
                for offset in [0, part.len - 1] {
                    let at = Gva(segment.start.0 + part.offset + offset);
                    let (owner, of, into) = guest.loader.provenance(at).unwrap();
                    assert_eq!((owner.id, &of, into), (module.id, part, offset), "{what}: {at}");
                }
            }
            if segment.kind == Kind::Code {
                known.extend(segment.pages.iter().flatten().map(|gpn| (*gpn, module.id)));
            }
        }
        let code: Vec<Gpn> = (0..0x1000).map(Gpn).filter(|gpn| guest.partition.kind(*gpn) == Some(Kind::Code)).collect();
        assert_eq!(code, known.into_keys().collect::<Vec<_>>(), "{what}: frames that execute are those of modules");
    };
    check("nothing is loaded", 0);
    let one = guest.load(&guest.signed("one"), BASE, AT).outcome.unwrap().id;
    check("one is loaded", 1);
    let two = guest.load(&guest.signed("two"), elsewhere.0, elsewhere.1).outcome.unwrap().id;
    check("two are loaded", 2);
    guest.loader.page_out(one, BASE).unwrap();
    check("a page is out", 2);
    guest.loader.end_of_initialisation(two).unwrap();
    check("the second is initialised", 2);
    guest.loader.unload(one).unwrap();
    check("the first is gone", 1);
    assert!(guest.loader.provenance(BASE).is_none());
    guest.loader.unload(two).unwrap();
    check("both are gone", 0);
}

/// The bytes of a guest's argument block, and whatever it points to.
fn block(function: Function, arguments: &[u64]) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    for (place, word) in block.chunks_mut(8).zip(std::iter::once(&function.0).chain(arguments)) {
        place.copy_from_slice(&word.to_le_bytes());
    }
    block
}

#[test]
fn the_guest_loads_patches_and_unloads_by_secure_calls() {
    let guest = guest(&small());
    let file = guest.signed("good");
    guest.map(&file, BASE, AT);
    let write =
        |page: u64, bytes: &[u8]| bytes.chunks(4096).zip(page..).for_each(|(b, p)| guest.host.write(Gpa(p * PAGE_SIZE), b).unwrap());
    let list = |from: u64, count: u64| (from..from + count).flat_map(u64::to_le_bytes).collect::<Vec<u8>>();
    write(0x10, b"good");
    write(0x11, &list(0x20, 16));
    write(0x12, &list(AT, 8));
    write(0x20, &file);
    let arguments = |len: u64, count: u64| [0x10_000, 4, 0x11_000, len, BASE.0, 0x12_000, count];
    let call = |function, arguments: &[u64]| guest.loader.call(&block(function, arguments), 1, time());
    let len = file.len() as u64;
    assert_eq!(call(Function::VALIDATE_MODULE, &arguments(1 << 40, 8)).0, HvStatus::INSUFFICIENT_MEMORY);
    assert_eq!(call(Function::VALIDATE_MODULE, &arguments(len, 1)).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(call(Function::VALIDATE_MODULE, &arguments(len, u64::MAX)).0, HvStatus::INSUFFICIENT_MEMORY);
    let (status, id) = call(Function::VALIDATE_MODULE, &arguments(len, 8));
    assert_eq!(status, HvStatus::SUCCESS);
    assert_eq!(guest.loader.modules_loaded()[0].name, "good");
    let data = guest.loader.modules_loaded()[0].segments.iter().find(|s| s.kind == Kind::Data).unwrap().start.0;
    assert_eq!(call(Function::PROTECT_MEMORY, &[id, BASE.0]).0, HvStatus::ACCESS_DENIED, "code is no data");
    assert_eq!(call(Function::PROTECT_MEMORY, &[id, data]).0, HvStatus::SUCCESS);
    let page = AT + (data - BASE.0) / PAGE_SIZE;
    assert_eq!(guest.host.access(0, Gpa(page * PAGE_SIZE), Access::Write), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(call(Function::PATCH_TEXT, &[id, BASE.0, 0, 1, 0xCC]).0, HvStatus::ACCESS_DENIED, "no site");
    assert_eq!(call(Function::PATCH_TEXT, &[id, BASE.0, 0, 17, 0xCC]).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(call(Function::FREE_MODULE_INIT, &[id]).0, HvStatus::SUCCESS);
    assert_eq!(call(Function::UNLOAD_MODULE, &[id + 1]).0, HvStatus::NOT_FOUND);
    assert_eq!(call(Function::UNLOAD_MODULE, &[1 << 40]).0, HvStatus::NOT_FOUND);
    assert_eq!(call(Function::UNLOAD_MODULE, &[id]).0, HvStatus::SUCCESS);
    assert!(guest.host.access(0, Gpa(page * PAGE_SIZE), Access::Write).is_ok());
    assert_eq!(call(Function(0x1_FFEC), &[]).0, HvStatus::FEATURE_UNAVAILABLE);

    // keys come during the boot, or never
    let stranger = Template::leaf("CN=late", &[]).issue(&Key::derive(9, "late", KeyKind::Rsa(2048)).unwrap(), None).unwrap();
    let late = synth_elf::signed(&synth_elf::module("late", false).unwrap(), &synth_elf::signing(&stranger)).unwrap();
    write(0x30, &der(&stranger));
    let len = der(&stranger).len() as u64;
    assert_eq!(call(Function::LOAD_KDATA, &[0x30_000, 5000]).0, HvStatus::INVALID_PARAMETER);
    assert_eq!(call(Function::SIGNAL_END_OF_BOOT, &[]).0, HvStatus::SUCCESS);
    assert_eq!(call(Function::LOAD_KDATA, &[0x30_000, len]).0, HvStatus::ACCESS_DENIED);
    assert!(guest.load(&late, BASE, AT).outcome.is_err());
}

#[test]
fn a_shadow_stack_begins_empty_with_its_token_and_ends_empty() {
    let guest = guest(&small());
    let (at, base) = (Gpn(0x80), Gva(0xFFFF_A000_0000_0000));
    guest.host.write(at.gpa().unwrap(), &[0x5A; 4096]).unwrap();
    let id = guest.loader.protect_region(Kind::ShadowStack, &[at, Gpn(0x90)], base, 7).unwrap();
    assert_eq!(guest.bytes(at), [0; 4096]);
    let top = guest.bytes(Gpn(0x90));
    assert_eq!((&top[..4088], &top[4088..]), (&[0; 4088][..], &(base.0 + 0x1FF8).to_le_bytes()[..]));
    assert!(guest.host.permission(Vtl::Vtl0, at).contains(MapGpaFlags::SUPERVISOR_SHADOW_STACK));
    assert_eq!(guest.host.access(0, at.gpa().unwrap(), Access::Write), Err(HvStatus::ACCESS_DENIED));
    assert_eq!(guest.loader.write_region(id, 7, 0, &[1], None), Err(HvStatus::ACCESS_DENIED), "nobody writes a stack but its processor");
    assert_eq!(guest.loader.release_region(id, 8), Err(HvStatus::ACCESS_DENIED));
    guest.loader.release_region(id, 7).unwrap();
    assert_eq!((guest.bytes(Gpn(0x90)), guest.partition.kind(at)), (vec![0; 4096], Some(Kind::Data)));

    let without = Config { capabilities: Capabilities { shadow_stack: false, ..Capabilities::ALL }, ..small() };
    let guest = self::guest(&without);
    assert_eq!(guest.loader.protect_region(Kind::ShadowStack, &[at], base, 7), Err(HvStatus::FEATURE_UNAVAILABLE));
    for kind in [Kind::Code, Kind::SecureOnly, Kind::Data] {
        assert_eq!(guest.loader.protect_region(kind, &[at], base, 7), Err(HvStatus::INVALID_PARAMETER), "{kind}");
    }
    assert_eq!(guest.loader.protect_region(Kind::KernelData, &[], base, 7), Err(HvStatus::INVALID_PARAMETER));
    assert_eq!(guest.loader.protect_region(Kind::KernelData, &[at, at], base, 7), Err(HvStatus::INVALID_PARAMETER), "a page twice");
    assert_eq!(guest.partition.kind(at), Some(Kind::Data));
}

/// Pages and cookie of a region, as the model has them.
type Known = (Vec<u64>, u64);

/// What is done with regions.
#[derive(Clone, Debug)]
enum Op {
    Protect { pages: Vec<u64>, cookie: u64 },
    Write { region: usize, cookie: u64, offset: u64, len: usize, byte: u8 },
    Release { region: usize, cookie: u64 },
    GuestWrites { page: u64, byte: u8 },
}

fn op() -> impl Strategy<Value = Op> {
    let cookie = || 0..2_u64;
    let offset = prop_oneof![0..0x2100_u64, Just(u64::MAX - 4), Just(0xFF8)];
    prop_oneof![
        (proptest::collection::vec(0..4_u64, 1..4), cookie()).prop_map(|(pages, cookie)| Op::Protect { pages, cookie }),
        (0..5_usize, cookie(), offset, 0..20_usize, any::<u8>()).prop_map(|(region, cookie, offset, len, byte)| Op::Write {
            region,
            cookie,
            offset,
            len,
            byte
        }),
        (0..5_usize, cookie()).prop_map(|(region, cookie)| Op::Release { region, cookie }),
        (0..4_u64, any::<u8>()).prop_map(|(page, byte)| Op::GuestWrites { page, byte }),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Pools against a model that has a byte array for each page and a list of regions.
    #[test]
    fn pools_are_what_a_naive_model_says(ops in proptest::collection::vec(op(), 1..40)) {
        let guest = guest(&Config { pages: 0x400, ..Config::default() });
        let page = |n: u64| Gpn(0x80 + n);
        let mut bytes = vec![vec![0_u8; 4096]; 4];
        let mut made: Vec<(u32, Option<Known>)> = Vec::new();
        for op in ops {
            let owned: Vec<u64> = made.iter().filter_map(|(_, r)| r.clone()).flat_map(|(pages, _)| pages).collect();
            match op {
                Op::Protect { pages, cookie } => {
                    let gpns: Vec<Gpn> = pages.iter().map(|n| page(*n)).collect();
                    let result = guest.loader.protect_region(Kind::KernelData, &gpns, Gva(0), cookie);
                    let mut once = pages.clone();
                    once.sort_unstable();
                    once.dedup();
                    let fits = once.len() == pages.len() && pages.iter().all(|n| !owned.contains(n));
                    prop_assert_eq!(result.is_ok(), fits, "{:?} {:?}", pages, result);
                    if let Ok(id) = result {
                        made.push((id, Some((pages, cookie))));
                    }
                }
                Op::Write { region, cookie, offset, len, byte } => {
                    let Some((id, known)) = made.get(region) else { continue };
                    let result = guest.loader.write_region(*id, cookie, offset, &vec![byte; len], Some(0));
                    let expected = match known {
                        None => Err(HvStatus::NOT_FOUND),
                        Some((_, own)) if *own != cookie => Err(HvStatus::ACCESS_DENIED),
                        Some((pages, _)) if offset.checked_add(len as u64).is_none_or(|end| end > pages.len() as u64 * 4096) => {
                            Err(HvStatus::INVALID_PARAMETER)
                        }
                        Some((pages, _)) => {
                            for at in offset..offset + len as u64 {
                                bytes[pages[(at / 4096) as usize] as usize][(at % 4096) as usize] = byte;
                            }
                            Ok(())
                        }
                    };
                    prop_assert_eq!(result, expected);
                }
                Op::Release { region, cookie } => {
                    let Some((id, known)) = made.get_mut(region) else { continue };
                    let result = guest.loader.release_region(*id, cookie);
                    let expected = match known {
                        None => Err(HvStatus::NOT_FOUND),
                        Some((_, own)) if *own != cookie => Err(HvStatus::ACCESS_DENIED),
                        Some(_) => Ok(()),
                    };
                    prop_assert_eq!(result, expected);
                    if result.is_ok() {
                        *known = None;
                    }
                }
                Op::GuestWrites { page: n, byte } => {
                    let result = guest.host.store(0, page(n).gpa().unwrap(), &[byte]);
                    prop_assert_eq!(result.is_ok(), !owned.contains(&n));
                    if result.is_ok() {
                        bytes[n as usize][0] = byte;
                    }
                }
            }
            for n in 0..4 {
                prop_assert!(guest.bytes(page(n)) == bytes[n as usize], "page {}", n);
            }
        }
    }
}

#[test]
fn what_vtl0_cannot_read_is_not_read_to_it() {
    let guest = guest(&small());
    guest.partition.transform(u32::MAX, &[(Gpn(5), Kind::SecureOnly)], || Ok(())).unwrap();
    let call = |arguments: &[u64]| guest.loader.call(&block(Function::VALIDATE_MODULE, arguments), 0, time()).0;
    assert_eq!(call(&[0x5000, 4, 0x6000, 8, BASE.0, 0x6000, 0]), HvStatus::ACCESS_DENIED);
    assert_eq!(call(&[0x4FFE, 4, 0x6000, 8, BASE.0, 0x6000, 0]), HvStatus::ACCESS_DENIED, "the second page");
    assert_eq!(call(&[u64::MAX - 1, 4, 0x6000, 8, BASE.0, 0x6000, 0]), HvStatus::INVALID_PARAMETER);
    assert_eq!(call(&[0x7000, 256, 0x6000, 8, BASE.0, 0x6000, 0]), HvStatus::INVALID_PARAMETER);
}

proptest! {
    #[test]
    fn no_argument_block_panics_or_makes_anything_executable(
        function in prop_oneof![0x1_FFE0_u64..0x1_FFEE, any::<u64>()],
        arguments in proptest::collection::vec(prop_oneof![0_u64..0x20, (0_u64..0x20).prop_map(|p| p << 12), any::<u64>()], 12),
    ) {
        let guest = guest(&Config { pages: 64, ..Config::default() });
        let (status, _) = guest.loader.call(&block(Function(function), &arguments), 0, time());
        prop_assert!(status != HvStatus::SUCCESS || function == Function::SIGNAL_END_OF_BOOT.0);
        for gpn in 0..64 {
            prop_assert!(!guest.host.permission(Vtl::Vtl0, Gpn(gpn)).contains(MapGpaFlags::KERNEL_EXECUTABLE));
        }
    }
}

#[test]
fn real_drivers_load_as_their_verdicts_say() {
    let Some(folder) = folder("windows-drivers") else { return };
    let mut loaded = Vec::new();
    for path in files(&folder).iter().filter(|p| p.extension().is_some_and(|e| e.eq_ignore_ascii_case("sys"))) {
        let guest = guest(&small());
        let file = fs::read(path).unwrap();
        let base = Gva(0xFFFF_F800_1234_0000);
        if guest_loader::place(&file, base).is_err() {
            continue;
        }
        let attempt = guest.load(&file, base, AT);
        if attempt.outcome.as_ref().is_err_and(|refusal| refusal.note.code == Code::ImageUnsupported) {
            // for another processor
            continue;
        }
        assert_eq!(attempt.verdict.unwrap().decision == Decision::Accept, attempt.outcome.is_ok(), "{}", path.display());
        if let Ok(module) = attempt.outcome {
            loaded.push(path.file_name().unwrap().to_string_lossy().into_owned());
            let entry = module.entry.unwrap().0 - base.0;
            assert!(guest.host.access(0, Gpa(AT * PAGE_SIZE + entry), Access::KernelExecute).is_ok());
            let init: Vec<Gpn> =
                module.segments.iter().filter(|s| s.discardable && s.kind == Kind::Code).flat_map(|s| s.pages.clone()).flatten().collect();
            guest.loader.end_of_initialisation(module.id).unwrap();
            for gpn in init {
                assert_eq!((guest.host.permission(Vtl::Vtl0, gpn), guest.bytes(gpn)), (MapGpaFlags::DATA, vec![0; 4096]));
            }
            guest.loader.unload(module.id).unwrap();
            let again: Vec<String> = (0..3)
                .map(|_| {
                    let attempt = guest.load(&file, base, AT);
                    guest.loader.unload(attempt.outcome.as_ref().unwrap().id).unwrap();
                    outcome(attempt)
                })
                .collect();
            assert!(again.windows(2).all(|pair| pair[0] == pair[1]), "{}: known or not", path.display());
        }
    }
    assert!(loaded.iter().any(|name| name == "WinDivert64.sys"), "{loaded:?}");
}

#[test]
fn real_modules_load_and_their_jump_labels_are_patched_in_three_steps() {
    let Some(folder) = folder("debian-kernel") else { return };
    let all = files(&folder);
    let guest = guest(&Config::default());
    // the folder may hold more than one kernel with its modules
    for kernel in all.iter().filter(|p| p.file_name().is_some_and(|n| n.to_string_lossy().starts_with("vmlinuz"))) {
        let keys = kernel_certificates(&fs::read(kernel).unwrap(), corpora::CAP).unwrap();
        keys.iter().for_each(|key| guest.loader.add_module_key(key, "kernel").unwrap());
    }
    let (mut loaded, mut patched) = (0, 0);
    for path in all.iter().filter(|p| p.extension().is_some_and(|e| e == "ko")).step_by(40) {
        let file = fs::read(path).unwrap();
        let attempt = guest.load(&file, BASE, AT);
        let module = attempt.outcome.unwrap_or_else(|refusal| panic!("{}: {refusal}", path.display()));
        loaded += 1;
        let sites: Vec<Gva> = module.patch_sites().take(3).collect();
        for site in sites {
            let bytes = |len: usize| {
                let mut bytes = vec![0; len];
                // none of these straddles: they are within a page here or are left out
                guest.host.read(Gpa(AT * PAGE_SIZE + (site.0 - BASE.0)), &mut bytes).map(|()| bytes)
            };
            if site.0 % PAGE_SIZE > PAGE_SIZE - 5 {
                continue;
            }
            let before = bytes(5).unwrap();
            let patch = |offset, new: &[u8]| guest.loader.patch(module.id, site, offset, new, Some(1));
            assert_eq!(patch(0, &before[..1]), Err(HvStatus::ACCESS_DENIED));
            patch(0, &[0xCC]).unwrap();
            assert_eq!(bytes(1).unwrap(), [0xCC]);
            assert_eq!(guest.loader.modules_loaded()[0].pending_patches().collect::<Vec<_>>(), [site]);
            assert_eq!(patch(1, &[0x90; 4]), Err(HvStatus::ACCESS_DENIED));
            patch(0, &before[..1]).unwrap();
            assert_eq!(bytes(5).unwrap(), before);
            patched += 1;
        }
        guest.loader.end_of_initialisation(module.id).unwrap();
        guest.loader.unload(module.id).unwrap();
    }
    assert!(loaded > 50 && patched > 5, "{loaded} {patched}");
}
