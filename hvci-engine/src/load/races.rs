//! Loads, changes and the end of modules at once, under shuttle, beside processors that write and execute by what they remember. The guest and
//! its properties are those of `vsm::partition::races`; the module is the one that the C interface is tested with.

#![expect(clippy::as_conversions, clippy::arithmetic_side_effects, clippy::indexing_slicing, clippy::unwrap_used, reason = "tests")]

use std::sync::{Arc, LazyLock};

use shuttle::thread;

use super::*;
use crate::{
    access::Access,
    addr::{Gpa, Gpn, PAGE_SIZE},
    frames::Kind,
    host::MemoryIntercept,
    image::elf::Elf,
    signature::{
        catalog::CatalogIndex,
        trust::{Purposes, TrustStore},
    },
    status::HvStatus,
    sync::scheduled::check,
    time::UnixTime,
    vsm::partition::{
        Partition,
        races::{Guest, Processor, assert_settled},
    },
};

/// Of each test.
const SCHEDULES: usize = 1_000;
const MODULE: &[u8] = include_bytes!("../../tests/capi/module.ko");
const BASE: Gva = Gva(0xFFFF_FFFF_C000_0000);
/// 2036-01-01: long after its certificate was made.
const TIME: UnixTime = UnixTime(2_082_758_400);

static TRUST: LazyLock<TrustStore> = LazyLock::new(|| {
    let mut trust = TrustStore::empty();
    trust.add_der(include_bytes!("../../tests/capi/signer.der"), Purposes::MODULE, "test").unwrap();
    trust
});

static EXPECTED: LazyLock<Expected<'static>> = LazyLock::new(|| {
    let module = Elf::parse(MODULE).unwrap();
    elf(&module, &Placement::contiguous(&module, BASE).unwrap(), &Kernel).unwrap()
});

struct Kernel;

impl Symbols for Kernel {
    fn resolve(&self, _: &[u8], symbol: Symbol<'_>) -> Option<Gva> {
        (symbol == Symbol::Name(b"_printk")).then_some(Gva(0xFFFF_FFFF_8100_0000))
    }
}

fn pages() -> u64 {
    EXPECTED.segments.iter().map(|s| s.pages().count() as u64).sum()
}

/// The page that the first segment of this kind starts at.
fn page_of(kind: Kind) -> u64 {
    let start = EXPECTED.segments.iter().find(|s| s.kind == kind).unwrap().start;
    (start.0 - BASE.0) / PAGE_SIZE
}

/// A guest that has put the module into its memory from page 0 on; one page is more.
fn prepared() -> (Arc<Guest>, Arc<Partition>, Arc<Loader>) {
    let (guest, partition) = Guest::new(usize::try_from(pages()).unwrap() + 1);
    for (at, bytes) in EXPECTED.segments.iter().flat_map(Segment::pages) {
        guest.put((at.0 - BASE.0) / PAGE_SIZE, bytes);
    }
    let loader = Loader::new(Arc::clone(&partition), TRUST.clone(), CatalogIndex::default(), None, Box::new(Kernel));
    (guest, partition, Arc::new(loader))
}

fn load(loader: &Loader) -> Result<Arc<Module>, HvStatus> {
    let pages = |at: Gva| Some(Gpn(at.0.checked_sub(BASE.0)? / PAGE_SIZE));
    let request = Request { name: "module", file: File::Private(MODULE), place: Place::Base(BASE), pages: &pages, time: TIME, vp: Some(0) };
    loader.load(&request).outcome.map_err(|refusal| refusal.status)
}

/// Has a processor write to where code is or comes, and execute it.
fn attack(guest: &Guest, partition: &Partition, vp: usize) {
    let page = page_of(Kind::Code);
    let first = EXPECTED.segments.iter().find(|s| s.kind == Kind::Code).unwrap().bytes.to_vec()[0];
    for _ in 0..2 {
        guest.access(partition, vp, page, Access::Write);
        let executed = guest.access(partition, vp, page, Access::KernelExecute);
        assert!(executed.is_none_or(|byte| byte == first), "unverified code executes");
    }
}

type Task<T> = Box<dyn FnOnce() -> T + Send>;

/// Runs these at once, and what each came to.
fn at_once<T: Send + 'static>(tasks: Vec<Task<T>>) -> Vec<T> {
    let running: Vec<_> = tasks.into_iter().map(thread::spawn).collect();
    running.into_iter().map(|task| task.join().unwrap()).collect()
}

fn task<T>(loader: &Arc<Loader>, run: impl FnOnce(&Loader) -> T + Send + 'static) -> Task<T> {
    let loader = Arc::clone(loader);
    Box::new(move || run(&loader))
}

fn attacker<T: Send + 'static>(guest: &Arc<Guest>, partition: &Arc<Partition>, vp: usize, ended: T) -> Task<T> {
    let (guest, partition) = (Arc::clone(guest), Arc::clone(partition));
    Box::new(move || {
        attack(&guest, &partition, vp);
        ended
    })
}

/// The table of modules and the frames say the same of each page.
fn assert_agreed(guest: &Guest, partition: &Partition, loader: &Loader) {
    assert_settled(guest, partition);
    let modules = loader.modules_loaded();
    let sealed = modules.iter().flat_map(|m| &m.segments).flat_map(|s| s.pages.iter().flatten().map(|gpn| (*gpn, s.kind)));
    let sealed: std::collections::BTreeMap<Gpn, Kind> = sealed.collect();
    for gpn in (0..pages()).map(Gpn) {
        assert_eq!(partition.kind(gpn).unwrap(), sealed.get(&gpn).copied().unwrap_or(Kind::Data), "{gpn}");
    }
}

#[test]
fn of_two_loads_of_the_same_addresses_one_wins() {
    check(SCHEDULES, || {
        let (guest, partition, loader) = prepared();
        let results = at_once(vec![task(&loader, |loader| load(loader).map(|m| m.id)), task(&loader, |loader| load(loader).map(|m| m.id))]);
        let refused: Vec<HvStatus> = results.iter().filter_map(|result| result.err()).collect();
        assert_eq!(refused, [HvStatus::OBJECT_IN_USE], "{results:?}");
        assert_eq!(loader.modules_loaded().len(), 1);
        assert_agreed(&guest, &partition, &loader);
    });
}

#[test]
fn a_load_beside_processors_that_write_grants_what_was_signed_or_nothing() {
    check(SCHEDULES, || {
        let (guest, partition, loader) = prepared();
        let results = at_once(vec![
            task(&loader, |loader| load(loader).map(drop)),
            attacker(&guest, &partition, 0, Ok(())),
            attacker(&guest, &partition, 1, Ok(())),
        ]);
        assert_eq!(loader.modules_loaded().len(), usize::from(results[0].is_ok()), "{results:?}");
        assert_agreed(&guest, &partition, &loader);
    });
}

#[test]
fn of_changes_of_one_module_one_is_made_at_a_time() {
    check(SCHEDULES, || {
        let (guest, partition, loader) = prepared();
        let id = load(&loader).unwrap().id;
        let data = Gva(BASE.0 + page_of(Kind::Data) * PAGE_SIZE);
        let results = at_once(vec![
            task(&loader, move |loader| loader.unload(id)),
            task(&loader, move |loader| loader.unload(id)),
            task(&loader, move |loader| loader.end_of_initialisation(id)),
            task(&loader, move |loader| loader.protect_section(id, data)),
            attacker(&guest, &partition, 1, Ok(())),
        ]);
        // whoever comes second is told so; nothing else can go wrong
        assert!(results.iter().all(|r| matches!(r, Ok(()) | Err(HvStatus::OBJECT_IN_USE | HvStatus::NOT_FOUND))), "{results:?}");
        let unloads = results[..2].iter().filter(|result| result.is_ok()).count();
        assert!(unloads <= 1, "{results:?}");
        assert!(results.iter().take(4).any(Result::is_ok), "{results:?}");
        assert_eq!(loader.modules_loaded().len(), 1 - unloads);
        assert_agreed(&guest, &partition, &loader);
    });
}

#[test]
fn an_unload_and_a_load_of_the_same_addresses_do_not_meet() {
    check(SCHEDULES, || {
        let (guest, partition, loader) = prepared();
        let id = load(&loader).unwrap().id;
        let results = at_once(vec![
            task(&loader, move |loader| loader.unload(id)),
            task(&loader, |loader| load(loader).map(drop)),
            attacker(&guest, &partition, 0, Ok(())),
        ]);
        assert_eq!(results[0], Ok(()));
        // too early, or of pages that are scrubbed
        assert!(matches!(results[1], Err(HvStatus::OBJECT_IN_USE | HvStatus::ACCESS_DENIED)), "{results:?}");
        assert!(loader.modules_loaded().is_empty());
        assert_agreed(&guest, &partition, &loader);
    });
}

/// Two processors execute a page that is back, one of them where another copy of it is, beside one that writes and the end of the module.
#[test]
fn code_that_comes_back_is_what_was_signed_and_in_one_page() {
    check(SCHEDULES, || {
        let (guest, partition, loader) = prepared();
        let id = load(&loader).unwrap().id;
        let page = page_of(Kind::Code);
        let at = Gva(BASE.0 + page * PAGE_SIZE);
        loader.page_out(id, at).unwrap();
        let bytes = EXPECTED.segments.iter().flat_map(Segment::pages).find(|(start, _)| *start == at).unwrap().1;
        let spare = pages();
        guest.put(page, bytes);
        guest.put(spare, bytes);
        let executor = |vp: u32, page: u64| {
            task(&loader, move |loader| {
                let (gpa, access) = (Gpa(page * PAGE_SIZE), Access::KernelExecute);
                let intercept = MemoryIntercept { gpa, gva: Some(at), access, page_walk: false, cpl: 0, rip: at };
                loader.on_memory(&mut Processor(vp), &intercept);
                Ok(())
            })
        };
        let results = at_once(vec![
            executor(0, page),
            executor(1, spare),
            task(&loader, move |loader| loader.unload(id)),
            attacker(&guest, &partition, 1, Ok(())),
        ]);
        assert!(matches!(results[2], Ok(()) | Err(HvStatus::OBJECT_IN_USE)), "{results:?}");
        assert_settled(&guest, &partition);
        let modules = loader.modules_loaded();
        assert_eq!(modules.len(), usize::from(results[2].is_err()));
        let placed: Vec<Gpn> = modules.iter().flat_map(|m| m.gpn_of(at)).collect();
        let executes = |page: &u64| partition.kind(Gpn(*page)) == Some(Kind::Code);
        assert_eq!([page, spare].into_iter().filter(executes).map(Gpn).collect::<Vec<_>>(), placed);
    });
}

/// Regions and modules have a lock each, which one call takes both of.
#[test]
fn regions_and_modules_wait_for_each_other_in_one_order() {
    check(SCHEDULES, || {
        const COOKIE: u64 = 7;
        let (_, partition, loader) = prepared();
        let id = load(&loader).unwrap().id;
        let target = Gva(BASE.0 + page_of(Kind::Code) * PAGE_SIZE);
        let spare = Gpn(pages());
        let bitmap = loader.protect_region(Kind::CfgBitmap, &[spare], BASE, COOKIE).unwrap();
        let results = at_once(vec![
            task(&loader, move |loader| loader.mark_call_target(bitmap, COOKIE, target, None)),
            task(&loader, move |loader| loader.unload(id)),
            task(&loader, move |loader| loader.release_region(bitmap, COOKIE)),
            task(&loader, move |loader| {
                loader.provenance(target);
                Ok(())
            }),
        ]);
        assert_eq!((results[1], results[2]), (Ok(()), Ok(())));
        assert!(matches!(results[0], Ok(()) | Err(HvStatus::NOT_FOUND | HvStatus::ACCESS_DENIED)), "{results:?}");
        assert_eq!(partition.kind(spare), Some(Kind::Data));
    });
}

/// Invariant I6, and the way out: an error of the host at any call of a change, once and for good, and the same call again when the host is well.
#[test]
fn a_change_that_failed_half_way_is_ended_by_another_try() {
    let data = Gva(BASE.0 + page_of(Kind::Data) * PAGE_SIZE);
    type Call = fn(&Loader, u32, Gva) -> Result<(), HvStatus>;
    let calls: [(&str, Call); 4] = [
        ("unload", |loader, id, _| loader.unload(id)),
        ("end of initialisation", |loader, id, _| loader.end_of_initialisation(id)),
        ("protect", |loader, id, data| loader.protect_section(id, data)),
        ("page out", |loader, id, _| loader.page_out(id, BASE)),
    ];
    let (mut quarantined, mut refused) = (0, 0);
    for ((name, call), for_good) in calls.into_iter().flat_map(|call| [(call, false), (call, true)]) {
        for number in 0.. {
            let (guest, partition, loader) = prepared();
            let id = load(&loader).unwrap().id;
            let flags = || (0..pages()).map(|page| guest.allowed(page)).collect::<Vec<_>>();
            let before = flags();
            guest.fail(Some((number, for_good)));
            let result = call(&loader, id, data);
            if guest.fail(None) <= number {
                assert_eq!(result, Ok(()), "{name} has no call {number}");
                break;
            }
            let about = format!("{name} when call {number} fails{}", if for_good { " and all after" } else { "" });
            assert_eq!(result, Err(HvStatus::INSUFFICIENT_MEMORY), "{about}");
            // a host that takes nothing back any more is left with what it was given last
            let narrower = before.iter().zip(flags()).all(|(before, now)| before.contains(now));
            assert!(narrower || for_good, "{about}");
            let kinds = || (0..pages()).map(|page| partition.kind(Gpn(page)).unwrap()).collect::<Vec<_>>();
            let failed = kinds();
            quarantined += usize::from(failed.contains(&Kind::Quarantined));
            match call(&loader, id, data) {
                Ok(()) => assert_agreed(&guest, &partition, &loader),
                // constants or data that nothing can be said about, code that is scrubbed: as they were, until it is unloaded
                Err(HvStatus::OPERATION_DENIED) => {
                    assert!(name != "unload" && failed.contains(&Kind::Quarantined), "{about}: {failed:?}");
                    assert!(for_good || name == "page out", "{about}: {failed:?}");
                    assert_eq!(kinds(), failed, "{about}");
                    refused += 1;
                }
                Err(status) => panic!("{about}: {status:?}"),
            }
            if !loader.modules_loaded().is_empty() {
                assert_eq!(loader.unload(id), Ok(()), "{about}");
            }
            // nothing is left of it but data that it had as its own and that are the guest's again
            assert!(loader.modules_loaded().is_empty() && kinds().iter().all(|kind| *kind == Kind::Data), "{about}: {:?}", kinds());
            assert_agreed(&guest, &partition, &loader);
        }
    }
    assert!(quarantined > 3 && refused > 0, "{quarantined} {refused}");
}

/// Invariant I9, at each stage of a module's life: frames that execute are those of the table of modules, and each of their bytes is one of a
/// section that the module has.
#[test]
fn i9_every_byte_that_executes_has_a_provenance() {
    let (guest, partition, loader) = prepared();
    let stage = |what: &str, modules: usize| {
        let loaded = loader.modules_loaded();
        assert_eq!(loaded.len(), modules, "{what}");
        let mut known = std::collections::BTreeSet::new();
        for (module, segment) in loaded.iter().flat_map(|m| m.segments.iter().map(move |s| (m, s))).filter(|(_, s)| s.kind == Kind::Code) {
            for (page, gpn) in (0..).zip(&segment.pages) {
                known.extend(*gpn);
                let at = Gva(segment.start.0 + page * PAGE_SIZE);
                let (owner, part, offset) = loader.provenance(at).unwrap();
                assert_eq!((owner.id, part.offset + offset), (module.id, page * PAGE_SIZE), "{what}: {at}");
                assert!(segment.parts.contains(&part) && offset < part.len, "{what}: {at}");
            }
        }
        let executes = (0..=pages()).map(Gpn).filter(|gpn| partition.kind(*gpn) == Some(Kind::Code));
        assert_eq!(executes.collect::<std::collections::BTreeSet<_>>(), known, "{what}");
    };
    stage("before it is loaded", 0);
    let id = load(&loader).unwrap().id;
    stage("loaded", 1);
    let (page, spare) = (page_of(Kind::Code), pages());
    let at = Gva(BASE.0 + page * PAGE_SIZE);
    let bytes = EXPECTED.segments.iter().flat_map(Segment::pages).find(|(start, _)| *start == at).unwrap().1;
    loader.page_out(id, at).unwrap();
    stage("with a page out", 1);
    guest.put(spare, bytes);
    let access = Access::KernelExecute;
    let intercept = MemoryIntercept { gpa: Gpa(spare * PAGE_SIZE), gva: Some(at), access, page_walk: false, cpl: 0, rip: at };
    loader.on_memory(&mut Processor(0), &intercept);
    assert_eq!(partition.kind(Gpn(spare)), Some(Kind::Code));
    stage("with the page back, elsewhere", 1);
    loader.end_of_initialisation(id).unwrap();
    stage("initialised", 1);
    loader.unload(id).unwrap();
    stage("unloaded", 0);
    assert!((0..=pages()).all(|page| loader.provenance(Gva(BASE.0 + page * PAGE_SIZE)).is_none()));
}
